//! The whole cluster as one state, and what may happen in it.

use std::collections::BTreeSet;

use stateright::{Model, Property};

use super::catching::Catching;
use super::check;
use super::copy::{BLOCKS_MAX, Copy, Mark, Stamp, Taken};
use super::options::{Bug, CatchUp, Options};
use super::request::Request;
use super::session::Session;
use super::view::{Entry, NODES_MAX, Set, View};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub nodes: Vec<Node>,
    /// The total order, from the oldest view that a living sheep has; the last is the newest.
    pub views: Vec<View>,
    /// Changes that may arrive, once or more often.
    pub sent: BTreeSet<Sent>,
    pub written: u8,
    /// By block, the newest write that its client was told of.
    pub acknowledged: [u8; BLOCKS_MAX],
    /// By block, the newest write that a client may have read, or was told of before it was durable: unless all memory of it was lost since.
    pub seen: [u8; BLOCKS_MAX],
    /// Writes up to this one may have been lost with the memory of all copies.
    pub lost: u8,
    pub went_back: bool,
    pub request: Request,
    pub crashes: u8,
    pub drops: u8,
    pub closes: u8,
    pub takes: u8,
    pub moves: u8,
    /// Of the planted bug: the copy to be dropped after an acknowledgement.
    pub late_drop: Option<(usize, u8)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    pub is_alive: bool,
    /// Entries applied.
    version: u8,
    pub copy: Copy,
    pub catching: Option<Catching>,
    pub session: Option<Session>,
    /// The generation of the session that it has proposed to close, until that takes effect.
    pub closed: Option<u8>,
    /// The generation that it has resigned, until it hears what has become of that.
    pub resigned: Option<u8>,
    /// The version by which that took effect.
    pub landed: Option<u8>,
}

/// A change as its owner has sent it to all copies of a set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sent {
    pub from: usize,
    pub mark: Mark,
    pub value: u8,
    pub settled: Option<Stamp>,
    pub since: u8,
    pub to: Set,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Write {
        owner: usize,
        blocks: Set,
    },
    /// Number so many of what is under way arrives.
    Deliver {
        sent: usize,
        to: usize,
    },
    CarryOut {
        node: usize,
        order: usize,
    },
    /// Number so many of what an owner has under way is on all copies.
    Complete {
        owner: usize,
        flight: usize,
    },
    /// The same of one that all copies have in memory: its client is told.
    AnswerEarly {
        owner: usize,
        flight: usize,
    },
    Apply(usize),
    Crash(Set),
    Restart(usize),
    Drop(usize),
    Open(usize),
    Close(usize),
    Take(usize),
    /// What a sheep has proposed takes effect.
    Land(usize),
    Forward(usize),
    Answer(usize),
    Confirm(usize),
    SettleAround {
        owner: usize,
        node: usize,
    },
    /// The store forgets what was settled around something.
    Forget(usize),
    Retarget(Set),
    Sweep(usize),
    AnswerSeal {
        owner: usize,
        node: usize,
    },
    Mend(usize),
    Settle {
        owner: usize,
        node: usize,
    },
    StartCatchUp(usize),
    Learn {
        node: usize,
        source: usize,
    },
    Fetch {
        node: usize,
        source: usize,
        block: usize,
    },
    ReceiveFetched {
        node: usize,
        block: usize,
    },
    FinishCatchUp(usize),
}

impl State {
    fn first(options: &Options) -> State {
        let targets = Set::first(options.copies);
        let absent = options.copies - 1;
        let in_sync = if options.absent { targets.without(Set::of(absent)) } else { targets };
        let copy = |id: usize| {
            let mut copy = Copy::default();
            if in_sync.has(id) && options.absent {
                copy.lacking[absent] = Some(Set::default());
            }
            copy
        };
        let node = |id| Node {
            is_alive: true,
            version: 1,
            copy: copy(id),
            catching: None,
            session: (id == 0).then(Session::first),
            closed: None,
            resigned: None,
            landed: None,
        };
        State {
            nodes: (0..options.nodes).map(node).collect(),
            views: vec![View::first(options.nodes, targets, in_sync)],
            sent: BTreeSet::new(),
            written: 0,
            acknowledged: [0; BLOCKS_MAX],
            seen: [0; BLOCKS_MAX],
            lost: 0,
            went_back: false,
            request: Request::default(),
            crashes: 0,
            drops: 0,
            closes: 0,
            takes: 0,
            moves: 0,
            late_drop: None,
        }
    }

    /// The newest view.
    pub fn head(&self) -> &View {
        self.views.last().expect("there is always one")
    }

    /// The view of one sheep. Of one that is down: the one it will return with, at least.
    pub fn view(&self, node: usize) -> &View {
        let Node { is_alive, version, .. } = self.nodes[node];
        if is_alive { &self.views[usize::from(version - self.views[0].version)] } else { self.head() }
    }

    pub fn append(&mut self, options: &Options, entry: Entry) {
        self.views.push(self.head().after(options, entry));
    }

    /// Clients of the owners' own sheep ask for no more.
    pub fn has_written_all(&self, options: &Options) -> bool {
        usize::from(self.written) == usize::from(options.writes) + self.request.values.len()
    }

    fn apply_next(&mut self, options: &Options, me: usize) -> bool {
        if !self.nodes[me].is_alive || self.view(me).version == self.head().version {
            return false;
        }
        let before = *self.view(me);
        self.nodes[me].version += 1;
        let after = *self.view(me);
        self.nodes[me].copy.track(options, me, &before, &after);
        if after.in_sync.has(me) {
            self.nodes[me].copy.is_torn = false;
        }
        self.settle_clean(options, me);
        self.follow_session(options, me);
        self.forget_taken(me);
        self.hear_outcome(me);
        self.follow_catching(options, me);
        true
    }

    /// The last session ended with everything settled.
    fn settle_clean(&mut self, options: &Options, me: usize) {
        let clean = self.view(me).clean;
        let stamp = Stamp { generation: clean, is_write: true, seq: u8::MAX };
        if clean > 0 && self.may_settle(options, me) {
            self.nodes[me].copy.settle(Some(stamp));
        }
    }

    /// Does it concern a copy what others have settled? With full catching up it does no harm if it does not.
    fn may_settle(&self, options: &Options, me: usize) -> bool {
        let careless = options.catch_up == CatchUp::Full || options.has(Bug::AbsentCopySettles);
        careless || self.view(me).writers().has(me)
    }

    fn deliver(&mut self, options: &Options, sent: usize, to: usize) -> bool {
        let Some(message) = self.sent.iter().nth(sent).filter(|m| m.to.has(to)).cloned() else {
            return false;
        };
        let Sent { from, mark, value, settled, since, .. } = message;
        let view = *self.view(to);
        let is_current = view.generation == mark.stamp.generation && view.owner == Some(from);
        if !self.nodes[to].is_alive || !is_current || view.since != since || !view.writers().has(to) {
            return false;
        }
        let catching = !view.in_sync.has(to);
        let taken = self.nodes[to].copy.take(mark, value, settled, since, catching);
        if let Some(catching) = self.nodes[to].catching.as_mut().filter(|_| taken != Taken::Settled) {
            for block in mark.blocks.iter() {
                catching.decided[block] = catching.decided[block].max(Some(mark.stamp));
            }
        }
        if taken != Taken::Waits || options.has(Bug::TakenIsDurable) {
            self.acknowledge(from, to, mark.stamp, since);
        }
        if options.write_back {
            self.note_taken(from, to, mark.stamp, since);
        }
        true
    }

    /// The store makes an order durable. An answer that its owner could receive counts as received: what it does with it comes at
    /// any time later.
    fn carry_out(&mut self, me: usize, at: usize) -> bool {
        if !self.nodes[me].copy.is_next(at) {
            return false;
        }
        let order = self.nodes[me].copy.orders[at].clone();
        self.count_backfill(me, &order);
        if let Some((stamp, since)) = self.nodes[me].copy.carry_out(at) {
            let of = |n: &Node| n.session.as_ref().is_some_and(|s| s.generation == stamp.generation);
            if let Some(owner) = self.nodes.iter().position(of) {
                self.acknowledge(owner, me, stamp, since);
            }
        }
        true
    }

    /// The end of a crash and its `Leave` are one step: others could as well have gone on before the crash. Nothing but what
    /// the stores had answered is kept; what they had carried out before the crash is another order of steps.
    fn crash(&mut self, options: &Options, nodes: Set) -> bool {
        if self.crashes == options.crashes {
            return false;
        }
        self.crashes += 1;
        let counted = self.head().in_sync.and(self.head().up);
        if options.write_back && !counted.is_empty() && counted.without(nodes).is_empty() {
            self.lost = self.written;
            self.seen = self.acknowledged;
        }
        self.append(options, Entry::Leave(nodes));
        for node in nodes.iter() {
            let node = &mut self.nodes[node];
            (node.is_alive, node.version, node.catching, node.session) = (false, 0, None, None);
            (node.closed, node.resigned, node.landed) = (None, None, None);
            node.copy.crash();
        }
        self.lose_messages_to(nodes);
        true
    }

    /// What was on its way to a life that has ended never arrives; what is still unanswered is sent to the next one.
    fn lose_messages_to(&mut self, nodes: Set) {
        let is_unanswered = |m: &Sent| {
            let session = self.nodes[m.from].session.as_ref();
            session.is_some_and(|s| s.is_under_way(m.mark.stamp))
        };
        let kept =
            |m: &Sent| Sent { to: if is_unanswered(m) { m.to } else { m.to.without(nodes) }, ..m.clone() };
        self.sent = self.sent.iter().map(kept).collect();
    }

    fn restart(&mut self, options: &Options, me: usize) -> bool {
        self.append(options, Entry::Join(me));
        self.nodes[me].is_alive = true;
        self.nodes[me].version = self.head().version;
        if options.has(Bug::TrackingSurvivesRestart) {
            self.nodes[me].copy.lacking = [Some(Set::default()); NODES_MAX];
        }
        self.settle_clean(options, me);
        true
    }

    fn drop_copy(&mut self, options: &Options, node: usize) -> bool {
        let head = *self.head();
        if let Some((lacking, since)) = self.late_drop.filter(|(lacking, _)| *lacking == node) {
            self.late_drop = None;
            if head.since == since && head.can_drop(lacking) {
                self.append(options, Entry::Drop(lacking));
            }
            return true;
        }
        // The owner finds it slow, or it gives itself up.
        let proposes = |n: &Node| n.session.is_some();
        let mut proposers = (0..self.nodes.len()).filter(|n| proposes(&self.nodes[*n]) || *n == node);
        let compares = proposers.any(|n| self.nodes[n].is_alive && self.view(n).since == head.since);
        if self.drops == options.drops || !compares || !head.can_drop(node) {
            return false;
        }
        self.drops += 1;
        self.append(options, Entry::Drop(node));
        true
    }

    /// Copies hear what is settled, those that do not count too: other PGs of the VDI may have copies there.
    fn tell_settled(&mut self, options: &Options, owner: usize, node: usize) -> bool {
        let Some(stamp) = self.nodes[owner].session.as_ref().and_then(|s| s.settled(options)) else {
            return false;
        };
        let knows = self.nodes[node].is_alive && self.view(node).version >= self.view(owner).version;
        if !knows || !self.may_settle(options, node) || self.nodes[node].copy.settled >= Some(stamp) {
            return false;
        }
        let is_absent = !self.view(node).writers().has(node);
        let copy = &mut self.nodes[node].copy;
        copy.settle(Some(stamp));
        if is_absent {
            // A change of another PG tells the store as well.
            copy.marks.retain(|mark| mark.stamp > stamp);
        }
        true
    }

    fn start_catch_up(&mut self, options: &Options, me: usize) -> bool {
        if !self.nodes[me].is_alive || self.view(me).since != self.head().since || !self.head().can_start(me)
        {
            return false;
        }
        let trusts = options.has(Bug::StaleReturnTrusted);
        self.append(options, if trusts { Entry::FinishCatchUp(me) } else { Entry::StartCatchUp(me) });
        true
    }

    /// Removes what cannot have an effect any more, so that states which differ in nothing else are one.
    fn tidy(&mut self) {
        let oldest = (0..self.nodes.len()).map(|n| self.view(n).version).min().expect("there are nodes");
        let base = self.views[0].version;
        self.views.drain(..usize::from(oldest - base));
        let nodes = 0..self.nodes.len();
        let mut sent = std::mem::take(&mut self.sent);
        sent.retain(|message| {
            let to = nodes.clone().filter(|n| message.to.has(*n));
            to.map(|n| self.view(n))
                .any(|view| view.since <= message.since && view.generation <= message.mark.stamp.generation)
        });
        self.sent = sent;
    }
}

impl Model for Options {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let first = State::first(self);
        let step = |state: State, action: &Action| {
            self.next_state(&state, *action)
                .unwrap_or_else(|| panic!("{action:?} cannot happen in {state:?}"))
        };
        vec![self.prelude.iter().fold(first, step)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let all = 0..self.nodes;
        for node in all.clone() {
            actions.extend([
                Action::Apply(node),
                Action::Drop(node),
                Action::Mend(node),
                Action::Close(node),
            ]);
            actions.extend([Action::StartCatchUp(node), Action::FinishCatchUp(node)]);
            if self.wide {
                actions.push(Action::Write { owner: node, blocks: Set::first(self.blocks) });
            }
            for block in 0..self.blocks {
                actions.push(Action::Write { owner: node, blocks: Set::of(block) });
                actions.push(Action::ReceiveFetched { node, block });
                actions.extend(all.clone().map(|source| Action::Fetch { node, source, block }));
            }
            if let Some(session) = &state.nodes[node].session {
                let flights = 0..session.flights.len();
                if self.write_back {
                    let flights = flights.clone();
                    actions.extend(flights.map(|flight| Action::AnswerEarly { owner: node, flight }));
                }
                actions.extend(flights.map(|flight| Action::Complete { owner: node, flight }));
                if self.forwards {
                    actions.extend([Action::Forward(node), Action::Answer(node), Action::Confirm(node)]);
                    let copies = all.clone();
                    actions.extend(copies.map(|copy| Action::SettleAround { owner: node, node: copy }));
                }
            }
            if self.forwards {
                actions.push(Action::Forget(node));
            }
            if self.takes > 0 {
                actions.extend([Action::Take(node), Action::Land(node)]);
            }
            if self.moves > 0 {
                actions.push(Action::Sweep(node));
            }
            for other in all.clone() {
                actions.push(Action::AnswerSeal { owner: node, node: other });
                actions.push(Action::Settle { owner: node, node: other });
                actions.push(Action::Learn { node, source: other });
            }
            actions.extend((0..state.sent.len()).map(|sent| Action::Deliver { sent, to: node }));
            let orders = 0..state.nodes[node].copy.orders.len();
            actions.extend(orders.map(|order| Action::CarryOut { node, order }));
            if state.nodes[node].is_alive {
                actions.push(Action::Crash(Set::of(node)));
                actions.extend(state.head().owner.is_none().then_some(Action::Open(node)));
            } else {
                actions.push(Action::Restart(node));
            }
        }
        if self.moves > 0 {
            actions.extend((1..1 << self.nodes).map(|targets| Action::Retarget(Set(targets))));
        }
        let up = all.filter(|n| state.nodes[*n].is_alive).fold(Set::default(), Set::with);
        if self.power_loss && up.len() > 1 {
            actions.push(Action::Crash(up));
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        let happens = match action {
            Action::Write { owner, blocks } => state.write(self, owner, blocks),
            Action::Deliver { sent, to } => state.deliver(self, sent, to),
            Action::CarryOut { node, order } => state.carry_out(node, order),
            Action::Complete { owner, flight } => state.complete(self, owner, flight),
            Action::AnswerEarly { owner, flight } => state.answer_early(owner, flight),
            Action::Apply(node) => state.apply_next(self, node),
            Action::Crash(nodes) => state.crash(self, nodes),
            Action::Restart(node) => state.restart(self, node),
            Action::Drop(node) => state.drop_copy(self, node),
            Action::Open(node) => state.open(self, node),
            Action::Close(node) => state.close(self, node),
            Action::Take(node) => state.take(self, node),
            Action::Land(node) => state.land(self, node),
            Action::Forward(owner) => state.forward(self, owner),
            Action::Answer(owner) => state.answer(self, owner),
            Action::Confirm(owner) => state.confirm(owner),
            Action::SettleAround { owner, node } => state.tell_settled_around(self, owner, node),
            Action::Forget(node) => {
                state.nodes[node].copy.forget();
                true
            }
            Action::Retarget(targets) => state.retarget(self, targets),
            Action::Sweep(node) => state.sweep(self, node),
            Action::AnswerSeal { owner, node } => state.answer_seal(self, owner, node),
            Action::Mend(node) => state.mend(self, node),
            Action::Settle { owner, node } => state.tell_settled(self, owner, node),
            Action::StartCatchUp(node) => state.start_catch_up(self, node),
            Action::Learn { node, source } => state.learn(self, node, source),
            Action::Fetch { node, source, block } => state.fetch(self, node, source, block),
            Action::ReceiveFetched { node, block } => state.receive_fetched(self, node, block),
            Action::FinishCatchUp(node) => state.finish(self, node),
        };
        if !happens {
            return None;
        }
        state.tidy();
        state.observe(self);
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Options>> {
        check::properties()
    }
}
