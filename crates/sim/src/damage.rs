//! Damage to disks: rotten blocks, reads that fail, a disk that fails. Only the engine shows what it does then.
//!
//! All damage of a run is done to one sheep, so at most one copy of any block is bad, and another must serve and
//! mend it; a second disk, in another zone, fails when all is in sync again after the first, if none of that has rotted. That copy may have to be there: where the view might go on with the damaged copy alone, or where
//! all of a disk is lost, damage is done only when all is well, and other faults wait until it is mended. So they do for rot in a journal that a start would
//! replay: its sheep has to find it by its scrub, as it would not open the disk any more; from then on it may be killed like any other.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::client::{ClientOp, ClientReply, ClusterOp, NativeOp, ScrubStatus};
use proto::cluster::RepairChange;
use proto::{Oid, RequestId};

use crate::network::SheepIndex;
use crate::object_store::Ending;
use crate::queue::Moment;
use crate::scenario::FaultKind;
use crate::sheep::{Sheep, State};
use crate::world::World;

const MS: Duration = Duration::from_millis(1);
/// May other faults meet rot that nobody has found yet, where three copies outlive both? Not while catching up asks only
/// one copy for a block: if it rotted there, the member stays behind until somebody reads it.
const ROT_MEETS_FAULTS: bool = true;
/// Disks that fail in one run.
const DISKS_MAX: u32 = 2;
/// How much of the rot is in journals, in percent.
const JOURNAL_PERCENT: u64 = 50;
/// How long two passes over small disks may take, and what they have to mend.
const SCRUB_SECONDS_MAX: u64 = 60;
/// Added to the id of a disk for the one that replaces it: no other disk has it.
const REPLACEMENT_ID: u64 = 1000;

#[derive(Debug, Default)]
pub(crate) struct Damages {
    /// The sheep to whose disk it is done.
    victim: Option<SheepIndex>,
    /// Blocks have rotted on it.
    has_rotted: bool,
    disks_failed: u32,
    /// How often damage was done.
    pub count: u64,
    /// What other faults wait for.
    stage: Option<Stage>,
}

#[derive(Debug)]
enum Stage {
    /// All is to be well first.
    Planned(FaultKind),
    /// A journal is to rot, of a sheep that is not about to end.
    PlannedInJournal,
    /// This record has, until it is one that no start reads.
    InJournal(SheepIndex, u64),
    /// Rot: clients may find it first, then a check does.
    Found(BTreeSet<Oid>, Moment),
    Checked(BTreeSet<Oid>, Oid, RequestId),
    /// Reads fail until then.
    Failing(Moment),
    /// Whoever met a failed read asks another copy: that one has to stay until then.
    Settling(Moment),
    /// The disk is to fail.
    ToFail,
    /// It has failed, and its sheep lives on without it until then.
    Gateway(SheepIndex, Moment),
    /// The disk was repaired or replaced, and is to become in sync.
    Replaced,
}

impl World {
    /// A copy is to be damaged: at once if nothing can come of it, or when all is well.
    pub(crate) fn plan_damage(&mut self, kind: FaultKind, victim: SheepIndex) {
        self.damages.victim.get_or_insert(victim);
        let is_of_disk = kind == FaultKind::DiskFailure;
        // That takes no other copy to mend.
        if kind == FaultKind::BitRot && self.fault_rng.percent(JOURNAL_PERCENT) {
            self.damages.stage = Some(Stage::PlannedInJournal);
            return;
        }
        if self.copies_of_any_pg() < 2 || (is_of_disk && !self.may_another_disk_fail(victim)) {
            return;
        }
        let waits = is_of_disk || (kind == FaultKind::BitRot && !ROT_MEETS_FAULTS);
        // In write-back mode a copy that was kept while it was down leaves when it returns: then one may be left of three.
        if waits || self.copies_of_any_pg() < 3 || self.scenario.write_back {
            self.damages.stage = Some(Stage::Planned(kind));
        } else {
            self.damage(kind);
        }
    }

    /// The first one, or one more: that is done when all is in sync, and from then on damage is done to that sheep.
    fn may_another_disk_fail(&mut self, victim: SheepIndex) -> bool {
        let Some(first) = self.damages.victim.filter(|_| self.damages.disks_failed > 0) else { return true };
        let zone = |index: SheepIndex| self.sheep[index].member.zone;
        let may = self.damages.disks_failed < DISKS_MAX
            && !self.damages.has_rotted
            && self.damages.stage.is_none()
            && zone(first) != zone(victim);
        if may {
            self.damages.victim = Some(victim);
        }
        may
    }

    /// The view goes on with two of three copies, but never with one.
    fn copies_of_any_pg(&self) -> usize {
        let Some(running) = self.sheep.iter().find_map(|s| s.process()) else { return 0 };
        let pools = running.node.view().pools();
        pools.iter().flat_map(|pool| &pool.pgs).map(|pg| pg.targets.len()).min().unwrap_or(0)
    }

    /// Has damage been done, or is it planned?
    pub(crate) fn is_damaged(&self) -> bool {
        self.damages.victim.is_some()
    }

    /// Is there damage that other faults have to wait for?
    pub(crate) fn is_healing(&mut self) -> bool {
        if let Some(stage) = self.damages.stage.take() {
            self.damages.stage = self.heal(stage);
        }
        self.damages.stage.is_some()
    }

    fn heal(&mut self, stage: Stage) -> Option<Stage> {
        match stage {
            // Since it was planned an operator may have put a sheep out, and only one copy be left.
            Stage::Planned(kind) if self.is_all_well() && self.copies_of_any_pg() > 1 => self.damage(kind),
            Stage::PlannedInJournal if self.is_victim_steady() => self.rot_journal(),
            Stage::InJournal(index, seq) if !self.needs_record(index, seq) => {
                self.log(|| format!("no start of sheep {index} needs record {seq} any more"));
                None
            }
            Stage::Found(oids, at) if at <= self.now() => self.check_next(oids),
            Stage::Checked(left, oid, request) => match self.answers.remove(&request) {
                None => Some(Stage::Checked(left, oid, request)),
                Some(Ok(ClientReply::Checked(report))) if report.lost.is_empty() => self.check_next(left),
                // Of a VDI that has ended the other copies may be gone already.
                Some(_) if self.is_deleted(oid) => self.check_next(left),
                // The sheep that was asked has ended.
                Some(Err(_)) if self.lost_asks.remove(&request) => self.check_next(left),
                Some(other) => {
                    self.violate(format!("a check of object {oid} is answered with {other:?}"));
                    None
                }
            },
            Stage::Failing(until) if until <= self.now() => {
                self.make_sound();
                Some(Stage::Settling(self.now().after(200 * MS)))
            }
            Stage::Settling(until) if until <= self.now() => None,
            Stage::Gateway(index, until) if until <= self.now() => {
                self.replace_disk(index);
                Some(Stage::Replaced)
            }
            Stage::Replaced if self.is_repaired().is_ok() => None,
            waiting => Some(waiting),
        }
    }

    fn check_next(&mut self, mut oids: BTreeSet<Oid>) -> Option<Stage> {
        let sheep = self.sheep.iter().position(|s| s.is_up())?;
        let oid = oids.pop_first()?;
        Some(Stage::Checked(oids, oid, self.ask(sheep, check(oid))))
    }

    /// Does it now. Returns what other faults wait for.
    fn damage(&mut self, kind: FaultKind) -> Option<Stage> {
        let now = self.now();
        let index = self.damages.victim?;
        let engine = self.sheep[index].process_mut()?.store.engine()?;
        match kind {
            FaultKind::BitRot => {
                let rotten = engine.rot(&mut self.fault_rng);
                if rotten.is_empty() {
                    return None;
                }
                self.log(|| format!("sheep {index} has rot in {rotten:?}"));
                let oids: BTreeSet<Oid> = rotten.into_iter().map(|(oid, _)| oid).collect();
                let wait = self.fault_rng.duration(Duration::ZERO..100 * MS);
                self.damages.count += 1;
                self.damages.has_rotted = true;
                Some(Stage::Found(oids, now.after(wait)))
            }
            FaultKind::ReadError => {
                engine.flaws.reads_to_fail = self.fault_rng.in_range(1..8) as u32;
                self.damages.count += 1;
                Some(Stage::Failing(now.after(200 * MS)))
            }
            _ => {
                engine.flaws.fails = true;
                Some(Stage::ToFail)
            }
        }
    }

    /// It is up, and no fault of before will end it.
    fn is_victim_steady(&self) -> bool {
        let is_steady = |sheep: &Sheep| sheep.is_up() && !sheep.cut_off;
        self.damages.victim.is_some_and(|victim| is_steady(&self.sheep[victim])) && !self.driver.has_untold()
    }

    fn rot_journal(&mut self) -> Option<Stage> {
        let index = self.damages.victim?;
        let engine = self.sheep[index].process_mut()?.store.engine()?;
        let seq = engine.rot_journal(&mut self.fault_rng)?;
        self.log(|| format!("record {seq} of the journal of sheep {index} has rotted"));
        self.damages.count += 1;
        Some(Stage::InJournal(index, seq))
    }

    fn needs_record(&mut self, index: SheepIndex, seq: u64) -> bool {
        let engine = self.sheep[index].process_mut().and_then(|running| running.store.engine());
        engine.is_some_and(|engine| engine.needs_record(seq))
    }

    /// Every copy is where it should be, and nothing is under way that would take one away.
    fn is_all_well(&self) -> bool {
        self.is_repaired().is_ok()
            && !self.driver.has_untold()
            && self.network.cuts().is_empty()
            && self.sheep.iter().all(|s| !s.cut_off && s.disk_slowness == 1 && s.slow_until <= self.now())
    }

    fn is_deleted(&self, oid: Oid) -> bool {
        self.sheep.iter().filter_map(|s| s.process()).any(|p| p.node.view().vdi(oid.vid()).is_none())
    }

    /// As the daemon does: the sheep lives on as a gateway. Some time later its operator does something about the disk.
    pub(crate) fn follow_failed_disk(&mut self, index: SheepIndex) {
        let engine = self.sheep[index].process_mut().and_then(|running| running.store.engine());
        let is_news = !matches!(self.damages.stage, Some(Stage::Gateway(..)));
        if !is_news || !engine.is_some_and(|engine| engine.is_failed()) {
            return;
        }
        self.damages.disks_failed += 1;
        self.damages.count += 1;
        let wait = self.fault_rng.duration(Duration::ZERO..3000 * MS);
        self.damages.stage = Some(Stage::Gateway(index, self.now().after(wait)));
        self.log(|| format!("the disk of sheep {index} fails"));
        self.note_memory_loss(index);
        let now = self.local_time(index);
        let running = self.sheep[index].process_mut().expect("just seen");
        running.node.handle_disk_failed(now);
        self.after(index);
    }

    /// The sheep is ended. It gets another disk, or the old one works again.
    fn replace_disk(&mut self, index: SheepIndex) {
        self.kill(index, Ending::DiskFailed);
        if self.fault_rng.percent(70) {
            let keeps_mark = self.fault_rng.percent(50);
            let sheep = &mut self.sheep[index];
            sheep.member.store_id += REPLACEMENT_ID;
            sheep.state = State::Down(self.scenario.new_disk(sheep.member.store_id));
            if !keeps_mark {
                sheep.member.formatted = None;
            }
        }
        self.boot_later(index, 1500 * MS);
    }

    /// Nothing fails any more. What has rotted stays so until somebody mends it.
    pub(crate) fn end_damage(&mut self) {
        match self.damages.stage.take() {
            Some(Stage::Gateway(index, _)) => self.replace_disk(index),
            Some(stage @ Stage::InJournal(..)) => self.damages.stage = Some(stage),
            _ => {}
        }
        self.make_sound();
    }

    fn make_sound(&mut self) {
        for sheep in &mut self.sheep {
            if let Some(engine) = sheep.process_mut().and_then(|running| running.store.engine()) {
                (engine.flaws.fails, engine.flaws.reads_to_fail) = (false, 0);
            }
        }
    }

    /// Rot that nobody has read is found by the next scrub, and after that nothing is damaged any more. Copies have never differed.
    pub(crate) fn scrub(&mut self) -> Result<(), String> {
        let change = RepairChange { scrub_now: true, ..RepairChange::default() };
        match self.ask_and_wait(ClientOp::Cluster(ClusterOp::SetRepair(change)))? {
            Ok(ClientReply::Done) => {}
            other => return Err(format!("an order to scrub is answered with {other:?}")),
        }
        for sheep in 0..self.sheep.len() {
            let before = self.scrub_status(sheep)?.passes;
            let mut status = self.scrub_status(sheep)?;
            for _ in 0..SCRUB_SECONDS_MAX {
                // The first to end may have begun before.
                if status.passes >= before + 2 && status.damaged == 0 {
                    break;
                }
                self.run_for(1000 * MS)?;
                status = self.scrub_status(sheep)?;
            }
            if status.passes < before + 2 || status.damaged > 0 {
                return Err(format!("sheep {sheep} does not come to an end with its scrub: {status:?}"));
            }
            // Since it was started: so of writes under way, too, nothing was said.
            if status.differed > 0 {
                return Err(format!("sheep {sheep} has found copies that differ: {status:?}"));
            }
        }
        let Some(Stage::InJournal(index, seq)) = self.damages.stage else { return Ok(()) };
        match self.needs_record(index, seq) {
            true => Err(format!("record {seq} of the journal of sheep {index} has rotted and was not found")),
            false => Ok(()),
        }
    }

    fn scrub_status(&mut self, sheep: SheepIndex) -> Result<ScrubStatus, String> {
        let request = self.ask(sheep, ClientOp::Cluster(ClusterOp::Scrub));
        match self.answers.remove(&request) {
            Some(Ok(ClientReply::Scrub(status))) => Ok(*status),
            other => Err(format!("a question about a scrub is answered with {other:?}")),
        }
    }
}

fn check(oid: Oid) -> ClientOp {
    ClientOp::Object { oid, op: NativeOp::Check { repair: true, part: None } }
}
