//! The daemon: everything around [`node`] that touches the world.
//!
//! [`options`] say what is wanted; [`launch`], [`home`] and [`logging`] make a daemon of a process; [`serve`] puts it
//! together. The data plane is one thread: [`shell`] brings events to the node and carries out its effects, with [`io`] for
//! the disk (found and opened by [`disk`]) and [`link`] for the other sheep. Guests are served by crate `front`, there too or on the threads of a [`crew`]
//! ([`fronts`]), which reach it by [`remote`]; the order of events comes from crate `cluster`, on a thread of its own.

pub mod attachments;
pub mod crew;
pub mod disk;
pub mod disk_watch;
pub mod fronts;
pub mod getopt;
pub mod home;
pub mod io;
pub mod launch;
pub mod link;
pub mod logging;
pub mod marks;
pub mod objects;
pub mod options;
pub mod remote;
pub mod serve;
pub mod shell;
pub mod spare_time;
mod traffic;
