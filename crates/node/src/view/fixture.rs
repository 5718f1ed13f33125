//! Members for tests.

use std::net::Ipv4Addr;

use proto::cluster::MemberInfo;
use proto::{NodeId, ZoneId};

pub(crate) fn id(n: u16) -> NodeId {
    NodeId::new(Ipv4Addr::LOCALHOST.into(), 7000 + n)
}

/// Each in a zone of its own.
pub(crate) fn member(n: u16) -> MemberInfo {
    MemberInfo {
        id: id(n),
        zone: ZoneId(n.into()),
        space_bytes: 1 << 40,
        fixed_vnodes: None,
        store_id: u64::from(n) + 1,
        life: 0,
        formatted: None,
        starts: 0,
        io_addr: None,
        write_back: false,
    }
}
