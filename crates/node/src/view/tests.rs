//! Rules of the view that protect data, one by one.

use proto::client::{ClientError, ClusterStatus, Out, Selector};
use proto::cluster::{Action, ClusterEvent, FormatOptions, LogEntry, MemberInfo, Proposal};
use proto::{CopyPolicy, Generation, Incarnation, NodeId, PgId, PoolId, Since, Vid, ViewVersion, ZoneId};

use super::fixture::{self, id};
use super::{Accepted, Outcome, View};

mod export_names;
mod one_store;
mod stop;

const PG: PgId = PgId { pool: PoolId(0), index: 0 };

fn member(n: u16, store_id: u64) -> MemberInfo {
    MemberInfo { store_id, ..fixture::member(n) }
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
fn where_copies_belonged_is_told_for_every_epoch() {
    let mut story = Story::of_three();
    let pg = |index| PgId { index, ..PG };
    let targets = |story: &Story| -> Vec<Vec<NodeId>> {
        (0..4).map(|index| story.view.pg(pg(index)).unwrap().targets.clone()).collect()
    };
    let first = targets(&story);
    // Down is not out: it keeps its place.
    story.lose(&[2]);
    story.hear(ClusterEvent::Join(member(3, 4)));
    let last = targets(&story);
    assert_ne!(first, last);
    for index in 0..4 {
        let track = story.view.track(pg(index));
        let places: Vec<_> = track.places.iter().map(|at| (at.epoch.0, &at.nodes)).collect();
        let at = index as usize;
        assert_eq!(places, [(3, &last[at]), (2, &first[at]), (1, &first[at])]);
        assert_eq!(track.unknown_epochs, 0);
    }
}

#[test]
fn of_epochs_before_its_pool_existed_nothing_is_told_of_a_pg() {
    let mut story = Story::of_three();
    story.lose(&[2]);
    let policy = Some(CopyPolicy::Replicated { copies: 2 });
    let name = b"two".to_vec();
    story.propose(0, Action::CreateVdi { name, size: 1, policy, block_size_shift: None }).unwrap();
    let track = story.view.track(PgId { pool: PoolId(1), ..PG });
    assert_eq!((track.places.len(), track.unknown_epochs), (1, 1));
}

impl Story {
    /// A VDI that was frozen, its new head, and a VDI beside it that is to take its place.
    fn with_copy() -> (Story, Vid, Vid, Vid) {
        let mut story = Story::of_three();
        let base = story.create(b"v");
        let copy = story.create(b"copy");
        let action = Action::SetAttribute {
            name: b"v".to_vec(),
            key: b"k".to_vec(),
            value: b"value".to_vec(),
            exclusive: false,
        };
        story.propose(0, action).unwrap();
        let outcome = story.propose(0, Action::Snapshot { vids: vec![base], tag: b"t".to_vec() });
        let Ok(Accepted::Vdis(heads)) = outcome else { panic!("{outcome:?}") };
        (story, base, heads[0], copy)
    }
}

#[test]
fn a_copy_takes_the_place_of_what_nobody_has_opened_since() {
    let (mut story, base, head, copy) = Story::with_copy();
    let next = story.view.vdi(head).unwrap().snap_id;
    assert_ne!(story.view.vdi(copy).unwrap().snap_id, next);
    assert_eq!(story.propose(0, Action::TakePlace { old: head, new: copy }), Ok(Accepted::Vdi(copy)));
    assert_eq!(story.view.vdi(copy).unwrap().snap_id, next, "an id of the name is not given twice");
    assert_eq!(story.view.lookup(b"v", &Selector::Working), Ok(copy));
    assert_eq!(story.view.lookup(b"v", &Selector::SnapId(1)), Err(ClientError::NoTag));
    assert_eq!(story.view.lookup(b"copy", &Selector::Working), Err(ClientError::NoVdi));
    assert!(story.view.vdi(base).is_none() && story.view.vdi(head).is_none());
    assert_eq!(story.view.attribute(b"v", b"k"), Ok(&b"value"[..]));
}

#[test]
fn what_may_have_been_written_to_keeps_its_place() {
    // Open, closed again, resized, snapshotted once more, or the copy is none.
    let open = |head| Action::OpenSession { vid: head, last: Generation(0) };
    for number in 0..5 {
        let (mut story, _, head, copy) = Story::with_copy();
        let expect = match number {
            0 => {
                story.propose(1, open(head)).unwrap();
                ClientError::InUse(id(1))
            }
            1 => {
                story.propose(1, open(head)).unwrap();
                story.propose(1, Action::CloseSession { vid: head, generation: Generation(1) }).unwrap();
                ClientError::Busy
            }
            2 => {
                story.propose(1, Action::ResizeVdi { vid: head, size: 2 << 30 }).unwrap();
                ClientError::InvalidParameters
            }
            3 => {
                story.propose(1, Action::Snapshot { vids: vec![head], tag: vec![] }).unwrap();
                ClientError::InvalidParameters
            }
            _ => {
                story.propose(1, Action::Snapshot { vids: vec![copy], tag: vec![] }).unwrap();
                ClientError::InvalidParameters
            }
        };
        let names = |story: &Story| story.view.vdis().values().map(|v| v.name.clone()).collect::<Vec<_>>();
        let before = names(&story);
        assert_eq!(story.propose(0, Action::TakePlace { old: head, new: copy }), Err(expect), "{number}");
        assert_eq!(names(&story), before);
    }
    // Another snapshot of the name would lose its head.
    let (mut story, _, head, copy) = Story::with_copy();
    let outcome = story.propose(0, Action::Snapshot { vids: vec![head], tag: b"u".to_vec() });
    let Ok(Accepted::Vdis(heads)) = outcome else { panic!("{outcome:?}") };
    let outcome = story.propose(0, Action::TakePlace { old: heads[0], new: copy });
    assert_eq!(outcome, Err(ClientError::Busy));
}

#[test]
fn the_default_number_of_copies_counts_for_later_vdis_only() {
    let mut story = Story::of_three();
    let first = story.create(b"first");
    let policy = CopyPolicy::Replicated { copies: 2 };
    assert_eq!(story.propose(0, Action::SetDefaultPolicy { policy }), Ok(Accepted::Done));
    let second = story.create(b"second");
    let width = |vid| story.view.vdi(vid).unwrap().policy.width();
    assert_eq!((width(first), width(second)), (3, 2));
    let none = CopyPolicy::Replicated { copies: 0 };
    assert!(story.propose(0, Action::SetDefaultPolicy { policy: none }).is_err());
}

#[test]
fn health_tells_which_copies_are_missing_and_whom_writes_wait_for() {
    let mut story = Story::of_three();
    let pool = |story: &Story| story.view.health().pools[0];
    assert_eq!((pool(&story).targets_min, pool(&story).copies_min, pool(&story).degraded), (3, 3, 0));
    story.lose(&[2]);
    let numbers = |p: proto::client::PoolHealth| (p.copies_min, p.degraded, p.unwritable, p.unreadable);
    assert_eq!(numbers(pool(&story)), (2, 4, 0, 0));
    let member = |story: &Story, n: usize| story.view.health().members[n];
    assert_eq!(
        (member(&story, 2).is_up, member(&story, 2).pgs, member(&story, 2).pgs_awaiting),
        (false, 4, 0)
    );
    story.lose(&[1]);
    assert_eq!(numbers(pool(&story)), (1, 4, 4, 0));
    assert_eq!((member(&story, 1).pgs_in_sync, member(&story, 1).pgs_awaiting), (4, 4));
    assert_eq!(member(&story, 2).pgs_awaiting, 0, "it has been done without");
    story.lose(&[0]);
    assert_eq!(numbers(pool(&story)), (0, 4, 4, 4));
}

#[test]
fn copies_on_their_way_to_another_place_are_not_missing() {
    let mut story = Story::of_three();
    story.hear(ClusterEvent::Join(member(3, 4)));
    let pool = story.view.health().pools[0];
    assert_eq!(pool.degraded, 0);
    assert!(pool.moving > 0);
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

fn targets(story: &Story) -> Vec<NodeId> {
    let mut targets = story.view.pg(PG).expect("formatted").targets.clone();
    targets.sort();
    targets
}

/// Of any PG.
fn is_target(story: &Story, n: u16) -> bool {
    story.view.pools().iter().flat_map(|pool| &pool.pgs).any(|pg| pg.targets.contains(&id(n)))
}

fn left(story: &Story, n: u16) -> ViewVersion {
    story.view.members()[&id(n)].left
}

/// Five members, three copies.
fn story_of_five() -> Story {
    let mut story = Story::default();
    for n in 0..5 {
        story.hear(ClusterEvent::Join(member(n, u64::from(n) + 1)));
    }
    let policy = CopyPolicy::Replicated { copies: 3 };
    let format = FormatOptions { ctime: 1, policy, block_size_shift: 22, flags: 0, pg_count: 4 };
    assert_eq!(story.propose(0, Action::Format(format)), Ok(Accepted::Done));
    story
}

fn number_of(node: NodeId) -> u16 {
    node.port - 7000
}

#[test]
fn a_snapshot_of_one_name_becomes_one_of_another_and_leaves_the_working_vdi_alone() {
    let mut story = Story::of_three();
    let freeze = |story: &mut Story, vid: Vid, tag: &[u8]| {
        story.propose(0, Action::Snapshot { vids: vec![vid], tag: tag.to_vec() }).unwrap();
        story.view.vdis()[&vid].successor.expect("frozen at once")
    };
    let base = story.create(b"disk");
    let head = freeze(&mut story, base, b"one");
    let copy = story.create(b"copy");
    let adopt = |snapshot, name: &[u8], tag: &[u8]| Action::Adopt {
        snapshot,
        name: name.to_vec(),
        tag: tag.to_vec(),
    };
    assert_eq!(story.propose(0, adopt(copy, b"disk", b"two")), Err(ClientError::NotASnapshot));
    let rest = freeze(&mut story, copy, b"");
    assert_eq!(story.propose(0, adopt(copy, b"disk", b"two")), Err(ClientError::Busy), "its head is there");
    story.propose(0, Action::DeleteVdi { vid: rest }).unwrap();
    assert_eq!(story.propose(0, adopt(copy, b"nosuch", b"two")), Err(ClientError::NoVdi));
    assert_eq!(story.propose(0, adopt(copy, b"disk", b"one")), Err(ClientError::TagExists));
    // Somebody has the working VDI open, and goes on.
    story.propose(1, Action::OpenSession { vid: head, last: Generation(0) }).unwrap();
    let session = story.view.session(head);
    assert_eq!(story.propose(0, adopt(copy, b"disk", b"two")), Ok(Accepted::Vdi(copy)));
    assert_eq!(story.propose(0, adopt(copy, b"disk", b"two")), Ok(Accepted::Vdi(copy)), "asked twice");
    assert_eq!(story.view.working_vdi(b"disk"), Some(head));
    assert_eq!(story.view.session(head), session);
    assert_eq!(story.view.lookup(b"disk", &Selector::Tag(b"two".to_vec())), Ok(copy));
    assert_eq!(story.view.lookup(b"disk", &Selector::SnapId(2)), Ok(copy));
    assert_eq!(story.view.lookup(b"copy", &Selector::Working), Err(ClientError::NoVdi));
}

#[test]
fn a_member_that_is_down_keeps_its_place_until_it_is_out_and_gets_it_back() {
    let mut story = story_of_five();
    let before = targets(&story);
    let victim = number_of(before[0]);
    let witness = (0..5).find(|n| *n != victim).unwrap();
    story.lose(&[victim]);
    assert_eq!(targets(&story), before);
    let out = Action::TimeOut { node: id(victim), left: left(&story, victim) };
    let late = Action::TimeOut { node: id(victim), left: ViewVersion(left(&story, victim).0 - 1) };
    assert_eq!(story.propose(witness, late), Ok(Accepted::Refused), "that was another absence");
    assert_eq!(story.propose(witness, out), Ok(Accepted::Done));
    assert!(!targets(&story).contains(&id(victim)) && targets(&story).len() == 3);
    assert_eq!(story.in_sync(), before[1..], "nothing is there yet");
    assert_eq!(story.view.pg(PG).unwrap().absent_since(id(victim)), None);
    assert!(!is_target(&story, victim));
    story.hear(ClusterEvent::Join(member(victim, u64::from(victim) + 1)));
    assert!(is_target(&story, victim));
}

#[test]
fn what_an_operator_put_out_stays_out_until_an_operator_says_otherwise() {
    let mut story = story_of_five();
    let victim = number_of(targets(&story)[1]);
    let out = |out| Action::SetOut { node: id(victim), out };
    assert_eq!(story.propose(victim, out(true)), Ok(Accepted::Done));
    assert!(!targets(&story).contains(&id(victim)));
    assert!(story.in_sync().contains(&id(victim)), "it is the source");
    story.lose(&[victim]);
    story.hear(ClusterEvent::Join(member(victim, u64::from(victim) + 1)));
    assert!(!targets(&story).contains(&id(victim)));
    assert_eq!(story.propose(victim, out(false)), Ok(Accepted::Done));
    assert!(is_target(&story, victim));
    let unknown = Action::SetOut { node: id(99), out: true };
    assert_eq!(story.propose(victim, unknown), Err(ClientError::NoNode));
}

#[test]
fn the_few_do_not_give_up_the_many() {
    let mut story = story_of_five();
    story.lose(&[1, 2, 3, 4]);
    let mut given_up = 0;
    for n in 1..5 {
        let out = Action::TimeOut { node: id(n), left: left(&story, n) };
        given_up += u32::from(story.propose(0, out) == Ok(Accepted::Done));
    }
    assert_eq!(given_up, 2);
    let disabled = proto::cluster::RepairChange { enabled: Some(false), ..Default::default() };
    let mut story = story_of_five();
    story.propose(0, Action::SetRepair(disabled)).unwrap();
    story.lose(&[1]);
    let out = Action::TimeOut { node: id(1), left: left(&story, 1) };
    assert_eq!(story.propose(0, out), Ok(Accepted::Refused));
}

#[test]
fn forced_recovery_goes_on_from_the_copy_that_left_last() {
    let mut story = Story::of_three();
    assert_eq!(story.propose(0, Action::ForceRecovery), Err(ClientError::NotStuck));
    story.lose(&[2]);
    // Both others have what was acknowledged since; now only the older copy is there.
    story.lose(&[0, 1]);
    story.hear(ClusterEvent::Join(member(2, 3)));
    assert_eq!(story.in_sync(), vec![id(0), id(1)]);
    assert!(!story.view.is_writable(PG));
    assert_eq!(story.propose(2, Action::ForceRecovery), Ok(Accepted::Done));
    assert_eq!(story.in_sync(), vec![id(2)]);
    assert_eq!(targets(&story), vec![id(2)]);
    assert!(story.view.is_writable(PG));
    let out = |story: &Story| story.view.members()[&id(0)].out;
    assert_eq!(out(&story), Some(Out::ByForce));
    // Who comes back has to forget what it has.
    story.hear(ClusterEvent::Join(member(0, 1)));
    assert_eq!(out(&story), None);
    assert_eq!(story.in_sync(), vec![id(2)]);
    assert_eq!(story.view.pg(PG).unwrap().absent_since(id(0)), None);
}

#[test]
fn forced_recovery_begins_anew_where_all_places_are_gone() {
    let mut story = story_of_five();
    let lost: Vec<u16> = targets(&story).iter().map(|node| number_of(*node)).collect();
    story.lose(&lost);
    let witness = (0..5).find(|n| !lost.contains(n)).unwrap();
    assert_eq!(story.propose(witness, Action::ForceRecovery), Ok(Accepted::Done));
    assert_eq!(story.in_sync().len(), 1);
    assert!(targets(&story).contains(&story.in_sync()[0]) && story.view.is_writable(PG));
    assert_eq!(story.view.status(), ClusterStatus::Running);
}

#[test]
fn forced_recovery_prefers_a_copy_that_has_everything() {
    let mut story = Story::of_three();
    story.lose(&[2]);
    story.lose(&[1]);
    story.hear(ClusterEvent::Join(member(2, 3)));
    assert_eq!(story.propose(0, Action::ForceRecovery), Ok(Accepted::Done));
    assert_eq!(story.in_sync(), vec![id(0)]);
    assert_eq!(targets(&story), vec![id(0), id(2)]);
}

#[test]
fn a_failed_disk_leaves_the_sets_and_its_member_stays_as_a_gateway() {
    let mut story = Story::of_three();
    assert_eq!(story.propose(1, Action::DiskFailed { store_id: 9 }), Ok(Accepted::Refused), "another disk");
    assert_eq!(story.in_sync().len(), 3);
    assert_eq!(story.propose(1, Action::DiskFailed { store_id: 2 }), Ok(Accepted::Done));
    assert_eq!(story.in_sync(), vec![id(0), id(2)]);
    assert_eq!(story.view.pg(PG).unwrap().targets.len(), 2);
    assert!(story.view.is_writable(PG) && story.view.is_up(id(1)));
    let nodes = story.view.node_infos();
    assert_eq!(nodes.iter().map(|n| n.space_bytes > 0).collect::<Vec<_>>(), [true, false, true]);
    let since = story.since();
    story.propose(1, Action::StartCatchUp { pgs: vec![(PG, since)] }).unwrap();
    assert!(!story.view.pg(PG).unwrap().is_catching(id(1)), "it is no target");
    story.hear(ClusterEvent::Join(member(1, 2)));
    assert_eq!(story.view.pg(PG).unwrap().targets.len(), 3, "the disk works again");
    assert_eq!(story.in_sync(), vec![id(0), id(2)], "and lacks what came meanwhile");
}

#[test]
fn the_last_good_copy_on_a_failed_disk_never_passes_silently() {
    // Its disk is repaired: it has everything.
    let mut story = Story::of_three();
    story.lose(&[0]);
    story.lose(&[2]);
    assert_eq!(story.in_sync(), vec![id(1), id(2)]);
    story.propose(1, Action::DiskFailed { store_id: 2 }).unwrap();
    assert_eq!(story.in_sync(), vec![id(1), id(2)]);
    assert!(!story.view.is_writable(PG));
    story.hear(ClusterEvent::Join(member(0, 1)));
    assert_eq!(story.in_sync(), vec![id(1), id(2)], "an older copy does not pass for the data");
    let mut other = Story { view: story.view.clone() };
    story.hear(ClusterEvent::Join(member(1, 2)));
    assert_eq!(story.in_sync(), vec![id(1), id(2)]);
    // The other one of the set joins: it has everything too.
    other.hear(ClusterEvent::Join(member(2, 3)));
    assert_eq!(other.in_sync(), vec![id(2)]);
    // It is replaced, and nobody else has what it had.
    let mut story = Story::of_three();
    story.lose(&[0, 2]);
    story.hear(ClusterEvent::Join(member(0, 98)));
    story.hear(ClusterEvent::Join(member(2, 99)));
    assert_eq!(story.in_sync(), vec![id(1)]);
    story.propose(1, Action::DiskFailed { store_id: 2 }).unwrap();
    assert_eq!(story.in_sync(), vec![id(1)]);
    story.hear(ClusterEvent::Join(member(1, 97)));
    assert_eq!(story.in_sync(), vec![]);
}

#[test]
fn a_copy_that_is_down_is_not_let_go_for_the_sake_of_one_on_a_failed_disk() {
    let of_two = || {
        let mut story = Story::default();
        let gateway = || MemberInfo { space_bytes: 0, ..member(2, 3) };
        [member(0, 1), member(1, 2), gateway()]
            .into_iter()
            .for_each(|m| drop(story.hear(ClusterEvent::Join(m))));
        let policy = CopyPolicy::Replicated { copies: 2 };
        let format = FormatOptions { ctime: 1, policy, block_size_shift: 22, flags: 0, pg_count: 4 };
        story.propose(0, Action::Format(format)).unwrap();
        assert_eq!(story.in_sync(), vec![id(0), id(1)]);
        // The power is lost, and sheep 0 comes back to a disk that has failed.
        story.lose(&[0, 1, 2]);
        story.hear(ClusterEvent::Join(gateway()));
        story.hear(ClusterEvent::Join(member(0, 1)));
        story.propose(0, Action::DiskFailed { store_id: 1 }).unwrap();
        assert_eq!(story.in_sync(), vec![id(0), id(1)]);
        story
    };
    let mut story = of_two();
    let since = story.since();
    story.propose(2, Action::DropCopies { node: id(1), pgs: vec![(PG, since)] }).unwrap();
    story.hear(ClusterEvent::Join(member(1, 2)));
    let after_drop = story.in_sync();
    let mut story = of_two();
    story.lose(&[2]);
    story.hear(ClusterEvent::Join(member(1, 2)));
    let after_leave = story.in_sync();
    assert_eq!([after_drop, after_leave], [[id(1)], [id(1)]], "it has everything that was acknowledged");
}

#[test]
fn the_only_disk_of_a_cluster_may_fail_and_come_back() {
    let mut story = Story::default();
    story.hear(ClusterEvent::Join(member(0, 1)));
    let policy = CopyPolicy::Replicated { copies: 1 };
    let format = FormatOptions { ctime: 1, policy, block_size_shift: 22, flags: 0, pg_count: 4 };
    story.propose(0, Action::Format(format)).unwrap();
    story.propose(0, Action::DiskFailed { store_id: 1 }).unwrap();
    assert_eq!(story.in_sync(), vec![id(0)]);
    story.lose(&[0]);
    story.hear(ClusterEvent::Join(member(0, 1)));
    assert_eq!((story.in_sync(), story.view.pg(PG).unwrap().targets.clone()), (vec![id(0)], vec![id(0)]));
    assert!(story.view.is_writable(PG));
}

#[test]
fn a_copy_that_is_wanted_no_more_is_let_go_when_all_others_are_there() {
    let mut story = Story::of_three();
    story.propose(0, Action::SetOut { node: id(2), out: true }).unwrap();
    assert_eq!(story.in_sync(), vec![id(0), id(1)], "both targets have everything");
    // With one of them away it would be too few to let go of.
    let mut story = Story::of_three();
    story.lose(&[0]);
    story.propose(1, Action::SetOut { node: id(2), out: true }).unwrap();
    assert_eq!(story.in_sync(), vec![id(1), id(2)], "a target lacks something");
    story.hear(ClusterEvent::Join(member(0, 1)));
    let since = story.since();
    story.propose(0, Action::StartCatchUp { pgs: vec![(PG, since)] }).unwrap();
    let started = story.since();
    story.propose(0, Action::FinishCatchUp { pgs: vec![(PG, started)] }).unwrap();
    let mut in_sync = story.in_sync();
    in_sync.sort_unstable();
    assert_eq!(in_sync, vec![id(0), id(1)]);
}
