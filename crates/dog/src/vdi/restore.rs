//! `dog vdi restore [-s SNAP] NAME < FILE`: applies a backup.
//!
//! With `-s` the difference is applied on top of that snapshot and becomes a new snapshot of the name. The working VDI stays as it is,
//! whoever uses it. A complete backup makes a new VDI, with a snapshot of what the backup holds.
//!
//! A VDI made from a complete backup is there from the beginning, and deleted again if anything is wrong; a dog that is killed leaves it.
//!
//! Of a difference nothing of the name changes before the whole stream has been verified and stored. It is applied to a clone of
//! SNAP that has a name of its own, and frozen there; then the frozen clone becomes a snapshot of the name, in one step. If dog dies before, the
//! clone is left.

use std::io::{self, BufRead, IsTerminal};

use proto::checksum::crc32c;
use proto::client::{ClientError, VdiInfo};
use proto::inode::{SHIFT_MAX, is_hyper};
use proto::{Vid, export};

use super::backup::read_padded;
use super::delete::{check_pacing, delete_unneeded};
use super::names::{create_failure, name_at, open, selector, shown};
use super::ranges::cut;
use super::span::Span;
use super::stream::reader::{Content, Reader, StreamError};
use super::stream::{Header, Identity};
use crate::command::{Action, Command, option};
use crate::context::{Context, notice};
use crate::failure::{Failure, Outcome};
use crate::getopt::Parsed;
use crate::sheep::{Call, CallError, Selector, Sheep};

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "restore",
    summary: "apply a backup from stdin",
    args: "<vdiname>",
    args_min: 1,
    args_max: 1,
    options: &[
        option::SNAPSHOT,
        option::ADDRESS,
        option::PORT,
        option::HELP,
        option::TIME,
        option::BATCH,
        option::INTERVAL,
    ],
    needs_nodes: true,
    check: |parsed| selector(parsed).and_then(|_| check_pacing(parsed)),
    action: Action::Run(run),
    notes: "A backup that starts from a snapshot needs that snapshot (-s) and adds one to it. A complete backup makes a\n\
            new image. If anything is wrong with the backup, nothing is changed.",
};

type Input<'a> = Reader<&'a mut dyn BufRead>;

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let name = name_at(parsed, 0)?;
    let selector = selector(parsed)?;
    if io::stdin().is_terminal() {
        return Err(Failure::refused(
            "A backup is read from stdin, which is a terminal: redirect it, as in 'dog vdi restore -s SNAP NAME < FILE'",
        ));
    }
    let mut sheep = context.connect()?;
    let input: &mut dyn BufRead = &mut context.input;
    let begun = Reader::begin(input);
    let is_whole = begun.as_ref().is_ok_and(|reader| reader.header().is_some_and(|h| h.source.is_none()));
    // A command line that lacks a snapshot is told so, whatever the input is.
    if selector == Selector::default() && !is_whole {
        let why = begun.err().map_or("it starts from a snapshot".to_string(), |error| error.to_string());
        return Err(Failure::usage(format!(
            "Please specify the '-s' option: which snapshot the backup starts from. Only a complete backup needs none, and this \
             is none: {why}"
        )));
    }
    if selector != Selector::default() && is_whole {
        return Err(Failure::refused(format!(
            "Failed to restore VDI {}: the backup is complete by itself; leave out -s to make a new VDI",
            shown(&name)
        )));
    }
    if selector == Selector::default() {
        return restore_whole(&mut sheep, &name, begun.map_err(|error| refusal(&name, error))?);
    }
    let (base, header) = open(&mut sheep, &name, &selector)?;
    let mut reader = begun.map_err(|error| refusal(&name, error))?;
    match reader.header().and_then(|header| header.source.clone()) {
        Some(source) => {
            check_source(&name, &source, header.vdi_size)?;
            if source.tag != header.tag {
                notice(&format!(
                    "Note: the backup starts from the snapshot '{}', and this one is '{}'. Only what the backup replaces is \
                     compared: make sure that both hold the same.",
                    shown(&source.tag),
                    shown(&header.tag)
                ));
            }
        }
        None => reader.set_shape(header.vdi_size, header.block_size_shift),
    }
    restore_difference(&mut sheep, &name, (base, header.vdi_size), reader)
}

/// Sizes are told apart here; contents when the first record is applied.
fn check_source(name: &[u8], source: &Identity, base_size: u64) -> Outcome {
    if source.size == base_size {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "Failed to restore VDI {}: the backup starts from a snapshot of {} bytes, this one has {base_size}; \
         nothing was changed",
        shown(name),
        source.size
    )))
}

fn refusal(name: &[u8], error: StreamError) -> Failure {
    Failure::refused(format!(
        "Failed to restore VDI {}: the backup cannot be used: {error}; nothing was changed",
        shown(name)
    ))
}

fn refused(name: &[u8], error: CallError) -> Failure {
    error.or_refused(|reason| format!("Failed to restore VDI {}: {reason}", shown(name)))
}

/// A new VDI, which is deleted again if the stream is not good to its end.
fn restore_whole(sheep: &mut Sheep, name: &[u8], reader: Input) -> Outcome {
    let header = reader.header().expect("only version 2 is complete by itself").clone();
    let (size, shift) = (header.target.size, header.block_size_shift);
    let hyper = is_hyper(size, shift.min(SHIFT_MAX));
    let vid = sheep
        .create(name, size, None, Some(shift), hyper)
        .map_err(|error| create_failure(sheep, name, error))?;
    let tag = free_tag(sheep, name, Some(&header));
    let restored = apply(sheep, name, reader, None, vid)
        .and_then(|()| sheep.snapshot(&[vid], &tag?).map_err(|error| refused(name, error)).map(drop));
    if restored.is_err() {
        delete_unneeded(sheep, &[vid]);
    }
    restored.and_then(|()| tell(sheep, vid, name, true))
}

fn restore_difference(sheep: &mut Sheep, name: &[u8], base: (Vid, u64), reader: Input) -> Outcome {
    let copy_name = format!("dog-restore-{}", base.0);
    let copy = sheep.clone_vdi(base.0, copy_name.as_bytes()).map_err(|error| match error {
        CallError::Declined(ClientError::VdiExists) => Failure::refused(format!(
            "Failed to restore VDI {}: another restore on this snapshot is going on, or was interrupted and has left \
             the VDI {copy_name}, which may be deleted then",
            shown(name)
        )),
        error => refused(name, error),
    })?;
    let tag = free_tag(sheep, name, reader.header());
    let size = reader.header().map_or(base.1, |header| header.target.size);
    let prepared = tag.and_then(|tag| {
        if size > base.1 {
            sheep.resize(copy.vid, size).map_err(|error| refused(name, error))?;
        }
        apply(sheep, name, reader, Some(base), copy.vid)?;
        let heads = sheep.snapshot(&[copy.vid], b"").map_err(|error| refused(name, error))?;
        // The working VDI that the snapshot has left has what it has, and was made a moment ago under a name that nobody uses.
        sheep.delete_vid(heads[0].vid).map_err(|error| refused(name, error))?;
        sheep.adopt(copy.vid, name, &tag).map_err(|error| refused(name, error))
    });
    if prepared.is_err() {
        clear_named(sheep, copy_name.as_bytes());
    }
    prepared.and_then(|()| tell(sheep, copy.vid, name, false))
}

/// What was made, and what the working VDI of its name is now.
fn tell(sheep: &mut Sheep, snapshot: Vid, name: &[u8], is_whole: bool) -> Outcome {
    let infos = sheep.vdis()?;
    let has_working = infos.iter().any(|info| info.name == name && info.snap_ctime == 0);
    // Somebody may have deleted it already.
    let made = infos.iter().find(|info| info.vid == snapshot);
    made.into_iter().for_each(|made| notice(&render(made, is_whole, has_working)));
    Ok(())
}

fn render(made: &VdiInfo, is_whole: bool, has_working: bool) -> String {
    let name = shown(&made.name);
    let (called, select) = match made.tag.as_slice() {
        [] => (format!("snapshot {} of VDI {name}, without a tag", made.snap_id), made.snap_id.to_string()),
        tag => (format!("snapshot {} of VDI {name}, tag {}", made.snap_id, shown(tag)), shown(tag)),
    };
    let working = match (is_whole, has_working) {
        (true, _) => format!("The working VDI {name} is new and holds the same."),
        (false, true) => {
            format!(
                "The working VDI {name} is as it was; to make it this: dog vdi rollback -s {select} {name}"
            )
        }
        (false, false) => {
            format!(
                "There is no working VDI {name}; to make one of this: dog vdi rollback -s {select} {name}"
            )
        }
    };
    format!("Restored {called}.\n{working}")
}

/// The tag that the snapshot had, unless the name has a snapshot with it already, or a VDI would hide that.
fn free_tag(sheep: &mut Sheep, name: &[u8], header: Option<&Header>) -> Outcome<Vec<u8>> {
    let Some(tag) = header.map(|header| header.target.tag.clone()) else { return Ok(Vec::new()) };
    let by_tag = export::by_tag(name, &tag);
    let has_it = |info: &VdiInfo| info.name == name && info.tag == tag;
    let hides_it = |info: &VdiInfo| info.name == by_tag && info.snap_ctime == 0;
    let is_taken = sheep.vdis()?.iter().any(|info| has_it(info) || hides_it(info));
    Ok(if is_taken { Vec::new() } else { tag })
}

/// Reads the stream to its verified end and stores what it says in `to`.
fn apply(sheep: &mut Sheep, name: &[u8], mut reader: Input, base: Option<(Vid, u64)>, to: Vid) -> Outcome {
    while let Some(change) = reader.next_change().map_err(|error| refusal(name, error))? {
        let len = match &change.content {
            Content::Data(data) => data.len() as u64,
            Content::Zeros(len) => *len,
        };
        if let (Some((base, base_size)), Some(expected)) = (base, change.source_crc) {
            let found = read_padded(sheep, base, base_size, change.offset, len)
                .map_err(|error| refused(name, error))?;
            if crc32c(&found) != expected {
                return Err(Failure::refused(format!(
                    "Failed to restore VDI {}: the backup starts from another snapshot, whose bytes at offset {} \
                     differ from this one's; nothing was changed",
                    shown(name),
                    change.offset
                )));
            }
        }
        store(sheep, to, change.offset, change.content).map_err(|error| {
            let offset = change.offset;
            error.or_refused(|reason| {
                format!(
                    "Failed to restore VDI {}: at offset {offset}: {reason}; nothing was changed",
                    shown(name)
                )
            })
        })?;
    }
    Ok(())
}

fn store(sheep: &mut Sheep, to: Vid, offset: u64, content: Content) -> Call<()> {
    match content {
        Content::Zeros(len) => sheep.discard(to, offset, len),
        Content::Data(data) => {
            let data = bytes::Bytes::from(data);
            cut(Span { start: offset, end: offset + data.len() as u64 }).try_for_each(|(at, len)| {
                let start = (at - offset) as usize;
                sheep.write_volume(to, at, data.slice(start..start + len as usize), false)
            })
        }
    }
}

/// Deletes all that is left under the name of a copy: it is ours alone.
fn clear_named(sheep: &mut Sheep, copy_name: &[u8]) {
    match sheep.vdis() {
        Ok(vdis) => {
            let left: Vec<Vid> =
                vdis.iter().filter(|info| info.name == copy_name).map(|info| info.vid).collect();
            delete_unneeded(sheep, &left);
        }
        Err(error) => notice(&format!(
            "Failed to delete VDI {}, which is not needed: {}",
            shown(copy_name),
            Failure::from(error).message
        )),
    }
}
