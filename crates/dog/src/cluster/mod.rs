//! `dog cluster`: the cluster as a whole.

pub mod format;
pub mod info;
pub mod shutdown;
