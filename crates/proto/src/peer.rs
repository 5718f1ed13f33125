//! What sheep tell each other, and how it is framed.
//!
//! A link is one TCP connection from the sender to the receiver's port. It opens with [`Hello`], then
//! carries frames: a 16-byte head, a postcard-encoded [`PeerMessage`], and raw payload. Messages may be lost (when a
//! link breaks), come late or twice; the state machines above cope. Layout: docs/formats.md.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::checksum::crc32c;
use crate::client::{ClientOp, ClientResult};
use crate::object::{BlockRange, Change, ObjectInfo, Origin, Stamp, StoreFailure, Tag, Unsettled, Verified};
use crate::{Generation, Incarnation, NodeId, Oid, PgId, RequestId, Seq, Since, Vid, ViewVersion};

/// First bytes on a peer link. No native request starts so: its first byte is a protocol version.
pub const HELLO_MAGIC: [u8; 8] = *b"\xffSHEEP\x00\x01";
/// Largest control part of a frame.
pub const CONTROL_BYTES_MAX: u32 = 4 << 20;
/// Largest payload of a frame: one request of a client, rounded up to blocks.
pub const PAYLOAD_BYTES_MAX: u32 = (32 << 20) + 8192;
pub const FRAME_HEAD_BYTES: usize = 16;
/// Changes in one answer to a seal: at most 70 bytes each, so some 1 MiB of a frame.
pub const SEAL_PAGE: usize = 16384;
/// Changes that a `SettleAround` may except: 20 KiB of a frame, and a bound for what each copy keeps in mind.
pub const PINNED_MAX: usize = 2048;

/// Blocks of which one message tells the checksums: at most 5 bytes each.
pub const CHECKSUMS_MAX: u32 = 4096;

/// Who is calling, and what for. The receiver refuses a caller of another cluster and closes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub from: NodeId,
    pub to: NodeId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// `version`: the receiver acts only once its view is at least that. `life`: of the receiver, and for no other: one that has started
    /// anew does not know what its earlier life has carried out.
    Request {
        id: u64,
        version: ViewVersion,
        life: Incarnation,
        body: PeerRequest,
    },
    Reply {
        id: u64,
        body: PeerReply,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerRequest {
    /// A change of the session's owner, numbered in `tag`.
    Change {
        pg: PgId,
        since: Since,
        oid: Oid,
        change: Change,
        tag: Tag,
        #[serde(skip)]
        data: Bytes,
    },
    Read {
        pg: PgId,
        since: Since,
        oid: Oid,
        blocks: BlockRange,
    },
    /// What checksums do these blocks have, and which of them cannot be read?
    Verify {
        pg: PgId,
        since: Since,
        oid: Oid,
        blocks: BlockRange,
    },
    /// What checksums does the copy have on record for these blocks, at most [`CHECKSUMS_MAX`]? Nothing is read for it.
    Checksums {
        pg: PgId,
        since: Since,
        oid: Oid,
        blocks: BlockRange,
    },
    /// Blocks of an object that never changes, as another copy has them: to be put back where this copy has lost them.
    Mend {
        pg: PgId,
        since: Since,
        oid: Oid,
        blocks: BlockRange,
        checksums: Vec<u32>,
        #[serde(skip)]
        data: Bytes,
    },
    /// Where may two objects of the PG differ, or an object and zeros?
    Compare {
        pg: PgId,
        since: Since,
        oid: Oid,
        with: Option<Oid>,
    },
    /// Of a copy that catches up: these blocks of the object and what of them is unsettled. `None`: how long the object is, and what
    /// of any part of it is unsettled.
    Fetch {
        pg: PgId,
        since: Since,
        oid: Oid,
        blocks: Option<BlockRange>,
    },
    /// Refuse this VDI's older generations from now on; what of them is unsettled, later than `after`?
    Seal {
        vid: Vid,
        generation: Generation,
        after: Option<Stamp>,
    },
    /// Everything of this generation up to `settled` is on all in-sync copies.
    Settle {
        vid: Vid,
        tag: Tag,
    },
    /// The same of all that this generation has changed since its seal, up to `last`, but for `pinned`, at most [`PINNED_MAX`]. Of its seal
    /// and of older generations it says nothing.
    SettleAround {
        vid: Vid,
        generation: Generation,
        last: Seq,
        pinned: Vec<Seq>,
    },
    /// All objects that the receiver holds of these PGs, with ids above `after`, ascending.
    List {
        pgs: Vec<(PgId, Since)>,
        after: Option<Oid>,
    },
    /// Which objects of these PGs, with ids above `after`, ascending, may have changed since the sender left their in-sync sets?
    Changed {
        pgs: Vec<(PgId, Since)>,
        after: Option<Oid>,
    },
    /// Give a sign of life.
    Ping,
    /// The VDI is deleted: drop its data objects with `indexes` (first, last), but for those of `keep` (first, count;
    /// ascending), to which others refer. Together with the first index: its other objects too, those of its block table
    /// unless others refer to them (`table`).
    Purge {
        vid: Vid,
        indexes: (u32, u32),
        keep: Vec<(u32, u32)>,
        table: bool,
    },
    /// Somebody wants the VDI for itself: end its session if nobody here has it open.
    Yield {
        vid: Vid,
    },
    /// A client request for the owner of this session, and for no later one: the gateway asks each anew.
    Forward {
        origin: Origin,
        generation: Generation,
        op: ClientOp,
        #[serde(skip)]
        data: Bytes,
    },
    /// To a gateway: earlier owners have carried these requests out. Those that it does not wait for, it confirms.
    Recall {
        incarnation: Incarnation,
        requests: Vec<u64>,
    },
    /// The gateway has the answers to these requests.
    Confirm {
        incarnation: Incarnation,
        requests: Vec<u64>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerReply {
    Done,
    /// To a change, before its answer, if its tag wants it: this copy has it in memory.
    Taken,
    Data {
        checksums: Vec<u32>,
        #[serde(skip)]
        data: Bytes,
    },
    Absent,
    Fetched {
        found: Fetched,
        /// The changes that are part of what was found, and may be missing elsewhere: no more and no less.
        marks: Vec<Unsettled>,
        /// At the sender's store.
        pressure: Pressure,
        #[serde(skip)]
        data: Bytes,
    },
    Verified(Verified),
    /// Up to the last block ever written: what comes after is zeros.
    Checksums(Vec<u32>),
    Differing(Vec<BlockRange>),
    /// In the order of stamps. Not `complete`: ask for what comes after the last one.
    Unsettled {
        changes: Vec<Unsettled>,
        complete: bool,
    },
    Objects {
        objects: Vec<ObjectInfo>,
        complete: bool,
    },
    Changed {
        /// Of these PGs the receiver does not know.
        unknown: Vec<PgId>,
        /// Which blocks of an object; none stands for the whole object.
        objects: Vec<(Oid, Vec<BlockRange>)>,
        complete: bool,
    },
    Failed(StoreFailure),
    /// The sender's view is behind: catch up to this version and decide again.
    OldView {
        version: ViewVersion,
    },
    /// The generation is over.
    Fenced,
    /// The receiver does not own the VDI's session.
    NotOwner {
        version: ViewVersion,
    },
    Client {
        /// Which of the gateway's requests this answers, for its confirmation.
        request: RequestId,
        result: ClientResult,
        #[serde(skip)]
        data: Bytes,
    },
}

/// Whether a sheep serves guests, and whether they notice that it repairs copies at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Pressure {
    #[default]
    None,
    Busy,
    Strained,
}

/// What a copy has of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fetched {
    Absent,
    /// It is absent, and its VDI is deleted: so there may have been one.
    Removed,
    /// It exists; one past the last block that is not a hole, at least.
    Length(u32),
    /// The blocks asked for, with these checksums.
    Blocks(Vec<u32>),
    /// Not all of the blocks asked for can be read here. These checksums of them are on record.
    Damaged(Vec<u32>),
}

/// Why a frame was refused. The link is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("control part of {0} bytes is larger than {CONTROL_BYTES_MAX}")]
    ControlTooLarge(u32),
    #[error("payload of {0} bytes is larger than {PAYLOAD_BYTES_MAX}")]
    PayloadTooLarge(u32),
    #[error("control part does not match its checksum: expected {expected:08x}, got {got:08x}")]
    Checksum { expected: u32, got: u32 },
    #[error("unknown or damaged message")]
    Malformed,
    #[error("unknown frame version {0}")]
    Version(u32),
}

/// Sizes that follow a frame's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    pub control_bytes: u32,
    pub payload_bytes: u32,
    pub control_crc: u32,
}

const FRAME_VERSION: u32 = 6;

impl FrameHead {
    pub fn encode(&self) -> [u8; FRAME_HEAD_BYTES] {
        let mut out = [0; FRAME_HEAD_BYTES];
        out[0..4].copy_from_slice(&FRAME_VERSION.to_le_bytes());
        out[4..8].copy_from_slice(&self.control_bytes.to_le_bytes());
        out[8..12].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out[12..16].copy_from_slice(&self.control_crc.to_le_bytes());
        out
    }

    /// Checks the sizes, so that the caller may allocate them.
    pub fn decode(bytes: &[u8; FRAME_HEAD_BYTES]) -> Result<FrameHead, FrameError> {
        let word = |i: usize| u32::from_le_bytes(bytes[i..i + 4].try_into().unwrap());
        let (version, control_bytes, payload_bytes, control_crc) = (word(0), word(4), word(8), word(12));
        if version != FRAME_VERSION {
            return Err(FrameError::Version(version));
        }
        if control_bytes > CONTROL_BYTES_MAX {
            return Err(FrameError::ControlTooLarge(control_bytes));
        }
        if payload_bytes > PAYLOAD_BYTES_MAX {
            return Err(FrameError::PayloadTooLarge(payload_bytes));
        }
        Ok(FrameHead { control_bytes, payload_bytes, control_crc })
    }
}

impl PeerMessage {
    /// Head and control part in one piece, and the payload to send after it.
    pub fn encode(&self) -> (Bytes, Bytes) {
        let payload = self.payload();
        let mut out = postcard::to_extend(self, vec![0u8; FRAME_HEAD_BYTES])
            .expect("messages have no unencodable parts");
        let head = FrameHead {
            control_bytes: (out.len() - FRAME_HEAD_BYTES) as u32,
            payload_bytes: payload.len() as u32,
            control_crc: crc32c(&out[FRAME_HEAD_BYTES..]),
        };
        out[..FRAME_HEAD_BYTES].copy_from_slice(&head.encode());
        (out.into(), payload)
    }

    /// The message of a frame whose parts have arrived.
    pub fn decode(head: &FrameHead, control: &[u8], payload: Bytes) -> Result<PeerMessage, FrameError> {
        let got = crc32c(control);
        if got != head.control_crc {
            return Err(FrameError::Checksum { expected: head.control_crc, got });
        }
        let (mut message, rest) =
            postcard::take_from_bytes::<PeerMessage>(control).map_err(|_| FrameError::Malformed)?;
        if !rest.is_empty() || payload.len() != head.payload_bytes as usize {
            return Err(FrameError::Malformed);
        }
        message.set_payload(payload);
        Ok(message)
    }

    fn payload(&self) -> Bytes {
        match self {
            PeerMessage::Request {
                body:
                    PeerRequest::Change { data, .. }
                    | PeerRequest::Mend { data, .. }
                    | PeerRequest::Forward { data, .. },
                ..
            }
            | PeerMessage::Reply {
                body:
                    PeerReply::Data { data, .. }
                    | PeerReply::Fetched { data, .. }
                    | PeerReply::Client { data, .. },
                ..
            } => data.clone(),
            _ => Bytes::new(),
        }
    }

    fn set_payload(&mut self, payload: Bytes) {
        match self {
            PeerMessage::Request {
                body:
                    PeerRequest::Change { data, .. }
                    | PeerRequest::Mend { data, .. }
                    | PeerRequest::Forward { data, .. },
                ..
            }
            | PeerMessage::Reply {
                body:
                    PeerReply::Data { data, .. }
                    | PeerReply::Fetched { data, .. }
                    | PeerReply::Client { data, .. },
                ..
            } => *data = payload,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PoolId;
    use crate::object::{OBJECT_BLOCKS_MAX, WriteBase};

    #[test]
    fn a_write_survives_the_frame_and_a_flipped_bit_does_not() {
        let data = Bytes::from(vec![7u8; 4096]);
        let message = PeerMessage::Request {
            id: 9,
            version: ViewVersion(3),
            life: Incarnation(2),
            body: PeerRequest::Change {
                pg: PgId { pool: PoolId(0), index: 5 },
                since: Since(2),
                oid: Oid::data(Vid(1), 2),
                change: Change::Write {
                    blocks: BlockRange::new(3, 1),
                    checksums: vec![1],
                    base: WriteBase::Keep,
                },
                tag: Tag {
                    vid: Vid(1),
                    stamp: Stamp { generation: Generation(1), seq: Seq(8) },
                    settled: Seq(7),
                    origin: Origin::default(),
                    last_room: true,
                    tell_taken: false,
                },
                data: data.clone(),
            },
        };
        let (control, payload) = message.encode();
        assert_eq!(payload, data);
        let head = FrameHead::decode(control[..FRAME_HEAD_BYTES].try_into().unwrap()).unwrap();
        let body = &control[FRAME_HEAD_BYTES..];
        assert_eq!(PeerMessage::decode(&head, body, payload.clone()), Ok(message));
        let mut damaged = body.to_vec();
        damaged[4] ^= 1;
        assert!(matches!(PeerMessage::decode(&head, &damaged, payload), Err(FrameError::Checksum { .. })));
    }

    #[test]
    fn a_run_of_blocks_that_no_object_has_is_refused() {
        let marks = |first, count| PeerMessage::Reply {
            id: 1,
            body: PeerReply::Differing(vec![BlockRange::new(first, count)]),
        };
        let decode = |message: &PeerMessage| {
            let (control, payload) = message.encode();
            let head = FrameHead::decode(control[..FRAME_HEAD_BYTES].try_into().unwrap()).unwrap();
            PeerMessage::decode(&head, &control[FRAME_HEAD_BYTES..], payload)
        };
        let last = marks(OBJECT_BLOCKS_MAX - 1, 1);
        assert_eq!(decode(&last), Ok(last));
        for beyond in [marks(0, u32::MAX), marks(OBJECT_BLOCKS_MAX, 1), marks(u32::MAX, u32::MAX)] {
            assert_eq!(decode(&beyond), Err(FrameError::Malformed));
        }
    }

    #[test]
    fn a_page_of_a_seals_answer_fits_into_a_frame() {
        let change = Unsettled {
            vid: Vid(u32::MAX),
            stamp: Stamp { generation: Generation(u64::MAX), seq: Seq(u64::MAX) },
            origin: Origin { incarnation: Incarnation(u64::MAX), request: RequestId(u64::MAX) },
            oid: Oid(u64::MAX),
            blocks: Some(BlockRange::new(u32::MAX, u32::MAX)),
        };
        let body = PeerReply::Unsettled { changes: vec![change; SEAL_PAGE], complete: false };
        let (control, _) = PeerMessage::Reply { id: u64::MAX, body }.encode();
        assert!(control.len() < CONTROL_BYTES_MAX as usize / 2, "{} bytes", control.len());
    }

    #[test]
    fn the_checksums_of_one_message_fit_into_a_small_part_of_a_frame() {
        let body = PeerReply::Checksums(vec![u32::MAX; CHECKSUMS_MAX as usize]);
        let (control, _) = PeerMessage::Reply { id: u64::MAX, body }.encode();
        assert!(control.len() < CONTROL_BYTES_MAX as usize / 100, "{} bytes", control.len());
    }

    #[test]
    fn oversized_frames_are_refused_before_anything_is_allocated() {
        let head = FrameHead { control_bytes: CONTROL_BYTES_MAX + 1, payload_bytes: 0, control_crc: 0 };
        assert_eq!(
            FrameHead::decode(&head.encode()),
            Err(FrameError::ControlTooLarge(CONTROL_BYTES_MAX + 1))
        );
        let head = FrameHead { control_bytes: 1, payload_bytes: u32::MAX, control_crc: 0 };
        assert_eq!(FrameHead::decode(&head.encode()), Err(FrameError::PayloadTooLarge(u32::MAX)));
    }
}
