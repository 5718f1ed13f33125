//! Which format of the cluster the objects of this store belong to: the file `formatted`, one number.
//!
//! It is written when nothing older is left in the store, and before anything newer is put there. A store without
//! it has no objects worth keeping.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

const NAME: &str = "formatted";

pub fn read(directory: &Path) -> io::Result<Option<u64>> {
    let text = match fs::read_to_string(directory.join(NAME)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let number = text.strip_suffix('\n').and_then(|text| text.parse().ok());
    number
        .map(Some)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the file 'formatted' is damaged"))
}

/// Returns when it is durable.
pub fn write(directory: &Path, ctime: u64) -> io::Result<()> {
    let aside = directory.join("formatted.tmp");
    let mut file = File::create(&aside)?;
    writeln!(file, "{ctime}")?;
    file.sync_all()?;
    fs::rename(&aside, directory.join(NAME))?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_remembered_and_damage_is_not_taken_for_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        write(dir.path(), 7).unwrap();
        write(dir.path(), u64::MAX).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(u64::MAX));
        for damaged in ["", "7", "x\n", "-1\n"] {
            fs::write(dir.path().join(NAME), damaged).unwrap();
            assert!(read(dir.path()).is_err(), "{damaged:?}");
        }
    }
}
