//! Rules of the view that protect data, one by one.

use std::net::Ipv4Addr;

use proto::client::{ClientError, ClusterStatus, Selector};
use proto::cluster::{Action, ClusterEvent, FormatOptions, LogEntry, MemberInfo, Proposal};
use proto::{CopyPolicy, Generation, Incarnation, NodeId, PgId, PoolId, Since, Vid, ViewVersion, ZoneId};

use super::{Accepted, Outcome, View};

const PG: PgId = PgId { pool: PoolId(0), index: 0 };

fn id(n: u16) -> NodeId {
    NodeId::new(Ipv4Addr::LOCALHOST.into(), 7000 + n)
}

fn member(n: u16, store_id: u64) -> MemberInfo {
    MemberInfo {
        id: id(n),
        zone: ZoneId(n.into()),
        space_bytes: 1 << 40,
        fixed_vnodes: None,
        store_id,
        life: 0,
        io_addr: None,
    }
}

/// A view and the order in which it hears things.
#[derive(Default)]
struct Story {
    view: View,
}

impl Story {
    /// Three members, three copies, formatted.
    fn of_three() -> Story {
        let mut story = Story::default();
        for n in 0..3 {
            story.hear(ClusterEvent::Join(member(n, u64::from(n) + 1)));
        }
        let policy = CopyPolicy::Replicated { copies: 3 };
        let format = FormatOptions { ctime: 1, policy, block_size_shift: 22, flags: 0, pg_count: 4 };
        assert_eq!(story.propose(0, Action::Format(format)), Ok(Accepted::Done));
        story
    }

    fn hear(&mut self, event: ClusterEvent) -> Option<Outcome> {
        let version = ViewVersion(self.view.version().0 + 1);
        let applied = self.view.apply(&LogEntry { version, time_ns: version.0 * 1_000_000_000, event });
        applied.outcomes.into_iter().next().map(|(_, _, _, outcome)| outcome)
    }

    fn propose(&mut self, n: u16, action: Action) -> Outcome {
        let incarnation = self.view.incarnation(id(n)).expect("a member proposes");
        let proposal = Proposal { id: 0, action };
        self.hear(ClusterEvent::Message { from: id(n), incarnation, proposal }).expect("it is alive")
    }

    fn lose(&mut self, nodes: &[u16]) {
        let lives =
            nodes.iter().map(|n| (id(*n), self.view.incarnation(id(*n)).expect("it is up"))).collect();
        self.hear(ClusterEvent::Leave(lives));
    }

    fn create(&mut self, name: &[u8]) -> Vid {
        let action =
            Action::CreateVdi { name: name.to_vec(), size: 1 << 30, policy: None, block_size_shift: None };
        match self.propose(0, action) {
            Ok(Accepted::Vdi(vid)) => vid,
            other => panic!("{other:?}"),
        }
    }

    fn in_sync(&self) -> Vec<NodeId> {
        let mut nodes = self.view.pg(PG).expect("formatted").in_sync.clone();
        nodes.sort();
        nodes
    }

    fn since(&self) -> Since {
        self.view.pg(PG).expect("formatted").since
    }
}

#[test]
fn a_lost_copy_leaves_the_set_and_writes_go_on() {
    let mut story = Story::of_three();
    assert_eq!(story.in_sync(), vec![id(0), id(1), id(2)]);
    story.lose(&[2]);
    assert_eq!(story.in_sync(), vec![id(0), id(1)]);
    assert!(story.view.is_writable(PG));
}

#[test]
fn below_min_copies_the_set_stays_and_writes_wait() {
    let mut story = Story::of_three();
    story.lose(&[2]);
    story.lose(&[1]);
    assert_eq!(story.in_sync(), vec![id(0), id(1)]);
    assert!(!story.view.is_writable(PG));
    story.hear(ClusterEvent::Join(member(1, 2)));
    assert!(story.view.is_writable(PG));
}

#[test]
fn a_power_loss_of_all_changes_no_set() {
    let mut story = Story::of_three();
    story.lose(&[0, 1, 2]);
    for n in 0..3 {
        story.hear(ClusterEvent::Join(member(n, u64::from(n) + 1)));
    }
    assert_eq!(story.in_sync(), vec![id(0), id(1), id(2)]);
    assert!(story.view.is_writable(PG));
    assert_eq!(story.view.epoch().0, 1, "the members of the last epoch came back");
}

#[test]
fn a_member_with_an_empty_store_is_in_sync_with_nothing() {
    let mut story = Story::of_three();
    story.lose(&[2]);
    story.lose(&[1]);
    story.hear(ClusterEvent::Join(member(1, 99)));
    assert_eq!(story.in_sync(), vec![id(0)]);
}

#[test]
fn a_pg_whose_only_copy_came_back_empty_serves_nothing() {
    let mut story = Story::of_three();
    story.lose(&[1, 2]);
    story.hear(ClusterEvent::Join(member(1, 98)));
    story.hear(ClusterEvent::Join(member(2, 99)));
    story.lose(&[0]);
    story.hear(ClusterEvent::Join(member(0, 97)));
    assert_eq!(story.in_sync(), vec![]);
    assert_eq!(story.view.status(), ClusterStatus::WaitForJoin);
    assert!(!story.view.is_writable(PG));
}

#[test]
fn a_copy_is_dropped_only_against_the_current_since_and_never_below_min_copies() {
    let mut story = Story::of_three();
    let since = story.since();
    story.propose(0, Action::DropCopies { node: id(1), pgs: vec![(PG, Since(since.0 - 1))] }).unwrap();
    assert_eq!(story.in_sync().len(), 3);
    story.propose(0, Action::DropCopies { node: id(1), pgs: vec![(PG, since)] }).unwrap();
    assert_eq!(story.in_sync(), vec![id(0), id(2)]);
    let since = story.since();
    story.propose(0, Action::DropCopies { node: id(2), pgs: vec![(PG, since)] }).unwrap();
    assert_eq!(story.in_sync(), vec![id(0), id(2)], "two copies are the least");
}

#[test]
fn a_dropped_copy_returns_only_through_the_attempt_that_was_awaited() {
    let mut story = Story::of_three();
    let since = story.since();
    story.propose(0, Action::DropCopies { node: id(1), pgs: vec![(PG, since)] }).unwrap();
    let since = story.since();
    story.propose(1, Action::StartCatchUp { pgs: vec![(PG, since)] }).unwrap();
    let first = story.since();
    assert!(story.view.pg(PG).unwrap().is_catching(id(1)));
    story.propose(0, Action::DropCopies { node: id(1), pgs: vec![(PG, first)] }).unwrap();
    let since = story.since();
    story.propose(1, Action::StartCatchUp { pgs: vec![(PG, since)] }).unwrap();
    let second = story.since();
    story.propose(1, Action::FinishCatchUp { pgs: vec![(PG, first)] }).unwrap();
    assert_eq!(story.in_sync(), vec![id(0), id(2)], "the first attempt was dropped");
    story.propose(1, Action::FinishCatchUp { pgs: vec![(PG, second)] }).unwrap();
    assert_eq!(story.in_sync(), vec![id(0), id(1), id(2)]);
}

#[test]
fn one_of_several_who_want_a_session_gets_it() {
    let mut story = Story::of_three();
    let vid = story.create(b"alice");
    assert_eq!(vid, Vid(0xa03907));
    let open = |last| Action::OpenSession { vid, last: Generation(last) };
    assert_eq!(story.propose(1, open(0)), Ok(Accepted::Session { generation: Generation(1) }));
    assert_eq!(story.propose(2, open(0)), Ok(Accepted::Refused));
    assert_eq!(story.propose(2, open(1)), Ok(Accepted::Refused), "the owner is alive");
    story.lose(&[1]);
    assert_eq!(story.view.session(vid).owner, None);
    assert_eq!(story.view.session(vid).clean, Generation(0), "it did not end cleanly");
    assert_eq!(story.propose(2, open(1)), Ok(Accepted::Session { generation: Generation(2) }));
}

/// Spec section 7.6; and a member that has gone releases all that it held.
#[test]
fn a_lock_is_released_by_whom_old_clients_expect() {
    let mut story = Story::of_three();
    let policy = CopyPolicy::Replicated { copies: 3 };
    let flags = super::FLAG_USE_LOCK;
    let format = FormatOptions { ctime: 2, policy, block_size_shift: 22, flags, pg_count: 4 };
    assert_eq!(story.propose(0, Action::Format(format)), Ok(Accepted::Done));
    let vid = story.create(b"disk");
    let lock = |shared| Action::LockVdi { vid, shared };
    let unlock = |shared| Action::UnlockVdi { vid, shared };
    let (done, locked) = (Ok(Accepted::Done), Err(ClientError::Locked));
    for (n, action, expected) in [
        (0, lock(false), &done),
        (0, lock(false), &locked),
        (1, lock(true), &locked),
        (1, unlock(true), &done),
        (1, lock(false), &locked),
        // A normal one by anybody.
        (1, unlock(false), &done),
        (1, lock(true), &done),
        (2, lock(true), &done),
        (2, lock(true), &locked),
        // Shared ones through their holders only, however it is asked.
        (0, unlock(false), &done),
        (0, unlock(true), &done),
        (0, lock(false), &locked),
        (1, unlock(true), &done),
        (0, lock(false), &locked),
    ] {
        assert_eq!(story.propose(n, action.clone()), *expected, "{n} {action:?}");
    }
    story.lose(&[2]);
    assert_eq!(story.propose(0, lock(false)), done);
}

/// tgt notices a snapshot some time later, and then locks the new head, to which its lock has moved at once.
#[test]
fn shared_locks_move_with_a_snapshot_and_are_taken_again_once() {
    let mut story = Story::of_three();
    let policy = CopyPolicy::Replicated { copies: 3 };
    let flags = super::FLAG_USE_LOCK;
    let format = FormatOptions { ctime: 2, policy, block_size_shift: 22, flags, pg_count: 4 };
    assert_eq!(story.propose(0, Action::Format(format)), Ok(Accepted::Done));
    let vid = story.create(b"disk");
    let lock = |vid, shared| Action::LockVdi { vid, shared };
    let (done, locked) = (Ok(Accepted::Done), Err(ClientError::Locked));
    for n in 0..2 {
        assert_eq!(story.propose(n, lock(vid, true)), done);
    }
    let snapshot = Action::Snapshot { vids: vec![vid], tag: b"s".to_vec() };
    story.propose(2, snapshot).unwrap();
    let head = story.view.vdi(vid).unwrap().successor.expect("nobody had to come to rest");
    for (n, vid, shared, expected) in [
        (2, vid, false, &done),
        (2, head, false, &locked),
        (0, head, false, &locked),
        (0, head, true, &done),
        (0, head, true, &locked),
        (2, head, true, &done),
        (2, head, true, &locked),
    ] {
        assert_eq!(story.propose(n, lock(vid, shared)), *expected, "{n} {vid} {shared}");
    }
    // Who has let go holds nothing that it could take again.
    story.propose(1, Action::UnlockVdi { vid: head, shared: true }).unwrap();
    assert_eq!(story.propose(1, lock(head, true)), done);
    assert_eq!(story.propose(1, lock(head, true)), locked);
}

#[test]
fn a_message_of_a_life_that_is_over_does_nothing() {
    let mut story = Story::of_three();
    let old = story.view.incarnation(id(1)).unwrap();
    story.hear(ClusterEvent::Join(member(1, 2)));
    let action = Action::CreateVdi { name: b"x".to_vec(), size: 0, policy: None, block_size_shift: None };
    let proposal = Proposal { id: 1, action };
    let outcome = story.hear(ClusterEvent::Message { from: id(1), incarnation: old, proposal });
    assert_eq!(outcome, None);
    assert_eq!(story.view.lookup(b"x", &Selector::Working), Err(ClientError::NoVdi));
    assert_ne!(story.view.incarnation(id(1)), Some(Incarnation(old.0)));
}

#[test]
fn colliding_names_get_neighbouring_vids_and_a_deleted_vid_is_never_given_again() {
    let mut story = Story::of_three();
    assert_eq!(story.create(b"vm-13859"), Vid(0x64283b));
    assert_eq!(story.create(b"vm-46484"), Vid(0x64283c));
    story.propose(0, Action::DeleteVdi { vid: Vid(0x64283b) }).unwrap();
    assert_eq!(story.create(b"vm-13859"), Vid(0x64283d));
}

#[test]
fn bad_names_and_sizes_are_refused() {
    let mut story = Story::of_three();
    let mut create = |name: &[u8], size| {
        let action = Action::CreateVdi { name: name.to_vec(), size, policy: None, block_size_shift: None };
        story.propose(0, action)
    };
    assert_eq!(create(b"", 1), Err(ClientError::InvalidParameters));
    assert_eq!(create(&[b'x'; 256], 1), Err(ClientError::InvalidParameters));
    assert_eq!(create(b"big", (16 << 50) + 1), Err(ClientError::InvalidParameters));
    assert!(create(b"largest", 16 << 50).is_ok());
    assert_eq!(create(b"largest", 1), Err(ClientError::VdiExists));
}

#[test]
fn pages_of_a_table_are_entered_while_it_can_change_and_are_taken_over() {
    let mut story = Story::of_three();
    let vid = story.create(b"alice");
    let pages = |story: &Story, vid: Vid| story.view.vdi(vid).unwrap().pages.clone();
    assert_eq!(story.propose(1, Action::EnterPage { vid, page: 4095 }), Ok(Accepted::Done));
    assert_eq!(story.propose(1, Action::EnterPage { vid, page: 4096 }), Ok(Accepted::Refused));
    let snapshot = Action::Snapshot { vids: vec![vid], tag: vec![] };
    let Ok(Accepted::Vdis(heads)) = story.propose(0, snapshot) else { panic!("no snapshot") };
    assert_eq!(story.propose(1, Action::EnterPage { vid, page: 7 }), Ok(Accepted::Refused));
    assert_eq!(story.propose(1, Action::EnterPage { vid: heads[0], page: 7 }), Ok(Accepted::Done));
    let clone = Action::CloneVdi { base: vid, name: b"copy".to_vec(), size: None, policy: None };
    let Ok(Accepted::Vdi(copy)) = story.propose(2, clone) else { panic!("no clone") };
    assert_eq!(pages(&story, copy), pages(&story, vid));
    let next = |vid, page| pages(&story, vid).next(page);
    assert_eq!((next(vid, 1), next(heads[0], 1), next(heads[0], 8)), (Some(4095), Some(7), Some(4095)));
}

#[test]
fn a_view_survives_its_snapshot() {
    let mut story = Story::of_three();
    let vid = story.create(b"alice");
    story.propose(0, Action::EnterPage { vid, page: 70 }).unwrap();
    let bytes = postcard::to_stdvec(&story.view).unwrap();
    assert_eq!(postcard::from_bytes::<View>(&bytes).unwrap(), story.view);
}
