//! A sheep's store of either kind: the model, quick and strict, or the real engine on a simulated disk.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::Oid;
use proto::object::{StoreFailure, Unsettled};

use crate::engine_store::{EngineDisk, EngineStore};
use crate::model_store::{ModelDisk, ModelStore};
use crate::prng::Rng;

/// What all sheep of a run keep their objects on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    Model,
    Engine,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself or by `kill -9`, or with its machine.
    Killed,
    PowerLoss,
    StopsItself,
    DiskFailed,
}

/// While the sheep is down.
pub enum Disk {
    Model(ModelDisk),
    Engine(Box<EngineDisk>),
}

/// While it is up.
pub enum ObjectStore {
    Model(ModelStore),
    Engine(Box<EngineStore>),
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Ending::Killed => "killed",
            Ending::PowerLoss => "power loss",
            Ending::StopsItself => "it stops by itself",
            Ending::DiskFailed => "its disk failed",
        })
    }
}

impl Default for Disk {
    fn default() -> Self {
        Disk::Model(ModelDisk::default())
    }
}

impl Disk {
    /// The model has no end.
    pub fn new(kind: StoreKind, store_id: u64, size_bytes: u64) -> Disk {
        match kind {
            StoreKind::Model => Disk::default(),
            StoreKind::Engine => Disk::Engine(Box::new(EngineDisk::new(store_id, size_bytes))),
        }
    }

    pub fn open(self, rng: &mut Rng) -> Result<(ObjectStore, Vec<Unsettled>), String> {
        match self {
            Disk::Model(disk) => {
                let (store, unsettled) = ModelStore::open(disk);
                Ok((ObjectStore::Model(store), unsettled))
            }
            Disk::Engine(disk) => {
                let (store, unsettled) = disk.open(rng)?;
                Ok((ObjectStore::Engine(Box::new(store)), unsettled))
            }
        }
    }
}

impl ObjectStore {
    /// What the end of the process leaves.
    pub fn end(self, ending: Ending, rng: &mut Rng) -> Disk {
        let engine = match self {
            ObjectStore::Model(store) => return Disk::Model(store.crash(rng)),
            ObjectStore::Engine(engine) => engine,
        };
        // A process that dies takes nothing from the disk's cache; its machine may die with it.
        let loses_power = ending == Ending::PowerLoss || (ending == Ending::Killed && rng.percent(60));
        Disk::Engine(Box::new(if loses_power { engine.lose_power(rng) } else { engine.end(rng) }))
    }

    pub fn engine(&mut self) -> Option<&mut EngineStore> {
        match self {
            ObjectStore::Model(_) => None,
            ObjectStore::Engine(engine) => Some(engine),
        }
    }

    pub fn objects(&mut self) -> Vec<Oid> {
        match self {
            ObjectStore::Model(model) => model.objects().collect(),
            ObjectStore::Engine(engine) => engine.objects(),
        }
    }

    /// The blocks of an object that are not zeros. `None`: there is no such object.
    pub fn content(&mut self, oid: Oid) -> Result<Option<BTreeMap<u32, Bytes>>, StoreFailure> {
        match self {
            ObjectStore::Model(model) => Ok(model.content(oid)),
            ObjectStore::Engine(engine) => engine.content(oid),
        }
    }
}
