//! Message sequences of QEMU 5.0 and tgt, byte for byte (spec sections 9.2, 9.3, 9.5 and 9.7).

use proto::client::{ClientOp, NativeOp, VdiOp};
use proto::inode::{HEADER_BYTES, TABLE_END, table_offset};
use proto::sd::header::LOCK_NORMAL;
use proto::sd::{Opcode, Request, ResultCode, cluster_flag, flag};
use proto::{Oid, Vid};

use super::fake::Fake;
use super::{Client, Sheep, hex, padded, run};

const VID: Vid = Vid(0xa03907);

const NEW_VDI: &str = "00110100 00000000 00000000 00010000 00000004 00000000 00000000 00000016 00000000 00000000 00000000 00000000";
const NEW_VDI_REPLY: &str = "00110000 01000000 00000000 00000000 00000000 00000000 0739a000 00000000 01160000 00000000 00000000 00000000";
const LOCK_VDI: &str = "01120100 00000000 00000000 00020000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000";
const LOCK_VDI_REPLY: &str = "00120000 01000000 00000000 00000000 00000000 00000000 0739a000 00000000 01160000 00000000 00000000 00000000";
const RELEASE_VDI: &str = "00130100 00000000 00000000 06000000 00000000 00000000 0739a000 00000000 00000000 00000000 00000000 00000000";
const RELEASE_VDI_REPLY: &str = "00130000 01000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000";

async fn create_alice(sheep: &Sheep) {
    sheep.replay_once(NEW_VDI, &padded("alice"), NEW_VDI_REPLY).await;
}

async fn open_alice(sheep: &Sheep) {
    let names = [padded("alice"), padded("")].concat();
    sheep.replay_once(LOCK_VDI, &names, LOCK_VDI_REPLY).await;
}

#[test]
fn qemu_creates_opens_writes_flushes_discards_and_closes() {
    run(async {
        let fake = Fake::formatted(1, cluster_flag::AUTO_VNODES);
        let sheep = Sheep::new(fake.clone());
        let defaults = sheep
            .replay_once(
                "01180000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000",
                b"",
                "00180000 01000000 00000000 00000000 00000000 01001600 00000000 00000000 00000000 00000000 00000000 00000000",
            )
            .await;
        assert!(defaults.is_empty());
        create_alice(&sheep).await;
        let mut data = sheep.connect();
        open_alice(&sheep).await;

        let inode = sheep
            .replay_once(
                "00020400 00000000 00000000 38124000 00000000 0739a080 00000000 00000000 00000000 00000000 00000000 00000000",
                b"",
                "00020000 01000000 00000000 38124000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000",
            )
            .await;
        let composed = {
            let world = fake.world();
            world.compose_inode(&world.vdis[&VID])
        };
        assert_eq!(inode, composed[..TABLE_END]);

        let payload = vec![0x5a; 4096];
        data.replay(
            "00010500 00000000 00000000 00100000 03000000 0739a000 00000000 00000000 01000000 00000000 00200000 00000000",
            &payload,
            "00010000 01000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000",
        )
        .await;
        data.replay(
            "00030500 00000000 01000000 04000000 00000000 0739a080 00000000 00000000 01000000 00000000 44120000 00000000",
            &hex("0739a000"),
            "00030000 01000000 01000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000",
        )
        .await;
        // The original answers INVALID_PARMS and QEMU then stops flushing; ours is a plain success.
        data.replay(
            "00160400 00000000 02000000 00000000 00000000 0739a080 00000000 00000000 01000000 00000000 00000000 00000000",
            b"",
            "00160000 01000000 02000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000",
        )
        .await;
        let read = data
            .replay(
                "00020400 00000000 03000000 00300000 03000000 0739a000 00000000 00000000 01000000 00000000 00100000 00000000",
                b"",
                "00020000 01000000 03000000 00300000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000",
            )
            .await;
        assert_eq!(read, [vec![0; 4096], payload, vec![0; 4096]].concat(), "never trimmed, whatever is zero");
        assert_eq!(fake.world().tables[&VID].get(&3), Some(&VID));

        // Discard: zero in the block table.
        data.replay(
            "00030500 00000000 04000000 04000000 00000000 0739a080 00000000 00000000 01000000 00000000 44120000 00000000",
            &[0; 4],
            "00030000 01000000 04000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000",
        )
        .await;
        assert!(fake.world().objects.is_empty());
        data.close().await.unwrap();
        // What QEMU does first for a resize or a snapshot.
        sheep
            .replay_once(
                "00030500 00000000 00000000 38120000 00000000 0739a080 00000000 00000000 01000000 00000000 00000000 00000000",
                &composed[..HEADER_BYTES],
                "00030000 01000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000",
            )
            .await;
        sheep.replay_once(RELEASE_VDI, b"alice\0", RELEASE_VDI_REPLY).await;
        let hints: Vec<VdiOp> =
            fake.vdi_ops().into_iter().filter(|op| !matches!(op, VdiOp::Lookup { .. })).collect();
        assert!(matches!(
            hints[..],
            [VdiOp::Create { .. }, VdiOp::Open { vid: VID }, VdiOp::Close { vid: VID }]
        ));
    });
}

#[test]
fn hypervolumes_are_made_when_asked_for_and_not_opened_by_old_clients() {
    run(async {
        let sheep = Sheep::new(Fake::formatted(1, 0));
        const SIZE: u64 = (4 << 40) + 1;
        let create = |shift, hyper| Request::new_vdi_of_kind(b"alice", SIZE, None, shift, hyper).unwrap();
        for shift in [None, Some(22)] {
            let (reply, _) = sheep.once(&create(shift, false)).await;
            assert_eq!(reply.result, ResultCode::INVALID_PARMS);
        }
        let (reply, _) = sheep.once(&create(None, true)).await;
        assert_eq!(reply.result, ResultCode::SUCCESS);
        for (opcode, expect) in
            [(Opcode::LockVdi, ResultCode::VER_MISMATCH), (Opcode::GetVdiInfo, ResultCode::SUCCESS)]
        {
            let (reply, _) = sheep.once(&Request::on_vdi(opcode, b"alice", b"", 0).unwrap()).await;
            assert_eq!(reply.result, expect, "{}", opcode.name());
        }
        let larger = Request::new_vdi(b"bob", SIZE, None, Some(23)).unwrap();
        assert_eq!(
            sheep.once(&larger).await.0.result,
            ResultCode::SUCCESS,
            "an ordinary one in larger objects"
        );
    });
}

#[test]
fn snapshots_and_clones_become_the_orders_they_are() {
    run(async {
        // The fake does neither, and says so.
        let fake = Fake::formatted(1, 0);
        let sheep = Sheep::new(fake.clone());
        create_alice(&sheep).await;
        sheep
            .replay_once(
                "00110100 00000000 00000000 00010000 00000004 00000000 0739a000 01000016 01000000 00000000 00000000 00000000",
                &padded("alice"),
                "00110000 01000000 00000000 00000000 8b000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000",
            )
            .await;
        sheep
            .replay_once(
                "00110100 00000000 00000000 00010000 00000004 00000000 0739a000 00000016 00000000 00000000 00000000 00000000",
                &padded("clone"),
                "00110000 01000000 00000000 00000000 8b000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000",
            )
            .await;
        // What the client leaves open, copies, is the cluster's choice; the size is its own.
        let policy = fake.world().info.format.map(|format| format.policy);
        let clone = VdiOp::Clone { base: VID, name: b"clone".to_vec(), size: Some(64 << 20), policy };
        let orders: Vec<VdiOp> = fake.vdi_ops();
        assert!(orders.contains(&VdiOp::Snapshot { vids: vec![VID], tag: Vec::new() }));
        assert_eq!(orders.last(), Some(&clone));
    });
}

#[test]
fn a_copy_on_write_reaches_the_service_with_its_source_and_a_stray_source_does_not() {
    run(async {
        let fake = Fake::formatted(1, 0);
        let sheep = Sheep::new(fake.clone());
        create_alice(&sheep).await;
        let mut data = sheep.connect();
        let source = Oid::data(VID, 0);
        data.call(&Request::create_obj(source, 0, None, vec![1; 512].into())).await;
        let copied = Oid::data(VID, 1);
        data.call(&Request::create_obj(copied, 4, Some(source), vec![2; 4].into())).await;
        let (_, read) = data.call(&Request::read_obj(copied, 0, 12)).await;
        assert_eq!(read, [1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1]);

        let mut stray = Request::create_obj(copied, 4, Some(source), vec![3; 4].into());
        stray.header.flags &= !proto::sd::flag::COW;
        data.call(&stray).await;
        let (_, read) = data.call(&Request::read_obj(copied, 0, 12)).await;
        assert_eq!(read, [0, 0, 0, 0, 3, 3, 3, 3, 0, 0, 0, 0]);

        let missing = Request::create_obj(copied, 0, Some(Oid::data(VID, 9)), vec![0; 4].into());
        let (reply, _) = data.call(&missing).await;
        assert_eq!(reply.result, ResultCode::NO_OBJ);
        let inode = Request::create_obj(copied, 0, Some(Oid::inode(VID)), vec![0; 4].into());
        assert_eq!(data.call(&inode).await.0.result, ResultCode::INVALID_PARMS);
    });
}

#[test]
fn tgt_locks_shared_probes_writes_and_releases() {
    run(async {
        let fake = Fake::formatted(1, cluster_flag::USE_LOCK);
        let sheep = Sheep::new(fake.clone());
        create_alice(&sheep).await;
        drop(sheep.connect());
        sheep
            .replay_once(
                "01120100 00000000 00000000 00020000 00000000 00000000 00000000 00000000 00000000 01000000 00000000 00000000",
                &[padded("alice"), padded("")].concat(),
                LOCK_VDI_REPLY,
            )
            .await;
        assert_eq!(fake.world().vdis[&VID].locked_by, vec![(super::fake::node_id(), true)]);
        let mut data = sheep.connect();
        let inode = data
            .replay(
                "00022000 00000000 00000000 38124000 00000000 0739a080 00000000 00000000 00000000 00000000 00000000 00000000",
                b"",
                "00020000 01000000 00000000 38124000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000",
            )
            .await;
        // It is shown no hole, and so reads, and writes, what may be one.
        assert_eq!(inode.len(), TABLE_END);
        assert!(inode[table_offset(0)..].chunks_exact(4).all(|entry| entry == VID.0.to_le_bytes()));
        let hole = data
            .replay(
                "00022000 00000000 00000000 00020000 07000000 0739a000 00000000 00000000 01000000 00000000 00100000 00000000",
                b"",
                "00020000 01000000 00000000 00020000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000",
            )
            .await;
        assert_eq!(hole, [0; 512]);
        data.replay(
            "00032500 00000000 00000000 00020000 00000000 0739a000 00000000 00000000 01000000 00000000 00000000 00000000",
            &[7; 512],
            "00030000 01000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000",
        )
        .await;
        data.replay(
            "01160000 00000000 00000000 00000000 00000000 0739a080 00000000 00000000 00000000 00000000 00000000 00000000",
            b"",
            "00160000 01000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000",
        )
        .await;
        assert_eq!(fake.world().objects[&Oid::data(VID, 0)][..512], [7; 512]);
        sheep
            .replay_once(
                "00130000 00000000 00000000 00000000 00000000 00000000 0739a000 00000000 00000000 01000000 00000000 00000000",
                b"",
                RELEASE_VDI_REPLY,
            )
            .await;
        assert!(fake.world().vdis[&VID].locked_by.is_empty());
        assert_eq!(
            fake.vdi_ops()[3..],
            [VdiOp::Open { vid: VID }, VdiOp::Unlock { vid: VID, shared: true }, VdiOp::Close { vid: VID },]
        );
    });
}

/// A connection to alice's sheep, and a request of tgt.
async fn alice_and_tgt() -> (Sheep, Client, impl Fn(Request) -> Request) {
    let sheep = Sheep::new(Fake::formatted(1, 0));
    create_alice(&sheep).await;
    let client = sheep.connect();
    let by_tgt = |mut request: Request| {
        request.header.flags |= flag::TGT;
        request
    };
    (sheep, client, by_tgt)
}

#[test]
fn tgt_that_believes_in_a_hole_has_to_read_the_inode_anew() {
    run(async {
        let (sheep, mut client, by_tgt) = alice_and_tgt().await;
        let probe = Request::read_obj(Oid::inode(VID), 0, 1);
        let calls = sheep.fake.world().log.len();
        for _ in 0..2 {
            let (reply, _) = client.call(&by_tgt(probe.clone())).await;
            assert_eq!((reply.result, reply.data_length), (ResultCode::INODE_INVALIDATED, 0));
        }
        assert_eq!(sheep.fake.world().log.len(), calls, "whatever the owner would say");
        assert_eq!(client.call(&probe).await.1, b"a", "others may read what they like");
        let (_, header) = client.call(&by_tgt(Request::read_obj(Oid::inode(VID), 0, 4664))).await;
        assert_eq!(header, client.call(&Request::read_obj(Oid::inode(VID), 0, 4664)).await.1);
    });
}

#[test]
fn creates_of_tgt_with_an_old_table_keep_what_others_have_written() {
    run(async {
        let (sheep, mut client, by_tgt) = alice_and_tgt().await;
        let oid = Oid::data(VID, 5);
        client.call(&Request::create_obj(oid, 0, None, vec![1; 8].into())).await;
        let create = Request::create_obj(oid, 4, None, vec![2; 2].into());
        assert_eq!(client.call(&by_tgt(create)).await.0.result, ResultCode::SUCCESS);
        let absent_source = Oid::data(Vid(VID.0 - 1), 5);
        let copy = Request::create_obj(oid, 7, Some(absent_source), vec![3; 2].into());
        assert_eq!(client.call(&by_tgt(copy)).await.0.result, ResultCode::SUCCESS);
        // The update of the table that follows changes nothing.
        let claim = Request::write_obj(Oid::inode(VID), table_offset(5) as u32, hex("0739a000").into());
        assert_eq!(client.call(&by_tgt(claim)).await.0.result, ResultCode::SUCCESS);
        let (_, read) = client.call(&by_tgt(Request::read_obj(oid, 0, 10))).await;
        assert_eq!(read, [1, 1, 1, 1, 2, 2, 1, 3, 3, 0]);
        assert_eq!(sheep.fake.world().tables[&VID].len(), 1, "no more than was written is allocated");
    });
}

#[test]
fn tgt_is_told_when_its_vdi_has_become_a_snapshot() {
    run(async {
        let (sheep, mut client, by_tgt) = alice_and_tgt().await;
        let oid = Oid::data(VID, 0);
        client.call(&Request::create_obj(oid, 0, None, vec![1; 8].into())).await;
        sheep.fake.world().vdis.get_mut(&VID).unwrap().snap_ctime = 1;
        let read = Request::read_obj(oid, 0, 8);
        assert_eq!(client.call(&by_tgt(read.clone())).await.0.result, ResultCode::INODE_INVALIDATED);
        assert_eq!(client.call(&read).await.1, [1; 8], "others do read snapshots");
        let write = by_tgt(Request::write_obj(oid, 0, vec![2; 8].into()));
        assert_eq!(client.call(&write).await.0.result, ResultCode::READONLY);
        let inode = by_tgt(Request::read_obj(Oid::inode(VID), 0, TABLE_END as u32));
        assert_eq!(client.call(&inode).await.0.result, ResultCode::SUCCESS);
    });
}

#[test]
fn tgt_is_never_told_that_an_inode_is_no_object() {
    run(async {
        let (_sheep, mut client, by_tgt) = alice_and_tgt().await;
        let gone = Oid::inode(Vid(9));
        for (request, code) in [
            (by_tgt(Request::read_obj(gone, 0, TABLE_END as u32)), ResultCode::NO_VDI),
            (by_tgt(Request::read_obj(Oid::data(Vid(9), 0), 0, 8)), ResultCode::NO_OBJ),
            (Request::read_obj(gone, 0, TABLE_END as u32), ResultCode::NO_OBJ),
        ] {
            assert_eq!(client.call(&request).await.0.result, code);
        }
    });
}

#[test]
fn a_locked_vdi_is_refused_until_it_is_released_on_another_connection() {
    run(async {
        let fake = Fake::formatted(1, cluster_flag::USE_LOCK);
        let sheep = Sheep::new(fake.clone());
        create_alice(&sheep).await;
        open_alice(&sheep).await;
        let lock = Request::on_vdi(Opcode::LockVdi, b"alice", b"", 0).unwrap();
        assert_eq!(sheep.result(&lock).await, ResultCode::VDI_LOCKED);
        sheep.replay_once(RELEASE_VDI, b"alice\0", RELEASE_VDI_REPLY).await;
        open_alice(&sheep).await;
    });
}

#[test]
fn a_release_is_carried_out_while_the_cluster_waits_for_members() {
    run(async {
        let fake = Fake::formatted(1, cluster_flag::USE_LOCK);
        let sheep = Sheep::new(fake.clone());
        create_alice(&sheep).await;
        open_alice(&sheep).await;
        let asked = fake.vdi_ops().len();
        fake.world().info.status = proto::client::ClusterStatus::WaitForJoin;
        sheep.replay_once(RELEASE_VDI, b"alice\0", RELEASE_VDI_REPLY).await;
        assert_eq!(
            fake.vdi_ops()[asked..],
            // Not by force: that would drop the shared locks of other sheep as well.
            [VdiOp::Unlock { vid: VID, shared: false }, VdiOp::Close { vid: VID }]
        );
        let delete_cache = Request::plain(Opcode::DeleteCache, 0);
        assert_eq!(sheep.result(&delete_cache).await, ResultCode::SUCCESS);
        fake.world().info.status = proto::client::ClusterStatus::WaitForFormat;
        let release = Request::release_vdi(VID, LOCK_NORMAL);
        assert_eq!(sheep.result(&release).await, ResultCode::WAIT_FOR_FORMAT);
    });
}

#[test]
fn without_use_lock_nothing_is_locked_and_two_clients_open_the_same_vdi() {
    run(async {
        let fake = Fake::formatted(1, 0);
        let sheep = Sheep::new(fake.clone());
        create_alice(&sheep).await;
        open_alice(&sheep).await;
        open_alice(&sheep).await;
        assert!(fake.vdi_ops().iter().all(|op| !matches!(op, VdiOp::Lock { .. })));
    });
}

#[test]
fn a_release_closes_only_what_this_sheep_opened() {
    run(async {
        let fake = Fake::formatted(1, 0);
        let sheep = Sheep::new(fake.clone());
        create_alice(&sheep).await;
        for vid in [VID, Vid(5), Vid(0), Vid(u32::MAX)] {
            let release = Request::release_vdi(vid, LOCK_NORMAL);
            assert_eq!(sheep.result(&release).await, ResultCode::SUCCESS, "release always succeeds");
        }
        assert!(fake.vdi_ops().iter().all(|op| !matches!(op, VdiOp::Close { .. })));
    });
}

#[test]
fn what_a_crashed_client_had_open_is_closed_when_nobody_else_is_at_work_on_it() {
    run(async {
        let fake = Fake::formatted(1, cluster_flag::USE_LOCK);
        let sheep = Sheep::new(fake.clone());
        create_alice(&sheep).await;
        let closes = || fake.vdi_ops().iter().filter(|op| matches!(op, VdiOp::Close { .. })).count();
        let create = Request::create_obj(Oid::data(VID, 0), 0, None, vec![1; 8].into());
        let mut guest = sheep.connect();
        open_alice(&sheep).await;
        // Connections that only look at the VDI do not count.
        sheep.once(&Request::read_obj(Oid::inode(VID), 0, 4664)).await;
        guest.call(&create).await;
        let mut other = sheep.connect();
        other.call(&create).await;
        other.close().await.unwrap();
        assert_eq!(closes(), 0, "the guest is still at work");
        guest.close().await.unwrap();
        assert_eq!(closes(), 1);
        assert_eq!(
            fake.world().vdis[&VID].locked_by.len(),
            1,
            "a lock is not a hint: it needs its RELEASE_VDI"
        );
        sheep.replay_once(RELEASE_VDI, b"alice\0", RELEASE_VDI_REPLY).await;
        assert_eq!(closes(), 1);
        assert!(fake.world().vdis[&VID].locked_by.is_empty());
    });
}

#[test]
fn lookups_follow_name_tag_and_snapshot_id() {
    run(async {
        let fake = Fake::formatted(1, cluster_flag::USE_LOCK);
        let sheep = Sheep::new(fake.clone());
        create_alice(&sheep).await;
        {
            let mut world = fake.world();
            let mut snapshot = world.vdis[&VID].clone();
            snapshot.vid = Vid(0xa03908);
            snapshot.tag = b"before".to_vec();
            snapshot.snap_ctime = 1;
            snapshot.snap_id = 4;
            world.vdis.insert(snapshot.vid, snapshot);
        }
        let ask = async |tag: &[u8], snapid| {
            let info = Request::on_vdi(Opcode::GetVdiInfo, b"alice", tag, snapid).unwrap();
            let (reply, _) = sheep.once(&info).await;
            (reply.result, u32::from_le_bytes(reply.variant[4..8].try_into().unwrap()))
        };
        assert_eq!(ask(b"", 0).await, (ResultCode::SUCCESS, VID.0));
        assert_eq!(ask(b"before", 0).await, (ResultCode::SUCCESS, 0xa03908));
        assert_eq!(ask(b"", 4).await, (ResultCode::SUCCESS, 0xa03908));
        assert_eq!(ask(b"other", 4).await, (ResultCode::SUCCESS, 0xa03908));
        assert_eq!(ask(b"other", 0).await, (ResultCode::NO_TAG, 0));
        let unknown = Request::on_vdi(Opcode::GetVdiInfo, b"bob", b"", 0).unwrap();
        assert_eq!(sheep.result(&unknown).await, ResultCode::NO_VDI);
        let nameless = Request::on_vdi(Opcode::GetVdiInfo, b"", b"", 0).unwrap();
        assert_eq!(sheep.result(&nameless).await, ResultCode::NO_VDI, "what deleted VDIs are called");

        // libsheepdog and sbd send the name alone.
        let mut short = Request::on_vdi(Opcode::LockVdi, b"alice", b"", 4).unwrap();
        short.payload.truncate(256);
        short.header.data_length = 256;
        assert_eq!(sheep.result(&short).await, ResultCode::SUCCESS);
        let locks = fake.vdi_ops().iter().filter(|op| matches!(op, VdiOp::Lock { .. })).count();
        assert_eq!(locks, 0, "snapshots are not locked");
    });
}

#[test]
fn a_deleted_vdi_is_gone_but_its_vid_stays_in_use() {
    run(async {
        let fake = Fake::formatted(1, 0);
        let sheep = Sheep::new(fake.clone());
        create_alice(&sheep).await;
        let mut delete = Request::on_vdi(Opcode::DelVdi, b"alice", b"", 0).unwrap();
        delete.payload.truncate(256);
        delete.header.data_length = 256;
        let (reply, _) = sheep.once(&delete).await;
        assert_eq!(reply.result, ResultCode::SUCCESS);
        assert_eq!(reply.variant[4..8], VID.0.to_le_bytes());
        assert_eq!(sheep.result(&delete).await, ResultCode::NO_VDI);
        for opcode in [Opcode::ReadVdis, Opcode::ReadDelVdis] {
            let (_, bitmap) = sheep.once(&Request::vid_bitmap(opcode)).await;
            assert_eq!(proto::sd::structs::decode_vid_bitmap(&bitmap), [VID]);
        }
    });
}

#[test]
fn the_version_field_is_never_required_of_old_operations() {
    run(async {
        let fake = Fake::formatted(1, 0);
        let sheep = Sheep::new(fake.clone());
        create_alice(&sheep).await;
        for (version, expected) in [
            (0, ResultCode::SUCCESS),
            (1, ResultCode::SUCCESS),
            (2, ResultCode::SUCCESS),
            (3, ResultCode::VER_MISMATCH),
            (0x0a, ResultCode::VER_MISMATCH),
        ] {
            let mut request = Request::read_obj(Oid::inode(VID), 0, 568);
            request.header.proto_ver = version;
            assert_eq!(sheep.result(&request).await, expected, "version {version}");
        }
        let mut request = Request::cluster_info();
        request.header.proto_ver = 2;
        assert_eq!(sheep.result(&request).await, ResultCode::VER_MISMATCH);
    });
}

#[test]
fn a_client_may_discard_an_object_itself() {
    run(async {
        let fake = Fake::formatted(1, 0);
        let sheep = Sheep::new(fake.clone());
        create_alice(&sheep).await;
        let oid = Oid::data(VID, 2);
        assert_eq!(sheep.result(&Request::discard_obj(oid)).await, ResultCode::SUCCESS);
        assert_eq!(fake.world().log.last(), Some(&ClientOp::Object { oid, op: NativeOp::Discard }));
        assert_eq!(sheep.result(&Request::discard_obj(Oid::inode(VID))).await, ResultCode::INVALID_PARMS);
    });
}
