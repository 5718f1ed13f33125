//! The io_uring engine: one ring, used by the data plane's thread alone.
//!
//! With `DEFER_TASKRUN` the kernel posts completions only when this thread enters it, and polling the ring's own
//! descriptor with epoll hangs. So an eventfd is registered with the ring; tokio waits for that, and then the ring is
//! entered for its events.
//!
//! An order's memory belongs to `Inner::flying` until its completion has been seen, whoever has lost interest meanwhile.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::{Rc, Weak};

use io_uring::{IoUring, opcode, types};
use rustix::event::{EventfdFlags, eventfd};
use slab::Slab;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::{Completion, Kind, Outcome, Work};

/// Entries of the submission queue, and orders under way at a time; the completion queue has twice as many, so it
/// never overflows. A disk is busy long before.
const QUEUE_ENTRIES: u32 = 256;
const ENTER_GETEVENTS: u32 = 1;

pub(super) struct Ring {
    inner: RefCell<Inner>,
}

struct Inner {
    /// Dropped last of what the kernel may still use: see `Drop`.
    uring: IoUring,
    file: File,
    flying: Slab<Flying>,
    /// Not given to the kernel yet.
    waiting: VecDeque<Work>,
    completions: mpsc::UnboundedSender<Completion>,
}

struct Flying {
    work: Work,
    /// The kernel may read it until the entry has been consumed: its heap memory stays where it is.
    iovecs: Vec<libc::iovec>,
}

impl Ring {
    /// Must be called within the runtime and `LocalSet` of the thread that will use it.
    pub fn start(file: File, completions: mpsc::UnboundedSender<Completion>) -> io::Result<Rc<Ring>> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(QUEUE_ENTRIES)
            .or_else(|error| match error.raw_os_error() {
                // A kernel before 6.1: as correct, a little slower.
                Some(libc::EINVAL) => IoUring::new(QUEUE_ENTRIES),
                _ => Err(error),
            })?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        uring.submitter().register_eventfd(bell.as_raw_fd())?;
        // SAFETY: the `OwnedFd` inside stays open, and the same descriptor, for the life of the `AsyncFd`.
        let bell = unsafe { AsyncFd::register(bell) }.map_err(io::Error::from)?;
        let ring = Rc::new(Ring {
            inner: RefCell::new(Inner {
                uring,
                file,
                flying: Slab::with_capacity(QUEUE_ENTRIES as usize),
                waiting: VecDeque::new(),
                completions,
            }),
        });
        tokio::task::spawn_local(listen(bell, Rc::downgrade(&ring)));
        Ok(ring)
    }

    pub fn order(&self, work: Work) {
        self.inner.borrow_mut().waiting.push_back(work);
    }

    pub fn submit(&self) {
        self.inner.borrow_mut().submit();
    }
}

async fn listen(bell: AsyncFd<OwnedFd>, ring: Weak<Ring>) {
    loop {
        let Ok(mut guard) = bell.readable().await else { return };
        let Some(ring) = ring.upgrade() else { return };
        let mut inner = ring.inner.borrow_mut();
        // The kernel rings for work that it has put off and again when that work posts its completion. Silencing the bell only
        // after reaping takes both at once. What came in between has been announced before its ring, so looking once more finds
        // it, and what comes later rings again. Never until there are no news: the kernel may announce work that an earlier
        // reaping has already done, and says so until it has more.
        inner.reap();
        let _ = rustix::io::read(bell.get_ref(), &mut [0; 8]);
        if inner.has_news() {
            inner.reap();
        }
        guard.clear_ready();
        // What was waiting for a place, and rests of orders that were cut short.
        inner.submit();
    }
}

impl Inner {
    fn submit(&mut self) {
        let mut pushed = false;
        while self.flying.len() < QUEUE_ENTRIES as usize {
            let Some(mut work) = self.waiting.pop_front() else { break };
            let iovecs = work.iovecs();
            let entry = self.flying.vacant_entry();
            let sqe = prepare(&self.file, &work, &iovecs).user_data(entry.key() as u64);
            entry.insert(Flying { work, iovecs });
            // SAFETY: the descriptor, the vectors and the buffers they point to live in `self` until the
            // completion of this entry has been reaped; `Drop` waits for those that have not.
            unsafe { self.uring.submission().push(&sqe) }.expect("the queue is as long as orders may fly");
            pushed = true;
        }
        if pushed {
            self.enter();
        }
    }

    /// Is there a completion, or may there be work of the kernel's that would post one when the ring is entered?
    fn has_news(&mut self) -> bool {
        !self.uring.completion().is_empty() || self.uring.submission().taskrun()
    }

    fn enter(&mut self) {
        loop {
            match self.uring.submit() {
                Ok(_) if self.uring.submission().is_empty() => return,
                // Nothing was taken for want of something: making room may need our completions.
                Ok(_) => self.reap(),
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => self.reap(),
                Err(error) => panic!("the io_uring of the disk is broken: {error}"),
            }
        }
    }

    /// Lets the kernel post what is done, and passes it on.
    fn reap(&mut self) {
        // SAFETY: no argument is passed, and nothing is submitted.
        let entered = unsafe { self.uring.submitter().enter::<libc::sigset_t>(0, 0, ENTER_GETEVENTS, None) };
        if let Err(error) = entered {
            tracing::debug!("entering the io_uring for its events: {error}");
        }
        self.uring.completion().sync();
        loop {
            let Some(cqe) = self.uring.completion().next() else { return };
            let flying = self.flying.remove(cqe.user_data() as usize);
            drop(flying.iovecs);
            match flying.work.advance(cqe.result()) {
                // Nobody listens any more when the data plane ends.
                Outcome::Finished(completion) => drop(self.completions.send(completion)),
                Outcome::Again(rest) => self.waiting.push_front(rest),
            }
        }
    }
}

impl Drop for Inner {
    /// The kernel writes into our buffers until it has said that it is done.
    fn drop(&mut self) {
        self.waiting.clear();
        while !self.flying.is_empty() {
            if let Err(error) = self.uring.submit_and_wait(1)
                && error.raw_os_error() != Some(libc::EINTR)
            {
                // Rather lose the memory than have it written to by somebody who should not.
                std::mem::forget(std::mem::take(&mut self.flying));
                return;
            }
            self.reap();
            self.waiting.clear();
        }
    }
}

fn prepare(file: &File, work: &Work, iovecs: &[libc::iovec]) -> io_uring::squeue::Entry {
    let fd = types::Fd(file.as_raw_fd());
    let (pointer, count) = (iovecs.as_ptr(), iovecs.len() as u32);
    match &work.kind {
        Kind::Read(_) => opcode::Readv::new(fd, pointer, count).offset(work.position()).build(),
        Kind::Write { durable, .. } => opcode::Writev::new(fd, pointer, count)
            .offset(work.position())
            .rw_flags(if *durable { libc::RWF_DSYNC } else { 0 })
            .build(),
        Kind::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
    }
}
