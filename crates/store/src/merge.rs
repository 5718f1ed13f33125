//! Overlays that end: what lies below one that alone refers to it comes into its own room, and the slot below is free.
//!
//! Such pairs are what a deleted snapshot leaves. They are merged when the store has nothing else to do, a few at a time besides other
//! work, and at once when slots become scarce. Each merge ends a pair and none makes one, so it ends.

use std::collections::BTreeSet;

use crate::job::{Goal, Job};
use crate::record::{Below, Descriptor};
use crate::store::Store;
use crate::tables::bits;

/// Merges of one round: 2 MiB are read and as much is written, which a round of its own does within moments.
const MERGES_MAX: usize = 32;
/// Besides the chunks of a full round.
const MERGES_BESIDES_MAX: usize = 8;
/// Slots are scarce when fewer than one in so many are free.
const SCARCE: u32 = 16;

impl Store {
    /// Whether a round is worth while that only merges.
    pub(crate) fn wants_merges(&self) -> bool {
        let nothing_else = self.journal.is_idle() || self.slots_are_scarce();
        nothing_else && self.may_merge() && self.mergeable().next().is_some()
    }

    /// Not when the end is near, unless somebody waits for the room.
    fn may_merge(&self) -> bool {
        let is_awaited =
            !self.stalled.is_empty() || !self.patient.is_empty() || !self.growth.roomless.is_empty();
        is_awaited || !self.write_back.is_ending()
    }

    /// Overlays that could end, but for those that could not be read.
    pub(crate) fn mergeable(&self) -> impl Iterator<Item = u32> + '_ {
        self.tables.mergeable().filter(|overlay| !self.write_back.unread.contains(overlay))
    }

    fn slots_are_scarce(&self) -> bool {
        self.slots.available() + self.slots.absent() < self.superblock.geometry.slots / SCARCE
    }

    pub(crate) fn plan_merges(&mut self, jobs: &[Job], entries_bytes: usize) -> Vec<Job> {
        let most = if jobs.is_empty() || self.slots_are_scarce() { MERGES_MAX } else { MERGES_BESIDES_MAX };
        let room = self.journal.admits(entries_bytes + most * crate::write_back::JOB_ENTRIES_BYTES, 0, false);
        if !room || !self.may_merge() {
            return Vec::new();
        }
        // Chunks that move rely on what their slot is; those that do not write to it.
        let busy: BTreeSet<u32> = jobs.iter().filter_map(Job::home).map(|home| home.base.slot).collect();
        let idle = self.mergeable().filter(|overlay| !busy.contains(overlay)).take(most);
        idle.map(|overlay| Job::merge(overlay, &self.tables)).collect()
    }

    /// The overlay has all its blocks, durably: it is plain. Unless it has gone.
    pub(crate) fn log_merged(&mut self, seq: u64, job: &Job) {
        let Goal::Merge(below) = job.goal else { unreachable!("only merges come here") };
        let slot = job.slot;
        if job.is_unread {
            // The blocks may be read again one day. The slot below keeps them; it is tried again after the next open.
            self.write_back.unread.insert(slot);
            return;
        }
        if self.tables.refs()[slot as usize] == 0 || self.tables.below(slot) != below {
            return;
        }
        let crcs = bits(below.mask).map(|index| self.tables.crc(slot, index)).collect();
        let lost = self.tables.lost(slot) & !below.mask | job.lost;
        self.describe(
            seq,
            Descriptor { slot, reset: false, below: Below::NONE, lost, mask: below.mask, crcs },
        );
    }
}
