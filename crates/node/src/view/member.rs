//! Members: who is up, in which life, and the epochs that users count.

use proto::client::{EpochInfo, NodeInfo, Out};
use proto::cluster::{FormatOptions, MemberInfo};
use proto::{Epoch, Incarnation, NodeId, ViewVersion};
use serde::{Deserialize, Serialize};

use super::{Accepted, Applied, Outcome, Refusal, View, pg::Pool};

/// Epochs remembered for `dog cluster info`: a machine that flaps once a minute fills a day.
const EPOCHS_MAX: usize = 1440;

/// A member since its first join. Down is not out: it keeps its place in the targets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberState {
    pub info: MemberInfo,
    /// `None` while it is down.
    pub incarnation: Option<Incarnation>,
    /// Version at which its last life ended.
    pub left: ViewVersion,
    /// Nothing is to be stored there.
    pub out: Option<Out>,
    /// Since its last join: it goes on as a gateway.
    pub disk_failed: bool,
}

impl View {
    pub(super) fn apply_join(&mut self, info: &MemberInfo, time_ns: u64, applied: &mut Applied) {
        let incarnation = Incarnation(self.version.0);
        let earlier = self.members.get(&info.id).and_then(|m| m.incarnation);
        applied.refused = self.refusal_of(info);
        if applied.refused.is_some() {
            let lives: Vec<_> = earlier.map(|old| (info.id, old)).into_iter().collect();
            return self.apply_leave(&lives, time_ns, applied);
        }
        if let Some(old) = earlier {
            self.end_lives(&[(info.id, old)], applied);
        }
        let known = self.members.get(&info.id);
        let lost_its_data = known.is_some_and(|m| m.info.store_id != info.store_id);
        let capacity_changed = known.is_none_or(|m| {
            m.info.zone != info.zone || coarse(m.info.space_bytes) != coarse(info.space_bytes)
        });
        let was_out = known.and_then(|m| m.out);
        // Who was given up for being away is back; what an operator said holds until an operator says otherwise.
        let out = was_out.filter(|out| *out == Out::ByOperator);
        let left = known.map_or(ViewVersion(0), |m| m.left);
        let member =
            MemberState { info: info.clone(), incarnation: Some(incarnation), left, out, disk_failed: false };
        self.members.insert(info.id, member);
        self.write_back |= info.write_back;
        if lost_its_data {
            self.forget_copies_of(info.id, applied);
        }
        self.forget_absence_elsewhere(info.id);
        if self.write_back {
            self.let_go_of_restarted(info.id, left, applied);
        }
        if capacity_changed || was_out != out {
            self.retarget(applied);
        }
        // It may have what only a failed disk had so far.
        self.drop_failed_copies(applied);
        self.drop_surplus(applied);
        applied.membership = true;
        // Members of the last epoch that come back after a power loss or an orderly stop are no news.
        self.shut_down = false;
        if !self.epochs.last().is_some_and(|e| e.nodes.iter().any(|n| n.id == info.id)) {
            self.next_epoch(time_ns);
        }
    }

    /// A store of a format that this cluster never had belongs to another one; one of an earlier format is emptied.
    fn refusal_of(&self, info: &MemberInfo) -> Option<Refusal> {
        if info.formatted.is_some_and(|ctime| !self.formats.contains(&ctime)) {
            return Some(Refusal::Foreign);
        }
        let in_use = self.member_with_store(info).map(|by| Refusal::StoreInUse { by });
        let is_newer = |m: &&MemberState| {
            let is_same = m.info.store_id == info.store_id && info.store_id != 0;
            is_same && info.starts != 0 && m.info.starts >= info.starts
        };
        let newer = || self.members.values().find(is_newer);
        in_use.or_else(|| newer().map(|m| Refusal::Outdated { last: m.info.id }))
    }

    /// Who is up with the store of the one who joins. That one was copied, or has been copied itself: two would be one copy as far as losing
    /// it goes, and what the one is told to have the other lacks. A store whose member is down may have moved.
    fn member_with_store(&self, info: &MemberInfo) -> Option<NodeId> {
        let has_it = |m: &&MemberState| {
            m.incarnation.is_some() && m.info.store_id == info.store_id && m.info.id != info.id
        };
        self.members.values().filter(|_| info.store_id != 0).find(has_it).map(|m| m.info.id)
    }

    /// Members under which the store of this one was started before.
    pub(super) fn others_with_store_of(&self, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let store_id = self.members.get(&node).map_or(0, |m| m.info.store_id);
        let has_it =
            move |m: &&MemberState| store_id != 0 && m.info.store_id == store_id && m.info.id != node;
        self.members.values().filter(has_it).map(|m| m.info.id)
    }

    /// A store that has moved here does not go on knowing what it lacked, and had alone, in its old place: should it move back, it fetches all.
    fn forget_absence_elsewhere(&mut self, node: NodeId) {
        let places: Vec<NodeId> = self.others_with_store_of(node).collect();
        if !places.is_empty() {
            let pgs = self.pools.iter_mut().flat_map(|pool| &mut pool.pgs);
            pgs.for_each(|pg| pg.absent.retain(|absent| !places.contains(&absent.node)));
        }
    }

    pub(super) fn apply_leave(
        &mut self,
        lives: &[(NodeId, Incarnation)],
        time_ns: u64,
        applied: &mut Applied,
    ) {
        let ended: Vec<_> = lives.iter().copied().filter(|(id, inc)| self.is_alive(*id, *inc)).collect();
        if ended.is_empty() {
            return;
        }
        self.end_lives(&ended, applied);
        applied.membership = true;
        // With nobody left there is no membership to number; and an orderly stop is no loss.
        if !self.shut_down && self.members.values().any(|m| m.incarnation.is_some()) {
            self.next_epoch(time_ns);
        }
    }

    /// A member's disk has failed: its copies are made elsewhere.
    pub(super) fn fail_disk(&mut self, from: NodeId, store_id: u64, applied: &mut Applied) -> Outcome {
        let Some(member) = self.members.get_mut(&from).filter(|m| m.info.store_id == store_id) else {
            return Ok(Accepted::Refused);
        };
        member.info.space_bytes = 0;
        member.disk_failed = true;
        self.drop_failed_copies(applied);
        self.retarget(applied);
        Ok(Accepted::Done)
    }

    /// Did its disk fail since it joined last?
    pub(super) fn has_failed_disk(&self, id: NodeId) -> bool {
        self.members.get(&id).is_some_and(|m| m.disk_failed)
    }

    fn end_lives(&mut self, lives: &[(NodeId, Incarnation)], applied: &mut Applied) {
        for (id, _) in lives {
            if let Some(member) = self.members.get_mut(id) {
                member.incarnation = None;
                member.left = self.version;
            }
            self.orphan_sessions_of(*id, applied);
            self.unlock_all_of(*id);
        }
        let lost: Vec<NodeId> = lives.iter().map(|(id, _)| *id).collect();
        self.shrink_after_loss(&lost, applied);
    }

    pub(super) fn apply_format(
        &mut self,
        options: &FormatOptions,
        time_ns: u64,
        applied: &mut Applied,
    ) -> Outcome {
        let storing = self.members.values().filter(|m| m.info.space_bytes > 0).count();
        if options.pg_count == 0 || !options.pg_count.is_power_of_two() || options.pg_count > 1 << 16 {
            return Err(proto::client::ClientError::InvalidParameters);
        }
        self.members.retain(|_, m| m.incarnation.is_some());
        self.format = Some(*options);
        self.formats.insert(options.ctime);
        self.repair = Default::default();
        self.shut_down = false;
        self.vdis.clear();
        self.sessions.clear();
        self.freezes.clear();
        self.attributes.clear();
        self.pools.clear();
        self.epochs.clear();
        self.history = Default::default();
        self.write_back = self.members.values().any(|m| m.info.write_back);
        self.epoch = Epoch(0);
        if storing > 0 {
            let pool = self.new_pool(options.policy);
            self.pools.push(pool);
        } else {
            self.pools.push(Pool::empty(options.policy));
        }
        self.next_epoch(time_ns);
        applied.formatted = true;
        applied.membership = true;
        Ok(Accepted::Done)
    }

    fn next_epoch(&mut self, time_ns: u64) {
        if self.format.is_none() {
            return;
        }
        self.epoch = Epoch(self.epoch.0 + 1);
        let nodes = self.node_infos();
        self.epochs.push(EpochInfo { epoch: self.epoch, time: time_ns / 1_000_000_000, nodes });
        if self.epochs.len() > EPOCHS_MAX {
            self.epochs.remove(0);
        }
    }

    /// Members that are up, by id, with the vnodes that users see.
    pub fn node_infos(&self) -> Vec<NodeInfo> {
        let up: Vec<&MemberState> = self.members.values().filter(|m| m.incarnation.is_some()).collect();
        let members: Vec<_> = up.iter().map(|m| placement_member(&m.info)).collect();
        let vnodes = placement::vnodes(&members);
        up.iter()
            .zip(vnodes)
            .map(|(m, vnodes)| NodeInfo {
                id: m.info.id,
                zone: m.info.zone,
                vnodes: if m.info.space_bytes == 0 { 0 } else { m.info.fixed_vnodes.unwrap_or(vnodes) },
                space_bytes: m.info.space_bytes,
            })
            .collect()
    }
}

/// Capacities are compared in steps of a 32nd or so: a few GiB of logs elsewhere on the file system move no data.
fn coarse(space_bytes: u64) -> u64 {
    let keep = 64 - space_bytes.leading_zeros().min(59) - 5;
    space_bytes >> keep << keep
}

pub(super) fn placement_member(info: &MemberInfo) -> placement::Member {
    placement::Member { id: info.id, zone: info.zone, weight: info.space_bytes }
}
