//! The cluster's state, as every sheep holds it: what the entries of the total order add up to.
//!
//! [`View::apply`] is a pure function of the view and the entry, so all views of one version are equal. Nobody changes a
//! view in another way. The rules that protect data stand here: who may leave an in-sync set ([`pg`]), who owns a
//! session ([`session`]), which vid a name gets ([`vdi`]).

mod info;
mod member;
mod pg;
mod session;
mod vdi;

use std::collections::BTreeMap;

use proto::client::ClientError;
use proto::cluster::{Action, ClusterEvent, FormatOptions, LogEntry};
use proto::{Epoch, Generation, Incarnation, Lineage, NodeId, Oid, PgId, Vid, ViewVersion};
use serde::{Deserialize, Serialize};

pub use member::MemberState;
pub use pg::{CatchingUp, Pg, Pool};
pub use session::SessionState;
pub use vdi::Vdi;

/// State flag of spec section 7.3 that a view acts upon.
pub const FLAG_STRICT: u16 = 0x0001;
pub const FLAG_USE_LOCK: u16 = 0x0008;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    version: ViewVersion,
    format: Option<FormatOptions>,
    epoch: Epoch,
    shut_down: bool,
    members: BTreeMap<NodeId, MemberState>,
    pools: Vec<Pool>,
    vdis: BTreeMap<Vid, Vdi>,
    sessions: BTreeMap<Vid, SessionState>,
    epochs: Vec<proto::client::EpochInfo>,
}

/// What an entry did, for the node that holds this view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The answer to a proposal: who proposed it, its id, and how it ended.
    pub outcome: Option<(NodeId, Incarnation, u64, Outcome)>,
    /// PGs whose targets, in-sync or catching-up copies changed.
    pub pgs: Vec<PgId>,
    /// VDIs whose session or existence changed.
    pub vdis: Vec<Vid>,
    /// Members came or went.
    pub membership: bool,
    pub shut_down: bool,
    /// The cluster was formatted anew: nothing that existed before exists any more.
    pub formatted: bool,
}

/// How a proposal ended. `Refused`: what it compared has changed; whoever proposed it looks again.
pub type Outcome = Result<Accepted, ClientError>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    Done,
    Refused,
    Vdi(Vid),
    Session { generation: Generation },
}

impl View {
    /// Applies the next entry.
    ///
    /// # Panics
    /// If the entry is not the next one: a driver that leaves a gap would make views differ.
    pub fn apply(&mut self, entry: &LogEntry) -> Applied {
        assert_eq!(entry.version.0, self.version.0 + 1, "entries arrive without gaps");
        self.version = entry.version;
        let mut applied = Applied::default();
        match &entry.event {
            ClusterEvent::Join(info) => self.apply_join(info, entry.time_ns, &mut applied),
            ClusterEvent::Leave(lives) => self.apply_leave(lives, entry.time_ns, &mut applied),
            ClusterEvent::Message { from, incarnation, proposal } => {
                // A message of a life that is over must not act: its sender has been replaced.
                if self.is_alive(*from, *incarnation) {
                    let outcome =
                        self.apply_action(*from, *incarnation, &proposal.action, entry.time_ns, &mut applied);
                    applied.outcome = Some((*from, *incarnation, proposal.id, outcome));
                }
            }
        }
        applied
    }

    fn apply_action(
        &mut self,
        from: NodeId,
        incarnation: Incarnation,
        action: &Action,
        time_ns: u64,
        applied: &mut Applied,
    ) -> Outcome {
        if let Action::Format(options) = action {
            return self.apply_format(options, time_ns, applied);
        }
        if self.format.is_none() {
            return Err(ClientError::WaitForFormat);
        }
        match action {
            Action::Format(_) => unreachable!("handled above"),
            Action::Shutdown => {
                self.shut_down = true;
                applied.shut_down = true;
                Ok(Accepted::Done)
            }
            Action::CreateVdi { name, size, policy, block_size_shift } => {
                self.create_vdi(name, *size, *policy, *block_size_shift, time_ns, applied)
            }
            Action::DeleteVdi { vid } => self.delete_vdi(*vid, applied),
            Action::ResizeVdi { vid, size } => self.resize_vdi(*vid, *size),
            Action::OpenSession { vid, last } => self.open_session(*vid, *last, from, incarnation, applied),
            Action::CloseSession { vid, generation } => self.close_session(*vid, *generation, from, applied),
            Action::DropCopies { node, pgs } => self.drop_copies(*node, pgs, applied),
            Action::StartCatchUp { pgs } => self.start_catch_up(from, pgs, applied),
            Action::FinishCatchUp { pgs } => self.finish_catch_up(from, pgs, applied),
            Action::LockVdi { vid, shared } => self.lock_vdi(*vid, from, *shared),
            Action::UnlockVdi { vid, shared } => self.unlock_vdi(*vid, from, *shared),
        }
    }

    pub fn version(&self) -> ViewVersion {
        self.version
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn format(&self) -> Option<&FormatOptions> {
        self.format.as_ref()
    }

    pub fn is_shut_down(&self) -> bool {
        self.shut_down
    }

    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    pub fn pg(&self, id: PgId) -> Option<&Pg> {
        self.pools.get(usize::from(id.pool.0))?.pgs.get(id.index as usize)
    }

    pub fn vdis(&self) -> &BTreeMap<Vid, Vdi> {
        &self.vdis
    }

    /// A VDI that exists and is not deleted.
    pub fn vdi(&self, vid: Vid) -> Option<&Vdi> {
        self.vdis.get(&vid).filter(|v| !v.deleted)
    }

    pub fn session(&self, vid: Vid) -> SessionState {
        self.sessions.get(&vid).copied().unwrap_or_default()
    }

    pub fn members(&self) -> &BTreeMap<NodeId, MemberState> {
        &self.members
    }

    /// The current life of a member, `None` if it is down or unknown.
    pub fn incarnation(&self, id: NodeId) -> Option<Incarnation> {
        self.members.get(&id)?.incarnation
    }

    pub fn is_up(&self, id: NodeId) -> bool {
        self.incarnation(id).is_some()
    }

    pub fn is_alive(&self, id: NodeId, incarnation: Incarnation) -> bool {
        self.incarnation(id) == Some(incarnation)
    }

    /// Is this life of any member still going on? Gateways are known by their incarnation alone.
    pub fn is_incarnation_alive(&self, incarnation: Incarnation) -> bool {
        self.members.values().any(|m| m.incarnation == Some(incarnation))
    }

    /// Which PG an object belongs to: decided by its VDI's lineage and its index.
    pub fn pg_of(&self, oid: Oid) -> Option<PgId> {
        let vdi = self.vdis.get(&oid.vid())?;
        self.pg_in(vdi, oid)
    }

    fn pg_in(&self, vdi: &Vdi, oid: Oid) -> Option<PgId> {
        let pool = self.pools.get(usize::from(vdi.pool.0))?;
        Some(PgId { pool: vdi.pool, index: pg_index(vdi.lineage, oid, pool.pgs.len() as u32) })
    }
}

/// Objects of other kinds than data hash by kind and index, the inode as one more index.
fn pg_index(lineage: Lineage, oid: Oid, pg_count: u32) -> u32 {
    use proto::ObjectKind;
    let index = match oid.kind() {
        Some(ObjectKind::Data) => u64::from(oid.index()),
        Some(ObjectKind::Inode) => u64::MAX,
        _ => oid.0 >> 56 << 32 | u64::from(oid.index()),
    };
    placement::pg_of(lineage, index, pg_count)
}

#[cfg(test)]
mod tests;
