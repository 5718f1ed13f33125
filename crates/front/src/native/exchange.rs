//! One request from its arrival to its answer: a chain of calls to the service, each deciding what comes next.
//!
//! Sans-IO: a [`Step`] either asks for a call or is the answer. Whoever drives it makes the call and passes the
//! result on.

use bytes::Bytes;
use proto::client::{
    ClientError, ClientOp, ClientReply, ClientResult, ClusterInfo, ClusterOp, ClusterStatus,
};
use proto::sd::header::ReplyVariant;
use proto::sd::{Opcode, ReplyHeader, RequestHeader, ResultCode};

use super::desk::Desk;
use super::{cluster, objects, vdis};

/// What a request needs next.
pub enum Step {
    Call(ClientOp, Then),
    Reply(Answer),
}

/// What to do with the result of a call.
pub type Then = Box<dyn FnOnce(ClientResult) -> Step>;

/// What is told to the client, but for what the shell knows (epoch) or echoes (opcode, id).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub result: ResultCode,
    pub variant: [u8; 28],
    pub payload: Bytes,
}

impl Answer {
    pub fn success() -> Answer {
        Answer { result: ResultCode::SUCCESS, variant: [0; 28], payload: Bytes::new() }
    }

    /// A refusal has neither payload nor anything in its variable part.
    pub fn refused(result: ResultCode) -> Answer {
        Answer { result, ..Answer::success() }
    }

    pub fn with_variant(variant: impl ReplyVariant) -> Answer {
        Answer { variant: variant.encode(), ..Answer::success() }
    }

    pub fn with_payload(payload: impl Into<Bytes>) -> Answer {
        Answer { payload: payload.into(), ..Answer::success() }
    }

    /// The reply's header: version and flags are 0, as the original sends them.
    pub fn header(&self, request: &RequestHeader, epoch: u32) -> ReplyHeader {
        ReplyHeader {
            proto_ver: 0,
            opcode: request.opcode,
            flags: 0,
            epoch,
            id: request.id,
            data_length: u32::try_from(self.payload.len()).expect("payloads are capped far below 4 GiB"),
            result: self.result,
            variant: self.variant,
        }
    }
}

impl From<Answer> for Step {
    fn from(answer: Answer) -> Step {
        Step::Reply(answer)
    }
}

impl Step {
    pub(super) fn refused(result: ResultCode) -> Step {
        Step::Reply(Answer::refused(result))
    }

    pub(super) fn call(op: ClientOp, then: impl FnOnce(ClientResult) -> Step + 'static) -> Step {
        Step::Call(op, Box::new(then))
    }

    /// A call whose refusal ends the request.
    pub(super) fn call_ok(op: ClientOp, then: impl FnOnce(ClientReply) -> Step + 'static) -> Step {
        Step::call(op, |result| match result {
            Ok(reply) => then(reply),
            Err(error) => Step::refused(code(&error)),
        })
    }

    /// A call after which there is nothing to say but success.
    pub(super) fn call_done(op: ClientOp) -> Step {
        Step::call_ok(op, |_| Answer::success().into())
    }

    /// Asks for the cluster's state.
    pub(super) fn with_info(then: impl FnOnce(ClusterInfo) -> Step + 'static) -> Step {
        Step::call_ok(ClientOp::Cluster(ClusterOp::Info), |reply| match reply {
            ClientReply::Cluster(info) => then(*info),
            other => unexpected(&other),
        })
    }

    /// For operations that this sheep answers by itself, but not before there is a cluster (spec section 1.7).
    ///
    /// One that waits for members answers as well: clients do not ask again (section 10, item 19), and a RELEASE_VDI
    /// that is lost leaves the VDI open.
    pub(super) fn once_formatted(then: impl FnOnce(ClusterInfo) -> Step + 'static) -> Step {
        Step::with_info(|info| match info.status {
            ClusterStatus::Running | ClusterStatus::WaitForJoin => then(info),
            refusal => Step::refused(status_code(refusal)),
        })
    }
}

/// The result code of a refusal, logging what the code cannot carry.
pub(super) fn code(error: &ClientError) -> ResultCode {
    if let ClientError::Unsupported(what) = error {
        tracing::info!(what, "native request refused as unsupported");
    }
    ResultCode::from(error)
}

pub(super) fn status_code(status: ClusterStatus) -> ResultCode {
    match status {
        ClusterStatus::Running => ResultCode::SUCCESS,
        ClusterStatus::WaitForFormat => ResultCode::WAIT_FOR_FORMAT,
        ClusterStatus::WaitForJoin => ResultCode::WAIT_FOR_JOIN,
        ClusterStatus::ShuttingDown => ResultCode::SHUTDOWN,
    }
}

/// The service answered a question that was not asked: a defect of ours, which one request pays for.
pub(super) fn unexpected(reply: &ClientReply) -> Step {
    let kind = std::mem::discriminant(reply);
    tracing::error!(?kind, "the service's reply does not fit the request");
    Step::refused(ResultCode::SYSTEM_ERROR)
}

/// The first step of a request whose version, opcode and payload length `session` has found acceptable.
pub fn start(opcode: Opcode, header: &RequestHeader, payload: Bytes, desk: &Desk) -> Step {
    use Opcode::*;
    match opcode {
        ReadObj | WriteObj | CreateAndWriteObj | DiscardObj | FlushVdi => {
            objects::start(opcode, header, payload)
        }
        VolumeRead | VolumeWrite | VdiDiscard | ResizeVdi | CheckObject => {
            objects::start_extension(opcode, header, payload)
        }
        Ask => objects::ask(&payload, desk),
        NewVdi | LockVdi | ReleaseVdi | GetVdiInfo | DelVdi | ReadVdis | ReadDelVdis | GetVdiCopies
        | VdiList | VdiUsage => vdis::start(opcode, header, payload, desk),
        _ => cluster::start(opcode, header, payload, desk),
    }
}
