//! `dog node list`: the members, numbered from 0 in the order of address and port.
//!
//! ```text
//!   Id   Host:Port         V-Nodes       Zone
//!    0   127.0.0.1:7000      128          0
//! ```

use proto::client::NodeInfo;
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
    notes: "",
};

fn run(context: &mut Context, _: &Parsed) -> Outcome {
    let text = render(&context.nodes, context.form);
    context.print(&text)
}

fn render(nodes: &[NodeInfo], form: Form) -> String {
    let numbered = nodes.iter().enumerate();
    match form {
        Form::Human => {
            let rows = numbered.map(|(id, node)| {
                format!("{id:4}   {:<20}\t{:2}{:11}\n", node.id.to_string(), node.vnodes, node.zone)
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
    use proto::{NodeId, ZoneId};

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
            render(&nodes(), Form::Human),
            "  Id   Host:Port         V-Nodes       Zone
   0   127.0.0.1:7000      \t128          0
   1   127.0.0.1:7001      \t 0   16777343
   2   fd00::1:7000        \t64 4294967295
"
        );
        assert_eq!(
            render(&nodes(), Form::Raw),
            "0 127.0.0.1:7000 128 0\n1 127.0.0.1:7001 0 16777343\n2 fd00::1:7000 64 4294967295\n"
        );
    }
}
