//! A blocking connection to one sheep: a request goes out, its reply comes back.
//!
//! Requests may be held while the cluster repairs itself, so their replies are awaited without limit; questions that a sheep answers at once,
//! unless it is stopped, are not ([`Patience`]). Either way stderr tells soon who is waited for. A machine that has died is noticed by TCP
//! keepalive. Nothing is allocated on the word of a reply: its length is checked against what was asked for, and memory grows with
//! the bytes that really arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::context::notice;
use crate::failure::{Failure, Outcome, reason};
use crate::target::Target;

pub const HEADER_BYTES: usize = 48;
const ID_AT: usize = 8;
const LENGTH_AT: usize = 12;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// After this long without an answer, stderr tells who is waited for.
const NOTICE_AFTER: Duration = Duration::from_secs(3);
/// After this long without an answer to what a sheep answers at once, it counts as one that does not answer.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);
/// How often waiting is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Questions that are under way at one time.
const WINDOW: usize = 64;
/// So often nobody may answer in a row of questions before none is waited for.
const SILENCES_MAX: u32 = 4;

/// How long an answer is awaited.
#[derive(Clone, Copy, Debug)]
pub enum Patience {
    /// What a sheep knows itself: one that says nothing is stopped, cut off or overwhelmed.
    Short,
    /// What may have to wait for other sheep.
    Endless,
    /// The same, as long as all that it may wait for answer when they are asked now and then.
    While(Check),
}

/// Says why there is no sense in waiting any longer, if so. May take some seconds itself.
pub type Check = fn(&Target) -> Option<String>;

/// Why a sheep may have a request wait. Said on stderr.
pub type Explain = fn(&Target) -> String;

/// What goes over a link, and the longest answer that makes sense.
pub struct Message<'a> {
    pub header: [u8; HEADER_BYTES],
    pub payload: &'a [u8],
    pub reply_max: usize,
}

pub type Answer = ([u8; HEADER_BYTES], Vec<u8>);

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

pub struct Link {
    stream: Stream,
    target: Target,
    next_id: u32,
    /// `None`: silence is not told of.
    explain: Option<Explain>,
    /// Requests whose answers nobody waits for any more. They may still come.
    abandoned: BTreeSet<u32>,
}

impl Link {
    pub fn connect(target: &Target, explain: Option<Explain>) -> Outcome<Link> {
        let stream = match target {
            Target::Tcp { .. } => connect_tcp(target).map(Stream::Tcp),
            Target::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
        }
        .and_then(|stream| stream.set_timeouts().map(|()| stream))
        .map_err(|error| Failure::system(format!("failed to connect to {target}: {}", reason(&error))))?;
        Ok(Link { stream, target: target.clone(), next_id: 1, explain, abandoned: BTreeSet::new() })
    }

    /// Is the other end on this machine?
    pub fn is_local(&self) -> bool {
        match &self.stream {
            Stream::Unix(_) => true,
            Stream::Tcp(stream) => match (stream.local_addr(), stream.peer_addr()) {
                (Ok(own), Ok(other)) => own.ip() == other.ip() || other.ip().is_loopback(),
                _ => false,
            },
        }
    }

    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Sends a request and waits for its reply.
    pub fn exchange(&mut self, message: &Message, patience: Patience) -> Outcome<Answer> {
        self.try_exchange(message, patience).map_err(|error| self.failure(&error))
    }

    /// Sends many requests and takes their replies as they come. `None`: none came, while others had time to; such a request may
    /// be waiting for other sheep.
    pub fn exchange_all(&mut self, messages: &[Message]) -> Outcome<Vec<Option<Answer>>> {
        self.try_exchange_all(messages).map_err(|error| self.failure(&error))
    }

    /// Does it not answer what a sheep answers at once? One that closes the connection is not silent.
    pub fn is_silent(&mut self, question: &Message) -> bool {
        self.try_exchange(question, Patience::Short).is_err_and(|error| is_silence(&error))
    }

    /// Waits until the other end closes the connection, as a process does at its end. False: it has not, in this time.
    pub fn until_closed(&mut self, bound: Duration) -> bool {
        let mut wait = Wait::quiet(bound);
        let mut rest = [0; HEADER_BYTES];
        loop {
            match self.stream.read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => match wait.bear(error, &self.target) {
                    Ok(()) => {}
                    Err(error) => return !is_silence(&error),
                },
            }
        }
    }

    fn failure(&self, error: &io::Error) -> Failure {
        if let Some(Verdict(text)) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
            return Failure::system(text);
        }
        if is_silence(error) {
            return Failure::system(silence(&self.target));
        }
        Failure::system(format!("Communication with {} failed: {}", self.target, explain(error)))
    }

    fn try_exchange(&mut self, message: &Message, patience: Patience) -> io::Result<Answer> {
        let id = self.send(message, patience)?;
        let mut wait = Wait::new(patience, self.explain);
        loop {
            let (found, reply, data) = self.receive(message.reply_max, &mut wait)?;
            match found {
                found if found == id => return Ok((reply, data)),
                found if self.abandoned.remove(&found) => {}
                found => return Err(bad_data(format!("it answered request {found} instead of {id}"))),
            }
        }
    }

    fn try_exchange_all(&mut self, messages: &[Message]) -> io::Result<Vec<Option<Answer>>> {
        let reply_max = messages.iter().map(|message| message.reply_max).max().unwrap_or(0);
        let mut answers: Vec<Option<Answer>> = messages.iter().map(|_| None).collect();
        let mut awaited: BTreeMap<u32, usize> = BTreeMap::new();
        let (mut next, mut silences) = (0, 0);
        while !awaited.is_empty() || (next < messages.len() && silences < SILENCES_MAX) {
            while awaited.len() < WINDOW && next < messages.len() && silences < SILENCES_MAX {
                awaited.insert(self.send(&messages[next], Patience::Short)?, next);
                next += 1;
            }
            // Whoever is silent once will be again: those behind it are not kept waiting as long.
            let bound = if silences == 0 { NOTICE_AFTER } else { LOOK * 2 };
            match self.receive(reply_max, &mut Wait::quiet(bound)) {
                Ok((id, reply, data)) => match awaited.remove(&id) {
                    Some(index) => answers[index] = Some((reply, data)),
                    None if self.abandoned.remove(&id) => {}
                    None => return Err(bad_data(format!("it answered request {id}, which nobody made"))),
                },
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    self.abandoned.extend(std::mem::take(&mut awaited).into_keys());
                    silences += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(answers)
    }

    /// Returns the request's number.
    fn send(&mut self, message: &Message, patience: Patience) -> io::Result<u32> {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let mut header = message.header;
        header[ID_AT..ID_AT + 4].copy_from_slice(&id.to_le_bytes());
        let mut wait = Wait::new(patience, self.explain);
        for mut bytes in [&header[..], message.payload] {
            while !bytes.is_empty() {
                match self.stream.write(bytes) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) => bytes = &bytes[count..],
                    Err(error) => wait.bear(error, &self.target)?,
                }
            }
        }
        Ok(id)
    }

    fn receive(
        &mut self,
        reply_max: usize,
        wait: &mut Wait,
    ) -> io::Result<(u32, [u8; HEADER_BYTES], Vec<u8>)> {
        let mut patient = Patient { stream: &mut self.stream, target: &self.target, wait };
        let mut reply = [0; HEADER_BYTES];
        patient.read_exact(&mut reply)?;
        let len = u32_at(&reply, LENGTH_AT) as usize;
        if len > reply_max {
            return Err(bad_data(format!("its reply has {len} bytes, at most {reply_max} were expected")));
        }
        let mut data = Vec::new();
        patient.take(len as u64).read_to_end(&mut data)?;
        if data.len() < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((u32_at(&reply, ID_AT), reply, data))
    }
}

/// Bears silence as long as it is to be borne, and tells once of it.
struct Wait {
    /// Counted, not measured: while this program is stopped itself, or its whole machine stands still, nobody is late.
    waited: Duration,
    bound: Option<Duration>,
    /// Whether there is sense in waiting, and when that is looked at next.
    check: Option<(Check, Duration)>,
    verdict: Option<String>,
    /// How it is told of, if it still is to be.
    explain: Option<Explain>,
}

impl Wait {
    fn new(patience: Patience, explain: Option<Explain>) -> Wait {
        let (bound, check) = match patience {
            Patience::Short => (Some(GIVE_UP_AFTER), None),
            Patience::Endless => (None, None),
            Patience::While(check) => (None, Some((check, GIVE_UP_AFTER))),
        };
        Wait { waited: Duration::ZERO, bound, check, verdict: None, explain }
    }

    /// Somebody else tells what was not answered.
    fn quiet(bound: Duration) -> Wait {
        Wait { waited: Duration::ZERO, bound: Some(bound), check: None, verdict: None, explain: None }
    }

    /// The other end is alive.
    fn heard(&mut self) {
        self.waited = Duration::ZERO;
    }

    fn bear(&mut self, error: io::Error, target: &Target) -> io::Result<()> {
        match error.kind() {
            io::ErrorKind::Interrupted => return Ok(()),
            io::ErrorKind::WouldBlock => {}
            _ => return Err(error),
        }
        // Was found while the other end was not listened to: it has had another moment since.
        if let Some(text) = self.verdict.take() {
            return Err(io::Error::other(Verdict(text)));
        }
        self.waited += LOOK;
        if let Some((check, at)) = &mut self.check
            && self.waited >= *at
        {
            *at = self.waited + GIVE_UP_AFTER;
            self.verdict = check(target);
        }
        if self.bound.is_some_and(|bound| self.waited >= bound) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if self.waited >= NOTICE_AFTER
            && let Some(explain) = self.explain.take()
        {
            let seconds = NOTICE_AFTER.as_secs();
            notice(&format!("Waiting for sheep {target}, which has not answered for {seconds} s"));
            // Who is given up soon needs no reasons.
            if self.bound.is_none() {
                notice(&explain(target));
            }
        }
        Ok(())
    }
}

/// What a [`Check`] has found.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Verdict(String);

/// The patience is over. A machine that has died is the kernel's error of the same kind.
fn is_silence(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none()
}

/// What is to be done about a sheep that is connected to and says nothing.
pub fn silence(target: &Target) -> String {
    let node = match target {
        Target::Tcp { .. } => target.to_string(),
        Target::Unix(_) => "NODE".to_string(),
    };
    format!(
        "Communication with {target} failed: it accepts connections but does not answer\n    \
         look at its process and machine: one that is stopped or stuck is ended with SIGKILL; if it stays away: dog node out {node}"
    )
}

struct Patient<'a> {
    stream: &'a mut Stream,
    target: &'a Target,
    wait: &'a mut Wait,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Ok(count) => {
                    self.wait.heard();
                    return Ok(count);
                }
                Err(error) => self.wait.bear(error, self.target)?,
            }
        }
    }
}

impl Stream {
    /// Reads and writes return `WouldBlock` after a while, so that a notice can be given.
    fn set_timeouts(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => {
                stream.set_read_timeout(Some(LOOK))?;
                stream.set_write_timeout(Some(LOOK))
            }
            Stream::Unix(stream) => {
                stream.set_read_timeout(Some(LOOK))?;
                stream.set_write_timeout(Some(LOOK))
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => io::Write::write(stream, bytes),
            Stream::Unix(stream) => io::Write::write(stream, bytes),
        }
    }
}

/// Tries the host's addresses in order; the last one's error counts.
fn connect_tcp(target: &Target) -> io::Result<TcpStream> {
    let mut outcome = Err(io::ErrorKind::AddrNotAvailable.into());
    for address in target.socket_addrs() {
        outcome = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT);
        if outcome.is_ok() {
            break;
        }
    }
    let stream = outcome?;
    stream.set_nodelay(true)?;
    // A dead machine is noticed within 10 + 3 * 5 seconds; a living one may hold a request for as long as it needs.
    rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(&stream, Duration::from_secs(10))?;
    rustix::net::sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(5))?;
    rustix::net::sockopt::set_tcp_keepcnt(&stream, 3)?;
    rustix::net::sockopt::set_tcp_user_timeout(&stream, 25_000)?;
    Ok(stream)
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "it closed the connection without a complete answer".to_string(),
        _ => reason(error),
    }
}

fn bad_data(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
