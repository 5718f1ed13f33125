//! What must hold between any two calls. Costly, so only tests and the simulator ask.

use std::collections::BTreeMap;

use crate::store::Store;

impl Store {
    /// # Panics
    /// If the parts of the store contradict each other: a leaked slot, a wrong count, a lost promise.
    pub fn assert_invariants(&self) {
        self.assert_slots();
        self.assert_records();
    }

    fn assert_slots(&self) {
        let mut refs = vec![0; self.superblock.geometry.slots as usize];
        let all = (proto::Oid(0), proto::Oid(u64::MAX));
        for map in self.tables.maps_between(all.0, all.1) {
            map.chunks.iter().filter(|c| !c.is_hole()).for_each(|c| refs[c.slot as usize] += 1);
        }
        assert_eq!(refs, self.tables.refs(), "reference counts are not what the maps say");
        let mapped = refs.iter().filter(|r| **r > 0).count() as u32;
        let known = mapped + self.slots.free_count() + self.slots_in_hand();
        assert_eq!(known, self.superblock.geometry.slots, "a slot leaked");
        let mut promised = 0;
        for (oid, chunk) in self.written.chunks() {
            let (at, written) =
                (self.tables.chunk(oid, chunk), self.written.chunk(oid, chunk).expect("listed"));
            promised += u32::from(written.promised);
            let has_home = !at.is_hole() && !self.tables.is_shared(at.slot);
            assert!(
                has_home || written.promised || self.is_moving(oid, chunk),
                "chunk {chunk} of object {oid} has written blocks and no way home"
            );
        }
        assert_eq!(promised, self.slots.promised(), "promises do not match");
    }

    fn assert_records(&self) {
        let (mut live, mut tags) = (BTreeMap::<u64, u32>::new(), BTreeMap::<u64, u32>::new());
        for (oid, chunk) in self.written.chunks() {
            for block in &self.written.chunk(oid, chunk).expect("listed").blocks {
                *live.entry(block.data_seq).or_default() += 1;
            }
        }
        for seq in self.tags.logged_in() {
            *tags.entry(seq).or_default() += 1;
        }
        for seq in self.journal.tail_seq()..=self.journal.last_seq() {
            let info = self.journal.info(seq);
            info.replaces.iter().for_each(|old| *live.entry(*old).or_default() += 1);
            info.replaces_tags.iter().for_each(|old| *tags.entry(*old).or_default() += 1);
        }
        for seq in self.journal.tail_seq()..=self.journal.last_seq() {
            let info = self.journal.info(seq);
            assert_eq!(info.live, live.remove(&seq).unwrap_or(0), "live blocks of record {seq}");
            assert_eq!(info.tags, tags.remove(&seq).unwrap_or(0), "tags of record {seq}");
        }
        assert!(live.is_empty() && tags.is_empty(), "a record was trimmed too early: {live:?} {tags:?}");
    }
}
