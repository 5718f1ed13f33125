//! What is told of an entry: each change once, with who ordered it, and nothing where nothing has changed.

use proto::cluster::{FormatOptions, MemberInfo, Proposal, RepairChange};
use proto::{CopyPolicy, ViewVersion};

use super::*;
use crate::view::fixture::{id, member};

/// A view, and what is told of it. An entry comes every second.
#[derive(Default)]
struct Teller {
    view: View,
    known: Known,
}

impl Teller {
    /// Node 0 has told its own beginning; the others have joined since.
    fn of(nodes: u16) -> Teller {
        let mut teller = Teller::default();
        for n in 0..nodes {
            assert_eq!(
                teller.hear(ClusterEvent::Join(member(n))),
                [News::New { node: id(n), is_gateway: false }]
            );
        }
        let policy = CopyPolicy::Replicated { copies: 3 };
        let format = FormatOptions { ctime: 1, policy, block_size_shift: 22, flags: 0, pg_count: 4 };
        assert_eq!(teller.order(0, Action::Format(format)), [News::Formatted { through: id(0) }]);
        teller
    }

    fn hear(&mut self, event: ClusterEvent) -> Vec<News> {
        let version = ViewVersion(self.view.version().0 + 1);
        let entry = LogEntry { version, time_ns: version.0 * 1_000_000_000, event };
        let applied = self.view.apply(&entry);
        self.known.compare(&entry, &applied, &self.view)
    }

    fn order(&mut self, n: u16, action: Action) -> Vec<News> {
        let incarnation = self.view.incarnation(id(n)).expect("a member that is up");
        self.hear(ClusterEvent::Message { from: id(n), incarnation, proposal: Proposal { id: 1, action } })
    }

    fn lose(&mut self, nodes: &[u16]) -> Vec<News> {
        let lives = nodes.iter().map(|n| (id(*n), self.view.incarnation(id(*n)).expect("up"))).collect();
        self.hear(ClusterEvent::Leave(lives))
    }
}

fn back(n: u16, away_s: u64, how: Return) -> [News; 1] {
    [News::UpAgain { node: id(n), away: Some(Duration::from_secs(away_s)), how }]
}

#[test]
fn a_node_that_goes_and_comes_back_is_told_of_twice() {
    let mut teller = Teller::of(4);
    assert_eq!(teller.lose(&[3]), [News::Down { nodes: vec![id(3)], is_ordered: false }]);
    assert_eq!(teller.order(1, Action::SetRepair(RepairChange::default())), [], "nothing has changed");
    assert_eq!(teller.hear(ClusterEvent::Join(member(3))), back(3, 2, Return::AsItWas));
    assert_eq!(teller.lose(&[1, 2]), [News::Down { nodes: vec![id(1), id(2)], is_ordered: false }]);
    assert_eq!(teller.hear(ClusterEvent::Leave(vec![(id(1), Incarnation(2))])), [], "known already");
    assert_eq!(
        teller.hear(ClusterEvent::Join(MemberInfo { store_id: 99, ..member(1) })),
        back(1, 2, Return::OtherStore)
    );
    assert_eq!(
        teller.hear(ClusterEvent::Join(member(2))),
        back(2, 3, Return::AsItWas),
        "that another one came says nothing of it"
    );
}

#[test]
fn a_life_that_follows_another_at_once_is_told_of_once() {
    let mut teller = Teller::of(3);
    let again = News::UpAgain { node: id(2), away: None, how: Return::AsItWas };
    assert_eq!(teller.hear(ClusterEvent::Join(member(2))), [again]);
}

#[test]
fn who_is_put_out_by_whom_is_told_and_not_repeated() {
    let mut teller = Teller::of(4);
    let set_out = |node, out| Action::SetOut { node: id(node), out };
    assert_eq!(teller.order(1, set_out(3, true)), [News::PutOut { node: id(3), through: id(1) }]);
    assert_eq!(teller.order(1, set_out(3, true)), [], "is out already");
    teller.lose(&[3]);
    assert_eq!(teller.hear(ClusterEvent::Join(member(3))), back(3, 1, Return::StillOut));
    assert_eq!(teller.order(2, set_out(3, false)), [News::TakenIn { node: id(3), through: id(2) }]);
    teller.lose(&[3]);
    let left = teller.view.version();
    let time_out = Action::TimeOut { node: id(3), left };
    assert_eq!(teller.order(0, time_out.clone()), [News::GivenUp { node: id(3), told_by: id(0) }]);
    assert_eq!(teller.order(1, time_out), [], "another was faster");
    assert_eq!(teller.hear(ClusterEvent::Join(member(3))), back(3, 3, Return::WasGivenUp));
}

#[test]
fn what_operators_order_is_told_where_it_changes_something() {
    let mut teller = Teller::of(3);
    let change = RepairChange {
        enabled: Some(false),
        rate_bytes: Some(7),
        out_time_s: Some(600),
        ..Default::default()
    };
    let through = id(1);
    let told = [
        News::RecoverySwitched { enabled: false, through },
        News::RecoveryBounded { rate_bytes: 7, through },
    ];
    assert_eq!(teller.order(1, Action::SetRepair(change)), told, "600 seconds are what it was before");
    assert_eq!(teller.order(1, Action::SetRepair(change)), []);
    let change = RepairChange { out_time_s: Some(60), scrub_now: true, ..Default::default() };
    assert_eq!(
        teller.order(2, Action::SetRepair(change)),
        [News::OutTimeChanged { out_time_s: 60, through: id(2) }]
    );
    assert_eq!(teller.order(2, Action::ForceRecovery), [], "refused: nothing is stuck");
    assert_eq!(teller.order(2, Action::DiskFailed { store_id: 3 }), [News::DiskFailed { node: id(2) }]);
    assert_eq!(teller.order(2, Action::DiskFailed { store_id: 3 }), []);
    teller.lose(&[2]);
    assert_eq!(teller.hear(ClusterEvent::Join(member(2))), back(2, 1, Return::DiskAgain));
    assert_eq!(teller.order(0, Action::Shutdown), [News::ShutDown { through: id(0) }]);
    assert_eq!(teller.lose(&[1]), [News::Down { nodes: vec![id(1)], is_ordered: true }]);
}

#[test]
fn what_becomes_of_who_is_down_is_told() {
    let mut teller = Teller::of(4);
    let told = |teller: &Teller, node| fate(&[id(node)], &teller.view);
    teller.hear(ClusterEvent::Join(MemberInfo { space_bytes: 0, store_id: 0, ..member(4) }));
    teller.lose(&[3, 4]);
    assert_eq!(told(&teller, 3), "given up after 600s, unless it is back before");
    assert_eq!(told(&teller, 4), "nothing was to be stored there");
    let change = RepairChange { out_time_s: Some(0), ..Default::default() };
    teller.order(0, Action::SetRepair(change));
    assert_eq!(told(&teller, 3), "given up only if an operator says so");
    let change = RepairChange { out_time_s: Some(60), enabled: Some(false), ..Default::default() };
    teller.order(0, Action::SetRepair(change));
    assert_eq!(told(&teller, 3), "not given up while recovery is disabled");
    teller.order(0, Action::SetRepair(RepairChange { enabled: Some(true), ..Default::default() }));
    teller.order(0, Action::SetOut { node: id(3), out: true });
    assert_eq!(told(&teller, 3), "nothing was to be stored there");
    teller.lose(&[2]);
    assert_eq!(told(&teller, 2), "too few others are left for it to be given up by itself");
}

#[test]
fn recovery_by_force_names_who_is_given_up() {
    let mut teller = Teller::of(3);
    teller.lose(&[1, 2]);
    let forced = News::Forced { given_up: vec![id(1), id(2)], through: id(0) };
    assert_eq!(teller.order(0, Action::ForceRecovery), [forced]);
}

#[test]
fn a_store_that_is_not_taken_in_is_told_of() {
    let mut teller = Teller::of(3);
    let copied = MemberInfo { id: id(5), ..member(1) };
    let why = Refusal::StoreInUse { by: id(1) };
    assert_eq!(teller.hear(ClusterEvent::Join(copied)), [News::NotTaken { node: id(5), why }]);
}
