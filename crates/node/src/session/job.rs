//! One client request: the tasks it is made of and the answer they add up to.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proto::client::{
    ClientError, ClientOp, ClientReply, ClientResult, IO_BYTES_MAX, NativeOp, Point, VdiOp, VolumeOp,
};
use proto::object::BlockRange;
use proto::peer::{PeerReply, PeerRequest};
use proto::{Incarnation, ObjectKind, Oid, Seq};
use volume::{Piece, pieces};

use super::seal::{Touched, blocks_of};
use super::span::Span;
use super::task::{Kind, WriteMode};
use super::{Forwarded, Inner, Request, Requester, Session};
use crate::context::Context;
use crate::payload::part_of;

/// Tasks of one request that run at once: bounds what a discard of a terabyte holds in memory.
pub(super) const TASKS_MAX: usize = 16;

/// How long a gateway's confirmation may take before it is asked for again.
const CONFIRM_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Job {
    pub request: Request,
    waiting: VecDeque<(u32, Kind)>,
    /// Of which tasks are made when nothing waits.
    span: Option<Span>,
    running: usize,
    parts: BTreeMap<u64, Bytes>,
    reply: Option<ClientReply>,
    error: Option<ClientError>,
    /// The changes it made: until its gateway has the answer, they are not settled.
    pub changes: Vec<Seq>,
    /// Of a long request each task is settled by itself: else everything that is written meanwhile would have to be remembered.
    is_long: bool,
}

impl Job {
    /// Is all of it carried out but for one task, which runs?
    pub fn is_last_task(&self) -> bool {
        self.running == 1 && self.waiting.is_empty() && self.span.is_none() && self.error.is_none()
    }
}

/// What a request is made of.
enum Plan {
    Tasks(Vec<(u32, Kind)>),
    Span(Span),
}

impl Session {
    pub(super) fn start_job(&mut self, ctx: &mut Context, request: Request) {
        let Requester::Gateway { node, call } = request.requester else {
            return self.begin_job(ctx, request);
        };
        // It hears no answer, and an earlier owner may have carried this out: the seal remembers only what may be asked again.
        if !ctx.view.is_incarnation_alive(request.origin.incarnation) {
            return;
        }
        // A gateway asks again when a link broke; what was carried out is not carried out twice.
        match self.forwarded.get_mut(&request.origin) {
            Some(Forwarded::Running { repeats, .. }) => repeats.push((node, call)),
            Some(Forwarded::Done { result, .. }) => {
                ctx.reply(node, call, client_reply(&request, result));
            }
            None => self.begin_job(ctx, request),
        }
    }

    fn begin_job(&mut self, ctx: &mut Context, request: Request) {
        let id = self.fresh_id();
        if matches!(request.requester, Requester::Gateway { .. }) && is_mutation(&request.op) {
            self.forwarded.insert(request.origin, Forwarded::Running { repeats: Vec::new() });
        }
        let plan = self.plan_job(ctx, &request.op);
        let mut job = Job {
            request,
            waiting: VecDeque::new(),
            span: None,
            running: 0,
            parts: BTreeMap::new(),
            reply: None,
            error: None,
            changes: Vec::new(),
            is_long: false,
        };
        match plan {
            Ok(Plan::Tasks(tasks)) => job.waiting = tasks.into(),
            Ok(Plan::Span(span)) => {
                job.is_long = span.is_long();
                job.span = Some(span);
            }
            Err(error) => job.error = Some(error),
        }
        let is_flush = matches!(job.request.op, ClientOp::Volume { op: VolumeOp::Flush, .. });
        if is_flush && job.error.is_none() && self.begin_flush(id) {
            // It counts as a task.
            job.running = 1;
        }
        self.jobs.insert(id, job);
        self.feed_job(ctx, id);
    }

    pub(super) fn feed_job(&mut self, ctx: &mut Context, id: u64) {
        loop {
            let Some(job) = self.jobs.get_mut(&id) else { return };
            if job.running >= TASKS_MAX {
                return;
            }
            if let Some(mut span) = job.span.filter(|_| job.waiting.is_empty()) {
                let tasks = self.next_tasks(ctx, &mut span);
                let job = self.jobs.get_mut(&id).expect("just seen");
                job.span = Some(span).filter(|_| !tasks.is_empty());
                job.waiting.extend(tasks);
            }
            let job = self.jobs.get_mut(&id).expect("just seen");
            let Some((index, kind)) = job.waiting.pop_front() else { break };
            job.running += 1;
            self.start_task(id, index, kind);
        }
        if self.jobs.get(&id).is_some_and(|j| j.running == 0) {
            self.end_job(ctx, id);
        }
    }

    /// What the request asks of each object.
    fn plan_job(&self, ctx: &Context, op: &ClientOp) -> Result<Plan, ClientError> {
        let vdi = ctx.view.vdi_or_remains(self.vid).ok_or(ClientError::NoVdi)?;
        // An old client's write to the table may come late; what of it is legal `plan_inode` knows.
        let may_pass = match op {
            ClientOp::Object { op: NativeOp::Check { .. }, .. } => true,
            ClientOp::Object { oid, op: NativeOp::Write { .. } } => oid.kind() == Some(ObjectKind::Inode),
            _ => false,
        };
        if self.frozen && is_mutation(op) && !may_pass {
            return Err(ClientError::ReadOnly);
        }
        let check = |offset: u64, len: u64| match offset.checked_add(len) {
            Some(end) if end <= vdi.size => Ok(()),
            _ => Err(ClientError::OutOfRange),
        };
        let zeros = |offset: u64, len: u64, keep_allocated| {
            check(offset, len)?;
            Ok(Plan::Span(Span { at: offset, end: offset + len, keep_allocated }))
        };
        let tasks = match op {
            ClientOp::Volume { op, .. } => match op {
                VolumeOp::Read { offset, len } => {
                    if *len > IO_BYTES_MAX {
                        return Err(ClientError::InvalidParameters);
                    }
                    check(*offset, u64::from(*len))?;
                    let all = pieces(*offset, u64::from(*len), self.shift);
                    all.map(|p| (p.index, Kind::Read { piece: p, must_exist: false })).collect()
                }
                VolumeOp::Write { offset, data } | VolumeOp::WriteBack { offset, data } => {
                    check(*offset, data.len() as u64)?;
                    let all = pieces(*offset, data.len() as u64, self.shift);
                    let part = |p: &Piece| part_of(data, p.at as usize, p.len as usize);
                    let task = |p: Piece| Kind::Write { data: part(&p), piece: p, mode: WriteMode::Allocate };
                    all.map(|p| (p.index, task(p))).collect()
                }
                VolumeOp::Discard { offset, len } => return zeros(*offset, *len, false),
                VolumeOp::WriteZeroes { offset, len, keep_allocated } => {
                    return zeros(*offset, *len, *keep_allocated);
                }
                VolumeOp::BlockStatus { offset, len } => {
                    check(*offset, *len)?;
                    vec![(0, Kind::BlockStatus { offset: *offset, len: *len })]
                }
                VolumeOp::Changes { since, offset, len } => {
                    check(*offset, *len)?;
                    vec![(0, Kind::Changes { since: *since, offset: *offset, len: *len })]
                }
                // What was acknowledged in write-back mode is waited for by the job itself.
                VolumeOp::Flush => Vec::new(),
                VolumeOp::Resize { .. } => return Err(ClientError::InvalidParameters),
            },
            ClientOp::Object { oid, op } => self.plan_native(ctx, *oid, op)?,
            ClientOp::Vdi(VdiOp::Usage { .. }) => vec![(0, Kind::Usage { next: 0, own: 0, shared: 0 })],
            ClientOp::Vdi(VdiOp::Table { first, .. }) => vec![(0, Kind::Table { first: *first })],
            _ => return Err(ClientError::InvalidParameters),
        };
        Ok(Plan::Tasks(tasks))
    }

    fn plan_native(&self, ctx: &Context, oid: Oid, op: &NativeOp) -> Result<Vec<(u32, Kind)>, ClientError> {
        match (oid.kind(), op) {
            (Some(ObjectKind::BTree), NativeOp::Check { .. })
                if oid.index() >= self.table_end(ctx).div_ceil(volume::PAGE_BLOCKS) =>
            {
                Err(ClientError::NoObject)
            }
            (Some(ObjectKind::Data), NativeOp::Check { .. })
                if u64::from(oid.index()) >= self.object_count(ctx) =>
            {
                Err(ClientError::NoObject)
            }
            (Some(_), NativeOp::Check { repair, part }) => {
                let size = blocks_of(oid, self.shift);
                let all = BlockRange::new(0, size);
                let blocks = part.unwrap_or(all);
                if blocks.end() > u64::from(size) {
                    return Err(ClientError::InvalidParameters);
                }
                Ok(vec![(oid.index(), Kind::Check { oid, blocks, repair: *repair })])
            }
            (Some(ObjectKind::Inode), _) => self.plan_inode(ctx, op),
            (Some(ObjectKind::Data), _) if u64::from(oid.index()) >= self.object_count(ctx) => {
                beyond_the_end(op)
            }
            (Some(ObjectKind::Data), _) => self.plan_data_object(oid.index(), op),
            (Some(ObjectKind::VmState), _) => self.plan_vm_state(oid.index(), op),
            _ => Err(ClientError::Unsupported("objects of this kind".into())),
        }
    }

    fn plan_data_object(&self, index: u32, op: &NativeOp) -> Result<Vec<(u32, Kind)>, ClientError> {
        let size = 1u64 << self.shift;
        let piece = |offset: u32, len: usize| self.piece_of_object(index, offset, len);
        let task = match op {
            NativeOp::Read { offset, len } => {
                Kind::Read { piece: piece(*offset, *len as usize)?, must_exist: true }
            }
            NativeOp::Write { offset, data } => Kind::Write {
                piece: piece(*offset, data.len())?,
                data: data.clone(),
                mode: WriteMode::MustExist,
            },
            NativeOp::ReadFlat { offset, len } => {
                Kind::Read { piece: piece(*offset, *len as usize)?, must_exist: false }
            }
            NativeOp::WriteFlat { offset, data } => Kind::Write {
                piece: piece(*offset, data.len())?,
                data: data.clone(),
                mode: WriteMode::Allocate,
            },
            NativeOp::Create { offset, cow_from: Some(from), data } => {
                if from.kind() != Some(ObjectKind::Data) {
                    return Err(ClientError::InvalidParameters);
                }
                Kind::Write {
                    piece: piece(*offset, data.len())?,
                    data: data.clone(),
                    mode: WriteMode::CopyOf(*from),
                }
            }
            NativeOp::Create { offset, cow_from: None, data } => Kind::Write {
                piece: piece(*offset, data.len())?,
                data: data.clone(),
                mode: WriteMode::Replace,
            },
            NativeOp::Discard => {
                Kind::Zero { piece: Piece { index, offset: 0, len: size as u32, at: 0 }, whole: true }
            }
            NativeOp::Check { .. } => return Err(ClientError::InvalidParameters),
        };
        Ok(vec![(index, task)])
    }

    fn piece_of_object(&self, index: u32, offset: u32, len: usize) -> Result<Piece, ClientError> {
        let fits = u64::from(offset) + len as u64 <= 1 << self.shift && len <= IO_BYTES_MAX as usize;
        fits.then_some(Piece { index, offset, len: len as u32, at: 0 }).ok_or(ClientError::InvalidParameters)
    }

    /// Objects of a saved machine's state: in no table, made by a write to their beginning.
    fn plan_vm_state(&self, index: u32, op: &NativeOp) -> Result<Vec<(u32, Kind)>, ClientError> {
        let piece = |offset: u32, len: usize| self.piece_of_object(index, offset, len);
        let task = match op {
            NativeOp::Read { offset, len } => {
                Kind::VmState { piece: piece(*offset, *len as usize)?, data: None, replace: false }
            }
            NativeOp::Write { offset, data } => {
                Kind::VmState { piece: piece(*offset, data.len())?, data: Some(data.clone()), replace: false }
            }
            NativeOp::Create { offset, data, .. } => {
                Kind::VmState { piece: piece(*offset, data.len())?, data: Some(data.clone()), replace: true }
            }
            _ => return Err(ClientError::InvalidParameters),
        };
        Ok(vec![(index, task)])
    }

    /// Checks a part of an object after a copy of it turned out damaged, and mends it.
    pub(super) fn mend(&mut self, ctx: &mut Context, oid: Oid, blocks: BlockRange) {
        let request = Request {
            requester: Requester::Nobody,
            origin: Default::default(),
            op: ClientOp::Object { oid, op: NativeOp::Check { repair: true, part: Some(blocks) } },
        };
        let id = self.fresh_id();
        let task = (oid.index(), Kind::Check { oid, blocks, repair: true });
        let job = Job {
            request,
            waiting: VecDeque::from([task]),
            span: None,
            running: 0,
            parts: BTreeMap::new(),
            reply: None,
            error: None,
            changes: Vec::new(),
            is_long: false,
        };
        self.jobs.insert(id, job);
        self.feed_job(ctx, id);
    }

    pub(super) fn note_change(&mut self, job: u64, seq: Seq) {
        let Some(job) = self.jobs.get_mut(&job) else { return };
        if !job.is_long {
            job.changes.push(seq);
        }
        if self.settling.found.contains(&job.request.origin) {
            self.settling.repeated.insert(seq);
        }
    }

    pub(super) fn add_part(&mut self, job: u64, at: u64, data: Bytes) {
        if let Some(job) = self.jobs.get_mut(&job) {
            job.parts.insert(at, data);
        }
    }

    pub(super) fn set_reply(&mut self, job: u64, reply: ClientReply) {
        if let Some(job) = self.jobs.get_mut(&job) {
            job.reply = Some(reply);
        }
    }

    pub(super) fn task_ended(&mut self, ctx: &mut Context, id: u64, result: Result<(), ClientError>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.running -= 1;
        if let Err(error) = result {
            job.error.get_or_insert(error);
            job.waiting.clear();
            job.span = None;
        }
        self.feed_job(ctx, id);
    }

    fn end_job(&mut self, ctx: &mut Context, id: u64) {
        let job = self.jobs.get_mut(&id).expect("looked up by the caller");
        if self.write_back.is_answered(id) {
            assert!(job.error.is_none(), "a write that was answered cannot be refused: {:?}", job.error);
            self.jobs.remove(&id);
            return self.end_write_back(ctx, id);
        }
        let result: ClientResult = match (job.error.take(), job.reply.take()) {
            (Some(error), _) => Err(error),
            // Deleted while it was read: objects that were gone already looked like zeros.
            (None, _)
                if matches!(job.request.op, ClientOp::Volume { .. }) && ctx.view.vdi(self.vid).is_none() =>
            {
                Err(ClientError::NoVdi)
            }
            (None, Some(reply)) => Ok(reply),
            (None, None) if is_read(&job.request.op) => {
                Ok(ClientReply::Data(join(std::mem::take(&mut job.parts))))
            }
            (None, None) => Ok(ClientReply::Done),
        };
        let succeeded = result.is_ok();
        let is_answered = self.answer_job(ctx, id, result);
        self.jobs.remove(&id);
        if !is_answered {
            self.adoption_ended(ctx, id, succeeded);
        }
    }

    /// Tells whoever asked. False: nobody did.
    pub(super) fn answer_job(&mut self, ctx: &mut Context, id: u64, result: ClientResult) -> bool {
        let job = self.jobs.get_mut(&id).expect("looked up by the caller");
        match job.request.requester {
            Requester::Local(request) => {
                self.survived.remove(&job.request.origin);
                ctx.answer(request, result);
            }
            to @ (Requester::Session { .. } | Requester::Reclaim { .. } | Requester::Scrub { .. }) => {
                ctx.out.inner.push_back(Inner::Done { to, result });
            }
            Requester::Nobody => return false,
            Requester::Gateway { node, call } => {
                let mut calls = vec![(node, call)];
                if let Some(Forwarded::Running { repeats, .. }) = self.forwarded.remove(&job.request.origin) {
                    calls.extend(repeats);
                    // A gateway that is gone will not ask again.
                    if ctx.view.is_incarnation_alive(job.request.origin.incarnation) {
                        let (result, changes) = (result.clone(), std::mem::take(&mut job.changes));
                        let done = Forwarded::Done { result, changes, to: node, call, told: ctx.now };
                        self.forwarded.insert(job.request.origin, done);
                    } else {
                        self.survived.remove(&job.request.origin);
                    }
                }
                for (node, call) in calls {
                    ctx.reply(node, call, client_reply(&job.request, &result));
                }
            }
        }
        true
    }

    /// Asks the gateways of requests that earlier owners carried out which of them they still wait for.
    pub(super) fn recall_survived(&mut self, ctx: &mut Context) {
        let due = self.recalled.is_none_or(|at| ctx.now.since(at) > CONFIRM_AFTER);
        if self.survived.is_empty() || self.state == super::State::Sealing || !due {
            return;
        }
        self.recalled = Some(ctx.now);
        let mut by_gateway: BTreeMap<Incarnation, Vec<u64>> = BTreeMap::new();
        for origin in self.survived.keys() {
            by_gateway.entry(origin.incarnation).or_default().push(origin.request.0);
        }
        for (incarnation, requests) in by_gateway {
            if let Some(gateway) = ctx.view.member_in_life(incarnation) {
                ctx.tell(gateway, PeerRequest::Recall { incarnation, requests });
            }
        }
    }

    /// Lets a seal's end wait for the objects that earlier owners may have made: the table is to name those that exist.
    pub(super) fn start_adoption(&mut self, touched: BTreeMap<u32, Touched>) -> u64 {
        let id = self.fresh_id();
        let job = Job {
            request: Request {
                requester: Requester::Nobody,
                origin: Default::default(),
                op: ClientOp::Volume { vid: self.vid, at: Point::Head, op: VolumeOp::Flush },
            },
            waiting: touched.into_iter().map(|(index, touched)| (index, Kind::Adopt(touched))).collect(),
            span: None,
            running: 0,
            parts: BTreeMap::new(),
            reply: None,
            error: None,
            changes: Vec::new(),
            is_long: false,
        };
        self.jobs.insert(id, job);
        id
    }

    /// Repeats answers whose confirmation has not come: until it has, they may be asked for again.
    pub(super) fn ask_for_confirmation(&mut self, ctx: &mut Context) {
        for (origin, forwarded) in &mut self.forwarded {
            let Forwarded::Done { result, to, call, told, .. } = forwarded else { continue };
            if ctx.now.since(*told) > CONFIRM_AFTER {
                *told = ctx.now;
                let (request, result) = (origin.request, result.clone());
                ctx.reply(*to, *call, PeerReply::Client { request, result, data: Bytes::new() });
            }
        }
    }
}

/// What a native client is told of an object that lies beyond the VDI's size: that it is not there, and that it is not to be.
fn beyond_the_end(op: &NativeOp) -> Result<Vec<(u32, Kind)>, ClientError> {
    match op {
        NativeOp::Read { .. } | NativeOp::Write { .. } | NativeOp::Check { .. } => Err(ClientError::NoObject),
        NativeOp::Discard => Ok(Vec::new()),
        NativeOp::Create { .. } | NativeOp::ReadFlat { .. } | NativeOp::WriteFlat { .. } => {
            Err(ClientError::InvalidParameters)
        }
    }
}

fn client_reply(request: &Request, result: &ClientResult) -> PeerReply {
    let data = result.as_ref().map(|r| r.payload()).unwrap_or_default();
    PeerReply::Client { request: request.origin.request, result: result.clone(), data }
}

pub(super) fn is_mutation(op: &ClientOp) -> bool {
    match op {
        ClientOp::Volume { op, .. } => !matches!(
            op,
            VolumeOp::Read { .. } | VolumeOp::BlockStatus { .. } | VolumeOp::Changes { .. } | VolumeOp::Flush
        ),
        ClientOp::Object { op, .. } => !matches!(op, NativeOp::Read { .. } | NativeOp::ReadFlat { .. }),
        _ => false,
    }
}

fn is_read(op: &ClientOp) -> bool {
    matches!(
        op,
        ClientOp::Volume { op: VolumeOp::Read { .. }, .. }
            | ClientOp::Object { op: NativeOp::Read { .. } | NativeOp::ReadFlat { .. }, .. }
    )
}

fn join(parts: BTreeMap<u64, Bytes>) -> Bytes {
    if parts.len() == 1 {
        return parts.into_values().next().expect("there is one");
    }
    let mut whole = BytesMut::with_capacity(parts.values().map(|p| p.len()).sum());
    parts.values().for_each(|part| whole.extend_from_slice(part));
    whole.freeze()
}
