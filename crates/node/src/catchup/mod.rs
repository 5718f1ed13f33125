//! Brings this node's copies up to date, PG by PG: what was changed while they were away, or all of it where nobody knows that.
//!
//! 1. The node proposes to catch up. From the version at which that is applied, every change of the PG is sent here too and
//!    awaited. It is remembered which blocks such changes decide. What this copy remembered of earlier changes is forgotten.
//! 2. An in-sync copy tells what was changed since this one left the set ([`crate::replica`]); with what this copy may have and the others lack
//!    (its own marks, as they were when it left), that is all they differ in. If no copy knows, the objects of the PG are listed there, and here.
//!    Each is fetched, piece by piece, from a copy whose view
//!    is as new, which therefore refuses changes that were not sent here; so a fetched block is either current or
//!    decided here already, and those are left alone ([`decided`]).
//! 3. What of the content is unsettled comes with it, and is remembered here as it is there ([`fetch`]): should its owner be
//!    dead and the source leave, the next seal hears of it from this copy.
//! 4. When all is durable, what was forgotten included, the node proposes to be in sync.
//!
//! A node that goes down while it catches up starts again from the first step.

mod decided;
mod fetch;
mod pace;
mod progress;
mod refusals;
mod throttle;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::client::RecoveryThrottle;
use proto::cluster::Action;
use proto::object::{Change, ObjectInfo, ObjectOp, WriteBase};
use proto::peer::{PeerReply, PeerRequest};
use proto::{NodeId, Oid, PgId, Since};

use crate::Time;
use crate::chronicle::Fetched;
use crate::context::{Context, ProposalUse, Purpose, StoreUse};
use crate::extent::Extent;
use crate::replica::{Covered, Replica};
use crate::view::{Pg, View};

pub use progress::Progress;

use decided::Decided;
use fetch::Fetching;
use pace::Pace;
use refusals::Refusals;
use throttle::Throttle;

/// Objects fetched at the same time.
const OBJECTS_MAX: usize = 24;
/// PGs in one proposal or listing: keeps both well below the size of an event or a frame.
const PGS_MAX: usize = 1024;
/// Pause after an attempt that was refused or dropped.
const BACK_OFF: Duration = Duration::from_secs(2);
/// How long to wait for all those to answer that would have to wait for this copy.
const REACHABLE_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(crate) struct CatchUp {
    pgs: BTreeMap<PgId, Behind>,
    rounds: BTreeMap<u64, Round>,
    next_round: u64,
    next_attempt: u64,
    objects: BTreeMap<(PgId, Oid), Fetching>,
    not_before: BTreeMap<PgId, Time>,
    refusals: Refusals,
    /// Of PGs whose in-sync sets this copy has left in this life, or before it: what it has, or may have, of changes that others may lack.
    /// Kept until the PG is in sync, through all attempts.
    adrift: BTreeMap<PgId, BTreeMap<Oid, Extent>>,
    /// Changes of this node's own that the store has not answered yet.
    backfills: usize,
    pace: Pace,
    throttle: Throttle,
    /// Since when PGs wait for members that do not answer.
    unreachable_since: Option<Time>,
    /// In this life; of `bytes` only content counts.
    fetched: Fetched,
    /// Since this node last lacked nothing.
    objects_done: u64,
}

/// A PG that this node is catching up on.
#[derive(Debug)]
struct Behind {
    started: Since,
    stage: Stage,
    urgency: Urgency,
    /// How many copies did not know what was changed meanwhile.
    unknown_to: usize,
    todo: BTreeMap<Oid, Extent>,
    /// Decided by changes since `started`.
    decided: BTreeMap<Oid, Decided>,
    /// Objects that changes cloned from others when those were not here yet.
    cloned: BTreeMap<Oid, Oid>,
    /// How often a copy could not give what it has of an object. The next one is asked then.
    failures: BTreeMap<Oid, usize>,
    /// How often an object came with a change that this copy should have been sent.
    conflicts: BTreeMap<Oid, u32>,
    /// Not to be tried before the next tick.
    later: BTreeSet<Oid>,
    backfills: usize,
}

/// In which order PGs are repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// Writes wait for another copy.
    Blocked,
    /// There are fewer copies than there should be.
    Degraded,
    /// There are enough, elsewhere.
    Misplaced,
}

const URGENCIES: [Urgency; 3] = [Urgency::Blocked, Urgency::Degraded, Urgency::Misplaced];

/// A question about an object that is being fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pg: PgId,
    oid: Oid,
    attempt: u64,
    since: Since,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Unlisted,
    Listing,
    Copying,
    Proposed,
    /// It leaves the sets, to begin anew, and until the view says so nothing of it can end.
    Leaving,
}

/// One listing of several PGs at one source: of what was changed, or of everything.
#[derive(Debug)]
struct Round {
    source: NodeId,
    pgs: Vec<(PgId, Since)>,
}

impl CatchUp {
    pub fn pgs_behind(&self) -> u32 {
        self.pgs.len() as u32
    }

    pub fn fetched(&self) -> Fetched {
        self.fetched
    }

    /// A change has been accepted: what it covers is current here.
    pub fn handle_covered(&mut self, covered: Covered) {
        let Some(behind) = self.pgs.get_mut(&covered.pg) else { return };
        behind.decided.entry(covered.oid).or_default().note(covered.blocks, covered.stamp);
    }

    /// A change that clones an object which this copy does not have yet is carried out without its base; what the base would have
    /// given is fetched. Returns that base.
    pub fn lacks_base_of(&self, ctx: &Context, body: &mut PeerRequest) -> Option<Oid> {
        let PeerRequest::Change { pg, change: Change::Write { base, .. }, .. } = body else { return None };
        let WriteBase::CloneOf(from) = *base else { return None };
        let behind = self.pgs.get(pg).filter(|_| ctx.view.pg(*pg).is_some_and(|s| s.is_catching(ctx.me)))?;
        let has_it = !behind.todo.contains_key(&from)
            && !self.objects.contains_key(&(*pg, from))
            && behind.backfills == 0
            && !own_list_pending(ctx);
        let complete = behind.stage == Stage::Proposed || (behind.stage == Stage::Copying && has_it);
        if complete {
            return None;
        }
        *base = WriteBase::Keep;
        Some(from)
    }

    /// The rest of the object is to be fetched from what it was cloned from, which never changes. There may have been an object
    /// of this id before, which the clone has replaced: what older changes had decided of that, and what of it is on its way
    /// here from a source that has not carried out the clone, means nothing any more.
    pub fn handle_cloned(&mut self, covered: Covered, base: Oid) {
        let Some(behind) = self.pgs.get_mut(&covered.pg) else { return };
        behind.cloned.insert(covered.oid, base);
        behind.decided.entry(covered.oid).or_default().forget_before(covered.stamp);
        behind.fetch_anew(&mut self.objects, covered);
    }

    /// The store could not take an accepted change after all: its blocks have to be fetched.
    ///
    /// Not when all was here before: then they are as they were. Which changes have decided the blocks is known no more of those that are
    /// settled by now: what the source has is at least as new. Not so what a clone's base has: then this copy begins anew.
    pub fn handle_not_covered(&mut self, ctx: &mut Context, replica: &mut Replica, covered: Covered) {
        let Some(behind) = self.pgs.get_mut(&covered.pg) else { return };
        let mut decided = Decided::default();
        replica.own_changes(covered.oid).for_each(|(stamp, blocks)| decided.note(blocks, stamp));
        behind.decided.insert(covered.oid, decided);
        if behind.stage == Stage::Proposed {
            return;
        }
        behind.fetch_anew(&mut self.objects, covered);
        if behind.cloned.contains_key(&covered.oid) {
            self.give_up(ctx, covered.pg);
        }
    }

    /// This copy leaves the PG's sets, to begin anew.
    fn give_up(&mut self, ctx: &mut Context, pg: PgId) {
        if let Some(behind) = self.pgs.get_mut(&pg) {
            behind.stage = Stage::Leaving;
            self.objects.retain(|(of, _), _| *of != pg);
            self.propose_leaving(ctx);
        }
    }

    /// Again and again: one such proposal is made at a time, and the view may be another when it is decided.
    fn propose_leaving(&mut self, ctx: &mut Context) {
        let leaving = self.pgs.iter().filter(|(_, behind)| behind.stage == Stage::Leaving);
        let leaving = leaving.filter_map(|(id, _)| Some((*id, ctx.view.pg(*id)?.since))).collect();
        ctx.drop_copies(ctx.me, leaving);
    }

    /// Looks at the view and starts or stops what it says.
    pub fn handle_view(&mut self, ctx: &mut Context, replica: &mut Replica, changed: &[PgId]) {
        for id in changed {
            let attempt =
                ctx.view.pg(*id).and_then(|pg| pg.catching.iter().find(|c| c.node == ctx.me).copied());
            let known = self.pgs.get(id).map(|b| b.started);
            let is_lacking = |pg: &Pg| pg.targets.contains(&ctx.me) && !pg.in_sync.contains(&ctx.me);
            if !ctx.view.pg(*id).is_some_and(is_lacking) {
                self.refusals.forget(*id);
            }
            self.note_adrift(ctx, replica, *id, known);
            match attempt {
                Some(attempt) if known == Some(attempt.started) => {}
                Some(attempt) => {
                    self.stop(ctx, *id);
                    replica.forget_pg(ctx, *id);
                    let behind = Behind {
                        started: attempt.started,
                        stage: Stage::Unlisted,
                        urgency: urgency_of(ctx, *id),
                        unknown_to: 0,
                        todo: BTreeMap::new(),
                        decided: BTreeMap::new(),
                        cloned: BTreeMap::new(),
                        failures: BTreeMap::new(),
                        conflicts: BTreeMap::new(),
                        later: BTreeSet::new(),
                        backfills: 0,
                    };
                    self.begin_count();
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
        self.advance(ctx, replica);
    }

    /// Before anything is forgotten.
    fn note_adrift(&mut self, ctx: &Context, replica: &Replica, id: PgId, attempt: Option<Since>) {
        let pg = ctx.view.pg(id).filter(|pg| pg.absent_since(ctx.me).is_some());
        let Some(pg) = pg else { return drop(self.adrift.remove(&id)) };
        if attempt.is_some() && pg.catching.iter().any(|c| c.node == ctx.me && Some(c.started) == attempt) {
            return;
        }
        let adrift = self.adrift.entry(id).or_default();
        for (oid, blocks) in replica.marks_of(ctx, id) {
            adrift.entry(oid).or_default().unite(&Extent::of(blocks));
        }
    }

    fn stop(&mut self, ctx: &mut Context, id: PgId) {
        self.pgs.remove(&id);
        self.objects.retain(|(pg, _), _| *pg != id);
        ctx.out.calls.retain(|_, call| {
            !matches!(&call.purpose, Purpose::Length(asked) | Purpose::Fetch { asked, .. } if asked.pg == id)
        });
        for round in self.rounds.values_mut() {
            round.pgs.retain(|(pg, _)| *pg != id);
        }
    }

    /// When objects that wait for their turn may go on.
    pub fn resumes_at(&self, view: &View) -> Option<Time> {
        // Else the store's next answer lets them go on.
        let paced = if self.is_store_full() { None } else { self.pace.next(view.repair().rate_bytes) };
        paced.into_iter().chain(self.throttle.next()).min()
    }

    /// Of this node alone, and of this life.
    pub fn set_throttle(&mut self, ctx: &mut Context, bound: RecoveryThrottle) {
        self.throttle.set(bound);
        self.start_objects(ctx);
    }

    pub fn throttle(&self) -> RecoveryThrottle {
        self.throttle.bound()
    }

    pub fn resume(&mut self, ctx: &mut Context, replica: &mut Replica) {
        self.throttle.resume(ctx.now);
        self.start_objects(ctx);
        self.fetch_waiting(ctx, replica);
    }

    /// The more urgent ones first, and of those that are alike the ones that began first: what may be fetched completes some objects, and not all of them at
    /// once at the very end.
    fn fetch_waiting(&mut self, ctx: &mut Context, replica: &mut Replica) {
        if self.is_store_full() {
            return;
        }
        let mut waiting = Vec::from(self.pace.take_waiting());
        waiting.sort_by_key(|key| {
            (self.pgs.get(&key.0).map(|behind| behind.urgency), self.objects.get(key).map(Fetching::attempt))
        });
        for (pg, oid) in waiting {
            self.fetch_next(ctx, replica, pg, oid);
        }
    }

    /// Once a tick.
    pub fn handle_tick(&mut self, ctx: &mut Context, replica: &Replica, tick: Duration) {
        self.pace.hear(ctx.out.strain.pressure());
        self.pace.handle_tick(tick);
        self.handle_source_lost(ctx);
        self.leave_silent_sources(ctx);
        self.advance(ctx, replica);
    }

    /// Does whatever can be done now.
    pub fn advance(&mut self, ctx: &mut Context, replica: &Replica) {
        self.pgs.values_mut().for_each(|behind| behind.later.clear());
        self.propose_leaving(ctx);
        self.propose_start(ctx);
        self.start_rounds(ctx);
        self.start_objects(ctx);
        self.propose_finish(ctx, replica);
    }

    /// Are those that would have to wait for this copy reachable? Else writes would wait for it in vain, until it is dropped once more.
    ///
    /// Not for ever: a member that is up and does nothing must not keep others from being repaired.
    fn is_reachable(&mut self, ctx: &mut Context) -> bool {
        let owners = ctx.view.session_owners();
        let copies = ctx.view.pools().iter().flat_map(|pool| &pool.pgs).filter(|pg| pg.concerns(ctx.me));
        let mut nodes: BTreeSet<NodeId> = owners.chain(copies.flat_map(|pg| pg.writers())).collect();
        nodes.retain(|node| *node != ctx.me && ctx.view.is_up(*node));
        let unknown = nodes.into_iter().filter(|node| !ctx.out.reach.is_fresh(*node, ctx.now)).count();
        if unknown == 0 {
            self.unreachable_since = None;
            return true;
        }
        let since = *self.unreachable_since.get_or_insert(ctx.now);
        let waited = ctx.now.since(since) > REACHABLE_PATIENCE;
        if waited {
            self.unreachable_since = None;
        }
        waited && !ctx.is_cut_off()
    }

    /// Another copy may answer, where there is one that does.
    fn leave_silent_sources(&mut self, ctx: &mut Context) {
        let replaced = |ctx: &Context, pg: PgId, source: NodeId| {
            ctx.is_silent(source) && source_of(ctx, pg, 0).is_some_and(|(other, _)| !ctx.is_silent(other))
        };
        let left = |r: &Round| r.pgs.iter().any(|(pg, _)| replaced(ctx, *pg, r.source));
        let rounds: Vec<u64> = self.rounds.iter().filter(|(_, r)| left(r)).map(|(id, _)| *id).collect();
        for id in &rounds {
            self.end_round(*id, Stage::Unlisted);
        }
        self.objects.retain(|(pg, _), fetching| !replaced(ctx, *pg, fetching.source));
        let void: Vec<u64> = ctx
            .out
            .calls
            .iter()
            .filter(|(_, call)| match call.purpose {
                Purpose::List { round } | Purpose::Changed { round } => rounds.contains(&round),
                Purpose::Length(asked) | Purpose::Fetch { asked, .. } => replaced(ctx, asked.pg, call.to),
                _ => false,
            })
            .map(|(id, _)| *id)
            .collect();
        void.into_iter().for_each(|id| drop(ctx.out.calls.remove(&id)));
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
                let has_source = pg.in_sync.iter().any(|n| ctx.view.is_serving(*n));
                let is_due = self.not_before.get(&id).is_none_or(|at| *at <= ctx.now);
                let may_wait = || ctx.view.repair().enabled && self.refusals.may_try(id, ctx.now);
                let may = is_due && (may_wait() || !ctx.view.is_writable(id));
                if lacking && has_source && may {
                    wanted.push((urgency_of(ctx, id), id, pg.since));
                }
            }
        }
        wanted.sort_unstable();
        wanted.truncate(PGS_MAX);
        let wanted: Vec<(PgId, Since)> = wanted.into_iter().map(|(_, id, since)| (id, since)).collect();
        if !wanted.is_empty() && self.is_reachable(ctx) {
            for (id, _) in &wanted {
                self.not_before.insert(*id, ctx.now.after(BACK_OFF));
            }
            ctx.propose(Action::StartCatchUp { pgs: wanted }, ProposalUse::CatchUp);
        }
    }

    fn start_rounds(&mut self, ctx: &mut Context) {
        let mut by_source: BTreeMap<(bool, NodeId), Vec<(PgId, Since)>> = BTreeMap::new();
        for (id, behind) in self.pgs.iter().filter(|(_, b)| b.stage == Stage::Unlisted) {
            if let Some((source, since)) = source_of(ctx, *id, behind.unknown_to) {
                let incremental = is_incremental(ctx, *id, behind.unknown_to);
                let pgs = by_source.entry((incremental, source)).or_default();
                if pgs.len() < PGS_MAX {
                    pgs.push((*id, since));
                }
            }
        }
        for ((incremental, source), pgs) in by_source {
            for (id, _) in &pgs {
                self.pgs.get_mut(id).expect("from the map").stage = Stage::Listing;
            }
            self.next_round += 1;
            self.rounds.insert(self.next_round, Round { source, pgs: pgs.clone() });
            if incremental {
                let ask = PeerRequest::Changed { pgs, after: None };
                ctx.call(source, ask, Purpose::Changed { round: self.next_round });
                continue;
            }
            // What lies here already is compared as well: it may have been deleted meanwhile.
            let op = ObjectOp::List { first: Oid(0), last: Oid(u64::MAX), limit: u32::MAX };
            let own = pgs.iter().map(|(pg, _)| *pg).collect();
            ctx.store(op, StoreUse::OwnList { pgs: own });
            ctx.call(
                source,
                PeerRequest::List { pgs, after: None },
                Purpose::List { round: self.next_round },
            );
        }
    }

    pub fn handle_own_list(&mut self, ctx: &mut Context, pgs: &[PgId], objects: Vec<ObjectInfo>) {
        self.add_objects(ctx, pgs, objects);
    }

    fn add_objects(&mut self, ctx: &Context, pgs: &[PgId], objects: Vec<ObjectInfo>) {
        let wanted: BTreeSet<PgId> = pgs.iter().copied().collect();
        for object in objects {
            let Some(pg) = ctx.view.pg_of(object.oid).filter(|pg| wanted.contains(pg)) else { continue };
            if let Some(behind) = self.pgs.get_mut(&pg) {
                behind.todo.insert(object.oid, Extent::Whole);
            }
        }
    }

    pub fn handle_list_reply(&mut self, ctx: &mut Context, replica: &Replica, id: u64, reply: PeerReply) {
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
        self.propose_finish(ctx, replica);
    }

    pub fn handle_changed_reply(&mut self, ctx: &mut Context, replica: &Replica, id: u64, reply: PeerReply) {
        let Some(round) = self.rounds.get_mut(&id) else { return };
        let PeerReply::Changed { unknown, objects, complete } = reply else {
            self.end_round(id, Stage::Unlisted);
            return;
        };
        for pg in unknown {
            let Some(at) = round.pgs.iter().position(|(of, _)| *of == pg) else { continue };
            round.pgs.swap_remove(at);
            if let Some(behind) = self.pgs.get_mut(&pg).filter(|behind| behind.stage == Stage::Listing) {
                behind.stage = Stage::Unlisted;
                behind.unknown_to += 1;
            }
        }
        let (source, pgs) = (round.source, round.pgs.clone());
        let after = objects.last().map(|(oid, _)| *oid);
        for (oid, ranges) in objects {
            let pg = ctx.view.pg_of(oid).filter(|pg| pgs.iter().any(|(of, _)| of == pg));
            if let Some(behind) = pg.and_then(|pg| self.pgs.get_mut(&pg)) {
                behind.todo.entry(oid).or_default().unite(&Extent::from_ranges(&ranges));
            }
        }
        if pgs.is_empty() {
            self.rounds.remove(&id);
        } else if complete {
            for (pg, _) in &pgs {
                let adrift = self.adrift.get(pg).into_iter().flatten();
                let Some(behind) = self.pgs.get_mut(pg) else { continue };
                adrift.for_each(|(oid, extent)| behind.todo.entry(*oid).or_default().unite(extent));
            }
            self.end_round(id, Stage::Copying);
        } else {
            ctx.call(source, PeerRequest::Changed { pgs, after }, Purpose::Changed { round: id });
        }
        self.start_rounds(ctx);
        self.start_objects(ctx);
        self.propose_finish(ctx, replica);
    }

    fn end_round(&mut self, id: u64, stage: Stage) {
        let Some(round) = self.rounds.remove(&id) else { return };
        for (pg, _) in round.pgs {
            if let Some(behind) = self.pgs.get_mut(&pg).filter(|behind| behind.stage == Stage::Listing) {
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
        let places = OBJECTS_MAX.saturating_sub(self.objects.len());
        if places == 0 {
            return;
        }
        let copying =
            |urgency| self.pgs.iter().filter(move |(_, b)| (b.stage, b.urgency) == (Stage::Copying, urgency));
        // One whose source has a failed disk waits for that, and takes up no place.
        let has_source = |id: &PgId| source_of(ctx, *id, 0).is_some();
        let objects = |(id, behind): (&'_ PgId, &'_ Behind)| {
            let (pg, later) = (*id, &behind.later);
            let waits = |oid: &&Oid| !self.objects.contains_key(&(pg, **oid)) && !later.contains(*oid);
            behind.todo.keys().filter(waits).map(|oid| (pg, *oid)).take(places).collect::<Vec<_>>()
        };
        let waiting =
            URGENCIES.into_iter().flat_map(copying).filter(|(id, _)| has_source(id)).flat_map(objects);
        let start: Vec<(PgId, Oid)> = waiting.take(places).collect();
        for (pg, oid) in start {
            // An object that is held back stays in `todo`, so its PG is not taken for complete.
            if !self.throttle.take(ctx.now) {
                return;
            }
            self.start_object(ctx, pg, oid);
        }
    }

    pub fn propose_finish(&mut self, ctx: &mut Context, replica: &Replica) {
        let mut done = Vec::new();
        let lists_pending = own_list_pending(ctx);
        for (id, behind) in self.pgs.iter_mut().filter(|(_, b)| b.stage == Stage::Copying) {
            let fetched = behind.todo.is_empty() && behind.backfills == 0 && !lists_pending;
            if fetched && done.len() < PGS_MAX && !replica.is_forgetting(ctx, *id) {
                behind.stage = Stage::Proposed;
                done.push((*id, behind.started));
            }
        }
        if !done.is_empty() {
            ctx.propose(Action::FinishCatchUp { pgs: done }, ProposalUse::CatchUp);
        }
    }

    /// Listings and fetches whose source went away, or cannot read its disk any more, start again.
    pub fn handle_source_lost(&mut self, ctx: &mut Context) {
        let lost: Vec<u64> =
            self.rounds.iter().filter(|(_, r)| !ctx.view.is_serving(r.source)).map(|(id, _)| *id).collect();
        for id in lost {
            self.end_round(id, Stage::Unlisted);
        }
        self.objects.retain(|_, fetching| ctx.view.is_serving(fetching.source));
        ctx.out.calls.retain(|_, call| !is_for_catch_up(&call.purpose) || ctx.view.is_serving(call.to));
    }
}

impl Behind {
    /// What is under way of the object does not count.
    fn fetch_anew(&mut self, objects: &mut BTreeMap<(PgId, Oid), Fetching>, covered: Covered) {
        objects.remove(&(covered.pg, covered.oid));
        self.todo.insert(covered.oid, Extent::Whole);
    }
}

fn own_list_pending(ctx: &Context) -> bool {
    ctx.out.tickets.values().any(|submitted| matches!(submitted.purpose, StoreUse::OwnList { .. }))
}

fn urgency_of(ctx: &Context, id: PgId) -> Urgency {
    let Some(pg) = ctx.view.pg(id) else { return Urgency::Misplaced };
    if !ctx.view.is_writable(id) {
        Urgency::Blocked
    } else if pg.in_sync.iter().filter(|n| ctx.view.is_up(**n)).count() < pg.targets.len() {
        Urgency::Degraded
    } else {
        Urgency::Misplaced
    }
}

fn is_for_catch_up(purpose: &Purpose) -> bool {
    matches!(
        purpose,
        Purpose::List { .. } | Purpose::Changed { .. } | Purpose::Length(_) | Purpose::Fetch { .. }
    )
}

/// Can what is lacking be told by a copy that was not asked yet?
fn is_incremental(ctx: &Context, pg: PgId, unknown_to: usize) -> bool {
    let Some(state) = ctx.view.pg(pg) else { return false };
    let sources = state.in_sync.iter().filter(|n| ctx.view.is_serving(**n) && **n != ctx.me).count();
    state.absent_since(ctx.me).is_some() && unknown_to < sources
}

/// An in-sync copy to fetch from; another one after each failure.
fn source_of(ctx: &Context, pg: PgId, failures: usize) -> Option<(NodeId, Since)> {
    let state = ctx.view.pg(pg)?;
    // Spread over the copies by the PG's number, so that one source does not do all the work.
    let usable: Vec<NodeId> =
        state.in_sync.iter().copied().filter(|n| ctx.view.is_serving(*n) && *n != ctx.me).collect();
    let answering: Vec<NodeId> = usable.iter().copied().filter(|n| !ctx.is_silent(*n)).collect();
    let usable = if answering.is_empty() { usable } else { answering };
    let source = usable.get((pg.index as usize + failures) % usable.len().max(1))?;
    Some((*source, state.since))
}
