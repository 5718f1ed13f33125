//! A request that another sheep forwards for its client, and asks for again at the next owner. `node::gateway`, `node::session::job`.
//!
//! Its gateway is a sheep without copies that never fails: one that is gone asks nobody.

use super::model::State;
use super::options::{Bug, Options};
use super::session::Session;
use super::view::Set;

/// The request, as the origin of changes.
pub const FORWARDED: u8 = u8::MAX;

/// What its gateway knows, and what has become of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Request {
    /// The generation of the session that was asked last.
    asked: u8,
    is_answered: bool,
    /// What it was carried out as, each time.
    pub values: Vec<u8>,
    /// By block, as what it may have been read last.
    effect: [u8; super::copy::BLOCKS_MAX],
    /// It was carried out again over what was written since.
    pub is_repeated: bool,
}

/// What the owner knows of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Forwarded {
    /// The number of its change, if it was carried out here, and of which blocks that was.
    pub seq: Option<u8>,
    blocks: Set,
    pub is_done: bool,
}

impl Request {
    pub fn note_read(&mut self, block: usize, value: u8) {
        if self.values.contains(&value) {
            self.effect[block] = value;
        }
    }
}

fn blocks_of(options: &Options) -> Set {
    Set::first(if options.wide { options.blocks } else { 1 })
}

impl State {
    /// The request reaches an owner that has not been asked. What has survived of it is not carried out again, if that is all of it.
    pub fn forward(&mut self, options: &Options, owner: usize) -> bool {
        let blocks = blocks_of(options);
        let Some(session) = self.nodes[owner].session.as_ref() else { return false };
        let survived = session.survived.unwrap_or_default();
        let ready = session.is_serving() && !session.is_closing && !session.is_changing(blocks);
        let is_news = self.request.asked < session.generation && !self.request.is_answered;
        if !options.forwards || !ready || !is_news {
            return false;
        }
        self.request.asked = session.generation;
        let left = blocks.without(survived);
        let repeats = !left.is_empty() && options.has(Bug::SurvivedPartIsRepeated);
        let blocks = if repeats { blocks } else { left };
        let seq = (!blocks.is_empty()).then(|| self.carry_out_request(options, owner, blocks));
        self.session_mut(owner).forwarded = Some(Forwarded { seq, blocks, is_done: seq.is_none() });
        true
    }

    fn carry_out_request(&mut self, options: &Options, owner: usize, blocks: Set) -> u8 {
        let is_overwritten = |b: usize| self.request.effect[b] != 0 && self.seen[b] > self.request.effect[b];
        self.request.is_repeated |= blocks.iter().any(is_overwritten);
        self.written += 1;
        self.request.values.push(self.written);
        self.start(options, owner, blocks, self.written, FORWARDED)
    }

    fn session_mut(&mut self, owner: usize) -> &mut Session {
        self.nodes[owner].session.as_mut().expect("seen by the caller")
    }

    /// The owner's answer reaches the gateway, which tells the client.
    pub fn answer(&mut self, options: &Options, owner: usize) -> bool {
        let Some(session) = self.nodes[owner].session.as_ref() else { return false };
        let done = session.forwarded.as_ref().filter(|forwarded| forwarded.is_done);
        let is_awaited = self.request.asked == session.generation && !self.request.is_answered;
        let Some(forwarded) = done.filter(|_| is_awaited) else { return false };
        // What an earlier owner has done may have been done as any of these, and others may have written since.
        let values = &self.request.values;
        let (first, last) =
            (*values.first().expect("it was carried out"), *values.last().expect("so is this"));
        let done_here = forwarded.blocks;
        self.request.is_answered = true;
        self.tell_client(blocks_of(options).without(done_here), first);
        self.tell_client(done_here, last);
        true
    }

    /// The gateway needs no answer any more, and says so.
    pub fn confirm(&mut self, owner: usize) -> bool {
        let is_answered = self.request.is_answered;
        let Some(session) = self.nodes[owner].session.as_mut().filter(|_| is_answered) else { return false };
        if session.forwarded.as_ref().is_some_and(|forwarded| forwarded.is_done) {
            session.forwarded = None;
        }
        if session.is_serving() {
            session.survived = None;
        }
        true
    }

    /// A copy hears what is settled around what is not.
    pub fn tell_settled_around(&mut self, options: &Options, owner: usize, node: usize) -> bool {
        let Some(session) = self.nodes[owner].session.as_ref().filter(|_| options.forwards) else {
            return false;
        };
        let Some(around) = session.settled_around(options) else { return false };
        let knows = self.nodes[node].is_alive && self.view(node).version >= self.view(owner).version;
        if !knows || self.view(node).generation != around.generation {
            return false;
        }
        let copy = &mut self.nodes[node].copy;
        if copy.around.is_some_and(|known| (known.generation, known.last) > (around.generation, around.last))
        {
            return false;
        }
        copy.around = Some(around);
        true
    }

    pub fn is_request_over(&self, options: &Options) -> bool {
        !options.forwards || self.request.is_answered
    }
}
