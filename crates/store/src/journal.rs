//! The journal ring: what is in it, what is on its way, and from where on it can be reused.
//!
//! A record counts only when all records before it are durable too, as recovery stops at the first hole. A record is
//! trimmed only when nothing needs it any more: no written block, no unsettled tag, no dirty page (see
//! `write_back`).

use std::collections::VecDeque;

use buffer::AlignedBuf;
use bytes::Bytes;
use proto::checksum::crc32c;
use proto::object::ObjectReply;
use proto::{BLOCK_BYTES, Oid};

use crate::layout::{BLOCK, Geometry};
use crate::record::{Entry, HEAD_BYTES, RecordHead, TagKey, header_blocks};

/// Journal writes in flight. A second one hides the first one's latency; more only make batches smaller.
pub const IN_FLIGHT_MAX: usize = 3;
/// Data blocks after which a batch is closed: 1 MiB, or a sixteenth of a small journal.
const BATCH_BLOCKS_MAX: u64 = 256;

/// Memory of larger entries is not kept.
const SPARE_BYTES_MAX: usize = 64 << 10;

/// One record: what it holds that somebody may still need, and what happens when it becomes durable.
#[derive(Default)]
pub struct RecordInfo {
    /// Its position, and the one after it; of no meaning before its place is fixed.
    pub begin: u64,
    pub end: u64,
    pub incarnation: u64,
    /// Written blocks whose data is in this record.
    pub live: u32,
    /// Unsettled tags logged here last.
    pub tags: u32,
    /// Where to look for the live blocks, and for the tags.
    pub touched: Vec<(Oid, u32)>,
    pub tag_keys: Vec<TagKey>,
    /// When durable: records that hold one live block (or tag) less.
    pub replaces: Vec<u64>,
    pub replaces_tags: Vec<u64>,
    pub replies: Vec<(u64, ObjectReply)>,
    pub oids: Vec<Oid>,
    pub written: bool,
}

#[derive(Default)]
struct Batch {
    entries: Vec<u8>,
    data: Vec<Bytes>,
    data_blocks: u64,
}

struct Sealed {
    seq: u64,
    position: u64,
    batch: Batch,
}

pub struct Journal {
    geometry: Geometry,
    incarnation: u64,
    tail: u64,
    tail_seq: u64,
    tail_incarnation: u64,
    /// Where the next record goes, unless it has to skip the end of the ring.
    head: u64,
    durable: u64,
    /// Of records `tail_seq ..`; the last one may be the open batch.
    infos: VecDeque<RecordInfo>,
    open: Option<Batch>,
    sealed: VecDeque<Sealed>,
    /// Memory for the entries of the next batch.
    spare: Vec<u8>,
    pub in_flight: usize,
}

/// Where recovery found the end of the journal.
pub struct Recovered {
    pub tail: u64,
    pub tail_seq: u64,
    pub tail_incarnation: u64,
    pub head: u64,
    pub infos: VecDeque<RecordInfo>,
}

impl Journal {
    pub fn new(geometry: Geometry, incarnation: u64, found: Recovered) -> Self {
        Journal {
            geometry,
            incarnation,
            tail: found.tail,
            tail_seq: found.tail_seq,
            tail_incarnation: found.tail_incarnation,
            head: found.head,
            durable: found.tail_seq + found.infos.len() as u64 - 1,
            infos: found.infos,
            open: None,
            sealed: VecDeque::new(),
            spare: Vec::new(),
            in_flight: 0,
        }
    }

    pub fn durable(&self) -> u64 {
        self.durable
    }

    pub fn tail_seq(&self) -> u64 {
        self.tail_seq
    }

    /// The last record begun.
    pub fn last_seq(&self) -> u64 {
        self.tail_seq + self.infos.len() as u64 - 1
    }

    pub fn used_blocks(&self) -> u64 {
        self.head - self.tail
    }

    pub fn is_idle(&self) -> bool {
        self.open.is_none() && self.sealed.is_empty() && self.in_flight == 0
    }

    pub fn info(&self, seq: u64) -> &RecordInfo {
        &self.infos[(seq - self.tail_seq) as usize]
    }

    pub fn info_mut(&mut self, seq: u64) -> &mut RecordInfo {
        &mut self.infos[(seq - self.tail_seq) as usize]
    }

    pub fn infos_mut(&mut self) -> impl Iterator<Item = &mut RecordInfo> {
        self.infos.iter_mut()
    }

    /// What only write-back may use: it must be able to log what lets the tail move, however full the journal.
    fn reserve_blocks(&self) -> u64 {
        self.geometry.journal_blocks / 8
    }

    /// Largest record. Two fit beside the reserve and the tags, so that one fits without crossing the end of the ring.
    pub fn record_blocks_max(&self) -> u64 {
        self.geometry.journal_blocks / 4
    }

    pub fn tags_max(&self) -> usize {
        (self.geometry.journal_blocks * BLOCK / 8 / 96) as usize
    }

    fn batch_blocks_max(&self) -> u64 {
        BATCH_BLOCKS_MAX.min(self.geometry.journal_blocks / 16)
    }

    /// Whether this may join the open batch instead of beginning a new one.
    fn joins(&self, entries_bytes: usize, data_blocks: u64) -> bool {
        let Some(open) = &self.open else { return false };
        header_blocks(open.entries.len() + entries_bytes) + open.data_blocks + data_blocks
            <= self.batch_blocks_max()
    }

    /// Whether there is room for so much.
    pub fn admits(&self, entries_bytes: usize, data_blocks: u64, write_back: bool) -> bool {
        let limit = self.geometry.journal_blocks - if write_back { 0 } else { self.reserve_blocks() };
        let alone = header_blocks(entries_bytes) + data_blocks;
        let mut head = self.head;
        if let Some(open) = &self.open {
            let joined = self.joins(entries_bytes, data_blocks);
            let extra = if joined { (entries_bytes, data_blocks) } else { (0, 0) };
            let blocks = header_blocks(open.entries.len() + extra.0) + open.data_blocks + extra.1;
            head = self.place(head, blocks) + blocks;
            if joined {
                return head - self.tail <= limit;
            }
        }
        self.place(head, alone) + alone - self.tail <= limit
    }

    /// A record never crosses the end of the ring.
    fn place(&self, head: u64, blocks: u64) -> u64 {
        let ring = self.geometry.journal_blocks;
        if head % ring + blocks > ring { head.next_multiple_of(ring) } else { head }
    }

    /// Makes room for one atomic group of at most so much, and returns the record it will be in.
    pub fn begin(&mut self, entries_bytes: usize, data_blocks: u64) -> u64 {
        if self.open.is_some() && !self.joins(entries_bytes, data_blocks) {
            self.seal();
        }
        if self.open.is_none() {
            let entries = std::mem::take(&mut self.spare);
            self.open = Some(Batch { entries, ..Batch::default() });
            self.infos.push_back(RecordInfo { incarnation: self.incarnation, ..RecordInfo::default() });
        }
        self.entries().reserve(entries_bytes);
        self.last_seq()
    }

    pub fn entries(&mut self) -> &mut Vec<u8> {
        &mut self.open.as_mut().expect("begin comes first").entries
    }

    pub fn push(&mut self, entry: &Entry) {
        entry.encode(self.entries());
    }

    /// Data of the `Write` entry just pushed: aligned, whole blocks.
    pub fn push_data(&mut self, data: Bytes) {
        let open = self.open.as_mut().expect("begin comes first");
        open.data_blocks += data.len() as u64 / BLOCK;
        open.data.push(data);
    }

    /// Closes the open batch: its place in the ring is fixed.
    fn seal(&mut self) {
        let Some(batch) = self.open.take() else { return };
        let blocks = header_blocks(batch.entries.len()) + batch.data_blocks;
        let position = self.place(self.head, blocks);
        self.head = position + blocks;
        assert!(self.head - self.tail <= self.geometry.journal_blocks, "the journal overtook its tail");
        let seq = self.last_seq();
        let end = self.head;
        let info = self.info_mut(seq);
        (info.begin, info.end) = (position, end);
        self.sealed.push_back(Sealed { seq, position, batch });
    }

    /// The next record to write: (number, offset on disk, its pieces).
    pub fn next_write(&mut self) -> Option<(u64, u64, Vec<Bytes>)> {
        if self.in_flight >= IN_FLIGHT_MAX {
            return None;
        }
        if self.sealed.is_empty() {
            self.seal();
        }
        let Sealed { seq, position, batch } = self.sealed.pop_front()?;
        self.in_flight += 1;
        let head = RecordHead {
            store_id: self.geometry.store_id,
            seq,
            position,
            incarnation: self.incarnation,
            durable: self.durable,
            entries_bytes: batch.entries.len() as u32,
            data_blocks: batch.data_blocks as u32,
            entries_crc: crc32c(&batch.entries),
        };
        let mut header = AlignedBuf::zeroed(header_blocks(batch.entries.len()) as usize * BLOCK_BYTES);
        let bytes = &mut header[..];
        bytes[..HEAD_BYTES].copy_from_slice(&head.encode());
        bytes[HEAD_BYTES..HEAD_BYTES + batch.entries.len()].copy_from_slice(&batch.entries);
        debug_assert_eq!(bytes.len() % BLOCK_BYTES, 0);
        let mut pieces = Vec::with_capacity(1 + batch.data.len());
        pieces.push(header.freeze());
        pieces.extend(batch.data);
        let mut entries = batch.entries;
        if entries.capacity() <= SPARE_BYTES_MAX {
            entries.clear();
            self.spare = entries;
        }
        Some((seq, self.geometry.journal_offset(position), pieces))
    }

    /// A record is on stable storage. Returns the records that count from now on, in order.
    pub fn handle_written(&mut self, seq: u64) -> std::ops::RangeInclusive<u64> {
        self.in_flight -= 1;
        self.info_mut(seq).written = true;
        let first = self.durable + 1;
        while self.durable < self.last_seq() && self.info(self.durable + 1).written {
            self.durable += 1;
        }
        first..=self.durable
    }

    /// How far the tail could move: up to the first record that somebody needs, or whose pages are dirty.
    pub fn trimmable(&self, first_dirty: u64) -> u64 {
        let end = first_dirty.min(self.durable + 1);
        (self.tail_seq..end).find(|seq| self.info(*seq).live > 0 || self.info(*seq).tags > 0).unwrap_or(end)
    }

    /// What the superblock must say before records below `seq` may be overwritten: (position, incarnation).
    pub fn tail_at(&self, seq: u64) -> (u64, u64) {
        if seq == self.tail_seq {
            return (self.tail, self.tail_incarnation);
        }
        let last = self.info(seq - 1);
        (last.end, last.incarnation)
    }

    /// The superblock says so durably: the room before `seq` is free.
    pub fn trim(&mut self, seq: u64) {
        (self.tail, self.tail_incarnation) = self.tail_at(seq);
        self.infos.drain(..(seq - self.tail_seq) as usize);
        self.tail_seq = seq;
    }
}
