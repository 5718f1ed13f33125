//! What nodes order from their stores, on its way through a store of either kind.

use std::fmt::Write as _;
use std::time::Duration;

use node::Ticket;
use proto::BLOCK_BYTES;
use proto::object::{Change, ObjectOp, ObjectReply};
use store::{IoId, IoOp};

use crate::network::SheepIndex;
use crate::object_store::ObjectStore;
use crate::scenario::PlantedBug;
use crate::world::{Event, World, shorten};

/// Half of what an answer may take. A daemon waits longer, and then calls the disk failed.
const SLOWEST_IO: Duration = Duration::from_secs(5);

impl World {
    pub(crate) fn submit(&mut self, index: SheepIndex, ticket: Ticket, op: ObjectOp) {
        self.log(|| format!("  sheep {index} store {} {}", ticket.0, brief_op(&op)));
        let start = self.sheep[index].start;
        let is_change = matches!(op, ObjectOp::Change { .. });
        let is_purge = matches!(op, ObjectOp::Change { change: Change::Delete, tag: None, .. });
        let skip = match self.scenario.bug {
            PlantedBug::SkipWrites => is_change && self.rng.permille(10),
            PlantedBug::SkipPurges => is_purge && self.rng.permille(500),
            PlantedBug::SkipMends => matches!(op, ObjectOp::Mend { .. }),
            _ => false,
        };
        let op = if skip { ObjectOp::Flush } else { op };
        let late = match (&op, self.scenario.bug) {
            (ObjectOp::Change { oid, change: Change::Discard { .. }, .. }, PlantedBug::LateDiscards)
                if self.rng.percent(30) =>
            {
                let mut late = op.clone();
                if let ObjectOp::Change { tag, .. } = &mut late {
                    *tag = None;
                }
                self.late_discards.insert((index, *oid), late);
                return self.give_to_store(index, start, ticket, ObjectOp::Flush);
            }
            (ObjectOp::Change { oid, .. }, _) => self.late_discards.remove(&(index, *oid)),
            _ => None,
        };
        self.give_to_store(index, start, ticket, op);
        if let Some(discard) = late {
            // Nobody waits for it.
            self.give_to_store(index, start, Ticket(u64::MAX - ticket.0), discard);
        }
    }

    fn give_to_store(&mut self, index: SheepIndex, start: u64, ticket: Ticket, op: ObjectOp) {
        let is_change = matches!(op, ObjectOp::Change { .. });
        let Some(running) = self.sheep[index].running(start) else { return };
        match &mut running.store {
            ObjectStore::Engine(engine) => engine.submit(ticket, op),
            ObjectStore::Model(model) => {
                let announces = matches!(&op, ObjectOp::Change { tag: Some(tag), .. } if tag.tell_taken);
                model.submit(ticket, op);
                if announces {
                    self.announce_later(index, start, ticket);
                }
                self.answer_later(index, start, ticket, is_change);
            }
        }
    }

    // The model answers after a while.

    fn answer_later(&mut self, index: SheepIndex, start: u64, ticket: Ticket, is_change: bool) {
        let typical = self.disk_latency(index);
        let delay = self.rng.latency(if is_change { typical } else { typical / 2 });
        let done = |answered| Event::StoreDone { sheep: index, start, ticket, answered };
        if is_change && self.scenario.bug == PlantedBug::AckBeforeDurable {
            self.queue.put_after(delay / 8, done(false));
            self.queue.put_after(delay + Duration::from_millis(20), done(true));
        } else {
            self.queue.put_after(delay, done(false));
        }
    }

    /// The model has the change in memory, and says so before it answers, or not at all.
    fn announce_later(&mut self, index: SheepIndex, start: u64, ticket: Ticket) {
        let delay = self.rng.latency(self.disk_latency(index) / 8);
        self.queue.put_after(delay, Event::StoreTook { sheep: index, start, ticket });
    }

    pub(crate) fn store_took(&mut self, index: SheepIndex, start: u64, ticket: Ticket) {
        let now = self.local_time(index);
        let Some(running) = self.sheep[index].running(start) else { return };
        let ObjectStore::Model(model) = &mut running.store else {
            unreachable!("only the model needs telling")
        };
        if model.is_change(ticket) {
            running.node.handle_store(ticket, ObjectReply::Taken, now);
            self.after(index);
        }
    }

    pub(crate) fn store_done(&mut self, index: SheepIndex, start: u64, ticket: Ticket, answered: bool) {
        let now = self.local_time(index);
        let premature = self.scenario.bug == PlantedBug::AckBeforeDurable;
        let Some(running) = self.sheep[index].running(start) else { return };
        let ObjectStore::Model(model) = &mut running.store else {
            unreachable!("only the model needs telling")
        };
        if answered {
            model.complete(ticket);
            return;
        }
        let reply = if premature && model.is_change(ticket) {
            model.premature_reply(ticket)
        } else {
            model.complete(ticket)
        };
        running.node.handle_store(ticket, reply, now);
        self.after(index);
    }

    // The engine asks for I/O, and answers by itself.

    /// Puts the engine's I/O on its way and hands its answers to the node. Were there any?
    pub(crate) fn serve_engine(&mut self, index: SheepIndex, start: u64) -> bool {
        let typical = self.disk_latency(index);
        let now = self.local_time(index);
        let mut last = self.queue.now();
        let Some(running) = self.sheep[index].running(start) else { return false };
        let Some(engine) = running.store.engine() else { return false };
        while let Some((io, op)) = engine.poll_io() {
            let typical = match op {
                IoOp::Read { .. } => typical / 2,
                // Into the disk's cache.
                IoOp::Write { durable: false, .. } => typical / 4,
                IoOp::Write { durable: true, .. } | IoOp::Sync | IoOp::Grow { .. } => typical,
            };
            let delay = self.rng.latency(typical).min(SLOWEST_IO);
            last = last.max(self.queue.now().after(delay));
            self.queue.put_after(delay, Event::IoDone { sheep: index, start, io });
        }
        let mut answered = false;
        while let Some((ticket, reply)) = engine.poll_reply() {
            running.node.handle_store(ticket, reply, now);
            answered = true;
        }
        let sheep = &mut self.sheep[index];
        if sheep.disk_slowness > 1 {
            sheep.slow_until = sheep.slow_until.max(last);
        }
        answered
    }

    pub(crate) fn io_done(&mut self, index: SheepIndex, start: u64, io: IoId) {
        let Some(running) = self.sheep[index].running(start) else { return };
        let engine = running.store.engine().expect("only the engine asks for I/O");
        let text = brief_io(engine.io(io));
        let succeeded = engine.complete(io);
        if self.rng.permille(self.scenario.checkpoints_permille) {
            engine.begin_checkpoint();
        }
        self.log(|| format!("  sheep {index} I/O {}: {text}{}", io.0, if succeeded { "" } else { " FAILS" }));
        self.after(index);
    }

    fn disk_latency(&self, index: SheepIndex) -> Duration {
        self.scenario.disk_latency * self.sheep[index].disk_slowness
    }
}

fn brief_io(op: &IoOp) -> String {
    match op {
        IoOp::Read { offset, len } => {
            format!("read {} blocks at {}", len / BLOCK_BYTES, offset / BLOCK_BYTES as u64)
        }
        IoOp::Write { offset, data, durable } => {
            let blocks = data.iter().map(|d| d.len()).sum::<usize>() / BLOCK_BYTES;
            let how = if *durable { "durable write" } else { "write" };
            format!("{how} of {blocks} blocks at {}", offset / BLOCK_BYTES as u64)
        }
        IoOp::Sync => "sync".into(),
        IoOp::Grow { size_bytes } => format!("growth to {size_bytes} bytes"),
    }
}

fn brief_op(op: &ObjectOp) -> String {
    let mut text = String::new();
    match op {
        ObjectOp::Change { oid, change, tag, data } => {
            let _ = write!(text, "{oid} {change:?} {tag:?} {} bytes", data.len());
        }
        ObjectOp::Mend { oid, blocks, .. } => {
            let _ = write!(text, "{oid} Mend {blocks:?}");
        }
        other => {
            let _ = write!(text, "{other:?}");
        }
    }
    shorten(&mut text);
    text
}
