//! The transmission phase, towards us: bytes of the client become checked requests.
//!
//! Bytes go in where [`Receiver::space`] says; [`Receiver::next`] offers what they mean. A write is offered once its
//! payload is complete, never before: a client that vanishes in between has written nothing. Memory is one receive
//! buffer and one payload, and a payload is only allocated when the caller has room for it.

use buffer::AlignedBuf;
use proto::BLOCK_BYTES;
use proto::client::{IO_BYTES_MAX, VolumeOp};

use super::context::Context;
use super::handshake::Agreement;
use super::wire::{self, Errno, Framing, RequestHeader, command, command_flag as flag};

/// Holds a batch of small requests; larger payloads bypass it.
const BUFFER_BYTES: usize = 64 << 10;
/// A payload of which more than this is missing is received in place. Below it a copy is cheaper than
/// another system call.
const DIRECT_BYTES_MIN: usize = 16 << 10;
/// Payloads of refused requests are thrown away up to this length; for more the connection is closed.
const DRAINED_BYTES_MAX: u64 = 2 * IO_BYTES_MAX as u64;
/// A filter of BLOCK_STATUS: effect length, then ids of contexts.
const FILTER_HEAD_BYTES: u64 = 8;
const FILTER_ID_BYTES: u64 = 4;

/// What was asked, as far as the reply needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    pub cookie: u64,
    pub offset: u64,
    pub length: u64,
    pub form: Form,
}

/// Form of a successful reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Nothing but success.
    Plain,
    Read {
        /// In one piece.
        unfragmented: bool,
    },
    BlockStatus {
        /// One extent is enough.
        only_first: bool,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// More bytes are needed, at `space`.
    Receive,
    /// The next request does not fit into the room given.
    NoRoom,
    /// A request to carry out.
    Request { asked: Asked, op: VolumeOp, cost: u64 },
    /// Block status in each of these contexts.
    BlockStatus { asked: Asked, contexts: Vec<Context>, cost: u64 },
    /// A request that succeeds without any work.
    Nothing(Asked),
    /// A bad request, whose payload is out of the way.
    Refused(Asked, Errno, &'static str),
    /// The client says good-bye.
    Disconnect,
    /// Bytes that cannot be understood: the connection must end.
    Broken(&'static str),
}

/// Where to put the next bytes.
pub enum Space<'a> {
    Buffer(&'a mut [u8]),
    Payload(&'a mut AlignedBuf),
}

enum State {
    Header,
    /// A checked request waits for room.
    Ready(RequestHeader),
    Payload {
        header: RequestHeader,
        buffer: AlignedBuf,
    },
    Drain {
        asked: Asked,
        left: u64,
        errno: Errno,
        message: &'static str,
    },
    Ended(Option<&'static str>),
}

/// What a header asks for, before its payload.
enum Verdict {
    Good,
    Bad(Errno, &'static str),
}

pub struct Receiver {
    framing: Framing,
    size: u64,
    read_only: bool,
    contexts: Vec<Context>,
    /// Writes without FUA need not be durable when they are answered.
    write_back: bool,
    state: State,
    buffer: Box<[u8]>,
    /// What of the buffer is received and not consumed.
    filled: std::ops::Range<usize>,
}

impl Receiver {
    /// What is written without FUA may be acknowledged before it is durable.
    pub fn in_write_back_mode(self, write_back: bool) -> Receiver {
        Receiver { write_back, ..self }
    }

    /// `rest`: what was received after the handshake already.
    pub fn new(agreement: &Agreement, rest: &[u8]) -> Receiver {
        let mut buffer = vec![0; BUFFER_BYTES.max(rest.len())].into_boxed_slice();
        buffer[..rest.len()].copy_from_slice(rest);
        Receiver {
            framing: agreement.framing,
            size: agreement.export.size,
            read_only: agreement.export.read_only,
            contexts: agreement.contexts.clone(),
            write_back: false,
            state: State::Header,
            buffer,
            filled: 0..rest.len(),
        }
    }

    /// Where the next bytes belong. After `Next::Receive` there is some.
    pub fn space(&mut self) -> Space<'_> {
        if let State::Payload { buffer, .. } = &mut self.state
            && self.filled.is_empty()
            && buffer.remaining() >= DIRECT_BYTES_MIN
        {
            return Space::Payload(buffer);
        }
        if self.filled.is_empty() {
            self.filled = 0..0;
        } else if self.filled.start > 0 {
            // A part of a header: a few bytes.
            self.buffer.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        Space::Buffer(&mut self.buffer[self.filled.end..])
    }

    /// `count` bytes were put into `Space::Buffer`. (A payload counts by itself.)
    pub fn received(&mut self, count: usize) {
        self.filled.end += count;
        assert!(self.filled.end <= self.buffer.len());
    }

    /// Is nothing of a request received? Only there may a connection end cleanly.
    pub fn at_boundary(&self) -> bool {
        matches!(self.state, State::Header | State::Ended(None)) && self.filled.is_empty()
    }

    /// Bytes of payload under way.
    pub fn held_bytes(&self) -> u64 {
        match &self.state {
            State::Payload { header, .. } => header.length,
            _ => 0,
        }
    }

    /// What the bytes received so far mean. A request that costs more than `room` bytes waits for more room;
    /// each costs at least one.
    pub fn next(&mut self, room: u64) -> Next {
        loop {
            match &mut self.state {
                State::Header => {
                    let Some(bytes) = self.buffer[self.filled.clone()].get(..self.framing.request_bytes())
                    else {
                        return Next::Receive;
                    };
                    let header = RequestHeader::decode(self.framing, bytes);
                    self.filled.start += self.framing.request_bytes();
                    self.state = match header {
                        None => State::Ended(Some("no request where one must be")),
                        Some(header) if header.command == command::DISC => State::Ended(None),
                        Some(header) => State::Ready(header),
                    };
                }
                State::Ready(header) => {
                    let header = *header;
                    match self.admit(header, room) {
                        Some(next) => return next,
                        None => continue,
                    }
                }
                State::Payload { buffer, .. } => {
                    let count = self.filled.len().min(buffer.remaining());
                    buffer.extend_from_slice(&self.buffer[self.filled.start..][..count]);
                    self.filled.start += count;
                    if buffer.remaining() > 0 {
                        return Next::Receive;
                    }
                    return self.finish_payload();
                }
                State::Drain { asked, left, errno, message } => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(self.filled.len());
                    self.filled.start += count;
                    *left -= count as u64;
                    if *left > 0 {
                        return Next::Receive;
                    }
                    let refused = Next::Refused(*asked, *errno, message);
                    self.state = State::Header;
                    return refused;
                }
                State::Ended(None) => return Next::Disconnect,
                State::Ended(Some(why)) => return Next::Broken(why),
            }
        }
    }

    /// Starts on a request, if there is room.
    fn admit(&mut self, header: RequestHeader, room: u64) -> Option<Next> {
        let Some(payload) = self.payload_bytes(&header) else {
            // Whether a payload follows is anybody's guess, and a wrong guess would take data for requests.
            self.state = State::Ended(Some("write without payload length"));
            return None;
        };
        let asked = self.asked(&header);
        match self.check(&header) {
            // Each refusal costs as little as the smallest request, but is not free.
            Verdict::Bad(..) if room == 0 => Some(Next::NoRoom),
            Verdict::Bad(..) if payload > DRAINED_BYTES_MAX => {
                self.state = State::Ended(Some("payload too long"));
                None
            }
            Verdict::Bad(errno, message) => {
                self.state = State::Drain { asked, left: payload, errno, message };
                None
            }
            Verdict::Good if cost(&header) > room => Some(Next::NoRoom),
            Verdict::Good if payload > 0 => {
                // A write lands so that what is aligned on the VDI is aligned in memory.
                let is_write = header.command == command::WRITE;
                let lead = if is_write { header.offset as usize % BLOCK_BYTES } else { 0 };
                // `check` has bounded it by IO_BYTES_MAX.
                let mut buffer = AlignedBuf::with_capacity(lead + payload as usize);
                buffer.extend_with_zeros(lead);
                self.state = State::Payload { header, buffer };
                None
            }
            Verdict::Good => {
                self.state = State::Header;
                Some(self.plan(&header, asked))
            }
        }
    }

    /// Bytes that follow the header. `None`: that cannot be known.
    fn payload_bytes(&self, header: &RequestHeader) -> Option<u64> {
        let declared = header.flags & flag::PAYLOAD_LEN != 0;
        match (self.framing, header.command) {
            (Framing::Extended, command::WRITE) => declared.then_some(header.length),
            (Framing::Extended, _) => Some(if declared { header.length } else { 0 }),
            (_, command::WRITE) => Some(header.length),
            (_, _) => Some(0),
        }
    }

    fn asked(&self, header: &RequestHeader) -> Asked {
        let has = |wanted: u16| header.flags & wanted != 0;
        let form = match header.command {
            command::READ => Form::Read { unfragmented: has(flag::DF) },
            command::BLOCK_STATUS => Form::BlockStatus { only_first: has(flag::REQ_ONE) },
            _ => Form::Plain,
        };
        Asked { cookie: header.cookie, offset: header.offset, length: header.length, form }
    }

    /// Judges a header as far as that is possible without its payload.
    fn check(&self, header: &RequestHeader) -> Verdict {
        let invalid = |message| Verdict::Bad(Errno::Invalid, message);
        let changes = matches!(header.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        let known_flags = flag::FUA
            | match header.command {
                command::READ if self.framing != Framing::Simple => flag::DF,
                command::WRITE if self.framing == Framing::Extended => flag::PAYLOAD_LEN,
                command::WRITE_ZEROES => flag::NO_HOLE | flag::FAST_ZERO,
                command::BLOCK_STATUS if self.framing == Framing::Extended => {
                    flag::REQ_ONE | flag::PAYLOAD_LEN
                }
                command::BLOCK_STATUS => flag::REQ_ONE,
                _ => 0,
            };
        match header.command {
            command::READ
            | command::WRITE
            | command::FLUSH
            | command::TRIM
            | command::CACHE
            | command::WRITE_ZEROES
            | command::BLOCK_STATUS => {}
            _ => return invalid("unknown command"),
        }
        if header.flags & !known_flags != 0 {
            return invalid("unknown flag");
        }
        if changes && self.read_only {
            return Verdict::Bad(Errno::NotPermitted, "export is read-only");
        }
        if matches!(header.command, command::READ | command::WRITE) && header.length > u64::from(IO_BYTES_MAX)
        {
            return invalid("longer than 32 MiB");
        }
        if header.command == command::BLOCK_STATUS {
            if self.contexts.is_empty() {
                return invalid("no metadata context was set");
            }
            if header.flags & flag::PAYLOAD_LEN != 0 {
                // The effect length comes with the payload.
                return match self.is_filter_length(header.length) {
                    true => Verdict::Good,
                    false => invalid("not the length of a filter of metadata contexts"),
                };
            }
            if header.length == 0 {
                return invalid("block status of nothing");
            }
        }
        if header.command != command::FLUSH && !self.in_range(header.offset, header.length) {
            let errno = match header.command {
                command::WRITE | command::WRITE_ZEROES => Errno::NoSpace,
                _ => Errno::Invalid,
            };
            return Verdict::Bad(errno, "beyond the end of the export");
        }
        Verdict::Good
    }

    /// Of at least one context, and of no more than were chosen.
    fn is_filter_length(&self, length: u64) -> bool {
        let ids = length.saturating_sub(FILTER_HEAD_BYTES);
        let most = self.contexts.len() as u64 * FILTER_ID_BYTES;
        ids.is_multiple_of(FILTER_ID_BYTES) && (FILTER_ID_BYTES..=most).contains(&ids)
    }

    fn in_range(&self, offset: u64, length: u64) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.size)
    }

    fn finish_payload(&mut self) -> Next {
        let State::Payload { header, buffer } = std::mem::replace(&mut self.state, State::Header) else {
            panic!("finished a payload that was not being received");
        };
        let mut asked = self.asked(&header);
        if header.command == command::WRITE {
            let lead = header.offset as usize % BLOCK_BYTES;
            let data = buffer.freeze().slice(lead..);
            assert_eq!(data.len() as u64, header.length);
            let offset = header.offset;
            let op = match self.write_back && header.flags & flag::FUA == 0 {
                true => VolumeOp::WriteBack { offset, data },
                false => VolumeOp::Write { offset, data },
            };
            return Next::Request { asked, op, cost: cost(&header) };
        }
        asked.length = wire::u64_at(&buffer, 0);
        let Some(contexts) = self.filtered(&buffer[FILTER_HEAD_BYTES as usize..]) else {
            return Next::Refused(asked, Errno::Invalid, "unknown metadata context in the filter");
        };
        if asked.length == 0 {
            Next::Refused(asked, Errno::Invalid, "block status of nothing")
        } else if !self.in_range(asked.offset, asked.length) {
            Next::Refused(asked, Errno::Invalid, "beyond the end of the export")
        } else {
            Next::BlockStatus { asked, cost: contexts.len() as u64, contexts }
        }
    }

    /// The chosen contexts that a filter names, in the order of their ids. `None`: it names another one, or one twice.
    fn filtered(&self, ids: &[u8]) -> Option<Vec<Context>> {
        let ids: Vec<u32> = ids.chunks_exact(4).map(|id| wire::u32_at(id, 0)).collect();
        let named = |context: &&Context| ids.contains(&context.id);
        let contexts: Vec<Context> = self.contexts.iter().filter(named).copied().collect();
        (contexts.len() == ids.len()).then_some(contexts)
    }

    /// The order for a good request without payload.
    fn plan(&self, header: &RequestHeader, asked: Asked) -> Next {
        let RequestHeader { flags, offset, length, .. } = *header;
        if length == 0 && header.command != command::FLUSH {
            return Next::Nothing(asked);
        }
        let op = match header.command {
            // `check` has bounded the length.
            command::READ => VolumeOp::Read { offset, len: length as u32 },
            command::FLUSH => VolumeOp::Flush,
            command::TRIM => VolumeOp::Discard { offset, len: length },
            command::WRITE_ZEROES => {
                // FAST_ZERO asks for failure where zeroing is as slow as writing. It never is here.
                VolumeOp::WriteZeroes { offset, len: length, keep_allocated: flags & flag::NO_HOLE != 0 }
            }
            command::BLOCK_STATUS => {
                let contexts = self.contexts.clone();
                return Next::BlockStatus { asked, cost: contexts.len() as u64, contexts };
            }
            // CACHE is advice; the range was checked.
            _ => return Next::Nothing(asked),
        };
        Next::Request { asked, op, cost: cost(header) }
    }
}

/// Memory that a request binds until it is answered.
fn cost(header: &RequestHeader) -> u64 {
    match header.command {
        command::READ | command::WRITE => header.length.max(1),
        _ => 1,
    }
}
