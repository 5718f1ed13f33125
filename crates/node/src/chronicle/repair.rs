//! This node's repair as an operator sees it: phases, from lacking something to lacking nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::cluster::{Action, ClusterEvent, LogEntry};
use proto::{NodeId, PgId};

use super::{Named, whole_ms};
use crate::Time;
use crate::parts::all_pgs;
use crate::view::{Pg, View};

/// Between two lines about how far it has come.
const PROGRESS_EVERY: Duration = Duration::from_secs(60);
/// Who still waits for the same says so again.
const WAIT_AGAIN: Duration = Duration::from_secs(3600);

/// What a node has fetched in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fetched {
    /// Looked at or fetched.
    pub objects: u64,
    pub bytes: u64,
}

impl Fetched {
    /// Counting may have begun anew, with a format or without a disk.
    fn since(self, earlier: Fetched) -> Fetched {
        Fetched {
            objects: self.objects.saturating_sub(earlier.objects),
            bytes: self.bytes.saturating_sub(earlier.bytes),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Repair {
    /// PGs that should have a copy here and have none that counts.
    lacking: BTreeSet<PgId>,
    phase: Option<Phase>,
}

/// From the first PG that is lacking to the last one that is not any more.
#[derive(Debug)]
struct Phase {
    began: Time,
    fetched_before: Fetched,
    completed: usize,
    /// Not to be here any more, before all had come.
    dropped: usize,
    looked_at: Time,
    fetched_then: Fetched,
    /// What was told last, unless something came since.
    waits: Option<(Wait, Time)>,
}

/// Why nothing comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    RecoveryDisabled,
    /// Nobody else is up that has everything.
    Sources(Vec<NodeId>),
    Silent(Vec<NodeId>),
    Unknown,
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Began { pgs: usize, why: String },
    BeganWaiting { pgs: usize, why: String, wait: Wait },
    Waits { pgs: usize, wait: Wait },
    Progress { pgs_left: usize, fetched: Fetched, so_far: Duration },
    Ended { completed: usize, dropped: usize, fetched: Fetched, took: Duration },
}

impl Repair {
    pub fn handle_entry(
        &mut self,
        changed: &[PgId],
        view: &View,
        me: NodeId,
        entry: &LogEntry,
        (fetched, now): (Fetched, Time),
    ) -> Option<Told> {
        let lacked = self.lacking.len();
        for id in changed {
            let pg = view.pg(*id);
            if pg.is_some_and(|pg| is_lacking(pg, me)) {
                self.lacking.insert(*id);
            } else if self.lacking.remove(id)
                && let Some(phase) = &mut self.phase
            {
                let is_complete = pg.is_some_and(|pg| pg.in_sync.contains(&me));
                *(if is_complete { &mut phase.completed } else { &mut phase.dropped }) += 1;
            }
        }
        if self.lacking.is_empty() {
            return self.phase.take().map(|phase| phase.end(fetched, now));
        }
        if lacked == 0 {
            return Some(self.begin(view, me, entry, (fetched, now)));
        }
        let is_about_waiting = |event: &ClusterEvent| match event {
            ClusterEvent::Message { proposal, .. } => matches!(proposal.action, Action::SetRepair(_)),
            _ => true,
        };
        if changed.is_empty() && !is_about_waiting(&entry.event) {
            return None;
        }
        let wait = self.waits_for(view, me);
        let phase = self.phase.as_mut().expect("something is lacking");
        let Some(wait) = wait else {
            phase.waits = None;
            return None;
        };
        phase.tell_wait(wait, self.lacking.len(), now)
    }

    /// Where it is not known which PGs have changed.
    pub fn look_at_all(
        &mut self,
        view: &View,
        me: NodeId,
        entry: &LogEntry,
        at: (Fetched, Time),
    ) -> Option<Told> {
        self.handle_entry(&all_pgs(view), view, me, entry, at)
    }

    fn begin(&mut self, view: &View, me: NodeId, entry: &LogEntry, (fetched, now): (Fetched, Time)) -> Told {
        let wait = self.waits_for(view, me);
        self.phase = Some(Phase {
            began: now,
            fetched_before: fetched,
            completed: 0,
            dropped: 0,
            looked_at: now,
            fetched_then: fetched,
            waits: wait.clone().map(|wait| (wait, now)),
        });
        let (pgs, why) = (self.lacking.len(), cause(entry, me));
        match wait {
            None => Told::Began { pgs, why },
            Some(wait) => Told::BeganWaiting { pgs, why, wait },
        }
    }

    /// Is it time to say how far it has come?
    pub fn is_due(&self, now: Time) -> bool {
        self.phase.as_ref().is_some_and(|phase| now.since(phase.looked_at) >= PROGRESS_EVERY)
    }

    pub fn look_again(
        &mut self,
        view: &View,
        me: NodeId,
        silent: Vec<NodeId>,
        (fetched, now): (Fetched, Time),
    ) -> Option<Told> {
        let wait = self.waits_for(view, me);
        let pgs_left = self.lacking.len();
        let phase = self.phase.as_mut()?;
        phase.looked_at = now;
        if fetched != std::mem::replace(&mut phase.fetched_then, fetched) {
            phase.waits = None;
            let so_far = now.since(phase.began);
            return Some(Told::Progress { pgs_left, fetched: fetched.since(phase.fetched_before), so_far });
        }
        let silent = (!silent.is_empty()).then_some(Wait::Silent(silent));
        phase.tell_wait(wait.or(silent).unwrap_or(Wait::Unknown), pgs_left, now)
    }

    /// What all that is lacking waits for. `None`: some of it can be fetched, as far as the view tells.
    fn waits_for(&self, view: &View, me: NodeId) -> Option<Wait> {
        let mut missing = BTreeSet::new();
        let mut is_disabled = false;
        for id in &self.lacking {
            let Some(pg) = view.pg(*id) else { continue };
            if !pg.in_sync.iter().any(|node| view.is_serving(*node)) {
                missing.extend(pg.in_sync.iter().copied());
            } else if pg.is_catching(me) || view.repair().enabled || !view.is_writable(*id) {
                return None;
            } else {
                is_disabled = true;
            }
        }
        let sources = Wait::Sources(missing.into_iter().collect());
        Some(if is_disabled { Wait::RecoveryDisabled } else { sources })
    }
}

impl Phase {
    fn tell_wait(&mut self, wait: Wait, pgs: usize, now: Time) -> Option<Told> {
        let is_news =
            !self.waits.as_ref().is_some_and(|(told, at)| *told == wait && now.since(*at) < WAIT_AGAIN);
        is_news.then(|| {
            self.waits = Some((wait.clone(), now));
            Told::Waits { pgs, wait }
        })
    }

    fn end(self, fetched: Fetched, now: Time) -> Told {
        Told::Ended {
            completed: self.completed,
            dropped: self.dropped,
            fetched: fetched.since(self.fetched_before),
            took: now.since(self.began),
        }
    }
}

fn is_lacking(pg: &Pg, me: NodeId) -> bool {
    pg.targets.contains(&me) && !pg.in_sync.contains(&me)
}

/// Why this node lacks something that it did not lack before, as far as the entry tells.
fn cause(entry: &LogEntry, me: NodeId) -> String {
    match &entry.event {
        ClusterEvent::Join(info) if info.id == me => "it has just joined".into(),
        ClusterEvent::Join(info) => format!("node {} has joined", info.id),
        ClusterEvent::Leave(lives) => {
            format!("gone is node {}", Named(lives.iter().map(|(id, _)| *id).collect()))
        }
        ClusterEvent::Message { from, proposal, .. } => match &proposal.action {
            Action::SetOut { node, out } if *node == me => {
                format!("it is {} again", if *out { "out" } else { "in" })
            }
            Action::SetOut { node, out } => format!("node {node} is {}", if *out { "out" } else { "in" }),
            Action::TimeOut { node, .. } => format!("node {node} is out"),
            Action::DiskFailed { .. } => format!("the disk of node {from} has failed"),
            Action::ForceRecovery => "recovery was forced".into(),
            Action::DropCopies { .. } if *from == me => "it begins copies anew".into(),
            Action::DropCopies { .. } => format!("node {from} goes on without copies of it"),
            _ => "copies have other places now".into(),
        },
    }
}

impl Told {
    pub fn log(self) {
        match self {
            Told::Began { pgs, why } => {
                tracing::info!(pgs, "this node catches up, for {why}");
            }
            Told::BeganWaiting { pgs, why, wait } => {
                tracing::warn!(
                    pgs,
                    "this node lacks copies, for {why}; catching up waits: {}",
                    wait.meaning()
                );
            }
            Told::Waits { pgs, wait } => {
                tracing::warn!(pgs, "catching up waits: {}", wait.meaning());
            }
            Told::Progress { pgs_left, fetched: Fetched { objects, bytes }, so_far } => {
                let so_far = whole_ms(so_far);
                tracing::info!(pgs_left, objects, bytes, ?so_far, "this node is still catching up");
            }
            Told::Ended { completed: 0, dropped, took, .. } => {
                let took = whole_ms(took);
                tracing::info!(
                    pgs = dropped,
                    ?took,
                    "catching up was given up: the copies belong elsewhere now"
                );
            }
            Told::Ended { completed, dropped, fetched: Fetched { objects, bytes }, took } => {
                let (took, given_up) = (whole_ms(took), (dropped > 0).then_some(dropped));
                tracing::info!(
                    pgs = completed,
                    given_up,
                    objects,
                    bytes,
                    ?took,
                    "this node has caught up; it has all its copies"
                );
            }
        }
    }
}

impl Wait {
    fn meaning(&self) -> String {
        match self {
            Wait::RecoveryDisabled => {
                "recovery is disabled ('dog cluster recover enable' lets it go on)".into()
            }
            Wait::Sources(nodes) if nodes.is_empty() => "no node has a copy with everything".into(),
            Wait::Sources(nodes) => {
                format!(
                    "only these nodes have everything, and they are down or their disks have failed: {}",
                    Named(nodes.clone())
                )
            }
            Wait::Silent(nodes) => format!("these nodes do not answer: {}", Named(nodes.clone())),
            Wait::Unknown => "nothing has come for a minute, though the nodes that have it answer".into(),
        }
    }
}

#[cfg(test)]
mod tests;
