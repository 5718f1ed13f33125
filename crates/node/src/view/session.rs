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
}

impl View {
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
        let opened = SessionState { generation, owner: Some((from, incarnation)), clean: session.clean };
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
        self.sessions.insert(vid, SessionState { generation, owner: None, clean: generation });
        applied.vdis.push(vid);
        Ok(Accepted::Done)
    }

    pub(super) fn orphan_sessions_of(&mut self, node: NodeId, applied: &mut Applied) {
        for (vid, session) in &mut self.sessions {
            if session.owner.is_some_and(|(owner, _)| owner == node) {
                session.owner = None;
                applied.vdis.push(*vid);
            }
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
