//! Serves front-ends: moves their messages, and carries out the guests' requests against the [`Service`].
//!
//! One task per connection does everything for it, in one thread. One front-end is served at a time: a device belongs to
//! one guest. However a connection ends, its requests are awaited, then the VDI is closed, and only then is the next one
//! served: what that submits again comes after what this one had asked.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use buffer::AlignedBuf;
use futures_util::StreamExt;
use futures_util::future::{self, Either};
use futures_util::stream::FuturesUnordered;
use proto::client::{ClientError, ClientOp, ClientReply, ClientResult, IO_BYTES_MAX, Point, VolumeOp};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::sleep;

use super::blk::{self, Geometry, Status, Wish};
use super::channel::{Channel, Message};
use super::device::{Answer, Device, Shown};
use super::fence::Fence;
use super::queue::Taken;
use super::seat::Seat;
use super::wire;
use crate::Service;
use crate::guests::{Guests, program_at};
use crate::nbd::export::{self, Export};

/// Rounds of looking at everything before other tasks get their turn.
const ROUND_COUNT_MAX: u32 = 32;
/// Requests taken in one round.
const TAKEN_COUNT_MAX: u32 = 256;
/// Pause after a failed accept: the usual cause is that file descriptors ran out, and nothing tells when there are some again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What one guest may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests under way, and among them changes that wait for others which they overlap, before no more are looked at.
    pub requests: usize,
    pub overlapping: usize,
    /// Payload of requests under way, before no more are looked at. The last one let in may exceed it.
    pub payload_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        // Two of the largest requests overlap.
        Limits { requests: 1024, overlapping: 128, payload_bytes: 2 * u64::from(IO_BYTES_MAX) }
    }
}

/// How a connection ended.
#[derive(Debug)]
pub enum Ending {
    /// The front-end has closed it.
    Disconnected,
    /// The VDI cannot be had.
    Refused(&'static str),
    /// The front-end broke the protocol.
    Broken(String),
    Failed(io::Error),
}

/// Serves the front-ends of one VDI, or of a snapshot, `name` as NBD names them, until the task is dropped, or `seat` is closed and
/// somebody comes. While the seat is taken the task must not be dropped.
pub async fn serve<S: Service>(
    listener: UnixListener,
    name: Vec<u8>,
    svc: S,
    limits: Limits,
    guests: Guests,
    seat: Seat,
) {
    let shown_name = String::from_utf8_lossy(&name).into_owned();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a vhost-user guest");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let client = program_at(&stream);
        if !seat.take() {
            return;
        }
        let ending = serve_connection(stream, &name, &svc, limits, &guests).await;
        seat.leave();
        match ending {
            Ending::Disconnected => tracing::debug!("{client}: has left {shown_name}"),
            Ending::Refused(why) => tracing::info!("{client}: cannot have {shown_name}: {why}"),
            Ending::Broken(why) => tracing::warn!("{client}: broke vhost-user at {shown_name}: {why}"),
            Ending::Failed(error) => tracing::info!("{client}: is gone from {shown_name}: {error}"),
        }
    }
}

/// Serves one front-end. Run it to its end: only then is the VDI closed.
pub async fn serve_connection<S: Service>(
    stream: UnixStream,
    name: &[u8],
    svc: &S,
    limits: Limits,
    guests: &Guests,
) -> Ending {
    let export = match export::open(svc, name).await {
        Ok(export) => export,
        Err(refusal) => return Ending::Refused(refusal.message),
    };
    let working: &[u8] = if export.read_only { b"" } else { &export.name };
    let _stay = guests.enter(export.vid, working, &program_at(&stream));
    let shown = Rc::new(Shown::default());
    shown.volume.set(Some(Geometry { bytes: export.size, read_only: export.read_only }));
    let ending = {
        let transmitted = transmit(stream, &export, svc, limits, shown.clone());
        let watched = watch_size(svc, &export, &shown);
        match future::select(std::pin::pin!(transmitted), std::pin::pin!(watched)).await {
            Either::Left((ending, _)) => ending,
            Either::Right((never, _)) => match never {},
        }
    };
    export::close(svc, &export).await;
    ending
}

/// Tells the front-end when the volume has grown.
async fn watch_size<S: Service>(svc: &S, export: &Export, shown: &Shown) -> std::convert::Infallible {
    let Some(mut changes) = svc.view_changes() else { return future::pending().await };
    loop {
        if changes.changed().await.is_err() {
            return future::pending().await;
        }
        let Ok(found) = export::find(svc, &export.name).await else { continue };
        let now = Geometry { bytes: found.size, read_only: export.read_only };
        // A volume does not shrink; one that is smaller is another one of this name.
        if shown.volume.get().is_some_and(|before| before.bytes < now.bytes) {
            shown.volume.set(Some(now));
            shown.tell();
        }
    }
}

/// Serves the guest until its front-end is gone and all it asked has been answered by the service.
async fn transmit<S: Service>(
    stream: UnixStream,
    export: &Export,
    svc: &S,
    limits: Limits,
    shown: Rc<Shown>,
) -> Ending {
    let (vid, at) = (export.vid, if export.read_only { Point::Exact } else { Point::Head });
    let start = |op, job: Job| {
        // Called at once and not at the first poll: requests start in the order in which they were taken.
        let call = svc.call(ClientOp::Volume { vid, at, op });
        async move { (job, call.await) }
    };
    let mut transmission = Transmission {
        channel: Channel::new(stream),
        device: Device::new(shown),
        id: blk::id(&export.name),
        start,
        write_back: svc.is_write_back(),
        limits,
        pending: FuturesUnordered::new(),
        pending_bytes: 0,
        fence: Fence::default(),
        base_wanted: None,
        greeted: false,
    };
    let ending = poll_fn(|cx| transmission.poll(cx)).await;
    // The guest's memory is not touched any more: it may have other uses by now. What was not answered stays noted as under
    // way, and the next one who serves this guest comes after all of it.
    let Transmission { mut pending, .. } = transmission;
    while pending.next().await.is_some() {}
    ending
}

/// A request that is carried out, and its ring.
struct Job {
    queue: usize,
    taken: Taken,
}

struct Transmission<Start, F> {
    channel: Channel,
    device: Device,
    id: [u8; 20],
    start: Start,
    /// Writes need not be durable when they are answered, if the driver flushes.
    write_back: bool,
    limits: Limits,
    /// Requests at the service.
    pending: FuturesUnordered<F>,
    pending_bytes: u64,
    fence: Fence<Job>,
    /// The front-end waits to hear where this ring goes on, and sends nothing else meanwhile.
    base_wanted: Option<usize>,
    /// The volume may have grown while nobody served the guest, and front-ends do not look when they connect again. So the first
    /// request, from which on they listen, has them told.
    greeted: bool,
}

impl<Start, F> Transmission<Start, F>
where
    Start: Fn(VolumeOp, Job) -> F,
    F: Future<Output = (Job, ClientResult)>,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        for _ in 0..ROUND_COUNT_MAX {
            let mut progress = match self.converse(cx) {
                Ok(progress) => progress,
                Err(ending) => return Poll::Ready(ending),
            };
            for ring in self.device.rings() {
                ring.poll_kick(cx);
            }
            progress |= self.take_requests();
            let collected = self.collect(cx);
            self.device.announce();
            match collected {
                Ok(collected) => progress |= collected,
                Err(ending) => return Poll::Ready(ending),
            }
            if !progress {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Hears and answers the front-end.
    fn converse(&mut self, cx: &mut Context<'_>) -> Result<bool, Ending> {
        let mut progress = false;
        loop {
            if let Poll::Ready(result) = self.channel.poll_send(cx) {
                result.map_err(Ending::Failed)?;
            }
            if let Some(queue) = self.base_wanted {
                let Some(base) = self.device.rings()[queue].base() else { return Ok(progress) };
                let reply = wire::QueueNumber { queue: queue as u32, number: base.into() };
                self.reply(wire::request::GET_VRING_BASE, &reply.encode(), None);
                self.base_wanted = None;
                progress = true;
                continue;
            }
            if self.channel.has_unsent() {
                return Ok(progress);
            }
            match self.channel.poll_receive(cx) {
                Poll::Pending => return Ok(progress),
                Poll::Ready(Ok(Some(message))) => self.hear(message)?,
                Poll::Ready(Ok(None)) => return Err(Ending::Disconnected),
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(Ending::Broken(error.to_string()));
                }
                Poll::Ready(Err(error)) => return Err(Ending::Failed(error)),
            }
            progress = true;
        }
    }

    fn hear(&mut self, message: Message) -> Result<(), Ending> {
        let header = message.header;
        let confirm = header.wants_reply() && self.device.confirms();
        let word = |word: u64| word.to_ne_bytes();
        match self.device.handle(message) {
            Ok(Answer::Done) if confirm => self.reply(header.request, &word(0), None),
            Ok(Answer::Done) => {}
            Ok(Answer::Reply(payload)) => self.reply(header.request, &payload, None),
            Ok(Answer::ReplyWithFile(payload, file)) => self.reply(header.request, &payload, Some(file)),
            Ok(Answer::Base(queue)) => self.base_wanted = Some(queue),
            Err(why) if confirm => {
                tracing::warn!(
                    "a vhost-user guest asks what cannot be done, request {}: {why}",
                    header.request
                );
                self.reply(header.request, &word(1), None);
            }
            Err(why) => return Err(Ending::Broken(format!("request {}: {why}", header.request))),
        }
        Ok(())
    }

    fn reply(&mut self, request: u32, payload: &[u8], file: Option<OwnedFd>) {
        self.channel.send(wire::reply(request, payload), file);
    }

    /// Starts what the guest asks. Is there more to look at?
    fn take_requests(&mut self) -> bool {
        for _ in 0..TAKEN_COUNT_MAX {
            if self.is_at_its_limits() {
                // Whatever ends makes room.
                return false;
            }
            let Some((queue, taken)) = self.device.take() else { return false };
            if !std::mem::replace(&mut self.greeted, true) {
                self.device.greet();
            }
            self.admit(Job { queue, taken });
        }
        self.device.has_more()
    }

    fn is_at_its_limits(&self) -> bool {
        let overlapping = self.fence.waiting();
        self.pending_bytes >= self.limits.payload_bytes
            || overlapping >= self.limits.overlapping
            || self.pending.len() + overlapping >= self.limits.requests
    }

    fn admit(&mut self, job: Job) {
        match job.taken.request.wish.changes() {
            None => self.begin(job),
            Some(range) => {
                if let Some(job) = self.fence.begin(range, job) {
                    self.begin(job);
                }
            }
        }
    }

    fn begin(&mut self, job: Job) {
        let op = match job.taken.request.wish {
            Wish::Read { bytes: 0, .. } | Wish::Write { bytes: 0, .. } => {
                return self.end(job, Status::Ok, 0);
            }
            Wish::Discard { bytes: 0, .. } | Wish::WriteZeroes { bytes: 0, .. } => {
                return self.end(job, Status::Ok, 0);
            }
            Wish::Refused(status) => return self.end(job, status, 0),
            Wish::Id => return self.give_id(job),
            Wish::Read { offset, bytes } => VolumeOp::Read { offset, len: bytes },
            Wish::Write { offset, bytes } => match self.gather(&job, offset, bytes) {
                Some(op) => op,
                None => return self.end(job, Status::Failed, 0),
            },
            Wish::Discard { offset, bytes } => VolumeOp::Discard { offset, len: bytes },
            Wish::WriteZeroes { offset, bytes, keep_allocated } => {
                VolumeOp::WriteZeroes { offset, len: bytes, keep_allocated }
            }
            Wish::Flush => VolumeOp::Flush,
        };
        self.pending_bytes += job.taken.request.wish.payload_bytes();
        self.pending.push((self.start)(op, job));
    }

    /// Copies what is to be written, so that what is aligned on the VDI is aligned in memory. `None`: the memory is not there any more.
    fn gather(&self, job: &Job, offset: u64, bytes: u32) -> Option<VolumeOp> {
        let lead = (offset % proto::BLOCK_BYTES as u64) as usize;
        // The length was bounded when the request was judged.
        let mut buffer = AlignedBuf::with_capacity(lead + bytes as usize);
        buffer.extend_with_zeros(lead);
        self.device.memory().gather(&job.taken.request.data, &mut buffer).ok()?;
        let data = buffer.freeze().slice(lead..);
        Some(match self.write_back && self.device.may_flush() {
            true => VolumeOp::WriteBack { offset, data },
            false => VolumeOp::Write { offset, data },
        })
    }

    fn give_id(&mut self, job: Job) {
        let room = super::chain::total_bytes(&job.taken.request.data).min(self.id.len() as u64) as usize;
        let given = self.device.memory().scatter(&job.taken.request.data, &self.id[..room]);
        match given {
            Ok(()) => self.end(job, Status::Ok, room as u32),
            Err(_) => self.end(job, Status::Failed, 0),
        }
    }

    /// Answers what the service has answered.
    fn collect(&mut self, cx: &mut Context<'_>) -> Result<bool, Ending> {
        let mut progress = false;
        while let Poll::Ready(Some((job, result))) = self.pending.poll_next_unpin(cx) {
            progress = true;
            self.pending_bytes -= job.taken.request.wish.payload_bytes();
            // A guest of whom is noted what is under way need not hear that its sheep ends: the next one goes on.
            if matches!(result, Err(ClientError::ShuttingDown)) && self.device.is_noted(job.queue) {
                return Err(Ending::Refused("shutting down"));
            }
            // The service has answered: for a write this is the moment at which it is durable, or in the memory of all copies.
            let (status, written) = self.outcome(&job, result);
            self.end(job, status, written);
        }
        Ok(progress)
    }

    fn outcome(&self, job: &Job, result: ClientResult) -> (Status, u32) {
        match (job.taken.request.wish, result) {
            (Wish::Read { bytes, .. }, Ok(ClientReply::Data(data))) if data.len() == bytes as usize => {
                match self.device.memory().scatter(&job.taken.request.data, &data) {
                    Ok(()) => (Status::Ok, bytes),
                    Err(_) => (Status::Failed, 0),
                }
            }
            (Wish::Read { .. }, Ok(other)) => {
                tracing::error!(len = other.payload().len(), "the answer does not fit the request");
                (Status::Failed, 0)
            }
            (_, Ok(_)) => (Status::Ok, 0),
            (_, Err(ClientError::Unsupported(_))) => (Status::Unsupported, 0),
            (wish, Err(error)) => {
                tracing::debug!(?wish, %error, "a request of a vhost-user guest failed");
                (Status::Failed, 0)
            }
        }
    }

    /// Tells the guest, and begins what waited for this.
    fn end(&mut self, job: Job, status: Status, written: u32) {
        self.device.answer(job.queue, &job.taken, status, written);
        if let Some(range) = job.taken.request.wish.changes() {
            for next in self.fence.end(range) {
                self.begin(next);
            }
        }
    }
}
