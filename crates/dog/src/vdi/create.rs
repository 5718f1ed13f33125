//! `dog vdi create [-P] [-y] [-c COPIES] [-z SHIFT] NAME SIZE`: makes a volume.
//!
//! Silent on success; with `-v`:
//!
//! ```text
//! VDI ID of newly created VDI: 7c2b25
//! ```

use std::collections::BTreeSet;

use bytes::Bytes;
use proto::client::NodeInfo;
use proto::inode::{SHIFT_DEFAULT, SHIFT_MAX, SHIFT_MIN, max_hyper_bytes, max_vdi_bytes};
use proto::{CopyPolicy, Vid};

use super::PIECE_BYTES;
use super::names::{create_failure, lossy, name_at};
use super::span::{Span, parse_size};
use crate::command::{Action, Command, option};
use crate::context::{Context, notice};
use crate::failure::{Failure, Outcome};
use crate::getopt::Parsed;
use crate::redundancy;
use crate::sheep::Sheep;
use crate::size;
use crate::terminal::Progress;

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "create",
    summary: "create an image",
    args: "<vdiname> <size>",
    args_min: 2,
    args_max: 2,
    options: &[
        option::PREALLOC,
        option::HYPER,
        option::COPIES,
        option::ADDRESS,
        option::PORT,
        option::HELP,
        option::RAW,
        option::VERBOSE,
        option::SHIFT,
        option::TIME,
    ],
    needs_nodes: true,
    check: |parsed| Options::parse(parsed).map(drop),
    action: Action::Run(run),
    notes: "A size is a decimal number with at most one suffix: B, K, M, G, T or P.",
};

struct Options {
    policy: Option<CopyPolicy>,
    shift: Option<u8>,
    prealloc: bool,
    /// May have more objects than old clients can address.
    hyper: bool,
}

/// A volume to be made. What is `None` is as the cluster has it.
pub struct Wanted {
    pub size: u64,
    pub policy: Option<CopyPolicy>,
    pub shift: Option<u8>,
    pub prealloc: bool,
    /// May have more objects than old clients can address.
    pub hyper: bool,
}

impl Options {
    fn parse(parsed: &Parsed) -> Outcome<Options> {
        let hyper = parsed.has("hyper");
        if hyper && parsed.has("block_size_shift") {
            return Err(Failure::refused(
                "Hyper volumes (-y) have objects of 4 MiB: -z cannot be given as well",
            ));
        }
        let policy = parsed.value("copies").map(redundancy::parse_replicated).transpose()?;
        let shift = parsed.value("block_size_shift").map(parse_shift).transpose()?;
        Ok(Options { policy, shift, prealloc: parsed.has("prealloc"), hyper })
    }
}

/// The object size of `-z`: 20 to 31.
pub fn parse_shift(text: &[u8]) -> Outcome<u8> {
    let shown = lossy(text);
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    // Any number of more digits than a u8 has is too large.
    let number = is_number.then(|| shown.parse::<u8>().unwrap_or(u8::MAX));
    match number {
        None => Err(Failure::refused(format!("Invalid block size shift '{shown}': a number is expected"))),
        Some(shift) if shift > SHIFT_MAX => Err(Failure::refused(format!(
            "Block size shift {shown} is too large: at most {SHIFT_MAX} (objects of 2 GiB)"
        ))),
        Some(shift) if shift < SHIFT_MIN => Err(Failure::refused(format!(
            "Block size shift {shown} is too small: at least {SHIFT_MIN} (objects of 1 MiB)"
        ))),
        Some(shift) => Ok(shift),
    }
}

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let options = Options::parse(parsed)?;
    let name = name_at(parsed, 0)?;
    let vdi_size = parse_size(&parsed.positionals[1])?;
    let mut sheep = context.connect()?;
    let Options { policy, shift, prealloc, hyper } = options;
    if let Some(policy) = policy {
        warn_of_few_zones(context, policy);
    }
    let vid = make(context, &mut sheep, &name, &Wanted { size: vdi_size, policy, shift, prealloc, hyper })?;
    if context.verbose {
        let text = render(vid, context.is_raw());
        context.print(&text)?;
    }
    Ok(())
}

/// It is made all the same: the missing copies come with the zones.
fn warn_of_few_zones(context: &Context, policy: CopyPolicy) {
    let zones = zone_count(&context.nodes);
    if usize::from(policy.width()) > zones {
        notice(&format!(
            "Note: {policy} copies are wanted, and there are {zones} zones with disks: fewer copies are written until there \
             are more"
        ));
    }
}

/// Zones that can hold a copy.
pub fn zone_count(nodes: &[NodeInfo]) -> usize {
    nodes.iter().filter(|node| node.space_bytes > 0).map(|node| node.zone).collect::<BTreeSet<_>>().len()
}

/// Makes it, and allocates it if that is wanted.
pub fn make(context: &mut Context, sheep: &mut Sheep, name: &[u8], wanted: &Wanted) -> Outcome<Vid> {
    check_size(wanted, sheep)?;
    let vid = sheep
        .create(name, wanted.size, wanted.policy, wanted.shift, wanted.hyper)
        .map_err(|error| create_failure(sheep, name, error))?;
    if wanted.prealloc {
        preallocate(context, sheep, vid, wanted.size)?;
    }
    Ok(vid)
}

/// A cluster that was never formatted says so itself when the VDI is created.
fn check_size(wanted: &Wanted, sheep: &mut Sheep) -> Outcome {
    let shift = match wanted.shift {
        _ if wanted.hyper => SHIFT_DEFAULT,
        Some(shift) => shift,
        None => sheep.default_shift()?,
    };
    if !(SHIFT_MIN..=SHIFT_MAX).contains(&shift) {
        return Ok(());
    }
    let (max_size, more) = if wanted.hyper {
        (max_hyper_bytes(shift), "nothing allows more")
    } else {
        (max_vdi_bytes(shift), "larger objects (-z) or a hyper volume (-y) allow more")
    };
    if wanted.size <= max_size {
        return Ok(());
    }
    Err(Failure::bad_value(format!(
        "VDI size is too large: at most {} with objects of {}; {more}",
        size::human(max_size),
        size::human(1 << shift)
    )))
}

/// Writing zeros is what allocates: the sheep keeps what it is given.
fn preallocate(context: &mut Context, sheep: &mut Sheep, vid: Vid, vdi_size: u64) -> Outcome {
    let zeros = Bytes::from(vec![0; PIECE_BYTES as usize]);
    let mut progress = Progress::new(vdi_size, context.is_terminal);
    let span = Span { start: 0, end: vdi_size };
    let mut at = 0;
    while at < vdi_size {
        let len = span.piece(at, PIECE_BYTES);
        sheep.write_volume(vid, at, zeros.slice(..len as usize), false).map_err(|error| {
            error.or_refused(|reason| format!("Failed to preallocate at offset {at}: {reason}"))
        })?;
        progress.advance(len, &mut context.out)?;
        at += len;
    }
    Ok(())
}

fn render(vid: Vid, raw: bool) -> String {
    if raw { format!("{vid}\n") } else { format!("VDI ID of newly created VDI: {vid}\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_id_is_shown_as_programs_expect() {
        assert_eq!(render(Vid(0x7c2b25), false), "VDI ID of newly created VDI: 7c2b25\n");
        assert_eq!(render(Vid(0x316b4), true), "316b4\n");
    }

    #[test]
    fn object_sizes_outside_the_range_are_refused() {
        assert_eq!(parse_shift(b"20").unwrap(), 20);
        assert_eq!(parse_shift(b"31").unwrap(), 31);
        for (text, word) in [
            ("19", "at least 20"),
            ("32", "at most 31"),
            ("1000", "at most 31"),
            ("4M", "number"),
            ("", "number"),
        ] {
            let failure = parse_shift(text.as_bytes()).unwrap_err();
            assert_eq!(failure.code, 1);
            assert!(failure.message.contains(word), "{}", failure.message);
        }
    }
}
