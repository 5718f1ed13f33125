//! What a connection does with a header: which bytes follow it, whether they are wanted, and how much memory the
//! request may take.
//!
//! All checks that need no payload come first, so that a refused payload is read past without being stored, and
//! nothing is allocated for a length that no operation has.

use bytes::Bytes;
use proto::client::IO_BYTES_MAX;
use proto::inode::NAME_BYTES;
use proto::sd::header::{ObjRequest, RequestVariant};
use proto::sd::structs::RECOVERY_THROTTLING_BYTES;
use proto::sd::{HEADER_BYTES, Opcode, RequestHeader, ResultCode, flag};
use proto::{ObjectKind, Vid};

use super::desk::Desk;
use super::exchange::{self, Step};

/// What each request counts for, besides its bytes: bounds the number of small requests in flight.
const REQUEST_COST_BYTES: u32 = 64 << 10;
/// What a request counts for whose reply's size is known only to the service.
const LIST_COST_BYTES: u32 = 4 << 20;
/// Longest store name of MAKE_FS, with its NUL.
const STORE_NAME_BYTES_MAX: u32 = 256;

/// A request of which the header has arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub header: RequestHeader,
    pub body: Body,
    /// The operation, or the refusal that is due after the payload.
    verdict: Result<Opcode, ResultCode>,
}

/// The bytes between this header and the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// To be collected and passed on; at most [`IO_BYTES_MAX`].
    Keep(u32),
    /// To be read past.
    Skip(u32),
}

impl Arrival {
    /// Checks in the order of spec section 1.7: version, opcode, then the payload's length.
    pub fn new(bytes: &[u8; HEADER_BYTES]) -> Arrival {
        let header = RequestHeader::decode(bytes);
        let follows = header.payload_bytes();
        let refused = |code| Arrival { header, body: Body::Skip(follows), verdict: Err(code) };
        if !Opcode::accepts_version(header.opcode, header.proto_ver) {
            return refused(ResultCode::VER_MISMATCH);
        }
        let Some(opcode) = Opcode::from_u8(header.opcode) else {
            return refused(ResultCode::INVALID_PARMS);
        };
        match payload_rule(opcode) {
            Payload::Unread => Arrival { header, body: Body::Skip(follows), verdict: Ok(opcode) },
            Payload::None if follows != 0 => refused(ResultCode::INVALID_PARMS),
            // Without WRITE, `data_length` is the size of a buffer: data was meant but not sent.
            Payload::UpTo(_) if !header.has(flag::WRITE) && header.data_length != 0 => {
                refused(ResultCode::INVALID_PARMS)
            }
            Payload::UpTo(max) if follows > max => refused(ResultCode::INVALID_PARMS),
            _ => Arrival { header, body: Body::Keep(follows), verdict: Ok(opcode) },
        }
    }

    pub fn opcode(&self) -> Option<Opcode> {
        Opcode::from_u8(self.header.opcode)
    }

    /// The VDI of which the client is to read or write data, for its guest and not to look at it.
    pub fn works_on(&self) -> Option<Vid> {
        use Opcode::*;
        let oid = ObjRequest::decode(&self.header.variant).oid;
        let on_data = matches!(self.verdict, Ok(ReadObj | WriteObj | CreateAndWriteObj))
            && oid.kind() == Some(ObjectKind::Data);
        (on_data && oid.vid().is_valid()).then_some(oid.vid())
    }

    /// Memory that the request and its reply take at most, as counted against the connection's budget.
    pub fn cost_bytes(&self) -> u32 {
        let bytes = match (self.body, self.verdict) {
            (_, Err(_)) => 0,
            (Body::Keep(len), Ok(_)) if len > 0 => len,
            (_, Ok(opcode)) => reply_cost_bytes(opcode, self.header.data_length),
        };
        REQUEST_COST_BYTES + bytes
    }

    /// The request's first step, now that its payload is here (empty if it was to be skipped).
    pub fn start(&self, payload: Bytes, desk: &Desk) -> Step {
        match self.verdict {
            Ok(opcode) => exchange::start(opcode, &self.header, payload, desk),
            Err(code) => Step::refused(code),
        }
    }
}

/// An attribute's value, and as many names as one snapshot takes.
const ASK_BYTES_MAX: u32 = 256 << 10;

enum Payload {
    None,
    UpTo(u32),
    /// Whatever comes is ignored.
    Unread,
}

fn payload_rule(opcode: Opcode) -> Payload {
    use Opcode::*;
    match opcode {
        CreateAndWriteObj | WriteObj | VolumeWrite => Payload::UpTo(IO_BYTES_MAX),
        NewVdi => Payload::UpTo(NAME_BYTES as u32),
        LockVdi | GetVdiInfo | DelVdi => Payload::UpTo(2 * NAME_BYTES as u32),
        MakeFs => Payload::UpTo(STORE_NAME_BYTES_MAX),
        Ask => Payload::UpTo(ASK_BYTES_MAX),
        SetRecovery => Payload::UpTo(RECOVERY_THROTTLING_BYTES as u32),
        ReadObj | VolumeRead | ReadVdis | ReadDelVdis | GetNodeList | StatCluster | GetVdiCopies
        | ClusterInfo | MdInfo | GetRecovery => Payload::None,
        // QEMU sends a name with RELEASE_VDI; what we do not carry out is answered whatever it carries.
        _ => Payload::Unread,
    }
}

fn reply_cost_bytes(opcode: Opcode, data_length: u32) -> u32 {
    use Opcode::*;
    match opcode {
        ReadObj | VolumeRead | ReadVdis | ReadDelVdis | GetNodeList | StatCluster | GetVdiCopies
        | ClusterInfo | MdInfo => data_length.min(IO_BYTES_MAX),
        CheckObject | VdiList | Locate | ClusterInfoEx | Ask => LIST_COST_BYTES,
        _ => 0,
    }
}
