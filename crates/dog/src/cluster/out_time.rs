//! `dog cluster out-time [TIME]`: how long a node may be down before what it holds is copied to others.
//!
//! ```text
//! A node that is down is given up after 10m
//! ```
//!
//! Raw: seconds, 0 for never; nothing where it is set.

use proto::cluster::{RepairChange, RepairOptions};

use crate::command::{Action, Command, option};
use crate::context::Context;
use crate::duration;
use crate::failure::Outcome;
use crate::getopt::Parsed;

pub const COMMAND: Command = Command {
    group: "cluster",
    name: "out-time",
    summary: "show or set after what time a node that is down is given up",
    args: "[<time>]",
    args_min: 0,
    args_max: 1,
    options: &[option::ADDRESS, option::PORT, option::RAW, option::HELP, option::TIME],
    needs_nodes: false,
    check: |parsed| wanted(parsed).map(drop),
    action: Action::Run(run),
    notes: "A time is a whole number and s, m, h or d: 90s, 10m, 1h. 0: never by itself, only by 'dog node out'. Every node\n\
            counts on its own clock, from when it has heard of the loss or was started.",
};

fn wanted(parsed: &Parsed) -> Outcome<Option<u32>> {
    parsed.positionals.first().map(|text| duration::parse_out_time(text)).transpose()
}

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let mut sheep = context.connect()?;
    if let Some(seconds) = wanted(parsed)? {
        sheep.set_repair(RepairChange { out_time_s: Some(seconds), ..RepairChange::default() })?;
        if context.is_raw() {
            return Ok(());
        }
    }
    // Also after it was set: so that it shows what was understood.
    let text = render(&sheep.cluster_info()?.repair, context.is_raw());
    context.print(&text)
}

fn render(repair: &RepairOptions, raw: bool) -> String {
    match repair.out_time_s {
        seconds if raw => format!("{seconds}\n"),
        0 => "A node that is down is never given up by itself\n".to_string(),
        seconds if repair.enabled => {
            format!("A node that is down is given up after {}\n", duration::show(seconds))
        }
        seconds => format!(
            "A node that is down is given up after {}, but not while recovery is disabled, as it is now\n",
            duration::show(seconds)
        ),
    }
}
