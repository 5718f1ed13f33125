//! Finds a sheep's disk, formats it at the first start, and opens it.
//!
//! Formatting destroys, so it happens only where there is nothing to lose: the directory has no mark of an earlier
//! disk, and the disk is a new file, the remains of a format that was cut off, or a device that begins with zeros. A store that is damaged is left as it
//! is, too: it may be the last copy of something, which only the other sheep know.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use proto::object::Unsettled;
use store::{Disk as _, FileDisk, FormatOptions, OBJECTS_FILE, OpenError, Store, default_size_bytes};
use tokio::sync::mpsc;

use crate::home::{Home, retry};
use crate::io::{Completion, Disk, EngineChoice};
use crate::marks;
use crate::objects::{DiskStore, NoStore, ObjectStore};

/// How much of a device that is not a store must be zeros, for us to believe that nobody wants it: file systems and
/// volume managers put their marks there.
const BLANK_BYTES: usize = 128 << 10;
/// Share of the file system that a store takes where several of one machine may live on it.
const SHARED_PART: u64 = 16;
const SIZE_UNIT_BYTES: u64 = 1 << 20;
/// A disk that takes longer for what it was given is in use by somebody.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// How to make a new store.
#[derive(Clone, Copy, Debug)]
pub struct NewStore {
    /// What the operator wants.
    pub size_bytes: Option<u64>,
    /// Other sheep may have their stores on the same file system.
    pub shared: bool,
    /// Distinguishes the disk from all others.
    pub store_id: u64,
}

/// A store, ready to be used.
pub struct Opened {
    pub store: Box<dyn ObjectStore>,
    pub disk: Option<(Disk, mpsc::UnboundedReceiver<Completion>)>,
    /// 0 for a gateway.
    pub store_id: u64,
    /// What the store cannot say is on all copies.
    pub unsettled: Vec<Unsettled>,
}

/// What a gateway has in place of a store.
pub fn none() -> Opened {
    Opened { store: Box::new(NoStore::default()), disk: None, store_id: 0, unsettled: Vec::new() }
}

/// Opens what is on the disk of this sheep, formatting it first if it is new. Blocks. To be called within the
/// runtime and `LocalSet` of the data plane.
pub fn open(home: &Home, new: NewStore, engine: EngineChoice) -> anyhow::Result<Opened> {
    let place = home.disk.as_deref().unwrap_or(&home.path);
    let path = if place.is_dir() { place.join(OBJECTS_FILE) } else { place.to_path_buf() };
    open_path(&home.path, &path, place.is_dir(), new, engine)
        .with_context(|| format!("cannot use disk {}", path.display()))
}

fn open_path(
    directory: &Path,
    path: &Path,
    is_ours: bool,
    new: NewStore,
    engine: EngineChoice,
) -> anyhow::Result<Opened> {
    let expected = marks::read(directory, marks::STORE_ID)?;
    let mut disk = match open_unlocked(path) {
        Ok(disk) => disk,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            refuse_lost(directory, expected)?;
            create(path, size_of_new(path.parent().unwrap_or(directory), new)?, new.store_id)?
        }
        Err(error) => return Err(error.into()),
    };
    let (store, recovered) = match Store::open(&mut disk) {
        Err(OpenError::NotAStore) => {
            refuse_lost(directory, expected)?;
            if !is_ours && !is_blank(&mut disk)? {
                bail!("it is no Sheepdog disk and not empty: clear its first 128 KiB if nobody needs it");
            }
            let mut size = new.size_bytes.unwrap_or(u64::MAX).min(disk.size());
            // A file may have been made without its room. One of our own takes the rest of it later.
            let found = disk.size();
            drop(disk);
            if is_ours {
                size = size_of_new(path.parent().unwrap_or(directory), new)?;
                disk = create(path, size, new.store_id)?;
            } else {
                disk =
                    FileDisk::create(path, found).with_context(|| format!("cannot reserve {found} bytes"))?;
            }
            tracing::info!("formatting {} with {size} bytes", path.display());
            Store::format(&mut disk, &FormatOptions::new(size, new.store_id))?;
            Store::open(&mut disk)?
        }
        Err(error) if error.is_damage() => return Err(damaged(&error, directory, is_ours)),
        other => other?,
    };
    match expected {
        Some(expected) if expected != recovered.store_id => bail!(
            "it is disk {:016x}, but {} belongs to disk {expected:016x}",
            recovered.store_id,
            directory.display()
        ),
        Some(_) => {}
        None => marks::write(directory, marks::STORE_ID, recovered.store_id)?,
    }
    tracing::info!("disk {} is open, {} journal records replayed", path.display(), recovered.records);
    let started = Disk::start(disk.direct()?, engine)?;
    Ok(Opened {
        store: Box::new(DiskStore::new(store, disk)),
        disk: Some(started),
        store_id: recovered.store_id,
        unsettled: recovered.unsettled,
    })
}

/// Waits for what an earlier sheep that was killed has left on its way to the disk.
fn open_unlocked(path: &Path) -> io::Result<FileDisk> {
    let is_taken = |error: &io::Error| error.kind() == io::ErrorKind::ResourceBusy;
    retry(LOCK_PATIENCE, is_taken, || FileDisk::open(path))
}

/// Makes the file of a store with what it needs at first.
fn create(path: &Path, size_bytes: u64, store_id: u64) -> anyhow::Result<FileDisk> {
    let first = FormatOptions::new(size_bytes, store_id).first_bytes()?;
    FileDisk::create(path, first).with_context(|| format!("cannot reserve {first} bytes"))
}

fn refuse_lost(directory: &Path, expected: Option<u64>) -> anyhow::Result<()> {
    let Some(expected) = expected else { return Ok(()) };
    let mark: PathBuf = directory.join(marks::STORE_ID);
    Err(anyhow!(
        "there is no store on it, but disk {expected:016x} was used with this directory before. Is it mounted? \
         If it is, and its beginning is destroyed, the others may have all that it held: if 'dog cluster health' of another sheep says 'ok' or 'degraded', \
         begin anew, without its data: remove {}",
        mark.display()
    ))
}

/// What an operator is told of a store that cannot be opened any more. Whoever does as it says keeps the damaged bytes until nothing needs them.
fn damaged(error: &OpenError, directory: &Path, is_ours: bool) -> anyhow::Error {
    let directory = directory.display();
    let disk = if is_ours { "" } else { ", but with another disk" };
    anyhow!(
        "{error}.\n\
         It is left as it is. Do not format or delete it before you know that nothing needs it. Ask a sheep that runs:\n\
         \x20   dog cluster health -p PORT\n\
         If it says 'ok' or 'degraded', the others have all of it; if 'lost', all but the blocks that it names, of which this one may have the last good copy. Then put this one aside:\n\
         \x20   mv {directory} {directory}.damaged\n\
         and start this sheep as before{disk}: with an empty store, which fetches all from the others. Keep {directory}.damaged until it says 'ok'.\n\
         If it says anything else, or no other sheep runs, this may be the last copy of something: keep it, and start all others first. 'blocked' may end \
         some seconds after something is written."
    )
}

fn is_blank(disk: &mut FileDisk) -> io::Result<bool> {
    let mut start = vec![0; BLANK_BYTES.min(disk.size() as usize)];
    disk.read_at(0, &mut start)?;
    Ok(start.iter().all(|byte| *byte == 0))
}

/// The size of a new store in this directory.
fn size_of_new(directory: &Path, new: NewStore) -> anyhow::Result<u64> {
    let stat = rustix::fs::statvfs(directory)?;
    if let Some(size) = new.size_bytes {
        // It is taken little by little; but nobody is told of room that is not there.
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if size > free {
            bail!("a store of {size} bytes is wanted, but its file system has {free} bytes free");
        }
        return Ok(size);
    }
    let most = default_size_bytes(directory)?;
    if !new.shared {
        return Ok(most / SIZE_UNIT_BYTES * SIZE_UNIT_BYTES);
    }
    // A part of the whole and not of what is free: so all sheep that begin here are equal.
    let part = stat.f_blocks.saturating_mul(stat.f_frsize) / SHARED_PART;
    Ok(part.min(most) / SIZE_UNIT_BYTES * SIZE_UNIT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::object::{BlockRange, Change, ObjectOp, ObjectReply, WriteBase};
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    fn try_open(dir: &Path, disk: Option<&Path>, store_id: u64) -> Result<u64, String> {
        try_open_sized(dir, disk, store_id, 64 << 20)
    }

    fn try_open_sized(
        dir: &Path,
        disk: Option<&Path>,
        store_id: u64,
        size_bytes: u64,
    ) -> Result<u64, String> {
        let (path, disk) = crate::home::prepare(&dir.join("meta"), disk).unwrap();
        let home = Home::lock(path, disk).unwrap();
        let new = NewStore { size_bytes: Some(size_bytes), shared: true, store_id };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            open(&home, new, EngineChoice::Threads)
                .map(|opened| opened.store_id)
                .map_err(|error| format!("{error:#}"))
        })
    }

    #[test]
    fn a_disk_is_formatted_once_and_then_kept() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(try_open(dir.path(), None, 5), Ok(5));
        assert_eq!(try_open(dir.path(), None, 6), Ok(5));
    }

    #[test]
    fn a_store_takes_its_room_little_by_little() {
        let dir = tempfile::tempdir().unwrap();
        let (path, disk) = crate::home::prepare(dir.path(), None).unwrap();
        let home = Home::lock(path.clone(), disk).unwrap();
        let new = NewStore { size_bytes: Some(2 << 30), shared: true, store_id: 5 };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let taken = || fs::metadata(path.join(OBJECTS_FILE)).unwrap().blocks() * 512;
            let Opened { mut store, disk, .. } = open(&home, new, EngineChoice::Best).unwrap();
            let (disk, mut completions) = disk.unwrap();
            assert!(store.space().size_bytes > 1900 << 20 && taken() < 300 << 20, "{} are taken", taken());
            // Enough to need several steps.
            let data = bytes::Bytes::from(vec![7; 16 << 20]);
            let checksums = proto::checksum::block_checksums(&data);
            for n in 0..20 {
                let blocks = BlockRange::new(4096 * n, 4096);
                let change = Change::Write { blocks, checksums: checksums.clone(), base: WriteBase::Keep };
                let op = ObjectOp::Change { oid: proto::Oid(8), change, data: data.clone(), tag: None };
                store.submit(node::Ticket(n.into()), op);
            }
            let mut done = 0;
            while done < 20 {
                while let Some(order) = store.poll_io() {
                    disk.order(order);
                }
                disk.submit();
                while let Some((_, reply)) = store.poll_reply() {
                    assert_eq!(reply, ObjectReply::Done);
                    done += 1;
                }
                if done < 20 {
                    store.handle_io(completions.recv().await.unwrap());
                }
            }
            assert!(taken() > 320 << 20);
            assert!(taken() < 800 << 20, "{} are taken", taken());
        });
        let text = try_open_sized(&dir.path().join("other"), None, 6, 1 << 60).unwrap_err();
        assert!(
            text.contains("a store of 1152921504606846976 bytes is wanted, but its file system has"),
            "{text}"
        );
    }

    #[test]
    fn a_disk_that_is_missing_or_exchanged_is_not_replaced_by_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        try_open(dir.path(), None, 5).unwrap();
        let objects = dir.path().join("meta").join(OBJECTS_FILE);
        fs::rename(&objects, dir.path().join("aside")).unwrap();
        let text = try_open(dir.path(), None, 6).unwrap_err();
        assert!(text.contains("disk 0000000000000005 was used with this directory before"), "{text}");
        assert!(!objects.exists());
        let other = tempfile::tempdir().unwrap();
        try_open(other.path(), None, 7).unwrap();
        fs::copy(other.path().join("meta").join(OBJECTS_FILE), &objects).unwrap();
        let text = try_open(dir.path(), None, 8).unwrap_err();
        assert!(text.contains("it is disk 0000000000000007"), "{text}");
    }

    #[test]
    fn a_damaged_store_is_left_as_it_is_and_what_to_do_is_said() {
        for name in [None, Some("disk")] {
            let dir = tempfile::tempdir().unwrap();
            let disk = name.map(|name| dir.path().join(name));
            disk.iter().for_each(|disk| fs::write(disk, vec![0; 64 << 20]).unwrap());
            try_open(dir.path(), disk.as_deref(), 5).unwrap();
            let path = disk.clone().unwrap_or(dir.path().join("meta").join(OBJECTS_FILE));
            let mut bytes = fs::read(&path).unwrap();
            // Both superblocks.
            (bytes[100], bytes[4196]) = (1, 1);
            fs::write(&path, &bytes).unwrap();
            let text = try_open(dir.path(), disk.as_deref(), 6).unwrap_err();
            let begin =
                format!("cannot use disk {}: both copies of the superblock are damaged.\n", path.display());
            assert!(text.starts_with(&begin), "{text}");
            let meta = dir.path().join("meta").display().to_string();
            assert!(text.contains("\n    dog cluster health -p PORT\n"), "{text}");
            assert!(text.contains(&format!("\n    mv {meta} {meta}.damaged\n")), "{text}");
            assert_eq!(
                text.contains("as before, but with another disk: with an empty store"),
                name.is_some()
            );
            assert!(fs::read(&path).unwrap() == bytes, "nothing was written to it");
        }
    }

    #[test]
    fn the_lock_lasts_as_long_as_anything_is_on_its_way_to_the_disk() {
        for engine in [EngineChoice::Best, EngineChoice::Threads] {
            let dir = tempfile::tempdir().unwrap();
            let (path, disk) = crate::home::prepare(dir.path(), None).unwrap();
            let home = Home::lock(path.clone(), disk).unwrap();
            let new = NewStore { size_bytes: Some(64 << 20), shared: true, store_id: 5 };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async {
                let Opened { store, disk, .. } = open(&home, new, engine).unwrap();
                drop(store);
                let error = FileDisk::open(&path).err().expect("the engine still uses the disk");
                assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
                drop(disk);
            });
            drop(runtime);
            open_unlocked(&path).expect("free when nothing is under way any more");
        }
    }

    #[test]
    fn a_file_with_something_on_it_is_not_formatted() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        let mut content = vec![0; 64 << 20];
        content[1024] = 1;
        fs::write(&disk, &content).unwrap();
        let text = try_open(dir.path(), Some(&disk), 5).unwrap_err();
        assert!(text.contains("it is no Sheepdog disk and not empty"), "{text}");
        assert!(fs::read(&disk).unwrap() == content);
        fs::write(&disk, vec![0; 64 << 20]).unwrap();
        assert_eq!(try_open(dir.path(), Some(&disk), 5), Ok(5));
    }

    #[test]
    fn a_file_that_was_there_before_is_reserved_as_long_as_it_is() {
        for name in ["meta/objects", "disk"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::File::create(&path).unwrap().set_len(200 << 20).unwrap();
            let disk = (name == "disk").then_some(&*path);
            assert_eq!(try_open(dir.path(), disk, 5), Ok(5));
            let metadata = fs::metadata(&path).unwrap();
            assert!(metadata.len() == 200 << 20 && metadata.blocks() * 512 >= 200 << 20, "{name}");
        }
    }
}
