//! What the foreground feels of repair: how long this node's store takes for what owners and guests wait for, with and without repair.
//!
//! Windows are ticks. What a window without repair shows is the measure; one with repair that takes clearly longer means strain. Without a
//! measure there is none to compare with, so repair goes slowly until there was a window without it: at its slowest pace there soon is.
//!
//! Few requests count as much as many: a guest that asks for one thing at a time asks the less the longer it has to wait, and not at all in a
//! window that its request outlasts. So nobody is there only after a while without requests.

use std::time::Duration;

use proto::peer::Pressure;

/// Windows without requests until it is sure that nobody waits.
const IDLE_WINDOWS: u32 = 10;
/// Longer than usual by half, and by so much, is strain.
const TOLERANCE: Duration = Duration::from_micros(200);

#[derive(Debug, Default)]
pub(crate) struct Strain {
    requests: u32,
    total: Duration,
    repaired: bool,
    repaired_before: bool,
    usual: Option<Duration>,
    /// Windows without requests, up to now.
    idle: u32,
    pressure: Pressure,
}

impl Strain {
    /// The store has answered a request for which an owner waits.
    pub fn note(&mut self, took: Duration) {
        self.requests += 1;
        self.total += took;
    }

    /// The store works for a repair, here or elsewhere, or for a scrub.
    pub fn note_repair(&mut self) {
        self.repaired = true;
    }

    pub fn handle_tick(&mut self) {
        // What began in a window may end in the next.
        let repaired = self.repaired || self.repaired_before;
        if self.requests > 0 {
            let mean = self.total / self.requests;
            if !repaired {
                self.usual = Some(self.usual.map_or(mean, |usual| (usual * 3 + mean) / 4));
            }
            let strained = self.usual.is_none_or(|usual| mean > usual + usual / 2 + TOLERANCE);
            self.pressure = if repaired && strained { Pressure::Strained } else { Pressure::Busy };
            self.idle = 0;
        } else {
            // Of what was asked for before, some may still be waited for: no reason to speed up as if nobody was there, nor to slow
            // down further.
            self.idle = self.idle.saturating_add(1);
            let was_busy = self.pressure != Pressure::None && self.idle < IDLE_WINDOWS;
            self.pressure = if was_busy { Pressure::Busy } else { Pressure::None };
        }
        (self.requests, self.total) = (0, Duration::ZERO);
        self.repaired_before = std::mem::take(&mut self.repaired);
    }

    pub fn pressure(&self) -> Pressure {
        self.pressure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(strain: &mut Strain, repair: bool, micros: u64) -> Pressure {
        (0..10).for_each(|_| strain.note(Duration::from_micros(micros)));
        if repair {
            strain.note_repair();
        }
        strain.handle_tick();
        strain.pressure()
    }

    #[test]
    fn requests_that_take_longer_with_repair_than_without_are_under_strain() {
        let mut strain = Strain::default();
        assert_eq!(window(&mut strain, true, 300), Pressure::Strained, "nothing to compare with");
        idle(&mut strain, IDLE_WINDOWS);
        assert_eq!(strain.pressure(), Pressure::None);
        assert_eq!(window(&mut strain, false, 300), Pressure::Busy);
        assert_eq!(window(&mut strain, true, 400), Pressure::Busy);
        assert_eq!(window(&mut strain, true, 900), Pressure::Strained);
        assert_eq!(window(&mut strain, false, 900), Pressure::Strained, "that was repair still");
        assert_eq!(window(&mut strain, false, 900), Pressure::Busy, "slow for other reasons");
    }
    fn idle(strain: &mut Strain, windows: u32) {
        (0..windows).for_each(|_| strain.handle_tick());
    }

    #[test]
    fn a_guest_that_waits_long_for_one_thing_at_a_time_is_heard() {
        let mut strain = Strain::default();
        assert_eq!(window(&mut strain, false, 800), Pressure::Busy);
        let one = |strain: &mut Strain, micros| {
            strain.note(Duration::from_micros(micros));
            strain.note_repair();
            strain.handle_tick();
            strain.pressure()
        };
        assert_eq!(one(&mut strain, 90_000), Pressure::Strained);
        // The next one outlasts a window: that is not peace.
        strain.note_repair();
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
