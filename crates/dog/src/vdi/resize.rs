//! `dog vdi resize [-y] NAME SIZE`: makes a working VDI larger. Silent on success.
//!
//! With `-y` beyond what clients of the native protocol can address; from then on they cannot open it any more.

use proto::Vid;
use proto::inode::{InodeHeader, SHIFT_MAX, is_hyper, max_hyper_bytes, max_vdi_bytes};

use super::names::{name_at, open, shown};
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
    args_max: 2,
    options: &[option::HYPER, option::ADDRESS, option::PORT, option::HELP, option::TIME],
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
    grow(&mut sheep, &name, vid, &header, new_size, parsed.has("hyper"))
}

/// `header` is the one of `vid`, or of what it was cloned from. `hyper`: it may have more objects than old clients can address.
pub fn grow(
    sheep: &mut Sheep,
    name: &[u8],
    vid: Vid,
    header: &InodeHeader,
    new_size: u64,
    hyper: bool,
) -> Outcome {
    check_size(header, new_size, hyper)?;
    sheep
        .resize(vid, new_size)
        .map_err(|error| error.or_refused(|reason| format!("Failed to resize VDI {}: {reason}", shown(name))))
}

/// Cinder matches the beginnings of both messages.
fn check_size(header: &InodeHeader, new_size: u64, hyper: bool) -> Outcome {
    let (old_size, shift) = (header.vdi_size, header.block_size_shift.min(SHIFT_MAX));
    let ordinary = !hyper && !is_hyper(old_size, shift);
    let max_size = if ordinary { max_vdi_bytes(shift) } else { max_hyper_bytes(shift) };
    if new_size > max_size {
        let hint =
            "\nWith -y it can become larger; clients of the native protocol cannot open it any more then";
        return Err(Failure::bad_value(format!(
            "New VDI size is too large. This volume's max size is {max_size}{}",
            if ordinary && new_size <= max_hyper_bytes(shift) { hint } else { "" }
        )));
    }
    if new_size < old_size {
        return Err(Failure::bad_value("Shrinking VDIs is not implemented"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(old_size: u64, new_size: u64, hyper: bool) -> Outcome {
        let mut bytes = [0; proto::inode::HEADER_BYTES];
        bytes[536..544].copy_from_slice(&old_size.to_le_bytes());
        bytes[555] = 22;
        check_size(&InodeHeader::decode(&bytes).unwrap(), new_size, hyper)
    }

    #[test]
    fn only_sizes_from_the_present_one_to_the_limit_are_accepted() {
        const LIMIT: u64 = 4 << 40;
        assert_eq!(check(10, 10, false), Ok(()));
        assert_eq!(check(10, LIMIT, false), Ok(()));
        let shrink = check(10, 9, false).unwrap_err();
        assert_eq!((shrink.code, shrink.message.as_str()), (64, "Shrinking VDIs is not implemented"));
        let grow = check(10, LIMIT + 1, false).unwrap_err().message;
        assert!(grow.starts_with("New VDI size is too large. This volume's max size is 4398046511104\n"));
        assert_eq!(check(10, LIMIT + 1, true), Ok(()));
        assert_eq!(check(LIMIT + 1, 16 << 50, false), Ok(()), "it is one already");
        let beyond = check(10, (16 << 50) + 1, true).unwrap_err().message;
        assert_eq!(beyond, "New VDI size is too large. This volume's max size is 18014398509481984");
    }
}
