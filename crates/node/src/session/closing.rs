//! Giving a session back that nobody here needs, and going on with it where it cannot end.
//!
//! While a session closes, requests wait outside, so that it comes to an end. What it has begun may wait for copies that are down, for hours;
//! reads must not wait with it. So such a session is not closed, and one whose end takes too long serves on. That is safe until its end is
//! proposed, for until then nobody else may take it as ended; and it is proposed only when nothing is under way.

use std::time::Duration;

use super::{Forwarded, Session, State};
use crate::Time;
use crate::context::Context;

/// How long a session without clients of its own is kept.
const IDLE: Duration = Duration::from_secs(2);
/// Requests are held for no longer than this for the end of a session.
const PATIENCE: Duration = Duration::from_secs(2);
/// Not sooner than this after it could not end, it is tried again.
const PAUSE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Closing {
    since: Option<Time>,
    given_up: Option<Time>,
}

impl Session {
    /// Has it been idle long enough to be given back, `opens` clients of this sheep having it open?
    pub fn should_close(&self, ctx: &Context, opens: u32, at_once: bool) -> bool {
        let now = ctx.now;
        let idle = at_once || (now.since(self.last_used_locally) > IDLE && now.since(self.last_used) > IDLE);
        // Others use it and nobody here does: they are better served by a session of their own.
        let between = ctx.view.session(self.vid).between;
        let foreign = !between && now.since(self.last_used_locally) > IDLE;
        // Whoever is to be told how an earlier owner's request ended may still ask, and only here. So may those who are held.
        let owes = !self.survived.is_empty() || !self.queue.is_empty();
        let serves = self.state == State::Serving && self.resting.is_none();
        let pauses = self.closing.given_up.is_some_and(|at| now.since(at) < PAUSE);
        let can_end = !pauses && !self.waits_for_copies(ctx);
        opens == 0 && !owes && serves && can_end && ((idle && !self.is_busy()) || foreign)
    }

    /// Of a reader: has nobody used it for a while?
    pub fn is_idle(&self, now: Time) -> bool {
        !self.is_busy() && now.since(self.last_used) > IDLE
    }

    pub fn start_closing(&mut self, now: Time) {
        self.state = State::Closing;
        self.closing.since = Some(now);
    }

    pub fn is_closing(&self) -> bool {
        self.state == State::Closing
    }

    /// Every write is on all copies and every answer has arrived.
    pub fn is_settled(&self) -> bool {
        let unconfirmed = self.forwarded.values().any(|f| matches!(f, Forwarded::Done { .. }));
        !self.is_busy() && !unconfirmed && self.survived.is_empty()
    }

    /// It cannot end now, and its end is not proposed: whoever waits for that is served here instead.
    pub fn serve_on_if_stuck(&mut self, ctx: &Context) {
        let is_late = self.closing.since.is_some_and(|at| ctx.now.since(at) > PATIENCE);
        if self.state == State::Closing && (is_late || self.waits_for_copies(ctx)) {
            tracing::debug!(vdi = %self.vid, "the session cannot end now; going on with it");
            self.state = State::Serving;
            self.closing = Closing { since: None, given_up: Some(ctx.now) };
        }
    }
}
