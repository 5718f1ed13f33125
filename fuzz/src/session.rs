//! A client of the native server, from its first byte to the end of its connection, in front of a service that answers at once.

use std::cell::RefCell;
use std::future::{Future, ready};
use std::rc::Rc;

use bytes::Bytes;
use front::Service;
use front::native::desk::Desk;
use front::native::serve_connection;
use front::native::session::{Arrival, Body};
use proto::client::*;
use proto::sd::request::Request;
use proto::sd::{HEADER_BYTES, Opcode, ReplyHeader};
use proto::{CopyPolicy, Epoch, NodeId, Oid, Vid};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;

const VID: Vid = Vid(7);
/// What is read at once is answered up to here; a client may ask for much more in few bytes.
const READ_BYTES_MAX: u32 = 64 << 10;

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
}

/// The first byte says in which pieces the rest arrives, and whether the service refuses every third request.
pub fn run(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else { return };
    let mut expected = whole_requests(bytes);
    let mut answered = converse(bytes, usize::from(*mode).max(1) * 16, mode % 3 == 1);
    expected.sort_unstable();
    answered.sort_unstable();
    assert_eq!(answered, expected, "each whole request is answered once");
}

/// Operation and id of each request that has come whole.
fn whole_requests(mut bytes: &[u8]) -> Vec<(u8, u32)> {
    let mut found = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() {
        let arrival = Arrival::new(head);
        let (Body::Keep(follows) | Body::Skip(follows)) = arrival.body;
        let Some(rest) = rest.get(follows as usize..) else { break };
        found.push((arrival.header.opcode, arrival.header.id));
        bytes = rest;
    }
    found
}

fn converse(bytes: &[u8], piece: usize, refuses: bool) -> Vec<(u8, u32)> {
    let desk = Desk::default();
    let service = Stub { refuses, asked: Rc::default() };
    let (near, far) = duplex(piece);
    let (mut replies, mut requests) = tokio::io::split(near);
    let send = async {
        // It may hang up before it has read everything.
        let _ = requests.write_all(bytes).await;
        let _ = requests.shutdown().await;
    };
    let mut answered = Vec::new();
    let receive = async {
        let mut head = [0; HEADER_BYTES];
        while replies.read_exact(&mut head).await.is_ok() {
            let reply = ReplyHeader::decode(&head);
            let mut payload = (&mut replies).take(reply.data_length.into());
            let read = tokio::io::copy(&mut payload, &mut tokio::io::sink()).await.expect("a pipe");
            assert_eq!(read, u64::from(reply.data_length), "a reply is as long as it says");
            answered.push((reply.opcode, reply.id));
        }
    };
    let serve = serve_connection(far, service, desk.clone(), Bytes::new());
    RUNTIME.with(|runtime| {
        LocalSet::new().block_on(runtime, async { tokio::join!(serve, send, receive) }).0.ok();
    });
    assert_eq!(desk.requests_in_flight(), 0);
    answered
}

#[derive(Clone)]
struct Stub {
    refuses: bool,
    asked: Rc<RefCell<u32>>,
}

impl Service for Stub {
    fn call(&self, op: ClientOp) -> impl Future<Output = ClientResult> + 'static {
        check(&op);
        *self.asked.borrow_mut() += 1;
        let is_refused = self.refuses && self.asked.borrow().is_multiple_of(3);
        ready(if is_refused { Err(refusal(*self.asked.borrow())) } else { answer(op) })
    }

    fn epoch(&self) -> Epoch {
        Epoch(1)
    }
}

/// No request brings or asks for more than one may.
fn check(op: &ClientOp) {
    assert!(op.payload().len() <= IO_BYTES_MAX as usize, "{} bytes at once", op.payload().len());
    if let ClientOp::Object { op: NativeOp::Read { len, .. } | NativeOp::ReadFlat { len, .. }, .. }
    | ClientOp::Volume { op: VolumeOp::Read { len, .. }, .. } = op
    {
        assert!(*len <= IO_BYTES_MAX, "{len} bytes at once");
    }
}

fn refusal(number: u32) -> ClientError {
    let refusals = [ClientError::NoVdi, ClientError::NoObject, ClientError::ReadOnly, ClientError::NoSpace];
    refusals[number as usize % refusals.len()].clone()
}

fn answer(op: ClientOp) -> ClientResult {
    let zeros = |len: u32| match len {
        0..=READ_BYTES_MAX => Ok(ClientReply::Data(vec![0; len as usize].into())),
        _ => Err(ClientError::Io),
    };
    match op {
        ClientOp::Volume { op: VolumeOp::Read { len, .. }, .. }
        | ClientOp::Object { op: NativeOp::Read { len, .. } | NativeOp::ReadFlat { len, .. }, .. } => {
            zeros(len)
        }
        ClientOp::Object { op: NativeOp::Check { .. }, .. } => {
            Ok(ClientReply::Checked(CheckReport::default()))
        }
        ClientOp::Cluster(ClusterOp::Info) => Ok(ClientReply::Cluster(Box::new(cluster()))),
        ClientOp::Cluster(ClusterOp::NodeStat) => Ok(ClientReply::NodeStat(Box::default())),
        ClientOp::Vdi(VdiOp::List) => Ok(ClientReply::Vdis(vec![disk()])),
        ClientOp::Vdi(VdiOp::Snapshot { .. }) => Ok(ClientReply::Vdis(vec![disk()])),
        ClientOp::Vdi(VdiOp::UsedVids | VdiOp::DeletedVids) => Ok(ClientReply::Vids(vec![VID])),
        ClientOp::Vdi(VdiOp::Usage { .. }) => Ok(ClientReply::Usage { own_objects: 1, shared_objects: 2 }),
        ClientOp::Vdi(
            VdiOp::Lookup { .. } | VdiOp::Create { .. } | VdiOp::Clone { .. } | VdiOp::Rollback { .. },
        ) => Ok(ClientReply::Vdi(disk())),
        _ => Ok(ClientReply::Done),
    }
}

fn disk() -> VdiInfo {
    VdiInfo {
        vid: VID,
        name: b"disk".to_vec(),
        tag: Vec::new(),
        size: 1 << 30,
        policy: CopyPolicy::Replicated { copies: 3 },
        block_size_shift: 22,
        snap_id: 1,
        create_time: 1 << 32,
        snap_ctime: 0,
        vm_state_size: 0,
        vm_clock_nsec: 0,
        parent: Vid(0),
        owner: None,
        locked_by: Vec::new(),
    }
}

fn cluster() -> ClusterInfo {
    let id = NodeId { addr: [0; 16], port: 7000 };
    ClusterInfo {
        status: ClusterStatus::Running,
        repair: Default::default(),
        format: None,
        epoch: Epoch(1),
        nodes: vec![NodeInfo { id, zone: proto::ZoneId(1), vnodes: 128, space_bytes: 1 << 30 }],
        epochs: Vec::new(),
        this_node: id,
    }
}

/// Requests with the payloads that follow them.
pub fn seeds() -> Vec<Vec<u8>> {
    let whole = |request: Request, body: &[u8]| [&request.encode_header()[..], body].concat();
    let name = [&b"disk"[..], &[0; 508]].concat();
    let list = whole(Request::get_node_list(), &[]);
    let read = whole(Request::read_obj(Oid::inode(VID), 0, 4096), &[]);
    let data = whole(Request::read_obj(Oid::data(VID, 3), 4096, 8192), &[]);
    let write = whole(Request::volume_write(VID, 4096, Bytes::from_static(&[5; 512])), &[5; 512]);
    let ask = Request::ask(&ClientOp::Vdi(VdiOp::Table { vid: VID, first: 0 }));
    let asked = proto::sd::extension::encode_list(&ClientOp::Vdi(VdiOp::Table { vid: VID, first: 0 }));
    let check = whole(Request::check_object(Oid::data(VID, 3), true), &[]);
    let on_vdi = |opcode| {
        let mut request = Request::plain(opcode, 512);
        request.header.flags = proto::sd::flag::WRITE;
        whole(request, &name)
    };
    let plain = |opcode, len| whole(Request::plain(opcode, len), &[]);
    vec![
        [&[1][..], &list, &read, &data, &write, &whole(ask, &asked), &check].concat(),
        [
            &[255][..],
            &on_vdi(Opcode::LockVdi),
            &on_vdi(Opcode::GetVdiInfo),
            &data,
            &on_vdi(Opcode::NewVdi),
            &plain(Opcode::ReadVdis, 4096),
            &plain(Opcode::VdiList, 4096),
        ]
        .concat(),
        [
            &[4][..],
            &plain(Opcode::ClusterInfo, 2048),
            &plain(Opcode::StatCluster, 4096),
            &plain(Opcode::MdInfo, 8192),
            &plain(Opcode::FlushVdi, 0),
            &plain(Opcode::GetClusterDefault, 0),
            &plain(Opcode::Stat, 1024),
        ]
        .concat(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_seed_is_six_requests_that_are_all_answered() {
        for seed in seeds() {
            assert_eq!(whole_requests(&seed[1..]).len(), 6);
            assert_eq!(converse(&seed[1..], 64, false).len(), 6);
        }
    }
}
