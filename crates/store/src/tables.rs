//! The two tables in memory: maps (which slots an object has) and descriptors (checksums of a slot's blocks), and who refers to
//! which slot: maps do, and an overlay that a map refers to does to the slot below it.
//!
//! Every change is an [`Entry`](crate::record::Entry) of a journal record first; here it takes effect and makes its page
//! dirty. The same functions serve the running store and recovery, so that both come to the same tables.

use std::collections::{BTreeMap, BTreeSet};

use proto::checksum::crc32c;
use proto::{BLOCK_BYTES, Oid};

use crate::descriptors::Descriptors;
use crate::free_set::FreeSet;
use crate::layout::*;
use crate::overlays::Overlays;
use crate::record::{Below, ChunkRef, Descriptor, NO_SLOT};

/// In the place of a map's group: the map is free.
const FREE_GROUP: u32 = u32::MAX;

/// Up to 64 chunks of one object.
pub struct Map {
    pub oid: Oid,
    pub group: u32,
    pub chunks: [ChunkRef; GROUP_CHUNKS as usize],
}

/// The records between which a page was changed and not written since.
#[derive(Clone, Copy, Debug)]
pub struct Dirty {
    pub first: u64,
    pub last: u64,
}

pub struct Tables {
    pub geometry: Geometry,
    descriptors: Descriptors,
    maps: Vec<Option<Box<Map>>>,
    /// During recovery those of maps only: which overlays count is known at its end.
    refs: Vec<u32>,
    overlays: Overlays,
    /// Slots that lost a reference and kept another: by which record. A crash before it is durable brings the reference back.
    unshared: BTreeMap<u32, u64>,
    /// Empty during recovery, when two maps may claim the same key for a while.
    by_key: BTreeMap<(Oid, u32), u32>,
    free_maps: FreeSet,
    indexed: bool,
    pub dirty: BTreeMap<PageId, Dirty>,
}

/// Two maps of the same part of one object, a reference beyond the disk: the tables contradict themselves.
#[derive(Debug, PartialEq, Eq)]
pub struct Contradiction;

impl Tables {
    pub fn empty(geometry: Geometry) -> Self {
        let (slots, maps) = (geometry.slots as usize, geometry.maps as usize);
        Tables {
            geometry,
            descriptors: Descriptors::empty(geometry.store_id, geometry.slots),
            maps: std::iter::repeat_with(|| None).take(maps).collect(),
            refs: vec![0; slots],
            overlays: Overlays::default(),
            unshared: BTreeMap::new(),
            by_key: BTreeMap::new(),
            free_maps: FreeSet::empty(geometry.maps),
            indexed: false,
            dirty: BTreeMap::new(),
        }
    }

    /// Ends recovery: checks that the tables are consistent and makes them searchable. Returns the pages whose descriptors of
    /// slots in use are lost: what such an overlay had below is forgotten from now on, and must be on the disk too before
    /// that slot is given to anybody (a bad read may turn out a good one next time).
    pub fn index(&mut self) -> Result<BTreeSet<PageId>, Contradiction> {
        self.by_key.clear();
        for (id, map) in self.maps.iter().enumerate() {
            match map {
                None => self.free_maps.insert(id as u32),
                Some(map) => {
                    if self.by_key.insert((map.oid, map.group), id as u32).is_some() {
                        return Err(Contradiction);
                    }
                }
            }
        }
        self.indexed = true;
        self.index_overlays()?;
        let in_use = (0..self.geometry.slots).filter(|slot| self.refs[*slot as usize] > 0);
        let lost = in_use.filter(|slot| self.descriptors.give_up_if_unknown(*slot));
        Ok(lost.map(|slot| PageId::Descriptors(slot / DESCRIPTORS_PER_PAGE)).collect())
    }

    /// An overlay lies on a plain slot: nothing is ever looked for further down.
    fn index_overlays(&mut self) -> Result<(), Contradiction> {
        for slot in 0..self.geometry.slots {
            let below = self.below(slot);
            if self.refs[slot as usize] == 0 || below.is_none() {
                continue;
            }
            if below.slot >= self.geometry.slots || !self.below(below.slot).is_none() {
                return Err(Contradiction);
            }
            self.link(slot);
        }
        Ok(())
    }

    pub fn refs(&self) -> &[u32] {
        &self.refs
    }

    /// In which slot a block of a chunk lies that has `slot` in its map, at the same index.
    pub fn place(&self, slot: u32, index: u32) -> u32 {
        let below = self.below(slot);
        if below.mask & (1 << index) != 0 { below.slot } else { slot }
    }

    /// Of a block of a chunk that has `slot`, wherever it lies.
    pub fn crc(&self, slot: u32, index: u32) -> u32 {
        self.descriptors.crc(self.place(slot, index), index)
    }

    /// Blocks of a chunk that has `slot` whose content or checksum is known to be lost, wherever they lie.
    pub fn lost(&self, slot: u32) -> u16 {
        let below = self.below(slot);
        let further = if below.is_none() { 0 } else { self.descriptors.lost(below.slot) & below.mask };
        self.descriptors.lost(slot) & !below.mask | further
    }

    pub fn below(&self, slot: u32) -> Below {
        self.descriptors.below(slot)
    }

    /// Overlays, each with a slot below it that nobody else refers to any more.
    pub fn mergeable(&self) -> impl Iterator<Item = u32> + '_ {
        self.overlays.lonely()
    }

    pub fn overlays(&self) -> &Overlays {
        &self.overlays
    }

    pub fn free_map_count(&self) -> u32 {
        self.free_maps.count()
    }

    pub fn take_map(&mut self) -> Option<u32> {
        self.free_maps.take()
    }

    pub fn map_id(&self, oid: Oid, group: u32) -> Option<u32> {
        self.by_key.get(&(oid, group)).copied()
    }

    pub fn map(&self, id: u32) -> &Map {
        self.maps[id as usize].as_ref().expect("an indexed map exists")
    }

    pub fn exists(&self, oid: Oid) -> bool {
        self.maps_of(oid).next().is_some()
    }

    /// Ids of all maps of an object, by group.
    pub fn maps_of(&self, oid: Oid) -> impl Iterator<Item = u32> + '_ {
        self.by_key.range((oid, 0)..=(oid, u32::MAX)).map(|(_, id)| *id)
    }

    /// All maps of the objects in a range of ids, in order.
    pub fn maps_between(&self, first: Oid, last: Oid) -> impl Iterator<Item = &Map> + '_ {
        let empty = first > last;
        let range = if empty { (first, 0)..=(first, 0) } else { (first, 0)..=(last, u32::MAX) };
        self.by_key.range(range).filter(move |_| !empty).map(|(_, id)| self.map(*id))
    }

    pub fn object_count(&self) -> u64 {
        let mut last = None;
        self.by_key.keys().filter(|(oid, _)| last.replace(*oid) != Some(*oid)).count() as u64
    }

    pub fn chunk(&self, oid: Oid, chunk: u32) -> ChunkRef {
        match self.map_id(oid, chunk / GROUP_CHUNKS) {
            Some(id) => self.map(id).chunks[(chunk % GROUP_CHUNKS) as usize],
            None => ChunkRef::HOLE,
        }
    }

    pub fn is_shared(&self, slot: u32) -> bool {
        self.refs[slot as usize] > 1
    }

    fn touch(&mut self, page: PageId, seq: u64) {
        let dirty = self.dirty.entry(page).or_insert(Dirty { first: seq, last: seq });
        dirty.last = seq;
    }

    fn refer(&mut self, chunk: ChunkRef) -> Result<(), Contradiction> {
        if chunk.is_hole() {
            return Ok(());
        }
        let refs = self.refs.get_mut(chunk.slot as usize).ok_or(Contradiction)?;
        *refs += 1;
        let is_first = *refs == 1;
        self.overlays.handle_refs(chunk.slot, *refs);
        if is_first && self.indexed {
            self.link(chunk.slot);
        }
        Ok(())
    }

    /// `freed`: gets the slot if that was its last reference, and the one below it likewise.
    fn unrefer(&mut self, chunk: ChunkRef, seq: u64, freed: &mut Vec<u32>) {
        if chunk.is_hole() {
            return;
        }
        let refs = &mut self.refs[chunk.slot as usize];
        *refs = refs.checked_sub(1).expect("a reference is dropped once");
        self.overlays.handle_refs(chunk.slot, *refs);
        if *refs > 0 && self.indexed {
            self.unshared.insert(chunk.slot, seq);
        }
        if *refs == 0 {
            freed.push(chunk.slot);
            if self.indexed {
                self.unlink(chunk.slot, self.below(chunk.slot), seq, freed);
            }
        }
    }

    /// A slot in use refers to the one below it.
    fn link(&mut self, overlay: u32) {
        let below = self.below(overlay);
        if below.is_none() {
            return;
        }
        let refs = &mut self.refs[below.slot as usize];
        *refs += 1;
        self.overlays.insert(below.slot, overlay, *refs);
    }

    /// The slot below an overlay is not referred to by it any more. The descriptor of an overlay that is free itself stays as it was: only
    /// the record that freed it may change what a crash would bring back.
    fn unlink(&mut self, overlay: u32, below: Below, seq: u64, freed: &mut Vec<u32>) {
        if below.is_none() {
            return;
        }
        self.overlays.remove(below.slot, overlay);
        self.unrefer(ChunkRef { slot: below.slot, mask: below.mask }, seq, freed);
    }

    /// Might the slot be another object's too after a crash now? Then it must not be written in place.
    pub fn was_shared(&self, slot: u32, durable: u64) -> bool {
        self.unshared.get(&slot).is_some_and(|seq| *seq > durable)
    }

    /// Everything up to this record is durable.
    pub fn forget_unshared(&mut self, durable: u64) {
        self.unshared.retain(|_, seq| *seq > durable);
    }

    pub fn set_map(
        &mut self,
        id: u32,
        oid: Oid,
        group: u32,
        chunks: &[(u8, ChunkRef)],
        seq: u64,
    ) -> Result<(), Contradiction> {
        if id >= self.geometry.maps || group >= GROUPS_MAX {
            return Err(Contradiction);
        }
        self.clear_map(id, seq);
        let mut map = Box::new(Map { oid, group, chunks: [ChunkRef::HOLE; GROUP_CHUNKS as usize] });
        for (index, chunk) in chunks {
            self.refer(*chunk)?;
            map.chunks[*index as usize] = *chunk;
        }
        if self.indexed {
            let old = self.by_key.insert((oid, group), id);
            assert!(old.is_none(), "a second map for group {group} of object {oid}");
        }
        self.maps[id as usize] = Some(map);
        self.touch(PageId::Maps(id / MAPS_PER_PAGE), seq);
        Ok(())
    }

    /// Frees a map; returns the slots that nobody refers to any more.
    pub fn free_map(&mut self, id: u32, seq: u64) -> Result<Vec<u32>, Contradiction> {
        if id >= self.geometry.maps {
            return Err(Contradiction);
        }
        let freed = self.clear_map(id, seq);
        if self.indexed {
            self.free_maps.insert(id);
        }
        self.touch(PageId::Maps(id / MAPS_PER_PAGE), seq);
        Ok(freed)
    }

    fn clear_map(&mut self, id: u32, seq: u64) -> Vec<u32> {
        let Some(map) = self.maps[id as usize].take() else { return Vec::new() };
        if self.indexed {
            self.by_key.remove(&(map.oid, map.group));
        }
        let mut freed = Vec::new();
        map.chunks.iter().for_each(|chunk| self.unrefer(*chunk, seq, &mut freed));
        freed
    }

    /// Returns the slots that nobody refers to any more.
    pub fn set_chunk(
        &mut self,
        id: u32,
        index: u8,
        chunk: ChunkRef,
        seq: u64,
    ) -> Result<Vec<u32>, Contradiction> {
        let Some(map) = self.maps.get(id as usize) else { return Err(Contradiction) };
        if map.is_none() {
            // Only in recovery: the page on disk is newer than this record, and a later record says so too.
            assert!(!self.indexed, "map {id} is not in use");
            return Ok(Vec::new());
        }
        self.refer(chunk)?;
        let map = self.maps[id as usize].as_mut().expect("seen above");
        let old = std::mem::replace(&mut map.chunks[index as usize], chunk);
        self.touch(PageId::Maps(id / MAPS_PER_PAGE), seq);
        let mut freed = Vec::new();
        self.unrefer(old, seq, &mut freed);
        Ok(freed)
    }

    /// Returns the slot that was below and that nobody refers to any more.
    pub fn set_descriptor(&mut self, new: &Descriptor, seq: u64) -> Result<Vec<u32>, Contradiction> {
        if new.slot >= self.geometry.slots {
            return Err(Contradiction);
        }
        let (old, mut freed) = (self.below(new.slot), Vec::new());
        self.descriptors.set(new);
        if self.indexed && self.refs[new.slot as usize] > 0 && old.slot != new.below.slot {
            assert!(new.below.is_none(), "slot {} is in use and comes to lie on another", new.slot);
            self.unlink(new.slot, old, seq, &mut freed);
        }
        self.touch(PageId::Descriptors(new.slot / DESCRIPTORS_PER_PAGE), seq);
        Ok(freed)
    }

    /// The page as it is to lie on disk.
    pub fn encode_page(&self, page: PageId) -> [u8; BLOCK_BYTES] {
        let mut out = [0; BLOCK_BYTES];
        match page {
            PageId::Descriptors(n) => {
                for (i, entry) in out.chunks_exact_mut(DESCRIPTOR_BYTES).enumerate() {
                    let slot = n * DESCRIPTORS_PER_PAGE + i as u32;
                    if slot < self.geometry.slots {
                        self.descriptors.encode(slot, entry);
                    }
                }
            }
            PageId::Maps(n) => {
                for (i, entry) in out.chunks_exact_mut(MAP_BYTES).enumerate() {
                    let id = n * MAPS_PER_PAGE + i as u32;
                    if let Some(map) = self.maps.get(id as usize) {
                        encode_map(self.geometry.store_id, id, map.as_deref(), entry);
                    }
                }
            }
        }
        out
    }

    /// Takes over a page read from disk. A rotten descriptor loses its blocks, a rotten map could hide an object.
    pub fn load_page(&mut self, page: PageId, bytes: &[u8]) -> Result<(), Contradiction> {
        match page {
            PageId::Descriptors(n) => {
                for (i, entry) in bytes.chunks_exact(DESCRIPTOR_BYTES).enumerate() {
                    let slot = n * DESCRIPTORS_PER_PAGE + i as u32;
                    if slot < self.geometry.slots {
                        self.descriptors.load(slot, entry);
                    }
                }
                Ok(())
            }
            PageId::Maps(n) => {
                for (i, entry) in bytes.chunks_exact(MAP_BYTES).enumerate() {
                    let id = n * MAPS_PER_PAGE + i as u32;
                    if id >= self.geometry.maps {
                        continue;
                    }
                    if let Some(map) = decode_map(self.geometry.store_id, id, entry)? {
                        for chunk in map.chunks {
                            self.refer(chunk)?;
                        }
                        self.maps[id as usize] = Some(Box::new(map));
                    }
                }
                Ok(())
            }
        }
    }
}

/// A page of maps that are all free, as `format` leaves it.
pub fn encode_free_page(geometry: &Geometry, page: u32) -> [u8; BLOCK_BYTES] {
    let mut out = [0; BLOCK_BYTES];
    for (id, entry) in (page * MAPS_PER_PAGE..geometry.maps).zip(out.chunks_exact_mut(MAP_BYTES)) {
        encode_map(geometry.store_id, id, None, entry);
    }
    out
}

/// A free map has bytes too: zeros, which is what lost sectors read as, must not make an object vanish.
fn encode_map(store_id: u64, id: u32, map: Option<&Map>, out: &mut [u8]) {
    out[4..8].copy_from_slice(&id.to_le_bytes());
    out[8..16].copy_from_slice(&store_id.to_le_bytes());
    match map {
        None => out[24..28].copy_from_slice(&FREE_GROUP.to_le_bytes()),
        Some(map) => {
            out[16..24].copy_from_slice(&map.oid.0.to_le_bytes());
            out[24..28].copy_from_slice(&map.group.to_le_bytes());
            for (i, chunk) in map.chunks.iter().enumerate() {
                out[64 + i * 4..68 + i * 4].copy_from_slice(&chunk.slot.to_le_bytes());
                out[320 + i * 2..322 + i * 2].copy_from_slice(&chunk.mask.to_le_bytes());
            }
        }
    }
    let crc = crc32c(&out[4..]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
}

/// `None`: the map is free.
fn decode_map(store_id: u64, id: u32, bytes: &[u8]) -> Result<Option<Map>, Contradiction> {
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    if crc32c(&bytes[4..]) != u32_at(0) || u32_at(4) != id || u64_at(8) != store_id {
        return Err(Contradiction);
    }
    if u32_at(24) == FREE_GROUP {
        return Ok(None);
    }
    let mut map =
        Map { oid: Oid(u64_at(16)), group: u32_at(24), chunks: [ChunkRef::HOLE; GROUP_CHUNKS as usize] };
    for (i, chunk) in map.chunks.iter_mut().enumerate() {
        let mask = u16::from_le_bytes([bytes[320 + i * 2], bytes[321 + i * 2]]);
        *chunk = ChunkRef { slot: u32_at(64 + i * 4), mask };
        if chunk.slot == NO_SLOT && mask != 0 {
            return Err(Contradiction);
        }
    }
    if map.group >= GROUPS_MAX {
        return Err(Contradiction);
    }
    Ok(Some(map))
}

/// The numbers of the bits that are set, ascending.
pub fn bits(mask: u16) -> impl Iterator<Item = u32> {
    (0..16).filter(move |bit| mask & (1 << bit) != 0)
}

/// The bits `first .. first + count`.
pub fn run_mask(first: u32, count: u32) -> u16 {
    debug_assert!(first + count <= 16);
    (((1u32 << count) - 1) << first) as u16
}

/// The mask as runs of neighbours: (first, count).
pub fn runs(mask: u16) -> impl Iterator<Item = (u32, u32)> {
    let mut rest = u32::from(mask);
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let first = rest.trailing_zeros();
        let count = (rest >> first).trailing_ones();
        rest &= !(((1 << count) - 1) << first);
        Some((first, count))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_survive_their_bytes_and_rot_is_noticed() {
        let geometry = Geometry::fit(3, 8 << 20, 1 << 20).unwrap();
        let mut tables = Tables::empty(geometry);
        tables.index().unwrap();
        let id = tables.take_map().unwrap();
        let chunk = ChunkRef { slot: 5, mask: 7 };
        tables.set_map(id, Oid(9), 0, &[(3, chunk)], 1).unwrap();
        let below = Below::NONE;
        let crcs = vec![10, 11, 12];
        tables
            .set_descriptor(&Descriptor { slot: 5, reset: true, below, lost: 0, mask: 7, crcs }, 1)
            .unwrap();
        let (d, m) = (tables.encode_page(PageId::Descriptors(0)), tables.encode_page(PageId::Maps(0)));

        let mut again = Tables::empty(geometry);
        again.load_page(PageId::Descriptors(0), &d).unwrap();
        again.load_page(PageId::Maps(0), &m).unwrap();
        again.index().unwrap();
        assert_eq!((again.chunk(Oid(9), 3), again.crc(5, 2), again.refs()[5]), (chunk, 12, 1));

        let mut rotten = Tables::empty(geometry);
        let mut bad = d;
        bad[5 * DESCRIPTOR_BYTES + 70] ^= 1;
        rotten.load_page(PageId::Descriptors(0), &bad).unwrap();
        assert_eq!((rotten.lost(5), rotten.lost(4)), (FULL_MASK, 0));
        for (at, mask) in [(100, 1), (MAP_BYTES + 8, 1), (MAP_BYTES + 24, 0x80)] {
            let mut bad = m;
            bad[at] ^= mask;
            assert_eq!(rotten.load_page(PageId::Maps(0), &bad), Err(Contradiction), "byte {at}");
        }
        assert_eq!(rotten.load_page(PageId::Maps(0), &[0; BLOCK_BYTES]), Err(Contradiction));
        assert_eq!(rotten.load_page(PageId::Maps(1), &encode_free_page(&geometry, 1)), Ok(()));
    }

    #[test]
    fn runs_cover_a_mask() {
        assert_eq!(runs(0b1100_1001).collect::<Vec<_>>(), [(0, 1), (3, 1), (6, 2)]);
        assert_eq!(runs(FULL_MASK).collect::<Vec<_>>(), [(0, 16)]);
        assert_eq!(run_mask(3, 2), 0b11000);
        assert_eq!(run_mask(0, 16), FULL_MASK);
    }
}
