//! `dog vdi alter-copy [-c N] [-f] NAME`: gives a VDI another number of copies.
//!
//! Copies of one number have their places in common, so everything is copied to a new VDI, which then takes the name:
//!
//! 1. A VDI that nobody uses is frozen, under the tag [`TAG`]; it stands there as before, under a new id.
//! 2. What was frozen is copied to a VDI with the wanted number of copies, under a name of its own ([`copy_name`]).
//! 3. In one step the copy takes the name and the rest is deleted. The sheep refuse that if the VDI was opened since step 1.
//!
//! Whoever opens the VDI meanwhile thus wins, and loses nothing. A dog that is killed leaves the snapshot and the copy, which are of no
//! use; the next attempt removes them first.

use std::thread;
use std::time::{Duration, Instant};

use proto::client::{ClientError, VdiInfo};
use proto::inode::{SHIFT_MAX, is_hyper};
use proto::{CopyPolicy, Vid};

use super::clone::copy;
use super::delete::delete_unneeded;
use super::names::{name_at, open_failure, shown};
use crate::command::{Action, Command, option};
use crate::context::{Context, declined, notice};
use crate::everyone::ask_all;
use crate::failure::{Failure, Outcome};
use crate::getopt::Parsed;
use crate::redundancy::wanted_copies;
use crate::sheep::{CallError, Selector, Sheep};
use crate::size;
use crate::target::Target;
use crate::terminal::confirm;
use crate::vm;

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "alter-copy",
    summary: "change an image's number of copies",
    args: "<vdiname>",
    args_min: 1,
    args_max: 1,
    options: &[option::COPIES, option::ADDRESS, option::PORT, option::HELP, option::TIME, option::FORCE],
    needs_nodes: true,
    check: |parsed| wanted_copies(parsed).map(drop),
    action: Action::Run(run),
    notes: "Everything is copied, so there must be room for the new copies beside the old ones. Nobody may use the\n\
            image. What an interrupted attempt leaves is removed by the next one.",
};

/// Of the snapshot that is copied.
const TAG: &[u8] = b"dog-alter-copy";
/// How long a sheep may take to give back a VDI that none of its clients uses any more.
const REST_PATIENCE: Duration = Duration::from_secs(5);
const REST_POLL: Duration = Duration::from_millis(50);

/// `base` is the id of what is copied, so that it is known whose copy an interrupted attempt has left.
fn copy_name(base: Vid) -> Vec<u8> {
    format!("dog-alter-copy-{base}").into_bytes()
}

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let wanted = wanted_copies(parsed)?;
    let name = name_at(parsed, 0)?;
    if wanted.is_assumed {
        context.print(&format!("The number of copies is not given (-c): {} is assumed\n", wanted.copies))?;
    }
    let mut sheep = context.connect()?;
    let (info, left) = find(&mut sheep, &name)?;
    let old_copies = check(&shown(&name), &info, wanted.copies)?;
    let needed = check_room(context, &mut sheep, &info, wanted.copies)?;
    if !parsed.has("force") && !is_confirmed(context, &name, wanted.copies, needed)? {
        return declined();
    }
    for vid in left {
        sheep.delete_vid(vid).map_err(|error| refused(&name, error))?;
    }
    come_to_rest(&mut sheep, &name, info.vid)?;
    // Whoever opens it from here on takes its session, which the last step notices.
    check_unused(context, &info)?;
    alter(context, &mut sheep, &info, wanted.copies)?;
    // What a dog had asked for just before it was killed may have been carried out after this one had looked. The names are ours: `find` has
    // refused a VDI with another parent, and of two attempts at once the other one has lost.
    let late = [copy_name(info.vid), copy_name(info.parent)];
    let vdis = sheep.vdis()?;
    let late: Vec<Vid> = vdis.iter().filter(|vdi| late.contains(&vdi.name)).map(|vdi| vdi.vid).collect();
    delete_unneeded(&mut sheep, &late);
    notice(&format!(
        "{}'s redundancy level is set to {}, the old one was {old_copies}.",
        shown(&name),
        wanted.copies
    ));
    Ok(())
}

fn refused(name: &[u8], error: CallError) -> Failure {
    error.or_refused(|reason| {
        format!("Failed to alter the copies of VDI {}: {reason}; nothing was changed", shown(name))
    })
}

fn in_use(name: &[u8], holder: &str) -> Failure {
    Failure::refused(format!(
        "Failed to alter the copies of VDI {}: it is in use through {holder}; close it there and \
         try again; nothing was changed",
        shown(name)
    ))
}

/// The working VDI of a name without relatives, and what an interrupted attempt has left of it.
fn find(sheep: &mut Sheep, name: &[u8]) -> Outcome<(VdiInfo, Vec<Vid>)> {
    let vid = sheep
        .lookup(name, &Selector::default())
        .map_err(|error| open_failure(name, &Selector::default(), error))?;
    let vdis = sheep.vdis()?;
    let Some(info) = vdis.iter().find(|info| info.vid == vid).cloned() else {
        return Err(open_failure(name, &Selector::default(), CallError::Declined(ClientError::NoVdi)));
    };
    let left = left_by_an_earlier_attempt(&vdis, &info);
    let is_left = |vid: Vid| left.contains(&vid);
    let has_snapshot =
        vdis.iter().any(|other| other.name == name && other.snap_ctime != 0 && !is_left(other.vid));
    let has_parent = vdis.iter().any(|other| other.vid == info.parent && !is_left(other.vid));
    if has_snapshot || has_parent {
        return Err(Failure::refused(format!(
            "Failed to alter the copies of VDI {}: it has relatives ({}), which share objects with it; make an independent VDI \
             with 'dog vdi clone -n -s SNAPSHOT {} NEW' and alter that; nothing was changed",
            shown(name),
            if has_snapshot { "snapshots" } else { "it is a clone" },
            shown(name)
        )));
    }
    Ok((info, left))
}

/// The copy comes last: as long as it is there the snapshot is known to be ours.
fn left_by_an_earlier_attempt(vdis: &[VdiInfo], info: &VdiInfo) -> Vec<Vid> {
    let named = |name: Vec<u8>| vdis.iter().find(|other| other.name == name).map(|other| other.vid);
    let ours = |other: &&VdiInfo| {
        other.vid == info.parent && other.name == info.name && other.snap_ctime != 0 && other.tag == TAG
    };
    if let Some(copy) = named(copy_name(info.vid)) {
        return vec![copy];
    }
    let snapshot = vdis.iter().find(ours).map(|other| other.vid);
    let copy = named(copy_name(info.parent));
    snapshot.zip(copy).map_or(vec![], |(snapshot, copy)| vec![snapshot, copy])
}

/// Returns how many copies there are.
fn check(name: &str, info: &VdiInfo, copies: u8) -> Outcome<u8> {
    let CopyPolicy::Replicated { copies: old_copies } = info.policy else {
        return Err(Failure::refused(format!(
            "{name}'s copy policy is erasure code, changing it is not supported yet."
        )));
    };
    if old_copies == copies {
        return Err(Failure::refused(format!(
            "{name}'s redundancy level is already set to {copies}, nothing changed."
        )));
    }
    Ok(old_copies)
}

/// Bytes that the new copies take at most; refused where the nodes do not have them.
fn check_room(context: &Context, sheep: &mut Sheep, info: &VdiInfo, copies: u8) -> Outcome<u64> {
    let (own, shared) = sheep.usage(info.vid).map_err(|error| refused(&info.name, error))?;
    let object_bytes = 1u64 << u32::from(info.block_size_shift).min(40);
    let storing = context.nodes.iter().filter(|node| node.space_bytes > 0).count().max(1);
    let once = (own + shared).saturating_mul(object_bytes).min(info.size);
    let needed = once.saturating_mul((copies as u64).min(storing as u64));
    // One that does not answer now is not counted upon.
    let free = ask_all(&context.node_ids(), Sheep::space).into_iter().flatten();
    let free = free.fold(0u64, |sum, reply| sum.saturating_add(reply.store_free));
    if needed > free {
        return Err(Failure::refused(format!(
            "Failed to alter the copies of VDI {}: its {copies} new copies take up to {}, and the nodes have {} free; nothing \
             was changed",
            shown(&info.name),
            size::human(needed),
            size::human(free)
        )));
    }
    Ok(needed)
}

fn is_confirmed(context: &mut Context, name: &[u8], copies: u8, needed: u64) -> Outcome<bool> {
    let question = format!(
        "All data of {} is copied: up to {} are written before the old copies are removed.\nAre you sure you want to continue?",
        shown(name),
        size::human(needed)
    );
    if !confirm(&question, &mut context.out, &mut context.input)? {
        return Ok(false);
    }
    let nodes = context.nodes.len();
    if usize::from(copies) <= nodes {
        return Ok(true);
    }
    let question = format!(
        "Number of copies ({copies}) is larger than number of nodes ({nodes}).\nAre you sure you want to continue?"
    );
    confirm(&question, &mut context.out, &mut context.input)
}

/// A client that has it open and does nothing needs no session.
fn check_unused(context: &Context, info: &VdiInfo) -> Outcome {
    let holders = vm::list::holders(context, info);
    if holders.is_empty() { Ok(()) } else { Err(in_use(&info.name, &holders.join(", "))) }
}

/// Returns when no sheep has the VDI's session. One that has it without a client that uses it gives it back.
fn come_to_rest(sheep: &mut Sheep, name: &[u8], vid: Vid) -> Outcome {
    let started = Instant::now();
    let mut asked = None;
    loop {
        let Some(info) = sheep.vdis()?.into_iter().find(|info| info.vid == vid) else {
            return Err(refused(name, CallError::Declined(ClientError::NoVdi)));
        };
        if let Some((holder, _)) = info.locked_by.first() {
            return Err(in_use(name, &holder.to_string()));
        }
        let Some(owner) = info.owner else { return Ok(()) };
        if started.elapsed() > REST_PATIENCE {
            return Err(in_use(name, &owner.to_string()));
        }
        if asked != Some(owner) {
            // Its last client, ours, goes: that ends the session.
            let mut holder = Sheep::connect(&Target::node(owner))?;
            holder
                .open_vdi(vid)
                .and_then(|()| holder.close_vdi(vid))
                .map_err(|error| refused(name, error))?;
            asked = Some(owner);
        }
        thread::sleep(REST_POLL);
    }
}

/// Steps 1 to 3. What fails leaves the VDI with its contents.
fn alter(context: &mut Context, sheep: &mut Sheep, info: &VdiInfo, copies: u8) -> Outcome {
    let VdiInfo { vid: base, ref name, size, block_size_shift: shift, .. } = *info;
    let policy = CopyPolicy::Replicated { copies };
    // The copy comes first: a snapshot without it would not be taken for ours.
    let hyper = is_hyper(size, shift.min(SHIFT_MAX));
    let new = sheep
        .create(&copy_name(base), size, Some(policy), Some(shift), hyper)
        .map_err(|error| refused(name, error))?;
    let frozen = sheep.snapshot(&[base], TAG).map_err(|error| {
        delete_unneeded(sheep, &[new]);
        refused(name, error)
    })?;
    let head = frozen[0].vid;
    let altered = copy(context, sheep, base, new, size)
        .and_then(|()| sheep.take_place(head, new).map_err(|error| lost_race(name, error)));
    altered.inspect_err(|_| delete_unneeded(sheep, &[base, new]))
}

/// The sheep did not let the copy take the place.
fn lost_race(name: &[u8], error: CallError) -> Failure {
    match error {
        CallError::Declined(ClientError::InUse(owner)) => in_use(name, &owner.to_string()),
        CallError::Declined(ClientError::Busy | ClientError::InvalidParameters) => Failure::refused(format!(
            "Failed to alter the copies of VDI {}: it was used while it was copied; try again; nothing was changed",
            shown(name)
        )),
        error => refused(name, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vdi(vid: u32, name: &str, parent: u32, is_snapshot: bool, tag: &str) -> VdiInfo {
        VdiInfo {
            vid: Vid(vid),
            name: name.into(),
            tag: tag.into(),
            size: 1 << 30,
            policy: CopyPolicy::Replicated { copies: 2 },
            block_size_shift: 22,
            snap_id: 1,
            create_time: 0,
            snap_ctime: is_snapshot.into(),
            vm_state_size: 0,
            vm_clock_nsec: 0,
            parent: Vid(parent),
            owner: None,
            locked_by: vec![],
        }
    }

    #[test]
    fn only_what_an_attempt_has_surely_left_is_removed() {
        let copy = |base| vdi(9, &format!("dog-alter-copy-{base}"), 0, false, "");
        let working = vdi(1, "v", 0, false, "");
        assert_eq!(left_by_an_earlier_attempt(&[working.clone(), copy("1")], &working), [Vid(9)]);
        let snapshot = vdi(1, "v", 0, true, "dog-alter-copy");
        let head = vdi(2, "v", 1, false, "");
        let left = |vdis: &[VdiInfo]| left_by_an_earlier_attempt(vdis, &head);
        assert_eq!(left(&[snapshot.clone(), head.clone(), copy("1")]), [Vid(1), Vid(9)]);
        // A user's own snapshot of that tag, and somebody else's copy.
        assert_eq!(left(&[snapshot, head.clone()]), []);
        assert_eq!(left(&[vdi(1, "v", 0, true, "mine"), head.clone(), copy("1")]), []);
    }

    #[test]
    fn the_same_number_is_refused() {
        let failure = check("v", &vdi(1, "v", 0, false, ""), 2).unwrap_err();
        assert_eq!(
            (failure.code, failure.message.as_str()),
            (1, "v's redundancy level is already set to 2, nothing changed.")
        );
        assert_eq!(check("v", &vdi(1, "v", 0, false, ""), 3), Ok(2));
    }
}
