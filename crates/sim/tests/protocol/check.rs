//! What must hold.

use std::collections::BTreeSet;

use stateright::{Model, Property};

use super::model::State;
use super::options::Options;
use super::session::Session;
use super::view::Set;

pub fn properties() -> Vec<Property<Options>> {
    vec![
        Property::always("no acknowledged write is lost", |options: &Options, state: &State| {
            state.keeps_what_is_acknowledged(options)
        }),
        Property::always("reads never go backwards", |_, state: &State| !state.went_back),
        Property::always("a request takes effect once", |_, state: &State| !state.request.is_repeated),
        Property::always("copies in sync agree", |options: &Options, state: &State| state.agrees(options)),
        Property::always("nobody is stuck", |options: &Options, state: &State| {
            !options.ends || state.is_quiet(options) || !options.next_steps(state).is_empty()
        }),
        Property::sometimes("everything is mended", |options: &Options, state: &State| {
            state.is_mended(options)
        }),
    ]
}

impl State {
    /// What a client may read now. An owner with a change under way lets reads of its block wait.
    fn readable(&self, options: &Options) -> Vec<(usize, u8)> {
        let mut found = Vec::new();
        for (me, node) in self.nodes.iter().enumerate() {
            let Some(session) = node.session.as_ref().filter(|s| s.is_serving() && !s.is_closing) else {
                continue;
            };
            let view = self.view(me);
            for block in (0..options.blocks).filter(|b| !session.is_changing(Set::of(*b))) {
                let gives = |n: &usize| {
                    let theirs = self.view(*n);
                    self.nodes[*n].is_alive && theirs.since == view.since && theirs.in_sync.has(*n)
                };
                let sources = view.in_sync.iter().filter(gives);
                found.extend(sources.map(|n| (block, self.nodes[n].copy.will_read(block))));
            }
        }
        found
    }

    pub fn observe(&mut self, options: &Options) {
        let readable = self.readable(options);
        for (block, value) in &readable {
            self.seen[*block] = self.seen[*block].max(*value);
            self.request.note_read(*block, *value);
        }
        for block in 0..options.blocks {
            self.seen[block] = self.seen[block].max(self.acknowledged[block]);
        }
        self.went_back |= readable.iter().any(|(block, value)| *value < self.seen[*block]);
    }

    fn keeps_what_is_acknowledged(&self, options: &Options) -> bool {
        let holds =
            |n: usize| (0..options.blocks).all(|b| self.nodes[n].copy.content[b] >= self.acknowledged[b]);
        self.head().in_sync.iter().all(holds)
    }

    /// With an owner that has nothing under way all copies are alike.
    fn agrees(&self, options: &Options) -> bool {
        let head = self.head();
        let Some(owner) = head.owner.filter(|n| self.view(*n).version == head.version) else { return true };
        if !self.nodes[owner].session.as_ref().is_some_and(Session::is_idle) {
            return true;
        }
        (0..options.blocks).all(|block| {
            let values: BTreeSet<u8> =
                head.in_sync.iter().map(|n| self.nodes[n].copy.content[block]).collect();
            values.len() == 1
        })
    }

    /// Everything was written, and an owner serves with all copies in sync.
    fn is_quiet(&self, options: &Options) -> bool {
        let head = self.head();
        let owner = head.owner.and_then(|n| self.nodes[n].session.as_ref());
        self.has_written_all(options)
            && owner.is_some_and(Session::is_settled)
            && self.is_request_over(options)
            && head.in_sync == head.targets
            && self.agrees(options)
    }

    /// And all faults have happened, and the newest write is acknowledged, or, where its client was told early, can be read.
    fn is_mended(&self, options: &Options) -> bool {
        let known = if options.write_back { self.seen } else { self.acknowledged };
        let newest = known.iter().copied().max();
        let faults = |of: &[u8]| of.iter().copied().map(usize::from).sum::<usize>();
        let happened = [self.crashes, self.drops, self.closes, self.takes, self.moves];
        let allowed = [options.crashes, options.drops, options.closes, options.takes, options.moves];
        faults(&happened) == faults(&allowed)
            && newest == Some(self.written)
            && (self.head().generation > 1 || options.crashes == 0)
            && self.is_quiet(options)
    }
}
