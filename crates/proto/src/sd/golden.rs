//! Golden bytes: every header captured from QEMU 5.0 and the original server (spec section 9.7), and every
//! structure laid out by hand from the tables of section 2.5.

use bytes::Bytes;

use super::extension::{ObjectRequest, UsageReply, VolumeRequest, decode_list, encode_list};
use super::header::*;
use super::structs::*;
use super::*;
use crate::client::Point;
use crate::{CopyPolicy, NodeId, Oid, Vid};

const VID: Vid = Vid(0xa03907);
const INODE: Oid = Oid(0x80a0_3907_0000_0000);

/// Bytes of hex digits, with blanks anywhere.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    assert_eq!(digits.len() % 2, 0);
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

fn header(text: &str) -> [u8; HEADER_BYTES] {
    hex(text).try_into().expect("48 bytes")
}

/// The header is what the fields say, in both directions.
#[track_caller]
fn check_request(text: &str, expected: RequestHeader) {
    assert_eq!(RequestHeader::decode(&header(text)), expected);
    assert_eq!(expected.encode(), header(text));
}

#[track_caller]
fn check_reply(text: &str, opcode: Opcode, id: u32, data_length: u32, result: ResultCode, variant: [u8; 28]) {
    let opcode = opcode as u8;
    let expected = ReplyHeader { proto_ver: 0, opcode, flags: 0, epoch: 1, id, data_length, result, variant };
    assert_eq!(ReplyHeader::decode(&header(text)), expected);
    assert_eq!(expected.encode(), header(text));
}

fn request(
    proto_ver: u8,
    opcode: Opcode,
    flags: u16,
    id: u32,
    data_length: u32,
    variant: [u8; 32],
) -> RequestHeader {
    RequestHeader { proto_ver, opcode: opcode as u8, flags, epoch: 0, id, data_length, variant }
}

fn vdi_reply(vdi_id: u32) -> [u8; 28] {
    VdiReply { vdi_id, attr_id: 0, copies: 1, block_size_shift: 22 }.encode()
}

#[test]
fn captured_vdi_requests() {
    check_request(
        "00110100 00000000 00000000 00010000 00000004 00000000 00000000 00000016 00000000 00000000 00000000 00000000",
        request(0, Opcode::NewVdi, flag::WRITE, 0, 256, {
            VdiRequest { vdi_size: 64 << 20, block_size_shift: 22, ..Default::default() }.encode()
        }),
    );
    check_request(
        "01120100 00000000 00000000 00020000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000",
        request(1, Opcode::LockVdi, flag::WRITE, 0, 512, VdiRequest::default().encode()),
    );
    check_request(
        "00130100 00000000 00000000 06000000 00000000 00000000 0739a000 00000000 00000000 00000000 00000000 00000000",
        request(0, Opcode::ReleaseVdi, flag::WRITE, 0, 6, {
            VdiRequest { base_vdi_id: VID.0, ..Default::default() }.encode()
        }),
    );
    check_request(
        "00110100 00000000 00000000 00010000 00000004 00000000 0739a000 01000016 01000000 00000000 00000000 00000000",
        request(0, Opcode::NewVdi, flag::WRITE, 0, 256, {
            VdiRequest {
                vdi_size: 64 << 20,
                base_vdi_id: VID.0,
                copies: 1,
                block_size_shift: 22,
                snapid: 1,
                ..Default::default()
            }
            .encode()
        }),
    );
}

#[test]
fn captured_object_requests() {
    let obj = |oid, copies, offset| ObjRequest { oid, copies, offset, ..Default::default() };
    check_request(
        "00020400 00000000 00000000 38124000 00000000 0739a080 00000000 00000000 00000000 00000000 00000000 00000000",
        request(0, Opcode::ReadObj, flag::CACHE, 0, 4_198_968, obj(INODE, 0, 0).encode()),
    );
    check_request(
        "00010500 00000000 00000000 00100000 03000000 0739a000 00000000 00000000 01000000 00000000 00200000 00000000",
        request(0, Opcode::CreateAndWriteObj, flag::WRITE | flag::CACHE, 0, 4096, {
            obj(Oid::data(VID, 3), 1, 8192).encode()
        }),
    );
    check_request(
        "00030500 00000000 01000000 04000000 00000000 0739a080 00000000 00000000 01000000 00000000 44120000 00000000",
        request(0, Opcode::WriteObj, flag::WRITE | flag::CACHE, 1, 4, obj(INODE, 1, 0x1244).encode()),
    );
    check_request(
        "00160400 00000000 02000000 00000000 00000000 0739a080 00000000 00000000 01000000 00000000 00000000 00000000",
        request(0, Opcode::FlushVdi, flag::CACHE, 2, 0, obj(INODE, 1, 0).encode()),
    );
    check_request(
        "00030500 00000000 00000000 38120000 00000000 0739a080 00000000 00000000 01000000 00000000 00000000 00000000",
        request(0, Opcode::WriteObj, flag::WRITE | flag::CACHE, 0, 4664, obj(INODE, 1, 0).encode()),
    );
    let head = Vid(0xa03908);
    check_request(
        "00010700 00000000 00000000 00100000 03000000 0839a000 03000000 0739a000 01000000 00000000 00200000 00000000",
        request(0, Opcode::CreateAndWriteObj, flag::WRITE | flag::COW | flag::CACHE, 0, 4096, {
            ObjRequest { cow_oid: Oid::data(VID, 3), ..obj(Oid::data(head, 3), 1, 8192) }.encode()
        }),
    );
}

#[test]
fn captured_replies() {
    use ResultCode as R;
    check_reply(
        "00110000 01000000 00000000 00000000 00000000 00000000 0739a000 00000000 01160000 00000000 00000000 00000000",
        Opcode::NewVdi,
        0,
        0,
        R::SUCCESS,
        vdi_reply(VID.0),
    );
    check_reply(
        "00120000 01000000 00000000 00000000 00000000 00000000 0739a000 00000000 01160000 00000000 00000000 00000000",
        Opcode::LockVdi,
        0,
        0,
        R::SUCCESS,
        vdi_reply(VID.0),
    );
    check_reply(
        "00020000 01000000 00000000 38124000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000",
        Opcode::ReadObj,
        0,
        4_198_968,
        R::SUCCESS,
        [0; 28],
    );
    check_reply(
        "00010000 01000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000",
        Opcode::CreateAndWriteObj,
        0,
        0,
        R::SUCCESS,
        [0; 28],
    );
    check_reply(
        "00160000 01000000 02000000 00000000 05000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000",
        Opcode::FlushVdi,
        2,
        0,
        R::INVALID_PARMS,
        [0; 28],
    );
    check_reply(
        "00110000 01000000 00000000 00000000 00000000 00000000 0839a000 00000000 01160000 00000000 00000000 00000000",
        Opcode::NewVdi,
        0,
        0,
        R::SUCCESS,
        vdi_reply(0xa03908),
    );
}

#[test]
fn remaining_variants() {
    let cluster = ClusterRequest {
        oid: Oid(0x0102_0304_0506_0708),
        ctime: 0x1112_1314_1516_1718,
        copies: 6,
        copy_policy: 0x22,
        flags: 0x0c,
        tag: 0x2122_2324,
        nodes_nr: 6144,
        block_size_shift: 22,
    };
    let bytes = hex("08070605 04030201 18171615 14131211 06220c00 24232221 00180000 16000000");
    assert_eq!(cluster.encode()[..], bytes);
    assert_eq!(ClusterRequest::decode(&cluster.encode()), cluster);

    let obj = ObjRequest { ec_index: 4, copy_policy: 3, tgt_epoch: 5, offset_high: 6, ..Default::default() };
    let bytes = hex("00000000 00000000 00000000 00000000 00030400 05000000 00000000 06000000");
    assert_eq!(obj.encode()[..], bytes);
    assert_eq!(ObjRequest::decode(&obj.encode()), obj);

    let node = NodeReply { nr_nodes: 3, store_size: 0x0102, store_free: 0x0304 };
    let bytes = hex("03000000 00000000 00000000 02010000 00000000 04030000 00000000");
    assert_eq!(node.encode()[..], bytes);
    assert_eq!(NodeReply::decode(&node.encode()), node);

    // The captured reply of GET_CLUSTER_DEFAULT: 03 00 16.
    let default = ClusterDefaultReply { nr_copies: 3, copy_policy: 0, block_size_shift: 22 };
    assert_eq!(default.encode()[..4], hex("03001600"));
    assert_eq!(ClusterDefaultReply::decode(&default.encode()), default);

    let hash = HashReply { digest: *b"0123456789abcdefghij" };
    assert_eq!(&hash.encode()[..], b"\0\0\0\x000123456789abcdefghij\0\0\0\0");
    assert_eq!(HashReply::decode(&hash.encode()), hash);

    let lock =
        VdiRequest { copy_policy: 0x11, store_policy: 1, lock_type: LOCK_SHARED, ..Default::default() };
    let bytes = hex("00000000 00000000 00000000 00110100 00000000 01000000 00000000 00000000");
    assert_eq!(lock.encode()[..], bytes);
    assert_eq!(VdiRequest::decode(&lock.encode()), lock);
}

#[test]
fn extension_variants() {
    let volume = VolumeRequest { vid: VID, at: Point::Head, offset: 0x0102, length: 0x0304_0506_0708 };
    let bytes = hex("0739a000 00000000 02010000 00000000 08070605 04030000 00000000 00000000");
    assert_eq!(volume.encode()[..], bytes);
    assert_eq!(VolumeRequest::decode(&volume.encode()), volume);

    let object = ObjectRequest { oid: INODE, repair: true };
    let bytes = hex("00000000 0739a080 01000000 00000000 00000000 00000000 00000000 00000000");
    assert_eq!(object.encode()[..], bytes);
    assert_eq!(ObjectRequest::decode(&object.encode()), object);

    let usage = UsageReply { own_objects: 5, shared_objects: 6 };
    assert_eq!(usage.encode()[..16], hex("05000000 00000000 06000000 00000000"));
    assert_eq!(UsageReply::decode(&usage.encode()), usage);

    let nodes = vec![node(1).id];
    let encoded = encode_list(&nodes);
    // A count, sixteen bytes of address, the port as a varint: 7000 = 0xd8 0x36.
    assert_eq!(encoded, hex("01 00000000 00000000 00000000 c0a80001 d836"));
    assert_eq!(decode_list::<Vec<NodeId>>(&encoded), Some(nodes));
    assert_eq!(decode_list::<Vec<NodeId>>(&[&encoded[..], &[0]].concat()), None, "trailing bytes");
    assert_eq!(decode_list::<Vec<NodeId>>(&encoded[..encoded.len() - 1]), None, "missing bytes");
}

fn node(last: u8) -> SdNode {
    let mut addr = [0; 16];
    addr[12..].copy_from_slice(&[192, 168, 0, last]);
    SdNode { id: NodeId { addr, port: 7000 }, io: None, vnodes: 128, zone: 0x0100_a8c0, space: 1 << 40 }
}

const NODE_ID_HEX: &str = "00000000 00000000 00000000 c0a80001 581b";

#[test]
fn a_node_is_80_bytes() {
    let plain = node(1);
    let mut bytes = vec![0; 24];
    bytes.extend(hex(NODE_ID_HEX));
    bytes.extend([0; 22]);
    bytes.extend(hex("8000 0000 c0a80001 00000000 00010000"));
    assert_eq!(plain.encode()[..], bytes);
    assert_eq!(SdNode::decode(&bytes), Some(plain));

    let second = SdNode { io: Some(NodeId { addr: [0xfd; 16], port: 7001 }), ..plain };
    bytes[42..58].fill(0xfd);
    bytes[58..60].copy_from_slice(&7001u16.to_le_bytes());
    // Pointers of the sender are ignored.
    bytes[..24].fill(0xee);
    assert_eq!(SdNode::decode(&bytes), Some(second));
    assert_eq!(second.encode()[24..], bytes[24..]);
    assert_eq!(SdNode::decode(&bytes[..79]), None);

    let id = encode_node_id(plain.id, None);
    assert_eq!(id[..18], hex(NODE_ID_HEX));
    assert_eq!(id.len(), 40);
    assert_eq!(decode_node_id(&id), Some((plain.id, None)));
}

#[test]
fn cluster_info_is_491568_bytes() {
    let info = ClusterInfo {
        disable_recovery: true,
        epoch: 7,
        ctime: 0x1112_1314_1516_1718,
        flags: 0x0c,
        nr_copies: 3,
        copy_policy: 0,
        status: cluster_status::OK,
        block_size_shift: 22,
        default_store: "plain".into(),
        nodes: vec![node(1), node(2)],
    };
    let bytes = info.encode();
    assert_eq!(bytes.len(), 491_568);
    let head = "0a010200 07000000 18171615 14131211 0c00 03 00 01 16 000000 706c61696e 000000000000 00000000 00000000 00000000";
    assert_eq!(bytes[..48], hex(head));
    assert_eq!(bytes[48..128], node(1).encode());
    assert_eq!(bytes[128..208], node(2).encode());
    assert!(bytes[208..].iter().all(|b| *b == 0));
    assert_eq!(ClusterInfo::decode(&bytes), Some(info));
    assert_eq!(ClusterInfo::decode(&bytes[..47]), None);
    assert_eq!(ClusterInfo::decode(&bytes[..130]).unwrap().nodes, vec![node(1)]);
}

#[test]
fn an_epoch_log_is_48_bytes_and_its_nodes() {
    let log = EpochLog {
        ctime: 0x1112_1314_1516_1718,
        time: 0x0102,
        epoch: 5,
        disable_recovery: true,
        nr_copies: 3,
        copy_policy: 0x11,
        flags: 0x0c,
        drv_name: "plain".into(),
        nodes: vec![node(1)],
    };
    let head = hex(
        "18171615 14131211 02010000 00000000 05000000 01000000 01031100 00000c00 706c6169 6e000000 00000000 00000000",
    );
    assert_eq!(log.encode(0).unwrap(), head);
    let two = log.encode(2).unwrap();
    assert_eq!(two.len(), 48 + 160);
    assert_eq!(two[..48], head);
    assert_eq!(two[48..128], node(1).encode());
    assert_eq!(EpochLog { nodes: vec![node(1), node(2)], ..log.clone() }.encode(1), None);
    assert_eq!(EpochLog::decode_list(&two, 2), vec![log.clone()]);
    assert_eq!(EpochLog::decode_list(&[&two[..], &two[..]].concat(), 2).len(), 2);
    assert_eq!(EpochLog::decode_list(&head, 0), vec![EpochLog { nodes: vec![], ..log }]);
    assert_eq!(EpochLog::decode_list(&head, u32::MAX), vec![]);
}

#[test]
fn a_vdi_state_is_1428_bytes() {
    let state = VdiState {
        vid: VID.0,
        nr_copies: 3,
        snapshot: true,
        deleted: true,
        copy_policy: 0x11,
        block_size_shift: 22,
        parent_vid: 0x64283b,
        lock_state: lock_state::LOCKED,
        lock_owner: Some(node(1).id),
        participants: vec![],
    };
    let mut bytes = hex("0739a000 03010111 16000000 3b286400 02000000");
    bytes.extend(hex(NODE_ID_HEX));
    bytes.resize(1428, 0);
    assert_eq!(state.encode(), bytes);
    assert_eq!(VdiState::decode(&bytes), Some(state.clone()));

    let participants =
        vec![(node(1).id, participant_state::MODIFIED), (node(2).id, participant_state::INVALIDATED)];
    let shared = VdiState { lock_state: lock_state::SHARED, lock_owner: None, participants, ..state };
    let bytes = shared.encode();
    assert_eq!(bytes[16..60], [&[3u8][..], &[0; 43]].concat());
    assert_eq!(bytes[60..76], hex("02000000 01000000 03000000 00000000"));
    assert_eq!(bytes[188..206], hex(NODE_ID_HEX));
    assert_eq!(bytes[228..246], encode_node_id(node(2).id, None)[..18]);
    assert_eq!(VdiState::decode_list(&bytes), vec![shared]);
    assert_eq!(VdiState::decode(&bytes[..1427]), None);
}

#[test]
fn md_info_is_263688_bytes() {
    let disk = |idx| MdInfo { idx, free: 0x0102, used: 0x0304, path: "/srv/d0".into() };
    let bytes = encode_md_info(&[disk(0), disk(1)]);
    assert_eq!(bytes.len(), 263_688);
    assert_eq!(
        bytes[4120..4152],
        hex("01000000 00000000 02010000 00000000 04030000 00000000 2f737276 2f643000")
    );
    assert_eq!(bytes[263_680..], hex("02000000 00000000"));
    assert_eq!(decode_md_info(&bytes), Some(vec![disk(0), disk(1)]));
    assert_eq!(decode_md_info(&bytes[1..]), None);
}

#[test]
fn counters_and_recovery() {
    let bytes: Vec<u8> = (1..=15u64).flat_map(u64::to_le_bytes).collect();
    let stat = SdStat::decode(&bytes).unwrap();
    assert_eq!(stat.encode()[..], bytes);
    assert_eq!((stat.gateway_active, stat.gateway_rx_bytes, stat.peer_tx_bytes), (1, 5, 8));
    assert_eq!((stat.gateway_remove, stat.gateway_read, stat.gateway_write), (9, 10, 11));
    assert_eq!((stat.gateway_flush, stat.peer_remove, stat.peer_write), (12, 13, 15));
    assert_eq!(SdStat::decode(&bytes[1..]), None);

    let recovery = RecoveryState { in_recovery: true, state: 1, nr_finished: 5, nr_total: 9 };
    assert_eq!(recovery.encode()[..], hex("01000000 01000000 05000000 00000000 09000000 00000000"));
    assert_eq!(RecoveryState::decode(&recovery.encode()), Some(recovery));

    let throttling = RecoveryThrottling { max_exec_count: 10, queue_work_interval: 1000, throttling: true };
    assert_eq!(throttling.encode()[..], hex("0a000000 00000000 e8030000 00000000 01000000 00000000"));
    assert_eq!(RecoveryThrottling::decode(&throttling.encode()), Some(throttling));
    assert_eq!(RecoveryThrottling::decode(&throttling.encode()[1..]), None);
}

#[test]
fn a_vid_is_one_bit_lowest_first() {
    let vids = [Vid(1), VID, Vid::MAX];
    let bitmap = encode_vid_bitmap(vids.into_iter().chain([Vid(0), Vid(1 << 24)]));
    assert_eq!(bitmap.len(), 2_097_152);
    assert_eq!(bitmap[0], 0b10);
    assert_eq!(bitmap[0xa03907 >> 3], 0x80);
    assert_eq!(bitmap[bitmap.len() - 1], 0x80);
    assert_eq!(decode_vid_bitmap(&bitmap), vids);
}

#[test]
fn requests_of_a_client_are_what_qemu_sends() {
    let create = Request::new_vdi(b"alice", 64 << 20, None, Some(22)).unwrap();
    let captured = header(
        "02110100 00000000 00000000 00010000 00000004 00000000 00000000 00000016 00000000 00000000 00000000 00000000",
    );
    assert_eq!(create.encode_header(), captured, "but for the version, where QEMU leaves 0");
    assert_eq!(create.payload[..6], *b"alice\0");
    let lock = Request::on_vdi(Opcode::LockVdi, b"alice", b"", 0).unwrap();
    assert_eq!((lock.header.data_length, lock.payload.len()), (512, 512));
    let long = Request::new_vdi(&[b'a'; 256], 0, None, None);
    assert_eq!(long, Err(super::request::NameTooLong(256)));

    let erasure = Some(CopyPolicy::Erasure { data: 4, parity: 2 });
    let create = Request::new_vdi(b"e", 1, erasure, None).unwrap();
    assert_eq!(create.encode_header()[28..32], hex("06220000"));

    let cow = Request::create_obj(Oid(3), 8192, Some(Oid(2)), Bytes::from_static(b"abc")).id(9);
    assert_eq!((cow.header.flags, cow.header.id, cow.header.data_length), (flag::WRITE | flag::COW, 9, 3));
    assert_eq!(cow.reply_bytes_max(), 0);
    assert_eq!(Request::read_obj(Oid(3), 0, 512).reply_bytes_max(), 512);
    assert_eq!(Request::get_node_list().header.data_length, 491_520);
    assert_eq!(Request::stat_cluster(1, 0).header.data_length, 48);
    assert_eq!(Request::vdi_list().header.proto_ver, INTERNAL_VERSION);
    assert_eq!(Request::make_fs("plain", ClusterRequest::default()).payload, Bytes::from_static(b"plain\0"));
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_decoded_without_panic(bytes in proptest::collection::vec(0u8.., 0..3000), nodes_nr: u32) {
        decode_node_id(&bytes);
        SdNode::decode_list(&bytes);
        ClusterInfo::decode(&bytes);
        EpochLog::decode_list(&bytes, nodes_nr);
        EpochLog::decode_list(&bytes, nodes_nr % 4);
        VdiState::decode_list(&bytes);
        decode_md_info(&bytes);
        SdStat::decode(&bytes);
        RecoveryState::decode(&bytes);
        decode_vid_bitmap(&bytes);
        decode_list::<Vec<crate::client::VdiInfo>>(&bytes);
        decode_list::<crate::client::ClusterInfo>(&bytes);
        decode_list::<crate::client::CheckReport>(&bytes);
    }

    #[test]
    fn headers_survive_both_ways(bytes: [u8; 32], more: [u8; 16]) {
        let header: [u8; 48] = [&more[..], &bytes[..]].concat().try_into().unwrap();
        proptest::prop_assert_eq!(RequestHeader::decode(&header).encode(), header);
        proptest::prop_assert_eq!(ReplyHeader::decode(&header).encode(), header);
    }
}
