//! An owner dies at every step of one request; somebody reads and writes through the next owner before the request is repeated there. It
//! must have taken effect as a whole and once, or not at all before it is repeated.
//!
//! Sheep 0 owns the VDI and stores nothing; the three copies lie on 1 to 3; the request comes through sheep 4.

#[allow(dead_code)]
#[path = "native/cluster.rs"]
mod cluster;

use std::collections::BTreeSet;

use bytes::Bytes;
use cluster::{Cluster, OBJECT_BYTES, id_of};
use proto::client::*;
use proto::object::Origin;
use proto::{BLOCK_BYTES, Oid, Vid};

const BLOCK: u64 = BLOCK_BYTES as u64;
const CHUNK: u64 = 16 * BLOCK;
const OLD: u8 = 1;
const LATER: u8 = 9;

fn volume(vid: Vid, op: VolumeOp) -> ClientOp {
    ClientOp::Volume { vid, at: Point::Head, op }
}

fn write(vid: Vid, offset: u64, len: u64, fill: u8) -> ClientOp {
    volume(vid, VolumeOp::Write { offset, data: vec![fill; len as usize].into() })
}

fn vid_of(result: ClientResult) -> Vid {
    match result {
        Ok(ClientReply::Vdi(info)) => info.vid,
        other => panic!("expected a VDI, got {other:?}"),
    }
}

/// A VDI whose first object is, in every block, `OLD`.
#[derive(Clone, Copy, Debug)]
enum Before {
    Own,
    /// Of a snapshot of the same lineage.
    Inherited,
    /// Of what it was cloned from.
    OfBase,
    /// A part of it is own.
    Partial,
    /// A snapshot's, which is partial.
    PartialInherited,
}

impl Before {
    const ALL: [Before; 5] =
        [Before::Own, Before::Inherited, Before::OfBase, Before::Partial, Before::PartialInherited];

    fn make(self, cluster: &mut Cluster, disk: Vid) -> Vid {
        cluster.ask(0, write(disk, 0, OBJECT_BYTES, OLD)).unwrap();
        if matches!(self, Before::Own) {
            return disk;
        }
        snapshot(cluster, disk);
        let head = working(cluster, "disk");
        if matches!(self, Before::Inherited) {
            return head;
        }
        let clone =
            ClientOp::Vdi(VdiOp::Clone { base: disk, name: b"clone".to_vec(), size: None, policy: None });
        let clone = vid_of(cluster.ask(0, clone));
        if matches!(self, Before::OfBase) {
            return clone;
        }
        cluster.ask(0, write(clone, 2 * CHUNK + BLOCK, BLOCK, OLD)).unwrap();
        if matches!(self, Before::Partial) {
            return clone;
        }
        snapshot(cluster, clone);
        working(cluster, "clone")
    }
}

fn working(cluster: &mut Cluster, name: &str) -> Vid {
    let lookup = VdiOp::Lookup { name: name.as_bytes().to_vec(), selector: Selector::Working };
    vid_of(cluster.ask(0, ClientOp::Vdi(lookup)))
}

fn snapshot(cluster: &mut Cluster, vid: Vid) {
    cluster.ask(0, ClientOp::Vdi(VdiOp::Snapshot { vids: vec![vid], tag: b"s".to_vec() })).unwrap();
}

/// What the first object holds, by block.
fn read(cluster: &mut Cluster, sheep: u16, vid: Vid) -> Vec<u8> {
    let index = cluster.sheep.iter().position(|(id, ..)| *id == id_of(sheep)).expect("it is up");
    let op = VolumeOp::Read { offset: 0, len: OBJECT_BYTES as u32 };
    let data = cluster.data(index, volume(vid, op));
    let blocks = data.chunks(BLOCK_BYTES).map(|block| {
        assert!(block.iter().all(|byte| *byte == block[0]), "torn within a block");
        block[0]
    });
    blocks.collect()
}

/// `expected`: the blocks after the request.
fn check(before: Before, op: impl Fn(Vid) -> ClientOp, expected: &[u8]) {
    let mut outcomes = BTreeSet::new();
    for steps in 0.. {
        let (mut cluster, disk) = Cluster::with_two_gateways();
        let vid = before.make(&mut cluster, disk);
        assert_eq!(read(&mut cluster, 0, vid), vec![OLD; expected.len()]);
        let when = format!("{before:?}, after {steps} messages");

        cluster.dying = Some((id_of(0), steps));
        cluster.cut_links.insert((id_of(0), id_of(4)));
        let request = cluster.begin(4, op(vid));
        cluster.run();
        let is_last = cluster.dying.is_some_and(|(_, left)| left > 0);
        // Until somebody has used what the owner left, nobody hears of the request.
        cluster.put_to_sleep(id_of(4));
        cluster.lose(id_of(0));
        cluster.dying = None;
        let now = read(&mut cluster, 1, vid);
        let is_done = now == expected;
        assert!(
            is_done || now.iter().zip(expected).all(|(now, after)| *now == OLD || now == after),
            "{when}: {now:?}"
        );
        outcomes.insert(is_done);
        // Written later than what has been seen, which must stay.
        let seen: Vec<u64> = (0..now.len() as u64).filter(|b| now[*b as usize] != OLD).collect();
        for block in seen.iter().copied().step_by(5) {
            cluster.ask(1, write(vid, block * BLOCK, BLOCK, LATER)).unwrap();
        }
        cluster.wake();
        cluster.wait_ms(3000);
        let answer = cluster.answers.remove(&request);
        assert_eq!(answer, Some(Ok(ClientReply::Done)), "{when}");
        let end = read(&mut cluster, 2, vid);
        for (block, found) in end.iter().enumerate() {
            let is_later = seen.iter().step_by(5).any(|b| *b == block as u64);
            assert_eq!(*found, if is_later { LATER } else { expected[block] }, "{when}: block {block}");
        }
        let stores: Vec<_> =
            cluster.sheep.iter().filter(|(id, ..)| *id != id_of(4)).map(|(.., s)| &s.objects).collect();
        let own = |objects: &&std::collections::BTreeMap<Oid, _>| objects.get(&Oid::data(vid, 0)).cloned();
        let first: Option<std::collections::BTreeMap<u32, Bytes>> = own(&stores[0]);
        assert!(stores.iter().all(|objects| own(objects) == first), "{when}: copies differ");
        if is_last {
            break;
        }
    }
    assert_eq!(outcomes.len(), 2, "{before:?}: deaths before and after it was done");
}

fn with(blocks: std::ops::Range<u64>, fill: u8) -> Vec<u8> {
    let block = |b| if blocks.contains(&b) { fill } else { OLD };
    (0..OBJECT_BYTES / BLOCK).map(block).collect()
}

#[test]
fn a_discard_of_a_whole_object_takes_effect_once() {
    for before in Before::ALL {
        let op = |vid| volume(vid, VolumeOp::Discard { offset: 0, len: OBJECT_BYTES });
        check(before, op, &with(0..OBJECT_BYTES / BLOCK, 0));
    }
}

#[test]
fn a_discard_of_whole_chunks_takes_effect_once() {
    for before in Before::ALL {
        let op = |vid| volume(vid, VolumeOp::Discard { offset: CHUNK, len: 3 * CHUNK });
        check(before, op, &with(16..64, 0));
    }
}

#[test]
fn a_write_takes_effect_once() {
    for before in Before::ALL {
        check(before, |vid| write(vid, CHUNK - BLOCK, 2 * CHUNK, 2), &with(15..47, 2));
    }
}

#[test]
fn an_old_clients_creation_replaces_all_of_the_object_once() {
    for before in Before::ALL {
        let data = Bytes::from(vec![3; 4 * BLOCK_BYTES]);
        let op = |vid| ClientOp::Object {
            oid: Oid::data(vid, 0),
            op: NativeOp::Create { offset: 0, cow_from: None, data: data.clone() },
        };
        let expected = [[3; 4].as_slice(), &[0; 252]].concat();
        check(before, op, &expected);
    }
}

/// What a seal copies of one change goes over in several, zeros apart from data. The one who seals dies between two of them, and it alone had
/// the change.
#[test]
fn a_write_of_which_a_seal_has_copied_a_part_takes_effect_once() {
    let data: Bytes = [vec![2; 16 * BLOCK_BYTES], vec![0; 16 * BLOCK_BYTES]].concat().into();
    let expected = [[2; 16].as_slice(), &[0; 16], &[OLD; 224]].concat();
    let mut outcomes = BTreeSet::new();
    for (first, second) in (0..12).flat_map(|first| (0..24).map(move |second| (first, second))) {
        let (mut cluster, vid) = Cluster::with_two_gateways();
        Before::Own.make(&mut cluster, vid);
        let when = format!("after {first} and {second} messages");
        cluster.dying = Some((id_of(0), first));
        cluster.cut_links.insert((id_of(0), id_of(4)));
        let op = volume(vid, VolumeOp::Write { offset: 0, data: data.clone() });
        let request = cluster.begin(4, op);
        cluster.run();
        cluster.put_to_sleep(id_of(4));
        cluster.lose(id_of(0));
        cluster.dying = Some((id_of(1), second));
        cluster.begin(0, volume(vid, VolumeOp::Read { offset: 0, len: BLOCK as u32 }));
        cluster.run();
        cluster.lose(id_of(1));
        cluster.dying = None;
        let now = read(&mut cluster, 2, vid);
        let changed = now.iter().filter(|block| **block != OLD).count();
        outcomes.insert(changed);
        let seen: Vec<u64> = (0..now.len() as u64).filter(|b| now[*b as usize] != OLD).step_by(5).collect();
        for block in &seen {
            cluster.ask(0, write(vid, block * BLOCK, BLOCK, LATER)).unwrap();
        }
        cluster.wake();
        cluster.wait_ms(3000);
        assert_eq!(cluster.answers.remove(&request), Some(Ok(ClientReply::Done)), "{when}");
        for (block, found) in read(&mut cluster, 3, vid).iter().enumerate() {
            let last = if seen.contains(&(block as u64)) { LATER } else { expected[block] };
            assert_eq!(*found, last, "{when}, {changed} blocks were changed: block {block}");
        }
    }
    assert_eq!(outcomes, BTreeSet::from([0, 16, 32]), "not at all, in part, and as a whole");
}

/// A copy tells a seal of a change that it alone has, and is gone and back before the seal comes to read that from it: it has none of it any more.
#[test]
fn a_seal_does_not_read_from_a_copy_that_has_begun_anew() {
    let mut returned = 0;
    for object in 0..8 {
        let (mut cluster, vid) = Cluster::with_two_gateways();
        let at = |block: u64| object * OBJECT_BYTES + block * BLOCK;
        cluster.ask(0, write(vid, at(0), OBJECT_BYTES, OLD)).unwrap();
        let reaches = |cluster: &mut Cluster, copy: u16| {
            let lost = (1..5).filter(|i| *i != copy).map(|i| (id_of(0), id_of(i)));
            cluster.cut_links = lost.collect();
        };
        reaches(&mut cluster, 1);
        cluster.begin(0, write(vid, at(0), BLOCK, 2));
        cluster.run();
        reaches(&mut cluster, 3);
        let request = cluster.begin(4, write(vid, at(9), BLOCK, 3));
        cluster.run();
        cluster.cut_links.clear();
        cluster.put_to_sleep(id_of(4));
        cluster.lose(id_of(0));

        cluster.stalled = Some(id_of(2));
        cluster.begin(0, volume(vid, VolumeOp::Read { offset: at(0), len: BLOCK as u32 }));
        cluster.run();
        cluster.lose_and_come_back(3);
        let view = cluster.sheep[0].1.view();
        let pg = view.pg_of(Oid::data(vid, object as u32)).and_then(|id| view.pg(id)).expect("it has one");
        returned += usize::from(pg.in_sync.contains(&id_of(3)));
        cluster.stalled = None;
        cluster.answer_held();
        cluster.wait_ms(3000);
        cluster.wake();
        cluster.wait_ms(3000);
        assert_eq!(cluster.answers.remove(&request), Some(Ok(ClientReply::Done)));
        let read = VolumeOp::Read { offset: at(9), len: BLOCK as u32 };
        assert_eq!(cluster.data(0, volume(vid, read))[0], 3, "object {object}: its write was acknowledged");
    }
    assert!(returned > 0, "copies came back before the seal ended");
}

/// A copy that catches up has a change alone; a seal puts in its place what the others have, and ends in the middle; then that copy counts.
#[test]
fn a_write_that_a_seal_has_undone_in_part_takes_effect_once() {
    let mut kept_in_part = 0;
    for second in 0..16 {
        let (mut cluster, vid) = Cluster::with_two_gateways();
        cluster.ask(0, write(vid, 0, OBJECT_BYTES, OLD)).unwrap();
        let store = cluster.lose(id_of(3));
        // What a seal copies of this goes over in two changes.
        cluster.ask(0, volume(vid, VolumeOp::Discard { offset: CHUNK, len: CHUNK })).unwrap();
        cluster.slow = Some(id_of(3));
        cluster.come_back(3, store);
        // Its session was closed meanwhile.
        cluster.ask(0, write(vid, OBJECT_BYTES, BLOCK, OLD)).unwrap();
        cluster.cut_links = [1, 2, 4].map(|i| (id_of(0), id_of(i))).into();
        let gateway = cluster.sheep.iter().position(|(id, ..)| *id == id_of(4)).expect("it is up");
        let request = cluster.begin(gateway, write(vid, 0, 2 * CHUNK, 2));
        cluster.run();
        cluster.cut_links.clear();
        cluster.put_to_sleep(id_of(4));
        cluster.lose(id_of(0));
        cluster.dying = Some((id_of(1), second));
        cluster.begin(0, volume(vid, VolumeOp::Read { offset: 0, len: BLOCK as u32 }));
        cluster.run();
        let mut store = cluster.lose(id_of(1));
        cluster.dying = None;
        // Its crash leaves nothing of what its own store was to copy, which is what it had already.
        store.remembered.retain(|change| change.origin != Origin::default());
        cluster.come_back(1, store);
        cluster.slow = None;
        cluster.answer_held();
        cluster.begin(0, volume(vid, VolumeOp::Read { offset: 0, len: BLOCK as u32 }));
        cluster.wait_ms(20_000);

        let now = read(&mut cluster, 2, vid);
        let kept: Vec<u64> = (0..32).filter(|block| now[*block as usize] == 2).collect();
        kept_in_part += usize::from(kept.len() == 16);
        for block in &kept {
            cluster.ask(0, write(vid, block * BLOCK, BLOCK, LATER)).unwrap();
        }
        cluster.wake();
        cluster.wait_ms(3000);
        assert_eq!(cluster.answers.remove(&request), Some(Ok(ClientReply::Done)));
        for (block, found) in read(&mut cluster, 2, vid).iter().enumerate().take(32) {
            let last = if kept.contains(&(block as u64)) { LATER } else { 2 };
            assert_eq!(
                *found,
                last,
                "after {second} messages, {} blocks were kept: block {block}",
                kept.len()
            );
        }
    }
    assert!(kept_in_part > 0, "a part was kept");
}
