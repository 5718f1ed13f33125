//! The protocol of views, in-sync sets, sessions, seals, repeated requests and catching up as a small model, explored exhaustively.
//!
//! The seeded simulator runs the real code through long histories; here every order of steps is tried in short ones. Sheep, their
//! stores and the total order are values of a few bytes ([`model`]); each rule stands beside the name of the code that it was
//! written after ([`view`], [`copy`], [`catching`], [`session`], [`hand_over`], [`seal`], [`request`], [`surplus`]). A rule that changes
//! there changes here. Three rules are as they should be and not as the nodes have them yet: there the mistakes `SurvivedPartIsRepeated`,
//! `UndoneAsAWhole` and `SourceMayComeBack` are real (ignored tests of `crates/node/tests/takeover.rs`).
//!
//! What must hold: whatever was acknowledged is on every copy in sync, durably (in write-back mode: whatever was flushed, and what was acknowledged is read as long as one copy that counts lives); what clients can read never goes back, over all
//! takeovers; a request that is repeated takes effect once; copies in sync are alike when an owner has nothing under way; no state is a
//! dead end (going round for ever is not looked for).
//!
//! Assumed, since links give it: what was on its way to a life of a sheep that has ended never arrives at the next one. Without
//! that a change sent twice could come after its mark is forgotten. Left out: objects and pages (all is one object of one or two blocks),
//! stores that are full or damaged, gateways that fail, snapshots. A sheep that is cut off stops before the others remove it: that is a crash here.

mod catching;
mod check;
mod copy;
mod hand_over;
mod mistakes;
mod model;
mod options;
mod preludes;
mod request;
mod seal;
mod session;
mod surplus;
mod view;

use options::{CatchUp, Options};
use preludes::{ANSWERED, DROPPED_AND_MOVED, SEALING, TAKEN, UNDONE_IN_PART};
use stateright::{Checker, Model};

const BASE: Options = Options {
    nodes: 2,
    copies: 2,
    blocks: 1,
    writes: 1,
    wide: false,
    forwards: false,
    absent: false,
    crashes: 1,
    power_loss: false,
    drops: 0,
    closes: 0,
    takes: 0,
    moves: 0,
    catch_up: CatchUp::Full,
    write_back: false,
    ends: false,
    prelude: &[],
    bug: None,
};
const INCREMENTAL: Options = Options { catch_up: CatchUp::Incremental, ..BASE };
/// Sessions are taken from living owners.
const TAKING: Options = Options { crashes: 0, takes: 1, ..BASE };
/// And a request comes through another sheep.
const FORWARDING: Options = Options { forwards: true, ..TAKING };
/// And its changes are of two blocks.
const WIDE: Options = Options { blocks: 2, wide: true, ..FORWARDING };
/// Two copies on three sheep, and they move.
const MOVING: Options = Options { nodes: 3, crashes: 0, moves: 1, ..BASE };

/// Two of three copies are the fewest that are written to; one of them has died, with its memory.
const KEPT: Options =
    Options { nodes: 3, copies: 3, absent: true, write_back: true, prelude: ANSWERED, ..INCREMENTAL };

/// Tries everything within the bounds.
fn explore(name: &str, options: Options) {
    let checker = options.checker().threads(2).spawn_bfs().join();
    println!("{name}: {} states", checker.unique_state_count());
    for (property, path) in checker.discoveries() {
        let Some(broken) = checker.discovery(property).filter(|_| property != "everything is mended") else {
            continue;
        };
        println!("{name}, {property}: {:#?}\n{:#?}", path.into_actions(), broken.last_state());
    }
    checker.assert_properties();
}

#[test]
fn two_copies_and_the_loss_of_one_or_of_all_power() {
    explore("two copies", Options { writes: 2, power_loss: true, ..BASE });
}

#[test]
fn no_state_is_a_dead_end() {
    explore("a slow copy", Options { drops: 1, ends: true, ..BASE });
}

#[test]
fn sessions_that_end_cleanly_and_those_that_do_not() {
    explore("closing", Options { closes: 1, ..BASE });
}

#[test]
fn three_copies() {
    explore("three copies", Options { nodes: 3, copies: 3, crashes: 0, drops: 1, ..BASE });
}

#[test]
fn whoever_returns_fetches_what_it_lacks() {
    explore("incremental", Options { drops: 1, ..INCREMENTAL });
}

#[test]
fn sessions_taken_from_living_owners() {
    explore("taking, a crash", Options { crashes: 1, ..TAKING });
    explore("taking, closing", Options { closes: 1, ..TAKING });
    explore("taking, two writes", Options { writes: 2, ends: true, ..TAKING });
}

#[test]
fn a_request_that_is_repeated_while_others_settle_around_it() {
    explore("forwarding", FORWARDING);
}

#[test]
fn changes_of_several_blocks_which_seals_mend_in_parts() {
    explore("two blocks at once", Options { forwards: false, ..WIDE });
    explore("two blocks, taken", Options { prelude: TAKEN, ..WIDE });
    explore(
        "two blocks, undone in part",
        Options { absent: true, takes: 2, prelude: UNDONE_IN_PART, ..WIDE },
    );
    explore("two blocks, sealing, a crash", Options { writes: 0, crashes: 1, prelude: SEALING, ..WIDE });
}

#[test]
fn copies_that_move() {
    explore("moving", Options { ends: true, ..MOVING });
    let back = Options { moves: 2, drops: 1, prelude: DROPPED_AND_MOVED, ..MOVING };
    explore("moving and back", back);
    explore("moving and back, incremental", Options { catch_up: CatchUp::Incremental, ..back });
}

#[test]
fn clients_that_are_told_before_all_is_durable() {
    explore("write-back", Options { write_back: true, power_loss: true, ..BASE });
    explore("write-back, incremental", Options { write_back: true, ..INCREMENTAL });
    explore("write-back, a kept copy", KEPT);
}

/// Bounds that take minutes.
#[test]
#[ignore = "takes minutes; run it when the protocol changes"]
fn wider_bounds() {
    explore("two copies, two crashes", Options { writes: 2, crashes: 2, power_loss: true, ..BASE });
    explore("two copies, two writes", Options { writes: 2, drops: 1, ..BASE });
    explore("three copies, one crash", Options { nodes: 3, copies: 3, ..BASE });
    explore("three copies, two writes", Options { nodes: 3, copies: 3, writes: 2, ..BASE });
    explore("three copies, one behind", Options { nodes: 3, copies: 3, absent: true, ..BASE });
    explore("incremental, two blocks", Options { blocks: 2, drops: 1, ..INCREMENTAL });
    explore("incremental, two writes", Options { writes: 2, crashes: 2, ..INCREMENTAL });
    explore("incremental, three copies", Options { nodes: 3, copies: 3, absent: true, ..INCREMENTAL });
}

#[test]
#[ignore = "takes minutes; run it when the protocol changes"]
fn wider_bounds_of_takeovers() {
    explore("forwarding, two writes", Options { writes: 2, ..FORWARDING });
    explore("forwarding, taken twice", Options { takes: 2, ..FORWARDING });
    explore("two blocks, taken, a crash", Options { writes: 0, crashes: 1, prelude: TAKEN, ..WIDE });
    explore("two blocks, sealing, a crash, a write", Options { crashes: 1, prelude: SEALING, ..WIDE });
}

#[test]
#[ignore = "takes minutes; run it when the protocol changes"]
fn wider_bounds_of_write_back() {
    explore("write-back, two writes", Options { write_back: true, writes: 2, power_loss: true, ..BASE });
    explore("write-back, a drop", Options { write_back: true, drops: 1, ..INCREMENTAL });
    explore("write-back, a kept copy and a drop", Options { drops: 1, ..KEPT });
}

#[test]
#[ignore = "takes minutes; run it when the protocol changes"]
fn wider_bounds_of_moves() {
    explore("moving, a drop", Options { drops: 1, ..MOVING });
    explore("moving twice", Options { moves: 2, ..MOVING });
}
