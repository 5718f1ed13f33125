//! `dog vdi list [NAME]`: volumes and snapshots by VDI id, with the space they use.
//!
//! ```text
//!   Name        Id    Size    Used  Shared    Creation time   VDI id  Copies  Tag   Block Size Shift
//! s test         1  1.0 GB  4.0 MB  0.0 MB 2026-11-22 11:22   7c2b25      3         snap1  22
//!   test         0  1.0 GB  0.0 MB  4.0 MB 2026-11-22 11:22   7c2b26      3                22
//! ```
//!
//! `Used` counts the objects that the VDI owns, `Shared` those it inherits, one copy each. The raw form is the
//! most parsed output of Sheepdog: an empty tag leaves two consecutive spaces, and fields are never added.

use std::collections::BTreeMap;

use proto::client::VdiInfo;
use proto::inode::NAME_MAX;
use proto::{ObjectKind, Oid, Vid};
use serde_json::json;

use super::names::{Standing, lossy, shown_snap_id, visible};
use crate::awaited::render_untold;
use crate::clock::{LocalTime, seconds_of};
use crate::command::{Action, Command, option};
use crate::context::{Context, Form, notice};
use crate::failure::{Failure, Outcome, exit};
use crate::getopt::Parsed;
use crate::sheep::{CallError, Sheep};
use crate::size;

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "list",
    summary: "list images",
    args: "[vdiname]",
    args_min: 0,
    args_max: 1,
    options: &[
        option::ADDRESS,
        option::PORT,
        option::RAW,
        option::HELP,
        option::OID,
        option::TIME,
        option::JSON,
    ],
    needs_nodes: false,
    check: |parsed| parse_oid(parsed).map(drop),
    action: Action::Run(run),
    notes: "Where the space that an image uses is not told within a few seconds, as when too few of its copies are up, it is shown as\n\
            '-' (null in JSON), stderr tells why, and the exit code is 1.",
};

const HEADER: &str =
    "  Name        Id    Size    Used  Shared    Creation time   VDI id  Copies  Tag   Block Size Shift\n";

/// A VDI and how many objects of its table are its own and inherited, if that was told.
pub struct Row {
    pub info: VdiInfo,
    pub objects: Option<(u64, u64)>,
}

impl Row {
    /// Bytes of its own, and inherited.
    pub fn used_bytes(&self) -> Option<(u64, u64)> {
        self.objects.map(|(own, shared)| (bytes(own, &self.info), bytes(shared, &self.info)))
    }

    /// The same as text, `-` where it was not told.
    pub fn used_text(&self, raw: bool) -> (String, String) {
        let show = |bytes| size::show(bytes, raw);
        self.used_bytes().map_or(("-".into(), "-".into()), |(own, shared)| (show(own), show(shared)))
    }
}

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    // The header comes first, whatever happens then: so it was, and captures show it.
    if context.form == Form::Human {
        context.print(HEADER)?;
    }
    let oid = parse_oid(parsed)?;
    if oid.is_some_and(|oid| oid.kind() != Some(ObjectKind::Data)) {
        return Err(Failure::refused("Only data objects can be looked for: the id names no data object"));
    }
    let mut sheep = context.connect()?;
    let infos = match sheep.vdis() {
        // A cluster that was never formatted has no VDIs: nothing to complain about.
        Err(error) if error.is_wait_for_format() => Vec::new(),
        infos => infos
            .map_err(|error| error.or_refused(|reason| format!("Failed to read the VDI list: {reason}")))?,
    };
    let parents: Parents = infos.iter().map(|info| (info.vid, info.clone())).collect();
    let name = parsed.positionals.first().map(|name| &name[..name.len().min(NAME_MAX)]);
    let is_meant = |info: &VdiInfo| !info.name.is_empty() && name.is_none_or(|wanted| info.name == wanted);
    let mut infos: Vec<VdiInfo> = infos.into_iter().filter(is_meant).collect();
    let mut worst = Ok(());
    if let Some(oid) = oid {
        let is_complete = keep_users_of(&mut sheep, &mut infos, oid)?;
        worst = if is_complete { Ok(()) } else { Err(Failure::silent(exit::FAILURE)) };
    }
    let (rows, is_complete) = fetch(&mut sheep, infos)?;
    let text = match context.form {
        Form::Human => render(&rows),
        Form::Raw => render_raw(&rows),
        Form::Json => render_json(&rows, &parents).into_bytes(),
    };
    context.out.write_all(&text)?;
    if is_complete { worst } else { Err(Failure::silent(exit::FAILURE)) }
}

/// Keeps the VDIs that use the object. False: of some it could not be told.
fn keep_users_of(sheep: &mut Sheep, infos: &mut Vec<VdiInfo>, oid: Oid) -> Outcome<bool> {
    let vids: Vec<Vid> = infos.iter().map(|info| info.vid).collect();
    let owners = sheep.owners_at(&vids, oid.index())?;
    let (mut users, mut untold, mut is_complete) = (Vec::new(), Vec::new(), true);
    for (info, owner) in infos.iter().zip(owners) {
        match owner {
            Some(Ok(owner)) if owner == oid.vid() => users.push(info.clone()),
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                notice(&unreadable(info, error)?);
                is_complete = false;
            }
            None => untold.push(info),
        }
    }
    if !untold.is_empty() {
        let what = format!("Not known whether these use object {oid}, so they are left out");
        notice(&render_untold(&what, &untold, sheep.health().ok().as_ref()));
        is_complete = false;
    }
    *infos = users;
    Ok(is_complete)
}

/// What the VDIs take. False: of some it could not be told.
pub fn fetch(sheep: &mut Sheep, infos: Vec<VdiInfo>) -> Outcome<(Vec<Row>, bool)> {
    let vids: Vec<Vid> = infos.iter().map(|info| info.vid).collect();
    let usages = sheep.usages(&vids)?;
    let (mut rows, mut is_complete) = (Vec::new(), true);
    for (info, usage) in infos.into_iter().zip(usages) {
        match usage.transpose() {
            Ok(objects) => rows.push(Row { info, objects }),
            Err(error) => {
                notice(&unreadable(&info, error)?);
                is_complete = false;
            }
        }
    }
    let untold: Vec<&VdiInfo> =
        rows.iter().filter(|row| row.objects.is_none()).map(|row| &row.info).collect();
    if !untold.is_empty() {
        let what = "No answer about the space that these use, so it is shown as '-'";
        notice(&render_untold(what, &untold, sheep.health().ok().as_ref()));
        is_complete = false;
    }
    Ok((rows, is_complete))
}

/// What is said of a VDI that cannot be read, unless the sheep cannot be asked at all.
fn unreadable(info: &VdiInfo, error: CallError) -> Outcome<String> {
    let reason = error.code()?;
    let inode = Oid::inode(info.vid);
    Ok(format!("Failed to read object {inode} {reason}\nFailed to read inode header"))
}

pub(super) fn parse_oid(parsed: &Parsed) -> Outcome<Option<Oid>> {
    let Some(text) = parsed.text("oid") else { return Ok(None) };
    let digits = text.strip_prefix("0x").unwrap_or(&text);
    let plain = digits.chars().all(|c| c.is_ascii_hexdigit());
    match u64::from_str_radix(digits, 16) {
        Ok(oid) if plain => Ok(Some(Oid(oid))),
        _ => Err(Failure::refused(format!("Invalid object id '{text}': up to 16 hex digits are expected"))),
    }
}

pub fn bytes(objects: u64, info: &VdiInfo) -> u64 {
    objects.checked_shl(u32::from(info.block_size_shift)).unwrap_or(u64::MAX)
}

/// `%c %-8s %5d %7s %7s %7s %s  %7x %6s %13s %3u`; names are bytes and padded as such.
fn render(rows: &[Row]) -> Vec<u8> {
    let mut out = Vec::new();
    for row in rows {
        let info = &row.info;
        out.extend(format!("{} ", Standing::of(info).letter(' ')).bytes());
        out.extend(padded(&visible(&info.name), 8));
        let (own, shared) = row.used_text(false);
        let middle = format!(
            " {:>5} {:>7} {own:>7} {shared:>7} {}  {:>7} {:>6} ",
            shown_snap_id(info),
            size::human(info.size),
            LocalTime::from_seconds(seconds_of(info.create_time)).minutes(),
            info.vid.to_string(),
            info.policy.to_string(),
        );
        out.extend(middle.bytes());
        let tag = visible(&info.tag);
        out.extend(std::iter::repeat_n(b' ', 13usize.saturating_sub(tag.len())));
        out.extend(tag);
        out.extend(format!(" {:>3}\n", info.block_size_shift).bytes());
    }
    out
}

pub fn padded(text: &[u8], width: usize) -> Vec<u8> {
    let mut out = text.to_vec();
    out.resize(width.max(text.len()), b' ');
    out
}

/// With a backslash before what could end a word, and nothing in it that could end the record.
pub fn push_escaped(out: &mut Vec<u8>, text: &[u8]) {
    for word in text.split_inclusive(|byte| matches!(byte, b' ' | b'\t' | b'\\')) {
        let (last, rest) = word.split_last().expect("a part is not empty");
        if !matches!(last, b' ' | b'\t' | b'\\') {
            out.extend(visible(word));
            continue;
        }
        out.extend(visible(rest));
        out.extend([b'\\', *last]);
    }
}

fn render_raw(rows: &[Row]) -> Vec<u8> {
    let mut out = Vec::new();
    for row in rows {
        let info = &row.info;
        out.extend(format!("{} ", Standing::of(info).letter('=')).bytes());
        push_escaped(&mut out, &info.name);
        let (own, shared) = row.used_text(true);
        let middle = format!(
            " {} {} {own} {shared} {} {} {} ",
            shown_snap_id(info),
            info.size,
            seconds_of(info.create_time),
            info.vid,
            info.policy,
        );
        out.extend(middle.bytes());
        out.extend(visible(&info.tag));
        out.extend(format!(" {}\n", info.block_size_shift).bytes());
    }
    out
}

/// What a VDI may stand on: all of them, those that are not shown as well.
type Parents = BTreeMap<Vid, VdiInfo>;

fn render_json(rows: &[Row], parents: &Parents) -> String {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            let info = &row.info;
            // One that was deleted has left its id only.
            let parent = parents.get(&info.parent);
            json!({
                "name": lossy(&info.name),
                "kind": Standing::of(info).word(),
                "snapshot_id": shown_snap_id(info),
                "tag": lossy(&info.tag),
                "size_bytes": info.size,
                "used_bytes": row.used_bytes().map(|(own, _)| own),
                "shared_bytes": row.used_bytes().map(|(_, shared)| shared),
                "created_seconds": seconds_of(info.create_time),
                "vdi_id": info.vid.to_string(),
                "parent_vdi_id": (info.parent.0 != 0).then(|| info.parent.to_string()),
                "parent_name": parent.map(|parent| lossy(&parent.name)),
                "parent_snapshot_id": parent.map(shown_snap_id),
                "parent_tag": parent.map(|parent| lossy(&parent.tag)),
                "copies": info.policy.to_string(),
                "block_size_shift": info.block_size_shift,
                "owner": info.owner.map(|owner| owner.to_string()),
            })
        })
        .collect();
    format!("{:#}\n", json!(rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::CopyPolicy;

    const TIME: u64 = 1_795_346_574;

    fn row(name: &str, snap: Option<(u32, &str)>, vid: u32, own: u64, shared: u64) -> Row {
        let info = VdiInfo {
            vid: Vid(vid),
            name: name.into(),
            tag: snap.map_or(vec![], |(_, tag)| tag.into()),
            size: 1 << 30,
            policy: CopyPolicy::Replicated { copies: 3 },
            block_size_shift: 22,
            snap_id: snap.map_or(3, |(id, _)| id),
            create_time: TIME << 32 | 5,
            snap_ctime: snap.map_or(0, |_| 1 << 32),
            vm_state_size: 0,
            vm_clock_nsec: 0,
            parent: Vid(0),
            owner: None,
            locked_by: vec![],
        };
        Row { info, objects: Some((own, shared)) }
    }

    fn sample() -> Vec<Row> {
        let mut clone = row("cl1", None, 0x42a71, 0, 1);
        (clone.info.snap_id, clone.info.parent) = (1, Vid(0x7c2b25));
        let mut ec = row("ec", None, 0x3933f9, 0, 0);
        (ec.info.policy, ec.info.size) = (CopyPolicy::Erasure { data: 2, parity: 1 }, 20 << 20);
        let mut spaced = row("a b", None, 0x833892, 0, 0);
        spaced.info.size = 4 << 20;
        vec![
            clone,
            ec,
            row("test", Some((1, "snap1")), 0x7c2b25, 1, 0),
            row("test", Some((2, "")), 0x7c2b26, 0, 1),
            row("TwoCopies", None, 0xe5e944, 0, 2),
            spaced,
        ]
    }

    #[test]
    fn rows_align_as_in_the_original() {
        let time = LocalTime::from_seconds(TIME).minutes();
        let expect = format!(
            "\
c cl1          0  1.0 GB  0.0 MB  4.0 MB {time}    42a71      3                22
  ec           0   20 MB  0.0 MB  0.0 MB {time}   3933f9    2:1                22
s test         1  1.0 GB  4.0 MB  0.0 MB {time}   7c2b25      3         snap1  22
s test         2  1.0 GB  0.0 MB  4.0 MB {time}   7c2b26      3                22
  TwoCopies     0  1.0 GB  0.0 MB  8.0 MB {time}   e5e944      3                22
  a b          0  4.0 MB  0.0 MB  0.0 MB {time}   833892      3                22
"
        );
        assert_eq!(lossy(&render(&sample())), expect);
    }

    #[test]
    fn raw_rows_keep_the_double_space_of_an_empty_tag() {
        let expect = "\
c cl1 0 1073741824 0 4194304 1795346574 42a71 3  22
= ec 0 20971520 0 0 1795346574 3933f9 2:1  22
s test 1 1073741824 4194304 0 1795346574 7c2b25 3 snap1 22
s test 2 1073741824 0 4194304 1795346574 7c2b26 3  22
= TwoCopies 0 1073741824 0 8388608 1795346574 e5e944 3  22
= a\\ b 0 4194304 0 0 1795346574 833892 3  22
";
        assert_eq!(lossy(&render_raw(&sample())), expect);
    }

    #[test]
    fn object_ids_are_hex() {
        let parse =
            |text: &str| parse_oid(&Parsed { options: vec![("oid", text.into())], ..Parsed::default() });
        assert_eq!(parse("7c2b2500000001").unwrap(), Some(Oid(0x007c_2b25_0000_0001)));
        assert_eq!(parse("0x1f").unwrap(), Some(Oid(0x1f)));
        for text in ["", "xyz", "+1", "11112222333344445"] {
            assert_eq!(parse(text).unwrap_err().code, 1, "{text}");
        }
    }

    #[test]
    fn json_names_the_fields() {
        let parents = sample().into_iter().map(|row| (row.info.vid, row.info)).collect();
        let parsed: serde_json::Value = serde_json::from_str(&render_json(&sample(), &parents)).unwrap();
        assert_eq!(parsed[2]["kind"], "snapshot");
        assert_eq!(parsed[2]["used_bytes"], 4194304);
        let of_clone = |field: &str| parsed[0][field].clone();
        assert_eq!(of_clone("parent_vdi_id"), "7c2b25");
        assert_eq!((of_clone("parent_name"), of_clone("parent_tag")), ("test".into(), "snap1".into()));
        assert_eq!(of_clone("parent_snapshot_id"), 1);
        assert_eq!(parsed[1]["parent_name"], serde_json::Value::Null);
    }
}
