//! Nodes whose links, stores and driver answer at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use node::{Effect, Node, NodeConfig, Ticket, Time};
use proto::checksum::block_checksums;
use proto::client::*;
use proto::cluster::{ClusterEvent, FormatOptions, LogEntry, MemberInfo};
use proto::object::{
    BlockRange, Change, ObjectInfo, ObjectOp, ObjectReply, StoreFailure, Tag, Unsettled, WriteBase,
};
use proto::peer::PeerMessage;
use proto::{BLOCK_BYTES, CopyPolicy, NodeId, Oid, RequestId, Vid, ViewVersion, ZoneId};

pub const OBJECT_BYTES: u64 = 1 << 20;

/// Objects as maps of blocks, and what was done to them.
#[derive(Default)]
pub struct Store {
    pub objects: BTreeMap<Oid, BTreeMap<u32, Bytes>>,
    /// Changes by owners, with how many bytes each brought.
    pub changes: Vec<(Oid, Change, usize)>,
    /// Takes no more data.
    pub is_full: bool,
    /// Changes that may be missing elsewhere.
    pub remembered: Vec<Unsettled>,
}

impl Store {
    fn apply(&mut self, op: ObjectOp) -> ObjectReply {
        match op {
            ObjectOp::Change { data, .. } if self.is_full && !data.is_empty() => {
                ObjectReply::Failed(StoreFailure::NoSpace)
            }
            ObjectOp::Change { oid, change, data, tag } => {
                if let Some(Tag { vid, stamp, origin, .. }) = tag {
                    self.changes.push((oid, change.clone(), data.len()));
                    let blocks = match &change {
                        Change::Write { blocks, base: WriteBase::Keep, .. } => Some(*blocks),
                        Change::Discard { blocks } => Some(*blocks),
                        _ => None,
                    };
                    self.remembered.push(Unsettled { vid, stamp, origin, oid, blocks });
                }
                self.change(oid, change, &data);
                ObjectReply::Done
            }
            ObjectOp::Read { oid, blocks } => {
                let Some(object) = self.objects.get(&oid) else { return ObjectReply::Absent };
                let zeros = Bytes::from_static(&[0; BLOCK_BYTES]);
                let range = blocks.first..blocks.end() as u32;
                let data: Vec<u8> =
                    range.flat_map(|b| object.get(&b).unwrap_or(&zeros).clone().to_vec()).collect();
                ObjectReply::Data { checksums: block_checksums(&data), data: data.into() }
            }
            ObjectOp::Checksums { oid } => match self.objects.get(&oid) {
                None => ObjectReply::Absent,
                Some(object) => {
                    let end = object.keys().next_back().map_or(0, |last| last + 1);
                    let zeros = Bytes::from_static(&[0; BLOCK_BYTES]);
                    let block = |b| block_checksums(object.get(&b).unwrap_or(&zeros))[0];
                    ObjectReply::Checksums((0..end).map(block).collect())
                }
            },
            ObjectOp::Compare { oid, with } => {
                let zeros = BTreeMap::new();
                let (one, other) =
                    (self.objects.get(&oid), with.map_or(Some(&zeros), |w| self.objects.get(&w)));
                let (Some(one), Some(other)) = (one, other) else { return ObjectReply::Absent };
                let blocks: BTreeSet<u32> = one.keys().chain(other.keys()).copied().collect();
                let differ = blocks.into_iter().filter(|b| one.get(b) != other.get(b));
                ObjectReply::Differing(differ.map(|b| BlockRange::new(b, 1)).collect())
            }
            ObjectOp::List { first, last, limit } => {
                let objects = self.objects.range(first..=last).take(limit as usize);
                ObjectReply::Objects(
                    objects.map(|(oid, _)| ObjectInfo { oid: *oid, allocated_bytes: 0 }).collect(),
                )
            }
            ObjectOp::Amend { forget, remember } => {
                self.remembered.retain(|change| !forget.contains(change));
                self.remembered.extend(remember);
                ObjectReply::Done
            }
            ObjectOp::Settle { vid, stamp } => {
                self.remembered.retain(|change| change.vid != vid || change.stamp > stamp);
                ObjectReply::Done
            }
            ObjectOp::Flush => ObjectReply::Done,
        }
    }

    fn change(&mut self, oid: Oid, change: Change, data: &Bytes) {
        match change {
            Change::Write { blocks, base, .. } => {
                let base = match base {
                    WriteBase::Keep => self.objects.remove(&oid),
                    WriteBase::Empty => None,
                    WriteBase::CloneOf(source) => self.objects.get(&source).cloned(),
                };
                self.objects.insert(oid, base.unwrap_or_default());
                let object = self.objects.entry(oid).or_default();
                for (block, bytes) in (blocks.first..).zip(data.chunks(BLOCK_BYTES)) {
                    object.insert(block, Bytes::copy_from_slice(bytes));
                }
            }
            Change::Discard { blocks } => {
                self.objects.entry(oid).or_default().retain(|b, _| !blocks.contains(*b));
            }
            Change::Delete => drop(self.objects.remove(&oid)),
        }
    }
}

pub struct Cluster {
    pub sheep: Vec<(NodeId, Node, Store)>,
    version: u64,
    pub now: Time,
    requests: u64,
    pub answers: BTreeMap<RequestId, ClientResult>,
    /// All links are cut: what is sent is lost.
    pub cut: bool,
    /// Only what goes from the one to the other is lost.
    pub cut_links: BTreeSet<(NodeId, NodeId)>,
    /// A sheep that can send so many messages more.
    pub dying: Option<(NodeId, usize)>,
    /// Does nothing until it is woken; messages to it are lost. It had heard so many entries of the log.
    asleep: Option<(NodeId, usize)>,
    log: Vec<LogEntry>,
}

fn member(i: u16, space_bytes: u64) -> MemberInfo {
    MemberInfo {
        id: id_of(i),
        zone: ZoneId(i.into()),
        space_bytes,
        fixed_vnodes: None,
        store_id: u64::from(i) + 1,
        life: u64::from(i) * 1000 + 1,
        io_addr: None,
    }
}

pub fn id_of(i: u16) -> NodeId {
    NodeId { addr: [0; 16], port: 7000 + i }
}

impl Cluster {
    /// Formatted, with the VDI "disk" of eight objects.
    pub fn with_disk(sheep: u16) -> (Cluster, Vid) {
        Cluster::of((0..sheep).map(|i| member(i, 1 << 30)).collect(), 2)
    }

    /// The same with three copies, on the sheep 1 to 3. Sheep 0 stores nothing.
    pub fn with_gateway() -> (Cluster, Vid) {
        Cluster::of((0..4).map(|i| member(i, if i == 0 { 0 } else { 1 << 30 })).collect(), 3)
    }

    /// The same, and sheep 4 stores nothing either.
    pub fn with_two_gateways() -> (Cluster, Vid) {
        let space = |i| if i == 0 || i == 4 { 0 } else { 1 << 30 };
        Cluster::of((0..5).map(|i| member(i, space(i))).collect(), 3)
    }

    fn of(members: Vec<MemberInfo>, copies: u8) -> (Cluster, Vid) {
        let node = |m: &MemberInfo| Node::new(NodeConfig { member: m.clone(), formatted: None }, Vec::new());
        let mut cluster = Cluster {
            sheep: members.iter().map(|m| (m.id, node(m), Store::default())).collect(),
            version: 0,
            now: Time(1),
            requests: 0,
            answers: BTreeMap::new(),
            cut: false,
            cut_links: BTreeSet::new(),
            dying: None,
            asleep: None,
            log: Vec::new(),
        };
        members.into_iter().for_each(|member| cluster.append(ClusterEvent::Join(member)));
        let format = FormatOptions {
            ctime: 1,
            policy: CopyPolicy::Replicated { copies },
            block_size_shift: 20,
            flags: 0,
            pg_count: 8,
        };
        cluster.ask(0, ClientOp::Cluster(ClusterOp::Format(format))).unwrap();
        let (name, size) = (b"disk".to_vec(), 8 * OBJECT_BYTES);
        let create = VdiOp::Create { name, size, policy: None, block_size_shift: None };
        let Ok(ClientReply::Vdi(vdi)) = cluster.ask(0, ClientOp::Vdi(create)) else { panic!("no VDI") };
        (cluster, vdi.vid)
    }

    /// The first sheep is gone, and the others are told.
    pub fn lose_first(&mut self) {
        let id = self.sheep[0].0;
        self.lose(id);
    }

    /// Returns its disk.
    pub fn lose(&mut self, id: NodeId) -> Store {
        let index = self.sheep.iter().position(|(other, ..)| *other == id).expect("a sheep of this cluster");
        let (_, node, store) = self.sheep.remove(index);
        let incarnation = node.view().members()[&id].incarnation.expect("it was up");
        self.append(ClusterEvent::Leave(vec![(id, incarnation)]));
        store
    }

    /// A sheep that was lost comes back.
    pub fn come_back(&mut self, i: u16, store: Store) {
        let info = MemberInfo { life: self.version * 1000, ..member(i, 1 << 30) };
        let config = NodeConfig { member: info.clone(), formatted: Some(1) };
        let mut node = Node::new(config, store.remembered.clone());
        self.log.iter().for_each(|entry| node.handle_log(entry.clone(), self.now));
        self.sheep.push((info.id, node, store));
        self.append(ClusterEvent::Join(info));
        self.wait_ms(5000);
    }

    fn append(&mut self, event: ClusterEvent) {
        self.version += 1;
        let entry = LogEntry { version: ViewVersion(self.version), time_ns: 1, event };
        self.deliver(entry);
        self.run();
    }

    fn deliver(&mut self, entry: LogEntry) {
        self.log.push(entry.clone());
        let asleep = self.asleep.map(|(id, _)| id);
        let awake = self.sheep.iter_mut().filter(|(id, ..)| Some(*id) != asleep);
        awake.for_each(|(_, node, _)| node.handle_log(entry.clone(), self.now));
    }

    pub fn put_to_sleep(&mut self, id: NodeId) {
        self.asleep = Some((id, self.log.len()));
    }

    pub fn wake(&mut self) {
        let Some((id, heard)) = self.asleep.take() else { return };
        let now = self.now;
        let missed = self.log[heard..].to_vec();
        for entry in missed {
            self.node(id).handle_log(entry, now);
        }
        self.run();
    }

    /// Carries out effects until there are none.
    pub fn run(&mut self) {
        let mut sent: VecDeque<(NodeId, NodeId, PeerMessage)> = VecDeque::new();
        let mut stored: VecDeque<(NodeId, Ticket, ObjectReply)> = VecDeque::new();
        let mut proposed = VecDeque::new();
        loop {
            for (id, node, store) in &mut self.sheep {
                while let Some(effect) = node.poll_effect() {
                    match effect {
                        Effect::Send { .. } if self.cut => {}
                        Effect::Send { to, .. } if self.cut_links.contains(&(*id, to)) => {}
                        Effect::Send { .. } if self.dying == Some((*id, 0)) => {}
                        Effect::Send { to, message } => {
                            if let Some((_, left)) = self.dying.as_mut().filter(|(dying, _)| dying == id) {
                                *left -= 1;
                            }
                            sent.push_back((*id, to, message));
                        }
                        Effect::Propose(proposal) => proposed.push_back((*id, proposal)),
                        Effect::Store { ticket, op } => stored.push_back((*id, ticket, store.apply(op))),
                        Effect::Answer { request, result } => {
                            self.answers.insert(request, result);
                        }
                        Effect::RememberFormat { .. } => {}
                        Effect::Stop => panic!("no sheep is to stop"),
                    }
                }
            }
            let now = self.now;
            if let Some((from, to, message)) = sent.pop_front() {
                // Or else it is lost with its receiver.
                if self.sheep.iter().any(|(id, ..)| *id == to) && self.asleep.is_none_or(|(id, _)| id != to) {
                    self.node(to).handle_peer(from, message, now);
                }
            } else if let Some((id, ticket, reply)) = stored.pop_front() {
                self.node(id).handle_store(ticket, reply, now);
            } else if let Some((from, proposal)) = proposed.pop_front() {
                let incarnation = self.node(from).view().members()[&from].incarnation.expect("it is up");
                self.version += 1;
                let event = ClusterEvent::Message { from, incarnation, proposal };
                let entry = LogEntry { version: ViewVersion(self.version), time_ns: 1, event };
                self.deliver(entry);
            } else {
                return;
            }
        }
    }

    fn node(&mut self, id: NodeId) -> &mut Node {
        let found = self.sheep.iter_mut().find(|(other, ..)| *other == id);
        &mut found.expect("a sheep of this cluster").1
    }

    /// Hands a request to a sheep, without waiting.
    pub fn begin(&mut self, sheep: usize, op: ClientOp) -> RequestId {
        self.requests += 1;
        let id = RequestId(self.requests);
        self.sheep[sheep].1.handle_client(id, op, self.now);
        id
    }

    pub fn ask(&mut self, sheep: usize, op: ClientOp) -> ClientResult {
        let id = self.begin(sheep, op);
        self.run();
        for _ in 0..20 {
            if self.answers.contains_key(&id) {
                break;
            }
            self.now = Time(self.now.0 + 200_000_000);
            let asleep = self.asleep.map(|(id, _)| id);
            let awake = self.sheep.iter_mut().filter(|(id, ..)| Some(*id) != asleep);
            awake.for_each(|(_, node, _)| node.handle_timeout(self.now));
            self.run();
        }
        self.answers.remove(&id).expect("an answer within four seconds")
    }

    /// Time passes, and everybody does what is due.
    pub fn wait_ms(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(100) {
            self.now = Time(self.now.0 + 100_000_000);
            let asleep = self.asleep.map(|(id, _)| id);
            let awake = self.sheep.iter_mut().filter(|(id, ..)| Some(*id) != asleep);
            awake.for_each(|(_, node, _)| node.handle_timeout(self.now));
            self.run();
        }
    }

    pub fn data(&mut self, sheep: usize, op: ClientOp) -> Bytes {
        match self.ask(sheep, op) {
            Ok(ClientReply::Data(data)) => data,
            other => panic!("expected data, got {other:?}"),
        }
    }

    pub fn usage(&mut self, vid: Vid) -> u64 {
        match self.ask(0, ClientOp::Vdi(VdiOp::Usage { vid })) {
            Ok(ClientReply::Usage { own_objects, .. }) => own_objects,
            other => panic!("expected the usage, got {other:?}"),
        }
    }
}
