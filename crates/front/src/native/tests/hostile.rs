//! Arbitrary, mangled and truncated bytes: every whole request gets one answer, nothing panics, and it ends.

use proptest::prelude::*;
use proto::sd::{HEADER_BYTES, Opcode, ReplyHeader, RequestHeader};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fake::Fake;
use super::{Sheep, run};

/// Longest payload that a test really sends.
const PAYLOAD_BYTES: u32 = 2000;

/// A header whose fields are likely to get past the first checks, and its payload.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let opcode = prop_oneof![
        3 => prop::sample::select(Opcode::ALL).prop_map(|opcode| opcode as u8),
        1 => any::<u8>(),
    ];
    let length = prop_oneof![
        Just(0u32),
        Just(4),
        Just(256),
        Just(512),
        Just(1 << 21),
        Just(u32::MAX),
        0..PAYLOAD_BYTES,
        any::<u32>(),
    ];
    let vid = prop_oneof![Just(0xa03907u32), Just(0), 0u32..=0xff_ffff];
    let kind = prop_oneof![Just(0x00u8), Just(0x40), Just(0x80), any::<u8>()];
    let rest = proptest::array::uniform16(prop_oneof![3 => Just(0u8), 1 => any::<u8>()]);
    (opcode, any::<u16>(), length, vid, kind, rest, any::<[u8; 4]>(), prop::bool::weighted(0.9)).prop_map(
        |(opcode, flags, length, vid, kind, rest, index, right_version)| {
            let mut header = RequestHeader { opcode, flags, data_length: length, ..Default::default() };
            header.proto_ver = if (opcode >= 0x80) == right_version { 0x0a } else { 0 };
            header.variant[..4].copy_from_slice(&index);
            header.variant[4..8].copy_from_slice(&vid.to_le_bytes());
            header.variant[7] = kind;
            header.variant[16..].copy_from_slice(&rest);
            if header.payload_bytes() > PAYLOAD_BYTES {
                header.flags &= !1;
            }
            let mut bytes = header.encode().to_vec();
            bytes.extend((0..header.payload_bytes()).map(|i| i as u8));
            bytes
        },
    )
}

/// Sends the bytes, ends the sending side, and gives all that comes back.
fn talk(bytes: Vec<u8>) -> Vec<u8> {
    let (sender, receiver) = std::sync::mpsc::channel();
    run(async move {
        let fake = Fake::formatted(1, 0x08);
        let sheep = Sheep::new(fake);
        sheep.once(&proto::sd::Request::new_vdi(b"alice", 1 << 30, None, None).unwrap()).await;
        let client = sheep.connect();
        let (mut read, mut write) = tokio::io::split(client.stream);
        let sending = async {
            write.write_all(&bytes).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let receiving = async {
            let mut replies = Vec::new();
            read.read_to_end(&mut replies).await.unwrap();
            replies
        };
        let ((), replies) = tokio::join!(sending, receiving);
        let _ = client.serving.await.expect("the server does not panic");
        assert_eq!(sheep.desk.requests_in_flight(), 0);
        sender.send(replies).unwrap();
    });
    receiver.recv().unwrap()
}

/// Cuts replies apart; `None` if bytes are left over.
fn split_replies(mut bytes: &[u8]) -> Option<Vec<ReplyHeader>> {
    let mut replies = Vec::new();
    while !bytes.is_empty() {
        let header = ReplyHeader::decode(bytes.get(..HEADER_BYTES)?.try_into().unwrap());
        bytes = bytes.get(HEADER_BYTES + header.data_length as usize..)?;
        replies.push(header);
    }
    Some(replies)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn each_whole_request_is_answered_once(
        requests in prop::collection::vec(request(), 1..12),
        missing in 0usize..100,
    ) {
        let mut requests = requests;
        for (id, request) in requests.iter_mut().enumerate() {
            request[8..12].copy_from_slice(&(id as u32).to_le_bytes());
        }
        let last = requests.last().unwrap().len();
        let missing = missing.min(last);
        let whole = requests.len() - usize::from(missing > 0);
        let mut bytes = requests.concat();
        bytes.truncate(bytes.len() - missing);
        let replies = split_replies(&talk(bytes)).expect("replies are whole");
        let mut ids: Vec<u32> = replies.iter().map(|reply| reply.id).collect();
        ids.sort();
        prop_assert_eq!(ids, (0..whole as u32).collect::<Vec<_>>());
        for reply in replies {
            prop_assert_eq!(reply.opcode, requests[reply.id as usize][1]);
        }
    }

    #[test]
    fn any_bytes_end_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..1000)) {
        prop_assert!(split_replies(&talk(bytes)).is_some());
    }
}
