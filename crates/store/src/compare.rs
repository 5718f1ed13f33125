//! Where two objects may differ, by what they share on the disk.
//!
//! A block of a slot that belongs to both, directly or below another, holds one content for both: as long as it is shared nobody writes to it in
//! place. The same goes for blocks that are not home yet and were cloned, and for holes. Whatever else may be the same by chance is not looked for.

use std::collections::BTreeSet;

use proto::Oid;
use proto::object::{BlockRange, ObjectReply};

use crate::layout::{GROUP_CHUNKS, SLOT_BLOCKS};
use crate::record::ChunkRef;
use crate::store::Store;
use crate::tables::{Tables, bits};
use crate::written::ChunkWritten;

/// A chunk as an object has it.
#[derive(Clone, Copy)]
struct Content<'a> {
    at: ChunkRef,
    written: Option<&'a ChunkWritten>,
}

impl Store {
    pub(crate) fn answer_compare(&mut self, ticket: u64, oid: Oid, with: Option<Oid>) {
        let both: Vec<Oid> = [oid].into_iter().chain(with).collect();
        let seq = both.iter().filter_map(|oid| self.undurable.get(oid)).max().copied().unwrap_or(0);
        let reply = match both.iter().all(|oid| self.tables.exists(*oid)) {
            true => ObjectReply::Differing(self.differing_blocks(oid, with)),
            false => ObjectReply::Absent,
        };
        self.reply_when_durable(seq, ticket, reply);
    }

    fn differing_blocks(&self, oid: Oid, with: Option<Oid>) -> Vec<BlockRange> {
        let mut runs: Vec<BlockRange> = Vec::new();
        for chunk in [Some(oid), with]
            .into_iter()
            .flatten()
            .flat_map(|oid| self.chunks_of(oid))
            .collect::<BTreeSet<_>>()
        {
            let same = same_blocks(&self.tables, self.content(Some(oid), chunk), self.content(with, chunk));
            for index in bits(!same) {
                let block = chunk * SLOT_BLOCKS + index;
                match runs.last_mut() {
                    Some(run) if run.end() == u64::from(block) => run.count += 1,
                    _ => runs.push(BlockRange::new(block, 1)),
                }
            }
        }
        runs
    }

    /// Chunks that are not only zeros.
    fn chunks_of(&self, oid: Oid) -> Vec<u32> {
        let mapped = self.tables.maps_of(oid).flat_map(|id| {
            let map = self.tables.map(id);
            let used = map.chunks.iter().zip(0..).filter(|(at, _)| !at.is_hole());
            used.map(|(_, index)| map.group * GROUP_CHUNKS + index)
        });
        mapped.chain(self.written.chunks_of(oid).map(|(chunk, _)| chunk)).collect()
    }

    fn content(&self, oid: Option<Oid>, chunk: u32) -> Content<'_> {
        let at = oid.map_or(ChunkRef::HOLE, |oid| self.tables.chunk(oid, chunk));
        Content { at, written: oid.and_then(|oid| self.written.chunk(oid, chunk)) }
    }
}

/// The blocks that are certainly the same, as bits.
fn same_blocks(tables: &Tables, one: Content, other: Content) -> u16 {
    // Two slots may have blocks of one that lies below both, or below one of them.
    let is_at_same_place = |index: u32| {
        let place = |at: ChunkRef| (at.mask & 1 << index != 0).then(|| tables.place(at.slot, index));
        place(one.at) == place(other.at)
    };
    let is_same = |index: u32| {
        let written = |content: Content<'_>| Some(content.written?.get(index)?.data.as_ptr());
        match (written(one), written(other)) {
            (None, None) => is_at_same_place(index),
            // A clone has the very bytes.
            (one, other) => one == other,
        }
    };
    (0..SLOT_BLOCKS).filter(|index| is_same(*index)).fold(0, |same, index| same | 1 << index)
}
