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
