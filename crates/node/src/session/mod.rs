//! The owner of a working VDI: puts its requests in one order and its changes on all copies.
//!
//! A request becomes a [`job`]: one [`task`] per object it touches. A task takes its blocks in [`locks`], reads
//! what it needs ([`reads`]) and sends [`copies`] of its changes. Before the first task, a session that follows
//! one without a clean end [`seal`]s. Overlapping requests wait for each other, so a read sees every change that was
//! answered, and never one of two states in turn.

mod changes;
mod check;
mod closing;
mod copies;
mod inner;
mod inode;
mod job;
mod locks;
mod reads;
mod rest;
mod seal;
mod settled;
mod span;
mod table_io;
mod table_view;
mod task;
mod write_back;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proto::client::{ClientOp, ClientResult};
use proto::object::Origin;
use proto::{BLOCK_BYTES, Generation, Incarnation, NodeId, RequestId, Seq, Vid};
use volume::{BlockTable, chunk_blocks};

use crate::Time;
use crate::context::Context;

use copies::InFlight;
use job::Job;
use locks::Locks;
use reads::Read;
use seal::Seal;
use settled::Settling;
use table_io::{Pages, TableWrite};
use task::Task;
use write_back::WriteBack;

pub(crate) use inner::Inner;
pub(crate) use seal::blocks_of;
pub use settled::GATHERED_MAX;

/// The first change of a session after its seal. 1 stands for the seal, and those between are the seal's own: so it shows of every
/// change whether it is a copy that a seal made.
pub(crate) const FIRST_SEQ: Seq = Seq(1 << 32);
const FIRST_SEQ_OF_SEAL: Seq = Seq(2);

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Requester {
    /// A client of this sheep.
    Local(RequestId),
    /// Another sheep, on behalf of its client.
    Gateway { node: NodeId, call: u64 },
    /// Another session of this sheep, for a task of its own.
    Session { vid: Vid, task: u64, first: u32 },
    /// The reclaimer of this sheep.
    Reclaim { job: u64, ask: u64 },
    /// The scrub of this sheep.
    Scrub { ask: u64 },
    /// The session itself.
    Nobody,
}

/// A request on its way into a session.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub requester: Requester,
    pub origin: Origin,
    pub op: ClientOp,
}

/// What became of a mutation that a gateway forwarded.
#[derive(Debug)]
enum Forwarded {
    Running {
        repeats: Vec<(NodeId, u64)>,
    },
    /// Kept until the gateway has confirmed the answer: it may ask again.
    Done {
        result: ClientResult,
        changes: Vec<Seq>,
        to: NodeId,
        call: u64,
        told: Time,
    },
}

/// A change of an earlier owner that is on all copies.
#[derive(Clone, Copy, Debug)]
struct Survivor {
    oid: proto::Oid,
    blocks: Option<proto::object::BlockRange>,
    /// Only a seal's copy of it is known.
    is_copy: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Sealing,
    Serving,
    /// Finishes what it began and holds what comes: the VDI is about to be frozen.
    Resting,
    /// Finishes what it began; new requests wait outside. Where that takes too long it serves on: see [`closing`].
    Closing,
}

#[derive(Debug)]
pub(crate) struct Session {
    vid: Vid,
    shift: u8,
    chunk_blocks: u32,
    /// Of a VDI that never changes: a reader, of which every sheep may have one. It owns nothing.
    pub frozen: bool,
    pub generation: Generation,
    state: State,
    /// Requests that came before the seal was complete, while the session rests, or while copies have to remember too much.
    queue: VecDeque<Request>,
    next_id: u64,
    jobs: BTreeMap<u64, Job>,
    tasks: BTreeMap<u64, Task>,
    locks: Locks,
    reads: BTreeMap<u64, Read>,
    /// Of tasks that wait for copies to say where objects differ.
    comparisons: BTreeMap<u64, changes::Comparison>,
    next_seq: Seq,
    in_flight: BTreeMap<Seq, InFlight>,
    table: BlockTable,
    pages: Pages,
    /// Tasks that wait for a block of the table to be read.
    loading: BTreeMap<u32, Vec<u64>>,
    table_writes: BTreeMap<u32, TableWrite>,
    seal: Option<Seal>,
    forwarded: BTreeMap<Origin, Forwarded>,
    /// Changes of earlier owners that survived, by the request they came from: not carried out again. Until their gateways
    /// need none of them any more nothing is settled, so that the next owner would learn of them too.
    survived: BTreeMap<Origin, Vec<Survivor>>,
    /// When the gateways of `survived` were last asked what they still wait for.
    recalled: Option<Time>,
    /// Tasks that can go on; emptied before control returns to the node.
    runnable: VecDeque<u64>,
    settling: Settling,
    write_back: WriteBack,
    /// Since when it is to come to rest, and whether it has said that it is.
    resting: Option<rest::Resting>,
    closing: closing::Closing,
    last_used: Time,
    last_used_locally: Time,
}

impl Session {
    /// A session that the view has just given to this node.
    pub fn open(ctx: &mut Context, vid: Vid) -> Session {
        let state = ctx.view.session(vid);
        let needs_seal = state.clean.0 + 1 != state.generation.0;
        let mut session = Session::new(ctx, vid, state.generation, false);
        if needs_seal {
            session.state = State::Sealing;
            session.next_seq = FIRST_SEQ_OF_SEAL;
            session.start_seal(ctx);
        }
        session
    }

    /// A reader of a VDI that never changes: a snapshot, or what others still need of a deleted one.
    pub fn open_frozen(ctx: &mut Context, vid: Vid) -> Session {
        Session::new(ctx, vid, Generation(0), true)
    }

    fn new(ctx: &mut Context, vid: Vid, generation: Generation, frozen: bool) -> Session {
        // Ids begin somewhere else in every session: a late answer to one before must not pass for an answer to this one.
        ctx.out.sessions += 1;
        let vdi = ctx.view.vdi_or_remains(vid).expect("a session is opened on a VDI that exists");
        Session {
            vid,
            shift: vdi.block_size_shift,
            chunk_blocks: chunk_blocks(vdi.block_size_shift),
            frozen,
            generation,
            state: State::Serving,
            queue: VecDeque::new(),
            next_id: ctx.out.sessions << 40,
            jobs: BTreeMap::new(),
            tasks: BTreeMap::new(),
            locks: Locks::default(),
            reads: BTreeMap::new(),
            comparisons: BTreeMap::new(),
            next_seq: FIRST_SEQ,
            in_flight: BTreeMap::new(),
            table: BlockTable::default(),
            pages: Pages::default(),
            loading: BTreeMap::new(),
            table_writes: BTreeMap::new(),
            seal: None,
            forwarded: BTreeMap::new(),
            survived: BTreeMap::new(),
            recalled: None,
            runnable: VecDeque::new(),
            settling: Settling::default(),
            write_back: WriteBack::default(),
            resting: None,
            closing: Default::default(),
            last_used: ctx.now,
            last_used_locally: ctx.now,
        }
    }

    fn object_blocks(&self) -> u32 {
        ((1u64 << self.shift) / BLOCK_BYTES as u64) as u32
    }

    /// Takes a request in. `Err`: the session is closing, ask again when it has.
    pub fn handle_request(&mut self, ctx: &mut Context, request: Request) -> Result<(), Request> {
        // A repeat of what is known here is answered here, even while closing.
        if self.state == State::Closing && !self.forwarded.contains_key(&request.origin) {
            return Err(request);
        }
        self.last_used = ctx.now;
        if matches!(request.requester, Requester::Local(_)) {
            self.last_used_locally = ctx.now;
        }
        if self.gathers(ctx) {
            self.settle_around(ctx);
        }
        let is_new = !self.forwarded.contains_key(&request.origin);
        match self.state {
            // A repeat may only be waiting for the confirmation without which there is no rest.
            State::Resting if is_new => self.enqueue(request),
            State::Sealing => self.enqueue(request),
            // Neither may a request overtake itself: what is carried out, answered and confirmed while it waits here as well would be
            // carried out again, over what was written since.
            State::Serving if is_new && job::is_mutation(&request.op) && self.holds_changes() => {
                self.enqueue(request);
            }
            _ => self.start_job(ctx, request),
        }
        self.run(ctx);
        Ok(())
    }

    fn holds_changes(&self) -> bool {
        self.settling.holds || !self.queue.is_empty()
    }

    /// A gateway's repeat takes the place of its request: that is whom to answer.
    fn enqueue(&mut self, request: Request) {
        let is_repeat = |waiting: &&mut Request| {
            matches!((waiting.requester, request.requester), (Requester::Gateway { node, .. }, Requester::Gateway { node: of, .. }) if node == of)
                && waiting.origin == request.origin
        };
        match self.queue.iter_mut().find(is_repeat) {
            Some(waiting) => *waiting = request,
            None => self.queue.push_back(request),
        }
    }

    fn seal_is_complete(&mut self, ctx: &mut Context) {
        self.seal = None;
        // What the owner before let go of in the table was kept as long as that was not settled: now it is, and that owner tells nobody.
        let top = ctx.view.topmost_deleted(self.vid);
        ctx.out.unreferenced.extend(Some(top).filter(|top| *top != self.vid));
        self.next_seq = FIRST_SEQ;
        self.serve_queue(ctx);
    }

    fn serve_queue(&mut self, ctx: &mut Context) {
        self.state = State::Serving;
        for request in std::mem::take(&mut self.queue) {
            self.start_job(ctx, request);
        }
    }

    /// Lets every task that can go on do so.
    fn run(&mut self, ctx: &mut Context) {
        while let Some(task) = self.runnable.pop_front() {
            self.step(ctx, task);
        }
        self.shrink_table(ctx);
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// The view has moved on: sets of copies may have changed, members may have come or gone.
    pub fn handle_view(&mut self, ctx: &mut Context) {
        self.replan_changes(ctx);
        self.replan_reads(ctx);
        self.replan_seal(ctx);
        self.write_entered_pages(ctx);
        let alive: BTreeSet<Incarnation> = self
            .forwarded
            .keys()
            .map(|o| o.incarnation)
            .filter(|i| ctx.view.is_incarnation_alive(*i))
            .collect();
        // A gateway that is gone will not ask again.
        self.forwarded.retain(|origin, f| {
            alive.contains(&origin.incarnation) || matches!(f, Forwarded::Running { .. })
        });
        let forwarded = &self.forwarded;
        self.survived.retain(|origin, _| {
            ctx.view.is_incarnation_alive(origin.incarnation) || forwarded.contains_key(origin)
        });
        self.look_for_rest(ctx);
        self.run(ctx);
    }

    /// The gateway has the answers.
    pub fn handle_confirm(&mut self, incarnation: Incarnation, requests: &[u64]) {
        for request in requests {
            let origin = Origin { incarnation, request: RequestId(*request) };
            if let Some(Forwarded::Done { .. }) = self.forwarded.get(&origin) {
                self.forwarded.remove(&origin);
            }
            self.survived.remove(&origin);
        }
    }

    /// The client of this sheep that asked has gone. What was begun is finished, for its part of the order is taken;
    /// nothing is taken to the next owner, should this session end before.
    pub fn handle_client_gone(&mut self, id: RequestId) {
        let asker = Requester::Local(id);
        self.queue.retain(|request| request.requester != asker);
        for job in self.jobs.values_mut().filter(|job| job.request.requester == asker) {
            job.request.requester = Requester::Nobody;
        }
    }

    pub fn handle_tick(&mut self, ctx: &mut Context) {
        self.retry_changes(ctx);
        self.retry_reads(ctx);
        self.retry_seal(ctx);
        self.tell_settled(ctx);
        self.settle_around(ctx);
        if self.state == State::Serving && !self.settling.holds && !self.queue.is_empty() {
            self.serve_queue(ctx);
        }
        self.ask_for_confirmation(ctx);
        self.recall_survived(ctx);
        self.look_for_rest(ctx);
        self.run(ctx);
    }

    /// Is this request of a client of this sheep under way here?
    pub fn has_local(&self, id: RequestId) -> bool {
        let is_it = |r: &Request| r.requester == Requester::Local(id);
        self.queue.iter().any(is_it) || self.jobs.values().any(|job| is_it(&job.request))
    }

    pub fn is_busy(&self) -> bool {
        !self.jobs.is_empty()
            || !self.in_flight.is_empty()
            || !self.queue.is_empty()
            || matches!(self.state, State::Sealing | State::Resting)
    }

    /// The session is over before its time. Whoever still waits asks the next owner.
    pub fn abandon(self, ctx: &mut Context) -> Vec<Request> {
        ctx.out.calls.retain(|_, call| {
            !matches!(&call.purpose,
                crate::context::Purpose::Copy { vid, .. }
                | crate::context::Purpose::Read { vid, .. }
                | crate::context::Purpose::Seal { vid } if *vid == self.vid)
        });
        // Who was answered already asks nothing any more: what copies have taken the next owner's seal finds there.
        let unanswered = self.jobs.into_iter().filter(|(id, _)| !self.write_back.is_answered(*id));
        let mut left: Vec<Request> = unanswered.map(|(_, job)| job.request).collect();
        left.extend(self.queue);
        left
    }
}
