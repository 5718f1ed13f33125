//! What is to be thought of stopping some nodes: a word, and the reasons for it. Pure.

use proto::NodeId;
use proto::client::{ClusterStatus, FewPlaces, Health, MemberHealth, Out, ScrubStatus, Shortfall, StopRisk};

/// From good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    /// As the severity of a reason: nothing but a notice.
    Safe,
    /// Everything would be served, with fewer copies.
    Short,
    /// Writes would wait.
    Held,
    /// Something could not be read any more.
    Lost,
    /// Somebody who should know does not answer.
    Unknown,
}

impl Word {
    pub fn text(self) -> &'static str {
        match self {
            Word::Safe => "safe",
            Word::Short => "short",
            Word::Held => "held",
            Word::Lost => "lost",
            Word::Unknown => "unknown",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    pub word: Word,
    pub text: String,
    pub advice: String,
}

/// What a node that stays says.
#[derive(Clone, Debug, Default)]
pub struct Told {
    pub risk: StopRisk,
    pub scrub: ScrubStatus,
}

/// What a node says that is to be stopped.
#[derive(Clone, Copy, Debug, Default)]
pub struct Leaving {
    pub risk: StopRisk,
    /// Clients that have VDIs open through it.
    pub guests: usize,
}

pub struct Heard {
    /// That are to be stopped.
    pub nodes: Vec<NodeId>,
    pub is_enabled: bool,
    /// As the sheep sees it that was asked first, and what it says itself.
    pub health: Health,
    pub own: StopRisk,
    /// Of the nodes that are up and are not to be stopped.
    pub told: Vec<(NodeId, Result<Told, String>)>,
    /// Of those that are to be stopped and answer. Who does not may be down, and has no guests that would notice.
    pub leaving: Vec<Leaving>,
}

impl Heard {
    pub fn word(&self) -> Word {
        self.reasons().iter().map(|reason| reason.word).max().unwrap_or(Word::Safe)
    }

    pub fn guests(&self) -> usize {
        self.leaving.iter().map(|leaving| leaving.guests).sum()
    }

    /// The worst of all views.
    pub fn worst(&self) -> StopRisk {
        let told = self.told.iter().filter_map(|(_, told)| told.as_ref().ok()).map(|told| told.risk);
        let all = told.chain(self.leaving.iter().map(|leaving| leaving.risk)).chain([self.own]);
        let worst = all.max_by_key(|risk| (risk.lost.pgs, risk.held.pgs, risk.short.pgs, risk.few.pgs));
        worst.expect("there is one at least")
    }

    /// Can the answer become better without anybody's doing? A node that stores on is needed for ever, no zone comes by itself, and who is
    /// not there may come back.
    pub fn may_improve(&self) -> bool {
        let lacks_zones_alone = self.reason_of_few_places().is_some() && self.reasons_but_zones().is_empty();
        let is_running = self.is_enabled && self.health.status != ClusterStatus::ShuttingDown;
        is_running && self.storing().is_empty() && !lacks_zones_alone
    }

    /// The worst first.
    pub fn reasons(&self) -> Vec<Reason> {
        let mut reasons = self.reasons_but_zones();
        reasons.extend(self.reason_of_guests());
        reasons.extend(self.reason_of_few_places().or_else(|| self.reason_of_few_zones()));
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.word));
        reasons
    }

    /// What speaks against it but a lack of zones.
    fn reasons_but_zones(&self) -> Vec<Reason> {
        let mut reasons: Vec<Reason> = self.reason_of_shutdown().into_iter().collect();
        let silent = |(node, told): &(NodeId, Result<Told, String>)| {
            told.as_ref().err().map(|why| Reason {
                word: Word::Unknown,
                text: format!("node {node} is a member and does not answer: {why}"),
                advice: "look at that machine and its sheep.log; its copies may not be there".into(),
            })
        };
        reasons.extend(self.told.iter().filter_map(silent));
        reasons.extend(self.told.iter().filter_map(reason_of_damage));
        reasons.extend(self.reasons_of_risk());
        reasons
    }

    fn reasons_of_risk(&self) -> Vec<Reason> {
        let StopRisk { pgs, lost, held, short, .. } = self.worst();
        let names = names(&self.nodes);
        let kinds = [
            (
                Word::Lost,
                lost,
                format!("have no complete copy that is up but on {names}"),
                "have none that is up",
            ),
            (Word::Held, held, format!("would take no writes without {names}"), "take none"),
            (
                Word::Short,
                short,
                format!("would have fewer complete copies without {names} than there are places for them"),
                "lack copies",
            ),
        ];
        let mut reasons = Vec::new();
        for (word, Shortfall { pgs: count, already }, so, are_so) in kinds {
            let needed = count.saturating_sub(already);
            if needed > 0 {
                let text = format!("{needed} of {pgs} placement groups {so}");
                reasons.push(Reason { word, text, advice: self.advice() });
            }
            if already > 0 {
                let text = format!(
                    "{already} of {pgs} placement groups {are_so} already, none of it on {names}; an older state there may be wanted yet"
                );
                reasons.push(Reason { word, text, advice: "see dog cluster health".into() });
            }
        }
        reasons
    }

    /// What makes the nodes dispensable.
    fn advice(&self) -> String {
        let storing = self.storing();
        match storing.as_slice() {
            [] if !self.is_enabled => "switch recovery on again: dog cluster recover enable".into(),
            [] => "wait, copies are made on other nodes: dog node recovery".into(),
            nodes => {
                let commands: Vec<String> = nodes.iter().map(|node| format!("dog node out {node}")).collect();
                format!("for good: {}, and wait", commands.join("; "))
            }
        }
    }

    /// Those of the nodes on which something is to be stored.
    fn storing(&self) -> Vec<NodeId> {
        let is_storing = |member: &&MemberHealth| {
            // Who was given up is in again as soon as it is started; while it is down nothing is to be stored there.
            let is_out = member.out == Some(Out::ByOperator) || member.out.is_some() && !member.is_up;
            self.nodes.contains(&member.id) && !is_out && member.pgs > 0
        };
        self.health.members.iter().filter(is_storing).map(|member| member.id).collect()
    }

    fn reason_of_shutdown(&self) -> Option<Reason> {
        (self.health.status == ClusterStatus::ShuttingDown).then(|| Reason {
            word: Word::Unknown,
            text: "the cluster is shut down".into(),
            advice: "its sheep may be stopped for a while; to learn more, start all of them again".into(),
        })
    }

    fn reason_of_guests(&self) -> Option<Reason> {
        let names = names(&self.nodes);
        let guests = self.guests();
        (guests > 0).then(|| Reason {
            word: Word::Safe,
            text: format!(
                "{guests} clients have VDIs open through {names}, and lose them when it is stopped"
            ),
            advice: "move them to other sheep, or have them come back (reconnect): see dog vm list".into(),
        })
    }

    /// All places have their copy without the nodes, and that is not what the VDIs want.
    fn reason_of_few_places(&self) -> Option<Reason> {
        let StopRisk { pgs, few: FewPlaces { pgs: count, copies, wanted }, .. } = self.worst();
        let s = if copies == 1 { "y" } else { "ies" };
        (count > 0).then(|| Reason {
            word: Word::Short,
            text: format!(
                "{count} of {pgs} placement groups keep {copies} cop{s} without {}, not the {wanted} that VDIs want: there are no more zones with disks",
                names(&self.nodes)
            ),
            advice: "waiting does not help: add nodes in other zones, or be content with fewer copies (dog vdi alter-copy)".into(),
        })
    }

    /// The same where other things are worse.
    fn reason_of_few_zones(&self) -> Option<Reason> {
        let is_used =
            |pool: &&proto::client::PoolHealth| pool.vdis > 0 && pool.targets_min < pool.policy.width();
        let pool = self.health.pools.iter().filter(is_used).max_by_key(|pool| pool.policy.width())?;
        Some(Reason {
            word: Word::Safe,
            text: format!(
                "VDIs with {} copies get {}, for there are no more zones with disks",
                pool.policy.width(),
                pool.targets_min
            ),
            advice: "add nodes in other zones to have them all".into(),
        })
    }
}

/// The good copy of a damaged block may be one that is to go.
fn reason_of_damage((node, told): &(NodeId, Result<Told, String>)) -> Option<Reason> {
    let scrub = &told.as_ref().ok()?.scrub;
    let damaged = scrub.damaged.saturating_sub(scrub.lost);
    (damaged > 0).then(|| Reason {
        word: Word::Short,
        text: format!("{damaged} blocks on node {node} are damaged and not mended so far"),
        advice: "wait, they are mended from other copies: dog node scrub".into(),
    })
}

/// `node a`, `nodes a and b`
fn names(nodes: &[NodeId]) -> String {
    let shown: Vec<String> = nodes.iter().map(NodeId::to_string).collect();
    format!("node{} {}", if nodes.len() == 1 { "" } else { "s" }, shown.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::client::PoolHealth;
    use proto::{CopyPolicy, ZoneId};
    use std::net::Ipv4Addr;

    fn id(n: u16) -> NodeId {
        NodeId::new(Ipv4Addr::LOCALHOST.into(), 7000 + n)
    }

    /// Node 2 of three is out, and was emptied.
    fn safe() -> Heard {
        let member = |n: u16| MemberHealth {
            id: id(n),
            zone: ZoneId(n.into()),
            space_bytes: 1,
            is_up: true,
            pgs: if n == 2 { 0 } else { 8 },
            pgs_in_sync: if n == 2 { 0 } else { 8 },
            pgs_awaiting: 0,
            pgs_unreadable: 0,
            disk_failed: false,
            out: (n == 2).then_some(Out::ByOperator),
            may_time_out: false,
        };
        let told = Told { risk: StopRisk { pgs: 8, ..StopRisk::default() }, ..Told::default() };
        Heard {
            nodes: vec![id(2)],
            is_enabled: true,
            health: Health {
                status: ClusterStatus::Running,
                members: (0..3).map(member).collect(),
                pools: vec![],
            },
            own: told.risk,
            told: vec![(id(0), Ok(told.clone())), (id(1), Ok(told))],
            leaving: vec![],
        }
    }

    fn all(pgs: u32) -> Shortfall {
        Shortfall { pgs, already: 0 }
    }

    #[track_caller]
    fn assert_says(heard: &Heard, word: Word, says: &[&str]) {
        let text: Vec<String> =
            heard.reasons().iter().map(|r| format!("{} -> {}", r.text, r.advice)).collect();
        assert_eq!(heard.word(), word, "{text:?}");
        assert_eq!(text.len(), says.len(), "{text:?}");
        for (text, says) in text.iter().zip(says) {
            assert!(text.contains(says), "{text} does not say {says}");
        }
    }

    #[test]
    fn who_is_needed_for_nothing_is_safe_to_stop() {
        assert_says(&safe(), Word::Safe, &[]);
        let mut heard = safe();
        heard.leaving = vec![Leaving { guests: 2, ..Leaving::default() }];
        assert_says(&heard, Word::Safe, &["2 clients have VDIs open through node 127.0.0.1:7002"]);
    }

    #[test]
    fn the_worst_view_counts() {
        let mut heard = safe();
        heard.told[1].1.as_mut().unwrap().risk.short = all(3);
        assert_says(&heard, Word::Short, &["3 of 8 placement groups would have fewer complete copies"]);
        assert!(heard.may_improve());
        heard.own.held = all(1);
        assert_says(&heard, Word::Held, &["1 of 8 placement groups would take no writes without node"]);
        heard.told[0].1.as_mut().unwrap().risk.lost = all(1);
        assert_says(&heard, Word::Lost, &["1 of 8 placement groups have no complete copy that is up but on"]);
    }

    #[test]
    fn who_is_to_go_may_know_better_than_all_that_stay() {
        let mut heard = safe();
        let risk = StopRisk { pgs: 8, lost: all(2), ..StopRisk::default() };
        heard.leaving = vec![Leaving::default(), Leaving { risk, guests: 0 }];
        assert_says(&heard, Word::Lost, &["2 of 8 placement groups have no complete copy that is up but on"]);
    }

    #[test]
    fn fewer_places_than_copies_are_not_waited_for() {
        let mut heard = safe();
        heard.health.pools = vec![PoolHealth {
            policy: CopyPolicy::Replicated { copies: 3 },
            is_default: true,
            vdis: 1,
            pgs: 8,
            targets_min: 2,
            copies_min: 2,
            degraded: 0,
            moving: 0,
            unwritable: 0,
            unreadable: 0,
        }];
        heard.own.few = FewPlaces { pgs: 8, copies: 2, wanted: 3 };
        let few =
            "8 of 8 placement groups keep 2 copies without node 127.0.0.1:7002, not the 3 that VDIs want";
        assert_says(&heard, Word::Short, &[few]);
        assert!(heard.reasons()[0].advice.contains("waiting does not help"));
        assert!(!heard.may_improve());
        heard.own.few = FewPlaces { pgs: 8, copies: 1, wanted: 2 };
        assert_says(&heard, Word::Short, &["keep 1 copy without"]);
        // Copies of other placement groups are on their way: the word becomes a better one, though not the best.
        heard.own.held = all(1);
        assert_says(&heard, Word::Held, &["1 of 8 placement groups would take no writes", "keep 1 copy"]);
        assert!(heard.may_improve());
    }

    #[test]
    fn who_does_not_answer_may_have_no_copies() {
        let mut heard = safe();
        heard.told[1].1 = Err("Connection refused".into());
        let says = "node 127.0.0.1:7001 is a member and does not answer: Connection refused";
        assert_says(&heard, Word::Unknown, &[says]);
        assert!(heard.may_improve());
    }

    #[test]
    fn damage_elsewhere_is_mended_first() {
        let mut heard = safe();
        let scrub = &mut heard.told[0].1.as_mut().unwrap().scrub;
        (scrub.damaged, scrub.lost) = (3, 1);
        assert_says(&heard, Word::Short, &["2 blocks on node 127.0.0.1:7000 are damaged and not mended"]);
    }

    #[test]
    fn what_was_so_before_is_told_apart() {
        let mut heard = safe();
        heard.own.short = Shortfall { pgs: 5, already: 3 };
        let says =
            ["2 of 8 placement groups would have fewer", "3 of 8 placement groups lack copies already"];
        assert_says(&heard, Word::Short, &says);
    }

    #[test]
    fn waiting_for_who_stores_on_is_of_no_use() {
        let mut heard = safe();
        heard.nodes = vec![id(1), id(2)];
        heard.own.held = all(8);
        assert_says(&heard, Word::Held, &["-> for good: dog node out 127.0.0.1:7001, and wait"]);
        assert!(!heard.may_improve());
        // It was given up, and has come back.
        (heard.health.members[1].out, heard.health.members[1].pgs) = (Some(Out::ByTime), 8);
        assert!(!heard.may_improve());
        heard.nodes = vec![id(2)];
        assert!(heard.may_improve());
        heard.is_enabled = false;
        assert_says(&heard, Word::Held, &["dog cluster recover enable"]);
        assert!(!heard.may_improve());
    }

    #[test]
    fn a_cluster_that_is_shut_down_tells_nothing() {
        let mut heard = safe();
        heard.health.status = ClusterStatus::ShuttingDown;
        assert_says(&heard, Word::Unknown, &["the cluster is shut down"]);
    }
}
