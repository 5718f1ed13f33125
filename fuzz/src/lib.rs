//! What is fuzzed: each target takes any bytes, and must neither panic, nor take memory without bound, nor show what nobody wrote.
//!
//! `script/fuzz` looks for inputs with new coverage; `crates/sim/tests/garbled.rs` runs the same bodies over seeded mutations of the
//! seeds, as one of cargo's tests.

mod backup;
mod cluster_files;
mod decoders;
mod image;
mod member;
mod nbd;
mod session;
mod vhost;

pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Valid inputs, from which mutations begin.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

pub const TARGETS: [Target; 11] = [
    Target { name: "native", run: decoders::native, seeds: decoders::native_seeds },
    Target { name: "client", run: decoders::client, seeds: decoders::client_seeds },
    Target { name: "peer", run: decoders::peer, seeds: decoders::peer_seeds },
    Target { name: "nbd", run: nbd::run, seeds: nbd::seeds },
    Target { name: "session", run: session::run, seeds: session::seeds },
    Target { name: "vhost", run: vhost::run, seeds: vhost::seeds },
    Target { name: "backup", run: backup::run, seeds: backup::seeds },
    Target { name: "member", run: member::run, seeds: member::seeds },
    Target { name: "view", run: member::view, seeds: member::view_seeds },
    Target { name: "cluster", run: cluster_files::run, seeds: cluster_files::seeds },
    Target { name: "store", run: image::run, seeds: image::seeds },
];

#[allow(dead_code, reason = "only the fuzzer's programs go by name")]
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of the list");
    (target.run)(bytes);
}
