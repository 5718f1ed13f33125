//! The total order of events that every sheep applies, and what its driver promises.
//!
//! A driver (crate `cluster`) delivers [`LogEntry`]s to every member, the same ones in the same order with
//! versions 1, 2, 3, ... without gaps. An entry is delivered only when it is durable (on a majority, or in
//! the driver's own store). The view (crate `node`) is what the entries add up to.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{CopyPolicy, Generation, Incarnation, NodeId, PgId, Since, Vid, ViewVersion, ZoneId};

/// Longest encoded event: what every driver must be able to carry, and what each refuses beyond.
pub const EVENT_BYTES_MAX: usize = 1 << 20;

/// What a member says of itself when it joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    pub id: NodeId,
    pub zone: ZoneId,
    /// Capacity of its disks in bytes; 0 for a gateway, which stores nothing.
    pub space_bytes: u64,
    /// A fixed number of vnodes, where the operator gave one.
    pub fixed_vnodes: Option<u16>,
    /// Identity of its store: drawn at random when the store was formatted. A member that comes back with
    /// another one has lost its data. 0 for a gateway.
    pub store_id: u64,
    /// [`FormatOptions::ctime`] of the cluster that the objects in its store belong to. `None`: there are none.
    pub formatted: Option<u64>,
    /// How often that store has been started, this time included. What is no more than the cluster knows of is an older copy of it. 0: not counted.
    pub starts: u64,
    /// Drawn at random at every start: tells a member its own `Join` from those of its earlier lives.
    pub life: u64,
    /// Second address for peer traffic.
    pub io_addr: Option<NodeId>,
    /// Writes of its clients may be acknowledged before they are durable.
    pub write_back: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterEvent {
    /// A sheep has come up. Its incarnation is the version of this entry; an earlier incarnation of the
    /// same [`NodeId`] is thereby over, whether or not a `Leave` told so.
    Join(MemberInfo),
    /// These lives are over. Several at once where they were noticed at once. Entries for incarnations
    /// that are over already are ignored.
    Leave(Vec<(NodeId, Incarnation)>),
    /// Something a member proposed.
    Message { from: NodeId, incarnation: Incarnation, proposal: Proposal },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    pub version: ViewVersion,
    /// Wall clock of whoever appended the entry, nanoseconds since 1970: the only time that views know.
    pub time_ns: u64,
    pub event: ClusterEvent,
}

impl LogEntry {
    pub fn encode(&self) -> Bytes {
        postcard::to_stdvec(self).expect("entries have no unencodable parts").into()
    }

    pub fn decode(bytes: &[u8]) -> Result<LogEntry, postcard::Error> {
        postcard::from_bytes(bytes)
    }
}

/// How a cluster was formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormatOptions {
    /// `seconds << 32 | nanoseconds`; identifies the cluster.
    pub ctime: u64,
    pub policy: CopyPolicy,
    pub block_size_shift: u8,
    /// Flag bits of spec section 7.3.
    pub flags: u16,
    /// PGs of each pool. A power of two.
    pub pg_count: u32,
}

/// How the cluster repairs itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairOptions {
    /// What a member that is down holds is re-homed after so many seconds. 0: only if an operator says so.
    pub out_time_s: u32,
    /// If not, nothing is copied but what writes wait for.
    pub enabled: bool,
    /// What one sheep fetches at most, in bytes per second, whatever else there is to do. 0: no such bound.
    pub rate_bytes: u64,
    /// Every sheep reads what it holds, again and again, and has mended what has rotted.
    pub scrub: bool,
    /// What one sheep reads for that at most, in bytes per second. 0: as much as takes a week.
    pub scrub_rate_bytes: u64,
    /// How often operators have asked for a pass at once.
    pub scrubs_asked: u64,
}

impl Default for RepairOptions {
    fn default() -> RepairOptions {
        RepairOptions {
            out_time_s: 600,
            enabled: true,
            rate_bytes: 0,
            scrub: true,
            scrub_rate_bytes: 0,
            scrubs_asked: 0,
        }
    }
}

/// What is to be different: options that are not named stay as they are, so two operators do not undo each other's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairChange {
    pub out_time_s: Option<u32>,
    pub enabled: Option<bool>,
    pub rate_bytes: Option<u64>,
    pub scrub: Option<bool>,
    pub scrub_rate_bytes: Option<u64>,
    /// Every sheep begins a scrub now.
    pub scrub_now: bool,
}

impl RepairOptions {
    pub fn change(&mut self, change: &RepairChange) {
        self.out_time_s = change.out_time_s.unwrap_or(self.out_time_s);
        self.enabled = change.enabled.unwrap_or(self.enabled);
        self.rate_bytes = change.rate_bytes.unwrap_or(self.rate_bytes);
        self.scrub = change.scrub.unwrap_or(self.scrub);
        self.scrub_rate_bytes = change.scrub_rate_bytes.unwrap_or(self.scrub_rate_bytes);
        self.scrubs_asked += u64::from(change.scrub_now);
    }
}

/// What a member asks everybody to apply. `id` comes back with the outcome to whoever proposed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    pub id: u64,
    pub action: Action,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    Format(FormatOptions),
    Shutdown,
    CreateVdi {
        name: Vec<u8>,
        size: u64,
        policy: Option<CopyPolicy>,
        block_size_shift: Option<u8>,
    },
    DeleteVdi {
        vid: Vid,
    },
    ResizeVdi {
        vid: Vid,
        size: u64,
    },
    /// An entry of this page of the VDI's block table is about to be written for the first time. The first page needs none: every
    /// VDI may have it.
    EnterPage {
        vid: Vid,
        page: u32,
    },
    /// Freeze these working VDIs at one moment. Those with a session come to rest first: their owners answer `Rested`. The
    /// outcome comes when all have, or when one cannot.
    Snapshot {
        vids: Vec<Vid>,
        tag: Vec<u8>,
    },
    /// The session has carried out and settled everything it was asked and holds what comes: it may be frozen, by the
    /// snapshot that was asked for at this version and by no other.
    Rested {
        vid: Vid,
        generation: Generation,
        snapshot: u64,
    },
    /// This session does not come to rest: no snapshot now.
    GiveUpSnapshot {
        vid: Vid,
        generation: Generation,
    },
    CloneVdi {
        base: Vid,
        name: Vec<u8>,
        size: Option<u64>,
        policy: Option<CopyPolicy>,
    },
    /// Replace the working VDI of a snapshot's name by a new one on top of the snapshot.
    Rollback {
        to: Vid,
        force: bool,
    },
    DescribeVdi {
        vid: Vid,
        tag: Vec<u8>,
        vm_state_size: u64,
        vm_clock_nsec: u64,
    },
    /// Nothing is left of a deleted VDI's objects on any member that is up, and nothing refers to any.
    ForgetVdi {
        vid: Vid,
    },
    SetAttribute {
        name: Vec<u8>,
        key: Vec<u8>,
        value: Vec<u8>,
        exclusive: bool,
    },
    DeleteAttribute {
        name: Vec<u8>,
        key: Vec<u8>,
    },
    /// Take the session of a VDI whose last one is over.
    OpenSession {
        vid: Vid,
        last: Generation,
    },
    /// All writes are settled and the session ends: the next one need not seal.
    CloseSession {
        vid: Vid,
        generation: Generation,
    },
    SetRepair(RepairChange),
    /// A member that left at version `left` has been down for as long as the cluster waits.
    TimeOut {
        node: NodeId,
        left: ViewVersion,
    },
    /// An operator wants nothing to be stored on this member, or no longer that.
    SetOut {
        node: NodeId,
        out: bool,
    },
    /// An operator's last resort: go on with what is there.
    ForceRecovery,
    /// The owner of this session does not answer whoever proposes this: it is to resign in favour of `taker`.
    TakeSession {
        vid: Vid,
        generation: Generation,
        taker: NodeId,
    },
    /// The owner has stopped to serve this session, with whatever is unsettled, for the sake of who wants to take it.
    Resign {
        vid: Vid,
        generation: Generation,
    },
    /// Go on without a copy. Each is a compare-and-set on the PG's `since`.
    DropCopies {
        node: NodeId,
        pgs: Vec<(PgId, Since)>,
    },
    /// From now on every write of these PGs awaits this copy too.
    StartCatchUp {
        pgs: Vec<(PgId, Since)>,
    },
    /// The copy has everything.
    FinishCatchUp {
        pgs: Vec<(PgId, Since)>,
    },
    /// Old clients' locks: `shared` as in LOCK_VDI's type.
    LockVdi {
        vid: Vid,
        shared: bool,
    },
    UnlockVdi {
        vid: Vid,
        shared: bool,
    },
    /// The proposer's disk, this one, has failed: it serves no copy any more until it joins again, with that disk repaired or with another.
    DiskFailed {
        store_id: u64,
    },
    /// The working VDI `old` was never opened and stands on a snapshot of which `new` is a copy: `new` takes the name, the
    /// others are deleted.
    TakePlace {
        old: Vid,
        new: Vid,
    },
    /// A snapshot becomes one of another name.
    Adopt {
        snapshot: Vid,
        name: Vec<u8>,
        tag: Vec<u8>,
    },
    /// For VDIs created later without a policy of their own.
    SetDefaultPolicy {
        policy: CopyPolicy,
    },
}
