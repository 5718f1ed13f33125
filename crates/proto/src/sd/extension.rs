//! Operations 0xe0 to 0xe9 of our own: byte I/O and lists, so that `dog` needs no block table of its own.
//!
//! They use the internal protocol version. Their layouts and rules stand in docs/formats.md, "Extensions to the native
//! protocol". Lists travel in postcard; the server ignores the `data_length` of such a request and answers with
//! as many bytes as the list takes, at most [`EXTENSION_REPLY_BYTES_MAX`].

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::header::{ReplyVariant, RequestVariant};
use super::{put, u32_at, u64_at};
use crate::client::Point;
use crate::{Oid, Vid};

/// Longest reply to an extension. A server with more to tell answers BUFFER_SMALL.
pub const EXTENSION_REPLY_BYTES_MAX: u32 = 1 << 30;

/// VOLUME_READ (`data_length` bytes), VOLUME_WRITE, VDI_DISCARD (`length`), RESIZE_VDI (`length` is the new size),
/// VDI_USAGE (vid only).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeRequest {
    pub vid: Vid,
    pub at: Point,
    pub offset: u64,
    pub length: u64,
}

impl RequestVariant for VolumeRequest {
    fn encode(&self) -> [u8; 32] {
        let mut out = [0; 32];
        put(&mut out, 0, &self.vid.0.to_le_bytes());
        out[4] = match self.at {
            Point::Head => 0,
            Point::Exact => 1,
        };
        put(&mut out, 8, &self.offset.to_le_bytes());
        put(&mut out, 16, &self.length.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; 32]) -> Self {
        VolumeRequest {
            vid: Vid(u32_at(bytes, 0)),
            at: if bytes[4] == 0 { Point::Head } else { Point::Exact },
            offset: u64_at(bytes, 8),
            length: u64_at(bytes, 16),
        }
    }
}

/// CHECK_OBJECT and LOCATE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ObjectRequest {
    pub oid: Oid,
    /// CHECK_OBJECT: mend what differs.
    pub repair: bool,
}

impl RequestVariant for ObjectRequest {
    fn encode(&self) -> [u8; 32] {
        let mut out = [0; 32];
        put(&mut out, 0, &self.oid.0.to_le_bytes());
        out[8] = self.repair.into();
        out
    }

    fn decode(bytes: &[u8; 32]) -> Self {
        ObjectRequest { oid: Oid(u64_at(bytes, 0)), repair: bytes[8] != 0 }
    }
}

/// VDI_USAGE: no payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageReply {
    pub own_objects: u64,
    pub shared_objects: u64,
}

impl ReplyVariant for UsageReply {
    fn encode(&self) -> [u8; 28] {
        let mut out = [0; 28];
        put(&mut out, 0, &self.own_objects.to_le_bytes());
        put(&mut out, 8, &self.shared_objects.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; 28]) -> Self {
        UsageReply { own_objects: u64_at(bytes, 0), shared_objects: u64_at(bytes, 8) }
    }
}

/// Payload of a reply: `CheckReport`, `Vec<VdiInfo>`, `Vec<NodeId>` or `ClusterInfo` of [`crate::client`].
pub fn encode_list<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("replies have no unencodable parts")
}

/// `None` for bytes that are not exactly one value.
pub fn decode_list<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (value, rest) = postcard::take_from_bytes(bytes).ok()?;
    rest.is_empty().then_some(value)
}
