//! The seeded simulator: whole clusters in virtual time, with faults, and a checker of what clients saw.

pub mod history;
pub mod linearize;
pub mod prng;
pub mod queue;
pub mod value;
