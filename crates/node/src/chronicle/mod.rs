//! What the log tells an operator of the cluster and of this node's repair: who came and went, what was ordered, what was fetched.
//!
//! The view of before is compared with the one after each entry: one line for each change of membership ([`news`]), and of repair one when a phase begins,
//! one when it ends and in between at most one a minute ([`repair`]), however many PGs and objects it is about. Disks are full while they
//! refuse something ([`full`]). Nothing is decided here: without this module a node does the same.

mod full;
mod news;
mod repair;

use std::fmt;
use std::time::Duration;

use proto::NodeId;
use proto::client::RecoveryThrottle;
use proto::cluster::LogEntry;

use crate::context::Context;
use crate::view::{Applied, View};

use full::FullDisks;
use news::Known;
use repair::Repair;

pub(crate) use repair::Fetched;

/// Nodes that one line names.
const NAMED_MAX: usize = 8;

#[derive(Debug, Default)]
pub(crate) struct Chronicle {
    known: Known,
    repair: Repair,
    full: FullDisks,
}

impl Chronicle {
    /// This node has become a member.
    pub fn begin(&mut self, ctx: &Context, entry: &LogEntry, fetched: Fetched) {
        let (view, now) = (ctx.view, ctx.now);
        self.known = Known::of(view);
        let members = || view.members().values();
        let named = |nodes: Vec<NodeId>| (!nodes.is_empty()).then(|| tracing::field::display(Named(nodes)));
        let down = named(members().filter(|m| m.incarnation.is_none()).map(|m| m.info.id).collect());
        let out = named(members().filter(|m| m.out.is_some()).map(|m| m.info.id).collect());
        let recovery = (!view.repair().enabled).then(|| tracing::field::display("disabled"));
        let (epoch, version, up) = (view.epoch().0, view.version().0, count_up(view));
        tracing::info!(epoch, version, up, down, out, recovery, "this node has joined the cluster");
        let told = self.repair.look_at_all(view, ctx.me, entry, (fetched, now));
        told.into_iter().for_each(repair::Told::log);
    }

    /// An entry has been applied, and nothing has followed from it yet.
    pub fn handle_entry(&mut self, ctx: &Context, entry: &LogEntry, applied: &Applied, fetched: Fetched) {
        let (view, now) = (ctx.view, ctx.now);
        for news in self.known.compare(entry, applied, view) {
            news.log(view);
        }
        let told = if applied.formatted {
            self.repair = Repair::default();
            self.repair.look_at_all(view, ctx.me, entry, (fetched, now))
        } else {
            self.repair.handle_entry(&applied.pgs, view, ctx.me, entry, (fetched, now))
        };
        told.into_iter().for_each(repair::Told::log);
    }

    /// Once a tick.
    pub fn handle_tick(&mut self, ctx: &Context, fetched: Fetched) {
        if self.repair.is_due(ctx.now) {
            let silent = ctx.other_members().filter(|node| ctx.is_silent(*node)).collect();
            let told = self.repair.look_again(ctx.view, ctx.me, silent, (fetched, ctx.now));
            told.into_iter().for_each(repair::Told::log);
        }
        for node in self.full.look(&ctx.out.full_disks, ctx.now) {
            tracing::warn!(%node, "the disk of a node is full: what needs room there is refused until something is deleted or the node gets more");
        }
    }

    /// An operator bounds the repair of this node alone.
    pub fn handle_throttle(&mut self, before: RecoveryThrottle, bound: RecoveryThrottle) {
        if before == bound {
            return;
        }
        let RecoveryThrottle { objects_max, interval_ms } = bound;
        if bound.is_on() {
            tracing::info!(
                objects_max,
                interval_ms,
                "an operator bounds the objects that this node begins to fetch"
            );
        } else {
            tracing::info!("an operator has lifted the bound on the objects that this node begins to fetch");
        }
    }
}

fn count_up(view: &View) -> usize {
    view.members().values().filter(|m| m.incarnation.is_some()).count()
}

/// As a person reads it.
fn whole_ms(duration: Duration) -> Duration {
    Duration::from_millis(duration.as_millis() as u64)
}

/// Nodes in a line of the log, not all of them where they are many.
#[derive(Debug)]
struct Named(Vec<NodeId>);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, node) in self.0.iter().take(NAMED_MAX).enumerate() {
            write!(f, "{}{node}", if index > 0 { " " } else { "" })?;
        }
        match self.0.len().saturating_sub(NAMED_MAX) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_nodes_are_counted_and_few_are_named() {
        let nodes = |n: u16| (0..n).map(|i| NodeId::new([10, 0, 0, 1].into(), 7000 + i)).collect();
        assert_eq!(Named(nodes(2)).to_string(), "10.0.0.1:7000 10.0.0.1:7001");
        assert!(Named(nodes(200)).to_string().ends_with(" 10.0.0.1:7007 and 192 more"));
    }
}
