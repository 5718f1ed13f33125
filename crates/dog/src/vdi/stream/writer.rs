//! Writes a backup stream, record by record.

use std::io::{self, Write};

use proto::checksum::crc32c;

use super::{Header, Position, RECORD_LEN_MAX, Record};

/// Made by `begin`, or by `resume` where an earlier one was interrupted; `finish` makes the stream a whole one.
pub struct Writer<W> {
    out: W,
    position: Position,
}

impl<W: Write> Writer<W> {
    pub fn begin(mut out: W, header: &Header) -> io::Result<Writer<W>> {
        let bytes = header.encode();
        out.write_all(&bytes)?;
        let mut position = Position::start();
        position.take_header(&bytes);
        Ok(Writer { out, position })
    }

    /// Goes on behind the last whole record; `out` must stand there.
    pub fn resume(out: W, position: Position) -> Writer<W> {
        Writer { out, position }
    }

    /// Bytes of the VDI up to here are in the stream, or need not be.
    pub fn offset(&self) -> u64 {
        self.position.offset
    }

    /// `source`: what the source has there, if there is one.
    pub fn data(&mut self, offset: u64, data: &[u8], source: Option<&[u8]>) -> io::Result<()> {
        let len = data.len() as u64;
        let record =
            Record::Data { offset, len, data_crc: crc32c(data), source_crc: source.map_or(0, crc32c) };
        self.put(record, data, offset, len)
    }

    /// The range is zero in the target, and is not, or is not known to be, in the source.
    pub fn zeros(&mut self, offset: u64, len: u64, source: Option<&[u8]>) -> io::Result<()> {
        self.put(Record::Zeros { offset, len, source_crc: source.map_or(0, crc32c) }, &[], offset, len)
    }

    fn put(&mut self, record: Record, data: &[u8], offset: u64, len: u64) -> io::Result<()> {
        assert!(offset >= self.position.offset, "records ascend: {offset} after {}", self.position.offset);
        assert!((1..=RECORD_LEN_MAX).contains(&len), "a record of {len} bytes");
        let head = record.encode();
        self.out.write_all(&head)?;
        self.out.write_all(data)?;
        self.position.take_record(&head, data, offset + len);
        Ok(())
    }

    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&self.position.end_record().encode())?;
        self.out.flush()?;
        Ok(self.out)
    }
}
