//! One object on its way here: how long it is, then piece by piece, with the marks of each.
//!
//! A change that the source has and this copy was not sent (its owner died in between) comes as content, and must be here
//! whole or not at all. Every piece tells which changes are part of it, so it shows when one was carried out between two
//! of them: the earlier piece is fetched again. If a piece tells of a change no more that an earlier one told of, it was settled in between,
//! and settled is what every copy has.
//!
//! A block that this copy's own changes have decided is left alone. If one of the marks is newer than such a change, the object cannot be
//! taken as it is: the change is on its way here as well, or its owner is dead. Then the next owner's seal resolves it, or, if nobody comes,
//! this copy starts again, with nothing decided.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::checksum::{ZERO_BLOCK_CRC, block_checksums};
use proto::object::{
    AMENDED_MAX, BlockRange, Change, ObjectOp, ObjectReply, Stamp, StoreFailure, Unsettled, WriteBase,
};
use proto::peer::{Fetched, PeerReply, PeerRequest};
use proto::{BLOCK_BYTES, NodeId, Oid, PgId, Since};

use super::pace::PIECE_BLOCKS_MAX;
use super::{Asked, CatchUp, Stage, source_of};
use crate::context::{Context, Purpose, StoreUse};
use crate::extent::Extent;
use crate::payload::part_of;
use crate::replica::Replica;
use crate::session::blocks_of;

/// Changes that the store has not answered yet, until no more pieces are asked for. The store works in order of submission: guests'
/// writes wait behind these, and their data takes memory.
const BACKFILLS_MAX: usize = 16;
/// Attempts, a tick apart, at an object with a change that this copy should have been sent. A living owner sends it
/// within that time, and a new one has sealed.
const ATTEMPTS_MAX: u32 = 10;
/// Torn pieces of one object that are fetched again before it is begun anew at the next tick.
const TORN_MAX: u32 = 256;

#[derive(Debug)]
pub(super) struct Fetching {
    /// Late answers to earlier attempts do not count.
    attempt: u64,
    pub source: NodeId,
    /// The object that is read there: another one while that is missing from which a change has cloned it.
    from: Oid,
    found: Option<Found>,
    own_blocks: Option<u32>,
    next: u32,
    /// The piece that is on its way: there is no other until it is here, so pieces never overlap.
    asked: Option<BlockRange>,
    /// Up to here blocks are fetched one by one: the source cannot read all of them.
    singly_until: u64,
    /// What came with a block that is compared with this copy's own.
    compared: Vec<Unsettled>,
    /// All marks that came with it, and when each was told of first.
    marks: BTreeMap<Stamp, Told>,
    /// What was said last of each piece, by its first block; no two overlap.
    seen: BTreeMap<u32, Seen>,
    turn: u64,
    torn: u32,
    /// All is fetched. Changes that decided parts of it, and that the store has not answered yet.
    unanswered: Option<BTreeSet<u64>>,
}

#[derive(Clone, Copy, Debug)]
struct Found {
    exists: bool,
    blocks: u32,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    mark: Unsettled,
    /// By an answer that a later one of the same piece may have replaced.
    turn: u64,
}

/// What one answer of the source said of the blocks `first .. end`.
#[derive(Debug)]
struct Seen {
    first: u32,
    end: u64,
    marks: BTreeSet<Stamp>,
    turn: u64,
}

/// What is known of a mark when all pieces are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Included,
    Settled,
    /// It came after it was told what this copy lacks, and to no block that was fetched.
    Apart,
    /// The piece that begins here, or the length, is older than the change.
    Torn {
        first: u32,
        end: u64,
    },
}

impl Fetching {
    fn new(attempt: u64, source: NodeId, from: Oid) -> Fetching {
        Fetching {
            attempt,
            source,
            from,
            found: None,
            own_blocks: None,
            next: 0,
            asked: None,
            singly_until: 0,
            compared: Vec::new(),
            marks: BTreeMap::new(),
            seen: BTreeMap::new(),
            turn: 0,
            torn: 0,
            unanswered: None,
        }
    }

    pub(super) fn attempt(&self) -> u64 {
        self.attempt
    }

    fn see(&mut self, first: u32, end: u64, marks: &[Unsettled]) {
        self.turn += 1;
        let stamps = marks.iter().map(|mark| mark.stamp).collect();
        self.seen.insert(first, Seen { first, end, marks: stamps, turn: self.turn });
        for mark in marks {
            self.marks.entry(mark.stamp).or_insert(Told { mark: *mark, turn: self.turn });
        }
    }

    fn verdict(&self, told: &Told) -> Verdict {
        let mark = &told.mark;
        let overlaps = |seen: &&Seen| {
            mark.blocks.is_none_or(|b| u64::from(b.first) < seen.end && u64::from(seen.first) < b.end())
        };
        let lacking = || self.seen.values().filter(overlaps).filter(|seen| !seen.marks.contains(&mark.stamp));
        if lacking().any(|seen| seen.turn > told.turn) {
            return Verdict::Settled;
        }
        // The length, if it is among them: then no piece needs to be fetched again before all begins anew.
        if let Some(seen) = lacking().next_back() {
            return Verdict::Torn { first: seen.first, end: seen.end };
        }
        match self.gap_in(mark) {
            None => Verdict::Included,
            Some((first, end)) if self.seen.values().any(|seen| overlaps(&seen)) => {
                Verdict::Torn { first, end }
            }
            Some(_) => Verdict::Apart,
        }
    }

    /// A part of the change that lies in the object and was not fetched. One change may cover more than one piece: no more than that of it.
    fn gap_in(&self, mark: &Unsettled) -> Option<(u32, u64)> {
        let length = u64::from(self.found?.blocks);
        let (mut first, end) = mark.blocks.map_or((0, length), |b| (u64::from(b.first), b.end().min(length)));
        while first < end {
            let at = first as u32;
            let before = self.seen.range(..=at).next_back().map(|(_, seen)| seen);
            match before.filter(|seen| first < seen.end) {
                Some(seen) => first = seen.end,
                None => {
                    let next = self.seen.range(at..).next().map_or(end, |(next, _)| u64::from(*next));
                    return Some((at, next.min(end).min(first + u64::from(PIECE_BLOCKS_MAX))));
                }
            }
        }
        None
    }
}

impl CatchUp {
    pub(super) fn start_object(&mut self, ctx: &mut Context, pg: PgId, oid: Oid) {
        let failures = self.pgs.get(&pg).and_then(|b| b.failures.get(&oid)).copied().unwrap_or(0);
        let Some((source, since)) = source_of(ctx, pg, failures) else { return };
        self.next_attempt += 1;
        let attempt = self.next_attempt;
        let from = self.pgs.get(&pg).and_then(|behind| behind.cloned.get(&oid)).copied().unwrap_or(oid);
        self.objects.insert((pg, oid), Fetching::new(attempt, source, from));
        let asked = Asked { pg, oid, attempt, since };
        ctx.store(ObjectOp::Recorded { oid, blocks: BlockRange::ALL }, StoreUse::OwnLength(asked));
        let ask = PeerRequest::Fetch { pg, since, oid: from, blocks: None };
        ctx.call(source, ask, Purpose::Length(asked));
    }

    /// The object that an answer is for, if it is still wanted.
    ///
    /// An answer from before the PG's last change of copies is void: its source may not count any more, and a seal that has asked this
    /// copy since would not hear of the marks.
    fn awaiting(&mut self, ctx: &Context, asked: Asked) -> Option<&mut Fetching> {
        let key = (asked.pg, asked.oid);
        self.objects.get(&key).filter(|fetching| fetching.attempt == asked.attempt)?;
        if ctx.view.pg(asked.pg).is_none_or(|state| state.since != asked.since) {
            self.objects.remove(&key);
        }
        self.objects.get_mut(&key)
    }

    pub fn handle_own_length(
        &mut self,
        ctx: &mut Context,
        replica: &mut Replica,
        asked: Asked,
        reply: ObjectReply,
    ) {
        let Some(fetching) = self.objects.get_mut(&(asked.pg, asked.oid)) else { return };
        if fetching.attempt != asked.attempt {
            return;
        }
        if reply == ObjectReply::Absent
            && let Some(wanted) =
                self.pgs.get_mut(&asked.pg).and_then(|behind| behind.todo.get_mut(&asked.oid))
        {
            // What was said to be missing of it was said of an object that was here.
            *wanted = Extent::Whole;
        }
        fetching.own_blocks = Some(match reply {
            ObjectReply::Checksums(checksums) => checksums.len() as u32,
            ObjectReply::Absent => 0,
            // Damaged: it may be as long as can be.
            _ => {
                let vdi = ctx.view.vdi_or_remains(asked.oid.vid());
                vdi.map_or(0, |vdi| blocks_of(asked.oid, vdi.block_size_shift))
            }
        });
        self.fetch_next(ctx, replica, asked.pg, asked.oid);
    }

    pub fn handle_length_reply(
        &mut self,
        ctx: &mut Context,
        replica: &mut Replica,
        asked: Asked,
        reply: PeerReply,
    ) {
        let Asked { pg, oid, .. } = asked;
        let Some(fetching) = self.awaiting(ctx, asked) else { return };
        let is_base = fetching.from != oid;
        let is_removed = matches!(reply, PeerReply::Fetched { found: Fetched::Removed, .. });
        let (found, marks) = match reply {
            PeerReply::Fetched { found: Fetched::Length(blocks), marks, .. } => {
                (Found { exists: true, blocks }, marks)
            }
            PeerReply::Fetched { found: Fetched::Absent | Fetched::Removed, marks, .. } => {
                (Found { exists: false, blocks: 0 }, marks)
            }
            // Tried again at the next tick.
            other => return self.fetch_again(pg, oid, &other),
        };
        if !is_base && !self.take_marks(ctx, replica, pg, oid, &marks) {
            return;
        }
        let fetching = self.objects.get_mut(&(pg, oid)).expect("seen above");
        // The view that deletes the base may not have come here yet. A base that was never written to is absent as well.
        let is_removed = is_removed || ctx.view.vdi(fetching.from.vid()).is_none();
        if is_base && !found.exists && is_removed {
            // Nobody needs the base any more, so the clone is complete everywhere else.
            fetching.from = oid;
            let ask = PeerRequest::Fetch { pg, since: asked.since, oid, blocks: None };
            ctx.call(fetching.source, ask, Purpose::Length(asked));
            return;
        }
        fetching.found = Some(found);
        if !is_base {
            fetching.see(found.blocks, u64::MAX, &marks);
        }
        self.fetch_next(ctx, replica, pg, oid);
    }

    /// The marks that came with a part of an object are this copy's as well, from now on. False: the part cannot be taken.
    fn take_marks(
        &mut self,
        ctx: &mut Context,
        replica: &mut Replica,
        pg: PgId,
        oid: Oid,
        marks: &[Unsettled],
    ) -> bool {
        let Some(behind) = self.pgs.get_mut(&pg) else { return false };
        let matters = |m: &&Unsettled| ctx.view.vdi(m.vid).is_some() && !replica.has_carried_out(m);
        let foreign: Vec<Unsettled> = marks.iter().filter(matters).copied().collect();
        // The view will follow; until then changes of an owner before that one could still come.
        let early = foreign.iter().any(|m| m.stamp.generation > ctx.view.session(m.vid).generation);
        let decided = behind.decided.get(&oid);
        let conflict = decided.is_some_and(|decided| foreign.iter().any(|m| decided.is_outdated_by(m)));
        if !early && !conflict {
            // A seal that asks from now on hears that this copy has them, and gives it nothing of them. So they are fetched, by a later attempt too that
            // is not told of them any more.
            if let Some(wanted) = behind.todo.get_mut(&oid) {
                foreign.iter().for_each(|mark| wanted.unite(&Extent::of(mark.blocks)));
            }
            replica.inherit(&foreign);
            return true;
        }
        self.objects.remove(&(pg, oid));
        behind.later.insert(oid);
        let attempts = behind.conflicts.entry(oid).or_default();
        *attempts += u32::from(conflict);
        if *attempts >= ATTEMPTS_MAX {
            *attempts = 0;
            tracing::warn!(%oid, "a change has not come here and will not; starting this copy again");
            self.give_up(ctx, pg);
        }
        false
    }

    pub(super) fn fetch_next(&mut self, ctx: &mut Context, replica: &mut Replica, pg: PgId, oid: Oid) {
        let Some(fetching) = self.objects.get_mut(&(pg, oid)) else { return };
        let (Some(found), Some(own_blocks)) = (fetching.found, fetching.own_blocks) else { return };
        if fetching.asked.is_some() {
            return;
        }
        let Some(behind) = self.pgs.get(&pg) else { return };
        let whole = behind.decided.get(&oid).is_some_and(|decided| decided.whole().is_some());
        let wanted = behind.todo.get(&oid).unwrap_or(&Extent::Whole);
        let run = wanted.next_run(fetching.next, found.blocks.max(own_blocks)).filter(|_| !whole);
        let Some((first, end)) = run else {
            return self.all_is_fetched(ctx, replica, pg, oid);
        };
        if first >= found.blocks {
            fetching.next = end;
            self.backfill(ctx, pg, oid, BlockRange::new(first, end - first), None);
            return self.fetch_next(ctx, replica, pg, oid);
        }
        let is_single = u64::from(first) < fetching.singly_until;
        let piece_end = if is_single { u64::from(first) + 1 } else { self.pace.piece_end(first) };
        let end = piece_end.min(u64::from(end.min(found.blocks)));
        let blocks = BlockRange::new(first, end as u32 - first);
        let (bytes, bound) = (u64::from(blocks.count) * BLOCK_BYTES as u64, ctx.view.repair().rate_bytes);
        if self.is_store_full() {
            return self.pace.hold((pg, oid));
        }
        if !self.pace.take(bytes, bound, ctx.now, (pg, oid)) {
            return;
        }
        self.fetch_piece(ctx, pg, oid, blocks);
    }

    fn fetch_piece(&mut self, ctx: &mut Context, pg: PgId, oid: Oid, blocks: BlockRange) {
        let Some(fetching) = self.objects.get_mut(&(pg, oid)) else { return };
        let Some(since) = ctx.view.pg(pg).map(|state| state.since) else { return };
        fetching.asked = Some(blocks);
        let asked = Asked { pg, oid, attempt: fetching.attempt, since };
        let ask = PeerRequest::Fetch { pg, since, oid: fetching.from, blocks: Some(blocks) };
        ctx.call(fetching.source, ask, Purpose::Fetch { asked, blocks });
    }

    pub fn handle_fetch_reply(
        &mut self,
        ctx: &mut Context,
        replica: &mut Replica,
        asked: Asked,
        blocks: BlockRange,
        reply: PeerReply,
    ) {
        let Asked { pg, oid, .. } = asked;
        if let PeerReply::Fetched { pressure, .. } = &reply {
            self.pace.hear(*pressure);
        }
        let Some(fetching) = self.awaiting(ctx, asked).filter(|f| f.asked == Some(blocks)) else { return };
        let is_base = fetching.from != oid;
        let (data, marks) = match reply {
            PeerReply::Fetched { found: Fetched::Damaged(checksums), marks, .. } if !is_base => {
                return self.source_is_damaged(ctx, replica, asked, blocks, (&checksums, marks));
            }
            PeerReply::Fetched { found: Fetched::Blocks(_), marks, data, .. }
                if data.len() == blocks.count as usize * BLOCK_BYTES =>
            {
                (Some(data), marks)
            }
            // The base is gone: all is looked at anew.
            PeerReply::Fetched { found: Fetched::Absent | Fetched::Removed, .. } if is_base => {
                return drop(self.objects.remove(&(pg, oid)));
            }
            // Its VDI was deleted since, and nobody needs the object. Were zeros written in its place, there would be an object again: an empty
            // one, of which a copy that still fetches what was cloned from it would believe that it always was.
            PeerReply::Fetched { found: Fetched::Removed, .. } => return self.fetch_later(pg, oid),
            // Deleted since.
            PeerReply::Fetched { found: Fetched::Absent, marks, .. } => (None, marks),
            other => return self.fetch_again(pg, oid, &other),
        };
        self.take_piece(ctx, replica, asked, blocks, (data, marks));
    }

    /// A piece is here, with the changes that are part of it.
    fn take_piece(
        &mut self,
        ctx: &mut Context,
        replica: &mut Replica,
        Asked { pg, oid, .. }: Asked,
        blocks: BlockRange,
        (data, marks): (Option<Bytes>, Vec<Unsettled>),
    ) {
        let is_base = self.objects.get(&(pg, oid)).is_some_and(|fetching| fetching.from != oid);
        if !is_base && !self.take_marks(ctx, replica, pg, oid, &marks) {
            return;
        }
        let fetching = self.objects.get_mut(&(pg, oid)).expect("seen by the caller");
        fetching.asked = None;
        fetching.next = fetching.next.max(blocks.end() as u32);
        if !is_base {
            fetching.see(blocks.first, blocks.end(), &marks);
        }
        self.fetched.bytes += data.as_ref().map_or(0, |data| data.len() as u64);
        self.backfill(ctx, pg, oid, blocks, data);
        self.fetch_next(ctx, replica, pg, oid);
    }

    /// The source cannot read all of these blocks. What it can read it gives block by block; what it cannot is not needed from it if this copy
    /// has content with the checksum that the source has on record: then it is the same, and as good as if it had come from there.
    fn source_is_damaged(
        &mut self,
        ctx: &mut Context,
        replica: &mut Replica,
        asked: Asked,
        blocks: BlockRange,
        (checksums, marks): (&[u32], Vec<Unsettled>),
    ) {
        let Asked { pg, oid, .. } = asked;
        let Some(fetching) = self.objects.get_mut(&(pg, oid)) else { return };
        if blocks.count > 1 {
            fetching.asked = None;
            fetching.singly_until = fetching.singly_until.max(blocks.end());
            return self.fetch_next(ctx, replica, pg, oid);
        }
        fetching.compared = marks;
        let recorded = checksums.first().copied().unwrap_or(ZERO_BLOCK_CRC);
        let block = blocks.first;
        ctx.store(ObjectOp::Read { oid, blocks }, StoreUse::OwnBlock { asked, block, recorded });
    }

    pub fn handle_own_block(
        &mut self,
        ctx: &mut Context,
        replica: &mut Replica,
        asked: Asked,
        (block, recorded): (u32, u32),
        reply: ObjectReply,
    ) {
        let Some(fetching) = self.awaiting(ctx, asked) else { return };
        let marks = std::mem::take(&mut fetching.compared);
        let blocks = BlockRange::new(block, 1);
        match reply {
            // 0: nothing is on record.
            ObjectReply::Data { data, .. } if recorded != 0 && block_checksums(&data) == [recorded] => {
                self.take_piece(ctx, replica, asked, blocks, (Some(data), marks));
            }
            _ => {
                let failure = StoreFailure::Corrupt { oid: asked.oid, block };
                self.fetch_again(asked.pg, asked.oid, &PeerReply::Failed(failure));
            }
        }
    }

    /// The object is being removed here, since nobody needs it any more. What is on its way of it would bring a part of it back, and so would what was known
    /// to be missing of it while the rest was here: it is looked at anew, as a whole. A part of it must not stay: another copy that catches up could
    /// take it for what a clone was made of.
    pub fn handle_purged(&mut self, ctx: &Context, oid: Oid) {
        let Some(pg) = ctx.view.pg_of(oid) else { return };
        let Some(behind) = self.pgs.get_mut(&pg) else { return };
        behind.decided.remove(&oid);
        behind.cloned.remove(&oid);
        behind.conflicts.remove(&oid);
        if self.objects.remove(&(pg, oid)).is_some() || behind.todo.contains_key(&oid) {
            behind.todo.insert(oid, Extent::Whole);
            behind.later.insert(oid);
        }
    }

    /// Gives an object up until the next tick.
    fn fetch_later(&mut self, pg: PgId, oid: Oid) {
        self.objects.remove(&(pg, oid));
        if let Some(behind) = self.pgs.get_mut(&pg) {
            behind.later.insert(oid);
        }
    }

    /// Gives an object up until the next tick; from another copy if this one cannot give it.
    fn fetch_again(&mut self, pg: PgId, oid: Oid, reply: &PeerReply) {
        self.fetch_later(pg, oid);
        let Some(behind) = self.pgs.get_mut(&pg) else { return };
        if matches!(reply, PeerReply::OldView { .. }) {
            return;
        }
        tracing::warn!(%oid, ?reply, "could not fetch a part of an object; trying another copy");
        *behind.failures.entry(oid).or_default() += 1;
    }

    /// Every piece was here. What is torn is fetched again; else the object is as its source had it.
    fn all_is_fetched(&mut self, ctx: &mut Context, replica: &mut Replica, pg: PgId, oid: Oid) {
        let Some(fetching) = self.objects.get_mut(&(pg, oid)).filter(|f| f.unanswered.is_none()) else {
            return;
        };
        let Some(behind) = self.pgs.get_mut(&pg) else { return };
        let decided = behind.decided.get(&oid);
        let whole = decided.and_then(|decided| decided.whole());
        let foreign = |t: &&Told| !replica.has_carried_out(&t.mark) && Some(t.mark.stamp) > whole;
        let torn = fetching.marks.values().filter(foreign).find_map(|told| match fetching.verdict(told) {
            Verdict::Torn { first, end } => Some((first, end, told.mark.blocks.is_none())),
            Verdict::Included | Verdict::Settled | Verdict::Apart => None,
        });
        let is_partial = behind.todo.get(&oid).is_some_and(|extent| *extent != Extent::Whole);
        if is_partial && torn.is_some_and(|(_, _, replaces)| replaces) {
            behind.todo.insert(oid, Extent::Whole);
            return self.fetch_later(pg, oid);
        }
        match torn.map(|(first, end, _)| (first, end)) {
            // The length itself is older than the change.
            Some((_, u64::MAX)) => return self.fetch_later(pg, oid),
            // It changes faster than it can be fetched.
            Some(_) if fetching.torn >= TORN_MAX => return self.fetch_later(pg, oid),
            Some((first, end)) => {
                fetching.torn += 1;
                let blocks = BlockRange::new(first, (end - u64::from(first)) as u32);
                // From now on this copy has of it what others may lack: should the object be begun anew, at another source, these blocks
                // are fetched there again, and not left as they are for want of a mark.
                behind.todo.entry(oid).or_default().unite(&Extent::of(Some(blocks)));
                return self.fetch_piece(ctx, pg, oid, blocks);
            }
            None => {}
        }
        let found = fetching.found.expect("all is fetched");
        if decided.is_none_or(|decided| decided.is_empty()) && found.blocks == 0 {
            // Deleted while this node was away; or there without any content, and that may matter too.
            let change = match found.exists {
                false => Change::Delete,
                true => {
                    let (blocks, checksums) = (BlockRange::new(0, 0), Vec::new());
                    Change::Write { blocks, checksums, base: WriteBase::Keep }
                }
            };
            behind.backfills += 1;
            self.backfills += 1;
            let op = ObjectOp::Change { oid, change, data: Bytes::new(), tag: None };
            ctx.store(op, StoreUse::Backfill { pg, oid, started: behind.started });
        }
        fetching.unanswered = Some(replica.orders_of(oid).collect());
        self.complete_if_answered(ctx, replica, pg, oid);
    }

    /// The store has answered a change.
    pub fn handle_answered(&mut self, ctx: &mut Context, replica: &mut Replica, order: u64) {
        let awaits = |f: &mut Fetching| f.unanswered.as_mut().is_some_and(|orders| orders.remove(&order));
        let found: Vec<(PgId, Oid)> =
            self.objects.iter_mut().filter_map(|(key, f)| awaits(f).then_some(*key)).collect();
        for (pg, oid) in found {
            self.complete_if_answered(ctx, replica, pg, oid);
        }
    }

    /// Changes that decided blocks are in the store, and not refused: then no block was left out for nothing.
    fn complete_if_answered(&mut self, ctx: &mut Context, replica: &mut Replica, pg: PgId, oid: Oid) {
        let Some(fetching) = self.objects.get(&(pg, oid)) else { return };
        if fetching.unanswered.as_ref().is_none_or(|orders| !orders.is_empty()) {
            return;
        }
        let Some(behind) = self.pgs.get_mut(&pg) else { return };
        let whole = behind.decided.get(&oid).and_then(|decided| decided.whole());
        let is_part = |t: &&Told| Some(t.mark.stamp) < whole || fetching.verdict(t) == Verdict::Included;
        let included = fetching.marks.values().filter(is_part).map(|told| told.mark.stamp).collect();
        let amendment = replica.complete_object(oid, &included);
        let forget = amendment.forget.chunks(AMENDED_MAX).map(|some| (some.to_vec(), Vec::new()));
        let remember = amendment.remember.chunks(AMENDED_MAX).map(|some| (Vec::new(), some.to_vec()));
        for (forget, remember) in forget.chain(remember) {
            behind.backfills += 1;
            self.backfills += 1;
            ctx.store(
                ObjectOp::Amend { forget, remember },
                StoreUse::Backfill { pg, oid, started: behind.started },
            );
        }
        behind.cloned.remove(&oid);
        behind.conflicts.remove(&oid);
        behind.todo.remove(&oid);
        self.objects_done += 1;
        self.fetched.objects += 1;
        self.objects.remove(&(pg, oid));
        self.start_objects(ctx);
        self.propose_finish(ctx, replica);
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
        let decided = behind.decided.get(&oid);
        let is_zero = |block: u32| {
            data.as_ref().is_none_or(|d| {
                let at = (block - blocks.first) as usize * BLOCK_BYTES;
                d[at..at + BLOCK_BYTES].as_chunks::<16>().0.iter().all(|word| *word == [0; 16])
            })
        };
        // Runs of blocks of one kind: written, or cleared.
        let mut runs: Vec<(BlockRange, bool)> = Vec::new();
        for block in blocks.first..blocks.end() as u32 {
            if decided.is_some_and(|decided| decided.has(block)) {
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
                    let payload = part_of(data, at, run.count as usize * BLOCK_BYTES);
                    let checksums = block_checksums(&payload);
                    (Change::Write { blocks: run, checksums, base: WriteBase::Keep }, payload)
                }
                _ => (Change::Discard { blocks: run }, Bytes::new()),
            };
            behind.backfills += 1;
            self.backfills += 1;
            ctx.store(
                ObjectOp::Change { oid, change, data: payload, tag: None },
                StoreUse::Backfill { pg, oid, started: behind.started },
            );
        }
    }

    pub fn handle_backfilled(
        &mut self,
        ctx: &mut Context,
        replica: &mut Replica,
        pg: PgId,
        oid: Oid,
        started: Since,
        reply: ObjectReply,
    ) {
        self.backfills = self.backfills.saturating_sub(1);
        self.settle_backfill(ctx, pg, oid, started, reply);
        self.fetch_waiting(ctx, replica);
        self.propose_finish(ctx, replica);
    }

    fn settle_backfill(&mut self, ctx: &mut Context, pg: PgId, oid: Oid, started: Since, reply: ObjectReply) {
        let Some(behind) = self.pgs.get_mut(&pg).filter(|behind| behind.started == started) else { return };
        behind.backfills -= 1;
        if let ObjectReply::Failed(failure) = reply {
            if failure != StoreFailure::NoSpace {
                tracing::error!(%oid, %failure, "the disk refuses what this node should hold; this copy leaves its set and is fetched anew");
            } else if behind.stage != Stage::Leaving && self.refusals.note(pg, ctx.now) {
                tracing::error!(
                    %oid,
                    "no room for a copy that this node should hold; it tries again now and then. Give its disk more room, or put the node out: \
                     dog node out"
                );
            }
            self.give_up(ctx, pg);
        }
    }

    pub(super) fn is_store_full(&self) -> bool {
        self.backfills >= BACKFILLS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{Generation, Seq, Vid};

    const OID: Oid = Oid::data(Vid(1), 0);

    fn mark(seq: u64, first: u32, count: u32) -> Unsettled {
        let stamp = Stamp { generation: Generation(1), seq: Seq(seq) };
        let blocks = Some(BlockRange::new(first, count));
        Unsettled { vid: Vid(1), stamp, origin: Default::default(), oid: OID, blocks }
    }

    fn fetching() -> Fetching {
        let mut fetching = Fetching::new(1, NodeId { addr: [0; 16], port: 1 }, OID);
        fetching.found = Some(Found { exists: true, blocks: 1024 });
        fetching.see(1024, u64::MAX, &[]);
        fetching
    }

    fn verdict(fetching: &Fetching, seq: u64) -> Verdict {
        let told = fetching.marks.values().find(|told| told.mark.stamp.seq == Seq(seq));
        fetching.verdict(told.expect("it was told of"))
    }

    #[test]
    fn a_change_between_two_pieces_tears_the_earlier_one() {
        let mut fetching = fetching();
        fetching.see(0, 256, &[]);
        fetching.see(256, 512, &[mark(7, 200, 100)]);
        assert_eq!(verdict(&fetching, 7), Verdict::Torn { first: 0, end: 256 });
        fetching.see(0, 256, &[mark(7, 200, 100)]);
        assert_eq!(verdict(&fetching, 7), Verdict::Included);
    }

    #[test]
    fn what_a_piece_tells_of_no_more_is_settled_whichever_piece_had_told_of_it() {
        let mut fetching = fetching();
        fetching.see(256, 512, &[]);
        fetching.see(0, 256, &[mark(5, 10, 1), mark(7, 200, 100)]);
        assert_eq!(verdict(&fetching, 7), Verdict::Torn { first: 256, end: 512 });
        fetching.see(256, 512, &[mark(7, 200, 100), mark(8, 250, 10)]);
        assert_eq!(verdict(&fetching, 8), Verdict::Torn { first: 0, end: 256 });
        // This replaces the only answer that told of change 5, which has been settled.
        fetching.see(0, 256, &[mark(8, 250, 10)]);
        assert_eq!(verdict(&fetching, 5), Verdict::Settled);
        assert_eq!(verdict(&fetching, 7), Verdict::Settled);
        assert_eq!(verdict(&fetching, 8), Verdict::Included);
    }
}
