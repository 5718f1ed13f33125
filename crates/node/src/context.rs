//! What the parts of a node share while they handle one event: the view, the time, and the way out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proto::cluster::{Action, Proposal};
use proto::object::{BlockRange, Change, ObjectOp};
use proto::peer::{PeerMessage, PeerReply, PeerRequest};
use proto::{Incarnation, NodeId, Oid, PgId, RequestId, Seq, Since, Vid, ViewVersion};

use crate::cache::Cache;
use crate::catchup::Asked;
use crate::reach::Reach;
use crate::strain::{Beside, Kind, Strain};
use crate::view::View;
use crate::{Effect, NodeConfig, Ticket, Time};

/// Why a request was sent to a peer (or to this node's own replica): whom the answer is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// One copy of a session's change.
    Copy {
        vid: Vid,
        seq: Seq,
    },
    /// A session's read.
    Read {
        vid: Vid,
        read: u64,
    },
    Seal {
        vid: Vid,
    },
    Purge {
        job: u64,
        vid: Vid,
    },
    Forward {
        request: RequestId,
    },
    /// A question of a session or of the reclaimer to the owner of a VDI.
    Inner {
        to: crate::session::Requester,
        vid: Vid,
    },
    /// The scrub of this node compares.
    Recorded {
        comparison: u64,
    },
    /// The catch-up of this node.
    List {
        round: u64,
    },
    Changed {
        round: u64,
    },
    Length(Asked),
    Fetch {
        asked: Asked,
        blocks: BlockRange,
    },
}

/// A request that awaits its answer.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub to: NodeId,
    pub body: PeerRequest,
    pub purpose: Purpose,
    pub sent_at: Time,
}

/// What the store has to answer.
#[derive(Debug)]
pub(crate) struct Submitted {
    pub purpose: StoreUse,
    pub at: Time,
    /// If an owner waits for it.
    pub kind: Option<Kind>,
    pub beside: Beside,
}

/// Why something was submitted to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoreUse {
    /// A tagged change of an owner: remembered by the replica.
    Change {
        vid: Vid,
        order: u64,
        covered: crate::replica::Covered,
    },
    /// A reading for a copy that catches up, answered with its marks.
    Fetch {
        fetch: u64,
    },
    /// The store does not remember any more what it should not.
    Forgotten {
        pg: PgId,
    },
    /// A reading request of a peer, answered as it is.
    Answer {
        to: NodeId,
        call: u64,
    },
    /// The same for a peer's scrub: no guest waits for it.
    AnswerScrub {
        to: NodeId,
        call: u64,
    },
    /// One page of a peer's List.
    ListFor {
        to: NodeId,
        call: u64,
        pgs: Vec<(PgId, Since)>,
        first: Oid,
    },
    /// Objects that this node has no more use for.
    SweepList {
        job: u64,
    },
    SweepDelete {
        job: u64,
    },
    /// This node's own objects, listed or sized for a catch-up.
    OwnList {
        pgs: Vec<PgId>,
    },
    OwnLength(Asked),
    /// This node's own content of a block that the source cannot read, to be compared with what the source has on record.
    OwnBlock {
        asked: Asked,
        block: u32,
        recorded: u32,
    },
    Backfill {
        pg: PgId,
        oid: Oid,
        /// The attempt to which it belongs: what an earlier one has written says nothing of this one.
        started: Since,
    },
    /// A question of a client about this node's own copy.
    Client {
        request: RequestId,
    },
    /// The store does not remember anything of an earlier format any more.
    Wiped,
    /// A part of a scrub.
    Scrub(crate::scrub::ScrubUse),
    /// Nobody waits.
    Forget,
}

impl StoreUse {
    /// Owners and guests wait for what they have asked for, and for none of this.
    pub fn is_repair(&self) -> bool {
        use StoreUse::{AnswerScrub, Backfill, Fetch, Scrub};
        matches!(self, Fetch { .. } | Backfill { .. } | Scrub(_) | AnswerScrub { .. })
    }

    /// What an owner waits for, if it is of a kind that always takes as long: a comparison of whole objects does not.
    fn kind(&self, op: &ObjectOp) -> Option<Kind> {
        match (self, op) {
            (StoreUse::Change { .. }, _) => Some(Kind::Change),
            (StoreUse::Answer { .. }, ObjectOp::Read { .. }) => Some(Kind::Reading),
            _ => None,
        }
    }
}

/// PGs whose copies are dropped by one proposal, whose size has a limit.
const DROPPED_MAX: usize = 4096;

/// What a proposal's outcome is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProposalUse {
    Client {
        request: RequestId,
    },
    OpenSession {
        vid: Vid,
    },
    CloseSession {
        vid: Vid,
    },
    TakeSession {
        vid: Vid,
    },
    Resign {
        vid: Vid,
    },
    TimeOut {
        node: NodeId,
    },
    CatchUp,
    DropCopies,
    DiskFailed,
    /// A session's word on a snapshot.
    Rest {
        vid: Vid,
    },
    Forget {
        vid: Vid,
    },
    /// A page of a block table that a session is about to write; it follows the view.
    EnterPage,
    /// Part of what a client's write of an inode's header asks for.
    Description,
}

/// Ids, what they stand for, and the effects to come.
#[derive(Debug, Default)]
pub(crate) struct Out {
    pub effects: VecDeque<Effect>,
    /// Messages of this node to itself: its session talks to its replica as to any other.
    pub to_self: VecDeque<PeerMessage>,
    pub calls: BTreeMap<u64, Call>,
    pub tickets: BTreeMap<Ticket, Submitted>,
    pub strain: Strain,
    pub proposals: BTreeMap<u64, ProposalUse>,
    /// Between sessions of this node.
    pub inner: VecDeque<crate::session::Inner>,
    /// Deleted VDIs to which a table has stopped to refer somewhere.
    pub unreferenced: BTreeSet<Vid>,
    pub reach: Reach,
    pub cache: Cache,
    pub gathered_max: u64,
    /// Sheep that have refused a change for want of room, and have not shown since that there is some; when they refused one last.
    /// Those that go are forgotten.
    pub full_disks: BTreeMap<NodeId, Time>,
    pub rewritten: Rewritten,
    /// Sessions ever opened by this node.
    pub sessions: u64,
    next_call: u64,
    next_ticket: u64,
    next_proposal: u64,
}

/// Objects in which blocks are lost, and which of their blocks the store was told to write since: scrub looks at those again.
#[derive(Debug, Default)]
pub(crate) struct Rewritten {
    watched: BTreeSet<Oid>,
    written: Vec<(Oid, BlockRange)>,
}

/// Writes that are remembered until they are taken, which is soon. What is not is found by scrub's own asking.
const REWRITTEN_MAX: usize = 1024;

impl Rewritten {
    pub fn watch(&mut self, oids: impl Iterator<Item = Oid>) {
        self.watched = oids.collect();
    }

    pub fn take(&mut self) -> Vec<(Oid, BlockRange)> {
        std::mem::take(&mut self.written)
    }

    fn note(&mut self, oid: Oid, change: &Change) {
        if self.watched.is_empty() || !self.watched.contains(&oid) || self.written.len() >= REWRITTEN_MAX {
            return;
        }
        if let Change::Write { blocks, .. } | Change::Discard { blocks } = change {
            self.written.push((oid, *blocks));
        }
    }
}

pub(crate) struct Context<'a> {
    pub me: NodeId,
    pub incarnation: Incarnation,
    pub view: &'a View,
    pub now: Time,
    pub out: &'a mut Out,
}

impl Out {
    /// Ids of calls begin somewhere else in every life: a peer's late answer to the life before must not pass for the
    /// answer to a call of this one.
    pub fn new(config: &NodeConfig) -> Out {
        Out {
            next_call: config.member.life,
            cache: Cache::new(config.cache_bytes),
            gathered_max: config.gathered_max,
            ..Out::default()
        }
    }
}

impl Context<'_> {
    /// Sends a request and remembers whom its answer is for.
    pub fn call(&mut self, to: NodeId, body: PeerRequest, purpose: Purpose) -> u64 {
        // 0 stands for "no answer wanted".
        self.out.next_call = self.out.next_call.wrapping_add(1).max(1);
        let id = self.out.next_call;
        let version = self.view.version();
        self.transmit_request(to, id, version, body.clone());
        self.out.calls.insert(id, Call { to, body, purpose, sent_at: self.now });
        id
    }

    /// As if this node's own replica had been asked, and had answered so.
    pub fn answer_self(&mut self, reply: PeerReply, purpose: Purpose) -> u64 {
        self.out.next_call = self.out.next_call.wrapping_add(1).max(1);
        let id = self.out.next_call;
        self.out.calls.insert(id, Call { to: self.me, body: PeerRequest::Ping, purpose, sent_at: self.now });
        self.transmit(self.me, PeerMessage::Reply { id, body: reply });
        id
    }

    /// Sends a request that wants no answer.
    pub fn tell(&mut self, to: NodeId, body: PeerRequest) {
        self.transmit_request(to, 0, self.view.version(), body);
    }

    pub fn reply(&mut self, to: NodeId, call: u64, body: PeerReply) {
        if call != 0 {
            self.transmit(to, PeerMessage::Reply { id: call, body });
        }
    }

    /// Sends a call once more, under its old id: the link that carried it was lost.
    pub fn resend(&mut self, id: u64) {
        let now = self.now;
        if let Some(call) = self.out.calls.get_mut(&id) {
            call.sent_at = now;
            let (to, body) = (call.to, call.body.clone());
            self.transmit_request(to, id, self.view.version(), body);
        }
    }

    fn transmit_request(&mut self, to: NodeId, id: u64, version: ViewVersion, body: PeerRequest) {
        let life = self.view.incarnation(to).unwrap_or_default();
        self.transmit(to, PeerMessage::Request { id, version, life, body });
    }

    fn transmit(&mut self, to: NodeId, message: PeerMessage) {
        if to == self.me {
            self.out.to_self.push_back(message);
        } else {
            self.out.effects.push_back(Effect::Send { to, message });
        }
    }

    pub fn store(&mut self, op: ObjectOp, purpose: StoreUse) {
        if let ObjectOp::Change { oid, change, .. } = &op {
            self.out.rewritten.note(*oid, change);
        }
        self.out.next_ticket += 1;
        let ticket = Ticket(self.out.next_ticket);
        let beside = self.out.strain.begin(purpose.is_repair());
        let kind = purpose.kind(&op);
        self.out.tickets.insert(ticket, Submitted { purpose, at: self.now, kind, beside });
        self.out.effects.push_back(Effect::Store { ticket, op });
    }

    pub fn propose(&mut self, action: Action, purpose: ProposalUse) {
        self.out.next_proposal += 1;
        let id = self.out.next_proposal;
        self.out.proposals.insert(id, purpose);
        self.out.effects.push_back(Effect::Propose(Proposal { id, action }));
    }

    /// Proposes to go on without these copies, as far as the view as it is here would let them go. False: nothing is proposed.
    ///
    /// The next ones when these are dropped. One proposal at a time: so what would be refused must not be proposed, or it would keep others from being dropped, tick after tick.
    pub fn drop_copies(&mut self, node: NodeId, mut pgs: Vec<(PgId, Since)>) -> bool {
        pgs.retain(|(id, since)| self.view.may_drop(node, *id, *since));
        pgs.truncate(DROPPED_MAX);
        if pgs.is_empty() || self.is_proposed(&ProposalUse::DropCopies) {
            return false;
        }
        self.propose(Action::DropCopies { node, pgs }, ProposalUse::DropCopies);
        true
    }

    pub fn answer(&mut self, request: RequestId, result: proto::client::ClientResult) {
        self.out.effects.push_back(Effect::Answer { request, result });
    }

    /// Is this member up, and gives no sign of life?
    pub fn is_silent(&self, node: NodeId) -> bool {
        self.out.reach.is_silent(node, self.now)
    }

    pub fn other_members(&self) -> impl Iterator<Item = NodeId> + '_ {
        let up = self.view.members().values().filter(|m| m.incarnation.is_some());
        up.map(|m| m.info.id).filter(|id| *id != self.me)
    }

    /// Does this node hear from nobody? Then it lets the others go on without it, and not the other way round.
    pub fn is_cut_off(&mut self) -> bool {
        let others: Vec<NodeId> = self.other_members().collect();
        self.out.reach.is_cut_off(&others, self.now)
    }

    /// Asks a peer for a sign of life, whatever view it has.
    pub fn ping(&mut self, to: NodeId) {
        self.out.next_call = self.out.next_call.wrapping_add(1).max(1);
        let id = self.out.next_call;
        self.transmit_request(to, id, ViewVersion(0), PeerRequest::Ping);
    }

    pub fn is_proposed(&self, purpose: &ProposalUse) -> bool {
        self.out.proposals.values().any(|p| p == purpose)
    }
}
