//! The cluster driver of the simulation: one durable total order, heard late but in order.
//!
//! It keeps the promises written in crate `cluster`: versions without gaps; a member's `Join` is the last entry of
//! its backlog; a life that ends is told by exactly one `Leave`, lives found ended together by the same; a proposal
//! is lost only if its proposer ends, or is cut off until it is over, before it was taken.

use std::collections::BTreeMap;

use proto::cluster::{ClusterEvent, LogEntry, MemberInfo, Proposal};
use proto::{Incarnation, NodeId, ViewVersion};

/// A sheep that is connected, or was until it was cut off.
#[derive(Debug)]
struct Attached {
    incarnation: Incarnation,
    /// Entries that it has heard.
    heard: usize,
    cut_off: bool,
    /// Proposals made while cut off.
    waiting: Vec<Proposal>,
}

#[derive(Debug, Default)]
pub struct Driver {
    log: Vec<LogEntry>,
    attached: BTreeMap<NodeId, Attached>,
    /// Lives that the log does not know to be over.
    living: BTreeMap<NodeId, Incarnation>,
    /// Lives that ended without a `Leave` so far.
    untold: Vec<(NodeId, Incarnation)>,
}

impl Driver {
    /// A sheep has come up: it will hear everything from the first entry on.
    pub fn join(&mut self, member: MemberInfo, time_ns: u64) -> Incarnation {
        let id = member.id;
        assert!(!self.attached.contains_key(&id), "{id} joins twice");
        let version = self.append(ClusterEvent::Join(member), time_ns);
        let incarnation = Incarnation(version.0);
        self.living.insert(id, incarnation);
        self.attached.insert(id, Attached { incarnation, heard: 0, cut_off: false, waiting: Vec::new() });
        incarnation
    }

    /// A sheep is gone. The log learns of it by [`Driver::tell_leaves`].
    pub fn detach(&mut self, id: NodeId) {
        if let Some(attached) = self.attached.remove(&id) {
            self.end(id, attached.incarnation);
        }
    }

    fn end(&mut self, id: NodeId, incarnation: Incarnation) {
        if self.living.get(&id) == Some(&incarnation) {
            self.living.remove(&id);
            self.untold.push((id, incarnation));
        }
    }

    /// Notices all ended lives at once.
    pub fn tell_leaves(&mut self, time_ns: u64) {
        if !self.untold.is_empty() {
            let lives = std::mem::take(&mut self.untold);
            self.append(ClusterEvent::Leave(lives), time_ns);
        }
    }

    pub fn cut_off(&mut self, id: NodeId) {
        if let Some(attached) = self.attached.get_mut(&id) {
            attached.cut_off = true;
        }
    }

    pub fn is_cut_off(&self, id: NodeId) -> bool {
        self.attached.get(&id).is_some_and(|a| a.cut_off)
    }

    /// The others give a cut-off member up.
    pub fn expel(&mut self, id: NodeId) {
        if let Some(attached) = self.attached.get(&id) {
            self.end(id, attached.incarnation);
        }
    }

    /// Connected again: hears what it missed. What it proposed meanwhile is taken now, if it is still a member.
    pub fn mend(&mut self, id: NodeId, time_ns: u64) {
        let Some(attached) = self.attached.get_mut(&id) else { return };
        attached.cut_off = false;
        for proposal in std::mem::take(&mut attached.waiting) {
            self.take(id, proposal, time_ns);
        }
    }

    /// A proposal reaches the driver.
    pub fn take(&mut self, from: NodeId, proposal: Proposal, time_ns: u64) {
        let Some(attached) = self.attached.get_mut(&from) else { return };
        let incarnation = attached.incarnation;
        if attached.cut_off {
            attached.waiting.push(proposal);
        } else if self.living.get(&from) == Some(&incarnation) {
            self.append(ClusterEvent::Message { from, incarnation, proposal }, time_ns);
        }
    }

    /// Is there an entry that this sheep has not heard and can hear?
    pub fn has_news(&self, id: NodeId) -> bool {
        self.attached.get(&id).is_some_and(|a| !a.cut_off && a.heard < self.log.len())
    }

    pub fn hear(&mut self, id: NodeId) -> Option<LogEntry> {
        if !self.has_news(id) {
            return None;
        }
        let attached = self.attached.get_mut(&id)?;
        attached.heard += 1;
        // As it would come from a driver's store.
        let bytes = self.log[attached.heard - 1].encode();
        Some(LogEntry::decode(&bytes).expect("an entry survives its encoding"))
    }

    /// Has a life ended that nobody was told of yet?
    pub fn has_untold(&self) -> bool {
        !self.untold.is_empty()
    }

    pub fn attached(&self) -> Vec<NodeId> {
        self.attached.keys().copied().collect()
    }

    pub fn version(&self) -> ViewVersion {
        ViewVersion(self.log.len() as u64)
    }

    /// The life in which a sheep is attached.
    pub fn life_of(&self, id: NodeId) -> Option<Incarnation> {
        self.attached.get(&id).map(|attached| attached.incarnation)
    }

    pub fn log(&self) -> &[LogEntry] {
        &self.log
    }

    fn append(&mut self, event: ClusterEvent, time_ns: u64) -> ViewVersion {
        let version = ViewVersion(self.log.len() as u64 + 1);
        self.log.push(LogEntry { version, time_ns, event });
        version
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::ZoneId;
    use proto::cluster::Action;

    fn member(n: u8) -> MemberInfo {
        let id = NodeId { addr: [n; 16], port: 7000 };
        let zone = ZoneId(n.into());
        MemberInfo {
            id,
            zone,
            space_bytes: 1,
            fixed_vnodes: None,
            store_id: n.into(),
            life: n.into(),
            formatted: None,
            starts: 0,
            io_addr: None,
            write_back: false,
        }
    }

    fn events(driver: &mut Driver, id: NodeId) -> Vec<String> {
        let name = |entry: LogEntry| match entry.event {
            ClusterEvent::Join(m) => format!("join {}", m.store_id),
            ClusterEvent::Leave(lives) => format!("leave {}", lives.len()),
            ClusterEvent::Message { proposal, .. } => format!("message {}", proposal.id),
        };
        std::iter::from_fn(|| driver.hear(id)).map(name).collect()
    }

    #[test]
    fn all_hear_the_same_order_and_a_restart_hears_it_from_the_start() {
        let mut driver = Driver::default();
        let [a, b] = [member(1), member(2)];
        driver.join(a.clone(), 0);
        driver.join(b.clone(), 0);
        driver.take(a.id, Proposal { id: 5, action: Action::Shutdown }, 0);
        driver.detach(b.id);
        driver.tell_leaves(0);
        driver.tell_leaves(0);
        driver.join(b.clone(), 0);
        let expect = ["join 1", "join 2", "message 5", "leave 1", "join 2"];
        assert_eq!(events(&mut driver, a.id), expect);
        assert_eq!(events(&mut driver, b.id), expect);
    }

    #[test]
    fn whoever_is_cut_off_hears_and_says_nothing_and_after_its_leave_never_will() {
        let mut driver = Driver::default();
        let [a, b] = [member(1), member(2)];
        driver.join(a.clone(), 0);
        driver.join(b.clone(), 0);
        driver.cut_off(b.id);
        driver.take(b.id, Proposal { id: 1, action: Action::Shutdown }, 0);
        assert_eq!(driver.hear(b.id), None);
        driver.mend(b.id, 0);
        driver.cut_off(b.id);
        driver.take(b.id, Proposal { id: 2, action: Action::Shutdown }, 0);
        driver.expel(b.id);
        driver.tell_leaves(0);
        driver.mend(b.id, 0);
        assert_eq!(events(&mut driver, b.id), ["join 1", "join 2", "message 1", "leave 1"]);
    }
}
