//! One sheep's logic as a value: takes events and the time, offers effects.
//!
//! The order inside one event is fixed: the event goes to the part it concerns, then messages of the node to itself are
//! handled until there are none. Everything else that follows is an effect for the shell.

mod failed_disk;
mod following;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use proto::client::{CacheUse, ClientError, ClientOp, ClientReply, ClusterOp};
use proto::cluster::{Action, LogEntry, MemberInfo};
use proto::object::{ObjectReply, Origin, StoreFailure, Unsettled};
use proto::peer::{PeerMessage, PeerReply, PeerRequest};
use proto::{Epoch, Incarnation, NodeId, PgId, RequestId, Vid, ViewVersion};

use crate::catchup::{CatchUp, Progress};
use crate::chronicle::Chronicle;
use crate::context::{Call, Context, Out, ProposalUse, Purpose, StoreUse, Submitted};
use crate::gateway::{Gateway, Sessions};
use crate::overdue::Overdue;
use crate::parts::{Parts, all_pgs, answer_list, is_forwardable};
use crate::reclaim::Reclaim;
use crate::replica::Replica;
use crate::scrub::Scrub;
use crate::session::{Inner, Request, Requester, Session};
use crate::sweep::{Sweep, Sweeps};
use crate::view::{Applied, Life, Outcome, Refusal, View};
use crate::{Effect, Ticket, Time};

/// How often waiting things are looked at again. Nothing depends on it but how soon a lost opportunity is noticed.
const TICK: Duration = Duration::from_millis(100);
/// A call without an answer for this long is sent again; repeats are harmless.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// Messages of peers whose view is ahead that are kept until this node's has caught up. Beyond, the sender
/// is told to ask again.
const PARKED_MAX: usize = 4096;

pub struct NodeConfig {
    /// What this sheep says of itself when it joins; the driver was given the same.
    pub member: MemberInfo,
    /// Memory for blocks of snapshots. 0: none.
    pub cache_bytes: u64,
    /// Changes of a VDI that may gather before copies are told one by one which of them they may forget: [`GATHERED_MAX`], unless one wants to see that
    /// happen.
    pub gathered_max: u64,
}

pub struct Node {
    me: NodeId,
    life: u64,
    incarnation: Option<Incarnation>,
    /// `ctime` of the format that the objects in the store belong to, as the shell has kept it.
    formatted: Option<u64>,
    view: View,
    out: Out,
    sessions: Sessions,
    replica: Replica,
    gateway: Gateway,
    catch_up: CatchUp,
    sweeps: Sweeps,
    reclaim: Reclaim,
    overdue: Overdue,
    scrub: Scrub,
    chronicle: Chronicle,
    /// Messages that need a newer view.
    parked: BTreeMap<ViewVersion, VecDeque<(NodeId, PeerMessage)>>,
    parked_count: usize,
    /// Clients' requests from before this node had joined.
    early: Vec<(RequestId, ClientOp)>,
    /// Objects of an earlier format are being removed: no copy is served or changed.
    wiping: bool,
    store_id: u64,
    /// The store answers nothing any more: this node goes on as a gateway. See `without_disk`.
    disk_failed: bool,
    sweep_wanted: bool,
    /// Cut off or expelled: does nothing any more.
    halted: bool,
    /// Why the cluster did not take this node in.
    refused: Option<Refusal>,
    next_tick: Time,
}

impl Node {
    /// A node with what its store has recovered: changes that may be missing on other copies.
    pub fn new(config: NodeConfig, unsettled: Vec<Unsettled>) -> Node {
        Node {
            me: config.member.id,
            life: config.member.life,
            incarnation: None,
            formatted: config.member.formatted,
            view: View::default(),
            out: Out::new(&config),
            sessions: Sessions::new(),
            replica: Replica::new(unsettled),
            gateway: Gateway::default(),
            catch_up: CatchUp::default(),
            sweeps: Sweeps::default(),
            reclaim: Reclaim::default(),
            overdue: Overdue::default(),
            scrub: Scrub::new(config.member.life, config.member.store_id),
            chronicle: Chronicle::default(),
            parked: BTreeMap::new(),
            parked_count: 0,
            early: Vec::new(),
            wiping: false,
            store_id: config.member.store_id,
            disk_failed: false,
            sweep_wanted: false,
            halted: false,
            refused: None,
            next_tick: Time(0),
        }
    }

    pub fn view(&self) -> &View {
        &self.view
    }

    pub fn epoch(&self) -> Epoch {
        self.view.epoch()
    }

    /// PGs this node is catching up on.
    pub fn pgs_behind(&self) -> u32 {
        self.catch_up.pgs_behind()
    }

    /// What this node has fetched from other copies in this life, in bytes.
    pub fn fetched_bytes(&self) -> u64 {
        self.catch_up.fetched().bytes
    }

    pub fn cache_use(&self) -> CacheUse {
        self.out.cache.usage()
    }

    /// How far it has come with what it lacks.
    pub fn progress(&self) -> Progress {
        self.catch_up.progress(&self.view, self.me)
    }

    /// Has this node joined, and is it neither cut off nor expelled?
    pub fn is_member(&self) -> bool {
        self.incarnation.is_some() && !self.halted
    }

    /// Why the cluster did not take this node in.
    pub fn refused(&self) -> Option<Refusal> {
        self.refused
    }

    /// The view in bytes, from which another node can go on.
    pub fn snapshot(&self) -> (ViewVersion, Bytes) {
        let bytes = postcard::to_stdvec(&self.view).expect("a view has no unencodable parts");
        (self.view.version(), bytes.into())
    }

    /// Starts from a snapshot. Only before the first entry.
    pub fn handle_snapshot(&mut self, version: ViewVersion, bytes: &[u8]) -> Result<(), SnapshotError> {
        let view: View = postcard::from_bytes(bytes).map_err(SnapshotError::Malformed)?;
        if view.version() != version {
            return Err(SnapshotError::Version { expected: version, got: view.version() });
        }
        self.view = view;
        self.out.cache.clear();
        Ok(())
    }

    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.out.effects.pop_front()
    }

    /// When `handle_timeout` should be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        let wishes = self.catch_up.resumes_at(&self.view).into_iter().chain(self.scrub.wakes_at());
        (!self.halted).then(|| wishes.fold(self.next_tick, Time::min))
    }

    /// The quorum cannot be reached. Others may be about to go on without this node, so it stops answering at once;
    /// the shell starts a new node, which joins again.
    pub fn handle_quorum_lost(&mut self, _now: Time) {
        self.halt();
    }

    fn halt(&mut self) {
        self.halted = true;
        self.out.effects.clear();
        self.out.to_self.clear();
        self.out.effects.push_back(Effect::Stop);
    }

    /// Applies the next entry of the total order.
    pub fn handle_log(&mut self, entry: LogEntry, now: Time) {
        if self.halted {
            return;
        }
        if changes_snapshots(&entry) {
            self.out.cache.clear();
        }
        let applied = self.view.apply(&entry);
        match self.incarnation {
            None if self.is_own_join(&entry) && applied.refused.is_some() => {
                self.refused = applied.refused;
                return self.halt();
            }
            None if self.is_own_join(&entry) => {
                self.incarnation = Some(Incarnation(entry.version.0));
                self.with(now, |node, ctx| node.chronicle.begin(ctx, &entry, node.catch_up.fetched()));
                self.joined(now);
            }
            // The backlog: nothing is done before this node is a member.
            None => return,
            Some(incarnation) if !self.view.is_alive(self.me, incarnation) => {
                tracing::error!("the cluster goes on without this sheep; stopping");
                return self.halt();
            }
            Some(_) => {
                self.with(now, |node, ctx| {
                    node.chronicle.handle_entry(ctx, &entry, &applied, node.catch_up.fetched());
                });
                self.follow(applied, now);
            }
        }
        self.unpark(now);
        self.settle_down(now);
    }

    fn is_own_join(&self, entry: &LogEntry) -> bool {
        use proto::cluster::ClusterEvent;
        matches!(&entry.event, ClusterEvent::Join(info) if info.id == self.me && info.life == self.life)
    }

    fn joined(&mut self, now: Time) {
        let all: Vec<PgId> = all_pgs(&self.view);
        self.tell_disk_failed(now);
        let has_disk = !self.disk_failed;
        self.check_format(now);
        // Objects whose VDI was deleted while this node was away.
        self.sweep_wanted = true;
        self.with(now, |node, ctx| {
            // First what this copy remembers and others may lack is noted, where it has left the sets; then it may be forgotten.
            if has_disk {
                node.catch_up.handle_view(ctx, node.replica, &all);
            }
            node.replica.forget_closed(ctx);
        });
        self.take_up_reclaiming(now);
        for (request, op) in std::mem::take(&mut self.early) {
            self.take_request(request, op, now);
        }
    }

    /// Removes everything if the store belongs to an earlier format: its vids may be given again.
    fn check_format(&mut self, now: Time) {
        let Some(format) = self.view.format() else { return };
        // What is on a failed disk is not served; and should it come back, it has no mark of this format.
        if self.formatted == Some(format.ctime) || self.disk_failed {
            return;
        }
        if !self.wiping {
            self.wiping = true;
            self.with(now, |node, ctx| {
                node.replica.forget_all(ctx);
                node.sweeps.start(ctx, Sweep::Wipe, None);
            });
        }
        self.end_wipe(now);
    }

    /// Remembers the format only when nothing older is left, and serves only what comes after.
    fn end_wipe(&mut self, now: Time) {
        let forgetting = self.out.tickets.values().any(|submitted| submitted.purpose == StoreUse::Wiped);
        if !self.wiping || self.sweeps.is_running(Sweep::Wipe) || forgetting {
            return;
        }
        let Some(ctime) = self.view.format().map(|f| f.ctime) else { return };
        self.wiping = false;
        self.formatted = Some(ctime);
        self.out.effects.push_back(Effect::RememberFormat { ctime });
        self.unpark(now);
    }

    /// A message of a peer. `from` is who the link says it is.
    pub fn handle_peer(&mut self, from: NodeId, message: PeerMessage, now: Time) {
        if self.halted {
            return;
        }
        self.receive(from, message, now);
        self.settle_down(now);
    }

    fn receive(&mut self, from: NodeId, message: PeerMessage, now: Time) {
        match message {
            PeerMessage::Request { id, version, life, body } => {
                if self.incarnation.is_some_and(|own| own != life) {
                    // It has been on its way since an earlier life of this sheep. Whoever still waits asks again.
                    return;
                }
                if matches!(body, PeerRequest::Ping) && self.incarnation.is_some() {
                    // A sign of life needs neither a view nor a store.
                    return self.handle_request(from, id, version, body, now);
                }
                let needs_view = version > self.view.version() || self.incarnation.is_none();
                if !needs_view && !self.wiping {
                    return self.handle_request(from, id, version, body, now);
                }
                if self.parked_count >= PARKED_MAX {
                    let current = self.view.version();
                    return self
                        .with(now, |_, ctx| ctx.reply(from, id, PeerReply::OldView { version: current }));
                }
                self.parked_count += 1;
                let message = PeerMessage::Request { id, version, life, body };
                self.parked.entry(version).or_default().push_back((from, message));
            }
            PeerMessage::Reply { id, body } => self.handle_reply(from, id, body, now),
        }
    }

    fn unpark(&mut self, now: Time) {
        if self.incarnation.is_none() || self.wiping {
            return;
        }
        while let Some(entry) = self.parked.first_entry() {
            if *entry.key() > self.view.version() {
                return;
            }
            for (from, message) in entry.remove() {
                self.parked_count -= 1;
                self.receive(from, message, now);
            }
        }
    }

    fn handle_request(&mut self, from: NodeId, id: u64, version: ViewVersion, body: PeerRequest, now: Time) {
        self.with(now, |node, ctx| match body {
            PeerRequest::Ping => ctx.reply(from, id, PeerReply::Done),
            PeerRequest::Purge { vid, indexes, keep, table } => {
                // Only what the view calls deleted is removed, whoever asks.
                if ctx.view.vdi(vid).is_some() || !ctx.view.vdis().contains_key(&vid) {
                    return ctx.reply(from, id, PeerReply::OldView { version: ctx.view.version() });
                }
                node.sweeps.purge(ctx, vid, indexes, keep, table, Some((from, id)));
            }
            PeerRequest::Yield { vid } => {
                if node.sessions.contains_key(&vid) {
                    node.gateway.closed.insert(vid);
                }
            }
            PeerRequest::Forward { origin, generation, mut op, data } => {
                // With a gateway's life ends what was remembered of its requests, so a late copy of one must not count.
                if !ctx.view.is_alive(from, origin.incarnation) {
                    return;
                }
                op.set_payload(data);
                let requester = Requester::Gateway { node: from, call: id };
                if !is_forwardable(&op) {
                    let result = Err(ClientError::InvalidParameters);
                    let request = origin.request;
                    return ctx.reply(from, id, PeerReply::Client { request, result, data: Bytes::new() });
                }
                let request = Request { requester, origin, op };
                node.gateway.route_forwarded(ctx, node.sessions, generation, request);
            }
            PeerRequest::Recall { incarnation, mut requests } => {
                requests.retain(|id| {
                    let id = RequestId(*id);
                    !node.gateway.awaits(id) && !node.sessions.values().any(|s| s.has_local(id))
                });
                if incarnation == ctx.incarnation && !requests.is_empty() {
                    ctx.tell(from, PeerRequest::Confirm { incarnation, requests });
                }
            }
            PeerRequest::Confirm { incarnation, requests } => {
                node.sessions.values_mut().for_each(|s| s.handle_confirm(incarnation, &requests));
            }
            // What this copy lacks may have gone with its VDI. Who compares copies is to know of that first.
            PeerRequest::Verify { oid, .. }
                if version < ctx.view.version() && ctx.view.vdi(oid.vid()).is_none() =>
            {
                ctx.reply(from, id, PeerReply::OldView { version: ctx.view.version() });
            }
            mut body => {
                let lacking = node.catch_up.lacks_base_of(ctx, &mut body);
                if let Some(covered) = node.replica.handle_request(ctx, from, id, body, lacking.is_some()) {
                    if let Some(base) = lacking.filter(|_| covered.blocks.is_some()) {
                        node.catch_up.handle_cloned(covered, base);
                    }
                    node.catch_up.handle_covered(covered);
                }
            }
        });
    }

    fn handle_reply(&mut self, from: NodeId, id: u64, body: PeerReply, now: Time) {
        // What this node answers itself does not tell that others hear it.
        if from != self.me {
            self.out.reach.handle_answer(from, now);
        }
        let incarnation = self.incarnation.unwrap_or_default();
        self.with(now, |node, ctx| {
            let known = ctx.out.calls.get(&id).is_some_and(|c| c.to == from);
            if let PeerReply::Client { request, .. } = &body {
                let request = *request;
                if !known && !node.gateway.take_late_answer(ctx, request, &body) {
                    // It is under way elsewhere; what this sheep remembers of it may still be needed.
                    return;
                }
                // Confirmed each time: the owner asks until it hears.
                ctx.tell(from, PeerRequest::Confirm { incarnation, requests: vec![request.0] });
            }
            if !known {
                return;
            }
            if body == PeerReply::Taken {
                // The answer is still to come.
                if let Purpose::Copy { vid, seq } = ctx.out.calls[&id].purpose
                    && let Some(session) = node.sessions.get_mut(&vid)
                {
                    session.handle_copy_taken(ctx, seq, from);
                }
                return;
            }
            let call = ctx.out.calls.remove(&id).expect("just seen");
            match call.purpose {
                Purpose::Copy { vid, seq } => {
                    if let Some(session) = node.sessions.get_mut(&vid) {
                        session.handle_copy_reply(ctx, seq, from, body);
                    }
                }
                Purpose::Read { vid, read } => {
                    if let Some(session) = node.sessions.get_mut(&vid) {
                        session.handle_read_reply(ctx, read, from, body);
                    }
                }
                Purpose::Seal { vid } => {
                    if let Some(session) = node.sessions.get_mut(&vid) {
                        session.handle_seal_reply(ctx, from, body);
                    }
                }
                Purpose::Purge { job, vid } => node.reclaim.handle_purged(ctx, job, vid, from),
                Purpose::Inner { to, vid } => {
                    let result = match body {
                        PeerReply::Client { mut result, data, .. } => {
                            if let Ok(reply) = &mut result {
                                reply.set_payload(data);
                            }
                            result
                        }
                        // Its owner has changed: whoever asked asks again.
                        _ => Err(ClientError::Busy),
                    };
                    tracing::trace!(%vid, "an inner question is answered");
                    ctx.out.inner.push_back(Inner::Done { to, result });
                }
                Purpose::Forward { request } => {
                    node.gateway.handle_forward_reply(ctx, node.sessions, request, body)
                }
                Purpose::List { round } => node.catch_up.handle_list_reply(ctx, node.replica, round, body),
                Purpose::Changed { round } => {
                    node.catch_up.handle_changed_reply(ctx, node.replica, round, body)
                }
                Purpose::Recorded { comparison } => node.scrub.handle_recorded(ctx, comparison, from, body),
                Purpose::Length(asked) => node.catch_up.handle_length_reply(ctx, node.replica, asked, body),
                Purpose::Fetch { asked, blocks } => {
                    node.catch_up.handle_fetch_reply(ctx, node.replica, asked, blocks, body)
                }
            }
        });
    }

    /// The link to a peer was lost and with it whatever was under way: everything unanswered is asked again.
    pub fn handle_link_reset(&mut self, peer: NodeId, now: Time) {
        if self.halted {
            return;
        }
        self.with(now, |_, ctx| {
            let again: Vec<u64> =
                ctx.out.calls.iter().filter(|(_, c)| c.to == peer).map(|(id, _)| *id).collect();
            if ctx.view.is_up(peer) {
                again.into_iter().for_each(|id| ctx.resend(id));
            }
        });
        self.settle_down(now);
    }

    /// The store has answered.
    pub fn handle_store(&mut self, ticket: Ticket, reply: ObjectReply, now: Time) {
        if self.halted {
            return;
        }
        if reply == ObjectReply::Taken {
            return self.handle_taken(ticket, now);
        }
        let Some(Submitted { purpose, at, kind, beside }) = self.out.tickets.remove(&ticket) else { return };
        if let Some(kind) = kind {
            self.out.strain.note(now.since(at), kind, beside);
        } else if purpose.is_repair() {
            self.out.strain.note_repaired();
        }
        if self.disk_failed || reply == ObjectReply::Failed(StoreFailure::DiskFailed) {
            // The shell may not have said so yet; but nothing may end, a wipe for instance, as if this had been done.
            self.handle_disk_failed(now);
            self.without_disk(purpose, now);
            return self.settle_down(now);
        }
        self.with(now, |node, ctx| {
            if let ObjectReply::Failed(StoreFailure::Corrupt { oid, block }) = &reply {
                node.scrub.handle_corrupt(ctx, *oid, *block);
            }
            match purpose {
                StoreUse::Change { vid, order, covered } => {
                    let failed = matches!(reply, ObjectReply::Failed(_));
                    node.replica.handle_changed(ctx, vid, order, reply);
                    if failed {
                        node.catch_up.handle_not_covered(ctx, node.replica, covered);
                    }
                    node.catch_up.handle_answered(ctx, node.replica, order);
                }
                StoreUse::Fetch { fetch } => node.replica.handle_fetch_read(ctx, fetch, reply),
                StoreUse::Forgotten { pg } => {
                    node.replica.handle_forgotten(pg);
                    node.catch_up.propose_finish(ctx, node.replica);
                }
                StoreUse::Answer { to, call } | StoreUse::AnswerScrub { to, call } => {
                    let body = match reply {
                        ObjectReply::Data { data, checksums } => PeerReply::Data { data, checksums },
                        ObjectReply::Absent => PeerReply::Absent,
                        ObjectReply::Verified(verified) => PeerReply::Verified(verified),
                        ObjectReply::Checksums(checksums) => PeerReply::Checksums(checksums),
                        ObjectReply::Done => PeerReply::Done,
                        ObjectReply::Differing(blocks) => PeerReply::Differing(blocks),
                        ObjectReply::Failed(failure) => PeerReply::Failed(failure),
                        other => unreachable!("not an answer to a read: {other:?}"),
                    };
                    ctx.reply(to, call, body);
                }
                StoreUse::ListFor { to, call, pgs, first } => {
                    answer_list(ctx, node.replica, to, call, &pgs, first, reply)
                }
                StoreUse::SweepList { job } => {
                    if let ObjectReply::Objects(objects) = reply {
                        let doomed = node.sweeps.handle_listed(ctx, job, objects);
                        for oid in doomed {
                            node.replica.note_removed(ctx, oid);
                            node.catch_up.handle_purged(ctx, oid);
                        }
                    }
                }
                StoreUse::SweepDelete { job } => {
                    node.sweeps.handle_deleted(ctx, job);
                }
                StoreUse::OwnList { pgs } => {
                    if let ObjectReply::Objects(objects) = reply {
                        node.catch_up.handle_own_list(ctx, &pgs, objects);
                    }
                    node.catch_up.advance(ctx, node.replica);
                }
                StoreUse::OwnLength(asked) => {
                    node.catch_up.handle_own_length(ctx, node.replica, asked, reply);
                }
                StoreUse::OwnBlock { asked, block, recorded } => {
                    node.catch_up.handle_own_block(ctx, node.replica, asked, (block, recorded), reply);
                }
                StoreUse::Backfill { pg, oid, started } => {
                    node.catch_up.handle_backfilled(ctx, node.replica, pg, oid, started, reply);
                }
                StoreUse::Client { request } => node.gateway.handle_store(ctx, request, reply),
                StoreUse::Scrub(purpose) => node.scrub.handle_store(ctx, purpose, reply),
                StoreUse::Wiped | StoreUse::Forget => {}
            }
        });
        self.end_wipe(now);
        self.settle_down(now);
    }

    /// The store has a change in memory; it will answer when that is durable.
    fn handle_taken(&mut self, ticket: Ticket, now: Time) {
        if let Some(StoreUse::Change { vid, order, .. }) = self.out.tickets.get(&ticket).map(|s| &s.purpose)
            && !self.disk_failed
        {
            let (vid, order) = (*vid, *order);
            self.with(now, |node, ctx| node.replica.handle_taken(ctx, vid, order));
            self.settle_down(now);
        }
    }

    /// Was a client of one of this node's VDIs answered before its write was durable everywhere, and is it not yet?
    pub fn owes_durability(&self) -> bool {
        self.sessions.values().any(|session| session.owes_durability())
    }

    /// A request of a client of this sheep. `request` is new.
    pub fn handle_client(&mut self, request: RequestId, op: ClientOp, now: Time) {
        if self.halted {
            return;
        }
        if self.incarnation.is_none() {
            self.early.push((request, op));
            return;
        }
        self.take_request(request, op, now);
        self.settle_down(now);
    }

    /// Nobody waits for the answer any more, and there will be none. What has reached the VDI's owner may still be carried
    /// out: it comes before everything that is asked from now on. Nothing else will be.
    pub fn handle_client_gone(&mut self, request: RequestId, now: Time) {
        if self.halted {
            return;
        }
        self.early.retain(|(early, _)| *early != request);
        self.with(now, |node, ctx| node.gateway.handle_client_gone(ctx, node.sessions, request));
        self.settle_down(now);
    }

    fn take_request(&mut self, request: RequestId, op: ClientOp, now: Time) {
        let origin = Origin { incarnation: self.incarnation.unwrap_or_default(), request };
        match op {
            ClientOp::Cluster(ClusterOp::SetRecoveryThrottle(bound)) => {
                return self.with(now, |node, ctx| {
                    node.chronicle.handle_throttle(node.catch_up.throttle(), bound);
                    node.catch_up.set_throttle(ctx, bound);
                    ctx.answer(request, Ok(ClientReply::Done));
                });
            }
            ClientOp::Cluster(ClusterOp::RecoveryThrottle) => {
                return self.with(now, |node, ctx| {
                    ctx.answer(request, Ok(ClientReply::RecoveryThrottle(node.catch_up.throttle())));
                });
            }
            ClientOp::Cluster(ClusterOp::Scrub) => {
                return self.with(now, |node, ctx| {
                    let status = Box::new(node.scrub.status(ctx));
                    ctx.answer(request, Ok(ClientReply::Scrub(status)));
                });
            }
            _ => {}
        }
        let request = Request { requester: Requester::Local(request), origin, op };
        self.with(now, |node, ctx| node.gateway.handle_client(ctx, node.sessions, request));
    }

    pub fn handle_timeout(&mut self, now: Time) {
        if self.halted {
            return;
        }
        if self.catch_up.resumes_at(&self.view).is_some_and(|at| at <= now) {
            self.with(now, |node, ctx| node.catch_up.resume(ctx, node.replica));
            self.settle_down(now);
        }
        if self.scrub.wakes_at().is_some_and(|at| at <= now) {
            self.advance_scrub(now);
        }
        if now < self.next_tick {
            return;
        }
        self.next_tick = now.after(TICK);
        self.out.strain.handle_tick();
        if self.incarnation.is_none() {
            return;
        }
        let has_disk = !self.disk_failed;
        self.with(now, |node, ctx| {
            let mut owed: BTreeMap<NodeId, Time> = BTreeMap::new();
            for call in ctx.out.calls.values().filter(|c| c.to != ctx.me) {
                let oldest = owed.entry(call.to).or_insert(call.sent_at);
                *oldest = call.sent_at.min(*oldest);
            }
            let others: Vec<NodeId> = ctx.other_members().collect();
            let ask = ctx.out.reach.handle_tick(owed.into_iter(), &others, now);
            ask.into_iter().for_each(|node| ctx.ping(node));
            // An answer may have been lost with a link that only its sender saw break.
            let late = |c: &Call| c.to != ctx.me && ctx.view.is_up(c.to) && now.since(c.sent_at) > ASK_AGAIN;
            let late: Vec<u64> = ctx.out.calls.iter().filter(|(_, c)| late(c)).map(|(id, _)| *id).collect();
            late.into_iter().for_each(|id| ctx.resend(id));
            node.sessions.values_mut().for_each(|s| s.handle_tick(ctx));
            node.gateway.retry_waiting(ctx, node.sessions);
            node.gateway.retry_delayed(ctx);
            node.gateway.take_silent_sessions(ctx);
            node.reclaim.handle_tick(ctx);
            node.overdue.handle_tick(ctx);
            if has_disk {
                node.catch_up.handle_tick(ctx, node.replica, TICK);
            }
            node.chronicle.handle_tick(ctx, node.catch_up.fetched());
        });
        self.close_idle_sessions(now);
        self.advance_scrub(now);
        let is_current = self.view.format().is_some_and(|format| self.formatted == Some(format.ctime));
        if self.sweep_wanted && is_current && !self.wiping && !self.sweeps.is_running(Sweep::Garbage) {
            self.sweep_wanted = false;
            self.with(now, |node, ctx| node.sweeps.start(ctx, Sweep::Garbage, None));
        }
        self.settle_down(now);
    }

    fn advance_scrub(&mut self, now: Time) {
        if self.incarnation.is_some() && !self.disk_failed && !self.wiping && self.store_id != 0 {
            let is_behind = self.catch_up.pgs_behind() > 0;
            self.with(now, |node, ctx| node.scrub.advance(ctx, is_behind));
            self.settle_down(now);
        }
    }

    fn close_idle_sessions(&mut self, now: Time) {
        self.with(now, |node, ctx| {
            let now = ctx.now;
            node.sessions.retain(|_, session| !session.frozen || !session.is_idle(now));
            for (vid, session) in node.sessions.iter_mut().filter(|(_, s)| !s.frozen) {
                let at_once = node.gateway.closed.contains(vid);
                if session.should_close(ctx, node.gateway.opens(*vid), at_once) {
                    session.start_closing(now);
                }
                let purpose = ProposalUse::CloseSession { vid: *vid };
                if !session.is_closing() || ctx.is_proposed(&purpose) {
                    continue;
                }
                if session.is_settled() {
                    let generation = session.generation;
                    ctx.propose(Action::CloseSession { vid: *vid, generation }, purpose);
                } else {
                    session.serve_on_if_stuck(ctx);
                }
            }
            node.gateway.closed.retain(|vid| node.sessions.contains_key(vid));
        });
    }

    /// Handles messages of this node to itself until there are none.
    fn settle_down(&mut self, now: Time) {
        loop {
            if let Some(message) = self.out.to_self.pop_front() {
                self.receive(self.me, message, now);
            } else if let Some(inner) = self.out.inner.pop_front() {
                self.with(now, |node, ctx| node.handle_inner(ctx, inner));
            } else {
                return;
            }
        }
    }

    fn with<R>(&mut self, now: Time, f: impl FnOnce(&mut Parts, &mut Context) -> R) -> R {
        let mut ctx = Context {
            me: self.me,
            incarnation: self.incarnation.unwrap_or_default(),
            view: &self.view,
            now,
            out: &mut self.out,
        };
        let mut parts = Parts {
            sessions: &mut self.sessions,
            replica: &mut self.replica,
            gateway: &mut self.gateway,
            catch_up: &mut self.catch_up,
            sweeps: &mut self.sweeps,
            reclaim: &mut self.reclaim,
            overdue: &mut self.overdue,
            scrub: &mut self.scrub,
            chronicle: &mut self.chronicle,
        };
        f(&mut parts, &mut ctx)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("the snapshot of the cluster's state cannot be read: {0}")]
    Malformed(postcard::Error),
    #[error("the snapshot holds version {got}, expected {expected}")]
    Version { expected: ViewVersion, got: ViewVersion },
}

/// After a new format vids may be given again; after a recovery by force an older copy may be the one that counts.
fn changes_snapshots(entry: &LogEntry) -> bool {
    use proto::cluster::{Action, ClusterEvent};
    let ClusterEvent::Message { proposal, .. } = &entry.event else { return false };
    matches!(proposal.action, Action::Format(_) | Action::ForceRecovery)
}
