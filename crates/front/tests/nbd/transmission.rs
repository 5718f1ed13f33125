//! What each request is answered, byte by byte; and what becomes of requests when clients misbehave.

use std::rc::Rc;
use std::time::Duration;

use front::nbd::wire::Framing::{self, Extended, Simple, Structured};
use front::nbd::{Ending, Limits};
use proto::client::{ClientError, ClientOp, Point, VolumeOp};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

use crate::client::{Client, run};
use crate::memory::Memory;

const MIB: u64 = 1 << 20;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;

fn memory() -> Memory {
    Memory::default().with_vdi("alice", MIB).with_snapshot("alice", "t", 1, MIB).with_vdi("big", 64 * MIB)
}

fn simple(error: u32, cookie: u64) -> Vec<u8> {
    [&0x67446698u32.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes()].concat()
}

fn chunk(framing: Framing, done: bool, kind: u16, cookie: u64, offset: u64, body: &[u8]) -> Vec<u8> {
    let magic: u32 = if framing == Extended { 0x6e8a278c } else { 0x668e33ef };
    let mut out =
        [&magic.to_be_bytes()[..], &[0, u8::from(done)], &kind.to_be_bytes(), &cookie.to_be_bytes()].concat();
    if framing == Extended {
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&(body.len() as u64).to_be_bytes());
    } else {
        out.extend_from_slice(&(body.len() as u32).to_be_bytes());
    }
    out.extend_from_slice(body);
    out
}

fn error_body(errno: u32, message: &str) -> Vec<u8> {
    [&errno.to_be_bytes()[..], &(message.len() as u16).to_be_bytes(), message.as_bytes()].concat()
}

fn data_body(offset: u64, data: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes(), data].concat()
}

fn hole_body(offset: u64, len: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat()
}

#[test]
fn written_bytes_are_read_back_in_every_framing() {
    run(async {
        for framing in [Simple, Structured, Extended] {
            let memory = memory();
            let mut client = Client::open(&memory, "alice", framing).await;
            let payload_len = if framing == Extended { 1 << 5 } else { 0 };
            client.request(framing, (payload_len | 1, WRITE, 1, 4094, 5), b"hello").await;
            let done = chunk(Extended, true, 0, 1, 4094, b"");
            client
                .expect(if framing == Extended {
                    &done
                } else {
                    b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01"
                })
                .await;
            assert_eq!(memory.read(1, 4093, 7), b"\0hello\0");
            client.request(framing, (0, READ, 2, 4093, 7), b"").await;
            let data = data_body(4093, b"\0hello\0");
            match framing {
                Simple => client.expect(&[&simple(0, 2)[..], b"\0hello\0"].concat()).await,
                _ => client.expect(&chunk(framing, true, 1, 2, 4093, &data)).await,
            }
        }
    });
}

#[test]
fn zeros_travel_as_holes() {
    run(async {
        let memory = memory();
        memory.write(1, 200_000, b"x");
        memory.write(1, 210_000, b"y");
        for framing in [Structured, Extended] {
            let mut client = Client::open(&memory, "alice", framing).await;
            client.request(framing, (0, READ, 1, 0, 500_000), b"").await;
            // Whole blocks: 48 * 4096 ..= 52 * 4096 hold data, with a short run of zeros between.
            let (start, end) = (196_608, 212_992);
            let data = memory.read(1, start, (end - start) as usize);
            client.expect(&chunk(framing, false, 2, 1, 0, &hole_body(0, start as u32))).await;
            client.expect(&chunk(framing, false, 1, 1, 0, &data_body(start, &data))).await;
            client.expect(&chunk(framing, true, 2, 1, 0, &hole_body(end, 500_000 - end as u32))).await;
            // In one piece if asked so; a small read of zeros is a hole as well.
            client.request(framing, (1 << 2, READ, 2, 100_000, 200_000), b"").await;
            let data = memory.read(1, 100_000, 200_000);
            client.expect(&chunk(framing, true, 1, 2, 100_000, &data_body(100_000, &data))).await;
            client.request(framing, (0, READ, 3, 5, 6), b"").await;
            client.expect(&chunk(framing, true, 2, 3, 5, &hole_body(5, 6))).await;
        }
    });
}

#[test]
fn in_write_back_mode_a_write_is_for_the_next_flush_unless_it_says_fua() {
    run(async {
        for framing in [Simple, Extended] {
            for write_back in [false, true] {
                let memory = memory().logged();
                memory.write_back.set(write_back);
                let mut client = Client::open(&memory, "alice", framing).await;
                memory.log.borrow_mut().as_mut().unwrap().clear();
                let payload_len = if framing == Extended { 1 << 5 } else { 0 };
                for (cookie, flags) in [(1, 0), (2, 1)] {
                    client.request(framing, (payload_len | flags, WRITE, cookie, 0, 5), b"hello").await;
                    let done = if framing == Extended {
                        chunk(Extended, true, 0, cookie, 0, b"")
                    } else {
                        simple(0, cookie)
                    };
                    client.expect(&done).await;
                }
                let data = || bytes::Bytes::from_static(b"hello");
                let durable = || VolumeOp::Write { offset: 0, data: data() };
                let first =
                    if write_back { VolumeOp::WriteBack { offset: 0, data: data() } } else { durable() };
                let volume = |op| ClientOp::Volume { vid: proto::Vid(1), at: Point::Head, op };
                assert_eq!(memory.log.borrow_mut().take().unwrap(), [volume(first), volume(durable())]);
            }
        }
    });
}

#[test]
fn each_command_becomes_the_order_it_names() {
    run(async {
        let memory = memory().logged();
        let mut client = Client::open(&memory, "alice", Simple).await;
        memory.log.borrow_mut().as_mut().unwrap().clear();
        let requests = [
            (0, FLUSH, 1, 0, 0),
            (1, TRIM, 2, 10, 5000),
            (0, ZEROES, 3, 0, 4096),
            (1 << 1 | 1 << 4 | 1, ZEROES, 4, 4096, 4096),
            (0, CACHE, 5, 0, MIB),
            (0, READ, 6, MIB, 0),
            (0, WRITE, 7, 0, 0),
            (0, TRIM, 8, 0, 0),
        ];
        for (cookie, request) in (1..).zip(requests) {
            client.request(Simple, request, b"").await;
            client.expect(&simple(0, cookie)).await;
        }
        let ops: Vec<_> = memory.log.borrow_mut().take().unwrap();
        let volume = |op| ClientOp::Volume { vid: proto::Vid(1), at: Point::Head, op };
        let expect = [
            volume(VolumeOp::Flush),
            volume(VolumeOp::Discard { offset: 10, len: 5000 }),
            volume(VolumeOp::WriteZeroes { offset: 0, len: 4096, keep_allocated: false }),
            volume(VolumeOp::WriteZeroes { offset: 4096, len: 4096, keep_allocated: true }),
        ];
        assert_eq!(ops, expect);
    });
}

#[test]
fn block_status_tells_data_from_holes() {
    run(async {
        let memory = memory();
        memory.write(1, 4096, &[1; 8192]);
        let mut client = Client::open(&memory, "alice", Structured).await;
        client.request(Structured, (0, STATUS, 1, 100, 20_000), b"").await;
        let body = b"\0\0\0\x01\0\0\x0f\x9c\0\0\0\x03\0\0\x20\0\0\0\0\0\0\0\x1e\x84\0\0\0\x03";
        client.expect(&chunk(Structured, true, 5, 1, 0, body)).await;
        client.request(Structured, (1 << 3, STATUS, 2, 4097, 20_000), b"").await;
        client.expect(&chunk(Structured, true, 5, 2, 0, b"\0\0\0\x01\0\0\x1f\xff\0\0\0\0")).await;

        let mut client = Client::open(&memory, "alice", Extended).await;
        let body =
            b"\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\x03";
        client.request(Extended, (0, STATUS, 3, 4096, 12_288), b"").await;
        client.expect(&chunk(Extended, true, 6, 3, 4096, body)).await;
        // The same with the length in a filter.
        let filter = b"\0\0\0\0\0\0\x30\0\0\0\0\x01";
        client.request(Extended, (1 << 5, STATUS, 4, 4096, 12), filter).await;
        client.expect(&chunk(Extended, true, 6, 4, 4096, body)).await;
        for (len, filter, why) in [
            (12, &b"\0\0\0\0\0\0\x30\0\0\0\0\x02"[..], "unknown metadata context in the filter"),
            (12, b"\0\0\0\0\0\0\0\0\0\0\0\x01", "block status of nothing"),
            (12, b"\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\x01", "beyond the end of the export"),
            (8, b"\0\0\0\0\0\0\x30\0", "not the length of a filter of metadata contexts"),
            (
                16,
                b"\0\0\0\0\0\0\x30\0\0\0\0\x01\0\0\0\x01",
                "not the length of a filter of metadata contexts",
            ),
        ] {
            client.request(Extended, (1 << 5, STATUS, 5, 4096, len), filter).await;
            let body = error_body(22, &format!("alice: {why}"));
            client.expect(&chunk(Extended, true, 0x8001, 5, 4096, &body)).await;
        }
        client.request(Extended, (0, STATUS, 6, 0, 0), b"").await;
        client
            .expect(&chunk(Extended, true, 0x8001, 6, 0, &error_body(22, "alice: block status of nothing")))
            .await;
    });
}

const CONTEXTS: [&str; 3] = ["base:allocation", "qemu:dirty-bitmap:first", "qemu:dirty-bitmap:2"];

/// `alice` with two snapshots: block 1 was there before the first, 3 came before the second, 5 after it, and 1 anew.
fn memory_with_snapshots() -> Memory {
    let memory = Memory::default().with_vdi("alice", MIB);
    let memory = memory.with_snapshot("alice", "first", 1, MIB).with_snapshot("alice", "second", 2, MIB);
    (1..=3).for_each(|vid| memory.write(vid, 4096, &[1; 4096]));
    [1, 3].iter().for_each(|vid| memory.write(*vid, 3 * 4096, &[3; 4096]));
    memory.write(1, 5 * 4096, &[5; 4096]);
    memory.write(1, 4096, &[6; 4096]);
    memory
}

#[test]
fn block_status_tells_what_changed_in_every_context_chosen() {
    run(async {
        let memory = memory_with_snapshots();
        let mut client = Client::open_in_contexts(&memory, "alice", Structured, &CONTEXTS).await;
        client.request(Structured, (0, STATUS, 1, 100, 20_380), b"").await;
        let allocation = b"\0\0\0\x01\0\0\x0f\x9c\0\0\0\x03\0\0\x10\0\0\0\0\0\0\0\x10\0\0\0\0\x03\
            \0\0\x10\0\0\0\0\0\0\0\x10\0\0\0\0\x03";
        let since_first = b"\0\0\0\x02\0\0\x0f\x9c\0\0\0\0\0\0\x10\0\0\0\0\x01\0\0\x10\0\0\0\0\0\
            \0\0\x10\0\0\0\0\x01\0\0\x10\0\0\0\0\0";
        let since_second = b"\0\0\0\x03\0\0\x0f\x9c\0\0\0\0\0\0\x10\0\0\0\0\x01\0\0\x30\0\0\0\0\0";
        client.expect(&chunk(Structured, false, 5, 1, 0, allocation)).await;
        client.expect(&chunk(Structured, false, 5, 1, 0, since_first)).await;
        client.expect(&chunk(Structured, true, 5, 1, 0, since_second)).await;
        client.request(Structured, (1 << 3, STATUS, 2, 4096, 65_536), b"").await;
        for (done, id, state) in [(false, 1, 0), (false, 2, 1), (true, 3, 1)] {
            let body = [0, 0, 0, id, 0, 0, 0x10, 0, 0, 0, 0, state];
            client.expect(&chunk(Structured, done, 5, 2, 0, &body)).await;
        }
        // Without base:allocation there is no word of it.
        let mut client = Client::open_in_contexts(&memory, "alice@second", Structured, &CONTEXTS[1..2]).await;
        client.request(Structured, (0, STATUS, 3, 0, 4 * 4096), b"").await;
        let body = b"\0\0\0\x01\0\0\x30\0\0\0\0\0\0\0\x10\0\0\0\0\x01";
        client.expect(&chunk(Structured, true, 5, 3, 0, body)).await;
    });
}

#[test]
fn filter_picks_contexts_by_id() {
    run(async {
        let memory = memory_with_snapshots();
        let mut client = Client::open_in_contexts(&memory, "alice", Extended, &CONTEXTS).await;
        let extents = |id: u8, state: u8| {
            [&[0, 0, 0, id, 0, 0, 0, 1][..], &4096u64.to_be_bytes(), &u64::from(state).to_be_bytes()].concat()
        };
        let head = 4096u64.to_be_bytes();
        let ids = b"\0\0\0\x03\0\0\0\x01";
        client.request(Extended, (1 << 5, STATUS, 1, 5 * 4096, 16), &[&head[..], ids].concat()).await;
        client.expect(&chunk(Extended, false, 6, 1, 5 * 4096, &extents(1, 0))).await;
        client.expect(&chunk(Extended, true, 6, 1, 5 * 4096, &extents(3, 1))).await;
        for ids in [&b"\0\0\0\x03\0\0\0\x03"[..], b"\0\0\0\x01\0\0\0\x04", b"\0\0\0\0"] {
            let length = 8 + ids.len() as u64;
            client.request(Extended, (1 << 5, STATUS, 2, 4096, length), &[&head[..], ids].concat()).await;
            let body = error_body(22, "alice: unknown metadata context in the filter");
            client.expect(&chunk(Extended, true, 0x8001, 2, 4096, &body)).await;
        }
        for length in [8u64, 10, 24] {
            client.request(Extended, (1 << 5, STATUS, 3, 0, length), &vec![0; length as usize]).await;
            let body = error_body(22, "alice: not the length of a filter of metadata contexts");
            client.expect(&chunk(Extended, true, 0x8001, 3, 0, &body)).await;
        }
    });
}

#[test]
fn one_context_that_fails_fails_the_block_status() {
    run(async {
        let memory = memory_with_snapshots();
        let mut client = Client::open_in_contexts(&memory, "alice", Structured, &CONTEXTS).await;
        *memory.fail.borrow_mut() = Some(proto::client::ClientError::NoVdi);
        client.request(Structured, (0, STATUS, 1, 0, 4096), b"").await;
        client.expect(&chunk(Structured, true, 0x8001, 1, 0, &error_body(5, "alice: no VDI found"))).await;
    });
}

#[test]
fn many_extents_come_as_a_prefix() {
    run(async {
        let memory = memory();
        (0..120).for_each(|i| memory.write(1, i * 8192, b"x"));
        let mut client = Client::open(&memory, "alice", Structured).await;
        client.request(Structured, (0, STATUS, 1, 0, MIB), b"").await;
        let head = client.take(24).await;
        let len = u32::from_be_bytes(head[16..20].try_into().unwrap());
        let body = client.take(len as usize - 4).await;
        let lens = body.chunks(8).map(|e| u64::from(u32::from_be_bytes(e[..4].try_into().unwrap())));
        let covered: u64 = lens.sum();
        assert!(covered > 0 && covered < MIB, "{covered}");
        assert_eq!(covered % 4096, 0);
    });
}

#[test]
fn bad_requests_are_refused_and_the_connection_goes_on() {
    run(async {
        let memory = memory().logged();
        let mut client = Client::open(&memory, "alice", Simple).await;
        let mut snapshot = Client::open(&memory, "alice@t", Simple).await;
        memory.log.borrow_mut().as_mut().unwrap().clear();
        let junk = vec![0xaa; 33 << 20];
        for (errno, request) in [
            (22, (0, READ, 1, MIB - 1, 2)),
            (22, (0, READ, 2, u64::MAX, 2)),
            (22, (0, READ, 3, 0, 32 * MIB + 1)),
            (28, (0, WRITE, 4, MIB - 1, 2)),
            (28, (0, WRITE, 5, u64::MAX - 1, 4)),
            (22, (0, WRITE, 6, 0, 33 * MIB)),
            (28, (0, ZEROES, 7, MIB, 1)),
            (22, (0, TRIM, 8, MIB, 1)),
            (22, (0, CACHE, 9, MIB, 1)),
            (22, (0, 8, 10, 0, 0)),
            (22, (0, 0xffff, 11, 0, 0)),
            (22, (1 << 2, READ, 12, 0, 1)),
            (22, (1 << 5, WRITE, 13, 0, 7)),
            (22, (1 << 1, WRITE, 14, 0, 7)),
            (22, (1 << 15, FLUSH, 15, 0, 0)),
            (22, (0, STATUS, 16, 0, 4096)),
            (22, (1 << 3, TRIM, 17, 0, 1)),
        ] {
            let payload = if request.1 == WRITE { &junk[..request.4 as usize] } else { b"" };
            client.request(Simple, request, payload).await;
            client.expect(&simple(errno, request.2)).await;
        }
        for command in [WRITE, TRIM, ZEROES] {
            snapshot
                .request(Simple, (0, command, 1, 0, 3), if command == WRITE { b"abc" } else { b"" })
                .await;
            snapshot.expect(&simple(1, 1)).await;
        }
        snapshot.request(Simple, (0, READ, 2, 0, 3), b"").await;
        snapshot.expect(&[&simple(0, 2)[..], b"\0\0\0"].concat()).await;
        assert_eq!(memory.log.borrow().as_ref().unwrap().len(), 1, "only the read got through");
    });
}

#[test]
fn payload_of_another_command_is_drained_with_extended_headers() {
    run(async {
        let mut client = Client::open(&memory(), "alice", Extended).await;
        client.request(Extended, (1 << 5, READ, 1, 0, 100_000), &vec![1; 100_000]).await;
        client.expect(&chunk(Extended, true, 0x8001, 1, 0, &error_body(22, "alice: unknown flag"))).await;
        client.request(Extended, (0, TRIM, 2, 0, 1 << 40), b"").await;
        let body = error_body(22, "alice: beyond the end of the export");
        client.expect(&chunk(Extended, true, 0x8001, 2, 0, &body)).await;
        client.request(Extended, (0, FLUSH, 3, 0, 0), b"").await;
        client.expect(&chunk(Extended, true, 0, 3, 0, b"")).await;
    });
}

#[test]
fn bytes_that_cannot_be_understood_end_the_connection() {
    run(async {
        let memory = memory();
        for (framing, request) in [
            (Extended, (0, WRITE, 1, 0, 4)),
            (Extended, (1 << 5, WRITE, 1, 0, 1 << 40)),
            (Extended, (1 << 5, READ, 1, 0, u64::MAX)),
            (Simple, (0, WRITE, 1, 0, u64::from(u32::MAX))),
        ] {
            let mut client = Client::open(&memory, "alice", framing).await;
            client.request(framing, request, b"").await;
            assert!(matches!(client.expect_end().await, Ending::Refused(_)), "{request:?}");
        }
        let mut client = Client::open(&memory, "alice", Simple).await;
        client.send(&[7; 28]).await;
        assert!(matches!(client.expect_end().await, Ending::Refused(_)));
        assert_eq!(memory.open.get(), 0);
    });
}

#[test]
fn failures_have_their_codes_and_name_the_vdi() {
    run(async {
        let memory = memory();
        let mut structured = Client::open(&memory, "alice", Structured).await;
        let mut simple_one = Client::open(&memory, "alice", Simple).await;
        for (error, errno) in [
            (ClientError::NoSpace, 28),
            (ClientError::ReadOnly, 1),
            (ClientError::OutOfRange, 22),
            (ClientError::InvalidParameters, 22),
            (ClientError::Unsupported("this".into()), 95),
            (ClientError::Io, 5),
            (ClientError::NoObject, 5),
            (ClientError::WaitForJoin, 5),
        ] {
            *memory.fail.borrow_mut() = Some(error.clone());
            structured.request(Structured, (0, READ, 9, 0, 512), b"").await;
            let body = error_body(errno, &format!("alice: {error}"));
            structured.expect(&chunk(Structured, true, 0x8001, 9, 0, &body)).await;
            *memory.fail.borrow_mut() = Some(error);
            simple_one.request(Simple, (0, WRITE, 9, 0, 3), b"abc").await;
            simple_one.expect(&simple(errno, 9)).await;
        }
        assert_eq!(memory.read(1, 0, 3), b"\0\0\0");
    });
}

#[test]
fn a_sheep_that_shuts_down_answers_what_it_did_and_leaves_the_rest_unanswered() {
    run(async {
        for framing in [Simple, Structured, Extended] {
            let memory = memory();
            let gate = Rc::new(Semaphore::new(0));
            let mut client = Client::open(&memory, "alice", framing).await;
            let payload_len = if framing == Extended { 1 << 5 } else { 0 };
            *memory.gate.borrow_mut() = Some(gate.clone());
            client.request(framing, (payload_len, WRITE, 1, 0, 3), b"abc").await;
            settle().await;
            *memory.gate.borrow_mut() = None;
            *memory.fail.borrow_mut() = Some(ClientError::ShuttingDown);
            client.request(framing, (payload_len, WRITE, 2, 0, 3), b"def").await;
            settle().await;
            // Not even looked at: it would be carried out.
            client.request(framing, (payload_len, WRITE, 3, 0, 3), b"ghi").await;
            gate.add_permits(1);
            match framing {
                Extended => client.expect(&chunk(Extended, true, 0, 1, 0, b"")).await,
                _ => client.expect(&simple(0, 1)).await,
            }
            assert!(matches!(client.expect_end().await, Ending::ShutDown));
            assert_eq!(memory.read(1, 0, 3), b"abc");
            assert_eq!(memory.open.get(), 0);
        }
    });
}

#[test]
fn aligned_writes_arrive_in_aligned_memory() {
    run(async {
        let memory = memory();
        let mut client = Client::open(&memory, "big", Simple).await;
        for (offset, len) in [(0, 4096), (4096, 100), (100, 65_536), (512, 10 * MIB), (7 * MIB, 32 * MIB)] {
            let data: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            client.request(Simple, (0, WRITE, 1, offset, len), &data).await;
            client.expect(&simple(0, 1)).await;
            assert!(memory.read(3, offset, len as usize) == data);
        }
        assert_eq!(memory.misaligned.get(), 0);
    });
}

#[test]
fn requests_run_side_by_side_and_writes_are_answered_when_done() {
    run(async {
        let memory = memory();
        let gate = Rc::new(Semaphore::new(0));
        let mut client = Client::open(&memory, "alice", Simple).await;
        *memory.gate.borrow_mut() = Some(gate.clone());
        client.request(Simple, (0, WRITE, 1, 0, 3), b"abc").await;
        settle().await;
        // The write waits; what came later is answered before it.
        *memory.gate.borrow_mut() = None;
        client.request(Simple, (0, FLUSH, 2, 0, 0), b"").await;
        client.expect(&simple(0, 2)).await;
        assert_eq!(memory.read(1, 0, 3), b"\0\0\0");
        gate.add_permits(1);
        client.expect(&simple(0, 1)).await;
        assert_eq!(memory.read(1, 0, 3), b"abc");
    });
}

#[test]
fn limits_hold_back_requests_but_lose_none() {
    run(async {
        let memory = memory().logged();
        let gate = Rc::new(Semaphore::new(0));
        let limits = Limits { requests: 3, payload_bytes: 10_000, ..Limits::default() };
        for (len, expect_in_flight) in [(512u64, 3), (4096, 2), (20_000, 1)] {
            let mut client = Client::open_with(&memory, "alice", Simple, limits, 1 << 20).await;
            *memory.gate.borrow_mut() = Some(gate.clone());
            memory.log.borrow_mut().as_mut().unwrap().clear();
            for cookie in 0..8 {
                let data = vec![cookie as u8 + 1; len as usize];
                client.request(Simple, (0, WRITE, cookie, cookie * len, len), &data).await;
            }
            settle().await;
            let waiting = gate_waiters(&gate, &memory).await;
            assert_eq!(waiting, expect_in_flight, "writes of {len} bytes");
            gate.add_permits(8 - waiting);
            for cookie in 0..8 {
                client.expect(&simple(0, cookie)).await;
                assert_eq!(memory.read(1, cookie * len, 1), [cookie as u8 + 1]);
            }
            *memory.gate.borrow_mut() = None;
            client.vanish().await;
        }
    });
}

/// Lets all that wait at the gate through, at once, and counts them.
async fn gate_waiters(gate: &Semaphore, memory: &Memory) -> usize {
    // Those that come later wait at another gate.
    let later = Rc::new(Semaphore::new(0));
    let here = memory.gate.borrow_mut().replace(later.clone());
    gate.add_permits(100);
    settle().await;
    let waiting = 100 - gate.available_permits();
    gate.forget_permits(100);
    *memory.gate.borrow_mut() = here;
    later.add_permits(100);
    waiting
}

#[test]
fn reader_that_does_not_fetch_holds_back_only_itself() {
    run(async {
        let memory = memory().logged();
        memory.write(3, 0, &vec![5; MIB as usize]);
        let limits = Limits { payload_bytes: 4 * MIB, ..Limits::default() };
        let mut lazy = Client::open_with(&memory, "big", Simple, limits, 8192).await;
        memory.log.borrow_mut().as_mut().unwrap().clear();
        for cookie in 0..64 {
            lazy.request(Simple, (0, READ, cookie, 0, MIB), b"").await;
        }
        settle().await;
        let started = memory.log.borrow().as_ref().unwrap().len();
        assert!((3..=5).contains(&started), "{started} reads of 1 MiB for a limit of 4 MiB");
        let mut other = Client::open(&memory, "big", Simple).await;
        other.request(Simple, (0, FLUSH, 1, 0, 0), b"").await;
        other.expect(&simple(0, 1)).await;
        for cookie in 0..64 {
            lazy.expect(&simple(0, cookie)).await;
            assert!(lazy.take(MIB as usize).await.iter().all(|b| *b == 5));
        }
    });
}

#[test]
fn refused_requests_are_bounded_as_well() {
    run(async {
        let mut client = Client::open_with(&memory(), "alice", Structured, Limits::default(), 4096).await;
        let request =
            front::nbd::wire::RequestHeader { flags: 0, command: 99, cookie: 1, offset: 0, length: 0 };
        let bytes = request.encode(Structured).repeat(1000);
        // The server stops reading some time: replies would pile up otherwise.
        let mut sent = 0;
        while tokio::time::timeout(Duration::from_secs(1), client.io.write_all(&bytes)).await.is_ok() {
            sent += bytes.len();
            assert!(sent < 10 << 20, "the server reads on");
        }
    });
}

#[test]
fn half_a_write_is_no_write() {
    run(async {
        let memory = memory().logged();
        let mut other = Client::open(&memory, "alice", Simple).await;
        memory.log.borrow_mut().as_mut().unwrap().clear();
        for sent in [0, 1, 4096, 99_999] {
            let mut client = Client::open(&memory, "alice", Simple).await;
            client.request(Simple, (0, WRITE, 1, 0, 100_000), &vec![1; sent]).await;
            assert!(matches!(client.vanish().await, Ending::Vanished));
        }
        let log = memory.log.borrow().clone().unwrap();
        assert!(!log.iter().any(|op| matches!(op, ClientOp::Volume { .. })), "{log:?}");
        assert_eq!(memory.open.get(), 1);
        other.request(Simple, (0, READ, 1, 0, 3), b"").await;
        other.expect(&[&simple(0, 1)[..], b"\0\0\0"].concat()).await;
    });
}

#[test]
fn vdi_is_closed_after_the_last_request_of_a_vanished_client() {
    run(async {
        let memory = memory();
        let gate = Rc::new(Semaphore::new(0));
        let mut client = Client::open(&memory, "alice", Simple).await;
        *memory.gate.borrow_mut() = Some(gate.clone());
        client.request(Simple, (0, WRITE, 1, 0, 3), b"abc").await;
        settle().await;
        let Client { io, server } = client;
        drop(io);
        settle().await;
        assert_eq!(memory.open.get(), 1, "a request is still under way");
        gate.add_permits(1);
        server.await.unwrap();
        assert_eq!(memory.open.get(), 0);
        assert_eq!(memory.read(1, 0, 3), b"abc");
    });
}

#[test]
fn good_bye_waits_for_requests_and_their_replies() {
    run(async {
        let memory = memory();
        let gate = Rc::new(Semaphore::new(0));
        let mut client = Client::open(&memory, "alice", Simple).await;
        *memory.gate.borrow_mut() = Some(gate.clone());
        client.request(Simple, (0, WRITE, 1, 0, 3), b"abc").await;
        client.request(Simple, (0, DISC, 2, 0, 0), b"").await;
        // Nothing counts after it.
        client.request(Simple, (0, WRITE, 3, 0, 3), b"xyz").await;
        settle().await;
        gate.add_permits(9);
        client.expect(&simple(0, 1)).await;
        assert!(matches!(client.expect_end().await, Ending::Disconnected));
        assert_eq!(memory.read(1, 0, 3), b"abc");
        assert_eq!(memory.open.get(), 0);
    });
}

#[test]
fn client_that_says_good_bye_and_fetches_nothing_is_given_up() {
    run(async {
        let memory = memory();
        memory.write(1, 0, &[5; 65_536]);
        let mut client = Client::open_with(&memory, "alice", Simple, Limits::default(), 4096).await;
        client.request(Simple, (0, READ, 1, 0, 65_536), b"").await;
        client.request(Simple, (0, DISC, 2, 0, 0), b"").await;
        let Client { io, server } = client;
        assert!(matches!(server.await.unwrap(), Ending::TimedOut));
        assert_eq!(memory.open.get(), 0);
        drop(io);
    });
}

/// Lets all other tasks run until none can: with the clock paused, a sleep ends only then.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}
