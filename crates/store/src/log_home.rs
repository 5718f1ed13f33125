//! The end of a write-back round: the records that say what is home now.
//!
//! All of a round's data and pages are on stable storage. What happened to a chunk since its work was planned is looked at when it is logged.

use crate::job::{Goal, Home, HomeBlock, Job};
use crate::record::{ChunkRef, Descriptor, Entry, TagKey};
use crate::store::Store;
use crate::tables::bits;
use crate::written::Removed;

impl Store {
    pub(crate) fn log_job(&mut self, seq: u64, upto: u64, job: &Job) {
        match job.home() {
            Some(home) => self.log_home(seq, upto, job, home),
            None => self.log_merged(seq, job),
        }
    }

    /// Switches a chunk to its home, unless it was changed meanwhile in a way that makes the work void.
    fn log_home(&mut self, seq: u64, upto: u64, job: &Job, home: &Home) {
        let Home { oid, chunk, base } = *home;
        let now = self.tables.chunk(oid, chunk);
        let alive = self.still_newest(job, home);
        // Cloned meanwhile: the clone has the same written blocks, but a shared slot's descriptor never changes.
        let shared_meanwhile = !job.is_move() && !now.is_hole() && self.tables.is_shared(now.slot);
        if alive == 0 || now.slot != base.slot || shared_meanwhile {
            return self.abandon(job);
        }
        let slot = job.slot;
        let (to, descriptor) = match job.goal {
            Goal::Move(_, below) => {
                // A block that was overwritten meanwhile counts too where the object has it: the newer one covers it.
                let has = (now.mask & base.mask) | alive;
                let mask = has & job.own();
                let (lost, crcs) = (job.lost & mask, self.crcs_after(job, base, mask));
                let below = below.only(has);
                (has, Descriptor { slot, reset: true, below, lost, mask, crcs })
            }
            // Nobody but this object looks for anything below.
            _ => {
                let below = self.tables.below(slot).only(now.mask & !alive);
                let lost = self.tables.lost(slot) & !alive & !self.tables.below(slot).mask;
                let crcs = self.crcs_after(job, base, alive);
                (now.mask | alive, Descriptor { slot, reset: false, below, lost, mask: alive, crcs })
            }
        };
        self.describe(seq, descriptor);
        let to = ChunkRef { slot, mask: to };
        if to != now {
            self.set_chunk(seq, oid, chunk, to);
        }
        self.journal.push(&Entry::Homed { oid, chunk, mask: alive, upto });
        let mut removed = Removed::default();
        self.written.homed(oid, chunk, alive, upto, &mut removed);
        self.forget_written(seq, removed);
    }

    fn crcs_after(&self, job: &Job, base: ChunkRef, mask: u16) -> Vec<u32> {
        let crc_of = |index: u32| match job.blocks.iter().find(|b| b.index == index) {
            Some(block) => block.crc,
            None => self.tables.crc(base.slot, index),
        };
        bits(mask).map(crc_of).collect()
    }

    fn still_newest(&self, job: &Job, home: &Home) -> u16 {
        let Some(written) = self.written.chunk(home.oid, home.chunk) else { return 0 };
        let newest = |b: &&HomeBlock| written.get(b.index).is_some_and(|w| w.seq == b.seq);
        job.blocks.iter().filter(newest).fold(0, |m, b| m | 1 << b.index)
    }

    /// What is written stays written; a later round tries again.
    pub(crate) fn abandon(&mut self, job: &Job) {
        if let (true, Some(home)) = (job.is_move(), job.home()) {
            self.slots.give_back(job.slot);
            self.promise_if_wanted(home.oid, home.chunk);
        }
    }

    pub(crate) fn log_tag_anew(&mut self, seq: u64, logged_in: u64, key: &TagKey) {
        let Some(origin) = self.tags.origin_if_logged_in(key, logged_in) else { return };
        self.journal.push(&Entry::Tag { key: *key, origin, settled: None });
        self.tags.insert(*key, origin, seq);
        let info = self.journal.info_mut(seq);
        info.tags += 1;
        info.tag_keys.push(*key);
        info.replaces_tags.push(logged_in);
    }
}
