//! One run from seed to verdict: set up, make trouble, stop making trouble, and see what must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use bytes::Bytes;
use proto::client::{ClientOp, ClientReply, ClientResult, ClusterOp, VdiOp};
use proto::cluster::RepairChange;
use proto::{BLOCK_BYTES, NodeId, Oid, RequestId, Vid};

use crate::history::BlockId;
use crate::linearize;
use crate::network::SheepIndex;
use crate::object_store::StoreKind;
use crate::queue::Moment;
use crate::scenario::PlantedBug;
use crate::world::{Event, World};

/// Events after which a run counts as endless.
const EVENTS_MAX: u64 = 1_000_000;
/// Sheep through which everything is read at the end.
const LAST_READERS_MAX: usize = 4;
/// Of every sheep's disk, in bytes per second.
const SCRUB_RATE: u64 = 16 << 20;

#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    pub bug: PlantedBug,
    /// On what kind of store, instead of what the seed would choose.
    pub store: Option<StoreKind>,
    /// Keep the event log.
    pub trace: bool,
}

#[derive(Debug)]
pub struct Outcome {
    pub seed: u64,
    /// What was violated.
    pub failure: Option<String>,
    pub events: u64,
    pub requests: u64,
    pub faults: u64,
    pub store: StoreKind,
    /// Rounds of write-back on all disks together.
    pub syncs: u64,
    /// Objects of which returning sheep were told what they lack.
    pub told_changed: u64,
    /// How often a disk was damaged.
    pub damages: u64,
    /// Requests that found no room.
    pub refused: u64,
    /// How often what was answered and not durable may have been lost.
    pub losses: u64,
    /// Flushes that were answered.
    pub flushes: u64,
    /// Snapshots, clones, rollbacks, deletions and resizes that were carried out.
    pub deeds: BTreeMap<&'static str, u64>,
    pub virtual_time: Moment,
    pub trace: Option<String>,
}

/// Runs a seed. Panics of the code under test are failures like any other.
pub fn run(seed: u64, options: Options) -> Outcome {
    let mut world = World::new(seed, options);
    let verdict = catch_unwind(AssertUnwindSafe(|| world.play()));
    let failure = match verdict {
        Ok(Ok(())) => None,
        Ok(Err(why)) => Some(why),
        Err(panic) => Some(format!("panic: {}", panic_text(&*panic))),
    };
    let running = world.sheep.iter_mut().filter_map(|s| s.process_mut()?.store.engine().map(|e| e.syncs));
    let syncs = world.syncs + running.sum::<u64>();
    Outcome {
        seed,
        failure,
        events: world.events,
        requests: world.history.op_count(),
        faults: world.fault_count,
        store: world.scenario.store,
        syncs,
        told_changed: world.told_changed,
        damages: world.damages.count,
        refused: world.ballast.refused,
        losses: world.history.loss_count(),
        flushes: world.history.flush_count(),
        deeds: world.forest.done.clone(),
        virtual_time: world.now(),
        trace: world.trace().map(String::from),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_else(|| "?".into())
}

impl World {
    fn play(&mut self) -> Result<(), String> {
        self.set_up()?;
        self.make_trouble()?;
        self.mend_everything();
        self.remove_ballast()?;
        self.become_quiet()?;
        self.read_everything()?;
        self.become_quiet()?;
        self.scrub()?;
        self.conclude_histories();
        if self.scenario.forest {
            // Copies are asked here, so it comes before the stores are looked into: that takes I/O away from the nodes.
            self.check_changes()?;
            self.check_objects()?;
        }
        self.compare_copies()?;
        if self.scenario.forest {
            self.check_forest()?;
        }
        self.check_histories()
    }

    /// Lets events happen until something holds, at most for `limit`.
    fn run_until(
        &mut self,
        limit: Duration,
        what: &str,
        done: impl Fn(&World) -> Result<(), String>,
    ) -> Result<(), String> {
        let end = self.now().after(limit);
        loop {
            if let Some(violation) = &self.violation {
                return Err(violation.clone());
            }
            let Err(missing) = done(self) else { return Ok(()) };
            if self.queue.next_moment().is_none_or(|next| next > end) {
                return Err(format!("{what} took longer than {limit:?}: {missing}"));
            }
            if self.events > EVENTS_MAX {
                return Err(format!("{what} took more than {EVENTS_MAX} events: {missing}"));
            }
            self.step();
        }
    }

    pub(crate) fn run_for(&mut self, time: Duration) -> Result<(), String> {
        let end = self.now().after(time);
        loop {
            if let Some(violation) = &self.violation {
                return Err(violation.clone());
            }
            if self.events > EVENTS_MAX {
                return Err(format!("more than {EVENTS_MAX} events in {}", self.now()));
            }
            if self.queue.next_moment().is_none_or(|next| next > end) {
                return Ok(());
            }
            self.step();
        }
    }

    pub(crate) fn ask_and_wait(&mut self, op: ClientOp) -> Result<ClientResult, String> {
        let request = self.ask(0, op);
        self.run_until(Duration::from_secs(10), "an answer", |w| answered(w, request))?;
        Ok(self.answers.remove(&request).expect("just answered"))
    }

    fn set_up(&mut self) -> Result<(), String> {
        let scenario = format!("{:?}", self.scenario);
        self.log(|| scenario);
        for index in 0..self.sheep.len() {
            self.queue.put_after(Duration::from_millis(index as u64), Event::Boot(index));
        }
        self.run_until(Duration::from_secs(10), "joining", World::views_agree)?;
        let format = self.scenario.format;
        expect_done(self.ask_and_wait(ClientOp::Cluster(ClusterOp::Format(format)))?)?;
        // A pass takes less than a run.
        let out_time_s = self.scenario.gives_up.then_some(1);
        let change =
            RepairChange { scrub_rate_bytes: Some(SCRUB_RATE), out_time_s, ..RepairChange::default() };
        expect_done(self.ask_and_wait(ClientOp::Cluster(ClusterOp::SetRepair(change)))?)?;
        for n in 0..self.scenario.vdis {
            let (name, size) = (format!("vdi{n}").into_bytes(), self.population.vdi_bytes);
            let create = VdiOp::Create { name, size, policy: None, block_size_shift: None };
            match self.ask_and_wait(ClientOp::Vdi(create))? {
                Ok(ClientReply::Vdi(info)) => {
                    self.vdis.push(info.vid);
                    let objects = self.population.vdi_bytes >> self.scenario.format.block_size_shift;
                    self.forest.add_shared(info.vid, objects);
                }
                other => return Err(format!("creating a VDI gave {other:?}")),
            }
        }
        if self.scenario.full_disks {
            self.load_ballast()?;
        }
        self.run_until(Duration::from_secs(10), "hearing of the VDIs", World::views_agree)
    }

    fn make_trouble(&mut self) -> Result<(), String> {
        self.clients_busy = true;
        self.faults_on = true;
        for client in 0..self.clients.len() {
            let delay = self.rng.duration(Duration::ZERO..self.scenario.think_time);
            self.queue.put_after(delay, Event::ClientTurn(client));
        }
        if self.scenario.churn {
            self.queue.put_after(self.scenario.think_time, Event::ChurnTurn);
        }
        if self.scenario.forest {
            self.queue.put_after(self.scenario.think_time, Event::ForestTurn);
        }
        if self.scenario.full_disks {
            self.queue.put_after(self.scenario.think_time, Event::BallastTurn);
        }
        let first = self.fault_rng.duration(Duration::ZERO..self.scenario.fault_pause);
        self.queue.put_after(first, Event::NextFault);
        self.run_for(self.scenario.busy_time)
    }

    /// With everything mended, all requests are answered.
    pub(crate) fn stop_clients(&mut self) -> Result<(), String> {
        self.run_for(Duration::from_millis(300))?;
        self.clients_busy = false;
        self.run_until(Duration::from_secs(60), "answering all requests", |w| {
            match w.requests.iter().next() {
                None => Ok(()),
                Some((id, r)) => {
                    Err(format!("{} open, first {id} since {}: {r:?}", w.requests.len(), r.since))
                }
            }
        })
    }

    /// Termination: also, all copies become complete.
    fn become_quiet(&mut self) -> Result<(), String> {
        self.stop_clients()?;
        self.run_until(Duration::from_secs(60), "agreeing on the view", World::views_agree)?;
        self.run_until(Duration::from_secs(120), "repair", World::is_repaired)?;
        // Whatever was under way when the last PG was in sync.
        self.run_for(Duration::from_millis(500))
    }

    fn views_agree(&self) -> Result<(), String> {
        for (index, sheep) in self.sheep.iter().enumerate() {
            let Some(running) = sheep.process() else { return Err(format!("sheep {index} is down")) };
            if !running.node.is_member() {
                return Err(format!("sheep {index} is not a member"));
            }
            let version = running.node.view().version();
            if version != self.driver.version() {
                return Err(format!("sheep {index} is at {version} of {}", self.driver.version()));
            }
        }
        Ok(())
    }

    pub(crate) fn is_repaired(&self) -> Result<(), String> {
        self.views_agree()?;
        let view = self.sheep[0].process().expect("all are up").node.view();
        for (pool_index, pool) in view.pools().iter().enumerate() {
            for (index, pg) in pool.pgs.iter().enumerate() {
                let targets: BTreeSet<&NodeId> = pg.targets.iter().collect();
                if targets != pg.in_sync.iter().collect() || !pg.catching.is_empty() {
                    return Err(format!("PG {pool_index}.{index} is not in sync: {pg:?}"));
                }
            }
        }
        Ok(())
    }

    /// Every VDI through every sheep, or some of many. Where an owner died, that also seals: until then, copies may differ in
    /// what was never acknowledged.
    fn read_everything(&mut self) -> Result<(), String> {
        let view = self.sheep[0].process().expect("all are up").node.view();
        let is_of_forest = |vid: Vid| self.scenario.forest && self.forest.line_of(view, vid).is_some();
        let vids: Vec<Vid> = view
            .vdis()
            .keys()
            .copied()
            .filter(|vid| view.vdi(*vid).is_some() && !is_of_forest(*vid))
            .collect();
        if self.scenario.forest {
            self.read_forest();
        }
        for sheep in self.last_readers() {
            for &vid in &vids {
                for window in self.population.windows().to_vec() {
                    self.read_through(sheep, vid, window);
                }
            }
        }
        Ok(())
    }

    /// Through whom everything is read at the end.
    pub(crate) fn last_readers(&mut self) -> Vec<SheepIndex> {
        let mut readers: Vec<SheepIndex> = (0..self.sheep.len()).collect();
        self.rng.shuffle(&mut readers);
        readers.truncate(LAST_READERS_MAX);
        readers
    }

    /// All in-sync copies hold the same bytes; an absent object is the same as one of zeros.
    fn compare_copies(&mut self) -> Result<(), String> {
        let view = self.sheep[0].process().expect("all are up").node.view().clone();
        let mut copies: BTreeMap<Oid, BTreeMap<NodeId, Content>> = BTreeMap::new();
        for sheep in &mut self.sheep {
            let id = sheep.id();
            let store = &mut sheep.process_mut().expect("all are up").store;
            for oid in store.objects() {
                let content = store.content(oid).map_err(|why| format!("at the end {id} says: {why}"))?;
                let content = content.expect("it was listed");
                copies.entry(oid).or_default().insert(id, content);
            }
            if let Some(engine) = store.engine() {
                engine.assert_invariants();
            }
        }
        for (oid, copies) in copies {
            let keeps_remains = self.scenario.forest;
            if view.vdi(oid.vid()).is_none() && !keeps_remains {
                let holders: Vec<&NodeId> = copies.keys().collect();
                return Err(format!("object {oid} of a deleted VDI is still held by {holders:?}"));
            }
            let Some(pg) = view.pg_of(oid).and_then(|id| view.pg(id)) else {
                continue;
            };
            let nothing = Content::new();
            let in_sync = pg.in_sync.iter().map(|id| copies.get(id).unwrap_or(&nothing));
            let in_sync: Vec<&Content> = in_sync.collect();
            let blocks: BTreeSet<u32> = in_sync.iter().flat_map(|c| c.keys().copied()).collect();
            let differs = |block: &u32| in_sync.iter().any(|c| c.get(block) != in_sync[0].get(block));
            if let Some(block) = blocks.into_iter().find(differs) {
                return Err(describe_difference(oid, block, &pg.in_sync, &in_sync));
            }
        }
        Ok(())
    }

    fn check_histories(&self) -> Result<(), String> {
        assert_eq!(self.history.open_ops().count(), 0, "all requests were answered");
        // Those of the forest are checked with what their snapshots show.
        let forest = self.scenario.forest.then_some(&self.forest.lines);
        let is_other = |block: &BlockId| forest.is_none_or(|lines| !lines.contains_key(&block.vid));
        for (block, history) in self.history.blocks().iter().filter(|(block, _)| is_other(block)) {
            linearize::check(history).map_err(|why| format!("{block}: {why}"))?;
        }
        Ok(())
    }
}

/// The blocks of an object that are not zeros.
type Content = BTreeMap<u32, Bytes>;

fn describe_difference(oid: Oid, block: u32, ids: &[NodeId], copies: &[&Content]) -> String {
    let byte = |copy: &Content, at: usize| copy.get(&block).map_or(0, |bytes| bytes[at]);
    let differs = |at: &usize| copies.iter().any(|c| byte(c, *at) != byte(copies[0], *at));
    let at = (0..BLOCK_BYTES).find(differs).unwrap_or(0) & !7;
    let word = |copy: &&Content| u64::from_le_bytes(std::array::from_fn(|i| byte(copy, at + i)));
    let words: Vec<u64> = copies.iter().map(word).collect();
    format!("copies of object {oid} differ in block {block}: {ids:?} hold {words:?} at byte {at}")
}

fn answered(world: &World, request: RequestId) -> Result<(), String> {
    if world.answers.contains_key(&request) { Ok(()) } else { Err(format!("request {request} is open")) }
}

pub(crate) fn expect_done(result: ClientResult) -> Result<(), String> {
    match result {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("setting up failed: {error}")),
    }
}
