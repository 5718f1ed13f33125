//! `dog cluster alter-copy [-c N] [-f]`: the number of copies of VDIs that are created later without a word about it.

use proto::CopyPolicy;

use crate::command::{Action, Command, option};
use crate::context::{Context, declined, notice};
use crate::failure::{Failure, Outcome};
use crate::getopt::Parsed;
use crate::redundancy::wanted_copies;
use crate::terminal::confirm;

pub const COMMAND: Command = Command {
    group: "cluster",
    name: "alter-copy",
    summary: "change the default number of copies",
    args: "",
    args_min: 0,
    args_max: 0,
    options: &[option::ADDRESS, option::PORT, option::HELP, option::TIME, option::COPIES, option::FORCE],
    needs_nodes: true,
    check: |parsed| wanted_copies(parsed).map(drop),
    action: Action::Run(run),
    notes: "Images that are there keep their number: see 'dog vdi alter-copy'.",
};

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let wanted = wanted_copies(parsed)?;
    if wanted.is_assumed {
        context.print(&format!("The number of copies is not given (-c): {} is assumed\n", wanted.copies))?;
    }
    let mut sheep = context.connect()?;
    let Some(format) = sheep.cluster_info()?.format else {
        return Err(Failure::refused("Failed to alter the copies: Waiting for cluster to be formatted"));
    };
    let CopyPolicy::Replicated { copies: old } = format.policy else {
        return Err(Failure::refused(
            "The cluster's copy policy is erasure code, changing it is not supported yet.",
        ));
    };
    let copies = wanted.copies;
    if copies == old {
        return Err(Failure::refused(format!(
            "The cluster's redundancy level is already set to {copies}, nothing changed."
        )));
    }
    if !parsed.has("force") && !is_confirmed(context, copies)? {
        return declined();
    }
    sheep.set_default_policy(CopyPolicy::Replicated { copies })?;
    notice(&format!("The cluster's redundancy level is set to {copies}, the old one was {old}."));
    Ok(())
}

fn is_confirmed(context: &mut Context, copies: u8) -> Outcome<bool> {
    let sure = "Are you sure you want to continue?";
    let question = format!("VDIs created from now on get {copies} copies.\n{sure}");
    if !confirm(&question, &mut context.out, &mut context.input)? {
        return Ok(false);
    }
    let nodes = context.nodes.len();
    let question = format!("Number of copies ({copies}) is larger than number of nodes ({nodes}).\n{sure}");
    Ok(usize::from(copies) <= nodes || confirm(&question, &mut context.out, &mut context.input)?)
}
