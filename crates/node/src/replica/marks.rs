//! The marks of a copy that catches up: what it remembered of its changes is forgotten, durably, and what its source remembers is
//! taken over with the content.
//!
//! A crash in between needs no care: a copy that was down while it caught up starts again, and forgets again.

use std::collections::{BTreeMap, BTreeSet};

use proto::object::{AMENDED_MAX, BlockRange, ObjectOp, Stamp, Unsettled};
use proto::{Oid, PgId};

use super::{Entry, Replica};
use crate::context::{Context, StoreUse};

/// Amendments that the store has not answered, by PG.
#[derive(Debug, Default)]
pub(super) struct Forgetting(BTreeMap<PgId, usize>);

/// What the store has to be told when an object is complete.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Amendment {
    pub forget: Vec<Unsettled>,
    pub remember: Vec<Unsettled>,
}

impl Replica {
    /// This node's copy of a PG starts from scratch: what was known of its changes means nothing, since the blocks are
    /// fetched anew and a change that arrives again must be carried out again, after them.
    ///
    /// What the store has not answered yet is forgotten there when it has, unless it has been accepted anew.
    pub fn forget_pg(&mut self, ctx: &mut Context, pg: PgId) {
        let of_pg = |change: &mut Unsettled| ctx.view.pg_of(change.oid) == Some(pg);
        let mut forget: Vec<Unsettled> = self.strays.extract_if(.., of_pg).collect();
        for log in self.vdis.values_mut() {
            let of_pg = |_: &Stamp, e: &mut Entry| ctx.view.pg_of(e.change.oid) == Some(pg);
            let gone = log.unsettled.extract_if(.., of_pg);
            forget.extend(gone.filter(|(_, e)| e.order.is_none()).map(|(_, e)| e.in_store()));
        }
        self.forget_in_store(ctx, forget);
    }

    /// What this copy may have of the PG and others lack.
    pub fn marks_of(&self, ctx: &Context, pg: PgId) -> Vec<(Oid, Option<BlockRange>)> {
        let entries = self.vdis.values().flat_map(|log| log.unsettled.values().map(|e| e.change));
        let orders = self.vdis.values().flat_map(|log| log.orders.values().copied());
        let all = entries.chain(orders).chain(self.strays.iter().copied());
        all.filter(|c| ctx.view.pg_of(c.oid) == Some(pg)).map(|c| (c.oid, c.blocks)).collect()
    }

    /// What is remembered belongs to an earlier format, whose vids may be given again.
    pub fn forget_all(&mut self, ctx: &mut Context) {
        let logs = std::mem::take(&mut self.vdis).into_values();
        let known = logs.flat_map(|log| log.unsettled.into_values()).map(|entry| entry.in_store());
        let forget: Vec<Unsettled> = known.chain(std::mem::take(&mut self.strays)).collect();
        self.forgetting = Forgetting::default();
        self.absences = Default::default();
        for forget in forget.chunks(AMENDED_MAX) {
            let op = ObjectOp::Amend { forget: forget.to_vec(), remember: Vec::new() };
            ctx.store(op, StoreUse::Wiped);
        }
    }

    pub(super) fn forget_in_store(&mut self, ctx: &mut Context, changes: Vec<Unsettled>) {
        let mut by_pg: BTreeMap<PgId, Vec<Unsettled>> = BTreeMap::new();
        for change in changes {
            if let Some(pg) = ctx.view.pg_of(change.oid) {
                by_pg.entry(pg).or_default().push(change);
            }
        }
        for (pg, changes) in by_pg {
            for forget in changes.chunks(AMENDED_MAX) {
                let op = ObjectOp::Amend { forget: forget.to_vec(), remember: Vec::new() };
                ctx.store(op, StoreUse::Forgotten { pg });
                *self.forgetting.0.entry(pg).or_default() += 1;
            }
        }
    }

    pub fn handle_forgotten(&mut self, pg: PgId) {
        if let Some(left) = self.forgetting.0.get_mut(&pg) {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.forgetting.0.remove(&pg);
            }
        }
    }

    /// Does the store still remember, or may it come to remember, what was forgotten of this PG?
    pub fn is_forgetting(&self, ctx: &Context, pg: PgId) -> bool {
        let left_over = |log: &super::VdiLog| {
            log.orders.iter().any(|(order, change)| {
                let current = log.unsettled.get(&change.stamp).is_some_and(|e| e.order == Some(*order));
                !current && ctx.view.pg_of(change.oid) == Some(pg)
            })
        };
        self.forgetting.0.contains_key(&pg) || self.vdis.values().any(left_over)
    }

    /// Is it known to this copy otherwise than by fetching? Then its content is here whole, or will be.
    pub fn has_carried_out(&self, change: &Unsettled) -> bool {
        let entry = self.vdis.get(&change.vid).and_then(|log| log.unsettled.get(&change.stamp));
        entry.is_some_and(|e| !e.inherited || e.order.is_some())
    }

    /// These changes are part of what is about to be written here. They are listed from now on, so that no seal passes them by.
    pub fn inherit(&mut self, marks: &[Unsettled]) {
        for mark in marks {
            let log = self.vdis.entry(mark.vid).or_default();
            if mark.stamp > log.settled && !log.around.contains(mark.stamp) {
                let entry = || Entry { inherited: true, ..Entry::remembered(*mark) };
                log.unsettled.entry(mark.stamp).or_insert_with(entry);
            }
        }
    }

    /// The object is complete, and of what was inherited with it only the changes `included` are part of it. What has the
    /// store to be told, so that it remembers all that is unsettled of the object?
    pub fn complete_object(&mut self, oid: Oid, included: &BTreeSet<Stamp>) -> Amendment {
        let mut amendment = Amendment::default();
        let Some(log) = self.vdis.get_mut(&oid.vid()) else { return amendment };
        let doubtful = |stamp: &Stamp, e: &mut Entry| {
            e.inherited && e.order.is_none() && e.change.oid == oid && !included.contains(stamp)
        };
        let dropped = log.unsettled.extract_if(.., doubtful);
        amendment.forget.extend(dropped.map(|(_, entry)| entry.change));
        for entry in log.unsettled.values_mut().filter(|e| e.change.oid == oid) {
            if entry.inherited {
                amendment.remember.push(entry.change);
            } else if entry.carried_out != entry.change.blocks {
                // A clone that lacked its base has all of it now.
                amendment.forget.push(entry.in_store());
                amendment.remember.push(entry.change);
                entry.carried_out = entry.change.blocks;
            }
        }
        amendment
    }

    /// Orders concerning this object that the store has not answered.
    pub fn orders_of(&self, oid: Oid) -> impl Iterator<Item = u64> + '_ {
        let log = self.vdis.get(&oid.vid());
        let orders = log.into_iter().flat_map(|log| &log.orders);
        orders.filter(move |(_, change)| change.oid == oid).map(|(order, _)| *order)
    }

    /// What this copy itself has carried out of an object, or is about to, and still lists.
    pub fn own_changes(&self, oid: Oid) -> impl Iterator<Item = (Stamp, Option<BlockRange>)> + '_ {
        let entries = self.vdis.get(&oid.vid()).into_iter().flat_map(|log| log.unsettled.values());
        let own = entries.filter(move |e| e.change.oid == oid && (!e.inherited || e.order.is_some()));
        own.map(|e| (e.change.stamp, e.carried_out))
    }
}
