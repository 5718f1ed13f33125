//! Formatting a disk, and opening it: superblock, journal scan, tables, replay.
//!
//! Opening never trusts a byte: everything is checked before it is used, and what cannot be right is an [`OpenError`], never
//! a panic and never silently less data.

use std::collections::VecDeque;
use std::io;

use buffer::AlignedBuf;
use bytes::Bytes;
use proto::BLOCK_BYTES;
use proto::object::{Stamp, Unsettled};

use crate::ahead::Ahead;
use crate::disk::Disk;
use crate::journal::{Journal, RecordInfo, Recovered as RecoveredJournal};
use crate::layout::*;
use crate::record::{Entry, RecordHead, decode_entries, record_body};
use crate::slots::Slots;
use crate::store::Store;
use crate::tables::{Contradiction, Tables, encode_free_page};
use crate::tags::Tags;
use crate::written::{Removed, Written};

#[derive(Clone, Copy, Debug)]
pub struct FormatOptions {
    /// How much of the disk to use.
    pub size_bytes: u64,
    /// 1 MiB to 4 GiB; see `default_journal_bytes`.
    pub journal_bytes: u64,
    /// Distinguishes this disk from every other, and from its own earlier life: choose it at random.
    pub store_id: u64,
}

impl FormatOptions {
    pub fn new(size_bytes: u64, store_id: u64) -> Self {
        FormatOptions { size_bytes, journal_bytes: default_journal_bytes(size_bytes), store_id }
    }

    /// What a disk that can grow must have when it is formatted.
    pub fn first_bytes(&self) -> Result<u64, FormatError> {
        self.geometry().map(|geometry| geometry.first_bytes())
    }

    fn geometry(&self) -> Result<Geometry, FormatError> {
        let FormatOptions { size_bytes, journal_bytes, store_id } = *self;
        Geometry::fit(store_id, size_bytes, journal_bytes)
            .ok_or(FormatError::TooSmall { size_bytes, journal_bytes })
    }
}

/// A thirty-second of the disk, 16 to 256 MiB: enough to coalesce overwrites, read back in less than a second when opened. A
/// lone 4 KiB write takes 8 KiB of it, and beyond 64 MiB of written blocks in memory others wait.
pub fn default_journal_bytes(size_bytes: u64) -> u64 {
    (size_bytes / 32).clamp(16 << 20, 256 << 20)
}

#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error("{size_bytes} bytes are too few for a store with a journal of {journal_bytes} bytes")]
    TooSmall { size_bytes: u64, journal_bytes: u64 },
    #[error("the disk has {found} bytes, asked to use {expected}")]
    DiskSmaller { expected: u64, found: u64 },
    #[error("cannot write to the disk")]
    Io(#[from] io::Error),
}

/// Why a disk cannot be opened. What to do about damage depends on what else there is of the data, which a store does not know.
///
/// Nothing has been written to a disk that is refused as damaged.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("this is not a Sheepdog disk: format it first")]
    NotAStore,
    #[error(
        "the disk has format version {found}, this program knows {FORMAT_VERSION}: use the program that made it"
    )]
    OtherVersion { found: u32 },
    #[error("both copies of the superblock are damaged")]
    DamagedSuperblock,
    #[error("the disk has {found} bytes but its store needs {expected}: was it cut, or copied in part?")]
    DiskSmaller { expected: u64, found: u64 },
    #[error(
        "record {seq} of the journal is damaged, and without it writes that were acknowledged would be undone"
    )]
    DamagedJournal { seq: u64 },
    #[error("the newest superblock is lost: the one at hand knows of {known} opens, the journal of {found}")]
    LostSuperblock { known: u64, found: u64 },
    #[error("the object tables are damaged")]
    DamagedTables,
    #[error("cannot read or write the disk")]
    Io(#[from] io::Error),
}

impl OpenError {
    /// Does the disk hold a store that cannot be read any more, as a whole?
    pub fn is_damage(&self) -> bool {
        use OpenError::*;
        matches!(self, DamagedSuperblock | DamagedJournal { .. } | LostSuperblock { .. } | DamagedTables)
    }
}

/// What opening a disk found.
#[derive(Clone, Debug)]
pub struct Recovered {
    pub store_id: u64,
    /// Every change that some other replica may not hold.
    pub unsettled: Vec<Unsettled>,
    /// Journal records that were replayed.
    pub records: u64,
}

const CHUNK_BYTES: u64 = 1 << 20;

impl Store {
    /// Makes an empty store. Whatever was on the disk is gone once this returns; a crash before leaves no store.
    pub fn format(disk: &mut dyn Disk, options: &FormatOptions) -> Result<(), FormatError> {
        let geometry = options.geometry()?;
        let expected = if disk.can_grow() { geometry.first_bytes() } else { geometry.size_bytes() };
        if disk.size() < expected {
            return Err(FormatError::DiskSmaller { expected, found: disk.size() });
        }
        // The superblocks go first: between here and the end the disk is no store, neither the old nor the new.
        let zeros = vec![0; CHUNK_BYTES as usize];
        let maps_offset = geometry.page_offset(PageId::Maps(0));
        let mut offset = 0;
        while offset < maps_offset {
            let len = CHUNK_BYTES.min(maps_offset - offset);
            disk.write_at(offset, &zeros[..len as usize])?;
            if offset == 0 {
                disk.sync()?;
            }
            offset += len;
        }
        let mut pages = 0..geometry.map_pages();
        while !pages.is_empty() {
            let first = pages.start;
            let some = pages.by_ref().take((CHUNK_BYTES / BLOCK) as usize);
            let bytes: Vec<u8> = some.flat_map(|page| encode_free_page(&geometry, page)).collect();
            disk.write_at(geometry.page_offset(PageId::Maps(first)), &bytes)?;
        }
        disk.sync()?;
        let superblock = Superblock {
            geometry,
            revision: 1,
            incarnation: 0,
            tail_seq: 1,
            tail_position: 0,
            tail_incarnation: 0,
            durable: 0,
        };
        disk.write_at(superblock.offset(), &superblock.encode())?;
        disk.sync()?;
        Ok(())
    }

    /// Opens a disk after an orderly end or a crash, which are the same.
    pub fn open(disk: &mut dyn Disk) -> Result<(Store, Recovered), OpenError> {
        let (superblock, is_old) = read_superblock(disk)?;
        let geometry = superblock.geometry;
        let scan = scan_journal(disk, &superblock)?;
        let mut tables = Tables::empty(geometry);
        load_tables(disk, &mut tables)?;
        let mut replay = Replay { tables, written: Written::default(), tags: Tags::default(), scan };
        replay.run()?;
        let Replay { mut tables, mut written, tags, scan } = replay;
        let given_up = tables.index().map_err(|Contradiction| OpenError::DamagedTables)?;
        let mut slots = Slots::new(tables.refs(), slots_on(disk, &tables)?);
        promise_slots(&tables, &mut slots, &mut written, disk.size())?;
        slots.write_up_to(geometry.slots_within(disk.written_until(geometry.slot_offset(slots.begun()))));

        // A new incarnation, durably, before the first record of it. The sync also makes durable what the scan saw
        // but only a volatile cache may have held.
        disk.sync()?;
        for page in given_up {
            disk.write_at(geometry.page_offset(page), &tables.encode_page(page))?;
        }
        let superblock =
            Superblock { incarnation: superblock.incarnation + 1, durable: scan.last_seq(), ..superblock };
        let superblock = write_superblock(disk, superblock, is_old)?;

        let records = scan.infos.len() as u64;
        let found = RecoveredJournal {
            tail: superblock.tail_position,
            tail_seq: superblock.tail_seq,
            tail_incarnation: superblock.tail_incarnation,
            head: scan.head,
            infos: scan.infos,
        };
        let journal = Journal::new(geometry, superblock.incarnation, found);
        let recovered = Recovered { store_id: geometry.store_id, unsettled: tags.unsettled(), records };
        let mut store = Store::assemble(superblock, tables, slots, journal, written, tags);
        store.ahead = Ahead::new(&geometry, disk.ahead_bytes_max());
        // What the last life left to be merged does not wait for somebody to ask something.
        store.drive_write_back();
        Ok((store, recovered))
    }
}

/// Writes a superblock as the newest one; over an older format into both copies, so that no program that does not know this one finds a
/// copy that it would believe.
fn write_superblock(disk: &mut dyn Disk, mut superblock: Superblock, both: bool) -> io::Result<Superblock> {
    for _ in 0..1 + u32::from(both) {
        superblock.revision += 1;
        disk.write_at(superblock.offset(), &superblock.encode())?;
        disk.sync()?;
    }
    Ok(superblock)
}

/// The superblock that counts, and whether an older program wrote it.
fn read_superblock(disk: &mut dyn Disk) -> Result<(Superblock, bool), OpenError> {
    if disk.size() < 2 * BLOCK {
        return Err(OpenError::NotAStore);
    }
    let (mut copies, mut is_old) = (Vec::new(), false);
    for offset in [0, BLOCK] {
        let mut block = [0; BLOCK_BYTES];
        disk.read_at(offset, &mut block)?;
        let copy = Superblock::decode(&block);
        is_old |= matches!(copy, SuperblockCopy::Good(_)) && Superblock::version(&block) < FORMAT_VERSION;
        copies.push(copy);
    }
    // Whoever wrote it went on from here in a way that we do not understand.
    let later = copies.iter().find_map(|copy| match copy {
        SuperblockCopy::OtherVersion(found) if *found > FORMAT_VERSION => Some(*found),
        _ => None,
    });
    if let Some(found) = later {
        return Err(OpenError::OtherVersion { found });
    }
    let good = |copy: &SuperblockCopy| match copy {
        SuperblockCopy::Good(sb) => Some(*sb),
        _ => None,
    };
    let Some(superblock) = copies.iter().filter_map(good).max_by_key(|sb| sb.revision) else {
        let version = copies.iter().find_map(|c| match c {
            SuperblockCopy::OtherVersion(found) => Some(*found),
            _ => None,
        });
        return Err(match version {
            Some(found) => OpenError::OtherVersion { found },
            None if copies.contains(&SuperblockCopy::Damaged) => OpenError::DamagedSuperblock,
            None => OpenError::NotAStore,
        });
    };
    let geometry = &superblock.geometry;
    let expected = if disk.can_grow() { geometry.slots_offset() } else { geometry.size_bytes() };
    if disk.size() < expected {
        return Err(OpenError::DiskSmaller { expected, found: disk.size() });
    }
    Ok((superblock, is_old))
}

/// The records that count, and where they end.
struct Scan {
    first_seq: u64,
    records: Vec<(Vec<Entry>, Vec<Bytes>)>,
    infos: VecDeque<RecordInfo>,
    head: u64,
}

impl Scan {
    fn last_seq(&self) -> u64 {
        self.first_seq + self.infos.len() as u64 - 1
    }
}

fn scan_journal(disk: &mut dyn Disk, superblock: &Superblock) -> Result<Scan, OpenError> {
    let geometry = superblock.geometry;
    let ring = geometry.journal_blocks;
    let mut scan = Scan {
        first_seq: superblock.tail_seq,
        records: Vec::new(),
        infos: VecDeque::new(),
        head: superblock.tail_position,
    };
    let mut incarnation = superblock.tail_incarnation;
    loop {
        let seq = scan.last_seq() + 1;
        // A record that would cross the end of the ring begins at its start instead.
        let places = [scan.head, scan.head.next_multiple_of(ring)];
        let mut found = None;
        for position in places {
            let room = (superblock.tail_position + ring).saturating_sub(position);
            let accepts = |head: &RecordHead| {
                head.store_id == geometry.store_id
                    && head.seq == seq
                    && head.position == position
                    && (incarnation..=superblock.incarnation).contains(&head.incarnation)
                    && head.blocks() <= room.min(ring - position % ring)
            };
            found = read_record(disk, geometry.journal_offset(position), accepts)?;
            if found.is_some() {
                break;
            }
        }
        let Some((head, entries, data)) = found else {
            refuse_if_damaged(disk, superblock, seq)?;
            return Ok(scan);
        };
        incarnation = head.incarnation;
        scan.head = head.position + head.blocks();
        scan.infos.push_back(RecordInfo {
            begin: head.position,
            end: scan.head,
            incarnation,
            written: true,
            ..RecordInfo::default()
        });
        let entries = decode_entries(&entries).ok_or(OpenError::DamagedJournal { seq })?;
        scan.records.push((entries, data));
    }
}

/// The record at `offset`, if it is one, is accepted, and is whole.
fn read_record(
    disk: &mut dyn Disk,
    offset: u64,
    accepts: impl Fn(&RecordHead) -> bool,
) -> Result<Option<(RecordHead, Vec<u8>, Vec<Bytes>)>, OpenError> {
    let mut first = [0; BLOCK_BYTES];
    disk.read_at(offset, &mut first)?;
    let Some(head) = RecordHead::decode(&first).filter(|head| accepts(head)) else { return Ok(None) };
    let mut record = AlignedBuf::zeroed(head.blocks() as usize * BLOCK_BYTES);
    disk.read_at(offset, &mut record)?;
    let Some((entries, data)) = record_body(&head, &record.freeze()) else { return Ok(None) };
    Ok(Some((head, entries, data)))
}

/// The scan ended before record `seq`. A torn end is what a crash leaves; but if the superblock or a later record says that
/// `seq` was durable, then it has rotted, and going on would undo what was answered. The same for a record of a later open than the
/// superblock knows: the scan has passed it over, as the superblock that was durable before it is not the one we read.
fn refuse_if_damaged(disk: &mut dyn Disk, superblock: &Superblock, seq: u64) -> Result<(), OpenError> {
    if superblock.durable >= seq {
        return Err(OpenError::DamagedJournal { seq });
    }
    let geometry = superblock.geometry;
    let mut buf = vec![0; CHUNK_BYTES as usize];
    let mut at = 0;
    while at < geometry.journal_blocks {
        let blocks = (CHUNK_BYTES / BLOCK).min(geometry.journal_blocks - at);
        let bytes = &mut buf[..(blocks * BLOCK) as usize];
        disk.read_at(geometry.journal_offset(at), bytes)?;
        let heads = bytes.chunks_exact(BLOCK_BYTES).enumerate();
        for (i, head) in heads.filter_map(|(i, block)| Some((i, RecordHead::decode(block)?))) {
            let lies_right = head.position % geometry.journal_blocks == at + i as u64;
            if head.store_id != geometry.store_id || !lies_right {
                continue;
            }
            if head.incarnation > superblock.incarnation {
                let (known, found) = (superblock.incarnation, head.incarnation);
                return Err(OpenError::LostSuperblock { known, found });
            }
            if head.durable >= seq {
                return Err(OpenError::DamagedJournal { seq });
            }
        }
        at += blocks;
    }
    Ok(())
}

fn load_tables(disk: &mut dyn Disk, tables: &mut Tables) -> Result<(), OpenError> {
    let geometry = tables.geometry;
    let mut buf = vec![0; CHUNK_BYTES as usize];
    let per_read = (CHUNK_BYTES / BLOCK) as u32;
    let kinds: [(u32, fn(u32) -> PageId); 2] =
        [(geometry.descriptor_pages(), PageId::Descriptors), (geometry.map_pages(), PageId::Maps)];
    for (pages, kind) in kinds {
        for first in (0..pages).step_by(per_read as usize) {
            let count = per_read.min(pages - first);
            let bytes = &mut buf[..count as usize * BLOCK_BYTES];
            disk.read_at(geometry.page_offset(kind(first)), bytes)?;
            for (i, page) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
                let loaded = tables.load_page(kind(first + i as u32), page);
                loaded.map_err(|Contradiction| OpenError::DamagedTables)?;
            }
        }
    }
    Ok(())
}

struct Replay {
    tables: Tables,
    written: Written,
    tags: Tags,
    scan: Scan,
}

impl Replay {
    fn run(&mut self) -> Result<(), OpenError> {
        for (i, (entries, data)) in std::mem::take(&mut self.scan.records).into_iter().enumerate() {
            let seq = self.scan.first_seq + i as u64;
            let mut data = data.into_iter();
            for entry in entries {
                self.apply(seq, entry, &mut data).map_err(|Contradiction| OpenError::DamagedTables)?;
            }
        }
        Ok(())
    }

    fn info(&mut self, seq: u64) -> &mut RecordInfo {
        &mut self.scan.infos[(seq - self.scan.first_seq) as usize]
    }

    fn apply(
        &mut self,
        seq: u64,
        entry: Entry,
        data: &mut impl Iterator<Item = Bytes>,
    ) -> Result<(), Contradiction> {
        match entry {
            Entry::Write { oid, first, crcs } => {
                if u64::from(first) + crcs.len() as u64 > OBJECT_BLOCKS_MAX {
                    return Err(Contradiction);
                }
                for (block, crc) in (first..).zip(crcs) {
                    let bytes = data.next().ok_or(Contradiction)?;
                    let replaced = self.written.put(oid, block, crc, seq, bytes);
                    let info = self.info(seq);
                    info.live += 1;
                    let touched = (oid, block / SLOT_BLOCKS);
                    if info.touched.last() != Some(&touched) {
                        info.touched.push(touched);
                    }
                    self.needed_less(replaced);
                }
            }
            Entry::Drop { oid, first, count } => {
                let mut removed = Removed::default();
                let first = u64::from(first);
                self.written.drop_range(oid, first, first + u64::from(count), &mut removed);
                self.needed_less(removed.data_seqs);
            }
            Entry::CloneWritten { from, to } => {
                // Written blocks of `to` went with the `Drop` before this.
                if self.written.chunks_of(to).next().is_some() {
                    return Err(Contradiction);
                }
                for (chunk, data_seq) in self.written.clone_object(from, to, seq) {
                    let info = self.info(data_seq);
                    info.live += 1;
                    info.touched.push((to, chunk));
                }
            }
            Entry::Map { map, oid, group, chunks } => self.tables.set_map(map, oid, group, &chunks, seq)?,
            Entry::MapFree { map } => drop(self.tables.free_map(map, seq)?),
            Entry::MapChunk { map, index, chunk } => drop(self.tables.set_chunk(map, index, chunk, seq)?),
            Entry::Descriptor(descriptor) => drop(self.tables.set_descriptor(&descriptor, seq)?),
            Entry::Homed { oid, chunk, mask, upto } => {
                let mut removed = Removed::default();
                self.written.homed(oid, chunk, mask, upto, &mut removed);
                self.needed_less(removed.data_seqs);
            }
            Entry::Tag { key, origin, settled } => {
                if let Some(settled) = settled {
                    let stamp = Stamp { generation: key.stamp.generation, seq: settled };
                    self.settle(key.vid, stamp);
                }
                if settled.is_none_or(|settled| key.stamp.seq > settled) {
                    let logged_before = self.tags.insert(key, origin, seq);
                    logged_before.into_iter().for_each(|old| self.info(old).tags -= 1);
                    let info = self.info(seq);
                    info.tags += 1;
                    info.tag_keys.push(key);
                }
            }
            Entry::Untag { key } => {
                let logged_in = self.tags.remove(&key);
                logged_in.into_iter().for_each(|old| self.info(old).tags -= 1);
            }
        }
        Ok(())
    }

    fn settle(&mut self, vid: proto::Vid, stamp: Stamp) {
        let Scan { first_seq, infos, .. } = &mut self.scan;
        let first = *first_seq;
        self.tags.settle(vid, stamp, |logged_in| infos[(logged_in - first) as usize].tags -= 1);
    }

    fn needed_less(&mut self, records: impl IntoIterator<Item = u64>) {
        records.into_iter().for_each(|seq| self.info(seq).live -= 1);
    }
}

/// The slots that the disk has. A file may be shorter than its store will be one day, but what is in use must be on it.
fn slots_on(disk: &dyn Disk, tables: &Tables) -> Result<u32, OpenError> {
    let present = tables.geometry.slots_within(disk.size());
    match tables.refs().iter().rposition(|refs| *refs > 0) {
        Some(last) if last as u32 >= present => Err(OpenError::DiskSmaller {
            expected: tables.geometry.slot_offset(last as u32 + 1),
            found: disk.size(),
        }),
        _ => Ok(present),
    }
}

/// The promises of before the crash, found again: a written block without a slot of its own needs one on its way home.
fn promise_slots(
    tables: &Tables,
    slots: &mut Slots,
    written: &mut Written,
    disk_bytes: u64,
) -> Result<(), OpenError> {
    let chunks: Vec<_> = written.chunks().collect();
    let mut promised = 0;
    for (oid, chunk) in chunks {
        let at = tables.chunk(oid, chunk);
        if tables.map_id(oid, chunk / GROUP_CHUNKS).is_none() {
            return Err(OpenError::DamagedTables);
        }
        if at.is_hole() || tables.is_shared(at.slot) {
            written.chunk_mut(oid, chunk).expect("just listed").promised = true;
            slots.promise();
            promised += 1;
        }
    }
    let missing = u32::saturating_sub(promised, slots.free_count() - slots.absent());
    match missing {
        0 => Ok(()),
        // They were there when they were promised.
        _ if missing <= slots.absent() => Err(OpenError::DiskSmaller {
            expected: tables.geometry.slot_offset(slots.present() + missing),
            found: disk_bytes,
        }),
        _ => Err(OpenError::DamagedTables),
    }
}
