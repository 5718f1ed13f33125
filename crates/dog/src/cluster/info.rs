//! `dog cluster info [-v] [-d]`: state of the cluster and the history of its membership.
//!
//! ```text
//! Cluster status: running, auto-recovery enabled
//!
//! Cluster created at Sun Nov 22 11:23:11 2026
//!
//! Epoch Time           Version [Host:Port:V-Nodes,,,]
//! 2026-11-22 11:23:11      1 [127.0.0.1:7000:128, 127.0.0.1:7001:128]
//! ```
//!
//! Cinder parses the first line.

use proto::client::{ClusterInfo, ClusterStatus, EpochInfo, NodeInfo};
use proto::sd::{ResultCode, cluster_flag};
use serde_json::json;

use crate::clock::{LocalTime, seconds_of};
use crate::command::{Action, Command, no_values, option};
use crate::context::{Context, Form};
use crate::failure::Outcome;
use crate::getopt::Parsed;
use crate::vdi::create::zone_count;

pub const COMMAND: Command = Command {
    group: "cluster",
    name: "info",
    summary: "show the state of the cluster",
    args: "",
    args_min: 0,
    args_max: 0,
    options: &[
        option::ADDRESS,
        option::PORT,
        option::RAW,
        option::HELP,
        option::VERBOSE,
        option::TIME,
        option::DIFF,
        option::JSON,
    ],
    needs_nodes: false,
    check: no_values,
    action: Action::Run(run),
    notes: "",
};

/// How much is wanted, and in which form.
struct View {
    raw: bool,
    diff: bool,
    /// With `-v`: the name of the object store.
    store: Option<String>,
}

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let mut sheep = context.connect()?;
    let info = sheep.cluster_info()?;
    let store = if context.verbose { Some(sheep.store_name()?) } else { None };
    let text = match context.form {
        Form::Json => render_json(&info),
        form => render(&info, &View { raw: form == Form::Raw, diff: parsed.has("diff"), store }),
    };
    context.print(&text)
}

fn status_text(info: &ClusterInfo) -> String {
    match info.status {
        ClusterStatus::Running if !info.repair.enabled => "running, auto-recovery disabled".to_string(),
        ClusterStatus::WaitForJoin if is_halted(info) => ResultCode::HALT.to_string(),
        ClusterStatus::Running => "running, auto-recovery enabled".to_string(),
        ClusterStatus::WaitForFormat => ResultCode::WAIT_FOR_FORMAT.to_string(),
        ClusterStatus::WaitForJoin => ResultCode::WAIT_FOR_JOIN.to_string(),
        ClusterStatus::ShuttingDown => ResultCode::SHUTDOWN.to_string(),
    }
}

/// A strict cluster writes no fewer copies than it promises, so it needs as many zones.
fn is_halted(info: &ClusterInfo) -> bool {
    info.format.is_some_and(|format| {
        format.flags & cluster_flag::STRICT != 0
            && zone_count(&info.nodes) < usize::from(format.policy.width())
    })
}

fn render(info: &ClusterInfo, view: &View) -> String {
    let label = |label: &str| if view.raw { String::new() } else { format!("{label}: ") };
    let mut text = format!("{}{}\n", label("Cluster status"), status_text(info));
    match &view.store {
        None => text.push('\n'),
        Some(store) => text += &render_store(info, store, label),
    }
    let Some(format) = &info.format else { return text };
    if info.epochs.is_empty() {
        return text;
    }
    if !view.raw {
        let created = LocalTime::from_seconds(seconds_of(format.ctime)).sentence();
        text +=
            &format!("Cluster created at {created}\n\nEpoch Time           Version [Host:Port:V-Nodes,,,]\n");
    }
    for (at, epoch) in info.epochs.iter().enumerate() {
        let list = match view.diff {
            false => render_nodes(&epoch.nodes),
            true => render_changes(epoch, info.epochs.get(at + 1)),
        };
        text += &match view.raw {
            true => format!("{} {} [{list}]\n", epoch.time, epoch.epoch),
            false => {
                format!("{} {:6} [{list}]\n", LocalTime::from_seconds(epoch.time).seconds(), epoch.epoch.0)
            }
        };
    }
    text
}

/// The three lines that take the place of the blank one.
fn render_store(info: &ClusterInfo, store: &str, label: impl Fn(&str) -> String) -> String {
    let mut text = label("Cluster store");
    match &info.format {
        None => text += &format!("{}\n", status_text(info)),
        Some(format) => {
            let strategy = if format.flags & cluster_flag::AUTO_VNODES != 0 { "auto" } else { "fixed" };
            text += &format!("{store} with {} redundancy policy\n", format.policy);
            text += &format!("{}{strategy}\n", label("Cluster vnodes strategy"));
        }
    }
    text + &format!("{}node\n", label("Cluster vnode mode"))
}

fn render_nodes(nodes: &[NodeInfo]) -> String {
    let nodes: Vec<String> = nodes.iter().map(|node| format!("{}:{}", node.id, node.vnodes)).collect();
    nodes.join(", ")
}

/// Who came and who went since the epoch before.
fn render_changes(epoch: &EpochInfo, before: Option<&EpochInfo>) -> String {
    // The original's word for the first epoch, misspelt; programs compare it.
    let Some(before) = before else { return "formated".to_string() };
    let is_in = |node: &NodeInfo, epoch: &EpochInfo| epoch.nodes.iter().any(|other| other.id == node.id);
    let came = epoch.nodes.iter().filter(|node| !is_in(node, before)).map(|node| format!("+{}", node.id));
    let went = before.nodes.iter().filter(|node| !is_in(node, epoch)).map(|node| format!("-{}", node.id));
    came.chain(went).collect::<Vec<_>>().join(", ")
}

fn render_json(info: &ClusterInfo) -> String {
    let nodes = |nodes: &[NodeInfo]| -> Vec<_> {
        let node = |node: &NodeInfo| json!({ "node": node.id.to_string(), "vnodes": node.vnodes, "zone": node.zone.0, "space_bytes": node.space_bytes });
        nodes.iter().map(node).collect()
    };
    let status = match info.status {
        ClusterStatus::WaitForFormat => "wait_for_format",
        ClusterStatus::WaitForJoin => "wait_for_join",
        ClusterStatus::Running => "running",
        ClusterStatus::ShuttingDown => "shutting_down",
    };
    let epochs: Vec<_> = info
        .epochs
        .iter()
        .map(|epoch| json!({ "epoch": epoch.epoch.0, "time_seconds": epoch.time, "nodes": nodes(&epoch.nodes) }))
        .collect();
    let format = info.format.map(|format| {
        json!({
            "created_seconds": seconds_of(format.ctime),
            "copies": format.policy.to_string(),
            "block_size_shift": format.block_size_shift,
            "strict": format.flags & cluster_flag::STRICT != 0,
            "vdi_lock": format.flags & cluster_flag::USE_LOCK != 0,
            "pg_count": format.pg_count,
        })
    });
    let document = json!({
        "status": status,
        "epoch": info.epoch.0,
        "format": format,
        "recovery": {
            "enabled": info.repair.enabled,
            "out_time_seconds": info.repair.out_time_s,
            "bytes_per_second_max": info.repair.rate_bytes,
        },
        "nodes": nodes(&info.nodes),
        "epochs": epochs,
        "this_node": info.this_node.to_string(),
    });
    format!("{document:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::cluster::FormatOptions;
    use proto::{CopyPolicy, Epoch, NodeId, ZoneId};
    use std::net::Ipv4Addr;

    const TIME: u64 = 1_795_347_607;

    fn node(port: u16) -> NodeInfo {
        let id = NodeId::new(Ipv4Addr::LOCALHOST.into(), port);
        NodeInfo { id, zone: ZoneId(0), vnodes: 128, space_bytes: 1 }
    }

    fn info() -> ClusterInfo {
        let epoch = |epoch, ports: &[u16]| EpochInfo {
            epoch: Epoch(epoch),
            time: TIME,
            nodes: ports.iter().map(|port| node(*port)).collect(),
        };
        ClusterInfo {
            repair: Default::default(),
            status: ClusterStatus::Running,
            format: Some(FormatOptions {
                ctime: TIME << 32 | 7,
                policy: CopyPolicy::Replicated { copies: 3 },
                block_size_shift: 22,
                flags: cluster_flag::AUTO_VNODES,
                pg_count: 512,
            }),
            epoch: Epoch(2),
            nodes: vec![node(7000), node(7002)],
            epochs: vec![epoch(2, &[7000, 7002]), epoch(1, &[7000, 7001])],
            this_node: node(7000).id,
        }
    }

    fn view(raw: bool, diff: bool, store: Option<&str>) -> View {
        View { raw, diff, store: store.map(str::to_string) }
    }

    #[test]
    fn a_running_cluster_is_shown_as_in_the_original() {
        let created = LocalTime::from_seconds(TIME).sentence();
        let time = LocalTime::from_seconds(TIME).seconds();
        let table = format!(
            "Cluster created at {created}

Epoch Time           Version [Host:Port:V-Nodes,,,]
{time}      2 [127.0.0.1:7000:128, 127.0.0.1:7002:128]
{time}      1 [127.0.0.1:7000:128, 127.0.0.1:7001:128]
"
        );
        let head = "Cluster status: running, auto-recovery enabled\n";
        assert_eq!(render(&info(), &view(false, false, None)), format!("{head}\n{table}"));
        let details = "Cluster store: plain with 3 redundancy policy\nCluster vnodes strategy: auto\nCluster vnode mode: node\n";
        assert_eq!(render(&info(), &view(false, false, Some("plain"))), format!("{head}{details}{table}"));
    }

    #[test]
    fn the_raw_form_has_no_labels() {
        assert_eq!(
            render(&info(), &view(true, false, None)),
            "running, auto-recovery enabled

1795347607 2 [127.0.0.1:7000:128, 127.0.0.1:7002:128]
1795347607 1 [127.0.0.1:7000:128, 127.0.0.1:7001:128]
"
        );
        assert!(render(&info(), &view(true, false, Some("tree"))).starts_with(
            "running, auto-recovery enabled\ntree with 3 redundancy policy\nauto\nnode\n1795347607 "
        ));
    }

    #[test]
    fn epochs_can_be_shown_as_changes() {
        assert_eq!(
            render(&info(), &view(true, true, None)),
            "running, auto-recovery enabled

1795347607 2 [+127.0.0.1:7002, -127.0.0.1:7001]
1795347607 1 [formated]
"
        );
    }

    #[test]
    fn a_cluster_that_waits_says_for_what() {
        let mut waiting = info();
        (waiting.status, waiting.format, waiting.epochs) = (ClusterStatus::WaitForFormat, None, vec![]);
        assert_eq!(
            render(&waiting, &view(false, false, None)),
            "Cluster status: Waiting for cluster to be formatted\n\n"
        );
        assert_eq!(
            render(&waiting, &view(false, false, Some(""))),
            "Cluster status: Waiting for cluster to be formatted\nCluster store: Waiting for cluster to be \
             formatted\nCluster vnode mode: node\n"
        );
        waiting.status = ClusterStatus::WaitForJoin;
        assert!(
            render(&waiting, &view(false, false, None))
                .starts_with("Cluster status: Waiting for other nodes to join cluster\n")
        );
    }

    #[test]
    fn a_strict_cluster_with_too_few_zones_is_halted() {
        let mut halted = info();
        halted.status = ClusterStatus::WaitForJoin;
        let first_line =
            |info: &ClusterInfo| render(info, &view(true, false, None)).lines().next().unwrap().to_string();
        assert_eq!(first_line(&halted), "Waiting for other nodes to join cluster");
        halted.format.as_mut().unwrap().flags |= cluster_flag::STRICT;
        assert_eq!(first_line(&halted), "IO has halted as there are not enough living nodes");
    }
}
