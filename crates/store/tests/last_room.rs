//! Room that is held back from whoever can still be refused, and tables that take none for zeros.

mod common;

use common::*;
use proto::object::*;
use proto::{Oid, Vid};
use store::testing::SimDisk;
use store::{FormatOptions, Store};

const DISK_BYTES: u64 = 16 << 20;

fn device() -> Machine {
    let options = FormatOptions { size_bytes: DISK_BYTES, journal_bytes: JOURNAL_BYTES, store_id: 2 };
    let mut disk = SimDisk::new(DISK_BYTES);
    Store::format(&mut disk, &options).unwrap();
    Machine::open(disk).unwrap()
}

/// A write of the `n`th slot, under a stamp of its own.
fn tagged(n: u64, last_room: bool) -> ObjectOp {
    let mut op = write(Oid(1000 + n / 16), n as u32 % 16 * 16, &[n + 1; 16], WriteBase::Keep);
    let ObjectOp::Change { tag: of_op, .. } = &mut op else { unreachable!() };
    *of_op = Some(Tag { last_room, ..tag(1, 1, n + 2, n + 1) });
    op
}

#[test]
fn who_may_take_the_last_room_finds_some_on_a_full_disk_and_deletion_gives_it_back() {
    let mut machine = device();
    let no_space = ObjectReply::Failed(StoreFailure::NoSpace);
    let refused = (0..).find(|n| machine.call(tagged(*n, false)) == no_space).unwrap();
    assert_eq!(machine.call(write(Oid(5), 0, &[1; 16], WriteBase::Keep)), no_space, "nor has repair");
    let end = (refused..).find(|n| machine.call(tagged(*n, true)) == no_space).unwrap();
    assert!((8..40).contains(&(end - refused)), "{} of {end} were held back", end - refused);
    machine.crash();
    for n in 0..end {
        assert_eq!(machine.read(Oid(1000 + n / 16), n as u32 % 16 * 16, 16), Some(vec![n + 1; 16]), "{n}");
    }
    assert_eq!(machine.call(write(Oid(1000), 3, &[7], WriteBase::Keep)), ObjectReply::Done, "an overwrite");
    assert_eq!(machine.call(tagged(end, false)), no_space);
    for n in 0..=(end - refused) / 16 {
        assert_eq!(machine.call(change(Oid(1000 + n), Change::Delete)), ObjectReply::Done);
    }
    assert_eq!(machine.call(tagged(end + 1, false)), ObjectReply::Done);
    machine.store.assert_invariants();
}

#[test]
fn zeros_of_a_table_take_no_room_and_hide_what_was_there() {
    let table = Oid::inode(Vid(5));
    let mut values = vec![0; 4096];
    (values[1], values[4000]) = (8, 9);
    for base in [WriteBase::Empty, WriteBase::Keep] {
        // All of it does not fit.
        let mut machine = device();
        assert_eq!(machine.call(write(table, 100, &[3; 16], WriteBase::Keep)), ObjectReply::Done);
        assert_eq!(machine.call(write(table, 0, &values, base)), ObjectReply::Done);
        machine.crash();
        assert_eq!(machine.read(table, 0, 4096), Some(values.clone()));
        machine.store.assert_invariants();
        let objects = machine.call(ObjectOp::List { first: table, last: table, limit: 1 });
        let ObjectReply::Objects(objects) = objects else { panic!("{objects:?}") };
        assert!(objects[0].allocated_bytes <= 5 * store::SLOT_BYTES, "{objects:?}");
    }
    let mut machine = device();
    let data = Oid::data(Vid(5), 0);
    let mut zeros_of = |count: usize| machine.call(write(data, 0, &vec![0; count], WriteBase::Empty));
    assert_eq!(zeros_of(64), ObjectReply::Done);
    assert_eq!(
        zeros_of(4096),
        ObjectReply::Failed(StoreFailure::NoSpace),
        "who writes zeros to data gets the room"
    );
}

#[test]
fn on_a_full_disk_what_has_its_room_can_be_overwritten_at_any_length() {
    let mut machine = device();
    let no_space = ObjectReply::Failed(StoreFailure::NoSpace);
    let end = (0..).find(|n| machine.call(tagged(*n, false)) == no_space).unwrap();
    let object = |n: u64| Oid(1000 + n / 16);
    for round in 0..3 {
        for n in 0..end / 4 {
            let values = vec![1000 * (round + 1) + n; 48];
            let first = n as u32 * 3 % 13 * 16 + 5;
            let reply = machine.call(write(object(n), first, &values, WriteBase::Keep));
            assert_eq!(reply, ObjectReply::Done, "{round} {n}");
            assert_eq!(machine.read(object(n), first, 48), Some(values.clone()));
            if n % 5 == 0 {
                machine.crash();
            }
            assert_eq!(machine.read(object(n), first, 48), Some(values));
        }
    }
    let before = machine.read(Oid(1000), 0, 256);
    let beyond = object(end).0 + 1;
    for base in [WriteBase::Empty, WriteBase::CloneOf(Oid(1000))] {
        assert_eq!(machine.call(write(Oid(beyond), 16, &[8; 32], base)), no_space, "{base:?}");
    }
    assert_eq!(machine.call(write(Oid(1000), 240, &[8; 32], WriteBase::Keep)), no_space, "half of it is new");
    assert_eq!(machine.read(Oid(1000), 0, 256), before);
    assert_eq!(machine.read(Oid(beyond), 0, 256), None);
    machine.store.assert_invariants();
    // What a clone shares has no room of its own on either side.
    assert_eq!(machine.call(change(Oid(1002), Change::Delete)), ObjectReply::Done);
    assert_eq!(machine.call(write(Oid(77), 0, &[5], WriteBase::CloneOf(Oid(1001)))), ObjectReply::Done);
    let fits = |n: &u64| machine.call(tagged(end + 16 + *n, false)) == ObjectReply::Done;
    assert!((0..).take_while(fits).count() > 8, "what was deleted is room");
    for oid in [Oid(77), Oid(1001)] {
        let before = machine.read(oid, 0, 256);
        assert_eq!(machine.call(write(oid, 32, &[6; 64], WriteBase::Keep)), no_space, "{oid}");
        machine.crash();
        assert_eq!(machine.read(oid, 0, 256), before);
    }
    machine.store.assert_invariants();
}

#[test]
fn on_a_full_disk_more_than_a_record_holds_is_refused_and_all_that_fits_is_not() {
    let mut machine = device();
    let no_space = ObjectReply::Failed(StoreFailure::NoSpace);
    let big = Oid(9);
    assert_eq!(machine.call(write(big, 0, &[3; 128], WriteBase::Keep)), ObjectReply::Done);
    let end = (0..).find(|n| machine.call(tagged(*n, true)) == no_space).unwrap();
    assert!(end > 8);
    // A record is a quarter of the journal, which is 64 blocks.
    assert_eq!(machine.call(write(big, 0, &[4; 128], WriteBase::Keep)), no_space);
    assert_eq!(machine.read(big, 0, 128), Some(vec![3; 128]));
    for first in [0, 3, 90] {
        assert_eq!(machine.call(write(big, first, &[4; 16], WriteBase::Keep)), ObjectReply::Done, "{first}");
        assert_eq!(machine.read(big, first, 16), Some(vec![4; 16]));
    }
    machine.store.assert_invariants();
}
