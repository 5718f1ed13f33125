//! Journal records: the codec.
//!
//! A record is a 64-byte head, entries, padding to whole blocks, and data blocks. Everything an entry says about the
//! tables is a new value, never a difference: replaying it twice, or onto a table that already has it, changes nothing.

use bytes::Bytes;
use proto::checksum::crc32c;
use proto::object::{BlockRange, Origin, Stamp, Unsettled};
use proto::{BLOCK_BYTES, Generation, Incarnation, Oid, RequestId, Seq, Vid};

use crate::layout::{BLOCK, GROUP_CHUNKS};

pub const HEAD_BYTES: usize = 64;
const MAGIC: u32 = 0x4a52_4853;
/// A map entry without a slot.
pub const NO_SLOT: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHead {
    pub store_id: u64,
    pub seq: u64,
    /// Block position since the journal began; modulo the ring it says where the record lies.
    pub position: u64,
    pub incarnation: u64,
    /// All records up to this one were durable when this one was written.
    pub durable: u64,
    pub entries_bytes: u32,
    pub data_blocks: u32,
    pub entries_crc: u32,
}

pub fn header_blocks(entries_bytes: usize) -> u64 {
    ((HEAD_BYTES + entries_bytes) as u64).div_ceil(BLOCK)
}

impl RecordHead {
    pub fn blocks(&self) -> u64 {
        header_blocks(self.entries_bytes as usize) + u64::from(self.data_blocks)
    }

    pub fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut out = [0; HEAD_BYTES];
        out[..4].copy_from_slice(&MAGIC.to_le_bytes());
        for (i, word) in
            [self.store_id, self.seq, self.position, self.incarnation, self.durable].iter().enumerate()
        {
            out[8 + i * 8..16 + i * 8].copy_from_slice(&word.to_le_bytes());
        }
        for (i, word) in [self.entries_bytes, self.data_blocks, self.entries_crc].iter().enumerate() {
            out[48 + i * 4..52 + i * 4].copy_from_slice(&word.to_le_bytes());
        }
        let crc = crc32c(&out);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub fn decode(block: &[u8]) -> Option<RecordHead> {
        let mut head: [u8; HEAD_BYTES] = block.get(..HEAD_BYTES)?.try_into().ok()?;
        let u32_at =
            |b: &[u8; HEAD_BYTES], at: usize| u32::from_le_bytes(b[at..at + 4].try_into().expect("4"));
        if u32_at(&head, 0) != MAGIC {
            return None;
        }
        let crc = u32_at(&head, 4);
        head[4..8].fill(0);
        if crc32c(&head) != crc {
            return None;
        }
        let word = |i: usize| u64::from_le_bytes(head[8 + i * 8..16 + i * 8].try_into().expect("8 bytes"));
        Some(RecordHead {
            store_id: word(0),
            seq: word(1),
            position: word(2),
            incarnation: word(3),
            durable: word(4),
            entries_bytes: u32_at(&head, 48),
            data_blocks: u32_at(&head, 52),
            entries_crc: u32_at(&head, 56),
        })
    }
}

/// Where one chunk of an object lies: a slot, and which of its blocks belong to the object. The others are zeros.
/// Without any such block the slot is only kept for written blocks on their way home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRef {
    pub slot: u32,
    pub mask: u16,
}

impl ChunkRef {
    pub const HOLE: ChunkRef = ChunkRef { slot: NO_SLOT, mask: 0 };

    pub fn is_hole(self) -> bool {
        self.slot == NO_SLOT
    }
}

/// Which blocks of a chunk do not lie in its slot but, at the same places, in another one below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Below {
    pub slot: u32,
    pub mask: u16,
}

impl Below {
    /// The slot is plain: all that its chunk has lies in it.
    pub const NONE: Below = Below { slot: NO_SLOT, mask: 0 };

    pub fn is_none(self) -> bool {
        self.mask == 0
    }

    /// Of these blocks, those in `mask`. A slot of which nothing is wanted is not below any more.
    pub fn only(self, mask: u16) -> Below {
        match self.mask & mask {
            0 => Below::NONE,
            mask => Below { mask, ..self },
        }
    }
}

/// What a record says of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub slot: u32,
    /// The blocks outside of `mask` are of no interest any more.
    pub reset: bool,
    pub below: Below,
    pub lost: u16,
    /// The blocks, ascending, whose checksums are `crcs`.
    pub mask: u16,
    pub crcs: Vec<u32>,
}

/// What names one remembered change: the same write sent twice is remembered once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TagKey {
    pub vid: Vid,
    pub stamp: Stamp,
    pub oid: Oid,
    pub blocks: Option<BlockRange>,
}

impl From<&Unsettled> for TagKey {
    fn from(change: &Unsettled) -> TagKey {
        let Unsettled { vid, stamp, oid, blocks, .. } = *change;
        TagKey { vid, stamp, oid, blocks }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The next `crcs.len()` data blocks of the record are the newest content of these blocks.
    Write {
        oid: Oid,
        first: u32,
        crcs: Vec<u32>,
    },
    /// Earlier written blocks that have not gone home are void. `count` `u32::MAX`: all of the object.
    Drop {
        oid: Oid,
        first: u32,
        count: u32,
    },
    /// `to` gets all blocks of `from` that have not gone home.
    CloneWritten {
        from: Oid,
        to: Oid,
    },
    /// The map has this content.
    Map {
        map: u32,
        oid: Oid,
        group: u32,
        chunks: Vec<(u8, ChunkRef)>,
    },
    MapFree {
        map: u32,
    },
    MapChunk {
        map: u32,
        index: u8,
        chunk: ChunkRef,
    },
    Descriptor(Descriptor),
    /// These blocks are home in the version written by records up to `upto`.
    Homed {
        oid: Oid,
        chunk: u32,
        mask: u16,
        upto: u64,
    },
    /// A change that may not be settled. `settled`: what is (`None` where the entry is only logged anew).
    Tag {
        key: TagKey,
        origin: Origin,
        settled: Option<Seq>,
    },
    /// The change is not remembered any more, whatever earlier records say.
    Untag {
        key: TagKey,
    },
}

impl Entry {
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer(out);
        match self {
            Entry::Write { oid, first, crcs } => w.write(*oid, *first, crcs),
            Entry::Drop { oid, first, count } => w.u8(2).u64(oid.0).u32(*first).u32(*count).done(),
            Entry::CloneWritten { from, to } => w.u8(3).u64(from.0).u64(to.0).done(),
            Entry::Map { map, oid, group, chunks } => {
                w.u8(4).u32(*map).u64(oid.0).u32(*group).u8(chunks.len() as u8);
                for (index, chunk) in chunks {
                    w.u8(*index).u32(chunk.slot).u16(chunk.mask);
                }
            }
            Entry::MapFree { map } => w.u8(5).u32(*map).done(),
            Entry::MapChunk { map, index, chunk } => {
                w.u8(6).u32(*map).u8(*index).u32(chunk.slot).u16(chunk.mask).done()
            }
            Entry::Descriptor(descriptor) => w.descriptor(descriptor),
            Entry::Homed { oid, chunk, mask, upto } => {
                w.u8(8).u64(oid.0).u32(*chunk).u16(*mask).u64(*upto).done()
            }
            Entry::Tag { key, origin, settled } => {
                w.u8(9).key(key).u64(origin.incarnation.0).u64(origin.request.0);
                w.u8(u8::from(settled.is_some())).u64(settled.unwrap_or_default().0).done()
            }
            Entry::Untag { key } => w.u8(10).key(key).done(),
        }
    }
}

/// Encodes a `Write` without building an [`Entry`]: the hot path.
pub fn encode_write(out: &mut Vec<u8>, oid: Oid, first: u32, crcs: &[u32]) {
    Writer(out).write(oid, first, crcs);
}

struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn write(&mut self, oid: Oid, first: u32, crcs: &[u32]) {
        self.u8(1).u64(oid.0).u32(first).u32(crcs.len() as u32);
        crcs.iter().for_each(|crc| self.u32(*crc).done());
    }
    fn descriptor(&mut self, d: &Descriptor) {
        debug_assert_eq!(d.mask.count_ones() as usize, d.crcs.len());
        let kind = if d.below.is_none() { 7 } else { 11 };
        self.u8(kind).u32(d.slot).u8(u8::from(d.reset)).u16(d.mask).u16(d.lost);
        if !d.below.is_none() {
            self.u32(d.below.slot).u16(d.below.mask);
        }
        d.crcs.iter().for_each(|crc| self.u32(*crc).done());
    }
    fn u8(&mut self, v: u8) -> &mut Self {
        self.0.push(v);
        self
    }
    fn u16(&mut self, v: u16) -> &mut Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }
    fn u32(&mut self, v: u32) -> &mut Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }
    fn u64(&mut self, v: u64) -> &mut Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }
    fn key(&mut self, key: &TagKey) -> &mut Self {
        let blocks = key.blocks.unwrap_or(BlockRange::new(0, 0));
        self.u32(key.vid.0).u64(key.stamp.generation.0).u64(key.stamp.seq.0).u64(key.oid.0);
        self.u8(u8::from(key.blocks.is_none())).u32(blocks.first).u32(blocks.count)
    }
    fn done(&mut self) {}
}

/// The entries and the data blocks of a record, all of which is in `record`. `None`: something of it fails its checksum. Entries that pass it and make no
/// sense are given as they are, without a look at the data.
pub fn record_body(head: &RecordHead, record: &Bytes) -> Option<(Vec<u8>, Vec<Bytes>)> {
    let entries = record.get(HEAD_BYTES..HEAD_BYTES + head.entries_bytes as usize)?;
    if crc32c(entries) != head.entries_crc {
        return None;
    }
    let data_at = header_blocks(entries.len()) as usize * BLOCK_BYTES;
    let block = |i| record.slice(data_at + i * BLOCK_BYTES..data_at + (i + 1) * BLOCK_BYTES);
    let data: Vec<Bytes> = (0..head.data_blocks as usize).map(block).collect();
    let Some(parsed) = decode_entries(entries) else { return Some((entries.to_vec(), data)) };
    let crcs = parsed.iter().flat_map(|entry| match entry {
        Entry::Write { crcs, .. } => &crcs[..],
        _ => &[],
    });
    let is_whole = data.iter().map(|block| crc32c(block)).eq(crcs.copied());
    is_whole.then(|| (entries.to_vec(), data))
}

/// Decodes all entries of a record; `None` if the bytes make no sense.
pub fn decode_entries(bytes: &[u8]) -> Option<Vec<Entry>> {
    let mut r = Reader(bytes);
    let mut entries = Vec::new();
    while !r.0.is_empty() {
        entries.push(r.entry()?);
    }
    Some(entries)
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }
    fn u8(&mut self) -> Option<u8> {
        Some(self.take::<1>()?[0])
    }
    fn flag(&mut self) -> Option<bool> {
        self.u8().filter(|v| *v < 2).map(|v| v == 1)
    }
    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
    fn oid(&mut self) -> Option<Oid> {
        self.u64().map(Oid)
    }
    /// The length is checked against what is there before anything is allocated.
    fn crcs(&mut self, count: usize) -> Option<Vec<u32>> {
        if self.0.len() / 4 < count {
            return None;
        }
        (0..count).map(|_| self.u32()).collect()
    }
    fn chunk_ref(&mut self) -> Option<ChunkRef> {
        let chunk = ChunkRef { slot: self.u32()?, mask: self.u16()? };
        (!chunk.is_hole() || chunk.mask == 0).then_some(chunk)
    }
    fn descriptor(&mut self, is_overlay: bool) -> Option<Descriptor> {
        let (slot, reset, mask, lost) = (self.u32()?, self.flag()?, self.u16()?, self.u16()?);
        let below = match is_overlay {
            true => Below { slot: self.u32()?, mask: self.u16()? },
            false => Below::NONE,
        };
        if below.is_none() == is_overlay {
            return None;
        }
        Some(Descriptor { slot, reset, below, lost, mask, crcs: self.crcs(mask.count_ones() as usize)? })
    }
    fn index(&mut self) -> Option<u8> {
        self.u8().filter(|i| u32::from(*i) < GROUP_CHUNKS)
    }

    fn key(&mut self) -> Option<TagKey> {
        let vid = Vid(self.u32()?);
        let stamp = Stamp { generation: Generation(self.u64()?), seq: Seq(self.u64()?) };
        let (oid, whole) = (self.oid()?, self.flag()?);
        let blocks = BlockRange::new(self.u32()?, self.u32()?);
        Some(TagKey { vid, stamp, oid, blocks: (!whole).then_some(blocks) })
    }

    fn entry(&mut self) -> Option<Entry> {
        Some(match self.u8()? {
            1 => {
                let (oid, first, count) = (self.oid()?, self.u32()?, self.u32()?);
                Entry::Write { oid, first, crcs: self.crcs(count as usize)? }
            }
            2 => Entry::Drop { oid: self.oid()?, first: self.u32()?, count: self.u32()? },
            3 => Entry::CloneWritten { from: self.oid()?, to: self.oid()? },
            4 => {
                let (map, oid, group, count) = (self.u32()?, self.oid()?, self.u32()?, self.u8()?);
                let chunks = (0..count)
                    .map(|_| Some((self.index()?, self.chunk_ref()?)))
                    .collect::<Option<Vec<(u8, ChunkRef)>>>()?;
                if !chunks.is_sorted_by(|a, b| a.0 < b.0) {
                    return None;
                }
                Entry::Map { map, oid, group, chunks }
            }
            5 => Entry::MapFree { map: self.u32()? },
            6 => Entry::MapChunk { map: self.u32()?, index: self.index()?, chunk: self.chunk_ref()? },
            kind @ (7 | 11) => Entry::Descriptor(self.descriptor(kind == 11)?),
            8 => Entry::Homed { oid: self.oid()?, chunk: self.u32()?, mask: self.u16()?, upto: self.u64()? },
            9 => {
                let key = self.key()?;
                let origin =
                    Origin { incarnation: Incarnation(self.u64()?), request: RequestId(self.u64()?) };
                let (has_settled, settled) = (self.flag()?, Seq(self.u64()?));
                Entry::Tag { key, origin, settled: has_settled.then_some(settled) }
            }
            10 => Entry::Untag { key: self.key()? },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Entry> {
        let key = TagKey {
            vid: Vid(5),
            stamp: Stamp { generation: Generation(2), seq: Seq(9) },
            oid: Oid(8),
            blocks: Some(BlockRange::new(3, 4)),
        };
        let chunk = ChunkRef { slot: 9, mask: 0x8001 };
        vec![
            Entry::Write { oid: Oid(1), first: 2, crcs: vec![3, 4] },
            Entry::Drop { oid: Oid(1), first: 0, count: u32::MAX },
            Entry::CloneWritten { from: Oid(1), to: Oid(2) },
            Entry::Map { map: 7, oid: Oid(2), group: 1, chunks: vec![(0, chunk), (63, chunk)] },
            Entry::MapFree { map: 7 },
            Entry::MapChunk { map: 7, index: 3, chunk: ChunkRef::HOLE },
            Entry::Descriptor(Descriptor {
                slot: 4,
                reset: true,
                below: Below::NONE,
                lost: 8,
                mask: 5,
                crcs: vec![1, 2],
            }),
            Entry::Descriptor(Descriptor {
                slot: 4,
                reset: false,
                below: Below { slot: 6, mask: 0x7000 },
                lost: 0,
                mask: 1,
                crcs: vec![3],
            }),
            Entry::Homed { oid: Oid(1), chunk: 4, mask: 3, upto: 99 },
            Entry::Tag { key, origin: Origin::default(), settled: Some(Seq(8)) },
            Entry::Tag { key: TagKey { blocks: None, ..key }, origin: Origin::default(), settled: None },
            Entry::Untag { key },
        ]
    }

    #[test]
    fn entries_survive_their_bytes_and_every_cut_is_refused_or_shorter() {
        let mut bytes = Vec::new();
        samples().iter().for_each(|e| e.encode(&mut bytes));
        assert_eq!(decode_entries(&bytes), Some(samples()));
        for len in 0..bytes.len() {
            if let Some(entries) = decode_entries(&bytes[..len]) {
                assert_eq!(entries[..], samples()[..entries.len()]);
            }
        }
        assert_eq!(decode_entries(&[77]), None);
    }

    #[test]
    fn a_head_with_any_flipped_bit_is_no_head() {
        let head = RecordHead {
            store_id: 1,
            seq: 2,
            position: 3,
            incarnation: 4,
            durable: 1,
            entries_bytes: 5000,
            data_blocks: 7,
            entries_crc: 8,
        };
        assert_eq!(head.blocks(), 2 + 7);
        let bytes = head.encode();
        assert_eq!(RecordHead::decode(&bytes), Some(head));
        for bit in 0..HEAD_BYTES * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHead::decode(&bad), None, "bit {bit}");
        }
    }
}
