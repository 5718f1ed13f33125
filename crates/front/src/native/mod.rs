//! The original Sheepdog protocol: QEMU up to 6.0, tgt, libsheepdog and `dog`, on TCP port 7000 and the socket `sock`.
//!
//! The bytes are those of [`proto::sd`]. [`session`] decides from a header what follows it and whether it is
//! wanted; an [`exchange`] is one request's way through the [`Service`](crate::Service), written down in
//! [`objects`] (data), [`vdis`] (names and locks) and [`cluster`] (everything `dog` asks). None of these opens a
//! socket; [`server`] moves the bytes. What all connections of a sheep share is the [`desk`].
//!
//! A request is answered when the service has answered, that is when its data is durable; so FLUSH_VDI has little
//! to do. Which object belongs to whom, what a block table entry means and who may write is decided behind the
//! service by the VDI's owner, not here: two clients of one VDI may come in through different sheep.

pub mod cluster;
pub mod desk;
pub mod exchange;
pub mod objects;
pub mod server;
pub mod session;
pub mod vdis;

pub use desk::{About, Desk};
pub use server::{serve_connection, serve_tcp, serve_unix, serve_unix_stream};

#[cfg(test)]
mod tests;
