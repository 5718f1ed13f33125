//! The sheep as front ends on other threads see it: requests go to the data plane's thread in the order of their calls, and each answer
//! comes back on a channel of its own.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use front::Service;
use proto::Epoch;
use proto::client::{ClientOp, ClientResult};
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
            if let Some(mut waiting) = waiting
                && let Ok(result) = (&mut waiting.answered).await
            {
                return result;
            }
            // The data plane is gone, and with it, in a moment, this thread: what is unanswered stays so.
            std::future::pending().await
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

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use proto::client::{ClientReply, ClusterOp};

    fn remote() -> (Remote, mpsc::UnboundedReceiver<Call>) {
        Remote::new(watch::Sender::new(0).subscribe(), Arc::new(AtomicU32::new(7)), true)
    }

    fn asked(call: Call) -> (oneshot::Sender<ClientResult>, Ticket) {
        let Call::Asked { answer, ticket, op: ClientOp::Cluster(ClusterOp::NodeStat) } = call else {
            panic!("something else was asked")
        };
        (answer, ticket)
    }

    fn op() -> ClientOp {
        ClientOp::Cluster(ClusterOp::NodeStat)
    }

    #[test]
    fn who_goes_without_an_answer_is_told_of_behind_what_it_asked() {
        let (remote, mut heard) = remote();
        // Never polled: called is called.
        let first = remote.call(op());
        let second = remote.clone().call(op());
        drop(first);
        let (_first, ticket) = asked(heard.try_recv().unwrap());
        ticket.set(5);
        let (second_answer, _) = asked(heard.try_recv().unwrap());
        let Ok(Call::Gone(gone)) = heard.try_recv() else { panic!("nobody said that it has gone") };
        assert_eq!(gone.get(), 5);
        second_answer.send(Ok(ClientReply::Done)).unwrap();
        assert_eq!(second.now_or_never(), Some(Ok(ClientReply::Done)));
        assert!(heard.try_recv().is_err(), "it has its answer");
        assert_eq!((remote.epoch(), remote.is_write_back()), (Epoch(7), true));
    }

    #[test]
    fn when_the_data_plane_is_gone_nobody_is_answered() {
        let (remote, mut heard) = remote();
        let mut call = Box::pin(remote.call(op()));
        drop(asked(heard.try_recv().unwrap()));
        assert_eq!((&mut call).now_or_never(), None);
        drop(heard);
        assert_eq!((&mut call).now_or_never(), None);
        assert_eq!(remote.call(op()).now_or_never(), None);
    }
}
