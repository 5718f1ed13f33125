//! `dog vdi snapshot [-s TAG] [-R] NAME...`: freezes working VDIs, several of them at one moment.
//!
//! Silent on success; with `-v` one line for each:
//!
//! ```text
//! new VID of original VDI: 7c2b26, VDI ID of newly created snapshot: 7c2b25
//! ```
//!
//! The snapshot keeps the id; the working VDI goes on under a new one.

use proto::client::{ClientError, VdiInfo};
use proto::{Vid, export};

use super::names::{check_length, names, shown};
use super::ranges;
use crate::command::{Action, Command, option};
use crate::context::{Context, notice};
use crate::failure::{Failure, Outcome};
use crate::getopt::Parsed;
use crate::sheep::{CallError, Selector, Sheep};

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "snapshot",
    summary: "create a snapshot",
    args: "<vdiname>...",
    args_min: 1,
    args_max: usize::MAX,
    options: &[
        option::TAG,
        option::ADDRESS,
        option::PORT,
        option::HELP,
        option::RAW,
        option::VERBOSE,
        option::TIME,
        option::REDUCE,
    ],
    needs_nodes: true,
    check: |parsed| parse_tag(parsed).map(drop),
    action: Action::Run(run),
    notes: "Several images are frozen at one moment: writes that were acknowledged before are in all the snapshots,\n\
            later ones in none.",
};

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let tag = parse_tag(parsed)?;
    let mut sheep = context.connect()?;
    let mut wanted = Vec::new();
    for name in names(parsed)? {
        let vid = sheep.lookup(&name, &Selector::default()).map_err(|error| failure_of(&name, error))?;
        if parsed.has("reduce-identical-snapshots") && is_unchanged(&mut sheep, vid)? {
            if context.verbose {
                notice(&format!(
                    "Nothing was written to {} since its last snapshot: none is made",
                    shown(&name)
                ));
            }
            continue;
        }
        wanted.push((vid, name));
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let heads = take(&mut sheep, &wanted, &tag)?;
    if context.verbose {
        let text: String = heads.iter().map(|head| render(head, context.is_raw())).collect();
        context.print(&text)?;
    }
    Ok(())
}

/// Freezes all of them. Returns the VDIs that took their places.
pub fn take(sheep: &mut Sheep, wanted: &[(Vid, Vec<u8>)], tag: &[u8]) -> Outcome<Vec<VdiInfo>> {
    let vids: Vec<Vid> = wanted.iter().map(|(vid, _)| *vid).collect();
    match sheep.snapshot(&vids, tag) {
        Ok(heads) => Ok(heads),
        Err(CallError::Declined(ClientError::TagExists)) => {
            let name = find_name_with_tag(sheep, wanted, tag)?;
            Err(Failure::refused(format!(
                "Failed to create snapshot for {}, maybe snapshot id (0) or tag ({}) is existed",
                shown(&name),
                shown(tag)
            )))
        }
        Err(CallError::Declined(ClientError::NameClash)) => {
            let (name, hiding) = find_hidden(sheep, wanted, tag)?;
            Err(Failure::refused(format!(
                "Failed to create snapshot for {}: there is a VDI {}, which for NBD is the name of this snapshot and would hide it; \
                 choose another tag",
                shown(&name),
                shown(&hiding)
            )))
        }
        Err(error) => {
            let names: Vec<&[u8]> = wanted.iter().map(|(_, name)| name.as_slice()).collect();
            Err(failure_of(&names.join(&b", "[..]), error))
        }
    }
}

/// Digits would select the snapshot of that id.
fn parse_tag(parsed: &Parsed) -> Outcome<Vec<u8>> {
    check_tag(parsed.value("snapshot").unwrap_or_default())
}

pub fn check_tag(tag: &[u8]) -> Outcome<Vec<u8>> {
    if !tag.is_empty() && tag.iter().all(u8::is_ascii_digit) {
        return Err(Failure::bad_value(format!(
            "The tag '{}' is a number: it would be taken for a snapshot id",
            shown(tag)
        )));
    }
    check_length("snapshot tag", tag)?;
    Ok(tag.to_vec())
}

/// Is the working VDI still what its last snapshot is?
fn is_unchanged(sheep: &mut Sheep, vid: Vid) -> Outcome<bool> {
    let header = sheep.inode_header(vid)?;
    match header.parent {
        Vid(0) => Ok(sheep.usage(vid)?.0 == 0),
        _ => Ok(ranges::is_same_as_parent(sheep, vid, &header)?),
    }
}

fn failure_of(name: &[u8], error: CallError) -> Failure {
    error.or_refused(|reason| format!("Failed to create snapshot for {}: {reason}", shown(name)))
}

/// Of several names the one that has the tag; the sheep only tells that one has.
fn find_name_with_tag(sheep: &mut Sheep, wanted: &[(Vid, Vec<u8>)], tag: &[u8]) -> Outcome<Vec<u8>> {
    let infos = sheep.vdis()?;
    let has_tag = |name: &Vec<u8>| infos.iter().any(|info| info.name == *name && info.tag == tag);
    let mut names = wanted.iter().map(|(_, name)| name);
    Ok(names.find(|name| has_tag(name)).unwrap_or(&wanted[0].1).clone())
}

/// Of several names the one whose snapshot a VDI would hide, and how that is called.
fn find_hidden(sheep: &mut Sheep, wanted: &[(Vid, Vec<u8>)], tag: &[u8]) -> Outcome<(Vec<u8>, Vec<u8>)> {
    let infos = sheep.vdis()?;
    let exists = |name: &[u8]| infos.iter().any(|info| info.name == name && info.snap_ctime == 0);
    let mut pairs = wanted.iter().map(|(_, name)| (name.clone(), export::by_tag(name, tag)));
    let first = (wanted[0].1.clone(), export::by_tag(&wanted[0].1, tag));
    Ok(pairs.find(|(_, hiding)| exists(hiding)).unwrap_or(first))
}

fn render(head: &VdiInfo, raw: bool) -> String {
    let (new, snapshot) = (head.vid, head.parent);
    if raw {
        format!("{new} {snapshot}\n")
    } else {
        format!("new VID of original VDI: {new}, VDI ID of newly created snapshot: {snapshot}\n")
    }
}
