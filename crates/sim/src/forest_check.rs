//! What must hold of snapshots, clones and deletions at the end of a run.
//!
//! - Every snapshot of one command shows one moment between its invocation and its answer, the same for all blocks of all
//!   its lines. For each block the moments are found at which a read of what the snapshot holds fits into the block's history;
//!   some moment must be among those of all blocks.
//! - A command that was answered, or whose sheep died, happened for all of its lines or for none; one that was refused for none.
//! - What [`VolumeOp::Changes`] calls unchanged is the same.
//! - Stores hold the objects that living VDIs name, and nothing else.
//!
//! What it cannot see: moments of one block are tried against the order of that block's own requests, anew for each command, so
//! two snapshots whose moments would need different orders of one block's overlapping writes pass. Blocks that nobody has read
//! before a snapshot was deleted are not compared.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::client::{ClientOp, ClientReply, Point, Table, VdiOp, VolumeOp};
use proto::{BLOCK_BYTES, NodeId, ObjectKind, Oid, Vid};

use crate::forest::{Fate, Snapshot};
use crate::history::{Action, BlockId, BlockOp, Step};
use crate::linearize;
use crate::value::{CELLS, Cells};
use crate::world::World;

/// Numbers of requests that the checker adds to histories begin here.
const ADDED: u64 = 1 << 40;
const ALL_CELLS: u8 = 0xff;
/// How long objects that nobody needs any more may stay.
const RECLAIM_TIME: Duration = Duration::from_secs(10);
/// Pairs of VDIs compared by `Changes`.
const PAIRS_MAX: usize = 6;

impl World {
    pub(crate) fn read_forest(&mut self) {
        let view = self.view_of(0).expect("all are up").clone();
        self.discover_snapshots();
        let windows = self.population.windows().to_vec();
        let lines: Vec<Vid> = self.forest.lines.keys().copied().collect();
        let snapshots: Vec<Vid> = self.forest.snapshots.keys().copied().collect();
        // A deletion whose sheep died may not have happened.
        let alive = |vid: &Vid| view.vdi(*vid).is_some();
        for vid in snapshots.iter().filter(|vid| alive(vid)) {
            self.forest.ended.remove(vid);
        }
        for sheep in self.last_readers() {
            for (number, window) in windows.iter().enumerate() {
                for line in lines.iter().filter(|line| alive(&view.head_of(**line))) {
                    self.read_through(sheep, *line, *window);
                }
                for vid in snapshots.iter().filter(|vid| alive(vid)) {
                    self.read_snapshot(sheep, *vid, number);
                }
            }
        }
    }

    pub(crate) fn check_forest(&mut self) -> Result<(), String> {
        self.discover_snapshots();
        self.check_fates()?;
        let histories = self.whole_histories();
        for (block, history) in &histories {
            linearize::check(history).map_err(|why| format!("{block} with its snapshots: {why}"))?;
        }
        (0..self.forest.commands.len()).try_for_each(|number| self.check_cut(number, &histories))
    }

    fn check_fates(&self) -> Result<(), String> {
        for (number, command) in self.forest.commands.iter().enumerate() {
            let made = self.forest.snapshots.values().filter(|s| s.command == number).count();
            let fits = match command.fate {
                Fate::Done => made == command.lines.len(),
                Fate::Refused => made == 0,
                Fate::Lost => made == 0 || made == command.lines.len(),
                Fate::Open => false,
            };
            if !fits {
                return Err(format!("snapshot s{number} made {made} snapshots: {command:?}"));
            }
        }
        Ok(())
    }

    /// Histories of all lines: what they began with, what was asked, and what their snapshots showed.
    fn whole_histories(&self) -> BTreeMap<BlockId, Vec<BlockOp>> {
        let mut histories: BTreeMap<BlockId, Vec<BlockOp>> = BTreeMap::new();
        let mut added = ADDED;
        for (vid, line) in &self.forest.lines {
            let base = line.base.map(|base| &self.forest.snapshots[&base].contents);
            for (block, cells) in base.into_iter().flatten() {
                let history = histories.entry(BlockId { vid: *vid, block: *block }).or_default();
                for value in cells.iter().copied().collect::<BTreeSet<_>>().into_iter().filter(|v| *v != 0) {
                    added += 1;
                    let mask = (0..CELLS).filter(|i| cells[*i] == value).fold(0u8, |mask, i| mask | 1 << i);
                    let action = Action::Write(value);
                    let (answered, durable) = (Some(1), Some(0));
                    history.push(BlockOp { op: added, invoked: 0, answered, cells: mask, action, durable });
                }
            }
        }
        for (block, history) in self.history.blocks() {
            if self.forest.lines.contains_key(&block.vid) {
                histories.entry(*block).or_default().extend(history.iter().cloned());
            }
        }
        for snapshot in self.forest.snapshots.values() {
            let command = &self.forest.commands[snapshot.command];
            let Some(answered) = command.answered else { continue };
            for (block, cells) in &snapshot.contents {
                added += 1;
                let id = BlockId { vid: snapshot.line, block: *block };
                let read = read_of(added, (command.invoked, answered), *cells);
                histories.entry(id).or_default().push(read);
            }
        }
        histories
    }

    /// Is there one moment at which all lines of the command held what its snapshots hold?
    fn check_cut(&self, number: usize, histories: &BTreeMap<BlockId, Vec<BlockOp>>) -> Result<(), String> {
        let command = &self.forest.commands[number];
        let Some(answered) = command.answered else { return Ok(()) };
        let made: Vec<&Snapshot> = self.forest.snapshots.values().filter(|s| s.command == number).collect();
        // The moment just after each step.
        let mut moments: BTreeSet<Step> = (command.invoked..answered).collect();
        let contents =
            made.iter().flat_map(|s| s.contents.iter().map(|(block, cells)| (s.line, *block, *cells)));
        for (vid, block, cells) in contents {
            let id = BlockId { vid, block };
            let history = &histories[&id];
            let fits = moments_that_fit(history, (command.invoked, answered), &moments, cells);
            if fits.is_empty() {
                let range = |m: &BTreeSet<Step>| format!("{:?} .. {:?}", m.first(), m.last());
                return Err(format!(
                    "snapshot s{number} of {:?}, asked for in [{} .. {answered}], shows no single moment: after {} \
                     all other blocks looked as it shows them, but {id} not as {cells:?}",
                    command.lines,
                    command.invoked,
                    range(&moments)
                ));
            }
            moments = fits;
        }
        Ok(())
    }

    /// What is called unchanged is the same in all blocks that are known.
    pub(crate) fn check_changes(&mut self) -> Result<(), String> {
        self.discover_snapshots();
        let view = self.view_of(0).expect("all are up").clone();
        let alive: Vec<Vid> =
            self.forest.snapshots.keys().copied().filter(|vid| view.vdi(*vid).is_some()).collect();
        let pairs = alive.iter().flat_map(|a| alive.iter().map(|b| (*a, *b))).filter(|(a, b)| a != b);
        let pairs: Vec<(Vid, Vid)> = pairs.step_by(1 + alive.len() * alive.len() / PAIRS_MAX).collect();
        for (vid, since) in pairs {
            let size = view.vdi(vid).expect("alive").size;
            let mut offset = 0;
            while offset < size {
                let op = VolumeOp::Changes { since, offset, len: size - offset };
                let extents = match self.ask_and_wait(ClientOp::Volume { vid, at: Point::Exact, op })? {
                    Ok(ClientReply::Changes(extents)) if !extents.is_empty() => extents,
                    other => return Err(format!("what changed in {vid} since {since} is {other:?}")),
                };
                for extent in extents {
                    let blocks = offset / BLOCK_BYTES as u64..(offset + extent.len) / BLOCK_BYTES as u64;
                    offset += extent.len;
                    let known = |vid: Vid| &self.forest.snapshots[&vid].contents;
                    let differs = known(vid)
                        .range(blocks)
                        .find(|(block, now)| known(since).get(block).is_some_and(|then| then != *now));
                    if let Some((block, _)) = differs.filter(|_| !extent.changed) {
                        return Err(format!("block {block} of {vid} is called unchanged since {since}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Stores hold what is needed and nothing else, once those who reclaim had time for it.
    pub(crate) fn check_objects(&mut self) -> Result<(), String> {
        let end = self.now().after(RECLAIM_TIME);
        loop {
            let needed = self.needed_objects()?;
            match self.find_leftover(&needed) {
                None => return Ok(()),
                Some(why) if self.now() > end => return Err(why),
                Some(_) => self.run_for(Duration::from_millis(250))?,
            }
        }
    }

    fn find_leftover(&mut self, needed: &Needed) -> Option<String> {
        let view = self.view_of(0).expect("all are up").clone();
        for vid in view.remains() {
            if !needed.tables.contains(&vid) {
                return Some(format!("nobody needs anything of the deleted {vid}, and it is not gone"));
            }
        }
        let mut holders: BTreeMap<Oid, BTreeSet<NodeId>> = BTreeMap::new();
        for sheep in &mut self.sheep {
            let id = sheep.id();
            for oid in sheep.process_mut().expect("all are up").store.objects() {
                holders.entry(oid).or_default().insert(id);
            }
        }
        holders.into_iter().find_map(|(oid, holders)| {
            let is_needed = match oid.kind() {
                Some(ObjectKind::Data) => needed.objects.contains(&(oid.vid(), oid.index())),
                _ => needed.tables.contains(&oid.vid()),
            };
            if !is_needed {
                return Some(format!("nobody needs object {oid}, held by {holders:?}"));
            }
            let pg = view.pg_of(oid).and_then(|pg| view.pg(pg)).expect("its VDI has a pool");
            let astray: Vec<&NodeId> = holders.iter().filter(|id| !pg.in_sync.contains(id)).collect();
            (!astray.is_empty()).then(|| format!("object {oid} has no business at {astray:?}"))
        })
    }

    fn whole_table(&mut self, vid: Vid) -> Result<Table, String> {
        let (mut whole, mut next) = (Table::default(), Some(0));
        while let Some(first) = next {
            match self.ask_and_wait(ClientOp::Vdi(VdiOp::Table { vid, first }))? {
                Ok(ClientReply::Table(part)) => {
                    whole.entries.extend(part.entries);
                    whole.stored_with.extend(part.stored_with);
                    next = part.next;
                }
                other => return Err(format!("the table of {vid} is {other:?}")),
            }
        }
        Ok(whole)
    }

    /// What the tables of all living VDIs name, and what that needs of deleted ones.
    fn needed_objects(&mut self) -> Result<Needed, String> {
        let view = self.view_of(0).expect("all are up").clone();
        let mut needed = Needed::default();
        let alive = || view.vdis().keys().copied().filter(|vid| view.vdi(*vid).is_some());
        for vid in alive() {
            let table = self.whole_table(vid)?;
            needed.tables.insert(vid);
            needed.tables.extend(table.stored_with);
            for (index, owner, base) in table.entries {
                needed.objects.extend([(owner, index), (base, index)]);
            }
        }
        // A deleted VDI's object that is kept may have its rest elsewhere: its own table, kept as well, tells.
        let mut tables: BTreeMap<Vid, Table> = BTreeMap::new();
        let mut todo: Vec<(Vid, u32)> = needed.objects.iter().copied().collect();
        while let Some((vid, index)) = todo.pop() {
            if view.vdi_or_remains(vid).is_none() || view.vdi(vid).is_some() {
                continue;
            }
            let table = match tables.remove(&vid) {
                Some(table) => table,
                None => self.whole_table(vid)?,
            };
            needed.tables.insert(vid);
            needed.tables.extend(table.stored_with.iter().copied());
            for (at, owner, base) in &table.entries {
                if (*at, *owner) == (index, vid) && base.0 != 0 && needed.objects.insert((*base, index)) {
                    todo.push((*base, index));
                }
            }
            tables.insert(vid, table);
        }
        Ok(needed)
    }
}

#[derive(Default)]
struct Needed {
    objects: BTreeSet<(Vid, u32)>,
    /// VDIs whose pages of the block table are.
    tables: BTreeSet<Vid>,
}

fn read_of(op: u64, span: (Step, Step), cells: Cells) -> BlockOp {
    let (invoked, answered) = (span.0, Some(span.1));
    BlockOp { op, invoked, answered, cells: ALL_CELLS, action: Action::Read(cells), durable: None }
}

/// Those of `moments`, each just after the step it is named by, at which a read of `cells` fits into the history.
///
/// Between two steps of the block's own history all moments are alike.
fn moments_that_fit(
    history: &[BlockOp],
    (from, until): (Step, Step),
    moments: &BTreeSet<Step>,
    cells: Cells,
) -> BTreeSet<Step> {
    // Room for the moment between any two steps.
    let mut spread: Vec<BlockOp> = history.to_vec();
    for op in &mut spread {
        op.invoked *= 4;
        op.answered = op.answered.map(|step| step * 4);
        op.durable = op.durable.map(|step| step * 4);
    }
    let steps = history.iter().flat_map(|op| [Some(op.invoked), op.answered]).flatten();
    let mut borders: BTreeSet<Step> = steps.filter(|step| from < *step && *step < until).collect();
    borders.extend([from, until]);
    let borders: Vec<Step> = borders.into_iter().collect();
    let mut fits = BTreeSet::new();
    for pair in borders.windows(2) {
        let alike: Vec<Step> = moments.range(pair[0]..pair[1]).copied().collect();
        if alike.is_empty() {
            continue;
        }
        spread.push(read_of(u64::MAX, (pair[0] * 4 + 1, pair[0] * 4 + 2), cells));
        if linearize::check(&spread).is_ok() {
            fits.extend(alike);
        }
        spread.pop();
    }
    fits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(op: u64, span: (Step, Step), value: u64) -> BlockOp {
        let action = Action::Write(value);
        let (invoked, answered) = (span.0, Some(span.1));
        BlockOp { op, invoked, answered, cells: ALL_CELLS, action, durable: Some(0) }
    }

    fn fits(history: &[BlockOp], value: u64) -> Vec<Step> {
        let moments = (5..15).collect();
        moments_that_fit(history, (5, 15), &moments, [value; CELLS]).into_iter().collect()
    }

    #[test]
    fn a_block_shows_a_value_from_its_write_to_the_next_one() {
        let history = [write(1, (1, 2), 7), write(2, (8, 12), 8)];
        // While the second is under way either may be seen, but not the first one after the second was.
        assert_eq!(fits(&history, 7), (5..12).collect::<Vec<_>>());
        assert_eq!(fits(&history, 8), (8..15).collect::<Vec<_>>());
        assert!(fits(&history, 0).is_empty() && fits(&history, 9).is_empty());
        let seen = [&history[..], &[read_of(3, (9, 10), [8; CELLS])]].concat();
        assert_eq!(fits(&seen, 7), (5..10).collect::<Vec<_>>());
    }
}
