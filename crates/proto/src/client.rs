//! What a user may ask of a sheep, whichever front end it came through.
//!
//! A front end (NBD, the native protocol, ...) turns its bytes into a [`ClientOp`] and a [`ClientReply`]
//! back into bytes. All of them are answered once, in any order; I/O is held, not failed, while the
//! cluster repairs itself.

use std::net::SocketAddr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::cluster::FormatOptions;
use crate::object::BlockRange;
use crate::{CopyPolicy, Epoch, NodeId, Oid, Vid, ZoneId};

/// Longest read or write in one request: what NBD advertises and the native protocol's largest object
/// allows in pieces.
pub const IO_BYTES_MAX: u32 = 32 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientOp {
    /// Byte I/O on a VDI.
    Volume {
        vid: Vid,
        at: Point,
        op: VolumeOp,
    },
    /// Object I/O of native clients, who know the inode and its objects.
    Object {
        oid: Oid,
        op: NativeOp,
    },
    Vdi(VdiOp),
    Cluster(ClusterOp),
}

/// Which state of a VDI byte I/O means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Point {
    /// The working VDI that this one has become: where a snapshot has frozen it, the one that took its place. For whoever
    /// opened a working VDI and goes on using it.
    #[default]
    Head,
    /// This very one, working or frozen. Changes of a frozen one are `ReadOnly`.
    Exact,
}

/// Bytes of a VDI. Offsets and lengths need no alignment; beyond the VDI's size is `OutOfRange`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeOp {
    Read {
        offset: u64,
        len: u32,
    },
    /// Acknowledged when durable on all in-sync copies: FUA adds nothing.
    Write {
        offset: u64,
        #[serde(skip)]
        data: Bytes,
    },
    /// Whole blocks read as zeros afterwards and take no space; the ragged ends are zeroed as well.
    Discard {
        offset: u64,
        len: u64,
    },
    /// Reads as zeros afterwards. `keep_allocated`: the space stays reserved (NBD's NO_HOLE).
    WriteZeroes {
        offset: u64,
        len: u64,
        keep_allocated: bool,
    },
    /// All writes acknowledged before are durable (they always are).
    Flush,
    /// Which parts hold data. Answered by `Extents` that cover a prefix of the range, at least one.
    BlockStatus {
        offset: u64,
        len: u64,
    },
    /// Which parts may differ from `since`, an ancestor. Answered by `Changes` that cover a prefix of the range, at least one.
    /// What is not called changed is the same, byte for byte; what is called changed may be the same.
    Changes {
        since: Vid,
        offset: u64,
        len: u64,
    },
    /// Only growing. `InvalidParameters` for a smaller size.
    Resize {
        size: u64,
    },
}

/// The native protocol's view of a VDI: objects by id (spec section 2.2). Object 0x80... is the inode.
///
/// Most native clients keep a copy of the block table and find out from it which objects to read, create or copy. A client
/// that was shown a *flat* table, in which the VDI itself owns every object, leaves all that to the VDI's owner and
/// has nothing that could become stale; `ReadFlat` and `WriteFlat` are its operations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NativeOp {
    Read {
        offset: u32,
        len: u32,
    },
    Write {
        offset: u32,
        #[serde(skip)]
        data: Bytes,
    },
    /// Creates or replaces the object. `cow_from`: starts from a copy of that object.
    Create {
        offset: u32,
        cow_from: Option<Oid>,
        #[serde(skip)]
        data: Bytes,
    },
    /// Removes a data object and its entry in the block table.
    Discard,
    /// Compares all copies and mends those that differ or lack something. Answered by `Checked`.
    Check {
        repair: bool,
    },
    /// Of the inode: with a flat table. Of a data object: what the VDI has there, zeros in a hole. Of a snapshot's data
    /// object `StaleInode`: the client has not noticed yet that the VDI it had opened goes on under another vid.
    ReadFlat {
        offset: u32,
        len: u32,
    },
    /// Writes to a data object, which is made, or copied from the ancestor that has it, if need be.
    WriteFlat {
        offset: u32,
        #[serde(skip)]
        data: Bytes,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VdiOp {
    Lookup {
        name: Vec<u8>,
        selector: Selector,
    },
    Create {
        name: Vec<u8>,
        size: u64,
        policy: Option<CopyPolicy>,
        block_size_shift: Option<u8>,
    },
    /// Freezes working VDIs at one moment: whatever was acknowledged before is in, nothing acknowledged after the answer is.
    /// Each goes on as a new VDI of the same name. With an empty tag what `Describe` has said is used. Answered by `Vdis`: the new
    /// working VDIs, whose parents are the snapshots, in the order asked.
    Snapshot {
        vids: Vec<Vid>,
        tag: Vec<u8>,
    },
    /// A new working VDI on top of a snapshot. `size`, `policy` `None`: the snapshot's. `InvalidParameters` for a smaller size: what
    /// it hides would come up again when the clone grows. Answered by `Vdi`.
    Clone {
        base: Vid,
        name: Vec<u8>,
        size: Option<u64>,
        policy: Option<CopyPolicy>,
    },
    /// Replaces the working VDI of the snapshot's name by a new one on top of the snapshot. A working VDI that is in use is
    /// refused as `InUse`, unless `force`. Without a working VDI one is made. Answered by `Vdi`.
    Rollback {
        to: Vid,
        force: bool,
    },
    /// What the next snapshot of a working VDI will say of itself, or what a snapshot says from now on.
    Describe {
        vid: Vid,
        tag: Vec<u8>,
        vm_state_size: u64,
        vm_clock_nsec: u64,
    },
    /// An attribute of a VDI's name.
    Attribute {
        name: Vec<u8>,
        key: Vec<u8>,
        op: AttributeOp,
    },
    /// Done when the VDI is gone and with it, on every member that is up, all that nothing else refers to.
    Delete {
        vid: Vid,
    },
    /// How the objects `first ..` of the VDI's table are made up. Answered by `Table`: as many entries as fit, holes left out.
    Table {
        vid: Vid,
        first: u32,
    },
    /// All VDIs that are not deleted, by vid.
    List,
    /// How many objects of the VDI's table are its own, and how many are inherited.
    Usage {
        vid: Vid,
    },
    /// A client starts using the VDI through this sheep (a hint: I/O works without).
    Open {
        vid: Vid,
    },
    /// It stops. When the last one of this sheep has, the session is given back.
    Close {
        vid: Vid,
    },
    Lock {
        vid: Vid,
        shared: bool,
    },
    Unlock {
        vid: Vid,
        shared: bool,
    },
    /// vids in use, those of deleted VDIs included; and those of deleted VDIs alone.
    UsedVids,
    DeletedVids,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttributeOp {
    /// Answered by `Attribute`.
    Get,
    /// `exclusive`: `AttributeExists` if there is one.
    Set {
        value: Vec<u8>,
        exclusive: bool,
    },
    Delete,
}

/// Longest key, and longest value, of an attribute.
pub const ATTRIBUTE_KEY_MAX: usize = 255;
pub const ATTRIBUTE_VALUE_MAX: usize = 65536;

/// Which VDI of a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Selector {
    Working,
    SnapId(u32),
    Tag(Vec<u8>),
    /// Either matches, as in LOCK_VDI and GET_VDI_INFO with both given.
    TagOrSnapId(Vec<u8>, u32),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterOp {
    Info,
    Format(FormatOptions),
    Shutdown,
    /// This sheep alone ends.
    KillNode,
    /// Capacity and use of this sheep.
    NodeStat,
    /// Does this sheep's own store hold the object?
    Holds {
        oid: Oid,
    },
    /// Digest of this sheep's own copy: SHA-1 is not computed; CRC-32C of its block checksums.
    LocalDigest {
        oid: Oid,
    },
    /// Where the object's copies should be, in order.
    Locate {
        oid: Oid,
    },
    /// How this sheep is reached over NBD, and who uses VDIs through it.
    Access,
}

/// The payload of a [`ClientOp`], which travels beside its encoding.
impl ClientOp {
    pub fn payload(&self) -> Bytes {
        match self {
            ClientOp::Volume { op: VolumeOp::Write { data, .. }, .. }
            | ClientOp::Object {
                op:
                    NativeOp::Write { data, .. }
                    | NativeOp::Create { data, .. }
                    | NativeOp::WriteFlat { data, .. },
                ..
            } => data.clone(),
            _ => Bytes::new(),
        }
    }

    /// Puts the payload back after decoding.
    pub fn set_payload(&mut self, payload: Bytes) {
        match self {
            ClientOp::Volume { op: VolumeOp::Write { data, .. }, .. }
            | ClientOp::Object {
                op:
                    NativeOp::Write { data, .. }
                    | NativeOp::Create { data, .. }
                    | NativeOp::WriteFlat { data, .. },
                ..
            } => *data = payload,
            _ => {}
        }
    }
}

pub type ClientResult = Result<ClientReply, ClientError>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientReply {
    Done,
    Data(#[serde(skip)] Bytes),
    Extents(Vec<Extent>),
    Changes(Vec<ChangedExtent>),
    Table(Table),
    Attribute(Vec<u8>),
    Vdi(VdiInfo),
    Vdis(Vec<VdiInfo>),
    Vids(Vec<Vid>),
    Usage { own_objects: u64, shared_objects: u64 },
    Cluster(Box<ClusterInfo>),
    NodeStat(NodeStat),
    Nodes(Vec<NodeId>),
    Digest(u32),
    Checked(CheckReport),
    Access(NodeAccess),
}

impl ClientReply {
    pub fn payload(&self) -> Bytes {
        match self {
            ClientReply::Data(data) => data.clone(),
            _ => Bytes::new(),
        }
    }

    pub fn set_payload(&mut self, payload: Bytes) {
        if let ClientReply::Data(data) = self {
            *data = payload;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    pub len: u64,
    /// Reads as zeros and takes no space.
    pub hole: bool,
}

/// A part of a VDI's block table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Of objects that are not holes: index, the VDI that owns the object, and the one that has what is not the owner's
    /// own yet (`Vid(0)`: the object is complete).
    pub entries: Vec<(u32, Vid, Vid)>,
    /// Where to go on; `None` at the end. Everything between is a hole.
    pub next: Option<u32>,
    /// In whose objects this part of the table is stored: the VDI's own, or an ancestor's.
    pub stored_with: Vec<Vid>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedExtent {
    pub len: u64,
    pub changed: bool,
}

/// Everything the view knows of a VDI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VdiInfo {
    pub vid: Vid,
    pub name: Vec<u8>,
    pub tag: Vec<u8>,
    pub size: u64,
    pub policy: CopyPolicy,
    pub block_size_shift: u8,
    /// Of a snapshot; of a working VDI the one its snapshot will get.
    pub snap_id: u32,
    /// `seconds << 32 | nanoseconds`.
    pub create_time: u64,
    /// 0 for a working VDI.
    pub snap_ctime: u64,
    pub vm_state_size: u64,
    pub vm_clock_nsec: u64,
    /// `Vid(0)` if none.
    pub parent: Vid,
    /// Who serves it now.
    pub owner: Option<NodeId>,
    /// Holders of an old client's lock.
    pub locked_by: Vec<(NodeId, bool)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterStatus {
    WaitForFormat,
    /// Formatted, but too few members are back to serve.
    WaitForJoin,
    Running,
    ShuttingDown,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterInfo {
    pub status: ClusterStatus,
    /// `None` before the first format.
    pub format: Option<FormatOptions>,
    pub epoch: Epoch,
    /// Members that are up, by id.
    pub nodes: Vec<NodeInfo>,
    /// Newest first.
    pub epochs: Vec<EpochInfo>,
    pub this_node: NodeId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    pub id: NodeId,
    pub zone: ZoneId,
    pub vnodes: u16,
    pub space_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochInfo {
    pub epoch: Epoch,
    /// Seconds since 1970.
    pub time: u64,
    pub nodes: Vec<NodeInfo>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStat {
    pub size_bytes: u64,
    pub used_bytes: u64,
    /// PGs this sheep is catching up on, and all it should hold.
    pub pgs_behind: u32,
    pub pgs: u32,
}

/// One sheep as its clients reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAccess {
    /// Path of its NBD socket, on its machine.
    pub nbd_socket: Vec<u8>,
    /// Where else it serves NBD.
    pub nbd_address: Option<SocketAddr>,
    /// In the order in which they came.
    pub guests: Vec<Guest>,
}

/// A client that has a VDI open through this sheep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// What it opened.
    pub vid: Vid,
    /// Of the working VDI that it uses, whatever vid that has by now. Empty for a snapshot.
    pub working: Vec<u8>,
    /// Who it is, as far as the sheep can tell: a program and its process, or an address.
    pub client: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Members whose copy lacked the object while others had it.
    pub missing: Vec<NodeId>,
    /// Members whose copy had other content, with the blocks.
    pub differing: Vec<(NodeId, BlockRange)>,
    /// Were they mended?
    pub repaired: bool,
    /// Blocks no copy of which passes its checksum.
    pub lost: Vec<BlockRange>,
}

/// Why a request was refused. Each front end maps these to its own codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ClientError {
    #[error("no VDI found")]
    NoVdi,
    #[error("failed to find the requested tag or snapshot id")]
    NoTag,
    #[error("VDI exists already")]
    VdiExists,
    #[error("all VDI ids are in use")]
    NoFreeVid,
    #[error("VDI is locked by another client")]
    Locked,
    #[error("VDI is in use through {0}")]
    InUse(NodeId),
    /// Its writes do not come to rest, or another snapshot of it is being taken.
    #[error("VDI is busy; try again")]
    Busy,
    /// A snapshot of that name has the tag already.
    #[error("a snapshot with this tag exists already")]
    TagExists,
    #[error("only a snapshot can be used for this")]
    NotASnapshot,
    #[error("no such attribute")]
    NoAttribute,
    #[error("the attribute exists already")]
    AttributeExists,
    #[error("no such object")]
    NoObject,
    #[error("object belongs to a snapshot and is read-only")]
    ReadOnly,
    /// To be read again before the request is repeated.
    #[error("the client's copy of the inode is out of date")]
    StaleInode,
    #[error("invalid parameters")]
    InvalidParameters,
    #[error("request reaches beyond the end")]
    OutOfRange,
    #[error("no space left in the cluster")]
    NoSpace,
    #[error("waiting for the cluster to be formatted")]
    WaitForFormat,
    #[error("waiting for other nodes to join the cluster")]
    WaitForJoin,
    #[error("shutting down")]
    ShuttingDown,
    /// Not one member stores anything.
    #[error("no storage in this cluster")]
    NoStorage,
    #[error("not supported: {0}")]
    Unsupported(String),
    /// Every copy failed or is corrupt.
    #[error("I/O error")]
    Io,
}
