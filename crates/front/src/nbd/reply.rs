//! The transmission phase, towards the client: results become bytes, gathered until they are sent together.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};
use proto::BLOCK_BYTES;
use proto::client::{ClientError, ClientReply, ClientResult};

use super::context::{Context, Subject};
use super::export::errno;
use super::receiver::{Asked, Form};
use super::wire::{self, Errno, Framing, chunk};

/// Shorter payloads are copied beside their headers: cheaper than one more piece for the system call.
const COPIED_BYTES_MAX: usize = 1 << 10;
/// Zeros in a read become a hole in the reply from this length on (or if there is nothing else): what that saves
/// on the way to the client outweighs another chunk.
const HOLE_BYTES_MIN: usize = 64 << 10;
/// Extents in one reply to BLOCK_STATUS. Clients ask again for the rest.
const EXTENT_COUNT_MAX: usize = 16 << 10;
/// Pieces per system call.
const PIECE_COUNT_MAX: usize = 64;
/// The protocol's bound on strings.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Bytes on their way to a client: headers in one run of memory, payloads where they are.
#[derive(Default)]
pub struct Outbox {
    /// Headers and small payloads, in order, sent ones included until everything is sent.
    inline: Vec<u8>,
    /// Where in `inline` the next inline piece starts.
    inline_start: usize,
    pieces: VecDeque<Piece>,
    len: u64,
}

enum Piece {
    /// That many bytes of `inline`.
    Inline(usize),
    Payload(Bytes),
}

impl Outbox {
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes not sent yet.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Bytes of headers kept.
    pub fn inline_bytes(&self) -> usize {
        self.inline.len()
    }

    /// Appends what `put` puts.
    fn put(&mut self, put: impl FnOnce(&mut Vec<u8>)) {
        let before = self.inline.len();
        put(&mut self.inline);
        let count = self.inline.len() - before;
        self.len += count as u64;
        match self.pieces.back_mut() {
            Some(Piece::Inline(last)) => *last += count,
            _ => self.pieces.push_back(Piece::Inline(count)),
        }
    }

    fn put_payload(&mut self, data: Bytes) {
        if data.len() <= COPIED_BYTES_MAX {
            return self.put(|out| out.extend_from_slice(&data));
        }
        self.len += data.len() as u64;
        self.pieces.push_back(Piece::Payload(data));
    }

    /// Fills `slices` with the bytes to send next, and says how many slices that took.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; PIECE_COUNT_MAX]) -> usize {
        let mut inline = &self.inline[self.inline_start..];
        let mut count = 0;
        for (slot, piece) in slices.iter_mut().zip(&self.pieces) {
            *slot = IoSlice::new(match piece {
                Piece::Payload(data) => data,
                Piece::Inline(len) => {
                    let (here, after) = inline.split_at(*len);
                    inline = after;
                    here
                }
            });
            count += 1;
        }
        count
    }

    /// Room for `slices`.
    pub fn no_slices<'a>() -> [IoSlice<'a>; PIECE_COUNT_MAX] {
        [IoSlice::new(&[]); PIECE_COUNT_MAX]
    }

    /// The first `count` bytes were sent.
    pub fn sent(&mut self, mut count: usize) {
        self.len -= count as u64;
        while count > 0 {
            let piece = self.pieces.front_mut().expect("no more is sent than there is");
            let (here, whole) = match piece {
                Piece::Inline(len) => {
                    let here = count.min(*len);
                    *len -= here;
                    self.inline_start += here;
                    (here, *len == 0)
                }
                Piece::Payload(data) => {
                    let here = count.min(data.len());
                    data.advance(here);
                    (here, data.is_empty())
                }
            };
            count -= here;
            if whole {
                self.pieces.pop_front();
            }
        }
        if self.is_empty() {
            self.pieces.clear();
            self.inline.clear();
            self.inline_start = 0;
            self.inline.shrink_to(64 << 10);
        }
    }
}

/// Turns results into replies, in the form a connection has agreed on.
pub struct Replier {
    pub framing: Framing,
    /// For messages.
    pub export_name: Vec<u8>,
}

impl Replier {
    /// Appends the reply to a request that was carried out or failed.
    pub fn reply(&self, out: &mut Outbox, asked: &Asked, result: ClientResult) {
        match (asked.form, result) {
            (_, Err(error)) => self.refuse(out, asked, errno(&error), &error.to_string()),
            (Form::Plain, Ok(_)) => self.succeed(out, asked),
            (Form::Read { unfragmented }, Ok(ClientReply::Data(data)))
                if data.len() as u64 == asked.length =>
            {
                self.put_read(out, asked, unfragmented, data)
            }
            (_, Ok(other)) => self.refuse_misfit(out, asked, &other),
        }
    }

    /// Appends the reply to a request for block status: what was found in each context, by its id.
    pub fn reply_status(&self, out: &mut Outbox, asked: &Asked, results: Vec<(Context, ClientResult)>) {
        let mut statuses = Vec::new();
        for (context, result) in results {
            match result.map(|found| extents_of(asked, context.subject, &found).ok_or(found)) {
                Ok(Ok(extents)) => statuses.push((context.id, extents)),
                Ok(Err(other)) => return self.refuse_misfit(out, asked, &other),
                Err(error) => return self.refuse(out, asked, errno(&error), &error.to_string()),
            }
        }
        let last = statuses.len() - 1;
        for (at, (id, extents)) in statuses.iter().enumerate() {
            self.put_block_status(out, asked, at == last, *id, extents);
        }
    }

    /// Sent on, it would be taken for data of the VDI.
    fn refuse_misfit(&self, out: &mut Outbox, asked: &Asked, other: &ClientReply) {
        tracing::error!(?asked, len = other.payload().len(), "the answer does not fit the request");
        self.refuse(out, asked, Errno::Io, &ClientError::Io.to_string())
    }

    /// Appends the reply to a request that needed no work.
    pub fn succeed(&self, out: &mut Outbox, asked: &Asked) {
        // With structured replies, those to reads must be structured, and others may be simple.
        let chunked = match asked.form {
            Form::Plain => self.framing == Framing::Extended,
            _ => self.framing != Framing::Simple,
        };
        match chunked {
            true => self.put_chunk(out, asked, true, chunk::NONE, &[]),
            false => out.put(|out| out.extend_from_slice(&wire::simple_reply(0, asked.cookie))),
        }
    }

    /// Appends the reply to a request that was not, or not wholly, carried out.
    pub fn refuse(&self, out: &mut Outbox, asked: &Asked, errno: Errno, why: &str) {
        if self.framing == Framing::Simple {
            return out.put(|out| out.extend_from_slice(&wire::simple_reply(errno as u32, asked.cookie)));
        }
        let name = String::from_utf8_lossy(&self.export_name);
        let message = format!("{name}: {why}");
        let message = &message.as_bytes()[..message.floor_char_boundary(MESSAGE_BYTES_MAX)];
        let error = (errno as u32).to_be_bytes();
        self.put_chunk(
            out,
            asked,
            true,
            chunk::ERROR,
            &[&error, &(message.len() as u16).to_be_bytes(), message],
        );
    }

    fn put_read(&self, out: &mut Outbox, asked: &Asked, unfragmented: bool, data: Bytes) {
        if self.framing == Framing::Simple {
            out.put(|out| out.extend_from_slice(&wire::simple_reply(0, asked.cookie)));
            return out.put_payload(data);
        }
        let mut at = 0;
        while at < data.len() {
            let (len, hole) = match unfragmented {
                true => (data.len(), is_zero(&data)),
                false => next_run(&data, at, asked.offset),
            };
            let offset = (asked.offset + at as u64).to_be_bytes();
            let done = at + len == data.len();
            if hole {
                let len = (len as u32).to_be_bytes();
                self.put_chunk(out, asked, done, chunk::OFFSET_HOLE, &[&offset, &len]);
            } else {
                let chunk_bytes = 8 + len as u32;
                out.put(|out| {
                    let (framing, kind) = (self.framing, chunk::OFFSET_DATA);
                    wire::put_chunk_header(out, framing, done, kind, asked.cookie, asked.offset, chunk_bytes);
                    out.extend_from_slice(&offset);
                });
                out.put_payload(data.slice(at..at + len));
            }
            at += len;
        }
    }

    fn put_block_status(&self, out: &mut Outbox, asked: &Asked, done: bool, id: u32, extents: &[Status]) {
        let mut body = Vec::with_capacity(8 + 16 * extents.len());
        body.extend_from_slice(&id.to_be_bytes());
        if self.framing == Framing::Extended {
            body.extend_from_slice(&(extents.len() as u32).to_be_bytes());
        }
        for Status { len, state } in extents {
            if self.framing == Framing::Extended {
                body.extend_from_slice(&len.to_be_bytes());
                body.extend_from_slice(&u64::from(*state).to_be_bytes());
            } else {
                // Within the request, whose length has 32 bits.
                body.extend_from_slice(&(*len as u32).to_be_bytes());
                body.extend_from_slice(&state.to_be_bytes());
            }
        }
        let kind = match self.framing {
            Framing::Extended => chunk::BLOCK_STATUS_EXT,
            Framing::Simple | Framing::Structured => chunk::BLOCK_STATUS,
        };
        self.put_chunk(out, asked, done, kind, &[&body]);
    }

    fn put_chunk(&self, out: &mut Outbox, asked: &Asked, done: bool, kind: u16, body: &[&[u8]]) {
        let len: usize = body.iter().map(|part| part.len()).sum();
        out.put(|out| {
            wire::put_chunk_header(out, self.framing, done, kind, asked.cookie, asked.offset, len as u32);
            for part in body {
                out.extend_from_slice(part);
            }
        });
    }
}

/// An extent and its flags in a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Status {
    len: u64,
    state: u32,
}

/// What the service has found, as extents of a context. `None`: that is no answer to the question, or there is not one extent.
fn extents_of(asked: &Asked, subject: Subject, found: &ClientReply) -> Option<Vec<Status>> {
    let Form::BlockStatus { only_first } = asked.form else { return None };
    let count_max = if only_first { 1 } else { EXTENT_COUNT_MAX };
    let state = |is_set: bool, flags: u32| if is_set { flags } else { 0 };
    let hole = wire::STATE_HOLE | wire::STATE_ZERO;
    let extents = match (subject, found) {
        (Subject::Allocation, ClientReply::Extents(extents)) => merge(
            extents.iter().map(|e| Status { len: e.len, state: state(e.hole, hole) }),
            asked.length,
            count_max,
        ),
        (Subject::ChangesSince(_), ClientReply::Changes(extents)) => {
            let status =
                extents.iter().map(|e| Status { len: e.len, state: state(e.changed, wire::STATE_DIRTY) });
            merge(status, asked.length, count_max)
        }
        _ => return None,
    };
    (!extents.is_empty()).then_some(extents)
}

/// Neighbours of one kind as one, cut to `length` bytes and `count_max` extents.
fn merge(extents: impl Iterator<Item = Status>, length: u64, count_max: usize) -> Vec<Status> {
    let mut merged: Vec<Status> = Vec::new();
    let mut left = length;
    for Status { len, state } in extents {
        let len = len.min(left);
        if len == 0 {
            continue;
        }
        let full = merged.len() == count_max;
        match merged.last_mut() {
            Some(last) if last.state == state => last.len += len,
            _ if full => break,
            _ => merged.push(Status { len, state }),
        }
        left -= len;
    }
    merged
}

/// Length of the data, or of the hole, that starts at `at`. Holes consist of whole blocks of the VDI, but for the
/// ends of the request.
fn next_run(data: &[u8], at: usize, offset: u64) -> (usize, bool) {
    let zeros = zero_run(data, at, offset);
    if zeros >= HOLE_BYTES_MIN || zeros == data.len() {
        return (zeros, true);
    }
    let mut end = at + zeros.max(block_len(data, at, offset));
    while end < data.len() {
        let zeros = zero_run(data, end, offset);
        if zeros >= HOLE_BYTES_MIN {
            break;
        }
        end += zeros;
        end += block_len(data, end, offset);
    }
    (end - at, false)
}

fn zero_run(data: &[u8], at: usize, offset: u64) -> usize {
    let mut end = at;
    while end < data.len() {
        let len = block_len(data, end, offset);
        if !is_zero(&data[end..end + len]) {
            break;
        }
        end += len;
    }
    end - at
}

/// Bytes from `at` to the end of its block of the VDI.
fn block_len(data: &[u8], at: usize, offset: u64) -> usize {
    let into_block = ((offset + at as u64) % BLOCK_BYTES as u64) as usize;
    (BLOCK_BYTES - into_block).min(data.len() - at)
}

fn is_zero(data: &[u8]) -> bool {
    // Most data shows in its first bytes that it is not zero; a whole block is compared at memory speed.
    const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    data.chunks(BLOCK_BYTES).all(|part| part == &ZEROS[..part.len()])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn runs_cover_the_data_and_holes_are_whole_zero_blocks(
            offset in 0u64..20_000,
            len in 1usize..600_000,
            written in prop::collection::vec((0usize..600_000, 1usize..50_000), 0..4),
        ) {
            let mut data = vec![0u8; len];
            for (start, count) in written {
                let end = (start + count).min(len);
                data[start.min(end)..end].fill(1);
            }
            let mut at = 0;
            let mut last_hole = None;
            while at < len {
                let (count, hole) = next_run(&data, at, offset);
                prop_assert!(count > 0);
                prop_assert_ne!(last_hole.replace(hole), Some(hole), "runs alternate");
                if hole {
                    prop_assert!(data[at..at + count].iter().all(|b| *b == 0));
                    let ends = [(at, 0), (at + count, len)];
                    for (inner, _) in ends.iter().filter(|(end, edge)| end != edge) {
                        prop_assert_eq!((offset + *inner as u64) % BLOCK_BYTES as u64, 0);
                    }
                } else {
                    prop_assert!(data[at..at + count].contains(&1));
                }
                at += count;
            }
            prop_assert_eq!(at, len);
        }

        #[test]
        fn bytes_leave_in_order_however_few_are_taken(
            parts in prop::collection::vec((any::<bool>(), 1usize..5000), 1..150),
            step in 1usize..9000,
        ) {
            let mut outbox = Outbox::default();
            let mut expect = Vec::new();
            for (i, (payload, len)) in parts.into_iter().enumerate() {
                let part = vec![i as u8; len];
                expect.extend_from_slice(&part);
                match payload {
                    true => outbox.put_payload(part.into()),
                    false => outbox.put(|out| out.extend_from_slice(&part)),
                }
            }
            let mut got = Vec::new();
            while !outbox.is_empty() {
                prop_assert_eq!(outbox.len(), (expect.len() - got.len()) as u64);
                let mut slices = Outbox::no_slices();
                let count = outbox.slices(&mut slices);
                let offered: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
                let taken = offered.len().min(step);
                got.extend_from_slice(&offered[..taken]);
                outbox.sent(taken);
            }
            prop_assert!(got == expect);
            prop_assert_eq!(outbox.inline_bytes(), 0);
        }
    }
}
