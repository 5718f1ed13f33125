//! The objects of a VDI, from its block table.

use proto::inode::{InodeHeader, TABLE_ENTRIES};
use proto::{Oid, Vid};

use crate::sheep::{Call, Sheep};

/// An allocated entry: the object at `index` of the VDI belongs to `owner`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub index: u32,
    pub owner: Vid,
}

impl Entry {
    pub fn oid(&self) -> Oid {
        Oid::data(self.owner, self.index)
    }
}

/// Objects that a VDI of this size can have.
pub fn object_count(header: &InodeHeader) -> u32 {
    // A shift that no server would send must not be one of ours either.
    let shift = u32::from(header.block_size_shift).min(63);
    header.vdi_size.div_ceil(1 << shift).min(TABLE_ENTRIES.into()) as u32
}

/// All allocated entries, ascending.
pub fn fetch(sheep: &mut Sheep, vid: Vid, header: &InodeHeader) -> Call<Vec<Entry>> {
    let table = sheep.table(vid, object_count(header))?;
    let entries = (0..).zip(table).map(|(index, owner)| Entry { index, owner });
    Ok(entries.filter(|entry| entry.owner != Vid(0)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::CopyPolicy;

    #[test]
    fn a_partial_last_object_counts() {
        let header = |vdi_size, block_size_shift| InodeHeader {
            name: vec![],
            tag: vec![],
            create_time: 0,
            snap_ctime: 0,
            vm_clock_nsec: 0,
            vdi_size,
            vm_state_size: 0,
            policy: CopyPolicy::Replicated { copies: 1 },
            block_size_shift,
            snap_id: 1,
            vid: Vid(1),
            parent: Vid(0),
        };
        assert_eq!(object_count(&header(0, 22)), 0);
        assert_eq!(object_count(&header(1, 22)), 1);
        assert_eq!(object_count(&header((4 << 20) + 1, 22)), 2);
        assert_eq!(object_count(&header(u64::MAX, 20)), TABLE_ENTRIES);
        assert_eq!(object_count(&header(u64::MAX, 255)), 2);
    }
}
