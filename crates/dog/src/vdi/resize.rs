//! `dog vdi resize NAME SIZE`: makes a working VDI larger. Silent on success.

use proto::Vid;
use proto::inode::{InodeHeader, max_vdi_bytes};

use super::names::{lossy, name_at, open};
use super::span::parse_size;
use crate::command::{Action, Command, no_values, option};
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::getopt::Parsed;
use crate::sheep::{Selector, Sheep};

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "resize",
    summary: "make an image larger",
    args: "<vdiname> <new size>",
    args_min: 2,
    options: &[option::ADDRESS, option::PORT, option::HELP, option::TIME],
    needs_nodes: true,
    check: no_values,
    action: Action::Run(run),
    notes: "",
};

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let name = name_at(parsed, 0)?;
    let new_size = parse_size(&parsed.positionals[1])?;
    let mut sheep = context.connect()?;
    let (vid, header) = open(&mut sheep, &name, &Selector::default())?;
    grow(&mut sheep, &name, vid, &header, new_size)
}

/// `header` is the one of `vid`, or of what it was cloned from.
pub fn grow(sheep: &mut Sheep, name: &[u8], vid: Vid, header: &InodeHeader, new_size: u64) -> Outcome {
    check_size(header.vdi_size, new_size, max_vdi_bytes(header.block_size_shift.min(31)))?;
    sheep
        .resize(vid, new_size)
        .map_err(|error| error.or_refused(|reason| format!("Failed to resize VDI {}: {reason}", lossy(name))))
}

/// Cinder matches the beginnings of both messages.
fn check_size(old_size: u64, new_size: u64, max_size: u64) -> Outcome {
    if new_size > max_size {
        return Err(Failure::usage(format!(
            "New VDI size is too large. This volume's max size is {max_size}"
        )));
    }
    if new_size < old_size {
        return Err(Failure::usage("Shrinking VDIs is not implemented"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sizes_from_the_present_one_to_the_limit_are_accepted() {
        assert_eq!(check_size(10, 10, 20), Ok(()));
        assert_eq!(check_size(10, 20, 20), Ok(()));
        let shrink = check_size(10, 9, 20).unwrap_err();
        assert_eq!((shrink.code, shrink.message.as_str()), (64, "Shrinking VDIs is not implemented"));
        let grow = check_size(10, 21, 20).unwrap_err();
        assert_eq!(grow.message, "New VDI size is too large. This volume's max size is 20");
    }
}
