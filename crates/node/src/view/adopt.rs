//! A snapshot of one name becomes a snapshot of another: how a restored one gets to where it belongs.
//!
//! It was made under a name of its own, where nobody looks for it. One entry gives it the other name, so whoever uses the working VDI of
//! that name notices nothing and loses nothing: that one is not frozen, replaced or deleted.

use proto::Vid;
use proto::client::ClientError;
use proto::inode::NAME_MAX;

use super::{Accepted, Applied, Outcome, View};

impl View {
    pub(super) fn adopt(&mut self, snapshot: Vid, name: &[u8], tag: &[u8], applied: &mut Applied) -> Outcome {
        let Some(vdi) = self.vdi(snapshot) else { return Err(ClientError::NoVdi) };
        if !vdi.is_snapshot() {
            return Err(ClientError::NotASnapshot);
        }
        if tag.len() > NAME_MAX || tag.contains(&0) {
            return Err(ClientError::InvalidParameters);
        }
        if vdi.name == name {
            return Ok(Accepted::Vdi(snapshot));
        }
        if self.named(name).next().is_none() {
            return Err(ClientError::NoVdi);
        }
        if !tag.is_empty() && self.named(name).any(|(_, v)| v.is_snapshot() && v.tag == tag) {
            return Err(ClientError::TagExists);
        }
        self.check_tag_is_not_hidden(name, tag)?;
        let old_name = vdi.name.clone();
        // A snapshot that is being taken has been promised its tag.
        let is_freezing = self.named(name).any(|(vid, _)| self.is_freezing(vid));
        if is_freezing || self.named(&old_name).any(|(vid, _)| vid != snapshot) {
            return Err(ClientError::Busy);
        }
        // Ids follow the order in which snapshots come up: the working VDI's own next one is a later one.
        let mut snap_id = self.next_snap_id(name);
        if let Some(head) = self.working_vdi(name).and_then(|vid| self.vdis.get_mut(&vid)) {
            std::mem::swap(&mut head.snap_id, &mut snap_id);
        }
        let vdi = self.vdis.get_mut(&snapshot).expect("just seen");
        vdi.name = name.to_vec();
        vdi.tag = tag.to_vec();
        vdi.snap_id = snap_id;
        // Those of a name that nothing has any more; the other name keeps its own.
        self.attributes.remove(&old_name);
        applied.vdis.push(snapshot);
        Ok(Accepted::Vdi(snapshot))
    }
}
