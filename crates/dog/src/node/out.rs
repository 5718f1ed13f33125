//! `dog node out ID|HOST:PORT [-f] [--wait]` and `dog node in ID|HOST:PORT`: a node is emptied, and filled again.
//!
//! Out is not down: the node goes on serving what it holds until others hold it. A node that is down has no id, so its address names it.

use std::collections::BTreeSet;

use proto::client::{Health, MemberHealth, Out};
use proto::cluster::RepairOptions;
use proto::{NodeId, ZoneId};

use super::{named, safe_to_stop};
use crate::command::{Action, Command, no_values, option};
use crate::context::{Context, notice};
use crate::failure::{Failure, Outcome};
use crate::getopt::Parsed;
use crate::terminal::confirm;

pub const OUT: Command = Command {
    group: "node",
    name: "out",
    summary: "store nothing on a node any more, and empty it",
    args: "<node id | host:port>",
    args_min: 1,
    args_max: 1,
    options: &[option::ADDRESS, option::PORT, option::HELP, option::FORCE, option::WAIT, option::TIME],
    needs_nodes: true,
    check: no_values,
    action: Action::Run(|context, parsed| run(context, parsed, true)),
    notes: "Ids are those of 'dog node list', and change when nodes come and go; HOST:PORT stays (HOST is enough where it has one\n\
            node). A node that is down is named by its address, as 'dog cluster health' does. It stays out,\n\
            whatever happens to it, until 'dog node in'.\n\
            It asks only where VDIs would get fewer copies than they should have, or where a node that is down has copies that others\n\
            lack. Exit code 1 if the question is not answered with yes.\n\
            --wait: returns when the node may be switched off; the verdict and the exit code are those of 'dog node safe-to-stop'.",
};

pub const IN: Command = Command {
    group: "node",
    name: "in",
    summary: "store on a node again",
    args: "<node id | host:port>",
    args_min: 1,
    args_max: 1,
    options: &[option::ADDRESS, option::PORT, option::HELP, option::TIME],
    needs_nodes: true,
    check: no_values,
    action: Action::Run(|context, parsed| run(context, parsed, false)),
    notes: "The contrary of 'dog node out'.",
};

fn run(context: &mut Context, parsed: &Parsed, out: bool) -> Outcome {
    let mut sheep = context.connect()?;
    let health = sheep.health()?;
    let known: Vec<NodeId> = health.members.iter().map(|member| member.id).collect();
    let node = named::find(&parsed.positionals[0], &context.node_ids(), &known)?;
    let member = health.members.iter().find(|member| member.id == node).copied();
    let member = member.ok_or_else(|| Failure::refused(format!("{node} has left the cluster")))?;
    // Who was given up would be in again when it comes back.
    let is_said = member.out.is_none() || member.out == Some(Out::ByOperator);
    if member.out.is_some() == out && is_said {
        notice(&format!(
            "Node {} is {} already; nothing was changed.",
            member.id,
            if out { "out" } else { "in" }
        ));
        return wait_if_asked(context, parsed, node);
    }
    if out && !parsed.has("force") {
        let question = question(&health, &member);
        if let Some(question) = question
            && !confirm(&question, &mut context.out, &mut context.input)?
        {
            return Err(Failure::refused("Nothing was changed."));
        }
    }
    notice(&match (out, member.is_up) {
        (true, true) => format!("Putting out node {node}"),
        (true, false) => format!("Giving up node {node}, which is down"),
        (false, _) => format!("Taking in node {node}"),
    });
    sheep.set_out(member.id, out).map_err(|error| {
        error.or_refused(|reason| {
            format!("Failed to change node {}: {reason}; nothing was changed", member.id)
        })
    })?;
    let repair = sheep.cluster_info()?.repair;
    let text = if out { render_out(&health, &member, &repair) } else { render_in(&member, &repair) };
    context.print(&text)?;
    wait_if_asked(context, parsed, node)
}

fn wait_if_asked(context: &mut Context, parsed: &Parsed, node: NodeId) -> Outcome {
    if !parsed.has("wait") {
        return Ok(());
    }
    context.out.flush()?;
    let heard = safe_to_stop::wait(context, vec![node])?;
    safe_to_stop::tell(context, &heard)
}

/// `None` where all VDIs keep as many copies as they have, and nothing waits for the node.
fn question(health: &Health, leaving: &MemberHealth) -> Option<String> {
    let parts: Vec<String> =
        [fewer_copies(health, leaving), left_alone(leaving)].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| format!("{}\nAre you sure you want to continue?", parts.join("\n")))
}

/// What being out cannot mend: copies that only a node has that is down are nowhere else to be copied from.
fn left_alone(member: &MemberHealth) -> Option<String> {
    let MemberHealth { id, pgs_awaiting, pgs_unreadable, .. } = *member;
    if member.is_up || pgs_awaiting + pgs_unreadable == 0 {
        return None;
    }
    let newest = match pgs_unreadable {
        0 => String::new(),
        count => format!(
            "No node that is up has a complete copy of {count} placement groups that are in sync on {id}: they cannot be made anew, and stay \
             as they are until it, or another node with such a copy, is started. "
        ),
    };
    let waiting = match pgs_awaiting.saturating_sub(pgs_unreadable) {
        0 => String::new(),
        count => format!("Writes to {count} placement groups wait for it until others have enough copies. "),
    };
    Some(format!("{newest}{waiting}If it is gone for good and the cluster waits: dog cluster recover force"))
}

fn fewer_copies(health: &Health, leaving: &MemberHealth) -> Option<String> {
    let (copies, zones) = few_zones(health, leaving)?;
    let id = leaving.id;
    Some(match leaving.is_up {
        true => format!(
            "Without node {id} there are {zones} zones with disks: VDIs with {copies} copies get {zones}."
        ),
        false => format!(
            "Node {id} is down. Once it is given up there are {zones} zones with disks: VDIs with {copies} copies get {zones}, and \
             nothing waits for what it has until 'dog node in'."
        ),
    })
}

/// The number of copies that some VDIs should have, and the zones that are left for them, if going out makes those too few.
fn few_zones(health: &Health, leaving: &MemberHealth) -> Option<(usize, usize)> {
    let zones = |but: Option<NodeId>| {
        let stays =
            |member: &&MemberHealth| member.space_bytes > 0 && member.out.is_none() && Some(member.id) != but;
        health.members.iter().filter(stays).map(|member| member.zone).collect::<BTreeSet<ZoneId>>().len()
    };
    let (before, after) = (zones(None), zones(Some(leaving.id)));
    let used = health.pools.iter().filter(|pool| pool.vdis > 0 || pool.is_default);
    let copies = used.map(|pool| usize::from(pool.policy.width())).filter(|copies| *copies > after).max()?;
    (after < before).then_some((copies, after))
}

fn render_out(health: &Health, member: &MemberHealth, repair: &RepairOptions) -> String {
    let id = member.id;
    let is_empty = member.pgs == 0 && member.pgs_in_sync == 0;
    let what = match member.is_up {
        _ if is_empty => "Nothing is stored on it".to_string(),
        true => format!(
            "What it holds, its part of {} placement groups, is copied to other nodes; until then it serves that",
            member.pgs_in_sync
        ),
        false => match left_alone(member) {
            None => "What it held is made anew on other nodes from the copies that are left".to_string(),
            Some(left) => {
                format!(
                    "What others have complete copies of is made anew from those.\n{}",
                    left.trim_end_matches('.')
                )
            }
        },
    };
    let few = match few_zones(health, member).filter(|_| !is_empty) {
        Some((copies, zones)) => format!(
            "\nNothing of that is made of VDIs with {copies} copies while there are {zones} zones with disks: they go on with {zones}."
        ),
        None => String::new(),
    };
    let when = match member.is_up {
        true => format!(
            "\nIt may be stopped when 'dog node safe-to-stop {id}' says so; with --wait it waits for that."
        ),
        false => String::new(),
    };
    format!("Node {id} is out. {what}.{few}{when}\n{}", how_to_watch(repair))
}

fn render_in(member: &MemberHealth, repair: &RepairOptions) -> String {
    let when = if member.is_up {
        "It makes its share of the copies now"
    } else {
        "It is down: it makes its share of the copies when its sheep is started"
    };
    format!("Node {} is in. {when}.\n{}", member.id, how_to_watch(repair))
}

fn how_to_watch(repair: &RepairOptions) -> &'static str {
    match repair.enabled {
        true => "Watch: dog node recovery\n",
        false => "Recovery is disabled, so nothing is copied before: dog cluster recover enable\n",
    }
}
