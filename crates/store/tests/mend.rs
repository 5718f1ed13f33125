//! Blocks that have rotted are found without giving out content, and put back where they lie, for all who share them.

mod common;

use bytes::Bytes;
use common::*;
use proto::Oid;
use proto::object::*;
use store::testing::{descriptor_offsets, home_blocks};

const LIVE: Oid = Oid(100);
const FROZEN: Oid = Oid(101);
const CHUNK: u32 = 16;

fn verify(machine: &mut Machine, oid: Oid, first: u32, count: u32) -> Verified {
    match machine.call(ObjectOp::Verify { oid, blocks: BlockRange::new(first, count), pass: 0 }) {
        ObjectReply::Verified(verified) => verified,
        other => panic!("answered with {other:?}"),
    }
}

fn mend_op(oid: Oid, first: u32, values: &[Value]) -> ObjectOp {
    let data: Bytes = content(values);
    let checksums = proto::checksum::block_checksums(&data);
    ObjectOp::Mend { oid, blocks: BlockRange::new(first, values.len() as u32), checksums, data }
}

fn mend(machine: &mut Machine, oid: Oid, first: u32, values: &[Value]) {
    assert_eq!(machine.call(mend_op(oid, first, values)), ObjectReply::Done);
    machine.store.assert_invariants();
}

fn rot(machine: &mut Machine, oid: Oid, block: u32) {
    let home = home_blocks(&machine.store).into_iter().find(|b| (b.oid, b.block) == (oid, block));
    machine.disk.flip_bit(home.expect("it is home").offset + 77, 3);
}

fn runs(ranges: &[(u32, u32)]) -> Vec<BlockRange> {
    ranges.iter().map(|(first, count)| BlockRange::new(*first, *count)).collect()
}

/// Two chunks of 1 to 32, shared by two objects; in one of them block 20 was overwritten since.
fn shared() -> Machine {
    let mut machine = Machine::new(1, 14 << 20);
    let values: Vec<Value> = (1..=32).collect();
    machine.call(write(LIVE, 0, &values, WriteBase::Keep));
    machine.call(write(FROZEN, 0, &[], WriteBase::CloneOf(LIVE)));
    machine.call(write(LIVE, 20, &[99], WriteBase::Keep));
    machine.checkpoint();
    machine
}

#[test]
fn every_damaged_block_is_told_and_nothing_else() {
    let mut machine = shared();
    let sound = verify(&mut machine, LIVE, 0, 2 * CHUNK);
    assert_eq!((sound.damaged, sound.read_bytes), (vec![], 32 * 4096));
    let data = content(&[1]);
    assert_eq!(sound.checksums[0], proto::checksum::crc32c(&data));
    [3, 4, 9, 20].iter().for_each(|block| rot(&mut machine, LIVE, *block));
    assert_eq!(verify(&mut machine, LIVE, 0, 40).damaged, runs(&[(3, 2), (9, 1), (20, 1)]));
    assert_eq!(verify(&mut machine, LIVE, 4, 5).damaged, runs(&[(4, 1)]));
    // It lies on the same slot, but for what was overwritten.
    assert_eq!(verify(&mut machine, FROZEN, 0, 40).damaged, runs(&[(3, 2), (9, 1)]));
    assert_eq!(
        machine.call(ObjectOp::Verify { oid: Oid(7), blocks: BlockRange::new(0, 1), pass: 0 }),
        ObjectReply::Absent
    );
}

#[test]
fn what_objects_share_is_read_once_in_a_pass_unless_it_is_damaged() {
    let mut machine = shared();
    rot(&mut machine, FROZEN, 3);
    let mut pass =
        |oid, pass| match machine.call(ObjectOp::Verify { oid, blocks: BlockRange::new(0, 32), pass }) {
            ObjectReply::Verified(found) => (found.read_bytes / 4096, found.damaged),
            other => panic!("answered with {other:?}"),
        };
    let damage = runs(&[(3, 1)]);
    assert_eq!(pass(LIVE, 1), (32, damage.clone()));
    assert_eq!(pass(FROZEN, 1), (2, damage.clone()), "the damaged one, and what the other has overwritten");
    assert_eq!(pass(FROZEN, 1), (1, damage.clone()));
    assert_eq!(pass(FROZEN, 0), (32, damage.clone()));
    assert_eq!(pass(FROZEN, 2), (32, damage));
}

#[test]
fn of_blocks_that_cannot_be_read_together_each_is_tried_alone() {
    let mut machine = shared();
    let ticket = machine.submit(ObjectOp::Verify { oid: LIVE, blocks: BlockRange::new(0, 4), pass: 0 });
    let id = machine.disk.pending()[0];
    let result = machine.disk.fail(id);
    machine.store.handle_io(id, result);
    machine.pump();
    let third = machine.disk.pending()[2];
    let result = machine.disk.fail(third);
    machine.store.handle_io(third, result);
    machine.run();
    let Some(ObjectReply::Verified(found)) = machine.replies.remove(&ticket) else { panic!("no answer") };
    assert_eq!(found.damaged, runs(&[(2, 1)]));
    machine.store.assert_invariants();
}

#[test]
fn a_mended_block_is_good_for_all_who_share_it_and_stays_so() {
    let mut machine = shared();
    [3, 9].iter().for_each(|block| rot(&mut machine, FROZEN, *block));
    mend(&mut machine, FROZEN, 3, &[4, 5, 6, 7, 8, 9, 10]);
    let expected: Vec<Value> = (1..=16).collect();
    for _ in 0..2 {
        for oid in [LIVE, FROZEN] {
            assert_eq!(verify(&mut machine, oid, 0, 2 * CHUNK).damaged, []);
            assert_eq!(machine.read(oid, 0, CHUNK), Some(expected.clone()));
        }
        assert_eq!(machine.read(LIVE, 20, 1), Some(vec![99]));
        machine.crash();
    }
}

#[test]
fn other_content_than_the_checksum_says_is_not_taken() {
    let mut machine = shared();
    rot(&mut machine, FROZEN, 3);
    mend(&mut machine, FROZEN, 3, &[77]);
    assert_eq!(verify(&mut machine, FROZEN, 0, CHUNK).damaged, runs(&[(3, 1)]));
    // Nor where nothing lies, and not over what is on its way home.
    mend(&mut machine, FROZEN, 50, &[77]);
    assert_eq!(machine.read(FROZEN, 50, 1), Some(vec![0]));
    machine.call(write(LIVE, 3, &[5], WriteBase::Keep));
    mend(&mut machine, LIVE, 3, &[4]);
    machine.checkpoint();
    assert_eq!(machine.read(LIVE, 3, 1), Some(vec![5]));
    assert_eq!(
        machine.call(ObjectOp::Mend {
            oid: FROZEN,
            blocks: BlockRange::new(3, 1),
            checksums: vec![1],
            data: content(&[4]),
        }),
        ObjectReply::Failed(StoreFailure::Invalid)
    );
}

#[test]
fn blocks_whose_checksums_were_lost_are_mended_and_remembered() {
    let mut machine = shared();
    let offset = descriptor_offsets(&machine.store, FROZEN, 0)[0];
    machine.disk.flip_bit(offset + 70, 1);
    machine.crash();
    assert_eq!(verify(&mut machine, FROZEN, 0, CHUNK).damaged, runs(&[(0, 16)]));
    let values: Vec<Value> = (1..=16).collect();
    mend(&mut machine, FROZEN, 0, &values[..10]);
    assert_eq!(verify(&mut machine, FROZEN, 0, CHUNK).damaged, runs(&[(10, 6)]));
    machine.crash();
    assert_eq!(verify(&mut machine, LIVE, 0, CHUNK).damaged, runs(&[(10, 6)]));
    mend(&mut machine, LIVE, 10, &values[10..]);
    machine.checkpoint();
    machine.crash();
    assert_eq!(machine.read(FROZEN, 0, CHUNK), Some(values));
}

#[test]
fn what_is_deleted_or_overwritten_meanwhile_is_not_disturbed() {
    let mut machine = Machine::new(1, 14 << 20);
    machine.call(write(LIVE, 0, &(1..=16).collect::<Vec<_>>(), WriteBase::Keep));
    machine.checkpoint();
    rot(&mut machine, LIVE, 3);
    let ticket = machine.submit(mend_op(LIVE, 3, &[4]));
    let mending = machine.disk.pending()[0];
    let complete_others = |machine: &mut Machine| {
        while let Some(id) = machine.disk.pending().into_iter().find(|id| *id != mending) {
            machine.complete(id);
        }
    };
    machine.submit(write(LIVE, 3, &[8], WriteBase::Keep));
    machine.store.begin_checkpoint();
    machine.pump();
    complete_others(&mut machine);
    assert_eq!(machine.replies.get(&ticket), None);
    machine.submit(change(LIVE, Change::Delete));
    // Their slots are not the one that is being written to.
    for n in 0..20 {
        machine.submit(write(Oid(200 + n), 0, &[n + 50; 16], WriteBase::Keep));
    }
    machine.pump();
    complete_others(&mut machine);
    machine.complete(mending);
    machine.run();
    assert_eq!(machine.replies.remove(&ticket), Some(ObjectReply::Done));
    machine.store.assert_invariants();
    for n in 0..20 {
        assert_eq!(machine.read(Oid(200 + n), 0, 16), Some(vec![n + 50; 16]));
    }
    assert_eq!(machine.read(LIVE, 0, 1), None);
}
