//! The ids of the glossary, each a type of its own so that they cannot be mixed up.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(/// Failure domain: copies of an object go to different zones.
    ZoneId(u32));
id!(/// Number of a membership, as users see it in `dog cluster info`.
    Epoch(u32));
id!(/// The whole cluster state after the n-th event of the total order.
    ViewVersion(u64));
id!(/// View version at which a PG's targets or in-sync set last changed; rides on every peer message.
    Since(u64));
id!(/// vid of the first VDI of a snapshot line: decides the PGs of all objects of that line.
    Lineage(u32));
id!(/// Fencing number of a session of one VDI: grows by one with every new session.
    Generation(u64));
id!(/// Number of a write within one session. The first write of a session is 1.
    Seq(u64));
id!(/// One life of one sheep: the view version of its `Join`, hence unique in the cluster.
    Incarnation(u64));
id!(/// A set of PGs that share one copy policy. Pool ids are dense, in order of creation.
    PoolId(u8));
id!(/// A client request, unique within one incarnation of the sheep that took it.
    RequestId(u64));

/// Identity of a sheep: advertised address and port. IPv4 is kept in the last four bytes, the rest zero.
///
/// The order (address bytes, then port) is the order of `dog node list`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId {
    pub addr: [u8; 16],
    pub port: u16,
}

impl NodeId {
    pub fn new(ip: IpAddr, port: u16) -> Self {
        let mut addr = [0; 16];
        match ip {
            IpAddr::V4(v4) => addr[12..].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => addr = v6.octets(),
        }
        NodeId { addr, port }
    }

    pub fn ip(&self) -> IpAddr {
        // ::1 would look like 0.0.0.1 under the wire's rule; no node advertises 0.0.0.1.
        if self.addr == Ipv6Addr::LOCALHOST.octets() {
            return IpAddr::V6(Ipv6Addr::LOCALHOST);
        }
        if self.addr[..12] == [0; 12] {
            let [.., a, b, c, d] = self.addr;
            return IpAddr::V4(Ipv4Addr::new(a, b, c, d));
        }
        IpAddr::V6(Ipv6Addr::from(self.addr))
    }

    pub fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.ip(), self.port)
    }

    /// The zone of a node that names none: its last four address bytes, little-endian.
    pub fn default_zone(&self) -> ZoneId {
        let [.., a, b, c, d] = self.addr;
        ZoneId(u32::from_le_bytes([a, b, c, d]))
    }
}

/// `127.0.0.1:7000`; IPv6 without brackets, as `dog node list` prints it.
impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.ip(), self.port)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Id of a VDI, 1 ..= 0xffffff. A snapshot has one of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Vid(pub u32);

impl Vid {
    pub const MAX: Vid = Vid(0xff_ffff);

    pub fn is_valid(self) -> bool {
        (1..=Self::MAX.0).contains(&self.0)
    }

    /// The vid after this one, wrapping from the largest to 1.
    pub fn next(self) -> Vid {
        if self.0 >= Self::MAX.0 { Vid(1) } else { Vid(self.0 + 1) }
    }
}

impl fmt::Display for Vid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A placement group: the unit of placement and of in-sync state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PgId {
    pub pool: PoolId,
    pub index: u32,
}

impl fmt::Display for PgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.pool, self.index)
    }
}

/// How an object is made redundant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CopyPolicy {
    Replicated { copies: u8 },
    Erasure { data: u8, parity: u8 },
}

impl CopyPolicy {
    /// Copies, or strips: what the wire calls `nr_copies`.
    pub fn width(self) -> u8 {
        match self {
            CopyPolicy::Replicated { copies } => copies,
            CopyPolicy::Erasure { data, parity } => data + parity,
        }
    }

    /// The wire's policy byte: 0 for replication, else `(data / 2) << 4 | parity`.
    pub fn wire(self) -> u8 {
        match self {
            CopyPolicy::Replicated { .. } => 0,
            CopyPolicy::Erasure { data, parity } => (data / 2) << 4 | parity,
        }
    }
}

/// `3`, or `4:2`.
impl fmt::Display for CopyPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CopyPolicy::Replicated { copies } => write!(f, "{copies}"),
            CopyPolicy::Erasure { data, parity } => write!(f, "{data}:{parity}"),
        }
    }
}
