//! Buffers for payloads on their way between a socket and a disk.
//!
//! Memory starts at a 4 KiB boundary, so that a disk opened with O_DIRECT can take it without a copy. Freed
//! buffers wait in a small list of the thread that freed them; the list is bounded, the rest goes back to the
//! allocator. Large ones lie in huge pages, where the process wants that ([`use_huge_pages`]). An [`AlignedBuf`] is filled from its
//! start like a `Vec` that cannot grow, then frozen into `Bytes`.

mod huge;

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytes::Bytes;

pub use huge::use_huge_pages;

/// Where every buffer starts, and the unit of capacities: one block.
pub const ALIGNMENT: usize = proto::BLOCK_BYTES;

/// Buffers up to this capacity come in powers of two and are kept for reuse.
const POOLED_BYTES_MAX: usize = 4 << 20;
const CLASS_COUNT: usize = (POOLED_BYTES_MAX / ALIGNMENT).ilog2() as usize + 1;

/// Free memory kept per thread: enough for a queue of 64 requests of 128 KiB.
const FREE_BYTES_MAX: usize = 8 << 20;

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { free: [const { Vec::new() }; CLASS_COUNT], bytes: 0, bytes_max: FREE_BYTES_MAX }) };
}

/// This thread frees buffers and asks for none: it keeps no free memory.
pub fn keep_no_free_memory() {
    POOL.with(|pool| pool.borrow_mut().bytes_max = 0);
}

/// A block of memory: `capacity` bytes at `start`, of which the first `len` are initialised.
pub struct AlignedBuf {
    /// Owned: of the arena, or allocated with `layout(capacity)`.
    start: NonNull<u8>,
    /// A positive multiple of `ALIGNMENT`.
    capacity: usize,
    /// At most `limit`.
    len: usize,
    /// What was asked for: at most `capacity`.
    limit: usize,
}

// SAFETY: the memory is owned by this value alone and reached through it alone.
unsafe impl Send for AlignedBuf {}
// SAFETY: a shared reference gives out shared slices only.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// An empty buffer that can be filled with `limit` bytes. The caller has checked that size.
    pub fn with_capacity(limit: usize) -> AlignedBuf {
        let in_units = limit.next_multiple_of(huge::UNIT_BYTES);
        // What is smaller may be kept for long by the store, and would crowd the arena.
        if limit >= huge::UNIT_BYTES
            && let Some(start) = huge::take(in_units)
        {
            return AlignedBuf { start, capacity: in_units, len: 0, limit };
        }
        let capacity = capacity_for(limit);
        let reused =
            class_of(capacity).and_then(|class| POOL.try_with(|p| p.borrow_mut().take(class)).ok()?);
        let start = reused.unwrap_or_else(|| {
            // SAFETY: a layout of a capacity is never of size zero.
            let start = unsafe { alloc(layout(capacity)) };
            NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout(capacity)))
        });
        AlignedBuf { start, capacity, len: 0, limit }
    }

    /// A copy of `data`.
    pub fn copy_of(data: &[u8]) -> AlignedBuf {
        let mut buffer = AlignedBuf::with_capacity(data.len());
        buffer.extend_from_slice(data);
        buffer
    }

    /// So many zeros.
    pub fn zeroed(len: usize) -> AlignedBuf {
        let mut buffer = AlignedBuf::with_capacity(len);
        buffer.extend_with_zeros(len);
        buffer
    }

    /// Bytes that still fit.
    pub fn remaining(&self) -> usize {
        self.limit - self.len
    }

    /// Memory it occupies.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Appends `data`, which must fit.
    pub fn extend_from_slice(&mut self, data: &[u8]) {
        let spare = self.spare_mut();
        assert!(data.len() <= spare.len(), "{} bytes do not fit into {}", data.len(), spare.len());
        spare[..data.len()].write_copy_of_slice(data);
        self.len += data.len();
    }

    /// Appends `count` zeros, which must fit.
    pub fn extend_with_zeros(&mut self, count: usize) {
        let spare = self.spare_mut();
        assert!(count <= spare.len(), "{count} zeros do not fit into {}", spare.len());
        spare[..count].fill(MaybeUninit::new(0));
        self.len += count;
    }

    /// The room for what still fits, to be filled by other means.
    pub fn spare_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: `len <= limit <= capacity`, so the range lies in the memory we own; it may be uninitialised.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.as_ptr().add(self.len).cast(), self.limit - self.len)
        }
    }

    /// Counts `count` more bytes as filled.
    ///
    /// # Safety
    /// They were initialised in [`AlignedBuf::spare_mut`], from its start.
    pub unsafe fn assume_filled(&mut self, count: usize) {
        assert!(count <= self.remaining(), "{count} bytes do not fit into {}", self.remaining());
        self.len += count;
    }

    /// The filled part as shareable bytes. Its memory returns to where it came from with the last of them.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the first `len` bytes are initialised and ours.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the first `len` bytes are initialised and ours.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        let (start, capacity) = (self.start, self.capacity);
        if capacity.is_multiple_of(huge::UNIT_BYTES) && huge::give_back(start, capacity) {
            return;
        }
        // The pool is gone while its thread ends: then the memory goes back at once.
        let kept = class_of(capacity)
            .is_some_and(|class| POOL.try_with(|p| p.borrow_mut().keep(class, start)).unwrap_or(false));
        if !kept {
            // SAFETY: allocated with this layout, and nobody else has it.
            unsafe { dealloc(start.as_ptr(), layout(capacity)) };
        }
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} of {} bytes)", self.len, self.limit)
    }
}

/// `data` itself where its memory is aligned, else one aligned copy.
pub fn aligned(data: &Bytes) -> Bytes {
    if (data.as_ptr() as usize).is_multiple_of(ALIGNMENT) {
        data.clone()
    } else {
        AlignedBuf::copy_of(data).freeze()
    }
}

/// Free memory of one thread, by size class.
struct Pool {
    /// Allocated with `layout(class_bytes(class))`, owned by this list.
    free: [Vec<NonNull<u8>>; CLASS_COUNT],
    bytes: usize,
    bytes_max: usize,
}

impl Pool {
    fn take(&mut self, class: usize) -> Option<NonNull<u8>> {
        let start = self.free[class].pop()?;
        self.bytes -= class_bytes(class);
        Some(start)
    }

    /// Takes over the memory, unless the pool is full.
    fn keep(&mut self, class: usize, start: NonNull<u8>) -> bool {
        if self.bytes + class_bytes(class) > self.bytes_max {
            return false;
        }
        self.bytes += class_bytes(class);
        self.free[class].push(start);
        true
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for (class, free) in self.free.iter().enumerate() {
            for start in free {
                // SAFETY: allocated with this layout, and the list alone has it.
                unsafe { dealloc(start.as_ptr(), layout(class_bytes(class))) };
            }
        }
    }
}

fn capacity_for(limit: usize) -> usize {
    let blocks = limit.max(1).next_multiple_of(ALIGNMENT);
    if blocks <= POOLED_BYTES_MAX { blocks.next_power_of_two() } else { blocks }
}

fn class_of(capacity: usize) -> Option<usize> {
    (capacity <= POOLED_BYTES_MAX).then(|| (capacity / ALIGNMENT).ilog2() as usize)
}

fn class_bytes(class: usize) -> usize {
    ALIGNMENT << class
}

fn layout(capacity: usize) -> Layout {
    Layout::from_size_align(capacity, ALIGNMENT).expect("payloads are far smaller than the address space")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free_bytes() -> usize {
        POOL.with(|p| p.borrow().bytes)
    }

    #[test]
    fn every_size_is_aligned_and_holds_what_is_put_in() {
        for limit in [0, 1, 511, 4096, 4097, 65536, POOLED_BYTES_MAX, POOLED_BYTES_MAX + 1, 32 << 20] {
            let mut buffer = AlignedBuf::with_capacity(limit);
            assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
            assert_eq!((buffer.len(), buffer.remaining()), (0, limit));
            buffer.extend_with_zeros(limit / 2);
            buffer.extend_from_slice(&vec![7; limit - limit / 2]);
            assert_eq!(buffer.remaining(), 0);
            let bytes = buffer.freeze();
            assert!(bytes[..limit / 2].iter().all(|b| *b == 0));
            assert!(bytes[limit / 2..].iter().all(|b| *b == 7));
        }
    }

    #[test]
    #[should_panic(expected = "2 bytes do not fit into 1")]
    fn more_than_was_asked_for_is_refused_even_where_memory_would_do() {
        let mut buffer = AlignedBuf::with_capacity(3);
        buffer.extend_from_slice(b"ab");
        buffer.extend_from_slice(b"cd");
    }

    #[test]
    fn memory_is_used_again_by_the_thread_that_freed_it() {
        std::thread::spawn(|| {
            let first = AlignedBuf::copy_of(b"old");
            let start = first.as_ptr();
            drop(first.freeze());
            assert_eq!(free_bytes(), ALIGNMENT);
            let second = AlignedBuf::with_capacity(100);
            assert_eq!(second.as_ptr(), start);
            assert_eq!(&second[..], b"", "old content is out of reach");
            assert_eq!(free_bytes(), 0);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn free_memory_is_bounded_and_buffers_may_be_freed_elsewhere() {
        let buffers: Vec<_> = (0..64).map(|_| AlignedBuf::with_capacity(1 << 20)).collect();
        std::thread::spawn(move || {
            drop(buffers);
            assert_eq!(free_bytes(), FREE_BYTES_MAX);
        })
        .join()
        .unwrap();
        assert_eq!(free_bytes(), 0);
        let buffer = AlignedBuf::with_capacity(1 << 20);
        std::thread::spawn(move || {
            keep_no_free_memory();
            drop(buffer);
            assert_eq!(free_bytes(), 0);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn an_unaligned_payload_is_copied_once_and_an_aligned_one_never() {
        let buf = AlignedBuf::copy_of(&[7; 3 * ALIGNMENT]).freeze();
        assert_eq!(aligned(&buf.slice(ALIGNMENT..)).as_ptr(), buf[ALIGNMENT..].as_ptr());
        let odd = buf.slice(1..1 + ALIGNMENT);
        let copy = aligned(&odd);
        assert_eq!(copy, odd);
        assert_eq!(copy.as_ptr() as usize % ALIGNMENT, 0);
    }
}
