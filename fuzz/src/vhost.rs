//! A front-end of vhost-user and the guest behind it: any messages, with files, about a memory that holds anything.

use std::cell::RefCell;
use std::future::{Future, ready};
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use front::Service;
use front::guests::Guests;
use front::vhost::{Ending, Limits, serve_connection};
use proto::client::*;
use proto::{CopyPolicy, Vid};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{LocalSet, yield_now};

const VID: Vid = Vid(7);
const VOLUME_BYTES: u64 = 1 << 20;
const MEMORY_BYTES: u64 = 128 << 10;
/// What an input says of either memory; zeros follow.
const FILLED_BYTES: usize = 8192;
/// Where the memory begins for the guest, and for the front-end.
const GUEST_START: u64 = 1 << 30;
const USER_START: u64 = 1 << 46;
const HEADER_BYTES: usize = 12;
/// More than are in any sensible conversation, and fewer than a socket holds.
const MESSAGES_MAX: usize = 48;
/// Turns that the server gets to do what it was asked: messages, and then rings.
const TURNS: usize = 24;
const RING_SIZE: u32 = 16;

// Numbers of requests.
const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ERR: u32 = 14;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;
const SET_BACKEND_REQ_FD: u32 = 21;
const GET_CONFIG: u32 = 24;
const GET_INFLIGHT_FD: u32 = 31;
const SET_INFLIGHT_FD: u32 = 32;

thread_local! {
    // It looks for events at each turn.
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().event_interval(1).build().expect("a runtime");
}

/// The first byte says whether a good setup goes before the messages and how it is; two bytes say how many bytes of messages follow. Then
/// comes what lies in the guest's memory, and in that for requests under way.
pub fn run(bytes: &[u8]) {
    let Some((head, rest)) = bytes.split_first_chunk::<3>() else { return };
    let (messages, memory) =
        rest.split_at(usize::from(u16::from_le_bytes([head[1], head[2]])).min(rest.len()));
    let setup = match head[0] % 4 {
        0 => Vec::new(),
        how => setup(how == 2, how == 3),
    };
    let asked = converse(&[&setup, messages].concat(), memory);
    asked.iter().for_each(check);
}

/// What reached the volume.
fn converse(messages: &[u8], memory: &[u8]) -> Vec<VolumeOp> {
    let (near, far) = UnixStream::pair().expect("two sockets");
    near.set_nonblocking(true).expect("a socket");
    far.set_nonblocking(true).expect("a socket");
    let stub = Stub::default();
    let guest = async {
        let files = Files::with(memory);
        send_all(&near, messages, &files);
        for _ in 0..TURNS {
            yield_now().await;
        }
        check_replies(&near);
        drop(near);
    };
    let serve = async {
        let far = tokio::net::UnixStream::from_std(far).expect("a socket");
        serve_connection(far, b"disk", &stub, Limits::default(), &Guests::default()).await
    };
    let (ending, ()) =
        RUNTIME.with(|runtime| LocalSet::new().block_on(runtime, async { tokio::join!(serve, guest) }));
    assert!(!matches!(ending, Ending::Refused(_)), "the volume is there: {ending:?}");
    stub.asked.take()
}

/// Whatever reaches a volume is within it.
fn check(op: &VolumeOp) {
    let (offset, len) = match op {
        VolumeOp::Read { offset, len } => (*offset, u64::from(*len)),
        VolumeOp::Write { offset, data } => (*offset, data.len() as u64),
        VolumeOp::Discard { offset, len } | VolumeOp::WriteZeroes { offset, len, .. } => (*offset, *len),
        VolumeOp::Flush => return,
        other => panic!("no guest can ask for {other:?}"),
    };
    assert!(offset.checked_add(len).is_some_and(|end| end <= VOLUME_BYTES), "{offset} {len}");
}

/// What the server has said is whole replies.
fn check_replies(mut near: &UnixStream) {
    let mut said = Vec::new();
    // Ends by a refusal to block, if not by the end of the connection.
    let _ = near.read_to_end(&mut said);
    let mut rest = &said[..];
    while let Some((head, after)) = rest.split_first_chunk::<HEADER_BYTES>() {
        let [_, flags, bytes] = [0, 4, 8].map(|at| u32_at(head, at));
        assert_eq!(flags & 7, 5, "version 1, a reply");
        rest = after.get(bytes as usize..).expect("as long as it says");
    }
    assert!(rest.is_empty());
}

/// What may come beside a message.
struct Files {
    memory: OwnedFd,
    inflight: OwnedFd,
    event: OwnedFd,
}

impl Files {
    /// Events have happened already: rings are looked at.
    fn with(content: &[u8]) -> Files {
        let (memory, inflight) = content.split_at(content.len().min(FILLED_BYTES));
        let file = |content: &[u8]| {
            let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("memory");
            ftruncate(&file, MEMORY_BYTES).expect("memory");
            rustix::io::pwrite(&file, &content[..content.len().min(FILLED_BYTES)], 0).expect("memory");
            file
        };
        let event = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an event");
        Files { memory: file(memory), inflight: file(inflight), event }
    }

    fn of(&self, request: u32, payload: &[u8]) -> Vec<BorrowedFd<'_>> {
        let regions = payload.first_chunk().map_or(0, |count| u32::from_ne_bytes(*count).min(8));
        match request {
            SET_MEM_TABLE => (0..regions).map(|_| self.memory.as_fd()).collect(),
            SET_VRING_KICK | SET_VRING_CALL | SET_VRING_ERR => vec![self.event.as_fd()],
            SET_INFLIGHT_FD => vec![self.inflight.as_fd()],
            SET_BACKEND_REQ_FD => vec![self.event.as_fd()],
            _ => Vec::new(),
        }
    }
}

/// Sends message by message, each with its files; what is no message goes as it is.
fn send_all(near: &UnixStream, mut messages: &[u8], files: &Files) {
    for _ in 0..MESSAGES_MAX {
        let Some(head) = messages.first_chunk::<HEADER_BYTES>() else { break };
        let len = (HEADER_BYTES + u32_at(head, 8) as usize).min(messages.len());
        let (message, rest) = messages.split_at(len);
        if !send(near, message, &files.of(u32_at(head, 0), &message[HEADER_BYTES..])) {
            return;
        }
        messages = rest;
    }
    send(near, &messages[..messages.len().min(64)], &[]);
}

fn send(near: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        assert!(beside.push(SendAncillaryMessage::ScmRights(files)), "eight fit");
    }
    sendmsg(near, &[IoSlice::new(bytes)], &mut beside, SendFlags::NOSIGNAL)
        .is_ok_and(|sent| sent == bytes.len())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[derive(Clone, Default)]
struct Stub {
    asked: Rc<RefCell<Vec<VolumeOp>>>,
}

impl Service for Stub {
    fn call(&self, op: ClientOp) -> impl Future<Output = ClientResult> + 'static {
        ready(match op {
            ClientOp::Volume { op, .. } => {
                let len = if let VolumeOp::Read { len, .. } = op { len } else { 0 };
                self.asked.borrow_mut().push(op);
                if len > 0 {
                    Ok(ClientReply::Data(vec![9; len as usize].into()))
                } else {
                    Ok(ClientReply::Done)
                }
            }
            ClientOp::Vdi(VdiOp::Lookup { .. }) => Ok(ClientReply::Vdi(disk())),
            _ => Ok(ClientReply::Done),
        })
    }
}

fn disk() -> VdiInfo {
    VdiInfo {
        vid: VID,
        name: b"disk".to_vec(),
        tag: Vec::new(),
        size: VOLUME_BYTES,
        policy: CopyPolicy::Replicated { copies: 3 },
        block_size_shift: 22,
        snap_id: 1,
        create_time: 1 << 32,
        snap_ctime: 0,
        vm_state_size: 0,
        vm_clock_nsec: 0,
        parent: Vid(0),
        owner: None,
        locked_by: Vec::new(),
    }
}

// ---- what a good front-end says ------------------------------------------------------------------------------------------

fn message(request: u32, payload: &[u8]) -> Vec<u8> {
    [&[request, 1, payload.len() as u32].map(u32::to_ne_bytes).concat()[..], payload].concat()
}

fn words(request: u32, words: &[u64]) -> Vec<u8> {
    message(request, &words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>())
}

/// A queue, and a number.
fn pair(request: u32, queue: u32, number: u32) -> Vec<u8> {
    words(request, &[u64::from(queue) | u64::from(number) << 32])
}

/// One region of memory, and one ring at its beginning.
fn setup(event_idx: bool, inflight: bool) -> Vec<u8> {
    let features = 1 << 32 | 1 << 30 | 1 << 28 | if event_idx { 1 << 29 } else { 0 };
    let protocol_features = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12;
    let mut said =
        [words(SET_FEATURES, &[features]), words(SET_PROTOCOL_FEATURES, &[protocol_features])].concat();
    said.extend(words(SET_MEM_TABLE, &[1, GUEST_START, MEMORY_BYTES, USER_START, 0]));
    if inflight {
        said.extend(words(SET_INFLIGHT_FD, &[MEMORY_BYTES, 0, 1 | u64::from(RING_SIZE) << 16]));
    }
    said.extend(run_ring(0));
    said
}

fn run_ring(queue: u32) -> Vec<u8> {
    let at = USER_START;
    [
        pair(SET_VRING_NUM, queue, RING_SIZE),
        pair(SET_VRING_BASE, queue, 0),
        words(SET_VRING_ADDR, &[queue.into(), at, at + USED_AT, at + AVAILABLE_AT, 0]),
        words(SET_VRING_CALL, &[queue.into()]),
        words(SET_VRING_KICK, &[queue.into()]),
        pair(SET_VRING_ENABLE, queue, 1),
    ]
    .concat()
}

const AVAILABLE_AT: u64 = 16 * RING_SIZE as u64;
const USED_AT: u64 = 1024;
const DATA_AT: u64 = 2048;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn put(memory: &mut [u8], at: u64, bytes: &[u8]) {
    memory[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
}

fn descriptor(at: u64, bytes: u32, flags: u16, next: u16) -> Vec<u8> {
    [&(GUEST_START + at).to_le_bytes()[..], &bytes.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()]
        .concat()
}

fn ask(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// A write, a read, a flush and one of zeros, in four chains of which one lies in a table of its own.
fn good_memory() -> Vec<u8> {
    let mut memory = vec![0; FILLED_BYTES];
    let status_at = DATA_AT + 6000;
    let chains = [(1, 8, 0), (0, 16, WRITE), (4, 0, 0)];
    for (number, (kind, sector, flags)) in (0u16..).zip(chains) {
        let (first, head_at) = (3 * number, DATA_AT + 64 * u64::from(number));
        put(&mut memory, head_at, &ask(kind, sector));
        let chain = [
            descriptor(head_at, 16, NEXT, first + 1),
            descriptor(DATA_AT + 1024, 512, flags | NEXT, first + 2),
            descriptor(status_at, 1, WRITE, 0),
        ];
        put(&mut memory, 16 * u64::from(first), &chain.concat());
    }
    let table_at = DATA_AT + 3072;
    put(&mut memory, table_at + 256, &ask(13, 0));
    let range = [&24u64.to_le_bytes()[..], &8u32.to_le_bytes(), &1u32.to_le_bytes()].concat();
    put(&mut memory, table_at + 512, &range);
    let table = [
        descriptor(table_at + 256, 16, NEXT, 1),
        descriptor(table_at + 512, 16, NEXT, 2),
        descriptor(status_at, 1, WRITE, 0),
    ];
    put(&mut memory, table_at, &table.concat());
    put(&mut memory, 16 * 9, &descriptor(table_at, 48, INDIRECT, 0));
    let available = [0u16, 4, 0, 3, 6, 9].map(u16::to_le_bytes).concat();
    put(&mut memory, AVAILABLE_AT, &available);
    memory
}

/// A whole conversation, and good setups in front of some of it.
pub fn seeds() -> Vec<Vec<u8>> {
    let seed = |how: u8, messages: &[u8]| {
        [&[how][..], &(messages.len() as u16).to_le_bytes(), messages, &good_memory()].concat()
    };
    let config =
        [message(GET_CONFIG, &[0; 12 + 60]), message(1, &[]), message(15, &[]), message(17, &[])].concat();
    let inflight = words(GET_INFLIGHT_FD, &[0, 0, 2 | u64::from(RING_SIZE) << 16]);
    vec![
        seed(0, &[setup(false, false), config, inflight].concat()),
        seed(1, &[]),
        seed(2, &[]),
        seed(3, &message(SET_BACKEND_REQ_FD, &[])),
        // The first ring stops before anything is taken, and another one has the same requests.
        seed(1, &[run_ring(1), pair(GET_VRING_BASE, 0, 0)].concat()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_cannot_rise_ends_the_connection() {
        // The first request is noted as under way, 16 bytes from the start of the notes, and its number 8 bytes further.
        let mut notes = vec![0; 64];
        notes[16] = 1;
        notes[24..32].fill(0xff);
        let memory = [good_memory(), notes].concat();
        assert_eq!(converse(&setup(false, true), &memory), []);
    }

    #[test]
    fn each_seed_asks_for_what_lies_in_its_ring() {
        for seed in &seeds()[..4] {
            let messages = usize::from(u16::from_le_bytes([seed[1], seed[2]]));
            let said = if seed[0] == 0 { Vec::new() } else { setup(seed[0] == 2, seed[0] == 3) };
            let asked = converse(&[&said, &seed[3..3 + messages]].concat(), &seed[3 + messages..]);
            let [write, read, flush, zeros] = &asked[..] else { panic!("{} requests", asked.len()) };
            assert!(matches!(write, VolumeOp::Write { offset: 4096, data } if data.len() == 512));
            assert_eq!(*read, VolumeOp::Read { offset: 8192, len: 512 });
            assert_eq!(*flush, VolumeOp::Flush);
            assert_eq!(*zeros, VolumeOp::WriteZeroes { offset: 12288, len: 4096, keep_allocated: false });
        }
    }
}
