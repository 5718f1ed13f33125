//! The store as the shell sees it, and the absence of one.

use std::collections::VecDeque;

use node::Ticket;
use proto::object::{ObjectOp, ObjectReply, StoreFailure, Unsettled};
use tokio::sync::mpsc;

use crate::home::Home;
use crate::io::{Completion, Disk, DiskOrder, EngineChoice};

/// Objects on a disk, without the disk: takes orders for objects, gives orders for the disk.
pub trait ObjectStore {
    fn submit(&mut self, ticket: Ticket, op: ObjectOp);
    fn poll_io(&mut self) -> Option<DiskOrder>;
    fn handle_io(&mut self, completion: Completion);
    fn poll_reply(&mut self) -> Option<(Ticket, ObjectReply)>;
    fn space(&self) -> Space;
    /// Starts to bring everything home, so that the next open is quick.
    fn begin_checkpoint(&mut self);
    /// Is nothing on its way to the disk?
    fn is_quiet(&self) -> bool;
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    pub size_bytes: u64,
    pub used_bytes: u64,
}

/// What a gateway has.
#[derive(Default)]
pub struct NoStore {
    replies: VecDeque<(Ticket, ObjectReply)>,
}

impl ObjectStore for NoStore {
    fn submit(&mut self, ticket: Ticket, op: ObjectOp) {
        let reply = match op {
            ObjectOp::Read { .. } | ObjectOp::Checksums { .. } => ObjectReply::Absent,
            ObjectOp::List { .. } => ObjectReply::Objects(Vec::new()),
            ObjectOp::Settle { .. } | ObjectOp::Flush => ObjectReply::Done,
            // Nobody places objects on a gateway. Whoever tries must not believe that they are stored.
            ObjectOp::Change { .. } => ObjectReply::Failed(StoreFailure::DiskFailed),
        };
        self.replies.push_back((ticket, reply));
    }

    fn poll_io(&mut self) -> Option<DiskOrder> {
        None
    }

    fn handle_io(&mut self, completion: Completion) {
        unreachable!("completion {} of an order that a gateway never gave", completion.id);
    }

    fn poll_reply(&mut self) -> Option<(Ticket, ObjectReply)> {
        self.replies.pop_front()
    }

    fn space(&self) -> Space {
        Space::default()
    }

    fn begin_checkpoint(&mut self) {}

    fn is_quiet(&self) -> bool {
        true
    }
}

/// A store, ready to be used.
pub struct Opened {
    pub store: Box<dyn ObjectStore>,
    pub disk: Option<(Disk, mpsc::UnboundedReceiver<Completion>)>,
    /// 0 for a gateway.
    pub store_id: u64,
    /// What the store cannot say is on all copies.
    pub unsettled: Vec<Unsettled>,
}

/// Opens (or formats) what is on the disk of this sheep.
pub async fn open(gateway: bool, home: &Home, engine: EngineChoice) -> anyhow::Result<Opened> {
    if gateway {
        let store = Box::new(NoStore::default());
        return Ok(Opened { store, disk: None, store_id: 0, unsettled: Vec::new() });
    }
    let _ = (home, engine);
    anyhow::bail!("this build has no store yet: only gateways ('-g')")
}
