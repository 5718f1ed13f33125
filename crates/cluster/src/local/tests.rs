//! Several sheep, as threads and as processes that are killed, over one directory.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use proto::cluster::Action;
use proto::{Vid, ZoneId};

use super::*;
use crate::OrderError;

#[test]
fn the_default_directory_is_shared_by_stores_with_one_parent() {
    let check =
        |store: &str, expect: &str| assert_eq!(default_directory(Path::new(store)), Path::new(expect));
    check("/data/c1/0", "/data/c1/cluster.local");
    check("/data/c1/1", "/data/c1/cluster.local");
    check("/data/c2/0", "/data/c2/cluster.local");
    check("/store", "/store/cluster.local");
    check("/", "/cluster.local");
}

#[test]
fn all_deliver_the_same_entries_whoever_appends() {
    let dir = tempfile::tempdir().unwrap();
    let joined: Vec<Handle> = (0..4).map(|n| join(dir.path(), n)).collect();
    let threads: Vec<_> = joined
        .into_iter()
        .zip(0u64..)
        .map(|(mut handle, n)| {
            std::thread::spawn(move || {
                for i in 0..50 {
                    propose(&mut handle, n * 1000 + i);
                }
                let mut seen = Vec::new();
                while messages(&seen).len() < 200 {
                    seen.push(next_entry(&mut handle));
                }
                // It stays a member until all have read, so that nobody hears of a Leave.
                (handle, seen)
            })
        })
        .collect();
    let seen: Vec<(Handle, Vec<LogEntry>)> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    for (_, entries) in &seen {
        assert!(entries.iter().zip(1..).all(|(entry, version)| entry.version.0 == version));
        assert_eq!(entries, &seen[0].1);
    }
    for n in 0..4 {
        let own: Vec<u64> = messages(&seen[0].1).into_iter().filter(|id| id / 1000 == n).collect();
        assert_eq!(own, (0..50).map(|i| n * 1000 + i).collect::<Vec<_>>(), "in the order of proposing");
    }
}

#[test]
fn clusters_in_two_directories_never_meet() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut first, mut second) = (join(a.path(), 0), join(b.path(), 1));
    propose(&mut first, 1);
    propose(&mut second, 2);
    let seen = |handle: &mut Handle| vec![next_entry(handle), next_entry(handle)];
    assert_eq!(kinds(&seen(&mut first)), ["join 7000", "message 1"]);
    assert_eq!(kinds(&seen(&mut second)), ["join 7001", "message 2"]);
}

#[test]
fn leaving_is_told_once_and_ends_the_deliveries() {
    let dir = tempfile::tempdir().unwrap();
    let (mut stays, mut goes) = (join(dir.path(), 0), join(dir.path(), 1));
    propose(&mut goes, 5);
    goes.orders.leave().unwrap();
    let all: Vec<LogEntry> = (0..4).map(|_| next_entry(&mut stays)).collect();
    assert_eq!(kinds(&all), ["join 7000", "join 7001", "message 5", "leave 7001@2"]);
    assert_eq!((0..4).map(|_| next_entry(&mut goes)).collect::<Vec<_>>(), all);
    assert_eq!(goes.deliveries.blocking_recv(), None);
    let mut again = join(dir.path(), 1);
    let history: Vec<LogEntry> = (0..5).map(|_| next_entry(&mut again)).collect();
    assert_eq!(kinds(&history)[3..], ["leave 7001@2", "join 7001"], "the own Join is last");
}

#[test]
fn an_address_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _first = join(dir.path(), 0);
    let error = Box::new(LocalDriver::new(dir.path())).start(member(0)).err().unwrap().to_string();
    assert!(error.contains("another sheep with address 127.0.0.1:7000 is running"), "{error}");
}

#[test]
fn a_proposal_that_fits_no_entry_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let handle = join(dir.path(), 0);
    let name = vec![0; proto::cluster::EVENT_BYTES_MAX];
    let action = Action::CreateVdi { name, size: 0, policy: None, block_size_shift: None };
    let refused = handle.orders.propose(Proposal { id: 1, action });
    assert!(matches!(refused, Err(OrderError::TooLarge(_))));
}

#[test]
fn a_snapshot_takes_the_place_of_what_came_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = join_with(dir.path(), 0, 300_000);
    let mut second = join_with(dir.path(), 1, 300_000);
    let mut versions = BTreeMap::new();
    for id in 0..40 {
        let action =
            Action::CreateVdi { name: vec![7; 100_000], size: 0, policy: None, block_size_shift: None };
        first.orders.propose(Proposal { id, action }).unwrap();
        loop {
            let entry = next_entry(&mut first);
            versions.insert(entry.version, entry.clone());
            if messages(&[entry]) == [id] {
                break;
            }
        }
        if first.orders.wants_snapshot() {
            let version = *versions.last_key_value().unwrap().0;
            let state = Bytes::from(format!("state after {version}"));
            first.orders.compact(version, state).unwrap();
        }
    }
    let length = fs::metadata(dir.path().join("log")).unwrap().len();
    assert!(length < 2_000_000, "the log has {length} bytes");
    // A member that was there all the time has missed nothing.
    while next_entry(&mut second).version.0 < 42 {}
    let mut late = join_with(dir.path(), 2, 300_000);
    let Some(Delivery::Snapshot { version, state }) = late.deliveries.blocking_recv() else {
        panic!("expected a snapshot");
    };
    assert_eq!(state, format!("state after {version}"));
    for expect in version.0 + 1..=42 {
        assert_eq!(next_entry(&mut late), versions[&ViewVersion(expect)]);
    }
    assert_eq!(kinds(&[next_entry(&mut late)]), ["join 7002"]);
}

#[test]
fn a_killed_member_is_told_by_one_leave_without_waiting_for_a_tick() {
    let dir = tempfile::tempdir().unwrap();
    let (mut a, mut b) = (join(dir.path(), 0), join(dir.path(), 1));
    let mut helper = Helper::start(dir.path(), 2, "idle");
    helper.kill();
    propose(&mut a, 77);
    let read = |handle: &mut Handle| {
        let mut seen: Vec<LogEntry> = Vec::new();
        while !(kinds(&seen).iter().any(|kind| kind.starts_with("leave")) && messages(&seen) == [77]) {
            seen.push(next_entry(handle));
        }
        seen
    };
    let seen = read(&mut a);
    assert_eq!(read(&mut b), seen);
    propose(&mut b, 78);
    assert_eq!(kinds(&[next_entry(&mut a)]), ["message 78"], "one Leave and no more");
}

#[test]
fn the_first_one_back_tells_all_ends_in_one_leave() {
    let dir = tempfile::tempdir().unwrap();
    let mut helpers: Vec<Helper> = (0..3).map(|n| Helper::start(dir.path(), n, "idle")).collect();
    // Stopped first, so that none can report another.
    for helper in &helpers {
        rustix::process::kill_process(helper.pid(), rustix::process::Signal::STOP).unwrap();
    }
    helpers.iter_mut().for_each(Helper::kill);
    let mut back = join(dir.path(), 1);
    let seen: Vec<LogEntry> = (0..5).map(|_| next_entry(&mut back)).collect();
    assert_eq!(kinds(&seen)[3..], ["leave 7000@1 7001@2 7002@3", "join 7001"]);
}

#[test]
fn kills_in_the_midst_of_appending_leave_one_history_for_all() {
    let dir = tempfile::tempdir().unwrap();
    let mut witness = join(dir.path(), 9);
    let mut seen = Vec::new();
    for round in 0..12 {
        let mut helpers: Vec<Helper> = (0..3).map(|n| Helper::start(dir.path(), n, "propose")).collect();
        // The moment of the kill is anywhere in an append: it depends on nothing but how far they got.
        let until = seen.len() + 20 + round * 7;
        while seen.len() < until {
            seen.push(next_entry(&mut witness));
        }
        helpers.iter_mut().for_each(Helper::kill);
    }
    propose(&mut witness, u64::MAX);
    let last = seen.len();
    while !messages(&seen[last..]).contains(&u64::MAX) {
        seen.push(next_entry(&mut witness));
    }
    while kinds(&seen).iter().filter(|kind| kind.starts_with("join")).count()
        > 1 + seen
            .iter()
            .map(|entry| match &entry.event {
                ClusterEvent::Leave(lives) => lives.len(),
                _ => 0,
            })
            .sum::<usize>()
    {
        seen.push(next_entry(&mut witness));
    }
    assert!(seen.iter().zip(1..).all(|(entry, version)| entry.version.0 == version), "no gaps");
    let mut late = join(dir.path(), 8);
    let history: Vec<LogEntry> = seen.iter().map(|_| next_entry(&mut late)).collect();
    assert_eq!(history, seen);
    let mut lives = BTreeMap::new();
    for entry in &seen {
        match &entry.event {
            ClusterEvent::Join(info) => {
                assert_eq!(lives.insert(info.id, Incarnation(entry.version.0)), None, "joined twice");
            }
            ClusterEvent::Leave(ended) => {
                for (id, incarnation) in ended {
                    assert_eq!(lives.remove(id), Some(*incarnation), "an end that is told once");
                }
            }
            ClusterEvent::Message { from, incarnation, .. } => {
                assert_eq!(lives.get(from), Some(incarnation), "a message of the living");
            }
        }
    }
}

#[test]
fn a_directory_that_is_removed_ends_the_membership() {
    let dir = tempfile::tempdir().unwrap();
    let mut handle = join(dir.path(), 0);
    next_entry(&mut handle);
    fs::remove_dir_all(dir.path()).unwrap();
    let Some(Delivery::Failed(text)) = handle.deliveries.blocking_recv() else {
        panic!("expected a failure");
    };
    assert!(text.contains("removed or replaced"), "{text}");
}

/// What a helper process does; not a test of its own.
#[test]
fn helper() {
    let Ok(order) = std::env::var("CLUSTER_TEST_HELPER") else { return };
    let mut parts = order.splitn(3, ' ');
    let (n, task, dir) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    let n: u16 = n.parse().unwrap();
    let mut handle = join(Path::new(dir), n);
    println!("joined");
    let mut id = u64::from(n) << 32;
    loop {
        if task == "propose" {
            propose(&mut handle, id);
            id += 1;
            while !messages(&[next_entry(&mut handle)]).contains(&(id - 1)) {}
        } else {
            next_entry(&mut handle);
        }
    }
}

struct Helper(Child);

impl Helper {
    fn start(dir: &Path, n: u16, task: &str) -> Helper {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["local::tests::helper", "--exact", "--nocapture"])
            .env("CLUSTER_TEST_HELPER", format!("{n} {task} {}", dir.display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("joined")), "the helper failed to join");
        Helper(child)
    }

    fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.0)
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn member(n: u16) -> MemberInfo {
    let id = NodeId::new([127, 0, 0, 1].into(), 7000 + n);
    MemberInfo {
        id,
        zone: ZoneId(0),
        space_bytes: 0,
        fixed_vnodes: None,
        store_id: 0,
        life: 0,
        formatted: None,
        starts: 0,
        io_addr: None,
        write_back: false,
    }
}

fn join(dir: &Path, n: u16) -> Handle {
    join_with(dir, n, SNAPSHOT_AFTER_BYTES)
}

fn join_with(dir: &Path, n: u16, snapshot_after_bytes: u64) -> Handle {
    Box::new(LocalDriver { directory: dir.into(), snapshot_after_bytes }).start(member(n)).unwrap()
}

fn propose(handle: &mut Handle, id: u64) {
    handle.orders.propose(Proposal { id, action: Action::DeleteVdi { vid: Vid(1) } }).unwrap();
}

fn next_entry(handle: &mut Handle) -> LogEntry {
    match handle.deliveries.blocking_recv() {
        Some(Delivery::Entry(entry)) => entry,
        other => panic!("expected an entry, got {other:?}"),
    }
}

fn messages(entries: &[LogEntry]) -> Vec<u64> {
    let id = |entry: &LogEntry| match &entry.event {
        ClusterEvent::Message { proposal, .. } => Some(proposal.id),
        _ => None,
    };
    entries.iter().filter_map(id).collect()
}

fn kinds(entries: &[LogEntry]) -> Vec<String> {
    let kind = |entry: &LogEntry| match &entry.event {
        ClusterEvent::Join(info) => format!("join {}", info.id.port),
        ClusterEvent::Message { proposal, .. } => format!("message {}", proposal.id),
        ClusterEvent::Leave(lives) => {
            let lives: Vec<String> = lives.iter().map(|(id, life)| format!("{}@{life}", id.port)).collect();
            format!("leave {}", lives.join(" "))
        }
    };
    entries.iter().map(kind).collect()
}
