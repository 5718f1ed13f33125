//! Puts back what the disk has lost: a block that fails its checksum is written anew, where it lies.
//!
//! Safe without a journal record and for everybody who shares the slot, because nothing changes but what can be read: the content is what the block's
//! checksum says of it (or, where the checksum itself was lost, what the caller knows the object to have there: all that share a block
//! have the same in it). A crash in the middle leaves a block that fails its checksum, as it did before. A reader that meets the write
//! finds a bad block and asks another copy, as he would have before.
//!
//! No I/O of another kind may be under way in the block: the write is not begun then. While it is, the slot is pinned, so that it is neither given to
//! anybody else nor written to on the way home, should nobody refer to it any more or something be written over the block meanwhile. What was known to
//! be lost counts as found only by a journal record, after the content is durable.

use std::collections::BTreeMap;

use buffer::aligned;
use bytes::Bytes;
use proto::object::{BlockRange, ObjectReply};
use proto::{BLOCK_BYTES, Oid};

use crate::io::IoOp;
use crate::layout::{BLOCK, SLOT_BLOCKS};
use crate::record::Descriptor;
use crate::store::{IoOwner, Store};
use crate::write_back::JOB_ENTRIES_BYTES;

#[derive(Default)]
pub struct Mends {
    by_id: BTreeMap<u64, Mend>,
    next: u64,
}

struct Mend {
    ticket: u64,
    writes_left: usize,
    places: Vec<Place>,
}

/// A block on the disk.
struct Place {
    slot: u32,
    index: u32,
    crc: u32,
    /// Its descriptor says that the block is lost, or does not know its checksum.
    is_given_up: bool,
}

impl Mends {
    pub fn take_tickets(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.by_id).into_values().map(|mend| mend.ticket).collect()
    }
}

impl Store {
    pub(crate) fn start_mend(
        &mut self,
        ticket: u64,
        oid: Oid,
        blocks: BlockRange,
        checksums: Vec<u32>,
        data: Bytes,
    ) {
        let found = (blocks.first..).zip(&checksums).enumerate();
        let found: Vec<(usize, Place)> = found
            .filter_map(|(at, (block, crc))| Some((at, self.place_to_mend(oid, block, *crc)?)))
            .collect();
        if found.is_empty() {
            return self.replies.push_back((ticket, ObjectReply::Done));
        }
        let mend = self.mends.next;
        self.mends.next += 1;
        for (at, Place { slot, index, .. }) in &found {
            self.slots.pin(*slot, 1 << index);
            let offset = self.superblock.geometry.slot_offset(*slot) + u64::from(*index) * BLOCK;
            let content = data.slice(at * BLOCK_BYTES..(at + 1) * BLOCK_BYTES);
            let write = IoOp::Write { offset, data: vec![aligned(&content)], durable: true };
            self.request_io(write, IoOwner::Mend { mend });
        }
        let places: Vec<Place> = found.into_iter().map(|(_, place)| place).collect();
        self.mends.by_id.insert(mend, Mend { ticket, writes_left: places.len(), places });
    }

    /// Where the block lies, if this content may be written there.
    fn place_to_mend(&self, oid: Oid, block: u32, crc: u32) -> Option<Place> {
        let (chunk, index) = (block / SLOT_BLOCKS, block % SLOT_BLOCKS);
        let at = self.tables.chunk(oid, chunk);
        let is_written = self.written.chunk(oid, chunk).is_some_and(|w| w.get(index).is_some());
        if at.mask & (1 << index) == 0 || is_written {
            return None;
        }
        let (slot, expected) = (self.tables.place(at.slot, index), self.tables.crc(at.slot, index));
        // A descriptor that was lost knows no checksums: it has zeros.
        let is_it = expected == crc || expected == 0;
        let is_lost = self.tables.lost(at.slot) & (1 << index) != 0;
        let is_given_up = is_lost || expected != crc;
        (is_it && !self.slots.is_pinned(slot, 1 << index)).then_some(Place { slot, index, crc, is_given_up })
    }

    pub(crate) fn handle_mend_written(&mut self, id: u64) {
        let Some(mend) = self.mends.by_id.get_mut(&id) else { return };
        mend.writes_left -= 1;
        if mend.writes_left > 0 {
            return;
        }
        let Mend { ticket, mut places, .. } = self.mends.by_id.remove(&id).expect("just seen");
        places.iter().for_each(|place| self.slots.unpin(place.slot, 1 << place.index));
        // A slot that nobody refers to any more says nothing of its blocks.
        places.retain(|place| place.is_given_up && self.tables.refs()[place.slot as usize] > 0);
        let bound = places.len() * JOB_ENTRIES_BYTES;
        if places.is_empty() || !self.journal.admits(bound, 0, false) {
            return self.replies.push_back((ticket, ObjectReply::Done));
        }
        let seq = self.journal.begin(bound, 0);
        for Place { slot, index, crc, .. } in places {
            let below = self.tables.below(slot);
            let lost = self.tables.lost(slot) & !below.mask & !(1 << index);
            let mask = 1 << index;
            self.describe(seq, Descriptor { slot, reset: false, below, lost, mask, crcs: vec![crc] });
        }
        self.reply_when_durable(seq, ticket, ObjectReply::Done);
    }
}
