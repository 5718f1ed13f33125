//! Which overlays lie on which slots: the descriptors the other way round.
//!
//! Only overlays that somebody refers to count. It is kept to find pairs that waste room: a slot whose only reference is an overlay's
//! holds blocks for that one alone, which has room for them itself.

use std::collections::BTreeSet;

#[derive(Default, Debug, PartialEq, Eq)]
pub struct Overlays {
    /// (the slot below, overlay).
    pairs: BTreeSet<(u32, u32)>,
    /// Slots below overlays with a single reference.
    lonely: BTreeSet<u32>,
}

impl Overlays {
    /// `refs`: how many references `below` has, this one included.
    pub fn insert(&mut self, below: u32, overlay: u32, refs: u32) {
        assert!(self.pairs.insert((below, overlay)), "slot {overlay} lies on slot {below} once");
        self.handle_refs(below, refs);
    }

    pub fn remove(&mut self, below: u32, overlay: u32) {
        assert!(self.pairs.remove(&(below, overlay)), "slot {overlay} lay on slot {below}");
    }

    /// The number of references to a slot has changed.
    pub fn handle_refs(&mut self, slot: u32, refs: u32) {
        if self.pairs.is_empty() && self.lonely.is_empty() {
            return;
        }
        if refs == 1 && self.first_on(slot).is_some() {
            self.lonely.insert(slot);
        } else {
            self.lonely.remove(&slot);
        }
    }

    fn first_on(&self, below: u32) -> Option<u32> {
        self.pairs.range((below, 0)..=(below, u32::MAX)).next().map(|(_, overlay)| *overlay)
    }

    /// The overlays on slots that nobody else refers to.
    pub fn lonely(&self) -> impl Iterator<Item = u32> + '_ {
        self.lonely.iter().map(|below| self.first_on(*below).expect("its reference is an overlay's"))
    }
}
