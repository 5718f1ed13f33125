//! A blocking connection to one sheep: a request goes out, its reply comes back.
//!
//! Requests may be held while the cluster repairs itself, so a reply is awaited without limit; whoever
//! watches is told after five seconds, unless the questions are such that a sheep answers at once ([`Link::hurry`]). A machine that has died is noticed by TCP keepalive. Nothing is
//! allocated on the word of a reply: its length is checked against what was asked for, and memory grows with
//! the bytes that really arrive.

use std::io::{self, IsTerminal, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::failure::{Failure, Outcome, reason};
use crate::target::Target;

pub const HEADER_BYTES: usize = 48;
const ID_AT: usize = 8;
const LENGTH_AT: usize = 12;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// After this long without an answer, whoever watches is told that it is not forgotten.
const NOTICE_AFTER: Duration = Duration::from_secs(5);

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

pub struct Link {
    stream: Stream,
    target: Target,
    next_id: u32,
    /// Silence means that nobody is there.
    hurried: bool,
}

impl Link {
    pub fn connect(target: &Target) -> Outcome<Link> {
        let stream = match target {
            Target::Tcp { .. } => connect_tcp(target).map(Stream::Tcp),
            Target::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
        }
        .and_then(|stream| stream.set_notice_timeout().map(|()| stream))
        .map_err(|error| Failure::system(format!("failed to connect to {target}: {}", reason(&error))))?;
        Ok(Link { stream, target: target.clone(), next_id: 1, hurried: false })
    }

    /// From now on a sheep that says nothing for [`NOTICE_AFTER`] counts as one that does not answer. For questions that are never held.
    pub fn hurry(&mut self) {
        self.hurried = true;
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

    /// Sends a request and waits for its reply, whose payload may have up to `reply_max` bytes.
    pub fn exchange(
        &mut self,
        mut header: [u8; HEADER_BYTES],
        payload: &[u8],
        reply_max: usize,
    ) -> Outcome<([u8; HEADER_BYTES], Vec<u8>)> {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        header[ID_AT..ID_AT + 4].copy_from_slice(&id.to_le_bytes());
        self.try_exchange(&header, payload, reply_max)
            .and_then(|(reply, data)| match u32_at(&reply, ID_AT) {
                found if found == id => Ok((reply, data)),
                found => Err(bad_data(format!("it answered request {found} instead of {id}"))),
            })
            .map_err(|error| {
                Failure::system(format!("Communication with {} failed: {}", self.target, explain(&error)))
            })
    }

    fn try_exchange(
        &mut self,
        header: &[u8; HEADER_BYTES],
        payload: &[u8],
        reply_max: usize,
    ) -> io::Result<([u8; HEADER_BYTES], Vec<u8>)> {
        self.stream.write_all(header)?;
        self.stream.write_all(payload)?;
        let mut patient =
            Patient { stream: &mut self.stream, target: &self.target, told: false, hurried: self.hurried };
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
        Ok((reply, data))
    }
}

/// Waits as long as it takes, and says so once.
struct Patient<'a> {
    stream: &'a mut Stream,
    target: &'a Target,
    told: bool,
    hurried: bool,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.hurried => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.tell(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

impl Patient<'_> {
    fn tell(&mut self) {
        if !self.told && io::stderr().is_terminal() {
            let _ = writeln!(
                io::stderr(),
                "Still waiting for {}; the cluster may be repairing itself",
                self.target
            );
        }
        self.told = true;
    }
}

impl Stream {
    /// Reads return `WouldBlock` after a while, so that a notice can be given.
    fn set_notice_timeout(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.set_read_timeout(Some(NOTICE_AFTER)),
            Stream::Unix(stream) => stream.set_read_timeout(Some(NOTICE_AFTER)),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.write_all(bytes),
            Stream::Unix(stream) => stream.write_all(bytes),
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
