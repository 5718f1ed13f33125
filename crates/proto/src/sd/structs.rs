//! Payloads with a layout of their own (spec section 2.5).
//!
//! Each has `encode`, and `decode` that gives `None` for bytes that are too short. Pads and the sender's
//! pointers are written as zeros and ignored on receipt.

use super::{put, u16_at, u32_at, u64_at};
use crate::NodeId;
use crate::inode::until_nul;

pub const NODE_ID_BYTES: usize = 40;
pub const SD_NODE_BYTES: usize = 80;
/// Entries of a node list in [`ClusterInfo`], and most that GET_NODE_LIST can return to old clients.
pub const SD_NODES_MAX: usize = 6144;
pub const CLUSTER_INFO_BYTES: usize = 48 + SD_NODES_MAX * SD_NODE_BYTES;
pub const EPOCH_LOG_HEAD_BYTES: usize = 48;
pub const VDI_STATE_BYTES: usize = 1428;
pub const PARTICIPANTS_MAX: usize = 31;
pub const RECOVERY_STATE_BYTES: usize = 24;
pub const RECOVERY_THROTTLING_BYTES: usize = 24;
pub const MD_INFO_BYTES: usize = 4120;
pub const MD_DISKS_MAX: usize = 64;
pub const SD_MD_INFO_BYTES: usize = 263_688;
pub const SD_STAT_BYTES: usize = 120;

fn put_node_id(out: &mut [u8], id: NodeId, io: Option<NodeId>) {
    put(out, 0, &id.addr);
    put(out, 16, &id.port.to_le_bytes());
    if let Some(io) = io {
        put(out, 18, &io.addr);
        put(out, 34, &io.port.to_le_bytes());
    }
}

fn node_id_at(bytes: &[u8], offset: usize) -> NodeId {
    NodeId { addr: bytes[offset..offset + 16].try_into().unwrap(), port: u16_at(bytes, offset + 16) }
}

/// Where a sheep is reached: its address and, if `io`, a second one for traffic between sheep.
pub fn encode_node_id(id: NodeId, io: Option<NodeId>) -> [u8; NODE_ID_BYTES] {
    let mut out = [0; NODE_ID_BYTES];
    put_node_id(&mut out, id, io);
    out
}

pub fn decode_node_id(bytes: &[u8]) -> Option<(NodeId, Option<NodeId>)> {
    if bytes.len() < NODE_ID_BYTES {
        return None;
    }
    let io = node_id_at(bytes, 18);
    Some((node_id_at(bytes, 0), (io.port != 0).then_some(io)))
}

/// A member in GET_NODE_LIST, CLUSTER_INFO and STAT_CLUSTER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SdNode {
    pub id: NodeId,
    pub io: Option<NodeId>,
    /// 0 for a gateway.
    pub vnodes: u16,
    pub zone: u32,
    pub space: u64,
}

impl SdNode {
    pub fn encode(&self) -> [u8; SD_NODE_BYTES] {
        let mut out = [0; SD_NODE_BYTES];
        put_node_id(&mut out[24..64], self.id, self.io);
        put(&mut out, 64, &self.vnodes.to_le_bytes());
        put(&mut out, 68, &self.zone.to_le_bytes());
        put(&mut out, 72, &self.space.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<SdNode> {
        if bytes.len() < SD_NODE_BYTES {
            return None;
        }
        let (id, io) = decode_node_id(&bytes[24..64])?;
        Some(SdNode { id, io, vnodes: u16_at(bytes, 64), zone: u32_at(bytes, 68), space: u64_at(bytes, 72) })
    }

    /// All whole entries of a GET_NODE_LIST reply.
    pub fn decode_list(bytes: &[u8]) -> Vec<SdNode> {
        bytes.chunks_exact(SD_NODE_BYTES).filter_map(SdNode::decode).collect()
    }
}

impl From<&crate::client::NodeInfo> for SdNode {
    fn from(node: &crate::client::NodeInfo) -> SdNode {
        SdNode { id: node.id, io: None, vnodes: node.vnodes, zone: node.zone.0, space: node.space_bytes }
    }
}

/// [`ClusterInfo::status`].
pub mod cluster_status {
    pub const OK: u8 = 1;
    pub const WAIT: u8 = 2;
    pub const SHUTDOWN: u8 = 3;
    pub const KILLED: u8 = 4;
}

/// CLUSTER_INFO.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterInfo {
    pub disable_recovery: bool,
    pub epoch: u32,
    pub ctime: u64,
    pub flags: u16,
    pub nr_copies: u8,
    pub copy_policy: u8,
    pub status: u8,
    pub block_size_shift: u8,
    /// At most 15 bytes.
    pub default_store: String,
    /// At most [`SD_NODES_MAX`]; further ones are left out.
    pub nodes: Vec<SdNode>,
}

impl ClusterInfo {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; CLUSTER_INFO_BYTES];
        let nodes = &self.nodes[..self.nodes.len().min(SD_NODES_MAX)];
        out[0] = super::INTERNAL_VERSION;
        out[1] = self.disable_recovery.into();
        put(&mut out, 2, &(nodes.len() as u16).to_le_bytes());
        put(&mut out, 4, &self.epoch.to_le_bytes());
        put(&mut out, 8, &self.ctime.to_le_bytes());
        put(&mut out, 16, &self.flags.to_le_bytes());
        out[18] = self.nr_copies;
        out[19] = self.copy_policy;
        out[20] = self.status;
        out[21] = self.block_size_shift;
        put(&mut out, 25, truncated(&self.default_store, 15));
        for (slot, node) in out[48..].chunks_exact_mut(SD_NODE_BYTES).zip(nodes) {
            slot.copy_from_slice(&node.encode());
        }
        out
    }

    /// Accepts a prefix, for a client with a small buffer; nodes beyond it are missing.
    pub fn decode(bytes: &[u8]) -> Option<ClusterInfo> {
        if bytes.len() < 48 {
            return None;
        }
        let mut nodes = SdNode::decode_list(&bytes[48..]);
        nodes.truncate(u16_at(bytes, 2).into());
        Some(ClusterInfo {
            disable_recovery: bytes[1] != 0,
            epoch: u32_at(bytes, 4),
            ctime: u64_at(bytes, 8),
            flags: u16_at(bytes, 16),
            nr_copies: bytes[18],
            copy_policy: bytes[19],
            status: bytes[20],
            block_size_shift: bytes[21],
            default_store: text(&bytes[25..41]),
            nodes,
        })
    }
}

/// One epoch of STAT_CLUSTER. `ctime` to `drv_name` are filled in the first (newest) one only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochLog {
    pub ctime: u64,
    /// Seconds since 1970.
    pub time: u64,
    pub epoch: u32,
    pub disable_recovery: bool,
    pub nr_copies: u8,
    pub copy_policy: u8,
    pub flags: u16,
    /// At most 15 bytes.
    pub drv_name: String,
    pub nodes: Vec<SdNode>,
}

impl EpochLog {
    /// Bytes of one entry for a client that asked with this `nodes_nr`.
    pub const fn entry_bytes(nodes_nr: u32) -> u64 {
        EPOCH_LOG_HEAD_BYTES as u64 + nodes_nr as u64 * SD_NODE_BYTES as u64
    }

    /// An entry with room for `nodes_nr` nodes; `None` if this epoch has more. With 0 only the head is
    /// given, whatever the number of nodes.
    pub fn encode(&self, nodes_nr: u32) -> Option<Vec<u8>> {
        if nodes_nr != 0 && self.nodes.len() > nodes_nr as usize {
            return None;
        }
        let mut out = vec![0; EpochLog::entry_bytes(nodes_nr) as usize];
        put(&mut out, 0, &self.ctime.to_le_bytes());
        put(&mut out, 8, &self.time.to_le_bytes());
        put(&mut out, 16, &self.epoch.to_le_bytes());
        put(&mut out, 20, &(self.nodes.len() as u32).to_le_bytes());
        out[24] = self.disable_recovery.into();
        out[25] = self.nr_copies;
        out[26] = self.copy_policy;
        put(&mut out, 30, &self.flags.to_le_bytes());
        put(&mut out, 32, truncated(&self.drv_name, 15));
        for (slot, node) in out[EPOCH_LOG_HEAD_BYTES..].chunks_exact_mut(SD_NODE_BYTES).zip(&self.nodes) {
            slot.copy_from_slice(&node.encode());
        }
        Some(out)
    }

    /// All whole entries of a reply to a request with this `nodes_nr`.
    pub fn decode_list(bytes: &[u8], nodes_nr: u32) -> Vec<EpochLog> {
        let entry = EpochLog::entry_bytes(nodes_nr);
        if entry > bytes.len() as u64 {
            return Vec::new();
        }
        bytes.chunks_exact(entry as usize).map(EpochLog::decode_entry).collect()
    }

    fn decode_entry(bytes: &[u8]) -> EpochLog {
        let mut nodes = SdNode::decode_list(&bytes[EPOCH_LOG_HEAD_BYTES..]);
        nodes.truncate(u32_at(bytes, 20) as usize);
        EpochLog {
            ctime: u64_at(bytes, 0),
            time: u64_at(bytes, 8),
            epoch: u32_at(bytes, 16),
            disable_recovery: bytes[24] != 0,
            nr_copies: bytes[25],
            copy_policy: bytes[26],
            flags: u16_at(bytes, 30),
            drv_name: text(&bytes[32..48]),
            nodes,
        }
    }
}

/// [`VdiState::lock_state`].
pub mod lock_state {
    pub const UNLOCKED: u32 = 1;
    pub const LOCKED: u32 = 2;
    pub const SHARED: u32 = 3;
}

/// [`VdiState::participants`], second half.
pub mod participant_state {
    pub const MODIFIED: u32 = 1;
    pub const SHARED: u32 = 2;
    pub const INVALIDATED: u32 = 3;
}

/// One VDI of GET_VDI_COPIES.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VdiState {
    pub vid: u32,
    pub nr_copies: u8,
    pub snapshot: bool,
    pub deleted: bool,
    pub copy_policy: u8,
    pub block_size_shift: u8,
    pub parent_vid: u32,
    pub lock_state: u32,
    pub lock_owner: Option<NodeId>,
    /// At most [`PARTICIPANTS_MAX`], each with its state; further ones are left out.
    pub participants: Vec<(NodeId, u32)>,
}

impl VdiState {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; VDI_STATE_BYTES];
        put(&mut out, 0, &self.vid.to_le_bytes());
        out[4] = self.nr_copies;
        out[5] = self.snapshot.into();
        out[6] = self.deleted.into();
        out[7] = self.copy_policy;
        out[8] = self.block_size_shift;
        put(&mut out, 12, &self.parent_vid.to_le_bytes());
        put(&mut out, 16, &self.lock_state.to_le_bytes());
        if let Some(owner) = self.lock_owner {
            put_node_id(&mut out[20..60], owner, None);
        }
        let participants = &self.participants[..self.participants.len().min(PARTICIPANTS_MAX)];
        put(&mut out, 60, &(participants.len() as u32).to_le_bytes());
        for (i, (id, state)) in participants.iter().enumerate() {
            put(&mut out, 64 + 4 * i, &state.to_le_bytes());
            put_node_id(&mut out[188 + NODE_ID_BYTES * i..][..NODE_ID_BYTES], *id, None);
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<VdiState> {
        if bytes.len() < VDI_STATE_BYTES {
            return None;
        }
        let owner = node_id_at(bytes, 20);
        let count = (u32_at(bytes, 60) as usize).min(PARTICIPANTS_MAX);
        Some(VdiState {
            vid: u32_at(bytes, 0),
            nr_copies: bytes[4],
            snapshot: bytes[5] != 0,
            deleted: bytes[6] != 0,
            copy_policy: bytes[7],
            block_size_shift: bytes[8],
            parent_vid: u32_at(bytes, 12),
            lock_state: u32_at(bytes, 16),
            lock_owner: (owner.port != 0).then_some(owner),
            participants: (0..count)
                .map(|i| (node_id_at(bytes, 188 + NODE_ID_BYTES * i), u32_at(bytes, 64 + 4 * i)))
                .collect(),
        })
    }

    /// All whole entries of a reply.
    pub fn decode_list(bytes: &[u8]) -> Vec<VdiState> {
        bytes.chunks_exact(VDI_STATE_BYTES).filter_map(VdiState::decode).collect()
    }
}

/// STAT_RECOVERY.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryState {
    pub in_recovery: bool,
    /// 0 preparing, 1 recovering, 2 notifying.
    pub state: u32,
    pub nr_finished: u64,
    pub nr_total: u64,
}

impl RecoveryState {
    pub fn encode(&self) -> [u8; RECOVERY_STATE_BYTES] {
        let mut out = [0; RECOVERY_STATE_BYTES];
        out[0] = self.in_recovery.into();
        put(&mut out, 4, &self.state.to_le_bytes());
        put(&mut out, 8, &self.nr_finished.to_le_bytes());
        put(&mut out, 16, &self.nr_total.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<RecoveryState> {
        (bytes.len() >= RECOVERY_STATE_BYTES).then(|| RecoveryState {
            in_recovery: bytes[0] != 0,
            state: u32_at(bytes, 4),
            nr_finished: u64_at(bytes, 8),
            nr_total: u64_at(bytes, 16),
        })
    }
}

/// GET_RECOVERY, SET_RECOVERY.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryThrottling {
    /// Objects in each interval.
    pub max_exec_count: u32,
    /// Milliseconds.
    pub queue_work_interval: u64,
    pub throttling: bool,
}

impl RecoveryThrottling {
    pub fn encode(&self) -> [u8; RECOVERY_THROTTLING_BYTES] {
        let mut out = [0; RECOVERY_THROTTLING_BYTES];
        put(&mut out, 0, &self.max_exec_count.to_le_bytes());
        put(&mut out, 8, &self.queue_work_interval.to_le_bytes());
        out[16] = self.throttling.into();
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<RecoveryThrottling> {
        (bytes.len() >= RECOVERY_THROTTLING_BYTES).then(|| RecoveryThrottling {
            max_exec_count: u32_at(bytes, 0),
            queue_work_interval: u64_at(bytes, 8),
            throttling: bytes[16] != 0,
        })
    }
}

/// One disk of MD_INFO.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MdInfo {
    pub idx: i32,
    pub free: u64,
    pub used: u64,
    /// At most 4095 bytes.
    pub path: String,
}

/// The reply of MD_INFO: at most [`MD_DISKS_MAX`] disks, further ones are left out.
pub fn encode_md_info(disks: &[MdInfo]) -> Vec<u8> {
    let disks = &disks[..disks.len().min(MD_DISKS_MAX)];
    let mut out = vec![0; SD_MD_INFO_BYTES];
    for (slot, disk) in out.chunks_exact_mut(MD_INFO_BYTES).zip(disks) {
        put(slot, 0, &disk.idx.to_le_bytes());
        put(slot, 8, &disk.free.to_le_bytes());
        put(slot, 16, &disk.used.to_le_bytes());
        put(slot, 24, truncated(&disk.path, 4095));
    }
    put(&mut out, MD_DISKS_MAX * MD_INFO_BYTES, &(disks.len() as i32).to_le_bytes());
    out
}

pub fn decode_md_info(bytes: &[u8]) -> Option<Vec<MdInfo>> {
    if bytes.len() < SD_MD_INFO_BYTES {
        return None;
    }
    let count = (u32_at(bytes, MD_DISKS_MAX * MD_INFO_BYTES) as usize).min(MD_DISKS_MAX);
    let disk = |slot: &[u8]| MdInfo {
        idx: u32_at(slot, 0) as i32,
        free: u64_at(slot, 8),
        used: u64_at(slot, 16),
        path: text(&slot[24..MD_INFO_BYTES]),
    };
    Some(bytes.chunks_exact(MD_INFO_BYTES).take(count).map(disk).collect())
}

/// STAT: what a sheep has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SdStat {
    pub gateway_active: u64,
    pub peer_active: u64,
    pub gateway_total: u64,
    pub peer_total: u64,
    pub gateway_rx_bytes: u64,
    pub gateway_tx_bytes: u64,
    pub peer_rx_bytes: u64,
    pub peer_tx_bytes: u64,
    pub gateway_remove: u64,
    pub gateway_read: u64,
    pub gateway_write: u64,
    pub gateway_flush: u64,
    pub peer_remove: u64,
    pub peer_read: u64,
    pub peer_write: u64,
}

impl SdStat {
    pub fn encode(&self) -> [u8; SD_STAT_BYTES] {
        let values = [
            self.gateway_active,
            self.peer_active,
            self.gateway_total,
            self.peer_total,
            self.gateway_rx_bytes,
            self.gateway_tx_bytes,
            self.peer_rx_bytes,
            self.peer_tx_bytes,
            self.gateway_remove,
            self.gateway_read,
            self.gateway_write,
            self.gateway_flush,
            self.peer_remove,
            self.peer_read,
            self.peer_write,
        ];
        let mut out = [0; SD_STAT_BYTES];
        for (i, value) in values.iter().enumerate() {
            put(&mut out, 8 * i, &value.to_le_bytes());
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<SdStat> {
        if bytes.len() < SD_STAT_BYTES {
            return None;
        }
        let at = |i: usize| u64_at(bytes, 8 * i);
        Some(SdStat {
            gateway_active: at(0),
            peer_active: at(1),
            gateway_total: at(2),
            peer_total: at(3),
            gateway_rx_bytes: at(4),
            gateway_tx_bytes: at(5),
            peer_rx_bytes: at(6),
            peer_tx_bytes: at(7),
            gateway_remove: at(8),
            gateway_read: at(9),
            gateway_write: at(10),
            gateway_flush: at(11),
            peer_remove: at(12),
            peer_read: at(13),
            peer_write: at(14),
        })
    }
}

/// The vids whose bit is set: vid n is bit `n & 7` of byte `n >> 3`.
pub fn encode_vid_bitmap(vids: impl IntoIterator<Item = crate::Vid>) -> Vec<u8> {
    let mut out = vec![0; super::VID_BITMAP_BYTES];
    for vid in vids.into_iter().filter(|vid| vid.is_valid()) {
        out[vid.0 as usize >> 3] |= 1 << (vid.0 & 7);
    }
    out
}

pub fn decode_vid_bitmap(bytes: &[u8]) -> Vec<crate::Vid> {
    let mut vids = Vec::new();
    for (i, byte) in bytes.iter().take(super::VID_BITMAP_BYTES).enumerate().filter(|(_, byte)| **byte != 0) {
        let set = (0..8).filter(|bit| byte >> bit & 1 != 0);
        vids.extend(set.map(|bit| crate::Vid((i as u32) << 3 | bit)));
    }
    vids
}

/// Cut to `max` bytes, so that a NUL follows in a field of `max + 1`.
fn truncated(text: &str, max: usize) -> &[u8] {
    &text.as_bytes()[..text.len().min(max)]
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(until_nul(field)).into_owned()
}
