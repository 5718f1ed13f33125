//! One store, one member: a copy of a store does not stand beside its original.

use proto::Oid;

use super::super::Refusal;
use super::*;

impl Story {
    fn join(&mut self, info: MemberInfo) -> Option<Refusal> {
        let version = ViewVersion(self.view.version().0 + 1);
        let event = ClusterEvent::Join(info);
        self.view.apply(&LogEntry { version, time_ns: version.0 * 1_000_000_000, event }).refused
    }
}

fn in_use_by(n: u16) -> Option<Refusal> {
    Some(Refusal::StoreInUse { by: id(n) })
}

#[test]
fn a_copied_store_is_no_second_member_while_the_first_is_up() {
    let mut story = Story::of_three();
    let epoch = story.view.epoch();
    let before = story.view.pg(PG).unwrap().clone();
    assert_eq!(story.join(member(7, 2)), in_use_by(1));
    assert!(!story.view.members().contains_key(&id(7)));
    assert_eq!((story.view.epoch(), story.view.pg(PG).unwrap()), (epoch, &before));
    // Whoever has the store may come again, and gateways have none.
    assert_eq!(story.join(member(1, 2)), None);
    let gateway = |n| MemberInfo { space_bytes: 0, ..member(n, 0) };
    assert_eq!(story.join(gateway(8)), None);
    assert_eq!(story.join(gateway(9)), None);
    assert!(story.view.is_up(id(1)) && story.view.is_up(id(8)) && story.view.is_up(id(9)));
}

#[test]
fn a_store_that_has_moved_is_welcome_and_its_old_place_is_refused() {
    let mut story = Story::of_three();
    story.lose(&[1]);
    assert_eq!(story.join(member(7, 2)), None);
    assert_eq!(story.in_sync(), vec![id(0), id(2)], "it has to catch up");
    assert_eq!(story.join(member(1, 2)), in_use_by(7));
    assert!(!story.view.is_up(id(1)) && story.view.is_up(id(7)));
    // It moves back.
    story.lose(&[7]);
    assert_eq!(story.join(member(1, 2)), None);
    assert!(story.view.is_up(id(1)) && !story.view.is_up(id(7)));
}

#[test]
fn who_comes_again_with_a_store_in_use_is_gone() {
    let mut story = Story::of_three();
    let epoch = story.view.epoch().0;
    // Its earlier life is over, whether or not that was told.
    assert_eq!(story.join(member(2, 1)), in_use_by(0));
    assert!(!story.view.is_up(id(2)));
    assert_eq!(story.in_sync(), vec![id(0), id(1)]);
    assert_eq!(story.view.epoch().0, epoch + 1);
    assert_eq!(story.view.members()[&id(2)].info.store_id, 3, "what it held is where it was");
    assert_eq!(story.join(member(2, 3)), None);
}

#[test]
fn a_moved_store_keeps_what_its_old_place_may_come_back_for() {
    let mut story = Story::of_three();
    let vid = story.create(b"alice");
    let oid = (0..64).map(|n| Oid::data(vid, n)).find(|oid| story.view.pg_of(*oid) == Some(PG)).unwrap();
    // Its copy is one of those that have everything; nobody needs another place for it.
    story.lose(&[0, 1, 2]);
    assert_eq!(story.in_sync(), vec![id(0), id(1), id(2)]);
    // So small that no place falls to them.
    let small = |n, store_id| MemberInfo { space_bytes: 1 << 20, ..member(n, store_id) };
    story.join(small(7, 2));
    story.join(small(8, 99));
    assert!(!story.view.pg(PG).unwrap().targets.contains(&id(7)));
    assert!(!story.view.is_garbage(id(7), oid));
    assert!(story.view.is_garbage(id(8), oid), "it never had a place there");
}

#[test]
fn a_store_that_moves_does_not_go_on_where_it_was() {
    let mut story = Story::of_three();
    story.lose(&[1]);
    assert!(story.view.pg(PG).unwrap().absent_since(id(1)).is_some());
    assert_eq!(story.join(member(7, 2)), None);
    assert!(story.view.pg(PG).unwrap().absent_since(id(1)).is_none(), "it fetches all, should it move back");
}

#[test]
fn of_a_foreign_store_the_cluster_keeps_nothing() {
    let mut story = Story::of_three();
    let ctime = story.view.format().unwrap().ctime;
    let before = story.view.clone();
    for (node, store_id) in [(7, 99), (1, 99), (1, 2)] {
        let epoch = story.view.epoch().0;
        let was_up = story.view.is_up(id(node));
        let foreign = MemberInfo { formatted: Some(ctime + 1), ..member(node, store_id) };
        assert_eq!(story.join(foreign), Some(Refusal::Foreign));
        assert!(!story.view.is_up(id(node)));
        assert_eq!(story.view.members().len(), 3);
        assert_eq!(story.view.epoch().0, epoch + u32::from(was_up));
    }
    // The node at that address has ended; that its data is gone is not taken from this.
    assert_eq!(story.view.members()[&id(1)].info, before.members()[&id(1)].info);
    assert!(story.view.pg(PG).unwrap().absent_since(id(1)).is_some());
    assert_eq!(story.join(MemberInfo { formatted: Some(ctime), ..member(1, 2) }), None);
    story.lose(&[1]);
    assert_eq!(story.join(member(1, 2)), None, "one that has nothing yet");
}

#[test]
fn an_older_copy_of_a_store_is_refused_wherever_it_is_started() {
    let mut story = Story::of_three();
    let started = |n, starts| MemberInfo { starts, ..member(n, 2) };
    // A kill in between, and a start that came to nothing.
    for starts in [1, 2, 4] {
        assert_eq!(story.join(started(1, starts)), None);
    }
    story.lose(&[1]);
    let before = story.view.pg(PG).unwrap().clone();
    for (node, starts) in [(1, 4), (1, 1), (7, 3), (7, 4)] {
        assert_eq!(story.join(started(node, starts)), Some(Refusal::Outdated { last: id(1) }), "{starts}");
        assert!(!story.view.is_up(id(node)));
        assert_eq!(story.view.pg(PG).unwrap(), &before);
    }
    assert_eq!(story.view.members().len(), 3);
    // It moves, and what is left in its old place is older.
    assert_eq!(story.join(started(7, 5)), None);
    story.lose(&[7]);
    assert_eq!(story.join(started(1, 5)), Some(Refusal::Outdated { last: id(7) }));
    assert_eq!(story.join(started(1, 6)), None);
    assert_eq!(story.join(MemberInfo { starts: 1, ..member(2, 99) }), None, "another store counts anew");
}
