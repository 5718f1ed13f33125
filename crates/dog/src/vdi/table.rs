//! The objects of a VDI, from its block table.

use std::collections::BTreeSet;

use proto::inode::TABLE_ENTRIES;
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

/// All allocated entries, ascending.
pub fn fetch(sheep: &mut Sheep, vid: Vid) -> Call<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut next = Some(0);
    while let Some(first) = next {
        let table = sheep.table(vid, first)?;
        entries.extend(table.entries.iter().map(|(index, owner, _)| Entry { index: *index, owner: *owner }));
        next = table.next;
    }
    // One that is being changed is told as it was as well.
    entries.dedup_by_key(|entry| entry.index);
    Ok(entries)
}

/// The objects that hold the table itself: the inode, and those behind it that have one of the entries.
pub fn pages(vid: Vid, entries: &[Entry]) -> Vec<Oid> {
    let pages = entries.iter().map(|entry| entry.index / TABLE_ENTRIES);
    let pages: BTreeSet<u32> = std::iter::once(0).chain(pages).collect();
    pages.into_iter().map(|page| Oid::table_page(vid, page)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lies_in_the_inode_and_in_pages_behind_it() {
        let vid = Vid(7);
        let entry = |index| Entry { index, owner: vid };
        assert_eq!(pages(vid, &[]), [Oid::inode(vid)]);
        let entries = [entry(TABLE_ENTRIES), entry(TABLE_ENTRIES + 5), entry(u32::MAX)];
        let last = Oid(0x1000_0007_0000_0fff);
        assert_eq!(pages(vid, &entries), [Oid::inode(vid), Oid(0x1000_0007_0000_0001), last]);
    }
}
