//! Which full disks are to be spoken of: those that have just refused something, and each of them not too often.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::NodeId;

use crate::Time;

/// A disk that stays full, or is so again and again, is spoken of so often.
const AGAIN: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(super) struct FullDisks {
    /// When they were spoken of last.
    told: BTreeMap<NodeId, Time>,
    looked: Time,
}

impl FullDisks {
    /// `refused`: when a disk refused something last. One that did so before the last look may have room since: nobody has asked it.
    pub fn look(&mut self, refused: &BTreeMap<NodeId, Time>, now: Time) -> Vec<NodeId> {
        self.told.retain(|_, told| now.since(*told) < AGAIN);
        let since = std::mem::replace(&mut self.looked, now);
        let fresh = refused.iter().filter(|(_, refused)| **refused >= since).map(|(node, _)| *node);
        let news: Vec<NodeId> = fresh.filter(|node| !self.told.contains_key(node)).collect();
        self.told.extend(news.iter().map(|node| (*node, now)));
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_once_and_not_again_when_it_is_long_ago() {
        let node = NodeId::new([10, 0, 0, 1].into(), 7000);
        let at = |secs: u64| Time(secs * 1_000_000_000);
        let mut full = FullDisks::default();
        let told = |full: &mut FullDisks, secs, refused| {
            !full.look(&BTreeMap::from([(node, at(refused))]), at(secs)).is_empty()
        };
        assert!(told(&mut full, 101, 100));
        assert!((102..86_400).all(|secs| !told(&mut full, secs, 100)), "nobody has asked it since");
        assert!(told(&mut full, 86_400, 86_399), "it is so again");
        let again: Vec<u64> = (86_401..88_000).filter(|secs| told(&mut full, *secs, *secs)).collect();
        assert_eq!(again, [87_000, 87_600], "refusing all the time");
    }
}
