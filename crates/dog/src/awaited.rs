//! Whom requests wait for, in words: what is said of a sheep that does not answer one, and of what could not be shown.

use proto::NodeId;
use proto::client::{Health, MemberHealth, PoolHealth, VdiInfo};

use crate::everyone;
use crate::link::silence;
use crate::sheep::Sheep;
use crate::target::Target;
use crate::vdi::names::{shown, shown_snap_id};

/// VDIs that are named.
const NAMES_MAX: usize = 5;

/// Why the sheep may have a request wait.
pub fn explain(target: &Target) -> String {
    let health = Sheep::connect_quietly(target).and_then(|mut sheep| Ok(sheep.health()?));
    let Ok(health) = health else {
        return "    It answers nothing at all: it may be stopped, or its machine in trouble".into();
    };
    match reasons(&health, |pool| pool.vdis > 0) {
        found if found.is_empty() => {
            "    It may wait for another sheep, or for copies that are being made: see 'dog cluster health'"
                .into()
        }
        found => format!("    {}\n    see 'dog cluster health'", found.join("\n    ")),
    }
}

/// Which sheep says nothing, of the one that was asked and all that it may wait for.
pub fn find_silent(target: &Target) -> Option<String> {
    // What the connection says is noticed where the answer is awaited.
    let mut sheep = Sheep::connect_quietly(target).ok()?;
    if sheep.is_silent() {
        return Some(silence(target));
    }
    let nodes: Vec<NodeId> = sheep.nodes().ok()?.into_iter().map(|node| node.id).collect();
    let silent = everyone::silent(&nodes);
    let texts: Vec<String> = silent.iter().map(|node| silence(&Target::node(*node))).collect();
    (!texts.is_empty())
        .then(|| format!("{}\nSheep {target} was asked, and may wait for it", texts.join("\n")))
}

/// Of VDIs about which nothing was told in time: who they are, and whom they wait for.
pub fn render_untold(what: &str, vdis: &[&VdiInfo], health: Option<&Health>) -> String {
    let mut names: Vec<String> = vdis.iter().take(NAMES_MAX).map(|vdi| shown_name(vdi)).collect();
    if vdis.len() > NAMES_MAX {
        names.push(format!("and {} more", vdis.len() - NAMES_MAX));
    }
    let mut text = format!("{what}: {}", names.join(", "));
    let of_these = |pool: &PoolHealth| vdis.iter().any(|vdi| vdi.policy == pool.policy);
    let reasons = health.map_or(vec![], |health| reasons(health, of_these));
    for reason in &reasons {
        text += &format!("\n    {reason}");
    }
    let served: Vec<String> =
        vdis.iter().filter_map(|vdi| vdi.owner).map(|owner| owner.to_string()).collect();
    if reasons.is_empty() && !served.is_empty() {
        let mut served = served;
        served.sort();
        served.dedup();
        text += &format!("\n    they are served by {}, which may not answer", served.join(", "));
    }
    text + "\n    see 'dog cluster health'"
}

/// What the placement groups lack that are not served whole, and who has it.
fn reasons(health: &Health, is_meant: impl Fn(&PoolHealth) -> bool) -> Vec<String> {
    let waiting = |pool: &&PoolHealth| is_meant(pool) && pool.unwritable.max(pool.unreadable) > 0;
    let awaited: Vec<String> =
        health.members.iter().filter(|member| member.pgs_awaiting > 0).map(member_text).collect();
    let whom = match awaited.is_empty() {
        true => String::new(),
        false => format!("; they wait for {}", awaited.join(", ")),
    };
    let text = |pool: &PoolHealth| {
        let copies = pool.policy.width();
        let unreadable = match pool.unreadable {
            0 => String::new(),
            count => format!(", and {count} no complete copy"),
        };
        format!(
            "{} of {} placement groups of VDIs with {copies} copies have too few copies up for writes{unreadable}{whom}",
            pool.unwritable, pool.pgs
        )
    };
    health.pools.iter().filter(waiting).map(text).collect()
}

fn member_text(member: &MemberHealth) -> String {
    let state = match (member.is_up, member.disk_failed) {
        (false, _) => "down",
        (true, true) => "its disk has failed",
        (true, false) => "not ready",
    };
    format!("{} ({state})", member.id)
}

fn shown_name(vdi: &VdiInfo) -> String {
    match shown_snap_id(vdi) {
        0 => shown(&vdi.name),
        id => format!("{} (snapshot {id})", shown(&vdi.name)),
    }
}
