//! Objects on one disk: journal, slots, descriptors and maps; nothing of clusters, VDIs or networks.
//!
//! [`Store`] is a deterministic state machine without I/O: it takes the orders of [`proto::object`], asks for
//! reads, writes and syncs ([`IoRequest`]), and answers each order once it is durable. The shell carries the requests out, at the same
//! time and in any order. [`Disk`] is only for [`Store::format`] and [`Store::open`], which block.
//!
//! Reading order: `layout` (where things lie), `record` (the journal's entries), `store` (the life of an order),
//! `change` and `read` (what orders do), `write_back` (how the journal is emptied), `job` (what is copied for that, and what stays below), `merge` (how overlays end), `growth` (how a file takes its room), `ahead` (how that is written to before it is needed), `journal_check` (how rot in the journal is found before a crash), `recover`
//! (how a crash ends). The
//! bytes, and why each sync is enough, stand in docs/formats.md, "Store on disk".
//! [`testing`] has a disk that loses, tears and reorders whatever was not synced.

mod ahead;
mod change;
mod compare;
mod descriptors;
mod disk;
mod free_set;
mod growth;
mod invariants;
mod io;
mod job;
mod journal;
mod journal_check;
mod layout;
mod log_home;
mod mend;
mod merge;
mod overlays;
mod read;
mod record;
mod recover;
mod slots;
mod store;
mod tables;
mod tags;
pub mod testing;
mod write_back;
mod written;

pub use disk::{Disk, FileDisk, OBJECTS_FILE, default_size_bytes, grow};
pub use io::{IoFailed, IoId, IoOp, IoRequest, IoResult, Usage};
pub use layout::{FORMAT_VERSION, JOURNAL_BLOCKS_MIN, SLOT_BYTES};
pub use read::READ_BLOCKS_MAX;
pub use recover::{FormatError, FormatOptions, OpenError, Recovered, default_journal_bytes};
pub use store::Store;
