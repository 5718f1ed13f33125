//! Object ids: 64 bits of kind, vid and index (spec section 4.1).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Vid;

const LEDGER_BIT: u64 = 1 << 59;
const BTREE_BIT: u64 = 1 << 60;
const ATTR_BIT: u64 = 1 << 61;
const VMSTATE_BIT: u64 = 1 << 62;
const INODE_BIT: u64 = 1 << 63;

/// What an object is for, from the type bits of its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    Data,
    Ledger,
    BTree,
    Attribute,
    VmState,
    Inode,
}

/// Id of an object. Sorts by kind, then vid, then index.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Oid(pub u64);

impl Oid {
    pub const fn data(vid: Vid, index: u32) -> Oid {
        Oid((vid.0 as u64) << 32 | index as u64)
    }

    pub const fn inode(vid: Vid) -> Oid {
        Oid(INODE_BIT | (vid.0 as u64) << 32)
    }

    /// A page of a VDI's block table: the inode object, or one of the objects behind it.
    pub const fn table_page(vid: Vid, page: u32) -> Oid {
        match page {
            0 => Oid::inode(vid),
            _ => Oid(BTREE_BIT | (vid.0 as u64) << 32 | page as u64),
        }
    }

    pub const fn vmstate(vid: Vid, index: u32) -> Oid {
        Oid(VMSTATE_BIT | (vid.0 as u64) << 32 | index as u64)
    }

    /// The kind, or `None` where reserved bits or several kinds are set.
    pub fn kind(self) -> Option<ObjectKind> {
        match self.0 >> 56 {
            0 => Some(ObjectKind::Data),
            0x08 => Some(ObjectKind::Ledger),
            0x10 => Some(ObjectKind::BTree),
            0x20 => Some(ObjectKind::Attribute),
            0x40 => Some(ObjectKind::VmState),
            0x80 => Some(ObjectKind::Inode),
            _ => None,
        }
    }

    pub fn vid(self) -> Vid {
        Vid((self.0 >> 32) as u32 & Vid::MAX.0)
    }

    pub fn index(self) -> u32 {
        self.0 as u32
    }

    /// Smallest and largest id of each kind of object that belongs to `vid`.
    pub fn ranges_of(vid: Vid) -> [(Oid, Oid); 6] {
        [0, LEDGER_BIT, BTREE_BIT, ATTR_BIT, VMSTATE_BIT, INODE_BIT].map(|kind| {
            let first = kind | u64::from(vid.0) << 32;
            (Oid(first), Oid(first | 0xffff_ffff))
        })
    }
}

/// Sixteen hex digits, as everywhere in Sheepdog's output.
impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_match_the_examples_of_the_specification() {
        let vid = Vid(0xa03907);
        assert_eq!(Oid::inode(vid).to_string(), "80a0390700000000");
        assert_eq!(Oid::data(vid, 3).to_string(), "00a0390700000003");
        assert_eq!(Oid::vmstate(vid, 0).to_string(), "40a0390700000000");
        assert_eq!(Oid(0x10a0_3907_0000_0005).kind(), Some(ObjectKind::BTree));
        assert_eq!(Oid(0xc0a0_3907_0000_0000).kind(), None);
        assert_eq!(Oid::data(vid, 7).vid(), vid);
    }
}
