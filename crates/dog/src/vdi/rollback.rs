//! `dog vdi rollback -s SNAP [-f] NAME`: puts a working VDI back to a snapshot.
//!
//! Asks first, since what was written after the snapshot and is in no other one gets lost. Without `-f` a VDI that a client
//! uses is refused. Silent on success; with `-v`:
//!
//! ```text
//! New VDI ID of rollbacked VDI: 15d16b
//! ```

use proto::Vid;
use proto::client::ClientError;

use super::delete::check_pacing;
use super::names::{name_at, open_failure, required_selector, selector, shown};
use crate::command::{Action, Command, option};
use crate::context::{Context, declined};
use crate::failure::{Failure, Outcome};
use crate::getopt::Parsed;
use crate::sheep::CallError;
use crate::terminal;

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "rollback",
    summary: "rollback to a snapshot",
    args: "<vdiname>",
    args_min: 1,
    args_max: 1,
    options: &[
        option::SNAPSHOT,
        option::ADDRESS,
        option::PORT,
        option::HELP,
        option::FORCE,
        option::RAW,
        option::VERBOSE,
        option::TIME,
        option::BATCH,
        option::INTERVAL,
    ],
    needs_nodes: true,
    check: |parsed| selector(parsed).and_then(|_| check_pacing(parsed)),
    action: Action::Run(run),
    notes: "With -f nothing is asked, and an image that a client uses is rolled back all the same.",
};

/// As the original words it.
const QUESTION: &str =
    "This operation discards any changes made since the previous\nsnapshot was taken.  Continue?";

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let selector = required_selector(parsed)?;
    let name = name_at(parsed, 0)?;
    let force = parsed.has("force");
    let mut sheep = context.connect()?;
    let to = sheep.lookup(&name, &selector).map_err(|error| open_failure(&name, &selector, error))?;
    if !force && !terminal::confirm(QUESTION, &mut context.out, &mut context.input)? {
        return declined();
    }
    let head = sheep.roll_back(to, force).map_err(|error| match error {
        CallError::Declined(ClientError::InUse(owner)) => Failure::refused(format!(
            "Failed to rollback VDI {}: it is in use through {owner}; close it there, or force with -f",
            shown(&name)
        )),
        CallError::Declined(ClientError::NameClash) => Failure::refused(format!(
            "Failed to rollback VDI {0}: for NBD {0} is the name of another VDI's snapshot, which a working VDI would hide; clone the \
             snapshot under another name",
            shown(&name)
        )),
        error => error.or_refused(|reason| format!("Failed to rollback VDI {}: {reason}", shown(&name))),
    })?;
    if context.verbose {
        let text = render(head.vid, context.is_raw());
        context.print(&text)?;
    }
    Ok(())
}

fn render(vid: Vid, raw: bool) -> String {
    if raw { format!("{vid}\n") } else { format!("New VDI ID of rollbacked VDI: {vid}\n") }
}
