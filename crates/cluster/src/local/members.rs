//! Who is alive: one file per member, held locked by its sheep.
//!
//! The lock (`flock`) is the truth: the kernel drops it with the process, whatever kills that. A pidfd is only the bell
//! that tells when to look; the file names the pid. Where pids mean nothing (another pid namespace), a slow
//! tick looks instead.
//!
//! Every attempt to take such a lock is made by whoever holds the directory's lock, so that looking at a member never
//! disturbs one that is just joining.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use proto::{Incarnation, NodeId};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::snapshot::Members;

pub(super) fn member_path(directory: &Path, id: NodeId) -> PathBuf {
    directory.join("members").join(id.to_string())
}

/// The own file, locked as long as this value lives.
pub(super) struct Membership {
    _file: File,
}

/// Why the own file could not be locked.
pub(super) enum Taken {
    /// By a living process; the pidfd tells when it ends, where one could be had.
    By {
        pid: Option<u32>,
        pidfd: Option<OwnedFd>,
    },
    Io(io::Error),
}

impl Membership {
    pub fn take(directory: &Path, id: NodeId) -> Result<Membership, Taken> {
        let path = member_path(directory, id);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(&path)
            .map_err(Taken::Io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let pid = read_pid(&path);
                return Err(Taken::By { pid, pidfd: pid.and_then(open_pidfd) });
            }
            Err(error) => return Err(Taken::Io(error.into())),
        }
        file.set_len(0).map_err(Taken::Io)?;
        writeln!(file, "{}", std::process::id()).map_err(Taken::Io)?;
        Ok(Membership { _file: file })
    }
}

/// Is that member's file locked by a living process? The caller holds the directory's lock.
pub(super) fn is_alive(directory: &Path, id: NodeId) -> io::Result<bool> {
    let file = match File::open(member_path(directory, id)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Bells for the other members, each for one incarnation.
#[derive(Default)]
pub(super) struct Watches {
    pidfds: BTreeMap<NodeId, (Incarnation, Option<OwnedFd>)>,
}

impl Watches {
    /// Hangs a bell on every member that has none yet. The caller holds the directory's lock and has found them alive
    /// while holding it: so the pid in the file is that of the lock's holder and not of an earlier one. False if
    /// one of them ended meanwhile.
    pub fn adjust(&mut self, directory: &Path, members: &Members, own: NodeId) -> bool {
        let mut all = true;
        self.pidfds.retain(|id, (incarnation, _)| members.get(id) == Some(incarnation));
        for (&id, &incarnation) in members {
            if id != own && !self.pidfds.contains_key(&id) {
                let pidfd = read_pid(&member_path(directory, id)).and_then(open_pidfd);
                if pidfd.is_some() && !is_alive(directory, id).unwrap_or(true) {
                    // It ended in between, and the pidfd may be a stranger's.
                    all = false;
                    continue;
                }
                self.pidfds.insert(id, (incarnation, pidfd));
            }
        }
        all
    }

    /// Does every one of `members` have its bell?
    pub fn cover(&self, members: &Members, own: NodeId) -> bool {
        members.iter().all(|(id, incarnation)| {
            *id == own || self.pidfds.get(id).is_some_and(|(watched, _)| watched == incarnation)
        })
    }

    pub fn pidfds(&self) -> impl Iterator<Item = (NodeId, &OwnedFd)> {
        self.pidfds.iter().filter_map(|(&id, (_, pidfd))| Some((id, pidfd.as_ref()?)))
    }

    /// The bell has rung, and would ring for ever.
    pub fn silence(&mut self, id: NodeId) {
        if let Some((_, pidfd)) = self.pidfds.get_mut(&id) {
            *pidfd = None;
        }
    }
}

fn read_pid(path: &Path) -> Option<u32> {
    let mut text = String::new();
    fs::File::open(path).ok()?.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn open_pidfd(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}
