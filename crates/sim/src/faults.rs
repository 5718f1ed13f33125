//! What goes wrong, when, and how it is mended: drawn from the seed, within what the cluster must survive.

use std::time::Duration;

use proto::client::{ClientOp, ClusterOp};

use crate::network::{Pair, SheepIndex};
use crate::object_store::Ending;
use crate::scenario::{FaultKind, PlantedBug};
use crate::world::{Event, World};

const MS: Duration = Duration::from_millis(1);

/// A step of a fault that happens later than its beginning.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    Mend(Pair),
    QuorumLost {
        sheep: SheepIndex,
        start: u64,
        cut: u64,
    },
    /// The others give a cut-off sheep up. Never before it was told that it lost its quorum.
    Expel {
        sheep: SheepIndex,
        start: u64,
        cut: u64,
    },
    Reconnect(SheepIndex),
    /// An operator takes a sheep back.
    ComeIn(SheepIndex),
    /// Before all that a death has begun is done with.
    AllLosePower,
    DiskRecovers(SheepIndex),
    /// As soon as the sheep catches up, an owner dies.
    OwnerDies {
        catcher: SheepIndex,
        tries: u32,
    },
    /// As soon as the sheep has caught up, another one dies.
    SourceDies {
        catcher: SheepIndex,
        tries: u32,
    },
}

impl World {
    pub(crate) fn next_fault(&mut self) {
        if !self.faults_on || self.scenario.faults.is_empty() {
            return;
        }
        if self.is_healing() {
            return self.queue.put_after(10 * MS, Event::NextFault);
        }
        let pause = self.fault_rng.latency(self.scenario.fault_pause);
        self.queue.put_after(pause.min(500 * MS), Event::NextFault);
        self.fault_count += 1;
        let kind = *self.fault_rng.pick(&self.scenario.faults);
        let victim = self.fault_rng.index(self.sheep.len());
        self.log(|| format!("FAULT {kind:?} at sheep {victim}"));
        match kind {
            FaultKind::Kill => {
                self.kill(victim, Ending::Killed);
                self.boot_later(victim, 1500 * MS);
            }
            FaultKind::PowerLoss => self.power_loss(),
            FaultKind::ResetLink => {
                let pair = self.draw_pair();
                self.reset_link(pair);
            }
            FaultKind::CutLink => self.cut_link(),
            FaultKind::CutOff => self.cut_off(victim),
            FaultKind::Isolate => {
                let owner = if self.fault_rng.percent(50) { self.draw_owner(victim) } else { None };
                self.isolate(owner.unwrap_or(victim));
            }
            FaultKind::GoOut => {
                let time = self.fault_rng.duration(50 * MS..2000 * MS);
                // Else all copies but the damaged one might be given up by the operator.
                if !self.is_damaged() {
                    self.put_out(victim, true);
                    self.queue.put_after(time, Event::Fault(Fault::ComeIn(victim)));
                }
            }
            // Shows when a sheep ends.
            FaultKind::LateFrames => {}
            FaultKind::SlowDisk => {
                self.sheep[victim].disk_slowness = self.fault_rng.in_range(5..100) as u32;
                let delay = self.fault_rng.duration(50 * MS..500 * MS);
                self.queue.put_after(delay, Event::Fault(Fault::DiskRecovers(victim)));
            }
            FaultKind::Succession => {
                self.kill(victim, Ending::Killed);
                self.boot_later(victim, 200 * MS);
                self.wait_for(Fault::OwnerDies { catcher: victim, tries: 200 });
            }
            FaultKind::BitRot | FaultKind::ReadError | FaultKind::DiskFailure => {
                self.plan_damage(kind, victim);
            }
            FaultKind::DriftClock => {
                let (rate, leap) = (self.fault_rng.in_range(500..2000), self.fault_rng.below(2_000_000_000));
                let leap = if self.fault_rng.percent(30) { leap } else { 0 };
                let now = self.now();
                self.sheep[victim].clock.drift(now, rate, leap);
                // The timer was set by the old rate.
                let start = self.sheep[victim].start;
                if let Some(running) = self.sheep[victim].running(start) {
                    running.timer = None;
                    self.after(victim);
                }
            }
        }
    }

    pub(crate) fn apply_fault(&mut self, fault: Fault) {
        match fault {
            Fault::Mend(pair) => self.mend(pair),
            Fault::QuorumLost { sheep, start, cut } => {
                if self.is_still_cut_off(sheep, start, cut) {
                    self.log(|| format!("sheep {sheep} is told that it lost its quorum"));
                    self.quorum_lost(sheep, start);
                }
            }
            Fault::Expel { sheep, start, cut } => {
                if self.is_still_cut_off(sheep, start, cut) {
                    self.log(|| format!("sheep {sheep} is given up"));
                    self.driver.expel(self.sheep[sheep].id());
                    self.step_now(Event::NoticeDeaths);
                }
            }
            Fault::Reconnect(sheep) => {
                self.log(|| format!("sheep {sheep} reaches the driver again"));
                self.mend_driver(sheep);
            }
            Fault::ComeIn(sheep) => self.put_out(sheep, false),
            Fault::AllLosePower if self.faults_on && !self.is_healing() => {
                self.log(|| "FAULT all lose power, whatever is being taken over".into());
                self.power_loss();
            }
            Fault::AllLosePower => {}
            Fault::DiskRecovers(sheep) => self.sheep[sheep].disk_slowness = 1,
            Fault::OwnerDies { .. } | Fault::SourceDies { .. } if !self.faults_on || self.is_healing() => {}
            Fault::OwnerDies { catcher, tries } => match self.pgs_behind(catcher) {
                Some(1..) => {
                    // Some of what it has begun by then is on its way.
                    if let Some(owner) = self.draw_owner(catcher) {
                        self.log(|| format!("FAULT owner {owner} dies while {catcher} catches up"));
                        self.kill(owner, Ending::Killed);
                        self.boot_later(owner, 1500 * MS);
                        self.wait_for(Fault::SourceDies { catcher, tries: 100 });
                        // A death is noticed after 20 to 400 ms, and then its VDIs are taken over.
                        if self.fault_rng.percent(20) {
                            let delay = self.fault_rng.duration(20 * MS..500 * MS);
                            self.queue.put_after(delay, Event::Fault(Fault::AllLosePower));
                        }
                    }
                }
                _ if tries > 0 => self.wait_for(Fault::OwnerDies { catcher, tries: tries - 1 }),
                _ => {}
            },
            Fault::SourceDies { catcher, tries } => match self.pgs_behind(catcher) {
                Some(1..) if tries > 0 => self.wait_for(Fault::SourceDies { catcher, tries: tries - 1 }),
                Some(_) => {
                    let others: Vec<SheepIndex> =
                        (0..self.sheep.len()).filter(|s| *s != catcher && self.sheep[*s].is_up()).collect();
                    if !others.is_empty() {
                        let source = *self.fault_rng.pick(&others);
                        self.log(|| format!("FAULT source {source} dies after {catcher} has caught up"));
                        self.kill(source, Ending::Killed);
                        self.boot_later(source, 1500 * MS);
                    }
                }
                None => {}
            },
        }
    }

    /// By that very cut: after another one the lease begins anew.
    fn is_still_cut_off(&self, sheep: SheepIndex, start: u64, cut: u64) -> bool {
        let sheep = &self.sheep[sheep];
        sheep.cut_off && sheep.start == start && sheep.cuts == cut
    }

    fn wait_for(&mut self, fault: Fault) {
        let pause = self.fault_rng.duration(MS / 5..3 * MS);
        self.queue.put_after(pause, Event::Fault(fault));
    }

    /// PGs that a sheep catches up on. `None`: it is down, or not yet a member.
    fn pgs_behind(&self, sheep: SheepIndex) -> Option<u32> {
        let process = self.sheep[sheep].process()?;
        process.node.is_member().then(|| process.node.pgs_behind())
    }

    /// A sheep that owns a session, as another one sees it.
    fn draw_owner(&mut self, witness: SheepIndex) -> Option<SheepIndex> {
        let view = self.sheep[witness].process()?.node.view();
        let owners = self.vdis.iter().filter_map(|vid| view.session(*vid).owner);
        let owners: Vec<SheepIndex> = owners
            .filter_map(|(id, _)| self.sheep.iter().position(|s| s.id() == id && s.is_up()))
            .filter(|owner| *owner != witness)
            .collect();
        (!owners.is_empty()).then(|| *self.fault_rng.pick(&owners))
    }

    /// Asked of any sheep; whether it happens does not matter.
    fn put_out(&mut self, index: SheepIndex, out: bool) {
        let members: Vec<SheepIndex> = (0..self.sheep.len())
            .filter(|s| self.view_of(*s).is_some_and(|v| v.format().is_some()))
            .collect();
        if members.is_empty() {
            return;
        }
        let asked = *self.fault_rng.pick(&members);
        let id = self.sheep[index].id();
        self.ask(asked, ClientOp::Cluster(ClusterOp::SetOut { node: id, out }));
    }

    fn step_now(&mut self, event: Event) {
        self.queue.put_after(Duration::ZERO, event);
    }

    /// Faults are over: everything is mended and everybody comes back.
    pub(crate) fn mend_everything(&mut self) {
        self.faults_on = false;
        self.end_damage();
        for pair in self.network.cuts() {
            self.mend(pair);
        }
        for index in 0..self.sheep.len() {
            self.sheep[index].disk_slowness = 1;
            if self.sheep[index].cut_off {
                self.mend_driver(index);
            }
            if !self.sheep[index].is_up() {
                self.boot_later(index, 200 * MS);
            }
        }
    }

    pub(crate) fn boot_later(&mut self, index: SheepIndex, within: Duration) {
        let delay = self.fault_rng.duration(20 * MS..within);
        self.queue.put_after(delay, Event::Boot(index));
    }

    fn power_loss(&mut self) {
        for index in 0..self.sheep.len() {
            self.kill(index, Ending::PowerLoss);
            self.boot_later(index, 1000 * MS);
        }
    }

    fn draw_pair(&mut self) -> Pair {
        let count = self.sheep.len();
        if count == 1 {
            return (0, 0);
        }
        let from = self.fault_rng.index(count);
        (from, (from + 1 + self.fault_rng.index(count - 1)) % count)
    }

    fn cut_link(&mut self) {
        let pair = self.draw_pair();
        let mut pairs = vec![pair];
        if self.fault_rng.percent(60) {
            pairs.push((pair.1, pair.0));
        }
        let time = self.fault_rng.duration(20 * MS..700 * MS);
        self.cut_for(&pairs, time);
    }

    fn isolate(&mut self, index: SheepIndex) {
        let (inwards, outwards) =
            *self.fault_rng.pick(&[(true, true), (true, true), (true, false), (false, true)]);
        let time = self.fault_rng.duration(2000 * MS..6000 * MS);
        let others = (0..self.sheep.len()).filter(|p| *p != index);
        let mut pairs: Vec<Pair> = others.flat_map(|p| [(index, p), (p, index)]).collect();
        pairs.retain(|(from, _)| if *from == index { outwards } else { inwards });
        self.cut_for(&pairs, time);
    }

    fn cut_for(&mut self, pairs: &[Pair], time: Duration) {
        for &pair in pairs {
            self.network.cut(pair);
            self.queue.put_after(time, Event::Fault(Fault::Mend(pair)));
            // Somebody may lose patience.
            if self.fault_rng.percent(50) {
                let delay = self.fault_rng.duration(MS..time);
                self.queue.put_after(delay, Event::ResetLink(pair));
            }
        }
        self.log(|| format!("links {pairs:?} are cut for {time:?}"));
    }

    fn mend(&mut self, pair: Pair) {
        let now = self.now();
        for departure in self.network.mend(pair, now) {
            self.depart(departure);
        }
    }

    /// A partition: the sheep loses the driver, and perhaps all others with it. Its lease ends before theirs do.
    fn cut_off(&mut self, index: SheepIndex) {
        if !self.sheep[index].is_up() || self.sheep[index].cut_off {
            return;
        }
        self.sheep[index].cut_off = true;
        self.sheep[index].cuts += 1;
        let cut = self.sheep[index].cuts;
        self.driver.cut_off(self.sheep[index].id());
        let start = self.sheep[index].start;
        let lease = self.fault_rng.duration(50 * MS..300 * MS);
        let given_up = lease + self.fault_rng.duration(MS..300 * MS);
        let mended = self.fault_rng.duration(20 * MS..1000 * MS);
        if self.scenario.bug != PlantedBug::NoQuorumLost {
            self.queue.put_after(lease, Event::Fault(Fault::QuorumLost { sheep: index, start, cut }));
        }
        self.queue.put_after(given_up, Event::Fault(Fault::Expel { sheep: index, start, cut }));
        self.queue.put_after(mended, Event::Fault(Fault::Reconnect(index)));
        if self.fault_rng.percent(50) {
            let others = (0..self.sheep.len()).filter(|p| *p != index);
            let pairs: Vec<Pair> = others.flat_map(|p| [(index, p), (p, index)]).collect();
            self.cut_for(&pairs, mended);
        }
    }
}
