//! Questions of a session to the sessions of its ancestors: what of theirs is partial only they can put together.

use proto::client::{ClientError, ClientOp, ClientReply, ClientResult, NativeOp};
use proto::object::{BlockRange, Origin};
use proto::{BLOCK_BYTES, Oid};

use super::reads::Found;
use super::task::Kind;
use super::{Request, Requester, Session};
use crate::context::Context;

/// A question on its way, or its answer.
#[derive(Debug)]
pub(crate) enum Inner {
    Ask(Request),
    Done { to: Requester, result: ClientResult },
}

impl Session {
    pub(super) fn ask_inner(&mut self, ctx: &mut Context, task: u64, first: u32, op: ClientOp) {
        let requester = Requester::Session { vid: self.vid, task, first };
        ctx.out.inner.push_back(Inner::Ask(Request { requester, origin: Origin::default(), op }));
    }

    /// Reads blocks of an ancestor's object as the ancestor sees it.
    pub(super) fn read_through(&mut self, ctx: &mut Context, task: u64, oid: Oid, blocks: BlockRange) {
        let block = BLOCK_BYTES as u32;
        let op = NativeOp::Read { offset: blocks.first * block, len: blocks.count * block };
        self.ask_inner(ctx, task, blocks.first, ClientOp::Object { oid, op });
    }

    pub fn handle_inner(&mut self, ctx: &mut Context, task: u64, first: u32, result: ClientResult) {
        if self.tasks.get(&task).is_some_and(|t| matches!(t.kind, Kind::Changes { .. })) {
            self.tables_compared(ctx, task, result);
        } else {
            let (found, blocks) = match result {
                Ok(ClientReply::Data(data)) => {
                    let blocks = BlockRange::new(first, (data.len() / BLOCK_BYTES) as u32);
                    (Found::Data(data), blocks)
                }
                Err(ClientError::NoObject) => {
                    self.fail_task(task, ClientError::NoObject);
                    (Found::Absent, BlockRange::new(first, 0))
                }
                _ => (Found::Failed, BlockRange::new(first, 0)),
            };
            self.task_read_done(ctx, task, blocks, found);
        }
        self.run(ctx);
    }
}
