//! Room that is written to ahead of use: it is free, whatever lies in it.

mod common;

use std::collections::BTreeSet;

use common::*;
use proto::Oid;
use proto::object::*;
use store::testing::SimDisk;
use store::{FormatOptions, IoId, IoOp, SLOT_BYTES, Store};

const OBJECTS: u64 = 5;
const WRITE_BYTES: u64 = 16 * SLOT_BYTES;

/// A file of a 32 MiB store, in a file system that has room for so much of it.
fn file(room: u64) -> Machine {
    file_of(32 << 20, room)
}

fn file_of(size_bytes: u64, room: u64) -> Machine {
    let options = FormatOptions { size_bytes, journal_bytes: JOURNAL_BYTES, store_id: 9 };
    let mut disk = SimDisk::growing(options.first_bytes().unwrap(), room);
    Store::format(&mut disk, &options).unwrap();
    Machine::open(disk).unwrap()
}

/// The write ahead that is under way: which it is, and where.
fn write_under_way(machine: &Machine) -> Option<(IoId, u64)> {
    machine.disk.pending().into_iter().find_map(|id| match machine.disk.pending_op(id)? {
        IoOp::Write { offset, data, durable: false } => {
            let len: usize = data.iter().map(|piece| piece.len()).sum();
            let is_ahead = len as u64 == WRITE_BYTES && data.iter().all(|p| p.iter().all(|byte| *byte == 0));
            is_ahead.then_some((id, *offset))
        }
        _ => None,
    })
}

/// Writes ahead until all that is wanted is there. Returns where it wrote.
fn write_all_ahead(machine: &mut Machine) -> Vec<u64> {
    let mut offsets = Vec::new();
    while machine.store.wants_to_write_ahead() {
        machine.store.write_ahead(1);
        machine.pump();
        offsets.extend(write_under_way(machine).map(|(_, offset)| offset));
        machine.run();
    }
    offsets
}

#[test]
fn what_is_written_ahead_is_free_and_taken_next() {
    let mut machine = file(32 << 20);
    let before = machine.store.usage();
    let offsets = write_all_ahead(&mut machine);
    assert!((1..=4).contains(&offsets.len()), "an eighth of the store and no more: {offsets:?}");
    assert_eq!(machine.store.usage(), before);
    machine.store.assert_invariants();
    let written = offsets[0]..offsets.last().unwrap() + WRITE_BYTES;
    for n in 0..16 {
        machine.submit(write(Oid(100 + n), 0, &[n + 1; 16], WriteBase::Keep));
        for id in machine.disk.pending() {
            if let Some(IoOp::Write { offset, data, .. }) = machine.disk.pending_op(id)
                && data.iter().map(|piece| piece.len()).sum::<usize>() as u64 == SLOT_BYTES
            {
                assert!(written.contains(offset), "a slot at {offset} was taken, {written:?} is written");
            }
        }
        machine.run();
    }
    assert_eq!(write_all_ahead(&mut machine)[0], written.end, "what was taken is written ahead again");
}

#[test]
fn little_is_left_below_a_quarter_of_what_is_wanted() {
    // An eighth: 16 MiB are wanted.
    let mut machine = file_of(128 << 20, 128 << 20);
    let mut written = 0;
    while written < 4 * WRITE_BYTES {
        assert!(machine.store.is_short_of_written(), "{written}");
        machine.store.write_ahead(2);
        machine.pump();
        for id in machine.disk.pending() {
            if let Some(IoOp::Write { data, .. }) = machine.disk.pending_op(id) {
                let len: usize = data.iter().map(|piece| piece.len()).sum();
                assert_eq!(len as u64, 2 * WRITE_BYTES);
                written += len as u64;
            }
        }
        machine.run();
    }
    assert!(!machine.store.is_short_of_written() && machine.store.wants_to_write_ahead());
}

#[test]
fn nothing_is_written_ahead_twice_not_even_after_a_restart_or_on_a_device() {
    let mut machine = file(32 << 20);
    machine.call(write(Oid(100), 0, &[1; 40], WriteBase::Keep));
    let offsets = write_all_ahead(&mut machine);
    assert!(offsets.is_sorted_by(|a, b| a + WRITE_BYTES <= *b), "{offsets:?}");
    machine.call(ObjectOp::Flush);
    machine.checkpoint();
    machine.reopen();
    assert_eq!(write_all_ahead(&mut machine), []);
    let options = FormatOptions { size_bytes: 32 << 20, journal_bytes: JOURNAL_BYTES, store_id: 9 };
    let mut device = SimDisk::new(32 << 20);
    Store::format(&mut device, &options).unwrap();
    assert!(!Machine::open(device).unwrap().store.wants_to_write_ahead());
}

/// Writes slot after slot, from the `from`th on, until there is no space; a write ahead that is under way ends only when nothing else
/// goes on. Returns how many there are, with what is held back from others: when that begins depends on when the file system says no.
fn fill(machine: &mut Machine, from: u64, until: u64) -> u64 {
    for n in from..until {
        let mut op = write(Oid(1000 + n / 16), n as u32 % 16 * 16, &[n + 1; 16], WriteBase::Keep);
        let ObjectOp::Change { tag: of_op, .. } = &mut op else { unreachable!() };
        *of_op = Some(Tag { last_room: true, ..tag(1, 1, n + 2, n + 1) });
        let ticket = machine.submit(op);
        while !machine.replies.contains_key(&ticket) {
            let ahead = write_under_way(machine).map(|(id, _)| id);
            let pending = machine.disk.pending();
            let next = pending.iter().copied().find(|id| Some(*id) != ahead).or(ahead);
            machine.complete(next.expect("something goes on"));
        }
        match machine.replies.remove(&ticket) {
            Some(ObjectReply::Done) => machine.store.assert_invariants(),
            reply => {
                assert_eq!(reply, Some(ObjectReply::Failed(StoreFailure::NoSpace)));
                return n;
            }
        }
    }
    until
}

#[test]
fn a_write_ahead_takes_no_room_from_anybody() {
    for room in [12 << 20, 32 << 20] {
        let expected = fill(&mut file(room), 0, u64::MAX);
        let mut under_way = 0;
        for left in (16..40).step_by(3) {
            let mut machine = file(room);
            fill(&mut machine, 0, expected - left);
            // It may have to grow first.
            while machine.store.wants_to_write_ahead() {
                machine.run();
                machine.store.write_ahead(1);
                machine.pump();
            }
            under_way += u32::from(write_under_way(&machine).is_some());
            assert_eq!(fill(&mut machine, expected - left, u64::MAX), expected);
        }
        assert!(under_way > 3, "there are slots for one and hardly any for others: {under_way} times");
    }
}

/// Random orders on a file; whatever is written ahead turns out to be garbage, and may be torn by a crash.
fn garbage_ahead(seed: u64) -> u64 {
    let mut machine = Machine::new(2 * seed + 1, 14 << 20);
    let (mut workload, mut model) = (Workload::new(OBJECTS), Model::default());
    let mut garbled = 0;
    for _ in 0..4 {
        let mut history = History::reset(&model, OBJECTS);
        let mut changes = BTreeSet::new();
        for _ in 0..60 {
            machine.store.write_ahead(1);
            let (oid, change, values, tag) = workload.change(&mut machine.rng);
            let before = model.clone();
            model.apply(oid, &change, &values);
            let ticket = machine.submit(ObjectOp::Change { oid, change, data: content(&values), tag });
            history.record(ticket, &before, &model, OBJECTS, false);
            changes.insert(ticket);
            while machine.disk.pending().len() as u64 > machine.rng.below(12) {
                let pending = machine.disk.pending();
                let id = pending[machine.rng.below(pending.len() as u64) as usize];
                let ahead = write_under_way(&machine).filter(|(ahead, _)| *ahead == id);
                let result = machine.disk.complete(id);
                if let Some((_, offset)) = ahead {
                    (0..WRITE_BYTES)
                        .step_by(4096)
                        .for_each(|at| machine.disk.garble(offset + at, &[0xa5; 8]));
                    garbled += 1;
                }
                machine.store.handle_io(id, result);
                machine.pump();
            }
            machine.store.assert_invariants();
        }
        let answered: BTreeSet<u64> =
            changes.iter().filter(|t| machine.replies.get(t) == Some(&ObjectReply::Done)).copied().collect();
        machine.crash();
        model = history.check(&mut machine, &answered, OBJECTS);
    }
    garbled
}

#[test]
fn garbage_in_what_was_written_ahead_and_crashes_in_the_middle_are_harmless() {
    let garbled: u64 = (0..20)
        .map(|seed| {
            std::panic::catch_unwind(|| garbage_ahead(seed)).unwrap_or_else(|_| panic!("seed {seed}"))
        })
        .sum();
    assert!(garbled > 20, "{garbled} writes ahead");
}
