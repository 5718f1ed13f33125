//! VDIs: names, ids and everything that an inode's header says.
//!
//! The view is the only home of this; inode headers are composed from it. A deleted VDI stays as a tombstone ([`Life`]).

use proto::client::{ClientError, VdiInfo};
use proto::hash::vid_of_name;
use proto::inode::{InodeHeader, NAME_MAX, SHIFT_MAX, SHIFT_MIN, TABLE_ENTRIES, max_hyper_bytes};
use proto::{CopyPolicy, Lineage, NodeId, PoolId, Vid};
use serde::{Deserialize, Serialize};

use super::{Accepted, Applied, EnteredPages, Outcome, View};

/// Pages of the largest block table: entries of 2^32 objects.
const PAGES_MAX: u32 = (1u64 << 32).div_ceil(TABLE_ENTRIES as u64) as u32;

/// What a vid stands for. It is never given again, so objects on a member that was away can be told from living ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Life {
    Alive,
    /// Deleted; some of its objects, and its table, may still be needed by VDIs that descend from it.
    Remains,
    /// Deleted, and nothing refers to it.
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vdi {
    pub name: Vec<u8>,
    pub tag: Vec<u8>,
    pub size: u64,
    pub policy: CopyPolicy,
    pub pool: PoolId,
    pub block_size_shift: u8,
    pub snap_id: u32,
    /// `seconds << 32 | nanoseconds`.
    pub create_time: u64,
    pub snap_ctime: u64,
    pub vm_state_size: u64,
    pub vm_clock_nsec: u64,
    pub parent: Vid,
    /// Of a snapshot: the working VDI that took its place when it was frozen.
    pub successor: Option<Vid>,
    pub lineage: Lineage,
    /// Of its block table; taken over from what it was made from.
    pub pages: EnteredPages,
    /// Old clients' locks: holder and whether shared.
    pub locks: Vec<(NodeId, bool)>,
    /// Holders of shared locks that came here from what is a snapshot now. Once they notice, they lock what they hold already.
    pub moved_locks: Vec<NodeId>,
    pub life: Life,
}

impl Vdi {
    pub fn is_snapshot(&self) -> bool {
        self.snap_ctime != 0
    }

    pub fn header(&self, vid: Vid) -> InodeHeader {
        InodeHeader {
            name: self.name.clone(),
            tag: self.tag.clone(),
            create_time: self.create_time,
            snap_ctime: self.snap_ctime,
            vm_clock_nsec: self.vm_clock_nsec,
            vdi_size: self.size,
            vm_state_size: self.vm_state_size,
            policy: self.policy,
            block_size_shift: self.block_size_shift,
            snap_id: self.snap_id,
            vid,
            parent: self.parent,
        }
    }

    pub fn info(&self, vid: Vid, owner: Option<NodeId>) -> VdiInfo {
        VdiInfo {
            vid,
            name: self.name.clone(),
            tag: self.tag.clone(),
            size: self.size,
            policy: self.policy,
            block_size_shift: self.block_size_shift,
            snap_id: self.snap_id,
            create_time: self.create_time,
            snap_ctime: self.snap_ctime,
            vm_state_size: self.vm_state_size,
            vm_clock_nsec: self.vm_clock_nsec,
            parent: self.parent,
            owner,
            locked_by: self.locks.clone(),
        }
    }
}

impl View {
    pub(super) fn create_vdi(
        &mut self,
        name: &[u8],
        size: u64,
        policy: Option<CopyPolicy>,
        shift: Option<u8>,
        time_ns: u64,
        applied: &mut Applied,
    ) -> Outcome {
        let format = self.format.expect("checked by the caller");
        let policy = policy.unwrap_or(format.policy);
        let shift = shift.unwrap_or(format.block_size_shift);
        let CopyPolicy::Replicated { copies } = policy else {
            return Err(ClientError::Unsupported("erasure-coded VDIs".into()));
        };
        if name.is_empty()
            || name.len() > NAME_MAX
            || name.contains(&0)
            || !(1..=31).contains(&copies)
            || !(SHIFT_MIN..=SHIFT_MAX).contains(&shift)
            || size > max_hyper_bytes(shift)
        {
            return Err(ClientError::InvalidParameters);
        }
        if self.working_vdi(name).is_some() {
            return Err(ClientError::VdiExists);
        }
        self.check_hides_no_snapshot(name)?;
        let pool = self.pool_for(policy).ok_or(ClientError::NoStorage)?;
        let vid = self.new_vdi(name, size, policy, pool, shift, time_ns)?;
        applied.vdis.push(vid);
        Ok(Accepted::Vdi(vid))
    }

    /// What VDIs get that are made without a word about it. Those there are keep theirs.
    pub(super) fn set_default_policy(&mut self, policy: CopyPolicy) -> Outcome {
        let format = self.format.as_mut().expect("checked by the caller");
        match policy {
            CopyPolicy::Replicated { copies: 1..=31 } => format.policy = policy,
            CopyPolicy::Replicated { .. } => return Err(ClientError::InvalidParameters),
            _ => return Err(ClientError::Unsupported("erasure-coded VDIs".into())),
        }
        Ok(Accepted::Done)
    }

    /// A working VDI without parent, in a lineage of its own.
    pub(super) fn new_vdi(
        &mut self,
        name: &[u8],
        size: u64,
        policy: CopyPolicy,
        pool: PoolId,
        shift: u8,
        time_ns: u64,
    ) -> Result<Vid, ClientError> {
        let vid = self.free_vid(name).ok_or(ClientError::NoFreeVid)?;
        let vdi = Vdi {
            name: name.to_vec(),
            tag: Vec::new(),
            size,
            policy,
            pool,
            block_size_shift: shift,
            snap_id: self.next_snap_id(name),
            create_time: wire_time(time_ns),
            snap_ctime: 0,
            vm_state_size: 0,
            vm_clock_nsec: 0,
            parent: Vid(0),
            successor: None,
            lineage: Lineage(vid.0),
            pages: EnteredPages::default(),
            locks: Vec::new(),
            moved_locks: Vec::new(),
            life: Life::Alive,
        };
        self.vdis.insert(vid, vdi);
        Ok(vid)
    }

    /// VDIs of this name that exist: the working one and its snapshots.
    pub(super) fn named<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = (Vid, &'a Vdi)> + 'a {
        self.vdis
            .iter()
            .filter(move |(_, v)| v.life == Life::Alive && v.name == name)
            .map(|(vid, v)| (*vid, v))
    }

    /// The first vid at or after the name's hash that was never used (spec section 4.3).
    fn free_vid(&self, name: &[u8]) -> Option<Vid> {
        let start = vid_of_name(name);
        let mut vid = start;
        while self.vdis.contains_key(&vid) {
            vid = vid.next();
            if vid == start {
                return None;
            }
        }
        Some(vid)
    }

    pub(super) fn delete_vdi(&mut self, vid: Vid, applied: &mut Applied) -> Outcome {
        let Some(vdi) = self.vdis.get_mut(&vid).filter(|v| v.life == Life::Alive) else {
            return Err(ClientError::NoVdi);
        };
        vdi.life = Life::Remains;
        let name = std::mem::take(&mut vdi.name);
        vdi.locks.clear();
        vdi.moved_locks.clear();
        applied.vdis.push(vid);
        applied.deleted.push(vid);
        if self.named(&name).next().is_none() {
            self.attributes.remove(&name);
        }
        Ok(Accepted::Vdi(vid))
    }

    /// Only of a deleted one: whoever proposes it has seen every member that is up let go of its objects.
    pub(super) fn forget_vdi(&mut self, vid: Vid, applied: &mut Applied) -> Outcome {
        match self.vdis.get_mut(&vid) {
            Some(vdi) if vdi.life == Life::Remains => {
                vdi.life = Life::Gone;
                self.sessions.remove(&vid);
                applied.vdis.push(vid);
                Ok(Accepted::Done)
            }
            _ => Ok(Accepted::Refused),
        }
    }

    pub(super) fn resize_vdi(&mut self, vid: Vid, size: u64) -> Outcome {
        let Some(vdi) = self.vdis.get_mut(&vid).filter(|v| v.life == Life::Alive) else {
            return Err(ClientError::NoVdi);
        };
        if vdi.is_snapshot() {
            return Err(ClientError::ReadOnly);
        }
        if size < vdi.size || size > max_hyper_bytes(vdi.block_size_shift) {
            return Err(ClientError::InvalidParameters);
        }
        vdi.size = size;
        Ok(Accepted::Done)
    }

    /// Whoever asks writes to the page once everybody knows of it. A frozen VDI's table does not change any more.
    pub(super) fn enter_page(&mut self, vid: Vid, page: u32, applied: &mut Applied) -> Outcome {
        let vdi = self.vdis.get_mut(&vid).filter(|v| v.life == Life::Alive && !v.is_snapshot());
        match vdi {
            Some(vdi) if page < PAGES_MAX => {
                vdi.pages.insert(page);
                applied.vdis.push(vid);
                Ok(Accepted::Done)
            }
            _ => Ok(Accepted::Refused),
        }
    }

    pub fn working_vdi(&self, name: &[u8]) -> Option<Vid> {
        self.named(name).find(|(_, v)| !v.is_snapshot()).map(|(vid, _)| vid)
    }
}

/// `seconds << 32 | nanoseconds`.
pub(super) fn wire_time(time_ns: u64) -> u64 {
    (time_ns / 1_000_000_000) << 32 | (time_ns % 1_000_000_000)
}
