//! Whether members may be stopped: each case in which a careless answer would cost data.

use std::collections::BTreeSet;

use proto::client::{FewPlaces, Shortfall, StopRisk};

use super::*;

/// Of the four PGs of a pool: (lost, held, short), and how many of them are so already.
fn risk(story: &Story, nodes: &[u16]) -> [(u32, u32); 3] {
    let nodes: BTreeSet<NodeId> = nodes.iter().map(|n| id(*n)).collect();
    let StopRisk { lost, held, short, .. } = story.view.stop_risk(&nodes);
    [lost, held, short].map(|Shortfall { pgs, already }| (pgs, already))
}

/// Of those that have a copy in each of their places.
fn few(story: &Story, nodes: &[u16]) -> FewPlaces {
    story.view.stop_risk(&nodes.iter().map(|n| id(*n)).collect()).few
}

const SAFE: [(u32, u32); 3] = [(0, 0); 3];

fn put_out(story: &mut Story, n: u16) {
    let by = (0..5).find(|n| story.view.is_up(id(*n))).unwrap();
    assert_eq!(story.propose(by, Action::SetOut { node: id(n), out: true }), Ok(Accepted::Done));
}

fn pgs(story: &Story) -> Vec<(PgId, super::super::Pg)> {
    story.view.pg_ids().map(|id| (id, story.view.pg(id).unwrap().clone())).collect()
}

/// Targets that are up and lack a copy begin to make it.
fn begin_catching(story: &mut Story) {
    for (pg, state) in pgs(story) {
        let lacks = |n: &&NodeId| !state.writers().any(|w| w == **n) && story.view.is_up(**n);
        let behind: Vec<NodeId> = state.targets.iter().filter(lacks).copied().collect();
        for node in behind {
            let since = story.view.pg(pg).unwrap().since;
            story.propose(number_of(node), Action::StartCatchUp { pgs: vec![(pg, since)] }).unwrap();
        }
    }
}

/// And end it, of this PG or of all.
fn end_catching(story: &mut Story, only: Option<PgId>) {
    for (pg, state) in pgs(story) {
        for catching in state.catching.iter().filter(|_| only.is_none_or(|only| only == pg)) {
            let pgs = vec![(pg, catching.started)];
            story.propose(number_of(catching.node), Action::FinishCatchUp { pgs }).unwrap();
        }
    }
}

/// One that has copies of all four PGs, of five members with three copies.
fn story_with_busy_node() -> (Story, u16) {
    let mut story = story_of_five();
    story.create(b"alice");
    let copies = |n: u16| pgs(&story).iter().filter(|(_, pg)| pg.in_sync.contains(&id(n))).count();
    let busiest = (0..5).max_by_key(|n| copies(*n)).unwrap();
    (story, busiest)
}

#[test]
fn who_is_needed_may_be_stopped_for_a_while_at_most() {
    let mut story = Story::of_three();
    story.create(b"alice");
    assert_eq!(risk(&story, &[]), SAFE);
    assert_eq!(risk(&story, &[2]), [(0, 0), (0, 0), (4, 0)]);
    assert_eq!(risk(&story, &[1, 2]), [(0, 0), (4, 0), (0, 0)]);
    assert_eq!(risk(&story, &[0, 1, 2]), [(4, 0), (0, 0), (0, 0)]);
}

#[test]
fn a_copy_counts_when_it_is_complete_and_no_sooner() {
    let (mut story, leaving) = story_with_busy_node();
    put_out(&mut story, leaving);
    let (lost, held, short) =
        (risk(&story, &[leaving])[0], risk(&story, &[leaving])[1], risk(&story, &[leaving])[2]);
    assert_eq!((lost, held), ((0, 0), (0, 0)));
    assert!(short.0 > 0 && short.1 == 0, "{short:?}");
    begin_catching(&mut story);
    assert_eq!(risk(&story, &[leaving])[2], short, "copies that are being made do not count");
    let moving = pgs(&story).into_iter().find(|(_, pg)| !pg.catching.is_empty()).unwrap().0;
    end_catching(&mut story, Some(moving));
    assert_eq!(risk(&story, &[leaving])[2], (short.0 - 1, 0));
    end_catching(&mut story, None);
    assert_eq!(risk(&story, &[leaving]), SAFE);
    story.lose(&[leaving]);
    assert_eq!(risk(&story, &[leaving]), SAFE, "it is stopped, and nothing has changed");
    assert_eq!(risk(&story, &[]), SAFE);
}

#[test]
fn a_copy_of_a_node_that_is_down_does_not_count() {
    let (mut story, leaving) = story_with_busy_node();
    put_out(&mut story, leaving);
    begin_catching(&mut story);
    end_catching(&mut story, None);
    let other = number_of(targets(&story)[0]);
    story.lose(&[other]);
    let [lost, held, short] = risk(&story, &[leaving]);
    assert_eq!((lost, held), ((0, 0), (0, 0)));
    assert!(short.0 > 0 && short.1 == short.0, "they lack a copy whether it stops or not: {short:?}");
}

#[test]
fn what_is_down_to_its_last_copies_needs_each() {
    let mut story = Story::of_three();
    story.create(b"alice");
    story.lose(&[2]);
    assert_eq!(risk(&story, &[1]), [(0, 0), (4, 0), (0, 0)]);
    assert_eq!(risk(&story, &[2]), [(0, 0), (0, 0), (4, 4)], "it may be what the others lose next");
    // The set is kept, for too few would remain: a member of it that is down does not stand in.
    story.lose(&[1]);
    assert_eq!(risk(&story, &[0]), [(4, 0), (0, 0), (0, 0)]);
    assert_eq!(risk(&story, &[1]), [(0, 0), (4, 0), (0, 0)]);
    assert_eq!(risk(&story, &[2]), [(0, 0), (4, 4), (0, 0)]);
}

#[test]
fn a_copy_on_a_failed_disk_does_not_count() {
    let mut story = Story::of_three();
    story.create(b"alice");
    story.propose(2, Action::DiskFailed { store_id: 3 }).unwrap();
    // There are two places left, and both are needed.
    assert_eq!(risk(&story, &[2]), SAFE);
    assert_eq!(risk(&story, &[1]), [(0, 0), (0, 0), (4, 0)]);
    story.propose(1, Action::DiskFailed { store_id: 2 }).unwrap();
    assert_eq!(risk(&story, &[0]), [(4, 0), (0, 0), (0, 0)]);
    // The last copy, on a disk that has failed, is kept in its set, and is none that can be read.
    story.propose(0, Action::DiskFailed { store_id: 1 }).unwrap();
    assert_eq!(risk(&story, &[1]), [(4, 4), (0, 0), (0, 0)]);
}

#[test]
fn a_copy_that_came_back_empty_leaves_nobody_safe() {
    let mut story = Story::of_three();
    story.create(b"alice");
    story.lose(&[1, 2]);
    story.hear(ClusterEvent::Join(member(1, 98)));
    story.hear(ClusterEvent::Join(member(2, 99)));
    story.lose(&[0]);
    story.hear(ClusterEvent::Join(member(0, 97)));
    for n in 0..3 {
        assert_eq!(risk(&story, &[n]), [(4, 4), (0, 0), (0, 0)]);
    }
}

#[test]
fn each_number_of_copies_counts_if_it_is_used() {
    let (mut story, leaving) = story_with_busy_node();
    let policy = Some(CopyPolicy::Replicated { copies: 1 });
    let name = b"single".to_vec();
    let create = Action::CreateVdi { name, size: 1, policy, block_size_shift: None };
    let by = (leaving + 1) % 5;
    story.propose(by, create).unwrap();
    put_out(&mut story, leaving);
    begin_catching(&mut story);
    let alone = PgId { pool: PoolId(1), index: 0 };
    // All but the pool of one copy are complete.
    for (pg, _) in pgs(&story).into_iter().filter(|(pg, _)| pg.pool != alone.pool) {
        end_catching(&mut story, Some(pg));
    }
    let of_one: u32 = pgs(&story).iter().filter(|(_, pg)| pg.in_sync == [id(leaving)]).count() as u32;
    assert_eq!(risk(&story, &[leaving]), [(of_one, 0), (0, 0), (0, 0)]);
    end_catching(&mut story, None);
    assert_eq!(risk(&story, &[leaving]), SAFE);
}

#[test]
fn what_nobody_uses_is_not_missed() {
    let mut story = Story::of_three();
    story.lose(&[2]);
    assert_eq!(risk(&story, &[2]), SAFE, "nothing was ever stored");
    assert_eq!(risk(&story, &[1]), [(0, 0), (4, 0), (0, 0)], "a VDI may be created now");
    story.create(b"alice");
    assert_eq!(risk(&story, &[2]), [(0, 0), (0, 0), (4, 4)]);
}

#[test]
fn a_strict_cluster_wants_all_copies() {
    let mut story = Story::default();
    for n in 0..3 {
        story.hear(ClusterEvent::Join(member(n, u64::from(n) + 1)));
    }
    let policy = CopyPolicy::Replicated { copies: 3 };
    let flags = super::super::FLAG_STRICT;
    let format = FormatOptions { ctime: 1, policy, block_size_shift: 22, flags, pg_count: 4 };
    story.propose(0, Action::Format(format)).unwrap();
    story.create(b"alice");
    assert_eq!(risk(&story, &[2]), [(0, 0), (4, 0), (0, 0)]);
}

#[test]
fn two_copies_in_one_zone_are_one() {
    let mut story = Story::of_three();
    story.create(b"alice");
    story.hear(ClusterEvent::Join(member(3, 4)));
    begin_catching(&mut story);
    end_catching(&mut story, None);
    // All lose power, and one is started again in the zone of another: until copies have moved, two may be in one zone.
    story.lose(&[0, 1, 2, 3]);
    for n in 0..4 {
        let zone = if n == 3 { ZoneId(0) } else { ZoneId(n.into()) };
        story.hear(ClusterEvent::Join(MemberInfo { zone, ..member(n, u64::from(n) + 1) }));
    }
    let same_zone = |pg: &super::super::Pg| pg.in_sync.contains(&id(0)) && pg.in_sync.contains(&id(3));
    let expect = pgs(&story).iter().filter(|(_, pg)| same_zone(pg)).count() as u32;
    assert!(expect > 0, "no PG shows it");
    let [lost, held, short] = risk(&story, &[]);
    assert_eq!((lost, held, short.0), ((0, 0), (0, 0), expect));
}

#[test]
fn fewer_zones_than_copies_are_not_made_good_by_fewer_places() {
    let mut story = Story::of_three();
    story.create(b"alice");
    put_out(&mut story, 2);
    assert_eq!(risk(&story, &[2]), SAFE);
    assert_eq!(few(&story, &[2]), FewPlaces { pgs: 4, copies: 2, wanted: 3 });
    put_out(&mut story, 1);
    assert_eq!(few(&story, &[1, 2]), FewPlaces { pgs: 4, copies: 1, wanted: 3 });
    story.lose(&[1, 2]);
    assert_eq!(few(&story, &[1, 2]), FewPlaces { pgs: 4, copies: 1, wanted: 3 }, "they are stopped");
}

#[test]
fn places_wanted_are_those_of_each_policy() {
    let mut story = story_of_five();
    story.create(b"alice");
    let policies = [CopyPolicy::Replicated { copies: 4 }, CopyPolicy::Replicated { copies: 5 }];
    for (policy, name) in policies.into_iter().zip([b"four", b"five"]) {
        let (name, policy) = (name.to_vec(), Some(policy));
        story.propose(0, Action::CreateVdi { name, size: 1, policy, block_size_shift: None }).unwrap();
    }
    let leave = |story: &mut Story, n| {
        put_out(story, n);
        begin_catching(story);
        end_catching(story, None);
        assert_eq!(risk(story, &[n]), SAFE);
    };
    assert_eq!(few(&story, &[]), FewPlaces::default());
    leave(&mut story, 4);
    assert_eq!(few(&story, &[4]), FewPlaces { pgs: 4, copies: 4, wanted: 5 });
    leave(&mut story, 3);
    assert_eq!(few(&story, &[3, 4]), FewPlaces { pgs: 8, copies: 3, wanted: 5 }, "that which lacks most");
}
