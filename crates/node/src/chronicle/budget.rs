//! How many lines of one kind the log takes: a bad night is told in full, a machine that flaps for weeks fills no disk.

use std::time::Duration;

use crate::Time;

const BURST: u32 = 100;
/// 14400 lines a day at most, some 2 MB.
const ONE_MORE: Duration = Duration::from_secs(6);

#[derive(Debug, Default)]
pub(super) struct Budget {
    /// Taken of the burst, and until when time has given it back.
    taken: u32,
    counted_to: Time,
    left_out: u64,
}

impl Budget {
    /// May another line be written? Says first how many were not.
    pub fn take(&mut self, now: Time) -> bool {
        let may = self.has_room(now);
        if may && self.left_out > 0 {
            let lines = std::mem::take(&mut self.left_out);
            tracing::warn!(lines, "so much happened that lines like the next one were left out");
        }
        self.left_out += u64::from(!may);
        may
    }

    fn has_room(&mut self, now: Time) -> bool {
        let back = now.since(self.counted_to).as_nanos() / ONE_MORE.as_nanos();
        if back >= u128::from(self.taken) {
            (self.taken, self.counted_to) = (0, now);
        } else {
            self.taken -= back as u32;
            self.counted_to = self.counted_to.after(ONE_MORE * back as u32);
        }
        let may = self.taken < BURST;
        self.taken += u32::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_told_in_full_and_what_never_ends_now_and_then() {
        let mut budget = Budget::default();
        let at = |ms: u64| Time(ms * 1_000_000);
        let told = (0..1000).filter(|i| budget.take(at(1000 + i))).count();
        assert_eq!(told, 100);
        assert_eq!(budget.left_out, 900);
        assert!(budget.take(at(7000)), "one more after six seconds");
        assert_eq!(budget.left_out, 0, "it was said how many were left out");
        assert!(!budget.take(at(7001)));
        let told = (0..650).filter(|i| budget.take(at(7002 + i * 100))).count();
        assert_eq!(told, 10, "at 13, 19, ... 67 seconds");
        assert_eq!((0..1000).filter(|_| budget.take(at(10_000_000))).count(), 100);
    }
}
