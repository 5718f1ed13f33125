//! What a guest asks, and what comes of it.

use proto::client::{ClientError, ClientOp, VolumeOp};
use vhost::vhost_user::VhostUserFrontend;

use crate::driver::*;
use crate::guest::{F_EVENT_IDX, Guest, Server, Setup, VOLUME_BYTES, socket_pair};
use crate::memory::Memory;

const SECTORS: u64 = VOLUME_BYTES / 512;

pub fn pattern(seed: u8, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| seed.wrapping_add((at / 512) as u8).wrapping_mul(31).wrapping_add(at as u8)).collect()
}

/// Volume requests carried out so far, opening and closing left out.
pub fn volume_ops(memory: &Memory) -> Vec<VolumeOp> {
    let log = memory.log.borrow();
    let ops = log.as_ref().unwrap().iter();
    ops.filter_map(|op| match op {
        ClientOp::Volume { op, .. } => Some(op.clone()),
        _ => None,
    })
    .collect()
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn what_was_written_is_read_back_whatever_the_layout() {
    for (indirect, features) in [(false, 0), (true, 1 << 28), (true, 1 << 28 | F_EVENT_IDX)] {
        let server = Server::start();
        let mut guest = Guest::start(&server, Setup { features, ..Setup::default() });
        let data = pattern(7, 12 << 10);
        let ask = Ask { kind: T_OUT, sector: 3, data: &data, room: 0, indirect };
        assert_eq!(guest.ask(ask).0, OK);
        let expect = data.clone();
        assert!(server.with(move |memory| memory.read(1, 3 * 512, 12 << 10) == expect), "in the volume");
        let ask = Ask { kind: T_IN, sector: 3, data: &[], room: 12 << 10, indirect };
        assert_eq!(guest.ask(ask), (OK, data), "indirect: {indirect}");
    }
}

#[test]
fn writes_lie_in_memory_as_they_lie_on_the_volume() {
    let server = Server::start();
    let mut guest = Guest::start(&server, Setup::default());
    for sector in [0, 8, 3, SECTORS - 8] {
        assert_eq!(guest.write(sector, &pattern(1, 4096)), OK);
    }
    assert_eq!(server.with(|memory| memory.misaligned.get()), 0);
}

#[test]
fn discard_zeroes_flush_and_id_do_what_they_say() {
    let server = Server::start();
    let mut guest = Guest::start(&server, Setup::default());
    assert_eq!(guest.write(0, &pattern(3, 32 << 10)), OK);
    let mut ask = |kind, data: &[u8], room| guest.ask(Ask { kind, sector: 0, data, room, indirect: false });
    assert_eq!(ask(T_DISCARD, &range(0, 8, 0), 0).0, OK);
    assert_eq!(ask(T_WRITE_ZEROES, &range(8, 8, 1), 0).0, OK);
    assert_eq!(ask(T_WRITE_ZEROES, &range(16, 8, 0), 0).0, OK);
    assert_eq!(ask(T_FLUSH, &[], 0).0, OK);
    assert_eq!(ask(T_GET_ID, &[], 20), (OK, b"alice\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec()));
    assert_eq!(ask(T_GET_ID, &[], 3), (OK, b"ali".to_vec()));
    let ops = server.with(|memory| volume_ops(memory)[1..].to_vec());
    let zeroes = |offset, keep_allocated| VolumeOp::WriteZeroes { offset, len: 4096, keep_allocated };
    let expect = [
        VolumeOp::Discard { offset: 0, len: 4096 },
        zeroes(4096, false),
        zeroes(8192, true),
        VolumeOp::Flush,
    ];
    assert_eq!(ops, expect);
    let (status, data) = guest.read(0, 16 << 10);
    assert_eq!((status, &data[..12288]), (OK, &[0; 12288][..]));
    assert_eq!(data[12288..], pattern(3, 32 << 10)[12288..16384]);
}

#[test]
fn in_write_back_mode_writes_of_drivers_that_flush_wait_for_the_flush() {
    const F_FLUSH: u64 = 1 << 9;
    for (write_back, features) in [(false, F_FLUSH), (true, F_FLUSH), (true, 0)] {
        let server = Server::start();
        server.with(move |memory| memory.write_back.set(write_back));
        let default = Setup::default();
        let mut guest = Guest::start(&server, Setup { features: default.features | features, ..default });
        assert_eq!(guest.write(8, &pattern(1, 4096)), OK);
        let ops = server.with(volume_ops);
        let is_early = matches!(ops[..], [VolumeOp::WriteBack { offset: 4096, .. }]);
        let is_durable = matches!(ops[..], [VolumeOp::Write { offset: 4096, .. }]);
        let expect = write_back && features == F_FLUSH;
        assert_eq!((is_early, is_durable), (expect, !expect), "{ops:?}");
    }
}

#[test]
fn what_cannot_be_done_gets_a_status_and_never_reaches_the_service() {
    let server = Server::start();
    let mut guest = Guest::start(&server, Setup::default());
    let data = vec![9; 1024];
    let mut check = |expect, kind, sector, data: &[u8], room| {
        let (status, _) = guest.ask(Ask { kind, sector, data, room, indirect: false });
        assert_eq!(status, expect, "kind {kind}, sector {sector}, {} and {room} bytes", data.len());
    };
    check(FAILED, T_OUT, SECTORS - 1, &data, 0);
    check(FAILED, T_IN, SECTORS, &[], 512);
    check(FAILED, T_IN, u64::MAX, &[], 512);
    check(FAILED, T_IN, u64::MAX / 512, &[], 512);
    check(FAILED, T_OUT, 0, &data[..100], 0);
    check(FAILED, T_IN, 0, &[], 511);
    check(UNSUPPORTED, 77, 0, &[], 512);
    check(FAILED, T_DISCARD, 0, &range(SECTORS, 1, 0), 0);
    check(FAILED, T_DISCARD, 0, &range(u64::MAX, u32::MAX, 0), 0);
    check(UNSUPPORTED, T_DISCARD, 0, &range(0, 8, 1), 0);
    check(UNSUPPORTED, T_WRITE_ZEROES, 0, &range(0, 8, 2), 0);
    check(UNSUPPORTED, T_DISCARD, 0, &[range(0, 8, 0), range(8, 8, 0)].concat(), 0);
    check(UNSUPPORTED, T_DISCARD, 0, &range(0, 8, 0)[..15], 0);
    check(OK, T_IN, SECTORS, &[], 0);
    assert!(server.with(|memory| volume_ops(memory).is_empty()));
    // A failure of the service's own.
    server.with(|memory| *memory.fail.borrow_mut() = Some(ClientError::Io));
    assert_eq!(guest.read(0, 512).0, FAILED);
    assert_eq!(guest.read(0, 512).0, OK);
}

#[test]
fn a_snapshot_is_read_and_not_written() {
    let server = Server::start_with("alice@monday", Default::default());
    server.with(|memory| memory.write(2, 0, &[5; 4096]));
    let mut guest = Guest::start(&server, Setup::default());
    assert_eq!(guest.write(0, &[1; 512]), FAILED);
    let ask = Ask { kind: T_DISCARD, sector: 0, data: &range(0, 8, 0), room: 0, indirect: false };
    assert_eq!(guest.ask(ask).0, FAILED);
    assert_eq!(guest.read(0, 4096), (OK, vec![5; 4096]));
}

#[test]
fn several_queues_work_side_by_side_and_a_slow_request_holds_up_no_other() {
    let server = Server::start();
    let setup = Setup { queue_count: 4, features: F_EVENT_IDX, ..Setup::default() };
    let mut guest = Guest::start(&server, setup);
    server.with(|memory| *memory.gate.borrow_mut() = Some(std::rc::Rc::new(tokio::sync::Semaphore::new(0))));
    for queue in 0..4 {
        for slot in 0..5u16 {
            let at = queue as u64 * 5 + u64::from(slot);
            let data = pattern(at as u8, 4096);
            guest.offer(
                queue,
                slot * 3,
                &Ask { kind: T_OUT, sector: at * 8, data: &data, room: 0, indirect: false },
            );
        }
        guest.kick(queue, 5);
    }
    server.with(|memory| memory.gate.borrow().as_ref().unwrap().add_permits(20));
    for queue in 0..4 {
        let mut heads: Vec<u16> = (0..5).map(|_| guest.wait(queue)).collect();
        heads.sort_unstable();
        assert_eq!(heads, [0, 3, 6, 9, 12]);
        assert!(heads.iter().all(|head| guest.status(queue, *head) == OK));
    }
    for at in 0..20u64 {
        let content = server.with(move |memory| memory.read(1, at * 4096, 4096));
        assert_eq!(content, pattern(at as u8, 4096), "block {at}");
    }
}

#[test]
fn a_ring_goes_round_and_round_with_few_kicks() {
    let server = Server::start();
    let mut guest = Guest::start(&server, Setup { features: F_EVENT_IDX, ..Setup::default() });
    for round in 0..200u64 {
        for slot in 0..5u16 {
            let data = [round as u8 ^ slot as u8; 512];
            let sector = (round * 5 + u64::from(slot)) % SECTORS;
            guest.offer(0, slot * 3, &Ask { kind: T_OUT, sector, data: &data, room: 0, indirect: false });
            guest.kick(0, 1);
        }
        for _ in 0..5 {
            let head = guest.wait(0);
            assert_eq!(guest.status(0, head), OK);
        }
    }
    assert_eq!(server.with(|memory| volume_ops(memory).len()), 1000);
}

#[test]
fn changes_that_overlap_go_one_after_the_other_and_others_do_not_wait() {
    let server = Server::start();
    let mut guest = Guest::start(&server, Setup::default());
    let gate = |server: &Server| {
        server
            .with(|memory| *memory.gate.borrow_mut() = Some(std::rc::Rc::new(tokio::sync::Semaphore::new(0))))
    };
    gate(&server);
    let write = |guest: &mut Guest, head, sector, seed| {
        guest.offer(
            0,
            head,
            &Ask { kind: T_OUT, sector, data: &pattern(seed, 4096), room: 0, indirect: false },
        );
        guest.kick(0, 1);
    };
    write(&mut guest, 0, 0, 1);
    write(&mut guest, 3, 4, 2);
    write(&mut guest, 6, 64, 3);
    server.with(|memory| memory.gate.borrow().as_ref().unwrap().add_permits(2));
    assert_eq!([guest.wait(0), guest.wait(0)], [0, 6], "the one that overlaps has not been begun");
    assert_eq!(server.with(|memory| volume_ops(memory).len()), 2);
    server.with(|memory| memory.gate.borrow().as_ref().unwrap().add_permits(1));
    assert_eq!(guest.wait(0), 3);
    let content = server.with(|memory| memory.read(1, 0, 6144));
    assert_eq!((&content[..2048], &content[2048..]), (&pattern(1, 4096)[..2048], &pattern(2, 4096)[..]));
}

#[test]
fn a_guest_at_its_limits_is_served_on() {
    let limits = front::vhost::Limits::default();
    for limits in
        [front::vhost::Limits { requests: 2, ..limits }, front::vhost::Limits { overlapping: 1, ..limits }]
    {
        let server = Server::start_with("alice", limits);
        let mut guest = Guest::start(&server, Setup::default());
        for slot in 0..5u16 {
            let data = pattern(slot as u8, 4096);
            guest.offer(0, slot * 3, &Ask { kind: T_OUT, sector: 0, data: &data, room: 0, indirect: false });
        }
        guest.kick(0, 5);
        assert_eq!([(); 5].map(|()| guest.wait(0)), [0, 3, 6, 9, 12], "they overlap");
        assert_eq!(server.with(|memory| memory.read(1, 0, 4096)), pattern(4, 4096));
    }
}

#[test]
fn the_payload_under_way_is_bounded() {
    let limits = front::vhost::Limits { payload_bytes: 8192, ..Default::default() };
    let server = Server::start_with("alice", limits);
    let mut guest = Guest::start(&server, Setup::default());
    server.with(|memory| *memory.gate.borrow_mut() = Some(std::rc::Rc::new(tokio::sync::Semaphore::new(0))));
    for slot in 0..5u16 {
        guest.offer(0, slot * 3, &Ask { kind: T_IN, sector: 0, data: &[], room: 4096, indirect: false });
    }
    guest.kick(0, 5);
    server.with(|memory| memory.gate.borrow().as_ref().unwrap().add_permits(5));
    for _ in 0..5 {
        guest.wait(0);
    }
}

#[test]
fn a_guest_is_told_when_its_volume_grows() {
    let server = Server::start();
    let mut guest = Guest::start(&server, Setup::default());
    let (mut news, theirs) = socket_pair();
    guest.front().set_backend_request_fd(&theirs).unwrap();
    let mut expect_news = || {
        let mut message = [0; 12];
        std::io::Read::read_exact(&mut news, &mut message).unwrap();
        assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], "the configuration has changed");
    };
    assert_eq!(guest.capacity_sectors(), SECTORS);
    server.with(|memory| memory.resize("alice", 2 * VOLUME_BYTES));
    expect_news();
    assert_eq!(guest.capacity_sectors(), 2 * SECTORS);
    assert_eq!(guest.write(2 * SECTORS - 1, &[3; 512]), OK);
    // Once more with the first request: it may have grown while the guest was not connected.
    expect_news();
}
