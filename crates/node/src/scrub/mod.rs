//! Reads everything in this node's own store, over and over, so that rot is found while other copies are good.
//!
//! A *pass* first counts what there is, then has the store read back its own journal, then goes through all objects by id and has the store verify each block; what several objects share is
//! read once. A sheep begins somewhere else after every start (its life decides), so that one that is started often still comes round.
//! What is found is mended by others ([`finds`]): a pass writes nothing. Only rot in the journal is the store's own affair: all that is in there is in memory too.
//!
//! A copy may have other content than the others and the right checksum for it, if not its disk is to blame but a mistake. So a pass also compares
//! the checksums that copies have on record ([`comparison`]); where they seem to differ the VDI's owner looks ([`differences`]).
//!
//! Nobody is to notice. There is one order at a time, of at most 1 MiB; then the disk rests for at least as long as it took. By default a pass takes
//! a week; an operator may bound its bytes per second instead, or ask for one pass now. While this node's store is under strain or the node catches up
//! there is one order a second.

mod asks;
mod comparison;
mod differences;
mod finds;

use std::collections::VecDeque;
use std::time::Duration;

use proto::client::{ClientResult, ScrubStatus};
use proto::object::{BlockRange, JournalVerified, ObjectInfo, ObjectOp, ObjectReply};
use proto::peer::{PeerReply, Pressure};
use proto::{BLOCK_BYTES, NodeId, Oid};

use crate::Time;
use crate::context::{Context, StoreUse};
use crate::session::blocks_of;

use asks::Asks;
use comparison::Comparison;
use differences::Differences;
use finds::Finds;

/// Blocks that are verified at once, and mended together: 1 MiB.
const PIECE_BLOCKS: u32 = 256;
/// What a pass takes if nobody says otherwise. Disks rot slowly; read once a week, a block is unlikely to be bad on two of them.
const WEEK: Duration = Duration::from_secs(7 * 86400);
/// Bytes per second, however little there is: a small store is through earlier, and then waits for its week to end.
const RATE_MIN: u64 = 64 << 10;
/// Between two passes, where an operator's rate would allow the next at once.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two orders while others need the disk.
const HELD_BACK: Duration = Duration::from_secs(1);
/// How soon it is looked again whether they still do.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// After a piece could not be mended, and at most.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(3600);
/// Objects in one listing.
const PAGE: u32 = 1024;

/// What an order to the store was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScrubUse {
    List {
        pass: u64,
    },
    Journal {
        pass: u64,
    },
    Verify {
        pass: u64,
        oid: Oid,
        blocks: BlockRange,
    },
    /// Of blocks that were found damaged: are they still?
    Again {
        oid: Oid,
        piece: u32,
        blocks: BlockRange,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Scrub {
    /// Of this sheep: where its passes begin.
    life: u64,
    /// What an operator knows its disk by.
    disk: u64,
    pass: Option<Pass>,
    /// Of the present pass, or the last.
    number: u64,
    /// When it is its turn again.
    next: Time,
    /// When the last order was given, while the store has not answered it.
    ordered: Option<Time>,
    last_order: Time,
    /// When the last pass began.
    last_begun: Time,
    /// How often operators had asked for a pass when it was looked last.
    asked: Option<u64>,
    last_ended: Option<Time>,
    /// What the last pass has read.
    last_done: Amount,
    ended: u64,
    /// Damaged records that were in the store's journal.
    journal_records: u64,
    finds: Finds,
    differences: Differences,
    asks: Asks,
    /// Of the piece that was ordered last.
    comparison: Option<Comparison>,
    comparisons: u64,
    /// This node has it, and the first in-sync copy has not.
    lacked: Option<Oid>,
}

#[derive(Debug)]
struct Pass {
    begun: Time,
    /// An operator has asked for it.
    is_asked: bool,
    stage: Stage,
    /// Where it begins and ends.
    start: Oid,
    total: Amount,
    done: Amount,
}

#[derive(Clone, Copy, Debug, Default)]
struct Amount {
    objects: u64,
    bytes: u64,
}

#[derive(Debug)]
enum Stage {
    /// Counts what there is, from here on. So many pages were seen.
    Counting { from: Oid, pages: u64 },
    /// Of the store's journal these records are next.
    Journal { first: u64, last: u64 },
    /// These are next, the first from this block on, and after them those of the ranges (first, last), one after the other.
    Reading { queue: VecDeque<ObjectInfo>, block: u32, ranges: VecDeque<(Oid, Oid)> },
}

impl Stage {
    /// All objects, from this one on and round.
    fn reading_from(start: Oid) -> Stage {
        let mut ranges = VecDeque::from([(start, Oid(u64::MAX))]);
        ranges.extend(start.0.checked_sub(1).map(|end| (Oid(0), Oid(end))));
        Stage::Reading { queue: VecDeque::new(), block: 0, ranges }
    }
}

impl Scrub {
    pub fn new(life: u64, disk: u64) -> Scrub {
        Scrub { life, disk, ..Scrub::default() }
    }

    /// What a read of the store has come upon.
    pub fn handle_corrupt(&mut self, ctx: &Context, oid: Oid, block: u32) {
        self.finds.note(ctx, self.disk, oid, [block]);
    }

    /// The answer to a question about blocks that were found.
    pub fn handle_checked(&mut self, ctx: &mut Context, ask: u64, result: ClientResult) {
        self.asks.end(ask);
        self.finds.handle_checked(ctx, ask, &result);
        self.differences.handle_checked(ctx, ask, &result);
    }

    /// What another copy has on record.
    pub fn handle_recorded(&mut self, ctx: &mut Context, comparison: u64, from: NodeId, reply: PeerReply) {
        if let Some(present) = &mut self.comparison {
            present.handle_recorded(comparison, from, reply);
            self.end_comparison(ctx);
        }
    }

    /// Nothing of what was ordered will be answered: the disk has failed, or the cluster was formatted anew.
    pub fn stop(&mut self) {
        *self = Scrub { number: self.number, ..Scrub::new(self.life, self.disk) };
    }

    /// When it wants to be called.
    pub fn wakes_at(&self) -> Option<Time> {
        let is_idle = self.ordered.is_none() && self.comparison.is_none();
        (self.pass.is_some() && is_idle).then_some(self.next)
    }

    /// Does what can be done now. `is_behind`: this node catches up.
    pub fn advance(&mut self, ctx: &mut Context, is_behind: bool) {
        self.end_comparison(ctx);
        self.ask_owners(ctx);
        let options = *ctx.view.repair();
        let asked = self.asked.replace(options.scrubs_asked).is_some_and(|seen| seen != options.scrubs_asked);
        if asked {
            self.begin(ctx, true);
        }
        let is_asked = self.pass.as_ref().is_some_and(|pass| pass.is_asked);
        if !options.scrub && !is_asked {
            self.pass = None;
            self.cancel_comparison(ctx);
        } else if self.pass.is_none() && ctx.view.format().is_some() && self.due(ctx) <= ctx.now {
            self.begin(ctx, false);
        }
        if self.wakes_at().is_none_or(|at| ctx.now < at) {
            return;
        }
        let is_needed = is_behind || ctx.out.strain.pressure() == Pressure::Strained;
        if is_needed && ctx.now < self.last_order.after(HELD_BACK) {
            self.next = ctx.now.after(LOOK_AGAIN);
            return;
        }
        self.order(ctx);
    }

    /// When the next pass may begin.
    fn due(&self, ctx: &Context) -> Time {
        let Some(ended) = self.last_ended else { return Time(0) };
        match ctx.view.repair().scrub_rate_bytes {
            0 => self.last_begun.after(WEEK),
            _ => ended.after(PAUSE),
        }
    }

    fn ask_owners(&mut self, ctx: &mut Context) {
        self.finds.advance(ctx, &mut self.asks);
        self.differences.advance(ctx, &mut self.asks);
    }

    fn begin(&mut self, ctx: &mut Context, is_asked: bool) {
        self.number += 1;
        self.cancel_comparison(ctx);
        // What was ordered for another pass is answered to nobody.
        self.ordered = None;
        self.next = ctx.now;
        self.pass = Some(Pass {
            begun: ctx.now,
            is_asked,
            stage: Stage::Counting { from: Oid(0), pages: 0 },
            start: Oid(0),
            total: Amount::default(),
            done: Amount::default(),
        });
        tracing::debug!(pass = self.number, is_asked, "a scrub begins");
    }

    /// Gives the store its next order, or ends the pass.
    fn order(&mut self, ctx: &mut Context) {
        let number = self.number;
        let Some(pass) = &mut self.pass else { return };
        let (op, purpose) = match &mut pass.stage {
            Stage::Counting { from, .. } => {
                let op = ObjectOp::List { first: *from, last: Oid(u64::MAX), limit: PAGE };
                (op, ScrubUse::List { pass: number })
            }
            Stage::Journal { first, last } => {
                let op = ObjectOp::VerifyJournal { first: *first, last: *last };
                (op, ScrubUse::Journal { pass: number })
            }
            Stage::Reading { queue, block, ranges } => {
                while let Some(object) = queue.front()
                    && !is_to_be_read(ctx, object.oid, *block)
                {
                    pass.done.objects += 1;
                    pass.done.bytes += object.allocated_bytes;
                    queue.pop_front();
                    *block = 0;
                }
                match queue.front() {
                    Some(object) => {
                        let oid = object.oid;
                        let count = PIECE_BLOCKS.min(size_of(ctx, oid) - *block);
                        let blocks = BlockRange::new(*block, count);
                        let op = ObjectOp::Verify { oid, blocks, pass: number };
                        (op, ScrubUse::Verify { pass: number, oid, blocks })
                    }
                    None if !ranges.is_empty() => {
                        let (first, last) = ranges[0];
                        let op = ObjectOp::List { first, last, limit: PAGE };
                        (op, ScrubUse::List { pass: number })
                    }
                    None => return self.end(ctx),
                }
            }
        };
        self.ordered = Some(ctx.now);
        self.last_order = ctx.now;
        if let ScrubUse::Verify { oid, blocks, .. } = purpose
            && is_compared(ctx, oid)
        {
            self.comparisons += 1;
            let is_lacked = self.lacked == Some(oid);
            self.comparison = Comparison::begin(ctx, self.comparisons, oid, blocks, is_lacked);
        }
        ctx.store(op, StoreUse::Scrub(purpose));
    }

    fn end(&mut self, ctx: &Context) {
        let Some(pass) = self.pass.take() else { return };
        self.last_begun = pass.begun;
        self.last_ended = Some(ctx.now);
        self.last_done = pass.done;
        self.ended += 1;
        let Amount { objects, bytes } = pass.done;
        tracing::info!(objects, bytes, damaged = self.finds.count(), "a scrub has come round");
    }

    /// The store has answered.
    pub fn handle_store(&mut self, ctx: &mut Context, purpose: ScrubUse, reply: ObjectReply) {
        match purpose {
            ScrubUse::Again { oid, piece, blocks } => {
                self.finds.handle_verified(ctx, self.disk, (oid, piece), blocks, reply)
            }
            ScrubUse::List { pass } if pass == self.number => {
                if let ObjectReply::Objects(objects) = reply {
                    self.handle_listed(ctx, objects);
                }
            }
            ScrubUse::Verify { pass, oid, blocks } if pass == self.number => {
                self.handle_verified(ctx, oid, blocks, reply);
            }
            ScrubUse::Journal { pass } => {
                if let ObjectReply::JournalVerified(verified) = reply {
                    self.handle_journal_verified(ctx, pass, verified);
                }
            }
            // Of a pass that has ended.
            ScrubUse::List { .. } | ScrubUse::Verify { .. } => {}
        }
        self.ask_owners(ctx);
    }

    fn handle_listed(&mut self, ctx: &Context, objects: Vec<ObjectInfo>) {
        self.rest(ctx, 0);
        let life = self.life;
        let Some(pass) = &mut self.pass else { return };
        let is_last = objects.len() < PAGE as usize;
        let after = objects.last().and_then(|object| object.oid.0.checked_add(1)).map(Oid);
        match &mut pass.stage {
            Stage::Counting { from, pages } => {
                *pages += 1;
                pass.total.objects += objects.len() as u64;
                pass.total.bytes += objects.iter().map(|object| object.allocated_bytes).sum::<u64>();
                // Each page is as likely as any other to be the first.
                if let Some(first) = objects.first().filter(|_| mixed(life, *pages).is_multiple_of(*pages)) {
                    let within = (mixed(life, !*pages) % objects.len() as u64) as usize;
                    pass.start = objects.get(within).unwrap_or(first).oid;
                }
                match after.filter(|_| !is_last) {
                    Some(after) => *from = after,
                    None => pass.stage = Stage::Journal { first: 0, last: u64::MAX },
                }
            }
            // It has answered what was asked for then.
            Stage::Journal { .. } => {}
            Stage::Reading { queue, ranges, .. } => {
                let Some((_, last)) = ranges.pop_front() else { return };
                if let Some(after) = after.filter(|after| !is_last && *after <= last) {
                    ranges.push_front((after, last));
                }
                queue.extend(objects);
            }
        }
    }

    fn handle_journal_verified(&mut self, ctx: &Context, pass: u64, verified: JournalVerified) {
        let JournalVerified { next, last, damaged, read_bytes } = verified;
        self.journal_records += damaged;
        if damaged > 0 {
            tracing::error!(
                node = %ctx.me, disk = format!("{:016x}", self.disk), records = damaged,
                "the journal was damaged; all that it said is home now, and no start needs the damaged records any more"
            );
        }
        if pass != self.number {
            return;
        }
        self.rest(ctx, read_bytes);
        let Some(pass) = &mut self.pass else { return };
        pass.stage = match next > last {
            true => Stage::reading_from(pass.start),
            false => Stage::Journal { first: next, last },
        };
    }

    fn handle_verified(&mut self, ctx: &mut Context, oid: Oid, blocks: BlockRange, reply: ObjectReply) {
        let is_gone = reply == ObjectReply::Absent;
        let read_bytes = match reply {
            ObjectReply::Verified(verified) => {
                let damaged = verified.damaged.iter().flat_map(|run| run.first..run.end() as u32);
                self.finds.note(ctx, self.disk, oid, damaged);
                let read_bytes = verified.read_bytes;
                if let Some(present) = self.comparison.as_mut().filter(|c| c.is_of(oid, blocks)) {
                    present.handle_own(verified);
                }
                self.end_comparison(ctx);
                read_bytes
            }
            _ => {
                self.cancel_comparison(ctx);
                0
            }
        };
        self.rest(ctx, read_bytes);
        let Some(Pass { stage: Stage::Reading { queue, block, .. }, .. }) = &mut self.pass else { return };
        if queue.front().is_some_and(|object| object.oid == oid) {
            *block = if is_gone { u32::MAX } else { blocks.end() as u32 };
        }
    }

    fn end_comparison(&mut self, ctx: &mut Context) {
        let Some(present) = &mut self.comparison else { return };
        present.give_up_late(ctx);
        if present.is_complete() {
            self.lacked = present.is_lacked().then_some(present.oid).or(self.lacked);
            self.differences.note(ctx, present.oid, &present.differing());
            self.comparison = None;
        }
    }

    fn cancel_comparison(&mut self, ctx: &mut Context) {
        if let Some(present) = self.comparison.take() {
            present.cancel(ctx);
        }
    }

    /// Until the next order.
    fn rest(&mut self, ctx: &Context, read_bytes: u64) {
        let begun = self.ordered.take().unwrap_or(ctx.now);
        let took = ctx.now.since(begun);
        let Some(pass) = &self.pass else { return };
        let wait = match rate(ctx, pass) {
            0 => Duration::ZERO,
            rate => {
                let bytes = read_bytes.max(BLOCK_BYTES as u64);
                Duration::from_nanos((u128::from(bytes) * 1_000_000_000 / u128::from(rate)) as u64)
            }
        };
        self.next = begun.after(wait.max(2 * took));
    }

    pub fn status(&self, ctx: &Context) -> ScrubStatus {
        // What was there when the last pass began may have become less or more: it has read all that was there when it came by.
        let last = (self.last_done, self.last_done);
        let (done, total) = self.pass.as_ref().map_or(last, |pass| (pass.done, pass.total));
        let is_counting = self.pass.as_ref().is_some_and(|p| matches!(p.stage, Stage::Counting { .. }));
        let mut status = ScrubStatus {
            is_enabled: ctx.view.repair().scrub,
            is_running: self.pass.is_some(),
            is_asked: self.pass.as_ref().is_some_and(|pass| pass.is_asked),
            is_counting,
            rate_bytes: self.pass.as_ref().map_or(0, |pass| rate(ctx, pass)),
            objects_done: done.objects,
            objects_total: total.objects,
            bytes_done: done.bytes,
            bytes_total: total.bytes,
            passes: self.ended,
            last_ended_s: self.last_ended.map(|at| ctx.now.since(at).as_secs()),
            next_in_s: self.pass.is_none().then(|| self.due(ctx).since(ctx.now).as_secs()),
            journal_records: self.journal_records,
            ..self.finds.status(ctx)
        };
        self.differences.add_to(ctx, &mut status);
        status
    }
}

/// Bytes per second; 0: as fast as there is spare time.
fn rate(ctx: &Context, pass: &Pass) -> u64 {
    match ctx.view.repair().scrub_rate_bytes {
        0 if pass.is_asked => 0,
        0 => (pass.total.bytes / WEEK.as_secs()).max(RATE_MIN),
        bound => bound,
    }
}

fn size_of(ctx: &Context, oid: Oid) -> u32 {
    let vdi = ctx.view.vdi_or_remains(oid.vid());
    vdi.map_or(0, |vdi| blocks_of(oid, vdi.block_size_shift))
}

/// Is there more of it, from this block on, that counts?
fn is_to_be_read(ctx: &Context, oid: Oid, block: u32) -> bool {
    is_counted(ctx, oid) && block < size_of(ctx, oid)
}

/// Is this node's copy of the object one that others rely on? One that is not will be fetched, or removed.
fn is_counted(ctx: &Context, oid: Oid) -> bool {
    let pg = ctx.view.pg_of(oid).and_then(|pg| ctx.view.pg(pg));
    ctx.view.vdi_or_remains(oid.vid()).is_some() && pg.is_some_and(|pg| pg.in_sync.contains(&ctx.me))
}

/// Are all in-sync copies of it to be alike? Of a working VDI that was deleted nobody needs anything, and its last changes may be anywhere; so may
/// those of one whose owner has died, until it is opened again.
fn is_compared(ctx: &Context, oid: Oid) -> bool {
    let vid = oid.vid();
    let is_snapshot = ctx.view.vdi_or_remains(vid).is_some_and(|vdi| vdi.is_snapshot());
    let is_sealed = || ctx.view.session(vid).owner.is_some() || ctx.view.is_at_rest(vid);
    is_counted(ctx, oid) && (is_snapshot || ctx.view.vdi(vid).is_some() && is_sealed())
}

/// Of the VDI whose data it is: of what a deleted one has left, one that still refers to it.
fn name_of(ctx: &Context, oid: Oid) -> Vec<u8> {
    let of_referrers = || ctx.view.referrers_of(oid.vid()).into_iter().find_map(|vid| ctx.view.vdi(vid));
    let vdi = ctx.view.vdi(oid.vid()).or_else(of_referrers);
    vdi.map(|vdi| vdi.name.clone()).unwrap_or_default()
}

/// How long to wait after so many attempts that have failed.
fn again_after(failures: u32) -> Duration {
    AGAIN_AFTER.saturating_mul(1 << failures.min(20)).min(AGAIN_AFTER_MAX)
}

/// Some number that differs for each `n` and life.
fn mixed(life: u64, n: u64) -> u64 {
    let bytes: Vec<u8> = life.to_le_bytes().into_iter().chain(n.to_le_bytes()).collect();
    proto::hash::fnv1a(&bytes)
}
