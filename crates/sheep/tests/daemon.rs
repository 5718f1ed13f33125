//! The daemon as a process: how it starts, what it refuses, how it ends.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A directory for stores, and the daemons started in it, which end with the value.
struct Farm {
    dir: TempDir,
    pid_files: Vec<PathBuf>,
}

impl Farm {
    fn new() -> Farm {
        Farm { dir: tempfile::tempdir().unwrap(), pid_files: Vec::new() }
    }

    fn store(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts a gateway; returns when its launcher has ended.
    fn launch(&mut self, name: &str, port: u16, more: &[&str]) -> Output {
        let pid_file = self.dir.path().join(format!("{name}.{port}.pid"));
        let output = Command::new(env!("CARGO_BIN_EXE_sheep"))
            .arg("-g")
            .args(["-p", &port.to_string(), "-P"])
            .arg(&pid_file)
            .args(more)
            .arg(self.store(name))
            .output()
            .unwrap();
        self.pid_files.push(pid_file);
        output
    }

    fn start(&mut self, name: &str, port: u16, more: &[&str]) -> i32 {
        let output = self.launch(name, port, more);
        assert!(output.status.success(), "{output:?}");
        self.pid(self.pid_files.len() - 1).unwrap()
    }

    fn pid(&self, n: usize) -> Option<i32> {
        fs::read_to_string(&self.pid_files[n]).ok()?.trim().parse().ok()
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.store(name).join("sheep.log")).unwrap()
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        for n in 0..self.pid_files.len() {
            if let Some(pid) = self.pid(n) {
                signal(pid, libc::SIGKILL);
            }
        }
    }
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: plain numbers.
    unsafe { libc::kill(pid, signal) };
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A port below those that the kernel hands out, which nobody listens on and no other test asks for. It is not tried out
/// by binding it: a daemon that another test starts at that moment would inherit the socket until it executes, and the
/// port would be taken.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 1000) as u16 * 12;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpStream::connect(("127.0.0.1", port)).is_err() {
            return port;
        }
    }
}

fn refusal(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn is_there(path: &Path) -> bool {
    path.exists()
}

#[test]
fn a_daemon_listens_when_its_launcher_ends_and_goes_in_order() {
    let mut farm = Farm::new();
    let (port, nbd_port) = (free_port(), free_port());
    let pid = farm.start("0", port, &["--nbd", &nbd_port.to_string()]);
    TcpStream::connect(("127.0.0.1", port)).unwrap();
    TcpStream::connect(("127.0.0.1", nbd_port)).unwrap();
    UnixStream::connect(farm.store("0").join("sock")).unwrap();
    UnixStream::connect(farm.store("0").join("nbd.sock")).unwrap();
    assert!(is_there(&farm.store("cluster.local").join("members").join(format!("127.0.0.1:{port}"))));
    wait_until("the start is logged", || farm.log("0").contains("sheepdog daemon (version "));
    signal(pid, libc::SIGTERM);
    wait_until("the pid file is gone", || !is_there(&farm.pid_files[0]));
    wait_until("the end is logged", || farm.log("0").trim_end().ends_with(" shutdown"));
    let log = farm.log("0");
    assert!(!log.contains("ERROR") && !log.contains("WARN"), "{log}");
    assert!(!is_there(&farm.store("cluster.local").join("members").join(format!("127.0.0.1:{port}"))));
}

#[test]
fn a_directory_in_use_is_refused_and_its_user_goes_on() {
    let mut farm = Farm::new();
    let port = free_port();
    farm.start("0", port, &[]);
    let second = farm.launch("0", free_port(), &[]);
    let text = refusal(&second);
    assert!(text.contains("another sheep uses ") && text.contains("/0"), "{text}");
    TcpStream::connect(("127.0.0.1", port)).unwrap();
}

#[test]
fn a_taken_port_is_told_by_the_launcher() {
    let mut farm = Farm::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let text = refusal(&farm.launch("0", port, &[]));
    assert!(text.contains(&format!("cannot listen on 127.0.0.1:{port}: Address already in use")), "{text}");
    assert!(!is_there(&farm.pid_files[0]), "no pid file stays");
}

#[test]
fn a_taken_port_leaves_no_store_behind() {
    let mut farm = Farm::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let free = free_port().to_string();
    // Its own port, and that of NBD.
    for ports in [&["-p", &port][..], &["-p", &free, "--nbd", &port]] {
        let output = Command::new(env!("CARGO_BIN_EXE_sheep"))
            .args(ports)
            .args(["--disk-size", "256M"])
            .arg(farm.store("0"))
            .output()
            .unwrap();
        let text = refusal(&output);
        assert!(text.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{text}");
        let left: BTreeSet<String> = fs::read_dir(farm.store("0"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(left, BTreeSet::from(["lock".to_string(), "sheep.log".to_string()]));
        assert!(!is_there(&farm.store("cluster.local")));
    }
    let started = farm.launch("0", free_port(), &[]);
    let text = String::from_utf8(started.stderr).unwrap();
    assert!(text.contains("/0 is new: an empty store is begun there"), "{text}");
}

#[test]
fn a_store_of_another_version_is_told_by_the_launcher() {
    let mut farm = Farm::new();
    fs::create_dir(farm.store("0")).unwrap();
    fs::write(farm.store("0").join("config"), "sheepdog store 9\n").unwrap();
    let text = refusal(&farm.launch("0", free_port(), &[]));
    assert!(text.contains("another version ('sheepdog store 9')"), "{text}");
}

#[test]
fn wrong_options_create_nothing() {
    let mut farm = Farm::new();
    let text = refusal(&farm.launch("0", free_port(), &["-z", "x"]));
    assert_eq!(text, "Invalid zone id 'x': must be an integer between 0 and 4294967295\n");
    assert!(!is_there(&farm.store("0")));
}

#[test]
fn a_hangup_begins_a_new_log() {
    let mut farm = Farm::new();
    let pid = farm.start("0", free_port(), &[]);
    wait_until("the start is logged", || farm.log("0").contains("sheepdog daemon (version "));
    signal(pid, libc::SIGHUP);
    let store = farm.store("0");
    let set_aside = || {
        let names = fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("sheep.log.2")).count()
    };
    wait_until("the old log is set aside", || set_aside() == 1);
    signal(pid, libc::SIGTERM);
    wait_until("the new log has the end", || farm.log("0").contains(" shutdown"));
    assert!(!farm.log("0").contains("sheepdog daemon (version "), "the new log begins empty");
}

#[test]
fn garbage_on_the_port_harms_nobody() {
    let mut farm = Farm::new();
    let port = free_port();
    let pid = farm.start("0", port, &[]);
    for bytes in
        [&b"\xffSHEEP\x00\x01garbage and more of it........"[..], b"\xff", b"GET / HTTP/1.0\r\n\r\n", b"\x00"]
    {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(bytes).unwrap();
    }
    signal(pid, libc::SIGTERM);
    wait_until("it goes in order", || !is_there(&farm.pid_files[0]));
}

#[test]
fn a_sheep_that_is_killed_can_be_started_again_at_once() {
    let mut farm = Farm::new();
    let port = free_port();
    let pid = farm.start("0", port, &[]);
    signal(pid, libc::SIGKILL);
    wait_until("its lock is free", || is_unlocked(&farm.store("0").join("lock")));
    let again = farm.start("0", port, &[]);
    assert_ne!(pid, again);
    UnixStream::connect(farm.store("0").join("sock")).unwrap();
}

/// Looked up and not tried: a daemon that another test starts at that moment would inherit our lock until it executes.
fn is_unlocked(file: &Path) -> bool {
    let inode = format!(":{} ", fs::metadata(file).unwrap().ino());
    !fs::read_to_string("/proc/locks").unwrap().lines().any(|line| line.contains(&inode))
}
