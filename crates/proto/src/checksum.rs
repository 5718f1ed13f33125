//! The checksum that travels with every 4 KiB block from the owner of a VDI to the disk and back.

use crate::BLOCK_BYTES;

/// CRC-32C (Castagnoli; RFC 3720, appendix B.4) of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// CRC-32C of a block of 4096 zero bytes.
pub const ZERO_BLOCK_CRC: u32 = 0x98f9_4189;

/// One checksum for each whole block of `data`.
///
/// # Panics
/// If `data` is not a whole number of blocks: callers merge partial blocks first.
pub fn block_checksums(data: &[u8]) -> Vec<u32> {
    assert_eq!(data.len() % BLOCK_BYTES, 0, "checksums are per whole block");
    data.chunks_exact(BLOCK_BYTES).map(crc32c).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_matches_the_published_vectors() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0u8; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0u8; BLOCK_BYTES]), ZERO_BLOCK_CRC);
    }
}
