//! What would become of placement groups if some members were stopped now: may their machines be switched off?
//!
//! Only complete copies that can be read on other members count: none that is being made, none that has left its in-sync set, none on a
//! member that is down or whose disk has failed. Where zones are too few for all copies that a policy wants, the places that there are do not
//! make it whole: a node that is put out of a small cluster leaves fewer copies for good. So the answer may be "not yet" for too long, and is never "yes" too early, as
//! far as this view goes; whoever asks compares the views of all that are up.

use std::collections::BTreeSet;

use proto::client::{FewPlaces, Shortfall, StopRisk};
use proto::{NodeId, PgId, PoolId, ZoneId};

use super::{Life, Pg, View};

/// From good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// Each place has its complete copy, or another member has one in its stead.
    Whole,
    /// The same, but there are fewer places than the policy wants: nothing that the cluster does by itself makes more of it.
    Few,
    Short,
    /// Writes wait.
    Held,
    /// No complete copy is up.
    Lost,
}

impl View {
    /// PGs of pools without VDIs have nothing to lose, unless a copy of theirs counts there: a VDI may be created at any moment.
    pub fn stop_risk(&self, nodes: &BTreeSet<NodeId>) -> StopRisk {
        let mut risk = StopRisk::default();
        let used: BTreeSet<PoolId> =
            self.vdis.values().filter(|vdi| vdi.life != Life::Gone).map(|vdi| vdi.pool).collect();
        for id in self.pg_ids() {
            let pg = self.pg(id).expect("listed");
            let counts_there = pg.in_sync.iter().any(|node| nodes.contains(node));
            if !counts_there && !used.contains(&id.pool) {
                continue;
            }
            risk.pgs += 1;
            let shortfall = match self.fate(id, pg, nodes) {
                Fate::Whole => continue,
                Fate::Few => {
                    count_few(&mut risk.few, pg.targets.len() as u8, self.width(id));
                    continue;
                }
                Fate::Short => &mut risk.short,
                Fate::Held => &mut risk.held,
                Fate::Lost => &mut risk.lost,
            };
            let Shortfall { pgs, already } = shortfall;
            *pgs += 1;
            *already += u32::from(!counts_there);
        }
        risk
    }

    fn fate(&self, id: PgId, pg: &Pg, without: &BTreeSet<NodeId>) -> Fate {
        let stays = |node: &&NodeId| !without.contains(node) && self.is_serving(**node);
        let left: Vec<NodeId> = pg.in_sync.iter().filter(stays).copied().collect();
        let zones: BTreeSet<ZoneId> = left.iter().map(|node| self.members[node].info.zone).collect();
        match left.len() {
            0 => Fate::Lost,
            copies if copies < self.min_copies(id) => Fate::Held,
            _ if zones.len() < pg.targets.len() => Fate::Short,
            _ if pg.targets.len() < usize::from(self.width(id)) => Fate::Few,
            _ => Fate::Whole,
        }
    }

    fn width(&self, id: PgId) -> u8 {
        self.pools[usize::from(id.pool.0)].policy.width()
    }
}

/// One more PG that has so many places, and wants so many.
fn count_few(few: &mut FewPlaces, copies: u8, wanted: u8) {
    few.pgs += 1;
    if wanted - copies > few.wanted - few.copies {
        (few.copies, few.wanted) = (copies, wanted);
    }
}
