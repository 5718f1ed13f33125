//! Snapshots, clones and rollback: which VDI stands on which.
//!
//! A snapshot is one entry of the order, whatever the size of the VDI: the working VDI is frozen under its own vid and a new
//! one takes its place, whose table is the frozen one's until it writes to its own. Before that the sessions concerned come to
//! rest: everything they were asked is carried out on all copies and nothing new begins. Every session says so in the order
//! ([`View::rested`]); the entry that brings the last one's word freezes all of them, so several VDIs are frozen at one moment.
//!
//! A session that ends meanwhile ends the wait: closed cleanly it is at rest; lost with its sheep it has to be sealed
//! first, and the snapshot is refused to be asked for again.

use std::collections::BTreeMap;

use proto::client::ClientError;
use proto::inode::NAME_MAX;
use proto::{CopyPolicy, Generation, Incarnation, NodeId, Vid};
use serde::{Deserialize, Serialize};

use super::vdi::wire_time;
use super::{Accepted, Applied, Life, Outcome, SessionState, Vdi, View};

/// VDIs in one snapshot.
const VDIS_MAX: usize = 1024;

/// A snapshot that waits for sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Freeze {
    asked_by: (NodeId, Incarnation, u64),
    pub(super) vids: Vec<Vid>,
    /// Empty: each VDI's own.
    pub(super) tag: Vec<u8>,
    /// Sessions that have not come to rest.
    awaited: BTreeMap<Vid, Generation>,
}

impl View {
    /// Does a snapshot of this VDI wait for its session, or for others?
    pub fn is_freezing(&self, vid: Vid) -> bool {
        self.freezes.values().any(|f| f.vids.contains(&vid))
    }

    /// The snapshot for which this session must come to rest.
    pub fn must_rest(&self, vid: Vid, generation: Generation) -> Option<u64> {
        let waits = |f: &&Freeze| f.awaited.get(&vid) == Some(&generation);
        self.freezes.iter().find(|(_, f)| waits(f)).map(|(version, _)| *version)
    }

    /// May the VDI be frozen as it is: has its last session ended with everything settled?
    pub fn is_at_rest(&self, vid: Vid) -> bool {
        let session = self.session(vid);
        session.owner.is_none() && session.clean == session.generation
    }

    pub(super) fn ask_snapshot(
        &mut self,
        who: (NodeId, Incarnation, u64),
        vids: &[Vid],
        tag: &[u8],
        applied: &mut Applied,
    ) -> Outcome {
        if vids.is_empty() || vids.len() > VDIS_MAX || tag.len() > NAME_MAX || tag.contains(&0) {
            return Err(ClientError::InvalidParameters);
        }
        let mut awaited = BTreeMap::new();
        for (at, vid) in vids.iter().enumerate() {
            let Some(vdi) = self.vdi(*vid) else { return Err(ClientError::NoVdi) };
            if vdi.is_snapshot() {
                return Err(ClientError::ReadOnly);
            }
            if vids[..at].contains(vid) {
                return Err(ClientError::InvalidParameters);
            }
            let tag = if tag.is_empty() { &vdi.tag[..] } else { tag };
            if !tag.is_empty() && self.named(&vdi.name).any(|(_, v)| v.is_snapshot() && v.tag == tag) {
                return Err(ClientError::TagExists);
            }
            self.check_tag_is_not_hidden(&vdi.name, tag)?;
            if self.is_freezing(*vid) {
                return Ok(Accepted::Refused);
            }
            let session = self.session(*vid);
            if session.owner.is_some() {
                awaited.insert(*vid, session.generation);
            } else if !self.is_at_rest(*vid) {
                // Whoever asked opens a session, which seals it.
                return Ok(Accepted::Refused);
            }
        }
        let freeze = Freeze { asked_by: who, vids: vids.to_vec(), tag: tag.to_vec(), awaited };
        applied.vdis.extend(vids);
        self.freezes.insert(self.version.0, freeze);
        Ok(Accepted::Later)
    }

    /// A word that was meant for an earlier snapshot does not count: the session has gone on since.
    pub(super) fn rested(
        &mut self,
        vid: Vid,
        generation: Generation,
        snapshot: u64,
        from: NodeId,
    ) -> Outcome {
        if self.session(vid).owner.is_none_or(|(owner, _)| owner != from) {
            return Ok(Accepted::Refused);
        }
        match self.freezes.get_mut(&snapshot) {
            Some(freeze) if freeze.awaited.get(&vid) == Some(&generation) => {
                freeze.awaited.remove(&vid);
                Ok(Accepted::Done)
            }
            _ => Ok(Accepted::Refused),
        }
    }

    pub(super) fn give_up_snapshot(
        &mut self,
        vid: Vid,
        generation: Generation,
        from: NodeId,
        applied: &mut Applied,
    ) -> Outcome {
        let session = self.session(vid);
        if session.generation == generation && session.owner.is_some_and(|(owner, _)| owner == from) {
            self.drop_freezes(|freeze| freeze.vids.contains(&vid), applied);
        }
        Ok(Accepted::Done)
    }

    /// After every entry: snapshots that nothing keeps waiting any more happen; those that cannot are refused.
    pub(super) fn advance_freezes(&mut self, time_ns: u64, applied: &mut Applied) {
        if self.freezes.is_empty() {
            return;
        }
        let mut freezes = std::mem::take(&mut self.freezes);
        for freeze in freezes.values_mut() {
            freeze.awaited.retain(|vid, _| !self.is_at_rest(*vid));
        }
        self.freezes = freezes;
        // An owner that was lost leaves what has to be sealed; a VDI may have been deleted.
        let view = self.concerned();
        let is_lost = |freeze: &Freeze| {
            let session_is_lost =
                |(vid, generation): (&Vid, &Generation)| view.owned.get(vid).is_none_or(|g| g != generation);
            freeze.vids.iter().any(|vid| !view.alive.contains(vid))
                || freeze.awaited.iter().any(session_is_lost)
        };
        self.drop_freezes(is_lost, applied);
        let ready: Vec<u64> =
            self.freezes.iter().filter(|(_, f)| f.awaited.is_empty()).map(|(version, _)| *version).collect();
        for version in ready {
            let freeze = self.freezes.remove(&version).expect("just listed");
            let (node, incarnation, id) = freeze.asked_by;
            let outcome = self.freeze(&freeze.vids, &freeze.tag, time_ns, applied);
            applied.outcomes.push((node, incarnation, id, outcome));
        }
    }

    fn concerned(&self) -> Concerned {
        let vids = || self.freezes.values().flat_map(|f| f.vids.iter().copied());
        Concerned {
            alive: vids().filter(|vid| self.vdi(*vid).is_some()).collect(),
            owned: vids()
                .filter(|vid| self.session(*vid).owner.is_some())
                .map(|vid| (vid, self.session(vid).generation))
                .collect(),
        }
    }

    fn drop_freezes(&mut self, lost: impl Fn(&Freeze) -> bool, applied: &mut Applied) {
        let versions: Vec<u64> =
            self.freezes.iter().filter(|(_, f)| lost(f)).map(|(version, _)| *version).collect();
        for version in versions {
            let freeze = self.freezes.remove(&version).expect("just listed");
            applied.vdis.extend(&freeze.vids);
            let (node, incarnation, id) = freeze.asked_by;
            applied.outcomes.push((node, incarnation, id, Ok(Accepted::Refused)));
        }
    }

    /// All or nothing: vids are found for all before the first is frozen.
    fn freeze(&mut self, vids: &[Vid], tag: &[u8], time_ns: u64, applied: &mut Applied) -> Outcome {
        let mut heads = Vec::new();
        for vid in vids {
            match self.new_head(*vid, time_ns) {
                Ok(head) => heads.push(head),
                Err(error) => {
                    heads.iter().for_each(|head| drop(self.vdis.remove(head)));
                    return Err(error);
                }
            }
        }
        for (vid, head) in vids.iter().zip(&heads) {
            let session = self.session(*vid);
            let vdi = self.vdis.get_mut(vid).expect("checked when it was asked for");
            vdi.snap_ctime = wire_time(time_ns).max(1);
            if !tag.is_empty() {
                vdi.tag = tag.to_vec();
            }
            vdi.successor = Some(*head);
            // An old client's lock is on the disk it uses, which goes on under the new vid.
            let locks = std::mem::take(&mut vdi.locks);
            vdi.moved_locks.clear();
            let head_vdi = self.vdis.get_mut(head).expect("just made");
            head_vdi.moved_locks =
                locks.iter().filter(|(_, shared)| *shared).map(|(node, _)| *node).collect();
            head_vdi.locks = locks;
            // At rest, all is settled: as after a clean end.
            let ended = SessionState { owner: None, clean: session.generation, ..session };
            self.sessions.insert(*vid, ended);
            if session.owner.is_some() {
                let goes_on = SessionState { generation: Generation(1), clean: Generation(0), ..session };
                self.sessions.insert(*head, goes_on);
            }
            applied.frozen.push((*vid, *head));
            applied.vdis.extend([*vid, *head]);
        }
        Ok(Accepted::Vdis(heads))
    }

    /// A working VDI of the same name on top of `vid`, in its lineage.
    fn new_head(&mut self, vid: Vid, time_ns: u64) -> Result<Vid, ClientError> {
        let old = self.vdis[&vid].clone();
        let head = self.new_vdi(&old.name, old.size, old.policy, old.pool, old.block_size_shift, time_ns)?;
        let vdi = self.vdis.get_mut(&head).expect("just made");
        vdi.parent = vid;
        vdi.lineage = old.lineage;
        vdi.pages = old.pages;
        Ok(head)
    }

    pub(super) fn clone_vdi(
        &mut self,
        base: Vid,
        name: &[u8],
        size: Option<u64>,
        policy: Option<CopyPolicy>,
        time_ns: u64,
        applied: &mut Applied,
    ) -> Outcome {
        let Some(from) = self.vdi(base).cloned() else { return Err(ClientError::NoVdi) };
        if !from.is_snapshot() {
            return Err(ClientError::NotASnapshot);
        }
        let (size, shift) = (size.unwrap_or(from.size), from.block_size_shift);
        if size < from.size {
            return Err(ClientError::InvalidParameters);
        }
        let policy = policy.or(Some(from.policy));
        let created = self.create_vdi(name, size, policy, Some(shift), time_ns, applied)?;
        if let Accepted::Vdi(vid) = &created {
            let vdi = self.vdis.get_mut(vid).expect("just made");
            vdi.parent = base;
            vdi.pages = from.pages;
        }
        Ok(created)
    }

    pub(super) fn roll_back(&mut self, to: Vid, force: bool, time_ns: u64, applied: &mut Applied) -> Outcome {
        let Some(snapshot) = self.vdi(to).cloned() else { return Err(ClientError::NoVdi) };
        if !snapshot.is_snapshot() {
            return Err(ClientError::NotASnapshot);
        }
        if let Some(head) = self.working_vdi(&snapshot.name) {
            if let Some((owner, _)) = self.session(head).owner.filter(|_| !force) {
                return Err(ClientError::InUse(owner));
            }
            // The new one comes first, so that nothing is lost when there is no vid for it; two heads never meet
            // a lookup, since no other entry comes between.
            let new = self.new_head(to, time_ns)?;
            self.delete_vdi(head, applied)?;
            applied.vdis.push(new);
            return Ok(Accepted::Vdi(new));
        }
        self.check_hides_no_snapshot(&snapshot.name)?;
        let new = self.new_head(to, time_ns)?;
        applied.vdis.push(new);
        Ok(Accepted::Vdi(new))
    }

    pub(super) fn describe_vdi(
        &mut self,
        vid: Vid,
        tag: &[u8],
        vm_state_size: u64,
        vm_clock_nsec: u64,
    ) -> Outcome {
        if tag.len() > NAME_MAX {
            return Err(ClientError::InvalidParameters);
        }
        let Some(vdi) = self.vdi(vid) else { return Err(ClientError::NoVdi) };
        // Of a working VDI it counts when its snapshot is taken.
        if vdi.is_snapshot() || self.is_freezing(vid) {
            self.check_tag_is_not_hidden(&vdi.name, tag)?;
        }
        let vdi = self.vdis.get_mut(&vid).expect("just seen");
        vdi.tag = tag.to_vec();
        vdi.vm_state_size = vm_state_size;
        vdi.vm_clock_nsec = vm_clock_nsec;
        Ok(Accepted::Done)
    }

    /// VDIs whose tables may refer to objects of a deleted one: those that stand on it, directly or through others that are
    /// deleted too. A table that was taken over from a living VDI adds nothing to what that one refers to.
    pub fn referrers_of(&self, vid: Vid) -> Vec<Vid> {
        let mut children: BTreeMap<Vid, Vec<Vid>> = BTreeMap::new();
        for (child, vdi) in &self.vdis {
            children.entry(vdi.parent).or_default().push(*child);
        }
        let mut found = Vec::new();
        let mut todo = children.get(&vid).cloned().unwrap_or_default();
        while let Some(next) = todo.pop() {
            if self.vdis[&next].life != Life::Gone {
                found.push(next);
            }
            if self.vdis[&next].life != Life::Alive {
                todo.extend(children.get(&next).into_iter().flatten());
            }
        }
        found.sort_unstable();
        found
    }

    /// The topmost VDI of which something may be left among those from which `vid` descends through deleted ones, itself
    /// included: its end may end theirs. Those of which nothing is left stand between the others all the same.
    pub fn topmost_deleted(&self, vid: Vid) -> Vid {
        let mut top = vid;
        let mut next = vid;
        while let Some((parent, vdi)) = self.parent_of(next).filter(|(_, vdi)| vdi.life != Life::Alive) {
            if vdi.life == Life::Remains {
                top = parent;
            }
            next = parent;
        }
        top
    }

    /// What a VDI was made from, whether or not it still exists.
    pub fn parent_of(&self, vid: Vid) -> Option<(Vid, &Vdi)> {
        let parent = self.vdis.get(&vid)?.parent;
        Some((parent, self.vdis.get(&parent)?))
    }

    /// Deleted VDIs of which something may be left.
    pub fn remains(&self) -> impl Iterator<Item = Vid> + '_ {
        self.vdis.iter().filter(|(_, v)| v.life == Life::Remains).map(|(vid, _)| *vid)
    }
}

/// What `advance_freezes` looks at while it changes the rest.
struct Concerned {
    alive: Vec<Vid>,
    owned: BTreeMap<Vid, Generation>,
}
