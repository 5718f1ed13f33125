//! What a seed decides before the first event: the cluster, its clients and the faults it will meet.

use std::time::Duration;

use node::GATHERED_MAX;
use proto::cluster::{FormatOptions, MemberInfo};
use proto::{CopyPolicy, NodeId, ZoneId};

use crate::object_store::{Disk, StoreKind};
use crate::prng::Rng;

const MS: Duration = Duration::from_millis(1);
/// From this many sheep on a request costs so much more events that there are fewer of them.
const LARGE_CLUSTER: usize = 6;
/// The engine's disks: some 1000 slots and 250 maps, of which a sixteenth is held back. Where one sheep keeps everything, and VDIs are large, 14 living
/// ones and 7 of which others needed something had 113 objects, with a map each; most of their slots are shared.
const DISK_BYTES: u64 = 64 << 20;
/// The same where they are to be full.
const SMALL_DISK_BYTES: u64 = 32 << 20;
/// Any number: keeps the draws for the store apart from all others of a seed.
const SUCCESSION_SALT: u64 = 0x73_7563_6365_7373;
const ISOLATION_SALT: u64 = 0x69_736f_6c61_7465;
const STORE_SALT: u64 = 0x73_746f_7265;
/// The same for the size of VDIs.
const SIZE_SALT: u64 = 0x7369_7a65;
/// The same for full disks.
const BALLAST_SALT: u64 = 0x62_616c_6c61_7374;
/// The same for clients that flush.
const WRITE_BACK_SALT: u64 = 0x7772_6974_6562;
/// The same for what gathers.
const GATHERED_SALT: u64 = 0x6761_7468_6572;
/// The same for what is kept of snapshots.
const CACHE_SALT: u64 = 0x63_6163_6865;
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
    /// A sheep and all others do not reach each other for seconds, in one direction or both; all stay members.
    Isolate,
    SlowDisk,
    DriftClock,
    /// When a sheep ends, what it has sent may sit in its peers' sockets for a long time, into its next life.
    LateFrames,
    /// An operator puts a sheep out, and in again later.
    GoOut,
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
pub const FAULT_KINDS: [FaultKind; 9] = [
    FaultKind::Kill,
    FaultKind::PowerLoss,
    FaultKind::ResetLink,
    FaultKind::CutLink,
    FaultKind::CutOff,
    FaultKind::GoOut,
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
    /// Some copies are said to have a change that they do not have yet.
    AckBeforeLastCopy,
    /// Copies say that they have nothing unsettled.
    SkipSeal,
    /// A change is said to be on a copy that does not answer, and only then is the copy dropped.
    ShrinkAfterAck,
    /// Some discards are carried out after what was written to the object next.
    LateDiscards,
    /// Copies leave out some of what was changed while a member was away, and it serves what it had.
    ForgetChanges,
    /// Disks report success of a sync and do nothing.
    DropSyncs,
    /// A snapshot of several VDIs freezes one after another.
    SplitSnapshots,
    /// Sheep are told to keep nothing of deleted VDIs.
    KeepNothing,
    /// Stores answer orders to delete what nobody needs, and keep some of it.
    SkipPurges,
    /// Stores say that they have put content back that they had lost, and do nothing.
    SkipMends,
    /// One sheep says that a change is durable which it has in memory: flushes do not wait for its disk, which is a slow one.
    TakenIsDurable,
    /// A copy that comes back is told that it lacks nothing, and counts at once.
    CountRestarted,
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
    /// Hardly any room is left on the disks.
    pub full_disks: bool,
    /// Clients are answered before their writes are durable, and flush.
    pub write_back: bool,
    /// What sheep may keep of snapshots in memory.
    pub cache_bytes: u64,
    /// Changes that gather before copies are told by number what is settled.
    pub gathered_max: u64,
    /// Sheep that are down for a second are given up.
    pub gives_up: bool,
    /// How often, per I/O, a store begins to bring everything home without need.
    pub checkpoints_permille: u64,
}

impl Scenario {
    pub fn draw(rng: &mut Rng, bug: PlantedBug) -> Scenario {
        let sheep = *rng.pick(&[1usize, 2, 3, 3, 3, 3, 4, 4, 4, 5, 5, 6, 7, 8, 9]);
        let zones = Zones::draw(rng, sheep);
        let members = (0..sheep)
            .map(|n| MemberInfo {
                id: node_id(n),
                zone: zones.of(n),
                space_bytes: rng.in_range(1..4) << 40,
                fixed_vnodes: None,
                store_id: n as u64 + 1,
                formatted: None,
                starts: 0,
                io_addr: None,
                write_back: false,
                life: 0,
            })
            .collect();
        let copies = *rng.pick(&[1, 2, 2, 3, 3, 3, 4]);
        let mut faults: Vec<FaultKind> = FAULT_KINDS.into_iter().filter(|_| rng.percent(45)).collect();
        let loses_at_crash =
            [PlantedBug::AckBeforeDurable, PlantedBug::ForgetUnsettled, PlantedBug::DropSyncs];
        if loses_at_crash.contains(&bug) && !faults.contains(&FaultKind::PowerLoss) {
            faults.push(FaultKind::PowerLoss);
        }
        if bug == PlantedBug::TakenIsDurable || bug == PlantedBug::CountRestarted {
            faults.extend([FaultKind::Kill, FaultKind::PowerLoss]);
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
            clients: rng.in_range(2..if sheep < LARGE_CLUSTER { 6 } else { 4 }) as usize,
            client_depth: rng.in_range(1..4) as usize,
            think_time: rng.duration(MS..20 * MS),
            network_latency: rng.duration(MS / 20..2 * MS),
            disk_latency: rng.duration(MS / 20..3 * MS),
            driver_latency: rng.duration(MS / 5..10 * MS),
            faults,
            fault_pause: rng.duration(40 * MS..400 * MS),
            busy_time: rng.duration(800 * MS..2500 * MS) * busy_percent(sheep) / 100,
            bug,
            store: StoreKind::Model,
            wide_writes: false,
            large: false,
            full_disks: false,
            write_back: false,
            cache_bytes: 0,
            gathered_max: GATHERED_MAX,
            gives_up: rng.percent(20),
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

    /// Whether sheep are isolated: such a run takes long enough for others to lose patience. Draws from a generator of its own, too.
    pub fn draw_isolation(&mut self, seed: u64) {
        let mut rng = Rng::new(seed ^ ISOLATION_SALT);
        if self.members.len() > 1 && rng.percent(15) {
            self.faults.extend([FaultKind::Isolate; 2]);
            self.busy_time += rng.duration(4000 * MS..8000 * MS);
            self.fault_pause *= 3;
            self.think_time *= 4;
        }
    }

    /// Whether VDIs have more than 2^20 objects. Draws from a generator of its own, too.
    pub fn draw_size(&mut self, seed: u64) {
        self.large = Rng::new(seed ^ SIZE_SALT).percent(12);
    }

    /// Whether the disks are full: only the engine's have an end, and to fill many takes long. Draws from a generator of its own, too.
    pub fn draw_full_disks(&mut self, seed: u64) {
        let may = self.store == StoreKind::Engine && self.members.len() < LARGE_CLUSTER;
        self.full_disks = may && Rng::new(seed ^ BALLAST_SALT).percent(20);
        if self.full_disks {
            // Copies are dropped for want of room, whatever has rotted meanwhile: then the only one left may be the damaged one.
            self.faults.retain(|kind| *kind != FaultKind::BitRot);
        }
    }

    /// Whether clients are answered early. Draws from a generator of its own, too.
    pub fn draw_write_back(&mut self, seed: u64) {
        let bugs = [PlantedBug::TakenIsDurable, PlantedBug::CountRestarted];
        self.write_back = Rng::new(seed ^ WRITE_BACK_SALT).percent(30) || bugs.contains(&self.bug);
        if self.bug == PlantedBug::TakenIsDurable {
            // Else it is durable before anything can happen.
            self.disk_latency *= 8;
        }
        self.members.iter_mut().for_each(|member| member.write_back = self.write_back);
    }

    /// Whether copies are soon told by number what is settled, as else after a thousand changes only. Draws from a generator of its own, too.
    pub fn draw_gathered(&mut self, seed: u64) {
        self.gathered_max = *Rng::new(seed ^ GATHERED_SALT).pick(&[GATHERED_MAX, GATHERED_MAX, 16, 2]);
    }

    /// How much of snapshots is kept in memory: nothing, some blocks, or all. Draws from a generator of its own, too.
    pub fn draw_cache(&mut self, seed: u64) {
        self.cache_bytes = *Rng::new(seed ^ CACHE_SALT).pick(&[0, 0, 32 << 10, 16 << 20]);
    }

    pub fn new_disk(&self, store_id: u64) -> Disk {
        let size_bytes = if self.full_disks { SMALL_DISK_BYTES } else { DISK_BYTES };
        Disk::new(self.store, store_id, size_bytes)
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
        rng
    }
}

/// For how much of the usual time clients are busy: what a seed takes must not grow with its cluster.
fn busy_percent(sheep: usize) -> u32 {
    match sheep {
        ..=4 => 100,
        5 => 85,
        _ => 70,
    }
}

/// Which sheep fail together.
#[derive(Clone, Copy, Debug)]
enum Zones {
    /// Each has a zone of its own.
    Own,
    Pairs,
    /// So many zones of about the same size.
    Even(u32),
    /// One zone has half of the sheep, and all others one each.
    Lopsided {
        first: u32,
    },
}

impl Zones {
    fn draw(rng: &mut Rng, sheep: usize) -> Zones {
        match rng.below(20) {
            0..=12 => Zones::Own,
            13..=15 => Zones::Pairs,
            16..=18 => Zones::Even(rng.in_range(2..5) as u32),
            _ => Zones::Lopsided { first: sheep as u32 / 2 },
        }
    }

    fn of(self, n: usize) -> ZoneId {
        let n = n as u32;
        ZoneId(
            1 + match self {
                Zones::Own => n,
                Zones::Pairs => n / 2,
                Zones::Even(count) => n % count,
                Zones::Lopsided { first } => n.saturating_sub(first),
            },
        )
    }
}

pub fn node_id(n: usize) -> NodeId {
    let mut addr = [0; 16];
    addr[12..].copy_from_slice(&[10, 0, 0, n as u8 + 1]);
    NodeId { addr, port: 7000 }
}
