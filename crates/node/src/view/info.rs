//! What users may ask of a view.

use proto::client::{ClientError, ClusterInfo, ClusterStatus, Selector, VdiInfo};
use proto::{NodeId, PgId, PoolId, Vid};

use super::{Life, Vdi, View};

impl View {
    pub fn status(&self) -> ClusterStatus {
        if self.shut_down {
            ClusterStatus::ShuttingDown
        } else if self.format.is_none() {
            ClusterStatus::WaitForFormat
        } else if self.pg_ids().any(|pg| !self.is_writable(pg)) {
            // Some member has to come back, or to be let go, before every write can go on.
            ClusterStatus::WaitForJoin
        } else {
            ClusterStatus::Running
        }
    }

    pub(super) fn pg_ids(&self) -> impl Iterator<Item = PgId> + '_ {
        self.pools.iter().enumerate().flat_map(|(number, pool)| {
            (0..pool.pgs.len() as u32).map(move |index| PgId { pool: PoolId(number as u8), index })
        })
    }

    pub fn cluster_info(&self, this_node: NodeId) -> ClusterInfo {
        ClusterInfo {
            status: self.status(),
            format: self.format,
            epoch: self.epoch,
            nodes: self.node_infos(),
            epochs: self.epochs.iter().rev().cloned().collect(),
            repair: self.repair,
            this_node,
        }
    }

    pub fn vdi_info(&self, vid: Vid) -> Option<VdiInfo> {
        Some(self.vdi(vid)?.info(vid, self.session(vid).owner.map(|(node, _)| node)))
    }

    /// Finds a VDI by name and snapshot id or tag, with the errors of spec section 4.4.
    pub fn lookup(&self, name: &[u8], selector: &Selector) -> Result<Vid, ClientError> {
        if self.format.is_none() {
            return Err(ClientError::WaitForFormat);
        }
        let of_name = || self.vdis.iter().filter(|(_, v)| v.life == Life::Alive && v.name == name);
        let snapshot = |matches: &dyn Fn(&Vdi) -> bool| {
            let found = of_name().filter(|(_, v)| v.is_snapshot() && matches(v)).map(|(vid, _)| *vid).last();
            found.ok_or(if of_name().next().is_some() { ClientError::NoTag } else { ClientError::NoVdi })
        };
        let tagged = |v: &Vdi, tag: &[u8]| !tag.is_empty() && v.tag == tag;
        match selector {
            Selector::Working => self.working_vdi(name).ok_or(ClientError::NoVdi),
            Selector::SnapId(id) => snapshot(&|v| v.snap_id == *id),
            Selector::Tag(tag) => snapshot(&|v| tagged(v, tag)),
            Selector::TagOrSnapId(tag, id) => snapshot(&|v| tagged(v, tag) || (*id != 0 && v.snap_id == *id)),
        }
    }
}
