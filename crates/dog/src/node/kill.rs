//! `dog node kill ID|HOST:PORT` or `dog node kill -l`: one sheep leaves the cluster and ends. Which one is said on stderr.

use super::named;
use crate::command::{Action, Command, no_values, option};
use crate::context::{Context, notice};
use crate::failure::{Failure, Outcome};
use crate::getopt::Parsed;
use crate::sheep::Sheep;
use crate::target::Target;

pub const COMMAND: Command = Command {
    group: "node",
    name: "kill",
    summary: "end one node",
    args: "<node id | host:port>",
    args_min: 0,
    args_max: 1,
    options: &[option::ADDRESS, option::PORT, option::RAW, option::HELP, option::LOCAL, option::TIME],
    needs_nodes: true,
    check: no_values,
    action: Action::Run(run),
    notes: "Node ids are those of 'dog node list'; they change when nodes come and go, the one that is killed among them. So scripts name\n\
            nodes by HOST:PORT, which stays (HOST is enough where it has one node).",
};

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let mut sheep = match (parsed.has("local"), parsed.positionals.first()) {
        (true, None) => context.connect()?,
        (false, Some(text)) => {
            let up = context.node_ids();
            let node = named::find(text, &up, &up)?;
            notice(&format!("Ending node {node}"));
            Sheep::connect(&Target::node(node))?
        }
        (false, None) => return Err(Failure::usage("Which node? Give its id or address, or --local")),
        (true, Some(_)) => return Err(Failure::usage("Give either a node or --local, not both")),
    };
    Ok(sheep.kill_node()?)
}
