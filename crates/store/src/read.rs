//! Reads: where each block comes from, and the check of what came from the disk.
//!
//! Blocks in flight are pinned, so that their slot is neither reused nor overwritten in place before the read ends: what a
//! read finds is what the tables said when it began.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::checksum::{ZERO_BLOCK_CRC, crc32c};
use proto::object::{BlockRange, ObjectReply, StoreFailure};
use proto::{BLOCK_BYTES, Oid};

use crate::buffer::AlignedBuf;
use crate::io::{IoOp, IoResult};
use crate::layout::{BLOCK, SLOT_BLOCKS};
use crate::store::{IoOwner, Store};

/// 64 MiB, twice the largest request of a client: bounds the memory one read can claim.
pub const READ_BLOCKS_MAX: u32 = 16384;
/// One I/O of at most 1 MiB.
const PIECE_BLOCKS_MAX: u32 = 256;

#[derive(Default)]
pub struct Reads {
    by_id: BTreeMap<u64, Read>,
    next: u64,
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
    corrupt: Option<u32>,
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
    pub(crate) fn start_read(&mut self, ticket: u64, oid: Oid, blocks: BlockRange) {
        let seq = self.undurable.get(&oid).copied().unwrap_or(0);
        if !self.tables.exists(oid) {
            return self.reply_when_durable(seq, ticket, ObjectReply::Absent);
        }
        let (pieces, checksums, corrupt) = self.plan_read(oid, blocks);
        let mut read = Read { ticket, oid, blocks, seq, pieces, checksums, reads_left: 0, corrupt };
        if read.corrupt.is_some() {
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

    /// The pieces, the checksum of each block, and the first block known to be lost.
    fn plan_read(&self, oid: Oid, blocks: BlockRange) -> (Vec<Piece>, Vec<u32>, Option<u32>) {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut checksums = Vec::with_capacity(blocks.count as usize);
        let mut corrupt = None;
        let mut block = blocks.first;
        while u64::from(block) < blocks.end() {
            let chunk = block / SLOT_BLOCKS;
            let (at, written) = (self.tables.chunk(oid, chunk), self.written.chunk(oid, chunk));
            let end = blocks.end().min(u64::from(chunk + 1) * u64::from(SLOT_BLOCKS)) as u32;
            for block in block..end {
                let index = block % SLOT_BLOCKS;
                let (source, crc) = if let Some(w) = written.and_then(|w| w.get(index)) {
                    (Source::Bytes(w.data.clone()), w.crc)
                } else if at.mask & (1 << index) != 0 {
                    if self.tables.lost(at.slot) & (1 << index) != 0 {
                        corrupt = corrupt.or(Some(block));
                    }
                    let slot = self.tables.place(at.slot, index);
                    let offset = self.superblock.geometry.slot_offset(slot) + u64::from(index) * BLOCK;
                    let pins = vec![(slot, 1 << index)];
                    (Source::Disk { offset, pins }, self.tables.crc(at.slot, index))
                } else {
                    (Source::Zeros, ZERO_BLOCK_CRC)
                };
                checksums.push(crc);
                join(&mut pieces, block - blocks.first, source);
            }
            block = end;
        }
        (pieces, checksums, corrupt)
    }

    pub(crate) fn handle_read(&mut self, id: u64, piece: usize, result: IoResult) {
        let Some(read) = self.reads.by_id.get_mut(&id) else { return };
        let Piece { at, count, source } = &mut read.pieces[piece];
        let first = read.blocks.first + *at;
        let bad = match result {
            Ok(bytes) if bytes.len() == *count as usize * BLOCK_BYTES => {
                let expected = &read.checksums[*at as usize..];
                let bad =
                    bytes.chunks_exact(BLOCK_BYTES).zip(expected).position(|(b, crc)| crc32c(b) != *crc);
                if let Source::Disk { pins, .. } = std::mem::replace(source, Source::Bytes(bytes)) {
                    pins.iter().for_each(|(slot, mask)| self.slots.unpin(*slot, *mask));
                }
                bad.map(|i| first + i as u32)
            }
            // A sector that cannot be read is lost like one that reads wrong; the rest of the disk goes on.
            _ => {
                if let Source::Disk { pins, .. } = std::mem::replace(source, Source::Zeros) {
                    pins.iter().for_each(|(slot, mask)| self.slots.unpin(*slot, *mask));
                }
                Some(first)
            }
        };
        read.corrupt = [read.corrupt, bad].into_iter().flatten().min();
        read.reads_left -= 1;
        if read.reads_left == 0 {
            let read = self.reads.by_id.remove(&id).expect("just seen");
            self.finish_read(read);
        }
    }

    fn finish_read(&mut self, read: Read) {
        let Read { ticket, oid, blocks, seq, pieces, checksums, corrupt, .. } = read;
        let reply = match corrupt {
            Some(block) => {
                tracing::warn!(%oid, block, "a block does not match its checksum");
                ObjectReply::Failed(StoreFailure::Corrupt { oid, block })
            }
            None => ObjectReply::Data { data: gather(blocks.count, pieces), checksums },
        };
        self.reply_when_durable(seq, ticket, reply);
    }

    pub(crate) fn answer_checksums(&mut self, ticket: u64, oid: Oid) {
        let seq = self.undurable.get(&oid).copied().unwrap_or(0);
        let reply = self.checksums(oid);
        self.reply_when_durable(seq, ticket, reply);
    }

    fn checksums(&self, oid: Oid) -> ObjectReply {
        if !self.tables.exists(oid) {
            return ObjectReply::Absent;
        }
        let mut checksums: Vec<u32> = Vec::new();
        let mut put = |block: u32, crc: u32| {
            let len = checksums.len().max(block as usize + 1);
            checksums.resize(len, ZERO_BLOCK_CRC);
            checksums[block as usize] = crc;
        };
        let mut lost = None;
        for map in self.tables.maps_of(oid).map(|id| self.tables.map(id)) {
            for (i, at) in map.chunks.iter().enumerate().filter(|(_, at)| !at.is_hole()) {
                let chunk = map.group * crate::layout::GROUP_CHUNKS + i as u32;
                let written = self.written.chunk(oid, chunk);
                for index in crate::tables::bits(at.mask) {
                    put(chunk * SLOT_BLOCKS + index, self.tables.crc(at.slot, index));
                    let covered = written.is_some_and(|w| w.get(index).is_some());
                    if self.tables.lost(at.slot) & (1 << index) != 0 && !covered {
                        lost = lost.or(Some(chunk * SLOT_BLOCKS + index));
                    }
                }
            }
        }
        for (chunk, written) in self.written.chunks_of(oid) {
            written.blocks.iter().for_each(|b| put(chunk * SLOT_BLOCKS + u32::from(b.index), b.crc));
        }
        match lost {
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
    let mut buf = AlignedBuf::zeroed(count as usize);
    for piece in &pieces {
        if let Source::Bytes(bytes) = &piece.source {
            let at = piece.at as usize * BLOCK_BYTES;
            buf.bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
    buf.freeze()
}
