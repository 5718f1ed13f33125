//! Snapshots, clones, rollback and deletion against a model: contents, and exactly which objects are left.
//!
//! Requests come through either of two sheep. Faults and delays are the simulator's business (crate `sim`).

#[allow(dead_code)]
#[path = "native/cluster.rs"]
mod cluster;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use cluster::{Cluster, OBJECT_BYTES, id_of};
use proto::client::*;
use proto::object::{BlockRange, Change, WriteBase};
use proto::peer::{PeerMessage, PeerRequest};
use proto::{BLOCK_BYTES, CopyPolicy, NodeId, ObjectKind, Oid, RequestId, Vid};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Of every VDI: entries in two blocks of the table.
const OBJECTS: u64 = 300;
/// Objects that tests touch: two neighbours at the beginning, where a block of the table ends, and the last one.
const TOUCHED: [u64; 5] = [0, 1, 255, 256, 299];

fn at(vid: Vid, at: Point, op: VolumeOp) -> ClientOp {
    ClientOp::Volume { vid, at, op }
}

fn vdi_op(cluster: &mut Cluster, op: VdiOp) -> ClientResult {
    cluster.ask(0, ClientOp::Vdi(op))
}

fn vdi(result: ClientResult) -> Vid {
    match result {
        Ok(ClientReply::Vdi(info)) => info.vid,
        other => panic!("expected a VDI, got {other:?}"),
    }
}

fn vids(result: ClientResult) -> Vec<Vid> {
    match result {
        Ok(ClientReply::Vdis(infos)) => infos.into_iter().map(|info| info.vid).collect(),
        other => panic!("expected VDIs, got {other:?}"),
    }
}

fn create(cluster: &mut Cluster, name: &str) -> Vid {
    let (name, size) = (name.as_bytes().to_vec(), OBJECTS * OBJECT_BYTES);
    vdi(vdi_op(cluster, VdiOp::Create { name, size, policy: None, block_size_shift: None }))
}

fn snapshot(cluster: &mut Cluster, vid: Vid, tag: &str) -> ClientResult {
    vdi_op(cluster, VdiOp::Snapshot { vids: vec![vid], tag: tag.as_bytes().to_vec() })
}

fn clone(cluster: &mut Cluster, base: Vid, name: &str) -> Vid {
    vdi(vdi_op(cluster, VdiOp::Clone { base, name: name.as_bytes().to_vec(), size: None, policy: None }))
}

fn write(cluster: &mut Cluster, sheep: usize, vid: Vid, offset: u64, data: Vec<u8>) {
    let op = VolumeOp::Write { offset, data: data.into() };
    assert_eq!(cluster.ask(sheep, at(vid, Point::Head, op)), Ok(ClientReply::Done));
}

fn read(cluster: &mut Cluster, sheep: usize, vid: Vid, offset: u64, len: u64) -> Bytes {
    cluster.data(sheep, at(vid, Point::Exact, VolumeOp::Read { offset, len: len as u32 }))
}

fn table_of(cluster: &mut Cluster, vid: Vid) -> (Vec<(u32, Vid, Vid)>, BTreeSet<Vid>) {
    let (mut entries, mut stored_with, mut next) = (Vec::new(), BTreeSet::new(), Some(0));
    while let Some(first) = next {
        match vdi_op(cluster, VdiOp::Table { vid, first }) {
            Ok(ClientReply::Table(table)) => {
                entries.extend(table.entries);
                stored_with.extend(table.stored_with);
                next = table.next;
            }
            other => panic!("expected a table, got {other:?}"),
        }
    }
    (entries, stored_with)
}

/// Which data objects and whose tables may be there: those that VDIs name, and what these need of deleted ones.
struct Needed {
    objects: BTreeSet<(Vid, u32)>,
    /// Of these all is there: no other VDI has a part of them.
    complete: BTreeSet<(Vid, u32)>,
    tables: BTreeSet<Vid>,
}

fn needed(cluster: &mut Cluster) -> Needed {
    let living: BTreeSet<Vid> = vids(vdi_op(cluster, VdiOp::List)).into_iter().collect();
    let mut needed = Needed { objects: BTreeSet::new(), complete: BTreeSet::new(), tables: BTreeSet::new() };
    for vid in &living {
        let (entries, stored_with) = table_of(cluster, *vid);
        needed.tables.insert(*vid);
        needed.tables.extend(stored_with);
        for (index, owner, base) in entries {
            needed.objects.insert((owner, index));
            match base {
                Vid(0) => drop(needed.complete.insert((owner, index))),
                base => drop(needed.objects.insert((base, index))),
            }
        }
    }
    // A deleted VDI's object that is kept may have its rest elsewhere: its table tells.
    let mut seen = BTreeSet::new();
    loop {
        let dead: BTreeSet<Vid> = needed.objects.iter().map(|(vid, _)| *vid).collect();
        let Some(dead) = dead.into_iter().find(|vid| !living.contains(vid) && seen.insert(*vid)) else {
            break;
        };
        let kept: BTreeSet<u32> =
            needed.objects.iter().filter(|(vid, _)| *vid == dead).map(|(_, index)| *index).collect();
        let (entries, stored_with) = table_of(cluster, dead);
        needed.tables.insert(dead);
        needed.tables.extend(stored_with);
        for (index, owner, base) in entries {
            if owner == dead && base.0 != 0 && kept.contains(&index) {
                seen.remove(&base);
                needed.objects.insert((base, index));
            }
        }
    }
    needed
}

/// Every sheep holds exactly what it should: nothing is lost, and nothing that nobody needs is left.
fn assert_exact_objects(cluster: &mut Cluster, when: &str) {
    let needed = needed(cluster);
    let mut holders: BTreeMap<Oid, BTreeSet<NodeId>> = BTreeMap::new();
    for (id, _, store) in &cluster.sheep {
        for oid in store.objects.keys() {
            holders.entry(*oid).or_default().insert(*id);
        }
    }
    let locate =
        |cluster: &mut Cluster, oid| match cluster.ask(0, ClientOp::Cluster(ClusterOp::Locate { oid })) {
            Ok(ClientReply::Nodes(nodes)) => nodes.into_iter().collect::<BTreeSet<_>>(),
            other => panic!("expected places, got {other:?}"),
        };
    for (oid, holders) in &holders {
        let wanted = match oid.kind() {
            Some(ObjectKind::Data) => needed.objects.contains(&(oid.vid(), oid.index())),
            _ => needed.tables.contains(&oid.vid()),
        };
        assert!(wanted, "{when}: nobody needs {oid}, held by {holders:?}");
        assert_eq!(*holders, locate(cluster, *oid), "{when}: copies of {oid}");
    }
    for (vid, index) in needed.complete {
        assert!(holders.contains_key(&Oid::data(vid, index)), "{when}: object {index} of {vid} is lost");
    }
}

#[test]
fn what_was_acknowledged_before_is_in_a_snapshot_and_what_comes_after_is_not() {
    for owner in 0..2 {
        let (mut cluster, _) = Cluster::with_disk(3);
        let vid = create(&mut cluster, "v");
        write(&mut cluster, owner, vid, 0, vec![1; 4096]);
        let places: Vec<u64> = TOUCHED.iter().map(|object| object * OBJECT_BYTES).collect();
        let send = |cluster: &mut Cluster, value: u8| -> Vec<RequestId> {
            let data = Bytes::from(vec![value; 8192]);
            let op = |offset| VolumeOp::Write { offset, data: data.clone() };
            let sheep = |i: usize| i % 3;
            places
                .iter()
                .enumerate()
                .map(|(i, p)| cluster.begin(sheep(i), at(vid, Point::Head, op(*p))))
                .collect()
        };
        // Writes on their way when the snapshot is asked for, and writes that come while it is taken.
        let before = send(&mut cluster, 2);
        let snap = VdiOp::Snapshot { vids: vec![vid], tag: b"t".to_vec() };
        let asked = cluster.begin(2, ClientOp::Vdi(snap));
        let after = send(&mut cluster, 3);
        cluster.run();
        cluster.wait_ms(1000);
        for id in before.into_iter().chain(after) {
            assert_eq!(cluster.answers.remove(&id), Some(Ok(ClientReply::Done)));
        }
        let head = vids(cluster.answers.remove(&asked).expect("answered"))[0];
        assert_ne!(head, vid);
        let frozen: Vec<Bytes> = places.iter().map(|p| read(&mut cluster, 1, vid, *p, 8192)).collect();
        for (place, content) in places.iter().zip(&frozen) {
            let value = content[0];
            assert!(content.iter().all(|b| *b == value), "a write is in or not");
            assert!([0, 1, 2, 3].contains(&value));
            assert_eq!(read(&mut cluster, 2, head, *place, 8192)[..], [3; 8192]);
        }
        // Through the old vid the head is reached, unless this very one is meant; that one does not change.
        write(&mut cluster, 0, vid, 0, vec![9; 4096]);
        assert_eq!(read(&mut cluster, 1, head, 0, 4096)[..], [9; 4096]);
        let op = VolumeOp::Write { offset: 0, data: vec![8; 4096].into() };
        for sheep in 0..3 {
            assert_eq!(cluster.ask(sheep, at(vid, Point::Exact, op.clone())), Err(ClientError::ReadOnly));
            let again: Vec<Bytes> = places.iter().map(|p| read(&mut cluster, sheep, vid, *p, 8192)).collect();
            assert_eq!(again, frozen);
        }
        assert_exact_objects(&mut cluster, "at the end");
    }
}

#[test]
fn the_first_write_after_a_snapshot_is_one_clone_with_its_own_data() {
    let (mut cluster, _) = Cluster::with_disk(2);
    let vid = create(&mut cluster, "v");
    for object in TOUCHED {
        write(&mut cluster, 0, vid, object * OBJECT_BYTES, vec![1; 1 << 18]);
    }
    cluster.sheep.iter_mut().for_each(|(_, _, store)| store.changes.clear());
    let head = vids(snapshot(&mut cluster, vid, "t"))[0];
    assert!(cluster.sheep.iter().all(|(_, _, store)| store.changes.is_empty()), "no data is moved");
    write(&mut cluster, 0, head, OBJECT_BYTES + 8192, vec![2; 4096]);
    for (_, _, store) in &cluster.sheep {
        let (mut data, table): (Vec<_>, Vec<_>) =
            store.changes.iter().partition(|(oid, ..)| oid.kind() == Some(ObjectKind::Data));
        let (oid, change, bytes) = data.pop().expect("a change");
        assert!(data.is_empty() && *oid == Oid::data(head, 1) && *bytes == 4096, "{change:?}");
        let Change::Write { blocks, base, .. } = change else { panic!("a write, not {change:?}") };
        assert_eq!((*blocks, *base), (BlockRange::new(2, 1), WriteBase::CloneOf(Oid::data(vid, 1))));
        let page = (Oid::inode(head), 4096);
        assert_eq!(table.iter().map(|(oid, _, bytes)| (*oid, *bytes)).collect::<Vec<_>>(), [page]);
    }
}

#[test]
fn two_vdis_are_frozen_by_one_command_and_wrong_commands_are_refused() {
    let (mut cluster, _) = Cluster::with_disk(2);
    let (a, b) = (create(&mut cluster, "a"), create(&mut cluster, "b"));
    write(&mut cluster, 0, a, 0, vec![1; 4096]);
    write(&mut cluster, 1, b, 0, vec![2; 4096]);
    let both =
        |vids: &[Vid], tag: &str| VdiOp::Snapshot { vids: vids.to_vec(), tag: tag.as_bytes().to_vec() };
    let version = cluster.sheep[0].1.view().version();
    let heads = vids(vdi_op(&mut cluster, both(&[b, a], "t")));
    assert!(cluster.sheep[0].1.view().version().0 > version.0);
    for (sheep, (old, head)) in [(b, heads[0]), (a, heads[1])].into_iter().enumerate() {
        write(&mut cluster, sheep, head, 0, vec![7; 4096]);
        let value = if old == a { 1 } else { 2 };
        assert_eq!(read(&mut cluster, sheep, old, 0, 4096)[..], [value; 4096]);
    }
    assert_eq!(vdi_op(&mut cluster, both(&[heads[0]], "t")), Err(ClientError::TagExists));
    assert_eq!(vdi_op(&mut cluster, both(&[a], "u")), Err(ClientError::ReadOnly));
    assert_eq!(vdi_op(&mut cluster, both(&[heads[0], a], "u")), Err(ClientError::ReadOnly));
    assert_eq!(vdi_op(&mut cluster, both(&[heads[0], heads[0]], "u")), Err(ClientError::InvalidParameters));
    assert_eq!(vdi_op(&mut cluster, both(&[], "u")), Err(ClientError::InvalidParameters));
    assert_eq!(vdi_op(&mut cluster, both(&[Vid(5)], "u")), Err(ClientError::NoVdi));
    let working = VdiOp::Clone { base: heads[0], name: b"c".to_vec(), size: None, policy: None };
    assert_eq!(vdi_op(&mut cluster, working), Err(ClientError::NotASnapshot));
    let back = VdiOp::Rollback { to: heads[0], force: true };
    assert_eq!(vdi_op(&mut cluster, back), Err(ClientError::NotASnapshot));
    assert_exact_objects(&mut cluster, "at the end");
}

/// Ranges called changed, as first block and number of blocks.
fn changed_blocks(cluster: &mut Cluster, vid: Vid, since: Vid, len: u64) -> Vec<(u64, u64)> {
    let mut at = 0;
    let mut changed = Vec::new();
    while at < len {
        let op = VolumeOp::Changes { since, offset: at, len: len - at };
        match cluster.ask(1, ClientOp::Volume { vid, at: Point::Exact, op }) {
            Ok(ClientReply::Changes(extents)) if !extents.is_empty() => {
                for extent in extents {
                    changed.extend(extent.changed.then_some((at / BLOCK, extent.len / BLOCK)));
                    at += extent.len;
                }
            }
            other => panic!("expected changes, got {other:?}"),
        }
    }
    changed
}

#[test]
fn changes_are_told_block_by_block() {
    let (mut cluster, _) = Cluster::with_disk(2);
    let vid = create(&mut cluster, "v");
    let size = OBJECTS * OBJECT_BYTES;
    write(&mut cluster, 0, vid, 0, vec![1; 2 * OBJECT_BYTES as usize]);
    let head = vids(snapshot(&mut cluster, vid, "s"))[0];
    assert_eq!(changed_blocks(&mut cluster, head, vid, size), []);
    write(&mut cluster, 0, head, 5 * BLOCK, vec![2; BLOCK as usize]);
    write(&mut cluster, 0, head, 5 * OBJECT_BYTES + 7 * BLOCK, vec![3; 2 * BLOCK as usize]);
    let discard = VolumeOp::Discard { offset: OBJECT_BYTES, len: OBJECT_BYTES };
    cluster.ask(0, at(head, Point::Exact, discard)).unwrap();
    let expect = [(5, 1), (256, 256), (5 * 256 + 7, 2)];
    assert_eq!(changed_blocks(&mut cluster, head, vid, size), expect);
    let next = vids(snapshot(&mut cluster, head, "t"))[0];
    assert_eq!(changed_blocks(&mut cluster, head, vid, size), expect, "of a snapshot as well");
    assert_eq!(changed_blocks(&mut cluster, next, vid, size), expect);
    assert_eq!(changed_blocks(&mut cluster, next, head, size), []);
    let copy = clone(&mut cluster, vid, "copy");
    write(&mut cluster, 0, copy, 20 * BLOCK, vec![4; BLOCK as usize]);
    assert_eq!(changed_blocks(&mut cluster, copy, vid, size), [(16, 16)], "a chunk of a clone");
}

#[test]
fn objects_of_different_sizes_are_not_set_against_each_other() {
    let (mut cluster, _) = Cluster::with_disk(2);
    let vid = create(&mut cluster, "v");
    write(&mut cluster, 0, vid, OBJECT_BYTES, vec![1; BLOCK as usize]);
    let head = vids(snapshot(&mut cluster, vid, "s"))[0];
    vdi_op(&mut cluster, VdiOp::Delete { vid: head }).unwrap();
    let create =
        VdiOp::Create { name: b"v".to_vec(), size: 1 << 26, policy: None, block_size_shift: Some(22) };
    let other = vdi(vdi_op(&mut cluster, create));
    assert_eq!(changed_blocks(&mut cluster, other, vid, 1 << 26), [(0, (1 << 26) / BLOCK)]);
}

#[test]
fn saved_state_of_a_machine_stays_with_its_snapshot_and_goes_with_it() {
    let (mut cluster, disk) = Cluster::with_disk(3);
    vdi_op(&mut cluster, VdiOp::Delete { vid: disk }).unwrap();
    let vid = create(&mut cluster, "v");
    let save = |vid, index| ClientOp::Object {
        oid: Oid::vmstate(vid, index),
        op: NativeOp::Create { offset: 0, cow_from: None, data: vec![9; 5000].into() },
    };
    let load =
        |vid| ClientOp::Object { oid: Oid::vmstate(vid, 1), op: NativeOp::Read { offset: 0, len: 5000 } };
    (0..2).for_each(|index| assert_eq!(cluster.ask(0, save(vid, index)), Ok(ClientReply::Done)));
    let head = vids(snapshot(&mut cluster, vid, "s"))[0];
    // Of a snapshot that was never completed.
    assert_eq!(cluster.ask(1, save(head, 0)), Ok(ClientReply::Done));
    assert_eq!(cluster.data(1, load(vid))[..], [9; 5000]);
    vdi_op(&mut cluster, VdiOp::Rollback { to: vid, force: true }).unwrap();
    cluster.wait_ms(700);
    let states = |cluster: &Cluster| {
        let all = cluster.sheep.iter().flat_map(|(_, _, store)| store.objects.keys());
        all.filter(|oid| oid.kind() == Some(ObjectKind::VmState))
            .map(|oid| oid.vid())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(states(&cluster), BTreeSet::from([vid]), "what the old head had is gone");
    assert_eq!(cluster.data(0, load(vid))[..], [9; 5000]);
    vdi_op(&mut cluster, VdiOp::Delete { vid }).unwrap();
    cluster.wait_ms(700);
    assert_eq!(states(&cluster), BTreeSet::new());
}

#[test]
fn a_clone_may_be_larger_than_its_base_and_not_smaller() {
    let (mut cluster, _) = Cluster::with_disk(2);
    let vid = create(&mut cluster, "v");
    write(&mut cluster, 0, vid, OBJECTS * OBJECT_BYTES - BLOCK, vec![7; BLOCK as usize]);
    snapshot(&mut cluster, vid, "s").unwrap();
    let size = OBJECTS * OBJECT_BYTES;
    let clone_of = |name: &str, size| VdiOp::Clone {
        base: vid,
        name: name.as_bytes().to_vec(),
        size: Some(size),
        policy: None,
    };
    assert_eq!(vdi_op(&mut cluster, clone_of("smaller", size - BLOCK)), Err(ClientError::InvalidParameters));
    let larger = vdi(vdi_op(&mut cluster, clone_of("larger", size + OBJECT_BYTES)));
    assert_eq!(read(&mut cluster, 1, larger, size - BLOCK, BLOCK)[..], [7; BLOCK_BYTES]);
    assert_eq!(read(&mut cluster, 1, larger, size, OBJECT_BYTES)[..], vec![0; OBJECT_BYTES as usize]);
    write(&mut cluster, 0, larger, size + OBJECT_BYTES - BLOCK, vec![8; BLOCK as usize]);
    assert_eq!(read(&mut cluster, 1, larger, size + OBJECT_BYTES - BLOCK, BLOCK)[..], [8; BLOCK_BYTES]);
    let beyond = VolumeOp::Read { offset: size, len: 1 };
    assert_eq!(cluster.ask(0, at(vid, Point::Exact, beyond)), Err(ClientError::OutOfRange));
}

#[test]
fn a_snapshot_says_what_describe_said_and_attributes_live_as_long_as_their_name() {
    let (mut cluster, _) = Cluster::with_disk(2);
    let vid = create(&mut cluster, "v");
    let describe = |vid, tag: &[u8], size| VdiOp::Describe {
        vid,
        tag: tag.to_vec(),
        vm_state_size: size,
        vm_clock_nsec: 5,
    };
    vdi_op(&mut cluster, describe(vid, b"said", 77)).unwrap();
    let head = vids(snapshot(&mut cluster, vid, ""))[0];
    let look = |cluster: &mut Cluster, tag: &[u8]| {
        vdi_op(cluster, VdiOp::Lookup { name: b"v".to_vec(), selector: Selector::Tag(tag.to_vec()) })
    };
    let Ok(ClientReply::Vdi(info)) = look(&mut cluster, b"said") else { panic!("no snapshot") };
    assert_eq!((info.vid, info.vm_state_size, info.vm_clock_nsec, info.snap_id), (vid, 77, 5, 1));
    assert!(info.snap_ctime != 0);
    let Some(now) = cluster.sheep[0].1.view().vdi_info(head) else { panic!("no head") };
    assert_eq!((now.parent, now.snap_ctime, now.tag, now.vm_state_size), (vid, 0, Vec::new(), 0));
    vdi_op(&mut cluster, describe(vid, b"renamed", 78)).unwrap();
    assert_eq!(look(&mut cluster, b"said"), Err(ClientError::NoTag));
    assert_eq!(vdi(look(&mut cluster, b"renamed")), vid);

    let attribute = |op| VdiOp::Attribute { name: b"v".to_vec(), key: b"k".to_vec(), op };
    let set = |value: &[u8], exclusive| attribute(AttributeOp::Set { value: value.to_vec(), exclusive });
    let get = || attribute(AttributeOp::Get);
    assert_eq!(vdi_op(&mut cluster, get()), Err(ClientError::NoAttribute));
    assert_eq!(vdi_op(&mut cluster, set(b"1", true)), Ok(ClientReply::Done));
    assert_eq!(vdi_op(&mut cluster, set(b"2", true)), Err(ClientError::AttributeExists));
    assert_eq!(vdi_op(&mut cluster, set(b"2", false)), Ok(ClientReply::Done));
    assert_eq!(vdi_op(&mut cluster, get()), Ok(ClientReply::Attribute(b"2".to_vec())));
    vdi_op(&mut cluster, VdiOp::Delete { vid: head }).unwrap();
    assert_eq!(vdi_op(&mut cluster, get()), Ok(ClientReply::Attribute(b"2".to_vec())));
    vdi_op(&mut cluster, VdiOp::Delete { vid }).unwrap();
    assert_eq!(vdi_op(&mut cluster, get()), Err(ClientError::NoVdi));
    create(&mut cluster, "v");
    assert_eq!(vdi_op(&mut cluster, get()), Err(ClientError::NoAttribute));
    assert_eq!(vdi_op(&mut cluster, attribute(AttributeOp::Delete)), Err(ClientError::NoAttribute));
}

#[test]
fn rollback_waits_for_no_client_unless_forced() {
    let (mut cluster, _) = Cluster::with_disk(2);
    let vid = create(&mut cluster, "v");
    write(&mut cluster, 1, vid, 0, vec![1; 8192]);
    let head = vids(snapshot(&mut cluster, vid, "t"))[0];
    write(&mut cluster, 1, head, 4096, vec![2; 8192]);
    cluster.ask(1, ClientOp::Vdi(VdiOp::Open { vid: head })).unwrap();
    let owner = cluster.sheep[1].0;
    let back = |force| VdiOp::Rollback { to: vid, force };
    assert_eq!(vdi_op(&mut cluster, back(false)), Err(ClientError::InUse(owner)));
    cluster.ask(1, ClientOp::Vdi(VdiOp::Close { vid: head })).unwrap();
    let second = vdi(vdi_op(&mut cluster, back(false)));
    write(&mut cluster, 1, second, 0, vec![3; 4096]);
    cluster.ask(1, ClientOp::Vdi(VdiOp::Open { vid: second })).unwrap();
    let third = vdi(vdi_op(&mut cluster, back(true)));
    for sheep in 0..2 {
        assert_eq!(read(&mut cluster, sheep, third, 0, 12288)[..], [&[1; 8192][..], &[0; 4096]].concat());
        let gone = at(second, Point::Head, VolumeOp::Read { offset: 0, len: 1 });
        assert_eq!(cluster.ask(sheep, gone), Err(ClientError::NoVdi));
    }
    // Without a working VDI one is made.
    vdi_op(&mut cluster, VdiOp::Delete { vid: third }).unwrap();
    let fourth = vdi(vdi_op(&mut cluster, back(false)));
    assert_eq!(read(&mut cluster, 0, fourth, 0, 8192)[..], [1; 8192]);
    cluster.wait_ms(2000);
    assert_exact_objects(&mut cluster, "at the end");
}

#[test]
fn a_table_that_found_no_space_is_written_when_there_is_some() {
    for cloned in [false, true] {
        let (mut cluster, _) = Cluster::with_disk(2);
        let vid = create(&mut cluster, "v");
        for object in TOUCHED {
            write(&mut cluster, 0, vid, object * OBJECT_BYTES, vec![1; 8192]);
        }
        let head = vids(snapshot(&mut cluster, vid, "t"))[0];
        let vdi = if cloned { clone(&mut cluster, vid, "c") } else { head };
        let be_full = |cluster: &mut Cluster, is_full| {
            cluster.sheep.iter_mut().for_each(|(_, _, store)| store.is_full = is_full);
        };
        let send = |cluster: &mut Cluster, value: u8| -> Vec<RequestId> {
            let op = |offset| VolumeOp::Write { offset, data: vec![value; 4096].into() };
            let place = |object| at(vdi, Point::Head, op(object * OBJECT_BYTES));
            TOUCHED.iter().map(|object| cluster.begin(1, place(*object))).collect()
        };
        // Several of them wait for one page of the table.
        be_full(&mut cluster, true);
        let refused = send(&mut cluster, 2);
        cluster.wait_ms(300);
        for id in refused {
            assert_eq!(cluster.answers.remove(&id), Some(Err(ClientError::NoSpace)));
        }
        for object in TOUCHED {
            let found = read(&mut cluster, 0, vdi, object * OBJECT_BYTES, 8192);
            assert!(found[..] == [1; 8192], "object {object} of {vdi}: {} ..", found[0]);
        }
        be_full(&mut cluster, false);
        write(&mut cluster, 0, vdi, 0, vec![3; 4096]);
        // What is not in the table on the disks is brought there before the table is frozen.
        let next = vids(snapshot(&mut cluster, vdi, "u"))[0];
        for vdi in [vdi, next] {
            for object in TOUCHED {
                let expected = [vec![if object == 0 { 3 } else { 1 }; 4096], vec![1; 4096]].concat();
                let found = read(&mut cluster, 0, vdi, object * OBJECT_BYTES, 8192);
                assert!(found == expected, "object {object} of {vdi}: {} ..", found[0]);
            }
        }
        cluster.wait_ms(1000);
        assert_exact_objects(&mut cluster, "at the end");
    }
}

#[test]
fn an_old_client_copies_an_inherited_object_as_it_found_it_in_its_table() {
    let (mut cluster, _) = Cluster::with_disk(2);
    let vid = create(&mut cluster, "v");
    write(&mut cluster, 0, vid, 0, vec![1; OBJECT_BYTES as usize]);
    let head = vids(snapshot(&mut cluster, vid, "t"))[0];
    let other = clone(&mut cluster, vid, "c");
    for vdi in [head, other] {
        let create = |from: Vid, value: u8| ClientOp::Object {
            oid: Oid::data(vdi, 0),
            op: NativeOp::Create {
                offset: 4000,
                cow_from: Some(Oid::data(from, 0)),
                data: vec![value; 200].into(),
            },
        };
        // Sent again after a lost answer, it starts from the same copy.
        for value in [2, 3] {
            cluster.ask(1, create(vid, value)).unwrap();
            let mut expected = vec![1; OBJECT_BYTES as usize];
            expected[4000..4200].fill(value);
            assert!(read(&mut cluster, 0, vdi, 0, OBJECT_BYTES) == expected, "{vdi} after {value}");
        }
        assert!(read(&mut cluster, 0, vid, 0, OBJECT_BYTES).iter().all(|b| *b == 1));
    }
    assert_exact_objects(&mut cluster, "at the end");
}

/// Contents that are not zeros, by block.
type Model = BTreeMap<u64, Vec<u8>>;

/// A small tree of VDIs, what each of them holds, and luck.
struct Forest {
    cluster: Cluster,
    models: BTreeMap<Vid, Model>,
    snapshots: BTreeSet<Vid>,
    /// Ancestors of which `Changes` may be asked.
    parents: BTreeMap<Vid, Vid>,
    luck: u64,
    steps: u64,
}

impl Forest {
    fn new(seed: u64) -> Forest {
        let (cluster, disk) = Cluster::with_disk(3);
        let mut forest = Forest {
            cluster,
            models: BTreeMap::new(),
            snapshots: BTreeSet::new(),
            parents: BTreeMap::new(),
            luck: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            steps: 0,
        };
        vdi_op(&mut forest.cluster, VdiOp::Delete { vid: disk }).unwrap();
        let vid = create(&mut forest.cluster, "root");
        forest.models.insert(vid, Model::new());
        forest
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.luck ^= self.luck << 13;
        self.luck ^= self.luck >> 7;
        self.luck ^= self.luck << 17;
        (self.luck >> 11) % bound
    }

    fn pick(&mut self, frozen: bool) -> Option<Vid> {
        let vids: Vec<Vid> =
            self.models.keys().copied().filter(|v| self.snapshots.contains(v) == frozen).collect();
        (!vids.is_empty()).then(|| vids[self.below(vids.len() as u64) as usize])
    }

    fn draw_range(&mut self) -> (u64, u64) {
        let object = TOUCHED[self.below(TOUCHED.len() as u64) as usize];
        let within = match self.below(4) {
            0 => self.below(OBJECT_BYTES),
            1 => self.below(OBJECT_BYTES / BLOCK) * BLOCK,
            // Around the first chunks' ends.
            _ => self.below(3 * 65536),
        };
        let len = match self.below(6) {
            0 => self.below(100) + 1,
            1 => BLOCK,
            2 => self.below(65536 * 3) + 1,
            3 => 65536,
            4 => self.below(16384) + 1,
            _ => return (object * OBJECT_BYTES, OBJECT_BYTES),
        };
        let offset = object * OBJECT_BYTES + within;
        (
            offset,
            len.min(OBJECTS * OBJECT_BYTES - offset).min(if object == 1 {
                OBJECT_BYTES - within
            } else {
                len
            }),
        )
    }

    fn fill(&mut self, vid: Vid, offset: u64, len: u64, value: u8) {
        let model = self.models.get_mut(&vid).expect("a VDI of the forest");
        for block in offset / BLOCK..(offset + len).div_ceil(BLOCK) {
            let bytes = model.entry(block).or_insert_with(|| vec![0; BLOCK_BYTES]);
            let from = offset.saturating_sub(block * BLOCK) as usize;
            let to = (offset + len - block * BLOCK).min(BLOCK) as usize;
            bytes[from..to].fill(value);
        }
    }

    fn step(&mut self) {
        self.steps += 1;
        let sheep = self.below(3) as usize;
        let name = format!("c{}", self.steps);
        match self.below(20) {
            0..=7 => {
                let (Some(vid), (offset, len)) = (self.pick(false), self.draw_range()) else { return };
                let value = self.below(255) as u8 + 1;
                write(&mut self.cluster, sheep, vid, offset, vec![value; len as usize]);
                self.fill(vid, offset, len, value);
            }
            8..=10 => {
                let (Some(vid), (offset, len)) = (self.pick(false), self.draw_range()) else { return };
                let op = match self.below(3) {
                    0 => VolumeOp::WriteZeroes { offset, len, keep_allocated: true },
                    1 => VolumeOp::WriteZeroes { offset, len, keep_allocated: false },
                    _ => VolumeOp::Discard { offset, len },
                };
                assert_eq!(self.cluster.ask(sheep, at(vid, Point::Head, op)), Ok(ClientReply::Done));
                self.fill(vid, offset, len, 0);
            }
            11..=13 if self.models.len() < 12 => {
                let Some(vid) = self.pick(false) else { return };
                let head = vids(snapshot(&mut self.cluster, vid, &name))[0];
                self.snapshots.insert(vid);
                self.models.insert(head, self.models[&vid].clone());
                self.parents.insert(head, vid);
            }
            14..=15 if self.models.len() < 12 => {
                let Some(base) = self.pick(true) else { return };
                let made = clone(&mut self.cluster, base, &name);
                self.models.insert(made, self.models[&base].clone());
                self.parents.insert(made, base);
            }
            16 => {
                let Some(to) = self.pick(true) else { return };
                let view = self.cluster.sheep[0].1.view();
                let old = view.working_vdi(&view.vdi(to).expect("it is there").name.clone());
                let new = vdi(vdi_op(&mut self.cluster, VdiOp::Rollback { to, force: true }));
                old.map(|old| self.models.remove(&old));
                self.models.insert(new, self.models[&to].clone());
                self.parents.insert(new, to);
            }
            17..=18 => {
                let frozen = self.below(2) == 0;
                let Some(vid) = self.pick(frozen).filter(|_| self.models.len() > 1) else { return };
                let result = self.cluster.ask(sheep, ClientOp::Vdi(VdiOp::Delete { vid }));
                assert_eq!(result, Ok(ClientReply::Done));
                self.models.remove(&vid);
                self.snapshots.remove(&vid);
            }
            _ => self.cluster.wait_ms(700),
        }
    }

    fn verify(&mut self, seed: u64) {
        let when = format!("seed {seed}, step {}", self.steps);
        let sheep = self.below(3) as usize;
        for (vid, model) in &self.models {
            for object in TOUCHED {
                let content = read(&mut self.cluster, sheep, *vid, object * OBJECT_BYTES, OBJECT_BYTES);
                for (block, bytes) in (object * OBJECT_BYTES / BLOCK..).zip(content.chunks(BLOCK_BYTES)) {
                    let same = model.get(&block).map_or(bytes.iter().all(|b| *b == 0), |m| m == bytes);
                    assert!(same, "{when}: block {block} of {vid} holds {} ..", bytes[0]);
                }
            }
        }
        self.cluster.wait_ms(700);
        assert_exact_objects(&mut self.cluster, &when);
    }

    /// What is not called changed is the same; and not everything is called changed.
    fn compare(&mut self, seed: u64) -> (u64, u64) {
        let pairs: Vec<(Vid, Vid)> =
            self.models.keys().flat_map(|a| self.models.keys().map(|b| (*a, *b))).collect();
        let mut counts = (0, 0);
        for (vid, since) in pairs {
            let mut offset = 0;
            while offset < OBJECTS * OBJECT_BYTES {
                let op = VolumeOp::Changes { since, offset, len: OBJECTS * OBJECT_BYTES - offset };
                let extents = match self.cluster.ask(1, at(vid, Point::Exact, op)) {
                    Ok(ClientReply::Changes(extents)) => extents,
                    other => panic!("expected changes, got {other:?}"),
                };
                for ChangedExtent { len, changed } in extents {
                    let blocks = offset / BLOCK..(offset + len) / BLOCK;
                    offset += len;
                    counts = if changed { (counts.0 + 1, counts.1) } else { (counts.0, counts.1 + 1) };
                    if changed {
                        continue;
                    }
                    let part = |vid: &Vid| -> Vec<(u64, Vec<u8>)> {
                        let model = self.models[vid].range(blocks.clone());
                        model
                            .filter(|(_, m)| m.iter().any(|b| *b != 0))
                            .map(|(b, m)| (*b, m.clone()))
                            .collect()
                    };
                    assert!(part(&vid) == part(&since), "seed {seed}: {vid} since {since} at {blocks:?}");
                }
            }
        }
        counts
    }
}

#[test]
fn every_vdi_of_a_tree_holds_what_its_model_says_and_no_object_is_left_over() {
    let (mut changed, mut unchanged) = (0, 0);
    for seed in 1..=SEEDS {
        let mut forest = Forest::new(seed);
        for _ in 0..4 {
            for _ in 0..18 {
                forest.step();
            }
            forest.verify(seed);
        }
        let counts = forest.compare(seed);
        (changed, unchanged) = (changed + counts.0, unchanged + counts.1);
    }
    assert!(changed > SEEDS && unchanged > SEEDS, "{changed} and {unchanged}");
}

const SEEDS: u64 = 12;

/// Of each VDI of the small tree: bytes of the first object, and of the second.
type TwoObjects = [Vec<u8>; 2];
const FIRST_BYTES: usize = 2 << 16;

/// A snapshot, its successor, a clone of it, a snapshot of that clone and a clone of this one.
fn small_tree() -> (Cluster, Vec<(Vid, TwoObjects)>) {
    let (mut cluster, disk) = Cluster::with_disk(2);
    vdi_op(&mut cluster, VdiOp::Delete { vid: disk }).unwrap();
    let s = create(&mut cluster, "v");
    write(&mut cluster, 0, s, 0, vec![1; FIRST_BYTES]);
    write(&mut cluster, 0, s, OBJECT_BYTES, vec![1; 4096]);
    let h = vids(snapshot(&mut cluster, s, "t"))[0];
    write(&mut cluster, 0, h, 4096, vec![2; 4096]);
    let c = clone(&mut cluster, s, "c");
    write(&mut cluster, 1, c, 65536, vec![3; 4096]);
    let d = vids(snapshot(&mut cluster, c, "t"))[0];
    write(&mut cluster, 1, d, 8192, vec![4; 100]);
    let e = clone(&mut cluster, c, "e");
    write(&mut cluster, 0, e, 100, vec![5; 100]);
    let part = |from: usize, to: usize, value: u8, content: &TwoObjects| {
        let mut content = content.clone();
        content[0][from..to].fill(value);
        content
    };
    let of_s = [vec![1; FIRST_BYTES], vec![1; 4096]];
    let of_c = part(65536, 69632, 3, &of_s);
    let contents = vec![
        (h, part(4096, 8192, 2, &of_s)),
        (d, part(8192, 8292, 4, &of_c)),
        (e, part(100, 200, 5, &of_c)),
        (c, of_c),
        (s, of_s),
    ];
    (cluster, contents)
}

#[test]
fn a_tree_is_deleted_in_any_order_and_each_time_just_what_nobody_needs_goes() {
    let mut orders = vec![Vec::new()];
    for n in 0..5 {
        let longer = |order: &Vec<usize>| -> Vec<Vec<usize>> {
            (0..=order.len()).map(|at| [&order[..at], &[n], &order[at..]].concat()).collect()
        };
        orders = orders.iter().flat_map(longer).collect();
    }
    assert_eq!(orders.len(), 120);
    for order in orders {
        let (mut cluster, contents) = small_tree();
        let mut left: Vec<usize> = (0..5).collect();
        for n in &order {
            let vid = contents[*n].0;
            assert_eq!(cluster.ask(n % 2, ClientOp::Vdi(VdiOp::Delete { vid })), Ok(ClientReply::Done));
            // Before the answer, not some time after it.
            let when = format!("order {order:?} after {n}");
            assert_exact_objects(&mut cluster, &when);
            left.retain(|m| m != n);
            for (vid, content) in left.iter().map(|m| &contents[*m]) {
                for (offset, bytes) in [(0, &content[0]), (OBJECT_BYTES, &content[1])] {
                    let found = read(&mut cluster, 1, *vid, offset, bytes.len() as u64);
                    assert!(found == bytes, "{when}: {vid} at {offset}");
                }
            }
        }
        assert!(cluster.sheep.iter().all(|(_, _, store)| store.objects.is_empty()), "order {order:?}");
    }
}

#[test]
fn a_table_page_of_a_deleted_vdi_goes_when_the_last_one_that_read_it_has_its_own() {
    for cloned in [false, true] {
        let (mut cluster, _) = Cluster::with_disk(2);
        let vid = create(&mut cluster, "v");
        // A page of the table that names nothing.
        write(&mut cluster, 0, vid, 0, vec![1; 4096]);
        let all = VolumeOp::Discard { offset: 0, len: OBJECT_BYTES };
        cluster.ask(0, at(vid, Point::Head, all)).unwrap();
        let head = vids(snapshot(&mut cluster, vid, "t"))[0];
        let reader = if cloned {
            let made = clone(&mut cluster, vid, "c");
            vdi_op(&mut cluster, VdiOp::Delete { vid: head }).unwrap();
            made
        } else {
            head
        };
        assert_eq!(read(&mut cluster, 1, reader, 0, 4096)[..], [0; 4096]);
        vdi_op(&mut cluster, VdiOp::Delete { vid }).unwrap();
        // Whatever the deletion itself has set going is over.
        cluster.wait_ms(1500);
        assert_exact_objects(&mut cluster, "while the page is needed");
        assert!(cluster.sheep[0].2.objects.contains_key(&Oid::inode(vid)));
        write(&mut cluster, 1, reader, 5 * OBJECT_BYTES, vec![2; 4096]);
        cluster.wait_ms(1500);
        assert_exact_objects(&mut cluster, "when it is not needed any more");
        assert_eq!(read(&mut cluster, 0, reader, 5 * OBJECT_BYTES, 4096)[..], [2; 4096]);
    }
}

#[test]
fn what_becomes_free_while_tables_are_read_is_reclaimed_as_well() {
    let (mut cluster, _) = Cluster::with_disk(2);
    let vid = create(&mut cluster, "v");
    write(&mut cluster, 0, vid, 0, vec![1; 4096]);
    let head = vids(snapshot(&mut cluster, vid, "t"))[0];
    write(&mut cluster, 0, head, OBJECT_BYTES, vec![2; 4096]);
    // The other sheep owns it, and its table is asked for there.
    let copy = clone(&mut cluster, vid, "c");
    let all = VolumeOp::Discard { offset: 0, len: OBJECT_BYTES };
    cluster.ask(1, at(copy, Point::Head, all.clone())).unwrap();
    cluster.delays = Some(Box::new(move |_, message| {
        matches!(message, PeerMessage::Request { body: PeerRequest::Forward { op, .. }, .. }
            if matches!(op, ClientOp::Vdi(VdiOp::Table { vid, .. }) if *vid == copy))
    }));
    let deletion = cluster.begin(0, ClientOp::Vdi(VdiOp::Delete { vid }));
    cluster.run();
    assert!(!cluster.delayed.is_empty(), "it waits for one table, and has read the other");
    cluster.ask(0, at(head, Point::Head, all)).unwrap();
    cluster.wait_ms(2000);
    assert!(!cluster.answers.contains_key(&deletion));
    cluster.deliver_delayed();
    assert_eq!(cluster.answers.remove(&deletion), Some(Ok(ClientReply::Done)));
    cluster.wait_ms(2000);
    assert_exact_objects(&mut cluster, "when nothing refers to the object any more");
    assert_eq!(read(&mut cluster, 1, head, OBJECT_BYTES, 4096)[..], [2; 4096]);
}

#[test]
fn what_an_owner_has_let_go_of_and_did_not_live_to_tell_is_reclaimed() {
    // Sheep 0 owns the VDI and stores nothing.
    let (mut cluster, vid) = Cluster::with_gateway();
    write(&mut cluster, 0, vid, 0, vec![1; 4096]);
    let head = vids(snapshot(&mut cluster, vid, "t"))[0];
    write(&mut cluster, 0, head, OBJECT_BYTES, vec![2; 4096]);
    // It never hears that the table is on all copies.
    let owner = id_of(0);
    let writes_of_table = RefCell::new(BTreeSet::new());
    cluster.delays = Some(Box::new(move |to, message| match message {
        PeerMessage::Request { id, body: PeerRequest::Change { oid, .. }, .. } => {
            if *oid == Oid::inode(head) {
                writes_of_table.borrow_mut().insert(*id);
            }
            false
        }
        PeerMessage::Reply { id, .. } => to == owner && writes_of_table.borrow().contains(id),
        _ => false,
    }));
    cluster.begin(0, at(head, Point::Head, VolumeOp::Discard { offset: 0, len: OBJECT_BYTES }));
    cluster.run();
    assert_eq!(cluster.delayed.len(), 3);
    assert_eq!(cluster.ask(1, ClientOp::Vdi(VdiOp::Delete { vid })), Ok(ClientReply::Done));
    cluster.wait_ms(1000);
    let holders = |cluster: &Cluster| {
        cluster.sheep.iter().filter(|(_, _, store)| store.objects.contains_key(&Oid::data(vid, 0))).count()
    };
    assert_eq!(holders(&cluster), 3, "the change may not survive");
    // Cut off, it loses the session, and stays a member.
    let others: Vec<NodeId> = (1..4).map(id_of).collect();
    cluster.cut_links.extend(others.iter().flat_map(|other| [(owner, *other), (*other, owner)]));
    let op = VolumeOp::Read { offset: 0, len: 4096 };
    let request = cluster.begin(1, at(head, Point::Head, op));
    cluster.wait_ms(4500);
    let zeros = Bytes::from(vec![0; 4096]);
    assert_eq!(cluster.answers.remove(&request), Some(Ok(ClientReply::Data(zeros))));
    cluster.delays = None;
    cluster.delayed.clear();
    cluster.cut_links.clear();
    cluster.wait_ms(5000);
    assert_eq!(holders(&cluster), 0);
    assert_exact_objects(&mut cluster, "after the session was taken");
}

#[test]
fn a_vdi_grows_whatever_snapshots_were_taken_of_it() {
    let (mut cluster, _) = Cluster::with_disk(2);
    let vid = create(&mut cluster, "v");
    let first = vids(snapshot(&mut cluster, vid, "t"))[0];
    let grow = |cluster: &mut Cluster, point, objects: u64| {
        cluster.ask(1, at(vid, point, VolumeOp::Resize { size: objects * OBJECT_BYTES }))
    };
    assert_eq!(grow(&mut cluster, Point::Head, OBJECTS + 1), Ok(ClientReply::Done));
    assert_eq!(grow(&mut cluster, Point::Exact, OBJECTS + 2), Err(ClientError::ReadOnly));
    // Frozen once more while the order is on its way.
    let snap = VdiOp::Snapshot { vids: vec![first], tag: b"u".to_vec() };
    let asked = cluster.begin(0, ClientOp::Vdi(snap));
    let size = (OBJECTS + 3) * OBJECT_BYTES;
    let grown = cluster.begin(1, at(vid, Point::Head, VolumeOp::Resize { size }));
    cluster.run();
    assert_eq!(cluster.answers.remove(&grown), Some(Ok(ClientReply::Done)));
    let head = vids(cluster.answers.remove(&asked).expect("answered"))[0];
    let view = cluster.sheep[0].1.view();
    let sizes = [vid, first, head].map(|vid| view.vdi(vid).expect("alive").size / OBJECT_BYTES);
    assert_eq!(sizes, [OBJECTS, OBJECTS + 1, OBJECTS + 3]);
}

#[test]
fn a_snapshot_that_is_deleted_while_it_is_read_gives_no_zeros() {
    let (mut cluster, _) = Cluster::with_disk(3);
    let vid = create(&mut cluster, "v");
    write(&mut cluster, 0, vid, 0, vec![1; OBJECT_BYTES as usize * 2]);
    let head = vids(snapshot(&mut cluster, vid, "t"))[0];
    vdi_op(&mut cluster, VdiOp::Delete { vid: head }).unwrap();
    let op = |object: u64| VolumeOp::Read { offset: object * OBJECT_BYTES, len: 4096 };
    let reads: Vec<RequestId> =
        (0..6).map(|i| cluster.begin(i % 3, at(vid, Point::Exact, op(i as u64 / 3)))).collect();
    cluster.begin(1, ClientOp::Vdi(VdiOp::Delete { vid }));
    cluster.run();
    for id in reads {
        match cluster.answers.remove(&id) {
            Some(Ok(ClientReply::Data(data))) => assert!(data.iter().all(|b| *b == 1)),
            other => assert_eq!(other, Some(Err(ClientError::NoVdi))),
        }
    }
}

#[test]
fn a_copy_that_takes_the_place_leaves_nothing_of_what_was_there() {
    let (mut cluster, _) = Cluster::with_disk(3);
    let old = create(&mut cluster, "v");
    for object in TOUCHED {
        write(&mut cluster, 1, old, object * OBJECT_BYTES, vec![object as u8 ^ 0x5a; 8192]);
    }
    // The idle session is given back.
    vdi_op(&mut cluster, VdiOp::Open { vid: old }).unwrap();
    cluster.ask(1, ClientOp::Vdi(VdiOp::Open { vid: old })).unwrap();
    cluster.ask(1, ClientOp::Vdi(VdiOp::Close { vid: old })).unwrap();
    vdi_op(&mut cluster, VdiOp::Close { vid: old }).unwrap();
    cluster.wait_ms(3000);
    let head = vids(snapshot(&mut cluster, old, "t"))[0];
    let policy = Some(CopyPolicy::Replicated { copies: 1 });
    let size = OBJECTS * OBJECT_BYTES;
    let create = VdiOp::Create { name: b"copy".to_vec(), size, policy, block_size_shift: None };
    let new = vdi(vdi_op(&mut cluster, create));
    for object in TOUCHED {
        let data = read(&mut cluster, 0, old, object * OBJECT_BYTES, 8192);
        write(&mut cluster, 0, new, object * OBJECT_BYTES, data.to_vec());
    }
    let open = VdiOp::TakePlace { old: new, new: head };
    assert!(vdi_op(&mut cluster, open).is_err());
    assert_eq!(vdi(vdi_op(&mut cluster, VdiOp::TakePlace { old: head, new })), new);
    cluster.wait_ms(3000);
    let lookup = VdiOp::Lookup { name: b"v".to_vec(), selector: Selector::Working };
    assert_eq!(vdi(vdi_op(&mut cluster, lookup)), new);
    for object in TOUCHED {
        let data = read(&mut cluster, 2, new, object * OBJECT_BYTES, 8192);
        assert!(data.iter().all(|byte| *byte == object as u8 ^ 0x5a), "object {object}");
    }
    assert!(cluster.ask(0, at(old, Point::Exact, VolumeOp::Read { offset: 0, len: 1 })).is_err());
    assert_exact_objects(&mut cluster, "after the copy took the place");
}
