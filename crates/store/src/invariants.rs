//! What must hold between any two calls. Costly, so only tests and the simulator ask.

use std::collections::BTreeMap;

use crate::overlays::Overlays;
use crate::record::Below;
use crate::store::Store;

impl Store {
    /// # Panics
    /// If the parts of the store contradict each other: a leaked slot, a wrong count, a lost promise.
    pub fn assert_invariants(&self) {
        self.assert_slots();
        self.assert_records();
        let rests = self.is_quiet() && !self.write_back.is_ending();
        assert!(!rests || self.mergeable().next().is_none(), "a pair of slots is left as it is");
    }

    fn assert_slots(&self) {
        let mut refs = vec![0; self.superblock.geometry.slots as usize];
        let all = (proto::Oid(0), proto::Oid(u64::MAX));
        for map in self.tables.maps_between(all.0, all.1) {
            map.chunks.iter().filter(|c| !c.is_hole()).for_each(|c| refs[c.slot as usize] += 1);
        }
        self.add_overlays(&mut refs);
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

    /// Counts what overlays refer to, and checks that they lie on plain slots and are known from below too.
    fn add_overlays(&self, refs: &mut [u32]) {
        let mapped: Vec<u32> =
            (0..).zip(&*refs).filter(|(_, refs)| **refs > 0).map(|(slot, _)| slot).collect();
        let mut pairs = Vec::new();
        for (slot, below) in mapped.into_iter().map(|slot| (slot, self.tables.below(slot))) {
            assert_eq!(
                below.is_none(),
                below == Below::NONE,
                "slot {slot} has nothing below and names {below:?}"
            );
            if !below.is_none() {
                assert!(
                    self.tables.below(below.slot).is_none(),
                    "overlay {slot} lies on overlay {}",
                    below.slot
                );
                refs[below.slot as usize] += 1;
                pairs.push((below.slot, slot));
            }
        }
        let mut expected = Overlays::default();
        pairs.iter().for_each(|(below, slot)| expected.insert(*below, *slot, refs[*below as usize]));
        assert_eq!(self.tables.overlays(), &expected, "the overlays known from below");
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
