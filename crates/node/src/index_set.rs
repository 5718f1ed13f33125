//! A set of object indexes, dense or sparse: bits in pages.

use std::collections::BTreeMap;

const PAGE_BITS: u32 = 4096;
const WORDS: usize = PAGE_BITS as usize / 64;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IndexSet {
    pages: BTreeMap<u32, Box<[u64; WORDS]>>,
}

impl IndexSet {
    pub fn insert(&mut self, index: u32) {
        let page = self.pages.entry(index / PAGE_BITS).or_insert_with(|| Box::new([0; WORDS]));
        let bit = index % PAGE_BITS;
        page[bit as usize / 64] |= 1 << (bit % 64);
    }

    pub fn contains(&self, index: u32) -> bool {
        let bit = index % PAGE_BITS;
        self.pages.get(&(index / PAGE_BITS)).is_some_and(|p| p[bit as usize / 64] & 1 << (bit % 64) != 0)
    }

    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    pub fn len(&self) -> u64 {
        self.pages.values().flat_map(|p| p.iter()).map(|word| u64::from(word.count_ones())).sum()
    }

    /// The first run at or after `from`: its first index, and one past its last.
    pub fn next_run(&self, from: u32) -> Option<(u32, u32)> {
        let first = self.next(from, true)?;
        Some((first, self.next(first, false).unwrap_or(u32::MAX)))
    }

    /// The first index at or after `from` that is in the set, or that is not.
    fn next(&self, from: u32, is_in: bool) -> Option<u32> {
        let mut at = from;
        loop {
            let Some(page) = self.pages.get(&(at / PAGE_BITS)) else {
                if !is_in {
                    return Some(at);
                }
                at = self.pages.range(at / PAGE_BITS..).next()?.0 * PAGE_BITS;
                continue;
            };
            let word = page[(at % PAGE_BITS) as usize / 64];
            let wanted = if is_in { word } else { !word } >> (at % 64);
            if wanted != 0 {
                return Some(at + wanted.trailing_zeros());
            }
            at = (at | 63).checked_add(1)?;
        }
    }

    /// As runs of neighbours: (first, count).
    pub fn runs(&self) -> Vec<(u32, u32)> {
        let mut runs = Vec::new();
        let mut from = 0;
        while let Some((first, end)) = self.next_run(from) {
            // The end of a run that reaches the very last index cannot be told.
            let is_last = end == u32::MAX;
            runs.push((first, end - first + u32::from(is_last && self.contains(u32::MAX))));
            if is_last {
                break;
            }
            from = end;
        }
        runs
    }
}

/// Is the index in one of these runs (first, count), which ascend?
pub(crate) fn runs_contain(runs: &[(u32, u32)], index: u32) -> bool {
    let after = runs.partition_point(|(first, _)| *first <= index);
    after > 0 && index - runs[after - 1].0 < runs[after - 1].1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_survives_its_runs() {
        let mut set = IndexSet::default();
        let all = [0, 1, 63, 64, 4095, 4096, 4097, 1 << 20, u32::MAX];
        all.iter().for_each(|index| set.insert(*index));
        let runs = set.runs();
        assert_eq!(runs, vec![(0, 2), (63, 2), (4095, 3), (1 << 20, 1), (u32::MAX, 1)]);
        assert_eq!(set.len(), 9);
        assert_eq!(set.next_run(0), Some((0, 2)));
        assert_eq!(set.next_run(1), Some((1, 2)));
        assert_eq!(set.next_run(2), Some((63, 65)));
        assert_eq!(set.next_run(65), Some((4095, 4098)));
        assert_eq!(set.next_run((1 << 20) + 1), Some((u32::MAX, u32::MAX)));
        assert_eq!(IndexSet::default().next_run(7), None);
        assert!(all.iter().all(|index| runs_contain(&runs, *index)));
        assert!([2, 62, 65, 4098, u32::MAX - 1].iter().all(|index| !runs_contain(&runs, *index)));
        assert!(!runs_contain(&[], 0) && !runs_contain(&runs[1..], 0));
    }
}
