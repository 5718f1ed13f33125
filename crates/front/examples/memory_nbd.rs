//! Serves two empty VDIs in memory by NBD, to try clients against: `memory_nbd SOCKET [SIZE]`.
//!
//! They are called `alice` and `bob`; `alice@before` is a snapshot.

use std::error::Error;

use front::nbd::{Limits, serve_unix};
use memory::Memory;

#[path = "../tests/nbd/memory.rs"]
mod memory;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let socket = args.next().ok_or("usage: memory_nbd SOCKET [SIZE]")?;
    let size = args.next().map_or(Ok(1 << 30), |size| size.parse())?;
    let memory = Memory::default()
        .with_vdi("alice", size)
        .with_vdi("bob", size)
        .with_snapshot("alice", "before", 1, size);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let listener = tokio::net::UnixListener::bind(&socket)?;
        serve_unix(listener, memory, Limits::default(), Default::default()).await;
        Ok(())
    })
}
