//! Decoders of what clients and other sheep send. Whatever decodes is encoded again, and must then decode to the same.

use std::fmt::Debug;

use bytes::Bytes;
use proto::checksum::crc32c;
use proto::client::{ClientOp, ClientReply, ClientResult, Point, VdiOp, VolumeOp};
use proto::inode::{InodeHeader, SHIFT_MAX};
use proto::object::{Origin, Stamp, Tag};
use proto::peer::{FRAME_HEAD_BYTES, FrameHead, Hello, PeerMessage, PeerReply, PeerRequest};
use proto::sd::VID_BITMAP_BYTES;
use proto::sd::extension::{decode_list, encode_list};
use proto::sd::header::*;
use proto::sd::opcode::Opcode;
use proto::sd::request::Request;
use proto::sd::structs::*;
use proto::{Generation, Incarnation, RequestId, Seq, Vid, ViewVersion};
use serde::Serialize;
use serde::de::DeserializeOwned;

const VID: Vid = Vid(7);
/// More than any structure has but the two longest.
const STRUCTURE_BYTES_MAX: usize = 8 << 10;

fn request_variant<T: RequestVariant + PartialEq + Debug>(bytes: &[u8; 32]) {
    let value = T::decode(bytes);
    assert_eq!(T::decode(&value.encode()), value);
}

fn reply_variant<T: ReplyVariant + PartialEq + Debug>(bytes: &[u8; 28]) {
    let value = T::decode(bytes);
    assert_eq!(T::decode(&value.encode()), value);
}

/// A header, and after it any structure that may follow one.
pub fn native(bytes: &[u8]) {
    let Some((head, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return };
    let request = RequestHeader::decode(head);
    assert_eq!(&request.encode(), head);
    assert!(request.payload_bytes() <= request.data_length);
    request_variant::<ObjRequest>(&request.variant);
    request_variant::<VdiRequest>(&request.variant);
    request_variant::<ClusterRequest>(&request.variant);
    let reply = ReplyHeader::decode(head);
    assert_eq!(ReplyHeader::decode(&reply.encode()), reply);
    reply_variant::<VdiReply>(&reply.variant);
    reply_variant::<NodeReply>(&reply.variant);
    lists(body, request.data_length);
    structures(&extended(body, STRUCTURE_BYTES_MAX));
    match Opcode::from_u8(request.opcode) {
        Some(Opcode::ClusterInfo) => cluster_info(&extended(body, CLUSTER_INFO_BYTES)),
        Some(Opcode::MdInfo) => md_info(extended(body, SD_MD_INFO_BYTES), request.id),
        Some(Opcode::ReadVdis) => vid_bitmap(body),
        _ => {}
    }
}

/// Made as long as it must be, by zeros.
fn extended(body: &[u8], len: usize) -> Vec<u8> {
    let mut whole = body.to_vec();
    whole.resize(len.max(body.len()), 0);
    whole
}

fn lists(body: &[u8], number: u32) {
    assert!(SdNode::decode_list(body).len() <= body.len() / SD_NODE_BYTES);
    assert!(VdiState::decode_list(body).len() <= body.len() / VDI_STATE_BYTES);
    for log in EpochLog::decode_list(body, number) {
        assert!(log.nodes.len() <= number as usize, "no more nodes than were asked for");
        assert!(log.encode(number).is_some());
    }
}

fn structures(body: &[u8]) {
    let (id, io) = decode_node_id(body).expect("long enough");
    assert_eq!(decode_node_id(&encode_node_id(id, io)), Some((id, io)));
    let node = SdNode::decode(body).expect("long enough");
    assert_eq!(SdNode::decode(&node.encode()), Some(node));
    let state = VdiState::decode(body).expect("long enough");
    assert_eq!(VdiState::decode(&state.encode()), Some(state));
    let throttling = RecoveryThrottling::decode(body).expect("long enough");
    assert_eq!(RecoveryThrottling::decode(&throttling.encode()), Some(throttling));
    let recovery = RecoveryState::decode(body).expect("long enough");
    assert_eq!(RecoveryState::decode(&recovery.encode()), Some(recovery));
    let stat = SdStat::decode(body).expect("long enough");
    assert_eq!(SdStat::decode(&stat.encode()), Some(stat));
    let inode = InodeHeader::decode(body).expect("long enough");
    // Only headers of the view, which has checked this, are ever encoded.
    if inode.block_size_shift <= SHIFT_MAX {
        assert_eq!(InodeHeader::decode(&inode.encode()), Some(inode));
    }
}

/// Bytes that are no text become longer as text, and are cut when it is encoded: so texts are left out here and below.
fn cluster_info(body: &[u8]) {
    let info =
        ClusterInfo { default_store: String::new(), ..ClusterInfo::decode(body).expect("long enough") };
    assert_eq!(ClusterInfo::decode(&info.encode()), Some(info));
}

fn md_info(mut body: Vec<u8>, count: u32) {
    // The number of disks stands at the end, where inputs do not reach.
    body[SD_MD_INFO_BYTES - 8..SD_MD_INFO_BYTES - 4].copy_from_slice(&count.to_le_bytes());
    let mut disks = decode_md_info(&body).expect("long enough");
    disks.iter_mut().for_each(|disk| disk.path.clear());
    assert_eq!(decode_md_info(&encode_md_info(&disks)), Some(disks));
}

fn vid_bitmap(body: &[u8]) {
    let mut vids = decode_vid_bitmap(body);
    assert!(vids.is_sorted());
    vids.retain(|vid| vid.is_valid());
    let bitmap = encode_vid_bitmap(vids.iter().copied());
    assert_eq!(decode_vid_bitmap(&bitmap[..body.len().min(VID_BITMAP_BYTES)]), vids);
}

pub fn native_seeds() -> Vec<Vec<u8>> {
    let whole = |request: Request, body: &[u8]| [&request.encode_header()[..], body].concat();
    vec![
        whole(Request::get_node_list(), &[1; 160]),
        whole(Request::stat_cluster(3, 4), &[0; 600]),
        whole(Request::volume_write(VID, 4096, Bytes::from_static(&[5; 32])), &[5; 32]),
        whole(Request::plain(Opcode::ReadVdis, 128), &[0xff; 128]),
        whole(Request::plain(Opcode::ReadObj, 4096), &[22; 700]),
        whole(Request::cluster_info(), &[3; 200]),
        whole(Request::md_info().id(2), b"......................../disk/0"),
    ]
}

fn list<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Some(value) = decode_list::<T>(bytes) {
        assert_eq!(decode_list::<T>(&encode_list(&value)), Some(value));
    }
}

pub fn client(bytes: &[u8]) {
    list::<ClientOp>(bytes);
    list::<ClientReply>(bytes);
    list::<ClientResult>(bytes);
}

pub fn client_seeds() -> Vec<Vec<u8>> {
    let volume = |op| ClientOp::Volume { vid: VID, at: Point::Head, op };
    let clone = VdiOp::Clone { base: VID, name: b"copy".to_vec(), size: None, policy: None };
    vec![
        encode_list(&volume(VolumeOp::Read { offset: 8192, len: 4096 })),
        encode_list(&volume(VolumeOp::Write { offset: 0, data: Bytes::from_static(&[1; 16]) })),
        encode_list(&ClientOp::Vdi(clone)),
    ]
}

/// The first byte says how much of the rest is payload. The checksum is put right: what is behind it is to be reached.
pub fn peer(bytes: &[u8]) {
    if let Some(head) = bytes.first_chunk::<FRAME_HEAD_BYTES>() {
        let _ = FrameHead::decode(head);
    }
    // With what a link begins.
    list::<Hello>(bytes);
    let Some((payload, rest)) = bytes.split_first() else { return };
    let (payload, control) = rest.split_at(usize::from(*payload).min(rest.len()));
    let head = FrameHead {
        control_bytes: control.len() as u32,
        payload_bytes: payload.len() as u32,
        control_crc: crc32c(control),
    };
    let Ok(message) = PeerMessage::decode(&head, control, Bytes::copy_from_slice(payload)) else { return };
    let (frame, payload) = message.encode();
    let head = FrameHead::decode(frame.first_chunk().expect("a frame has a head")).expect("our own head");
    assert_eq!(PeerMessage::decode(&head, &frame[FRAME_HEAD_BYTES..], payload), Ok(message));
}

pub fn peer_seeds() -> Vec<Vec<u8>> {
    let life = Incarnation(2);
    let request = |body| PeerMessage::Request { id: 1, version: ViewVersion(4), life, body };
    let reply = |id, body| PeerMessage::Reply { id, body };
    let (generation, seq) = (Generation(3), Seq(1 << 20));
    let tag = Tag {
        vid: VID,
        stamp: Stamp { generation, seq },
        settled: seq,
        origin: Origin { incarnation: life, request: RequestId(5) },
        last_room: false,
        tell_taken: false,
    };
    let messages = [
        request(PeerRequest::Settle { vid: VID, tag }),
        request(PeerRequest::SettleAround { vid: VID, generation, last: Seq(9), pinned: vec![seq, Seq(4)] }),
        request(PeerRequest::Seal { vid: VID, generation: Generation(3), after: None }),
        request(PeerRequest::Recall { incarnation: life, requests: vec![1, 2, 300] }),
        reply(2, PeerReply::OldView { version: ViewVersion(9) }),
        reply(3, PeerReply::Unsettled { changes: Vec::new(), complete: true }),
        reply(5, PeerReply::Checksums(vec![6, 7])),
        reply(4, PeerReply::Data { data: Bytes::from_static(&[3; 8]), checksums: vec![5] }),
    ];
    let seed = |message: &PeerMessage| {
        let (frame, payload) = message.encode();
        [&[payload.len() as u8][..], &payload, &frame[FRAME_HEAD_BYTES..]].concat()
    };
    messages.iter().map(seed).collect()
}
