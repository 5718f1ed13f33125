//! `dog vdi`: volumes, their snapshots, objects and locks.

pub mod check;
pub mod create;
pub mod delete;
pub mod list;
pub mod lock;
pub mod object;
pub mod read;
pub mod resize;
pub mod write;

mod names;
mod span;
mod table;

/// Bytes per request of commands that stream: large enough that the round trip does not count.
const PIECE_BYTES: u64 = 4 << 20;
