//! What a write after a snapshot costs, and that the room comes back when the snapshot is gone.

mod common;

use std::io;

use common::*;
use proto::object::*;
use proto::{BLOCK_BYTES, Oid};
use store::testing::{SimDisk, descriptor_offsets, layers};
use store::{Disk, IoId, IoOp, SLOT_BYTES, Store};

const LIVE: Oid = Oid(100);
const FROZEN: Oid = Oid(101);
const CHUNK: u32 = 16;

fn keep(machine: &mut Machine, oid: Oid, first: u32, values: &[Value]) {
    assert_eq!(machine.call(write(oid, first, values, WriteBase::Keep)), ObjectReply::Done);
}

fn clone(machine: &mut Machine, from: Oid, to: Oid) {
    assert_eq!(machine.call(write(to, 0, &[], WriteBase::CloneOf(from))), ObjectReply::Done);
}

fn delete(machine: &mut Machine, oid: Oid) {
    assert_eq!(machine.call(change(oid, Change::Delete)), ObjectReply::Done);
}

fn used_slots(machine: &Machine) -> u64 {
    machine.store.usage().used_bytes / SLOT_BYTES
}

/// Four chunks full of ones, frozen.
fn frozen(seed: u64) -> Machine {
    let mut machine = Machine::new(seed, 14 << 20);
    keep(&mut machine, LIVE, 0, &[1; 4 * CHUNK as usize]);
    clone(&mut machine, LIVE, FROZEN);
    machine
}

/// Brings everything home; returns how many blocks were read, and how many written into slots.
fn go_home(machine: &mut Machine) -> (usize, usize) {
    let slots_offset =
        machine.disk.size() - SLOT_BYTES * machine.store.usage().size_bytes.div_ceil(SLOT_BYTES);
    let (mut read, mut written) = (0, 0);
    machine.store.begin_checkpoint();
    machine.pump();
    while let Some(id) = machine.disk.pending().first().copied() {
        match machine.disk.pending_op(id) {
            Some(IoOp::Read { len, .. }) => read += len / BLOCK_BYTES,
            Some(IoOp::Write { offset, data, .. }) if *offset >= slots_offset => {
                written += data.iter().map(|d| d.len()).sum::<usize>() / BLOCK_BYTES;
            }
            _ => {}
        }
        machine.complete(id);
    }
    machine.store.assert_invariants();
    (read, written)
}

#[test]
fn a_block_written_after_a_snapshot_goes_home_alone() {
    let mut machine = frozen(2);
    keep(&mut machine, LIVE, 3, &[2]);
    keep(&mut machine, LIVE, CHUNK + 7, &[3, 4]);
    assert_eq!(go_home(&mut machine), (0, 3));
    assert_eq!((used_slots(&machine), layers(&machine.store, LIVE)), (6, (6, 2)));
    // The next one has its place.
    keep(&mut machine, LIVE, 5, &[5]);
    assert_eq!(go_home(&mut machine), (0, 1));
    assert_eq!(used_slots(&machine), 6);
    machine.crash();
    let mut expected = vec![1; 4 * CHUNK as usize];
    assert_eq!(machine.read(FROZEN, 0, 4 * CHUNK), Some(expected.clone()));
    (expected[3], expected[5], expected[CHUNK as usize + 7], expected[CHUNK as usize + 8]) = (2, 5, 3, 4);
    assert_eq!(machine.read(LIVE, 0, 4 * CHUNK), Some(expected));
}

#[test]
fn the_next_snapshot_costs_the_few_blocks_of_the_overlay_and_no_depth() {
    let mut machine = frozen(2);
    for n in 0..5 {
        keep(&mut machine, LIVE, 2 * n, &[u64::from(10 + n)]);
        assert_eq!(go_home(&mut machine), (n as usize, 1 + n as usize), "snapshot {n}");
        clone(&mut machine, LIVE, Oid(200 + u64::from(n)));
    }
    assert_eq!(used_slots(&machine), 4 + 5);
    keep(&mut machine, LIVE, 1, &[8; 5]);
    // 1..=5, and copied: 0, 6, 8. Half of the chunk; the rest stays below.
    assert_eq!(go_home(&mut machine), (3, 8));
    assert_eq!(layers(&machine.store, LIVE), (5, 1));
    clone(&mut machine, LIVE, Oid(300));
    keep(&mut machine, LIVE, 15, &[9]);
    assert_eq!(go_home(&mut machine), (15, 16), "more than half");
    assert_eq!(layers(&machine.store, LIVE), (4, 0));
    machine.crash();
    let mut expected = vec![1; CHUNK as usize];
    for n in 0..5 {
        expected[2 * n] = 10 + n as u64;
        assert_eq!(machine.read(Oid(200 + n as u64), 0, CHUNK), Some(expected.clone()));
    }
    expected[1..6].fill(8);
    assert_eq!(machine.read(Oid(300), 0, CHUNK), Some(expected.clone()));
    expected[15] = 9;
    assert_eq!(machine.read(LIVE, 0, CHUNK), Some(expected));
}

#[test]
fn the_room_of_a_deleted_snapshot_comes_back_whatever_is_interrupted() {
    for seed in 0..150 {
        let mut machine = frozen(seed);
        for chunk in 0..3 {
            keep(&mut machine, LIVE, chunk * CHUNK + 3, &[2]);
        }
        machine.checkpoint();
        if seed % 3 == 0 {
            // Both share what is merged.
            clone(&mut machine, LIVE, Oid(200));
        }
        let ticket = machine.submit(change(FROZEN, Change::Delete));
        for _ in 0..machine.rng.below(20) {
            machine.step();
        }
        let deleted = machine.replies.contains_key(&ticket);
        machine.crash();
        if !deleted {
            delete(&mut machine, FROZEN);
        }
        machine.run();
        machine.store.assert_invariants();
        assert_eq!((used_slots(&machine), layers(&machine.store, LIVE)), (4, (4, 0)), "seed {seed}");
        let mut expected = vec![1; 4 * CHUNK as usize];
        (0..3).for_each(|chunk| expected[chunk * CHUNK as usize + 3] = 2);
        assert_eq!(machine.read(LIVE, 0, 4 * CHUNK), Some(expected.clone()));
        machine.crash();
        assert_eq!(machine.read(LIVE, 0, 4 * CHUNK), Some(expected));
    }
}

/// Everything is carried out in order of submission, except for this one.
fn run_all_but(machine: &mut Machine, held: Option<IoId>) {
    machine.pump();
    while let Some(id) = machine.disk.pending().into_iter().find(|id| Some(*id) != held) {
        machine.complete(id);
    }
}

#[test]
fn a_page_that_is_written_before_a_deletion_is_durable_still_knows_what_lies_below() {
    let mut held_back = 0;
    for steps in 0..40 {
        let mut machine = frozen(2);
        keep(&mut machine, LIVE, 3, &[2]);
        machine.checkpoint();
        // Its descriptor is a neighbour of the overlay's.
        keep(&mut machine, Oid(200), 0, &[5]);
        machine.store.begin_checkpoint();
        machine.pump();
        for _ in 0..steps {
            let Some(id) = machine.disk.pending().first().copied() else { break };
            machine.complete(id);
        }
        let before = machine.disk.pending();
        let ticket = machine.submit(change(LIVE, Change::Delete));
        let record = machine.disk.pending().into_iter().find(|id| !before.contains(id));
        run_all_but(&mut machine, record);
        held_back += u32::from(!machine.replies.contains_key(&ticket));
        // Nothing of what is in flight arrives.
        let mut disk = machine.disk.clone();
        record.into_iter().for_each(|id| drop(disk.pretend(id)));
        let mut machine = Machine::open(disk).unwrap();
        machine.store.assert_invariants();
        if let Some(values) = machine.read(LIVE, 0, 5) {
            assert_eq!(values, [1, 1, 1, 2, 1], "after {steps} steps");
        }
    }
    assert!(held_back > 10);
}

#[test]
fn an_orderly_end_does_not_wait_for_merging_and_the_next_start_does_it() {
    let mut machine = frozen(2);
    keep(&mut machine, LIVE, 3, &[2]);
    machine.checkpoint();
    let ticket = machine.submit(change(FROZEN, Change::Delete));
    machine.store.begin_checkpoint();
    machine.run();
    assert!(machine.replies.contains_key(&ticket) && machine.store.is_quiet());
    assert_eq!(used_slots(&machine), 5);
    machine.reopen();
    machine.run();
    assert_eq!(used_slots(&machine), 4, "nobody has asked for anything");
}

/// A disk that is full: 32 chunks of `LIVE`, an overlay and a frozen slot for each, and others.
fn full(seed: u64, count: u32) -> (Machine, u32) {
    let mut machine = Machine::new(seed, 14 << 20);
    for chunk in 0..32 {
        keep(&mut machine, LIVE, chunk * CHUNK, &[1; CHUNK as usize]);
    }
    clone(&mut machine, LIVE, FROZEN);
    (0..32).for_each(|chunk| keep(&mut machine, LIVE, chunk * CHUNK, &[2]));
    machine.checkpoint();
    let fillers = (0..).find(|n| machine.call(filler(*n, count)) != ObjectReply::Done).unwrap();
    (machine, fillers)
}

/// The n-th write of so many blocks.
fn filler(n: u32, count: u32) -> ObjectOp {
    let (oid, first) = (Oid(500 + u64::from(n / 32)), n % 32 * count.next_multiple_of(CHUNK));
    write(oid, first, &vec![u64::from(n) + 3; count as usize], WriteBase::Keep)
}

#[test]
fn a_write_waits_for_the_room_of_a_deleted_snapshot() {
    for (seed, count) in [(2, CHUNK), (4, 1), (3, CHUNK), (5, 2 * CHUNK)] {
        let (mut machine, fillers) = full(seed, count);
        machine.submit(change(FROZEN, Change::Delete));
        let tickets: Vec<u64> = (fillers..fillers + 12).map(|n| machine.submit(filler(n, count))).collect();
        if seed == 2 {
            machine.store.begin_checkpoint();
        }
        machine.run();
        for (n, ticket) in tickets.iter().enumerate() {
            assert_eq!(
                machine.replies.remove(ticket),
                Some(ObjectReply::Done),
                "write {n} of {count} blocks"
            );
        }
        machine.run();
        machine.store.assert_invariants();
        assert_eq!(machine.read(LIVE, 0, 3), Some(vec![2, 1, 1]));
        let mut replies = (2000..2100).map(|n| machine.call(filler(n, count)));
        assert!(replies.any(|reply| reply == ObjectReply::Failed(StoreFailure::NoSpace)), "there is an end");
    }
}

#[test]
fn a_slot_that_is_still_merged_into_is_not_given_to_others() {
    let (mut machine, fillers) = full(2, CHUNK);
    machine.submit(change(FROZEN, Change::Delete));
    let is_merge = |machine: &Machine, id| {
        matches!(machine.disk.pending_op(id), Some(IoOp::Write { durable: false, .. }))
    };
    let held = loop {
        let id = machine.disk.pending()[0];
        if is_merge(&machine, id) {
            break id;
        }
        machine.complete(id);
    };
    let delete = machine.submit(change(LIVE, Change::Delete));
    let tickets: Vec<u64> = (fillers..fillers + 12).map(|n| machine.submit(filler(n, CHUNK))).collect();
    run_all_but(&mut machine, Some(held));
    assert_eq!(machine.replies.remove(&delete), Some(ObjectReply::Done));
    machine.run();
    for (n, ticket) in (fillers..).zip(tickets) {
        assert_eq!(machine.replies.remove(&ticket), Some(ObjectReply::Done));
        let oid = Oid(500 + u64::from(n / 32));
        assert_eq!(machine.read(oid, n % 32 * CHUNK, 2), Some(vec![u64::from(n) + 3; 2]));
    }
    machine.store.assert_invariants();
}

#[test]
fn what_is_lost_below_stays_lost_when_it_is_merged() {
    let mut machine = frozen(2);
    keep(&mut machine, LIVE, 3, &[2]);
    machine.checkpoint();
    let home = store::testing::home_blocks(&machine.store);
    let rotten = home.iter().find(|b| b.oid == LIVE && b.block == 9).unwrap().offset;
    machine.disk.flip_bit(rotten + 5, 1);
    delete(&mut machine, FROZEN);
    machine.run();
    assert_eq!(layers(&machine.store, LIVE), (4, 0));
    let corrupt = ObjectReply::Failed(StoreFailure::Corrupt { oid: LIVE, block: 9 });
    for _ in 0..2 {
        let blocks = BlockRange::new(0, CHUNK);
        assert_eq!(machine.call(ObjectOp::Read { oid: LIVE, blocks }), corrupt);
        assert_eq!(machine.call(ObjectOp::Checksums { oid: LIVE, blocks: BlockRange::ALL }), corrupt);
        let recorded = machine.call(ObjectOp::Recorded { oid: LIVE, blocks: BlockRange::ALL });
        let ObjectReply::Checksums(recorded) = recorded else { panic!("{recorded:?}") };
        assert_eq!(recorded[9], recorded[8], "it is known what was there");
        assert_eq!(machine.read(LIVE, 3, 6), Some(vec![2, 1, 1, 1, 1, 1]));
        machine.crash();
    }
    keep(&mut machine, LIVE, 9, &[7]);
    machine.checkpoint();
    assert_eq!(machine.read(LIVE, 8, 3), Some(vec![1, 7, 1]));
}

/// Reads one sector wrongly, and does not know it.
struct BadReads<'a> {
    disk: &'a mut SimDisk,
    at: u64,
}

impl Disk for BadReads<'_> {
    fn size(&self) -> u64 {
        self.disk.size()
    }
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(offset, buf)?;
        if let Some(byte) = self.at.checked_sub(offset).and_then(|at| buf.get_mut(at as usize)) {
            *byte ^= 1;
        }
        Ok(())
    }
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.write_at(offset, data)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.disk.sync()
    }
}

#[test]
fn what_an_overlay_had_below_is_never_looked_for_again_once_it_was_forgotten() {
    let mut machine = frozen(2);
    keep(&mut machine, Oid(200), 0, &[1; 20 * CHUNK as usize]);
    keep(&mut machine, LIVE, 3, &[2]);
    machine.checkpoint();
    let [overlay, _] = descriptor_offsets(&machine.store, LIVE, 0)[..] else { panic!("it is an overlay") };
    // The room that is given last is that of this one, behind what lies below the overlay.
    machine.submit(change(Oid(200), Change::Delete));
    machine.submit(change(FROZEN, Change::Delete));
    machine.store.begin_checkpoint();
    machine.run();
    // A read that goes wrong once: the slot below is free now, and others get it.
    let mut disk = machine.disk.clone();
    let (store, _) = Store::open(&mut BadReads { disk: &mut disk, at: overlay + 70 }).unwrap();
    (machine.disk, machine.store) = (disk, store);
    machine.store.assert_invariants();
    for (at, chunks) in [(0, 32), (4, 8), (8, 1)] {
        for n in 0.. {
            let op =
                write(Oid(500 + at), n * 32 * CHUNK, &vec![6; (chunks * CHUNK) as usize], WriteBase::Keep);
            if machine.call(op) != ObjectReply::Done {
                break;
            }
        }
    }
    // Of all that, only records are on the disk.
    machine.crash();
    for block in 0..CHUNK {
        match machine.call(ObjectOp::Read { oid: LIVE, blocks: BlockRange::new(block, 1) }) {
            ObjectReply::Failed(StoreFailure::Corrupt { .. }) => {}
            reply => assert_eq!(decode_read(reply), Some(vec![if block == 3 { 2 } else { 1 }])),
        }
    }
}

#[test]
fn a_store_of_version_2_opens_and_is_one_of_version_3_from_then_on() {
    let mut machine = frozen(2);
    machine.checkpoint();
    let version = |disk: &mut SimDisk, copy: u64| {
        let mut block = [0; BLOCK_BYTES];
        disk.read_at(copy * BLOCK_BYTES as u64, &mut block).unwrap();
        (block, u32::from_le_bytes(block[8..12].try_into().unwrap()))
    };
    let set_version = |disk: &mut SimDisk, copy: u64, to: u32| {
        let (mut block, _) = version(disk, copy);
        block[8..12].copy_from_slice(&to.to_le_bytes());
        block[12..16].fill(0);
        let crc = proto::checksum::crc32c(&block);
        block[12..16].copy_from_slice(&crc.to_le_bytes());
        disk.garble(copy * BLOCK_BYTES as u64, &block);
    };
    (0..2).for_each(|copy| set_version(&mut machine.disk, copy, 2));
    machine.reopen();
    assert_eq!([0, 1].map(|copy| version(&mut machine.disk, copy).1), [3, 3]);
    keep(&mut machine, LIVE, 3, &[2]);
    machine.checkpoint();
    machine.crash();
    assert_eq!(layers(&machine.store, LIVE), (5, 1));
    assert_eq!(machine.read(LIVE, 2, 3), Some(vec![1, 2, 1]));
    set_version(&mut machine.disk, 1, 4);
    let error = Machine::open(machine.disk).err().expect("another copy would be older");
    assert!(error.to_string().contains("version 4"), "{error}");
}
