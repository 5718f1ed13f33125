//! The original Sheepdog protocol: what QEMU, tgt, libsheepdog and `dog` speak on port 7000.
//!
//! Pure codec for both directions. A message is a 48-byte header ([`header`]) and, where the header says so, a payload.
//! [`opcode`] lists the operations, [`result`] the answers, [`structs`] the payloads with a layout of their own,
//! [`extension`] the operations that only our own `dog` uses, [`request`] builds whole requests for a client.
//!
//! Everything is little-endian. Source: spec/wire-protocol.md sections 1 to 5.

pub mod extension;
pub mod header;
pub mod opcode;
pub mod request;
pub mod result;
pub mod structs;

#[cfg(test)]
mod golden;

pub use header::{HEADER_BYTES, ReplyHeader, RequestHeader, flag};
pub use opcode::Opcode;
pub use request::Request;
pub use result::ResultCode;

/// Version of operations below 0x80: 0 to this are accepted (QEMU sends 0 and 1).
pub const PUBLIC_VERSION: u8 = 0x02;
/// Version of operations from 0x80 on, which must match exactly.
pub const INTERNAL_VERSION: u8 = 0x0a;

/// Bytes of a bitmap with one bit per vid.
pub const VID_BITMAP_BYTES: usize = 1 << 21;

/// Flags a cluster is formatted with (spec section 7.3).
pub mod cluster_flag {
    pub const STRICT: u16 = 0x01;
    pub const DISK_MODE: u16 = 0x02;
    pub const AUTO_VNODES: u16 = 0x04;
    pub const USE_LOCK: u16 = 0x08;
    pub const RECYCLE_VID: u16 = 0x10;
    pub const AVOID_DISK_FULL: u16 = 0x20;
    pub const ALL: u16 = 0x3f;
}

pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(bytes[offset..offset + 2].try_into().unwrap())
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

/// Writes `value` at `offset`; the caller's buffer is as large as the layout.
pub(crate) fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}
