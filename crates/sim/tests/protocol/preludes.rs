//! What has happened when a run begins, where it would take too many steps to come upon.

use super::model::Action;
use super::view::Set;

const FIRST: Set = Set(1);

/// A change is on one of three copies, and its owner will not live to send it to the others.
pub const ON_THE_SECOND: &[Action] = &[
    Action::Write { owner: 0, blocks: FIRST },
    Action::Deliver { sent: 0, to: 1 },
    Action::CarryOut { node: 1, order: 0 },
];

/// The same, of the owner's own copy.
pub const ON_THE_FIRST: &[Action] = &[
    Action::Write { owner: 0, blocks: FIRST },
    Action::Deliver { sent: 0, to: 0 },
    Action::CarryOut { node: 0, order: 0 },
];

/// A change is in the memory of both copies that count, its client was told, and then its owner dies with its copy. A third copy lacks it.
pub const ANSWERED: &[Action] = &[
    Action::Write { owner: 0, blocks: FIRST },
    Action::Deliver { sent: 0, to: 0 },
    Action::Deliver { sent: 0, to: 1 },
    Action::AnswerEarly { owner: 0, flight: 0 },
    Action::Crash(FIRST),
];

/// A forwarded request is on one of two copies when the session goes to the sheep of the other one.
pub const TAKEN: &[Action] = &[
    Action::Forward(0),
    Action::Deliver { sent: 0, to: 0 },
    Action::CarryOut { node: 0, order: 0 },
    Action::Take(1),
    Action::Apply(0),
    Action::Land(0),
    Action::Apply(0),
    Action::Apply(1),
    Action::Apply(1),
];

/// And its seal knows that, and has begun to copy the request's first block.
pub const SEALING: &[Action] = &[
    Action::Forward(0),
    Action::Deliver { sent: 0, to: 0 },
    Action::CarryOut { node: 0, order: 0 },
    Action::Take(1),
    Action::Apply(0),
    Action::Land(0),
    Action::Apply(0),
    Action::Apply(1),
    Action::Apply(1),
    Action::AnswerSeal { owner: 1, node: 0 },
    Action::AnswerSeal { owner: 1, node: 1 },
    Action::Mend(1),
];

/// A forwarded request is on a copy that catches up, and only there. A seal has undone its first block when its owner resigns, and then that copy
/// counts.
pub const UNDONE_IN_PART: &[Action] = &[
    Action::StartCatchUp(1),
    Action::Apply(0),
    Action::Apply(1),
    Action::Forward(0),
    Action::Deliver { sent: 0, to: 1 },
    Action::CarryOut { node: 1, order: 0 },
    Action::Take(1),
    Action::Apply(0),
    Action::Land(0),
    Action::Apply(0),
    Action::Apply(1),
    Action::Apply(1),
    Action::AnswerSeal { owner: 1, node: 0 },
    Action::AnswerSeal { owner: 1, node: 1 },
    Action::Learn { node: 1, source: 0 },
    Action::Fetch { node: 1, source: 0, block: 0 },
    Action::ReceiveFetched { node: 1, block: 0 },
    Action::CarryOut { node: 1, order: 0 },
    Action::Mend(1),
    Action::Deliver { sent: 0, to: 0 },
    Action::CarryOut { node: 0, order: 0 },
    Action::Deliver { sent: 0, to: 1 },
    Action::CarryOut { node: 1, order: 0 },
    Action::Take(0),
    Action::Apply(1),
    Action::FinishCatchUp(1),
    Action::Land(1),
    Action::Apply(0),
    Action::Apply(0),
    Action::Apply(0),
    Action::Apply(1),
    Action::Apply(1),
];

/// Two of three sheep hold a settled write; one of them is dropped, and then to be elsewhere.
pub const DROPPED_AND_MOVED: &[Action] = &[
    Action::Write { owner: 0, blocks: FIRST },
    Action::Deliver { sent: 0, to: 0 },
    Action::CarryOut { node: 0, order: 0 },
    Action::Deliver { sent: 0, to: 1 },
    Action::CarryOut { node: 1, order: 0 },
    Action::Complete { owner: 0, flight: 0 },
    Action::Settle { owner: 0, node: 0 },
    Action::Settle { owner: 0, node: 1 },
    Action::Drop(1),
    Action::Apply(0),
    Action::Apply(1),
    Action::Retarget(Set(0b101)),
    Action::Apply(0),
    Action::Apply(1),
    Action::Apply(2),
    Action::Apply(2),
    Action::StartCatchUp(2),
    Action::Apply(0),
    Action::Apply(1),
    Action::Apply(2),
];
