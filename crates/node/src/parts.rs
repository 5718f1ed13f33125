//! The parts of a node as they meet in one event, and what needs nothing else of it.

use std::collections::{BTreeMap, BTreeSet};

use proto::client::ClientOp;
use proto::object::{ObjectInfo, ObjectReply};
use proto::peer::PeerReply;
use proto::{NodeId, Oid, PgId, Since};

use crate::catchup::CatchUp;
use crate::chronicle::Chronicle;
use crate::context::Context;
use crate::gateway::{Gateway, Sessions};
use crate::overdue::Overdue;
use crate::reclaim::Reclaim;
use crate::replica::Replica;
use crate::scrub::Scrub;
use crate::session::{Inner, Requester};
use crate::sweep::Sweeps;
use crate::view::View;

/// The parts of a node, apart from what [`Context`] lends them.
pub(crate) struct Parts<'a> {
    pub sessions: &'a mut Sessions,
    pub replica: &'a mut Replica,
    pub gateway: &'a mut Gateway,
    pub catch_up: &'a mut CatchUp,
    pub sweeps: &'a mut Sweeps,
    pub reclaim: &'a mut Reclaim,
    pub overdue: &'a mut Overdue,
    pub scrub: &'a mut Scrub,
    pub chronicle: &'a mut Chronicle,
}

impl Parts<'_> {
    pub fn handle_inner(&mut self, ctx: &mut Context, inner: Inner) {
        match inner {
            Inner::Ask(request) => self.gateway.route(ctx, self.sessions, request),
            Inner::Done { to: Requester::Session { vid, task, first }, result } => {
                if let Some(session) = self.sessions.get_mut(&vid) {
                    session.handle_inner(ctx, task, first, result);
                }
            }
            Inner::Done { to: Requester::Reclaim { job, ask }, result } => {
                self.reclaim.handle_table(ctx, job, ask, result);
            }
            Inner::Done { to: Requester::Scrub { ask }, result } => {
                self.scrub.handle_checked(ctx, ask, result)
            }
            Inner::Done { to, .. } => unreachable!("{to:?} asks in another way"),
        }
    }
}

pub(crate) fn is_forwardable(op: &ClientOp) -> bool {
    use proto::client::{VdiOp, VolumeOp};
    match op {
        ClientOp::Volume { op, .. } => !matches!(op, VolumeOp::Resize { .. }),
        ClientOp::Object { .. } | ClientOp::Vdi(VdiOp::Usage { .. } | VdiOp::Table { .. }) => true,
        ClientOp::Vdi(_) | ClientOp::Cluster(_) => false,
    }
}

pub(crate) fn all_pgs(view: &View) -> Vec<PgId> {
    let pools = view.pools().iter().enumerate();
    pools
        .flat_map(|(number, pool)| {
            (0..pool.pgs.len() as u32).map(move |index| PgId { pool: proto::PoolId(number as u8), index })
        })
        .collect()
}

/// The part of a page of this node's objects that belongs to the PGs asked for; deleted ones too, while that is unsettled.
pub(crate) fn answer_list(
    ctx: &mut Context,
    replica: &Replica,
    to: NodeId,
    call: u64,
    pgs: &[(PgId, Since)],
    first: Oid,
    reply: ObjectReply,
) {
    let ObjectReply::Objects(objects) = reply else {
        return ctx.reply(to, call, PeerReply::Failed(proto::object::StoreFailure::DiskFailed));
    };
    let complete = objects.len() < crate::replica::LIST_PAGE as usize;
    // The asker goes on after the last object it is told of, so an incomplete page names its end.
    let end = objects.last().map(|o| o.oid).filter(|_| !complete);
    let asked: BTreeSet<PgId> = pgs.iter().map(|(pg, _)| *pg).collect();
    let wanted = |oid| Some(oid) == end || ctx.view.pg_of(oid).is_some_and(|pg| asked.contains(&pg));
    let marked = replica.objects_with_marks(ctx, &asked);
    let in_page = |o: &ObjectInfo| first <= o.oid && end.is_none_or(|end| o.oid <= end);
    let found: BTreeMap<Oid, ObjectInfo> =
        marked.into_iter().filter(in_page).chain(objects).map(|o| (o.oid, o)).collect();
    let objects = found.into_values().filter(|o| wanted(o.oid)).collect();
    ctx.reply(to, call, PeerReply::Objects { objects, complete });
}
