//! What clients write: bytes that tell which write they come from and whether they are where they were put.
//!
//! A block is divided into eight cells of odd sizes; requests begin and end at cell borders, so partial blocks and
//! unaligned ends occur, and yet every byte belongs to exactly one write. A cell holds its write's
//! number over and over, each byte placed by its offset in the VDI: bytes that were shifted, torn or mixed do not decode.

use proto::BLOCK_BYTES;

pub const CELLS: usize = 8;
/// Where cells begin. Each is longer than 16 bytes, so that it holds a whole number at least once.
pub const CELL_STARTS: [usize; CELLS + 1] = [0, 511, 1024, 1537, 2048, 3000, 3584, 4079, BLOCK_BYTES];

/// Number of a write, unique within a run. 0 stands for zeros: never written, discarded or zeroed.
pub type Value = u64;

/// The contents of all cells of a block.
pub type Cells = [Value; CELLS];

/// A range of cells of the VDI: `first / CELLS` is the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellRange {
    pub first: u64,
    pub count: u64,
}

impl CellRange {
    pub fn offset(self) -> u64 {
        byte_of(self.first)
    }

    pub fn len(self) -> u64 {
        byte_of(self.first + self.count) - byte_of(self.first)
    }

    pub fn is_empty(self) -> bool {
        self.count == 0
    }

    /// The blocks touched, each with a mask of its cells.
    pub fn blocks(self) -> impl Iterator<Item = (u64, u8)> {
        let (start, end) = (self.first, self.first + self.count);
        let cells = CELLS as u64;
        (start / cells..end.div_ceil(cells)).map(move |block| {
            let from = start.saturating_sub(block * cells);
            let to = (end - block * cells).min(cells);
            (block, (((1u16 << to) - 1) & !((1u16 << from) - 1)) as u8)
        })
    }
}

fn byte_of(cell: u64) -> u64 {
    cell / CELLS as u64 * BLOCK_BYTES as u64 + CELL_STARTS[cell as usize % CELLS] as u64
}

/// The bytes that a write of `value` puts at `range`.
pub fn fill(range: CellRange, value: Value) -> Vec<u8> {
    let pattern = value.to_le_bytes();
    (range.offset()..range.offset() + range.len()).map(|at| pattern[at as usize % 8]).collect()
}

/// Which write each cell of `range` holds, or the first cell that is not one write's.
pub fn decode(range: CellRange, bytes: &[u8]) -> Result<Vec<Value>, String> {
    if bytes.len() as u64 != range.len() {
        return Err(format!("{} bytes were read where {} were asked for", bytes.len(), range.len()));
    }
    let mut values = Vec::with_capacity(range.count as usize);
    for cell in range.first..range.first + range.count {
        let (start, end) = (byte_of(cell), byte_of(cell + 1));
        let at = |byte: u64| bytes[(byte - range.offset()) as usize];
        let aligned = start.next_multiple_of(8);
        let value = u64::from_le_bytes(std::array::from_fn(|i| at(aligned + i as u64)));
        let pattern = value.to_le_bytes();
        if let Some(byte) = (start..end).find(|&byte| at(byte) != pattern[byte as usize % 8]) {
            return Err(format!("byte {byte} is torn: the rest of its cell is of write {value}"));
        }
        values.push(value);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_decode_to_the_writes_that_filled_them() {
        let range = CellRange { first: 5, count: 14 };
        assert_eq!(range.blocks().collect::<Vec<_>>(), [(0, 0b1110_0000), (1, 0xff), (2, 0b111)]);
        let mut bytes = fill(range, 0x1234_5678_9abc);
        let second = CellRange { first: 7, count: 2 };
        let at = (second.offset() - range.offset()) as usize;
        bytes[at..at + second.len() as usize].copy_from_slice(&fill(second, 7));
        let values = decode(range, &bytes).unwrap();
        assert_eq!(values[..5], [0x1234_5678_9abc, 0x1234_5678_9abc, 7, 7, 0x1234_5678_9abc]);
    }

    #[test]
    fn torn_and_shifted_bytes_do_not_decode() {
        let range = CellRange { first: 8, count: 8 };
        let mut bytes = fill(range, 0x0102_0304_0506_0708);
        bytes[4000] ^= 1;
        assert!(decode(range, &bytes).is_err());
        let mut shifted = fill(range, 0x0102_0304_0506_0708);
        shifted.rotate_left(1);
        assert_ne!(decode(range, &shifted), decode(range, &fill(range, 0x0102_0304_0506_0708)));
        assert!(decode(range, &bytes[1..]).is_err());
    }
}
