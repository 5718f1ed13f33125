//! What a new owner does before its first write. `node::session::seal`.

use super::copy::Mark;
use super::model::State;
use super::options::{Bug, Options};
use super::request::FORWARDED;
use super::view::{NODES_MAX, Set, View};

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seal {
    /// Version at which each was asked.
    asked: [Option<u8>; NODES_MAX],
    answers: [Option<Vec<Mark>>; NODES_MAX],
    is_planned: bool,
    todo: Vec<Mend>,
    /// A copy that was to be read from has left the set. Should it come back, it need not have what it told of.
    begins_anew: bool,
}

/// Makes one block alike on all copies. Blocks of one change may be mended by changes of their own, of which a crash leaves some: a large one
/// goes over in pieces, and zeros in others than data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Mend {
    block: usize,
    source: usize,
    origin: u8,
}

impl State {
    pub fn replan_seal(&mut self, options: &Options, me: usize) {
        let view = *self.view(me);
        let Some(seal) = self.nodes[me].session.as_mut().and_then(|s| s.seal.as_mut()) else { return };
        if seal.is_planned {
            let is_lost = seal.todo.iter().any(|mend| !view.in_sync.has(mend.source));
            seal.begins_anew |= is_lost && !options.has(Bug::SourceMayComeBack);
            return self.advance_seal(me);
        }
        let needed = view.writers();
        for node in 0..options.nodes {
            let changed = |asked: u8| view.since > asked;
            if !needed.has(node) || (seal.answers[node].is_some() && seal.asked[node].is_some_and(changed)) {
                (seal.answers[node], seal.asked[node]) = (None, None);
            }
            if !view.up.has(node) && seal.answers[node].is_none() {
                seal.asked[node] = None;
            } else if needed.has(node) && seal.asked[node].is_none() {
                seal.asked[node] = Some(view.version);
            }
        }
        if !needed.is_empty() && needed.iter().all(|n| seal.answers[n].is_some()) {
            seal.is_planned = true;
            let changes = needed
                .iter()
                .flat_map(|n| seal.answers[n].iter().flatten().map(move |mark| (n, *mark)))
                .collect::<Vec<_>>();
            seal.todo = (0..options.blocks).filter_map(|block| plan(&view, block, &changes)).collect();
            let survived = survivors(options, &view, &changes);
            self.nodes[me].session.as_mut().expect("seen above").survived = survived;
            self.advance_seal(me);
        }
    }

    /// A copy tells its marks, when nothing of older owners is on its way to its disk.
    pub fn answer_seal(&mut self, options: &Options, me: usize, from: usize) -> bool {
        let Some(session) = self.nodes[me].session.as_ref() else { return false };
        let generation = session.generation;
        let Some(seal) = session.seal.as_ref().filter(|s| !s.is_planned && s.answers[from].is_none()) else {
            return false;
        };
        let Some(asked) = seal.asked[from].filter(|_| self.nodes[from].is_alive) else { return false };
        let view = self.view(from);
        let copy = &self.nodes[from].copy;
        if view.version < asked || view.generation != generation {
            return false;
        }
        if copy.has_older_changes(generation) && !options.has(Bug::SealOvertakesTheDisk) {
            return false;
        }
        let clean = view.clean;
        let mut marks =
            if options.has(Bug::SealOvertakesTheDisk) { copy.marks.clone() } else { copy.unsettled() };
        marks.retain(|mark| mark.stamp.generation > clean);
        let seal = self.nodes[me].session.as_mut().and_then(|s| s.seal.as_mut()).expect("seen above");
        seal.answers[from] = Some(marks);
        self.replan_seal(options, me);
        true
    }

    /// Reads what the next mend copies and sends it to all. Where a source has been lost, the seal begins anew when all its changes have ended.
    pub fn mend(&mut self, options: &Options, me: usize) -> bool {
        let view = *self.view(me);
        let Some(session) = self.nodes[me].session.as_mut() else { return false };
        let is_waiting = !session.flights.is_empty() && !options.has(Bug::SealBeginsAnewAtOnce);
        let Some(seal) = session.seal.as_mut().filter(|s| s.is_planned) else { return false };
        let Some(mend) = seal.todo.first().copied() else { return false };
        if seal.begins_anew || !view.in_sync.has(mend.source) {
            if is_waiting {
                return false;
            }
            (session.seal, session.survived) = (Some(Seal::default()), None);
            self.replan_seal(options, me);
            return true;
        }
        if session.is_changing(Set::of(mend.block)) {
            return false;
        }
        let source = &self.nodes[mend.source];
        if !source.is_alive
            || self.view(mend.source).since != view.since
            || !self.view(mend.source).in_sync.has(mend.source)
        {
            return false;
        }
        let value = source.copy.will_read(mend.block);
        self.start(options, me, Set::of(mend.block), value, mend.origin);
        let seal = self.nodes[me].session.as_mut().and_then(|s| s.seal.as_mut()).expect("seen above");
        seal.todo.remove(0);
        true
    }

    pub fn advance_seal(&mut self, me: usize) {
        let Some(session) = self.nodes[me].session.as_mut() else { return };
        let idle = session.flights.is_empty();
        if session.seal.as_ref().is_some_and(|s| s.is_planned && s.todo.is_empty() && idle) {
            session.seal = None;
            session.next_seq = 1;
        }
    }
}

/// What of a block has to be copied, and from where: the newest change that an in-sync copy has, unless all have it.
fn plan(view: &View, block: usize, changes: &[(usize, Mark)]) -> Option<Mend> {
    let changes: Vec<_> = changes.iter().filter(|(_, mark)| mark.blocks.has(block)).collect();
    let newest = changes.iter().map(|(_, mark)| mark.stamp).max()?;
    let fallback = view.in_sync.iter().next()?;
    let winner =
        changes.iter().filter(|(node, _)| view.in_sync.has(*node)).max_by_key(|(_, mark)| mark.stamp);
    let (source, stamp, origin) =
        winner.map_or((fallback, None, 0), |(node, mark)| (*node, Some(mark.stamp), mark.origin));
    let all_have = stamp.is_some_and(|stamp| {
        view.writers().iter().all(|n| changes.iter().any(|(node, mark)| *node == n && mark.stamp == stamp))
    });
    (!(all_have && stamp == Some(newest))).then_some(Mend { block, source, origin })
}

/// Which blocks the forwarded request has changed already, as copies tell that can be read.
fn survivors(options: &Options, view: &View, changes: &[(usize, Mark)]) -> Option<Set> {
    let counts = |(node, mark): &&(usize, Mark)| view.in_sync.has(*node) && mark.origin == FORWARDED;
    let survivors = changes.iter().filter(counts).map(|(_, mark)| {
        let undone =
            changes.iter().map(|(_, copy)| undone_by(copy, mark, changes)).fold(Set::default(), Set::or);
        let as_a_whole = options.has(Bug::UndoneAsAWhole) && !undone.is_empty();
        if as_a_whole { Set::default() } else { mark.blocks.without(undone) }
    });
    let blocks = survivors.filter(|blocks| !blocks.is_empty()).reduce(Set::or)?;
    Some(if options.has(Bug::HalfIsTakenForAll) { Set::first(options.blocks) } else { blocks })
}

/// Blocks of a change in whose place a seal that did not end put this copy, which was not newer.
fn undone_by(copy: &Mark, mark: &Mark, changes: &[(usize, Mark)]) -> Set {
    let is_of = |other: &Mark| other.origin == copy.origin && copy.origin != 0;
    let is_newer = |other: &Mark| other.stamp.is_write && is_of(other) && other.stamp > mark.stamp;
    let replaces = !copy.stamp.is_write && copy.stamp > mark.stamp && !is_of(mark);
    let is_undone = replaces && !changes.iter().any(|(_, other)| is_newer(other));
    if is_undone { copy.blocks.and(mark.blocks) } else { Set::default() }
}
