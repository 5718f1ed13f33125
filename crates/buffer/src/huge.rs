//! Large buffers lie in huge pages: a piece of 512 KiB that goes to a disk is pinned and mapped in one step instead of 128 (docs/performance.md
//! has what that gives).
//!
//! Nothing else does. The kernel clears a huge page (2 MiB) at the first touch, in up to 5 ms in which nobody is served: too long for every allocation
//! that happens to be the first in its page, but done 16 times in the life of a process, never twice for one buffer, it is little. So huge pages are switched
//! off for the process (`PR_SET_THP_DISABLE`), and on for the moment in which the arena grows.
//!
//! The arena is given out in units of 128 KiB, first fit, and never given back to the kernel. What does not fit comes from the allocator, and so does
//! what is larger than a page: a few of those would take all of it.

use std::ptr::NonNull;
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use rustix::thread::disable_transparent_huge_pages;

const PAGE_BYTES: usize = 2 << 20;
pub(crate) const UNIT_BYTES: usize = 128 << 10;
const UNITS_OF_PAGE: usize = PAGE_BYTES / UNIT_BYTES;
const PAGES: usize = 16;
const UNITS: usize = PAGES * UNITS_OF_PAGE;

static ARENA: OnceLock<Mutex<Arena>> = OnceLock::new();

/// From now on large buffers lie in huge pages, as far as the kernel has some, and no other memory of this process does, guests' memory over
/// vhost-user included. Best effort: without it all works, with longer tails.
pub fn use_huge_pages() {
    if ARENA.get().is_none()
        && disable_transparent_huge_pages(true).is_ok()
        && let Some(arena) = Arena::reserve()
    {
        // Of two threads that call this at once one comes first, and its arena serves as well.
        let _ = ARENA.set(Mutex::new(arena));
    }
}

/// At least `bytes`, a multiple of [`UNIT_BYTES`], of unspecified but initialised content. `None`: there is no such room.
pub(crate) fn take(bytes: usize) -> Option<NonNull<u8>> {
    ARENA.get()?.lock().unwrap_or_else(PoisonError::into_inner).take(bytes / UNIT_BYTES)
}

/// Takes back what [`take`] gave; false if that is not where it came from.
pub(crate) fn give_back(start: NonNull<u8>, bytes: usize) -> bool {
    let Some(arena) = ARENA.get() else { return false };
    arena.lock().unwrap_or_else(PoisonError::into_inner).give_back(start, bytes / UNIT_BYTES)
}

struct Arena {
    /// Of `PAGES` huge pages, mapped for as long as the process lives.
    start: NonNull<u8>,
    /// Units that have memory.
    ready: usize,
    used: [bool; UNITS],
    /// The kernel has refused memory: no more is asked for.
    is_refused: bool,
}

// SAFETY: the memory belongs to the arena alone, and what is given out of it to one buffer each.
unsafe impl Send for Arena {}

impl Arena {
    /// Addresses only.
    fn reserve() -> Option<Arena> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping, at an address that the kernel chooses. It is never unmapped.
        let map = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                (PAGES + 1) * PAGE_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
            )
        };
        let map = map.ok()?.cast::<u8>();
        let start = NonNull::new(map.wrapping_add(map.align_offset(PAGE_BYTES)))?;
        Some(Arena { start, ready: 0, used: [false; UNITS], is_refused: false })
    }

    fn take(&mut self, units: usize) -> Option<NonNull<u8>> {
        if units == 0 || units > UNITS_OF_PAGE {
            return None;
        }
        let mut at = 0;
        let mut free = 0;
        while free < units {
            if at + free == self.ready {
                self.grow().then_some(())?;
            }
            if self.used[at + free] {
                (at, free) = (at + free + 1, 0);
            } else {
                free += 1;
            }
        }
        self.used[at..at + units].fill(true);
        // SAFETY: `at + units <= ready <= UNITS`, so that lies in the mapping.
        Some(unsafe { self.start.add(at * UNIT_BYTES) })
    }

    fn give_back(&mut self, start: NonNull<u8>, units: usize) -> bool {
        let offset = (start.as_ptr() as usize).wrapping_sub(self.start.as_ptr() as usize);
        if offset >= UNITS * UNIT_BYTES {
            return false;
        }
        let at = offset / UNIT_BYTES;
        debug_assert!(
            offset.is_multiple_of(UNIT_BYTES) && self.used[at..at + units].iter().all(|used| *used)
        );
        self.used[at..at + units].fill(false);
        true
    }

    /// One page more.
    fn grow(&mut self) -> bool {
        if self.is_refused || self.ready == UNITS {
            return false;
        }
        // SAFETY: `ready < UNITS`: it lies in the mapping.
        let page = unsafe { self.start.add(self.ready * UNIT_BYTES) }.as_ptr().cast();
        // What other threads touch meanwhile may become a huge page as well. An error of these calls is no reason to have no memory: the page is then one of
        // small pages, or others get large ones.
        let _ = disable_transparent_huge_pages(false);
        // SAFETY: a page of the mapping in which nothing is stored yet. Where there are no huge pages, small ones do.
        let populated = unsafe {
            let _ = madvise(page, PAGE_BYTES, Advice::LinuxHugepage);
            madvise(page, PAGE_BYTES, Advice::LinuxPopulateWrite)
        };
        if populated == Err(Errno::INVAL) {
            // A kernel before 5.14.
            // SAFETY: as above.
            unsafe { page.cast::<u8>().write_volatile(0) };
        }
        let _ = disable_transparent_huge_pages(true);
        self.is_refused = populated.is_err_and(|error| error != Errno::INVAL);
        if !self.is_refused {
            self.ready += UNITS_OF_PAGE;
        }
        !self.is_refused
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_out_once_and_again_when_it_came_back() {
        let mut arena = Arena::reserve().unwrap();
        assert_eq!(arena.start.as_ptr() as usize % PAGE_BYTES, 0);
        let sizes = [1, 9, 16, 12, 3, 15];
        let mut given: Vec<(NonNull<u8>, usize)> = Vec::new();
        for round in 0..200u8 {
            let units = sizes[usize::from(round) % sizes.len()];
            match arena.take(units) {
                Some(start) => {
                    let bytes = units * UNIT_BYTES;
                    for (other, others) in &given {
                        let (a, b) = (start.as_ptr() as usize, other.as_ptr() as usize);
                        assert!(a + bytes <= b || b + others * UNIT_BYTES <= a, "they overlap");
                    }
                    // SAFETY: it was given to us, in this length.
                    unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), bytes) }.fill(round);
                    given.push((start, units));
                }
                None => {
                    let (start, units) = given.remove(usize::from(round) % given.len());
                    assert!(arena.give_back(start, units));
                }
            }
        }
        assert_eq!(arena.ready, UNITS, "it was used up in between");
        given.drain(..).for_each(|(start, units)| assert!(arena.give_back(start, units)));
        assert_eq!(arena.used, [false; UNITS]);
        (0..PAGES).for_each(|_| assert!(arena.take(UNITS_OF_PAGE).is_some()));
        assert_eq!(arena.take(1), None);
    }

    #[test]
    fn it_grows_as_far_as_it_is_used_and_knows_what_is_its_own() {
        let mut arena = Arena::reserve().unwrap();
        let small = arena.take(1).unwrap();
        assert_eq!(arena.ready, UNITS_OF_PAGE);
        assert_eq!(arena.take(UNITS_OF_PAGE + 1), None, "too much for one");
        let large = arena.take(UNITS_OF_PAGE).unwrap();
        assert_eq!(arena.ready, 2 * UNITS_OF_PAGE, "it spans two pages");
        assert!(arena.give_back(small, 1) && arena.give_back(large, UNITS_OF_PAGE));
        let mut foreign = [0u8; 8];
        assert!(!arena.give_back(NonNull::new(foreign.as_mut_ptr()).unwrap(), 1));
        arena.is_refused = true;
        assert_eq!(arena.take(UNITS_OF_PAGE), Some(arena.start));
        assert!(arena.take(UNITS_OF_PAGE).is_some());
        assert_eq!(arena.take(1), None, "the kernel has no more");
    }
}
