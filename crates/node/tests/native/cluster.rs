//! Nodes whose links, stores and driver answer at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use node::{Effect, Node, NodeConfig, Ticket, Time};
use proto::checksum::block_checksums;
use proto::client::*;
use proto::cluster::{Action, ClusterEvent, FormatOptions, LogEntry, MemberInfo, Proposal};
use proto::object::{
    BlockRange, Change, JournalVerified, ObjectInfo, ObjectOp, ObjectReply, StoreFailure, Tag, Unsettled,
    Verified, WriteBase, runs_of,
};
use proto::peer::{CONTROL_BYTES_MAX, FRAME_HEAD_BYTES, PeerMessage, PeerReply};
use proto::{BLOCK_BYTES, CopyPolicy, NodeId, Oid, RequestId, Vid, ViewVersion, ZoneId};

pub const OBJECT_BYTES: u64 = 1 << 20;

/// Objects as maps of blocks, and what was done to them.
#[derive(Default)]
pub struct Store {
    pub objects: BTreeMap<Oid, BTreeMap<u32, Bytes>>,
    /// Changes by owners, with how many bytes each brought.
    pub changes: Vec<(Oid, Change, usize)>,
    /// Blocks that cannot be read.
    pub rotten: BTreeSet<(Oid, u32)>,
    /// Records that are damaged; where there are none, the journal is empty.
    pub rotten_records: BTreeSet<u64>,
    /// Content that was put back: object, blocks.
    pub mended: Vec<(Oid, BlockRange)>,
    /// Bytes that were read and given out.
    pub given_bytes: u64,
    /// Takes no more data.
    pub is_full: bool,
    /// Takes no more data but what may take the last room.
    pub is_crowded: bool,
    /// Takes data only where there is some: it has no room for more.
    pub is_without_room: bool,
    /// Changes that may be missing elsewhere.
    pub remembered: Vec<Unsettled>,
}

impl Store {
    fn apply(&mut self, op: ObjectOp) -> ObjectReply {
        match op {
            ObjectOp::Change { data, .. } if self.is_full && !data.is_empty() => {
                ObjectReply::Failed(StoreFailure::NoSpace)
            }
            ObjectOp::Change { oid, change: Change::Write { blocks, .. }, .. }
                if self.is_without_room
                    && (blocks.first..blocks.end() as u32)
                        .any(|b| !self.objects.get(&oid).is_some_and(|object| object.contains_key(&b))) =>
            {
                ObjectReply::Failed(StoreFailure::NoSpace)
            }
            ObjectOp::Change { data, tag, .. }
                if self.is_crowded && !data.is_empty() && !tag.is_some_and(|tag| tag.last_room) =>
            {
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
                if let Some(block) = self.damaged(oid, blocks).first().map(|run| run.first) {
                    return ObjectReply::Failed(StoreFailure::Corrupt { oid, block });
                }
                self.given_bytes += u64::from(blocks.count) * BLOCK_BYTES as u64;
                let zeros = Bytes::from_static(&[0; BLOCK_BYTES]);
                let range = blocks.first..blocks.end() as u32;
                let data: Vec<u8> =
                    range.flat_map(|b| object.get(&b).unwrap_or(&zeros).clone().to_vec()).collect();
                ObjectReply::Data { checksums: block_checksums(&data), data: data.into() }
            }
            ObjectOp::Verify { oid, blocks, .. } => {
                let Some(object) = self.objects.get(&oid) else { return ObjectReply::Absent };
                let zeros = Bytes::from_static(&[0; BLOCK_BYTES]);
                let block = |b| block_checksums(object.get(&b).unwrap_or(&zeros))[0];
                let checksums = (blocks.first..blocks.end() as u32).map(block).collect();
                let damaged = self.damaged(oid, blocks);
                let written = object.keys().filter(|block| blocks.contains(**block)).count();
                let read_bytes = (written * BLOCK_BYTES) as u64;
                ObjectReply::Verified(Verified { checksums, damaged, read_bytes })
            }
            ObjectOp::VerifyJournal { first, last } => {
                let (first, last) =
                    (first.max(1), last.min(self.rotten_records.last().copied().unwrap_or(0)));
                let next = first + 30;
                let before = self.rotten_records.len();
                self.rotten_records.retain(|record| !(first..next).contains(record));
                let damaged = (before - self.rotten_records.len()) as u64;
                ObjectReply::JournalVerified(JournalVerified { next, last, damaged, read_bytes: 30 << 12 })
            }
            ObjectOp::Mend { oid, blocks, checksums, data } => {
                assert_eq!(checksums, block_checksums(&data));
                for (block, bytes) in (blocks.first..).zip(data.chunks(BLOCK_BYTES)) {
                    let zeros = Bytes::from_static(&[0; BLOCK_BYTES]);
                    let own = self.objects.get(&oid).and_then(|object| object.get(&block)).unwrap_or(&zeros);
                    assert_eq!(own, bytes, "what is put back is what was there");
                    self.rotten.remove(&(oid, block));
                }
                self.mended.push((oid, blocks));
                ObjectReply::Done
            }
            ObjectOp::Checksums { oid, blocks }
                if let Some((_, block)) =
                    self.rotten.iter().copied().find(|(of, b)| *of == oid && blocks.contains(*b)) =>
            {
                ObjectReply::Failed(StoreFailure::Corrupt { oid, block })
            }
            ObjectOp::Checksums { oid, blocks } | ObjectOp::Recorded { oid, blocks } => {
                match self.objects.get(&oid) {
                    None => ObjectReply::Absent,
                    Some(object) => {
                        let end = object.keys().next_back().map_or(0, |last| last + 1);
                        let end = u64::from(end).min(blocks.end()) as u32;
                        let zeros = Bytes::from_static(&[0; BLOCK_BYTES]);
                        let block = |b| block_checksums(object.get(&b).unwrap_or(&zeros))[0];
                        ObjectReply::Checksums((blocks.first..end).map(block).collect())
                    }
                }
            }
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

    fn damaged(&self, oid: Oid, blocks: BlockRange) -> Vec<BlockRange> {
        runs_of((blocks.first..blocks.end() as u32).filter(|block| self.rotten.contains(&(oid, *block))))
    }

    fn change(&mut self, oid: Oid, change: Change, data: &Bytes) {
        let covered = match &change {
            Change::Write { blocks, .. } | Change::Discard { blocks } => *blocks,
            Change::Delete => BlockRange::new(0, u32::MAX),
        };
        self.rotten.retain(|(of, block)| *of != oid || !covered.contains(*block));
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
    /// So many effects of the sheep were carried out.
    pub steps: u64,
    pub answers: BTreeMap<RequestId, ClientResult>,
    /// All links are cut: what is sent is lost.
    pub cut: bool,
    /// Only what goes from the one to the other is lost.
    pub cut_links: BTreeSet<(NodeId, NodeId)>,
    /// A sheep that can send so many messages more.
    pub dying: Option<(NodeId, usize)>,
    /// This sheep's store does not answer changes of its own, which no owner asked for.
    pub slow: Option<NodeId>,
    /// This sheep's store does not answer owners' changes.
    pub stalled: Option<NodeId>,
    /// No store answers owners' changes.
    pub all_stalled: bool,
    /// Sheep say of themselves that their clients may be answered early.
    write_back: bool,
    pub held: Vec<(NodeId, Ticket, ObjectReply)>,
    /// Does nothing until it is woken; messages to it are lost. It had heard so many entries of the log.
    asleep: Option<(NodeId, usize)>,
    /// Hears no more of the order of events than so many entries; messages reach it.
    behind: Option<(NodeId, usize)>,
    log: Vec<LogEntry>,
    /// Messages of which this is true, with their receiver, are under way until they are delivered.
    pub delays: Option<Box<dyn Fn(NodeId, &PeerMessage) -> bool>>,
    pub delayed: Vec<(NodeId, NodeId, PeerMessage)>,
    /// What was sent, if somebody wants to know.
    pub recorded: Option<Vec<(NodeId, NodeId, PeerMessage)>>,
}

fn member(i: u16, space_bytes: u64) -> MemberInfo {
    MemberInfo {
        id: id_of(i),
        zone: ZoneId(i.into()),
        space_bytes,
        fixed_vnodes: None,
        store_id: u64::from(i) + 1,
        life: u64::from(i) * 1000 + 1,
        formatted: None,
        starts: 0,
        io_addr: None,
        write_back: false,
    }
}

/// A receiver ends the link otherwise.
fn assert_fits(message: &PeerMessage) {
    if let PeerMessage::Reply { body: PeerReply::Unsettled { .. }, .. } = message {
        let (control, _) = message.encode();
        assert!(control.len() <= FRAME_HEAD_BYTES + CONTROL_BYTES_MAX as usize, "{} bytes", control.len());
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

    /// As with one gateway, and clients that flush are answered early.
    #[allow(dead_code)]
    pub fn with_write_back() -> (Cluster, Vid) {
        let member = |i| MemberInfo { write_back: true, ..member(i, if i == 0 { 0 } else { 1 << 30 }) };
        Cluster::of((0..4).map(member).collect(), 3)
    }

    /// The same, and sheep 4 stores nothing either.
    pub fn with_two_gateways() -> (Cluster, Vid) {
        let space = |i| if i == 0 || i == 4 { 0 } else { 1 << 30 };
        Cluster::of((0..5).map(|i| member(i, space(i))).collect(), 3)
    }

    /// As with one gateway, and an object takes several pieces to fetch.
    #[allow(dead_code)]
    pub fn with_large_objects() -> (Cluster, Vid) {
        Cluster::with_shift((0..4).map(|i| member(i, if i == 0 { 0 } else { 1 << 30 })).collect(), 3, 22)
    }

    fn of(members: Vec<MemberInfo>, copies: u8) -> (Cluster, Vid) {
        Cluster::with_shift(members, copies, 20)
    }

    fn with_shift(members: Vec<MemberInfo>, copies: u8, block_size_shift: u8) -> (Cluster, Vid) {
        let node = |m: &MemberInfo| {
            Node::new(
                NodeConfig { member: m.clone(), cache_bytes: 1 << 20, gathered_max: node::GATHERED_MAX },
                Vec::new(),
            )
        };
        let mut cluster = Cluster {
            sheep: members.iter().map(|m| (m.id, node(m), Store::default())).collect(),
            version: 0,
            now: Time(1),
            requests: 0,
            steps: 0,
            answers: BTreeMap::new(),
            cut: false,
            cut_links: BTreeSet::new(),
            dying: None,
            slow: None,
            stalled: None,
            all_stalled: false,
            write_back: members.iter().any(|m| m.write_back),
            held: Vec::new(),
            asleep: None,
            behind: None,
            log: Vec::new(),
            delays: None,
            delayed: Vec::new(),
            recorded: None,
        };
        members.into_iter().for_each(|member| cluster.append(ClusterEvent::Join(member)));
        let format = FormatOptions {
            ctime: 1,
            policy: CopyPolicy::Replicated { copies },
            block_size_shift,
            flags: 0,
            pg_count: 8,
        };
        cluster.ask(0, ClientOp::Cluster(ClusterOp::Format(format))).unwrap();
        let (name, size) = (b"disk".to_vec(), 8 << block_size_shift);
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

    /// All at one moment. Returns their disks.
    #[allow(dead_code)]
    pub fn lose_all(&mut self, ids: &[NodeId]) -> Vec<Store> {
        let mut lives = Vec::new();
        let mut stores = Vec::new();
        for id in ids {
            let index =
                self.sheep.iter().position(|(other, ..)| other == id).expect("a sheep of this cluster");
            let (_, node, store) = self.sheep.remove(index);
            lives.push((*id, node.view().members()[id].incarnation.expect("it was up")));
            stores.push(store);
        }
        self.append(ClusterEvent::Leave(lives));
        stores
    }

    pub fn lose_and_come_back(&mut self, i: u16) {
        let store = self.lose(id_of(i));
        self.come_back(i, store);
    }

    /// A sheep that was lost comes back.
    pub fn come_back(&mut self, i: u16, store: Store) {
        let write_back = self.write_back;
        let formatted = Some(1);
        let info = MemberInfo { life: self.version * 1000, write_back, formatted, ..member(i, 1 << 30) };
        let config =
            NodeConfig { member: info.clone(), cache_bytes: 1 << 20, gathered_max: node::GATHERED_MAX };
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

    /// As if that sheep had proposed it.
    #[allow(dead_code)]
    pub fn propose_as(&mut self, from: NodeId, action: Action) {
        let view = self.sheep.iter().find(|(id, ..)| *id == from).expect("a sheep of this cluster").1.view();
        let incarnation = view.members()[&from].incarnation.expect("it is up");
        let proposal = Proposal { id: u64::MAX, action };
        self.append(ClusterEvent::Message { from, incarnation, proposal });
    }

    fn deliver(&mut self, entry: LogEntry) {
        self.log.push(entry.clone());
        let deaf = [self.asleep, self.behind].map(|sheep| sheep.map(|(id, _)| id));
        let others = self.sheep.iter_mut().filter(|(id, ..)| !deaf.contains(&Some(*id)));
        others.for_each(|(_, node, _)| node.handle_log(entry.clone(), self.now));
    }

    pub fn fall_behind(&mut self, id: NodeId) {
        self.behind = Some((id, self.log.len()));
    }

    pub fn catch_up(&mut self) {
        let Some((id, heard)) = self.behind.take() else { return };
        let now = self.now;
        let missed = self.log[heard..].to_vec();
        missed.into_iter().for_each(|entry| self.node(id).handle_log(entry, now));
        self.run();
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
                    self.steps += 1;
                    match effect {
                        Effect::Send { .. } if self.cut => {}
                        Effect::Send { to, .. } if self.cut_links.contains(&(*id, to)) => {}
                        Effect::Send { .. } if self.dying == Some((*id, 0)) => {}
                        Effect::Send { to, message }
                            if self.delays.as_ref().is_some_and(|is| is(to, &message)) =>
                        {
                            self.delayed.push((*id, to, message));
                        }
                        Effect::Send { to, message } => {
                            if let Some((_, left)) = self.dying.as_mut().filter(|(dying, _)| dying == id) {
                                *left -= 1;
                            }
                            assert_fits(&message);
                            if let Some(recorded) = &mut self.recorded {
                                recorded.push((*id, to, message.clone()));
                            }
                            sent.push_back((*id, to, message));
                        }
                        Effect::Propose(proposal) => proposed.push_back((*id, proposal)),
                        Effect::Store { ticket, op } => {
                            let holder = match &op {
                                ObjectOp::Change { tag: None, .. } => self.slow,
                                ObjectOp::Change { tag: Some(tag), .. } => {
                                    if tag.tell_taken {
                                        stored.push_back((*id, ticket, ObjectReply::Taken));
                                    }
                                    self.stalled.or(self.all_stalled.then_some(*id))
                                }
                                _ => None,
                            };
                            let answer = (*id, ticket, store.apply(op));
                            match holder == Some(*id) {
                                true => self.held.push(answer),
                                false => stored.push_back(answer),
                            }
                        }
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

    /// The same of one sheep's store.
    #[allow(dead_code)]
    pub fn answer_held_of(&mut self, id: NodeId) {
        let now = self.now;
        for (_, ticket, reply) in self.held.extract_if(.., |(of, ..)| *of == id).collect::<Vec<_>>() {
            self.node(id).handle_store(ticket, reply, now);
        }
        self.run();
    }

    /// The slow store gives the answers that it has held.
    pub fn answer_held(&mut self) {
        let held = std::mem::take(&mut self.held).into_iter();
        // Whoever has gone answers nothing.
        let held: Vec<_> = held.filter(|(of, ..)| self.sheep.iter().any(|(id, ..)| id == of)).collect();
        for (id, ticket, reply) in held {
            let now = self.now;
            self.node(id).handle_store(ticket, reply, now);
        }
        self.run();
    }

    /// Nothing is delayed any longer.
    pub fn deliver_delayed(&mut self) {
        self.delays = None;
        std::mem::take(&mut self.delayed).into_iter().for_each(|message| self.repeat(message));
    }

    /// A message comes once more.
    pub fn repeat(&mut self, (from, to, message): (NodeId, NodeId, PeerMessage)) {
        let now = self.now;
        self.node(to).handle_peer(from, message, now);
        self.run();
    }

    pub fn node(&mut self, id: NodeId) -> &mut Node {
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
