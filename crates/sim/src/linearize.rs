//! Is one block's history that of a register? The search for an order that explains every answer.
//!
//! A history is linearizable if its requests can be put in an order in which each takes effect at one point
//! between its invocation and its answer, and every read returns what the writes before it left. The search is
//! Wing and Gong's, with Lowe's memory of configurations seen, and three facts that keep it small:
//!
//! - A read that may come next and matches the contents can come next: it changes nothing for the others.
//! - Values are unique. An unanswered write that nobody read may be left out: in any order that
//!   explains the history with it, no read of its cells stands between it and whatever overwrote it. One that
//!   was read took effect before that read was answered, so it has an end after all.
//! - Only unanswered zeros (discards) remain optional for ever.
//!
//! Where all copies may have lost their memory ([`Action::Loss`]) the register is one with a volatile cache: at that point it may come to hold again
//! what it held before any of the writes that are not durable by then, and what it holds stays if none of them is undone. A write that was not answered
//! can be undone so, too. What a loss has brought back is taken for durable.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::history::{Action, BlockOp, Step};
use crate::value::{CELLS, Cells, Value};

/// Configurations after which a history counts as undecidable. Histories of a run need a few thousand.
const CONFIGURATIONS_MAX: usize = 2_000_000;

/// Explains why a history is not that of a register.
pub fn check(history: &[BlockOp]) -> Result<(), String> {
    let ops = plan(history)?;
    match Search::new(&ops).run() {
        Outcome::Explained => Ok(()),
        Outcome::Impossible { stuck } => Err(describe(history, stuck)),
        Outcome::Undecided => {
            Err(format!("undecided after {CONFIGURATIONS_MAX} configurations of {} requests", history.len()))
        }
    }
}

/// A request with the bounds of the point at which it took effect.
#[derive(Clone, Debug)]
struct Op {
    number: u64,
    from: Step,
    /// `None`: it may have no effect at all.
    until: Option<Step>,
    cells: u8,
    action: Action,
    /// See [`BlockOp::durable`].
    durable: Option<Step>,
}

/// Bounds and drops unanswered writes; finds values that were never written.
fn plan(history: &[BlockOp]) -> Result<Vec<Op>, String> {
    let mut writes: BTreeMap<Value, &BlockOp> = BTreeMap::new();
    for op in history {
        if let Action::Write(value) = op.action
            && value != 0
        {
            assert!(writes.insert(value, op).is_none(), "value {value} is written twice");
        }
    }
    let mut first_read: BTreeMap<Value, Step> = BTreeMap::new();
    for op in history {
        let Action::Read(contents) = &op.action else { continue };
        let answered = op.answered.expect("unanswered reads are not recorded");
        for (value, cell) in read_cells(op.cells, contents) {
            let write = writes.get(&value);
            if write.is_none_or(|w| w.cells & 1 << cell == 0 || w.invoked > answered) {
                return Err(describe(history, Some(op.op))
                    + &format!(
                        "request {} read value {value} in cell {cell}: nobody wrote it there\n",
                        op.op
                    ));
            }
            let first = first_read.entry(value).or_insert(answered);
            *first = answered.min(*first);
        }
    }
    let mut ops: Vec<Op> = history
        .iter()
        .filter_map(|op| {
            let until = match (op.answered, &op.action) {
                (Some(step), _) => Some(step),
                (None, Action::Write(0)) => None,
                (None, Action::Write(value)) => Some(*first_read.get(value)?),
                (None, Action::Read(_) | Action::Loss) => return None,
            };
            let (from, action) = (op.invoked, op.action.clone());
            Some(Op { number: op.op, from, until, cells: op.cells, action, durable: op.durable })
        })
        .collect();
    ops.sort_by_key(|op| op.from);
    Ok(ops)
}

fn read_cells(cells: u8, contents: &Cells) -> impl Iterator<Item = (Value, usize)> {
    (0..CELLS).filter(move |i| cells & 1 << i != 0).map(|i| (contents[i], i)).filter(|(value, _)| *value != 0)
}

enum Outcome {
    Explained,
    /// `stuck`: the request that had to come next where the search got farthest.
    Impossible {
        stuck: Option<u64>,
    },
    Undecided,
}

/// Which requests have taken effect, and what that left in the cells.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Configuration {
    done: Vec<u64>,
    /// All requests before this one are done or optional.
    base: usize,
    contents: Cells,
    done_count: usize,
    /// What a loss may bring back: what it held before each write that may be undone, and which write that was.
    past: Vec<(Cells, usize)>,
}

struct Search<'a> {
    ops: &'a [Op],
    /// Whether there is any need to know the past.
    has_losses: bool,
    seen: BTreeSet<Configuration>,
    farthest: (usize, Option<u64>),
}

impl<'a> Search<'a> {
    fn new(ops: &'a [Op]) -> Self {
        let has_losses = ops.iter().any(|op| op.action == Action::Loss);
        Search { ops, has_losses, seen: BTreeSet::new(), farthest: (0, None) }
    }

    fn run(mut self) -> Outcome {
        let words = self.ops.len().div_ceil(64);
        let start = Configuration {
            done: vec![0; words],
            base: 0,
            contents: [0; CELLS],
            done_count: 0,
            past: Vec::new(),
        };
        let mut stack = vec![start];
        while let Some(mut configuration) = stack.pop() {
            self.take_matching_reads(&mut configuration);
            let Some(deadline) = self.deadline(&configuration) else { return Outcome::Explained };
            if configuration.done_count >= self.farthest.0 {
                let stuck = self.ops.iter().find(|op| op.until == Some(deadline)).map(|op| op.number);
                self.farthest = (configuration.done_count, stuck);
            }
            if !self.seen.insert(configuration.clone()) {
                continue;
            }
            if self.seen.len() > CONFIGURATIONS_MAX {
                return Outcome::Undecided;
            }
            self.push_successors(&configuration, deadline, &mut stack);
        }
        Outcome::Impossible { stuck: self.farthest.1 }
    }

    /// The first answer among requests that have not taken effect: whatever comes next was invoked before it.
    fn deadline(&self, at: &Configuration) -> Option<Step> {
        // Requests invoked after the smallest answer so far cannot be answered before it.
        let mut deadline: Option<Step> = None;
        for i in at.base..self.ops.len() {
            let op = &self.ops[i];
            if deadline.is_some_and(|d| op.from > d) {
                break;
            }
            if let (false, Some(until)) = (is_done(at, i), op.until) {
                deadline = Some(deadline.map_or(until, |d| d.min(until)));
            }
        }
        deadline
    }

    fn take_matching_reads(&self, at: &mut Configuration) {
        while let Some(deadline) = self.deadline(at) {
            let matching = self.candidates(at, deadline).find(|&i| match &self.ops[i].action {
                Action::Read(contents) => matches(self.ops[i].cells, contents, &at.contents),
                Action::Write(_) | Action::Loss => false,
            });
            let Some(i) = matching else { return };
            self.take(at, i);
        }
    }

    fn candidates<'b>(&'b self, at: &'b Configuration, deadline: Step) -> impl Iterator<Item = usize> + 'b {
        // Optional requests stay candidates for ever, also those before the base.
        let in_time = (at.base..self.ops.len()).take_while(move |&i| self.ops[i].from < deadline);
        let optional = (0..at.base).filter(|&i| self.ops[i].until.is_none());
        optional.chain(in_time).filter(|&i| !is_done(at, i))
    }

    fn push_successors(&self, at: &Configuration, deadline: Step, stack: &mut Vec<Configuration>) {
        let from = stack.len();
        for i in self.candidates(at, deadline) {
            let op = &self.ops[i];
            let value = match op.action {
                Action::Read(_) => continue,
                Action::Loss => {
                    stack.extend(self.after_loss(at, i));
                    continue;
                }
                Action::Write(value) => value,
            };
            let mut next = at.clone();
            write(op.cells, value, &mut next.contents);
            if self.has_losses {
                match op.durable {
                    Some(0) => next.past.clear(),
                    _ => next.past.push((at.contents, i)),
                }
            }
            if op.until.is_none() && next.contents == at.contents {
                continue;
            }
            self.take(&mut next, i);
            stack.push(next);
        }
        // The earliest invoked is tried first: it is on top.
        stack[from..].reverse();
    }

    /// All that may be left.
    fn after_loss(&self, at: &Configuration, i: usize) -> Vec<Configuration> {
        let moment = self.ops[i].from;
        let is_durable = |write: usize| self.ops[write].durable.is_some_and(|step| step <= moment);
        let first = at.past.iter().rposition(|(_, write)| is_durable(*write)).map_or(0, |last| last + 1);
        let mut stays = at.clone();
        stays.past.drain(..first);
        self.take(&mut stays, i);
        let undone = stays.past.iter().enumerate().map(|(n, (contents, _))| Configuration {
            contents: *contents,
            past: stays.past[..n].to_vec(),
            ..stays.clone()
        });
        let mut left: Vec<Configuration> = undone.filter(|other| other.contents != stays.contents).collect();
        left.push(stays);
        left
    }

    fn take(&self, at: &mut Configuration, i: usize) {
        at.done[i / 64] |= 1 << (i % 64);
        at.done_count += 1;
        while at.base < self.ops.len() && (is_done(at, at.base) || self.ops[at.base].until.is_none()) {
            at.base += 1;
        }
    }
}

fn is_done(at: &Configuration, i: usize) -> bool {
    at.done[i / 64] & 1 << (i % 64) != 0
}

fn matches(cells: u8, read: &Cells, contents: &Cells) -> bool {
    (0..CELLS).all(|i| cells & 1 << i == 0 || read[i] == contents[i])
}

fn write(cells: u8, value: Value, contents: &mut Cells) {
    (0..CELLS).filter(|i| cells & 1 << i != 0).for_each(|i| contents[i] = value);
}

/// The requests around the one that cannot be explained.
fn describe(history: &[BlockOp], stuck: Option<u64>) -> String {
    const AROUND: usize = 12;
    let mut sorted: Vec<&BlockOp> = history.iter().collect();
    sorted.sort_by_key(|op| op.invoked);
    let at = stuck.and_then(|number| sorted.iter().position(|op| op.op == number)).unwrap_or(0);
    let from = at.saturating_sub(AROUND);
    let mut text = match stuck {
        Some(number) => format!("no order of requests explains request {number}:\n"),
        None => String::from("no order of requests explains this history:\n"),
    };
    if from > 0 {
        let _ = writeln!(text, "  ... {from} requests before");
    }
    for op in &sorted[from..(at + AROUND).min(sorted.len())] {
        let answered = op.answered.map_or("never".into(), |step| step.to_string());
        let action = match &op.action {
            Action::Write(value) => format!("write {value}"),
            Action::Read(cells) => format!("read {cells:?}"),
            Action::Loss => "memory is lost".into(),
        };
        let durable = match (&op.action, op.durable) {
            (Action::Write(_), Some(0)) | (Action::Read(_) | Action::Loss, _) => String::new(),
            (Action::Write(_), Some(step)) => format!(", flushed by {step}"),
            (Action::Write(_), None) => ", not flushed".into(),
        };
        let mark = if Some(op.op) == stuck { "*" } else { " " };
        let _ = writeln!(
            text,
            "{mark} request {} [{} .. {answered}] cells {:08b} {action}{durable}",
            op.op, op.invoked, op.cells
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prng::Rng;

    const ALL: u8 = 0xff;

    fn write_op(op: u64, span: (Step, Step), value: Value) -> BlockOp {
        let (invoked, answered) = (span.0, Some(span.1));
        BlockOp { op, invoked, answered, cells: ALL, action: Action::Write(value), durable: Some(0) }
    }

    fn read_op(op: u64, span: (Step, Step), value: Value) -> BlockOp {
        BlockOp {
            op,
            invoked: span.0,
            answered: Some(span.1),
            cells: ALL,
            action: Action::Read([value; CELLS]),
            durable: None,
        }
    }

    fn unanswered(op: BlockOp) -> BlockOp {
        BlockOp { answered: None, durable: None, ..op }
    }

    fn write_back_op(op: u64, span: (Step, Step), value: Value, flushed: Option<Step>) -> BlockOp {
        BlockOp { durable: flushed, ..write_op(op, span, value) }
    }

    fn loss(op: u64, step: Step) -> BlockOp {
        BlockOp { action: Action::Loss, durable: None, ..read_op(op, (step, step + 1), 0) }
    }

    #[test]
    fn a_loss_undoes_what_was_not_flushed_and_nothing_else() {
        let lost = |flushed, value| {
            let history = [
                write_op(1, (1, 2), 6),
                write_back_op(2, (3, 4), 7, flushed),
                loss(3, 10),
                read_op(4, (20, 21), value),
            ];
            check(&history).is_err()
        };
        assert!(!lost(None, 6) && !lost(None, 7) && lost(None, 0), "the write before it was durable");
        assert!(!lost(Some(15), 6), "flushed too late");
        assert!(lost(Some(9), 6) && !lost(Some(9), 7));
    }

    #[test]
    fn what_is_not_flushed_survives_all_but_a_loss_and_stays_lost() {
        let written = [write_back_op(1, (1, 2), 7, None)];
        assert!(check(&[&written[..], &[read_op(2, (3, 4), 0)]].concat()).is_err());
        let before = [&written[..], &[read_op(2, (3, 4), 0), loss(3, 5)]].concat();
        assert!(check(&before).is_err(), "it was lost before the loss");
        let back = [&written[..], &[loss(2, 3), read_op(3, (5, 6), 0), read_op(4, (7, 8), 7)]].concat();
        assert!(check(&back).is_err());
        let later = [loss(1, 1), write_back_op(2, (3, 4), 7, None), read_op(3, (5, 6), 0)];
        assert!(check(&later).is_err(), "nothing was lost after it");
    }

    #[test]
    fn any_of_the_writes_that_were_not_flushed_may_be_the_last_to_survive() {
        let writes = [
            write_back_op(1, (1, 2), 5, Some(4)),
            write_back_op(2, (5, 6), 6, None),
            write_back_op(3, (7, 8), 7, None),
            loss(4, 9),
        ];
        let left = |value| check(&[&writes[..], &[read_op(5, (12, 13), value)]].concat()).is_ok();
        assert_eq!([0, 5, 6, 7].map(left), [false, true, true, true]);
    }

    #[test]
    fn reads_see_the_last_write_or_one_that_overlaps() {
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&[read_op(1, (1, 2), 0)]), Ok(()));
        assert_eq!(check(&[write_op(1, (1, 2), 7), read_op(2, (3, 4), 7)]), Ok(()));
        assert_eq!(check(&[write_op(1, (1, 4), 7), read_op(2, (2, 3), 0)]), Ok(()));
        assert_eq!(check(&[write_op(1, (1, 4), 7), read_op(2, (2, 3), 7)]), Ok(()));
        // Two overlapping writes, in the order that the reads show.
        let writes = [write_op(1, (1, 4), 7), write_op(2, (2, 5), 8)];
        for last in [7, 8] {
            assert_eq!(check(&[&writes[..], &[read_op(3, (6, 7), last)]].concat()), Ok(()));
        }
    }

    #[test]
    fn a_lost_acknowledged_write_is_found() {
        assert!(check(&[write_op(1, (1, 2), 7), read_op(2, (3, 4), 0)]).is_err());
        let overwritten = [write_op(1, (1, 2), 7), write_op(2, (3, 4), 8), read_op(3, (5, 6), 7)];
        assert!(check(&overwritten).unwrap_err().contains("request 3"));
    }

    #[test]
    fn reads_that_go_backwards_are_found() {
        let history = [write_op(1, (1, 10), 7), read_op(2, (2, 3), 7), read_op(3, (4, 5), 0)];
        assert!(check(&history).is_err());
        // Two observers who see two writes in different orders.
        let crossed = [
            write_op(1, (1, 20), 7),
            write_op(2, (2, 21), 8),
            read_op(3, (3, 4), 7),
            read_op(4, (5, 6), 8),
            read_op(5, (7, 8), 7),
        ];
        assert!(check(&crossed).is_err());
    }

    #[test]
    fn an_unanswered_write_may_happen_late_or_never_but_not_twice() {
        let lost = unanswered(write_op(1, (1, 0), 7));
        assert_eq!(check(&[lost.clone(), read_op(2, (3, 4), 0)]), Ok(()));
        assert_eq!(check(&[lost.clone(), read_op(2, (3, 4), 0), read_op(3, (5, 6), 7)]), Ok(()));
        let again = [lost, read_op(2, (3, 4), 7), write_op(3, (5, 6), 8), read_op(4, (7, 8), 7)];
        assert!(check(&again).is_err());
    }

    #[test]
    fn unanswered_discards_may_happen_at_any_later_time() {
        let discard = unanswered(write_op(1, (1, 0), 0));
        let written = write_op(2, (3, 4), 7);
        assert_eq!(check(&[discard.clone(), written.clone(), read_op(3, (5, 6), 0)]), Ok(()));
        assert_eq!(check(&[discard.clone(), written.clone(), read_op(3, (5, 6), 7)]), Ok(()));
        assert!(check(&[discard, written, read_op(3, (5, 6), 0), read_op(4, (7, 8), 7)]).is_err());
    }

    #[test]
    fn data_after_a_discard_is_found() {
        let history = [write_op(1, (1, 2), 7), write_op(2, (3, 4), 0), read_op(3, (5, 6), 7)];
        assert!(check(&history).is_err());
    }

    #[test]
    fn a_write_of_a_whole_block_is_atomic() {
        let mut torn = read_op(3, (3, 4), 7);
        torn.action = Action::Read([7, 7, 7, 7, 8, 8, 8, 8]);
        let writes = [write_op(1, (1, 10), 7), write_op(2, (2, 11), 8)];
        assert!(check(&[&writes[..], &[torn.clone()]].concat()).is_err());
        // Two writes of half a block each do explain it.
        let mut halves = writes;
        halves[0].cells = 0x0f;
        halves[1].cells = 0xf0;
        assert_eq!(check(&[&halves[..], &[torn]].concat()), Ok(()));
    }

    #[test]
    fn a_value_that_was_never_written_there_is_found() {
        assert!(check(&[read_op(1, (1, 2), 9)]).unwrap_err().contains("nobody wrote it"));
        // Written, but only after the read was answered.
        assert!(check(&[read_op(1, (1, 2), 9), write_op(2, (3, 4), 9)]).is_err());
    }

    /// Plays a true register with overlapping requests; then spoils one read.
    fn random_history(rng: &mut Rng, clients: usize, ops: u64) -> Vec<BlockOp> {
        let mut contents = [0; CELLS];
        let mut step = 0;
        let mut idle: Vec<usize> = (0..clients).collect();
        let mut open: Vec<(usize, BlockOp, bool)> = Vec::new();
        let mut history = Vec::new();
        let mut number = 0;
        while number < ops || !open.is_empty() {
            step += 1;
            match rng.below(3) {
                0 if number < ops && !idle.is_empty() => {
                    number += 1;
                    let cells = if rng.percent(50) { ALL } else { 1 << rng.below(8) };
                    let action = match rng.below(10) {
                        0 => Action::Write(0),
                        1..=4 => Action::Write(number),
                        _ => Action::Read([0; CELLS]),
                    };
                    let durable = Some(0);
                    let op = BlockOp { op: number, invoked: step, answered: None, cells, action, durable };
                    open.push((idle.pop().unwrap(), op, false));
                }
                1 if !open.is_empty() => {
                    let i = rng.index(open.len());
                    let (_, op, happened) = &mut open[i];
                    if !*happened {
                        *happened = true;
                        match &mut op.action {
                            Action::Write(value) => write(op.cells, *value, &mut contents),
                            Action::Read(seen) => *seen = contents,
                            Action::Loss => unreachable!("none is drawn"),
                        }
                    }
                }
                _ => {
                    if let Some(i) = (0..open.len()).find(|&i| open[i].2 || rng.permille(20)) {
                        let (client, mut op, happened) = open.remove(i);
                        if happened && !rng.percent(5) {
                            op.answered = Some(step);
                            history.push(op);
                        } else if matches!(op.action, Action::Write(_)) {
                            history.push(op);
                        }
                        idle.push(client);
                    }
                }
            }
        }
        history
    }

    #[test]
    fn every_history_of_a_true_register_is_explained() {
        let mut rng = Rng::new(1);
        for _ in 0..200 {
            let history = random_history(&mut rng, 6, 120);
            assert_eq!(check(&history), Ok(()));
        }
    }

    #[test]
    fn stale_reads_in_long_histories_are_found() {
        let mut rng = Rng::new(2);
        let mut found = 0;
        for _ in 0..100 {
            let mut history = random_history(&mut rng, 4, 100);
            // The first contents that a late reader of everything could not see any more.
            let last = history.iter().filter_map(|op| op.answered).max().unwrap();
            let Some(first) =
                history.iter().filter(|op| op.cells == ALL && op.answered.is_some()).find_map(|op| match op
                    .action
                {
                    Action::Write(value) if value != 0 => Some(value),
                    _ => None,
                })
            else {
                continue;
            };
            history.push(read_op(1000, (last + 1, last + 2), first));
            found += usize::from(check(&history).is_err());
        }
        assert!(found > 90, "{found}");
    }

    /// The slow twin: tries every order of everything.
    fn explains_some_order(ops: &[Op], done: &mut Vec<bool>, contents: Cells) -> bool {
        let open = (0..ops.len()).filter(|&i| !done[i]).collect::<Vec<_>>();
        let deadline = open.iter().filter_map(|&i| ops[i].until).min();
        if deadline.is_none() {
            return true;
        }
        open.into_iter().filter(|&i| ops[i].from < deadline.unwrap()).any(|i| {
            let mut next = contents;
            match &ops[i].action {
                Action::Read(read) if !matches(ops[i].cells, read, &contents) => return false,
                Action::Read(_) => {}
                Action::Write(value) => write(ops[i].cells, *value, &mut next),
                Action::Loss => unreachable!("none is drawn"),
            }
            done[i] = true;
            let explained = explains_some_order(ops, done, next);
            done[i] = false;
            explained
        })
    }

    #[test]
    fn verdicts_on_small_histories_match_those_of_trying_every_order() {
        let mut rng = Rng::new(3);
        let mut impossible = 0;
        for _ in 0..3000 {
            let mut history = random_history(&mut rng, 3, 7);
            // Spoil one read with some other value or zeros.
            let values: Vec<Value> = (0..8).collect();
            if let Some(op) = history.iter_mut().find(|op| matches!(op.action, Action::Read(_))) {
                op.action = Action::Read([*rng.pick(&values); CELLS]);
            }
            let verdict = check(&history).is_ok();
            // Twin without any shortcut: an unanswered write has no deadline at all.
            let ops: Vec<Op> = history
                .iter()
                .map(|op| Op {
                    number: op.op,
                    from: op.invoked,
                    until: op.answered,
                    cells: op.cells,
                    action: op.action.clone(),
                    durable: op.durable,
                })
                .collect();
            let expect = explains_some_order(&ops, &mut vec![false; ops.len()], [0; CELLS]);
            assert_eq!(verdict, expect, "{history:#?}");
            impossible += usize::from(!expect);
        }
        assert!(impossible > 300, "{impossible}");
    }
}
