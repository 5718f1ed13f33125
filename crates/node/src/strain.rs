//! What the foreground feels of repair: how long this node's store takes for what owners and guests wait for, with and without repair.
//!
//! What requests take that no repair was beside, from their beginning to their end, is the measure: for changes and for readings, which take differently long. A
//! window (a tick) in which requests take twice as long means strain, and so do two in a row in which they take clearly longer: one alone is as often noise.
//! Without a measure there is none to compare with, so repair goes slowly until there is one: at its slowest pace most
//! requests have none beside them. The kind of which there are few beside many of the other has the smaller say: one of them alone is noise, or not known.
//!
//! Few requests count as much as many: a guest that asks for one thing at a time asks the less the longer it has to wait, and not at all in a
//! window that its request outlasts. So nobody is there only after a while without requests.

use std::time::Duration;

use proto::peer::Pressure;

/// Windows without requests until it is sure that nobody waits.
const IDLE_WINDOWS: u32 = 10;
/// Windows in which all requests had repair beside them until the measure is too old to go by.
const STALE_WINDOWS: u32 = 50;
/// Requests of one kind are few if there are so many times more of the other.
const FEW: u32 = 8;
/// Longer than usual by a sixth, and by so much, is clearly longer.
const TOLERANCE: Duration = Duration::from_micros(30);

#[derive(Debug, Default)]
pub(crate) struct Strain {
    changes: Gauge,
    readings: Gauge,
    /// Works for a repair that the store has not done yet, and how many ever began.
    under_way: u32,
    begun: u64,
    repaired: bool,
    repaired_before: bool,
    /// Windows without requests, up to now.
    idle: u32,
    pressure: Pressure,
}

/// What an owner waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Change,
    Reading,
}

/// Requests of one kind.
#[derive(Debug, Default)]
struct Gauge {
    all: Mean,
    /// Those that no repair was beside.
    apart: Mean,
    usual: Option<Duration>,
    /// Windows since one of those.
    stale: u32,
    /// In the last window in which there were some.
    was_longer: bool,
    /// Windows without any, up to now.
    idle: u32,
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
    pub fn note(&mut self, took: Duration, kind: Kind, beside: Beside) {
        let gauge = match kind {
            Kind::Change => &mut self.changes,
            Kind::Reading => &mut self.readings,
        };
        gauge.all.add(took);
        if beside.0 == Some(self.begun) {
            gauge.apart.add(took);
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
        let (changes, readings) = (self.changes.all.count, self.readings.all.count);
        let is_strained = self.changes.handle_tick(repaired, changes < readings / FEW)
            | self.readings.handle_tick(repaired, readings < changes / FEW);
        if changes + readings > 0 {
            self.idle = 0;
            self.pressure = if is_strained { Pressure::Strained } else { Pressure::Busy };
            return;
        }
        // Of what was asked for before, some may still be waited for: no reason to speed up as if nobody was there, nor to slow
        // down further.
        self.idle = self.idle.saturating_add(1);
        let was_busy = self.pressure != Pressure::None && self.idle < IDLE_WINDOWS;
        self.pressure = if was_busy { Pressure::Busy } else { Pressure::None };
    }

    pub fn pressure(&self) -> Pressure {
        self.pressure
    }
}

impl Gauge {
    /// `repaired`: repair was under way in this window or the one before. `are_few`: beside the others. True: repair makes these wait.
    fn handle_tick(&mut self, repaired: bool, are_few: bool) -> bool {
        let (all, apart) = (self.all.take(), self.apart.take());
        let Some(mean) = all else {
            self.idle = self.idle.saturating_add(1);
            // What was before a pause is not "in a row".
            self.was_longer &= self.idle < IDLE_WINDOWS;
            return false;
        };
        self.idle = 0;
        self.learn(apart, repaired);
        let Some(usual) = self.usual else {
            self.was_longer = false;
            return repaired && !are_few;
        };
        let is_longer = repaired && mean > usual + usual / 6 + TOLERANCE;
        let was_longer = std::mem::replace(&mut self.was_longer, is_longer);
        let is_much_longer = mean > usual * 2 + TOLERANCE && !are_few;
        is_longer && (is_much_longer || was_longer)
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
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten changes of a window, all or some of them with repair beside them.
    fn window(strain: &mut Strain, beside: u32, micros: u64, micros_beside: u64) -> Pressure {
        changes(strain, beside, micros, micros_beside);
        strain.handle_tick();
        strain.pressure()
    }

    fn changes(strain: &mut Strain, beside: u32, micros: u64, micros_beside: u64) {
        for n in 0..10 {
            let is_beside = n < beside;
            request(strain, Kind::Change, is_beside, if is_beside { micros_beside } else { micros });
        }
    }

    fn request(strain: &mut Strain, kind: Kind, is_beside: bool, micros: u64) {
        if is_beside {
            strain.begin(true);
        }
        let since = strain.begin(false);
        strain.note(Duration::from_micros(micros), kind, since);
        if is_beside {
            strain.note_repaired();
        }
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
        assert_eq!(window(&mut strain, 10, 0, 375), Pressure::Busy);
        assert_eq!(window(&mut strain, 10, 0, 385), Pressure::Busy, "once may be noise");
        assert_eq!(window(&mut strain, 10, 0, 385), Pressure::Strained);
        assert_eq!(window(&mut strain, 1, 300, 1000), Pressure::Busy);
        assert_eq!(window(&mut strain, 5, 300, 600), Pressure::Busy);
        assert_eq!(window(&mut strain, 5, 300, 600), Pressure::Strained, "half of them, twice as long");
        assert_eq!(window(&mut strain, 10, 0, 300), Pressure::Busy);
        assert_eq!(window(&mut strain, 10, 0, 640), Pressure::Strained, "so much longer is no noise");
        assert_eq!(window(&mut strain, 0, 900, 0), Pressure::Strained, "that was repair still");
        assert_eq!(window(&mut strain, 0, 900, 0), Pressure::Busy, "slow for other reasons");
    }

    fn readings(strain: &mut Strain, count: u32, is_beside: bool, micros: u64) {
        (0..count).for_each(|_| request(strain, Kind::Reading, is_beside, micros));
    }

    fn end(strain: &mut Strain) -> Pressure {
        strain.handle_tick();
        strain.pressure()
    }

    #[test]
    fn readings_are_measured_by_readings() {
        let mut strain = Strain::default();
        changes(&mut strain, 0, 1000, 0);
        readings(&mut strain, 10, false, 100);
        end(&mut strain);
        // More readings than before are no reason to take changes for fast, nor fewer of them to take them for slow.
        for n in 1..30 {
            changes(&mut strain, 10, 0, 1000);
            readings(&mut strain, n % 7 * 5, n % 2 == 0, 100);
            assert_eq!(end(&mut strain), Pressure::Busy);
        }
        changes(&mut strain, 10, 0, 1000);
        readings(&mut strain, 10, true, 300);
        assert_eq!(end(&mut strain), Pressure::Strained);
    }

    /// So many changes beside a hundred readings that are served as usual.
    fn beside_readings(strain: &mut Strain, count: u32, micros: u64) -> Pressure {
        readings(strain, 100, true, 100);
        (0..count).for_each(|_| request(strain, Kind::Change, true, micros));
        end(strain)
    }

    #[test]
    fn a_few_of_one_kind_beside_many_of_the_other_have_the_smaller_say() {
        let mut strain = Strain::default();
        readings(&mut strain, 100, false, 100);
        end(&mut strain);
        assert_eq!(beside_readings(&mut strain, 1, 5000), Pressure::Busy, "nothing is known of changes");
        assert_eq!(
            beside_readings(&mut strain, 20, 500),
            Pressure::Strained,
            "nothing is known, but of many"
        );
        changes(&mut strain, 0, 500, 0);
        end(&mut strain);
        assert_eq!(beside_readings(&mut strain, 1, 5000), Pressure::Busy, "one of them is noise");
        assert_eq!(beside_readings(&mut strain, 1, 5000), Pressure::Strained, "again and again is none");
        assert_eq!(beside_readings(&mut strain, 1, 500), Pressure::Busy);
        assert_eq!(beside_readings(&mut strain, 20, 5000), Pressure::Strained);
    }

    #[test]
    fn what_was_before_a_pause_is_not_in_a_row() {
        let mut strain = Strain::default();
        window(&mut strain, 0, 300, 0);
        assert_eq!(window(&mut strain, 10, 0, 400), Pressure::Busy);
        idle(&mut strain, 1);
        assert_eq!(window(&mut strain, 10, 0, 400), Pressure::Strained);
        idle(&mut strain, IDLE_WINDOWS);
        assert_eq!(window(&mut strain, 10, 0, 400), Pressure::Busy);
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
        assert_eq!(window(&mut strain, 1, 700, 700), Pressure::Strained);
    }

    #[test]
    fn a_measure_does_not_last_for_ever() {
        let mut strain = Strain::default();
        window(&mut strain, 0, 3000, 0);
        let windows = (0..100).take_while(|_| window(&mut strain, 10, 0, 700) == Pressure::Busy).count();
        assert_eq!(windows as u32, STALE_WINDOWS - 1, "from then on slowly, until it is measured anew");
        assert_eq!(window(&mut strain, 9, 300, 700), Pressure::Strained);
        assert_eq!(window(&mut strain, 1, 300, 700), Pressure::Busy);
    }

    #[test]
    fn a_guest_that_waits_long_for_one_thing_at_a_time_is_heard() {
        let mut strain = Strain::default();
        assert_eq!(window(&mut strain, 0, 800, 0), Pressure::Busy);
        let one = |strain: &mut Strain, micros| {
            request(strain, Kind::Change, true, micros);
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
