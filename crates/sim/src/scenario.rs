//! What a seed decides before the first event: the cluster, its clients and the faults it will meet.

use std::time::Duration;

use proto::cluster::{FormatOptions, MemberInfo};
use proto::{CopyPolicy, NodeId, ZoneId};

use crate::object_store::StoreKind;
use crate::prng::Rng;

const MS: Duration = Duration::from_millis(1);
/// Any number: keeps the draws for the store apart from all others of a seed.
const SUCCESSION_SALT: u64 = 0x73_7563_6365_7373;
const STORE_SALT: u64 = 0x73_746f_7265;
/// The same for the size of VDIs.
const SIZE_SALT: u64 = 0x7369_7a65;
/// The same for snapshots.
const FOREST_SALT: u64 = 0x66_6f72_6573;

/// A kind of fault that a run may contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    Kill,
    PowerLoss,
    ResetLink,
    CutLink,
    /// A sheep is cut off from the driver, perhaps also from all others.
    CutOff,
    SlowDisk,
    DriftClock,
    /// When a sheep ends, what it has sent may sit in its peers' sockets for a long time, into its next life.
    LateFrames,
    /// An owner dies while a copy catches up, and then whom the copy may have fetched from.
    Succession,
    /// Bits of a block on one sheep's disk flip.
    BitRot,
    /// Some reads of one sheep's disk end with an error.
    ReadError,
    /// A write or sync of one sheep's disk ends with an error; an empty disk takes its place.
    DiskFailure,
}

/// On any kind of store.
pub const FAULT_KINDS: [FaultKind; 8] = [
    FaultKind::Kill,
    FaultKind::PowerLoss,
    FaultKind::ResetLink,
    FaultKind::CutLink,
    FaultKind::CutOff,
    FaultKind::SlowDisk,
    FaultKind::DriftClock,
    FaultKind::LateFrames,
];

/// On the engine only, and at one sheep of a run: at most one copy of a block is bad.
pub const DAMAGE_KINDS: [FaultKind; 3] = [FaultKind::BitRot, FaultKind::ReadError, FaultKind::DiskFailure];

/// A mistake of the shell around the nodes, to show that the checker finds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlantedBug {
    #[default]
    None,
    /// Stores answer changes before they are durable.
    AckBeforeDurable,
    /// Stores forget at a restart which changes may be missing on other copies.
    ForgetUnsettled,
    /// Some changes are answered, but never reach the store.
    SkipWrites,
    /// A sheep that lost its quorum is not told so before the others go on without it.
    NoQuorumLost,
    /// Disks report success of a sync and do nothing.
    DropSyncs,
    /// A snapshot of several VDIs freezes one after another.
    SplitSnapshots,
    /// Sheep are told to keep nothing of deleted VDIs.
    KeepNothing,
    /// Stores answer orders to delete what nobody needs, and keep some of it.
    SkipPurges,
}

#[derive(Clone, Debug)]
pub struct Scenario {
    pub members: Vec<MemberInfo>,
    pub format: FormatOptions,
    pub vdis: usize,
    /// Other VDIs come and go meanwhile.
    pub churn: bool,
    /// VDIs are snapshotted, cloned, rolled back and deleted meanwhile.
    pub forest: bool,
    pub clients: usize,
    pub client_depth: usize,
    pub think_time: Duration,
    pub network_latency: Duration,
    pub disk_latency: Duration,
    pub driver_latency: Duration,
    pub faults: Vec<FaultKind>,
    pub fault_pause: Duration,
    pub busy_time: Duration,
    pub bug: PlantedBug,
    pub store: StoreKind,
    /// Some requests are longer than what the engine writes to its journal.
    pub wide_writes: bool,
    /// VDIs have more objects than one page of a block table has entries.
    pub large: bool,
    /// How often, per I/O, a store begins to bring everything home without need.
    pub checkpoints_permille: u64,
}

impl Scenario {
    pub fn draw(rng: &mut Rng, bug: PlantedBug) -> Scenario {
        let sheep = *rng.pick(&[1usize, 2, 3, 3, 3, 4, 4, 5, 6]);
        let shared_zones = rng.percent(25);
        let members = (0..sheep)
            .map(|n| MemberInfo {
                id: node_id(n),
                zone: ZoneId(if shared_zones { n as u32 / 2 } else { n as u32 } + 1),
                space_bytes: rng.in_range(1..4) << 40,
                fixed_vnodes: None,
                store_id: n as u64 + 1,
                io_addr: None,
                life: 0,
            })
            .collect();
        let copies = *rng.pick(&[1, 2, 2, 3, 3, 3]);
        let mut faults: Vec<FaultKind> = FAULT_KINDS.into_iter().filter(|_| rng.percent(45)).collect();
        let loses_at_crash =
            [PlantedBug::AckBeforeDurable, PlantedBug::ForgetUnsettled, PlantedBug::DropSyncs];
        if loses_at_crash.contains(&bug) && !faults.contains(&FaultKind::PowerLoss) {
            faults.push(FaultKind::PowerLoss);
        }
        if bug == PlantedBug::NoQuorumLost && !faults.contains(&FaultKind::CutOff) {
            faults.push(FaultKind::CutOff);
        }
        Scenario {
            members,
            format: FormatOptions {
                ctime: 1 << 32,
                policy: CopyPolicy::Replicated { copies },
                block_size_shift: *rng.pick(&[20, 22]),
                flags: 0,
                pg_count: 1 << rng.in_range(2..5),
            },
            vdis: rng.in_range(1..4) as usize,
            churn: rng.percent(40),
            forest: false,
            clients: rng.in_range(2..6) as usize,
            client_depth: rng.in_range(1..4) as usize,
            think_time: rng.duration(MS..20 * MS),
            network_latency: rng.duration(MS / 20..2 * MS),
            disk_latency: rng.duration(MS / 20..3 * MS),
            driver_latency: rng.duration(MS / 5..10 * MS),
            faults,
            fault_pause: rng.duration(40 * MS..400 * MS),
            busy_time: rng.duration(800 * MS..2500 * MS),
            bug,
            store: StoreKind::Model,
            wide_writes: false,
            large: false,
            checkpoints_permille: 0,
        }
    }

    /// Whether owners die while copies catch up. Draws from a generator of its own, too.
    pub fn draw_succession(&mut self, seed: u64) {
        // It takes a catcher, an owner, a source and a witness.
        if self.members.len() > 2 && Rng::new(seed ^ SUCCESSION_SALT).percent(40) {
            self.faults.extend([FaultKind::Succession; 3]);
        }
    }

    /// Whether VDIs have more than 2^20 objects. Draws from a generator of its own, too.
    pub fn draw_size(&mut self, seed: u64) {
        self.large = Rng::new(seed ^ SIZE_SALT).percent(12);
    }

    /// What the sheep of a run keep their objects on. Draws from a generator of its own: the rest of a
    /// scenario is the same on any store.
    pub fn draw_store(&mut self, seed: u64, wanted: Option<StoreKind>) {
        let mut rng = Rng::new(seed ^ STORE_SALT);
        let drawn = if rng.percent(40) { StoreKind::Engine } else { StoreKind::Model };
        self.store = match self.bug {
            // The model's own mistake, and the engine's.
            PlantedBug::AckBeforeDurable => StoreKind::Model,
            PlantedBug::DropSyncs => StoreKind::Engine,
            _ => wanted.unwrap_or(drawn),
        };
        if self.store == StoreKind::Engine {
            self.wide_writes = rng.percent(40);
            self.checkpoints_permille = *rng.pick(&[0, 3, 20]);
            let kinds = DAMAGE_KINDS.into_iter().filter(|_| rng.percent(50));
            // Twice each: they often find nothing to damage, or not all well.
            self.faults.extend(kinds.flat_map(|kind| [kind; 2]));
        }
        // What is not home is read from memory, whatever the disk does.
        let reads_matter = [FaultKind::BitRot, FaultKind::ReadError].iter().any(|k| self.faults.contains(k));
        if reads_matter || self.bug == PlantedBug::DropSyncs {
            self.checkpoints_permille = 20;
        }
    }

    /// Whether there are snapshots. Draws from a generator of its own, which it returns for them: a run without them is what it
    /// would be if there never were any.
    pub fn draw_forest(&mut self, seed: u64) -> Rng {
        let mut rng = Rng::new(seed ^ FOREST_SALT);
        let bugs = [PlantedBug::SplitSnapshots, PlantedBug::KeepNothing, PlantedBug::SkipPurges];
        self.forest = rng.percent(50) || bugs.contains(&self.bug);
        if self.forest {
            // A block of a snapshot that rots, or cannot be read when its slot is copied, is read from other copies, but nobody
            // mends it yet.
            self.faults.retain(|kind| ![FaultKind::BitRot, FaultKind::ReadError].contains(kind));
        }
        rng
    }
}

pub fn node_id(n: usize) -> NodeId {
    let mut addr = [0; 16];
    addr[12..].copy_from_slice(&[10, 0, 0, n as u8 + 1]);
    NodeId { addr, port: 7000 }
}
