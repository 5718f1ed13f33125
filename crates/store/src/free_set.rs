//! Which numbers below a bound are free: a bitmap with a summary, allocated next-fit.

use std::ops::Range;

/// Next-fit keeps the slots of one large write side by side, so that they need one I/O.
///
/// What has been in use before is preferred as long as there is enough of it: the first write to a part of a file costs a
/// file system more than the next one (its metadata has to say that there is data now), and a thin device takes room for it.
/// Next comes what was written to ahead of use, if anybody does that.
///
/// ```text
///   0 ......... begun ........ written ........ bound
///     in use, or   free, written  free, never
///     was once     to ahead       written to
/// ```
pub struct FreeSet {
    words: Vec<u64>,
    /// Bit n: `words[n]` is not zero.
    summary: Vec<u64>,
    cursor: u32,
    count: u32,
    /// Everything below has been in use.
    begun: u32,
    /// Free ones below `begun`.
    begun_free: u32,
    /// Everything below has been written to, in use or ahead of it. Never less than `begun`.
    written: u32,
}

/// Free numbers among those begun that are kept for the sake of long runs: a sixteenth, at least so many.
const BEGUN_SPARE_MIN: u32 = 256;

impl FreeSet {
    pub fn empty(bound: u32) -> Self {
        let words = (bound as usize).div_ceil(64);
        FreeSet {
            words: vec![0; words],
            summary: vec![0; words.div_ceil(64)],
            cursor: 0,
            count: 0,
            begun: 0,
            begun_free: 0,
            written: 0,
        }
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    pub fn contains(&self, n: u32) -> bool {
        self.words.get(n as usize / 64).is_some_and(|word| word & (1 << (n % 64)) != 0)
    }

    pub fn insert(&mut self, n: u32) {
        assert!(!self.contains(n), "{n} is freed twice");
        self.words[n as usize / 64] |= 1 << (n % 64);
        self.summary[n as usize / 4096] |= 1 << (n / 64 % 64);
        self.count += 1;
        self.begun_free += u32::from(n < self.begun);
    }

    /// Everything below `n` has been in use before.
    pub fn begin_at(&mut self, n: u32) {
        assert!(self.count == 0, "before anything is free");
        (self.begun, self.written) = (n, n);
    }

    pub fn begun(&self) -> u32 {
        self.begun
    }

    pub fn written(&self) -> u32 {
        self.written
    }

    /// Everything below `n` has been written to.
    pub fn write_up_to(&mut self, n: u32) {
        self.written = self.written.max(n);
    }

    /// Takes the next `count` numbers that were never written to, all or none; they come back by `insert`.
    pub fn take_unwritten(&mut self, count: u32) -> Option<Range<u32>> {
        let numbers = self.written..self.written.checked_add(count)?;
        if !self.has_unwritten(count) {
            return None;
        }
        numbers.clone().for_each(|n| self.remove(n));
        Some(numbers)
    }

    /// Are the next `count` numbers that were never written to free?
    pub fn has_unwritten(&self, count: u32) -> bool {
        // From the far end: what is not there yet is missing there.
        (self.written..self.written.saturating_add(count)).rev().all(|n| self.contains(n))
    }

    pub fn take(&mut self) -> Option<u32> {
        let reuse = self.begun_free > (self.begun / 16).max(BEGUN_SPARE_MIN);
        let again = self.find(self.cursor).filter(|n| *n < self.begun || !reuse).or_else(|| self.find(0));
        let n = if reuse { again } else { self.find(self.begun).or(again) }?;
        if n >= self.begun {
            // What is skipped is taken later all the same.
            self.begun_free += self.free_between(self.begun, n);
            self.begun = n + 1;
            self.write_up_to(self.begun);
        } else {
            self.begun_free -= 1;
        }
        self.remove(n);
        self.cursor = n;
        Some(n)
    }

    fn remove(&mut self, n: u32) {
        let word = &mut self.words[n as usize / 64];
        *word &= !(1 << (n % 64));
        if *word == 0 {
            self.summary[n as usize / 4096] &= !(1 << (n / 64 % 64));
        }
        self.count -= 1;
    }

    fn free_between(&self, from: u32, to: u32) -> u32 {
        (from..to).filter(|n| self.contains(*n)).count() as u32
    }

    /// The first free number from `from` on.
    fn find(&self, from: u32) -> Option<u32> {
        let first = from as usize / 64;
        let head = self.words.get(first)? & (u64::MAX << (from % 64));
        if head != 0 {
            return Some(first as u32 * 64 + head.trailing_zeros());
        }
        let next = first + 1;
        let mut mask = u64::MAX << (next % 64);
        for (i, summary) in self.summary.iter().enumerate().skip(next / 64) {
            let bits = summary & mask;
            if bits != 0 {
                let word = i * 64 + bits.trailing_zeros() as usize;
                return Some(word as u32 * 64 + self.words[word].trailing_zeros());
            }
            mask = u64::MAX;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_in_use_before_is_taken_again_first() {
        let mut set = FreeSet::empty(9000);
        set.begin_at(1000);
        (0..9000).for_each(|n| set.insert(n));
        let taken: Vec<_> = (0..744).map(|_| set.take().unwrap()).collect();
        assert_eq!(taken, (0..744).collect::<Vec<_>>());
        assert_eq!(set.take(), Some(1000), "256 of them are kept");
        (100..200).for_each(|n| set.insert(n));
        let taken: Vec<_> = (0..101).map(|_| set.take().unwrap()).collect();
        assert!(taken[..100].iter().all(|n| *n < 1000), "{taken:?}");
        assert_eq!(taken[100], 1001);
        let mut rest: Vec<_> = std::iter::from_fn(|| set.take()).collect();
        rest.sort_unstable();
        assert!(rest.windows(2).all(|pair| pair[0] < pair[1]) && set.count() == 0);
    }

    #[test]
    fn what_is_being_written_ahead_is_passed_over_and_comes_back() {
        let mut set = FreeSet::empty(100);
        set.begin_at(10);
        (10..60).for_each(|n| set.insert(n));
        assert_eq!(set.take_unwritten(16), Some(10..26));
        assert_eq!(set.take_unwritten(35), None, "they are not all there");
        assert_eq!(set.count(), 34);
        assert_eq!([set.take(), set.take()], [Some(26), Some(27)]);
        (10..26).for_each(|n| set.insert(n));
        set.write_up_to(26);
        assert_eq!((set.begun(), set.written()), (28, 28));
        assert_eq!(set.take_unwritten(16), Some(28..44));
        (28..44).for_each(|n| set.insert(n));
        set.write_up_to(44);
        assert_eq!([set.take(), set.take()], [Some(28), Some(29)], "what was written ahead comes first");
        assert_eq!((set.begun(), set.written()), (30, 44));
        let rest: std::collections::BTreeSet<_> = std::iter::from_fn(|| set.take()).collect();
        assert_eq!(rest, (10..26).chain(30..60).collect(), "each once");
    }

    #[test]
    fn everything_is_taken_once_and_comes_back() {
        let mut set = FreeSet::empty(9000);
        (0..9000).for_each(|n| set.insert(n));
        let taken: Vec<_> = std::iter::from_fn(|| set.take()).collect();
        assert_eq!(taken, (0..9000).collect::<Vec<_>>());
        assert_eq!(set.count(), 0);
        set.insert(5);
        set.insert(8999);
        assert_eq!([set.take(), set.take(), set.take()], [Some(8999), Some(5), None]);
    }
}
