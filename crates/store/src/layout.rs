//! Where things lie on a disk, and the superblock that says so.
//!
//! Two superblock copies, the journal ring, the descriptor table, the map table, the slots. All offsets are
//! fixed when the disk is formatted. Drawn byte by byte in docs/formats.md.

use proto::BLOCK_BYTES;
use proto::checksum::crc32c;

pub const BLOCK: u64 = BLOCK_BYTES as u64;
/// 64 KiB. A slot is what a snapshot shares, what the first write after it takes and what a lone 4 KiB write
/// into a hole takes: half as much of each as with 128 KiB. Descriptors cost the same per block either way.
pub const SLOT_BLOCKS: u32 = 16;
pub const SLOT_BYTES: u64 = SLOT_BLOCKS as u64 * BLOCK;
/// All blocks of a slot.
pub const FULL_MASK: u16 = u16::MAX;
/// Largest object: 2 GiB.
pub const OBJECT_BLOCKS_MAX: u64 = (2 << 30) / BLOCK;
/// Chunks that one map describes: a 4 MiB object.
pub const GROUP_CHUNKS: u32 = 64;
/// Maps of the largest object.
pub const GROUPS_MAX: u32 = (OBJECT_BLOCKS_MAX / (SLOT_BLOCKS * GROUP_CHUNKS) as u64) as u32;

pub const DESCRIPTOR_BYTES: usize = 128;
pub const DESCRIPTORS_PER_PAGE: u32 = 32;
/// A map fills one sector, so that no torn write mixes two states of it.
pub const MAP_BYTES: usize = 512;
pub const MAPS_PER_PAGE: u32 = 8;

const MAGIC: [u8; 8] = *b"SHEEPDSK";
/// 2: free maps have bytes too. 3: slots may lie on others.
pub const FORMAT_VERSION: u32 = 3;
/// A store of this version is one of the current version in which no slot lies on another.
const FORMAT_VERSION_MIN: u32 = 2;
/// Blocks before the journal: two superblocks, the rest spare.
pub const JOURNAL_FIRST_BLOCK: u64 = 16;
pub const JOURNAL_BLOCKS_MIN: u64 = 256;
pub const JOURNAL_BLOCKS_MAX: u64 = 1 << 20;

/// The sizes a disk was formatted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub store_id: u64,
    pub journal_blocks: u64,
    pub slots: u32,
    pub maps: u32,
}

impl Geometry {
    /// The largest geometry that fits into `size_bytes`, or `None` if not even a small one does.
    pub fn fit(store_id: u64, size_bytes: u64, journal_bytes: u64) -> Option<Geometry> {
        let journal_blocks = (journal_bytes / BLOCK).clamp(JOURNAL_BLOCKS_MIN, JOURNAL_BLOCKS_MAX);
        // One map for each four slots: an average object of 256 KiB or more, or 16 snapshots of a full disk.
        let slot_cost = SLOT_BYTES + DESCRIPTOR_BYTES as u64 + MAP_BYTES as u64 / 4;
        let fixed = (JOURNAL_FIRST_BLOCK + journal_blocks + 2) * BLOCK + SLOT_BYTES;
        let slots = size_bytes.checked_sub(fixed)? / slot_cost;
        let slots = u32::try_from(slots).unwrap_or(u32::MAX - 1).min(u32::MAX - 1);
        if slots < SLOTS_KEPT_BACK + 8 {
            return None;
        }
        let geometry = Geometry { store_id, journal_blocks, slots, maps: (slots / 4).max(16) };
        (geometry.size_bytes() <= size_bytes).then_some(geometry)
    }

    pub fn journal_offset(&self, position: u64) -> u64 {
        (JOURNAL_FIRST_BLOCK + position % self.journal_blocks) * BLOCK
    }

    pub fn descriptor_pages(&self) -> u32 {
        self.slots.div_ceil(DESCRIPTORS_PER_PAGE)
    }

    pub fn map_pages(&self) -> u32 {
        self.maps.div_ceil(MAPS_PER_PAGE)
    }

    pub fn page_offset(&self, page: PageId) -> u64 {
        let first = JOURNAL_FIRST_BLOCK + self.journal_blocks;
        match page {
            PageId::Descriptors(n) => (first + u64::from(n)) * BLOCK,
            PageId::Maps(n) => (first + u64::from(self.descriptor_pages()) + u64::from(n)) * BLOCK,
        }
    }

    pub fn slots_offset(&self) -> u64 {
        self.page_offset(PageId::Maps(self.map_pages())).next_multiple_of(SLOT_BYTES)
    }

    pub fn slot_offset(&self, slot: u32) -> u64 {
        self.slots_offset() + u64::from(slot) * SLOT_BYTES
    }

    pub fn size_bytes(&self) -> u64 {
        self.slot_offset(self.slots)
    }

    /// The slots that lie wholly on a disk of this size, which has room for everything before them.
    pub fn slots_within(&self, disk_bytes: u64) -> u32 {
        let slots = disk_bytes.saturating_sub(self.slots_offset()) / SLOT_BYTES;
        u32::try_from(slots).unwrap_or(u32::MAX).min(self.slots)
    }

    /// The most by which a disk grows at a time: a sixteenth, at most 256 MiB, which a file system reserves within moments.
    pub fn growth_slots(&self) -> u32 {
        (self.slots / 16).clamp(GROWTH_SLOTS_MIN, 4096)
    }

    /// What a disk that grows has at format: journal, tables and a first step.
    pub fn first_bytes(&self) -> u64 {
        self.slot_offset(self.slots.min(self.growth_slots() + SLOTS_KEPT_BACK))
    }
}

/// Slots that no write may take: whoever must write to repair something finds room.
pub const SLOTS_KEPT_BACK: u32 = 8;

/// The least by which a disk grows: 1 MiB.
pub const GROWTH_SLOTS_MIN: u32 = 16;

/// A 4 KiB page of one of the two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageId {
    Descriptors(u32),
    Maps(u32),
}

/// What the superblock says. Two copies are written in turn, so one is always whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    pub geometry: Geometry,
    /// Counts superblock writes; the larger of two valid copies is the truth. Its parity chooses the copy.
    pub revision: u64,
    /// Counts opens. Every journal record carries it.
    pub incarnation: u64,
    /// First record that recovery needs, and where it begins.
    pub tail_seq: u64,
    pub tail_position: u64,
    /// Incarnation of the last record before the tail: a record of an older one cannot follow it.
    pub tail_incarnation: u64,
    /// All records up to this one were durable when the superblock was written: none of them can be a torn end.
    pub durable: u64,
}

/// Counters stay below: no arithmetic with them overflows, whatever bytes a disk has.
const COUNTER_MAX: u64 = 1 << 62;

/// What one copy of the superblock turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum SuperblockCopy {
    Good(Superblock),
    Foreign,
    OtherVersion(u32),
    Damaged,
}

impl Superblock {
    pub fn offset(&self) -> u64 {
        (self.revision % 2) * BLOCK
    }

    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut out = [0; BLOCK_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        let g = &self.geometry;
        let words = [
            g.store_id,
            g.journal_blocks,
            u64::from(g.slots),
            u64::from(g.maps),
            self.revision,
            self.incarnation,
            self.tail_seq,
            self.tail_position,
            self.tail_incarnation,
            self.durable,
        ];
        for (i, word) in words.iter().enumerate() {
            out[16 + i * 8..24 + i * 8].copy_from_slice(&word.to_le_bytes());
        }
        let crc = crc32c(&out);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Of a block that is a superblock.
    pub fn version(block: &[u8]) -> u32 {
        u32::from_le_bytes(block[8..12].try_into().expect("4 bytes"))
    }

    pub fn decode(block: &[u8]) -> SuperblockCopy {
        if block.len() != BLOCK_BYTES || block[..8] != MAGIC {
            return SuperblockCopy::Foreign;
        }
        let u32_at = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().expect("4 bytes"));
        let word = |i: usize| u64::from_le_bytes(block[16 + i * 8..24 + i * 8].try_into().expect("8 bytes"));
        let mut zeroed = block.to_vec();
        zeroed[12..16].fill(0);
        if crc32c(&zeroed) != u32_at(12) {
            return SuperblockCopy::Damaged;
        }
        // Only after the checksum: a rotten version number is damage, not another version.
        if !(FORMAT_VERSION_MIN..=FORMAT_VERSION).contains(&u32_at(8)) {
            return SuperblockCopy::OtherVersion(u32_at(8));
        }
        let (Ok(slots), Ok(maps)) = (u32::try_from(word(2)), u32::try_from(word(3))) else {
            return SuperblockCopy::Damaged;
        };
        let geometry = Geometry { store_id: word(0), journal_blocks: word(1), slots, maps };
        let sane = (JOURNAL_BLOCKS_MIN..=JOURNAL_BLOCKS_MAX).contains(&geometry.journal_blocks)
            && slots < u32::MAX
            && maps < u32::MAX
            && (4..10).all(|i| word(i) < COUNTER_MAX)
            && word(6) > 0;
        if !sane {
            return SuperblockCopy::Damaged;
        }
        SuperblockCopy::Good(Superblock {
            geometry,
            revision: word(4),
            incarnation: word(5),
            tail_seq: word(6),
            tail_position: word(7),
            tail_incarnation: word(8),
            durable: word(9),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_survives_its_bytes_and_any_flipped_bit_is_noticed() {
        let geometry = Geometry::fit(77, 64 << 20, 1 << 20).unwrap();
        assert!(geometry.size_bytes() <= 64 << 20);
        let sb = Superblock {
            geometry,
            revision: 3,
            incarnation: 2,
            tail_seq: 9,
            tail_position: 400,
            tail_incarnation: 1,
            durable: 12,
        };
        let bytes = sb.encode();
        assert_eq!(Superblock::decode(&bytes), SuperblockCopy::Good(sb));
        for bit in (0..200 * 8).step_by(7) {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            let expected = if bit < 64 { SuperblockCopy::Foreign } else { SuperblockCopy::Damaged };
            assert_eq!(Superblock::decode(&bad), expected, "bit {bit}");
        }
    }

    #[test]
    fn numbers_that_no_store_reaches_are_damage_whatever_the_checksum_says() {
        let geometry = Geometry::fit(77, 64 << 20, 1 << 20).unwrap();
        let good = Superblock {
            geometry,
            revision: 3,
            incarnation: 2,
            tail_seq: 9,
            tail_position: 400,
            tail_incarnation: 1,
            durable: 8,
        };
        let absurd = [
            Superblock { revision: u64::MAX, ..good },
            Superblock { incarnation: u64::MAX, ..good },
            Superblock { tail_seq: 0, ..good },
            Superblock { tail_seq: u64::MAX, ..good },
            Superblock { tail_position: u64::MAX - 1, ..good },
            Superblock { geometry: Geometry { journal_blocks: 0, ..geometry }, ..good },
        ];
        for sb in absurd {
            assert_eq!(Superblock::decode(&sb.encode()), SuperblockCopy::Damaged, "{sb:?}");
        }
    }

    #[test]
    fn a_disk_too_small_for_anything_has_no_geometry() {
        assert_eq!(Geometry::fit(1, 1 << 20, 1 << 20), None);
    }
}
