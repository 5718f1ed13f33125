//! Which zones each PG has its copies in: a table that is moved from one state to the next.
//!
//! Copies that can stay do stay. Then free places are filled, by weighted rendezvous among the zones that are below
//! their quota; then zones above their quota hand over to those below, the new holder's best draws first;
//! and where no direct hand-over is possible, a chain of them is. A table that meets all quotas exists
//! (each is at most one copy per PG and they sum up to all places), hence so does a chain: the difference between the
//! two tables falls apart into such chains.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::score::draw;

/// No zone, or no node, yet.
pub(crate) const NONE: u32 = u32::MAX;

/// A copy's place: which zone, and which of its nodes held it before.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub zone: u32,
    pub node: u32,
}

pub(crate) const FREE: Place = Place { zone: NONE, node: NONE };

/// The places of all PGs, `width` each.
pub(crate) struct ZoneTable<'a> {
    pub width: usize,
    pub places: &'a mut [Place],
    /// Copies that each zone should hold.
    pub quota: &'a [u64],
    /// Copies that each zone holds.
    pub held: Vec<u64>,
    pub keys: &'a [u64],
    /// Copies that each node holds beyond its quota: those are given away first.
    pub node_surplus: Vec<u64>,
}

impl ZoneTable<'_> {
    /// Fills all places and meets all quotas.
    pub fn settle(&mut self) {
        self.fill_free_places();
        self.hand_over(true);
        self.hand_over(false);
        while let Some(zone) = (0..self.quota.len()).find(|&z| self.deficit(z) > 0) {
            self.hand_over_in_chain(zone);
        }
    }

    fn pg_count(&self) -> usize {
        self.places.len().checked_div(self.width).unwrap_or(0)
    }

    fn pg(&self, pg: usize) -> &[Place] {
        &self.places[pg * self.width..(pg + 1) * self.width]
    }

    fn has(&self, pg: usize, zone: usize) -> bool {
        self.pg(pg).iter().any(|p| p.zone == zone as u32)
    }

    fn deficit(&self, zone: usize) -> u64 {
        self.quota[zone].saturating_sub(self.held[zone])
    }

    fn surplus(&self, zone: usize) -> u64 {
        self.held[zone].saturating_sub(self.quota[zone])
    }

    fn draw(&self, zone: usize, pg: usize) -> u64 {
        draw(self.keys[zone], pg as u32, self.quota[zone].clamp(1, u64::from(u32::MAX)) as u32)
    }

    fn fill_free_places(&mut self) {
        let is_open = |places: &[Place]| places.iter().any(|p| p.zone == NONE);
        let mut open_left = self.places.chunks(self.width.max(1)).filter(|pg| is_open(pg)).count() as u64;
        let mut below: Vec<usize> = (0..self.quota.len()).filter(|&z| self.deficit(z) > 0).collect();
        for pg in 0..self.pg_count() {
            if !is_open(self.pg(pg)) {
                continue;
            }
            let free: Vec<usize> =
                (pg * self.width..(pg + 1) * self.width).filter(|&i| self.places[i].zone == NONE).collect();
            let mut chosen = self.best_zones(pg, &below, free.len(), open_left);
            if chosen.len() < free.len() {
                // Every zone below its quota is here already. Any other will do; it hands over later.
                let others: Vec<usize> =
                    (0..self.quota.len()).filter(|&z| self.quota[z] > 0 && !chosen.contains(&z)).collect();
                chosen.extend(self.best_zones(pg, &others, free.len() - chosen.len(), u64::MAX));
            }
            assert_eq!(chosen.len(), free.len(), "PG {pg} is wider than there are zones");
            for (place, zone) in free.into_iter().zip(chosen) {
                self.places[place] = Place { zone: zone as u32, node: NONE };
                self.held[zone] += 1;
            }
            open_left -= 1;
            below.retain(|&z| self.deficit(z) > 0);
        }
    }

    /// The `count` candidates that win this PG, best first. Zones that need every PG still open come first.
    fn best_zones(&self, pg: usize, candidates: &[usize], count: usize, open_left: u64) -> Vec<usize> {
        let mut best: Vec<(u64, usize)> = Vec::with_capacity(count + 1);
        for &zone in candidates {
            if self.has(pg, zone) {
                continue;
            }
            let draw = if self.deficit(zone) >= open_left { 0 } else { self.draw(zone, pg) };
            if best.len() == count && best.last().is_some_and(|&last| last <= (draw, zone)) {
                continue;
            }
            let at = best.partition_point(|&other| other < (draw, zone));
            best.insert(at, (draw, zone));
            best.truncate(count);
        }
        best.into_iter().map(|(_, zone)| zone).collect()
    }

    /// Zones below their quota take over places of zones above theirs. `surplus_nodes_only`: only such
    /// places whose node has too many, so that nothing needs to move within the giving zone.
    fn hand_over(&mut self, surplus_nodes_only: bool) {
        let needy: Vec<usize> = (0..self.quota.len()).filter(|&z| self.deficit(z) > 0).collect();
        if needy.is_empty() {
            return;
        }
        // Places do not become available during the pass, so one collection serves all takers.
        let offered: Vec<usize> =
            (0..self.pg_count()).filter(|&pg| self.giver(pg, surplus_nodes_only).is_some()).collect();
        for zone in needy {
            let mut queue: BinaryHeap<Reverse<(u64, usize)>> = offered
                .iter()
                .filter(|&&pg| !self.has(pg, zone))
                .map(|&pg| Reverse((self.draw(zone, pg), pg)))
                .collect::<Vec<_>>()
                .into();
            while self.deficit(zone) > 0
                && let Some(Reverse((_, pg))) = queue.pop()
            {
                if let Some(place) = self.giver(pg, surplus_nodes_only) {
                    self.replace(place, zone);
                }
            }
        }
    }

    /// The place of this PG whose zone has most to give.
    fn giver(&self, pg: usize, surplus_nodes_only: bool) -> Option<usize> {
        (pg * self.width..(pg + 1) * self.width)
            .filter(|&i| {
                let Place { zone, node } = self.places[i];
                self.surplus(zone as usize) > 0
                    && (!surplus_nodes_only || node == NONE || self.node_surplus[node as usize] > 0)
            })
            .max_by_key(|&i| (self.surplus(self.places[i].zone as usize), Reverse(i)))
    }

    fn replace(&mut self, place: usize, zone: usize) {
        let old = self.places[place];
        self.held[old.zone as usize] -= 1;
        if old.node != NONE {
            let surplus = &mut self.node_surplus[old.node as usize];
            *surplus = surplus.saturating_sub(1);
        }
        self.held[zone] += 1;
        self.places[place] = Place { zone: zone as u32, node: NONE };
    }

    /// Finds the shortest chain `zone <- a <- b <- ... <- surplus` in which each takes over a place of the next.
    fn hand_over_in_chain(&mut self, zone: usize) {
        // The place through which a zone was reached, and who would take it.
        let mut reached: Vec<Option<(usize, usize)>> = vec![None; self.quota.len()];
        let mut queue = VecDeque::from([zone]);
        while let Some(taker) = queue.pop_front() {
            for pg in 0..self.pg_count() {
                if self.has(pg, taker) {
                    continue;
                }
                for place in pg * self.width..(pg + 1) * self.width {
                    let giver = self.places[place].zone as usize;
                    if giver == zone || reached[giver].is_some() {
                        continue;
                    }
                    reached[giver] = Some((place, taker));
                    if self.surplus(giver) > 0 {
                        return self.apply_chain(zone, giver, &reached);
                    }
                    queue.push_back(giver);
                }
            }
        }
        unreachable!("quotas that no table meets: {:?} held {:?}", self.quota, self.held);
    }

    fn apply_chain(&mut self, zone: usize, surplus: usize, reached: &[Option<(usize, usize)>]) {
        let mut giver = surplus;
        while giver != zone {
            let (place, taker) = reached[giver].expect("the chain was walked from its other end");
            // Steps do not disturb each other: had two of them the same PG, its later giver would have been
            // reached from its earlier taker, and the chain been shorter.
            assert!(!self.has(place / self.width, taker), "a chain met itself");
            self.replace(place, taker);
            giver = taker;
        }
    }
}
