//! Guests and front-ends that do what none should: they harm nobody but themselves.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::driver::*;
use crate::guest::{DATA_AT, Guest, MEMORY_BYTES, Server, Setup, as_event, socket_pair};

const PATIENCE: Duration = Duration::from_secs(20);

/// A guest of two queues whose first one is watched for breaking.
fn watched(server: &Server) -> (Guest, EventFd) {
    let mut guest = Guest::start(server, Setup { queue_count: 2, ..Setup::default() });
    let err = EventFd::new(EFD_NONBLOCK).unwrap();
    let theirs = err.try_clone().unwrap();
    guest.front().set_vring_err(0, &theirs).unwrap();
    // Round trips: it was heard.
    guest.capacity_sectors();
    (guest, err)
}

/// The other queue goes on, and the first one as well once it is set up anew.
fn expect_broken_and_mended(guest: &mut Guest, err: &EventFd, what: &str) {
    assert!(await_readable(err, PATIENCE), "{what}: the ring was not given up");
    guest.offer(1, 0, &Ask { kind: T_FLUSH, sector: 0, data: &[], room: 0, indirect: false });
    guest.kick(1, 1);
    assert_eq!((guest.wait(1), guest.status(1, 0)), (0, OK), "{what}: the other queue");
    guest.front().get_vring_base(0).unwrap();
    guest.rings[0] = Ring::new(0, guest.setup.queue_size, false);
    guest.write_memory(0, &[0; 64 << 10]);
    guest.run_ring(0);
    assert_eq!(guest.read(0, 512), (OK, vec![0; 512]), "{what}: after it was set up anew");
}

#[test]
fn chains_that_cannot_be_break_their_ring_and_no_other() {
    let at = DATA_AT;
    let d = |at, bytes, flags, next| Descriptor { at, bytes, flags, next };
    let outside = MEMORY_BYTES as u64;
    let cases: [(&str, &[Descriptor]); 12] = [
        ("a circle", &[d(at, 16, NEXT, 1), d(at + 64, 16, NEXT, 0)]),
        ("one that follows itself", &[d(at, 16, NEXT, 0)]),
        ("next out of the table", &[d(at, 16, NEXT, 16)]),
        ("no room for a status", &[d(at, 16, 0, 0)]),
        ("a status of no bytes", &[d(at, 16, NEXT, 1), d(at + 64, 0, WRITE, 0)]),
        ("memory to read after memory to write", &[d(at, 1, WRITE | NEXT, 1), d(at, 16, 0, 0)]),
        ("beyond the memory", &[d(outside - 15, 16, NEXT, 1), d(at, 1, WRITE, 0)]),
        ("nowhere near it", &[d(1 << 50, u32::MAX, NEXT, 1), d(at, 1, WRITE, 0)]),
        ("an address that overflows", &[d(u64::MAX - (1 << 30), u32::MAX, NEXT, 1), d(at, 1, WRITE, 0)]),
        ("an empty table", &[d(at, 0, INDIRECT, 0)]),
        ("a table of odd length", &[d(at, 33, INDIRECT, 0)]),
        ("a table and something after it", &[d(at, 32, INDIRECT | NEXT, 1), d(at, 1, WRITE, 0)]),
    ];
    let server = Server::start();
    for (what, chain) in cases {
        let (mut guest, err) = watched(&server);
        for (index, descriptor) in chain.iter().enumerate() {
            guest.rings[0].put(&guest.memory, index as u16, *descriptor);
        }
        guest.rings[0].offer(&guest.memory, 0);
        guest.kick(0, 1);
        expect_broken_and_mended(&mut guest, &err, what);
    }
}

#[test]
fn tables_that_cannot_be_break_their_ring() {
    let at = DATA_AT;
    let d = |at, bytes, flags, next| Descriptor { at, bytes, flags, next };
    let table = at + 4096;
    let cases: [(&str, u32, &[Descriptor]); 4] = [
        ("a table in a table", 32, &[d(at, 16, NEXT, 1), d(at, 32, INDIRECT, 0)]),
        ("a circle in a table", 32, &[d(at, 16, NEXT, 1), d(at, 16, NEXT, 0)]),
        ("next out of the table", 32, &[d(at, 16, NEXT, 2), d(at, 1, WRITE, 0)]),
        ("a table too long", 16 * 1025, &[d(at, 16, NEXT, 1), d(at, 1, WRITE, 0)]),
    ];
    let server = Server::start();
    for (what, bytes, chain) in cases {
        let (mut guest, err) = watched(&server);
        for (index, descriptor) in chain.iter().enumerate() {
            write_descriptor(&guest.memory, table + 16 * index as u64, *descriptor);
        }
        guest.rings[0].put(&guest.memory, 0, d(table, bytes, INDIRECT, 0));
        guest.rings[0].offer(&guest.memory, 0);
        guest.kick(0, 1);
        expect_broken_and_mended(&mut guest, &err, what);
    }
}

#[test]
fn rings_that_lie_are_given_up() {
    let server = Server::start();
    let (mut guest, err) = watched(&server);
    guest.rings[0].offer_out_of_nowhere(&guest.memory, 17);
    guest.rings[0].kick.write(1).unwrap();
    expect_broken_and_mended(&mut guest, &err, "an index that is ahead of all descriptors");
    drop(guest);

    let (mut guest, err) = watched(&server);
    guest.rings[0].offer(&guest.memory, 16);
    guest.kick(0, 1);
    expect_broken_and_mended(&mut guest, &err, "a head out of the table");
    drop(guest);

    let (mut guest, err) = watched(&server);
    server.with(|memory| memory.held.borrow_mut().insert(4096));
    guest.offer(0, 0, &Ask { kind: T_OUT, sector: 8, data: &[1; 4096], room: 0, indirect: false });
    guest.rings[0].offer(&guest.memory, 0);
    guest.kick(0, 2);
    assert!(await_readable(&err, PATIENCE));
    server.with(|memory| {
        memory.held.borrow_mut().clear();
        memory.released.notify_waiters();
    });
    expect_broken_and_mended(&mut guest, &err, "one head twice");
}

#[test]
fn whatever_lies_in_the_rings_the_server_lives_on() {
    let server = Server::start();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for round in 0..60 {
        let mut guest = Guest::start(&server, Setup { features: 1 << 28 | 1 << 29, ..Setup::default() });
        for index in 0..16 {
            let far = if next() % 8 == 0 { next() } else { DATA_AT + next() % (1 << 20) };
            let bytes = if next() % 8 == 0 { next() as u32 } else { (next() % 2048) as u32 };
            let descriptor =
                Descriptor { at: far, bytes, flags: (next() % 8) as u16, next: (next() % 17) as u16 };
            guest.rings[0].put(&guest.memory, index, descriptor);
        }
        for at in (0..(1 << 20)).step_by(8 << 10) {
            // Descriptors and headers of requests, mostly small numbers.
            let words: Vec<u8> = (0..64).flat_map(|_| ((next() % 16) as u32).to_le_bytes()).collect();
            guest.write_memory(DATA_AT + at, &words);
        }
        for _ in 0..16 {
            guest.rings[0].offer(&guest.memory, (next() % 17) as u16);
        }
        guest.rings[0].kick.write(1).unwrap();
        // It answers messages whatever becomes of the ring.
        assert_eq!(guest.capacity_sectors(), 2048, "round {round}");
        guest.front().get_vring_base(0).unwrap();
    }
    let mut guest = Guest::start(&server, Setup::default());
    assert_eq!(guest.write(0, &[1; 512]), OK);
}

#[test]
fn memory_that_is_not_there_is_refused() {
    let server = Server::start();
    let check = |change: &dyn Fn(&mut vhost::VhostUserMemoryRegionInfo)| {
        let mut guest = Guest::new(Setup::default());
        guest.connect(&server);
        guest.negotiate();
        let mut region = guest.region();
        change(&mut region);
        let _ = guest.front().set_mem_table(&[region]);
        assert!(guest.front().get_queue_num().is_err(), "the connection has ended: {}", region.mmap_offset);
    };
    check(&|region| region.memory_size += 4096);
    check(&|region| region.mmap_offset = MEMORY_BYTES as u64);
    check(&|region| region.mmap_offset = 100);
    check(&|region| region.guest_phys_addr = u64::MAX - 4096);
    let mut guest = Guest::start(&server, Setup::default());
    assert_eq!(guest.read(0, 512).0, OK);
}

#[test]
fn rings_that_lie_elsewhere_or_are_kicked_by_nobody_are_refused() {
    let server = Server::start();
    let refused = |set_up: &dyn Fn(&mut Guest)| {
        let mut guest = Guest::start(&server, Setup { queue_count: 2, ..Setup::default() });
        guest.front().get_vring_base(1).unwrap();
        set_up(&mut guest);
        assert!(guest.front().get_queue_num().is_err(), "the connection has ended");
    };
    refused(&|guest| {
        let mut config = guest.rings[1].addresses(guest.memory.as_ptr() as u64, 16);
        config.used_ring_addr = guest.memory.as_ptr() as u64 + MEMORY_BYTES as u64 - 8;
        let kick = guest.rings[1].kick.try_clone().unwrap();
        guest.front().set_vring_addr(1, &config).unwrap();
        let _ = guest.front().set_vring_kick(1, &kick);
    });
    refused(&|guest| {
        let _ = guest.front().set_vring_num(1, 24);
    });
    refused(&|guest| {
        let plain: OwnedFd = tempfile::tempfile().unwrap().into();
        let _ = guest.front().set_vring_kick(1, &as_event(plain));
    });
    // A kick that ends is noticed, and read once.
    let (mut guest, err) = watched(&server);
    guest.front().get_vring_base(0).unwrap();
    let (ours, theirs) = socket_pair();
    guest.front().set_vring_kick(0, &as_event(theirs)).unwrap();
    guest.capacity_sectors();
    drop(ours);
    assert!(await_readable(&err, PATIENCE));
}

#[test]
fn bytes_that_are_no_messages_end_the_connection_and_nothing_else() {
    let server = Server::start();
    let header = |request: u32, flags: u32, bytes: u32| {
        [request.to_ne_bytes(), flags.to_ne_bytes(), bytes.to_ne_bytes()].concat()
    };
    let garbage: [Vec<u8>; 8] = [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        header(1, 1, u32::MAX),
        header(1, 1, 513),
        header(1, 5, 0),
        header(99, 1, 0),
        [header(8, 1, 4), vec![0; 4]].concat(),
        [header(8, 1, 8), vec![0xff; 8]].concat(),
        [header(5, 1, 8), vec![0xff; 8]].concat(),
    ];
    for bytes in garbage {
        let mut stream = UnixStream::connect(&server.path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&bytes).unwrap();
        // Cut off, and perhaps with what we sent unread.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{bytes:?} was answered");
    }
    // Half a message, and then nothing: the next one is served when this one has gone.
    let mut stream = UnixStream::connect(&server.path).unwrap();
    stream.write_all(&header(8, 1, 8)).unwrap();
    drop(stream);
    let mut guest = Guest::start(&server, Setup::default());
    assert_eq!(guest.read(0, 512).0, OK);
    assert_eq!(server.with(|memory| memory.open.get()), 1, "whoever left has closed the volume");
}
