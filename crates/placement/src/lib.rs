//! Which members hold a placement group: pure functions in integers, so that all machines agree.
//!
//! [`place`] computes the targets of every PG of a new pool; [`place_from`] carries a table on when members
//! join, leave or change their capacity; [`pg_of`] says which PG an object is in. The view applies all events in the
//! same order everywhere, so a table may depend on the one before it, and that is what keeps moves minimal: every
//! zone and node has a quota (its share by capacity, rounded; a zone at most one copy per PG), copies
//! that fit stay, and only what quotas force is moved. *Which* PGs move is decided by weighted rendezvous
//! (module `score`), so load spreads over all members and one that returns gets mostly its former copies.
//!
//! Figures at 3 copies, printed by the ignored test `figures`. *Mixed*: capacities 1, 2, 2, 4, 8, a zone each.
//! *Racks*: the same, four nodes to a zone. Moves are "moved of unavoidable" copies; *peers*: how many
//! others share PGs with the first node and so take part in its repair. Time: opt-level 1.
//!
//! | nodes | PGs | shape | fullest / share | join | leave | weight +50 % | peers | computed in |
//! | --- | --- | --- | --- | --- | --- | --- | --- | --- |
//! | 3 | 256 | Equal | 1.000 | 192 of 192 | 0 of 0 | 0 of 0 | 2 | 0 ms |
//! | 3 | 256 | Mixed | 1.000 | 256 of 256 | 0 of 0 | 0 of 0 | 2 | 0 ms |
//! | 3 | 256 | Racks | 1.006 | 113 of 113 | 102 of 102 | 18 of 18 | 0 | 0 ms |
//! | 8 | 256 | Equal | 1.000 | 85 of 85 | 96 of 96 | 39 of 39 | 7 | 0 ms |
//! | 8 | 256 | Mixed | 1.012 | 118 of 118 | 73 of 73 | 15 of 15 | 6 | 0 ms |
//! | 8 | 256 | Racks | 1.016 | 256 of 256 | 39 of 39 | 12 of 12 | 4 | 0 ms |
//! | 32 | 1024 | Equal | 1.000 | 93 of 93 | 96 of 96 | 45 of 45 | 31 | 0 ms |
//! | 32 | 1024 | Mixed | 1.008 | 57 of 57 | 58 of 58 | 14 of 14 | 20 | 0 ms |
//! | 32 | 1024 | Racks | 1.008 | 57 of 57 | 59 of 59 | 14 of 14 | 20 | 0 ms |
//! | 1000 | 32768 | Equal | 1.007 | 98 of 98 | 98 of 98 | 49 of 49 | 183 | 218 ms |
//! | 1000 | 32768 | Mixed | 1.003 | 28 of 28 | 231 of 231 | 14 of 14 | 55 | 216 ms |
//! | 1000 | 32768 | Racks | 1.003 | 28 of 28 | 231 of 231 | 14 of 14 | 58 | 72 ms |
//!
//! Turning 1000 equal nodes into *mixed* ones moves 29987 of 29883 copies in 164 ms, into *racks* 30077 of 29883 in 58 ms.

mod quota;
mod score;
mod table;
mod vnodes;
mod zones;

pub use score::pg_of;
pub use table::{Member, place, place_from};
pub use vnodes::vnodes;
