//! Which pages of a VDI's block table may be there.
//!
//! A page holds the entries of 2^20 objects, so the largest VDIs have 4096, most of them empty for ever. The view knows
//! those that were ever written to: of the others nobody need ask a disk, and a range of many tebibytes that holds
//! nothing is passed over in one step. The first page needs no word here, since every VDI may have it.

use serde::{Deserialize, Serialize};

const WORD_BITS: u32 = u64::BITS;

/// One bit for each page, as far as there are any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnteredPages {
    words: Vec<u64>,
}

impl EnteredPages {
    pub fn contains(&self, page: u32) -> bool {
        page == 0 || self.word(page / WORD_BITS) & 1 << (page % WORD_BITS) != 0
    }

    pub(super) fn insert(&mut self, page: u32) {
        let word = (page / WORD_BITS) as usize;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (page % WORD_BITS);
    }

    /// The first page that may be there, from this one on.
    pub fn next(&self, page: u32) -> Option<u32> {
        if page == 0 {
            return Some(0);
        }
        let first = page / WORD_BITS;
        let rest = self.word(first) & u64::MAX << (page % WORD_BITS);
        let words = std::iter::once(rest).chain((first + 1..self.words.len() as u32).map(|w| self.word(w)));
        let (number, bits) = (first..).zip(words).find(|(_, bits)| *bits != 0)?;
        Some(number * WORD_BITS + bits.trailing_zeros())
    }

    fn word(&self, number: u32) -> u64 {
        self.words.get(number as usize).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_found_in_order_and_the_first_is_always_there() {
        let mut pages = EnteredPages::default();
        assert_eq!((pages.next(0), pages.next(1), pages.next(4095)), (Some(0), None, None));
        let all = [1, 63, 64, 200, 4095];
        all.iter().for_each(|page| pages.insert(*page));
        let mut found = Vec::new();
        let mut at = 1;
        while let Some(page) = pages.next(at) {
            found.push(page);
            at = page + 1;
        }
        assert_eq!(found, all);
        assert!((0..5000).all(|page| pages.contains(page) == (page == 0 || all.contains(&page))));
    }
}
