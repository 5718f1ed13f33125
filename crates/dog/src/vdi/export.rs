//! `dog vdi export [-s SNAP] [-f FORMAT] NAME FILE`: a volume or snapshot as an image in a file.
//!
//! A raw image is sparse: only what the sheep call allocated is read, and only blocks that are not zero are written. The file
//! gets its name when it is complete; until then it is called `FILE.partial`. So a file of that name is always a whole image,
//! and one that was there before is replaced, not overwritten.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proto::Vid;

use super::image::{self, Format};
use super::names::{name_at, open, selector, shown};
use super::ranges::{self, Kind};
use super::span::Span;
use crate::command::{Action, Command, option};
use crate::context::Context;
use crate::failure::{Failure, Outcome, reason};
use crate::getopt::Parsed;
use crate::sheep::{Selector, Sheep};
use crate::terminal::Progress;

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "export",
    summary: "write an image to a file",
    args: "<vdiname> <file>",
    args_min: 2,
    args_max: 2,
    options: &[
        option::SNAPSHOT,
        option::FORMAT,
        option::SOCKET,
        option::NBD,
        option::ADDRESS,
        option::PORT,
        option::HELP,
        option::TIME,
    ],
    needs_nodes: true,
    check: |parsed| selector(parsed).and_then(|_| image::format(parsed)).map(drop),
    action: Action::Run(run),
    notes: "The file gets its name when it is complete. Without -s the image should not be in use.",
};

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let selector = selector(parsed)?;
    let name = name_at(parsed, 0)?;
    let path = image::path_of(&parsed.positionals[1]);
    check_place(&path)?;
    let mut sheep = context.connect()?;
    let (vid, header) = open(&mut sheep, &name, &selector)?;
    let partial = partial_name(&path);
    let written = match image::format(parsed)? {
        Format::Raw => write_raw(context, &mut sheep, vid, header.vdi_size, &partial),
        Format::Other(format) => {
            let snap_id = (selector != Selector::default()).then_some(header.snap_id);
            let export = export_name(&mut sheep, &name, snap_id)?;
            let vdi = image::vdi_for_qemu(&image::find_nbd(context, parsed, &mut sheep)?, &export)?;
            // qemu-img looks for a protocol in a name that does not begin with a slash.
            let partial = std::path::absolute(&partial).map_err(|error| failed(&path, &error))?;
            let args = ["-O".as_ref(), OsStr::new(&format), vdi.as_ref(), partial.as_os_str()];
            image::convert(&args, context.is_terminal)
        }
    };
    let finished = written.and_then(|()| fs::rename(&partial, &path).map_err(|error| failed(&path, &error)));
    if finished.is_err() {
        let _ = fs::remove_file(&partial);
    }
    finished
}

/// A device cannot be replaced, so its old contents would stay where the volume has holes.
fn check_place(path: &Path) -> Outcome {
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err(Failure::refused(format!(
            "{} is no ordinary file; for a device or a pipe there is dog vdi read",
            path.display()
        ))),
        _ => Ok(()),
    }
}

fn partial_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".partial");
    PathBuf::from(name)
}

/// A snapshot is `NAME:ID` for NBD, unless there is a VDI of that very name.
fn export_name(sheep: &mut Sheep, name: &[u8], snap_id: Option<u32>) -> Outcome<Vec<u8>> {
    let Some(snap_id) = snap_id else { return Ok(name.to_vec()) };
    let export = [name, format!(":{snap_id}").as_bytes()].concat();
    if sheep.vdis()?.iter().any(|info| info.name == export && info.snap_ctime == 0) {
        return Err(Failure::refused(format!(
            "There is a VDI named {}, which hides the snapshot from NBD: export it raw",
            shown(&export)
        )));
    }
    Ok(export)
}

fn write_raw(context: &mut Context, sheep: &mut Sheep, vid: Vid, vdi_size: u64, path: &Path) -> Outcome {
    let failed = |error: io::Error| failed(path, &error);
    let allocated = ranges::allocated(sheep, vid, Span { start: 0, end: vdi_size })
        .map_err(|error| error.or_refused(|reason| format!("Failed to read VDI: {reason}")))?;
    let file = File::create(path).map_err(failed)?;
    file.set_len(vdi_size).map_err(failed)?;
    let mut progress = Progress::new(allocated.iter().map(Span::len).sum(), context.is_terminal);
    for (at, len) in ranges::cut_all(&allocated) {
        let data = sheep.read_volume(vid, at, len as u32).map_err(|error| {
            error.or_refused(|reason| format!("Failed to read at offset {at}: {reason}\nFailed to read VDI"))
        })?;
        for (range, kind) in ranges::runs(&data, None) {
            if kind == Kind::Data {
                let offset = at + range.start as u64;
                file.write_all_at(&data[range], offset).map_err(failed)?;
            }
        }
        progress.advance(len, &mut context.out)?;
    }
    file.sync_all().map_err(failed)
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::system(format!("Failed to write {}: {}", path.display(), reason(error)))
}
