//! Sessions that end before their owners do: closed, or taken by another sheep. `node::view::session`, `Node::follow_vdi`.
//!
//! Proposals of a sheep take effect in their order, and later than they were made.

use super::model::State;
use super::options::Options;
use super::view::Entry;

impl State {
    /// Another sheep wants the session, since it does not reach its owner. The owner goes on until it hears of that.
    pub fn take(&mut self, options: &Options, taker: usize) -> bool {
        let head = *self.head();
        let asks = |n: usize| self.nodes[n].is_alive && self.view(n).generation == head.generation;
        let owner = head.owner.filter(|owner| *owner != taker && head.up.has(taker) && head.taker.is_none());
        let is_wanted = owner.is_some_and(|owner| (0..self.nodes.len()).any(|n| n != owner && asks(n)));
        if self.takes == options.takes || !is_wanted {
            return false;
        }
        self.takes += 1;
        self.append(options, Entry::Take(taker));
        true
    }

    /// What this sheep has proposed takes effect: the end of a session that it closes, or that it has resigned.
    pub fn land(&mut self, options: &Options, me: usize) -> bool {
        let node = &mut self.nodes[me];
        let entry = match (node.closed, node.resigned, node.landed) {
            (Some(generation), _, _) => {
                node.closed = None;
                Entry::Close(me, generation)
            }
            (None, Some(generation), None) => {
                node.landed = Some(self.views.last().expect("there is always one").version + 1);
                Entry::Resign(me, generation)
            }
            _ => return false,
        };
        self.append(options, entry);
        true
    }

    /// This sheep has applied the entry, and knows what has become of its proposal. After what else that entry means.
    pub fn hear_outcome(&mut self, me: usize) {
        let version = self.view(me).version;
        let node = &mut self.nodes[me];
        if node.landed == Some(version) {
            (node.resigned, node.landed) = (None, None);
        }
    }

    pub fn close(&mut self, options: &Options, me: usize) -> bool {
        let Some(session) = self.nodes[me].session.as_mut() else { return false };
        if self.closes == options.closes || session.is_closing || !session.is_settled() {
            return false;
        }
        session.is_closing = true;
        self.nodes[me].closed = Some(self.view(me).generation);
        self.closes += 1;
        // Nothing could come before it that matters.
        options.takes > 0 || self.land(options, me)
    }

    /// Not before what this sheep has proposed earlier.
    pub fn open(&mut self, options: &Options, me: usize) -> bool {
        let node = &self.nodes[me];
        if node.closed.is_some() || (node.resigned.is_some() && node.landed.is_none()) {
            return false;
        }
        self.append(options, Entry::Open(me));
        true
    }
}
