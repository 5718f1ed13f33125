//! The sheep as front ends on other threads see it: requests go to the data plane's thread in the order of their calls, and each answer
//! comes back on a channel of its own.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use front::Service;
use proto::Epoch;
use proto::client::{ClientError, ClientOp, ClientResult};
use tokio::sync::{mpsc, oneshot, watch};

/// Cheap to clone.
#[derive(Clone)]
pub struct Remote(Arc<Shared>);

struct Shared {
    /// Front ends bound what each of their clients has under way.
    calls: mpsc::UnboundedSender<Call>,
    view_changes: watch::Receiver<u64>,
    epoch: Arc<AtomicU32>,
    write_back: bool,
}

/// What the data plane's thread is told, in this order.
pub enum Call {
    Asked {
        op: ClientOp,
        answer: oneshot::Sender<ClientResult>,
        ticket: Ticket,
    },
    /// Nobody waits for the answer any more.
    Gone(Ticket),
}

/// Under which number the node has a request. 0: it has none of it.
#[derive(Clone, Default)]
pub struct Ticket(Arc<AtomicU64>);

impl Ticket {
    // Written and read by the data plane's thread alone.
    pub fn set(&self, request: u64) {
        self.0.store(request, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Remote {
    /// `epoch` is kept by the data plane's thread.
    pub fn new(
        view_changes: watch::Receiver<u64>,
        epoch: Arc<AtomicU32>,
        write_back: bool,
    ) -> (Remote, mpsc::UnboundedReceiver<Call>) {
        let (calls, heard) = mpsc::unbounded_channel();
        (Remote(Arc::new(Shared { calls, view_changes, epoch, write_back })), heard)
    }
}

impl Service for Remote {
    fn call(&self, op: ClientOp) -> impl Future<Output = ClientResult> + 'static {
        let (answer, answered) = oneshot::channel();
        let ticket = Ticket::default();
        // Sent here and not when the future is first polled: the order of calls is the order of requests.
        let sent = self.0.calls.send(Call::Asked { op, answer, ticket: ticket.clone() });
        let waiting = sent.is_ok().then(|| Waiting { remote: self.clone(), ticket, answered });
        async move {
            let Some(mut waiting) = waiting else { return Err(ClientError::ShuttingDown) };
            (&mut waiting.answered).await.unwrap_or(Err(ClientError::ShuttingDown))
        }
    }

    fn view_changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.0.view_changes.clone())
    }

    fn is_write_back(&self) -> bool {
        self.0.write_back
    }

    fn epoch(&self) -> Epoch {
        Epoch(self.0.epoch.load(Ordering::Acquire))
    }
}

/// Dropped without an answer: its client has gone.
struct Waiting {
    remote: Remote,
    ticket: Ticket,
    answered: oneshot::Receiver<ClientResult>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.answered.is_terminated() {
            // Nobody hears it any more when the sheep ends.
            let _ = self.remote.0.calls.send(Call::Gone(self.ticket.clone()));
        }
    }
}
