//! Where copies belonged at earlier epochs: what `dog vdi track` shows.
//!
//! Only what changed is kept. A PG's targets at an epoch are those that the first later change took away, or today's if
//! none did. What is too long ago is forgotten, and then nothing is told of that epoch rather than something wrong.

use std::collections::{BTreeMap, VecDeque};

use proto::client::{Places, Track};
use proto::{Epoch, NodeId, PgId, PoolId};
use serde::{Deserialize, Serialize};

use super::View;

/// Changes of targets that are remembered, of all PGs: a few hundred kilobytes, or some dozen machines that came.
const FORMER_MAX: usize = 1 << 14;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct History {
    /// Oldest first.
    former: VecDeque<Former>,
    /// Epoch at which each pool got its PGs.
    pools: BTreeMap<PoolId, Epoch>,
    /// Changes of earlier epochs may have been forgotten.
    complete_since: Epoch,
}

/// Targets that a PG does not have any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Former {
    pg: PgId,
    /// The last epoch that ended with them.
    until: Epoch,
    targets: Vec<NodeId>,
}

impl History {
    /// `epoch` is the one after the change, which it may have begun. Either way the one before has ended with `targets`,
    /// unless an earlier change within `epoch` has told already with what it ended.
    fn remember(&mut self, pg: PgId, targets: Vec<NodeId>, epoch: Epoch) {
        let until = Epoch(epoch.0.saturating_sub(1));
        let mut same_epoch = self.former.iter().rev().take_while(|former| former.until == until);
        if !same_epoch.any(|former| former.pg == pg) {
            self.former.push_back(Former { pg, until, targets });
        }
        // All changes of one epoch, or none: half of them would tell of places that never were.
        while self.former.len() > FORMER_MAX {
            let forgotten = self.former[0].until;
            self.former.retain(|former| former.until > forgotten);
            self.complete_since = Epoch(forgotten.0 + 1);
        }
    }

    /// `None` where they are not known.
    fn targets_at<'a>(&'a self, pg: PgId, epoch: Epoch, today: &'a [NodeId]) -> Option<&'a [NodeId]> {
        let existed = self.pools.get(&pg.pool).is_some_and(|since| *since <= epoch);
        if !existed || epoch < self.complete_since {
            return None;
        }
        let change = self.former.iter().find(|former| former.pg == pg && former.until >= epoch);
        Some(change.map_or(today, |former| &former.targets))
    }
}

impl View {
    /// After every entry, with the targets that it took away.
    pub(super) fn remember_places(&mut self, former: Vec<(PgId, Vec<NodeId>)>) {
        for (number, pool) in self.pools.iter().enumerate() {
            if !pool.pgs.is_empty() {
                self.history.pools.entry(PoolId(number as u8)).or_insert(self.epoch);
            }
        }
        for (pg, targets) in former {
            self.history.remember(pg, targets, self.epoch);
        }
    }

    /// Where the PG's copies belonged, at each recorded epoch, newest first.
    pub fn track(&self, id: PgId) -> Track {
        let today = self.pg(id).map_or(&[][..], |pg| &pg.targets);
        let epochs = || self.epochs.iter().rev().map(|info| info.epoch);
        let places = epochs().map_while(|epoch| {
            let nodes = self.history.targets_at(id, epoch, today)?.to_vec();
            Some(Places { epoch, nodes })
        });
        let places: Vec<Places> = places.collect();
        let unknown_epochs = epochs().count() - places.len();
        Track { places, unknown_epochs: unknown_epochs as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const PG: PgId = PgId { pool: PoolId(0), index: 3 };

    fn nodes(n: u16) -> Vec<NodeId> {
        vec![NodeId::new(Ipv4Addr::LOCALHOST.into(), n)]
    }

    fn history() -> History {
        History { pools: [(PoolId(0), Epoch(1))].into(), ..History::default() }
    }

    #[test]
    fn targets_are_those_that_the_next_change_took_away() {
        let mut history = history();
        history.remember(PG, nodes(1), Epoch(3));
        history.remember(PG, nodes(2), Epoch(5));
        let today = nodes(3);
        let at = |epoch| history.targets_at(PG, Epoch(epoch), &today).unwrap().to_vec();
        assert_eq!([at(1), at(2), at(3), at(4), at(5), at(6)].map(|n| n[0].port), [1, 1, 2, 2, 3, 3]);
        let other = PgId { index: 4, ..PG };
        assert_eq!(history.targets_at(other, Epoch(1), &today), Some(&today[..]));
    }

    #[test]
    fn of_several_changes_within_an_epoch_the_last_one_counts() {
        let mut history = history();
        history.remember(PG, nodes(1), Epoch(3));
        history.remember(PG, nodes(2), Epoch(3));
        let today = nodes(3);
        assert_eq!(history.targets_at(PG, Epoch(2), &today), Some(&nodes(1)[..]));
        assert_eq!(history.targets_at(PG, Epoch(3), &today), Some(&today[..]));
    }

    #[test]
    fn what_was_forgotten_or_never_was_is_not_told() {
        let mut history = history();
        for epoch in 2..7 {
            for index in 0..FORMER_MAX as u32 / 4 {
                history.remember(PgId { index, ..PG }, nodes(epoch), Epoch(epoch.into()));
            }
        }
        let today = nodes(99);
        let known: Vec<bool> =
            (1..7).map(|epoch| history.targets_at(PG, Epoch(epoch), &today).is_some()).collect();
        assert_eq!(known, [false, true, true, true, true, true]);
        assert_eq!(history.targets_at(PgId { pool: PoolId(1), index: 0 }, Epoch(6), &today), None);
    }
}
