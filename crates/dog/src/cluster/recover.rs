//! `dog cluster recover {enable|disable|throttle|force}`: whether and how fast copies are made, and the last resort.

use proto::client::{ClientError, ClusterInfo, ClusterStatus, Health, MemberHealth, VdiInfo};
use proto::cluster::RepairChange;

use super::health::verdict::since;
use crate::command::{Action, Command, SubCommand, option};
use crate::context::{Context, declined, notice};
use crate::failure::{Failure, Outcome};
use crate::getopt::Parsed;
use crate::sheep::CallError;
use crate::size;
use crate::terminal::confirm;
use crate::vdi::names::shown;

pub const COMMAND: Command = Command {
    group: "cluster",
    name: "recover",
    summary: "switch, bound or force recovery",
    args: "",
    args_min: 0,
    args_max: 0,
    options: &[option::ADDRESS, option::FORCE, option::PORT, option::HELP, option::TIME],
    needs_nodes: false,
    check: |parsed| wanted_rate(parsed).map(drop),
    action: Action::Sub(&[
        SubCommand {
            name: "force",
            summary: "go on without the nodes that are down",
            args_min: 0,
            args_max: 0,
            is_local: false,
            run: force,
        },
        SubCommand {
            name: "enable",
            summary: "make copies that are missing",
            args_min: 0,
            args_max: 0,
            is_local: false,
            run: |context, _| switch(context, true),
        },
        SubCommand {
            name: "disable",
            summary: "make only those that writes wait for",
            args_min: 0,
            args_max: 0,
            is_local: false,
            run: |context, _| switch(context, false),
        },
        SubCommand {
            name: "throttle",
            summary: "show or set [<bytes per second>] of each sheep",
            args_min: 0,
            args_max: 1,
            is_local: false,
            run: throttle,
        },
    ]),
    notes: "throttle: a size such as 50M; 0: as fast as guests do not notice, which is the default and holds besides any bound.",
};

fn switch(context: &mut Context, enabled: bool) -> Outcome {
    context.connect()?.set_repair(RepairChange { enabled: Some(enabled), ..RepairChange::default() })?;
    // The original's words: programs compare them.
    context.print(&format!("Cluster recovery: {}\n", if enabled { "enable" } else { "disable" }))
}

fn wanted_rate(parsed: &Parsed) -> Outcome<Option<u64>> {
    let [word, text, ..] = parsed.positionals.as_slice() else { return Ok(None) };
    if word != b"throttle" {
        return Ok(None);
    }
    let rate = size::parse(text).ok_or_else(|| {
        let shown = String::from_utf8_lossy(text);
        Failure::bad_value(format!(
            "Invalid rate '{shown}': give bytes per second, such as 50M, or 0 for no bound"
        ))
    });
    rate.map(Some)
}

fn throttle(context: &mut Context, parsed: &Parsed) -> Outcome {
    let mut sheep = context.connect()?;
    if let Some(rate) = wanted_rate(parsed)? {
        sheep.set_repair(RepairChange { rate_bytes: Some(rate), ..RepairChange::default() })?;
    }
    // Also after it was set: so that it shows what was understood.
    context.print(&match sheep.cluster_info()?.repair.rate_bytes {
        0 => "Recovery throttle: none\n".to_string(),
        rate => format!("Recovery throttle: {rate} bytes ({}) per second and sheep\n", size::human(rate)),
    })
}

fn force(context: &mut Context, parsed: &Parsed) -> Outcome {
    let mut sheep = context.connect()?;
    let (info, health) = (sheep.cluster_info()?, sheep.health()?);
    // What cannot be done is not asked about.
    match health.status {
        ClusterStatus::WaitForJoin => {}
        ClusterStatus::WaitForFormat => return Err(CallError::Declined(ClientError::WaitForFormat).into()),
        ClusterStatus::Running | ClusterStatus::ShuttingDown => {
            return Err(CallError::Declined(ClientError::NotStuck).into());
        }
    }
    let warning = render_losses(&info, &health, &sheep.vdis()?);
    if parsed.has("force") {
        notice(&warning);
    } else {
        let question = format!("{warning}\nAre you sure you want to continue?");
        if !confirm(&question, &mut context.out, &mut context.input)? {
            return declined();
        }
    }
    sheep.force_recovery()?;
    notice("The cluster goes on with the nodes that are up. Watch: dog node recovery, dog cluster health");
    Ok(())
}

/// What is given up.
fn render_losses(info: &ClusterInfo, health: &Health, vdis: &[VdiInfo]) -> String {
    let left = |is_one: &dyn Fn(&MemberHealth) -> bool| -> Vec<String> {
        let member = |member: &MemberHealth| format!("{} (down{})", member.id, since(info, member.id));
        health.members.iter().filter(|member| is_one(member)).map(member).collect()
    };
    let awaited = left(&|member| member.pgs_awaiting > 0);
    let newest = left(&|member| member.pgs_unreadable > 0);
    let (unreadable, all) =
        health.pools.iter().fold((0, 0), |(lost, all), pool| (lost + pool.unreadable, all + pool.pgs));
    let loss = match unreadable {
        0 => "Every placement group has a complete copy on a node that is up: nothing that was acknowledged gets lost.".to_string(),
        count => format!(
            "The newest copies of {count} of {all} placement groups are on nodes that are not there: {}.\n\
             Of those groups, what was written since the nodes that are up had their copies is LOST, or all of it where there is \
             no older copy. Start those nodes instead, if there is any way.\nVDIs that may have data there:\n{}",
            newest.join(", "),
            render_endangered(health, vdis)
        ),
    };
    format!(
        "The cluster waits for {}.\n{loss}\nWhat they have is not used any more: one that comes back later copies from the others.",
        awaited.join(", ")
    )
}

/// The VDIs of pools with such groups, one in a line: the objects of each are spread over all groups of its pool.
fn render_endangered(health: &Health, vdis: &[VdiInfo]) -> String {
    let is_endangered =
        |vdi: &&VdiInfo| health.pools.iter().any(|pool| pool.policy == vdi.policy && pool.unreadable > 0);
    let line = |vdi: &VdiInfo| {
        let name = shown(&vdi.name);
        match vdi.snap_ctime {
            0 => format!("    {name} (id {})", vdi.vid),
            _ if vdi.tag.is_empty() => format!("    {name} (id {}, snapshot {})", vdi.vid, vdi.snap_id),
            _ => format!("    {name} (id {}, snapshot {}, tag {})", vdi.vid, vdi.snap_id, shown(&vdi.tag)),
        }
    };
    let lines: Vec<String> = vdis.iter().filter(is_endangered).map(line).collect();
    if lines.is_empty() { "    none: no VDI has copies there".to_string() } else { lines.join("\n") }
}
