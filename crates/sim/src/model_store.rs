//! A store as a map in memory: the slow twin of crate `store`, and the quickest disk to simulate on.
//!
//! Keeps the contract of `proto::object` and no more of it: after a crash the effect of every answered
//! operation is there, and of the others any subset, each whole. So a node that relies on more than the contract
//! fails on this store even where the real one happens to be kinder.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use node::Ticket;
use proto::checksum::{ZERO_BLOCK_CRC, crc32c};
use proto::object::{
    BlockRange, Change, JournalVerified, ObjectInfo, ObjectOp, ObjectReply, Stamp, StoreFailure, Tag,
    Unsettled, Verified, WriteBase,
};
use proto::{BLOCK_BYTES, Oid, Seq};

use crate::prng::Rng;

/// Blocks of the largest object: 2 GiB.
const OBJECT_BLOCKS_MAX: u64 = (2 << 30) / BLOCK_BYTES as u64;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Object {
    blocks: BTreeMap<u32, Bytes>,
    /// One past the last block ever written.
    end: u32,
}

/// What is on the disk: survives crashes.
#[derive(Clone, Debug, Default)]
pub struct ModelDisk {
    objects: BTreeMap<Oid, Object>,
    unsettled: Vec<Unsettled>,
}

#[derive(Clone, Debug)]
struct Pending {
    ticket: Ticket,
    op: ObjectOp,
    /// Its effect must survive: it was answered, or something answered depends on it.
    durable: bool,
}

#[derive(Debug)]
pub struct ModelStore {
    /// With all operations submitted.
    now: ModelDisk,
    /// With those durable before everything in `pending`.
    durable: ModelDisk,
    pending: VecDeque<Pending>,
    replies: BTreeMap<Ticket, ObjectReply>,
}

impl ModelStore {
    pub fn open(disk: ModelDisk) -> (ModelStore, Vec<Unsettled>) {
        let unsettled = disk.unsettled.clone();
        let store = ModelStore {
            now: disk.clone(),
            durable: disk,
            pending: VecDeque::new(),
            replies: BTreeMap::new(),
        };
        (store, unsettled)
    }

    /// Takes effect now; is answered when [`ModelStore::complete`] is called.
    pub fn submit(&mut self, ticket: Ticket, op: ObjectOp) {
        let reply = self.now.apply(&op);
        let changed = matches!(
            op,
            ObjectOp::Change { .. } | ObjectOp::Amend { .. } | ObjectOp::Settle { .. } | ObjectOp::Flush
        );
        if changed && !matches!(reply, ObjectReply::Failed(_)) {
            self.pending.push_back(Pending { ticket, op, durable: false });
        }
        let old = self.replies.insert(ticket, reply);
        assert!(old.is_none(), "a ticket is used once");
    }

    /// The operation is durable from now on, and so is its answer true.
    pub fn complete(&mut self, ticket: Ticket) -> ObjectReply {
        if let Some(at) = self.pending.iter().position(|p| p.ticket == ticket) {
            self.pending[at].durable = true;
            let source = match &self.pending[at].op {
                ObjectOp::Change {
                    change: Change::Write { base: WriteBase::CloneOf(source), .. }, ..
                } => Some(*source),
                _ => None,
            };
            let is_flush = matches!(self.pending[at].op, ObjectOp::Flush);
            for earlier in self.pending.range_mut(..at) {
                let feeds_clone = matches!(&earlier.op, ObjectOp::Change { oid, .. } if Some(*oid) == source);
                earlier.durable |= is_flush || feeds_clone;
            }
        }
        while self.pending.front().is_some_and(|p| p.durable) {
            let op = self.pending.pop_front().expect("looked at").op;
            self.durable.apply(&op);
        }
        self.replies.remove(&ticket).expect("a ticket is answered once")
    }

    pub fn is_change(&self, ticket: Ticket) -> bool {
        self.pending.iter().any(|p| p.ticket == ticket && matches!(p.op, ObjectOp::Change { .. }))
    }

    /// The answer before it is true: for a shell that forgets to wait.
    pub fn premature_reply(&self, ticket: Ticket) -> ObjectReply {
        self.replies[&ticket].clone()
    }

    /// What a crash leaves.
    pub fn crash(mut self, rng: &mut Rng) -> ModelDisk {
        for pending in self.pending {
            if pending.durable || rng.percent(40) {
                self.durable.apply(&pending.op);
            }
        }
        self.durable
    }

    pub fn objects(&self) -> impl Iterator<Item = Oid> {
        self.now.objects.keys().copied()
    }

    /// The blocks of an object that are not zeros. `None`: there is no such object.
    pub fn content(&self, oid: Oid) -> Option<BTreeMap<u32, Bytes>> {
        let object = self.now.objects.get(&oid)?;
        let blocks = object.blocks.iter().filter(|(_, bytes)| bytes[..] != zeros()[..]);
        Some(blocks.map(|(block, bytes)| (*block, bytes.clone())).collect())
    }
}

/// As much as is fetched at once.
static MANY_ZEROS: [u8; 256 * BLOCK_BYTES] = [0; 256 * BLOCK_BYTES];

fn zeros() -> Bytes {
    Bytes::from_static(&[0; BLOCK_BYTES])
}

impl ModelDisk {
    fn apply(&mut self, op: &ObjectOp) -> ObjectReply {
        match op {
            ObjectOp::Change { oid, change, data, tag } => {
                if let Err(failure) = check_change(change, data) {
                    return ObjectReply::Failed(failure);
                }
                self.change(*oid, change, data);
                if let Some(tag) = tag {
                    self.remember(*oid, change, *tag);
                }
                ObjectReply::Done
            }
            ObjectOp::Read { oid, blocks } => self.read(*oid, *blocks),
            ObjectOp::Verify { oid, blocks, .. } => match self.read(*oid, *blocks) {
                ObjectReply::Data { checksums, .. } => {
                    let written = checksums.iter().filter(|crc| **crc != ZERO_BLOCK_CRC).count();
                    let read_bytes = (written * BLOCK_BYTES) as u64;
                    ObjectReply::Verified(Verified { checksums, damaged: Vec::new(), read_bytes })
                }
                other => other,
            },
            // There is no journal.
            ObjectOp::VerifyJournal { .. } => {
                ObjectReply::JournalVerified(JournalVerified { next: 1, ..JournalVerified::default() })
            }
            // Nothing is ever lost here.
            ObjectOp::Mend { .. } => ObjectReply::Done,
            ObjectOp::Checksums { oid, blocks } | ObjectOp::Recorded { oid, blocks } => {
                match self.objects.get(oid) {
                    None => ObjectReply::Absent,
                    Some(object) => {
                        let end = u64::from(object.end).min(blocks.end()) as u32;
                        ObjectReply::Checksums((blocks.first..end).map(|b| object.checksum(b)).collect())
                    }
                }
            }
            ObjectOp::Compare { oid, with } => self.compare(*oid, *with),
            ObjectOp::List { first, last, limit } => {
                if first > last {
                    return ObjectReply::Objects(Vec::new());
                }
                let info = |(oid, object): (&Oid, &Object)| ObjectInfo {
                    oid: *oid,
                    allocated_bytes: (object.blocks.len() * BLOCK_BYTES) as u64,
                };
                ObjectReply::Objects(
                    self.objects.range(first..=last).map(info).take(*limit as usize).collect(),
                )
            }
            ObjectOp::Amend { forget, remember } => {
                self.unsettled.retain(|u| !forget.contains(u) && !remember.contains(u));
                self.unsettled.extend(remember);
                ObjectReply::Done
            }
            ObjectOp::Settle { vid, stamp } => {
                self.unsettled.retain(|u| u.vid != *vid || u.stamp > *stamp);
                ObjectReply::Done
            }
            ObjectOp::Flush => ObjectReply::Done,
        }
    }

    fn change(&mut self, oid: Oid, change: &Change, data: &Bytes) {
        match change {
            Change::Write { blocks, base, .. } => {
                match base {
                    WriteBase::Keep => {}
                    WriteBase::Empty => drop(self.objects.insert(oid, Object::default())),
                    WriteBase::CloneOf(source) => {
                        let copy = self.objects.get(source).cloned().unwrap_or_default();
                        self.objects.insert(oid, copy);
                    }
                }
                let object = self.objects.entry(oid).or_default();
                for (block, bytes) in (blocks.first..).zip(data.chunks(BLOCK_BYTES)) {
                    object.write(block, data.slice_ref(bytes));
                }
            }
            Change::Discard { blocks } => {
                let object = self.objects.entry(oid).or_default();
                let end = blocks.end() as u32;
                object.blocks.retain(|b, _| *b < blocks.first || *b >= end);
                object.end = object.end.max(end);
            }
            Change::Delete => drop(self.objects.remove(&oid)),
        }
    }

    fn remember(&mut self, oid: Oid, change: &Change, tag: Tag) {
        // While a session's `settled` is 0 its seal is not complete, and older generations still count.
        let covers = |stamp: Stamp| {
            let Stamp { generation, seq } = tag.stamp;
            debug_assert!(seq > tag.settled);
            (stamp.generation == generation && stamp.seq <= tag.settled)
                || (stamp.generation < generation && tag.settled >= Seq(1))
        };
        self.unsettled.retain(|u| u.vid != tag.vid || !covers(u.stamp));
        let blocks = match change {
            Change::Write { blocks, base: WriteBase::Keep, .. } | Change::Discard { blocks } => Some(*blocks),
            Change::Write { .. } | Change::Delete => None,
        };
        self.unsettled.push(Unsettled { vid: tag.vid, stamp: tag.stamp, origin: tag.origin, oid, blocks });
    }

    /// No block too many: whoever relies on more than the contract is found out.
    fn compare(&self, oid: Oid, with: Option<Oid>) -> ObjectReply {
        let zeros = Object::default();
        let one = self.objects.get(&oid);
        let other = with.map_or(Some(&zeros), |with| self.objects.get(&with));
        let (Some(one), Some(other)) = (one, other) else { return ObjectReply::Absent };
        let mut runs: Vec<BlockRange> = Vec::new();
        for block in (0..one.end.max(other.end)).filter(|block| one.block(*block) != other.block(*block)) {
            match runs.last_mut() {
                Some(run) if run.end() == u64::from(block) => run.count += 1,
                _ => runs.push(BlockRange::new(block, 1)),
            }
        }
        ObjectReply::Differing(runs)
    }

    fn read(&self, oid: Oid, blocks: BlockRange) -> ObjectReply {
        if blocks.end() > OBJECT_BLOCKS_MAX {
            return ObjectReply::Failed(StoreFailure::Invalid);
        }
        let Some(object) = self.objects.get(&oid) else { return ObjectReply::Absent };
        let len = blocks.count as usize * BLOCK_BYTES;
        let mut checksums = vec![ZERO_BLOCK_CRC; blocks.count as usize];
        let mut written = object.blocks.range(blocks.first..blocks.end() as u32).peekable();
        // Most of what is read is zeros; most of a run's time would go into copying them.
        if written.peek().is_none() && len <= MANY_ZEROS.len() {
            return ObjectReply::Data { data: Bytes::from_static(&MANY_ZEROS[..len]), checksums };
        }
        let mut data = vec![0; len];
        for (block, bytes) in written {
            let at = (block - blocks.first) as usize;
            data[at * BLOCK_BYTES..][..BLOCK_BYTES].copy_from_slice(bytes);
            checksums[at] = crc32c(bytes);
        }
        ObjectReply::Data { data: data.into(), checksums }
    }
}

impl Object {
    fn write(&mut self, block: u32, bytes: Bytes) {
        self.blocks.insert(block, bytes);
        self.end = self.end.max(block + 1);
    }

    fn block(&self, block: u32) -> Bytes {
        self.blocks.get(&block).cloned().unwrap_or_else(zeros)
    }

    fn checksum(&self, block: u32) -> u32 {
        self.blocks.get(&block).map_or(ZERO_BLOCK_CRC, |bytes| crc32c(bytes))
    }
}

fn check_change(change: &Change, data: &Bytes) -> Result<(), StoreFailure> {
    let valid = match change {
        Change::Write { blocks, checksums, .. } => {
            blocks.end() <= OBJECT_BLOCKS_MAX
                && data.len() == blocks.count as usize * BLOCK_BYTES
                && data.chunks(BLOCK_BYTES).map(crc32c).eq(checksums.iter().copied())
        }
        Change::Discard { blocks } => blocks.end() <= OBJECT_BLOCKS_MAX && data.is_empty(),
        Change::Delete => data.is_empty(),
    };
    if valid { Ok(()) } else { Err(StoreFailure::Invalid) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::object::Origin;
    use proto::{Generation, Vid};

    const OID: Oid = Oid(7);

    fn write_op(block: u32, fill: u8, seq: u64, settled: u64) -> ObjectOp {
        let data = Bytes::from(vec![fill; BLOCK_BYTES]);
        let stamp = Stamp { generation: Generation(1), seq: Seq(seq) };
        ObjectOp::Change {
            oid: OID,
            change: Change::Write {
                blocks: BlockRange::new(block, 1),
                checksums: vec![crc32c(&data)],
                base: WriteBase::Keep,
            },
            data,
            tag: Some(Tag {
                vid: Vid(1),
                stamp,
                settled: Seq(settled),
                origin: Origin::default(),
                last_room: false,
                tell_taken: false,
            }),
        }
    }

    #[test]
    fn answered_operations_survive_a_crash_and_others_perhaps() {
        let mut kept_unanswered = 0;
        for seed in 0..100 {
            let (mut store, _) = ModelStore::open(ModelDisk::default());
            store.submit(Ticket(1), write_op(0, 1, 1, 0));
            store.submit(Ticket(2), write_op(1, 2, 2, 0));
            store.submit(Ticket(3), write_op(0, 3, 3, 0));
            assert_eq!(store.complete(Ticket(2)), ObjectReply::Done);
            let (store, unsettled) = ModelStore::open(store.crash(&mut Rng::new(seed)));
            let content = store.content(OID).unwrap();
            assert_eq!(content[&1][0], 2);
            assert!(unsettled.iter().any(|u| u.stamp.seq == Seq(2)));
            kept_unanswered += usize::from(content.contains_key(&0));
        }
        assert!((20..95).contains(&kept_unanswered), "{kept_unanswered}");
    }

    #[test]
    fn settled_changes_are_forgotten() {
        let (mut store, _) = ModelStore::open(ModelDisk::default());
        store.submit(Ticket(1), write_op(0, 1, 1, 0));
        store.submit(Ticket(2), write_op(0, 2, 2, 1));
        store.complete(Ticket(1));
        store.complete(Ticket(2));
        let (_, unsettled) = ModelStore::open(store.crash(&mut Rng::new(1)));
        assert_eq!(unsettled.iter().map(|u| u.stamp.seq).collect::<Vec<_>>(), [Seq(2)]);
    }
}
