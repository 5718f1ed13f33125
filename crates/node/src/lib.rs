//! Everything a sheep decides: the view, sessions, the replica, repair and VDI operations.
//!
//! [`Node`] is a value. It takes events (`handle_*`) and the time, and offers effects ([`Node::poll_effect`]);
//! it opens no file, socket or clock, and knows no runtime. The daemon and the simulator are two shells around it.

mod effect;

pub use effect::{Effect, Ticket, Time};
