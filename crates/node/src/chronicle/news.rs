//! What an entry of the cluster's order means to an operator: members that come and go, and what was ordered through whom.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::client::Out;
use proto::cluster::{Action, ClusterEvent, LogEntry, RepairOptions};
use proto::{Incarnation, NodeId};

use super::{Named, count_up, whole_ms};
use crate::view::{Applied, MemberState, Refusal, View};

/// What was known before an entry, as far as it is told of.
#[derive(Debug, Default)]
pub(super) struct Known {
    members: BTreeMap<NodeId, Member>,
    repair: RepairOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Member {
    incarnation: Option<Incarnation>,
    out: Option<Out>,
    disk_failed: bool,
    store_id: u64,
    /// When its end was noticed, in nanoseconds since 1970, if this node was there.
    down_since_ns: Option<u64>,
}

/// A line of the log. `through`: the node to which the operator's command went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    New { node: NodeId, is_gateway: bool },
    UpAgain { node: NodeId, away: Option<Duration>, how: Return },
    NotTaken { node: NodeId, why: Refusal },
    Down { nodes: Vec<NodeId>, is_ordered: bool },
    GivenUp { node: NodeId, told_by: NodeId },
    PutOut { node: NodeId, through: NodeId },
    TakenIn { node: NodeId, through: NodeId },
    DiskFailed { node: NodeId },
    Forced { given_up: Vec<NodeId>, through: NodeId },
    Formatted { through: NodeId },
    ShutDown { through: NodeId },
    RecoverySwitched { enabled: bool, through: NodeId },
    RecoveryBounded { rate_bytes: u64, through: NodeId },
    OutTimeChanged { out_time_s: u32, through: NodeId },
}

/// What a node is when it is up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Return {
    AsItWas,
    Gateway,
    /// Nothing that it held before is there.
    OtherStore,
    WasGivenUp,
    /// It had failed in the life before.
    DiskAgain,
    /// An operator's order still holds.
    StillOut,
}

impl Known {
    pub fn of(view: &View) -> Known {
        let members = view.members().iter().map(|(id, member)| (*id, Member::of(member, None))).collect();
        Known { members, repair: *view.repair() }
    }

    /// What the entry has changed; from now on that is known.
    pub fn compare(&mut self, entry: &LogEntry, applied: &Applied, view: &View) -> Vec<News> {
        let mut news = Vec::new();
        match &entry.event {
            ClusterEvent::Join(info) => {
                news.extend(applied.refused.map(|why| News::NotTaken { node: info.id, why }));
                if applied.refused.is_none() {
                    news.push(self.joined(info.id, entry.time_ns, view));
                }
            }
            ClusterEvent::Leave(_) => {}
            ClusterEvent::Message { from, proposal, .. } => {
                news.extend(self.ordered(*from, &proposal.action, applied, view));
            }
        }
        // Most entries are about volumes.
        if applied.membership || !news.is_empty() {
            let nodes = self.gone(view);
            if !nodes.is_empty() {
                news.push(News::Down { nodes, is_ordered: view.is_shut_down() });
            }
            self.learn(entry.time_ns, view);
        }
        news
    }

    fn gone(&self, view: &View) -> Vec<NodeId> {
        let is_down = |id: &NodeId| view.members().contains_key(id) && !view.is_up(*id);
        let was_up = self.members.iter().filter(|(_, member)| member.incarnation.is_some());
        was_up.map(|(id, _)| *id).filter(is_down).collect()
    }

    fn joined(&self, node: NodeId, time_ns: u64, view: &View) -> News {
        let now = &view.members()[&node];
        let is_gateway = now.info.space_bytes == 0;
        let Some(before) = self.members.get(&node) else { return News::New { node, is_gateway } };
        let how = match (before.out, now.out) {
            (_, Some(_)) => Return::StillOut,
            _ if is_gateway => Return::Gateway,
            _ if before.store_id != now.info.store_id => Return::OtherStore,
            _ if before.disk_failed => Return::DiskAgain,
            (Some(_), None) => Return::WasGivenUp,
            (None, None) => Return::AsItWas,
        };
        let away = before.down_since_ns.map(|since| Duration::from_nanos(time_ns.saturating_sub(since)));
        News::UpAgain { node, away, how }
    }

    fn ordered(&self, from: NodeId, action: &Action, applied: &Applied, view: &View) -> Vec<News> {
        let through = from;
        let out_of = |node: &NodeId| {
            let (before, now) = (self.members.get(node)?.out, view.members().get(node)?.out);
            (before != now).then_some(now)
        };
        let one = |news: News| vec![news];
        match action {
            Action::Format(_) if applied.formatted => one(News::Formatted { through }),
            Action::Shutdown if applied.shut_down => one(News::ShutDown { through }),
            Action::SetOut { node, .. } => match out_of(node) {
                Some(Some(_)) => one(News::PutOut { node: *node, through }),
                Some(None) => one(News::TakenIn { node: *node, through }),
                None => Vec::new(),
            },
            Action::TimeOut { node, .. } if out_of(node).is_some() => {
                one(News::GivenUp { node: *node, told_by: from })
            }
            // Refused, it changes nothing.
            Action::ForceRecovery if applied.membership => {
                let given_up = view.members().keys().copied().filter(|node| out_of(node).is_some()).collect();
                one(News::Forced { given_up, through })
            }
            Action::DiskFailed { .. } => {
                let is_new = self.members.get(&from).is_some_and(|m| !m.disk_failed)
                    && view.members().get(&from).is_some_and(|m| m.disk_failed);
                if is_new { one(News::DiskFailed { node: from }) } else { Vec::new() }
            }
            Action::SetRepair(_) => self.repair_changed(view.repair(), through),
            _ => Vec::new(),
        }
    }

    fn repair_changed(&self, now: &RepairOptions, through: NodeId) -> Vec<News> {
        let RepairOptions { out_time_s, enabled, rate_bytes, .. } = *now;
        let switched =
            (self.repair.enabled != enabled).then_some(News::RecoverySwitched { enabled, through });
        let bounded =
            (self.repair.rate_bytes != rate_bytes).then_some(News::RecoveryBounded { rate_bytes, through });
        let out_time =
            (self.repair.out_time_s != out_time_s).then_some(News::OutTimeChanged { out_time_s, through });
        [switched, bounded, out_time].into_iter().flatten().collect()
    }

    fn learn(&mut self, time_ns: u64, view: &View) {
        let down_since = |id: &NodeId, member: &MemberState| match self.members.get(id) {
            _ if member.incarnation.is_some() => None,
            Some(before) if before.incarnation.is_some() => Some(time_ns),
            before => before.and_then(|m| m.down_since_ns),
        };
        let members = view.members().iter().map(|(id, m)| (*id, Member::of(m, down_since(id, m)))).collect();
        *self = Known { members, repair: *view.repair() };
    }
}

impl Member {
    fn of(member: &MemberState, down_since_ns: Option<u64>) -> Member {
        Member {
            incarnation: member.incarnation,
            out: member.out,
            disk_failed: member.disk_failed,
            store_id: member.info.store_id,
            down_since_ns,
        }
    }
}

impl News {
    pub fn log(self, view: &View) {
        let (epoch, version, up) = (view.epoch().0, view.version().0, count_up(view));
        match self {
            News::New { node, is_gateway: false } => {
                tracing::info!(%node, epoch, version, up, "a node has joined that was not here before; it gets its share of the copies");
            }
            News::New { node, is_gateway: true } => {
                tracing::info!(%node, epoch, version, up, "a gateway has joined that was not here before; it stores nothing");
            }
            News::UpAgain { node, away, how } => {
                let away = away.map(|away| tracing::field::debug(whole_ms(away)));
                tracing::info!(%node, away, epoch, version, up, "a node is up again; {}", how.meaning());
            }
            News::NotTaken { node, why } => {
                tracing::warn!(%node, version, "a node was not taken into the cluster: {}", reason(why));
            }
            News::Down { nodes, is_ordered: true } => {
                let node = Named(nodes);
                tracing::info!(%node, version, up, "a node has stopped, as was ordered for the whole cluster");
            }
            News::Down { nodes, is_ordered: false } => {
                let what = match nodes.len() {
                    1 => "a node is".into(),
                    count => format!("{count} nodes are"),
                };
                let (fate, node) = (fate(&nodes, view), Named(nodes));
                tracing::warn!(%node, epoch, version, up, "{what} down: stopped, died or cut off; {fate}");
            }
            News::GivenUp { node, told_by } => {
                let out_time = Duration::from_secs(view.repair().out_time_s.into());
                tracing::warn!(%node, %told_by, epoch, version, "a node has been down for {out_time:?} and is out; what it held is copied to others");
            }
            News::PutOut { node, through } => {
                tracing::info!(%node, %through, epoch, version, "an operator has put a node out; what it holds is copied to others");
            }
            News::TakenIn { node, through } => {
                tracing::info!(%node, %through, epoch, version, "an operator has taken a node in; it gets its share of the copies");
            }
            News::DiskFailed { node } => {
                tracing::warn!(%node, epoch, version, "the disk of a node has failed; it goes on as a gateway, and its copies are made on others");
            }
            News::Forced { given_up, through } => {
                let out = Named(given_up);
                tracing::warn!(%through, %out, epoch, version, "an operator has forced recovery: the cluster goes on with what is there, and what only missing nodes had is lost");
            }
            News::Formatted { through } => {
                tracing::info!(%through, epoch, version, up, "the cluster has been formatted; whatever was stored before is removed");
            }
            News::ShutDown { through } => {
                tracing::info!(%through, epoch, version, up, "an operator has ordered all sheep to stop");
            }
            News::RecoverySwitched { enabled: true, through } => {
                tracing::info!(%through, version, "an operator has enabled recovery; copies that are missing are made again");
            }
            News::RecoverySwitched { enabled: false, through } => {
                tracing::warn!(%through, version, "an operator has disabled recovery; no copies are made but those that writes wait for");
            }
            News::RecoveryBounded { rate_bytes: 0, through } => {
                tracing::info!(%through, version, "an operator has lifted the bound on what each node fetches for recovery");
            }
            News::RecoveryBounded { rate_bytes, through } => {
                tracing::info!(%through, rate_bytes, version, "an operator bounds what each node fetches for recovery in a second");
            }
            News::OutTimeChanged { out_time_s, through } => {
                tracing::info!(%through, version, "an operator has changed how long a node may be down: {}", after(out_time_s));
            }
        }
    }
}

/// What becomes of nodes that are down.
fn fate(nodes: &[NodeId], view: &View) -> String {
    let stores = |node: &NodeId| {
        let member = view.members().get(node);
        member.is_some_and(|m| m.info.space_bytes > 0 && m.out.is_none())
    };
    let RepairOptions { enabled, out_time_s, .. } = *view.repair();
    if !nodes.iter().any(stores) {
        "nothing was to be stored there".into()
    } else if !enabled {
        "not given up while recovery is disabled".into()
    } else if out_time_s > 0 && !nodes.iter().any(|node| view.may_time_out(*node)) {
        "too few others are left for it to be given up by itself".into()
    } else if out_time_s > 0 && nodes.len() > 1 {
        format!("{}, or too few would be left", after(out_time_s))
    } else {
        after(out_time_s)
    }
}

fn after(out_time_s: u32) -> String {
    match out_time_s {
        0 => "given up only if an operator says so".into(),
        seconds => {
            format!("given up after {:?}, unless it is back before", Duration::from_secs(seconds.into()))
        }
    }
}

fn reason(why: Refusal) -> String {
    match why {
        Refusal::StoreInUse { by } => format!("node {by} is up with the same store"),
        Refusal::Outdated { last } => {
            format!("its store is an older copy of the one that node {last} had last")
        }
        Refusal::Foreign => "its store belongs to another cluster".into(),
    }
}

impl Return {
    fn meaning(self) -> &'static str {
        match self {
            Return::AsItWas => "it fetches what it has missed",
            Return::Gateway => "it stores nothing",
            Return::OtherStore => "its store is another one than before, so all its copies are made anew",
            Return::WasGivenUp => "it had been given up and gets its share of the copies again",
            Return::DiskAgain => "its disk, which had failed, works again and gets its share of the copies",
            Return::StillOut => "it stays out by an operator's order, and nothing is stored there",
        }
    }
}

#[cfg(test)]
mod tests;
