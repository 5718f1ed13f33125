//! The inode as clients see it: 12587576 bytes of header, block table and reference counts
//! (spec section 5.1).
//!
//! The header is not stored: it is composed from the view, which alone knows names, sizes and times.
//! The block table (`data_vdi_id`) is stored in the inode object at the same offsets. The reference
//! counts (`gref`) of the original are not kept; they read as zeros.

use crate::{CopyPolicy, Vid};

/// Bytes of name, and of tag, NUL padded.
pub const NAME_BYTES: usize = 256;
/// Longest name or tag: one NUL must follow.
pub const NAME_MAX: usize = 255;
/// Bytes before the block table.
pub const HEADER_BYTES: usize = 4664;
/// Entries of the block table that old clients know.
pub const TABLE_ENTRIES: u32 = 1 << 20;
/// Largest VDI of all: 2^32 objects of the default size.
pub const VDI_BYTES_MAX: u64 = 16 << 50;
/// Where the block table ends and the reference counts start.
pub const TABLE_END: usize = HEADER_BYTES + 4 * TABLE_ENTRIES as usize;
/// The whole inode.
pub const INODE_BYTES: usize = 12_587_576;
/// Object sizes are 1 << shift with a shift in this range; the default is 4 MiB.
pub const SHIFT_MIN: u8 = 20;
pub const SHIFT_MAX: u8 = 31;
pub const SHIFT_DEFAULT: u8 = 22;

/// Offset of entry `index` of the block table within the inode.
pub const fn table_offset(index: u32) -> usize {
    HEADER_BYTES + 4 * index as usize
}

/// Largest size of an ordinary VDI with this object size: one that old clients can use.
pub const fn max_vdi_bytes(shift: u8) -> u64 {
    (TABLE_ENTRIES as u64) << shift
}

/// Largest size of any VDI with this object size: indexes have 32 bits.
pub const fn max_hyper_bytes(shift: u8) -> u64 {
    let bytes = (1u64 << 32) << shift;
    if bytes < VDI_BYTES_MAX { bytes } else { VDI_BYTES_MAX }
}

/// Has a VDI more objects than the table has entries that old clients know?
pub const fn is_hyper(vdi_size: u64, shift: u8) -> bool {
    vdi_size > max_vdi_bytes(shift)
}

/// The header's fields. Times are `seconds << 32 | nanoseconds`; a snapshot has a `snap_ctime`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InodeHeader {
    pub name: Vec<u8>,
    pub tag: Vec<u8>,
    pub create_time: u64,
    pub snap_ctime: u64,
    pub vm_clock_nsec: u64,
    pub vdi_size: u64,
    pub vm_state_size: u64,
    pub policy: CopyPolicy,
    pub block_size_shift: u8,
    pub snap_id: u32,
    pub vid: Vid,
    pub parent: Vid,
}

impl InodeHeader {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0u8; HEADER_BYTES];
        put_padded(&mut out[0..NAME_BYTES], &self.name);
        put_padded(&mut out[256..256 + NAME_BYTES], &self.tag);
        out[512..520].copy_from_slice(&self.create_time.to_le_bytes());
        out[520..528].copy_from_slice(&self.snap_ctime.to_le_bytes());
        out[528..536].copy_from_slice(&self.vm_clock_nsec.to_le_bytes());
        out[536..544].copy_from_slice(&self.vdi_size.to_le_bytes());
        out[544..552].copy_from_slice(&self.vm_state_size.to_le_bytes());
        out[552] = self.policy.wire();
        out[553] = is_hyper(self.vdi_size, self.block_size_shift).into();
        out[554] = self.policy.width();
        out[555] = self.block_size_shift;
        out[556..560].copy_from_slice(&self.snap_id.to_le_bytes());
        out[560..564].copy_from_slice(&self.vid.0.to_le_bytes());
        out[564..568].copy_from_slice(&self.parent.0.to_le_bytes());
        out
    }

    /// Reads a header of at least 568 bytes; `None` if it is shorter.
    pub fn decode(bytes: &[u8]) -> Option<InodeHeader> {
        if bytes.len() < 568 {
            return None;
        }
        let u64_at = |o: usize| u64::from_le_bytes(bytes[o..o + 8].try_into().unwrap());
        let u32_at = |o: usize| u32::from_le_bytes(bytes[o..o + 4].try_into().unwrap());
        let (policy, copies) = (bytes[552], bytes[554]);
        Some(InodeHeader {
            name: until_nul(&bytes[0..256]).to_vec(),
            tag: until_nul(&bytes[256..512]).to_vec(),
            create_time: u64_at(512),
            snap_ctime: u64_at(520),
            vm_clock_nsec: u64_at(528),
            vdi_size: u64_at(536),
            vm_state_size: u64_at(544),
            policy: decode_policy(policy, copies),
            block_size_shift: bytes[555],
            snap_id: u32_at(556),
            vid: Vid(u32_at(560)),
            parent: Vid(u32_at(564)),
        })
    }
}

/// The policy that a policy byte and a number of copies stand for.
pub fn decode_policy(policy: u8, copies: u8) -> CopyPolicy {
    match policy {
        0 => CopyPolicy::Replicated { copies },
        p => CopyPolicy::Erasure { data: (p >> 4) * 2, parity: p & 0xf },
    }
}

/// The bytes before the first NUL.
pub fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    &field[..end]
}

fn put_padded(field: &mut [u8], text: &[u8]) {
    let len = text.len().min(field.len());
    field[..len].copy_from_slice(&text[..len]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_matches_the_specification() {
        assert_eq!(HEADER_BYTES, 0x1238);
        assert_eq!(TABLE_END, 4_198_968);
        assert_eq!(INODE_BYTES, TABLE_END + 8 * TABLE_ENTRIES as usize);
        assert_eq!(table_offset(3), 0x1244);
        assert_eq!(max_vdi_bytes(SHIFT_DEFAULT), 4 << 40);
        assert_eq!(max_hyper_bytes(SHIFT_MIN), 4 << 50);
        assert_eq!((max_hyper_bytes(SHIFT_DEFAULT), max_hyper_bytes(SHIFT_MAX)), (16 << 50, 16 << 50));
    }

    #[test]
    fn header_survives_a_round_trip() {
        let header = InodeHeader {
            name: b"alice".to_vec(),
            tag: b"t".to_vec(),
            create_time: 1,
            snap_ctime: 2,
            vm_clock_nsec: 3,
            vdi_size: 4,
            vm_state_size: 5,
            policy: CopyPolicy::Erasure { data: 4, parity: 2 },
            block_size_shift: 22,
            snap_id: 6,
            vid: Vid(7),
            parent: Vid(8),
        };
        assert_eq!(InodeHeader::decode(&header.encode()), Some(header.clone()));
        assert_eq!(header.encode()[552], 0x22);
        assert_eq!(header.encode()[553..555], [0, 6]);
        assert_eq!(InodeHeader { vdi_size: (4 << 40) + 1, ..header }.encode()[553], 1, "a hypervolume");
    }
}
