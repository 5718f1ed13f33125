//! Members on which nothing is to be stored: down is not out, until that has lasted too long or an operator says so.

use proto::client::{ClientError, ClusterStatus, Out};
use proto::{NodeId, Since, ViewVersion};

use super::{Accepted, Applied, Outcome, View};

impl View {
    /// May this member be given up for having been away too long?
    ///
    /// Not so many that less than half of those that store something remain: then it is the others that have lost their network or their
    /// power, and the few would copy everything to themselves.
    pub fn may_time_out(&self, node: NodeId) -> bool {
        let storing = || self.members.values().filter(|m| m.info.space_bytes > 0);
        let remaining = storing().filter(|m| m.out.is_none() && m.info.id != node).count();
        let waits =
            |m: &super::MemberState| m.incarnation.is_none() && m.out.is_none() && m.info.space_bytes > 0;
        self.repair.enabled && self.members.get(&node).is_some_and(waits) && 2 * remaining > storing().count()
    }

    pub(super) fn time_out(&mut self, node: NodeId, left: ViewVersion, applied: &mut Applied) -> Outcome {
        if !self.may_time_out(node) || self.members[&node].left != left {
            return Ok(Accepted::Refused);
        }
        self.put_out(node, Some(Out::ByTime), applied);
        Ok(Accepted::Done)
    }

    pub(super) fn set_out(&mut self, node: NodeId, out: bool, applied: &mut Applied) -> Outcome {
        if !self.members.contains_key(&node) {
            return Err(ClientError::NoNode);
        }
        let others = self.members.values().filter(|m| m.info.space_bytes > 0 && m.out.is_none());
        if out && others.filter(|m| m.info.id != node).count() == 0 {
            return Err(ClientError::NoStorage);
        }
        self.put_out(node, out.then_some(Out::ByOperator), applied);
        Ok(Accepted::Done)
    }

    /// Its copies stay where they are until others have caught up from them.
    fn put_out(&mut self, node: NodeId, out: Option<Out>, applied: &mut Applied) {
        let Some(member) = self.members.get_mut(&node).filter(|m| m.out != out) else { return };
        member.out = out;
        applied.membership = true;
        self.retarget(applied);
        // Copies that are down and were kept for want of targets may go now.
        self.shrink_after_loss(&[], applied);
    }

    /// Members that are down, or whose disk has failed, are given up, and what no member that is up has in full goes on from the copy that left its set last.
    ///
    /// Where there is a copy with everything, nothing is lost. Where not, what was acknowledged since that copy left is: the only entry of
    /// the order that may lose anything, and only an operator makes it.
    pub(super) fn force_recovery(&mut self, applied: &mut Applied) -> Outcome {
        if self.status() != ClusterStatus::WaitForJoin {
            return Err(ClientError::NotStuck);
        }
        self.change_pgs(applied, |view, _, pg| {
            if pg.in_sync.iter().all(|n| view.is_serving(*n)) && !pg.in_sync.is_empty() {
                return false;
            }
            pg.let_go(Since(view.version().0), |n| !view.is_serving(n));
            pg.absent.retain(|a| !view.has_failed_disk(a.node));
            if pg.in_sync.is_empty() {
                let newest = pg.absent.iter().filter(|a| view.is_serving(a.node)).max_by_key(|a| a.since);
                let any = pg.targets.iter().copied().find(|n| view.is_serving(*n));
                pg.begin_with(newest.map(|a| a.node).or(any));
                // What others lack is not known by this copy, and what it lacks itself nobody has.
                pg.absent.clear();
            }
            true
        });
        let down: Vec<NodeId> =
            self.members.values().filter(|m| m.incarnation.is_none()).map(|m| m.info.id).collect();
        for node in down {
            self.members.get_mut(&node).expect("from the members").out.get_or_insert(Out::ByForce);
        }
        applied.membership = true;
        self.retarget(applied);
        // All places of these were on members that are down: nobody has anything of them, and they begin anew.
        self.change_pgs(applied, |view, _, pg| {
            let is_lost = pg.in_sync.is_empty();
            if is_lost {
                pg.begin_with(pg.targets.iter().copied().find(|n| view.is_serving(*n)));
            }
            is_lost
        });
        Ok(Accepted::Done)
    }
}

impl super::Pg {
    /// The PG has no copy with everything: from now on it is this one that has.
    fn begin_with(&mut self, chosen: Option<NodeId>) {
        self.catching.retain(|c| Some(c.node) != chosen);
        self.in_sync.extend(chosen);
    }
}
