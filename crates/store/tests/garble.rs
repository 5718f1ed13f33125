//! Whatever bytes lie on a disk: opening and reading it never panics, and never shows anything but what was written.
//!
//! A read is right, or says `Corrupt`, or the disk does not open. Only the very last records of the journal, for which no
//! later one vouches, may be taken for the torn end that a crash leaves: where the journal is garbled, they are of an object that
//! nobody looks at.

mod common;

use common::*;
use proto::checksum::ZERO_BLOCK_CRC;
use proto::object::*;
use proto::{BLOCK_BYTES, Oid};
use store::Store;
use store::testing::{SimDisk, SimRng};

const OBJECTS: u64 = 5;
const NOBODY: Oid = Oid(1);
const SIZE_BYTES: u64 = 14 << 20;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// Regions of the disk of `SIZE_BYTES`, as blocks.
const SUPERBLOCKS: std::ops::Range<u64> = 0..2;
const JOURNAL: std::ops::Range<u64> = 16..16 + JOURNAL_BYTES / BLOCK;

struct Image {
    disk: SimDisk,
    model: Model,
}

/// A disk with a history: some of it home, some in the journal.
fn image(seed: u64) -> Image {
    let mut machine = Machine::new(seed, SIZE_BYTES);
    let mut workload = Workload::new(OBJECTS);
    let mut model = Model::default();
    for _ in 0..1 + machine.rng.below(4) {
        for _ in 0..machine.rng.below(60) {
            let (oid, change, values, tag) = workload.change(&mut machine.rng);
            model.apply(oid, &change, &values);
            let op = ObjectOp::Change { oid, change, data: content(&values), tag };
            assert_eq!(machine.call(op), ObjectReply::Done);
        }
        match machine.rng.below(3) {
            0 => machine.checkpoint(),
            1 => drop(machine.reopen()),
            _ => {}
        }
    }
    Image { disk: machine.disk, model }
}

/// Records that may be lost without anybody noticing.
fn append_unwatched(disk: &mut SimDisk) {
    let mut machine = Machine::open(disk.clone()).unwrap();
    for n in 0..6 {
        assert_eq!(machine.call(write(NOBODY, 0, &[n + 1], WriteBase::Keep)), ObjectReply::Done);
    }
    *disk = machine.disk;
}

/// Damages a few places of `blocks`.
fn garble(disk: &mut SimDisk, blocks: std::ops::Range<u64>, rng: &mut SimRng) {
    let written: Vec<u64> =
        disk.written_offsets().into_iter().filter(|at| blocks.contains(&(at / BLOCK))).collect();
    if written.is_empty() {
        return;
    }
    for _ in 0..1 + rng.below(4) {
        let block = written[rng.below(written.len() as u64) as usize];
        match rng.below(5) {
            0..2 => disk.flip_bit(block + rng.below(BLOCK), rng.below(8) as u8),
            2 => {
                let at = rng.below(BLOCK - 8);
                let noise: Vec<u8> = (0..rng.below(BLOCK - at)).map(|_| rng.next_u64() as u8).collect();
                disk.garble(block + at, &noise);
            }
            3 => disk.garble(block + rng.below(8) * 512, &[0; 512]),
            _ => {
                let from = written[rng.below(written.len() as u64) as usize];
                let mut other = vec![0; BLOCK_BYTES];
                store::Disk::read_at(disk, from, &mut other).unwrap();
                disk.garble(block, &other);
            }
        }
    }
}

/// Opens the disk and reads everything; returns whether it opened.
fn look(disk: SimDisk, model: &Model, rng: &mut SimRng) -> bool {
    let Ok(mut machine) = Machine::open(disk) else { return false };
    machine.store.assert_invariants();
    check(&mut machine, model);
    // Write-back copies what it finds, and must not make anything of it look right.
    for _ in 0..3 {
        let from = Oid(100 + rng.below(OBJECTS));
        machine.call(write(Oid(200), 5, &[9], WriteBase::CloneOf(from)));
        machine.call(write(
            from,
            3,
            &[model.values(from, BlockRange::new(3, 1)).map_or(0, |v| v[0])],
            WriteBase::Keep,
        ));
        machine.call(change(Oid(200), Change::Delete));
    }
    machine.checkpoint();
    machine.store.assert_invariants();
    true
}

fn check(machine: &mut Machine, model: &Model) {
    for oid in (100..100 + OBJECTS).map(Oid) {
        for range in test_blocks() {
            for blocks in std::iter::once(range)
                .chain((range.first..range.first + range.count).map(|b| BlockRange::new(b, 1)))
            {
                match machine.call(ObjectOp::Read { oid, blocks }) {
                    ObjectReply::Failed(StoreFailure::Corrupt { .. }) => {}
                    reply => assert_eq!(decode_read(reply), model.values(oid, blocks), "{oid} {blocks:?}"),
                }
            }
        }
        let reply = machine.call(ObjectOp::Checksums { oid, blocks: BlockRange::ALL });
        assert_eq!(reply == ObjectReply::Absent, !model.0.contains_key(&oid), "{reply:?}");
        for blocks in test_blocks() {
            let ObjectReply::Checksums(all) = &reply else { break };
            let of_range = machine.call(ObjectOp::Checksums { oid, blocks });
            let ObjectReply::Checksums(of_range) = of_range else { panic!("{of_range:?}") };
            let or_zeros = |crcs: &[u32], at: u32| crcs.get(at as usize).copied().unwrap_or(ZERO_BLOCK_CRC);
            assert!(of_range.len() <= blocks.count as usize);
            for at in 0..blocks.count {
                assert_eq!(or_zeros(&of_range, at), or_zeros(all, blocks.first + at), "{oid} {blocks:?}");
            }
        }
    }
    let listed = machine.call(ObjectOp::List { first: Oid(100), last: Oid(100 + OBJECTS), limit: 100 });
    let ObjectReply::Objects(listed) = listed else { panic!("{listed:?}") };
    assert!(listed.iter().map(|o| o.oid).eq(model.0.keys().copied()));
}

#[test]
fn garbled_bytes_are_noticed_wherever_they_are() {
    let cases = std::env::var("STORE_GARBLE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let first = std::env::var("STORE_GARBLE_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut opened = 0;
    for seed in first..first + cases {
        let result = std::panic::catch_unwind(|| {
            let Image { disk, model } = image(seed);
            let mut rng = SimRng::new(seed ^ 0xbad);
            assert!(look(disk.clone(), &model, &mut rng), "an intact disk opens");
            let mut vouched = disk.clone();
            append_unwatched(&mut vouched);
            let mut opened = 0;
            for round in 0..16 {
                let (base, region) = match round % 4 {
                    0 => (&disk, SUPERBLOCKS),
                    1 => (&vouched, JOURNAL),
                    2 => (&disk, JOURNAL.end..SIZE_BYTES / BLOCK),
                    _ => (&vouched, 0..SIZE_BYTES / BLOCK),
                };
                let mut garbled = base.clone();
                garble(&mut garbled, region, &mut rng);
                opened += u32::from(look(garbled, &model, &mut rng));
            }
            opened
        });
        match result {
            Ok(count) => opened += count,
            Err(_) => panic!("seed {seed}"),
        }
    }
    assert!(cases < 10 || opened > 0, "some damage is survived");
}

#[test]
fn a_lost_superblock_does_not_hide_the_first_records_after_it() {
    let Image { disk, mut model } = image(3);
    let mut machine = Machine::open(disk).unwrap();
    let blocks = BlockRange::new(0, 1);
    assert_eq!(machine.call(write(Oid(100), 0, &[77777], WriteBase::Keep)), ObjectReply::Done);
    model.apply(Oid(100), &Change::Write { blocks, checksums: vec![], base: WriteBase::Keep }, &[77777]);
    for copy in SUPERBLOCKS {
        let mut disk = machine.disk.clone();
        disk.flip_bit(copy * BLOCK + 60, 3);
        look(disk, &model, &mut SimRng::new(1));
    }
}

#[test]
fn a_zeroed_map_does_not_hide_its_object() {
    let Image { disk, model } = image(202);
    let tables = JOURNAL.end..SIZE_BYTES / BLOCK;
    for at in disk.written_offsets().into_iter().filter(|at| tables.contains(&(at / BLOCK))) {
        let mut disk = disk.clone();
        disk.garble(at, &[0; BLOCK_BYTES]);
        look(disk, &model, &mut SimRng::new(at));
    }
}

#[test]
fn records_that_an_open_has_found_are_missed_when_they_are_gone() {
    let mut refused = 0;
    for seed in 0..5 {
        let Image { disk, model } = image(seed);
        let disk = Machine::open(disk).unwrap().disk;
        for at in disk.written_offsets().into_iter().filter(|at| JOURNAL.contains(&(at / BLOCK))).step_by(7) {
            let mut disk = disk.clone();
            disk.garble(at, &[0; BLOCK_BYTES]);
            refused += u32::from(!look(disk, &model, &mut SimRng::new(at)));
        }
        let mut disk = disk.clone();
        disk.garble(JOURNAL.start * BLOCK, &vec![0; JOURNAL_BYTES as usize]);
        look(disk, &model, &mut SimRng::new(seed));
    }
    assert!(refused > 0, "some of these records are needed");
}

#[test]
fn a_disk_of_noise_is_an_error() {
    let mut rng = SimRng::new(5);
    for len in [0, 1, 2, 100] {
        let mut disk = SimDisk::new(len * BLOCK);
        let noise: Vec<u8> = (0..len * BLOCK).map(|_| rng.next_u64() as u8).collect();
        disk.garble(0, &noise);
        assert!(Store::open(&mut disk).is_err());
    }
}

/// Changes entries of records and puts the checksums right: bytes that only a broken or hostile program writes.
fn forge(disk: &mut SimDisk, rng: &mut SimRng) {
    let u32_at = |b: &[u8], at: usize| u32::from_le_bytes(b[at..at + 4].try_into().unwrap()) as usize;
    let mut heads = Vec::new();
    for at in disk.written_offsets().into_iter().filter(|at| JOURNAL.contains(&(at / BLOCK))) {
        let mut block = vec![0; BLOCK_BYTES];
        store::Disk::read_at(disk, at, &mut block).unwrap();
        let entries = u32_at(&block, 48);
        if block.starts_with(b"SHRJ") && (1..=BLOCK_BYTES - 64).contains(&entries) {
            heads.push((at, entries, block));
        }
    }
    for _ in 0..1 + rng.below(3) {
        if heads.is_empty() {
            return;
        }
        let chosen = rng.below(heads.len() as u64) as usize;
        let (at, entries, block) = &mut heads[chosen];
        for _ in 0..1 + rng.below(3) {
            let byte = &mut block[64 + rng.below(*entries as u64) as usize];
            *byte = [*byte ^ (1 << rng.below(8)), rng.next_u64() as u8, 0xff, 0][rng.below(4) as usize];
        }
        let crc = proto::checksum::crc32c(&block[64..64 + *entries]);
        block[56..60].copy_from_slice(&crc.to_le_bytes());
        block[4..8].fill(0);
        let crc = proto::checksum::crc32c(&block[..64]);
        block[4..8].copy_from_slice(&crc.to_le_bytes());
        disk.garble(*at, block);
    }
}

#[test]
fn forged_records_are_an_error_or_harmless_but_never_a_panic() {
    let cases = std::env::var("STORE_GARBLE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let first = std::env::var("STORE_GARBLE_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut opened = 0;
    for seed in first..first + cases {
        let result = std::panic::catch_unwind(|| {
            let disk = image(seed).disk;
            let mut rng = SimRng::new(seed ^ 0xf0);
            let mut opened = 0;
            for _ in 0..12 {
                let mut disk = disk.clone();
                forge(&mut disk, &mut rng);
                let Ok(mut machine) = Machine::open(disk) else { continue };
                opened += 1;
                machine.store.assert_invariants();
                for oid in (100..100 + OBJECTS).map(Oid) {
                    machine.call(ObjectOp::Checksums { oid, blocks: BlockRange::ALL });
                    machine.call(ObjectOp::Read { oid, blocks: BlockRange::new(0, 80) });
                    machine.call(ObjectOp::Read { oid, blocks: BlockRange::new(1016, 40) });
                    machine.call(write(Oid(200), 5, &[9], WriteBase::CloneOf(oid)));
                    machine.call(write(oid, 3, &[8; 20], WriteBase::Keep));
                }
                machine.checkpoint();
                machine.store.assert_invariants();
                let ObjectReply::Objects(all) =
                    machine.call(ObjectOp::List { first: Oid(0), last: Oid(u64::MAX), limit: 1000 })
                else {
                    unreachable!()
                };
                all.iter().for_each(|object| drop(machine.call(change(object.oid, Change::Delete))));
                machine.checkpoint();
                machine.store.assert_invariants();
                machine.reopen();
            }
            opened
        });
        match result {
            Ok(count) => opened += count,
            Err(_) => panic!("seed {seed}"),
        }
    }
    assert!(opened > 0);
}
