//! Writes wait where too few copies are up. Reads do not wait for them, whatever the session would do next, and whether the client that
//! wrote is still there or not.
//!
//! Sheep 0 owns the VDI and stores nothing; of its three copies two go away.

#[allow(dead_code)]
#[path = "native/cluster.rs"]
mod cluster;

use cluster::{Cluster, OBJECT_BYTES, Store, id_of};
use proto::client::*;
use proto::{BLOCK_BYTES, RequestId, Vid};

const BLOCK: u64 = BLOCK_BYTES as u64;

fn volume(vid: Vid, op: VolumeOp) -> ClientOp {
    ClientOp::Volume { vid, at: Point::Head, op }
}

fn write(vid: Vid, offset: u64, fill: u8) -> ClientOp {
    volume(vid, VolumeOp::Write { offset, data: vec![fill; BLOCK_BYTES].into() })
}

fn read(cluster: &mut Cluster, sheep: u16, vid: Vid, offset: u64) -> u8 {
    let index = cluster.sheep.iter().position(|(id, ..)| *id == id_of(sheep)).expect("it is up");
    let data = cluster.data(index, volume(vid, VolumeOp::Read { offset, len: BLOCK_BYTES as u32 }));
    assert!(data.iter().all(|byte| *byte == data[0]), "torn");
    data[0]
}

/// The first blocks of two objects are written, and one copy of three is left. Returns the disks of the others.
fn one_copy_left() -> (Cluster, Vid, [Store; 2]) {
    let (mut cluster, vid) = Cluster::with_gateway();
    cluster.ask(0, write(vid, 0, 1)).unwrap();
    cluster.ask(0, write(vid, OBJECT_BYTES, 2)).unwrap();
    let disks = [3, 2].map(|sheep| cluster.lose(id_of(sheep)));
    (cluster, vid, disks)
}

fn client_goes(cluster: &mut Cluster, request: RequestId) {
    let now = cluster.now;
    cluster.sheep[0].1.handle_client_gone(request, now);
    cluster.run();
}

fn come_back(cluster: &mut Cluster, [third, second]: [Store; 2]) {
    cluster.come_back(2, second);
    cluster.come_back(3, third);
}

#[test]
fn reads_are_served_when_the_client_of_a_held_write_has_gone() {
    let (mut cluster, vid, disks) = one_copy_left();
    let held = cluster.begin(0, write(vid, BLOCK, 3));
    cluster.run();
    client_goes(&mut cluster, held);
    // Nobody uses the VDI, so its session is to be given back. But it cannot end.
    for _ in 0..3 {
        cluster.wait_ms(5000);
        assert_eq!(read(&mut cluster, 0, vid, 0), 1);
        assert_eq!(read(&mut cluster, 1, vid, OBJECT_BYTES), 2);
        assert_eq!(cluster.usage(vid), 2);
    }
    assert!(cluster.answers.is_empty());
    come_back(&mut cluster, disks);
    assert_eq!(read(&mut cluster, 0, vid, BLOCK), 3, "it had begun, so it is carried out");
    cluster.wait_ms(10_000);
    assert!(cluster.sheep[0].1.view().session(vid).owner.is_none(), "the session ends at last");
}

#[test]
fn reads_are_served_when_copies_go_while_a_session_is_given_back() {
    let (mut cluster, vid) = Cluster::with_gateway();
    cluster.ask(0, write(vid, 0, 1)).unwrap();
    // A write takes so long that its session is to be given back meanwhile.
    cluster.stalled = Some(id_of(1));
    cluster.begin(0, write(vid, BLOCK, 3));
    cluster.run();
    cluster.wait_ms(3000);
    for sheep in [3, 2] {
        cluster.lose(id_of(sheep));
    }
    assert_eq!(read(&mut cluster, 1, vid, 0), 1);
    assert_eq!(read(&mut cluster, 0, vid, 0), 1);
}

#[test]
fn a_snapshot_that_cannot_be_made_holds_no_reads() {
    let (mut cluster, vid, disks) = one_copy_left();
    cluster.begin(0, write(vid, BLOCK, 3));
    let snapshot = VdiOp::Snapshot { vids: vec![vid], tag: b"s".to_vec() };
    let asked = cluster.begin(0, ClientOp::Vdi(snapshot));
    for _ in 0..5 {
        cluster.wait_ms(300);
        // At once: no time passes for it.
        let id = cluster.begin(0, volume(vid, VolumeOp::Read { offset: 0, len: BLOCK_BYTES as u32 }));
        cluster.run();
        assert!(matches!(cluster.answers.get(&id), Some(Ok(ClientReply::Data(data))) if data[0] == 1));
    }
    // Whoever has gone does not want it any more.
    client_goes(&mut cluster, asked);
    cluster.wait_ms(1000);
    come_back(&mut cluster, disks);
    cluster.wait_ms(5000);
    assert_eq!(read(&mut cluster, 0, vid, BLOCK), 3);
    assert_eq!(cluster.sheep[0].1.view().vdis().len(), 1, "there is no snapshot");
}

/// Of three members that lost their power at once one does not come back.
#[test]
fn who_does_not_come_back_with_the_others_is_waited_for_once() {
    let (mut cluster, vid) = Cluster::with_gateway();
    // Objects of several PGs.
    for object in 0..8 {
        cluster.ask(0, write(vid, object * OBJECT_BYTES, 1)).unwrap();
    }
    let stores = cluster.lose_all(&[1, 2, 3].map(id_of));
    for (sheep, store) in (1..3).zip(stores) {
        cluster.come_back(sheep, store);
    }
    let waiting = |cluster: &Cluster| {
        let pgs = cluster.sheep[0].1.view().pools().iter().flat_map(|pool| &pool.pgs);
        pgs.filter(|pg| pg.writers().any(|n| n == id_of(3))).count()
    };
    cluster.wait_ms(10_000);
    assert!(
        waiting(&cluster) > 1,
        "nobody needs it gone, and as long as it counts its copy is as good as the others"
    );
    let held = cluster.begin(0, write(vid, 0, 2));
    cluster.run();
    assert!(!cluster.answers.contains_key(&held));
    cluster.wait_ms(6000);
    assert_eq!(cluster.answers.remove(&held), Some(Ok(ClientReply::Done)));
    assert_eq!(waiting(&cluster), 0);
    for object in 1..8 {
        let next = cluster.begin(0, write(vid, object * OBJECT_BYTES, 2));
        cluster.run();
        assert_eq!(cluster.answers.remove(&next), Some(Ok(ClientReply::Done)), "object {object}, at once");
    }
}
