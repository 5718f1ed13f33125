//! How far a node has come with catching up, for those who wait for it.

use proto::NodeId;

use super::CatchUp;
use crate::view::View;

/// What a node lacks, and what it has fetched of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// PGs that should have a copy on this node and have none that counts, whether or not it has begun to catch up.
    pub pgs_behind: u32,
    /// Objects looked at or fetched since the node last lacked nothing, and those that are known to be left as well.
    pub objects_done: u64,
    pub objects_total: u64,
}

impl CatchUp {
    pub fn progress(&self, view: &View, me: NodeId) -> Progress {
        let pgs = view.pools().iter().flat_map(|pool| pool.pgs.iter());
        let lacking = pgs.filter(|pg| pg.targets.contains(&me) && !pg.in_sync.contains(&me)).count();
        let left: u64 = self.pgs.values().map(|behind| behind.todo.len() as u64).sum();
        Progress {
            pgs_behind: lacking as u32,
            objects_done: self.objects_done,
            objects_total: self.objects_done + left,
        }
    }

    /// A PG is about to be caught up on: counting begins anew if nothing else is.
    pub(super) fn begin_count(&mut self) {
        if self.pgs.is_empty() {
            self.objects_done = 0;
        }
    }
}
