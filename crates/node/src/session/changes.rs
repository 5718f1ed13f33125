//! What of a VDI may differ from another one.
//!
//! First by their block tables: an object that both have from the same owner is the same, since whatever is owned by somebody else
//! than the working VDI never changes. Where they name different objects, the entries may tell that parts are still the other one's;
//! else a copy is asked which blocks the two share on its disk. Where nothing is known, all of the object may differ.

use std::collections::BTreeMap;
use std::ops::Range;

use proto::client::{ChangedExtent, ClientError, ClientOp, ClientReply, ClientResult, VdiOp};
use proto::object::BlockRange;
use proto::{BLOCK_BYTES, Oid, Vid};
use volume::Entry;

use super::Session;
use super::reads::ReadUse;
use super::task::Kind;
use crate::context::Context;

/// Objects of one answer that copies are asked about: each is a message. The rest of the range is for the next request.
const ASKED_MAX: usize = 128;
/// Their blocks: a copy looks at each.
const ASKED_BLOCKS_MAX: u32 = 128 * 1024;
/// An answer has to fit into a frame.
const EXTENTS_MAX: usize = 65536;

/// The answer of one task, as far as it is known.
#[derive(Debug)]
pub(super) struct Comparison {
    /// The bytes that the answer is about.
    range: Range<u64>,
    /// Objects that may differ within them, ascending. All others are the same.
    objects: Vec<(u32, Difference)>,
    awaited: usize,
}

/// What of an object may differ.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Difference {
    Nothing,
    Everything,
    /// These blocks, ascending.
    Blocks(Vec<BlockRange>),
}

/// How to find that out.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Known(Difference),
    /// From a copy that has both objects, or the only one.
    Ask {
        owner: Vid,
        other: Option<Vid>,
    },
}

impl Session {
    /// Asks for the other one's table; [`Session::tables_compared`] goes on.
    pub(super) fn compare_tables(&mut self, ctx: &mut Context, task: u64, since: Vid, offset: u64, len: u64) {
        let shift = ctx.view.vdis().get(&since).map(|vdi| vdi.block_size_shift);
        if len == 0 || shift.is_some_and(|shift| shift != self.shift) {
            // Objects of other sizes cannot be set against each other.
            let changed = (len > 0).then_some(ChangedExtent { len, changed: true });
            return self.answer_changes(ctx, task, changed.into_iter().collect());
        }
        let first = (offset >> self.shift) as u32;
        self.ask_inner(ctx, task, 0, ClientOp::Vdi(VdiOp::Table { vid: since, first }));
    }

    pub(super) fn tables_compared(&mut self, ctx: &mut Context, id: u64, result: ClientResult) {
        let Some(task) = self.tasks.get(&id) else { return };
        let Kind::Changes { offset, len, .. } = task.kind else { return };
        let other = match result {
            Ok(ClientReply::Table(table)) => table,
            Ok(_) => return self.end_task(ctx, id, Err(ClientError::Io)),
            Err(error) => return self.end_task(ctx, id, Err(error)),
        };
        let window = self.window_of_range(ctx, offset, len);
        let known = other.next.map_or(u64::MAX, |next| u64::from(next) << self.shift);
        let range = offset..self.range_end(offset + len, window.known_to).min(known);
        // Of objects that neither table names there is nothing to say, however many they are.
        let mut entries: BTreeMap<u32, Entry> =
            self.objects_in(window).into_keys().map(|index| (index, Entry::HOLE)).collect();
        entries.extend(other.entries.iter().map(|(index, owner, base)| (*index, entry_of(*owner, *base))));
        let mut comparison = Comparison { range, objects: Vec::new(), awaited: 0 };
        let asked_max = ASKED_MAX.min((ASKED_BLOCKS_MAX / self.object_blocks()).max(1) as usize);
        for (index, then) in entries {
            let start = u64::from(index) << self.shift;
            if start + (1 << self.shift) <= comparison.range.start {
                continue;
            }
            if start >= comparison.range.end {
                break;
            }
            if comparison.awaited == asked_max {
                comparison.range.end = start;
                break;
            }
            let difference = match self.plan_compare(index, then) {
                Plan::Known(difference) => difference,
                Plan::Ask { owner, other } => {
                    let asked = self.ask_difference(ctx, id, index, owner, other);
                    comparison.awaited += usize::from(asked);
                    Difference::Everything
                }
            };
            comparison.objects.push((index, difference));
        }
        self.comparisons.insert(id, comparison);
        self.finish_comparison(ctx, id);
    }

    fn plan_compare(&self, index: u32, then: Entry) -> Plan {
        let now = self.table.entry(index).unwrap_or_default();
        let is_changing = now.owner == self.vid && !self.frozen;
        plan(now, then, is_changing, self.chunk_blocks, self.object_blocks())
    }

    /// Asks a copy, if there can be one that has both.
    fn ask_difference(
        &mut self,
        ctx: &mut Context,
        task: u64,
        index: u32,
        owner: Vid,
        other: Option<Vid>,
    ) -> bool {
        let (oid, with) = (Oid::data(owner, index), other.map(|other| Oid::data(other, index)));
        let pg = ctx.view.pg_of(oid);
        if pg.is_none() || with.is_some_and(|with| ctx.view.pg_of(with) != pg) {
            return false;
        }
        self.start_compare(ctx, oid, with, ReadUse::Compare { task, index });
        true
    }

    /// A copy has said which blocks may differ, or nobody could.
    pub(super) fn object_compared(
        &mut self,
        ctx: &mut Context,
        task: u64,
        index: u32,
        differing: Option<Vec<BlockRange>>,
    ) {
        let Some(comparison) = self.comparisons.get_mut(&task) else { return };
        comparison.awaited -= 1;
        let object = comparison.objects.iter_mut().find(|(asked, _)| *asked == index);
        let (_, difference) = object.expect("only objects of the range are asked about");
        if let Some(blocks) = differing {
            *difference = Difference::Blocks(blocks);
        }
        self.finish_comparison(ctx, task);
    }

    fn finish_comparison(&mut self, ctx: &mut Context, task: u64) {
        if self.comparisons.get(&task).is_some_and(|comparison| comparison.awaited == 0) {
            let comparison = self.comparisons.remove(&task).expect("just seen");
            self.answer_changes(ctx, task, extents(&comparison, self.shift));
        }
    }

    fn answer_changes(&mut self, ctx: &mut Context, task: u64, extents: Vec<ChangedExtent>) {
        let job = self.task_job(task);
        self.set_reply(job, ClientReply::Changes(extents));
        self.end_task(ctx, task, Ok(()));
    }
}

/// Of another VDI's table only owner and base are told: which chunks are present is not.
fn entry_of(owner: Vid, base: Vid) -> Entry {
    Entry { base, ..Entry::whole(owner) }
}

/// `is_changing`: the object may be written to at any moment, so that nothing of it is the same for being the same object.
fn plan(now: Entry, then: Entry, is_changing: bool, chunk_blocks: u32, object_blocks: u32) -> Plan {
    if now.owner == then.owner {
        let all = if is_changing { Difference::Everything } else { Difference::Nothing };
        return Plan::Known(all);
    }
    if now.is_partial() && now.base == then.owner {
        // What is not present yet is the base's.
        let all = BlockRange::new(0, object_blocks);
        let own = now.sources(all, chunk_blocks).into_iter().filter(|(_, own)| *own);
        return Plan::Known(Difference::Blocks(own.map(|(blocks, _)| blocks).collect()));
    }
    if now.is_partial() || then.is_partial() {
        return Plan::Known(Difference::Everything);
    }
    match (now.is_hole(), then.is_hole()) {
        (true, _) => Plan::Ask { owner: then.owner, other: None },
        (false, true) => Plan::Ask { owner: now.owner, other: None },
        (false, false) => Plan::Ask { owner: now.owner, other: Some(then.owner) },
    }
}

/// The range cut into what may differ and what does not, neighbours of one kind as one.
fn extents(comparison: &Comparison, shift: u8) -> Vec<ChangedExtent> {
    let mut extents: Vec<ChangedExtent> = Vec::new();
    let mut put = |len: u64, changed: bool| match extents.last_mut() {
        _ if len == 0 => {}
        Some(last) if last.changed == changed => last.len += len,
        _ => extents.push(ChangedExtent { len, changed }),
    };
    let Range { start: mut at, end } = comparison.range;
    let mut count = 0;
    'objects: for (index, difference) in &comparison.objects {
        let object = u64::from(*index) << shift;
        let all = [BlockRange::new(0, (1u32 << shift) / BLOCK_BYTES as u32)];
        let blocks = match difference {
            Difference::Nothing => &[][..],
            Difference::Everything => &all[..],
            Difference::Blocks(blocks) => &blocks[..],
        };
        for run in blocks {
            if count >= EXTENTS_MAX {
                break 'objects;
            }
            count += 2;
            let start = (object + u64::from(run.first) * BLOCK_BYTES as u64).clamp(at, end);
            let stop = (object + run.end() * BLOCK_BYTES as u64).min(object + (1 << shift)).clamp(start, end);
            put(start - at, false);
            put(stop - start, true);
            at = stop;
        }
    }
    // The rest is for the next request.
    if count < EXTENTS_MAX {
        put(end.saturating_sub(at), false);
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u32 = 16;
    const OBJECT: u32 = 1024;

    fn partial(owner: u32, base: u32, present: u64) -> Entry {
        Entry { present, ..Entry::whole(Vid(base)).on_top(Vid(owner)) }
    }

    #[test]
    fn tables_tell_what_they_can() {
        let whole = |owner: u32| Entry::whole(Vid(owner));
        let check = |now, then, expect| assert_eq!(plan(now, then, false, CHUNK, OBJECT), expect);
        check(Entry::HOLE, Entry::HOLE, Plan::Known(Difference::Nothing));
        check(whole(1), whole(1), Plan::Known(Difference::Nothing));
        check(partial(2, 1, 1), partial(2, 1, 3), Plan::Known(Difference::Nothing));
        check(whole(2), whole(1), Plan::Ask { owner: Vid(2), other: Some(Vid(1)) });
        check(whole(2), Entry::HOLE, Plan::Ask { owner: Vid(2), other: None });
        check(Entry::HOLE, whole(1), Plan::Ask { owner: Vid(1), other: None });
        let chunks = [BlockRange::new(0, 16), BlockRange::new(32, 32)];
        check(partial(2, 1, 0b1101), whole(1), Plan::Known(Difference::Blocks(chunks.to_vec())));
        check(partial(2, 1, 1), whole(3), Plan::Known(Difference::Everything));
        check(whole(3), partial(2, 1, 1), Plan::Known(Difference::Everything));
        check(Entry::HOLE, partial(2, 1, 1), Plan::Known(Difference::Everything));
        let changing = plan(whole(1), whole(1), true, CHUNK, OBJECT);
        assert_eq!(changing, Plan::Known(Difference::Everything));
    }

    #[test]
    fn extents_are_cut_to_the_range_and_joined() {
        let blocks = |runs: &[(u32, u32)]| {
            Difference::Blocks(runs.iter().map(|(first, count)| BlockRange::new(*first, *count)).collect())
        };
        let objects = vec![
            (0, blocks(&[(0, 1), (1, 1), (3, 1)])),
            (1, Difference::Everything),
            (2, Difference::Nothing),
            (5, blocks(&[(1, 1), (2, 2)])),
        ];
        let comparison = Comparison { range: 6000..5 * 16384 + 5000, objects, awaited: 0 };
        let expect =
            [(2192, true), (4096, false), (4096 + 16384, true), (3 * 16384 + 4096, false), (904, true)];
        let found: Vec<(u64, bool)> =
            extents(&comparison, 14).into_iter().map(|e| (e.len, e.changed)).collect();
        assert_eq!(found, expect);
    }
}
