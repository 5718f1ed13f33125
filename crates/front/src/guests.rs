//! Who has which VDI open through this sheep.
//!
//! For `dog vm list`: a list to look at, on which nothing depends. Sessions are opened and closed without it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::Vid;
use proto::client::Guest;
use tokio::net::UnixStream;

/// The list that all front ends of a sheep share. Cheap to clone.
#[derive(Clone, Default)]
pub struct Guests(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    present: BTreeMap<u64, Guest>,
    last: u64,
}

/// One client's entry, which ends with it.
pub struct Stay {
    guests: Guests,
    number: u64,
}

impl Guests {
    /// `working`: name of the working VDI, empty for a snapshot.
    pub fn enter(&self, vid: Vid, working: &[u8], client: &str) -> Stay {
        let mut state = self.state();
        state.last += 1;
        let number = state.last;
        state.present.insert(number, Guest { vid, working: working.to_vec(), client: client.to_string() });
        Stay { guests: self.clone(), number }
    }

    /// In the order in which they came.
    pub fn list(&self) -> Vec<Guest> {
        self.state().present.values().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change above is complete in itself, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.guests.state().present.remove(&self.number);
    }
}

/// The program at the other end of a unix socket: `qemu-system-x86 4711`.
pub fn program_at(stream: &UnixStream) -> String {
    let Some(pid) = stream.peer_cred().ok().and_then(|cred| cred.pid()) else {
        return "unix socket".to_string();
    };
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("{} {pid}", name.trim_end()),
        Err(_) => format!("process {pid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_listed_until_it_goes() {
        let guests = Guests::default();
        let first = guests.enter(Vid(1), b"alice", "a 1");
        let second = guests.enter(Vid(1), b"alice", "b 2");
        let clients = || guests.list().into_iter().map(|guest| guest.client).collect::<Vec<_>>();
        assert_eq!(clients(), ["a 1", "b 2"]);
        drop(first);
        assert_eq!(clients(), ["b 2"]);
        drop(second);
        assert!(clients().is_empty());
    }
}
