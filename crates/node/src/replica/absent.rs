//! What members that left in-sync sets lack: noted by every copy that stays, so that they need not fetch everything when they return.
//!
//! Noting begins with the entry of the view by which the member leaves, and with all that is unsettled then: of that the member may lack something,
//! all else it has. It lives in memory. A copy that starts anew, or was not in sync itself at that entry, does not know, and says so.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use proto::object::BlockRange;
use proto::peer::PeerReply;
use proto::{NodeId, Oid, PgId, Since};

use super::{Covered, Replica};
use crate::context::Context;
use crate::extent::Extent;

/// Objects of which single blocks are noted, for each member and PG; of others that they have changed. A node is a copy of at most all 1024 PGs
/// of a pool: half a TiB of objects, in 80 MiB.
const FINE_OBJECTS_MAX: usize = 128;
/// Changed objects noted for each member and PG: beyond, the member is to fetch everything. 8 TiB of objects, in another 120 MiB.
const OBJECTS_MAX: usize = 2048;
/// Runs of blocks and objects in one answer: at most some 1 MiB of a frame.
const ANSWER_RUNS_MAX: usize = 1 << 16;
/// Runs told of one object: beyond, all between the first and the last.
const OBJECT_RUNS_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Absences {
    lacking: BTreeMap<(PgId, NodeId), Lacking>,
}

#[derive(Debug)]
struct Lacking {
    since: Since,
    objects: BTreeMap<Oid, Extent>,
    fine: usize,
    /// Too much to be noted.
    all: bool,
}

impl Lacking {
    fn note(&mut self, oid: Oid, blocks: Option<BlockRange>) {
        if self.all {
            return;
        }
        let extent = match self.objects.entry(oid) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                self.fine += 1;
                entry.insert(Extent::default())
            }
        };
        match blocks {
            Some(blocks) if self.fine <= FINE_OBJECTS_MAX || !extent.is_empty() => extent.add(blocks),
            _ => *extent = Extent::Whole,
        }
        if self.objects.len() > OBJECTS_MAX {
            self.objects.clear();
            self.all = true;
        }
    }
}

impl Absences {
    fn of(&mut self, pg: PgId) -> impl Iterator<Item = &mut Lacking> {
        let first = (pg, NodeId { addr: [0; 16], port: 0 });
        self.lacking.range_mut(first..).take_while(move |((of, _), _)| *of == pg).map(|(_, lacking)| lacking)
    }

    pub fn note(&mut self, covered: Covered) {
        self.of(covered.pg).for_each(|lacking| lacking.note(covered.oid, covered.blocks));
    }
}

impl Replica {
    /// Follows who is absent. Before anything else of the entry is acted upon: what it settles is unsettled at it.
    pub fn note_absences(&mut self, ctx: &Context, changed: &[PgId]) {
        let now = Since(ctx.view.version().0);
        let mut begun = Vec::new();
        for id in changed {
            let pg = ctx.view.pg(*id).filter(|pg| pg.in_sync.contains(&ctx.me));
            let is_noted = |node, since| pg.is_some_and(|pg| pg.absent_since(node) == Some(since));
            self.absences.lacking.retain(|(of, node), l| of != id || is_noted(*node, l.since));
            for absent in pg.into_iter().flat_map(|pg| &pg.absent).filter(|a| a.since == now) {
                let lacking = Lacking { since: now, objects: BTreeMap::new(), fine: 0, all: false };
                self.absences.lacking.insert((*id, absent.node), lacking);
                begun.push(*id);
            }
        }
        if begun.is_empty() {
            return;
        }
        let unsettled = self.vdis.values().flat_map(|log| log.unsettled.values());
        for change in unsettled.map(|entry| entry.change) {
            if let Some(pg) = ctx.view.pg_of(change.oid).filter(|pg| begun.contains(pg)) {
                for lacking in self.absences.of(pg).filter(|l| l.since == now) {
                    lacking.note(change.oid, change.blocks);
                }
            }
        }
    }

    /// An object is removed here because nobody needs it: whoever is absent does not hear of that.
    pub fn note_removed(&mut self, ctx: &Context, oid: Oid) {
        if let Some(pg) = ctx.view.pg_of(oid) {
            self.absences.of(pg).for_each(|lacking| lacking.note(oid, None));
        }
    }

    pub(super) fn answer_changed(
        &self,
        ctx: &mut Context,
        to: NodeId,
        call: u64,
        pgs: &[(PgId, Since)],
        after: Option<Oid>,
    ) {
        let first = after.map_or(Oid(0), |oid| Oid(oid.0.saturating_add(1)));
        let mut unknown = Vec::new();
        let mut known = Vec::new();
        for (pg, _) in pgs {
            let absent = ctx.view.pg(*pg).and_then(|state| state.absent_since(to));
            let lacking = self.absences.lacking.get(&(*pg, to));
            match lacking.filter(|l| Some(l.since) == absent && !l.all) {
                Some(lacking) => known.push(lacking),
                None => unknown.push(*pg),
            }
        }
        let (objects, complete) = page(&known, first);
        ctx.reply(to, call, PeerReply::Changed { unknown, objects, complete });
    }
}

/// What is lacking from object `first` on, ascending, as much as fits into an answer; and whether that is all. Each object belongs to one PG; no
/// more of them are looked at than are told of.
fn page(known: &[&Lacking], first: Oid) -> (Vec<(Oid, Vec<BlockRange>)>, bool) {
    let mut ahead: Vec<_> = known.iter().map(|lacking| lacking.objects.range(first..)).collect();
    let next = |(i, objects): (usize, &mut std::collections::btree_map::Range<'_, Oid, Extent>)| {
        objects.next().map(|(oid, _)| (*oid, i))
    };
    let mut heads: BTreeSet<(Oid, usize)> = ahead.iter_mut().enumerate().filter_map(next).collect();
    let (mut runs, mut told) = (0, Vec::new());
    while let Some((oid, i)) = heads.pop_first() {
        let ranges = known[i].objects[&oid].ranges(OBJECT_RUNS_MAX);
        runs += ranges.len().max(1);
        // The asker goes on after the last object it is told of.
        if runs > ANSWER_RUNS_MAX {
            return (told, false);
        }
        told.push((oid, ranges));
        heads.extend(next((i, &mut ahead[i])));
    }
    (told, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lacking(objects: impl Iterator<Item = (u64, u32)>) -> Lacking {
        let mut lacking = Lacking { since: Since(1), objects: BTreeMap::new(), fine: 0, all: false };
        for (oid, runs) in objects {
            let mut extent = Extent::default();
            (0..runs).for_each(|run| extent.add(BlockRange::new(run * 2, 1)));
            lacking.objects.insert(Oid(oid), extent);
        }
        lacking
    }

    #[test]
    fn pages_tell_all_objects_of_all_pgs_once_and_in_order() {
        let pgs = [3, 5, 7].map(|step| lacking((0..100).map(|n| (n * 8 + step, 400 + n as u32))));
        let known: Vec<&Lacking> = pgs.iter().collect();
        let (mut all, mut first) = (Vec::new(), Oid(0));
        loop {
            let (objects, complete) = page(&known, first);
            let runs: usize = objects.iter().map(|(_, ranges)| ranges.len()).sum();
            assert!(runs <= ANSWER_RUNS_MAX && (complete || runs > ANSWER_RUNS_MAX - 500), "{runs} runs");
            all.extend(objects);
            if complete {
                break;
            }
            first = Oid(all.last().expect("a page that is not the last tells of something").0.0 + 1);
        }
        let mut expect: Vec<_> = pgs.iter().flat_map(|l| &l.objects).collect();
        expect.sort_by_key(|(oid, _)| **oid);
        let expect: Vec<_> = expect.into_iter().map(|(oid, e)| (*oid, e.ranges(OBJECT_RUNS_MAX))).collect();
        assert_eq!(all, expect);
    }

    #[test]
    fn what_is_noted_becomes_coarse_and_then_unknown_but_never_less() {
        let mut lacking = Lacking { since: Since(1), objects: BTreeMap::new(), fine: 0, all: false };
        let block = Some(BlockRange::new(7, 1));
        for object in 0..OBJECTS_MAX as u64 {
            lacking.note(Oid(object), block);
        }
        assert!(!lacking.all && lacking.objects.len() == OBJECTS_MAX);
        let told = |lacking: &Lacking, object| lacking.objects[&Oid(object)].ranges(OBJECT_RUNS_MAX);
        assert_eq!(told(&lacking, FINE_OBJECTS_MAX as u64 - 1), [BlockRange::new(7, 1)]);
        assert_eq!(told(&lacking, FINE_OBJECTS_MAX as u64), [], "all of it");
        lacking.note(Oid(0), Some(BlockRange::new(9, 2)));
        assert_eq!(told(&lacking, 0), [BlockRange::new(7, 1), BlockRange::new(9, 2)]);
        lacking.note(Oid(0), None);
        lacking.note(Oid(0), block);
        assert_eq!(told(&lacking, 0), [], "all of it");
        lacking.note(Oid(u64::MAX), block);
        assert!(lacking.all && lacking.objects.is_empty());
    }
}
