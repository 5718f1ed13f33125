//! When a slot may be used again.
//!
//! A slot that no map refers to any more is reused only after (1) the record that freed it is durable, or a crash
//! would bring back a map that points at foreign data, and (2) no I/O on it is in flight, or a read would see what
//! was never its own and a late write of the old content would hit the new.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use crate::free_set::FreeSet;
use crate::layout::SLOTS_KEPT_BACK;

pub struct Slots {
    free: FreeSet,
    /// All slots below are on the disk; those from here on come with its growth.
    present: u32,
    count: u32,
    /// Free once the record with this number is durable. Ascending, as records are.
    freed: VecDeque<(u64, u32)>,
    /// Free once nobody reads it any more.
    lingering: BTreeSet<u32>,
    /// Blocks of slots with I/O in flight: one mask for each I/O.
    pins: BTreeMap<u32, Vec<u16>>,
    /// Slots promised to written blocks for their way home.
    promised: u32,
    /// Free, and being written to ahead of use: nobody is given them until that write is done.
    ahead: Range<u32>,
}

impl Slots {
    /// All slots below `present` with `refs[slot] == 0` are free.
    pub fn new(refs: &[u32], present: u32) -> Self {
        let count = refs.len() as u32;
        let mut slots = Slots {
            free: FreeSet::empty(count),
            present: 0,
            count,
            freed: VecDeque::new(),
            lingering: BTreeSet::new(),
            pins: BTreeMap::new(),
            promised: 0,
            ahead: 0..0,
        };
        slots.free.begin_at(refs.iter().rposition(|refs| *refs > 0).map_or(0, |slot| slot as u32 + 1));
        slots.extend(refs, present);
        slots
    }

    /// The disk has grown.
    pub fn extend(&mut self, refs: &[u32], present: u32) {
        let unused = (self.present..present).filter(|slot| refs[*slot as usize] == 0);
        unused.for_each(|slot| self.free.insert(slot));
        self.present = present;
    }

    /// Slots that the disk has.
    pub fn present(&self) -> u32 {
        self.present
    }

    /// Slots that come when it grows.
    pub fn absent(&self) -> u32 {
        self.count - self.present
    }

    /// Slots that a new write may still ask for.
    pub fn available(&self) -> u32 {
        self.free.count().saturating_sub(self.promised).saturating_sub(SLOTS_KEPT_BACK)
    }

    /// Slots that nobody uses, whether the disk has them yet or not.
    pub fn free_count(&self) -> u32 {
        let on_their_way = self.freed.len() + self.lingering.len() + self.ahead.len();
        self.free.count() + on_their_way as u32 + self.absent()
    }

    /// Some are not referred to any more, or are being written ahead, and will be free soon.
    pub fn is_freeing(&self) -> bool {
        !self.freed.is_empty() || !self.lingering.is_empty() || self.is_writing_ahead()
    }

    pub fn is_writing_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Slots that have been in use, up to the last one.
    pub fn begun(&self) -> u32 {
        self.free.begun()
    }

    /// Slots that were written to ahead of use and are free.
    pub fn ahead(&self) -> u32 {
        self.free.written() - self.free.begun()
    }

    /// The disk says that it has been written to up to this slot.
    pub fn write_up_to(&mut self, slot: u32) {
        self.free.write_up_to(slot.min(self.present));
    }

    /// Are there `count` neighbouring slots that were never written to and that nobody will miss for a moment?
    pub fn has_unwritten(&self, count: u32) -> bool {
        self.available() >= count && self.free.has_unwritten(count)
    }

    /// Takes so many slots away from everybody for a write ahead of use. The caller has asked `has_unwritten`.
    pub fn begin_ahead(&mut self, count: u32) -> Range<u32> {
        assert!(!self.is_writing_ahead(), "one write ahead at a time");
        self.ahead = self.free.take_unwritten(count).expect("they are free");
        // Promises are kept with what is left.
        assert!(self.free.count() >= self.promised, "a promised slot was taken away");
        self.ahead.clone()
    }

    /// The write is done: its slots are as free as before.
    pub fn finish_ahead(&mut self) {
        let written = std::mem::replace(&mut self.ahead, 0..0);
        self.free.write_up_to(written.end);
        written.for_each(|slot| self.free.insert(slot));
    }

    pub fn promised(&self) -> u32 {
        self.promised
    }

    pub fn promise(&mut self) {
        self.promised += 1;
    }

    pub fn unpromise(&mut self) {
        self.promised = self.promised.checked_sub(1).expect("a promise is taken back once");
    }

    /// A slot for new data. The caller has asked `available`, or holds a promise.
    pub fn take(&mut self) -> Option<u32> {
        self.free.take()
    }

    /// Gives back a slot that was taken and never mapped; no write to it is in flight.
    pub fn give_back(&mut self, slot: u32) {
        self.free.insert(slot);
    }

    pub fn freed_by(&mut self, seq: u64, slot: u32) {
        debug_assert!(self.freed.back().is_none_or(|(s, _)| *s <= seq));
        self.freed.push_back((seq, slot));
    }

    pub fn handle_durable(&mut self, durable: u64) {
        while let Some(&(seq, slot)) = self.freed.front()
            && seq <= durable
        {
            self.freed.pop_front();
            if self.pins.contains_key(&slot) {
                self.lingering.insert(slot);
            } else {
                self.free.insert(slot);
            }
        }
    }

    pub fn pin(&mut self, slot: u32, mask: u16) {
        self.pins.entry(slot).or_default().push(mask);
    }

    pub fn unpin(&mut self, slot: u32, mask: u16) {
        let masks = self.pins.get_mut(&slot).expect("only pinned slots are unpinned");
        let at = masks.iter().position(|m| *m == mask).expect("an I/O unpins what it pinned");
        masks.swap_remove(at);
        if masks.is_empty() {
            self.pins.remove(&slot);
            if self.lingering.remove(&slot) {
                self.free.insert(slot);
            }
        }
    }

    /// Whether an I/O on any of these blocks is in flight.
    pub fn is_pinned(&self, slot: u32, mask: u16) -> bool {
        self.pins.get(&slot).is_some_and(|masks| masks.iter().any(|m| m & mask != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_slot_waits_for_its_record_and_for_its_readers() {
        let mut slots = Slots::new(&[1, 0], 2);
        assert_eq!(slots.take(), Some(1));
        slots.pin(0, 3);
        slots.freed_by(5, 0);
        slots.handle_durable(4);
        assert_eq!(slots.take(), None);
        slots.handle_durable(5);
        assert_eq!(slots.take(), None, "a read is in flight");
        slots.unpin(0, 3);
        assert_eq!(slots.take(), Some(0));
    }
}
