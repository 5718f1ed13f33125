//! One simulated machine: a node and its store while it is up, a disk while it is down, and its own idea of time.

use node::{Node, Time};
use proto::NodeId;
use proto::cluster::MemberInfo;

use crate::object_store::{Disk, ObjectStore};
use crate::queue::Moment;

pub struct Sheep {
    /// What it says of itself; `life` is drawn at every start. The format its disk belongs to is kept as durably as the daemon does.
    pub member: MemberInfo,
    /// Counts starts of the process; whatever was meant for an earlier one is dropped.
    pub start: u64,
    pub state: State,
    pub clock: Clock,
    /// How many times as long as usual its disk takes.
    pub disk_slowness: u32,
    /// What it was asked while it was slow is done then.
    pub slow_until: Moment,
    /// Cannot reach the cluster driver.
    pub cut_off: bool,
    /// How often it was.
    pub cuts: u64,
}

pub enum State {
    Up(Box<Running>),
    Down(Disk),
}

pub struct Running {
    pub node: Node,
    pub store: ObjectStore,
    /// The moment for which a timer event is under way.
    pub timer: Option<Moment>,
    /// A delivery of the driver is under way.
    pub hearing: bool,
}

impl Sheep {
    pub fn new(member: MemberInfo, disk: Disk) -> Self {
        Sheep {
            start: 0,
            state: State::Down(disk),
            member,
            clock: Clock::default(),
            disk_slowness: 1,
            slow_until: Moment::default(),
            cut_off: false,
            cuts: 0,
        }
    }

    pub fn id(&self) -> NodeId {
        self.member.id
    }

    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    pub fn process(&self) -> Option<&Running> {
        match &self.state {
            State::Up(running) => Some(running),
            State::Down(_) => None,
        }
    }

    pub fn process_mut(&mut self) -> Option<&mut Running> {
        match &mut self.state {
            State::Up(running) => Some(running),
            State::Down(_) => None,
        }
    }

    /// The running process, if it is still the one of that start.
    pub fn running(&mut self, start: u64) -> Option<&mut Running> {
        match &mut self.state {
            State::Up(running) if self.start == start => Some(running),
            _ => None,
        }
    }
}

/// A monotonic clock that runs at a rate of its own.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Where the present rate began.
    real: Moment,
    local: Time,
    per_mille: u64,
}

impl Default for Clock {
    fn default() -> Self {
        Clock { real: Moment(0), local: Time(1_000_000_000), per_mille: 1000 }
    }
}

impl Clock {
    pub fn at(&self, now: Moment) -> Time {
        Time(self.local.0 + (now.0 - self.real.0) / 1000 * self.per_mille + (now.0 - self.real.0) % 1000)
    }

    /// When the clock will show at least `time`.
    pub fn moment_of(&self, time: Time, now: Moment) -> Moment {
        let ahead = time.0.saturating_sub(self.at(now).0);
        // One microsecond more than the exact quotient makes up for rounding in `at`.
        Moment(now.0 + (u128::from(ahead) * 1000 / u128::from(self.per_mille)) as u64 + 1000)
    }

    /// Runs at another rate from now on, after a leap forwards.
    pub fn drift(&mut self, now: Moment, per_mille: u64, leap_ns: u64) {
        self.local = Time(self.at(now).0 + leap_ns);
        self.real = now;
        self.per_mille = per_mille;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_drift_and_leap_but_never_go_back() {
        let mut clock = Clock::default();
        let mut last = clock.at(Moment(0));
        for (step, rate) in [(1, 1000), (2, 700), (3, 1300), (4, 1000)] {
            let now = Moment(step * 1_234_567);
            clock.drift(now, rate, 500);
            let due = Time(clock.at(now).0 + 1_000_000);
            assert!(clock.at(clock.moment_of(due, now)) >= due);
            assert!(clock.at(now) > last);
            last = clock.at(now);
        }
    }
}
