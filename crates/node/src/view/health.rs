//! How well the cluster keeps what it holds, as far as its state tells: whose copies are missing, and what does not go on for it.

use proto::client::{Health, MemberHealth, PoolHealth};
use proto::{NodeId, PgId, PoolId};

use super::{Pg, Pool, View};

impl View {
    pub fn health(&self) -> Health {
        let members = self.members.values().map(|member| self.member_health(member.info.id)).collect();
        let pools = (0..self.pools.len()).map(|number| self.pool_health(PoolId(number as u8))).collect();
        Health { status: self.status(), members, pools }
    }

    fn member_health(&self, id: NodeId) -> MemberHealth {
        let member = &self.members[&id];
        let is_up = member.incarnation.is_some();
        let is_serving = self.is_serving(id);
        let mut health = MemberHealth {
            id,
            zone: member.info.zone,
            space_bytes: member.info.space_bytes,
            is_up,
            pgs: 0,
            pgs_in_sync: 0,
            pgs_awaiting: 0,
            pgs_unreadable: 0,
            disk_failed: self.has_failed_disk(id),
            out: member.out,
            may_time_out: self.may_time_out(id),
        };
        for id_of_pg in self.pg_ids() {
            let pg = self.pg(id_of_pg).expect("listed");
            let in_sync = pg.in_sync.contains(&id);
            health.pgs += u32::from(pg.targets.contains(&id));
            health.pgs_in_sync += u32::from(in_sync);
            health.pgs_awaiting += u32::from(in_sync && !is_serving && !self.is_writable(id_of_pg));
            health.pgs_unreadable += u32::from(in_sync && !is_serving && self.copies_up(pg) == 0);
        }
        health
    }

    fn pool_health(&self, id: PoolId) -> PoolHealth {
        let pool: &Pool = &self.pools[usize::from(id.0)];
        let vdis = self.vdis.values().filter(|vdi| vdi.pool == id && vdi.life == super::Life::Alive).count();
        let mut health = PoolHealth {
            policy: pool.policy,
            is_default: self.format.is_some_and(|format| format.policy == pool.policy),
            vdis: vdis as u32,
            pgs: pool.pgs.len() as u32,
            targets_min: pool.pgs.iter().map(|pg| pg.targets.len()).min().unwrap_or(0) as u8,
            copies_min: pool.pgs.iter().map(|pg| self.copies_up(pg)).min().unwrap_or(0) as u8,
            degraded: 0,
            moving: 0,
            unwritable: 0,
            unreadable: 0,
        };
        for (index, pg) in pool.pgs.iter().enumerate() {
            let copies = self.copies_up(pg);
            let is_degraded = copies < pg.targets.len();
            let is_placed = pg.targets.iter().all(|target| pg.in_sync.contains(target));
            health.degraded += u32::from(is_degraded);
            health.moving += u32::from(!is_degraded && !is_placed);
            health.unwritable += u32::from(!self.is_writable(PgId { pool: id, index: index as u32 }));
            health.unreadable += u32::from(copies == 0);
        }
        health
    }

    /// Copies that have everything and can be read now.
    fn copies_up(&self, pg: &Pg) -> usize {
        pg.in_sync.iter().filter(|node| self.is_serving(**node)).count()
    }
}
