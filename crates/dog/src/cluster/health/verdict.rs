//! What is to be thought of a cluster: a word, and the reasons for it. Pure.

use std::collections::BTreeSet;

use proto::NodeId;
use proto::client::{
    ClusterInfo, ClusterStatus, DamagedBlocks, EpochInfo, Health, MemberHealth, NodeStat, Out, PoolHealth,
    ScrubStatus, VdiInfo,
};

use crate::clock::LocalTime;
use crate::duration;
use crate::node::scrub::describe;
use crate::size;
use crate::vdi::names::shown;

/// From bad to worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    /// Every copy that there is a place for is complete. As the severity of a reason: nothing but a notice.
    Ok,
    /// Everything is served, but something should be done or waited for.
    Degraded,
    /// Writes that need room on a disk are refused.
    Full,
    /// A member does not answer: what it has to do with may wait.
    Unresponsive,
    /// Some writes wait.
    Blocked,
    /// Some reads wait too.
    Waiting,
    Stopping,
    Unformatted,
    /// Some blocks have no good copy on any sheep that is up: reads of them fail.
    Lost,
}

impl Word {
    pub fn text(self) -> &'static str {
        match self {
            Word::Ok => "ok",
            Word::Degraded => "degraded",
            Word::Full => "full",
            Word::Unresponsive => "unresponsive",
            Word::Blocked => "blocked",
            Word::Waiting => "waiting",
            Word::Stopping => "stopping",
            Word::Unformatted => "unformatted",
            Word::Lost => "lost",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    pub severity: Word,
    /// What is so, and of whom.
    pub text: String,
    /// What to do about it.
    pub advice: String,
}

/// What a node says of itself.
#[derive(Clone, Debug, Default)]
pub struct NodeHeard {
    pub stat: NodeStat,
    pub scrub: ScrubStatus,
}

/// What was heard. `stats`: of the nodes that are up, in the order of their numbers.
pub struct Heard {
    pub info: ClusterInfo,
    pub health: Health,
    pub stats: Vec<(NodeId, Result<NodeHeard, String>)>,
    pub vdis: Vec<VdiInfo>,
}

/// What helps where recovery is disabled.
const ENABLE: &str = "switch recovery on again: dog cluster recover enable";
/// Above this a disk is called full: writers are refused soon.
const FULL_PERCENT: u64 = 90;
/// VDIs that are named.
const NAMES_MAX: usize = 5;

impl Heard {
    pub fn word(&self) -> Word {
        self.reasons().iter().map(|reason| reason.severity).max().unwrap_or(Word::Ok)
    }

    /// The worst first.
    pub fn reasons(&self) -> Vec<Reason> {
        match self.health.status {
            ClusterStatus::WaitForFormat => {
                let text = "the cluster is not formatted".to_string();
                let advice = "make one of the nodes that are up: dog cluster format".to_string();
                return vec![Reason { severity: Word::Unformatted, text, advice }];
            }
            ClusterStatus::ShuttingDown => {
                let text = "the cluster is shut down".to_string();
                let advice = "start all its sheep again to go on".to_string();
                return vec![Reason { severity: Word::Stopping, text, advice }];
            }
            ClusterStatus::Running | ClusterStatus::WaitForJoin => {}
        }
        let mut reasons: Vec<Reason> = self.relevant_pools().flat_map(|pool| self.reasons_of(pool)).collect();
        reasons.extend(self.health.members.iter().filter_map(|member| self.reason_of_absence(member)));
        reasons.extend(self.health.members.iter().filter_map(reason_of_failed_disk));
        reasons.extend(self.reasons_of_loss());
        reasons.extend(self.reasons_of_differences());
        let is_enabled = self.info.repair.enabled;
        if !is_enabled {
            reasons.push(Reason {
                severity: Word::Ok,
                text: "recovery is disabled: copies are made where writes wait for them, and nowhere else"
                    .into(),
                advice: ENABLE.into(),
            });
        }
        for (number, (node, heard)) in self.stats.iter().enumerate() {
            let who = format!("node {number} ({node})");
            match heard {
                Ok(heard) => {
                    reasons.extend(reasons_of_node(&who, &heard.stat, is_enabled));
                    reasons.extend(reasons_of_damage(&who, &heard.scrub));
                }
                Err(why) => reasons.push(Reason {
                    severity: Word::Unresponsive,
                    text: format!("{who} is a member and does not answer: {why}"),
                    advice: "look at that machine and its sheep.log; what needs this node waits for it"
                        .into(),
                }),
            }
        }
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.severity));
        reasons
    }

    /// A pool that no VDI uses has nothing to lose. The default one will be used next.
    fn relevant_pools(&self) -> impl Iterator<Item = &PoolHealth> {
        self.health.pools.iter().filter(|pool| pool.vdis > 0 || pool.is_default)
    }

    fn reasons_of(&self, pool: &PoolHealth) -> Vec<Reason> {
        let copies = pool.policy.width();
        let part =
            |count: u32| format!("{count} of {} placement groups of VDIs with {copies} copies", pool.pgs);
        let vdis = self.names(pool);
        let mut reasons = Vec::new();
        let mut add = |is_so: bool, severity, text: String, advice: String| {
            if is_so {
                reasons.push(Reason { severity, text, advice });
            }
        };
        add(
            pool.unreadable > 0,
            Word::Waiting,
            format!(
                "{} can be neither read nor written, for no complete copy is up{vdis}",
                part(pool.unreadable)
            ),
            self.advice_to_start(),
        );
        let unwritable = pool.unwritable.saturating_sub(pool.unreadable);
        add(
            unwritable > 0,
            Word::Blocked,
            format!("{} take no writes, for too few copies are up{vdis}", part(unwritable)),
            self.advice_to_start(),
        );
        add(
            pool.degraded > 0,
            Word::Degraded,
            format!(
                "{} lack complete copies; the worst have {}{vdis}",
                part(pool.degraded),
                number(pool.copies_min, copies)
            ),
            self.advice_to_recover(),
        );
        add(
            pool.targets_min < copies,
            Word::Degraded,
            format!(
                "VDIs with {copies} copies get {}, for there are no more zones with disks{vdis}",
                number(pool.targets_min, copies)
            ),
            "add nodes in other zones, or be content with fewer copies: dog vdi alter-copy, dog cluster alter-copy".into(),
        );
        add(
            pool.moving > 0,
            Word::Ok,
            format!("{} are moving to other nodes, with all their copies complete", part(pool.moving)),
            if self.info.repair.enabled { "nothing: see dog node recovery".into() } else { ENABLE.into() },
        );
        reasons
    }

    /// Of a node that stores something or should.
    fn reason_of_absence(&self, member: &MemberHealth) -> Option<Reason> {
        if member.out.is_some() {
            return Some(self.reason_of_out(member));
        }
        if member.is_up || (member.pgs == 0 && member.pgs_in_sync == 0) {
            return None;
        }
        Some(Reason {
            severity: Word::Degraded,
            text: format!(
                "node {} in zone {} is down{}; {} placement groups have a place on it; {}",
                member.id,
                member.zone,
                since(&self.info, member.id),
                member.pgs,
                self.patience(member)
            ),
            advice: format!(
                "start its sheep again; it fetches what it has missed; or give it up now: dog node out {}",
                member.id
            ),
        })
    }

    /// When a node that is down will be given up.
    fn patience(&self, member: &MemberHealth) -> String {
        let repair = &self.info.repair;
        let never = |why: &str| format!("it is not given up by itself, for {why}");
        match repair.out_time_s {
            _ if !repair.enabled => never("recovery is disabled"),
            0 => never("the out-time is 0"),
            _ if !member.may_time_out => never("too many nodes are away"),
            seconds => {
                let rivals = self.health.members.iter().filter(|other| other.may_time_out).count();
                let unless = if rivals > 1 { " (unless that leaves too few nodes)" } else { "" };
                let after = format!("it is given up{unless} after {}", duration::show(seconds));
                let epoch = last_seen(&self.info, member.id);
                let at =
                    |epoch: &EpochInfo| LocalTime::from_seconds(epoch.time + u64::from(seconds)).seconds();
                epoch.map_or(after.clone(), |epoch| format!("{after}, about {}", at(epoch)))
            }
        }
    }

    /// What is out lacks nothing that should be there: a notice, unless something waits for it, which the pools tell.
    fn reason_of_out(&self, member: &MemberHealth) -> Reason {
        let MemberHealth { id, zone, pgs_in_sync, .. } = *member;
        let by = match member.out {
            Some(Out::ByTime) => "given up, for it was away for too long",
            Some(Out::ByForce) => "given up, for it was down at 'dog cluster recover force'",
            _ => "out, as an operator has said",
        };
        let state = if member.is_up { String::new() } else { format!(", and down{}", since(&self.info, id)) };
        let lacking: u32 = self.relevant_pools().map(|pool| pool.degraded).sum();
        let left = match pgs_in_sync {
            0 if lacking > 0 => format!(
                "what it holds may be old, and may be wanted yet, since {lacking} placement groups lack copies"
            ),
            0 => "it holds nothing that is needed".to_string(),
            count => format!("{count} placement groups still need what it holds"),
        };
        let advice = match (member.out, pgs_in_sync) {
            (Some(Out::ByTime | Out::ByForce), _) => {
                "start its sheep again to have it back, with its disk or with an empty one".to_string()
            }
            (_, 0) if member.is_up => {
                format!(
                    "before its sheep is stopped: dog node safe-to-stop {id}; to store on it again: dog node in {id}"
                )
            }
            (_, 0) if lacking > 0 => {
                format!(
                    "keep its disk until the others have all their copies; to store on it again: dog node in {id}"
                )
            }
            (_, 0) => format!("nothing; to store on it again: dog node in {id}"),
            _ if !self.info.repair.enabled => format!("{ENABLE}; to store on it again: dog node in {id}"),
            _ => format!("wait: see dog node recovery; to store on it again: dog node in {id}"),
        };
        Reason {
            severity: Word::Ok,
            text: format!("node {id} in zone {zone} is {by}{state}; {left}"),
            advice,
        }
    }

    /// What helps where something waits.
    fn advice_to_start(&self) -> String {
        let awaited: Vec<String> = self
            .health
            .members
            .iter()
            .filter(|member| member.pgs_awaiting > 0)
            .map(|member| member.id.to_string())
            .collect();
        match awaited.is_empty() {
            true => self.advice_to_recover(),
            false => {
                let is_lost = self.health.members.iter().any(|member| member.pgs_unreadable > 0);
                let force = "; if they are gone for good: dog cluster recover force";
                format!("start again: {}{}", awaited.join(", "), if is_lost { force } else { "" })
            }
        }
    }

    fn advice_to_recover(&self) -> String {
        let mut behind = self.stats.iter().filter_map(|(_, heard)| heard.as_ref().ok());
        let is_recovering = behind.clone().any(|heard| heard.stat.pgs_behind > 0);
        match is_recovering {
            true if !self.info.repair.enabled => ENABLE.into(),
            true if behind.any(|heard| heard.stat.pgs_behind > 0 && is_full(&heard.stat)) => {
                "make room on the full disk below; what fits is being made: dog node recovery".into()
            }
            true => "wait, they are being made: dog node recovery".into(),
            false if self.stats.iter().any(|(_, heard)| heard.is_err()) => {
                "look at the nodes that do not answer".into()
            }
            false => match self.lacks_only_who_is_out() {
                Some(node) => format!("have it store again: dog node in {node}"),
                None => "start the nodes that are down".into(),
            },
        }
    }

    /// A node that an operator has put out, where none is down.
    fn lacks_only_who_is_out(&self) -> Option<NodeId> {
        let members = &self.health.members;
        let is_missing = |member: &&MemberHealth| !member.is_up && member.out.is_none();
        let is_put_out = |member: &&MemberHealth| member.is_up && member.out == Some(Out::ByOperator);
        match members.iter().find(is_missing) {
            Some(_) => None,
            None => members.iter().find(is_put_out).map(|member| member.id),
        }
    }

    /// Blocks of which no copy is good. Whoever has a copy tells of them: each is named once.
    fn reasons_of_loss(&self) -> Vec<Reason> {
        let is_lost = |scrub: &ScrubStatus| scrub.told.iter().filter(|d| d.is_lost).cloned().collect();
        let told = self.told_by(|scrub| -> Vec<DamagedBlocks> { is_lost(scrub) });
        let mut reasons: Vec<Reason> =
            told.iter().take(NAMES_MAX).map(|(lost, who)| self.loss(lost, who)).collect();
        for (who, scrub) in self.scrubs() {
            let named = told.iter().take(NAMES_MAX).filter(|(lost, _)| scrub.told.contains(lost));
            let named: u64 = named.map(|(lost, _)| u64::from(lost.blocks.count)).sum();
            if scrub.lost > named {
                let text = format!(
                    "{} more blocks on {who} are damaged, and no copy of them is good",
                    scrub.lost - named
                );
                reasons.push(Reason { severity: Word::Lost, text, advice: "see dog node scrub".into() });
            }
        }
        reasons
    }

    fn loss(&self, lost: &DamagedBlocks, who: &[String]) -> Reason {
        let holder = self.vdis.iter().find(|info| info.vid == lost.oid.vid() && info.snap_ctime != 0);
        let what = describe(&lost.vdi, lost.oid, lost.blocks);
        let (of, advice) = match holder {
            Some(info) => (
                format!(" (snapshot {}{})", info.snap_id, tag_of(info)),
                "start nodes that are down and may have a copy; a snapshot cannot be written: delete it (dog vdi delete -s), and have a backup",
            ),
            None => (
                String::new(),
                "start nodes that are down and may have a copy; or write it anew, as from a backup",
            ),
        };
        let text = format!("{what}{of} is damaged on {}, and no copy of it is good", who.join(" and "));
        Reason { severity: Word::Lost, text, advice: advice.into() }
    }

    /// Blocks that copies have differently though none fails its checksum.
    fn reasons_of_differences(&self) -> Vec<Reason> {
        let told = self.told_by(|scrub| scrub.told_differing.clone());
        let mut reasons: Vec<Reason> = told
            .iter()
            .take(NAMES_MAX)
            .map(|(differing, who)| Reason {
                severity: Word::Degraded,
                text: format!(
                    "copies of {} differ, each with the right checksum, as {} has found",
                    describe(&differing.vdi, differing.oid, differing.blocks),
                    who.join(" and ")
                ),
                advice: "dog vdi check; if that cannot mend it, as in a snapshot, delete the snapshot, or restore it from a backup"
                    .into(),
            })
            .collect();
        for (who, scrub) in self.scrubs() {
            let named = told.iter().take(NAMES_MAX).filter(|(told, _)| scrub.told_differing.contains(told));
            let named: u64 = named.map(|(told, _)| u64::from(told.blocks.count)).sum();
            if scrub.differing > named {
                let text =
                    format!("copies of {} more blocks differ, as {who} has found", scrub.differing - named);
                reasons.push(Reason { severity: Word::Degraded, text, advice: "see dog node scrub".into() });
            }
        }
        reasons
    }

    /// What nodes tell, each once, with all who tell it.
    fn told_by<T: PartialEq>(&self, told: impl Fn(&ScrubStatus) -> Vec<T>) -> Vec<(T, Vec<String>)> {
        let mut all: Vec<(T, Vec<String>)> = Vec::new();
        for (who, scrub) in self.scrubs() {
            for what in told(scrub) {
                match all.iter_mut().find(|(known, _)| *known == what) {
                    Some((_, names)) if names.contains(&who) => {}
                    Some((_, names)) => names.push(who.clone()),
                    None => all.push((what, vec![who.clone()])),
                }
            }
        }
        all
    }

    /// Of those that answer.
    fn scrubs(&self) -> impl Iterator<Item = (String, &ScrubStatus)> {
        self.stats.iter().enumerate().filter_map(|(number, (node, heard))| {
            heard.as_ref().ok().map(|heard| (format!("node {number} ({node})"), &heard.scrub))
        })
    }

    /// `: a, b, and 3 more`
    fn names(&self, pool: &PoolHealth) -> String {
        let of_pool = self.vdis.iter().filter(|vdi| vdi.policy == pool.policy);
        let names: BTreeSet<String> = of_pool.map(|vdi| shown(&vdi.name)).collect();
        let mut shown: Vec<String> = names.iter().take(NAMES_MAX).cloned().collect();
        if names.len() > NAMES_MAX {
            shown.push(format!("and {} more", names.len() - NAMES_MAX));
        }
        if shown.is_empty() { " (there are no such VDIs)".into() } else { format!(": {}", shown.join(", ")) }
    }
}

/// `, tag monday`
fn tag_of(info: &VdiInfo) -> String {
    if info.tag.is_empty() { String::new() } else { format!(", tag {}", shown(&info.tag)) }
}

/// ` since epoch 2 (2026-11-22 11:23:11)`, where that is known.
pub fn since(info: &ClusterInfo, node: NodeId) -> String {
    last_seen(info, node).map_or(String::new(), |epoch| {
        format!(" since epoch {} ({})", epoch.epoch, LocalTime::from_seconds(epoch.time).seconds())
    })
}

/// The epoch that began when the node went. None if no epoch did: all went at once, or it is too long ago.
fn last_seen(info: &ClusterInfo, node: NodeId) -> Option<&EpochInfo> {
    let is_in = |epoch: &EpochInfo| epoch.nodes.iter().any(|other| other.id == node);
    let present = info.epochs.iter().position(is_in)?;
    present.checked_sub(1).map(|went| &info.epochs[went])
}

fn is_full(stat: &NodeStat) -> bool {
    stat.is_full || size::percent(stat.used_bytes, stat.size_bytes) >= FULL_PERCENT
}

fn reasons_of_node(who: &str, stat: &NodeStat, is_enabled: bool) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let used_percent = size::percent(stat.used_bytes, stat.size_bytes);
    let is_full = is_full(stat);
    if stat.pgs_behind > 0 {
        let room = "make room: its disk is full, and what does not fit there cannot be copied";
        reasons.push(Reason {
            severity: if is_full { Word::Degraded } else { Word::Ok },
            text: format!(
                "{who} makes copies that it lacks: {} of {} placement groups are left; of the objects found so far {} of {} are done",
                stat.pgs_behind, stat.pgs, stat.objects_done, stat.objects_total
            ),
            advice: match (is_full, is_enabled) {
                (true, _) => room,
                (false, false) => ENABLE,
                (false, true) => "nothing: see dog node recovery",
            }
            .into(),
        });
    }
    if is_full {
        reasons.push(match stat.is_full {
            // How much is left is not known: a file system may be full long before the store is. Nor whether it still is: it is asked again by
            // the next write that needs room.
            true => Reason {
                severity: Word::Full,
                text: format!(
                    "the disk of {who} is full: guests' writes that need room there are refused now (no space), whatever other disks have, until one \
                     finds some; what overwrites goes on, and a little is kept for what is under way"
                ),
                advice: "delete snapshots or volumes (dog vdi delete), discard in guests, or free what else is in its file system; a node with a larger disk in the same zone, or \
                         one more zone, takes part of its copies"
                    .into(),
            },
            false => Reason {
                severity: Word::Degraded,
                text: format!(
                    "the disk of {who} is {used_percent} % full: {} left",
                    size::human(stat.size_bytes.saturating_sub(stat.used_bytes))
                ),
                advice: "delete what is not needed, or add nodes; new data is refused when a sixteenth (at most 512 MB) is left".into(),
            },
        });
    }
    reasons
}

/// So many copies, of those that there should be.
fn number(copies: u8, wanted: u8) -> String {
    if copies == 1 && wanted > 1 { "1, and lose data with that one".into() } else { copies.to_string() }
}

fn reason_of_failed_disk(member: &MemberHealth) -> Option<Reason> {
    (member.is_up && member.disk_failed).then(|| Reason {
        severity: Word::Degraded,
        text: format!(
            "the disk of node {} in zone {} has failed: it stores nothing, and its copies are made on other nodes",
            member.id, member.zone
        ),
        advice: "see its sheep.log; stop it (dog node kill), repair or replace the disk, and start its sheep again"
            .into(),
    })
}

/// Blocks of a node that are damaged, and of which another copy may be good.
fn reasons_of_damage(who: &str, scrub: &ScrubStatus) -> Option<Reason> {
    let more = if scrub.lost > 0 { "other " } else { "" };
    (scrub.damaged > scrub.lost).then(|| Reason {
        severity: Word::Degraded,
        text: format!(
            "{} {more}blocks on {who} are damaged and not mended so far",
            scrub.damaged - scrub.lost
        ),
        advice: "wait, they are mended from other copies: dog node scrub; if it goes on, replace the disk"
            .into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{CopyPolicy, Epoch, ZoneId};
    use std::net::Ipv4Addr;

    fn id(n: u16) -> NodeId {
        NodeId::new(Ipv4Addr::LOCALHOST.into(), 7000 + n)
    }

    fn member(n: u16, is_up: bool) -> MemberHealth {
        MemberHealth {
            id: id(n),
            zone: ZoneId(n.into()),
            space_bytes: 1,
            is_up,
            pgs: 8,
            pgs_in_sync: if is_up { 8 } else { 0 },
            pgs_awaiting: 0,
            pgs_unreadable: 0,
            disk_failed: false,
            out: None,
            may_time_out: !is_up,
        }
    }

    /// Three of three are up and have everything.
    fn well() -> Heard {
        let policy = CopyPolicy::Replicated { copies: 3 };
        let stat = NodeStat { size_bytes: 100, used_bytes: 10, pgs: 8, ..NodeStat::default() };
        let stat = NodeHeard { stat, ..NodeHeard::default() };
        let pool = PoolHealth {
            policy,
            is_default: true,
            vdis: 1,
            pgs: 8,
            targets_min: 3,
            copies_min: 3,
            degraded: 0,
            moving: 0,
            unwritable: 0,
            unreadable: 0,
        };
        Heard {
            info: ClusterInfo {
                repair: Default::default(),
                status: ClusterStatus::Running,
                format: None,
                epoch: Epoch(1),
                nodes: vec![],
                epochs: vec![],
                this_node: id(0),
            },
            health: Health {
                status: ClusterStatus::Running,
                members: (0..3).map(|n| member(n, true)).collect(),
                pools: vec![pool],
            },
            stats: (0..3).map(|n| (id(n), Ok(stat.clone()))).collect(),
            vdis: vec![],
        }
    }

    #[track_caller]
    fn assert_word(heard: &Heard, word: Word, says: &[&str]) {
        let reasons = heard.reasons();
        let text: Vec<String> = reasons.iter().map(|r| format!("{} -> {}", r.text, r.advice)).collect();
        assert_eq!(heard.word(), word, "{text:?}");
        assert_eq!(text.len(), says.len(), "{text:?}");
        for (text, says) in text.iter().zip(says) {
            assert!(text.contains(says), "{text} does not say {says}");
        }
    }

    #[test]
    fn a_cluster_with_all_copies_is_ok() {
        assert_word(&well(), Word::Ok, &[]);
        let mut moving = well();
        moving.health.pools[0].moving = 2;
        if let Ok(NodeHeard { stat, .. }) = &mut moving.stats[1].1 {
            (stat.pgs_behind, stat.objects_done, stat.objects_total) = (2, 3, 8);
        }
        assert_word(&moving, Word::Ok, &["2 of 8 placement groups", "node 1 (127.0.0.1:7001) makes copies"]);
        moving.info.repair.enabled = false;
        let says =
            ["2 of 8 placement groups", "recovery is disabled", "are done -> switch recovery on again"];
        assert_word(&moving, Word::Ok, &says);
    }

    #[test]
    fn a_lost_node_degrades() {
        let mut heard = well();
        heard.health.members[2] = member(2, false);
        heard.stats.pop();
        (heard.health.pools[0].degraded, heard.health.pools[0].copies_min) = (8, 2);
        let says =
            ["the worst have 2 (there are no such VDIs) -> start the nodes that are down", "127.0.0.1:7002"];
        assert_word(&heard, Word::Degraded, &says);
        // It is back, and not complete yet.
        heard.health.members[2] = member(2, true);
        let behind = NodeStat { pgs_behind: 8, pgs: 8, ..NodeStat::default() };
        let behind = NodeHeard { stat: behind, ..NodeHeard::default() };
        heard.stats.push((id(2), Ok(behind)));
        assert_word(
            &heard,
            Word::Degraded,
            &["wait, they are being made", "node 2 (127.0.0.1:7002) makes copies"],
        );
        heard.info.repair.enabled = false;
        let says =
            ["-> switch recovery on again", "recovery is disabled", "node 2 (127.0.0.1:7002) makes copies"];
        assert_word(&heard, Word::Degraded, &says);
    }

    #[test]
    fn who_is_down_is_given_up_at_a_time_or_never() {
        let mut heard = well();
        heard.stats.pop();
        heard.health.members[2] = member(2, false);
        assert_word(&heard, Word::Degraded, &["place on it; it is given up after 10m -> start its sheep"]);
        heard.health.members[1].may_time_out = true;
        let says = "it is given up (unless that leaves too few nodes) after 10m";
        assert_word(&heard, Word::Degraded, &[says]);
        heard.health.members[1].may_time_out = false;
        heard.health.members[2].may_time_out = false;
        assert_word(&heard, Word::Degraded, &["not given up by itself, for too many nodes are away"]);
        heard.info.repair.out_time_s = 0;
        assert_word(&heard, Word::Degraded, &["for the out-time is 0"]);
        heard.info.repair.enabled = false;
        assert_word(
            &heard,
            Word::Degraded,
            &["for recovery is disabled", "copies are made where writes wait"],
        );
    }

    #[test]
    fn who_is_out_is_named_and_does_no_harm() {
        let mut heard = well();
        let out = |out, is_up, pgs_in_sync| MemberHealth {
            out: Some(out),
            pgs: 0,
            pgs_in_sync,
            ..member(2, is_up)
        };
        for (member, says) in [
            (
                out(Out::ByTime, false, 0),
                "given up, for it was away for too long, and down; it holds nothing",
            ),
            (
                out(Out::ByOperator, true, 5),
                "as an operator has said; 5 placement groups still need what it holds -> wait",
            ),
            (
                out(Out::ByForce, false, 0),
                "is given up, for it was down at 'dog cluster recover force', and down; it holds nothing that is needed -> start its sheep again",
            ),
            (
                out(Out::ByOperator, true, 0),
                "nothing that is needed -> before its sheep is stopped: dog node safe-to-stop",
            ),
        ] {
            heard.health.members[2] = member;
            assert_word(&heard, Word::Ok, &[says]);
        }
        // Emptied it was not, when it died.
        heard.health.members[2] = out(Out::ByOperator, false, 0);
        heard.health.pools[0].degraded = 3;
        let says = "may be wanted yet, since 3 placement groups lack copies -> keep its disk until";
        assert_word(&heard, Word::Degraded, &["3 of 8 placement groups", says]);
    }

    #[test]
    fn what_waits_names_whom_it_waits_for() {
        let mut heard = well();
        heard.health.status = ClusterStatus::WaitForJoin;
        heard.stats.truncate(1);
        for n in 1..3 {
            heard.health.members[n] = MemberHealth { pgs_awaiting: 8, ..member(n as u16, false) };
        }
        let pool = &mut heard.health.pools[0];
        (pool.degraded, pool.unwritable, pool.copies_min) = (8, 8, 1);
        let start = "take no writes, for too few copies are up (there are no such VDIs) -> start again: 127.0.0.1:7001, 127.0.0.1:7002";
        assert_word(&heard, Word::Blocked, &[start, "the worst have 1", "7001", "7002"]);
        (heard.health.pools[0].unreadable, heard.health.pools[0].copies_min) = (8, 0);
        assert_word(&heard, Word::Waiting, &["neither read nor written", "the worst have 0", "7001", "7002"]);
    }

    #[test]
    fn silence_full_disks_and_few_zones_are_told() {
        let mut heard = well();
        heard.stats[1].1 = Err("Connection refused".into());
        if let Ok(NodeHeard { stat, .. }) = &mut heard.stats[0].1 {
            stat.used_bytes = 95;
        }
        heard.health.pools[0].targets_min = 2;
        let says = [
            "node 1 (127.0.0.1:7001) is a member and does not answer: Connection refused",
            "copies get 2",
            "95 % full",
        ];
        assert_word(&heard, Word::Unresponsive, &says);
        let mut heard = well();
        if let Ok(NodeHeard { stat, .. }) = &mut heard.stats[0].1 {
            (stat.pgs_behind, stat.used_bytes) = (1, 89);
        }
        assert_word(&heard, Word::Ok, &["0 of 0 are done -> nothing: see"]);
        if let Ok(NodeHeard { stat, .. }) = &mut heard.stats[0].1 {
            stat.used_bytes = 95;
        }
        assert_word(&heard, Word::Degraded, &["0 of 0 are done -> make room", "95 % full"]);
        // It refuses what needs room, whatever the share: a small disk, or one whose file system is full.
        if let Ok(NodeHeard { stat, .. }) = &mut heard.stats[0].1 {
            (stat.pgs_behind, stat.used_bytes, stat.is_full) = (0, 80, true);
        }
        assert_word(
            &heard,
            Word::Full,
            &["the disk of node 0 (127.0.0.1:7000) is full: guests' writes that need room"],
        );
        heard.stats[1].1 = Err("Connection refused".into());
        assert_eq!(heard.word(), Word::Unresponsive);
    }

    #[test]
    fn damaged_blocks_are_named_where_no_copy_is_good() {
        let mut heard = well();
        let Ok(NodeHeard { scrub, .. }) = &mut heard.stats[1].1 else { unreachable!("all answer") };
        (scrub.found, scrub.damaged) = (3, 3);
        let waits = "3 blocks on node 1 (127.0.0.1:7001) are damaged and not mended so far -> wait";
        assert_word(&heard, Word::Degraded, &[waits]);
        let Ok(NodeHeard { scrub, .. }) = &mut heard.stats[1].1 else { unreachable!("all answer") };
        scrub.lost = 2;
        let lost = proto::client::DamagedBlocks {
            vdi: b"alice".to_vec(),
            oid: proto::Oid::data(proto::Vid(0x7c2b25), 3),
            blocks: proto::object::BlockRange::new(17, 1),
            is_lost: true,
        };
        scrub.told = vec![lost.clone()];
        let says = [
            "block 17 of object 007c2b2500000003 of VDI alice is damaged on node 1 (127.0.0.1:7001), and no copy of it is good",
            "1 more blocks on node 1 (127.0.0.1:7001) are damaged, and no copy",
            "1 other blocks on node 1 (127.0.0.1:7001) are damaged and not mended so far",
        ];
        assert_word(&heard, Word::Lost, &says);
        // Another one tells of the same, and it twice.
        let Ok(NodeHeard { scrub, .. }) = &mut heard.stats[2].1 else { unreachable!("all answer") };
        (scrub.damaged, scrub.lost, scrub.told) = (1, 1, vec![lost.clone(), lost]);
        let both = "of VDI alice is damaged on node 1 (127.0.0.1:7001) and node 2 (127.0.0.1:7002), and no copy of it is good";
        assert_word(&heard, Word::Lost, &[both, says[1], says[2]]);
        // Nothing is worse.
        heard.health.pools[0].unreadable = 8;
        assert_word(&heard, Word::Lost, &[both, says[1], "neither read nor written", says[2]]);
    }

    #[test]
    fn blocks_that_copies_have_differently_are_named() {
        let mut heard = well();
        let Ok(NodeHeard { scrub, .. }) = &mut heard.stats[1].1 else { unreachable!("all answer") };
        scrub.differed = 4;
        assert_word(&heard, Word::Ok, &[]);
        let Ok(NodeHeard { scrub, .. }) = &mut heard.stats[1].1 else { unreachable!("all answer") };
        scrub.differing = 3;
        scrub.told_differing = vec![proto::client::DifferingBlocks {
            vdi: b"alice".to_vec(),
            oid: proto::Oid::data(proto::Vid(0x7c2b25), 3),
            blocks: proto::object::BlockRange::new(17, 1),
        }];
        let says = [
            "copies of block 17 of object 007c2b2500000003 of VDI alice differ, each with the right checksum, as node 1 (127.0.0.1:7001) has found",
            "copies of 2 more blocks differ, as node 1 (127.0.0.1:7001) has found",
        ];
        assert_word(&heard, Word::Degraded, &says);
    }

    #[test]
    fn a_pool_that_nobody_uses_is_not_held_against_the_cluster() {
        let mut heard = well();
        let unused = PoolHealth {
            policy: CopyPolicy::Replicated { copies: 9 },
            is_default: false,
            vdis: 0,
            degraded: 8,
            ..heard.health.pools[0]
        };
        heard.health.pools.push(unused);
        assert_word(&heard, Word::Ok, &[]);
        heard.health.pools[1].vdis = 1;
        assert_word(&heard, Word::Degraded, &["with 9 copies lack", "with 9 copies get 3"]);
    }

    #[test]
    fn what_is_no_cluster_says_so() {
        let mut heard = well();
        heard.health.status = ClusterStatus::WaitForFormat;
        assert_word(&heard, Word::Unformatted, &["dog cluster format"]);
        heard.health.status = ClusterStatus::ShuttingDown;
        assert_word(&heard, Word::Stopping, &["start all its sheep"]);
    }
}
