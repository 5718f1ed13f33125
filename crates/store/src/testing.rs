//! A simulated disk that promises no more than real ones do.
//!
//! What is in flight or not yet synced may be lost, torn at sector or block granularity, or reordered by a crash. A read that
//! overlaps a write in flight may see any mixture of both. Bits can be flipped at will. Steppable: `submit` a request,
//! look at `pending`, `complete` or `fail` one of them in any order, `crash`. The same seeds give the same disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use buffer::AlignedBuf;
use bytes::Bytes;
use proto::{BLOCK_BYTES, Oid};

use crate::disk::Disk;
use crate::io::{IoFailed, IoId, IoOp, IoRequest, IoResult};
use crate::layout::{BLOCK, DESCRIPTOR_BYTES, DESCRIPTORS_PER_PAGE, GROUP_CHUNKS, PageId, SLOT_BLOCKS};
use crate::record::{Entry, HEAD_BYTES, RecordHead, decode_entries};
use crate::store::Store;
use crate::tables::bits;

const SECTOR_BYTES: usize = 512;
const SECTORS: usize = BLOCK_BYTES / SECTOR_BYTES;

type Block = Arc<[u8; BLOCK_BYTES]>;

/// SplitMix64: small, seeded, the same everywhere.
#[derive(Clone, Debug)]
pub struct SimRng(u64);

impl SimRng {
    pub fn new(seed: u64) -> Self {
        SimRng(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// A write that is complete but not yet on stable storage: content of one block.
#[derive(Clone)]
struct Unsynced {
    completed: u64,
    block: Block,
}

#[derive(Clone)]
struct InFlight {
    op: IoOp,
    /// For a sync: what was completed when it was asked for.
    completed: u64,
}

/// One simulated disk. Clones share nothing but memory.
#[derive(Clone, Default)]
pub struct SimDisk {
    size: u64,
    /// For a disk that grows: how large the file system lets it become.
    room: Option<u64>,
    stable: BTreeMap<u64, Block>,
    /// Versions of blocks in the volatile cache, oldest first.
    cached: BTreeMap<u64, Vec<Unsynced>>,
    in_flight: BTreeMap<IoId, InFlight>,
    completed: u64,
    rng: Option<SimRng>,
}

impl SimDisk {
    pub fn new(size: u64) -> Self {
        SimDisk { size, rng: Some(SimRng::new(size)), ..SimDisk::default() }
    }

    /// A file of so many bytes, in a file system that has room for `room` bytes of it.
    pub fn growing(size: u64, room: u64) -> Self {
        SimDisk { room: Some(room), ..SimDisk::new(size) }
    }

    /// The file system has more room, or less.
    pub fn set_room(&mut self, room: u64) {
        self.room = Some(room);
    }

    /// Cuts what lies beyond.
    pub fn truncate(&mut self, size: u64) {
        self.size = size;
    }

    /// Starts a request. Nothing of it is guaranteed to be visible, or to be absent, until it completes.
    ///
    /// # Panics
    /// If the request is out of bounds or not aligned, in memory or on disk: a real disk would refuse it.
    pub fn submit(&mut self, request: IoRequest) {
        let (offset, len) = match &request.op {
            IoOp::Read { offset, len } => (*offset, *len),
            IoOp::Write { offset, data, .. } => {
                for piece in data {
                    assert_eq!(piece.as_ptr() as usize % BLOCK_BYTES, 0, "a piece is not aligned in memory");
                    assert_eq!(piece.len() % BLOCK_BYTES, 0, "a piece is not whole blocks");
                }
                (*offset, data.iter().map(Bytes::len).sum())
            }
            IoOp::Sync => (0, 0),
            IoOp::Grow { .. } => {
                assert!(self.room.is_some(), "this disk never grows");
                (0, 0)
            }
        };
        assert_eq!(offset % BLOCK_BYTES as u64, 0);
        assert_eq!(len % BLOCK_BYTES, 0);
        assert!(offset + len as u64 <= self.size, "I/O at {offset} beyond the disk");
        let old = self.in_flight.insert(request.id, InFlight { op: request.op, completed: self.completed });
        assert!(old.is_none(), "a request id is used twice");
    }

    /// What is in flight, oldest first.
    pub fn pending(&self) -> Vec<IoId> {
        self.in_flight.keys().copied().collect()
    }

    pub fn pending_op(&self, id: IoId) -> Option<&IoOp> {
        self.in_flight.get(&id).map(|io| &io.op)
    }

    /// Carries out one request that is in flight; the result is for `Store::handle_io`.
    pub fn complete(&mut self, id: IoId) -> IoResult {
        let InFlight { op, completed } = self.in_flight.remove(&id).expect("the request is in flight");
        match op {
            IoOp::Read { offset, len } => Ok(self.read_blocks(offset, len)),
            IoOp::Write { offset, data, durable } => {
                self.completed += 1;
                for (at, block) in blocks_of(offset, &data) {
                    if durable {
                        // A cache keeps the order of writes to one place.
                        self.cached.remove(&at);
                        self.stable.insert(at, block);
                    } else {
                        let unsynced = Unsynced { completed: self.completed, block };
                        self.cached.entry(at).or_default().push(unsynced);
                    }
                }
                Ok(Bytes::new())
            }
            IoOp::Sync => {
                self.flush(completed);
                Ok(Bytes::new())
            }
            IoOp::Grow { size_bytes } if self.room.is_some_and(|room| size_bytes <= room) => {
                self.size = self.size.max(size_bytes);
                Ok(Bytes::new())
            }
            IoOp::Grow { .. } => Err(IoFailed::NoRoom),
        }
    }

    /// Ends one request with an error. A write may have happened in part.
    pub fn fail(&mut self, id: IoId) -> IoResult {
        let InFlight { op, .. } = self.in_flight.remove(&id).expect("the request is in flight");
        if let IoOp::Write { offset, data, .. } = op {
            self.completed += 1;
            for (at, block) in blocks_of(offset, &data) {
                let unsynced = Unsynced { completed: self.completed, block };
                self.cached.entry(at).or_default().push(unsynced);
            }
        }
        Err(IoFailed::Disk)
    }

    /// Reports success of a request that is in flight, and does nothing of it: a disk that lies.
    pub fn pretend(&mut self, id: IoId) -> IoResult {
        self.in_flight.remove(&id).expect("the request is in flight");
        Ok(Bytes::new())
    }

    /// Power is lost. Of everything in flight or only cached, any part may be there afterwards.
    pub fn crash(&mut self, seed: u64) {
        let mut rng = SimRng::new(seed);
        let mut versions: BTreeMap<u64, Vec<Block>> = BTreeMap::new();
        for (at, cached) in std::mem::take(&mut self.cached) {
            versions.entry(at).or_default().extend(cached.into_iter().map(|u| u.block));
        }
        for (_, InFlight { op, .. }) in std::mem::take(&mut self.in_flight) {
            if let IoOp::Grow { size_bytes } = op {
                let more = size_bytes
                    .saturating_sub(self.size)
                    .min(self.room.unwrap_or(0).saturating_sub(self.size));
                self.size += rng.below(more / BLOCK_BYTES as u64 + 1) * BLOCK_BYTES as u64;
                continue;
            }
            if let IoOp::Write { offset, data, .. } = op {
                // Often all of a write arrives, or nothing.
                let luck = rng.below(4);
                for (at, block) in blocks_of(offset, &data) {
                    if luck == 0 {
                        self.stable.insert(at, block);
                    } else if luck > 1 {
                        versions.entry(at).or_default().push(block);
                    }
                }
            }
        }
        let lose_everything = rng.chance(15);
        let torn_sectors = rng.chance(50);
        for (at, versions) in versions.into_iter().filter(|_| !lose_everything) {
            let old = self.stable_block(at);
            let mut new = *old;
            let whole = rng.below(versions.len() as u64 + 1) as usize;
            for sector in 0..SECTORS {
                let pick = if torn_sectors { rng.below(versions.len() as u64 + 1) as usize } else { whole };
                let from: &Block = if pick == 0 { &old } else { &versions[pick - 1] };
                let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
                new[range.clone()].copy_from_slice(&from[range]);
            }
            self.stable.insert(at, Arc::new(new));
        }
        self.rng = Some(rng);
    }

    /// The process dies, the machine does not: what was completed stays, what is in flight happens or not.
    pub fn kill(&mut self, seed: u64) {
        let mut rng = SimRng::new(seed);
        for id in self.pending() {
            if rng.chance(50) {
                let _ = self.complete(id);
            } else {
                self.in_flight.remove(&id);
            }
        }
    }

    /// Flips one bit, wherever the newest version of that byte is.
    pub fn flip_bit(&mut self, offset: u64, bit: u8) {
        let (at, byte) = (offset / BLOCK_BYTES as u64, (offset % BLOCK_BYTES as u64) as usize);
        let mut block = *self.newest_block(at);
        block[byte] ^= 1 << (bit % 8);
        self.cached.remove(&at);
        self.stable.insert(at, Arc::new(block));
    }

    /// Puts these bytes on the disk behind everybody's back.
    pub fn garble(&mut self, offset: u64, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            let (at, index) = (at / BLOCK_BYTES as u64, (at % BLOCK_BYTES as u64) as usize);
            let mut block = self.newest_block(at);
            Arc::make_mut(&mut block)[index] = *byte;
            self.cached.remove(&at);
            self.stable.insert(at, block);
        }
    }

    /// Blocks that were ever written, ascending: where rot can matter.
    pub fn written_offsets(&self) -> Vec<u64> {
        self.stable.keys().chain(self.cached.keys()).map(|at| at * BLOCK_BYTES as u64).collect()
    }

    fn flush(&mut self, upto: u64) {
        for (at, versions) in &mut self.cached {
            let synced = versions.partition_point(|v| v.completed <= upto);
            if let Some(last) = versions.drain(..synced).next_back() {
                self.stable.insert(*at, last.block);
            }
        }
        self.cached.retain(|_, versions| !versions.is_empty());
    }

    fn stable_block(&self, at: u64) -> Block {
        self.stable.get(&at).cloned().unwrap_or_else(|| Arc::new([0; BLOCK_BYTES]))
    }

    fn newest_block(&self, at: u64) -> Block {
        match self.cached.get(&at).and_then(|versions| versions.last()) {
            Some(unsynced) => unsynced.block.clone(),
            None => self.stable_block(at),
        }
    }

    fn read_blocks(&mut self, offset: u64, len: usize) -> Bytes {
        let first = offset / BLOCK_BYTES as u64;
        let mut buf = AlignedBuf::zeroed(len);
        for (i, out) in buf.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            out.copy_from_slice(&self.newest_block(first + i as u64)[..]);
        }
        // A write in flight may show in any sector already.
        let mut rng = self.rng.take().unwrap_or_else(|| SimRng::new(0));
        for io in self.in_flight.values() {
            let IoOp::Write { offset: to, data, .. } = &io.op else { continue };
            for (at, block) in blocks_of(*to, data) {
                if at < first || at >= first + (len / BLOCK_BYTES) as u64 {
                    continue;
                }
                let base = (at - first) as usize * BLOCK_BYTES;
                for sector in (0..SECTORS).filter(|_| rng.chance(50)) {
                    let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
                    buf[base + range.start..base + range.end].copy_from_slice(&block[range]);
                }
            }
        }
        self.rng = Some(rng);
        buf.freeze()
    }
}

/// A block whose content a read would fetch from the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HomeBlock {
    pub oid: Oid,
    pub block: u32,
    /// Where on the disk it lies.
    pub offset: u64,
}

/// All blocks that are home and covered by nothing newer, by object and number: where rot must be noticed.
pub fn home_blocks(store: &Store) -> Vec<HomeBlock> {
    let mut found = Vec::new();
    for map in store.tables.maps_between(Oid(0), Oid(u64::MAX)) {
        for (i, at) in map.chunks.iter().enumerate().filter(|(_, at)| !at.is_hole()) {
            let chunk = map.group * GROUP_CHUNKS + i as u32;
            let written = store.written.chunk(map.oid, chunk);
            let offset = |index| store.superblock.geometry.slot_offset(store.tables.place(at.slot, index));
            let bare = |index: &u32| written.is_none_or(|w| w.get(*index).is_none());
            found.extend(bits(at.mask).filter(bare).map(|index| HomeBlock {
                oid: map.oid,
                block: chunk * SLOT_BLOCKS + index,
                offset: offset(index) + u64::from(index) * BLOCK,
            }));
        }
    }
    found
}

/// A record that a start would replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveRecord {
    pub seq: u64,
    /// Where on the disk it lies.
    pub offset: u64,
    /// Of its head and entries, and with its data from the next whole block on.
    pub header_bytes: u64,
    pub bytes: u64,
}

impl LiveRecord {
    /// Somewhere in it, where a checksum covers it.
    pub fn place(&self, rng: &mut SimRng) -> u64 {
        let data_bytes = self.bytes - self.header_bytes.next_multiple_of(BLOCK);
        let at = match rng.below(3) {
            0 => rng.below(HEAD_BYTES as u64),
            1 if data_bytes > 0 => self.bytes - 1 - rng.below(data_bytes),
            _ => rng.below(self.header_bytes),
        };
        self.offset + at
    }
}

/// Blocks that are kept in memory, for they are not home yet.
pub fn written_blocks(store: &Store) -> usize {
    store.written.block_count()
}

/// The first record that a start would replay.
pub fn oldest_record(store: &Store) -> u64 {
    store.journal.tail_seq()
}

/// The records from the tail on, up to the last one that is durable: where rot must be noticed before the next start.
pub fn live_records(store: &Store, disk: &mut SimDisk) -> Vec<LiveRecord> {
    let seqs = store.journal.tail_seq()..=store.journal.durable();
    seqs.map(|seq| {
        let info = store.journal.info(seq);
        let offset = store.superblock.geometry.journal_offset(info.begin);
        let head = RecordHead::decode(&disk.read_blocks(offset, BLOCK_BYTES)).expect("a sound disk");
        let header_bytes = (HEAD_BYTES + head.entries_bytes as usize) as u64;
        LiveRecord { seq, offset, header_bytes, bytes: (info.end - info.begin) * BLOCK }
    })
    .collect()
}

/// Which kinds of entries a record has, as docs/formats.md numbers them.
pub fn kinds_in(record: &LiveRecord, disk: &mut SimDisk) -> BTreeSet<u8> {
    let bytes = disk.read_blocks(record.offset, record.bytes as usize);
    let entries = decode_entries(&bytes[HEAD_BYTES..record.header_bytes as usize]).expect("a sound disk");
    let kind = |entry: &Entry| {
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        bytes[0]
    };
    entries.iter().map(kind).collect()
}

/// What room the chunks of an object take, the slots below overlays included, and how many of its chunks have such.
pub fn layers(store: &Store, oid: Oid) -> (usize, usize) {
    let chunks = store.tables.maps_between(oid, oid).flat_map(|map| map.chunks).filter(|at| !at.is_hole());
    let below = |slot| store.tables.below(slot);
    chunks.fold((0, 0), |(slots, overlays), at| {
        let is_overlay = usize::from(!below(at.slot).is_none());
        (slots + 1 + is_overlay, overlays + is_overlay)
    })
}

/// Where on the disk the descriptors lie of a chunk's slot and, if there is one, of the slot below.
pub fn descriptor_offsets(store: &Store, oid: Oid, chunk: u32) -> Vec<u64> {
    let at = store.tables.chunk(oid, chunk).slot;
    let slots = [Some(at), Some(store.tables.below(at)).filter(|b| !b.is_none()).map(|b| b.slot)];
    let page = |slot| store.superblock.geometry.page_offset(PageId::Descriptors(slot / DESCRIPTORS_PER_PAGE));
    let offset = |slot| page(slot) + u64::from(slot % DESCRIPTORS_PER_PAGE) * DESCRIPTOR_BYTES as u64;
    slots.into_iter().flatten().map(offset).collect()
}

fn blocks_of(offset: u64, data: &[Bytes]) -> Vec<(u64, Block)> {
    let first = offset / BLOCK_BYTES as u64;
    let blocks = data.iter().flat_map(|piece| piece.chunks_exact(BLOCK_BYTES));
    blocks
        .enumerate()
        .map(|(i, block)| (first + i as u64, Arc::new(block.try_into().expect("a whole block"))))
        .collect()
}

impl Disk for SimDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if !offset.is_multiple_of(BLOCK_BYTES as u64)
            || !buf.len().is_multiple_of(BLOCK_BYTES)
            || offset + buf.len() as u64 > self.size
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        buf.copy_from_slice(&self.read_blocks(offset, buf.len()));
        Ok(())
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        if !offset.is_multiple_of(BLOCK_BYTES as u64)
            || !data.len().is_multiple_of(BLOCK_BYTES)
            || offset + data.len() as u64 > self.size
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.completed += 1;
        for (i, block) in data.chunks_exact(BLOCK_BYTES).enumerate() {
            let block: Block = Arc::new(block.try_into().expect("a whole block"));
            let unsynced = Unsynced { completed: self.completed, block };
            self.cached.entry(offset / BLOCK_BYTES as u64 + i as u64).or_default().push(unsynced);
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.flush(self.completed);
        Ok(())
    }

    fn can_grow(&self) -> bool {
        self.room.is_some()
    }

    fn ahead_bytes_max(&self) -> u64 {
        self.room.unwrap_or(0)
    }

    fn written_until(&self, offset: u64) -> u64 {
        let first = offset / BLOCK_BYTES as u64;
        let is_written = |at: &u64| self.stable.contains_key(at) || self.cached.contains_key(at);
        (first..).find(|at| !is_written(at)).map_or(offset, |at| at * BLOCK_BYTES as u64)
    }
}
