//! One VDI takes the place of another that holds the same: how a VDI gets another number of copies.
//!
//! Copies of one number live in one pool, so the contents are copied into a new VDI, from a snapshot taken for that purpose. Nobody
//! must have written to the VDI since: its new head has never been opened, which the view knows for certain. Then
//! name, snapshot and head change hands in one entry. Whatever happens before, the VDI stays what it is.

use proto::Vid;
use proto::client::ClientError;

use super::{Accepted, Applied, Outcome, SessionState, View};

impl View {
    /// `new` becomes the working VDI of `old`'s name; `old` and the snapshot it stands on are deleted. The proposer has copied that
    /// snapshot, whole, to `new`.
    ///
    /// Safe to delete: `old` has never had a session, so it holds what its snapshot held, and that is in `new`. Nobody has it open or
    /// locked, and no other snapshot of the name would lose its head.
    pub(super) fn take_place(&mut self, old: Vid, new: Vid, applied: &mut Applied) -> Outcome {
        let (Some(head), Some(copy)) = (self.vdi(old), self.vdi(new)) else {
            return Err(ClientError::NoVdi);
        };
        let Some(base) = self.vdi(head.parent).filter(|base| base.is_snapshot()) else {
            return Err(ClientError::InvalidParameters);
        };
        let is_alike = copy.size == head.size && copy.block_size_shift == head.block_size_shift;
        if head.is_snapshot() || copy.is_snapshot() || copy.parent != Vid(0) || !is_alike {
            return Err(ClientError::InvalidParameters);
        }
        let session = self.session(old);
        if let Some((owner, _)) = session.owner {
            return Err(ClientError::InUse(owner));
        }
        if let Some((holder, _)) = head.locks.first() {
            return Err(ClientError::InUse(*holder));
        }
        let base_vid = head.parent;
        let is_only_pair = self.named(&head.name).all(|(vid, _)| vid == old || vid == base_vid);
        let is_untouched = session == SessionState::default() && !self.is_freezing(old);
        if !is_untouched || self.is_freezing(new) || !is_only_pair || base.name != head.name {
            return Err(ClientError::Busy);
        }
        let (name, create_time) = (head.name.clone(), base.create_time);
        let (tag, snap_id, vm_state) =
            (head.tag.clone(), head.snap_id, (head.vm_state_size, head.vm_clock_nsec));
        let vdi = self.vdis.get_mut(&new).expect("just seen");
        let copy_name = std::mem::replace(&mut vdi.name, name);
        vdi.create_time = create_time;
        vdi.tag = tag;
        // Ids that earlier snapshots of the name had are not given again, nor one that a VDI is named like.
        vdi.snap_id = snap_id;
        (vdi.vm_state_size, vdi.vm_clock_nsec) = vm_state;
        if self.named(&copy_name).next().is_none() {
            self.attributes.remove(&copy_name);
        }
        // The name is `new`'s by now, so its attributes stay.
        self.delete_vdi(old, applied)?;
        self.delete_vdi(base_vid, applied)?;
        applied.vdis.push(new);
        Ok(Accepted::Vdi(new))
    }
}
