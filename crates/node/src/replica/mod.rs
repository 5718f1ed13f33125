//! This node's copies: what an owner may change here, and what of it is not settled yet.
//!
//! The gate of every change: the sender's idea of the PG must be this node's (`since`), the sender must be the owner of
//! the VDI's current session, and a change that was seen before is not carried out again. A change is acknowledged when
//! the store has answered, that is when it is durable.
//!
//! What is unsettled here is exact, or the next seal would leave copies different: of every in-sync copy, each change that
//! is part of its content and may be missing elsewhere is in `unsettled` and in the store's memory, and nothing else
//! is but what has been settled since. So whoever copies content takes these marks with it ([`serve`], [`marks`]). Of a copy that still catches up, each
//! change that is part of its content is listed too, but perhaps not whole: nobody reads from it.

mod absent;
mod marks;
mod serve;
mod settled;

use std::collections::BTreeMap;
use std::ops::Bound;

use proto::object::{
    BlockRange, Change, ObjectOp, ObjectReply, Stamp, StoreFailure, Tag, Unsettled, WriteBase,
};
use proto::peer::{CHECKSUMS_MAX, PeerReply, PeerRequest, SEAL_PAGE};
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
    pub stamp: Stamp,
}

#[derive(Debug, Default)]
pub(crate) struct Replica {
    vdis: BTreeMap<Vid, VdiLog>,
    /// Numbers the changes given to the store: the same one may be given to it again, after it was forgotten.
    next_order: u64,
    /// The same changes once more, differently described: a crash came before the amendment.
    strays: Vec<Unsettled>,
    serving: serve::Serving,
    forgetting: marks::Forgetting,
    absences: absent::Absences,
}

/// Changes of one VDI that may be missing elsewhere.
#[derive(Debug, Default)]
struct VdiLog {
    unsettled: BTreeMap<Stamp, Entry>,
    /// Of which generation, up to where.
    settled: Stamp,
    around: settled::Around,
    /// Seals that wait for changes in progress: who asked, under which call, for what comes after which stamp.
    seals: Vec<(NodeId, u64, Option<Stamp>)>,
    /// What the store has not answered, as it will remember it.
    orders: BTreeMap<u64, Unsettled>,
    /// Changes that were refused, by the last call for which they were: its owner counts on it that nothing of them is here, so the same call once
    /// more must not carry them out.
    refused: BTreeMap<Stamp, u64>,
}

#[derive(Debug)]
struct Entry {
    change: Unsettled,
    /// What this copy wrote of it, and its store remembers: less than the change where a clone lacked its base.
    carried_out: Option<BlockRange>,
    /// Its order, while the store has not answered; and whether it has said that it has taken it.
    order: Option<u64>,
    taken: bool,
    /// It came with content fetched from another copy.
    inherited: bool,
    waiting: Vec<(NodeId, u64)>,
}

impl Entry {
    fn remembered(change: Unsettled) -> Entry {
        Entry {
            change,
            carried_out: change.blocks,
            order: None,
            taken: false,
            inherited: false,
            waiting: Vec::new(),
        }
    }

    /// As the store knows it.
    fn in_store(&self) -> Unsettled {
        Unsettled { blocks: self.carried_out, ..self.change }
    }
}

impl Replica {
    pub fn new(recovered: Vec<Unsettled>) -> Replica {
        let mut replica = Replica::default();
        for change in recovered {
            let log = replica.vdis.entry(change.vid).or_default();
            if let Some(other) = log.unsettled.insert(change.stamp, Entry::remembered(change)) {
                replica.strays.push(other.change);
            }
        }
        replica
    }

    /// A request for this node's copies, whose `version` the view has reached.
    ///
    /// Returns what an accepted change covers: a copy that catches up must not fetch that any more. `baseless`: the change was to
    /// clone its object, and is carried out without.
    pub fn handle_request(
        &mut self,
        ctx: &mut Context,
        from: NodeId,
        call: u64,
        body: PeerRequest,
        baseless: bool,
    ) -> Option<Covered> {
        match body {
            PeerRequest::Change { pg, since, oid, change, tag, data } => {
                return self.handle_change(ctx, from, call, pg, since, oid, change, tag, data, baseless);
            }
            PeerRequest::Read { pg, since, oid, blocks } => {
                if self.check_pg(ctx, from, call, pg, since, true) {
                    ctx.store(ObjectOp::Read { oid, blocks }, StoreUse::Answer { to: from, call });
                }
            }
            PeerRequest::Verify { pg, since, oid, blocks } => {
                if self.check_pg(ctx, from, call, pg, since, true) {
                    let op = ObjectOp::Verify { oid, blocks, pass: 0 };
                    ctx.store(op, StoreUse::Answer { to: from, call });
                }
            }
            PeerRequest::Checksums { blocks, .. } if blocks.count > CHECKSUMS_MAX => {
                ctx.reply(from, call, PeerReply::Failed(StoreFailure::Invalid));
            }
            PeerRequest::Checksums { pg, since, oid, blocks } => {
                if self.check_pg(ctx, from, call, pg, since, true) {
                    let op = ObjectOp::Checksums { oid, blocks };
                    ctx.store(op, StoreUse::AnswerScrub { to: from, call });
                }
            }
            PeerRequest::Mend { pg, since, oid, blocks, checksums, data } => {
                // Of an object that may change, another copy's content may be older than what was acknowledged here since. One of a VDI that is
                // frozen, or deleted and still needed, never changes again, in no view that is newer than this: what any copy that counts has
                // of it is what belongs here.
                if !is_frozen(ctx, oid) {
                    ctx.reply(from, call, PeerReply::Failed(StoreFailure::Invalid));
                } else if self.check_pg(ctx, from, call, pg, since, true) {
                    let op = ObjectOp::Mend { oid, blocks, checksums, data };
                    ctx.store(op, StoreUse::Answer { to: from, call });
                }
            }
            PeerRequest::Compare { pg, since, oid, with } => {
                if self.check_pg(ctx, from, call, pg, since, true) {
                    ctx.store(ObjectOp::Compare { oid, with }, StoreUse::Answer { to: from, call });
                }
            }
            PeerRequest::Fetch { pg, since, oid, blocks } => {
                if self.check_pg(ctx, from, call, pg, since, true) {
                    self.serve_fetch(ctx, from, call, oid, blocks);
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
                ctx.store(op, StoreUse::ListFor { to: from, call, pgs, first });
            }
            PeerRequest::Changed { pgs, after } => {
                match pgs.iter().all(|(pg, since)| self.is_current(ctx, *pg, *since, true)) {
                    true => self.answer_changed(ctx, from, call, &pgs, after),
                    false => ctx.reply(from, call, PeerReply::OldView { version: ctx.view.version() }),
                }
            }
            PeerRequest::Seal { vid, generation, after } => {
                self.handle_seal(ctx, from, call, vid, generation, after);
            }
            PeerRequest::Settle { vid, tag } => {
                self.settle_for_good(ctx, vid, Stamp { generation: tag.stamp.generation, seq: tag.settled });
            }
            PeerRequest::SettleAround { vid, generation, last, pinned } => {
                self.settle_around(ctx, vid, generation, last, &pinned);
            }
            PeerRequest::Ping
            | PeerRequest::Purge { .. }
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
        baseless: bool,
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
        let covered = Covered { pg, oid, blocks, stamp: tag.stamp };
        self.settle(ctx, tag.vid, Stamp { generation: tag.stamp.generation, seq: tag.settled });
        let log = self.vdis.entry(tag.vid).or_default();
        let is_below = log.settled.generation == tag.stamp.generation && tag.stamp.seq <= log.settled.seq;
        if is_below || log.around.contains(tag.stamp) {
            // It is on all copies, this one included: a late duplicate must not undo what came after it.
            ctx.reply(from, call, PeerReply::Done);
            return None;
        }
        if log.refused.get(&tag.stamp).is_some_and(|last| call <= *last) {
            ctx.reply(from, call, PeerReply::Failed(StoreFailure::NoSpace));
            return None;
        }
        // What was fetched of a change may lack a part of it until all is there.
        let may_be_torn = ctx.view.pg(pg).is_some_and(|state| state.is_catching(ctx.me));
        if let Some(entry) = log.unsettled.get_mut(&tag.stamp)
            && (entry.order.is_some() || !entry.inherited || !may_be_torn)
        {
            // As it was carried out: a clone may not have been possible then.
            let covered = Covered { blocks: entry.carried_out, ..covered };
            match entry.order {
                Some(_) => {
                    entry.waiting.push((from, call));
                    if entry.taken && tag.tell_taken {
                        ctx.reply(from, call, PeerReply::Taken);
                    }
                }
                None => ctx.reply(from, call, PeerReply::Done),
            }
            self.absences.note(covered);
            return Some(covered);
        }
        self.next_order += 1;
        let order = self.next_order;
        let claimed = if baseless { None } else { blocks };
        let change_of =
            |blocks| Unsettled { vid: tag.vid, stamp: tag.stamp, origin: tag.origin, oid, blocks };
        let entry = log.unsettled.entry(tag.stamp).or_insert_with(|| Entry::remembered(change_of(claimed)));
        entry.carried_out = blocks;
        entry.order = Some(order);
        entry.taken = false;
        entry.waiting.push((from, call));
        log.orders.insert(order, change_of(blocks));
        let op = ObjectOp::Change { oid, change, data, tag: Some(tag) };
        ctx.store(op, StoreUse::Change { vid: tag.vid, order, covered });
        self.absences.note(covered);
        Some(covered)
    }

    /// The store has a change in memory, of which its owner wants to know. It is listed here since it came, and a seal's answer waits for the store's.
    pub fn handle_taken(&mut self, ctx: &mut Context, vid: Vid, order: u64) {
        let Some(log) = self.vdis.get_mut(&vid) else { return };
        let Some(change) = log.orders.get(&order) else { return };
        if let Some(entry) = log.unsettled.get_mut(&change.stamp).filter(|e| e.order == Some(order)) {
            entry.taken = true;
            for (to, call) in &entry.waiting {
                ctx.reply(*to, *call, PeerReply::Taken);
            }
        }
    }

    /// The store has answered a tagged change: now, and not before, it may be acknowledged.
    pub fn handle_changed(&mut self, ctx: &mut Context, vid: Vid, order: u64, reply: ObjectReply) {
        let answer = match reply {
            ObjectReply::Done => PeerReply::Done,
            ObjectReply::Failed(failure) => PeerReply::Failed(failure),
            other => unreachable!("a change is answered by Done or Failed, not {other:?}"),
        };
        let done = answer == PeerReply::Done;
        let Some(log) = self.vdis.get_mut(&vid) else { return };
        let Some(change) = log.orders.remove(&order) else { return };
        match log.unsettled.get_mut(&change.stamp) {
            Some(entry) if entry.order == Some(order) => {
                entry.order = None;
                let waiting = std::mem::take(&mut entry.waiting);
                if answer == PeerReply::Failed(StoreFailure::NoSpace) {
                    let last = waiting.iter().map(|(_, call)| *call).max().unwrap_or(0);
                    log.refused.insert(change.stamp, last);
                }
                for (to, call) in waiting {
                    ctx.reply(to, call, answer.clone());
                }
                match (done, entry.inherited) {
                    (true, _) => entry.inherited = false,
                    (false, true) => entry.carried_out = entry.change.blocks,
                    // Nothing was changed: a repetition must be carried out.
                    (false, false) => drop(log.unsettled.remove(&change.stamp)),
                }
            }
            // It was given to the store, or has come from elsewhere, once more.
            Some(entry) if entry.in_store() == change => {}
            _ if done => self.forget_in_store(ctx, vec![change]),
            _ => {}
        }
        self.end_serving(ctx, order, done);
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
    ///
    /// It may come in pages. From the first one on nothing is added that counts, since no older change is accepted, and nothing is
    /// settled before the seal has ended; what a copy that catches up comes to list meanwhile could as well have come after the answer.
    fn handle_seal(
        &mut self,
        ctx: &mut Context,
        from: NodeId,
        call: u64,
        vid: Vid,
        generation: Generation,
        after: Option<Stamp>,
    ) {
        if ctx.view.session(vid).generation != generation {
            return ctx.reply(from, call, PeerReply::Fenced);
        }
        self.vdis.entry(vid).or_default().seals.push((from, call, after));
        self.answer_seals(ctx, vid);
    }

    fn answer_seals(&mut self, ctx: &mut Context, vid: Vid) {
        let clean = ctx.view.session(vid).clean;
        let current = ctx.view.session(vid).generation;
        let Some(log) = self.vdis.get_mut(&vid) else { return };
        if log.seals.is_empty() || log.orders.values().any(|c| c.stamp.generation < current) {
            return;
        }
        let closed = Stamp { generation: clean, seq: Seq(u64::MAX) };
        for (to, call, after) in std::mem::take(&mut log.seals) {
            let after = after.map_or(closed, |after| after.max(closed));
            let mut left = log.unsettled.range((Bound::Excluded(after), Bound::Unbounded));
            let changes: Vec<Unsettled> = left.by_ref().take(SEAL_PAGE).map(|(_, e)| e.change).collect();
            let complete = left.next().is_none();
            ctx.reply(to, call, PeerReply::Unsettled { changes, complete });
        }
    }

    /// After a start: what the store has remembered of sessions that ended cleanly since is settled, and what belongs to VDIs
    /// that were deleted meanwhile is of no account.
    pub fn forget_closed(&mut self, ctx: &mut Context) {
        for vid in self.vdis.keys().copied().collect::<Vec<_>>() {
            let clean = ctx.view.session(vid).clean;
            self.settle(ctx, vid, Stamp { generation: clean, seq: Seq(u64::MAX - 1) });
            if ctx.view.vdi(vid).is_none() {
                self.forget_vdi(ctx, vid);
            }
        }
    }

    /// The VDI is deleted: nobody will seal it again.
    pub fn forget_vdi(&mut self, ctx: &mut Context, vid: Vid) {
        if let Some(log) = self.vdis.get_mut(&vid).filter(|log| !log.unsettled.is_empty()) {
            log.unsettled.clear();
            let all = Stamp { generation: Generation(u64::MAX), seq: Seq(u64::MAX) };
            ctx.store(ObjectOp::Settle { vid, stamp: all }, StoreUse::Forget);
        }
    }
}

/// Does the object belong to a VDI that never changes?
fn is_frozen(ctx: &Context, oid: Oid) -> bool {
    let is_needed = ctx.view.vdi_or_remains(oid.vid()).is_some();
    is_needed && ctx.view.vdi(oid.vid()).is_none_or(|vdi| vdi.is_snapshot())
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
