//! `dog vdi delete [-s SNAP] NAME...`: removes working VDIs, or with `-s` one snapshot of each.
//!
//! Silent on success. A refusal is told on stderr and, of a single VDI, the exit code stays 0, because Cinder and others delete
//! what may be gone already; only a lost connection counts as failure, and a VDI that a client has open (without `-f`). Of several, which
//! the original did not know, it is said which were deleted and which were not, and any that was not makes the exit code 1. The sheep frees the objects before it
//! answers, so there is nothing to pace: `-B` and `-I` are checked and otherwise ignored. `-m N` discards up to N
//! objects and keeps the VDI, for those who spread a large deletion over time.

use proto::Vid;

use super::names::{names, open, open_failure, selector, shown};
use super::table;
use crate::command::{Action, Command, option};
use crate::context::{Context, notice};
use crate::failure::{Failure, Outcome};
use crate::getopt::Parsed;
use crate::sheep::{Call, CallError, Selector, Sheep};
use crate::vm;

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "delete",
    summary: "delete an image",
    args: "<vdiname>...",
    args_min: 1,
    args_max: usize::MAX,
    options: &[
        option::FORCE,
        option::SNAPSHOT,
        option::ADDRESS,
        option::PORT,
        option::HELP,
        option::TIME,
        option::BATCH,
        option::INTERVAL,
        option::MAX_RECLAIM,
    ],
    needs_nodes: true,
    check: |parsed| selector(parsed).and_then(|_| check_pacing(parsed)),
    action: Action::Run(run),
    notes: "An image that a client has open is deleted with -f only. Exit code 0 also if the one image that is named does not exist; of\n\
            several, 1 if any was not deleted. A snapshot is named by -s.\n\
            -B and -I are taken for the sake of old scripts: the sheep frees the objects without holding others up.",
};

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    // A variable of a script that was never set must not cost the image.
    if parsed.value("snapshot").is_some_and(|text| text.is_empty()) {
        return Err(Failure::usage(
            "The snapshot that '-s' names has no name. To delete the image itself leave '-s' out",
        ));
    }
    let selector = selector(parsed)?;
    let discard_max = positive(parsed, "max-reclaim")?;
    let mut sheep = context.connect()?;
    let names = names(parsed)?;
    if !parsed.has("force") {
        check_unused(context, &mut sheep, &names, &selector)?;
    }
    let mut report =
        Report { what: if discard_max.is_none() { "deleted" } else { "discarded" }, ..Report::default() };
    let (mut outcome, mut left) = (Ok(()), names.iter());
    for name in left.by_ref() {
        let refused = match discard_max {
            None => told_apart(sheep.delete(name, &selector), |error| open_failure(name, &selector, error)),
            Some(objects_max) => discard(&mut sheep, name, &selector, objects_max),
        };
        match refused {
            Ok(None) => report.done.push(shown(name)),
            Ok(Some(failure)) => {
                notice(&failure.message);
                report.not_done.push(shown(name));
            }
            // Whether this one is gone nobody knows.
            Err(failure) => {
                report.unknown.push(shown(name));
                outcome = Err(failure);
                break;
            }
        }
    }
    report.not_done.extend(left.map(|name| shown(name)));
    match outcome {
        Err(failure) if names.len() == 1 => Err(Failure {
            message: format!(
                "{}\nWhether {} was {} is not known",
                failure.message,
                shown(&names[0]),
                report.what
            ),
            ..failure
        }),
        _ if names.len() == 1 => Ok(()),
        Ok(()) if report.not_done.is_empty() => Ok(()),
        Ok(()) => Err(Failure::refused(report.render())),
        Err(failure) => {
            Err(Failure { message: format!("{}\n{}", failure.message, report.render()), ..failure })
        }
    }
}

/// What has become of several VDIs.
#[derive(Default)]
struct Report {
    what: &'static str,
    done: Vec<String>,
    not_done: Vec<String>,
    /// Asked for, and not answered.
    unknown: Vec<String>,
}

impl Report {
    fn render(&self) -> String {
        let list = |names: &[String]| if names.is_empty() { "none".to_string() } else { names.join(", ") };
        let mut text =
            format!("{}: {}; not {}: {}", self.what, list(&self.done), self.what, list(&self.not_done));
        if !self.unknown.is_empty() {
            text += &format!("; not known: {}", list(&self.unknown));
        }
        text[..1].to_uppercase() + &text[1..]
    }
}

/// Before anything is deleted: what somebody has open would be gone under them. What does not exist is told later.
fn check_unused(context: &Context, sheep: &mut Sheep, names: &[Vec<u8>], selector: &Selector) -> Outcome {
    let wanted: Vec<Vid> = names.iter().filter_map(|name| sheep.lookup(name, selector).ok()).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let infos = sheep.vdis()?;
    for info in infos.iter().filter(|info| wanted.contains(&info.vid)) {
        let holders = vm::list::holders(context, info);
        if !holders.is_empty() {
            return Err(Failure::refused(format!(
                "Failed to delete VDI {}: it is in use through {}; close it there, or force with -f. Nothing was deleted",
                shown(&info.name),
                holders.join(", ")
            )));
        }
    }
    Ok(())
}

/// The failure of a refusal, for a notice; `Err` for what ends the command.
fn told_apart<T>(result: Call<T>, word: impl Fn(CallError) -> Failure) -> Outcome<Option<Failure>> {
    match result {
        Ok(_) => Ok(None),
        Err(CallError::Broken(failure)) => Err(failure),
        Err(error) => Ok(Some(word(error))),
    }
}

/// Lets go of the first objects that the VDI has.
fn discard(
    sheep: &mut Sheep,
    name: &[u8],
    selector: &Selector,
    objects_max: u64,
) -> Outcome<Option<Failure>> {
    let (vid, header) = match open(sheep, name, selector) {
        Ok(found) => found,
        Err(failure) if failure.code == crate::failure::exit::FAILURE => return Ok(Some(failure)),
        Err(failure) => return Err(failure),
    };
    let object_bytes = 1 << u32::from(header.block_size_shift).min(63);
    let entries = table::fetch(sheep, vid)?;
    for entry in entries.iter().take(usize::try_from(objects_max).unwrap_or(usize::MAX)) {
        let refused =
            told_apart(discard_object(sheep, vid, entry.index, object_bytes, header.vdi_size), |error| {
                error.or_refused(|reason| {
                    format!("Failed to discard object {} of {}: {reason}", entry.index, shown(name))
                })
            })?;
        if refused.is_some() {
            return Ok(refused);
        }
    }
    Ok(None)
}

fn discard_object(sheep: &mut Sheep, vid: Vid, index: u32, object_bytes: u64, vdi_size: u64) -> Call<()> {
    let offset = u64::from(index) * object_bytes;
    sheep.discard(vid, offset, object_bytes.min(vdi_size - offset))
}

/// Deletes what was only needed on the way. What stays is told, and does no harm.
pub(super) fn delete_unneeded(sheep: &mut Sheep, vids: &[Vid]) {
    for vid in vids {
        if let Err(error) = sheep.delete_vid(*vid) {
            notice(&format!(
                "Failed to delete VDI {vid}, which is not needed: {}",
                Failure::from(error).message
            ));
        }
    }
}

/// Values of the options that paced the original's deletions.
pub(super) fn check_pacing(parsed: &Parsed) -> Outcome {
    for option in ["nr-batched-reclamation", "reclamation-interval", "max-reclaim"] {
        positive(parsed, option)?;
    }
    Ok(())
}

fn positive(parsed: &Parsed, option: &str) -> Outcome<Option<u64>> {
    let Some(text) = parsed.text(option) else { return Ok(None) };
    let number = text.parse().ok().filter(|number| *number > 0 && text.bytes().all(|b| b.is_ascii_digit()));
    let number = number.ok_or_else(|| {
        Failure::refused(format!("Invalid value '{text}' of --{option}: a positive number is expected"))
    })?;
    Ok(Some(number))
}
