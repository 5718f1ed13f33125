//! `dog vdi import [-f FORMAT] FILE NAME`: the image in a file becomes the contents of a volume.
//!
//! The volume is made unless it exists; if the import fails a new one is deleted again. An existing one must be large enough and
//! reads as zeros behind the image afterwards, so that nothing of its old contents shows. Of a raw image only the parts
//! that are not zero are sent.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use proto::Vid;
use proto::inode::{SHIFT_MAX, is_hyper};
use rustix::fs::SeekFrom as Part;

use super::image::{self, Format};
use super::names::{create_failure, name_at, open, shown};
use super::ranges::{self, Kind};
use super::span::Span;
use crate::command::{Action, Command, option};
use crate::context::{Context, notice};
use crate::failure::{Failure, Outcome, reason};
use crate::getopt::Parsed;
use crate::sheep::{CallError, Selector, Sheep};
use crate::terminal::Progress;
use crate::vm;

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "import",
    summary: "create or overwrite an image from a file",
    args: "<file> <vdiname>",
    args_min: 2,
    args_max: 2,
    options: &[
        option::FORMAT,
        option::SOCKET,
        option::NBD,
        option::ADDRESS,
        option::PORT,
        option::HELP,
        option::TIME,
    ],
    needs_nodes: true,
    check: |parsed| image::format(parsed).map(drop),
    action: Action::Run(run),
    notes: "An image that exists must be large enough and not in use. It reads as zeros behind what is imported.",
};

/// Bytes that one request lets go of: a second's work at most, so that progress is seen.
const DISCARD_BYTES: u64 = 1 << 30;

/// Where the image goes.
struct Place {
    vid: Vid,
    size: u64,
    /// Everything reads as zeros.
    is_new: bool,
}

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let path = image::path_of(&parsed.positionals[0]);
    let name = name_at(parsed, 1)?;
    let mut sheep = context.connect()?;
    match image::format(parsed)? {
        Format::Raw => {
            let (file, size) = open_raw(&path, parsed)?;
            let place = find_place(context, &mut sheep, &name, &path, size)?;
            let moved = write_raw(context, &mut sheep, &file, size, &place)
                .and_then(|()| clear_rest(&mut sheep, &place, size));
            settle(&mut sheep, &place, &name, moved)
        }
        Format::Other(format) => {
            let nbd = image::find_nbd(context, parsed, &mut sheep)?;
            let absolute = std::path::absolute(&path).map_err(|error| unreadable(&path, &error))?;
            let source = image::file_for_qemu(&absolute, &format)?;
            let target = image::vdi_for_qemu(&nbd, &name)?;
            let size = image::virtual_size(&source, &path)?;
            let place = find_place(context, &mut sheep, &name, &path, size)?;
            let is_zero = place.is_new.then_some("--target-is-zero").map(OsStr::new);
            let args = ["-n", "-O", "raw"].map(OsStr::new).into_iter().chain(is_zero);
            let args: Vec<&OsStr> = args.chain([source.as_ref(), target.as_ref()]).collect();
            let moved = image::convert(&args, context.is_terminal)
                .and_then(|()| clear_rest(&mut sheep, &place, size));
            settle(&mut sheep, &place, &name, moved)
        }
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::refused(format!("Failed to read {}: {}", path.display(), reason(error)))
}

/// A file or a device. One that is clearly something else than raw is refused unless raw was asked for by name.
fn open_raw(path: &Path, parsed: &Parsed) -> Outcome<(File, u64)> {
    let mut file = File::open(path).map_err(|error| unreadable(path, &error))?;
    let mut begin = [0; 16];
    let got = image::read_begin(&mut file, &mut begin).map_err(|error| unreadable(path, &error))?;
    if !parsed.has("format")
        && let Some(format) = image::guess(&begin[..got])
    {
        return Err(Failure::refused(format!(
            "{} looks like {format}: give -f {format}, or -f raw to import its bytes as they are",
            path.display()
        )));
    }
    let size = file.seek(SeekFrom::End(0)).map_err(|error| unreadable(path, &error))?;
    Ok((file, size))
}

fn find_place(context: &Context, sheep: &mut Sheep, name: &[u8], path: &Path, size: u64) -> Outcome<Place> {
    match sheep.lookup(name, &Selector::default()) {
        Ok(_) => {}
        Err(CallError::Broken(failure)) => return Err(failure),
        Err(_) => {
            let hyper = is_hyper(size, sheep.default_shift()?.min(SHIFT_MAX));
            let vid = sheep
                .create(name, size, None, None, hyper)
                .map_err(|error| create_failure(sheep, name, error))?;
            return Ok(Place { vid, size, is_new: true });
        }
    }
    let (vid, header) = open(sheep, name, &Selector::default())?;
    if header.vdi_size < size {
        return Err(Failure::refused(format!(
            "Failed to import {}: it has {size} bytes, VDI {} only {}; nothing was changed",
            path.display(),
            shown(name),
            header.vdi_size
        )));
    }
    // Its blocks would change under whoever uses it.
    let info = sheep.vdis()?.into_iter().find(|info| info.vid == vid);
    let holders = info.map_or(Vec::new(), |info| vm::list::holders(context, &info));
    if !holders.is_empty() {
        return Err(Failure::refused(format!(
            "Failed to import {}: VDI {} is in use through {}; nothing was changed",
            path.display(),
            shown(name),
            holders.join(", ")
        )));
    }
    Ok(Place { vid, size: header.vdi_size, is_new: false })
}

/// A new VDI that has only a part of the image is of no use.
fn settle(sheep: &mut Sheep, place: &Place, name: &[u8], moved: Outcome) -> Outcome {
    if moved.is_err() && place.is_new {
        if let Err(error) = sheep.delete_vid(place.vid) {
            notice(&format!(
                "Failed to remove the incomplete VDI {}: {}",
                shown(name),
                Failure::from(error).message
            ));
        }
    } else if moved.is_err() {
        notice(&format!("VDI {} may have a part of the image only", shown(name)));
    }
    moved
}

fn write_raw(context: &mut Context, sheep: &mut Sheep, file: &File, size: u64, place: &Place) -> Outcome {
    let mut progress = Progress::new(size, context.is_terminal);
    let mut at = 0;
    while at < size {
        let data = next_data(file, Span { start: at, end: size });
        zero(sheep, place, Span { start: at, end: data.start })?;
        progress.advance(data.start - at, &mut context.out)?;
        for (offset, len) in ranges::cut(data) {
            write_piece(sheep, file, place, offset, len)?;
            progress.advance(len, &mut context.out)?;
        }
        at = data.end;
    }
    Ok(())
}

/// The first part of the file that is no hole; an empty one at the end if there is none. Where holes cannot be told, there are
/// none.
fn next_data(file: &File, within: Span) -> Span {
    let start = match rustix::fs::seek(file, Part::Data(within.start)) {
        Ok(start) => start.clamp(within.start, within.end),
        Err(rustix::io::Errno::NXIO) => within.end,
        Err(_) => return within,
    };
    if start == within.end {
        return Span { start, end: start };
    }
    let end = match rustix::fs::seek(file, Part::Hole(start)) {
        Ok(end) if end > start => end.min(within.end),
        // A file that changes meanwhile must not keep us at one place.
        _ => within.end,
    };
    Span { start, end }
}

fn write_piece(sheep: &mut Sheep, file: &File, place: &Place, offset: u64, len: u64) -> Outcome {
    let mut data = vec![0; len as usize];
    file.read_exact_at(&mut data, offset).map_err(|error| {
        Failure::refused(format!("Failed to read the image at offset {offset}: {}", reason(&error)))
    })?;
    let data = Bytes::from(data);
    for (range, kind) in ranges::runs(&data, None) {
        let at = offset + range.start as u64;
        match kind {
            Kind::Data => sheep.write_volume(place.vid, at, data.slice(range), false).map_err(|error| {
                error.or_refused(|reason| {
                    format!("Failed to write at offset {at}: {reason}\nFailed to write VDI")
                })
            })?,
            _ => zero(sheep, place, Span { start: at, end: offset + range.end as u64 })?,
        }
    }
    Ok(())
}

/// Behind the image nothing of the old contents stays.
fn clear_rest(sheep: &mut Sheep, place: &Place, size: u64) -> Outcome {
    zero(sheep, place, Span { start: size, end: place.size })
}

fn zero(sheep: &mut Sheep, place: &Place, span: Span) -> Outcome {
    if place.is_new {
        return Ok(());
    }
    let mut at = span.start;
    while at < span.end {
        let len = span.piece(at, DISCARD_BYTES);
        sheep.discard(place.vid, at, len).map_err(|error| {
            error
                .or_refused(|reason| format!("Failed to clear at offset {at}: {reason}\nFailed to write VDI"))
        })?;
        at += len;
    }
    Ok(())
}
