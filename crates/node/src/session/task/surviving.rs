//! What of a request has survived its owner: a seal has found it on a copy and made it alike on all.

use super::*;

impl Session {
    /// Enters into the table what an earlier owner has done and did not live to enter: an object made or removed as a whole, or chunks of
    /// a partial one, which are written whole first.
    ///
    /// An object of which only the copies are known that an earlier seal made may be a part of what its maker meant: that seal
    /// did not end. Nobody was told of it, so it goes. The same holds of chunks.
    pub(super) fn adopt_object(&mut self, ctx: &mut Context, id: u64, entry: Entry, touched: &Touched) {
        let oid = self.tasks[&id].oid;
        let (chunk, is_own) = (self.chunk_blocks, entry.owner == self.vid);
        let is_there = |blocks: BlockRange| {
            (blocks.first..blocks.end() as u32).all(|block| is_own && entry.has_block(block, chunk))
        };
        for changes in self.survived.values_mut() {
            changes.retain(|c| c.oid != oid || !c.is_copy || c.blocks.map_or(is_own, is_there));
        }
        match touched.whole {
            None if !is_own => {
                return self.change_as(ctx, id, oid, Change::Delete, Bytes::new(), Origin::default());
            }
            None | Some(Whole::Prepared) if is_own => {}
            // A request has replaced it, or else removed it.
            Some(Whole::Asked) if is_own && !entry.is_partial() => return self.end_task(ctx, id, Ok(())),
            _ => {
                let task = self.tasks.get_mut(&id).expect("seen by the caller");
                task.stage = Stage::Reading;
                task.outstanding = 1;
                return self.start_read(ctx, oid, BlockRange::new(0, 1), None, ReadUse::Task(id));
            }
        }
        let object = self.object_blocks();
        let mut now = entry;
        for c in (0..object.div_ceil(chunk)).filter(|_| entry.is_partial()) {
            let blocks = BlockRange::new(c * chunk, chunk.min(object - c * chunk));
            let whole = |r: &BlockRange| r.first <= blocks.first && r.end() >= blocks.end();
            if touched.ranges.iter().any(whole) {
                now = now.with_present(blocks, chunk, object);
            }
        }
        // Of a chunk that the table does not name nothing is seen, so nothing in it counts as carried out: whoever writes there first fills it anew.
        if now.is_partial() {
            for changes in self.survived.values_mut() {
                let seen = changes.drain(..).flat_map(|change| match change.blocks {
                    Some(blocks) if change.oid == oid => {
                        let runs = runs_of(blocks, |block| now.has_block(block, chunk));
                        runs.into_iter().map(|run| Survivor { blocks: Some(run), ..change }).collect()
                    }
                    _ => vec![change],
                });
                *changes = seen.collect();
            }
        }
        if now == entry {
            return self.end_task(ctx, id, Ok(()));
        }
        self.set_entry_then(ctx, id, now, Stage::Adopting);
    }

    /// Was all of this part of a repeated request carried out by an earlier owner? The seal has made it the same everywhere.
    pub(super) fn has_survived(&self, id: u64, blocks: BlockRange) -> bool {
        let task = &self.tasks[&id];
        let Some(job) = self.jobs.get(&task.job) else { return false };
        if job.request.origin == Origin::default() {
            return false;
        }
        let Some(changes) = self.survived.get(&job.request.origin) else { return false };
        match blocks.count {
            // A creation without data.
            0 => changes.iter().any(|c| c.oid == task.oid && c.blocks.is_none()),
            _ => (blocks.first..blocks.end() as u32).all(|block| is_covered(changes, task.oid, block)),
        }
    }

    /// The runs of these blocks that are still to be changed.
    pub(super) fn not_survived(&self, id: u64, blocks: BlockRange) -> Vec<BlockRange> {
        let task = &self.tasks[&id];
        let origin = self.jobs.get(&task.job).map(|job| job.request.origin).unwrap_or_default();
        let survived = self.survived.get(&origin).filter(|_| origin != Origin::default());
        let Some(changes) = survived else { return vec![blocks] };
        match blocks.count {
            0 => vec![blocks],
            _ => runs_of(blocks, |block| !is_covered(changes, task.oid, block)),
        }
    }
}

/// Those of the blocks of which something is so.
pub(super) fn runs_of(blocks: BlockRange, is_so: impl Fn(u32) -> bool) -> Vec<BlockRange> {
    let mut runs: Vec<BlockRange> = Vec::new();
    for block in (blocks.first..blocks.end() as u32).filter(|block| is_so(*block)) {
        match runs.last_mut() {
            Some(run) if run.end() == u64::from(block) => run.count += 1,
            _ => runs.push(BlockRange::new(block, 1)),
        }
    }
    runs
}

pub(super) fn is_covered(changes: &[Survivor], oid: Oid, block: u32) -> bool {
    changes.iter().any(|c| c.oid == oid && c.blocks.is_none_or(|done| done.contains(block)))
}
