//! The cluster's state, as every sheep holds it: what the entries of the total order add up to.
//!
//! [`View::apply`] is a pure function of the view and the entry, so all views of one version are equal. Nobody changes a
//! view in another way. The rules that protect data stand here: who may leave an in-sync set ([`pg`]), who owns a
//! session ([`session`]), which vid a name gets ([`vdi`]). What has one name for NBD is one thing ([`export_names`]).

mod adopt;
mod attribute;
mod export_names;
mod health;
mod history;
mod info;
mod member;
mod out;
mod pages;
mod pg;
mod replace;
mod session;
mod snapshot;
mod stop;
mod vdi;

use std::collections::{BTreeMap, BTreeSet};

use proto::client::ClientError;
use proto::cluster::{Action, ClusterEvent, FormatOptions, LogEntry, RepairOptions};
use proto::{Epoch, Generation, Incarnation, Lineage, NodeId, Oid, PgId, Vid, ViewVersion};
use serde::{Deserialize, Serialize};

pub use member::MemberState;
pub use pages::EnteredPages;
pub use pg::{Absent, CatchingUp, Pg, Pool};
pub use session::SessionState;
pub use vdi::{Life, Vdi};

/// State flag of spec section 7.3 that a view acts upon.
pub const FLAG_STRICT: u16 = 0x0001;
pub const FLAG_USE_LOCK: u16 = 0x0008;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    version: ViewVersion,
    format: Option<FormatOptions>,
    /// The `ctime` of every format that this cluster has had: what a store may belong to.
    formats: BTreeSet<u64>,
    epoch: Epoch,
    shut_down: bool,
    members: BTreeMap<NodeId, MemberState>,
    pools: Vec<Pool>,
    vdis: BTreeMap<Vid, Vdi>,
    sessions: BTreeMap<Vid, SessionState>,
    /// Snapshots that wait for sessions to come to rest, by the version at which they were asked for.
    freezes: BTreeMap<u64, snapshot::Freeze>,
    /// By VDI name and key.
    attributes: BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>,
    epochs: Vec<proto::client::EpochInfo>,
    repair: RepairOptions,
    /// A sheep has been a member whose clients may be answered before their writes are durable.
    write_back: bool,
    /// Of targets, over the epochs.
    history: history::History,
}

/// What an entry did, for the node that holds this view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Answers to proposals: who proposed it, its id, and how it ended.
    pub outcomes: Vec<(NodeId, Incarnation, u64, Outcome)>,
    /// PGs whose targets, in-sync or catching-up copies changed.
    pub pgs: Vec<PgId>,
    /// Targets that PGs had before and have no more.
    pub former_targets: Vec<(PgId, Vec<NodeId>)>,
    /// VDIs whose session or existence changed.
    pub vdis: Vec<Vid>,
    /// Working VDIs that were frozen, and what took their place.
    pub frozen: Vec<(Vid, Vid)>,
    /// VDIs that were deleted.
    pub deleted: Vec<Vid>,
    /// The entry was a join and came to nothing.
    pub refused: Option<Refusal>,
    /// Members came or went.
    pub membership: bool,
    pub shut_down: bool,
    /// The cluster was formatted anew: nothing that existed before exists any more.
    pub formatted: bool,
}

/// Why a cluster does not take in who joins. Nothing of its store is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// This member is up with the same store.
    StoreInUse { by: NodeId },
    /// An older copy of the store that was this member's last: what was written to that since is not in it.
    Outdated { last: NodeId },
    /// The store belongs to another cluster: nothing that is on it is known here, so all of it would be removed, and be missing where it belongs.
    Foreign,
}

/// How a proposal ended. `Refused`: what it compared has changed; whoever proposed it looks again.
pub type Outcome = Result<Accepted, ClientError>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    Done,
    Refused,
    /// The outcome comes with a later entry.
    Later,
    Vdi(Vid),
    Vdis(Vec<Vid>),
    Session {
        generation: Generation,
    },
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
                    let who = (*from, *incarnation, proposal.id);
                    let outcome = self.apply_action(who, &proposal.action, entry.time_ns, &mut applied);
                    if outcome != Ok(Accepted::Later) {
                        applied.outcomes.push((*from, *incarnation, proposal.id, outcome));
                    }
                }
            }
        }
        self.advance_freezes(entry.time_ns, &mut applied);
        self.remember_places(std::mem::take(&mut applied.former_targets));
        applied
    }

    fn apply_action(
        &mut self,
        who: (NodeId, Incarnation, u64),
        action: &Action,
        time_ns: u64,
        applied: &mut Applied,
    ) -> Outcome {
        let (from, incarnation, _) = who;
        if let Action::Format(options) = action {
            return self.apply_format(options, time_ns, applied);
        }
        if let Action::DiskFailed { store_id } = action {
            return self.fail_disk(from, *store_id, applied);
        }
        if self.format.is_none() {
            return Err(ClientError::WaitForFormat);
        }
        match action {
            Action::Format(_) | Action::DiskFailed { .. } => unreachable!("handled above"),
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
            Action::EnterPage { vid, page } => self.enter_page(*vid, *page, applied),
            Action::Snapshot { vids, tag } => self.ask_snapshot(who, vids, tag, applied),
            Action::Rested { vid, generation, snapshot } => self.rested(*vid, *generation, *snapshot, from),
            Action::GiveUpSnapshot { vid, generation } => {
                self.give_up_snapshot(*vid, *generation, from, applied)
            }
            Action::CloneVdi { base, name, size, policy } => {
                self.clone_vdi(*base, name, *size, *policy, time_ns, applied)
            }
            Action::TakePlace { old, new } => self.take_place(*old, *new, applied),
            Action::Adopt { snapshot, name, tag } => self.adopt(*snapshot, name, tag, applied),
            Action::SetDefaultPolicy { policy } => self.set_default_policy(*policy),
            Action::Rollback { to, force } => self.roll_back(*to, *force, time_ns, applied),
            Action::DescribeVdi { vid, tag, vm_state_size, vm_clock_nsec } => {
                self.describe_vdi(*vid, tag, *vm_state_size, *vm_clock_nsec)
            }
            Action::ForgetVdi { vid } => self.forget_vdi(*vid, applied),
            Action::SetAttribute { name, key, value, exclusive } => {
                self.set_attribute(name, key, value, *exclusive)
            }
            Action::DeleteAttribute { name, key } => self.delete_attribute(name, key),
            Action::OpenSession { vid, last } => self.open_session(*vid, *last, from, incarnation, applied),
            Action::CloseSession { vid, generation } => self.close_session(*vid, *generation, from, applied),
            Action::SetRepair(change) => {
                self.repair.change(change);
                Ok(Accepted::Done)
            }
            Action::TimeOut { node, left } => self.time_out(*node, *left, applied),
            Action::SetOut { node, out } => self.set_out(*node, *out, applied),
            Action::ForceRecovery => self.force_recovery(applied),
            Action::TakeSession { vid, generation, taker } => {
                self.take_session(*vid, *generation, *taker, from, applied)
            }
            Action::Resign { vid, generation } => self.resign(*vid, *generation, from, applied),
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

    pub fn repair(&self) -> &RepairOptions {
        &self.repair
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
        self.vdis.get(&vid).filter(|v| v.life == Life::Alive)
    }

    /// A VDI whose table and objects may still be needed: one that exists, or a deleted one to which others refer.
    pub fn vdi_or_remains(&self, vid: Vid) -> Option<&Vdi> {
        self.vdis.get(&vid).filter(|v| v.life != Life::Gone)
    }

    /// The working VDI that `vid` has become by being snapshotted; itself if it was not.
    pub fn head_of(&self, vid: Vid) -> Vid {
        let mut head = vid;
        while let Some(next) = self.vdis.get(&head).and_then(|v| v.successor) {
            head = next;
        }
        head
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

    /// Is there a sheep that can read what it stores?
    pub fn is_serving(&self, id: NodeId) -> bool {
        self.is_up(id) && !self.has_failed_disk(id)
    }

    pub fn is_alive(&self, id: NodeId, incarnation: Incarnation) -> bool {
        self.incarnation(id) == Some(incarnation)
    }

    /// The member whose present life this is.
    pub fn member_in_life(&self, incarnation: Incarnation) -> Option<NodeId> {
        let is_it = |m: &&MemberState| m.incarnation == Some(incarnation);
        self.members.values().find(is_it).map(|m| m.info.id)
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
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
