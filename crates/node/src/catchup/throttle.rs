//! An operator's bound on how many objects this node begins to fetch: so many in each interval, whatever else there is time for.

use std::time::Duration;

use proto::client::RecoveryThrottle;

use crate::Time;

/// A longer interval would not end in anybody's life, and must not overflow.
const INTERVAL_MAX: Duration = Duration::from_secs(100 * 365 * 86400);

#[derive(Debug, Default)]
pub(super) struct Throttle {
    bound: RecoveryThrottle,
    /// When the interval began; nothing has been begun in any if `begun` is 0.
    since: Time,
    begun: u32,
    /// Objects were held back since the last call of `next`'s moment.
    is_waiting: bool,
}

impl Throttle {
    /// From now on, with a new interval.
    pub fn set(&mut self, bound: RecoveryThrottle) {
        *self = Throttle { bound, ..Throttle::default() };
    }

    pub fn bound(&self) -> RecoveryThrottle {
        self.bound
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.bound.interval_ms).min(INTERVAL_MAX)
    }

    /// May another object be begun? If not, ask again at [`Throttle::next`].
    pub fn take(&mut self, now: Time) -> bool {
        if !self.bound.is_on() {
            return true;
        }
        if self.begun == 0 || now >= self.since.after(self.interval()) {
            (self.since, self.begun) = (now, 0);
        }
        let may = self.begun < self.bound.objects_max;
        self.begun += u32::from(may);
        self.is_waiting = !may;
        may
    }

    /// When something that was held back may go on.
    pub fn next(&self) -> Option<Time> {
        self.is_waiting.then(|| self.since.after(self.interval()))
    }

    /// Its moment has come; whatever still has to wait says so again.
    pub fn resume(&mut self, now: Time) {
        self.is_waiting &= now < self.since.after(self.interval());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn so_many_objects_are_begun_in_each_interval() {
        let mut throttle = Throttle::default();
        assert!((0..1000).all(|_| throttle.take(Time(0))), "no bound");
        throttle.set(RecoveryThrottle { objects_max: 3, interval_ms: 500 });
        let mut now = Time(7 * MS);
        for _ in 0..4 {
            assert!((0..3).all(|_| throttle.take(now)));
            assert!(!throttle.take(now) && !throttle.take(Time(now.0 + 499 * MS)));
            let next = throttle.next().expect("something waits");
            assert_eq!(next, Time(now.0 + 500 * MS));
            now = next;
            throttle.resume(now);
            assert_eq!(throttle.next(), None, "nothing is left unless it asks again");
        }
    }

    #[test]
    fn the_longest_interval_does_not_overflow() {
        let mut throttle = Throttle::default();
        throttle.set(RecoveryThrottle { objects_max: 1, interval_ms: u64::MAX });
        assert!(throttle.take(Time(5)) && !throttle.take(Time(1 << 60)));
        assert!(throttle.next().is_some_and(|at| at > Time(1 << 60)));
        throttle.set(RecoveryThrottle::default());
        assert!(throttle.take(Time(6)) && throttle.next().is_none());
    }
}
