//! Sheep that exist only as threads: they speak the native protocol on real sockets, from canned data.
//!
//! [`Flock::start`] takes the name of a scenario, which case files use. A flock of the scenario `running`
//! keeps what is written to it, so that a case can create, write and read.

mod answers;
mod asks;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use proto::NodeId;
use proto::client::ClusterStatus;
use tempfile::TempDir;

use proto::sd::{HEADER_BYTES, Opcode, ReplyHeader, RequestHeader, ResultCode};

use answers::State;

/// Largest payload a fake accepts: more than any command sends.
const PAYLOAD_MAX: u32 = 8 << 20;

/// Sheep that listen until the test process ends.
pub struct Flock {
    pub ports: Vec<u16>,
    /// Where the first one listens in the file system.
    pub socket: PathBuf,
    dir: TempDir,
}

/// How a sheep treats its clients.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manners {
    Good,
    /// 48 bytes that are no reply.
    Garbage,
    /// Half a header, then the end.
    HalfHeader,
    /// A header that promises more than follows.
    HalfPayload,
    /// An answer to a request that nobody made.
    WrongId,
    /// Success, and a payload that decodes to nothing.
    Nonsense,
    /// Reads the request and closes the connection.
    Closes,
}

impl Flock {
    /// For files of a case.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn start(scenario: &str) -> Flock {
        let (sheep_count, manners, status) = match scenario {
            "running" | "empty" | "in use" | "recovering" | "discarding" | "deleting" | "blocked"
            | "one stopped" | "first stopped" => (3, Manners::Good, ClusterStatus::Running),
            "lagging" => (2, Manners::Good, ClusterStatus::Running),
            "four" => (4, Manners::Good, ClusterStatus::Running),
            "alone" | "full" => (1, Manners::Good, ClusterStatus::Running),
            "unformatted" => (3, Manners::Good, ClusterStatus::WaitForFormat),
            "waiting" => (1, Manners::Good, ClusterStatus::WaitForJoin),
            "down" => (0, Manners::Good, ClusterStatus::Running),
            "garbage" => (1, Manners::Garbage, ClusterStatus::Running),
            "half header" => (1, Manners::HalfHeader, ClusterStatus::Running),
            "half payload" => (1, Manners::HalfPayload, ClusterStatus::Running),
            "wrong id" => (1, Manners::WrongId, ClusterStatus::Running),
            "nonsense" => (1, Manners::Nonsense, ClusterStatus::Running),
            "closes" => (1, Manners::Closes, ClusterStatus::Running),
            other => panic!("no scenario is named {other}"),
        };
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("sock");
        if sheep_count == 0 {
            return Flock { ports: vec![silent_port()], socket, dir };
        }
        let listeners: Vec<TcpListener> = (0..sheep_count).map(|_| listen()).collect();
        let ports: Vec<u16> =
            listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        let nodes: Vec<NodeId> =
            ports.iter().map(|port| NodeId::new(Ipv4Addr::LOCALHOST.into(), *port)).collect();
        let has_vdis = scenario != "empty" && scenario != "unformatted";
        // As in a real store directory, where it is a socket.
        let nbd_socket = dir.path().join("nbd.sock");
        std::fs::write(&nbd_socket, "").unwrap();
        let nbd_socket = nbd_socket.into_os_string().into_encoded_bytes();
        let mut state = State::new(nodes, status, has_vdis, scenario == "full", nbd_socket);
        state.is_discarding = scenario == "discarding";
        state.is_deleting = scenario == "deleting";
        state.is_recovering = scenario == "recovering";
        state.is_lagging = scenario == "lagging";
        state.is_blocked = scenario == "blocked";
        state.stopped = match scenario {
            "first stopped" => Some(0),
            "one stopped" => Some(1),
            _ => None,
        };
        state.waits = (scenario == "one stopped").then_some(0);
        if scenario == "in use" {
            state.lock_all();
        }
        let state = Arc::new(Mutex::new(state));
        for (index, listener) in listeners.into_iter().enumerate() {
            let state = Arc::clone(&state);
            thread::spawn(move || accept_all(listener, index, manners, state));
        }
        let local = UnixListener::bind(&socket).unwrap();
        thread::spawn(move || {
            for stream in local.incoming() {
                serve(stream.unwrap(), 0, manners, &state);
            }
        });
        Flock { ports, socket, dir }
    }
}

/// Nobody listens there, nor does a flock that starts meanwhile: what the kernel chooses for those lies higher.
fn silent_port() -> u16 {
    let mut ports = 20_000 + (std::process::id() % 8_000) as u16..30_000;
    ports.find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()).expect("a free port")
}

fn listen() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

fn accept_all(listener: TcpListener, index: usize, manners: Manners, state: Arc<Mutex<State>>) {
    for stream in listener.incoming() {
        let (stream, state) = (stream.unwrap(), Arc::clone(&state));
        if state.lock().unwrap().ended.contains(&index) {
            return;
        }
        thread::spawn(move || serve(stream, index, manners, &state));
    }
}

/// Answers requests until the client goes. A client that breaks off is none of a fake's business.
fn serve(mut stream: impl Read + Write, index: usize, manners: Manners, state: &Mutex<State>) {
    let mut header = [0; HEADER_BYTES];
    while stream.read_exact(&mut header).is_ok() {
        let request = RequestHeader::decode(&header);
        assert!(Opcode::accepts_version(request.opcode, request.proto_ver), "wrong version: {request:?}");
        assert!(request.payload_bytes() <= PAYLOAD_MAX);
        let mut payload = vec![0; request.payload_bytes() as usize];
        if stream.read_exact(&mut payload).is_err() {
            return;
        }
        let (result, variant, data) = {
            let mut state = state.lock().unwrap();
            if state.is_silent(index, &request, &payload) {
                continue;
            }
            state.answer(index, &request, &payload)
        };
        let mut reply = ReplyHeader {
            proto_ver: 0,
            opcode: request.opcode,
            flags: 0,
            epoch: 1,
            id: request.id,
            data_length: data.len() as u32,
            result,
            variant,
        };
        let bytes = match manners {
            Manners::Good => [&reply.encode()[..], &data].concat(),
            Manners::Garbage => b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n....".to_vec(),
            Manners::HalfHeader => reply.encode()[..20].to_vec(),
            Manners::HalfPayload => [&reply.encode()[..], &data[..data.len() / 2]].concat(),
            Manners::WrongId => {
                reply.id = request.id + 41;
                [&reply.encode()[..], &data].concat()
            }
            Manners::Nonsense => {
                (reply.result, reply.data_length) = (ResultCode::SUCCESS, 3);
                [&reply.encode()[..], &[0xff; 3]].concat()
            }
            Manners::Closes => return,
        };
        let sent = stream.write_all(&bytes);
        let has_ended = state.lock().unwrap().ended.contains(&index);
        if has_ended
            || sent.is_err()
            || matches!(manners, Manners::HalfHeader | Manners::HalfPayload | Manners::Garbage)
        {
            return;
        }
    }
}
