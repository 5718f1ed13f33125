//! Object I/O of native clients, who keep a copy of the inode and address objects themselves; and our byte I/O.
//!
//! Each request becomes one operation of the VDI's owner. Here only what no object can satisfy is refused: ids that
//! name nothing, and ranges beyond the largest object of their kind. Such a read would return, such a write
//! would corrupt, what is not the client's (spec section 10, item 22).
//!
//! # tgt
//!
//! tgt answers reads of holes by itself, from a copy of the block table that it has once read, and of several
//! tgt on one VDI each has its own. The original keeps track of who has seen the present table and refuses requests
//! of the others (INODE_INVALIDATED), at the price of a cluster-wide event for each change. Here tgt has nothing that
//! could be out of date: it is shown a *flat* table, in which the VDI owns every object, holes and inherited objects
//! included. So each read and write becomes a READ or WRITE of the VDI's own object, and only the VDI's owner knows, in the
//! one order of all requests, what is a hole. It follows that
//!
//! - tgt on any number of sheep, together with any other clients, see one linearizable disk;
//! - a read that spans data and holes is right, which tgt itself gets wrong where it sees a hole (section 10, item 29);
//! - READ_OBJ of tgt never answers NO_OBJ for a hole, and WRITE_OBJ and CREATE_AND_WRITE_OBJ mean the same: these bytes,
//!   there. CREATE replaces nothing and a source to copy from is not looked at: the owner's table knows it.
//!
//! A tgt that got its table elsewhere (from the sheep before an upgrade) may still see holes. Before it answers
//! one it probes the inode by a read of one byte; that is always refused with INODE_INVALIDATED, so it reads the inode
//! anew. The same answer meets tgt that reads from a VDI which has become a snapshot: it goes on with the new head.

use bytes::Bytes;
use proto::client::{
    ClientError, ClientOp, ClientReply, ClientResult, ClusterOp, IO_BYTES_MAX, NativeOp, Point, VolumeOp,
};
use proto::inode::{INODE_BYTES, SHIFT_MAX};
use proto::sd::extension::{ObjectRequest, VolumeRequest, decode_list, encode_list};
use proto::sd::header::{ObjRequest, RequestVariant};
use proto::sd::{Opcode, RequestHeader, ResultCode, flag};
use proto::{ObjectKind, Oid};

use super::desk::Desk;
use super::exchange::{Answer, Step, code, unexpected};

/// What tgt reads of the inode before it answers for a hole.
const PROBE_BYTES: u32 = 1;

/// READ_OBJ, WRITE_OBJ, CREATE_AND_WRITE_OBJ, DISCARD_OBJ, FLUSH_VDI.
pub fn start(opcode: Opcode, header: &RequestHeader, payload: Bytes) -> Step {
    // `copies` and `copy_policy` are the client's idea and ignored: the object's VDI decides (section 10, item 15).
    let request = ObjRequest::decode(&header.variant);
    if opcode == Opcode::FlushVdi {
        return flush(request.oid);
    }
    let len = if opcode == Opcode::ReadObj { header.data_length } else { payload.len() as u32 };
    if let Err(refusal) = check_range(opcode, &request, len) {
        return Step::refused(refusal);
    }
    let ObjRequest { oid, offset, .. } = request;
    if header.has(flag::TGT)
        && let Some(step) = start_for_tgt(opcode, oid, offset, len, &payload)
    {
        return step;
    }
    match opcode {
        Opcode::ReadObj => read(oid, len, NativeOp::Read { offset, len }),
        Opcode::WriteObj => change(oid, NativeOp::Write { offset, data: payload }),
        Opcode::CreateAndWriteObj => {
            // A `cow_oid` without the flag is ignored, as ever.
            let cow_from = header.has(flag::COW).then_some(request.cow_oid);
            if cow_from.is_some_and(|source| source.kind() != oid.kind()) {
                return Step::refused(ResultCode::INVALID_PARMS);
            }
            change(oid, NativeOp::Create { offset, cow_from, data: payload })
        }
        Opcode::DiscardObj if oid.kind() == Some(ObjectKind::Data) => change(oid, NativeOp::Discard),
        _ => Step::refused(ResultCode::INVALID_PARMS),
    }
}

/// Reads of inodes, reads and writes of data; the rest is as for everybody.
fn start_for_tgt(opcode: Opcode, oid: Oid, offset: u32, len: u32, payload: &Bytes) -> Option<Step> {
    let is_inode = match oid.kind() {
        Some(ObjectKind::Inode) => true,
        Some(ObjectKind::Data) => false,
        _ => return None,
    };
    match opcode {
        Opcode::ReadObj if is_inode && len == PROBE_BYTES => {
            Some(Step::refused(ResultCode::INODE_INVALIDATED))
        }
        Opcode::ReadObj => Some(read(oid, len, NativeOp::ReadFlat { offset, len })),
        Opcode::WriteObj | Opcode::CreateAndWriteObj if !is_inode => {
            Some(change(oid, NativeOp::WriteFlat { offset, data: payload.clone() }))
        }
        _ => None,
    }
}

fn check_range(opcode: Opcode, request: &ObjRequest, len: u32) -> Result<(), ResultCode> {
    let object_bytes = match request.oid.kind() {
        Some(ObjectKind::Data | ObjectKind::VmState) => 1 << SHIFT_MAX,
        Some(ObjectKind::Inode) if request.oid.index() == 0 => INODE_BYTES as u64,
        // We keep none of these: they are absent to readers, and writers are told so.
        Some(_) if opcode == Opcode::ReadObj => return Err(ResultCode::NO_OBJ),
        Some(ObjectKind::Inode) | None => return Err(ResultCode::INVALID_PARMS),
        Some(_) => return Err(ResultCode::NO_SUPPORT),
    };
    let end = u64::from(request.offset) + u64::from(len);
    if request.offset_high != 0 || end > object_bytes || len > IO_BYTES_MAX {
        return Err(ResultCode::INVALID_PARMS);
    }
    if !request.oid.vid().is_valid() {
        return Err(ResultCode::NO_OBJ);
    }
    Ok(())
}

fn read(oid: Oid, len: u32, op: NativeOp) -> Step {
    let flat_inode = oid.kind() == Some(ObjectKind::Inode) && matches!(op, NativeOp::ReadFlat { .. });
    Step::call(ClientOp::Object { oid, op }, move |result| match result {
        Ok(reply) => data_of(reply, len),
        // tgt asks again at once, for ever, when it is told that there is no inode (section 10, item 30).
        Err(ClientError::NoVdi | ClientError::NoObject) if flat_inode => Step::refused(ResultCode::NO_VDI),
        Err(error) => Step::refused(object_code(&error)),
    })
}

/// Acknowledged when the owner has: the change is then on stable storage on every in-sync copy.
fn change(oid: Oid, op: NativeOp) -> Step {
    Step::call(ClientOp::Object { oid, op }, |result| match result {
        Ok(_) => Answer::success().into(),
        Err(error) => Step::refused(object_code(&error)),
    })
}

/// A reply of another length than was asked for must never reach a client: QEMU would wait for the rest, or take
/// what follows for a header.
fn data_of(reply: ClientReply, len: u32) -> Step {
    match reply {
        ClientReply::Data(data) if data.len() == len as usize => Answer::with_payload(data).into(),
        ClientReply::Data(data) => {
            tracing::error!(
                expected = len,
                got = data.len(),
                "the service read another length than asked for"
            );
            Step::refused(ResultCode::EIO)
        }
        other => unexpected(&other),
    }
}

/// An object of no VDI is an object that is not there.
fn object_code(error: &ClientError) -> ResultCode {
    match error {
        ClientError::NoVdi => ResultCode::NO_OBJ,
        other => code(other),
    }
}

/// Passed on for the sake of volumes with a volatile cache. Of a VDI that takes no writes nothing can be
/// unflushed. INVALID_PARMS would turn flushing off in QEMU for good, so it is never the answer.
fn flush(oid: Oid) -> Step {
    let vid = oid.vid();
    if !vid.is_valid() {
        return Answer::success().into();
    }
    Step::call(ClientOp::Volume { vid, at: Point::Head, op: VolumeOp::Flush }, |result| match result {
        Ok(_) | Err(ClientError::NoVdi | ClientError::ReadOnly) => Answer::success().into(),
        Err(error) => match code(&error) {
            ResultCode::INVALID_PARMS => Step::refused(ResultCode::SYSTEM_ERROR),
            other => Step::refused(other),
        },
    })
}

/// VOLUME_READ, VOLUME_WRITE, VDI_DISCARD, RESIZE_VDI, CHECK_OBJECT.
pub fn start_extension(opcode: Opcode, header: &RequestHeader, payload: Bytes) -> Step {
    if opcode == Opcode::CheckObject {
        return check(ObjectRequest::decode(&header.variant));
    }
    let VolumeRequest { vid, at, offset, length } = VolumeRequest::decode(&header.variant);
    if !vid.is_valid() {
        return Step::refused(ResultCode::NO_VDI);
    }
    let volume = |op| ClientOp::Volume { vid, at, op };
    let len = header.data_length;
    match opcode {
        // `length` repeats `data_length`: a client that mixes them up must not read or write elsewhere.
        Opcode::VolumeRead | Opcode::VolumeWrite if length != u64::from(len) || len > IO_BYTES_MAX => {
            Step::refused(ResultCode::INVALID_PARMS)
        }
        Opcode::VolumeRead => {
            Step::call_ok(volume(VolumeOp::Read { offset, len }), move |reply| data_of(reply, len))
        }
        Opcode::VolumeWrite => Step::call_done(volume(VolumeOp::Write { offset, data: payload })),
        Opcode::VdiDiscard => Step::call_done(volume(VolumeOp::Discard { offset, len: length })),
        Opcode::ResizeVdi => Step::call_done(volume(VolumeOp::Resize { size: length })),
        _ => Step::refused(ResultCode::INVALID_PARMS),
    }
}

/// ASK: whatever may be asked about VDIs without a payload, answered with the service's own words.
pub fn ask(payload: &[u8], desk: &Desk) -> Step {
    let Some(op) = decode_list::<ClientOp>(payload) else { return Step::refused(ResultCode::INVALID_PARMS) };
    match op {
        ClientOp::Vdi(_)
        | ClientOp::Cluster(
            ClusterOp::Track { .. }
            | ClusterOp::SetDefaultPolicy { .. }
            | ClusterOp::Health
            | ClusterOp::StopRisk(_)
            | ClusterOp::NodeStat
            | ClusterOp::Scrub
            | ClusterOp::SetRepair(_)
            | ClusterOp::SetOut { .. }
            | ClusterOp::ForceRecovery
            | ClusterOp::Attach { .. }
            | ClusterOp::Detach { .. }
            | ClusterOp::Attached,
        )
        | ClientOp::Volume { op: VolumeOp::BlockStatus { .. } | VolumeOp::Changes { .. }, .. } => {
            Step::call(op, |result| Answer::with_payload(encode_list(&result)).into())
        }
        ClientOp::Cluster(ClusterOp::Access) => {
            let result: ClientResult = Ok(ClientReply::Access(desk.access()));
            Answer::with_payload(encode_list(&result)).into()
        }
        _ => Step::refused(ResultCode::INVALID_PARMS),
    }
}

fn check(request: ObjectRequest) -> Step {
    let ObjectRequest { oid, repair } = request;
    if oid.kind().is_none() || !oid.vid().is_valid() {
        return Step::refused(ResultCode::INVALID_PARMS);
    }
    Step::call(ClientOp::Object { oid, op: NativeOp::Check { repair, part: None } }, |result| match result {
        Ok(ClientReply::Checked(report)) => Answer::with_payload(encode_list(&report)).into(),
        Ok(other) => unexpected(&other),
        Err(error) => Step::refused(object_code(&error)),
    })
}
