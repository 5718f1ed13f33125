//! What a new session does before its first request, when the one before had no clean end.
//!
//! 1. Every sheep whose copy counts in some PG of the VDI refuses older generations and tells its unsettled changes.
//!    One that does not answer must leave those sets first; one that is down and cannot leave is waited for.
//! 2. Where copies may differ, all are made alike: the newest change wins. An acknowledged change is on every
//!    in-sync copy, so nothing acknowledged is lost; one that was not may survive or not, but everywhere alike.
//! 3. Objects that came into being shortly before are entered into the block table if they are not there.
//! 4. Only then does `settled` reach 1, which lets replicas forget what older generations left; not before the gateways
//!    whose requests are among it need no answer any more.
//!
//! If a copy that was to be read from goes away meanwhile, the seal starts again, after all its changes have ended:
//! two attempts must not have different changes of one block under way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use proto::object::{BlockRange, Change, Origin, Stamp, StoreFailure, Unsettled, WriteBase};
use proto::peer::{PeerReply, PeerRequest};
use proto::{BLOCK_BYTES, NodeId, ObjectKind, Oid, ViewVersion};
use volume::PAGE_BLOCKS;

use super::copies::{COPY_TIMEOUT, ChangeUse};
use super::reads::{Found, ReadUse};
use super::{FIRST_SEQ, Session, Survivor};
use crate::Time;
use crate::context::{Context, Purpose};
use crate::view::View;

/// Blocks copied at once: 1 MiB.
const MEND_BLOCKS: u32 = 256;
/// Ranges mended at the same time, and how many blocks of them may be on their way: 32 MiB.
const MENDS_MAX: usize = 256;
const MENDED_BLOCKS_MAX: u32 = 8192;

#[derive(Debug)]
pub(super) struct Seal {
    attempt: u64,
    asked: BTreeMap<NodeId, Asked>,
    /// Each as of a view at least this new.
    answers: BTreeMap<NodeId, (ViewVersion, Vec<Unsettled>)>,
    started: Time,
    planned: bool,
    restart: bool,
    todo: BTreeMap<Oid, VecDeque<Mend>>,
    /// Objects of which a mend may begin.
    ready: VecDeque<Oid>,
    /// Mends under way. Of one object several at a time, if they are blocks that the same copy gives: they have no block in common.
    running: BTreeMap<MendId, Running>,
    /// Data objects with unsettled changes: the table must name those that exist.
    touched: BTreeMap<u32, Touched>,
    adoption: Option<u64>,
    /// Copies that could not be read.
    bad: BTreeSet<(Oid, NodeId)>,
}

/// A copy that has not told everything yet.
#[derive(Debug)]
struct Asked {
    call: u64,
    at: Time,
    /// When it was asked for the first page.
    version: ViewVersion,
    /// Of the pages so far. All are of one life of the copy: they go with it when it goes down.
    found: Vec<Unsettled>,
}

/// What owners have done to a data object, as copies tell that can be read. What a seal copied does not count, since a copy may be of a
/// part only.
#[derive(Clone, Debug, Default)]
pub(super) struct Touched {
    pub whole: Option<Whole>,
    pub ranges: Vec<BlockRange>,
}

/// Why an object was changed as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Whole {
    /// It was cloned from an ancestor's, so that it could be changed: nothing else is seen in it.
    Prepared,
    /// A request has made it, or removed it.
    Asked,
}

/// Makes a part of an object alike on all copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mend {
    oid: Oid,
    source: NodeId,
    blocks: BlockRange,
    /// The object is replaced whole; `blocks` is what is still to be copied.
    whole: bool,
    origin: Origin,
}

/// The object, and the first block of the mend as it was planned.
type MendId = (Oid, u32);

#[derive(Debug)]
struct Running {
    /// What of it is still to be copied, with the piece that is under way.
    mend: Mend,
    piece: BlockRange,
    /// Changes of this piece that copies have not answered.
    changes: usize,
}

impl Mend {
    fn piece(&self) -> BlockRange {
        BlockRange::new(self.blocks.first, self.blocks.count.min(mend_blocks(self.oid)))
    }

    fn has_company(&self) -> bool {
        !self.whole && !is_page(self.oid)
    }
}

impl Seal {
    /// Can it go on beside what is under way?
    fn may_run(&self, mend: &Mend) -> bool {
        let mut others =
            self.running.range((mend.oid, 0)..=(mend.oid, u32::MAX)).map(|(_, running)| &running.mend);
        others.all(|other| other.source == mend.source && other.has_company() && mend.has_company())
    }

    /// Is something still to be read from a copy that does not count any more?
    fn reads_from_a_copy_that_left(&self, view: &View) -> bool {
        let to_come = self.todo.values().flatten().chain(self.running.values().map(|running| &running.mend));
        to_come.into_iter().any(|mend| {
            let pg = view.pg_of(mend.oid).and_then(|id| view.pg(id));
            !pg.is_some_and(|pg| pg.in_sync.contains(&mend.source))
        })
    }

    /// Begins what can be begun, and says what that is.
    fn begin_mends(&mut self) -> Vec<MendId> {
        let mut begun = Vec::new();
        let mut blocks: u32 = self.running.values().map(|running| running.piece.count).sum();
        while let Some(oid) = self.ready.front().copied() {
            let next = self.todo.get(&oid).and_then(|mends| mends.front()).copied();
            let Some(mend) = next.filter(|mend| self.may_run(mend)) else {
                self.ready.pop_front();
                continue;
            };
            if self.running.len() >= MENDS_MAX || blocks >= MENDED_BLOCKS_MAX {
                break;
            }
            let mends = self.todo.get_mut(&oid).expect("just seen");
            mends.pop_front();
            if mends.is_empty() {
                self.todo.remove(&oid);
            }
            let (id, piece) = ((oid, mend.blocks.first), mend.piece());
            blocks += piece.count;
            self.running.insert(id, Running { mend, piece, changes: 0 });
            begun.push(id);
        }
        begun
    }
}

impl Session {
    pub(super) fn start_seal(&mut self, ctx: &mut Context) {
        let attempt = self.fresh_id();
        let bad = self.seal.take().map(|s| s.bad).unwrap_or_default();
        self.survived.clear();
        tracing::debug!(vdi = %self.vid, generation = %self.generation, "sealing");
        self.seal = Some(Seal {
            attempt,
            asked: BTreeMap::new(),
            answers: BTreeMap::new(),
            started: ctx.now,
            planned: false,
            restart: false,
            todo: BTreeMap::new(),
            ready: VecDeque::new(),
            running: BTreeMap::new(),
            touched: BTreeMap::new(),
            adoption: None,
            bad,
        });
        self.replan_seal(ctx);
    }

    /// Asks whoever has to be asked, and goes on when all have answered.
    pub(super) fn replan_seal(&mut self, ctx: &mut Context) {
        let needed = self.members_of_pool(ctx);
        let (vid, generation) = (self.vid, self.generation);
        let Some(seal) = self.seal.as_mut() else { return };
        if seal.planned {
            // What it has told of is not there any more when it has left the set, even if it comes back.
            seal.restart |= seal.reads_from_a_copy_that_left(ctx.view);
            return self.advance_seal(ctx);
        }
        // An answer from before a change of sets is of no account: its copy may have begun anew since, or, while it was catching up, have
        // taken from another copy what that one alone has told, and that one does not count any more.
        let pool = ctx.view.vdi(vid).map(|vdi| &ctx.view.pools()[usize::from(vdi.pool.0)]);
        let pgs = pool.map(|pool| &pool.pgs[..]).unwrap_or_default();
        let changed_since = |node: NodeId, version: ViewVersion| {
            pgs.iter().any(|pg| pg.since.0 > version.0 && pg.writers().any(|n| n == node))
        };
        seal.answers.retain(|node, (version, _)| needed.contains(node) && !changed_since(*node, *version));
        for node in &needed {
            if !ctx.view.is_up(*node) {
                if let Some(asked) = seal.asked.remove(node) {
                    ctx.out.calls.remove(&asked.call);
                }
            } else if !seal.answers.contains_key(node) && !seal.asked.contains_key(node) {
                let ask = PeerRequest::Seal { vid, generation, after: None };
                let call = ctx.call(*node, ask, Purpose::Seal { vid });
                let version = ctx.view.version();
                seal.asked.insert(*node, Asked { call, at: ctx.now, version, found: Vec::new() });
            }
        }
        // A PG without any copy in sync cannot be told alike; it is waited for as well.
        if needed.iter().all(|n| seal.answers.contains_key(n)) && !needed.is_empty() {
            seal.planned = true;
            self.plan_mends(ctx);
            self.advance_seal(ctx);
        }
    }

    pub fn handle_seal_reply(&mut self, ctx: &mut Context, from: NodeId, reply: PeerReply) {
        let Some(seal) = self.seal.as_mut() else { return };
        let asked = seal.asked.remove(&from);
        if let (PeerReply::Unsettled { changes, complete }, Some(mut asked)) = (reply, asked) {
            asked.found.extend(changes);
            match asked.found.last().filter(|_| !complete).map(|change| change.stamp) {
                None => drop(seal.answers.insert(from, (asked.version, asked.found))),
                // Whether the sets have changed since the first page is looked at when the last one is there.
                after => {
                    let ask = PeerRequest::Seal { vid: self.vid, generation: self.generation, after };
                    asked.call = ctx.call(from, ask, Purpose::Seal { vid: self.vid });
                    asked.at = ctx.now;
                    seal.asked.insert(from, asked);
                }
            }
        }
        self.replan_seal(ctx);
        self.run(ctx);
    }

    /// Sheep that do not answer have to leave the sets.
    pub(super) fn retry_seal(&mut self, ctx: &mut Context) {
        let Some(seal) = self.seal.as_ref() else { return };
        if seal.restart && seal.running.is_empty() && self.in_flight.is_empty() {
            return self.start_seal(ctx);
        }
        let silent: Vec<NodeId> = seal
            .asked
            .iter()
            .filter(|(node, asked)| {
                **node != ctx.me && (ctx.now.since(asked.at) > COPY_TIMEOUT || ctx.is_silent(**node))
            })
            .map(|(node, _)| *node)
            .collect();
        let mut silent = silent;
        if !seal.planned && ctx.now.since(seal.started) > COPY_TIMEOUT {
            // Members that did not come back with the others.
            silent.extend(self.members_of_pool(ctx).into_iter().filter(|n| !ctx.view.is_up(*n)));
        }
        let Some(vdi) = ctx.view.vdi(self.vid) else { return };
        let pool = vdi.pool;
        for node in silent {
            if ctx.is_cut_off() {
                break;
            }
            let pgs = ctx.view.pools()[usize::from(pool.0)].pgs.iter().enumerate();
            let pgs = pgs
                .filter(|(_, pg)| pg.writers().any(|n| n == node))
                .map(|(index, pg)| (proto::PgId { pool, index: index as u32 }, pg.since))
                .collect();
            if ctx.drop_copies(node, pgs) {
                tracing::warn!(%node, vdi = %self.vid, "no answer to a seal; going on without its copies");
            }
        }
        self.replan_seal(ctx);
    }

    fn plan_mends(&mut self, ctx: &mut Context) {
        let table_end = self.table_end(ctx);
        let seal = self.seal.as_mut().expect("called while sealing");
        let mut by_object: BTreeMap<Oid, Vec<(NodeId, Unsettled)>> = BTreeMap::new();
        for (node, (_, changes)) in &seal.answers {
            for change in changes {
                by_object.entry(change.oid).or_default().push((*node, *change));
            }
        }
        for (oid, changes) in by_object {
            let Some(pg) = ctx.view.pg_of(oid).and_then(|id| ctx.view.pg(id)) else { continue };
            // What a dropped copy remembers is of no account.
            let counted: Vec<_> =
                changes.into_iter().filter(|(n, _)| pg.writers().any(|w| w == *n)).collect();
            if counted.is_empty() {
                continue;
            }
            let known: Vec<Unsettled> = counted.iter().map(|(_, c)| *c).collect();
            let copies: Vec<Unsettled> = known.iter().copied().filter(is_copy).collect();
            self.settling.found.extend(known.iter().map(|c| c.origin).filter(|o| *o != Origin::default()));
            if oid.kind() == Some(ObjectKind::Data) && oid.vid() == self.vid {
                let touched = seal.touched.entry(oid.index()).or_default();
                // What only a copy has that does not count is undone.
                let is_readable = |n: &NodeId| pg.in_sync.contains(n) && !seal.bad.contains(&(oid, *n));
                for (_, change) in counted.iter().filter(|(n, c)| is_readable(n) && !is_copy(c)) {
                    let whole =
                        if change.origin == Origin::default() { Whole::Prepared } else { Whole::Asked };
                    for blocks in kept_of(change, &copies, &known) {
                        touched.whole = touched.whole.max(blocks.is_none().then_some(whole));
                        touched.ranges.extend(blocks);
                    }
                }
            }
            let usable = |n: &NodeId| pg.in_sync.contains(n) && !seal.bad.contains(&(oid, *n));
            for (node, change) in &counted {
                if usable(node) && ctx.view.is_incarnation_alive(change.origin.incarnation) {
                    for blocks in kept_of(change, &copies, &known) {
                        let survivor = Survivor { oid, blocks, is_copy: is_copy(change) };
                        self.survived.entry(change.origin).or_default().push(survivor);
                    }
                }
            }
            let writers: Vec<NodeId> = pg.writers().collect();
            let fallback = writers.iter().copied().find(|n| usable(n)).or(pg.in_sync.first().copied());
            let Some(fallback) = fallback else { continue };
            let blocks = if is_page(oid) {
                let before = oid.index() * PAGE_BLOCKS;
                table_end.saturating_sub(before).clamp(1, PAGE_BLOCKS)
            } else {
                blocks_of(oid, self.shift)
            };
            let mends = plan_object(oid, blocks, &counted, &writers, usable, fallback);
            if !mends.is_empty() {
                seal.todo.insert(oid, mends.into());
                seal.ready.push_back(oid);
            }
        }
    }

    fn advance_seal(&mut self, ctx: &mut Context) {
        let Some(seal) = self.seal.as_mut() else { return };
        // It starts again at the next tick, when all its changes have ended.
        if seal.restart {
            return;
        }
        let begun = seal.begin_mends();
        let complete = seal.todo.is_empty() && seal.running.is_empty();
        for id in begun {
            self.read_for_mend(ctx, id);
        }
        if complete {
            self.adopt(ctx);
        }
    }

    /// All copies are alike. An object that an earlier owner made for a request and did not live to enter into the table comes
    /// to light now: so a change that survived is seen from the beginning of this session, and its request is not
    /// carried out again even if other requests replace or remove the object before it is repeated.
    fn adopt(&mut self, ctx: &mut Context) {
        let Some(seal) = self.seal.as_mut().filter(|s| s.adoption.is_none()) else { return };
        if seal.touched.is_empty() {
            return self.seal_is_complete(ctx);
        }
        let touched = seal.touched.clone();
        let job = self.start_adoption(touched);
        self.seal.as_mut().expect("seen above").adoption = Some(job);
        self.feed_job(ctx, job);
    }

    /// `job` was for nobody: perhaps it was the adoption.
    pub(super) fn adoption_ended(&mut self, ctx: &mut Context, job: u64, done: bool) {
        let Some(seal) = self.seal.as_mut().filter(|s| s.adoption == Some(job)) else { return };
        if done {
            return self.seal_is_complete(ctx);
        }
        // No space for the table: tried again from the beginning, since space may have been freed.
        seal.restart = true;
    }

    fn read_for_mend(&mut self, ctx: &mut Context, id: MendId) {
        let seal = self.seal.as_ref().expect("called while sealing");
        let (attempt, running) = (seal.attempt, &seal.running[&id]);
        let (oid, piece, source) = (running.mend.oid, running.piece, running.mend.source);
        self.start_read(ctx, oid, piece, Some(source), ReadUse::Seal { attempt, first: id.1 });
    }

    pub(super) fn seal_read_done(
        &mut self,
        ctx: &mut Context,
        attempt: u64,
        id: MendId,
        blocks: BlockRange,
        found: Found,
    ) {
        let Some(seal) = self.seal.as_mut().filter(|s| s.attempt == attempt) else { return };
        if seal.restart {
            // It may have left the set since, and be back without what it had: the next attempt reads what counts then.
            seal.running.remove(&id);
            return;
        }
        let Some(running) = seal.running.get_mut(&id) else { return };
        let (oid, origin) = (id.0, running.mend.origin);
        let purpose = ChangeUse::Seal { attempt, oid, first: id.1 };
        match found {
            Found::Data(data) => {
                // Never `Empty`: the source itself takes part, and its later pieces are still to be read. The pieces of a
                // whole object cover it with zeros where it has none, which take no space.
                let runs = if is_page(oid) { vec![(blocks, false)] } else { runs_of_zeros(blocks, &data) };
                running.changes = runs.len();
                for (run, is_zero) in runs {
                    let at = (run.first - blocks.first) as usize * BLOCK_BYTES;
                    let part = data.slice(at..at + run.count as usize * BLOCK_BYTES);
                    if is_zero {
                        let discard = Change::Discard { blocks: run };
                        self.send_change(ctx, oid, discard, Bytes::new(), origin, purpose);
                    } else {
                        self.send_write(ctx, oid, run, part, WriteBase::Keep, origin, purpose);
                    }
                }
            }
            Found::Absent => {
                running.mend.blocks.count = blocks.count;
                running.changes = 1;
                self.send_change(ctx, oid, Change::Delete, Bytes::new(), origin, purpose);
            }
            Found::Failed | Found::Verified(_) => {
                seal.bad.insert((oid, running.mend.source));
                seal.running.remove(&id);
                seal.restart = true;
                self.advance_seal(ctx);
            }
        }
    }

    pub(super) fn seal_change_done(
        &mut self,
        ctx: &mut Context,
        attempt: u64,
        id: MendId,
        result: Result<(), StoreFailure>,
    ) {
        let Some(seal) = self.seal.as_mut().filter(|s| s.attempt == attempt) else { return };
        if result.is_err() {
            // Full everywhere: the copies stay as they are, so the seal cannot end. It is tried again when space is freed.
            seal.restart = true;
        }
        let Some(running) = seal.running.get_mut(&id) else { return };
        running.changes -= 1;
        if running.changes > 0 {
            return;
        }
        let (mend, copied) = (&mut running.mend, running.piece.count);
        mend.blocks = BlockRange::new(mend.blocks.first + copied, mend.blocks.count - copied);
        if mend.blocks.count == 0 || seal.restart {
            seal.running.remove(&id);
            seal.ready.push_back(id.0);
        } else {
            running.piece = mend.piece();
            return self.read_for_mend(ctx, id);
        }
        self.advance_seal(ctx);
    }
}

/// Did a seal make this change, as a copy of another one?
fn is_copy(change: &Unsettled) -> bool {
    change.stamp.seq < FIRST_SEQ
}

/// In whose place has no seal that did not end put something that was not newer? Of blocks, the runs that are left of them; `None` stands for the
/// object as a whole, of which nothing counts if a part is undone. `known` are the changes of the same object, `copies` those that seals made. Of
/// what no request asked for it need not be known whether it was that itself: to do without it is harmless.
fn kept_of(change: &Unsettled, copies: &[Unsettled], known: &[Unsettled]) -> Vec<Option<BlockRange>> {
    let undoes = |copy: &&Unsettled| {
        let is_of = |c: &Unsettled| c.origin == copy.origin && c.origin != Origin::default();
        let is_of_newer = || known.iter().any(|c| !is_copy(c) && is_of(c) && c.stamp > change.stamp);
        copy.stamp > change.stamp && !is_of(change) && !is_of_newer()
    };
    let mut undone = copies.iter().filter(undoes);
    let Some(blocks) = change.blocks else {
        return if undone.next().is_none() { vec![None] } else { Vec::new() };
    };
    let mut left = vec![blocks];
    for copy in undone {
        let Some(copied) = copy.blocks else { return Vec::new() };
        left = left.into_iter().flat_map(|blocks| without(blocks, copied)).collect();
    }
    left.into_iter().map(Some).collect()
}

/// What is left of `blocks`.
fn without(blocks: BlockRange, cut: BlockRange) -> impl Iterator<Item = BlockRange> {
    let (start, end) = (u64::from(blocks.first), blocks.end());
    let (from, to) = (u64::from(cut.first).clamp(start, end), cut.end().clamp(start, end));
    let parts = if from < to { [(start, from), (to, end)] } else { [(start, end), (end, end)] };
    let parts = parts.into_iter().filter(|(first, end)| first < end);
    parts.map(|(first, end)| BlockRange::new(first as u32, (end - first) as u32))
}

/// Is it a part of a block table?
pub(super) fn is_page(oid: Oid) -> bool {
    matches!(oid.kind(), Some(ObjectKind::Inode | ObjectKind::BTree))
}

/// A page of the block table goes over in one change: a part of one would hide the rest of an ancestor's.
fn mend_blocks(oid: Oid) -> u32 {
    if is_page(oid) { PAGE_BLOCKS } else { MEND_BLOCKS }
}

/// The blocks cut into runs of zeros, in steps as large as a store's slot, and others.
fn runs_of_zeros(blocks: BlockRange, data: &[u8]) -> Vec<(BlockRange, bool)> {
    const STEP: usize = 16 * BLOCK_BYTES;
    let mut runs: Vec<(BlockRange, bool)> = Vec::new();
    for (i, step) in data.chunks(STEP).enumerate() {
        let is_zero = step.iter().all(|byte| *byte == 0);
        let count = (step.len() / BLOCK_BYTES) as u32;
        match runs.last_mut() {
            Some((run, kind)) if *kind == is_zero => run.count += count,
            _ => runs.push((BlockRange::new(blocks.first + i as u32 * 16, count), is_zero)),
        }
    }
    runs
}

/// The size of an object.
pub(crate) fn blocks_of(oid: Oid, shift: u8) -> u32 {
    match oid.kind() {
        Some(ObjectKind::Inode | ObjectKind::BTree) => PAGE_BLOCKS,
        _ => (1u64 << shift).div_ceil(BLOCK_BYTES as u64) as u32,
    }
}

/// Which parts of one object have to be copied, and from where.
fn plan_object(
    oid: Oid,
    object_blocks: u32,
    changes: &[(NodeId, Unsettled)],
    writers: &[NodeId],
    usable: impl Fn(&NodeId) -> bool,
    fallback: NodeId,
) -> Vec<Mend> {
    let newest_whole = changes.iter().filter(|(_, c)| c.blocks.is_none()).map(|(_, c)| c.stamp).max();
    let newest = changes.iter().map(|(_, c)| c.stamp).max().expect("an object is planned for its changes");
    // There may be a hundred thousand.
    let held: BTreeSet<(NodeId, Stamp)> = changes.iter().map(|(n, c)| (*n, c.stamp)).collect();
    let holds = |node: &NodeId, stamp: Stamp| held.contains(&(*node, stamp));
    let origins: BTreeMap<Stamp, Origin> = changes.iter().rev().map(|(_, c)| (c.stamp, c.origin)).collect();
    let origin_of = |stamp: Stamp| origins.get(&stamp).copied().unwrap_or_default();
    let source_of_whole = newest_whole.map(|whole| {
        changes.iter().map(|(n, _)| *n).find(|n| usable(n) && holds(n, whole)).unwrap_or(fallback)
    });
    // Everybody has the whole change, or was sure to have it: its owner changes parts of the object only after that. Parts that
    // a later generation wrote prove nothing, since they may be pieces of an earlier seal's copy of the whole.
    let is_complete = |whole: Stamp| {
        let proves =
            |c: &Unsettled| c.blocks.is_some() && c.stamp.generation == whole.generation && c.stamp > whole;
        changes.iter().any(|(_, c)| proves(c)) || writers.iter().all(|n| holds(n, whole))
    };
    let mut winners: BTreeMap<u32, (Stamp, NodeId)> = BTreeMap::new();
    // A copy that catches up may hold one that cannot win.
    let mut newest_of: BTreeMap<u32, Stamp> = BTreeMap::new();
    if let Some((whole, source)) = newest_whole.zip(source_of_whole).filter(|(w, _)| !is_complete(*w)) {
        if whole == newest {
            let blocks = BlockRange::new(0, object_blocks);
            return vec![Mend { oid, source, blocks, whole: true, origin: origin_of(whole) }];
        }
        winners.extend((0..object_blocks).map(|block| (block, (whole, source))));
    }
    for (node, change) in changes {
        let Some(blocks) = change.blocks.filter(|_| Some(change.stamp) > newest_whole) else { continue };
        let source = if usable(node) { *node } else { fallback };
        for block in blocks.first..blocks.end() as u32 {
            let newest = newest_of.entry(block).or_default();
            *newest = change.stamp.max(*newest);
            let candidate = if usable(node) { (change.stamp, source) } else { (Stamp::default(), source) };
            let best = winners.entry(block).or_insert(candidate);
            if best.0 < candidate.0 {
                *best = candidate;
            }
        }
    }
    // Where every copy has the newest change of a block there is nothing to do.
    winners.retain(|block, (stamp, _)| {
        let is_newest = newest_of.get(block).is_none_or(|newest| newest <= stamp);
        *stamp == Stamp::default() || !is_newest || !writers.iter().all(|n| holds(n, *stamp))
    });
    let mut mends: Vec<Mend> = Vec::new();
    for (block, (stamp, source)) in winners {
        let origin = origin_of(stamp);
        match mends.last_mut() {
            Some(last)
                if last.blocks.end() == u64::from(block)
                    && last.source == source
                    && last.origin == origin =>
            {
                last.blocks.count += 1;
            }
            _ => {
                let blocks = BlockRange::new(block, 1);
                mends.push(Mend { oid, source, blocks, whole: false, origin });
            }
        }
    }
    // Those of one source can go on at the same time.
    mends.sort_by_key(|mend| mend.source);
    mends
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{Generation, Seq, Vid};

    const OID: Oid = Oid::data(Vid(1), 0);

    fn node(n: u16) -> NodeId {
        NodeId { addr: [0; 16], port: n }
    }

    fn change(seq: u64, blocks: Option<(u32, u32)>) -> Unsettled {
        Unsettled {
            vid: Vid(1),
            stamp: Stamp { generation: Generation(1), seq: Seq(seq) },
            origin: Origin::default(),
            oid: OID,
            blocks: blocks.map(|(first, count)| BlockRange::new(first, count)),
        }
    }

    fn plan(changes: &[(NodeId, Unsettled)]) -> Vec<(NodeId, BlockRange, bool)> {
        let writers = [node(1), node(2)];
        let mends = plan_object(OID, 1024, changes, &writers, |_| true, node(1));
        mends.into_iter().map(|m| (m.source, m.blocks, m.whole)).collect()
    }

    #[test]
    fn a_change_that_all_have_needs_nothing() {
        assert!(plan(&[(node(1), change(5, Some((0, 2)))), (node(2), change(5, Some((0, 2))))]).is_empty());
    }

    #[test]
    fn the_newest_change_of_each_block_wins() {
        let both = [(node(1), change(5, Some((0, 3)))), (node(2), change(7, Some((1, 1))))];
        assert_eq!(
            plan(&both),
            vec![
                (node(1), BlockRange::new(0, 1), false),
                (node(1), BlockRange::new(2, 1), false),
                (node(2), BlockRange::new(1, 1), false),
            ]
        );
    }

    #[test]
    fn a_change_is_undone_by_what_a_later_seal_copied_over_it() {
        let by =
            |request: u64| Origin { incarnation: proto::Incarnation(1), request: proto::RequestId(request) };
        let made = |generation, origin, blocks| Unsettled {
            stamp: Stamp { generation: Generation(generation), seq: Seq(9) },
            origin,
            ..change(9, blocks)
        };
        let kept = |change: &Unsettled, known: &[Unsettled]| {
            let copies: Vec<Unsettled> = known.iter().copied().filter(is_copy).collect();
            kept_of(change, &copies, known)
        };
        let undone = |change: &Unsettled, known: &[Unsettled]| kept(change, known).is_empty();
        let (written, none) = (made(1, by(7), Some((0, 16))), Origin::default());
        let around = vec![Some(BlockRange::new(0, 8)), Some(BlockRange::new(9, 7))];
        assert_eq!(kept(&written, &[made(2, none, Some((8, 1)))]), around);
        assert!(undone(&written, &[made(2, none, Some((8, 20))), made(3, none, Some((0, 8)))]));
        assert!(undone(&written, &[made(2, by(8), None)]));
        assert!(!undone(&written, &[made(2, none, Some((16, 1)))]), "of other blocks");
        assert!(!undone(&written, &[made(2, by(7), Some((0, 8)))]), "it is that change");
        assert!(!undone(&made(3, by(7), Some((0, 16))), &[made(2, none, None)]), "it came later");
        assert!(undone(&made(1, none, None), &[made(2, none, Some((0, 1)))]));
        let newer = Unsettled {
            stamp: Stamp { generation: Generation(1), seq: Seq(FIRST_SEQ.0 + 9) },
            ..made(1, by(8), None)
        };
        assert!(!undone(&written, &[made(2, by(8), None), newer]), "that came later and won");
    }

    #[test]
    fn what_a_copy_that_does_not_count_has_alone_is_undone() {
        let all = Some((0, 1));
        let changes = [(node(1), change(5, all)), (node(2), change(5, all)), (node(2), change(7, all))];
        let mends = plan_object(OID, 1024, &changes, &[node(1), node(2)], |n| *n == node(1), node(1));
        let found: Vec<_> = mends.into_iter().map(|m| (m.source, m.blocks)).collect();
        assert_eq!(found, vec![(node(1), BlockRange::new(0, 1))]);
    }

    #[test]
    fn an_object_that_only_one_copy_has_created_is_copied_whole() {
        assert_eq!(plan(&[(node(2), change(5, None))]), vec![(node(2), BlockRange::new(0, 1024), true)]);
    }

    #[test]
    fn a_creation_that_a_seal_had_begun_to_copy_is_copied_whole() {
        let mut piece = change(2, Some((0, 2)));
        piece.stamp.generation = Generation(3);
        let changes = [(node(2), change(5, None)), (node(2), piece), (node(1), piece)];
        assert_eq!(plan(&changes), vec![(node(2), BlockRange::new(2, 1022), false)]);
        let changes = [(node(2), change(5, None)), (node(1), piece)];
        assert_eq!(
            plan(&changes),
            vec![(node(1), BlockRange::new(0, 2), false), (node(2), BlockRange::new(2, 1022), false)]
        );
    }

    #[test]
    fn a_creation_with_newer_changes_was_complete() {
        let changes = [(node(2), change(5, None)), (node(2), change(6, Some((9, 1))))];
        assert_eq!(plan(&changes), vec![(node(2), BlockRange::new(9, 1), false)]);
    }

    #[test]
    fn zeros_of_a_copied_object_take_no_space() {
        let block = |value| [value; BLOCK_BYTES];
        let data: Vec<u8> = (0..40u8).flat_map(|i| block(u8::from(i == 17 || i == 39))).collect();
        let runs = runs_of_zeros(BlockRange::new(256, 40), &data);
        let r = |first, count| BlockRange::new(first, count);
        assert_eq!(runs, vec![(r(256, 16), true), (r(272, 24), false)]);
    }
}
