//! Protocols towards guests and users.
//!
//! Each protocol is a folder of `wire` (codec), `session` (sans-IO) and `server` (I/O). A server knows the rest of
//! the sheep only as a [`Service`].

pub mod fill;
pub mod guests;
pub mod native;
pub mod nbd;
mod service;
mod tcp;
#[cfg(feature = "vhost-user")]
pub mod vhost;

pub use service::Service;
