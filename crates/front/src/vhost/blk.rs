//! virtio-blk: what a chain of descriptors asks for, and what the device says of itself.
//!
//! ```text
//! chain   type u32 | reserved u32 | sector u64 | data to write, or 16-byte ranges      (readable)
//!         data that is read, or the id | status u8                                     (writable)
//! ```
//!
//! Everything is little-endian, and how it is cut into descriptors is the guest's business. A request that makes no sense is
//! answered with a status; a chain without room for a status is a broken one.

use proto::BLOCK_BYTES;
use proto::client::IO_BYTES_MAX;
use virtio_bindings::bindings::virtio_blk as v;

use super::chain::{BadChain, Chain, take_front, total_bytes};
use super::memory::{Memory, Outside, Segment};
use super::wire::feature;

pub const SECTOR_BYTES: u64 = 512;
const HEAD_BYTES: u64 = 16;
const RANGE_BYTES: u64 = 16;
const ID_BYTES: usize = v::VIRTIO_BLK_ID_BYTES as usize;
/// Segments of data in one request, as QEMU offers for rings of 128: with header and status it fits into one.
const SEGMENT_COUNT_MAX: u32 = 126;
/// 4 GiB: a longer one would be settled piece by piece.
const ZERO_SECTORS_MAX: u32 = 1 << 23;
/// Configuration that we know of: up to `write_zeroes_may_unmap` and its padding. Later fields are of features that we have not.
pub const CONFIG_BYTES: usize = 60;
/// The most that may be asked for at once.
pub const CONFIG_BYTES_MAX: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    Ok = v::VIRTIO_BLK_S_OK as u8,
    Failed = v::VIRTIO_BLK_S_IOERR as u8,
    Unsupported = v::VIRTIO_BLK_S_UNSUPP as u8,
}

/// The volume, as the device shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Of the volume. A guest sees whole sectors.
    pub bytes: u64,
    pub read_only: bool,
}

/// What a chain asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub wish: Wish,
    /// Where data come from or go.
    pub data: Vec<Segment>,
    /// Where the status goes.
    pub status_at: u64,
}

/// Offsets and lengths are within the volume, lengths of data at most `IO_BYTES_MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Read {
        offset: u64,
        bytes: u32,
    },
    Write {
        offset: u64,
        bytes: u32,
    },
    Discard {
        offset: u64,
        bytes: u64,
    },
    WriteZeroes {
        offset: u64,
        bytes: u64,
        keep_allocated: bool,
    },
    Flush,
    Id,
    /// Nothing that can be done.
    Refused(Status),
}

impl Wish {
    /// Bytes of memory that it takes while it is under way.
    pub fn payload_bytes(&self) -> u64 {
        match self {
            Wish::Read { bytes, .. } | Wish::Write { bytes, .. } => u64::from(*bytes),
            _ => 0,
        }
    }

    /// What it changes of the volume: start and end.
    pub fn changes(&self) -> Option<(u64, u64)> {
        match *self {
            Wish::Write { offset, bytes } => Some((offset, offset + u64::from(bytes))),
            Wish::Discard { offset, bytes } | Wish::WriteZeroes { offset, bytes, .. } => {
                Some((offset, offset + bytes))
            }
            Wish::Read { .. } | Wish::Flush | Wish::Id | Wish::Refused(_) => None,
        }
    }
}

impl Request {
    /// Reads the head of a request out of guest memory, and judges it.
    pub fn parse(memory: &Memory, chain: Chain, volume: Geometry) -> Result<Request, BadChain> {
        let Chain { mut readable, mut writable } = chain;
        // The last byte that can be written. A segment has at least one.
        let Some(last) = writable.last_mut() else {
            return Err(Outside { start: 0, bytes: 1 }.into());
        };
        last.bytes -= 1;
        let status_at = last.start + u64::from(last.bytes);
        if last.bytes == 0 {
            writable.pop();
        }
        let refused = |status| Request { wish: Wish::Refused(status), data: vec![], status_at };
        if total_bytes(&readable) < HEAD_BYTES {
            return Ok(refused(Status::Failed));
        }
        let mut head = [0; HEAD_BYTES as usize];
        read_all(memory, &take_front(&mut readable, HEAD_BYTES), &mut head)?;
        let kind = u32_at(&head, 0);
        let sector = u64_at(&head, 8);
        let wish = match kind {
            v::VIRTIO_BLK_T_IN => transfer(sector, &writable, volume)
                .map_or(Wish::Refused(Status::Failed), |(offset, bytes)| Wish::Read { offset, bytes }),
            v::VIRTIO_BLK_T_OUT if volume.read_only => Wish::Refused(Status::Failed),
            v::VIRTIO_BLK_T_OUT => transfer(sector, &readable, volume)
                .map_or(Wish::Refused(Status::Failed), |(offset, bytes)| Wish::Write { offset, bytes }),
            v::VIRTIO_BLK_T_FLUSH => Wish::Flush,
            v::VIRTIO_BLK_T_GET_ID => Wish::Id,
            v::VIRTIO_BLK_T_DISCARD | v::VIRTIO_BLK_T_WRITE_ZEROES if volume.read_only => {
                Wish::Refused(Status::Failed)
            }
            v::VIRTIO_BLK_T_DISCARD | v::VIRTIO_BLK_T_WRITE_ZEROES => {
                zeroing(memory, kind == v::VIRTIO_BLK_T_DISCARD, readable.clone(), volume)?
            }
            _ => Wish::Refused(Status::Unsupported),
        };
        let data = match wish {
            Wish::Read { .. } | Wish::Id => writable,
            Wish::Write { .. } => readable,
            _ => vec![],
        };
        Ok(Request { wish, data, status_at })
    }
}

/// Offset and length of a transfer that is in order: whole sectors within the volume, not too long.
fn transfer(sector: u64, data: &[Segment], volume: Geometry) -> Option<(u64, u32)> {
    let bytes = total_bytes(data);
    let offset = within(sector, bytes, volume)?;
    (bytes <= u64::from(IO_BYTES_MAX)).then_some((offset, bytes as u32))
}

fn within(sector: u64, bytes: u64, volume: Geometry) -> Option<u64> {
    let offset = sector.checked_mul(SECTOR_BYTES)?;
    let end = offset.checked_add(bytes)?;
    let capacity = volume.bytes / SECTOR_BYTES * SECTOR_BYTES;
    (bytes.is_multiple_of(SECTOR_BYTES) && end <= capacity).then_some(offset)
}

/// One range, as the configuration says: sector u64 | sectors u32 | flags u32.
fn zeroing(
    memory: &Memory,
    discard: bool,
    mut ranges: Vec<Segment>,
    volume: Geometry,
) -> Result<Wish, BadChain> {
    const UNMAP: u32 = 1;
    if total_bytes(&ranges) != RANGE_BYTES {
        return Ok(Wish::Refused(Status::Unsupported));
    }
    let mut range = [0; RANGE_BYTES as usize];
    read_all(memory, &take_front(&mut ranges, RANGE_BYTES), &mut range)?;
    let (sectors, flags) = (u32_at(&range, 8), u32_at(&range, 12));
    // A discard has no flags.
    let known_flags = if discard { 0 } else { UNMAP };
    if flags & !known_flags != 0 {
        return Ok(Wish::Refused(Status::Unsupported));
    }
    let bytes = u64::from(sectors) * SECTOR_BYTES;
    let Some(offset) = within(u64_at(&range, 0), bytes, volume).filter(|_| sectors <= ZERO_SECTORS_MAX)
    else {
        return Ok(Wish::Refused(Status::Failed));
    };
    Ok(match discard {
        true => Wish::Discard { offset, bytes },
        false => Wish::WriteZeroes { offset, bytes, keep_allocated: flags & UNMAP == 0 },
    })
}

/// `segments` are exactly as long as `into`.
fn read_all(memory: &Memory, segments: &[Segment], mut into: &mut [u8]) -> Result<(), BadChain> {
    for segment in segments {
        let (here, rest) = into.split_at_mut(segment.bytes as usize);
        memory.read(segment.start, here)?;
        into = rest;
    }
    Ok(())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// What the device says when it is asked for its id: the VDI's name, as far as it fits.
pub fn id(name: &[u8]) -> [u8; ID_BYTES] {
    let mut id = [0; ID_BYTES];
    let bytes = name.len().min(ID_BYTES);
    id[..bytes].copy_from_slice(&name[..bytes]);
    id
}

/// A driver that agrees to this flushes; for others whatever is answered has to be durable.
pub const FLUSH: u64 = 1 << v::VIRTIO_BLK_F_FLUSH;

/// Features of the device, with those of its rings and of the protocol.
pub fn features(volume: Geometry) -> u64 {
    let bit = |bit: u32| 1u64 << bit;
    let mut features = feature::RING_INDIRECT_DESC
        | feature::RING_EVENT_IDX
        | feature::PROTOCOL_FEATURES
        | feature::VERSION_1
        | bit(v::VIRTIO_BLK_F_SEG_MAX)
        | bit(v::VIRTIO_BLK_F_BLK_SIZE)
        | bit(v::VIRTIO_BLK_F_TOPOLOGY)
        | FLUSH
        | bit(v::VIRTIO_BLK_F_MQ);
    if volume.read_only {
        features |= bit(v::VIRTIO_BLK_F_RO);
    } else {
        features |= bit(v::VIRTIO_BLK_F_DISCARD) | bit(v::VIRTIO_BLK_F_WRITE_ZEROES);
    }
    features
}

/// The configuration space.
pub fn config(volume: Geometry, queue_count: u16) -> [u8; CONFIG_BYTES] {
    let block_sectors = (BLOCK_BYTES as u64 / SECTOR_BYTES) as u32;
    let mut config = [0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(volume.bytes / SECTOR_BYTES).to_le_bytes());
    put(12, &SEGMENT_COUNT_MAX.to_le_bytes());
    put(20, &(SECTOR_BYTES as u32).to_le_bytes());
    // Topology: 8 sectors are a physical block, transfers of such blocks are the smallest that need no reading.
    put(24, &[block_sectors.ilog2() as u8, 0]);
    put(26, &(block_sectors as u16).to_le_bytes());
    // A cache in which writes may stay until a flush, as drivers see it: they flush then, and what they flush is durable already but in write-back mode.
    put(32, &[1]);
    put(34, &queue_count.to_le_bytes());
    if !volume.read_only {
        // Discard: longest, ranges in one request, alignment.
        put(36, &ZERO_SECTORS_MAX.to_le_bytes());
        put(40, &1u32.to_le_bytes());
        put(44, &block_sectors.to_le_bytes());
        // Zeroes: longest, ranges in one request, and that they may free what was there.
        put(48, &ZERO_SECTORS_MAX.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        put(56, &[1]);
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_has_every_field_in_its_place() {
        let config = config(Geometry { bytes: (1 << 30) + 511, read_only: false }, 4);
        assert_eq!(u64_at(&config, 0), 1 << 21, "whole sectors");
        assert_eq!((u32_at(&config, 12), u32_at(&config, 20)), (126, 512));
        assert_eq!(config[24..28], [3, 0, 8, 0]);
        assert_eq!((config[32], &config[34..36]), (1, &[4, 0][..]));
        let words: Vec<u32> = (36..56).step_by(4).map(|at| u32_at(&config, at)).collect();
        assert_eq!(words, [1 << 23, 1, 8, 1 << 23, 1]);
        assert_eq!(config[56], 1);
    }

    #[test]
    fn a_snapshot_is_a_disk_that_cannot_be_written_to() {
        let volume = Geometry { bytes: 1 << 20, read_only: true };
        assert_eq!(features(volume) & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
        assert!(config(volume, 1)[36..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn transfers_are_whole_sectors_within_the_volume() {
        let volume = Geometry { bytes: 10 * 512 + 100, read_only: false };
        let data = |bytes| [Segment { start: 0, bytes }];
        assert_eq!(transfer(9, &data(512), volume), Some((9 * 512, 512)));
        assert_eq!(transfer(10, &[], volume), Some((10 * 512, 0)));
        for (sector, bytes) in [(9, 1024), (10, 512), (0, 511), (u64::MAX, 512), (1 << 55, 512)] {
            assert_eq!(transfer(sector, &data(bytes), volume), None, "{sector} {bytes}");
        }
        let large = Geometry { bytes: 1 << 40, read_only: false };
        assert!(transfer(0, &data(IO_BYTES_MAX), large).is_some());
        assert_eq!(transfer(0, &data(IO_BYTES_MAX + 512), large), None);
    }

    #[test]
    fn names_are_cut_to_an_id() {
        assert_eq!(id(b"alice"), *b"alice\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(id(b"a name that is too long"), *b"a name that is too l");
    }
}
