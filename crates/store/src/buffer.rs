//! Memory that a disk accepts for direct I/O: aligned to 4 KiB, in whole blocks.

use bytes::Bytes;
use proto::BLOCK_BYTES;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; BLOCK_BYTES]);

/// A zeroed run of aligned blocks, filled in and then frozen into [`Bytes`].
pub struct AlignedBuf(Vec<Page>);

impl AlignedBuf {
    pub fn zeroed(blocks: usize) -> Self {
        AlignedBuf(Page::new_vec_zeroed(blocks).expect("memory for a buffer of bounded size"))
    }

    /// A copy of `data`, padded with zeros to whole blocks.
    pub fn copy_of(data: &[u8]) -> Self {
        let mut buf = Self::zeroed(data.len().div_ceil(BLOCK_BYTES));
        buf.bytes_mut()[..data.len()].copy_from_slice(data);
        buf
    }

    pub fn bytes(&self) -> &[u8] {
        self.0.as_slice().as_bytes()
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_slice().as_mut_bytes()
    }

    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

/// `data` itself where its memory is aligned, else one aligned copy.
pub fn aligned(data: &Bytes) -> Bytes {
    if (data.as_ptr() as usize).is_multiple_of(BLOCK_BYTES) {
        data.clone()
    } else {
        AlignedBuf::copy_of(data).freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unaligned_payload_is_copied_once_and_an_aligned_one_never() {
        let buf = AlignedBuf::copy_of(&[7; 3 * BLOCK_BYTES]).freeze();
        assert_eq!(aligned(&buf.slice(BLOCK_BYTES..)).as_ptr(), buf[BLOCK_BYTES..].as_ptr());
        let odd = buf.slice(1..1 + BLOCK_BYTES);
        let copy = aligned(&odd);
        assert_eq!(copy, odd);
        assert_eq!(copy.as_ptr() as usize % BLOCK_BYTES, 0);
    }
}
