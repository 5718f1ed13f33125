//! Copies that should be elsewhere, and those that are left behind. `View::{retarget, drop_surplus}`, `node::sweep`.

use super::copy::Order;
use super::model::State;
use super::options::{Bug, Options};
use super::view::{Entry, Set};

impl State {
    /// Members are put out or come in.
    pub fn retarget(&mut self, options: &Options, targets: Set) -> bool {
        let head = self.head();
        if self.moves == options.moves || targets == head.targets || targets.len() != head.targets.len() {
            return false;
        }
        self.moves += 1;
        self.append(options, Entry::Retarget(targets));
        true
    }

    /// A sheep deletes what it holds of a PG that it is no copy of, where every copy that should exist is in sync.
    pub fn sweep(&mut self, options: &Options, me: usize) -> bool {
        let view = *self.view(me);
        let concerns = view.targets.or(view.writers()).has(me);
        let are_there = view.targets.without(view.in_sync).is_empty();
        let early = options.has(Bug::SweptTooEarly) && !view.targets.has(me);
        let node = &mut self.nodes[me];
        let holds = node.copy.content != [0; super::copy::BLOCKS_MAX] || !node.copy.orders.is_empty();
        let is_under_way = node.copy.orders.contains(&Order::Delete);
        if !node.is_alive || !holds || is_under_way || !(!concerns && are_there || early) {
            return false;
        }
        node.copy.orders.push(Order::Delete);
        true
    }
}
