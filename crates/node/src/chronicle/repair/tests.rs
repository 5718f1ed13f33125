//! One line when a phase begins and one when it ends, whatever number of PGs it is about.

use proto::cluster::{FormatOptions, Proposal, RepairChange};
use proto::{CopyPolicy, ViewVersion};

use super::*;
use crate::view::fixture::{id, member};

const PGS: usize = 64;

/// What node 2 tells of its repair.
#[derive(Default)]
struct Teller {
    view: View,
    repair: Repair,
    fetched: Fetched,
    now_s: u64,
}

impl Teller {
    fn of_three() -> Teller {
        let mut teller = Teller::default();
        for n in 0..3 {
            assert_eq!(teller.hear(ClusterEvent::Join(member(n))), None);
        }
        let policy = CopyPolicy::Replicated { copies: 3 };
        let format = FormatOptions { ctime: 1, policy, block_size_shift: 22, flags: 0, pg_count: PGS as u32 };
        assert_eq!(teller.order(0, Action::Format(format)), None);
        teller
    }

    fn at(&self) -> (Fetched, Time) {
        (self.fetched, Time(self.now_s * 1_000_000_000))
    }

    fn hear(&mut self, event: ClusterEvent) -> Option<Told> {
        let version = ViewVersion(self.view.version().0 + 1);
        let entry = LogEntry { version, time_ns: 0, event };
        let applied = self.view.apply(&entry);
        if !self.view.is_up(id(2)) {
            return None;
        }
        let at = self.at();
        self.repair.handle_entry(&applied.pgs, &self.view, id(2), &entry, at)
    }

    fn order(&mut self, n: u16, action: Action) -> Option<Told> {
        let incarnation = self.view.incarnation(id(n)).expect("a member that is up");
        self.hear(ClusterEvent::Message { from: id(n), incarnation, proposal: Proposal { id: 1, action } })
    }

    fn lose(&mut self, nodes: &[u16]) -> Option<Told> {
        let lives = nodes.iter().map(|n| (id(*n), self.view.incarnation(id(*n)).expect("up"))).collect();
        self.hear(ClusterEvent::Leave(lives))
    }

    fn switch_recovery(&mut self, enabled: bool) -> Option<Told> {
        self.order(0, Action::SetRepair(RepairChange { enabled: Some(enabled), ..Default::default() }))
    }

    fn come_back(&mut self) -> Option<Told> {
        self.repair = Repair::default();
        let version = ViewVersion(self.view.version().0 + 1);
        let entry = LogEntry { version, time_ns: 0, event: ClusterEvent::Join(member(2)) };
        self.view.apply(&entry);
        let at = self.at();
        self.repair.look_at_all(&self.view, id(2), &entry, at)
    }

    /// Catches up on this many PGs, in as many entries.
    fn catch_up(&mut self, count: usize) -> Vec<Told> {
        let mut told = Vec::new();
        for pg in self.repair.lacking.iter().copied().take(count).collect::<Vec<_>>() {
            let since = self.view.pg(pg).expect("a PG").since;
            told.extend(self.order(2, Action::StartCatchUp { pgs: vec![(pg, since)] }));
            let started = self.view.pg(pg).expect("a PG").catching[0].started;
            self.fetched = Fetched { objects: self.fetched.objects + 1, bytes: self.fetched.bytes + 4096 };
            told.extend(self.order(2, Action::FinishCatchUp { pgs: vec![(pg, started)] }));
        }
        told
    }

    fn look_after(&mut self, seconds: u64) -> Option<Told> {
        self.now_s += seconds;
        let at = self.at();
        if self.repair.is_due(at.1) {
            self.repair.look_again(&self.view, id(2), Vec::new(), at)
        } else {
            None
        }
    }
}

#[test]
fn a_phase_has_a_beginning_and_an_end_and_no_line_for_each_pg() {
    let mut teller = Teller::of_three();
    teller.fetched = Fetched { objects: 1000, bytes: 1000 };
    teller.lose(&[2]);
    assert_eq!(teller.come_back(), Some(Told::Began { pgs: PGS, why: "it has just joined".into() }));
    teller.now_s += 5;
    let fetched = Fetched { objects: 64, bytes: 64 * 4096 };
    let ended = Told::Ended { completed: PGS, dropped: 0, fetched, took: Duration::from_secs(5) };
    assert_eq!(teller.catch_up(PGS), [ended]);
    assert_eq!(teller.look_after(1000), None, "nothing is said of nothing");
}

#[test]
fn progress_is_told_once_a_minute() {
    let mut teller = Teller::of_three();
    teller.lose(&[2]);
    teller.come_back();
    assert_eq!(teller.look_after(59), None);
    assert_eq!(teller.catch_up(10), []);
    let fetched = Fetched { objects: 10, bytes: 40960 };
    let progress = Told::Progress { pgs_left: PGS - 10, fetched, so_far: Duration::from_secs(60) };
    assert_eq!(teller.look_after(1), Some(progress));
    assert_eq!(teller.look_after(59), None);
    let stuck = Told::Waits { pgs: PGS - 10, wait: Wait::Unknown };
    assert_eq!(teller.look_after(1), Some(stuck.clone()));
    assert_eq!((0..59).filter_map(|_| teller.look_after(60)).next(), None, "is known");
    assert_eq!(teller.look_after(60), Some(stuck), "after an hour");
}

#[test]
fn whom_it_waits_for_is_told_at_once() {
    let mut teller = Teller::of_three();
    teller.lose(&[2]);
    assert_eq!(teller.switch_recovery(false), None);
    let (why, wait) = ("it has just joined".to_string(), Wait::RecoveryDisabled);
    assert_eq!(teller.come_back(), Some(Told::BeganWaiting { pgs: PGS, why, wait }));
    assert_eq!(teller.look_after(60), None, "is known");
    assert_eq!(teller.switch_recovery(true), None);
    assert_eq!(teller.switch_recovery(false), Some(Told::Waits { pgs: PGS, wait: Wait::RecoveryDisabled }));
    assert_eq!(teller.switch_recovery(true), None);
    let wait = Wait::Sources(vec![id(0), id(1)]);
    assert_eq!(teller.lose(&[0, 1]), Some(Told::Waits { pgs: PGS, wait }));
}

#[test]
fn what_is_not_to_be_here_any_more_is_given_up() {
    let mut teller = Teller::of_three();
    assert_eq!(
        teller.hear(ClusterEvent::Join(member(3))).map(|told| matches!(told, Told::Began { .. })),
        None
    );
    teller.lose(&[2]);
    assert!(teller.come_back().is_some());
    let pgs = teller.repair.lacking.len();
    let told = teller.order(0, Action::SetOut { node: id(2), out: true });
    let ended = Told::Ended { completed: 0, dropped: pgs, fetched: Fetched::default(), took: Duration::ZERO };
    assert_eq!(told, Some(ended));
    let why = "it is in again".to_string();
    let told = teller.order(0, Action::SetOut { node: id(2), out: false });
    assert!(matches!(told, Some(Told::Began { why: got, .. }) if got == why));
}
