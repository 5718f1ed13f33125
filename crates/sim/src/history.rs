//! What clients asked of each block, when they asked and when they were answered; and when what was not durable may have been lost.

use std::collections::{BTreeMap, BTreeSet};

use proto::{PgId, Vid};

use crate::value::{CELLS, CellRange, Cells, Value};

/// Position in the order of all invocations and answers of a run. No two share one.
pub type Step = u64;

/// A client's request, as far as one block is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockOp {
    pub op: u64,
    pub invoked: Step,
    /// `None`: never answered, because its sheep died. It may have happened, may yet happen, or never.
    pub answered: Option<Step>,
    pub cells: u8,
    pub action: Action,
    /// Of a write: from which step on no loss undoes it. 0 for one that is durable when it is answered; `None`: a loss may undo it at any time.
    pub durable: Option<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Zeros (discard, write zeroes) are the value 0.
    Write(Value),
    /// Only the cells in the mask mean something.
    Read(Cells),
    /// All copies have lost their memory: the block may hold again what any write that was not durable had replaced.
    Loss,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockId {
    pub vid: Vid,
    pub block: u64,
}

impl std::fmt::Display for BlockId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "vid {} block {}", self.vid, self.block)
    }
}

#[derive(Clone, Debug)]
struct Open {
    vid: Vid,
    range: CellRange,
    invoked: Step,
    write: Option<Value>,
    /// It may be answered before it is durable.
    write_back: bool,
}

/// All PGs of which no copy was left that had lived on, at one moment.
#[derive(Debug)]
struct Loss {
    span: (Step, Step),
    pgs: BTreeSet<PgId>,
}

/// Recorder of a run. Every request is invoked once, and answered or abandoned at most once.
#[derive(Debug)]
pub struct History {
    steps: Step,
    open: BTreeMap<u64, Open>,
    blocks: BTreeMap<BlockId, Vec<BlockOp>>,
    /// Flushes under way: of what, since when. And those that were answered.
    open_flushes: BTreeMap<u64, (Vid, Step)>,
    flushes: BTreeMap<Vid, Vec<(Step, Step)>>,
    losses: Vec<Loss>,
    ops: u64,
}

impl Default for History {
    /// Steps 0 and 1 are left for what was there before.
    fn default() -> History {
        History {
            steps: 1,
            open: BTreeMap::new(),
            blocks: BTreeMap::new(),
            open_flushes: BTreeMap::new(),
            flushes: BTreeMap::new(),
            losses: Vec::new(),
            ops: 0,
        }
    }
}

impl History {
    pub fn invoke_write(&mut self, vid: Vid, range: CellRange, value: Value) -> u64 {
        self.invoke(vid, range, Some(value), false)
    }

    /// One that is durable at the next flush only.
    pub fn invoke_write_back(&mut self, vid: Vid, range: CellRange, value: Value) -> u64 {
        self.invoke(vid, range, Some(value), true)
    }

    pub fn invoke_flush(&mut self, vid: Vid) -> u64 {
        self.ops += 1;
        let invoked = self.step();
        self.open_flushes.insert(self.ops, (vid, invoked));
        self.ops
    }

    pub fn flushed(&mut self, op: u64) {
        let (vid, invoked) = self.open_flushes.remove(&op).expect("a request is answered once");
        let answered = self.step();
        self.flushes.entry(vid).or_default().push((invoked, answered));
    }

    /// Of these PGs no copy has lived on.
    pub fn lose(&mut self, pgs: BTreeSet<PgId>) {
        let span = (self.step(), self.step());
        self.losses.push(Loss { span, pgs });
    }

    /// How often something may have been lost.
    pub fn loss_count(&self) -> u64 {
        self.losses.len() as u64
    }

    pub fn flush_count(&self) -> u64 {
        self.flushes.values().map(|flushes| flushes.len() as u64).sum()
    }

    /// Puts flushes and losses into the histories of the blocks: to be called once, when all has been asked.
    pub fn conclude(&mut self, pg_of: impl Fn(&BlockId) -> Option<PgId>) {
        for (id, history) in &mut self.blocks {
            let flushes = self.flushes.get(&id.vid).map_or(&[][..], |flushes| flushes);
            for op in history.iter_mut().filter(|op| op.durable.is_none()) {
                // A flush covers what was answered before it was sent.
                let covers = |(invoked, _): &&(Step, Step)| op.answered.is_some_and(|step| step < *invoked);
                op.durable = flushes.iter().filter(covers).map(|(_, answered)| *answered).min();
            }
            let pg = pg_of(id);
            for loss in self.losses.iter().filter(|loss| pg.is_none_or(|pg| loss.pgs.contains(&pg))) {
                self.ops += 1;
                history.push(BlockOp {
                    op: self.ops,
                    invoked: loss.span.0,
                    answered: Some(loss.span.1),
                    cells: 0,
                    action: Action::Loss,
                    durable: None,
                });
            }
        }
    }

    pub fn invoke_read(&mut self, vid: Vid, range: CellRange) -> u64 {
        self.invoke(vid, range, None, false)
    }

    fn invoke(&mut self, vid: Vid, range: CellRange, write: Option<Value>, write_back: bool) -> u64 {
        self.ops += 1;
        let invoked = self.step();
        self.open.insert(self.ops, Open { vid, range, invoked, write, write_back });
        self.ops
    }

    pub fn written(&mut self, op: u64) {
        let open = self.open.remove(&op).expect("a request is answered once");
        let value = open.write.expect("a write");
        let answered = Some(self.step());
        self.record(op, &open, answered, |_| Action::Write(value));
    }

    /// `values`: what each cell of the range held.
    pub fn read(&mut self, op: u64, values: &[Value]) {
        let open = self.open.remove(&op).expect("a request is answered once");
        assert!(open.write.is_none() && values.len() as u64 == open.range.count);
        let answered = Some(self.step());
        self.record(op, &open, answered, |block| {
            Action::Read(std::array::from_fn(|i| {
                let cell = block * CELLS as u64 + i as u64;
                cell.checked_sub(open.range.first)
                    .and_then(|at| values.get(at as usize))
                    .copied()
                    .unwrap_or(0)
            }))
        });
    }

    /// Nobody will ever know what became of it.
    pub fn abandoned(&mut self, op: u64) {
        if self.open_flushes.remove(&op).is_some() {
            return;
        }
        let open = self.open.remove(&op).expect("a request ends once");
        if let Some(value) = open.write {
            self.record(op, &open, None, |_| Action::Write(value));
        }
    }

    pub fn open_ops(&self) -> impl Iterator<Item = u64> {
        self.open.keys().copied()
    }

    pub fn op_count(&self) -> u64 {
        self.ops
    }

    pub fn blocks(&self) -> &BTreeMap<BlockId, Vec<BlockOp>> {
        &self.blocks
    }

    /// A point in the order of its own.
    pub fn step(&mut self) -> Step {
        self.steps += 1;
        self.steps
    }

    fn record(&mut self, op: u64, open: &Open, answered: Option<Step>, action: impl Fn(u64) -> Action) {
        for (block, cells) in open.range.blocks() {
            // What was not answered was promised to nobody.
            let durable = (!open.write_back && answered.is_some()).then_some(0);
            let entry =
                BlockOp { op, invoked: open.invoked, answered, cells, action: action(block), durable };
            self.blocks.entry(BlockId { vid: open.vid, block }).or_default().push(entry);
        }
    }
}
