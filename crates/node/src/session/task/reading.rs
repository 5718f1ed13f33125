//! What a task reads: for a client, or what a write needs of the blocks that it covers in part.

use super::*;

impl Session {
    pub(super) fn execute_read(
        &mut self,
        ctx: &mut Context,
        id: u64,
        entry: Entry,
        piece: Piece,
        must_exist: bool,
    ) {
        if entry.is_hole() && must_exist {
            return self.end_task(ctx, id, Err(ClientError::NoObject));
        }
        if entry.is_hole() || piece.len == 0 {
            let job = self.tasks[&id].job;
            self.add_part(job, piece.at, Bytes::from(vec![0; piece.len as usize]));
            return self.end_task(ctx, id, Ok(()));
        }
        let parts = entry.sources(piece.blocks(), self.chunk_blocks);
        let task = self.tasks.get_mut(&id).expect("seen by the caller");
        task.stage = Stage::Reading;
        task.outstanding = parts.len();
        for (blocks, own) in parts {
            let oid = Oid::data(if own { entry.owner } else { entry.base }, piece.index);
            if !own && entry.base_is_partial {
                self.read_through(ctx, id, oid, blocks);
            } else {
                self.start_read(ctx, oid, blocks, None, ReadUse::Task(id));
            }
        }
    }

    /// Fetches what the partly covered blocks hold now, then goes on with `merge`.
    pub(super) fn read_ends(&mut self, ctx: &mut Context, id: u64, source: Vid, piece: &Piece) {
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

    pub(in crate::session) fn task_read_done(
        &mut self,
        ctx: &mut Context,
        id: u64,
        blocks: BlockRange,
        found: Found,
    ) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let data = match found {
            Found::Data(data) => data,
            Found::Absent if matches!(task.kind, Kind::Adopt(_)) => Bytes::new(),
            Found::Absent if matches!(task.kind, Kind::VmState { .. }) => {
                task.failure = Some(ClientError::NoObject);
                Bytes::new()
            }
            // A damaged object is one all the same.
            Found::Failed if matches!(task.kind, Kind::Adopt(_)) => Bytes::from_static(&[0]),
            // The table says that there is an object and nothing was ever written to it.
            Found::Absent => Bytes::from(vec![0; blocks.count as usize * BLOCK_BYTES]),
            Found::Failed | Found::Verified(_) => {
                task.failure = Some(ClientError::Io);
                Bytes::from(vec![0; blocks.count as usize * BLOCK_BYTES])
            }
        };
        task.outstanding -= 1;
        task.ends.insert(blocks.first, data);
        if task.outstanding > 0 {
            return;
        }
        if task.stage == Stage::CopyingUp {
            return self.write_copied(ctx, id);
        }
        task.stage = Stage::Merge;
        self.runnable.push_back(id);
    }

    /// Everything that had to be read is there.
    pub(super) fn merge(&mut self, ctx: &mut Context, id: u64) {
        let task = self.tasks.get_mut(&id).expect("seen by the caller");
        if let Some(failure) = task.failure.take() {
            return self.end_task(ctx, id, Err(failure));
        }
        let kind = task.kind.clone();
        // A whole copy was read for a CREATE that comes from an old table.
        let object_bytes = (1u64 << self.shift) as usize;
        let is_made_anew = task.ends.get(&0).is_some_and(|data| data.len() == object_bytes);
        match kind {
            Kind::Adopt(touched) => {
                let exists = task.ends.remove(&0).is_some_and(|data| !data.is_empty());
                let entry = self.table.entry(self.tasks[&id].index).unwrap_or_default();
                let is_asked = touched.whole == Some(Whole::Asked);
                let is_clone = !is_asked && entry.is_partial() && self.is_of_lineage(ctx, entry.owner);
                match exists {
                    true if is_clone => {
                        self.set_entry_then(ctx, id, Entry { owner: self.vid, ..entry }, Stage::Adopting)
                    }
                    true => self.set_entry_then(ctx, id, Entry::whole(self.vid), Stage::Adopting),
                    // What was there has been discarded.
                    false if is_asked && !entry.is_hole() => self.clear_entry(ctx, id),
                    false => self.end_task(ctx, id, Ok(())),
                }
            }
            Kind::Read { piece, .. } => {
                let parts = std::mem::take(&mut task.ends);
                let (job, first) = (task.job, piece.blocks().first);
                let data = join(parts);
                let skip = piece.offset as usize - first as usize * BLOCK_BYTES;
                self.add_part(job, piece.at, data.slice(skip..skip + piece.len as usize));
                self.end_task(ctx, id, Ok(()));
            }
            Kind::Write { piece, data, mode: WriteMode::CopyOf(_) } if is_made_anew => {
                let copy = self.tasks.get_mut(&id).expect("seen above").ends.remove(&0).expect("just seen");
                let mut bytes = BytesMut::from(&copy[..]);
                bytes[piece.offset as usize..][..data.len()].copy_from_slice(&data);
                let blocks = BlockRange::new(0, self.object_blocks());
                self.write(ctx, id, blocks, bytes.freeze(), true);
            }
            Kind::Write { piece, data, mode } => {
                let merged = merge_ends(&piece, &data, &task.ends);
                self.write(ctx, id, piece.blocks(), merged, mode == WriteMode::Replace);
            }
            Kind::VmState { piece, data: None, .. } => {
                let data = join(std::mem::take(&mut task.ends));
                let (job, skip) = (task.job, piece.offset as usize % BLOCK_BYTES);
                self.add_part(job, piece.at, data.slice(skip..skip + piece.len as usize));
                self.end_task(ctx, id, Ok(()));
            }
            Kind::VmState { piece, data: Some(data), replace } => {
                let before = join(std::mem::take(&mut task.ends));
                let (oid, blocks) = (task.oid, piece.blocks());
                let mut bytes = BytesMut::zeroed(blocks.count as usize * BLOCK_BYTES);
                bytes[..before.len()].copy_from_slice(&before);
                let skip = piece.offset as usize % BLOCK_BYTES;
                bytes[skip..skip + data.len()].copy_from_slice(&data);
                let base = if replace { WriteBase::Empty } else { WriteBase::Keep };
                self.change_blocks(ctx, id, oid, blocks, bytes.freeze(), base);
            }
            Kind::Claimed => self.write(ctx, id, BlockRange::new(0, 0), Bytes::new(), true),
            Kind::Zero { piece, .. } => self.write_zeros(ctx, id, &piece),
            _ => unreachable!("other tasks read nothing"),
        }
    }
}

/// Runs of blocks, one after another.
pub(super) fn join(parts: BTreeMap<u32, Bytes>) -> Bytes {
    if parts.len() == 1 {
        return parts.into_values().next().expect("there is one");
    }
    let mut whole = BytesMut::with_capacity(parts.values().map(Bytes::len).sum());
    parts.values().for_each(|part| whole.extend_from_slice(part));
    whole.freeze()
}

/// Whole blocks: the request's bytes between what the ragged ends held before.
pub(super) fn merge_ends(piece: &Piece, data: &Bytes, ends: &BTreeMap<u32, Bytes>) -> Bytes {
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
