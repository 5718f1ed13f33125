//! One sheep's logic as a value: takes events and the time, offers effects.
//!
//! The order inside one event is fixed: the event goes to the part it concerns, then messages of the node to itself are
//! handled until there are none. Everything else that follows is an effect for the shell.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use proto::client::{ClientError, ClientOp};
use proto::cluster::{Action, LogEntry, MemberInfo};
use proto::object::{ObjectInfo, ObjectReply, Origin, Unsettled};
use proto::peer::{PeerMessage, PeerReply, PeerRequest};
use proto::{Epoch, Incarnation, NodeId, Oid, PgId, RequestId, Since, Vid, ViewVersion};

use crate::catchup::CatchUp;
use crate::context::{Call, Context, Out, ProposalUse, Purpose, StoreUse};
use crate::gateway::{Gateway, Sessions};
use crate::reclaim::Reclaim;
use crate::replica::Replica;
use crate::session::{Inner, Request, Requester, Session};
use crate::sweep::{Sweep, Sweeps};
use crate::view::{Applied, Life, Outcome, View};
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
    /// `ctime` of the format that the objects in the store belong to, as the shell has kept it.
    pub formatted: Option<u64>,
}

pub struct Node {
    me: NodeId,
    life: u64,
    incarnation: Option<Incarnation>,
    formatted: Option<u64>,
    view: View,
    out: Out,
    sessions: Sessions,
    replica: Replica,
    gateway: Gateway,
    catch_up: CatchUp,
    sweeps: Sweeps,
    reclaim: Reclaim,
    /// Messages that need a newer view.
    parked: BTreeMap<ViewVersion, VecDeque<(NodeId, PeerMessage)>>,
    parked_count: usize,
    /// Clients' requests from before this node had joined.
    early: Vec<(RequestId, ClientOp)>,
    /// Objects of an earlier format are being removed: no copy is served or changed.
    wiping: bool,
    sweep_wanted: bool,
    /// Cut off or expelled: does nothing any more.
    halted: bool,
    next_tick: Time,
}

impl Node {
    /// A node with what its store has recovered: changes that may be missing on other copies.
    pub fn new(config: NodeConfig, unsettled: Vec<Unsettled>) -> Node {
        Node {
            me: config.member.id,
            life: config.member.life,
            incarnation: None,
            formatted: config.formatted,
            view: View::default(),
            out: Out::new(config.member.life),
            sessions: Sessions::new(),
            replica: Replica::new(unsettled),
            gateway: Gateway::default(),
            catch_up: CatchUp::default(),
            sweeps: Sweeps::default(),
            reclaim: Reclaim::default(),
            parked: BTreeMap::new(),
            parked_count: 0,
            early: Vec::new(),
            wiping: false,
            sweep_wanted: false,
            halted: false,
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

    /// Has this node joined, and is it neither cut off nor expelled?
    pub fn is_member(&self) -> bool {
        self.incarnation.is_some() && !self.halted
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
        Ok(())
    }

    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.out.effects.pop_front()
    }

    /// When `handle_timeout` should be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        (!self.halted).then_some(self.next_tick)
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
        let applied = self.view.apply(&entry);
        match self.incarnation {
            None if self.is_own_join(&entry) => {
                self.incarnation = Some(Incarnation(entry.version.0));
                self.joined(now);
            }
            // The backlog: nothing is done before this node is a member.
            None => return,
            Some(incarnation) if !self.view.is_alive(self.me, incarnation) => {
                tracing::error!("the cluster goes on without this sheep; stopping");
                return self.halt();
            }
            Some(_) => self.follow(applied, now),
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
        self.check_format(now);
        // Objects whose VDI was deleted while this node was away.
        self.sweep_wanted = true;
        self.with(now, |node, ctx| {
            node.catch_up.handle_view(ctx, node.replica, &all);
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
        if self.formatted == Some(format.ctime) {
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
        let forgetting = self.out.tickets.values().any(|purpose| *purpose == StoreUse::Wiped);
        if !self.wiping || self.sweeps.is_running(Sweep::Wipe) || forgetting {
            return;
        }
        let Some(ctime) = self.view.format().map(|f| f.ctime) else { return };
        self.wiping = false;
        self.formatted = Some(ctime);
        self.out.effects.push_back(Effect::RememberFormat { ctime });
        self.unpark(now);
    }

    /// What a new entry means for the parts.
    fn follow(&mut self, applied: Applied, now: Time) {
        if applied.formatted {
            self.forget_everything(now);
        }
        for (vid, head) in &applied.frozen {
            self.follow_frozen(*vid, *head, now);
        }
        for vid in &applied.vdis {
            self.follow_vdi(*vid, now);
            if self.view.vdis().get(vid).is_some_and(|vdi| vdi.life == Life::Gone) {
                // Catching up may have brought something back after the purge.
                self.with(now, |node, ctx| {
                    node.sweeps.purge(ctx, *vid, (0, u32::MAX), Vec::new(), false, None)
                });
            }
        }
        for (from, incarnation, id, outcome) in applied.outcomes {
            if from == self.me && Some(incarnation) == self.incarnation {
                self.handle_outcome(id, outcome, now);
            }
        }
        if applied.membership || !applied.pgs.is_empty() {
            let pgs = if applied.formatted { all_pgs(&self.view) } else { applied.pgs };
            if applied.membership {
                self.follow_membership(now);
            }
            self.with(now, |node, ctx| {
                node.catch_up.handle_view(ctx, node.replica, &pgs);
                node.sessions.values_mut().for_each(|s| s.handle_view(ctx));
            });
            self.sweep_wanted = true;
            self.take_up_reclaiming(now);
        }
        if !applied.deleted.is_empty() {
            // Whoever was asked does it; should it die, the first member does.
            self.take_up_reclaiming(now);
        }
        if applied.shut_down {
            self.out.effects.push_back(Effect::Stop);
        }
    }

    fn forget_everything(&mut self, now: Time) {
        let sessions = std::mem::take(&mut self.sessions);
        self.with(now, |node, ctx| {
            for session in sessions.into_values() {
                let left = session.abandon(ctx);
                node.gateway.take_back(ctx, node.sessions, left);
            }
        });
        self.catch_up = CatchUp::default();
        self.reclaim = Reclaim::default();
        self.check_format(now);
    }

    /// What a crash or an absence interrupted is done by the first member, or by nobody.
    fn take_up_reclaiming(&mut self, now: Time) {
        let first = self.view.members().values().find(|m| m.incarnation.is_some()).map(|m| m.info.id);
        if first == Some(self.me) {
            let remains: Vec<Vid> = self.view.remains().collect();
            self.reclaim.want(now, remains);
        }
    }

    fn follow_frozen(&mut self, vid: Vid, head: Vid, now: Time) {
        self.with(now, |node, ctx| {
            node.gateway.handle_frozen(vid, head);
            let owned =
                ctx.view.session(head).owner.is_some_and(|(n, i)| n == ctx.me && i == ctx.incarnation);
            let Some(session) = node.sessions.remove(&vid) else { return };
            if !owned {
                let left = session.abandon(ctx);
                return node.gateway.take_back(ctx, node.sessions, left);
            }
            let (session, left) = session.go_on_as(ctx, head);
            node.sessions.insert(head, session);
            node.gateway.take_back(ctx, node.sessions, left);
        });
    }

    fn follow_vdi(&mut self, vid: Vid, now: Time) {
        let state = self.view.session(vid);
        let mine = state.owner.is_some_and(|(n, i)| n == self.me && Some(i) == self.incarnation);
        let exists = self.view.vdi(vid).is_some();
        let readable = self.view.vdi_or_remains(vid).is_some();
        self.with(now, |node, ctx| {
            if state.clean == state.generation && state.owner.is_none() && state.generation.0 > 0 {
                node.replica.handle_clean_close(ctx, vid, state.generation);
            }
            if !exists {
                node.replica.forget_vdi(ctx, vid);
            }
            if node.sessions.get(&vid).is_some_and(|s| s.frozen && readable) {
                return node.gateway.handle_vdi_changed(ctx, node.sessions, vid);
            }
            let held = node.sessions.get(&vid).map(|s| s.generation);
            if held.is_some() && (!mine || !exists || held != Some(state.generation)) {
                let left = node.sessions.remove(&vid).expect("just seen").abandon(ctx);
                node.gateway.take_back(ctx, node.sessions, left);
            }
            if mine && exists && !node.sessions.contains_key(&vid) {
                let session = Session::open(ctx, vid);
                node.sessions.insert(vid, session);
            }
            if let Some(session) = node.sessions.get_mut(&vid) {
                // A snapshot may be wanted, or given up.
                session.handle_view(ctx);
            }
            node.gateway.handle_vdi_changed(ctx, node.sessions, vid);
        });
    }

    fn follow_membership(&mut self, now: Time) {
        self.with(now, |node, ctx| {
            node.catch_up.handle_source_lost(ctx);
            node.reclaim.end_purges(ctx);
            // A member that came back has forgotten what it was asked.
            let again: Vec<u64> = ctx
                .out
                .calls
                .iter()
                .filter(|(_, c)| c.to != ctx.me && ctx.view.is_up(c.to))
                .map(|(id, _)| *id)
                .collect();
            for id in again {
                ctx.resend(id);
            }
        });
    }

    fn handle_outcome(&mut self, id: u64, outcome: Outcome, now: Time) {
        let Some(purpose) = self.out.proposals.remove(&id) else { return };
        self.with(now, |node, ctx| match purpose {
            ProposalUse::Client { request } => {
                if let Some((vid, request)) = node.gateway.handle_outcome(ctx, request, outcome) {
                    node.reclaim.start(ctx, vid, Some(request));
                }
            }
            // Sessions follow the view; those who wait look again.
            ProposalUse::OpenSession { vid } | ProposalUse::CloseSession { vid } => {
                node.gateway.handle_vdi_changed(ctx, node.sessions, vid)
            }
            ProposalUse::CatchUp
            | ProposalUse::DropCopies
            | ProposalUse::Rest { .. }
            | ProposalUse::Forget { .. }
            | ProposalUse::EnterPage
            | ProposalUse::Description => {}
        });
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
            PeerMessage::Request { id, version, body } => {
                let needs_view = version > self.view.version() || self.incarnation.is_none();
                if !needs_view && !self.wiping {
                    return self.handle_request(from, id, body, now);
                }
                if self.parked_count >= PARKED_MAX {
                    let current = self.view.version();
                    return self
                        .with(now, |_, ctx| ctx.reply(from, id, PeerReply::OldView { version: current }));
                }
                self.parked_count += 1;
                let message = PeerMessage::Request { id, version, body };
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

    fn handle_request(&mut self, from: NodeId, id: u64, body: PeerRequest, now: Time) {
        self.with(now, |node, ctx| match body {
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
            PeerRequest::Forward { origin, mut op, data } => {
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
                node.gateway.route(ctx, node.sessions, Request { requester, origin, op });
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
        let Some(purpose) = self.out.tickets.remove(&ticket) else { return };
        self.with(now, |node, ctx| match purpose {
            StoreUse::Change { vid, order, covered } => {
                let failed = matches!(reply, ObjectReply::Failed(_));
                node.replica.handle_changed(ctx, vid, order, reply);
                if failed {
                    node.catch_up.handle_not_covered(node.replica, covered);
                }
                node.catch_up.handle_answered(ctx, node.replica, order);
            }
            StoreUse::Fetch { fetch } => node.replica.handle_fetch_read(ctx, fetch, reply),
            StoreUse::Forgotten { pg } => {
                node.replica.handle_forgotten(pg);
                node.catch_up.propose_finish(ctx, node.replica);
            }
            StoreUse::Answer { to, call } => {
                let body = match reply {
                    ObjectReply::Data { data, checksums } => PeerReply::Data { data, checksums },
                    ObjectReply::Absent => PeerReply::Absent,
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
                    node.sweeps.handle_listed(ctx, job, objects);
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
            StoreUse::Backfill { pg, oid } => {
                node.catch_up.handle_backfilled(ctx, node.replica, pg, oid, reply);
            }
            StoreUse::Client { request } => node.gateway.handle_store(ctx, request, reply),
            StoreUse::Wiped | StoreUse::Forget => {}
        });
        self.end_wipe(now);
        self.settle_down(now);
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
        let request = Request { requester: Requester::Local(request), origin, op };
        self.with(now, |node, ctx| node.gateway.handle_client(ctx, node.sessions, request));
    }

    pub fn handle_timeout(&mut self, now: Time) {
        if self.halted || now < self.next_tick {
            return;
        }
        self.next_tick = now.after(TICK);
        if self.incarnation.is_none() {
            return;
        }
        self.with(now, |node, ctx| {
            // An answer may have been lost with a link that only its sender saw break.
            let late = |c: &Call| c.to != ctx.me && ctx.view.is_up(c.to) && now.since(c.sent_at) > ASK_AGAIN;
            let late: Vec<u64> = ctx.out.calls.iter().filter(|(_, c)| late(c)).map(|(id, _)| *id).collect();
            late.into_iter().for_each(|id| ctx.resend(id));
            node.sessions.values_mut().for_each(|s| s.handle_tick(ctx));
            node.gateway.retry_waiting(ctx, node.sessions);
            node.gateway.retry_delayed(ctx);
            node.reclaim.handle_tick(ctx);
            node.catch_up.advance(ctx, node.replica);
        });
        self.close_idle_sessions(now);
        if self.sweep_wanted && !self.wiping && !self.sweeps.is_running(Sweep::Garbage) {
            self.sweep_wanted = false;
            self.with(now, |node, ctx| node.sweeps.start(ctx, Sweep::Garbage, None));
        }
        self.settle_down(now);
    }

    fn close_idle_sessions(&mut self, now: Time) {
        self.with(now, |node, ctx| {
            let now = ctx.now;
            node.sessions.retain(|_, session| !session.frozen || !session.is_idle(now));
            for (vid, session) in node.sessions.iter_mut().filter(|(_, s)| !s.frozen) {
                let at_once = node.gateway.closed.contains(vid);
                if session.should_close(now, node.gateway.opens(*vid), at_once) {
                    session.start_closing();
                }
                let purpose = ProposalUse::CloseSession { vid: *vid };
                if session.is_closing() && session.is_settled() && !ctx.is_proposed(&purpose) {
                    let generation = session.generation;
                    ctx.propose(Action::CloseSession { vid: *vid, generation }, purpose);
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
        };
        f(&mut parts, &mut ctx)
    }
}

/// The parts of a node, apart from what [`Context`] lends them.
struct Parts<'a> {
    sessions: &'a mut Sessions,
    replica: &'a mut Replica,
    gateway: &'a mut Gateway,
    catch_up: &'a mut CatchUp,
    sweeps: &'a mut Sweeps,
    reclaim: &'a mut Reclaim,
}

impl Parts<'_> {
    fn handle_inner(&mut self, ctx: &mut Context, inner: Inner) {
        match inner {
            Inner::Ask(request) => self.gateway.route(ctx, self.sessions, request),
            Inner::Done { to: Requester::Session { vid, task, first }, result } => {
                if let Some(session) = self.sessions.get_mut(&vid) {
                    session.handle_inner(ctx, task, first, result);
                }
            }
            Inner::Done { to: Requester::Reclaim { job, ask }, result } => {
                self.reclaim.handle_table(ctx, job, ask, result);
            }
            Inner::Done { to, .. } => unreachable!("{to:?} asks in another way"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("the snapshot of the cluster's state cannot be read: {0}")]
    Malformed(postcard::Error),
    #[error("the snapshot holds version {got}, expected {expected}")]
    Version { expected: ViewVersion, got: ViewVersion },
}

fn is_forwardable(op: &ClientOp) -> bool {
    use proto::client::{VdiOp, VolumeOp};
    match op {
        ClientOp::Volume { op, .. } => !matches!(op, VolumeOp::Resize { .. }),
        ClientOp::Object { .. } | ClientOp::Vdi(VdiOp::Usage { .. } | VdiOp::Table { .. }) => true,
        ClientOp::Vdi(_) | ClientOp::Cluster(_) => false,
    }
}

fn all_pgs(view: &View) -> Vec<PgId> {
    let pools = view.pools().iter().enumerate();
    pools
        .flat_map(|(number, pool)| {
            (0..pool.pgs.len() as u32).map(move |index| PgId { pool: proto::PoolId(number as u8), index })
        })
        .collect()
}

/// The part of a page of this node's objects that belongs to the PGs asked for; deleted ones too, while that is unsettled.
fn answer_list(
    ctx: &mut Context,
    replica: &Replica,
    to: NodeId,
    call: u64,
    pgs: &[(PgId, Since)],
    first: Oid,
    reply: ObjectReply,
) {
    let ObjectReply::Objects(objects) = reply else {
        return ctx.reply(to, call, PeerReply::Failed(proto::object::StoreFailure::DiskFailed));
    };
    let complete = objects.len() < crate::replica::LIST_PAGE as usize;
    // The asker goes on after the last object it is told of, so an incomplete page names its end.
    let end = objects.last().map(|o| o.oid).filter(|_| !complete);
    let asked: BTreeSet<PgId> = pgs.iter().map(|(pg, _)| *pg).collect();
    let wanted = |oid| Some(oid) == end || ctx.view.pg_of(oid).is_some_and(|pg| asked.contains(&pg));
    let marked = replica.objects_with_marks(ctx, &asked);
    let in_page = |o: &ObjectInfo| first <= o.oid && end.is_none_or(|end| o.oid <= end);
    let found: BTreeMap<Oid, ObjectInfo> =
        marked.into_iter().filter(in_page).chain(objects).map(|o| (o.oid, o)).collect();
    let objects = found.into_values().filter(|o| wanted(o.oid)).collect();
    ctx.reply(to, call, PeerReply::Objects { objects, complete });
}
