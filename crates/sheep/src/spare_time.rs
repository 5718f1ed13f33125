//! When a disk has time for what nobody waits for: writes ahead of use.
//!
//! They begin when nobody has asked the store for anything for a while, and go on one at a time with a pause as long as each took, so
//! that they never have the disk for themselves for long. Under a load that never pauses there is none as long as enough is left, and then a larger
//! one now and then: or a store that is never left alone would never have room ahead.

use std::time::Duration;

use node::Time;

/// So long nobody has asked for anything.
const IDLE: Duration = Duration::from_millis(100);
/// Between two besides a load. Each costs the file system a commit of its journal, which durable writes wait for, some 5 ms, however much is written.
const BESIDES_LOAD: Duration = Duration::from_secs(1);
/// Pieces (1 MiB) of one besides a load.
const BESIDES_LOAD_PIECES: u32 = 4;

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

    /// The store wants to write ahead, and nothing of the kind is under way any more: from when on it may. If it `is_short` of what is written
    /// that does not wait for ever.
    pub fn next(&mut self, now: Time, is_short: bool) -> Time {
        if std::mem::take(&mut self.is_under_way) {
            self.took = now.since(self.begun);
        }
        let idle = self.last_busy.after(IDLE).max(self.begun.after(2 * self.took));
        if is_short { idle.min(self.begun.after(BESIDES_LOAD)) } else { idle }
    }

    /// A write ahead begins: of how many pieces?
    pub fn begin(&mut self, now: Time) -> u32 {
        (self.begun, self.is_under_way) = (now, true);
        if now < self.last_busy.after(IDLE) { BESIDES_LOAD_PIECES } else { 1 }
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
        assert_eq!(spare.next(at(1003), false), at(1100), "idle for a while first");
        assert_eq!(spare.begin(at(1100)), 1);
        assert_eq!(spare.next(at(1107), true), at(1114));
        assert_eq!(spare.next(at(1120), true), at(1114), "it took what it took");
        for now in 1120..2100 {
            spare.is_busy(at(now));
            assert!(spare.next(at(now), true) > at(now));
        }
        assert_eq!(spare.next(at(2100), true), at(2100));
        assert_eq!(spare.next(at(2100), false), at(2199), "enough is left");
        assert_eq!(spare.begin(at(2100)), BESIDES_LOAD_PIECES);
    }
}
