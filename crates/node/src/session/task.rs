//! What a request does to one object, step by step.
//!
//! ```text
//! Start ── table entry known ──▶ Queued ── blocks granted ──▶ Granted ──▶ (Reading ──▶ Merge ──▶) Changing ──▶ end
//! ```
//!
//! An object comes into being with the first write to it. That write holds the whole object until both the data and the
//! table entry are on all copies, so no other write can be acknowledged on an object that a crash could still unmake.
//! It replaces whatever a crashed predecessor may have left under that id (`WriteBase::Empty`).

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use proto::client::{ClientError, ClientReply};
use proto::object::{BlockRange, Change, Origin, StoreFailure, WriteBase};
use proto::{BLOCK_BYTES, NodeId, Oid, Vid};
use volume::{INODE_BLOCKS, Piece, block_of_entry};

use super::Session;
use super::copies::ChangeUse;
use super::locks::Claim;
use super::reads::{Found, ReadUse};
use crate::context::Context;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteMode {
    /// Byte I/O: the object is made where there is none.
    Allocate,
    /// An old client's WRITE_OBJ.
    MustExist,
    /// An old client's CREATE: whatever was there is replaced.
    Replace,
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
    /// An old client says that it has created the object.
    Claimed,
    /// An earlier owner may have made the object and not lived to say so in the table.
    Adopt,
    Check {
        blocks: BlockRange,
        repair: bool,
        inode: bool,
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
    Usage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Start,
    Queued,
    Granted,
    Reading,
    Merge,
    Changing,
    /// The object is gone, its table entry is being cleared.
    Clearing,
    /// Another inherited object's data was copied; the table entry is being set.
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
    /// The ragged ends' present content, by block.
    ends: BTreeMap<u32, Bytes>,
    failure: Option<ClientError>,
    pub check: super::check::Progress,
}

impl Session {
    pub(super) fn start_task(&mut self, job: u64, index: u32, kind: Kind) {
        let id = self.fresh_id();
        let oid = match kind {
            Kind::Check { inode: true, .. } => Oid::inode(self.vid),
            _ => Oid::data(self.vid, index),
        };
        let task = Task {
            job,
            index,
            oid,
            kind,
            stage: Stage::Start,
            outstanding: 0,
            ends: BTreeMap::new(),
            failure: None,
            check: Default::default(),
        };
        self.tasks.insert(id, task);
        self.runnable.push_back(id);
    }

    pub(super) fn step(&mut self, ctx: &mut Context, id: u64) {
        let Some(task) = self.tasks.get(&id) else { return };
        match task.stage {
            Stage::Start => self.begin(ctx, id),
            Stage::Queued | Stage::Reading => {}
            Stage::Granted => self.execute(ctx, id),
            Stage::Merge => self.merge(ctx, id),
            Stage::Changing => self.changed(ctx, id),
            Stage::Clearing | Stage::Adopting => self.end_task(ctx, id, Ok(())),
        }
    }

    /// Waits for the part of the table that the task needs, then for its blocks.
    fn begin(&mut self, ctx: &mut Context, id: u64) {
        let task = &self.tasks[&id];
        let (kind, index, oid) = (task.kind.clone(), task.index, task.oid);
        let (first, end) = match kind {
            Kind::ReadInode { flat: true, .. } => (0, 0),
            Kind::ReadInode { offset, len, flat: false } => inode_blocks(offset, len),
            Kind::BlockStatus { offset, len } if len > 0 => {
                let last = ((offset + len - 1) >> self.shift) as u32;
                (block_of_entry((offset >> self.shift) as u32), block_of_entry(last) + 1)
            }
            Kind::BlockStatus { .. } => (0, 0),
            Kind::Usage => (0, INODE_BLOCKS),
            Kind::Check { inode: true, .. } => (0, 0),
            _ => (block_of_entry(index), block_of_entry(index) + 1),
        };
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
                let extents = self.extents(offset, len);
                self.set_reply(job, ClientReply::Extents(extents));
                self.end_task(ctx, id, Ok(()));
            }
            Kind::Usage => {
                let (own_objects, shared_objects) = self.count_objects();
                self.set_reply(job, ClientReply::Usage { own_objects, shared_objects });
                self.end_task(ctx, id, Ok(()));
            }
            _ => {
                self.tasks.get_mut(&id).expect("just seen").stage = Stage::Queued;
                self.locks.enqueue(oid, id);
                self.grant(oid);
            }
        }
    }

    fn grant(&mut self, oid: Oid) {
        let (tasks, table, vid) = (&self.tasks, &self.table, self.vid);
        let claim = |id: u64| {
            let task = &tasks[&id];
            let exists = table.entry(task.index) == Some(vid);
            match &task.kind {
                Kind::Read { piece, .. } => Claim { blocks: piece.blocks(), exclusive: false },
                Kind::Write { piece, mode, .. } if exists && *mode != WriteMode::Replace => {
                    Claim { blocks: piece.blocks(), exclusive: true }
                }
                Kind::Zero { piece, whole: false } if exists => {
                    Claim { blocks: piece.blocks(), exclusive: true }
                }
                Kind::Check { blocks, inode: false, .. } => Claim { blocks: *blocks, exclusive: true },
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
            Kind::Write { mode: WriteMode::MustExist, .. } if entry != self.vid => {
                self.end_task(ctx, id, Err(ClientError::NoObject));
            }
            Kind::Write { piece, mode, .. } => {
                if self.has_survived(id, piece.blocks()) {
                    return self.end_task(ctx, id, Ok(()));
                }
                let source = if mode == WriteMode::Replace { Vid(0) } else { entry };
                self.read_ends(ctx, id, source, &piece);
            }
            Kind::Zero { .. } if entry.0 == 0 => self.end_task(ctx, id, Ok(())),
            // It was carried out, and whatever is there now was written later.
            Kind::Zero { piece, .. } if self.has_survived(id, piece.blocks()) => {
                self.end_task(ctx, id, Ok(()))
            }
            Kind::Zero { whole: true, .. } if entry == self.vid => {
                let oid = self.tasks[&id].oid;
                self.change(ctx, id, oid, Change::Delete, Bytes::new());
            }
            // Inherited: the data stays with its owner, this VDI stops referring to it.
            Kind::Zero { whole: true, .. } => self.clear_entry(ctx, id, index),
            Kind::Zero { piece, whole: false } => self.read_ends(ctx, id, entry, &piece),
            Kind::Claimed if entry == self.vid => self.end_task(ctx, id, Ok(())),
            Kind::Claimed => self.merge(ctx, id),
            Kind::Check { .. } => self.check_next(ctx, id),
            Kind::Adopt if entry == self.vid => self.end_task(ctx, id, Ok(())),
            Kind::Adopt => {
                let oid = self.tasks[&id].oid;
                let task = self.tasks.get_mut(&id).expect("seen above");
                task.stage = Stage::Reading;
                task.outstanding = 1;
                self.start_read(ctx, oid, BlockRange::new(0, 1), None, ReadUse::Task(id));
            }
            Kind::ReadInode { .. } | Kind::BlockStatus { .. } | Kind::Usage => {
                unreachable!("ended in `begin`")
            }
        }
    }

    fn execute_read(&mut self, ctx: &mut Context, id: u64, entry: Vid, piece: Piece, must_exist: bool) {
        if entry.0 == 0 && must_exist {
            return self.end_task(ctx, id, Err(ClientError::NoObject));
        }
        if entry.0 == 0 || piece.len == 0 {
            let job = self.tasks[&id].job;
            self.add_part(job, piece.at, Bytes::from(vec![0; piece.len as usize]));
            return self.end_task(ctx, id, Ok(()));
        }
        let task = self.tasks.get_mut(&id).expect("seen by the caller");
        task.stage = Stage::Reading;
        task.outstanding = 1;
        self.start_read(ctx, Oid::data(entry, piece.index), piece.blocks(), None, ReadUse::Task(id));
    }

    /// Fetches what the partly covered blocks hold now, then goes on with `merge`.
    fn read_ends(&mut self, ctx: &mut Context, id: u64, source: Vid, piece: &Piece) {
        let partial = piece.partial_blocks();
        let task = self.tasks.get_mut(&id).expect("seen by the caller");
        if source.0 == 0 || partial.is_empty() {
            task.stage = Stage::Merge;
            self.runnable.push_back(id);
            return;
        }
        task.stage = Stage::Reading;
        task.outstanding = partial.len();
        for block in partial {
            self.start_read(
                ctx,
                Oid::data(source, piece.index),
                BlockRange::new(block, 1),
                None,
                ReadUse::Task(id),
            );
        }
    }

    pub(super) fn task_read_done(&mut self, id: u64, blocks: BlockRange, found: Found) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let data = match found {
            Found::Data(data) => data,
            Found::Absent if matches!(task.kind, Kind::Adopt) => Bytes::new(),
            // A damaged object is one all the same.
            Found::Failed if matches!(task.kind, Kind::Adopt) => Bytes::from_static(&[0]),
            // The table says that there is an object and nothing was ever written to it.
            Found::Absent => Bytes::from(vec![0; blocks.count as usize * BLOCK_BYTES]),
            Found::Failed => {
                task.failure = Some(ClientError::Io);
                Bytes::from(vec![0; blocks.count as usize * BLOCK_BYTES])
            }
        };
        task.outstanding -= 1;
        task.ends.insert(blocks.first, data);
        if task.outstanding == 0 {
            task.stage = Stage::Merge;
            self.runnable.push_back(id);
        }
    }

    /// Everything that had to be read is there.
    fn merge(&mut self, ctx: &mut Context, id: u64) {
        let task = self.tasks.get_mut(&id).expect("seen by the caller");
        if matches!(task.kind, Kind::Adopt) {
            let exists = task.ends.remove(&0).is_some_and(|data| !data.is_empty());
            return if exists { self.adopt_entry(ctx, id) } else { self.end_task(ctx, id, Ok(())) };
        }
        if let Some(failure) = task.failure.take() {
            return self.end_task(ctx, id, Err(failure));
        }
        let kind = task.kind.clone();
        match kind {
            Kind::Read { piece, .. } => {
                let blocks = piece.blocks();
                let data = task.ends.remove(&blocks.first).expect("a read fetches its blocks");
                let skip = piece.offset as usize - blocks.first as usize * BLOCK_BYTES;
                let job = task.job;
                self.add_part(job, piece.at, data.slice(skip..skip + piece.len as usize));
                self.end_task(ctx, id, Ok(()));
            }
            Kind::Write { piece, data, mode } => {
                let merged = merge_ends(&piece, &data, &task.ends);
                self.write(ctx, id, piece.blocks(), merged, mode == WriteMode::Replace);
            }
            Kind::Claimed => self.write(ctx, id, BlockRange::new(0, 0), Bytes::new(), true),
            Kind::Zero { piece, .. } => self.write_zeros(ctx, id, &piece),
            _ => unreachable!("other tasks read nothing"),
        }
    }

    fn write(&mut self, ctx: &mut Context, id: u64, blocks: BlockRange, data: Bytes, replace: bool) {
        let (index, oid) = (self.tasks[&id].index, self.tasks[&id].oid);
        let entry = self.table.entry(index).unwrap_or_default();
        let base = match entry {
            Vid(0) => WriteBase::Empty,
            _ if replace => WriteBase::Empty,
            vid if vid == self.vid => WriteBase::Keep,
            other => WriteBase::CloneOf(Oid::data(other, index)),
        };
        let checksums = proto::checksum::block_checksums(&data);
        self.change(ctx, id, oid, Change::Write { blocks, checksums, base }, data);
        if entry.0 == 0 || (entry == self.vid && self.is_table_unsaved(block_of_entry(index))) {
            // Beside the data: whichever of the two a crash leaves alone, the object reads as the zeros it was before.
            self.tasks.get_mut(&id).expect("seen above").outstanding += 1;
            self.write_entry(ctx, index, self.vid, id);
        }
        // An inherited object's entry follows when the clone is there: before that it must lead to the ancestor.
    }

    fn write_zeros(&mut self, ctx: &mut Context, id: u64, piece: &Piece) {
        let (index, oid) = (self.tasks[&id].index, self.tasks[&id].oid);
        if self.table.entry(index) != Some(self.vid) {
            let zeros = Bytes::from(vec![0; piece.len as usize]);
            let merged = merge_ends(piece, &zeros, &self.tasks[&id].ends);
            return self.write(ctx, id, piece.blocks(), merged, false);
        }
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
        if piece.whole_blocks().count > 0 && !self.has_survived(id, piece.whole_blocks()) {
            self.change(ctx, id, oid, Change::Discard { blocks: piece.whole_blocks() }, Bytes::new());
        }
        if self.tasks[&id].outstanding == 0 {
            self.end_task(ctx, id, Ok(()));
        }
    }

    /// Sends one change of the task to all copies.
    pub(super) fn change(&mut self, ctx: &mut Context, id: u64, oid: Oid, change: Change, data: Bytes) {
        let task = self.tasks.get_mut(&id).expect("seen by the caller");
        task.stage = Stage::Changing;
        task.outstanding += 1;
        let job = task.job;
        let origin = self.jobs.get(&job).map(|j| j.request.origin).unwrap_or_default();
        let seq = self.send_change(ctx, oid, change, data, origin, ChangeUse::Task(id));
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
            Kind::Zero { whole: true, .. } if entry == self.vid => self.clear_entry(ctx, id, index),
            Kind::Write { .. } | Kind::Zero { .. } | Kind::Claimed if entry != self.vid => {
                self.adopt_entry(ctx, id);
            }
            Kind::Check { .. } => self.check_mended(ctx, id),
            _ => self.end_task(ctx, id, Ok(())),
        }
    }

    /// The object is on all copies: the table may name it.
    fn adopt_entry(&mut self, ctx: &mut Context, id: u64) {
        let task = self.tasks.get_mut(&id).expect("seen by the caller");
        task.stage = Stage::Adopting;
        task.outstanding = 1;
        let index = task.index;
        self.write_entry(ctx, index, self.vid, id);
    }

    /// The object is gone from all copies, or belongs to an ancestor: the table may forget it.
    fn clear_entry(&mut self, ctx: &mut Context, id: u64, index: u32) {
        let task = self.tasks.get_mut(&id).expect("seen by the caller");
        task.stage = Stage::Clearing;
        task.outstanding = 1;
        self.write_entry(ctx, index, Vid(0), id);
    }

    pub(super) fn end_task(&mut self, ctx: &mut Context, id: u64, result: Result<(), ClientError>) {
        let task = self.tasks.remove(&id).expect("ended once");
        // Clearing and adopting report their table write's failure here.
        let result = task.failure.map_or(result, Err);
        self.locks.release(task.oid, id);
        self.grant(task.oid);
        self.task_ended(ctx, task.job, result);
    }

    /// Was this part of a repeated request carried out by an earlier owner? The seal has made it the same everywhere.
    fn has_survived(&self, id: u64, blocks: BlockRange) -> bool {
        let task = &self.tasks[&id];
        let Some(job) = self.jobs.get(&task.job) else { return false };
        if job.request.origin == Origin::default() {
            return false;
        }
        let Some(changes) = self.survived.get(&job.request.origin) else { return false };
        let covers = |block: u32| {
            changes.iter().any(|(oid, done)| *oid == task.oid && done.is_none_or(|done| done.contains(block)))
        };
        match blocks.count {
            // A creation without data.
            0 => changes.iter().any(|(oid, done)| *oid == task.oid && done.is_none()),
            _ => (blocks.first..blocks.end() as u32).all(covers),
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

/// The blocks of the table that a range of the inode shows.
fn inode_blocks(offset: u32, len: u32) -> (u32, u32) {
    use proto::inode::{HEADER_BYTES, TABLE_END};
    let start = (offset as usize).max(HEADER_BYTES);
    let end = (offset as usize + len as usize).min(TABLE_END);
    if start >= end { (0, 0) } else { ((start / BLOCK_BYTES) as u32, end.div_ceil(BLOCK_BYTES) as u32) }
}

/// Whole blocks: the request's bytes between what the ragged ends held before.
fn merge_ends(piece: &Piece, data: &Bytes, ends: &BTreeMap<u32, Bytes>) -> Bytes {
    if piece.partial_blocks().is_empty() {
        return data.clone();
    }
    let blocks = piece.blocks();
    let mut merged = BytesMut::zeroed(blocks.count as usize * BLOCK_BYTES);
    for (block, content) in ends {
        let at = (block - blocks.first) as usize * BLOCK_BYTES;
        merged[at..at + BLOCK_BYTES].copy_from_slice(content);
    }
    let at = piece.offset as usize - blocks.first as usize * BLOCK_BYTES;
    merged[at..at + data.len()].copy_from_slice(data);
    merged.freeze()
}
