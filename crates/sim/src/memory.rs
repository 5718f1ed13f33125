//! What is lost with the memory of processes, where clients are answered before their writes are durable.
//!
//! Of a PG it is lost when the last process ends that counts: one whose copy is in sync, as the order of events has it at this moment, and that is a
//! member in its present life. As long as one of them lives, nothing that was answered may go. A copy that is named in the set and whose process has
//! started anew but not joined does not count, one that has joined does: had it lost something, it must not be in the set.

use std::collections::BTreeSet;

use proto::{NodeId, PgId, PoolId};

use crate::history::BlockId;
use crate::network::SheepIndex;
use crate::world::World;

impl World {
    /// The memory of a sheep is lost.
    pub(crate) fn note_memory_loss(&mut self, index: SheepIndex) {
        if !self.scenario.write_back {
            return;
        }
        self.follow_truth();
        let id = self.sheep[index].id();
        let mut lost = BTreeSet::new();
        for (number, pool) in self.truth.pools().iter().enumerate() {
            for (place, pg) in pool.pgs.iter().enumerate() {
                let lives = |node: &NodeId| *node != id && self.has_lived_on(*node);
                if pg.in_sync.contains(&id) && !pg.in_sync.iter().any(lives) {
                    lost.insert(PgId { pool: PoolId(number as u8), index: place as u32 });
                }
            }
        }
        if !lost.is_empty() {
            self.log(|| format!("the memory of {} PGs is lost with sheep {index}", lost.len()));
            self.history.lose(lost);
        }
    }

    pub(crate) fn follow_truth(&mut self) {
        let heard = self.truth.version().0 as usize;
        for entry in &self.driver.log()[heard..] {
            self.truth.apply(entry);
        }
    }

    fn has_lived_on(&self, id: NodeId) -> bool {
        let sheep = self.sheep.iter().find(|sheep| sheep.id() == id).expect("a sheep of this cluster");
        let joined = self.driver.life_of(id).is_some_and(|life| self.truth.is_alive(id, life));
        sheep.is_up() && joined && !self.truth.members()[&id].disk_failed
    }

    /// Puts losses and flushes into the histories.
    pub(crate) fn conclude_histories(&mut self) {
        self.follow_truth();
        let blocks = (1u64 << self.scenario.format.block_size_shift) / proto::BLOCK_BYTES as u64;
        let truth = &self.truth;
        self.history
            .conclude(|id: &BlockId| truth.pg_of(proto::Oid::data(id.vid, (id.block / blocks) as u32)));
    }
}
