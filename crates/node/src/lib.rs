//! Everything a sheep decides: the view, sessions, the replica, catching up and VDI operations.
//!
//! [`Node`] is a value. It takes events (`handle_*`) and the time, and offers effects ([`Node::poll_effect`]);
//! it opens no file, socket or clock, and knows no runtime. The daemon and the simulator are two shells around it.

mod cache;
mod catchup;
mod chronicle;
mod context;
mod effect;
mod extent;
mod gateway;
mod index_set;
mod node;
mod overdue;
mod parts;
mod payload;
mod reach;
mod reclaim;
mod replica;
mod scrub;
mod session;
mod strain;
mod sweep;
pub mod view;

pub use catchup::Progress;
pub use effect::{Effect, Ticket, Time};
pub use node::{Node, NodeConfig, SnapshotError};
pub use session::GATHERED_MAX;
