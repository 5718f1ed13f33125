//! A member that stays away is given up after the cluster's time, and what it held is copied to others.

#[allow(dead_code)]
#[path = "native/cluster.rs"]
mod cluster;

use std::collections::BTreeMap;

use bytes::Bytes;
use cluster::{Cluster, OBJECT_BYTES, id_of};
use proto::client::*;
use proto::{BLOCK_BYTES, Oid, Vid};

fn fill(cluster: &mut Cluster, vid: Vid) {
    for object in 0..8u8 {
        let op = VolumeOp::Write {
            offset: u64::from(object) * OBJECT_BYTES,
            data: vec![object + 1; 5 * BLOCK_BYTES].into(),
        };
        cluster.ask(0, ClientOp::Volume { vid, at: Point::Head, op }).unwrap();
    }
}

/// Where every object is that a PG counts, by content.
fn copies(cluster: &Cluster) -> BTreeMap<Oid, Vec<&BTreeMap<u32, Bytes>>> {
    let view = cluster.sheep[0].1.view();
    let mut found: BTreeMap<Oid, Vec<_>> = BTreeMap::new();
    for (id, _, store) in &cluster.sheep {
        for (oid, content) in &store.objects {
            if view.pg(view.pg_of(*oid).unwrap()).unwrap().in_sync.contains(id) {
                found.entry(*oid).or_default().push(content);
            }
        }
    }
    found
}

fn pgs_counting(cluster: &Cluster, i: u16) -> usize {
    let pgs = cluster.sheep[0].1.view().pools().iter().flat_map(|pool| &pool.pgs);
    pgs.filter(|pg| pg.in_sync.contains(&id_of(i))).count()
}

#[track_caller]
fn assert_two_equal_copies(cluster: &Cluster) {
    let copies = copies(cluster);
    assert!(copies.len() > 8);
    for (oid, copies) in copies {
        assert_eq!(copies.len(), 2, "object {oid}");
        assert!(copies[0] == copies[1], "object {oid}");
    }
}

#[test]
fn what_a_member_held_is_copied_to_others_when_it_has_been_away_for_too_long() {
    let (mut cluster, vid) = Cluster::with_disk(5);
    fill(&mut cluster, vid);
    assert!(pgs_counting(&cluster, 4) > 0);
    let disk = cluster.lose(id_of(4));
    cluster.wait_ms(590_000);
    let lacking = |cluster: &Cluster| copies(cluster).values().filter(|copies| copies.len() < 2).count();
    assert!(lacking(&cluster) > 0, "it may come back");
    cluster.wait_ms(30_000);
    assert_two_equal_copies(&cluster);
    cluster.come_back(4, disk);
    cluster.wait_ms(30_000);
    assert_two_equal_copies(&cluster);
    assert!(pgs_counting(&cluster, 4) > 0, "it has its share again");
}

#[test]
fn a_member_that_an_operator_puts_out_is_emptied_before_it_goes() {
    let (mut cluster, vid) = Cluster::with_disk(5);
    fill(&mut cluster, vid);
    let out = ClientOp::Cluster(ClusterOp::SetOut { node: id_of(4), out: true });
    cluster.ask(0, out).unwrap();
    cluster.wait_ms(30_000);
    assert_eq!(pgs_counting(&cluster, 4), 0);
    assert_two_equal_copies(&cluster);
    assert!(cluster.sheep[4].2.objects.is_empty(), "what is of no use is removed");
}

#[test]
fn with_repair_switched_off_nothing_is_copied_but_what_writes_wait_for() {
    let (mut cluster, vid) = Cluster::with_gateway();
    let options = proto::cluster::RepairChange { enabled: Some(false), ..Default::default() };
    cluster.ask(0, ClientOp::Cluster(ClusterOp::SetRepair(options))).unwrap();
    fill(&mut cluster, vid);
    let disk = cluster.lose(id_of(3));
    cluster.come_back(3, disk);
    assert_eq!(pgs_counting(&cluster, 3), 0);
    let options = proto::cluster::RepairChange { enabled: Some(true), ..Default::default() };
    cluster.ask(0, ClientOp::Cluster(ClusterOp::SetRepair(options))).unwrap();
    cluster.wait_ms(5000);
    assert_eq!(pgs_counting(&cluster, 3), 8);
}
