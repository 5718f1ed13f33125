//! The files that a member finds in the directory of a local cluster.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cluster::local::{read_log, read_snapshot, write_log};
use proto::cluster::{Action, ClusterEvent, LogEntry, Proposal};
use proto::{Incarnation, NodeId, ViewVersion};

/// One change of a log: place (2), value (1).
const STEP_BYTES: usize = 3;
/// A record's checksum has four bytes, so with three changes nobody can put one right.
const STEPS_MAX: usize = 3;
/// Where the log's committed word stands: the only thing that a crash may tear.
const WORD: std::ops::Range<usize> = 64..80;
const HEADER_BYTES: usize = 4096;

/// An entry as it is; all of it as a log and as a snapshot; and a log with changes in it.
pub fn run(bytes: &[u8]) {
    if let Ok(entry) = LogEntry::decode(bytes) {
        assert_eq!(LogEntry::decode(&entry.encode()).ok(), Some(entry));
    }
    let file = TemporaryFile::new();
    file.fill(bytes);
    let _ = read_snapshot(&file.0);
    if let Ok(entries) = read_log(&file.0) {
        let consecutive = |pair: &[LogEntry]| pair[0].version.0 + 1 == pair[1].version.0;
        assert!(entries.windows(2).all(consecutive), "entries have consecutive versions");
        assert_eq!(read_log(&file.0).ok(), Some(entries), "what was recovered stays");
    }
    garble_log(bytes, &file);
}

/// A member must read what was written. If nobody can tell how much was durable, it may be the first part of it; and damage to what
/// was durable is an error.
fn garble_log(steps: &[u8], file: &TemporaryFile) {
    let mut log = valid_log().to_vec();
    let mut word_is_intact = true;
    for step in steps.chunks_exact(STEP_BYTES).take(STEPS_MAX) {
        // Most of the header is unused.
        let place = usize::from(u16::from_le_bytes([step[0], step[1]])) % (log.len() - HEADER_BYTES + 96);
        let place = if place < 96 { place } else { place - 96 + HEADER_BYTES };
        word_is_intact &= !WORD.contains(&place) || log[place] == step[2];
        log[place] = step[2];
    }
    file.fill(&log);
    let Ok(found) = read_log(&file.0) else { return };
    let written = entries();
    assert!(written.starts_with(&found), "{found:?}");
    assert!(!word_is_intact || found.len() == written.len(), "durable entries are gone: {found:?}");
}

fn entries() -> Vec<LogEntry> {
    let node = NodeId { addr: [1; 16], port: 7000 };
    let action = Action::DropCopies { node, pgs: Vec::new() };
    let message = ClusterEvent::Message {
        from: node,
        incarnation: Incarnation(1),
        proposal: Proposal { id: 4, action },
    };
    let events = [ClusterEvent::Leave(vec![(node, Incarnation(3))]), message.clone(), message];
    (1..).zip(events).map(|(n, event)| LogEntry { version: ViewVersion(n), time_ns: 5, event }).collect()
}

fn valid_log() -> &'static [u8] {
    static LOG: OnceLock<Vec<u8>> = OnceLock::new();
    LOG.get_or_init(|| {
        let file = TemporaryFile::new();
        write_log(&file.0, &entries()).expect("a log can be written");
        std::fs::read(&file.0).expect("the log is there")
    })
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = entries().iter().map(|entry| entry.encode().to_vec()).collect();
    seeds.push(valid_log().to_vec());
    // In the word, and in the first entry.
    seeds.push(vec![64, 0, 1]);
    seeds.push(vec![100, 0, 1, 64, 0, 2]);
    seeds
}

/// One of this thread, gone when it is dropped.
struct TemporaryFile(PathBuf);

impl TemporaryFile {
    fn new() -> TemporaryFile {
        // In memory, where there is such a place: the log is synced again and again.
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let name = format!("sheepdog-fuzz-{}-{:?}", std::process::id(), std::thread::current().id());
        TemporaryFile(directory.join(name))
    }

    fn fill(&self, bytes: &[u8]) {
        std::fs::write(&self.0, bytes).unwrap_or_else(|e| panic!("cannot write {}: {e}", self.0.display()));
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
