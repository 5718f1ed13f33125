//! The store as the shell sees it, and the absence of one.

use std::collections::VecDeque;
use std::io;

use node::Ticket;
use proto::object::{JournalVerified, ObjectOp, ObjectReply, StoreFailure};
use store::{FileDisk, IoFailed, IoId, IoOp, Store};

use crate::io::{Completion, Deed, DiskOrder};

/// Objects on a disk, without the disk: takes orders for objects, gives orders for the disk.
pub trait ObjectStore {
    fn submit(&mut self, ticket: Ticket, op: ObjectOp);
    fn poll_io(&mut self) -> Option<DiskOrder>;
    fn handle_io(&mut self, completion: Completion);
    fn poll_reply(&mut self) -> Option<(Ticket, ObjectReply)>;
    fn space(&self) -> Space;
    /// Starts to bring everything home, so that the next open is quick.
    fn begin_checkpoint(&mut self);
    /// See [`Store::wants_to_write_ahead`].
    fn wants_to_write_ahead(&self) -> bool;
    /// See [`Store::is_short_of_written`].
    fn is_short_of_written(&self) -> bool;
    fn write_ahead(&mut self, pieces: u32);
    /// See [`Store::awaits_room`].
    fn awaits_room(&self) -> bool;
    /// Is nothing on its way to the disk?
    fn is_quiet(&self) -> bool;
    /// The disk failed: this store answers nothing but that.
    fn is_failed(&self) -> bool;
    /// Gives the disk up.
    fn fail(&mut self);
    /// Why it should be given up though no I/O has failed.
    fn trouble(&self) -> Option<String>;
    /// What an operator calls the disk.
    fn disk_name(&self) -> String;
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    pub size_bytes: u64,
    pub used_bytes: u64,
    /// It refuses what needs room.
    pub is_full: bool,
}

/// A store on a file or block device.
pub struct DiskStore {
    store: Store,
    /// Holds the lock on it.
    disk: FileDisk,
}

impl DiskStore {
    pub fn new(store: Store, disk: FileDisk) -> DiskStore {
        DiskStore { store, disk }
    }

    /// Two places that log: reads that fail are as many as guests ask for, and the log bounds what comes from one place (`logging/bound.rs`).
    fn tell_error(&self, error: &io::Error) {
        if self.store.is_failed() {
            tracing::error!("I/O error on disk {}, which is given up: {error}", self.disk_name());
        } else {
            tracing::error!("I/O error on disk {}: {error}", self.disk_name());
        }
    }
}

impl ObjectStore for DiskStore {
    fn submit(&mut self, ticket: Ticket, op: ObjectOp) {
        self.store.submit(ticket.0, op);
    }

    fn poll_io(&mut self) -> Option<DiskOrder> {
        let request = self.store.poll_io()?;
        let deed = match request.op {
            IoOp::Read { offset, len } => Deed::Read { offset, len },
            IoOp::Write { offset, data, durable } => Deed::Write { offset, data, durable },
            IoOp::Sync => Deed::Sync,
            IoOp::Grow { size_bytes } => Deed::Grow { size_bytes },
        };
        Some(DiskOrder { id: request.id.0, deed })
    }

    fn handle_io(&mut self, completion: Completion) {
        // One that was given up says so over and over.
        let was_failed = self.store.is_failed();
        let mut trouble = None;
        let result = completion.result.map_err(|error| {
            if matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
            ) {
                tracing::debug!("no room for {}: {error}", self.disk.path().display());
                return IoFailed::NoRoom;
            }
            trouble = Some(error);
            IoFailed::Disk
        });
        self.store.handle_io(IoId(completion.id), result);
        if let Some(error) = trouble.filter(|_| !was_failed) {
            self.tell_error(&error);
        }
    }

    fn poll_reply(&mut self) -> Option<(Ticket, ObjectReply)> {
        self.store.poll_reply().map(|(ticket, reply)| (Ticket(ticket), reply))
    }

    fn space(&self) -> Space {
        if self.store.is_failed() {
            return Space::default();
        }
        let usage = self.store.usage();
        Space { size_bytes: usage.size_bytes, used_bytes: usage.used_bytes, is_full: usage.is_full }
    }

    fn begin_checkpoint(&mut self) {
        self.store.begin_checkpoint();
    }

    fn wants_to_write_ahead(&self) -> bool {
        self.store.wants_to_write_ahead()
    }

    fn is_short_of_written(&self) -> bool {
        self.store.is_short_of_written()
    }

    fn write_ahead(&mut self, pieces: u32) {
        self.store.write_ahead(pieces);
    }

    fn awaits_room(&self) -> bool {
        self.store.awaits_room()
    }

    fn is_quiet(&self) -> bool {
        self.store.is_quiet()
    }

    fn is_failed(&self) -> bool {
        self.store.is_failed()
    }

    fn fail(&mut self) {
        self.store.fail();
    }

    fn trouble(&self) -> Option<String> {
        self.disk.trouble()
    }

    fn disk_name(&self) -> String {
        format!("{} ({:016x})", self.disk.path().display(), self.store.store_id())
    }
}

/// What a gateway has.
#[derive(Default)]
pub struct NoStore {
    replies: VecDeque<(Ticket, ObjectReply)>,
}

impl ObjectStore for NoStore {
    fn submit(&mut self, ticket: Ticket, op: ObjectOp) {
        let reply = match op {
            ObjectOp::Read { .. }
            | ObjectOp::Verify { .. }
            | ObjectOp::Checksums { .. }
            | ObjectOp::Recorded { .. }
            | ObjectOp::Compare { .. } => ObjectReply::Absent,
            ObjectOp::List { .. } => ObjectReply::Objects(Vec::new()),
            ObjectOp::VerifyJournal { .. } => {
                ObjectReply::JournalVerified(JournalVerified { next: 1, ..JournalVerified::default() })
            }
            ObjectOp::Amend { .. } | ObjectOp::Mend { .. } | ObjectOp::Settle { .. } | ObjectOp::Flush => {
                ObjectReply::Done
            }
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

    fn wants_to_write_ahead(&self) -> bool {
        false
    }

    fn is_short_of_written(&self) -> bool {
        false
    }

    fn write_ahead(&mut self, _pieces: u32) {}

    fn awaits_room(&self) -> bool {
        false
    }

    fn is_quiet(&self) -> bool {
        true
    }

    fn is_failed(&self) -> bool {
        false
    }

    fn fail(&mut self) {}

    fn trouble(&self) -> Option<String> {
        None
    }

    fn disk_name(&self) -> String {
        "none".into()
    }
}
