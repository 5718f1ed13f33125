//! What a sheep has been asked since it started: the counters of `dog node stat`.
//!
//! *Clients* are those of this sheep, whatever protocol they speak. *Peers* are other sheep: what is done for the sheep's own clients on
//! its own disk does not pass by here.

use std::collections::{BTreeMap, BTreeSet};

use proto::NodeId;
use proto::client::{ClientOp, ClientReply, ClientResult, NativeOp, Traffic, VolumeOp};
use proto::object::Change;
use proto::peer::{PeerMessage, PeerReply, PeerRequest};

#[derive(Default)]
pub struct Counters {
    clients: Traffic,
    peers: Traffic,
    /// Requests of each peer that are not answered.
    open: BTreeMap<NodeId, BTreeSet<u64>>,
}

enum Kind {
    Write,
    Read,
    Remove,
    Flush,
    Other,
}

impl Counters {
    pub fn client_asked(&mut self, op: &ClientOp) {
        count(&mut self.clients, kind_of(op), op.payload().len());
    }

    pub fn client_answered(&mut self, result: &ClientResult) {
        if let Ok(ClientReply::Data(data)) = result {
            self.clients.read_bytes += data.len() as u64;
        }
    }

    pub fn peer_said(&mut self, from: NodeId, message: &PeerMessage) {
        let PeerMessage::Request { id, body, .. } = message else { return };
        // One that is sent again, for want of an answer, is counted once.
        if *id != 0 && !self.open.entry(from).or_default().insert(*id) {
            return;
        }
        let (kind, bytes) = match body {
            PeerRequest::Change { change: Change::Write { .. }, data, .. } => (Kind::Write, data.len()),
            PeerRequest::Change { .. } | PeerRequest::Purge { .. } => (Kind::Remove, 0),
            PeerRequest::Read { .. } | PeerRequest::Fetch { .. } => (Kind::Read, 0),
            PeerRequest::Forward { op, data, .. } => (kind_of(op), data.len()),
            _ => (Kind::Other, 0),
        };
        count(&mut self.peers, kind, bytes);
    }

    pub fn peer_told(&mut self, to: NodeId, message: &PeerMessage) {
        let PeerMessage::Reply { id, body } = message else { return };
        if *body == PeerReply::Taken {
            // The answer is still to come.
            return;
        }
        if let Some(open) = self.open.get_mut(&to) {
            open.remove(id);
        }
        if let PeerReply::Data { data, .. }
        | PeerReply::Fetched { data, .. }
        | PeerReply::Client { data, .. } = body
        {
            self.peers.read_bytes += data.len() as u64;
        }
    }

    /// It asks again for whatever it still wants to know.
    pub fn peer_came_anew(&mut self, peer: NodeId) {
        self.open.remove(&peer);
    }

    /// `clients_active`: their requests that are not answered.
    pub fn clients(&self, clients_active: usize) -> Traffic {
        Traffic { active: clients_active as u64, ..self.clients }
    }

    pub fn peers(&self) -> Traffic {
        let active = self.open.values().map(|open| open.len() as u64).sum();
        Traffic { active, ..self.peers }
    }
}

fn count(traffic: &mut Traffic, kind: Kind, written_bytes: usize) {
    traffic.total += 1;
    traffic.written_bytes += written_bytes as u64;
    match kind {
        Kind::Write => traffic.writes += 1,
        Kind::Read => traffic.reads += 1,
        Kind::Remove => traffic.removes += 1,
        Kind::Flush => traffic.flushes += 1,
        Kind::Other => {}
    }
}

fn kind_of(op: &ClientOp) -> Kind {
    match op {
        ClientOp::Volume { op: VolumeOp::Read { .. }, .. }
        | ClientOp::Object { op: NativeOp::Read { .. } | NativeOp::ReadFlat { .. }, .. } => Kind::Read,
        ClientOp::Volume {
            op: VolumeOp::Write { .. } | VolumeOp::WriteBack { .. } | VolumeOp::WriteZeroes { .. },
            ..
        }
        | ClientOp::Object {
            op: NativeOp::Write { .. } | NativeOp::Create { .. } | NativeOp::WriteFlat { .. },
            ..
        } => Kind::Write,
        ClientOp::Volume { op: VolumeOp::Discard { .. }, .. }
        | ClientOp::Object { op: NativeOp::Discard, .. } => Kind::Remove,
        ClientOp::Volume { op: VolumeOp::Flush, .. } => Kind::Flush,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proto::client::Point;
    use proto::object::BlockRange;
    use proto::{Oid, PgId, PoolId, Since, Vid, ViewVersion};
    use std::net::Ipv4Addr;

    #[test]
    fn clients_are_counted_by_what_they_ask() {
        let mut counters = Counters::default();
        let volume = |op| ClientOp::Volume { vid: Vid(1), at: Point::Head, op };
        counters.client_asked(&volume(VolumeOp::Write { offset: 0, data: Bytes::from_static(&[1; 100]) }));
        counters.client_asked(&volume(VolumeOp::Read { offset: 0, len: 7 }));
        counters.client_answered(&Ok(ClientReply::Data(Bytes::from_static(&[1; 7]))));
        counters.client_asked(&volume(VolumeOp::Flush));
        counters.client_asked(&volume(VolumeOp::Discard { offset: 0, len: 7 }));
        let expect = Traffic {
            active: 2,
            total: 4,
            writes: 1,
            reads: 1,
            removes: 1,
            flushes: 1,
            written_bytes: 100,
            read_bytes: 7,
        };
        assert_eq!(counters.clients(2), expect);
        assert_eq!(counters.peers(), Traffic::default());
    }

    #[test]
    fn a_peers_request_is_active_until_it_is_answered_and_counted_once() {
        let mut counters = Counters::default();
        let peer = NodeId::new(Ipv4Addr::LOCALHOST.into(), 7001);
        let ask = |id| PeerMessage::Request {
            id,
            version: ViewVersion(1),
            life: Default::default(),
            body: PeerRequest::Read {
                pg: PgId { pool: PoolId(0), index: 0 },
                since: Since(1),
                oid: Oid::data(Vid(1), 0),
                blocks: BlockRange::new(0, 1),
            },
        };
        counters.peer_said(peer, &ask(1));
        counters.peer_said(peer, &ask(1));
        counters.peer_said(peer, &ask(2));
        assert_eq!((counters.peers().active, counters.peers().reads), (2, 2));
        let data = Bytes::from_static(&[0; 4096]);
        counters.peer_told(
            peer,
            &PeerMessage::Reply { id: 1, body: PeerReply::Data { checksums: vec![], data } },
        );
        assert_eq!((counters.peers().active, counters.peers().read_bytes), (1, 4096));
        counters.peer_came_anew(peer);
        assert_eq!(counters.peers().active, 0);
    }
}
