//! Blocks of this node's own copies that were found damaged, until they are not any more.
//!
//! They are mended as by `dog vdi check`: the VDI's owner is asked to check these blocks, or a reader if the VDI never changes. Whatever is
//! answered, what counts is what the store says then. A block that no copy can give is asked for again ever more rarely: a copy may come back. If
//! it is written anew, the own store is asked at once.

use std::collections::{BTreeMap, BTreeSet};

use proto::Oid;
use proto::client::{ClientReply, ClientResult, DamagedBlocks, SCRUB_DAMAGE_TOLD_MAX, ScrubStatus};
use proto::object::{BlockRange, ObjectOp, ObjectReply, runs_of};

use super::asks::Asks;
use super::{PIECE_BLOCKS, ScrubUse, again_after, is_counted, name_of};
use crate::Time;
use crate::context::{Context, StoreUse};

/// Blocks that are remembered: a disk that has more of them will be replaced. Others are found again by the next pass.
const BLOCKS_MAX: u64 = 4096;

#[derive(Debug, Default)]
pub(super) struct Finds {
    pieces: BTreeMap<(Oid, u32), Find>,
    /// Blocks in `pieces`.
    count: u64,
    found: u64,
    mended: u64,
}

#[derive(Debug)]
struct Find {
    blocks: BTreeSet<u32>,
    state: State,
    failures: u32,
    /// No copy could give them.
    is_lost: bool,
    /// Some of them have been written since it was looked last.
    is_rewritten: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Until then.
    Waiting(Time),
    Asked(u64),
    /// By the store, whether they are still damaged; the owner has checked them.
    Verified,
    /// As above, but nobody has checked them: if they are, it goes on waiting.
    Looked {
        until: Time,
    },
}

impl Find {
    /// Has the store say whether they are still damaged.
    fn verify(&self, ctx: &mut Context, oid: Oid, piece: u32) {
        let (first, last) = (self.blocks.first(), self.blocks.last());
        let (first, last) = (first.copied().unwrap_or(0), last.copied().unwrap_or(0));
        let blocks = BlockRange::new(first, last - first + 1);
        let purpose = StoreUse::Scrub(ScrubUse::Again { oid, piece, blocks });
        ctx.store(ObjectOp::Verify { oid, blocks, pass: 0 }, purpose);
    }
}

impl Finds {
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Takes down what is not known yet, and says so once.
    pub fn note(&mut self, ctx: &Context, disk: u64, oid: Oid, blocks: impl IntoIterator<Item = u32>) {
        if !is_counted(ctx, oid) {
            return;
        }
        for block in blocks {
            let key = (oid, block / PIECE_BLOCKS);
            let is_known = self.pieces.get(&key).is_some_and(|find| find.blocks.contains(&block));
            if is_known || self.count >= BLOCKS_MAX {
                continue;
            }
            tracing::error!(
                vdi = %String::from_utf8_lossy(&name_of(ctx, oid)), %oid, block, node = %ctx.me, disk = format!("{disk:016x}"),
                "a block does not match its checksum or cannot be read; it is mended from another copy if one is good"
            );
            let fresh = || Find {
                blocks: BTreeSet::new(),
                state: State::Waiting(ctx.now),
                failures: 0,
                is_lost: false,
                is_rewritten: false,
            };
            self.pieces.entry(key).or_insert_with(fresh).blocks.insert(block);
            self.count += 1;
            self.found += 1;
        }
    }

    /// Has some mended whose turn it is.
    pub fn advance(&mut self, ctx: &mut Context, asks: &mut Asks) {
        let gone: Vec<(Oid, u32)> =
            self.pieces.keys().copied().filter(|(oid, _)| !is_counted(ctx, *oid)).collect();
        for key in gone {
            let find = self.pieces.remove(&key).expect("from the keys");
            self.count -= find.blocks.len() as u64;
        }
        for ((oid, _), find) in &mut self.pieces {
            if matches!(find.state, State::Waiting(until) if until <= ctx.now)
                && let (Some(first), Some(last)) = (find.blocks.first(), find.blocks.last())
                && let Some(ask) = asks.check(ctx, *oid, BlockRange::new(*first, last - first + 1))
            {
                find.state = State::Asked(ask);
            }
        }
        self.look(ctx);
    }

    pub fn handle_checked(&mut self, ctx: &mut Context, ask: u64, result: &ClientResult) {
        let is_it = |find: &&mut Find| find.state == State::Asked(ask);
        let found = self.pieces.iter_mut().map(|(key, find)| (*key, find)).find(|(_, find)| is_it(find));
        let Some(((oid, piece), find)) = found else { return };
        find.is_lost = matches!(result, Ok(ClientReply::Checked(report)) if !report.lost.is_empty());
        tracing::debug!(%oid, ?result, "damaged blocks were checked");
        find.state = State::Verified;
        find.verify(ctx, oid, piece);
    }

    /// Looks at lost blocks that have been written since.
    fn look(&mut self, ctx: &mut Context) {
        for (oid, blocks) in ctx.out.rewritten.take() {
            let pieces = self.pieces.range_mut((oid, 0)..=(oid, u32::MAX));
            let hit =
                |find: &Find| find.blocks.range(blocks.first..).next().is_some_and(|b| blocks.contains(*b));
            pieces.filter(|(_, find)| hit(find)).for_each(|(_, find)| find.is_rewritten = true);
        }
        for ((oid, piece), find) in &mut self.pieces {
            if find.is_rewritten
                && let State::Waiting(until) = find.state
            {
                find.is_rewritten = false;
                find.state = State::Looked { until };
                find.verify(ctx, *oid, *piece);
            }
        }
        let lost = self.pieces.iter().filter(|(_, find)| find.is_lost);
        ctx.out.rewritten.watch(lost.map(|((oid, _), _)| *oid));
    }

    /// What the store says of these now, which may be fewer than are known by now.
    pub fn handle_verified(
        &mut self,
        ctx: &Context,
        disk: u64,
        (oid, piece): (Oid, u32),
        asked: BlockRange,
        reply: ObjectReply,
    ) {
        let Some(find) = self.pieces.get_mut(&(oid, piece)) else { return };
        let ObjectReply::Verified(verified) = reply else {
            // The object is gone.
            self.count -= find.blocks.len() as u64;
            self.pieces.remove(&(oid, piece));
            return;
        };
        let damaged: BTreeSet<u32> =
            verified.damaged.iter().flat_map(|run| run.first..run.end() as u32).collect();
        let before = find.blocks.len() as u64;
        find.blocks.retain(|block| damaged.contains(block) || !asked.contains(*block));
        let mended = before - find.blocks.len() as u64;
        self.mended += mended;
        self.count -= mended;
        if find.blocks.is_empty() {
            self.pieces.remove(&(oid, piece));
            tracing::info!(%oid, blocks = mended, "damaged blocks are whole again");
        } else if let State::Looked { until } = find.state {
            find.state = State::Waiting(until);
        } else {
            find.state = State::Waiting(ctx.now.after(again_after(find.failures)));
            find.failures += 1;
        }
        self.note(ctx, disk, oid, damaged);
    }

    pub fn status(&self, ctx: &Context) -> ScrubStatus {
        let told = self.pieces.iter().flat_map(|((oid, _), find)| {
            runs_of(find.blocks.iter().copied()).into_iter().map(|blocks| DamagedBlocks {
                vdi: name_of(ctx, *oid),
                oid: *oid,
                blocks,
                is_lost: find.is_lost,
            })
        });
        ScrubStatus {
            found: self.found,
            mended: self.mended,
            damaged: self.count,
            lost: self.pieces.values().filter(|f| f.is_lost).map(|f| f.blocks.len() as u64).sum(),
            told: told.take(SCRUB_DAMAGE_TOLD_MAX).collect(),
            ..ScrubStatus::default()
        }
    }
}
