//! Members that have been down for as long as the cluster waits: somebody has to say so.
//!
//! Each sheep counts on its own clock, from when it heard of the loss or started itself; so after a power loss everybody has the full time to
//! come back. They speak up one after the other, so that one is enough.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::cluster::Action;
use proto::{NodeId, ViewVersion};

use crate::Time;
use crate::context::{Context, ProposalUse};

/// Between the moments at which members speak up.
const TURN: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(crate) struct Overdue {
    down: BTreeMap<NodeId, (ViewVersion, Time)>,
}

impl Overdue {
    pub fn handle_tick(&mut self, ctx: &mut Context) {
        let is_down = |node: &NodeId, left: ViewVersion| {
            ctx.view.members().get(node).is_some_and(|m| m.incarnation.is_none() && m.left == left)
        };
        self.down.retain(|node, (left, _)| is_down(node, *left));
        let out_time = Duration::from_secs(ctx.view.repair().out_time_s.into());
        if out_time.is_zero() || ctx.view.format().is_none() || ctx.view.is_shut_down() {
            return;
        }
        let before = ctx.other_members().filter(|node| *node < ctx.me).count() as u32;
        let mut overdue = Vec::new();
        for member in ctx.view.members().values().filter(|m| m.incarnation.is_none()) {
            let (left, since) = *self.down.entry(member.info.id).or_insert((member.left, ctx.now));
            let waited = ctx.now.since(since) >= out_time + before * TURN;
            if waited && ctx.view.may_time_out(member.info.id) {
                overdue.push((member.info.id, left));
            }
        }
        for (node, left) in overdue {
            let purpose = ProposalUse::TimeOut { node };
            if !ctx.is_proposed(&purpose) {
                ctx.propose(Action::TimeOut { node, left }, purpose);
            }
        }
    }
}
