//! A chain of descriptors, as the guest put it into a ring: which memory a request reads and which it writes.
//!
//! The guest may write anything there. A chain is copied while it is walked, each descriptor once; it has no more descriptors
//! than [`DESCRIPTOR_COUNT_MAX`], reads before it writes, and names only memory that exists. Any other is [`BadChain`], after which
//! nothing that the ring says can be trusted.

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::memory::{Memory, Outside, Segment};

const DESCRIPTOR_BYTES: usize = 16;
/// Of a chain, with those in an indirect table: as many as the largest ring of QEMU's has.
pub const DESCRIPTOR_COUNT_MAX: usize = 1024;

/// Memory that a request reads, and memory that it writes, each in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chain {
    pub readable: Vec<Segment>,
    pub writable: Vec<Segment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadChain {
    #[error("a descriptor {index} in a table of {count}")]
    Index { index: u16, count: u16 },
    #[error("more than {DESCRIPTOR_COUNT_MAX} descriptors, or a circle of them")]
    TooLong,
    #[error("an indirect table of {0} bytes")]
    IndirectBytes(u32),
    #[error("an indirect table within another, or in the middle of a chain")]
    IndirectTwice,
    #[error("memory to read after memory to write")]
    Order,
    #[error(transparent)]
    Outside(#[from] Outside),
}

struct Descriptor {
    segment: Segment,
    flags: u32,
    next: u16,
}

impl Chain {
    /// The chain that begins at `head` of a table of `count` descriptors.
    pub fn walk(memory: &Memory, table: u64, count: u16, head: u16) -> Result<Chain, BadChain> {
        let mut chain = Chain::default();
        let first = descriptor(memory, table, count, head)?;
        if first.flags & VRING_DESC_F_INDIRECT == 0 {
            chain.follow(memory, table, count, first)?;
            return Ok(chain);
        }
        let Segment { start, bytes } = first.segment;
        let indirect_count = bytes as usize / DESCRIPTOR_BYTES;
        let whole = bytes != 0 && (bytes as usize).is_multiple_of(DESCRIPTOR_BYTES);
        if !whole || indirect_count > DESCRIPTOR_COUNT_MAX {
            return Err(BadChain::IndirectBytes(bytes));
        }
        if first.flags & VRING_DESC_F_NEXT != 0 {
            return Err(BadChain::IndirectTwice);
        }
        let first = descriptor(memory, start, indirect_count as u16, 0)?;
        chain.follow(memory, start, indirect_count as u16, first)?;
        Ok(chain)
    }

    fn follow(
        &mut self,
        memory: &Memory,
        table: u64,
        count: u16,
        mut at: Descriptor,
    ) -> Result<(), BadChain> {
        // One in a circle is met again before the table's end is reached; a table has at most that many.
        for _ in 0..count {
            self.add(memory, &at)?;
            if at.flags & VRING_DESC_F_NEXT == 0 {
                return Ok(());
            }
            at = descriptor(memory, table, count, at.next)?;
        }
        Err(BadChain::TooLong)
    }

    fn add(&mut self, memory: &Memory, at: &Descriptor) -> Result<(), BadChain> {
        if at.flags & VRING_DESC_F_INDIRECT != 0 {
            return Err(BadChain::IndirectTwice);
        }
        memory.check(at.segment)?;
        let writable = at.flags & VRING_DESC_F_WRITE != 0;
        if !writable && !self.writable.is_empty() {
            return Err(BadChain::Order);
        }
        if at.segment.bytes > 0 {
            let list = if writable { &mut self.writable } else { &mut self.readable };
            list.push(at.segment);
        }
        Ok(())
    }
}

fn descriptor(memory: &Memory, table: u64, count: u16, index: u16) -> Result<Descriptor, BadChain> {
    if index >= count {
        return Err(BadChain::Index { index, count });
    }
    let offset = u64::from(index) * DESCRIPTOR_BYTES as u64;
    let at = table.checked_add(offset).ok_or(Outside { start: table, bytes: offset })?;
    let mut bytes = [0; DESCRIPTOR_BYTES];
    memory.read(at, &mut bytes)?;
    let (start, rest) = bytes.split_first_chunk().expect("16 bytes");
    let (length, rest) = rest.split_first_chunk().expect("8 bytes");
    let (flags, next) = rest.split_first_chunk().expect("4 bytes");
    Ok(Descriptor {
        segment: Segment { start: u64::from_le_bytes(*start), bytes: u32::from_le_bytes(*length) },
        flags: u16::from_le_bytes(*flags).into(),
        next: u16::from_le_bytes(next.try_into().expect("2 bytes")),
    })
}

/// How many bytes `segments` have together. At most 1024 of 4 GiB: no overflow.
pub fn total_bytes(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.bytes)).sum()
}

/// Takes `count` bytes off the front of `segments`, which must have them.
pub fn take_front(segments: &mut Vec<Segment>, count: u64) -> Vec<Segment> {
    let mut left = count;
    let mut taken = Vec::new();
    while left > 0 {
        let first = segments.first_mut().expect("the caller has counted");
        let here = left.min(first.bytes.into()) as u32;
        taken.push(Segment { start: first.start, bytes: here });
        left -= u64::from(here);
        first.start += u64::from(here);
        first.bytes -= here;
        if first.bytes == 0 {
            segments.remove(0);
        }
    }
    taken
}
