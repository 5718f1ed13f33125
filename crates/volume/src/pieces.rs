//! Cuts a byte range of a VDI at object borders.

use proto::BLOCK_BYTES;
use proto::object::BlockRange;

/// The part of a request that falls into one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which object.
    pub index: u32,
    /// First byte within the object.
    pub offset: u32,
    pub len: u32,
    /// First byte within the request.
    pub at: u64,
}

impl Piece {
    /// The blocks that the piece touches, partly or whole.
    pub fn blocks(&self) -> BlockRange {
        let block = BLOCK_BYTES as u64;
        let first = u64::from(self.offset) / block;
        let end = (u64::from(self.offset) + u64::from(self.len)).div_ceil(block);
        BlockRange::new(first as u32, (end - first) as u32)
    }

    /// The blocks that the piece covers whole; may be none.
    pub fn whole_blocks(&self) -> BlockRange {
        let block = BLOCK_BYTES as u64;
        let first = u64::from(self.offset).div_ceil(block);
        let end = (u64::from(self.offset) + u64::from(self.len)) / block;
        BlockRange::new(first as u32, end.saturating_sub(first) as u32)
    }

    /// Touched blocks that are not covered whole: at most the first and the last one.
    pub fn partial_blocks(&self) -> Vec<u32> {
        let (all, whole) = (self.blocks(), self.whole_blocks());
        let mut partial = Vec::new();
        if all.count > 0 && !whole.contains(all.first) {
            partial.push(all.first);
        }
        let last = all.end().saturating_sub(1) as u32;
        if all.count > 1 && !whole.contains(last) {
            partial.push(last);
        }
        partial
    }
}

/// The pieces of `[offset, offset + len)` in a VDI with objects of `1 << shift` bytes, ascending.
///
/// The caller has checked that the range lies within the VDI, whose objects are at most 2^32. A range may have as many
/// pieces: nothing but reads and writes, which are short, should collect them.
pub fn pieces(offset: u64, len: u64, shift: u8) -> impl Iterator<Item = Piece> {
    let end = offset + len;
    let mut position = offset;
    std::iter::from_fn(move || {
        let piece = (position < end).then(|| first_piece(position, end - position, shift))?;
        let at = position - offset;
        position += u64::from(piece.len);
        Some(Piece { at, ..piece })
    })
}

/// The first piece of `[offset, offset + len)`.
pub fn first_piece(offset: u64, len: u64, shift: u8) -> Piece {
    let object_bytes = 1u64 << shift;
    let within = offset & (object_bytes - 1);
    let index = u32::try_from(offset >> shift).expect("a VDI has at most 2^32 objects");
    Piece { index, offset: within as u32, len: (object_bytes - within).min(len) as u32, at: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_is_cut_at_object_borders() {
        let mib = 1 << 20;
        assert_eq!(
            pieces(4 * mib - 512, 1024, 22).collect::<Vec<_>>(),
            vec![
                Piece { index: 0, offset: (4 * mib - 512) as u32, len: 512, at: 0 },
                Piece { index: 1, offset: 0, len: 512, at: 512 },
            ]
        );
        assert_eq!(pieces(5, 0, 22).count(), 0);
        let last = pieces((16 << 50) - 1, 1, 22).next().unwrap();
        assert_eq!((last.index, last.offset, last.len), (u32::MAX, (4 << 20) - 1, 1));
        assert_eq!(pieces(0, 16 << 50, 22).nth(2).unwrap().at, 8 << 20, "without making the rest");
    }

    #[test]
    fn partial_blocks_are_the_ragged_ends() {
        let piece = |offset, len| Piece { index: 0, offset, len, at: 0 };
        assert_eq!(piece(0, 4096).partial_blocks(), Vec::<u32>::new());
        assert_eq!(piece(1, 10).partial_blocks(), vec![0]);
        assert_eq!(piece(4000, 200).partial_blocks(), vec![0, 1]);
        assert_eq!(piece(4096, 4097).partial_blocks(), vec![2]);
        assert_eq!(piece(100, 8192).whole_blocks(), BlockRange::new(1, 1));
    }

    proptest! {
        #[test]
        fn pieces_cover_every_byte_once(offset in 0u64..1 << 30, len in 0u64..40 << 20, shift in 20u8..26) {
            let mut next = offset;
            for p in pieces(offset, len, shift) {
                prop_assert_eq!((u64::from(p.index) << shift) + u64::from(p.offset), next);
                prop_assert_eq!(p.at, next - offset);
                prop_assert!(p.len > 0 && u64::from(p.offset) + u64::from(p.len) <= 1 << shift);
                let whole = p.whole_blocks();
                prop_assert_eq!(u64::from(whole.count) + p.partial_blocks().len() as u64, u64::from(p.blocks().count));
                next += u64::from(p.len);
            }
            prop_assert_eq!(next, offset + len);
        }
    }
}
