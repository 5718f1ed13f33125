//! Links under garbage, silence and loss.

use std::net::Ipv4Addr;

use proto::object::{BlockRange, Stamp, Tag, WriteBase};
use proto::{Oid, PgId, PoolId, Since, Vid, ViewVersion};
use tokio::net::TcpListener;

use super::*;

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        timeout(Duration::from_secs(20), test).await.expect("the test hangs");
    });
}

fn node(port: u16) -> NodeId {
    NodeId::new(Ipv4Addr::LOCALHOST.into(), port)
}

fn write(id: u64, data: Bytes) -> PeerMessage {
    let checksums = block_checksums(&data);
    let blocks = BlockRange::new(0, checksums.len() as u32);
    PeerMessage::Request {
        id,
        version: ViewVersion(1),
        life: Default::default(),
        body: PeerRequest::Change {
            pg: PgId { pool: PoolId(0), index: 0 },
            since: Since(1),
            oid: Oid::data(Vid(1), 0),
            change: Change::Write { blocks, checksums, base: WriteBase::Keep },
            tag: Tag {
                vid: Vid(1),
                stamp: Stamp::default(),
                settled: Default::default(),
                origin: Default::default(),
                last_room: false,
                tell_taken: false,
            },
            data,
        },
    }
}

fn hello(from: NodeId, to: NodeId) -> Vec<u8> {
    let control = postcard::to_stdvec(&Hello { from, to }).unwrap();
    let head =
        FrameHead { control_bytes: control.len() as u32, payload_bytes: 0, control_crc: crc32c(&control) };
    [&HELLO_MAGIC[..], &head.encode(), &control].concat()
}

fn frame(message: &PeerMessage) -> Vec<u8> {
    let (control, payload) = message.encode();
    [control, payload].concat()
}

async fn first_message(bytes: &[u8]) -> Result<Option<PeerMessage>, ReceiveError> {
    Receiver::greet(bytes, node(1)).await?.receive().await
}

#[test]
fn messages_arrive_whole_in_order_and_aligned() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (me, peer) = (node(9), node(listener.local_addr().unwrap().port()));
        let (links, _events) = Links::new(me);
        let messages: Vec<PeerMessage> =
            (0..200).map(|n| write(n, vec![n as u8; 4096 * (n as usize % 9)].into())).collect();
        messages.iter().for_each(|message| links.send(peer, message));
        let (stream, _) = listener.accept().await.unwrap();
        let mut receiver = Receiver::accept(stream, peer).await.unwrap();
        assert_eq!(receiver.from, me);
        for expect in &messages {
            let got = receiver.receive().await.unwrap().unwrap();
            assert_eq!(&got, expect);
            let (_, payload) = got.encode();
            assert!(payload.is_empty() || (payload.as_ptr() as usize).is_multiple_of(BLOCK_BYTES));
        }
    });
}

#[test]
fn a_lost_link_is_reported_and_the_next_message_dials_again() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = node(listener.local_addr().unwrap().port());
        let (links, mut events) = Links::new(node(9));
        links.send(peer, &write(1, Bytes::new()));
        drop(listener.accept().await.unwrap());
        assert_eq!(events.recv().await, Some(Event::Reset(peer)));
        links.send(peer, &write(2, Bytes::new()));
        let (stream, _) = listener.accept().await.unwrap();
        let mut receiver = Receiver::accept(stream, peer).await.unwrap();
        assert_eq!(receiver.receive().await.unwrap(), Some(write(2, Bytes::new())));
    });
}

#[test]
fn nobody_there_is_a_reset_too() {
    run(async {
        let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (links, mut events) = Links::new(node(9));
        for _ in 0..3 {
            links.send(node(unused), &write(1, Bytes::new()));
            assert_eq!(events.recv().await, Some(Event::Reset(node(unused))));
        }
    });
}

#[test]
fn a_peer_that_does_not_read_loses_its_link_and_not_our_memory() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = node(listener.local_addr().unwrap().port());
        let (links, mut events) = Links::new(node(9));
        let data = Bytes::from(vec![1; 4 << 20]);
        links.send(peer, &write(0, data.clone()));
        let _silent = listener.accept().await.unwrap();
        for n in 1..40 {
            links.send(peer, &write(n, data.clone()));
            tokio::task::yield_now().await;
        }
        assert_eq!(events.recv().await, Some(Event::Reset(peer)));
    });
}

#[test]
fn garbage_ends_the_link_and_nothing_else() {
    run(async {
        let good = [hello(node(2), node(1)), frame(&write(5, vec![6; 8192].into()))].concat();
        assert_eq!(first_message(&good).await.unwrap(), Some(write(5, vec![6; 8192].into())));
        for cut in 0..good.len() {
            let result = first_message(&good[..cut]).await;
            let between_messages = cut == hello(node(2), node(1)).len();
            assert_eq!(matches!(result, Ok(None)), between_messages, "cut at {cut}: {result:?}");
            assert!(between_messages || result.is_err());
        }
        for at in 0..good.len() {
            let mut damaged = good.clone();
            damaged[at] ^= 0x40;
            assert!(first_message(&damaged).await.is_err(), "byte {at}");
        }
        let elsewhere = hello(node(2), node(3));
        assert!(matches!(first_message(&elsewhere).await, Err(ReceiveError::NotMe(id)) if id == node(3)));
    });
}

#[test]
fn what_was_fetched_is_compared_with_its_checksums() {
    let fetched = |found, len| {
        let data = Bytes::from(vec![0; len]);
        verify(&PeerMessage::Reply {
            id: 1,
            body: PeerReply::Fetched { found, marks: Vec::new(), pressure: Default::default(), data },
        })
    };
    assert!(fetched(Fetched::Blocks(vec![proto::checksum::ZERO_BLOCK_CRC]), 4096).is_ok());
    assert!(matches!(fetched(Fetched::Blocks(vec![1]), 4096), Err(ReceiveError::Payload { block: 0 })));
    assert!(fetched(Fetched::Absent, 0).is_ok());
    assert!(matches!(fetched(Fetched::Length(1), 4096), Err(ReceiveError::PayloadSize { .. })));
}

#[test]
fn payloads_of_the_wrong_length_are_refused() {
    let data = |checksums, len| {
        let data = Bytes::from(vec![0; len]);
        verify(&PeerMessage::Reply { id: 1, body: PeerReply::Data { checksums, data } })
    };
    assert!(data(vec![proto::checksum::ZERO_BLOCK_CRC], 4096).is_ok());
    assert!(matches!(data(vec![1], 4096), Err(ReceiveError::Payload { block: 0 })));
    assert!(matches!(data(vec![], 4096), Err(ReceiveError::PayloadSize { .. })));
    assert!(matches!(
        data(vec![proto::checksum::ZERO_BLOCK_CRC], 4095),
        Err(ReceiveError::PayloadSize { .. })
    ));
}
