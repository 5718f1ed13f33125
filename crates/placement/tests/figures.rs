//! Prints how even the placement is and how little it moves: the table in the crate's documentation.
//!
//! `cargo test --release -p placement --test figures -- --ignored --nocapture`

mod common;

use std::collections::BTreeSet;
use std::time::Instant;

use common::*;
use placement::{Member, place, place_from};

#[test]
#[ignore = "prints figures; asserts nothing"]
fn print_figures() {
    println!("| nodes | PGs | shape | fullest / share | join | leave | weight +50 % | peers | computed in |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (nodes, pg_count) in [(3, 256), (8, 256), (32, 1024), (1000, 32768)] {
        for shape in [Shape::Equal, Shape::Mixed, Shape::Racks] {
            let members = cluster(nodes, shape);
            let start = Instant::now();
            let table = place(&members, pg_count, 1, COPIES);
            let elapsed = start.elapsed().as_millis();
            let (load, shares) = (load(&table), shares(&members, pg_count, COPIES));
            let fullest = shares
                .iter()
                .map(|(id, s)| load.get(id).copied().unwrap_or(0) as f64 / s)
                .fold(0.0, f64::max);

            let mut joined = members.clone();
            joined.push(member(nodes, shape));
            let left = members[..members.len() - 1].to_vec();
            let mut grown = members.clone();
            grown[0].weight += grown[0].weight / 2;
            let changed = |to: &Vec<Member>| {
                let moved = moved(&table, &place_from(&table, to, pg_count, 1, COPIES));
                format!("{moved} of {}", unavoidable(&table, to, COPIES))
            };
            let (join, leave, weight) = (changed(&joined), changed(&left), changed(&grown));

            let first = members[0].id;
            let with_first = table.iter().filter(|targets| targets.contains(&first));
            let peers: BTreeSet<_> = with_first.flatten().filter(|id| **id != first).collect();
            println!(
                "| {nodes} | {pg_count} | {shape:?} | {fullest:.3} | {join} | {leave} | {weight} | {} | {elapsed} ms |",
                peers.len(),
            );
        }
    }

    let table = place(&cluster(1000, Shape::Equal), 32768, 1, COPIES);
    for shape in [Shape::Mixed, Shape::Racks] {
        let members = cluster(1000, shape);
        let start = Instant::now();
        let moved = moved(&table, &place_from(&table, &members, 32768, 1, COPIES));
        let needed = unavoidable(&table, &members, COPIES);
        println!("1000 Equal -> {shape:?}: {moved} of {needed} in {} ms", start.elapsed().as_millis());
    }
    let mut skewed = cluster(5, Shape::Equal);
    (0..5).for_each(|i| skewed[i].weight = [50, 20, 15, 14, 1][i]);
    let start = Instant::now();
    place(&skewed, 32768, 1, COPIES);
    println!("5 skewed nodes, 32768 PGs: {} ms", start.elapsed().as_millis());
}
