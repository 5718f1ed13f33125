//! `dog vm`: who uses volumes.

pub mod list;
