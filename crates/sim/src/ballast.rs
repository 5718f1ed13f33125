//! A VDI that fills the disks, so that there is hardly any room, or none, while clients go on and sheep come and go.
//!
//! Clients may be told `NoSpace` then, and what they asked for may have happened or not. No write waits for room where enough copies count: unless a PG
//! is below its minimum, since a copy that was away finds no room to catch up, all requests are answered before the ballast is removed. Its removal has
//! to work on full disks, and when it is gone all copies have to become complete.

use std::time::Duration;

use bytes::Bytes;
use proto::client::{
    ClientError, ClientOp, ClientReply, ClientResult, ClusterStatus, Point, VdiOp, VolumeOp,
};
use proto::{RequestId, Vid};

use crate::network::SheepIndex;
use crate::run::expect_done;
use crate::world::{Event, World};

/// Four slots.
const PIECE_BYTES: u64 = 256 << 10;
const PIECES_MAX: u64 = 1600;
/// Pieces that find no room, one after the other: the disks are full.
const REFUSALS_MAX: u32 = 12;
/// Requests on the ballast at the same time.
const OPEN_MAX: usize = 4;

#[derive(Debug, Default)]
pub(crate) struct Ballast {
    vid: Option<Vid>,
    open: Vec<RequestId>,
    /// Requests of clients and of its own that found no room.
    pub refused: u64,
}

impl World {
    pub(crate) fn load_ballast(&mut self) -> Result<(), String> {
        let size = PIECES_MAX * PIECE_BYTES;
        let create = VdiOp::Create { name: b"ballast".to_vec(), size, policy: None, block_size_shift: None };
        let vid = match self.ask_and_wait(ClientOp::Vdi(create))? {
            Ok(ClientReply::Vdi(info)) => info.vid,
            other => return Err(format!("creating the ballast gave {other:?}")),
        };
        self.ballast.vid = Some(vid);
        let mut refused = 0;
        for piece in 0..PIECES_MAX {
            match self.ask_and_wait(write(vid, piece))? {
                Ok(ClientReply::Done) => refused = 0,
                Err(ClientError::NoSpace) => refused += 1,
                other => return Err(format!("piece {piece} of the ballast is answered with {other:?}")),
            }
            if refused == REFUSALS_MAX {
                return Ok(());
            }
        }
        Err("the disks are larger than the ballast".into())
    }

    /// It becomes a little more or a little less.
    pub(crate) fn ballast_turn(&mut self) {
        let Some(vid) = self.ballast.vid.filter(|_| self.clients_busy) else { return };
        let pause = self.churn_rng.latency(self.scenario.think_time * 2);
        self.queue.put_after(pause.min(Duration::from_millis(50)), Event::BallastTurn);
        self.judge_ballast();
        let knows = |s: &SheepIndex| self.view_of(*s).is_some_and(|view| view.vdi(vid).is_some());
        let members: Vec<SheepIndex> = (0..self.sheep.len()).filter(knows).collect();
        if members.is_empty() || self.ballast.open.len() >= OPEN_MAX {
            return;
        }
        let sheep = *self.churn_rng.pick(&members);
        let piece = self.churn_rng.below(PIECES_MAX / 8);
        let op = if self.churn_rng.percent(60) { write(vid, piece) } else { discard(vid, piece) };
        let request = self.ask(sheep, op);
        self.ballast.open.push(request);
    }

    fn judge_ballast(&mut self) {
        for request in std::mem::take(&mut self.ballast.open) {
            match self.answers.remove(&request) {
                None => self.ballast.open.push(request),
                Some(Ok(ClientReply::Done)) => {}
                Some(Err(ClientError::NoSpace)) => self.ballast.refused += 1,
                Some(Err(_)) if self.lost_asks.remove(&request) => {}
                Some(other) => self.violate(format!("request {request} is answered with {other:?}")),
            }
        }
    }

    /// With everything mended and disks as full as before, everything is answered, as far as enough copies count; then there is room again.
    pub(crate) fn remove_ballast(&mut self) -> Result<(), String> {
        let Some(vid) = self.ballast.vid else { return Ok(()) };
        if let Err(why) = self.stop_clients() {
            let view = self.sheep[0].process().ok_or("a sheep is down")?.node.view();
            if view.status() == ClusterStatus::Running || self.violation.is_some() {
                return Err(why);
            }
        }
        self.judge_ballast();
        expect_done(self.ask_and_wait(ClientOp::Vdi(VdiOp::Delete { vid }))?)
    }

    /// What a client's request may be answered with, besides success: it may have happened or not.
    pub(crate) fn is_legal_refusal(&mut self, result: &ClientResult) -> bool {
        let is_legal = self.ballast.vid.is_some() && matches!(result, Err(ClientError::NoSpace));
        self.ballast.refused += u64::from(is_legal);
        is_legal
    }
}

fn write(vid: Vid, piece: u64) -> ClientOp {
    let data = Bytes::from(vec![piece as u8 | 1; PIECE_BYTES as usize]);
    let op = VolumeOp::Write { offset: piece * PIECE_BYTES, data };
    ClientOp::Volume { vid, at: Point::Head, op }
}

fn discard(vid: Vid, piece: u64) -> ClientOp {
    let op = VolumeOp::Discard { offset: piece * PIECE_BYTES, len: PIECE_BYTES };
    ClientOp::Volume { vid, at: Point::Head, op }
}
