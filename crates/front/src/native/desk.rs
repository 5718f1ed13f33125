//! What all native connections of one sheep share: who has a VDI open, and how much is under way.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::Vid;
use proto::client::{Guest, NodeAccess, VdiInfo};

use crate::guests::Guests;

/// Cheap to clone; clones share. Held by every connection, on whatever thread.
#[derive(Clone, Default)]
pub struct Desk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// LOCK_VDIs that no RELEASE_VDI has followed. They come on connections of their own, of which the end says
    /// nothing.
    opens: BTreeMap<Vid, Opens>,
    /// Connections that have read or written data of the VDI.
    at_work: BTreeMap<Vid, u32>,
    in_flight: u64,
    about: About,
}

#[derive(Default)]
struct Opens {
    count: u32,
    name: Vec<u8>,
}

/// What a sheep tells of itself.
#[derive(Default)]
pub struct About {
    /// What MD_INFO shows as the path of its store.
    pub disks_path: String,
    pub nbd_socket: PathBuf,
    pub nbd_address: Option<SocketAddr>,
    /// Clients of other protocols.
    pub guests: Guests,
}

impl Desk {
    pub fn new(about: About) -> Desk {
        Desk { state: Arc::new(Mutex::new(State { about, ..State::default() })) }
    }

    /// Requests that are not answered, of all connections.
    pub fn requests_in_flight(&self) -> u64 {
        self.state().in_flight
    }

    pub(super) fn disks_path(&self) -> String {
        self.state().about.disks_path.clone()
    }

    /// Native clients are nameless: they open and close VDIs on connections of their own.
    pub(super) fn access(&self) -> NodeAccess {
        let state = self.state();
        let native = state.opens.iter().map(|(vid, opens)| Guest {
            vid: *vid,
            working: opens.name.clone(),
            client: "native client".to_string(),
        });
        NodeAccess {
            nbd_socket: state.about.nbd_socket.as_os_str().as_bytes().to_vec(),
            nbd_address: state.about.nbd_address,
            guests: state.about.guests.list().into_iter().chain(native).collect(),
        }
    }

    pub(super) fn opened(&self, vdi: &VdiInfo) {
        let mut state = self.state();
        let opens = state.opens.entry(vdi.vid).or_default();
        opens.count += 1;
        opens.name = vdi.name.clone();
    }

    /// Was the VDI open through this desk? Then one of its opens is over: a RELEASE_VDI that no LOCK_VDI
    /// preceded (an operator's, or one of a client that has moved here) must not end the session of others.
    pub(super) fn closed(&self, vid: Vid) -> bool {
        let mut state = self.state();
        let Some(opens) = state.opens.get_mut(&vid) else { return false };
        opens.count -= 1;
        if opens.count == 0 {
            state.opens.remove(&vid);
        }
        true
    }

    pub(super) fn work_began(&self, vid: Vid) {
        *self.state().at_work.entry(vid).or_default() += 1;
    }

    /// A connection that was at work has ended. How many opens are over by that: all, if no other is at work. Their
    /// clients have crashed, or lost their connections. The latter go on without another LOCK_VDI, which does no harm:
    /// that a VDI is open here is a hint.
    pub(super) fn work_ended(&self, vid: Vid) -> u32 {
        let mut state = self.state();
        let count = state.at_work.get_mut(&vid).expect("it began");
        *count -= 1;
        if *count > 0 {
            return 0;
        }
        state.at_work.remove(&vid);
        state.opens.remove(&vid).map_or(0, |opens| opens.count)
    }

    pub(super) fn request_started(&self) {
        self.state().in_flight += 1;
    }

    pub(super) fn request_finished(&self) {
        self.state().in_flight -= 1;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change above is complete in itself, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
