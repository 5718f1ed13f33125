//! The `local` driver: all sheep of one machine that share a directory form a cluster.
//!
//! ```text
//! DIR/lock          flock'ed for the moment of an append
//! DIR/log           the entries; see `log.rs`
//! DIR/snapshot      the state after some version; see `snapshot.rs`
//! DIR/members/ID    flock'ed by that sheep for life; see `members.rs`
//! ```
//!
//! **Where.** The membership must be as durable as the data: it says which copies have every acknowledged write, and data
//! without it is worth little. So the default is `cluster.local` in the parent of the store directory (see
//! [`default_directory`]), not somewhere under /tmp that a reboot empties. `sheep DIR/0` and `sheep DIR/1` meet;
//! clusters under different parents never do.
//!
//! **Order.** Whoever wants to append takes the lock, reads to the end, appends, syncs and drops the lock; only then does
//! anybody, itself included, read the entry and act on it. Others are woken by inotify.
//!
//! **Ends of lives.** Whoever notices that a member's lock is free appends one `Leave` for all that are dead at that
//! moment. Joining does the same first, the own earlier life included. A stopped (SIGSTOP) process is alive; one stopped
//! inside an append holds up all others until it goes on: a cluster on one machine need not survive that.

mod log;
mod members;
mod snapshot;
#[cfg(test)]
mod tests;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proto::cluster::{ClusterEvent, LogEntry, MemberInfo, Proposal};
use proto::{Incarnation, NodeId, ViewVersion};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{FlockOperation, flock, inotify};
use tokio::sync::mpsc::error::TryRecvError;

use self::log::{HEADER_BYTES, Log, LogError, worth_keeping};
use self::members::{Membership, Taken, Watches, is_alive, member_path};
use self::snapshot::{Members, Snapshot, SnapshotError};
use crate::{Delivery, Driver, DriverEnd, Handle, Order, StartError};

/// Looking without being called: for members whose pid means nothing here, and in case inotify lost something.
/// In tests longer than any of them: whoever is to be called does not wait for it.
const TICK: Duration = if cfg!(test) { Duration::from_secs(3600) } else { Duration::from_secs(1) };
/// The same when inotify cannot be had at all (its instances are limited per user).
const TICK_WITHOUT_INOTIFY: Duration = Duration::from_millis(20);
/// A bell has rung but the lock is held still: the kernel is about to drop it.
const TICK_DYING: Duration = Duration::from_millis(5);
/// Turns of that kind: a second. Longer than any process needs to drop its files.
const HURRY_TURNS: u32 = 200;
/// How long a joining sheep waits for the process of its earlier life to be gone.
const PREDECESSOR_WAIT: Duration = Duration::from_secs(3);
/// The log asks for a snapshot when it has grown by so much.
const SNAPSHOT_AFTER_BYTES: u64 = 8 << 20;

/// All entries of a log file, as a member that starts reads them. For tests that garble it.
pub fn read_log(path: &Path) -> Result<Vec<LogEntry>, impl std::error::Error + use<>> {
    Log::open(path).and_then(|mut log| read_whole(&mut log))
}

/// Makes a log file of these entries, which begin with version 1.
pub fn write_log(path: &Path, entries: &[LogEntry]) -> Result<(), impl std::error::Error + use<>> {
    Log::replace(path, 0, entries)
}

/// The version of a snapshot file, if there is one.
pub fn read_snapshot(path: &Path) -> Result<Option<ViewVersion>, impl std::error::Error + use<>> {
    Snapshot::read(path).map(|found| found.map(|snapshot| snapshot.version))
}

/// The directory of the cluster that the sheep with this store joins unless told otherwise.
pub fn default_directory(store_directory: &Path) -> PathBuf {
    match store_directory.parent() {
        // The root directory is nobody's place for files: a store right below it has its cluster inside.
        Some(parent) if parent != Path::new("/") && parent != Path::new("") => parent.join("cluster.local"),
        _ => store_directory.join("cluster.local"),
    }
}

/// The driver of a cluster within one machine.
pub struct LocalDriver {
    directory: PathBuf,
    snapshot_after_bytes: u64,
}

impl LocalDriver {
    /// The directory is created when the driver starts.
    pub fn new(directory: impl Into<PathBuf>) -> LocalDriver {
        LocalDriver { directory: directory.into(), snapshot_after_bytes: SNAPSHOT_AFTER_BYTES }
    }
}

impl Driver for LocalDriver {
    fn start(self: Box<Self>, member: MemberInfo) -> Result<Handle, StartError> {
        let name = self.directory.display().to_string();
        self.join(member).map_err(|error| StartError(format!("cluster directory {name}: {error}")))
    }

    fn spans_machines(&self) -> bool {
        false
    }
}

/// Why a local cluster ended for this sheep.
#[derive(Debug, thiserror::Error)]
enum LocalError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("{what}: {error}")]
    Io { what: &'static str, error: io::Error },
    #[error("another sheep with address {id} is running{}", pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Taken { id: NodeId, pid: Option<u32> },
    #[error("the directory was removed or replaced while in use")]
    Replaced,
    #[error("the log begins after version {base}, and there is no snapshot of that or a later version")]
    NoSnapshot { base: u64 },
    #[error("this sheep was removed from the cluster")]
    Removed,
}

fn io_error<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> LocalError {
    move |error| LocalError::Io { what, error: error.into() }
}

impl LocalDriver {
    fn join(self, member: MemberInfo) -> Result<Handle, LocalError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(self.directory.join("members"))
            .map_err(io_error("cannot create it"))?;
        let lock = Arc::new(LockFile::open(&self.directory)?);
        let bell = Arc::new(
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(io_error("cannot create an eventfd"))?,
        );
        // Before reading: what is appended from now on rings.
        let news = watch_directory(&self.directory);
        let own = member.id;
        let (snapshot, backlog, log, members, membership) = enter(&self.directory, &lock, member)?;

        let ring = bell.clone();
        let (handle, end) = Handle::new(Arc::new(move || {
            // An eventfd whose counter is full rings anyway.
            let _ = rustix::io::write(&*ring, &1u64.to_ne_bytes());
        }));
        let incarnation = members[&own];
        let local = Local {
            path: self.directory.join("log"),
            directory: self.directory,
            snapshot_after_bytes: self.snapshot_after_bytes,
            lock,
            log,
            members,
            own,
            incarnation,
            membership: Some(membership),
            watches: Watches::default(),
            bell,
            news,
            end,
            proposals: Vec::new(),
            hurry: 0,
        };
        let snapshot =
            snapshot.map(|snapshot| Delivery::Snapshot { version: snapshot.version, state: snapshot.state });
        std::thread::Builder::new()
            .name("cluster".into())
            .spawn(move || local.run(snapshot, backlog))
            .map_err(io_error("cannot start a thread"))?;
        Ok(handle)
    }
}

/// Reads the history and appends the own `Join`, after a `Leave` for all lives that have ended.
fn enter(
    directory: &Path,
    lock: &Arc<LockFile>,
    member: MemberInfo,
) -> Result<(Option<Snapshot>, Vec<LogEntry>, Log, Members, Membership), LocalError> {
    let own = member.id;
    let path = directory.join("log");
    let deadline = Instant::now() + PREDECESSOR_WAIT;
    let (guard, membership) = loop {
        let guard = lock.take()?;
        match Membership::take(directory, own) {
            Ok(membership) => break (guard, membership),
            Err(Taken::Io(error)) => return Err(io_error("cannot lock the member's file")(error)),
            Err(Taken::By { pid, pidfd }) => {
                drop(guard);
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() || pid == Some(std::process::id()) {
                    return Err(LocalError::Taken { id: own, pid });
                }
                // It may just be dying. Its pidfd tells, and right after that the lock is free.
                let mut fds: Vec<_> = pidfd.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
                poll_for(&mut fds, if pidfd.is_some() { left } else { TICK_DYING.min(left) });
                if fds.iter().any(|fd| !fd.revents().is_empty()) {
                    poll_for(&mut [], TICK_DYING);
                }
            }
        }
    };

    let snapshot = Snapshot::read(&directory.join("snapshot"))?;
    if !path.exists() {
        if snapshot.is_some() {
            return Err(LogError::Header.into());
        }
        Log::replace(&path, 0, &[])?;
    }
    let mut log = Log::open(&path)?;
    let (mut members, start) = match &snapshot {
        Some(snapshot) => (snapshot.members.clone(), snapshot.version),
        None => (Members::new(), ViewVersion(0)),
    };
    if log.base() > start {
        return Err(LocalError::NoSnapshot { base: log.base().0 });
    }
    let mut backlog = read_whole(&mut log)?;
    backlog.retain(|entry| entry.version > start);
    apply_members(&mut members, &backlog);

    let mut ended = find_ended(directory, &members, Some(own))?;
    if let Some(&earlier) = members.get(&own) {
        ended.push((own, earlier));
        ended.sort();
    }
    let mut events = Vec::new();
    if !ended.is_empty() {
        events.push(ClusterEvent::Leave(ended.clone()));
    }
    events.push(ClusterEvent::Join(member));
    log.append(&events, wall_clock_ns())?;
    remove_files(directory, ended.iter().map(|(id, _)| *id).filter(|id| *id != own));
    let news = log.read_committed()?;
    apply_members(&mut members, &news);
    backlog.extend(news);
    drop(guard);
    Ok((snapshot, backlog, log, members, membership))
}

/// All entries, with what is whole of an append that was not finished. The caller holds the lock.
///
/// What is committed is read before anything is cut: so damage there is an error, and nothing is lost by it.
fn read_whole(log: &mut Log) -> Result<Vec<LogEntry>, LogError> {
    let mut entries = log.read_committed()?;
    log.recover_tail()?;
    entries.extend(log.read_committed()?);
    Ok(entries)
}

/// A joined sheep's driver, on its thread.
struct Local {
    directory: PathBuf,
    path: PathBuf,
    snapshot_after_bytes: u64,
    lock: Arc<LockFile>,
    log: Log,
    /// Who is alive according to the entries read so far.
    members: Members,
    own: NodeId,
    incarnation: Incarnation,
    /// `None` when this sheep has left.
    membership: Option<Membership>,
    watches: Watches,
    bell: Arc<OwnedFd>,
    /// inotify on the directory.
    news: Option<OwnedFd>,
    end: DriverEnd,
    /// Not appended yet.
    proposals: Vec<Proposal>,
    /// Turns in which to look closely: a bell has rung, and the lock of that member is about to be dropped.
    hurry: u32,
}

/// The sheep does not listen any more.
struct Gone;

impl Local {
    fn run(mut self, snapshot: Option<Delivery>, backlog: Vec<LogEntry>) {
        let first = snapshot.into_iter().chain(backlog.into_iter().map(Delivery::Entry));
        for delivery in first {
            if self.end.deliveries.blocking_send(delivery).is_err() {
                return;
            }
        }
        // The first look: others may have ended while the backlog was delivered.
        let mut look = true;
        loop {
            match self.turn(look) {
                Ok(entries) => {
                    let left = self.membership.is_none();
                    if self.deliver(entries).is_err() || left {
                        return;
                    }
                }
                Err(error) => {
                    let text = format!("cluster directory {}: {error}", self.directory.display());
                    let _ = self.end.deliveries.blocking_send(Delivery::Failed(text));
                    return;
                }
            }
            look = self.wait();
        }
    }

    fn deliver(&mut self, entries: Vec<LogEntry>) -> Result<(), Gone> {
        for entry in entries {
            self.end.deliveries.blocking_send(Delivery::Entry(entry)).map_err(|_| Gone)?;
        }
        Ok(())
    }

    /// Until there is an order, an entry, or the end of a member. True if it is time to look who is alive.
    fn wait(&mut self) -> bool {
        let tick = match (self.hurry, &self.news) {
            (0, Some(_)) => TICK,
            (0, None) => TICK_WITHOUT_INOTIFY,
            _ => TICK_DYING,
        };
        self.hurry = self.hurry.saturating_sub(1);
        let mut fds = vec![PollFd::new(&*self.bell, PollFlags::IN)];
        fds.extend(self.news.iter().map(|news| PollFd::new(news, PollFlags::IN)));
        let fixed = fds.len();
        fds.extend(self.watches.pidfds().map(|(_, pidfd)| PollFd::new(pidfd, PollFlags::IN)));
        poll_for(&mut fds, tick);
        let rung: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let ended: Vec<NodeId> = self
            .watches
            .pidfds()
            .zip(&rung[fixed..])
            .filter(|(_, rung)| **rung)
            .map(|((id, _), _)| id)
            .collect();
        for &id in &ended {
            self.watches.silence(id);
            self.hurry = HURRY_TURNS;
        }
        let mut buffer = [0u8; 4096];
        for fd in std::iter::once(self.bell.as_fd()).chain(self.news.as_ref().map(|fd| fd.as_fd())) {
            while rustix::io::read(fd, &mut buffer).is_ok_and(|n| n > 8) {}
        }
        !ended.is_empty() || self.hurry > 0 || !rung.contains(&true)
    }

    /// Takes orders, appends, reads. Returns what to deliver.
    fn turn(&mut self, look: bool) -> Result<Vec<LogEntry>, LocalError> {
        let mut leaving = false;
        let mut snapshot = None;
        loop {
            match self.end.orders.try_recv() {
                Ok(Order::Propose(proposal)) => self.proposals.push(proposal),
                Ok(Order::Compact { version, state }) => snapshot = Some((version, state)),
                Ok(Order::Leave) | Err(TryRecvError::Disconnected) => {
                    leaving = true;
                    break;
                }
                Err(TryRecvError::Empty) => break,
            }
        }
        let mut entries = self.catch_up()?;
        let unwatched = !self.watches.cover(&self.members, self.own);
        if !(look || leaving || unwatched || snapshot.is_some() || !self.proposals.is_empty()) {
            return Ok(entries);
        }
        let guard = self.lock.take()?;
        entries.extend(self.catch_up()?);
        self.log.recover_tail()?;
        entries.extend(self.catch_up()?);
        if self.members.get(&self.own) != Some(&self.incarnation) {
            return Err(LocalError::Removed);
        }
        self.append(leaving, &mut entries)?;
        if leaving {
            self.membership = None;
            return Ok(entries);
        }
        if !self.watches.adjust(&self.directory, &self.members, self.own) {
            self.hurry = HURRY_TURNS;
        }
        if let Some((version, state)) = snapshot {
            self.compact(version, state)?;
        }
        drop(guard);
        let wants = self.log.grown_bytes() > self.snapshot_after_bytes;
        self.end.wants_snapshot.store(wants, Ordering::Relaxed);
        Ok(entries)
    }

    /// Appends the ends of lives, the own one if `leaving`, and what was proposed; reads it back. Holds the lock.
    fn append(&mut self, leaving: bool, entries: &mut Vec<LogEntry>) -> Result<(), LocalError> {
        let mut ended = find_ended(&self.directory, &self.members, Some(self.own))?;
        if leaving {
            ended.push((self.own, self.incarnation));
            ended.sort();
        }
        let (from, incarnation) = (self.own, self.incarnation);
        let mut events: Vec<ClusterEvent> = self
            .proposals
            .iter()
            .map(|proposal| ClusterEvent::Message { from, incarnation, proposal: proposal.clone() })
            .collect();
        if !ended.is_empty() {
            // What was proposed before is part of this life, should it end here.
            events.push(ClusterEvent::Leave(ended.clone()));
        }
        if events.is_empty() {
            return Ok(());
        }
        match self.log.append(&events, wall_clock_ns()) {
            Ok(()) => {
                self.proposals.clear();
                remove_files(&self.directory, ended.iter().map(|(id, _)| *id));
                entries.extend(self.catch_up()?);
                Ok(())
            }
            Err(error) if error.is_out_of_space() && !leaving => {
                tracing::error!("cluster directory {}: {error}; trying again", self.directory.display());
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Everything durable that was not read yet.
    fn catch_up(&mut self) -> Result<Vec<LogEntry>, LocalError> {
        let mut entries = self.log.read_committed()?;
        if !self.log.is_current(&self.path).map_err(|_| LocalError::Replaced)? {
            // It was replaced under the lock, by somebody who had read it to its end: now its end is final.
            entries.extend(self.log.read_committed()?);
            entries.extend(self.log.follow(&self.path)?);
        }
        apply_members(&mut self.members, &entries);
        Ok(entries)
    }

    /// Keeps the state after `version` in place of the entries before it. Holds the lock.
    fn compact(&mut self, version: ViewVersion, state: bytes::Bytes) -> Result<(), LocalError> {
        let snapshot_path = self.directory.join("snapshot");
        let old = Snapshot::read(&snapshot_path)?;
        let (mut members, start) = match &old {
            Some(old) => (old.members.clone(), old.version),
            None => (Members::new(), ViewVersion(0)),
        };
        // Another member may have been faster.
        if version <= start
            || version > self.log.version()
            || self.log.grown_bytes() < self.snapshot_after_bytes
        {
            return Ok(());
        }
        let mut whole = Log::open(&self.path)?;
        let entries = whole.read_committed()?;
        let since = entries.partition_point(|entry| entry.version <= start);
        let until = entries.partition_point(|entry| entry.version <= version);
        apply_members(&mut members, &entries[since..until]);
        // First the snapshot, then the shorter log: whenever we stop, the two together are the whole history.
        Snapshot { version, members, state }.write(&snapshot_path)?;
        let kept = worth_keeping(&entries, version);
        let base = kept.first().map_or(self.log.version().0, |entry| entry.version.0 - 1);
        Log::replace(&self.path, base, kept)?;
        let again = self.log.follow(&self.path)?;
        assert!(again.is_empty(), "a replaced log holds nothing new");
        tracing::info!("cluster log shortened: snapshot at version {version}, entries from {}", base + 1);
        Ok(())
    }
}

/// `DIR/lock`.
struct LockFile {
    file: File,
    path: PathBuf,
}

struct LockGuard(Arc<LockFile>);

impl LockFile {
    fn open(directory: &Path) -> Result<LockFile, LocalError> {
        let path = directory.join("lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(&path)
            .map_err(io_error("cannot open its lock"))?;
        Ok(LockFile { file, path })
    }

    fn take(self: &Arc<Self>) -> Result<LockGuard, LocalError> {
        loop {
            match flock(&self.file, FlockOperation::LockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io_error("cannot lock it")(error)),
            }
        }
        let guard = LockGuard(self.clone());
        // A lock on a file that is not there any more keeps nobody out.
        let ours = self.file.metadata().map_err(io_error("cannot stat its lock"))?;
        match fs::metadata(&self.path) {
            Ok(found) if found.ino() == ours.ino() && found.dev() == ours.dev() => Ok(guard),
            _ => Err(LocalError::Replaced),
        }
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        let _ = flock(&self.0.file, FlockOperation::Unlock);
    }
}

/// The lives of `members` that have ended, except that of `own`. Holds the lock.
fn find_ended(
    directory: &Path,
    members: &Members,
    own: Option<NodeId>,
) -> Result<Vec<(NodeId, Incarnation)>, LocalError> {
    let mut ended = Vec::new();
    for (&id, &incarnation) in members {
        if Some(id) != own && !is_alive(directory, id).map_err(io_error("cannot look at a member's file"))? {
            ended.push((id, incarnation));
        }
    }
    Ok(ended)
}

/// Files of lives whose end is in the log. Holds the lock, so nobody is just joining by that name.
fn remove_files(directory: &Path, ids: impl Iterator<Item = NodeId>) {
    for id in ids {
        // A file that stays does no harm: its lock is free.
        let _ = fs::remove_file(member_path(directory, id));
    }
}

fn apply_members(members: &mut Members, entries: &[LogEntry]) {
    for entry in entries {
        match &entry.event {
            ClusterEvent::Join(info) => {
                members.insert(info.id, Incarnation(entry.version.0));
            }
            ClusterEvent::Leave(lives) => {
                for (id, incarnation) in lives {
                    if members.get(id) == Some(incarnation) {
                        members.remove(id);
                    }
                }
            }
            ClusterEvent::Message { .. } => {}
        }
    }
}

fn watch_directory(directory: &Path) -> Option<OwnedFd> {
    let watch = || {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        // DELETE: whoever removes the directory removes the log in it first, and is noticed at once.
        let changes =
            inotify::WatchFlags::MODIFY | inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::DELETE;
        inotify::add_watch(&fd, directory, changes)?;
        Ok::<_, rustix::io::Errno>(fd)
    };
    watch().inspect_err(|error| tracing::warn!("no inotify ({error}): looking at the cluster log often")).ok()
}

fn poll_for(fds: &mut [PollFd<'_>], timeout: Duration) {
    let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
    // A signal, or no memory for a moment: the caller looks at everything anyway.
    let _ = poll(fds, Some(&timeout));
}

fn wall_clock_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

const _: () = assert!(HEADER_BYTES == proto::BLOCK_BYTES as u64);
