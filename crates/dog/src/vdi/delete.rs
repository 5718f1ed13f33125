//! `dog vdi delete [-s SNAP] NAME`: removes a working VDI, or with `-s` one snapshot.
//!
//! Silent on success. A refusal is told on stderr and the exit code stays 0, because Cinder and others delete
//! what may be gone already; only a lost connection counts as failure. The sheep frees the objects before it
//! answers, so there is nothing to pace.

use super::names::{name_at, open_failure, selector};
use crate::command::{Action, Command, option};
use crate::context::{Context, notice};
use crate::failure::Outcome;
use crate::getopt::Parsed;
use crate::sheep::CallError;

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "delete",
    summary: "delete an image",
    args: "<vdiname>",
    args_min: 1,
    options: &[option::SNAPSHOT, option::ADDRESS, option::PORT, option::HELP, option::TIME],
    needs_nodes: true,
    check: |parsed| selector(parsed).map(drop),
    action: Action::Run(run),
    notes: "",
};

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let selector = selector(parsed)?;
    let name = name_at(parsed, 0)?;
    match context.connect()?.delete(&name, &selector) {
        Ok(_) => Ok(()),
        Err(error @ CallError::Refused(_)) => {
            notice(&open_failure(&name, &selector, error).message);
            Ok(())
        }
        Err(CallError::Broken(failure)) => Err(failure),
    }
}
