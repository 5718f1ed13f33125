//! How many lines one place of the program gets: a bad night is told in full, what repeats for weeks fills no disk.
//!
//! Each place that logs (a callsite of `tracing`) has a bound of its own, so that a flood from one of them costs no line of another:
//! what must not be missed among things that repeat is logged by a place of its own. Memory is bounded by the number of places.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;

/// Lines at once.
const BURST: u32 = 100;
/// 14400 lines a day at most, some 2 MB.
const ONE_MORE: Duration = Duration::from_secs(6);

pub(super) struct Bounds {
    clock: Box<dyn Fn() -> Instant + Send + Sync>,
    places: Mutex<HashMap<Identifier, Bound>>,
}

/// A line may be written, and tells of those that are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leave {
    /// Since the line before it.
    left_out: u64,
    /// So would be the next one, now.
    is_last: bool,
}

struct Bound {
    /// Taken of the burst, and until when time has given it back.
    taken: u32,
    counted_to: Instant,
    left_out: u64,
}

impl Bounds {
    pub fn new(clock: impl Fn() -> Instant + Send + Sync + 'static) -> Bounds {
        Bounds { clock: Box::new(clock), places: Mutex::default() }
    }

    /// May this place write a line?
    pub fn take(&self, place: Identifier) -> Option<Leave> {
        let now = (self.clock)();
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.entry(place).or_insert_with(|| Bound::new(now)).take(now)
    }
}

impl Bound {
    fn new(now: Instant) -> Bound {
        Bound { taken: 0, counted_to: now, left_out: 0 }
    }

    fn take(&mut self, now: Instant) -> Option<Leave> {
        self.give_back(now);
        if self.taken == BURST {
            self.left_out += 1;
            return None;
        }
        self.taken += 1;
        Some(Leave { left_out: std::mem::take(&mut self.left_out), is_last: self.taken == BURST })
    }

    fn give_back(&mut self, now: Instant) {
        let back = now.saturating_duration_since(self.counted_to).as_nanos() / ONE_MORE.as_nanos();
        if back >= u128::from(self.taken) {
            (self.taken, self.counted_to) = (0, now);
        } else {
            self.taken -= back as u32;
            self.counted_to += ONE_MORE * back as u32;
        }
    }
}

/// As fields at the end of the line; of most lines nothing.
impl fmt::Display for Leave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.left_out > 0 {
            write!(f, ", like_it_left_out_before: {}", self.left_out)?;
        }
        if self.is_last {
            write!(f, ", like_it_left_out_for: {ONE_MORE:?}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_told_in_full_and_what_never_ends_now_and_then() {
        let start = Instant::now();
        let mut bound = Bound::new(start);
        let at = |ms: u64| start + Duration::from_millis(ms);
        let told: Vec<Leave> = (0..1000).filter_map(|ms| bound.take(at(ms))).collect();
        assert_eq!(told.len(), 100);
        assert!(told[..99].iter().all(|leave| leave.to_string().is_empty()));
        assert_eq!(told[99].to_string(), ", like_it_left_out_for: 6s");
        assert_eq!(bound.take(at(6000)), Some(Leave { left_out: 900, is_last: true }), "one more");
        assert_eq!(bound.take(at(6001)), None);
        let told: Vec<Leave> = (0..650).filter_map(|i| bound.take(at(6002 + i * 100))).collect();
        assert_eq!(told.len(), 10, "at 12, 18, ... 66 seconds");
        assert_eq!(told[0].left_out, 61, "those since the last one");
        assert_eq!((0..1000).filter_map(|_| bound.take(at(10_000_000))).count(), 100, "all given back");
    }

    #[test]
    fn rare_lines_are_never_left_out() {
        let start = Instant::now();
        let mut bound = Bound::new(start);
        let all = (0..5000).map(|i| bound.take(start + ONE_MORE * i));
        assert!(all.into_iter().all(|leave| leave == Some(Leave { left_out: 0, is_last: false })));
    }
}
