//! The snapshot of a local cluster: the state after some version, and who was a member then.
//!
//! ```text
//!  0  magic "SHEEPSNP"    12  CRC-32C of all that follows (u32)    24  length of the members (u32)
//!  8  format (u32)        16  version (u64)                        28  members in postcard, then the state
//! ```
//! Members are the driver's own concern (it must know whom to watch) and stand beside the state, which only
//! sheep understand.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use bytes::Bytes;
use proto::checksum::crc32c;
use proto::{Incarnation, NodeId, ViewVersion};

use super::log::{LogError, io_error, write_durably};

const MAGIC: [u8; 8] = *b"SHEEPSNP";
const FORMAT: u32 = 7;
const HEAD_BYTES: usize = 28;

pub(super) type Members = BTreeMap<NodeId, Incarnation>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub version: ViewVersion,
    pub members: Members,
    pub state: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    Io(#[from] LogError),
    #[error("the cluster snapshot is damaged")]
    Damaged,
    #[error("the cluster snapshot has format {0}; this program knows format {FORMAT}")]
    Format(u32),
}

impl Snapshot {
    /// `None` if none was ever taken.
    pub fn read(path: &Path) -> Result<Option<Snapshot>, SnapshotError> {
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => Bytes::from(other.map_err(io_error("cannot read the cluster snapshot"))?),
        };
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        if bytes.len() < HEAD_BYTES || bytes[..8] != MAGIC {
            return Err(SnapshotError::Damaged);
        }
        if word(8) != FORMAT {
            return Err(SnapshotError::Format(word(8)));
        }
        let members_end = HEAD_BYTES as u64 + u64::from(word(24));
        if crc32c(&bytes[16..]) != word(12) || members_end > bytes.len() as u64 {
            return Err(SnapshotError::Damaged);
        }
        let version = ViewVersion(u64::from_le_bytes(bytes[16..24].try_into().unwrap()));
        let members = postcard::from_bytes(&bytes[HEAD_BYTES..members_end as usize])
            .map_err(|_| SnapshotError::Damaged)?;
        Ok(Some(Snapshot { version, members, state: bytes.slice(members_end as usize..) }))
    }

    pub fn write(&self, path: &Path) -> Result<(), LogError> {
        let members = postcard::to_stdvec(&self.members).expect("members have no unencodable parts");
        let mut bytes = Vec::with_capacity(HEAD_BYTES + members.len() + self.state.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.version.0.to_le_bytes());
        bytes.extend_from_slice(&(members.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&members);
        bytes.extend_from_slice(&self.state);
        let crc = crc32c(&bytes[16..]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        write_durably(path, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_read_back_and_no_damaged_byte_goes_unnoticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot");
        assert_eq!(Snapshot::read(&path).unwrap(), None);
        let id = NodeId::new([10, 0, 0, 1].into(), 7000);
        let snapshot = Snapshot {
            version: ViewVersion(7),
            members: BTreeMap::from([(id, Incarnation(3))]),
            state: Bytes::from_static(b"state"),
        };
        snapshot.write(&path).unwrap();
        assert_eq!(Snapshot::read(&path).unwrap(), Some(snapshot));
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            assert!(Snapshot::read(&path).is_err(), "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(Snapshot::read(&path).is_err(), "cut at {at}");
        }
    }
}
