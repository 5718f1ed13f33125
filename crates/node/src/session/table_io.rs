//! The block table's way from and to the inode object.
//!
//! One write per block is under way at a time; changes made meanwhile go into the next one together. Tasks go on
//! when a write that includes their change is on all copies.

use bytes::Bytes;
use proto::BLOCK_BYTES;
use proto::object::{BlockRange, Origin, StoreFailure, WriteBase};
use proto::{Oid, Vid};
use volume::INODE_BLOCKS;

use super::Session;
use super::copies::ChangeUse;
use super::reads::{Found, ReadUse};
use crate::context::Context;

/// Blocks of the table that one read fetches.
const LOAD_BLOCKS: u32 = 256;

#[derive(Debug, Default)]
pub(super) struct TableWrite {
    under_way: bool,
    /// Wait for the write under way.
    current: Vec<u64>,
    /// Wait for the next one.
    next: Vec<u64>,
}

impl Session {
    /// Makes sure that these blocks of the table get loaded; the task is run again when they are.
    /// True if they are there already.
    pub(super) fn need_table(&mut self, ctx: &mut Context, task: u64, first: u32, end: u32) -> bool {
        let end = end.min(INODE_BLOCKS);
        let mut last_missing = None;
        let mut block = first;
        while block < end {
            if self.table.is_loaded(block) {
                block += 1;
                continue;
            }
            last_missing = Some(block);
            if self.loading.contains_key(&block) {
                block += 1;
                continue;
            }
            let unasked = |b: &u32| !self.table.is_loaded(*b) && !self.loading.contains_key(b);
            let run = (block..end.min(block + LOAD_BLOCKS)).take_while(unasked).count() as u32;
            self.loading.extend((block..block + run).map(|b| (b, Vec::new())));
            let blocks = BlockRange::new(block, run);
            self.start_read(
                ctx,
                Oid::inode(self.vid),
                blocks,
                None,
                ReadUse::Table { first: block, count: run },
            );
            last_missing = Some(block + run - 1);
            block += run;
        }
        // Waiting in one place is enough, since the task looks again when it is run; in several it would be run
        // once for each, and each time wait in as many again.
        if let Some(waiting) = last_missing.and_then(|b| self.loading.get_mut(&b)) {
            waiting.push(task);
        }
        last_missing.is_none()
    }

    pub(super) fn table_loaded(&mut self, first: u32, count: u32, found: Found) {
        if matches!(found, Found::Failed) {
            // Without the table nothing can be served; other copies may come back.
            tracing::error!(vdi = %self.vid, "no copy of the inode can be read; requests wait");
            self.read_later(
                Oid::inode(self.vid),
                BlockRange::new(first, count),
                ReadUse::Table { first, count },
            );
            return;
        }
        for i in 0..count {
            let zeros = [0u8; BLOCK_BYTES];
            let bytes = match &found {
                Found::Data(data) => &data[i as usize * BLOCK_BYTES..][..BLOCK_BYTES],
                _ => &zeros[..],
            };
            self.table.load(first + i, bytes);
            let waiting = self.loading.remove(&(first + i)).unwrap_or_default();
            self.runnable.extend(waiting);
        }
    }

    /// Changes an entry and writes its block; the task is told through `task_table_done`.
    pub(super) fn write_entry(&mut self, ctx: &mut Context, index: u32, owner: Vid, task: u64) {
        let block = self.table.set_entry(index, owner);
        self.write_table_block(ctx, block, task);
    }

    pub(super) fn write_table_block(&mut self, ctx: &mut Context, block: u32, task: u64) {
        let write = self.table_writes.entry(block).or_default();
        write.next.push(task);
        if !write.under_way {
            self.send_table_block(ctx, block);
        }
    }

    fn send_table_block(&mut self, ctx: &mut Context, block: u32) {
        let write = self.table_writes.get_mut(&block).expect("made by the caller");
        write.under_way = true;
        write.current = std::mem::take(&mut write.next);
        let bytes = Bytes::copy_from_slice(self.table.block(block).expect("a changed block is loaded"));
        let (oid, blocks) = (Oid::inode(self.vid), BlockRange::new(block, 1));
        self.send_write(ctx, oid, blocks, bytes, WriteBase::Keep, Origin::default(), ChangeUse::Table(block));
    }

    pub(super) fn table_write_done(
        &mut self,
        ctx: &mut Context,
        block: u32,
        result: Result<(), StoreFailure>,
    ) {
        let write = self.table_writes.get_mut(&block).expect("one is under way");
        write.under_way = false;
        let told = std::mem::take(&mut write.current);
        let more = !write.next.is_empty();
        match result {
            // Nothing unsaved remains in this block.
            Ok(()) if !more => {
                self.table_writes.remove(&block);
            }
            // After a failure the entry stays, as a mark that memory is ahead of the disks: see `is_table_unsaved`.
            _ => {}
        }
        if more {
            self.send_table_block(ctx, block);
        }
        for task in told {
            self.task_table_done(task, result);
        }
    }

    /// Does the table in memory say something of this block that may not be on the disks?
    pub(super) fn is_table_unsaved(&self, block: u32) -> bool {
        self.table_writes.contains_key(&block)
    }
}
