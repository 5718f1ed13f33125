//! Whatever reads bytes from outside meets seeded mutations of valid ones: it neither panics, nor takes much memory, nor shows what
//! nobody wrote.
//!
//! The bodies are those of the fuzzer (`fuzz/`, run by `script/fuzz`), which looks further.

#[path = "../../../fuzz/src/lib.rs"]
mod fuzz;

mod held;

use std::panic::{AssertUnwindSafe, catch_unwind};

use store::testing::SimRng;

/// Inputs of each decoder. What is slower (bitmaps of 2 MiB, files, images of a disk) gets a part of them.
const INPUTS: u64 = 20_000;

/// A payload of 32 MiB, and what stands around it.
const HELD_BYTES_MAX: isize = 40 << 20;

fn mutate(bytes: &mut Vec<u8>, others: &[Vec<u8>], rng: &mut SimRng) {
    for _ in 0..1 + rng.below(6) {
        let at = rng.below(bytes.len() as u64 + 1) as usize;
        let noise = rng.next_u64();
        match rng.below(6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, noise as u8),
            2 => bytes.splice(at..at, noise.to_le_bytes()).for_each(drop),
            3 => bytes.extend_from_slice(&others[rng.below(others.len() as u64) as usize]),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = [*byte ^ 1 << (noise % 8), noise as u8, 0, 0xff, 0x7f][rng.below(5) as usize];
                }
            }
        }
    }
    bytes.truncate(64 << 10);
}

fn garble(name: &str, inputs: u64) {
    let target = fuzz::TARGETS.iter().find(|target| target.name == name).expect("a target");
    let seeds = (target.seeds)();
    // What is made once and kept is made here.
    seeds.iter().for_each(|seed| (target.run)(seed));
    for input in 0..inputs {
        let mut rng = SimRng::new(input);
        let mut bytes = seeds[rng.below(seeds.len() as u64) as usize].clone();
        mutate(&mut bytes, &seeds, &mut rng);
        let (result, held) = held::most_during(|| catch_unwind(AssertUnwindSafe(|| (target.run)(&bytes))));
        assert!(result.is_ok(), "{name}: input {input}: {bytes:02x?}");
        assert!(held <= HELD_BYTES_MAX, "{name}: input {input} took {held} bytes: {bytes:02x?}");
    }
}

#[test]
fn native_frames() {
    garble("native", INPUTS);
}

#[test]
fn client_operations() {
    garble("client", INPUTS);
}

#[test]
fn peer_frames() {
    garble("peer", INPUTS);
}

#[test]
fn nbd_connections() {
    garble("nbd", INPUTS);
}

#[test]
fn native_connections() {
    garble("session", INPUTS / 2);
}

#[test]
fn front_ends_and_guests() {
    garble("vhost", INPUTS / 5);
}

#[test]
fn backups() {
    garble("backup", INPUTS);
}

#[test]
fn messages_to_a_member() {
    garble("member", INPUTS * 2);
}

#[test]
fn views() {
    garble("view", INPUTS);
}

#[test]
fn entries_logs_and_snapshots_of_the_cluster() {
    garble("cluster", INPUTS / 10);
}

#[test]
fn images_of_a_store() {
    garble("store", INPUTS / 20);
}
