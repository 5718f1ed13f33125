//! `dog vdi backup [-F SNAP1] -s SNAP2 [-o FILE] NAME`: what a snapshot holds, or what makes it differ from another one, as
//! a stream for `vdi restore`.
//!
//! The sheep say which objects may differ; those are read and compared, so the stream has only blocks that do. A stream to a
//! file can go on after an interruption: what is there is verified record by record, cut behind the last good one and
//! continued. The streams of an uninterrupted and a continued backup are the same, byte for byte.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use proto::Vid;
use proto::inode::InodeHeader;

use super::names::{name_at, open, required_selector, selector, selector_of, shown};
use super::ranges::{self, Kind};
use super::span::Span;
use super::stream::reader::{Reader, StreamError};
use super::stream::writer::Writer;
use super::stream::{HEADER_BYTES, Header, Identity, Position};
use crate::command::{Action, Command, option};
use crate::context::{Context, notice};
use crate::failure::{Failure, Outcome, reason};
use crate::getopt::Parsed;
use crate::sheep::{CallError, Selector, Sheep};
use crate::terminal::Progress;

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "backup",
    summary: "write a snapshot, or what two differ in, as a stream",
    args: "<vdiname>",
    args_min: 1,
    args_max: 1,
    options: &[
        option::SNAPSHOT,
        option::FROM,
        option::OUTPUT,
        option::ADDRESS,
        option::PORT,
        option::HELP,
        option::TIME,
    ],
    needs_nodes: true,
    check: |parsed| selector(parsed).and_then(|_| selector_of(parsed, "from")).map(drop),
    action: Action::Run(run),
    notes: "Without -F the backup is complete by itself. Without -o it goes to stdout.",
};

/// The snapshots that are compared.
struct Pair {
    target: Vid,
    /// With its size; nothing for a complete backup, which is compared with zeros.
    source: Option<(Vid, u64)>,
}

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let selector = required_selector(parsed)?;
    let from = selector_of(parsed, "from")?;
    let name = name_at(parsed, 0)?;
    let file = parsed.value("output").map(|path| Path::new(OsStr::from_bytes(path)).to_owned());
    if file.is_none() && io::stdout().is_terminal() {
        return Err(Failure::refused(
            "A backup is not for a terminal: redirect stdout, or name a file with -o",
        ));
    }
    let mut sheep = context.connect()?;
    let (target, target_header) = open(&mut sheep, &name, &selector)?;
    let source = match from {
        working if working == Selector::default() => None,
        from => Some(open(&mut sheep, &name, &from)?),
    };
    if source.as_ref().is_some_and(|(_, header)| header.vdi_size > target_header.vdi_size) {
        return Err(Failure::refused(format!(
            "Failed to back up VDI {}: the snapshot to start from is larger than the other one",
            shown(&name)
        )));
    }
    let header = Header {
        name: name.clone(),
        block_size_shift: target_header.block_size_shift,
        target: identity(target, &target_header),
        source: source.as_ref().map(|(vid, header)| identity(*vid, header)),
    };
    let pair = Pair { target, source: source.map(|(vid, header)| (vid, header.vdi_size)) };
    match file {
        None => {
            let writer = Writer::begin(&mut context.out, &header)?;
            write_all(&mut sheep, &pair, header.target.size, writer, &mut |_| Ok(())).map(drop)
        }
        Some(path) => write_file(context, &mut sheep, &pair, &header, &path),
    }
}

fn identity(vid: Vid, header: &InodeHeader) -> Identity {
    Identity {
        vid,
        snap_id: header.snap_id,
        create_time: header.create_time,
        snap_ctime: header.snap_ctime,
        size: header.vdi_size,
        tag: header.tag.clone(),
    }
}

fn write_file(
    context: &mut Context,
    sheep: &mut Sheep,
    pair: &Pair,
    header: &Header,
    path: &Path,
) -> Outcome {
    let failed =
        |error: io::Error| Failure::system(format!("Failed to write {}: {}", path.display(), reason(&error)));
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
    let writer = match inspect(&file, header, path)? {
        Found::Complete => {
            notice(&format!("{} is complete already", path.display()));
            return Ok(());
        }
        Found::Nothing => {
            file.set_len(0).map_err(failed)?;
            file.rewind().map_err(failed)?;
            Writer::begin(BufWriter::with_capacity(1 << 20, &file), header).map_err(failed)?
        }
        Found::Part(position) => {
            notice(&format!("Going on with {}: {} records are there", path.display(), position.records));
            file.set_len(position.stream_bytes).map_err(failed)?;
            file.seek(SeekFrom::Start(position.stream_bytes)).map_err(failed)?;
            Writer::resume(BufWriter::with_capacity(1 << 20, &file), *position)
        }
    };
    let size = header.target.size;
    let mut progress = Progress::new(size, context.is_terminal);
    let mut shown = 0;
    let out = &mut context.out;
    let mut tell = |at: u64| {
        let step = at - shown;
        shown = at;
        progress.advance(step, out)
    };
    write_all(sheep, pair, size, writer, &mut tell)?;
    file.sync_all().map_err(failed)
}

/// What a file has of a stream.
enum Found {
    Nothing,
    Part(Box<Position>),
    Complete,
}

/// A file with anything else in it is not touched.
fn inspect(file: &File, header: &Header, path: &Path) -> Outcome<Found> {
    let other = || {
        Failure::refused(format!(
            "{} holds something else than this backup; it was left as it is",
            path.display()
        ))
    };
    let mut begin = Vec::new();
    let unreadable =
        |error: io::Error| Failure::system(format!("Failed to read {}: {}", path.display(), reason(&error)));
    let mut input = BufReader::with_capacity(1 << 20, file);
    input.by_ref().take(HEADER_BYTES as u64).read_to_end(&mut begin).map_err(unreadable)?;
    if !header.encode().starts_with(&begin) {
        return Err(other());
    }
    if begin.len() < HEADER_BYTES {
        return Ok(Found::Nothing);
    }
    let mut reader = Reader::begin(begin.chain(input)).map_err(|_| other())?;
    loop {
        match reader.next_change() {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(Found::Complete),
            Err(StreamError::Unreadable(why)) => {
                return Err(Failure::system(format!("Failed to read {}: {why}", path.display())));
            }
            Err(_) => return Ok(Found::Part(Box::new(reader.into_position()))),
        }
    }
}

/// Everything from where the writer stands. `tell` hears how far it has come.
fn write_all<W: Write>(
    sheep: &mut Sheep,
    pair: &Pair,
    size: u64,
    mut writer: Writer<W>,
    tell: &mut dyn FnMut(u64) -> Outcome,
) -> Outcome<W> {
    let rest = Span { start: writer.offset().min(size), end: size };
    let spans = match pair.source {
        None => ranges::allocated(sheep, pair.target, rest),
        Some((source, _)) => ranges::changed(sheep, pair.target, source, rest),
    };
    let spans = spans.map_err(|error| {
        error.or_refused(|reason| format!("Failed to find what has to be saved: {reason}"))
    })?;
    for (at, len) in ranges::cut_all(&spans) {
        let failed = |error: CallError| {
            error.or_refused(|reason| format!("Failed to read at offset {at}: {reason}\nFailed to read VDI"))
        };
        let data = sheep.read_volume(pair.target, at, len as u32).map_err(failed)?;
        let before = match pair.source {
            None => None,
            Some((source, source_size)) => {
                Some(read_padded(sheep, source, source_size, at, len).map_err(failed)?)
            }
        };
        for (range, kind) in ranges::runs(&data, before.as_deref()) {
            let offset = at + range.start as u64;
            let source = before.as_ref().map(|before| &before[range.clone()]);
            match kind {
                Kind::Same => {}
                Kind::Zeros => writer.zeros(offset, range.len() as u64, source)?,
                Kind::Data => writer.data(offset, &data[range.clone()], source)?,
            }
        }
        tell(at + len)?;
    }
    let out = writer.finish()?;
    tell(size)?;
    Ok(out)
}

/// Behind the end of a VDI there are zeros, as there will be once it is made larger.
pub(super) fn read_padded(
    sheep: &mut Sheep,
    vid: Vid,
    vdi_size: u64,
    offset: u64,
    len: u64,
) -> Result<Vec<u8>, CallError> {
    let there = vdi_size.saturating_sub(offset).min(len);
    let mut data = if there > 0 { sheep.read_volume(vid, offset, there as u32)? } else { Vec::new() };
    data.resize(len as usize, 0);
    Ok(data)
}
