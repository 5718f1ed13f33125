//! What one run of the checker covers, and the mistakes that it must find.

use super::model::Action;

/// A mistake planted into the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A write is acknowledged when one of its copies has not answered.
    AckBeforeTheLastCopy,
    /// A write is acknowledged without a silent copy, which is dropped afterwards.
    ShrinkAfterAck,
    /// Answers from before a change of sets count after it.
    AnswersOutliveTheirSet,
    /// A new owner serves at once.
    SealSkipped,
    /// A copy tells its marks while changes of older owners are on their way to its disk.
    SealOvertakesTheDisk,
    /// A new owner lets copies forget what older generations left before it has made them alike.
    SettledWhileSealing,
    /// A copy that has returned is in sync without having fetched anything.
    StaleReturnTrusted,
    /// A copy that catches up is sent writes, but they do not wait for it.
    CatchingUpNotAwaited,
    /// Fetched content overwrites what changes have decided since.
    FetchOverwritesChanges,
    /// Content is fetched without the marks that belong to it.
    FetchWithoutMarks,
    /// What a store still carries out for an earlier attempt to catch up counts as done for the next.
    BackfillsMiscounted,
    /// Incremental: the returning copy does not fetch the blocks of its own marks.
    OwnMarksIgnored,
    /// Incremental: what is unsettled when a copy leaves is not among what it lacks.
    TrackingBeginsEmpty,
    /// Incremental: a copy that has restarted takes what it tracked for complete.
    TrackingSurvivesRestart,
    /// Incremental: an absent copy forgets marks because others have settled.
    AbsentCopySettles,
    /// Incremental: a second attempt relies on what the first one left behind.
    InterruptedAttemptTrusted,
    /// A session moves to whoever takes it before its owner has heard of that.
    TakenAtOnce,
    /// A session that was resigned is opened again, under its generation, when nobody wants it any more.
    ResignedIsTakenUpAgain,
    /// A request counts as carried out if a part of its change has survived.
    HalfIsTakenForAll,
    /// A request of which a part has survived is carried out again as a whole.
    SurvivedPartIsRepeated,
    /// A change of which an earlier seal has undone some blocks counts as undone in all of them.
    UndoneAsAWhole,
    /// A seal reads from a copy that has left the set and come back since it told what it has.
    SourceMayComeBack,
    /// A seal that begins anew does not wait for the changes that it has under way.
    SealBeginsAnewAtOnce,
    /// A change whose answer nobody has confirmed is not left out of what is settled around it.
    SettledPastAHole,
    /// Copies elsewhere are let go when there are as many as there should be, wherever they are.
    SurplusIsCounted,
    /// A sheep deletes what it holds as soon as it should be elsewhere.
    SweptTooEarly,
    /// Write-back: a copy that was kept in the set while it was down counts when it is back, whatever it has lost with its memory.
    RestartedCounts,
    /// Write-back: what a copy has in memory counts as durable there.
    TakenIsDurable,
    /// Incremental: what a member lacks is still tracked, and trusted, after its copy was to be elsewhere.
    AbsenceOutlivesTargets,
}

/// How a copy that was away catches up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatchUp {
    /// It forgets its marks and fetches everything.
    Full,
    /// It fetches what the others have tracked for it, and the blocks of its own marks; everything where that is not known.
    Incremental,
}

/// The bounds of a run: it is exhaustive within them.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub nodes: usize,
    /// Copies that there should be; at first on the first of the sheep.
    pub copies: usize,
    pub blocks: usize,
    pub writes: u8,
    /// Some writes are of all blocks at once.
    pub wide: bool,
    /// A request comes through another sheep, which asks again where it is not answered.
    pub forwards: bool,
    /// The last copy is up and lacks what is written from the beginning.
    pub absent: bool,
    /// Crashes, those of several sheep at once counted once.
    pub crashes: u8,
    /// All sheep may crash at once.
    pub power_loss: bool,
    /// Copies dropped, because they are slow.
    pub drops: u8,
    /// Sessions that end with everything settled.
    pub closes: u8,
    /// Sessions taken from owners that live.
    pub takes: u8,
    /// How often copies should be elsewhere.
    pub moves: u8,
    pub catch_up: CatchUp,
    /// Clients of the owner's own sheep are told as soon as all copies have their writes in memory.
    pub write_back: bool,
    /// Look for states in which nothing can happen any more. Takes twice as long.
    pub ends: bool,
    /// What has happened already.
    pub prelude: &'static [Action],
    pub bug: Option<Bug>,
}

impl Options {
    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
}
