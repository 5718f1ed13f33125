//! `dog node list`: the members, numbered from 0 in the order of address and port.
//!
//! ```text
//!   Id   Host:Port         V-Nodes       Zone
//!    0   127.0.0.1:7000      128          0
//!    1   127.0.0.1:7001      128          1   out
//! ```
//!
//! Nothing is to be stored on a node that is out. The raw form has the columns that it always had, and does not tell.

use std::collections::BTreeMap;

use proto::NodeId;
use proto::client::{Health, NodeInfo, Out};
use serde_json::json;

use crate::command::{Action, Command, no_values, option};
use crate::context::{Context, Form};
use crate::failure::Outcome;
use crate::getopt::Parsed;

pub const COMMAND: Command = Command {
    group: "node",
    name: "list",
    summary: "list nodes",
    args: "",
    args_min: 0,
    args_max: 0,
    options: &[option::ADDRESS, option::PORT, option::RAW, option::HELP, option::TIME, option::JSON],
    needs_nodes: true,
    check: no_values,
    action: Action::Run(run),
    notes: "Of the nodes that are up. V-Nodes: a node's share of what is stored, by the size of its disk; they change when nodes or disks do.\n\
            out: nothing is to be stored there (dog node out). In --json: null, operator, time or force. Raw does not tell.",
};

/// Members that are out, up or down.
pub type Outs = BTreeMap<NodeId, Out>;

pub fn outs(health: &Health) -> Outs {
    health.members.iter().filter_map(|member| Some((member.id, member.out?))).collect()
}

/// As JSON has it, who decided that a node is out.
pub fn name_of_out(out: Out) -> &'static str {
    match out {
        Out::ByTime => "time",
        Out::ByOperator => "operator",
        Out::ByForce => "force",
    }
}

fn run(context: &mut Context, _: &Parsed) -> Outcome {
    let outs = match context.form {
        Form::Raw => Outs::new(),
        Form::Human | Form::Json => outs(&context.connect()?.health()?),
    };
    let text = render(&context.nodes, &outs, context.form);
    context.print(&text)
}

fn render(nodes: &[NodeInfo], outs: &Outs, form: Form) -> String {
    let numbered = nodes.iter().enumerate();
    match form {
        Form::Human => {
            let rows = numbered.map(|(id, node)| {
                let out = if outs.contains_key(&node.id) { "   out" } else { "" };
                format!("{id:4}   {:<20}\t{:2}{:11}{out}\n", node.id.to_string(), node.vnodes, node.zone)
            });
            std::iter::once("  Id   Host:Port         V-Nodes       Zone\n".to_string()).chain(rows).collect()
        }
        Form::Raw => {
            numbered.map(|(id, node)| format!("{id} {} {} {}\n", node.id, node.vnodes, node.zone)).collect()
        }
        Form::Json => {
            let rows: Vec<_> = numbered
                .map(|(id, node)| {
                    json!({
                        "id": id,
                        "node": node.id.to_string(),
                        "vnodes": node.vnodes,
                        "zone": node.zone.0,
                        "space_bytes": node.space_bytes,
                        "out": outs.get(&node.id).map(|out| name_of_out(*out)),
                    })
                })
                .collect();
            format!("{:#}\n", json!(rows))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::ZoneId;

    fn nodes() -> Vec<NodeInfo> {
        let node = |ip: &str, port, vnodes, zone| NodeInfo {
            id: NodeId::new(ip.parse().unwrap(), port),
            zone: ZoneId(zone),
            vnodes,
            space_bytes: 1,
        };
        vec![
            node("127.0.0.1", 7000, 128, 0),
            node("127.0.0.1", 7001, 0, 16777343),
            node("fd00::1", 7000, 64, u32::MAX),
        ]
    }

    #[test]
    fn nodes_are_listed_as_in_the_original() {
        assert_eq!(
            render(&nodes(), &Outs::new(), Form::Human),
            "  Id   Host:Port         V-Nodes       Zone
   0   127.0.0.1:7000      \t128          0
   1   127.0.0.1:7001      \t 0   16777343
   2   fd00::1:7000        \t64 4294967295
"
        );
        assert_eq!(
            render(&nodes(), &Outs::new(), Form::Raw),
            "0 127.0.0.1:7000 128 0\n1 127.0.0.1:7001 0 16777343\n2 fd00::1:7000 64 4294967295\n"
        );
    }

    #[test]
    fn who_is_out_is_marked_for_people_and_in_json() {
        let outs = Outs::from([(nodes()[1].id, Out::ByOperator)]);
        let text = render(&nodes(), &outs, Form::Human);
        assert!(text.contains("   1   127.0.0.1:7001      \t 0   16777343   out\n"), "{text}");
        assert_eq!(text.matches("out").count(), 1);
        assert_eq!(render(&nodes(), &outs, Form::Raw), render(&nodes(), &Outs::new(), Form::Raw));
        let text = render(&nodes(), &outs, Form::Json);
        assert_eq!(text.matches("\"out\": null").count(), 2, "{text}");
        assert_eq!(text.matches("\"out\": \"operator\"").count(), 1, "{text}");
    }
}
