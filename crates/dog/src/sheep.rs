//! What `dog` asks of a sheep, one method per request.
//!
//! Methods return plain values of [`proto`]; what they mean to a user is the business of the commands. A reply that
//! does not decode ends the command like a broken connection: its sender is no sheep, or a broken one.

use std::time::Duration;

use bytes::Bytes;
use proto::client::{
    Attachment, AttributeOp, ChangedExtent, CheckReport, ClientError, ClientOp, ClientReply, ClientResult,
    ClusterInfo, ClusterOp, Extent, Health, NodeAccess, NodeInfo, NodeStat, Point, ScrubStatus, StopRisk,
    Table, Track, VdiInfo, VdiOp, VolumeOp,
};
use proto::cluster::RepairChange;
use proto::inode::{HEADER_BYTES, InodeHeader};
use proto::sd::extension::{UsageReply, decode_list};
use proto::sd::header::{ClusterDefaultReply, ClusterRequest, NodeReply, ReplyVariant, VdiReply};
use proto::sd::structs::{self, MdInfo, RecoveryThrottling, SdNode, SdStat};
use proto::sd::{Opcode, ReplyHeader, Request, ResultCode, flag};
use proto::{CopyPolicy, NodeId, Oid, Vid, ZoneId};
use serde::de::DeserializeOwned;

use crate::awaited;
use crate::failure::{Failure, Outcome};
use crate::link::{Answer, Link, Message, Patience};
use crate::target::Target;

/// Which VDI of a name: snapshot id and tag as the wire has them, 0 and empty where not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    pub snap_id: u32,
    pub tag: Vec<u8>,
}

/// Why a request brought no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The sheep understood and said no.
    Refused(ResultCode),
    /// The same, from an operation that says more than a code can.
    Declined(ClientError),
    /// There is no sense in going on.
    Broken(Failure),
}

pub type Call<T> = Result<T, CallError>;

impl CallError {
    /// The failure of a command: a refusal is worded by `message`, exit code 1.
    pub fn or_refused(self, message: impl FnOnce(ResultCode) -> String) -> Failure {
        match self.code() {
            Ok(code) => Failure::refused(message(code)),
            Err(failure) => failure,
        }
    }

    /// Which refusal it is, unless something is broken.
    pub fn code(self) -> Result<ResultCode, Failure> {
        match self {
            CallError::Refused(code) => Ok(code),
            CallError::Declined(error) => Ok(ResultCode::from(&error)),
            CallError::Broken(failure) => Err(failure),
        }
    }

    pub fn is_wait_for_format(&self) -> bool {
        *self == CallError::Refused(ResultCode::WAIT_FOR_FORMAT)
    }
}

/// A refusal that a command has no words of its own for.
impl From<CallError> for Failure {
    fn from(error: CallError) -> Failure {
        error.or_refused(|reason| format!("failed to execute request, {reason}"))
    }
}

impl From<Failure> for CallError {
    fn from(failure: Failure) -> CallError {
        CallError::Broken(failure)
    }
}

/// A connection to one sheep.
pub struct Sheep {
    link: Link,
}

impl Sheep {
    pub fn connect(target: &Target) -> Outcome<Sheep> {
        Ok(Sheep { link: Link::connect(target, Some(awaited::explain))? })
    }

    /// The same, and stderr does not tell how long one waits for it.
    pub fn connect_quietly(target: &Target) -> Outcome<Sheep> {
        Ok(Sheep { link: Link::connect(target, None)? })
    }

    /// Is it a sheep of this machine?
    pub fn is_local(&self) -> bool {
        self.link.is_local()
    }

    /// The members of the cluster, in their order.
    pub fn nodes(&mut self) -> Call<Vec<NodeInfo>> {
        let (_, data) = self.call_now(&Request::get_node_list())?;
        let node = |node: SdNode| NodeInfo {
            id: node.id,
            zone: ZoneId(node.zone),
            vnodes: node.vnodes,
            space_bytes: node.space,
        };
        Ok(SdNode::decode_list(&data).into_iter().map(node).collect())
    }

    pub fn cluster_info(&mut self) -> Call<ClusterInfo> {
        self.call_now_for_list(&Request::cluster_info_ex())
    }

    /// Name of the object store that the cluster was formatted with.
    pub fn store_name(&mut self) -> Call<String> {
        let (_, data) = self.call_now(&Request::cluster_info())?;
        let info = structs::ClusterInfo::decode(&data).ok_or_else(|| self.nonsense())?;
        Ok(info.default_store)
    }

    /// Names of the object stores that a cluster can be formatted with.
    pub fn stores(&mut self) -> Call<Vec<String>> {
        let (_, data) = self.call_now(&Request::get_store_list())?;
        let text = String::from_utf8_lossy(&data).into_owned();
        Ok(text.trim_end_matches('\0').split_whitespace().map(str::to_string).collect())
    }

    pub fn format(&mut self, store: &str, options: ClusterRequest) -> Call<()> {
        self.call(&Request::make_fs(store, options)).map(drop)
    }

    /// Every sheep ends in order.
    pub fn shutdown(&mut self) -> Call<()> {
        self.call(&Request::plain(Opcode::Shutdown, 0)).map(drop)
    }

    /// The connected sheep alone ends: it begins to.
    pub fn kill_node(&mut self) -> Call<()> {
        self.call_now(&Request::plain(Opcode::KillNode, 0)).map(drop)
    }

    /// Waits for the end of the connected sheep's process. False: it has not come in this time.
    pub fn until_ended(&mut self, bound: Duration) -> bool {
        self.link.until_closed(bound)
    }

    /// Is it one that takes connections and says nothing?
    pub fn is_silent(&mut self) -> bool {
        self.link.is_silent(&message(&Request::get_node_list()))
    }

    /// Which copies are missing, as the connected sheep's view has it.
    pub fn health(&mut self) -> Call<Health> {
        match self.ask_now(&ClientOp::Cluster(ClusterOp::Health))? {
            ClientReply::Health(health) => Ok(health),
            _ => Err(self.nonsense()),
        }
    }

    /// What would be short of copies without these nodes, as the connected sheep's view tells.
    pub fn stop_risk(&mut self, nodes: &[NodeId]) -> Call<StopRisk> {
        match self.ask_now(&ClientOp::Cluster(ClusterOp::StopRisk(nodes.to_vec())))? {
            ClientReply::StopRisk(risk) => Ok(risk),
            _ => Err(self.nonsense()),
        }
    }

    /// The connected sheep's disk, what it lacks, and what it was asked.
    pub fn node_stat(&mut self) -> Call<NodeStat> {
        match self.ask_now(&ClientOp::Cluster(ClusterOp::NodeStat))? {
            ClientReply::NodeStat(stat) => Ok(*stat),
            _ => Err(self.nonsense()),
        }
    }

    /// How the connected sheep looks after what it holds.
    pub fn scrub(&mut self) -> Call<ScrubStatus> {
        match self.ask_now(&ClientOp::Cluster(ClusterOp::Scrub))? {
            ClientReply::Scrub(status) => Ok(*status),
            _ => Err(self.nonsense()),
        }
    }

    /// How many objects the connected sheep begins to fetch at most, and in what time.
    pub fn recovery_throttle(&mut self) -> Call<RecoveryThrottling> {
        let (_, data) = self.call_now(&Request::get_recovery())?;
        RecoveryThrottling::decode(&data).ok_or_else(|| self.nonsense())
    }

    pub fn set_recovery_throttle(&mut self, throttling: RecoveryThrottling) -> Call<()> {
        self.call(&Request::set_recovery(throttling)).map(drop)
    }

    /// How the connected sheep is reached over NBD, and who uses VDIs through it.
    pub fn access(&mut self) -> Call<NodeAccess> {
        match self.ask_now(&ClientOp::Cluster(ClusterOp::Access))? {
            ClientReply::Access(access) => Ok(access),
            _ => Err(self.nonsense()),
        }
    }

    /// The connected sheep serves a VDI by a vhost-user socket. Which, as it knows it.
    pub fn attach(&mut self, name: &[u8], socket: &[u8]) -> Call<Vec<Attachment>> {
        self.attachments(ClusterOp::Attach { name: name.to_vec(), socket: socket.to_vec() })
    }

    /// No longer. Which those were.
    pub fn detach(&mut self, name: &[u8], socket: Option<&[u8]>) -> Call<Vec<Attachment>> {
        self.attachments(ClusterOp::Detach { name: name.to_vec(), socket: socket.map(<[u8]>::to_vec) })
    }

    pub fn attached(&mut self) -> Call<Vec<Attachment>> {
        self.attachments(ClusterOp::Attached)
    }

    fn attachments(&mut self, op: ClusterOp) -> Call<Vec<Attachment>> {
        match self.ask(&ClientOp::Cluster(op))? {
            ClientReply::Attached(attached) => Ok(attached),
            _ => Err(self.nonsense()),
        }
    }

    /// Capacity and free space of the connected sheep, in bytes.
    pub fn space(&mut self) -> Call<NodeReply> {
        let (reply, _) = self.call_now(&Request::plain(Opcode::StatSheep, 0))?;
        Ok(NodeReply::decode(&reply.variant))
    }

    pub fn disks(&mut self) -> Call<Vec<MdInfo>> {
        let (_, data) = self.call_now(&Request::md_info())?;
        structs::decode_md_info(&data).ok_or_else(|| self.nonsense())
    }

    pub fn stat(&mut self) -> Call<SdStat> {
        let (_, data) = self.call_now(&Request::stat())?;
        SdStat::decode(&data).ok_or_else(|| self.nonsense())
    }

    /// Object size of new VDIs, as a power of two; 0 before the first format.
    pub fn default_shift(&mut self) -> Call<u8> {
        let (reply, _) = self.call_now(&Request::plain(Opcode::GetClusterDefault, 0))?;
        Ok(ClusterDefaultReply::decode(&reply.variant).block_size_shift)
    }

    pub fn vdis(&mut self) -> Call<Vec<VdiInfo>> {
        self.call_now_for_list(&Request::vdi_list())
    }

    /// The same of many, as far as they are told soon: who has to wait for other sheep is left out.
    pub fn usages(&mut self, vids: &[Vid]) -> Outcome<Vec<Option<Call<(u64, u64)>>>> {
        let requests: Vec<Request> = vids.iter().map(|vid| Request::vdi_usage(*vid)).collect();
        let usage = |(header, _): (ReplyHeader, Vec<u8>)| {
            let usage = UsageReply::decode(&header.variant);
            (usage.own_objects, usage.shared_objects)
        };
        Ok(self.call_all(&requests)?.into_iter().map(|reply| reply.map(|reply| reply.map(usage))).collect())
    }

    /// Who owns object `index` of each, `Vid(0)` where there is none; as far as it is told soon.
    pub fn owners_at(&mut self, vids: &[Vid], index: u32) -> Outcome<Vec<Option<Call<Vid>>>> {
        let ask = |vid: &Vid| Request::ask(&ClientOp::Vdi(VdiOp::Table { vid: *vid, first: index }));
        let requests: Vec<Request> = vids.iter().map(ask).collect();
        let replies = self.call_all(&requests)?;
        let owner = |(_, data): (ReplyHeader, Vec<u8>)| match decode_list::<ClientResult>(&data) {
            Some(Ok(ClientReply::Table(table))) => Ok(owner_in(&table, index)),
            Some(Err(error)) => Err(CallError::Declined(error)),
            _ => Err(self.nonsense()),
        };
        Ok(replies.into_iter().map(|reply| reply.map(|reply| reply.and_then(owner))).collect())
    }

    /// How many objects of the VDI's table are its own, and how many are inherited.
    pub fn usage(&mut self, vid: Vid) -> Call<(u64, u64)> {
        let (reply, _) = self.call(&Request::vdi_usage(vid))?;
        let usage = UsageReply::decode(&reply.variant);
        Ok((usage.own_objects, usage.shared_objects))
    }

    pub fn lookup(&mut self, name: &[u8], selector: &Selector) -> Call<Vid> {
        self.call_on_vdi(Opcode::GetVdiInfo, name, selector, Sheep::call_now)
    }

    /// Returns when the VDI's objects are gone from every member that is up. Fails when one does not answer at all.
    pub fn delete(&mut self, name: &[u8], selector: &Selector) -> Call<Vid> {
        self.call_on_vdi(Opcode::DelVdi, name, selector, Sheep::call_while_all_answer)
    }

    pub fn create(
        &mut self,
        name: &[u8],
        size: u64,
        policy: Option<CopyPolicy>,
        shift: Option<u8>,
        hyper: bool,
    ) -> Call<Vid> {
        let request = Request::new_vdi_of_kind(name, size, policy, shift, hyper).map_err(too_long)?;
        let (reply, _) = self.call(&request)?;
        Ok(Vid(VdiReply::decode(&reply.variant).vdi_id))
    }

    pub fn resize(&mut self, vid: Vid, size: u64) -> Call<()> {
        self.call(&Request::resize_vdi(vid, size)).map(drop)
    }

    /// Freezes working VDIs at one moment. Returns the VDIs that took their place, in the same order; their parents are the
    /// snapshots.
    pub fn snapshot(&mut self, vids: &[Vid], tag: &[u8]) -> Call<Vec<VdiInfo>> {
        match self.ask_vdi(VdiOp::Snapshot { vids: vids.to_vec(), tag: tag.to_vec() })? {
            ClientReply::Vdis(heads) if heads.len() == vids.len() => Ok(heads),
            _ => Err(self.nonsense()),
        }
    }

    /// A new working VDI on top of a snapshot.
    pub fn clone_vdi(&mut self, base: Vid, name: &[u8]) -> Call<VdiInfo> {
        self.ask_for_vdi(VdiOp::Clone { base, name: name.to_vec(), size: None, policy: None })
    }

    /// A new working VDI on top of the snapshot, in place of the one of its name.
    pub fn roll_back(&mut self, to: Vid, force: bool) -> Call<VdiInfo> {
        self.ask_for_vdi(VdiOp::Rollback { to, force })
    }

    /// The copy takes the name of a VDI that nobody has opened; that one and its snapshot are deleted.
    pub fn take_place(&mut self, old: Vid, new: Vid) -> Call<()> {
        self.ask_for_vdi(VdiOp::TakePlace { old, new }).map(drop)
    }

    /// A snapshot that is alone under its name becomes one of another name.
    pub fn adopt(&mut self, snapshot: Vid, name: &[u8], tag: &[u8]) -> Call<()> {
        self.ask_for_vdi(VdiOp::Adopt { snapshot, name: name.to_vec(), tag: tag.to_vec() }).map(drop)
    }

    /// Counts as a client of the connected sheep that uses the VDI, until [`Sheep::close_vdi`].
    pub fn open_vdi(&mut self, vid: Vid) -> Call<()> {
        self.ask_vdi(VdiOp::Open { vid }).map(drop)
    }

    pub fn close_vdi(&mut self, vid: Vid) -> Call<()> {
        self.ask_vdi(VdiOp::Close { vid }).map(drop)
    }

    /// How the cluster repairs itself. What is not named stays as it is.
    pub fn set_repair(&mut self, change: RepairChange) -> Call<()> {
        self.ask(&ClientOp::Cluster(ClusterOp::SetRepair(change))).map(drop)
    }

    /// Nothing is to be stored on this member, or no longer that.
    pub fn set_out(&mut self, node: NodeId, out: bool) -> Call<()> {
        self.ask(&ClientOp::Cluster(ClusterOp::SetOut { node, out })).map(drop)
    }

    /// The cluster goes on with the members that are there.
    pub fn force_recovery(&mut self) -> Call<()> {
        self.ask(&ClientOp::Cluster(ClusterOp::ForceRecovery)).map(drop)
    }

    pub fn set_default_policy(&mut self, policy: CopyPolicy) -> Call<()> {
        self.ask(&ClientOp::Cluster(ClusterOp::SetDefaultPolicy { policy })).map(drop)
    }

    /// As [`Sheep::delete`], for a VDI that is known already.
    pub fn delete_vid(&mut self, vid: Vid) -> Call<()> {
        self.ask_vdi(VdiOp::Delete { vid }).map(drop)
    }

    pub fn attribute(&mut self, name: &[u8], key: &[u8]) -> Call<Vec<u8>> {
        match self.ask_attribute(name, key, AttributeOp::Get)? {
            ClientReply::Attribute(value) => Ok(value),
            _ => Err(self.nonsense()),
        }
    }

    /// Sets or deletes one.
    pub fn change_attribute(&mut self, name: &[u8], key: &[u8], op: AttributeOp) -> Call<()> {
        self.ask_attribute(name, key, op).map(drop)
    }

    /// Which parts of a range hold data: of a prefix of it that is not empty.
    pub fn extents(&mut self, vid: Vid, offset: u64, len: u64) -> Call<Vec<Extent>> {
        match self.ask_volume(vid, VolumeOp::BlockStatus { offset, len })? {
            ClientReply::Extents(extents) => {
                self.prefix_of(len, extents.iter().map(|extent| extent.len)).map(|()| extents)
            }
            _ => Err(self.nonsense()),
        }
    }

    /// Which parts of a range may differ from what `since` has there: of a prefix of it that is not empty.
    pub fn changes(&mut self, vid: Vid, since: Vid, offset: u64, len: u64) -> Call<Vec<ChangedExtent>> {
        match self.ask_volume(vid, VolumeOp::Changes { since, offset, len })? {
            ClientReply::Changes(extents) => {
                self.prefix_of(len, extents.iter().map(|extent| extent.len)).map(|()| extents)
            }
            _ => Err(self.nonsense()),
        }
    }

    fn prefix_of(&self, len: u64, parts: impl Iterator<Item = u64>) -> Call<()> {
        let covered = parts.fold(0, u64::saturating_add);
        if (1..=len).contains(&covered) { Ok(()) } else { Err(self.nonsense()) }
    }

    /// The bytes read as zeros afterwards; whole blocks of them take no space.
    pub fn discard(&mut self, vid: Vid, offset: u64, len: u64) -> Call<()> {
        self.call(&Request::vdi_discard(vid, offset, len)).map(drop)
    }

    fn ask_for_vdi(&mut self, op: VdiOp) -> Call<VdiInfo> {
        match self.ask_vdi(op)? {
            ClientReply::Vdi(info) => Ok(info),
            _ => Err(self.nonsense()),
        }
    }

    fn ask_attribute(&mut self, name: &[u8], key: &[u8], op: AttributeOp) -> Call<ClientReply> {
        self.ask_vdi(VdiOp::Attribute { name: name.to_vec(), key: key.to_vec(), op })
    }

    fn ask_vdi(&mut self, op: VdiOp) -> Call<ClientReply> {
        self.ask(&ClientOp::Vdi(op))
    }

    /// Of this very VDI, working or frozen.
    fn ask_volume(&mut self, vid: Vid, op: VolumeOp) -> Call<ClientReply> {
        self.ask(&ClientOp::Volume { vid, at: Point::Exact, op })
    }

    fn ask(&mut self, op: &ClientOp) -> Call<ClientReply> {
        self.call_for_list::<ClientResult>(&Request::ask(op))?.map_err(CallError::Declined)
    }

    fn ask_now(&mut self, op: &ClientOp) -> Call<ClientReply> {
        self.call_now_for_list::<ClientResult>(&Request::ask(op))?.map_err(CallError::Declined)
    }

    /// Drops a lock, whoever holds it.
    pub fn release(&mut self, vid: Vid, lock_type: u32) -> Call<()> {
        self.call(&Request::release_vdi(vid, lock_type)).map(drop)
    }

    /// Of this very VDI: if it is snapshotted meanwhile, what the snapshot holds.
    pub fn read_volume(&mut self, vid: Vid, offset: u64, len: u32) -> Call<Vec<u8>> {
        let (_, data) = self.call(&Request::volume_read(vid, Point::Exact, offset, len))?;
        self.exactly(data, len)
    }

    /// `writeback`: the sheep may acknowledge before the data is durable.
    pub fn write_volume(&mut self, vid: Vid, offset: u64, data: Bytes, writeback: bool) -> Call<()> {
        let mut request = Request::volume_write(vid, offset, data);
        if writeback {
            request.header.flags |= flag::CACHE;
        }
        self.call(&request).map(drop)
    }

    pub fn inode_header(&mut self, vid: Vid) -> Call<InodeHeader> {
        let data = self.read_inode(vid, 0, HEADER_BYTES as u32)?;
        InodeHeader::decode(&data).ok_or_else(|| self.nonsense())
    }

    /// A part of the VDI's block table, from the object `first` on.
    pub fn table(&mut self, vid: Vid, first: u32) -> Call<Table> {
        match self.ask_vdi(VdiOp::Table { vid, first })? {
            ClientReply::Table(table) if table.next.is_none_or(|next| next > first) => Ok(table),
            _ => Err(self.nonsense()),
        }
    }

    /// The owner of object `index`; `Vid(0)` where there is none.
    pub fn owner_at(&mut self, vid: Vid, index: u32) -> Call<Vid> {
        Ok(owner_in(&self.table(vid, index)?, index))
    }

    pub fn check_object(&mut self, oid: Oid, repair: bool) -> Call<CheckReport> {
        self.call_for_list(&Request::check_object(oid, repair))
    }

    /// Where the object's copies should be, in order.
    pub fn locate(&mut self, oid: Oid) -> Call<Vec<NodeId>> {
        self.call_now_for_list(&Request::locate(oid))
    }

    /// Where the object's copies should have been at each recorded epoch.
    pub fn track(&mut self, oid: Oid) -> Call<Track> {
        match self.ask_now(&ClientOp::Cluster(ClusterOp::Track { oid }))? {
            ClientReply::Track(track) => Ok(track),
            _ => Err(self.nonsense()),
        }
    }

    /// Does the connected sheep itself hold the object?
    pub fn holds(&mut self, oid: Oid) -> Call<bool> {
        match self.call_now(&Request::exist(oid)) {
            Ok(_) => Ok(true),
            Err(CallError::Refused(ResultCode::NO_OBJ)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn call_on_vdi(
        &mut self,
        opcode: Opcode,
        name: &[u8],
        selector: &Selector,
        call: impl Fn(&mut Sheep, &Request) -> Call<(ReplyHeader, Vec<u8>)>,
    ) -> Call<Vid> {
        let request = Request::on_vdi(opcode, name, &selector.tag, selector.snap_id).map_err(too_long)?;
        let (reply, _) = call(self, &request)?;
        Ok(Vid(VdiReply::decode(&reply.variant).vdi_id))
    }

    fn read_inode(&mut self, vid: Vid, offset: u32, len: u32) -> Call<Vec<u8>> {
        let (_, data) = self.call(&Request::read_obj(Oid::inode(vid), offset, len))?;
        self.exactly(data, len)
    }

    fn call_for_list<T: DeserializeOwned>(&mut self, request: &Request) -> Call<T> {
        let (_, data) = self.call(request)?;
        decode_list(&data).ok_or_else(|| self.nonsense())
    }

    fn call_now_for_list<T: DeserializeOwned>(&mut self, request: &Request) -> Call<T> {
        let (_, data) = self.call_now(request)?;
        decode_list(&data).ok_or_else(|| self.nonsense())
    }

    /// What may have to wait for other sheep.
    fn call(&mut self, request: &Request) -> Call<(ReplyHeader, Vec<u8>)> {
        let answer = self.link.exchange(&message(request), Patience::Endless)?;
        self.read(request, answer)
    }

    /// The same, given up when one of those does not answer anything.
    fn call_while_all_answer(&mut self, request: &Request) -> Call<(ReplyHeader, Vec<u8>)> {
        let answer = self.link.exchange(&message(request), Patience::While(awaited::find_silent))?;
        self.read(request, answer)
    }

    /// What a sheep knows itself.
    fn call_now(&mut self, request: &Request) -> Call<(ReplyHeader, Vec<u8>)> {
        let answer = self.link.exchange(&message(request), Patience::Short)?;
        self.read(request, answer)
    }

    fn call_all(&mut self, requests: &[Request]) -> Outcome<Vec<Option<Call<(ReplyHeader, Vec<u8>)>>>> {
        let messages: Vec<Message> = requests.iter().map(message).collect();
        let answers = self.link.exchange_all(&messages)?.into_iter();
        let read = |(request, answer): (&Request, Option<Answer>)| answer.map(|it| self.read(request, it));
        Ok(requests.iter().zip(answers).map(read).collect())
    }

    fn read(&self, request: &Request, (header, data): Answer) -> Call<(ReplyHeader, Vec<u8>)> {
        let header = ReplyHeader::decode(&header);
        if header.opcode != request.header.opcode {
            return Err(self.nonsense());
        }
        header.result.ok().map_err(CallError::Refused)?;
        Ok((header, data))
    }

    fn exactly(&self, data: Vec<u8>, len: u32) -> Call<Vec<u8>> {
        if data.len() == len as usize { Ok(data) } else { Err(self.nonsense()) }
    }

    fn nonsense(&self) -> CallError {
        let target = self.link.target();
        CallError::Broken(Failure::system(format!(
            "Communication with {target} failed: its reply makes no sense (is it of another release?)"
        )))
    }
}

fn message(request: &Request) -> Message<'_> {
    Message {
        header: request.encode_header(),
        payload: &request.payload,
        reply_max: request.reply_bytes_max() as usize,
    }
}

fn owner_in(table: &Table, index: u32) -> Vid {
    let found = table.entries.iter().find(|(at, ..)| *at == index);
    found.map_or(Vid(0), |(_, owner, _)| *owner)
}

/// Names are cut before they come here; this is for whoever forgets.
fn too_long(error: proto::sd::request::NameTooLong) -> CallError {
    CallError::Broken(Failure::bad_value(error.to_string()))
}
