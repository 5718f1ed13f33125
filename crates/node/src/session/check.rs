//! Compares all in-sync copies of an object, piece by piece under its lock, and mends what differs.
//!
//! Under the lock no change of these blocks is under way, so copies that differ have rotted or lost something. A block that
//! fails its own checksum is never the one to copy from; among those that pass, the first in-sync copy's content is taken.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::client::{CheckReport, ClientReply};
use proto::object::{BlockRange, Change, WriteBase};
use proto::{BLOCK_BYTES, NodeId};

use super::Session;
use super::reads::{Found, ReadUse};
use super::task::Kind;
use crate::context::Context;

/// Blocks compared at once: 1 MiB.
const CHECK_BLOCKS: u32 = 256;

#[derive(Debug, Default)]
pub(super) struct Progress {
    next: u32,
    awaited: usize,
    /// Of a task that copies from an ancestor: what is on its way to the own object.
    pub(super) copied: Vec<BlockRange>,
    found: BTreeMap<NodeId, Found>,
    report: CheckReport,
}

impl Session {
    pub(super) fn check_next(&mut self, ctx: &mut Context, id: u64) {
        let oid = self.task_oid(id);
        let nodes = self.in_sync_and_up(ctx, oid);
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Kind::Check { blocks, .. } = task.kind else { return };
        let at = blocks.first + task.check.next;
        if task.check.next >= blocks.count || nodes.is_empty() {
            let report = std::mem::take(&mut task.check.report);
            let job = self.task_job(id);
            self.set_reply(job, ClientReply::Checked(report));
            return self.end_task(ctx, id, Ok(()));
        }
        let piece = BlockRange::new(at, CHECK_BLOCKS.min(blocks.count - task.check.next));
        task.check.awaited = nodes.len();
        task.check.found.clear();
        for node in nodes {
            self.start_read(ctx, oid, piece, Some(node), ReadUse::Check { task: id, node });
        }
    }

    pub(super) fn check_read_done(&mut self, ctx: &mut Context, id: u64, node: NodeId, found: Found) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.check.found.insert(node, found);
        task.check.awaited -= 1;
        if task.check.awaited == 0 {
            self.compare(ctx, id);
        }
    }

    fn compare(&mut self, ctx: &mut Context, id: u64) {
        let oid = self.task_oid(id);
        let in_sync = self.in_sync_and_up(ctx, oid);
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Kind::Check { blocks, repair, inode } = task.kind else { return };
        let first = blocks.first + task.check.next;
        let piece = BlockRange::new(first, CHECK_BLOCKS.min(blocks.count - task.check.next));
        let found = std::mem::take(&mut task.check.found);
        let data_of = |n: &NodeId| match found.get(n) {
            Some(Found::Data(data)) => Some(data.clone()),
            _ => None,
        };
        let report = &mut task.check.report;
        let reference: Option<Bytes> = in_sync.iter().find_map(data_of);
        let mut differs = false;
        match &reference {
            Some(reference) => {
                for (node, found) in &found {
                    match found {
                        Found::Data(data) if data == reference => continue,
                        // An object of zeros and none read the same.
                        Found::Absent if reference.iter().all(|byte| *byte == 0) => continue,
                        Found::Absent => {
                            if !report.missing.contains(node) {
                                report.missing.push(*node);
                            }
                        }
                        _ => report.differing.push((*node, piece)),
                    }
                    differs = true;
                }
            }
            None if found.values().any(|f| matches!(f, Found::Failed)) => report.lost.push(piece),
            None => {}
        }
        task.check.next += piece.count;
        // A reader owns nothing and may change nothing: replicas would refuse it. It tells what it found.
        let Some(reference) = reference.filter(|_| differs && repair && !self.frozen) else {
            return self.check_next(ctx, id);
        };
        task.check.report.repaired = true;
        // Of the table; of a data object none are meant.
        let page = if inode { oid.index() * volume::PAGE_BLOCKS } else { 0 };
        let blocks = page + piece.first..page + piece.end() as u32;
        if inode && blocks.clone().any(|b| self.table.is_loaded(b)) && !self.frozen {
            // The session's own table is newer than any copy: it is what the copies get.
            let loaded: Vec<u32> = blocks.filter(|b| self.table.is_loaded(*b)).collect();
            self.mark_changing(id, loaded.len());
            for block in loaded {
                self.write_table_block(ctx, block, id);
            }
            return;
        }
        let checksums = proto::checksum::block_checksums(&reference);
        assert_eq!(reference.len(), piece.count as usize * BLOCK_BYTES, "a read returns what was asked for");
        self.change(
            ctx,
            id,
            oid,
            Change::Write { blocks: piece, checksums, base: WriteBase::Keep },
            reference,
        );
    }

    pub(super) fn check_mended(&mut self, ctx: &mut Context, id: u64) {
        self.check_next(ctx, id);
    }
}
