//! What the store keeps in memory of what is not home yet is bounded, however large its journal.

mod common;

use common::*;
use proto::Oid;
use proto::object::*;
use store::testing::{SimDisk, written_blocks};
use store::{FormatOptions, IoOp, Store};

/// 64 MiB.
const BOUND: usize = 16384;
const RUN: u32 = 8;

#[test]
fn writes_wait_when_too_much_is_not_home_and_go_on_when_some_is() {
    let options = FormatOptions { size_bytes: 512 << 20, journal_bytes: 160 << 20, store_id: 3 };
    let mut disk = SimDisk::new(options.size_bytes);
    Store::format(&mut disk, &options).unwrap();
    let mut machine = Machine::open(disk).unwrap();
    let writes = BOUND as u32 / RUN + 300;
    let place = |n: u32| (Oid(100 + u64::from(n / 128)), n % 128 * RUN);
    for n in 0..writes {
        let (oid, first) = place(n);
        machine.submit(write(oid, first, &[n as Value + 1; RUN as usize], WriteBase::Keep));
        // What is durable goes on; what goes home does not.
        let is_durable =
            |id: &_| matches!(machine.disk.pending_op(*id), Some(IoOp::Write { durable: true, .. }));
        let journal: Vec<_> = machine.disk.pending().into_iter().filter(is_durable).collect();
        journal.into_iter().for_each(|id| machine.complete(id));
        assert!(written_blocks(&machine.store) <= BOUND);
    }
    assert_eq!(written_blocks(&machine.store), BOUND);
    assert_eq!(machine.replies.len(), BOUND / RUN as usize, "the others wait");
    machine.run();
    assert_eq!(machine.replies.len(), writes as usize);
    assert!(machine.replies.values().all(|reply| *reply == ObjectReply::Done));
    machine.store.assert_invariants();
    machine.crash();
    for n in 0..writes {
        let (oid, first) = place(n);
        assert_eq!(machine.read(oid, first, RUN), Some(vec![n as Value + 1; RUN as usize]), "{n}");
    }
}
