//! `dog vdi object {location|map|dump-inode}`: where a VDI's objects are, and which it has.
//!
//! ```text
//! Looking for the object 007c2b2500000000 (vid 0x7c2b29 idx 0, 3 copies) with 3 nodes
//!
//! 127.0.0.1:7000 has the object
//! 127.0.0.1:7001 doesn't have the object
//! 127.0.0.1:7002 has the object
//!
//! According to sheepdog algorithm, the object should be located at:
//! 127.0.0.1:7001 127.0.0.1:7000 127.0.0.1:7002
//! ```
//!
//! ```text
//! Index       VID
//! 00000000   cdfde7
//! ```

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use proto::inode::InodeHeader;
use proto::{NodeId, Oid, Vid};
use serde_json::json;

use super::inode_file;
use super::names::{lossy, name_at, open, selector};
use super::table::{self, Entry};
use crate::command::{Action, Command, SubCommand, option};
use crate::context::{Context, Form};
use crate::everyone::ask_all;
use crate::failure::{Failure, Outcome, reason};
use crate::getopt::Parsed;
use crate::sheep::Sheep;

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "object",
    summary: "show where an image's objects are",
    args: "<vdiname>",
    args_min: 1,
    args_max: 1,
    options: &[
        option::INDEX,
        option::SNAPSHOT,
        option::ADDRESS,
        option::PORT,
        option::HELP,
        option::TIME,
        option::JSON,
    ],
    needs_nodes: true,
    check: |parsed| selector(parsed).and_then(|_| parse_index(parsed)).map(drop),
    action: Action::Sub(&[
        SubCommand {
            name: "location",
            summary: "show which nodes have the inode, or the object of --index",
            args_min: 1,
            args_max: 1,
            is_local: false,
            run: run_location,
        },
        SubCommand {
            name: "map",
            summary: "list the objects that are allocated",
            args_min: 1,
            args_max: 1,
            is_local: false,
            run: run_map,
        },
        SubCommand {
            name: "dump-inode",
            summary: "show what a file with an inode says; no sheep is asked",
            args_min: 1,
            args_max: 1,
            is_local: true,
            run: run_dump,
        },
    ]),
    notes: "",
};

/// Who has the object, and who should.
struct Location {
    oid: Oid,
    vid: Vid,
    /// `None` for the inode.
    index: Option<u32>,
    copies: u8,
    /// Every node, in order; the reason where one could not tell.
    holders: Vec<(NodeId, Result<bool, String>)>,
    targets: Vec<NodeId>,
}

fn run_location(context: &mut Context, parsed: &Parsed) -> Outcome {
    let selector = selector(parsed)?;
    let index = parse_index(parsed)?;
    let name = name_at(parsed, 1)?;
    let mut sheep = context.connect()?;
    let (vid, header) = open(&mut sheep, &name, &selector)?;
    let Some(oid) = find_object(&mut sheep, vid, index)? else {
        let index = index.unwrap_or(0);
        return match context.form {
            Form::Json => context
                .print(&format!("{:#}\n", json!({ "vdi_id": vid.to_string(), "index": index, "oid": null }))),
            _ => context.print(&format!("The inode object 0x{vid} idx {index} is not allocated\n")),
        };
    };
    let targets = sheep.locate(oid)?;
    // One node that cannot be asked does not hide what the others know.
    let held = ask_all(&context.node_ids(), |sheep| sheep.holds(oid)).into_iter();
    let held = held.map(|holds| holds.map_err(|error| error.or_refused(|reason| reason.to_string()).message));
    let holders = context.node_ids().into_iter().zip(held).collect();
    let location = Location { oid, vid, index, copies: copies_of(&header), holders, targets };
    let text =
        if context.form == Form::Json { render_location_json(&location) } else { render_location(&location) };
    context.print(&text)
}

fn copies_of(header: &InodeHeader) -> u8 {
    header.policy.width()
}

/// The inode, or the object that the table has at `index`, if any.
pub(super) fn find_object(sheep: &mut Sheep, vid: Vid, index: Option<u32>) -> Outcome<Option<Oid>> {
    let Some(index) = index else { return Ok(Some(Oid::inode(vid))) };
    let owner = sheep.owner_at(vid, index)?;
    Ok((owner != Vid(0)).then(|| Oid::data(owner, index)))
}

fn run_map(context: &mut Context, parsed: &Parsed) -> Outcome {
    let selector = selector(parsed)?;
    let wanted = parse_index(parsed)?;
    let name = name_at(parsed, 1)?;
    let mut sheep = context.connect()?;
    let (vid, _) = open(&mut sheep, &name, &selector)?;
    let mut entries = table::fetch(&mut sheep, vid)?;
    entries.retain(|entry| wanted.is_none_or(|index| entry.index == index));
    let text = if context.form == Form::Json { render_map_json(&entries) } else { render_map(&entries) };
    context.print(&text)
}

fn run_dump(context: &mut Context, parsed: &Parsed) -> Outcome {
    let path = Path::new(OsStr::from_bytes(&parsed.positionals[1]));
    let bytes = fs::read(path)
        .map_err(|error| Failure::refused(format!("failed to open inode object file: {}", reason(&error))))?;
    let text = inode_file::render(&bytes).ok_or_else(|| {
        Failure::refused(format!("{} is no inode: it has {} bytes", path.display(), bytes.len()))
    })?;
    Ok(context.out.write_all(&text)?)
}

pub(super) fn parse_index(parsed: &Parsed) -> Outcome<Option<u32>> {
    let Some(text) = parsed.value("index") else { return Ok(None) };
    let shown = lossy(text);
    let (digits, radix) = match shown.strip_prefix("0x").or(shown.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None => (shown.as_str(), 10),
    };
    let plain = digits.chars().all(|c| c.is_ascii_hexdigit());
    match u32::from_str_radix(digits, radix) {
        Ok(index) if plain => Ok(Some(index)),
        _ => Err(Failure::refused(format!(
            "Invalid object index '{shown}': it must be between 0 and {}",
            u32::MAX
        ))),
    }
}

fn render_location(location: &Location) -> String {
    let Location { oid, vid, copies, .. } = location;
    let nodes = location.holders.len();
    let mut text = match location.index {
        None => format!("Looking for the inode object 0x{vid} with {nodes} nodes\n\n"),
        Some(index) => {
            format!(
                "Looking for the object {oid} (vid 0x{vid} idx {index}, {copies} copies) with {nodes} nodes\n\n"
            )
        }
    };
    for (node, holds) in &location.holders {
        text += &match holds {
            Ok(true) => format!("{node} has the object\n"),
            Ok(false) => format!("{node} doesn't have the object\n"),
            Err(reason) => format!("{node} cannot tell: {reason}\n"),
        };
    }
    if nodes < usize::from(*copies) {
        text += &format!(
            "\nBecause number of nodes ({nodes}) is less than number of copies ({copies}), the object should be \
             located at every nodes.\n"
        );
    } else {
        let targets: Vec<String> = location.targets.iter().map(NodeId::to_string).collect();
        text += &format!(
            "\nAccording to sheepdog algorithm, the object should be located at:\n{}\n",
            targets.join(" ")
        );
    }
    text
}

fn render_location_json(location: &Location) -> String {
    let holders: Vec<_> = location
        .holders
        .iter()
        .map(|(node, holds)| json!({ "node": node.to_string(), "has_object": holds.as_ref().ok(), "error": holds.as_ref().err() }))
        .collect();
    let targets: Vec<String> = location.targets.iter().map(NodeId::to_string).collect();
    let document = json!({
        "oid": location.oid.to_string(),
        "vdi_id": location.vid.to_string(),
        "index": location.index,
        "copies": location.copies,
        "nodes": holders,
        "targets": targets,
    });
    format!("{document:#}\n")
}

fn render_map(entries: &[Entry]) -> String {
    let rows = entries.iter().map(|entry| format!("{:08} {:>8}\n", entry.index, entry.owner.to_string()));
    std::iter::once("Index       VID\n".to_string()).chain(rows).collect()
}

fn render_map_json(entries: &[Entry]) -> String {
    let rows: Vec<_> = entries
        .iter()
        .map(|entry| json!({ "index": entry.index, "vdi_id": entry.owner.to_string() }))
        .collect();
    format!("{:#}\n", json!(rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn node(port: u16) -> NodeId {
        NodeId::new(Ipv4Addr::LOCALHOST.into(), port)
    }

    fn location(index: Option<u32>, copies: u8) -> Location {
        Location {
            oid: index.map_or(Oid::inode(Vid(0x7c2b29)), |index| Oid::data(Vid(0x7c2b25), index)),
            vid: Vid(0x7c2b29),
            index,
            copies,
            holders: vec![(node(7000), Ok(true)), (node(7001), Ok(false)), (node(7002), Ok(true))],
            targets: vec![node(7001), node(7000), node(7002)],
        }
    }

    #[test]
    fn the_location_of_an_object_reads_as_in_the_original() {
        assert_eq!(
            render_location(&location(Some(0), 3)),
            "\
Looking for the object 007c2b2500000000 (vid 0x7c2b29 idx 0, 3 copies) with 3 nodes

127.0.0.1:7000 has the object
127.0.0.1:7001 doesn't have the object
127.0.0.1:7002 has the object

According to sheepdog algorithm, the object should be located at:
127.0.0.1:7001 127.0.0.1:7000 127.0.0.1:7002
"
        );
    }

    #[test]
    fn with_fewer_nodes_than_copies_every_node_is_a_target() {
        let mut two = location(None, 3);
        two.holders.truncate(2);
        assert_eq!(
            render_location(&two),
            "\
Looking for the inode object 0x7c2b29 with 2 nodes

127.0.0.1:7000 has the object
127.0.0.1:7001 doesn't have the object

Because number of nodes (2) is less than number of copies (3), the object should be located at every nodes.
"
        );
    }

    #[test]
    fn the_map_lists_allocated_objects() {
        let entries = [(0, 0xcdfde7), (10, 0x316b4)].map(|(index, owner)| Entry { index, owner: Vid(owner) });
        assert_eq!(render_map(&entries), "Index       VID\n00000000   cdfde7\n00000010    316b4\n");
        assert_eq!(render_map(&[]), "Index       VID\n");
    }

    #[test]
    fn indexes_are_decimal_or_hex_and_limited() {
        let parse =
            |text: &str| parse_index(&Parsed { options: vec![("index", text.into())], ..Parsed::default() });
        assert_eq!(parse("10").unwrap(), Some(10));
        assert_eq!(parse("0x10").unwrap(), Some(16));
        assert_eq!(parse("4294967295").unwrap(), Some(u32::MAX));
        for text in ["", "-1", "+1", "0x", "4294967296", "ten", "99999999999"] {
            assert_eq!(parse(text).unwrap_err().code, 1, "{text}");
        }
    }
}
