//! Requests that may touch more objects than can be listed: zeros for a range of many tebibytes.
//!
//! Tasks are made when there is room for them. What is a hole already needs none: pages of the table that are not there are passed
//! over in one step, and so are holes of blocks that are loaded and settled.

use bytes::Bytes;
use volume::{ENTRIES_PER_BLOCK, Piece, block_of_entry, first_piece};

use super::Session;
use super::job::TASKS_MAX;
use super::task::{Kind, WriteMode};
use crate::context::Context;

/// Zeros to write where a client wants them allocated.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// From here on a request takes so long that other changes must be settled while it runs.
const LONG_BYTES: u64 = 4 << 30;

/// What is left of such a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub at: u64,
    pub end: u64,
    /// The zeros are to take space.
    pub keep_allocated: bool,
}

impl Span {
    pub fn is_long(&self) -> bool {
        self.end - self.at > LONG_BYTES
    }
}

impl Session {
    /// The next tasks of a span. None: nothing is left of it.
    pub(super) fn next_tasks(&self, ctx: &Context, span: &mut Span) -> Vec<(u32, Kind)> {
        let mut tasks = Vec::new();
        // As large as it is now: what somebody has written since it grew is not to go with the rest of its last object.
        let vdi_size = ctx.view.vdi_or_remains(self.vid).map_or(0, |vdi| vdi.size);
        while span.at < span.end && tasks.len() < TASKS_MAX {
            let piece = first_piece(span.at, span.end - span.at, self.shift);
            if span.keep_allocated {
                let piece = Piece { len: piece.len.min(ZEROS.len() as u32), ..piece };
                let data = Bytes::from_static(&ZEROS[..piece.len as usize]);
                tasks.push((piece.index, Kind::Write { piece, data, mode: WriteMode::Allocate }));
                span.at += u64::from(piece.len);
                continue;
            }
            match self.next_data(ctx, piece.index, self.block_after(span.end)) {
                Next::Object(index) if index == u64::from(piece.index) => {
                    span.at += u64::from(piece.len);
                    let to_end = span.at == vdi_size;
                    let whole = piece.offset == 0 && (piece.len == 1 << self.shift || to_end);
                    tasks.push((piece.index, Kind::Zero { piece, whole }));
                }
                Next::Object(index) => span.at = span.end.min(index << self.shift),
                // What has been found comes first: the table may change meanwhile.
                Next::Unknown { .. } if !tasks.is_empty() => break,
                Next::Unknown { first, end } => tasks.push((piece.index, Kind::Survey { first, end })),
            }
            if matches!(tasks.last(), Some((_, Kind::Survey { .. }))) {
                break;
            }
        }
        tasks
    }

    /// The block of the table behind that of the last object before `end`.
    fn block_after(&self, end: u64) -> u32 {
        block_of_entry(((end - 1) >> self.shift) as u32) + 1
    }

    /// Where the next object from `index` on is that may not be a hole, before the block `end` of the table.
    fn next_data(&self, ctx: &Context, index: u32, end: u32) -> Next {
        let mut from = index;
        let mut block = block_of_entry(index);
        loop {
            let window = self.window(ctx, block, end);
            if window.first >= end {
                return Next::Object(u64::from(end) * u64::from(ENTRIES_PER_BLOCK));
            }
            if window.first > block {
                block = window.first;
                from = block * ENTRIES_PER_BLOCK;
            }
            if !self.table.is_loaded(block) {
                return Next::Unknown { first: block, end: window.end };
            }
            // A hole that is still on its way to the disks may turn out to be none.
            let is_settled = !self.table_writes.contains_key(&block);
            let found = if is_settled {
                self.table.entries_of_block(block).map(|(index, _)| index).find(|index| *index >= from)
            } else {
                Some(from)
            };
            if let Some(index) = found {
                return Next::Object(index.into());
            }
            block += 1;
            if block >= end {
                return Next::Object(u64::from(end) * u64::from(ENTRIES_PER_BLOCK));
            }
            from = block * ENTRIES_PER_BLOCK;
        }
    }
}

enum Next {
    Object(u64),
    /// These blocks of the table must be loaded first.
    Unknown {
        first: u32,
        end: u32,
    },
}
