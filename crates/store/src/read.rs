//! Reads: where each block comes from, and the check of what came from the disk.
//!
//! Blocks in flight are pinned, so that their slot is neither reused nor overwritten in place before the read ends: what a
//! read finds is what the tables said when it began.

use std::collections::{BTreeMap, BTreeSet};

use buffer::AlignedBuf;
use bytes::Bytes;
use proto::checksum::{ZERO_BLOCK_CRC, crc32c};
use proto::object::{BlockRange, ObjectReply, StoreFailure, Verified, runs_of};
use proto::{BLOCK_BYTES, Oid};

use crate::io::{IoOp, IoResult};
use crate::layout::{BLOCK, GROUP_CHUNKS, SLOT_BLOCKS};
use crate::store::{IoOwner, Store};
use crate::tables::bits;

/// 64 MiB, twice the largest request of a client: bounds the memory one read can claim.
pub const READ_BLOCKS_MAX: u32 = 16384;
/// One I/O of at most 1 MiB.
const PIECE_BLOCKS_MAX: u32 = 256;

#[derive(Default)]
pub struct Reads {
    by_id: BTreeMap<u64, Read>,
    next: u64,
    pass: Pass,
}

struct Read {
    ticket: u64,
    oid: Oid,
    blocks: BlockRange,
    /// What the read shows became so with this record.
    seq: u64,
    pieces: Vec<Piece>,
    checksums: Vec<u32>,
    reads_left: usize,
    /// Blocks that fail their checksum or cannot be read.
    damaged: BTreeSet<u32>,
    purpose: Purpose,
    read_bytes: u64,
}

/// What is told of the blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// What they hold: or which is the first that is damaged.
    Content,
    /// Which of them are damaged; those that were verified in this pass are not read again.
    Verification { pass: u64 },
}

impl Purpose {
    fn is_verification(self) -> bool {
        matches!(self, Purpose::Verification { .. })
    }
}

/// Which blocks of which slots were found good in the present pass: what many objects share is read once.
///
/// What comes to lie there later in the pass has just been written.
#[derive(Default)]
pub struct Pass {
    number: u64,
    good: Vec<u16>,
}

impl Pass {
    fn begin(&mut self, number: u64, slots: usize) {
        if number != self.number {
            (self.number, self.good) = (number, vec![0; slots]);
        }
    }

    fn is_good(&self, number: u64, slot: u32, index: u32) -> bool {
        number == self.number && number > 0 && self.good[slot as usize] & (1 << index) != 0
    }

    fn note_good(&mut self, number: u64, slot: u32, mask: u16) {
        if number == self.number && number > 0 {
            self.good[slot as usize] |= mask;
        }
    }
}

/// Neighbouring blocks of a read that come from one place. `at` counts from the first block of the read.
struct Piece {
    at: u32,
    count: u32,
    source: Source,
}

enum Source {
    Zeros,
    Bytes(Bytes),
    Disk { offset: u64, pins: Vec<(u32, u16)> },
}

impl Reads {
    pub fn take_tickets(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.by_id).into_values().map(|read| read.ticket).collect()
    }
}

impl Store {
    pub(crate) fn start_read(&mut self, ticket: u64, oid: Oid, blocks: BlockRange, purpose: Purpose) {
        let seq = self.undurable.get(&oid).copied().unwrap_or(0);
        if !self.tables.exists(oid) {
            return self.reply_when_durable(seq, ticket, ObjectReply::Absent);
        }
        if let Purpose::Verification { pass: pass @ 1.. } = purpose {
            self.reads.pass.begin(pass, self.superblock.geometry.slots as usize);
        }
        let (pieces, checksums, damaged) = self.plan_read(oid, blocks, purpose);
        let mut read = Read {
            ticket,
            oid,
            blocks,
            seq,
            pieces,
            checksums,
            reads_left: 0,
            damaged,
            purpose,
            read_bytes: 0,
        };
        if purpose == Purpose::Content && !read.damaged.is_empty() {
            return self.finish_read(read);
        }
        let id = self.reads.next;
        self.reads.next += 1;
        for (piece, Piece { count, source, .. }) in read.pieces.iter().enumerate() {
            if let Source::Disk { offset, pins } = source {
                pins.iter().for_each(|(slot, mask)| self.slots.pin(*slot, *mask));
                let len = *count as usize * BLOCK_BYTES;
                self.request_io(IoOp::Read { offset: *offset, len }, IoOwner::Read { read: id, piece });
                read.reads_left += 1;
            }
        }
        if read.reads_left == 0 {
            self.finish_read(read);
        } else {
            self.reads.by_id.insert(id, read);
        }
    }

    /// The pieces, the checksum of each block, and the blocks known to be lost: they are not read.
    fn plan_read(
        &self,
        oid: Oid,
        blocks: BlockRange,
        purpose: Purpose,
    ) -> (Vec<Piece>, Vec<u32>, BTreeSet<u32>) {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut checksums = Vec::with_capacity(blocks.count as usize);
        let mut damaged = BTreeSet::new();
        let is_good = |slot, index| matches!(purpose, Purpose::Verification { pass } if self.reads.pass.is_good(pass, slot, index));
        let mut block = blocks.first;
        while u64::from(block) < blocks.end() {
            let chunk = block / SLOT_BLOCKS;
            let (at, written) = (self.tables.chunk(oid, chunk), self.written.chunk(oid, chunk));
            let end = blocks.end().min(u64::from(chunk + 1) * u64::from(SLOT_BLOCKS)) as u32;
            for block in block..end {
                let index = block % SLOT_BLOCKS;
                let (source, crc) = if let Some(w) = written.and_then(|w| w.get(index)) {
                    (Source::Bytes(w.data.clone()), w.crc)
                } else if at.mask & (1 << index) == 0 {
                    (Source::Zeros, ZERO_BLOCK_CRC)
                } else if self.tables.lost(at.slot) & (1 << index) != 0 {
                    damaged.insert(block);
                    (Source::Zeros, self.tables.crc(at.slot, index))
                } else {
                    let slot = self.tables.place(at.slot, index);
                    let offset = self.superblock.geometry.slot_offset(slot) + u64::from(index) * BLOCK;
                    let pins = vec![(slot, 1 << index)];
                    let is_good = is_good(slot, index);
                    let source = if is_good { Source::Zeros } else { Source::Disk { offset, pins } };
                    (source, self.tables.crc(at.slot, index))
                };
                checksums.push(crc);
                join(&mut pieces, block - blocks.first, source);
            }
            block = end;
        }
        (pieces, checksums, damaged)
    }

    pub(crate) fn handle_read(&mut self, id: u64, piece: usize, result: IoResult) {
        let Some(read) = self.reads.by_id.get_mut(&id) else { return };
        let Piece { at, count, source } = &mut read.pieces[piece];
        let (at, count) = (*at, *count);
        let Source::Disk { offset, pins } = std::mem::replace(source, Source::Zeros) else {
            unreachable!("only what is on the disk is read there")
        };
        pins.iter().for_each(|(slot, mask)| self.slots.unpin(*slot, *mask));
        let first = read.blocks.first + at;
        read.read_bytes += u64::from(count) * BLOCK;
        match result {
            Ok(bytes) if bytes.len() == count as usize * BLOCK_BYTES => {
                let expected = &read.checksums[at as usize..];
                let places = pins.iter().flat_map(|(slot, mask)| bits(*mask).map(|i| (*slot, 1 << i)));
                let blocks = bytes.chunks_exact(BLOCK_BYTES).zip(expected).zip(places);
                for (block, ((bytes, crc), (slot, mask))) in (first..).zip(blocks) {
                    match read.purpose {
                        _ if crc32c(bytes) != *crc => drop(read.damaged.insert(block)),
                        Purpose::Verification { pass } => self.reads.pass.note_good(pass, slot, mask),
                        Purpose::Content => {}
                    }
                }
                if read.purpose == Purpose::Content {
                    read.pieces[piece].source = Source::Bytes(bytes);
                }
            }
            // Which of them it is that cannot be read is to be told, so each is read by itself.
            _ if read.purpose.is_verification() && count > 1 => {
                self.read_one_by_one(id, at, offset, pins);
            }
            // A sector that cannot be read is lost like one that reads wrong; the rest of the disk goes on.
            _ => read.damaged.extend(first..first + count),
        }
        let read = self.reads.by_id.get_mut(&id).expect("seen above");
        read.reads_left -= 1;
        if read.reads_left == 0 {
            let read = self.reads.by_id.remove(&id).expect("just seen");
            self.finish_read(read);
        }
    }

    fn read_one_by_one(&mut self, id: u64, at: u32, offset: u64, pins: Vec<(u32, u16)>) {
        let blocks = pins.iter().flat_map(|(slot, mask)| bits(*mask).map(|i| (*slot, 1 << i)));
        for (i, pin) in (0..).zip(blocks) {
            self.slots.pin(pin.0, pin.1);
            let offset = offset + u64::from(i) * BLOCK;
            let source = Source::Disk { offset, pins: vec![pin] };
            let read = self.reads.by_id.get_mut(&id).expect("it is under way");
            read.pieces.push(Piece { at: at + i, count: 1, source });
            read.reads_left += 1;
            let piece = read.pieces.len() - 1;
            self.request_io(IoOp::Read { offset, len: BLOCK_BYTES }, IoOwner::Read { read: id, piece });
        }
    }

    fn finish_read(&mut self, read: Read) {
        let Read { ticket, oid, blocks, seq, pieces, checksums, damaged, purpose, read_bytes, .. } = read;
        let reply = match (purpose, damaged.first()) {
            (Purpose::Verification { .. }, _) => {
                ObjectReply::Verified(Verified { checksums, damaged: runs_of(damaged), read_bytes })
            }
            (Purpose::Content, Some(&block)) => {
                tracing::warn!(%oid, block, "a block does not match its checksum or cannot be read");
                ObjectReply::Failed(StoreFailure::Corrupt { oid, block })
            }
            (Purpose::Content, None) => ObjectReply::Data { data: gather(blocks.count, pieces), checksums },
        };
        self.reply_when_durable(seq, ticket, reply);
    }

    /// `lost_too`: what is on record of blocks that are lost is told as well.
    pub(crate) fn answer_checksums(&mut self, ticket: u64, oid: Oid, blocks: BlockRange, lost_too: bool) {
        let seq = self.undurable.get(&oid).copied().unwrap_or(0);
        let reply = self.checksums(oid, blocks, lost_too);
        self.reply_when_durable(seq, ticket, reply);
    }

    fn checksums(&self, oid: Oid, blocks: BlockRange, lost_too: bool) -> ObjectReply {
        if !self.tables.exists(oid) {
            return ObjectReply::Absent;
        }
        let mut checksums: Vec<u32> = Vec::new();
        let mut put = |block: u32, crc: u32| {
            if blocks.contains(block) {
                let at = (block - blocks.first) as usize;
                checksums.resize(checksums.len().max(at + 1), ZERO_BLOCK_CRC);
                checksums[at] = crc;
            }
        };
        let end = blocks.end().div_ceil(u64::from(SLOT_BLOCKS)).min(u64::from(u32::MAX)) as u32;
        let wanted = blocks.first / SLOT_BLOCKS..end;
        let mut lost = None;
        for map in self.tables.maps_of(oid).map(|id| self.tables.map(id)) {
            for (i, at) in map.chunks.iter().enumerate().filter(|(_, at)| !at.is_hole()) {
                let chunk = map.group * GROUP_CHUNKS + i as u32;
                if !wanted.contains(&chunk) {
                    continue;
                }
                let written = self.written.chunk(oid, chunk);
                for index in crate::tables::bits(at.mask) {
                    let block = chunk * SLOT_BLOCKS + index;
                    put(block, self.tables.crc(at.slot, index));
                    let covered = written.is_some_and(|w| w.get(index).is_some());
                    if self.tables.lost(at.slot) & (1 << index) != 0 && !covered && blocks.contains(block) {
                        lost = lost.or(Some(block));
                    }
                }
            }
        }
        for (chunk, written) in self.written.chunks_of(oid).filter(|(chunk, _)| wanted.contains(chunk)) {
            written.blocks.iter().for_each(|b| put(chunk * SLOT_BLOCKS + u32::from(b.index), b.crc));
        }
        match lost.filter(|_| !lost_too) {
            Some(block) => ObjectReply::Failed(StoreFailure::Corrupt { oid, block }),
            None => ObjectReply::Checksums(checksums),
        }
    }
}

/// Adds one block, to the last piece if it continues that.
fn join(pieces: &mut Vec<Piece>, at: u32, source: Source) {
    if let Some(last) = pieces.last_mut() {
        let joins = match (&mut last.source, &source) {
            (Source::Zeros, Source::Zeros) => true,
            (Source::Disk { offset, pins }, Source::Disk { offset: next, pins: pin }) => {
                let joins = *offset + u64::from(last.count) * BLOCK == *next && last.count < PIECE_BLOCKS_MAX;
                if joins {
                    match pins.last_mut() {
                        Some((slot, mask)) if *slot == pin[0].0 => *mask |= pin[0].1,
                        _ => pins.push(pin[0]),
                    }
                }
                joins
            }
            _ => false,
        };
        if joins {
            last.count += 1;
            return;
        }
    }
    pieces.push(Piece { at, count: 1, source });
}

/// One buffer; without a copy where all of it came from one place.
fn gather(count: u32, mut pieces: Vec<Piece>) -> Bytes {
    if let [Piece { source: Source::Bytes(bytes), .. }] = &mut pieces[..] {
        return std::mem::take(bytes);
    }
    let mut buf = AlignedBuf::with_capacity(count as usize * BLOCK_BYTES);
    // In order, without gaps.
    for piece in &pieces {
        match &piece.source {
            Source::Bytes(bytes) => buf.extend_from_slice(bytes),
            Source::Zeros => buf.extend_with_zeros(piece.count as usize * BLOCK_BYTES),
            Source::Disk { .. } => unreachable!("all pieces were read"),
        }
        assert_eq!(buf.len(), (piece.at + piece.count) as usize * BLOCK_BYTES);
    }
    assert_eq!(buf.remaining(), 0, "the pieces are not all that was asked for");
    buf.freeze()
}
