//! Messages and the file descriptors that come with them, to and from a unix socket.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll, ready};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::wire::{FILE_COUNT_MAX, HEADER_BYTES, Header};

/// A request of the front-end.
pub struct Message {
    pub header: Header,
    pub payload: Vec<u8>,
    pub files: Vec<OwnedFd>,
}

pub struct Channel {
    stream: UnixStream,
    /// The header, then the payload, as far as they have come.
    incoming: Vec<u8>,
    files: Vec<OwnedFd>,
    outgoing: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    /// Of the first of `outgoing`.
    sent: usize,
}

impl Channel {
    pub fn new(stream: UnixStream) -> Channel {
        Channel { stream, incoming: vec![], files: vec![], outgoing: VecDeque::new(), sent: 0 }
    }

    /// The next request. `None`: the front-end has closed the connection between two of them.
    pub fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Message>>> {
        loop {
            let wanted = match self.header()? {
                None => HEADER_BYTES,
                Some(header) => HEADER_BYTES + header.payload_bytes as usize,
            };
            if self.incoming.len() == wanted && wanted >= HEADER_BYTES && self.is_whole()? {
                return Poll::Ready(Ok(Some(self.take_message()?)));
            }
            ready!(self.stream.poll_read_ready(cx))?;
            let (stream, incoming, files) = (&self.stream, &mut self.incoming, &mut self.files);
            match stream.try_io(Interest::READABLE, || receive(stream, wanted, incoming, files)) {
                Ok(0) if self.incoming.is_empty() => return Poll::Ready(Ok(None)),
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn header(&self) -> io::Result<Option<Header>> {
        let Some(bytes) = self.incoming.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let header = Header::decode(bytes).ok_or_else(|| invalid("no request of vhost-user"))?;
        Ok(Some(header))
    }

    fn is_whole(&self) -> io::Result<bool> {
        let whole = |header: Header| self.incoming.len() == HEADER_BYTES + header.payload_bytes as usize;
        Ok(self.header()?.is_some_and(whole))
    }

    fn take_message(&mut self) -> io::Result<Message> {
        let header = self.header()?.expect("it has come");
        let payload = self.incoming.split_off(HEADER_BYTES);
        self.incoming.clear();
        Ok(Message { header, payload, files: std::mem::take(&mut self.files) })
    }

    pub fn send(&mut self, message: Vec<u8>, file: Option<OwnedFd>) {
        self.outgoing.push_back((message, file));
    }

    /// Are there replies that were not fetched?
    pub fn has_unsent(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Sends what the front-end takes.
    pub fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some((message, file)) = self.outgoing.front() {
            ready!(self.stream.poll_write_ready(cx))?;
            let left = &message[self.sent..];
            // A file descriptor goes with the first byte.
            let file = file.as_ref().filter(|_| self.sent == 0);
            match self.stream.try_io(Interest::WRITABLE, || send(&self.stream, left, file)) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Poll::Ready(Err(error)),
            }
            if self.sent == message.len() {
                self.outgoing.pop_front();
                self.sent = 0;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads once, up to `wanted` bytes in all.
fn receive(
    stream: &UnixStream,
    wanted: usize,
    incoming: &mut Vec<u8>,
    files: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let before = incoming.len();
    incoming.resize(wanted, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILE_COUNT_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut incoming[before..])];
    let result =
        recvmsg(stream.as_fd(), &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT);
    incoming.truncate(before + result.as_ref().map_or(0, |received| received.bytes));
    let received = result?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            files.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || files.len() > FILE_COUNT_MAX {
        return Err(invalid("more file descriptors than any request has"));
    }
    Ok(received.bytes)
}

fn send(stream: &UnixStream, bytes: &[u8], file: Option<&OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let borrowed = file.map(|file| [file.as_fd()]);
    if let Some(file) = &borrowed {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(file)), "there is room for one");
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(sendmsg(stream.as_fd(), &[IoSlice::new(bytes)], &mut ancillary, flags)?)
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
