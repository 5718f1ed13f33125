//! The stream that `vdi backup` writes and `vdi restore` reads. Drawn byte by byte in docs/formats.md, "Backup stream".
//!
//! A header says whose bytes they are; records follow in ascending order, each with a checksum of itself, of its data, and
//! of what the source has in its place; an end record counts them and has a digest of everything before it. So whatever is cut
//! off, damaged, left out or put elsewhere is noticed, and so is a stream that meets another source than it was made from.
//!
//! [`writer`] makes version 2, the only one that is written; [`reader`] reads it, and version 1 of the original.

pub mod reader;
pub mod writer;

use crc_fast::{CrcAlgorithm, Digest};
use proto::Vid;
use proto::checksum::crc32c;
use proto::inode::{NAME_BYTES, until_nul};

pub const HEADER_BYTES: usize = 1024;
pub const RECORD_BYTES: usize = 40;
/// Bytes that one record may stand for: what is read and written in one piece.
pub const RECORD_LEN_MAX: u64 = super::PIECE_BYTES;

const VERSION: u32 = 2;
/// `SDBK`
const MAGIC: u32 = u32::from_le_bytes(*b"SDBK");
/// `SREC`
const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"SREC");
const IDENTITY_BYTES: usize = 32 + NAME_BYTES;
const NAME_AT: usize = 16;
const TARGET_AT: usize = NAME_AT + NAME_BYTES;
const SOURCE_AT: usize = TARGET_AT + IDENTITY_BYTES;
const CRC_AT: usize = HEADER_BYTES - 4;

/// Which snapshot it was, where the stream was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub vid: Vid,
    pub snap_id: u32,
    pub create_time: u64,
    pub snap_ctime: u64,
    pub size: u64,
    pub tag: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub name: Vec<u8>,
    pub block_size_shift: u8,
    /// What the stream leads to.
    pub target: Identity,
    /// What it starts from; nothing if it is complete by itself.
    pub source: Option<Identity>,
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        put(&mut out, 0, &VERSION.to_le_bytes());
        put(&mut out, 4, &MAGIC.to_le_bytes());
        put(&mut out, 8, &(HEADER_BYTES as u32).to_le_bytes());
        out[12] = self.block_size_shift;
        out[13] = self.source.is_some().into();
        put(&mut out, NAME_AT, &self.name);
        self.target.encode_into(&mut out[TARGET_AT..][..IDENTITY_BYTES]);
        if let Some(source) = &self.source {
            source.encode_into(&mut out[SOURCE_AT..][..IDENTITY_BYTES]);
        }
        let crc = crc32c(&out[..CRC_AT]);
        put(&mut out, CRC_AT, &crc.to_le_bytes());
        out
    }

    /// `None` if the checksum does not match. Version and magic have been looked at.
    fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Header> {
        if u32_at(bytes, CRC_AT) != crc32c(&bytes[..CRC_AT]) || u32_at(bytes, 8) != HEADER_BYTES as u32 {
            return None;
        }
        let source = (bytes[13] != 0).then(|| Identity::decode(&bytes[SOURCE_AT..][..IDENTITY_BYTES]));
        Some(Header {
            name: until_nul(&bytes[NAME_AT..][..NAME_BYTES]).to_vec(),
            block_size_shift: bytes[12],
            target: Identity::decode(&bytes[TARGET_AT..][..IDENTITY_BYTES]),
            source,
        })
    }
}

impl Identity {
    fn encode_into(&self, out: &mut [u8]) {
        put(out, 0, &self.vid.0.to_le_bytes());
        put(out, 4, &self.snap_id.to_le_bytes());
        put(out, 8, &self.create_time.to_le_bytes());
        put(out, 16, &self.snap_ctime.to_le_bytes());
        put(out, 24, &self.size.to_le_bytes());
        put(out, 32, &self.tag);
    }

    fn decode(bytes: &[u8]) -> Identity {
        Identity {
            vid: Vid(u32_at(bytes, 0)),
            snap_id: u32_at(bytes, 4),
            create_time: u64_at(bytes, 8),
            snap_ctime: u64_at(bytes, 16),
            size: u64_at(bytes, 24),
            tag: until_nul(&bytes[32..]).to_vec(),
        }
    }
}

/// The head of a record. Data follow it if it has any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Record {
    Data {
        offset: u64,
        len: u64,
        data_crc: u32,
        source_crc: u32,
    },
    /// The range is zero in the target.
    Zeros {
        offset: u64,
        len: u64,
        source_crc: u32,
    },
    End {
        records: u64,
        data_bytes: u64,
        digest: u64,
    },
}

impl Record {
    fn encode(&self) -> [u8; RECORD_BYTES] {
        let (kind, offset, len, checks) = match *self {
            Record::Data { offset, len, data_crc, source_crc } => {
                (1u32, offset, len, u64::from(source_crc) << 32 | u64::from(data_crc))
            }
            Record::Zeros { offset, len, source_crc } => (2, offset, len, u64::from(source_crc) << 32),
            Record::End { records, data_bytes, digest } => (3, records, data_bytes, digest),
        };
        let mut out = [0; RECORD_BYTES];
        put(&mut out, 0, &RECORD_MAGIC.to_le_bytes());
        put(&mut out, 4, &kind.to_le_bytes());
        put(&mut out, 8, &offset.to_le_bytes());
        put(&mut out, 16, &len.to_le_bytes());
        put(&mut out, 24, &checks.to_le_bytes());
        let crc = crc32c(&out[..36]);
        put(&mut out, 36, &crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; RECORD_BYTES]) -> Option<Record> {
        if u32_at(bytes, 0) != RECORD_MAGIC || u32_at(bytes, 36) != crc32c(&bytes[..36]) {
            return None;
        }
        let (offset, len, checks) = (u64_at(bytes, 8), u64_at(bytes, 16), u64_at(bytes, 24));
        let (data_crc, source_crc) = (checks as u32, (checks >> 32) as u32);
        match u32_at(bytes, 4) {
            1 => Some(Record::Data { offset, len, data_crc, source_crc }),
            2 => Some(Record::Zeros { offset, len, source_crc }),
            3 => Some(Record::End { records: offset, data_bytes: len, digest: checks }),
            _ => None,
        }
    }
}

/// How far a stream has come: whoever goes on with it needs all of this.
pub struct Position {
    /// Bytes of the stream.
    pub stream_bytes: u64,
    /// Bytes of the VDI that are dealt with.
    pub offset: u64,
    pub records: u64,
    data_bytes: u64,
    /// Of all bytes of the stream so far: CRC-64/NVME.
    digest: Digest,
}

impl Position {
    fn start() -> Position {
        Position {
            stream_bytes: 0,
            offset: 0,
            records: 0,
            data_bytes: 0,
            digest: Digest::new(CrcAlgorithm::Crc64Nvme),
        }
    }

    fn take_header(&mut self, header: &[u8]) {
        self.digest.update(header);
        self.stream_bytes += header.len() as u64;
    }

    /// A record with its data that stands for the bytes up to `end`.
    fn take_record(&mut self, head: &[u8], data: &[u8], end: u64) {
        self.digest.update(head);
        self.digest.update(data);
        self.stream_bytes += (head.len() + data.len()) as u64;
        self.data_bytes += data.len() as u64;
        self.records += 1;
        self.offset = end;
    }

    fn end_record(&self) -> Record {
        Record::End { records: self.records, data_bytes: self.data_bytes, digest: self.digest.finalize() }
    }
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::reader::{Change, Content, Reader, StreamError};
    use super::writer::Writer;
    use super::*;

    pub fn header() -> Header {
        let identity = |vid, tag: &str| Identity {
            vid: Vid(vid),
            snap_id: vid & 0xf,
            create_time: 0x6a00_0000_0000_0001,
            snap_ctime: 0x6b00_0000_0000_0002,
            size: 16 << 20,
            tag: tag.into(),
        };
        Header {
            name: b"alice".to_vec(),
            block_size_shift: 22,
            target: identity(0xa03908, "s2"),
            source: Some(identity(0xa03907, "s1")),
        }
    }

    fn sample() -> Vec<u8> {
        let mut writer = Writer::begin(Vec::new(), &header()).unwrap();
        writer.data(4096, b"hello", Some(b"-----")).unwrap();
        writer.zeros(8192, 4096, Some(&[7; 4096])).unwrap();
        writer.data(5 << 20, &[9; 5000], Some(&[0; 5000])).unwrap();
        writer.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Vec<Change>, StreamError> {
        let mut reader = Reader::begin(bytes)?;
        let mut changes = Vec::new();
        while let Some(change) = reader.next_change()? {
            changes.push(change);
        }
        Ok(changes)
    }

    #[test]
    fn what_was_written_is_read() {
        let changes = read(&sample()).unwrap();
        let places: Vec<_> = changes.iter().map(|change| change.offset).collect();
        assert_eq!(places, [4096, 8192, 5 << 20]);
        assert_eq!(changes[0].content, Content::Data(b"hello".to_vec()));
        assert_eq!(changes[0].source_crc, Some(crc32c(b"-----")));
        assert_eq!(changes[1].content, Content::Zeros(4096));
        assert_eq!(Reader::begin(&sample()[..]).unwrap().header(), Some(&header()));
        let whole = Header { source: None, ..header() };
        let empty = Writer::begin(Vec::new(), &whole).unwrap().finish().unwrap();
        assert_eq!(read(&empty).unwrap(), []);
        assert_eq!(empty.len(), HEADER_BYTES + RECORD_BYTES);
    }

    #[test]
    fn every_byte_cut_off_is_noticed() {
        let bytes = sample();
        for len in 0..bytes.len() {
            match read(&bytes[..len]) {
                Err(StreamError::Empty) => assert_eq!(len, 0),
                Err(StreamError::Truncated { .. }) => assert!(len > 0),
                other => panic!("cut at {len}: {other:?}"),
            }
        }
        assert_eq!(read(&[&bytes[..], b"x"].concat()), Err(StreamError::Trailing));
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        let bytes = sample();
        for at in 0..bytes.len() {
            for bit in [0x01, 0x80] {
                let mut damaged = bytes.clone();
                damaged[at] ^= bit;
                assert!(read(&damaged).is_err(), "byte {at}, bit {bit:#x}");
            }
        }
    }

    #[test]
    fn records_left_out_repeated_or_exchanged_are_noticed() {
        let bytes = sample();
        let (first, second) = (HEADER_BYTES, HEADER_BYTES + RECORD_BYTES + 5);
        let third = second + RECORD_BYTES;
        let parts = [&bytes[..first], &bytes[first..second], &bytes[second..third], &bytes[third..]];
        let of = |order: &[usize]| order.iter().flat_map(|part| parts[*part]).copied().collect::<Vec<u8>>();
        assert!(read(&of(&[0, 1, 2, 3])).is_ok());
        for order in [&[0, 2, 3][..], &[0, 1, 3], &[0, 1, 1, 2, 3], &[0, 2, 1, 3]] {
            let found = read(&of(order));
            assert!(
                matches!(found, Err(StreamError::WrongEnd | StreamError::OutOfPlace { .. })),
                "{order:?}: {found:?}"
            );
        }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let bytes = sample();
        assert_eq!(&bytes[..16], b"\x02\0\0\0SDBK\0\x04\0\0\x16\x01\0\0");
        assert_eq!(&bytes[16..22], b"alice\0");
        assert_eq!(&bytes[272..280], b"\x08\x39\xa0\0\x08\0\0\0");
        assert_eq!(&bytes[296..304], &(16u64 << 20).to_le_bytes());
        assert_eq!(&bytes[304..307], b"s2\0");
        assert_eq!(&bytes[560..564], b"\x07\x39\xa0\0");
        assert_eq!(&bytes[1024..1032], b"SREC\x01\0\0\0");
        assert_eq!(&bytes[1032..1048], b"\0\x10\0\0\0\0\0\0\x05\0\0\0\0\0\0\0");
        assert_eq!(&bytes[1048..1052], &crc32c(b"hello").to_le_bytes());
        assert_eq!(&bytes[1052..1056], &crc32c(b"-----").to_le_bytes());
        assert_eq!(&bytes[1060..1064], &crc32c(&bytes[1024..1060]).to_le_bytes());
        let end = &bytes[bytes.len() - RECORD_BYTES..];
        assert_eq!(&end[..24], b"SREC\x03\0\0\0\x03\0\0\0\0\0\0\0\x8d\x13\0\0\0\0\0\0");
        let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
        digest.update(b"123456789");
        assert_eq!(digest.finalize(), 0xae8b_1486_0a79_9888);
    }

    #[test]
    fn an_interrupted_stream_goes_on_where_its_last_whole_record_ends() {
        let bytes = sample();
        for len in HEADER_BYTES..bytes.len() {
            let mut reader = Reader::begin(&bytes[..len]).unwrap();
            while let Ok(Some(_)) = reader.next_change() {}
            let position = reader.into_position();
            let mut resumed = bytes[..position.stream_bytes as usize].to_vec();
            let records = position.records;
            let mut writer = Writer::resume(&mut resumed, position);
            if records < 1 {
                writer.data(4096, b"hello", Some(b"-----")).unwrap();
            }
            if records < 2 {
                writer.zeros(8192, 4096, Some(&[7; 4096])).unwrap();
            }
            if records < 3 {
                writer.data(5 << 20, &[9; 5000], Some(&[0; 5000])).unwrap();
            }
            writer.finish().unwrap();
            assert_eq!(resumed, bytes, "cut at {len}");
        }
    }

    fn version_1(records: &[(u32, u32, &[u8])]) -> Vec<u8> {
        let mut bytes = [1u32.to_le_bytes(), 0x1192_1192u32.to_le_bytes()].concat();
        for (index, offset, data) in records {
            for word in [*index, *offset, data.len() as u32, 0] {
                bytes.extend(word.to_le_bytes());
            }
            bytes.extend(*data);
        }
        bytes
    }

    #[test]
    fn streams_of_the_original_are_read_and_checked_as_far_as_possible() {
        let end: (u32, u32, &[u8]) = (u32::MAX, 0, b"");
        let read = |bytes: &[u8]| {
            let mut reader = Reader::begin(bytes)?;
            reader.set_shape(16 << 20, 22);
            std::iter::from_fn(move || reader.next_change().transpose()).collect::<Result<Vec<_>, _>>()
        };
        let changes = read(&version_1(&[(1, 512, b"abc"), (0, 0, b"d"), end])).unwrap();
        let data =
            |offset, data: &[u8]| Change { offset, content: Content::Data(data.to_vec()), source_crc: None };
        assert_eq!(changes, [data((4 << 20) + 512, b"abc"), data(0, b"d")]);
        let whole = version_1(&[(1, 512, b"abc"), end]);
        for len in 1..whole.len() {
            assert!(matches!(read(&whole[..len]), Err(StreamError::Truncated { .. })), "cut at {len}");
        }
        assert_eq!(read(&[&whole[..], b"x"].concat()), Err(StreamError::Trailing));
        for out_of_place in
            [(4, 0, &b"x"[..]), (0, (4 << 20) - 1, b"xx"), (3, 4 << 20, b"x"), (u32::MAX - 1, 0, b"x")]
        {
            let found = read(&version_1(&[out_of_place, end]));
            assert!(matches!(found, Err(StreamError::OutOfPlace { .. })), "{found:?}");
        }
    }

    #[test]
    fn other_files_are_told_apart() {
        for (bytes, expect) in [
            (&b"QFI\xfb\0\0\0\x03 and so on"[..], StreamError::Foreign),
            (b"\x02\0\0\0\x92\x11\x92\x11\0\0\0\0", StreamError::Foreign),
            (b"\x03\0\0\0SDBK", StreamError::UnknownVersion(3)),
            (b"\x02\0\0\0\x92\x11\x92\x12", StreamError::Foreign),
            (b"", StreamError::Empty),
        ] {
            assert_eq!(read(bytes), Err(expect));
        }
    }
}
