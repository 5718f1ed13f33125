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
        let mut block = first;
        let mut complete = true;
        while block < end.min(INODE_BLOCKS) {
            if self.table.is_loaded(block) {
                block += 1;
                continue;
            }
            complete = false;
            if let Some(waiting) = self.loading.get_mut(&block) {
                waiting.push(task);
                block += 1;
                continue;
            }
            let mut run = 0;
            while run < LOAD_BLOCKS
                && block + run < end.min(INODE_BLOCKS)
                && !self.table.is_loaded(block + run)
                && !self.loading.contains_key(&(block + run))
            {
                self.loading.insert(block + run, Vec::new());
                run += 1;
            }
            // Waiting for the last block of the run is enough: they all arrive together.
            self.loading.get_mut(&(block + run - 1)).expect("just inserted").push(task);
            let blocks = BlockRange::new(block, run);
            self.start_read(
                ctx,
                Oid::inode(self.vid),
                blocks,
                None,
                ReadUse::Table { first: block, count: run },
            );
            block += run;
        }
        complete
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
