//! Room that is written to before it is needed, while the disk has nothing better to do.
//!
//! The first write to a part of a file costs a file system more than the next: its metadata has to say that there is data now, and a durable write waits
//! for that. So zeros are written over slots that were never in use, a bounded amount ahead; when they are taken, they are
//! overwritten like others. The shell says when there is time for it, and the store what there is to do. While others wait for the disk
//! that is only done when little is left: each such write costs them a commit of the file system's journal.
//!
//! Why it is safe: only slots that are free and were never in use are written to, and from the moment that the write is asked for until it is
//! done they are taken out of the free ones (`Slots::begin_ahead`). So no other write to them is in flight beside it, none that is durable comes before
//! it, and no map names them. What lies in a free slot means nothing, now or after a crash: nobody reads what the slot's next owner did not write
//! itself. Nothing relies on these zeros being there; so they are not synced.

use buffer::AlignedBuf;
use bytes::Bytes;

use crate::io::IoOp;
use crate::layout::{Geometry, SLOT_BYTES};
use crate::store::{IoOwner, Store};

/// Slots of one piece: 1 MiB.
const WRITE_SLOTS: u32 = 16;
/// No more than an eighth of a store.
const STORE_SHARE: u32 = 8;
/// As much as has been in use is wanted ahead: a snapshot of all needs no more. At least this, for new volumes: 64 MiB.
const SLOTS_MIN: u32 = 1024;

/// Less than this part of what is wanted is little.
const SHORT_SHARE: u32 = 4;

#[derive(Default)]
pub struct Ahead {
    /// The most that is written ahead. 0 on a device.
    slots_max: u32,
    /// Zeros of one slot.
    zeros: Bytes,
}

impl Ahead {
    pub fn new(geometry: &Geometry, bytes_max: u64) -> Ahead {
        let slots = u32::try_from(bytes_max / SLOT_BYTES).unwrap_or(u32::MAX);
        let slots_max = slots.min(geometry.slots / STORE_SHARE);
        Ahead { slots_max, zeros: AlignedBuf::zeroed(SLOT_BYTES as usize).freeze() }
    }
}

impl Store {
    fn wanted_ahead(&self) -> u32 {
        self.slots.begun().max(SLOTS_MIN).min(self.ahead.slots_max)
    }

    /// Is there room to be written to ahead of use, and no such write under way?
    pub fn wants_to_write_ahead(&self) -> bool {
        let wanted = self.wanted_ahead();
        let rests = !self.is_failed() && !self.write_back.is_ending() && !self.slots.is_writing_ahead();
        rests
            && self.slots.ahead() + WRITE_SLOTS <= wanted
            && (self.slots.has_unwritten(WRITE_SLOTS) || self.may_grow_ahead())
    }

    /// So little is left that it cannot wait for a moment in which nobody else needs the disk.
    pub fn is_short_of_written(&self) -> bool {
        self.slots.ahead() < self.wanted_ahead() / SHORT_SHARE
    }

    /// There is a moment for it: begins one write ahead, of `pieces` MiB if it may be so many, or lets the disk grow for the next one. To be asked for when
    /// [`wants_to_write_ahead`](Store::wants_to_write_ahead); else nothing happens.
    pub fn write_ahead(&mut self, pieces: u32) {
        if !self.wants_to_write_ahead() {
            return;
        }
        if !self.slots.has_unwritten(WRITE_SLOTS) {
            return self.ask_for_room();
        }
        let many = WRITE_SLOTS * pieces;
        let may = self.slots.ahead() + many <= self.wanted_ahead() && self.slots.has_unwritten(many);
        let slots = self.slots.begin_ahead(if may { many } else { WRITE_SLOTS });
        let offset = self.superblock.geometry.slot_offset(slots.start);
        let data = vec![self.ahead.zeros.clone(); slots.len()];
        self.request_io(IoOp::Write { offset, data, durable: false }, IoOwner::Ahead);
    }

    fn may_grow_ahead(&self) -> bool {
        self.slots.absent() > 0 && self.growth.may_ask()
    }
}
