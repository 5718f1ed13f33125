//! The seeded simulator: whole clusters in virtual time, with faults, and a checker of what clients saw.

mod ballast;
mod churn;
pub mod client;
mod damage;
pub mod driver;
pub mod engine_store;
mod faults;
mod forest;
mod forest_check;
pub mod history;
pub mod linearize;
mod memory;
pub mod model_store;
pub mod network;
pub mod object_store;
pub mod planted;
mod prng;
pub mod queue;
pub mod run;
pub mod scale;
pub mod scenario;
pub mod sheep;
mod storage;
pub mod value;
pub mod world;

pub use object_store::StoreKind;
pub use run::{Options, Outcome, run};
pub use scenario::PlantedBug;
