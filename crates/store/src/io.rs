//! What a store asks of its disk, and what it says about itself.

use bytes::Bytes;

/// Pairs a completion with its request. Never used twice by one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoId(pub u64);

/// An order to the disk. Orders that were polled may be carried out at the same time and in any order: the store asks for
/// nothing that depends on an unfinished one.
#[derive(Clone, Debug)]
pub struct IoRequest {
    pub id: IoId,
    pub op: IoOp,
}

/// Offsets and lengths are multiples of 4 KiB.
#[derive(Clone, Debug)]
pub enum IoOp {
    Read {
        offset: u64,
        len: usize,
    },
    /// Writes the pieces one after the other from `offset` on; each is aligned to 4 KiB in memory too. `durable`: completed
    /// only when on stable storage (`O_DIRECT` with `RWF_DSYNC`, or FUA). Else a later `Sync` makes it so.
    Write {
        offset: u64,
        data: Vec<Bytes>,
        durable: bool,
    },
    /// Everything completed before this was asked for is on stable storage when it completes.
    Sync,
    /// Makes the disk so large, with all its room reserved in the file system, durably. One at a time; only where
    /// [`Disk::can_grow`](crate::Disk::can_grow). It may take its time, and may end with [`IoFailed::NoRoom`]: then the disk is what it was.
    Grow {
        size_bytes: u64,
    },
}

/// The bytes read (exactly `len`), or nothing for the others.
pub type IoResult = Result<Bytes, IoFailed>;

/// The disk could not do it. The shell logs the cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoFailed {
    #[error("the disk failed")]
    Disk,
    /// An expected end of `Grow`. A write never meets it, since its room was reserved: if it does, the disk failed.
    #[error("the file system has no room")]
    NoRoom,
}

/// How full a store is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Room for data, as decided at format. A file may have taken less so far.
    pub size_bytes: u64,
    /// Of that, in slots that are in use.
    pub used_bytes: u64,
    pub objects: u64,
    pub journal_bytes: u64,
    pub journal_used_bytes: u64,
    /// Written and not yet home; held in memory too.
    pub pending_bytes: u64,
    pub unsettled_changes: u64,
    pub failed: bool,
    /// An object of 4 MiB would be refused now.
    pub is_full: bool,
}
