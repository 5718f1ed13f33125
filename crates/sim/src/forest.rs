//! Snapshots, clones, rollbacks, deletions and resizes while clients go on: what is ordered, and what has to be remembered of it
//! for [`crate::forest_check`].
//!
//! A *line* is a working VDI as its users know it: by the vid that it had when it came into being, whatever snapshots have made of
//! it since ([`proto::client::Point::Head`]). Lines of the block workload are only snapshotted and cloned; clones are lines of
//! this workload's own, which may also be rolled back, resized and deleted. Before that its own requests have ended.
//!
//! The contents of a snapshot are what the first read of each window finds; every other read must find the same. A snapshot is
//! cloned, or rolled back to, when all of it is known, so the history of the new line begins with known contents.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use node::view::View;
use proto::client::{ClientError, ClientOp, ClientReply, ClientResult, Point, VdiOp, VolumeOp};
use proto::{RequestId, Vid};

use crate::client::BlockRequest;
use crate::history::Step;
use crate::network::SheepIndex;
use crate::prng::Rng;
use crate::value::{CELLS, Cells, decode};
use crate::world::{Event, Purpose, World};

/// Beyond, only deletions make room: a disk of the engine is small ([`crate::scenario::Scenario::new_disk`]).
const VDIS_MAX: usize = 12;
const LINES_MAX: usize = 6;
/// Orders under way at the same time.
const DEEDS_MAX: usize = 2;
/// Requests on one line at the same time.
const REQUESTS_MAX: usize = 3;

#[derive(Debug)]
pub(crate) struct Forest {
    rng: Rng,
    /// By the vid that they began with.
    pub lines: BTreeMap<Vid, Line>,
    pub commands: Vec<Command>,
    pub snapshots: BTreeMap<Vid, Snapshot>,
    /// VDIs of which the deletion was ordered: requests on them may be refused.
    pub ended: BTreeSet<Vid>,
    deeds: BTreeMap<RequestId, Deed>,
    clones: u64,
    /// Orders that were carried out, by kind.
    pub done: BTreeMap<&'static str, u64>,
}

#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// The snapshot with whose contents it began.
    pub base: Option<Vid>,
    /// No other workload uses it.
    is_own: bool,
    /// About to end: nothing new is asked of it.
    resting: bool,
    pub ended: bool,
    objects: u64,
}

/// An order to snapshot some lines at one moment.
#[derive(Debug)]
pub(crate) struct Command {
    pub lines: Vec<Vid>,
    /// Their heads, as the sheep that was asked knew them.
    heads: Vec<Vid>,
    pub invoked: Step,
    /// Of one whose sheep died: when it was known to have happened.
    pub answered: Option<Step>,
    pub fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Open,
    Done,
    /// It must not have happened, and must not happen later.
    Refused,
    /// Its sheep died: it happened, for all of its lines, or not at all.
    Lost,
}

#[derive(Debug)]
pub(crate) struct Snapshot {
    pub line: Vid,
    pub command: usize,
    /// What it was found to hold, by block.
    pub contents: BTreeMap<u64, Cells>,
    windows_read: BTreeSet<usize>,
}

#[derive(Clone, Debug)]
enum Deed {
    Snapshot(usize),
    Clone { base: Vid },
    Rollback { line: Vid, to: Vid, force: bool },
    Delete,
    Resize,
}

impl Deed {
    fn kind(&self) -> &'static str {
        match self {
            Deed::Snapshot(_) => "snapshot",
            Deed::Clone { .. } => "clone",
            Deed::Rollback { .. } => "rollback",
            Deed::Delete => "deletion",
            Deed::Resize => "resize",
        }
    }
}

impl Forest {
    pub fn new(rng: Rng) -> Forest {
        Forest {
            rng,
            lines: BTreeMap::new(),
            commands: Vec::new(),
            snapshots: BTreeMap::new(),
            ended: BTreeSet::new(),
            deeds: BTreeMap::new(),
            clones: 0,
            done: BTreeMap::new(),
        }
    }

    /// A line of the block workload.
    pub fn add_shared(&mut self, vid: Vid, objects: u64) {
        let line = Line { base: None, is_own: false, resting: false, ended: false, objects };
        self.lines.insert(vid, line);
    }

    fn add_own(&mut self, vid: Vid, base: Vid) {
        let objects = self.lines[&self.snapshots[&base].line].objects;
        let line = Line { base: Some(base), is_own: true, resting: false, ended: false, objects };
        self.lines.insert(vid, line);
    }

    fn line(&mut self, vid: Vid) -> &mut Line {
        self.lines.get_mut(&vid).expect("lines are never forgotten")
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| *self.rng.pick(from))
    }

    /// Lines of which something may be asked.
    fn active(&self, own: bool) -> Vec<Vid> {
        let is_active = |line: &Line| !line.ended && !line.resting && (line.is_own || !own);
        self.lines.iter().filter(|(_, line)| is_active(line)).map(|(vid, _)| *vid).collect()
    }

    fn living_snapshots(&self) -> Vec<Vid> {
        self.snapshots.keys().copied().filter(|vid| !self.ended.contains(vid)).collect()
    }

    /// The line that a VDI is a state of.
    pub fn line_of(&self, view: &View, vid: Vid) -> Option<Vid> {
        let mut at = vid;
        while !self.lines.contains_key(&at) {
            at = view.vdis().get(&at)?.parent;
        }
        Some(at)
    }
}

impl World {
    pub(crate) fn forest_turn(&mut self) {
        if !self.clients_busy {
            return;
        }
        let pause = self.forest.rng.latency(self.scenario.think_time);
        self.queue.put_after(pause.min(Duration::from_millis(30)), Event::ForestTurn);
        self.discover_snapshots();
        let members: Vec<SheepIndex> = (0..self.sheep.len())
            .filter(|s| self.view_of(*s).is_some_and(|v| v.format().is_some()))
            .collect();
        let Some(sheep) = self.forest.pick(&members) else { return };
        self.use_own_line(sheep);
        self.read_some_snapshot(sheep);
        if self.forest.deeds.len() >= DEEDS_MAX || !self.sheep[sheep].is_up() {
            return;
        }
        match self.forest.rng.below(24) {
            0..=3 => self.order_snapshot(sheep),
            4..=5 => self.order_clone(sheep),
            6..=9 => self.order_rollback(sheep),
            10 => self.order_deletion_of_snapshot(sheep),
            11..=12 => self.order_deletion_of_line(sheep),
            13 => self.order_resize(sheep),
            _ => {}
        }
    }

    /// The view of a sheep that is a member.
    pub(crate) fn view_of(&self, sheep: SheepIndex) -> Option<&View> {
        self.sheep[sheep].process().filter(|p| p.node.is_member()).map(|p| p.node.view())
    }

    fn knows_line(&self, sheep: SheepIndex, line: Vid) -> bool {
        self.view_of(sheep).is_some_and(|view| view.vdi(view.head_of(line)).is_some())
    }

    /// Snapshots are known by their tags: also those whose order was never answered.
    pub(crate) fn discover_snapshots(&mut self) {
        let newest = (0..self.sheep.len()).filter_map(|s| self.view_of(s)).max_by_key(|v| v.version());
        let Some(view) = newest else { return };
        let mut found = Vec::new();
        for (vid, vdi) in view.vdis() {
            let tag = std::str::from_utf8(&vdi.tag).ok();
            let command: Option<usize> = tag.and_then(|tag| tag.strip_prefix('s')?.parse().ok());
            if let Some(command) = command
                && vdi.is_snapshot()
                && !self.forest.snapshots.contains_key(vid)
                && let Some(line) = self.forest.line_of(view, *vid)
            {
                found.push((*vid, line, command));
            }
        }
        for (vid, line, command) in found {
            let by_now = self.history.step();
            let order = &mut self.forest.commands[command];
            if order.fate == Fate::Lost {
                order.answered.get_or_insert(by_now);
            }
            let (contents, windows_read) = Default::default();
            self.forest.snapshots.insert(vid, Snapshot { line, command, contents, windows_read });
            self.log(|| format!("vid {vid} is snapshot s{command} of the line {line}"));
        }
    }

    // Clients of this workload's own lines, and readers of snapshots.

    fn use_own_line(&mut self, sheep: SheepIndex) {
        let own = self.forest.active(true);
        let Some(line) = self.forest.pick(&own) else { return };
        if !self.knows_line(sheep, line) || self.requests_on(line) >= REQUESTS_MAX {
            return;
        }
        let value = self.fresh_value();
        let request = BlockRequest::draw(&mut self.forest.rng, &self.population, value);
        let op = request.op(line, &mut self.forest.rng);
        self.issue_blocks(None, sheep, line, request, op);
    }

    fn requests_on(&self, line: Vid) -> usize {
        let is_on = |p: &Purpose| matches!(p, Purpose::Blocks { vid, .. } if *vid == line);
        self.requests.values().filter(|r| is_on(&r.purpose)).count()
    }

    fn read_some_snapshot(&mut self, sheep: SheepIndex) {
        let Some(view) = self.view_of(sheep) else { return };
        let mut known = self.forest.living_snapshots();
        known.retain(|vid| view.vdi(*vid).is_some());
        let windows = self.population.windows().len();
        let unread: Vec<Vid> = known
            .iter()
            .copied()
            .filter(|vid| self.forest.snapshots[vid].windows_read.len() < windows)
            .collect();
        // Mostly one of which something is unknown yet.
        let any = unread.is_empty() || self.forest.rng.percent(25);
        let Some(vid) = self.forest.pick(if any { &known } else { &unread }) else { return };
        let read = &self.forest.snapshots[&vid].windows_read;
        let missing = (0..windows).find(|w| !read.contains(w));
        let window = missing.unwrap_or_else(|| self.forest.rng.index(windows));
        self.read_snapshot(sheep, vid, window);
    }

    pub(crate) fn read_snapshot(&mut self, sheep: SheepIndex, vid: Vid, window: usize) {
        let range = self.population.windows()[window];
        let op = VolumeOp::Read { offset: range.offset(), len: range.len() as u32 };
        let op = ClientOp::Volume { vid, at: Point::Exact, op };
        self.issue(None, sheep, op, Purpose::Snapshot { vid, window });
    }

    pub(crate) fn finish_snapshot_read(&mut self, vid: Vid, window: usize, result: ClientResult) {
        // What a read finds of a VDI that is being deleted means nothing.
        if self.forest.ended.contains(&vid) {
            return;
        }
        let range = self.population.windows()[window];
        let values = match result {
            Ok(ClientReply::Data(data)) => decode(range, &data),
            other => Err(format!("it is answered with {other:?}")),
        };
        let values = match values {
            Ok(values) => values,
            Err(why) => {
                return self.violate(format!("a read of window {window} of the snapshot {vid}: {why}"));
            }
        };
        self.log(|| format!("snapshot {vid} holds {values:?} in window {window}"));
        let snapshot = self.forest.snapshots.get_mut(&vid).expect("only known ones are read");
        snapshot.windows_read.insert(window);
        let mut changed = None;
        for (block, cells) in (range.first / CELLS as u64..).zip(values.chunks(CELLS)) {
            let cells: Cells = cells.try_into().expect("windows are whole blocks");
            let known = *snapshot.contents.entry(block).or_insert(cells);
            if known != cells {
                changed =
                    Some(format!("the snapshot {vid} held {known:?} in block {block}, and now {cells:?}"));
            }
        }
        if let Some(changed) = changed {
            self.violate(changed);
        }
    }

    // Orders.

    fn order(&mut self, sheep: SheepIndex, op: ClientOp, deed: Deed) {
        self.log(|| format!("{op:?} is ordered"));
        let request = self.issue(None, sheep, op, Purpose::Deed);
        // It may have been refused at once.
        match self.answers.remove(&request) {
            Some(result) => self.finish(deed, Some(result)),
            None => drop(self.forest.deeds.insert(request, deed)),
        }
    }

    /// `None`: its sheep died.
    pub(crate) fn finish_deed(&mut self, request: RequestId, result: Option<ClientResult>) {
        match (self.forest.deeds.remove(&request), result) {
            (Some(deed), result) => self.finish(deed, result),
            (None, Some(result)) => drop(self.answers.insert(request, result)),
            (None, None) => {}
        }
    }

    fn order_snapshot(&mut self, sheep: SheepIndex) {
        let living = self.forest.lines.values().filter(|line| !line.ended).count();
        if self.forest.living_snapshots().len() + living >= VDIS_MAX {
            return;
        }
        let mut lines = self.forest.active(false);
        lines.retain(|line| self.knows_line(sheep, *line));
        self.forest.rng.shuffle(&mut lines);
        lines.truncate(1 + self.forest.rng.index(3));
        let Some(view) = self.view_of(sheep).filter(|_| !lines.is_empty()) else { return };
        let vids: Vec<Vid> = lines.iter().map(|line| view.head_of(*line)).collect();
        let number = self.forest.commands.len();
        let tag = format!("s{number}").into_bytes();
        let invoked = self.history.step();
        let heads = vids.clone();
        self.forest.commands.push(Command { lines, heads, invoked, answered: None, fate: Fate::Open });
        self.order(sheep, ClientOp::Vdi(VdiOp::Snapshot { vids, tag }), Deed::Snapshot(number));
    }

    /// A living snapshot of which everything is known.
    fn pick_known_snapshot(&mut self, of_line: Option<Vid>) -> Option<Vid> {
        let windows = self.population.windows().len();
        let mut known = self.forest.living_snapshots();
        known.retain(|vid| {
            let snapshot = &self.forest.snapshots[vid];
            snapshot.windows_read.len() == windows && of_line.is_none_or(|line| line == snapshot.line)
        });
        self.forest.pick(&known)
    }

    fn order_clone(&mut self, sheep: SheepIndex) {
        if self.forest.lines.values().filter(|line| !line.ended).count() >= LINES_MAX {
            return;
        }
        let Some(base) = self.pick_known_snapshot(None) else { return };
        self.forest.clones += 1;
        let name = format!("clone{}", self.forest.clones).into_bytes();
        self.order(
            sheep,
            ClientOp::Vdi(VdiOp::Clone { base, name, size: None, policy: None }),
            Deed::Clone { base },
        );
    }

    /// A line of this workload on which nothing is under way, and which nobody is about to freeze; with its head.
    fn pick_restful_line(&mut self, sheep: SheepIndex) -> Option<(Vid, Vid)> {
        let own = self.forest.active(true);
        let line = self.forest.pick(&own).filter(|_| self.forest.deeds.is_empty())?;
        let newest = self.driver.version();
        let view = self.view_of(sheep).filter(|view| view.version() == newest)?;
        let head = view.head_of(line);
        let is_restful = view.vdi(head).is_some() && !view.is_freezing(head) && self.requests_on(line) == 0;
        is_restful.then_some((line, head))
    }

    fn order_rollback(&mut self, sheep: SheepIndex) {
        let Some((line, _)) = self.pick_restful_line(sheep) else { return };
        let Some(to) = self.pick_known_snapshot(Some(line)) else { return };
        let force = self.forest.rng.percent(50);
        self.forest.line(line).resting = true;
        self.order(sheep, ClientOp::Vdi(VdiOp::Rollback { to, force }), Deed::Rollback { line, to, force });
    }

    fn order_deletion_of_snapshot(&mut self, sheep: SheepIndex) {
        let living = self.forest.living_snapshots();
        let Some(vid) = self.forest.pick(&living) else { return };
        self.order_deletion(sheep, vid);
    }

    fn order_deletion_of_line(&mut self, sheep: SheepIndex) {
        let Some((line, head)) = self.pick_restful_line(sheep) else { return };
        self.forest.line(line).ended = true;
        self.order_deletion(sheep, head);
    }

    fn order_deletion(&mut self, sheep: SheepIndex, vid: Vid) {
        self.forest.ended.insert(vid);
        self.order(sheep, ClientOp::Vdi(VdiOp::Delete { vid }), Deed::Delete);
    }

    fn order_resize(&mut self, sheep: SheepIndex) {
        // Of two, the smaller size might come second and would rightly be refused.
        if self.forest.deeds.values().any(|deed| matches!(deed, Deed::Resize)) {
            return;
        }
        let own = self.forest.active(true);
        let Some(line) = self.forest.pick(&own).filter(|line| self.knows_line(sheep, *line)) else { return };
        let shift = self.scenario.format.block_size_shift;
        let entry = self.forest.line(line);
        entry.objects += 1;
        let op = VolumeOp::Resize { size: entry.objects << shift };
        self.order(sheep, ClientOp::Volume { vid: line, at: Point::Head, op }, Deed::Resize);
    }

    fn finish(&mut self, deed: Deed, result: Option<ClientResult>) {
        let now = self.history.step();
        if let Some(Ok(_)) = &result {
            *self.forest.done.entry(deed.kind()).or_default() += 1;
        }
        self.log(|| format!("{deed:?} ends with {result:?}"));
        let forest = &mut self.forest;
        match (&deed, &result) {
            (Deed::Snapshot(number), Some(Ok(ClientReply::Vdis(_)))) => {
                let command = &mut forest.commands[*number];
                (command.fate, command.answered) = (Fate::Done, Some(now));
            }
            // Its writes do not come to rest, or another snapshot of it came first.
            (Deed::Snapshot(number), Some(Err(ClientError::Busy | ClientError::ReadOnly))) => {
                forest.commands[*number].fate = Fate::Refused;
            }
            (Deed::Snapshot(number), Some(Err(ClientError::NoVdi)))
                if forest.commands[*number].heads.iter().any(|head| forest.ended.contains(head)) =>
            {
                forest.commands[*number].fate = Fate::Refused;
            }
            (Deed::Snapshot(number), None) => forest.commands[*number].fate = Fate::Lost,
            (Deed::Clone { base }, Some(Ok(ClientReply::Vdi(info)))) => forest.add_own(info.vid, *base),
            (Deed::Clone { base }, Some(Err(ClientError::NoVdi))) if forest.ended.contains(base) => {}
            (Deed::Rollback { line, to, .. }, Some(Ok(ClientReply::Vdi(info)))) => {
                forest.line(*line).ended = true;
                forest.add_own(info.vid, *to);
            }
            // Nothing has happened.
            (Deed::Rollback { line, force: false, .. }, Some(Err(ClientError::InUse(_)))) => {
                forest.line(*line).resting = false;
            }
            (Deed::Rollback { line, to, .. }, Some(Err(ClientError::NoVdi))) if forest.ended.contains(to) => {
                forest.line(*line).resting = false;
            }
            // It may have happened: nothing is asked of the line any more.
            (Deed::Rollback { line, .. }, None) => forest.line(*line).ended = true,
            (Deed::Delete | Deed::Resize, Some(Ok(ClientReply::Done))) => {}
            (Deed::Clone { .. } | Deed::Delete | Deed::Resize, None) => {}
            (deed, result) => {
                let what = format!("{deed:?} is answered with {result:?}");
                self.violate(what);
            }
        }
    }
}
