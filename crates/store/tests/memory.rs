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

/// What is durable goes on; what goes home does not.
fn finish_durable(machine: &mut Machine) {
    loop {
        let is_durable =
            |id: &_| matches!(machine.disk.pending_op(*id), Some(IoOp::Write { durable: true, .. }));
        let Some(id) = machine.disk.pending().into_iter().find(is_durable) else { return };
        machine.complete(id);
    }
}

/// A part of a copy that is being made if there is no tag.
fn put(machine: &mut Machine, n: u32, tag: Option<Tag>) -> u64 {
    let (oid, first) = place(n);
    let ticket =
        machine.submit(tagged_write(oid, first, &[n as Value + 1; RUN as usize], WriteBase::Keep, tag));
    finish_durable(machine);
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
fn a_copy_does_not_wait_any_longer_when_a_write_is_behind_it() {
    let mut machine = machine();
    (0..PATIENT_BOUND as u32 / RUN + 1).for_each(|n| assert!(put(&mut machine, n, None) > 0));
    // The second is behind the first, of whose chunk it is, and the third of another object.
    let copies = [780, 781, 900].map(|n| put(&mut machine, n, None));
    let done = |machine: &Machine| copies.map(|ticket| machine.replies.contains_key(&ticket));
    assert_eq!(done(&machine), [false; 3]);
    // No round of write-back ends meanwhile.
    let (oid, first) = place(781);
    let behind = machine.submit(tagged_write(oid, first, &[7; RUN as usize], WriteBase::Keep, owners(1)));
    finish_durable(&mut machine);
    assert!(machine.replies.contains_key(&behind));
    assert_eq!(done(&machine), [true, true, false]);
    let flush = machine.submit(ObjectOp::Flush);
    finish_durable(&mut machine);
    assert!(machine.replies.contains_key(&flush));
    assert_eq!(done(&machine), [true; 3]);
    machine.run();
    assert_eq!(machine.read(oid, first, RUN), Some(vec![7; RUN as usize]));
}

#[test]
fn a_copy_does_not_wait_for_ever_for_room_that_owners_always_need() {
    let mut machine = machine();
    let copied = PATIENT_BOUND as u32 / RUN + 2;
    let tickets: Vec<u64> = (0..copied).map(|n| put(&mut machine, n, None)).collect();
    let waits = tickets.last().unwrap();
    assert!(!machine.replies.contains_key(waits));
    let mut sent = 0;
    // To objects of their own.
    let mut write = |machine: &mut Machine| {
        let (oid, first) = place(copied.next_multiple_of(128) + sent % 9000);
        sent += 1;
        let tag = owners(sent);
        machine.submit(tagged_write(oid, first, &[7; RUN as usize], WriteBase::Keep, tag));
    };
    (0..3 * BOUND as u32 / RUN).for_each(|_| write(&mut machine));
    for _ in 0..20_000 {
        let before = machine.replies.len();
        machine.step();
        if machine.replies.contains_key(waits) {
            return;
        }
        (before..machine.replies.len()).for_each(|_| write(&mut machine));
    }
    panic!("it waits for ever");
}
