//! Mistakes that the shell around the nodes makes on purpose ([`PlantedBug`]): each stands for a class that the checker must find.

use std::time::Duration;

use proto::NodeId;
use proto::cluster::{Action, Proposal};
use proto::peer::{PeerMessage, PeerReply, PeerRequest};

use crate::network::{Frame, SheepIndex};
use crate::scenario::PlantedBug;
use crate::world::{Event, World};

const MS: Duration = Duration::from_millis(1);

impl World {
    /// What becomes of a message on its way from a sheep to another.
    pub(crate) fn plant_in_message(&mut self, from: SheepIndex, to: NodeId, message: &mut PeerMessage) {
        match (self.scenario.bug, message) {
            (
                PlantedBug::KeepNothing,
                PeerMessage::Request { body: PeerRequest::Purge { keep, table, .. }, .. },
            ) => (*keep, *table) = (Vec::new(), false),
            (
                PlantedBug::ForgetChanges,
                PeerMessage::Reply { body: PeerReply::Changed { objects, .. }, .. },
            ) => drop(objects.pop()),
            (
                PlantedBug::CountRestarted,
                PeerMessage::Reply { body: PeerReply::Changed { objects, .. }, .. },
            ) => {
                objects.clear();
            }
            (PlantedBug::TakenIsDurable, PeerMessage::Reply { body: body @ PeerReply::Taken, .. })
                if from == 0 =>
            {
                *body = PeerReply::Done;
            }
            (
                PlantedBug::SkipSeal,
                PeerMessage::Reply { body: PeerReply::Unsettled { changes, complete }, .. },
            ) => {
                changes.clear();
                *complete = true;
            }
            (
                PlantedBug::AckBeforeLastCopy,
                PeerMessage::Request { id, body: PeerRequest::Change { .. }, .. },
            ) if self.rng.percent(30) => {
                let (id, delay) = (*id, self.rng.latency(self.scenario.network_latency));
                self.forge_done(from, to, id, delay);
            }
            (
                PlantedBug::ShrinkAfterAck,
                PeerMessage::Request { id, body: PeerRequest::Change { .. }, .. },
            ) => drop(self.unanswered.insert((from, to, *id))),
            (PlantedBug::ShrinkAfterAck, PeerMessage::Reply { id, .. }) => {
                let own = self.sheep[from].id();
                let receiver = self.sheep.iter().position(|s| s.id() == to);
                if let Some(receiver) = receiver {
                    self.unanswered.remove(&(receiver, own, *id));
                }
            }
            _ => {}
        }
    }

    /// The same of a proposal. `None`: it comes later.
    pub(crate) fn plant_in_proposal(
        &mut self,
        sheep: SheepIndex,
        start: u64,
        mut proposal: Proposal,
    ) -> Option<Proposal> {
        match (self.scenario.bug, &mut proposal.action) {
            (PlantedBug::SplitSnapshots, Action::Snapshot { vids, tag }) if vids.len() > 1 => {
                let action = Action::Snapshot { vids: vids.split_off(1), tag: tag.clone() };
                let rest = Proposal { id: proposal.id, action };
                // Nobody waits for the outcome of the first one.
                proposal.id = u64::MAX;
                self.queue.put_after(60 * MS, Event::Propose { sheep, start, proposal: rest });
            }
            (PlantedBug::ShrinkAfterAck, Action::DropCopies { node, .. }) => {
                let node = *node;
                let of_it = |(from, to, _): &(SheepIndex, NodeId, u64)| (*from, *to) == (sheep, node);
                let open: Vec<_> = self.unanswered.extract_if(.., of_it).collect();
                if open.is_empty() {
                    return Some(proposal);
                }
                open.into_iter().for_each(|(from, to, id)| self.forge_done(from, to, id, MS / 100));
                self.queue.put_after(300 * MS, Event::Propose { sheep, start, proposal });
                return None;
            }
            _ => {}
        }
        Some(proposal)
    }

    /// An answer that its sender never gave.
    fn forge_done(&mut self, asker: SheepIndex, asked: NodeId, id: u64, delay: Duration) {
        let Some(sender) = self.sheep.iter().position(|s| s.id() == asked) else { return };
        let (control, payload) = PeerMessage::Reply { id, body: PeerReply::Done }.encode();
        let frame = Frame { control, payload };
        self.queue.put_after(delay, Event::LateFrame { pair: (sender, asker), frame });
    }
}
