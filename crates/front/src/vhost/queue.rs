//! One ring of a device: takes requests from it and puts answers into it.
//!
//! Set up message by message, it *runs* from the moment it has a file descriptor for kicks until the front-end asks for its base. A
//! ring in which something cannot be is *broken*: nothing more is taken from it until it is set up anew, and one line in
//! the log says why. What is under way never exceeds the ring: a guest that offers a descriptor twice breaks it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::blk::{Geometry, Request, Status};
use super::chain::Chain;
use super::inflight::{Inflight, QueueLog};
use super::memory::Memory;
use super::wire::RingAddresses;

/// Descriptors of a ring: the most that QEMU offers.
pub const QUEUE_SIZE_MAX: u16 = 1024;
/// A queue for each processor of large guests. A message names a queue with eight bits.
pub const QUEUE_COUNT_MAX: u16 = 128;

/// Kicks in a row, each read before the next came, that no guest's counter of kicks gives.
const KICK_COUNT_MAX: u32 = 64;

pub struct Ring {
    ring: Queue,
    addresses: Option<RingAddresses>,
    size: u16,
    /// Where the front-end says that the ring goes on.
    base: u16,
    enabled: bool,
    event_idx: bool,
    kick: Option<AsyncFd<OwnedFd>>,
    call: Option<OwnedFd>,
    err: Option<OwnedFd>,
    running: bool,
    stopping: bool,
    broken: bool,
    /// By head: is a request under way that begins there?
    taken: Vec<bool>,
    taken_count: u16,
    log: Option<QueueLog>,
    /// Taken by an earlier life, to be submitted again before anything else. In reverse order.
    again: Vec<u16>,
    /// There may be something in the ring.
    pub look: bool,
    /// Answers were added that the guest may have to be told of.
    unannounced: bool,
}

/// A request taken from the ring, by its head.
pub struct Taken {
    pub head: u16,
    pub request: Request,
}

impl Default for Ring {
    fn default() -> Self {
        Ring {
            ring: Queue::new(QUEUE_SIZE_MAX).expect("a power of two"),
            addresses: None,
            size: QUEUE_SIZE_MAX,
            base: 0,
            enabled: false,
            event_idx: false,
            kick: None,
            call: None,
            err: None,
            running: false,
            stopping: false,
            broken: false,
            taken: vec![],
            taken_count: 0,
            log: None,
            again: vec![],
            look: false,
            unannounced: false,
        }
    }
}

impl Ring {
    /// `None`: no ring has such a size.
    pub fn set_size(&mut self, size: u32) -> Option<()> {
        let size =
            u16::try_from(size).ok().filter(|size| size.is_power_of_two() && *size <= QUEUE_SIZE_MAX)?;
        self.size = size;
        Some(())
    }

    pub fn set_base(&mut self, base: u32) {
        self.base = base as u16;
    }

    pub fn set_addresses(&mut self, addresses: RingAddresses) {
        self.addresses = Some(addresses);
    }

    pub fn set_call(&mut self, file: Option<OwnedFd>) -> io::Result<()> {
        file.as_ref().map_or(Ok(()), never_block)?;
        self.call = file;
        // The guest may wait for what the old one was not told of any more.
        self.announce();
        Ok(())
    }

    pub fn set_err(&mut self, file: Option<OwnedFd>) -> io::Result<()> {
        file.as_ref().map_or(Ok(()), never_block)?;
        self.err = file;
        Ok(())
    }

    /// From here on the ring runs. `Err` says why it cannot.
    pub fn start(
        &mut self,
        kick: OwnedFd,
        memory: &Memory,
        inflight: Option<&Inflight>,
        index: usize,
        event_idx: bool,
    ) -> Result<(), String> {
        if self.taken_count > 0 {
            return Err("it still has requests under way".into());
        }
        never_block(&kick).map_err(|error| error.to_string())?;
        // SAFETY: the `OwnedFd` inside stays open, and the same descriptor, for the life of the `AsyncFd`.
        let kick = unsafe { AsyncFd::register_with_interest(kick, Interest::READABLE) };
        let kick =
            kick.map_err(|error| format!("its kicks cannot be awaited: {}", io::Error::from(error)))?;
        self.event_idx = event_idx;
        self.place(memory)?;
        let used = self.ring.used_idx(memory.map(), Ordering::Acquire).map_err(|error| error.to_string())?.0;
        self.log = inflight.and_then(|inflight| inflight.log(index));
        self.again.clear();
        let mut next = self.base;
        if let Some(log) = &self.log {
            if log.size() < self.size {
                return Err(format!("its requests are noted in {} places, it has {}", log.size(), self.size));
            }
            self.again = log.recover(used);
            if self.again.iter().any(|head| *head >= self.size) {
                return Err("a request is noted as under way that it cannot have".into());
            }
            // Whatever was taken has been answered or is noted as under way.
            next = used.wrapping_add(self.again.len() as u16);
            self.again.reverse();
        }
        self.ring.set_next_avail(next);
        self.ring.set_next_used(used);
        self.taken = vec![false; self.size.into()];
        self.kick = Some(kick);
        self.running = true;
        self.stopping = false;
        self.broken = false;
        self.look = true;
        // The guest may still wait to be told of answers that the life before gave.
        self.unannounced = inflight.is_some();
        self.announce();
        Ok(())
    }

    /// Finds the ring in guest memory: at the start, and when the memory was mapped anew.
    pub fn place(&mut self, memory: &Memory) -> Result<(), String> {
        let at = self.addresses.ok_or("it has no addresses")?;
        let find = |user: u64| {
            memory.guest_address(user).ok_or_else(|| format!("its address {user:#x} is not in shared memory"))
        };
        let (descriptors, available, used) = (find(at.descriptors)?, find(at.available)?, find(at.used)?);
        let ring = &mut self.ring;
        let set = |result: Result<(), virtio_queue::Error>| result.map_err(|error| error.to_string());
        set(ring.try_set_size(self.size))?;
        set(ring.try_set_desc_table_address(descriptors))?;
        set(ring.try_set_avail_ring_address(available))?;
        set(ring.try_set_used_ring_address(used))?;
        ring.set_event_idx(self.event_idx);
        ring.set_ready(true);
        if !ring.is_valid(memory.map()) {
            return Err("it reaches beyond the guest's memory".into());
        }
        Ok(())
    }

    /// Nothing new is taken. What is under way, also that of an earlier life, comes to its end.
    pub fn stop(&mut self) {
        self.stopping = true;
        self.kick = None;
        self.look = self.has_again();
    }

    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Is noted what it has under way?
    pub fn is_noted(&self) -> bool {
        self.log.is_some()
    }

    /// Are there requests of an earlier life to be submitted again?
    pub fn has_again(&self) -> bool {
        self.running && !self.broken && self.enabled && !self.again.is_empty()
    }

    /// Where a ring that was stopped goes on. `None`: something is still under way.
    pub fn base(&mut self) -> Option<u16> {
        if self.taken_count > 0 || self.has_again() {
            return None;
        }
        let base = if self.running { self.ring.next_avail() } else { self.base };
        self.running = false;
        self.base = base;
        Some(base)
    }

    pub fn enable(&mut self, enabled: bool) {
        self.enabled = enabled;
        self.look = enabled && self.running;
    }

    /// Has the guest kicked? Wakes the task when it does.
    pub fn poll_kick(&mut self, cx: &mut Context<'_>) {
        for _ in 0..KICK_COUNT_MAX {
            let Some(kick) = &self.kick else { return };
            let Poll::Ready(ready) = kick.poll_read_ready(cx) else { return };
            let mut word = [0; 8];
            let read = ready.and_then(|mut ready| {
                match ready.try_io(|fd| Ok(rustix::io::read(fd, &mut word)?)) {
                    Ok(read) => read.map(Some),
                    // Nothing there after all.
                    Err(_) => Ok(None),
                }
            });
            match read {
                Ok(Some(0)) => return self.breaks("nobody can kick it any more"),
                Ok(Some(_)) => self.look = true,
                Ok(None) => {}
                Err(error) => return self.breaks(&format!("its kicks cannot be read: {error}")),
            }
        }
        self.breaks("it is kicked without end");
    }

    /// Takes the next request. `None`: there is none now, and the guest kicks when there is.
    ///
    /// `counter` numbers requests of all queues in the order of taking.
    pub fn take(&mut self, memory: &Memory, volume: Geometry, counter: &mut u64) -> Option<Taken> {
        if !self.running || self.broken || !self.enabled {
            return None;
        }
        let result = match self.again.pop() {
            Some(head) => Ok(Some(head)),
            None if self.stopping => {
                self.look = false;
                Ok(None)
            }
            None => self.next_head(memory),
        };
        let taken = result.and_then(|head| match head {
            Some(head) => self.begin(memory, head, volume, counter).map(Some),
            None => Ok(None),
        });
        taken.unwrap_or_else(|why| {
            self.breaks(&why);
            None
        })
    }

    fn next_head(&mut self, memory: &Memory) -> Result<Option<u16>, String> {
        let text = |error: virtio_queue::Error| error.to_string();
        // An index that is ahead by more than the ring holds is an error there.
        if let Some(chain) = self.ring.iter(memory.map()).map_err(text)?.next() {
            return Ok(Some(chain.head_index()));
        }
        // Asked for a kick, one looks again: the guest may have added something before it saw that.
        let again = self.ring.enable_notification(memory.map()).map_err(text)?;
        let found = if again { self.ring.iter(memory.map()).map_err(text)?.next() } else { None };
        match found {
            Some(chain) => Ok(Some(chain.head_index())),
            None if again => Err("its index moves, but names no descriptor".into()),
            None => {
                self.look = false;
                Ok(None)
            }
        }
    }

    fn begin(
        &mut self,
        memory: &Memory,
        head: u16,
        volume: Geometry,
        counter: &mut u64,
    ) -> Result<Taken, String> {
        let taken =
            self.taken.get_mut(usize::from(head)).ok_or_else(|| format!("it names descriptor {head}"))?;
        if std::mem::replace(taken, true) {
            return Err(format!("it offers descriptor {head} twice"));
        }
        self.taken_count += 1;
        // It may come from memory that is not ours.
        *counter = counter.wrapping_add(1);
        if let Some(log) = &self.log {
            log.begin(head, *counter);
        }
        let chain = Chain::walk(memory, self.ring.desc_table(), self.size, head);
        let request = chain.and_then(|chain| Request::parse(memory, chain, volume));
        match request {
            Ok(request) => Ok(Taken { head, request }),
            Err(error) => {
                // It cannot be answered, and so it stays noted: nothing is taken any more.
                self.taken[usize::from(head)] = false;
                self.taken_count -= 1;
                Err(error.to_string())
            }
        }
    }

    /// Answers a request: the guest sees the status, then that the request is over.
    ///
    /// `written`: bytes of data that the guest finds in front of the status.
    pub fn answer(&mut self, memory: &Memory, taken: &Taken, status: Status, written: u32) {
        let head = taken.head;
        let known = std::mem::replace(&mut self.taken[usize::from(head)], false);
        assert!(known, "an answer to a request that was not taken");
        self.taken_count -= 1;
        if self.broken {
            return;
        }
        let put = memory.write_byte(taken.request.status_at, status as u8).map_err(|error| error.to_string());
        if let Some(log) = &self.log {
            log.answer(head);
        }
        // Releases all that was written before.
        let put = put.and_then(|()| {
            self.ring.add_used(memory.map(), head, written + 1).map_err(|error| error.to_string())
        });
        match put {
            Ok(()) => {
                if let Some(log) = &self.log {
                    log.end(head, self.ring.next_used());
                }
                self.unannounced = true;
            }
            Err(why) => self.breaks(&why),
        }
    }

    /// Interrupts the guest if there are answers that it wants to hear of.
    pub fn announce_if_wanted(&mut self, memory: &Memory) {
        if self.unannounced && self.call.is_some() && !self.broken {
            match self.ring.needs_notification(memory.map()) {
                Ok(true) => self.announce(),
                Ok(false) => self.unannounced = false,
                Err(error) => self.breaks(&error.to_string()),
            }
        }
    }

    fn announce(&mut self) {
        if let Some(call) = &self.call
            && std::mem::take(&mut self.unannounced)
        {
            signal(call);
        }
    }

    pub fn breaks(&mut self, why: &str) {
        self.kick = None;
        if !self.broken {
            tracing::error!("a ring of a vhost-user guest is used no more: {why}");
        }
        self.broken = true;
        self.look = false;
        if let Some(err) = &self.err {
            signal(err);
        }
    }
}

/// A counter that cannot rise any more has not been looked at: nothing is lost.
fn signal(event: &OwnedFd) {
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

/// Whatever file descriptor we were given, it must not hold us up.
fn never_block(file: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file.as_fd())?;
    Ok(rustix::fs::fcntl_setfl(file.as_fd(), flags | rustix::fs::OFlags::NONBLOCK)?)
}
