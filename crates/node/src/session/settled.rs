//! What copies may forget: changes that are on all of them and that nobody will ask for again.
//!
//! Every change tells up to which number all are (`Session::settled`). One request whose gateway cannot be reached, or one change whose PG
//! may not be written, would hold that number back for as long as it lasts, and all copies would have to remember whatever is written
//! meanwhile: until their stores have no room for it. So when too much has gathered, copies are told what is settled *around* such pinned
//! changes, by number. These few stay: a repeated request is still known to the next owner, and one that was begun is still finished. Why a copy may
//! forget what is newer than what it remembers stands in `replica/settled.rs`.
//!
//! If even the pinned ones are too many, new changes wait until some are confirmed.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::Seq;
use proto::object::{Origin, Stamp, Tag};
use proto::peer::{PINNED_MAX, PeerRequest};

use super::{FIRST_SEQ, Forwarded, Session, State};
use crate::Time;
use crate::context::Context;

/// Changes that may gather before copies are told what is settled around the pinned ones. More than what is under way at one time to and from
/// gateways that can be reached: to forget by number costs a journal entry each.
pub const GATHERED_MAX: u64 = 1024;
/// Changes of one VDI that copies may have to remember. A store has room for 87,000 with a journal of 64 MiB.
const REMEMBERED_MAX: u64 = 8192;
/// Without a change for this long, copies are told to forget for good.
const REST: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Settling {
    /// What copies were last told when the session was at rest.
    told: Seq,
    /// How far they were told around pinned changes, and how many of these there were.
    told_around: (Seq, usize),
    /// The number of the next change when that was last looked at, and when another one was seen last.
    looked_at: Seq,
    moved: Option<Time>,
    moved_to: Seq,
    /// Copies remember as much as they should: no new change.
    pub holds: bool,
    /// Whose changes the seal has found. While one of them may be asked for again, what is changed for any of them has to be remembered as well: a
    /// seal tells by both together which of them an earlier seal has undone.
    pub found: BTreeSet<Origin>,
    pub repeated: BTreeSet<Seq>,
}

impl Session {
    /// Everything up to here is on all copies, and no gateway will ask for it again; nor is it a part of what a request has only begun:
    /// an object that is on all copies and not in the table yet is still to be found by the next owner.
    pub(super) fn settled(&self) -> Seq {
        if self.state == State::Sealing || !self.survived.is_empty() {
            return Seq(0);
        }
        let first = self.first_changes().min().unwrap_or(self.next_seq);
        Seq(first.0 - 1)
    }

    /// The first change of whatever pins some.
    fn first_changes(&self) -> impl Iterator<Item = Seq> + '_ {
        let begun = self.tasks.values().filter_map(|task| task.changes.first());
        let jobs = self.jobs.values().filter_map(|job| job.changes.first());
        let unconfirmed = self.unconfirmed().filter_map(|changes| changes.first());
        self.in_flight.keys().next().into_iter().chain(begun).chain(jobs).chain(unconfirmed).copied()
    }

    fn unconfirmed(&self) -> impl Iterator<Item = &Vec<Seq>> + '_ {
        self.forwarded.values().filter_map(|forwarded| match forwarded {
            Forwarded::Done { changes, .. } => Some(changes),
            Forwarded::Running { .. } => None,
        })
    }

    /// All changes since the seal that may not be forgotten, whatever comes after them. Once a change is none of these it never is again.
    fn pinned(&self) -> BTreeSet<Seq> {
        let mut pinned: BTreeSet<Seq> = self.in_flight.keys().copied().collect();
        self.tasks.values().for_each(|task| pinned.extend(&task.changes));
        self.jobs.values().for_each(|job| pinned.extend(&job.changes));
        self.unconfirmed().for_each(|changes| pinned.extend(changes));
        pinned.extend(self.settling.repeated.iter().filter(|_| !self.survived.is_empty()));
        pinned
    }

    /// Lets idle copies forget what is settled; busy ones learn it from the next change. It costs them a record, so it is said when
    /// nothing was changed for a while.
    pub(super) fn tell_settled(&mut self, ctx: &mut Context) {
        let settled = self.settled();
        let settling = &mut self.settling;
        if settling.moved_to != self.next_seq || !self.in_flight.is_empty() || settling.moved.is_none() {
            settling.moved_to = self.next_seq;
            settling.moved = Some(ctx.now);
        }
        let rests = settling.moved.is_some_and(|at| ctx.now.since(at) >= REST);
        if settled == settling.told || !rests {
            return;
        }
        settling.told = settled;
        let stamp = Stamp { generation: self.generation, seq: settled };
        let tag = Tag {
            vid: self.vid,
            stamp,
            settled,
            origin: Origin::default(),
            last_room: false,
            tell_taken: false,
        };
        for node in self.members_of_pool(ctx) {
            ctx.tell(node, PeerRequest::Settle { vid: self.vid, tag });
        }
    }

    /// Has so much been changed that one should look before the next tick?
    pub(super) fn gathers(&self, ctx: &Context) -> bool {
        self.next_seq.0 - self.settling.looked_at.0.min(self.next_seq.0) >= ctx.out.gathered_max
    }

    /// Tells copies what is settled around pinned changes, if too much has gathered behind these.
    pub(super) fn settle_around(&mut self, ctx: &mut Context) {
        self.settling.looked_at = self.next_seq;
        if self.survived.is_empty() {
            self.settling.found.clear();
            self.settling.repeated.clear();
        }
        let settled = self.settled().max(Seq(FIRST_SEQ.0 - 1));
        let numbered = Seq(self.next_seq.0.max(FIRST_SEQ.0) - 1);
        if self.state == State::Sealing || numbered.0 - settled.0 <= ctx.out.gathered_max {
            self.settling.holds = false;
            return;
        }
        let mut pinned = self.pinned();
        let last = pinned.iter().nth(PINNED_MAX).map_or(numbered, |beyond| Seq(beyond.0 - 1));
        pinned.split_off(&Seq(last.0 + 1));
        self.settling.holds = numbered.0 - last.0 + pinned.len() as u64 > REMEMBERED_MAX;
        let around = (last, pinned.len());
        if around == self.settling.told_around {
            return;
        }
        self.settling.told_around = around;
        let (vid, generation) = (self.vid, self.generation);
        let pinned: Vec<Seq> = pinned.into_iter().collect();
        for node in self.members_of_pool(ctx) {
            let pinned = pinned.clone();
            ctx.tell(node, PeerRequest::SettleAround { vid, generation, last, pinned });
        }
    }
}
