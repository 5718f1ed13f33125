//! The rest of the sheep, as a front end sees it.

use std::future::Future;

use proto::Epoch;
use proto::client::{ClientOp, ClientResult};
use tokio::sync::watch;

/// Takes requests of clients, answers each once, in any order. Clones share it.
///
/// Dropping the future of a request does not undo it. It may still be carried out, but only where it already has its place
/// in the order of the VDI's requests: never after one that is called later.
pub trait Service: Clone + 'static {
    fn call(&self, op: ClientOp) -> impl Future<Output = ClientResult> + 'static;

    /// Changes each time the cluster's view does: volumes may have other sizes and names then. `None`: nobody tells.
    fn view_changes(&self) -> Option<watch::Receiver<u64>> {
        None
    }

    /// Are writes of clients that can flush to be acknowledged before they are durable (`VolumeOp::WriteBack`)?
    fn is_write_back(&self) -> bool {
        false
    }

    /// The cluster's epoch now, which every native reply carries. 0 before the first format.
    fn epoch(&self) -> Epoch {
        Epoch(0)
    }
}
