//! Requests of clients: answered from the view, proposed, or brought to the owner of the VDI's session.
//!
//! I/O is held, not failed, while no owner can be had. A request that went to another sheep is asked for again, under
//! the same origin, when its owner changes; the new owner knows which requests were carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use proto::checksum::crc32c;
use proto::client::{
    AttributeOp, ClientError, ClientOp, ClientReply, ClientResult, ClusterOp, NativeOp, Point, Selector,
    VdiOp, VolumeOp,
};
use proto::cluster::Action;
use proto::inode::{HEADER_BYTES, InodeHeader, NAME_MAX, is_hyper};
use proto::object::{BlockRange, ObjectOp, ObjectReply, Origin};
use proto::peer::{PeerReply, PeerRequest};
use proto::{Generation, NodeId, ObjectKind, Oid, RequestId, Vid};

use crate::Time;
use crate::context::{Call, Context, ProposalUse, Purpose, StoreUse};
use crate::session::{Inner, Request, Requester, Session};
use crate::view::{Accepted, Life, Outcome, SessionState};

#[derive(Debug, Default)]
pub(crate) struct Gateway {
    /// Requests at another sheep.
    forwarded: BTreeMap<RequestId, (Request, u64)>,
    /// Requests that wait for a session to begin or end.
    waiting: BTreeMap<Vid, Vec<Request>>,
    /// Clients of this sheep that have a VDI open.
    opens: BTreeMap<Vid, u32>,
    /// VDIs that the last client has just closed.
    pub closed: BTreeSet<Vid>,
    /// Proposals of clients, with what they asked.
    proposed: BTreeMap<RequestId, ClientOp>,
    /// Snapshots and rollbacks that have to wait for a session, with when they were asked for first.
    delayed: Vec<(RequestId, VdiOp)>,
    asked: BTreeMap<RequestId, Time>,
    /// When sessions were taken from their owners last.
    taken: BTreeMap<Vid, Time>,
}

/// How long a snapshot may be refused for the sake of what has to end first, before its client is told.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(20);
/// How long a sheep that has a VDI's session without needing it may take to give it back.
const YIELD_PATIENCE: Duration = Duration::from_millis(1500);

/// So long after a session was taken from its owner another wish to take it is a contest.
const CONTEST_MEMORY: Duration = Duration::from_secs(60);
/// How long each of two that contest a session has it, where nobody is between them.
const TURN: Duration = Duration::from_secs(10);

pub(crate) type Sessions = BTreeMap<Vid, Session>;

impl Gateway {
    /// Is this request of a client on its way to an owner?
    pub fn awaits(&self, id: RequestId) -> bool {
        let waits = |r: &Request| r.requester == Requester::Local(id);
        self.forwarded.contains_key(&id) || self.waiting.values().flatten().any(waits)
    }

    pub fn opens(&self, vid: Vid) -> u32 {
        self.opens.get(&vid).copied().unwrap_or(0)
    }

    pub fn handle_client(&mut self, ctx: &mut Context, sessions: &mut Sessions, request: Request) {
        let Requester::Local(id) = request.requester else { unreachable!("clients are local") };
        match &request.op {
            ClientOp::Cluster(op) => self.handle_cluster_op(ctx, id, op.clone()),
            ClientOp::Vdi(VdiOp::Usage { .. } | VdiOp::Table { .. }) => self.route(ctx, sessions, request),
            ClientOp::Vdi(op) => {
                if let Some(result) = self.handle_vdi_op(ctx, id, op.clone()) {
                    ctx.answer(id, result);
                }
            }
            ClientOp::Volume { vid, at, op: VolumeOp::Resize { size } } => {
                self.propose_resize(ctx, id, *vid, *at, *size);
            }
            ClientOp::Object { oid, op: NativeOp::Write { offset, data } }
                if oid.kind() == Some(ObjectKind::Inode) && (*offset as usize) < HEADER_BYTES =>
            {
                match header_changes(ctx, *oid, *offset, data) {
                    Ok(mut actions) => match actions.pop() {
                        Some(last) => {
                            // Proposals of one sheep take effect in their order.
                            for action in actions {
                                ctx.propose(action, ProposalUse::Description);
                            }
                            self.propose(ctx, id, &request.op, last);
                        }
                        None => self.route(ctx, sessions, request),
                    },
                    Err(error) => ctx.answer(id, Err(error)),
                }
            }
            _ => self.route(ctx, sessions, request),
        }
    }

    fn handle_cluster_op(&mut self, ctx: &mut Context, id: RequestId, op: ClusterOp) {
        match op {
            ClusterOp::Info => {
                let info = ctx.view.cluster_info(ctx.me);
                ctx.answer(id, Ok(ClientReply::Cluster(Box::new(info))));
            }
            ClusterOp::Health => ctx.answer(id, Ok(ClientReply::Health(ctx.view.health()))),
            ClusterOp::StopRisk(nodes) => {
                let risk = ctx.view.stop_risk(&nodes.into_iter().collect());
                ctx.answer(id, Ok(ClientReply::StopRisk(risk)));
            }
            ClusterOp::Format(options) => {
                self.propose(ctx, id, &ClientOp::Cluster(op), Action::Format(options));
            }
            ClusterOp::SetRepair(options) => {
                self.propose(ctx, id, &ClientOp::Cluster(op), Action::SetRepair(options));
            }
            ClusterOp::SetOut { node, out } => {
                self.propose(ctx, id, &ClientOp::Cluster(op), Action::SetOut { node, out });
            }
            ClusterOp::ForceRecovery => {
                self.propose(ctx, id, &ClientOp::Cluster(op), Action::ForceRecovery);
            }
            ClusterOp::SetDefaultPolicy { policy } => {
                self.propose(ctx, id, &ClientOp::Cluster(op), Action::SetDefaultPolicy { policy });
            }
            ClusterOp::Shutdown => self.propose(ctx, id, &ClientOp::Cluster(op), Action::Shutdown),
            ClusterOp::Holds { oid } | ClusterOp::LocalDigest { oid } => {
                let digest = matches!(op, ClusterOp::LocalDigest { .. });
                let request = id;
                self.proposed
                    .insert(id, ClientOp::Cluster(if digest { op } else { ClusterOp::Holds { oid } }));
                ctx.store(ObjectOp::Checksums { oid, blocks: BlockRange::ALL }, StoreUse::Client { request });
            }
            ClusterOp::Locate { oid } => {
                let pg = ctx.view.pg_of(oid).and_then(|pg| ctx.view.pg(pg));
                ctx.answer(id, pg.map(|pg| ClientReply::Nodes(pg.targets.clone())).ok_or(ClientError::NoVdi));
            }
            ClusterOp::Track { oid } => {
                let track = ctx.view.pg_of(oid).map(|pg| ClientReply::Track(ctx.view.track(pg)));
                ctx.answer(id, track.ok_or(ClientError::NoVdi));
            }
            ClusterOp::SetRecoveryThrottle(_) | ClusterOp::RecoveryThrottle | ClusterOp::Scrub => {
                unreachable!("the node answers these itself")
            }
            ClusterOp::KillNode
            | ClusterOp::NodeStat
            | ClusterOp::Access
            | ClusterOp::Attach { .. }
            | ClusterOp::Detach { .. }
            | ClusterOp::Attached => {
                ctx.answer(id, Err(ClientError::Unsupported("the daemon answers this itself".into())));
            }
        }
    }

    pub fn handle_store(&mut self, ctx: &mut Context, request: RequestId, reply: ObjectReply) {
        let Some(ClientOp::Cluster(op)) = self.proposed.remove(&request) else { return };
        let result = match (op, reply) {
            (ClusterOp::Holds { .. }, ObjectReply::Checksums(_)) => Ok(ClientReply::Done),
            (ClusterOp::LocalDigest { .. }, ObjectReply::Checksums(checksums)) => {
                let bytes: Vec<u8> = checksums.iter().flat_map(|c| c.to_le_bytes()).collect();
                Ok(ClientReply::Digest(crc32c(&bytes)))
            }
            (_, ObjectReply::Absent) => Err(ClientError::NoObject),
            _ => Err(ClientError::Io),
        };
        ctx.answer(request, result);
    }

    fn handle_vdi_op(&mut self, ctx: &mut Context, id: RequestId, op: VdiOp) -> Option<ClientResult> {
        let view = ctx.view;
        let info = |vid| view.vdi_info(vid).map(ClientReply::Vdi).ok_or(ClientError::NoVdi);
        match op {
            VdiOp::Lookup { name, selector } => Some(view.lookup(&name, &selector).and_then(info)),
            VdiOp::List => {
                let live = view.vdis().iter().filter(|(_, v)| v.life == Life::Alive).map(|(vid, _)| *vid);
                Some(Ok(ClientReply::Vdis(live.filter_map(|vid| view.vdi_info(vid)).collect())))
            }
            VdiOp::UsedVids => Some(Ok(ClientReply::Vids(view.vdis().keys().copied().collect()))),
            VdiOp::DeletedVids => {
                let deleted = view.vdis().iter().filter(|(_, v)| v.life != Life::Alive).map(|(vid, _)| *vid);
                Some(Ok(ClientReply::Vids(deleted.collect())))
            }
            VdiOp::Open { vid } => Some(match view.vdi(view.head_of(vid)) {
                None => Err(ClientError::NoVdi),
                Some(vdi) => {
                    let vid = view.head_of(vid);
                    *self.opens.entry(vid).or_default() += 1;
                    self.closed.remove(&vid);
                    if !vdi.is_snapshot() {
                        self.ask_for_session(ctx, vid);
                    }
                    Ok(ClientReply::Done)
                }
            }),
            VdiOp::Close { vid } => {
                let vid = view.head_of(vid);
                if let Some(count) = self.opens.get_mut(&vid) {
                    *count -= 1;
                    if *count == 0 {
                        self.opens.remove(&vid);
                        self.closed.insert(vid);
                    }
                }
                Some(Ok(ClientReply::Done))
            }
            VdiOp::Create { ref name, size, policy, block_size_shift } => {
                if view.lookup(name, &Selector::Working).is_ok() {
                    return Some(Err(ClientError::VdiExists));
                }
                let action = Action::CreateVdi { name: name.clone(), size, policy, block_size_shift };
                self.propose(ctx, id, &ClientOp::Vdi(op), action);
                None
            }
            VdiOp::Delete { vid } => {
                self.propose(ctx, id, &ClientOp::Vdi(op), Action::DeleteVdi { vid });
                None
            }
            VdiOp::Lock { vid, shared } => {
                self.propose(ctx, id, &ClientOp::Vdi(op), Action::LockVdi { vid, shared });
                None
            }
            VdiOp::Unlock { vid, shared } => {
                self.propose(ctx, id, &ClientOp::Vdi(op), Action::UnlockVdi { vid, shared });
                None
            }
            VdiOp::Snapshot { ref vids, ref tag } => {
                self.asked.entry(id).or_insert(ctx.now);
                let action = Action::Snapshot { vids: vids.clone(), tag: tag.clone() };
                self.propose(ctx, id, &ClientOp::Vdi(op), action);
                None
            }
            VdiOp::Rollback { to, force } => {
                self.asked.entry(id).or_insert(ctx.now);
                self.propose(ctx, id, &ClientOp::Vdi(op), Action::Rollback { to, force });
                None
            }
            VdiOp::Clone { base, ref name, size, policy } => {
                let action = Action::CloneVdi { base, name: name.clone(), size, policy };
                self.propose(ctx, id, &ClientOp::Vdi(op), action);
                None
            }
            VdiOp::TakePlace { old, new } => {
                self.propose(ctx, id, &ClientOp::Vdi(op), Action::TakePlace { old, new });
                None
            }
            VdiOp::Adopt { snapshot, ref name, ref tag } => {
                let action = Action::Adopt { snapshot, name: name.clone(), tag: tag.clone() };
                self.propose(ctx, id, &ClientOp::Vdi(op), action);
                None
            }
            VdiOp::Describe { vid, ref tag, vm_state_size, vm_clock_nsec } => {
                let tag = tag.clone();
                let action = Action::DescribeVdi { vid, tag, vm_state_size, vm_clock_nsec };
                self.propose(ctx, id, &ClientOp::Vdi(op), action);
                None
            }
            VdiOp::Attribute { name, key, op: AttributeOp::Get } => {
                Some(view.attribute(&name, &key).map(|value| ClientReply::Attribute(value.to_vec())))
            }
            VdiOp::Attribute { ref name, ref key, op: ref change } => {
                let (name, key) = (name.clone(), key.clone());
                let action = match change {
                    AttributeOp::Set { value, exclusive } => {
                        Action::SetAttribute { name, key, value: value.clone(), exclusive: *exclusive }
                    }
                    _ => Action::DeleteAttribute { name, key },
                };
                self.propose(ctx, id, &ClientOp::Vdi(op), action);
                None
            }
            VdiOp::Usage { .. } | VdiOp::Table { .. } => unreachable!("routed to the owner"),
        }
    }

    fn propose_resize(&mut self, ctx: &mut Context, id: RequestId, vid: Vid, at: Point, size: u64) {
        let vid = if at == Point::Head { ctx.view.head_of(vid) } else { vid };
        let op = ClientOp::Volume { vid, at, op: VolumeOp::Resize { size } };
        self.propose(ctx, id, &op, Action::ResizeVdi { vid, size });
    }

    fn propose(&mut self, ctx: &mut Context, id: RequestId, op: &ClientOp, action: Action) {
        self.proposed.insert(id, op.clone());
        ctx.propose(action, ProposalUse::Client { request: id });
    }

    /// Returns a VDI whose deletion has just been decided, with the request that waits for its space.
    pub fn handle_outcome(
        &mut self,
        ctx: &mut Context,
        id: RequestId,
        outcome: Outcome,
    ) -> Option<(Vid, RequestId)> {
        let op = self.proposed.remove(&id);
        let waited = self.asked.get(&id).map(|at| ctx.now.since(*at));
        match (op, outcome) {
            (Some(ClientOp::Vdi(op @ VdiOp::Snapshot { .. })), Ok(Accepted::Refused)) => {
                if waited.is_some_and(|time| time < SNAPSHOT_PATIENCE) {
                    self.delayed.push((id, op));
                    return None;
                }
                ctx.answer(id, Err(ClientError::Busy));
            }
            (
                Some(ClientOp::Vdi(op @ VdiOp::Rollback { force: false, .. })),
                Err(ClientError::InUse(owner)),
            ) if waited.is_some_and(|time| time < YIELD_PATIENCE) => {
                if let VdiOp::Rollback { to, .. } = op
                    && let Some(head) = ctx.view.vdi(to).and_then(|v| ctx.view.working_vdi(&v.name))
                {
                    ctx.tell(owner, PeerRequest::Yield { vid: head });
                }
                self.delayed.push((id, op));
                return None;
            }
            // It was frozen before the proposal was taken: what took its place is meant.
            (
                Some(ClientOp::Volume { vid, at: Point::Head, op: VolumeOp::Resize { size } }),
                Err(ClientError::ReadOnly | ClientError::NoVdi),
            ) if ctx.view.head_of(vid) != vid => {
                self.propose_resize(ctx, id, vid, Point::Head, size);
                return None;
            }
            (_, Err(error)) => ctx.answer(id, Err(error)),
            (Some(ClientOp::Vdi(VdiOp::Delete { .. })), Ok(Accepted::Vdi(vid))) => return Some((vid, id)),
            (_, Ok(Accepted::Vdi(vid))) => {
                let info = ctx.view.vdi_info(vid).map(ClientReply::Vdi).ok_or(ClientError::NoVdi);
                ctx.answer(id, info);
            }
            (_, Ok(Accepted::Vdis(vids))) => {
                let infos = vids.iter().filter_map(|vid| ctx.view.vdi_info(*vid)).collect();
                ctx.answer(id, Ok(ClientReply::Vdis(infos)));
            }
            (_, Ok(_)) => ctx.answer(id, Ok(ClientReply::Done)),
        }
        self.asked.remove(&id);
        None
    }

    /// Asks again for what had to wait for a session.
    pub fn retry_delayed(&mut self, ctx: &mut Context) {
        for (id, op) in std::mem::take(&mut self.delayed) {
            if let VdiOp::Snapshot { vids, .. } = &op {
                // One that was not closed cleanly has to be sealed first.
                let unsealed = |vid: &&Vid| !ctx.view.is_at_rest(**vid) && !ctx.view.is_freezing(**vid);
                vids.iter().filter(unsealed).for_each(|vid| self.ask_for_session(ctx, *vid));
            }
            let answered = self.handle_vdi_op(ctx, id, op);
            debug_assert!(answered.is_none(), "a delayed operation is proposed again");
        }
    }

    /// Working VDIs were frozen: whoever has one open goes on with what took its place.
    pub fn handle_frozen(&mut self, vid: Vid, head: Vid) {
        if let Some(count) = self.opens.remove(&vid) {
            *self.opens.entry(head).or_default() += count;
        }
        if self.closed.remove(&vid) {
            self.closed.insert(head);
        }
    }

    /// Brings a request to the owner of its VDI's session, wherever that is.
    pub fn route(&mut self, ctx: &mut Context, sessions: &mut Sessions, mut request: Request) {
        if let ClientOp::Volume { vid, at: Point::Head, .. } = &mut request.op {
            *vid = ctx.view.head_of(*vid);
        }
        let vid = vid_of(&request.op);
        if matches!(request.requester, Requester::Gateway { .. }) && ctx.view.vdi(vid).is_none() {
            // Deleted since it was forwarded. The gateway answers when it has heard of that: whoever asks it afterwards does not find the VDI.
            return not_owner(ctx, &request);
        }
        if let Err(error) = check(ctx, vid, &request.op) {
            return refuse(ctx, request, error);
        }
        if ctx.view.vdi(vid).is_none_or(|vdi| vdi.is_snapshot()) {
            // It never changes, so any sheep reads it, this one as well as another.
            let reader = sessions.entry(vid).or_insert_with(|| Session::open_frozen(ctx, vid));
            if let Err(request) = reader.handle_request(ctx, request) {
                refuse(ctx, request, ClientError::Busy);
            }
            return;
        }
        let SessionState { owner, generation, .. } = ctx.view.session(vid);
        match owner {
            Some((node, incarnation)) if node == ctx.me && incarnation == ctx.incarnation => {
                let Some(session) = sessions.get_mut(&vid) else { return self.wait(ctx, vid, request) };
                if let Err(request) = session.handle_request(ctx, request) {
                    self.wait(ctx, vid, request);
                }
            }
            Some((node, _)) => match request.requester {
                Requester::Local(id) => {
                    let (origin, op, data) = (request.origin, request.op.clone(), request.op.payload());
                    let call = ctx.call(
                        node,
                        PeerRequest::Forward { origin, generation, op, data },
                        Purpose::Forward { request: id },
                    );
                    self.forwarded.insert(id, (request, call));
                }
                // Another session's, or the reclaimer's: carried as a client's would be, and answered to it.
                Requester::Session { .. } | Requester::Reclaim { .. } | Requester::Scrub { .. } => {
                    // They change nothing, so only whose they are matters: owners do not hear what comes from ended lives. What a scrub
                    // asks for is done once for each of its numbers, as a client's.
                    let origin = Origin { incarnation: ctx.incarnation, ..request.origin };
                    let op = request.op.clone();
                    let call = PeerRequest::Forward { origin, generation, op, data: Bytes::new() };
                    ctx.call(node, call, Purpose::Inner { to: request.requester, vid });
                }
                _ => not_owner(ctx, &request),
            },
            None => self.wait(ctx, vid, request),
        }
    }

    /// The same for what another gateway brings, to the owner that it knows.
    ///
    /// It may have been on its way for long: its gateway has asked another owner meanwhile, which has carried it out and forgotten
    /// it when the gateway had its answer. So it counts for the session only for which it was meant.
    pub fn route_forwarded(
        &mut self,
        ctx: &mut Context,
        sessions: &mut Sessions,
        generation: Generation,
        request: Request,
    ) {
        let vid = match &request.op {
            ClientOp::Volume { vid, at: Point::Head, .. } => ctx.view.head_of(*vid),
            op => vid_of(op),
        };
        if ctx.view.session(vid).generation != generation {
            return not_owner(ctx, &request);
        }
        self.route(ctx, sessions, request);
    }

    fn wait(&mut self, ctx: &mut Context, vid: Vid, request: Request) {
        match request.requester {
            Requester::Local(_)
            | Requester::Session { .. }
            | Requester::Reclaim { .. }
            | Requester::Scrub { .. } => {
                self.waiting.entry(vid).or_default().push(request);
                self.ask_for_session(ctx, vid);
            }
            // The gateway waits, and may open a session of its own.
            _ => not_owner(ctx, &request),
        }
    }

    fn ask_for_session(&mut self, ctx: &mut Context, vid: Vid) {
        let session = ctx.view.session(vid);
        let purpose = ProposalUse::OpenSession { vid };
        if session.owner.is_none() && ctx.view.vdi(vid).is_some() && !ctx.is_proposed(&purpose) {
            ctx.propose(Action::OpenSession { vid, last: session.generation }, purpose);
        }
    }

    /// A VDI's session or existence has changed: what waits for it tries again.
    pub fn handle_vdi_changed(&mut self, ctx: &mut Context, sessions: &mut Sessions, vid: Vid) {
        let mut again = self.waiting.remove(&vid).unwrap_or_default();
        let owner = ctx.view.session(vid).owner.map(|(node, _)| node);
        let moved: Vec<RequestId> = self
            .forwarded
            .iter()
            .filter(|(_, (request, call))| {
                vid_of(&request.op) == vid && ctx.out.calls.get(call).map(|c| c.to) != owner
            })
            .map(|(id, _)| *id)
            .collect();
        for id in moved {
            let (request, call) = self.forwarded.remove(&id).expect("from the map");
            ctx.out.calls.remove(&call);
            again.push(request);
        }
        // Questions that are not a client's are asked anew by whoever asked.
        let astray = |call: &Call| {
            matches!(call.purpose, Purpose::Inner { vid: of, .. } if of == vid) && Some(call.to) != owner
        };
        let lost: Vec<u64> = ctx.out.calls.iter().filter(|(_, c)| astray(c)).map(|(id, _)| *id).collect();
        for id in lost {
            let Some(Call { purpose: Purpose::Inner { to, .. }, .. }) = ctx.out.calls.remove(&id) else {
                continue;
            };
            ctx.out.inner.push_back(Inner::Done { to, result: Err(ClientError::Busy) });
        }
        for request in again {
            self.route(ctx, sessions, request);
        }
    }

    /// Requests that an abandoned session had taken in.
    pub fn take_back(&mut self, ctx: &mut Context, sessions: &mut Sessions, requests: Vec<Request>) {
        for request in requests.into_iter().filter(|r| r.requester != Requester::Nobody) {
            self.route(ctx, sessions, request);
        }
    }

    pub fn handle_forward_reply(
        &mut self,
        ctx: &mut Context,
        sessions: &mut Sessions,
        id: RequestId,
        reply: PeerReply,
    ) {
        let Some((request, _)) = self.forwarded.remove(&id) else { return };
        match reply {
            PeerReply::Client { mut result, data, .. } => {
                if let Ok(reply) = &mut result {
                    reply.set_payload(data);
                }
                ctx.answer(id, result);
            }
            // It is opening, closing or gone: the view will tell. `NotOwner` of a sheep that is closing leaves the
            // request waiting until the session's end is in the view.
            PeerReply::NotOwner { version } if ctx.view.version() >= version => {
                let vid = vid_of(&request.op);
                let owner = ctx.view.session(vid).owner;
                if owner.is_none_or(|(node, _)| node == ctx.me) {
                    self.route(ctx, sessions, request);
                } else {
                    self.waiting.entry(vid).or_default().push(request);
                }
            }
            _ => self.waiting.entry(vid_of(&request.op)).or_default().push(request),
        }
    }

    /// An answer to a call that was given up. True: the request is answered, now or before.
    ///
    /// A request that waits to be sent again is answered by it; one that has been sent again is not, since its second
    /// copy may be carried out after this moment.
    pub fn take_late_answer(&mut self, ctx: &mut Context, id: RequestId, reply: &PeerReply) -> bool {
        if self.forwarded.contains_key(&id) {
            return false;
        }
        let PeerReply::Client { result, data, .. } = reply else { return false };
        for waiting in self.waiting.values_mut() {
            let Some(at) = waiting.iter().position(|r| r.requester == Requester::Local(id)) else { continue };
            waiting.remove(at);
            let mut result = result.clone();
            if let Ok(reply) = &mut result {
                reply.set_payload(data.clone());
            }
            ctx.answer(id, result);
        }
        true
    }

    /// The client that asked has gone. What has not reached an owner is not carried out any more, nor asked for again: the
    /// client may have come back elsewhere, and written since what this would undo.
    pub fn handle_client_gone(&mut self, ctx: &mut Context, sessions: &mut Sessions, id: RequestId) {
        for waiting in self.waiting.values_mut() {
            waiting.retain(|request| request.requester != Requester::Local(id));
        }
        self.waiting.retain(|_, waiting| !waiting.is_empty());
        if let Some((_, call)) = self.forwarded.remove(&id) {
            ctx.out.calls.remove(&call);
        }
        self.delayed.retain(|(delayed, _)| *delayed != id);
        self.asked.remove(&id);
        sessions.values_mut().for_each(|session| session.handle_client_gone(id));
    }

    /// VDIs that somebody waits for here, and whose owners give no sign of life, are taken from them.
    pub fn take_silent_sessions(&mut self, ctx: &mut Context) {
        let inner = ctx.out.calls.values().filter_map(|call| match call.purpose {
            Purpose::Inner { vid, .. } => Some(vid),
            _ => None,
        });
        let vids: BTreeSet<Vid> =
            self.forwarded.values().map(|(request, _)| vid_of(&request.op)).chain(inner).collect();
        if vids.is_empty() || ctx.is_cut_off() {
            return;
        }
        for vid in vids {
            let session = ctx.view.session(vid);
            let silent = session.owner.filter(|(node, _)| *node != ctx.me && ctx.is_silent(*node));
            let purpose = ProposalUse::TakeSession { vid };
            let Some((node, _)) = silent.filter(|_| session.taker.is_none() && !ctx.is_proposed(&purpose))
            else {
                continue;
            };
            let Some(taker) = self.choose_taker(ctx, vid, node) else { continue };
            tracing::warn!(%node, vdi = %vid, %taker, "the sheep that serves this VDI does not answer; taking over");
            ctx.propose(Action::TakeSession { vid, generation: session.generation, taker }, purpose);
        }
    }

    /// A VDI's session is being taken from its owner.
    pub fn note_taken(&mut self, vid: Vid, now: Time) {
        self.taken.retain(|_, at| now.since(*at) < CONTEST_MEMORY);
        self.taken.insert(vid, now);
    }

    /// Who is to have a session whose owner does not answer: this sheep; or, if it has just been taken from somebody, one between the
    /// two: they may be cut off from each other only, with clients on both sides.
    fn choose_taker(&mut self, ctx: &mut Context, vid: Vid, owner: NodeId) -> Option<NodeId> {
        let now = ctx.now;
        let taken = self.taken.get(&vid).map(|at| now.since(*at)).filter(|age| *age < CONTEST_MEMORY);
        let Some(taken) = taken else { return Some(ctx.me) };
        let others: Vec<NodeId> = ctx.other_members().filter(|n| *n != owner && !ctx.is_silent(*n)).collect();
        let between = others.iter().copied().find(|n| ctx.out.reach.is_fresh(*n, now));
        // Nobody is between them: then they take turns.
        between.or_else(|| (others.is_empty() && taken > TURN).then_some(ctx.me))
    }

    pub fn retry_waiting(&mut self, ctx: &mut Context, sessions: &mut Sessions) {
        for vid in self.waiting.keys().copied().collect::<Vec<_>>() {
            let owned_here = sessions.get(&vid).is_some_and(|s| s.is_closing());
            if !owned_here {
                self.handle_vdi_changed(ctx, sessions, vid);
            }
        }
    }
}

/// What an old client's write of the header asks of the view: what the next snapshot is to say of itself, and a larger size. The
/// rest of the header belongs to the server, and a client's cached copy of it may be stale.
fn header_changes(ctx: &Context, oid: Oid, offset: u32, data: &[u8]) -> Result<Vec<Action>, ClientError> {
    let vid = oid.vid();
    let vdi = ctx.view.vdi(vid).ok_or(ClientError::NoObject)?;
    let mut header = vdi.header(vid).encode().to_vec();
    let start = offset as usize;
    let end = (start + data.len()).min(HEADER_BYTES);
    header[start..end].copy_from_slice(&data[..end - start]);
    let wanted = InodeHeader::decode(&header).expect("a header is long enough");
    let InodeHeader { mut tag, vm_state_size, vm_clock_nsec, vdi_size: size, .. } = wanted;
    // QEMU does not always leave room for a NUL.
    tag.truncate(NAME_MAX);
    let mut actions = Vec::new();
    if (&tag, vm_state_size, vm_clock_nsec) != (&vdi.tag, vdi.vm_state_size, vdi.vm_clock_nsec) {
        actions.push(Action::DescribeVdi { vid, tag, vm_state_size, vm_clock_nsec });
    }
    if size > vdi.size {
        if is_hyper(size, vdi.block_size_shift) {
            return Err(ClientError::InvalidParameters);
        }
        actions.push(Action::ResizeVdi { vid, size });
    }
    if start + data.len() > HEADER_BYTES && !actions.is_empty() {
        return Err(ClientError::Unsupported(
            "changing a VDI's header and its block table in one write".into(),
        ));
    }
    Ok(actions)
}

pub(crate) fn vid_of(op: &ClientOp) -> Vid {
    match op {
        ClientOp::Volume { vid, .. } | ClientOp::Vdi(VdiOp::Usage { vid } | VdiOp::Table { vid, .. }) => *vid,
        ClientOp::Object { oid, .. } => oid.vid(),
        _ => Vid(0),
    }
}

fn check(ctx: &Context, vid: Vid, op: &ClientOp) -> Result<(), ClientError> {
    if ctx.view.format().is_none() {
        return Err(ClientError::WaitForFormat);
    }
    if ctx.view.is_shut_down() {
        return Err(ClientError::ShuttingDown);
    }
    match (ctx.view.vdi(vid), op) {
        (Some(vdi), ClientOp::Object { oid, op: NativeOp::ReadFlat { .. } })
            if vdi.is_snapshot() && oid.kind() == Some(ObjectKind::Data) =>
        {
            Err(ClientError::StaleInode)
        }
        (Some(_), _) => Ok(()),
        // What others still need of a deleted VDI is read by object, and its table by whoever reclaims the rest.
        (
            None,
            ClientOp::Object { op: NativeOp::Read { .. } | NativeOp::Check { .. }, .. }
            | ClientOp::Vdi(VdiOp::Table { .. }),
        ) if ctx.view.vdi_or_remains(vid).is_some() => Ok(()),
        (None, ClientOp::Object { .. }) => Err(ClientError::NoObject),
        (None, _) => Err(ClientError::NoVdi),
    }
}

fn refuse(ctx: &mut Context, request: Request, error: ClientError) {
    match request.requester {
        to @ (Requester::Session { .. } | Requester::Reclaim { .. } | Requester::Scrub { .. }) => {
            ctx.out.inner.push_back(Inner::Done { to, result: Err(error) });
        }
        Requester::Local(id) => ctx.answer(id, Err(error)),
        Requester::Gateway { node, call } => {
            let request = request.origin.request;
            ctx.reply(
                node,
                call,
                PeerReply::Client { request, result: Err(error), data: Default::default() },
            );
        }
        Requester::Nobody => {}
    }
}

fn not_owner(ctx: &mut Context, request: &Request) {
    if let Requester::Gateway { node, call } = request.requester {
        ctx.reply(node, call, PeerReply::NotOwner { version: ctx.view.version() });
    }
}
