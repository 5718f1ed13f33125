//! Pieces of objects of which in-sync copies have different checksums on record, until it is known that they are alike.
//!
//! What a pass has seen may be a change under way, so it is only a *doubt*: the VDI's owner is asked to check the piece under its lock, and to
//! make the copies alike if they are not. What that check finds counts. Nobody overwrites copies of what never changes; there no change is under way, so
//! what two checks have found is told until no check finds it any more.

use std::collections::{BTreeMap, BTreeSet};

use proto::Oid;
use proto::client::{
    ClientError, ClientReply, ClientResult, DifferingBlocks, SCRUB_DAMAGE_TOLD_MAX, ScrubStatus,
};
use proto::object::BlockRange;

use super::asks::Asks;
use super::{PIECE_BLOCKS, again_after, is_compared, name_of};
use crate::Time;
use crate::context::Context;

/// Others are found again by the next pass.
const DOUBTS_MAX: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Differences {
    doubts: BTreeMap<(Oid, u32), Doubt>,
    /// Blocks that checks have found, since the start.
    found: u64,
}

#[derive(Debug)]
struct Doubt {
    /// Where copies seemed to differ.
    blocks: BlockRange,
    state: State,
    failures: u32,
    /// What the last check has found and could not mend.
    left: Vec<BlockRange>,
    /// Another check had found it before.
    is_certain: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting(Time),
    Asked(u64),
}

impl Doubt {
    fn wait(&mut self, now: Time) {
        self.state = State::Waiting(now.after(again_after(self.failures)));
        self.failures += 1;
    }
}

impl Differences {
    /// Of one piece.
    pub fn note(&mut self, ctx: &Context, oid: Oid, differing: &BTreeSet<u32>) {
        let (Some(first), Some(last)) = (differing.first(), differing.last()) else { return };
        let key = (oid, first / PIECE_BLOCKS);
        if !is_compared(ctx, oid) || self.doubts.contains_key(&key) || self.doubts.len() >= DOUBTS_MAX {
            return;
        }
        tracing::debug!(%oid, first, last, "copies have different checksums on record");
        let blocks = BlockRange::new(*first, last - first + 1);
        let state = State::Waiting(ctx.now);
        self.doubts.insert(key, Doubt { blocks, state, failures: 0, left: Vec::new(), is_certain: false });
    }

    /// Has those checked whose turn it is.
    pub fn advance(&mut self, ctx: &mut Context, asks: &mut Asks) {
        self.doubts.retain(|(oid, _), _| is_compared(ctx, *oid));
        for ((oid, _), doubt) in &mut self.doubts {
            if matches!(doubt.state, State::Waiting(until) if until <= ctx.now)
                && let Some(ask) = asks.check(ctx, *oid, doubt.blocks)
            {
                doubt.state = State::Asked(ask);
            }
        }
    }

    pub fn handle_checked(&mut self, ctx: &Context, ask: u64, result: &ClientResult) {
        let is_it = |doubt: &&mut Doubt| doubt.state == State::Asked(ask);
        let found = self.doubts.iter_mut().map(|(key, doubt)| (*key, doubt)).find(|(_, doubt)| is_it(doubt));
        let Some((key, doubt)) = found else { return };
        let oid = key.0;
        let report = match result {
            Ok(ClientReply::Checked(report)) => report,
            // Its owner has changed.
            Err(ClientError::Busy) => return doubt.wait(ctx.now),
            _ if doubt.is_certain => return doubt.wait(ctx.now),
            // It is gone.
            _ => return drop(self.doubts.remove(&key)),
        };
        let (is_alike, is_mended) = (report.at_odds.is_empty(), report.repaired);
        let is_news = !is_alike && !doubt.is_certain && (is_mended || !doubt.left.is_empty());
        if is_news {
            self.found += count(&report.at_odds);
            let nodes: BTreeSet<String> = (report.differing.iter().map(|(node, _)| node))
                .chain(&report.missing)
                .map(|node| node.to_string())
                .collect();
            tracing::error!(
                vdi = %String::from_utf8_lossy(&name_of(ctx, oid)), %oid, blocks = ?report.at_odds, ?nodes, is_mended,
                "copies of blocks differed though each passes its checksum"
            );
            doubt.is_certain = true;
        }
        if is_alike || is_mended {
            if !is_news && doubt.is_certain {
                tracing::info!(%oid, "copies that differed are alike again");
            }
            self.doubts.remove(&key);
        } else {
            doubt.left.clone_from(&report.at_odds);
            doubt.wait(ctx.now);
        }
    }

    pub fn add_to(&self, ctx: &Context, status: &mut ScrubStatus) {
        let certain = || self.doubts.iter().filter(|(_, doubt)| doubt.is_certain);
        let told = certain().flat_map(|((oid, _), doubt)| {
            let told =
                |blocks: &BlockRange| DifferingBlocks { vdi: name_of(ctx, *oid), oid: *oid, blocks: *blocks };
            doubt.left.iter().map(told)
        });
        status.differed = self.found;
        status.differing = certain().map(|(_, doubt)| count(&doubt.left)).sum();
        status.told_differing = told.take(SCRUB_DAMAGE_TOLD_MAX).collect();
    }
}

fn count(runs: &[BlockRange]) -> u64 {
    runs.iter().map(|run| u64::from(run.count)).sum()
}
