//! A store's image with anything changed in it, whether the disk lost it or somebody forged it.
//!
//! Every block says of which object, place and time it is, so an object that is read must hold what was written to it last, or say
//! that it is damaged, or the disk must not open. What is forged, checksums included, may be anything but a panic.

#[path = "../../crates/store/tests/common/mod.rs"]
mod common;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use common::*;
use proto::object::*;
use proto::{BLOCK_BYTES, Oid};
use store::Disk;
use store::testing::SimDisk;

const OBJECTS: u64 = 5;
/// Nobody looks at it: records at the end of the journal may be lost as by a crash.
const NOBODY: Oid = Oid(1);
const SIZE_BYTES: u64 = 14 << 20;
const IMAGES: usize = 4;
/// One change of the image: kind, block (2), place in the block (2), value (1), other block (2).
const STEP_BYTES: usize = 8;
const STEPS_MAX: usize = 32;
/// With more changes the last records somebody looks at may be lost too, or a checksum be put right.
const NOTICED_STEPS_MAX: usize = 4;
const RECORD_HEAD_BYTES: usize = 64;
/// Where the superblocks and the journal end.
const JOURNAL_END: u64 = 16 * BLOCK_BYTES as u64 + JOURNAL_BYTES;
/// Pages of descriptors and maps on a disk of this size, and a few slots.
const TABLES: std::ops::Range<u64> = JOURNAL_END..JOURNAL_END + 32 * BLOCK_BYTES as u64;

struct Image {
    disk: SimDisk,
    written: Vec<u64>,
    /// Those of them that say where everything is: few, so they are chosen more often.
    tables: Vec<u64>,
    model: Model,
    /// All that each block has ever held.
    past: BTreeMap<(Oid, u32), BTreeSet<Value>>,
}

thread_local! {
    static MADE: [OnceCell<Image>; IMAGES] = const { [const { OnceCell::new() }; IMAGES] };
}

/// A history: some of it home, some in the journal.
fn make(seed: u64) -> Image {
    let mut machine = Machine::new(seed, SIZE_BYTES);
    let mut workload = Workload::new(OBJECTS);
    let mut model = Model::default();
    let mut past: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for round in 0..4 {
        for _ in 0..20 {
            let (oid, change, values, tag) = workload.change(&mut machine.rng);
            model.apply(oid, &change, &values);
            for (block, value) in model.0.get(&oid).into_iter().flatten() {
                past.entry((oid, *block)).or_default().insert(*value);
            }
            let op = ObjectOp::Change { oid, change, data: content(&values), tag };
            assert_eq!(machine.call(op), ObjectReply::Done);
        }
        match (round + seed) % 3 {
            0 => machine.checkpoint(),
            1 => drop(machine.reopen()),
            _ => {}
        }
    }
    for n in 0..6 {
        assert_eq!(machine.call(write(NOBODY, 0, &[n + 1], WriteBase::Keep)), ObjectReply::Done);
    }
    let written = machine.disk.written_offsets();
    let tables = written.iter().copied().filter(|at| TABLES.contains(at)).collect();
    Image { disk: machine.disk, written, tables, model, past }
}

/// What a read of a changed image may show, besides damage.
#[derive(Clone, Copy)]
enum Expected {
    /// What was written last.
    Newest,
    /// Anything that was written to this place at some time.
    Written,
    Anything,
}

pub fn run(bytes: &[u8]) {
    let Some((first, steps)) = bytes.split_first() else { return };
    MADE.with(|made| {
        let which = usize::from(*first) % IMAGES;
        let image = made[which].get_or_init(|| make(which as u64));
        let mut disk = image.disk.clone();
        let mut expected = Expected::Newest;
        for (n, step) in steps.chunks_exact(STEP_BYTES).take(STEPS_MAX).enumerate() {
            let forged = change_image(&mut disk, image, step.try_into().expect("chunks are of this size"));
            expected = match expected {
                _ if forged => Expected::Anything,
                Expected::Newest if n >= NOTICED_STEPS_MAX => Expected::Written,
                unchanged => unchanged,
            };
        }
        let Ok(mut machine) = Machine::open(disk) else {
            assert!(steps.len() >= STEP_BYTES, "an intact disk opens");
            return;
        };
        machine.store.assert_invariants();
        look(&mut machine, image, expected);
        // Write-back copies what it finds, and must not make anything of it look right.
        machine.checkpoint();
        machine.store.assert_invariants();
        look(&mut machine, image, expected);
    });
}

/// Returns whether checksums were put right after it.
fn change_image(disk: &mut SimDisk, image: &Image, step: [u8; STEP_BYTES]) -> bool {
    let among = if step[0] < 128 { &image.written } else { &image.tables };
    let [kind, block_low, block_high, at_low, at_high, value, other_low, other_high] = step;
    let pick = |low, high| among[usize::from(u16::from_le_bytes([low, high])) % among.len()];
    let block = pick(block_low, block_high);
    let at = place(disk, block, usize::from(u16::from_le_bytes([at_low, at_high])));
    match kind % 5 {
        0 => disk.flip_bit(block + at, value % 8),
        1 => disk.garble(block + at, &[value]),
        2 => disk.garble(block, &[value; BLOCK_BYTES]),
        3 => {
            let mut content = vec![0; BLOCK_BYTES];
            disk.read_at(pick(other_low, other_high), &mut content).expect("within the disk");
            disk.garble(block, &content);
        }
        _ => return forge(disk, block, at as usize, value),
    }
    false
}

/// Any place in a block; for most numbers one where something stands, since tables are mostly empty.
fn place(disk: &mut SimDisk, block: u64, number: usize) -> u64 {
    let mut content = [0; BLOCK_BYTES];
    disk.read_at(block, &mut content).expect("within the disk");
    let used: Vec<usize> = (0..BLOCK_BYTES).filter(|at| content[*at] != 0).collect();
    let anywhere = number % 4 == 3 || used.is_empty();
    (if anywhere { number % BLOCK_BYTES } else { used[number % used.len()] }) as u64
}

/// Changes an entry of a journal record, and its checksums so that they fit.
fn forge(disk: &mut SimDisk, at: u64, place: usize, value: u8) -> bool {
    let mut block = vec![0; BLOCK_BYTES];
    disk.read_at(at, &mut block).expect("within the disk");
    let entries = u32::from_le_bytes(block[48..52].try_into().expect("four bytes")) as usize;
    if !block.starts_with(b"SHRJ") || !(1..=BLOCK_BYTES - RECORD_HEAD_BYTES).contains(&entries) {
        return false;
    }
    block[RECORD_HEAD_BYTES + place % entries] = value;
    let crc = proto::checksum::crc32c(&block[RECORD_HEAD_BYTES..RECORD_HEAD_BYTES + entries]);
    block[56..60].copy_from_slice(&crc.to_le_bytes());
    block[4..8].fill(0);
    let crc = proto::checksum::crc32c(&block[..RECORD_HEAD_BYTES]);
    block[4..8].copy_from_slice(&crc.to_le_bytes());
    disk.garble(at, &block);
    true
}

fn look(machine: &mut Machine, image: &Image, expected: Expected) {
    for oid in (100..100 + OBJECTS).map(Oid) {
        for blocks in test_blocks() {
            let reply = machine.call(ObjectOp::Read { oid, blocks });
            if matches!(reply, ObjectReply::Failed(StoreFailure::Corrupt { .. })) {
                continue;
            }
            match expected {
                Expected::Newest => {
                    assert_eq!(decode_read(reply), image.model.values(oid, blocks), "{oid} {blocks:?}");
                }
                Expected::Written => image.assert_written(oid, blocks, decode_read(reply)),
                Expected::Anything => {}
            }
        }
        machine.call(ObjectOp::Checksums { oid, blocks: BlockRange::ALL });
        machine.call(ObjectOp::Recorded { oid, blocks: BlockRange::ALL });
    }
    machine.call(ObjectOp::List { first: Oid(0), last: Oid(u64::MAX), limit: 1000 });
}

impl Image {
    fn assert_written(&self, oid: Oid, blocks: BlockRange, found: Option<Vec<Value>>) {
        for (block, value) in (blocks.first..).zip(found.into_iter().flatten()) {
            let past = self.past.get(&(oid, block));
            assert!(
                value == 0 || past.is_some_and(|past| past.contains(&value)),
                "nobody wrote {value} to block {block} of {oid}, but {past:?}"
            );
        }
    }
}

/// Of each image, what each kind of change makes of it.
pub fn seeds() -> Vec<Vec<u8>> {
    let step = |kind, block: u16, at: u16, value| {
        let ([block_low, block_high], [at_low, at_high]) = (block.to_le_bytes(), at.to_le_bytes());
        [kind, block_low, block_high, at_low, at_high, value, 3, 0]
    };
    // The same kinds among all blocks and among the tables.
    let kinds = [0, 1, 2, 3, 4, 130, 131, 132, 133, 134];
    let seed = |image: u8, kind: u8| {
        let step = step(kind, 7 * u16::from(image) + u16::from(kind % 5), 70, kind);
        std::iter::once(image).chain(step).collect()
    };
    (0..IMAGES as u8).flat_map(|image| kinds.map(|kind| seed(image, kind))).collect()
}
