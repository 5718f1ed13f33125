//! Gives back what deleted VDIs leave behind, and nothing that others still need.
//!
//! A data object of a deleted VDI is needed as long as the table of a VDI that descends from it names it, as owner or as base.
//! Once a VDI is deleted nothing can begin to refer to it: it can be neither cloned nor snapshotted, and a table that is taken over
//! names no more than the one it comes from. So what the tables name only shrinks, and a list of what to keep
//! stays safe however late a member acts on it. Tables of working VDIs are asked of their owners, who
//! count changes that are not settled as what they were and as what they will be.
//!
//! A job is started for a VDI when it is deleted, when a table somewhere stops to refer to it, when a session has been sealed whose
//! VDI stands on it (the owner before may not have lived to tell of what it let go of), and by the first member
//! whenever members come or go: so what a crash interrupted is taken up again. What is wanted while a job reads tables is looked at once more after
//! it: the job may have seen what has been let go of since. When nothing is kept on any member that is up
//! the VDI is gone ([`crate::view::Life::Gone`]); members that are down drop the rest when they come back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proto::client::{ClientOp, ClientReply, ClientResult, VdiOp};
use proto::cluster::Action;
use proto::object::Origin;
use proto::peer::PeerRequest;
use proto::{NodeId, RequestId, Vid};

use crate::Time;
use crate::context::{Context, ProposalUse, Purpose};
use crate::index_set::IndexSet;
use crate::session::{Inner, Request, Requester};
use crate::view::Life;

/// References that were dropped are looked at together.
const GATHER: Duration = Duration::from_millis(500);
/// Tables asked at the same time.
const ASKED_MAX: usize = 8;
/// Runs of kept objects in one message: some hundred kilobytes.
const RUNS_MAX: usize = 1 << 16;

#[derive(Debug, Default)]
pub(crate) struct Reclaim {
    next_job: u64,
    jobs: BTreeMap<u64, Job>,
    wanted: BTreeSet<Vid>,
    due: Option<Time>,
    /// To be done anew at the next tick, with those who wait.
    failed: Vec<(Vid, Vec<RequestId>)>,
}

#[derive(Debug)]
struct Job {
    top: Vid,
    /// The deleted VDI it is for, and those that are deleted and descend from it through deleted ones.
    subjects: BTreeSet<Vid>,
    /// Tables to be read, and from which index on.
    todo: VecDeque<(Vid, u32)>,
    asked: BTreeMap<u64, Vid>,
    next_ask: u64,
    kept: BTreeMap<Vid, Kept>,
    /// Of deleted VDIs: objects that have their rest in another's.
    partial: BTreeMap<Vid, Vec<(u32, Vid)>>,
    /// In whose objects the tables of deleted VDIs lie.
    stored: BTreeMap<Vid, BTreeSet<Vid>>,
    /// Answers that are awaited.
    purging: BTreeMap<Vid, BTreeMap<NodeId, usize>>,
    started: bool,
    told: Vec<RequestId>,
}

/// What is needed of one VDI.
#[derive(Debug, Default)]
struct Kept {
    indexes: IndexSet,
    table: bool,
}

impl Kept {
    fn is_nothing(&self) -> bool {
        self.indexes.is_empty() && !self.table
    }
}

impl Reclaim {
    /// A table has stopped to refer to these, or they may have been left by a crash.
    pub fn want(&mut self, now: Time, vids: impl IntoIterator<Item = Vid>) {
        self.wanted.extend(vids);
        if !self.wanted.is_empty() {
            self.due.get_or_insert(now.after(GATHER));
        }
    }

    pub fn handle_tick(&mut self, ctx: &mut Context) {
        let unreferenced = std::mem::take(&mut ctx.out.unreferenced);
        self.want(ctx.now, unreferenced);
        let older = self.next_job;
        for (top, told) in std::mem::take(&mut self.failed) {
            self.begin(ctx, top, told);
        }
        if self.due.is_none_or(|at| ctx.now < at) {
            return;
        }
        self.due = None;
        let mut later = Vec::new();
        for vid in std::mem::take(&mut self.wanted) {
            if ctx.view.vdis().get(&vid).is_none_or(|v| v.life != Life::Remains) {
                continue;
            }
            let mut reading = self.jobs.iter().filter(|(_, job)| !job.started && job.subjects.contains(&vid));
            match reading.next_back().map(|(id, _)| *id) {
                None => self.start(ctx, vid, None),
                // It has asked nobody yet.
                Some(id) if id > older => {}
                // It may have read that table while that still referred to the object, and will keep it. One job after another is
                // enough: the next one finds all that becomes free meanwhile.
                Some(_) => later.push(vid),
            }
        }
        self.want(ctx.now, later);
    }

    /// Reclaims what nothing refers to of `vid` and of what is deleted around it, then tells the client.
    pub fn start(&mut self, ctx: &mut Context, vid: Vid, request: Option<RequestId>) {
        let top = ctx.view.topmost_deleted(vid);
        self.begin(ctx, top, request.into_iter().collect());
    }

    fn begin(&mut self, ctx: &mut Context, top: Vid, told: Vec<RequestId>) {
        self.next_job += 1;
        let id = self.next_job;
        self.jobs.insert(id, Job::new(ctx, top, told));
        self.advance(ctx, id);
    }

    fn advance(&mut self, ctx: &mut Context, id: u64) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        while job.asked.len() < ASKED_MAX
            && let Some((vid, first)) = job.todo.pop_front()
        {
            job.next_ask += 1;
            job.asked.insert(job.next_ask, vid);
            let requester = Requester::Reclaim { job: id, ask: job.next_ask };
            let op = ClientOp::Vdi(VdiOp::Table { vid, first });
            ctx.out.inner.push_back(Inner::Ask(Request { requester, origin: Origin::default(), op }));
        }
        if job.asked.is_empty() && !job.started {
            job.started = true;
            job.purge(ctx, id);
        }
        self.end_if_done(ctx, id);
    }

    pub fn handle_table(&mut self, ctx: &mut Context, id: u64, ask: u64, result: ClientResult) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(vid) = job.asked.remove(&ask) else { return };
        match result {
            Ok(ClientReply::Table(table)) => job.take_in(ctx, vid, table),
            // It has been deleted meanwhile, or frozen, or its owner changed: everything is looked at anew.
            _ => {
                let old = self.jobs.remove(&id).expect("just seen");
                self.failed.push((old.top, old.told));
                return;
            }
        }
        self.advance(ctx, id);
    }

    pub fn handle_purged(&mut self, ctx: &mut Context, id: u64, vid: Vid, from: NodeId) {
        let purging = self.jobs.get_mut(&id).and_then(|job| job.purging.get_mut(&vid));
        if let Some(left) = purging.and_then(|awaited| awaited.get_mut(&from)) {
            *left = left.saturating_sub(1);
        }
        self.end_if_done(ctx, id);
    }

    /// Members that went down do the rest when they come back.
    pub fn end_purges(&mut self, ctx: &mut Context) {
        for id in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.end_if_done(ctx, id);
        }
    }

    fn end_if_done(&mut self, ctx: &mut Context, id: u64) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.purging
            .values_mut()
            .for_each(|awaited| awaited.retain(|node, left| *left > 0 && ctx.view.is_up(*node)));
        if !job.started || job.purging.values().any(|awaited| !awaited.is_empty()) {
            return;
        }
        let job = self.jobs.remove(&id).expect("just seen");
        for vid in job.subjects.iter().filter(|vid| job.kept.get(vid).is_none_or(Kept::is_nothing)) {
            let purpose = ProposalUse::Forget { vid: *vid };
            let remains = ctx.view.vdis().get(vid).is_some_and(|v| v.life == Life::Remains);
            if remains && !ctx.is_proposed(&purpose) {
                ctx.propose(Action::ForgetVdi { vid: *vid }, purpose);
            }
        }
        for request in job.told {
            ctx.answer(request, Ok(ClientReply::Done));
        }
    }
}

impl Job {
    fn new(ctx: &Context, top: Vid, told: Vec<RequestId>) -> Job {
        let is = |vid: &Vid, life| ctx.view.vdis().get(vid).is_some_and(|v| v.life == life);
        let referrers = ctx.view.referrers_of(top);
        let mut subjects: BTreeSet<Vid> =
            referrers.iter().copied().filter(|v| is(v, Life::Remains)).collect();
        subjects.insert(top);
        // The tables of deleted ones tell only where parts of their own objects lie.
        let todo = referrers.iter().map(|vid| (*vid, 0)).collect();
        Job {
            top,
            subjects,
            todo,
            asked: BTreeMap::new(),
            next_ask: 0,
            kept: BTreeMap::new(),
            partial: BTreeMap::new(),
            stored: BTreeMap::new(),
            purging: BTreeMap::new(),
            started: false,
            told,
        }
    }

    fn take_in(&mut self, ctx: &Context, vid: Vid, table: proto::client::Table) {
        if let Some(next) = table.next {
            self.todo.push_back((vid, next));
        }
        if self.subjects.contains(&vid) && ctx.view.vdi(vid).is_none() {
            let own = table.entries.iter().filter(|(_, owner, base)| *owner == vid && base.0 != 0);
            self.partial.entry(vid).or_default().extend(own.map(|(index, _, base)| (*index, *base)));
            self.stored.entry(vid).or_default().extend(table.stored_with);
            return;
        }
        for (index, owner, base) in table.entries {
            for subject in [owner, base] {
                if self.subjects.contains(&subject) {
                    self.kept.entry(subject).or_default().indexes.insert(index);
                }
            }
        }
        for holder in table.stored_with {
            if self.subjects.contains(&holder) {
                self.kept.entry(holder).or_default().table = true;
            }
        }
    }

    /// All tables have been read: adds what the kept objects of deleted VDIs need, and orders the rest to be removed.
    fn purge(&mut self, ctx: &mut Context, id: u64) {
        loop {
            let before: u64 = self.kept.values().map(|k| k.indexes.len() + u64::from(k.table)).sum();
            for vid in self.subjects.clone() {
                let Some(kept) = self.kept.get_mut(&vid).filter(|k| !k.is_nothing()) else { continue };
                // Its table says what is partial, and is read by those that lack one of their own.
                kept.table = true;
                let needed: Vec<(u32, Vid)> = self
                    .partial
                    .get(&vid)
                    .into_iter()
                    .flatten()
                    .filter(|(index, _)| kept.indexes.contains(*index))
                    .copied()
                    .collect();
                for (index, base) in needed.into_iter().filter(|(_, base)| self.subjects.contains(base)) {
                    self.kept.entry(base).or_default().indexes.insert(index);
                }
                for holder in self.stored.get(&vid).into_iter().flatten() {
                    if self.subjects.contains(holder) {
                        self.kept.entry(*holder).or_default().table = true;
                    }
                }
            }
            let after: u64 = self.kept.values().map(|k| k.indexes.len() + u64::from(k.table)).sum();
            if before == after {
                break;
            }
        }
        let up: BTreeSet<NodeId> =
            ctx.view.members().values().filter(|m| m.incarnation.is_some()).map(|m| m.info.id).collect();
        for vid in &self.subjects {
            let kept = self.kept.get(vid);
            let keep = kept.map(|k| k.indexes.runs()).unwrap_or_default();
            let table = kept.is_some_and(|k| k.table);
            let parts = parts_of(&keep);
            self.purging.insert(*vid, up.iter().map(|node| (*node, parts.len())).collect());
            for (node, (indexes, keep)) in
                up.iter().flat_map(|node| parts.iter().map(move |part| (node, part)))
            {
                let body = PeerRequest::Purge { vid: *vid, indexes: *indexes, keep: keep.to_vec(), table };
                ctx.call(*node, body, Purpose::Purge { job: id, vid: *vid });
            }
        }
    }
}

/// What is kept, cut into messages: which indexes (first, last) each speaks of, together all, and the runs among them.
fn parts_of(keep: &[(u32, u32)]) -> Vec<((u32, u32), &[(u32, u32)])> {
    let mut parts = Vec::new();
    let (mut first, mut rest) = (0, keep);
    while rest.len() > RUNS_MAX {
        let (runs, after) = rest.split_at(RUNS_MAX);
        parts.push(((first, after[0].0 - 1), runs));
        (first, rest) = (after[0].0, after);
    }
    parts.push(((first, u32::MAX), rest));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_told_in_parts_that_cover_every_index_once() {
        assert_eq!(parts_of(&[]), vec![((0, u32::MAX), &[][..])]);
        let keep: Vec<(u32, u32)> = (0..2 * RUNS_MAX as u32 + 1).map(|i| (i * 3, 2)).collect();
        let parts = parts_of(&keep);
        let borders: Vec<(u32, u32)> = parts.iter().map(|(indexes, _)| *indexes).collect();
        let cut = |n: usize| (n * RUNS_MAX) as u32 * 3;
        assert_eq!(borders, [(0, cut(1) - 1), (cut(1), cut(2) - 1), (cut(2), u32::MAX)]);
        assert_eq!(parts.iter().flat_map(|(_, runs)| runs.to_vec()).collect::<Vec<_>>(), keep);
    }
}
