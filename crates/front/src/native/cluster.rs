//! What `dog` asks of a sheep and of the cluster; and the answers to operations that we do not have.

use bytes::Bytes;
use proto::CopyPolicy;
use proto::client::{
    ClientError, ClientOp, ClientReply, ClusterInfo, ClusterOp, ClusterStatus, NodeStat, RecoveryThrottle,
};
use proto::cluster::{FormatOptions, RepairChange};
use proto::inode::{SHIFT_DEFAULT, SHIFT_MAX, SHIFT_MIN, until_nul};
use proto::sd::extension::{ObjectRequest, encode_list};
use proto::sd::header::{
    ClusterDefaultReply, ClusterRequest, HashReply, NodeReply, ObjRequest, RequestVariant,
};
use proto::sd::structs::{
    self, EpochLog, MdInfo, RECOVERY_THROTTLING_BYTES, RecoveryState, RecoveryThrottling, SD_MD_INFO_BYTES,
    SD_NODE_BYTES, SD_STAT_BYTES, SdNode, SdStat, cluster_status, encode_md_info,
};
use proto::sd::{Opcode, RequestHeader, ResultCode, cluster_flag};

use super::desk::Desk;
use super::exchange::{Answer, Step, code, status_code, unexpected};
use super::vdis::{bounded, policy_of};

/// Store names of the original. There is one kind of store now; scripts that name either go on working.
const STORE_NAMES: [&[u8]; 2] = [b"tree", b"plain"];
const STORE_LIST: &[u8] = b"tree plain \0";
/// Copies where MAKE_FS names none.
const COPIES_DEFAULT: u8 = 3;
/// PGs of a pool: even to 1 % at 32 nodes, and a table that is sent in an instant.
const PG_COUNT: u32 = 1024;
/// Longest list of epochs that is answered, whatever room the client has.
const EPOCHS_BYTES_MAX: u64 = 16 << 20;

pub fn start(opcode: Opcode, header: &RequestHeader, payload: Bytes, desk: &Desk) -> Step {
    use Opcode::*;
    let room = header.data_length as usize;
    match opcode {
        GetClusterDefault => Step::with_info(|info| cluster_default(&info)),
        GetNodeList => Step::with_info(move |info| node_list(&info, room)),
        MakeFs => make_fs(&ClusterRequest::decode(&header.variant), &payload),
        Shutdown => Step::call_done(ClientOp::Cluster(ClusterOp::Shutdown)),
        KillNode => Step::call_done(ClientOp::Cluster(ClusterOp::KillNode)),
        ForceRecover => Step::call_done(ClientOp::Cluster(ClusterOp::ForceRecovery)),
        EnableRecover => switch_repair(true),
        DisableRecover => switch_repair(false),
        StatCluster => {
            let nodes_nr = ClusterRequest::decode(&header.variant).nodes_nr;
            Step::with_info(move |info| epochs(&info, room as u64, nodes_nr))
        }
        ClusterInfo => Step::with_info(move |info| cluster_info(&info, room)),
        ClusterInfoEx => Step::with_info(|info| bounded(encode_list(&info))),
        GetStoreList if room >= STORE_LIST.len() => Answer::with_payload(STORE_LIST).into(),
        GetStoreList => Step::refused(ResultCode::BUFFER_SMALL),
        StatSheep => with_node_stat(|stat| store_size(&stat)),
        StatRecovery => with_node_stat(|stat| recovery(&stat)),
        GetRecovery => get_throttle(room),
        SetRecovery => set_throttle(&payload),
        MdInfo => md_info(room, desk.disks_path()),
        Stat => stat(room),
        GetHash => digest(ObjRequest::decode(&header.variant)),
        Exist => exist(ObjRequest::decode(&header.variant)),
        Locate => locate(ObjectRequest::decode(&header.variant)),
        // Nothing is cached: there is nothing to drop.
        DeleteCache | FlushDelCache => Step::once_formatted(|_| Answer::success().into()),
        // Obsolete in the original as well.
        Snapshot | Restore | GetSnapFile | FlushNodes | FlushPeer | GetCacheInfo | CachePurge
        | PreventInodeUpdate | AllowInodeUpdate => Step::refused(ResultCode::INVALID_PARMS),
        // Sheep of ours speak another protocol among themselves; and what is not built yet says so.
        _ => Step::refused(ResultCode::NO_SUPPORT),
    }
}

/// Zeros before the first format.
fn cluster_default(info: &ClusterInfo) -> Step {
    let default = info.format.map_or_else(ClusterDefaultReply::default, |format| ClusterDefaultReply {
        nr_copies: format.policy.width(),
        copy_policy: format.policy.wire(),
        block_size_shift: format.block_size_shift,
    });
    Answer::with_variant(default).into()
}

fn sd_nodes(nodes: &[proto::client::NodeInfo]) -> Vec<SdNode> {
    let mut nodes: Vec<SdNode> = nodes.iter().map(SdNode::from).collect();
    nodes.sort_by_key(|node| node.id);
    nodes
}

fn node_list(info: &ClusterInfo, room: usize) -> Step {
    if info.nodes.len() > room / SD_NODE_BYTES {
        return Step::refused(ResultCode::BUFFER_SMALL);
    }
    let nodes = sd_nodes(&info.nodes);
    let payload: Vec<u8> = nodes.iter().flat_map(SdNode::encode).collect();
    let reply = NodeReply { nr_nodes: nodes.len() as u32, ..NodeReply::default() };
    Answer { payload: payload.into(), ..Answer::with_variant(reply) }.into()
}

fn make_fs(request: &ClusterRequest, payload: &[u8]) -> Step {
    let store = until_nul(payload);
    if !store.is_empty() && !STORE_NAMES.contains(&store) {
        return Step::refused(ResultCode::NO_STORE);
    }
    if request.flags & cluster_flag::DISK_MODE != 0 {
        return Step::refused(ResultCode::NO_SUPPORT);
    }
    let shift = if request.block_size_shift == 0 { SHIFT_DEFAULT } else { request.block_size_shift };
    // Without a time a cluster has no identity.
    let fits = request.ctime != 0
        && request.flags & !cluster_flag::ALL == 0
        && (SHIFT_MIN..=SHIFT_MAX).contains(&shift);
    let (true, Ok(policy)) = (fits, policy_of(request.copies, request.copy_policy)) else {
        return Step::refused(ResultCode::INVALID_PARMS);
    };
    Step::call_done(ClientOp::Cluster(ClusterOp::Format(FormatOptions {
        ctime: request.ctime,
        policy: policy.unwrap_or(CopyPolicy::Replicated { copies: COPIES_DEFAULT }),
        block_size_shift: shift,
        flags: request.flags,
        pg_count: PG_COUNT,
    })))
}

fn switch_repair(enabled: bool) -> Step {
    let change = RepairChange { enabled: Some(enabled), ..RepairChange::default() };
    Step::call_done(ClientOp::Cluster(ClusterOp::SetRepair(change)))
}

/// As many of the newest epochs as fit; the result is the cluster's state.
fn epochs(info: &ClusterInfo, room: u64, nodes_nr: u32) -> Step {
    let count = room.min(EPOCHS_BYTES_MAX) / EpochLog::entry_bytes(nodes_nr);
    let mut payload = Vec::new();
    for (i, epoch) in info.epochs.iter().take(count as usize).enumerate() {
        let head = info.format.filter(|_| i == 0);
        let log = EpochLog {
            ctime: head.map_or(0, |format| format.ctime),
            time: epoch.time,
            epoch: epoch.epoch.0,
            disable_recovery: i == 0 && !info.repair.enabled,
            nr_copies: head.map_or(0, |format| format.policy.width()),
            copy_policy: head.map_or(0, |format| format.policy.wire()),
            flags: head.map_or(0, |format| format.flags),
            drv_name: if head.is_some() { "plain".into() } else { String::new() },
            nodes: sd_nodes(&epoch.nodes),
        };
        match log.encode(nodes_nr) {
            Some(bytes) => payload.extend_from_slice(&bytes),
            None => return Step::refused(ResultCode::BUFFER_SMALL),
        }
    }
    Answer { result: status_code(info.status), ..Answer::with_payload(payload) }.into()
}

/// Cut to the client's room: its fixed part comes first.
fn cluster_info(info: &ClusterInfo, room: usize) -> Step {
    let format = info.format;
    let mut bytes = structs::ClusterInfo {
        disable_recovery: !info.repair.enabled,
        epoch: info.epoch.0,
        ctime: format.map_or(0, |format| format.ctime),
        flags: format.map_or(0, |format| format.flags),
        nr_copies: format.map_or(0, |format| format.policy.width()),
        copy_policy: format.map_or(0, |format| format.policy.wire()),
        status: match info.status {
            ClusterStatus::Running => cluster_status::OK,
            ClusterStatus::WaitForFormat | ClusterStatus::WaitForJoin => cluster_status::WAIT,
            ClusterStatus::ShuttingDown => cluster_status::SHUTDOWN,
        },
        block_size_shift: format.map_or(0, |format| format.block_size_shift),
        default_store: if format.is_some() { "plain".into() } else { String::new() },
        nodes: sd_nodes(&info.nodes),
    }
    .encode();
    bytes.truncate(room);
    Answer::with_payload(bytes).into()
}

fn with_node_stat(then: impl FnOnce(NodeStat) -> Step + 'static) -> Step {
    Step::call_ok(ClientOp::Cluster(ClusterOp::NodeStat), |reply| match reply {
        ClientReply::NodeStat(stat) => then(*stat),
        other => unexpected(&other),
    })
}

fn free_bytes(stat: &NodeStat) -> u64 {
    stat.size_bytes.saturating_sub(stat.used_bytes)
}

fn store_size(stat: &NodeStat) -> Step {
    let reply = NodeReply { nr_nodes: 0, store_size: stat.size_bytes, store_free: free_bytes(stat) };
    Answer::with_variant(reply).into()
}

fn recovery(stat: &NodeStat) -> Step {
    let state = RecoveryState {
        in_recovery: stat.pgs_behind > 0,
        state: u32::from(stat.pgs_behind > 0),
        nr_finished: stat.objects_done,
        nr_total: stat.objects_total,
    };
    Answer::with_payload(state.encode().to_vec()).into()
}

fn get_throttle(room: usize) -> Step {
    if room < RECOVERY_THROTTLING_BYTES {
        return Step::refused(ResultCode::BUFFER_SMALL);
    }
    Step::call_ok(ClientOp::Cluster(ClusterOp::RecoveryThrottle), |reply| match reply {
        ClientReply::RecoveryThrottle(bound) => {
            let throttling = RecoveryThrottling {
                max_exec_count: bound.objects_max,
                queue_work_interval: bound.interval_ms,
                throttling: bound.is_on(),
            };
            Answer::with_payload(throttling.encode().to_vec()).into()
        }
        other => unexpected(&other),
    })
}

/// The numbers count, whatever `throttling` says; one without the other means nothing.
fn set_throttle(payload: &[u8]) -> Step {
    let Some(wanted) = RecoveryThrottling::decode(payload) else {
        return Step::refused(ResultCode::INVALID_PARMS);
    };
    let bound =
        RecoveryThrottle { objects_max: wanted.max_exec_count, interval_ms: wanted.queue_work_interval };
    if !bound.is_on() && bound != RecoveryThrottle::default() {
        return Step::refused(ResultCode::INVALID_PARMS);
    }
    Step::call_done(ClientOp::Cluster(ClusterOp::SetRecoveryThrottle(bound)))
}

/// A sheep has one store, shown as one disk; a gateway has none.
fn md_info(room: usize, path: String) -> Step {
    if room != SD_MD_INFO_BYTES {
        return Step::refused(ResultCode::INVALID_PARMS);
    }
    with_node_stat(|stat| {
        let disk = MdInfo { idx: 0, free: free_bytes(&stat), used: stat.used_bytes, path };
        let disks = if stat.size_bytes == 0 { &[][..] } else { &[disk] };
        Answer::with_payload(encode_md_info(disks)).into()
    })
}

fn stat(room: usize) -> Step {
    Step::once_formatted(move |_| match room {
        0..SD_STAT_BYTES => Step::refused(ResultCode::BUFFER_SMALL),
        _ => with_node_stat(|stat| Answer::with_payload(sd_stat(&stat).encode().to_vec()).into()),
    })
}

fn sd_stat(stat: &NodeStat) -> SdStat {
    let (clients, peers) = (stat.clients, stat.peers);
    SdStat {
        gateway_active: clients.active,
        peer_active: peers.active,
        gateway_total: clients.total,
        peer_total: peers.total,
        gateway_rx_bytes: clients.written_bytes,
        gateway_tx_bytes: clients.read_bytes,
        peer_rx_bytes: peers.written_bytes,
        peer_tx_bytes: peers.read_bytes,
        gateway_remove: clients.removes,
        gateway_read: clients.reads,
        gateway_write: clients.writes,
        gateway_flush: clients.flushes,
        peer_remove: peers.removes,
        peer_read: peers.reads,
        peer_write: peers.writes,
    }
}

fn digest(request: ObjRequest) -> Step {
    Step::call_ok(ClientOp::Cluster(ClusterOp::LocalDigest { oid: request.oid }), |reply| match reply {
        ClientReply::Digest(crc) => {
            let mut digest = [0; 20];
            digest[..4].copy_from_slice(&crc.to_le_bytes());
            Answer::with_variant(HashReply { digest }).into()
        }
        other => unexpected(&other),
    })
}

fn exist(request: ObjRequest) -> Step {
    Step::call(ClientOp::Cluster(ClusterOp::Holds { oid: request.oid }), |result| match result {
        Ok(ClientReply::Done) => Answer::success().into(),
        Ok(other) => unexpected(&other),
        Err(ClientError::NoVdi) => Step::refused(ResultCode::NO_OBJ),
        Err(error) => Step::refused(code(&error)),
    })
}

fn locate(request: ObjectRequest) -> Step {
    Step::call_ok(ClientOp::Cluster(ClusterOp::Locate { oid: request.oid }), |reply| match reply {
        ClientReply::Nodes(nodes) => bounded(encode_list(&nodes)),
        other => unexpected(&other),
    })
}
