//! What clients asked of each block, when they asked and when they were answered.

use std::collections::BTreeMap;

use proto::Vid;

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
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Zeros (discard, write zeroes) are the value 0.
    Write(Value),
    /// Only the cells in the mask mean something.
    Read(Cells),
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
}

/// Recorder of a run. Every request is invoked once, and answered or abandoned at most once.
#[derive(Debug)]
pub struct History {
    steps: Step,
    open: BTreeMap<u64, Open>,
    blocks: BTreeMap<BlockId, Vec<BlockOp>>,
    ops: u64,
}

impl Default for History {
    /// Steps 0 and 1 are left for what was there before.
    fn default() -> History {
        History { steps: 1, open: BTreeMap::new(), blocks: BTreeMap::new(), ops: 0 }
    }
}

impl History {
    pub fn invoke_write(&mut self, vid: Vid, range: CellRange, value: Value) -> u64 {
        self.invoke(vid, range, Some(value))
    }

    pub fn invoke_read(&mut self, vid: Vid, range: CellRange) -> u64 {
        self.invoke(vid, range, None)
    }

    fn invoke(&mut self, vid: Vid, range: CellRange, write: Option<Value>) -> u64 {
        self.ops += 1;
        let invoked = self.step();
        self.open.insert(self.ops, Open { vid, range, invoked, write });
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
            let entry = BlockOp { op, invoked: open.invoked, answered, cells, action: action(block) };
            self.blocks.entry(BlockId { vid: open.vid, block }).or_default().push(entry);
        }
    }
}
