//! Placement groups: where copies should be, and which are known to have every acknowledged write.
//!
//! An in-sync set shrinks before an acknowledgement that does without the copy, never after; it grows
//! only when the copy has been awaited by every write since it began to catch up, and has fetched the rest.

use proto::{CopyPolicy, NodeId, Oid, PgId, PoolId, Since, ViewVersion};
use serde::{Deserialize, Serialize};

use super::member::placement_member;
use super::{Accepted, Applied, FLAG_STRICT, MemberState, Outcome, View};

/// PGs of one copy policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    pub policy: CopyPolicy,
    pub pgs: Vec<Pg>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pg {
    /// Where copies should be, in order.
    pub targets: Vec<NodeId>,
    /// Copies with every acknowledged write. May hold members that are down: then writes wait for them.
    pub in_sync: Vec<NodeId>,
    /// Copies that every write awaits already, but that still lack older ones. Never down.
    pub catching: Vec<CatchingUp>,
    /// View version of the last change.
    pub since: Since,
    /// Targets that were in sync once and of which it is known what they lack at most.
    pub absent: Vec<Absent>,
}

/// A copy that left the in-sync set with all that was acknowledged till then. It lacks what was changed since, and may have what
/// was never acknowledged: of that it has marks itself, as long as it lives. One that ends its life before it has caught up has
/// neither forgotten nor remembered it for sure, and is copied whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absent {
    pub node: NodeId,
    /// Version at which it left.
    pub since: Since,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatchingUp {
    pub node: NodeId,
    /// Version at which it began: names this attempt.
    pub started: Since,
}

impl Pg {
    pub fn is_catching(&self, node: NodeId) -> bool {
        self.catching.iter().any(|c| c.node == node)
    }

    /// Whom a write awaits.
    pub fn writers(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.in_sync.iter().copied().chain(self.catching.iter().map(|c| c.node))
    }

    /// Since when this copy lacks what was changed, if that is all it lacks.
    pub fn absent_since(&self, node: NodeId) -> Option<Since> {
        self.absent.iter().find(|a| a.node == node).map(|a| a.since)
    }

    /// Copies leave the in-sync set.
    pub(super) fn let_go(&mut self, now: Since, leaves: impl Fn(NodeId) -> bool) {
        for node in self.in_sync.extract_if(.., |n| leaves(*n)) {
            self.absent.retain(|a| a.node != node);
            if self.targets.contains(&node) {
                self.absent.push(Absent { node, since: now });
            }
        }
    }

    /// Is the node's copy of any use now or later?
    pub fn concerns(&self, node: NodeId) -> bool {
        self.targets.contains(&node) || self.writers().any(|n| n == node)
    }
}

impl View {
    /// May this node remove its copy of an object? See `sweep.rs` for why that is safe.
    ///
    /// A store that has moved holds the copies of its old place too, which counts with all of them when it comes back there. So they stay while
    /// that place is known to have one.
    pub fn is_garbage(&self, node: NodeId, oid: Oid) -> bool {
        if self.vdi_or_remains(oid.vid()).is_none() {
            return true;
        }
        let Some(pg) = self.pg_of(oid).and_then(|pg| self.pg(pg)) else { return false };
        let is_complete = !pg.targets.is_empty() && pg.targets.iter().all(|t| pg.in_sync.contains(t));
        is_complete && !pg.concerns(node) && !self.others_with_store_of(node).any(|other| pg.concerns(other))
    }
}

impl Pool {
    pub(super) fn empty(policy: CopyPolicy) -> Pool {
        Pool { policy, pgs: Vec::new() }
    }
}

impl View {
    /// How many in-sync copies must be up for writes to go on: half of the copies, rounded up, but never so
    /// many that the loss of one member of a small cluster stops it. All of them in a strict cluster.
    pub fn min_copies(&self, pg: PgId) -> usize {
        let pool = &self.pools[usize::from(pg.pool.0)];
        let copies = usize::from(pool.policy.width());
        let targets = pool.pgs[pg.index as usize].targets.len();
        if self.format.is_some_and(|f| f.flags & FLAG_STRICT != 0) {
            return copies;
        }
        copies.div_ceil(2).min(targets.saturating_sub(1).max(1))
    }

    /// May writes of this PG be acknowledged once all its copies have them?
    pub fn is_writable(&self, pg: PgId) -> bool {
        let Some(state) = self.pg(pg) else { return false };
        !state.in_sync.is_empty()
            && state.writers().all(|n| self.is_serving(n))
            && state.in_sync.len() >= self.min_copies(pg)
    }

    /// The pool of a policy, made when it is first needed.
    pub(super) fn pool_for(&mut self, policy: CopyPolicy) -> Option<PoolId> {
        if let Some(found) = self.pools.iter().position(|p| p.policy == policy && !p.pgs.is_empty()) {
            return Some(PoolId(found as u8));
        }
        let pool = self.new_pool(policy);
        if pool.pgs.is_empty() {
            return None;
        }
        // A pool that was empty, because only gateways were there at format, is filled in place.
        if let Some(found) = self.pools.iter().position(|p| p.policy == policy) {
            self.pools[found] = pool;
            return Some(PoolId(found as u8));
        }
        if self.pools.len() > usize::from(u8::MAX) {
            return None;
        }
        self.pools.push(pool);
        Some(PoolId((self.pools.len() - 1) as u8))
    }

    /// A pool without objects: every target that is up is in sync, having nothing to lack.
    pub(super) fn new_pool(&self, policy: CopyPolicy) -> Pool {
        let Some(format) = &self.format else { return Pool::empty(policy) };
        let targets =
            placement::place(&self.placement_members(), format.pg_count, pool_seed(policy), policy.width());
        let pgs = targets
            .into_iter()
            .map(|targets| Pg {
                in_sync: targets.iter().copied().filter(|n| self.is_up(*n)).collect(),
                targets,
                catching: Vec::new(),
                since: Since(self.version.0),
                absent: Vec::new(),
            })
            .collect::<Vec<_>>();
        if pgs.iter().any(|pg| pg.in_sync.is_empty()) { Pool::empty(policy) } else { Pool { policy, pgs } }
    }

    fn placement_members(&self) -> Vec<placement::Member> {
        let stays = self.members.values().filter(|m: &&MemberState| m.out.is_none());
        stays.map(|m| placement_member(&m.info)).collect()
    }

    /// Computes the targets anew after members or capacities changed. Data follows by catching up.
    pub(super) fn retarget(&mut self, applied: &mut Applied) {
        let Some(format) = self.format else { return };
        let members = self.placement_members();
        let since = Since(self.version.0);
        for (number, pool) in self.pools.iter_mut().enumerate() {
            if pool.pgs.is_empty() {
                continue;
            }
            let previous: Vec<_> = pool.pgs.iter().map(|pg| pg.targets.clone()).collect();
            let seed = pool_seed(pool.policy);
            let wanted =
                placement::place_from(&previous, &members, format.pg_count, seed, pool.policy.width());
            for (index, (pg, targets)) in pool.pgs.iter_mut().zip(wanted).enumerate() {
                if pg.targets != targets {
                    let id = PgId { pool: PoolId(number as u8), index: index as u32 };
                    applied.former_targets.push((id, std::mem::replace(&mut pg.targets, targets)));
                    pg.catching.retain(|c| pg.targets.contains(&c.node));
                    pg.absent.retain(|a| pg.targets.contains(&a.node));
                    pg.since = since;
                    applied.pgs.push(id);
                }
            }
        }
        self.drop_surplus(applied);
    }

    /// Copies elsewhere have served their time where all targets are in sync and up: also where those were never behind, as when a member was
    /// put out and came in again. What was acknowledged is on every in-sync copy, so on all that stay.
    pub(super) fn drop_surplus(&mut self, applied: &mut Applied) {
        self.change_pgs(applied, |view, _, pg| {
            let works = |n: NodeId| view.is_up(n) && !view.has_failed_disk(n);
            let is_there = |target: &NodeId| pg.in_sync.contains(target) && works(*target);
            // Without any target (the only disk has failed) the copy that is left is all there is.
            let is_surplus = !pg.targets.is_empty()
                && pg.in_sync.len() > pg.targets.len()
                && pg.targets.iter().all(is_there);
            if is_surplus {
                pg.in_sync = pg.targets.clone();
            }
            is_surplus
        });
    }

    /// Members have just gone down: they leave the in-sync sets at once, unless too few copies would remain.
    ///
    /// A set that would fall below `min_copies` stays as it is: its writes wait, so nothing is acknowledged without the
    /// missing copies, and when they return nothing has to be fetched (but in write-back mode, see `let_go_of_restarted`). That is also why a power loss of all, which
    /// arrives as one event, changes no set.
    pub(super) fn shrink_after_loss(&mut self, lost: &[NodeId], applied: &mut Applied) {
        self.change_pgs(applied, |view, id, pg| {
            let had = (pg.in_sync.len(), pg.catching.len(), pg.absent.len());
            pg.catching.retain(|c| view.is_up(c.node));
            // They had begun to change, and what they remembered of that is lost: see `Absent`.
            pg.absent.retain(|a| !lost.contains(&a.node));
            let remaining = pg.in_sync.iter().filter(|n| view.is_serving(**n)).count();
            // After an orderly stop nothing is acknowledged any more, so whoever leaves lacks nothing.
            if remaining >= view.min_copies(id) && !view.shut_down {
                pg.let_go(Since(view.version.0), |n| !view.is_up(n));
            }
            had != (pg.in_sync.len(), pg.catching.len(), pg.absent.len())
        });
    }

    /// A member has come back, and with its process it may have lost what it had taken of changes that were acknowledged then (write-back mode).
    ///
    /// Its copies that were kept in sets while it was down leave them where another copy of the set has lived on since then: that one
    /// has what was acknowledged, and notes what of it was unsettled, which is all that this one may lack. Until that is fetched there may be too few
    /// copies to write to. Where none has lived on, memory is lost on all of them, and what differs on their disks a seal makes alike: all
    /// stay, since each may have what the others lack.
    pub(super) fn let_go_of_restarted(&mut self, node: NodeId, left: ViewVersion, applied: &mut Applied) {
        self.change_pgs(applied, |view, _, pg| {
            let has_lived_on = |n: &NodeId| {
                *n != node && view.is_serving(*n) && view.incarnation(*n).is_some_and(|i| i.0 < left.0)
            };
            let leaves = pg.in_sync.contains(&node) && pg.in_sync.iter().any(has_lived_on);
            if leaves {
                pg.let_go(Since(view.version.0), |n| n == node);
            }
            leaves
        });
    }

    /// A member has come back with an empty store: whatever it was in sync with is gone.
    ///
    /// A PG left without any in-sync copy serves nothing: an older copy must not pass for the data silently.
    pub(super) fn forget_copies_of(&mut self, node: NodeId, applied: &mut Applied) {
        self.change_pgs(applied, |_, _, pg| {
            let had = pg.writers().any(|n| n == node) || pg.absent_since(node).is_some();
            pg.in_sync.retain(|n| *n != node);
            pg.catching.retain(|c| c.node != node);
            pg.absent.retain(|a| a.node != node);
            had
        });
    }

    /// Copies on failed disks leave the sets where another copy that can be read from has every acknowledged write. Where none has, the set
    /// stays as it is: nothing can be acknowledged, as that copy takes no write, and none that is older passes for the data. It is
    /// whole again when the disk is repaired; or when another of the set joins, which this is called for again.
    pub(super) fn drop_failed_copies(&mut self, applied: &mut Applied) {
        if !self.members.values().any(|m| m.disk_failed) {
            return;
        }
        self.change_pgs(applied, |view, _, pg| {
            let works = |n: &NodeId| !view.has_failed_disk(*n);
            let had = (pg.in_sync.len(), pg.catching.len(), pg.absent.len());
            pg.catching.retain(|c| works(&c.node));
            // Nothing is known of what is on a failed disk.
            pg.absent.retain(|a| works(&a.node));
            if pg.in_sync.iter().any(|n| works(n) && view.is_up(*n)) {
                pg.in_sync.retain(works);
            }
            had != (pg.in_sync.len(), pg.catching.len(), pg.absent.len())
        });
    }

    pub(super) fn change_pgs(
        &mut self,
        applied: &mut Applied,
        mut change: impl FnMut(&View, PgId, &mut Pg) -> bool,
    ) {
        for number in 0..self.pools.len() {
            for index in 0..self.pools[number].pgs.len() {
                let id = PgId { pool: PoolId(number as u8), index: index as u32 };
                let mut pg = std::mem::take(&mut self.pools[number].pgs[index]);
                // `min_copies` looks at the targets of the PG itself.
                self.pools[number].pgs[index].targets = pg.targets.clone();
                if change(self, id, &mut pg) {
                    pg.since = Since(self.version.0);
                    applied.pgs.push(id);
                }
                self.pools[number].pgs[index] = pg;
            }
        }
    }

    /// All PGs that wait for this member's copy.
    pub fn pgs_of(&self, node: NodeId) -> impl Iterator<Item = (PgId, Since)> + '_ {
        let state = |id| (id, self.pg(id).expect("from the list"));
        let waiting = self.pg_ids().map(state).filter(move |(_, pg)| pg.writers().any(|n| n == node));
        waiting.map(|(id, pg)| (id, pg.since))
    }

    /// Can this copy leave its PG, whose last change was at `since`, with enough others left?
    pub fn may_drop(&self, node: NodeId, id: PgId, since: Since) -> bool {
        let Some(pg) = self.pg(id).filter(|pg| pg.since == since) else { return false };
        let remaining = pg.in_sync.iter().filter(|n| **n != node && self.is_serving(**n)).count();
        pg.is_catching(node) || (pg.in_sync.contains(&node) && remaining >= self.min_copies(id))
    }

    /// Goes on without a copy that is slow or cut off. Each PG is a compare-and-set; those that fail are left alone.
    pub(super) fn drop_copies(
        &mut self,
        node: NodeId,
        pgs: &[(PgId, Since)],
        applied: &mut Applied,
    ) -> Outcome {
        for (id, since) in pgs {
            if !self.may_drop(node, *id, *since) {
                continue;
            }
            let version = self.version;
            let pg = self.pg_mut(*id);
            pg.let_go(Since(version.0), |n| n == node);
            pg.catching.retain(|c| c.node != node);
            pg.since = Since(version.0);
            applied.pgs.push(*id);
        }
        Ok(Accepted::Done)
    }

    pub(super) fn start_catch_up(
        &mut self,
        from: NodeId,
        pgs: &[(PgId, Since)],
        applied: &mut Applied,
    ) -> Outcome {
        for (id, since) in pgs {
            let Some(pg) = self.pg(*id) else { continue };
            let wanted = pg.targets.contains(&from) && !pg.writers().any(|n| n == from);
            // Where its old place still counts, what the store has there may be wanted: to catch up would forget it.
            let counts_elsewhere = self.others_with_store_of(from).any(|place| pg.in_sync.contains(&place));
            if pg.since != *since || !wanted || pg.in_sync.is_empty() || counts_elsewhere {
                continue;
            }
            let started = Since(self.version.0);
            let pg = self.pg_mut(*id);
            pg.catching.push(CatchingUp { node: from, started });
            pg.since = started;
            applied.pgs.push(*id);
        }
        Ok(Accepted::Done)
    }

    /// `pgs` carry the version at which the attempt started: an attempt that was dropped meanwhile does not count.
    pub(super) fn finish_catch_up(
        &mut self,
        from: NodeId,
        pgs: &[(PgId, Since)],
        applied: &mut Applied,
    ) -> Outcome {
        for (id, started) in pgs {
            let attempt = CatchingUp { node: from, started: *started };
            if !self.pg(*id).is_some_and(|pg| pg.catching.contains(&attempt)) {
                continue;
            }
            let version = self.version;
            let pg = self.pg_mut(*id);
            pg.catching.retain(|c| *c != attempt);
            pg.absent.retain(|a| a.node != from);
            pg.in_sync.push(from);
            pg.since = Since(version.0);
            applied.pgs.push(*id);
        }
        self.drop_surplus(applied);
        // Copies that are down and were kept for want of others can go now.
        self.shrink_after_loss(&[], applied);
        Ok(Accepted::Done)
    }

    fn pg_mut(&mut self, id: PgId) -> &mut Pg {
        &mut self.pools[usize::from(id.pool.0)].pgs[id.index as usize]
    }
}

/// Pools place independently of each other.
fn pool_seed(policy: CopyPolicy) -> u64 {
    u64::from(policy.wire()) << 8 | u64::from(policy.width())
}
