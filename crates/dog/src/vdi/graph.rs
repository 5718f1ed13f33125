//! `dog vdi graph`: the same as `tree`, for Graphviz, clones included.
//!
//! ```text
//!   "7c2b25" -> "7c2b29";
//!   "7c2b29" [
//!     group = "test",
//!     label = "Name:       test\nTag:           0\nSize:     1.0 GB\nDate: 2026-11-22\nTime:   11:22:56",
//!     color="red"
//!   ];
//! ```
//!
//! Proxmox parses the edges and groups. `Tag` is the snapshot id in hex. What stood on a VDI that was deleted hangs on
//! the root.

use std::collections::BTreeSet;
use std::fmt::Write;

use proto::Vid;
use proto::client::VdiInfo;

use super::names::{shown, shown_snap_id};
use crate::clock::{LocalTime, seconds_of};
use crate::command::{Action, Command, no_values, option};
use crate::context::Context;
use crate::failure::Outcome;
use crate::getopt::Parsed;
use crate::size;

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "graph",
    summary: "show images in Graphviz dot format",
    args: "",
    args_min: 0,
    args_max: 0,
    options: &[option::ADDRESS, option::PORT, option::HELP, option::TIME],
    needs_nodes: true,
    check: no_values,
    action: Action::Run(run),
    notes: "",
};

fn run(context: &mut Context, _: &Parsed) -> Outcome {
    let infos = match context.connect()?.vdis() {
        Err(error) if error.is_wait_for_format() => Vec::new(),
        infos => infos?,
    };
    context.print(&render(&infos))
}

fn render(infos: &[VdiInfo]) -> String {
    let known: BTreeSet<Vid> = infos.iter().map(|info| info.vid).collect();
    let mut text = String::from(
        "digraph G {\n  node [shape = \"box\", fontname = \"Courier\"];\n\n  \"0\" [shape = \"ellipse\", label = \
         \"root\"];\n\n",
    );
    for info in infos {
        let parent = if known.contains(&info.parent) { info.parent } else { Vid(0) };
        text += &render_vdi(info, parent);
    }
    text + "}\n"
}

fn render_vdi(info: &VdiInfo, parent: Vid) -> String {
    let time = LocalTime::from_seconds(seconds_of(info.create_time));
    let name = quoted(&shown(&info.name));
    let fields = [
        ("Name", name.clone()),
        ("Tag", format!("{:x}", shown_snap_id(info))),
        ("Size", size::human(info.size)),
        ("Date", time.date()),
        ("Time", time.time_of_day()),
    ];
    let label: Vec<String> =
        fields.iter().map(|(field, value)| format!("{:<6}{value:>10}", format!("{field}:"))).collect();
    let mut text = String::new();
    let _ = writeln!(text, "  \"{parent}\" -> \"{}\";", info.vid);
    let _ = writeln!(text, "  \"{}\" [\n    group = \"{name}\",", info.vid);
    let _ = write!(text, "    label = \"{}\"", label.join("\\n"));
    text += if info.snap_ctime == 0 { ",\n    color=\"red\"\n  ];\n\n" } else { "\n  ];\n\n" };
    text
}

/// Within double quotes of Graphviz.
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::CopyPolicy;

    #[test]
    fn vdis_are_drawn_as_in_the_original() {
        let time = LocalTime::from_seconds(1_795_346_574);
        let info = |vid, parent, is_snapshot, name: &str| VdiInfo {
            vid: Vid(vid),
            name: name.into(),
            tag: vec![],
            size: 1 << 30,
            policy: CopyPolicy::Replicated { copies: 3 },
            block_size_shift: 22,
            snap_id: 26,
            create_time: 1_795_346_574 << 32,
            snap_ctime: u64::from(is_snapshot),
            vm_state_size: 0,
            vm_clock_nsec: 0,
            parent: Vid(parent),
            owner: None,
            locked_by: vec![],
        };
        let found = render(&[
            info(0x7c2b25, 0, true, "test"),
            info(0x7c2b29, 0x7c2b25, false, "a\"b"),
            info(9, 8, true, "t"),
        ]);
        let (date, clock) = (time.date(), time.time_of_day());
        assert_eq!(
            found,
            format!(
                "\
digraph G {{
  node [shape = \"box\", fontname = \"Courier\"];

  \"0\" [shape = \"ellipse\", label = \"root\"];

  \"0\" -> \"7c2b25\";
  \"7c2b25\" [
    group = \"test\",
    label = \"Name:       test\\nTag:          1a\\nSize:     1.0 GB\\nDate: {date}\\nTime:   {clock}\"
  ];

  \"7c2b25\" -> \"7c2b29\";
  \"7c2b29\" [
    group = \"a\\\"b\",
    label = \"Name:       a\\\"b\\nTag:           0\\nSize:     1.0 GB\\nDate: {date}\\nTime:   {clock}\",
    color=\"red\"
  ];

  \"0\" -> \"9\";
  \"9\" [
    group = \"t\",
    label = \"Name:          t\\nTag:          1a\\nSize:     1.0 GB\\nDate: {date}\\nTime:   {clock}\"
  ];

}}
"
            )
            .replace("Name:       a\\\"b", "Name:       a\\\"b")
        );
    }
}
