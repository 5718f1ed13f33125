//! `dog node md info [-A]`: the disks of the sheep that is asked, or of all nodes.
//!
//! ```text
//! Id       Size     Used     Avail    Use%     Path
//!  0       11 GB    108 MB   11 GB      0%     /var/lib/sheepdog/obj
//! ```

use proto::sd::structs::MdInfo;
use serde_json::json;

use super::info::Space;
use crate::command::{Action, Command, SubCommand, no_values, option};
use crate::context::{Context, Form, notice};
use crate::everyone::ask_all;
use crate::failure::{Failure, Outcome, exit};
use crate::getopt::Parsed;
use crate::sheep::Sheep;

pub const COMMAND: Command = Command {
    group: "node",
    name: "md",
    summary: "show the disks of nodes",
    args: "",
    args_min: 0,
    args_max: 0,
    options: &[
        option::ADDRESS,
        option::PORT,
        option::RAW,
        option::ALL,
        option::HELP,
        option::TIME,
        option::JSON,
    ],
    needs_nodes: true,
    check: no_values,
    action: Action::Sub(&[SubCommand {
        name: "info",
        summary: "show capacity and use of each disk",
        args_min: 0,
        args_max: 0,
        is_local: false,
        run: run_info,
    }]),
    notes: "",
};

const HEADER: &str = "Id\tSize\tUsed\tAvail\tUse%\tPath\n";

/// One node's disks.
struct NodeDisks {
    /// Its number, where all nodes were asked.
    id: Option<usize>,
    name: String,
    disks: Vec<MdInfo>,
}

fn run_info(context: &mut Context, parsed: &Parsed) -> Outcome {
    let mut answers = Vec::new();
    let mut worst = Ok(());
    if parsed.has("all") {
        let heard = ask_all(&context.node_ids(), Sheep::disks);
        for ((id, node), heard) in context.nodes.iter().enumerate().zip(heard) {
            match heard {
                Ok(disks) => answers.push(NodeDisks { id: Some(id), name: node.id.to_string(), disks }),
                Err(error) => {
                    notice(&format!("Node {id} does not answer: {}", Failure::from(error).message));
                    worst = Err(Failure::silent(exit::FAILURE));
                }
            }
        }
    } else {
        let disks = context.connect()?.disks()?;
        answers.push(NodeDisks { id: None, name: context.target.to_string(), disks });
    }
    let text = render(&answers, context.form);
    context.print(&text)?;
    worst
}

fn render(nodes: &[NodeDisks], form: Form) -> String {
    match form {
        Form::Human => std::iter::once(HEADER.to_string()).chain(nodes.iter().map(render_node)).collect(),
        Form::Raw => nodes.iter().map(render_node_raw).collect(),
        Form::Json => {
            let disks: Vec<_> = nodes
                .iter()
                .flat_map(|node| node.disks.iter().map(move |disk| (node, disk)))
                .map(|(node, disk)| {
                    json!({ "node": node.name, "index": disk.idx, "space": space_of(disk).to_json(), "path": disk.path })
                })
                .collect();
            format!("{:#}\n", json!(disks))
        }
    }
}

fn render_node(node: &NodeDisks) -> String {
    let title = node.id.map(|id| format!("Node {id}:\n"));
    let rows = node
        .disks
        .iter()
        .map(|disk| format!("{:2}\t{}\t{}\n", disk.idx, space_of(disk).render(false, "\t"), disk.path));
    title.into_iter().chain(rows).collect()
}

fn render_node_raw(node: &NodeDisks) -> String {
    node.disks
        .iter()
        .map(|disk| {
            format!("{} {} {} {}\n", node.name, disk.idx, space_of(disk).render(true, " "), disk.path)
        })
        .collect()
}

fn space_of(disk: &MdInfo) -> Space {
    Space { size: disk.free.saturating_add(disk.used), free: disk.free }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: Option<usize>) -> NodeDisks {
        let disk = MdInfo { idx: 0, free: 12062785536, used: 113516544, path: "DIR/0/obj".into() };
        NodeDisks { id, name: "127.0.0.1:7000".into(), disks: vec![disk] }
    }

    #[test]
    fn disks_are_shown_as_in_the_original() {
        assert_eq!(
            render(&[node(None)], Form::Human),
            "Id\tSize\tUsed\tAvail\tUse%\tPath\n 0\t11 GB\t108 MB\t11 GB\t  0%\tDIR/0/obj\n"
        );
        assert_eq!(
            render(&[node(Some(0)), node(Some(1))], Form::Human),
            "Id\tSize\tUsed\tAvail\tUse%\tPath
Node 0:
 0\t11 GB\t108 MB\t11 GB\t  0%\tDIR/0/obj
Node 1:
 0\t11 GB\t108 MB\t11 GB\t  0%\tDIR/0/obj
"
        );
        assert_eq!(
            render(&[node(None)], Form::Raw),
            "127.0.0.1:7000 0 12176302080 113516544 12062785536 0% DIR/0/obj\n"
        );
    }
}
