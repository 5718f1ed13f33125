//! The server side as a client sees it: bytes in, bytes out, over an in-memory stream and a model of the cluster.

mod admin;
mod fake;
mod hostile;
mod limits;
mod old_clients;

use std::future::Future;
use std::io;

use bytes::Bytes;
use proto::sd::{HEADER_BYTES, ReplyHeader, Request, ResultCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use self::fake::Fake;
use super::{About, Desk, serve_connection};

/// Runs a test where connections can be spawned, and never for ever.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let deadline = std::time::Duration::from_secs(60);
    let bounded = async { tokio::time::timeout(deadline, test).await.expect("the test hangs") };
    LocalSet::new().block_on(&runtime, bounded);
}

/// Bytes of hex digits, with blanks anywhere.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

/// A name in 256 bytes.
fn padded(name: &str) -> Vec<u8> {
    let mut out = name.as_bytes().to_vec();
    out.resize(256, 0);
    out
}

/// A sheep that serves native clients.
#[derive(Clone)]
struct Sheep {
    fake: Fake,
    desk: Desk,
}

impl Sheep {
    fn new(fake: Fake) -> Sheep {
        Sheep { fake, desk: Desk::new(About { disks_path: "/srv/d0".into(), ..About::default() }) }
    }

    fn connect(&self) -> Client {
        let (stream, served) = tokio::io::duplex(64 << 10);
        let serving = serve_connection(served, self.fake.clone(), self.desk.clone(), Bytes::new());
        Client { stream, serving: spawn_local(serving) }
    }

    /// One request on a connection of its own, as old clients do with everything but data.
    async fn once(&self, request: &Request) -> (ReplyHeader, Vec<u8>) {
        self.connect().call(request).await
    }

    async fn result(&self, request: &Request) -> ResultCode {
        let (reply, payload) = self.once(request).await;
        assert!(reply.result.is_success() || payload.is_empty(), "a refusal carries no data");
        reply.result
    }

    /// Captured bytes on a connection of their own.
    async fn replay_once(&self, request: &str, payload: &[u8], reply: &str) -> Vec<u8> {
        self.connect().replay(request, payload, reply).await
    }
}

struct Client {
    stream: DuplexStream,
    serving: JoinHandle<io::Result<()>>,
}

impl Client {
    async fn send(&mut self, request: &Request) {
        self.stream.write_all(&request.encode_header()).await.unwrap();
        self.stream.write_all(&request.payload).await.unwrap();
    }

    async fn receive(&mut self) -> (ReplyHeader, Vec<u8>) {
        let mut header = [0; HEADER_BYTES];
        self.stream.read_exact(&mut header).await.unwrap();
        let header = ReplyHeader::decode(&header);
        let mut payload = vec![0; header.data_length as usize];
        self.stream.read_exact(&mut payload).await.unwrap();
        (header, payload)
    }

    async fn call(&mut self, request: &Request) -> (ReplyHeader, Vec<u8>) {
        self.send(request).await;
        let (reply, payload) = self.receive().await;
        assert_eq!((reply.opcode, reply.id), (request.header.opcode, request.header.id));
        assert_eq!((reply.proto_ver, reply.flags, reply.epoch), (0, 0, 1));
        (reply, payload)
    }

    /// Sends these bytes and expects exactly that header back; gives the payload that follows it.
    async fn replay(&mut self, request: &str, payload: &[u8], reply: &str) -> Vec<u8> {
        self.stream.write_all(&hex(request)).await.unwrap();
        self.stream.write_all(payload).await.unwrap();
        let (header, payload) = self.receive().await;
        assert_eq!(header, ReplyHeader::decode(&hex(reply).try_into().unwrap()), "reply to {request}");
        payload
    }

    /// Ends the connection and waits until the server has done so too.
    async fn close(self) -> io::Result<()> {
        drop(self.stream);
        self.serving.await.expect("the server does not panic")
    }
}
