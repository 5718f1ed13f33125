//! `dog node`: the machines of the cluster.

pub mod info;
pub mod kill;
pub mod list;
pub mod md;
pub mod named;
pub mod out;
pub mod recovery;
pub mod safe_to_stop;
pub mod scrub;
pub mod stat;
mod throttle;
