//! Small facts about a store that outlive the daemon: one file each in the store directory, one number in it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Which format of the cluster the objects belong to (its `ctime`). Written when nothing older is left in the store, and
/// before anything newer is put there. A store without it has no objects worth keeping.
pub const FORMATTED: &str = "formatted";
/// Which disk belongs to this directory (its store id). Written when the disk has been formatted. A disk with
/// another id, or none, is then a mistake (not mounted, exchanged), and must not be formatted.
pub const STORE_ID: &str = "store_id";
/// How often the store was started. An older copy of a store has a smaller number than its cluster knows.
pub const STARTS: &str = "starts";

pub fn read(directory: &Path, name: &str) -> io::Result<Option<u64>> {
    let text = match fs::read_to_string(directory.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let number = text.strip_suffix('\n').and_then(|text| text.parse().ok());
    let damaged = || {
        let path = directory.join(name);
        io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged", path.display()))
    };
    number.map(Some).ok_or_else(damaged)
}

/// Returns when it is durable.
pub fn write(directory: &Path, name: &str, number: u64) -> io::Result<()> {
    let aside = directory.join(format!("{name}.tmp"));
    let mut file = File::create(&aside)?;
    writeln!(file, "{number}")?;
    file.sync_all()?;
    fs::rename(&aside, directory.join(name))?;
    File::open(directory)?.sync_all()
}

/// Adds one, and returns what it is now.
pub fn count_start(directory: &Path) -> io::Result<u64> {
    let starts = read(directory, STARTS)?.unwrap_or(0).saturating_add(1);
    write(directory, STARTS, starts)?;
    Ok(starts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_kept_and_damage_is_not_taken_for_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path(), FORMATTED).unwrap(), None);
        write(dir.path(), FORMATTED, 7).unwrap();
        write(dir.path(), FORMATTED, u64::MAX).unwrap();
        assert_eq!(read(dir.path(), FORMATTED).unwrap(), Some(u64::MAX));
        assert_eq!(read(dir.path(), STORE_ID).unwrap(), None);
        assert_eq!([(); 3].map(|()| count_start(dir.path()).unwrap()), [1, 2, 3]);
        for damaged in ["", "7", "x\n", "-1\n"] {
            fs::write(dir.path().join(FORMATTED), damaged).unwrap();
            assert!(read(dir.path(), FORMATTED).is_err(), "{damaged:?}");
        }
    }
}
