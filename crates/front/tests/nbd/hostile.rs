//! Arbitrary, damaged and truncated bytes: no panic, no memory beyond the limits, and always an end.

use front::nbd::context::{Context, Earlier, Subject};
use front::nbd::export::Export;
use front::nbd::handshake::{Agreement, Handshake, Step};
use front::nbd::receiver::{Next, Receiver, Space};
use front::nbd::wire::{Framing, RequestHeader};
use proptest::prelude::*;
use proto::Vid;
use proto::client::VolumeOp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::{info_query, meta_query, run};
use crate::memory::Memory;

const SIZE: u64 = 1 << 20;
/// Bytes that one option may earn: a list of contexts is the longest.
const OPTION_REPLIES_MAX: usize = 8 << 10;

fn export() -> Export {
    Export { name: b"alice".to_vec(), vid: Vid(1), size: SIZE, read_only: false }
}

fn contexts() -> Vec<Context> {
    let subjects = [Subject::Allocation, Subject::ChangesSince(Vid(2))];
    (1..).zip(subjects).map(|(id, subject)| Context { id, subject }).collect()
}

fn earlier() -> Vec<Earlier> {
    (2..500).map(|vid| Earlier { vid: Vid(vid), tag: None, id: vid.to_string().into() }).collect()
}

fn framings() -> impl Strategy<Value = Framing> {
    prop_oneof![Just(Framing::Simple), Just(Framing::Structured), Just(Framing::Extended)]
}

/// An option that may be in order, or not quite.
fn options() -> impl Strategy<Value = Vec<u8>> {
    let data = prop_oneof![
        Just(Vec::new()),
        Just(info_query("alice", &[1, 2, 3])),
        Just(info_query("nobody", &[])),
        Just(meta_query("alice", &["base:allocation"])),
        Just(meta_query("alice", &[])),
        Just(meta_query("alice", &["base:allocation", "qemu:dirty-bitmap:2", "qemu:dirty-bitmap:3"])),
        Just(meta_query("alice", &["qemu:dirty-bitmap:"; 20])),
        prop::collection::vec(any::<u8>(), 0..64),
        (0usize..30_000).prop_map(|len| vec![0; len]),
    ];
    (prop_oneof![0u32..13, any::<u32>()], data, prop_oneof![9 => Just(0u32), 1 => any::<u32>()]).prop_map(
        |(option, data, off)| {
            let len = (data.len() as u32).wrapping_add(off).to_be_bytes();
            [b"IHAVEOPT", &option.to_be_bytes()[..], &len, &data].concat()
        },
    )
}

/// A request that may be in order, or not quite, with a payload as long as it says or not.
fn requests(framing: Framing) -> impl Strategy<Value = Vec<u8>> {
    let length =
        prop_oneof![4 => 0u64..10_000, 1 => 0..SIZE * 2, 1 => any::<u64>(), 1 => Just(12), 1 => Just(16)];
    let offset = prop_oneof![3 => 0..SIZE, 1 => any::<u64>()];
    let flags = prop_oneof![2 => Just(0u16), 2 => Just(1 << 5), 1 => any::<u16>()];
    (flags, prop_oneof![9 => 0u16..9, 1 => any::<u16>()], any::<u64>(), offset, length).prop_map(
        move |(flags, command, cookie, offset, length)| {
            let header = RequestHeader { flags, command, cookie, offset, length };
            let payload = if command == 1 || flags & 32 != 0 { length.min(20_000) as usize } else { 0 };
            [header.encode(framing), vec![command as u8; payload]].concat()
        },
    )
}

/// Plays the server's part of the handshake; what agreement it ended in, if any.
fn shake_hands(bytes: &[u8], piece: usize) -> Option<Agreement> {
    let mut handshake = Handshake::default();
    let mut input = bytes.chunks(piece);
    let mut output = 0;
    loop {
        let found = |name: Vec<u8>| match &name[..] {
            b"alice" => Ok(export()),
            _ => Err(proto::client::ClientError::NoVdi.into()),
        };
        match handshake.step() {
            Step::Receive => handshake.receive(input.next()?),
            Step::Find(name) => handshake.found(found(name)),
            Step::FindWithEarlier(name) => {
                handshake.found_with_earlier(found(name).map(|export| (export, earlier())))
            }
            Step::Open(name) => handshake.opened(found(name)),
            Step::List => handshake.listed(Ok(vec![export()])),
            Step::Transmit(agreement) => return Some(agreement),
            Step::Close(_) => return None,
        }
        output += handshake.take_output().len();
        assert!(output < 20 * OPTION_REPLIES_MAX, "20 options cannot earn {output} bytes");
    }
}

/// Feeds a receiver in pieces; the requests it offered, and whether it ended by itself.
fn receive(framing: Framing, bytes: &[u8], piece: usize) -> (Vec<String>, bool) {
    let agreement = Agreement { export: export(), framing, contexts: contexts() };
    let (rest, mut bytes) = bytes.split_at(bytes.len().min(piece));
    let mut receiver = Receiver::new(&agreement, rest);
    let mut offered = Vec::new();
    loop {
        let next = receiver.next(u64::MAX);
        assert!(receiver.held_bytes() <= 32 << 20);
        match &next {
            Next::Receive if bytes.is_empty() => return (offered, false),
            Next::Receive => {
                let count = match receiver.space() {
                    Space::Buffer(space) => {
                        let count = piece.min(bytes.len()).min(space.len());
                        assert!(count > 0, "no space although more is wanted");
                        space[..count].copy_from_slice(&bytes[..count]);
                        receiver.received(count);
                        count
                    }
                    Space::Payload(payload) => {
                        let count = piece.min(bytes.len()).min(payload.remaining());
                        payload.extend_from_slice(&bytes[..count]);
                        count
                    }
                };
                bytes = &bytes[count..];
                continue;
            }
            Next::NoRoom => panic!("there is all the room"),
            Next::Request { op, asked, .. } => {
                if let VolumeOp::Write { data, offset } = op {
                    assert!(offset + data.len() as u64 <= SIZE);
                    assert_eq!(data.as_ptr() as u64 % 4096, offset % 4096);
                }
                assert!(*op == VolumeOp::Flush || asked.offset + asked.length <= SIZE);
            }
            Next::BlockStatus { asked, contexts: asked_in, cost } => {
                assert!(asked.length > 0 && asked.offset + asked.length <= SIZE);
                assert!(!asked_in.is_empty() && asked_in.iter().all(|context| contexts().contains(context)));
                assert_eq!(*cost, asked_in.len() as u64);
            }
            Next::Disconnect | Next::Broken(_) => return (offered, true),
            Next::Nothing(_) | Next::Refused(..) => {}
        }
        offered.push(format!("{next:?}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn handshake_survives_anything(
        flags in prop_oneof![9 => 0u32..4, 1 => any::<u32>()],
        options in prop::collection::vec(options(), 0..20),
        junk in prop::collection::vec(any::<u8>(), 0..40),
        keep in 0.0..=1.0f64,
        piece in prop_oneof![Just(1usize), Just(7), Just(4096)],
    ) {
        let mut bytes = [&flags.to_be_bytes()[..], &options.concat(), &junk].concat();
        bytes.truncate((bytes.len() as f64 * keep) as usize);
        // How the bytes arrive makes no difference.
        prop_assert_eq!(shake_hands(&bytes, piece), shake_hands(&bytes, 4000));
    }

    #[test]
    fn requests_mean_the_same_however_they_arrive(
        (framing, requests) in framings().prop_flat_map(|f| (Just(f), prop::collection::vec(requests(f), 0..12))),
        junk in prop::collection::vec(any::<u8>(), 0..40),
        keep in 0.0..=1.0f64,
        piece in prop_oneof![Just(1usize), Just(29), Just(5000), Just(60_000)],
    ) {
        let mut bytes = [requests.concat(), junk].concat();
        bytes.truncate((bytes.len() as f64 * keep) as usize);
        prop_assert_eq!(receive(framing, &bytes, piece), receive(framing, &bytes, 64 << 10));
    }

    #[test]
    fn server_ends_whatever_comes(
        framing in framings(),
        requests in prop::collection::vec(requests(Framing::Simple), 0..6),
        junk in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        run(async {
            let memory = Memory::default().with_vdi("alice", SIZE);
            let client = crate::client::Client::open(&memory, "alice", framing).await;
            let (mut output, mut input) = tokio::io::split(client.io);
            let reading = tokio::task::spawn_local(async move {
                let mut replies = Vec::new();
                output.read_to_end(&mut replies).await.unwrap();
            });
            // The server may hang up in the middle.
            let _ = input.write_all(&[requests.concat(), junk].concat()).await;
            let _ = input.shutdown().await;
            client.server.await.unwrap();
            reading.await.unwrap();
            assert_eq!(memory.open.get(), 0);
        });
    }
}
