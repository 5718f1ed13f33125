//! Who answers: for members that are up, and that a cut link or a stopped process keeps from saying anything.
//!
//! Only an answer to something this node has asked counts, since a link may be cut in one direction. Whoever owes an answer for
//! [`SUSPICIOUS`] is asked for a sign of life, which needs neither a disk nor a view; who gives none for [`SILENCE`] is *silent*.
//! Nothing is safe because of that: it decides when to stop waiting, and the view decides what happens then.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::NodeId;

use crate::Time;

/// An answer that takes longer is looked into.
const SUSPICIOUS: Duration = Duration::from_millis(500);
/// No sign of life for so long: a machine that pauses for less (a virtual machine that is migrated, a scheduler) is waited for.
pub(crate) const SILENCE: Duration = Duration::from_secs(3);
/// An answer as old as that says that the way there and back is open.
const FRESH: Duration = Duration::from_secs(4);
/// The same, where others are asked every now and then.
const CONNECTED: Duration = Duration::from_secs(2);
/// Members asked, to learn whether this node is the one that is cut off.
const PROBES: usize = 8;

#[derive(Debug, Default)]
pub(crate) struct Reach {
    peers: BTreeMap<NodeId, Peer>,
    /// Somebody wants to know of this peer.
    wanted: Vec<NodeId>,
    /// Where among the others the next probes begin.
    probed: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Peer {
    answered: Option<Time>,
    /// Since when, and when last, it was asked without an answer.
    asked: Option<(Time, Time)>,
}

impl Reach {
    pub fn handle_answer(&mut self, from: NodeId, now: Time) {
        self.peers.insert(from, Peer { answered: Some(now), asked: None });
    }

    pub fn is_silent(&self, node: NodeId, now: Time) -> bool {
        self.peers.get(&node).and_then(|p| p.asked).is_some_and(|(since, _)| now.since(since) > SILENCE)
    }

    /// Has it answered just now? If not, it is asked.
    pub fn is_fresh(&mut self, node: NodeId, now: Time) -> bool {
        let answered = self.peers.get(&node).and_then(|p| p.answered);
        let fresh = answered.is_some_and(|at| now.since(at) < FRESH);
        if !fresh {
            self.wanted.push(node);
        }
        fresh
    }

    /// Has nobody answered of late, of at least two others? Then it may be this node that is cut off.
    ///
    /// Asked when somebody is waited for. That may be a member that is down, in a cluster that has nothing to do: then nobody had to answer anything, so they
    /// are asked now. Of two members neither can tell.
    pub fn is_cut_off(&mut self, others: &[NodeId], now: Time) -> bool {
        let answers = |peer: &Peer| peer.answered.is_some_and(|at| now.since(at) < CONNECTED);
        if others.len() < 2 || self.peers.values().any(answers) {
            return false;
        }
        self.want_some(others);
        true
    }

    /// Others than those that were asked, and not the same each time: all that are asked may be behind the same broken switch.
    fn want_some(&mut self, others: &[NodeId]) {
        let at = others.len().min(self.probed);
        let turned = others[at..].iter().chain(&others[..at]).copied();
        self.wanted
            .extend(turned.filter(|n| self.peers.get(n).is_none_or(|p| p.asked.is_none())).take(PROBES));
        self.probed = if at + PROBES < others.len() { at + PROBES } else { 0 };
    }

    /// Whom to ask for a sign of life now. `late`: members that owe an answer, and since when they were asked last; `others`: all that are
    /// up but this one, by id.
    pub fn handle_tick(
        &mut self,
        late: impl Iterator<Item = (NodeId, Time)>,
        others: &[NodeId],
        now: Time,
    ) -> Vec<NodeId> {
        self.peers.retain(|node, _| others.contains(node));
        let mut ask = Vec::new();
        for (node, since) in late {
            let answered = self.peers.get(&node).and_then(|p| p.answered);
            if now.since(since) > SUSPICIOUS && answered.is_none_or(|at| at <= since) {
                ask.push(node);
            }
        }
        let suspects = self.peers.iter().filter_map(|(node, p)| Some((*node, p.asked?.0)));
        let suspects: Vec<(NodeId, Time)> = suspects.collect();
        if suspects.iter().any(|(_, since)| now.since(*since) > SUSPICIOUS) {
            self.want_some(others);
        }
        ask.extend(suspects.into_iter().map(|(node, _)| node));
        ask.append(&mut self.wanted);
        ask.sort_unstable();
        ask.dedup();
        ask.retain(|node| others.contains(node));
        ask.retain(|node| {
            let peer = self.peers.entry(*node).or_default();
            let due = peer.asked.is_none_or(|(_, last)| now.since(last) >= SUSPICIOUS);
            if due {
                peer.asked = Some((peer.asked.map_or(now, |(since, _)| since), now));
            }
            due
        });
        ask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u16) -> NodeId {
        NodeId { addr: [0; 16], port: n }
    }

    fn at(ms: u64) -> Time {
        Time(ms * 1_000_000)
    }

    #[test]
    fn whoever_owes_an_answer_is_asked_and_silent_when_it_gives_none() {
        let mut reach = Reach::default();
        let others = [node(1), node(2)];
        assert!(reach.handle_tick([(node(1), at(0))].into_iter(), &others, at(400)).is_empty());
        assert_eq!(reach.handle_tick([(node(1), at(0))].into_iter(), &others, at(600)), [node(1)]);
        assert!(reach.handle_tick(std::iter::empty(), &others, at(700)).is_empty(), "not so often");
        // Now the other one as well, to learn whose fault it is.
        assert_eq!(reach.handle_tick(std::iter::empty(), &others, at(1200)), others);
        reach.handle_answer(node(2), at(1201));
        assert!(!reach.is_silent(node(1), at(3500)) && reach.is_silent(node(1), at(3700)));
        assert!(reach.is_cut_off(&others, at(3700)));
        reach.handle_answer(node(2), at(3701));
        assert!(!reach.is_cut_off(&others, at(3800)));
        reach.handle_answer(node(1), at(3800));
        assert!(!reach.is_silent(node(1), at(9000)));
    }

    #[test]
    fn others_are_probed_than_those_that_do_not_answer_anyway() {
        let others: Vec<NodeId> = (1..=12).map(node).collect();
        let mut reach = Reach::default();
        for ms in (100..8000).step_by(100) {
            // A rack of ten is gone, and somebody waits for one of it.
            for asked in reach.handle_tick([(node(1), at(100))].into_iter(), &others, at(ms)) {
                if asked.port > 10 {
                    reach.handle_answer(asked, at(ms + 1));
                }
            }
            let cut_off = reach.is_cut_off(&others, at(ms + 2));
            assert!(ms < 3500 || !cut_off, "two members answer whenever they are asked, {ms} ms");
        }
        assert!(reach.is_silent(node(1), at(8000)));
    }

    #[test]
    fn a_node_that_nobody_answers_is_cut_off_itself() {
        let mut reach = Reach::default();
        let others = [node(1), node(2)];
        reach.handle_answer(node(1), at(10));
        for ms in (100..6000).step_by(100) {
            reach.handle_tick([(node(1), at(100))].into_iter(), &others, at(ms));
            if reach.is_silent(node(1), at(ms)) {
                assert!(reach.is_cut_off(&others, at(ms)));
            }
        }
        assert!(reach.is_silent(node(1), at(6000)));
        assert!(!reach.is_cut_off(&[node(1)], at(6000)), "either of two may be");
        reach.handle_answer(node(2), at(6000));
        assert!(!reach.is_cut_off(&others, at(6100)));
    }
}
