//! A part of an object: all of it, or a set of its blocks.

use proto::object::BlockRange;

use crate::index_set::IndexSet;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    Whole,
    Blocks(IndexSet),
}

impl Default for Extent {
    fn default() -> Extent {
        Extent::Blocks(IndexSet::default())
    }
}

impl Extent {
    pub fn of(blocks: Option<BlockRange>) -> Extent {
        let mut extent = Extent::default();
        match blocks {
            Some(blocks) => extent.add(blocks),
            None => extent = Extent::Whole,
        }
        extent
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, Extent::Blocks(set) if set.is_empty())
    }

    pub fn add(&mut self, blocks: BlockRange) {
        if let Extent::Blocks(set) = self {
            (blocks.first..blocks.end() as u32).for_each(|block| set.insert(block));
        }
    }

    pub fn unite(&mut self, other: &Extent) {
        match other {
            Extent::Whole => *self = Extent::Whole,
            Extent::Blocks(set) => {
                set.runs().into_iter().for_each(|(first, count)| self.add(BlockRange::new(first, count)))
            }
        }
    }

    /// The first run at or after `from` and before `end`. Its first block, and one past its last.
    pub fn next_run(&self, from: u32, end: u32) -> Option<(u32, u32)> {
        match self {
            Extent::Whole => (from < end).then_some((from, end)),
            Extent::Blocks(set) => {
                let (first, after) = set.next_run(from)?;
                (first < end).then_some((first, after.min(end)))
            }
        }
    }

    /// As runs, at most so many: beyond, one that covers all. None stands for the whole.
    pub fn ranges(&self, max: usize) -> Vec<BlockRange> {
        let Extent::Blocks(set) = self else { return Vec::new() };
        let runs = set.runs();
        match (runs.first(), runs.last()) {
            (Some(first), Some(last)) if runs.len() > max => {
                vec![BlockRange::new(first.0, last.0 + last.1 - first.0)]
            }
            _ => runs.into_iter().map(|(first, count)| BlockRange::new(first, count)).collect(),
        }
    }

    /// The opposite of [`Extent::ranges`].
    pub fn from_ranges(ranges: &[BlockRange]) -> Extent {
        match ranges {
            [] => Extent::Whole,
            ranges => {
                let mut extent = Extent::default();
                ranges.iter().for_each(|blocks| extent.add(*blocks));
                extent
            }
        }
    }
}
