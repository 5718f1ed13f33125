//! A node whose disk has failed: what becomes of that which the disk was ordered to do, and how the others hear of it.

use proto::cluster::Action;
use proto::object::{ObjectReply, StoreFailure};

use super::Node;
use crate::Time;
use crate::catchup::CatchUp;
use crate::context::{ProposalUse, StoreUse};

impl Node {
    /// The disk has failed, for the rest of this life: the store answers nothing but `DiskFailed`. The node goes on as a gateway and has the cluster
    /// repair its copies elsewhere.
    pub fn handle_disk_failed(&mut self, now: Time) {
        if self.halted || self.disk_failed {
            return;
        }
        self.disk_failed = true;
        // Nothing of it may be finished: what was given to the store may be lost.
        self.catch_up = CatchUp::default();
        self.scrub.stop();
        // What came before the format is not removed, so the format is not remembered either.
        self.wiping = false;
        self.tell_disk_failed(now);
        self.unpark(now);
        self.settle_down(now);
    }

    pub(super) fn tell_disk_failed(&mut self, now: Time) {
        if self.disk_failed && self.incarnation.is_some() {
            let action = Action::DiskFailed { store_id: self.store_id };
            self.with(now, |_, ctx| ctx.propose(action, ProposalUse::DiskFailed));
        }
    }

    /// What becomes of an order that a failed disk did not carry out, or may not have.
    ///
    /// Whoever asked for a copy is not answered: neither yes nor no would be true for sure, and until the view has let go of
    /// the copy (then he is told to look at it) he waits for it as for one that is down. So nothing is acknowledged without this copy while it
    /// counts, no seal ends without it, and no client hears of an error where other copies can serve.
    pub(super) fn without_disk(&mut self, purpose: StoreUse, now: Time) {
        self.with(now, |node, ctx| match purpose {
            // Sweeps end: what is left on the disk is swept when it comes back, as after any absence.
            StoreUse::SweepList { job } => drop(node.sweeps.handle_listed(ctx, job, Vec::new())),
            StoreUse::SweepDelete { job } => node.sweeps.handle_deleted(ctx, job),
            StoreUse::Client { request } => {
                let reply = ObjectReply::Failed(StoreFailure::DiskFailed);
                node.gateway.handle_store(ctx, request, reply);
            }
            // The copy that catches up leaves this source when it hears of the failure.
            StoreUse::Fetch { fetch } => node.replica.end_fetch(fetch),
            StoreUse::Change { .. }
            | StoreUse::Forgotten { .. }
            | StoreUse::Answer { .. }
            | StoreUse::AnswerScrub { .. }
            | StoreUse::ListFor { .. }
            | StoreUse::OwnList { .. }
            | StoreUse::OwnLength(_)
            | StoreUse::OwnBlock { .. }
            | StoreUse::Backfill { .. }
            | StoreUse::Scrub(_)
            | StoreUse::Wiped
            | StoreUse::Forget => {}
        });
    }
}
