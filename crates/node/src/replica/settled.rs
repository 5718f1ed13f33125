//! What copies hear of changes that are settled, and forget.
//!
//! Mostly everything up to some number is. Where something older has to be remembered still, a gateway's request for instance whose answer
//! nobody has confirmed, what was settled *around* it is told by number, with the exceptions. Nobody relies on the marks of a VDI being gapless:
//! where copies differ, a seal copies from one in sync, which has all that is settled, so what it brings along of a forgotten change is
//! what all others have of it.

use std::collections::BTreeSet;

use proto::object::{AMENDED_MAX, ObjectOp, Stamp, Unsettled};
use proto::peer::PINNED_MAX;
use proto::{Generation, Seq, Vid};

use super::{Entry, Replica};
use crate::context::{Context, StoreUse};
use crate::session::FIRST_SEQ;

/// Changes of one generation that are settled though something older is not.
#[derive(Debug, Default)]
pub(super) struct Around {
    generation: Generation,
    /// From the first one after the seal on.
    last: Seq,
    /// Of those, these are not.
    pinned: BTreeSet<Seq>,
}

impl Around {
    pub fn contains(&self, stamp: Stamp) -> bool {
        stamp.generation == self.generation
            && (FIRST_SEQ..=self.last).contains(&stamp.seq)
            && !self.pinned.contains(&stamp.seq)
    }
}

impl Replica {
    /// As [`Replica::settle`], and so that the store does not remember it again after a crash: said once, when a VDI has come to rest. What a
    /// copy remembers for nothing it would have to fetch again when it returns.
    pub(super) fn settle_for_good(&mut self, ctx: &mut Context, vid: Vid, settled: Stamp) {
        let log = self.vdis.get(&vid).filter(|log| settled > log.settled && settled.seq > Seq(0));
        let known = log.into_iter().flat_map(|log| log.unsettled.range(..=settled));
        let known = known.filter(|(_, e)| e.order.is_none()).map(|(_, e)| e.in_store());
        let forget: Vec<Unsettled> = known.take(AMENDED_MAX).collect();
        if !forget.is_empty() {
            ctx.store(ObjectOp::Amend { forget, remember: Vec::new() }, StoreUse::Forget);
        }
        self.settle(ctx, vid, settled);
    }

    /// Forgets what is settled around something that is not.
    ///
    /// Only while that generation lasts: from the next seal's first question on a copy's answer must not change under its pages. And the
    /// newest word counts: what was pinned in an older one may be settled, never the other way round.
    pub(super) fn settle_around(
        &mut self,
        ctx: &mut Context,
        vid: Vid,
        generation: Generation,
        last: Seq,
        pinned: &[Seq],
    ) {
        let is_current = ctx.view.session(vid).generation == generation;
        if !is_current || ctx.view.vdi(vid).is_none() || pinned.len() > PINNED_MAX || last < FIRST_SEQ {
            return;
        }
        let log = self.vdis.entry(vid).or_default();
        if (generation, last) < (log.around.generation, log.around.last) {
            return;
        }
        log.around = Around { generation, last, pinned: pinned.iter().copied().collect() };
        let stamp = |seq| Stamp { generation, seq };
        let around = &log.around;
        log.refused.retain(|stamp, _| !around.contains(*stamp));
        let settled = |stamp: &Stamp, _: &mut Entry| around.contains(*stamp);
        let gone: Vec<Entry> = log
            .unsettled
            .extract_if(stamp(FIRST_SEQ)..=stamp(last), settled)
            .map(|(_, entry)| entry)
            .collect();
        // What the store has not answered yet is forgotten there when it has (`handle_changed`): this copy was dropped, and
        // nobody awaits it.
        let forget: Vec<Unsettled> = gone.iter().filter(|e| e.order.is_none()).map(Entry::in_store).collect();
        for forget in forget.chunks(AMENDED_MAX) {
            let op = ObjectOp::Amend { forget: forget.to_vec(), remember: Vec::new() };
            ctx.store(op, StoreUse::Forget);
        }
    }

    /// Forgets what is known to be on all copies.
    pub fn settle(&mut self, ctx: &mut Context, vid: Vid, settled: Stamp) {
        // Sequence number 1 stands for the seal: before it, what older generations left is still needed.
        if settled.seq == Seq(0) {
            return;
        }
        let Some(log) = self.vdis.get_mut(&vid) else { return };
        if settled <= log.settled {
            return;
        }
        log.settled = settled;
        let next = Stamp { generation: settled.generation, seq: Seq(settled.seq.0.saturating_add(1)) };
        let kept = log.unsettled.split_off(&next);
        log.refused = log.refused.split_off(&next);
        // An entry may still be on its way to the disk: then this copy was dropped and nobody awaits it.
        log.unsettled = kept;
        ctx.store(ObjectOp::Settle { vid, stamp: settled }, StoreUse::Forget);
    }

    /// The last session ended with everything settled: all copies have it, so the store may forget that as well. Nobody else tells it to, if the session
    /// ended before its VDI had been at rest for long enough.
    pub fn handle_clean_close(&mut self, ctx: &mut Context, vid: Vid, generation: Generation) {
        tracing::debug!(vdi = %vid, %generation, "the session has ended with everything settled");
        self.settle_for_good(ctx, vid, Stamp { generation, seq: Seq(u64::MAX - 1) });
    }
}
