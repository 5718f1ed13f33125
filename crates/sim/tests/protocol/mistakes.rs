//! Mistakes planted into the protocol, each of which the checker has to find.

use stateright::{Checker, HasDiscoveries, Model};

use super::options::{Bug, Options};
use super::preludes::{DROPPED_AND_MOVED, ON_THE_FIRST, ON_THE_SECOND, SEALING, UNDONE_IN_PART};
use super::{BASE, FORWARDING, INCREMENTAL, KEPT, MOVING, TAKING, WIDE};

fn find(bug: Bug, options: Options) {
    let options = Options { bug: Some(bug), ..options };
    let checker = options.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let mut found = checker.discoveries();
    found.remove("everything is mended");
    let (property, path) = found.into_iter().next().unwrap_or_else(|| panic!("{bug:?} was not found"));
    println!("{bug:?}: \"{property}\" is broken after {} steps", path.into_actions().len());
}

#[test]
fn finds_an_acknowledgement_before_the_last_copy() {
    find(Bug::AckBeforeTheLastCopy, BASE);
}

#[test]
fn finds_a_set_that_shrinks_after_the_acknowledgement() {
    find(Bug::ShrinkAfterAck, BASE);
}

#[test]
fn finds_answers_that_outlive_their_set() {
    find(Bug::AnswersOutliveTheirSet, Options { drops: 1, ..BASE });
}

#[test]
fn finds_a_seal_that_is_skipped() {
    find(Bug::SealSkipped, Options { nodes: 3, copies: 3, prelude: ON_THE_SECOND, ..BASE });
}

#[test]
fn finds_a_seal_that_overtakes_the_disk() {
    find(Bug::SealOvertakesTheDisk, Options { drops: 1, ..BASE });
}

#[test]
fn finds_that_older_generations_are_settled_too_early() {
    find(Bug::SettledWhileSealing, Options { crashes: 2, ..BASE });
}

#[test]
fn finds_a_stale_return_that_is_trusted() {
    find(Bug::StaleReturnTrusted, BASE);
}

#[test]
fn finds_writes_that_do_not_await_whoever_catches_up() {
    find(Bug::CatchingUpNotAwaited, BASE);
}

#[test]
fn finds_fetched_content_that_overwrites_changes() {
    find(Bug::FetchOverwritesChanges, BASE);
}

#[test]
fn finds_content_without_its_marks() {
    find(
        Bug::FetchWithoutMarks,
        Options { nodes: 3, copies: 3, absent: true, prelude: ON_THE_FIRST, ..BASE },
    );
}

#[test]
fn finds_that_an_earlier_attempt_counts_for_the_next() {
    find(Bug::BackfillsMiscounted, Options { drops: 1, ..BASE });
}

#[test]
fn finds_that_own_marks_are_ignored() {
    find(Bug::OwnMarksIgnored, INCREMENTAL);
}

#[test]
fn finds_tracking_that_begins_empty() {
    find(Bug::TrackingBeginsEmpty, Options { drops: 1, ..INCREMENTAL });
}

#[test]
fn finds_tracking_that_survives_a_restart() {
    find(Bug::TrackingSurvivesRestart, Options { absent: true, ..INCREMENTAL });
}

#[test]
fn finds_an_absent_copy_that_settles() {
    find(Bug::AbsentCopySettles, Options { drops: 1, ..INCREMENTAL });
}

#[test]
fn finds_an_interrupted_attempt_that_is_trusted() {
    find(Bug::InterruptedAttemptTrusted, Options { crashes: 2, ..INCREMENTAL });
}

#[test]
fn finds_a_session_that_moves_before_its_owner_has_heard_of_it() {
    find(Bug::TakenAtOnce, Options { drops: 1, ..TAKING });
}

#[test]
fn finds_a_resigned_session_that_is_taken_up_again() {
    find(Bug::ResignedIsTakenUpAgain, Options { crashes: 1, writes: 2, ..TAKING });
}

#[test]
fn finds_half_of_a_torn_change_acknowledged() {
    find(Bug::HalfIsTakenForAll, Options { writes: 0, crashes: 1, prelude: SEALING, ..WIDE });
}

#[test]
fn finds_a_request_repeated_where_it_has_survived() {
    find(Bug::SurvivedPartIsRepeated, Options { crashes: 1, prelude: SEALING, ..WIDE });
}

#[test]
fn finds_a_change_taken_for_undone_where_it_was_not() {
    find(Bug::UndoneAsAWhole, Options { absent: true, takes: 2, prelude: UNDONE_IN_PART, ..WIDE });
}

#[test]
fn finds_a_seal_that_reads_from_a_copy_that_has_begun_anew() {
    find(Bug::SourceMayComeBack, Options { writes: 0, crashes: 1, prelude: SEALING, ..WIDE });
}

#[test]
fn finds_a_seal_that_begins_anew_with_changes_under_way() {
    find(Bug::SealBeginsAnewAtOnce, Options { crashes: 1, prelude: SEALING, ..WIDE });
}

#[test]
fn finds_an_unconfirmed_change_that_is_settled() {
    find(Bug::SettledPastAHole, FORWARDING);
}

#[test]
fn finds_surplus_copies_that_are_only_counted() {
    find(Bug::SurplusIsCounted, Options { drops: 1, ..MOVING });
}

#[test]
fn finds_copies_that_are_deleted_too_early() {
    find(Bug::SweptTooEarly, MOVING);
}

#[test]
fn finds_a_kept_copy_that_counts_without_its_memory() {
    find(Bug::RestartedCounts, Options { crashes: 2, ..KEPT });
}

#[test]
fn finds_a_flush_that_does_not_wait_for_a_disk() {
    find(Bug::TakenIsDurable, Options { write_back: true, ..BASE });
}

#[test]
fn finds_an_absence_that_outlives_its_place() {
    let back = Options { moves: 2, drops: 1, prelude: DROPPED_AND_MOVED, ..MOVING };
    find(Bug::AbsenceOutlivesTargets, Options { catch_up: INCREMENTAL.catch_up, ..back });
}
