//! Rot in the part of the journal that a start would replay is found while all is in memory, and no start meets it then.

mod common;

use std::collections::BTreeSet;

use common::*;
use proto::Oid;
use proto::object::*;
use store::testing::{LiveRecord, kinds_in, live_records};
use store::{IoOp, OpenError};

const OBJECTS: u64 = 5;
const NOBODY: Oid = Oid(1);
const SIZE_BYTES: u64 = 14 << 20;

struct Lived {
    machine: Machine,
    model: Model,
}

/// A store with a history, some of which is home.
fn lived(seed: u64) -> Lived {
    let mut machine = Machine::new(seed, SIZE_BYTES);
    let mut workload = Workload::new(OBJECTS);
    let mut model = Model::default();
    for round in 0..3 {
        for _ in 0..10 + machine.rng.below(30) {
            let (oid, change, values, tag) = workload.change(&mut machine.rng);
            model.apply(oid, &change, &values);
            let op = ObjectOp::Change { oid, change, data: content(&values), tag };
            assert_eq!(machine.call(op), ObjectReply::Done);
            if let Some(Tag { vid, stamp, origin, .. }) = tag.filter(|_| machine.rng.chance(10)) {
                let forget = vec![Unsettled { vid, stamp, origin, oid, blocks: None }];
                let op = ObjectOp::Amend { forget, remember: Vec::new() };
                assert_eq!(machine.call(op), ObjectReply::Done);
            }
        }
        if round == 0 && machine.rng.chance(60) {
            machine.checkpoint();
        } else if machine.rng.chance(30) {
            machine.reopen();
        }
    }
    // Later records vouch for those before.
    for n in 0..6 {
        assert_eq!(machine.call(write(NOBODY, 0, &[n + 1], WriteBase::Keep)), ObjectReply::Done);
    }
    Lived { machine, model }
}

/// All of the live journal, piece by piece; in all.
fn verify(machine: &mut Machine) -> JournalVerified {
    let mut all = JournalVerified { last: u64::MAX, ..JournalVerified::default() };
    while all.next <= all.last {
        let op = ObjectOp::VerifyJournal { first: all.next, last: all.last };
        let reply = machine.call(op);
        let ObjectReply::JournalVerified(part) = reply else { panic!("{reply:?}") };
        assert!(part.next > all.next && part.last <= all.last, "{part:?} after {all:?}");
        all = JournalVerified {
            damaged: all.damaged + part.damaged,
            read_bytes: all.read_bytes + part.read_bytes,
            ..part
        };
    }
    all
}

fn assert_content(machine: &mut Machine, model: &Model) {
    for oid in (100..100 + OBJECTS).map(Oid) {
        for blocks in test_blocks() {
            assert_eq!(machine.read(oid, blocks.first, blocks.count), model.values(oid, blocks), "{oid}");
        }
    }
    assert_eq!(machine.read(NOBODY, 0, 1), Some(vec![6]));
}

fn sorted(mut unsettled: Vec<Unsettled>) -> Vec<Unsettled> {
    unsettled.sort_by_key(|u| (u.stamp, u.oid, u.blocks));
    unsettled
}

fn unsettled_after_a_crash(machine: &Machine) -> Vec<Unsettled> {
    let mut disk = machine.disk.clone();
    sorted(store::Store::open(&mut disk).unwrap().1.unsettled)
}

#[test]
fn a_sound_journal_is_read_back_whole_and_left_as_it_is() {
    for seed in 0..10 {
        let Lived { mut machine, .. } = lived(seed);
        let before = machine.store.usage().journal_used_bytes;
        let records = live_records(&machine.store, &mut machine.disk);
        let found = verify(&mut machine);
        assert_eq!(found.damaged, 0);
        assert_eq!(found.read_bytes, records.iter().map(|record| record.bytes).sum::<u64>());
        assert_eq!(machine.store.usage().journal_used_bytes, before);
        machine.checkpoint();
        verify(&mut machine);
        assert!(verify(&mut machine).read_bytes <= 64 << 10, "of an empty journal there is nothing to read");
    }
}

#[test]
fn a_disk_with_rot_in_any_record_opens_once_that_was_found() {
    let (mut kinds, mut refused, mut cases) = (BTreeSet::new(), 0, 0);
    for seed in 0..25 {
        for round in 0..6 {
            let Lived { mut machine, model } = lived(seed);
            let unsettled = unsettled_after_a_crash(&machine);
            let records = live_records(&machine.store, &mut machine.disk);
            // Nothing vouches for the last one.
            let vouched = records.len() as u64 - 1;
            let mut chosen = BTreeSet::new();
            let mut rng = store::testing::SimRng::new(seed * 100 + round);
            for _ in 0..[1, 1, 3][round as usize % 3] {
                chosen.insert(rng.below(vouched) as usize);
            }
            for record in chosen.iter().map(|i| &records[*i]) {
                kinds.extend(kinds_in(record, &mut machine.disk));
                machine.disk.flip_bit(record.place(&mut rng), rng.below(8) as u8);
            }
            cases += 1;
            let first = records[*chosen.first().unwrap()].seq;
            match Machine::open(machine.disk.clone()) {
                Err(OpenError::DamagedJournal { seq }) if seq == first => refused += 1,
                Err(other) => panic!("seed {seed}: {other}"),
                Ok(_) => panic!("seed {seed}: record {first} is not missed"),
            }
            // One that lies further on may be passed with the first before it is read.
            let damaged = verify(&mut machine).damaged;
            assert!((1..=chosen.len() as u64).contains(&damaged), "seed {seed}: {damaged} of {chosen:?}");
            machine.store.assert_invariants();
            assert_content(&mut machine, &model);
            let found = sorted(machine.crash());
            assert_eq!(found, unsettled, "seed {seed}: what is unsettled is remembered");
            assert_content(&mut machine, &model);
            assert_eq!(verify(&mut machine).damaged, 0);
            machine.checkpoint();
            machine.store.assert_invariants();
            machine.reopen();
            assert_content(&mut machine, &model);
        }
    }
    assert_eq!(refused, cases, "without that none of these disks opens");
    assert_eq!(kinds, BTreeSet::from_iter(1..=11), "entries of all kinds were damaged");
}

#[test]
fn the_last_record_is_read_back_too() {
    let Lived { mut machine, model } = lived(3);
    let last = *live_records(&machine.store, &mut machine.disk).last().unwrap();
    machine.disk.flip_bit(last.offset + 20, 1);
    // To a start it looks like what a crash leaves.
    let mut torn = Machine::open(machine.disk.clone()).unwrap();
    assert_eq!(torn.read(NOBODY, 0, 1), Some(vec![5]));
    assert_eq!(verify(&mut machine).damaged, 1);
    machine.crash();
    assert_content(&mut machine, &model);
}

/// The records of the piece that is being read.
fn fail_reads(machine: &mut Machine, rotten: &LiveRecord) {
    while let Some(id) = machine.disk.pending().first().copied() {
        let is_hit = match machine.disk.pending_op(id) {
            Some(IoOp::Read { offset, len }) => (*offset..offset + *len as u64).contains(&rotten.offset),
            _ => false,
        };
        let result = if is_hit { machine.disk.fail(id) } else { machine.disk.complete(id) };
        machine.store.handle_io(id, result);
        machine.pump();
    }
}

#[test]
fn a_record_that_cannot_be_read_is_told_apart_from_its_neighbours() {
    let Lived { mut machine, model } = lived(4);
    let records = live_records(&machine.store, &mut machine.disk);
    let rotten = records[records.len() / 2];
    let mut found = JournalVerified { last: u64::MAX, ..JournalVerified::default() };
    let mut damaged = 0;
    while found.next <= found.last {
        let ticket = machine.submit(ObjectOp::VerifyJournal { first: found.next, last: found.last });
        fail_reads(&mut machine, &rotten);
        let reply = machine.replies.remove(&ticket);
        let Some(ObjectReply::JournalVerified(part)) = reply else { panic!("{reply:?}") };
        damaged += part.damaged;
        found = part;
    }
    assert_eq!(damaged, 1);
    let left = live_records(&machine.store, &mut machine.disk);
    assert!(left.iter().all(|record| record.seq > rotten.seq), "no start reads it: {left:?}");
    machine.crash();
    assert_content(&mut machine, &model);
}

#[test]
fn rot_is_found_and_passed_under_load() {
    let mut met = 0;
    for seed in 0..150 {
        let mut machine = Machine::new(seed, SIZE_BYTES);
        let mut workload = Workload::new(OBJECTS);
        let mut model = Model::default();
        let mut history = History::reset(&model, OBJECTS);
        let (mut changes, mut verifying) = (BTreeSet::new(), None);
        let (mut rotten, mut damaged, mut quiet) = (None, 0, false);
        for n in 0.. {
            let (oid, change, values, tag) = workload.change(&mut machine.rng);
            let before = model.clone();
            model.apply(oid, &change, &values);
            let ticket = machine.submit(ObjectOp::Change { oid, change, data: content(&values), tag });
            changes.insert(ticket);
            history.record(ticket, &before, &model, OBJECTS, false);
            while machine.disk.pending().len() as u64 > machine.rng.below(12) {
                machine.step();
            }
            if n > 60 && rotten.is_none() {
                machine.run();
                let records = live_records(&machine.store, &mut machine.disk);
                let record = records[machine.rng.below(records.len() as u64) as usize];
                let place = record.place(&mut machine.rng);
                machine.disk.flip_bit(place, 5);
                rotten = Some(record.seq);
                verifying = Some(machine.submit(ObjectOp::VerifyJournal { first: 0, last: u64::MAX }));
            }
            let Some(reply) = verifying.and_then(|ticket| machine.replies.remove(&ticket)) else { continue };
            let ObjectReply::JournalVerified(part) = reply else { panic!("{reply:?}") };
            damaged += part.damaged;
            if part.next > part.last {
                quiet = true;
                break;
            }
            let op = ObjectOp::VerifyJournal { first: part.next, last: part.last };
            verifying = Some(machine.submit(op));
        }
        assert!(quiet);
        // Else write-back has passed it before it was read.
        met += damaged;
        let answered = machine.replies.keys().copied().filter(|t| changes.contains(t)).collect();
        machine.store.assert_invariants();
        machine.crash();
        history.check(&mut machine, &answered, OBJECTS);
    }
    assert!(met > 100, "{met} were met");
}

#[test]
fn a_crash_before_the_cure_has_ended_refuses_the_disk_or_shows_all() {
    let (mut refused, mut opened) = (0, 0);
    for seed in 0..150 {
        let Lived { mut machine, model } = lived(seed % 7);
        let records = live_records(&machine.store, &mut machine.disk);
        let mut rng = store::testing::SimRng::new(seed);
        let record = records[rng.below(records.len() as u64 - 1) as usize];
        machine.disk.flip_bit(record.place(&mut rng), 2);
        machine.submit(ObjectOp::VerifyJournal { first: 0, last: u64::MAX });
        for _ in 0..rng.below(60) {
            machine.step();
        }
        machine.disk.crash(rng.next_u64());
        match Machine::open(machine.disk.clone()) {
            Err(OpenError::DamagedJournal { seq }) if seq == record.seq => refused += 1,
            Err(other) => panic!("seed {seed}: {other}"),
            Ok(mut machine) => {
                assert_content(&mut machine, &model);
                opened += 1;
            }
        }
    }
    assert!(refused > 10 && opened > 10, "{refused} refused, {opened} opened");
}

#[test]
fn what_is_asked_of_a_failed_disk_is_answered() {
    let Lived { mut machine, .. } = lived(5);
    let records = live_records(&machine.store, &mut machine.disk);
    machine.disk.flip_bit(records[2].offset + 9, 0);
    let asked = [0, u64::MAX].map(|first| machine.submit(ObjectOp::VerifyJournal { first, last: u64::MAX }));
    machine.step();
    machine.store.fail();
    machine.pump();
    let late = machine.submit(ObjectOp::VerifyJournal { first: 0, last: 5 });
    let failed = ObjectReply::Failed(StoreFailure::DiskFailed);
    assert_eq!(machine.replies[&asked[0]], failed);
    assert!(
        matches!(machine.replies[&asked[1]], ObjectReply::JournalVerified(_)),
        "there was nothing to read"
    );
    assert_eq!(machine.replies[&late], failed);
}
