//! What an export name stands for, and how it is opened and closed.
//!
//! `NAME` is the working VDI of that name; where there is none, `NAME@TAG` and `NAME:ID` are snapshots of `NAME`,
//! read-only ([`proto::export`]).

use proto::Vid;
use proto::client::{ClientError, ClientOp, ClientReply, VdiInfo, VdiOp};
use proto::export::meanings;

use super::context::{self, Earlier};
use super::wire::{Errno, rep, transmission_flag as flag};
use crate::Service;

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

/// All working VDIs, by name. Names that are no UTF-8 cannot be listed in NBD, but can be opened.
pub async fn list<S: Service>(svc: &S) -> Result<Vec<Export>, Refusal> {
    let vdis = all_vdis(svc).await?;
    let working = vdis.iter().filter(|vdi| vdi.snap_ctime == 0 && std::str::from_utf8(&vdi.name).is_ok());
    let mut exports: Vec<Export> = working.map(|vdi| export_of(&vdi.name, vdi)).collect();
    exports.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(exports)
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
