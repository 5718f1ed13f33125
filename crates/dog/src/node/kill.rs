//! `dog node kill ID` or `dog node kill -l`: one sheep leaves the cluster and ends. Silent on success.

use crate::command::{Action, Command, no_values, option};
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::getopt::Parsed;
use crate::sheep::Sheep;
use crate::target::Target;

pub const COMMAND: Command = Command {
    group: "node",
    name: "kill",
    summary: "end one node",
    args: "<node id>",
    args_min: 0,
    options: &[option::ADDRESS, option::PORT, option::RAW, option::HELP, option::LOCAL, option::TIME],
    needs_nodes: true,
    check: no_values,
    action: Action::Run(run),
    notes: "Node ids are those of 'dog node list'; they change when nodes come and go.",
};

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let mut sheep = match (parsed.has("local"), parsed.positionals.first()) {
        (true, None) => context.connect()?,
        (false, Some(text)) => {
            let id = parse_id(text, context.nodes.len())?;
            Sheep::connect(&Target::node(context.nodes[id].id))?
        }
        (false, None) => return Err(Failure::usage("Which node? Give its id, or --local")),
        (true, Some(_)) => return Err(Failure::usage("Give either a node id or --local, not both")),
    };
    Ok(sheep.kill_node()?)
}

fn parse_id(text: &[u8], node_count: usize) -> Outcome<usize> {
    let shown = String::from_utf8_lossy(text);
    let is_number = text.iter().all(u8::is_ascii_digit);
    let id = shown.parse().ok().filter(|id| is_number && *id < node_count);
    id.ok_or_else(|| Failure::bad_value(format!("Invalid node id '{shown}'")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_of_present_nodes_are_accepted() {
        assert_eq!(parse_id(b"2", 3).unwrap(), 2);
        for text in ["3", "-1", "+1", "x", "", "99999999999999999999"] {
            let failure = parse_id(text.as_bytes(), 3).unwrap_err();
            assert_eq!((failure.code, failure.message), (64, format!("Invalid node id '{text}'")));
        }
    }
}
