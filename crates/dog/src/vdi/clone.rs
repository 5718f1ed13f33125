//! `dog vdi clone -s SNAP [-P] [-n] SRC DST`: a new volume on top of a snapshot.
//!
//! With `-P` its objects are copied now, not when they are first written to; with `-n` it shares nothing with the snapshot
//! from the start. Silent on success; with `-v`:
//!
//! ```text
//! VDI ID of newly created clone: 45a50
//! ```

use proto::Vid;
use proto::inode::{InodeHeader, SHIFT_MAX, is_hyper};

use super::names::{create_failure, name_at, open, selector};
use super::ranges;
use super::span::Span;
use crate::command::{Action, Command, option};
use crate::context::{Context, notice};
use crate::failure::{Failure, Outcome};
use crate::getopt::Parsed;
use crate::sheep::{Selector, Sheep};
use crate::terminal::Progress;

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "clone",
    summary: "clone an image from a snapshot",
    args: "<src vdi> <dst vdi>",
    args_min: 2,
    args_max: 2,
    options: &[
        option::SNAPSHOT,
        option::COPY_ALL,
        option::NO_SHARE,
        option::ADDRESS,
        option::PORT,
        option::HELP,
        option::RAW,
        option::VERBOSE,
        option::TIME,
    ],
    needs_nodes: true,
    check: |parsed| selector(parsed).map(drop),
    action: Action::Run(run),
    notes: "",
};

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let selector = selector(parsed)?;
    if selector == Selector::default() {
        return Err(Failure::usage("Only snapshot VDIs can be cloned\nPlease specify the '-s' option"));
    }
    let source_name = name_at(parsed, 0)?;
    let name = name_at(parsed, 1)?;
    let mut sheep = context.connect()?;
    let (base, header) = open(&mut sheep, &source_name, &selector)?;
    let shares = !parsed.has("no-share");
    let vid = create(&mut sheep, base, &header, &name, shares)?;
    if !shares || parsed.has("prealloc") {
        copy(context, &mut sheep, base, vid, header.vdi_size).inspect_err(|_| {
            // Half a copy is of no use to anybody.
            if let Err(error) = sheep.delete_vid(vid) {
                notice(&format!("Failed to remove the incomplete clone: {}", Failure::from(error).message));
            }
        })?;
    }
    if context.verbose {
        let text = render(vid, context.is_raw());
        context.print(&text)?;
    }
    Ok(())
}

fn create(sheep: &mut Sheep, base: Vid, header: &InodeHeader, name: &[u8], shares: bool) -> Outcome<Vid> {
    let created = if shares {
        sheep.clone_vdi(base, name).map(|info| info.vid)
    } else {
        let (size, shift) = (header.vdi_size, header.block_size_shift);
        sheep.create(name, size, Some(header.policy), Some(shift), is_hyper(size, shift.min(SHIFT_MAX)))
    };
    created.map_err(|error| create_failure(sheep, name, error))
}

/// Writing is what makes an object the VDI's own.
pub fn copy(context: &mut Context, sheep: &mut Sheep, from: Vid, to: Vid, vdi_size: u64) -> Outcome {
    let allocated = ranges::allocated(sheep, from, Span { start: 0, end: vdi_size })?;
    let mut progress = Progress::new(allocated.iter().map(Span::len).sum(), context.is_terminal);
    for (at, len) in ranges::cut_all(&allocated) {
        let failed = |error: crate::sheep::CallError| {
            error.or_refused(|reason| format!("Failed to copy at offset {at}: {reason}"))
        };
        let data = sheep.read_volume(from, at, len as u32).map_err(failed)?;
        sheep.write_volume(to, at, data.into(), false).map_err(failed)?;
        progress.advance(len, &mut context.out)?;
    }
    Ok(())
}

fn render(vid: Vid, raw: bool) -> String {
    if raw { format!("{vid}\n") } else { format!("VDI ID of newly created clone: {vid}\n") }
}
