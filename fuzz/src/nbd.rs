//! A client of an NBD server with one export, from its first byte on.

use front::nbd::export::Export;
use front::nbd::handshake::{Agreement, Handshake, Step};
use front::nbd::receiver::{Next, Receiver, Space};
use proto::Vid;
use proto::client::{IO_BYTES_MAX, VolumeOp};

const VID: Vid = Vid(7);
const EXPORT_BYTES: u64 = 1 << 30;
/// Bytes received and held by a connection, at most: more is refused before memory is taken.
const HELD_BYTES_MAX: u64 = 64 << 20;
/// What a server says to one option is small.
const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// What a server made of the bytes of a client.
#[derive(Debug, Default, PartialEq)]
struct Talk {
    said: Vec<u8>,
    understood: Vec<Next>,
    end: Option<&'static str>,
}

/// The first byte says in which pieces the rest arrives, which must make no difference.
pub fn run(bytes: &[u8]) {
    let Some((piece, bytes)) = bytes.split_first() else { return };
    let whole = talk(bytes, bytes.len().max(1));
    whole.understood.iter().for_each(check);
    assert_eq!(talk(bytes, usize::from(*piece).max(1)), whole, "in pieces of {piece}");
}

/// Whatever reaches a volume is within it.
fn check(next: &Next) {
    let (offset, len) = match next {
        Next::Request { op, .. } => match op {
            VolumeOp::Read { offset, len } => (*offset, bounded(u64::from(*len))),
            VolumeOp::Write { offset, data } => (*offset, bounded(data.len() as u64)),
            VolumeOp::Discard { offset, len } | VolumeOp::WriteZeroes { offset, len, .. } => (*offset, *len),
            VolumeOp::Flush => (0, 0),
            other => panic!("no client can ask for {other:?}"),
        },
        Next::BlockStatus { asked, contexts, .. } => {
            assert!(!contexts.is_empty());
            (asked.offset, asked.length)
        }
        _ => return,
    };
    assert!(offset.checked_add(len).is_some_and(|end| end <= EXPORT_BYTES), "{next:?}");
}

fn bounded(len: u64) -> u64 {
    assert!((1..=u64::from(IO_BYTES_MAX)).contains(&len), "{len} bytes at once");
    len
}

fn talk(bytes: &[u8], piece: usize) -> Talk {
    let mut talk = Talk::default();
    let mut pieces = bytes.chunks(piece);
    let mut handshake = Handshake::default();
    let Some(agreement) = agree(&mut handshake, &mut pieces, &mut talk) else { return talk };
    let mut receiver = Receiver::new(&agreement, &handshake.into_rest());
    let rest: Vec<u8> = pieces.flatten().copied().collect();
    let mut rest = &rest[..];
    loop {
        // Too little room first: nothing is lost by it.
        let next = match receiver.next(piece as u64) {
            Next::NoRoom => receiver.next(HELD_BYTES_MAX),
            next => next,
        };
        assert!(receiver.held_bytes() <= HELD_BYTES_MAX, "more than there is room for");
        match next {
            Next::Receive if rest.is_empty() => return talk,
            Next::Receive => rest = &rest[receive(&mut receiver, rest, piece)..],
            Next::NoRoom => panic!("one request has more than {HELD_BYTES_MAX} bytes"),
            Next::Disconnect | Next::Broken(_) => {
                talk.understood.push(next);
                return talk;
            }
            _ => talk.understood.push(next),
        }
    }
}

/// The handshake. `None`: it ends here.
fn agree<'a>(
    handshake: &mut Handshake,
    pieces: &mut impl Iterator<Item = &'a [u8]>,
    talk: &mut Talk,
) -> Option<Agreement> {
    let export = Export { name: b"disk".to_vec(), vid: VID, size: EXPORT_BYTES, read_only: false };
    loop {
        let step = handshake.step();
        let output = handshake.take_output();
        assert!(output.len() <= OUTPUT_BYTES_MAX, "{} bytes at once", output.len());
        talk.said.extend(output);
        match step {
            Step::Receive => handshake.receive(pieces.next()?),
            Step::Find(_) => handshake.found(Ok(export.clone())),
            Step::FindWithEarlier(_) => handshake.found_with_earlier(Ok((export.clone(), Vec::new()))),
            Step::Open(_) => handshake.opened(Ok(export.clone())),
            Step::List => handshake.listed(Ok(vec![export.clone()])),
            Step::Transmit(agreement) => return Some(agreement),
            Step::Close(why) => {
                talk.end = Some(why);
                return None;
            }
        }
    }
}

/// Hands over at most `piece` bytes, and returns how many.
fn receive(receiver: &mut Receiver, bytes: &[u8], piece: usize) -> usize {
    match receiver.space() {
        Space::Buffer(space) => {
            let count = space.len().min(bytes.len()).min(piece);
            assert!(count > 0, "room for nothing");
            space[..count].copy_from_slice(&bytes[..count]);
            receiver.received(count);
            count
        }
        Space::Payload(buffer) => {
            let count = buffer.remaining().min(bytes.len()).min(piece);
            buffer.extend_from_slice(&bytes[..count]);
            count
        }
    }
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [&b"IHAVEOPT"[..], &number.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
}

fn request(command: u16, length: u32) -> Vec<u8> {
    let magic = 0x2560_9513_u32.to_be_bytes();
    let tail = [&7u64.to_be_bytes()[..], &4096u64.to_be_bytes(), &length.to_be_bytes()].concat();
    [&magic[..], &[0, 0], &command.to_be_bytes(), &tail].concat()
}

fn extended_request(flags: u16, command: u16, length: u64) -> Vec<u8> {
    let magic = 0x21e4_1c71_u32.to_be_bytes();
    let tail = [7u64, 4096, length].map(u64::to_be_bytes).concat();
    [&magic[..], &flags.to_be_bytes(), &command.to_be_bytes(), &tail].concat()
}

/// With simple, structured and extended replies.
pub fn seeds() -> Vec<Vec<u8>> {
    let name = [&4u32.to_be_bytes()[..], b"disk"].concat();
    let go = option(7, &[&name[..], &[0, 1, 0, 3]].concat());
    let context = [&name[..], &1u32.to_be_bytes(), &15u32.to_be_bytes(), b"base:allocation"].concat();
    let requests =
        [request(1, 16), vec![9; 16], request(0, 4096), request(4, 8192), request(7, 4096), request(2, 0)];
    let extended_requests = [
        extended_request(1 << 5, 1, 16),
        vec![9; 16],
        extended_request(0, 0, 1 << 20),
        extended_request(0, 6, 1 << 29),
        extended_request(0, 7, 8192),
        extended_request(0, 2, 0),
    ];
    let flags = 3u32.to_be_bytes();
    let plain = [&[40][..], &flags, &go, &requests.concat()].concat();
    let structured =
        [&[255][..], &flags, &option(8, &[]), &option(10, &context), &go, &requests.concat()].concat();
    let extended = [
        &[9][..],
        &flags,
        &option(11, &[]),
        &option(3, &[]),
        &option(10, &context),
        &go,
        &extended_requests.concat(),
    ];
    vec![plain, structured, extended.concat()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_seed_is_a_connection_from_the_handshake_to_the_good_bye() {
        for (seed, statuses) in seeds().iter().zip([0, 1, 1]) {
            let talk = talk(&seed[1..], seed.len());
            assert_eq!(talk.understood.len(), 5, "{talk:?}");
            assert_eq!(talk.understood.last(), Some(&Next::Disconnect));
            let is_status = |next: &&Next| matches!(next, Next::BlockStatus { .. });
            assert_eq!(talk.understood.iter().filter(is_status).count(), statuses, "{talk:?}");
            let Next::Request { op: VolumeOp::Write { offset: 4096, data }, .. } = &talk.understood[0] else {
                panic!("{talk:?}");
            };
            assert_eq!(data[..], [9; 16]);
        }
    }
}
