//! Cluster drivers: where the one total order of events comes from.
//!
//! A sheep proposes, and hears what everybody proposed, in the same order as all others. What a driver promises:
//!
//! - [`LogEntry`] versions are 1, 2, 3, ... without gaps, and the entry of a version is the same for every member.
//! - An entry is delivered only when it is durable: on a majority, or in the driver's own store.
//! - Deliveries begin with the newest snapshot, if there is one; all entries after it follow. The member's own `Join` is
//!   the last entry of that backlog; what comes after it is live.
//! - An incarnation is the version of its `Join`. A life that ends is told by exactly one `Leave`, and all lives found
//!   ended at one moment are told by the same `Leave`: after a power loss of all, the first sheep back learns in one event
//!   that it is alone.
//! - A proposal is delivered at most once. It is lost only if its proposer ends before the driver took it.
//!
//! A driver runs on a thread (or runtime) of its own and meets the sheep at two bounded channels, so it never
//! slows the data plane. [`local`] is the driver for sheep that share one machine.

pub mod local;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use proto::ViewVersion;
use proto::cluster::{EVENT_BYTES_MAX, LogEntry, MemberInfo, Proposal};
use tokio::sync::mpsc;

/// What a driver tells its sheep, in this order: at most one `Snapshot`, then entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The state after `version`, as some member gave it to [`Orders::compact`].
    Snapshot { version: ViewVersion, state: Bytes },
    /// The entry after the last one.
    Entry(LogEntry),
    /// This sheep cannot be sure to be a member any more: stop answering. Entries may follow when it is over.
    QuorumLost,
    /// The driver has ended and delivers nothing more.
    Failed(String),
}

/// Deliveries that may wait for the sheep before the driver pauses.
const DELIVERIES_MAX: usize = 1024;
/// Orders that may wait for the driver before the sheep is told [`OrderError::Busy`].
const ORDERS_MAX: usize = 1024;

/// A source of the total order, configured and not yet joined.
pub trait Driver {
    /// Joins as `member`. Returns early errors (wrong configuration, an address that is taken); later ones come
    /// as [`Delivery::Failed`]. The sheep must be listening already: others call as soon as they see the `Join`.
    fn start(self: Box<Self>, member: MemberInfo) -> Result<Handle, StartError>;

    /// May sheep on other machines be members? If not, nobody needs to reach this one from outside.
    fn spans_machines(&self) -> bool;
}

/// Why a driver could not start.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

/// A sheep's end of a running driver.
pub struct Handle {
    pub deliveries: mpsc::Receiver<Delivery>,
    pub orders: Orders,
}

/// What a sheep may ask of its driver. Clones share the driver.
#[derive(Clone)]
pub struct Orders {
    sender: mpsc::Sender<Order>,
    wake: Arc<dyn Fn() + Send + Sync>,
    wants_snapshot: Arc<AtomicBool>,
}

/// A driver's end of the channels.
pub struct DriverEnd {
    pub deliveries: mpsc::Sender<Delivery>,
    pub orders: mpsc::Receiver<Order>,
    /// Set when the log has become long; cleared by the driver when it has been shortened.
    pub wants_snapshot: Arc<AtomicBool>,
}

#[derive(Debug)]
pub enum Order {
    Propose(Proposal),
    Compact { version: ViewVersion, state: Bytes },
    Leave,
}

/// Why an order was not taken.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// Too many are under way. Try again when the next entry has been delivered.
    #[error("the cluster driver is busy")]
    Busy(Proposal),
    #[error("a proposal of {0} bytes is larger than {EVENT_BYTES_MAX}")]
    TooLarge(usize),
    #[error("the cluster driver has ended")]
    Ended,
}

impl Handle {
    /// Both ends. `wake` is called after every order, for drivers that do not wait on the channel itself.
    pub fn new(wake: Arc<dyn Fn() + Send + Sync>) -> (Handle, DriverEnd) {
        let (delivery_sender, deliveries) = mpsc::channel(DELIVERIES_MAX);
        let (sender, orders) = mpsc::channel(ORDERS_MAX);
        let wants_snapshot = Arc::new(AtomicBool::new(false));
        let handle =
            Handle { deliveries, orders: Orders { sender, wake, wants_snapshot: wants_snapshot.clone() } };
        (handle, DriverEnd { deliveries: delivery_sender, orders, wants_snapshot })
    }
}

impl Orders {
    /// Asks that everybody applies `proposal`. Never blocks.
    pub fn propose(&self, proposal: Proposal) -> Result<(), OrderError> {
        // Room for what an entry adds around a proposal: version, time, sender.
        let len = postcard::to_stdvec(&proposal).map_or(usize::MAX, |encoded| encoded.len());
        if len > EVENT_BYTES_MAX - 256 {
            return Err(OrderError::TooLarge(len));
        }
        self.give(Order::Propose(proposal))
    }

    /// Is it time for [`Orders::compact`]?
    pub fn wants_snapshot(&self) -> bool {
        self.wants_snapshot.load(Ordering::Relaxed)
    }

    /// The state after `version`, so that entries up to it need not be kept. An optimisation: it may be refused.
    pub fn compact(&self, version: ViewVersion, state: Bytes) -> Result<(), OrderError> {
        self.give(Order::Compact { version, state })
    }

    /// Ends the membership. The driver delivers the own `Leave` and then closes the channel.
    pub fn leave(&self) -> Result<(), OrderError> {
        self.give(Order::Leave)
    }

    fn give(&self, order: Order) -> Result<(), OrderError> {
        self.sender.try_send(order).map_err(|error| match error {
            mpsc::error::TrySendError::Full(Order::Propose(proposal)) => OrderError::Busy(proposal),
            // The next entry asks again.
            mpsc::error::TrySendError::Full(_) | mpsc::error::TrySendError::Closed(_) => OrderError::Ended,
        })?;
        (self.wake)();
        Ok(())
    }
}
