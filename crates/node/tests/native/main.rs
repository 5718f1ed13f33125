//! What native clients do with objects. Requests come through either of two sheep, of which one owns the VDI's session.
//!
//! Faults and delays are the simulator's business (crate `sim`); here effects are carried out one by one.

#[allow(dead_code)]
mod cluster;

use bytes::Bytes;
use cluster::{Cluster, OBJECT_BYTES};
use proto::client::*;
use proto::inode::{HEADER_BYTES, TABLE_END, TABLE_ENTRIES, table_offset};
use proto::{Oid, RequestId, Vid};

fn read_flat(oid: Oid, offset: u32, len: u32) -> ClientOp {
    ClientOp::Object { oid, op: NativeOp::ReadFlat { offset, len } }
}

fn write_flat(oid: Oid, offset: u32, data: &[u8]) -> ClientOp {
    ClientOp::Object { oid, op: NativeOp::WriteFlat { offset, data: Bytes::copy_from_slice(data) } }
}

fn read_object(oid: Oid, offset: u32, len: u32) -> ClientOp {
    ClientOp::Object { oid, op: NativeOp::Read { offset, len } }
}

fn write_object(oid: Oid, offset: u32, data: &[u8]) -> ClientOp {
    ClientOp::Object { oid, op: NativeOp::Write { offset, data: Bytes::copy_from_slice(data) } }
}

fn create_object(oid: Oid, offset: u32, data: &[u8]) -> ClientOp {
    let data = Bytes::copy_from_slice(data);
    ClientOp::Object { oid, op: NativeOp::Create { offset, cow_from: None, data } }
}

fn volume(vid: Vid, op: VolumeOp) -> ClientOp {
    ClientOp::Volume { vid, at: Point::Head, op }
}

#[test]
fn the_flat_table_says_that_all_is_there_and_allocates_nothing() {
    let (mut cluster, vid) = Cluster::with_disk(2);
    cluster.ask(0, write_flat(Oid::data(vid, 3), 0, &[1; 512])).unwrap();
    let inode = Oid::inode(vid);
    let flat = cluster.data(1, read_flat(inode, 0, TABLE_END as u32));
    assert!(flat[HEADER_BYTES..].chunks_exact(4).all(|entry| entry == vid.0.to_le_bytes()));
    let real = cluster.data(1, read_object(inode, 0, TABLE_END as u32));
    assert_eq!(flat[..HEADER_BYTES], real[..HEADER_BYTES], "the header is the header");
    let allocated = real[HEADER_BYTES..].chunks_exact(4).filter(|entry| *entry != [0; 4]).count();
    assert_eq!(allocated, 1);
    assert_eq!(cluster.usage(vid), 1);

    // Any part of it, however it lies.
    for (start, len) in [(table_offset(7) - 6, 11), (table_offset(7) + 1, 2), (TABLE_END - 3, 10), (5, 9)] {
        let part = cluster.data(1, read_flat(inode, start as u32, len));
        let beyond = [&flat[..], &[0; 64]].concat();
        assert_eq!(part[..], beyond[start..start + len as usize], "{len} bytes from {start}");
    }
}

#[test]
fn what_one_sheep_has_acknowledged_the_other_reads_hole_or_not() {
    let (mut cluster, vid) = Cluster::with_disk(2);
    let oid = Oid::data(vid, 2);
    let at = 2 * OBJECT_BYTES;
    let both = |cluster: &mut Cluster, expected: &[u8]| {
        for sheep in 0..2 {
            assert_eq!(cluster.data(sheep, read_flat(oid, 0, expected.len() as u32))[..], *expected);
        }
    };
    both(&mut cluster, &[0; 8192]);
    cluster.ask(0, volume(vid, VolumeOp::Write { offset: at + 4096, data: vec![1; 4096].into() })).unwrap();
    both(&mut cluster, &[[0; 4096], [1; 4096]].concat());
    cluster.ask(1, write_flat(oid, 4000, &[2; 192])).unwrap();
    let expected = [&[0; 4000][..], &[2; 192], &[1; 4000]].concat();
    both(&mut cluster, &expected);
    let read = cluster.data(0, volume(vid, VolumeOp::Read { offset: at, len: 8192 }));
    assert_eq!(read[..], expected);
    cluster.ask(0, volume(vid, VolumeOp::Discard { offset: at, len: OBJECT_BYTES })).unwrap();
    assert_eq!(cluster.usage(vid), 0);
    both(&mut cluster, &[0; 8192]);
    assert_eq!(cluster.ask(1, read_object(oid, 0, 1)), Err(ClientError::NoObject), "others know of holes");
    cluster.ask(1, write_flat(oid, 1, &[3; 2])).unwrap();
    both(&mut cluster, &[0, 3, 3, 0, 0]);
    assert_eq!(cluster.usage(vid), 1);
}

#[test]
fn writes_into_one_hole_at_the_same_time_are_all_kept() {
    let (mut cluster, vid) = Cluster::with_disk(2);
    let oid = Oid::data(vid, 0);
    // None has an answer when the next one is sent, and each covers a part of one block.
    let requests: Vec<RequestId> = (0..8u32)
        .map(|i| cluster.begin(i as usize % 2, write_flat(oid, i * 512, &[i as u8 + 1; 512])))
        .collect();
    cluster.run();
    for request in requests {
        assert_eq!(cluster.answers.remove(&request), Some(Ok(ClientReply::Done)));
    }
    let expected: Vec<u8> = (1..=8u8).flat_map(|i| [i; 512]).collect();
    assert_eq!(cluster.data(1, read_flat(oid, 0, 4096))[..], expected);
}

#[test]
fn ranges_beyond_the_object_are_refused_to_flat_clients_too() {
    let (mut cluster, vid) = Cluster::with_disk(1);
    let last = OBJECT_BYTES as u32 - 1;
    let oid = Oid::data(vid, 0);
    for op in [read_flat(oid, last, 2), write_flat(oid, last, &[1; 2])] {
        assert_eq!(cluster.ask(0, op), Err(ClientError::InvalidParameters));
    }
    assert_eq!(cluster.data(0, read_flat(oid, last, 1))[..], [0]);
    cluster.ask(0, write_flat(oid, last, &[])).unwrap();
    let nobody = Oid::data(Vid(9), 0);
    assert_eq!(cluster.ask(0, read_flat(nobody, 0, 1)), Err(ClientError::NoObject));
    assert_eq!(
        cluster.ask(
            0,
            ClientOp::Object {
                oid: Oid::inode(vid),
                op: NativeOp::WriteFlat { offset: 0, data: Bytes::new() }
            }
        ),
        Err(ClientError::InvalidParameters),
        "nobody writes a flat table back"
    );
}

#[test]
fn an_object_beyond_the_vdi_is_none_and_is_not_made() {
    let (mut cluster, vid) = Cluster::with_disk(2);
    let beyond = Oid::data(vid, 8);
    for op in [create_object(beyond, 0, &[1; 8]), write_flat(beyond, 0, &[1]), read_flat(beyond, 0, 1)] {
        assert_eq!(cluster.ask(1, op), Err(ClientError::InvalidParameters));
    }
    for op in [read_object(beyond, 0, 1), write_object(beyond, 0, &[1])] {
        assert_eq!(cluster.ask(1, op), Err(ClientError::NoObject));
    }
    let check = NativeOp::Check { repair: true, part: None };
    assert_eq!(cluster.ask(0, ClientOp::Object { oid: beyond, op: check }), Err(ClientError::NoObject));
    // As its clients expect: nothing was allocated there.
    let discard = ClientOp::Object { oid: beyond, op: NativeOp::Discard };
    assert_eq!(cluster.ask(0, discard), Ok(ClientReply::Done));
    assert_eq!(cluster.usage(vid), 0);
    assert!(cluster.sheep.iter().all(|(_, _, store)| store.objects.is_empty()));
    // Once the VDI is large enough the object may be made, by its first byte too.
    let grow = VolumeOp::Resize { size: 8 * OBJECT_BYTES + 1 };
    cluster.ask(0, ClientOp::Volume { vid, at: Point::Head, op: grow }).unwrap();
    cluster.ask(1, create_object(beyond, 0, &[1; 8])).unwrap();
    assert_eq!(cluster.usage(vid), 1);
    let next = create_object(Oid::data(vid, 9), 0, &[]);
    assert_eq!(cluster.ask(1, next), Err(ClientError::InvalidParameters));
}

#[test]
fn old_clients_read_the_header_of_a_hypervolume_and_not_its_table() {
    let (mut cluster, vid) = Cluster::with_disk(1);
    let inode = Oid::inode(vid);
    let size = (u64::from(TABLE_ENTRIES) + 1) * OBJECT_BYTES;
    let too_large = write_object(inode, 536, &size.to_le_bytes());
    assert_eq!(cluster.ask(0, too_large), Err(ClientError::InvalidParameters), "not by an old client");
    let grow = VolumeOp::Resize { size };
    cluster.ask(0, ClientOp::Volume { vid, at: Point::Head, op: grow }).unwrap();
    let header = cluster.data(0, read_object(inode, 0, HEADER_BYTES as u32 + 8));
    assert_eq!(header[536..544], size.to_le_bytes());
    assert_eq!(header[553], 1, "a B-tree");
    assert_eq!(header[HEADER_BYTES..], [0x74, 0x62, 1, 0, 0, 0, 0, 0]);
    let entry = table_offset(0) as u32;
    let unsupported = |result: ClientResult| matches!(result, Err(ClientError::Unsupported(_)));
    assert!(unsupported(cluster.ask(0, read_object(inode, 0, TABLE_END as u32))));
    assert!(unsupported(cluster.ask(0, read_flat(inode, entry + 8, 4))));
    assert!(unsupported(cluster.ask(0, write_object(inode, entry, &[0; 4]))));
    // Objects are there for whoever knows their ids.
    let last = Oid::data(vid, TABLE_ENTRIES);
    cluster.ask(0, create_object(last, 5, &[7])).unwrap();
    assert_eq!(cluster.data(0, read_flat(last, 4, 3))[..], [0, 7, 0]);
}

#[test]
fn create_replaces_an_object_whole_and_write_needs_one() {
    let (mut cluster, vid) = Cluster::with_disk(2);
    let oid = Oid::data(vid, 1);
    assert_eq!(cluster.ask(1, write_object(oid, 0, &[1])), Err(ClientError::NoObject));
    cluster.ask(1, create_object(oid, 4090, &[1; 12])).unwrap();
    cluster.ask(0, write_object(oid, 4100, &[2; 4])).unwrap();
    let expected = [&[0; 4090][..], &[1; 10], &[2; 4], &[0; 4]].concat();
    assert_eq!(cluster.data(0, read_object(oid, 0, 4108))[..], expected);
    // As after a reconnect: the client sends it once more.
    for _ in 0..2 {
        cluster.ask(0, create_object(oid, 8, &[3; 2])).unwrap();
        let read = cluster.data(1, read_object(oid, 0, OBJECT_BYTES as u32));
        assert_eq!(read[8..10], [3; 2]);
        assert!(read.iter().enumerate().all(|(i, byte)| *byte == 0 || (8..10).contains(&i)));
    }
    cluster.ask(1, create_object(oid, 0, &[])).unwrap();
    assert!(cluster.data(0, read_object(oid, 0, OBJECT_BYTES as u32)).iter().all(|byte| *byte == 0));
}

#[test]
fn an_object_that_is_discarded_and_made_again_at_once_is_there() {
    let (mut cluster, vid) = Cluster::with_disk(2);
    let (oid, inode) = (Oid::data(vid, 1), Oid::inode(vid));
    let entry = table_offset(1) as u32;
    cluster.ask(0, create_object(oid, 0, &[1; 8192])).unwrap();
    cluster.ask(0, write_object(inode, entry, &vid.0.to_le_bytes())).unwrap();
    // Without waiting in between, and through another sheep: the removal must not overtake the creation.
    for sheep in [0, 1] {
        let steps = [
            write_object(inode, entry, &[0; 4]),
            create_object(oid, 4096, &[2; 4096]),
            write_object(inode, entry, &vid.0.to_le_bytes()),
        ];
        let requests: Vec<RequestId> = steps.into_iter().map(|op| cluster.begin(sheep, op)).collect();
        cluster.run();
        for request in requests {
            assert_eq!(cluster.answers.remove(&request), Some(Ok(ClientReply::Done)));
        }
        assert_eq!(cluster.data(sheep, read_object(oid, 0, 8192))[..], [[0; 4096], [2; 4096]].concat());
        assert_eq!(cluster.data(1, read_object(inode, entry, 4))[..], vid.0.to_le_bytes());
    }
    cluster.ask(0, write_object(inode, entry, &[0; 4])).unwrap();
    assert!(cluster.sheep.iter().all(|(_, _, store)| !store.objects.contains_key(&oid)), "no copy is left");
}

#[test]
fn a_run_of_the_table_from_an_old_cache_throws_nothing_away() {
    let (mut cluster, vid) = Cluster::with_disk(2);
    let inode = Oid::inode(vid);
    for index in [1, 2, 3] {
        cluster.ask(0, create_object(Oid::data(vid, index), 0, &[index as u8])).unwrap();
    }
    // Of a client that has just made 1 and 3 and does not know of 2.
    let run: Vec<u8> = [vid.0, 0, vid.0].iter().flat_map(|entry| entry.to_le_bytes()).collect();
    cluster.ask(1, write_object(inode, table_offset(1) as u32, &run)).unwrap();
    assert_eq!(cluster.usage(vid), 3);
    assert_eq!(cluster.data(0, read_object(Oid::data(vid, 2), 0, 1))[..], [2]);
}

#[test]
fn of_a_written_header_only_the_tag_and_a_larger_size_count() {
    let (mut cluster, vid) = Cluster::with_disk(2);
    let inode = Oid::inode(vid);
    let before = cluster.data(0, read_object(inode, 0, HEADER_BYTES as u32));
    let with_size = |size: u64| {
        let mut header = before.to_vec();
        header[..4].copy_from_slice(b"else");
        header[256..260].copy_from_slice(b"tag!");
        header[512..536].fill(0xee);
        header[536..544].copy_from_slice(&size.to_le_bytes());
        header[552..568].fill(0x77);
        header
    };
    for (written, expected) in [(1, 8), (8, 8), (9, 9), (2, 9), (1 << 20, 1 << 20)] {
        cluster.ask(1, write_object(inode, 0, &with_size(written * OBJECT_BYTES))).unwrap();
        let mut wanted = before.to_vec();
        wanted[256..260].copy_from_slice(b"tag!");
        wanted[528..536].fill(0xee);
        wanted[536..544].copy_from_slice(&(expected * OBJECT_BYTES).to_le_bytes());
        assert_eq!(cluster.data(0, read_object(inode, 0, HEADER_BYTES as u32))[..], wanted);
    }
    let too_large = with_size((1 << 20) * OBJECT_BYTES + 1);
    assert_eq!(cluster.ask(0, write_object(inode, 0, &too_large)), Err(ClientError::InvalidParameters));
    cluster.ask(0, write_object(inode, 256, &[b't'; 256])).unwrap();
}

#[test]
fn nothing_is_left_of_a_deleted_vdi() {
    let (mut cluster, vid) = Cluster::with_disk(2);
    for index in 0..4 {
        cluster.ask(1, create_object(Oid::data(vid, index), 0, &[1; 4096])).unwrap();
    }
    assert_eq!(cluster.sheep.iter().map(|(_, _, store)| store.objects.len()).sum::<usize>(), 2 * 5);
    cluster.ask(0, ClientOp::Vdi(VdiOp::Delete { vid })).unwrap();
    assert!(cluster.sheep.iter().all(|(_, _, store)| store.objects.is_empty()));
    assert_eq!(cluster.ask(1, read_object(Oid::data(vid, 0), 0, 1)), Err(ClientError::NoObject));
    let lookup = VdiOp::Lookup { name: b"disk".to_vec(), selector: Selector::Working };
    assert_eq!(cluster.ask(1, ClientOp::Vdi(lookup)), Err(ClientError::NoVdi));
}

/// Two ways of a write to be on its way; the function cuts the way short or not.
fn write_of_a_client_that_goes(goes: bool, through_owner: bool) -> u8 {
    let (mut cluster, vid) = Cluster::with_disk(2);
    let oid = Oid::data(vid, 0);
    if !through_owner {
        // The other sheep is the owner, and cannot be reached.
        cluster.ask(0, read_flat(oid, 0, 1)).unwrap();
        cluster.cut = true;
    }
    let request = cluster.begin(1, write_flat(oid, 0, &[7]));
    if cluster.cut {
        cluster.run();
        cluster.cut = false;
    }
    assert!(cluster.answers.is_empty());
    let now = cluster.now;
    if goes {
        cluster.sheep[1].1.handle_client_gone(request, now);
    }
    let owner = cluster.sheep[0].0;
    cluster.sheep[1].1.handle_link_reset(owner, now);
    cluster.run();
    let read = cluster.data(0, read_flat(oid, 0, 1))[0];
    assert_eq!(cluster.answers.contains_key(&request), !goes);
    read
}

#[test]
fn what_has_not_reached_an_owner_ends_with_its_client() {
    for through_owner in [true, false] {
        assert_eq!(write_of_a_client_that_goes(false, through_owner), 7);
        assert_eq!(write_of_a_client_that_goes(true, through_owner), 0);
    }
}

#[test]
fn what_its_client_does_not_wait_for_holds_nothing_up() {
    let (mut cluster, vid) = Cluster::with_disk(2);
    let oid = Oid::data(vid, 0);
    cluster.ask(0, read_flat(oid, 0, 1)).unwrap();
    // It is on its way to the owner already, and so comes before what is asked later.
    let request = cluster.begin(1, write_flat(oid, 0, &[7]));
    let now = cluster.now;
    cluster.sheep[1].1.handle_client_gone(request, now);
    cluster.run();
    cluster.ask(1, write_flat(oid, 0, &[8])).unwrap();
    assert_eq!(cluster.data(0, read_flat(oid, 0, 1))[..], [8]);
    assert!(cluster.answers.is_empty());
    // The owner does not wait for a confirmation of the answer: its session can be closed.
    cluster.wait_ms(10_000);
    let session = cluster.sheep[0].1.view().session(vid);
    assert_eq!((session.owner, session.clean), (None, session.generation));
}

#[test]
fn what_waits_for_a_seal_ends_with_its_client() {
    for goes in [false, true] {
        let (mut cluster, vid) = Cluster::with_disk(3);
        let oid = Oid::data(vid, 0);
        // The owner dies, and its successor hears nothing of the others.
        cluster.ask(0, write_flat(oid, 0, &[1])).unwrap();
        cluster.lose_first();
        let request = cluster.begin(0, write_flat(oid, 0, &[7]));
        cluster.cut = true;
        cluster.run();
        cluster.cut = false;
        assert!(cluster.answers.is_empty());
        let (me, now) = (cluster.sheep[0].0, cluster.now);
        assert_eq!(cluster.sheep[0].1.view().session(vid).owner.map(|(id, _)| id), Some(me));
        if goes {
            cluster.sheep[0].1.handle_client_gone(request, now);
        }
        let other = cluster.sheep[1].0;
        cluster.sheep[0].1.handle_link_reset(other, now);
        cluster.run();
        assert_eq!(cluster.data(1, read_flat(oid, 0, 1))[..], [if goes { 1 } else { 7 }]);
        assert_eq!(cluster.answers.contains_key(&request), !goes);
    }
}
