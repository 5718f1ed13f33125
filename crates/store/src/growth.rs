//! A disk that is taken in steps: slots beyond what the disk has so far come into use when it has grown.
//!
//! The size that was decided at format is what a store may take; a file takes it from its file system little by little. The store
//! asks ahead of need, so an order seldom waits for the file system. One that finds no slot asks too, and waits for the answer: it is
//! refused only when the answer is no. A device, or a file of full size, never grows and never asks.

use std::collections::VecDeque;

use crate::io::{IoFailed, IoOp, IoResult};
use crate::layout::GROWTH_SLOTS_MIN;
use crate::store::{IoOwner, Pending, Store};

pub struct Growth {
    /// How many slots the disk will have when the request in flight is done.
    asked: Option<u32>,
    /// Some order waits for it.
    awaited: bool,
    /// Slots to ask for next: twice as many after each yes, half after each no.
    step: u32,
    /// The last answer was no, even to the smallest step.
    denied: bool,
    /// Orders up to this one have had that answer.
    denied_below: u64,
    /// Orders that wait for slots to put their data in, in order of submission.
    pub roomless: VecDeque<u64>,
}

impl Default for Growth {
    fn default() -> Self {
        // Bounded when asking: the first step is a large one.
        Growth {
            asked: None,
            awaited: false,
            step: u32::MAX,
            denied: false,
            denied_below: 0,
            roomless: VecDeque::new(),
        }
    }
}

impl Growth {
    /// Has the file system no room, as far as is known?
    pub fn is_denied(&self) -> bool {
        self.denied
    }

    /// Could the disk be asked for more, with hope and without waiting for an answer?
    pub fn may_ask(&self) -> bool {
        self.asked.is_none() && !self.denied
    }
}

impl Store {
    /// Asks ahead of need. Not after a no: then whoever needs room asks.
    pub(crate) fn drive_growth(&mut self) {
        let low_water = self.superblock.geometry.growth_slots() / 2;
        if !self.growth.denied && self.slots.absent() > 0 && self.slots.available() < low_water {
            self.ask_for_room();
        }
    }

    /// Whether an order that lacks slots should wait. False: nothing more is to be had, nor is anything on its way back.
    pub(crate) fn waits_for_room(&mut self, order: u64) -> bool {
        if self.slots.absent() == 0 || self.growth.asked.is_none() && order < self.growth.denied_below {
            return self.slots.is_freeing() || self.mergeable().next().is_some();
        }
        self.ask_for_room();
        self.growth.awaited = true;
        true
    }

    /// Does an order wait until the disk has grown?
    pub fn awaits_room(&self) -> bool {
        self.growth.asked.is_some() && self.growth.awaited
    }

    pub(crate) fn ask_for_room(&mut self) {
        if self.growth.asked.is_some() {
            return;
        }
        let geometry = self.superblock.geometry;
        let step = self.growth.step.clamp(GROWTH_SLOTS_MIN, geometry.growth_slots());
        let slots = self.slots.present() + step.min(self.slots.absent());
        self.growth.asked = Some(slots);
        self.request_io(IoOp::Grow { size_bytes: geometry.slot_offset(slots) }, IoOwner::Growth);
    }

    pub(crate) fn handle_grown(&mut self, result: IoResult) {
        let slots = self.growth.asked.take().expect("its I/O was asked for");
        let step = slots - self.slots.present();
        match result {
            Ok(_) => {
                self.slots.extend(self.tables.refs(), slots);
                self.growth.step = self.growth.step.max(step).saturating_mul(2);
                self.growth.denied = false;
            }
            Err(IoFailed::NoRoom) if step > GROWTH_SLOTS_MIN => {
                self.growth.step = step / 2;
                return self.ask_for_room();
            }
            Err(IoFailed::NoRoom) => {
                if !self.growth.denied {
                    tracing::warn!(store_id = self.store_id(), "the file system has no room for more");
                }
                self.growth.step = GROWTH_SLOTS_MIN;
                self.growth.denied = true;
                self.growth.denied_below = self.next_order();
            }
            Err(IoFailed::Disk) => return self.fail(),
        }
        self.growth.awaited = false;
        self.retry_roomless();
    }

    /// There may be room now, or no hope any more.
    pub(crate) fn retry_roomless(&mut self) {
        if self.growth.asked.is_some() {
            return;
        }
        for order in std::mem::take(&mut self.growth.roomless) {
            let Pending { ticket, op, .. } = self.pending.remove(&order).expect("it waits");
            self.start_change(order, ticket, op);
        }
    }
}
