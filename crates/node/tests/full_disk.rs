//! One of the disks is full, and no copy may be done without: nothing waits for room, and copies stay alike.

#[allow(dead_code)]
#[path = "native/cluster.rs"]
mod cluster;

use std::collections::BTreeMap;

use bytes::Bytes;
use cluster::{Cluster, OBJECT_BYTES, id_of};
use proto::checksum::crc32c;
use proto::client::*;
use proto::{BLOCK_BYTES, ObjectKind, Oid, Vid};

fn write(vid: Vid, object: u64, fill: u8) -> ClientOp {
    let data = vec![fill; BLOCK_BYTES].into();
    ClientOp::Volume { vid, at: Point::Head, op: VolumeOp::Write { offset: object * OBJECT_BYTES, data } }
}

fn read(vid: Vid, object: u64) -> ClientOp {
    let op = VolumeOp::Read { offset: object * OBJECT_BYTES, len: BLOCK_BYTES as u32 };
    ClientOp::Volume { vid, at: Point::Head, op }
}

/// Of three copies one is away, so that both others have to have every write; sheep 2 has a full disk.
fn with_full_disk() -> (Cluster, Vid) {
    let (mut cluster, vid) = Cluster::with_gateway();
    cluster.ask(0, write(vid, 0, 1)).unwrap();
    cluster.lose(id_of(3));
    cluster.sheep[2].2.is_crowded = true;
    (cluster, vid)
}

/// The checksums of all blocks of data. Of an object that was refused the table may know: it reads as the zeros that were there before.
fn objects(cluster: &Cluster, sheep: usize) -> BTreeMap<Oid, BTreeMap<u32, u32>> {
    let objects =
        cluster.sheep[sheep].2.objects.iter().filter(|(oid, _)| oid.kind() == Some(ObjectKind::Data));
    let checksums =
        |blocks: &BTreeMap<u32, Bytes>| blocks.iter().map(|(n, data)| (*n, crc32c(data))).collect();
    objects.map(|(oid, blocks)| (*oid, checksums(blocks))).collect()
}

#[test]
fn what_one_copy_has_taken_the_full_one_takes_too_and_nothing_after_it() {
    let (mut cluster, vid) = with_full_disk();
    let under_way = [1, 2, 3].map(|object| cluster.begin(0, write(vid, object, 2)));
    cluster.run();
    for request in under_way {
        assert_eq!(cluster.answers.remove(&request), Some(Ok(ClientReply::Done)), "one copy has it already");
    }
    assert_eq!(objects(&cluster, 1), objects(&cluster, 2));
    let before = objects(&cluster, 1);
    for object in [4, 0] {
        assert_eq!(cluster.ask(0, write(vid, object, 3)), Err(ClientError::NoSpace));
        assert_eq!(objects(&cluster, 1), before, "no copy has what was refused of object {object}");
        assert_eq!(objects(&cluster, 2), before, "no copy has what was refused of object {object}");
    }
    assert_eq!(cluster.data(1, read(vid, 4))[0], 0);
    assert_eq!(cluster.data(1, read(vid, 0))[0], 1);
    cluster.sheep[2].2.is_crowded = false;
    cluster.ask(0, write(vid, 4, 4)).unwrap();
    assert_eq!(cluster.data(1, read(vid, 4))[0], 4);
    assert_eq!(objects(&cluster, 1), objects(&cluster, 2));
    // Room again: nobody is asked first any more.
    cluster.ask(0, write(vid, 5, 5)).unwrap();
    assert_eq!(objects(&cluster, 1), objects(&cluster, 2));
}

#[test]
fn a_seal_and_a_check_find_room_and_a_deletion_gives_it_back() {
    let (mut cluster, vid) = with_full_disk();
    // Sheep 1 hears of this, and then the owner dies.
    cluster.cut_links.insert((id_of(0), id_of(2)));
    cluster.begin(0, write(vid, 1, 7));
    cluster.run();
    cluster.cut_links.clear();
    cluster.lose(id_of(0));
    // The first two of the list are the sheep 1 and 2 now.
    assert_eq!(cluster.data(0, read(vid, 1))[0], 7);
    assert_eq!(objects(&cluster, 0), objects(&cluster, 1));
    let oid = Oid::data(vid, 1);
    cluster.sheep[1].2.objects.get_mut(&oid).unwrap().insert(0, vec![9; BLOCK_BYTES].into());
    let check = ClientOp::Object { oid, op: NativeOp::Check { repair: true, part: None } };
    let Ok(ClientReply::Checked(report)) = cluster.ask(0, check) else { panic!("no report") };
    assert!(report.repaired && report.lost.is_empty());
    assert_eq!(objects(&cluster, 0), objects(&cluster, 1));
    assert_eq!(cluster.ask(0, ClientOp::Vdi(VdiOp::Delete { vid })), Ok(ClientReply::Done));
    cluster.wait_ms(2000);
    assert!(objects(&cluster, 1).keys().all(|oid| oid.vid() != vid));
}

#[test]
fn what_was_refused_is_not_taken_when_its_message_comes_once_more() {
    use proto::peer::{PeerMessage, PeerRequest};
    let (mut cluster, vid) = with_full_disk();
    cluster.ask(0, write(vid, 1, 2)).unwrap();
    cluster.recorded = Some(Vec::new());
    assert_eq!(cluster.ask(0, write(vid, 4, 3)), Err(ClientError::NoSpace));
    let oid = Oid::data(vid, 4);
    let is_it = |message: &PeerMessage| matches!(message, PeerMessage::Request { body: PeerRequest::Change { oid: of, .. }, .. } if *of == oid);
    let sent = cluster.recorded.take().unwrap();
    let again: Vec<_> = sent.into_iter().filter(|(.., message)| is_it(message)).collect();
    assert!(!again.is_empty());
    // As when a membership changed, or its answer took two seconds; and meanwhile something was deleted.
    cluster.sheep[2].2.is_crowded = false;
    again.into_iter().for_each(|message| cluster.repeat(message));
    cluster.wait_ms(5000);
    cluster.ask(0, write(vid, 5, 5)).unwrap();
    cluster.wait_ms(5000);
    assert_eq!(objects(&cluster, 1), objects(&cluster, 2));
}
