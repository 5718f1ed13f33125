//! Coming to rest before a snapshot, and going on after it under a new vid.
//!
//! At rest everything that was acknowledged is on all copies and nobody will ask for any of it again, so the snapshot holds
//! it; everything else has not begun and goes to the VDI that takes the frozen one's place.

use std::time::Duration;

use proto::cluster::Action;
use proto::{Generation, Vid};

use super::{FIRST_SEQ, Request, Session, State};
use crate::Time;
use crate::context::{Context, ProposalUse};

/// Clients' writes are held for no longer than this for a snapshot's sake.
const REST_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
pub(super) struct Resting {
    since: Time,
    /// Of which snapshot it has said that it is at rest.
    said: Option<u64>,
}

impl Session {
    /// Follows what the view says: a snapshot may be wanted, be given up, or wait for others.
    pub(super) fn look_for_rest(&mut self, ctx: &mut Context) {
        if !matches!(self.state, State::Serving | State::Resting) {
            return;
        }
        if self.frozen || !ctx.view.is_freezing(self.vid) {
            self.resting = None;
            if self.state == State::Resting {
                self.serve_queue(ctx);
            }
            return;
        }
        let resting = *self.resting.get_or_insert(Resting { since: ctx.now, said: None });
        match self.state {
            State::Serving if !self.waits_for_copies(ctx) => self.state = State::Resting,
            // There is no rest before copies are back, so nobody is held for it. Who has said that he is at rest stays so.
            State::Resting if resting.said.is_none() && self.waits_for_copies(ctx) => self.serve_queue(ctx),
            _ => {}
        }
        if self.state == State::Resting {
            self.save_table(ctx);
        }
        let is_at_work = self.state == State::Serving;
        let Some(resting) = self.resting.as_mut() else { return };
        let (vid, generation) = (self.vid, self.generation);
        let confirmed = self.survived.is_empty() && self.forwarded.is_empty();
        let at_rest = !is_at_work
            && confirmed
            && self.jobs.is_empty()
            && self.in_flight.is_empty()
            && self.table_writes.is_empty();
        let wanted = ctx.view.must_rest(vid, generation).filter(|snapshot| resting.said != Some(*snapshot));
        if at_rest && let Some(snapshot) = wanted {
            resting.said = Some(snapshot);
            ctx.propose(Action::Rested { vid, generation, snapshot }, ProposalUse::Rest { vid });
        } else if ctx.now.since(resting.since) > REST_PATIENCE && !ctx.is_proposed(&ProposalUse::Rest { vid })
        {
            // Held for others, or for a gateway that cannot confirm: the guest comes first.
            tracing::warn!(vdi = %vid, "no snapshot: it takes too long until all is at rest");
            ctx.propose(Action::GiveUpSnapshot { vid, generation }, ProposalUse::Rest { vid });
        }
    }

    /// The VDI has been frozen: its session goes on as that of the working VDI that took its place. The table is the same, and stays
    /// the frozen one's until it is written to.
    ///
    /// Requests that were held are routed anew: those of old clients name the frozen VDI's objects.
    pub fn go_on_as(mut self, ctx: &mut Context, head: Vid) -> (Session, Vec<Request>) {
        assert!(self.in_flight.is_empty() && self.jobs.is_empty(), "a session at rest has nothing under way");
        self.pages = std::mem::take(&mut self.pages).handed_down(self.vid);
        self.vid = head;
        self.generation = Generation(1);
        self.next_seq = FIRST_SEQ;
        self.settling = Default::default();
        self.resting = None;
        self.state = State::Serving;
        self.last_used = ctx.now;
        let held = std::mem::take(&mut self.queue).into();
        (self, held)
    }
}
