//! Parts of what came from a client or a peer in one piece.

use bytes::Bytes;

/// What is as small may go through the store's journal, and wait there for long until it is brought home.
const COPIED_BYTES_MAX: usize = 64 << 10;

/// A part of `data`, without a copy, unless it could keep much more than itself in memory for long.
pub(crate) fn part_of(data: &Bytes, at: usize, len: usize) -> Bytes {
    let part = data.slice(at..at + len);
    if len <= COPIED_BYTES_MAX.min(data.len() / 2) { Bytes::copy_from_slice(&part) } else { part }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_part_of_a_large_payload_is_memory_of_its_own() {
        let data = Bytes::from((0..1 << 20).map(|i| (i >> 12) as u8).collect::<Vec<u8>>());
        for (at, len, is_copied) in [
            (4096, 4096, true),
            (0, COPIED_BYTES_MAX, true),
            (0, COPIED_BYTES_MAX + 1, false),
            (0, 1 << 20, false),
        ] {
            let part = part_of(&data, at, len);
            assert_eq!(part, data[at..at + len]);
            assert_eq!(part.as_ptr() != data[at..].as_ptr(), is_copied, "{len} bytes");
        }
        let small = data.slice(..8192);
        assert_eq!(part_of(&small, 0, 8192).as_ptr(), data.as_ptr());
    }
}
