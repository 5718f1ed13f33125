//! A sheep in a cluster of two, which the other one tells anything; and the state of a cluster in bytes, from which a sheep goes on.

use bytes::Bytes;
use node::{Effect, Node, NodeConfig, SnapshotError, Time};
use proto::checksum::crc32c;
use proto::client::ClientOp;
use proto::cluster::{Action, ClusterEvent, FormatOptions, LogEntry, MemberInfo, Proposal};
use proto::object::{BlockRange, Change, ObjectInfo, ObjectOp, ObjectReply, Origin, Stamp, Tag, WriteBase};
use proto::peer::{FRAME_HEAD_BYTES, FrameHead, PeerMessage, PeerReply, PeerRequest};
use proto::{CopyPolicy, Generation, Incarnation, NodeId, Oid, RequestId, Seq, Vid, ViewVersion, ZoneId};

/// More would be nothing new.
const MESSAGES_MAX: usize = 32;
/// Of an owner's changes: smaller ones belong to its seal.
const FIRST_SEQ: u64 = 1 << 32;
const ME: NodeId = NodeId { addr: [0; 16], port: 7001 };
const OTHER: NodeId = NodeId { addr: [0; 16], port: 7000 };

fn member(id: NodeId) -> MemberInfo {
    MemberInfo {
        id,
        zone: ZoneId(id.port.into()),
        space_bytes: 1 << 30,
        fixed_vnodes: None,
        store_id: id.port.into(),
        life: id.port.into(),
        formatted: None,
        starts: 0,
        io_addr: None,
        write_back: false,
    }
}

fn started() -> Node {
    let config = NodeConfig { member: member(ME), cache_bytes: 1 << 20, gathered_max: node::GATHERED_MAX };
    Node::new(config, Vec::new())
}

/// Joined, with a VDI that the other sheep serves.
fn in_cluster() -> (Node, Vid) {
    let mut node = started();
    let mut version = 0;
    let mut hear = |node: &mut Node, event| {
        version += 1;
        node.handle_log(LogEntry { version: ViewVersion(version), time_ns: 1, event }, Time(1));
        carry_out(node, false);
    };
    [OTHER, ME].into_iter().for_each(|id| hear(&mut node, ClusterEvent::Join(member(id))));
    let format = FormatOptions {
        ctime: 1,
        policy: CopyPolicy::Replicated { copies: 2 },
        block_size_shift: 20,
        flags: 0,
        pg_count: 8,
    };
    let create =
        Action::CreateVdi { name: b"disk".to_vec(), size: 8 << 20, policy: None, block_size_shift: None };
    let vid = proto::hash::vid_of_name(b"disk");
    let open = Action::OpenSession { vid, last: Generation(0) };
    for action in [Action::Format(format), create, open] {
        let incarnation = node.view().members()[&OTHER].incarnation.expect("it has joined");
        let proposal = Proposal { id: 1, action };
        hear(&mut node, ClusterEvent::Message { from: OTHER, incarnation, proposal });
    }
    assert_eq!(node.view().session(vid).owner.expect("it was opened").0, OTHER);
    (node, vid)
}

/// Until nothing is to be done. The store takes everything, and has one object or none; who is asked does not answer.
fn carry_out(node: &mut Node, has_object: bool) -> usize {
    let mut replies = 0;
    while let Some(effect) = node.poll_effect() {
        match effect {
            Effect::Store { op: ObjectOp::Change { oid, tag: None, .. }, .. } => {
                panic!("{oid} is changed, and no owner has asked for that")
            }
            Effect::Store { ticket, op } => node.handle_store(ticket, store_reply(&op, has_object), Time(1)),
            Effect::Send { message, .. } => {
                replies += usize::from(matches!(message, PeerMessage::Reply { .. }));
                let (frame, _) = message.encode();
                FrameHead::decode(frame.first_chunk().expect("a head"))
                    .expect("what is sent can be received");
            }
            Effect::Propose(_) | Effect::Answer { .. } | Effect::RememberFormat { .. } => {}
            Effect::Stop => panic!("no message ends a sheep"),
        }
    }
    replies
}

fn store_reply(op: &ObjectOp, has_object: bool) -> ObjectReply {
    match op {
        ObjectOp::Read { .. }
        | ObjectOp::Verify { .. }
        | ObjectOp::Checksums { .. }
        | ObjectOp::Recorded { .. }
        | ObjectOp::Compare { .. } => ObjectReply::Absent,
        ObjectOp::List { first, last, .. } => {
            let oid = Oid::data(proto::hash::vid_of_name(b"disk"), 3);
            let is_asked = has_object && (*first..=*last).contains(&oid);
            let found = is_asked.then_some(ObjectInfo { oid, allocated_bytes: 4096 });
            ObjectReply::Objects(found.into_iter().collect())
        }
        _ => ObjectReply::Done,
    }
}

/// Messages, each after its length. They are made to count: of this life, and of no later view.
pub fn run(mut bytes: &[u8]) {
    let (mut node, _) = in_cluster();
    let version = node.view().version();
    let life = node.view().members()[&ME].incarnation.expect("it has joined");
    for _ in 0..MESSAGES_MAX {
        let Some((len, rest)) = bytes.split_first_chunk() else { return };
        let (control, rest) = rest.split_at(usize::from(u16::from_le_bytes(*len)).min(rest.len()));
        bytes = rest;
        let head =
            FrameHead { control_bytes: control.len() as u32, payload_bytes: 0, control_crc: crc32c(control) };
        let Ok(mut message) = PeerMessage::decode(&head, control, Bytes::new()) else { continue };
        if let PeerMessage::Request { version: of, life: to, .. } = &mut message {
            (*of, *to) = ((*of).min(version), life);
        }
        let is_request = matches!(message, PeerMessage::Request { .. });
        node.handle_peer(OTHER, message, Time(1));
        let replies = carry_out(&mut node, true);
        assert!(replies <= 1 || !is_request, "{replies} answers to one request");
    }
    assert!(node.is_member());
}

pub fn seeds() -> Vec<Vec<u8>> {
    let (node, vid) = in_cluster();
    let generation = node.view().session(vid).generation;
    let oid = Oid::data(vid, 3);
    let pg = node.view().pg_of(oid).expect("it has a VDI");
    let since = node.view().pg(pg).expect("it has a pool").since;
    let origin = Origin { incarnation: Incarnation(1), request: RequestId(5) };
    let tag = |seq, settled| Tag {
        vid,
        stamp: Stamp { generation, seq: Seq(seq) },
        settled: Seq(settled),
        origin,
        last_room: false,
        tell_taken: false,
    };
    let blocks = BlockRange::new(0, 4);
    let change = |seq, settled, change| PeerRequest::Change {
        pg,
        since,
        oid,
        change,
        tag: tag(seq, settled),
        data: Bytes::new(),
    };
    let pinned = |last, pinned: &[u64]| PeerRequest::SettleAround {
        vid,
        generation,
        last: Seq(last),
        pinned: pinned.iter().copied().map(Seq).collect(),
    };
    let empty =
        || Change::Write { blocks: BlockRange::new(0, 0), checksums: Vec::new(), base: WriteBase::Empty };
    let owner = [
        PeerRequest::Seal { vid, generation, after: None },
        change(FIRST_SEQ, 0, Change::Discard { blocks }),
        change(FIRST_SEQ + 1, 0, Change::Discard { blocks }),
        change(FIRST_SEQ + 2, 1, empty()),
        pinned(FIRST_SEQ + 2, &[FIRST_SEQ]),
        change(FIRST_SEQ + 1, 1, Change::Discard { blocks }),
        PeerRequest::Settle { vid, tag: tag(FIRST_SEQ + 3, FIRST_SEQ + 2) },
        change(FIRST_SEQ + 4, FIRST_SEQ, Change::Delete),
    ];
    let copies = [
        PeerRequest::Read { pg, since, oid, blocks },
        PeerRequest::Verify { pg, since, oid, blocks },
        PeerRequest::Compare { pg, since, oid, with: None },
        PeerRequest::Mend { pg, since, oid, blocks, checksums: vec![1; 4], data: Bytes::new() },
        PeerRequest::Fetch { pg, since, oid, blocks: None },
        PeerRequest::List { pgs: vec![(pg, since)], after: None },
        PeerRequest::Changed { pgs: vec![(pg, since)], after: Some(oid) },
        PeerRequest::Ping,
    ];
    let others = [
        PeerRequest::Purge { vid, indexes: (0, 7), keep: vec![(3, 2)], table: true },
        PeerRequest::Yield { vid },
        PeerRequest::Forward {
            origin,
            generation,
            op: ClientOp::Object { oid, op: proto::client::NativeOp::Check { repair: true, part: None } },
            data: Bytes::new(),
        },
        PeerRequest::Recall { incarnation: Incarnation(2), requests: vec![1, 2] },
        PeerRequest::Confirm { incarnation: Incarnation(1), requests: vec![5] },
    ];
    let request =
        |(id, body)| PeerMessage::Request { id, version: ViewVersion(1), life: Incarnation(2), body };
    let requests = |bodies: &[PeerRequest]| (1..).zip(bodies.iter().cloned()).map(request).collect();
    let replies = [
        PeerReply::Done,
        PeerReply::Absent,
        PeerReply::Unsettled { changes: Vec::new(), complete: false },
        PeerReply::Fenced,
        PeerReply::OldView { version: ViewVersion(3) },
    ];
    let replies = (1..).zip(replies).map(|(id, body)| PeerMessage::Reply { id, body }).collect();
    [requests(&owner), requests(&copies), requests(&others), replies]
        .iter()
        .map(|all: &Vec<_>| framed(all))
        .collect()
}

fn framed(messages: &[PeerMessage]) -> Vec<u8> {
    let one = |message: &PeerMessage| {
        let (frame, _) = message.encode();
        let control = &frame[FRAME_HEAD_BYTES..];
        [&(control.len() as u16).to_le_bytes()[..], control].concat()
    };
    messages.iter().flat_map(one).collect()
}

/// Whatever is a snapshot is written as one that says the same.
pub fn view(bytes: &[u8]) {
    let mut node = started();
    let version = match node.handle_snapshot(ViewVersion(u64::MAX), bytes) {
        Ok(()) => ViewVersion(u64::MAX),
        Err(SnapshotError::Version { got, .. }) => got,
        Err(SnapshotError::Malformed(_)) => return,
    };
    node.handle_snapshot(version, bytes).expect("that version");
    let (same, written) = node.snapshot();
    let mut other = started();
    other.handle_snapshot(same, &written).expect("our own snapshot");
    assert_eq!((same, other.snapshot()), (version, (version, written)));
}

pub fn view_seeds() -> Vec<Vec<u8>> {
    vec![in_cluster().0.snapshot().1.to_vec()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_owner_says_is_taken_in() {
        let (mut node, _) = in_cluster();
        let life = node.view().members()[&ME].incarnation.unwrap();
        let mut bytes = &seeds()[0][..];
        let mut replies = 0;
        while let Some((len, rest)) = bytes.split_first_chunk() {
            let (control, rest) = rest.split_at(u16::from_le_bytes(*len).into());
            bytes = rest;
            let head = FrameHead {
                control_bytes: control.len() as u32,
                payload_bytes: 0,
                control_crc: crc32c(control),
            };
            let message = PeerMessage::decode(&head, control, Bytes::new()).unwrap();
            let PeerMessage::Request { id, version, body, .. } = message else { panic!("{message:?}") };
            node.handle_peer(OTHER, PeerMessage::Request { id, version, life, body }, Time(1));
            replies += carry_out(&mut node, true);
        }
        assert_eq!(replies, 6, "the seal and five changes");
    }
}
