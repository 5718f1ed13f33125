//! Changes on their way to all copies of their object.
//!
//! A change is complete when every copy that the view counts (in sync, or catching up) has it on stable storage, under
//! the PG's current `since`. Sets change under way: then all answers so far are void and the change is sent again
//! to the new set; a copy that has it already says so at once. Nothing is sent while the PG may not be written.
//!
//! A copy whose disk is full refuses a change. If no copy has it, all are still alike, and the client is told. If another one has it, those that
//! refused are asked again and may take the room that stores hold back for just that ([`Tag::last_room`]). That room is for what was under way when a
//! disk became full: from then on copies on disks that are known to be full are asked first, and the others only when those have it.
//!
//! In write-back mode a client may be answered before a change is complete: when all copies that the view counts say that they have taken it into
//! memory ([`super::write_back`]). Nothing else is different: it stays under way, unsettled and with its blocks locked, until it is complete.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use proto::checksum::block_checksums;
use proto::object::{BlockRange, Change, Origin, Stamp, StoreFailure, Tag, WriteBase};
use proto::peer::{PeerReply, PeerRequest};
use proto::{NodeId, Oid, PgId, Seq, Since};

use super::Session;
use super::reads::Read;
use crate::Time;
use crate::context::{Context, Purpose};
use crate::view::Pg;

/// A copy that has not answered for this long is dropped, if enough others remain.
///
/// A disk that stalls longer than this would stall its guests; shorter hiccups (a flush of a consumer SSD, a
/// scheduler pause) pass without the price of a resync.
pub(super) const COPY_TIMEOUT: Duration = Duration::from_secs(5);

/// Who is told when a change is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChangeUse {
    Task(u64),
    Table(u32),
    /// A whole page of the table.
    Page(u32),
    Seal {
        attempt: u64,
        /// The mend, as in [`super::reads::ReadUse::Seal`].
        oid: Oid,
        first: u32,
    },
}

#[derive(Clone, Debug)]
enum Copy {
    /// `taken`: into memory, if not on stable storage yet.
    Sent {
        call: u64,
        at: Time,
        taken: bool,
    },
    Done,
    Failed(StoreFailure),
}

#[derive(Debug)]
pub(super) struct InFlight {
    oid: Oid,
    pg: PgId,
    change: Change,
    data: Bytes,
    origin: Origin,
    purpose: ChangeUse,
    /// Under which `since` the copies below were sent; `None`: not sent.
    since: Option<Since>,
    copies: BTreeMap<NodeId, Copy>,
    /// Since when it waits for a copy that is down.
    blocked: Option<Time>,
    /// Copies that may have it: it was sent to them, and they did not refuse it.
    spread: BTreeSet<NodeId>,
    /// Copies that refused it for want of room though others may have it: they may take the last room.
    cramped: BTreeSet<NodeId>,
    /// Copies are to say when they have taken it.
    tell_taken: bool,
    /// The client was told that it is done: it may not be refused any more, whatever becomes of copies that have taken it.
    is_promised: bool,
}

impl InFlight {
    /// Whom to send it to now. While nobody else may have it, copies on full disks come first.
    fn to_ask(&self, pg: &Pg, full_disks: &BTreeMap<NodeId, Time>, me: NodeId) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = pg.writers().collect();
        let has_it = |n: &NodeId| matches!(self.copies.get(n), Some(Copy::Done));
        let is_doubtful = |n: &NodeId| full_disks.contains_key(n) && !pg.is_catching(*n) && !has_it(n);
        let takes_room = matches!(self.change, Change::Write { .. }) && self.cramped.is_empty();
        let is_spread = self.spread.iter().any(|n| !full_disks.contains_key(n));
        // Some full disks had room for it and others had not: nothing is gained by waiting.
        let is_mixed = self.copies.keys().any(has_it)
            && self.copies.values().any(|copy| matches!(copy, Copy::Failed(_)));
        if takes_room && !is_spread && !is_mixed && nodes.iter().any(is_doubtful) {
            nodes.retain(is_doubtful);
        }
        // The others first: their way is longer than the one to this node's own disk.
        nodes.sort_by_key(|n| *n == me);
        nodes
    }

    /// Does it tell that this copy's disk has room again, that it took the change? An overwrite does not.
    fn shows_room(&self, node: NodeId) -> bool {
        let needs_room =
            matches!(self.change, Change::Write { base: WriteBase::Empty | WriteBase::CloneOf(_), .. });
        needs_room && !self.cramped.contains(&node)
    }

    /// Have all that were asked refused it for want of room, and may they?
    fn is_refused(&self) -> bool {
        let refuses = |copy: &Copy| matches!(copy, Copy::Failed(StoreFailure::NoSpace));
        !self.is_promised && !self.copies.is_empty() && self.copies.values().all(refuses)
    }
}

impl Session {
    /// Numbers a change and sends it.
    pub(super) fn send_change(
        &mut self,
        ctx: &mut Context,
        oid: Oid,
        change: Change,
        data: Bytes,
        origin: Origin,
        purpose: ChangeUse,
    ) -> Seq {
        let seq = self.next_seq;
        self.next_seq = Seq(seq.0 + 1);
        let pg = ctx.view.pg_of(oid).expect("the VDI of a session has a pool");
        let tell_taken = self.wants_taken(&change, purpose);
        let in_flight = InFlight {
            oid,
            pg,
            change,
            data,
            origin,
            purpose,
            since: None,
            copies: BTreeMap::new(),
            blocked: None,
            spread: BTreeSet::new(),
            cramped: BTreeSet::new(),
            tell_taken,
            is_promised: false,
        };
        self.in_flight.insert(seq, in_flight);
        self.transmit(ctx, seq);
        seq
    }

    pub(super) fn send_write(
        &mut self,
        ctx: &mut Context,
        oid: Oid,
        blocks: BlockRange,
        data: Bytes,
        base: WriteBase,
        origin: Origin,
        purpose: ChangeUse,
    ) -> Seq {
        let change = Change::Write { blocks, checksums: block_checksums(&data), base };
        self.send_change(ctx, oid, change, data, origin, purpose)
    }

    /// Sends a change to every copy that has not got it under the current `since`.
    fn transmit(&mut self, ctx: &mut Context, seq: Seq) {
        let settled = self.settled();
        let may_take_last_room = self.may_take_last_room(seq);
        let Some(flight) = self.in_flight.get_mut(&seq) else { return };
        let Some(pg) = ctx.view.pg(flight.pg) else { return };
        if flight.since != Some(pg.since) {
            for copy in flight.copies.values() {
                if let Copy::Sent { call, .. } = copy {
                    ctx.out.calls.remove(call);
                }
            }
            flight.copies.clear();
            flight.since = Some(pg.since);
        }
        // The usual case when an answer has come: nobody is left to be asked.
        if pg.writers().all(|n| flight.copies.contains_key(&n)) || !ctx.view.is_writable(flight.pg) {
            return;
        }
        let tag = Tag {
            vid: self.vid,
            stamp: Stamp { generation: self.generation, seq },
            settled,
            origin: flight.origin,
            last_room: false,
            tell_taken: flight.tell_taken,
        };
        let body = |last_room| PeerRequest::Change {
            pg: flight.pg,
            since: pg.since,
            oid: flight.oid,
            change: flight.change.clone(),
            tag: Tag { last_room, ..tag },
            data: flight.data.clone(),
        };
        if may_take_last_room {
            flight.cramped.extend(pg.writers());
        }
        let nodes = flight.to_ask(pg, &ctx.out.full_disks, ctx.me);
        let mut sent = Vec::new();
        for node in nodes.into_iter().filter(|node| !flight.copies.contains_key(node)) {
            let body = body(flight.cramped.contains(&node));
            let call = ctx.call(node, body, Purpose::Copy { vid: self.vid, seq });
            sent.push((node, Copy::Sent { call, at: ctx.now, taken: false }));
        }
        flight.spread.extend(sent.iter().map(|(node, _)| *node));
        flight.copies.extend(sent);
    }

    /// What a seal or a check copies, another copy has already, and without a seal nothing of the VDI can be read. A block of the table says
    /// what is on all copies by then: an owner that goes on without having written it shows what the next one would not know of.
    ///
    /// So does a change of which the client was told: a copy that has lost it with its process may find its disk full when it is back.
    fn may_take_last_room(&self, seq: Seq) -> bool {
        let mends = |task: &u64| self.tasks.get(task).is_some_and(|task| task.is_check());
        let is_promised = |flight: &InFlight| flight.is_promised;
        self.state == super::State::Sealing
            || self.in_flight.get(&seq).is_some_and(is_promised)
            || match self.in_flight.get(&seq).map(|flight| flight.purpose) {
                Some(ChangeUse::Table(_) | ChangeUse::Page(_) | ChangeUse::Seal { .. }) => true,
                Some(ChangeUse::Task(task)) => mends(&task),
                None => false,
            }
    }

    pub fn handle_copy_reply(&mut self, ctx: &mut Context, seq: Seq, from: NodeId, reply: PeerReply) {
        let Some(flight) = self.in_flight.get_mut(&seq) else { return };
        match reply {
            PeerReply::Done => {
                flight.copies.insert(from, Copy::Done);
                if flight.shows_room(from) {
                    ctx.out.full_disks.remove(&from);
                }
            }
            PeerReply::Failed(failure) => {
                flight.copies.insert(from, Copy::Failed(failure));
                if failure == StoreFailure::NoSpace {
                    // Nothing was changed there.
                    flight.spread.remove(&from);
                    ctx.out.full_disks.insert(from, ctx.now);
                }
            }
            // The view will say more; until then it counts as not sent.
            _ => {
                flight.copies.remove(&from);
                self.complete_if_done(ctx, seq);
                return self.run(ctx);
            }
        }
        // It may have been asked before the others.
        self.transmit(ctx, seq);
        self.complete_if_done(ctx, seq);
        self.answer_if_taken(ctx, seq);
        self.run(ctx);
    }

    /// A copy has it in memory; its answer is still to come.
    pub fn handle_copy_taken(&mut self, ctx: &mut Context, seq: Seq, from: NodeId) {
        let copy = self.in_flight.get_mut(&seq).and_then(|flight| flight.copies.get_mut(&from));
        if let Some(Copy::Sent { taken, .. }) = copy {
            *taken = true;
            self.answer_if_taken(ctx, seq);
        }
    }

    /// Is it in memory, or on stable storage, of every copy that the view counts? As the view is now: what a copy has taken and lost with
    /// its process, or what was taken by an older set, is not.
    pub(super) fn is_taken(&self, ctx: &Context, seq: Seq) -> bool {
        let Some(flight) = self.in_flight.get(&seq).filter(|flight| flight.tell_taken) else { return false };
        let Some(pg) = ctx.view.pg(flight.pg) else { return false };
        flight.since == Some(pg.since)
            && ctx.view.is_writable(flight.pg)
            && pg
                .writers()
                .all(|n| matches!(flight.copies.get(&n), Some(Copy::Done | Copy::Sent { taken: true, .. })))
    }

    pub(super) fn promise(&mut self, seq: Seq) {
        let flight = self.in_flight.get_mut(&seq).expect("seen by the caller");
        flight.is_promised = true;
    }

    /// Of a change that is under way.
    pub(super) fn bytes_in_flight(&self, seq: Seq) -> Option<usize> {
        self.in_flight.get(&seq).map(|flight| flight.data.len())
    }

    pub(super) fn task_of_change(&self, seq: Seq) -> Option<u64> {
        match self.in_flight.get(&seq)?.purpose {
            ChangeUse::Task(task) => Some(task),
            _ => None,
        }
    }

    fn complete_if_done(&mut self, ctx: &mut Context, seq: Seq) {
        let Some(flight) = self.in_flight.get(&seq) else { return };
        let Some(pg) = ctx.view.pg(flight.pg) else { return };
        // Under this `since` only writers were asked, so each of them has answered once nobody is waited for.
        let is_waiting = flight.copies.values().any(|copy| matches!(copy, Copy::Sent { .. }));
        if is_waiting || flight.since != Some(pg.since) || !ctx.view.is_writable(flight.pg) {
            return;
        }
        let writers: Vec<NodeId> = pg.writers().collect();
        let failed_on = |n: &NodeId| match flight.copies.get(n) {
            Some(Copy::Failed(failure)) => Some(*failure),
            _ => None,
        };
        if writers.iter().all(|n| matches!(flight.copies.get(n), Some(Copy::Done))) {
            self.finish_change(ctx, seq, Ok(()));
        } else if flight.is_refused() && !writers.iter().any(|n| flight.spread.contains(n)) {
            // No copy was changed, so all are still alike: the client may be told.
            self.finish_change(ctx, seq, Err(StoreFailure::NoSpace));
        } else if writers.iter().all(|n| matches!(flight.copies.get(n), Some(Copy::Done | Copy::Failed(_)))) {
            // Some have it and some cannot take it: those find room after all or are dropped, or the change waits and is tried again.
            let id = flight.pg;
            let since = pg.since;
            let lacks_room =
                |n: &&NodeId| failed_on(n) == Some(StoreFailure::NoSpace) && !pg.is_catching(**n);
            let cramped: BTreeSet<NodeId> =
                writers.iter().filter(lacks_room).filter(|n| !flight.cramped.contains(n)).copied().collect();
            if !cramped.is_empty() {
                let flight = self.in_flight.get_mut(&seq).expect("seen above");
                flight.copies.retain(|node, _| !cramped.contains(node));
                flight.cramped.extend(cramped);
                return self.transmit(ctx, seq);
            }
            for node in writers.iter().filter(|n| failed_on(n).is_some()) {
                ctx.drop_copies(*node, vec![(id, since)]);
            }
        }
    }

    fn finish_change(&mut self, ctx: &mut Context, seq: Seq, result: Result<(), StoreFailure>) {
        let flight = self.in_flight.remove(&seq).expect("looked up by the caller");
        match flight.purpose {
            ChangeUse::Task(task) => self.task_change_done(task, result),
            ChangeUse::Table(block) => self.table_write_done(ctx, block, result),
            ChangeUse::Page(page) => self.page_write_done(ctx, page, result),
            ChangeUse::Seal { attempt, oid, first } => {
                self.seal_change_done(ctx, attempt, (oid, first), result)
            }
        }
    }

    pub(super) fn replan_changes(&mut self, ctx: &mut Context) {
        for seq in self.in_flight.keys().copied().collect::<Vec<_>>() {
            let flight = &self.in_flight[&seq];
            // A copy that went down took its call with it.
            let lost: Vec<(NodeId, u64)> = flight
                .copies
                .iter()
                .filter_map(|(n, c)| match c {
                    Copy::Sent { call, .. } if !ctx.view.is_up(*n) => Some((*n, *call)),
                    _ => None,
                })
                .collect();
            for (node, call) in lost {
                ctx.out.calls.remove(&call);
                self.in_flight.get_mut(&seq).expect("just seen").copies.remove(&node);
            }
            self.transmit(ctx, seq);
            self.complete_if_done(ctx, seq);
        }
    }

    /// Copies that do not answer are dropped; those that could not take a change are asked again.
    pub(super) fn retry_changes(&mut self, ctx: &mut Context) {
        let mut slow: BTreeMap<NodeId, BTreeMap<PgId, Since>> = BTreeMap::new();
        let mut missing: BTreeSet<NodeId> = BTreeSet::new();
        for seq in self.in_flight.keys().copied().collect::<Vec<_>>() {
            let flight = self.in_flight.get_mut(&seq).expect("from the keys");
            flight.copies.retain(|_, copy| !matches!(copy, Copy::Failed(_)));
            let pg = ctx.view.pg(flight.pg).filter(|_| !ctx.view.is_writable(flight.pg));
            let blocked = pg.map(|pg| (flight.blocked.unwrap_or(ctx.now), pg));
            flight.blocked = blocked.map(|(at, _)| at);
            if let Some((_, pg)) = blocked.filter(|(at, _)| ctx.now.since(*at) > COPY_TIMEOUT) {
                // Members that did not come back with the others.
                missing.extend(pg.writers().filter(|n| !ctx.view.is_up(*n)));
            }
            if let Some(since) = flight.since {
                for (node, copy) in &flight.copies {
                    let waits = matches!(copy, Copy::Sent { at, .. }
                        if ctx.now.since(*at) > COPY_TIMEOUT || ctx.is_silent(*node));
                    if waits && *node != ctx.me {
                        slow.entry(*node).or_default().insert(flight.pg, since);
                    }
                }
            }
            self.transmit(ctx, seq);
        }
        // The view lets go of them if enough remain. Of all they hold, as if they had died alone: else the first write to each PG would wait as long.
        for node in missing {
            slow.entry(node)
                .or_default()
                .extend(ctx.view.pgs_of(node).filter(|(id, since)| ctx.view.may_drop(node, *id, *since)));
        }
        slow.retain(|_, pgs| !pgs.is_empty());
        // Whoever hears from nobody would drop those that can go on.
        if !slow.is_empty() && !ctx.is_cut_off() {
            for (node, pgs) in slow {
                let count = pgs.len();
                if ctx.drop_copies(node, pgs.into_iter().collect()) {
                    tracing::warn!(%node, vdi = %self.vid, pgs = count, "a copy does not answer; going on without it");
                }
            }
        }
    }

    /// Can something that was begun not end before copies are back that are not there? A change of a PG that takes none, or a read that no
    /// copy can be asked for.
    pub(super) fn waits_for_copies(&self, ctx: &Context) -> bool {
        self.in_flight.values().any(|flight| !ctx.view.is_writable(flight.pg))
            || self.reads.values().any(Read::asks_nobody)
    }

    /// Everybody that may hold a copy of one of this VDI's objects.
    pub(super) fn members_of_pool(&self, ctx: &Context) -> Vec<NodeId> {
        let Some(vdi) = ctx.view.vdi(self.vid) else { return Vec::new() };
        let pool = &ctx.view.pools()[usize::from(vdi.pool.0)];
        let mut nodes: Vec<NodeId> = pool.pgs.iter().flat_map(|pg| pg.writers()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }
}
