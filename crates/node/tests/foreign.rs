//! A store that is started with another cluster than its own is left alone: all that is on it would be garbage there.

use node::view::Refusal;
use node::{Effect, GATHERED_MAX, Node, NodeConfig, Time};
use proto::cluster::{Action, ClusterEvent, FormatOptions, LogEntry, MemberInfo, Proposal};
use proto::object::ObjectOp;
use proto::{CopyPolicy, Incarnation, NodeId, ViewVersion, ZoneId};

const ME: NodeId = NodeId { addr: [0; 16], port: 7000 };

fn member() -> MemberInfo {
    MemberInfo {
        id: ME,
        zone: ZoneId(1),
        space_bytes: 1 << 30,
        fixed_vnodes: None,
        store_id: 5,
        formatted: Some(7),
        starts: 0,
        io_addr: None,
        write_back: false,
        life: 9,
    }
}

fn format(ctime: u64) -> Action {
    let policy = CopyPolicy::Replicated { copies: 1 };
    Action::Format(FormatOptions { ctime, policy, block_size_shift: 22, flags: 0, pg_count: 8 })
}

/// Starts with a store of the format 7, in a cluster with these formats. Returns the node and what it asks for within a minute.
fn start(formats: &[u64]) -> (Node, Vec<Effect>) {
    let config = NodeConfig { member: member(), cache_bytes: 0, gathered_max: GATHERED_MAX };
    let mut node = Node::new(config, Vec::new());
    let earlier = ClusterEvent::Join(MemberInfo { life: 1, formatted: None, ..member() });
    let formats = formats.iter().map(|ctime| ClusterEvent::Message {
        from: ME,
        incarnation: Incarnation(1),
        proposal: Proposal { id: 1, action: format(*ctime) },
    });
    let events = [earlier].into_iter().chain(formats).chain([ClusterEvent::Join(member())]);
    for (version, event) in (1..).map(ViewVersion).zip(events) {
        node.handle_log(LogEntry { version, time_ns: 1, event }, Time(1));
    }
    (1..60).for_each(|second| node.handle_timeout(Time(second * 1_000_000_000)));
    let effects = std::iter::from_fn(|| node.poll_effect()).collect();
    (node, effects)
}

#[test]
fn in_a_cluster_that_never_had_its_format_it_stops_and_asks_nothing_of_the_store() {
    for formats in [&[][..], &[8], &[6, 8]] {
        let (node, effects) = start(formats);
        assert!(node.refused() == Some(Refusal::Foreign) && !node.is_member(), "{formats:?}");
        assert!(matches!(effects[..], [Effect::Stop]), "{effects:?}");
    }
}

#[test]
fn in_its_own_it_goes_on_and_what_an_earlier_format_left_is_removed() {
    for formats in [&[7][..], &[6, 7], &[7, 8]] {
        let (node, effects) = start(formats);
        assert!(node.is_member() && node.refused().is_none(), "{formats:?}");
        let lists = |e: &Effect| matches!(e, Effect::Store { op: ObjectOp::List { .. }, .. });
        assert!(effects.iter().any(lists), "{effects:?}");
    }
}
