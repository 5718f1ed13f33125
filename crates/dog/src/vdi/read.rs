//! `dog vdi read [-s SNAP] NAME [OFFSET [LEN]]`: the volume's bytes, to stdout.
//!
//! What was never written reads as zeros. No progress bar: stdout is the data.

use super::PIECE_BYTES;
use super::names::{name_at, open, selector};
use super::span::Asked;
use crate::command::{Action, Command, option};
use crate::context::Context;
use crate::failure::Outcome;
use crate::getopt::Parsed;

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "read",
    summary: "read data from an image to stdout",
    args: "<vdiname> [<offset> [<len>]]",
    args_min: 1,
    args_max: 3,
    options: &[option::SNAPSHOT, option::ADDRESS, option::PORT, option::HELP, option::TIME],
    needs_nodes: true,
    check: |parsed| selector(parsed).map(drop),
    action: Action::Run(run),
    notes: "",
};

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let selector = selector(parsed)?;
    let name = name_at(parsed, 0)?;
    let asked = Asked::parse(parsed)?;
    let mut sheep = context.connect()?;
    let (vid, header) = open(&mut sheep, &name, &selector)?;
    let span = asked.within(header.vdi_size, "Read")?;
    let mut at = span.start;
    while at < span.end {
        let len = span.piece(at, PIECE_BYTES);
        let data = sheep.read_volume(vid, at, len as u32).map_err(|error| {
            error.or_refused(|reason| format!("Failed to read at offset {at}: {reason}\nFailed to read VDI"))
        })?;
        context.out.write_all(&data)?;
        at += len;
    }
    Ok(())
}
