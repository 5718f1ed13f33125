//! The daemon: everything around [`node`] that touches the world.
//!
//! [`options`] say what is wanted; [`launch`], [`home`] and [`logging`] make a daemon of a process.

pub mod getopt;
pub mod home;
pub mod io;
pub mod launch;
pub mod link;
pub mod logging;
pub mod options;
