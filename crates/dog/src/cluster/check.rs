//! `dog cluster check`: compares and mends all copies of all VDIs, snapshots included.
//!
//! ```text
//! fix vdi test
//! finish check&repair test
//! fix snapshot test (id: 1, tag: "snap1")
//! fixed replica 007c2b2500000000
//! finish check&repair test
//! ```
//!
//! As `dog vdi check` one after the other; what VDIs share is compared once. VDIs may be used, made and deleted meanwhile: those
//! that are made are not looked at, and of those that are deleted nothing but that is said.

use proto::client::VdiInfo;

use crate::command::{Action, Command, no_values, option};
use crate::context::{Context, notice};
use crate::failure::Outcome;
use crate::getopt::Parsed;
use crate::vdi::check::{Checked, Mode, Tally, check_vdi, notice_of_unchecked, render_deleted};
use crate::vdi::names::shown;

pub const COMMAND: Command = Command {
    group: "cluster",
    name: "check",
    summary: "check and repair all images",
    args: "",
    args_min: 0,
    args_max: 0,
    options: &[option::ADDRESS, option::PORT, option::HELP, option::TIME, option::VERBOSE],
    needs_nodes: true,
    check: no_values,
    action: Action::Run(run),
    notes: "'fix vdi NAME' stands above each image that is looked at, as it always did, whether there is anything to mend or not; what was mended\n\
            has a line of its own that begins with 'fixed'.\n\
            Images may be in use. Exit code 0 also if something could not be mended, as ever; for scripts: dog cluster health, which tells of what\n\
            is lost, or dog vdi check -e.",
};

fn run(context: &mut Context, _: &Parsed) -> Outcome {
    let mut sheep = context.connect()?;
    let mut tally = Tally::default();
    for info in sheep.vdis()? {
        context.print(&title(&info))?;
        let checked =
            check_vdi(context, &mut sheep, info.vid, info.block_size_shift, Mode::Repair, &mut tally);
        match checked? {
            Checked::Whole => context.print(&format!("finish check&repair {}\n", shown(&info.name)))?,
            Checked::Deleted => notice(&render_deleted(&info.name, info.vid)),
        }
    }
    if context.verbose {
        notice(&tally.render());
    }
    notice_of_unchecked(&mut sheep, None);
    Ok(())
}

fn title(info: &VdiInfo) -> String {
    let name = shown(&info.name);
    match info.snap_ctime {
        0 => format!("fix vdi {name}\n"),
        _ => format!("fix snapshot {name} (id: {}, tag: \"{}\")\n", info.snap_id, shown(&info.tag)),
    }
}
