//! `dog vdi`: volumes, their snapshots, objects and locks.

pub mod alter_copy;
pub mod attach;
pub mod attribute;
pub mod backup;
pub mod check;
pub mod clone;
pub mod create;
pub mod delete;
pub mod export;
pub mod graph;
pub mod import;
pub mod list;
pub mod lock;
pub mod object;
pub mod read;
pub mod resize;
pub mod restore;
pub mod rollback;
pub mod snapshot;
pub mod track;
pub mod tree;
pub mod write;

pub mod image;
mod inode_file;
pub mod names;
pub mod ranges;
mod span;
pub mod stream;
mod table;

/// Bytes per request of commands that stream: large enough that the round trip does not count.
const PIECE_BYTES: u64 = 4 << 20;
