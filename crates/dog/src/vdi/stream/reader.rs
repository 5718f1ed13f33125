//! Reads a backup stream of either version and believes nothing that it cannot check.
//!
//! Lengths are checked against the VDI before memory is taken. A stream of version 1 has no checksums: what can be checked
//! is that every record lies within the VDI and that the end is where it should be.

use std::io::{self, Read};

use proto::checksum::crc32c;

use super::{HEADER_BYTES, Header, MAGIC, Position, RECORD_BYTES, RECORD_LEN_MAX, Record, VERSION, u32_at};
use crate::failure::reason;

const VERSION_1_MAGIC: u32 = 0x1192_1192;
const VERSION_1_END: u32 = u32::MAX;
const VERSION_1_RECORD_BYTES: usize = 16;

/// What a part of the VDI becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub offset: u64,
    pub content: Content,
    /// CRC-32C of what the source has there, if that is known.
    pub source_crc: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Data(Vec<u8>),
    Zeros(u64),
}

/// Why a stream is not believed. Records count from 1, `at` is the record's place in the stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    #[error("there is nothing in it")]
    Empty,
    #[error("it is not a backup of a VDI")]
    Foreign,
    #[error("it is a backup of version {0}, which this dog does not know")]
    UnknownVersion(u32),
    #[error("its header is damaged")]
    DamagedHeader,
    #[error("it ends too early, after {records} whole records, at byte {at}")]
    Truncated { records: u64, at: u64 },
    #[error("record {record}, at byte {at}, is damaged")]
    Damaged { record: u64, at: u64 },
    #[error("record {record}, at byte {at}, is out of place")]
    OutOfPlace { record: u64, at: u64 },
    #[error("its end does not belong to the records before")]
    WrongEnd,
    #[error("something follows its end")]
    Trailing,
    #[error("it cannot be read: {0}")]
    Unreadable(String),
}

/// Made by `begin`; `next_change` says `None` when the stream has proved whole.
pub struct Reader<R> {
    input: R,
    kind: Kind,
    position: Position,
    size: u64,
    shift: u8,
}

enum Kind {
    Original,
    Checked(Box<Header>),
}

impl<R: Read> Reader<R> {
    /// Of a stream of version 1 nothing can be read before [`Reader::set_shape`].
    pub fn begin(mut input: R) -> Result<Reader<R>, StreamError> {
        let mut position = Position::start();
        let mut bytes = [0; HEADER_BYTES];
        let got = fill(&mut input, &mut bytes[..8])?;
        if got == 0 {
            return Err(StreamError::Empty);
        }
        if got < 8 {
            return Err(StreamError::Truncated { records: 0, at: got as u64 });
        }
        match (u32_at(&bytes, 0), u32_at(&bytes, 4)) {
            (1, VERSION_1_MAGIC) => {
                position.take_header(&bytes[..8]);
                Ok(Reader { input, kind: Kind::Original, position, size: 0, shift: 0 })
            }
            (VERSION, MAGIC) => {
                let got = 8 + fill(&mut input, &mut bytes[8..])?;
                if got < HEADER_BYTES {
                    return Err(StreamError::Truncated { records: 0, at: got as u64 });
                }
                let header = Header::decode(&bytes).ok_or(StreamError::DamagedHeader)?;
                position.take_header(&bytes);
                let (size, shift) = (header.target.size, header.block_size_shift);
                Ok(Reader { input, kind: Kind::Checked(Box::new(header)), position, size, shift })
            }
            (version, MAGIC | VERSION_1_MAGIC) if version > VERSION => {
                Err(StreamError::UnknownVersion(version))
            }
            _ => Err(StreamError::Foreign),
        }
    }

    /// `None` for version 1, which does not say whose bytes they are.
    pub fn header(&self) -> Option<&Header> {
        match &self.kind {
            Kind::Original => None,
            Kind::Checked(header) => Some(header),
        }
    }

    /// Of the VDI that a stream of version 1 is meant for.
    pub fn set_shape(&mut self, size: u64, shift: u8) {
        (self.size, self.shift) = (size, shift);
    }

    /// Behind the last record that was whole.
    pub fn into_position(self) -> Position {
        self.position
    }

    pub fn next_change(&mut self) -> Result<Option<Change>, StreamError> {
        match self.kind {
            Kind::Original => self.next_of_original(),
            Kind::Checked(_) => self.next_checked(),
        }
    }

    fn next_checked(&mut self) -> Result<Option<Change>, StreamError> {
        let mut head = [0; RECORD_BYTES];
        self.read_head(&mut head)?;
        let (offset, len, data_crc, source_crc) = match Record::decode(&head).ok_or_else(|| self.damaged())? {
            Record::Data { offset, len, data_crc, source_crc } => (offset, len, Some(data_crc), source_crc),
            Record::Zeros { offset, len, source_crc } => (offset, len, None, source_crc),
            end @ Record::End { .. } if end == self.position.end_record() => return self.at_end(),
            Record::End { .. } => return Err(StreamError::WrongEnd),
        };
        let ascends = offset >= self.position.offset && (1..=RECORD_LEN_MAX).contains(&len);
        self.check_place(ascends, offset, len)?;
        let content = match data_crc {
            None => Content::Zeros(len),
            Some(crc) => {
                let data = self.read_data(len)?;
                if crc32c(&data) != crc {
                    return Err(self.damaged());
                }
                Content::Data(data)
            }
        };
        let data = if let Content::Data(data) = &content { &data[..] } else { &[] };
        self.position.take_record(&head, data, offset + len);
        let has_source = self.header().is_some_and(|header| header.source.is_some());
        Ok(Some(Change { offset, content, source_crc: has_source.then_some(source_crc) }))
    }

    fn next_of_original(&mut self) -> Result<Option<Change>, StreamError> {
        let mut head = [0; VERSION_1_RECORD_BYTES];
        self.read_head(&mut head)?;
        let [index, within, len, _] = [0, 4, 8, 12].map(|at| u32_at(&head, at));
        if index == VERSION_1_END {
            return self.at_end();
        }
        let object_bytes = 1u64 << self.shift.min(63);
        let stays_within = u64::from(within) + u64::from(len) <= object_bytes;
        let offset =
            u64::from(index).checked_mul(object_bytes).map(|start| start.saturating_add(within.into()));
        let offset = offset.unwrap_or(u64::MAX);
        self.check_place(stays_within, offset, len.into())?;
        let data = self.read_data(len.into())?;
        self.position.take_record(&head, &data, offset + u64::from(len));
        Ok(Some(Change { offset, content: Content::Data(data), source_crc: None }))
    }

    fn check_place(&self, is_good: bool, offset: u64, len: u64) -> Result<(), StreamError> {
        if is_good && offset.checked_add(len).is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        Err(StreamError::OutOfPlace { record: self.position.records + 1, at: self.position.stream_bytes })
    }

    fn at_end(&mut self) -> Result<Option<Change>, StreamError> {
        match fill(&mut self.input, &mut [0])? {
            0 => Ok(None),
            _ => Err(StreamError::Trailing),
        }
    }

    fn read_head(&mut self, head: &mut [u8]) -> Result<(), StreamError> {
        if fill(&mut self.input, head)? < head.len() { Err(self.truncated()) } else { Ok(()) }
    }

    /// Memory grows with the bytes that are really there.
    fn read_data(&mut self, len: u64) -> Result<Vec<u8>, StreamError> {
        let mut data = Vec::new();
        let got = (&mut self.input).take(len).read_to_end(&mut data).map_err(unreadable)?;
        if (got as u64) < len { Err(self.truncated()) } else { Ok(data) }
    }

    fn truncated(&self) -> StreamError {
        StreamError::Truncated { records: self.position.records, at: self.position.stream_bytes }
    }

    fn damaged(&self) -> StreamError {
        StreamError::Damaged { record: self.position.records + 1, at: self.position.stream_bytes }
    }
}

/// Reads until the buffer is full or the input ends; how many bytes came.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize, StreamError> {
    let mut got = 0;
    while got < buffer.len() {
        match input.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    Ok(got)
}

fn unreadable(error: io::Error) -> StreamError {
    StreamError::Unreadable(reason(&error))
}
