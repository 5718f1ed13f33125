//! Metadata contexts: what a client may ask about the blocks of an export, and by which names.
//!
//! - `base:allocation`: what is data and what a hole.
//! - `qemu:dirty-bitmap:SNAPSHOT`: what may differ from an earlier snapshot. `SNAPSHOT` is the tag or id of one of the same VDI
//!   name; or `NAME@TAG` or `NAME:ID` of one that the export was cloned from. Everything that differs is called dirty; what is
//!   called dirty may be the same.
//!
//! The second kind is named as QEMU names a bitmap of what has been written since some moment, so that programs which read
//! such bitmaps find out what changed since a snapshot. How fine the answer is, the service decides (`VolumeOp::Changes`).

use std::collections::BTreeMap;

use proto::Vid;
use proto::client::{VdiInfo, VolumeOp};

use super::export::Export;

const BASE_ALLOCATION: &[u8] = b"base:allocation";
const DIRTY_BITMAP: &[u8] = b"qemu:dirty-bitmap:";
/// Snapshots in one list, the newest ones: a VDI may have millions. Others can be chosen all the same.
const LISTED_MAX: usize = 100;
/// Contexts of one connection: each is a question to the VDI's owner for every request of block status.
pub const CHOSEN_MAX: usize = 16;

/// What a context tells about blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    Allocation,
    ChangesSince(Vid),
}

impl Subject {
    /// The question to the service.
    pub fn question(self, offset: u64, len: u64) -> VolumeOp {
        match self {
            Subject::Allocation => VolumeOp::BlockStatus { offset, len },
            Subject::ChangesSince(since) => VolumeOp::Changes { since, offset, len },
        }
    }
}

/// One that a client has chosen. Its id is valid in this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    pub id: u32,
    pub subject: Subject,
}

/// A snapshot older than an export, and what it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Earlier {
    pub vid: Vid,
    pub tag: Option<Vec<u8>>,
    pub id: Vec<u8>,
}

impl Earlier {
    /// The name in lists, where strings are UTF-8.
    fn listed_name(&self) -> Option<&[u8]> {
        let is_text = |name: &&[u8]| std::str::from_utf8(name).is_ok();
        self.tag.as_deref().filter(is_text).or(Some(&self.id[..]).filter(is_text))
    }
}

/// The names in a LIST_META_CONTEXT or SET_META_CONTEXT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queries {
    /// Lists know wildcards: no query at all, and the start of a name up to a colon.
    pub listing: bool,
    pub names: Vec<Vec<u8>>,
}

impl Queries {
    /// Does the answer depend on which snapshots there are?
    pub fn concern_snapshots(&self) -> bool {
        let concerns = |name: &[u8]| name.starts_with(DIRTY_BITMAP) || self.listing && name == b"qemu:";
        self.lists_all() || self.names.iter().any(|name| concerns(name))
    }

    /// The contexts meant, each once under each name it was asked for by.
    pub fn select(&self, earlier: &[Earlier]) -> Vec<(Vec<u8>, Subject)> {
        let mut found: Vec<(Vec<u8>, Subject)> = Vec::new();
        let mut add = |name: Vec<u8>, subject| {
            if !found.iter().any(|(known, _)| *known == name) {
                found.push((name, subject));
            }
        };
        if self.asks_for(BASE_ALLOCATION, b"base:") {
            add(BASE_ALLOCATION.to_vec(), Subject::Allocation);
        }
        if self.lists_all() || self.is_listed(b"qemu:") || self.is_listed(DIRTY_BITMAP) {
            for one in &earlier[earlier.len().saturating_sub(LISTED_MAX)..] {
                if let Some(called) = one.listed_name() {
                    add([DIRTY_BITMAP, called].concat(), Subject::ChangesSince(one.vid));
                }
            }
        }
        for name in &self.names {
            if let Some(since) = name.strip_prefix(DIRTY_BITMAP).and_then(|called| find(earlier, called)) {
                add(name.clone(), Subject::ChangesSince(since));
            }
        }
        found
    }

    fn lists_all(&self) -> bool {
        self.listing && self.names.is_empty()
    }

    fn is_listed(&self, wildcard: &[u8]) -> bool {
        self.listing && self.names.iter().any(|name| name == wildcard)
    }

    fn asks_for(&self, context: &[u8], wildcard: &[u8]) -> bool {
        self.lists_all() || self.is_listed(wildcard) || self.names.iter().any(|name| name == context)
    }
}

/// A tag may look like the id of another snapshot. Then the tag is meant, as everywhere.
fn find(earlier: &[Earlier], called: &[u8]) -> Option<Vid> {
    let by_tag = earlier.iter().find(|one| one.tag.as_deref() == Some(called));
    by_tag.or_else(|| earlier.iter().find(|one| one.id == called)).map(|one| one.vid)
}

/// The snapshots that an export may be compared with, oldest first: those of its name that are older, and what the oldest of them
/// was cloned from.
pub fn earlier(vdis: &[VdiInfo], export: &Export) -> Vec<Earlier> {
    let get = |vid: Vid| vdis.iter().find(|info| info.vid == vid);
    let Some(this) = get(export.vid) else { return Vec::new() };
    let mut found: Vec<&VdiInfo> = vdis.iter().filter(|info| is_earlier(info, this)).collect();
    found.sort_by_key(|info| info.snap_id);
    found.splice(0..0, foreign_ancestors(vdis, this));
    found.into_iter().map(|info| called(info, &this.name)).collect()
}

fn is_earlier(info: &VdiInfo, this: &VdiInfo) -> bool {
    let is_snapshot = info.snap_ctime != 0;
    is_snapshot && info.name == this.name && (this.snap_ctime == 0 || info.snap_id < this.snap_id)
}

/// Ancestors of another name, oldest first.
fn foreign_ancestors<'a>(vdis: &'a [VdiInfo], this: &VdiInfo) -> Vec<&'a VdiInfo> {
    let by_vid: BTreeMap<Vid, &VdiInfo> = vdis.iter().map(|info| (info.vid, info)).collect();
    let mut found = Vec::new();
    let mut parent = this.parent;
    while let Some(info) = by_vid.get(&parent).copied()
        && found.len() < LISTED_MAX
    {
        if info.name != this.name && info.snap_ctime != 0 {
            found.push(info);
        }
        parent = info.parent;
    }
    found.reverse();
    found
}

fn called(info: &VdiInfo, own_name: &[u8]) -> Earlier {
    let full = |separator: &[u8], short: &[u8]| match info.name == own_name {
        true => short.to_vec(),
        false => [&info.name, separator, short].concat(),
    };
    let tag = (!info.tag.is_empty()).then(|| full(b"@", &info.tag));
    Earlier { vid: info.vid, tag, id: full(b":", info.snap_id.to_string().as_bytes()) }
}

#[cfg(test)]
mod tests {
    use proto::CopyPolicy;

    use super::*;

    fn vdi(vid: u32, parent: u32, name: &str, snapshot: Option<(u32, &str)>) -> VdiInfo {
        let (snap_id, tag) = snapshot.unwrap_or((99, ""));
        VdiInfo {
            vid: Vid(vid),
            name: name.into(),
            tag: tag.into(),
            size: 1 << 30,
            policy: CopyPolicy::Replicated { copies: 3 },
            block_size_shift: 22,
            snap_id,
            create_time: 1 << 32,
            snap_ctime: u64::from(snapshot.is_some()) << 32,
            vm_state_size: 0,
            vm_clock_nsec: 0,
            parent: Vid(parent),
            owner: None,
            locked_by: Vec::new(),
        }
    }

    /// `alice` with four snapshots, rolled back to the second; `bob` cloned from that one, with a snapshot.
    fn vdis() -> Vec<VdiInfo> {
        vec![
            vdi(1, 0, "alice", Some((1, "first"))),
            vdi(2, 1, "alice", Some((2, ""))),
            vdi(3, 2, "alice", Some((3, "2"))),
            vdi(4, 3, "alice", Some((4, "\u{e9}t\u{e9}"))),
            vdi(5, 2, "alice", None),
            vdi(6, 2, "bob", Some((1, "mine"))),
            vdi(7, 6, "bob", None),
            vdi(8, 0, "carol", Some((1, "hers"))),
        ]
    }

    fn earlier_than(vid: u32) -> Vec<Earlier> {
        let infos = vdis();
        let name = infos.iter().find(|info| info.vid == Vid(vid)).unwrap().name.clone();
        earlier(&infos, &Export { name, vid: Vid(vid), size: 1 << 30, read_only: false })
    }

    fn select(vid: u32, listing: bool, names: &[&str]) -> Vec<(String, u32)> {
        let queries = Queries { listing, names: names.iter().map(|name| name.as_bytes().to_vec()).collect() };
        let selected = queries.select(&earlier_than(vid));
        let vid = |subject| match subject {
            Subject::Allocation => 0,
            Subject::ChangesSince(vid) => vid.0,
        };
        selected.into_iter().map(|(name, subject)| (String::from_utf8(name).unwrap(), vid(subject))).collect()
    }

    #[test]
    fn lists_name_what_is_older() {
        let check = |vid, names: &[&str], expect: &[(&str, u32)]| {
            let expect: Vec<_> = expect.iter().map(|(name, vid)| (name.to_string(), *vid)).collect();
            assert_eq!(select(vid, true, names), expect, "{vid} {names:?}");
        };
        let base = ("base:allocation", 0);
        let (first, second) = (("qemu:dirty-bitmap:first", 1), ("qemu:dirty-bitmap:2", 2));
        let summer = ("qemu:dirty-bitmap:\u{e9}t\u{e9}", 4);
        check(5, &[], &[base, first, second, summer]);
        check(5, &["base:"], &[base]);
        check(5, &["qemu:"], &[first, second, summer]);
        check(5, &["qemu:dirty-bitmap:", "base:allocation"], &[base, first, second, summer]);
        check(3, &["qemu:"], &[first, second]);
        check(1, &[], &[base]);
        let of_alice = [("qemu:dirty-bitmap:alice@first", 1), ("qemu:dirty-bitmap:alice:2", 2)];
        check(7, &["qemu:"], &[of_alice[0], of_alice[1], ("qemu:dirty-bitmap:mine", 6)]);
        check(6, &["qemu:"], &of_alice);
        check(8, &["qemu:"], &[]);
    }

    #[test]
    fn contexts_are_chosen_by_tag_or_id_and_keep_their_names() {
        let check = |vid, called: &str, expect: Option<u32>| {
            let name = format!("qemu:dirty-bitmap:{called}");
            let expect: Vec<_> = expect.into_iter().map(|vid| (name.clone(), vid)).collect();
            assert_eq!(select(vid, false, &[&name, &name]), expect, "{vid} {called}");
        };
        check(5, "first", Some(1));
        check(5, "1", Some(1));
        // A tag goes before an id.
        check(5, "2", Some(3));
        check(5, "3", Some(3));
        check(3, "2", Some(2));
        check(3, "3", None);
        check(7, "mine", Some(6));
        check(7, "alice@first", Some(1));
        check(7, "alice:2", Some(2));
        for nothing in ["alice@mine", "first", "bob@mine", "bob:1", "alice:3", "", "+1", "hers", "carol@hers"]
        {
            check(7, nothing, None);
        }
        assert_eq!(select(5, false, &["qemu:", "qemu:dirty-bitmap:", "base:", "qemu:allocation-depth"]), []);
        assert_eq!(select(5, false, &[]), []);
    }

    #[test]
    fn lists_are_bounded_and_choices_are_not() {
        let snapshots = (1..=1000).map(|id| vdi(id, id - 1, "alice", Some((id, ""))));
        let infos: Vec<VdiInfo> = snapshots.chain([vdi(1001, 1000, "alice", None)]).collect();
        let export = Export { name: b"alice".to_vec(), vid: Vid(1001), size: 1 << 30, read_only: false };
        let earlier = earlier(&infos, &export);
        let list = Queries { listing: true, names: Vec::new() }.select(&earlier);
        assert_eq!(list.len(), 1 + LISTED_MAX);
        assert_eq!(
            list.last().unwrap(),
            &(b"qemu:dirty-bitmap:1000".to_vec(), Subject::ChangesSince(Vid(1000)))
        );
        let oldest = Queries { listing: false, names: vec![b"qemu:dirty-bitmap:1".to_vec()] };
        assert_eq!(oldest.select(&earlier)[0].1, Subject::ChangesSince(Vid(1)));
    }
}
