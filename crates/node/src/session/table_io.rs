//! The block table's way from and to the objects that hold it.
//!
//! One write per block is under way at a time; changes made meanwhile go into the next one together. Tasks go on
//! when a write that includes their change is on all copies.
//!
//! A VDI that was made by a snapshot or as a clone has no page of the table of its own at first: what is absent is read from
//! the ancestor that has it. The first change of a page makes the VDI's own, in one change of one object, so a crash leaves
//! either the ancestor's page in force or a complete own one: within a lineage it shares the ancestor's slots, a clone writes
//! the page whole. Other changes of that page wait for it.
//!
//! Pages but the first are entered into the view before they are written for the first time, so of those that nobody wrote nobody
//! has to be asked. Of a large table only the blocks that were needed lately stay in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use proto::cluster::Action;
use proto::object::{BlockRange, Change, Origin, StoreFailure, WriteBase};
use proto::{BLOCK_BYTES, Oid, Vid};
use volume::{Entry, PAGE_BLOCKS, place_of_block, table_blocks};

use super::Session;
use super::copies::ChangeUse;
use super::reads::{Found, ReadUse};
use super::seal::is_page;
use super::task::Kind;
use crate::context::{Context, ProposalUse};

/// Blocks of the table that one read fetches.
const LOAD_BLOCKS: u32 = 256;
/// Blocks of the table that stay in memory: 64 MiB, the entries of 16 TiB in objects of 4 MiB.
const KEPT_BLOCKS: usize = 16384;
/// So many more may be loaded before some are let go.
const EXCESS_BLOCKS: usize = 2048;

#[derive(Debug, Default)]
pub(super) struct TableWrite {
    under_way: bool,
    /// The last write failed: memory is ahead of the disks.
    failed: bool,
    /// Wait for the write under way.
    current: Vec<u64>,
    /// Wait for the next one.
    next: Vec<u64>,
    /// What the entries said that are being changed: until the change is settled a crash may bring it back.
    replaced: Vec<(u32, Entry)>,
    replaced_next: Vec<(u32, Entry)>,
}

/// Where a page of the table lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    /// In the VDI's own object.
    Own,
    /// In an ancestor's.
    Inherited(Vid),
    /// Nowhere: neither the VDI nor an ancestor has ever written it.
    Nowhere,
    /// The own object is being made, from this ancestor's.
    InTheMaking(Vid),
}

#[derive(Debug, Default)]
pub(super) struct Pages {
    known: BTreeMap<u32, Page>,
    /// Pages to be made once all of the ancestor's is loaded.
    wanted: BTreeSet<u32>,
    /// Pages that are being entered into the view.
    entering: BTreeSet<u32>,
    /// Of pages whose copies are being compared: blocks within that were on their way to the copies meanwhile.
    seen_moving: BTreeMap<u32, BTreeSet<u32>>,
    /// Blocks that were in memory when some had last been let go.
    blocks_left: usize,
}

impl Pages {
    /// For the VDI that takes the place of `parent`: what was its own is inherited from now on.
    pub(super) fn handed_down(mut self, parent: Vid) -> Pages {
        for page in self.known.values_mut() {
            if *page == Page::Own {
                *page = Page::Inherited(parent);
            }
        }
        self
    }

    /// Where parts of the table lie that is none of `vid`'s own objects.
    pub(super) fn stored_with(&self, vid: Vid, first_block: u32, end_block: u32) -> Vec<Vid> {
        let pages = self.known.range(first_block / PAGE_BLOCKS..=end_block / PAGE_BLOCKS);
        let mut owners: Vec<Vid> = pages
            .map(|(_, page)| match page {
                Page::Inherited(ancestor) | Page::InTheMaking(ancestor) => *ancestor,
                _ => vid,
            })
            .collect();
        owners.sort_unstable();
        owners.dedup();
        owners
    }
}

impl Session {
    /// Blocks that the table has, as large as the VDI is now.
    pub(super) fn table_end(&self, ctx: &Context) -> u32 {
        table_blocks(self.object_count(ctx))
    }

    pub(super) fn object_count(&self, ctx: &Context) -> u64 {
        let size = ctx.view.vdi_or_remains(self.vid).map_or(0, |vdi| vdi.size);
        size.div_ceil(1 << self.shift)
    }

    /// May there be such a page, of this VDI or of an ancestor?
    fn is_entered(&self, ctx: &Context, page: u32) -> bool {
        ctx.view.vdi_or_remains(self.vid).is_some_and(|vdi| vdi.pages.contains(page))
    }

    /// Makes sure that these blocks of the table get loaded; the task is run again when they are.
    /// True if they are there already.
    pub(super) fn need_table(&mut self, ctx: &mut Context, task: u64, first: u32, end: u32) -> bool {
        let mut last_missing = None;
        let mut block = first;
        while block < end {
            if self.table.is_loaded(block) {
                self.table.touch(block);
                block += 1;
                continue;
            }
            if !self.is_entered(ctx, block / PAGE_BLOCKS) {
                self.pages.known.entry(block / PAGE_BLOCKS).or_insert(Page::Nowhere);
                self.table.load(block, &[0; BLOCK_BYTES]);
                block += 1;
                continue;
            }
            last_missing = Some(block);
            if self.loading.contains_key(&block) {
                block += 1;
                continue;
            }
            let page_end = (block / PAGE_BLOCKS + 1) * PAGE_BLOCKS;
            let unasked = |b: &u32| !self.table.is_loaded(*b) && !self.loading.contains_key(b);
            let stop = end.min(block + LOAD_BLOCKS).min(page_end);
            let run = (block..stop).take_while(unasked).count() as u32;
            self.loading.extend((block..block + run).map(|b| (b, Vec::new())));
            let from = match self.pages.known.get(&(block / PAGE_BLOCKS)) {
                Some(Page::Inherited(ancestor)) => *ancestor,
                _ => self.vid,
            };
            self.load_table(ctx, from, block, run);
            last_missing = Some(block + run - 1);
            block += run;
        }
        // Waiting in one place is enough, since the task looks again when it is run; in several it would be run
        // once for each, and each time wait in as many again.
        if let Some(waiting) = last_missing.and_then(|b| self.loading.get_mut(&b)) {
            waiting.push(task);
        }
        last_missing.is_none()
    }

    fn load_table(&mut self, ctx: &mut Context, from: Vid, first: u32, count: u32) {
        let (oid, within) = place_of_block(from, first);
        self.start_read(
            ctx,
            oid,
            BlockRange::new(within, count),
            None,
            ReadUse::Table { from, first, count },
        );
    }

    pub(super) fn table_loaded(
        &mut self,
        ctx: &mut Context,
        from: Vid,
        first: u32,
        count: u32,
        found: Found,
    ) {
        let (oid, within) = place_of_block(from, first);
        if matches!(found, Found::Failed) {
            // Without the table nothing can be served; other copies may come back.
            tracing::error!(vdi = %self.vid, "no copy of the block table can be read; requests wait");
            let purpose = ReadUse::Table { from, first, count };
            return self.read_later(oid, BlockRange::new(within, count), purpose);
        }
        let page = first / PAGE_BLOCKS;
        if matches!(found, Found::Absent) {
            // A page that has come into being meanwhile was complete from its first moment.
            let is_own = self.pages.known.get(&page) == Some(&Page::Own);
            let is_deleted = ctx.view.vdi(self.vid).is_none();
            if is_own && from == self.vid && !is_deleted {
                tracing::error!(vdi = %self.vid, "a page of the block table has gone; requests wait");
                let purpose = ReadUse::Table { from, first, count };
                return self.read_later(oid, BlockRange::new(within, count), purpose);
            }
            // One of which nothing is left had none of its own either.
            let parent = ctx.view.parent_of(from).map(|(parent, _)| parent);
            let next = match is_own {
                false => parent,
                true if from != self.vid => Some(self.vid),
                // It was there, and went with the VDI: nobody needs its entries any more.
                true => None,
            };
            if let Some(next) = next {
                return self.load_table(ctx, next, first, count);
            }
        }
        let place = match found {
            Found::Absent => Page::Nowhere,
            _ if from == self.vid => Page::Own,
            _ => Page::Inherited(from),
        };
        self.pages.known.entry(page).or_insert(place);
        for i in 0..count {
            let zeros = [0u8; BLOCK_BYTES];
            let bytes = match &found {
                Found::Data(data) => &data[i as usize * BLOCK_BYTES..][..BLOCK_BYTES],
                _ => &zeros[..],
            };
            self.table.load(first + i, bytes);
            let waiting = self.loading.remove(&(first + i)).unwrap_or_default();
            self.runnable.extend(waiting);
        }
        if self.pages.wanted.contains(&page) {
            self.make_page(ctx, page);
        }
    }

    /// Changes an entry and writes its block; the task is told through `task_table_done`.
    pub(super) fn write_entry(&mut self, ctx: &mut Context, index: u32, entry: Entry, task: u64) {
        let old = self.table.entry(index).unwrap_or_default();
        let block = self.table.set_entry(index, entry);
        self.table_writes.entry(block).or_default().replaced_next.push((index, old));
        self.write_table_block(ctx, block, task);
    }

    pub(super) fn write_table_block(&mut self, ctx: &mut Context, block: u32, task: u64) {
        let write = self.table_writes.entry(block).or_default();
        write.next.push(task);
        if !write.under_way {
            self.send_table_block(ctx, block);
        }
    }

    fn send_table_block(&mut self, ctx: &mut Context, block: u32) {
        let page = block / PAGE_BLOCKS;
        match self.pages.known.get(&page).copied() {
            Some(Page::Nowhere) if !self.is_entered(ctx, page) => {
                if self.pages.entering.insert(page) {
                    ctx.propose(Action::EnterPage { vid: self.vid, page }, ProposalUse::EnterPage);
                }
                return;
            }
            Some(Page::Own) | Some(Page::Nowhere) => {}
            Some(Page::InTheMaking(_)) => return,
            Some(Page::Inherited(_)) => return self.make_page(ctx, page),
            None => unreachable!("a changed block was loaded, and with it its place became known"),
        }
        let (oid, within) = place_of_block(self.vid, block);
        self.begin_table_write(block);
        let bytes = Bytes::copy_from_slice(self.table.block(block).expect("a changed block is loaded"));
        let blocks = BlockRange::new(within, 1);
        self.send_write(ctx, oid, blocks, bytes, WriteBase::Keep, Origin::default(), ChangeUse::Table(block));
    }

    /// What waited for a page to be entered into the view can be written.
    pub(super) fn write_entered_pages(&mut self, ctx: &mut Context) {
        let entering = std::mem::take(&mut self.pages.entering);
        let (entered, left) = entering.into_iter().partition(|page| self.is_entered(ctx, *page));
        self.pages.entering = left;
        let entered: BTreeSet<u32> = entered;
        entered.into_iter().for_each(|page| self.send_waiting_blocks(ctx, page));
    }

    fn send_waiting_blocks(&mut self, ctx: &mut Context, page: u32) {
        let waiting: Vec<u32> = self
            .table_writes
            .range(blocks_of_page(page))
            .filter(|(_, w)| !w.under_way && !w.next.is_empty())
            .map(|(block, _)| *block)
            .collect();
        waiting.into_iter().for_each(|block| self.send_table_block(ctx, block));
    }

    /// Lets go of blocks that no task needs, if there are many.
    pub(super) fn shrink_table(&mut self, ctx: &Context) {
        // If many are needed, looking for others again and again would find few.
        if self.table.loaded_count() <= self.pages.blocks_left.max(KEPT_BLOCKS) + EXCESS_BLOCKS {
            return;
        }
        let needed = self.tasks.values().map(|task| self.table_part(ctx, &task.kind, task.index()));
        let mut pinned: BTreeSet<u32> = needed.flat_map(|(first, end)| first..end).collect();
        pinned.extend(self.table_writes.keys());
        // A check takes a block that is not loaded for one that this session has not changed.
        let is_checked = |kind: &Kind| matches!(kind, Kind::Check { oid, .. } if is_page(*oid));
        let checked = self.tasks.values().filter(|task| is_checked(&task.kind));
        pinned.extend(checked.flat_map(|task| blocks_of_page(task.index())));
        pinned.extend(self.pages.wanted.iter().flat_map(|page| blocks_of_page(*page)));
        self.table.shrink_to(KEPT_BLOCKS, |block| pinned.contains(&block));
        self.pages.blocks_left = self.table.loaded_count();
    }

    /// From now on it is noted which blocks of this page are on their way to the copies.
    pub(super) fn watch_table_writes(&mut self, oid: Oid) {
        let page = oid.index();
        if self.frozen || !is_page(oid) {
            return;
        }
        let is_made = matches!(self.pages.known.get(&page), Some(Page::InTheMaking(_)));
        let under_way = self.table_writes.range(blocks_of_page(page)).filter(|(_, w)| w.under_way);
        let moving = match is_made {
            true => (0..PAGE_BLOCKS).collect(),
            false => under_way.map(|(block, _)| block % PAGE_BLOCKS).collect(),
        };
        self.pages.seen_moving.insert(page, moving);
    }

    /// What was noted; the watch is over.
    pub(super) fn table_writes_seen(&mut self, oid: Oid) -> BTreeSet<u32> {
        let seen = if is_page(oid) { self.pages.seen_moving.remove(&oid.index()) } else { None };
        seen.unwrap_or_default()
    }

    /// The page's object comes into being with all that an ancestor's has.
    fn begin_page(&mut self, page: u32, ancestor: Vid) {
        self.pages.known.insert(page, Page::InTheMaking(ancestor));
        if let Some(moving) = self.pages.seen_moving.get_mut(&page) {
            moving.extend(0..PAGE_BLOCKS);
        }
    }

    fn begin_table_write(&mut self, block: u32) {
        if let Some(moving) = self.pages.seen_moving.get_mut(&(block / PAGE_BLOCKS)) {
            moving.insert(block % PAGE_BLOCKS);
        }
        let write = self.table_writes.get_mut(&block).expect("made by the caller");
        write.under_way = true;
        write.current = std::mem::take(&mut write.next);
        let next = std::mem::take(&mut write.replaced_next);
        write.replaced.extend(next);
    }

    /// Makes the own object of a page that an ancestor holds, with the changes that wait.
    fn make_page(&mut self, ctx: &mut Context, page: u32) {
        let Some(Page::Inherited(ancestor)) = self.pages.known.get(&page).copied() else {
            self.pages.wanted.remove(&page);
            return;
        };
        let waiting: Vec<u32> = self
            .table_writes
            .range(blocks_of_page(page))
            .filter(|(_, w)| !w.next.is_empty())
            .map(|(block, _)| *block)
            .collect();
        let Some(first) = waiting.first().copied() else { return };
        let lineage = |vid| ctx.view.vdi_or_remains(vid).map(|v| v.lineage);
        let (oid, _) = place_of_block(self.vid, first);
        if lineage(ancestor) == lineage(self.vid) {
            self.begin_page(page, ancestor);
            let (from, within) = place_of_block(ancestor, first);
            self.begin_table_write(first);
            let bytes = Bytes::copy_from_slice(self.table.block(first).expect("a changed block is loaded"));
            let base = WriteBase::CloneOf(from);
            let blocks = BlockRange::new(within, 1);
            self.send_write(ctx, oid, blocks, bytes, base, Origin::default(), ChangeUse::Table(first));
            return;
        }
        // In a clone: all of the page at once, since its copies have nothing to share with.
        let start = page * PAGE_BLOCKS;
        // This sheep may not have heard yet how large the VDI has become: what waits is part of the page in any case.
        let last = *waiting.last().expect("the first exists");
        let end = self.table_end(ctx).max(last + 1).clamp(start + 1, start + PAGE_BLOCKS);
        self.pages.wanted.insert(page);
        if !(start..end).all(|b| self.table.is_loaded(b)) {
            self.need_table(ctx, NO_TASK, start, end);
            return;
        }
        self.pages.wanted.remove(&page);
        self.begin_page(page, ancestor);
        let bytes_of = |block| self.table.block(block).expect("just seen");
        // What lies around is zeros in an object that begins empty, and takes no space.
        let is_blank = |block: &u32| bytes_of(*block).iter().all(|byte| *byte == 0);
        let from = (start..end).find(|b| !is_blank(b)).unwrap_or(start);
        let to = (from..end).rfind(|b| !is_blank(b)).map_or(from + 1, |last| last + 1);
        let mut bytes = BytesMut::with_capacity((to - from) as usize * BLOCK_BYTES);
        (from..to).for_each(|b| bytes.extend_from_slice(bytes_of(b)));
        waiting.iter().for_each(|block| self.begin_table_write(*block));
        let blocks = BlockRange::new(from - start, to - from);
        let change = Change::Write {
            blocks,
            checksums: proto::checksum::block_checksums(&bytes),
            base: WriteBase::Empty,
        };
        let purpose = ChangeUse::Page(page);
        self.send_change(ctx, oid, change, bytes.freeze(), Origin::default(), purpose);
    }

    /// A whole page was written.
    pub(super) fn page_write_done(&mut self, ctx: &mut Context, page: u32, result: Result<(), StoreFailure>) {
        let writes = self.table_writes.range(blocks_of_page(page));
        let under_way: Vec<u32> = writes.filter(|(_, w)| w.under_way).map(|(block, _)| *block).collect();
        for block in under_way {
            self.end_table_write(ctx, block, result);
        }
        self.page_is_made(ctx, page, result);
    }

    /// What waited for the page can be written now, or must make it anew.
    fn page_is_made(&mut self, ctx: &mut Context, page: u32, result: Result<(), StoreFailure>) {
        let Some(Page::InTheMaking(ancestor)) = self.pages.known.get(&page).copied() else {
            unreachable!("a page is made once")
        };
        let place = if result.is_ok() { Page::Own } else { Page::Inherited(ancestor) };
        if result.is_ok() && ctx.view.vdi(ancestor).is_none() {
            // It may have been kept for this VDI alone.
            ctx.out.unreferenced.insert(ancestor);
        }
        self.pages.known.insert(page, place);
        self.send_waiting_blocks(ctx, page);
    }

    pub(super) fn table_write_done(
        &mut self,
        ctx: &mut Context,
        block: u32,
        result: Result<(), StoreFailure>,
    ) {
        let page = block / PAGE_BLOCKS;
        let more = self.end_table_write(ctx, block, result);
        match self.pages.known.get(&page) {
            Some(Page::InTheMaking(_)) => self.page_is_made(ctx, page, result),
            Some(Page::Nowhere) if result.is_ok() => drop(self.pages.known.insert(page, Page::Own)),
            _ => {}
        }
        if more && self.table_writes.get(&block).is_some_and(|w| !w.under_way) {
            self.send_table_block(ctx, block);
        }
    }

    /// The block's write has ended: whoever waits for it is told. True: there is more to be written.
    fn end_table_write(&mut self, ctx: &mut Context, block: u32, result: Result<(), StoreFailure>) -> bool {
        let write = self.table_writes.get_mut(&block).expect("one is under way");
        write.under_way = false;
        write.failed = result.is_err();
        let told = std::mem::take(&mut write.current);
        let more = !write.next.is_empty();
        if result.is_ok() {
            let replaced = std::mem::take(&mut write.replaced);
            for lost in replaced.iter().flat_map(|(_, old)| [old.owner, old.base]) {
                // What was kept for this VDI of a deleted one may be free now.
                if lost.0 != 0 && lost != self.vid && ctx.view.vdi(lost).is_none() {
                    ctx.out.unreferenced.insert(lost);
                }
            }
            if !more {
                self.table_writes.remove(&block);
            }
        }
        for task in told {
            self.task_table_done(task, result);
        }
        more
    }

    /// Writes blocks again that failed to reach the disks: nobody else may do so soon.
    pub(super) fn save_table(&mut self, ctx: &mut Context) {
        let is_left = |w: &TableWrite| w.failed && !w.under_way && w.next.is_empty();
        let left: Vec<u32> =
            self.table_writes.iter().filter(|(_, w)| is_left(w)).map(|(block, _)| *block).collect();
        left.into_iter().for_each(|block| self.write_table_block(ctx, block, NO_TASK));
    }

    /// Does the table in memory say something of this block that failed to reach the disks?
    pub(super) fn is_table_unsaved(&self, block: u32) -> bool {
        self.table_writes.get(&block).is_some_and(|w| w.failed)
    }

    /// What the loaded blocks of the table refer to, changes on their way included as they were and as they will be.
    pub(super) fn table_entries(&self, first: u32, end: u32) -> Vec<(u32, Entry)> {
        let loaded = (first..end).flat_map(|block| self.table.entries_of_block(block));
        let replaced = self.table_writes.range(first..end);
        let replaced = replaced.flat_map(|(_, w)| w.replaced.iter().chain(&w.replaced_next));
        let mut entries: Vec<(u32, Entry)> =
            loaded.chain(replaced.filter(|(_, old)| !old.is_hole()).copied()).collect();
        entries.sort_by_key(|(index, _)| *index);
        entries
    }
}

fn blocks_of_page(page: u32) -> Range<u32> {
    page * PAGE_BLOCKS..(page + 1) * PAGE_BLOCKS
}

/// Nobody waits for these blocks in particular.
pub(super) const NO_TASK: u64 = u64::MAX;
