//! Changes that overlap go one after the other.
//!
//! A guest may ask for two changes of one block at once and gets them in some order. But a request that was under way when the
//! sheep died is submitted again, and that must not undo a change that the guest was told of meanwhile: so a change is begun
//! only when every earlier one that it overlaps has been answered. What is under way never overlaps; hence nothing that is
//! submitted again can lie over something newer (`inflight.rs`).

use std::collections::{BTreeMap, VecDeque};

/// The changes of one device, under way and waiting. `T`: what waits.
pub struct Fence<T> {
    /// Start and end; disjoint.
    active: BTreeMap<u64, u64>,
    /// In the order in which they came.
    waiting: VecDeque<((u64, u64), T)>,
}

impl<T> Default for Fence<T> {
    fn default() -> Self {
        Fence { active: BTreeMap::new(), waiting: VecDeque::new() }
    }
}

impl<T> Fence<T> {
    /// Gives `item` back if it may begin now. Otherwise it is kept until [`Fence::end`] lets it go.
    pub fn begin(&mut self, range: (u64, u64), item: T) -> Option<T> {
        if range.0 == range.1 {
            return Some(item);
        }
        // It also stays behind those that wait: nobody waits for ever.
        if self.is_active(range) || self.waiting.iter().any(|(other, _)| overlap(*other, range)) {
            self.waiting.push_back((range, item));
            return None;
        }
        self.active.insert(range.0, range.1);
        Some(item)
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// A change that had begun is over. Returns those that begin now.
    pub fn end(&mut self, range: (u64, u64)) -> Vec<T> {
        if range.0 == range.1 {
            return vec![];
        }
        let known = self.active.remove(&range.0);
        assert_eq!(known, Some(range.1), "a change ended that had not begun");
        // Each is looked at once, and either begins or waits again behind those before it.
        let mut begin = Vec::new();
        for (range, item) in std::mem::take(&mut self.waiting) {
            begin.extend(self.begin(range, item));
        }
        begin
    }

    fn is_active(&self, range: (u64, u64)) -> bool {
        // Disjoint: only the last one that starts before the end can reach into it.
        self.active.range(..range.1).next_back().is_some_and(|(_, end)| *end > range.0)
    }
}

fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.1 && b.0 < a.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_waits_for_those_it_overlaps_and_no_others() {
        let mut fence = Fence::default();
        assert_eq!(fence.begin((0, 8), 'a'), Some('a'));
        assert_eq!(fence.begin((8, 16), 'b'), Some('b'));
        assert_eq!(fence.begin((4, 12), 'c'), None);
        assert_eq!(fence.begin((16, 24), 'd'), Some('d'));
        assert!(fence.end((0, 8)).is_empty());
        assert_eq!(fence.end((8, 16)), ['c']);
        assert!(fence.end((4, 12)).is_empty());
    }

    #[test]
    fn nobody_overtakes_one_that_waits_for_the_same_blocks() {
        let mut fence = Fence::default();
        assert_eq!(fence.begin((0, 8), 'a'), Some('a'));
        assert_eq!(fence.begin((0, 16), 'b'), None);
        assert_eq!(fence.begin((8, 16), 'c'), None, "free, but before it comes b");
        assert_eq!(fence.begin((8, 16), 'd'), None);
        assert_eq!(fence.end((0, 8)), ['b']);
        assert_eq!(fence.end((0, 16)), ['c']);
        assert_eq!(fence.end((8, 16)), ['d']);
    }

    #[test]
    fn a_change_of_nothing_is_nobodys_concern() {
        let mut fence = Fence::default();
        assert_eq!(fence.begin((4, 4), 'a'), Some('a'));
        assert_eq!(fence.begin((0, 8), 'b'), Some('b'));
        assert!(fence.end((4, 4)).is_empty());
        assert!(fence.end((0, 8)).is_empty());
    }
}
