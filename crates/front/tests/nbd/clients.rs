//! The clients people use, against the service of the example `memory_nbd`: nbdinfo, nbdcopy, qemu-img, qemu-io, fio.
//!
//! A client that is not installed is skipped, with a note.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use front::nbd::{Limits, serve_tcp, serve_unix};
use tempfile::TempDir;

use crate::memory::Memory;

/// A server in a thread of its own, which lives as long as the test process.
struct Server {
    dir: TempDir,
    tcp_port: u16,
}

impl Server {
    fn start() -> Server {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd");
        let (ready, wait) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async {
                let memory = Memory::default().with_vdi("alice", 64 << 20).with_vdi("bob", 64 << 20);
                let memory = memory.with_snapshot("alice", "before", 1, 1 << 20);
                let listener = tokio::net::UnixListener::bind(path).unwrap();
                let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                ready.send(tcp.local_addr().unwrap().port()).unwrap();
                tokio::task::spawn_local(serve_tcp(
                    tcp,
                    memory.clone(),
                    Limits::default(),
                    Default::default(),
                ));
                serve_unix(listener, memory, Limits::default(), Default::default()).await;
            });
        });
        let tcp_port = wait.recv().unwrap();
        Server { dir, tcp_port }
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.dir.path().join("nbd").display())
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

/// Runs a client for at most a minute and returns what it printed, or `None` if it is not installed.
fn client(program: &str, args: &[&str]) -> Option<String> {
    if !["/usr/bin", "/bin", "/usr/local/bin"].iter().any(|dir| Path::new(dir).join(program).exists()) {
        println!("skipped: {program} is not installed");
        return None;
    }
    // fio leaves a file about its verification where it runs.
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("timeout");
    command.arg("60").arg(program).args(args).current_dir(&dir).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {}\n{out}{err}", output.status);
    Some(out)
}

fn write_pattern(path: &str) {
    // Data, a hole, data, and a hole at the end.
    let mut image = vec![0u8; 64 << 20];
    for range in [0..3_000_000, 30_000_000..40_000_001] {
        let start = range.start;
        image[range].iter_mut().enumerate().for_each(|(i, b)| *b = ((start + i) * 7 / 3 % 253) as u8 + 1);
    }
    std::fs::write(path, image).unwrap();
}

#[test]
fn nbdinfo_sees_exports_and_what_they_can_do() {
    let server = Server::start();
    let Some(json) = client("nbdinfo", &["--json", &server.uri("alice")]) else { return };
    for fact in [
        "\"export-size\": 67108864",
        "\"is_read_only\": false",
        "\"can_multi_conn\": true",
        "\"can_fua\": true",
        "\"can_fast_zero\": true",
        "\"can_df\": true",
        "\"base:allocation\"",
        "\"block_size_minimum\": 1",
        "\"block_size_maximum\": 33554432",
        "\"description\": \"Sheepdog VDI 1\"",
    ] {
        assert!(json.contains(fact), "{fact} is missing in {json}");
    }
    let list = client("nbdinfo", &["--list", "--json", &server.uri("")]).unwrap();
    assert!(list.contains("\"alice\"") && list.contains("\"bob\""), "{list}");
    let snapshot = client("nbdinfo", &["--json", &server.uri("alice@before")]).unwrap();
    assert!(snapshot.contains("\"is_read_only\": true"), "{snapshot}");
    let map = client("nbdinfo", &["--map", "--totals", &server.uri("alice")]).unwrap();
    assert!(map.contains("100.0%") && map.contains("hole,zero"), "{map}");
}

#[test]
fn nbdcopy_brings_an_image_there_and_back() {
    let server = Server::start();
    let (image, back) = (server.file("image"), server.file("back"));
    write_pattern(&image);
    if client("nbdcopy", &["--flush", &image, &server.uri("alice")]).is_none() {
        return;
    }
    client("nbdcopy", &[&server.uri("alice"), &back]);
    assert!(std::fs::read(&image).unwrap() == std::fs::read(&back).unwrap());
    // From one VDI to the other, over several connections.
    client("nbdcopy", &["--connections=4", &server.uri("alice"), &server.uri("bob")]);
    client("nbdcopy", &["--synchronous", &server.uri("bob"), &back]);
    assert!(std::fs::read(&image).unwrap() == std::fs::read(&back).unwrap());
    // By TCP.
    client("nbdcopy", &[&format!("nbd://127.0.0.1:{}/bob", server.tcp_port), &back]);
    assert!(std::fs::read(&image).unwrap() == std::fs::read(&back).unwrap());
    let map = client("nbdinfo", &["--map", &server.uri("bob")]).unwrap_or_default();
    assert!(map.lines().any(|line| line.contains("hole")), "{map}");
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    let server = Server::start();
    let (image, qcow) = (server.file("image"), server.file("qcow2"));
    write_pattern(&image);
    let uri = server.uri("alice");
    if client("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", "-W", &image, &uri]).is_none() {
        return;
    }
    client("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &uri]);
    client("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, &qcow]);
    client("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &image, &qcow]);
    let map = client("qemu-img", &["map", "--output=json", "-f", "raw", &uri]).unwrap();
    assert!(map.contains("\"start\": 0, ") && map.contains("\"zero\": true, \"data\": false"), "{map}");
}

#[test]
fn qemu_io_finds_the_patterns_it_wrote() {
    let server = Server::start();
    let commands = [
        "write -P 0x5a 0 1M",
        "write -P 0x11 1234567 54321",
        "write -f -P 0x22 4M 4k",
        "write -z 64k 64k",
        "write -z -u 256k 64k",
        "discard 512k 128k",
        "aio_write -P 0x33 8M 16M",
        "aio_write -P 0x44 32M 16M",
        "aio_flush",
        "flush",
        "read -P 0x5a 0 64k",
        "read -P 0 64k 64k",
        "read -P 0x5a 128k 128k",
        "read -P 0 256k 64k",
        "read -P 0 512k 128k",
        "read -P 0x11 1234567 54321",
        "read -P 0x22 4M 4k",
        "read -P 0x33 8M 16M",
        "read -P 0x44 32M 16M",
        "read -P 0 48M 16M",
    ];
    let uri = server.uri("alice");
    let mut args = vec!["-f", "raw", uri.as_str()];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    let Some(output) = client("qemu-io", &args) else { return };
    assert!(!output.contains("ailed"), "{output}");
}

#[test]
fn fio_verifies_every_block() {
    let server = Server::start();
    let uri = format!("--uri={}", server.uri("alice"));
    for kind in [["--bs=4k", "--iodepth=32"], ["--bsrange=512-256k", "--iodepth=8"]] {
        let mut args = vec!["--name=verify", "--ioengine=nbd", &uri, "--rw=randwrite", "--size=32M"];
        args.extend(["--verify=crc32c", "--do_verify=1", "--verify_fatal=1"]);
        args.extend(kind);
        let Some(output) = client("fio", &args) else { return };
        assert!(output.contains("err= 0"), "{output}");
    }
}
