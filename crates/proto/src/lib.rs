//! Every byte Sheepdog exchanges, and the words it is made of.
//!
//! Ids, the inode layout, object operations, peer messages, cluster events and the native protocol.
//! Pure codec: nothing here opens a file, a socket or a clock. Types that carry decisions live elsewhere.
//!
//! Start with [`ids`], then [`oid`]; [`object`] is what a store does, [`client`] what a user may ask,
//! [`peer`] what sheep tell each other and [`cluster`] what they all hear in the same order.

pub mod checksum;
pub mod client;
pub mod cluster;
pub mod export;
pub mod hash;
pub mod ids;
pub mod inode;
pub mod object;
pub mod oid;
pub mod peer;
pub mod sd;

pub use ids::*;
pub use oid::{ObjectKind, Oid};

/// Unit of checksums, of alignment on disk and of atomicity of a write: 4 KiB.
pub const BLOCK_BYTES: usize = 4096;
