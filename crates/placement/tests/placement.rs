//! What placement promises: distinct zones, even load, few moves, the same answer everywhere.

mod common;

use std::collections::BTreeSet;

use common::*;
use placement::{Member, place, place_from};
use proptest::prelude::*;
use proto::{NodeId, ZoneId};

const SIZES: [(u32, u32); 3] = [(3, 256), (8, 256), (32, 1024)];
const SHAPES: [Shape; 3] = [Shape::Equal, Shape::Mixed, Shape::Racks];

/// Everything that holds for every table.
fn check_table(table: &[Vec<NodeId>], members: &[Member], pg_count: u32, copies: u8) {
    let storing: Vec<&Member> = members.iter().filter(|m| m.weight > 0).collect();
    let zones: BTreeSet<ZoneId> = storing.iter().map(|m| m.zone).collect();
    let width = zones.len().min(copies.into());
    assert_eq!(table.len(), pg_count as usize);
    for targets in table {
        let zone_of = |id: &NodeId| storing.iter().find(|m| m.id == *id).expect("a storing member").zone;
        assert_eq!(targets.iter().map(zone_of).collect::<BTreeSet<_>>().len(), targets.len(), "{targets:?}");
        assert_eq!(targets.len(), width);
    }
    // A zone is rounded once, and its nodes once more.
    let load = load(table);
    for (id, share) in shares(members, pg_count, copies) {
        let held = load.get(&id).copied().unwrap_or(0) as f64;
        assert!((held - share).abs() < 2.0, "{id} holds {held}, its share is {share}");
    }
}

#[test]
fn the_fullest_of_32_equal_nodes_holds_at_most_3_percent_more_than_the_mean() {
    for seed in 0..4 {
        let counts = load(&place(&cluster(32, Shape::Equal), 1024, seed, COPIES));
        assert_eq!(counts.len(), 32);
        assert!(counts.values().all(|&n| n * 100 <= 96 * 103), "{counts:?}");
    }
}

#[test]
fn load_follows_capacity_at_every_size() {
    for (nodes, pg_count) in SIZES {
        for shape in SHAPES {
            let members = cluster(nodes, shape);
            check_table(&place(&members, pg_count, 7, COPIES), &members, pg_count, COPIES);
        }
    }
}

#[test]
fn a_thousand_nodes_are_placed_evenly_and_change_little() {
    for shape in SHAPES {
        let members = cluster(1000, shape);
        let table = place(&members, 32768, 7, COPIES);
        check_table(&table[..], &members, 32768, COPIES);
        let left = &members[..999];
        let after = place_from(&table, left, 32768, 7, COPIES);
        assert_few_moves(&table, &after, left);
    }
}

fn assert_few_moves(before: &[Vec<NodeId>], after: &[Vec<NodeId>], members: &[Member]) {
    let (moved, needed) = (moved(before, after), unavoidable(before, members, COPIES));
    // Within one copy of the share of each member there is no telling which rounding is the smaller move.
    assert!(moved * 100 <= needed * 115 + 300, "{moved} moved, {needed} were unavoidable");
}

#[test]
fn joins_leaves_and_growth_move_hardly_more_than_they_must() {
    for (nodes, pg_count) in SIZES {
        for shape in SHAPES {
            let members = cluster(nodes, shape);
            let table = place(&members, pg_count, 3, COPIES);
            let mut joined = members.clone();
            joined.push(member(nodes, shape));
            let mut grown = members.clone();
            grown[1].weight *= 2;
            for changed in [joined, grown, members[1..].to_vec(), members[..members.len() - 1].to_vec()] {
                let after = place_from(&table, &changed, pg_count, 3, COPIES);
                check_table(&after, &changed, pg_count, COPIES);
                assert_few_moves(&table, &after, &changed);
            }
        }
    }
}

#[test]
fn nothing_moves_while_nothing_changes() {
    for shape in SHAPES {
        let members = cluster(32, shape);
        let table = place(&members, 1024, 3, COPIES);
        assert_eq!(place_from(&table, &members, 1024, 3, COPIES), table);
    }
}

#[test]
fn a_new_member_takes_from_all_others_and_a_lost_one_is_replaced_by_all_others() {
    let members = cluster(32, Shape::Equal);
    let table = place(&members, 1024, 3, COPIES);
    let after = place_from(&table, &members[1..], 1024, 3, COPIES);
    let (before, after) = (load(&table), load(&after));
    for m in &members[1..] {
        assert!((3..=4).contains(&(after[&m.id] - before[&m.id])), "{}", m.id);
    }
}

#[test]
fn a_member_that_returns_gets_most_of_its_copies_back() {
    let members = cluster(32, Shape::Equal);
    let table = place(&members, 1024, 3, COPIES);
    let without = place_from(&table, &members[1..], 1024, 3, COPIES);
    let again = place_from(&without, &members, 1024, 3, COPIES);
    let id = members[0].id;
    let same = table.iter().zip(&again).filter(|(b, a)| b.contains(&id) && a.contains(&id)).count();
    assert!(same >= 48, "{same} of 96 copies are where they were");
}

#[test]
fn a_replaced_copy_hands_its_rank_on() {
    let members = cluster(8, Shape::Equal);
    let table = place(&members, 256, 3, COPIES);
    let after = place_from(&table, &members[1..], 256, 3, COPIES);
    for (before, after) in table.iter().zip(&after) {
        for (b, a) in before.iter().zip(after) {
            assert!(b == a || !after.contains(b), "{b} changed its rank: {before:?} -> {after:?}");
        }
    }
}

#[test]
fn a_zone_larger_than_its_fair_share_has_one_copy_of_everything() {
    let mut members = cluster(5, Shape::Equal);
    members[2].weight *= 100;
    let table = place(&members, 256, 3, COPIES);
    check_table(&table, &members, 256, COPIES);
    assert!(table.iter().all(|targets| targets.contains(&members[2].id)));
}

#[test]
fn without_capacity_there_are_no_targets() {
    assert_eq!(place(&[], 4, 0, 3), vec![Vec::new(); 4]);
    let mut gateway = cluster(1, Shape::Equal);
    gateway[0].weight = 0;
    assert_eq!(place(&gateway, 4, 0, 3), vec![Vec::new(); 4]);
    assert_eq!(place(&cluster(3, Shape::Equal), 2, 0, 0), vec![Vec::new(); 2]);
    assert!(place(&cluster(3, Shape::Equal), 0, 0, 3).is_empty());
}

/// Nodes of one cluster may run different builds for a while: a table must come out the same in both.
#[test]
fn tables_are_frozen() {
    let mut members = cluster(32, Shape::Racks);
    let table = place(&members, 1024, 1, COPIES);
    members.remove(7);
    let after = place_from(&table, &members, 1024, 1, COPIES);
    let digest =
        |table: &[Vec<NodeId>]| table.iter().flatten().fold(0, |h, id| proto::hash::fnv1a_from(&id.addr, h));
    assert_eq!((digest(&table), digest(&after)), FROZEN);
}

const FROZEN: (u64, u64) = (10651382085027223706, 1944563836353910081);

fn any_member() -> impl Strategy<Value = Member> {
    let weight = prop_oneof![1 => Just(0), 4 => 1u64..20, 1 => any::<u64>()];
    (0u8..24, 0u32..8, weight).prop_map(|(n, zone, weight)| Member {
        id: NodeId { addr: [n; 16], port: 7000 },
        zone: ZoneId(zone),
        weight,
    })
}

fn any_members() -> impl Strategy<Value = Vec<Member>> {
    proptest::collection::vec(any_member(), 0..16).prop_map(|mut members| {
        members.sort_by_key(|m| m.id);
        members.dedup_by_key(|m| m.id);
        members
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn every_history_of_memberships_keeps_every_promise(
        history in proptest::collection::vec((any_members(), 1u8..5), 1..5),
        pg_count in 1u32..80,
        seed: u64,
    ) {
        let mut table = Vec::new();
        for (members, copies) in history {
            table = place_from(&table, &members, pg_count, seed, copies);
            check_table(&table, &members, pg_count, copies);
        }
    }

    #[test]
    fn the_order_of_members_does_not_matter(
        (members, shuffled) in any_members().prop_flat_map(|m| (Just(m.clone()), Just(m).prop_shuffle())),
        seed: u64,
    ) {
        let table = place(&members, 32, seed, 3);
        prop_assert_eq!(&table, &place(&shuffled, 32, seed, 3));
        prop_assert_eq!(&table, &place_from(&table, &shuffled, 32, seed, 3));
    }

    /// Small enough to try everything. Greedy hand-overs may cost one chain more than the best plan.
    #[test]
    fn no_equally_even_table_moves_much_less(weights in proptest::collection::vec(1u64..4, 4), seed: u64, leaver in 0usize..4) {
        let members: Vec<Member> = weights.iter().zip(0..).map(|(&weight, n)| {
            Member { id: NodeId { addr: [n; 16], port: 1 }, zone: ZoneId(n.into()), weight }
        }).collect();
        let mut before_members = members.clone();
        before_members.remove(leaver);
        let before = place(&before_members, 4, seed, 2);
        let after = place_from(&before, &members, 4, seed, 2);
        let loads = load(&after);
        let (moved, fewest) = (moved(&before, &after), fewest_moves(&before, &members, &loads));
        prop_assert!(fewest <= moved && moved <= fewest + 1, "{moved} moved, {fewest} would do");
    }
}

/// The fewest moves to any table with these loads, by trying every pair of targets for every PG.
fn fewest_moves(
    before: &[Vec<NodeId>],
    members: &[Member],
    loads: &std::collections::BTreeMap<NodeId, u64>,
) -> u64 {
    let Some((first, rest)) = before.split_first() else {
        return if loads.values().all(|&n| n == 0) { 0 } else { u64::MAX / 2 };
    };
    let mut best = u64::MAX / 2;
    for a in 0..members.len() {
        for b in a + 1..members.len() {
            let pair = [members[a].id, members[b].id];
            let mut loads = loads.clone();
            if pair.iter().any(|id| loads.get(id).is_none_or(|&n| n == 0)) {
                continue;
            }
            pair.iter().for_each(|id| *loads.get_mut(id).unwrap() -= 1);
            let moved = pair.iter().filter(|id| !first.contains(id)).count() as u64;
            best = best.min(moved + fewest_moves(rest, members, &loads));
        }
    }
    best
}
