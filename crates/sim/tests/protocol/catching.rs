//! A copy that catches up: `node::catchup`, whole or incremental.

use super::copy::{BLOCKS_MAX, Mark, Order, Stamp};
use super::model::State;
use super::options::{Bug, CatchUp, Options};
use super::view::{Entry, Set};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Catching {
    /// Names the attempt.
    pub started: u8,
    /// Blocks that this copy's own marks may have touched; `None`: an earlier attempt has left more than that.
    own: Option<Set>,
    /// Blocks still to be fetched; `None`: not known yet.
    todo: Option<Set>,
    replies: [Option<Reply>; BLOCKS_MAX],
    /// By changes since it began: the newest of each block.
    pub decided: [Option<Stamp>; BLOCKS_MAX],
    /// Changes that decided blocks, which then were not fetched.
    relied_on: Vec<Stamp>,
    /// As many orders of any attempt has the store not answered. Of the planted bug.
    backfills: u8,
}

/// What a source has answered and this copy has not received.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Reply {
    since: u8,
    values: [u8; BLOCKS_MAX],
    blocks: Set,
    marks: Vec<Mark>,
}

impl State {
    /// Follows what the view says of this node's attempt.
    pub fn follow_catching(&mut self, options: &Options, me: usize) {
        let started = self.view(me).started[me];
        let known = self.nodes[me].catching.as_ref().map_or(0, |c| c.started);
        if started == known {
            return;
        }
        self.nodes[me].catching = None;
        if started != 0 {
            let copy = &mut self.nodes[me].copy;
            let touched = copy.begin_anew();
            let was_torn = std::mem::replace(&mut copy.is_torn, true);
            let own = (!was_torn || options.has(Bug::InterruptedAttemptTrusted)).then_some(touched);
            self.nodes[me].catching = Some(Catching {
                started,
                own,
                todo: None,
                replies: Default::default(),
                decided: Default::default(),
                relied_on: Vec::new(),
                backfills: 0,
            });
        }
    }

    /// An in-sync copy tells what this one has to fetch.
    pub fn learn(&mut self, options: &Options, me: usize, source: usize) -> bool {
        let lacking = self.nodes[source].copy.lacking[me];
        if !self.is_source(me, source) || self.nodes[me].catching.as_ref().is_none_or(|c| c.todo.is_some()) {
            return false;
        }
        let all = Set::first(options.blocks);
        let catching = self.nodes[me].catching.as_mut().expect("seen above");
        let lacking = lacking.filter(|_| options.catch_up == CatchUp::Incremental);
        let todo = match lacking.zip(catching.own) {
            Some((lacking, _)) if options.has(Bug::OwnMarksIgnored) => lacking,
            Some((lacking, own)) => lacking.or(own),
            None => all,
        };
        catching.todo = Some(if options.has(Bug::StaleReturnTrusted) { Set::default() } else { todo });
        true
    }

    /// May `me` fetch from `source`, their views agreeing on the sets?
    fn is_source(&self, me: usize, source: usize) -> bool {
        let is_alive = self.nodes[source].is_alive && me != source;
        is_alive && {
            let (mine, theirs) = (self.view(me), self.view(source));
            mine.in_sync.has(source) && theirs.in_sync.has(source) && mine.since == theirs.since
        }
    }

    /// A source reads a block. Its answer waits for the changes that were under way. Where changes may be of several blocks, all come in one
    /// piece: what pieces that differ in age are worth is left out.
    pub fn fetch(&mut self, options: &Options, me: usize, source: usize, block: usize) -> bool {
        let Some(catching) = self.nodes[me].catching.as_ref() else { return false };
        let todo = catching.todo.unwrap_or_default();
        let is_piece = todo.has(block) && (!options.wide || todo.iter().next() == Some(block));
        if !is_piece || catching.replies[block].is_some() || !self.is_source(me, source) {
            return false;
        }
        let blocks = if options.wide { todo } else { Set::of(block) };
        if blocks.iter().any(|block| self.nodes[source].copy.has_order_for(block)) {
            return false;
        }
        let since = self.view(me).since;
        let copy = &self.nodes[source].copy;
        let mut marks = copy.unsettled();
        marks.retain(|mark| !mark.blocks.and(blocks).is_empty() && !options.has(Bug::FetchWithoutMarks));
        let reply = Reply { since, values: copy.content, blocks, marks };
        self.nodes[me].catching.as_mut().expect("seen above").replies[block] = Some(reply);
        true
    }

    /// The answer arrives: void if the sets have changed, refused if it tells of a change that should have come here.
    pub fn receive_fetched(&mut self, options: &Options, me: usize, block: usize) -> bool {
        let (since, generation) = (self.view(me).since, self.view(me).generation);
        let node = &mut self.nodes[me];
        let Some(catching) = node.catching.as_mut() else { return false };
        let Some(reply) = catching.replies[block].take() else { return false };
        let known = node.copy.unsettled();
        let has = |mark: &Mark| known.iter().any(|m| m.stamp == mark.stamp && !m.inherited);
        let foreign: Vec<Mark> = reply.marks.into_iter().filter(|m| !has(m)).collect();
        let decided = catching.decided;
        let is_outdated = |m: &Mark| m.blocks.iter().any(|b| decided[b].is_some_and(|d| d < m.stamp));
        let is_refused = |m: &Mark| m.stamp.generation > generation || is_outdated(m);
        if reply.since != since || foreign.iter().any(is_refused) {
            return true;
        }
        let overwrites = options.has(Bug::FetchOverwritesChanges);
        let marks = foreign.into_iter().map(|m| Mark { inherited: true, ..m }).collect();
        let mut values = [None; BLOCKS_MAX];
        for block in reply.blocks.iter() {
            values[block] = (decided[block].is_none() || overwrites).then_some(reply.values[block]);
            catching.relied_on.extend(decided[block]);
        }
        catching.backfills += u8::from(options.has(Bug::BackfillsMiscounted));
        catching.todo = catching.todo.map(|todo| todo.without(reply.blocks));
        let started = catching.started;
        node.copy.orders.push(Order::Backfill { started, values, blocks: reply.blocks, marks });
        true
    }

    /// Everything is here and durable: the node proposes to be in sync. Safe, because every write since `started` has been awaited here too.
    pub fn finish(&mut self, options: &Options, me: usize) -> bool {
        let node = &self.nodes[me];
        let Some(catching) = &node.catching else { return false };
        let miscounts = options.has(Bug::BackfillsMiscounted);
        let still_needed = |order: &Order| match order {
            Order::Backfill { started, .. } => *started == catching.started && !miscounts,
            Order::Change { mark, forgotten, .. } => *forgotten || catching.relied_on.contains(&mark.stamp),
            Order::Delete => false,
        };
        let counted = !miscounts || catching.backfills == 0;
        let is_durable = counted && !node.copy.orders.iter().any(still_needed);
        let is_fetched = catching.todo.is_some_and(Set::is_empty);
        if !is_fetched || !is_durable || self.head().started[me] != catching.started {
            return false;
        }
        self.append(options, Entry::FinishCatchUp(me));
        true
    }

    /// The store has answered.
    pub fn count_backfill(&mut self, me: usize, order: &Order) {
        if let (Order::Backfill { .. }, Some(catching)) = (order, &mut self.nodes[me].catching) {
            catching.backfills = catching.backfills.saturating_sub(1);
        }
    }
}
