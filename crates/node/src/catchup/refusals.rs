//! Copies for which this node's disk has had no room: tried again ever more rarely, for each attempt fetches what it cannot keep.
//!
//! By PG: one that only has to overwrite what lies here already is done in spite of a full disk. And not where writes wait for that copy.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::PgId;

use crate::Time;

const PAUSE_MIN: Duration = Duration::from_secs(4);
/// There may be room again.
const PAUSE_MAX: Duration = Duration::from_secs(32);
/// How often that is logged.
const TELL_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Refusals {
    pgs: BTreeMap<PgId, Refused>,
    told: Option<Time>,
}

#[derive(Debug)]
struct Refused {
    pause: Duration,
    until: Time,
}

impl Refusals {
    /// True: it is time to say so once more.
    pub fn note(&mut self, pg: PgId, now: Time) -> bool {
        let pause = self.pgs.get(&pg).map_or(PAUSE_MIN, |refused| (refused.pause * 2).min(PAUSE_MAX));
        self.pgs.insert(pg, Refused { pause, until: now.after(pause) });
        let tells = self.told.is_none_or(|at| now.since(at) >= TELL_EVERY);
        if tells {
            self.told = Some(now);
        }
        tells
    }

    /// Is it time for another attempt?
    pub fn may_try(&self, pg: PgId, now: Time) -> bool {
        self.pgs.get(&pg).is_none_or(|refused| refused.until <= now)
    }

    /// Its copy here is complete, or not wanted any more.
    pub fn forget(&mut self, pg: PgId) {
        self.pgs.remove(&pg);
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
        let (mut now, mut pauses, mut told) = (0, Vec::new(), Vec::new());
        for _ in 0..6 {
            told.push(refusals.note(pg(1), at(now)));
            let pause = (0..).find(|secs| refusals.may_try(pg(1), at(now + secs))).unwrap();
            pauses.push(pause);
            now += pause;
        }
        assert_eq!(pauses, [4, 8, 16, 32, 32, 32]);
        assert_eq!(told, [true, false, false, false, true, false], "at 0, 4, 12, 28, 60 and 92 s");
        refusals.note(pg(1), at(now));
        assert!(refusals.may_try(pg(2), at(now)), "others are not concerned");
        assert!(!refusals.may_try(pg(1), at(now)));
        refusals.forget(pg(1));
        assert!(refusals.may_try(pg(1), at(now)));
    }
}
