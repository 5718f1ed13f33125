//! No VDI hides a snapshot: of what NBD calls by one name (`proto::export`) at most one thing comes to exist.
//!
//! A VDI may have any name, and a working VDI of the very name is what an export means first. So `a@monday` would take the place of
//! a's snapshot `monday`: whoever backs that up would get another disk, and a guest that comes back to its disk must find no snapshot.
//! Neither is made where the other is. Only names that really meet are refused: `a@monday` is a good name where `a` has no such snapshot.

use proto::client::{ClientError, Selector};
use proto::export;

use super::{Vdi, View};

impl View {
    /// May a working VDI of this name come to exist?
    pub(super) fn check_hides_no_snapshot(&self, name: &[u8]) -> Result<(), ClientError> {
        let exists = |(of, which): &(Vec<u8>, Selector)| {
            self.named(of).any(|(vid, vdi)| match which {
                Selector::Tag(tag) if vdi.is_snapshot() => vdi.tag == *tag,
                Selector::Tag(tag) => self.promised_tags(vid, vdi).any(|promised| promised == tag),
                // A working VDI's id is the one that its next snapshot gets.
                Selector::SnapId(id) => vdi.snap_id == *id,
                Selector::Working | Selector::TagOrSnapId(..) => false,
            })
        };
        if export::snapshots(name).iter().any(exists) { Err(ClientError::NameClash) } else { Ok(()) }
    }

    /// May a snapshot of this name have the tag? A tag with an '@' is none that an export can name.
    pub(super) fn check_tag_is_not_hidden(&self, name: &[u8], tag: &[u8]) -> Result<(), ClientError> {
        let by_tag = export::by_tag(name, tag);
        let is_named = !tag.is_empty() && !tag.contains(&b'@');
        if is_named && self.working_vdi(&by_tag).is_some() { Err(ClientError::NameClash) } else { Ok(()) }
    }

    /// The id of the next snapshot of this name: ids rise, and those that a VDI would hide are passed over.
    pub(super) fn next_snap_id(&self, name: &[u8]) -> u32 {
        let last = self.named(name).map(|(_, v)| v.snap_id).max().unwrap_or(0);
        let is_free = |id: &u32| self.working_vdi(&export::by_id(name, *id)).is_none();
        (last + 1..).find(is_free).expect("there are fewer VDIs than ids")
    }

    /// Tags under which snapshots of this VDI are being taken.
    fn promised_tags<'a>(&'a self, vid: proto::Vid, vdi: &'a Vdi) -> impl Iterator<Item = &'a [u8]> + 'a {
        let freezes = self.freezes.values().filter(move |freeze| freeze.vids.contains(&vid));
        freezes.map(|freeze| if freeze.tag.is_empty() { &vdi.tag[..] } else { &freeze.tag[..] })
    }
}
