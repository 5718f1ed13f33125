//! What copies have to remember while a gateway, which cannot be reached, does not confirm an answer, and what a seal makes of it.
//!
//! Sheep 0 owns the VDI and stores nothing; the three copies lie on 1 to 3; sheep 4 is the gateway that sleeps.

#[allow(dead_code)]
#[path = "native/cluster.rs"]
mod cluster;

use cluster::{Cluster, OBJECT_BYTES, id_of};
use proto::client::*;
use proto::object::{Origin, Stamp, Unsettled};
use proto::peer::{PeerMessage, PeerRequest};
use proto::{BLOCK_BYTES, Generation, Oid, RequestId, Seq, Vid};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Far below what the smallest store of a real disk has room for, for many VDIs.
const MARKS_MAX: usize = 5000;
/// The block that the sleeping gateway writes.
const ASKED: u64 = 5;
const COPIES: [u16; 3] = [1, 2, 3];

fn write(vid: Vid, offset: u64, fill: u8) -> ClientOp {
    let op = VolumeOp::Write { offset, data: vec![fill; BLOCK_BYTES].into() };
    ClientOp::Volume { vid, at: Point::Head, op }
}

fn index_of(cluster: &Cluster, i: u16) -> usize {
    cluster.sheep.iter().position(|(id, ..)| *id == id_of(i)).expect("it is up")
}

fn byte_at(cluster: &mut Cluster, i: u16, vid: Vid, offset: u64) -> u8 {
    let op = VolumeOp::Read { offset, len: BLOCK_BYTES as u32 };
    let sheep = index_of(cluster, i);
    let data = cluster.data(sheep, ClientOp::Volume { vid, at: Point::Head, op });
    assert!(data.iter().all(|byte| *byte == data[0]));
    data[0]
}

fn marks(cluster: &Cluster) -> usize {
    let marks = cluster.sheep.iter().map(|(.., store)| store.remembered.len());
    marks.max().expect("there are sheep")
}

/// A request of sheep 4 is carried out, and it falls asleep before it hears of that.
fn with_an_unconfirmed_write(fill: u8) -> (Cluster, Vid, RequestId) {
    let (mut cluster, vid) = Cluster::with_two_gateways();
    (0..8).for_each(|object| cluster.ask(0, write(vid, object * OBJECT_BYTES, 1)).map(drop).unwrap());
    let request = sleep_after(&mut cluster, write(vid, ASKED * BLOCK, fill));
    assert_eq!(byte_at(&mut cluster, 0, vid, ASKED * BLOCK), fill);
    (cluster, vid, request)
}

fn sleep_after(cluster: &mut Cluster, op: ClientOp) -> RequestId {
    cluster.cut_links.insert((id_of(0), id_of(4)));
    let gateway = index_of(cluster, 4);
    let request = cluster.begin(gateway, op);
    cluster.run();
    cluster.put_to_sleep(id_of(4));
    cluster.cut_links.clear();
    request
}

/// Many writes through this sheep, to the blocks from 8 on of every object.
fn write_much(cluster: &mut Cluster, i: u16, vid: Vid, count: u64) {
    let sheep = index_of(cluster, i);
    for n in 0..count / 50 {
        let offset = |k: u64| (k % 8) * OBJECT_BYTES + (8 + k / 8) * BLOCK;
        let asked: Vec<RequestId> =
            (0..50).map(|k| cluster.begin(sheep, write(vid, offset(k), n as u8))).collect();
        cluster.run();
        for request in asked {
            assert_eq!(cluster.answers.remove(&request), Some(Ok(ClientReply::Done)));
        }
        if n % 20 == 0 {
            cluster.wait_ms(100);
        }
        if n % 10 == 0 {
            assert!(marks(cluster) < MARKS_MAX, "{} marks after {} writes", marks(cluster), n * 50);
        }
    }
}

fn assert_copies_are_alike(cluster: &Cluster, copies: &[u16]) {
    let objects = |i: u16| &cluster.sheep[index_of(cluster, i)].2.objects;
    assert!(copies.iter().all(|i| objects(*i) == objects(copies[0])));
}

#[test]
fn copies_need_not_remember_what_is_written_while_an_answer_is_not_confirmed() {
    let (mut cluster, vid, request) = with_an_unconfirmed_write(2);
    cluster.ask(0, write(vid, ASKED * BLOCK, 9)).unwrap();
    write_much(&mut cluster, 0, vid, 100_000);
    // The next owner must still know that the request was carried out: what was written since stays.
    cluster.lose(id_of(0));
    assert_eq!(byte_at(&mut cluster, 1, vid, ASKED * BLOCK), 9);
    cluster.wake();
    cluster.wait_ms(3000);
    assert_eq!(cluster.answers.remove(&request), Some(Ok(ClientReply::Done)));
    assert_eq!(byte_at(&mut cluster, 1, vid, ASKED * BLOCK), 9);
    assert_copies_are_alike(&cluster, &COPIES);
    // Now all of it is.
    cluster.ask(index_of(&cluster, 1), write(vid, 0, 3)).unwrap();
    cluster.wait_ms(2000);
    assert_eq!(marks(&cluster), 0);
}

#[test]
fn nor_while_an_earlier_owners_answer_is_not_confirmed() {
    let (mut cluster, vid, request) = with_an_unconfirmed_write(2);
    cluster.lose(id_of(0));
    assert_eq!(byte_at(&mut cluster, 1, vid, ASKED * BLOCK), 2);
    let sheep = index_of(&cluster, 1);
    cluster.ask(sheep, write(vid, ASKED * BLOCK, 9)).unwrap();
    write_much(&mut cluster, 1, vid, 20_000);
    cluster.lose(id_of(1));
    assert_eq!(byte_at(&mut cluster, 2, vid, ASKED * BLOCK), 9);
    write_much(&mut cluster, 2, vid, 5_000);
    cluster.wake();
    cluster.wait_ms(3000);
    assert_eq!(cluster.answers.remove(&request), Some(Ok(ClientReply::Done)));
    assert_eq!(byte_at(&mut cluster, 2, vid, ASKED * BLOCK), 9);
    assert_copies_are_alike(&cluster, &COPIES[1..]);
}

#[test]
fn a_late_duplicate_of_a_forgotten_change_undoes_nothing() {
    let (mut cluster, vid, _) = with_an_unconfirmed_write(2);
    cluster.recorded = Some(Vec::new());
    cluster.ask(0, write(vid, 7 * BLOCK, 6)).unwrap();
    let recorded = cluster.recorded.take().unwrap();
    let is_change = |m: &PeerMessage| matches!(m, PeerMessage::Request { body: PeerRequest::Change { oid, .. }, .. } if *oid == Oid::data(vid, 0));
    let changes: Vec<_> = recorded.into_iter().filter(|(.., message)| is_change(message)).collect();
    assert_eq!(changes.len(), COPIES.len());
    cluster.ask(0, write(vid, 7 * BLOCK, 7)).unwrap();
    write_much(&mut cluster, 0, vid, 4000);
    let carried_out = |cluster: &Cluster, i| cluster.sheep[index_of(cluster, i)].2.changes.len();
    let before = COPIES.map(|i| carried_out(&cluster, i));
    for change in changes {
        cluster.repeat(change);
    }
    assert_eq!(before, COPIES.map(|i| carried_out(&cluster, i)));
    assert_eq!(byte_at(&mut cluster, 0, vid, 7 * BLOCK), 7);
}

#[test]
fn writes_wait_when_too_many_answers_are_not_confirmed() {
    let (mut cluster, vid) = Cluster::with_two_gateways();
    cluster.ask(0, write(vid, 0, 1)).unwrap();
    cluster.cut_links.insert((id_of(0), id_of(4)));
    let gateway = index_of(&cluster, 4);
    let unconfirmed: Vec<RequestId> =
        (0..2500).map(|n| cluster.begin(gateway, write(vid, (n % 200) * BLOCK, 2))).collect();
    cluster.run();
    cluster.put_to_sleep(id_of(4));
    cluster.cut_links.clear();
    let mut asked = Vec::new();
    for n in 0..8000 {
        asked.push(cluster.begin(0, write(vid, OBJECT_BYTES + (n % 200) * BLOCK, n as u8)));
        if n % 50 == 0 {
            cluster.run();
        }
    }
    cluster.wait_ms(1000);
    let held = |cluster: &Cluster| asked.iter().filter(|id| !cluster.answers.contains_key(id)).count();
    assert!((1000..3000).contains(&held(&cluster)), "{} writes are held", held(&cluster));
    assert!(marks(&cluster) < 9500, "{} marks", marks(&cluster));
    assert_eq!(byte_at(&mut cluster, 0, vid, 0), 2, "reads go on");
    cluster.wake();
    cluster.wait_ms(3000);
    assert_eq!(held(&cluster), 0);
    assert!(unconfirmed.iter().chain(&asked).all(|id| cluster.answers[id] == Ok(ClientReply::Done)));
    assert_copies_are_alike(&cluster, &COPIES);
}

#[test]
fn copies_are_told_to_forget_for_good_when_a_vdi_has_come_to_rest_and_not_between_its_writes() {
    let (mut cluster, vid) = Cluster::with_two_gateways();
    cluster.ask(0, write(vid, 0, 1)).unwrap();
    cluster.recorded = Some(Vec::new());
    let told = |cluster: &Cluster| {
        let is_settle =
            |m: &PeerMessage| matches!(m, PeerMessage::Request { body: PeerRequest::Settle { .. }, .. });
        cluster.recorded.iter().flatten().filter(|(.., message)| is_settle(message)).count()
    };
    for n in 0..20 {
        cluster.ask(0, write(vid, n % 4 * BLOCK, n as u8)).unwrap();
        cluster.wait_ms(300);
    }
    assert_eq!(told(&cluster), 0);
    cluster.wait_ms(5000);
    assert_eq!(told(&cluster), COPIES.len());
    assert_eq!(marks(&cluster), 0);
}

#[test]
fn a_seal_of_many_changes_ends() {
    const MARKS: u64 = 200_000;
    let (mut cluster, vid) = Cluster::with_two_gateways();
    (0..8).for_each(|object| cluster.ask(0, write(vid, object * OBJECT_BYTES, 1)).map(drop).unwrap());
    cluster.lose(id_of(0));
    // The last two copies stay in the sets whatever becomes of them.
    cluster.lose(id_of(1));
    let mut disks = [2, 3].map(|i| cluster.lose(id_of(i)));
    let change = |n: u64| Unsettled {
        vid,
        stamp: Stamp { generation: Generation(1), seq: Seq((1 << 33) + n) },
        origin: Origin::default(),
        oid: Oid::data(vid, n as u32 % 8),
        blocks: Some(proto::object::BlockRange::new(n as u32 / 8 % 256, 1)),
    };
    for disk in &mut disks {
        disk.remembered.extend((0..MARKS).map(change));
    }
    // The newest of all, only one copy has heard of: it is the last of the last page.
    let (newest, block) = (change(MARKS), (MARKS as u32 / 8) % 256);
    disks[1].remembered.push(newest);
    let object = disks[1].objects.get_mut(&newest.oid).expect("it was written");
    object.insert(block, vec![8; BLOCK_BYTES].into());
    for (i, disk) in [2, 3].into_iter().zip(disks) {
        cluster.come_back(i, disk);
    }
    assert_eq!(byte_at(&mut cluster, 4, vid, u64::from(block) * BLOCK), 8);
    cluster.wait_ms(2000);
    assert_copies_are_alike(&cluster, &COPIES[1..]);
    assert_eq!(marks(&cluster), 0, "the seal has ended");
}
