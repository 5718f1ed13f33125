//! A copy whose disk refuses a part of what it fetches does not count, however many PGs that concerns at once.

#[allow(dead_code)]
#[path = "native/cluster.rs"]
mod cluster;

use cluster::{Cluster, id_of};
use proto::client::*;
use proto::{BLOCK_BYTES, Oid, Vid};

const OBJECT: u64 = 4 << 20;
const BLOCK: u64 = BLOCK_BYTES as u64;

fn ask(cluster: &mut Cluster, vid: Vid, op: VolumeOp) {
    assert_eq!(cluster.ask(0, ClientOp::Volume { vid, at: Point::Head, op }), Ok(ClientReply::Done));
}

fn write(cluster: &mut Cluster, vid: Vid, offset: u64, fill: u8) {
    ask(cluster, vid, VolumeOp::Write { offset, data: vec![fill; BLOCK_BYTES].into() });
}

#[test]
fn a_copy_that_could_not_store_all_of_it_does_not_count() {
    let (mut cluster, vid) = Cluster::with_large_objects();
    for object in 0..8 {
        [600, 1000].iter().for_each(|block| write(&mut cluster, vid, object * OBJECT + block * BLOCK, 1));
    }
    let mut store = cluster.lose(id_of(3));
    for object in 0..8 {
        write(&mut cluster, vid, object * OBJECT, 2);
        ask(&mut cluster, vid, VolumeOp::Discard { offset: object * OBJECT + 600 * BLOCK, len: BLOCK });
    }
    store.is_without_room = true;
    cluster.come_back(3, store);
    let (_, node, store) = cluster.sheep.iter().find(|(id, ..)| *id == id_of(3)).unwrap();
    let counts_though_stale: Vec<u32> = (0..8)
        .filter(|index| {
            let oid = Oid::data(vid, *index);
            let pg = node.view().pg_of(oid).and_then(|pg| node.view().pg(pg)).unwrap();
            pg.in_sync.contains(&id_of(3)) && !store.objects[&oid].contains_key(&0)
        })
        .collect();
    assert_eq!(counts_though_stale, [0; 0], "objects of which an in-sync copy lacks an acknowledged write");
}

/// Attempts are counted by what is fetched: each brings the same blocks.
#[test]
fn a_disk_without_room_is_not_tried_every_other_second() {
    let (mut cluster, vid) = Cluster::with_large_objects();
    let mut store = cluster.lose(id_of(3));
    for object in 0..8 {
        write(&mut cluster, vid, object * OBJECT, 2);
    }
    store.is_without_room = true;
    cluster.come_back(3, store);
    let fetched = |cluster: &mut Cluster| cluster.node(id_of(3)).fetched_bytes();
    let early = fetched(&mut cluster);
    assert!(early > 0);
    cluster.wait_ms(120_000);
    let attempts = fetched(&mut cluster) / early;
    assert!((2..10).contains(&attempts), "{attempts} times what was fetched in the first five seconds");
    cluster.sheep.iter_mut().for_each(|(_, _, store)| store.is_without_room = false);
    cluster.wait_ms(40_000);
    let (_, node, store) = cluster.sheep.iter().find(|(id, ..)| *id == id_of(3)).unwrap();
    for oid in (0..8).map(|index| Oid::data(vid, index)) {
        let pg = node.view().pg_of(oid).and_then(|pg| node.view().pg(pg)).unwrap();
        assert!(
            pg.in_sync.contains(&id_of(3)) && store.objects[&oid][&0][0] == 2,
            "{oid} as soon as there is room"
        );
    }
}
