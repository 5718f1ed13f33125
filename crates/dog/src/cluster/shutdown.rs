//! `dog cluster shutdown`: every sheep finishes what it is doing and ends. Silent on success.
//!
//! The cluster goes on when all nodes of its last epoch are started again.

use crate::command::{Action, Command, no_values, option};
use crate::context::Context;
use crate::failure::Outcome;
use crate::getopt::Parsed;

pub const COMMAND: Command = Command {
    group: "cluster",
    name: "shutdown",
    summary: "stop the whole cluster",
    args: "",
    args_min: 0,
    args_max: 0,
    options: &[option::ADDRESS, option::PORT, option::HELP, option::TIME],
    needs_nodes: false,
    check: no_values,
    action: Action::Run(run),
    notes: "",
};

fn run(context: &mut Context, _: &Parsed) -> Outcome {
    Ok(context.connect()?.shutdown()?)
}
