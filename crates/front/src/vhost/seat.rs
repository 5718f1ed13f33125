//! Whether a guest is connected to a socket, and whether one may be.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

const FREE: u8 = 0;
const TAKEN: u8 = 1;
const CLOSED: u8 = 2;

/// The one place at a socket. Shared by its clones: who serves takes and leaves it, who ends the serving closes it; never both.
#[derive(Clone, Default)]
pub struct Seat(Arc<AtomicU8>);

impl Seat {
    /// False: it is closed, and nobody is to be served any more.
    pub(super) fn take(&self) -> bool {
        self.change(FREE, TAKEN)
    }

    pub(super) fn leave(&self) {
        self.change(TAKEN, FREE);
    }

    /// False: a guest is there.
    pub fn close(&self) -> bool {
        self.change(FREE, CLOSED) || self.0.load(Ordering::Acquire) == CLOSED
    }

    /// It was closed too early.
    pub fn reopen(&self) {
        self.change(CLOSED, FREE);
    }

    pub fn is_taken(&self) -> bool {
        self.0.load(Ordering::Acquire) == TAKEN
    }

    fn change(&self, from: u8, to: u8) -> bool {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_taken_or_closed_and_never_both() {
        let seat = Seat::default();
        let serving = seat.clone();
        assert!(serving.take() && seat.is_taken());
        assert!(!seat.close() && seat.is_taken());
        serving.leave();
        assert!(!seat.is_taken() && seat.close() && seat.close());
        assert!(!serving.take());
        serving.leave();
        assert!(!serving.take(), "still closed");
        seat.reopen();
        assert!(serving.take());
        seat.reopen();
        assert!(seat.is_taken());
    }
}
