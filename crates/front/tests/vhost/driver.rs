//! The guest's side of a ring: puts chains of descriptors into it and waits for their answers.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::VringConfigData;
use vm_memory::{Bytes, MmapRegion, VolatileMemory};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::guest::{DATA_AT, GUEST_START, Guest};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const T_IN: u32 = 0;
pub const T_OUT: u32 = 1;
pub const T_FLUSH: u32 = 4;
pub const T_GET_ID: u32 = 8;
pub const T_DISCARD: u32 = 11;
pub const T_WRITE_ZEROES: u32 = 13;

pub const OK: u8 = 0;
pub const FAILED: u8 = 1;
pub const UNSUPPORTED: u8 = 2;
/// What a status is before it is written.
pub const NO_STATUS: u8 = 0xee;

const PATIENCE: Duration = Duration::from_secs(20);

/// A descriptor as it lies in memory. `at`: in the guest's memory, from its start.
#[derive(Clone, Copy)]
pub struct Descriptor {
    pub at: u64,
    pub bytes: u32,
    pub flags: u16,
    pub next: u16,
}

pub struct Ring {
    /// Where it lies in the guest's memory, from its start.
    at: u64,
    size: u16,
    event_idx: bool,
    /// How many were made available, and how many answers were seen.
    available: u16,
    used: u16,
    pub kick: EventFd,
    pub call: EventFd,
}

impl Ring {
    pub fn new(at: u64, size: u16, event_idx: bool) -> Ring {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Ring { at, size, event_idx, available: 0, used: 0, kick: event(), call: event() }
    }

    fn available_at(&self) -> u64 {
        self.at + 16 * u64::from(self.size)
    }

    fn used_at(&self) -> u64 {
        self.at + (32 << 10)
    }

    pub fn addresses(&self, host: u64, size: u16) -> VringConfigData {
        VringConfigData {
            queue_max_size: size,
            queue_size: size,
            flags: 0,
            desc_table_addr: host + self.at,
            used_ring_addr: host + self.used_at(),
            avail_ring_addr: host + self.available_at(),
            log_addr: None,
        }
    }

    /// The index up to which the device has answered.
    pub fn used_seen(&self, memory: &MmapRegion) -> u16 {
        load(memory, self.used_at() + 2)
    }

    pub fn put(&self, memory: &MmapRegion, index: u16, descriptor: Descriptor) {
        write_descriptor(memory, self.at + 16 * u64::from(index), descriptor);
    }

    /// Makes the chain at `head` available, without a kick.
    pub fn offer(&mut self, memory: &MmapRegion, head: u16) {
        let slot = self.available_at() + 4 + 2 * u64::from(self.available % self.size);
        memory.as_volatile_slice().write_obj(head, slot as usize).unwrap();
        self.available = self.available.wrapping_add(1);
        store(memory, self.available_at() + 2, self.available);
    }

    /// The driver lies about how much it has made available.
    pub fn offer_out_of_nowhere(&mut self, memory: &MmapRegion, count: u16) {
        self.available = self.available.wrapping_add(count);
        store(memory, self.available_at() + 2, self.available);
    }

    /// Kicks if the device wants it, as a driver does. Returns whether it did.
    pub fn kick_if_wanted(&self, memory: &MmapRegion, offered: u16) -> bool {
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = load(memory, self.used_at() + 4 + 8 * u64::from(self.size));
            let old = self.available.wrapping_sub(offered);
            self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(old)
        } else {
            load(memory, self.used_at()) & 1 == 0
        };
        if wanted {
            self.kick.write(1).unwrap();
        }
        wanted
    }

    /// The next answer: the head of its chain, and how many bytes were written. Waits for an interrupt.
    pub fn wait_used(&mut self, memory: &MmapRegion) -> (u16, u32) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(used) = self.take_used(memory) {
                return used;
            }
            if self.event_idx {
                // Says from which answer on it wants an interrupt, then looks again.
                store(memory, self.available_at() + 4 + 2 * u64::from(self.size), self.used);
                fence(Ordering::SeqCst);
                if self.used_seen(memory) != self.used {
                    continue;
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no answer, and no interrupt");
            await_readable(&self.call, left);
            let _ = self.call.read();
        }
    }

    /// An answer that is there.
    pub fn take_used(&mut self, memory: &MmapRegion) -> Option<(u16, u32)> {
        if self.used_seen(memory) == self.used {
            return None;
        }
        let at = self.used_at() + 4 + 8 * u64::from(self.used % self.size);
        let head: u32 = memory.as_volatile_slice().read_obj(at as usize).unwrap();
        let bytes: u32 = memory.as_volatile_slice().read_obj(at as usize + 4).unwrap();
        self.used = self.used.wrapping_add(1);
        Some((head as u16, bytes))
    }
}

pub fn await_readable(event: &EventFd, patience: Duration) -> bool {
    // SAFETY: the descriptor stays open through the call.
    let event = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let timeout = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
    poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(&timeout)).unwrap() > 0
}

pub fn write_descriptor(memory: &MmapRegion, at: u64, descriptor: Descriptor) {
    let slice = memory.as_volatile_slice();
    let at = at as usize;
    slice.write_obj(GUEST_START.wrapping_add(descriptor.at), at).unwrap();
    slice.write_obj(descriptor.bytes, at + 8).unwrap();
    slice.write_obj(descriptor.flags, at + 12).unwrap();
    slice.write_obj(descriptor.next, at + 14).unwrap();
}

fn load(memory: &MmapRegion, at: u64) -> u16 {
    memory.as_volatile_slice().load(at as usize, Ordering::Acquire).unwrap()
}

fn store(memory: &MmapRegion, at: u64, value: u16) {
    let slice = memory.as_volatile_slice();
    let atomic = slice.get_atomic_ref::<AtomicU16>(at as usize).unwrap();
    atomic.store(value, Ordering::SeqCst);
}

/// A request as a driver lays it out: header, data, status. Each has a place of its own, by its head, one of 0, 3, .. 15.
pub struct Ask<'a> {
    pub kind: u32,
    pub sector: u64,
    /// What is sent.
    pub data: &'a [u8],
    /// Room for what comes back.
    pub room: u32,
    pub indirect: bool,
}

/// Where the request with this head has its header, status, indirect table and data. 64 KiB of data each.
fn place(queue: usize, head: u16) -> (u64, u64, u64, u64) {
    let slot = DATA_AT + (queue as u64 * 6 + u64::from(head) / 3) * (80 << 10);
    (slot, slot + 64, slot + 1024, slot + (16 << 10))
}

impl Guest {
    /// Puts a request of three descriptors, or of one with a table, into the ring at `head`, without a kick.
    pub fn offer(&mut self, queue: usize, head: u16, ask: &Ask) {
        let (header, status, table, data) = place(queue, head);
        let mut head_bytes = ask.kind.to_le_bytes().to_vec();
        head_bytes.extend([0; 4]);
        head_bytes.extend(ask.sector.to_le_bytes());
        self.write_memory(header, &head_bytes);
        self.write_memory(status, &[NO_STATUS]);
        self.write_memory(data, ask.data);
        let (bytes, flag) = if ask.room > 0 { (ask.room, WRITE) } else { (ask.data.len() as u32, 0) };
        let mut chain = vec![Descriptor { at: header, bytes: 16, flags: 0, next: 0 }];
        if bytes > 0 {
            // In two pieces of odd length, as a driver may.
            let first = if bytes > 1024 { bytes / 2 - 1 } else { bytes };
            chain.push(Descriptor { at: data, bytes: first, flags: flag, next: 0 });
            if first < bytes && ask.indirect {
                let rest = bytes - first;
                chain.push(Descriptor { at: data + u64::from(first), bytes: rest, flags: flag, next: 0 });
            } else {
                chain[1].bytes = bytes;
            }
        }
        chain.push(Descriptor { at: status, bytes: 1, flags: WRITE, next: 0 });
        let start = if ask.indirect { 0 } else { head };
        let last = chain.len() - 1;
        for (index, descriptor) in chain.iter_mut().enumerate() {
            if index < last {
                descriptor.flags |= NEXT;
                descriptor.next = start + index as u16 + 1;
            }
        }
        for (index, descriptor) in chain.iter().enumerate() {
            if ask.indirect {
                write_descriptor(&self.memory, table + 16 * index as u64, *descriptor);
            } else {
                self.rings[queue].put(&self.memory, head + index as u16, *descriptor);
            }
        }
        if ask.indirect {
            let bytes = 16 * chain.len() as u32;
            self.rings[queue].put(
                &self.memory,
                head,
                Descriptor { at: table, bytes, flags: INDIRECT, next: 0 },
            );
        }
        let memory = &self.memory;
        self.rings[queue].offer(memory, head);
    }

    pub fn kick(&self, queue: usize, offered: u16) -> bool {
        self.rings[queue].kick_if_wanted(&self.memory, offered)
    }

    /// The head of the next answer.
    pub fn wait(&mut self, queue: usize) -> u16 {
        let memory = &self.memory;
        self.rings[queue].wait_used(memory).0
    }

    pub fn status(&self, queue: usize, head: u16) -> u8 {
        self.read_memory(place(queue, head).1, 1)[0]
    }

    pub fn data(&self, queue: usize, head: u16, count: usize) -> Vec<u8> {
        self.read_memory(place(queue, head).3, count)
    }

    /// One request from beginning to end. Its status and what came back.
    pub fn ask(&mut self, ask: Ask) -> (u8, Vec<u8>) {
        self.offer(0, 0, &ask);
        self.kick(0, 1);
        assert_eq!(self.wait(0), 0);
        (self.status(0, 0), self.data(0, 0, ask.room as usize))
    }

    pub fn read(&mut self, sector: u64, bytes: u32) -> (u8, Vec<u8>) {
        self.ask(Ask { kind: T_IN, sector, data: &[], room: bytes, indirect: false })
    }

    pub fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.ask(Ask { kind: T_OUT, sector, data, room: 0, indirect: false }).0
    }
}
