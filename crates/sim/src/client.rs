//! Clients: what they ask of which sheep next. Few blocks, many clients, so that requests overlap often.

use std::collections::BTreeMap;

use proto::client::{ClientOp, Point, VolumeOp};
use proto::{BLOCK_BYTES, Vid};

use crate::network::SheepIndex;
use crate::prng::Rng;
use crate::scenario::Scenario;
use crate::value::{CELLS, CellRange, Value, fill};

/// More than a slot and its ragged ends.
const WIDE_BLOCKS: u64 = 22;

/// In the third page of a block table.
const FAR_OBJECT: u64 = 2 << 20;

/// Runs of blocks that clients touch: the beginning, and both sides of the first borders between objects.
pub struct Population {
    windows: Vec<CellRange>,
    pub vdi_bytes: u64,
}

impl Population {
    pub fn new(scenario: &Scenario) -> Population {
        let block_size_shift = scenario.format.block_size_shift;
        let object_blocks = (1u64 << block_size_shift) / BLOCK_BYTES as u64;
        let window =
            |first: u64, count: u64| CellRange { first: first * CELLS as u64, count: count * CELLS as u64 };
        let mut windows = vec![window(0, 2), window(object_blocks - 2, 4), window(2 * object_blocks - 1, 3)];
        if scenario.wide_writes {
            windows.push(window(object_blocks / 2 - 3, WIDE_BLOCKS));
        }
        if scenario.large {
            windows.push(window((FAR_OBJECT + 1) * object_blocks - 2, 3));
        }
        let objects = if scenario.large { FAR_OBJECT + 2 } else { 3 };
        Population { windows, vdi_bytes: objects << block_size_shift }
    }

    pub fn windows(&self) -> &[CellRange] {
        &self.windows
    }

    /// A whole block, a part of one, or a span that may cross blocks and objects.
    fn draw(&self, rng: &mut Rng) -> CellRange {
        let window = *rng.pick(&self.windows);
        let cells = CELLS as u64;
        match rng.below(4) {
            0 | 1 => {
                let block = rng.below(window.count / cells);
                CellRange { first: window.first + block * cells, count: cells }
            }
            2 => {
                let block = rng.below(window.count / cells);
                let from = rng.below(cells);
                let count = rng.in_range(1..cells - from + 1);
                CellRange { first: window.first + block * cells + from, count }
            }
            _ => {
                let from = rng.below(window.count);
                let count = rng.in_range(1..window.count - from + 1);
                CellRange { first: window.first + from, count }
            }
        }
    }
}

/// A request on some blocks, and how it enters the history.
#[derive(Clone, Debug)]
pub enum BlockRequest {
    Read(CellRange),
    Write(CellRange, Value),
    /// A discard, or zeros that stay allocated.
    Zero(CellRange, bool),
    /// A write that may be answered before it is durable, and what makes all of them durable.
    WriteBack(CellRange, Value),
    Flush,
}

impl BlockRequest {
    pub fn draw(rng: &mut Rng, population: &Population, value: Value) -> BlockRequest {
        let range = population.draw(rng);
        match rng.below(100) {
            0..45 => BlockRequest::Read(range),
            45..88 => BlockRequest::Write(range, value),
            88..94 => BlockRequest::Zero(range, false),
            _ => BlockRequest::Zero(range, rng.percent(50)),
        }
    }

    /// As a client asks that flushes what is to be durable; some writes are to be so at once.
    pub fn in_write_back_mode(self, rng: &mut Rng) -> BlockRequest {
        match self {
            _ if rng.percent(6) => BlockRequest::Flush,
            BlockRequest::Write(range, value) if rng.percent(80) => BlockRequest::WriteBack(range, value),
            other => other,
        }
    }

    pub fn op(&self, vid: Vid, rng: &mut Rng) -> ClientOp {
        let op = match *self {
            BlockRequest::Read(range) => VolumeOp::Read { offset: range.offset(), len: range.len() as u32 },
            BlockRequest::Write(range, value) => {
                VolumeOp::Write { offset: range.offset(), data: fill(range, value).into() }
            }
            BlockRequest::WriteBack(range, value) => {
                VolumeOp::WriteBack { offset: range.offset(), data: fill(range, value).into() }
            }
            BlockRequest::Flush => VolumeOp::Flush,
            BlockRequest::Zero(range, false) if rng.percent(60) => {
                VolumeOp::Discard { offset: range.offset(), len: range.len() }
            }
            BlockRequest::Zero(range, keep_allocated) => {
                VolumeOp::WriteZeroes { offset: range.offset(), len: range.len(), keep_allocated }
            }
        };
        ClientOp::Volume { vid, at: Point::Head, op }
    }
}

/// One client: some requests at a time, through a sheep that it changes now and then.
pub struct Client {
    pub rng: Rng,
    pub sheep: SheepIndex,
    pub open: usize,
    /// Answers and losses per kind of request, for the run's summary.
    pub counts: BTreeMap<&'static str, u64>,
}

impl Client {
    pub fn new(rng: Rng, sheep: SheepIndex) -> Client {
        Client { rng, sheep, open: 0, counts: BTreeMap::new() }
    }

    /// Moves to another sheep if this one is down, or by whim: then two sheep serve one VDI.
    pub fn choose_sheep(&mut self, up: &[SheepIndex]) -> Option<SheepIndex> {
        if !up.contains(&self.sheep) || self.rng.percent(3) {
            self.sheep = *up.get(self.rng.index(up.len().max(1)))?;
        }
        Some(self.sheep)
    }
}
