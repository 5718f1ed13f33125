//! What a [`Node`](crate::Node) asks its shell to do.

use std::time::Duration;

use proto::client::ClientResult;
use proto::cluster::Proposal;
use proto::object::ObjectOp;
use proto::peer::PeerMessage;
use proto::{NodeId, RequestId};

/// Monotonic time since some fixed moment of the shell's choice, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    pub fn after(self, duration: Duration) -> Time {
        Time(self.0.saturating_add(duration.as_nanos() as u64))
    }

    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Pairs a store's answer with the order it belongs to. Never used twice by one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// An order of the node. The shell carries them out in the order in which they are polled.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Send over the link to that member, opening one if there is none. It may be lost only together with the link,
    /// and then the shell reports [`Node::handle_link_reset`](crate::Node::handle_link_reset).
    Send { to: NodeId, message: PeerMessage },
    /// Hand to the cluster driver.
    Propose(Proposal),
    /// Submit to the store; the answer goes to [`Node::handle_store`](crate::Node::handle_store).
    Store { ticket: Ticket, op: ObjectOp },
    /// Answer a client of this sheep.
    Answer { request: RequestId, result: ClientResult },
    /// Keep this durably before carrying out any later effect: the store holds nothing of an earlier format.
    RememberFormat { ctime: u64 },
    /// End this sheep: the cluster is shut down, or this node was told to leave.
    Stop,
}
