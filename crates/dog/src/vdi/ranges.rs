//! Which parts of a VDI are worth moving: those that hold data, those that differ from another snapshot, and within them the blocks
//! that really do.

use std::ops::Range;

use proto::inode::InodeHeader;
use proto::{BLOCK_BYTES, Vid};

use super::PIECE_BYTES;
use super::span::Span;
use crate::sheep::{Call, Sheep};

/// The parts of `within` that hold data, ascending. Everything else reads as zeros.
pub fn allocated(sheep: &mut Sheep, vid: Vid, within: Span) -> Call<Vec<Span>> {
    collect(within, |at, len| {
        let extents = sheep.extents(vid, at, len)?;
        Ok(extents.into_iter().map(|extent| (extent.len, !extent.hole)).collect())
    })
}

/// The parts of `within` that may differ from what `since` has there, ascending. Everything else is the same.
pub fn changed(sheep: &mut Sheep, vid: Vid, since: Vid, within: Span) -> Call<Vec<Span>> {
    collect(within, |at, len| {
        let extents = sheep.changes(vid, since, at, len)?;
        Ok(extents.into_iter().map(|extent| (extent.len, extent.changed)).collect())
    })
}

/// Has a working VDI, whose header this is, the bytes of the snapshot it stands on? No if that one was deleted.
pub fn is_same_as_parent(sheep: &mut Sheep, vid: Vid, header: &InodeHeader) -> Call<bool> {
    let Some(parent) = sheep.vdis()?.into_iter().find(|info| info.vid == header.parent) else {
        return Ok(false);
    };
    let everything = Span { start: 0, end: header.vdi_size };
    Ok(parent.size == header.vdi_size && changed(sheep, vid, parent.vid, everything)?.is_empty())
}

/// Asks until all is known. Neighbours are joined.
fn collect(within: Span, mut ask: impl FnMut(u64, u64) -> Call<Vec<(u64, bool)>>) -> Call<Vec<Span>> {
    let mut found: Vec<Span> = Vec::new();
    let mut at = within.start;
    while at < within.end {
        for (len, wanted) in ask(at, within.end - at)? {
            let span = Span { start: at, end: at + len };
            at = span.end;
            match found.last_mut() {
                _ if !wanted || len == 0 => {}
                Some(last) if last.end == span.start => last.end = span.end,
                _ => found.push(span),
            }
        }
    }
    Ok(found)
}

/// What a run of blocks is, compared with what was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Same,
    Zeros,
    Data,
}

/// Cuts `data` into runs of blocks of one kind. `before` is as long as `data`, or nothing for zeros. The last block may be short.
pub fn runs(data: &[u8], before: Option<&[u8]>) -> Vec<(Range<usize>, Kind)> {
    let mut runs: Vec<(Range<usize>, Kind)> = Vec::new();
    for (number, block) in data.chunks(BLOCK_BYTES).enumerate() {
        let start = number * BLOCK_BYTES;
        let range = start..start + block.len();
        let is_zero = block.iter().all(|byte| *byte == 0);
        let kind = match before.map(|before| &before[range.clone()]) {
            None if is_zero => Kind::Same,
            Some(before) if before == block => Kind::Same,
            _ if is_zero => Kind::Zeros,
            _ => Kind::Data,
        };
        match runs.last_mut() {
            Some((last, last_kind)) if *last_kind == kind => last.end = range.end,
            _ => runs.push((range, kind)),
        }
    }
    runs
}

/// Offset and length of requests that move these parts.
pub fn cut_all(spans: &[Span]) -> impl Iterator<Item = (u64, u64)> + '_ {
    spans.iter().flat_map(|span| cut(*span))
}

pub fn cut(span: Span) -> impl Iterator<Item = (u64, u64)> {
    let mut at = span.start;
    std::iter::from_fn(move || {
        let piece = (at < span.end).then(|| (at, span.piece(at, PIECE_BYTES)))?;
        at += piece.1;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_asked_for_until_the_end_and_joined() {
        let mut answers =
            vec![vec![(10, true), (5, false)], vec![(5, true)], vec![(10, true)], vec![(70, false)]];
        let mut asked = Vec::new();
        let found = collect(Span { start: 100, end: 200 }, |at, len| {
            asked.push((at, len));
            Ok(answers.remove(0))
        });
        let expect = [Span { start: 100, end: 110 }, Span { start: 115, end: 130 }];
        assert_eq!(found.unwrap(), expect);
        assert_eq!(asked, [(100, 100), (115, 85), (120, 80), (130, 70)]);
    }

    #[test]
    fn runs_of_blocks_are_told_apart() {
        let block = |byte: u8| vec![byte; BLOCK_BYTES];
        let data = [block(1), block(0), block(0), block(2), block(2), vec![0; 10]].concat();
        let before = [block(1), block(3), block(0), block(0), block(3), vec![1; 10]].concat();
        let at =
            |from: usize, to: usize, kind| (from * BLOCK_BYTES..(to * BLOCK_BYTES).min(data.len()), kind);
        let expect = [
            at(0, 1, Kind::Same),
            at(1, 2, Kind::Zeros),
            at(2, 3, Kind::Same),
            at(3, 5, Kind::Data),
            at(5, 6, Kind::Zeros),
        ];
        assert_eq!(runs(&data, Some(&before)), expect);
        let whole = [at(0, 1, Kind::Data), at(1, 3, Kind::Same), at(3, 5, Kind::Data), at(5, 6, Kind::Same)];
        assert_eq!(runs(&data, None), whole);
    }

    #[test]
    fn requests_end_at_multiples_of_their_greatest_length() {
        let spans = [Span { start: PIECE_BYTES - 1, end: 2 * PIECE_BYTES + 1 }, Span { start: 0, end: 0 }];
        let pieces: Vec<_> = cut_all(&spans).collect();
        assert_eq!(pieces, [(PIECE_BYTES - 1, 1), (PIECE_BYTES, PIECE_BYTES), (2 * PIECE_BYTES, 1)]);
    }
}
