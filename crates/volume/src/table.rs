//! The block table of a working VDI, as its owner holds it.
//!
//! The table lives in the inode object, at the inode's own offsets, so one 4 KiB block of the object holds 1024
//! entries (the first one fewer, behind the header). Blocks are loaded when they are first needed; a VDI that is
//! opened and touched in one place costs one block. An entry is the vid that owns the data object, 0 for none.

use std::collections::BTreeMap;

use proto::inode::{TABLE_END, TABLE_ENTRIES, table_offset};
use proto::{BLOCK_BYTES, Vid};

/// Blocks of the inode object that can hold part of the table: 0 ..= 1025.
pub const INODE_BLOCKS: u32 = TABLE_END.div_ceil(BLOCK_BYTES) as u32;

/// Which block of the inode object holds this entry. Entries never straddle: both offsets are multiples of 4.
pub fn block_of_entry(index: u32) -> u32 {
    (table_offset(index) / BLOCK_BYTES) as u32
}

/// A sparse copy of the inode object's blocks.
#[derive(Debug, Default)]
pub struct BlockTable {
    loaded: BTreeMap<u32, Box<[u8; BLOCK_BYTES]>>,
}

impl BlockTable {
    /// The owner of object `index`, `Vid(0)` if it is a hole, `None` if its block is not loaded yet.
    pub fn entry(&self, index: u32) -> Option<Vid> {
        let (block, at) = place_of(index);
        let bytes = self.loaded.get(&block)?;
        Some(Vid(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())))
    }

    /// Changes an entry and says which block has to be written for it.
    ///
    /// # Panics
    /// If the block is not loaded: the caller looked the entry up first.
    pub fn set_entry(&mut self, index: u32, owner: Vid) -> u32 {
        let (block, at) = place_of(index);
        let bytes = self.loaded.get_mut(&block).expect("an entry is set after its block was loaded");
        bytes[at..at + 4].copy_from_slice(&owner.0.to_le_bytes());
        block
    }

    pub fn is_loaded(&self, block: u32) -> bool {
        self.loaded.contains_key(&block)
    }

    /// Takes in a block as read from the inode object; zeros where there is no such object yet.
    pub fn load(&mut self, block: u32, bytes: &[u8]) {
        assert_eq!(bytes.len(), BLOCK_BYTES, "an inode block has 4096 bytes");
        self.loaded.entry(block).or_insert_with(|| bytes.to_vec().try_into().expect("checked above"));
    }

    /// The block's bytes, if it is loaded.
    pub fn block(&self, block: u32) -> Option<&[u8; BLOCK_BYTES]> {
        self.loaded.get(&block).map(|b| &**b)
    }

    /// Entries of a loaded block that are not holes, as (index, owner).
    pub fn entries_of_block(&self, block: u32) -> Vec<(u32, Vid)> {
        indices_of_block(block).filter_map(|i| Some((i, self.entry(i)?))).filter(|(_, v)| v.0 != 0).collect()
    }
}

fn place_of(index: u32) -> (u32, usize) {
    assert!(index < TABLE_ENTRIES, "object index {index} beyond the table");
    let offset = table_offset(index);
    ((offset / BLOCK_BYTES) as u32, offset % BLOCK_BYTES)
}

fn indices_of_block(block: u32) -> std::ops::Range<u32> {
    let entry_at = |byte: usize| (byte.saturating_sub(table_offset(0)) / 4) as u32;
    let start = block as usize * BLOCK_BYTES;
    entry_at(start)..entry_at(start + BLOCK_BYTES).min(TABLE_ENTRIES)
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
    fn entries_sit_where_the_inode_layout_puts_them() {
        assert_eq!(block_of_entry(0), 1);
        assert_eq!(INODE_BLOCKS, 1026);
        assert_eq!(block_of_entry(TABLE_ENTRIES - 1), INODE_BLOCKS - 1);
        let mut table = BlockTable::default();
        assert_eq!(table.entry(0), None);
        table.load(1, &[0; BLOCK_BYTES]);
        assert_eq!(table.entry(0), Some(Vid(0)));
        assert_eq!(table.set_entry(3, Vid(7)), 1);
        assert_eq!(table.block(1).unwrap()[4664 - 4096 + 12], 7);
        assert_eq!(table.entries_of_block(1), vec![(3, Vid(7))]);
    }

    #[test]
    fn every_entry_belongs_to_exactly_the_block_that_lists_it() {
        let mut next = 0;
        for block in 0..INODE_BLOCKS {
            for index in indices_of_block(block) {
                assert_eq!((index, block_of_entry(index)), (next, block));
                next += 1;
            }
        }
        assert_eq!(next, TABLE_ENTRIES);
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
