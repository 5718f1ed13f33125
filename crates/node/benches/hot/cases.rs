//! What is measured: one operation of each hot part.

use std::hint::black_box;

use bytes::Bytes;
use proto::checksum::block_checksums;
use proto::client::*;
use proto::object::{BlockRange, Change, ObjectOp, Origin, Stamp, Tag, WriteBase};
use proto::peer::{FRAME_HEAD_BYTES, FrameHead, PeerMessage, PeerRequest};
use proto::sd::{Request, RequestHeader};
use proto::{
    BLOCK_BYTES, Generation, Incarnation, Lineage, Oid, PgId, PoolId, RequestId, Seq, Since, Vid, ViewVersion,
};
use store::testing::SimDisk;
use store::{FormatOptions, IoOp, Store};

use crate::cluster::Cluster;

pub struct Case {
    pub name: &'static str,
    /// Prepares all that is not to be measured; what it gives back is one operation.
    pub prepare: fn() -> Box<dyn FnMut()>,
}

pub const CASES: [Case; 7] = [
    Case { name: "old_client_header", prepare: old_client_header },
    Case { name: "checksum_of_4_kib", prepare: checksum },
    Case { name: "placement_lookup", prepare: placement_lookup },
    Case { name: "message_of_4_kib_to_a_peer", prepare: message_to_a_peer },
    Case { name: "store_writes_4_kib", prepare: store_write },
    Case { name: "store_writes_32_at_once", prepare: store_writes },
    Case { name: "session_writes_4_kib_to_three", prepare: session_write },
];

fn block(fill: u8) -> Bytes {
    Bytes::from(vec![fill; BLOCK_BYTES])
}

/// Decoding and encoding the 48 bytes that an old client sends before its data.
fn old_client_header() -> Box<dyn FnMut()> {
    let bytes = Request::write_obj(Oid::data(Vid(1), 7), 4096, block(3)).encode_header();
    Box::new(move || {
        black_box(RequestHeader::decode(black_box(&bytes)).encode());
    })
}

fn checksum() -> Box<dyn FnMut()> {
    let data = block(7);
    Box::new(move || {
        black_box(block_checksums(black_box(&data)));
    })
}

fn placement_lookup() -> Box<dyn FnMut()> {
    let mut index = 0;
    Box::new(move || {
        index += 1;
        black_box(placement::pg_of(black_box(Lineage(99)), index, 1024));
    })
}

fn tag(seq: u64) -> Tag {
    Tag {
        vid: Vid(1),
        stamp: Stamp { generation: Generation(1), seq: Seq(seq) },
        settled: Seq(seq.saturating_sub(64)),
        origin: Origin { incarnation: Incarnation(1), request: RequestId(seq) },
        last_room: false,
        tell_taken: false,
    }
}

/// A write of an owner, and what belongs to it.
fn write_at(first: u32, seq: u64) -> (Change, Bytes, Tag) {
    let data = block(seq as u8);
    let checksums = block_checksums(&data);
    let blocks = BlockRange::new(first, 1);
    (Change::Write { blocks, checksums, base: WriteBase::Keep }, data, tag(seq))
}

/// Encoding by the owner and decoding by the copy.
fn message_to_a_peer() -> Box<dyn FnMut()> {
    let (change, data, tag) = write_at(5, 77);
    let oid = Oid::data(Vid(1), 3);
    let body = PeerRequest::Change {
        pg: PgId { pool: PoolId(0), index: 3 },
        since: Since::default(),
        oid,
        change,
        tag,
        data,
    };
    let message = PeerMessage::Request { id: 9, version: ViewVersion(4), life: Incarnation(2), body };
    Box::new(move || {
        let (head, payload) = black_box(&message).encode();
        let (frame, control) = head.split_at(FRAME_HEAD_BYTES);
        let frame = FrameHead::decode(frame.try_into().expect("a head")).expect("our own");
        black_box(PeerMessage::decode(&frame, control, payload).expect("our own"));
    })
}

/// A store whose disk takes everything at once and keeps nothing. Blocks are written as a whole, so none is read.
struct Engine {
    store: Store,
    /// All writes bring the same, which is not part of what is measured.
    written: (Change, Bytes, Tag),
    seq: u64,
}

impl Engine {
    fn new() -> Engine {
        let mut disk = SimDisk::new(256 << 20);
        Store::format(&mut disk, &FormatOptions::new(256 << 20, 1)).expect("a disk large enough");
        let (store, _) = Store::open(&mut disk).expect("formatted just now");
        let mut engine = Engine { store, written: write_at(0, 1), seq: 0 };
        // Slots and maps are there.
        for index in 0..16 {
            engine.submit(index, 0);
            engine.settle();
        }
        engine
    }

    fn submit(&mut self, index: u32, first: u32) {
        self.seq += 1;
        let (mut change, data, _) = self.written.clone();
        if let Change::Write { blocks, .. } = &mut change {
            blocks.first = first;
        }
        let (oid, tag) = (Oid::data(Vid(1), index), Some(tag(self.seq)));
        self.store.submit(self.seq, ObjectOp::Change { oid, change, data, tag });
    }

    /// Carries out what the store asks for until it asks for nothing.
    fn settle(&mut self) {
        while let Some(request) = self.store.poll_io() {
            let nothing = match request.op {
                IoOp::Write { .. } | IoOp::Sync => Bytes::new(),
                IoOp::Read { .. } | IoOp::Grow { .. } => {
                    unreachable!("whole blocks, and the disk has its size")
                }
            };
            self.store.handle_io(request.id, Ok(nothing));
        }
        while let Some(reply) = self.store.poll_reply() {
            black_box(reply);
        }
    }
}

/// A block somewhere in sixteen objects, from the order to the answer, with its share of write-back.
fn store_write() -> Box<dyn FnMut()> {
    let mut engine = Engine::new();
    Box::new(move || {
        let place = engine.seq.wrapping_mul(0x9e37_79b9);
        engine.submit((place % 16) as u32, (place >> 8) as u32 % 1024);
        engine.settle();
    })
}

/// The same thirty-two times in one record of the journal.
fn store_writes() -> Box<dyn FnMut()> {
    let mut engine = Engine::new();
    Box::new(move || {
        for _ in 0..32 {
            let place = engine.seq.wrapping_mul(0x9e37_79b9);
            engine.submit((place % 16) as u32, (place >> 8) as u32 % 1024);
        }
        engine.settle();
    })
}

/// From the client's order to the answer: the gateway, the owner and two more copies, with stores that answer at once.
fn session_write() -> Box<dyn FnMut()> {
    let (mut cluster, vid) = Cluster::with_gateway();
    let data = block(5);
    let write = move |cluster: &mut Cluster, n: u64| {
        let offset = n % 256 * BLOCK_BYTES as u64;
        let op = VolumeOp::Write { offset, data: data.clone() };
        let answer = cluster.ask(1, ClientOp::Volume { vid, at: Point::Head, op });
        assert!(matches!(answer, Ok(ClientReply::Done)), "{answer:?}");
        cluster.sheep.iter_mut().for_each(|(_, _, store)| store.changes.clear());
    };
    write(&mut cluster, 0);
    let mut n = 0;
    Box::new(move || {
        n += 1;
        write(&mut cluster, n);
    })
}
