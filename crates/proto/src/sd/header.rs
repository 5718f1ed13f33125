//! The 48-byte headers of requests and replies, and the layouts of their variable parts (spec 1.4, 1.5).
//!
//! Decoding never fails: every bit pattern is a header. What it means is checked by whoever acts on it.

use super::{Opcode, ResultCode, put, u16_at, u32_at, u64_at};
use crate::Oid;

pub const HEADER_BYTES: usize = 48;
const REQUEST_VARIANT: usize = 16;
const REPLY_VARIANT: usize = 20;

/// Bits of a request's `flags`.
pub mod flag {
    /// The request carries a payload.
    pub const WRITE: u16 = 0x0001;
    /// CREATE_AND_WRITE_OBJ starts from a copy of `cow_oid`.
    pub const COW: u16 = 0x0002;
    pub const CACHE: u16 = 0x0004;
    pub const DIRECT: u16 = 0x0008;
    /// A WRITE request that expects data back.
    pub const PIGGYBACK: u16 = 0x0010;
    /// From tgt.
    pub const TGT: u16 = 0x0020;
}

/// What precedes every request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestHeader {
    pub proto_ver: u8,
    pub opcode: u8,
    pub flags: u16,
    pub epoch: u32,
    /// Chosen by the client and echoed.
    pub id: u32,
    /// Bytes that follow (with WRITE), or that the client has room for.
    pub data_length: u32,
    /// Bytes 16 to 47; see the variants below.
    pub variant: [u8; 32],
}

impl RequestHeader {
    /// A header with the version that belongs to the opcode and everything else zero.
    pub fn new(opcode: Opcode) -> RequestHeader {
        RequestHeader { proto_ver: opcode.version(), opcode: opcode as u8, ..Default::default() }
    }

    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0] = self.proto_ver;
        out[1] = self.opcode;
        put(&mut out, 2, &self.flags.to_le_bytes());
        put(&mut out, 4, &self.epoch.to_le_bytes());
        put(&mut out, 8, &self.id.to_le_bytes());
        put(&mut out, 12, &self.data_length.to_le_bytes());
        put(&mut out, REQUEST_VARIANT, &self.variant);
        out
    }

    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> RequestHeader {
        RequestHeader {
            proto_ver: bytes[0],
            opcode: bytes[1],
            flags: u16_at(bytes, 2),
            epoch: u32_at(bytes, 4),
            id: u32_at(bytes, 8),
            data_length: u32_at(bytes, 12),
            variant: bytes[REQUEST_VARIANT..].try_into().unwrap(),
        }
    }

    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Bytes of payload that follow this header.
    pub fn payload_bytes(&self) -> u32 {
        if self.has(flag::WRITE) { self.data_length } else { 0 }
    }
}

/// A layout of bytes 16 to 47 of a request.
pub trait RequestVariant: Sized {
    fn encode(&self) -> [u8; 32];
    fn decode(bytes: &[u8; 32]) -> Self;
}

/// Object operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ObjRequest {
    pub oid: Oid,
    pub cow_oid: Oid,
    pub copies: u8,
    pub copy_policy: u8,
    pub ec_index: u8,
    pub tgt_epoch: u32,
    pub offset: u32,
    /// QEMU declares `offset` with 64 bits; this upper half is zero.
    pub offset_high: u32,
}

impl RequestVariant for ObjRequest {
    fn encode(&self) -> [u8; 32] {
        let mut out = [0; 32];
        put(&mut out, 0, &self.oid.0.to_le_bytes());
        put(&mut out, 8, &self.cow_oid.0.to_le_bytes());
        out[16] = self.copies;
        out[17] = self.copy_policy;
        out[18] = self.ec_index;
        put(&mut out, 20, &self.tgt_epoch.to_le_bytes());
        put(&mut out, 24, &self.offset.to_le_bytes());
        put(&mut out, 28, &self.offset_high.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; 32]) -> Self {
        ObjRequest {
            oid: Oid(u64_at(bytes, 0)),
            cow_oid: Oid(u64_at(bytes, 8)),
            copies: bytes[16],
            copy_policy: bytes[17],
            ec_index: bytes[18],
            tgt_epoch: u32_at(bytes, 20),
            offset: u32_at(bytes, 24),
            offset_high: u32_at(bytes, 28),
        }
    }
}

/// Lock types of [`VdiRequest::lock_type`].
pub const LOCK_NORMAL: u32 = 0;
pub const LOCK_SHARED: u32 = 1;

/// VDI operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VdiRequest {
    pub vdi_size: u64,
    /// The parent of a new VDI, or the VDI to release.
    pub base_vdi_id: u32,
    pub copies: u8,
    pub copy_policy: u8,
    pub store_policy: u8,
    pub block_size_shift: u8,
    pub snapid: u32,
    pub lock_type: u32,
}

impl RequestVariant for VdiRequest {
    fn encode(&self) -> [u8; 32] {
        let mut out = [0; 32];
        put(&mut out, 0, &self.vdi_size.to_le_bytes());
        put(&mut out, 8, &self.base_vdi_id.to_le_bytes());
        out[12] = self.copies;
        out[13] = self.copy_policy;
        out[14] = self.store_policy;
        out[15] = self.block_size_shift;
        put(&mut out, 16, &self.snapid.to_le_bytes());
        put(&mut out, 20, &self.lock_type.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; 32]) -> Self {
        VdiRequest {
            vdi_size: u64_at(bytes, 0),
            base_vdi_id: u32_at(bytes, 8),
            copies: bytes[12],
            copy_policy: bytes[13],
            store_policy: bytes[14],
            block_size_shift: bytes[15],
            snapid: u32_at(bytes, 16),
            lock_type: u32_at(bytes, 20),
        }
    }
}

/// MAKE_FS, STAT_CLUSTER, ALTER_CLUSTER_COPY.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterRequest {
    pub oid: Oid,
    pub ctime: u64,
    pub copies: u8,
    pub copy_policy: u8,
    pub flags: u16,
    pub tag: u32,
    pub nodes_nr: u32,
    pub block_size_shift: u8,
}

impl RequestVariant for ClusterRequest {
    fn encode(&self) -> [u8; 32] {
        let mut out = [0; 32];
        put(&mut out, 0, &self.oid.0.to_le_bytes());
        put(&mut out, 8, &self.ctime.to_le_bytes());
        out[16] = self.copies;
        out[17] = self.copy_policy;
        put(&mut out, 18, &self.flags.to_le_bytes());
        put(&mut out, 20, &self.tag.to_le_bytes());
        put(&mut out, 24, &self.nodes_nr.to_le_bytes());
        out[28] = self.block_size_shift;
        out
    }

    fn decode(bytes: &[u8; 32]) -> Self {
        ClusterRequest {
            oid: Oid(u64_at(bytes, 0)),
            ctime: u64_at(bytes, 8),
            copies: bytes[16],
            copy_policy: bytes[17],
            flags: u16_at(bytes, 18),
            tag: u32_at(bytes, 20),
            nodes_nr: u32_at(bytes, 24),
            block_size_shift: bytes[28],
        }
    }
}

/// What precedes every reply. The server sends 0 as version and flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyHeader {
    pub proto_ver: u8,
    pub opcode: u8,
    pub flags: u16,
    /// Epoch of the cluster when the reply was made.
    pub epoch: u32,
    pub id: u32,
    /// Bytes that follow, whatever the result.
    pub data_length: u32,
    pub result: ResultCode,
    /// Bytes 20 to 47; see the variants below.
    pub variant: [u8; 28],
}

impl ReplyHeader {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0] = self.proto_ver;
        out[1] = self.opcode;
        put(&mut out, 2, &self.flags.to_le_bytes());
        put(&mut out, 4, &self.epoch.to_le_bytes());
        put(&mut out, 8, &self.id.to_le_bytes());
        put(&mut out, 12, &self.data_length.to_le_bytes());
        put(&mut out, 16, &self.result.0.to_le_bytes());
        put(&mut out, REPLY_VARIANT, &self.variant);
        out
    }

    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> ReplyHeader {
        ReplyHeader {
            proto_ver: bytes[0],
            opcode: bytes[1],
            flags: u16_at(bytes, 2),
            epoch: u32_at(bytes, 4),
            id: u32_at(bytes, 8),
            data_length: u32_at(bytes, 12),
            result: ResultCode(u32_at(bytes, 16)),
            variant: bytes[REPLY_VARIANT..].try_into().unwrap(),
        }
    }
}

/// A layout of bytes 20 to 47 of a reply.
pub trait ReplyVariant: Sized {
    fn encode(&self) -> [u8; 28];
    fn decode(bytes: &[u8; 28]) -> Self;
}

/// NEW_VDI, LOCK_VDI, GET_VDI_INFO, DEL_VDI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VdiReply {
    pub vdi_id: u32,
    pub attr_id: u32,
    pub copies: u8,
    pub block_size_shift: u8,
}

impl ReplyVariant for VdiReply {
    fn encode(&self) -> [u8; 28] {
        let mut out = [0; 28];
        put(&mut out, 4, &self.vdi_id.to_le_bytes());
        put(&mut out, 8, &self.attr_id.to_le_bytes());
        out[12] = self.copies;
        out[13] = self.block_size_shift;
        out
    }

    fn decode(bytes: &[u8; 28]) -> Self {
        VdiReply {
            vdi_id: u32_at(bytes, 4),
            attr_id: u32_at(bytes, 8),
            copies: bytes[12],
            block_size_shift: bytes[13],
        }
    }
}

/// GET_NODE_LIST, STAT_SHEEP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeReply {
    pub nr_nodes: u32,
    pub store_size: u64,
    pub store_free: u64,
}

impl ReplyVariant for NodeReply {
    fn encode(&self) -> [u8; 28] {
        let mut out = [0; 28];
        put(&mut out, 0, &self.nr_nodes.to_le_bytes());
        put(&mut out, 12, &self.store_size.to_le_bytes());
        put(&mut out, 20, &self.store_free.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; 28]) -> Self {
        NodeReply { nr_nodes: u32_at(bytes, 0), store_size: u64_at(bytes, 12), store_free: u64_at(bytes, 20) }
    }
}

/// GET_HASH: 20 bytes, of which our sheep fill the first four (CRC-32C, little-endian).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashReply {
    pub digest: [u8; 20],
}

impl ReplyVariant for HashReply {
    fn encode(&self) -> [u8; 28] {
        let mut out = [0; 28];
        put(&mut out, 4, &self.digest);
        out
    }

    fn decode(bytes: &[u8; 28]) -> Self {
        HashReply { digest: bytes[4..24].try_into().unwrap() }
    }
}

/// GET_CLUSTER_DEFAULT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterDefaultReply {
    pub nr_copies: u8,
    pub copy_policy: u8,
    pub block_size_shift: u8,
}

impl ReplyVariant for ClusterDefaultReply {
    fn encode(&self) -> [u8; 28] {
        let mut out = [0; 28];
        out[..3].copy_from_slice(&[self.nr_copies, self.copy_policy, self.block_size_shift]);
        out
    }

    fn decode(bytes: &[u8; 28]) -> Self {
        ClusterDefaultReply { nr_copies: bytes[0], copy_policy: bytes[1], block_size_shift: bytes[2] }
    }
}
