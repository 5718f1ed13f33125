//! The Sheepdog command line: `dog vdi ...`, `dog vm ...`, `dog node ...`, `dog cluster ...`, and `dog run`.
//!
//! Every subcommand is one file that fetches what it needs from a sheep and then renders it; what is rendered
//! is a pure function of what was fetched. Output formats and exit codes are an interface that other programs
//! parse (libvirt, Cinder, Proxmox), so they follow the original to the byte; the prose around them is ours.
//!
//! Start with [`dispatch`], then [`command`] for the table of subcommands, [`sheep`] for the requests.

pub mod command;
pub mod dispatch;

mod audit;
mod awaited;
mod clock;
mod cluster;
mod context;
mod duration;
mod everyone;
mod failure;
mod getopt;
mod link;
mod nbd;
mod node;
mod redundancy;
mod run;
mod sheep;
mod size;
mod target;
mod terminal;
mod vdi;
mod visible;
mod vm;

pub use dispatch::{Environment, run};
/// For the fuzzer, which reads streams as `vdi restore` does.
pub use vdi::stream as backup_stream;
