//! Which requests are under way, noted in memory that outlives us.
//!
//! The front-end keeps that memory and gives it to the next sheep that serves the device. There is a region for each queue:
//!
//! ```text
//! 0   features u64 | version u16 | queue size u16 | last batch head u16 | used index u16
//! 16  for each descriptor: under way u8 | 5 bytes | next u16 | counter u64
//! ```
//!
//! A request is noted with the next counter before it is looked at, and struck out after the guest can see its answer. We answer one
//! by one, so a batch is one request: its head is noted first, then the ring's index rises, then the note goes. Who dies
//! between leaves a used index that is behind the ring's, and the next one strikes the batch out.
//!
//! **Why it is safe to submit again what was under way.** The guest has not been told that it ended, so it may take effect now. It may
//! also have taken effect before the sheep died, and what it then does a second time must undo nothing that the guest was told of.
//!
//! - A change that overlaps an earlier one is not begun before that is answered ([`super::fence`]). So nothing that has ended overlaps a change
//!   under way and came after it: a second time, it writes the same bytes over what it wrote, or over what was there before.
//! - After a restart no queue takes new requests before every queue has submitted again what it had under way
//!   (`Device::may_begin`): the guest's next change of a block stays behind it.
//! - The life that ended does nothing any more: what a sheep had asked of others, they carry out before anything that its next life
//!   asks, or not at all (`Service`). A front-end that only lost its connection is served again when all it had asked is over.
//! - Requests of a volume that another client writes to at the same time have no such order: of a disk that guests share, a block that one
//!   guest has under way when its sheep dies may be written again after another guest has changed it.
//!
//! The memory is as untrusted as the guest's.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{Bytes, MmapRegion, VolatileMemory, VolatileSlice};

use super::memory::map_shared;
use super::queue::{QUEUE_COUNT_MAX, QUEUE_SIZE_MAX};
use super::wire::InflightArea;

const HEAD_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;
const REGION_ALIGNMENT: usize = 64;
const VERSION: u16 = 1;

const VERSION_AT: usize = 8;
const SIZE_AT: usize = 10;
const LAST_BATCH_AT: usize = 12;
const USED_AT: usize = 14;
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;

fn region_bytes(queue_size: u16) -> usize {
    (HEAD_BYTES + usize::from(queue_size) * ENTRY_BYTES).next_multiple_of(REGION_ALIGNMENT)
}

fn is_sound(area: &InflightArea) -> bool {
    let size = area.queue_size;
    (1..=QUEUE_COUNT_MAX).contains(&area.queue_count) && (1..=QUEUE_SIZE_MAX).contains(&size)
}

/// Makes memory for that many queues, all zeros. Nobody can make it shorter.
pub fn make(asked: InflightArea) -> Result<(InflightArea, OwnedFd), String> {
    if !is_sound(&asked) {
        return Err(format!("{} queues of {}", asked.queue_count, asked.queue_size));
    }
    let bytes = (region_bytes(asked.queue_size) * usize::from(asked.queue_count)) as u64;
    let make = || {
        let file = memfd_create("vhost-user-inflight", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, bytes)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok::<_, rustix::io::Errno>(file)
    };
    let file = make().map_err(|error| error.to_string())?;
    Ok((InflightArea { bytes, file_offset: 0, ..asked }, file))
}

/// No lives of a sheep have taken so many requests; from here on a counter could not rise without end.
pub const COUNTER_MAX: u64 = u64::MAX / 2;

/// The memory of all queues.
pub struct Inflight {
    memory: Rc<MmapRegion>,
    area: InflightArea,
}

impl Inflight {
    pub fn map(area: InflightArea, file: OwnedFd) -> Result<Inflight, String> {
        let needed = region_bytes(area.queue_size) * usize::from(area.queue_count);
        if !is_sound(&area) || area.bytes < needed as u64 {
            return Err(format!(
                "{} bytes for {} queues of {}",
                area.bytes, area.queue_count, area.queue_size
            ));
        }
        let memory = map_shared(file, area.file_offset, needed as u64)?;
        Ok(Inflight { memory: Rc::new(memory), area })
    }

    /// The log of one queue, if there is one.
    pub fn log(&self, queue: usize) -> Option<QueueLog> {
        let start = queue * region_bytes(self.area.queue_size);
        let there = queue < usize::from(self.area.queue_count);
        there.then(|| QueueLog { memory: self.memory.clone(), start, size: self.area.queue_size })
    }

    /// Queues that have requests under way, and the highest counter of all.
    pub fn look(&self) -> (Vec<usize>, u64) {
        let mut queues = Vec::new();
        let mut highest = 0;
        for queue in 0..usize::from(self.area.queue_count) {
            let log = self.log(queue).expect("counted");
            let noted = log.noted();
            if let Some((counter, _)) = noted.last() {
                queues.push(queue);
                highest = highest.max(*counter);
            }
        }
        (queues, highest)
    }
}

/// What is noted of one queue.
pub struct QueueLog {
    memory: Rc<MmapRegion>,
    start: usize,
    size: u16,
}

impl QueueLog {
    /// How many descriptors it has room for.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Brings the notes in line with a ring whose used index is `used`, and says which requests are under way, in
    /// the order in which they were taken.
    pub fn recover(&self, used: u16) -> Vec<u16> {
        if self.get::<u16>(VERSION_AT) != VERSION {
            self.put(SIZE_AT, self.size);
            self.put(VERSION_AT, VERSION);
        }
        let batch = used.wrapping_sub(self.get(USED_AT));
        let mut head = self.get::<u16>(LAST_BATCH_AT);
        // More than the queue holds is no batch: the ring has begun anew.
        for _ in 0..if batch <= self.size { batch } else { 0 } {
            if head >= self.size {
                break;
            }
            self.put(self.entry(head), 0u8);
            head = self.get(self.entry(head) + NEXT_AT);
        }
        self.put(USED_AT, used);
        self.noted().into_iter().map(|(_, head)| head).collect()
    }

    /// Counters and heads, in order.
    fn noted(&self) -> Vec<(u64, u16)> {
        let under_way = (0..self.size).filter(|head| self.get::<u8>(self.entry(*head)) != 0);
        let mut noted: Vec<_> =
            under_way.map(|head| (self.get::<u64>(self.entry(head) + COUNTER_AT), head)).collect();
        noted.sort_unstable();
        noted
    }

    /// A request was taken from the ring.
    pub fn begin(&self, head: u16, counter: u64) {
        self.put(self.entry(head) + COUNTER_AT, counter);
        self.put(self.entry(head), 1u8);
    }

    /// It is about to be answered: to be called before the ring's used index rises.
    pub fn answer(&self, head: u16) {
        self.put(self.entry(head) + NEXT_AT, self.get::<u16>(LAST_BATCH_AT));
        self.put(LAST_BATCH_AT, head);
    }

    /// It was, and `used` is the ring's index now.
    pub fn end(&self, head: u16, used: u16) {
        self.put(self.entry(head), 0u8);
        self.put(USED_AT, used);
    }

    fn entry(&self, head: u16) -> usize {
        assert!(head < self.size, "descriptor {head} in a log of {}", self.size);
        HEAD_BYTES + usize::from(head) * ENTRY_BYTES
    }

    fn region(&self) -> VolatileSlice<'_> {
        self.memory.get_slice(self.start, region_bytes(self.size)).expect("mapped whole")
    }

    // Each store is released, each after all before it: whoever reads the memory after our death sees a prefix of them.
    fn put<T: vm_memory::AtomicAccess>(&self, at: usize, value: T) {
        self.region().store(value, at, Ordering::Release).expect("within the region, aligned");
    }

    fn get<T: vm_memory::AtomicAccess>(&self, at: usize) -> T {
        self.region().load(at, Ordering::Acquire).expect("within the region, aligned")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inflight(queue_count: u16, queue_size: u16) -> Inflight {
        let (area, file) = make(InflightArea { bytes: 0, file_offset: 0, queue_count, queue_size }).unwrap();
        Inflight::map(area, file).unwrap()
    }

    #[test]
    fn what_was_taken_and_not_answered_is_found_in_the_order_of_taking() {
        let inflight = inflight(3, 8);
        assert_eq!(inflight.look(), (vec![], 0));
        let log = inflight.log(1).unwrap();
        assert!(log.recover(0).is_empty());
        for (head, counter) in [(5, 1), (2, 2), (7, 3)] {
            log.begin(head, counter);
        }
        log.answer(2);
        log.end(2, 1);
        assert_eq!(inflight.look(), (vec![1], 3));
        assert_eq!(inflight.log(1).unwrap().recover(1), [5, 7]);
        assert!(inflight.log(2).unwrap().recover(0).is_empty(), "another queue");
        assert!(inflight.log(3).is_none());
    }

    #[test]
    fn who_dies_between_the_answer_and_the_note_leaves_nothing_to_repeat() {
        let inflight = inflight(1, 8);
        let log = inflight.log(0).unwrap();
        log.recover(65535);
        log.begin(3, 1);
        log.begin(4, 2);
        log.answer(3);
        // The ring's index has risen to 0, and then the sheep died.
        assert_eq!(log.recover(0), [4]);
        assert_eq!(log.recover(0), [4]);
        // It died before the index rose.
        log.answer(4);
        assert_eq!(log.recover(0), [4]);
    }

    #[test]
    fn garbage_in_the_memory_harms_nobody() {
        let inflight = inflight(1, 8);
        let log = inflight.log(0).unwrap();
        log.region().write_slice(&[0xff; HEAD_BYTES + 8 * ENTRY_BYTES], 0).unwrap();
        assert_eq!(log.recover(7), [0, 1, 2, 3, 4, 5, 6, 7]);
        // A circle of batches.
        log.put(log.entry(1) + NEXT_AT, 1u16);
        log.put(LAST_BATCH_AT, 1u16);
        assert_eq!(log.recover(15), [0, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn areas_that_cannot_be_are_refused() {
        let area = InflightArea { bytes: 0, file_offset: 0, queue_count: 2, queue_size: 128 };
        for bad in [
            InflightArea { queue_count: 0, ..area },
            InflightArea { queue_size: 0, ..area },
            InflightArea { queue_count: u16::MAX, ..area },
            InflightArea { queue_size: u16::MAX, ..area },
        ] {
            assert!(make(bad).is_err(), "{bad:?}");
        }
        let (made, file) = make(area).unwrap();
        let too_short = InflightArea { queue_count: 64, bytes: 1 << 20, ..made };
        assert!(Inflight::map(too_short, file.try_clone().unwrap()).is_err());
        let too_small = InflightArea { bytes: made.bytes - 1, ..made };
        assert!(Inflight::map(too_small, file).is_err());
    }
}
