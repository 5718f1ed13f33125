//! Brings written blocks home and lets the journal's tail move, in the background.
//!
//! One round at a time: read what must be copied; write home data and dirty pages; **sync**; log what is home now, log
//! still unsettled tags anew; write the superblock with the new tail, durably; only then is the room free. Why each of these
//! steps is where it is stands in docs/formats.md ("Why the tail may move").

use std::collections::{BTreeSet, VecDeque};

use buffer::AlignedBuf;
use bytes::Bytes;
use proto::checksum::crc32c;
use proto::{BLOCK_BYTES, Oid};

use crate::io::{IoOp, IoResult};
use crate::job::{Goal, Home, HomeBlock, Job};
use crate::layout::{BLOCK, PageId};
use crate::record::{ChunkRef, Descriptor, Entry, TagKey};
use crate::store::{IoOwner, Store};
use crate::tables::bits;
use crate::written::Removed;

/// Chunks brought home in one round, if the journal has room for so many: a round ends with a sync, which durable writes wait for.
const JOBS_MAX: usize = 512;
/// The entries of so many fit into the room that is kept for them in the smallest journal.
const JOBS_MIN: usize = 64;
const PAGES_MAX: usize = 256;
/// Writes of a round under way at a time: the journal's own are not to wait behind hundreds.
const WRITES_AT_ONCE: usize = 8;
const TAGS_MAX: usize = 128;
/// Bounds of the entries of one job and of one tag.
pub(crate) const JOB_ENTRIES_BYTES: usize = 128;
pub(crate) const TAG_ENTRY_BYTES: usize = 96;
/// More written blocks than this are not kept in memory for long, however large the journal: 40 MiB.
const WRITTEN_BLOCKS_PRESSED: usize = 10240;
/// With more than this a write waits, as it does for a full journal, until some are home: 64 MiB. Clones, which share theirs, and a start, which finds
/// what the journal holds, may go beyond it.
const WRITTEN_BLOCKS_MAX: usize = 16384;

#[derive(Default)]
pub struct WriteBack {
    round: Option<Round>,
    /// Under way until the journal is a quarter full.
    pressed: bool,
    /// Everything up to this record is to go home.
    checkpoint: Option<u64>,
    /// Since a checkpoint began nothing was changed: the end is near, and what is not needed for it is left.
    ending: bool,
    /// Overlays that could not be merged, since what lies below them could not be read.
    pub unread: BTreeSet<u32>,
}

struct Round {
    /// Records up to here were durable when the round began.
    upto: u64,
    jobs: Vec<Job>,
    pages: Vec<PageId>,
    tags: Vec<(u64, TagKey)>,
    /// Writes that have not begun: where, and what.
    writes: VecDeque<(u64, Vec<Bytes>)>,
    /// I/O under way.
    io_left: usize,
    /// Set once the superblock with this tail is being written.
    tail_seq: Option<u64>,
}

impl Round {
    fn new(upto: u64) -> Round {
        Round {
            upto,
            jobs: Vec::new(),
            pages: Vec::new(),
            tags: Vec::new(),
            writes: VecDeque::new(),
            io_left: 0,
            tail_seq: None,
        }
    }
}

impl WriteBack {
    pub fn is_active(&self) -> bool {
        self.round.is_some() || self.checkpoint.is_some()
    }

    pub fn slots_in_hand(&self) -> u32 {
        self.jobs().filter(|job| job.is_move()).count() as u32
    }

    pub fn is_moving(&self, oid: Oid, chunk: u32) -> bool {
        self.jobs().any(|job| job.is_move() && job.home().is_some_and(|h| (h.oid, h.chunk) == (oid, chunk)))
    }

    fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.round.iter().flat_map(|r| &r.jobs)
    }

    pub fn begin_checkpoint(&mut self, upto: u64) {
        self.checkpoint = Some(upto);
        self.ending = true;
    }

    pub fn is_ending(&self) -> bool {
        self.ending
    }

    pub fn handle_change(&mut self) {
        self.ending = false;
    }
}

impl Store {
    pub(crate) fn drive_write_back(&mut self) {
        if self.write_back.round.is_some() {
            return;
        }
        let round = self.plan_round_home().or_else(|| self.plan_round_of_merges());
        if round.is_some() {
            self.write_back.round = round;
            self.begin_reads();
        }
    }

    fn plan_round_home(&mut self) -> Option<Round> {
        if !self.wants_write_back() {
            return None;
        }
        let round = self.plan_round();
        let idle = round.jobs.is_empty() && round.pages.is_empty() && round.tags.is_empty();
        if idle && self.trimmable() == self.journal.tail_seq() {
            if self.journal.is_idle() {
                self.write_back.checkpoint = None;
            }
            return None;
        }
        Some(round)
    }

    fn plan_round_of_merges(&mut self) -> Option<Round> {
        if !self.wants_merges() {
            return None;
        }
        let mut round = Round::new(self.journal.durable());
        round.jobs = self.plan_merges(&[], 0);
        self.pin_all(&round.jobs);
        (!round.jobs.is_empty()).then_some(round)
    }

    fn wants_write_back(&mut self) -> bool {
        let (used, ring) = (self.journal.used_blocks(), self.superblock.geometry.journal_blocks);
        let full = used > ring / 2 || self.written.block_count() > WRITTEN_BLOCKS_PRESSED;
        let enough = used <= ring / 4 && self.written.block_count() <= WRITTEN_BLOCKS_PRESSED / 2;
        self.write_back.pressed = full || (self.write_back.pressed && !enough);
        self.write_back.pressed
            || !self.stalled.is_empty()
            || self.write_back.checkpoint.is_some()
            || self.journal_checks.goal().is_some()
    }

    /// May so many more blocks be kept in memory? If not, some go home first: whoever asks is stalled, and that makes them go.
    ///
    /// That ends: stalled orders alone make `wants_write_back` true, records become durable without new orders, and what goes home has its slots
    /// promised and asks for nothing here.
    pub(crate) fn has_memory_for(&self, blocks: u64) -> bool {
        let kept = self.written.block_count();
        blocks == 0 || kept == 0 || kept as u64 + blocks <= WRITTEN_BLOCKS_MAX as u64
    }

    fn trimmable(&self) -> u64 {
        let first_dirty = self.tables.dirty.values().map(|d| d.first).min().unwrap_or(u64::MAX);
        self.journal.trimmable(first_dirty)
    }

    /// The oldest things that keep the tail from moving. Only what is durable in the journal: a page or a block in place that
    /// ran ahead of its record could not be undone.
    fn plan_round(&mut self) -> Round {
        let upto = self.journal.durable();
        self.tables.forget_unshared(upto);
        let tags = self.plan_tags(upto);
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        'records: for seq in self.journal.tail_seq()..=upto {
            let info = self.journal.info(seq);
            if info.live == 0 {
                continue;
            }
            for &(oid, chunk) in &info.touched {
                if self.can_go_home(oid, chunk, upto) && seen.insert((oid, chunk)) {
                    found.push((oid, chunk));
                    if found.len() == JOBS_MAX {
                        break 'records;
                    }
                }
            }
        }
        for most in [JOBS_MAX, JOBS_MIN, 0] {
            found.truncate(most);
            if self.journal.admits(found.len() * JOB_ENTRIES_BYTES + tags.len() * TAG_ENTRY_BYTES, 0, true) {
                break;
            }
        }
        let mut jobs: Vec<Job> =
            found.into_iter().map(|(oid, chunk)| self.plan_job(oid, chunk, upto)).collect();
        let entries_bytes = jobs.len() * JOB_ENTRIES_BYTES + tags.len() * TAG_ENTRY_BYTES;
        jobs.extend(self.plan_merges(&jobs, entries_bytes));
        self.pin_all(&jobs);
        let mut dirty: Vec<_> = self
            .tables
            .dirty
            .iter()
            .filter(|(_, d)| d.last <= upto)
            .map(|(page, d)| (d.first, *page))
            .collect();
        dirty.sort_unstable();
        let pages = dirty.into_iter().take(PAGES_MAX).map(|(_, page)| page).collect();
        Round { jobs, pages, tags, ..Round::new(upto) }
    }

    fn pin_all(&mut self, jobs: &[Job]) {
        jobs.iter().flat_map(|job| &job.pins).for_each(|(slot, mask)| self.slots.pin(*slot, *mask));
    }

    /// Unsettled changes in records that nothing else needs, from the tail on.
    fn plan_tags(&self, upto: u64) -> Vec<(u64, TagKey)> {
        let mut tags = Vec::new();
        let goal = self.write_back.checkpoint.max(self.journal_checks.goal());
        let last = goal.map_or(upto, |goal| goal.min(upto));
        for seq in self.journal.tail_seq()..=last {
            let info = self.journal.info(seq);
            if info.live > 0 || tags.len() >= TAGS_MAX {
                break;
            }
            if info.tags > 0 {
                let logged =
                    info.tag_keys.iter().filter(|key| self.tags.origin_if_logged_in(key, seq).is_some());
                tags.extend(logged.take(TAGS_MAX - tags.len()).map(|key| (seq, *key)));
            }
        }
        tags
    }

    fn can_go_home(&self, oid: Oid, chunk: u32, upto: u64) -> bool {
        let Some(written) = self.written.chunk(oid, chunk) else { return false };
        let mask = written.blocks.iter().filter(|b| b.seq <= upto).fold(0, |m, b| m | 1 << b.index);
        let base = self.tables.chunk(oid, chunk);
        // A read in flight still needs what lies there. It ends, and none that needs it can begin: the written block covers it.
        // Nor may a slot be overwritten that was shared a moment ago: until the record that changed that is durable, a
        // crash makes it another object's again.
        let in_place = !base.is_hole() && !self.tables.is_shared(base.slot);
        let in_use =
            in_place && (self.slots.is_pinned(base.slot, mask) || self.tables.was_shared(base.slot, upto));
        mask != 0 && !in_use
    }

    fn plan_job(&mut self, oid: Oid, chunk: u32, upto: u64) -> Job {
        let base = self.tables.chunk(oid, chunk);
        let written = self.written.chunk_mut(oid, chunk).expect("it can go home");
        let blocks: Vec<HomeBlock> = written
            .blocks
            .iter()
            .filter(|b| b.seq <= upto)
            .map(|b| HomeBlock { index: u32::from(b.index), seq: b.seq, crc: b.crc, data: b.data.clone() })
            .collect();
        let home = Home { oid, chunk, base };
        if !base.is_hole() && !self.tables.is_shared(base.slot) {
            return Job::in_place(home, blocks);
        }
        assert!(written.promised, "no slot was promised to chunk {chunk} of object {oid}");
        written.promised = false;
        self.slots.unpromise();
        let fresh = self.slots.take().expect("a promised slot is there");
        Job::move_to(fresh, home, blocks, &self.tables)
    }

    fn begin_reads(&mut self) {
        let round = self.write_back.round.as_ref().expect("a round began");
        let mut reads = Vec::new();
        for (job, Job { copies, .. }) in round.jobs.iter().enumerate() {
            for (piece, copy) in copies.iter().enumerate() {
                let offset = self.superblock.geometry.slot_offset(copy.slot) + u64::from(copy.first) * BLOCK;
                reads.push((IoOp::Read { offset, len: copy.count as usize * BLOCK_BYTES }, job, piece));
            }
        }
        self.round().io_left = reads.len();
        if reads.is_empty() {
            return self.begin_writes();
        }
        for (op, job, piece) in reads {
            self.request_io(op, IoOwner::WriteBackRead { job, piece });
        }
    }

    fn round(&mut self) -> &mut Round {
        self.write_back.round.as_mut().expect("its I/O belongs to a round")
    }

    pub(crate) fn handle_write_back_read(&mut self, job: usize, piece: usize, result: IoResult) {
        let round = self.write_back.round.as_mut().expect("its I/O belongs to a round");
        let job = &mut round.jobs[job];
        let copy = &mut job.copies[piece];
        let bytes = match result {
            Ok(bytes) if bytes.len() == copy.count as usize * BLOCK_BYTES => Some(bytes),
            _ => None,
        };
        for i in 0..copy.count {
            let good = bytes.as_ref().is_some_and(|b| {
                let block = &b[i as usize * BLOCK_BYTES..(i as usize + 1) * BLOCK_BYTES];
                crc32c(block) == self.tables.crc(copy.slot, copy.first + i)
            });
            if !good {
                tracing::warn!(slot = copy.slot, block = copy.first + i, "lost a block");
                job.lost |= 1 << (copy.first + i);
            }
        }
        job.is_unread |= bytes.is_none();
        copy.content = bytes;
        round.io_left -= 1;
        if round.io_left == 0 {
            self.begin_writes();
        }
    }

    fn begin_writes(&mut self) {
        let round = self.write_back.round.as_mut().expect("a round began");
        let geometry = self.superblock.geometry;
        let mut writes = VecDeque::new();
        for job in &round.jobs {
            for (first, data) in job.writes() {
                writes.push_back((geometry.slot_offset(job.slot) + u64::from(first) * BLOCK, data));
            }
        }
        // The reads took time: a page may hold newer changes by now, and must not run ahead of their records.
        let (dirty, durable) = (&self.tables.dirty, self.journal.durable());
        round.pages.retain(|page| dirty.get(page).is_some_and(|d| d.last <= durable));
        for page in &round.pages {
            // From here on a change makes it dirty again, from that change on.
            self.tables.dirty.remove(page);
            let bytes = AlignedBuf::copy_of(&self.tables.encode_page(*page)).freeze();
            writes.push_back((geometry.page_offset(*page), vec![bytes]));
        }
        if writes.is_empty() {
            return self.finish_round();
        }
        round.writes = writes;
        self.continue_writes();
    }

    fn continue_writes(&mut self) {
        let round = self.round();
        let room = WRITES_AT_ONCE - round.io_left;
        let next: Vec<_> = round.writes.drain(..room.min(round.writes.len())).collect();
        round.io_left += next.len();
        for (offset, data) in next {
            self.request_io(IoOp::Write { offset, data, durable: false }, IoOwner::WriteBackWrite);
        }
    }

    pub(crate) fn handle_write_back_written(&mut self) {
        let round = self.round();
        round.io_left -= 1;
        match round.writes.is_empty() {
            true if round.io_left == 0 => self.request_io(IoOp::Sync, IoOwner::WriteBackSync),
            true => {}
            false => self.continue_writes(),
        }
    }

    pub(crate) fn handle_write_back_synced(&mut self) {
        self.finish_round();
    }

    /// Home data and pages are on stable storage.
    fn finish_round(&mut self) {
        let round = self.write_back.round.as_mut().expect("a round began");
        let (upto, jobs, tags) =
            (round.upto, std::mem::take(&mut round.jobs), std::mem::take(&mut round.tags));
        for (slot, mask) in jobs.iter().flat_map(|job| &job.pins) {
            self.slots.unpin(*slot, *mask);
        }
        // What the pages of this round hold is older than anything logged below: the tail is computed first.
        let tail_seq = self.trimmable();
        let bound = jobs.len() * JOB_ENTRIES_BYTES + tags.len() * TAG_ENTRY_BYTES;
        if bound > 0 {
            if self.journal.admits(bound, 0, true) {
                let seq = self.journal.begin(bound, 0);
                jobs.iter().for_each(|job| self.log_job(seq, upto, job));
                tags.iter().for_each(|(logged_in, key)| self.log_tag_anew(seq, *logged_in, key));
            } else {
                jobs.iter().for_each(|job| self.abandon(job));
            }
        }
        if tail_seq == self.journal.tail_seq() {
            self.write_back.round = None;
            return;
        }
        let (tail_position, tail_incarnation) = self.journal.tail_at(tail_seq);
        let revision = self.superblock.revision + 1;
        self.superblock = crate::layout::Superblock {
            revision,
            tail_seq,
            tail_position,
            tail_incarnation,
            durable: self.journal.durable(),
            ..self.superblock
        };
        self.round().tail_seq = Some(tail_seq);
        let data = vec![AlignedBuf::copy_of(&self.superblock.encode()).freeze()];
        let write = IoOp::Write { offset: self.superblock.offset(), data, durable: true };
        self.request_io(write, IoOwner::Superblock);
    }

    pub(crate) fn handle_superblock_written(&mut self) {
        let round = self.write_back.round.take().expect("its I/O belongs to a round");
        self.journal.trim(round.tail_seq.expect("the superblock said so"));
        self.handle_journal_trimmed();
    }

    fn log_job(&mut self, seq: u64, upto: u64, job: &Job) {
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
    fn abandon(&mut self, job: &Job) {
        if let (true, Some(home)) = (job.is_move(), job.home()) {
            self.slots.give_back(job.slot);
            self.promise_if_wanted(home.oid, home.chunk);
        }
    }

    fn log_tag_anew(&mut self, seq: u64, logged_in: u64, key: &TagKey) {
        let Some(origin) = self.tags.origin_if_logged_in(key, logged_in) else { return };
        self.journal.push(&Entry::Tag { key: *key, origin, settled: None });
        self.tags.insert(*key, origin, seq);
        let info = self.journal.info_mut(seq);
        info.tags += 1;
        info.tag_keys.push(*key);
        info.replaces_tags.push(logged_in);
    }
}
