//! What this copy gives to one that catches up: content, and which changes are part of it.
//!
//! Stores carry out operations in the order of submission, so what is unsettled here when a read is submitted is exactly what the
//! data will show; except for a change that the store then turns out to have no room for. So the answer waits for those
//! that were under way, and leaves out those that failed.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::object::{BlockRange, ObjectInfo, ObjectOp, ObjectReply, Stamp, StoreFailure, Unsettled};
use proto::peer::{Fetched, PeerReply};
use proto::{NodeId, Oid, PgId};

use super::Replica;
use crate::context::{Context, StoreUse};

#[derive(Debug, Default)]
pub(super) struct Serving {
    next: u64,
    fetches: BTreeMap<u64, Fetch>,
}

#[derive(Debug)]
struct Fetch {
    to: NodeId,
    call: u64,
    oid: Oid,
    blocks: Option<BlockRange>,
    /// They cannot all be read: their checksums are looked up instead.
    damaged: bool,
    marks: Vec<Unsettled>,
    /// Orders of `marks` that the store has not answered.
    awaited: BTreeMap<u64, Stamp>,
    found: Option<ObjectReply>,
}

impl Replica {
    pub(super) fn serve_fetch(
        &mut self,
        ctx: &mut Context,
        to: NodeId,
        call: u64,
        oid: Oid,
        blocks: Option<BlockRange>,
    ) {
        let concerns = |c: &Unsettled| {
            let overlaps = c.blocks.zip(blocks).is_none_or(|(changed, asked)| changed.overlaps(asked));
            c.oid == oid && overlaps
        };
        let entries = self.vdis.get(&oid.vid()).into_iter().flat_map(|log| log.unsettled.values());
        let entries: Vec<_> = entries.filter(|e| concerns(&e.change)).collect();
        let marks = entries.iter().map(|e| e.change).collect();
        let awaited = entries.iter().filter_map(|e| Some((e.order?, e.change.stamp))).collect();
        self.serving.next += 1;
        let fetch = self.serving.next;
        self.serving
            .fetches
            .insert(fetch, Fetch { to, call, oid, blocks, damaged: false, marks, awaited, found: None });
        let op = match blocks {
            Some(blocks) => ObjectOp::Read { oid, blocks },
            None => ObjectOp::Recorded { oid, blocks: BlockRange::ALL },
        };
        ctx.store(op, StoreUse::Fetch { fetch });
    }

    /// What cannot be read here is told by its checksums: whoever asks may have the same. They may be those of a change that is submitted after the
    /// marks were taken; but then whoever has the same has that change too.
    pub fn handle_fetch_read(&mut self, ctx: &mut Context, id: u64, reply: ObjectReply) {
        let Some(fetch) = self.serving.fetches.get_mut(&id) else { return };
        if let (ObjectReply::Failed(StoreFailure::Corrupt { .. }), Some(blocks), false) =
            (&reply, fetch.blocks, fetch.damaged)
        {
            fetch.damaged = true;
            let op = ObjectOp::Recorded { oid: fetch.oid, blocks };
            return ctx.store(op, StoreUse::Fetch { fetch: id });
        }
        fetch.found = Some(reply);
        self.answer_fetches(ctx);
    }

    /// It is not answered any more.
    pub fn end_fetch(&mut self, id: u64) {
        self.serving.fetches.remove(&id);
    }

    /// The store has carried out a change, or has not.
    pub(super) fn end_serving(&mut self, ctx: &mut Context, order: u64, done: bool) {
        for fetch in self.serving.fetches.values_mut() {
            if let Some(stamp) = fetch.awaited.remove(&order).filter(|_| !done) {
                fetch.marks.retain(|mark| mark.stamp != stamp);
            }
        }
        self.answer_fetches(ctx);
    }

    fn answer_fetches(&mut self, ctx: &mut Context) {
        let complete = |_: &u64, f: &mut Fetch| f.awaited.is_empty() && f.found.is_some();
        for (_, fetch) in self.serving.fetches.extract_if(.., complete) {
            let Fetch { to, call, oid, marks, found, damaged, .. } = fetch;
            let (found, data) = match found.expect("it is complete") {
                // That is newer than the marks.
                ObjectReply::Absent if damaged => {
                    ctx.reply(to, call, PeerReply::Failed(StoreFailure::Corrupt { oid, block: 0 }));
                    continue;
                }
                ObjectReply::Absent if ctx.view.vdi(oid.vid()).is_none() => (Fetched::Removed, Bytes::new()),
                ObjectReply::Absent => (Fetched::Absent, Bytes::new()),
                ObjectReply::Checksums(checksums) if damaged => (Fetched::Damaged(checksums), Bytes::new()),
                ObjectReply::Checksums(checksums) => (Fetched::Length(checksums.len() as u32), Bytes::new()),
                ObjectReply::Data { data, checksums } => (Fetched::Blocks(checksums), data),
                ObjectReply::Failed(failure) => {
                    ctx.reply(to, call, PeerReply::Failed(failure));
                    continue;
                }
                ObjectReply::Done
                | ObjectReply::Taken
                | ObjectReply::Verified(_)
                | ObjectReply::JournalVerified(_)
                | ObjectReply::Objects(_)
                | ObjectReply::Differing(_) => {
                    unreachable!("not an answer to a read")
                }
            };
            let pressure = ctx.out.strain.pressure();
            ctx.reply(to, call, PeerReply::Fetched { found, marks, pressure, data });
        }
    }

    /// Objects of these PGs with unsettled changes: one that was deleted is not listed by the store, but its deletion has to be known
    /// to whoever catches up.
    pub fn objects_with_marks(&self, ctx: &Context, pgs: &BTreeSet<PgId>) -> Vec<ObjectInfo> {
        let entries = self.vdis.values().flat_map(|log| log.unsettled.values());
        let wanted = |oid| ctx.view.pg_of(oid).is_some_and(|pg| pgs.contains(&pg));
        let found: BTreeSet<Oid> = entries.map(|e| e.change.oid).filter(|oid| wanted(*oid)).collect();
        found.into_iter().map(|oid| ObjectInfo { oid, allocated_bytes: 0 }).collect()
    }
}
