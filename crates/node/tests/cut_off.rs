//! Links are cut while all sheep stay members: those that can reach each other go on, and who can reach nobody holds nobody up.

#[allow(dead_code)]
#[path = "native/cluster.rs"]
mod cluster;

use cluster::{Cluster, OBJECT_BYTES, id_of};
use proto::client::*;
use proto::cluster::Action;
use proto::{BLOCK_BYTES, CopyPolicy, NodeId, Vid};

fn write(vid: Vid, object: u64, fill: u8) -> ClientOp {
    let data = vec![fill; BLOCK_BYTES].into();
    ClientOp::Volume { vid, at: Point::Head, op: VolumeOp::Write { offset: object * OBJECT_BYTES, data } }
}

fn read(vid: Vid, object: u64) -> ClientOp {
    let op = VolumeOp::Read { offset: object * OBJECT_BYTES, len: BLOCK_BYTES as u32 };
    ClientOp::Volume { vid, at: Point::Head, op }
}

fn cut_off(cluster: &mut Cluster, sheep: u16) {
    for other in (0..5).filter(|n| *n != sheep) {
        cluster.cut_links.extend([(id_of(sheep), id_of(other)), (id_of(other), id_of(sheep))]);
    }
}

/// Sheep that every PG counts.
fn in_sync_everywhere(cluster: &Cluster) -> Vec<NodeId> {
    let pgs: Vec<_> = cluster.sheep[0].1.view().pools().iter().flat_map(|pool| &pool.pgs).collect();
    let all = (0..5).map(id_of).filter(|id| pgs.iter().all(|pg| pg.in_sync.contains(id)));
    all.collect()
}

#[test]
fn the_vdi_of_a_sheep_that_is_cut_off_is_taken_over_with_all_that_was_under_way() {
    let (mut cluster, vid) = Cluster::with_gateway();
    cluster.ask(0, write(vid, 0, 1)).unwrap();
    // One copy hears of this write, and its owner of nothing more.
    cluster.cut_links.extend([(id_of(0), id_of(2)), (id_of(0), id_of(3)), (id_of(1), id_of(0))]);
    let torn = cluster.begin(0, write(vid, 0, 2));
    cluster.run();
    cut_off(&mut cluster, 0);
    let request = cluster.begin(1, read(vid, 0));
    cluster.wait_ms(2900);
    assert!(cluster.answers.is_empty(), "the owner may be slow only");
    cluster.wait_ms(1500);
    let Some(Ok(ClientReply::Data(data))) = cluster.answers.remove(&request) else {
        panic!("nobody took over: {:?}", cluster.answers)
    };
    assert!([1, 2].contains(&data[0]));
    let seen = data[0];
    assert!(!cluster.answers.contains_key(&torn), "the old owner does not know how it ended");
    cluster.ask(2, write(vid, 1, 3)).unwrap();
    assert_eq!(cluster.data(3, read(vid, 0))[0], seen, "it was decided then");

    cluster.cut_links.clear();
    cluster.wait_ms(5000);
    assert_eq!(cluster.answers.remove(&torn), Some(Ok(ClientReply::Done)));
    assert_eq!(cluster.data(3, read(vid, 0))[0], 2);
    assert_eq!(cluster.data(0, read(vid, 1))[0], 3);
    assert!([1, 2].iter().all(|i| cluster.sheep[*i].2.objects == cluster.sheep[3].2.objects));
}

#[test]
fn a_copy_that_is_cut_off_is_left_behind_and_stays_so_until_it_can_be_reached() {
    let (mut cluster, vid) = Cluster::with_gateway();
    cluster.ask(0, write(vid, 0, 1)).unwrap();
    cut_off(&mut cluster, 3);
    let request = cluster.begin(0, write(vid, 0, 2));
    cluster.wait_ms(4500);
    assert_eq!(cluster.answers.remove(&request), Some(Ok(ClientReply::Done)));
    // It is known to be silent: the next ones do not wait for it.
    for object in 1..8 {
        let request = cluster.begin(0, write(vid, object, 2));
        cluster.wait_ms(300);
        assert_eq!(cluster.answers.remove(&request), Some(Ok(ClientReply::Done)), "object {object}");
    }
    cluster.wait_ms(20_000);
    let view = cluster.sheep[0].1.view();
    assert!(view.pools().iter().flat_map(|p| &p.pgs).all(|pg| !pg.is_catching(id_of(3))));
    cluster.cut_links.clear();
    cluster.wait_ms(10_000);
    assert_eq!(in_sync_everywhere(&cluster), [1, 2, 3].map(id_of));
    assert_eq!(cluster.sheep[3].2.objects, cluster.sheep[1].2.objects);
}

/// Frames to the copy are lost, what it sends arrives.
#[test]
fn a_link_that_is_cut_one_way_counts_as_cut() {
    let (mut cluster, vid) = Cluster::with_gateway();
    cluster.ask(0, write(vid, 0, 1)).unwrap();
    cluster.cut_links.insert((id_of(0), id_of(3)));
    let request = cluster.begin(0, write(vid, 0, 2));
    cluster.wait_ms(4500);
    assert_eq!(cluster.answers.remove(&request), Some(Ok(ClientReply::Done)));
    cluster.cut_links.clear();
    cluster.wait_ms(10_000);
    assert_eq!(in_sync_everywhere(&cluster), [1, 2, 3].map(id_of));
}

#[test]
fn an_owner_that_is_cut_off_gives_up_no_copy_of_others() {
    let (mut cluster, vid) = Cluster::with_gateway();
    // Sheep 1 owns it, and stores it.
    cluster.ask(1, write(vid, 0, 1)).unwrap();
    cut_off(&mut cluster, 1);
    let held: Vec<_> = (0..8).map(|object| cluster.begin(1, write(vid, object, 2))).collect();
    cluster.wait_ms(20_000);
    assert!(held.iter().all(|request| !cluster.answers.contains_key(request)));
    assert_eq!(in_sync_everywhere(&cluster), [1, 2, 3].map(id_of));
    let request = cluster.begin(2, write(vid, 0, 3));
    cluster.wait_ms(5000);
    assert_eq!(cluster.answers.remove(&request), Some(Ok(ClientReply::Done)));
    cluster.cut_links.clear();
    cluster.wait_ms(10_000);
    assert!(held.iter().all(|request| cluster.answers.remove(request) == Some(Ok(ClientReply::Done))));
    assert_eq!(in_sync_everywhere(&cluster), [1, 2, 3].map(id_of));
    assert_eq!(cluster.data(3, read(vid, 7))[0], 2);
}

/// Both have clients of one VDI, and a third sheep reaches both.
#[test]
fn two_that_do_not_reach_each_other_leave_the_vdi_to_one_between_them() {
    let (mut cluster, vid) = Cluster::with_gateway();
    cluster.ask(1, write(vid, 0, 1)).unwrap();
    cluster.cut_links.extend([(id_of(1), id_of(2)), (id_of(2), id_of(1))]);
    let mut late = 0;
    for round in 0..60u8 {
        let asked = [1, 2].map(|sheep| cluster.begin(sheep, write(vid, sheep as u64, round)));
        cluster.wait_ms(500);
        late += asked.iter().filter(|request| cluster.answers.remove(request).is_none()).count();
    }
    assert!(late < 40, "{late} of 120 writes took longer than half a second");
    let session = cluster.sheep[0].1.view().session(vid);
    assert!(session.generation.0 < 6, "{session:?}");
    assert!([0, 3].map(id_of).contains(&session.owner.unwrap().0), "{session:?}");
}

#[test]
fn a_check_does_not_wait_for_a_copy_that_cannot_be_reached() {
    let (mut cluster, vid) = Cluster::with_gateway();
    for object in 0..8 {
        cluster.ask(0, write(vid, object, 1)).unwrap();
    }
    cut_off(&mut cluster, 3);
    for object in 0..8 {
        let oid = proto::Oid::data(vid, object);
        let check = ClientOp::Object { oid, op: NativeOp::Check { repair: false, part: None } };
        let request = cluster.begin(0, check);
        cluster.wait_ms(5000);
        let Some(Ok(ClientReply::Checked(report))) = cluster.answers.remove(&request) else {
            panic!("object {object} waits")
        };
        assert!(report.differing.is_empty() && report.missing.is_empty(), "{report:?}");
    }
}

/// One entry after another: the order to resign, the end of whoever gave it, and something about the VDI, before the owner could answer.
#[test]
fn an_owner_that_is_resigning_does_not_begin_again_under_the_same_generation() {
    let (mut cluster, vid) = Cluster::with_gateway();
    cluster.ask(0, write(vid, 0, 1)).unwrap();
    let generation = cluster.sheep[0].1.view().session(vid).generation;
    cluster.put_to_sleep(id_of(0));
    // It is asked for more, which nobody hears of yet.
    cluster.cut_links.extend((1..4).map(|n| (id_of(0), id_of(n))));
    let held = cluster.begin(0, write(vid, 0, 2));
    cluster.propose_as(id_of(1), Action::TakeSession { vid, generation, taker: id_of(1) });
    cluster.lose(id_of(1));
    cluster.propose_as(id_of(2), Action::ResizeVdi { vid, size: OBJECT_BYTES << 21 });
    cluster.propose_as(id_of(0), Action::EnterPage { vid, page: 1 });
    cluster.cut_links.clear();
    cluster.wake();
    cluster.wait_ms(6000);
    assert_eq!(cluster.answers.remove(&held), Some(Ok(ClientReply::Done)));
    assert!(cluster.sheep[0].1.view().session(vid).generation > generation);
    assert_eq!(cluster.data(1, read(vid, 0))[0], 2, "what was acknowledged is there");
    for (_, _, store) in &cluster.sheep[1..] {
        let written =
            store.objects.iter().find(|(oid, _)| oid.vid() == vid && oid.index() == 0).expect("a copy");
        assert_eq!(written.1[&0][0], 2, "on every copy");
    }
}

/// A VDI of one copy cannot do without it: another one's need not wait for that.
#[test]
fn a_copy_that_cannot_be_dropped_keeps_no_other_from_being_dropped() {
    let (mut cluster, vid) = Cluster::with_gateway();
    cluster.ask(0, write(vid, 0, 1)).unwrap();
    // Of those VDIs that are looked after before the other one.
    let mut single = None;
    for n in 0..64 {
        let (name, policy) = (format!("single{n}").into_bytes(), Some(CopyPolicy::Replicated { copies: 1 }));
        let create = VdiOp::Create { name, size: 8 * OBJECT_BYTES, policy, block_size_shift: None };
        let Ok(ClientReply::Vdi(vdi)) = cluster.ask(0, ClientOp::Vdi(create)) else { panic!("no VDI") };
        single = single.or((vdi.vid < vid).then_some(vdi.vid));
    }
    let single = single.expect("one of many has a lower number");
    for object in 0..8 {
        cluster.ask(0, write(single, object, 1)).unwrap();
    }
    // The link to a sheep that has some of it.
    let silent = cluster.sheep[1..]
        .iter()
        .find(|(_, _, s)| s.objects.keys().any(|oid| oid.vid() == single && oid.index() < 8));
    let silent = silent.expect("somebody has it").0;
    cluster.cut_links.extend([(id_of(0), silent), (silent, id_of(0))]);
    for object in 0..8 {
        cluster.begin(0, write(single, object, 2));
    }
    let request = cluster.begin(0, write(vid, 0, 2));
    cluster.run();
    cluster.wait_ms(7000);
    assert_eq!(cluster.answers.remove(&request), Some(Ok(ClientReply::Done)), "with two of three copies");
    assert_eq!(cluster.data(0, read(vid, 0))[0], 2);
}
