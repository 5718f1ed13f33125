//! The PG table: targets of every PG, moved from one membership to the next.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use proto::{NodeId, ZoneId};

use crate::quota::{Claim, divide};
use crate::score::{draw, mix, node_key, zone_key};
use crate::zones::{FREE, NONE, Place, ZoneTable};

/// A storing sheep as placement sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: NodeId,
    pub zone: ZoneId,
    /// Capacity in bytes; 0 for a gateway, which gets no copies.
    pub weight: u64,
}

/// Targets of every PG of a new pool, in distinct zones.
///
/// As many targets as `copies`, or as there are zones with capacity if those are fewer.
pub fn place(members: &[Member], pg_count: u32, pool_seed: u64, copies: u8) -> Vec<Vec<NodeId>> {
    place_from(&[], members, pg_count, pool_seed, copies)
}

/// Targets of every PG after the membership has changed, moving as few copies as even load allows.
///
/// A function of its arguments alone, whatever the order of `members`. A copy that stays keeps its rank, and
/// one that replaces another takes that one's rank. Of members with equal ids the largest counts.
pub fn place_from(
    previous: &[Vec<NodeId>],
    members: &[Member],
    pg_count: u32,
    pool_seed: u64,
    copies: u8,
) -> Vec<Vec<NodeId>> {
    let cluster = Cluster::new(members, pool_seed);
    let width = usize::from(copies).min(cluster.zone_keys.len());
    let mut places = cluster.kept_places(previous, pg_count as usize, width);

    let held = count(cluster.zone_keys.len(), places.iter().map(|p| p.zone));
    let node_held = count(cluster.nodes.len(), places.iter().map(|p| p.node));
    let quota = cluster.zone_quotas(&held, pg_count, width);
    let node_quota = cluster.node_quotas(&quota, &node_held);
    let node_surplus = node_held.iter().zip(&node_quota).map(|(h, q)| h.saturating_sub(*q)).collect();

    ZoneTable { width, places: &mut places, quota: &quota, held, keys: &cluster.zone_keys, node_surplus }
        .settle();
    cluster.choose_nodes(&mut places, width, &node_quota);

    let id_of = |p: &Place| cluster.nodes[p.node as usize].id;
    if width == 0 {
        return vec![Vec::new(); pg_count as usize];
    }
    places.chunks(width).map(|pg| pg.iter().map(id_of).collect()).collect()
}

struct Node {
    id: NodeId,
    zone: u32,
    weight: u64,
    key: u64,
}

/// The members that store something, by id, and their zones, by zone id.
struct Cluster {
    nodes: Vec<Node>,
    zone_keys: Vec<u64>,
    zone_nodes: Vec<Vec<u32>>,
}

impl Cluster {
    fn new(members: &[Member], pool_seed: u64) -> Self {
        let mut storing: Vec<&Member> = members.iter().filter(|m| m.weight > 0).collect();
        storing.sort_by_key(|m| (m.id, Reverse(m.weight), m.zone));
        storing.dedup_by_key(|m| m.id);
        let mut zones: Vec<ZoneId> = storing.iter().map(|m| m.zone).collect();
        zones.sort_unstable();
        zones.dedup();
        let mut zone_nodes = vec![Vec::new(); zones.len()];
        let nodes = storing
            .iter()
            .enumerate()
            .map(|(i, m)| {
                let zone = zones.binary_search(&m.zone).expect("every member's zone is listed") as u32;
                zone_nodes[zone as usize].push(i as u32);
                Node { id: m.id, zone, weight: m.weight, key: node_key(m.id, pool_seed) }
            })
            .collect();
        Cluster { nodes, zone_keys: zones.iter().map(|&z| zone_key(z, pool_seed)).collect(), zone_nodes }
    }

    /// The previous table without what cannot stay: lost members, second copies in a zone, ranks beyond `width`.
    fn kept_places(&self, previous: &[Vec<NodeId>], pg_count: usize, width: usize) -> Vec<Place> {
        let index: BTreeMap<NodeId, u32> = self.nodes.iter().zip(0..).map(|(n, i)| (n.id, i)).collect();
        let mut places = vec![FREE; pg_count * width];
        for (targets, places) in previous.iter().zip(places.chunks_mut(width.max(1))) {
            // Ranks beyond the width are kept if lower ones are lost.
            let kept = targets.iter().enumerate().filter_map(|(rank, id)| Some((rank, *index.get(id)?)));
            let mut beyond = Vec::new();
            for (rank, node) in kept {
                let place = Place { zone: self.nodes[node as usize].zone, node };
                if places.iter().chain(&beyond).any(|p| p.zone == place.zone) {
                    continue;
                }
                match places.get_mut(rank) {
                    Some(free) => *free = place,
                    None => beyond.push(place),
                }
            }
            for (free, place) in places.iter_mut().filter(|p| p.zone == NONE).zip(beyond) {
                *free = place;
            }
        }
        places
    }

    fn zone_quotas(&self, held: &[u64], pg_count: u32, width: usize) -> Vec<u64> {
        let weight_of =
            |nodes: &Vec<u32>| nodes.iter().map(|&n| u128::from(self.nodes[n as usize].weight)).sum();
        let claims: Vec<Claim> = (0..self.zone_keys.len())
            .map(|z| Claim {
                weight: weight_of(&self.zone_nodes[z]),
                held: held[z],
                hash: mix(self.zone_keys[z]),
            })
            .collect();
        divide(&claims, u64::from(pg_count) * width as u64, pg_count.into())
    }

    fn node_quotas(&self, zone_quotas: &[u64], held: &[u64]) -> Vec<u64> {
        let mut quotas = vec![0; self.nodes.len()];
        for (nodes, &total) in self.zone_nodes.iter().zip(zone_quotas) {
            let claims: Vec<Claim> = nodes
                .iter()
                .map(|&n| (&self.nodes[n as usize], held[n as usize]))
                .map(|(node, held)| Claim { weight: node.weight.into(), held, hash: mix(node.key) })
                .collect();
            for (&n, quota) in nodes.iter().zip(divide(&claims, total, total)) {
                quotas[n as usize] = quota;
            }
        }
        quotas
    }

    /// Gives every place a node of its zone: whoever holds it, else the best draw among those below quota.
    fn choose_nodes(&self, places: &mut [Place], width: usize, quota: &[u64]) {
        let mut held = count(self.nodes.len(), places.iter().map(|p| p.node));
        let mut of_zone = vec![Vec::new(); self.zone_nodes.len()];
        for (i, place) in places.iter().enumerate() {
            of_zone[place.zone as usize].push(i);
        }
        for (nodes, of_zone) in self.zone_nodes.iter().zip(of_zone) {
            if let [only] = nodes[..] {
                of_zone.into_iter().for_each(|i| places[i].node = only);
                continue;
            }
            let draw_of = |node: u32, place: usize| {
                let weight = quota[node as usize].clamp(1, u32::MAX.into()) as u32;
                draw(self.nodes[node as usize].key, (place / width) as u32, weight)
            };
            for &i in of_zone.iter().filter(|&&i| places[i].node == NONE).collect::<Vec<_>>() {
                let below = nodes.iter().copied().filter(|&n| held[n as usize] < quota[n as usize]);
                let node = below.min_by_key(|&n| (draw_of(n, i), n));
                let node = node.expect("node quotas add up to the zone's, and a place is free");
                places[i].node = node;
                held[node as usize] += 1;
            }
            for &taker in nodes {
                if held[taker as usize] >= quota[taker as usize] {
                    continue;
                }
                let offered = of_zone.iter().filter(|&&i| {
                    let giver = places[i].node as usize;
                    held[giver] > quota[giver]
                });
                let mut queue: BinaryHeap<_> =
                    offered.map(|&i| Reverse((draw_of(taker, i), i))).collect::<Vec<_>>().into();
                while held[taker as usize] < quota[taker as usize] {
                    let Reverse((_, i)) = queue.pop().expect("somebody else has what is missing here");
                    let giver = places[i].node as usize;
                    if held[giver] > quota[giver] {
                        held[giver] -= 1;
                        held[taker as usize] += 1;
                        places[i].node = taker;
                    }
                }
            }
        }
    }
}

/// How often each number below `len` occurs.
fn count(len: usize, numbers: impl Iterator<Item = u32>) -> Vec<u64> {
    let mut counts = vec![0; len];
    numbers.filter(|&n| n != NONE).for_each(|n| counts[n as usize] += 1);
    counts
}
