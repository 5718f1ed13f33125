//! Which parts of a VDI are worth moving: those that hold data.

use proto::Vid;

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
    fn requests_end_at_multiples_of_their_greatest_length() {
        let spans = [Span { start: PIECE_BYTES - 1, end: 2 * PIECE_BYTES + 1 }, Span { start: 0, end: 0 }];
        let pieces: Vec<_> = cut_all(&spans).collect();
        assert_eq!(pieces, [(PIECE_BYTES - 1, 1), (PIECE_BYTES, PIECE_BYTES), (2 * PIECE_BYTES, 1)]);
    }
}
