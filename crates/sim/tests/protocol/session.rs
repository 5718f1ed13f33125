//! The owner: numbers changes and awaits every copy. `node::session::{copies, settled}`.

use super::copy::{Around, Mark, Stamp};
use super::model::{Sent, State};
use super::options::{Bug, Options};
use super::request::Forwarded;
use super::seal::Seal;
use super::view::Set;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    pub generation: u8,
    pub seal: Option<Seal>,
    pub next_seq: u8,
    /// In their order; no two of one block.
    pub flights: Vec<Flight>,
    pub is_closing: bool,
    pub forwarded: Option<Forwarded>,
    /// Blocks of the forwarded request that an earlier owner's change of it has decided. Until its gateway needs no answer any more.
    pub survived: Option<Set>,
}

/// A change on its way to all copies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Flight {
    pub stamp: Stamp,
    pub blocks: Set,
    pub value: u8,
    pub origin: u8,
    /// Under which it was sent last.
    pub since: u8,
    pub done: Set,
    /// Copies that have it in memory at least.
    pub taken: Set,
    /// Its client was told.
    pub is_answered: bool,
}

impl Session {
    /// The first session of all has nobody before it.
    pub fn first() -> Session {
        Session {
            generation: 1,
            seal: None,
            next_seq: 1,
            flights: Vec::new(),
            is_closing: false,
            forwarded: None,
            survived: None,
        }
    }

    pub fn is_serving(&self) -> bool {
        self.seal.is_none()
    }

    pub fn is_idle(&self) -> bool {
        self.is_serving() && self.flights.is_empty()
    }

    /// Every write is on all copies and every answer has arrived.
    pub fn is_settled(&self) -> bool {
        self.is_idle() && self.forwarded.is_none() && self.survived.is_none()
    }

    /// Has it a change of one of these blocks under way?
    pub fn is_changing(&self, blocks: Set) -> bool {
        self.flights.iter().any(|flight| !flight.blocks.and(blocks).is_empty())
    }

    pub fn is_under_way(&self, stamp: Stamp) -> bool {
        self.flights.iter().any(|flight| flight.stamp == stamp)
    }

    /// Numbers of changes that may not be forgotten, whatever comes after them.
    fn pinned(&self) -> Set {
        let unconfirmed = self.forwarded.as_ref().and_then(|forwarded| forwarded.seq);
        let pinned = unconfirmed.map_or(Set::default(), |seq| Set::of(usize::from(seq)));
        pinned.or(self.under_way())
    }

    fn under_way(&self) -> Set {
        let seqs = self.flights.iter().map(|flight| usize::from(flight.stamp.seq));
        seqs.fold(Set::default(), Set::with)
    }

    /// Everything up to here is on all copies, and nobody asks for it again; `None` while that is not certain of older generations.
    pub fn settled(&self, options: &Options) -> Option<Stamp> {
        let end = Stamp { generation: self.generation, is_write: true, seq: 0 };
        if self.seal.is_some() {
            return options.has(Bug::SettledWhileSealing).then_some(end);
        }
        if self.survived.is_some() {
            return None;
        }
        let first = self.pinned().iter().next().map_or(self.next_seq, |seq| seq as u8);
        Some(Stamp { seq: first - 1, ..end })
    }

    /// What is settled around what is not.
    pub fn settled_around(&self, options: &Options) -> Option<Around> {
        let (generation, last) = (self.generation, self.next_seq - 1);
        let pinned = if options.has(Bug::SettledPastAHole) { self.under_way() } else { self.pinned() };
        (self.is_serving() && last > 0).then_some(Around { generation, last, pinned })
    }
}

impl State {
    /// Follows what the view says of this node's session.
    pub fn follow_session(&mut self, options: &Options, me: usize) {
        let view = *self.view(me);
        let held = self.nodes[me].session.as_ref().map(|s| s.generation);
        let is_owner = view.owner == Some(me);
        let resigned = self.nodes[me].resigned;
        if is_owner && view.taker.is_some() && resigned.is_none() {
            self.nodes[me].resigned = Some(view.generation);
        }
        let stays = resigned.is_none() || options.has(Bug::ResignedIsTakenUpAgain);
        let mine = is_owner && view.taker.is_none() && stays;
        if !mine || held.is_some_and(|held| held != view.generation) {
            self.nodes[me].session = None;
        }
        if mine && self.nodes[me].session.is_none() {
            let seals = view.clean + 1 != view.generation && !options.has(Bug::SealSkipped);
            self.nodes[me].session = Some(Session {
                generation: view.generation,
                seal: seals.then(Seal::default),
                ..Session::first()
            });
        }
        self.send_again(options, me);
        self.replan_seal(options, me);
    }

    /// Sets have changed: answers so far are void, and every change goes to the new set.
    fn send_again(&mut self, options: &Options, me: usize) {
        let since = self.view(me).since;
        let Some(session) = &mut self.nodes[me].session else { return };
        for flight in session.flights.iter_mut().filter(|f| f.since != since) {
            flight.since = since;
            flight.taken = Set::default();
            if !options.has(Bug::AnswersOutliveTheirSet) {
                flight.done = Set::default();
            }
        }
        for at in 0..session.flights.len() {
            self.transmit(options, me, at);
        }
    }

    fn transmit(&mut self, options: &Options, me: usize, at: usize) {
        let view = *self.view(me);
        let Some(session) = self.nodes[me].session.as_ref().filter(|_| view.is_writable()) else { return };
        let Flight { stamp, blocks, value, origin, .. } = session.flights[at];
        self.sent.insert(Sent {
            from: me,
            mark: Mark { stamp, blocks, origin, inherited: false },
            value,
            settled: session.settled(options),
            since: view.since,
            to: view.writers(),
        });
    }

    pub fn start(&mut self, options: &Options, me: usize, blocks: Set, value: u8, origin: u8) -> u8 {
        let since = self.view(me).since;
        let session = self.nodes[me].session.as_mut().expect("called for its owner");
        let seq = session.next_seq;
        let stamp = Stamp { generation: session.generation, is_write: session.seal.is_none(), seq };
        session.next_seq += 1;
        let (done, taken, is_answered) = (Set::default(), Set::default(), false);
        session.flights.push(Flight { stamp, blocks, value, origin, since, done, taken, is_answered });
        self.transmit(options, me, self.nodes[me].session.as_ref().map_or(0, |s| s.flights.len() - 1));
        seq
    }

    /// A client of the owner's sheep writes. A write that overlaps another waits for it.
    pub fn write(&mut self, options: &Options, me: usize, blocks: Set) -> bool {
        let ready = |s: &Session| s.is_serving() && !s.is_closing && !s.is_changing(blocks);
        if self.has_written_all(options) || !self.nodes[me].session.as_ref().is_some_and(ready) {
            return false;
        }
        self.written += 1;
        self.start(options, me, blocks, self.written, self.written);
        true
    }

    /// A copy has answered that it holds a change durably.
    pub fn acknowledge(&mut self, me: usize, copy: usize, stamp: Stamp, since: u8) {
        let Some(session) = &mut self.nodes[me].session else { return };
        let is_it = |f: &&mut Flight| f.stamp == stamp && f.since == since;
        if let Some(flight) = session.flights.iter_mut().find(is_it) {
            flight.done = flight.done.with(copy);
        }
    }

    /// A copy has answered that it holds a change in memory. `Session::handle_copy_taken`.
    pub fn note_taken(&mut self, me: usize, copy: usize, stamp: Stamp, since: u8) {
        let Some(session) = &mut self.nodes[me].session else { return };
        let is_it = |f: &&mut Flight| f.stamp == stamp && f.since == since;
        if let Some(flight) = session.flights.iter_mut().find(is_it) {
            flight.taken = flight.taken.with(copy);
        }
    }

    /// A copy that went down has lost its memory. `Session::replan_changes`.
    pub fn forget_taken(&mut self, me: usize) {
        let up = self.view(me).up;
        let flights = self.nodes[me].session.iter_mut().flat_map(|session| &mut session.flights);
        flights.for_each(|flight| flight.taken = flight.taken.and(up));
    }

    /// All copies have the change in memory. It stays under way, and what is under way is all that others see of it. `Session::answer_if_taken`.
    pub fn answer_early(&mut self, me: usize, at: usize) -> bool {
        let view = *self.view(me);
        let Some(session) = &mut self.nodes[me].session else { return false };
        let may = session.is_serving() && view.is_writable();
        let Some(flight) = session.flights.get_mut(at).filter(|_| may) else { return false };
        let is_taken = view.writers().without(flight.done.or(flight.taken)).is_empty();
        if flight.since != view.since || flight.is_answered || !flight.stamp.is_write || !is_taken {
            return false;
        }
        flight.is_answered = true;
        let (blocks, value) = (flight.blocks, flight.value);
        for block in blocks.iter().filter(|_| value > self.lost) {
            self.seen[block] = self.seen[block].max(value);
        }
        true
    }

    /// A change ends when every copy that counts has it: then the client is told. Safe, because all sets the view will ever make of
    /// these copies hold it.
    pub fn complete(&mut self, options: &Options, me: usize, at: usize) -> bool {
        let view = *self.view(me);
        let Some(session) = &self.nodes[me].session else { return false };
        let Some(flight) = session.flights.get(at) else { return false };
        let mut awaited = view.writers();
        if options.has(Bug::CatchingUpNotAwaited) {
            awaited = view.in_sync;
        }
        let missing = awaited.without(flight.done);
        let only = missing.iter().next().filter(|_| missing.len() == 1);
        let may_lack = only.is_some_and(|lacking| {
            let shrinks = options.has(Bug::ShrinkAfterAck) && view.can_drop(lacking);
            options.has(Bug::AckBeforeTheLastCopy) && !flight.done.is_empty() || shrinks
        });
        if flight.since != view.since || !view.is_writable() || !(missing.is_empty() || may_lack) {
            return false;
        }
        let session = self.nodes[me].session.as_mut().expect("seen above");
        let flight = session.flights.remove(at);
        match &mut session.forwarded {
            Some(forwarded) if forwarded.seq == Some(flight.stamp.seq) && flight.stamp.is_write => {
                forwarded.is_done = true;
            }
            _ if flight.stamp.is_write => self.tell_client(flight.blocks, flight.value),
            _ => {}
        }
        if let Some(lacking) = only.filter(|_| options.has(Bug::ShrinkAfterAck)) {
            self.late_drop = Some((lacking, view.since));
        }
        self.advance_seal(me);
        true
    }

    pub fn tell_client(&mut self, blocks: Set, value: u8) {
        for block in blocks.iter() {
            self.acknowledged[block] = self.acknowledged[block].max(value);
        }
    }
}
