//! `dog node kill ID|HOST:PORT` or `dog node kill -l`: one sheep leaves the cluster and ends. Which one is said on stderr.
//!
//! Returns when it has: its process is over, so it can be started anew, and the cluster lists it no more. One that takes long is waited
//! for a minute, and then it is said what can be done.

use std::time::{Duration, Instant};

use proto::NodeId;

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
    notes: "Returns when the sheep has ended and the cluster lists it no more.\n\
            Node ids are those of 'dog node list'; they change when nodes come and go, the one that is killed among them. So scripts name\n\
            nodes by HOST:PORT, which stays (HOST is enough where it has one node).",
};

/// A sheep that ends answers what it was asked first, within seconds, and a disk may take its time.
const PATIENCE: Duration = Duration::from_secs(60);
/// How soon somebody who watches is told of the waiting.
const NOTICE_AFTER: Duration = Duration::from_secs(1);
/// Between looks at what the cluster lists.
const LOOK: Duration = Duration::from_millis(50);

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let (mut sheep, node) = match (parsed.has("local"), parsed.positionals.first()) {
        (true, None) => (context.connect()?, None),
        (false, Some(text)) => {
            let up = context.node_ids();
            let node = named::find(text, &up, &up)?;
            notice(&format!("Ending node {node}"));
            (Sheep::connect(&Target::node(node))?, Some(node))
        }
        (false, None) => return Err(Failure::usage("Which node? Give its id or address, or --local")),
        (true, Some(_)) => return Err(Failure::usage("Give either a node or --local, not both")),
    };
    sheep.kill_node()?;
    if wait_for_end(context, &mut sheep, node) { Ok(()) } else { Err(not_gone(context, node)) }
}

/// False: it is there yet.
fn wait_for_end(context: &Context, sheep: &mut Sheep, node: Option<NodeId>) -> bool {
    let deadline = Instant::now() + PATIENCE;
    let mut has_ended = sheep.until_ended(NOTICE_AFTER);
    if !has_ended {
        if context.is_terminal {
            notice("Waiting until it has ended");
        }
        has_ended = sheep.until_ended(PATIENCE - NOTICE_AFTER);
    }
    while has_ended && !is_gone(context, node) {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(LOOK);
    }
    has_ended
}

/// Of a sheep whose process is over: has everybody heard of it? Where it was itself the one that is asked, nobody listens there.
fn is_gone(context: &Context, node: Option<NodeId>) -> bool {
    let asked = Sheep::connect_quietly(&context.target);
    let Some(node) = node else { return asked.is_err() };
    match asked.and_then(|mut sheep| Ok(sheep.nodes()?)) {
        Ok(listed) => listed.iter().all(|listed| listed.id != node),
        Err(_) => Sheep::connect_quietly(&Target::node(node)).is_err(),
    }
}

fn not_gone(context: &Context, node: Option<NodeId>) -> Failure {
    let shown = node.map_or(context.target.to_string(), |node| node.to_string());
    Failure::system(format!(
        "Node {shown} was told to end {} s ago and is still there, or there again\n    \
         look at 'dog node list' and at its sheep.log; a process that is stuck is ended with SIGKILL, and one that something starts anew is \
         stopped there",
        PATIENCE.as_secs()
    ))
}
