//! Blocks that are durable in the journal (or on their way into it) and not yet home.
//!
//! Only the newest version of each block is kept; it covers whatever lies in the slot. The memory is bounded by the journal,
//! which holds the same blocks, and by `has_memory_for` in `write_back`.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::Oid;

use crate::layout::SLOT_BLOCKS;

#[derive(Clone)]
pub struct WrittenBlock {
    pub index: u8,
    pub crc: u32,
    /// The record by which the block came here.
    pub seq: u64,
    /// The record that holds its data; older than `seq` where the block was cloned.
    pub data_seq: u64,
    pub data: Bytes,
}

/// The written blocks of one chunk, by index.
#[derive(Default)]
pub struct ChunkWritten {
    pub blocks: Vec<WrittenBlock>,
    /// A slot is promised to them: the chunk has none of its own.
    pub promised: bool,
}

impl ChunkWritten {
    pub fn get(&self, index: u32) -> Option<&WrittenBlock> {
        let at = self.blocks.binary_search_by_key(&(index as u8), |b| b.index).ok()?;
        Some(&self.blocks[at])
    }
}

#[derive(Default)]
pub struct Written {
    chunks: BTreeMap<(Oid, u32), ChunkWritten>,
    block_count: usize,
}

/// What a removal did: the records whose data is not needed any more, and promises to take back.
#[derive(Default)]
pub struct Removed {
    pub data_seqs: Vec<u64>,
    pub promises: u32,
}

impl Written {
    pub fn block_count(&self) -> usize {
        self.block_count
    }

    pub fn chunk(&self, oid: Oid, chunk: u32) -> Option<&ChunkWritten> {
        self.chunks.get(&(oid, chunk))
    }

    pub fn chunk_mut(&mut self, oid: Oid, chunk: u32) -> Option<&mut ChunkWritten> {
        self.chunks.get_mut(&(oid, chunk))
    }

    pub fn chunks(&self) -> impl Iterator<Item = (Oid, u32)> + '_ {
        self.chunks.keys().copied()
    }

    pub fn chunks_of(&self, oid: Oid) -> impl Iterator<Item = (u32, &ChunkWritten)> + '_ {
        self.chunks.range((oid, 0)..=(oid, u32::MAX)).map(|((_, chunk), w)| (*chunk, w))
    }

    /// Returns the record whose data this block replaces.
    pub fn put(&mut self, oid: Oid, block: u32, crc: u32, seq: u64, data: Bytes) -> Option<u64> {
        let (chunk, index) = (block / SLOT_BLOCKS, (block % SLOT_BLOCKS) as u8);
        let written = self.chunks.entry((oid, chunk)).or_default();
        let new = WrittenBlock { index, crc, seq, data_seq: seq, data };
        match written.blocks.binary_search_by_key(&index, |b| b.index) {
            Ok(at) => Some(std::mem::replace(&mut written.blocks[at], new).data_seq),
            Err(at) => {
                written.blocks.insert(at, new);
                self.block_count += 1;
                None
            }
        }
    }

    /// Forgets the blocks of `first .. end`.
    pub fn drop_range(&mut self, oid: Oid, first: u64, end: u64, removed: &mut Removed) {
        if first >= end {
            return;
        }
        let span = u64::from(SLOT_BLOCKS);
        let chunks = (first / span) as u32..=((end - 1) / span).min(u64::from(u32::MAX)) as u32;
        let keys: Vec<_> = self
            .chunks
            .range((oid, *chunks.start())..=(oid, *chunks.end()))
            .map(|((_, chunk), _)| *chunk)
            .collect();
        for chunk in keys {
            let base = u64::from(chunk) * span;
            self.remove_if(oid, chunk, removed, |b| (first..end).contains(&(base + u64::from(b.index))));
        }
    }

    /// Forgets those blocks of `mask` that came by records up to `upto`: they are home.
    pub fn homed(&mut self, oid: Oid, chunk: u32, mask: u16, upto: u64, removed: &mut Removed) {
        self.remove_if(oid, chunk, removed, |b| mask & (1 << b.index) != 0 && b.seq <= upto);
    }

    fn remove_if(
        &mut self,
        oid: Oid,
        chunk: u32,
        removed: &mut Removed,
        gone: impl Fn(&WrittenBlock) -> bool,
    ) {
        let Some(written) = self.chunks.get_mut(&(oid, chunk)) else { return };
        let before = written.blocks.len();
        written.blocks.retain(|b| {
            let gone = gone(b);
            if gone {
                removed.data_seqs.push(b.data_seq);
            }
            !gone
        });
        self.block_count -= before - written.blocks.len();
        if written.blocks.is_empty() {
            removed.promises += u32::from(written.promised);
            self.chunks.remove(&(oid, chunk));
        }
    }

    /// Gives `to` (which has none) the blocks of `from`; returns (chunk, record that holds the data) of each.
    pub fn clone_object(&mut self, from: Oid, to: Oid, seq: u64) -> Vec<(u32, u64)> {
        let mut cloned = Vec::new();
        let copies: Vec<_> = self.chunks_of(from).map(|(chunk, w)| (chunk, w.blocks.clone())).collect();
        for (chunk, mut blocks) in copies {
            for block in &mut blocks {
                block.seq = seq;
                cloned.push((chunk, block.data_seq));
            }
            self.block_count += blocks.len();
            let old = self.chunks.insert((to, chunk), ChunkWritten { blocks, promised: false });
            assert!(old.is_none(), "the object {to} still had written blocks");
        }
        cloned
    }
}
