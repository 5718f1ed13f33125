//! One piece of an object as the in-sync copies have it on record: no copy reads anything for it that the pass does not read anyway.
//!
//! The first in-sync copy that is up asks all others, so each object is compared by one sheep. What it lacks it does not come upon: so the others
//! ask it whether it has the object at all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::checksum::ZERO_BLOCK_CRC;
use proto::object::{BlockRange, Verified};
use proto::peer::{CHECKSUMS_MAX, PeerReply, PeerRequest};
use proto::{NodeId, Oid};

use super::PIECE_BLOCKS;
use crate::Time;
use crate::context::{Context, Purpose};

const _: () = assert!(PIECE_BLOCKS <= CHECKSUMS_MAX);
/// A copy that has not answered by then is compared in the next pass.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Comparison {
    pub oid: Oid,
    number: u64,
    blocks: BlockRange,
    begun: Time,
    /// Only whether they have the object is asked.
    is_about_existence: bool,
    own: Option<Verified>,
    /// With the calls.
    awaited: BTreeMap<NodeId, u64>,
    told: Vec<Recorded>,
}

#[derive(Debug, PartialEq, Eq)]
enum Recorded {
    Absent,
    /// Up to the last block ever written.
    Checksums(Vec<u32>),
}

impl Comparison {
    /// `None`: there is nothing for this sheep to compare. `is_lacked`: the first copy has said that it lacks the object.
    pub fn begin(
        ctx: &mut Context,
        number: u64,
        oid: Oid,
        blocks: BlockRange,
        is_lacked: bool,
    ) -> Option<Comparison> {
        let pg_id = ctx.view.pg_of(oid)?;
        let pg = ctx.view.pg(pg_id)?;
        let mut copies = pg.in_sync.iter().copied().filter(|node| ctx.view.is_up(*node));
        let first = copies.next()?;
        let is_first = first == ctx.me;
        let others: Vec<NodeId> = match is_first {
            true => copies.collect(),
            false if is_lacked || blocks.first == 0 => vec![first],
            false => Vec::new(),
        };
        if others.is_empty() {
            return None;
        }
        let is_about_existence = !is_first && !is_lacked;
        let asked = if is_about_existence { BlockRange::new(0, 0) } else { blocks };
        let body = PeerRequest::Checksums { pg: pg_id, since: pg.since, oid, blocks: asked };
        let purpose = Purpose::Recorded { comparison: number };
        let mut ask = |node| (node, ctx.call(node, body.clone(), purpose.clone()));
        let awaited = others.into_iter().map(&mut ask).collect();
        let (own, told, begun) = (None, Vec::new(), ctx.now);
        Some(Comparison { oid, number, blocks, begun, is_about_existence, own, awaited, told })
    }

    pub fn is_of(&self, oid: Oid, blocks: BlockRange) -> bool {
        (self.oid, self.blocks) == (oid, blocks)
    }

    /// What this sheep's own copy has.
    pub fn handle_own(&mut self, own: Verified) {
        self.own = Some(own);
    }

    pub fn handle_recorded(&mut self, number: u64, from: NodeId, reply: PeerReply) {
        if number != self.number || self.awaited.remove(&from).is_none() {
            return;
        }
        match reply {
            PeerReply::Absent => self.told.push(Recorded::Absent),
            PeerReply::Checksums(checksums) if checksums.len() <= self.blocks.count as usize => {
                self.told.push(Recorded::Checksums(checksums));
            }
            // It does not count any more, or has lost what it had on record.
            _ => {}
        }
    }

    /// Does not wait any longer for copies that are down or slow.
    pub fn give_up_late(&mut self, ctx: &mut Context) {
        let is_over = ctx.now.since(self.begun) >= PATIENCE;
        let late = self.awaited.extract_if(.., |node, _| is_over || !ctx.view.is_up(*node));
        let calls: Vec<u64> = late.map(|(_, call)| call).collect();
        calls.iter().for_each(|call| drop(ctx.out.calls.remove(call)));
    }

    pub fn cancel(self, ctx: &mut Context) {
        self.awaited.values().for_each(|call| drop(ctx.out.calls.remove(call)));
    }

    pub fn is_complete(&self) -> bool {
        self.own.is_some() && self.awaited.is_empty()
    }

    /// Does the first copy lack what this one has?
    pub fn is_lacked(&self) -> bool {
        self.is_about_existence && self.told.contains(&Recorded::Absent)
    }

    /// Blocks of which other copies have another checksum, where this one can read its own. What is absent or was never written is zeros.
    pub fn differing(&self) -> BTreeSet<u32> {
        let Some(own) = &self.own else { return BTreeSet::new() };
        let zeros = Vec::new();
        let others: Vec<&Vec<u32>> = self
            .told
            .iter()
            .filter_map(|told| match told {
                Recorded::Absent => Some(&zeros),
                Recorded::Checksums(_) if self.is_about_existence => None,
                Recorded::Checksums(checksums) => Some(checksums),
            })
            .collect();
        let differs = |at: usize, crc: u32| {
            others.iter().any(|other| other.get(at).copied().unwrap_or(ZERO_BLOCK_CRC) != crc)
        };
        (self.blocks.first..)
            .zip(own.checksums.iter().enumerate())
            .filter(|(block, (at, crc))| differs(*at, **crc) && !own.is_damaged(*block))
            .map(|(block, _)| block)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(own: &[u32], damaged: &[u32], told: Vec<Recorded>) -> Vec<u32> {
        let damaged = proto::object::runs_of(damaged.iter().copied());
        let comparison = Comparison {
            oid: Oid(1),
            number: 1,
            blocks: BlockRange::new(8, own.len() as u32),
            begun: Time(0),
            is_about_existence: false,
            own: Some(Verified { checksums: own.to_vec(), damaged, read_bytes: 0 }),
            awaited: BTreeMap::new(),
            told,
        };
        comparison.differing().into_iter().collect()
    }

    #[test]
    fn what_is_absent_or_shorter_has_zeros_and_what_cannot_be_read_says_nothing() {
        let zero = ZERO_BLOCK_CRC;
        let same = || Recorded::Checksums(vec![1, 2]);
        assert_eq!(compare(&[1, 2, zero], &[], vec![same(), same()]), []);
        assert_eq!(compare(&[1, 2, 3], &[], vec![same()]), [10]);
        assert_eq!(compare(&[1, 7, zero], &[], vec![same()]), [9]);
        assert_eq!(compare(&[1, 7, zero], &[9], vec![same()]), []);
        assert_eq!(compare(&[1, zero, 3], &[], vec![Recorded::Absent]), [8, 10]);
        assert_eq!(compare(&[zero; 3], &[], vec![Recorded::Absent]), []);
        assert_eq!(compare(&[1, 2], &[], vec![same(), Recorded::Checksums(vec![1, 3])]), [9]);
    }
}
