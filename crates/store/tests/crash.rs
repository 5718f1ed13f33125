//! A crash at any moment leaves every answered change, and each unanswered one whole or not at all per block.

mod common;

use std::collections::BTreeSet;

use common::*;
use proto::object::*;
use proto::{Oid, Vid};
use store::testing::layers;

const OBJECTS: u64 = 5;

/// Several lives of one disk: random orders, random completions, a crash at a random moment, all checks.
fn lives(seed: u64, lives: u64, orders: u64) {
    let mut machine = Machine::new(seed, 14 << 20);
    let mut workload = Workload::new(OBJECTS);
    let mut model = Model::default();
    for _ in 0..lives {
        let mut history = History::reset(&model, OBJECTS);
        let mut changes = BTreeSet::new();
        let (mut reads, mut comparisons, mut verifications) = (Vec::new(), Vec::new(), Vec::new());
        let orders = 1 + machine.rng.below(orders);
        let depth = 1 + machine.rng.below(12);
        for _ in 0..orders {
            if machine.rng.chance(25) {
                let (oid, blocks) = (workload.oid(&mut machine.rng), workload.range(&mut machine.rng));
                let ticket = machine.submit(ObjectOp::Read { oid, blocks });
                reads.push((ticket, model.values(oid, blocks)));
            } else if machine.rng.chance(10) {
                let (oid, other) = (workload.oid(&mut machine.rng), workload.oid(&mut machine.rng));
                let with = machine.rng.chance(80).then_some(other);
                let ticket = machine.submit(ObjectOp::Compare { oid, with });
                comparisons.push((ticket, model.differing(oid, with)));
            } else if machine.rng.chance(5) {
                let first = machine.rng.below(200);
                verifications.push(machine.submit(ObjectOp::VerifyJournal { first, last: u64::MAX }));
            } else {
                let (oid, change, values, tag) = workload.change(&mut machine.rng);
                let before = model.clone();
                model.apply(oid, &change, &values);
                let data = content(&values);
                let ticket = machine.submit(ObjectOp::Change { oid, change, data, tag });
                changes.insert(ticket);
                history.record(ticket, &before, &model, OBJECTS, false);
                history.tags.extend(tag.map(|tag| (ticket, tag, oid)));
            }
            while machine.disk.pending().len() as u64 > machine.rng.below(depth) {
                machine.step();
            }
            if machine.rng.chance(3) {
                machine.store.begin_checkpoint();
                machine.pump();
            }
            if machine.rng.chance(2) {
                // Nothing is asked for a while: pairs of slots are merged.
                machine.run();
                machine.store.assert_invariants();
            }
            if machine.rng.chance(10) {
                machine.store.assert_invariants();
            }
        }
        machine.store.assert_invariants();
        for (ticket, expected) in reads {
            if let Some(reply) = machine.replies.remove(&ticket) {
                assert_eq!(decode_read(reply), expected, "read {ticket}");
            }
        }
        // Records that are passed and overwritten meanwhile are no damage.
        for reply in verifications.iter().filter_map(|ticket| machine.replies.remove(ticket)) {
            let ObjectReply::JournalVerified(verified) = reply else { panic!("{reply:?}") };
            assert_eq!(verified.damaged, 0, "{verified:?}");
        }
        for (ticket, expected) in comparisons {
            if let Some(reply) = machine.replies.remove(&ticket) {
                match (decode_compare(reply), expected) {
                    (Some(named), Some(differing)) => {
                        assert!(named.is_superset(&differing), "{ticket} named {named:?} of {differing:?}");
                    }
                    (named, expected) => assert_eq!(named, expected, "comparison {ticket}"),
                }
            }
        }
        for ticket in &changes {
            assert!(
                machine.replies.get(ticket).is_none_or(|r| *r == ObjectReply::Done),
                "{:?}",
                machine.replies.get(ticket)
            );
        }
        let answered: BTreeSet<u64> =
            machine.replies.keys().copied().filter(|t| changes.contains(t)).collect();
        let unsettled = if machine.rng.chance(80) {
            machine.crash()
        } else {
            let seed = machine.rng.next_u64();
            machine.disk.kill(seed);
            machine.reopen()
        };
        check_tags(&history, &answered, &unsettled);
        model = history.check(&mut machine, &answered, OBJECTS);
        // What was seen once stays, whatever happens next.
        machine.crash();
        let known = History::reset(&model, OBJECTS);
        known.check(&mut machine, &BTreeSet::new(), OBJECTS);
        workload.generation += 1;
        let tag = tag(workload.vid, workload.generation, 1, 1);
        assert_eq!(
            machine.call(tagged_write(Oid(100), 0, &[1], WriteBase::Keep, Some(tag))),
            ObjectReply::Done
        );
        model.apply(
            Oid(100),
            &Change::Write { blocks: BlockRange::new(0, 1), checksums: vec![], base: WriteBase::Keep },
            &[1],
        );
        workload.generation += 1;
    }
    machine.checkpoint();
    machine.store.assert_invariants();
    assert_eq!(machine.store.usage().pending_bytes, 0);
    let kept = Oid(100 + machine.rng.below(OBJECTS));
    for oid in (100..100 + OBJECTS).map(Oid).filter(|oid| *oid != kept) {
        machine.call(change(oid, Change::Delete));
    }
    machine.store.assert_invariants();
    let (slots, overlays) = layers(&machine.store, kept);
    assert_eq!(overlays, 0, "what nobody shares any more lies in one slot");
    let used = machine.store.usage().used_bytes;
    assert_eq!(used, slots as u64 * store::SLOT_BYTES, "only what is left takes room");
    for blocks in test_blocks() {
        assert_eq!(machine.read(kept, blocks.first, blocks.count), model.values(kept, blocks));
    }
    machine.call(change(kept, Change::Delete));
    machine.checkpoint();
    machine.store.assert_invariants();
    assert_eq!(machine.store.usage().used_bytes, 0, "nothing is left, so no slot is in use");
    let journal = machine.store.usage().journal_used_bytes;
    assert!(journal <= 64 << 10, "a checkpoint empties the journal, {journal} bytes are left");
}

/// All answered and unsettled changes are reported, and none that never was.
fn check_tags(history: &History, answered: &BTreeSet<u64>, unsettled: &[Unsettled]) {
    let highest = history.tags.iter().map(|(_, t, _)| t.stamp.generation).max();
    let settled = history.tags.iter().filter(|(_, t, _)| Some(t.stamp.generation) == highest);
    let settled = settled.map(|(_, t, _)| t.settled).max().unwrap_or_default();
    for (ticket, tag, oid) in &history.tags {
        let must =
            answered.contains(ticket) && Some(tag.stamp.generation) == highest && tag.stamp.seq > settled;
        let reported = unsettled.iter().any(|u| u.stamp == tag.stamp && u.oid == *oid);
        assert!(reported || !must, "{tag:?} of object {oid} is forgotten");
    }
    for u in unsettled {
        assert_eq!(u.vid, Vid(7));
        let known = history
            .tags
            .iter()
            .any(|(_, t, oid)| t.stamp == u.stamp && u.oid == *oid && u.origin == t.origin);
        assert!(known || u.stamp.seq.0 == 1, "{u:?} never was");
    }
}

#[test]
fn every_answered_change_survives_crashes_at_random_moments() {
    let cases = std::env::var("STORE_CRASH_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    let first = std::env::var("STORE_CRASH_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    for seed in first..first + cases {
        let result = std::panic::catch_unwind(|| lives(seed, 4, 120));
        assert!(result.is_ok(), "seed {seed}");
    }
}

fn named(seq: u64) -> Unsettled {
    let tag = tag(7, 1, seq, 0);
    let blocks = Some(BlockRange::new(seq as u32 % 64, 1));
    Unsettled { vid: tag.vid, stamp: tag.stamp, origin: tag.origin, oid: Oid(100), blocks }
}

fn named_write(seq: u64) -> ObjectOp {
    tagged_write(Oid(100), seq as u32 % 64, &[seq], WriteBase::Keep, Some(tag(7, 1, seq, 0)))
}

#[test]
fn what_was_amended_stays_so_and_a_repeated_change_is_remembered_again() {
    for seed in 0..60 {
        let mut machine = Machine::new(seed, 14 << 20);
        (1..=8).for_each(|seq| assert_eq!(machine.call(named_write(seq)), ObjectReply::Done));
        if seed % 3 == 0 {
            // The tags are logged anew elsewhere.
            machine.checkpoint();
        }
        let remember: Vec<Unsettled> = [21, 22].map(named).to_vec();
        let amend = machine.submit(ObjectOp::Amend { forget: (1..=4).map(named).collect(), remember });
        // Submitted later, so it counts, whatever the disk does first.
        let again = machine.submit(named_write(2));
        for _ in 0..machine.rng.below(6) {
            machine.step();
        }
        machine.store.assert_invariants();
        let done = [amend, again].map(|ticket| machine.replies.contains_key(&ticket));
        let mut found: Vec<u64> = machine.crash().iter().map(|u| u.stamp.seq.0).collect();
        found.sort_unstable();
        match (done, &found[..]) {
            (_, [2, 5, 6, 7, 8, 21, 22]) => {}
            ([_, false], [5, 6, 7, 8, 21, 22]) | ([false, false], [1, 2, 3, 4, 5, 6, 7, 8]) => {}
            _ => panic!("seed {seed}: {done:?} and yet {found:?}"),
        }
    }
}
