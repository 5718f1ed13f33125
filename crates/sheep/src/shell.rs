//! The shell around [`Node`]: brings it events and the time, and carries out its effects.
//!
//! Everything happens in one thread (clients may be served on others: [`Remote`]). Whatever has news (the driver, a link, the disk, a client) gives it to the
//! node at once and rings; one task, the *pump*, then carries out effects until there are none, and submits what it
//! ordered from the disk in one go. The state is borrowed for the length of one such step and never across an await.
//!
//! Answers: a client is answered only by the node's [`Effect::Answer`], in the order of effects.
//! [`Effect::RememberFormat`] is durable before the next effect is looked at.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cluster::{Delivery, OrderError, Orders};
use front::Service;
use node::view::Refusal;
use node::{Effect, Node, Ticket, Time};
use proto::client::{ClientError, ClientOp, ClientReply, ClientResult, ClusterOp, NodeStat};
use proto::cluster::{ClusterEvent, LogEntry, Proposal};
use proto::object::{ObjectOp, ObjectReply};
use proto::peer::PeerMessage;
use proto::{Epoch, NodeId, RequestId};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::attachments::Attachments;
use crate::disk_watch::DiskWatch;
use crate::io::{Completion, Deed, Disk};
use crate::link::{Event, Links};
use crate::marks;
use crate::objects::ObjectStore;
use crate::remote::{Call, Remote};
use crate::spare_time::SpareTime;
use crate::traffic::Counters;

/// Payload that peers may have on its way to our disk, before we stop reading from them.
const PEER_BYTES_MAX: usize = 128 << 20;
/// What an order costs beyond its payload.
const ORDER_OVERHEAD_BYTES: usize = 512;
/// Effects in one step of the pump, before other tasks get their turn.
const EFFECTS_PER_STEP: usize = 1024;
/// How long a stopping sheep waits for what was asked of it before.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
/// How long it then waits for its `Leave` to be durable.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);

/// How long the store may then bring home what is in its journal.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(5);

/// What a shell is made of.
pub struct Parts {
    pub own: NodeId,
    pub node: Node,
    pub store: Box<dyn ObjectStore>,
    /// `None` for a gateway.
    pub disk: Option<(Disk, mpsc::UnboundedReceiver<Completion>)>,
    pub links: Links,
    pub link_events: mpsc::UnboundedReceiver<Event>,
    pub cluster: cluster::Handle,
    /// A disk that takes longer for anything has failed. Whole seconds.
    pub disk_timeout: Duration,
    /// Clients that flush are answered before their writes are durable.
    pub write_back: bool,
    /// Where the format mark is kept; `None` for a gateway.
    pub directory: Option<PathBuf>,
}

/// A running sheep's logic and everything it reaches. Clones share it; it is what front ends are served by.
#[derive(Clone)]
pub struct Shell(Rc<Core>);

struct Core {
    state: RefCell<State>,
    started: Instant,
    write_back: bool,
    /// Something was given to the node or the store.
    bell: Notify,
    /// Peers may send again.
    room: Notify,
    stop: Stop,
    /// Counts changes of the view.
    view_changes: watch::Sender<u64>,
    /// The view's, for other threads.
    epoch: Arc<AtomicU32>,
    /// Where vhost-user guests are served, if they are.
    attachments: OnceCell<Attachments>,
}

/// Why and whether the sheep ends.
#[derive(Default)]
struct Stop {
    asked: Notify,
    /// All clients are answered, or the driver has ended: looked at again.
    progress: Notify,
    failure: RefCell<Option<String>>,
    /// Who asked.
    by: OnceCell<&'static str>,
    stopping: Cell<bool>,
    left: Cell<bool>,
}

struct State {
    own: NodeId,
    node: Node,
    store: Box<dyn ObjectStore>,
    /// `None` for a gateway, and for what has become one: its disk failed.
    disk: Option<Disk>,
    watch: DiskWatch,
    links: Links,
    orders: Orders,
    directory: Option<PathBuf>,
    clients: HashMap<RequestId, oneshot::Sender<ClientResult>>,
    counters: Counters,
    last_request: u64,
    /// The driver was busy.
    unproposed: VecDeque<Proposal>,
    /// What the store has been given and has not answered, and the sum.
    ordered: BTreeMap<Ticket, usize>,
    ordered_bytes: usize,
    spare_time: SpareTime,
    snapshot_asked: bool,
    /// The newest link of each peer: its number.
    peer_links: HashMap<NodeId, u64>,
    last_peer_link: u64,
}

/// Why a store cannot be used, and what to do.
fn render_refusal(store: &str, refusal: Refusal) -> String {
    match refusal {
        Refusal::StoreInUse { by } => format!(
            "the store {store} is in use by node {by}: one of the two is a copy of the other, and a cluster may have only one of them. It was not \
             changed. For another node begin with an empty directory; to go on from this one, end node {by} first ('dog node kill {by}')"
        ),
        Refusal::Outdated { last } => format!(
            "the store {store} is an older copy of the one that node {last} was started with last: what was written to that since is not in this one. It was not \
             changed. Start the newer one; if that is lost, begin with an empty directory, and what other nodes have copies of is made again"
        ),
        Refusal::Foreign => format!(
            "the store {store} belongs to another cluster than this one, which knows nothing of what is on it. It was not changed. Start it with its own \
             cluster ('-c local:DIRECTORY', where that one's 'cluster.local' lies); for a node of this cluster begin with an empty directory"
        ),
    }
}

impl Shell {
    /// Starts all tasks of the shell, within a `LocalSet`.
    pub fn start(parts: Parts) -> Shell {
        let Parts {
            own,
            node,
            store,
            disk,
            links,
            link_events,
            cluster,
            disk_timeout,
            write_back,
            directory,
        } = parts;
        let (disk, completions) = disk.unzip();
        let shell = Shell(Rc::new(Core {
            state: RefCell::new(State {
                own,
                node,
                store,
                disk,
                watch: DiskWatch::default(),
                links,
                orders: cluster.orders,
                directory,
                clients: HashMap::new(),
                counters: Counters::default(),
                last_request: 0,
                unproposed: VecDeque::new(),
                ordered: BTreeMap::new(),
                ordered_bytes: 0,
                spare_time: SpareTime::default(),
                snapshot_asked: false,
                peer_links: HashMap::new(),
                last_peer_link: 0,
            }),
            started: Instant::now(),
            write_back,
            bell: Notify::new(),
            room: Notify::new(),
            stop: Stop::default(),
            view_changes: watch::Sender::new(0),
            epoch: Arc::default(),
            attachments: OnceCell::new(),
        }));
        if let Some(completions) = completions {
            tokio::task::spawn_local(shell.clone().hear_disk(completions));
            tokio::task::spawn_local(shell.clone().watch_disk(disk_timeout));
        }
        tokio::task::spawn_local(shell.clone().hear_links(link_events));
        tokio::task::spawn_local(shell.clone().hear_cluster(cluster.deliveries));
        tokio::task::spawn_local(shell.clone().pump());
        // The store may have something to do from the start.
        shell.0.bell.notify_one();
        shell
    }

    /// Waits until the cluster has taken this sheep in (true), or it is to end.
    pub async fn until_taken_in(&self) -> bool {
        let mut changes = self.0.view_changes.subscribe();
        loop {
            if self.0.state.borrow().node.is_member() {
                return true;
            }
            if self.is_refused() || self.0.stop.failure.borrow().is_some() || changes.changed().await.is_err()
            {
                return false;
            }
        }
    }

    /// The cluster has not taken this sheep in, and says why.
    pub fn is_refused(&self) -> bool {
        self.0.state.borrow().node.refused().is_some()
    }

    /// Asks the sheep to end in order. The first `by` is what the log names.
    pub fn stop(&self, by: &'static str) {
        self.0.stop.by.get_or_init(|| by);
        self.0.stop.asked.notify_one();
    }

    /// Waits until the sheep has been asked to end, and ends it: answers what was asked, leaves the cluster.
    pub async fn until_stopped(&self) -> Result<(), String> {
        let stop = &self.0.stop;
        stop.asked.notified().await;
        stop.stopping.set(true);
        if let Some(failure) = stop.failure.borrow_mut().take() {
            return Err(failure);
        }
        if let Some(by) = stop.by.get() {
            let unanswered = self.0.state.borrow().clients.len();
            tracing::info!(unanswered, "this sheep stops in order, asked by {by}");
        }
        // One that is not a member answers nobody any more.
        let drained = |shell: &Shell| {
            let state = shell.0.state.borrow();
            let is_done = state.clients.is_empty() && !state.node.owes_durability();
            is_done || !state.node.is_member()
        };
        if !self.until(DRAIN_PATIENCE, drained).await {
            let count = self.0.state.borrow().clients.len();
            tracing::warn!(
                "stopping with {count} requests unanswered, or before all that was answered is durable"
            );
        }
        // An error means that the driver has ended already.
        let asked = self.0.state.borrow().orders.leave().is_ok();
        if asked && !self.until(LEAVE_PATIENCE, |shell| shell.0.stop.left.get()).await {
            tracing::warn!("the cluster driver takes long to leave; the others will notice");
        }
        self.tell(|state, _| state.store.begin_checkpoint());
        // Nothing is lost without it: the next start replays the journal.
        self.until(CHECKPOINT_PATIENCE, |shell| shell.0.state.borrow().store.is_quiet()).await;
        match stop.failure.borrow_mut().take() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    async fn until(&self, patience: Duration, reached: impl Fn(&Shell) -> bool) -> bool {
        let waiting = async {
            while !reached(self) {
                self.0.stop.progress.notified().await;
            }
        };
        tokio::time::timeout(patience, waiting).await.is_ok()
    }

    fn fail(&self, text: String) {
        tracing::error!("{text}");
        self.0.stop.failure.borrow_mut().get_or_insert(text);
        self.0.view_changes.send_modify(|count| *count += 1);
        self.0.stop.asked.notify_one();
        self.0.stop.progress.notify_one();
    }

    fn now(&self) -> Time {
        Time(self.0.started.elapsed().as_nanos() as u64)
    }

    /// Lets `event` change the node, then rings.
    fn tell<R>(&self, event: impl FnOnce(&mut State, Time) -> R) -> R {
        let now = self.now();
        let result = event(&mut self.0.state.borrow_mut(), now);
        self.0.bell.notify_one();
        result
    }

    async fn hear_disk(self, mut completions: mpsc::UnboundedReceiver<Completion>) {
        while let Some(completion) = completions.recv().await {
            self.tell(|state, _| {
                state.handle_completion(completion);
                while let Ok(completion) = completions.try_recv() {
                    state.handle_completion(completion);
                }
            });
        }
    }

    /// Gives the disk up if it hangs, or if nobody will find again what is written to it.
    async fn watch_disk(self, timeout: Duration) {
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            seconds.tick().await;
            let given_up = self.tell(|state, _| {
                let hangs = state.watch.look(timeout.as_secs(), state.store.awaits_room());
                let hangs = hangs.then(|| format!("it has not answered for {} seconds", timeout.as_secs()));
                if let Some(why) = state.store.trouble().or(hangs).filter(|_| !state.store.is_failed()) {
                    tracing::error!("disk {}: {why}", state.store.disk_name());
                    state.store.fail();
                }
                state.store.is_failed()
            });
            if given_up {
                return;
            }
        }
    }

    async fn hear_links(self, mut events: mpsc::UnboundedReceiver<Event>) {
        while let Some(Event::Reset(peer)) = events.recv().await {
            self.tell(|state, now| state.node.handle_link_reset(peer, now));
        }
    }

    async fn hear_cluster(self, mut deliveries: mpsc::Receiver<Delivery>) {
        while let Some(delivery) = deliveries.recv().await {
            match delivery {
                Delivery::Snapshot { version, state: bytes } => {
                    let (taken, epoch) = self
                        .tell(|state, _| (state.node.handle_snapshot(version, &bytes), state.node.epoch()));
                    self.0.epoch.store(epoch.0, Ordering::Release);
                    if let Err(error) = taken {
                        return self.fail(error.to_string());
                    }
                    self.0.view_changes.send_modify(|count| *count += 1);
                }
                // The node would take it for a verdict of the others.
                Delivery::Entry(entry) if self.0.stop.stopping.get() && self.is_own_leave(&entry) => {}
                Delivery::Entry(entry) => {
                    let epoch = self.tell(|state, now| {
                        state.node.handle_log(entry, now);
                        state.propose_again();
                        state.offer_snapshot();
                        state.node.epoch()
                    });
                    // Before anybody is answered who waits for this entry: that is the pump's.
                    self.0.epoch.store(epoch.0, Ordering::Release);
                    self.0.view_changes.send_modify(|count| *count += 1);
                }
                Delivery::QuorumLost => self.tell(|state, now| state.node.handle_quorum_lost(now)),
                Delivery::Failed(text) => {
                    self.0.stop.left.set(true);
                    return self.fail(text);
                }
            }
        }
        self.0.stop.left.set(true);
        self.0.stop.progress.notify_one();
        if !self.0.stop.stopping.get() {
            self.fail("the cluster driver has ended".into());
        }
    }

    fn is_own_leave(&self, entry: &LogEntry) -> bool {
        let own = self.0.state.borrow().own;
        matches!(&entry.event, ClusterEvent::Leave(lives) if lives.iter().any(|(id, _)| *id == own))
    }

    /// A peer has opened a link. What still comes on its earlier ones was sent again on this one, and would act after what
    /// confirms it: it is not listened to any more.
    pub fn begin_peer_link(&self, from: NodeId) -> u64 {
        let mut state = self.0.state.borrow_mut();
        state.last_peer_link += 1;
        let number = state.last_peer_link;
        state.peer_links.insert(from, number);
        state.counters.peer_came_anew(from);
        number
    }

    /// A message of a peer. Returns when the next one may be read; false: this link is over.
    pub async fn handle_peer(&self, from: NodeId, link: u64, message: PeerMessage) -> bool {
        if self.0.state.borrow().peer_links.get(&from) != Some(&link) {
            return false;
        }
        self.tell(|state, now| {
            state.counters.peer_said(from, &message);
            state.node.handle_peer(from, message, now);
        });
        while self.0.state.borrow().ordered_bytes > PEER_BYTES_MAX {
            self.0.room.notified().await;
        }
        // Several may wait; each passes it on.
        self.0.room.notify_one();
        true
    }

    /// Carries out effects whenever there is news, and calls the node when it wants to be called.
    async fn pump(self) {
        loop {
            let (more, timeout) = {
                let now = self.now();
                let mut state = self.0.state.borrow_mut();
                if state.node.poll_timeout().is_some_and(|at| at <= now) {
                    state.node.handle_timeout(now);
                }
                let mut more = state.step(&self, now);
                more |= state.follow_failed_disk(now);
                let ahead = if self.0.stop.stopping.get() { None } else { state.write_ahead(now) };
                if state.ordered_bytes <= PEER_BYTES_MAX {
                    self.0.room.notify_one();
                }
                if self.0.stop.stopping.get() {
                    self.0.stop.progress.notify_one();
                }
                (more, state.node.poll_timeout().into_iter().chain(ahead).min())
            };
            // What others wait for leaves before this disk is given its orders, which takes a while.
            others_first().await;
            if let Some(disk) = &self.0.state.borrow().disk {
                disk.submit();
            }
            if more {
                tokio::task::yield_now().await;
                continue;
            }
            match timeout {
                None => self.0.bell.notified().await,
                Some(at) => {
                    let moment = tokio::time::Instant::from_std(self.0.started + Duration::from_nanos(at.0));
                    tokio::select! {
                        biased;
                        () = self.0.bell.notified() => {}
                        () = tokio::time::sleep_until(moment) => {}
                    }
                }
            }
        }
    }
}

/// Lets the tasks run that are ready; without asking the kernel for news, as `yield_now` does.
async fn others_first() {
    let mut waited = false;
    let wait = std::future::poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    });
    wait.await;
}

impl State {
    /// Carries out effects until there are none (false) or enough for one turn (true).
    fn step(&mut self, shell: &Shell, now: Time) -> bool {
        let mut left = EFFECTS_PER_STEP;
        loop {
            let mut quiet = true;
            if !self.ordered.is_empty() {
                self.spare_time.is_busy(now);
            }
            while let Some(effect) = self.node.poll_effect() {
                self.carry_out(effect, shell);
                quiet = false;
                left = left.saturating_sub(1);
            }
            self.order_from_disk();
            while let Some((ticket, reply)) = self.store.poll_reply() {
                if reply != ObjectReply::Taken {
                    let bytes = self.ordered.remove(&ticket).expect("a store answers an order once");
                    self.ordered_bytes -= bytes;
                }
                self.node.handle_store(ticket, reply, now);
                quiet = false;
            }
            if quiet {
                return false;
            }
            if left == 0 {
                return true;
            }
        }
    }

    /// Lets the store write ahead of use if there is time for that. Returns when there will be, if it wants to.
    fn write_ahead(&mut self, now: Time) -> Option<Time> {
        if !self.store.wants_to_write_ahead() {
            return None;
        }
        let next = self.spare_time.next(now, self.store.is_short_of_written());
        if next > now {
            return Some(next);
        }
        let pieces = self.spare_time.begin(now);
        self.store.write_ahead(pieces);
        self.order_from_disk();
        None
    }

    fn order_from_disk(&mut self) {
        let Some(disk) = &self.disk else { return };
        while let Some(order) = self.store.poll_io() {
            match order.deed {
                Deed::Grow { .. } => self.watch.handle_growing(order.id),
                _ => self.watch.handle_ordered(order.id),
            }
            disk.order(order);
        }
    }

    fn handle_completion(&mut self, completion: Completion) {
        self.watch.handle_completed(completion.id);
        self.store.handle_io(completion);
    }

    /// When the disk has just failed, this sheep becomes a gateway: others have copies, and repair them elsewhere.
    fn follow_failed_disk(&mut self, now: Time) -> bool {
        let Some(disk) = self.disk.take_if(|_| self.store.is_failed()) else { return false };
        tracing::error!(
            "disk {} has failed: this sheep goes on without it, as a gateway, and its copies are repaired on other sheep. \
             Repair or replace the disk, then start this sheep again",
            self.store.disk_name()
        );
        // To drop it is to wait for everything that is on its way, perhaps for ever. Its memory must stay as long as the kernel may use it.
        std::mem::forget(disk);
        self.node.handle_disk_failed(now);
        true
    }

    fn carry_out(&mut self, effect: Effect, shell: &Shell) {
        match effect {
            Effect::Send { to, message } => {
                self.counters.peer_told(to, &message);
                self.links.send(to, &message);
            }
            Effect::Propose(proposal) => {
                self.unproposed.push_back(proposal);
                self.propose_again();
            }
            Effect::Store { ticket, op } => {
                let payload = match &op {
                    ObjectOp::Change { data, .. } => data.len(),
                    _ => 0,
                };
                let bytes = payload + ORDER_OVERHEAD_BYTES;
                self.ordered.insert(ticket, bytes);
                self.ordered_bytes += bytes;
                self.store.submit(ticket, op);
            }
            Effect::Answer { request, result } => {
                if let Some(client) = self.clients.remove(&request) {
                    self.counters.client_answered(&result);
                    // It may have gone.
                    let _ = client.send(result);
                }
                if self.clients.is_empty() {
                    shell.0.stop.progress.notify_one();
                }
            }
            Effect::RememberFormat { ctime } => {
                let Some(directory) = &self.directory else { return };
                if let Err(error) = marks::write(directory, marks::FORMATTED, ctime) {
                    // Without it the next start would remove what is written from now on.
                    tracing::error!("cannot remember the format in {}: {error}", directory.display());
                    std::process::abort();
                }
            }
            Effect::Stop => {
                if let Some(refusal) = self.node.refused() {
                    shell.fail(render_refusal(&self.store.disk_name(), refusal));
                } else if !self.node.is_member() {
                    shell.fail("this sheep is not a member of the cluster any more".into());
                } else {
                    shell.stop("an order to the whole cluster ('dog cluster shutdown')");
                }
            }
        }
    }

    fn propose_again(&mut self) {
        while let Some(proposal) = self.unproposed.pop_front() {
            match self.orders.propose(proposal) {
                Ok(()) => {}
                Err(OrderError::Busy(proposal)) => {
                    // Those under way will be delivered, and then this is called again.
                    self.unproposed.push_front(proposal);
                    return;
                }
                Err(error @ OrderError::TooLarge(_)) => tracing::error!("{error}"),
                Err(OrderError::Ended) => return,
            }
        }
    }

    /// Gives the driver the state when its log has become long: once for each time it wants one.
    fn offer_snapshot(&mut self) {
        let wanted = self.orders.wants_snapshot() && self.node.is_member();
        if wanted && !self.snapshot_asked {
            let (version, bytes) = self.node.snapshot();
            // An optimisation, which the driver may refuse.
            let _ = self.orders.compact(version, bytes);
        }
        self.snapshot_asked = wanted;
    }

    fn stat(&self) -> NodeStat {
        let space = self.store.space();
        let progress = self.node.progress();
        let pgs = self.node.view().pools().iter().flat_map(|pool| pool.pgs.iter());
        NodeStat {
            cache: self.node.cache_use(),
            size_bytes: space.size_bytes,
            used_bytes: space.used_bytes,
            is_full: space.is_full,
            pgs_behind: progress.pgs_behind,
            pgs: pgs.filter(|pg| pg.targets.contains(&self.own)).count() as u32,
            objects_done: progress.objects_done,
            objects_total: progress.objects_total,
            clients: self.counters.clients(self.clients.len()),
            peers: self.counters.peers(),
        }
    }
}

impl Service for Shell {
    fn call(&self, op: ClientOp) -> impl Future<Output = ClientResult> + 'static {
        // Given to the node here and not when the future is first polled: the order of calls is the order of requests.
        let asked = self.take(op);
        async move {
            match asked {
                Ok(mut asked) => (&mut asked.answer).await.unwrap_or(Err(ClientError::ShuttingDown)),
                Err(now) => now,
            }
        }
    }

    fn view_changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.0.view_changes.subscribe())
    }

    fn is_write_back(&self) -> bool {
        self.0.write_back
    }

    fn epoch(&self) -> Epoch {
        self.0.state.borrow().node.epoch()
    }
}

impl Shell {
    /// From now on it serves vhost-user guests. To be called once.
    pub fn set_attachments(&self, attachments: Attachments) {
        assert!(self.0.attachments.set(attachments).is_ok(), "there is one directory of sockets");
    }

    fn attach(&self, op: ClusterOp) -> ClientResult {
        let Some(attachments) = self.0.attachments.get() else {
            let text = "this sheep serves no vhost-user guests; start it with --vhost-user DIRECTORY";
            return Err(ClientError::Unsupported(text.into()));
        };
        match op {
            ClusterOp::Attach { name, socket } => attachments.attach(self, &name, &socket),
            ClusterOp::Detach { name, socket } => attachments.detach(&name, socket.as_deref()),
            _ => Ok(attachments.list()),
        }
        .map(ClientReply::Attached)
    }

    /// Passes a request on to the node, or answers it here.
    fn take(&self, op: ClientOp) -> Result<Asked, ClientResult> {
        let op = self.answer_here(op)?;
        let (sender, answer) = oneshot::channel();
        let request = self.ask_node(op, sender);
        Ok(Asked { shell: self.clone(), request, answer })
    }

    /// What needs no node is answered here (`Err`).
    fn answer_here(&self, op: ClientOp) -> Result<ClientOp, ClientResult> {
        match op {
            ClientOp::Cluster(ClusterOp::NodeStat) => {
                Err(Ok(ClientReply::NodeStat(Box::new(self.0.state.borrow().stat()))))
            }
            ClientOp::Cluster(ClusterOp::KillNode) => {
                self.stop("a client of this sheep ('dog node kill')");
                Err(Ok(ClientReply::Done))
            }
            ClientOp::Cluster(
                op @ (ClusterOp::Attach { .. } | ClusterOp::Detach { .. } | ClusterOp::Attached),
            ) => Err(self.attach(op)),
            _ if self.0.stop.stopping.get() => Err(Err(ClientError::ShuttingDown)),
            _ => Ok(op),
        }
    }

    fn ask_node(&self, op: ClientOp, answer: oneshot::Sender<ClientResult>) -> RequestId {
        self.tell(|state, now| {
            state.last_request += 1;
            let request = RequestId(state.last_request);
            state.clients.insert(request, answer);
            if !matches!(op, ClientOp::Cluster(_)) {
                state.counters.client_asked(&op);
            }
            state.node.handle_client(request, op, now);
            request
        })
    }

    /// Nobody waits for the answer any more.
    fn forget(&self, request: RequestId) {
        let unanswered = self.0.state.borrow_mut().clients.remove(&request).is_some();
        if unanswered {
            self.tell(|state, now| state.node.handle_client_gone(request, now));
            self.0.stop.progress.notify_one();
        }
    }

    /// This sheep, for front ends on other threads. To be called within the `LocalSet`.
    pub fn remote(&self) -> Remote {
        let (remote, calls) =
            Remote::new(self.0.view_changes.subscribe(), self.0.epoch.clone(), self.0.write_back);
        tokio::task::spawn_local(self.clone().hear_remote(calls));
        remote
    }

    async fn hear_remote(self, mut calls: mpsc::UnboundedReceiver<Call>) {
        while let Some(call) = calls.recv().await {
            self.take_remote(call);
        }
    }

    fn take_remote(&self, call: Call) {
        match call {
            Call::Asked { op, answer, ticket } => match self.answer_here(op) {
                Ok(op) => ticket.set(self.ask_node(op, answer).0),
                // It may have gone.
                Err(now) => drop(answer.send(now)),
            },
            Call::Gone(ticket) => self.forget(RequestId(ticket.get())),
        }
    }
}

/// A request that the node has. Dropped without an answer: its client has gone.
struct Asked {
    shell: Shell,
    request: RequestId,
    answer: oneshot::Receiver<ClientResult>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.shell.forget(self.request);
    }
}
