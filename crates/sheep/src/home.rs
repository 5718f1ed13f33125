//! The store directory: its lock, its version mark, its sockets' names and the pid file.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// Mark of this layout in `config`.
const CONFIG: &str = "sheepdog store 2\n";
/// What stores of the original had there instead.
const ORIGINAL_CONFIG_BYTES: usize = 40;

/// More than a sheep needs from the end of its connections to its own.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const RETRY_PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error("cannot {what} {}: {error}", path.display())]
    Io { what: &'static str, path: PathBuf, error: io::Error },
    #[error("another sheep uses {}", .0.display())]
    InUse(PathBuf),
    #[error(
        "{} holds a store of the original Sheepdog, which this version cannot use. \
         Start in an empty directory and copy the volumes over", .0.display()
    )]
    Original(PathBuf),
    #[error("{} was written by another version ('{found}'); this one knows '{}'", path.display(), CONFIG.trim())]
    OtherVersion { path: PathBuf, found: String },
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HomeError {
    let path = path.to_path_buf();
    move |error| HomeError::Io { what, path, error }
}

/// A store directory that this process alone uses, as long as the value lives.
pub struct Home {
    pub path: PathBuf,
    /// The disk, where it is not this directory.
    pub disk: Option<PathBuf>,
    /// Nobody has used it before.
    pub is_new: bool,
    _lock: File,
}

/// Creates the directories and makes all paths absolute, since a daemon leaves the directory it was started in.
pub fn prepare(directory: &Path, disk: Option<&Path>) -> Result<(PathBuf, Option<PathBuf>), HomeError> {
    let directory = create(directory)?;
    let disk = match disk {
        Some(disk) if !disk.exists() => Some(create(disk)?),
        Some(disk) => Some(fs::canonicalize(disk).map_err(io_error("resolve", disk))?),
        None => None,
    };
    Ok((directory, disk))
}

fn create(path: &Path) -> Result<PathBuf, HomeError> {
    DirBuilder::new().recursive(true).mode(0o750).create(path).map_err(io_error("create directory", path))?;
    fs::canonicalize(path).map_err(io_error("resolve", path))
}

impl Home {
    /// Locks the directory and checks its version. The disk has a lock of its own, since another sheep may name
    /// it with another directory.
    pub fn lock(path: PathBuf, disk: Option<PathBuf>) -> Result<Home, HomeError> {
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(&lock_path)
            .map_err(io_error("open", &lock_path))?;
        take(&lock, &path)?;
        let is_new = check_config(&path)? == Config::New;
        Ok(Home { path, disk, is_new, _lock: lock })
    }

    /// From now on the directory belongs to a store. To be called when nothing that is known beforehand hinders one any more.
    pub fn begin(&self) -> Result<(), HomeError> {
        if self.is_new { write_config(&self.path) } else { Ok(()) }
    }
}

/// A sheep whose connections have ended holds it for another moment, until its disk is at rest.
fn take(file: &File, path: &Path) -> Result<(), HomeError> {
    let attempt = || flock(file, FlockOperation::NonBlockingLockExclusive);
    let is_taken = |error: &rustix::io::Errno| *error == rustix::io::Errno::WOULDBLOCK;
    retry(LOCK_PATIENCE, is_taken, attempt).map_err(|error| match error {
        taken if is_taken(&taken) => HomeError::InUse(path.into()),
        other => io_error("lock", path)(other.into()),
    })
}

/// Tries again for a while as long as somebody else is at it.
pub fn retry<T, E>(
    patience: Duration,
    is_taken: impl Fn(&E) -> bool,
    attempt: impl Fn() -> Result<T, E>,
) -> Result<T, E> {
    let end = Instant::now() + patience;
    loop {
        match attempt() {
            Err(error) if is_taken(&error) && Instant::now() < end => std::thread::sleep(RETRY_PAUSE),
            other => return other,
        }
    }
}

#[derive(PartialEq, Eq)]
enum Config {
    Found,
    /// Nobody has written one: see [`Home::begin`].
    New,
}

fn check_config(directory: &Path) -> Result<Config, HomeError> {
    let path = directory.join("config");
    match fs::read(&path) {
        Ok(found) if found == CONFIG.as_bytes() => Ok(Config::Found),
        Ok(found) if found.len() == ORIGINAL_CONFIG_BYTES && !found.starts_with(b"sheepdog") => {
            Err(HomeError::Original(directory.into()))
        }
        Ok(found) => {
            let start = &found[..found.len().min(64)];
            let found = String::from_utf8_lossy(start).trim().escape_debug().to_string();
            Err(HomeError::OtherVersion { path, found })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Config::New),
        Err(error) => Err(io_error("read", &path)(error)),
    }
}

fn write_config(directory: &Path) -> Result<(), HomeError> {
    let (path, aside) = (directory.join("config"), directory.join("config.tmp"));
    File::create(&aside)
        .and_then(|mut file| file.write_all(CONFIG.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&aside, &path))
        .and_then(|()| File::open(directory)?.sync_all())
        .map_err(io_error("write", &path))
}

/// A locked file that names this process; gone with it.
pub struct PidFile {
    path: PathBuf,
    _file: File,
}

impl PidFile {
    /// To be called by the process that stays.
    pub fn write(path: PathBuf) -> Result<PidFile, HomeError> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("create pid file", &path))?;
        take(&file, &path)?;
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(io_error("write pid file", &path))?;
        Ok(PidFile { path, _file: file })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_user_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = prepare(&dir.path().join("a/b"), None).unwrap();
        let first = Home::lock(path.clone(), None).unwrap();
        let first_is_new = first.is_new;
        let second = Home::lock(path.clone(), None).err().unwrap();
        assert_eq!(second.to_string(), format!("another sheep uses {}", path.display()));
        drop(first);
        assert!(first_is_new);
        // Nothing was begun there yet.
        let again = Home::lock(path.clone(), None).unwrap();
        assert!(again.is_new);
        again.begin().unwrap();
        drop(again);
        assert!(!Home::lock(path, None).unwrap().is_new);
    }

    #[test]
    fn stores_of_other_versions_are_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = prepare(dir.path(), None).unwrap();
        let check = |content: &[u8], expect: &str| {
            fs::write(path.join("config"), content).unwrap();
            let text = Home::lock(path.clone(), None).err().unwrap().to_string();
            assert!(text.contains(expect), "{text}");
            assert_eq!(fs::read(path.join("config")).unwrap(), content);
        };
        check(&[1; 40], "holds a store of the original Sheepdog");
        check(b"sheepdog store 3\n", "another version ('sheepdog store 3')");
        check(b"", "another version ('')");
    }

    #[test]
    fn the_pid_file_goes_with_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        fs::write(&path, "a much longer old content").unwrap();
        let pid_file = PidFile::write(path.clone()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        assert!(matches!(PidFile::write(path.clone()), Err(HomeError::InUse(_))));
        drop(pid_file);
        assert!(!path.exists());
    }
}
