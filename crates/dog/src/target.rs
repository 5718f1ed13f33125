//! Which sheep to talk to: from `-a` and `-p`, else from the environment, else this machine's.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use proto::NodeId;

use crate::failure::{Failure, Outcome, reason};

pub const PORT_DEFAULT: u16 = 7000;

/// Where a sheep listens. Host names are resolved when they are given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// All addresses of the host, to be tried in order. Never empty.
    Tcp {
        addresses: Vec<IpAddr>,
        port: u16,
    },
    Unix(PathBuf),
}

impl Default for Target {
    fn default() -> Target {
        Target::Tcp { addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)], port: PORT_DEFAULT }
    }
}

impl Target {
    pub fn node(id: NodeId) -> Target {
        Target::Tcp { addresses: vec![id.ip()], port: id.port }
    }

    /// Takes a host or a path: host names have no slashes, and paths of sockets always have one.
    pub fn set_address(&mut self, address: &[u8]) -> Outcome {
        if address.contains(&b'/') {
            *self = Target::Unix(PathBuf::from(std::ffi::OsString::from_vec(address.to_vec())));
            return Ok(());
        }
        let name = String::from_utf8_lossy(address).into_owned();
        let unresolved =
            |why: String| Failure::refused(format!("Cannot find the address of '{name}': {why}"));
        let resolved = (name.as_str(), 0).to_socket_addrs().map_err(|error| unresolved(reason(&error)))?;
        let addresses: Vec<IpAddr> = resolved.map(|address| address.ip()).collect();
        if addresses.is_empty() {
            return Err(unresolved("it has none".to_string()));
        }
        let port = match self {
            Target::Tcp { port, .. } => *port,
            Target::Unix(_) => PORT_DEFAULT,
        };
        *self = Target::Tcp { addresses, port };
        Ok(())
    }

    /// A port has no meaning for a socket in the file system and is ignored there.
    pub fn set_port(&mut self, text: &[u8]) -> Outcome {
        let number = parse_port(text).ok_or_else(|| {
            Failure::bad_value(format!("Invalid port number '{}'", String::from_utf8_lossy(text)))
        })?;
        if let Target::Tcp { port, .. } = self {
            *port = number;
        }
        Ok(())
    }

    pub fn socket_addrs(&self) -> Vec<SocketAddr> {
        match self {
            Target::Tcp { addresses, port } => {
                addresses.iter().map(|ip| SocketAddr::new(*ip, *port)).collect()
            }
            Target::Unix(_) => Vec::new(),
        }
    }
}

/// `127.0.0.1:7000`, IPv6 without brackets, or a path.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tcp { addresses, port } => write!(f, "{}:{port}", addresses[0]),
            Target::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

fn parse_port(text: &[u8]) -> Option<u16> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok().filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_ports_come_in_any_order() {
        let mut target = Target::default();
        target.set_port(b"7001").unwrap();
        target.set_address(b"127.0.0.2").unwrap();
        assert_eq!(target.to_string(), "127.0.0.2:7001");
        target.set_address(b"::1").unwrap();
        assert_eq!(target.to_string(), "::1:7001");
        target.set_address(b"/run/sheep/sock").unwrap();
        target.set_port(b"7002").unwrap();
        assert_eq!(target.to_string(), "/run/sheep/sock");
    }

    #[test]
    fn ports_must_be_complete_numbers() {
        for text in ["", "0", "65536", "70a", "-1", "+7", " 7000", "7000 "] {
            let failure = Target::default().set_port(text.as_bytes()).unwrap_err();
            assert_eq!((failure.code, failure.message), (64, format!("Invalid port number '{text}'")));
        }
    }

    #[test]
    fn hosts_without_address_are_refused() {
        let failure = Target::default().set_address(b"").unwrap_err();
        assert_eq!(failure.code, 1);
    }
}
