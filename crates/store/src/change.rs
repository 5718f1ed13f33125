//! Changes: from the order to the journal record, and what each does to the tables.
//!
//! Small writes, and the ragged edges of large ones, put their data into the journal. Whole chunks of large writes go to fresh slots
//! first, durably; only then does the record that maps them enter the journal, so a mapping never points at data that a crash may lose.

use std::collections::VecDeque;

use buffer::{AlignedBuf, aligned};
use bytes::Bytes;
use proto::object::{BlockRange, Change, ObjectOp, ObjectReply, Origin, StoreFailure, Tag, WriteBase};
use proto::{ObjectKind, Oid};

use crate::io::IoOp;
use crate::layout::*;
use crate::record::{Below, ChunkRef, Descriptor, Entry, TagKey, encode_write};
use crate::store::{DirectChunk, IoOwner, Pending, Stage, Store, map_place};
use crate::tables::run_mask;
use crate::write_back::{PATIENT_ROUNDS, TAG_ENTRY_BYTES};
use crate::written::Removed;

/// Up to 32 KiB go through the journal: writing them twice costs less than a second I/O before the answer.
const JOURNAL_WRITE_BLOCKS_MAX: u32 = 8;
/// Larger payloads, and those of which a part is on the disk, are not kept in memory for the sake of a few blocks at their edges.
const KEEP_PAYLOAD_BYTES_MAX: usize = 64 << 10;
/// Of slots and maps, a 16th is held back for changes that must not be refused, of slots at most 512 MiB: more than many guests have under way
/// at one moment.
const HELD_BACK_PART: u32 = 16;
const HELD_BACK_SLOTS_MAX: u32 = 8192;
/// 4 MiB in slots of 64 KiB.
const USUAL_OBJECT_SLOTS: u32 = 64;
/// Entries of fixed size that one change makes, with room to spare.
const FIXED_ENTRIES_BYTES: usize = 512;
/// A map entry with all its chunks.
const MAP_ENTRY_BYTES: usize = 18 + 7 * GROUP_CHUNKS as usize;
const DIRECT_ENTRY_BYTES: usize = 48 + 4 * SLOT_BLOCKS as usize;

/// What of the free room a change may not take: see [`Tag::last_room`].
#[derive(Clone, Copy, Default)]
struct HeldBack {
    slots: u32,
    maps: u32,
}

/// What a change takes at most.
struct Need {
    entries_bytes: usize,
    data_blocks: u64,
    slots: u32,
    maps: u32,
}

impl Store {
    pub(crate) fn start_change(&mut self, order: u64, ticket: u64, op: ObjectOp) {
        let ObjectOp::Change { oid, change, data, tag } = op else { unreachable!("only changes come here") };
        let base = self.real_base(oid, &change);
        let too_many_tags = tag.is_some() && self.tags.len() >= self.journal.tags_max();
        let chunks = match &change {
            Change::Write { blocks, .. } if !too_many_tags => {
                let held_back = self.held_back(&tag);
                let plan = self.plan_direct(oid, *blocks, base, &data);
                if self.has_slots(&plan, held_back) {
                    Some(plan)
                } else if self.waits_for_room(order) {
                    None
                } else {
                    let plan = self.spare(oid, *blocks, base, plan);
                    self.has_slots(&plan, held_back).then_some(plan)
                }
            }
            _ => Some(Vec::new()),
        };
        let op = ObjectOp::Change { oid, change, data, tag };
        match chunks {
            _ if too_many_tags => self.refuse(order, ticket, &op, &[]),
            None if self.waits_for_room(order) => {
                self.growth.roomless.push_back(order);
                self.park(order, Pending { ticket, op, stage: Stage::Roomless });
            }
            None => self.refuse(order, ticket, &op, &[]),
            Some(chunks) if chunks.is_empty() => self.enter_journal(order, ticket, op, chunks),
            Some(mut chunks) => {
                for direct in &mut chunks {
                    direct.slot = self.slots.take().expect("available");
                }
                let writes_left = self.write_direct(order, &op, &chunks);
                self.park(order, Pending { ticket, op, stage: Stage::Direct { chunks, writes_left } });
            }
        }
    }

    /// A copy that refuses what another one has taken already must be able to take it after all: for that a part of the room is held back from
    /// whoever can still be refused. What a file has not taken of its file system yet is room as well, unless that has said no.
    fn held_back(&self, tag: &Option<Tag>) -> HeldBack {
        if tag.is_some_and(|tag| tag.last_room) {
            return HeldBack::default();
        }
        let geometry = &self.superblock.geometry;
        let to_come = if self.growth.is_denied() { 0 } else { self.slots.absent() };
        let slots = (geometry.slots / HELD_BACK_PART).min(HELD_BACK_SLOTS_MAX).saturating_sub(to_come);
        HeldBack { slots, maps: geometry.maps / HELD_BACK_PART }
    }

    /// Would an object of the usual size be refused by now? What is freed at this moment comes too late.
    pub(crate) fn is_full(&self) -> bool {
        let held_back = self.held_back(&None);
        let may_grow = self.slots.absent() > 0 && !self.growth.is_denied();
        let has_slots = may_grow || self.slots.available() >= USUAL_OBJECT_SLOTS + held_back.slots;
        !has_slots || self.tables.free_map_count() <= held_back.maps
    }

    /// A clone of itself keeps everything, a clone of nothing is empty. No unapplied order can change that: we are past the gates.
    fn real_base(&self, oid: Oid, change: &Change) -> WriteBase {
        match change {
            Change::Write { base: WriteBase::CloneOf(from), .. } if *from == oid => WriteBase::Keep,
            Change::Write { base: WriteBase::CloneOf(from), .. } if !self.tables.exists(*from) => {
                WriteBase::Empty
            }
            Change::Write { base, .. } => *base,
            _ => WriteBase::Keep,
        }
    }

    /// The chunks that are to go to fresh slots directly, which are not taken yet.
    fn plan_direct(&self, oid: Oid, blocks: BlockRange, base: WriteBase, data: &Bytes) -> Vec<DirectChunk> {
        let mut chunks = Vec::new();
        if blocks.count <= JOURNAL_WRITE_BLOCKS_MAX {
            return chunks;
        }
        for (chunk, first, count) in self.filled(oid, blocks, base, data) {
            if count == SLOT_BLOCKS || self.is_blank(oid, chunk, base) {
                chunks.push(DirectChunk { chunk, slot: 0, mask: run_mask(first, count) });
            }
        }
        chunks
    }

    fn has_slots(&self, plan: &[DirectChunk], held_back: HeldBack) -> bool {
        plan.is_empty() || self.slots.available() >= plan.len() as u32 + held_back.slots
    }

    /// On a full disk what overwrites slots of its own goes through the journal and then home, where it needs no room, as far as a record
    /// can hold it. Whether it still has them is asked again when it enters the journal.
    fn spare(
        &self,
        oid: Oid,
        blocks: BlockRange,
        base: WriteBase,
        mut plan: Vec<DirectChunk>,
    ) -> Vec<DirectChunk> {
        let planned: u32 = plan.iter().map(|direct| direct.mask.count_ones()).sum();
        // An eighth for all that is not data. The ragged edges of the write are in there anyway.
        let max = self.journal.record_blocks_max();
        let mut left = (max - max / 8).saturating_sub(u64::from(blocks.count.saturating_sub(planned)));
        plan.retain(|direct| {
            let blocks = u64::from(direct.mask.count_ones());
            let is_spared =
                base == WriteBase::Keep && blocks <= left && !self.wants_promise(oid, direct.chunk);
            left -= if is_spared { blocks } else { 0 };
            !is_spared
        });
        plan
    }

    /// The chunks of a write, without those of a large one that are zeros where there is nothing anyway. Only of block tables, whose pages
    /// are mostly such and go over whole: who writes zeros to data may want the room.
    fn filled(
        &self,
        oid: Oid,
        blocks: BlockRange,
        base: WriteBase,
        data: &Bytes,
    ) -> impl Iterator<Item = (u32, u32, u32)> {
        static ZEROS: [u8; SLOT_BYTES as usize] = [0; SLOT_BYTES as usize];
        let is_table = matches!(oid.kind(), Some(ObjectKind::Inode | ObjectKind::BTree));
        let may_skip = is_table && blocks.count > JOURNAL_WRITE_BLOCKS_MAX;
        split(blocks).filter(move |(chunk, first, count)| {
            let at = (chunk * SLOT_BLOCKS + first - blocks.first) as usize * BLOCK as usize;
            !may_skip
                || *count < SLOT_BLOCKS
                || !self.is_blank(oid, *chunk, base)
                || data[at..at + ZEROS.len()] != ZEROS
        })
    }

    /// Will this chunk be a hole when the object is as `base` says?
    fn is_blank(&self, oid: Oid, chunk: u32, base: WriteBase) -> bool {
        match base {
            WriteBase::Empty => true,
            WriteBase::Keep => {
                self.tables.chunk(oid, chunk).is_hole() && self.written.chunk(oid, chunk).is_none()
            }
            WriteBase::CloneOf(_) => false,
        }
    }

    /// Asks for the writes of the data, one for each run of neighbouring slots. Returns how many.
    fn write_direct(&mut self, order: u64, op: &ObjectOp, chunks: &[DirectChunk]) -> usize {
        let ObjectOp::Change { change: Change::Write { blocks, .. }, data, .. } = op else {
            unreachable!("only writes have data")
        };
        let first_byte = u64::from(blocks.first) * BLOCK;
        let data = aligned(data);
        let mut runs: Vec<(u64, u64, u64)> = Vec::new();
        for direct in chunks {
            let skip = u64::from(direct.mask.trailing_zeros()) * BLOCK;
            let len = u64::from(direct.mask.count_ones()) * BLOCK;
            let from = u64::from(direct.chunk) * SLOT_BYTES + skip - first_byte;
            let to = self.superblock.geometry.slot_offset(direct.slot) + skip;
            match runs.last_mut() {
                Some((f, t, l)) if *f + *l == from && *t + *l == to => *l += len,
                _ => runs.push((from, to, len)),
            }
        }
        for (from, to, len) in &runs {
            let piece = data.slice(*from as usize..(*from + *len) as usize);
            let write = IoOp::Write { offset: *to, data: vec![piece], durable: true };
            self.request_io(write, IoOwner::Direct { order });
        }
        runs.len()
    }

    pub(crate) fn handle_direct_written(&mut self, order: u64) {
        let pending = self.pending.get_mut(&order).expect("a direct write belongs to an order");
        let Stage::Direct { writes_left, .. } = &mut pending.stage else {
            unreachable!("direct writes end once")
        };
        *writes_left -= 1;
        if *writes_left == 0 {
            let Pending { ticket, op, stage } = self.pending.remove(&order).expect("just seen");
            let Stage::Direct { chunks, .. } = stage else { unreachable!("just seen") };
            self.enter_journal(order, ticket, op, chunks);
        }
    }

    /// Applies the change if the journal has room and nobody waits for it already, else lets it wait.
    pub(crate) fn enter_journal(&mut self, order: u64, ticket: u64, op: ObjectOp, chunks: Vec<DirectChunk>) {
        let began = self.write_back.rounds();
        let may_wait = is_copied(&op) && takes_memory(&op, &chunks);
        if may_wait && !(self.patient.is_empty() && self.may_go_on()) && !self.is_waited_for(order, &op) {
            self.patient.push_back((order, began));
            return self.park(order, Pending { ticket, op, stage: Stage::Stalled { chunks } });
        }
        if self.stalled.is_empty() && self.apply_if_admitted(order, ticket, &op, &chunks) {
            return;
        }
        self.stalled.push_back(order);
        self.park(order, Pending { ticket, op, stage: Stage::Stalled { chunks } });
    }

    pub(crate) fn admit_first_stalled(&mut self) -> bool {
        let Some(&order) = self.stalled.front() else { return false };
        let is_admitted = self.admit(order);
        if is_admitted {
            self.stalled.pop_front();
        }
        is_admitted
    }

    /// Whoever waits for an owner comes first; but who has waited for some rounds waits like others from then on.
    pub(crate) fn admit_first_patient(&mut self) -> bool {
        let Some(&(order, began)) = self.patient.front() else { return false };
        if self.write_back.rounds() >= began + PATIENT_ROUNDS {
            self.patient.pop_front();
            self.stalled.push_back(order);
            return true;
        }
        let is_admitted = self.stalled.is_empty() && self.may_go_on() && self.admit(order);
        if is_admitted {
            self.patient.pop_front();
        }
        is_admitted
    }

    fn is_waited_for(&self, order: u64, op: &ObjectOp) -> bool {
        let behind = self.orders_at_gates_of(op).into_iter().filter(|other| *other > order);
        let is_copied = |order: u64| self.pending.get(&order).is_some_and(|pending| is_copied(&pending.op));
        behind.into_iter().any(|order| !is_copied(order))
            || self.pending.values().any(|pending| matches!(pending.stage, Stage::Barrier))
    }

    /// Something that is waited for is behind patient orders: of the objects that it touches, or, a barrier, of all. They are patient no more.
    pub(crate) fn end_patience(&mut self, of: &ObjectOp) {
        if self.patient.is_empty() || is_copied(of) {
            return;
        }
        let ahead = self.orders_at_gates_of(of);
        let is_barrier = matches!(of, ObjectOp::Flush | ObjectOp::List { .. });
        let (hurried, patient) =
            self.patient.drain(..).partition(|(order, _)| is_barrier || ahead.contains(order));
        self.patient = patient;
        let hurried: VecDeque<(u64, u64)> = hurried;
        self.stalled.extend(hurried.into_iter().map(|(order, _)| order));
    }

    fn admit(&mut self, order: u64) -> bool {
        let Pending { ticket, op, stage } = self.pending.remove(&order).expect("stalled orders are pending");
        let Stage::Stalled { chunks } = stage else { unreachable!("it is stalled") };
        let is_admitted = self.apply_if_admitted(order, ticket, &op, &chunks);
        if !is_admitted {
            self.pending.insert(order, Pending { ticket, op, stage: Stage::Stalled { chunks } });
        }
        is_admitted
    }

    /// False: no room in the journal, in memory, or on the disk, yet. Otherwise the order is applied or refused.
    fn apply_if_admitted(&mut self, order: u64, ticket: u64, op: &ObjectOp, chunks: &[DirectChunk]) -> bool {
        let ObjectOp::Change { oid, change, data, tag } = op else {
            return self.amend_if_admitted(order, ticket, op);
        };
        let base = self.real_base(*oid, change);
        let need = self.need(*oid, change, base, data, chunks);
        let blocks = crate::record::header_blocks(need.entries_bytes) + need.data_blocks;
        let held_back = self.held_back(tag);
        let lacks_maps = need.maps > 0 && need.maps + held_back.maps > self.tables.free_map_count();
        let never = blocks > self.journal.record_blocks_max() || lacks_maps;
        let lacks_slots = need.slots > 0 && need.slots + held_back.slots > self.slots.available();
        if !never && lacks_slots && self.waits_for_room(order) {
            return false;
        }
        if never || lacks_slots {
            self.refuse(order, ticket, op, chunks);
            return true;
        }
        let has_memory = self.has_memory_for(need.data_blocks);
        if !has_memory || !self.journal.admits(need.entries_bytes, need.data_blocks, false) {
            return false;
        }
        let seq = self.journal.begin(need.entries_bytes, need.data_blocks);
        let before = self.journal.entries().len();
        self.apply(seq, *oid, change, base, data, chunks);
        if let Some(tag) = tag {
            self.remember_tag(seq, *oid, change, base, tag);
            if tag.tell_taken {
                // It is in the tables, and its record in memory: from here on only the end of this process or disk keeps it from being durable.
                self.replies.push_back((ticket, ObjectReply::Taken));
            }
        }
        let used = self.journal.entries().len() - before;
        assert!(used <= need.entries_bytes, "a record grew to {used}, expected {}", need.entries_bytes);
        self.undurable.insert(*oid, seq);
        let info = self.journal.info_mut(seq);
        info.oids.push(*oid);
        info.replies.push((ticket, ObjectReply::Done));
        self.open_gates(order, op);
        true
    }

    fn amend_if_admitted(&mut self, order: u64, ticket: u64, op: &ObjectOp) -> bool {
        let ObjectOp::Amend { forget, remember } = op else {
            unreachable!("nothing else enters the journal")
        };
        if !remember.is_empty() && self.tags.len() + remember.len() > self.journal.tags_max() {
            self.refuse(order, ticket, op, &[]);
            return true;
        }
        let entries_bytes = FIXED_ENTRIES_BYTES + (forget.len() + remember.len()) * TAG_ENTRY_BYTES;
        if !self.journal.admits(entries_bytes, 0, false) {
            return false;
        }
        let seq = self.journal.begin(entries_bytes, 0);
        for key in forget.iter().map(TagKey::from) {
            self.journal.push(&Entry::Untag { key });
            // The records that logged it are needed until this one is durable.
            let logged_before = self.tags.remove(&key);
            self.journal.info_mut(seq).replaces_tags.extend(logged_before);
        }
        for change in remember {
            let key = TagKey::from(change);
            self.journal.push(&Entry::Tag { key, origin: change.origin, settled: None });
            self.insert_tag(seq, key, change.origin);
        }
        self.journal.info_mut(seq).replies.push((ticket, ObjectReply::Done));
        true
    }

    fn insert_tag(&mut self, seq: u64, key: TagKey, origin: Origin) {
        let logged_before = self.tags.insert(key, origin, seq);
        let info = self.journal.info_mut(seq);
        info.tags += 1;
        info.tag_keys.push(key);
        info.replaces_tags.extend(logged_before);
    }

    /// No space: nothing was changed, and what was taken goes back. No write to those slots is in flight any more.
    fn refuse(&mut self, order: u64, ticket: u64, op: &ObjectOp, chunks: &[DirectChunk]) {
        chunks.iter().for_each(|direct| self.slots.give_back(direct.slot));
        self.replies.push_back((ticket, ObjectReply::Failed(StoreFailure::NoSpace)));
        self.open_gates(order, op);
    }

    /// An upper bound; computed before anything changes.
    fn need(&self, oid: Oid, change: &Change, base: WriteBase, data: &Bytes, direct: &[DirectChunk]) -> Need {
        let maps: Vec<u32> = self.tables.maps_of(oid).collect();
        let mut need = Need {
            entries_bytes: FIXED_ENTRIES_BYTES + direct.len() * DIRECT_ENTRY_BYTES,
            data_blocks: 0,
            slots: 0,
            maps: 0,
        };
        match change {
            Change::Delete => need.entries_bytes += maps.len() * 5,
            Change::Discard { blocks } => {
                let chunks = u64::from(blocks.count).div_ceil(u64::from(SLOT_BLOCKS)) + 1;
                let mapped = maps.len() * GROUP_CHUNKS as usize;
                need.entries_bytes += mapped.min(chunks as usize) * 12 + MAP_ENTRY_BYTES;
                need.maps += u32::from(maps.is_empty());
            }
            Change::Write { blocks, .. } => {
                need.entries_bytes += blocks.count as usize * 4;
                for (chunk, _, count) in self.filled(oid, *blocks, base, data) {
                    if direct.binary_search_by_key(&chunk, |d| d.chunk).is_ok() {
                        continue;
                    }
                    need.data_blocks += u64::from(count);
                    need.entries_bytes += 17;
                    need.slots += u32::from(base != WriteBase::Keep || self.wants_promise(oid, chunk));
                }
                for group in groups(*blocks) {
                    let known = base == WriteBase::Keep && self.tables.map_id(oid, group).is_some();
                    need.maps += u32::from(!known);
                }
                need.maps += u32::from(base != WriteBase::Keep || !self.tables.exists(oid));
                if base != WriteBase::Keep {
                    need.entries_bytes += maps.len() * 5;
                }
                if let WriteBase::CloneOf(from) = base {
                    need.maps += self.tables.maps_of(from).count() as u32;
                    for (_, written) in self.written.chunks_of(from) {
                        need.slots += 1 + u32::from(!written.promised);
                    }
                }
                need.entries_bytes += need.maps as usize * MAP_ENTRY_BYTES;
            }
        }
        need
    }

    /// Whether written blocks of this chunk will need a slot on their way home that is not promised yet.
    fn wants_promise(&self, oid: Oid, chunk: u32) -> bool {
        let at = self.tables.chunk(oid, chunk);
        (at.is_hole() || self.tables.is_shared(at.slot))
            && !self.written.chunk(oid, chunk).is_some_and(|w| w.promised)
    }

    pub(crate) fn promise_if_wanted(&mut self, oid: Oid, chunk: u32) {
        if self.wants_promise(oid, chunk)
            && let Some(written) = self.written.chunk_mut(oid, chunk)
        {
            written.promised = true;
            self.slots.promise();
        }
    }

    fn apply(
        &mut self,
        seq: u64,
        oid: Oid,
        change: &Change,
        base: WriteBase,
        data: &Bytes,
        direct: &[DirectChunk],
    ) {
        match change {
            Change::Delete => self.clear_object(seq, oid),
            Change::Discard { blocks } => self.apply_discard(seq, oid, *blocks),
            Change::Write { blocks, checksums, .. } => {
                match base {
                    WriteBase::Keep => {}
                    WriteBase::Empty => self.clear_object(seq, oid),
                    WriteBase::CloneOf(from) => {
                        self.clear_object(seq, oid);
                        self.clone_object(seq, from, oid);
                    }
                }
                groups(*blocks).for_each(|group| self.ensure_map(seq, oid, group));
                if !self.tables.exists(oid) {
                    self.ensure_map(seq, oid, 0);
                }
                self.map_direct(seq, oid, *blocks, checksums, direct);
                self.write_to_journal(seq, oid, *blocks, checksums, base, data, direct);
            }
        }
    }

    /// Nothing of the object is left. Its slots wait in `Slots` until record `seq` is durable.
    fn clear_object(&mut self, seq: u64, oid: Oid) {
        self.drop_written(seq, oid, 0, u64::from(u32::MAX));
        for map in self.tables.maps_of(oid).collect::<Vec<_>>() {
            self.journal.push(&Entry::MapFree { map });
            let freed = self.tables.free_map(map, seq).expect("an indexed map is on the disk");
            self.free_slots(seq, freed);
        }
    }

    fn ensure_map(&mut self, seq: u64, oid: Oid, group: u32) {
        if self.tables.map_id(oid, group).is_none() {
            self.new_map(seq, oid, group, Vec::new());
        }
    }

    fn new_map(&mut self, seq: u64, oid: Oid, group: u32, chunks: Vec<(u8, ChunkRef)>) {
        let map = self.tables.take_map().expect("the need was checked");
        self.tables.set_map(map, oid, group, &chunks, seq).expect("slots of an indexed map");
        self.journal.push(&Entry::Map { map, oid, group, chunks });
    }

    /// Shares all slots of `from` with `to`, and the blocks that are not home yet.
    fn clone_object(&mut self, seq: u64, from: Oid, to: Oid) {
        for id in self.tables.maps_of(from).collect::<Vec<_>>() {
            let map = self.tables.map(id);
            let group = map.group;
            let chunks = (0..GROUP_CHUNKS as u8)
                .map(|i| (i, map.chunks[i as usize]))
                .filter(|(_, chunk)| !chunk.is_hole())
                .collect();
            self.new_map(seq, to, group, chunks);
        }
        self.journal.push(&Entry::CloneWritten { from, to });
        for (chunk, data_seq) in self.written.clone_object(from, to, seq) {
            let info = self.journal.info_mut(data_seq);
            info.live += 1;
            info.touched.push((to, chunk));
            self.promise_if_wanted(from, chunk);
            self.promise_if_wanted(to, chunk);
        }
    }

    pub(crate) fn set_chunk(&mut self, seq: u64, oid: Oid, chunk: u32, to: ChunkRef) {
        let (group, index) = map_place(chunk);
        let map = self.tables.map_id(oid, group).expect("the map was ensured");
        self.journal.push(&Entry::MapChunk { map, index, chunk: to });
        let freed = self.tables.set_chunk(map, index, to, seq).expect("slots on this disk");
        self.free_slots(seq, freed);
    }

    /// They wait in `Slots` until record `seq` is durable.
    pub(crate) fn free_slots(&mut self, seq: u64, freed: Vec<u32>) {
        freed.into_iter().for_each(|slot| self.slots.freed_by(seq, slot));
    }

    pub(crate) fn describe(&mut self, seq: u64, descriptor: Descriptor) {
        let freed = self.tables.set_descriptor(&descriptor, seq).expect("a slot of this disk");
        self.journal.push(&Entry::Descriptor(descriptor));
        self.free_slots(seq, freed);
    }

    fn map_direct(
        &mut self,
        seq: u64,
        oid: Oid,
        blocks: BlockRange,
        checksums: &[u32],
        direct: &[DirectChunk],
    ) {
        for &DirectChunk { chunk, slot, mask } in direct {
            let first = chunk * SLOT_BLOCKS + mask.trailing_zeros();
            let at = (first - blocks.first) as usize;
            let crcs = checksums[at..at + mask.count_ones() as usize].to_vec();
            self.drop_written(seq, oid, u64::from(first), u64::from(first + mask.count_ones()));
            self.describe(seq, Descriptor { slot, reset: true, below: Below::NONE, lost: 0, mask, crcs });
            self.set_chunk(seq, oid, chunk, ChunkRef { slot, mask });
        }
    }

    fn write_to_journal(
        &mut self,
        seq: u64,
        oid: Oid,
        blocks: BlockRange,
        checksums: &[u32],
        base: WriteBase,
        data: &Bytes,
        direct: &[DirectChunk],
    ) {
        let is_direct = |chunk| direct.binary_search_by_key(&chunk, |d: &DirectChunk| d.chunk).is_ok();
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for (chunk, first, count) in
            self.filled(oid, blocks, base, data).filter(|(chunk, ..)| !is_direct(*chunk))
        {
            let block = chunk * SLOT_BLOCKS + first;
            match runs.last_mut() {
                Some((start, len)) if *start + *len == block => *len += count,
                _ => runs.push((block, count)),
            }
        }
        for (first, count) in runs {
            let at = (first - blocks.first) as usize;
            let crcs = &checksums[at..at + count as usize];
            let bytes = data.slice(at * BLOCK as usize..(at + count as usize) * BLOCK as usize);
            let is_kept = data.len() <= KEEP_PAYLOAD_BYTES_MAX && direct.is_empty();
            let bytes = if is_kept { aligned(&bytes) } else { AlignedBuf::copy_of(&bytes).freeze() };
            encode_write(self.journal.entries(), oid, first, crcs);
            self.journal.push_data(bytes.clone());
            for (i, crc) in crcs.iter().enumerate() {
                let piece = bytes.slice(i * BLOCK as usize..(i + 1) * BLOCK as usize);
                let replaced = self.written.put(oid, first + i as u32, *crc, seq, piece);
                let info = self.journal.info_mut(seq);
                info.live += 1;
                info.replaces.extend(replaced);
            }
            for chunk in first / SLOT_BLOCKS..=(first + count - 1) / SLOT_BLOCKS {
                self.journal.info_mut(seq).touched.push((oid, chunk));
                self.promise_if_wanted(oid, chunk);
            }
        }
    }

    fn apply_discard(&mut self, seq: u64, oid: Oid, blocks: BlockRange) {
        self.drop_written(seq, oid, u64::from(blocks.first), blocks.end());
        let (first_group, end_group) = (blocks.first / SLOT_BLOCKS / GROUP_CHUNKS, groups(blocks).end);
        let maps: Vec<u32> = self.tables.maps_of(oid).collect();
        for id in maps {
            let group = self.tables.map(id).group;
            if !(first_group..end_group).contains(&group) {
                continue;
            }
            for index in 0..GROUP_CHUNKS {
                let (chunk, at) = (group * GROUP_CHUNKS + index, self.tables.map(id).chunks[index as usize]);
                let base = u64::from(chunk) * u64::from(SLOT_BLOCKS);
                let first = u64::from(blocks.first).max(base);
                let end = blocks.end().min(base + u64::from(SLOT_BLOCKS));
                if at.is_hole() || first >= end {
                    continue;
                }
                let mask = at.mask & !run_mask((first - base) as u32, (end - first) as u32);
                // Written blocks to which no other slot is promised keep this one for their way home.
                let awaited = self.written.chunk(oid, chunk).is_some_and(|w| !w.promised);
                let left = ChunkRef { slot: at.slot, mask };
                let left = if mask == 0 && !awaited { ChunkRef::HOLE } else { left };
                if left != at {
                    self.set_chunk(seq, oid, chunk, left);
                }
            }
        }
        if !self.tables.exists(oid) {
            self.ensure_map(seq, oid, 0);
        }
    }

    /// Blocks that are not home are void from record `seq` on. Until it is durable, the records that hold them stay.
    fn drop_written(&mut self, seq: u64, oid: Oid, first: u64, end: u64) {
        let mut removed = Removed::default();
        self.written.drop_range(oid, first, end, &mut removed);
        let count = (end - first).min(u64::from(u32::MAX)) as u32;
        self.journal.push(&Entry::Drop { oid, first: first as u32, count });
        self.forget_written(seq, removed);
    }

    pub(crate) fn forget_written(&mut self, seq: u64, removed: Removed) {
        (0..removed.promises).for_each(|_| self.slots.unpromise());
        self.journal.info_mut(seq).replaces.extend(removed.data_seqs);
    }

    fn remember_tag(&mut self, seq: u64, oid: Oid, change: &Change, base: WriteBase, tag: &Tag) {
        let blocks = match change {
            Change::Write { blocks, .. } if base == WriteBase::Keep && blocks.count > 0 => Some(*blocks),
            Change::Discard { blocks } => Some(*blocks),
            _ => None,
        };
        let key = TagKey { vid: tag.vid, stamp: tag.stamp, oid, blocks };
        self.journal.push(&Entry::Tag { key, origin: tag.origin, settled: Some(tag.settled) });
        self.settle_before(tag);
        if tag.stamp.seq > tag.settled {
            self.insert_tag(seq, key, tag.origin);
        }
    }
}

/// A part of a copy that is being made: no owner waits for it.
fn is_copied(op: &ObjectOp) -> bool {
    matches!(op, ObjectOp::Change { tag: None, data, .. } if !data.is_empty())
}

/// Is some of what it writes not on the disk yet, and to be kept in the journal and in memory?
fn takes_memory(op: &ObjectOp, chunks: &[DirectChunk]) -> bool {
    let direct: u32 = chunks.iter().map(|direct| direct.mask.count_ones()).sum();
    matches!(op, ObjectOp::Change { change: Change::Write { blocks, .. }, .. } if blocks.count > direct)
}

/// A range as parts of chunks: (chunk, first block within it, count).
fn split(blocks: BlockRange) -> impl Iterator<Item = (u32, u32, u32)> {
    let (mut at, end) = (u64::from(blocks.first), blocks.end());
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let span = u64::from(SLOT_BLOCKS);
        let (chunk, first) = (at / span, at % span);
        let count = (span - first).min(end - at);
        at += count;
        Some((chunk as u32, first as u32, count as u32))
    })
}

/// The groups that a range touches.
fn groups(blocks: BlockRange) -> std::ops::Range<u32> {
    let span = u64::from(SLOT_BLOCKS * GROUP_CHUNKS);
    let first = blocks.first / (SLOT_BLOCKS * GROUP_CHUNKS);
    if blocks.count == 0 { first..first } else { first..blocks.end().div_ceil(span) as u32 }
}
