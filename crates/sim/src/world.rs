//! A whole cluster in virtual time: sheep, links, disks, the driver and clients, moved by one event at a time.
//!
//! The world only carries out what nodes order and hands them what happens. Which faults happen when is decided
//! in [`crate::faults`], what clients ask in [`crate::client`], what must hold at the end in [`crate::run`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use node::view::View;
use node::{Effect, Node, NodeConfig, Ticket, Time};
use proto::client::{ClientError, ClientOp, ClientReply, ClientResult};
use proto::cluster::Proposal;
use proto::peer::{FRAME_HEAD_BYTES, FrameHead, PeerMessage, PeerReply, PeerRequest};
use proto::{NodeId, RequestId, Vid};
use store::IoId;

use crate::ballast::Ballast;
use crate::churn::Churn;
use crate::client::{BlockRequest, Client, Population};
use crate::damage::Damages;
use crate::driver::Driver;
use crate::faults::Fault;
use crate::forest::Forest;
use crate::history::History;
use crate::network::{Departure, Frame, Network, Pair, SheepIndex};
use crate::object_store::{Disk, Ending};
use crate::prng::Rng;
use crate::queue::{EventQueue, Moment};
use crate::run::Options;
use crate::scenario::{FaultKind, PlantedBug, Scenario};
use crate::sheep::{Running, Sheep, State};
use crate::value::{CellRange, decode};

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Boot(SheepIndex),
    Join {
        sheep: SheepIndex,
        start: u64,
    },
    Hear {
        sheep: SheepIndex,
        start: u64,
    },
    Propose {
        sheep: SheepIndex,
        start: u64,
        proposal: Proposal,
    },
    Arrive {
        pair: Pair,
        life: u64,
    },
    /// A frame of a link that is over, read by its receiver only now.
    LateFrame {
        pair: Pair,
        frame: Frame,
    },
    ResetLink(Pair),
    LinkNotice {
        sheep: SheepIndex,
        start: u64,
        peer: SheepIndex,
        reopen: Option<Pair>,
    },
    StoreDone {
        sheep: SheepIndex,
        start: u64,
        ticket: Ticket,
        answered: bool,
    },
    /// It has taken a change into memory.
    StoreTook {
        sheep: SheepIndex,
        start: u64,
        ticket: Ticket,
    },
    IoDone {
        sheep: SheepIndex,
        start: u64,
        io: IoId,
    },
    Timer {
        sheep: SheepIndex,
        start: u64,
        at: Moment,
    },
    NoticeDeaths,
    ClientTurn(usize),
    ChurnTurn,
    ForestTurn,
    BallastTurn,
    NextFault,
    Fault(Fault),
}

/// What a client's request is for.
#[derive(Clone, Debug)]
pub(crate) enum Purpose {
    Blocks {
        op: u64,
        vid: Vid,
        request: BlockRequest,
    },
    /// Answered into [`World::answers`].
    Ask,
    /// An order of the forest.
    Deed,
    /// A window of a snapshot is read.
    Snapshot {
        vid: Vid,
        window: usize,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub client: Option<usize>,
    pub sheep: SheepIndex,
    pub purpose: Purpose,
    pub since: Moment,
}

pub struct World {
    pub(crate) scenario: Scenario,
    pub(crate) rng: Rng,
    pub(crate) fault_rng: Rng,
    pub(crate) queue: EventQueue<Event>,
    pub(crate) network: Network,
    pub(crate) driver: Driver,
    pub(crate) sheep: Vec<Sheep>,
    pub(crate) clients: Vec<Client>,
    pub(crate) population: Population,
    pub(crate) vdis: Vec<Vid>,
    pub(crate) history: History,
    pub(crate) requests: BTreeMap<RequestId, Request>,
    pub(crate) answers: BTreeMap<RequestId, ClientResult>,
    /// Questions whose sheep died; their answer is made up.
    pub(crate) lost_asks: BTreeSet<RequestId>,
    pub(crate) churn: Churn,
    pub(crate) churn_rng: Rng,
    pub(crate) forest: Forest,
    pub(crate) ballast: Ballast,
    pub(crate) clients_busy: bool,
    pub(crate) faults_on: bool,
    pub(crate) fault_count: u64,
    pub(crate) damages: Damages,
    /// Rounds of write-back of stores whose process has ended.
    pub(crate) syncs: u64,
    pub(crate) told_changed: u64,
    /// Changes sent and not answered: by whom, to whom.
    pub(crate) unanswered: std::collections::BTreeSet<(SheepIndex, NodeId, u64)>,
    /// Requests that sheep send to others, by kind, while somebody counts them.
    pub(crate) tally: Option<BTreeMap<&'static str, usize>>,
    /// Discards that come too late, by sheep.
    pub(crate) late_discards: BTreeMap<(SheepIndex, proto::Oid), proto::object::ObjectOp>,
    next_request: u64,
    next_value: u64,
    /// What the order of events adds up to, where writes may be answered before they are durable.
    pub(crate) truth: View,
    pub(crate) violation: Option<String>,
    trace: Option<String>,
    pub(crate) events: u64,
}

impl World {
    pub fn new(seed: u64, options: Options) -> World {
        let mut rng = Rng::new(seed);
        let mut scenario = Scenario::draw(&mut rng, options.bug);
        scenario.draw_store(seed, options.store);
        scenario.draw_succession(seed);
        scenario.draw_size(seed);
        scenario.draw_isolation(seed);
        let forest = Forest::new(scenario.draw_forest(seed));
        scenario.draw_full_disks(seed);
        scenario.draw_write_back(seed);
        scenario.draw_cache(seed);
        scenario.draw_gathered(seed);
        let fault_rng = rng.fork();
        let members = scenario.members.iter();
        let sheep: Vec<Sheep> =
            members.map(|m| Sheep::new(m.clone(), scenario.new_disk(m.store_id))).collect();
        let clients = (0..scenario.clients).map(|n| Client::new(rng.fork(), n % sheep.len())).collect();
        let churn_rng = rng.fork();
        let population = Population::new(&scenario);
        World {
            scenario,
            rng,
            fault_rng,
            queue: EventQueue::default(),
            network: Network::default(),
            driver: Driver::default(),
            sheep,
            clients,
            population,
            vdis: Vec::new(),
            history: History::default(),
            requests: BTreeMap::new(),
            answers: BTreeMap::new(),
            lost_asks: BTreeSet::new(),
            churn: Churn::default(),
            churn_rng,
            forest,
            ballast: Ballast::default(),
            clients_busy: false,
            faults_on: false,
            fault_count: 0,
            damages: Damages::default(),
            syncs: 0,
            told_changed: 0,
            unanswered: Default::default(),
            tally: None,
            late_discards: BTreeMap::new(),
            next_request: 0,
            next_value: 0,
            truth: View::default(),
            violation: None,
            trace: options.trace.then(String::new),
            events: 0,
        }
    }

    pub fn now(&self) -> Moment {
        self.queue.now()
    }

    pub fn trace(&self) -> Option<&str> {
        self.trace.as_deref()
    }

    /// Lets one event happen.
    pub(crate) fn step(&mut self) {
        let Some(event) = self.queue.pop() else { return };
        self.events += 1;
        match event {
            Event::Boot(sheep) => self.boot(sheep),
            Event::Join { sheep, start } => self.join(sheep, start),
            Event::Hear { sheep, start } => self.hear(sheep, start),
            Event::Propose { sheep, start, proposal } => self.take_proposal(sheep, start, proposal),
            Event::Arrive { pair, life } => self.arrive(pair, life),
            Event::LateFrame { pair, frame } => self.receive(pair, frame),
            Event::ResetLink(pair) => self.reset_link(pair),
            Event::LinkNotice { sheep, start, peer, reopen } => self.link_notice(sheep, start, peer, reopen),
            Event::StoreDone { sheep, start, ticket, answered } => {
                self.store_done(sheep, start, ticket, answered)
            }
            Event::StoreTook { sheep, start, ticket } => self.store_took(sheep, start, ticket),
            Event::IoDone { sheep, start, io } => self.io_done(sheep, start, io),
            Event::Timer { sheep, start, at } => self.timer(sheep, start, at),
            Event::NoticeDeaths => {
                let time = self.wall_clock();
                self.driver.tell_leaves(time);
                self.announce();
            }
            Event::ClientTurn(client) => self.client_turn(client),
            Event::ChurnTurn => self.churn_turn(),
            Event::ForestTurn => self.forest_turn(),
            Event::BallastTurn => self.ballast_turn(),
            Event::NextFault => self.next_fault(),
            Event::Fault(fault) => self.apply_fault(fault),
        }
    }

    /// One line of the event log, where that is kept.
    pub(crate) fn log(&mut self, line: impl FnOnce() -> String) {
        let now = self.now();
        if let Some(trace) = &mut self.trace {
            trace.push_str(&format!("{now} {}\n", line()));
        }
    }

    pub(crate) fn violate(&mut self, what: String) {
        self.log(|| format!("VIOLATION {what}"));
        self.violation.get_or_insert(what);
    }

    // Sheep come and go.

    pub(crate) fn boot(&mut self, index: SheepIndex) {
        if self.sheep[index].is_up() {
            return;
        }
        for peer in (0..self.sheep.len()).filter(|p| *p != index) {
            self.network.reset((index, peer));
            self.network.reopen((index, peer));
        }
        let life = self.rng.next();
        let sheep = &mut self.sheep[index];
        sheep.start += 1;
        sheep.member.life = life;
        sheep.member.starts += 1;
        let State::Down(disk) = &mut sheep.state else { unreachable!("checked above") };
        let (mut store, mut unsettled) = match std::mem::take(disk).open(&mut self.rng) {
            Ok(opened) => opened,
            Err(why) => return self.violate(format!("the disk of sheep {index} {why}")),
        };
        if let Some(engine) = store.engine() {
            engine.flaws.drops_syncs = self.scenario.bug == PlantedBug::DropSyncs;
        }
        let sheep = &mut self.sheep[index];
        if self.scenario.bug == PlantedBug::ForgetUnsettled {
            unsettled.clear();
        }
        let found = unsettled.len();
        let config = NodeConfig {
            member: sheep.member.clone(),
            cache_bytes: self.scenario.cache_bytes,
            gathered_max: self.scenario.gathered_max,
        };
        let node = Node::new(config, unsettled);
        sheep.state = State::Up(Box::new(Running { node, store, timer: None, hearing: false }));
        let start = sheep.start;
        self.log(|| format!("sheep {index} boots, start {start}, {found} unsettled"));
        let delay = self.rng.latency(self.scenario.driver_latency);
        self.queue.put_after(delay, Event::Join { sheep: index, start });
        self.after(index);
    }

    fn join(&mut self, index: SheepIndex, start: u64) {
        let time = self.wall_clock();
        if self.sheep[index].running(start).is_none() {
            return;
        }
        if self.sheep[index].cut_off {
            return self.queue.put_after(Duration::from_millis(50), Event::Join { sheep: index, start });
        }
        // Usually the end of an earlier life is noticed before the next begins, but not always.
        if self.rng.percent(70) {
            self.driver.tell_leaves(time);
        }
        let incarnation = self.driver.join(self.sheep[index].member.clone(), time);
        self.log(|| format!("sheep {index} joins as {incarnation}"));
        self.announce();
    }

    /// The process ends at once; what was not durable may be lost.
    pub(crate) fn kill(&mut self, index: SheepIndex, ending: Ending) {
        let state = std::mem::replace(&mut self.sheep[index].state, State::Down(Disk::default()));
        let State::Up(mut running) = state else {
            self.sheep[index].state = state;
            return;
        };
        self.log(|| format!("sheep {index} ends: {ending}"));
        self.note_memory_loss(index);
        self.syncs += running.store.engine().map_or(0, |engine| engine.syncs);
        self.sheep[index].state = State::Down(running.store.end(ending, &mut self.rng));
        self.driver.detach(self.sheep[index].id());
        for peer in (0..self.sheep.len()).filter(|p| *p != index) {
            self.reset_link((peer, index));
            if self.scenario.faults.contains(&FaultKind::LateFrames) && self.rng.percent(40) {
                let delay = self.rng.duration(Duration::ZERO..Duration::from_secs(2));
                for frame in self.network.take_in_flight((index, peer)) {
                    self.queue.put_after(delay, Event::LateFrame { pair: (index, peer), frame });
                }
            }
            // What it has sent may still arrive for a moment.
            let delay = self.rng.duration(Duration::ZERO..Duration::from_millis(5));
            self.queue.put_after(delay, Event::ResetLink((index, peer)));
        }
        let lost: Vec<RequestId> =
            self.requests.iter().filter(|(_, r)| r.sheep == index).map(|(id, _)| *id).collect();
        for id in lost {
            let request = self.requests.remove(&id).expect("just listed");
            self.close_client_request(&request, "lost");
            match request.purpose {
                Purpose::Blocks { op, .. } => self.history.abandoned(op),
                Purpose::Ask => {
                    self.lost_asks.insert(id);
                    self.answers.insert(id, Err(ClientError::Io));
                }
                Purpose::Deed => self.finish_deed(id, None),
                Purpose::Snapshot { .. } => {}
            }
        }
        let delay = self.rng.duration(Duration::from_millis(20)..Duration::from_millis(400));
        self.queue.put_after(delay, Event::NoticeDeaths);
    }

    // The driver.

    fn wall_clock(&self) -> u64 {
        1_700_000_000_000_000_000 + self.now().0
    }

    fn take_proposal(&mut self, sheep: SheepIndex, start: u64, proposal: Proposal) {
        if self.sheep[sheep].running(start).is_none() {
            return;
        }
        let Some(proposal) = self.plant_in_proposal(sheep, start, proposal) else { return };
        let time = self.wall_clock();
        self.driver.take(self.sheep[sheep].id(), proposal, time);
        self.announce();
    }

    /// Has every sheep with news hear it soon.
    pub(crate) fn announce(&mut self) {
        for index in 0..self.sheep.len() {
            let (id, start) = (self.sheep[index].id(), self.sheep[index].start);
            if !self.driver.has_news(id) {
                continue;
            }
            let Some(running) = self.sheep[index].running(start) else { continue };
            if !std::mem::replace(&mut running.hearing, true) {
                let delay = self.rng.latency(self.scenario.driver_latency);
                self.queue.put_after(delay, Event::Hear { sheep: index, start });
            }
        }
    }

    fn hear(&mut self, index: SheepIndex, start: u64) {
        let id = self.sheep[index].id();
        let Some(running) = self.sheep[index].running(start) else { return };
        running.hearing = false;
        // A backlog comes in one go, live entries one by one.
        let backlog = !running.node.is_member();
        loop {
            let Some(entry) = self.driver.hear(id) else { break };
            if !backlog || !self.driver.has_news(id) {
                let event = &entry.event;
                let text = format!("sheep {index} hears {}: {event:?}", entry.version);
                self.log(|| text);
            }
            let now = self.local_time(index);
            let Some(running) = self.sheep[index].running(start) else { return };
            running.node.handle_log(entry, now);
            self.after(index);
            if !backlog {
                break;
            }
        }
        self.announce();
    }

    pub(crate) fn quorum_lost(&mut self, index: SheepIndex, start: u64) {
        let now = self.local_time(index);
        if let Some(running) = self.sheep[index].running(start) {
            running.node.handle_quorum_lost(now);
            self.after(index);
        }
    }

    pub(crate) fn mend_driver(&mut self, index: SheepIndex) {
        let time = self.wall_clock();
        self.sheep[index].cut_off = false;
        self.driver.mend(self.sheep[index].id(), time);
        self.announce();
    }

    // Links.

    fn send(&mut self, from: SheepIndex, to: NodeId, mut message: PeerMessage) {
        self.plant_in_message(from, to, &mut message);
        if let PeerMessage::Reply { body: PeerReply::Changed { objects, .. }, .. } = &message {
            self.told_changed += objects.len() as u64;
        }
        if let (Some(tally), PeerMessage::Request { body, .. }) = (&mut self.tally, &message) {
            *tally.entry(crate::scale::kind_of(body)).or_default() += 1;
        }
        let Some(receiver) = self.sheep.iter().position(|s| s.id() == to) else {
            return self.violate(format!("sheep {from} sends to the unknown {to}"));
        };
        self.log(|| format!("{from} -> {receiver} {}", brief(&message)));
        let (control, payload) = message.encode();
        let at = self.now().after(self.rng.latency(self.scenario.network_latency));
        if let Some(departure) = self.network.send((from, receiver), Frame { control, payload }, at) {
            self.depart(departure);
        }
    }

    pub(crate) fn depart(&mut self, Departure { pair, life, at }: Departure) {
        self.queue.put(at, Event::Arrive { pair, life });
    }

    fn arrive(&mut self, pair: Pair, life: u64) {
        let Some(frame) = self.network.arrive(pair, life) else { return };
        if !self.sheep[pair.1].is_up() {
            return self.reset_link(pair);
        }
        self.receive(pair, frame);
    }

    fn receive(&mut self, (from, to): Pair, frame: Frame) {
        let (head, control) = frame.control.split_at(FRAME_HEAD_BYTES);
        let head = FrameHead::decode(head.try_into().expect("a head")).expect("a head survives its encoding");
        let message = PeerMessage::decode(&head, control, frame.payload).expect("messages survive encoding");
        let now = self.local_time(to);
        let sender = self.sheep[from].id();
        let start = self.sheep[to].start;
        if let Some(running) = self.sheep[to].running(start) {
            running.node.handle_peer(sender, message, now);
            self.after(to);
        }
    }

    pub(crate) fn reset_link(&mut self, pair: Pair) {
        if !self.network.reset(pair) {
            return;
        }
        self.log(|| format!("link {} -> {} is reset", pair.0, pair.1));
        let (sender, receiver) = pair;
        let notify = |world: &mut World, sheep: SheepIndex, peer, reopen| {
            let start = world.sheep[sheep].start;
            let delay = world.rng.duration(Duration::from_micros(100)..Duration::from_millis(10));
            world.queue.put_after(delay, Event::LinkNotice { sheep, start, peer, reopen });
        };
        notify(self, sender, receiver, Some(pair));
        // The receiver may see the end of the old link, too; it surely sees the next one begin.
        if self.rng.percent(50) {
            notify(self, receiver, sender, None);
        }
    }

    fn link_notice(&mut self, index: SheepIndex, start: u64, peer: SheepIndex, reopen: Option<Pair>) {
        // A process that was started meanwhile has links of its own already.
        if self.sheep[index].start != start {
            return;
        }
        if let Some(pair) = reopen {
            self.network.reopen(pair);
            let (receiver, start) = (pair.1, self.sheep[pair.1].start);
            self.link_notice(receiver, start, index, None);
        }
        let now = self.local_time(index);
        let peer = self.sheep[peer].id();
        if let Some(running) = self.sheep[index].running(start) {
            running.node.handle_link_reset(peer, now);
            self.after(index);
        }
    }

    // What a node orders.

    pub(crate) fn local_time(&self, index: SheepIndex) -> Time {
        self.sheep[index].clock.at(self.now())
    }

    /// Carries out what the node has ordered, and sets its timer.
    pub(crate) fn after(&mut self, index: SheepIndex) {
        let start = self.sheep[index].start;
        self.carry_out_effects(index, start);
        while self.serve_engine(index, start) {
            self.carry_out_effects(index, start);
        }
        self.follow_failed_disk(index);
        let now = self.now();
        let clock = self.sheep[index].clock;
        let Some(running) = self.sheep[index].running(start) else { return };
        if let Some(due) = running.node.poll_timeout() {
            let at = clock.moment_of(due, now);
            if running.timer.is_none_or(|set| at < set) {
                running.timer = Some(at);
                self.queue.put(at, Event::Timer { sheep: index, start, at });
            }
        }
    }

    fn carry_out_effects(&mut self, index: SheepIndex, start: u64) {
        while let Some(effect) = self.sheep[index].running(start).and_then(|r| r.node.poll_effect()) {
            match effect {
                Effect::Send { to, message } => self.send(index, to, message),
                Effect::Propose(proposal) => {
                    self.log(|| format!("sheep {index} proposes {proposal:?}"));
                    let delay = self.rng.latency(self.scenario.driver_latency);
                    self.queue.put_after(delay, Event::Propose { sheep: index, start, proposal });
                }
                Effect::Store { ticket, op } => self.submit(index, ticket, op),
                Effect::Answer { request, result } => self.finish_request(request, result),
                Effect::RememberFormat { ctime } => self.sheep[index].member.formatted = Some(ctime),
                Effect::Stop => {
                    self.kill(index, Ending::StopsItself);
                    let delay = self.rng.duration(Duration::from_millis(20)..Duration::from_millis(300));
                    self.queue.put_after(delay, Event::Boot(index));
                }
            }
        }
    }

    fn timer(&mut self, index: SheepIndex, start: u64, at: Moment) {
        let now = self.local_time(index);
        let Some(running) = self.sheep[index].running(start) else { return };
        if running.timer == Some(at) {
            running.timer = None;
            running.node.handle_timeout(now);
            self.after(index);
        }
    }

    // Clients.

    pub(crate) fn ask(&mut self, sheep: SheepIndex, op: ClientOp) -> RequestId {
        self.issue(None, sheep, op, Purpose::Ask)
    }

    pub(crate) fn issue(
        &mut self,
        client: Option<usize>,
        sheep: SheepIndex,
        op: ClientOp,
        purpose: Purpose,
    ) -> RequestId {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        self.log(|| format!("request {id} to sheep {sheep}: {purpose:?}"));
        let request = Request { client, sheep, purpose, since: self.now() };
        self.requests.insert(id, request);
        let now = self.local_time(sheep);
        let start = self.sheep[sheep].start;
        let running = self.sheep[sheep].running(start).expect("clients ask sheep that are up");
        running.node.handle_client(id, op, now);
        self.after(sheep);
        id
    }

    fn client_turn(&mut self, number: usize) {
        if !self.clients_busy {
            return;
        }
        let think = self.scenario.think_time;
        let client = &mut self.clients[number];
        let pause = client.rng.latency(think);
        self.queue.put_after(pause, Event::ClientTurn(number));
        let up: Vec<SheepIndex> = (0..self.sheep.len()).filter(|s| self.sheep[*s].is_up()).collect();
        if client.open >= self.scenario.client_depth || up.is_empty() {
            return;
        }
        let Some(sheep) = client.choose_sheep(&up) else { return };
        self.next_value += 1;
        let value = self.next_value;
        let mut request = BlockRequest::draw(&mut client.rng, &self.population, value);
        if self.scenario.write_back {
            request = request.in_write_back_mode(&mut client.rng);
        }
        let vid = *client.rng.pick(&self.vdis);
        let op = request.op(vid, &mut client.rng);
        client.open += 1;
        self.issue_blocks(Some(number), sheep, vid, request, op);
    }

    pub(crate) fn fresh_value(&mut self) -> u64 {
        self.next_value += 1;
        self.next_value
    }

    pub(crate) fn issue_blocks(
        &mut self,
        client: Option<usize>,
        sheep: SheepIndex,
        vid: Vid,
        request: BlockRequest,
        op: ClientOp,
    ) {
        let number = match &request {
            BlockRequest::Read(range) => self.history.invoke_read(vid, *range),
            BlockRequest::Write(range, value) => self.history.invoke_write(vid, *range, *value),
            BlockRequest::Zero(range, _) => self.history.invoke_write(vid, *range, 0),
            BlockRequest::WriteBack(range, value) => self.history.invoke_write_back(vid, *range, *value),
            BlockRequest::Flush => self.history.invoke_flush(vid),
        };
        self.issue(client, sheep, op, Purpose::Blocks { op: number, vid, request });
    }

    /// A read outside the clients' own turns.
    pub(crate) fn read_through(&mut self, sheep: SheepIndex, vid: Vid, range: CellRange) {
        let request = BlockRequest::Read(range);
        let op = request.op(vid, &mut self.rng);
        self.issue_blocks(None, sheep, vid, request, op);
    }

    fn close_client_request(&mut self, request: &Request, how: &'static str) {
        if let Some(client) = request.client {
            self.clients[client].open -= 1;
            *self.clients[client].counts.entry(how).or_default() += 1;
        }
    }

    fn finish_request(&mut self, id: RequestId, result: ClientResult) {
        let Some(request) = self.requests.remove(&id) else {
            return self.violate(format!("request {id} is answered twice, or was never made: {result:?}"));
        };
        self.close_client_request(&request, if result.is_ok() { "answered" } else { "refused" });
        let (op, blocks) = match request.purpose {
            Purpose::Blocks { op, request: blocks, .. } => (op, blocks),
            Purpose::Ask => {
                self.log(|| format!("request {id} is answered: {result:?}"));
                self.answers.insert(id, result);
                return;
            }
            Purpose::Deed => return self.finish_deed(id, Some(result)),
            Purpose::Snapshot { vid, window } => return self.finish_snapshot_read(vid, window, result),
        };
        match (&blocks, result) {
            (BlockRequest::Read(range), Ok(ClientReply::Data(data))) => match decode(*range, &data) {
                Ok(values) => {
                    self.log(|| format!("request {id} (op {op}) reads {values:?}"));
                    self.history.read(op, &values);
                }
                Err(why) => {
                    self.history.abandoned(op);
                    self.violate(format!("request {id} read {range:?}: {why}"));
                }
            },
            (BlockRequest::Flush, Ok(ClientReply::Done)) => {
                self.log(|| format!("request {id} (op {op}) has flushed"));
                self.history.flushed(op);
            }
            (
                BlockRequest::Write(..) | BlockRequest::WriteBack(..) | BlockRequest::Zero(..),
                Ok(ClientReply::Done),
            ) => {
                self.log(|| format!("request {id} (op {op}) is done"));
                self.history.written(op);
            }
            (BlockRequest::Write(..) | BlockRequest::WriteBack(..) | BlockRequest::Zero(..), result)
                if self.is_legal_refusal(&result) =>
            {
                self.log(|| format!("request {id} (op {op}) finds no room"));
                self.history.abandoned(op);
            }
            (_, result) => {
                self.history.abandoned(op);
                self.violate(format!("request {id} {blocks:?} is answered with {result:?}"));
            }
        }
    }
}

fn brief(message: &PeerMessage) -> String {
    let mut message = message.clone();
    let payload = match &mut message {
        PeerMessage::Request { body: PeerRequest::Change { data, .. }, .. }
        | PeerMessage::Reply {
            body: PeerReply::Data { data, .. } | PeerReply::Fetched { data, .. }, ..
        } => std::mem::take(data),
        PeerMessage::Request { body: PeerRequest::Forward { op, data, .. }, .. } => {
            let payload = std::mem::take(data);
            op.set_payload(Bytes::new());
            payload
        }
        PeerMessage::Reply { body: PeerReply::Client { result, data, .. }, .. } => {
            if let Ok(reply) = result {
                reply.set_payload(Bytes::new());
            }
            std::mem::take(data)
        }
        _ => Bytes::new(),
    };
    let mut text = match &message {
        PeerMessage::Request { id, version, body, .. } => format!("request {id} v{version} {body:?}"),
        PeerMessage::Reply { id, body } => format!("reply {id} {body:?}"),
    };
    shorten(&mut text);
    if !payload.is_empty() {
        let _ = write!(text, " {} bytes", payload.len());
    }
    text
}

/// Payloads are not for reading.
pub(crate) fn shorten(text: &mut String) {
    const LINE_MAX: usize = 480;
    if text.len() > LINE_MAX {
        let mut end = LINE_MAX;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(" ...");
    }
}
