//! What a request does to one object, step by step.
//!
//! ```text
//! Start ── table entry known ──▶ Queued ── blocks granted ──▶ Granted ──▶ (Reading ──▶ Merge ──▶) Changing ──▶ end
//!                                                              ▲ │
//!                                                              └─┴ Preparing: the object becomes the VDI's own first
//! ```
//!
//! An object comes into being with the first write to it. That write holds the whole object until both the data and the
//! table entry are on all copies, so no other write can be acknowledged on an object that a crash could still unmake.
//! It replaces whatever a crashed predecessor may have left under that id (`WriteBase::Empty`).
//!
//! An object of an ancestor is never changed. Within a lineage the copies share slots, so the first write clones the object
//! where it lies and costs no more than its own blocks. A clone's copies are elsewhere: its object begins empty and *partial*
//! ([`volume::Entry`]), and before a part of a chunk is written the rest of it is copied from the base. Each such step leaves
//! what clients see as it was, so a crash after any of them is harmless; the entry says that a chunk is there only
//! after its data is on all copies.

mod reading;
mod surviving;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use proto::client::{ClientError, ClientReply};
use proto::object::{BlockRange, Change, Origin, StoreFailure, WriteBase};
use proto::{BLOCK_BYTES, NodeId, Oid, Seq, Vid};
use volume::{Entry, Piece, block_of_entry};

use super::copies::ChangeUse;
use super::locks::Claim;
use super::reads::{Found, ReadUse};
use super::seal::{Touched, Whole, is_page};
use super::{Session, Survivor};
use crate::context::Context;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteMode {
    /// Byte I/O: the object is made where there is none.
    Allocate,
    /// An old client's WRITE_OBJ.
    MustExist,
    /// An old client's CREATE: whatever was there is replaced.
    Replace,
    /// An old client's CREATE from a copy of an ancestor's object, as it found it in its table.
    CopyOf(Oid),
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Read {
        piece: Piece,
        must_exist: bool,
    },
    Write {
        piece: Piece,
        data: Bytes,
        mode: WriteMode,
    },
    /// `whole`: nothing of the object remains.
    Zero {
        piece: Piece,
        whole: bool,
    },
    /// A part of a saved machine's state; `data`: to be written, replacing all of the object if so.
    VmState {
        piece: Piece,
        data: Option<Bytes>,
        replace: bool,
    },
    /// An old client says that it has created the object.
    Claimed,
    /// An earlier owner may have made the object, or parts of it, and not lived to say so in the table.
    Adopt(Touched),
    /// Of any object of the VDI: data, a page of the table, a saved machine's state.
    Check {
        oid: Oid,
        blocks: BlockRange,
        repair: bool,
    },
    ReadInode {
        offset: u32,
        len: u32,
        flat: bool,
    },
    BlockStatus {
        offset: u64,
        len: u64,
    },
    /// A part of the block table, from this index on.
    Table {
        first: u32,
    },
    /// What differs from an ancestor.
    Changes {
        since: Vid,
        offset: u64,
        len: u64,
    },
    /// Numbers of objects, counted as far as block `next` of the table.
    Usage {
        next: u32,
        own: u64,
        shared: u64,
    },
    /// Loads these blocks of the table for a request that makes its tasks from them.
    Survey {
        first: u32,
        end: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Start,
    Queued,
    Granted,
    Reading,
    Merge,
    /// The object is being made the VDI's own; then the task goes on as if it had just been granted.
    Preparing,
    /// Parts that the task does not cover whole are read from the base, to be written to the own object.
    CopyingUp,
    /// They are on their way to the own object.
    CopiedUp,
    Changing,
    /// The object is gone, its table entry is being cleared.
    Clearing,
    /// The table entry is being set to what the object has become.
    Adopting,
}

#[derive(Debug)]
pub(super) struct Task {
    job: u64,
    index: u32,
    oid: Oid,
    pub kind: Kind,
    stage: Stage,
    /// Reads, changes and table writes that have not ended.
    outstanding: usize,
    /// Its changes: until it ends, they are not settled.
    pub changes: Vec<Seq>,
    /// What was read, by first block.
    ends: BTreeMap<u32, Bytes>,
    failure: Option<ClientError>,
    pub check: super::check::Progress,
}

impl Task {
    /// Of the object that it is about.
    pub(super) fn index(&self) -> u32 {
        self.index
    }

    pub(super) fn is_check(&self) -> bool {
        matches!(self.kind, Kind::Check { .. })
    }

    /// Of a write that has sent all its changes: how much of what it has begun has not ended.
    pub(super) fn left_of_write(&self) -> Option<usize> {
        let is_sent = matches!(self.kind, Kind::Write { .. }) && self.stage == Stage::Changing;
        (is_sent && self.failure.is_none()).then_some(self.outstanding)
    }
}

impl Session {
    pub(super) fn start_task(&mut self, job: u64, index: u32, kind: Kind) {
        let id = self.fresh_id();
        let oid = match kind {
            Kind::Check { oid, .. } => oid,
            Kind::VmState { .. } => Oid::vmstate(self.vid, index),
            _ => Oid::data(self.vid, index),
        };
        let task = Task {
            job,
            index,
            oid,
            kind,
            stage: Stage::Start,
            outstanding: 0,
            changes: Vec::new(),
            ends: BTreeMap::new(),
            failure: None,
            check: Default::default(),
        };
        self.tasks.insert(id, task);
        self.runnable.push_back(id);
    }

    pub(super) fn step(&mut self, ctx: &mut Context, id: u64) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        match task.stage {
            Stage::Start => self.begin(ctx, id),
            Stage::Queued | Stage::Reading | Stage::CopyingUp => {}
            Stage::Granted => self.execute(ctx, id),
            Stage::Merge => self.merge(ctx, id),
            Stage::Preparing | Stage::CopiedUp if task.failure.is_some() => self.end_task(ctx, id, Ok(())),
            Stage::Preparing => self.prepared(ctx, id),
            Stage::CopiedUp => self.copied_up(ctx, id),
            Stage::Changing => self.changed(ctx, id),
            Stage::Clearing | Stage::Adopting => self.end_task(ctx, id, Ok(())),
        }
    }

    /// Waits for the part of the table that the task needs, then for its blocks.
    fn begin(&mut self, ctx: &mut Context, id: u64) {
        let task = &self.tasks[&id];
        let (kind, index, oid) = (task.kind.clone(), task.index, task.oid);
        let (first, end) = self.table_part(ctx, &kind, index);
        if !self.need_table(ctx, id, first, end) {
            return;
        }
        let job = self.tasks[&id].job;
        match kind {
            Kind::ReadInode { offset, len, flat } => {
                let bytes = self.compose_inode(ctx, offset, len, flat);
                self.add_part(job, 0, bytes);
                self.end_task(ctx, id, Ok(()));
            }
            Kind::BlockStatus { offset, len } => {
                let extents = self.extents(ctx, offset, len);
                self.set_reply(job, ClientReply::Extents(extents));
                self.end_task(ctx, id, Ok(()));
            }
            Kind::Table { first } => {
                let table = self.table_reply(ctx, first);
                self.set_reply(job, ClientReply::Table(table));
                self.end_task(ctx, id, Ok(()));
            }
            Kind::Changes { since, offset, len } => {
                let task = self.tasks.get_mut(&id).expect("just seen");
                task.stage = Stage::Reading;
                self.compare_tables(ctx, id, since, offset, len);
            }
            Kind::Usage { next, own, shared } => match self.count_objects(ctx, next, own, shared) {
                counted @ Kind::Usage { next, own, shared } if next >= self.table_end(ctx) => {
                    self.tasks.get_mut(&id).expect("just seen").kind = counted;
                    let reply = ClientReply::Usage { own_objects: own, shared_objects: shared };
                    self.set_reply(job, reply);
                    self.end_task(ctx, id, Ok(()));
                }
                counted => {
                    self.tasks.get_mut(&id).expect("just seen").kind = counted;
                    self.runnable.push_back(id);
                }
            },
            Kind::Survey { .. } => self.end_task(ctx, id, Ok(())),
            _ => {
                self.tasks.get_mut(&id).expect("just seen").stage = Stage::Queued;
                self.locks.enqueue(oid, id);
                self.grant(oid);
            }
        }
    }

    fn grant(&mut self, oid: Oid) {
        let (tasks, table, vid, chunk) = (&self.tasks, &self.table, self.vid, self.chunk_blocks);
        let claim = |id: u64| {
            let task = &tasks[&id];
            let entry = table.entry(task.index).unwrap_or_default();
            let exists = entry.owner == vid;
            // In a chunk that is not there yet a change brings all of it, so two in one chunk exclude each other.
            let change = |piece: &Piece| {
                let blocks = piece.blocks();
                Claim { blocks: entry.widened(blocks, chunk), exclusive: true }
            };
            match &task.kind {
                Kind::Read { piece, .. } => Claim { blocks: piece.blocks(), exclusive: false },
                Kind::Write { piece, mode: WriteMode::Allocate | WriteMode::MustExist, .. } if exists => {
                    change(piece)
                }
                Kind::Zero { piece, whole: false } if exists => change(piece),
                Kind::Check { oid, blocks, .. } if !is_page(*oid) => {
                    Claim { blocks: *blocks, exclusive: true }
                }
                Kind::VmState { piece, data: None, .. } => Claim { blocks: piece.blocks(), exclusive: false },
                _ => Claim::WHOLE,
            }
        };
        let granted = self.locks.grant(oid, claim);
        for id in granted {
            self.tasks.get_mut(&id).expect("a waiting task exists").stage = Stage::Granted;
            self.runnable.push_back(id);
        }
    }

    fn execute(&mut self, ctx: &mut Context, id: u64) {
        let task = &self.tasks[&id];
        let (kind, index) = (task.kind.clone(), task.index);
        let entry = self.table.entry(index).unwrap_or_default();
        match kind {
            Kind::Read { piece, must_exist } => self.execute_read(ctx, id, entry, piece, must_exist),
            Kind::Write { mode: WriteMode::MustExist, .. } if entry.owner != self.vid => {
                self.end_task(ctx, id, Err(ClientError::NoObject));
            }
            Kind::Write { piece, mode, .. } => {
                if self.has_survived(id, piece.blocks()) {
                    return self.end_task(ctx, id, Ok(()));
                }
                self.execute_write(ctx, id, entry, &piece, mode);
            }
            Kind::Zero { .. } if entry.is_hole() => self.end_task(ctx, id, Ok(())),
            // It was carried out, and whatever is there now was written later.
            Kind::Zero { piece, .. } if self.has_survived(id, piece.blocks()) => {
                self.end_task(ctx, id, Ok(()))
            }
            // An inherited object stays with its owner, and only the table changes. The deletion, of what may not be there, tells
            // another owner what was asked (see `adopt_object`).
            Kind::Zero { whole: true, .. } => {
                let oid = self.tasks[&id].oid;
                self.change(ctx, id, oid, Change::Delete, Bytes::new());
            }
            Kind::Zero { .. } if entry.owner != self.vid => self.prepare(ctx, id, entry),
            Kind::Zero { piece, whole: false } => {
                if self.copy_up(ctx, id, entry, &piece) {
                    return;
                }
                self.read_ends(ctx, id, self.vid, &piece);
            }
            Kind::VmState { data: Some(_), replace: true, .. } => self.merge(ctx, id),
            Kind::VmState { data: Some(_), piece, .. } if self.has_survived(id, piece.blocks()) => {
                self.end_task(ctx, id, Ok(()))
            }
            Kind::VmState { piece, .. } => {
                let oid = self.tasks[&id].oid;
                let task = self.tasks.get_mut(&id).expect("seen above");
                task.stage = Stage::Reading;
                task.outstanding = 1;
                self.start_read(ctx, oid, piece.blocks(), None, ReadUse::Task(id));
            }
            Kind::Claimed if entry.owner == self.vid => self.end_task(ctx, id, Ok(())),
            Kind::Claimed => self.merge(ctx, id),
            Kind::Check { .. } => self.check_next(ctx, id),
            Kind::Adopt(touched) => self.adopt_object(ctx, id, entry, &touched),
            Kind::ReadInode { .. }
            | Kind::BlockStatus { .. }
            | Kind::Table { .. }
            | Kind::Changes { .. }
            | Kind::Usage { .. }
            | Kind::Survey { .. } => {
                unreachable!("ended in `begin`")
            }
        }
    }

    fn execute_write(&mut self, ctx: &mut Context, id: u64, entry: Entry, piece: &Piece, mode: WriteMode) {
        match mode {
            WriteMode::Replace => self.read_ends(ctx, id, Vid(0), piece),
            // Again, or from an old table: the object is there and is to be made anew from that copy.
            WriteMode::CopyOf(from) if entry.owner == self.vid || entry.is_hole() => {
                let task = self.tasks.get_mut(&id).expect("seen by the caller");
                task.stage = Stage::Reading;
                task.outstanding = 1;
                let blocks = BlockRange::new(0, self.object_blocks());
                self.read_through(ctx, id, from, blocks);
            }
            // Clones where the object lies, in one change with the data.
            _ if entry.owner != self.vid && !entry.is_hole() && self.can_clone(ctx, entry) => {
                self.read_ends(ctx, id, entry.owner, piece)
            }
            _ if entry.owner != self.vid && !entry.is_hole() => self.prepare(ctx, id, entry),
            _ if self.copy_up(ctx, id, entry, piece) => {}
            _ => self.read_ends(ctx, id, entry.owner, piece),
        }
    }

    /// Is the entry's object in this VDI's lineage, and complete?
    fn can_clone(&self, ctx: &Context, entry: Entry) -> bool {
        self.is_of_lineage(ctx, entry.owner) && !entry.is_partial()
    }

    fn is_of_lineage(&self, ctx: &Context, vid: Vid) -> bool {
        let lineage = |vid| ctx.view.vdi_or_remains(vid).map(|v| v.lineage);
        lineage(vid) == lineage(self.vid)
    }

    /// Makes the object the VDI's own without changing what is seen.
    fn prepare(&mut self, ctx: &mut Context, id: u64, entry: Entry) {
        if !self.is_of_lineage(ctx, entry.owner) {
            return self.set_entry_then(ctx, id, entry.on_top(self.vid), Stage::Preparing);
        }
        let (index, oid) = (self.tasks[&id].index, self.tasks[&id].oid);
        let base = WriteBase::CloneOf(Oid::data(entry.owner, index));
        let change = Change::Write { blocks: BlockRange::new(0, 0), checksums: Vec::new(), base };
        // Not the request's doing: see `write_copied`.
        self.change_as(ctx, id, oid, change, Bytes::new(), Origin::default());
        self.tasks.get_mut(&id).expect("seen above").stage = Stage::Preparing;
    }

    fn prepared(&mut self, ctx: &mut Context, id: u64) {
        let index = self.tasks[&id].index;
        let entry = self.table.entry(index).unwrap_or_default();
        if entry.owner != self.vid {
            // The clone is there; what was partial in the ancestor is so in it.
            return self.set_entry_then(ctx, id, Entry { owner: self.vid, ..entry }, Stage::Preparing);
        }
        self.execute(ctx, id);
    }

    fn set_entry_then(&mut self, ctx: &mut Context, id: u64, entry: Entry, stage: Stage) {
        let task = self.tasks.get_mut(&id).expect("seen by the caller");
        task.stage = stage;
        task.outstanding = 1;
        let index = task.index;
        self.write_entry(ctx, index, entry, id);
    }

    /// Copies chunks of which the piece covers a part only from the base. False: there are none.
    fn copy_up(&mut self, ctx: &mut Context, id: u64, entry: Entry, piece: &Piece) -> bool {
        let (chunk, object) = (self.chunk_blocks, self.object_blocks());
        let (all, whole) = (piece.blocks(), piece.whole_blocks());
        if !entry.is_partial() || all.count == 0 {
            return false;
        }
        let mut ragged: Vec<BlockRange> = Vec::new();
        for c in [all.first / chunk, (all.end() - 1) as u32 / chunk] {
            let blocks = BlockRange::new(c * chunk, chunk.min(object - c * chunk));
            let covered = whole.first <= blocks.first && whole.end() >= blocks.end();
            if !entry.has_block(blocks.first, chunk) && !covered && !ragged.contains(&blocks) {
                ragged.push(blocks);
            }
        }
        if ragged.is_empty() {
            return false;
        }
        let task = self.tasks.get_mut(&id).expect("seen by the caller");
        task.stage = Stage::CopyingUp;
        task.outstanding = ragged.len();
        let base = Oid::data(entry.base, task.index);
        for blocks in ragged {
            if entry.base_is_partial {
                self.read_through(ctx, id, base, blocks);
            } else {
                self.start_read(ctx, base, blocks, None, ReadUse::Task(id));
            }
        }
        true
    }

    /// What was missing has been read: it goes to the own object.
    fn write_copied(&mut self, ctx: &mut Context, id: u64) {
        let task = self.tasks.get_mut(&id).expect("seen by the caller");
        if let Some(failure) = task.failure.take() {
            return self.end_task(ctx, id, Err(failure));
        }
        let copied = std::mem::take(&mut task.ends);
        let oid = task.oid;
        for (first, data) in copied {
            let blocks = BlockRange::new(first, (data.len() / BLOCK_BYTES) as u32);
            let checksums = proto::checksum::block_checksums(&data);
            // Not the request's doing: an owner that is told of it must not take the request for carried out.
            self.change_as(
                ctx,
                id,
                oid,
                Change::Write { blocks, checksums, base: WriteBase::Keep },
                data,
                Origin::default(),
            );
            self.tasks.get_mut(&id).expect("seen above").check.copied.push(blocks);
        }
        self.tasks.get_mut(&id).expect("seen above").stage = Stage::CopiedUp;
    }

    fn copied_up(&mut self, ctx: &mut Context, id: u64) {
        let task = self.tasks.get_mut(&id).expect("seen by the caller");
        let (index, copied) = (task.index, std::mem::take(&mut task.check.copied));
        let entry = self.table.entry(index).unwrap_or_default();
        let now = copied
            .into_iter()
            .fold(entry, |entry, blocks| entry.with_present(blocks, self.chunk_blocks, self.object_blocks()));
        self.set_entry_then(ctx, id, now, Stage::Preparing);
    }

    fn write(&mut self, ctx: &mut Context, id: u64, blocks: BlockRange, data: Bytes, replace: bool) {
        let (index, oid) = (self.tasks[&id].index, self.tasks[&id].oid);
        let entry = self.table.entry(index).unwrap_or_default();
        let base = if entry.is_hole() || replace {
            WriteBase::Empty
        } else if entry.owner == self.vid {
            WriteBase::Keep
        } else {
            WriteBase::CloneOf(Oid::data(entry.owner, index))
        };
        self.change_blocks(ctx, id, oid, blocks, data, base);
        let unsaved = entry.owner == self.vid && self.is_table_unsaved(block_of_entry(index));
        if entry.is_hole() || unsaved {
            // Beside the data: whichever of the two a crash leaves alone, the object reads as the zeros it was before.
            self.tasks.get_mut(&id).expect("seen above").outstanding += 1;
            let now = if entry.is_hole() { Entry::whole(self.vid) } else { entry };
            self.write_entry(ctx, index, now, id);
        }
        // An inherited object's entry follows when the clone is there: before that it must lead to the ancestor.
    }

    /// Not what an earlier owner has carried out of it: that has been seen, and perhaps written over.
    fn change_blocks(
        &mut self,
        ctx: &mut Context,
        id: u64,
        oid: Oid,
        blocks: BlockRange,
        data: Bytes,
        base: WriteBase,
    ) {
        let parts = if base == WriteBase::Keep { self.not_survived(id, blocks) } else { vec![blocks] };
        for part in parts {
            let at = (part.first - blocks.first) as usize * BLOCK_BYTES;
            let data = data.slice(at..at + part.count as usize * BLOCK_BYTES);
            let checksums = proto::checksum::block_checksums(&data);
            self.change(ctx, id, oid, Change::Write { blocks: part, checksums, base }, data);
        }
    }

    fn write_zeros(&mut self, ctx: &mut Context, id: u64, piece: &Piece) {
        let oid = self.tasks[&id].oid;
        let ends = std::mem::take(&mut self.tasks.get_mut(&id).expect("seen above").ends);
        for (block, content) in ends {
            if self.has_survived(id, BlockRange::new(block, 1)) {
                continue;
            }
            let mut bytes = content.to_vec();
            let start = u64::from(block) * BLOCK_BYTES as u64;
            let from = u64::from(piece.offset).saturating_sub(start) as usize;
            let to = (u64::from(piece.offset + piece.len) - start).min(BLOCK_BYTES as u64) as usize;
            bytes[from..to].fill(0);
            let checksums = proto::checksum::block_checksums(&bytes);
            let blocks = BlockRange::new(block, 1);
            self.change(
                ctx,
                id,
                oid,
                Change::Write { blocks, checksums, base: WriteBase::Keep },
                bytes.into(),
            );
        }
        let whole = Some(piece.whole_blocks()).filter(|blocks| blocks.count > 0);
        for blocks in whole.map_or(Vec::new(), |blocks| self.not_survived(id, blocks)) {
            self.change(ctx, id, oid, Change::Discard { blocks }, Bytes::new());
        }
        if self.tasks[&id].outstanding == 0 {
            self.end_task(ctx, id, Ok(()));
        }
    }

    /// Sends one change of the task to all copies.
    pub(super) fn change(&mut self, ctx: &mut Context, id: u64, oid: Oid, change: Change, data: Bytes) {
        let job = self.tasks[&id].job;
        let origin = self.jobs.get(&job).map(|j| j.request.origin).unwrap_or_default();
        self.change_as(ctx, id, oid, change, data, origin);
    }

    fn change_as(
        &mut self,
        ctx: &mut Context,
        id: u64,
        oid: Oid,
        change: Change,
        data: Bytes,
        origin: Origin,
    ) {
        let task = self.tasks.get_mut(&id).expect("seen by the caller");
        task.stage = Stage::Changing;
        task.outstanding += 1;
        let job = task.job;
        let seq = self.send_change(ctx, oid, change, data, origin, ChangeUse::Task(id));
        if let Some(task) = self.tasks.get_mut(&id) {
            task.changes.push(seq);
        }
        self.note_change(job, seq);
    }

    pub(super) fn task_change_done(&mut self, id: u64, result: Result<(), StoreFailure>) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if let Err(failure) = result {
            task.failure = Some(match failure {
                StoreFailure::NoSpace => ClientError::NoSpace,
                _ => ClientError::Io,
            });
        }
        task.outstanding -= 1;
        if task.outstanding == 0 {
            self.runnable.push_back(id);
        }
    }

    pub(super) fn task_table_done(&mut self, id: u64, result: Result<(), StoreFailure>) {
        self.task_change_done(id, result);
    }

    /// Everything the task sent is on all copies.
    fn changed(&mut self, ctx: &mut Context, id: u64) {
        let task = self.tasks.get_mut(&id).expect("seen by the caller");
        if let Some(failure) = task.failure.take() {
            return self.end_task(ctx, id, Err(failure));
        }
        let (kind, index) = (task.kind.clone(), task.index);
        let entry = self.table.entry(index).unwrap_or_default();
        match kind {
            Kind::Zero { whole: true, .. } => self.clear_entry(ctx, id),
            Kind::Write { mode: WriteMode::Replace | WriteMode::CopyOf(_), .. }
                if entry.owner == self.vid && entry.is_partial() =>
            {
                self.set_entry_then(ctx, id, Entry::whole(self.vid), Stage::Adopting);
            }
            Kind::Write { .. } | Kind::Claimed if entry.owner != self.vid => {
                self.set_entry_then(ctx, id, Entry::whole(self.vid), Stage::Adopting);
            }
            Kind::Write { piece, .. } | Kind::Zero { piece, .. } if entry.is_partial() => {
                let now = entry.with_present(piece.blocks(), self.chunk_blocks, self.object_blocks());
                if now == entry {
                    return self.end_task(ctx, id, Ok(()));
                }
                self.set_entry_then(ctx, id, now, Stage::Adopting);
            }
            Kind::Check { .. } => self.check_mended(ctx, id),
            _ => self.end_task(ctx, id, Ok(())),
        }
    }

    /// The object is gone from all copies: the table may forget it.
    fn clear_entry(&mut self, ctx: &mut Context, id: u64) {
        self.set_entry_then(ctx, id, Entry::HOLE, Stage::Clearing);
    }

    pub(super) fn end_task(&mut self, ctx: &mut Context, id: u64, result: Result<(), ClientError>) {
        let task = self.tasks.remove(&id).expect("ended once");
        // Clearing and adopting report their table write's failure here.
        let result = task.failure.map_or(result, Err);
        self.locks.release(task.oid, id);
        self.grant(task.oid);
        self.task_ended(ctx, task.job, result);
    }

    pub(super) fn fail_task(&mut self, id: u64, error: ClientError) {
        if let Some(task) = self.tasks.get_mut(&id) {
            task.failure = Some(error);
        }
    }

    pub(super) fn task_oid(&self, id: u64) -> Oid {
        self.tasks[&id].oid
    }

    pub(super) fn task_job(&self, id: u64) -> u64 {
        self.tasks[&id].job
    }

    pub(super) fn mark_changing(&mut self, id: u64, outstanding: usize) {
        let task = self.tasks.get_mut(&id).expect("seen by the caller");
        task.stage = Stage::Changing;
        task.outstanding += outstanding;
    }

    pub(super) fn in_sync_and_up(&self, ctx: &Context, oid: Oid) -> Vec<NodeId> {
        let pg = ctx.view.pg_of(oid).and_then(|pg| ctx.view.pg(pg));
        pg.map(|pg| pg.in_sync.iter().copied().filter(|n| ctx.view.is_up(*n)).collect()).unwrap_or_default()
    }
}
