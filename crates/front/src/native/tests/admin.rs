//! What `dog` asks.

use proto::client::ScrubStatus;
use proto::client::{
    CheckReport, ClientError, ClientOp, ClientReply, ClientResult, ClusterInfo, ClusterOp, ClusterStatus,
    Guest, Point, Traffic, VdiInfo, VolumeOp,
};
use proto::cluster::{RepairChange, RepairOptions};
use proto::hash::vid_of_name;
use proto::sd::extension::{UsageReply, decode_list};
use proto::sd::header::{ClusterRequest, HashReply, NodeReply, ReplyVariant};
use proto::sd::structs::{
    self, EpochLog, MdInfo, RecoveryState, RecoveryThrottling, SdNode, SdStat, VdiState, decode_md_info,
    lock_state,
};
use proto::sd::{Opcode, Request, ResultCode, cluster_flag};
use proto::{CopyPolicy, NodeId, Oid, Vid};

use super::fake::{Fake, node_id};
use super::{Sheep, run};
use crate::guests::Guests;
use crate::native::{About, Desk};

const VID: Vid = Vid(0xa03907);

fn make_fs() -> ClusterRequest {
    ClusterRequest { ctime: 5, copies: 2, flags: cluster_flag::AUTO_VNODES, ..Default::default() }
}

#[test]
fn a_cluster_is_formatted_as_asked() {
    run(async {
        let sheep = Sheep::new(Fake::unformatted());
        let create = Request::new_vdi(b"alice", 1, None, None).unwrap();
        assert_eq!(sheep.result(&create).await, ResultCode::WAIT_FOR_FORMAT);
        let (reply, logs) = sheep.once(&Request::stat_cluster(1, 0)).await;
        assert_eq!((reply.result, logs.len()), (ResultCode::WAIT_FOR_FORMAT, 0));
        let (reply, _) = sheep.once(&Request::plain(Opcode::GetClusterDefault, 0)).await;
        assert_eq!((reply.result, reply.variant), (ResultCode::SUCCESS, [0; 28]));
        let (reply, vids) = sheep.once(&Request::vid_bitmap(Opcode::ReadVdis)).await;
        assert_eq!((reply.result, vids.len()), (ResultCode::SUCCESS, 1 << 21));
        assert_eq!(sheep.result(&Request::stat()).await, ResultCode::WAIT_FOR_FORMAT);

        assert_eq!(sheep.result(&Request::make_fs("nosuch", make_fs())).await, ResultCode::NO_STORE);
        for refused in [
            ClusterRequest { ctime: 0, ..make_fs() },
            ClusterRequest { copies: 32, ..make_fs() },
            ClusterRequest { copy_policy: 0x31, ..make_fs() },
            ClusterRequest { block_size_shift: 19, ..make_fs() },
            ClusterRequest { block_size_shift: 32, ..make_fs() },
            ClusterRequest { flags: 0x40, ..make_fs() },
        ] {
            let result = sheep.result(&Request::make_fs("plain", refused)).await;
            assert_eq!(result, ResultCode::INVALID_PARMS, "{refused:?}");
        }
        assert_eq!(sheep.fake.world().info.status, ClusterStatus::WaitForFormat);

        assert_eq!(sheep.result(&Request::make_fs("plain", make_fs())).await, ResultCode::SUCCESS);
        let format = sheep.fake.world().info.format.unwrap();
        assert_eq!((format.ctime, format.policy), (5, CopyPolicy::Replicated { copies: 2 }));
        assert_eq!((format.block_size_shift, format.flags), (22, cluster_flag::AUTO_VNODES));
        let erasure = ClusterRequest { copy_policy: 0x22, copies: 1, ..make_fs() };
        assert_eq!(sheep.result(&Request::make_fs("tree", erasure)).await, ResultCode::SUCCESS);
        let format = sheep.fake.world().info.format.unwrap();
        assert_eq!(format.policy, CopyPolicy::Erasure { data: 4, parity: 2 });
    });
}

#[test]
fn the_cluster_is_described() {
    run(async {
        let sheep = Sheep::new(Fake::formatted(3, cluster_flag::AUTO_VNODES));
        let node = SdNode { id: node_id(), io: None, vnodes: 128, zone: 7, space: 1 << 30 };
        let (reply, list) = sheep.once(&Request::get_node_list()).await;
        assert_eq!(NodeReply::decode(&reply.variant).nr_nodes, 1);
        assert_eq!(SdNode::decode_list(&list), [node]);
        let small = Request::plain(Opcode::GetNodeList, 79);
        assert_eq!(sheep.result(&small).await, ResultCode::BUFFER_SMALL);

        let (reply, logs) = sheep.once(&Request::stat_cluster(1, 0)).await;
        assert_eq!(reply.result, ResultCode::SUCCESS);
        let head = &EpochLog::decode_list(&logs, 0)[0];
        assert_eq!((head.epoch, head.time, head.ctime, head.nr_copies), (1, 99, 1 << 32, 3));
        assert_eq!((head.flags, &head.drv_name[..]), (cluster_flag::AUTO_VNODES, "plain"));
        let (_, logs) = sheep.once(&Request::stat_cluster(9, 6144)).await;
        assert_eq!(EpochLog::decode_list(&logs, 6144)[0].nodes, [node]);
        let (_, logs) = sheep.once(&Request::stat_cluster(u32::MAX, u32::MAX)).await;
        assert!(logs.is_empty(), "entries larger than any answer");

        let (reply, info) = sheep.once(&Request::cluster_info()).await;
        assert_eq!(reply.data_length, 491_568);
        let info = structs::ClusterInfo::decode(&info).unwrap();
        assert_eq!((info.status, info.nr_copies, info.ctime), (1, 3, 1 << 32));
        assert_eq!(info.nodes, [node]);
        let (_, prefix) = sheep.once(&Request::plain(Opcode::ClusterInfo, 48)).await;
        assert_eq!(prefix.len(), 48, "no more than the client has room for");

        let (_, bytes) = sheep.once(&Request::cluster_info_ex()).await;
        assert_eq!(decode_list::<ClusterInfo>(&bytes), Some(sheep.fake.world().info.clone()));
        let (_, stores) = sheep.once(&Request::get_store_list()).await;
        assert_eq!(stores, b"tree plain \0");
    });
}

#[test]
fn a_node_is_described() {
    run(async {
        let sheep = Sheep::new(Fake::formatted(3, 0));
        let (reply, _) = sheep.once(&Request::plain(Opcode::StatSheep, 0)).await;
        let node = NodeReply::decode(&reply.variant);
        assert_eq!((node.store_size, node.store_free), (1 << 30, (1 << 30) - (1 << 20)));
        let (_, md) = sheep.once(&Request::md_info()).await;
        let disk = MdInfo { idx: 0, free: (1 << 30) - (1 << 20), used: 1 << 20, path: "/srv/d0".into() };
        assert_eq!(decode_md_info(&md), Some(vec![disk]));
        let other = Request::plain(Opcode::MdInfo, 263_687);
        assert_eq!(sheep.result(&other).await, ResultCode::INVALID_PARMS);
        let (_, recovery) = sheep.once(&Request::stat_recovery()).await;
        let expected = RecoveryState { in_recovery: true, state: 1, nr_finished: 6, nr_total: 9 };
        assert_eq!(RecoveryState::decode(&recovery), Some(expected));

        let oid = Oid::data(VID, 0);
        assert_eq!(sheep.result(&Request::exist(oid)).await, ResultCode::NO_OBJ);
        sheep.fake.world().objects.insert(oid, vec![]);
        assert_eq!(sheep.result(&Request::exist(oid)).await, ResultCode::SUCCESS);
        let (reply, _) = sheep.once(&Request::get_hash(oid)).await;
        assert_eq!(HashReply::decode(&reply.variant).digest[..5], [1, 2, 3, 4, 0]);
        let (_, nodes) = sheep.once(&Request::locate(oid)).await;
        assert_eq!(decode_list::<Vec<NodeId>>(&nodes), Some(vec![node_id()]));
    });
}

#[test]
fn counters_stand_in_their_fields() {
    run(async {
        let sheep = Sheep::new(Fake::formatted(1, 0));
        let clients = Traffic {
            active: 1,
            total: 2,
            writes: 3,
            reads: 4,
            removes: 5,
            flushes: 6,
            written_bytes: 7,
            read_bytes: 8,
        };
        let peers = Traffic {
            active: 9,
            total: 10,
            writes: 11,
            reads: 12,
            removes: 13,
            written_bytes: 14,
            read_bytes: 15,
            ..Traffic::default()
        };
        (sheep.fake.world().stat.clients, sheep.fake.world().stat.peers) = (clients, peers);
        let (_, bytes) = sheep.once(&Request::stat()).await;
        let expect = SdStat {
            gateway_active: 1,
            gateway_total: 2,
            gateway_write: 3,
            gateway_read: 4,
            gateway_remove: 5,
            gateway_flush: 6,
            gateway_rx_bytes: 7,
            gateway_tx_bytes: 8,
            peer_active: 9,
            peer_total: 10,
            peer_write: 11,
            peer_read: 12,
            peer_remove: 13,
            peer_rx_bytes: 14,
            peer_tx_bytes: 15,
        };
        assert_eq!(SdStat::decode(&bytes), Some(expect));
    });
}

#[test]
fn lock_states_are_listed() {
    run(async {
        let sheep = Sheep::new(Fake::formatted(1, cluster_flag::USE_LOCK));
        for name in ["alice", "bob", "test"] {
            sheep.once(&Request::new_vdi(name.as_bytes(), 1, None, None).unwrap()).await;
        }
        sheep.fake.world().vdis.get_mut(&VID).unwrap().locked_by = vec![(node_id(), true)];
        sheep.fake.world().vdis.get_mut(&Vid(0x4a0a54)).unwrap().locked_by = vec![(node_id(), false)];
        assert_eq!(sheep.result(&Request::get_vdi_copies(2)).await, ResultCode::BUFFER_SMALL);
        let (_, bytes) = sheep.once(&Request::get_vdi_copies(512)).await;
        let states = VdiState::decode_list(&bytes);
        let brief: Vec<_> = states.iter().map(|s| (s.vid, s.lock_state, s.participants.len())).collect();
        assert_eq!(
            brief,
            [
                (0x4a0a54, lock_state::LOCKED, 0),
                (0x7c2b25, lock_state::UNLOCKED, 0),
                (0xa03907, lock_state::SHARED, 1),
            ]
        );
        assert_eq!(states[0].lock_owner, Some(node_id()));
    });
}

#[test]
fn dog_reads_and_writes_bytes_without_knowing_objects() {
    run(async {
        let sheep = Sheep::new(Fake::formatted(1, 0));
        sheep.once(&Request::new_vdi(b"alice", 1 << 20, None, None).unwrap()).await;
        let (_, read) = sheep.once(&Request::volume_read(VID, Point::Head, 5, 3)).await;
        assert_eq!(read, [5, 6, 7]);
        let beyond = Request::volume_read(VID, Point::Head, (1 << 20) - 1, 2);
        assert_eq!(sheep.result(&beyond).await, ResultCode::INVALID_PARMS);
        let data = bytes::Bytes::from_static(b"abc");
        assert_eq!(sheep.result(&Request::volume_write(VID, 9, data.clone())).await, ResultCode::SUCCESS);
        let expected =
            ClientOp::Volume { vid: VID, at: Point::Head, op: VolumeOp::Write { offset: 9, data } };
        assert_eq!(sheep.fake.world().log.last(), Some(&expected));
        assert_eq!(sheep.result(&Request::vdi_discard(VID, 1, 1 << 40)).await, ResultCode::SUCCESS);
        let expected =
            ClientOp::Volume { vid: VID, at: Point::Head, op: VolumeOp::Discard { offset: 1, len: 1 << 40 } };
        assert_eq!(sheep.fake.world().log.last(), Some(&expected));
        assert_eq!(sheep.result(&Request::resize_vdi(VID, 2 << 20)).await, ResultCode::SUCCESS);
        assert_eq!(sheep.fake.world().vdis[&VID].size, 2 << 20);
        assert_eq!(sheep.result(&Request::volume_read(Vid(9), Point::Head, 0, 1)).await, ResultCode::NO_VDI);

        let (_, vdis) = sheep.once(&Request::vdi_list()).await;
        let listed: Vec<VdiInfo> = decode_list(&vdis).unwrap();
        assert_eq!(listed, sheep.fake.world().vdis.values().cloned().collect::<Vec<_>>());
        let (reply, _) = sheep.once(&Request::vdi_usage(VID)).await;
        let usage = UsageReply { own_objects: 3, shared_objects: 4 };
        assert_eq!(UsageReply::decode(&reply.variant), usage);
        let (_, report) = sheep.once(&Request::check_object(Oid::data(VID, 0), true)).await;
        assert_eq!(decode_list::<CheckReport>(&report).unwrap().missing, [node_id()]);
    });
}

#[test]
fn operations_that_do_not_exist_say_so_and_those_of_other_sheep_are_not_supported() {
    run(async {
        let sheep = Sheep::new(Fake::formatted(1, 0));
        let mut client = sheep.connect();
        for value in 0..=255u8 {
            let mut request = Request::plain(Opcode::Stat, 0);
            request.header.opcode = value;
            request.header.proto_ver = if value >= 0x80 { 0x0a } else { 0 };
            let (reply, _) = client.call(&request).await;
            let expected = match value {
                0x91..=0x93 | 0xad | 0xae | 0xb6 | 0xb7 | 0xc3 | 0xc4 => Some(ResultCode::INVALID_PARMS),
                0xa1..=0xa6 | 0xac | 0xaf | 0xc1 | 0xc2 | 0xc7 | 0xc8 => Some(ResultCode::NO_SUPPORT),
                _ if Opcode::from_u8(value).is_none() => Some(ResultCode::INVALID_PARMS),
                _ => None,
            };
            if let Some(expected) = expected {
                assert_eq!(reply.result, expected, "{value:#x}");
            }
        }
    });
}

#[test]
fn how_the_cluster_repairs_itself_is_said_with_ask() {
    run(async {
        let sheep = Sheep::new(Fake::formatted(1, 0));
        let ask = async |op| {
            let (_, bytes) = sheep.once(&Request::ask(&ClientOp::Cluster(op))).await;
            decode_list::<ClientResult>(&bytes).expect("an answer to ASK")
        };
        // Two operators, each with an option of his own.
        let slower = RepairChange { rate_bytes: Some(1 << 20), scrub_now: true, ..RepairChange::default() };
        let less = RepairChange { out_time_s: Some(3), enabled: Some(false), ..RepairChange::default() };
        for change in [slower, less] {
            assert_eq!(ask(ClusterOp::SetRepair(change)).await, Ok(ClientReply::Done));
        }
        let expected = RepairOptions {
            out_time_s: 3,
            enabled: false,
            rate_bytes: 1 << 20,
            scrubs_asked: 1,
            ..RepairOptions::default()
        };
        assert_eq!(sheep.fake.world().info.repair, expected);
        assert_eq!(ask(ClusterOp::Scrub).await, Ok(ClientReply::Scrub(Box::<ScrubStatus>::default())));
        let out = ClusterOp::SetOut { node: node_id(), out: true };
        assert_eq!(ask(out).await, Ok(ClientReply::Done));
        assert_eq!(ask(ClusterOp::ForceRecovery).await, Err(ClientError::NotStuck));
    });
}

#[test]
fn recovery_is_throttled_by_objects_and_milliseconds() {
    run(async {
        let sheep = Sheep::new(Fake::formatted(1, 0));
        let get = async || {
            let (_, bytes) = sheep.once(&Request::get_recovery()).await;
            RecoveryThrottling::decode(&bytes).expect("24 bytes")
        };
        assert_eq!(get().await, RecoveryThrottling::default());
        let wanted = RecoveryThrottling { max_exec_count: 10, queue_work_interval: 1000, throttling: true };
        assert_eq!(sheep.result(&Request::set_recovery(wanted)).await, ResultCode::SUCCESS);
        assert_eq!(get().await, wanted);
        for refused in [
            RecoveryThrottling { max_exec_count: 0, ..wanted },
            RecoveryThrottling { queue_work_interval: 0, ..wanted },
        ] {
            let result = sheep.result(&Request::set_recovery(refused)).await;
            assert_eq!(result, ResultCode::INVALID_PARMS, "{refused:?}");
        }
        assert_eq!(sheep.result(&Request::plain(Opcode::SetRecovery, 0)).await, ResultCode::INVALID_PARMS);
        assert_eq!(sheep.result(&Request::plain(Opcode::GetRecovery, 23)).await, ResultCode::BUFFER_SMALL);
        assert_eq!(get().await, wanted);
        let off = RecoveryThrottling::default();
        assert_eq!(sheep.result(&Request::set_recovery(off)).await, ResultCode::SUCCESS);
        assert_eq!(get().await, off);
    });
}

#[test]
fn a_sheep_is_told_to_end() {
    run(async {
        let sheep = Sheep::new(Fake::formatted(1, 0));
        assert_eq!(sheep.result(&Request::plain(Opcode::KillNode, 0)).await, ResultCode::SUCCESS);
        assert_eq!(sheep.result(&Request::plain(Opcode::Shutdown, 0)).await, ResultCode::SUCCESS);
        let (reply, logs) = sheep.once(&Request::stat_cluster(1, 0)).await;
        assert_eq!((reply.result, logs.len()), (ResultCode::SHUTDOWN, 48));
    });
}

#[test]
fn a_sheep_tells_how_it_is_reached_and_who_is_there() {
    run(async {
        let guests = Guests::default();
        let about = About {
            nbd_socket: "/srv/d0/nbd.sock".into(),
            nbd_address: Some("127.0.0.1:10809".parse().unwrap()),
            guests: guests.clone(),
            ..About::default()
        };
        let sheep = Sheep { desk: Desk::new(about), ..Sheep::new(Fake::formatted(1, 0)) };
        let create = Request::new_vdi(b"test", 1 << 20, None, None).unwrap();
        assert_eq!(sheep.result(&create).await, ResultCode::SUCCESS);
        let vid = vid_of_name(b"test");
        let stay = guests.enter(vid, b"test", "qemu 4711");
        let lock = Request::on_vdi(Opcode::LockVdi, b"test", b"", 0).unwrap();
        assert_eq!(sheep.result(&lock).await, ResultCode::SUCCESS);

        let request = Request::ask(&ClientOp::Cluster(ClusterOp::Access));
        let (_, payload) = sheep.once(&request).await;
        let Some(Ok(ClientReply::Access(access))) = decode_list::<ClientResult>(&payload) else {
            panic!("{payload:?}")
        };
        let guest = |client: &str| Guest { vid, working: b"test".to_vec(), client: client.to_string() };
        assert_eq!(access.nbd_socket, b"/srv/d0/nbd.sock");
        assert_eq!(access.nbd_address, Some("127.0.0.1:10809".parse().unwrap()));
        assert_eq!(access.guests, [guest("qemu 4711"), guest("native client")]);

        drop(stay);
        assert_eq!(sheep.result(&Request::release_vdi(vid, 0)).await, ResultCode::SUCCESS);
        let (_, payload) = sheep.once(&request).await;
        let reply = decode_list::<ClientResult>(&payload);
        assert!(matches!(reply, Some(Ok(ClientReply::Access(access))) if access.guests.is_empty()));
    });
}
