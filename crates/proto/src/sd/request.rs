//! Whole requests, as a client builds them.
//!
//! A client sends [`Request::encode_header`], then the payload; it then reads 48 bytes, decodes a
//! [`super::ReplyHeader`], reads `data_length` bytes more (refusing more than [`Request::reply_bytes_max`])
//! and looks at `result`.

use bytes::Bytes;

use super::extension::{EXTENSION_REPLY_BYTES_MAX, ObjectRequest, VolumeRequest, encode_list};
use super::header::{
    ClusterRequest, HEADER_BYTES, ObjRequest, RequestHeader, RequestVariant, VdiRequest, flag,
};
use super::structs::{
    CLUSTER_INFO_BYTES, EpochLog, RECOVERY_STATE_BYTES, RECOVERY_THROTTLING_BYTES, RecoveryThrottling,
    SD_MD_INFO_BYTES, SD_NODE_BYTES, SD_NODES_MAX, SD_STAT_BYTES, VDI_STATE_BYTES,
};
use super::{Opcode, VID_BITMAP_BYTES};
use crate::client::{ClientOp, Point};
use crate::inode::{NAME_BYTES, NAME_MAX};
use crate::{CopyPolicy, Oid, Vid};

/// A header and the payload that follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub header: RequestHeader,
    pub payload: Bytes,
}

/// A name or tag of more than 255 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("name or tag of {0} bytes is longer than {NAME_MAX}")]
pub struct NameTooLong(pub usize);

impl Request {
    /// Without payload; `reply_bytes` is what the client has room for.
    pub fn plain(opcode: Opcode, reply_bytes: u32) -> Request {
        let header = RequestHeader { data_length: reply_bytes, ..RequestHeader::new(opcode) };
        Request { header, payload: Bytes::new() }
    }

    /// With a payload, even an empty one.
    pub fn with_payload(opcode: Opcode, payload: Bytes) -> Request {
        let header = RequestHeader {
            flags: flag::WRITE,
            data_length: u32::try_from(payload.len()).expect("payloads are shorter than 4 GiB"),
            ..RequestHeader::new(opcode)
        };
        Request { header, payload }
    }

    pub fn variant(mut self, variant: impl RequestVariant) -> Request {
        self.header.variant = variant.encode();
        self
    }

    pub fn id(mut self, id: u32) -> Request {
        self.header.id = id;
        self
    }

    pub fn encode_header(&self) -> [u8; HEADER_BYTES] {
        self.header.encode()
    }

    /// Longest reply payload that makes sense.
    pub fn reply_bytes_max(&self) -> u32 {
        match Opcode::from_u8(self.header.opcode) {
            Some(
                Opcode::CheckObject | Opcode::VdiList | Opcode::Locate | Opcode::ClusterInfoEx | Opcode::Ask,
            ) => EXTENSION_REPLY_BYTES_MAX,
            _ if self.header.has(flag::WRITE) => 0,
            _ => self.header.data_length,
        }
    }

    // Objects.

    pub fn read_obj(oid: Oid, offset: u32, len: u32) -> Request {
        Request::plain(Opcode::ReadObj, len).variant(ObjRequest { oid, offset, ..Default::default() })
    }

    pub fn write_obj(oid: Oid, offset: u32, data: Bytes) -> Request {
        Request::with_payload(Opcode::WriteObj, data).variant(ObjRequest {
            oid,
            offset,
            ..Default::default()
        })
    }

    /// `cow_from`: start from a copy of that object.
    pub fn create_obj(oid: Oid, offset: u32, cow_from: Option<Oid>, data: Bytes) -> Request {
        let mut request = Request::with_payload(Opcode::CreateAndWriteObj, data);
        if cow_from.is_some() {
            request.header.flags |= flag::COW;
        }
        let cow_oid = cow_from.unwrap_or_default();
        request.variant(ObjRequest { oid, cow_oid, offset, ..Default::default() })
    }

    pub fn discard_obj(oid: Oid) -> Request {
        Request::plain(Opcode::DiscardObj, 0).variant(ObjRequest { oid, ..Default::default() })
    }

    /// Does the asked sheep's own store hold the object? SUCCESS or NO_OBJ.
    pub fn exist(oid: Oid) -> Request {
        Request::plain(Opcode::Exist, 0).variant(ObjRequest { oid, ..Default::default() })
    }

    /// Digest of the asked sheep's own copy: `HashReply`.
    pub fn get_hash(oid: Oid) -> Request {
        Request::plain(Opcode::GetHash, 0).variant(ObjRequest { oid, ..Default::default() })
    }

    // VDIs.

    /// `None` means the cluster's default. The new vid is in `VdiReply`.
    pub fn new_vdi(
        name: &[u8],
        size: u64,
        policy: Option<CopyPolicy>,
        shift: Option<u8>,
    ) -> Result<Request, NameTooLong> {
        Request::new_vdi_of_kind(name, size, policy, shift, false)
    }

    /// `hyper`: with more objects than the table has entries that old clients know, if the size asks for it.
    pub fn new_vdi_of_kind(
        name: &[u8],
        size: u64,
        policy: Option<CopyPolicy>,
        shift: Option<u8>,
        hyper: bool,
    ) -> Result<Request, NameTooLong> {
        let payload = padded_names(name, None)?;
        Ok(Request::with_payload(Opcode::NewVdi, payload).variant(VdiRequest {
            vdi_size: size,
            copies: policy.map_or(0, CopyPolicy::width),
            copy_policy: policy.map_or(0, CopyPolicy::wire),
            block_size_shift: shift.unwrap_or(0),
            store_policy: hyper.into(),
            ..Default::default()
        }))
    }

    /// GET_VDI_INFO, LOCK_VDI or DEL_VDI of the VDI with this name and, if given, tag or snapshot id (0: none).
    pub fn on_vdi(opcode: Opcode, name: &[u8], tag: &[u8], snapid: u32) -> Result<Request, NameTooLong> {
        let payload = padded_names(name, Some(tag))?;
        Ok(Request::with_payload(opcode, payload).variant(VdiRequest { snapid, ..Default::default() }))
    }

    pub fn release_vdi(vid: Vid, lock_type: u32) -> Request {
        Request::plain(Opcode::ReleaseVdi, 0).variant(VdiRequest {
            base_vdi_id: vid.0,
            lock_type,
            ..Default::default()
        })
    }

    /// READ_VDIS or READ_DEL_VDIS: a bitmap, see `structs::decode_vid_bitmap`.
    pub fn vid_bitmap(opcode: Opcode) -> Request {
        Request::plain(opcode, VID_BITMAP_BYTES as u32)
    }

    /// GET_VDI_COPIES with room for `count` entries; BUFFER_SMALL asks for more.
    pub fn get_vdi_copies(count: u32) -> Request {
        Request::plain(Opcode::GetVdiCopies, count.saturating_mul(VDI_STATE_BYTES as u32))
    }

    // Cluster and node. SHUTDOWN, KILL_NODE, STAT_SHEEP and GET_CLUSTER_DEFAULT are `plain(opcode, 0)`.

    pub fn get_node_list() -> Request {
        Request::plain(Opcode::GetNodeList, (SD_NODES_MAX * SD_NODE_BYTES) as u32)
    }

    /// The newest `logs` epochs, each with room for `nodes_nr` nodes. The result is the cluster's state.
    pub fn stat_cluster(logs: u32, nodes_nr: u32) -> Request {
        let bytes = EpochLog::entry_bytes(nodes_nr).saturating_mul(logs.into()).min(u32::MAX.into());
        Request::plain(Opcode::StatCluster, bytes as u32)
            .variant(ClusterRequest { nodes_nr, ..Default::default() })
    }

    pub fn make_fs(store: &str, options: ClusterRequest) -> Request {
        let mut payload = store.as_bytes().to_vec();
        payload.push(0);
        Request::with_payload(Opcode::MakeFs, payload.into()).variant(options)
    }

    pub fn cluster_info() -> Request {
        Request::plain(Opcode::ClusterInfo, CLUSTER_INFO_BYTES as u32)
    }

    pub fn get_store_list() -> Request {
        Request::plain(Opcode::GetStoreList, 512)
    }

    pub fn md_info() -> Request {
        Request::plain(Opcode::MdInfo, SD_MD_INFO_BYTES as u32)
    }

    pub fn stat() -> Request {
        Request::plain(Opcode::Stat, SD_STAT_BYTES as u32)
    }

    pub fn stat_recovery() -> Request {
        Request::plain(Opcode::StatRecovery, RECOVERY_STATE_BYTES as u32)
    }

    pub fn get_recovery() -> Request {
        Request::plain(Opcode::GetRecovery, RECOVERY_THROTTLING_BYTES as u32)
    }

    pub fn set_recovery(throttling: RecoveryThrottling) -> Request {
        Request::with_payload(Opcode::SetRecovery, throttling.encode().to_vec().into())
    }

    // Extensions.

    pub fn volume_read(vid: Vid, at: Point, offset: u64, len: u32) -> Request {
        Request::plain(Opcode::VolumeRead, len).variant(VolumeRequest { vid, at, offset, length: len.into() })
    }

    pub fn volume_write(vid: Vid, offset: u64, data: Bytes) -> Request {
        let length = data.len() as u64;
        Request::with_payload(Opcode::VolumeWrite, data).variant(VolumeRequest {
            vid,
            at: Point::Head,
            offset,
            length,
        })
    }

    pub fn vdi_discard(vid: Vid, offset: u64, length: u64) -> Request {
        Request::plain(Opcode::VdiDiscard, 0).variant(VolumeRequest { vid, at: Point::Head, offset, length })
    }

    pub fn resize_vdi(vid: Vid, size: u64) -> Request {
        Request::plain(Opcode::ResizeVdi, 0).variant(VolumeRequest {
            vid,
            at: Point::Head,
            offset: 0,
            length: size,
        })
    }

    /// Answered by `UsageReply`.
    pub fn vdi_usage(vid: Vid) -> Request {
        Request::plain(Opcode::VdiUsage, 0).variant(VolumeRequest { vid, ..Default::default() })
    }

    /// Payload of the reply: `Vec<client::VdiInfo>`.
    pub fn vdi_list() -> Request {
        Request::plain(Opcode::VdiList, 0)
    }

    /// Payload of the reply: `client::CheckReport`.
    pub fn check_object(oid: Oid, repair: bool) -> Request {
        Request::plain(Opcode::CheckObject, 0).variant(ObjectRequest { oid, repair })
    }

    /// Payload of the reply: `Vec<NodeId>`, in order of placement.
    pub fn locate(oid: Oid) -> Request {
        Request::plain(Opcode::Locate, 0).variant(ObjectRequest { oid, repair: false })
    }

    /// Payload of the reply: `client::ClientResult`.
    pub fn ask(op: &ClientOp) -> Request {
        Request::with_payload(Opcode::Ask, encode_list(op).into())
    }

    /// Payload of the reply: `client::ClusterInfo`.
    pub fn cluster_info_ex() -> Request {
        Request::plain(Opcode::ClusterInfoEx, 0)
    }
}

/// A name in 256 bytes, and a tag in 256 more.
fn padded_names(name: &[u8], tag: Option<&[u8]>) -> Result<Bytes, NameTooLong> {
    let mut out = Vec::with_capacity(2 * NAME_BYTES);
    for text in std::iter::once(name).chain(tag) {
        if text.len() > NAME_MAX {
            return Err(NameTooLong(text.len()));
        }
        let end = out.len() + NAME_BYTES;
        out.extend_from_slice(text);
        out.resize(end, 0);
    }
    Ok(out.into())
}
