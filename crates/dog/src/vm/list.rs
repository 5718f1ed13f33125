//! `dog vm list [NAME]`: volumes, the space they use, and where they are open.
//!
//! ```text
//! Name            |Vdi size |Allocated| Shared  | Status
//! ----------------+---------+---------+---------+------------
//! Alice           |   256 GB|   1.2 GB|   0.0 MB| running on 127.0.0.1:7000 (qemu-system-x86 4711)
//! Bob             |   2.0 GB|   1.5 GB|   0.0 MB| not running
//! ```
//!
//! The header is that of the first Sheepdog. A VDI counts as running while a client has it open, through whichever sheep;
//! the client is shown as that sheep sees it. Snapshots are listed only while somebody reads them. For programs (`-r`):
//! name, sizes in bytes, and `SHEEP,CLIENT` for each client, blanks escaped as in `vdi list -r`.

use std::time::{Duration, Instant};

use proto::NodeId;
use proto::client::{Guest, VdiInfo};
use serde_json::json;

use crate::command::{Action, Command, no_values, option};
use crate::context::{Context, Form, notice};
use crate::everyone::ask_all;
use crate::failure::{Failure, Outcome, exit};
use crate::getopt::Parsed;
use crate::sheep::Sheep;
use crate::size;
use crate::vdi::list::{self, padded, push_escaped};
use crate::vdi::names::{lossy, shown, shown_snap_id, visible};

pub const COMMAND: Command = Command {
    group: "vm",
    name: "list",
    summary: "list images and the programs that use them",
    args: "[vdiname]",
    args_min: 0,
    args_max: 1,
    options: &[option::ADDRESS, option::PORT, option::RAW, option::HELP, option::TIME, option::JSON],
    needs_nodes: true,
    check: no_values,
    action: Action::Run(run),
    notes: "A sheep that does not answer within 10 s is told of on stderr, and its clients are not known: exit code 2. Where the space\n\
            that an image uses is not told, it is shown as '-' (null in JSON): exit code 1.",
};

const HEADER: &str = "\
Name            |Vdi size |Allocated| Shared  | Status
----------------+---------+---------+---------+------------
";

/// A VDI, and who has it open.
struct Row {
    vdi: list::Row,
    users: Vec<User>,
}

/// A client, and the sheep through which it came.
#[derive(Clone, Debug, PartialEq, Eq)]
struct User {
    sheep: NodeId,
    client: String,
}

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let mut sheep = context.connect()?;
    let infos = match sheep.vdis() {
        Err(error) if error.is_wait_for_format() => Vec::new(),
        infos => infos
            .map_err(|error| error.or_refused(|reason| format!("Failed to read the VDI list: {reason}")))?,
    };
    let (guests, unheard) = if infos.is_empty() { (vec![], false) } else { fetch_guests(context) };
    let wanted = parsed.positionals.first();
    let is_shown = |info: &VdiInfo| {
        wanted.is_none_or(|name| info.name == *name)
            && (info.snap_ctime == 0 || !users_of(info, &guests).is_empty())
    };
    let (vdis, is_complete) = list::fetch(&mut sheep, infos.into_iter().filter(is_shown).collect())?;
    let mut rows: Vec<Row> =
        vdis.into_iter().map(|vdi| Row { users: users_of(&vdi.info, &guests), vdi }).collect();
    rows.sort_by(|a, b| {
        let (a, b) = (&a.vdi.info, &b.vdi.info);
        (&a.name, a.snap_ctime).cmp(&(&b.name, b.snap_ctime))
    });
    let text = match context.form {
        Form::Human => render(&rows),
        Form::Raw => render_raw(&rows),
        Form::Json => render_json(&rows).into_bytes(),
    };
    context.out.write_all(&text)?;
    // What nobody was asked about may be running.
    match (unheard, is_complete) {
        (true, _) => Err(Failure::silent(exit::SYSTEM)),
        (false, false) => Err(Failure::silent(exit::FAILURE)),
        (false, true) => Ok(()),
    }
}

/// The clients of every sheep; true if a sheep did not answer.
fn fetch_guests(context: &Context) -> (Vec<(NodeId, Guest)>, bool) {
    let mut guests = Vec::new();
    let mut unheard = false;
    for (node, access) in context.nodes.iter().zip(ask_all(&context.node_ids(), Sheep::access)) {
        match access {
            Ok(access) => guests.extend(access.guests.into_iter().map(|guest| (node.id, guest))),
            Err(error) => {
                let why = Failure::from(error).message;
                notice(&format!("Clients of {} are not known: {why}", node.id));
                unheard = true;
            }
        }
    }
    (guests, unheard)
}

/// Who has a VDI open, and through which sheep, in words. A client that has just ended is given a moment to be noticed.
pub fn holders(context: &Context, info: &VdiInfo) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        let (guests, _) = fetch_guests(context);
        let users = users_of(info, &guests);
        if users.is_empty() || Instant::now() >= deadline {
            return users.iter().map(|user| format!("{} ({})", user.sheep, user.client)).collect();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Each once, however many connections it has.
fn users_of(info: &VdiInfo, guests: &[(NodeId, Guest)]) -> Vec<User> {
    let mut users = Vec::new();
    for (sheep, guest) in guests.iter().filter(|(_, guest)| uses(guest, info)) {
        let user = User { sheep: *sheep, client: guest.client.clone() };
        if !users.contains(&user) {
            users.push(user);
        }
    }
    users
}

/// Who opened a working VDI uses what it has become after snapshots.
fn uses(guest: &Guest, info: &VdiInfo) -> bool {
    match info.snap_ctime {
        0 => guest.working == info.name,
        _ => guest.working.is_empty() && guest.vid == info.vid,
    }
}

/// `%-16s|%9s|%9s|%9s| `, then the status.
fn render(rows: &[Row]) -> Vec<u8> {
    let mut out = HEADER.as_bytes().to_vec();
    for row in rows {
        let info = &row.vdi.info;
        out.extend(padded(&visible(&shown_name(info)), 16));
        let (allocated, shared) = row.vdi.used_text(false);
        out.extend(format!("|{:>9}|{allocated:>9}|{shared:>9}| ", size::human(info.size)).bytes());
        out.extend(format!("{}\n", status(&row.users)).bytes());
    }
    out
}

/// A snapshot as NBD names it.
fn shown_name(info: &VdiInfo) -> Vec<u8> {
    match shown_snap_id(info) {
        0 => info.name.clone(),
        id => [&info.name[..], format!(":{id}").as_bytes()].concat(),
    }
}

fn status(users: &[User]) -> String {
    if users.is_empty() {
        return "not running".to_string();
    }
    let places: Vec<String> = users
        .iter()
        .map(|user| format!("running on {} ({})", user.sheep, shown(user.client.as_bytes())))
        .collect();
    places.join(", ")
}

fn render_raw(rows: &[Row]) -> Vec<u8> {
    let mut out = Vec::new();
    for row in rows {
        let info = &row.vdi.info;
        push_escaped(&mut out, &shown_name(info));
        let (allocated, shared) = row.vdi.used_text(true);
        out.extend(format!(" {} {allocated} {shared}", info.size).bytes());
        for user in &row.users {
            out.extend(format!(" {},", user.sheep).bytes());
            push_escaped(&mut out, user.client.as_bytes());
        }
        out.push(b'\n');
    }
    out
}

fn render_json(rows: &[Row]) -> String {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            let users: Vec<_> = row
                .users
                .iter()
                .map(|user| json!({ "sheep": user.sheep.to_string(), "client": user.client }))
                .collect();
            let (info, used) = (&row.vdi.info, row.vdi.used_bytes());
            json!({
                "name": lossy(&info.name),
                "snapshot_id": shown_snap_id(info),
                "vdi_id": info.vid.to_string(),
                "size_bytes": info.size,
                "allocated_bytes": used.map(|(own, _)| own),
                "shared_bytes": used.map(|(_, shared)| shared),
                "served_by": info.owner.map(|owner| owner.to_string()),
                "users": users,
            })
        })
        .collect();
    format!("{:#}\n", json!(rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{CopyPolicy, Vid};
    use std::net::Ipv4Addr;

    fn info(name: &str, vid: u32, snap_ctime: u64) -> VdiInfo {
        VdiInfo {
            vid: Vid(vid),
            name: name.into(),
            tag: vec![],
            size: 2 << 30,
            policy: CopyPolicy::Replicated { copies: 3 },
            block_size_shift: 22,
            snap_id: 1,
            create_time: 0,
            snap_ctime,
            vm_state_size: 0,
            vm_clock_nsec: 0,
            parent: Vid(0),
            owner: None,
            locked_by: vec![],
        }
    }

    fn guest(vid: u32, working: &str, client: &str) -> (NodeId, Guest) {
        let sheep = NodeId::new(Ipv4Addr::LOCALHOST.into(), 7000);
        (sheep, Guest { vid: Vid(vid), working: working.into(), client: client.into() })
    }

    fn row(info: VdiInfo, guests: &[(NodeId, Guest)]) -> Row {
        let users = users_of(&info, guests);
        Row { vdi: list::Row { info, objects: Some((1, 0)) }, users }
    }

    #[test]
    fn whoever_opened_a_working_vdi_uses_it_under_whatever_vid() {
        let guests = [
            guest(1, "alice", "qemu 1"),
            guest(1, "alice", "qemu 1"),
            guest(2, "alice", "qemu 2"),
            guest(1, "", "nbdcopy 3"),
        ];
        let clients =
            |info: &VdiInfo| users_of(info, &guests).into_iter().map(|user| user.client).collect::<Vec<_>>();
        assert_eq!(clients(&info("alice", 2, 0)), ["qemu 1", "qemu 2"]);
        assert_eq!(clients(&info("alice", 1, 1)), ["nbdcopy 3"]);
        assert!(clients(&info("bob", 3, 0)).is_empty());
    }

    #[test]
    fn rows_look_as_in_the_first_sheepdog() {
        let guests = [guest(1, "alice", "qemu 1"), guest(1, "alice", "qemu 2"), guest(9, "", "nbdcopy 3")];
        let rows = [
            row(info("alice", 1, 0), &guests),
            row(info("b c", 2, 0), &guests),
            row(info("old", 9, 1), &guests),
        ];
        let expect = "\
Name            |Vdi size |Allocated| Shared  | Status
----------------+---------+---------+---------+------------
alice           |   2.0 GB|   4.0 MB|   0.0 MB| running on 127.0.0.1:7000 (qemu 1), running on 127.0.0.1:7000 (qemu 2)
b c             |   2.0 GB|   4.0 MB|   0.0 MB| not running
old:1           |   2.0 GB|   4.0 MB|   0.0 MB| running on 127.0.0.1:7000 (nbdcopy 3)
";
        assert_eq!(lossy(&render(&rows)), expect);
        let expect = "\
alice 2147483648 4194304 0 127.0.0.1:7000,qemu\\ 1 127.0.0.1:7000,qemu\\ 2
b\\ c 2147483648 4194304 0
old:1 2147483648 4194304 0 127.0.0.1:7000,nbdcopy\\ 3
";
        assert_eq!(lossy(&render_raw(&rows)), expect);
    }
}
