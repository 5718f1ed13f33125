//! One sheep's copy: its store, what of it is unsettled, and what absent copies lack. `node::replica`.

use super::options::{Bug, Options};
use super::view::{NODES_MAX, Set, View};

pub const BLOCKS_MAX: usize = 2;

/// Names a change. What a seal copies comes before what its session writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stamp {
    pub generation: u8,
    pub is_write: bool,
    pub seq: u8,
}

/// A change that may be missing elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mark {
    pub stamp: Stamp,
    pub blocks: Set,
    /// The client's write that it is, or a copy of; 0: none is known.
    pub origin: u8,
    /// It came with fetched content.
    pub inherited: bool,
}

/// An order that the store has not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// `since`: under which it was sent last. `forgotten`: this copy has begun anew meanwhile.
    Change { mark: Mark, value: u8, settled: Option<Stamp>, since: u8, forgotten: bool },
    /// Of the attempt that began at `started`. No value: changes have decided the block.
    Backfill { started: u8, values: [Option<u8>; BLOCKS_MAX], blocks: Set, marks: Vec<Mark> },
    /// Nobody needs what is here.
    Delete,
}

impl Order {
    fn value_of(&self, asked: usize) -> Option<u8> {
        match self {
            Order::Change { mark, value, .. } => mark.blocks.has(asked).then_some(*value),
            Order::Backfill { values, .. } => values[asked],
            Order::Delete => Some(0),
        }
    }

    fn blocks(&self) -> Set {
        match self {
            Order::Change { mark, .. } => mark.blocks,
            Order::Backfill { blocks, .. } => *blocks,
            Order::Delete => Set::first(BLOCKS_MAX),
        }
    }
}

/// Changes of one generation that are settled though something older is not. `node::replica::settled`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Around {
    pub generation: u8,
    pub last: u8,
    /// Sequence numbers up to `last` that are not settled.
    pub pinned: Set,
}

impl Around {
    fn contains(&self, stamp: Stamp) -> bool {
        let is_covered = stamp.generation == self.generation && stamp.is_write && stamp.seq <= self.last;
        is_covered && !self.pinned.has(usize::from(stamp.seq))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Copy {
    /// Durable: what each block holds, by the number of the client's write.
    pub content: [u8; BLOCKS_MAX],
    /// Durable, by stamp.
    pub marks: Vec<Mark>,
    /// Durable: an attempt to catch up has begun and not ended.
    pub is_torn: bool,
    pub orders: Vec<Order>,
    /// Everything up to here is on all copies.
    pub settled: Option<Stamp>,
    /// And these.
    pub around: Option<Around>,
    /// Blocks that each absent member lacks; `None`: not known.
    pub lacking: [Option<Set>; NODES_MAX],
}

/// How a copy takes a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It was settled before: perhaps it came with fetched content.
    Settled,
    Has,
    Waits,
}

impl Copy {
    /// A read that is submitted now sees every order before it.
    pub fn will_read(&self, block: usize) -> u8 {
        self.orders.iter().rev().find_map(|order| order.value_of(block)).unwrap_or(self.content[block])
    }

    pub fn has_order_for(&self, block: usize) -> bool {
        self.orders.iter().any(|order| order.blocks().has(block))
    }

    pub fn has_older_changes(&self, generation: u8) -> bool {
        self.orders.iter().any(|order| match order {
            Order::Change { mark, .. } => mark.stamp.generation < generation,
            Order::Backfill { .. } | Order::Delete => false,
        })
    }

    /// What it lists as unsettled.
    pub fn unsettled(&self) -> Vec<Mark> {
        let mut found: Vec<Mark> = Vec::new();
        for order in &self.orders {
            match order {
                Order::Change { mark, forgotten: false, .. } => found.push(*mark),
                Order::Change { .. } | Order::Delete => {}
                Order::Backfill { marks, .. } => found.extend(marks),
            }
        }
        found.extend(&self.marks);
        found.retain(|mark| Some(mark.stamp) > self.settled && !self.is_settled_around(mark.stamp));
        found.sort_unstable();
        found.dedup_by_key(|mark| mark.stamp);
        found
    }

    pub fn unsettled_blocks(&self) -> Set {
        self.unsettled().iter().fold(Set::default(), |blocks, mark| blocks.or(mark.blocks))
    }

    fn is_settled_around(&self, stamp: Stamp) -> bool {
        self.around.is_some_and(|around| around.contains(stamp))
    }

    /// Makes durable that it has forgotten what is settled around something. Until then a crash brings it back.
    pub fn forget(&mut self) {
        if let Some(around) = self.around {
            self.marks.retain(|mark| !around.contains(mark.stamp));
        }
    }

    pub fn settle(&mut self, stamp: Option<Stamp>) {
        self.settled = self.settled.max(stamp);
    }

    /// Accepts a change that has passed the gate.
    pub fn take(
        &mut self,
        mark: Mark,
        value: u8,
        settled: Option<Stamp>,
        since: u8,
        catching: bool,
    ) -> Taken {
        self.settle(settled);
        let is_below = self.settled.is_some_and(|s| s.generation == mark.stamp.generation && mark.stamp <= s);
        if is_below || self.is_settled_around(mark.stamp) {
            return Taken::Settled;
        }
        for order in &mut self.orders {
            if let Order::Change { mark: known, since: asked, forgotten: false, .. } = order
                && known.stamp == mark.stamp
            {
                *asked = since;
                return Taken::Waits;
            }
        }
        let known = self.unsettled().iter().any(|m| m.stamp == mark.stamp && !(m.inherited && catching));
        if known {
            return Taken::Has;
        }
        for blocks in self.lacking.iter_mut().flatten() {
            *blocks = blocks.or(mark.blocks);
        }
        self.orders.push(Order::Change { mark, value, settled, since, forgotten: false });
        Taken::Waits
    }

    /// May the store carry this order out before those that came earlier? Those of one block take effect in their order.
    pub fn is_next(&self, at: usize) -> bool {
        let blocks = self.orders[at].blocks();
        self.orders[..at].iter().all(|order| order.blocks().and(blocks).is_empty())
    }

    /// The store carries out an order. Returns the change that may be acknowledged now, and the `since` it was last sent under.
    pub fn carry_out(&mut self, at: usize) -> Option<(Stamp, u8)> {
        match self.orders.remove(at) {
            Order::Change { mark, value, settled, since, forgotten } => {
                mark.blocks.iter().for_each(|block| self.content[block] = value);
                self.marks.retain(|m| Some(m.stamp) > settled && m.stamp != mark.stamp);
                if !forgotten {
                    self.remember(mark);
                }
                (!forgotten).then_some((mark.stamp, since))
            }
            Order::Backfill { blocks, values, marks, .. } => {
                for block in blocks.iter() {
                    self.content[block] = values[block].unwrap_or(self.content[block]);
                }
                marks.into_iter().for_each(|mark| self.remember(mark));
                None
            }
            Order::Delete => {
                self.content = Default::default();
                None
            }
        }
    }

    fn remember(&mut self, mark: Mark) {
        if self.marks.iter().all(|m| m.stamp != mark.stamp) {
            self.marks.push(mark);
            self.marks.sort_unstable();
        }
    }

    /// It begins to catch up: nothing that was known of its changes counts. Returns the blocks that those may have touched.
    pub fn begin_anew(&mut self) -> Set {
        let mut touched = self.unsettled_blocks();
        self.marks.clear();
        for order in &mut self.orders {
            match order {
                Order::Change { mark, forgotten, .. } => {
                    *forgotten = true;
                    touched = touched.or(mark.blocks);
                }
                Order::Backfill { blocks, marks, .. } => {
                    marks.clear();
                    touched = touched.or(*blocks);
                }
                Order::Delete => {}
            }
        }
        touched
    }

    /// What a crash leaves.
    pub fn crash(&mut self) {
        self.orders.clear();
        (self.settled, self.around) = (None, None);
        self.lacking = [None; NODES_MAX];
    }

    /// Notes what those targets lack that leave the in-sync set.
    pub fn track(&mut self, options: &Options, me: usize, before: &View, after: &View) {
        let begun =
            if options.has(Bug::TrackingBeginsEmpty) { Set::default() } else { self.unsettled_blocks() };
        for node in (0..options.nodes).filter(|n| *n != me) {
            if before.in_sync.has(node) && !after.in_sync.has(node) {
                self.lacking[node] = before.in_sync.has(me).then_some(begun);
            }
            let is_wanted = after.targets.has(node) || options.has(Bug::AbsenceOutlivesTargets);
            if after.in_sync.has(node) || !after.in_sync.has(me) || !is_wanted {
                self.lacking[node] = None;
            }
        }
    }
}
