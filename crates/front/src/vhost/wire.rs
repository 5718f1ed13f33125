//! Messages of vhost-user as bytes, in the byte order of the machine: both ends are on it.
//!
//! ```text
//! header    request u32 | flags u32: version 1 in bits 0-1, bit 2 reply, bit 3 wants a reply | payload bytes u32
//! payload   one of: nothing; u64; a structure below
//! ```
//!
//! File descriptors travel beside a message. The front-end (QEMU) asks, the back-end (we) answers; on the *backend channel*
//! it is the other way round.

pub const HEADER_BYTES: usize = 12;
/// The largest message, a memory table of 8 regions, has 264 bytes of payload, and one with a configuration 268.
pub const PAYLOAD_BYTES_MAX: u32 = 512;
/// The most that a message brings: one for each region of memory.
pub const FILE_COUNT_MAX: usize = 8;
pub const REGION_COUNT_MAX: usize = 8;

pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const GET_CONFIG: u32 = 24;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
}

/// A request on the backend channel: the configuration is to be read again.
const CONFIG_CHANGED: u32 = 2;

/// Bits of the features of the transport and of vhost-user.
pub mod feature {
    pub const RING_INDIRECT_DESC: u64 = 1 << 28;
    pub const RING_EVENT_IDX: u64 = 1 << 29;
    /// Features of the protocol itself are negotiated, and rings are disabled at first.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
}

pub mod protocol_feature {
    pub const MQ: u64 = 1 << 0;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const BACKEND_REQ: u64 = 1 << 5;
    pub const CONFIG: u64 = 1 << 9;
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;

    pub const ALL: u64 = MQ | REPLY_ACK | BACKEND_REQ | CONFIG | INFLIGHT_SHMFD;
}

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const WANTS_REPLY: u32 = 1 << 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub request: u32,
    pub flags: u32,
    pub payload_bytes: u32,
}

impl Header {
    /// `None`: no request of this protocol, or one too long to be any.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Header> {
        let mut fields = Fields(bytes);
        let header = Header { request: fields.u32()?, flags: fields.u32()?, payload_bytes: fields.u32()? };
        let is_request = header.flags & (VERSION_MASK | REPLY) == VERSION;
        (is_request && header.payload_bytes <= PAYLOAD_BYTES_MAX).then_some(header)
    }

    pub fn wants_reply(&self) -> bool {
        self.flags & WANTS_REPLY != 0
    }
}

/// A reply to `request`.
pub fn reply(request: u32, payload: &[u8]) -> Vec<u8> {
    message(request, VERSION | REPLY, payload)
}

/// Says on the backend channel that the configuration has changed. Nobody needs to answer.
pub fn config_changed() -> Vec<u8> {
    message(CONFIG_CHANGED, VERSION, &[])
}

fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + payload.len());
    out.extend(request.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend((payload.len() as u32).to_ne_bytes());
    out.extend(payload);
    out
}

/// A queue and a number that goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueNumber {
    pub queue: u32,
    pub number: u32,
}

impl QueueNumber {
    pub fn decode(payload: &[u8]) -> Option<QueueNumber> {
        let mut fields = Fields(payload);
        Some(QueueNumber { queue: fields.u32()?, number: fields.u32()? })
    }

    pub fn encode(&self) -> Vec<u8> {
        [self.queue.to_ne_bytes(), self.number.to_ne_bytes()].concat()
    }
}

/// Where a ring lies, in addresses of the front-end's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    pub queue: u32,
    pub descriptors: u64,
    pub used: u64,
    pub available: u64,
}

impl RingAddresses {
    pub fn decode(payload: &[u8]) -> Option<RingAddresses> {
        let mut fields = Fields(payload);
        let queue = fields.u32()?;
        // Flags: the only one asks for a log of what is written, which we have not offered.
        fields.u32()?;
        Some(RingAddresses {
            queue,
            descriptors: fields.u64()?,
            used: fields.u64()?,
            available: fields.u64()?,
        })
    }
}

/// Memory of the guest that the front-end shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub guest_start: u64,
    pub bytes: u64,
    /// Where it lies in the front-end's process.
    pub user_start: u64,
    /// Where it begins in its file.
    pub file_offset: u64,
}

pub fn decode_regions(payload: &[u8]) -> Option<Vec<Region>> {
    let mut fields = Fields(payload);
    let count = fields.u32()? as usize;
    fields.u32()?;
    if count > REGION_COUNT_MAX {
        return None;
    }
    let region = |fields: &mut Fields| {
        Some(Region {
            guest_start: fields.u64()?,
            bytes: fields.u64()?,
            user_start: fields.u64()?,
            file_offset: fields.u64()?,
        })
    };
    (0..count).map(|_| region(&mut fields)).collect()
}

/// A piece of the device's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigSpan {
    pub offset: u32,
    pub bytes: u32,
    pub flags: u32,
}

impl ConfigSpan {
    pub fn decode(payload: &[u8]) -> Option<ConfigSpan> {
        let mut fields = Fields(payload);
        Some(ConfigSpan { offset: fields.u32()?, bytes: fields.u32()?, flags: fields.u32()? })
    }

    pub fn encode_with(&self, content: &[u8]) -> Vec<u8> {
        let head = [self.offset, self.bytes, self.flags].map(u32::to_ne_bytes).concat();
        [&head[..], content].concat()
    }
}

/// The memory in which requests under way are noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InflightArea {
    pub bytes: u64,
    pub file_offset: u64,
    pub queue_count: u16,
    pub queue_size: u16,
}

impl InflightArea {
    pub fn decode(payload: &[u8]) -> Option<InflightArea> {
        let mut fields = Fields(payload);
        Some(InflightArea {
            bytes: fields.u64()?,
            file_offset: fields.u64()?,
            queue_count: fields.u16()?,
            queue_size: fields.u16()?,
        })
    }

    /// As long as the request was: some front-ends send the structure with the padding at its end, and expect it back so.
    pub fn encode(&self, payload_bytes: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(payload_bytes);
        out.extend(self.bytes.to_ne_bytes());
        out.extend(self.file_offset.to_ne_bytes());
        out.extend(self.queue_count.to_ne_bytes());
        out.extend(self.queue_size.to_ne_bytes());
        out.resize(payload_bytes.max(out.len()), 0);
        out
    }
}

pub fn decode_u64(payload: &[u8]) -> Option<u64> {
    Fields(payload).u64()
}

/// The queue that a file descriptor is meant for, and whether there is one.
pub fn decode_queue_file(payload: &[u8]) -> Option<(u32, bool)> {
    const NO_FILE: u64 = 1 << 8;
    let word = decode_u64(payload)?;
    Some(((word & 0xff) as u32, word & NO_FILE == 0))
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    #[test]
    fn headers_are_those_of_requests_of_version_1_with_a_bounded_payload() {
        let decode = |request, flags, bytes| {
            Header::decode(words(&[request, flags, bytes]).as_slice().try_into().unwrap())
        };
        assert_eq!(decode(1, 1, 0), Some(Header { request: 1, flags: 1, payload_bytes: 0 }));
        assert!(decode(8, 9, 8).unwrap().wants_reply());
        assert!(decode(1, 1, 512).is_some());
        for (flags, bytes) in [(0, 0), (2, 0), (5, 0), (1, 513), (1, u32::MAX)] {
            assert_eq!(decode(1, flags, bytes), None, "{flags} {bytes}");
        }
    }

    #[test]
    fn payloads_have_their_fields_where_the_protocol_puts_them() {
        assert_eq!(QueueNumber::decode(&words(&[1, 256])), Some(QueueNumber { queue: 1, number: 256 }));
        let ring = RingAddresses::decode(&words(&[2, 0, 0x10, 0, 0x20, 0, 0x30, 0, 0, 0]));
        let expect = RingAddresses { queue: 2, descriptors: 0x10, used: 0x20, available: 0x30 };
        assert_eq!(ring, Some(expect));
        let region = Region { guest_start: 1, bytes: 2, user_start: 3, file_offset: 4 };
        assert_eq!(decode_regions(&words(&[1, 0, 1, 0, 2, 0, 3, 0, 4, 0])), Some(vec![region]));
        assert_eq!(decode_regions(&words(&[2, 0, 1, 0, 2, 0, 3, 0, 4, 0])), None, "cut short");
        assert_eq!(decode_regions(&words(&[9, 0])), None, "too many");
        assert_eq!(decode_queue_file(&words(&[3, 0])), Some((3, true)));
        assert_eq!(decode_queue_file(&words(&[0x103, 0])), Some((3, false)));
        assert_eq!(decode_u64(&[0; 7]), None);
        let area = InflightArea { bytes: 4096, file_offset: 0, queue_count: 2, queue_size: 128 };
        for padded in [20, 24] {
            let bytes = area.encode(padded);
            assert_eq!((bytes.len(), InflightArea::decode(&bytes)), (padded, Some(area)));
        }
        let span = ConfigSpan { offset: 8, bytes: 2, flags: 1 };
        assert_eq!(ConfigSpan::decode(&span.encode_with(&[5, 6])), Some(span));
    }

    #[test]
    fn replies_and_news_are_as_the_front_end_expects() {
        assert_eq!(reply(11, &[7]), [&words(&[11, 5, 1])[..], &[7]].concat());
        assert_eq!(config_changed(), words(&[2, 1, 0]));
    }
}
