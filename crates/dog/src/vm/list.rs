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
use crate::failure::{Failure, Outcome, exit};
use crate::getopt::Parsed;
use crate::sheep::Sheep;
use crate::size;
use crate::target::Target;
use crate::vdi::list::{bytes, padded, push_escaped};
use crate::vdi::names::{lossy, shown_snap_id};

pub const COMMAND: Command = Command {
    group: "vm",
    name: "list",
    summary: "list images and the programs that use them",
    args: "[vdiname]",
    args_min: 0,
    options: &[option::ADDRESS, option::PORT, option::RAW, option::HELP, option::TIME, option::JSON],
    needs_nodes: true,
    check: no_values,
    action: Action::Run(run),
    notes: "",
};

const HEADER: &str = "\
Name            |Vdi size |Allocated| Shared  | Status
----------------+---------+---------+---------+------------
";

/// A VDI and who has it open.
struct Row {
    info: VdiInfo,
    allocated_bytes: u64,
    shared_bytes: u64,
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
    let mut rows = Vec::new();
    for info in infos.iter().filter(|info| wanted.is_none_or(|name| info.name == *name)) {
        let users = users_of(info, &guests);
        if info.snap_ctime == 0 || !users.is_empty() {
            let (own, shared) = sheep.usage(info.vid)?;
            rows.push(Row {
                allocated_bytes: bytes(own, info),
                shared_bytes: bytes(shared, info),
                info: info.clone(),
                users,
            });
        }
    }
    rows.sort_by(|a, b| (&a.info.name, a.info.snap_ctime).cmp(&(&b.info.name, b.info.snap_ctime)));
    let text = match context.form {
        Form::Human => render(&rows),
        Form::Raw => render_raw(&rows),
        Form::Json => render_json(&rows).into_bytes(),
    };
    context.out.write_all(&text)?;
    // What nobody was asked about may be running.
    if unheard { Err(Failure::silent(exit::SYSTEM)) } else { Ok(()) }
}

/// The clients of every sheep; true if a sheep did not answer.
fn fetch_guests(context: &Context) -> (Vec<(NodeId, Guest)>, bool) {
    let mut guests = Vec::new();
    let mut unheard = false;
    for node in &context.nodes {
        let access = Sheep::connect(&Target::node(node.id))
            .and_then(|mut sheep| sheep.access().map_err(Failure::from));
        match access {
            Ok(access) => guests.extend(access.guests.into_iter().map(|guest| (node.id, guest))),
            Err(failure) => {
                notice(&format!("Clients of {} are not known: {}", node.id, failure.message));
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
        out.extend(padded(&shown_name(&row.info), 16));
        let sizes = [row.info.size, row.allocated_bytes, row.shared_bytes].map(size::human);
        out.extend(format!("|{:>9}|{:>9}|{:>9}| ", sizes[0], sizes[1], sizes[2]).bytes());
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
    let places: Vec<String> =
        users.iter().map(|user| format!("running on {} ({})", user.sheep, user.client)).collect();
    places.join(", ")
}

fn render_raw(rows: &[Row]) -> Vec<u8> {
    let mut out = Vec::new();
    for row in rows {
        push_escaped(&mut out, &shown_name(&row.info));
        out.extend(format!(" {} {} {}", row.info.size, row.allocated_bytes, row.shared_bytes).bytes());
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
            json!({
                "name": lossy(&row.info.name),
                "snapshot_id": shown_snap_id(&row.info),
                "vdi_id": row.info.vid.to_string(),
                "size_bytes": row.info.size,
                "allocated_bytes": row.allocated_bytes,
                "shared_bytes": row.shared_bytes,
                "served_by": row.info.owner.map(|owner| owner.to_string()),
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
        Row { info, allocated_bytes: 4 << 20, shared_bytes: 0, users }
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
