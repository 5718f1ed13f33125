//! NBD, the protocol of every current QEMU, libvirt, libnbd and the Linux kernel: fixed newstyle, complete.
//!
//! [`wire`] has the numbers and headers. A connection's session is two values that know no socket: first a
//! [`handshake::Handshake`] (bytes in, replies and orders out), then a [`receiver::Receiver`] (bytes in, checked
//! requests out); [`reply`] turns results into bytes. [`context`] says what may be asked about blocks. [`server`] moves the bytes and calls the
//! [`Service`](crate::Service).
//!
//! Every answer to a write is sent after the service has answered, that is when the data is durable on all in-sync
//! copies; and all connections to one VDI are ordered by its owner. Hence FUA and flush have nothing to add, and
//! clients may spread over several connections (`CAN_MULTI_CONN`). In write-back mode ([`crate::Service::is_write_back`]) a write without FUA is
//! answered when all in-sync copies have it in memory, and a flush when all that was answered before, on any connection, is durable.
//!
//! TLS is not offered: `STARTTLS` is answered with "unsupported".

pub mod context;
pub mod export;
pub mod handshake;
pub mod receiver;
pub mod reply;
pub mod server;
pub mod wire;

pub use server::{Client, Ending, Limits, serve_connection, serve_tcp, serve_unix};
