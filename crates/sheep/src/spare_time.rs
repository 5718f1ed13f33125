//! When a disk has time for what nobody waits for: writes ahead of use.
//!
//! They begin when nobody has asked the store for anything for a while, and go on one at a time with a pause as long as each took, so
//! that they never have the disk for themselves for long. Under a load that never pauses there is one now and then: or a store that
//! is never left alone would never have room ahead.

use std::time::Duration;

use node::Time;

/// So long nobody has asked for anything.
const IDLE: Duration = Duration::from_millis(100);
/// Between two besides a load: 4 MiB/s at most. Each costs the file system a commit of its journal, which durable writes wait for.
const BESIDES_LOAD: Duration = Duration::from_millis(250);

/// Tells when the next write ahead may begin.
#[derive(Default)]
pub struct SpareTime {
    /// When the store last had something to do for others.
    last_busy: Time,
    /// When the last write ahead began.
    begun: Time,
    is_under_way: bool,
    /// How long it took.
    took: Duration,
}

impl SpareTime {
    /// The store has orders, or has just answered one.
    pub fn is_busy(&mut self, now: Time) {
        self.last_busy = now;
    }

    /// The store wants to write ahead, and nothing of the kind is under way any more: from when on it may.
    pub fn next(&mut self, now: Time) -> Time {
        if std::mem::take(&mut self.is_under_way) {
            self.took = now.since(self.begun);
        }
        let idle = self.last_busy.after(IDLE).max(self.begun.after(2 * self.took));
        idle.min(self.begun.after(BESIDES_LOAD))
    }

    /// A write ahead begins.
    pub fn begin(&mut self, now: Time) {
        (self.begun, self.is_under_way) = (now, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time(ms * 1_000_000)
    }

    #[test]
    fn an_idle_disk_rests_as_long_as_each_write_took_and_a_busy_one_longer() {
        let mut spare = SpareTime::default();
        spare.is_busy(at(1000));
        spare.begin(at(1000));
        assert_eq!(spare.next(at(1003)), at(1100), "idle for a while first");
        spare.begin(at(1100));
        assert_eq!(spare.next(at(1107)), at(1114));
        assert_eq!(spare.next(at(1120)), at(1114), "it took what it took");
        for now in 1120..1350 {
            spare.is_busy(at(now));
            assert!(spare.next(at(now)) > at(now));
        }
        assert_eq!(spare.next(at(1350)), at(1350));
    }
}
