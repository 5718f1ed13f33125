//! `dog node recovery [info] [-P]`: which nodes fetch copies that they lack, and how far they are.
//!
//! ```text
//! Nodes In Recovery:
//!   Id   Host:Port         V-Nodes       Zone       Progress
//!    1   127.0.0.1:7001        128          1       37.5%
//! ```
//!
//! Scripts wait for the two header lines alone: then no node that is up lacks a copy. Objects are counted as they are found to be missing, so a
//! node that has just begun may know of few.

use std::thread;
use std::time::Duration;

use proto::client::{NodeInfo, NodeStat};
use serde_json::json;

use super::throttle;
use crate::command::{Action, Command, no_values, option};
use crate::context::{Context, Form, notice};
use crate::everyone::ask_all;
use crate::failure::{Failure, Outcome, exit};
use crate::getopt::Parsed;
use crate::sheep::Sheep;
use crate::terminal::Progress;

pub const COMMAND: Command = Command {
    group: "node",
    name: "recovery",
    summary: "show the progress of recovery, or bound it",
    args: "[info | set-throttle <max> <interval> | get-throttle]",
    args_min: 0,
    args_max: 3,
    options: &[
        option::ADDRESS,
        option::PORT,
        option::HELP,
        option::PROGRESS,
        option::RAW,
        option::TIME,
        option::JSON,
    ],
    needs_nodes: true,
    check: no_values,
    action: Action::Run(run),
    notes: "Exit code 2 if a node does not answer within 10 s: it may lack copies.\n\
            Without -P: of all nodes that are up. With it: of the one that is talked to, until it lacks nothing.\n\
            set-throttle: the sheep that is talked to begins to copy at most <max> objects in <interval> milliseconds, until it\n\
            ends; 0 0: as it likes. For all sheep, in bytes, and to stay: dog cluster recover throttle.",
};

const HEADER: &str = "Nodes In Recovery:\n  Id   Host:Port         V-Nodes       Zone       Progress\n";
const POLL: Duration = Duration::from_millis(200);

/// A node that lacks something.
struct Row {
    id: usize,
    node: NodeInfo,
    stat: NodeStat,
}

impl Row {
    /// Never 100: there is always something left.
    fn percent(&self) -> f64 {
        let percent = self.stat.objects_done as f64 * 100.0 / self.stat.objects_total.max(1) as f64;
        percent.min(99.9)
    }
}

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    match parsed.positionals.split_first().map(|(word, rest)| (word.as_slice(), rest)) {
        None | Some((b"info", [])) => {}
        Some((b"set-throttle", numbers)) => return throttle::set(context, numbers),
        Some((b"get-throttle", [])) => return throttle::get(context),
        Some((b"info" | b"get-throttle", [word, ..])) => {
            let word = String::from_utf8_lossy(word);
            return Err(Failure::usage(format!("Unexpected argument '{word}'; nothing was done")));
        }
        // A wrong word after the subcommand is a refusal, as everywhere.
        Some(_) => return Err(Failure { code: exit::FAILURE, ..Failure::usage("") }),
    }
    if parsed.has("progress") {
        return watch(context);
    }
    let (rows, unheard) = fetch(context);
    let text = render(&rows, context.form);
    context.print(&text)?;
    if unheard { Err(Failure::silent(exit::SYSTEM)) } else { Ok(()) }
}

/// Also says whether a node did not answer: then nobody should conclude that nothing is left to do.
fn fetch(context: &Context) -> (Vec<Row>, bool) {
    let (mut rows, mut unheard) = (Vec::new(), false);
    let heard = ask_all(&context.node_ids(), Sheep::node_stat);
    for ((id, node), heard) in context.nodes.iter().enumerate().zip(heard) {
        match heard {
            Ok(stat) if stat.pgs_behind > 0 => rows.push(Row { id, node: node.clone(), stat }),
            Ok(_) => {}
            Err(error) => {
                notice(&format!("Node {id} does not answer: {}", Failure::from(error).message));
                unheard = true;
            }
        }
    }
    (rows, unheard)
}

fn render(rows: &[Row], form: Form) -> String {
    match form {
        Form::Human => std::iter::once(HEADER.to_string()).chain(rows.iter().map(render_row)).collect(),
        Form::Raw => rows
            .iter()
            .map(|row| {
                let NodeInfo { id, zone, vnodes, .. } = &row.node;
                let NodeStat { objects_done, objects_total, .. } = &row.stat;
                format!("{} {id} {vnodes} {zone} {objects_done} {objects_total}\n", row.id)
            })
            .collect(),
        Form::Json => {
            let rows: Vec<_> = rows
                .iter()
                .map(|row| {
                    json!({
                        "id": row.id,
                        "node": row.node.id.to_string(),
                        "vnodes": row.node.vnodes,
                        "zone": row.node.zone.0,
                        "pgs_behind": row.stat.pgs_behind,
                        "objects_done": row.stat.objects_done,
                        "objects_total": row.stat.objects_total,
                    })
                })
                .collect();
            format!("{:#}\n", json!(rows))
        }
    }
}

fn render_row(row: &Row) -> String {
    let NodeInfo { id, zone, vnodes, .. } = &row.node;
    format!("{:4}   {:<20}{vnodes:5}{zone:11}{:11.1}%\n", row.id, id.to_string(), row.percent())
}

/// A bar of the node that is talked to, until it lacks nothing.
fn watch(context: &mut Context) -> Outcome {
    let mut sheep = context.connect()?;
    let mut progress = Progress::of_objects(context.is_terminal);
    loop {
        let stat = sheep.node_stat()?;
        if stat.pgs_behind == 0 {
            return progress.finish(&mut context.out);
        }
        progress.set(stat.objects_done, stat.objects_total, &mut context.out)?;
        // A sheep does not call back.
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{NodeId, ZoneId};
    use std::net::Ipv4Addr;

    fn row(objects_done: u64, objects_total: u64) -> Row {
        let id = NodeId::new(Ipv4Addr::LOCALHOST.into(), 7001);
        Row {
            id: 1,
            node: NodeInfo { id, zone: ZoneId(1), vnodes: 128, space_bytes: 1 },
            stat: NodeStat { pgs_behind: 7, objects_done, objects_total, ..NodeStat::default() },
        }
    }

    #[test]
    fn recovery_is_shown_as_in_the_original() {
        assert_eq!(render(&[], Form::Human).lines().count(), 2);
        assert_eq!(
            render(&[row(3, 8)], Form::Human),
            "Nodes In Recovery:
  Id   Host:Port         V-Nodes       Zone       Progress
   1   127.0.0.1:7001        128          1       37.5%
"
        );
        assert_eq!(render(&[row(3, 8)], Form::Raw), "1 127.0.0.1:7001 128 1 3 8\n");
    }

    #[test]
    fn nobody_is_done_who_still_lacks_something() {
        assert_eq!(row(8, 8).percent(), 99.9);
        assert_eq!(row(0, 0).percent(), 0.0);
    }
}
