//! What the block table tells: holes, numbers of objects, who owns what.

use proto::client::{Extent, Table};
use volume::{ENTRIES_PER_BLOCK, block_of_entry, pieces};

use super::Session;
use super::task::Kind;
use crate::context::Context;

/// Blocks of the table that one answer covers: 65536 objects.
const TABLE_BLOCKS_MAX: u32 = 256;

impl Session {
    /// The blocks of the table that must be there before a task begins.
    pub(super) fn table_part(&self, ctx: &Context, kind: &Kind, index: u32) -> (u32, u32) {
        let of_range = |offset: u64, len: u64| {
            let last = ((offset + len - 1) >> self.shift) as u32;
            (block_of_entry((offset >> self.shift) as u32), block_of_entry(last) + 1)
        };
        match kind {
            Kind::ReadInode { flat: true, .. } => (0, 0),
            Kind::ReadInode { offset, len, flat: false } => self.inode_blocks(ctx, *offset, *len),
            Kind::BlockStatus { offset, len } | Kind::Changes { offset, len, .. } if *len > 0 => {
                of_range(*offset, *len)
            }
            Kind::BlockStatus { .. } | Kind::Changes { .. } => (0, 0),
            Kind::Table { first } => {
                let (first, end) = (block_of_entry(*first), self.table_end(ctx));
                (first, end.min(first.saturating_add(TABLE_BLOCKS_MAX)).max(first))
            }
            Kind::Usage => (0, self.table_end(ctx)),
            Kind::Check { inode: true, .. } => (0, 0),
            _ => (block_of_entry(index), block_of_entry(index) + 1),
        }
    }

    pub(super) fn table_reply(&self, ctx: &Context, first: u32, end: u32) -> Table {
        let entries = self.table_entries(first, end);
        Table {
            entries: entries.into_iter().map(|(index, entry)| (index, entry.owner, entry.base)).collect(),
            next: (end < self.table_end(ctx)).then_some(end * ENTRIES_PER_BLOCK),
            stored_with: self.pages.stored_with(self.vid, first, end.max(first + 1) - 1),
        }
    }

    pub(super) fn count_objects(&self, ctx: &Context) -> (u32, u32) {
        let entries = (0..self.table_end(ctx)).flat_map(|block| self.table.entries_of_block(block));
        entries.fold(
            (0, 0),
            |(own, shared), (_, entry)| {
                if entry.owner == self.vid { (own + 1, shared) } else { (own, shared + 1) }
            },
        )
    }

    /// How the range is made up, object by object.
    pub(super) fn extents(&self, offset: u64, len: u64) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        for piece in pieces(offset, len, self.shift) {
            let hole = self.table.entry(piece.index).is_none_or(|entry| entry.is_hole());
            match extents.last_mut() {
                Some(last) if last.hole == hole => last.len += u64::from(piece.len),
                _ => extents.push(Extent { len: u64::from(piece.len), hole }),
            }
        }
        extents
    }
}
