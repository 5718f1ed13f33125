//! A file that is said to be a backup, as `dog vdi restore` reads it.

use dog::backup_stream::reader::{Change, Content, Reader, StreamError};
use dog::backup_stream::writer::Writer;
use dog::backup_stream::{HEADER_BYTES, Header, Identity, RECORD_BYTES, RECORD_LEN_MAX};
use proto::Vid;
use proto::checksum::crc32c;

/// Where checksums are in a header and in a record.
const HEADER_CRC_AT: usize = HEADER_BYTES - 4;
const RECORD_CRC_AT: usize = RECORD_BYTES - 4;
const DATA_CRC_AT: usize = 24;
/// Of the VDI that a stream of version 1 is read for.
const ORIGINAL_BYTES: u64 = 1 << 30;

/// After a first byte that says whether a good header goes before the rest: as it is, and with checksums put right. What is behind those is
/// to be reached.
pub fn run(bytes: &[u8]) {
    let Some((how, rest)) = bytes.split_first() else { return };
    let header = match how % 3 {
        0 => Vec::new(),
        how => header(how == 2).encode().to_vec(),
    };
    let stream = [&header[..], rest].concat();
    read(&stream);
    read(&with_right_checksums(&stream));
}

fn read(bytes: &[u8]) {
    let Ok(mut reader) = Reader::begin(bytes) else { return };
    let header = reader.header().cloned();
    let size = header.as_ref().map_or(ORIGINAL_BYTES, |header| header.target.size);
    if header.is_none() {
        reader.set_shape(size, 22);
    }
    let mut changes = Vec::new();
    let mut end = 0;
    let whole = loop {
        match reader.next_change() {
            Ok(Some(change)) => {
                let len = length(&change);
                assert!(change.offset.checked_add(len).is_some_and(|end| end <= size), "within the VDI");
                if header.is_some() {
                    assert!(change.offset >= end && (1..=RECORD_LEN_MAX).contains(&len), "in order");
                    end = change.offset + len;
                }
                changes.push(change);
            }
            Ok(None) => break true,
            Err(StreamError::Unreadable(why)) => panic!("memory can be read: {why}"),
            Err(_) => break false,
        }
    };
    let position = reader.into_position();
    assert!(position.stream_bytes <= bytes.len() as u64);
    assert_eq!(position.records, changes.len() as u64);
    if let Some(header) = header.filter(|_| whole) {
        let (sources, _): (Vec<_>, Vec<_>) = changes.iter().partition(|change| change.source_crc.is_some());
        assert!(sources.is_empty() == (header.source.is_none() || changes.is_empty()));
        assert!(position.stream_bytes + RECORD_BYTES as u64 == bytes.len() as u64, "nothing follows its end");
    }
}

fn length(change: &Change) -> u64 {
    match &change.content {
        Content::Data(data) => data.len() as u64,
        Content::Zeros(len) => *len,
    }
}

fn with_right_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.len() < HEADER_BYTES {
        return bytes;
    }
    let crc = crc32c(&bytes[..HEADER_CRC_AT]);
    bytes[HEADER_CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    let mut at = HEADER_BYTES;
    while bytes.len() >= at + RECORD_BYTES {
        let (head, rest) = bytes[at..].split_at_mut(RECORD_BYTES);
        let kind = head[4];
        let len = u64::from_le_bytes(head[16..24].try_into().expect("eight bytes"));
        let data = if kind == 1 { len.min(rest.len() as u64) as usize } else { 0 };
        if kind == 1 {
            head[DATA_CRC_AT..DATA_CRC_AT + 4].copy_from_slice(&crc32c(&rest[..data]).to_le_bytes());
        }
        let crc = crc32c(&head[..RECORD_CRC_AT]);
        head[RECORD_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        at += RECORD_BYTES + data;
    }
    bytes
}

fn header(has_source: bool) -> Header {
    let identity = |vid| Identity {
        vid: Vid(vid),
        snap_id: vid,
        create_time: 1 << 32,
        snap_ctime: 2 << 32,
        size: 64 << 20,
        tag: b"monday".to_vec(),
    };
    let source = has_source.then(|| identity(6));
    Header { name: b"disk".to_vec(), block_size_shift: 22, target: identity(7), source }
}

fn stream(has_source: bool) -> Vec<u8> {
    let before = has_source.then_some(&[4; 32][..]);
    let mut writer = Writer::begin(Vec::new(), &header(has_source)).expect("to memory");
    writer.data(4096, &[1; 32], before).expect("to memory");
    writer.zeros(1 << 20, 4 << 20, before).expect("to memory");
    writer.data(60 << 20, &[2; 16], before).expect("to memory");
    writer.finish().expect("to memory")
}

/// One with its header, one of the original, and the records of one that is whole and of one that starts from another snapshot.
pub fn seeds() -> Vec<Vec<u8>> {
    let words = |words: [u32; 4]| words.map(u32::to_le_bytes).concat();
    let original = [
        &[0][..],
        &1u32.to_le_bytes(),
        &0x1192_1192_u32.to_le_bytes(),
        &words([0, 4096, 32, 0]),
        &[3; 32],
        &words([u32::MAX, 0, 0, 0]),
    ];
    let records = |how: u8| [&[how][..], &stream(how == 2)[HEADER_BYTES..]].concat();
    vec![[&[0][..], &stream(false)].concat(), original.concat(), records(1), records(2)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(stream: &[u8]) -> Result<u64, StreamError> {
        let mut reader = Reader::begin(stream)?;
        if reader.header().is_none() {
            reader.set_shape(ORIGINAL_BYTES, 22);
        }
        while reader.next_change()?.is_some() {}
        Ok(reader.into_position().records)
    }

    #[test]
    fn seeds_are_streams_with_right_checksums() {
        assert_eq!(count(&seeds()[1][1..]), Ok(1));
        for has_source in [false, true] {
            let whole = stream(has_source);
            assert_eq!(count(&whole), Ok(3));
            assert!(with_right_checksums(&whole) == whole);
        }
    }
}
