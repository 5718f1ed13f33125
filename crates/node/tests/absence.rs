//! What a copy fetches that comes back: what was changed while it was away, and no more, unless nobody knows.
//!
//! Sheep 0 owns the VDI and stores nothing; its three copies lie on the others.

#[allow(dead_code)]
#[path = "native/cluster.rs"]
mod cluster;

use cluster::{Cluster, OBJECT_BYTES, Store, id_of};
use proto::client::*;
use proto::{BLOCK_BYTES, Vid};

const BLOCK: u64 = BLOCK_BYTES as u64;
const OBJECTS: u64 = 8;

fn write(cluster: &mut Cluster, vid: Vid, offset: u64, blocks: u64, fill: u8) {
    let data = vec![fill; (blocks * BLOCK) as usize].into();
    let op = ClientOp::Volume { vid, at: Point::Head, op: VolumeOp::Write { offset, data } };
    cluster.ask(0, op).unwrap();
}

/// 512 KiB of each of eight objects.
fn filled() -> (Cluster, Vid) {
    let (mut cluster, vid) = Cluster::with_gateway();
    (0..OBJECTS).for_each(|object| write(&mut cluster, vid, object * OBJECT_BYTES, 128, 1));
    // All copies hear that all of it is settled.
    cluster.wait_ms(1500);
    (cluster, vid)
}

fn index_of(cluster: &Cluster, i: u16) -> usize {
    cluster.sheep.iter().position(|(id, ..)| *id == id_of(i)).expect("a sheep of this cluster")
}

fn store(cluster: &Cluster, i: u16) -> &Store {
    &cluster.sheep[index_of(cluster, i)].2
}

fn fetched(cluster: &Cluster, i: u16) -> u64 {
    cluster.sheep[index_of(cluster, i)].1.fetched_bytes()
}

#[track_caller]
fn assert_in_sync(cluster: &Cluster, i: u16) {
    let view = cluster.sheep[0].1.view();
    assert!(view.pools().iter().flat_map(|pool| &pool.pgs).all(|pg| pg.in_sync.contains(&id_of(i))));
    assert_eq!(store(cluster, i).objects, store(cluster, if i == 1 { 2 } else { 1 }).objects);
}

#[test]
fn a_copy_that_comes_back_fetches_the_blocks_that_were_written_meanwhile() {
    let (mut cluster, vid) = filled();
    let disk = cluster.lose(id_of(3));
    write(&mut cluster, vid, 5 * BLOCK, 3, 2);
    write(&mut cluster, vid, 2 * OBJECT_BYTES + 127 * BLOCK, 2, 2);
    let discard = VolumeOp::Discard { offset: 3 * OBJECT_BYTES, len: 16 * BLOCK };
    cluster.ask(0, ClientOp::Volume { vid, at: Point::Head, op: discard }).unwrap();
    cluster.come_back(3, disk);
    assert_in_sync(&cluster, 3);
    // What was discarded is told, and read as zeros.
    assert_eq!(fetched(&cluster, 3), (3 + 2 + 16) * BLOCK);
}

#[test]
fn nothing_was_written_and_nothing_is_fetched() {
    let (mut cluster, _) = filled();
    let disk = cluster.lose(id_of(3));
    cluster.come_back(3, disk);
    assert_in_sync(&cluster, 3);
    assert_eq!(fetched(&cluster, 3), 0);
}

#[test]
fn objects_made_and_removed_meanwhile_are_made_and_removed() {
    let (mut cluster, vid) = filled();
    let doomed =
        VdiOp::Create { name: b"doomed".to_vec(), size: OBJECT_BYTES, policy: None, block_size_shift: None };
    let Ok(ClientReply::Vdi(doomed)) = cluster.ask(0, ClientOp::Vdi(doomed)) else { panic!("no VDI") };
    write(&mut cluster, doomed.vid, 0, 1, 7);
    let disk = cluster.lose(id_of(3));
    let held = disk.objects.len();
    cluster.ask(0, ClientOp::Vdi(VdiOp::Delete { vid: doomed.vid })).unwrap();
    let whole = VolumeOp::Discard { offset: OBJECT_BYTES, len: OBJECT_BYTES };
    cluster.ask(0, ClientOp::Volume { vid, at: Point::Head, op: whole }).unwrap();
    cluster.come_back(3, disk);
    cluster.wait_ms(2000);
    assert_in_sync(&cluster, 3);
    assert!(store(&cluster, 3).objects.len() < held);
    assert!(fetched(&cluster, 3) < OBJECT_BYTES / 8, "{} bytes", fetched(&cluster, 3));
}

#[test]
fn a_copy_that_was_not_there_all_the_time_does_not_know_what_another_lacks() {
    let (mut cluster, vid) = filled();
    let away = cluster.lose(id_of(3));
    write(&mut cluster, vid, 5 * BLOCK, 1, 2);
    // Both that stayed come and go, one after the other: the second one fetches from the first, and neither remembers.
    for i in [1, 2] {
        cluster.lose_and_come_back(i);
    }
    cluster.come_back(3, away);
    assert_in_sync(&cluster, 3);
    assert_eq!(fetched(&cluster, 3), OBJECTS * 128 * BLOCK + table_bytes(&cluster), "all of it");
}

/// Sheep 3 alone can still read a block, and does not count yet.
fn only_the_returning_copy_has_a_block() -> (Cluster, Vid, proto::RequestId) {
    let (mut cluster, vid) = filled();
    let disk = cluster.lose(id_of(3));
    for i in [1, 2] {
        let index = index_of(&cluster, i);
        cluster.sheep[index].2.rotten.insert((proto::Oid::data(vid, 2), 5));
    }
    // It hears nothing of what it asks for.
    cluster.cut_links.extend([1, 2].map(|i| (id_of(i), id_of(3))));
    cluster.come_back(3, disk);
    let op = VolumeOp::Read { offset: 2 * OBJECT_BYTES + 5 * BLOCK, len: BLOCK_BYTES as u32 };
    let read = cluster.begin(0, ClientOp::Volume { vid, at: Point::Head, op });
    cluster.run();
    (cluster, vid, read)
}

#[test]
fn a_block_that_only_a_returning_copy_can_read_is_waited_for() {
    let (mut cluster, _, read) = only_the_returning_copy_has_a_block();
    cluster.wait_ms(3000);
    assert!(!cluster.answers.contains_key(&read), "{:?}", cluster.answers);
    cluster.cut_links.clear();
    cluster.wait_ms(3000);
    let answer = cluster.answers.remove(&read);
    assert!(
        matches!(&answer, Some(Ok(ClientReply::Data(data))) if data[..] == [1; BLOCK_BYTES]),
        "{answer:?}"
    );
}

#[test]
fn a_block_that_a_copy_does_not_come_back_with_is_not_waited_for_for_ever() {
    let (mut cluster, _, read) = only_the_returning_copy_has_a_block();
    cluster.wait_ms(30_000);
    assert_eq!(cluster.answers.remove(&read), Some(Err(ClientError::Io)));
}

/// Sheep 1 of two has been away while block 7 was written; sheep 0 has started anew since and does not know what the other lacks, and cannot
/// read one of its blocks.
fn the_only_source_is_damaged(rotten: u32) -> (Cluster, Vid) {
    let (mut cluster, vid) = Cluster::with_disk(2);
    write(&mut cluster, vid, 2 * OBJECT_BYTES, 128, 1);
    cluster.wait_ms(1500);
    let disk = cluster.lose(id_of(1));
    write(&mut cluster, vid, 2 * OBJECT_BYTES + 7 * BLOCK, 1, 2);
    cluster.wait_ms(1500);
    cluster.lose_and_come_back(0);
    let source = index_of(&cluster, 0);
    cluster.sheep[source].2.rotten.insert((proto::Oid::data(vid, 2), rotten));
    cluster.come_back(1, disk);
    cluster.wait_ms(5000);
    (cluster, vid)
}

fn counts(cluster: &Cluster, i: u16) -> bool {
    let view = cluster.sheep[0].1.view();
    view.pools().iter().flat_map(|pool| &pool.pgs).all(|pg| pg.in_sync.contains(&id_of(i)))
}

#[test]
fn a_block_that_the_source_cannot_read_is_not_needed_where_it_is_the_same() {
    let (mut cluster, vid) = the_only_source_is_damaged(5);
    assert!(counts(&cluster, 1));
    for (block, fill) in [(5, 1), (7, 2)] {
        let op = VolumeOp::Read { offset: 2 * OBJECT_BYTES + block * BLOCK, len: BLOCK_BYTES as u32 };
        let data = cluster.data(1, ClientOp::Volume { vid, at: Point::Head, op });
        assert!(data.iter().all(|byte| *byte == fill), "block {block}");
    }
}

#[test]
fn a_block_that_the_source_cannot_read_and_that_was_written_meanwhile_is_missing() {
    let (cluster, _) = the_only_source_is_damaged(7);
    assert!(!counts(&cluster, 1));
}

/// What a block table's page takes.
fn table_bytes(cluster: &Cluster) -> u64 {
    let is_table = |oid: &proto::Oid| oid.kind() != Some(proto::ObjectKind::Data);
    let objects = store(cluster, 1).objects.iter().filter(|(oid, _)| is_table(oid));
    objects.map(|(_, blocks)| blocks.keys().next_back().map_or(0, |last| u64::from(*last) + 1) * BLOCK).sum()
}

#[test]
fn a_copy_that_goes_again_before_it_has_caught_up_fetches_everything() {
    let (mut cluster, vid) = filled();
    let disk = cluster.lose(id_of(3));
    write(&mut cluster, vid, 5 * BLOCK, 1, 2);
    // It hears nothing of what it asks for.
    cluster.cut_links.extend([1, 2].map(|i| (id_of(i), id_of(3))));
    cluster.come_back(3, disk);
    let disk = cluster.lose(id_of(3));
    cluster.cut_links.clear();
    cluster.come_back(3, disk);
    assert_in_sync(&cluster, 3);
    assert!(fetched(&cluster, 3) >= OBJECTS * 128 * BLOCK);
}

/// Of what sheep 3 wrote and the others never heard of nothing is left.
#[test]
fn what_only_the_absent_copy_has_is_fetched_too() {
    let (mut cluster, vid) = filled();
    cluster.cut_links.extend([1, 2].map(|i| (id_of(0), id_of(i))));
    let data = vec![9; 3 * BLOCK_BYTES].into();
    cluster.begin(
        0,
        ClientOp::Volume { vid, at: Point::Head, op: VolumeOp::Write { offset: 4 * OBJECT_BYTES, data } },
    );
    cluster.run();
    let disk = cluster.lose(id_of(3));
    assert!(disk.objects.values().flat_map(|object| object.values()).any(|block| block[0] == 9));
    cluster.lose(id_of(0));
    cluster.cut_links.clear();
    // Somebody else opens the VDI and ends cleanly: what was unsettled is settled for those who are there.
    let sheep = index_of(&cluster, 1);
    let op = VolumeOp::Write { offset: 0, data: vec![3; BLOCK_BYTES].into() };
    cluster.ask(sheep, ClientOp::Volume { vid, at: Point::Head, op }).unwrap();
    cluster.come_back(3, disk);
    assert_in_sync(&cluster, 3);
    assert!(
        store(&cluster, 3).objects.values().flat_map(|object| object.values()).all(|block| block[0] != 9)
    );
    assert!(fetched(&cluster, 3) < OBJECT_BYTES / 8, "{} bytes", fetched(&cluster, 3));
}

/// The others have a change that sheep 3 was never sent; its owner dies before sheep 3 leaves, and nobody sends it again.
#[test]
fn what_was_unsettled_when_the_copy_left_is_fetched_too() {
    let (mut cluster, vid) = filled();
    cluster.cut_links.insert((id_of(0), id_of(3)));
    let data = vec![9; 3 * BLOCK_BYTES].into();
    let op = VolumeOp::Write { offset: 4 * OBJECT_BYTES, data };
    cluster.begin(0, ClientOp::Volume { vid, at: Point::Head, op });
    cluster.run();
    cluster.lose(id_of(0));
    let disk = cluster.lose(id_of(3));
    cluster.cut_links.clear();
    let sheep = index_of(&cluster, 1);
    let op = VolumeOp::Read { offset: 4 * OBJECT_BYTES, len: BLOCK_BYTES as u32 };
    let read = cluster.data(sheep, ClientOp::Volume { vid, at: Point::Head, op });
    assert_eq!(read[0], 9, "both copies that are left have it");
    cluster.come_back(3, disk);
    assert_in_sync(&cluster, 3);
    assert!(fetched(&cluster, 3) < OBJECT_BYTES / 8, "{} bytes", fetched(&cluster, 3));
}

#[test]
fn a_store_is_not_given_more_than_it_keeps_up_with() {
    const OBJECTS: u64 = 48;
    let (mut cluster, _) = Cluster::with_gateway();
    let disk = cluster.lose(id_of(3));
    let (name, size) = (b"large".to_vec(), OBJECTS * OBJECT_BYTES);
    let create = VdiOp::Create { name, size, policy: None, block_size_shift: None };
    let Ok(ClientReply::Vdi(vdi)) = cluster.ask(0, ClientOp::Vdi(create)) else { panic!("no VDI") };
    for object in 0..OBJECTS {
        write(&mut cluster, vdi.vid, object * OBJECT_BYTES, 256, object as u8 + 1);
    }
    cluster.slow = Some(id_of(3));
    cluster.come_back(3, disk);
    // What is under way when the store falls behind still comes.
    let most = 16 + 24;
    assert!((16..=most).contains(&cluster.held.len()), "{} changes wait for the store", cluster.held.len());
    while !cluster.held.is_empty() {
        cluster.answer_held();
        assert!(cluster.held.len() <= most, "{} changes wait for the store", cluster.held.len());
        cluster.wait_ms(100);
    }
    cluster.slow = None;
    cluster.wait_ms(5000);
    assert_in_sync(&cluster, 3);
}
