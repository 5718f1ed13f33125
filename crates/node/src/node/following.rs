//! What follows from the cluster's order of events: sessions that end or wait, copies that catch up, answers to proposals.

use super::*;

impl Node {
    /// What a new entry means for the parts.
    pub(super) fn follow(&mut self, applied: Applied, now: Time) {
        self.with(now, |node, ctx| node.replica.note_absences(ctx, &applied.pgs));
        if applied.formatted {
            self.forget_everything(now);
        }
        for (vid, head) in &applied.frozen {
            self.follow_frozen(*vid, *head, now);
        }
        for vid in &applied.vdis {
            self.follow_vdi(*vid, now);
            if self.view.vdis().get(vid).is_some_and(|vdi| vdi.life == Life::Gone) {
                // Catching up may have brought something back after the purge.
                self.with(now, |node, ctx| {
                    node.sweeps.purge(ctx, *vid, (0, u32::MAX), Vec::new(), false, None)
                });
            }
        }
        for (from, incarnation, id, outcome) in applied.outcomes {
            if from == self.me && Some(incarnation) == self.incarnation {
                self.handle_outcome(id, outcome, now);
            }
        }
        if applied.membership || !applied.pgs.is_empty() {
            let pgs = if applied.formatted { all_pgs(&self.view) } else { applied.pgs };
            if applied.membership {
                self.follow_membership(now);
            }
            let has_disk = !self.disk_failed;
            self.with(now, |node, ctx| {
                if has_disk {
                    node.catch_up.handle_view(ctx, node.replica, &pgs);
                }
                node.sessions.values_mut().for_each(|s| s.handle_view(ctx));
            });
            self.sweep_wanted = true;
            self.take_up_reclaiming(now);
        }
        if !applied.deleted.is_empty() {
            // Whoever was asked does it; should it die, the first member does.
            self.take_up_reclaiming(now);
        }
        if applied.shut_down {
            self.out.effects.push_back(Effect::Stop);
        }
    }

    pub(super) fn forget_everything(&mut self, now: Time) {
        let sessions = std::mem::take(&mut self.sessions);
        self.with(now, |node, ctx| {
            for session in sessions.into_values() {
                let left = session.abandon(ctx);
                node.gateway.take_back(ctx, node.sessions, left);
            }
        });
        self.catch_up = CatchUp::default();
        self.scrub.stop();
        self.reclaim = Reclaim::default();
        self.check_format(now);
    }

    /// What a crash or an absence interrupted is done by the first member, or by nobody.
    pub(super) fn take_up_reclaiming(&mut self, now: Time) {
        let first = self.view.members().values().find(|m| m.incarnation.is_some()).map(|m| m.info.id);
        if first == Some(self.me) {
            let remains: Vec<Vid> = self.view.remains().collect();
            self.reclaim.want(now, remains);
        }
    }

    pub(super) fn follow_frozen(&mut self, vid: Vid, head: Vid, now: Time) {
        self.with(now, |node, ctx| {
            node.gateway.handle_frozen(vid, head);
            let owned =
                ctx.view.session(head).owner.is_some_and(|(n, i)| n == ctx.me && i == ctx.incarnation);
            let Some(session) = node.sessions.remove(&vid) else { return };
            if !owned {
                let left = session.abandon(ctx);
                return node.gateway.take_back(ctx, node.sessions, left);
            }
            let (session, left) = session.go_on_as(ctx, head);
            node.sessions.insert(head, session);
            node.gateway.take_back(ctx, node.sessions, left);
        });
    }

    pub(super) fn follow_vdi(&mut self, vid: Vid, now: Time) {
        let state = self.view.session(vid);
        let mine = state.owner.is_some_and(|(n, i)| n == self.me && Some(i) == self.incarnation);
        let exists = self.view.vdi(vid).is_some();
        let readable = self.view.vdi_or_remains(vid).is_some();
        self.with(now, |node, ctx| {
            if state.clean == state.generation && state.owner.is_none() && state.generation.0 > 0 {
                node.replica.handle_clean_close(ctx, vid, state.generation);
            }
            if !exists {
                node.replica.forget_vdi(ctx, vid);
            }
            if node.sessions.get(&vid).is_some_and(|s| s.frozen && readable) {
                return node.gateway.handle_vdi_changed(ctx, node.sessions, vid);
            }
            let held = node.sessions.get(&vid).map(|s| s.generation);
            if state.taker.is_some() {
                node.gateway.note_taken(vid, ctx.now);
            }
            let resigns = mine && state.taker.is_some();
            let purpose = ProposalUse::Resign { vid };
            let resigned = ctx.is_proposed(&purpose);
            if resigns && !resigned {
                // From here on this node answers nothing of the session, whatever is under way.
                tracing::warn!(vdi = %vid, "another sheep takes over, which cannot reach this one");
                ctx.propose(Action::Resign { vid, generation: state.generation }, purpose);
            }
            // What was resigned is not taken up again, even if whoever wanted it is gone by now: changes of this generation may be under way
            // that a new session would know nothing of.
            let mine = mine && !resigns && !resigned;
            if held.is_some() && (!mine || !exists || held != Some(state.generation)) {
                let left = node.sessions.remove(&vid).expect("just seen").abandon(ctx);
                node.gateway.take_back(ctx, node.sessions, left);
            }
            if mine && exists && !node.sessions.contains_key(&vid) {
                let session = Session::open(ctx, vid);
                node.sessions.insert(vid, session);
            }
            if let Some(session) = node.sessions.get_mut(&vid) {
                // A snapshot may be wanted, or given up.
                session.handle_view(ctx);
            }
            node.gateway.handle_vdi_changed(ctx, node.sessions, vid);
        });
    }

    pub(super) fn follow_membership(&mut self, now: Time) {
        self.with(now, |node, ctx| {
            node.catch_up.handle_source_lost(ctx);
            ctx.out.full_disks.retain(|node, _| ctx.view.is_up(*node));
            node.reclaim.end_purges(ctx);
            // A member that came back has forgotten what it was asked.
            let again: Vec<u64> = ctx
                .out
                .calls
                .iter()
                .filter(|(_, c)| c.to != ctx.me && ctx.view.is_up(c.to))
                .map(|(id, _)| *id)
                .collect();
            for id in again {
                ctx.resend(id);
            }
        });
    }

    pub(super) fn handle_outcome(&mut self, id: u64, outcome: Outcome, now: Time) {
        let Some(purpose) = self.out.proposals.remove(&id) else { return };
        self.with(now, |node, ctx| match purpose {
            ProposalUse::Client { request } => {
                if let Some((vid, request)) = node.gateway.handle_outcome(ctx, request, outcome) {
                    node.reclaim.start(ctx, vid, Some(request));
                }
            }
            // Sessions follow the view; those who wait look again.
            ProposalUse::OpenSession { vid } | ProposalUse::CloseSession { vid } => {
                node.gateway.handle_vdi_changed(ctx, node.sessions, vid)
            }
            ProposalUse::CatchUp
            | ProposalUse::TakeSession { .. }
            | ProposalUse::Resign { .. }
            | ProposalUse::TimeOut { .. }
            | ProposalUse::DropCopies
            | ProposalUse::DiskFailed
            | ProposalUse::Rest { .. }
            | ProposalUse::Forget { .. }
            | ProposalUse::EnterPage
            | ProposalUse::Description => {}
        });
    }
}
