//! Links between sheep: one TCP connection from each sender to each receiver.
//!
//! The sender dials when there is something to say, says who it is, and writes frames; nothing ever comes back on that
//! connection (answers come on the receiver's own link). When it breaks, everything queued for it is lost, and the
//! node is told: [`Event::Reset`]. A receiver that finds anything wrong closes the connection, which the sender
//! notices. What arrives damaged is never seen by the node: the control part has a checksum, and every 4 KiB block of a
//! payload that goes to or comes from a disk is compared with the checksum made by whoever owns the data.
//!
//! Bounds: a queue holds [`QUEUE_BYTES_MAX`], then the link is given up (a peer that does not read for so long
//! is as good as gone); a frame's sizes are checked before memory is taken for them.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::time::Duration;

use buffer::AlignedBuf;
use bytes::Bytes;
use front::fill::poll_fill;
use proto::checksum::{block_checksums, crc32c};
use proto::object::Change;
use proto::peer::{
    FRAME_HEAD_BYTES, Fetched, FrameError, FrameHead, HELLO_MAGIC, Hello, PeerMessage, PeerReply, PeerRequest,
};
use proto::{BLOCK_BYTES, NodeId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until, timeout};

/// Two of the largest payloads, and room for much that is small.
pub const QUEUE_BYTES_MAX: usize = 128 << 20;
/// What a message costs beyond its bytes: a bound on many empty ones.
const MESSAGE_OVERHEAD_BYTES: usize = 256;
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// Time for a caller to say who it is.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);
const HELLO_BYTES_MAX: u32 = 1024;
/// Unacknowledged bytes for so long end a connection: the machine at the other end is gone, or the way to it.
const UNACKNOWLEDGED_PATIENCE: Duration = Duration::from_secs(4);
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
const READ_BUFFER_BYTES: usize = 64 << 10;
/// Pieces handed to one writev.
const PIECES_MAX: usize = 64;

/// What links tell the shell.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Everything that was sent to this peer and not answered may be lost.
    Reset(NodeId),
}

/// All outgoing links. Clones share them.
#[derive(Clone)]
pub struct Links {
    own: NodeId,
    shared: Rc<RefCell<BTreeMap<NodeId, Peer>>>,
    events: mpsc::UnboundedSender<Event>,
}

struct Peer {
    link: Option<Rc<Link>>,
    /// Not before this moment: the last link failed.
    dial_at: Instant,
    backoff: Duration,
}

/// One connection, from the first message for it to its end.
struct Link {
    queue: RefCell<Queue>,
    news: Notify,
    /// The peer does not read.
    given_up: Notify,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<(Bytes, Bytes)>,
    bytes: usize,
}

impl Links {
    /// To be used within a `LocalSet`. At most one event per link waits in the channel.
    pub fn new(own: NodeId) -> (Links, mpsc::UnboundedReceiver<Event>) {
        let (events, receiver) = mpsc::unbounded_channel();
        (Links { own, shared: Rc::default(), events }, receiver)
    }

    /// Queues a message, dialling if there is no link. It is lost only together with the link.
    pub fn send(&self, to: NodeId, message: &PeerMessage) {
        let (control, payload) = message.encode();
        let cost = control.len() + payload.len() + MESSAGE_OVERHEAD_BYTES;
        let link = self.link(to);
        let mut queue = link.queue.borrow_mut();
        queue.bytes += cost;
        queue.frames.push_back((control, payload));
        if queue.bytes > QUEUE_BYTES_MAX {
            tracing::warn!("peer {to} does not read: giving its link up");
            queue.frames.clear();
            link.given_up.notify_one();
        }
        drop(queue);
        link.news.notify_one();
    }

    fn link(&self, to: NodeId) -> Rc<Link> {
        let mut peers = self.shared.borrow_mut();
        let peer = peers.entry(to).or_insert_with(|| Peer {
            link: None,
            dial_at: Instant::now(),
            backoff: BACKOFF_MIN,
        });
        if let Some(link) = &peer.link {
            return link.clone();
        }
        let link = Rc::new(Link { queue: RefCell::default(), news: Notify::new(), given_up: Notify::new() });
        peer.link = Some(link.clone());
        let (links, dial_at, carried) = (self.clone(), peer.dial_at, link.clone());
        tokio::task::spawn_local(async move { links.carry(to, carried, dial_at).await });
        link
    }

    /// The life of a link.
    async fn carry(self, to: NodeId, link: Rc<Link>, dial_at: Instant) {
        sleep_until(dial_at).await;
        let mut connected = false;
        let error = match dial(self.own, to).await {
            Ok(stream) => {
                connected = true;
                tracing::debug!("link to peer {to} is up");
                write_frames(stream, &link).await
            }
            Err(error) => error,
        };
        if connected {
            tracing::info!("link to peer {to} is lost: {error}");
        } else {
            tracing::debug!("no link to peer {to}: {error}");
        }
        if let Some(peer) = self.shared.borrow_mut().get_mut(&to) {
            peer.link = None;
            peer.backoff = if connected { BACKOFF_MIN } else { (peer.backoff * 2).min(BACKOFF_MAX) };
            peer.dial_at = Instant::now() + peer.backoff;
        }
        // Nobody listens any more when the sheep ends.
        let _ = self.events.send(Event::Reset(to));
    }
}

async fn dial(own: NodeId, to: NodeId) -> io::Result<TcpStream> {
    let mut stream = timeout(CONNECT_PATIENCE, TcpStream::connect(to.socket_addr())).await??;
    prepare(&stream)?;
    let control = postcard::to_stdvec(&Hello { from: own, to }).expect("a hello has no unencodable parts");
    let head =
        FrameHead { control_bytes: control.len() as u32, payload_bytes: 0, control_crc: crc32c(&control) };
    let hello = [&HELLO_MAGIC[..], &head.encode(), &control].concat();
    timeout(HELLO_PATIENCE, stream.write_all(&hello)).await??;
    Ok(stream)
}

/// Options of both ends.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let patience = UNACKNOWLEDGED_PATIENCE.as_millis() as u32;
    rustix::net::sockopt::set_tcp_user_timeout(stream, patience)?;
    // The same for a link with nothing to say.
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(stream, Duration::from_secs(2))?;
    rustix::net::sockopt::set_tcp_keepintvl(stream, Duration::from_secs(1))?;
    Ok(())
}

/// Writes what is queued until the link ends, and says why it did.
async fn write_frames(mut stream: TcpStream, link: &Link) -> io::Error {
    let (mut read, mut write) = stream.split();
    let writing = async {
        let mut pieces: VecDeque<Bytes> = VecDeque::new();
        loop {
            link.news.notified().await;
            loop {
                {
                    let mut queue = link.queue.borrow_mut();
                    while pieces.len() < PIECES_MAX {
                        let Some((control, payload)) = queue.frames.pop_front() else { break };
                        pieces.push_back(control);
                        if !payload.is_empty() {
                            pieces.push_back(payload);
                        }
                    }
                }
                if pieces.is_empty() {
                    break;
                }
                let before: usize = pieces.iter().map(Bytes::len).sum();
                if let Err(error) = write_some(&mut write, &mut pieces).await {
                    return error;
                }
                let after: usize = pieces.iter().map(Bytes::len).sum();
                let mut queue = link.queue.borrow_mut();
                queue.bytes = queue.bytes.saturating_sub(before - after);
                if pieces.is_empty() && queue.frames.is_empty() {
                    queue.bytes = 0;
                }
            }
        }
    };
    let ended = async {
        // The peer never writes: whatever comes is the end.
        match read.read(&mut [0; 1]).await {
            Ok(0) => io::ErrorKind::ConnectionReset.into(),
            Ok(_) => io::Error::new(io::ErrorKind::InvalidData, "the peer answered on a one-way link"),
            Err(error) => error,
        }
    };
    tokio::select! {
        biased;
        () = link.given_up.notified() => io::Error::new(io::ErrorKind::TimedOut, "the peer does not read"),
        error = ended => error,
        error = writing => error,
    }
}

/// One writev.
async fn write_some(write: &mut (impl AsyncWrite + Unpin), pieces: &mut VecDeque<Bytes>) -> io::Result<()> {
    let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut written = write.write_vectored(&slices).await?;
    if written == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    while written > 0 {
        let piece = pieces.front_mut().expect("no more is written than there was");
        let from_this = written.min(piece.len());
        bytes::Buf::advance(piece, from_this);
        written -= from_this;
        if piece.is_empty() {
            pieces.pop_front();
        }
    }
    Ok(())
}

/// Why a link from a peer ended.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error("the connection was closed in the middle of a message")]
    CutShort,
    #[error(transparent)]
    Io(io::Error),
    #[error("the caller did not say who it is")]
    NoHello,
    #[error("the caller wanted {0}, which is somebody else")]
    NotMe(NodeId),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("block {block} of the payload does not match its checksum")]
    Payload { block: usize },
    #[error("{blocks} blocks and {checksums} checksums came with {bytes} bytes of payload")]
    PayloadSize { blocks: usize, checksums: usize, bytes: usize },
}

/// Frames from one peer.
pub struct Receiver<R> {
    pub from: NodeId,
    input: BufReader<R>,
}

impl Receiver<TcpStream> {
    pub async fn accept(stream: TcpStream, own: NodeId) -> Result<Receiver<TcpStream>, ReceiveError> {
        prepare(&stream).map_err(ReceiveError::Io)?;
        timeout(HELLO_PATIENCE, Receiver::greet(stream, own)).await.unwrap_or(Err(ReceiveError::NoHello))
    }
}

impl<R: AsyncRead + Unpin> Receiver<R> {
    /// Hears who is calling.
    pub async fn greet(input: R, own: NodeId) -> Result<Receiver<R>, ReceiveError> {
        let mut input = BufReader::with_capacity(READ_BUFFER_BYTES, input);
        let mut magic = [0; HELLO_MAGIC.len()];
        read_exact(&mut input, &mut magic).await?;
        if magic != HELLO_MAGIC {
            return Err(ReceiveError::NoHello);
        }
        let mut head = [0; FRAME_HEAD_BYTES];
        read_exact(&mut input, &mut head).await?;
        let head = FrameHead::decode(&head)?;
        if head.control_bytes > HELLO_BYTES_MAX || head.payload_bytes > 0 {
            return Err(ReceiveError::NoHello);
        }
        let mut control = vec![0; head.control_bytes as usize];
        read_exact(&mut input, &mut control).await?;
        let got = crc32c(&control);
        if got != head.control_crc {
            return Err(FrameError::Checksum { expected: head.control_crc, got }.into());
        }
        let hello: Hello = postcard::from_bytes(&control).map_err(|_| FrameError::Malformed)?;
        if hello.to != own {
            return Err(ReceiveError::NotMe(hello.to));
        }
        Ok(Receiver { from: hello.from, input })
    }

    /// The next message, its payload in memory that a disk can take; `None` when the peer has closed the link.
    pub async fn receive(&mut self) -> Result<Option<PeerMessage>, ReceiveError> {
        let mut head = [0; FRAME_HEAD_BYTES];
        let first = self.input.read(&mut head).await.map_err(ReceiveError::Io)?;
        if first == 0 {
            return Ok(None);
        }
        read_exact(&mut self.input, &mut head[first..]).await?;
        let head = FrameHead::decode(&head)?;
        let mut control = vec![0; head.control_bytes as usize];
        read_exact(&mut self.input, &mut control).await?;
        let mut payload = AlignedBuf::with_capacity(head.payload_bytes as usize);
        while payload.remaining() > 0 {
            let count = poll_fn(|cx| poll_fill(&mut payload, &mut self.input, cx)).await;
            if count.map_err(ReceiveError::Io)? == 0 {
                return Err(ReceiveError::CutShort);
            }
        }
        let message = PeerMessage::decode(&head, &control, payload.freeze())?;
        verify(&message)?;
        Ok(Some(message))
    }
}

async fn read_exact(input: &mut (impl AsyncRead + Unpin), into: &mut [u8]) -> Result<(), ReceiveError> {
    match input.read_exact(into).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(ReceiveError::CutShort),
        Err(error) => Err(ReceiveError::Io(error)),
    }
}

/// Compares payloads of blocks with the checksums that came with them.
fn verify(message: &PeerMessage) -> Result<(), ReceiveError> {
    let (data, checksums, blocks) = match message {
        PeerMessage::Request { body: PeerRequest::Change { change, data, .. }, .. } => match change {
            Change::Write { blocks, checksums, .. } => (data, checksums.as_slice(), blocks.count as usize),
            _ => (data, &[][..], 0),
        },
        PeerMessage::Request { body: PeerRequest::Mend { blocks, checksums, data, .. }, .. } => {
            (data, checksums.as_slice(), blocks.count as usize)
        }
        PeerMessage::Reply { body: PeerReply::Data { checksums, data }, .. } => {
            (data, checksums.as_slice(), checksums.len())
        }
        PeerMessage::Reply { body: PeerReply::Fetched { found, data, .. }, .. } => match found {
            Fetched::Blocks(checksums) => (data, checksums.as_slice(), checksums.len()),
            Fetched::Absent | Fetched::Removed | Fetched::Length(_) | Fetched::Damaged(_) => {
                (data, &[][..], 0)
            }
        },
        _ => return Ok(()),
    };
    if blocks != checksums.len() || Some(data.len()) != blocks.checked_mul(BLOCK_BYTES) {
        return Err(ReceiveError::PayloadSize { blocks, checksums: checksums.len(), bytes: data.len() });
    }
    match block_checksums(data).iter().zip(checksums).position(|(got, expected)| got != expected) {
        None => Ok(()),
        Some(block) => Err(ReceiveError::Payload { block }),
    }
}

#[cfg(test)]
mod tests;
