//! Clusters to place on, and what a table is measured by.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use placement::Member;
use proto::{NodeId, ZoneId};

pub const COPIES: u8 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// All alike, each in a zone of its own.
    Equal,
    /// Capacities 1, 2, 2, 4, 8, each in a zone of its own.
    Mixed,
    /// The same capacities, four nodes in each zone.
    Racks,
}

pub fn member(n: u32, shape: Shape) -> Member {
    let weight = if shape == Shape::Equal { 4 } else { [1u64, 2, 2, 4, 8][n as usize % 5] };
    let zone = if shape == Shape::Racks { n / 4 } else { n };
    let id = NodeId::new(IpAddr::V4(Ipv4Addr::from(0x0a00_0001 + n)), 7000);
    Member { id, zone: ZoneId(zone), weight: weight << 40 }
}

pub fn cluster(nodes: u32, shape: Shape) -> Vec<Member> {
    (0..nodes).map(|n| member(n, shape)).collect()
}

pub fn load(table: &[Vec<NodeId>]) -> BTreeMap<NodeId, u64> {
    let mut load = BTreeMap::new();
    table.iter().flatten().for_each(|id| *load.entry(*id).or_insert(0) += 1);
    load
}

/// The exact number of copies each member should have: by weight, but no zone more than one per PG.
pub fn shares(members: &[Member], pg_count: u32, copies: u8) -> BTreeMap<NodeId, f64> {
    let mut zones: BTreeMap<ZoneId, f64> = BTreeMap::new();
    for m in members.iter().filter(|m| m.weight > 0) {
        *zones.entry(m.zone).or_default() += m.weight as f64;
    }
    let cap = f64::from(pg_count);
    let mut left = cap * zones.len().min(copies.into()) as f64;
    let mut open = zones.clone();
    let mut share_of_zone = BTreeMap::new();
    loop {
        let weight: f64 = open.values().sum();
        let Some((&zone, _)) = open.iter().find(|(_, w)| left * **w >= cap * weight) else {
            share_of_zone.extend(open.iter().map(|(z, w)| (*z, left * w / weight)));
            break;
        };
        open.remove(&zone);
        share_of_zone.insert(zone, cap);
        left -= cap;
    }
    let share = |m: &Member| share_of_zone[&m.zone] * m.weight as f64 / zones[&m.zone];
    members.iter().filter(|m| m.weight > 0).map(|m| (m.id, share(m))).collect()
}

/// Copies that are where they were not before.
pub fn moved(before: &[Vec<NodeId>], after: &[Vec<NodeId>]) -> u64 {
    let fresh = |(b, a): (&Vec<NodeId>, &Vec<NodeId>)| a.iter().filter(|id| !b.contains(id)).count() as u64;
    before.iter().zip(after).map(fresh).sum()
}

/// Copies that no even placement could leave where they were: those whose holder is gone, and whatever
/// members must gain to come within one copy of their shares.
pub fn unavoidable(before: &[Vec<NodeId>], members: &[Member], copies: u8) -> u64 {
    let shares = shares(members, before.len() as u32, copies);
    let old = load(before);
    let gain = |(id, share): (&NodeId, &f64)| {
        (share.floor() as u64).saturating_sub(old.get(id).copied().unwrap_or(0))
    };
    let gained: u64 = shares.iter().map(gain).sum();
    let lost: u64 = old.iter().filter(|(id, _)| !shares.contains_key(id)).map(|(_, n)| n).sum();
    // A pool's width may have shrunk with its zones: then lost copies need no new home.
    let places: usize = before.iter().map(Vec::len).sum();
    let places_now = shares.values().sum::<f64>().round() as u64;
    let kept_at_most = places as u64 - lost;
    gained.max(places_now.saturating_sub(kept_at_most))
}
