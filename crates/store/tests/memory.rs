//! What the store keeps in memory of what is not home yet is bounded, however large its journal.

mod common;

use common::*;
use proto::Oid;
use proto::object::*;
use store::testing::{SimDisk, written_blocks};
use store::{FormatOptions, IoOp, Store};

/// 64 MiB.
const BOUND: usize = 16384;
const RUN: u32 = 8;

/// What nobody waits for waits for more than 24 MiB.
const PATIENT_BOUND: usize = 6144;

fn machine() -> Machine {
    let options = FormatOptions { size_bytes: 512 << 20, journal_bytes: 160 << 20, store_id: 3 };
    let mut disk = SimDisk::new(options.size_bytes);
    Store::format(&mut disk, &options).unwrap();
    Machine::open(disk).unwrap()
}

fn place(n: u32) -> (Oid, u32) {
    (Oid(100 + u64::from(n / 128)), n % 128 * RUN)
}

/// A part of a copy that is being made if there is no tag.
fn put(machine: &mut Machine, n: u32, tag: Option<Tag>) -> u64 {
    let (oid, first) = place(n);
    let ticket =
        machine.submit(tagged_write(oid, first, &[n as Value + 1; RUN as usize], WriteBase::Keep, tag));
    // What is durable goes on; what goes home does not.
    let is_durable = |id: &_| matches!(machine.disk.pending_op(*id), Some(IoOp::Write { durable: true, .. }));
    let journal: Vec<_> = machine.disk.pending().into_iter().filter(is_durable).collect();
    journal.into_iter().for_each(|id| machine.complete(id));
    ticket
}

fn owners(n: u32) -> Option<Tag> {
    Some(tag(1, 1, u64::from(n) + 1, u64::from(n)))
}

fn assert_all(machine: &mut Machine, writes: u32) {
    for n in 0..writes {
        let (oid, first) = place(n);
        assert_eq!(machine.read(oid, first, RUN), Some(vec![n as Value + 1; RUN as usize]), "{n}");
    }
}

#[test]
fn writes_wait_when_too_much_is_not_home_and_go_on_when_some_is() {
    let mut machine = machine();
    let writes = BOUND as u32 / RUN + 300;
    for n in 0..writes {
        put(&mut machine, n, owners(n));
        assert!(written_blocks(&machine.store) <= BOUND);
    }
    assert_eq!(written_blocks(&machine.store), BOUND);
    assert_eq!(machine.replies.len(), BOUND / RUN as usize, "the others wait");
    machine.run();
    assert_eq!(machine.replies.len(), writes as usize);
    assert!(machine.replies.values().all(|reply| *reply == ObjectReply::Done));
    machine.store.assert_invariants();
    machine.crash();
    assert_all(&mut machine, writes);
}

#[test]
fn copies_that_are_being_made_leave_room_for_what_owners_wait_for() {
    let mut machine = machine();
    let copied = PATIENT_BOUND as u32 / RUN + 300;
    for n in 0..copied {
        put(&mut machine, n, None);
    }
    assert!((PATIENT_BOUND..=PATIENT_BOUND + RUN as usize).contains(&written_blocks(&machine.store)));
    assert_eq!(machine.replies.len(), written_blocks(&machine.store) / RUN as usize, "the others wait");
    let writes = copied + 100;
    for n in copied..writes {
        let ticket = put(&mut machine, n, owners(n));
        assert_eq!(machine.replies.get(&ticket), Some(&ObjectReply::Done), "{n} waits behind copies");
    }
    machine.store.assert_invariants();
    machine.run();
    assert_eq!(machine.replies.len(), writes as usize);
    assert!(machine.replies.values().all(|reply| *reply == ObjectReply::Done));
    assert_all(&mut machine, writes);
}

#[test]
fn a_write_behind_a_copy_of_the_same_blocks_does_not_wait_for_ever() {
    let mut machine = machine();
    let copied = PATIENT_BOUND as u32 / RUN + 2;
    for n in 0..copied {
        put(&mut machine, n, None);
    }
    let mut seq = 0;
    let mut write = |machine: &mut Machine, n: u32| {
        seq += 1;
        let (oid, first) = place(n);
        machine.submit(tagged_write(oid, first, &[7; RUN as usize], WriteBase::Keep, owners(seq)))
    };
    let behind = write(&mut machine, copied - 1);
    // Owners keep more than that from going home as fast as it can.
    let (mut steps, mut next) = (0, 0);
    while !machine.replies.contains_key(&behind) {
        steps += 1;
        assert!(steps < 40_000, "it waits for ever");
        while written_blocks(&machine.store) < BOUND - RUN as usize {
            next += 1;
            write(&mut machine, copied + next % 4000);
        }
        machine.step();
    }
    let (oid, first) = place(copied - 1);
    machine.run();
    assert_eq!(machine.read(oid, first, RUN), Some(vec![7; RUN as usize]));
}
