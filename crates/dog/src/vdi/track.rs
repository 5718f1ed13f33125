//! `dog vdi track [-i IDX | -o OID] [-s SNAP] NAME`: where an object is placed.
//!
//! ```text
//! Tracking the inode object 0x6a5e17 with 2 nodes
//!
//! obj 806a5e1700000000 locations at epoch 2, copies = 2
//! ---------------------------------------------------
//! 127.0.0.1:7000
//! 127.0.0.1:7001
//! ```
//!
//! One block for each recorded epoch, newest first. Of epochs that are too long ago the sheep do not know any more, and of those before the
//! first VDI with this number of copies was made there is nothing to tell: how many they are is said on stderr.

use proto::client::{Places, Track};
use proto::{Oid, Vid};

use super::list::parse_oid;
use super::names::{name_at, open, selector};
use super::object::{find_object, parse_index};
use crate::command::{Action, Command, option};
use crate::context::{Context, notice};
use crate::failure::{Failure, Outcome};
use crate::getopt::Parsed;

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "track",
    summary: "show where an image's objects are placed",
    args: "<vdiname>",
    args_min: 1,
    args_max: 1,
    options: &[
        option::INDEX,
        option::SNAPSHOT,
        option::ADDRESS,
        option::PORT,
        option::HELP,
        option::OBJECT,
        option::TIME,
    ],
    needs_nodes: true,
    check: |parsed| check(parsed),
    action: Action::Run(run),
    notes: "Nodes that were down keep their places.",
};

fn check(parsed: &Parsed) -> Outcome {
    selector(parsed)?;
    let (index, oid) = (parse_index(parsed)?, parse_oid(parsed)?);
    if index.is_some() && oid.is_some() {
        return Err(Failure::usage("Give either an index (-i) or an object id (-o)"));
    }
    Ok(())
}

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let selector = selector(parsed)?;
    let (index, wanted) = (parse_index(parsed)?, parse_oid(parsed)?);
    let name = name_at(parsed, 0)?;
    let mut sheep = context.connect()?;
    let (vid, header) = open(&mut sheep, &name, &selector)?;
    let node_count = context.nodes.len();
    let (oid, title) = match (wanted, index) {
        (Some(oid), _) => (oid, object_title(oid, vid, None, node_count)),
        (None, None) => {
            (Oid::inode(vid), format!("Tracking the inode object 0x{vid} with {node_count} nodes"))
        }
        (None, Some(index)) => match find_object(&mut sheep, vid, Some(index))? {
            Some(oid) => (oid, object_title(oid, vid, Some(index), node_count)),
            None => {
                return context.print(&format!("The inode object 0x{vid} idx {index} is not allocated\n"));
            }
        },
    };
    let track = sheep.track(oid).map_err(|error| {
        error.or_refused(|reason| format!("Failed to find the location of {oid}: {reason}"))
    })?;
    let text = render(oid, header.policy.width(), &track);
    context.print(&format!("{title}\n{text}"))?;
    if track.unknown_epochs > 0 {
        notice(&format!("The places in {} earlier epochs are not known", track.unknown_epochs));
    }
    Ok(())
}

fn object_title(oid: Oid, vid: Vid, index: Option<u32>, node_count: usize) -> String {
    let index = index.map_or(String::new(), |index| format!(" idx {index}"));
    format!("Tracking the object {oid} (the inode vid 0x{vid}{index}) with {node_count} nodes")
}

fn render(oid: Oid, copies: u8, track: &Track) -> String {
    track.places.iter().map(|places| render_epoch(oid, copies, places)).collect()
}

fn render_epoch(oid: Oid, copies: u8, places: &Places) -> String {
    let head = format!("\nobj {oid} locations at epoch {}, copies = {copies}\n", places.epoch.0);
    let rule = "---------------------------------------------------\n";
    let nodes = places.nodes.iter().map(|node| format!("{node}\n"));
    [head, rule.to_string()].into_iter().chain(nodes).collect()
}
