//! Which VDIs are served by vhost-user sockets, one socket each, in one directory.
//!
//! What is attached is written down in the store directory before anybody is told: a sheep that is started again serves the same
//! sockets, and the guests that wait for it go on. A socket's name is a word of its own and not the VDI's, since several may
//! serve one VDI. Sockets are made in this directory only: whoever may talk to a sheep must not make it write elsewhere.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use front::vhost;
use proto::client::{Attachment, ClientError};
use rustix::fs::{FlockOperation, flock};
use tokio::sync::oneshot;

use crate::fronts::{Front, Fronts};
use crate::shell::Shell;

/// In the store directory: a line for each socket, its name and the VDI's, `%` and what cannot be printed as `%XX`.
const RECORD: &str = "attached";
/// In the directory of sockets: another sheep must not take them over.
const LOCK: &str = ".lock";
const SOCKET_NAME_BYTES_MAX: usize = 64;

pub struct Attachments {
    sockets: PathBuf,
    store: PathBuf,
    fronts: Fronts,
    /// By the socket's name.
    served: RefCell<BTreeMap<String, Served>>,
    _lock: File,
}

struct Served {
    name: Vec<u8>,
    seat: vhost::Seat,
    /// Dropped, it ends the serving; `None`: the socket could not be made.
    serving: Option<oneshot::Sender<()>>,
}

/// Makes the directory, for our user alone, and its path absolute: a daemon leaves the directory it was started in.
pub fn prepare(sockets: &Path) -> anyhow::Result<PathBuf> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(sockets);
    made.and_then(|()| fs::canonicalize(sockets))
        .with_context(|| format!("cannot make the directory of vhost-user sockets {}", sockets.display()))
}

impl Attachments {
    /// What was attached before.
    pub fn open(sockets: &Path, store: &Path, fronts: Fronts) -> anyhow::Result<Attachments> {
        let lock_path = sockets.join(LOCK);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .with_context(|| format!("cannot open {}", lock_path.display()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                bail!("another sheep has its sockets in {}", sockets.display())
            }
            Err(error) => Err(error).with_context(|| format!("cannot lock {}", lock_path.display()))?,
        }
        let path = store.join(RECORD);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            other => other.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let served = parse_record(&text)
            .ok_or_else(|| anyhow!("{} is damaged: remove it and attach the VDIs again", path.display()))?;
        let served = served.into_iter().map(|(socket, name)| (socket, Served::new(name))).collect();
        let (sockets, store) = (sockets.to_path_buf(), store.to_path_buf());
        Ok(Attachments { sockets, store, fronts, served: RefCell::new(served), _lock: lock })
    }

    /// Serves what was attached before. A socket that cannot be made keeps nobody from starting: the log says so.
    pub fn serve_all(&self, shell: &Shell) {
        for (socket, served) in self.served.borrow_mut().iter_mut() {
            match self.serve(shell, socket, served) {
                Ok(()) => {}
                Err(error) => tracing::error!("cannot listen on {}: {error}", self.path(socket).display()),
            }
        }
    }

    /// Serves `name` by `socket`, now and after every start. Again is no mistake.
    pub fn attach(&self, shell: &Shell, name: &[u8], socket: &[u8]) -> Result<Vec<Attachment>, ClientError> {
        let socket = self.socket_name(socket)?;
        check_reachable(&self.path(&socket))?;
        let mut served = self.served.borrow_mut();
        match served.get(&socket) {
            Some(known) if known.name != name => {
                let other = String::from_utf8_lossy(&known.name).into_owned();
                let path = self.path(&socket);
                return Err(unsupported(format!("{} serves {other}; detach that first", path.display())));
            }
            Some(known) if known.serving.is_some() => return Ok(vec![self.attachment(&socket, known)]),
            _ => {}
        }
        // Written down first: so no guest is ever served whom this could not keep.
        let earlier = served.insert(socket.clone(), Served::new(name.to_vec()));
        if let Err(error) = self.record(&served) {
            served.remove(&socket);
            earlier.map(|earlier| served.insert(socket, earlier));
            return Err(unsupported(format!("cannot write it down in {}: {error}", self.store.display())));
        }
        let new = served.get_mut(&socket).expect("just put there");
        if let Err(error) = self.serve(shell, &socket, new) {
            served.remove(&socket);
            if let Err(error) = self.record(&served) {
                tracing::warn!("cannot strike {socket} out in {}: {error}", self.store.display());
            }
            let path = self.path(&socket);
            return Err(unsupported(format!("cannot listen on {}: {error}", path.display())));
        }
        let attachment = self.attachment(&socket, &served[&socket]);
        tracing::info!("{} serves {}", self.path(&socket).display(), String::from_utf8_lossy(name));
        Ok(vec![attachment])
    }

    /// Serves `name` no longer, by this socket or by any. While a guest is connected nothing is detached.
    pub fn detach(&self, name: &[u8], socket: Option<&[u8]>) -> Result<Vec<Attachment>, ClientError> {
        let socket = socket.map(|socket| self.socket_name(socket)).transpose()?;
        let mut served = self.served.borrow_mut();
        let is_meant = |at: &String, known: &Served| {
            known.name == name && socket.as_ref().is_none_or(|socket| socket == at)
        };
        let found: Vec<_> = served
            .iter()
            .filter(|(at, known)| is_meant(at, known))
            .map(|(at, known)| self.attachment(at, known))
            .collect();
        if found.is_empty() {
            return Err(unsupported(format!("{} is not attached there", String::from_utf8_lossy(name))));
        }
        let meant = || served.iter().filter(|(at, known)| is_meant(at, known)).map(|(_, known)| &known.seat);
        // From here on nobody sits down.
        if !meant().all(vhost::Seat::close) {
            meant().for_each(vhost::Seat::reopen);
            return Err(ClientError::Busy);
        }
        let (gone, kept) =
            std::mem::take(&mut *served).into_iter().partition(|(at, known)| is_meant(at, known));
        *served = kept;
        let recorded = self.record(&served);
        let gone: BTreeMap<String, Served> = gone;
        for (at, known) in gone {
            self.end(&at, known);
        }
        match recorded {
            Ok(()) => Ok(found),
            Err(error) => Err(unsupported(format!(
                "it is detached, but cannot be struck out in {} and will be back after a restart: {error}",
                self.store.join(RECORD).display()
            ))),
        }
    }

    pub fn list(&self) -> Vec<Attachment> {
        self.served.borrow().iter().map(|(socket, served)| self.attachment(socket, served)).collect()
    }

    fn serve(&self, shell: &Shell, socket: &str, served: &mut Served) -> io::Result<()> {
        let listener = vhost::listen(&self.path(socket))?;
        let (serving, ended) = oneshot::channel();
        let (name, seat) = (served.name.clone(), served.seat.clone());
        self.fronts.begin(shell, Front::Vhost { listener, name, seat, ended })?;
        served.serving = Some(serving);
        Ok(())
    }

    /// Its seat is closed, so nothing is under way.
    fn end(&self, socket: &str, served: Served) {
        drop(served.serving);
        if let Err(error) = fs::remove_file(self.path(socket)) {
            tracing::warn!("cannot remove {}: {error}", self.path(socket).display());
        }
    }

    fn record(&self, served: &BTreeMap<String, Served>) -> io::Result<()> {
        let lines = served.iter().map(|(socket, served)| format!("{socket} {}\n", escape(&served.name)));
        let text: String = lines.collect();
        let aside = self.store.join(format!("{RECORD}.tmp"));
        let mut file = File::create(&aside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&aside, self.store.join(RECORD))?;
        File::open(&self.store)?.sync_all()
    }

    fn attachment(&self, socket: &str, served: &Served) -> Attachment {
        let path = self.path(socket).into_os_string().as_bytes().to_vec();
        Attachment { name: served.name.clone(), socket: path, in_use: served.seat.is_taken() }
    }

    fn path(&self, socket: &str) -> PathBuf {
        self.sockets.join(socket)
    }

    /// The name in our directory that is meant by a path or a name.
    fn socket_name(&self, socket: &[u8]) -> Result<String, ClientError> {
        let path = Path::new(OsStr::from_bytes(socket));
        let here =
            path.parent().is_some_and(|parent| parent.as_os_str().is_empty() || parent == self.sockets);
        let name = path.file_name().and_then(OsStr::to_str).filter(|name| is_socket_name(name));
        match name {
            Some(name) if here => Ok(name.to_owned()),
            _ => Err(unsupported(format!(
                "'{}' cannot be the socket: this sheep makes them in {}, with a name of at most \
                 {SOCKET_NAME_BYTES_MAX} letters, digits, '.', '-', '_' that does not begin with '.'",
                path.display(),
                self.sockets.display()
            ))),
        }
    }
}

impl Served {
    fn new(name: Vec<u8>) -> Served {
        Served { name, seat: vhost::Seat::default(), serving: None }
    }
}

/// Longest path in the address of a unix socket, on Linux.
const SOCKET_PATH_BYTES_MAX: usize = 107;

fn check_reachable(path: &Path) -> Result<(), ClientError> {
    match path.as_os_str().len() {
        0..=SOCKET_PATH_BYTES_MAX => Ok(()),
        bytes => Err(unsupported(format!(
            "the path of the socket would have {bytes} bytes, and no program can connect to one of more than {SOCKET_PATH_BYTES_MAX}: {}; start the \
             sheep with a --vhost-user directory that has a shorter path, or take a shorter name",
            path.display()
        ))),
    }
}

fn unsupported(text: String) -> ClientError {
    ClientError::Unsupported(text)
}

fn is_socket_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
    !name.is_empty()
        && name.len() <= SOCKET_NAME_BYTES_MAX
        && !name.starts_with('.')
        && name.bytes().all(plain)
}

fn escape(name: &[u8]) -> String {
    let byte = |b: &u8| match b {
        b'!'..=b'~' if *b != b'%' => char::from(*b).to_string(),
        other => format!("%{other:02X}"),
    };
    name.iter().map(byte).collect()
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut name = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            name.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        name.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    Some(name)
}

/// `None`: damaged.
fn parse_record(text: &str) -> Option<Vec<(String, Vec<u8>)>> {
    if !text.is_empty() && !text.ends_with('\n') {
        return None;
    }
    let line = |line: &str| {
        let (socket, name) = line.split_once(' ')?;
        let name = unescape(name).filter(|name| !name.is_empty())?;
        is_socket_name(socket).then(|| (socket.to_owned(), name))
    };
    text.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> Attachments {
        let sockets = prepare(&dir.join("sockets")).unwrap();
        Attachments::open(&sockets, dir, Fronts::default()).unwrap()
    }

    #[test]
    fn what_is_written_down_is_read_back_whatever_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let attachments = open(dir.path());
        let names: [(&str, &[u8]); 3] = [("a", b"alice"), ("b.1", b"a b%c\n\xff"), ("c_-", b"alice@monday")];
        let served = names.map(|(socket, name)| (socket.to_owned(), Served::new(name.to_vec())));
        attachments.record(&BTreeMap::from(served)).unwrap();
        let text = fs::read_to_string(dir.path().join(RECORD)).unwrap();
        assert_eq!(text, "a alice\nb.1 a%20b%25c%0A%FF\nc_- alice@monday\n");
        drop(attachments);
        let found: Vec<_> = open(dir.path()).list().into_iter().map(|a| (a.socket, a.name)).collect();
        let sockets = dir.path().canonicalize().unwrap().join("sockets");
        let path = |socket: &str| sockets.join(socket).into_os_string().as_bytes().to_vec();
        assert_eq!(found, names.map(|(socket, name)| (path(socket), name.to_vec())));
        for damaged in ["a", "a \n", " alice\n", "a alice", "a %4\n", "a %xy\n", ".a alice\n", "../a alice\n"]
        {
            assert_eq!(parse_record(damaged), None, "{damaged:?}");
        }
    }

    #[test]
    fn a_path_that_no_guest_can_connect_to_is_refused() {
        let path = |bytes: usize| PathBuf::from(format!("/{}", "x".repeat(bytes - 1)));
        assert_eq!(check_reachable(&path(107)), Ok(()));
        let refused = check_reachable(&path(108)).unwrap_err().to_string();
        assert!(refused.contains("would have 108 bytes"), "{refused}");
    }

    #[test]
    fn sockets_are_made_in_one_directory_only_and_by_one_sheep() {
        let dir = tempfile::tempdir().unwrap();
        let attachments = open(dir.path());
        let sockets = attachments.sockets.clone();
        let path = |name: &str| sockets.join(name).into_os_string().as_bytes().to_vec();
        for good in [b"alice".to_vec(), path("alice")] {
            assert_eq!(attachments.socket_name(&good), Ok("alice".into()));
        }
        let long = "x".repeat(65);
        let relative: &[u8] = b"sockets/alice";
        for bad in [relative, b"", b".lock", b"/etc/passwd", b"..", b"../alice", b"a b", long.as_bytes()] {
            assert!(attachments.socket_name(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
        assert!(attachments.socket_name(&path("../alice")).is_err());
        let second = Attachments::open(&sockets, dir.path(), Fronts::default()).err().unwrap();
        assert!(second.to_string().contains("another sheep has its sockets in"), "{second}");
    }
}
