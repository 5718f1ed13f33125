//! The guest's memory, as the front-end shares it.
//!
//! Everything in it is untrusted and may change while it is looked at: every address is checked against the regions at every
//! access, and what is judged is copied first. A front-end that makes a file shorter than the memory it has shared would end
//! us by SIGBUS; only programs of our own user reach the socket, and QEMU seals its memory.

use std::fs::File;
use std::os::fd::OwnedFd;

use buffer::AlignedBuf;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, GuestRegionMmap, MmapRegion, Permissions,
    VolatileSlice,
};

use super::wire::Region;

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub start: u64,
    pub bytes: u32,
}

/// An address that is not in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes at {start:#x} are not in the guest's memory")]
pub struct Outside {
    pub start: u64,
    pub bytes: u64,
}

/// Maps a part of a file that must be there: what lies beyond its end would be a SIGBUS when it is touched.
pub fn map_shared(file: OwnedFd, offset: u64, bytes: u64) -> Result<MmapRegion, String> {
    let file = File::from(file);
    let file_bytes = file.metadata().map_err(|error| error.to_string())?.len();
    if offset.checked_add(bytes).is_none_or(|end| end > file_bytes) {
        return Err(format!("{bytes} bytes at {offset} of a file of {file_bytes}"));
    }
    let size = usize::try_from(bytes).map_err(|error| error.to_string())?;
    MmapRegion::from_file(FileOffset::new(file, offset), size).map_err(|error| error.to_string())
}

/// Mapped for as long as the value lives.
#[derive(Default)]
pub struct Memory {
    map: GuestMemoryMmap<()>,
    regions: Vec<Region>,
}

impl Memory {
    /// Maps `regions`, each from its file. `Err` says why that cannot be.
    pub fn new(regions: Vec<Region>, files: Vec<OwnedFd>) -> Result<Memory, String> {
        if regions.len() != files.len() {
            return Err(format!("{} regions of memory in {} files", regions.len(), files.len()));
        }
        let map = |(region, file): (&Region, OwnedFd)| {
            let mapping = map_shared(file, region.file_offset, region.bytes)?;
            GuestRegionMmap::new(mapping, GuestAddress(region.guest_start))
                .ok_or_else(|| format!("a region of memory at {:#x} is too large", region.guest_start))
        };
        let mapped = regions.iter().zip(files).map(map).collect::<Result<Vec<_>, String>>()?;
        let map = GuestMemoryMmap::from_regions(mapped).map_err(|error| error.to_string())?;
        Ok(Memory { map, regions })
    }

    pub fn map(&self) -> &GuestMemoryMmap<()> {
        &self.map
    }

    /// Where in the guest lies what has this address in the front-end's process?
    pub fn guest_address(&self, user: u64) -> Option<GuestAddress> {
        let at = |region: &Region| {
            let offset = user.checked_sub(region.user_start).filter(|offset| *offset < region.bytes)?;
            region.guest_start.checked_add(offset).map(GuestAddress)
        };
        self.regions.iter().find_map(at)
    }

    pub fn check(&self, segment: Segment) -> Result<(), Outside> {
        let start = GuestAddress(segment.start);
        let fits = self.map.check_range(start, segment.bytes as usize, Permissions::ReadWrite);
        if fits || segment.bytes == 0 { Ok(()) } else { Err(outside(segment)) }
    }

    /// Copies a few bytes out of the guest.
    pub fn read(&self, start: u64, into: &mut [u8]) -> Result<(), Outside> {
        let bytes = into.len() as u64;
        self.map.read_slice(into, GuestAddress(start)).map_err(|_| Outside { start, bytes })
    }

    /// Appends the content of `segments` to `buffer`, which must have room for it.
    pub fn gather(&self, segments: &[Segment], buffer: &mut AlignedBuf) -> Result<(), Outside> {
        for segment in segments {
            for piece in self.pieces(*segment)? {
                let spare = &mut buffer.spare_mut()[..piece.len()];
                // SAFETY: `copy_to_volatile_slice` copies the shorter of two equal lengths: all of `spare` is filled.
                unsafe {
                    piece.copy_to_volatile_slice(VolatileSlice::new(spare.as_mut_ptr().cast(), spare.len()));
                    buffer.assume_filled(piece.len());
                }
            }
        }
        Ok(())
    }

    /// Lays `data` out over `segments`, which together are as long.
    pub fn scatter(&self, segments: &[Segment], mut data: &[u8]) -> Result<(), Outside> {
        for segment in segments {
            for piece in self.pieces(*segment)? {
                let (here, rest) = data.split_at(piece.len().min(data.len()));
                piece.copy_from(here);
                data = rest;
            }
        }
        Ok(())
    }

    pub fn write_byte(&self, at: u64, byte: u8) -> Result<(), Outside> {
        self.map.write_obj(byte, GuestAddress(at)).map_err(|_| Outside { start: at, bytes: 1 })
    }

    /// A segment may span regions that touch.
    fn pieces(&self, segment: Segment) -> Result<Vec<VolatileSlice<'_>>, Outside> {
        self.map
            .get_slices(GuestAddress(segment.start), segment.bytes as usize, Permissions::ReadWrite)
            .and_then(|pieces| pieces.collect())
            .map_err(|_| outside(segment))
    }
}

fn outside(segment: Segment) -> Outside {
    Outside { start: segment.start, bytes: segment.bytes.into() }
}
