//! `dog cluster scrub {enable|disable|now|rate}`: whether and how fast sheep read what they hold to find what has rotted.

use proto::cluster::RepairChange;

use crate::command::{Action, Command, SubCommand, option};
use crate::context::{Context, notice};
use crate::failure::{Failure, Outcome};
use crate::getopt::Parsed;
use crate::size;

pub const COMMAND: Command = Command {
    group: "cluster",
    name: "scrub",
    summary: "switch, bound or begin the search for rotten blocks",
    args: "",
    args_min: 0,
    args_max: 0,
    options: &[option::ADDRESS, option::PORT, option::RAW, option::HELP, option::TIME],
    needs_nodes: false,
    check: |parsed| wanted_rate(parsed).map(drop),
    action: Action::Sub(&[
        SubCommand {
            name: "enable",
            summary: "every sheep reads and compares what it holds, over and over",
            args_min: 0,
            args_max: 0,
            is_local: false,
            run: |context, _| switch(context, true),
        },
        SubCommand {
            name: "disable",
            summary: "none does; what reads come upon is mended all the same",
            args_min: 0,
            args_max: 0,
            is_local: false,
            run: |context, _| switch(context, false),
        },
        SubCommand {
            name: "now",
            summary: "every sheep begins anew, and takes the time it finds",
            args_min: 0,
            args_max: 0,
            is_local: false,
            run: now,
        },
        SubCommand {
            name: "rate",
            summary: "show or set [<bytes per second>] of each sheep",
            args_min: 0,
            args_max: 1,
            is_local: false,
            run: rate,
        },
    ]),
    notes: "rate: a size such as 20M; 0: as much as takes a week, which is the default. Guests come first whatever the rate.\n\
            How far they are and what they have found: dog node scrub.",
};

fn switch(context: &mut Context, scrub: bool) -> Outcome {
    context.connect()?.set_repair(RepairChange { scrub: Some(scrub), ..RepairChange::default() })?;
    context.print(&format!("Cluster scrub: {}\n", if scrub { "enable" } else { "disable" }))
}

fn now(context: &mut Context, _: &Parsed) -> Outcome {
    context.connect()?.set_repair(RepairChange { scrub_now: true, ..RepairChange::default() })?;
    notice("Every sheep that is up begins a scrub. Watch: dog node scrub");
    Ok(())
}

fn wanted_rate(parsed: &Parsed) -> Outcome<Option<u64>> {
    let [word, text, ..] = parsed.positionals.as_slice() else { return Ok(None) };
    if word != b"rate" {
        return Ok(None);
    }
    let rate = size::parse(text).ok_or_else(|| {
        let shown = String::from_utf8_lossy(text);
        Failure::bad_value(format!(
            "Invalid rate '{shown}': give bytes per second, such as 20M, or 0 for a pass in a week"
        ))
    });
    rate.map(Some)
}

fn rate(context: &mut Context, parsed: &Parsed) -> Outcome {
    let mut sheep = context.connect()?;
    if let Some(rate) = wanted_rate(parsed)? {
        sheep.set_repair(RepairChange { scrub_rate_bytes: Some(rate), ..RepairChange::default() })?;
        if context.is_raw() {
            return Ok(());
        }
    }
    // Also after it was set: so that it shows what was understood.
    let repair = sheep.cluster_info()?.repair;
    let text = match repair.scrub_rate_bytes {
        rate if context.is_raw() => format!("{rate}\n"),
        0 => "Scrub rate: all in a week\n".to_string(),
        rate => format!("Scrub rate: {rate} bytes ({}) per second and sheep\n", size::human(rate)),
    };
    context.print(&text)
}
