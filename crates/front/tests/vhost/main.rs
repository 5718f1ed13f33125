//! vhost-user-blk against a sheep of memory: a guest's driver that shares its memory and rings with the server by way of
//! the front-end of the crate `vhost`; and guests that do what none should.

mod driver;
mod guest;
mod hostile;
#[path = "../nbd/memory.rs"]
mod memory;
mod requests;
mod restart;
