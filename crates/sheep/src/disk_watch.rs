//! Notices a disk that neither does what it is asked for nor says that it cannot.

use std::collections::BTreeSet;

/// What a disk was given and has not answered, looked at once a second.
///
/// Time is counted in looks: a process that was stopped, or a machine that was paused, finds its orders as young as they were.
#[derive(Default)]
pub struct DiskWatch {
    in_flight: BTreeSet<u64>,
    /// An order to make the file larger. It takes what it takes, unless somebody waits for it.
    growing: Option<u64>,
    oldest: Option<u64>,
    /// How often the oldest one has been seen.
    looks: u64,
}

impl DiskWatch {
    /// Ids ascend with time.
    pub fn handle_ordered(&mut self, id: u64) {
        self.in_flight.insert(id);
    }

    pub fn handle_growing(&mut self, id: u64) {
        self.growing = Some(id);
    }

    pub fn handle_completed(&mut self, id: u64) {
        self.in_flight.remove(&id);
        self.growing = self.growing.filter(|growing| *growing != id);
    }

    /// Has an order been there for so many looks? `is_room_awaited`: others wait until the file is larger, so from now on that counts as well.
    pub fn look(&mut self, looks_max: u64, is_room_awaited: bool) -> bool {
        self.in_flight.extend(self.growing.filter(|_| is_room_awaited));
        let oldest = self.in_flight.first().copied();
        self.looks = if oldest.is_some() && oldest == self.oldest { self.looks + 1 } else { 0 };
        self.oldest = oldest;
        self.looks >= looks_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_answers_late_is_not_one_that_hangs() {
        let mut watch = DiskWatch::default();
        for id in 0..100 {
            watch.handle_ordered(id);
            watch.handle_ordered(id + 1000);
            assert!(!watch.look(3, false) && !watch.look(3, false) && !watch.look(3, false));
            watch.handle_completed(id);
        }
        (0..100).for_each(|id| watch.handle_completed(id + 1000));
        assert!((0..10).all(|_| !watch.look(3, false)), "idle");
        watch.handle_ordered(5000);
        assert_eq!([0; 5].map(|_| watch.look(3, false)), [false, false, false, true, true]);
    }

    #[test]
    fn a_file_may_take_its_time_to_grow_until_somebody_waits_for_that() {
        let mut watch = DiskWatch::default();
        watch.handle_growing(1);
        for id in 2..100 {
            watch.handle_ordered(id);
            assert!(!watch.look(3, false), "nobody waits");
            watch.handle_completed(id);
        }
        assert_eq!([0; 5].map(|_| watch.look(3, true)), [false, false, false, true, true]);
        watch.handle_completed(1);
        assert!((0..10).all(|_| !watch.look(3, true)), "it has grown");
    }
}
