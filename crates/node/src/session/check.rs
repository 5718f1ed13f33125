//! Compares all in-sync copies of an object, piece by piece under its lock, and mends what differs.
//!
//! Each copy verifies its blocks and tells their checksums; content moves only of blocks that differ or are damaged. Under the lock no change
//! of these blocks is under way, so copies that differ have rotted or lost something. Only blocks of the table are written whatever a check does: those
//! that were on their way meanwhile are left out. A block that fails its own checksum is never the one to copy
//! from; among those that pass, the first in-sync copy's is taken.
//!
//! What is wrong is written anew to all copies, as any change of the owner. An object that never changes has no owner whom copies would obey: those that
//! cannot read a block get its content to put it back ([`PeerRequest::Mend`](proto::peer::PeerRequest)), and nothing else is done. That is safe
//! without a lock: every in-sync copy has the same there, for ever.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::checksum::ZERO_BLOCK_CRC;
use proto::client::{CheckReport, ClientReply};
use proto::object::{BlockRange, Change, Verified, WriteBase, runs_of};
use proto::{BLOCK_BYTES, NodeId};

use super::Session;
use super::reads::{Found, ReadUse};
use super::seal::is_page;
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
    /// What is wrong with the present piece, while content is on its way to mend it.
    wrong: Wrong,
    /// Good content of what is wrong, by first block.
    content: BTreeMap<u32, Bytes>,
    /// Copies of the present piece were mended, and tell once more what they have.
    is_second_look: bool,
    is_left_wrong: bool,
    report: CheckReport,
}

/// What is wrong with some copies of a piece.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wrong {
    /// Copies without the object, which has something here.
    missing: BTreeSet<NodeId>,
    /// Blocks that others have differently: by copy.
    differing: BTreeMap<NodeId, BTreeSet<u32>>,
    /// Those of them that the copy cannot read.
    damaged: BTreeMap<NodeId, BTreeSet<u32>>,
    /// Whom to ask for the content of blocks that are wrong anywhere.
    sources: BTreeMap<u32, NodeId>,
    /// Those that a copy has differently, or lacks, though no checksum fails.
    at_odds: BTreeSet<u32>,
    /// Blocks that no copy can give.
    lost: BTreeSet<u32>,
}

impl Wrong {
    /// `found`: in the order in which copies are preferred. `moving`: nothing is said of these blocks.
    fn find(piece: BlockRange, found: &[(NodeId, &Found)], moving: &BTreeSet<u32>) -> Wrong {
        let mut wrong = Wrong::default();
        let present: Vec<(NodeId, &Verified)> = found
            .iter()
            .filter_map(|(node, found)| match found {
                Found::Verified(verified) => Some((*node, verified)),
                _ => None,
            })
            .collect();
        let blocks = (piece.first..piece.end() as u32).enumerate();
        for (at, block) in blocks.filter(|(_, block)| !moving.contains(block)) {
            let good = present.iter().find(|(_, verified)| !verified.is_damaged(block));
            let Some((source, crc)) = good.map(|(node, verified)| (*node, verified.checksums[at])) else {
                if found.iter().any(|(_, found)| !matches!(found, Found::Absent)) {
                    wrong.lost.insert(block);
                }
                continue;
            };
            for (node, found) in found {
                let is_damaged = match found {
                    Found::Verified(verified) => verified.is_damaged(block),
                    Found::Absent => false,
                    _ => true,
                };
                match found {
                    Found::Verified(verified) if !is_damaged && verified.checksums[at] == crc => continue,
                    // An object of zeros and none read the same.
                    Found::Absent if crc == ZERO_BLOCK_CRC => continue,
                    Found::Absent => drop(wrong.missing.insert(*node)),
                    _ => drop(wrong.differing.entry(*node).or_default().insert(block)),
                }
                match is_damaged {
                    true => drop(wrong.damaged.entry(*node).or_default().insert(block)),
                    false => drop(wrong.at_odds.insert(block)),
                }
                wrong.sources.insert(block, source);
            }
        }
        wrong
    }

    fn is_nothing(&self) -> bool {
        self.sources.is_empty()
    }

    /// Is there more than what copies cannot read?
    fn is_more_than_damage(&self) -> bool {
        !self.missing.is_empty() || self.differing != self.damaged
    }

    fn report(&self, report: &mut CheckReport) {
        for node in &self.missing {
            if !report.missing.contains(node) {
                report.missing.push(*node);
            }
        }
        for (node, blocks) in &self.differing {
            report.differing.extend(runs_of(blocks.iter().copied()).into_iter().map(|run| (*node, run)));
        }
        report.at_odds.extend(runs_of(self.at_odds.iter().copied()));
        report.lost.extend(runs_of(self.lost.iter().copied()));
    }

    /// What is to be read, and from whom.
    fn reads(&self) -> Vec<(NodeId, BlockRange)> {
        let mut reads: Vec<(NodeId, BlockRange)> = Vec::new();
        for (block, source) in &self.sources {
            match reads.last_mut() {
                Some((node, run)) if node == source && run.end() == u64::from(*block) => run.count += 1,
                _ => reads.push((*source, BlockRange::new(*block, 1))),
            }
        }
        reads
    }
}

impl Session {
    pub(super) fn check_next(&mut self, ctx: &mut Context, id: u64) {
        let oid = self.task_oid(id);
        let nodes = self.in_sync_and_up(ctx, oid);
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Kind::Check { blocks, .. } = task.kind else { return };
        if task.check.next >= blocks.count || nodes.is_empty() {
            let mut report = std::mem::take(&mut task.check.report);
            report.repaired &= !task.check.is_left_wrong;
            let job = self.task_job(id);
            self.set_reply(job, ClientReply::Checked(report));
            return self.end_task(ctx, id, Ok(()));
        }
        let piece = piece_of(blocks, task.check.next);
        task.check.awaited = nodes.len();
        let report = &mut task.check.report;
        report.copies = report.copies.max(nodes.len() as u32);
        task.check.found.clear();
        self.watch_table_writes(oid);
        for node in nodes {
            self.start_verify(ctx, oid, piece, node, ReadUse::Check { task: id, node });
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
        let is_frozen = self.frozen;
        let moving = self.table_writes_seen(oid);
        // What nobody refers to any more is removed from one copy after the other.
        let is_deleted = ctx.view.vdi(self.vid).is_none();
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Kind::Check { blocks, repair, .. } = task.kind else { return };
        let piece = piece_of(blocks, task.check.next);
        let found = std::mem::take(&mut task.check.found);
        // Others were dropped meanwhile: they do not count.
        let found: Vec<(NodeId, &Found)> =
            in_sync.iter().filter_map(|node| Some((*node, found.get(node)?))).collect();
        let counts = |found: &Found| !(is_deleted && matches!(found, Found::Absent));
        let found: Vec<(NodeId, &Found)> = found.into_iter().filter(|(_, found)| counts(found)).collect();
        let wrong = Wrong::find(piece, &found, &moving);
        let check = &mut task.check;
        if std::mem::take(&mut check.is_second_look) {
            check.is_left_wrong |= !wrong.is_nothing();
            check.next += piece.count;
            return self.check_next(ctx, id);
        }
        let verified = found.iter().filter(|(_, found)| matches!(found, Found::Verified(_))).count();
        check.report.compared_bytes += verified as u64 * u64::from(piece.count) * BLOCK_BYTES as u64;
        wrong.report(&mut check.report);
        // Nothing but what cannot be read may be put back where nobody owns it. The rest is told.
        let has_remedy = !is_frozen || !wrong.damaged.is_empty();
        if wrong.is_nothing() || !repair || !has_remedy {
            check.is_left_wrong |= !wrong.is_nothing();
            check.next += piece.count;
            return self.check_next(ctx, id);
        }
        check.is_left_wrong |= is_frozen && wrong.is_more_than_damage();
        check.report.repaired = true;
        let reads = wrong.reads();
        (check.awaited, check.wrong) = (reads.len(), wrong);
        check.content.clear();
        for (node, run) in reads {
            self.start_read(ctx, oid, run, Some(node), ReadUse::CheckContent { task: id });
        }
    }

    pub(super) fn check_content_read(
        &mut self,
        ctx: &mut Context,
        id: u64,
        blocks: BlockRange,
        found: Found,
    ) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        match found {
            Found::Data(data) => drop(task.check.content.insert(blocks.first, data)),
            // It has changed its mind: what is wrong with it now the next check will find.
            _ => task.check.is_left_wrong = true,
        }
        task.check.awaited -= 1;
        if task.check.awaited > 0 {
            return;
        }
        let content = std::mem::take(&mut task.check.content);
        let wrong = std::mem::take(&mut task.check.wrong);
        if self.frozen {
            return self.put_back(ctx, id, &wrong, content);
        }
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Kind::Check { blocks, .. } = task.kind else { return };
        task.check.next += piece_of(blocks, task.check.next).count;
        if content.is_empty() {
            return self.check_next(ctx, id);
        }
        self.write_anew(ctx, id, content);
    }

    /// To all copies, as a change of this session.
    fn write_anew(&mut self, ctx: &mut Context, id: u64, content: BTreeMap<u32, Bytes>) {
        let oid = self.task_oid(id);
        for (first, data) in content {
            let all = first..first + (data.len() / BLOCK_BYTES) as u32;
            // Blocks of the table that the session has are newer than any copy, and so they are what copies get. That goes for those that it has come
            // to have since the copies were compared, too: no others can have changed.
            let page = if is_page(oid) { Some(oid.index() * volume::PAGE_BLOCKS) } else { None };
            let is_loaded = |block: &u32| page.is_some_and(|page| self.table.is_loaded(page + block));
            let (loaded, others): (Vec<u32>, Vec<u32>) = all.partition(is_loaded);
            for run in runs_of(others) {
                let at = (run.first - first) as usize * BLOCK_BYTES;
                let part = data.slice(at..at + run.count as usize * BLOCK_BYTES);
                let checksums = proto::checksum::block_checksums(&part);
                let change = Change::Write { blocks: run, checksums, base: WriteBase::Keep };
                self.change(ctx, id, oid, change, part);
            }
            self.mark_changing(id, loaded.len());
            for block in loaded {
                self.write_table_block(ctx, page.expect("a page has loaded blocks") + block, id);
            }
        }
    }

    /// To the copies that cannot read it, which put it back; then they are asked once more.
    fn put_back(&mut self, ctx: &mut Context, id: u64, wrong: &Wrong, content: BTreeMap<u32, Bytes>) {
        let oid = self.task_oid(id);
        let mut parts: Vec<(NodeId, BlockRange, Bytes)> = Vec::new();
        for (node, damaged) in &wrong.damaged {
            for (first, data) in &content {
                let end = first + (data.len() / BLOCK_BYTES) as u32;
                for run in runs_of(damaged.range(first..&end).copied()) {
                    let at = (run.first - first) as usize * BLOCK_BYTES;
                    parts.push((*node, run, data.slice(at..at + run.count as usize * BLOCK_BYTES)));
                }
            }
        }
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.check.awaited = parts.len();
        task.check.is_second_look = true;
        if parts.is_empty() {
            return self.check_next(ctx, id);
        }
        for (node, run, data) in parts {
            self.start_mend(ctx, oid, run, data, node, ReadUse::PutBack { task: id });
        }
    }

    /// A copy has put content back, or could not.
    pub(super) fn was_put_back(&mut self, ctx: &mut Context, id: u64) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.check.awaited -= 1;
        if task.check.awaited == 0 {
            self.check_next(ctx, id);
        }
    }

    pub(super) fn check_mended(&mut self, ctx: &mut Context, id: u64) {
        self.check_next(ctx, id);
    }
}

fn piece_of(blocks: BlockRange, next: u32) -> BlockRange {
    BlockRange::new(blocks.first + next, CHECK_BLOCKS.min(blocks.count - next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(port: u16) -> NodeId {
        NodeId { addr: [0; 16], port }
    }

    /// A copy of blocks 8 and up; 0 stands for a damaged block.
    fn copy(checksums: &[u32]) -> Found {
        let damaged = (8..).zip(checksums).filter(|(_, crc)| **crc == 0).map(|(block, _)| block);
        let damaged = runs_of(damaged);
        Found::Verified(Verified { checksums: checksums.to_vec(), damaged, read_bytes: 0 })
    }

    fn find(copies: &[Found]) -> Wrong {
        let found: Vec<(NodeId, &Found)> = (1..).map(node).zip(copies).collect();
        Wrong::find(BlockRange::new(8, 3), &found, &BTreeSet::new())
    }

    #[test]
    fn each_block_comes_from_the_first_copy_that_can_read_it() {
        assert!(find(&[copy(&[1, 2, 3]), copy(&[1, 2, 3])]).is_nothing());
        let wrong = find(&[copy(&[0, 2, 3]), copy(&[1, 0, 3]), copy(&[1, 2, 4])]);
        let expected = [(node(2), BlockRange::new(8, 1)), (node(1), BlockRange::new(9, 2))];
        assert_eq!(wrong.reads(), expected);
        let mut report = CheckReport::default();
        wrong.report(&mut report);
        let block = |n| BlockRange::new(n, 1);
        assert_eq!(report.differing, [(node(1), block(8)), (node(2), block(9)), (node(3), block(10))]);
        assert_eq!(wrong.damaged.len(), 2);
        assert_eq!(report.at_odds, [block(10)], "of the others one cannot be read");
        assert!(wrong.is_more_than_damage());
    }

    #[test]
    fn what_no_copy_can_read_is_lost_and_an_absent_object_has_zeros() {
        let wrong = find(&[copy(&[0, 2, ZERO_BLOCK_CRC]), copy(&[0, 2, ZERO_BLOCK_CRC])]);
        assert_eq!((wrong.lost.len(), wrong.is_nothing()), (1, true));
        assert!(find(&[Found::Absent, copy(&[ZERO_BLOCK_CRC; 3])]).is_nothing());
        assert_eq!(find(&[Found::Absent, Found::Absent]), Wrong::default());
        let wrong = find(&[Found::Absent, copy(&[ZERO_BLOCK_CRC, 5, ZERO_BLOCK_CRC])]);
        assert_eq!(wrong.reads(), [(node(2), BlockRange::new(9, 1))]);
        assert_eq!(wrong.missing, BTreeSet::from([node(1)]));
        assert_eq!(wrong.at_odds, BTreeSet::from([9]));
        let wrong = find(&[Found::Failed, copy(&[1, 2, 3])]);
        assert_eq!((wrong.damaged[&node(1)].len(), wrong.reads().len(), wrong.at_odds.len()), (3, 1, 0));
    }

    #[test]
    fn of_blocks_that_are_being_written_nothing_is_said() {
        let copies = [copy(&[1, 2, 3]), copy(&[1, 5, 0])];
        let found: Vec<(NodeId, &Found)> = (1..).map(node).zip(&copies).collect();
        let find =
            |moving: &[u32]| Wrong::find(BlockRange::new(8, 3), &found, &moving.iter().copied().collect());
        assert!(find(&[9, 10]).is_nothing());
        assert_eq!(find(&[10]).at_odds, BTreeSet::from([9]));
    }
}
