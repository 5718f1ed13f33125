//! The log file of a local cluster.
//!
//! ```text
//!    0  magic "SHEEPLOG"            16  base version (u64): the first entry has base + 1
//!    8  format (u32)                24  retained bytes (u64): of entries when the file was made
//!   12  CRC-32C of 16..32 (u32)     64  committed: length (u64), CRC-32C of it (u32), zero (u32)
//! 4096  entries: length (u32), CRC-32C (u32), LogEntry in postcard
//! ```
//! All numbers are little-endian. An entry's checksum covers the checksum before it, its length and its bytes, so a
//! remainder of an older tail never continues a newer one.
//!
//! Appending, by whoever holds the lock: write the entries, `fdatasync`, then write the committed word. Readers, who hold
//! no lock, go as far as that word and thus never see an entry that is not durable. The word itself reaches the disk
//! with the next `fdatasync` (or the kernel's own writeback), so after a power loss it may be older than what readers
//! have seen: whoever takes the lock therefore *adopts* complete entries beyond the word, and cuts only what does not
//! match its checksum. That can never cut an entry somebody saw: such an entry was synced whole. The word is never newer
//! than the disk, so a committed range that does not check is damage, and an error.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use proto::ViewVersion;
use proto::checksum::crc32c;
use proto::cluster::{ClusterEvent, EVENT_BYTES_MAX, LogEntry};

const MAGIC: [u8; 8] = *b"SHEEPLOG";
const FORMAT: u32 = 7;
/// One page: the word in it changes without touching a page that holds entries.
pub(super) const HEADER_BYTES: u64 = 4096;
const WORD_OFFSET: u64 = 64;
const RECORD_HEAD_BYTES: usize = 8;
/// An event, and what an entry adds to it.
const PAYLOAD_BYTES_MAX: usize = EVENT_BYTES_MAX + 256;
/// Read at once; larger than any record, so that each read makes progress.
const CHUNK_BYTES: u64 = 4 << 20;
/// Entries kept before the snapshot, for members that have not read them yet.
const RETAINED_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("{what}: {error}")]
    Io { what: &'static str, error: io::Error },
    #[error("not a cluster log, or its header is damaged")]
    Header,
    #[error("the cluster log has format {0}; this program knows format {FORMAT}")]
    Format(u32),
    #[error(
        "the cluster log is damaged at byte {offset}, after version {version}: \
         entries that were durable up to byte {committed} do not match their checksums"
    )]
    Damaged { offset: u64, version: u64, committed: u64 },
    #[error("this member has read up to version {version}, but entries up to {base} are not kept any more")]
    FellBehind { version: u64, base: u64 },
}

impl LogError {
    /// May the same succeed later, when somebody has made room?
    pub fn is_out_of_space(&self) -> bool {
        matches!(self, LogError::Io { error, .. }
            if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

pub(super) fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> LogError {
    move |error| LogError::Io { what, error }
}

/// One member's place in the log: it has read everything up to `offset`.
pub(super) struct Log {
    file: File,
    inode: u64,
    base: u64,
    retained_bytes: u64,
    offset: u64,
    version: u64,
    chain: u32,
    time_ns: u64,
}

impl Log {
    /// Opens the log and places itself before its first entry.
    pub fn open(path: &Path) -> Result<Log, LogError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(io_error("cannot open the cluster log"))?;
        let metadata = file.metadata().map_err(io_error("cannot stat the cluster log"))?;
        if metadata.len() < HEADER_BYTES {
            return Err(LogError::Header);
        }
        let inode = metadata.ino();
        let mut header = [0u8; 32];
        file.read_exact_at(&mut header, 0).map_err(io_error("cannot read the cluster log"))?;
        if header[..8] != MAGIC {
            return Err(LogError::Header);
        }
        let format = u32::from_le_bytes(header[8..12].try_into().unwrap());
        if format != FORMAT {
            return Err(LogError::Format(format));
        }
        if crc32c(&header[16..32]).to_le_bytes() != header[12..16] {
            return Err(LogError::Header);
        }
        let base = u64::from_le_bytes(header[16..24].try_into().unwrap());
        let retained_bytes = u64::from_le_bytes(header[24..32].try_into().unwrap());
        Ok(Log {
            file,
            inode,
            base,
            retained_bytes,
            offset: HEADER_BYTES,
            version: base,
            chain: crc32c(&header),
            time_ns: 0,
        })
    }

    /// Puts a log with these entries in the place of the one at `path`, durably. `base` is the version before the first.
    ///
    /// Members that still read the old file find all its entries there, and then notice that it is not the
    /// one at `path` any more.
    pub fn replace(path: &Path, base: u64, entries: &[LogEntry]) -> Result<(), LogError> {
        let mut body = Vec::new();
        let mut lengths = 0;
        for entry in entries {
            lengths += RECORD_HEAD_BYTES + entry.encode().len();
        }
        let mut header = vec![0u8; HEADER_BYTES as usize];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        header[16..24].copy_from_slice(&base.to_le_bytes());
        header[24..32].copy_from_slice(&(lengths as u64).to_le_bytes());
        let crc = crc32c(&header[16..32]);
        header[12..16].copy_from_slice(&crc.to_le_bytes());
        let mut chain = crc32c(&header[..32]);
        for entry in entries {
            chain = push_record(&mut body, chain, entry);
        }
        let end = HEADER_BYTES + body.len() as u64;
        let word = encode_word(end);
        header[WORD_OFFSET as usize..WORD_OFFSET as usize + word.len()].copy_from_slice(&word);
        header.extend_from_slice(&body);
        write_durably(path, &header)
    }

    pub fn version(&self) -> ViewVersion {
        ViewVersion(self.version)
    }

    pub fn base(&self) -> ViewVersion {
        ViewVersion(self.base)
    }

    /// Bytes of entries that this file has gained since it was made.
    pub fn grown_bytes(&self) -> u64 {
        (self.offset - HEADER_BYTES).saturating_sub(self.retained_bytes)
    }

    /// Is this still the file at `path`?
    pub fn is_current(&self, path: &Path) -> Result<bool, LogError> {
        let metadata = fs::metadata(path).map_err(io_error("cannot stat the cluster log"))?;
        Ok(metadata.ino() == self.inode)
    }

    /// All durable entries that have not been read yet.
    pub fn read_committed(&mut self) -> Result<Vec<LogEntry>, LogError> {
        let mut entries = Vec::new();
        // Without a legible word there is no news: whoever takes the lock next writes it anew.
        if let Some(committed) = self.committed()? {
            while self.offset < committed {
                let before = self.offset;
                let chunk = self.read_range(before, CHUNK_BYTES.min(committed - before))?;
                self.take_records(&chunk, &mut entries);
                if self.offset == before {
                    return Err(LogError::Damaged { offset: before, version: self.version, committed });
                }
            }
        }
        Ok(entries)
    }

    /// Reads on in the file that has taken this one's place. To be called when this one is read to its end.
    pub fn follow(&mut self, path: &Path) -> Result<Vec<LogEntry>, LogError> {
        let mut next = Log::open(path)?;
        if next.base > self.version {
            return Err(LogError::FellBehind { version: self.version, base: next.base });
        }
        let mut entries = next.read_committed()?;
        entries.retain(|entry| entry.version.0 > self.version);
        next.time_ns = next.time_ns.max(self.time_ns);
        *self = next;
        Ok(entries)
    }

    /// Makes what stands beyond the committed word part of the log as far as it is whole, and cuts the rest.
    /// The caller holds the lock and has read all committed entries.
    pub fn recover_tail(&mut self) -> Result<(), LogError> {
        let size = self.file.metadata().map_err(io_error("cannot stat the cluster log"))?.len();
        let word = self.committed()?;
        // What was read was durable, whatever the word says: after a power loss it may be older.
        let committed = word.map_or(self.offset, |word| word.max(self.offset));
        if committed > size {
            return Err(LogError::Damaged { offset: size, version: self.version, committed });
        }
        if size == self.offset && word == Some(size) {
            return Ok(());
        }
        let (start, version, chain, time_ns) = (self.offset, self.version, self.chain, self.time_ns);
        let mut whole = Vec::new();
        loop {
            let before = self.offset;
            let chunk = self.read_range(before, CHUNK_BYTES.min(size - before))?;
            self.take_records(&chunk, &mut Vec::new());
            whole.extend_from_slice(&chunk[..(self.offset - before) as usize]);
            if self.offset == before {
                break;
            }
        }
        let end = self.offset;
        // They are read, and delivered, only after the word covers them.
        (self.offset, self.version, self.chain, self.time_ns) = (start, version, chain, time_ns);
        if end < size {
            tracing::warn!("cutting {} bytes of an unfinished append off the cluster log", size - end);
            self.file.set_len(end).map_err(io_error("cannot cut the cluster log"))?;
        }
        // Written anew, because if the sync of whoever wrote them failed, the kernel would take these pages for
        // clean, and syncing would prove nothing.
        self.file.write_all_at(&whole, start).map_err(io_error("cannot write the cluster log"))?;
        self.file.sync_all().map_err(io_error("cannot sync the cluster log"))?;
        self.write_word(end)
    }

    /// Appends entries for these events and makes them durable; they are read like everybody else's. The caller
    /// holds the lock, has called [`Log::recover_tail`] and read to the end. After an error nothing was appended.
    pub fn append(&mut self, events: &[ClusterEvent], now_ns: u64) -> Result<(), LogError> {
        let time_ns = now_ns.max(self.time_ns);
        let mut bytes = Vec::new();
        let (mut chain, mut version) = (self.chain, self.version);
        for event in events {
            version += 1;
            let entry = LogEntry { version: ViewVersion(version), time_ns, event: event.clone() };
            chain = push_record(&mut bytes, chain, &entry);
        }
        let written = self
            .file
            .write_all_at(&bytes, self.offset)
            .map_err(io_error("cannot write the cluster log"))
            .and_then(|()| self.file.sync_data().map_err(io_error("cannot sync the cluster log")));
        if let Err(error) = written {
            // Nobody has seen it, since the word does not cover it. If cutting fails too, the next holder of the
            // lock adopts it, durably: as good an outcome for something that was never answered.
            let _ = self.file.set_len(self.offset);
            return Err(error);
        }
        self.write_word(self.offset + bytes.len() as u64)
    }

    fn write_word(&mut self, end: u64) -> Result<(), LogError> {
        self.file
            .write_all_at(&encode_word(end), WORD_OFFSET)
            .map_err(io_error("cannot write the cluster log"))
    }

    /// Up to where entries are durable. `None` if the word is illegible: torn by a crash, or just being written.
    fn committed(&self) -> Result<Option<u64>, LogError> {
        for _ in 0..64 {
            let mut word = [0u8; 16];
            self.file
                .read_exact_at(&mut word, WORD_OFFSET)
                .map_err(io_error("cannot read the cluster log"))?;
            let end = u64::from_le_bytes(word[..8].try_into().unwrap());
            if encode_word(end) == word && end >= HEADER_BYTES {
                return Ok(Some(end));
            }
            std::hint::spin_loop();
        }
        Ok(None)
    }

    fn read_range(&self, offset: u64, len: u64) -> Result<Vec<u8>, LogError> {
        let mut chunk = vec![0u8; len as usize];
        let mut got = 0;
        while got < chunk.len() {
            match self.file.read_at(&mut chunk[got..], offset + got as u64) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(LogError::Io { what: "cannot read the cluster log", error }),
            }
        }
        chunk.truncate(got);
        Ok(chunk)
    }

    /// Takes whole records off the front of `chunk`, up to the first that is not whole or does not match.
    fn take_records(&mut self, mut chunk: &[u8], entries: &mut Vec<LogEntry>) {
        while let Some((entry, crc, len)) = first_record(chunk, self.chain) {
            if entry.version.0 != self.version + 1 {
                return;
            }
            chunk = &chunk[len..];
            self.offset += len as u64;
            self.version += 1;
            self.chain = crc;
            self.time_ns = entry.time_ns;
            entries.push(entry);
        }
    }
}

/// The newest entries of `entries` that are worth keeping before a snapshot at `snapshot`, and all after it.
pub(super) fn worth_keeping(entries: &[LogEntry], snapshot: ViewVersion) -> &[LogEntry] {
    let mut first = entries.partition_point(|entry| entry.version <= snapshot);
    let mut bytes = 0;
    while first > 0 {
        bytes += entries[first - 1].encode().len();
        if bytes > RETAINED_BYTES_MAX {
            break;
        }
        first -= 1;
    }
    &entries[first..]
}

/// Writes a file aside, then puts it in its place: either the old or the new one is there, whole.
pub(super) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), LogError> {
    let aside = path.with_extension("new");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o640)
        .open(&aside)
        .map_err(io_error("cannot create a file in the cluster directory"))?;
    file.write_all_at(bytes, 0)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&aside, path))
        .and_then(|()| File::open(path.parent().expect("a file has a directory"))?.sync_all())
        .map_err(io_error("cannot write a file in the cluster directory"))
}

fn encode_word(end: u64) -> [u8; 16] {
    let mut word = [0u8; 16];
    word[..8].copy_from_slice(&end.to_le_bytes());
    let crc = crc32c(&word[..8]);
    word[8..12].copy_from_slice(&crc.to_le_bytes());
    word
}

fn record_crc(chain: u32, payload: &[u8]) -> u32 {
    let mut covered = Vec::with_capacity(RECORD_HEAD_BYTES + payload.len());
    covered.extend_from_slice(&chain.to_le_bytes());
    covered.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    covered.extend_from_slice(payload);
    crc32c(&covered)
}

fn push_record(out: &mut Vec<u8>, chain: u32, entry: &LogEntry) -> u32 {
    let payload = entry.encode();
    assert!(payload.len() <= PAYLOAD_BYTES_MAX, "an event is checked before it becomes an entry");
    let crc = record_crc(chain, &payload);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&payload);
    crc
}

fn first_record(chunk: &[u8], chain: u32) -> Option<(LogEntry, u32, usize)> {
    let head = chunk.get(..RECORD_HEAD_BYTES)?;
    let len = u32::from_le_bytes(head[..4].try_into().unwrap()) as usize;
    let crc = u32::from_le_bytes(head[4..].try_into().unwrap());
    if len == 0 || len > PAYLOAD_BYTES_MAX {
        return None;
    }
    let payload = chunk.get(RECORD_HEAD_BYTES..RECORD_HEAD_BYTES + len)?;
    if record_crc(chain, payload) != crc {
        return None;
    }
    Some((LogEntry::decode(payload).ok()?, crc, RECORD_HEAD_BYTES + len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::cluster::{Action, Proposal};
    use proto::{Incarnation, NodeId};

    fn event(n: u64) -> ClusterEvent {
        let from = NodeId::new([127, 0, 0, 1].into(), 7000);
        ClusterEvent::Message {
            from,
            incarnation: Incarnation(1),
            proposal: Proposal { id: n, action: Action::Shutdown },
        }
    }

    fn events(entries: &[LogEntry]) -> Vec<ClusterEvent> {
        entries.iter().map(|entry| entry.event.clone()).collect()
    }

    /// Three durable entries and, unless it was cut, the beginning of two more whose word was not written.
    fn log_with_tail(path: &Path) -> (u64, u64) {
        Log::replace(path, 0, &[]).unwrap();
        let mut log = Log::open(path).unwrap();
        log.append(&[event(1), event(2), event(3)], 5).unwrap();
        assert_eq!(log.read_committed().unwrap().len(), 3);
        let durable = log.offset;
        log.append(&[event(4), event(5)], 5).unwrap();
        let end = log.committed().unwrap().unwrap();
        log.write_word(durable).unwrap();
        (durable, end)
    }

    #[test]
    fn a_crash_at_any_byte_of_an_append_leaves_whole_entries_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (durable, end) = log_with_tail(&path);
        let whole = fs::read(&path).unwrap();
        let middle = durable + (end - durable) / 2;
        for cut in durable..=end {
            fs::write(&path, &whole[..cut as usize]).unwrap();
            let mut log = Log::open(&path).unwrap();
            assert_eq!(log.read_committed().unwrap().len(), 3, "beyond the word nothing is delivered");
            log.recover_tail().unwrap();
            let adopted = log.read_committed().unwrap();
            let expect = if cut == end { 2 } else { usize::from(cut >= middle) };
            assert_eq!(events(&adopted), [event(4), event(5)][..expect], "cut at {cut}");
            log.append(&[event(9)], 6).unwrap();
            assert_eq!(events(&log.read_committed().unwrap()), [event(9)]);
            let mut other = Log::open(&path).unwrap();
            let all = other.read_committed().unwrap();
            assert_eq!(all.len(), 4 + expect);
            assert!(all.iter().zip(1..).all(|(entry, version)| entry.version.0 == version));
        }
    }

    #[test]
    fn a_flipped_bit_in_the_tail_is_cut_and_in_a_durable_entry_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (durable, end) = log_with_tail(&path);
        let whole = fs::read(&path).unwrap();
        for at in HEADER_BYTES..end {
            let mut damaged = whole.clone();
            damaged[at as usize] ^= 0x10;
            fs::write(&path, &damaged).unwrap();
            let mut log = Log::open(&path).unwrap();
            if at < durable {
                assert!(matches!(log.read_committed(), Err(LogError::Damaged { .. })), "byte {at}");
            } else {
                assert_eq!(log.read_committed().unwrap().len(), 3);
                log.recover_tail().unwrap();
                assert!(log.read_committed().unwrap().len() < 2, "byte {at}");
            }
        }
    }

    #[test]
    fn loss_of_durable_entries_is_an_error_and_not_a_shorter_history() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (durable, _) = log_with_tail(&path);
        let whole = fs::read(&path).unwrap();
        for cut in 0..durable {
            fs::write(&path, &whole[..cut as usize]).unwrap();
            let result = Log::open(&path).and_then(|mut log| {
                log.read_committed()?;
                log.recover_tail()
            });
            assert!(result.is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_log_that_is_shorter_than_what_was_read_of_it_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (durable, end) = log_with_tail(&path);
        for word in [durable, 0] {
            let mut log = Log::open(&path).unwrap();
            log.file.set_len(durable).unwrap();
            log.offset = end;
            log.write_word(word).unwrap();
            assert!(matches!(log.recover_tail(), Err(LogError::Damaged { .. })), "the word says {word}");
        }
    }

    #[test]
    fn a_torn_committed_word_is_written_anew_from_the_entries() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        log_with_tail(&path);
        let mut bytes = fs::read(&path).unwrap();
        bytes[WORD_OFFSET as usize + 1] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let mut log = Log::open(&path).unwrap();
        assert_eq!(log.read_committed().unwrap(), []);
        log.recover_tail().unwrap();
        assert_eq!(log.read_committed().unwrap().len(), 5);
    }

    #[test]
    fn a_reader_follows_into_the_file_that_replaced_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        Log::replace(&path, 0, &[]).unwrap();
        let mut writer = Log::open(&path).unwrap();
        let mut reader = Log::open(&path).unwrap();
        writer.append(&[event(1), event(2)], 1).unwrap();
        let all = writer.read_committed().unwrap();
        Log::replace(&path, 1, &all[1..]).unwrap();
        writer.follow(&path).unwrap();
        writer.append(&[event(3)], 1).unwrap();
        assert!(!reader.is_current(&path).unwrap());
        assert_eq!(events(&reader.read_committed().unwrap()), [event(1), event(2)]);
        assert_eq!(events(&reader.follow(&path).unwrap()), [event(3)]);
        let late = Log::open(&path).unwrap();
        assert_eq!(late.base().0, 1);
        let mut behind = Log { version: 0, ..late };
        assert!(matches!(behind.follow(&path), Err(LogError::FellBehind { version: 0, base: 1 })));
    }
}
