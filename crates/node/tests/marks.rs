//! What a copy knows of changes that may be missing elsewhere, when it catches up.
//!
//! Sheep 0 owns the VDI and stores nothing; its three copies lie on the others.

#[allow(dead_code)]
#[path = "native/cluster.rs"]
mod cluster;

use std::collections::BTreeSet;

use cluster::{Cluster, OBJECT_BYTES, id_of};
use proto::client::*;
use proto::object::Stamp;
use proto::{BLOCK_BYTES, Vid};

const OBJECTS: u64 = 8;

fn volume(vid: Vid, op: VolumeOp) -> ClientOp {
    ClientOp::Volume { vid, at: Point::Head, op }
}

/// A write to each object, so that whoever serves as a source serves some of them.
fn write_everywhere(vid: Vid, fill: u8) -> impl Iterator<Item = ClientOp> {
    let write = move |object| VolumeOp::Write {
        offset: object * OBJECT_BYTES,
        data: vec![fill; 3 * BLOCK_BYTES].into(),
    };
    (0..OBJECTS).map(move |object| volume(vid, write(object)))
}

/// Sheep 3 is away when the owner dies, with changes that only sheep 1 has heard of; then it comes back.
fn with_changes_on_one_copy() -> (Cluster, Vid) {
    let (mut cluster, vid) = Cluster::with_gateway();
    for op in write_everywhere(vid, 1) {
        cluster.ask(0, op).unwrap();
    }
    let disk = cluster.lose(id_of(3));
    cluster.cut_links.insert((id_of(0), id_of(2)));
    for op in write_everywhere(vid, 2) {
        cluster.begin(0, op);
    }
    cluster.run();
    assert!(cluster.answers.is_empty(), "a copy has not heard of it");
    cluster.lose(id_of(0));
    cluster.cut_links.clear();
    cluster.come_back(3, disk);
    (cluster, vid)
}

fn store(cluster: &Cluster, i: u16) -> &cluster::Store {
    &cluster.sheep.iter().find(|(id, ..)| *id == id_of(i)).expect("a sheep of this cluster").2
}

#[test]
fn the_next_seal_hears_of_a_change_from_whoever_has_its_content() {
    let (mut cluster, vid) = with_changes_on_one_copy();
    let sheep = cluster.sheep.iter().position(|(id, ..)| *id == id_of(2)).unwrap();
    let view = cluster.sheep[sheep].1.view();
    assert!(view.pools().iter().flat_map(|pool| &pool.pgs).all(|pg| pg.in_sync.contains(&id_of(3))));
    let marked = store(&cluster, 3).remembered.len();
    assert!(0 < marked && marked < OBJECTS as usize, "{marked} objects came from the copy that had it");
    cluster.lose(id_of(1));
    let sheep = cluster.sheep.iter().position(|(id, ..)| *id == id_of(2)).unwrap();
    for object in 0..OBJECTS {
        let offset = object * OBJECT_BYTES;
        let read = cluster.data(sheep, volume(vid, VolumeOp::Read { offset, len: BLOCK_BYTES as u32 }));
        assert!(read.iter().all(|byte| *byte == read[0]));
    }
    assert_eq!(store(&cluster, 2).objects, store(&cluster, 3).objects);
}

#[test]
fn a_mark_stands_for_content_that_is_there_and_for_nothing_else() {
    let (cluster, vid) = with_changes_on_one_copy();
    let store = store(&cluster, 3);
    for object in 0..OBJECTS as u32 {
        let oid = proto::Oid::data(vid, object);
        let marked = store.remembered.iter().any(|change| change.oid == oid);
        let content = store.objects[&oid][&0][0];
        assert_eq!(content, if marked { 2 } else { 1 }, "object {object}");
    }
}

#[test]
fn what_a_copy_remembered_before_it_caught_up_is_forgotten_for_good() {
    let (mut cluster, vid) = Cluster::with_gateway();
    for op in write_everywhere(vid, 1) {
        cluster.ask(0, op).unwrap();
    }
    // Only sheep 3 hears of these, and goes away with its owner.
    let others = [1, 2].map(|i| (id_of(0), id_of(i)));
    cluster.cut_links.extend(others);
    for op in write_everywhere(vid, 2) {
        cluster.begin(0, op);
    }
    cluster.run();
    let stale: BTreeSet<Stamp> = store(&cluster, 3).remembered.iter().map(|change| change.stamp).collect();
    assert!(stale.len() >= OBJECTS as usize);
    let disk = cluster.lose(id_of(3));
    cluster.lose(id_of(0));
    cluster.cut_links.clear();
    cluster.come_back(3, disk);
    assert!(store(&cluster, 3).objects.iter().all(|(_, blocks)| blocks.get(&0).is_none_or(|b| b[0] != 2)));
    let left = &store(&cluster, 3).remembered;
    let known = &store(&cluster, 1).remembered;
    let extra: Vec<_> = left.iter().filter(|change| !known.contains(change)).collect();
    assert!(extra.is_empty(), "{extra:?}");
}
