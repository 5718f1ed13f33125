//! vhost-user-blk: QEMU's fastest way to a volume, by memory that it shares with the sheep.
//!
//! A front-end connects to the socket of one VDI and says by messages where the guest's memory is and where in it lie the rings through
//! which the guest asks ([`wire`], [`channel`], [`device`]). From then on requests go without system calls but for kicks and interrupts:
//! taken from a ring ([`queue`], [`chain`]), judged ([`blk`]), carried out against the [`crate::Service`] and answered ([`server`]).
//!
//! Data are copied once: out of guest memory into the buffer that the service keeps, since a guest may change what it has asked
//! to write while that is on its way to several copies; or from the service's buffer into guest memory.
//!
//! A write is answered when the service has answered it: it is durable then, and a flush finds nothing to do. In write-back mode
//! ([`crate::Service::is_write_back`]) it is in the memory of all in-sync copies, if the driver has agreed to flush; else it is durable, as virtio demands.
//!
//! Of the rust-vmm crates we use those for rings and memory. The protocol's messages are our own: `vhost` reads them from a blocking
//! socket and cannot say that a configuration has changed, `vhost-user-backend` cannot note what is under way ([`inflight`]).
//! Absent: live migration (no log of dirty memory is offered), packed rings, polling without kicks.

mod blk;
mod chain;
mod channel;
mod device;
mod fence;
mod inflight;
mod listen;
mod memory;
mod queue;
mod seat;
mod server;
mod wire;

pub use listen::listen;
pub use seat::Seat;
pub use server::{Ending, Limits, serve, serve_connection};
