//! `dog cluster`: the cluster as a whole.

pub mod alter_copy;
pub mod check;
pub mod format;
pub mod health;
pub mod info;
pub mod out_time;
pub mod recover;
pub mod scrub;
pub mod shutdown;
