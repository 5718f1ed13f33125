//! What happens when: events in virtual time, those of one moment in the order in which they were put in.

use std::collections::BTreeMap;
use std::time::Duration;

/// Virtual time of the whole simulation, nanoseconds. Sheep see clocks of their own that drift against it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl Moment {
    pub fn after(self, duration: Duration) -> Moment {
        Moment(self.0 + duration.as_nanos() as u64)
    }
}

/// Milliseconds with three digits.
impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1_000_000, self.0 / 1000 % 1000)
    }
}

#[derive(Debug)]
pub struct EventQueue<E> {
    events: BTreeMap<(Moment, u64), E>,
    put: u64,
    now: Moment,
}

impl<E> Default for EventQueue<E> {
    fn default() -> Self {
        EventQueue { events: BTreeMap::new(), put: 0, now: Moment(0) }
    }
}

impl<E> EventQueue<E> {
    pub fn now(&self) -> Moment {
        self.now
    }

    pub fn put(&mut self, at: Moment, event: E) {
        self.events.insert((at.max(self.now), self.put), event);
        self.put += 1;
    }

    pub fn put_after(&mut self, delay: Duration, event: E) {
        self.put(self.now.after(delay), event);
    }

    /// The next event; time goes on to its moment.
    pub fn pop(&mut self) -> Option<E> {
        let ((at, _), event) = self.events.pop_first()?;
        assert!(at >= self.now, "time ran backwards");
        self.now = at;
        Some(event)
    }

    pub fn next_moment(&self) -> Option<Moment> {
        self.events.first_key_value().map(|((at, _), _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_by_arrival() {
        let mut queue = EventQueue::default();
        queue.put(Moment(5), "later");
        queue.put(Moment(1), "first");
        queue.put(Moment(1), "second");
        assert_eq!(queue.pop(), Some("first"));
        // The past is over: what is put there happens now.
        queue.put(Moment(0), "third");
        assert_eq!([queue.pop(), queue.pop(), queue.pop()], [Some("second"), Some("third"), Some("later")]);
        assert_eq!((queue.now(), queue.pop()), (Moment(5), None));
    }
}
