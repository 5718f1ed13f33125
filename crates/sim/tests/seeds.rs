//! Seeded runs: what clients may rely on holds under every mix of faults, and the checker would notice if not.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use sim::{Options, Outcome, PlantedBug, StoreKind, run};

const THREADS: usize = 2;
const SEEDS: u64 = 400;

/// Runs seeds `1 ..= count` on a few threads until `stop` says so; returns the outcome it stopped at.
fn search(count: u64, options: Options, stop: impl Fn(&Outcome) -> bool + Sync) -> Option<Outcome> {
    let next = AtomicU64::new(1);
    let found = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > count || found.lock().unwrap().is_some() {
                        return;
                    }
                    let outcome = run(seed, options);
                    if stop(&outcome) {
                        found.lock().unwrap().get_or_insert(outcome);
                    }
                }
            });
        }
    });
    found.into_inner().unwrap()
}

#[test]
fn acknowledged_writes_survive_every_seeded_fault_mix() {
    let requests = AtomicU64::new(0);
    let faults = AtomicU64::new(0);
    let write_backs = AtomicU64::new(0);
    let engine_runs = AtomicU64::new(0);
    let damages = AtomicU64::new(0);
    let told_changed = AtomicU64::new(0);
    let [losses, flushes] = [AtomicU64::new(0), AtomicU64::new(0)];
    let deeds: Mutex<BTreeMap<&str, u64>> = Mutex::default();
    let failed = search(SEEDS, Options::default(), |outcome| {
        requests.fetch_add(outcome.requests, Ordering::Relaxed);
        faults.fetch_add(outcome.faults, Ordering::Relaxed);
        write_backs.fetch_add(outcome.syncs, Ordering::Relaxed);
        told_changed.fetch_add(outcome.told_changed, Ordering::Relaxed);
        damages.fetch_add(outcome.damages, Ordering::Relaxed);
        losses.fetch_add(outcome.losses, Ordering::Relaxed);
        flushes.fetch_add(outcome.flushes, Ordering::Relaxed);
        for (kind, count) in &outcome.deeds {
            *deeds.lock().unwrap().entry(kind).or_default() += count;
        }
        engine_runs.fetch_add(u64::from(outcome.store == StoreKind::Engine), Ordering::Relaxed);
        outcome.failure.is_some()
    });
    if let Some(Outcome { seed, failure, .. }) = failed {
        panic!("seed {seed}: {}\nreplay with: cargo run -p sim -- replay {seed}", failure.unwrap());
    }
    // A simulator in which nothing happens would be content, too.
    let (requests, faults) = (requests.into_inner(), faults.into_inner());
    assert!(requests > 100 * SEEDS && faults > 5 * SEEDS, "{requests} requests, {faults} faults");
    let [engine_runs, write_backs, damages] = [engine_runs, write_backs, damages].map(AtomicU64::into_inner);
    assert!(
        engine_runs > SEEDS / 4 && write_backs > 10 * engine_runs && damages > engine_runs / 4,
        "{write_backs} rounds of write-back and {damages} damages in {engine_runs} runs"
    );
    let told_changed = told_changed.into_inner();
    assert!(told_changed > 2 * SEEDS, "returning members were told of {told_changed} changed objects");
    let (losses, flushes) = (losses.into_inner(), flushes.into_inner());
    assert!(losses > SEEDS / 8 && flushes > SEEDS, "memory was lost {losses} times, {flushes} flushes");
    let deeds = deeds.into_inner().unwrap();
    let done = |kind| deeds.get(kind).copied().unwrap_or(0);
    assert!(
        done("snapshot") > SEEDS && done("clone") > SEEDS / 2 && done("deletion") > SEEDS / 2,
        "{deeds:?} were carried out"
    );
    assert!(done("rollback") > SEEDS / 20 && done("resize") > SEEDS / 4, "{deeds:?} were carried out");
}

/// An object of a deleted snapshot that was never reclaimed; a disk that was too small for what its run stored; a clone's own block that was fetched from
/// its base after a refused change; a block that only a returning copy could read; a change that a seal took a copy's word for which was still
/// fetching it; a member whose source knew that it had lost a block, and told no checksum of it; a copy that was to begin anew and did not; an
/// object that was brought back, empty, by a copy that was still fetching it.
#[test]
fn seeds_that_have_failed_pass() {
    for seed in [6_050_366, 6_006_769, 9_003_490, 9_050_589, 9_006_636, 9_061_145, 10_061_475, 10_062_947] {
        let failure = run(seed, Options::default()).failure;
        assert!(failure.is_none(), "seed {seed}: {}", failure.unwrap_or_default());
    }
}

#[test]
fn two_runs_of_a_seed_have_the_same_event_log() {
    let options = Options { trace: true, ..Options::default() };
    for seed in 1..=10 {
        let [first, second] = [run(seed, options), run(seed, options)];
        let (first_log, second_log) = (first.trace.unwrap(), second.trace.unwrap());
        assert!(first_log.len() > 1000);
        assert!(first_log == second_log, "seed {seed} differs");
    }
    assert_ne!(run(1, options).trace, run(2, options).trace);
}

/// Most are found within a few. A sheep that nobody answers drops nobody and takes nothing: so it takes some hundreds until one that was given up is
/// caught serving.
fn assert_found(bug: PlantedBug) {
    let found = search(2000, Options { bug, ..Options::default() }, |outcome| outcome.failure.is_some());
    assert!(found.is_some(), "{bug:?} was not found in 2000 seeds");
}

/// Mistakes that only one part of the checker can notice.
fn assert_found_by(bug: PlantedBug, complaint: &str) {
    let options = Options { bug, ..Options::default() };
    let complains = |o: &Outcome| o.failure.as_ref().is_some_and(|why| why.contains(complaint));
    let found = search(600, options, complains);
    assert!(found.is_some(), "in 600 seeds nothing said of {bug:?} that it {complaint:?}");
}

#[test]
fn answers_before_durability_are_found() {
    assert_found(PlantedBug::AckBeforeDurable);
}

#[test]
fn lost_blocks_that_are_not_put_back_are_found() {
    assert_found_by(PlantedBug::SkipMends, "does not come to an end with its scrub");
}

#[test]
fn answers_before_the_last_copy_has_it_are_found() {
    assert_found(PlantedBug::AckBeforeLastCopy);
}

#[test]
fn seals_that_hear_of_nothing_are_found() {
    assert_found(PlantedBug::SkipSeal);
}

#[test]
fn sets_that_shrink_after_the_answer_are_found() {
    assert_found(PlantedBug::ShrinkAfterAck);
}

#[test]
fn discards_that_come_after_the_next_write_are_found() {
    assert_found(PlantedBug::LateDiscards);
}

#[test]
fn unsettled_changes_forgotten_at_a_restart_are_found() {
    assert_found(PlantedBug::ForgetUnsettled);
}

#[test]
fn changes_that_a_returning_copy_is_not_told_of_are_found() {
    assert_found(PlantedBug::ForgetChanges);
}

#[test]
fn writes_that_never_reach_the_store_are_found() {
    assert_found(PlantedBug::SkipWrites);
}

#[test]
fn a_sheep_that_serves_after_it_was_given_up_is_found() {
    assert_found(PlantedBug::NoQuorumLost);
}

#[test]
fn snapshots_of_several_vdis_at_several_moments_are_found() {
    assert_found_by(PlantedBug::SplitSnapshots, "shows no single moment");
}

#[test]
fn objects_of_deleted_vdis_that_others_need_are_missed() {
    assert_found_by(PlantedBug::KeepNothing, "held");
}

#[test]
fn objects_that_nobody_needs_are_found() {
    assert_found_by(PlantedBug::SkipPurges, "nobody needs object");
}

#[test]
fn flushes_that_do_not_wait_for_every_disk_are_found() {
    assert_found(PlantedBug::TakenIsDurable);
}

#[test]
fn copies_that_count_without_what_they_had_in_memory_are_found() {
    assert_found(PlantedBug::CountRestarted);
}

#[test]
fn syncs_that_do_nothing_are_found() {
    assert_found(PlantedBug::DropSyncs);
}
