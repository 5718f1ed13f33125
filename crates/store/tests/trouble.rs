//! Disks that fail or are full.

mod common;

use std::collections::BTreeSet;

use common::*;
use proto::Oid;
use proto::object::*;
use store::testing::SimDisk;
use store::{Disk as _, FormatOptions, IoOp, OpenError, Store};

const OBJECTS: u64 = 5;

/// Random orders; one write or sync of the disk fails. What was answered before is there after the next open.
fn fail_once(seed: u64) {
    let mut machine = Machine::new(seed, 14 << 20);
    let mut workload = Workload::new(OBJECTS);
    let mut model = Model::default();
    let mut history = History::reset(&model, OBJECTS);
    let (mut tickets, mut changes) = (BTreeSet::new(), BTreeSet::new());
    let fail_after = machine.rng.below(400);
    let mut completed = 0;
    while !machine.store.is_failed() && tickets.len() < 2000 {
        if machine.rng.chance(20) {
            let (oid, blocks) = (workload.oid(&mut machine.rng), workload.range(&mut machine.rng));
            tickets.insert(machine.submit(ObjectOp::Read { oid, blocks }));
        } else {
            let (oid, change, values, tag) = workload.change(&mut machine.rng);
            let before = model.clone();
            model.apply(oid, &change, &values);
            let ticket = machine.submit(ObjectOp::Change { oid, change, data: content(&values), tag });
            history.record(ticket, &before, &model, OBJECTS, false);
            tickets.insert(ticket);
            changes.insert(ticket);
        }
        while machine.disk.pending().len() as u64 > machine.rng.below(8) {
            completed += 1;
            let pending = machine.disk.pending();
            let id = pending[machine.rng.below(pending.len() as u64) as usize];
            let is_read = matches!(machine.disk.pending_op(id), Some(IoOp::Read { .. }));
            if completed >= fail_after && !is_read {
                let result = machine.disk.fail(id);
                machine.store.handle_io(id, result);
                machine.pump();
                break;
            }
            machine.complete(id);
        }
    }
    assert!(machine.store.is_failed());
    assert!(machine.store.is_quiet());
    let late = machine.submit(write(Oid(100), 0, &[1], WriteBase::Keep));
    assert_eq!(machine.replies.remove(&late), Some(ObjectReply::Failed(StoreFailure::DiskFailed)));
    for id in machine.disk.pending() {
        machine.complete(id);
    }
    assert!(tickets.iter().all(|t| machine.replies.contains_key(t)), "every order is answered");
    let answered = changes.iter().filter(|t| machine.replies[t] == ObjectReply::Done).copied().collect();
    machine.crash();
    history.check(&mut machine, &answered, OBJECTS);
}

#[test]
fn a_failed_write_or_sync_fails_the_disk_and_undoes_nothing_answered() {
    for seed in 0..60 {
        let result = std::panic::catch_unwind(|| fail_once(seed));
        assert!(result.is_ok(), "seed {seed}");
    }
}

#[test]
fn a_read_that_fails_costs_its_block_and_not_the_disk() {
    let mut machine = Machine::new(1, 14 << 20);
    machine.call(write(Oid(100), 0, &[1; 40], WriteBase::Keep));
    let ticket = machine.submit(ObjectOp::Read { oid: Oid(100), blocks: BlockRange::new(3, 2) });
    let id = machine.disk.pending()[0];
    let result = machine.disk.fail(id);
    machine.store.handle_io(id, result);
    machine.run();
    let corrupt = StoreFailure::Corrupt { oid: Oid(100), block: 3 };
    assert_eq!(machine.replies.remove(&ticket), Some(ObjectReply::Failed(corrupt)));
    assert_eq!(machine.read(Oid(100), 3, 2), Some(vec![1, 1]));
}

/// Fills the disk with writes of so many blocks; returns what is on it.
fn fill(machine: &mut Machine, count: u32) -> Model {
    let mut model = Model::default();
    for n in 0.. {
        let (oid, first) = (Oid(100 + n / 8), (n % 8) as u32 * 16);
        let values: Vec<Value> = (1..=u64::from(count)).map(|i| n * 100 + i).collect();
        let op = write(oid, first, &values, WriteBase::Keep);
        let ObjectOp::Change { change, .. } = &op else { unreachable!() };
        let change = change.clone();
        match machine.call(op) {
            ObjectReply::Done => model.apply(oid, &change, &values),
            reply => {
                assert_eq!(reply, ObjectReply::Failed(StoreFailure::NoSpace));
                return model;
            }
        }
    }
    unreachable!()
}

fn check(machine: &mut Machine, model: &Model) {
    for oid in model.0.keys() {
        let all = BlockRange::new(0, 128);
        assert_eq!(machine.read(*oid, 0, 128), model.values(*oid, all));
    }
}

/// A file of a 32 MiB store, and of what its file system has room for.
fn file(room: u64) -> Machine {
    let options = FormatOptions { size_bytes: 32 << 20, journal_bytes: JOURNAL_BYTES, store_id: 9 };
    let mut disk = SimDisk::growing(options.first_bytes().unwrap(), room);
    assert!(disk.size() < 6 << 20, "it begins small");
    Store::format(&mut disk, &options).unwrap();
    Machine::open(disk).unwrap()
}

#[test]
fn a_file_grows_with_what_is_on_it_up_to_its_size() {
    let mut device = {
        let options = FormatOptions { size_bytes: 32 << 20, journal_bytes: JOURNAL_BYTES, store_id: 9 };
        let mut disk = SimDisk::new(32 << 20);
        Store::format(&mut disk, &options).unwrap();
        Machine::open(disk).unwrap()
    };
    for count in [16, 1] {
        let mut machine = file(32 << 20);
        assert_eq!(machine.store.usage().size_bytes, device.store.usage().size_bytes);
        let mut before = machine.disk.size();
        for n in 0..100 {
            machine.call(write(Oid(1000 + n), 0, &vec![n + 1; count], WriteBase::Keep));
            assert!(machine.disk.size() < (6 << 20) + n * store::SLOT_BYTES, "{n} slots are needed");
            assert!(machine.disk.size() >= before);
            before = machine.disk.size();
            assert!(n % 10 > 0 || machine.crash().is_empty());
        }
        for n in 0..100 {
            assert_eq!(machine.read(Oid(1000 + n), 0, 1), Some(vec![n + 1]));
            machine.call(change(Oid(1000 + n), Change::Delete));
        }
        machine.checkpoint();
        let model = fill(&mut machine, count as u32);
        assert_eq!(fill(&mut device, count as u32), model, "a file takes as much as a device");
        check(&mut machine, &model);
        machine.crash();
        check(&mut machine, &model);
        machine.store.assert_invariants();
        for oid in model.0.keys() {
            device.call(change(*oid, Change::Delete));
        }
        device.checkpoint();
    }
}

#[test]
fn orders_wait_for_a_file_that_grows() {
    for count in [1, 16, 200] {
        let mut machine = file(32 << 20);
        let total = 380 / u64::from(count as u32).div_ceil(16);
        let tickets: Vec<u64> = (0..total)
            .map(|n| (Oid(100 + n / 4), n as u32 % 4 * 208, vec![n + 1; count]))
            .map(|(oid, first, values)| machine.submit(write(oid, first, &values, WriteBase::Keep)))
            .collect();
        let flush = machine.submit(ObjectOp::Flush);
        assert!(machine.store.awaits_room());
        machine.run();
        assert!(!machine.store.awaits_room());
        assert_eq!(machine.replies.remove(&flush), Some(ObjectReply::Done));
        for ticket in tickets {
            assert_eq!(machine.replies.remove(&ticket), Some(ObjectReply::Done));
        }
        machine.store.assert_invariants();
    }
}

#[test]
fn a_full_file_system_is_no_space_and_no_failure() {
    for count in [1, 16] {
        let mut machine = file(12 << 20);
        let model = fill(&mut machine, count);
        assert!(machine.disk.size() > 11 << 20, "all room is taken, to the last step");
        assert!(!machine.store.is_failed());
        check(&mut machine, &model);
        machine.crash();
        check(&mut machine, &model);
        machine.checkpoint();
        machine.store.assert_invariants();
        let op = |n: u32| write(Oid(5000), 16 * n, &vec![7; count as usize], WriteBase::Keep);
        assert_eq!(machine.call(op(0)), ObjectReply::Failed(StoreFailure::NoSpace));
        // What is held back for changes that must not be refused comes first.
        for oid in model.0.keys().take(model.0.len().div_ceil(4)) {
            assert_eq!(machine.call(change(*oid, Change::Delete)), ObjectReply::Done);
        }
        assert_eq!(machine.call(op(1)), ObjectReply::Done, "what was deleted can be used");
        machine.disk.set_room(32 << 20);
        for n in 2..20 {
            assert_eq!(machine.call(op(n)), ObjectReply::Done, "and what the file system has got since");
        }
        machine.store.assert_invariants();
    }
}

#[test]
fn a_file_that_was_cut_opens_only_if_nothing_was_there() {
    let mut machine = file(32 << 20);
    let grown = machine.disk.size();
    for n in 0..100 {
        machine.call(write(Oid(100 + n), 0, &[n + 1; 16], WriteBase::Keep));
    }
    machine.checkpoint();
    assert!(machine.disk.size() > grown);
    let mut disk = machine.disk.clone();
    disk.truncate(grown);
    match Store::open(&mut disk) {
        Err(OpenError::DiskSmaller { expected, found }) => assert!(expected > found && found == grown),
        other => panic!("{:?}", other.err()),
    }
    disk.truncate(1 << 20);
    assert!(
        matches!(Store::open(&mut disk), Err(OpenError::DiskSmaller { .. })),
        "a part of the tables is gone"
    );
    for n in 20..100 {
        machine.call(change(Oid(100 + n), Change::Delete));
    }
    machine.checkpoint();
    let mut disk = machine.disk.clone();
    disk.truncate(grown + 4096 * 20);
    let mut machine = Machine::open(disk).unwrap();
    for n in 0..20 {
        assert_eq!(machine.read(Oid(100 + n), 15, 1), Some(vec![n + 1]));
    }
    for n in 20..100 {
        assert_eq!(machine.call(write(Oid(100 + n), 0, &[n + 1; 16], WriteBase::Keep)), ObjectReply::Done);
    }
    machine.store.assert_invariants();
}

#[test]
fn a_full_disk_starts_reads_overwrites_and_deletes() {
    for (seed, count) in [(1, 1), (2, 16), (3, 7), (4, 9)] {
        let mut machine = Machine::new(seed, 14 << 20);
        let mut model = fill(&mut machine, count);
        check(&mut machine, &model);
        machine.crash();
        check(&mut machine, &model);
        // What has a place already can be written.
        for oid in model.0.keys().copied().collect::<Vec<_>>() {
            let op = write(oid, 0, &[5], WriteBase::Keep);
            let ObjectOp::Change { change, .. } = &op else { unreachable!() };
            model.apply(oid, &change.clone(), &[5]);
            assert_eq!(machine.call(op), ObjectReply::Done);
        }
        machine.checkpoint();
        machine.store.assert_invariants();
        machine.crash();
        check(&mut machine, &model);
        for oid in model.0.keys() {
            assert_eq!(machine.call(change(*oid, Change::Delete)), ObjectReply::Done);
        }
        machine.checkpoint();
        assert_eq!(machine.store.usage().used_bytes, 0);
        let again = fill(&mut machine, count);
        assert_eq!(again.0.len(), model.0.len(), "all room came back");
    }
}
