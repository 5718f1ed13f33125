//! One disk: takes orders, asks for I/O, answers.
//!
//! An order is *applied* when it is in the tables and in a journal batch; from then on every later order sees it. It is
//! answered when that record counts. Only four things come between submission and application: an earlier order on the same
//! chunks that is not applied yet (`gates`), data that goes straight to fresh slots, a full journal (`stalled`), and a disk that
//! is about to grow (`growth`). Whatever
//! an answer reveals, reads included, waits until the record that made it so is durable: nothing once seen can be undone by a crash.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use proto::Oid;
use proto::object::{AMENDED_MAX, Change, ObjectInfo, ObjectOp, ObjectReply, StoreFailure, WriteBase};

use crate::ahead::Ahead;
use crate::growth::Growth;
use crate::io::{IoId, IoOp, IoRequest, IoResult, Usage};
use crate::journal::Journal;
use crate::journal_check::JournalChecks;
use crate::layout::{BLOCK, GROUP_CHUNKS, SLOT_BLOCKS, SLOT_BYTES, Superblock};
use crate::mend::Mends;
use crate::read::{Purpose, Reads};
use crate::slots::Slots;
use crate::tables::Tables;
use crate::tags::Tags;
use crate::write_back::WriteBack;
use crate::written::Written;

/// The objects on one disk. Fed by `submit` and `handle_io`; what it wants is in `poll_io` and `poll_reply`.
///
/// Deterministic: no clock, no randomness, and the same calls give the same outputs.
pub struct Store {
    pub(crate) superblock: Superblock,
    pub(crate) tables: Tables,
    pub(crate) slots: Slots,
    pub(crate) journal: Journal,
    pub(crate) written: Written,
    pub(crate) tags: Tags,
    pub(crate) reads: Reads,
    pub(crate) mends: Mends,
    pub(crate) journal_checks: JournalChecks,
    pub(crate) write_back: WriteBack,
    pub(crate) growth: Growth,
    pub(crate) ahead: Ahead,
    /// Orders not applied yet, by order of submission.
    pub(crate) pending: BTreeMap<u64, Pending>,
    gates: BTreeMap<Oid, Vec<Gate>>,
    /// Orders that wait for room in the journal.
    pub(crate) stalled: VecDeque<u64>,
    /// Parts of copies that are being made and that nothing waits behind, and how many rounds of write-back had begun when they began to wait: see
    /// [`Store::may_go_on`].
    pub(crate) patient: VecDeque<(u64, u64)>,
    /// Waiting orders whose gates may have opened.
    recheck: VecDeque<u64>,
    /// Objects changed by records that are not durable yet: the last such record.
    pub(crate) undurable: BTreeMap<Oid, u64>,
    next_order: u64,
    next_io: u64,
    io_queue: VecDeque<IoRequest>,
    io_owners: BTreeMap<IoId, IoOwner>,
    pub(crate) replies: VecDeque<(u64, ObjectReply)>,
    failed: bool,
}

/// An order that is not applied yet.
pub(crate) struct Pending {
    pub ticket: u64,
    pub op: ObjectOp,
    pub stage: Stage,
}

pub(crate) enum Stage {
    /// Behind an earlier order on the same chunks.
    Gated,
    /// Its data is on its way to fresh slots.
    Direct { chunks: Vec<DirectChunk>, writes_left: usize },
    /// Its data (if any) is in place; no room in the journal yet.
    Stalled { chunks: Vec<DirectChunk> },
    /// No slots for its data yet; the disk is to grow.
    Roomless,
    /// Waits until everything before it is applied.
    Barrier,
}

/// Part of a large write that went to a slot of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DirectChunk {
    pub chunk: u32,
    pub slot: u32,
    pub mask: u16,
}

/// What an unapplied order claims of one object: chunks `first ..= last`.
#[derive(Clone, Copy)]
struct Gate {
    order: u64,
    first: u32,
    last: u32,
    change: bool,
    /// The object comes into being with this order: until then a read anywhere in it has to wait.
    creates: bool,
}

pub(crate) enum IoOwner {
    Journal { seq: u64 },
    Read { read: u64, piece: usize },
    Direct { order: u64 },
    Mend { mend: u64 },
    JournalCheck { check: u64 },
    WriteBackRead { job: usize, piece: usize },
    WriteBackWrite,
    WriteBackSync,
    Superblock,
    Growth,
    Ahead,
}

impl Store {
    pub(crate) fn assemble(
        superblock: Superblock,
        tables: Tables,
        slots: Slots,
        journal: Journal,
        written: Written,
        tags: Tags,
    ) -> Store {
        Store {
            superblock,
            tables,
            slots,
            journal,
            written,
            tags,
            reads: Reads::default(),
            mends: Mends::default(),
            journal_checks: JournalChecks::default(),
            write_back: WriteBack::default(),
            growth: Growth::default(),
            ahead: Ahead::default(),
            pending: BTreeMap::new(),
            gates: BTreeMap::new(),
            stalled: VecDeque::new(),
            patient: VecDeque::new(),
            recheck: VecDeque::new(),
            undurable: BTreeMap::new(),
            next_order: 0,
            next_io: 0,
            io_queue: VecDeque::new(),
            io_owners: BTreeMap::new(),
            replies: VecDeque::new(),
            failed: false,
        }
    }

    /// Takes an order. Its answer comes out of `poll_reply` with the same ticket, once.
    pub fn submit(&mut self, ticket: u64, op: ObjectOp) {
        if self.failed {
            return self.replies.push_back((ticket, ObjectReply::Failed(StoreFailure::DiskFailed)));
        }
        if !is_valid(&op) {
            return self.replies.push_back((ticket, ObjectReply::Failed(StoreFailure::Invalid)));
        }
        if let ObjectOp::Settle { vid, stamp } = op {
            self.settle(vid, stamp);
            self.replies.push_back((ticket, ObjectReply::Done));
            return self.make_progress();
        }
        if matches!(op, ObjectOp::Change { .. }) {
            self.write_back.handle_change();
        }
        let order = self.next_order;
        self.next_order += 1;
        if matches!(op, ObjectOp::Amend { .. }) {
            // At its place among the changes: what is submitted later enters the journal behind it.
            self.enter_journal(order, ticket, op, Vec::new());
        } else if matches!(op, ObjectOp::Flush | ObjectOp::List { .. }) {
            if self.pending.is_empty() {
                self.run_barrier(ticket, &op);
            } else {
                self.end_patience(&op);
                self.pending.insert(order, Pending { ticket, op, stage: Stage::Barrier });
            }
        } else if self.is_gated(order, &op) {
            self.end_patience(&op);
            self.park(order, Pending { ticket, op, stage: Stage::Gated });
        } else {
            self.start(order, ticket, op);
        }
        self.make_progress();
    }

    /// An I/O request has completed.
    ///
    /// # Panics
    /// If the request was never polled, or completes twice.
    pub fn handle_io(&mut self, id: IoId, result: IoResult) {
        let owner = self.io_owners.remove(&id).expect("an I/O completes once, after it was polled");
        if self.failed {
            return;
        }
        match (owner, result) {
            (IoOwner::Read { read, piece }, result) => self.handle_read(read, piece, result),
            (IoOwner::WriteBackRead { job, piece }, result) => {
                self.handle_write_back_read(job, piece, result)
            }
            (IoOwner::JournalCheck { check }, result) => self.handle_journal_read(check, result),
            (IoOwner::Growth, result) => self.handle_grown(result),
            // Whether the bytes are on disk is unknown, and a second fsync may claim success: nothing holds any more.
            (_, Err(_)) => return self.fail(),
            (IoOwner::Journal { seq }, Ok(_)) => self.handle_record_written(seq),
            (IoOwner::Direct { order }, Ok(_)) => self.handle_direct_written(order),
            (IoOwner::Mend { mend }, Ok(_)) => self.handle_mend_written(mend),
            (IoOwner::WriteBackWrite, Ok(_)) => self.handle_write_back_written(),
            (IoOwner::WriteBackSync, Ok(_)) => self.handle_write_back_synced(),
            (IoOwner::Superblock, Ok(_)) => self.handle_superblock_written(),
            (IoOwner::Ahead, Ok(_)) => self.slots.finish_ahead(),
        }
        self.make_progress();
    }

    /// The next I/O to do. Poll until `None` after every `submit` and `handle_io`: what is polled late is batched.
    pub fn poll_io(&mut self) -> Option<IoRequest> {
        if self.failed {
            return None;
        }
        if let Some(io) = self.io_queue.pop_front() {
            return Some(io);
        }
        let (seq, offset, data) = self.journal.next_write()?;
        self.request_io(IoOp::Write { offset, data, durable: true }, IoOwner::Journal { seq });
        self.io_queue.pop_front()
    }

    pub fn poll_reply(&mut self) -> Option<(u64, ObjectReply)> {
        self.replies.pop_front()
    }

    /// Brings everything home and empties the journal, as far as unsettled tags allow. For an orderly end: the next
    /// open has nothing to replay. Done when `is_quiet`.
    pub fn begin_checkpoint(&mut self) {
        if !self.failed {
            self.write_back.begin_checkpoint(self.journal.last_seq());
            self.make_progress();
        }
    }

    /// Nothing is in flight and nothing is waiting for I/O.
    pub fn is_quiet(&self) -> bool {
        let is_active = self.write_back.is_active() || self.journal_checks.is_active();
        self.failed || (self.io_owners.is_empty() && self.journal.is_idle() && !is_active)
    }

    pub fn is_failed(&self) -> bool {
        self.failed
    }

    pub fn store_id(&self) -> u64 {
        self.superblock.geometry.store_id
    }

    pub fn usage(&self) -> Usage {
        let geometry = &self.superblock.geometry;
        Usage {
            size_bytes: u64::from(geometry.slots) * SLOT_BYTES,
            used_bytes: u64::from(geometry.slots - self.slots.free_count()) * SLOT_BYTES,
            objects: self.tables.object_count(),
            journal_bytes: geometry.journal_blocks * BLOCK,
            journal_used_bytes: self.journal.used_blocks() * BLOCK,
            pending_bytes: self.written.block_count() as u64 * BLOCK,
            unsettled_changes: self.tags.len() as u64,
            failed: self.failed,
            is_full: self.is_full(),
        }
    }

    /// Slots that are taken and not yet mapped.
    pub(crate) fn slots_in_hand(&self) -> u32 {
        let direct = self.pending.values().map(|p| match &p.stage {
            Stage::Direct { chunks, .. } | Stage::Stalled { chunks } => chunks.len() as u32,
            _ => 0,
        });
        direct.sum::<u32>() + self.write_back.slots_in_hand()
    }

    pub(crate) fn is_moving(&self, oid: Oid, chunk: u32) -> bool {
        self.write_back.is_moving(oid, chunk)
    }

    pub(crate) fn next_order(&self) -> u64 {
        self.next_order
    }

    pub(crate) fn request_io(&mut self, op: IoOp, owner: IoOwner) {
        let id = IoId(self.next_io);
        self.next_io += 1;
        self.io_owners.insert(id, owner);
        self.io_queue.push_back(IoRequest { id, op });
    }

    /// Answers as soon as record `seq` is durable.
    pub(crate) fn reply_when_durable(&mut self, seq: u64, ticket: u64, reply: ObjectReply) {
        if seq <= self.journal.durable() {
            self.replies.push_back((ticket, reply));
        } else {
            self.journal.info_mut(seq).replies.push((ticket, reply));
        }
    }

    fn handle_record_written(&mut self, seq: u64) {
        for seq in self.journal.handle_written(seq) {
            let info = self.journal.info_mut(seq);
            let (replaces, tags) =
                (std::mem::take(&mut info.replaces), std::mem::take(&mut info.replaces_tags));
            let (replies, oids) = (std::mem::take(&mut info.replies), std::mem::take(&mut info.oids));
            replaces.iter().for_each(|old| self.journal.info_mut(*old).live -= 1);
            tags.iter().for_each(|old| self.journal.info_mut(*old).tags -= 1);
            for oid in oids {
                if self.undurable.get(&oid) == Some(&seq) {
                    self.undurable.remove(&oid);
                }
            }
            self.replies.extend(replies);
        }
        self.slots.handle_durable(self.journal.durable());
    }

    /// Everything that can go on goes on.
    fn make_progress(&mut self) {
        self.retry_roomless();
        loop {
            if let Some(order) = self.recheck.pop_front() {
                self.restart_if_free(order);
            } else if !self.run_first_barrier() && !self.admit_first_stalled() && !self.admit_first_patient()
            {
                break;
            }
        }
        if !self.failed {
            self.drive_write_back();
            self.drive_growth();
        }
    }

    fn run_first_barrier(&mut self) -> bool {
        match self.pending.first_key_value() {
            Some((_, Pending { stage: Stage::Barrier, .. })) => {
                let (_, pending) = self.pending.pop_first().expect("just seen");
                self.run_barrier(pending.ticket, &pending.op);
                true
            }
            _ => false,
        }
    }

    fn run_barrier(&mut self, ticket: u64, op: &ObjectOp) {
        let reply = match *op {
            ObjectOp::List { first, last, limit } => ObjectReply::Objects(self.list(first, last, limit)),
            _ => ObjectReply::Done,
        };
        self.reply_when_durable(self.journal.last_seq(), ticket, reply);
    }

    fn list(&self, first: Oid, last: Oid, limit: u32) -> Vec<ObjectInfo> {
        let mut objects: Vec<ObjectInfo> = Vec::new();
        for map in self.tables.maps_between(first, last) {
            let bytes = map.chunks.iter().filter(|c| !c.is_hole()).count() as u64 * SLOT_BYTES;
            let count = objects.len();
            match objects.last_mut() {
                Some(object) if object.oid == map.oid => object.allocated_bytes += bytes,
                _ if count == limit as usize => break,
                _ => objects.push(ObjectInfo { oid: map.oid, allocated_bytes: bytes }),
            }
        }
        objects
    }

    fn settle(&mut self, vid: proto::Vid, stamp: proto::object::Stamp) {
        self.tags.settle(vid, stamp, |logged_in| self.journal.info_mut(logged_in).tags -= 1);
    }

    pub(crate) fn settle_before(&mut self, tag: &proto::object::Tag) {
        let stamp = proto::object::Stamp { generation: tag.stamp.generation, seq: tag.settled };
        self.settle(tag.vid, stamp);
    }

    fn start(&mut self, order: u64, ticket: u64, op: ObjectOp) {
        match op {
            ObjectOp::Read { oid, blocks } => self.start_read(ticket, oid, blocks, Purpose::Content),
            ObjectOp::Verify { oid, blocks, pass } => {
                self.start_read(ticket, oid, blocks, Purpose::Verification { pass });
            }
            ObjectOp::VerifyJournal { first, last } => self.start_journal_check(ticket, first, last),
            ObjectOp::Mend { oid, blocks, checksums, data } => {
                self.start_mend(ticket, oid, blocks, checksums, data);
            }
            ObjectOp::Checksums { oid, blocks } => self.answer_checksums(ticket, oid, blocks, false),
            ObjectOp::Recorded { oid, blocks } => self.answer_checksums(ticket, oid, blocks, true),
            ObjectOp::Compare { oid, with } => self.answer_compare(ticket, oid, with),
            op => self.start_change(order, ticket, op),
        }
    }

    /// Keeps an order that cannot be applied yet; later orders on the same chunks queue behind it.
    pub(crate) fn park(&mut self, order: u64, pending: Pending) {
        // An order that was waiting at its gates has them already.
        let claimed = footprint(&pending.op);
        for (oid, gate) in claimed {
            let exists = self.tables.exists(oid);
            let gates = self.gates.entry(oid).or_default();
            // An earlier change that waits may be a deletion: then this one makes the object anew.
            let unsure = gates.iter().any(|g| g.change && g.order < order);
            let gate = Gate { order, creates: gate.change && (!exists || unsure), ..gate };
            if !gates.iter().any(|g| g.order == order) {
                gates.push(gate);
            }
        }
        self.pending.insert(order, pending);
    }

    /// The order is applied (or refused): those behind it may go on.
    pub(crate) fn open_gates(&mut self, order: u64, op: &ObjectOp) {
        if self.gates.is_empty() {
            return;
        }
        for (oid, _) in footprint(op) {
            let Some(gates) = self.gates.get_mut(&oid) else { continue };
            gates.retain(|gate| gate.order != order);
            self.recheck.extend(gates.iter().map(|gate| gate.order));
            if gates.is_empty() {
                self.gates.remove(&oid);
            }
        }
    }

    fn is_gated(&self, order: u64, op: &ObjectOp) -> bool {
        !self.gates.is_empty()
            && footprint(op).iter().any(|(oid, claim)| {
                self.gates.get(oid).is_some_and(|gates| {
                    gates.iter().any(|gate| {
                        gate.order < order
                            && (gate.change || claim.change)
                            && (gate.first <= claim.last && claim.first <= gate.last
                                || gate.creates && !claim.change)
                    })
                })
            })
    }

    /// Orders not applied yet that touch the same objects, and those before them.
    pub(crate) fn orders_at_gates_of(&self, op: &ObjectOp) -> BTreeSet<u64> {
        let gates = footprint(op).into_iter().filter_map(|(oid, _)| self.gates.get(&oid));
        gates.flatten().map(|gate| gate.order).collect()
    }

    fn restart_if_free(&mut self, order: u64) {
        match self.pending.get(&order) {
            Some(Pending { stage: Stage::Gated, op, .. }) if !self.is_gated(order, op) => {}
            _ => return,
        }
        let Pending { ticket, op, .. } = self.pending.remove(&order).expect("just seen");
        if matches!(op, ObjectOp::Change { .. }) {
            return self.start(order, ticket, op);
        }
        self.open_gates(order, &op);
        self.start(order, ticket, op);
    }

    /// Nothing on this disk can be relied upon any more: everybody hears so.
    /// The disk is not to be used any more, and nobody hears of it again: what is in flight may happen or not, as in a crash, and what was
    /// answered is durable. Everything that waits is answered with `DiskFailed`.
    pub fn fail(&mut self) {
        self.failed = true;
        let failed = || ObjectReply::Failed(StoreFailure::DiskFailed);
        let pending = std::mem::take(&mut self.pending);
        self.replies.extend(pending.into_values().map(|p| (p.ticket, failed())));
        for info in self.journal.infos_mut() {
            self.replies.extend(info.replies.drain(..).map(|(ticket, _)| (ticket, failed())));
        }
        let (reads, mends) = (self.reads.take_tickets(), self.mends.take_tickets());
        let waiting = reads.into_iter().chain(mends).chain(self.journal_checks.take_tickets());
        self.replies.extend(waiting.map(|ticket| (ticket, failed())));
        self.gates.clear();
        self.stalled.clear();
        self.patient.clear();
        self.growth.roomless.clear();
        self.recheck.clear();
        self.io_queue.clear();
    }
}

fn is_valid(op: &ObjectOp) -> bool {
    use crate::layout::OBJECT_BLOCKS_MAX;
    match op {
        ObjectOp::Change { change, data, .. } => match change {
            Change::Write { blocks, checksums, .. } => {
                blocks.end() <= OBJECT_BLOCKS_MAX
                    && data.len() as u64 == u64::from(blocks.count) * BLOCK
                    && checksums.len() == blocks.count as usize
                    && checksums_match(data, checksums)
            }
            Change::Discard { blocks } => blocks.end() <= OBJECT_BLOCKS_MAX && data.is_empty(),
            Change::Delete => data.is_empty(),
        },
        ObjectOp::Mend { blocks, checksums, data, .. } => {
            blocks.end() <= OBJECT_BLOCKS_MAX
                && data.len() as u64 == u64::from(blocks.count) * BLOCK
                && checksums.len() == blocks.count as usize
                && checksums_match(data, checksums)
        }
        ObjectOp::Read { blocks, .. } | ObjectOp::Verify { blocks, .. } => {
            blocks.end() <= OBJECT_BLOCKS_MAX && blocks.count <= crate::read::READ_BLOCKS_MAX
        }
        ObjectOp::Amend { forget, remember } => forget.len() + remember.len() <= AMENDED_MAX,
        _ => true,
    }
}

/// A wrong checksum in the journal would look like a torn record and hide every record behind it.
fn checksums_match(data: &Bytes, checksums: &[u32]) -> bool {
    data.chunks_exact(BLOCK as usize).zip(checksums).all(|(b, crc)| proto::checksum::crc32c(b) == *crc)
}

/// What an order reads or changes, as claims without an order number.
fn footprint(op: &ObjectOp) -> Vec<(Oid, Gate)> {
    let claim = |first, last, change| Gate { order: 0, first, last, change, creates: false };
    let chunks = |blocks: &proto::object::BlockRange, change| match blocks.count {
        0 => claim(0, u32::MAX, change),
        _ => claim(blocks.first / SLOT_BLOCKS, ((blocks.end() - 1) / u64::from(SLOT_BLOCKS)) as u32, change),
    };
    match op {
        ObjectOp::Change { oid, change, .. } => match change {
            Change::Write { blocks, base: WriteBase::Keep, .. } | Change::Discard { blocks } => {
                vec![(*oid, chunks(blocks, true))]
            }
            Change::Write { base: WriteBase::CloneOf(from), .. } if from != oid => {
                vec![(*oid, claim(0, u32::MAX, true)), (*from, claim(0, u32::MAX, false))]
            }
            _ => vec![(*oid, claim(0, u32::MAX, true))],
        },
        ObjectOp::Read { oid, blocks }
        | ObjectOp::Verify { oid, blocks, .. }
        | ObjectOp::Checksums { oid, blocks }
        | ObjectOp::Recorded { oid, blocks }
        | ObjectOp::Mend { oid, blocks, .. } => {
            vec![(*oid, chunks(blocks, false))]
        }
        ObjectOp::Compare { oid, with } => {
            let other = with.filter(|with| with != oid);
            [*oid].into_iter().chain(other).map(|oid| (oid, claim(0, u32::MAX, false))).collect()
        }
        _ => Vec::new(),
    }
}

/// Chunk `chunk` lies at this place of its map.
pub(crate) fn map_place(chunk: u32) -> (u32, u8) {
    (chunk / GROUP_CHUNKS, (chunk % GROUP_CHUNKS) as u8)
}
