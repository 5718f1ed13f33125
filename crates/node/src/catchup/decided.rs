//! Which blocks of an object the changes since the beginning have decided: they are not fetched.

use std::collections::BTreeMap;

use proto::object::{BlockRange, Stamp, Unsettled};

/// Of each block the newest change that this copy has accepted itself.
#[derive(Debug, Default)]
pub(super) struct Decided {
    whole: Option<Stamp>,
    /// Since `whole`.
    blocks: BTreeMap<u32, Stamp>,
}

impl Decided {
    /// A change covers these blocks, or all. It may be an old one, sent again.
    pub fn note(&mut self, blocks: Option<BlockRange>, stamp: Stamp) {
        match blocks {
            Some(blocks) => {
                for block in blocks.first..blocks.end() as u32 {
                    let newest = self.blocks.entry(block).or_insert(stamp);
                    *newest = stamp.max(*newest);
                }
            }
            None => {
                self.whole = self.whole.max(Some(stamp));
                self.blocks.retain(|_, newest| *newest > stamp);
            }
        }
    }

    /// A change has replaced the object: older ones decide nothing of it any more.
    pub fn forget_before(&mut self, stamp: Stamp) {
        self.whole = self.whole.filter(|whole| *whole >= stamp);
        self.blocks.retain(|_, newest| *newest >= stamp);
    }

    pub fn is_empty(&self) -> bool {
        self.whole.is_none() && self.blocks.is_empty()
    }

    pub fn whole(&self) -> Option<Stamp> {
        self.whole
    }

    pub fn has(&self, block: u32) -> bool {
        self.whole.is_some() || self.blocks.contains_key(&block)
    }

    /// Is there a block of this change that was decided by an older one, and not since?
    pub fn is_outdated_by(&self, change: &Unsettled) -> bool {
        let newest = |block: &u32| self.blocks.get(block).copied().max(self.whole);
        let outdated = |block: &u32| newest(block).is_some_and(|newest| newest < change.stamp);
        match change.blocks {
            Some(blocks) if self.whole.is_some() => (blocks.first..blocks.end() as u32).any(|b| outdated(&b)),
            Some(blocks) => self.blocks.range(blocks.first..blocks.end() as u32).any(|(b, _)| outdated(b)),
            None => self.whole.is_some_and(|w| w < change.stamp) || self.blocks.keys().any(outdated),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::object::Origin;
    use proto::{Generation, Oid, Seq, Vid};

    fn stamp(seq: u64) -> Stamp {
        Stamp { generation: Generation(1), seq: Seq(seq) }
    }

    fn mark(seq: u64, blocks: Option<(u32, u32)>) -> Unsettled {
        let blocks = blocks.map(|(first, count)| BlockRange::new(first, count));
        Unsettled { vid: Vid(1), stamp: stamp(seq), origin: Origin::default(), oid: Oid(1), blocks }
    }

    #[test]
    fn a_block_is_outdated_by_what_is_newer_than_its_newest_change() {
        let mut decided = Decided::default();
        decided.note(Some(BlockRange::new(2, 2)), stamp(5));
        decided.note(Some(BlockRange::new(3, 1)), stamp(9));
        decided.note(Some(BlockRange::new(3, 1)), stamp(4));
        assert!(decided.is_outdated_by(&mark(6, Some((0, 3)))));
        assert!(!decided.is_outdated_by(&mark(6, Some((3, 5)))));
        assert!(!decided.is_outdated_by(&mark(5, Some((0, 9)))));
        assert!(decided.is_outdated_by(&mark(6, None)) && !decided.is_outdated_by(&mark(4, None)));
        decided.forget_before(stamp(9));
        assert!(!decided.has(2) && decided.has(3));
        decided.note(None, stamp(7));
        assert!(!decided.is_outdated_by(&mark(6, Some((0, 3)))) && decided.has(100));
        assert!(decided.is_outdated_by(&mark(8, Some((0, 1)))));
        assert!(!decided.is_outdated_by(&mark(8, Some((3, 1)))), "decided since");
        assert!(decided.is_outdated_by(&mark(8, None)));
    }
}
