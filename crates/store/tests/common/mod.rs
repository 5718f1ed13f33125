//! A store on a simulated disk, and the slow twin it is compared with.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::checksum::block_checksums;
use proto::object::*;
use proto::{BLOCK_BYTES, Generation, Incarnation, Oid, RequestId, Seq, Vid};
use store::testing::{SimDisk, SimRng};
use store::{FormatOptions, IoId, OpenError, Store};

pub const JOURNAL_BYTES: u64 = 1 << 20;

/// A block's content, as a number: zero is zeros.
pub type Value = u64;

pub fn content(values: &[Value]) -> Bytes {
    let mut bytes = Vec::with_capacity(values.len() * BLOCK_BYTES);
    for value in values {
        for word in 0..BLOCK_BYTES as u64 / 8 {
            let word = if *value == 0 { 0 } else { value.wrapping_mul(0x9e37_79b9).wrapping_add(word) };
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
    bytes.into()
}

pub fn write(oid: Oid, first: u32, values: &[Value], base: WriteBase) -> ObjectOp {
    tagged_write(oid, first, values, base, None)
}

pub fn tagged_write(oid: Oid, first: u32, values: &[Value], base: WriteBase, tag: Option<Tag>) -> ObjectOp {
    let data = content(values);
    let checksums = block_checksums(&data);
    let blocks = BlockRange::new(first, values.len() as u32);
    ObjectOp::Change { oid, change: Change::Write { blocks, checksums, base }, data, tag }
}

pub fn change(oid: Oid, change: Change) -> ObjectOp {
    ObjectOp::Change { oid, change, data: Bytes::new(), tag: None }
}

pub fn tag(vid: u32, generation: u64, seq: u64, settled: u64) -> Tag {
    Tag {
        vid: Vid(vid),
        stamp: Stamp { generation: Generation(generation), seq: Seq(seq) },
        settled: Seq(settled),
        origin: Origin { incarnation: Incarnation(1), request: RequestId(seq) },
        last_room: false,
        tell_taken: false,
    }
}

/// Objects as plain maps.
#[derive(Clone, Default, Debug, PartialEq)]
pub struct Model(pub BTreeMap<Oid, BTreeMap<u32, Value>>);

impl Model {
    pub fn apply(&mut self, oid: Oid, change: &Change, values: &[Value]) {
        match change {
            Change::Delete => drop(self.0.remove(&oid)),
            Change::Discard { blocks } => {
                let object = self.0.entry(oid).or_default();
                object.retain(|block, _| !blocks.contains(*block));
            }
            Change::Write { blocks, base, .. } => {
                let mut object = match base {
                    WriteBase::Keep => self.0.get(&oid).cloned().unwrap_or_default(),
                    WriteBase::Empty => BTreeMap::new(),
                    WriteBase::CloneOf(from) => self.0.get(from).cloned().unwrap_or_default(),
                };
                object.extend((blocks.first..).zip(values.iter().copied()));
                object.retain(|_, value| *value != 0);
                self.0.insert(oid, object);
            }
        }
    }

    /// The blocks in which two objects differ, or one from zeros. `None`: one of them does not exist.
    pub fn differing(&self, oid: Oid, with: Option<Oid>) -> Option<BTreeSet<u32>> {
        let zeros = BTreeMap::new();
        let (one, other) = (self.0.get(&oid)?, with.map_or(Some(&zeros), |with| self.0.get(&with))?);
        let blocks: BTreeSet<u32> = one.keys().chain(other.keys()).copied().collect();
        Some(blocks.into_iter().filter(|block| one.get(block) != other.get(block)).collect())
    }

    pub fn values(&self, oid: Oid, blocks: BlockRange) -> Option<Vec<Value>> {
        let object = self.0.get(&oid)?;
        Some(
            (blocks.first..blocks.first + blocks.count)
                .map(|b| object.get(&b).copied().unwrap_or(0))
                .collect(),
        )
    }
}

pub struct Machine {
    pub disk: SimDisk,
    pub store: Store,
    pub rng: SimRng,
    pub replies: BTreeMap<u64, ObjectReply>,
    /// Often there is a moment to write ahead of use.
    pub writes_ahead: bool,
    next_ticket: u64,
}

impl Machine {
    pub fn new(seed: u64, size_bytes: u64) -> Machine {
        let options = FormatOptions { size_bytes, journal_bytes: JOURNAL_BYTES, store_id: seed ^ 0x5eed };
        // Devices and files in turn.
        let mut disk = match seed % 2 {
            0 => SimDisk::new(size_bytes),
            _ => SimDisk::growing(options.first_bytes().unwrap(), size_bytes),
        };
        Store::format(&mut disk, &options).unwrap();
        let (store, recovered) = Store::open(&mut disk).unwrap();
        assert!(recovered.unsettled.is_empty());
        let (rng, replies) = (SimRng::new(seed), BTreeMap::new());
        Machine { disk, store, rng, replies, writes_ahead: true, next_ticket: 0 }
    }

    /// A disk that was formatted before.
    pub fn open(mut disk: SimDisk) -> Result<Machine, OpenError> {
        let (store, _) = Store::open(&mut disk)?;
        let (rng, replies) = (SimRng::new(1), BTreeMap::new());
        Ok(Machine { disk, store, rng, replies, writes_ahead: false, next_ticket: 0 })
    }

    pub fn submit(&mut self, op: ObjectOp) -> u64 {
        self.next_ticket += 1;
        if self.writes_ahead && self.store.wants_to_write_ahead() && self.rng.chance(10) {
            let pieces = 1 + self.rng.below(4) as u32;
            self.store.write_ahead(pieces);
        }
        self.store.submit(self.next_ticket, op);
        self.pump();
        self.next_ticket
    }

    /// Moves requests to the disk and collects answers.
    pub fn pump(&mut self) {
        while let Some(io) = self.store.poll_io() {
            self.disk.submit(io);
        }
        while let Some((ticket, reply)) = self.store.poll_reply() {
            assert!(self.replies.insert(ticket, reply).is_none(), "ticket {ticket} was answered twice");
        }
    }

    /// Completes one request, chosen at random. False if there is none.
    pub fn step(&mut self) -> bool {
        let pending = self.disk.pending();
        if pending.is_empty() {
            return false;
        }
        let id = pending[self.rng.below(pending.len() as u64) as usize];
        self.complete(id);
        true
    }

    pub fn complete(&mut self, id: IoId) {
        let result = self.disk.complete(id);
        self.store.handle_io(id, result);
        self.pump();
    }

    pub fn run(&mut self) {
        self.pump();
        while self.step() {}
    }

    pub fn call(&mut self, op: ObjectOp) -> ObjectReply {
        let ticket = self.submit(op);
        self.run();
        self.replies.remove(&ticket).expect("every order is answered")
    }

    pub fn read(&mut self, oid: Oid, first: u32, count: u32) -> Option<Vec<Value>> {
        let reply = self.call(ObjectOp::Read { oid, blocks: BlockRange::new(first, count) });
        decode_read(reply)
    }

    pub fn checkpoint(&mut self) {
        self.store.begin_checkpoint();
        self.pump();
        self.run();
        assert!(self.store.is_quiet());
    }

    pub fn reopen(&mut self) -> Vec<Unsettled> {
        let (store, recovered) = Store::open(&mut self.disk).unwrap();
        self.store = store;
        self.replies.clear();
        self.store.assert_invariants();
        recovered.unsettled
    }

    pub fn crash(&mut self) -> Vec<Unsettled> {
        let seed = self.rng.next_u64();
        self.disk.crash(seed);
        self.reopen()
    }
}

/// The values that a read shows; checks its checksums on the way.
pub fn decode_read(reply: ObjectReply) -> Option<Vec<Value>> {
    match reply {
        ObjectReply::Data { data, checksums } => {
            assert_eq!(block_checksums(&data), checksums, "checksums match the data");
            Some(data.chunks_exact(BLOCK_BYTES).map(value_of).collect())
        }
        ObjectReply::Absent => None,
        other => panic!("a read was answered by {other:?}"),
    }
}

/// The blocks that a comparison names.
pub fn decode_compare(reply: ObjectReply) -> Option<BTreeSet<u32>> {
    match reply {
        ObjectReply::Differing(runs) => {
            assert!(runs.is_sorted_by(|a, b| a.end() < u64::from(b.first)), "in order and joined: {runs:?}");
            Some(runs.iter().flat_map(|run| run.first..run.first + run.count).collect())
        }
        ObjectReply::Absent => None,
        other => panic!("a comparison was answered by {other:?}"),
    }
}

fn value_of(block: &[u8]) -> Value {
    if block == [0; BLOCK_BYTES] {
        return 0;
    }
    let first = u64::from_le_bytes(block[..8].try_into().unwrap());
    // Values in tests are small; the multiplier is odd, so it can be undone.
    let inverse = {
        let mut x: u64 = 1;
        for _ in 0..6 {
            x = x.wrapping_mul(2u64.wrapping_sub(0x9e37_79b9u64.wrapping_mul(x)));
        }
        x
    };
    let value = first.wrapping_mul(inverse);
    assert_eq!(&content(&[value])[..], block, "a block is a mixture");
    value
}

/// The blocks that random tests touch: both sides of chunk and map borders.
pub fn test_blocks() -> Vec<BlockRange> {
    vec![BlockRange::new(0, 80), BlockRange::new(1016, 40)]
}

/// Random orders over few objects.
pub struct Workload {
    pub objects: u64,
    next_value: Value,
    next_seq: u64,
    settled: u64,
    pub vid: u32,
    pub generation: u64,
}

impl Workload {
    pub fn new(objects: u64) -> Self {
        Workload { objects, next_value: 1, next_seq: 1, settled: 0, vid: 7, generation: 1 }
    }

    pub fn oid(&self, rng: &mut SimRng) -> Oid {
        Oid(100 + rng.below(self.objects))
    }

    pub fn range(&self, rng: &mut SimRng) -> BlockRange {
        let area = test_blocks()[rng.chance(20) as usize];
        let count = match rng.below(10) {
            0..5 => 1 + rng.below(3),
            5..8 => 1 + rng.below(20),
            _ => 16 + rng.below(40),
        } as u32;
        let count = count.min(area.count);
        BlockRange::new(area.first + rng.below(u64::from(area.count - count) + 1) as u32, count)
    }

    pub fn change(&mut self, rng: &mut SimRng) -> (Oid, Change, Vec<Value>, Option<Tag>) {
        let oid = self.oid(rng);
        let mut values = Vec::new();
        let change = match rng.below(100) {
            0..8 => Change::Delete,
            8..20 => Change::Discard { blocks: self.range(rng) },
            kind => {
                let mut blocks = self.range(rng);
                let base = match kind {
                    20..70 => WriteBase::Keep,
                    70..80 => WriteBase::Empty,
                    _ => WriteBase::CloneOf(self.oid(rng)),
                };
                if rng.chance(8) {
                    blocks.count = 0;
                }
                for _ in 0..blocks.count {
                    values.push(if rng.chance(3) { 0 } else { self.next_value });
                    self.next_value += 1;
                }
                let checksums = block_checksums(&content(&values));
                Change::Write { blocks, checksums, base }
            }
        };
        if rng.chance(2) {
            self.generation += 1;
            (self.next_seq, self.settled) = (1, 0);
        }
        let tag = rng.chance(70).then(|| {
            let seq = self.next_seq;
            self.next_seq += 1;
            if rng.chance(30) {
                self.settled += rng.below(seq - self.settled);
            }
            tag(self.vid, self.generation, seq, self.settled)
        });
        (oid, change, values, tag)
    }
}

/// What each block may be after a crash: what the last answered order left, or any later order.
#[derive(Default)]
pub struct History {
    blocks: BTreeMap<(Oid, Option<u32>), Vec<(u64, Value)>>,
    pub tags: Vec<(u64, Tag, Oid)>,
}

impl History {
    /// Everything is known, from now on.
    pub fn reset(model: &Model, objects: u64) -> History {
        let mut history = History::default();
        history.record(0, &Model::default(), model, objects, true);
        history
    }

    /// Order `ticket` took the twin from one state to another. The pseudo-block `None` says whether the object exists.
    pub fn record(&mut self, ticket: u64, before: &Model, after: &Model, objects: u64, all: bool) {
        for oid in (100..100 + objects).map(Oid) {
            let exists = |m: &Model| Value::from(m.0.contains_key(&oid));
            let mut put = |block, old: Value, new: Value| {
                if all || old != new {
                    self.blocks.entry((oid, block)).or_default().push((ticket, new));
                }
            };
            put(None, exists(before), exists(after));
            for block in test_blocks().iter().flat_map(|r| r.first..r.first + r.count) {
                let at = |m: &Model| m.0.get(&oid).and_then(|o| o.get(&block)).copied().unwrap_or(0);
                put(Some(block), at(before), at(after));
            }
        }
    }

    /// Checks a recovered store and takes over what it holds.
    pub fn check(&self, machine: &mut Machine, answered: &BTreeSet<u64>, objects: u64) -> Model {
        let mut found = Model::default();
        for oid in (100..100 + objects).map(Oid) {
            let mut exists = false;
            for range in test_blocks() {
                let values = machine.read(oid, range.first, range.count);
                exists |= values.is_some();
                let values = values.unwrap_or(vec![0; range.count as usize]);
                for (block, value) in (range.first..).zip(values) {
                    self.check_one(oid, Some(block), value, answered);
                    if value != 0 {
                        found.0.entry(oid).or_default().insert(block, value);
                    }
                }
            }
            self.check_one(oid, None, Value::from(exists), answered);
            if exists {
                found.0.entry(oid).or_default();
            }
        }
        found
    }

    fn check_one(&self, oid: Oid, block: Option<u32>, value: Value, answered: &BTreeSet<u64>) {
        let versions = &self.blocks[&(oid, block)];
        let last = versions.iter().rposition(|(t, _)| *t == 0 || answered.contains(t)).unwrap();
        assert!(
            versions[last..].iter().any(|(_, v)| *v == value),
            "object {oid} block {block:?} holds {value}, may hold {:?}",
            &versions[last..]
        );
    }
}
