//! The view as far as one PG and one VDI need it: the rules of `node::view::{pg, session}`.

use super::options::{Bug, Options};

pub const NODES_MAX: usize = 3;

/// A set of sheep, or of blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Set(pub u8);

impl Set {
    pub fn first(count: usize) -> Set {
        Set((1 << count) - 1)
    }

    pub fn of(item: usize) -> Set {
        Set(1 << item)
    }

    pub fn has(self, item: usize) -> bool {
        self.0 & 1 << item != 0
    }

    pub fn with(self, item: usize) -> Set {
        Set(self.0 | 1 << item)
    }

    pub fn without(self, other: Set) -> Set {
        Set(self.0 & !other.0)
    }

    pub fn and(self, other: Set) -> Set {
        Set(self.0 & other.0)
    }

    pub fn or(self, other: Set) -> Set {
        Set(self.0 | other.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..8).filter(move |item| self.has(*item))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct View {
    pub version: u8,
    pub up: Set,
    /// Where copies should be.
    pub targets: Set,
    pub in_sync: Set,
    /// Version at which each began to catch up; 0: it does not.
    pub started: [u8; NODES_MAX],
    /// Version of the last change of the sets.
    pub since: u8,
    pub generation: u8,
    pub owner: Option<usize>,
    /// Generations up to this one ended with every write settled.
    pub clean: u8,
    /// With write-back: versions at which the present life of each began, and the last one ended.
    pub joined: [u8; NODES_MAX],
    pub left: [u8; NODES_MAX],
    /// Who takes the session as soon as its owner resigns, or is gone.
    pub taker: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
pub enum Entry {
    Leave(Set),
    Join(usize),
    Open(usize),
    /// By its owner, of this generation.
    Close(usize, u8),
    Take(usize),
    /// By its owner, of this generation.
    Resign(usize, u8),
    Drop(usize),
    StartCatchUp(usize),
    FinishCatchUp(usize),
    /// Members were put out or came in: copies should be elsewhere.
    Retarget(Set),
}

impl View {
    /// Sheep 0 is the owner.
    pub fn first(nodes: usize, targets: Set, in_sync: Set) -> View {
        View {
            version: 1,
            up: Set::first(nodes),
            targets,
            in_sync,
            started: [0; NODES_MAX],
            since: 1,
            generation: 1,
            owner: Some(0),
            clean: 0,
            joined: [0; NODES_MAX],
            left: [0; NODES_MAX],
            taker: None,
        }
    }

    pub fn min_copies(&self) -> usize {
        let targets = self.targets.len();
        targets.div_ceil(2).min(targets.saturating_sub(1).max(1))
    }

    pub fn catching(&self) -> Set {
        (0..NODES_MAX).filter(|n| self.started[*n] != 0).fold(Set::default(), Set::with)
    }

    pub fn writers(&self) -> Set {
        self.in_sync.or(self.catching())
    }

    pub fn is_writable(&self) -> bool {
        self.in_sync.len() >= self.min_copies() && self.writers().without(self.up).is_empty()
    }

    /// May this copy be dropped? `View::may_drop`.
    pub fn can_drop(&self, node: usize) -> bool {
        let remaining = self.in_sync.and(self.up).without(Set::of(node)).len();
        self.writers().has(node) && (!self.in_sync.has(node) || remaining >= self.min_copies())
    }

    pub fn can_start(&self, node: usize) -> bool {
        let is_wanted = self.targets.has(node) && !self.writers().has(node);
        self.up.has(node) && is_wanted && !self.in_sync.is_empty()
    }

    fn is_owned(&self, by: usize, generation: u8) -> bool {
        self.owner == Some(by) && self.generation == generation
    }

    pub fn after(&self, options: &Options, entry: Entry) -> View {
        let mut view = View { version: self.version + 1, ..*self };
        match entry {
            Entry::Leave(nodes) => {
                view.up = view.up.without(nodes);
                for node in nodes.iter().filter(|_| options.write_back) {
                    view.left[node] = view.version;
                }
                view.taker = view.taker.filter(|taker| !nodes.has(*taker));
                if view.owner.is_some_and(|owner| nodes.has(owner)) {
                    view.pass_on();
                }
                view.shrink_after_loss();
            }
            Entry::Join(node) => {
                view.up = view.up.with(node);
                if options.write_back {
                    view.joined[node] = view.version;
                    view.let_go_of_restarted(options, node);
                }
                view.drop_surplus(options);
            }
            Entry::Open(node) => {
                view.generation += 1;
                (view.owner, view.taker) = (Some(node), None);
            }
            Entry::Close(by, generation) if self.is_owned(by, generation) => {
                (view.owner, view.taker, view.clean) = (None, None, generation);
            }
            Entry::Take(taker) => {
                view.taker = Some(taker);
                if options.has(Bug::TakenAtOnce) {
                    view.pass_on();
                }
            }
            Entry::Resign(by, generation) if self.is_owned(by, generation) => view.pass_on(),
            Entry::Close(..) | Entry::Resign(..) => {}
            Entry::Drop(node) => {
                view.in_sync = view.in_sync.without(Set::of(node));
                view.started[node] = 0;
            }
            Entry::StartCatchUp(node) => view.started[node] = view.version,
            Entry::FinishCatchUp(node) => {
                view.started[node] = 0;
                view.in_sync = view.in_sync.with(node);
                if view.targets.without(view.in_sync).is_empty() {
                    view.in_sync = view.targets;
                }
                view.shrink_after_loss();
            }
            Entry::Retarget(targets) => {
                view.targets = targets;
                for node in view.catching().without(targets).iter() {
                    view.started[node] = 0;
                }
                view.drop_surplus(options);
                view.shrink_after_loss();
            }
        }
        if (view.in_sync, view.started, view.targets) != (self.in_sync, self.started, self.targets) {
            view.since = view.version;
        }
        view
    }

    /// The session's owner serves it no more, and nothing is known to be settled.
    fn pass_on(&mut self) {
        self.generation += u8::from(self.taker.is_some());
        self.owner = self.taker.take();
    }

    /// Copies elsewhere have served their time where all targets are in sync and up.
    fn drop_surplus(&mut self, options: &Options) {
        let are_there = self.targets.without(self.in_sync.and(self.up)).is_empty();
        let is_surplus = self.in_sync.len() > self.targets.len() && are_there;
        let counts_only = options.has(Bug::SurplusIsCounted) && self.in_sync.len() >= self.targets.len();
        if is_surplus || counts_only {
            self.in_sync = self.targets;
        }
    }

    /// It may have lost what it had in memory; another copy that counts has lived on.
    fn let_go_of_restarted(&mut self, options: &Options, node: usize) {
        let others = self.in_sync.and(self.up).without(Set::of(node));
        let has_lived_on = |other: usize| self.joined[other] < self.left[node];
        if others.iter().any(has_lived_on) && !options.has(Bug::RestartedCounts) {
            self.in_sync = self.in_sync.without(Set::of(node));
        }
    }

    fn shrink_after_loss(&mut self) {
        for node in self.catching().without(self.up).iter() {
            self.started[node] = 0;
        }
        let remaining = self.in_sync.and(self.up);
        if remaining.len() >= self.min_copies() {
            self.in_sync = remaining;
        }
    }
}
