//! What the foreground feels of repair: how long this node's store takes for what owners and guests wait for, with and without repair.
//!
//! What requests take that no repair was beside, from their beginning to their end, is the measure. A window (a tick) in which requests take clearly
//! longer means strain. Without a measure there is none to compare with, so repair goes slowly until there is one: at its slowest pace most
//! requests have none beside them.
//!
//! Few requests count as much as many: a guest that asks for one thing at a time asks the less the longer it has to wait, and not at all in a
//! window that its request outlasts. So nobody is there only after a while without requests.

use std::time::Duration;

use proto::peer::Pressure;

/// Windows without requests until it is sure that nobody waits.
const IDLE_WINDOWS: u32 = 10;
/// Windows in which all requests had repair beside them until the measure is too old to go by.
const STALE_WINDOWS: u32 = 50;
/// Longer than usual by a quarter, and by so much, is strain.
const TOLERANCE: Duration = Duration::from_micros(30);

#[derive(Debug, Default)]
pub(crate) struct Strain {
    all: Mean,
    /// Requests that no repair was beside.
    apart: Mean,
    usual: Option<Duration>,
    /// Windows since one of those.
    stale: u32,
    /// Works for a repair that the store has not done yet, and how many ever began.
    under_way: u32,
    begun: u64,
    repaired: bool,
    repaired_before: bool,
    /// Windows without requests, up to now.
    idle: u32,
    pressure: Pressure,
}

#[derive(Debug, Default)]
struct Mean {
    count: u32,
    total: Duration,
}

impl Mean {
    fn add(&mut self, took: Duration) {
        self.count += 1;
        self.total += took;
    }

    fn take(&mut self) -> Option<Duration> {
        let Mean { count, total } = std::mem::take(self);
        (count > 0).then(|| total / count)
    }
}

/// What was beside a work of the store when it began: a number of repairs ever begun if none was under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beside(Option<u64>);

impl Strain {
    /// The store begins a work.
    pub fn begin(&mut self, is_repair: bool) -> Beside {
        let beside = Beside((self.under_way == 0).then_some(self.begun));
        if is_repair {
            self.under_way += 1;
            self.begun += 1;
        }
        beside
    }

    /// The store has answered a request for which an owner waits.
    pub fn note(&mut self, took: Duration, beside: Beside) {
        self.all.add(took);
        if beside.0 == Some(self.begun) {
            self.apart.add(took);
        }
    }

    /// The store has done a work for a repair, here or elsewhere, or for a scrub.
    pub fn note_repaired(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
        self.repaired = true;
    }

    pub fn handle_tick(&mut self) {
        // What began in a window may end in the next.
        let repaired = self.repaired || self.repaired_before || self.under_way > 0;
        self.repaired_before = std::mem::take(&mut self.repaired);
        let (all, apart) = (self.all.take(), self.apart.take());
        let Some(mean) = all else {
            // Of what was asked for before, some may still be waited for: no reason to speed up as if nobody was there, nor to slow
            // down further.
            self.idle = self.idle.saturating_add(1);
            let was_busy = self.pressure != Pressure::None && self.idle < IDLE_WINDOWS;
            self.pressure = if was_busy { Pressure::Busy } else { Pressure::None };
            return;
        };
        self.idle = 0;
        self.learn(apart, repaired);
        let is_strained = self.usual.is_none_or(|usual| mean > usual + usual / 4 + TOLERANCE);
        self.pressure = if repaired && is_strained { Pressure::Strained } else { Pressure::Busy };
    }

    fn learn(&mut self, apart: Option<Duration>, repaired: bool) {
        self.stale = if apart.is_some() { 0 } else { self.stale + 1 };
        self.usual = match (self.usual, apart) {
            (None, apart) => apart,
            (Some(usual), None) => (self.stale < STALE_WINDOWS).then_some(usual),
            // Repair that was not beside it here may have been elsewhere, on the same processor or disk: else what it costs would become usual.
            (Some(usual), Some(apart)) if repaired && apart > usual => Some(usual + (apart - usual) / 16),
            (Some(usual), Some(apart)) => Some((usual * 3 + apart) / 4),
        };
    }

    pub fn pressure(&self) -> Pressure {
        self.pressure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten requests of a window, all or some of them with repair beside them.
    fn window(strain: &mut Strain, beside: u32, micros: u64, micros_beside: u64) -> Pressure {
        for n in 0..10 {
            let is_beside = n < beside;
            if is_beside {
                strain.begin(true);
            }
            let since = strain.begin(false);
            strain.note(Duration::from_micros(if is_beside { micros_beside } else { micros }), since);
            if is_beside {
                strain.note_repaired();
            }
        }
        strain.handle_tick();
        strain.pressure()
    }

    fn idle(strain: &mut Strain, windows: u32) {
        (0..windows).for_each(|_| strain.handle_tick());
    }

    #[test]
    fn requests_that_take_longer_with_repair_than_without_are_under_strain() {
        let mut strain = Strain::default();
        assert_eq!(window(&mut strain, 10, 0, 300), Pressure::Strained, "nothing to compare with");
        idle(&mut strain, IDLE_WINDOWS);
        assert_eq!(strain.pressure(), Pressure::None);
        assert_eq!(window(&mut strain, 0, 300, 0), Pressure::Busy);
        assert_eq!(window(&mut strain, 10, 0, 400), Pressure::Busy);
        assert_eq!(window(&mut strain, 10, 0, 410), Pressure::Strained);
        assert_eq!(window(&mut strain, 1, 300, 1000), Pressure::Busy);
        assert_eq!(window(&mut strain, 5, 300, 600), Pressure::Strained, "half of them, twice as long");
        assert_eq!(window(&mut strain, 0, 900, 0), Pressure::Strained, "that was repair still");
        assert_eq!(window(&mut strain, 0, 900, 0), Pressure::Busy, "slow for other reasons");
    }

    #[test]
    fn what_is_usual_is_learned_beside_repair_too() {
        let mut strain = Strain::default();
        assert_eq!(window(&mut strain, 1, 300, 5000), Pressure::Strained);
        assert_eq!(window(&mut strain, 1, 300, 900), Pressure::Busy, "known from the others");
        // More is asked for at a time from now on, and all of it takes longer.
        assert_eq!(window(&mut strain, 1, 3000, 3000), Pressure::Strained);
        let later = (0..50).map(|_| window(&mut strain, 1, 3000, 3000)).last();
        assert_eq!(later, Some(Pressure::Busy));
        // Less again.
        for _ in 0..20 {
            window(&mut strain, 1, 300, 300);
        }
        assert_eq!(window(&mut strain, 1, 600, 600), Pressure::Strained);
    }

    #[test]
    fn a_measure_does_not_last_for_ever() {
        let mut strain = Strain::default();
        window(&mut strain, 0, 3000, 0);
        let windows = (0..100).take_while(|_| window(&mut strain, 10, 0, 600) == Pressure::Busy).count();
        assert_eq!(windows as u32, STALE_WINDOWS - 1, "from then on slowly, until it is measured anew");
        assert_eq!(window(&mut strain, 9, 300, 600), Pressure::Strained);
        assert_eq!(window(&mut strain, 1, 300, 600), Pressure::Busy);
    }

    #[test]
    fn a_guest_that_waits_long_for_one_thing_at_a_time_is_heard() {
        let mut strain = Strain::default();
        assert_eq!(window(&mut strain, 0, 800, 0), Pressure::Busy);
        let one = |strain: &mut Strain, micros| {
            strain.begin(true);
            let since = strain.begin(false);
            strain.note(Duration::from_micros(micros), since);
            strain.note_repaired();
            strain.handle_tick();
            strain.pressure()
        };
        assert_eq!(one(&mut strain, 90_000), Pressure::Strained);
        // The next one outlasts a window: that is not peace.
        strain.begin(true);
        strain.note_repaired();
        strain.handle_tick();
        assert_eq!(strain.pressure(), Pressure::Busy);
        assert_eq!(one(&mut strain, 150_000), Pressure::Strained);
        assert_eq!(one(&mut strain, 900), Pressure::Busy);
        idle(&mut strain, IDLE_WINDOWS - 1);
        assert_eq!(strain.pressure(), Pressure::Busy);
        idle(&mut strain, 1);
        assert_eq!(strain.pressure(), Pressure::None);
    }
}
