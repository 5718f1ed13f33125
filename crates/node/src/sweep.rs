//! Removes objects that this node has no use for.
//!
//! Deleting is safe in three cases only: the VDI is deleted and nobody refers to the object (see [`crate::reclaim`]; the view
//! keeps the vid as a tombstone for ever, so nothing will refer to it again); the node is no copy of the object's PG any more and every copy that should exist is
//! in sync; or the cluster has been formatted anew. What is garbage is decided by the view at the moment of deleting.

use std::collections::BTreeMap;

use proto::object::{Change, ObjectInfo, ObjectOp};
use proto::peer::PeerReply;
use proto::{NodeId, ObjectKind, Oid, Vid};

use crate::context::{Context, StoreUse};
use crate::index_set::runs_contain;

const PAGE: u32 = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sweep {
    /// Everything: the objects are of an earlier format.
    Wipe,
    Garbage,
    /// Objects of a deleted VDI.
    Purge(Vid),
}

#[derive(Debug, Default)]
pub(crate) struct Sweeps {
    next_job: u64,
    jobs: BTreeMap<u64, Job>,
}

#[derive(Debug)]
struct Job {
    sweep: Sweep,
    /// Ranges still to be listed; the last one is under way.
    ranges: Vec<(Oid, Oid)>,
    deletes: usize,
    listing: bool,
    /// What a purge leaves: data objects in runs (first index, count), and the block table.
    keep: Vec<(u32, u32)>,
    keep_table: bool,
    /// Who waits for the end.
    told: Vec<(NodeId, u64)>,
}

impl Sweeps {
    pub fn start(&mut self, ctx: &mut Context, sweep: Sweep, told: Option<(NodeId, u64)>) {
        self.next_job += 1;
        let ranges = match sweep {
            Sweep::Wipe | Sweep::Garbage => vec![(Oid(0), Oid(u64::MAX))],
            Sweep::Purge(_) => unreachable!("by `purge`"),
        };
        let job = Job {
            sweep,
            ranges,
            deletes: 0,
            listing: false,
            keep: Vec::new(),
            keep_table: false,
            told: told.into_iter().collect(),
        };
        self.jobs.insert(self.next_job, job);
        self.list_next(ctx, self.next_job);
    }

    /// Removes a deleted VDI's objects but for those that others refer to. See [`proto::peer::PeerRequest::Purge`].
    pub fn purge(
        &mut self,
        ctx: &mut Context,
        vid: Vid,
        indexes: (u32, u32),
        keep: Vec<(u32, u32)>,
        keep_table: bool,
        told: Option<(NodeId, u64)>,
    ) {
        self.next_job += 1;
        let (first, last) = indexes;
        let mut ranges = vec![(Oid::data(vid, first), Oid::data(vid, last))];
        if first == 0 {
            ranges.extend(
                Oid::ranges_of(vid).into_iter().filter(|(oid, _)| oid.kind() != Some(ObjectKind::Data)),
            );
        }
        let job = Job {
            sweep: Sweep::Purge(vid),
            ranges,
            deletes: 0,
            listing: false,
            keep,
            keep_table,
            told: told.into_iter().collect(),
        };
        self.jobs.insert(self.next_job, job);
        self.list_next(ctx, self.next_job);
    }

    pub fn is_running(&self, sweep: Sweep) -> bool {
        self.jobs.values().any(|job| job.sweep == sweep)
    }

    fn list_next(&mut self, ctx: &mut Context, id: u64) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        match job.ranges.last() {
            Some((first, last)) => {
                job.listing = true;
                ctx.store(
                    ObjectOp::List { first: *first, last: *last, limit: PAGE },
                    StoreUse::SweepList { job: id },
                );
            }
            None => self.end_if_done(ctx, id),
        }
    }

    /// Returns what is being deleted.
    pub fn handle_listed(&mut self, ctx: &mut Context, id: u64, objects: Vec<ObjectInfo>) -> Vec<Oid> {
        let Some(job) = self.jobs.get_mut(&id) else { return Vec::new() };
        job.listing = false;
        let (_, last) = job.ranges.pop().expect("a range was being listed");
        if objects.len() >= PAGE as usize
            && let Some(next) = objects.last().and_then(|o| o.oid.0.checked_add(1))
        {
            job.ranges.push((Oid(next), last));
        }
        let doomed = |oid: Oid| match (job.sweep, oid.kind()) {
            (Sweep::Wipe, _) => true,
            (Sweep::Garbage, _) => ctx.view.is_garbage(ctx.me, oid),
            (Sweep::Purge(_), Some(ObjectKind::Data)) => !runs_contain(&job.keep, oid.index()),
            (Sweep::Purge(_), Some(ObjectKind::Inode | ObjectKind::BTree)) => !job.keep_table,
            (Sweep::Purge(_), _) => true,
        };
        let doomed: Vec<Oid> = objects.iter().map(|o| o.oid).filter(|oid| doomed(*oid)).collect();
        for oid in &doomed {
            job.deletes += 1;
            let op =
                ObjectOp::Change { oid: *oid, change: Change::Delete, data: Default::default(), tag: None };
            ctx.store(op, StoreUse::SweepDelete { job: id });
        }
        if job.deletes == 0 {
            self.list_next(ctx, id);
        }
        doomed
    }

    pub fn handle_deleted(&mut self, ctx: &mut Context, id: u64) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.deletes -= 1;
        if job.deletes == 0 && !job.listing {
            self.list_next(ctx, id);
        }
    }

    fn end_if_done(&mut self, ctx: &mut Context, id: u64) {
        if self.jobs.get(&id).is_some_and(|job| job.deletes == 0 && !job.listing && job.ranges.is_empty()) {
            let job = self.jobs.remove(&id).expect("just seen");
            for (to, call) in job.told {
                ctx.reply(to, call, PeerReply::Done);
            }
        }
    }
}
