//! One piece of work of a write-back round: what is written to one slot, and what is copied there first.
//!
//! A chunk goes home into its own slot, or, if others share that, into a fresh one. There only the written blocks are needed: the
//! fresh slot is an *overlay* on the shared one, which keeps the rest. An overlay never lies on an overlay: the few blocks of
//! one that is shared are copied, and the new one lies on the same slot below. Where little is left to be had from below, that is copied too.

use buffer::aligned;
use bytes::Bytes;
use proto::{BLOCK_BYTES, Oid};

use crate::layout::SLOT_BLOCKS;
use crate::record::{Below, ChunkRef};
use crate::tables::{Tables, runs};

pub struct Job {
    pub goal: Goal,
    /// The slot that is written to.
    pub slot: u32,
    /// Written blocks that go home.
    pub blocks: Vec<HomeBlock>,
    pub copies: Vec<Copy>,
    /// Of those, what is not read yet.
    pub reads_left: usize,
    /// Blocks that were to be copied and are lost: known before, or found out by reading.
    pub lost: u16,
    /// What was to be copied could not be read, which may pass: a merge is not for it to be lost by.
    pub is_unread: bool,
    /// Its own I/O, and what may not be reused meanwhile.
    pub pins: Vec<(u32, u16)>,
}

pub enum Goal {
    /// The chunk keeps its slot.
    InPlace(Home),
    /// It moves to a fresh slot, under which `below` remains.
    Move(Home, Below),
    /// An overlay takes over what lies below it.
    Merge(Below),
}

/// The chunk that goes home, and where it lay when that was planned.
#[derive(Clone, Copy)]
pub struct Home {
    pub oid: Oid,
    pub chunk: u32,
    pub base: ChunkRef,
}

pub struct HomeBlock {
    pub index: u32,
    pub seq: u64,
    pub crc: u32,
    pub data: Bytes,
}

/// Neighbouring blocks of another slot that come to the same places of this one.
pub struct Copy {
    pub slot: u32,
    pub first: u32,
    pub count: u32,
    pub content: Option<Bytes>,
}

impl Job {
    pub fn in_place(home: Home, blocks: Vec<HomeBlock>) -> Job {
        let pins = vec![(home.base.slot, mask_of(&blocks))];
        Job {
            slot: home.base.slot,
            goal: Goal::InPlace(home),
            blocks,
            copies: Vec::new(),
            reads_left: 0,
            lost: 0,
            is_unread: false,
            pins,
        }
    }

    pub fn move_to(fresh: u32, home: Home, blocks: Vec<HomeBlock>, tables: &Tables) -> Job {
        let Home { base, .. } = home;
        let below = if base.is_hole() { Below::NONE } else { tables.below(base.slot) };
        let Layers { copied, below } = plan_layers(base, below, mask_of(&blocks));
        let mut job = Job {
            goal: Goal::Move(home, below),
            slot: fresh,
            blocks,
            copies: Vec::new(),
            reads_left: 0,
            lost: 0,
            is_unread: false,
            pins: Vec::new(),
        };
        if !base.is_hole() {
            // Also where nothing is copied: the slot keeps its meaning until the round ends.
            job.pins.push((base.slot, base.mask));
        }
        copied.into_iter().for_each(|part| job.copy(part, tables));
        job
    }

    pub fn merge(overlay: u32, tables: &Tables) -> Job {
        let below = tables.below(overlay);
        let pins = vec![(overlay, below.mask)];
        let mut job = Job {
            goal: Goal::Merge(below),
            slot: overlay,
            blocks: Vec::new(),
            copies: Vec::new(),
            reads_left: 0,
            lost: 0,
            is_unread: false,
            pins,
        };
        job.copy(below, tables);
        job
    }

    fn copy(&mut self, from: Below, tables: &Tables) {
        let lost = tables.lost(from.slot) & from.mask;
        self.lost |= lost;
        let parts = runs(from.mask & !lost);
        self.copies.extend(parts.map(|(first, count)| Copy { slot: from.slot, first, count, content: None }));
        self.reads_left = self.copies.len();
        self.pins.push((from.slot, from.mask));
    }

    /// The chunk on its way home; a merge is no object's.
    pub fn home(&self) -> Option<&Home> {
        match &self.goal {
            Goal::InPlace(home) | Goal::Move(home, _) => Some(home),
            Goal::Merge(_) => None,
        }
    }

    pub fn is_move(&self) -> bool {
        matches!(self.goal, Goal::Move(..))
    }

    /// Blocks that are in `slot` when the job is done, be they lost.
    pub fn own(&self) -> u16 {
        let copied = self.copies.iter().fold(0, |m, c| m | crate::tables::run_mask(c.first, c.count));
        mask_of(&self.blocks) | copied | self.lost
    }

    /// What is written: (first block, content), neighbours together.
    pub fn writes(&self) -> Vec<(u32, Vec<Bytes>)> {
        let mut content: [Option<Bytes>; SLOT_BLOCKS as usize] = Default::default();
        for Copy { first, content: bytes, .. } in &self.copies {
            for (i, at) in (0..bytes.as_ref().map_or(0, Bytes::len)).step_by(BLOCK_BYTES).enumerate() {
                content[*first as usize + i] = bytes.as_ref().map(|bytes| bytes.slice(at..at + BLOCK_BYTES));
            }
        }
        for block in &self.blocks {
            content[block.index as usize] = Some(block.data.clone());
        }
        let present = content.iter().enumerate().filter(|(_, c)| c.is_some()).fold(0, |m, (i, _)| m | 1 << i);
        let take = |i: u32| aligned(content[i as usize].as_ref().expect("present"));
        runs(present).map(|(first, count)| (first, (first..first + count).map(take).collect())).collect()
    }
}

fn mask_of(blocks: &[HomeBlock]) -> u16 {
    blocks.iter().fold(0, |m, b| m | 1 << b.index)
}

/// Where the blocks of a chunk come to lie that moves to a fresh slot.
#[derive(Debug, PartialEq)]
struct Layers {
    copied: Vec<Below>,
    below: Below,
}

/// `below`: what lies below the slot that the chunk has now.
fn plan_layers(base: ChunkRef, below: Below, written: u16) -> Layers {
    let rest = base.mask & !written;
    let upper = Below { slot: base.slot, mask: rest }.only(!below.mask);
    let lower = below.only(rest);
    // A plain slot is the one below itself.
    let (copied, left) = if below.is_none() { (Below::NONE, upper) } else { (upper, lower) };
    let is_most = (written | copied.mask).count_ones() > SLOT_BLOCKS / 2;
    let (copied, below) = if is_most { (vec![copied, left], Below::NONE) } else { (vec![copied], left) };
    Layers { copied: copied.into_iter().filter(|part| !part.is_none()).collect(), below }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(base: u16, below: u16, written: u16, copied: &[(u32, u16)], left: (u32, u16)) {
        let part = |(slot, mask)| Below { slot, mask };
        let base = ChunkRef { slot: 1, mask: base };
        let below = Below { slot: 2, mask: 0xffff }.only(below);
        let copied = copied.iter().copied().map(part).collect();
        let expected = Layers { copied, below: part(left).only(0xffff) };
        assert_eq!(plan_layers(base, below, written), expected);
    }

    #[test]
    fn only_the_blocks_of_an_overlay_are_copied_and_the_rest_if_it_is_little() {
        check(0xffff, 0, 0x0001, &[], (1, 0xfffe));
        check(0x00ff, 0, 0x0101, &[], (1, 0x00fe));
        check(0x0001, 0, 0x0001, &[], (0, 0));
        check(0xffff, 0, 0x01ff, &[(1, 0xfe00)], (0, 0));
        check(0xffff, 0xfffc, 0x0001, &[(1, 0x0002)], (2, 0xfffc));
        check(0xffff, 0xfffc, 0x0004, &[(1, 0x0003)], (2, 0xfff8));
        check(0xffff, 0xff00, 0x0100, &[(1, 0x00ff), (2, 0xfe00)], (0, 0));
        check(0x0003, 0x0002, 0x0002, &[(1, 0x0001)], (0, 0));
        check(0x000f, 0xff00, 0x0100, &[(1, 0x000f)], (0, 0));
    }
}
