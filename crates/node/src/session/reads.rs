//! Reads of whole blocks, and comparisons of objects, from one in-sync copy: this node's own first, another one if that fails.

use bytes::Bytes;
use proto::object::BlockRange;
use proto::peer::{PeerReply, PeerRequest};
use proto::{NodeId, Oid, Since, Vid};

use super::Session;
use crate::context::{Context, Purpose};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReadUse {
    Task(u64),
    /// A run of blocks of the inode's table.
    Table {
        /// In whose objects it is looked for.
        from: Vid,
        first: u32,
        count: u32,
    },
    Seal {
        attempt: u64,
    },
    /// One copy's part of a check.
    Check {
        task: u64,
        node: NodeId,
    },
    /// Where an object differs from another VDI's.
    Compare {
        task: u64,
        index: u32,
    },
}

/// What a read found.
#[derive(Clone, Debug)]
pub(super) enum Found {
    Data(Bytes),
    /// No copy has the object.
    Absent,
    /// Not one in-sync copy could give the blocks.
    Failed,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Blocks(BlockRange),
    /// Where the object differs from this one, or from zeros.
    DifferenceFrom(Option<Oid>),
}

#[derive(Debug)]
pub(super) struct Read {
    oid: Oid,
    what: What,
    purpose: ReadUse,
    /// Only this copy will do.
    only: Option<NodeId>,
    /// Copies that failed.
    failed: Vec<NodeId>,
    asked: Option<(NodeId, u64, Since)>,
}

impl Read {
    pub(super) fn is_for(&self, oid: Oid) -> bool {
        self.oid == oid
    }
}

impl Session {
    pub(super) fn start_read(
        &mut self,
        ctx: &mut Context,
        oid: Oid,
        blocks: BlockRange,
        only: Option<NodeId>,
        purpose: ReadUse,
    ) {
        let id = self.fresh_id();
        let what = What::Blocks(blocks);
        self.reads.insert(id, Read { oid, what, purpose, only, failed: Vec::new(), asked: None });
        self.ask(ctx, id);
    }

    /// Asks one copy where two objects of a PG differ.
    pub(super) fn start_compare(&mut self, ctx: &mut Context, oid: Oid, with: Option<Oid>, purpose: ReadUse) {
        let id = self.fresh_id();
        let what = What::DifferenceFrom(with);
        self.reads.insert(id, Read { oid, what, purpose, only: None, failed: Vec::new(), asked: None });
        self.ask(ctx, id);
    }

    /// A read that is tried at the next tick: it has just failed on every copy.
    pub(super) fn read_later(&mut self, oid: Oid, blocks: BlockRange, purpose: ReadUse) {
        let id = self.fresh_id();
        let what = What::Blocks(blocks);
        self.reads.insert(id, Read { oid, what, purpose, only: None, failed: Vec::new(), asked: None });
    }

    /// Asks the next copy. If none can be asked now, the read waits for the view to change.
    fn ask(&mut self, ctx: &mut Context, id: u64) {
        let Some(read) = self.reads.get_mut(&id) else { return };
        let pg_id = ctx.view.pg_of(read.oid).expect("the VDI of a session has a pool");
        let Some(pg) = ctx.view.pg(pg_id) else { return };
        let candidates: Vec<NodeId> =
            pg.in_sync.iter().copied().filter(|n| read.only.is_none_or(|only| only == *n)).collect();
        let mut usable: Vec<NodeId> =
            candidates.iter().copied().filter(|n| ctx.view.is_up(*n) && !read.failed.contains(n)).collect();
        usable.sort_by_key(|n| *n != ctx.me);
        let Some(node) = usable.first().copied() else {
            read.asked = None;
            if candidates.iter().all(|n| read.failed.contains(n)) && !pg.in_sync.is_empty() {
                self.finish_read(ctx, id, Found::Failed);
            }
            return;
        };
        let (oid, since) = (read.oid, pg.since);
        let body = match read.what {
            What::Blocks(blocks) => PeerRequest::Read { pg: pg_id, since, oid, blocks },
            What::DifferenceFrom(with) => PeerRequest::Compare { pg: pg_id, since, oid, with },
        };
        let call = ctx.call(node, body, Purpose::Read { vid: self.vid, read: id });
        read.asked = Some((node, call, since));
    }

    pub fn handle_read_reply(&mut self, ctx: &mut Context, id: u64, from: NodeId, reply: PeerReply) {
        let Some(read) = self.reads.get_mut(&id) else { return };
        read.asked = None;
        match (reply, read.what) {
            (PeerReply::Data { data, .. }, What::Blocks(blocks))
                if data.len() == blocks.count as usize * proto::BLOCK_BYTES =>
            {
                let damaged = std::mem::take(&mut read.failed);
                let oid = read.oid;
                self.finish_read(ctx, id, Found::Data(data));
                // Of an ancestor's object only a check by its own owner, or a scrub, may mend a copy.
                if !damaged.is_empty() && !self.frozen && oid.vid() == self.vid {
                    self.mend(ctx, oid, blocks);
                }
            }
            (PeerReply::Differing(blocks), What::DifferenceFrom(_)) => self.finish_compare(ctx, id, blocks),
            (PeerReply::Absent, _) => self.finish_read(ctx, id, Found::Absent),
            (PeerReply::Failed(failure), _) => {
                tracing::warn!(node = %from, oid = %read.oid, %failure, "a copy could not be read; trying another");
                read.failed.push(from);
                self.ask(ctx, id);
            }
            (PeerReply::OldView { .. }, _) => {
                // Asked again when the view has changed, or at the next tick.
            }
            _ => {
                read.failed.push(from);
                self.ask(ctx, id);
            }
        }
        self.run(ctx);
    }

    fn finish_read(&mut self, ctx: &mut Context, id: u64, found: Found) {
        let read = self.reads.remove(&id).expect("looked up by the caller");
        let blocks = match read.what {
            What::Blocks(blocks) => blocks,
            What::DifferenceFrom(_) => BlockRange::new(0, 0),
        };
        match read.purpose {
            ReadUse::Task(task) => self.task_read_done(ctx, task, blocks, found),
            ReadUse::Table { from, first, count } => self.table_loaded(ctx, from, first, count, found),
            ReadUse::Seal { attempt } => self.seal_read_done(ctx, attempt, read.oid, blocks, found),
            ReadUse::Check { task, node } => self.check_read_done(ctx, task, node, found),
            ReadUse::Compare { task, index } => self.object_compared(ctx, task, index, None),
        }
    }

    fn finish_compare(&mut self, ctx: &mut Context, id: u64, differing: Vec<BlockRange>) {
        let read = self.reads.remove(&id).expect("looked up by the caller");
        let ReadUse::Compare { task, index } = read.purpose else { unreachable!("nobody else compares") };
        self.object_compared(ctx, task, index, Some(differing));
    }

    pub(super) fn replan_reads(&mut self, ctx: &mut Context) {
        for id in self.reads.keys().copied().collect::<Vec<_>>() {
            let Some(read) = self.reads.get_mut(&id) else { continue };
            if let Some((node, call, since)) = read.asked {
                let pg = ctx.view.pg_of(read.oid).and_then(|pg| ctx.view.pg(pg));
                if ctx.view.is_up(node) && pg.is_some_and(|pg| pg.since == since) {
                    continue;
                }
                ctx.out.calls.remove(&call);
                read.asked = None;
            }
            self.ask(ctx, id);
        }
    }

    pub(super) fn retry_reads(&mut self, ctx: &mut Context) {
        for id in self.reads.keys().copied().collect::<Vec<_>>() {
            if self.reads.get(&id).is_some_and(|r| r.asked.is_none()) {
                self.ask(ctx, id);
            }
        }
    }
}
