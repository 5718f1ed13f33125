//! Brings this node's copies up to date: a full resync, PG by PG.
//!
//! 1. The node proposes to catch up. From the version at which that is applied, every change of the PG is sent here too and
//!    awaited. It is remembered which blocks such changes decide.
//! 2. The objects of the PG are listed at an in-sync copy, and here. Each is fetched, piece by piece, from a copy whose view
//!    is as new, which therefore refuses changes that were not sent here; so a fetched block is either current or
//!    decided here already, and those are left alone.
//! 3. When all is durable the node proposes to be in sync.
//!
//! A node that goes down while it catches up starts again from the first step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use proto::checksum::block_checksums;
use proto::cluster::Action;
use proto::object::{BlockRange, Change, ObjectInfo, ObjectOp, ObjectReply, Stamp, WriteBase};
use proto::peer::{PeerReply, PeerRequest};
use proto::{BLOCK_BYTES, NodeId, Oid, PgId, Since};

use crate::Time;
use crate::context::{Context, ProposalUse, Purpose, StoreUse};
use crate::replica::{Covered, Replica};

/// Blocks fetched at once: 1 MiB.
const FETCH_BLOCKS: u32 = 256;
/// Objects fetched at the same time.
const OBJECTS_MAX: usize = 8;
/// PGs in one proposal or listing: keeps both well below the size of an event or a frame.
const PGS_MAX: usize = 1024;
/// Pause after an attempt that was refused or dropped.
const BACK_OFF: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(crate) struct CatchUp {
    pgs: BTreeMap<PgId, Behind>,
    rounds: BTreeMap<u64, Round>,
    next_round: u64,
    objects: BTreeMap<(PgId, Oid), Fetching>,
    not_before: BTreeMap<PgId, Time>,
}

/// A PG that this node is catching up on.
#[derive(Debug)]
struct Behind {
    started: Since,
    stage: Stage,
    todo: BTreeSet<Oid>,
    /// Decided by changes since `started`.
    decided: BTreeMap<Oid, Decided>,
    /// Objects that changes cloned from others when those were not here yet, and the newest such change of each.
    cloned: BTreeMap<Oid, Cloned>,
    /// How often a copy could not give what it has of an object. The next one is asked then.
    failures: BTreeMap<Oid, usize>,
    backfills: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Unlisted,
    Listing,
    Copying,
    Proposed,
}

#[derive(Debug)]
enum Decided {
    Whole,
    Blocks(BTreeSet<u32>),
}

/// How an object came into being whose base was not here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cloned {
    base: Oid,
    stamp: Stamp,
    /// The base has been fetched.
    is_complete: bool,
}

/// One listing of several PGs at one source.
#[derive(Debug)]
struct Round {
    source: NodeId,
    pgs: Vec<(PgId, Since)>,
}

/// An object on its way here.
#[derive(Debug)]
struct Fetching {
    source_blocks: Option<u32>,
    own_blocks: Option<u32>,
    next: u32,
    source: NodeId,
    /// The object that is read there: another one where the source has not carried out the clone yet.
    from: Oid,
}

impl CatchUp {
    pub fn pgs_behind(&self) -> u32 {
        self.pgs.len() as u32
    }

    /// A change has been accepted: what it covers is current here.
    pub fn handle_covered(&mut self, covered: Covered) {
        let Some(behind) = self.pgs.get_mut(&covered.pg) else { return };
        match (behind.decided.get_mut(&covered.oid), covered.blocks) {
            (Some(Decided::Whole), _) => {}
            (Some(Decided::Blocks(known)), Some(blocks)) => known.extend(blocks.first..blocks.end() as u32),
            (None, Some(blocks)) => {
                let blocks = (blocks.first..blocks.end() as u32).collect();
                behind.decided.insert(covered.oid, Decided::Blocks(blocks));
            }
            (_, None) => {
                behind.decided.insert(covered.oid, Decided::Whole);
            }
        }
    }

    /// A change that clones an object which this copy does not have yet is carried out without its base; what the base would have
    /// given is fetched. Returns what has to be known for that.
    pub fn lacks_base_of(&self, ctx: &Context, body: &mut PeerRequest) -> Option<Cloned> {
        let PeerRequest::Change { pg, change: Change::Write { base, .. }, tag, .. } = body else {
            return None;
        };
        let WriteBase::CloneOf(from) = *base else { return None };
        let behind = self.pgs.get(pg).filter(|_| ctx.view.pg(*pg).is_some_and(|s| s.is_catching(ctx.me)))?;
        let has_it = !behind.todo.contains(&from)
            && !self.objects.contains_key(&(*pg, from))
            && behind.backfills == 0
            && !own_list_pending(ctx);
        let complete = behind.stage == Stage::Proposed || (behind.stage == Stage::Copying && has_it);
        if complete {
            return None;
        }
        *base = WriteBase::Keep;
        Some(Cloned { base: from, stamp: tag.stamp, is_complete: false })
    }

    /// The rest of the object is to be fetched from what it was cloned from, which never changes. There may have been an object
    /// of this id before, which the clone has replaced: what changes had decided of that, and what of it is on its way here
    /// from a source that has not carried out the clone, means nothing any more.
    pub fn handle_cloned(&mut self, ctx: &mut Context, covered: Covered, clone: Cloned) {
        let Some(behind) = self.pgs.get_mut(&covered.pg) else { return };
        let is_repeat = behind.cloned.get(&covered.oid).is_some_and(|known| known.stamp >= clone.stamp);
        if is_repeat || covered.blocks.is_none() {
            return;
        }
        behind.cloned.insert(covered.oid, clone);
        behind.decided.remove(&covered.oid);
        self.objects.remove(&(covered.pg, covered.oid));
        let is_old = |purpose: &Purpose| match purpose {
            Purpose::Length { pg, oid } | Purpose::Fetch { pg, oid, .. } => {
                (*pg, *oid) == (covered.pg, covered.oid)
            }
            _ => false,
        };
        ctx.out.calls.retain(|_, call| !is_old(&call.purpose));
        behind.todo.insert(covered.oid);
        if behind.stage == Stage::Proposed {
            behind.stage = Stage::Copying;
        }
    }

    /// The store could not take an accepted change after all: its blocks have to be fetched.
    pub fn handle_not_covered(&mut self, covered: Covered) {
        let Some(behind) = self.pgs.get_mut(&covered.pg) else { return };
        behind.decided.remove(&covered.oid);
        behind.todo.insert(covered.oid);
        if behind.stage == Stage::Proposed {
            behind.stage = Stage::Copying;
        }
    }

    /// Looks at the view and starts or stops what it says.
    pub fn handle_view(&mut self, ctx: &mut Context, replica: &mut Replica, changed: &[PgId]) {
        for id in changed {
            let attempt =
                ctx.view.pg(*id).and_then(|pg| pg.catching.iter().find(|c| c.node == ctx.me).copied());
            let known = self.pgs.get(id).map(|b| b.started);
            match attempt {
                Some(attempt) if known == Some(attempt.started) => {}
                Some(attempt) => {
                    self.stop(ctx, *id);
                    replica.forget_pg(ctx, *id);
                    let behind = Behind {
                        started: attempt.started,
                        stage: Stage::Unlisted,
                        todo: BTreeSet::new(),
                        decided: BTreeMap::new(),
                        cloned: BTreeMap::new(),
                        failures: BTreeMap::new(),
                        backfills: 0,
                    };
                    self.pgs.insert(*id, behind);
                }
                None if known.is_some() => {
                    self.stop(ctx, *id);
                    if !ctx.view.pg(*id).is_some_and(|pg| pg.in_sync.contains(&ctx.me)) {
                        self.not_before.insert(*id, ctx.now.after(BACK_OFF));
                    }
                }
                None => {}
            }
        }
        self.advance(ctx);
    }

    fn stop(&mut self, ctx: &mut Context, id: PgId) {
        self.pgs.remove(&id);
        self.objects.retain(|(pg, _), _| *pg != id);
        ctx.out.calls.retain(|_, call| {
            !matches!(&call.purpose, Purpose::Length { pg, .. } | Purpose::Fetch { pg, .. } if *pg == id)
        });
        for round in self.rounds.values_mut() {
            round.pgs.retain(|(pg, _)| *pg != id);
        }
    }

    /// Does whatever can be done now.
    pub fn advance(&mut self, ctx: &mut Context) {
        self.propose_start(ctx);
        self.start_rounds(ctx);
        self.start_objects(ctx);
        self.propose_finish(ctx);
    }

    fn propose_start(&mut self, ctx: &mut Context) {
        if ctx.is_proposed(&ProposalUse::CatchUp) {
            return;
        }
        let mut wanted = Vec::new();
        for (number, pool) in ctx.view.pools().iter().enumerate() {
            for (index, pg) in pool.pgs.iter().enumerate() {
                let id = PgId { pool: proto::PoolId(number as u8), index: index as u32 };
                let lacking = pg.targets.contains(&ctx.me) && !pg.writers().any(|n| n == ctx.me);
                let has_source = pg.in_sync.iter().any(|n| ctx.view.is_up(*n));
                let may = self.not_before.get(&id).is_none_or(|at| *at <= ctx.now);
                if lacking && has_source && may && wanted.len() < PGS_MAX {
                    wanted.push((id, pg.since));
                }
            }
        }
        if !wanted.is_empty() {
            for (id, _) in &wanted {
                self.not_before.insert(*id, ctx.now.after(BACK_OFF));
            }
            ctx.propose(Action::StartCatchUp { pgs: wanted }, ProposalUse::CatchUp);
        }
    }

    fn start_rounds(&mut self, ctx: &mut Context) {
        let mut by_source: BTreeMap<NodeId, Vec<(PgId, Since)>> = BTreeMap::new();
        for (id, _) in self.pgs.iter().filter(|(_, b)| b.stage == Stage::Unlisted) {
            if let Some((source, since)) = source_of(ctx, *id, 0) {
                let pgs = by_source.entry(source).or_default();
                if pgs.len() < PGS_MAX {
                    pgs.push((*id, since));
                }
            }
        }
        for (source, pgs) in by_source {
            for (id, _) in &pgs {
                self.pgs.get_mut(id).expect("from the map").stage = Stage::Listing;
            }
            self.next_round += 1;
            self.rounds.insert(self.next_round, Round { source, pgs: pgs.clone() });
            // What lies here already is compared as well: it may have been deleted meanwhile.
            let op = ObjectOp::List { first: Oid(0), last: Oid(u64::MAX), limit: u32::MAX };
            ctx.store(op, StoreUse::OwnList { round: self.next_round });
            ctx.call(
                source,
                PeerRequest::List { pgs, after: None },
                Purpose::List { round: self.next_round },
            );
        }
    }

    pub fn handle_own_list(&mut self, ctx: &mut Context, round: u64, objects: Vec<ObjectInfo>) {
        let Some(round) = self.rounds.get(&round) else { return };
        let pgs: Vec<PgId> = round.pgs.iter().map(|(pg, _)| *pg).collect();
        self.add_objects(ctx, &pgs, objects);
    }

    fn add_objects(&mut self, ctx: &Context, pgs: &[PgId], objects: Vec<ObjectInfo>) {
        let wanted: BTreeSet<PgId> = pgs.iter().copied().collect();
        for object in objects {
            let Some(pg) = ctx.view.pg_of(object.oid).filter(|pg| wanted.contains(pg)) else { continue };
            if let Some(behind) = self.pgs.get_mut(&pg) {
                behind.todo.insert(object.oid);
            }
        }
    }

    pub fn handle_list_reply(&mut self, ctx: &mut Context, id: u64, reply: PeerReply) {
        let Some(round) = self.rounds.get(&id) else { return };
        let (source, pgs) = (round.source, round.pgs.clone());
        let ids: Vec<PgId> = pgs.iter().map(|(pg, _)| *pg).collect();
        match reply {
            PeerReply::Objects { objects, complete } => {
                let after = objects.last().map(|o| o.oid);
                self.add_objects(ctx, &ids, objects);
                if complete {
                    self.end_round(id, Stage::Copying);
                } else {
                    ctx.call(source, PeerRequest::List { pgs, after }, Purpose::List { round: id });
                }
            }
            _ => self.end_round(id, Stage::Unlisted),
        }
        self.start_objects(ctx);
        self.propose_finish(ctx);
    }

    fn end_round(&mut self, id: u64, stage: Stage) {
        let Some(round) = self.rounds.remove(&id) else { return };
        for (pg, _) in round.pgs {
            if let Some(behind) = self.pgs.get_mut(&pg) {
                behind.stage = stage;
            }
        }
    }

    /// The listing's own half has to come first: `OwnList` is answered before any remote answer can be complete only
    /// by luck, so a PG counts as listed when both are there.
    fn start_objects(&mut self, ctx: &mut Context) {
        if own_list_pending(ctx) {
            return;
        }
        let mut start = Vec::new();
        for (id, behind) in self.pgs.iter().filter(|(_, b)| b.stage == Stage::Copying) {
            for oid in &behind.todo {
                if self.objects.len() + start.len() >= OBJECTS_MAX {
                    break;
                }
                if !self.objects.contains_key(&(*id, *oid)) {
                    start.push((*id, *oid));
                }
            }
        }
        for (pg, oid) in start {
            let failures = self.pgs.get(&pg).and_then(|b| b.failures.get(&oid)).copied().unwrap_or(0);
            let Some((source, since)) = source_of(ctx, pg, failures) else { continue };
            let clone = self.pgs.get(&pg).and_then(|behind| behind.cloned.get(&oid));
            let from = clone.filter(|clone| !clone.is_complete).map_or(oid, |clone| clone.base);
            let fetching = Fetching { source_blocks: None, own_blocks: None, next: 0, source, from };
            self.objects.insert((pg, oid), fetching);
            ctx.store(ObjectOp::Checksums { oid }, StoreUse::OwnLength { pg, oid });
            ctx.call(source, PeerRequest::Checksums { pg, since, oid: from }, Purpose::Length { pg, oid });
        }
    }

    pub fn handle_own_length(&mut self, ctx: &mut Context, pg: PgId, oid: Oid, reply: ObjectReply) {
        let Some(fetching) = self.objects.get_mut(&(pg, oid)) else { return };
        fetching.own_blocks = Some(match reply {
            ObjectReply::Checksums(checksums) => checksums.len() as u32,
            _ => 0,
        });
        self.fetch_next(ctx, pg, oid);
    }

    pub fn handle_length_reply(&mut self, ctx: &mut Context, pg: PgId, oid: Oid, reply: PeerReply) {
        let Some(fetching) = self.objects.get_mut(&(pg, oid)) else { return };
        match reply {
            PeerReply::Checksums(checksums) => fetching.source_blocks = Some(checksums.len() as u32),
            // Nobody needs the base any more, so the clone is complete everywhere else.
            PeerReply::Absent if fetching.from != oid && ctx.view.vdi(fetching.from.vid()).is_none() => {
                fetching.from = oid;
                let since = ctx.view.pg(pg).map(|state| state.since).unwrap_or_default();
                let ask = PeerRequest::Checksums { pg, since, oid };
                ctx.call(fetching.source, ask, Purpose::Length { pg, oid });
                return;
            }
            PeerReply::Absent => fetching.source_blocks = Some(0),
            // Tried again at the next tick.
            other => return self.fetch_again(pg, oid, &other),
        }
        self.fetch_next(ctx, pg, oid);
    }

    fn fetch_next(&mut self, ctx: &mut Context, pg: PgId, oid: Oid) {
        let Some(fetching) = self.objects.get_mut(&(pg, oid)) else { return };
        let (Some(source_blocks), Some(own_blocks)) = (fetching.source_blocks, fetching.own_blocks) else {
            return;
        };
        let Some(behind) = self.pgs.get_mut(&pg) else { return };
        let whole = matches!(behind.decided.get(&oid), Some(Decided::Whole));
        if whole || fetching.next >= source_blocks.max(own_blocks) {
            if let Some(clone) = behind.cloned.get_mut(&oid) {
                clone.is_complete = true;
            }
            if source_blocks == 0 && !behind.decided.contains_key(&oid) {
                // Neither there nor decided since: it was deleted while this node was away.
                behind.backfills += 1;
                let op = ObjectOp::Change { oid, change: Change::Delete, data: Bytes::new(), tag: None };
                ctx.store(op, StoreUse::Backfill { pg, oid });
            }
            behind.todo.remove(&oid);
            self.objects.remove(&(pg, oid));
            self.start_objects(ctx);
            return self.propose_finish(ctx);
        }
        let first = fetching.next;
        if first >= source_blocks {
            let rest = BlockRange::new(first, own_blocks - first);
            fetching.next = own_blocks;
            self.backfill(ctx, pg, oid, rest, None);
            return self.fetch_next(ctx, pg, oid);
        }
        let blocks = BlockRange::new(first, FETCH_BLOCKS.min(source_blocks - first));
        let Some(since) = ctx.view.pg(pg).map(|state| state.since) else { return };
        ctx.call(
            fetching.source,
            PeerRequest::Read { pg, since, oid: fetching.from, blocks },
            Purpose::Fetch { pg, oid, first },
        );
    }

    pub fn handle_fetch_reply(
        &mut self,
        ctx: &mut Context,
        pg: PgId,
        oid: Oid,
        first: u32,
        reply: PeerReply,
    ) {
        let Some(fetching) = self.objects.get_mut(&(pg, oid)) else { return };
        let Some(total) = fetching.source_blocks else { return };
        let blocks = BlockRange::new(first, FETCH_BLOCKS.min(total - first));
        let data = match reply {
            PeerReply::Data { data, .. } if data.len() == blocks.count as usize * BLOCK_BYTES => Some(data),
            // The base is gone: all is looked at anew.
            PeerReply::Absent if fetching.from != oid => {
                self.objects.remove(&(pg, oid));
                return;
            }
            // Deleted since: the change has come here too.
            PeerReply::Absent => None,
            other => return self.fetch_again(pg, oid, &other),
        };
        fetching.next = first + blocks.count;
        self.backfill(ctx, pg, oid, blocks, data);
        self.fetch_next(ctx, pg, oid);
    }

    /// Gives an object up until the next tick; from another copy if this one cannot give it.
    fn fetch_again(&mut self, pg: PgId, oid: Oid, reply: &PeerReply) {
        self.objects.remove(&(pg, oid));
        if matches!(reply, PeerReply::OldView { .. }) {
            return;
        }
        tracing::warn!(%oid, ?reply, "could not fetch a part of an object; trying another copy");
        if let Some(behind) = self.pgs.get_mut(&pg) {
            *behind.failures.entry(oid).or_default() += 1;
        }
    }

    /// Puts fetched blocks into the store, except those that changes have decided. `None`: they are holes.
    ///
    /// Deciding and submitting happen in one event, and a change that comes later is submitted later: it wins.
    fn backfill(&mut self, ctx: &mut Context, pg: PgId, oid: Oid, blocks: BlockRange, data: Option<Bytes>) {
        let Some(behind) = self.pgs.get_mut(&pg) else { return };
        if ctx.view.vdi_or_remains(oid.vid()).is_none() {
            // What is fetched was deleted for good meanwhile.
            return;
        }
        let decided = match behind.decided.get(&oid) {
            Some(Decided::Whole) => return,
            Some(Decided::Blocks(known)) => Some(known),
            None => None,
        };
        let is_zero = |block: u32| {
            data.as_ref().is_none_or(|d| {
                let at = (block - blocks.first) as usize * BLOCK_BYTES;
                d[at..at + BLOCK_BYTES].iter().all(|b| *b == 0)
            })
        };
        // Runs of blocks of one kind: written, or cleared.
        let mut runs: Vec<(BlockRange, bool)> = Vec::new();
        for block in blocks.first..blocks.end() as u32 {
            if decided.is_some_and(|known| known.contains(&block)) {
                continue;
            }
            let zero = is_zero(block);
            match runs.last_mut() {
                Some((run, kind)) if *kind == zero && run.end() == u64::from(block) => run.count += 1,
                _ => runs.push((BlockRange::new(block, 1), zero)),
            }
        }
        for (run, zero) in runs {
            let (change, payload) = match (&data, zero) {
                (Some(data), false) => {
                    let at = (run.first - blocks.first) as usize * BLOCK_BYTES;
                    let payload = data.slice(at..at + run.count as usize * BLOCK_BYTES);
                    let checksums = block_checksums(&payload);
                    (Change::Write { blocks: run, checksums, base: WriteBase::Keep }, payload)
                }
                _ => (Change::Discard { blocks: run }, Bytes::new()),
            };
            behind.backfills += 1;
            ctx.store(
                ObjectOp::Change { oid, change, data: payload, tag: None },
                StoreUse::Backfill { pg, oid },
            );
        }
    }

    pub fn handle_backfilled(&mut self, ctx: &mut Context, pg: PgId, oid: Oid, reply: ObjectReply) {
        let Some(behind) = self.pgs.get_mut(&pg) else { return };
        behind.backfills = behind.backfills.saturating_sub(1);
        if let ObjectReply::Failed(failure) = reply {
            tracing::error!(%oid, %failure, "cannot store what this node should hold; giving this copy up for now");
            if let Some(since) = ctx.view.pg(pg).map(|state| state.since) {
                let drop = Action::DropCopies { node: ctx.me, pgs: vec![(pg, since)] };
                ctx.propose(drop, ProposalUse::DropCopies);
            }
            behind.todo.insert(oid);
        }
        self.propose_finish(ctx);
    }

    fn propose_finish(&mut self, ctx: &mut Context) {
        let mut done = Vec::new();
        let lists_pending = own_list_pending(ctx);
        for (id, behind) in self.pgs.iter_mut().filter(|(_, b)| b.stage == Stage::Copying) {
            if behind.todo.is_empty() && behind.backfills == 0 && !lists_pending && done.len() < PGS_MAX {
                behind.stage = Stage::Proposed;
                done.push((*id, behind.started));
            }
        }
        if !done.is_empty() {
            ctx.propose(Action::FinishCatchUp { pgs: done }, ProposalUse::CatchUp);
        }
    }

    /// Listings and fetches whose source went away start again.
    pub fn handle_source_lost(&mut self, ctx: &mut Context) {
        let lost: Vec<u64> =
            self.rounds.iter().filter(|(_, r)| !ctx.view.is_up(r.source)).map(|(id, _)| *id).collect();
        for id in lost {
            self.end_round(id, Stage::Unlisted);
        }
        self.objects.retain(|_, fetching| ctx.view.is_up(fetching.source));
        ctx.out.calls.retain(|_, call| {
            let ours =
                matches!(call.purpose, Purpose::List { .. } | Purpose::Length { .. } | Purpose::Fetch { .. });
            !ours || ctx.view.is_up(call.to)
        });
    }
}

fn own_list_pending(ctx: &Context) -> bool {
    ctx.out.tickets.values().any(|u| matches!(u, StoreUse::OwnList { .. }))
}

/// An in-sync copy to fetch from; another one after each failure.
fn source_of(ctx: &Context, pg: PgId, failures: usize) -> Option<(NodeId, Since)> {
    let state = ctx.view.pg(pg)?;
    // Spread over the copies by the PG's number, so that one source does not do all the work.
    let usable: Vec<NodeId> =
        state.in_sync.iter().copied().filter(|n| ctx.view.is_up(*n) && *n != ctx.me).collect();
    let source = usable.get((pg.index as usize + failures) % usable.len().max(1))?;
    Some((*source, state.since))
}
