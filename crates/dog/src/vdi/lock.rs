//! `dog vdi lock {list|unlock}`: which clients hold VDIs, in a cluster formatted with `-l`.
//!
//! ```text
//!   Name         Id  VDI id  Tag            Owner node(s)
//!   test          0  7c2b25                 IPv4 ip:127.0.0.1 port:7000
//!   disk2         0  7927f2                 IPv4 ip:127.0.0.1 port:7000(shared) IPv4 ip:127.0.0.1 port:7001(shared)
//! ```
//!
//! A lock outlives a client that died; `unlock` drops it by force.

use proto::NodeId;
use proto::client::VdiInfo;
use proto::sd::header::{LOCK_NORMAL, LOCK_SHARED};
use serde_json::json;

use super::list::padded;
use super::names::{Standing, lossy, name_at, selector, shown, shown_snap_id, visible};
use crate::command::{Action, Command, SubCommand, option};
use crate::context::{Context, Form};
use crate::failure::{Failure, Outcome};
use crate::getopt::Parsed;
use crate::sheep::Sheep;
use crate::target::Target;

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "lock",
    summary: "show and drop the locks of images",
    args: "<vdiname>",
    args_min: 1,
    args_max: 1,
    options: &[option::SNAPSHOT, option::ADDRESS, option::PORT, option::HELP, option::TIME, option::JSON],
    needs_nodes: true,
    check: |parsed| selector(parsed).map(drop),
    action: Action::Sub(&[
        SubCommand {
            name: "list",
            summary: "list locked images and who holds them",
            args_min: 0,
            args_max: 0,
            is_local: false,
            run: run_list,
        },
        SubCommand {
            name: "unlock",
            summary: "drop a lock by force",
            args_min: 1,
            args_max: 1,
            is_local: false,
            run: run_unlock,
        },
    ]),
    notes: "",
};

const HEADER: &str = "  Name         Id  VDI id  Tag            Owner node(s)\n";

fn run_list(context: &mut Context, _: &Parsed) -> Outcome {
    let mut infos = match context.connect()?.vdis() {
        Err(error) if error.is_wait_for_format() => Vec::new(),
        infos => infos?,
    };
    infos.retain(|info| !info.locked_by.is_empty());
    let text = if context.form == Form::Json { render_json(&infos).into_bytes() } else { render(&infos) };
    Ok(context.out.write_all(&text)?)
}

fn run_unlock(context: &mut Context, parsed: &Parsed) -> Outcome {
    let selector = selector(parsed)?;
    let name = name_at(parsed, 1)?;
    let mut sheep = context.connect()?;
    let vid = sheep.lookup(&name, &selector).map_err(|error| {
        error.or_refused(|reason| format!("Failed to find VDI {}: {reason}", shown(&name)))
    })?;
    let locked_by =
        sheep.vdis()?.into_iter().find(|info| info.vid == vid).map_or(Vec::new(), |info| info.locked_by);
    if locked_by.is_empty() {
        return Err(Failure::refused(format!("VDI {} (vid={vid}) is not locked", shown(&name))));
    }
    for (holder, shared) in locked_by {
        // An exclusive lock goes whoever asks; a share of a lock only at the sheep that took it.
        let unlocked = match shared {
            false => sheep.release(vid, LOCK_NORMAL),
            true => Sheep::connect(&Target::node(holder))?.release(vid, LOCK_SHARED),
        };
        unlocked.map_err(|error| {
            error.or_refused(|reason| format!("Failed to unlock VDI {}: {reason}", shown(&name)))
        })?;
    }
    Ok(())
}

/// `%c %-8s  %5u  %6x  %-13s `, then the owners, each after a space.
fn render(infos: &[VdiInfo]) -> Vec<u8> {
    let mut out = HEADER.as_bytes().to_vec();
    for info in infos {
        out.extend(format!("{} ", Standing::of(info).letter(' ')).bytes());
        out.extend(padded(&visible(&info.name), 8));
        out.extend(format!("  {:>5}  {:>6}  ", shown_snap_id(info), info.vid.to_string()).bytes());
        out.extend(padded(&visible(&info.tag), 13));
        out.push(b' ');
        for (holder, shared) in &info.locked_by {
            out.extend(
                format!(" {}{}", render_holder(holder), if *shared { "(shared)" } else { "" }).bytes(),
            );
        }
        out.push(b'\n');
    }
    out
}

fn render_holder(holder: &NodeId) -> String {
    let family = if holder.ip().is_ipv4() { "IPv4" } else { "IPv6" };
    format!("{family} ip:{} port:{}", holder.ip(), holder.port)
}

fn render_json(infos: &[VdiInfo]) -> String {
    let rows: Vec<_> = infos
        .iter()
        .map(|info| {
            let holders: Vec<_> = info
                .locked_by
                .iter()
                .map(|(holder, shared)| json!({ "node": holder.to_string(), "shared": shared }))
                .collect();
            json!({
                "name": lossy(&info.name),
                "snapshot_id": shown_snap_id(info),
                "tag": lossy(&info.tag),
                "vdi_id": info.vid.to_string(),
                "holders": holders,
            })
        })
        .collect();
    format!("{:#}\n", json!(rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{CopyPolicy, Vid};
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn info(name: &str, vid: u32, locked_by: Vec<(NodeId, bool)>) -> VdiInfo {
        VdiInfo {
            vid: Vid(vid),
            name: name.into(),
            tag: vec![],
            size: 0,
            policy: CopyPolicy::Replicated { copies: 3 },
            block_size_shift: 22,
            snap_id: 1,
            create_time: 0,
            snap_ctime: 0,
            vm_state_size: 0,
            vm_clock_nsec: 0,
            parent: Vid(0),
            owner: None,
            locked_by,
        }
    }

    #[test]
    fn holders_are_listed_as_in_the_original() {
        let v4 = |port| NodeId::new(Ipv4Addr::LOCALHOST.into(), port);
        let v6 = NodeId::new("fe80::1".parse::<Ipv6Addr>().unwrap().into(), 7002);
        let infos = [
            info("test", 0x7c2b25, vec![(v4(7000), false)]),
            info("disk2", 0x7927f2, vec![(v4(7000), true), (v6, true)]),
        ];
        assert_eq!(
            String::from_utf8(render(&infos)).unwrap(),
            "  Name         Id  VDI id  Tag            Owner node(s)
  test          0  7c2b25                 IPv4 ip:127.0.0.1 port:7000
  disk2         0  7927f2                 IPv4 ip:127.0.0.1 port:7000(shared) IPv6 ip:fe80::1 port:7002(shared)
"
        );
    }
}
