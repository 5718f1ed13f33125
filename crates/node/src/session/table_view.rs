//! What the block table tells: holes, numbers of objects, who owns what.
//!
//! Each look covers a [`Window`]: so many blocks as one answer may need in memory, and all that is known to be holes behind
//! them. So an answer about 16 PiB takes no more than one about a gibibyte.

use std::collections::BTreeMap;
use std::ops::Range;

use proto::ObjectKind;
use proto::client::{Extent, Table};
use volume::{ENTRIES_PER_BLOCK, Entry, PAGE_BLOCKS, block_of_entry};

use super::Session;
use super::task::Kind;
use crate::context::Context;

/// Blocks of the table that one answer covers: 65536 objects.
const TABLE_BLOCKS_MAX: u32 = 256;

/// A part of the table that one look covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Blocks that must be loaded; what lies before them is holes.
    pub first: u32,
    pub end: u32,
    /// All blocks from `end` to here are holes as well.
    pub known_to: u32,
}

impl Session {
    /// The first block from `block` on that may not be holes, at most `end`.
    fn next_block(&self, ctx: &Context, block: u32, end: u32) -> u32 {
        let vdi = ctx.view.vdi_or_remains(self.vid);
        let page = vdi.and_then(|vdi| vdi.pages.next(block / PAGE_BLOCKS));
        page.map_or(end, |page| (page * PAGE_BLOCKS).max(block).min(end))
    }

    pub(super) fn window(&self, ctx: &Context, block: u32, end: u32) -> Window {
        let first = self.next_block(ctx, block, end);
        let page_end = (first / PAGE_BLOCKS + 1) * PAGE_BLOCKS;
        let last = end.min(page_end).min(first.saturating_add(TABLE_BLOCKS_MAX));
        Window { first, end: last, known_to: self.next_block(ctx, last, end).max(last) }
    }

    pub(super) fn window_of_range(&self, ctx: &Context, offset: u64, len: u64) -> Window {
        let last = ((offset + len - 1) >> self.shift) as u32;
        self.window(ctx, block_of_entry((offset >> self.shift) as u32), block_of_entry(last) + 1)
    }

    /// The blocks of the table that must be there before a task begins.
    pub(super) fn table_part(&self, ctx: &Context, kind: &Kind, index: u32) -> (u32, u32) {
        let part = |window: Window| (window.first, window.end);
        match kind {
            Kind::ReadInode { flat: true, .. } => (0, 0),
            Kind::ReadInode { offset, len, flat: false } => self.inode_blocks(ctx, *offset, *len),
            Kind::BlockStatus { len: 0, .. } | Kind::Changes { len: 0, .. } => (0, 0),
            Kind::BlockStatus { offset, len } | Kind::Changes { offset, len, .. } => {
                part(self.window_of_range(ctx, *offset, *len))
            }
            Kind::Table { first } => part(self.table_window(ctx, *first)),
            Kind::Usage { next, .. } => part(self.window(ctx, *next, self.table_end(ctx))),
            Kind::Survey { first, end } => (*first, *end),
            Kind::Check { oid, .. } if oid.kind() != Some(ObjectKind::Data) => (0, 0),
            Kind::VmState { .. } => (0, 0),
            _ => (block_of_entry(index), block_of_entry(index) + 1),
        }
    }

    fn table_window(&self, ctx: &Context, first: u32) -> Window {
        let block = block_of_entry(first);
        self.window(ctx, block, self.table_end(ctx).max(block))
    }

    pub(super) fn table_reply(&self, ctx: &Context, first: u32) -> Table {
        let Window { first, end, known_to } = self.table_window(ctx, first);
        let entries = self.table_entries(first, end);
        Table {
            entries: entries.into_iter().map(|(index, entry)| (index, entry.owner, entry.base)).collect(),
            next: (known_to < self.table_end(ctx)).then(|| known_to * ENTRIES_PER_BLOCK),
            stored_with: self.pages.stored_with(self.vid, first, end.max(first + 1) - 1),
        }
    }

    /// Adds what the next window has to what was counted before.
    pub(super) fn count_objects(&self, ctx: &Context, next: u32, own: u64, shared: u64) -> Kind {
        let window = self.window(ctx, next, self.table_end(ctx));
        let entries = (window.first..window.end).flat_map(|block| self.table.entries_of_block(block));
        let (own, shared) = entries.fold((own, shared), |(own, shared), (_, entry)| {
            if entry.owner == self.vid { (own + 1, shared) } else { (own, shared + 1) }
        });
        Kind::Usage { next: window.known_to, own, shared }
    }

    /// How the range is made up, object by object, as far as one look goes.
    pub(super) fn extents(&self, ctx: &Context, offset: u64, len: u64) -> Vec<Extent> {
        if len == 0 {
            return Vec::new();
        }
        let window = self.window_of_range(ctx, offset, len);
        let range = offset..self.range_end(offset + len, window.known_to);
        let data = self.objects_in(window).into_keys();
        let parts = parts_of(range, self.shift, data);
        parts.into_iter().map(|(len, is_data)| Extent { len, hole: !is_data }).collect()
    }

    /// The objects of a window that are not holes.
    pub(super) fn objects_in(&self, window: Window) -> BTreeMap<u32, Entry> {
        (window.first..window.end).flat_map(|block| self.table.entries_of_block(block)).collect()
    }

    /// Where a range ends of which the table is known up to a block.
    pub(super) fn range_end(&self, end: u64, known_to: u32) -> u64 {
        end.min((u64::from(known_to) * u64::from(ENTRIES_PER_BLOCK)) << self.shift)
    }
}

/// Cuts a range of bytes into runs of objects that are among `marked`, which ascend, and that are not.
fn parts_of(range: Range<u64>, shift: u8, marked: impl Iterator<Item = u32>) -> Vec<(u64, bool)> {
    let mut parts: Vec<(u64, bool)> = Vec::new();
    let mut push = |len: u64, mark: bool| match parts.last_mut() {
        _ if len == 0 => {}
        Some((last, is_marked)) if *is_marked == mark => *last += len,
        _ => parts.push((len, mark)),
    };
    let mut at = range.start;
    for index in marked {
        let start = (u64::from(index) << shift).clamp(at, range.end.max(at));
        let end = ((u64::from(index) + 1) << shift).clamp(start, range.end.max(start));
        push(start - at, false);
        push(end - start, true);
        at = end;
    }
    push(range.end.saturating_sub(at), false);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_where_marked_objects_begin_and_end() {
        let mib = 1 << 20;
        let cut = |range, marked: &[u32]| parts_of(range, 20, marked.iter().copied());
        assert_eq!(cut(0..4 * mib, &[]), [(4 * mib, false)]);
        assert_eq!(cut(0..4 * mib, &[0, 1, 3]), [(2 * mib, true), (mib, false), (mib, true)]);
        assert_eq!(cut(mib + 5..3 * mib + 7, &[0, 1, 3, 9]), [(mib - 5, true), (mib, false), (7, true)]);
        let all = 0..4 << 50;
        let last = (4 << 50) - mib;
        assert_eq!(cut(all, &[u32::MAX]), [(last, false), (mib, true)]);
    }
}
