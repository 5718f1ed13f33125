//! Which numbers below a bound are free: a bitmap with a summary, allocated next-fit.

/// Next-fit keeps the slots of one large write side by side, so that they need one I/O.
pub struct FreeSet {
    words: Vec<u64>,
    /// Bit n: `words[n]` is not zero.
    summary: Vec<u64>,
    cursor: u32,
    count: u32,
}

impl FreeSet {
    pub fn empty(bound: u32) -> Self {
        let words = (bound as usize).div_ceil(64);
        FreeSet { words: vec![0; words], summary: vec![0; words.div_ceil(64)], cursor: 0, count: 0 }
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    pub fn contains(&self, n: u32) -> bool {
        self.words[n as usize / 64] & (1 << (n % 64)) != 0
    }

    pub fn insert(&mut self, n: u32) {
        assert!(!self.contains(n), "{n} is freed twice");
        self.words[n as usize / 64] |= 1 << (n % 64);
        self.summary[n as usize / 4096] |= 1 << (n / 64 % 64);
        self.count += 1;
    }

    pub fn take(&mut self) -> Option<u32> {
        let n = self.find(self.cursor).or_else(|| self.find(0))?;
        let word = &mut self.words[n as usize / 64];
        *word &= !(1 << (n % 64));
        if *word == 0 {
            self.summary[n as usize / 4096] &= !(1 << (n / 64 % 64));
        }
        self.count -= 1;
        self.cursor = n;
        Some(n)
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
