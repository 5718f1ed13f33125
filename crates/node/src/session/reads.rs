//! Reads of whole blocks, and comparisons of objects, from one in-sync copy: this node's own first, another one if that fails.

use std::time::Duration;

use bytes::Bytes;
use proto::checksum::block_checksums;
use proto::object::{BlockRange, Verified};
use proto::peer::{PeerReply, PeerRequest};
use proto::{NodeId, ObjectKind, Oid, Since, Vid};

use super::Session;
use crate::Time;
use crate::cache::Leave;
use crate::context::{Context, Purpose};
use crate::view::{Pg, View};

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
        /// Of the mend, in its object.
        first: u32,
    },
    /// One copy's part of a check.
    Check {
        task: u64,
        node: NodeId,
    },
    /// Good content of what a check has found to be wrong.
    CheckContent {
        task: u64,
    },
    /// A copy is to put content back that it has lost.
    PutBack {
        task: u64,
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
    Verified(Verified),
    /// No copy has the object.
    Absent,
    /// Not one in-sync copy could give the blocks.
    Failed,
}

#[derive(Clone, Debug)]
enum What {
    Blocks(BlockRange),
    /// What is there of them, without the content.
    Checksums(BlockRange),
    /// Not read but put back.
    Mend(BlockRange, Bytes),
    /// Where the object differs from this one, or from zeros.
    DifferenceFrom(Option<Oid>),
}

/// A copy that catches up may have what the others have lost, and gives it once it counts again. So long a read that has failed on all that
/// count waits for it. Not for ever: it may catch up with the very blocks that nobody can read.
const RETURN_PATIENCE: Duration = Duration::from_secs(20);

/// Is there a copy that does not count now and may soon?
fn comes_back(ctx: &Context, pg: &Pg) -> bool {
    let catching = pg.catching.iter().map(|copy| copy.node);
    let absent = pg.absent.iter().map(|copy| copy.node).filter(|node| pg.targets.contains(node));
    catching.chain(absent).any(|node| ctx.view.is_serving(node))
}

#[derive(Debug)]
pub(super) struct Read {
    oid: Oid,
    what: What,
    purpose: ReadUse,
    /// Only this copy will do.
    only: Option<NodeId>,
    /// Copies that failed since the in-sync set is what it is.
    failed: Vec<NodeId>,
    failed_since: Since,
    /// When the last of them had.
    failed_at: Option<Time>,
    asked: Option<(NodeId, u64, Since)>,
    /// It asks for blocks that never change: what comes may be kept in memory.
    keep: Option<Leave>,
}

impl Read {
    /// Is there no copy that could be asked now?
    pub(super) fn asks_nobody(&self) -> bool {
        self.asked.is_none()
    }

    fn new(oid: Oid, what: What, only: Option<NodeId>, purpose: ReadUse) -> Read {
        Read {
            oid,
            what,
            purpose,
            only,
            failed: Vec::new(),
            failed_since: Since::default(),
            failed_at: None,
            asked: None,
            keep: None,
        }
    }

    /// Blocks of a snapshot's data that a client wants, and not some copy's in particular. Not its table's: a session keeps those itself.
    fn of_a_snapshot(&self, view: &View) -> Option<BlockRange> {
        let What::Blocks(blocks) = self.what else { return None };
        let is_task = matches!(self.purpose, ReadUse::Task(_)) && self.only.is_none();
        let is_data = self.oid.kind() == Some(ObjectKind::Data);
        let is_snapshot = || view.vdi_or_remains(self.oid.vid()).is_some_and(|vdi| vdi.is_snapshot());
        (is_task && is_data && is_snapshot()).then_some(blocks)
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
        self.start(ctx, oid, What::Blocks(blocks), only, purpose);
    }

    /// Asks a copy what it has of these blocks, without the content.
    pub(super) fn start_verify(
        &mut self,
        ctx: &mut Context,
        oid: Oid,
        blocks: BlockRange,
        node: NodeId,
        purpose: ReadUse,
    ) {
        self.start(ctx, oid, What::Checksums(blocks), Some(node), purpose);
    }

    /// Gives a copy content that it cannot read any more, of an object that never changes.
    pub(super) fn start_mend(
        &mut self,
        ctx: &mut Context,
        oid: Oid,
        blocks: BlockRange,
        data: Bytes,
        node: NodeId,
        purpose: ReadUse,
    ) {
        self.start(ctx, oid, What::Mend(blocks, data), Some(node), purpose);
    }

    fn start(&mut self, ctx: &mut Context, oid: Oid, what: What, only: Option<NodeId>, purpose: ReadUse) {
        let id = self.fresh_id();
        self.reads.insert(id, Read::new(oid, what, only, purpose));
        self.ask(ctx, id);
    }

    /// Asks one copy where two objects of a PG differ.
    pub(super) fn start_compare(&mut self, ctx: &mut Context, oid: Oid, with: Option<Oid>, purpose: ReadUse) {
        self.start(ctx, oid, What::DifferenceFrom(with), None, purpose);
    }

    /// A read that is tried at the next tick: it has just failed on every copy.
    pub(super) fn read_later(&mut self, oid: Oid, blocks: BlockRange, purpose: ReadUse) {
        let id = self.fresh_id();
        let what = What::Blocks(blocks);
        self.reads.insert(id, Read::new(oid, what, None, purpose));
    }

    /// Asks the next copy. If none can be asked now, the read waits for the view to change.
    fn ask(&mut self, ctx: &mut Context, id: u64) {
        let Some(read) = self.reads.get_mut(&id) else { return };
        let pg_id = ctx.view.pg_of(read.oid).expect("the VDI of a session has a pool");
        let Some(pg) = ctx.view.pg(pg_id) else { return };
        if let Some(blocks) = read.of_a_snapshot(ctx.view) {
            if let Some(data) = ctx.out.cache.get(read.oid, blocks) {
                let reply = PeerReply::Data { checksums: Vec::new(), data };
                let call = ctx.answer_self(reply, Purpose::Read { vid: self.vid, read: id });
                read.asked = Some((ctx.me, call, pg.since));
                return;
            }
            read.keep = ctx.out.cache.leave(blocks);
        }
        // A disk that could not read then may be able to now, and may by now be the last to have the blocks.
        if read.failed_since != pg.since {
            read.failed.clear();
            read.failed_since = pg.since;
            read.failed_at = None;
        }
        let candidates: Vec<NodeId> =
            pg.in_sync.iter().copied().filter(|n| read.only.is_none_or(|only| only == *n)).collect();
        let mut usable: Vec<NodeId> =
            candidates.iter().copied().filter(|n| ctx.view.is_up(*n) && !read.failed.contains(n)).collect();
        usable.sort_by_key(|n| (*n != ctx.me, ctx.is_silent(*n)));
        let Some(node) = usable.first().copied() else {
            read.asked = None;
            if candidates.iter().all(|n| read.failed.contains(n)) && !pg.in_sync.is_empty() {
                let failed_at = *read.failed_at.get_or_insert(ctx.now);
                let waits = matches!(read.what, What::Blocks(_)) && read.only.is_none();
                if !waits || ctx.now.since(failed_at) > RETURN_PATIENCE || !comes_back(ctx, pg) {
                    self.finish_read(ctx, id, Found::Failed);
                }
            }
            return;
        };
        let (oid, since) = (read.oid, pg.since);
        let body = match &read.what {
            &What::Blocks(blocks) => PeerRequest::Read { pg: pg_id, since, oid, blocks },
            &What::Checksums(blocks) => PeerRequest::Verify { pg: pg_id, since, oid, blocks },
            What::Mend(blocks, data) => {
                let checksums = block_checksums(data);
                PeerRequest::Mend { pg: pg_id, since, oid, blocks: *blocks, checksums, data: data.clone() }
            }
            &What::DifferenceFrom(with) => PeerRequest::Compare { pg: pg_id, since, oid, with },
        };
        let call = ctx.call(node, body, Purpose::Read { vid: self.vid, read: id });
        read.asked = Some((node, call, since));
    }

    pub fn handle_read_reply(&mut self, ctx: &mut Context, id: u64, from: NodeId, reply: PeerReply) {
        let Some(read) = self.reads.get_mut(&id) else { return };
        read.asked = None;
        match (reply, &read.what) {
            (PeerReply::Data { data, .. }, &What::Blocks(blocks))
                if data.len() == blocks.count as usize * proto::BLOCK_BYTES =>
            {
                let damaged = std::mem::take(&mut read.failed);
                let oid = read.oid;
                if let Some(leave) = read.keep {
                    ctx.out.cache.put(leave, oid, blocks.first, &data);
                }
                self.finish_read(ctx, id, Found::Data(data));
                // An ancestor's object is not this session's to check. The copy that could not give it has it mended (see `scrub`).
                if !damaged.is_empty() && oid.vid() == self.vid {
                    self.mend(ctx, oid, blocks);
                }
            }
            (PeerReply::Verified(verified), What::Checksums(blocks))
                if verified.checksums.len() == blocks.count as usize =>
            {
                self.finish_read(ctx, id, Found::Verified(verified));
            }
            // What has become of it is asked then.
            (PeerReply::Done, What::Mend(..)) => self.finish_read(ctx, id, Found::Absent),
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
            What::Blocks(blocks) | What::Checksums(blocks) | What::Mend(blocks, _) => blocks,
            What::DifferenceFrom(_) => BlockRange::new(0, 0),
        };
        match read.purpose {
            ReadUse::Task(task) => self.task_read_done(ctx, task, blocks, found),
            ReadUse::Table { from, first, count } => self.table_loaded(ctx, from, first, count, found),
            ReadUse::Seal { attempt, first } => {
                self.seal_read_done(ctx, attempt, (read.oid, first), blocks, found)
            }
            ReadUse::Check { task, node } => self.check_read_done(ctx, task, node, found),
            ReadUse::CheckContent { task } => self.check_content_read(ctx, task, blocks, found),
            ReadUse::PutBack { task } => self.was_put_back(ctx, task),
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
            let Some(read) = self.reads.get_mut(&id) else { continue };
            let pg = ctx.view.pg_of(read.oid).and_then(|pg| ctx.view.pg(pg));
            let answers = |n: &NodeId| ctx.view.is_up(*n) && !ctx.is_silent(*n) && !read.failed.contains(n);
            let others = read.only.is_none() && pg.is_some_and(|pg| pg.in_sync.iter().any(answers));
            // This very copy is wanted, to compare it: it is as good as lost, as it is to whoever writes.
            if let (Some(node), Some(pg_id)) = (read.only, ctx.view.pg_of(read.oid))
                && ctx.is_silent(node)
                && !ctx.is_cut_off()
                && let Some(since) = pg.filter(|pg| pg.in_sync.contains(&node)).map(|pg| pg.since)
                && ctx.drop_copies(node, vec![(pg_id, since)])
            {
                tracing::warn!(%node, vdi = %self.vid, "a copy that is to be checked does not answer; going on without it");
            }
            // No copy is the worse for its silence.
            if let Some((node, call, _)) = read.asked.filter(|(node, ..)| others && ctx.is_silent(*node)) {
                tracing::debug!(%node, oid = %read.oid, "a copy does not answer; reading from another");
                ctx.out.calls.remove(&call);
                read.asked = None;
            }
            if read.asked.is_none() {
                self.ask(ctx, id);
            }
        }
    }
}
