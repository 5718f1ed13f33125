//! Links between sheep: delays, cuts and resets. Pure bookkeeping; the world delivers what is due.
//!
//! A directed pair of sheep has one link at a time. Within a link's life frames arrive in order and none is
//! missing; with its end those in flight are lost. The next life begins when the sender has noticed, and the receiver
//! hears of the loss then at the latest: what was sent into the dead link meanwhile is lost, too. A cut stalls a link until it is mended or somebody gives it up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use crate::queue::Moment;

/// Index of a sheep in the world.
pub type SheepIndex = usize;

/// Sender and receiver.
pub type Pair = (SheepIndex, SheepIndex);

/// A frame as it would be on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub control: Bytes,
    pub payload: Bytes,
}

#[derive(Debug, Default)]
struct Link {
    life: u64,
    /// The life is over, and the sender does not know yet: what it sends is lost.
    broken: bool,
    in_flight: VecDeque<Frame>,
    last_arrival: Moment,
}

#[derive(Debug, Default)]
pub struct Network {
    links: BTreeMap<Pair, Link>,
    cut: BTreeSet<Pair>,
}

/// A frame was put on its way: the world calls [`Network::arrive`] at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    pub pair: Pair,
    pub life: u64,
    pub at: Moment,
}

impl Network {
    /// Takes a frame that would arrive at `at` if the link were idle. `None`: it is lost with its link.
    pub fn send(&mut self, pair: Pair, frame: Frame, at: Moment) -> Option<Departure> {
        let link = self.links.entry(pair).or_default();
        if link.broken {
            return None;
        }
        link.in_flight.push_back(frame);
        link.last_arrival = link.last_arrival.max(at);
        Some(Departure { pair, life: link.life, at: link.last_arrival })
    }

    /// The frame that arrives now, unless its link is over or cut.
    pub fn arrive(&mut self, pair: Pair, life: u64) -> Option<Frame> {
        let link = self.links.get_mut(&pair)?;
        if link.life != life || self.cut.contains(&pair) {
            return None;
        }
        link.in_flight.pop_front()
    }

    /// What is on its way, for a world that delivers it by itself.
    pub fn take_in_flight(&mut self, pair: Pair) -> Vec<Frame> {
        self.links.get_mut(&pair).map_or_else(Vec::new, |link| link.in_flight.drain(..).collect())
    }

    /// Ends the life of a link. Both ends have to be told, and [`Network::reopen`] called when the sender knows.
    /// `false`: it was over already.
    pub fn reset(&mut self, pair: Pair) -> bool {
        let link = self.links.entry(pair).or_default();
        let was_alive = !link.broken;
        link.broken = true;
        link.life += 1;
        link.in_flight.clear();
        was_alive
    }

    pub fn reopen(&mut self, pair: Pair) {
        if let Some(link) = self.links.get_mut(&pair) {
            link.broken = false;
        }
    }

    pub fn cut(&mut self, pair: Pair) {
        self.cut.insert(pair);
    }

    pub fn is_cut(&self, pair: Pair) -> bool {
        self.cut.contains(&pair)
    }

    pub fn cuts(&self) -> Vec<Pair> {
        self.cut.iter().copied().collect()
    }

    /// Mends a cut. What was stalled arrives from now on: one departure for each frame.
    pub fn mend(&mut self, pair: Pair, now: Moment) -> Vec<Departure> {
        self.cut.remove(&pair);
        let Some(link) = self.links.get_mut(&pair) else { return Vec::new() };
        // Departures from before the cut that are still to come find their frames too; an extra
        // departure finds none and does nothing. Order is kept: each takes the oldest frame.
        link.last_arrival = link.last_arrival.max(now);
        vec![Departure { pair, life: link.life, at: link.last_arrival }; link.in_flight.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(n: u8) -> Frame {
        Frame { control: Bytes::from(vec![n]), payload: Bytes::new() }
    }

    #[test]
    fn frames_of_one_life_arrive_in_order_whatever_their_delays() {
        let mut net = Network::default();
        let first = net.send((0, 1), frame(1), Moment(9)).unwrap();
        let second = net.send((0, 1), frame(2), Moment(3)).unwrap();
        assert!(second.at >= first.at);
        assert_eq!(net.arrive((0, 1), first.life), Some(frame(1)));
        assert_eq!(net.arrive((0, 1), second.life), Some(frame(2)));
    }

    #[test]
    fn a_reset_loses_what_is_in_flight_and_what_is_sent_before_the_sender_knows() {
        let mut net = Network::default();
        let lost = net.send((0, 1), frame(1), Moment(1)).unwrap();
        assert!(net.reset((0, 1)) && !net.reset((0, 1)));
        assert_eq!(net.arrive((0, 1), lost.life), None);
        assert_eq!(net.send((0, 1), frame(2), Moment(2)), None);
        net.reopen((0, 1));
        let kept = net.send((0, 1), frame(3), Moment(3)).unwrap();
        assert_eq!(net.arrive((0, 1), kept.life), Some(frame(3)));
    }

    #[test]
    fn a_cut_stalls_and_mending_delivers_in_order() {
        let mut net = Network::default();
        let first = net.send((0, 1), frame(1), Moment(1)).unwrap();
        net.cut((0, 1));
        assert_eq!(net.arrive((0, 1), first.life), None);
        net.send((0, 1), frame(2), Moment(2)).unwrap();
        let departures = net.mend((0, 1), Moment(5));
        let got: Vec<_> = departures.iter().map(|d| net.arrive(d.pair, d.life).unwrap()).collect();
        assert_eq!(got, [frame(1), frame(2)]);
    }
}
