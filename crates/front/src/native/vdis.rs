//! Names, locks and lists of VDIs.

use bytes::Bytes;
use proto::client::{ClientError, ClientOp, ClientReply, Selector, VdiInfo, VdiOp};
use proto::inode::{
    NAME_BYTES, NAME_MAX, SHIFT_DEFAULT, SHIFT_MAX, SHIFT_MIN, decode_policy, is_hyper, until_nul,
};
use proto::sd::extension::{EXTENSION_REPLY_BYTES_MAX, UsageReply, VolumeRequest, encode_list};
use proto::sd::header::{LOCK_NORMAL, LOCK_SHARED, RequestVariant, VdiReply, VdiRequest};
use proto::sd::structs::{VDI_STATE_BYTES, VdiState, encode_vid_bitmap, lock_state, participant_state};
use proto::sd::{Opcode, RequestHeader, ResultCode, VID_BITMAP_BYTES, cluster_flag};
use proto::{CopyPolicy, Vid};

use super::desk::Desk;
use super::exchange::{Answer, Step, code, unexpected};

/// Most copies, or strips, that a VDI may have.
const COPIES_MAX: u8 = 31;
/// Longest GET_VDI_COPIES that is answered, whatever room the client has.
const VDI_STATES_BYTES_MAX: usize = 64 << 20;

pub fn start(opcode: Opcode, header: &RequestHeader, payload: Bytes, desk: &Desk) -> Step {
    let request = VdiRequest::decode(&header.variant);
    match opcode {
        Opcode::NewVdi => create(&request, &payload),
        Opcode::GetVdiInfo => lookup(&request, &payload, |vdi| vdi_reply(&vdi)),
        Opcode::LockVdi => lock(&request, &payload, desk.clone()),
        Opcode::ReleaseVdi => release(&request, desk.clone()),
        Opcode::DelVdi => lookup(&request, &payload, delete),
        Opcode::ReadVdis => bitmap(header.data_length, VdiOp::UsedVids),
        Opcode::ReadDelVdis => bitmap(header.data_length, VdiOp::DeletedVids),
        Opcode::GetVdiCopies => copies(header.data_length as usize),
        Opcode::VdiList => list(),
        Opcode::VdiUsage => usage(VolumeRequest::decode(&header.variant).vid),
        _ => Step::refused(ResultCode::INVALID_PARMS),
    }
}

/// NEW_VDI: a new VDI; with a base a clone, a rollback or a snapshot (spec section 2.2).
fn create(request: &VdiRequest, payload: &[u8]) -> Step {
    let name = until_nul(payload).to_vec();
    let shift = (request.block_size_shift != 0).then_some(request.block_size_shift);
    let name_fits = payload.len() == NAME_BYTES && (1..=NAME_MAX).contains(&name.len());
    let shift_fits = shift.is_none_or(|shift| (SHIFT_MIN..=SHIFT_MAX).contains(&shift));
    let (true, true, Ok(policy)) = (name_fits, shift_fits, policy_of(request.copies, request.copy_policy))
    else {
        return Step::refused(ResultCode::INVALID_PARMS);
    };
    let base = Vid(request.base_vdi_id);
    match (base, request.snapid) {
        (Vid(0), 0) => {
            let (size, wants_hyper) = (request.vdi_size, request.store_policy != 0);
            // What the original gives its hypervolumes, whatever the cluster's default is.
            let shift = shift.or(wants_hyper.then_some(SHIFT_DEFAULT));
            let beyond_old_clients = move |shift| is_hyper(size, shift) && !wants_hyper;
            let create = VdiOp::Create { name, size, policy, block_size_shift: shift };
            match shift {
                Some(shift) if beyond_old_clients(shift) => Step::refused(ResultCode::INVALID_PARMS),
                None if beyond_old_clients(SHIFT_MIN) => Step::with_info(move |info| {
                    let shift = info.format.map_or(SHIFT_DEFAULT, |format| format.block_size_shift);
                    if beyond_old_clients(shift) {
                        return Step::refused(ResultCode::INVALID_PARMS);
                    }
                    new_vdi(create)
                }),
                _ => new_vdi(create),
            }
        }
        // There is nothing to freeze.
        (Vid(0), _) => Step::refused(ResultCode::INVALID_PARMS),
        (base, 0) => {
            let size = (request.vdi_size != 0).then_some(request.vdi_size);
            with_base(base, move |found| {
                if found.name == name {
                    // After its head was deleted: the snapshot gets a new one.
                    return new_vdi(VdiOp::Rollback { to: base, force: false });
                }
                clone(base, name, size, policy)
            })
        }
        (base, _) => with_base(base, move |found| {
            if found.name != name {
                return Step::refused(ResultCode::INVALID_PARMS);
            }
            if found.snap_ctime == 0 {
                return snapshot(base, |head| vdi_reply(&head));
            }
            // A new head on an older snapshot; the present one becomes a snapshot first.
            let lookup = VdiOp::Lookup { name, selector: Selector::Working };
            Step::call_ok(ClientOp::Vdi(lookup), move |reply| match reply {
                ClientReply::Vdi(head) => {
                    snapshot(head.vid, move |_| new_vdi(VdiOp::Rollback { to: base, force: true }))
                }
                other => unexpected(&other),
            })
        }),
    }
}

/// Nothing said of copies means the cluster's, whatever the base has (section 9.2).
fn clone(base: Vid, name: Vec<u8>, size: Option<u64>, policy: Option<CopyPolicy>) -> Step {
    Step::with_info(move |info| {
        let policy = policy.or(info.format.map(|format| format.policy));
        new_vdi(VdiOp::Clone { base, name, size, policy })
    })
}

/// An order that makes a VDI and is answered with it.
fn new_vdi(op: VdiOp) -> Step {
    Step::call(ClientOp::Vdi(op), |result| match result {
        Ok(ClientReply::Vdi(vdi)) => vdi_reply(&vdi),
        Ok(other) => unexpected(&other),
        // The words that scripts know for a cluster in which nobody stores anything.
        Err(ClientError::NoStorage) => Step::refused(ResultCode::VDI_WRITE),
        Err(error) => Step::refused(code(&error)),
    })
}

/// Old clients have written the tag into the header before.
fn snapshot(vid: Vid, then: impl FnOnce(VdiInfo) -> Step + 'static) -> Step {
    let op = VdiOp::Snapshot { vids: vec![vid], tag: Vec::new() };
    Step::call_ok(ClientOp::Vdi(op), |reply| match reply {
        ClientReply::Vdis(heads) if heads.len() == 1 => then(heads[0].clone()),
        other => unexpected(&other),
    })
}

fn with_base(vid: Vid, then: impl FnOnce(VdiInfo) -> Step + 'static) -> Step {
    Step::call_ok(ClientOp::Vdi(VdiOp::List), move |reply| match reply {
        ClientReply::Vdis(vdis) => match vdis.into_iter().find(|vdi| vdi.vid == vid) {
            Some(found) => then(found),
            None => Step::refused(ResultCode::BASE_VDI_READ),
        },
        other => unexpected(&other),
    })
}

/// `None` is the cluster's default; `copies` of an erasure-coded VDI follow from its policy.
pub(super) fn policy_of(copies: u8, policy: u8) -> Result<Option<CopyPolicy>, ResultCode> {
    if policy == 0 && copies == 0 {
        return Ok(None);
    }
    let decoded = decode_policy(policy, copies);
    let valid = match decoded {
        CopyPolicy::Replicated { copies } => copies <= COPIES_MAX,
        CopyPolicy::Erasure { data, parity } => matches!(data, 2 | 4 | 8 | 16) && parity >= 1,
    };
    if valid { Ok(Some(decoded)) } else { Err(ResultCode::INVALID_PARMS) }
}

fn vdi_reply(vdi: &VdiInfo) -> Step {
    Answer::with_variant(VdiReply {
        vdi_id: vdi.vid.0,
        attr_id: 0,
        copies: vdi.policy.width(),
        block_size_shift: vdi.block_size_shift,
    })
    .into()
}

/// Finds the VDI that a payload of 256 (name) or 512 bytes (name, tag) and the snapshot id speak of.
fn lookup(request: &VdiRequest, payload: &[u8], then: impl FnOnce(VdiInfo) -> Step + 'static) -> Step {
    if payload.len() != NAME_BYTES && payload.len() != 2 * NAME_BYTES {
        return Step::refused(ResultCode::INVALID_PARMS);
    }
    let (name, tag) = payload.split_at(NAME_BYTES);
    let (name, tag) = (until_nul(name), until_nul(tag));
    if name.is_empty() {
        // What a deleted VDI is called; nobody may find one.
        return Step::refused(ResultCode::NO_VDI);
    }
    if name.len() > NAME_MAX {
        return Step::refused(ResultCode::INVALID_PARMS);
    }
    let selector = match (tag.is_empty(), request.snapid) {
        (true, 0) => Selector::Working,
        (true, id) => Selector::SnapId(id),
        (false, 0) => Selector::Tag(tag.to_vec()),
        (false, id) => Selector::TagOrSnapId(tag.to_vec(), id),
    };
    Step::call_ok(ClientOp::Vdi(VdiOp::Lookup { name: name.to_vec(), selector }), |reply| match reply {
        ClientReply::Vdi(vdi) => then(vdi),
        other => unexpected(&other),
    })
}

fn delete(vdi: VdiInfo) -> Step {
    let reply = VdiReply { vdi_id: vdi.vid.0, ..VdiReply::default() };
    Step::call_ok(ClientOp::Vdi(VdiOp::Delete { vid: vdi.vid }), move |_| Answer::with_variant(reply).into())
}

/// LOCK_VDI: refused where the client's block table is too short for the VDI. A lookup; if the cluster enforces locks, the lock; then the hint that a client is coming.
fn lock(request: &VdiRequest, payload: &[u8], desk: Desk) -> Step {
    let shared = match request.lock_type {
        LOCK_NORMAL => false,
        LOCK_SHARED => true,
        _ => return Step::refused(ResultCode::INVALID_PARMS),
    };
    lookup(request, payload, move |vdi| {
        if is_hyper(vdi.size, vdi.block_size_shift) {
            tracing::warn!(
                vdi = %String::from_utf8_lossy(&vdi.name),
                "an old client wants to open a VDI of more than 2^20 objects and is refused: it is served over NBD"
            );
            return Step::refused(ResultCode::VER_MISMATCH);
        }
        if vdi.snap_ctime != 0 {
            // Nobody writes to a snapshot, and QEMU forgets to release its lock (section 10, item 14).
            return vdi_reply(&vdi);
        }
        Step::with_info(move |info| {
            let enforced = info.format.is_some_and(|format| format.flags & cluster_flag::USE_LOCK != 0);
            if !enforced {
                return open(vdi, desk);
            }
            Step::call_ok(ClientOp::Vdi(VdiOp::Lock { vid: vdi.vid, shared }), |_| open(vdi, desk))
        })
    })
}

/// I/O works without the hint, so the client need not hear of its failure.
fn open(vdi: VdiInfo, desk: Desk) -> Step {
    Step::call(ClientOp::Vdi(VdiOp::Open { vid: vdi.vid }), move |result| {
        match result {
            Ok(_) => desk.opened(&vdi),
            Err(error) => tracing::debug!(vid = %vdi.vid, %error, "VDI could not be opened beforehand"),
        }
        vdi_reply(&vdi)
    })
}

/// RELEASE_VDI always succeeds, locked or not. A normal lock is dropped whoever asks, a shared one through the
/// sheep that holds it, and no other's: so the original does, and its clients release through whichever sheep they reach.
fn release(request: &VdiRequest, desk: Desk) -> Step {
    let (vid, shared) = (Vid(request.base_vdi_id), request.lock_type == LOCK_SHARED);
    Step::once_formatted(move |info| {
        if !vid.is_valid() {
            return Answer::success().into();
        }
        let enforced = info.format.is_some_and(|format| format.flags & cluster_flag::USE_LOCK != 0);
        if !enforced {
            return close(vid, desk);
        }
        let unlock = VdiOp::Unlock { vid, shared };
        Step::call(ClientOp::Vdi(unlock), move |result| {
            if let Err(error) = result {
                tracing::debug!(%vid, %error, "lock could not be released");
            }
            close(vid, desk)
        })
    })
}

fn close(vid: Vid, desk: Desk) -> Step {
    if !desk.closed(vid) {
        return Answer::success().into();
    }
    Step::call(ClientOp::Vdi(VdiOp::Close { vid }), |_| Answer::success().into())
}

fn bitmap(room: u32, op: VdiOp) -> Step {
    if room as usize != VID_BITMAP_BYTES {
        return Step::refused(ResultCode::INVALID_PARMS);
    }
    Step::call(ClientOp::Vdi(op), |result| match result {
        Ok(ClientReply::Vids(vids)) => Answer::with_payload(encode_vid_bitmap(vids)).into(),
        // Answered before the first format too, when there are none.
        Err(ClientError::WaitForFormat) => Answer::with_payload(encode_vid_bitmap([])).into(),
        Ok(other) => unexpected(&other),
        Err(error) => Step::refused(code(&error)),
    })
}

fn copies(room: usize) -> Step {
    Step::call(ClientOp::Vdi(VdiOp::List), move |result| {
        let vdis = match result {
            Ok(ClientReply::Vdis(vdis)) => vdis,
            Err(ClientError::WaitForFormat) => Vec::new(),
            Ok(other) => return unexpected(&other),
            Err(error) => return Step::refused(code(&error)),
        };
        if vdis.len() > room.min(VDI_STATES_BYTES_MAX) / VDI_STATE_BYTES {
            return Step::refused(ResultCode::BUFFER_SMALL);
        }
        let states: Vec<u8> = vdis.iter().flat_map(|vdi| vdi_state(vdi).encode()).collect();
        Answer::with_payload(states).into()
    })
}

fn vdi_state(vdi: &VdiInfo) -> VdiState {
    let exclusive = vdi.locked_by.iter().find(|(_, shared)| !shared).map(|(node, _)| *node);
    let sharers = vdi.locked_by.iter().filter(|(_, shared)| *shared);
    VdiState {
        vid: vdi.vid.0,
        nr_copies: vdi.policy.width(),
        snapshot: vdi.snap_ctime != 0,
        deleted: false,
        copy_policy: vdi.policy.wire(),
        block_size_shift: vdi.block_size_shift,
        parent_vid: vdi.parent.0,
        lock_state: match (exclusive, vdi.locked_by.is_empty()) {
            (Some(_), _) => lock_state::LOCKED,
            (None, false) => lock_state::SHARED,
            (None, true) => lock_state::UNLOCKED,
        },
        lock_owner: exclusive,
        participants: sharers.map(|(node, _)| (*node, participant_state::SHARED)).collect(),
    }
}

fn list() -> Step {
    Step::call_ok(ClientOp::Vdi(VdiOp::List), |reply| match reply {
        ClientReply::Vdis(vdis) => bounded(encode_list(&vdis)),
        other => unexpected(&other),
    })
}

/// A list's encoding, unless it is too long for any client.
pub(super) fn bounded(encoded: Vec<u8>) -> Step {
    if encoded.len() > EXTENSION_REPLY_BYTES_MAX as usize {
        return Step::refused(ResultCode::BUFFER_SMALL);
    }
    Answer::with_payload(encoded).into()
}

fn usage(vid: Vid) -> Step {
    if !vid.is_valid() {
        return Step::refused(ResultCode::NO_VDI);
    }
    Step::call_ok(ClientOp::Vdi(VdiOp::Usage { vid }), |reply| match reply {
        ClientReply::Usage { own_objects, shared_objects } => {
            Answer::with_variant(UsageReply { own_objects, shared_objects }).into()
        }
        other => unexpected(&other),
    })
}
