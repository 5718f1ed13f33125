//! Connections end, sheep die, and what was under way is done once more.

use proto::client::VolumeOp;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use crate::driver::*;
use crate::guest::{Guest, Server, Setup};
use crate::requests::{pattern, volume_ops};

fn setup() -> Setup {
    Setup { queue_count: 2, inflight: true, ..Setup::default() }
}

/// Writes of these blocks are not carried out.
fn hold(server: &Server, blocks: &'static [u64]) {
    server.with(|memory| memory.held.borrow_mut().extend(blocks.iter().map(|block| block * 4096)));
}

fn release(server: &Server) {
    server.with(|memory| {
        memory.held.borrow_mut().clear();
        memory.released.notify_waiters();
    });
}

fn offsets(ops: &[VolumeOp]) -> Vec<u64> {
    let offset = |op: &VolumeOp| match op {
        VolumeOp::Write { offset, .. } | VolumeOp::Read { offset, .. } => *offset,
        other => panic!("{other:?}"),
    };
    ops.iter().map(offset).collect()
}

fn offer_write(guest: &mut Guest, queue: usize, head: u16, block: u64) {
    let data = pattern(block as u8, 4096);
    guest.offer(queue, head, &Ask { kind: T_OUT, sector: block * 8, data: &data, room: 0, indirect: false });
    guest.kick(queue, 1);
}

/// All is answered, each once.
fn expect_answers(guest: &mut Guest, queue: usize, heads: &[u16]) {
    let mut found: Vec<u16> = heads.iter().map(|_| guest.wait(queue)).collect();
    found.sort_unstable();
    assert_eq!(found, heads);
    assert!(heads.iter().all(|head| guest.status(queue, *head) == OK));
}

/// A guest whose sheep has died with requests of both queues under way.
fn guest_of_a_dead_sheep() -> Guest {
    let server = Server::start();
    let mut guest = Guest::start(&server, setup());
    assert_eq!(guest.write(0, &pattern(0, 4096)), OK);
    hold(&server, &[1, 2]);
    offer_write(&mut guest, 0, 0, 1);
    offer_write(&mut guest, 1, 3, 2);
    server.until("two are under way", |memory| memory.waiting.get() == 2);
    // Answered before those that came earlier.
    offer_write(&mut guest, 0, 6, 3);
    assert_eq!(guest.wait(0), 6);
    drop(server);
    guest.disconnect();
    guest
}

#[test]
fn a_new_sheep_does_what_the_dead_one_had_under_way_and_nothing_else() {
    let mut guest = guest_of_a_dead_sheep();
    // Asked while nobody serves.
    offer_write(&mut guest, 1, 6, 4);
    let server = Server::start();
    guest.connect(&server);
    guest.negotiate();
    guest.share_memory();
    guest.share_inflight();
    // The first ring alone: nothing is done before the other one runs.
    guest.run_ring(0);
    assert_eq!(guest.capacity_sectors(), 2048, "the server has had its turn");
    assert!(server.with(|memory| volume_ops(memory).is_empty()));
    guest.run_ring(1);
    expect_answers(&mut guest, 0, &[0]);
    expect_answers(&mut guest, 1, &[3, 6]);
    let ops = server.with(volume_ops);
    let mut again = offsets(&ops[..2]);
    again.sort_unstable();
    assert_eq!(again, [4096, 8192], "what was under way comes first");
    assert_eq!(offsets(&ops[2..]), [4 * 4096], "then what is new");
    for block in [1u64, 2, 4] {
        let content = server.with(move |memory| memory.read(1, block * 4096, 4096));
        assert_eq!(content, pattern(block as u8, 4096), "block {block}");
    }
}

#[test]
fn a_ring_that_is_stopped_before_the_others_run_still_ends_what_it_has() {
    let mut guest = guest_of_a_dead_sheep();
    let server = Server::start();
    guest.connect(&server);
    guest.negotiate();
    guest.share_memory();
    guest.share_inflight();
    guest.run_ring(0);

    assert_eq!(guest.front().get_vring_base(0).unwrap(), 3);
    expect_answers(&mut guest, 0, &[0]);
}

#[test]
fn a_connection_that_is_lost_is_served_again_after_all_it_had_asked() {
    let server = Server::start();
    let mut guest = Guest::start(&server, setup());
    hold(&server, &[1]);
    offer_write(&mut guest, 0, 0, 1);
    server.until("taken", |memory| memory.waiting.get() == 1);
    guest.disconnect();
    // The server has looked at its sockets by then, and knows.
    (0..3).for_each(|_| server.with(|_| ()));
    guest.write_memory(crate::guest::DATA_AT + (16 << 10), &pattern(9, 4096));
    guest.connect(&server);
    // The service answers the old request: only then is the new connection served.
    release(&server);
    guest.negotiate();
    guest.share_memory();
    guest.share_inflight();
    assert_eq!(guest.status(0, 0), NO_STATUS, "nobody has touched the guest's memory");
    guest.run_rings();
    expect_answers(&mut guest, 0, &[0]);
    let ops = server.with(volume_ops);
    assert_eq!(offsets(&ops), [4096, 4096]);
    assert_eq!(server.with(|memory| memory.read(1, 4096, 4096)), pattern(9, 4096));
}

#[test]
fn stopping_a_ring_waits_for_what_is_under_way() {
    let server = Server::start();
    let mut guest = Guest::start(&server, setup());
    hold(&server, &[1]);
    offer_write(&mut guest, 0, 0, 1);
    server.until("taken", |memory| memory.waiting.get() == 1);
    let mut front = guest.front.take().unwrap();
    let stopping = std::thread::spawn(move || {
        let base = front.get_vring_base(0).unwrap();
        front.set_vring_enable(0, false).unwrap();
        base
    });
    release(&server);
    assert_eq!(stopping.join().unwrap(), 1);
    expect_answers(&mut guest, 0, &[0]);
    assert_eq!(server.with(|memory| memory.read(1, 4096, 4096)), pattern(1, 4096));
}

#[test]
fn a_guest_does_not_hear_that_its_sheep_ends() {
    use proto::client::ClientError;
    let server = Server::start();
    let mut guest = Guest::start(&server, setup());
    server.with(|memory| *memory.fail.borrow_mut() = Some(ClientError::ShuttingDown));
    offer_write(&mut guest, 0, 0, 1);
    // The connection ends instead.
    while guest.front().get_queue_num().is_ok() {}
    assert_eq!(guest.status(0, 0), NO_STATUS);
    guest.disconnect();
    guest.connect(&server);
    guest.negotiate();
    guest.share_memory();
    guest.share_inflight();
    guest.run_rings();
    expect_answers(&mut guest, 0, &[0]);
    assert_eq!(server.with(|memory| memory.read(1, 4096, 4096)), pattern(1, 4096));
    // Who keeps no notes hears of it.
    guest.disconnect();
    let mut guest = Guest::start(&server, Setup::default());
    server.with(|memory| *memory.fail.borrow_mut() = Some(ClientError::ShuttingDown));
    assert_eq!(guest.write(8, &pattern(2, 4096)), FAILED);
}
