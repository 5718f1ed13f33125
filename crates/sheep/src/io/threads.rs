//! The engine without io_uring: a few threads that call pread and pwrite.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};

use tokio::sync::mpsc;

use super::{Completion, Kind, Outcome, Work};

/// Enough to keep a disk busy; each costs a stack.
const THREAD_COUNT: usize = 8;

pub(super) struct Pool {
    /// Closing it ends the threads, after all that was ordered.
    orders: std_mpsc::Sender<Work>,
}

impl Pool {
    pub fn start(file: File, completions: mpsc::UnboundedSender<Completion>) -> io::Result<Pool> {
        let (orders, inbox) = std_mpsc::channel::<Work>();
        let (file, inbox) = (Arc::new(file), Arc::new(Mutex::new(inbox)));
        for n in 0..THREAD_COUNT {
            let (file, inbox, completions) = (file.clone(), inbox.clone(), completions.clone());
            std::thread::Builder::new().name(format!("disk-{n}")).spawn(move || {
                // What was written is freed here, and used again elsewhere.
                buffer::keep_no_free_memory();
                loop {
                    let next = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(work) = next else { return };
                    // Nobody listens any more when the data plane ends.
                    let _ = completions.send(carry_out(&file, work));
                }
            })?;
        }
        Ok(Pool { orders })
    }

    pub fn order(&self, work: Work) {
        self.orders.send(work).expect("the threads live as long as the pool");
    }
}

fn carry_out(file: &File, mut work: Work) -> Completion {
    loop {
        let result = call(file, &mut work);
        match work.advance(result) {
            Outcome::Finished(completion) => return completion,
            Outcome::Again(rest) => work = rest,
        }
    }
}

/// One system call: bytes, or an error number below zero.
fn call(file: &File, work: &mut Work) -> i32 {
    let fd = file.as_raw_fd();
    let iovecs = work.iovecs();
    let (pointer, count, offset) = (iovecs.as_ptr(), iovecs.len() as i32, work.position() as i64);
    // SAFETY (all three): the descriptor is open; the vectors point into buffers that `work` owns, of the
    // lengths they say, and those of a read are nobody else's.
    let result = match &work.kind {
        Kind::Read(_) => unsafe { libc::preadv(fd, pointer, count, offset) },
        Kind::Write { durable, .. } => {
            let flags = if *durable { libc::RWF_DSYNC } else { 0 };
            unsafe { libc::pwritev2(fd, pointer, count, offset, flags) }
        }
        Kind::Sync => unsafe { libc::fdatasync(fd) as isize },
    };
    if result < 0 {
        -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
    } else {
        i32::try_from(result).expect("orders are shorter than 2 GiB")
    }
}
