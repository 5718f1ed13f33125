//! What a check of a VDI that is deleted meanwhile says, through a sheep that hears late of the deletion: nothing, before it has heard.

#[allow(dead_code)]
#[path = "native/cluster.rs"]
mod cluster;

use cluster::{Cluster, OBJECT_BYTES, id_of};
use proto::client::*;
use proto::{BLOCK_BYTES, NodeId, Oid, RequestId, Vid};

fn write(vid: Vid, object: u64, fill: u8) -> ClientOp {
    let op = VolumeOp::Write { offset: object * OBJECT_BYTES, data: vec![fill; BLOCK_BYTES].into() };
    ClientOp::Volume { vid, at: Point::Head, op }
}

fn check(oid: Oid) -> ClientOp {
    ClientOp::Object { oid, op: NativeOp::Check { repair: true, part: None } }
}

fn holders(cluster: &Cluster, oid: Oid) -> Vec<NodeId> {
    cluster
        .sheep
        .iter()
        .filter(|(_, _, store)| store.objects.contains_key(&oid))
        .map(|(id, ..)| *id)
        .collect()
}

fn lists(cluster: &mut Cluster, sheep: usize, vid: Vid) -> bool {
    match cluster.ask(sheep, ClientOp::Vdi(VdiOp::List)) {
        Ok(ClientReply::Vdis(infos)) => infos.iter().any(|info| info.vid == vid),
        other => panic!("expected a list, got {other:?}"),
    }
}

/// A snapshot whose object 3 nobody else needs.
fn with_snapshot() -> (Cluster, Vid) {
    let (mut cluster, vid) = Cluster::with_gateway();
    cluster.ask(0, write(vid, 3, 1)).unwrap();
    let snapshot = VdiOp::Snapshot { vids: vec![vid], tag: b"passing".to_vec() };
    cluster.ask(0, ClientOp::Vdi(snapshot)).unwrap();
    let discard = VolumeOp::Discard { offset: 3 * OBJECT_BYTES, len: OBJECT_BYTES };
    cluster.ask(0, ClientOp::Volume { vid, at: Point::Head, op: discard }).unwrap();
    (cluster, vid)
}

fn begin_deleting(cluster: &mut Cluster, vid: Vid) -> RequestId {
    let request = cluster.begin(0, ClientOp::Vdi(VdiOp::Delete { vid }));
    cluster.wait_ms(1000);
    request
}

#[test]
fn copies_that_went_with_a_snapshot_are_not_called_missing_by_who_still_has_it() {
    let (mut cluster, snapshot) = with_snapshot();
    let oid = Oid::data(snapshot, 3);
    assert_eq!(holders(&cluster, oid), [1, 2, 3].map(id_of));
    cluster.fall_behind(id_of(3));
    begin_deleting(&mut cluster, snapshot);
    assert_eq!(holders(&cluster, oid), [id_of(3)]);
    let request = cluster.begin(3, check(oid));
    cluster.wait_ms(3000);
    assert_eq!(cluster.answers.get(&request), None, "it has not heard of the deletion");
    assert!(lists(&mut cluster, 3, snapshot));
    cluster.catch_up();
    cluster.wait_ms(1000);
    assert!(cluster.answers.contains_key(&request));
    assert!(!lists(&mut cluster, 3, snapshot));
    assert_eq!(holders(&cluster, oid), []);
}

#[test]
fn what_a_snapshot_that_stays_lacks_is_told_at_once() {
    let (mut cluster, snapshot) = with_snapshot();
    let oid = Oid::data(snapshot, 3);
    cluster.sheep[2].2.objects.remove(&oid);
    let Ok(ClientReply::Checked(report)) = cluster.ask(3, check(oid)) else { panic!("no report") };
    assert_eq!((report.missing, report.repaired), (vec![id_of(2)], false));
}

#[test]
fn a_gateway_does_not_tell_what_the_owner_found_after_the_deletion() {
    let (mut cluster, vid) = Cluster::with_gateway();
    let oid = Oid::data(vid, 3);
    cluster.ask(1, write(vid, 3, 1)).unwrap();
    assert_eq!(cluster.sheep[0].1.view().session(vid).owner.unwrap().0, id_of(1));
    cluster.fall_behind(id_of(0));
    // One copy is still to be removed.
    cluster.cut_links.insert((id_of(2), id_of(3)));
    cluster.begin(2, ClientOp::Vdi(VdiOp::Delete { vid }));
    cluster.wait_ms(500);
    assert_eq!(holders(&cluster, oid), [id_of(3)]);
    let request = cluster.begin(0, check(oid));
    cluster.wait_ms(500);
    assert_eq!(cluster.answers.get(&request), None, "it has not heard of the deletion");
    assert!(lists(&mut cluster, 0, vid));
    cluster.catch_up();
    cluster.wait_ms(500);
    assert!(cluster.answers.contains_key(&request));
    assert!(!lists(&mut cluster, 0, vid));
}
