//! This node's copies: what an owner may change here, and what of it is not settled yet.
//!
//! The gate of every change: the sender's idea of the PG must be this node's (`since`), the sender must be the owner of
//! the VDI's current session, and a change that was seen before is not carried out again. A change is acknowledged when
//! the store has answered, that is when it is durable.

use std::collections::{BTreeMap, BTreeSet};

use proto::object::{
    BlockRange, Change, ObjectOp, ObjectReply, Stamp, StoreFailure, Tag, Unsettled, WriteBase,
};
use proto::peer::{PeerReply, PeerRequest};
use proto::{Generation, NodeId, Oid, PgId, Seq, Since, Vid};

use crate::context::{Context, StoreUse};

/// Objects in one answer to a List.
pub(crate) const LIST_PAGE: u32 = 4096;

/// The part of an object that a change decides. `None`: all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Covered {
    pub pg: PgId,
    pub oid: Oid,
    pub blocks: Option<BlockRange>,
}

#[derive(Debug, Default)]
pub(crate) struct Replica {
    vdis: BTreeMap<Vid, VdiLog>,
}

/// Changes of one VDI that may be missing elsewhere.
#[derive(Debug, Default)]
struct VdiLog {
    unsettled: BTreeMap<Stamp, Entry>,
    /// Of which generation, up to where.
    settled: Stamp,
    /// Seals that wait for changes in progress: who asked, under which call.
    seals: Vec<(NodeId, u64)>,
    /// Stamps whose store operation has not been answered.
    pending: BTreeSet<Stamp>,
}

#[derive(Debug)]
struct Entry {
    change: Unsettled,
    waiting: Vec<(NodeId, u64)>,
}

impl Replica {
    pub fn new(recovered: Vec<Unsettled>) -> Replica {
        let mut replica = Replica::default();
        for change in recovered {
            let log = replica.vdis.entry(change.vid).or_default();
            log.unsettled.insert(change.stamp, Entry { change, waiting: Vec::new() });
        }
        replica
    }

    /// A request for this node's copies, whose `version` the view has reached.
    ///
    /// Returns what an accepted change covers: a copy that catches up must not fetch that any more.
    pub fn handle_request(
        &mut self,
        ctx: &mut Context,
        from: NodeId,
        call: u64,
        body: PeerRequest,
    ) -> Option<Covered> {
        match body {
            PeerRequest::Change { pg, since, oid, change, tag, data } => {
                return self.handle_change(ctx, from, call, pg, since, oid, change, tag, data);
            }
            PeerRequest::Read { pg, since, oid, blocks } => {
                if self.check_pg(ctx, from, call, pg, since, true) {
                    ctx.store(ObjectOp::Read { oid, blocks }, StoreUse::Answer { to: from, call });
                }
            }
            PeerRequest::Checksums { pg, since, oid } => {
                if self.check_pg(ctx, from, call, pg, since, true) {
                    ctx.store(ObjectOp::Checksums { oid }, StoreUse::Answer { to: from, call });
                }
            }
            PeerRequest::List { pgs, after } => {
                let current = pgs.iter().all(|(pg, since)| self.is_current(ctx, *pg, *since, true));
                if !current {
                    ctx.reply(from, call, PeerReply::OldView { version: ctx.view.version() });
                    return None;
                }
                let first = after.map_or(Oid(0), |oid| Oid(oid.0.saturating_add(1)));
                let op = ObjectOp::List { first, last: Oid(u64::MAX), limit: LIST_PAGE };
                ctx.store(op, StoreUse::ListFor { to: from, call, pgs });
            }
            PeerRequest::Seal { vid, generation } => self.handle_seal(ctx, from, call, vid, generation),
            PeerRequest::Settle { vid, tag } => {
                self.settle(ctx, vid, Stamp { generation: tag.stamp.generation, seq: tag.settled });
            }
            PeerRequest::Purge { .. }
            | PeerRequest::Yield { .. }
            | PeerRequest::Forward { .. }
            | PeerRequest::Recall { .. }
            | PeerRequest::Confirm { .. } => {
                unreachable!("handled by the node")
            }
        }
        None
    }

    fn handle_change(
        &mut self,
        ctx: &mut Context,
        from: NodeId,
        call: u64,
        pg: PgId,
        since: Since,
        oid: Oid,
        change: Change,
        tag: Tag,
        data: bytes::Bytes,
    ) -> Option<Covered> {
        let session = ctx.view.session(tag.vid);
        let is_owner = session.owner.is_some_and(|(node, _)| node == from);
        if ctx.view.vdi(tag.vid).is_none() || session.generation != tag.stamp.generation || !is_owner {
            ctx.reply(from, call, PeerReply::Fenced);
            return None;
        }
        if !self.check_pg(ctx, from, call, pg, since, false) {
            return None;
        }
        if oid.vid() != tag.vid || ctx.view.pg_of(oid) != Some(pg) || !is_well_formed(&change, data.len()) {
            ctx.reply(from, call, PeerReply::Failed(StoreFailure::Invalid));
            return None;
        }
        let blocks = covered_blocks(&change);
        let covered = Covered { pg, oid, blocks };
        self.settle(ctx, tag.vid, Stamp { generation: tag.stamp.generation, seq: tag.settled });
        let log = self.vdis.entry(tag.vid).or_default();
        let settled = log.settled.generation == tag.stamp.generation && tag.stamp.seq <= log.settled.seq;
        if settled {
            // It is on all copies, this one included: a late duplicate must not undo what came after it.
            ctx.reply(from, call, PeerReply::Done);
            return None;
        }
        if let Some(entry) = log.unsettled.get_mut(&tag.stamp) {
            // As it was carried out: a clone may not have been possible then.
            let covered = Covered { blocks: entry.change.blocks, ..covered };
            if log.pending.contains(&tag.stamp) {
                entry.waiting.push((from, call));
            } else {
                ctx.reply(from, call, PeerReply::Done);
            }
            return Some(covered);
        }
        let unsettled = Unsettled { vid: tag.vid, stamp: tag.stamp, origin: tag.origin, oid, blocks };
        log.unsettled.insert(tag.stamp, Entry { change: unsettled, waiting: vec![(from, call)] });
        log.pending.insert(tag.stamp);
        let op = ObjectOp::Change { oid, change, data, tag: Some(tag) };
        ctx.store(op, StoreUse::Change { vid: tag.vid, stamp: tag.stamp, covered });
        Some(covered)
    }

    /// The store has answered a tagged change: now, and not before, it may be acknowledged.
    pub fn handle_changed(&mut self, ctx: &mut Context, vid: Vid, stamp: Stamp, reply: ObjectReply) {
        let Some(log) = self.vdis.get_mut(&vid) else { return };
        log.pending.remove(&stamp);
        let answer = match reply {
            ObjectReply::Done => PeerReply::Done,
            ObjectReply::Failed(failure) => PeerReply::Failed(failure),
            other => unreachable!("a change is answered by Done or Failed, not {other:?}"),
        };
        let failed = answer != PeerReply::Done;
        let waiting = match log.unsettled.get_mut(&stamp) {
            Some(entry) => std::mem::take(&mut entry.waiting),
            None => Vec::new(),
        };
        if failed {
            // Nothing was changed: a repetition must be carried out.
            log.unsettled.remove(&stamp);
        }
        for (to, call) in waiting {
            ctx.reply(to, call, answer.clone());
        }
        self.answer_seals(ctx, vid);
    }

    fn check_pg(
        &mut self,
        ctx: &mut Context,
        from: NodeId,
        call: u64,
        pg: PgId,
        since: Since,
        in_sync_only: bool,
    ) -> bool {
        let current = self.is_current(ctx, pg, since, in_sync_only);
        if !current {
            ctx.reply(from, call, PeerReply::OldView { version: ctx.view.version() });
        }
        current
    }

    /// Reads come from in-sync copies only; changes go to those that catch up as well.
    fn is_current(&self, ctx: &Context, pg: PgId, since: Since, in_sync_only: bool) -> bool {
        ctx.view.pg(pg).is_some_and(|state| {
            state.since == since
                && (state.in_sync.contains(&ctx.me) || (!in_sync_only && state.is_catching(ctx.me)))
        })
    }

    /// From now on older generations are refused: the view, which has reached the sender's version, does so in
    /// `handle_change`. The answer waits for changes of theirs that are still on their way to the disk.
    fn handle_seal(&mut self, ctx: &mut Context, from: NodeId, call: u64, vid: Vid, generation: Generation) {
        if ctx.view.session(vid).generation != generation {
            return ctx.reply(from, call, PeerReply::Fenced);
        }
        self.vdis.entry(vid).or_default().seals.push((from, call));
        self.answer_seals(ctx, vid);
    }

    fn answer_seals(&mut self, ctx: &mut Context, vid: Vid) {
        let clean = ctx.view.session(vid).clean;
        let current = ctx.view.session(vid).generation;
        let Some(log) = self.vdis.get_mut(&vid) else { return };
        if log.seals.is_empty() || log.pending.iter().any(|s| s.generation < current) {
            return;
        }
        let left: Vec<Unsettled> =
            log.unsettled.values().map(|e| e.change).filter(|c| c.stamp.generation > clean).collect();
        for (to, call) in std::mem::take(&mut log.seals) {
            ctx.reply(to, call, PeerReply::Unsettled(left.clone()));
        }
    }

    /// Forgets what is known to be on all copies.
    pub fn settle(&mut self, ctx: &mut Context, vid: Vid, settled: Stamp) {
        // Sequence number 1 stands for the seal: before it, what older generations left is still needed.
        if settled.seq == Seq(0) {
            return;
        }
        let Some(log) = self.vdis.get_mut(&vid) else { return };
        if settled <= log.settled {
            return;
        }
        log.settled = settled;
        let kept =
            log.unsettled.split_off(&Stamp { generation: settled.generation, seq: Seq(settled.seq.0 + 1) });
        // An entry may still be on its way to the disk: then this copy was dropped and nobody awaits it.
        log.unsettled = kept;
        ctx.store(ObjectOp::Settle { vid, stamp: settled }, StoreUse::Forget);
    }

    /// The last session ended with everything settled.
    pub fn handle_clean_close(&mut self, ctx: &mut Context, vid: Vid, generation: Generation) {
        self.settle(ctx, vid, Stamp { generation, seq: Seq(u64::MAX - 1) });
    }

    /// After a start: what the store has remembered of sessions that ended cleanly since is settled.
    pub fn forget_closed(&mut self, ctx: &mut Context) {
        for vid in self.vdis.keys().copied().collect::<Vec<_>>() {
            let clean = ctx.view.session(vid).clean;
            self.settle(ctx, vid, Stamp { generation: clean, seq: Seq(u64::MAX - 1) });
        }
    }

    /// This node's copy of a PG starts from scratch: what was known of its changes means nothing, since the blocks are
    /// fetched anew and a change that arrives again must be carried out again, after them.
    pub fn forget_pg(&mut self, ctx: &Context, pg: PgId) {
        for log in self.vdis.values_mut() {
            let pending = &log.pending;
            log.unsettled
                .retain(|stamp, e| pending.contains(stamp) || ctx.view.pg_of(e.change.oid) != Some(pg));
        }
    }

    pub fn forget_vdi(&mut self, vid: Vid) {
        if let Some(log) = self.vdis.get_mut(&vid) {
            log.unsettled.clear();
        }
    }
}

fn covered_blocks(change: &Change) -> Option<BlockRange> {
    match change {
        Change::Write { blocks, base: WriteBase::Keep, .. } | Change::Discard { blocks } => Some(*blocks),
        Change::Write { .. } | Change::Delete => None,
    }
}

fn is_well_formed(change: &Change, data_bytes: usize) -> bool {
    match change {
        Change::Write { blocks, checksums, .. } => {
            data_bytes == blocks.count as usize * proto::BLOCK_BYTES
                && checksums.len() == blocks.count as usize
        }
        Change::Discard { .. } | Change::Delete => data_bytes == 0,
    }
}
