//! Sessions: which sheep may write a VDI, and old clients' locks.

use proto::client::ClientError;
use proto::{Generation, Incarnation, NodeId, Vid};
use serde::{Deserialize, Serialize};

use super::{Accepted, Applied, FLAG_USE_LOCK, Life, Outcome, View};

/// Most holders of a shared lock (spec section 1.8).
const LOCK_HOLDERS_MAX: usize = 31;

/// The session of one VDI. A VDI that was never opened is in the default state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionState {
    pub generation: Generation,
    pub owner: Option<(NodeId, Incarnation)>,
    /// Generations up to this one ended with every write settled. Equal to `generation`: no need to seal.
    pub clean: Generation,
    /// Who takes the session as soon as its owner resigns, or is gone: the owner does not answer it.
    pub taker: Option<(NodeId, Incarnation)>,
    /// The owner has it for the sake of others that do not reach each other, and keeps it as long as they use it.
    pub between: bool,
}

impl View {
    pub fn session_owners(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.sessions.values().filter_map(|session| session.owner).map(|(node, _)| node)
    }

    /// A compare-and-set on the generation, so that of several who saw an owner die one succeeds it.
    pub(super) fn open_session(
        &mut self,
        vid: Vid,
        last: Generation,
        from: NodeId,
        incarnation: Incarnation,
        applied: &mut Applied,
    ) -> Outcome {
        let Some(vdi) = self.vdi(vid) else { return Err(ClientError::NoVdi) };
        if vdi.is_snapshot() {
            return Err(ClientError::ReadOnly);
        }
        let session = self.session(vid);
        // One that is about to be frozen may have come to rest already: nothing may be written to it any more.
        if session.generation != last || session.owner.is_some() || self.is_freezing(vid) {
            return Ok(Accepted::Refused);
        }
        let generation = Generation(last.0 + 1);
        let owner = Some((from, incarnation));
        let opened = SessionState { generation, owner, clean: session.clean, ..SessionState::default() };
        self.sessions.insert(vid, opened);
        applied.vdis.push(vid);
        Ok(Accepted::Session { generation })
    }

    pub(super) fn close_session(
        &mut self,
        vid: Vid,
        generation: Generation,
        from: NodeId,
        applied: &mut Applied,
    ) -> Outcome {
        let session = self.session(vid);
        if session.generation != generation || session.owner.map(|(node, _)| node) != Some(from) {
            return Ok(Accepted::Refused);
        }
        self.sessions.insert(vid, SessionState { generation, clean: generation, ..SessionState::default() });
        applied.vdis.push(vid);
        Ok(Accepted::Done)
    }

    /// The owner goes on until it hears of this, so it is asked to resign and not just replaced: until then it may answer reads.
    pub(super) fn take_session(
        &mut self,
        vid: Vid,
        generation: Generation,
        taker: NodeId,
        from: NodeId,
        applied: &mut Applied,
    ) -> Outcome {
        let frozen = self.is_freezing(vid);
        let Some(incarnation) = self.incarnation(taker) else { return Ok(Accepted::Refused) };
        let Some(session) = self.sessions.get_mut(&vid).filter(|s| s.generation == generation && !frozen)
        else {
            return Ok(Accepted::Refused);
        };
        if session.taker.is_some() || session.owner.is_none_or(|(owner, _)| [from, taker].contains(&owner)) {
            return Ok(Accepted::Refused);
        }
        session.taker = Some((taker, incarnation));
        session.between = taker != from;
        applied.vdis.push(vid);
        Ok(Accepted::Done)
    }

    pub(super) fn resign(
        &mut self,
        vid: Vid,
        generation: Generation,
        from: NodeId,
        applied: &mut Applied,
    ) -> Outcome {
        let session = self.session(vid);
        if session.generation != generation || session.owner.is_none_or(|(owner, _)| owner != from) {
            return Ok(Accepted::Refused);
        }
        self.pass_on(vid);
        applied.vdis.push(vid);
        Ok(Accepted::Done)
    }

    /// The session's owner serves it no more, and nothing is known to be settled.
    fn pass_on(&mut self, vid: Vid) {
        let session = self.session(vid);
        let taker = session.taker.filter(|(node, incarnation)| self.is_alive(*node, *incarnation));
        let generation = Generation(session.generation.0 + u64::from(taker.is_some()));
        self.sessions.insert(vid, SessionState { generation, owner: taker, taker: None, ..session });
    }

    pub(super) fn orphan_sessions_of(&mut self, node: NodeId, applied: &mut Applied) {
        let is_of = |holder: Option<(NodeId, Incarnation)>| holder.is_some_and(|(of, _)| of == node);
        for session in self.sessions.values_mut().filter(|s| is_of(s.taker)) {
            session.taker = None;
        }
        let orphaned: Vec<Vid> =
            self.sessions.iter().filter(|(_, s)| is_of(s.owner)).map(|(vid, _)| *vid).collect();
        for vid in orphaned {
            self.pass_on(vid);
            applied.vdis.push(vid);
        }
    }

    /// A lock of an old client; without USE_LOCK there are none and everybody may.
    pub(super) fn lock_vdi(&mut self, vid: Vid, from: NodeId, shared: bool) -> Outcome {
        let enforced = self.format.is_some_and(|f| f.flags & FLAG_USE_LOCK != 0);
        let Some(vdi) = self.vdis.get_mut(&vid).filter(|v| v.life == Life::Alive) else {
            return Err(ClientError::NoVdi);
        };
        // Snapshots are immutable: any number of readers.
        if !enforced || vdi.snap_ctime != 0 {
            return Ok(Accepted::Done);
        }
        // tgt has noticed the snapshot, under which its lock has moved here before.
        if let Some(at) = vdi.moved_locks.iter().position(|node| *node == from).filter(|_| shared) {
            vdi.moved_locks.remove(at);
            return Ok(Accepted::Done);
        }
        let compatible = vdi.locks.iter().all(|(node, s)| shared && *s && *node != from);
        if !compatible || vdi.locks.len() >= LOCK_HOLDERS_MAX {
            return Err(ClientError::Locked);
        }
        vdi.locks.push((from, shared));
        Ok(Accepted::Done)
    }

    pub(super) fn unlock_vdi(&mut self, vid: Vid, from: NodeId, shared: bool) -> Outcome {
        if let Some(vdi) = self.vdis.get_mut(&vid) {
            // A normal lock goes whoever asks, a shared one only with its holder, as old clients expect.
            vdi.locks.retain(|(node, s)| if *s { *node != from } else { shared });
            vdi.moved_locks.retain(|node| vdi.locks.contains(&(*node, true)));
        }
        Ok(Accepted::Done)
    }

    pub(super) fn unlock_all_of(&mut self, node: NodeId) {
        for vdi in self.vdis.values_mut() {
            vdi.locks.retain(|(holder, _)| *holder != node);
            vdi.moved_locks.retain(|holder| *holder != node);
        }
    }
}
