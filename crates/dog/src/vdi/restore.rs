//! `dog vdi restore [-s SNAP] NAME < FILE`: applies a backup.
//!
//! With `-s` the difference is applied on top of that snapshot and becomes a new snapshot of the name; the working VDI keeps
//! its contents, under a new id. A complete backup makes a new VDI, with a snapshot of what the backup holds.
//!
//! A VDI made from a complete backup is there from the beginning, and deleted again if anything is wrong; a dog that is killed leaves it.
//!
//! Of a difference nothing of the name changes before the whole stream has been verified and stored. It is applied to a clone of
//! SNAP that has a name of its own. Only then ([`install`]) it takes its place:
//!
//! 1. The working VDI is frozen under the tag `before-restore`, unless it is the same as the snapshot it stands on, and deleted.
//! 2. A clone of the finished copy takes the name and is frozen: this is the result.
//! 3. A working VDI is put on the snapshot of step 1. What is not needed any more is deleted.
//!
//! Whatever fails in step 2 is undone. If dog dies there, `before-restore` still has the working VDI's contents.

use std::io::{self, BufRead, IsTerminal};

use proto::Vid;
use proto::checksum::crc32c;
use proto::client::ClientError;
use proto::inode::{SHIFT_MAX, is_hyper};

use super::backup::read_padded;
use super::delete::check_pacing;
use super::names::{lossy, name_at, open, open_failure, required_selector, selector};
use super::ranges::{cut, is_same_as_parent};
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

/// Keeps the working VDI while the result takes its place.
const SAVED_TAG: &[u8] = b"before-restore";

type Input<'a> = Reader<&'a mut dyn BufRead>;

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let name = name_at(parsed, 0)?;
    let selector = selector(parsed)?;
    if io::stdin().is_terminal() {
        return Err(Failure::refused("A backup is read from stdin, which is a terminal: redirect it"));
    }
    let mut sheep = context.connect()?;
    let input: &mut dyn BufRead = &mut context.input;
    let begun = Reader::begin(input);
    // A command line that lacks a snapshot is told so, whatever the input is.
    let is_whole = begun.as_ref().is_ok_and(|reader| reader.header().is_some_and(|h| h.source.is_none()));
    if selector == Selector::default() && !is_whole {
        required_selector(parsed)?;
    }
    if selector != Selector::default() && is_whole {
        return Err(Failure::refused(format!(
            "Failed to restore VDI {}: the backup is complete by itself; leave out -s to make a new VDI",
            lossy(&name)
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
                    lossy(&source.tag),
                    lossy(&header.tag)
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
        lossy(name),
        source.size
    )))
}

fn refusal(name: &[u8], error: StreamError) -> Failure {
    Failure::refused(format!(
        "Failed to restore VDI {}: the backup cannot be used: {error}; nothing was changed",
        lossy(name)
    ))
}

fn refused(name: &[u8], error: CallError) -> Failure {
    error.or_refused(|reason| format!("Failed to restore VDI {}: {reason}", lossy(name)))
}

/// A new VDI, which is deleted again if the stream is not good to its end.
fn restore_whole(sheep: &mut Sheep, name: &[u8], reader: Input) -> Outcome {
    let header = reader.header().expect("only version 2 is complete by itself").clone();
    let (size, shift) = (header.target.size, header.block_size_shift);
    let hyper = is_hyper(size, shift.min(SHIFT_MAX));
    let vid = sheep.create(name, size, None, Some(shift), hyper).map_err(|error| {
        error.or_refused(|reason| format!("Failed to create VDI {}: {reason}", lossy(name)))
    })?;
    let tag = free_tag(sheep, name, Some(&header));
    let restored = apply(sheep, name, reader, None, vid)
        .and_then(|()| sheep.snapshot(&[vid], &tag?).map_err(|error| refused(name, error)).map(drop));
    if restored.is_err() {
        clear(sheep, &[vid]);
    }
    restored
}

fn restore_difference(sheep: &mut Sheep, name: &[u8], base: (Vid, u64), reader: Input) -> Outcome {
    let copy_name = format!("dog-restore-{}", base.0);
    let copy = sheep.clone_vdi(base.0, copy_name.as_bytes()).map_err(|error| match error {
        CallError::Declined(ClientError::VdiExists) => Failure::refused(format!(
            "Failed to restore VDI {}: another restore on this snapshot is going on, or was interrupted and has left \
             the VDI {copy_name}, which may be deleted then",
            lossy(name)
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
        // The snapshot is what is cloned; the working VDI on top of it is of no use.
        let heads = sheep.snapshot(&[copy.vid], b"").map_err(|error| refused(name, error))?;
        Ok((tag, heads[0].vid))
    });
    let (tag, head) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => {
            clear(sheep, &[copy.vid]);
            return Err(failure);
        }
    };
    let installed = install(sheep, name, copy.vid, &tag);
    clear(sheep, &[head, copy.vid]);
    installed
}

/// The tag that the snapshot had, unless the name has a snapshot with it already.
fn free_tag(sheep: &mut Sheep, name: &[u8], header: Option<&Header>) -> Outcome<Vec<u8>> {
    let Some(tag) = header.map(|header| header.target.tag.clone()) else { return Ok(Vec::new()) };
    let is_taken = sheep.vdis()?.iter().any(|info| info.name == name && info.tag == tag);
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
                    lossy(name),
                    change.offset
                )));
            }
        }
        store(sheep, to, change.offset, change.content).map_err(|error| {
            let offset = change.offset;
            error.or_refused(|reason| {
                format!(
                    "Failed to restore VDI {}: at offset {offset}: {reason}; nothing was changed",
                    lossy(name)
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

/// A snapshot that has what the working VDI had.
struct Saved {
    vid: Vid,
    /// It was made for this restore.
    is_temporary: bool,
}

/// Makes the snapshot `copy` a snapshot of the name.
fn install(sheep: &mut Sheep, name: &[u8], copy: Vid, tag: &[u8]) -> Outcome {
    let saved = set_aside(sheep, name)?;
    let made = sheep.clone_vdi(copy, name).and_then(|new| {
        let frozen = sheep.snapshot(&[new.vid], tag);
        if frozen.is_err() {
            clear(sheep, &[new.vid]);
        }
        frozen
    });
    let made = made.map_err(|error| refused(name, error));
    let put_back = match (&saved, &made) {
        (Some(saved), _) => sheep.roll_back(saved.vid, false).map(drop),
        (None, Ok(heads)) => sheep.delete_vid(heads[0].vid),
        (None, Err(_)) => Ok(()),
    };
    let put_back = put_back.map_err(|error| {
        let failure = refused(name, error);
        let advice = "the contents of the working VDI are in its snapshot: roll back to that";
        Failure { message: format!("{}; {advice}", failure.message), ..failure }
    });
    if let (Some(Saved { vid, is_temporary: true }), Ok(())) = (&saved, &put_back) {
        clear(sheep, &[*vid]);
    }
    made.and(put_back)
}

/// Takes the working VDI away, if there is one and nobody uses it.
fn set_aside(sheep: &mut Sheep, name: &[u8]) -> Outcome<Option<Saved>> {
    let working = match sheep.lookup(name, &Selector::default()) {
        Ok(vid) => vid,
        Err(CallError::Broken(failure)) => return Err(failure),
        Err(_) => return Ok(None),
    };
    let header =
        sheep.inode_header(working).map_err(|error| open_failure(name, &Selector::default(), error))?;
    let stands_on_own = sheep.vdis()?.iter().any(|info| info.vid == header.parent && info.name == name);
    let saved = if stands_on_own && is_same_as_parent(sheep, working, &header)? {
        Saved { vid: header.parent, is_temporary: false }
    } else {
        sheep.snapshot(&[working], SAVED_TAG).map_err(|error| match error {
            CallError::Declined(ClientError::TagExists) => Failure::refused(format!(
                "Failed to restore VDI {}: it has a snapshot {} of an interrupted restore; roll back to it or delete it; \
                 nothing was changed",
                lossy(name),
                lossy(SAVED_TAG)
            )),
            error => refused(name, error),
        })?;
        Saved { vid: working, is_temporary: true }
    };
    // Refused if somebody uses it; else nothing but the id changes.
    let removed = sheep.roll_back(saved.vid, false).and_then(|head| sheep.delete_vid(head.vid));
    if let Err(error) = removed {
        if saved.is_temporary {
            clear(sheep, &[saved.vid]);
        }
        return Err(match error {
            CallError::Declined(ClientError::InUse(owner)) => Failure::refused(format!(
                "Failed to restore VDI {}: it is in use through {owner}; nothing was changed",
                lossy(name)
            )),
            error => refused(name, error),
        });
    }
    Ok(Some(saved))
}

/// Deletes what was only needed on the way. What stays is told, and does no harm.
fn clear(sheep: &mut Sheep, vids: &[Vid]) {
    for vid in vids {
        if let Err(error) = sheep.delete_vid(*vid) {
            notice(&format!(
                "Failed to delete VDI {vid}, which is not needed: {}",
                Failure::from(error).message
            ));
        }
    }
}
