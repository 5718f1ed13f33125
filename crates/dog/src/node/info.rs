//! `dog node info`: capacity and use of every node.
//!
//! ```text
//! Id       Size     Used     Avail    Use%
//!  0       77 GB    0.0 MB   77 GB      0%
//! Total    77 GB    0.0 MB   77 GB      0%
//!
//! Total virtual image size1.0 GB
//! ```
//!
//! Columns are separated by tabs. libvirt, Cinder and Proxmox parse the raw `Total` line. A node that does not answer is left out; the others
//! keep their numbers. Behind a node that is out stands that it is, but not in the raw form.

use proto::client::{Out, VdiInfo};
use serde_json::json;

use super::list::{name_of_out, outs};
use crate::command::{Action, Command, no_values, option};
use crate::context::{Context, Form, notice};
use crate::everyone::ask_all;
use crate::failure::{Failure, Outcome};
use crate::getopt::Parsed;
use crate::sheep::Sheep;
use crate::size::{self, percent};

pub const COMMAND: Command = Command {
    group: "node",
    name: "info",
    summary: "show the space of each node",
    args: "",
    args_min: 0,
    args_max: 0,
    options: &[option::ADDRESS, option::PORT, option::RAW, option::HELP, option::TIME, option::JSON],
    needs_nodes: true,
    check: no_values,
    action: Action::Run(run),
    notes: "A node that does not answer within 10 s is left out, which stderr tells; the exit code is 2 if none answers.",
};

const HEADER: &str = "Id\tSize\tUsed\tAvail\tUse%\n";

/// A node's number and its space.
struct NodeSpace {
    id: usize,
    out: Option<Out>,
    space: Space,
}

#[derive(Clone, Copy, Default)]
pub struct Space {
    pub size: u64,
    pub free: u64,
}

impl Space {
    fn used(&self) -> u64 {
        self.size.saturating_sub(self.free)
    }

    /// Size, used, available and percentage, with `separator` between them.
    pub fn render(&self, raw: bool, separator: &str) -> String {
        let show = |bytes| size::show(bytes, raw);
        let use_percent = percent(self.used(), self.size);
        let use_percent = if raw { format!("{use_percent}%") } else { format!("{use_percent:3}%") };
        [show(self.size), show(self.used()), show(self.free), use_percent].join(separator)
    }

    pub fn to_json(self) -> serde_json::Value {
        json!({ "size_bytes": self.size, "used_bytes": self.used(), "available_bytes": self.free })
    }
}

fn run(context: &mut Context, _: &Parsed) -> Outcome {
    let mut answers = Vec::new();
    let heard = ask_all(&context.node_ids(), Sheep::space);
    for (id, heard) in heard.into_iter().enumerate() {
        match heard.map(|reply| Space { size: reply.store_size, free: reply.store_free }) {
            Ok(space) => answers.push(NodeSpace { id, out: None, space }),
            Err(error) => notice(&error.or_refused(|reason| format!("Response's result: {reason}")).message),
        }
    }
    if answers.is_empty() {
        if context.form == Form::Human {
            context.print(HEADER)?;
        }
        return Err(Failure::system("Cannot get information from any nodes"));
    }
    let mut sheep = context.connect()?;
    let vdis = sheep.vdis()?;
    if context.form != Form::Raw {
        let outs = outs(&sheep.health()?);
        answers.iter_mut().for_each(|answer| answer.out = outs.get(&context.nodes[answer.id].id).copied());
    }
    let text = render(&answers, virtual_bytes(&vdis), context.form);
    context.print(&text)
}

/// The sum of working VDIs: snapshots do not count.
fn virtual_bytes(vdis: &[VdiInfo]) -> u64 {
    vdis.iter().filter(|info| info.snap_ctime == 0).fold(0, |sum, info| sum.saturating_add(info.size))
}

fn render(nodes: &[NodeSpace], virtual_bytes: u64, form: Form) -> String {
    let total = nodes.iter().fold(Space::default(), |sum, node| Space {
        size: sum.size.saturating_add(node.space.size),
        free: sum.free.saturating_add(node.space.free),
    });
    match form {
        Form::Human => {
            let rows: String = nodes
                .iter()
                .map(|node| {
                    let out = if node.out.is_some() { "\tout" } else { "" };
                    format!("{:2}\t{}{out}\n", node.id, node.space.render(false, "\t"))
                })
                .collect();
            let (total, images) = (total.render(false, "\t"), size::human(virtual_bytes));
            format!("{HEADER}{rows}Total\t{total}\n\nTotal virtual image size\t{images}\n")
        }
        Form::Raw => {
            let rows: String =
                nodes.iter().map(|node| format!("{} {}\n", node.id, node.space.render(true, " "))).collect();
            format!("{rows}Total {} {virtual_bytes}\n", total.render(true, " "))
        }
        Form::Json => {
            let to_json = |node: &NodeSpace| json!({ "id": node.id, "space": node.space.to_json(), "out": node.out.map(name_of_out) });
            let rows: Vec<_> = nodes.iter().map(to_json).collect();
            let document = json!({ "nodes": rows, "total": total.to_json(), "virtual_bytes": virtual_bytes });
            format!("{document:#}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes() -> Vec<NodeSpace> {
        let space = |size, used| Space { size, free: size - used };
        vec![
            NodeSpace { id: 0, out: None, space: space(12176302080, 113516544) },
            NodeSpace { id: 1, out: None, space: space(12176314368, 113528832) },
            NodeSpace { id: 3, out: None, space: space(12176314368, 113528832) },
            NodeSpace { id: 4, out: None, space: space(0, 0) },
        ]
    }

    #[test]
    fn space_is_shown_as_in_the_original() {
        assert_eq!(
            render(&nodes(), 4177526784, Form::Human),
            "Id\tSize\tUsed\tAvail\tUse%
 0\t11 GB\t108 MB\t11 GB\t  0%
 1\t11 GB\t108 MB\t11 GB\t  0%
 3\t11 GB\t108 MB\t11 GB\t  0%
 4\t0.0 MB\t0.0 MB\t0.0 MB\t  0%
Total\t34 GB\t325 MB\t34 GB\t  0%

Total virtual image size\t3.9 GB
"
        );
    }

    #[test]
    fn the_raw_total_is_what_libvirt_parses() {
        assert_eq!(
            render(&nodes()[..3], 4177526784, Form::Raw),
            "0 12176302080 113516544 12062785536 0%
1 12176314368 113528832 12062785536 0%
3 12176314368 113528832 12062785536 0%
Total 36528930816 340574208 36188356608 0% 4177526784
"
        );
    }

    #[test]
    fn nonsense_from_a_node_does_no_harm() {
        let odd = NodeSpace { id: 0, out: None, space: Space { size: 1, free: u64::MAX } };
        assert!(render(&[odd], 0, Form::Raw).starts_with("0 1 0 18446744073709551615 0%\n"));
    }
}
