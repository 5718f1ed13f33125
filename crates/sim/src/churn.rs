//! VDIs that come and go while others are in use: created, written and read a little, deleted.
//!
//! Its own requests on a VDI have ended before it is deleted, so none of them may be refused. A creation or deletion
//! whose sheep died may have happened or not; what must hold in the end is that no copy of a deleted
//! VDI's objects is left anywhere.

use std::time::Duration;

use proto::client::{ClientOp, ClientReply, VdiOp};
use proto::{RequestId, Vid};

use crate::client::BlockRequest;
use crate::network::SheepIndex;
use crate::world::{Event, Purpose, World};

/// Requests on one VDI before it is deleted.
const REQUESTS_PER_VDI: u32 = 12;

#[derive(Debug, Default)]
pub(crate) struct Churn {
    created: u64,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    Creating(RequestId),
    Using {
        vid: Vid,
        left: u32,
    },
    Deleting(RequestId, Vid),
}

impl World {
    pub(crate) fn churn_turn(&mut self) {
        if !self.clients_busy {
            return;
        }
        let pause = self.churn_rng.latency(self.scenario.think_time);
        self.queue.put_after(pause.min(Duration::from_millis(50)), Event::ChurnTurn);
        let up: Vec<SheepIndex> = (0..self.sheep.len()).filter(|s| self.sheep[*s].is_up()).collect();
        if up.is_empty() {
            return;
        }
        let sheep = *self.churn_rng.pick(&up);
        let state = std::mem::take(&mut self.churn.state);
        self.churn.state = self.next_churn_state(state, sheep);
    }

    fn next_churn_state(&mut self, state: State, sheep: SheepIndex) -> State {
        match state {
            State::Idle => {
                self.churn.created += 1;
                let name = format!("churn{}", self.churn.created).into_bytes();
                let size = self.population.vdi_bytes;
                let create = VdiOp::Create { name, size, policy: None, block_size_shift: None };
                State::Creating(self.ask(sheep, ClientOp::Vdi(create)))
            }
            State::Creating(request) => match self.answers.remove(&request) {
                None => State::Creating(request),
                Some(Ok(ClientReply::Vdi(info))) => State::Using { vid: info.vid, left: REQUESTS_PER_VDI },
                // Its sheep died. The next one gets another name.
                Some(Err(_)) if self.lost_asks.remove(&request) => State::Idle,
                Some(other) => {
                    self.violate(format!("creating a VDI is answered with {other:?}"));
                    State::Idle
                }
            },
            State::Using { vid, left: 0 } => {
                let busy = self
                    .requests
                    .values()
                    .any(|r| matches!(&r.purpose, Purpose::Blocks { vid: of, .. } if *of == vid));
                if busy {
                    return State::Using { vid, left: 0 };
                }
                State::Deleting(self.ask(sheep, ClientOp::Vdi(VdiOp::Delete { vid })), vid)
            }
            State::Using { vid, left } => {
                // A sheep that has not heard of the VDI yet would rightly say that there is none.
                let knows = self.sheep[sheep]
                    .process()
                    .is_some_and(|p| p.node.is_member() && p.node.view().vdi(vid).is_some());
                if !knows {
                    return State::Using { vid, left };
                }
                let value = self.fresh_value();
                let request = BlockRequest::draw(&mut self.churn_rng, &self.population, value);
                let op = request.op(vid, &mut self.churn_rng);
                self.issue_blocks(None, sheep, vid, request, op);
                State::Using { vid, left: left - 1 }
            }
            State::Deleting(request, vid) => match self.answers.remove(&request) {
                None => State::Deleting(request, vid),
                Some(Ok(_)) => {
                    self.log(|| format!("vid {vid} is deleted"));
                    State::Idle
                }
                Some(Err(_)) if self.lost_asks.remove(&request) => State::Idle,
                Some(other) => {
                    self.violate(format!("deleting vid {vid} is answered with {other:?}"));
                    State::Idle
                }
            },
        }
    }
}
