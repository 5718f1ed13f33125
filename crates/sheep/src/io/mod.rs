//! One disk, as the data plane uses it: orders in, completions out, buffers owned by the order until then.
//!
//! Two engines with the same meaning: an io_uring of the data plane's own thread, and a small pool of threads where
//! io_uring is forbidden. `SHEEP_IO=threads` (or `uring`) chooses by hand. Neither orders anything: a store that wants
//! one thing after another waits for the first. A `durable` write is on stable storage when it completes; a `Sync`
//! makes all writes durable that have completed before it was submitted.

mod ring;
mod threads;

use std::fs::File;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use buffer::{ALIGNMENT, AlignedBuf};
use bytes::Bytes;
use tokio::sync::mpsc;

/// Longest read or write in one order.
pub const IO_BYTES_MAX: usize = 64 << 20;
/// The kernel takes no more pieces at once (IOV_MAX); a write with more is copied together.
const PIECES_MAX: usize = 1024;

/// An order to a disk. Offsets and lengths are multiples of 4 KiB.
#[derive(Debug)]
pub struct DiskOrder {
    /// Chosen by whoever orders; comes back with the completion.
    pub id: u64,
    pub deed: Deed,
}

#[derive(Debug)]
pub enum Deed {
    Read {
        offset: u64,
        len: usize,
    },
    Write {
        offset: u64,
        data: Vec<Bytes>,
        durable: bool,
    },
    Sync,
    /// See [`store::IoOp::Grow`]. In a thread of its own: the file system may take its time.
    Grow {
        size_bytes: u64,
    },
}

/// An order that has been carried out. Reads bring exactly the bytes asked for.
#[derive(Debug)]
pub struct Completion {
    pub id: u64,
    pub result: io::Result<Bytes>,
}

/// A disk that takes orders. Clones share it. Lives in the data plane's thread.
#[derive(Clone)]
pub struct Disk {
    engine: Engine,
    grower: Rc<Grower>,
}

struct Grower {
    file: Arc<File>,
    completions: mpsc::UnboundedSender<Completion>,
}

#[derive(Clone)]
enum Engine {
    Ring(Rc<ring::Ring>),
    Threads(Rc<threads::Pool>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring where it works.
    Best,
    Ring,
    Threads,
}

impl EngineChoice {
    pub fn from_env() -> Result<EngineChoice, String> {
        match std::env::var("SHEEP_IO").as_deref() {
            Err(_) | Ok("") => Ok(EngineChoice::Best),
            Ok("uring") => Ok(EngineChoice::Ring),
            Ok("threads") => Ok(EngineChoice::Threads),
            Ok(other) => Err(format!("SHEEP_IO is '{other}': must be 'uring' or 'threads'")),
        }
    }
}

impl Disk {
    /// Starts an engine within a `LocalSet`. Completions come on the channel; each order yields one.
    pub fn start(
        file: File,
        choice: EngineChoice,
    ) -> io::Result<(Disk, mpsc::UnboundedReceiver<Completion>)> {
        // Bounded by the orders under way, which whoever gives them bounds.
        let (sender, completions) = mpsc::unbounded_channel();
        let grower = Grower { file: Arc::new(file.try_clone()?), completions: sender.clone() };
        let engine = match choice {
            EngineChoice::Threads => Engine::Threads(Rc::new(threads::Pool::start(file, sender)?)),
            EngineChoice::Ring => Engine::Ring(ring::Ring::start(file, sender)?),
            EngineChoice::Best => {
                let spare = file.try_clone()?;
                match ring::Ring::start(file, sender.clone()) {
                    Ok(ring) => Engine::Ring(ring),
                    Err(error) => {
                        tracing::warn!("no io_uring ({error}): using threads for the disk");
                        Engine::Threads(Rc::new(threads::Pool::start(spare, sender)?))
                    }
                }
            }
        };
        Ok((Disk { engine, grower: Rc::new(grower) }, completions))
    }

    /// Takes an order. It starts with the next [`Disk::submit`].
    pub fn order(&self, order: DiskOrder) {
        if let Deed::Grow { size_bytes } = order.deed {
            return self.grower.grow(order.id, size_bytes);
        }
        let work = Work::new(order);
        match &self.engine {
            Engine::Ring(ring) => ring.order(work),
            Engine::Threads(pool) => pool.order(work),
        }
    }

    /// Starts everything ordered so far: once per turn, since each costs a system call.
    pub fn submit(&self) {
        if let Engine::Ring(ring) = &self.engine {
            ring.submit();
        }
    }
}

impl Grower {
    fn grow(&self, id: u64, size_bytes: u64) {
        let (file, completions) = (self.file.clone(), self.completions.clone());
        let started = std::thread::Builder::new().name("disk-grow".into()).spawn(move || {
            let result = store::grow(&file, size_bytes).map(|()| Bytes::new());
            // Nobody listens any more when the data plane ends.
            let _ = completions.send(Completion { id, result });
        });
        if let Err(error) = started {
            tracing::warn!("no thread to make the disk larger: {error}");
            // Not now, as if the file system had no room: nothing has been touched.
            let _ = self.completions.send(Completion { id, result: Err(io::ErrorKind::StorageFull.into()) });
        }
    }
}

/// An order on its way: its memory, and how far it has come.
struct Work {
    id: u64,
    kind: Kind,
    offset: u64,
    done: usize,
    total: usize,
}

enum Kind {
    Read(AlignedBuf),
    Write { pieces: Vec<Bytes>, durable: bool },
    Sync,
}

/// What becomes of a work after one system call for it.
enum Outcome {
    Finished(Completion),
    /// Cut short or interrupted: go on with the rest.
    Again(Work),
}

impl Work {
    fn new(order: DiskOrder) -> Work {
        let id = order.id;
        let (kind, offset, total) = match order.deed {
            Deed::Read { offset, len } => (Kind::Read(AlignedBuf::with_capacity(len)), offset, len),
            Deed::Write { offset, data, durable } => {
                let total = data.iter().map(Bytes::len).sum();
                (Kind::Write { pieces: aligned(data, total), durable }, offset, total)
            }
            Deed::Sync => (Kind::Sync, 0, 0),
            Deed::Grow { .. } => unreachable!("no work for an engine"),
        };
        assert!(total <= IO_BYTES_MAX, "an order of {total} bytes is too long");
        assert!(
            total.is_multiple_of(ALIGNMENT) && offset.is_multiple_of(ALIGNMENT as u64),
            "whole blocks only"
        );
        Work { id, kind, offset, done: 0, total }
    }

    /// The memory that is still to be read or written. Valid as long as the work is not dropped, moved or not: it
    /// points into buffers that the work owns by reference.
    fn iovecs(&mut self) -> Vec<libc::iovec> {
        let mut skip = self.done;
        let mut iovecs = Vec::new();
        let mut push = |start: *mut u8, len: usize| {
            let skipped = skip.min(len);
            skip -= skipped;
            if skipped < len {
                iovecs.push(libc::iovec {
                    iov_base: start.wrapping_add(skipped).cast(),
                    iov_len: len - skipped,
                });
            }
        };
        match &mut self.kind {
            Kind::Read(buffer) => push(buffer.spare_mut().as_mut_ptr().cast(), self.total),
            // The kernel only reads from memory that is to be written to a disk.
            Kind::Write { pieces, .. } => {
                pieces.iter().for_each(|piece| push(piece.as_ptr().cast_mut(), piece.len()))
            }
            Kind::Sync => {}
        }
        iovecs
    }

    fn position(&self) -> u64 {
        self.offset + self.done as u64
    }

    /// `result` is what the system call returned: bytes, or an error number below zero.
    fn advance(mut self, result: i32) -> Outcome {
        let outcome = match result {
            r if r == -libc::EINTR || r == -libc::EAGAIN => return Outcome::Again(self),
            r if r < 0 => Err(io::Error::from_raw_os_error(-r)),
            r => {
                self.done += r as usize;
                if self.done < self.total && r > 0 {
                    return Outcome::Again(self);
                }
                if self.done == self.total { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
            }
        };
        let result = outcome.map(|()| match self.kind {
            Kind::Read(mut buffer) => {
                // SAFETY: the kernel has filled `total` bytes from the start of the room, without a gap: each call went on where the one
                // before had ended.
                unsafe { buffer.assume_filled(self.total) };
                buffer.freeze()
            }
            _ => Bytes::new(),
        });
        Outcome::Finished(Completion { id: self.id, result })
    }
}

/// The pieces as direct I/O can take them: themselves, or one copy of all.
fn aligned(pieces: Vec<Bytes>, total: usize) -> Vec<Bytes> {
    let fits = |piece: &Bytes| {
        (piece.as_ptr() as usize).is_multiple_of(ALIGNMENT) && piece.len().is_multiple_of(ALIGNMENT)
    };
    if pieces.len() <= PIECES_MAX && pieces.iter().all(fits) {
        return pieces;
    }
    let mut copy = AlignedBuf::with_capacity(total);
    pieces.iter().for_each(|piece| copy.extend_from_slice(piece));
    vec![copy.freeze()]
}

#[cfg(test)]
mod tests;
