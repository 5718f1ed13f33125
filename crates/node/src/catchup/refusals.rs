//! Copies that this node's disk has refused, mostly since it is full: tried again ever more rarely, for each attempt fetches what it cannot keep.
//!
//! By PG: one that only has to overwrite what lies here already is done in spite of a full disk.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::PgId;

use crate::Time;

/// Pause after an attempt that was refused or dropped.
pub(super) const BACK_OFF: Duration = Duration::from_secs(2);
/// And at most so long a one after a disk's refusals: there may be room again.
const BACK_OFF_MAX: Duration = Duration::from_secs(32);
/// How often that is logged.
const TELL_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Refusals {
    pauses: BTreeMap<PgId, Duration>,
    told: Option<Time>,
}

impl Refusals {
    /// True: it is time to say so once more.
    pub fn note(&mut self, pg: PgId, now: Time) -> bool {
        let pause = self.pauses.entry(pg).or_insert(BACK_OFF);
        *pause = (*pause * 2).min(BACK_OFF_MAX);
        let tells = self.told.is_none_or(|at| now.since(at) >= TELL_EVERY);
        if tells {
            self.told = Some(now);
        }
        tells
    }

    /// Until the next attempt.
    pub fn pause(&self, pg: PgId) -> Duration {
        self.pauses.get(&pg).copied().unwrap_or(BACK_OFF)
    }

    /// Its copy here is complete, or not wanted any more.
    pub fn forget(&mut self, pg: PgId) {
        self.pauses.remove(&pg);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_again_and_again_is_tried_ever_more_rarely() {
        let pg = |index| PgId { pool: proto::PoolId(0), index };
        let at = |secs: u64| Time(secs * 1_000_000_000);
        let mut refusals = Refusals::default();
        assert_eq!(refusals.pause(pg(1)).as_secs(), 2);
        let told: Vec<bool> = (0..8).map(|n| refusals.note(pg(1), at(n * 10))).collect();
        assert_eq!(told, [true, false, false, false, false, false, true, false]);
        assert_eq!(refusals.pause(pg(1)).as_secs(), 32);
        assert_eq!(refusals.pause(pg(2)).as_secs(), 2, "others are not concerned");
        refusals.forget(pg(1));
        assert_eq!(refusals.pause(pg(1)).as_secs(), 2);
    }
}
