//! Volumes of up to 16 PiB: that every offset is its own, and that what is empty costs neither time nor memory.

#[allow(dead_code)]
#[path = "native/cluster.rs"]
mod cluster;

use std::collections::BTreeMap;

use bytes::Bytes;
use cluster::{Cluster, id_of};
use proto::client::*;
use proto::{BLOCK_BYTES, Oid, Vid};

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
const SIZE: u64 = 16 << 50;
const OBJECT: u64 = 4 * MIB;
/// A block in the first page of the table, over the border of the next, in pages far away, and the very last one.
const PLACES: [u64; 6] = [0, 4 * TIB - 4096, 4 * TIB + 7 * OBJECT, 9000 * TIB, SIZE - OBJECT, SIZE - 4096];

fn on(vid: Vid, op: VolumeOp) -> ClientOp {
    ClientOp::Volume { vid, at: Point::Exact, op }
}

fn create(cluster: &mut Cluster, name: &str, size: u64) -> Vid {
    let op = VdiOp::Create { name: name.into(), size, policy: None, block_size_shift: Some(22) };
    vdi(cluster.ask(0, ClientOp::Vdi(op)))
}

fn vdi(result: ClientResult) -> Vid {
    match result {
        Ok(ClientReply::Vdi(info)) => info.vid,
        other => panic!("expected a VDI, got {other:?}"),
    }
}

/// The working VDI that takes the frozen one's place.
fn snapshot(cluster: &mut Cluster, vid: Vid) -> Vid {
    match cluster.ask(1, ClientOp::Vdi(VdiOp::Snapshot { vids: vec![vid], tag: b"s".to_vec() })) {
        Ok(ClientReply::Vdis(heads)) => heads[0].vid,
        other => panic!("expected a VDI, got {other:?}"),
    }
}

fn clone(cluster: &mut Cluster, base: Vid, name: &str) -> Vid {
    let op = VdiOp::Clone { base, name: name.into(), size: None, policy: None };
    vdi(cluster.ask(0, ClientOp::Vdi(op)))
}

fn delete(cluster: &mut Cluster, vid: Vid) {
    assert_eq!(cluster.ask(0, ClientOp::Vdi(VdiOp::Delete { vid })), Ok(ClientReply::Done));
}

fn write(cluster: &mut Cluster, sheep: usize, vid: Vid, offset: u64, byte: u8) {
    let data = Bytes::from(vec![byte; BLOCK_BYTES]);
    assert_eq!(cluster.ask(sheep, on(vid, VolumeOp::Write { offset, data })), Ok(ClientReply::Done));
}

/// Each place has one byte everywhere: which.
fn read_all(cluster: &mut Cluster, sheep: usize, vid: Vid) -> Vec<u8> {
    let mut bytes = Vec::new();
    for offset in PLACES {
        let read = cluster.data(sheep, on(vid, VolumeOp::Read { offset, len: BLOCK_BYTES as u32 }));
        assert!(read.iter().all(|byte| *byte == read[0]), "at {offset}");
        bytes.push(read[0]);
    }
    bytes
}

fn usage(cluster: &mut Cluster, vid: Vid) -> (u64, u64) {
    match cluster.ask(1, ClientOp::Vdi(VdiOp::Usage { vid })) {
        Ok(ClientReply::Usage { own_objects, shared_objects }) => (own_objects, shared_objects),
        other => panic!("expected the usage, got {other:?}"),
    }
}

/// Parts of a range that are marked, and how many answers that took.
fn collect(
    offset: u64,
    end: u64,
    mut ask: impl FnMut(u64, u64) -> Vec<(u64, bool)>,
) -> (Vec<(u64, u64)>, usize) {
    let (mut at, mut found, mut answers) = (offset, Vec::new(), 0);
    while at < end {
        answers += 1;
        let before = at;
        for (len, marked) in ask(at, end - at) {
            if marked {
                found.push((at, len));
            }
            at += len;
        }
        assert!(at > before, "an answer covers something");
    }
    (found, answers)
}

fn data_of(cluster: &mut Cluster, vid: Vid) -> (Vec<(u64, u64)>, usize) {
    collect(0, SIZE, |offset, len| match cluster.ask(0, on(vid, VolumeOp::BlockStatus { offset, len })) {
        Ok(ClientReply::Extents(extents)) => extents.iter().map(|e| (e.len, !e.hole)).collect(),
        other => panic!("expected extents, got {other:?}"),
    })
}

fn changes_of(cluster: &mut Cluster, vid: Vid, since: Vid) -> (Vec<(u64, u64)>, usize) {
    collect(0, SIZE, |offset, len| match cluster.ask(0, on(vid, VolumeOp::Changes { since, offset, len })) {
        Ok(ClientReply::Changes(extents)) => extents.iter().map(|e| (e.len, e.changed)).collect(),
        other => panic!("expected changes, got {other:?}"),
    })
}

fn object_counts(cluster: &Cluster) -> Vec<usize> {
    cluster.sheep.iter().map(|(_, _, store)| store.objects.len()).collect()
}

#[test]
fn every_offset_of_16_pib_is_its_own_through_snapshot_clone_and_deletion() {
    let (mut cluster, _) = Cluster::with_disk(2);
    let vid = create(&mut cluster, "large", SIZE);
    assert_eq!(usage(&mut cluster, vid), (0, 0));
    for (i, offset) in PLACES.into_iter().enumerate() {
        write(&mut cluster, i % 2, vid, offset, i as u8 + 1);
    }
    assert_eq!(read_all(&mut cluster, 0, vid), [1, 2, 3, 4, 5, 6]);
    // The last two are in one object.
    assert_eq!(usage(&mut cluster, vid), (5, 0));

    let head = snapshot(&mut cluster, vid);
    write(&mut cluster, 1, head, PLACES[1], 12);
    write(&mut cluster, 0, head, PLACES[5], 16);
    assert_eq!(read_all(&mut cluster, 1, vid), [1, 2, 3, 4, 5, 6]);
    assert_eq!(read_all(&mut cluster, 0, head), [1, 12, 3, 4, 5, 16]);
    assert_eq!(usage(&mut cluster, head), (2, 3));
    let (changed, _) = changes_of(&mut cluster, head, vid);
    assert_eq!(changed, [(PLACES[1], 4096), (PLACES[5], 4096)]);

    let copy = clone(&mut cluster, vid, "copy");
    assert_eq!(read_all(&mut cluster, 1, copy), [1, 2, 3, 4, 5, 6]);
    write(&mut cluster, 1, copy, PLACES[3], 24);
    let discard = on(copy, VolumeOp::Discard { offset: PLACES[4], len: OBJECT });
    assert_eq!(cluster.ask(0, discard), Ok(ClientReply::Done));
    assert_eq!(read_all(&mut cluster, 0, copy), [1, 2, 3, 24, 0, 0]);
    assert_eq!(read_all(&mut cluster, 0, vid), [1, 2, 3, 4, 5, 6]);

    // What the clone still needs of the others stays, the last object of all among it.
    let other = clone(&mut cluster, vid, "other");
    delete(&mut cluster, head);
    delete(&mut cluster, vid);
    assert_eq!(read_all(&mut cluster, 1, copy), [1, 2, 3, 24, 0, 0]);
    assert_eq!(read_all(&mut cluster, 1, other), [1, 2, 3, 4, 5, 6]);
    delete(&mut cluster, copy);
    assert_eq!(read_all(&mut cluster, 1, other), [1, 2, 3, 4, 5, 6]);
    delete(&mut cluster, other);
    cluster.wait_ms(2000);
    assert_eq!(object_counts(&cluster), [0, 0]);
}

#[test]
fn what_is_empty_of_16_pib_is_passed_over_at_once() {
    let (mut cluster, _) = Cluster::with_disk(2);
    let vid = create(&mut cluster, "large", SIZE);
    assert_eq!(data_of(&mut cluster, vid).0, []);
    let before = cluster.steps;
    for op in [
        VolumeOp::Discard { offset: 0, len: SIZE },
        VolumeOp::WriteZeroes { offset: 0, len: SIZE, keep_allocated: false },
    ] {
        assert_eq!(cluster.ask(1, on(vid, op)), Ok(ClientReply::Done));
    }
    for (i, offset) in PLACES.into_iter().enumerate() {
        write(&mut cluster, 0, vid, offset, i as u8 + 1);
    }
    let (data, answers) = data_of(&mut cluster, vid);
    let places: BTreeMap<u64, ()> = PLACES.iter().map(|offset| (offset / OBJECT * OBJECT, ())).collect();
    assert_eq!(data, places.keys().map(|offset| (*offset, OBJECT)).collect::<Vec<_>>());
    // The table has 4096 pages, and four of them hold something.
    assert!(answers <= 4 * 16 + 1, "{answers} answers");

    // All but a few bytes at both ends, which keep their blocks.
    let (offset, len) = (10, SIZE - 20);
    assert_eq!(cluster.ask(0, on(vid, VolumeOp::Discard { offset, len })), Ok(ClientReply::Done));
    let (data, _) = data_of(&mut cluster, vid);
    assert_eq!(data, [(0, OBJECT), (SIZE - OBJECT, OBJECT)]);
    let start = cluster.data(1, on(vid, VolumeOp::Read { offset: 0, len: 12 }));
    assert_eq!(start[..], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0]);
    let end = cluster.data(1, on(vid, VolumeOp::Read { offset: SIZE - 12, len: 12 }));
    assert_eq!(end[..], [0, 0, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6]);
    assert_eq!(cluster.ask(0, on(vid, VolumeOp::Discard { offset: 0, len: SIZE })), Ok(ClientReply::Done));
    assert_eq!((data_of(&mut cluster, vid).0, usage(&mut cluster, vid)), (vec![], (0, 0)));
    // The table of 2^32 objects has 4096 pages.
    let steps = cluster.steps - before;
    assert!(steps < 1000, "{steps} steps");
}

#[test]
fn sizes_end_where_indexes_do() {
    let (mut cluster, _) = Cluster::with_disk(1);
    for (shift, max) in [(20, 4 << 50), (22, SIZE), (31, SIZE)] {
        let mut ask = |size| {
            let name = format!("of {shift}").into_bytes();
            let op = VdiOp::Create { name, size, policy: None, block_size_shift: Some(shift) };
            cluster.ask(0, ClientOp::Vdi(op))
        };
        assert_eq!(ask(max + 1), Err(ClientError::InvalidParameters));
        let vid = vdi(ask(max));
        write(&mut cluster, 0, vid, max - 4096, 9);
        let read = cluster.data(0, on(vid, VolumeOp::Read { offset: max - 1, len: 1 }));
        assert_eq!(read[..], [9]);
        for op in [VolumeOp::Read { offset: max, len: 1 }, VolumeOp::Discard { offset: u64::MAX, len: 2 }] {
            assert_eq!(cluster.ask(0, on(vid, op)), Err(ClientError::OutOfRange));
        }
        let grow = cluster.ask(0, on(vid, VolumeOp::Resize { size: max + 1 }));
        assert_eq!(grow, Err(ClientError::InvalidParameters));
    }
}

#[test]
fn a_vdi_grows_past_4_tib_and_its_snapshot_stays_as_large_as_it_was() {
    let (mut cluster, _) = Cluster::with_disk(2);
    let vid = create(&mut cluster, "grows", TIB);
    write(&mut cluster, 0, vid, TIB - 4096, 1);
    let head = snapshot(&mut cluster, vid);
    assert_eq!(cluster.ask(1, on(head, VolumeOp::Resize { size: SIZE })), Ok(ClientReply::Done));
    write(&mut cluster, 1, head, SIZE - 4096, 2);
    assert_eq!(usage(&mut cluster, head), (1, 1));
    let beyond = on(vid, VolumeOp::Read { offset: TIB, len: 1 });
    assert_eq!(cluster.ask(0, beyond), Err(ClientError::OutOfRange));
    assert_eq!(changes_of(&mut cluster, head, vid).0, [(SIZE - 4096, 4096)]);
}

#[test]
fn pages_of_the_table_outlive_their_owner() {
    let (mut cluster, _) = Cluster::with_gateway();
    let vid = create(&mut cluster, "large", SIZE);
    for (i, offset) in PLACES.into_iter().enumerate() {
        write(&mut cluster, 1, vid, offset, i as u8 + 1);
    }
    cluster.lose(id_of(1));
    assert_eq!(read_all(&mut cluster, 1, vid), [1, 2, 3, 4, 5, 6]);
    write(&mut cluster, 1, vid, 100 * TIB, 7);
    assert_eq!(usage(&mut cluster, vid), (6, 0));
}

/// More of the table is touched than stays in memory.
#[test]
fn entries_that_were_let_go_are_read_again() {
    let (mut cluster, _) = Cluster::with_disk(2);
    let vid = create(&mut cluster, "large", SIZE);
    for (i, offset) in PLACES.into_iter().enumerate() {
        write(&mut cluster, 0, vid, offset, i as u8 + 1);
    }
    // A block of the table tells of a gibibyte.
    for offset in (0..24_000u64).map(|i| i << 30) {
        let read = cluster.data(0, on(vid, VolumeOp::Read { offset: offset + 512 * MIB, len: 1 }));
        assert_eq!(read[..], [0]);
    }
    assert_eq!(read_all(&mut cluster, 0, vid), [1, 2, 3, 4, 5, 6]);
    assert_eq!(usage(&mut cluster, vid), (5, 0));
    write(&mut cluster, 0, vid, PLACES[1], 22);
    assert_eq!(read_all(&mut cluster, 0, vid), [1, 22, 3, 4, 5, 6]);
}

/// One write takes so long that more of the table is touched meanwhile than stays in memory.
#[test]
fn entries_that_a_write_needs_are_not_let_go() {
    let (mut cluster, _) = Cluster::with_disk(2);
    let vid = create(&mut cluster, "large", SIZE);
    write(&mut cluster, 0, vid, 0, 1);
    let head = snapshot(&mut cluster, vid);
    assert_eq!(usage(&mut cluster, head), (0, 1));
    // A clone of the object first, then its entry: the other sheep hears of neither.
    write(&mut cluster, 0, head, 4 * TIB, 1);
    cluster.cut_links.insert((id_of(0), id_of(1)));
    let data = Bytes::from(vec![2; BLOCK_BYTES]);
    let slow = cluster.begin(0, on(head, VolumeOp::Write { offset: 4096, data }));
    for offset in (1..24_000u64).map(|i| (100 * TIB) + (i << 30)) {
        assert_eq!(cluster.data(0, on(head, VolumeOp::Read { offset, len: 1 }))[..], [0]);
    }
    assert!(!cluster.answers.contains_key(&slow));
    cluster.cut_links.clear();
    let now = cluster.now;
    cluster.sheep[0].1.handle_link_reset(id_of(1), now);
    cluster.run();
    assert_eq!(cluster.answers.remove(&slow), Some(Ok(ClientReply::Done)));
    let read = cluster.data(0, on(head, VolumeOp::Read { offset: 4095, len: 2 }));
    assert_eq!(read[..], [1, 2]);
    assert_eq!(usage(&mut cluster, head), (2, 0));
}

/// The whole table of a VDI of 2^20 objects, as if each had been written.
fn enter_all(cluster: &mut Cluster, vid: Vid) {
    let entry = [&vid.0.to_le_bytes()[..], &[0; 12]].concat();
    let block = Bytes::from(entry.repeat(BLOCK_BYTES / 16));
    let page: BTreeMap<u32, Bytes> = (0..4096).map(|number| (number, block.clone())).collect();
    for (_, _, store) in &mut cluster.sheep {
        store.objects.insert(Oid::inode(vid), page.clone());
    }
}

#[test]
fn a_snapshot_of_a_million_objects_changes_nothing_on_disks_and_takes_no_time() {
    let (mut cluster, _) = Cluster::with_disk(2);
    let mut steps = Vec::new();
    for (name, is_full) in [("empty", false), ("full", true)] {
        let mut vid = create(&mut cluster, name, 4 * TIB);
        if is_full {
            enter_all(&mut cluster, vid);
        }
        // Its owner has all of the table in memory.
        assert_eq!(usage(&mut cluster, vid), (if is_full { 1 << 20 } else { 0 }, 0));
        write(&mut cluster, 0, vid, 0, 1);
        for sheep in &mut cluster.sheep {
            sheep.2.changes.clear();
        }
        let before = cluster.steps;
        for round in 0..10 {
            let op = VdiOp::Snapshot { vids: vec![vid], tag: vec![b'a' + round] };
            match cluster.ask(1, ClientOp::Vdi(op)) {
                Ok(ClientReply::Vdis(heads)) => vid = heads[0].vid,
                other => panic!("expected a VDI, got {other:?}"),
            }
        }
        steps.push(cluster.steps - before);
        assert!(cluster.sheep.iter().all(|(_, _, store)| store.changes.is_empty()), "{name}");
        // The first write after it takes one change of the table's page and one of the object, whatever else there is.
        write(&mut cluster, 0, vid, 4096, 2);
        let changes: Vec<usize> = cluster.sheep.iter().map(|(_, _, store)| store.changes.len()).collect();
        assert_eq!(changes, [2, 2], "{name}");
    }
    assert_eq!(steps[0], steps[1], "what the sheep do does not depend on what the VDI holds");
}

#[test]
fn a_discard_to_the_end_leaves_what_was_written_behind_that_end_meanwhile() {
    let (mut cluster, _) = Cluster::with_gateway();
    let old_end = 59 * OBJECT + OBJECT / 2;
    let vid = create(&mut cluster, "grows", old_end);
    for object in 0..60 {
        write(&mut cluster, 0, vid, object * OBJECT, 1);
    }
    // The first tasks of the discard hang, and those of the last object are not made yet.
    let links = (1..4).map(|i| (id_of(0), id_of(i)));
    cluster.cut_links.extend(links);
    let discard = cluster.begin(0, on(vid, VolumeOp::Discard { offset: 0, len: old_end }));
    cluster.run();
    let resize = VolumeOp::Resize { size: 60 * OBJECT };
    let resize = cluster.begin(0, on(vid, resize));
    cluster.run();
    let data = Bytes::from(vec![7; BLOCK_BYTES]);
    let later = cluster.begin(0, on(vid, VolumeOp::Write { offset: old_end, data }));
    cluster.run();
    assert!(!cluster.answers.contains_key(&discard));
    cluster.cut_links.clear();
    for i in 1..4 {
        cluster.sheep[0].1.handle_link_reset(id_of(i), cluster.now);
    }
    cluster.wait_ms(5000);
    for request in [discard, resize, later] {
        assert_eq!(cluster.answers.remove(&request), Some(Ok(ClientReply::Done)));
    }
    let kept = cluster.data(0, on(vid, VolumeOp::Read { offset: old_end, len: BLOCK_BYTES as u32 }));
    assert!(kept.iter().all(|byte| *byte == 7), "{}", kept[0]);
    let gone = cluster.data(0, on(vid, VolumeOp::Read { offset: 59 * OBJECT, len: BLOCK_BYTES as u32 }));
    assert!(gone.iter().all(|byte| *byte == 0));
}
