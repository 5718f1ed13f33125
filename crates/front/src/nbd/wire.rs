//! Every number and header of the NBD protocol (fixed newstyle), big-endian. Pure codec.
//!
//! Names follow the protocol document, without their `NBD_` prefix. What the numbers mean for us is decided in
//! `handshake`, `receiver` and `reply`.

pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Handshake flags of the server, and those of the client under the same numbers.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
pub const FLAG_NO_ZEROES: u16 = 1 << 1;

/// Options of the handshake.
pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of replies to options.
pub mod rep {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = 1 << 31 | 1;
    pub const ERR_INVALID: u32 = 1 << 31 | 3;
    pub const ERR_PLATFORM: u32 = 1 << 31 | 4;
    pub const ERR_UNKNOWN: u32 = 1 << 31 | 6;
    pub const ERR_SHUTDOWN: u32 = 1 << 31 | 7;
    pub const ERR_TOO_BIG: u32 = 1 << 31 | 9;
    pub const ERR_EXT_HEADER_REQD: u32 = 1 << 31 | 10;
}

/// Types of information about an export.
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
pub mod transmission_flag {
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

pub mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

pub mod command_flag {
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Types of chunks of structured and extended replies.
pub mod chunk {
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const BLOCK_STATUS_EXT: u16 = 6;
    pub const ERROR: u16 = 1 << 15 | 1;

    pub const FLAG_DONE: u16 = 1 << 0;
}

/// State of an extent in the context `base:allocation`.
pub const STATE_HOLE: u32 = 1 << 0;
pub const STATE_ZERO: u32 = 1 << 1;
/// State of an extent in a context `qemu:dirty-bitmap:...`.
pub const STATE_DIRTY: u32 = 1 << 0;

/// The error codes of the protocol: Linux's numbers, whatever the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    NotPermitted = 1,
    Io = 5,
    NoMemory = 12,
    Invalid = 22,
    NoSpace = 28,
    NotSupported = 95,
    Shutdown = 108,
}

/// What the server says first.
pub fn greeting() -> [u8; 18] {
    let mut out = [0; 18];
    out[..8].copy_from_slice(&NBDMAGIC.to_be_bytes());
    out[8..16].copy_from_slice(&IHAVEOPT.to_be_bytes());
    out[16..].copy_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    out
}

/// Appends a reply to an option.
pub fn put_option_reply(out: &mut Vec<u8>, option: u32, reply: u32, data: &[&[u8]]) {
    let len: usize = data.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&reply.to_be_bytes());
    out.extend_from_slice(&u32::try_from(len).expect("replies to options are small").to_be_bytes());
    for part in data {
        out.extend_from_slice(part);
    }
}

/// How requests and replies are framed after the handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    #[default]
    Simple,
    /// Structured replies: data and errors come in chunks.
    Structured,
    /// 64-bit lengths, and chunks for everything.
    Extended,
}

impl Framing {
    pub fn request_bytes(self) -> usize {
        match self {
            Framing::Simple | Framing::Structured => 28,
            Framing::Extended => 32,
        }
    }
}

/// A request's header as it came, unchecked but for its magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u64,
}

const REQUEST_MAGIC: u32 = 0x2560_9513;
const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;

impl RequestHeader {
    /// Reads a header of `framing.request_bytes()` bytes; `None` if the magic is wrong.
    pub fn decode(framing: Framing, bytes: &[u8]) -> Option<RequestHeader> {
        assert_eq!(bytes.len(), framing.request_bytes());
        let (magic, length) = match framing {
            Framing::Simple | Framing::Structured => (REQUEST_MAGIC, u64::from(u32_at(bytes, 24))),
            Framing::Extended => (EXTENDED_REQUEST_MAGIC, u64_at(bytes, 24)),
        };
        (u32_at(bytes, 0) == magic).then(|| RequestHeader {
            flags: u16_at(bytes, 4),
            command: u16_at(bytes, 6),
            cookie: u64_at(bytes, 8),
            offset: u64_at(bytes, 16),
            length,
        })
    }

    /// The client's side, for tests.
    pub fn encode(&self, framing: Framing) -> Vec<u8> {
        let mut out = Vec::with_capacity(32);
        let magic = if framing == Framing::Extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        out.extend_from_slice(&magic.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        out.extend_from_slice(&self.command.to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
        match framing {
            Framing::Extended => out.extend_from_slice(&self.length.to_be_bytes()),
            _ => out.extend_from_slice(&(self.length as u32).to_be_bytes()),
        }
        out
    }
}

const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// A simple reply's header; `error` 0 is success.
pub fn simple_reply(error: u32, cookie: u64) -> [u8; 16] {
    let mut out = [0; 16];
    out[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out[4..8].copy_from_slice(&error.to_be_bytes());
    out[8..].copy_from_slice(&cookie.to_be_bytes());
    out
}

/// Appends the header of a chunk of `length` bytes. `offset` is the request's; only extended headers carry it.
pub fn put_chunk_header(
    out: &mut Vec<u8>,
    framing: Framing,
    done: bool,
    chunk_type: u16,
    cookie: u64,
    offset: u64,
    length: u32,
) {
    let flags = if done { chunk::FLAG_DONE } else { 0 };
    let magic = match framing {
        Framing::Extended => EXTENDED_REPLY_MAGIC,
        Framing::Simple | Framing::Structured => STRUCTURED_REPLY_MAGIC,
    };
    out.extend_from_slice(&magic.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&chunk_type.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    match framing {
        Framing::Extended => {
            out.extend_from_slice(&offset.to_be_bytes());
            out.extend_from_slice(&u64::from(length).to_be_bytes());
        }
        Framing::Simple | Framing::Structured => out.extend_from_slice(&length.to_be_bytes()),
    }
}

pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().unwrap())
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greeting_announces_fixed_newstyle_without_zeroes() {
        assert_eq!(&greeting(), b"NBDMAGICIHAVEOPT\x00\x03");
    }

    #[test]
    fn option_reply_has_its_golden_bytes() {
        let mut out = Vec::new();
        put_option_reply(&mut out, option::GO, rep::ERR_UNKNOWN, &[b"no", b"pe"]);
        assert_eq!(
            out,
            b"\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x80\x00\x00\x06\x00\x00\x00\x04nope"
        );
    }

    #[test]
    fn request_headers_have_their_golden_bytes() {
        let header =
            RequestHeader { flags: 1, command: 6, cookie: 0x0102_0304_0506_0708, offset: 4096, length: 512 };
        let compact =
            b"\x25\x60\x95\x13\0\x01\0\x06\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\x10\0\0\0\x02\0";
        let extended =
            b"\x21\xe4\x1c\x71\0\x01\0\x06\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x02\0";
        assert_eq!(header.encode(Framing::Simple), compact);
        assert_eq!(header.encode(Framing::Extended), extended);
        assert_eq!(RequestHeader::decode(Framing::Structured, compact), Some(header));
        assert_eq!(RequestHeader::decode(Framing::Extended, extended), Some(header));
        assert_eq!(RequestHeader::decode(Framing::Extended, &[&compact[..], &[0; 4]].concat()), None);
        assert_eq!(RequestHeader::decode(Framing::Simple, &extended[..28]), None);
    }

    #[test]
    fn reply_headers_have_their_golden_bytes() {
        assert_eq!(&simple_reply(22, 9), b"\x67\x44\x66\x98\0\0\0\x16\0\0\0\0\0\0\0\x09");
        let mut out = Vec::new();
        put_chunk_header(&mut out, Framing::Structured, true, chunk::ERROR, 9, 4096, 6);
        assert_eq!(out, b"\x66\x8e\x33\xef\0\x01\x80\x01\0\0\0\0\0\0\0\x09\0\0\0\x06");
        out.clear();
        put_chunk_header(&mut out, Framing::Extended, false, chunk::OFFSET_DATA, 9, 4096, 8);
        assert_eq!(out, b"\x6e\x8a\x27\x8c\0\0\0\x01\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\x08");
    }
}
