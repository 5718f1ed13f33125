//! Changes on their way to all copies of their object.
//!
//! A change is complete when every copy that the view counts (in sync, or catching up) has it on stable storage, under
//! the PG's current `since`. Sets change under way: then all answers so far are void and the change is sent again
//! to the new set; a copy that has it already says so at once. Nothing is sent while the PG may not be written.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use proto::checksum::block_checksums;
use proto::cluster::Action;
use proto::object::{BlockRange, Change, Origin, Stamp, StoreFailure, Tag, WriteBase};
use proto::peer::{PeerReply, PeerRequest};
use proto::{NodeId, Oid, PgId, Seq, Since};

use super::Session;
use crate::Time;
use crate::context::{Context, ProposalUse, Purpose};

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
    },
}

#[derive(Clone, Debug)]
enum Copy {
    Sent { call: u64, at: Time },
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
}

impl InFlight {
    pub(super) fn is_for(&self, oid: Oid) -> bool {
        self.oid == oid
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
        if !ctx.view.is_writable(flight.pg) {
            return;
        }
        let tag = Tag {
            vid: self.vid,
            stamp: Stamp { generation: self.generation, seq },
            settled,
            origin: flight.origin,
        };
        let body = PeerRequest::Change {
            pg: flight.pg,
            since: pg.since,
            oid: flight.oid,
            change: flight.change.clone(),
            tag,
            data: flight.data.clone(),
        };
        // The others first: their way is longer than the one to this node's own disk.
        let mut nodes: Vec<NodeId> = pg.writers().collect();
        nodes.sort_by_key(|n| *n == ctx.me);
        for node in nodes {
            if let std::collections::btree_map::Entry::Vacant(e) = flight.copies.entry(node) {
                let call = ctx.call(node, body.clone(), Purpose::Copy { vid: self.vid, seq });
                e.insert(Copy::Sent { call, at: ctx.now });
            }
        }
    }

    pub fn handle_copy_reply(&mut self, ctx: &mut Context, seq: Seq, from: NodeId, reply: PeerReply) {
        let Some(flight) = self.in_flight.get_mut(&seq) else { return };
        match reply {
            PeerReply::Done => {
                flight.copies.insert(from, Copy::Done);
            }
            PeerReply::Failed(failure) => {
                flight.copies.insert(from, Copy::Failed(failure));
            }
            // The view will say more; until then it counts as not sent.
            _ => {
                flight.copies.remove(&from);
            }
        }
        self.complete_if_done(ctx, seq);
        self.run(ctx);
    }

    fn complete_if_done(&mut self, ctx: &mut Context, seq: Seq) {
        let Some(flight) = self.in_flight.get(&seq) else { return };
        let Some(pg) = ctx.view.pg(flight.pg) else { return };
        if flight.since != Some(pg.since) || !ctx.view.is_writable(flight.pg) {
            return;
        }
        let writers: Vec<NodeId> = pg.writers().collect();
        let failed_on = |n: &NodeId| match flight.copies.get(n) {
            Some(Copy::Failed(failure)) => Some(*failure),
            _ => None,
        };
        if writers.iter().all(|n| matches!(flight.copies.get(n), Some(Copy::Done))) {
            self.finish_change(ctx, seq, Ok(()));
        } else if writers.iter().all(|n| failed_on(n) == Some(StoreFailure::NoSpace)) {
            // No copy was changed, so all are still alike: the client may be told.
            self.finish_change(ctx, seq, Err(StoreFailure::NoSpace));
        } else if writers.iter().all(|n| matches!(flight.copies.get(n), Some(Copy::Done | Copy::Failed(_)))) {
            // Some have it and some cannot take it: those are dropped, or the change waits and is tried again.
            let id = flight.pg;
            let since = pg.since;
            for node in writers.iter().filter(|n| failed_on(n).is_some()) {
                ctx.propose(
                    Action::DropCopies { node: *node, pgs: vec![(id, since)] },
                    ProposalUse::DropCopies,
                );
            }
        }
    }

    fn finish_change(&mut self, ctx: &mut Context, seq: Seq, result: Result<(), StoreFailure>) {
        let flight = self.in_flight.remove(&seq).expect("looked up by the caller");
        match flight.purpose {
            ChangeUse::Task(task) => self.task_change_done(task, result),
            ChangeUse::Table(block) => self.table_write_done(ctx, block, result),
            ChangeUse::Page(page) => self.page_write_done(ctx, page, result),
            ChangeUse::Seal { attempt } => self.seal_change_done(ctx, attempt, result),
        }
    }

    /// Everything up to here is on all copies, and no gateway will ask for it again; nor is it a part of what a request has only begun:
    /// an object that is on all copies and not in the table yet is still to be found by the next owner.
    pub(super) fn settled(&self) -> Seq {
        if self.state == super::State::Sealing || !self.survived.is_empty() {
            return Seq(0);
        }
        let first_in_flight = self.in_flight.keys().next().map_or(self.next_seq.0, |s| s.0);
        let unconfirmed = self.forwarded.values().filter_map(|f| match f {
            super::Forwarded::Done { first_seq, .. } => *first_seq,
            super::Forwarded::Running { .. } => None,
        });
        let begun = self.tasks.values().filter_map(|task| task.first_seq);
        let unconfirmed = unconfirmed.chain(self.jobs.values().filter_map(|job| job.first_seq)).chain(begun);
        Seq(unconfirmed.map(|s| s.0).min().unwrap_or(u64::MAX).min(first_in_flight) - 1)
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
        for seq in self.in_flight.keys().copied().collect::<Vec<_>>() {
            let flight = self.in_flight.get_mut(&seq).expect("from the keys");
            flight.copies.retain(|_, copy| !matches!(copy, Copy::Failed(_)));
            let pg = ctx.view.pg(flight.pg).filter(|_| !ctx.view.is_writable(flight.pg));
            let blocked = pg.map(|pg| (flight.blocked.unwrap_or(ctx.now), pg));
            flight.blocked = blocked.map(|(at, _)| at);
            if let Some((_, pg)) = blocked.filter(|(at, _)| ctx.now.since(*at) > COPY_TIMEOUT) {
                // Members that did not come back with the others: the view lets go of them if enough remain.
                for node in pg.writers().filter(|n| !ctx.view.is_up(*n)) {
                    slow.entry(node).or_default().insert(flight.pg, pg.since);
                }
            }
            if let Some(since) = flight.since {
                for (node, copy) in &flight.copies {
                    let waits = matches!(copy, Copy::Sent { at, .. } if ctx.now.since(*at) > COPY_TIMEOUT);
                    if waits && *node != ctx.me {
                        slow.entry(*node).or_default().insert(flight.pg, since);
                    }
                }
            }
            self.transmit(ctx, seq);
        }
        if !ctx.is_proposed(&ProposalUse::DropCopies) {
            for (node, pgs) in slow {
                tracing::warn!(%node, vdi = %self.vid, pgs = pgs.len(), "a copy does not answer; going on without it");
                ctx.propose(
                    Action::DropCopies { node, pgs: pgs.into_iter().collect() },
                    ProposalUse::DropCopies,
                );
            }
        }
    }

    /// Lets idle copies forget what is settled; busy ones learn it from the next change.
    pub(super) fn tell_settled(&mut self, ctx: &mut Context) {
        let settled = self.settled();
        if settled == self.told_settled || !self.in_flight.is_empty() {
            return;
        }
        self.told_settled = settled;
        let stamp = Stamp { generation: self.generation, seq: settled };
        let tag = Tag { vid: self.vid, stamp, settled, origin: Origin::default() };
        for node in self.members_of_pool(ctx) {
            ctx.tell(node, PeerRequest::Settle { vid: self.vid, tag });
        }
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
