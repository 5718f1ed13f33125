//! Where a sheep serves NBD: as somebody says, or as the sheep tells.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::failure::{Failure, Outcome};
use crate::sheep::Sheep;
use crate::target::Target;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nbd {
    Unix(String),
    Tcp { host: String, port: String },
}

/// A path has a slash, `HOST:PORT` has none.
pub fn parse(text: &str) -> Outcome<Nbd> {
    if text.contains('/') {
        return unix(text);
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => {
            let host = host.trim_start_matches('[').trim_end_matches(']').to_string();
            Ok(Nbd::Tcp { host, port: port.to_string() })
        }
        _ => Err(Failure::refused(format!("Invalid NBD server '{text}': HOST:PORT or a path is expected"))),
    }
}

/// Longest path in the address of a unix socket, on Linux.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A socket that a client can connect to. A sheep can listen by a longer path, since it works in the directory.
pub fn unix(path: &str) -> Outcome<Nbd> {
    if path.len() <= SOCKET_PATH_BYTES_MAX {
        return Ok(Nbd::Unix(path.to_string()));
    }
    Err(Failure::refused(format!(
        "The path of the NBD socket has {} bytes, and no program can connect to one of more than {SOCKET_PATH_BYTES_MAX}: {path}\nMake a shorter \
         one with a symbolic link to its directory and name that (SHEEPDOG_NBD, or --socket where there is that option), or have the sheep serve NBD by TCP (sheep --nbd)",
        path.len()
    )))
}

/// Of the sheep at `target`: on this machine its socket, elsewhere its TCP port.
pub fn ask(sheep: &mut Sheep, target: &Target) -> Outcome<Nbd> {
    let access = sheep.access().map_err(|error| {
        error.or_refused(|reason| {
            format!(
                "The sheep at {target} does not tell where it serves NBD ({reason}): it may be of another version. Name \
                 its NBD server in SHEEPDOG_NBD"
            )
        })
    })?;
    if sheep.is_local() { socket(access.nbd_socket, target) } else { remote(access.nbd_address, target) }
}

fn socket(path: Vec<u8>, target: &Target) -> Outcome<Nbd> {
    let path = PathBuf::from(OsString::from_vec(path));
    if !path.exists() {
        return Err(Failure::refused(format!(
            "The sheep at {target} has no NBD socket at {}: restart it, or name its NBD server in SHEEPDOG_NBD",
            path.display()
        )));
    }
    match path.to_str() {
        Some(path) => unix(path),
        None => Err(Failure::refused(format!("QEMU takes only paths in UTF-8: {}", path.display()))),
    }
}

/// A server that listens on all addresses is reached by the one that the sheep is reached by.
fn remote(address: Option<SocketAddr>, target: &Target) -> Outcome<Nbd> {
    let host = match (address.map(|address| address.ip()), target) {
        (Some(ip), Target::Tcp { addresses, .. }) if ip.is_unspecified() => addresses.first().copied(),
        (ip, _) => ip.filter(|ip| !ip.is_loopback() && !ip.is_unspecified()),
    };
    match host.zip(address) {
        Some((host, address)) => Ok(Nbd::Tcp { host: host.to_string(), port: address.port().to_string() }),
        None => Err(Failure::refused(format!(
            "The sheep at {target} serves NBD on its own machine only: start it with --nbd ADDRESS:PORT, or name a \
             sheep of this machine"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: &str) -> Nbd {
        Nbd::Tcp { host: host.into(), port: port.into() }
    }

    #[test]
    fn an_nbd_server_is_a_path_or_host_and_port() {
        assert_eq!(parse("/run/nbd.sock").unwrap(), Nbd::Unix("/run/nbd.sock".into()));
        assert_eq!(parse("localhost:10809").unwrap(), tcp("localhost", "10809"));
        assert_eq!(parse("[::1]:10809").unwrap(), tcp("::1", "10809"));
        for text in ["", "host", ":1", "host:", "host:0", "host:x", "host:65536"] {
            assert_eq!(parse(text).unwrap_err().code, 1, "{text}");
        }
    }

    #[test]
    fn sheep_of_other_machines_are_reached_by_tcp() {
        let mut target = Target::default();
        target.set_address(b"192.0.2.1").unwrap();
        let remote = |address: &str| remote(address.parse().ok(), &target);
        assert_eq!(remote("192.0.2.7:10809").unwrap(), tcp("192.0.2.7", "10809"));
        assert_eq!(remote("0.0.0.0:10810").unwrap(), tcp("192.0.2.1", "10810"));
        for local in ["127.0.0.1:10809", "[::1]:10809", ""] {
            let failure = remote(local).unwrap_err();
            assert!(failure.message.contains("192.0.2.1:7000 serves NBD on its own machine only"), "{local}");
        }
    }

    #[test]
    fn a_path_that_no_client_can_connect_to_is_told() {
        let path = |bytes: usize| format!("/{}", "x".repeat(bytes - 1));
        assert_eq!(parse(&path(107)).unwrap(), Nbd::Unix(path(107)));
        let failure = parse(&path(108)).unwrap_err();
        assert_eq!(failure.code, 1);
        assert!(
            failure.message.starts_with("The path of the NBD socket has 108 bytes, and no program"),
            "{}",
            failure.message
        );
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(120));
        std::fs::write(&long, "").unwrap();
        let failure = socket(long.into_os_string().into_vec(), &Target::default()).unwrap_err();
        assert!(failure.message.contains("symbolic link"), "{}", failure.message);
    }

    #[test]
    fn a_socket_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let bytes = || path.clone().into_os_string().into_vec();
        assert!(socket(bytes(), &Target::default()).unwrap_err().message.contains("restart it"));
        std::fs::write(&path, "").unwrap();
        assert_eq!(socket(bytes(), &Target::default()).unwrap(), Nbd::Unix(path.to_str().unwrap().into()));
    }
}
