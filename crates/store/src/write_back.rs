//! Brings written blocks home and lets the journal's tail move, in the background.
//!
//! One round at a time: read what must be copied; write home data and dirty pages; **sync**; log what is home now, log
//! still unsettled tags anew ([`crate::log_home`]); write the superblock with the new tail, durably; only then is the room free. Why each of these
//! steps is where it is stands in docs/formats.md ("Why the tail may move"). A round is large, for the sake of its sync, and its steps are small,
//! for the sake of those who wait meanwhile.

use std::collections::{BTreeSet, VecDeque};

use buffer::AlignedBuf;
use bytes::Bytes;
use proto::checksum::crc32c;
use proto::{BLOCK_BYTES, Oid};

use crate::io::{IoOp, IoResult};
use crate::job::{Home, HomeBlock, Job};
use crate::layout::{BLOCK, Geometry, PageId};
use crate::record::TagKey;
use crate::store::{IoOwner, Store};

/// Chunks brought home in one round, if the journal has room for so many: a round ends with a sync, which durable writes wait for.
const JOBS_MAX: usize = 512;
/// The entries of so many fit into the room that is kept for them in the smallest journal.
const JOBS_MIN: usize = 64;
const PAGES_MAX: usize = 256;
/// I/O of a round under way at a time, but for what one job reads: the journal's own is not to wait behind hundreds.
const IO_AT_ONCE: usize = 8;
/// Jobs logged at a time, while requests of guests wait: some 50 us.
const PART_JOBS: usize = 32;
const TAGS_MAX: usize = 128;
/// Bounds of the entries of one job and of one tag.
pub(crate) const JOB_ENTRIES_BYTES: usize = 128;
pub(crate) const TAG_ENTRY_BYTES: usize = 96;
/// More written blocks than this are not kept in memory for long, however large the journal: 40 MiB.
const WRITTEN_BLOCKS_PRESSED: usize = 10240;
/// With more than this, or more than half of a journal, what goes through the journal of copies that are being made waits: 24 MiB.
const WRITTEN_BLOCKS_PATIENT: usize = 6144;
/// For so many rounds, and from then on as changes of owners do.
pub(crate) const PATIENT_ROUNDS: u64 = 4;
/// With more than this a write waits, as it does for a full journal, until some are home: 64 MiB. Clones, which share theirs, and a start, which finds
/// what the journal holds, may go beyond it.
const WRITTEN_BLOCKS_MAX: usize = 16384;

#[derive(Default)]
pub struct WriteBack {
    round: Option<Round>,
    /// How many have begun.
    rounds: u64,
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
    /// For chunks that go home, until all are found.
    search: Option<Search>,
    jobs: Vec<Job>,
    /// Of those, the ones that have not begun.
    unread: VecDeque<usize>,
    /// Pages to be written; listed when no more jobs come. None in a round of merges alone.
    pages: Option<VecDeque<PageId>>,
    tags: Vec<(u64, TagKey)>,
    /// Writes that have not begun: where, and what.
    writes: VecDeque<(u64, Vec<Bytes>)>,
    /// I/O under way.
    io_left: usize,
    has_written: bool,
    /// Set once all is synced: where the journal begins when all jobs that are left are logged, and the superblock is written.
    tail: Option<u64>,
}

/// Where the search for chunks stands: the record, and which of those that it touched.
struct Search {
    seq: u64,
    at: usize,
    seen: BTreeSet<(Oid, u32)>,
    left: usize,
}

impl Round {
    fn new(upto: u64) -> Round {
        Round {
            upto,
            search: None,
            jobs: Vec::new(),
            unread: VecDeque::new(),
            pages: None,
            tags: Vec::new(),
            writes: VecDeque::new(),
            io_left: 0,
            has_written: false,
            tail: None,
        }
    }

    /// All that the job copies is there.
    fn write(&mut self, job: usize, geometry: &Geometry) {
        let job = &self.jobs[job];
        let at = |first: u32| geometry.slot_offset(job.slot) + u64::from(first) * BLOCK;
        self.writes.extend(job.writes().into_iter().map(|(first, data)| (at(first), data)));
    }
}

impl WriteBack {
    pub fn is_active(&self) -> bool {
        self.round.is_some() || self.checkpoint.is_some()
    }

    pub fn rounds(&self) -> u64 {
        self.rounds
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
        match &self.write_back.round {
            Some(round) if round.tail.is_some() && !round.jobs.is_empty() => self.log_next_part(),
            Some(_) => return,
            None => {}
        }
        if self.write_back.round.is_none() {
            self.write_back.round = self.begin_round().or_else(|| self.plan_round_of_merges());
            if self.write_back.round.is_some() {
                self.write_back.rounds += 1;
                self.continue_round();
            }
        }
    }

    /// The oldest things that keep the tail from moving. Only what is durable in the journal: a page or a block in place that
    /// ran ahead of its record could not be undone.
    fn begin_round(&mut self) -> Option<Round> {
        if !self.wants_write_back() {
            return None;
        }
        let mut round = Round::new(self.journal.durable());
        self.tables.forget_unshared(round.upto);
        round.tags = self.plan_tags(round.upto);
        let fits = |most: usize| {
            let entries_bytes = most * JOB_ENTRIES_BYTES + round.tags.len() * TAG_ENTRY_BYTES;
            // Each part may begin a record of its own.
            self.journal.admits(entries_bytes + most / PART_JOBS * BLOCK_BYTES, 0, true)
        };
        let most = [JOBS_MAX, JOBS_MIN].into_iter().find(|most| fits(*most)).unwrap_or(0);
        round.search =
            Some(Search { seq: self.journal.tail_seq(), at: 0, seen: BTreeSet::new(), left: most });
        if let Some(job) = self.next_job_home(&mut round) {
            self.add_job(&mut round, job);
        } else if !self.tables.dirty.values().any(|dirty| dirty.last <= round.upto)
            && round.tags.is_empty()
            && self.trimmable() == self.journal.tail_seq()
        {
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
        let mut round = Round { pages: Some(VecDeque::new()), ..Round::new(self.journal.durable()) };
        let merges = self.plan_merges(&[], 0);
        merges.into_iter().for_each(|job| self.add_job(&mut round, job));
        (!round.jobs.is_empty()).then_some(round)
    }

    fn wants_write_back(&mut self) -> bool {
        let (used, ring) = (self.journal.used_blocks(), self.superblock.geometry.journal_blocks);
        let full = used > ring / 2 || self.written.block_count() > WRITTEN_BLOCKS_PRESSED;
        let enough = used <= ring / 4 && self.written.block_count() <= WRITTEN_BLOCKS_PRESSED / 2;
        self.write_back.pressed = full || (self.write_back.pressed && !enough);
        self.write_back.pressed
            || !self.stalled.is_empty()
            || !self.patient.is_empty()
            || self.write_back.checkpoint.is_some()
            || self.journal_checks.goal().is_some()
    }

    /// May a part of a copy that is being made go on, for which no owner waits? It leaves room, in memory and in the journal, to changes for which one does.
    /// It waits for a bounded number of rounds, and not at all when something is behind it ([`Store::end_patience`]): then it is stalled, as others are. That
    /// rounds go on is seen to by [`Store::wants_write_back`].
    pub(crate) fn may_go_on(&self) -> bool {
        let half = self.superblock.geometry.journal_blocks / 2;
        self.written.block_count() <= WRITTEN_BLOCKS_PATIENT && self.journal.used_blocks() <= half
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

    /// The next chunk to go home, from where the search stands. `None`: there is no other, or enough.
    fn next_job_home(&mut self, round: &mut Round) -> Option<Job> {
        let search = round.search.as_mut()?;
        while search.left > 0 && search.seq <= round.upto {
            let info = self.journal.info(search.seq);
            if info.live == 0 || search.at >= info.touched.len() {
                (search.seq, search.at) = (search.seq + 1, 0);
                continue;
            }
            let (oid, chunk) = info.touched[search.at];
            search.at += 1;
            if self.can_go_home(oid, chunk, round.upto) && search.seen.insert((oid, chunk)) {
                search.left -= 1;
                return Some(self.plan_job(oid, chunk, round.upto));
            }
        }
        round.search = None;
        None
    }

    fn add_job(&mut self, round: &mut Round, job: Job) {
        job.pins.iter().for_each(|(slot, mask)| self.slots.pin(*slot, *mask));
        round.unread.push_back(round.jobs.len());
        round.jobs.push(job);
    }

    /// Pages that were not changed since record `upto`, the oldest ones first. Those that were are likely to be changed again soon: by what is on its way
    /// home.
    fn list_pages(&self, upto: u64) -> VecDeque<PageId> {
        let dirty = self.tables.dirty.iter().filter(|(_, dirty)| dirty.last <= upto);
        let mut dirty: Vec<_> = dirty.map(|(page, dirty)| (dirty.first, *page)).collect();
        if dirty.len() > PAGES_MAX {
            dirty.select_nth_unstable(PAGES_MAX);
            dirty.truncate(PAGES_MAX);
        }
        dirty.sort_unstable();
        dirty.into_iter().map(|(_, page)| page).collect()
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

    fn round(&mut self) -> &mut Round {
        self.write_back.round.as_mut().expect("its I/O belongs to a round")
    }

    /// Goes on with a round as far as it may have I/O under way. Work is planned, and pages are encoded, when it is their turn: guests' requests,
    /// which come in between, wait for a few of them at most, and not for a round.
    fn continue_round(&mut self) {
        let mut round = self.write_back.round.take().expect("a round is under way");
        while round.io_left < IO_AT_ONCE {
            if let Some((offset, data)) = round.writes.pop_front() {
                round.io_left += 1;
                round.has_written = true;
                self.request_io(IoOp::Write { offset, data, durable: false }, IoOwner::WriteBackWrite);
            } else if let Some(job) = round.unread.pop_front() {
                self.begin_job(&mut round, job);
            } else if !self.plan_more(&mut round) {
                break;
            }
        }
        let (io_left, has_written) = (round.io_left, round.has_written);
        self.write_back.round = Some(round);
        if io_left == 0 && has_written {
            self.round().io_left = 1;
            self.request_io(IoOp::Sync, IoOwner::WriteBackSync);
        } else if io_left == 0 {
            self.finish_round();
        }
    }

    /// Chunks that go home, then merges, then pages.
    fn plan_more(&mut self, round: &mut Round) -> bool {
        if let Some(job) = self.next_job_home(round) {
            self.add_job(round, job);
            return true;
        }
        let Some(pages) = &mut round.pages else {
            let entries_bytes = round.jobs.len() * JOB_ENTRIES_BYTES + round.tags.len() * TAG_ENTRY_BYTES;
            let merges = self.plan_merges(&round.jobs, entries_bytes);
            merges.into_iter().for_each(|job| self.add_job(round, job));
            round.pages = Some(self.list_pages(round.upto));
            return true;
        };
        let Some(page) = pages.pop_front() else { return false };
        // It may hold newer changes by now, and must not run ahead of their records.
        let durable = self.journal.durable();
        if self.tables.dirty.get(&page).is_some_and(|dirty| dirty.last <= durable) {
            // From here on a change makes it dirty again, from that change on.
            self.tables.dirty.remove(&page);
            let bytes = AlignedBuf::copy_of(&self.tables.encode_page(page)).freeze();
            round.writes.push_back((self.superblock.geometry.page_offset(page), vec![bytes]));
        }
        true
    }

    fn begin_job(&mut self, round: &mut Round, job: usize) {
        let geometry = self.superblock.geometry;
        let copies = &round.jobs[job].copies;
        round.io_left += copies.len();
        for (piece, copy) in copies.iter().enumerate() {
            let offset = geometry.slot_offset(copy.slot) + u64::from(copy.first) * BLOCK;
            let read = IoOp::Read { offset, len: copy.count as usize * BLOCK_BYTES };
            self.request_io(read, IoOwner::WriteBackRead { job, piece });
        }
        if copies.is_empty() {
            round.write(job, &geometry);
        }
    }

    pub(crate) fn handle_write_back_read(&mut self, at: usize, piece: usize, result: IoResult) {
        let round = self.write_back.round.as_mut().expect("its I/O belongs to a round");
        let job = &mut round.jobs[at];
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
        job.reads_left -= 1;
        let is_read = job.reads_left == 0;
        round.io_left -= 1;
        if is_read {
            round.write(at, &self.superblock.geometry);
        }
        self.continue_round();
    }

    pub(crate) fn handle_write_back_written(&mut self) {
        self.round().io_left -= 1;
        self.continue_round();
    }

    /// Home data and pages are on stable storage.
    pub(crate) fn handle_write_back_synced(&mut self) {
        self.round().io_left -= 1;
        self.finish_round();
    }

    fn finish_round(&mut self) {
        // What the pages of this round hold is older than anything logged below: the tail is computed first.
        let tail = self.trimmable();
        self.round().tail = Some(tail);
        self.log_next_part();
    }

    /// Logs a part of the round's work, and the tags. The others follow, one with each event, of which each part's own record, when it is durable, is one.
    fn log_next_part(&mut self) {
        let round = self.write_back.round.as_mut().expect("it is at its end");
        let (upto, tags) = (round.upto, std::mem::take(&mut round.tags));
        let mut part: Vec<Job> = round.jobs.drain(..PART_JOBS.min(round.jobs.len())).collect();
        let bound = part.len() * JOB_ENTRIES_BYTES + tags.len() * TAG_ENTRY_BYTES;
        let is_admitted = self.journal.admits(bound, 0, true);
        if !is_admitted {
            part.append(&mut self.round().jobs);
        }
        for (slot, mask) in part.iter().flat_map(|job| &job.pins) {
            self.slots.unpin(*slot, *mask);
        }
        if !is_admitted {
            part.iter().for_each(|job| self.abandon(job));
        } else if bound > 0 {
            let seq = self.journal.begin(bound, 0);
            part.iter().for_each(|job| self.log_job(seq, upto, job));
            tags.iter().for_each(|(logged_in, key)| self.log_tag_anew(seq, *logged_in, key));
        }
        if self.round().jobs.is_empty() {
            self.move_tail();
        }
    }

    fn move_tail(&mut self) {
        let tail_seq = self.round().tail.expect("it was computed first");
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
        let data = vec![AlignedBuf::copy_of(&self.superblock.encode()).freeze()];
        let write = IoOp::Write { offset: self.superblock.offset(), data, durable: true };
        self.request_io(write, IoOwner::Superblock);
    }

    pub(crate) fn handle_superblock_written(&mut self) {
        let round = self.write_back.round.take().expect("its I/O belongs to a round");
        self.journal.trim(round.tail.expect("the superblock said so"));
        self.handle_journal_trimmed();
    }
}
