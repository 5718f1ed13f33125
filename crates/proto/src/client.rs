//! What a user may ask of a sheep, whichever front end it came through.
//!
//! A front end (NBD, the native protocol, ...) turns its bytes into a [`ClientOp`] and a [`ClientReply`]
//! back into bytes. All of them are answered once, in any order; I/O is held, not failed, while the
//! cluster repairs itself.

use std::net::SocketAddr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::cluster::{FormatOptions, RepairChange, RepairOptions};
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
    /// The same for whoever flushes: may be acknowledged when it is in the memory of all in-sync copies.
    WriteBack {
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
    /// All writes of the VDI that were acknowledged before, to whomever, are durable on all in-sync copies. In write-back mode this does not cover what was
    /// lost meanwhile because the processes of all copies have died.
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
    /// Compares all copies, of these blocks or of all, and mends those that differ or lack something. Answered by `Checked`.
    Check {
        repair: bool,
        part: Option<BlockRange>,
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
    /// `new` becomes the working VDI of `old`'s name, `old` and the snapshot it stands on are deleted, all in one step. The caller
    /// has copied that snapshot, whole, to `new`. Refused if `old` was ever opened, so that it may hold more (`InUse`, `Busy`); then
    /// nothing has changed. Answered by `Vdi`.
    TakePlace {
        old: Vid,
        new: Vid,
    },
    /// A snapshot of one name becomes a snapshot of another that exists, under this tag or none. It must be all that is left of its own
    /// name (else `Busy`). The working VDI of either is not touched, but for the id that its own next snapshot gets. Answered by `Vdi`.
    Adopt {
        snapshot: Vid,
        name: Vec<u8>,
        tag: Vec<u8>,
    },
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
    /// A format takes the defaults.
    SetRepair(RepairChange),
    /// Nothing is to be stored on this member, or no longer that.
    SetOut {
        node: NodeId,
        out: bool,
    },
    /// Go on with the members that are there. Refused (`NotStuck`) if no write waits for others.
    ForceRecovery,
    /// This sheep's own bound on what it begins to fetch. Forgotten when it ends.
    SetRecoveryThrottle(RecoveryThrottle),
    /// Answered by `RecoveryThrottle`.
    RecoveryThrottle,
    /// How this sheep is reached over NBD, and who uses VDIs through it.
    Access,
    /// Where the object's copies should have been at each recorded epoch. Answered by `Track`.
    Track {
        oid: Oid,
    },
    /// The number of copies of VDIs created later.
    SetDefaultPolicy {
        policy: CopyPolicy,
    },
    /// Which copies are missing, and what does not go on for it. Answered by `Health`.
    Health,
    /// How far this sheep has come with reading what it holds, and what it has found. Answered by `Scrub`.
    Scrub,
    /// From now on this sheep serves a VDI, or a snapshot, by a vhost-user socket, also after a restart. `name` as in NBD; `socket`: a
    /// path, or a name in its directory of sockets. Answered by `Attached`: this one.
    Attach {
        name: Vec<u8>,
        socket: Vec<u8>,
    },
    /// No longer. Without `socket` all sockets of that name go. `Busy` while a guest is connected to one. Answered by `Attached`: those.
    Detach {
        name: Vec<u8>,
        socket: Option<Vec<u8>>,
    },
    /// Answered by `Attached`: all.
    Attached,
    /// What would be short of copies if these members were stopped now, as far as this sheep's view tells. Answered by `StopRisk`.
    StopRisk(Vec<NodeId>),
}

/// A VDI or snapshot that a sheep serves by a vhost-user socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// As in NBD.
    pub name: Vec<u8>,
    /// Path of the socket, on the sheep's machine.
    pub socket: Vec<u8>,
    /// Is a guest connected?
    pub in_use: bool,
}

/// A sheep that lacks copies begins to fetch this many objects at most in each interval. Either 0: no such bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryThrottle {
    pub objects_max: u32,
    pub interval_ms: u64,
}

impl RecoveryThrottle {
    pub fn is_on(&self) -> bool {
        self.objects_max > 0 && self.interval_ms > 0
    }
}

/// The payload of a [`ClientOp`], which travels beside its encoding.
impl ClientOp {
    pub fn payload(&self) -> Bytes {
        match self {
            ClientOp::Volume {
                op: VolumeOp::Write { data, .. } | VolumeOp::WriteBack { data, .. }, ..
            }
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
            ClientOp::Volume {
                op: VolumeOp::Write { data, .. } | VolumeOp::WriteBack { data, .. }, ..
            }
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
    NodeStat(Box<NodeStat>),
    Nodes(Vec<NodeId>),
    Digest(u32),
    Checked(CheckReport),
    Access(NodeAccess),
    Track(Track),
    Health(Health),
    RecoveryThrottle(RecoveryThrottle),
    Attached(Vec<Attachment>),
    Scrub(Box<ScrubStatus>),
    StopRisk(StopRisk),
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
    pub repair: RepairOptions,
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

/// A sheep's memory for blocks of snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheUse {
    /// What it takes at most. 0: there is none.
    pub limit_bytes: u64,
    /// Content that is there.
    pub used_bytes: u64,
    /// Blocks of 4 KiB, since the sheep started: given from memory, and asked of a copy.
    pub hits: u64,
    pub misses: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStat {
    pub cache: CacheUse,
    pub size_bytes: u64,
    pub used_bytes: u64,
    /// PGs whose copy here lacks something, and all that should have one here.
    pub pgs_behind: u32,
    pub pgs: u32,
    /// Of the objects that were found to be missing: those that are here by now, and all.
    pub objects_done: u64,
    pub objects_total: u64,
    pub clients: Traffic,
    pub peers: Traffic,
    /// Its disk has no room for another object: writes that need room there are refused.
    pub is_full: bool,
}

/// Damaged blocks that a sheep names; of more it tells the number.
pub const SCRUB_DAMAGE_TOLD_MAX: usize = 64;

/// How a sheep looks after what it holds. Counts are of blocks, since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStatus {
    pub is_enabled: bool,
    /// There is a pass.
    pub is_running: bool,
    /// An operator has asked for it: it is done also if scrubs are disabled, and needs no week.
    pub is_asked: bool,
    /// It still counts what there is.
    pub is_counting: bool,
    /// Bytes per second at most; 0: as many as there is spare time for.
    pub rate_bytes: u64,
    /// Of the present pass, or of the last if there is none. What objects share counts for each of them.
    pub objects_done: u64,
    pub objects_total: u64,
    pub bytes_done: u64,
    pub bytes_total: u64,
    /// That have come to their end.
    pub passes: u64,
    /// How many seconds ago the last pass came to its end. `None`: none has yet.
    pub last_ended_s: Option<u64>,
    /// Without a pass: in how many seconds the next begins.
    pub next_in_s: Option<u64>,
    pub found: u64,
    pub mended: u64,
    /// Not mended so far; and those of them that no copy could give.
    pub damaged: u64,
    pub lost: u64,
    /// Some of those.
    pub told: Vec<DamagedBlocks>,
    /// Blocks that in-sync copies had differently though each had the right checksum, as a check under the owner's lock found; and those of
    /// them that were not made alike so far.
    pub differed: u64,
    pub differing: u64,
    /// Damaged records that were found in the journal of its store. All that they said was in memory and is home; no start of the sheep needs them.
    pub journal_records: u64,
    /// Some of the blocks that copies still have differently.
    pub told_differing: Vec<DifferingBlocks>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferingBlocks {
    /// Name of the VDI that the object was made for; if that was deleted, of one that still refers to it.
    pub vdi: Vec<u8>,
    pub oid: Oid,
    pub blocks: BlockRange,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedBlocks {
    /// Name of the VDI that the object was made for; if that was deleted, of one that still refers to it.
    pub vdi: Vec<u8>,
    pub oid: Oid,
    pub blocks: BlockRange,
    /// No copy could give them.
    pub is_lost: bool,
}

/// What a sheep was asked since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Not answered yet.
    pub active: u64,
    /// All, those below included.
    pub total: u64,
    pub writes: u64,
    pub reads: u64,
    pub removes: u64,
    pub flushes: u64,
    /// Of data.
    pub written_bytes: u64,
    pub read_bytes: u64,
}

/// How well the cluster keeps what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub status: ClusterStatus,
    /// All, those that are down included.
    pub members: Vec<MemberHealth>,
    pub pools: Vec<PoolHealth>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberHealth {
    pub id: NodeId,
    pub zone: ZoneId,
    pub space_bytes: u64,
    pub is_up: bool,
    /// That should have a copy here.
    pub pgs: u32,
    /// That have a copy here with everything.
    pub pgs_in_sync: u32,
    /// Of a member that is down: those that take no writes, or cannot be read, until it is back.
    pub pgs_awaiting: u32,
    /// Of those: PGs of which no complete copy is up.
    pub pgs_unreadable: u32,
    /// Its disk has failed: it is up without one.
    pub disk_failed: bool,
    /// Nothing is to be stored there.
    pub out: Option<Out>,
    /// Of a member that is down: it is given up once it has been away for as long as the cluster waits.
    pub may_time_out: bool,
}

/// Placement groups that would not do without some members, each counted once, by the worst that would become of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRisk {
    /// Those that were looked at: of VDIs that exist, and those that have a copy on one of the members.
    pub pgs: u32,
    /// No complete copy would be up.
    pub lost: Shortfall,
    /// Too few for writes.
    pub held: Shortfall,
    /// Fewer than there are places, or not in as many zones.
    pub short: Shortfall,
    /// As many as there are places, which are fewer than the VDIs want.
    pub few: FewPlaces,
}

/// Placement groups that have no place for each of their copies, as there are too few zones with disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FewPlaces {
    pub pgs: u32,
    /// Places and policy of those that lack most.
    pub copies: u8,
    pub wanted: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortfall {
    pub pgs: u32,
    /// Of those: no copy on one of the members counts, so they are so already.
    pub already: u32,
}

/// Who decided that nothing is to be stored on a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Out {
    /// It was away for too long. It is in again when it comes back.
    ByTime,
    ByOperator,
    /// It was down when an operator had the cluster go on without (`ForceRecovery`). It is in again when it comes back.
    ByForce,
}

/// The PGs of one number of copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolHealth {
    pub policy: CopyPolicy,
    /// What VDIs get that are created without a word about it.
    pub is_default: bool,
    /// Alive, snapshots included.
    pub vdis: u32,
    pub pgs: u32,
    /// Places that a PG has for its copies at least; fewer than the policy says while there are too few zones.
    pub targets_min: u8,
    /// Copies that are complete and can be read, at least.
    pub copies_min: u8,
    /// With fewer such copies than places.
    pub degraded: u32,
    /// With as many, of which some are on their way to another place.
    pub moving: u32,
    /// Whose writes wait.
    pub unwritable: u32,
    /// Whose reads wait too.
    pub unreadable: u32,
}

/// Where an object's copies belonged, epoch by epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Track {
    /// Newest first.
    pub places: Vec<Places>,
    /// Recorded epochs before those, of which it is not known any more, or in which there was nothing to place.
    pub unknown_epochs: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    pub epoch: Epoch,
    pub nodes: Vec<NodeId>,
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
    /// Blocks of which two copies differ, or one lacks the object, though each passes its checksum: no disk is to blame.
    pub at_odds: Vec<BlockRange>,
    /// Blocks no copy of which passes its checksum.
    pub lost: Vec<BlockRange>,
    /// How many copies were compared, and the bytes that were read for it.
    pub copies: u32,
    pub compared_bytes: u64,
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
    #[error("no such member of the cluster")]
    NoNode,
    #[error("the cluster waits for no member")]
    NotStuck,
    /// Every copy failed or is corrupt.
    #[error("I/O error")]
    Io,
    /// A VDI would hide a snapshot from NBD, which calls that `NAME@TAG` or `NAME:ID`.
    #[error("a VDI and a snapshot would have the same name for NBD")]
    NameClash,
}
