//! The block table of a VDI: of each data object, which VDI owns it and which parts are still another's.
//!
//! The table lies in objects of its own: the inode object holds the entries of the first 2^20 objects, further pages
//! (of VDIs with more) are B-tree objects. One 4 KiB block holds 256 entries of 16 bytes. Blocks are loaded when they are first
//! needed; a VDI that is opened and touched in one place costs one block. Old clients see another table, at the inode's own
//! offsets, which is composed from this one.
//!
//! ```text
//! 0       4       8               16
//! | owner | base  | present       |     little-endian; all zero: a hole
//! ```
//!
//! An object that a clone has begun to write is *partial*: `base` names the VDI whose object has the rest, and bit k of
//! `present` says that chunk k is in the owner's own object. The topmost bit of `base` says that the base's object is
//! partial itself, so that its own VDI has to be asked for it.

use std::collections::BTreeMap;

use proto::inode::{TABLE_ENTRIES, table_offset};
use proto::object::BlockRange;
use proto::{BLOCK_BYTES, Oid, Vid};

const ENTRY_BYTES: usize = 16;
pub const ENTRIES_PER_BLOCK: u32 = (BLOCK_BYTES / ENTRY_BYTES) as u32;
/// Blocks of the table that one object holds: the entries of 2^20 data objects.
pub const PAGE_BLOCKS: u32 = TABLE_ENTRIES / ENTRIES_PER_BLOCK;
/// Chunks of one data object: as many as `present` has bits.
const CHUNKS: u32 = 64;
/// Blocks of the smallest chunk: 64 KiB, as much as a store's slot.
const CHUNK_BLOCKS_MIN: u32 = 16;
const PARTIAL_BASE: u32 = 1 << 31;

/// Blocks of one chunk of a data object of `1 << shift` bytes.
pub fn chunk_blocks(shift: u8) -> u32 {
    let object_blocks = ((1u64 << shift) / BLOCK_BYTES as u64) as u32;
    (object_blocks / CHUNKS).max(CHUNK_BLOCKS_MIN)
}

/// What an object's entry says. The default is a hole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Whose object it is; `Vid(0)`: nobody's, it reads as zeros.
    pub owner: Vid,
    /// Where chunks that are not `present` lie; `Vid(0)`: the object is complete.
    pub base: Vid,
    /// The base's own object is partial.
    pub base_is_partial: bool,
    pub present: u64,
}

impl Entry {
    pub const HOLE: Entry = Entry { owner: Vid(0), base: Vid(0), base_is_partial: false, present: 0 };

    pub fn whole(owner: Vid) -> Entry {
        Entry { owner, ..Entry::HOLE }
    }

    /// An object of `owner` of which everything is still what `self`, an ancestor's entry, says.
    pub fn on_top(self, owner: Vid) -> Entry {
        Entry { owner, base: self.owner, base_is_partial: self.is_partial(), present: 0 }
    }

    pub fn is_hole(self) -> bool {
        self.owner.0 == 0
    }

    pub fn is_partial(self) -> bool {
        self.base.0 != 0
    }

    /// Does the owner's own object have this block?
    pub fn has_block(self, block: u32, chunk_blocks: u32) -> bool {
        !self.is_partial() || self.present & (1 << (block / chunk_blocks)) != 0
    }

    /// The entry once these blocks' chunks are in the owner's object; `object_blocks` tells when all are.
    pub fn with_present(self, blocks: BlockRange, chunk_blocks: u32, object_blocks: u32) -> Entry {
        if !self.is_partial() || blocks.count == 0 {
            return self;
        }
        let last = ((blocks.end() - 1) / u64::from(chunk_blocks)) as u32;
        let present = (blocks.first / chunk_blocks..=last).fold(self.present, |bits, c| bits | 1 << c);
        let all = object_blocks.div_ceil(chunk_blocks);
        if present.count_ones() >= all { Entry::whole(self.owner) } else { Entry { present, ..self } }
    }

    /// The range widened to whole chunks where its ends lie in chunks that are not present: what a write has to bring.
    pub fn widened(self, blocks: BlockRange, chunk_blocks: u32) -> BlockRange {
        if !self.is_partial() || blocks.count == 0 {
            return blocks;
        }
        let last = (blocks.end() - 1) as u32;
        let first = if self.has_block(blocks.first, chunk_blocks) {
            blocks.first
        } else {
            blocks.first / chunk_blocks * chunk_blocks
        };
        let end = if self.has_block(last, chunk_blocks) {
            last + 1
        } else {
            (last / chunk_blocks + 1) * chunk_blocks
        };
        BlockRange::new(first, end - first)
    }

    /// The range cut where the source changes: (blocks, are they in the owner's own object).
    pub fn sources(self, blocks: BlockRange, chunk_blocks: u32) -> Vec<(BlockRange, bool)> {
        let mut out: Vec<(BlockRange, bool)> = Vec::new();
        let (mut at, end) = (blocks.first, blocks.end() as u32);
        while at < end {
            let own = self.has_block(at, chunk_blocks);
            let stop =
                if self.is_partial() { ((at / chunk_blocks + 1) * chunk_blocks).min(end) } else { end };
            match out.last_mut() {
                Some((run, kind)) if *kind == own => run.count += stop - at,
                _ => out.push((BlockRange::new(at, stop - at), own)),
            }
            at = stop;
        }
        out
    }

    fn encode(self) -> [u8; ENTRY_BYTES] {
        let mut out = [0; ENTRY_BYTES];
        let base = self.base.0 | if self.base_is_partial { PARTIAL_BASE } else { 0 };
        out[..4].copy_from_slice(&self.owner.0.to_le_bytes());
        out[4..8].copy_from_slice(&base.to_le_bytes());
        out[8..].copy_from_slice(&self.present.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Entry {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        Entry {
            owner: Vid(word(0)),
            base: Vid(word(4) & !PARTIAL_BASE),
            base_is_partial: word(4) & PARTIAL_BASE != 0,
            present: u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes")),
        }
    }
}

/// The block of the table that holds an object's entry.
pub fn block_of_entry(index: u32) -> u32 {
    index / ENTRIES_PER_BLOCK
}

/// The object that holds a block of the table, and which of its blocks that is.
pub fn place_of_block(vid: Vid, block: u32) -> (Oid, u32) {
    (Oid::table_page(vid, block / PAGE_BLOCKS), block % PAGE_BLOCKS)
}

/// Blocks of the table of a VDI with so many objects.
pub fn table_blocks(object_count: u64) -> u32 {
    object_count.div_ceil(ENTRIES_PER_BLOCK.into()) as u32
}

/// The blocks that are in memory. Whoever holds the table says when some have to go, and which may not.
#[derive(Debug, Default)]
pub struct BlockTable {
    loaded: BTreeMap<u32, Loaded>,
    clock: u64,
}

#[derive(Debug)]
struct Loaded {
    used: u64,
    bytes: Box<[u8; BLOCK_BYTES]>,
}

impl BlockTable {
    /// What is known of object `index`, `None` if its block is not loaded yet.
    pub fn entry(&self, index: u32) -> Option<Entry> {
        let (block, at) = place_of(index);
        let bytes = &self.loaded.get(&block)?.bytes;
        Some(Entry::decode(&bytes[at..at + ENTRY_BYTES]))
    }

    /// Changes an entry and says which block has to be written for it.
    ///
    /// # Panics
    /// If the block is not loaded: the caller looked the entry up first.
    pub fn set_entry(&mut self, index: u32, entry: Entry) -> u32 {
        let (block, at) = place_of(index);
        let loaded = self.loaded.get_mut(&block).expect("an entry is set after its block was loaded");
        loaded.bytes[at..at + ENTRY_BYTES].copy_from_slice(&entry.encode());
        block
    }

    pub fn is_loaded(&self, block: u32) -> bool {
        self.loaded.contains_key(&block)
    }

    /// Takes in a block as read from its object; zeros where there is no such object yet.
    pub fn load(&mut self, block: u32, bytes: &[u8]) {
        assert_eq!(bytes.len(), BLOCK_BYTES, "a block of the table has 4096 bytes");
        self.clock += 1;
        let used = self.clock;
        let load = || Loaded { used, bytes: bytes.to_vec().try_into().expect("checked above") };
        self.loaded.entry(block).or_insert_with(load);
    }

    /// How many blocks are in memory.
    pub fn loaded_count(&self) -> usize {
        self.loaded.len()
    }

    /// The block is needed now.
    pub fn touch(&mut self, block: u32) {
        self.clock += 1;
        if let Some(loaded) = self.loaded.get_mut(&block) {
            loaded.used = self.clock;
        }
    }

    /// Lets go of the blocks that were not needed for longest, until `count` are left or the rest is pinned.
    pub fn shrink_to(&mut self, count: usize, is_pinned: impl Fn(u32) -> bool) {
        let excess = self.loaded.len().saturating_sub(count);
        let free = self.loaded.iter().filter(|(block, _)| !is_pinned(**block));
        let mut oldest: Vec<(u64, u32)> = free.map(|(block, loaded)| (loaded.used, *block)).collect();
        oldest.sort_unstable();
        for (_, block) in oldest.into_iter().take(excess) {
            self.loaded.remove(&block);
        }
    }

    /// The block's bytes, if it is loaded.
    pub fn block(&self, block: u32) -> Option<&[u8; BLOCK_BYTES]> {
        self.loaded.get(&block).map(|loaded| &*loaded.bytes)
    }

    /// Entries of a loaded block that are not holes.
    pub fn entries_of_block(&self, block: u32) -> impl Iterator<Item = (u32, Entry)> + '_ {
        let bytes = self.loaded.get(&block).map(|loaded| &loaded.bytes[..]).unwrap_or_default();
        let entries = bytes.chunks_exact(ENTRY_BYTES).map(Entry::decode);
        let first = block * ENTRIES_PER_BLOCK;
        (first..=first + (ENTRIES_PER_BLOCK - 1)).zip(entries).filter(|(_, entry)| !entry.is_hole())
    }
}

fn place_of(index: u32) -> (u32, usize) {
    (block_of_entry(index), (index % ENTRIES_PER_BLOCK) as usize * ENTRY_BYTES)
}

/// What an old client's write wants of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableChange {
    pub index: u32,
    pub owner: Vid,
}

/// What an old client asks for by writing `data` at byte `offset` of the inode, as far as it lies in the table.
///
/// Clients write runs of entries from a cached table: entries between those they mean may be stale. A run of nothing
/// but zeros is a discard of all of them (QEMU's discard, the deletion batches of libsheepdog). In any other run a
/// zero means nothing: honouring it would throw away what another client has allocated meanwhile.
/// Bytes outside whole entries are ignored; no client writes such.
pub fn plan_table_write(offset: u64, data: &[u8]) -> Vec<TableChange> {
    let table = table_offset(0) as u64;
    let discard = data.iter().all(|b| *b == 0);
    let first = offset.max(table);
    let skip = (4 - (first - table) % 4) % 4 + (first - offset);
    let Some(entries) = data.get(skip as usize..) else { return Vec::new() };
    let first_index = (offset + skip - table) / 4;
    entries
        .chunks_exact(4)
        .enumerate()
        .map(|(i, raw)| (first_index + i as u64, Vid(u32::from_le_bytes(raw.try_into().unwrap()))))
        .take_while(|(index, _)| *index < u64::from(TABLE_ENTRIES))
        .filter(|(_, owner)| discard || owner.0 != 0)
        .map(|(index, owner)| TableChange { index: index as u32, owner })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_lie_one_after_another_in_pages() {
        let vid = Vid(7);
        assert_eq!(place_of_block(vid, 0), (Oid::inode(vid), 0));
        assert_eq!(place_of_block(vid, PAGE_BLOCKS + 3), (Oid(0x1000_0007_0000_0001), 3));
        assert_eq!(block_of_entry(TABLE_ENTRIES - 1), PAGE_BLOCKS - 1);
        let mut table = BlockTable::default();
        assert_eq!(table.entry(300), None);
        table.load(1, &[0; BLOCK_BYTES]);
        assert_eq!(table.entry(300), Some(Entry::HOLE));
        let partial = Entry { owner: Vid(9), base: Vid(8), base_is_partial: true, present: 1 << 63 | 5 };
        assert_eq!(table.set_entry(300, partial), 1);
        assert_eq!(table.block(1).unwrap()[44 * 16..44 * 16 + 8], [9, 0, 0, 0, 8, 0, 0, 0x80]);
        assert_eq!(table.entry(300), Some(partial));
        assert_eq!(table.entries_of_block(1).collect::<Vec<_>>(), vec![(300, partial)]);
    }

    #[test]
    fn the_last_entry_of_the_largest_vdi_is_one_like_others() {
        let last = table_blocks(1 << 32) - 1;
        assert_eq!((block_of_entry(u32::MAX), last / PAGE_BLOCKS), (last, 4095));
        let mut table = BlockTable::default();
        table.load(last, &[0; BLOCK_BYTES]);
        table.set_entry(u32::MAX, Entry::whole(Vid(1)));
        assert_eq!(table.entries_of_block(last).collect::<Vec<_>>(), vec![(u32::MAX, Entry::whole(Vid(1)))]);
    }

    #[test]
    fn what_is_pinned_or_was_needed_lately_stays() {
        let mut table = BlockTable::default();
        (0..6).for_each(|block| table.load(block, &[0; BLOCK_BYTES]));
        table.touch(1);
        table.shrink_to(3, |block| block == 0);
        assert_eq!((0..6).filter(|b| table.is_loaded(*b)).collect::<Vec<_>>(), vec![0, 1, 5]);
        table.shrink_to(0, |block| block == 0);
        assert_eq!(table.loaded_count(), 1);
    }

    #[test]
    fn a_partial_object_knows_what_it_has_and_when_it_has_all() {
        let entry = Entry::whole(Vid(1)).on_top(Vid(2));
        assert_eq!((entry.base, entry.base_is_partial, entry.has_block(0, 16)), (Vid(1), false, false));
        let some = entry.with_present(BlockRange::new(17, 20), 16, 1024);
        assert_eq!(some.present, 0b110);
        assert!(some.on_top(Vid(3)).base_is_partial);
        let r = |first, count| BlockRange::new(first, count);
        assert_eq!(
            some.sources(r(10, 60), 16),
            vec![(r(10, 6), false), (r(16, 32), true), (r(48, 22), false)]
        );
        assert_eq!(some.widened(r(40, 10), 16), r(40, 24));
        assert_eq!(some.widened(r(3, 20), 16), r(0, 23));
        assert_eq!(Entry::whole(Vid(2)).widened(r(3, 20), 16), r(3, 20));
        assert_eq!(entry.with_present(r(0, 1024), 16, 1024), Entry::whole(Vid(2)));
        assert_eq!(entry.with_present(r(0, 256), 16, 256), Entry::whole(Vid(2)));
        assert_eq!((chunk_blocks(20), chunk_blocks(22), chunk_blocks(31)), (16, 16, 8192));
    }

    #[test]
    fn zeros_discard_only_when_nothing_else_is_written() {
        let at = table_offset(5) as u64;
        assert_eq!(plan_table_write(at, &[0; 4]), vec![TableChange { index: 5, owner: Vid(0) }]);
        let mut run = vec![0u8; 12];
        run[8] = 9;
        assert_eq!(plan_table_write(at, &run), vec![TableChange { index: 7, owner: Vid(9) }]);
    }

    #[test]
    fn a_write_that_starts_in_the_header_changes_only_whole_entries() {
        let mut data = vec![1u8; 4668];
        data[4664..].copy_from_slice(&5u32.to_le_bytes());
        assert_eq!(plan_table_write(0, &data), vec![TableChange { index: 0, owner: Vid(5) }]);
        assert!(plan_table_write(0, &[1; 100]).is_empty());
        assert!(plan_table_write(table_offset(TABLE_ENTRIES) as u64, &[1; 8]).is_empty());
    }
}
