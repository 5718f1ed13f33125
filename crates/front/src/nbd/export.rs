//! What an export name stands for, and how it is opened and closed.
//!
//! `NAME` is the working VDI of that name; where there is none, `NAME@TAG` and `NAME:ID` are snapshots of `NAME`,
//! read-only ([`proto::export`]).

use std::collections::BTreeMap;

use proto::Vid;
use proto::client::{ClientError, ClientOp, ClientReply, Selector, VdiInfo, VdiOp};
use proto::export::{by_id, by_tag, meanings};

use super::context::{self, Earlier};
use super::wire::{Errno, rep, transmission_flag as flag};
use crate::Service;

/// Snapshots of one VDI in a list, the newest ones: it may have millions. Others can be opened all the same.
const SNAPSHOTS_LISTED_MAX: usize = 100;

/// A VDI as a client of NBD sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// As the client wrote it: also the canonical name, since another spelling would be another VDI.
    pub name: Vec<u8>,
    pub vid: Vid,
    /// When it was opened. A VDI may grow; NBD has no way to tell a connected client.
    pub size: u64,
    pub read_only: bool,
}

impl Export {
    /// What the server can do with it, depending on what was negotiated.
    pub fn transmission_flags(&self, framing: super::wire::Framing) -> u16 {
        use super::wire::Framing;
        let mut flags = flag::HAS_FLAGS
            | flag::SEND_FLUSH
            | flag::SEND_FUA
            | flag::SEND_TRIM
            | flag::SEND_WRITE_ZEROES
            | flag::SEND_FAST_ZERO
            | flag::SEND_CACHE
            | flag::CAN_MULTI_CONN;
        if self.read_only {
            flags |= flag::READ_ONLY;
        }
        if framing != Framing::Simple {
            flags |= flag::SEND_DF;
        }
        if framing == Framing::Extended {
            flags |= flag::BLOCK_STATUS_PAYLOAD;
        }
        flags
    }

    pub fn description(&self) -> String {
        let kind = if self.read_only { "snapshot" } else { "VDI" };
        format!("Sheepdog {kind} {}", self.vid)
    }
}

/// Why an export cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Type of the reply to the option.
    pub reply: u32,
    pub message: &'static str,
}

impl From<ClientError> for Refusal {
    fn from(error: ClientError) -> Refusal {
        let (reply, message) = match error {
            ClientError::NoVdi | ClientError::NoTag => (rep::ERR_UNKNOWN, "no such VDI"),
            ClientError::ShuttingDown => (rep::ERR_SHUTDOWN, "shutting down"),
            ClientError::WaitForFormat => (rep::ERR_PLATFORM, "the cluster is not formatted yet"),
            ClientError::WaitForJoin => (rep::ERR_PLATFORM, "the cluster waits for other nodes"),
            ClientError::Locked => (rep::ERR_PLATFORM, "VDI is locked by another client"),
            ClientError::InvalidParameters => (rep::ERR_INVALID, "not the name of a VDI"),
            _ => (rep::ERR_PLATFORM, "VDI cannot be opened now"),
        };
        Refusal { reply, message }
    }
}

/// The protocol's code for a failed request.
pub fn errno(error: &ClientError) -> Errno {
    match error {
        ClientError::NoSpace => Errno::NoSpace,
        ClientError::ReadOnly => Errno::NotPermitted,
        ClientError::InvalidParameters | ClientError::OutOfRange => Errno::Invalid,
        ClientError::Unsupported(_) => Errno::NotSupported,
        ClientError::ShuttingDown => Errno::Shutdown,
        ClientError::NoVdi
        | ClientError::NoTag
        | ClientError::VdiExists
        | ClientError::NoFreeVid
        | ClientError::Locked
        | ClientError::InUse(_)
        | ClientError::Busy
        | ClientError::TagExists
        | ClientError::NameClash
        | ClientError::NotASnapshot
        | ClientError::NoAttribute
        | ClientError::AttributeExists
        | ClientError::NoObject
        | ClientError::StaleInode
        | ClientError::WaitForFormat
        | ClientError::WaitForJoin
        | ClientError::NoStorage
        | ClientError::NoNode
        | ClientError::NotStuck
        | ClientError::Io => Errno::Io,
    }
}

/// Finds the VDI or snapshot that `name` stands for.
pub async fn find<S: Service>(svc: &S, name: &[u8]) -> Result<Export, Refusal> {
    if name.is_empty() {
        // The default export: there is none.
        return Err(ClientError::NoVdi.into());
    }
    for (name_part, selector) in meanings(name) {
        match svc.call(ClientOp::Vdi(VdiOp::Lookup { name: name_part, selector })).await {
            Ok(ClientReply::Vdi(info)) => return Ok(export_of(name, &info)),
            Ok(other) => {
                tracing::error!(?other, "unexpected answer to a lookup");
                return Err(ClientError::Io.into());
            }
            Err(ClientError::NoVdi | ClientError::NoTag) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ClientError::NoVdi.into())
}

/// Finds it and announces its use. Whoever gets an export from here gives it to [`close`] at the end.
pub async fn open<S: Service>(svc: &S, name: &[u8]) -> Result<Export, Refusal> {
    let export = find(svc, name).await?;
    // Snapshots are immutable and have no owner, hence no session to open.
    if !export.read_only {
        svc.call(ClientOp::Vdi(VdiOp::Open { vid: export.vid })).await?;
    }
    Ok(export)
}

pub async fn close<S: Service>(svc: &S, export: &Export) {
    if export.read_only {
        return;
    }
    if let Err(error) = svc.call(ClientOp::Vdi(VdiOp::Close { vid: export.vid })).await {
        // The service drops what it kept for us when it ends or loses the VDI; nothing is left to do here.
        tracing::debug!(vid = %export.vid, %error, "closing a VDI");
    }
}

/// The VDI or snapshot that `name` stands for, and the older snapshots it may be compared with.
pub async fn find_with_earlier<S: Service>(svc: &S, name: &[u8]) -> Result<(Export, Vec<Earlier>), Refusal> {
    let export = find(svc, name).await?;
    let earlier = context::earlier(&all_vdis(svc).await?, &export);
    Ok((export, earlier))
}

/// All working VDIs by name, each followed by its snapshots. Names that are no UTF-8 cannot be listed in NBD, but can be opened.
pub async fn list<S: Service>(svc: &S) -> Result<Vec<Export>, Refusal> {
    Ok(listed(&all_vdis(svc).await?))
}

fn listed(vdis: &[VdiInfo]) -> Vec<Export> {
    let mut by_name: BTreeMap<&[u8], Vec<&VdiInfo>> = BTreeMap::new();
    for vdi in vdis {
        by_name.entry(&vdi.name).or_default().push(vdi);
    }
    let mut exports = Vec::new();
    for (name, family) in &by_name {
        let (mut snapshots, working): (Vec<&VdiInfo>, _) =
            family.iter().copied().partition(|vdi| vdi.snap_ctime != 0);
        exports.extend(working.iter().map(|vdi| export_of(name, vdi)));
        snapshots.sort_by_key(|vdi| vdi.snap_id);
        let newest = &snapshots[snapshots.len().saturating_sub(SNAPSHOTS_LISTED_MAX)..];
        let opened_by = |vdi: &&VdiInfo| Some(export_of(&name_of_snapshot(&by_name, vdi)?, vdi));
        exports.extend(newest.iter().filter_map(opened_by));
    }
    exports.retain(|export| std::str::from_utf8(&export.name).is_ok());
    exports
}

/// A name that opens this snapshot and nothing else: by its tag, if it has one, else by its id.
fn name_of_snapshot(by_name: &BTreeMap<&[u8], Vec<&VdiInfo>>, snapshot: &VdiInfo) -> Option<Vec<u8>> {
    let find = |name: &[u8], selector: &Selector| {
        let is_meant = |vdi: &&&VdiInfo| match selector {
            Selector::Working => vdi.snap_ctime == 0,
            Selector::Tag(tag) => vdi.snap_ctime != 0 && vdi.tag == *tag,
            Selector::SnapId(id) => vdi.snap_ctime != 0 && vdi.snap_id == *id,
            Selector::TagOrSnapId(..) => false,
        };
        by_name.get(name)?.iter().find(is_meant).map(|vdi| vdi.vid)
    };
    let opens_it = |name: &Vec<u8>| {
        let found = meanings(name).iter().find_map(|(name, selector)| find(name, selector));
        std::str::from_utf8(name).is_ok() && found == Some(snapshot.vid)
    };
    let tagged = (!snapshot.tag.is_empty()).then(|| by_tag(&snapshot.name, &snapshot.tag));
    tagged.filter(opens_it).or_else(|| Some(by_id(&snapshot.name, snapshot.snap_id)).filter(opens_it))
}

async fn all_vdis<S: Service>(svc: &S) -> Result<Vec<VdiInfo>, Refusal> {
    match svc.call(ClientOp::Vdi(VdiOp::List)).await? {
        ClientReply::Vdis(vdis) => Ok(vdis),
        other => {
            tracing::error!(?other, "unexpected answer to a list");
            Err(ClientError::Io.into())
        }
    }
}

fn export_of(name: &[u8], info: &VdiInfo) -> Export {
    Export { name: name.to_vec(), vid: info.vid, size: info.size, read_only: info.snap_ctime != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::CopyPolicy;

    fn vdi(vid: u32, name: &str, snapshot: Option<(u32, &str)>) -> VdiInfo {
        VdiInfo {
            vid: Vid(vid),
            name: name.into(),
            tag: snapshot.map_or(vec![], |(_, tag)| tag.into()),
            size: 1 << 20,
            policy: CopyPolicy::Replicated { copies: 1 },
            block_size_shift: 22,
            snap_id: snapshot.map_or(1, |(id, _)| id),
            create_time: 0,
            snap_ctime: u64::from(snapshot.is_some()),
            vm_state_size: 0,
            vm_clock_nsec: 0,
            parent: Vid(0),
            owner: None,
            locked_by: vec![],
        }
    }

    fn list(vdis: &[VdiInfo]) -> Vec<(u32, String)> {
        let shown = |export: Export| (export.vid.0, String::from_utf8(export.name).unwrap());
        listed(vdis).into_iter().map(shown).collect()
    }

    #[test]
    fn listed_names_open_what_they_are_listed_for() {
        let found = list(&[
            vdi(9, "b", None),
            vdi(1, "a", Some((1, "x@y"))),
            vdi(2, "a", Some((2, "old"))),
            vdi(3, "a", Some((3, ""))),
            vdi(4, "a", None),
            // These hide snapshots of "a", as older versions let them.
            vdi(5, "a@old", None),
            vdi(6, "a:3", None),
            vdi(7, "gone", Some((4, "last"))),
        ]);
        let expect = [(4, "a"), (1, "a:1"), (2, "a:2"), (6, "a:3"), (5, "a@old"), (9, "b"), (7, "gone@last")];
        assert_eq!(found, expect.map(|(vid, name)| (vid, name.to_string())));
    }

    #[test]
    fn the_newest_snapshots_are_listed_and_names_that_are_no_text_are_not() {
        let mut vdis: Vec<VdiInfo> = (1..=150).map(|id| vdi(id, "a", Some((id, "")))).collect();
        vdis.push(vdi(200, "a", None));
        vdis.push(VdiInfo { name: vec![0xff], ..vdi(201, "", None) });
        vdis.push(VdiInfo { tag: vec![0xff], ..vdi(202, "c", Some((1, ""))) });
        let found = list(&vdis);
        assert_eq!(found.len(), 1 + SNAPSHOTS_LISTED_MAX + 1);
        assert_eq!(found[1], (51, "a:51".to_string()));
        assert_eq!(found[100], (150, "a:150".to_string()));
        assert_eq!(found[101], (202, "c:1".to_string()));
    }
}
