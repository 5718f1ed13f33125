//! Rot that nobody reads is found and mended, in working VDIs and in those that never change, and told where it cannot be.

#[allow(dead_code)]
#[path = "native/cluster.rs"]
mod cluster;

use cluster::{Cluster, OBJECT_BYTES, id_of};
use proto::client::*;
use proto::cluster::RepairChange;
use proto::object::BlockRange;
use proto::peer::{PeerMessage, PeerReply, PeerRequest};
use proto::{BLOCK_BYTES, Oid, PgId, PoolId, Vid};

const BLOCK: u64 = BLOCK_BYTES as u64;

fn write(cluster: &mut Cluster, vid: Vid, offset: u64, fill: u8, blocks: usize) {
    write_by(cluster, 0, vid, offset, fill, blocks);
}

fn write_by(cluster: &mut Cluster, sheep: usize, vid: Vid, offset: u64, fill: u8, blocks: usize) {
    let op = VolumeOp::Write { offset, data: vec![fill; blocks * BLOCK_BYTES].into() };
    let op = ClientOp::Volume { vid, at: Point::Head, op };
    assert_eq!(cluster.ask(sheep, op), Ok(ClientReply::Done));
}

/// Four blocks of each of eight objects, on two copies.
fn filled() -> (Cluster, Vid) {
    let (mut cluster, vid) = Cluster::with_disk(2);
    (0..8).for_each(|object| write(&mut cluster, vid, object * OBJECT_BYTES, 1 + object as u8, 4));
    (cluster, vid)
}

fn set(cluster: &mut Cluster, change: RepairChange) {
    assert_eq!(cluster.ask(0, ClientOp::Cluster(ClusterOp::SetRepair(change))), Ok(ClientReply::Done));
}

fn scrub_now(cluster: &mut Cluster) {
    set(cluster, RepairChange { scrub_now: true, ..RepairChange::default() });
    cluster.wait_ms(20_000);
}

fn status(cluster: &mut Cluster, sheep: usize) -> ScrubStatus {
    match cluster.ask(sheep, ClientOp::Cluster(ClusterOp::Scrub)) {
        Ok(ClientReply::Scrub(status)) => *status,
        other => panic!("answered with {other:?}"),
    }
}

fn counts(cluster: &mut Cluster, sheep: usize) -> (u64, u64, u64, u64) {
    let ScrubStatus { found, mended, damaged, lost, .. } = status(cluster, sheep);
    (found, mended, damaged, lost)
}

fn snapshot(cluster: &mut Cluster, vid: Vid) -> Vid {
    let op = VdiOp::Snapshot { vids: vec![vid], tag: b"before".to_vec() };
    match cluster.ask(0, ClientOp::Vdi(op)) {
        Ok(ClientReply::Vdis(infos)) => infos[0].vid,
        other => panic!("answered with {other:?}"),
    }
}

#[test]
fn rot_in_a_working_vdi_is_mended_by_its_owner() {
    let (mut cluster, vid) = filled();
    for (sheep, object, block) in [(0, 2, 3), (1, 5, 0), (1, 5, 1)] {
        cluster.sheep[sheep].2.rotten.insert((Oid::data(vid, object), block));
    }
    scrub_now(&mut cluster);
    assert!(cluster.sheep.iter().all(|(_, _, store)| store.rotten.is_empty()));
    assert!(cluster.sheep.iter().all(|(_, _, store)| store.mended.is_empty()), "as a change of the owner");
    assert_eq!((counts(&mut cluster, 0), counts(&mut cluster, 1)), ((1, 1, 0, 0), (2, 2, 0, 0)));
    let status = status(&mut cluster, 1);
    assert!(!status.is_running && status.passes >= 1 && status.last_ended_s.is_some(), "{status:?}");
    assert_eq!(cluster.sheep[0].2.objects, cluster.sheep[1].2.objects);
}

#[test]
fn rot_in_a_snapshot_is_put_back_and_nothing_else_is_touched() {
    let (mut cluster, vid) = filled();
    snapshot(&mut cluster, vid);
    let oid = Oid::data(vid, 3);
    let before: Vec<_> = cluster.sheep.iter().map(|(_, _, store)| store.changes.len()).collect();
    cluster.sheep[1].2.rotten.insert((oid, 2));
    scrub_now(&mut cluster);
    assert!(cluster.sheep[1].2.rotten.is_empty());
    assert_eq!(cluster.sheep[1].2.mended, [(oid, BlockRange::new(2, 1))]);
    assert!(cluster.sheep[0].2.mended.is_empty(), "the good copy was not written to");
    let after: Vec<_> = cluster.sheep.iter().map(|(_, _, store)| store.changes.len()).collect();
    assert_eq!(before, after);
    assert_eq!(counts(&mut cluster, 1), (1, 1, 0, 0));
}

#[test]
fn a_read_of_a_snapshot_that_meets_rot_has_it_put_back() {
    let (mut cluster, vid) = filled();
    snapshot(&mut cluster, vid);
    cluster.sheep[0].2.rotten.insert((Oid::data(vid, 3), 2));
    let op = VolumeOp::Read { offset: 3 * OBJECT_BYTES + 2 * BLOCK, len: BLOCK as u32 };
    let data = cluster.data(0, ClientOp::Volume { vid, at: Point::Exact, op });
    assert!(data.iter().all(|byte| *byte == 4));
    cluster.wait_ms(1000);
    assert!(cluster.sheep[0].2.rotten.is_empty());
    assert_eq!(counts(&mut cluster, 0), (1, 1, 0, 0));
}

#[test]
fn a_block_that_no_copy_can_give_is_named_until_it_is_written_anew() {
    let (mut cluster, vid) = filled();
    let oid = Oid::data(vid, 6);
    for (_, _, store) in &mut cluster.sheep {
        store.rotten.insert((oid, 1));
    }
    scrub_now(&mut cluster);
    let found = status(&mut cluster, 0);
    let damage = DamagedBlocks { vdi: b"disk".to_vec(), oid, blocks: BlockRange::new(1, 1), is_lost: true };
    assert_eq!((found.found, found.mended, found.damaged, found.lost), (1, 0, 1, 1));
    assert_eq!(found.told, [damage]);
    // Not for the sake of its neighbour.
    write(&mut cluster, vid, 6 * OBJECT_BYTES, 9, 1);
    cluster.wait_ms(100_000);
    assert_eq!(counts(&mut cluster, 0), (1, 0, 1, 1));
    write(&mut cluster, vid, 6 * OBJECT_BYTES + BLOCK, 9, 1);
    cluster.wait_ms(1000);
    assert_eq!((counts(&mut cluster, 0), counts(&mut cluster, 1)), ((1, 1, 0, 0), (1, 1, 0, 0)));
}

#[test]
fn what_a_deleted_snapshot_has_left_is_named_after_who_needs_it() {
    let (mut cluster, vid) = filled();
    snapshot(&mut cluster, vid);
    assert_eq!(cluster.ask(0, ClientOp::Vdi(VdiOp::Delete { vid })), Ok(ClientReply::Done));
    let oid = Oid::data(vid, 6);
    for (_, _, store) in &mut cluster.sheep {
        store.rotten.insert((oid, 1));
    }
    scrub_now(&mut cluster);
    let damage = DamagedBlocks { vdi: b"disk".to_vec(), oid, blocks: BlockRange::new(1, 1), is_lost: true };
    assert_eq!(status(&mut cluster, 0).told, [damage]);
}

#[test]
fn each_pass_has_the_whole_journal_read_back_and_counts_what_was_damaged() {
    let (mut cluster, _) = filled();
    cluster.sheep[1].2.rotten_records = [1, 30, 31, 100].into();
    scrub_now(&mut cluster);
    assert!(cluster.sheep[1].2.rotten_records.is_empty());
    let [one, other] = [0, 1].map(|sheep| status(&mut cluster, sheep));
    assert_eq!((one.journal_records, other.journal_records), (0, 4));
    assert!(!other.is_running && other.passes > 0, "{other:?}");
    assert_eq!((other.bytes_done, other.objects_done), (other.bytes_total, other.objects_total));
    cluster.sheep[1].2.rotten_records = [90].into();
    scrub_now(&mut cluster);
    assert_eq!(status(&mut cluster, 1).journal_records, 5);
    assert_eq!(counts(&mut cluster, 1), (0, 0, 0, 0), "that is no block's matter");
}

#[test]
fn where_it_is_disabled_nothing_is_looked_for_but_what_is_asked_for() {
    let (mut cluster, vid) = filled();
    set(&mut cluster, RepairChange { scrub: Some(false), ..RepairChange::default() });
    // A fast one, if there were one.
    set(&mut cluster, RepairChange { scrub_rate_bytes: Some(1 << 30), ..RepairChange::default() });
    cluster.sheep[1].2.rotten.insert((Oid::data(vid, 3), 2));
    cluster.wait_ms(60_000);
    assert_eq!(cluster.sheep[1].2.rotten.len(), 1);
    assert!(!status(&mut cluster, 1).is_enabled);
    scrub_now(&mut cluster);
    assert!(cluster.sheep[1].2.rotten.is_empty(), "once");
    cluster.sheep[1].2.rotten.insert((Oid::data(vid, 3), 2));
    cluster.wait_ms(60_000);
    assert_eq!(cluster.sheep[1].2.rotten.len(), 1);
    set(&mut cluster, RepairChange { scrub: Some(true), ..RepairChange::default() });
    cluster.wait_ms(60_000);
    assert!(cluster.sheep[1].2.rotten.is_empty());
}

#[test]
fn the_default_pace_is_a_week_and_an_operators_rate_holds() {
    let (mut cluster, vid) = filled();
    let blocks = (OBJECT_BYTES / BLOCK) as usize;
    (0..8).for_each(|object| write(&mut cluster, vid, object * OBJECT_BYTES, 7, blocks));
    // One that starts anew begins a pass.
    cluster.lose_and_come_back(1);
    cluster.wait_ms(60_000);
    let slow = status(&mut cluster, 1);
    assert!(slow.is_running && slow.rate_bytes == 64 << 10 && slow.passes == 0, "{slow:?}");
    set(&mut cluster, RepairChange { scrub_rate_bytes: Some(1 << 30), ..RepairChange::default() });
    cluster.wait_ms(60_000);
    let fast = status(&mut cluster, 1);
    assert!(fast.passes >= 2, "{fast:?}");
}

#[test]
fn a_check_moves_the_content_of_damaged_blocks_alone() {
    for frozen in [false, true] {
        let (mut cluster, vid) = filled();
        if frozen {
            snapshot(&mut cluster, vid);
        }
        let oid = Oid::data(vid, 3);
        let check = |part| ClientOp::Object { oid, op: NativeOp::Check { repair: true, part } };
        let given = |c: &Cluster| c.sheep.iter().map(|(_, _, store)| store.given_bytes).sum::<u64>();
        let Ok(ClientReply::Checked(report)) = cluster.ask(0, check(None)) else { panic!("no report") };
        let before = given(&cluster);
        assert_eq!((report.copies, report.compared_bytes, report.repaired), (2, 2 * OBJECT_BYTES, false));
        cluster.sheep[1].2.rotten.insert((oid, 2));
        let Ok(ClientReply::Checked(report)) = cluster.ask(0, check(Some(BlockRange::new(0, 2)))) else {
            panic!("no report")
        };
        assert_eq!(report.differing, []);
        assert_eq!(given(&cluster), before);
        let Ok(ClientReply::Checked(report)) = cluster.ask(0, check(None)) else { panic!("no report") };
        let bad = cluster.sheep[1].0;
        assert_eq!((report.differing, report.repaired), (vec![(bad, BlockRange::new(2, 1))], true));
        assert!(cluster.sheep[1].2.rotten.is_empty());
        assert_eq!(given(&cluster), before + BLOCK);
    }
}

fn content(byte: u8) -> bytes::Bytes {
    vec![byte; BLOCK_BYTES].into()
}

/// The sheep whose copy counts if no checksum fails.
fn first_copy(cluster: &Cluster, oid: Oid) -> usize {
    let view = cluster.sheep[0].1.view();
    let first = view.pg_of(oid).and_then(|pg| view.pg(pg)).expect("it has one").in_sync[0];
    cluster.sheep.iter().position(|(id, ..)| *id == first).expect("it is up")
}

/// Blocks that sheep found to differ, and those that still do; each is counted by one sheep.
fn differences(cluster: &mut Cluster) -> (u64, u64) {
    let all: Vec<ScrubStatus> = (0..cluster.sheep.len()).map(|sheep| status(cluster, sheep)).collect();
    assert!(all.iter().all(|status| status.found == 0), "nothing has rotted: {all:?}");
    (all.iter().map(|status| status.differed).sum(), all.iter().map(|status| status.differing).sum())
}

#[test]
fn copies_that_differ_with_right_checksums_are_made_alike() {
    for changed in 0..2 {
        let (mut cluster, vid) = filled();
        let oid = Oid::data(vid, 3);
        cluster.sheep[changed].2.objects.get_mut(&oid).unwrap().insert(2, content(99));
        // One copy is longer.
        cluster.sheep[changed].2.objects.get_mut(&Oid::data(vid, 5)).unwrap().insert(7, content(98));
        let right = cluster.sheep[first_copy(&cluster, oid)].2.objects[&oid][&2].clone();
        scrub_now(&mut cluster);
        assert_eq!(differences(&mut cluster), (2, 0));
        assert!(cluster.sheep.iter().all(|(_, _, store)| store.objects[&oid][&2] == right));
        let others = |store: &cluster::Store| (store.objects[&oid][&1].clone(), store.objects[&oid].len());
        assert!(cluster.sheep.iter().all(|(_, _, store)| others(store) == (content(4), 4)));
        let longer = |store: &cluster::Store| store.objects[&Oid::data(vid, 5)].get(&7).cloned();
        let zeros = |block: Option<bytes::Bytes>| block.filter(|bytes| *bytes != content(0));
        let (one, other) = (longer(&cluster.sheep[0].2), longer(&cluster.sheep[1].2));
        assert_eq!(zeros(one), zeros(other));
    }
}

#[test]
fn an_object_that_one_copy_lacks_is_made_anew_there() {
    for lacking in 0..2 {
        let (mut cluster, vid) = filled();
        let missing = [Oid::data(vid, 3), Oid::data(vid, 6)];
        let before = cluster.sheep[0].2.objects.clone();
        for oid in missing {
            cluster.sheep[lacking].2.objects.remove(&oid);
        }
        scrub_now(&mut cluster);
        assert_eq!(differences(&mut cluster), (2 * 4, 0));
        assert!(
            cluster.sheep.iter().all(|(_, _, store)| store.objects == before),
            "sheep {lacking} lacked some"
        );
    }
}

#[test]
fn what_the_first_copy_lacks_is_found_wherever_its_content_lies() {
    let (mut cluster, vid) = Cluster::with_large_objects();
    // In the last of four pieces.
    write(&mut cluster, vid, 900 * BLOCK, 5, 2);
    let oid = Oid::data(vid, 0);
    let lacking = first_copy(&cluster, oid);
    let before = cluster.sheep[lacking].2.objects.remove(&oid).expect("it has one");
    scrub_now(&mut cluster);
    assert_eq!(differences(&mut cluster), (2, 0));
    assert_eq!(cluster.sheep[lacking].2.objects.get(&oid), Some(&before));
}

#[test]
fn copies_of_a_snapshot_that_differ_are_told_of_and_left_alone() {
    let (mut cluster, vid) = filled();
    snapshot(&mut cluster, vid);
    let oid = Oid::data(vid, 3);
    let right = cluster.sheep[1].2.objects[&oid].clone();
    cluster.sheep[1].2.objects.get_mut(&oid).unwrap().insert(2, content(99));
    let changes = |c: &Cluster| c.sheep.iter().map(|(_, _, store)| store.changes.len()).sum::<usize>();
    let before = changes(&cluster);
    scrub_now(&mut cluster);
    assert_eq!(differences(&mut cluster), (1, 1));
    let told: Vec<DifferingBlocks> =
        (0..2).flat_map(|sheep| status(&mut cluster, sheep).told_differing).collect();
    assert_eq!(told, [DifferingBlocks { vdi: b"disk".to_vec(), oid, blocks: BlockRange::new(2, 1) }]);
    assert_eq!(cluster.sheep[1].2.objects[&oid][&2], content(99));
    assert_eq!((changes(&cluster), cluster.sheep[1].2.mended.len()), (before, 0));
    scrub_now(&mut cluster);
    assert_eq!(differences(&mut cluster), (1, 1), "each is counted once");
    cluster.sheep[1].2.objects.insert(oid, right);
    cluster.wait_ms(1_000_000);
    assert_eq!(differences(&mut cluster), (1, 0));
}

/// Whichever copy is the first, and asks the other; with all changes under way, or those of the block table alone.
#[test]
fn writes_under_way_are_no_differences() {
    for (owner, slow, is_table) in [(0, 1, false), (1, 0, false), (0, 1, true), (1, 0, true)] {
        let (mut cluster, vid) = Cluster::with_disk(2);
        // Later they know what is asked for anew.
        cluster.wait_ms(200);
        for object in 0..4 {
            write_by(&mut cluster, owner, vid, object * OBJECT_BYTES, 1 + object as u8, 4);
        }
        cluster.delays = Some(Box::new(move |to, message| {
            let PeerMessage::Request { body: PeerRequest::Change { oid, .. }, .. } = message else {
                return false;
            };
            to == id_of(slow) && (!is_table || *oid == Oid::table_page(vid, 0))
        }));
        // Overwrites, and first writes, with which entries are made in the block table.
        let begin = |object: u64| {
            let op = VolumeOp::Write { offset: object * OBJECT_BYTES, data: content(77) };
            cluster.begin(owner, ClientOp::Volume { vid, at: Point::Head, op })
        };
        let begun: Vec<_> = (0..8).map(begin).collect();
        cluster.run();
        let data = (0..8).map(|object| Oid::data(vid, object)).filter(|_| !is_table);
        for oid in data.chain([Oid::table_page(vid, 0)]) {
            assert_ne!(cluster.sheep[0].2.objects.get(&oid), cluster.sheep[1].2.objects.get(&oid), "{oid}");
        }
        set(&mut cluster, RepairChange { scrub_now: true, ..RepairChange::default() });
        cluster.wait_ms(4000);
        let states = [status(&mut cluster, 0), status(&mut cluster, 1)];
        assert!(states.iter().all(|status| !status.is_running), "all was compared meanwhile: {states:?}");
        cluster.deliver_delayed();
        cluster.wait_ms(1000);
        assert!(begun.iter().all(|id| cluster.answers.remove(id) == Some(Ok(ClientReply::Done))));
        assert_eq!(differences(&mut cluster), (0, 0));
        assert_eq!(cluster.sheep[0].2.objects, cluster.sheep[1].2.objects);
    }
}

#[test]
fn a_vdi_whose_requests_are_held_keeps_no_other_from_being_mended() {
    let (mut cluster, vid) = filled();
    let create =
        VdiOp::Create { name: b"other".to_vec(), size: 8 << 20, policy: None, block_size_shift: None };
    let Ok(ClientReply::Vdi(other)) = cluster.ask(0, ClientOp::Vdi(create)) else { panic!("no VDI") };
    (0..8).for_each(|object| write(&mut cluster, other.vid, object * OBJECT_BYTES, 9, 4));
    // Their owner keeps its sessions.
    for vid in [vid, other.vid] {
        cluster.ask(0, ClientOp::Vdi(VdiOp::Open { vid })).unwrap();
    }
    let (held, healthy) = (vid.min(other.vid), vid.max(other.vid));
    let rotten = |vid, count| (0..count).map(move |object| (Oid::data(vid, object), 0));
    cluster.sheep[1].2.rotten.extend(rotten(held, 6).chain(rotten(healthy, 2)));
    cluster.delays = Some(Box::new(move |_, message| {
        matches!(message, PeerMessage::Request { body: PeerRequest::Forward { op: ClientOp::Object { oid, .. }, .. }, .. }
            if oid.vid() == held)
    }));
    scrub_now(&mut cluster);
    assert!(!cluster.delayed.is_empty(), "the owner is asked, and does not answer");
    let left: Vec<(Oid, u32)> = cluster.sheep[1].2.rotten.iter().copied().collect();
    assert_eq!(left, rotten(held, 6).collect::<Vec<_>>());
    cluster.deliver_delayed();
    cluster.wait_ms(20_000);
    assert!(cluster.sheep[1].2.rotten.is_empty());
}

#[test]
fn content_is_not_put_back_into_an_object_that_may_change() {
    let (mut cluster, vid) = filled();
    let oid = Oid::data(vid, 3);
    cluster.sheep[1].2.rotten.insert((oid, 2));
    let view = cluster.sheep[1].1.view().clone();
    let pgs = (0..8).map(|index| PgId { pool: PoolId(0), index });
    let pg = pgs.into_iter().find(|pg| view.pg_of(oid) == Some(*pg)).expect("it has one");
    let data = bytes::Bytes::from(vec![4; BLOCK_BYTES]);
    let body = PeerRequest::Mend {
        pg,
        since: view.pg(pg).unwrap().since,
        oid,
        blocks: BlockRange::new(2, 1),
        checksums: proto::checksum::block_checksums(&data),
        data,
    };
    let life = view.incarnation(id_of(1)).unwrap();
    let message = PeerMessage::Request { id: 77, version: view.version(), life, body };
    let now = cluster.now;
    cluster.sheep[1].1.handle_peer(id_of(0), message, now);
    let refused = std::iter::from_fn(|| cluster.sheep[1].1.poll_effect()).any(|effect| {
        matches!(
            effect,
            node::Effect::Send { message: PeerMessage::Reply { id: 77, body: PeerReply::Failed(_) }, .. }
        )
    });
    assert!(refused);
    assert!(cluster.sheep[1].2.mended.is_empty());
}

#[test]
fn two_operators_do_not_undo_each_others_options() {
    let (mut cluster, _) = filled();
    set(&mut cluster, RepairChange { out_time_s: Some(7), ..RepairChange::default() });
    set(&mut cluster, RepairChange { rate_bytes: Some(9), ..RepairChange::default() });
    set(&mut cluster, RepairChange { enabled: Some(false), scrub: Some(false), ..RepairChange::default() });
    let repair = *cluster.sheep[1].1.view().repair();
    assert_eq!((repair.out_time_s, repair.rate_bytes, repair.enabled, repair.scrub), (7, 9, false, false));
}
