//! Repair that may fetch little completes some objects, and not all of them at once at the very end.

#[allow(dead_code)]
#[path = "native/cluster.rs"]
mod cluster;

use cluster::{Cluster, id_of};
use proto::client::*;
use proto::cluster::RepairChange;
use proto::{BLOCK_BYTES, Oid};

const OBJECT: u64 = 4 << 20;
const BLOCKS: usize = OBJECT as usize / BLOCK_BYTES;

#[test]
fn objects_are_completed_one_after_the_other() {
    let (mut cluster, vid) = Cluster::with_large_objects();
    let change = RepairChange { rate_bytes: Some(1 << 20), ..RepairChange::default() };
    cluster.ask(0, ClientOp::Cluster(ClusterOp::SetRepair(change))).unwrap();
    let store = cluster.lose(id_of(3));
    for object in 0..6 {
        let op = VolumeOp::Write { offset: object * OBJECT, data: vec![7; OBJECT as usize].into() };
        cluster.ask(0, ClientOp::Volume { vid, at: Point::Head, op }).unwrap();
    }
    cluster.come_back(3, store);
    let mut complete = 0;
    for _ in 0..30 {
        cluster.wait_ms(1000);
        let (_, _, store) = cluster.sheep.iter().find(|(id, ..)| *id == id_of(3)).unwrap();
        let blocks = |object| store.objects.get(&Oid::data(vid, object)).map_or(0, |blocks| blocks.len());
        let begun = (0..6).filter(|object| (1..BLOCKS).contains(&blocks(*object))).count();
        assert!(
            begun <= 2,
            "{begun} objects at a time, of {:?} blocks",
            (0..6).map(blocks).collect::<Vec<_>>()
        );
        complete = (0..6).filter(|object| blocks(*object) == BLOCKS).count();
    }
    assert_eq!(complete, 6);
}
