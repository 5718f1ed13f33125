//! How fast a node fetches: as fast as it can while nobody waits for anything else, and else as fast as those who wait hardly notice.
//!
//! Every tick the rate grows by a tenth while guests are served as usual, and is halved when this node's store or a source's is under strain
//! ([`crate::strain`]). An operator's bound holds besides.

use std::collections::VecDeque;
use std::time::Duration;

use proto::peer::Pressure;
use proto::{Oid, PgId};

use crate::Time;

/// Bytes per second, whatever the strain: repair comes to an end.
const RATE_MIN: u64 = 4 << 20;
const RATE_MAX: u64 = 64 << 30;
/// More per second, each tick in which guests do not notice: a tenth, and this.
const STEP: u64 = 256 << 10;
/// Blocks of a piece while nobody waits for anything else: 512 KiB.
pub(super) const PIECE_BLOCKS_MAX: u32 = 128;
/// And while guests do, who wait for each piece that is before them: 64 KiB, the least that the store does not write twice.
const SMALL_PIECE_BLOCKS: u32 = 16;
/// What may be fetched at once after a pause: so much time's worth, and a piece.
const BURST: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Pace {
    rate: u64,
    /// Bytes that may be fetched now; below zero, after a piece that was larger.
    credit: i64,
    credited: Time,
    /// Bytes fetched since the last tick.
    spent: u64,
    /// The worst that was heard since the last tick.
    pressure: Pressure,
    /// What the tick before has heard.
    last: Pressure,
    /// Objects whose next piece has to wait, by the attempt.
    waiting: VecDeque<(PgId, Oid)>,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            rate: RATE_MIN,
            credit: 0,
            credited: Time(0),
            spent: 0,
            pressure: Pressure::None,
            last: Pressure::None,
            waiting: VecDeque::new(),
        }
    }
}

impl Pace {
    pub fn hear(&mut self, pressure: Pressure) {
        self.pressure = self.pressure.max(pressure);
    }

    /// `tick`: how long ago the last one was.
    pub fn handle_tick(&mut self, tick: Duration) {
        let spent = std::mem::take(&mut self.spent);
        let pressure = std::mem::take(&mut self.pressure);
        // The bound grew while nobody was there to notice: what was really fetched is the measure.
        let real = (u128::from(spent) * 1_000_000_000 / tick.as_nanos().max(1)) as u64;
        self.rate = match pressure {
            Pressure::None => self.rate * 4,
            Pressure::Busy => {
                let rate = self.rate.min(real * 2);
                rate + rate / 10 + STEP
            }
            Pressure::Strained => self.rate.min(real) / 2,
        }
        .clamp(RATE_MIN, RATE_MAX);
        self.last = pressure;
    }

    /// The end of a piece that begins here: pieces of an object begin where their size says.
    pub fn piece_end(&self, first: u32) -> u64 {
        let is_alone = self.last.max(self.pressure) == Pressure::None;
        let size = if is_alone { PIECE_BLOCKS_MAX } else { SMALL_PIECE_BLOCKS };
        u64::from(first - first % size) + u64::from(size)
    }

    /// Takes what the piece costs, or has the object wait until [`Pace::next`].
    pub fn take(&mut self, bytes: u64, bound: u64, now: Time, key: (PgId, Oid)) -> bool {
        let rate = if bound == 0 { self.rate } else { self.rate.min(bound) };
        // However long ago: what is earned at most is bounded below.
        let passed = now.since(self.credited);
        let earned = (u128::from(rate) * passed.as_nanos() / 1_000_000_000) as i64;
        let most = (u128::from(rate) * BURST.as_nanos() / 1_000_000_000) as i64;
        self.credit = self.credit.saturating_add(earned).min(most.max(1));
        self.credited = now;
        if self.credit <= 0 {
            self.hold(key);
            return false;
        }
        self.credit -= bytes as i64;
        self.spent += bytes;
        true
    }

    /// Has the object wait for another reason.
    pub fn hold(&mut self, key: (PgId, Oid)) {
        if !self.waiting.contains(&key) {
            self.waiting.push_back(key);
        }
    }

    /// When somebody who waits may go on.
    pub fn next(&self, bound: u64) -> Option<Time> {
        self.waiting.front()?;
        let rate = if bound == 0 { self.rate } else { self.rate.min(bound) };
        let lacking = (1 - self.credit).max(0) as u128;
        let wait = Duration::from_nanos((lacking * 1_000_000_000 / u128::from(rate)) as u64);
        Some(self.credited.after(wait.max(Duration::from_millis(1))))
    }

    pub fn take_waiting(&mut self) -> VecDeque<(PgId, Oid)> {
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use proto::BLOCK_BYTES;

    use super::*;

    const PIECE: u64 = 1 << 20;
    const TICK: Duration = Duration::from_millis(100);

    fn key() -> (PgId, Oid) {
        (PgId { pool: proto::PoolId(0), index: 0 }, Oid(1))
    }

    /// Fetches pieces for a second of virtual time; what the store could do is `limit` bytes per second.
    fn fetch(pace: &mut Pace, from: u64, pressure: Pressure, bound: u64, limit: u64) -> u64 {
        let mut fetched = 0;
        for ms in 0..1000 {
            let now = Time((from * 1000 + ms) * 1_000_000);
            let bytes = pace.piece_end(0) * BLOCK_BYTES as u64;
            while fetched < limit * (ms + 1) / 1000 && pace.take(bytes, bound, now, key()) {
                fetched += bytes;
            }
            pace.take_waiting();
            if ms % 100 == 99 {
                pace.hear(pressure);
                pace.handle_tick(TICK);
            }
        }
        fetched
    }

    #[test]
    fn the_rate_follows_what_guests_notice() {
        let limit = 800 << 20;
        let mut pace = Pace::default();
        fetch(&mut pace, 0, Pressure::None, 0, limit);
        let alone = fetch(&mut pace, 1, Pressure::None, 0, limit);
        assert!(alone > limit * 9 / 10, "{alone}");
        let begun = fetch(&mut pace, 2, Pressure::Strained, 0, limit);
        assert!(begun < limit / 3, "{begun}");
        let strained = fetch(&mut pace, 3, Pressure::Strained, 0, limit);
        assert!((2 << 20..10 << 20).contains(&strained), "{strained}: slow, and not at an end");
        fetch(&mut pace, 4, Pressure::Busy, 0, limit);
        let unnoticed = fetch(&mut pace, 5, Pressure::Busy, 0, limit);
        assert!(unnoticed > 4 * strained, "{unnoticed}");
        let bounded = fetch(&mut pace, 6, Pressure::None, 20 << 20, limit);
        assert!((15 << 20..25 << 20).contains(&bounded), "{bounded}");
    }

    #[test]
    fn pieces_are_small_while_guests_wait() {
        let mut pace = Pace::default();
        let large = u64::from(PIECE_BLOCKS_MAX);
        assert_eq!((pace.piece_end(0), pace.piece_end(PIECE_BLOCKS_MAX + 3)), (large, 2 * large));
        pace.hear(Pressure::Busy);
        assert_eq!((pace.piece_end(0), pace.piece_end(300)), (16, 304), "at once");
        pace.handle_tick(TICK);
        assert_eq!(pace.piece_end(15), 16, "and for the tick after");
        pace.handle_tick(TICK);
        assert_eq!(pace.piece_end(16), large);
    }

    #[test]
    fn a_bound_of_less_than_a_piece_each_second_is_kept_and_used() {
        let (mut pace, bound) = (Pace::default(), 256 << 10);
        let mut now = Time(1_000_000_000);
        let mut pieces = 0;
        while pieces < 6 {
            if pace.take(PIECE, bound, now, key()) {
                pieces += 1;
                continue;
            }
            now = pace.next(bound).expect("somebody waits");
            pace.take_waiting();
        }
        let took = now.since(Time(1_000_000_000)).as_secs();
        assert!((19..=21).contains(&took), "{took} s for five pieces of 1 MiB at 256 KiB/s");
    }

    #[test]
    fn who_has_to_wait_is_told_until_when() {
        let mut pace = Pace::default();
        let mut now = Time(1_000_000_000);
        let mut pieces = 0;
        while pieces < 8 {
            if pace.take(PIECE, 8 << 20, now, key()) {
                pieces += 1;
                continue;
            }
            let next = pace.next(8 << 20).expect("somebody waits");
            assert!(next > now);
            now = next;
            assert_eq!(pace.take_waiting().len(), 1);
        }
        let took = now.since(Time(1_000_000_000));
        assert!((1500..=2100).contains(&took.as_millis()), "{took:?} at 4 MiB/s, the rate at the beginning");
    }
}
