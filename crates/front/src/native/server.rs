//! Moves the bytes of native connections.
//!
//! One side of a connection reads requests and hands each to the service in the order of arrival; the other
//! writes replies in the order of completion. Reading goes on while requests are pending, until they would take
//! more than [`IN_FLIGHT_BYTES_MAX`]; then the client waits, in its own socket. Idle clients are never sent away.
//!
//! # Clients that go
//!
//! A client that loses its connection sends its unanswered requests again on another one, perhaps to another sheep, and
//! goes on writing. A duplicate that took effect later than that would undo newer writes (spec section 10, item 16). So
//! the requests of a connection that has ended are not held until they can be carried out:
//!
//! - a request that breaks off, or is found in the socket of a client that has hung up, after it had to wait there
//!   for room, is dropped;
//! - when a reply cannot be written, or nothing more comes from the client for [`PARTING`], what is in flight is given up:
//!   the [`Service`] carries out what has its place in the VDI's order, and nothing else.
//!
//! A client that only ends its own side of the connection (none of the known ones does) is answered what can be answered at
//! once.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::io::{self, Cursor};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use buffer::AlignedBuf;
use bytes::Bytes;
use proto::Vid;
use proto::client::{ClientOp, VdiOp};
use proto::sd::{HEADER_BYTES, RequestHeader};
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter,
    Chain, ReadHalf,
};
use tokio::net::tcp::OwnedReadHalf as TcpReadHalf;
use tokio::net::unix::OwnedReadHalf as UnixReadHalf;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::spawn_local;

use super::desk::Desk;
use super::exchange::{Answer, Step, Then};
use super::session::{Arrival, Body};
use crate::Service;
use crate::fill::poll_fill;
use crate::tcp;

/// Memory for payloads in both directions of one connection: two of the largest requests, or about a thousand
/// small ones.
pub const IN_FLIGHT_BYTES_MAX: u32 = 64 << 20;
const PERMIT_BYTES: u32 = 1 << 10;

/// How long requests may go on after their client has ended its side. Shorter than the second after which QEMU
/// and tgt connect again.
pub const PARTING: Duration = Duration::from_millis(500);

const ACCEPT_RETRY: Duration = Duration::from_millis(100);
const READ_BUFFER_BYTES: usize = 16 << 10;
const WRITE_BUFFER_BYTES: usize = 64 << 10;

/// Serves a connection until the client ends it and all it asked for is done. `first_bytes` were read from it
/// already. To be run inside a `LocalSet`.
///
/// The result tells how the client ended: `UnexpectedEof` in the middle of a request.
pub async fn serve_connection<IO, S>(io: IO, service: S, desk: Desk, first_bytes: Bytes) -> io::Result<()>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: Service,
{
    let (read, write) = tokio::io::split(io);
    serve_halves(read, write, service, desk, first_bytes).await
}

/// A TCP connection.
pub async fn serve_tcp<S: Service>(
    stream: TcpStream,
    service: S,
    desk: Desk,
    first_bytes: Bytes,
) -> io::Result<()> {
    tcp::prepare(&stream);
    let (read, write) = stream.into_split();
    serve_halves(read, write, service, desk, first_bytes).await
}

/// A connection on the unix socket.
pub async fn serve_unix_stream<S: Service>(stream: UnixStream, service: S, desk: Desk) -> io::Result<()> {
    let (read, write) = stream.into_split();
    serve_halves(read, write, service, desk, Bytes::new()).await
}

async fn serve_halves<R, W, S>(
    read: R,
    write: W,
    service: S,
    desk: Desk,
    first_bytes: Bytes,
) -> io::Result<()>
where
    R: Reading,
    W: AsyncWrite + Unpin,
    S: Service,
{
    let input = BufReader::with_capacity(READ_BUFFER_BYTES, Cursor::new(first_bytes).chain(read));
    let (replies, outbox) = mpsc::unbounded_channel();
    let client_gone = Notify::new();
    let (given_up, giving_up) = watch::channel(false);
    // The writer is at work until the last request has ended.
    let all_ended = Notify::new();
    let reading = async {
        let connection = Connection {
            service,
            desk,
            replies,
            budget: Arc::new(Semaphore::new((IN_FLIGHT_BYTES_MAX / PERMIT_BYTES) as usize)),
            giving_up,
            at_work: RefCell::default(),
        };
        let read_result = tokio::select! {
            // First: the share of the lost reply may be what the next request has been waiting for.
            biased;
            () = client_gone.notified() => None,
            result = connection.read_requests(input) => Some(result),
        };
        drop(connection);
        if read_result.is_some() {
            tokio::select! {
                () = client_gone.notified() => {}
                () = all_ended.notified() => {}
                () = tokio::time::sleep(PARTING) => {}
            }
        }
        given_up.send_replace(true);
        read_result.unwrap_or(Ok(()))
    };
    let writing = async {
        let result = write_replies(outbox, write, &client_gone).await;
        all_ended.notify_one();
        result
    };
    let (read_result, write_result) = tokio::join!(reading, writing);
    read_result.and(write_result)
}

/// The client's side of a connection.
trait Reading: AsyncRead + Unpin {
    /// Has the client hung up? Known even while there is still something to read.
    fn has_ended(&self) -> bool;
}

impl Reading for TcpReadHalf {
    fn has_ended(&self) -> bool {
        has_hung_up(self.as_ref())
    }
}

impl Reading for UnixReadHalf {
    fn has_ended(&self) -> bool {
        has_hung_up(self.as_ref())
    }
}

/// Of a stream that is no socket one cannot know.
impl<IO: AsyncRead + Unpin> Reading for ReadHalf<IO> {
    fn has_ended(&self) -> bool {
        false
    }
}

fn has_hung_up(socket: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&socket, PollFlags::RDHUP)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    // HUP and ERR are told unasked.
    matches!(rustix::event::poll(&mut fds, Some(&at_once)), Ok(1..))
}

/// Accepts connections on the unix socket for ever. To be run inside a `LocalSet`.
pub async fn serve_unix<S: Service>(listener: UnixListener, service: S, desk: Desk) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Most likely out of descriptors: nothing tells when one comes free, so try again soon.
                tracing::warn!(%error, "cannot accept a native connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let (service, desk) = (service.clone(), desk.clone());
        spawn_local(async move {
            if let Err(error) = serve_unix_stream(stream, service, desk).await {
                tracing::debug!(%error, "native connection ended");
            }
        });
    }
}

/// A reply on its way, and its share of the budget, which it returns when it has been written.
struct Outgoing {
    header: [u8; HEADER_BYTES],
    payload: Bytes,
    _share: OwnedSemaphorePermit,
}

struct Connection<S: Service> {
    service: S,
    desk: Desk,
    /// Bounded by the budget.
    replies: mpsc::UnboundedSender<Outgoing>,
    budget: Arc<Semaphore>,
    /// Turns true when the client is known to be gone.
    giving_up: watch::Receiver<bool>,
    /// VDIs of which it has read or written data.
    at_work: RefCell<BTreeSet<Vid>>,
}

/// A client that crashed has released nothing. Its VDIs would be served from here for ever, wherever they are opened next.
impl<S: Service> Drop for Connection<S> {
    fn drop(&mut self) {
        for vid in self.at_work.take() {
            for _ in 0..self.desk.work_ended(vid) {
                // Told by the call; there is nothing to wait for.
                drop(self.service.call(ClientOp::Vdi(VdiOp::Close { vid })));
            }
        }
    }
}

/// What was read from the connection before, then the connection.
type Input<R> = BufReader<Chain<Cursor<Bytes>, R>>;

impl<S: Service> Connection<S> {
    async fn read_requests(&self, mut input: Input<impl Reading>) -> io::Result<()> {
        while !input.fill_buf().await?.is_empty() {
            let mut header = [0; HEADER_BYTES];
            input.read_exact(&mut header).await?;
            let arrival = Arrival::new(&header);
            let (share, waited) = self.reserve(arrival.cost_bytes()).await;
            if waited && input.get_ref().get_ref().1.has_ended() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let payload = match arrival.body {
                Body::Keep(len) => read_payload(&mut input, len as usize).await?,
                Body::Skip(len) => {
                    skip(&mut input, len.into()).await?;
                    Bytes::new()
                }
            };
            self.begin(&arrival, payload, share);
        }
        Ok(())
    }

    /// Takes a share of the budget; true if it had to be waited for.
    async fn reserve(&self, bytes: u32) -> (OwnedSemaphorePermit, bool) {
        let permits = bytes.min(IN_FLIGHT_BYTES_MAX).div_ceil(PERMIT_BYTES);
        if let Ok(share) = self.budget.clone().try_acquire_many_owned(permits) {
            return (share, false);
        }
        let share = self.budget.clone().acquire_many_owned(permits).await;
        (share.expect("the budget is never closed"), true)
    }

    /// The first call to the service is made here, before the next request is looked at: requests reach
    /// the owner in the order of arrival, so of two overlapping writes the later one wins.
    fn begin(&self, arrival: &Arrival, payload: Bytes, share: OwnedSemaphorePermit) {
        self.desk.request_started();
        if let Some(vid) = arrival.works_on()
            && self.at_work.borrow_mut().insert(vid)
        {
            self.desk.work_began(vid);
        }
        let pending = Pending {
            header: arrival.header,
            service: self.service.clone(),
            desk: self.desk.clone(),
            replies: self.replies.clone(),
            share,
            giving_up: self.giving_up.clone(),
        };
        match arrival.start(payload, &self.desk) {
            Step::Reply(answer) => pending.finish(answer),
            Step::Call(op, then) => {
                let call = self.service.call(op);
                spawn_local(pending.run(call, then));
            }
        }
    }
}

/// A request that waits for the service.
struct Pending<S> {
    header: RequestHeader,
    service: S,
    desk: Desk,
    replies: mpsc::UnboundedSender<Outgoing>,
    share: OwnedSemaphorePermit,
    giving_up: watch::Receiver<bool>,
}

impl<S: Service> Pending<S> {
    async fn run(self, first: impl Future<Output = proto::client::ClientResult>, then: Then) {
        let mut giving_up = self.giving_up.clone();
        let answer = tokio::select! {
            answer = self.answer(first, then) => answer,
            _ = giving_up.wait_for(|given_up| *given_up) => return self.desk.request_finished(),
        };
        self.finish(answer);
    }

    async fn answer(&self, first: impl Future<Output = proto::client::ClientResult>, then: Then) -> Answer {
        let mut step = then(first.await);
        loop {
            match step {
                Step::Reply(answer) => return answer,
                Step::Call(op, then) => step = then(self.service.call(op).await),
            }
        }
    }

    fn finish(self, answer: Answer) {
        self.desk.request_finished();
        let header = answer.header(&self.header, self.service.epoch().0).encode();
        // The writer takes replies until the last one, even those nobody can be told any more.
        let _ = self.replies.send(Outgoing { header, payload: answer.payload, _share: self.share });
    }
}

/// Writes replies until there is none to come. After a failure they are dropped, and the reader is told.
async fn write_replies(
    mut outbox: mpsc::UnboundedReceiver<Outgoing>,
    write: impl AsyncWrite + Unpin,
    client_gone: &Notify,
) -> io::Result<()> {
    let mut output = BufWriter::with_capacity(WRITE_BUFFER_BYTES, write);
    let mut result = Ok(());
    while let Some(reply) = outbox.recv().await {
        if result.is_err() {
            continue;
        }
        result = write_reply(&mut output, &reply, outbox.is_empty()).await;
        if result.is_err() {
            client_gone.notify_one();
        }
    }
    match result {
        Ok(()) => output.shutdown().await,
        failed => failed,
    }
}

async fn write_reply(output: &mut (impl AsyncWrite + Unpin), reply: &Outgoing, last: bool) -> io::Result<()> {
    output.write_all(&reply.header).await?;
    output.write_all(&reply.payload).await?;
    if last { output.flush().await } else { Ok(()) }
}

/// Collects a payload in memory that a disk can take. `len` has been checked.
async fn read_payload(input: &mut (impl AsyncRead + Unpin), len: usize) -> io::Result<Bytes> {
    if len == 0 {
        return Ok(Bytes::new());
    }
    let mut buffer = AlignedBuf::with_capacity(len);
    while buffer.remaining() > 0 {
        if poll_fn(|cx| poll_fill(&mut buffer, Pin::new(&mut *input).get_mut(), cx)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(buffer.freeze())
}

async fn skip(input: &mut (impl AsyncBufRead + Unpin), mut len: u64) -> io::Result<()> {
    while len > 0 {
        let available = input.fill_buf().await?.len();
        if available == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let used = len.min(available as u64);
        input.consume(used as usize);
        len -= used;
    }
    Ok(())
}
