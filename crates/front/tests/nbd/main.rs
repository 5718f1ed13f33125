//! The NBD server against a sheep of memory: every form of reply byte by byte, scenarios, hostile bytes, and the
//! real clients.

mod client;
mod clients;
mod handshake;
mod hostile;
mod memory;
mod transmission;
