//! How the cluster's state and its failures grow with the number of sheep: `sim scale [SHEEP...]`.
//!
//! Two halves for each number. The view as a value: how large it is and how long the entries take that change it. Then a whole cluster in
//! virtual time: an owner dies under load, its VDI is sealed elsewhere, and the dead sheep is put out, so that its copies are made by others. CPU times
//! are this machine's; virtual times are what the latencies below add up to, without any.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use node::view::{Pg, View};
use proto::client::{ClientOp, ClientReply, ClusterOp, Point, VdiOp, VolumeOp};
use proto::cluster::{Action, ClusterEvent, FormatOptions, LogEntry, MemberInfo, Proposal};
use proto::peer::PeerRequest;
use proto::{BLOCK_BYTES, CopyPolicy, Generation, Incarnation, NodeId, Vid, ViewVersion, ZoneId};

use crate::object_store::{Disk, Ending, StoreKind};
use crate::run::Options;
use crate::sheep::Sheep;
use crate::world::{Event, World};

const NETWORK: Duration = Duration::from_micros(100);
const DISK: Duration = Duration::from_micros(200);
const DRIVER: Duration = Duration::from_millis(1);
/// As `dog cluster format` chooses.
const PG_COUNT: u32 = 1024;
const COPIES: u8 = 3;
/// Writes under way when the owner dies.
const IN_FLIGHT: u64 = 32;
const OBJECTS: u64 = 64;
const BLOCK_SIZE_SHIFT: u8 = 22;

/// What one number of sheep costs.
#[derive(Debug)]
pub struct Figures {
    pub sheep: usize,
    pub view_bytes: usize,
    pub view_memory_bytes: usize,
    pub joining: Duration,
    pub leaving: Duration,
    pub putting_out: Duration,
    pub opening_a_session: Duration,
    pub dropping_a_copy: Duration,
    pub table: Duration,
    /// Virtual time from the entry that tells of the owner's death to the first answer through another sheep.
    pub takeover: Duration,
    pub seal_messages: usize,
    pub messages_in_takeover: usize,
    /// What the dead sheep held is made by so many others, from so many.
    pub repair_targets: usize,
    pub repair_sources: usize,
    /// PGs of the busiest one of those that make copies, and of all.
    pub repair_most: usize,
    pub repair_pgs: usize,
}

/// The views first: what they take in memory shows only while nothing has been freed that could be used again.
pub fn measure(numbers: &[usize]) -> Result<Vec<Figures>, String> {
    if let Some(sheep) = numbers.iter().find(|n| !(4..=60_000).contains(*n)) {
        return Err(format!("{sheep} sheep: from 4 to 60000 can be simulated"));
    }
    let mut all: Vec<Figures> = numbers.iter().map(|sheep| measure_view(*sheep)).collect();
    for figures in &mut all {
        measure_cluster(figures.sheep, figures)
            .map_err(|why| format!("with {} sheep: {why}", figures.sheep))?;
    }
    Ok(all)
}

/// Machines of a small cluster are zones, of a large one there are four in each.
fn member(n: usize, sheep: usize, life: u64) -> MemberInfo {
    let zone_sheep = if sheep < 40 { 1 } else { 4 };
    MemberInfo {
        id: node_id(n),
        zone: ZoneId(n as u32 / zone_sheep + 1),
        space_bytes: 4 << 40,
        fixed_vnodes: None,
        store_id: n as u64 + 1,
        formatted: None,
        starts: 0,
        io_addr: None,
        write_back: false,
        life,
    }
}

fn node_id(n: usize) -> NodeId {
    let mut addr = [0; 16];
    addr[12..].copy_from_slice(&[10, 0, ((n + 1) >> 8) as u8, (n + 1) as u8]);
    NodeId { addr, port: 7000 }
}

fn format() -> FormatOptions {
    FormatOptions {
        ctime: 1 << 32,
        policy: CopyPolicy::Replicated { copies: COPIES },
        block_size_shift: BLOCK_SIZE_SHIFT,
        flags: 0,
        pg_count: PG_COUNT,
    }
}

// ---- the view as a value

struct Order {
    view: View,
    last: u64,
}

impl Order {
    fn apply(&mut self, event: ClusterEvent) -> Duration {
        self.last += 1;
        let entry = LogEntry { version: ViewVersion(self.last), time_ns: self.last, event };
        let begin = Instant::now();
        self.view.apply(&entry);
        begin.elapsed()
    }

    fn propose(&mut self, action: Action) -> Duration {
        let proposal = Proposal { id: self.last, action };
        self.apply(ClusterEvent::Message { from: node_id(0), incarnation: Incarnation(1), proposal })
    }
}

fn measure_view(sheep: usize) -> Figures {
    let mut order = Order { view: View::default(), last: 0 };
    for n in 0..sheep - 1 {
        order.apply(ClusterEvent::Join(member(n, sheep, 1)));
    }
    order.propose(Action::Format(format()));
    let name = b"scale".to_vec();
    order.propose(Action::CreateVdi { name, size: 1 << 40, policy: None, block_size_shift: None });
    let vid = *order.view.vdis().keys().next().expect("just created");
    let last = sheep - 1;
    let joining = order.apply(ClusterEvent::Join(member(last, sheep, 1)));
    let opening_a_session = order.propose(Action::OpenSession { vid, last: Generation(0) });
    let incarnation = order.view.incarnation(node_id(last)).expect("it has joined");
    let pool = &order.view.pools()[0];
    let (pg, state) = pool.pgs.iter().enumerate().next().expect("a pool has PGs");
    let id = proto::PgId { pool: proto::PoolId(0), index: pg as u32 };
    let drop = Action::DropCopies { node: state.in_sync[0], pgs: vec![(id, state.since)] };
    let dropping_a_copy = order.propose(drop);
    let leaving = order.apply(ClusterEvent::Leave(vec![(node_id(last), incarnation)]));
    let putting_out = order.propose(Action::SetOut { node: node_id(last), out: true });
    let members: Vec<placement::Member> = (0..sheep)
        .map(|n| placement::Member { id: node_id(n), zone: member(n, sheep, 1).zone, weight: 4 << 40 })
        .collect();
    let begin = Instant::now();
    std::hint::black_box(placement::place(&members, PG_COUNT, 1, COPIES));
    let table = begin.elapsed();
    Figures {
        sheep,
        view_bytes: postcard::to_stdvec(&order.view).map_or(0, |bytes| bytes.len()),
        view_memory_bytes: memory_of(&order.view),
        joining,
        leaving,
        putting_out,
        opening_a_session,
        dropping_a_copy,
        table,
        takeover: Duration::ZERO,
        seal_messages: 0,
        messages_in_takeover: 0,
        repair_targets: 0,
        repair_sources: 0,
        repair_most: 0,
        repair_pgs: 0,
    }
}

/// What a copy of the value adds to this process.
fn memory_of(view: &View) -> usize {
    const CLONES: usize = 32;
    let before = resident_bytes();
    let clones: Vec<View> = (0..CLONES).map(|_| view.clone()).collect();
    let bytes = resident_bytes().saturating_sub(before) / CLONES;
    // The next number's would be put in their place.
    std::mem::forget(clones);
    bytes
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).map_or(0, |pages| pages * 4096)
}

// ---- a whole cluster

/// Lets events happen until something holds.
fn until(world: &mut World, what: &str, mut done: impl FnMut(&World) -> bool) -> Result<(), String> {
    let end = world.now().after(Duration::from_secs(120));
    while !done(world) {
        if let Some(violation) = &world.violation {
            return Err(violation.clone());
        }
        if world.queue.next_moment().is_none_or(|next| next > end) {
            return Err(format!("{what} took longer than two minutes"));
        }
        world.step();
    }
    Ok(())
}

fn ask(world: &mut World, sheep: usize, op: ClientOp) -> Result<ClientReply, String> {
    let request = world.ask(sheep, op);
    until(world, "an answer", |w| w.answers.contains_key(&request))?;
    let answer = world.answers.remove(&request).expect("just seen");
    answer.map_err(|error| format!("refused: {error}"))
}

fn write(vid: Vid, n: u64) -> ClientOp {
    let offset = ((n % OBJECTS) << BLOCK_SIZE_SHIFT) + n / OBJECTS * BLOCK_BYTES as u64;
    let op = VolumeOp::Write { offset, data: Bytes::from(vec![n as u8 + 1; BLOCK_BYTES]) };
    ClientOp::Volume { vid, at: Point::Head, op }
}

fn world_of(sheep: usize) -> World {
    let mut world = World::new(1, Options { store: Some(StoreKind::Model), ..Options::default() });
    let scenario = &mut world.scenario;
    scenario.members = (0..sheep).map(|n| member(n, sheep, 0)).collect();
    scenario.format = format();
    scenario.faults.clear();
    (scenario.forest, scenario.churn, scenario.large) = (false, false, false);
    (scenario.network_latency, scenario.disk_latency, scenario.driver_latency) = (NETWORK, DISK, DRIVER);
    world.sheep = world.scenario.members.iter().map(|m| Sheep::new(m.clone(), Disk::default())).collect();
    world.clients.clear();
    world
}

fn measure_cluster(sheep: usize, figures: &mut Figures) -> Result<(), String> {
    let mut world = world_of(sheep);
    for index in 0..sheep {
        world.queue.put_after(Duration::ZERO, Event::Boot(index));
    }
    let agree = |w: &World| {
        let version = w.driver.version();
        w.sheep
            .iter()
            .filter(|s| s.is_up())
            .all(|s| s.process().is_some_and(|p| p.node.is_member() && p.node.view().version() == version))
    };
    until(&mut world, "joining", |w| w.driver.version().0 >= sheep as u64 && agree(w))?;
    ask(&mut world, 0, ClientOp::Cluster(ClusterOp::Format(format())))?;
    let size = OBJECTS << BLOCK_SIZE_SHIFT;
    let create = VdiOp::Create { name: b"scale".to_vec(), size, policy: None, block_size_shift: None };
    let ClientReply::Vdi(info) = ask(&mut world, 0, ClientOp::Vdi(create))? else {
        return Err("creating a VDI did not give one".into());
    };
    for n in 0..OBJECTS {
        ask(&mut world, 0, write(info.vid, n))?;
    }
    take_over(&mut world, info.vid, figures)?;
    put_out(&mut world, figures)
}

fn take_over(world: &mut World, vid: Vid, figures: &mut Figures) -> Result<(), String> {
    for n in 0..IN_FLIGHT {
        world.ask(0, write(vid, OBJECTS + n));
    }
    // Some have reached copies, none has come back.
    world.run_for(NETWORK + DISK / 2)?;
    world.kill(0, Ending::Killed);
    let version = world.driver.version();
    until(world, "noticing a death", |w| w.driver.version() > version)?;
    let begin = world.now();
    world.tally = Some(BTreeMap::new());
    let op = VolumeOp::Read { offset: 0, len: BLOCK_BYTES as u32 };
    ask(world, 1, ClientOp::Volume { vid, at: Point::Head, op })?;
    figures.takeover = Duration::from_nanos(world.now().0 - begin.0);
    let tally = world.tally.take().unwrap_or_default();
    figures.seal_messages = tally.get("Seal").copied().unwrap_or(0);
    figures.messages_in_takeover = tally.values().sum();
    Ok(())
}

fn put_out(world: &mut World, figures: &mut Figures) -> Result<(), String> {
    let node = world.sheep[0].id();
    let holders = |world: &World| -> Vec<(BTreeSet<NodeId>, BTreeSet<NodeId>)> {
        let view = world.sheep[1].process().expect("it is up").node.view();
        let sets = |pg: &Pg| (pg.targets.iter().copied().collect(), pg.in_sync.iter().copied().collect());
        view.pools().iter().flat_map(|pool| &pool.pgs).map(sets).collect()
    };
    let before = holders(world);
    ask(world, 1, ClientOp::Cluster(ClusterOp::SetOut { node, out: true }))?;
    let mut makers: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut sources = BTreeSet::new();
    for ((old, _), (new, in_sync)) in before.iter().zip(holders(world)) {
        for maker in new.difference(old) {
            *makers.entry(*maker).or_default() += 1;
            sources.extend(in_sync.iter().copied().filter(|n| *n != node));
        }
    }
    figures.repair_targets = makers.len();
    figures.repair_sources = sources.len();
    figures.repair_most = makers.values().copied().max().unwrap_or(0);
    figures.repair_pgs = makers.values().sum();
    Ok(())
}

/// What kind of message it is, for a tally.
pub(crate) fn kind_of(body: &PeerRequest) -> &'static str {
    match body {
        PeerRequest::Seal { .. } => "Seal",
        _ => "other",
    }
}

/// One line for each figure, one column for each number of sheep.
pub fn render(all: &[Figures]) -> String {
    let us = |d: Duration| format!("{:.1} us", d.as_secs_f64() * 1e6);
    let ms = |d: Duration| format!("{:.2} ms", d.as_secs_f64() * 1e3);
    let kib = |bytes: usize| format!("{} KiB", bytes.div_ceil(1024));
    let rows: [(&str, &dyn Fn(&Figures) -> String); 15] = [
        ("sheep", &|f| f.sheep.to_string()),
        ("view, as stored and sent", &|f| kib(f.view_bytes)),
        ("view, in memory", &|f| kib(f.view_memory_bytes)),
        ("PG table from nothing", &|f| us(f.table)),
        ("entry: a sheep joins", &|f| us(f.joining)),
        ("entry: a sheep leaves", &|f| us(f.leaving)),
        ("entry: a sheep is put out", &|f| us(f.putting_out)),
        ("entry: a session", &|f| us(f.opening_a_session)),
        ("entry: a copy is dropped", &|f| us(f.dropping_a_copy)),
        ("takeover after a death is told (virtual)", &|f| ms(f.takeover)),
        ("sheep asked by the seal", &|f| f.seal_messages.to_string()),
        ("requests between sheep meanwhile", &|f| f.messages_in_takeover.to_string()),
        ("PGs repaired when it is out", &|f| f.repair_pgs.to_string()),
        ("sheep that make / may give copies", &|f| format!("{} / {}", f.repair_targets, f.repair_sources)),
        ("PGs of the busiest maker", &|f| f.repair_most.to_string()),
    ];
    let line = |(name, figure): &(&str, &dyn Fn(&Figures) -> String)| {
        let cells: Vec<String> = all.iter().map(|f| format!("{:>12}", figure(f))).collect();
        format!("{name:<42}{}\n", cells.concat())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_cluster_is_measured() {
        let figures = measure(&[8]).expect("it runs").remove(0);
        // All that hold anything of the VDI's pool are asked, but the dead; the new owner by itself.
        assert_eq!(figures.seal_messages, 6, "{figures:?}");
        assert!(figures.repair_targets > 1 && figures.repair_pgs >= 1024 * 3 / 8 - 64, "{figures:?}");
        assert!(figures.takeover > NETWORK && figures.view_bytes > 1024);
    }
}
