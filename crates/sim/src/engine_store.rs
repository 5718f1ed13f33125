//! The real store on a simulated disk: one sheep's disk, in runs whose seed wants the engine.
//!
//! The world carries out its I/O with latencies of its own. A crash is one of the disk: what was not synced is
//! lost, torn or reordered. The disk is small, so that its journal wraps within a run, and yet larger than
//! everything a run writes ([`crate::scenario::Scenario::new_disk`]): `NoSpace` is a legal answer only where [`crate::ballast`] fills it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use node::Ticket;
use proto::checksum::ZERO_BLOCK_CRC;
use proto::object::{BlockRange, ObjectOp, ObjectReply, StoreFailure, Unsettled};
use proto::{BLOCK_BYTES, Oid};
use store::testing::{SimDisk, SimRng, home_blocks, live_records, oldest_record};
use store::{Disk, FormatOptions, IoId, IoOp, Recovered, Store};

use crate::prng::Rng;

/// The smallest there is: write-back begins after some 60 small writes.
const JOURNAL_BYTES: u64 = 1 << 20;
/// Completions between two checks of the engine's invariants.
const CHECK_INTERVAL: u64 = 64;
/// Completions between two moments in which the disk has time to write ahead of use.
const AHEAD_INTERVAL: u64 = 16;
/// No order of a node has it.
const OWN_TICKET: u64 = u64::MAX;

/// What survives the process.
pub struct EngineDisk {
    disk: SimDisk,
    store_id: u64,
    size_bytes: u64,
    is_formatted: bool,
}

/// What the disk does wrong from now on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flaws {
    /// So many reads end with an error.
    pub reads_to_fail: u32,
    /// Writes and syncs end with an error.
    pub fails: bool,
    /// Syncs succeed without having done anything.
    pub drops_syncs: bool,
}

pub struct EngineStore {
    store: Store,
    disk: SimDisk,
    size_bytes: u64,
    pub flaws: Flaws,
    completed: u64,
    /// Rounds of write-back that came to their sync.
    pub syncs: u64,
}

impl EngineDisk {
    pub fn new(store_id: u64, size_bytes: u64) -> EngineDisk {
        // Devices and files in turn.
        let options = format_options(store_id, size_bytes);
        let disk = match store_id % 2 {
            0 => SimDisk::new(size_bytes),
            _ => SimDisk::growing(options.first_bytes().expect("large enough"), size_bytes),
        };
        EngineDisk { disk, store_id, size_bytes, is_formatted: false }
    }

    /// Formats the disk when it is new, and recovers it; perhaps at the second or third attempt.
    pub fn open(mut self, rng: &mut Rng) -> Result<(EngineStore, Vec<Unsettled>), String> {
        let options = format_options(self.store_id, self.size_bytes);
        while rng.percent(5) {
            let mut failing = FailingPower { disk: &mut self.disk, steps_left: rng.below(9) };
            let _ = open(&mut failing, &options, self.is_formatted);
            self.disk.crash(rng.next());
        }
        let (store, recovered) = open(&mut self.disk, &options, self.is_formatted)?;
        assert_eq!(recovered.store_id, self.store_id, "a disk keeps its id");
        store.assert_invariants();
        let EngineDisk { disk, size_bytes, .. } = self;
        let opened = EngineStore { store, disk, size_bytes, flaws: Flaws::default(), completed: 0, syncs: 0 };
        Ok((opened, recovered.unsettled))
    }
}

fn format_options(store_id: u64, size_bytes: u64) -> FormatOptions {
    FormatOptions { size_bytes, journal_bytes: JOURNAL_BYTES, store_id }
}

fn open(
    disk: &mut dyn Disk,
    options: &FormatOptions,
    is_formatted: bool,
) -> Result<(Store, Recovered), String> {
    if !is_formatted {
        Store::format(disk, options).map_err(|e| format!("cannot be formatted: {e}"))?;
    }
    Store::open(disk).map_err(|e| format!("cannot be opened: {e}"))
}

/// A disk that does so many more writes and syncs, and then nothing.
struct FailingPower<'a> {
    disk: &'a mut SimDisk,
    steps_left: u64,
}

impl FailingPower<'_> {
    fn step(&mut self) -> io::Result<()> {
        self.steps_left = self.steps_left.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(())
    }
}

impl Disk for FailingPower<'_> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(offset, buf)
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.step()?;
        self.disk.write_at(offset, data)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.step()?;
        self.disk.sync()
    }

    fn can_grow(&self) -> bool {
        self.disk.can_grow()
    }

    fn ahead_bytes_max(&self) -> u64 {
        self.disk.ahead_bytes_max()
    }

    fn written_until(&self, offset: u64) -> u64 {
        self.disk.written_until(offset)
    }
}

impl EngineStore {
    pub fn submit(&mut self, ticket: Ticket, op: ObjectOp) {
        assert!(ticket.0 != OWN_TICKET);
        self.store.submit(ticket.0, op);
    }

    /// The next I/O that begins now: its number and, for its latency, what it is.
    pub fn poll_io(&mut self) -> Option<(IoId, IoOp)> {
        let request = self.store.poll_io()?;
        let begun = (request.id, request.op.clone());
        self.disk.submit(request);
        Some(begun)
    }

    pub fn poll_reply(&mut self) -> Option<(Ticket, ObjectReply)> {
        self.store.poll_reply().map(|(ticket, reply)| (Ticket(ticket), reply))
    }

    /// An I/O that is under way.
    pub fn io(&self, id: IoId) -> &IoOp {
        self.disk.pending_op(id).expect("an I/O is completed once")
    }

    /// Carries out an I/O that is under way; `false` if the disk could not.
    pub fn complete(&mut self, id: IoId) -> bool {
        let result = match self.io(id) {
            IoOp::Read { .. } if self.flaws.reads_to_fail > 0 => {
                self.flaws.reads_to_fail -= 1;
                self.disk.fail(id)
            }
            IoOp::Write { .. } | IoOp::Sync if self.flaws.fails => self.disk.fail(id),
            IoOp::Sync => {
                self.syncs += 1;
                if self.flaws.drops_syncs { self.disk.pretend(id) } else { self.disk.complete(id) }
            }
            IoOp::Read { .. } | IoOp::Write { .. } | IoOp::Grow { .. } => self.disk.complete(id),
        };
        let succeeded = result.is_ok();
        self.store.handle_io(id, result);
        self.completed += 1;
        if self.completed.is_multiple_of(AHEAD_INTERVAL) {
            self.store.write_ahead(1 + (self.completed / AHEAD_INTERVAL % 4) as u32);
        }
        if self.completed.is_multiple_of(CHECK_INTERVAL) {
            self.assert_invariants();
        }
        succeeded
    }

    pub fn begin_checkpoint(&mut self) {
        self.store.begin_checkpoint();
    }

    pub fn is_failed(&self) -> bool {
        self.store.is_failed()
    }

    /// A store whose disk failed has let go of everything.
    pub fn assert_invariants(&self) {
        if !self.store.is_failed() {
            self.store.assert_invariants();
        }
    }

    /// Flips a bit in each of some blocks that lie on the disk. Returns which those are, of all objects that share them.
    pub fn rot(&mut self, rng: &mut Rng) -> Vec<(Oid, u32)> {
        let mut blocks = home_blocks(&self.store);
        rng.shuffle(&mut blocks);
        let count = rng.in_range(1..6) as usize;
        let rotten: BTreeSet<u64> = blocks.iter().take(count).map(|b| b.offset).collect();
        for offset in &rotten {
            self.disk.flip_bit(offset + rng.below(BLOCK_BYTES as u64), rng.below(8) as u8);
        }
        blocks.into_iter().filter(|b| rotten.contains(&b.offset)).map(|b| (b.oid, b.block)).collect()
    }

    /// Flips a bit in a record that a start would replay. Returns its number, if there is any.
    pub fn rot_journal(&mut self, rng: &mut Rng) -> Option<u64> {
        let records = live_records(&self.store, &mut self.disk);
        let record = records.get(rng.below(records.len().max(1) as u64) as usize)?;
        let place = record.place(&mut SimRng::new(rng.next()));
        self.disk.flip_bit(place, rng.below(8) as u8);
        Some(record.seq)
    }

    /// Would a start replay this record?
    pub fn needs_record(&self, seq: u64) -> bool {
        oldest_record(&self.store) <= seq
    }

    /// The machine loses power: the disk keeps what was synced, and any part of the rest.
    pub fn lose_power(mut self, rng: &mut Rng) -> EngineDisk {
        self.disk.crash(rng.next());
        self.into_disk()
    }

    /// The process ends: the disk does what it was asked for, or not.
    pub fn end(mut self, rng: &mut Rng) -> EngineDisk {
        self.disk.kill(rng.next());
        self.into_disk()
    }

    fn into_disk(self) -> EngineDisk {
        let EngineStore { store, disk, size_bytes, .. } = self;
        EngineDisk { disk, store_id: store.store_id(), size_bytes, is_formatted: true }
    }

    pub fn objects(&mut self) -> Vec<Oid> {
        match self.ask(ObjectOp::List { first: Oid(0), last: Oid(u64::MAX), limit: u32::MAX }) {
            ObjectReply::Objects(objects) => objects.into_iter().map(|o| o.oid).collect(),
            other => panic!("a list is answered with {other:?}"),
        }
    }

    /// The blocks of an object that are not zeros. `None`: there is no such object.
    pub fn content(&mut self, oid: Oid) -> Result<Option<BTreeMap<u32, Bytes>>, StoreFailure> {
        let checksums = match self.ask(ObjectOp::Checksums { oid, blocks: BlockRange::ALL }) {
            ObjectReply::Checksums(checksums) => checksums,
            ObjectReply::Absent => return Ok(None),
            ObjectReply::Failed(failure) => return Err(failure),
            other => panic!("a question for checksums is answered with {other:?}"),
        };
        let mut content = BTreeMap::new();
        for (block, _) in (0..).zip(checksums).filter(|(_, crc)| *crc != ZERO_BLOCK_CRC) {
            match self.ask(ObjectOp::Read { oid, blocks: BlockRange::new(block, 1) }) {
                ObjectReply::Data { data, .. } => drop(content.insert(block, data)),
                ObjectReply::Failed(failure) => return Err(failure),
                other => panic!("a read is answered with {other:?}"),
            }
        }
        Ok(Some(content))
    }

    /// Answers at once, whatever else has to be carried out for it. Only for the end of a run: answers to
    /// the node that come meanwhile are lost.
    fn ask(&mut self, op: ObjectOp) -> ObjectReply {
        self.store.submit(OWN_TICKET, op);
        loop {
            while self.poll_io().is_some() {}
            while let Some((ticket, reply)) = self.store.poll_reply() {
                if ticket == OWN_TICKET {
                    return reply;
                }
            }
            let pending = self.disk.pending();
            self.complete(*pending.first().expect("an order is answered when no I/O is left"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::checksum::crc32c;
    use proto::object::{Change, WriteBase};

    const OID: Oid = Oid(7);

    fn write(store: &mut EngineStore, block: u32, fill: u8) {
        let data = Bytes::from(vec![fill; BLOCK_BYTES]);
        let blocks = BlockRange::new(block, 1);
        let change = Change::Write { blocks, checksums: vec![crc32c(&data)], base: WriteBase::Keep };
        assert_eq!(store.ask(ObjectOp::Change { oid: OID, change, data, tag: None }), ObjectReply::Done);
    }

    fn bring_home(store: &mut EngineStore) {
        store.begin_checkpoint();
        while let Some(id) = {
            while store.poll_io().is_some() {}
            store.disk.pending().first().copied()
        } {
            store.complete(id);
        }
    }

    fn reopen(store: EngineStore, rng: &mut Rng) -> Result<EngineStore, String> {
        store.lose_power(rng).open(rng).map(|(store, _)| store)
    }

    #[test]
    fn answered_changes_survive_a_power_loss_and_rot_is_never_returned() {
        let mut rng = Rng::new(3);
        let (mut store, _) = EngineDisk::new(1, 32 << 20).open(&mut rng).unwrap();
        write(&mut store, 0, 1);
        bring_home(&mut store);
        write(&mut store, 1, 2);
        let mut store = reopen(store, &mut rng).unwrap();
        let content = store.content(OID).unwrap().unwrap();
        assert_eq!((content[&0][0], content[&1][0]), (1, 2));
        // Block 1 is not home: it is in the journal and in memory.
        assert_eq!(store.rot(&mut rng), [(OID, 0)]);
        assert_eq!(store.content(OID), Err(StoreFailure::Corrupt { oid: OID, block: 0 }));
        write(&mut store, 0, 3);
        assert_eq!(store.content(OID).unwrap().unwrap()[&0][0], 3);
    }

    #[test]
    fn a_rotten_journal_opens_once_it_was_read_back() {
        let mut rng = Rng::new(5);
        for is_read_back in [false, true] {
            let (mut store, _) = EngineDisk::new(1, 32 << 20).open(&mut rng).unwrap();
            write(&mut store, 0, 1);
            let seq = store.rot_journal(&mut rng).unwrap();
            write(&mut store, 1, 2);
            assert!(store.needs_record(seq));
            if is_read_back {
                let reply = store.ask(ObjectOp::VerifyJournal { first: 0, last: u64::MAX });
                assert!(matches!(reply, ObjectReply::JournalVerified(verified) if verified.damaged == 1));
                assert!(!store.needs_record(seq));
            }
            let content = reopen(store, &mut rng).map(|mut store| store.content(OID).unwrap().unwrap());
            match content {
                Ok(content) => assert!(is_read_back && content[&0][0] == 1 && content[&1][0] == 2),
                Err(why) => assert!(!is_read_back && why.contains("is damaged"), "{why}"),
            }
        }
    }

    #[test]
    fn a_disk_that_drops_syncs_loses_what_was_answered() {
        let lost = (0..50).filter(|seed| {
            let mut rng = Rng::new(*seed);
            let (mut store, _) = EngineDisk::new(1, 32 << 20).open(&mut rng).unwrap();
            store.flaws.drops_syncs = true;
            write(&mut store, 0, 1);
            bring_home(&mut store);
            let content = reopen(store, &mut rng).map(|mut store| store.content(OID));
            !matches!(content, Ok(Ok(Some(blocks))) if blocks.get(&0).is_some_and(|b| b[0] == 1))
        });
        assert!(lost.count() > 10);
    }

    #[test]
    fn a_failed_write_fails_the_whole_store() {
        let mut rng = Rng::new(4);
        let (mut store, _) = EngineDisk::new(1, 32 << 20).open(&mut rng).unwrap();
        store.flaws.fails = true;
        store.submit(
            Ticket(1),
            ObjectOp::Change {
                oid: OID,
                change: Change::Discard { blocks: BlockRange::new(0, 1) },
                data: Bytes::new(),
                tag: None,
            },
        );
        let (io, _) = store.poll_io().unwrap();
        assert!(!store.complete(io) && store.is_failed());
        let failed = ObjectReply::Failed(StoreFailure::DiskFailed);
        assert_eq!(store.poll_reply(), Some((Ticket(1), failed)));
    }
}
