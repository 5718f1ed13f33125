//! Writes that are answered before they are durable, and flushes that wait for them.
//!
//! A client that flushes ([`VolumeOp::WriteBack`]) is answered when every copy that the view counts has taken its change into memory. That is all
//! that happens earlier. The change stays under way as every other, the owner keeps its data, its blocks stay locked, and it counts as unsettled until
//! all copies have it on stable storage. So what was answered and is not durable is, to all who look for it, a change that an owner
//! has begun and not ended, of which nothing may be lost that any copy has:
//!
//! - A copy that dies leaves the in-sync set; those that stay have noted what was unsettled then, and it fetches that when it returns. Where too few would
//!   remain it is kept, no write ends without it, and when it returns it leaves the set all the same if another has lived on (`view/pg.rs`). The owner
//!   sends the change to whatever set there is then.
//! - The owner dies: the next one's seal makes it alike on all copies, from any that has it.
//! - All copies of a PG die before any has written it: it is lost, everywhere alike after the seal. What one of them had written is found there if that
//!   one is back in time: a seal waits for what is kept in a set while it is down, but lets go of it after some seconds if enough others are there.
//! - Nobody can refuse it: a store says that it has taken a change when room for it is found ([`proto::object::ObjectReply::Taken`]), and where one
//!   that has lost it finds no room later, it may take the last room or is dropped, or the change waits, and with it the next flush.
//!
//! Only writes into objects that are the VDI's own and complete are answered so. What changes the block table, or comes before such a change, is
//! answered when it is durable: a table that leads to an object which a power loss has unmade would show zeros in place of what was there before.
//!
//! A flush waits for all that was answered so when it came, whoever asked for it: all clients of a VDI are served by its one owner. One that comes to a new
//! owner waits for the seal, after which all that is left of earlier owners is durable.

use std::collections::{BTreeMap, BTreeSet};

use proto::Seq;
use proto::client::{ClientOp, ClientReply, VolumeOp};
use proto::object::{Change, WriteBase};

use super::Session;
use super::copies::ChangeUse;
use crate::context::Context;

/// Writes of a VDI that are answered and not durable: as many as a journal takes in a few batches, and far fewer than what makes copies be
/// told one by one what is settled (`settled.rs`). Beyond, writes are answered when they are durable.
const ANSWERED_MAX: usize = 512;
/// Their data, which the owner keeps.
const ANSWERED_BYTES_MAX: usize = 32 << 20;

#[derive(Debug, Default)]
pub(super) struct WriteBack {
    /// Jobs whose clients were answered, with the bytes of their changes, until all is durable.
    answered: BTreeMap<u64, usize>,
    answered_bytes: usize,
    /// Flushes, with what each waits for.
    flushes: BTreeMap<u64, BTreeSet<u64>>,
}

impl WriteBack {
    fn has_room(&self, bytes: usize) -> bool {
        self.answered.len() < ANSWERED_MAX && self.answered_bytes + bytes <= ANSWERED_BYTES_MAX
    }

    fn begin(&mut self, job: u64, bytes: usize) {
        self.answered.insert(job, bytes);
        self.answered_bytes += bytes;
    }

    pub fn is_answered(&self, job: u64) -> bool {
        self.answered.contains_key(&job)
    }

    /// All that the job has changed is durable. Returns the flushes that have waited for it alone.
    fn end(&mut self, job: u64) -> Vec<u64> {
        self.answered_bytes -= self.answered.remove(&job).unwrap_or(0);
        for awaited in self.flushes.values_mut() {
            awaited.remove(&job);
        }
        self.flushes.extract_if(.., |_, awaited| awaited.is_empty()).map(|(flush, _)| flush).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.answered.is_empty()
    }
}

pub(super) fn is_write_back(op: &ClientOp) -> bool {
    matches!(op, ClientOp::Volume { op: VolumeOp::WriteBack { .. }, .. })
}

impl Session {
    /// Are copies to say when they have taken this change?
    pub(super) fn wants_taken(&self, change: &Change, purpose: ChangeUse) -> bool {
        let ChangeUse::Task(task) = purpose else { return false };
        let job = self.tasks.get(&task).and_then(|_| self.jobs.get(&self.task_job(task)));
        matches!(change, Change::Write { base: WriteBase::Keep, .. })
            && job.is_some_and(|job| is_write_back(&job.request.op))
    }

    /// Answers the client if all copies have taken all that its write changes, and nothing is left to do but to wait for their disks.
    pub(super) fn answer_if_taken(&mut self, ctx: &mut Context, seq: Seq) {
        let Some(task) = self.task_of_change(seq) else { return };
        let Some(changes) = self.last_changes(task) else { return };
        let job = self.task_job(task);
        let bytes = changes.iter().filter_map(|seq| self.bytes_in_flight(*seq)).sum();
        let waits_for_disks = self.jobs.get(&job).is_some_and(|job| job.is_last_task());
        if !waits_for_disks
            || self.write_back.is_answered(job)
            || !changes.iter().all(|seq| self.is_taken(ctx, *seq))
            || !self.write_back.has_room(bytes)
        {
            return;
        }
        if self.answer_job(ctx, job, Ok(ClientReply::Done)) {
            // From here on none of them may be refused.
            changes.into_iter().for_each(|seq| self.promise(seq));
            self.write_back.begin(job, bytes);
        }
    }

    /// The changes under way of a write into a complete object of the VDI's own that has nothing left to do but to wait for them. `None`: it is
    /// another kind of task, or has more to do.
    fn last_changes(&self, task: u64) -> Option<Vec<Seq>> {
        let task = self.tasks.get(&task)?;
        let entry = self.table.entry(task.index()).unwrap_or_default();
        let is_complete = entry.owner == self.vid && !entry.is_partial();
        let is_under_way = |seq: &Seq| self.bytes_in_flight(*seq).is_some();
        let changes: Vec<Seq> = task.changes.iter().copied().filter(is_under_way).collect();
        (is_complete && task.left_of_write() == Some(changes.len())).then_some(changes)
    }

    /// Has a flush that begins now to wait?
    pub(super) fn begin_flush(&mut self, job: u64) -> bool {
        let awaited: BTreeSet<u64> = self.write_back.answered.keys().copied().collect();
        let waits = !awaited.is_empty();
        if waits {
            self.write_back.flushes.insert(job, awaited);
        }
        waits
    }

    /// What the job has changed is on stable storage of all copies.
    pub(super) fn end_write_back(&mut self, ctx: &mut Context, job: u64) {
        for flush in self.write_back.end(job) {
            self.task_ended(ctx, flush, Ok(()));
        }
    }

    /// Is something answered and not durable?
    pub fn owes_durability(&self) -> bool {
        !self.write_back.is_empty()
    }
}
