//! `dog vdi tree`: which snapshot follows which.
//!
//! ```text
//! cl1---(you are here)
//! test---[2026-11-22 11:22]-+-[2026-11-22 11:22]---[2026-11-22 11:22]
//!                           |-[2026-11-22 11:22]
//!                           `-(you are here)
//! ```
//!
//! One block per name, in the order of the first id. A clone begins a tree of its own, and so does a snapshot whose
//! parent was deleted. With `-v` snapshots have their ids and tags, and a clone the snapshot that it was made from:
//!
//! ```text
//! cl1 (from test:1 snap1)---(you are here)
//! test---[1 snap1 2026-11-22 11:22]---(you are here)
//! ```

use std::collections::BTreeMap;

use proto::Vid;
use proto::client::VdiInfo;

use super::names::shown;
use crate::clock::{LocalTime, seconds_of};
use crate::command::{Action, Command, no_values, option};
use crate::context::Context;
use crate::failure::Outcome;
use crate::getopt::Parsed;

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "tree",
    summary: "show images in tree view format",
    args: "",
    args_min: 0,
    args_max: 0,
    options: &[option::ADDRESS, option::PORT, option::HELP, option::TIME, option::VERBOSE],
    needs_nodes: true,
    check: no_values,
    action: Action::Run(run),
    notes: "With -v snapshots have their ids and tags, and clones the snapshot that they were made from.",
};

fn run(context: &mut Context, _: &Parsed) -> Outcome {
    let infos = match context.connect()?.vdis() {
        Err(error) if error.is_wait_for_format() => Vec::new(),
        infos => infos?,
    };
    let text = render(&infos, Style { is_terminal: context.is_terminal, is_verbose: context.verbose });
    context.print(&text)
}

#[derive(Clone, Copy)]
struct Style {
    is_terminal: bool,
    is_verbose: bool,
}

/// What is drawn of one VDI.
struct Node {
    label: String,
    /// Columns that it takes: escape sequences take none.
    width: usize,
    children: Vec<Vid>,
}

/// Where a line forked, and what still has to be drawn below the fork.
struct Fork {
    column: usize,
    /// Last first.
    pending: Vec<Vid>,
}

fn render(infos: &[VdiInfo], style: Style) -> String {
    let known: BTreeMap<Vid, &VdiInfo> = infos.iter().map(|info| (info.vid, info)).collect();
    let mut nodes: BTreeMap<Vid, Node> = infos.iter().map(|info| (info.vid, node_of(info, style))).collect();
    // Names in the order of their first VDI, each with the VDIs that stand on none of the same name.
    let mut roots: Vec<(&[u8], Vec<Vid>)> = Vec::new();
    for info in infos {
        if known.get(&info.parent).is_some_and(|parent| parent.name == info.name) {
            nodes.get_mut(&info.parent).expect("it has a name").children.push(info.vid);
            if !roots.iter().any(|(name, _)| *name == info.name) {
                roots.push((&info.name, Vec::new()));
            }
            continue;
        }
        match roots.iter_mut().find(|(name, _)| *name == info.name) {
            Some((_, vids)) => vids.push(info.vid),
            None => roots.push((&info.name, vec![info.vid])),
        }
    }
    let title = |vid: &Vid| match known.get(&known[vid].parent) {
        Some(parent) if style.is_verbose => format!("{} (from {})", shown(&known[vid].name), origin(parent)),
        _ => shown(&known[vid].name),
    };
    roots.iter().flat_map(|(_, vids)| vids.iter().map(|vid| draw(&title(vid), *vid, &nodes))).collect()
}

/// `test:1 snap1`
fn origin(parent: &VdiInfo) -> String {
    format!("{}:{}", shown(&parent.name), id_and_tag(parent))
}

fn id_and_tag(info: &VdiInfo) -> String {
    let separator = if info.tag.is_empty() { "" } else { " " };
    format!("{}{separator}{}", info.snap_id, shown(&info.tag))
}

fn node_of(info: &VdiInfo, style: Style) -> Node {
    let time = LocalTime::from_seconds(seconds_of(info.create_time)).minutes();
    let plain = match info.snap_ctime {
        0 => "(you are here)".to_string(),
        _ if style.is_verbose => format!("[{} {time}]", id_and_tag(info)),
        _ => format!("[{time}]"),
    };
    let width = plain.chars().count();
    let is_bold = style.is_terminal && info.snap_ctime == 0;
    let label = if is_bold { format!("\x1b[1m{plain}\x1b[m") } else { plain };
    Node { label, width, children: Vec::new() }
}

/// Line by line, so that a chain of any length needs no stack.
fn draw(name: &str, root: Vid, nodes: &BTreeMap<Vid, Node>) -> String {
    let mut text = format!("{name}---");
    let mut column = name.chars().count() + 3;
    let mut forks: Vec<Fork> = Vec::new();
    let mut next = Some(root);
    while let Some(vid) = next {
        let node = &nodes[&vid];
        text += &node.label;
        column += node.width;
        next = match node.children.as_slice() {
            [] => begin_line(&mut forks, &mut text, &mut column),
            [only] => {
                text += "---";
                column += 3;
                Some(*only)
            }
            [first, others @ ..] => {
                text += "-+-";
                forks.push(Fork { column: column + 1, pending: others.iter().rev().copied().collect() });
                column += 3;
                Some(*first)
            }
        };
    }
    text
}

/// Ends the line and begins the next one below the innermost fork that has something left.
fn begin_line(forks: &mut Vec<Fork>, text: &mut String, column: &mut usize) -> Option<Vid> {
    text.push('\n');
    while forks.last().is_some_and(|fork| fork.pending.is_empty()) {
        forks.pop();
    }
    let (innermost, outer) = forks.split_last_mut()?;
    let next = innermost.pending.pop();
    *column = 0;
    for fork in outer.iter().filter(|fork| !fork.pending.is_empty()) {
        *text += &format!("{}|", " ".repeat(fork.column - *column));
        *column = fork.column + 1;
    }
    let branch = if innermost.pending.is_empty() { "`-" } else { "|-" };
    *text += &format!("{}{branch}", " ".repeat(innermost.column - *column));
    *column = innermost.column + 2;
    next
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::CopyPolicy;

    const PLAIN: Style = Style { is_terminal: false, is_verbose: false };

    fn info(vid: u32, name: &str, parent: u32, is_snapshot: bool) -> VdiInfo {
        VdiInfo {
            vid: Vid(vid),
            name: name.into(),
            tag: vec![],
            size: 0,
            policy: CopyPolicy::Replicated { copies: 3 },
            block_size_shift: 22,
            snap_id: 1,
            create_time: 1_795_346_574 << 32,
            snap_ctime: u64::from(is_snapshot),
            vm_state_size: 0,
            vm_clock_nsec: 0,
            parent: Vid(parent),
            owner: None,
            locked_by: vec![],
        }
    }

    /// Dates shortened to `[D]`, which shifts what stands below.
    fn check(infos: &[VdiInfo], expect: &str) {
        let date = format!("[{}]", LocalTime::from_seconds(1_795_346_574).minutes());
        let expect = expect.replace("[D]", &date).replace("~~~", &" ".repeat(date.len()));
        assert_eq!(render(infos, PLAIN), expect);
    }

    #[test]
    fn a_tree_forks_where_a_snapshot_has_several_children() {
        check(
            &[
                info(0x42a71, "cl1", 0x7c2b25, false),
                info(0x7c2b25, "test", 0, true),
                info(0x7c2b26, "test", 0x7c2b25, true),
                info(0x7c2b27, "test", 0x7c2b26, true),
                info(0x7c2b28, "test", 0x7c2b25, true),
                info(0x7c2b29, "test", 0x7c2b25, false),
            ],
            "\
cl1---(you are here)
test---[D]-+-[D]---[D]
       ~~~ |-[D]
       ~~~ `-(you are here)
",
        );
    }

    #[test]
    fn forks_within_forks_keep_their_columns() {
        check(
            &[
                info(1, "v", 0, true),
                info(2, "v", 1, true),
                info(3, "v", 2, true),
                info(4, "v", 2, true),
                info(5, "v", 1, true),
                info(6, "v", 5, true),
                info(7, "v", 5, false),
            ],
            "\
v---[D]-+-[D]-+-[D]
    ~~~ | ~~~ `-[D]
    ~~~ `-[D]-+-[D]
    ~~~   ~~~ `-(you are here)
",
        );
    }

    #[test]
    fn a_deleted_parent_leaves_several_trees_of_a_name() {
        check(
            &[
                info(1, "a", 0, false),
                info(2, "v", 77, true),
                info(3, "b", 0, false),
                info(4, "v", 77, false),
            ],
            "a---(you are here)\nv---[D]\nv---(you are here)\nb---(you are here)\n",
        );
    }

    #[test]
    fn a_long_chain_needs_no_stack() {
        let chain: Vec<VdiInfo> = (1..20_000).map(|vid| info(vid, "v", vid - 1, true)).collect();
        assert_eq!(render(&chain, PLAIN).matches("---").count(), 19_999);
    }
}
