//! Who may touch which blocks of an object: shared for reading, exclusive for changing, in order of arrival.

use std::collections::{BTreeMap, VecDeque};

use proto::Oid;
use proto::object::BlockRange;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub blocks: BlockRange,
    pub exclusive: bool,
}

impl Claim {
    pub const WHOLE: Claim = Claim { blocks: BlockRange { first: 0, count: u32::MAX }, exclusive: true };

    fn conflicts(self, other: Claim) -> bool {
        (self.exclusive || other.exclusive) && self.blocks.overlaps(other.blocks)
    }
}

#[derive(Debug, Default)]
pub(super) struct Locks {
    objects: BTreeMap<Oid, ObjectLocks>,
}

#[derive(Debug, Default)]
struct ObjectLocks {
    held: Vec<(u64, Claim)>,
    waiting: VecDeque<u64>,
}

impl Locks {
    pub fn enqueue(&mut self, oid: Oid, task: u64) {
        self.objects.entry(oid).or_default().waiting.push_back(task);
    }

    /// Grants what can be granted: a task goes ahead of an earlier one only where they do not conflict.
    ///
    /// `claim` is asked anew each time: what a task needs depends on whether its object exists by then.
    pub fn grant(&mut self, oid: Oid, claim: impl Fn(u64) -> Claim) -> Vec<u64> {
        let Some(object) = self.objects.get_mut(&oid) else { return Vec::new() };
        let mut granted = Vec::new();
        let mut passed: Vec<Claim> = Vec::new();
        object.waiting.retain(|task| {
            let wanted = claim(*task);
            let blocked = object.held.iter().any(|(_, held)| held.conflicts(wanted))
                || passed.iter().any(|earlier| earlier.conflicts(wanted));
            if blocked {
                passed.push(wanted);
            } else {
                object.held.push((*task, wanted));
                granted.push(*task);
            }
            blocked
        });
        granted
    }

    pub fn release(&mut self, oid: Oid, task: u64) {
        let Some(object) = self.objects.get_mut(&oid) else { return };
        object.held.retain(|(holder, _)| *holder != task);
        if object.held.is_empty() && object.waiting.is_empty() {
            self.objects.remove(&oid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(first: u32, count: u32, exclusive: bool) -> Claim {
        Claim { blocks: BlockRange::new(first, count), exclusive }
    }

    #[test]
    fn a_change_waits_for_readers_and_later_readers_wait_for_it() {
        let oid = Oid(1);
        let claims = [claim(0, 4, false), claim(2, 1, true), claim(2, 1, false), claim(8, 1, true)];
        let mut locks = Locks::default();
        for task in 0..4 {
            locks.enqueue(oid, task);
        }
        let of = |task: u64| claims[task as usize];
        assert_eq!(locks.grant(oid, of), vec![0, 3]);
        locks.release(oid, 0);
        assert_eq!(locks.grant(oid, of), vec![1]);
        locks.release(oid, 3);
        assert_eq!(locks.grant(oid, of), Vec::<u64>::new());
        locks.release(oid, 1);
        assert_eq!(locks.grant(oid, of), vec![2]);
        locks.release(oid, 2);
        assert!(locks.objects.is_empty());
    }

    #[test]
    fn a_whole_object_excludes_everything() {
        let mut locks = Locks::default();
        locks.enqueue(Oid(1), 1);
        locks.enqueue(Oid(1), 2);
        let of = |task: u64| if task == 1 { Claim::WHOLE } else { claim(500, 1, false) };
        assert_eq!(locks.grant(Oid(1), of), vec![1]);
    }
}
