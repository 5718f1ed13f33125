//! What one store does with objects: the operations between a replica and its disks.
//!
//! A store knows objects made of 4 KiB blocks; it knows no VDI, no cluster and no network. Operations
//! take effect in the order in which they are submitted: a read submitted after a write sees it, of two
//! overlapping writes the one submitted later wins. Each is answered once, when it is durable; answers may
//! come in any order. A change of which that is wanted ([`Tag::tell_taken`]) is announced before, when it cannot be refused any more. What a crash leaves is the effect of every answered operation, and of any subset
//! of the unanswered ones, each of them whole or not at all: a tag is remembered if and only if all blocks of
//! its change are there (the seal of a VDI relies on it).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Generation, Incarnation, Oid, RequestId, Seq, Vid};

/// The client request that a write came from: lets a new owner recognise a request it is sent again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Origin {
    pub incarnation: Incarnation,
    pub request: RequestId,
}

/// Names a write within the whole life of a VDI. The order is the order of writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stamp {
    pub generation: Generation,
    pub seq: Seq,
}

/// Which VDI's session a change belongs to, and everything up to `settled` is on all in-sync copies.
///
/// A store remembers every tagged change durably, across crashes, until it has seen a `settled` that
/// covers it (same generation), or a tag of the same `vid` with a higher generation and a `settled` of at least 1.
/// A session's first sequence number stands for its seal: while `settled` is 0 the seal is not complete,
/// and forgetting what older generations left would hide a difference between copies from the next seal.
/// [`Unsettled`] is what it remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    pub vid: Vid,
    pub stamp: Stamp,
    pub settled: Seq,
    pub origin: Origin,
    /// May take the room that a store holds back from others: another copy has this change already, and all have to be alike.
    pub last_room: bool,
    /// The store is to say [`ObjectReply::Taken`] as soon as it can, and to answer as always when the change is durable.
    pub tell_taken: bool,
}

/// Blocks of the largest object, 2 GiB.
pub const OBJECT_BLOCKS_MAX: u32 = (2 << 30) / crate::BLOCK_BYTES as u32;

/// A run of 4 KiB blocks within an object. What is decoded lies within the largest: whoever gets it may walk it block by block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u32, u32)")]
pub struct BlockRange {
    pub first: u32,
    pub count: u32,
}

impl TryFrom<(u32, u32)> for BlockRange {
    type Error = &'static str;

    fn try_from((first, count): (u32, u32)) -> Result<BlockRange, Self::Error> {
        let range = BlockRange { first, count };
        if range.end() <= u64::from(OBJECT_BLOCKS_MAX) {
            Ok(range)
        } else {
            Err("a run of blocks beyond the end of the largest object")
        }
    }
}

impl BlockRange {
    /// Of any object.
    pub const ALL: BlockRange = BlockRange { first: 0, count: OBJECT_BLOCKS_MAX };

    pub fn new(first: u32, count: u32) -> Self {
        BlockRange { first, count }
    }

    /// One past the last block; wide enough that no range can wrap.
    pub fn end(self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }

    pub fn overlaps(self, other: BlockRange) -> bool {
        u64::from(self.first) < other.end() && u64::from(other.first) < self.end()
    }

    pub fn contains(self, block: u32) -> bool {
        self.first <= block && u64::from(block) < self.end()
    }
}

/// A change that some replica may hold and another may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsettled {
    pub vid: Vid,
    pub stamp: Stamp,
    pub origin: Origin,
    pub oid: Oid,
    /// `None`: the whole object (it was created anew, or deleted).
    pub blocks: Option<BlockRange>,
}

/// What a write does with the blocks it does not cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteBase {
    /// They stay; an absent object comes into being with zeros there.
    Keep,
    /// They become zeros: the object is replaced whole.
    Empty,
    /// They become those of this object, by sharing its slots. If it is absent: zeros.
    CloneOf(Oid),
}

/// One change of one object. Atomic: after a crash it happened, or (if unanswered) perhaps not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Writes `data` (carried beside) at `blocks`. Zero blocks are legal: then only `base` takes effect.
    Write { blocks: BlockRange, checksums: Vec<u32>, base: WriteBase },
    /// The blocks read as zeros from now on and take no space. The object stays (or comes) into being.
    Discard { blocks: BlockRange },
    /// The object is gone. Deleting an absent object succeeds.
    Delete,
}

/// Changes in one [`ObjectOp::Amend`]: their journal record fits into the smallest journal.
pub const AMENDED_MAX: usize = 1024;

/// An order to a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectOp {
    /// `data` is empty unless the change is a `Write`; its length is `blocks.count * 4096`, and each
    /// block's CRC-32C is in `checksums` (checked by whoever received it from a wire).
    Change { oid: Oid, change: Change, data: Bytes, tag: Option<Tag> },
    /// Reads blocks, each verified against its checksum. Answered by `Data` or `Absent`.
    Read { oid: Oid, blocks: BlockRange },
    /// Reads blocks and tells which of them pass their checksum, without giving their content. Answered by `Verified` or `Absent`.
    /// `pass`: what was found good by an earlier order of the same pass, as a part of whatever object, is left out. 0: nothing is.
    Verify { oid: Oid, blocks: BlockRange, pass: u64 },
    /// Reads back a part of the store's own journal, from record `first` on and not beyond `last`, of what a start would replay now, and has it that no start
    /// needs what is found damaged. Answered by `JournalVerified`, when that is so.
    VerifyJournal { first: u64, last: u64 },
    /// Puts content back that the disk has lost, block by block. The caller knows that it is what the object has there (it has not changed since it
    /// was read from another copy), so nothing that anybody sees changes, but that blocks can be read again: of all objects
    /// that share them on the disk. A block whose content or checksum is known to be another, or that is in use for something else at the moment, stays as it
    /// is. `data` and `checksums` as of a `Write`. Answered by `Done`, whatever became of it: `Verify` tells.
    Mend { oid: Oid, blocks: BlockRange, checksums: Vec<u32>, data: Bytes },
    /// The checksum of each of these blocks, up to the last of them ever written, at least. No disk data is read. Answered by `Checksums` or `Absent`.
    Checksums { oid: Oid, blocks: BlockRange },
    /// As `Checksums`, which fails where a block is known to be lost; this gives what is on record of it, 0 if that is lost as well.
    Recorded { oid: Oid, blocks: BlockRange },
    /// Where two objects may differ, or an object and nothing but zeros (`with: None`). No disk data is read: what is shared on the
    /// disk is the same, and what is not named in the answer is the same, byte for byte. Answered by `Differing` or, if one of the
    /// objects does not exist, `Absent`.
    Compare { oid: Oid, with: Option<Oid> },
    /// Up to `limit` objects with ids in `first ..= last`, ascending. Answered by `Objects`.
    List { first: Oid, last: Oid, limit: u32 },
    /// Corrects what is remembered of tagged changes, in one step, and no object: what `forget` names is not remembered any more,
    /// what `remember` names is, as if its changes had been carried out now. `forget` takes effect on changes that were
    /// answered before. At most [`AMENDED_MAX`] in all.
    Amend { forget: Vec<Unsettled>, remember: Vec<Unsettled> },
    /// Advice: everything of this VDI up to and including `stamp` is settled. Need not be durable.
    Settle { vid: Vid, stamp: Stamp },
    /// Everything answered before is durable already; this additionally waits for all that was submitted
    /// before it.
    Flush,
}

/// What a store answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectReply {
    Done,
    /// To a change, before its answer: it is in memory, at its place among all others, and will be durable unless the process or the disk
    /// ends before; for want of room it is not refused any more.
    Taken,
    Data {
        data: Bytes,
        checksums: Vec<u32>,
    },
    /// The object does not exist (to `Read`, `Verify`, `Checksums`, `Recorded` and `Compare` only).
    Absent,
    Verified(Verified),
    JournalVerified(JournalVerified),
    Checksums(Vec<u32>),
    /// Ascending, no two adjacent.
    Differing(Vec<BlockRange>),
    Objects(Vec<ObjectInfo>),
    Failed(StoreFailure),
}

/// What a copy has of some blocks, and what of that can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Of each block; of a damaged one it means nothing.
    pub checksums: Vec<u32>,
    /// Blocks that fail their checksum or cannot be read. Ascending, no two adjacent.
    pub damaged: Vec<BlockRange>,
    /// What was read from the disk for it.
    pub read_bytes: u64,
}

/// How far a store's journal was read back, and what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalVerified {
    /// Where to go on, up to `last`: what was durable when it was asked, and not beyond what was asked for. All is done if `next` is beyond.
    pub next: u64,
    pub last: u64,
    /// Damaged records that a start would have needed, and that nobody had found before.
    pub damaged: u64,
    /// What was read from the disk for it.
    pub read_bytes: u64,
}

impl Verified {
    pub fn is_damaged(&self, block: u32) -> bool {
        self.damaged.iter().any(|range| range.contains(block))
    }
}

/// Blocks as runs of neighbours.
pub fn runs_of(blocks: impl IntoIterator<Item = u32>) -> Vec<BlockRange> {
    let mut runs: Vec<BlockRange> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some(run) if run.end() == u64::from(block) => run.count += 1,
            _ => runs.push(BlockRange::new(block, 1)),
        }
    }
    runs
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectInfo {
    pub oid: Oid,
    /// Bytes of the slots it refers to, shared or not.
    pub allocated_bytes: u64,
}

/// Why a store could not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum StoreFailure {
    /// Nothing was changed.
    #[error("no space left on the disk")]
    NoSpace,
    /// A block on disk does not match its checksum or cannot be read. Other copies may be good.
    #[error("block {block} of object {oid} does not match its checksum or cannot be read")]
    Corrupt { oid: Oid, block: u32 },
    /// The disk failed; it answers nothing any more.
    #[error("the disk failed")]
    DiskFailed,
    /// The order made no sense, for instance a range beyond the largest object.
    #[error("invalid request to the store")]
    Invalid,
}
