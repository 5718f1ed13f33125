//! A disk as format and recovery see it: blocking reads and writes at offsets; and the real ones.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Blocking access to one disk. Used only to format it and to open it; afterwards the store asks for I/O
/// through [`poll_io`](crate::Store::poll_io).
pub trait Disk {
    fn size(&self) -> u64;
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
    /// Whether `IoOp::Grow` can make it larger than it is.
    fn can_grow(&self) -> bool {
        false
    }
    /// How much may be written ahead of use at most, so that first writes cost no more than others. 0: do not.
    fn ahead_bytes_max(&self) -> u64 {
        0
    }
    /// Whatever lies between `offset` and this has been written to, as far as is known. A hint.
    fn written_until(&self, offset: u64) -> u64 {
        offset
    }
}

/// The file that holds everything, within a directory.
pub const OBJECTS_FILE: &str = "objects";

/// A file or a block device.
pub struct FileDisk {
    file: File,
    path: PathBuf,
    size: u64,
    is_device: bool,
}

impl FileDisk {
    /// Opens the disk at `path`: a block device, a file, or a directory with an `objects` file in it.
    pub fn open(path: &Path) -> io::Result<FileDisk> {
        let path = if path.is_dir() { path.join(OBJECTS_FILE) } else { path.to_owned() };
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        lock(&file)?;
        FileDisk::of(file, path)
    }

    fn of(file: File, path: PathBuf) -> io::Result<FileDisk> {
        let is_device = file.metadata()?.file_type().is_block_device();
        let size = size_of(&file)?;
        Ok(FileDisk { file, path, size, is_device })
    }

    /// As `open`, but makes the file where there is none, and reserves `size_bytes` for it, or its length if that is more: a write to a disk that was
    /// formatted never meets a full file system. [`FormatOptions::first_bytes`](crate::FormatOptions::first_bytes) are enough. Fails with the file system's error if it has no such room; a
    /// new file is removed again.
    pub fn create(path: &Path, size_bytes: u64) -> io::Result<FileDisk> {
        let path = if path.is_dir() { path.join(OBJECTS_FILE) } else { path.to_owned() };
        let is_new = !path.exists();
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o640).open(&path)?;
        lock(&file)?;
        if !file.metadata()?.file_type().is_block_device() {
            // Whatever its length promises is to be there.
            let size = size_bytes.max(file.metadata()?.len());
            let flags = rustix::fs::FallocateFlags::empty();
            let reserved = rustix::io::retry_on_intr(|| rustix::fs::fallocate(&file, flags, 0, size));
            if let Err(error) = reserved {
                if is_new {
                    let _ = std::fs::remove_file(&path);
                }
                return Err(error.into());
            }
            file.sync_all()?;
            sync_parent(&path)?;
        }
        FileDisk::of(file, path)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why the disk is as good as lost, though it may still answer: nobody will find again what is written to it.
    pub fn trouble(&self) -> Option<String> {
        if self.is_device {
            return None;
        }
        match self.file.metadata() {
            Ok(metadata) if metadata.nlink() > 0 => None,
            Ok(_) => Some("its file was removed".into()),
            Err(error) => Some(format!("its file cannot be looked at: {error}")),
        }
    }

    /// For the shell that does the I/O of an open store: the same open file, so that the lock lasts until the kernel is
    /// done with all that was asked of it, whatever became of us. A write that is still on its way when a killed process is gone must
    /// not hit the disk under its successor.
    ///
    /// Past the page cache from now on, where the file system can. [`Disk`] is not to be used any more: its memory is not aligned.
    pub fn direct(&self) -> io::Result<File> {
        use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
        let flags = fcntl_getfl(&self.file)?;
        match fcntl_setfl(&self.file, flags | OFlags::DIRECT) {
            Err(rustix::io::Errno::INVAL) => {
                tracing::warn!(
                    "{}: no direct I/O on this file system, using the page cache",
                    self.path.display()
                );
            }
            other => other?,
        }
        self.file.try_clone()
    }
}

/// What growing leaves to others on the file system: logs, the cluster's own records. A fiftieth, at most this.
const LEFT_TO_OTHERS_BYTES_MAX: u64 = 1 << 30;

/// What may be written ahead of use: this, or so small a share of the file system.
const AHEAD_BYTES_MAX: u64 = 1 << 30;
const AHEAD_SHARE: u64 = 64;

/// Carries out [`IoOp::Grow`](crate::IoOp::Grow) on an open file. Blocks for as long as the file system likes.
pub fn grow(file: &File, size_bytes: u64) -> io::Result<()> {
    let before = file.metadata()?.len();
    let Some(more) = size_bytes.checked_sub(before).filter(|more| *more > 0) else { return Ok(()) };
    let stat = rustix::fs::fstatvfs(file)?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let left = (stat.f_blocks.saturating_mul(stat.f_frsize) / 50).min(LEFT_TO_OTHERS_BYTES_MAX);
    if free < more.saturating_add(left) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let flags = rustix::fs::FallocateFlags::empty();
    let reserved = rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, flags, before, more));
    if let Err(error) = reserved {
        // It may have taken a part, which others need more than we do.
        let _ = file.set_len(before);
        return Err(error.into());
    }
    // Before the first write to it: a crash must not take back what a write relies on.
    file.sync_all()
}

/// Room for a store in this directory: what the file system has free, less a tenth for others and for its own needs.
pub fn default_size_bytes(directory: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(directory)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize) / 10 * 9)
}

fn size_of(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if !metadata.file_type().is_block_device() {
        return Ok(metadata.len());
    }
    rustix::fs::seek(file, rustix::fs::SeekFrom::End(0)).map_err(io::Error::from)
}

/// Two stores on one disk would destroy it.
fn lock(file: &File) -> io::Result<()> {
    match rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("in use by another process (file descriptor {} could not be locked)", file.as_raw_fd()),
        )),
        Err(error) => Err(error.into()),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

impl Disk for FileDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn can_grow(&self) -> bool {
        !self.is_device
    }

    fn ahead_bytes_max(&self) -> u64 {
        if self.is_device || !overwrites_in_place(&self.file) {
            return 0;
        }
        let Ok(stat) = rustix::fs::fstatvfs(&self.file) else { return 0 };
        (stat.f_blocks.saturating_mul(stat.f_frsize) / AHEAD_SHARE).min(AHEAD_BYTES_MAX)
    }

    fn written_until(&self, offset: u64) -> u64 {
        // Room that is reserved and was not written to is a hole.
        rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Hole(offset)).unwrap_or(offset)
    }
}

/// Does a second write go where the first went, and take no room again? Only of these is it known. Where each write takes new room
/// (btrfs), writing ahead would use up what was reserved for the first.
fn overwrites_in_place(file: &File) -> bool {
    const EXT: i64 = 0xef53;
    const XFS: i64 = 0x5846_5342;
    rustix::fs::fstatfs(file).is_ok_and(|stat| [EXT, XFS].contains(&stat.f_type))
}
