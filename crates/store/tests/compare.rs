//! What two objects share is not called different, and what was written since is.

mod common;

use std::collections::BTreeSet;

use common::*;
use proto::Oid;
use proto::object::*;

const BASE: Oid = Oid(100);
const CLONE: Oid = Oid(101);

fn machine() -> Machine {
    Machine::new(2, 14 << 20)
}

fn compare(machine: &mut Machine, oid: Oid, with: Option<Oid>) -> Option<BTreeSet<u32>> {
    decode_compare(machine.call(ObjectOp::Compare { oid, with }))
}

fn done(machine: &mut Machine, op: ObjectOp) {
    assert_eq!(machine.call(op), ObjectReply::Done);
}

#[test]
fn clone_differs_from_its_base_where_it_was_written_to() {
    let mut machine = machine();
    let values: Vec<Value> = (1..=80).collect();
    done(&mut machine, write(BASE, 0, &values, WriteBase::Empty));
    machine.checkpoint();
    done(&mut machine, write(CLONE, 0, &[], WriteBase::CloneOf(BASE)));
    assert_eq!(compare(&mut machine, CLONE, Some(BASE)), Some(BTreeSet::new()));
    done(&mut machine, write(CLONE, 18, &[500, 501], WriteBase::Keep));
    // In the journal still: block by block.
    assert_eq!(compare(&mut machine, CLONE, Some(BASE)), Some((18..20).collect()));
    assert_eq!(compare(&mut machine, BASE, Some(CLONE)), Some((18..20).collect()));
    machine.checkpoint();
    // In a slot of its own, with the rest below it.
    assert_eq!(compare(&mut machine, CLONE, Some(BASE)), Some((18..20).collect()));
    done(&mut machine, change(CLONE, Change::Discard { blocks: BlockRange::new(40, 2) }));
    let expect = (18..20).chain(40..42).collect();
    assert_eq!(compare(&mut machine, CLONE, Some(BASE)), Some(expect));
    machine.crash();
    assert!(compare(&mut machine, CLONE, Some(BASE)).unwrap().is_superset(&BTreeSet::from([18, 19, 40, 41])));
}

#[test]
fn blocks_that_were_cloned_on_their_way_home_are_the_same() {
    let mut machine = machine();
    done(&mut machine, write(BASE, 3, &[7, 8], WriteBase::Keep));
    done(&mut machine, write(CLONE, 0, &[], WriteBase::CloneOf(BASE)));
    assert_eq!(compare(&mut machine, CLONE, Some(BASE)), Some(BTreeSet::new()));
    done(&mut machine, write(BASE, 4, &[9], WriteBase::Keep));
    assert_eq!(compare(&mut machine, CLONE, Some(BASE)), Some(BTreeSet::from([4])));
}

#[test]
fn object_differs_from_zeros_where_it_has_something() {
    let mut machine = machine();
    assert_eq!(compare(&mut machine, BASE, None), None);
    done(&mut machine, write(BASE, 64, &(1..=20).collect::<Vec<_>>(), WriteBase::Empty));
    assert_eq!(compare(&mut machine, BASE, None), Some((64..84).collect()));
    machine.checkpoint();
    assert_eq!(compare(&mut machine, BASE, None), Some((64..84).collect()));
    assert_eq!(compare(&mut machine, BASE, Some(CLONE)), None);
    assert_eq!(compare(&mut machine, CLONE, Some(BASE)), None);
    assert_eq!(compare(&mut machine, BASE, Some(BASE)), Some(BTreeSet::new()));
}
