//! Moves the bytes: listens, shakes hands, and carries out requests against the [`Service`].
//!
//! One task per connection does everything for it: it reads a batch of requests, starts them, collects what is done,
//! and sends the replies of a batch with one system call. Requests run side by side and are answered as they end.
//! However a connection ends, its requests are awaited, and then the VDI is closed.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{Either, join_all};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use proto::client::{ClientError, ClientOp, ClientResult, IO_BYTES_MAX, Point, VolumeOp};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, timeout_at};

use super::context as metadata;
use super::export;
use super::handshake::{Agreement, Handshake, Step};
use super::receiver::{Asked, Next, Receiver, Space};
use super::reply::{Outbox, Replier};
use crate::fill::poll_fill;
use crate::guests::{Guests, program_at};
use crate::{Service, tcp};

/// Headers of replies that a client has not fetched, before no more of its requests are looked at.
const REPLY_HEADER_BYTES_MAX: usize = 256 << 10;
/// Rounds of reading, collecting and sending before other tasks get their turn.
const ROUND_COUNT_MAX: u32 = 32;
/// Pause after a failed accept: the usual cause is that file descriptors ran out, and nothing tells when there are
/// some again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What one client may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests under way per connection.
    pub requests: usize,
    /// Payload of requests under way, and of replies not fetched, per connection. One request is always let in.
    pub payload_bytes: u64,
    /// Patience with a silent client before it has chosen an export, and with one that has said good-bye and does
    /// not fetch its replies. In between it may be silent for ever.
    pub patience: Duration,
    /// Connections per listener. Further ones wait in the kernel's queue.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // 128 is the queue depth of the Linux client; two of the largest requests overlap.
        let payload_bytes = 2 * u64::from(IO_BYTES_MAX);
        Limits { requests: 128, payload_bytes, patience: Duration::from_secs(30), connections: 1024 }
    }
}

/// How a connection ended.
#[derive(Debug)]
pub enum Ending {
    /// In order: the client said good-bye, or went between two requests.
    Disconnected,
    /// In the middle of a request or of the handshake.
    Vanished,
    /// It stayed silent where it must not.
    TimedOut,
    /// It broke the protocol, gave up, or asked for an export that cannot be had.
    Refused(&'static str),
    /// The sheep or the cluster is shutting down. What it did not carry out stays unanswered.
    ShutDown,
    Failed(io::Error),
}

/// Serves clients of a unix socket until accepting fails for good (it does not). They are listed in `guests`.
pub async fn serve_unix<S: Service>(listener: UnixListener, svc: S, limits: Limits, guests: Guests) {
    let permits = Arc::new(Semaphore::new(limits.connections));
    loop {
        let permit = permit(&permits).await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let client = Client { name: program_at(&stream), guests: guests.clone() };
                spawn_connection(stream, client, svc.clone(), limits, permit)
            }
            Err(error) => pause_after(error).await,
        }
    }
}

/// Serves clients that come by TCP.
pub async fn serve_tcp<S: Service>(listener: TcpListener, svc: S, limits: Limits, guests: Guests) {
    let permits = Arc::new(Semaphore::new(limits.connections));
    loop {
        let permit = permit(&permits).await;
        match listener.accept().await {
            Ok((stream, from)) => {
                tcp::prepare(&stream);
                let client = Client { name: from.to_string(), guests: guests.clone() };
                spawn_connection(stream, client, svc.clone(), limits, permit);
            }
            Err(error) => pause_after(error).await,
        }
    }
}

/// Who is served, and where that is written down.
#[derive(Clone, Default)]
pub struct Client {
    pub name: String,
    pub guests: Guests,
}

/// Serves one client. Run it to its end: only then is the VDI closed.
pub async fn serve_connection<S, IO>(mut io: IO, svc: S, limits: &Limits, client: &Client) -> Ending
where
    S: Service,
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let (agreement, rest) = match shake_hands(&mut io, &svc, limits).await {
        Ok(agreed) => agreed,
        Err(ending) => return ending,
    };
    let receiver = Receiver::new(&agreement, &rest).in_write_back_mode(svc.is_write_back());
    drop(rest);
    let export = &agreement.export;
    let working: &[u8] = if export.read_only { b"" } else { &export.name };
    let _stay = client.guests.enter(export.vid, working, &client.name);
    let ending = transmit(&mut io, &svc, &agreement, receiver, limits).await;
    export::close(&svc, &agreement.export).await;
    ending
}

async fn permit(permits: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    permits.clone().acquire_owned().await.expect("nobody closes the semaphore")
}

async fn pause_after(error: io::Error) {
    tracing::warn!(%error, "cannot accept an NBD client");
    sleep(ACCEPT_PAUSE).await;
}

fn spawn_connection<S, IO>(io: IO, client: Client, svc: S, limits: Limits, permit: OwnedSemaphorePermit)
where
    S: Service,
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    tokio::task::spawn_local(async move {
        let ending = serve_connection(io, svc, &limits, &client).await;
        let from = &client.name;
        match &ending {
            Ending::Failed(_) | Ending::Vanished => tracing::info!(%from, ?ending, "NBD client is gone"),
            _ => tracing::debug!(%from, ?ending, "NBD client has left"),
        }
        drop(permit);
    });
}

/// Runs the handshake. On success the export is open.
async fn shake_hands<S, IO>(io: &mut IO, svc: &S, limits: &Limits) -> Result<(Agreement, Vec<u8>), Ending>
where
    S: Service,
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut handshake = Handshake::default();
    let mut buffer = [0; 4096];
    // For each option anew, so that bytes that trickle in do not keep a connection for ever; their number is
    // bounded as well. Time that we take ourselves does not count.
    let mut deadline = Instant::now() + limits.patience;
    let mut option_count = 0;
    loop {
        if handshake.option_count() != option_count {
            option_count = handshake.option_count();
            deadline = Instant::now() + limits.patience;
        }
        match handshake.step() {
            Step::Receive => {
                send(io, handshake.take_output(), deadline).await?;
                let read = timeout_at(deadline, io.read(&mut buffer)).await;
                match read.map_err(|_| Ending::TimedOut)?.map_err(Ending::Failed)? {
                    0 => return Err(Ending::Vanished),
                    count => handshake.receive(&buffer[..count]),
                }
                continue;
            }
            Step::Find(name) => handshake.found(export::find(svc, &name).await),
            Step::FindWithEarlier(name) => {
                handshake.found_with_earlier(export::find_with_earlier(svc, &name).await)
            }
            Step::Open(name) => handshake.opened(export::open(svc, &name).await),
            Step::List => handshake.listed(export::list(svc).await),
            Step::Transmit(agreement) => {
                if let Err(ending) = send(io, handshake.take_output(), deadline).await {
                    export::close(svc, &agreement.export).await;
                    return Err(ending);
                }
                return Ok((agreement, handshake.into_rest()));
            }
            Step::Close(why) => {
                // It may be gone already.
                let _ = send(io, handshake.take_output(), deadline).await;
                return Err(Ending::Refused(why));
            }
        }
        deadline = Instant::now() + limits.patience;
    }
}

async fn send<IO: AsyncWrite + Unpin>(io: &mut IO, bytes: Vec<u8>, deadline: Instant) -> Result<(), Ending> {
    if bytes.is_empty() {
        return Ok(());
    }
    let sent = timeout_at(deadline, async {
        io.write_all(&bytes).await?;
        io.flush().await
    });
    sent.await.map_err(|_| Ending::TimedOut)?.map_err(Ending::Failed)
}

/// Runs the transmission phase until the client is gone and every request has been answered by the service.
async fn transmit<S, IO>(
    io: &mut IO,
    svc: &S,
    agreement: &Agreement,
    receiver: Receiver,
    limits: &Limits,
) -> Ending
where
    S: Service,
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let vid = agreement.export.vid;
    let at = if agreement.export.read_only { Point::Exact } else { Point::Head };
    let start = |question, asked: Asked, cost: u64| {
        // Called at once and not at the first poll: requests start in the order they came.
        let call = |op| svc.call(ClientOp::Volume { vid, at, op });
        let answer = match question {
            Question::Request(op) => Either::Left(call(op).map(Answer::Result)),
            Question::BlockStatus(contexts) => {
                let calls = contexts.into_iter().map(|context| {
                    let call = call(context.subject.question(asked.offset, asked.length));
                    call.map(move |result| (context, result))
                });
                Either::Right(join_all(calls).map(Answer::Statuses))
            }
        };
        async move { (asked, cost, answer.await) }
    };
    let mut transmission = Transmission {
        io,
        start,
        receiver,
        replier: Replier { framing: agreement.framing, export_name: agreement.export.name.clone() },
        limits,
        pending: FuturesUnordered::new(),
        pending_cost: 0,
        outbox: Outbox::default(),
        unflushed: false,
        input_end: None,
        output_failed: false,
        linger: None,
    };
    poll_fn(|cx| transmission.poll(cx)).await
}

/// What a request wants of the service.
enum Question {
    Request(VolumeOp),
    BlockStatus(Vec<metadata::Context>),
}

/// What came of it.
enum Answer {
    Result(ClientResult),
    Statuses(Vec<(metadata::Context, ClientResult)>),
}

impl Answer {
    fn is_shutting_down(&self) -> bool {
        let says_so = |result: &ClientResult| matches!(result, Err(ClientError::ShuttingDown));
        match self {
            Answer::Result(result) => says_so(result),
            Answer::Statuses(found) => found.iter().any(|(_, result)| says_so(result)),
        }
    }
}

struct Transmission<'a, IO, Start, F> {
    io: &'a mut IO,
    start: Start,
    receiver: Receiver,
    replier: Replier,
    limits: &'a Limits,
    /// Requests at the service.
    pending: FuturesUnordered<F>,
    /// What they cost together.
    pending_cost: u64,
    outbox: Outbox,
    /// Was something written that may sit in a buffer of `io`?
    unflushed: bool,
    /// Set once nothing more is read.
    input_end: Option<Ending>,
    /// The client takes no replies any more.
    output_failed: bool,
    /// Runs while nothing but sending is left.
    linger: Option<Pin<Box<Sleep>>>,
}

impl<IO, Start, F> Transmission<'_, IO, Start, F>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    Start: Fn(Question, Asked, u64) -> F,
    F: Future<Output = (Asked, u64, Answer)>,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        for _ in 0..ROUND_COUNT_MAX {
            let mut progress = self.take_requests(cx);
            progress |= self.collect(cx);
            progress |= self.send(cx);
            if let Some(ending) = self.ending(cx) {
                return Poll::Ready(ending);
            }
            if !progress {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Starts what was received, then reads once. Is there more to look at?
    fn take_requests(&mut self, cx: &mut Context<'_>) -> bool {
        while self.input_end.is_none() {
            match self.receiver.next(self.room()) {
                Next::Request { asked, op, cost } => self.begin(Question::Request(op), asked, cost),
                Next::BlockStatus { asked, contexts, cost } => {
                    self.begin(Question::BlockStatus(contexts), asked, cost)
                }
                Next::Nothing(asked) => self.replier.succeed(&mut self.outbox, &asked),
                Next::Refused(asked, errno, why) => self.replier.refuse(&mut self.outbox, &asked, errno, why),
                Next::Disconnect => self.input_end = Some(Ending::Disconnected),
                Next::Broken(why) => self.input_end = Some(Ending::Refused(why)),
                // Whatever makes room wakes us: a request that ends, or a reply that is fetched.
                Next::NoRoom => return false,
                Next::Receive => return self.receive(cx),
            }
        }
        false
    }

    fn begin(&mut self, question: Question, asked: Asked, cost: u64) {
        self.pending_cost += cost;
        self.pending.push((self.start)(question, asked, cost));
    }

    fn receive(&mut self, cx: &mut Context<'_>) -> bool {
        let read = match self.receiver.space() {
            Space::Payload(payload) => poll_fill(payload, self.io, cx),
            Space::Buffer(space) => {
                let mut space = ReadBuf::new(space);
                let read = Pin::new(&mut *self.io).poll_read(cx, &mut space);
                let count = space.filled().len();
                self.receiver.received(count);
                read.map_ok(|()| count)
            }
        };
        match read {
            Poll::Pending => return false,
            Poll::Ready(Ok(0)) if self.receiver.at_boundary() => self.input_end = Some(Ending::Disconnected),
            Poll::Ready(Ok(0)) => self.input_end = Some(Ending::Vanished),
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => self.input_end = Some(Ending::Failed(error)),
        }
        true
    }

    /// How much the next request may cost.
    fn room(&self) -> u64 {
        let used = self.pending_cost + self.outbox.len();
        if used == 0 {
            // However small the limit, one request is let in.
            return u64::MAX;
        }
        if self.pending.len() >= self.limits.requests || self.outbox.inline_bytes() > REPLY_HEADER_BYTES_MAX {
            return 0;
        }
        self.limits.payload_bytes.saturating_sub(used)
    }

    /// Turns finished requests into replies.
    fn collect(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while let Poll::Ready(Some((asked, cost, answer))) = self.pending.poll_next_unpin(cx) {
            progress = true;
            self.pending_cost -= cost;
            if answer.is_shutting_down() {
                // QEMU and the kernel pass any error on to the guest, ESHUTDOWN too, and its file system is read-only from then on. A
                // connection that ends makes them come back, if they are told to, and repeat what was not answered: that is safe
                // whether it was carried out or not.
                self.input_end.get_or_insert(Ending::ShutDown);
            } else if !self.output_failed {
                // The service has answered: for a write this is the moment at which it is durable, or (in write-back mode) in the memory of all copies.
                match answer {
                    Answer::Result(result) => self.replier.reply(&mut self.outbox, &asked, result),
                    Answer::Statuses(found) => self.replier.reply_status(&mut self.outbox, &asked, found),
                }
            }
        }
        progress
    }

    /// Sends what is there until the client takes no more.
    fn send(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while !self.outbox.is_empty() {
            let mut slices = Outbox::no_slices();
            let count = self.outbox.slices(&mut slices);
            match Pin::new(&mut *self.io).poll_write_vectored(cx, &slices[..count]) {
                Poll::Pending => return progress,
                Poll::Ready(Ok(0)) => self.fail_output(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => {
                    self.outbox.sent(count);
                    self.unflushed = true;
                }
                Poll::Ready(Err(error)) => self.fail_output(error),
            }
            progress = true;
        }
        if self.unflushed {
            match Pin::new(&mut *self.io).poll_flush(cx) {
                Poll::Pending => return progress,
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => self.fail_output(error),
            }
        }
        progress
    }

    /// A client that takes no replies gets no more requests carried out.
    fn fail_output(&mut self, error: io::Error) {
        self.output_failed = true;
        self.unflushed = false;
        self.outbox = Outbox::default();
        self.input_end.get_or_insert(Ending::Failed(error));
    }

    /// Is everything done?
    fn ending(&mut self, cx: &mut Context<'_>) -> Option<Ending> {
        if self.input_end.is_none() || !self.pending.is_empty() {
            return None;
        }
        if self.outbox.is_empty() && !self.unflushed {
            return self.input_end.take();
        }
        let patience = self.limits.patience;
        let linger = self.linger.get_or_insert_with(|| Box::pin(sleep(patience)));
        linger.as_mut().poll(cx).is_ready().then_some(Ending::TimedOut)
    }
}
