//! `dog node`: the machines of the cluster.

pub mod info;
pub mod kill;
pub mod list;
pub mod md;
pub mod stat;
