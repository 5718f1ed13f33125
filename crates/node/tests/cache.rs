//! Blocks of snapshots are kept in memory, and of nothing else.

#[allow(dead_code)]
#[path = "native/cluster.rs"]
mod cluster;

use cluster::Cluster;
use proto::client::*;
use proto::cluster::Action;
use proto::{BLOCK_BYTES, Oid, Vid};

fn volume(vid: Vid, op: VolumeOp) -> ClientOp {
    ClientOp::Volume { vid, at: Point::Exact, op }
}

fn write(cluster: &mut Cluster, vid: Vid, offset: u64, fill: u8) {
    let op = VolumeOp::Write { offset, data: vec![fill; BLOCK_BYTES].into() };
    assert_eq!(cluster.ask(0, volume(vid, op)), Ok(ClientReply::Done));
}

fn read(cluster: &mut Cluster, vid: Vid, offset: u64) -> u8 {
    let data = cluster.data(0, volume(vid, VolumeOp::Read { offset, len: BLOCK_BYTES as u32 }));
    assert!(data.iter().all(|byte| *byte == data[0]), "torn");
    data[0]
}

fn vdi(cluster: &mut Cluster, op: VdiOp) -> Vid {
    match cluster.ask(0, ClientOp::Vdi(op)) {
        Ok(ClientReply::Vdi(info)) => info.vid,
        other => panic!("expected a vid, got {other:?}"),
    }
}

fn hits(cluster: &Cluster) -> u64 {
    cluster.sheep[0].1.cache_use().hits
}

/// Block 0 of "disk" is 1 in its snapshot; a clone of that, and the head.
fn snapshot_and_clone() -> (Cluster, Vid, Vid, Vid) {
    let (mut cluster, snapshot) = Cluster::with_gateway();
    write(&mut cluster, snapshot, 0, 1);
    cluster.ask(0, ClientOp::Vdi(VdiOp::Snapshot { vids: vec![snapshot], tag: b"s".to_vec() })).unwrap();
    let head = cluster.sheep[0].1.view().head_of(snapshot);
    let clone =
        vdi(&mut cluster, VdiOp::Clone { base: snapshot, name: b"clone".to_vec(), size: None, policy: None });
    (cluster, snapshot, head, clone)
}

#[test]
fn clones_read_what_one_of_them_has_read() {
    let (mut cluster, snapshot, head, clone) = snapshot_and_clone();
    assert_eq!((read(&mut cluster, clone, 0), hits(&cluster)), (1, 0));
    assert_eq!((read(&mut cluster, clone, 0), hits(&cluster)), (1, 1));
    assert_eq!((read(&mut cluster, head, 0), hits(&cluster)), (1, 2));
    assert_eq!((read(&mut cluster, snapshot, 0), hits(&cluster)), (1, 3));
}

#[test]
fn what_is_written_to_a_clone_or_the_head_is_read_there() {
    let (mut cluster, snapshot, head, clone) = snapshot_and_clone();
    assert_eq!(read(&mut cluster, clone, 0), 1);
    for fill in 2..4 {
        write(&mut cluster, clone, 0, fill);
        assert_eq!(read(&mut cluster, clone, 0), fill);
        write(&mut cluster, head, 0, fill + 10);
        assert_eq!(read(&mut cluster, head, 0), fill + 10);
    }
    assert_eq!(hits(&cluster), 0, "these are blocks of working VDIs");
    assert_eq!((read(&mut cluster, snapshot, 0), hits(&cluster)), (1, 1));
}

#[test]
fn a_recovery_by_force_ends_what_was_known_of_snapshots() {
    let (mut cluster, snapshot, _, clone) = snapshot_and_clone();
    assert_eq!(read(&mut cluster, clone, 0), 1);
    // An older copy is all that is left.
    for (_, _, store) in &mut cluster.sheep {
        if let Some(object) = store.objects.get_mut(&Oid::data(snapshot, 0)) {
            object.insert(0, vec![0; BLOCK_BYTES].into());
        }
    }
    assert_eq!(read(&mut cluster, clone, 0), 1);
    let first = cluster.sheep[0].0;
    cluster.propose_as(first, Action::ForceRecovery);
    assert_eq!(read(&mut cluster, clone, 0), 0);
}

#[test]
fn long_reads_leave_it_alone() {
    let (mut cluster, snapshot, ..) = snapshot_and_clone();
    for _ in 0..2 {
        let op = VolumeOp::Read { offset: 0, len: 128 * BLOCK_BYTES as u32 };
        let data = cluster.data(0, volume(snapshot, op));
        assert!(data[..BLOCK_BYTES].iter().all(|byte| *byte == 1));
    }
    assert_eq!(cluster.sheep[0].1.cache_use().used_bytes, 0);
}
