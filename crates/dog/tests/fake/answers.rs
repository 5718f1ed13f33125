//! What the fakes know, and what they answer to each request.

use std::collections::{BTreeMap, BTreeSet};

use proto::client::{
    Attachment, CheckReport, ClientOp, ClusterInfo, ClusterStatus, EpochInfo, Guest, NodeInfo, Out, VdiInfo,
    VdiOp,
};
use proto::cluster::{FormatOptions, RepairOptions};
use proto::inode::{InodeHeader, NAME_BYTES, decode_policy, until_nul};
use proto::object::BlockRange;
use proto::sd::extension::{ObjectRequest, UsageReply, VolumeRequest, decode_list, encode_list};
use proto::sd::header::{
    ClusterDefaultReply, ClusterRequest, NodeReply, ObjRequest, ReplyVariant, RequestVariant, VdiReply,
    VdiRequest,
};
use proto::sd::structs::{self, MdInfo, RecoveryThrottling, SdNode, SdStat, encode_md_info};
use proto::sd::{Opcode, RequestHeader, ResultCode};
use proto::{CopyPolicy, Epoch, NodeId, ObjectKind, Oid, Vid, ZoneId, hash::vid_of_name};

const TIME: u64 = 1_795_346_574;
const MB: u64 = 1 << 20;
/// So often a sheep that has ended is listed yet.
const LISTINGS_TO_LEAVE: u32 = 3;

pub type Answer = (ResultCode, [u8; 28], Vec<u8>);

pub struct State {
    pub(super) nodes: Vec<NodeInfo>,
    pub(super) status: ClusterStatus,
    pub(super) format: Option<FormatOptions>,
    /// No disk has space, and no inode can be written.
    pub(super) is_full: bool,
    pub(super) vdis: BTreeMap<Vid, VdiInfo>,
    /// Objects of each VDI: index to owner.
    pub(super) tables: BTreeMap<Vid, BTreeMap<u32, Vid>>,
    /// Bytes of VDIs that were written; everything else is zero.
    pub(super) bytes: BTreeMap<Vid, Vec<u8>>,
    pub(super) attributes: BTreeMap<(Vec<u8>, Vec<u8>), Vec<u8>>,
    pub(super) guests: Vec<Guest>,
    pub(super) nbd_socket: Vec<u8>,
    /// A member is down, and another one has just come back.
    pub is_recovering: bool,
    throttling: RecoveryThrottling,
    pub(super) repair: RepairOptions,
    pub(super) outs: BTreeMap<NodeId, Out>,
    /// How often the first sheep was asked whether a node that is out may be stopped.
    pub(super) risks_asked: u32,
    /// Of the first sheep; the others serve no vhost-user.
    pub(super) attached: Vec<Attachment>,
    /// All but the last sheep have an old view: it has put their copies out and gone on alone.
    pub is_lagging: bool,
    /// Too few copies are up for writes, and what one VDI holds cannot be read.
    pub is_blocked: bool,
    /// This sheep says nothing any more.
    pub stopped: Option<usize>,
    /// It says nothing about VDIs that are to be deleted.
    pub waits: Option<usize>,
    /// These were told to end, and nobody listens there any more.
    pub ended: BTreeSet<usize>,
    /// Who is listed though it has ended, and how often yet.
    leaving: Option<(NodeId, u32)>,
    /// A client discards objects while they are checked, and one object is lost.
    pub is_discarding: bool,
    /// The snapshots of the VDI `test` are deleted as soon as one is checked.
    pub is_deleting: bool,
}

impl State {
    pub fn new(
        nodes: Vec<NodeId>,
        status: ClusterStatus,
        has_vdis: bool,
        is_full: bool,
        nbd_socket: Vec<u8>,
    ) -> State {
        let node = |(zone, id)| NodeInfo { id, zone: ZoneId(zone), vnodes: 128, space_bytes: 1 << 40 };
        let options = FormatOptions {
            ctime: TIME << 32,
            policy: CopyPolicy::Replicated { copies: 3 },
            block_size_shift: 22,
            flags: 0x04,
            pg_count: 512,
        };
        let mut state = State {
            nodes: (0..).zip(nodes).map(node).collect(),
            status,
            format: (status != ClusterStatus::WaitForFormat).then_some(options),
            is_full,
            vdis: BTreeMap::new(),
            tables: BTreeMap::new(),
            bytes: BTreeMap::new(),
            attributes: BTreeMap::new(),
            guests: vec![],
            nbd_socket,
            is_recovering: false,
            is_lagging: false,
            is_blocked: false,
            stopped: None,
            waits: None,
            ended: BTreeSet::new(),
            leaving: None,
            is_discarding: false,
            is_deleting: false,
            throttling: RecoveryThrottling::default(),
            repair: RepairOptions::default(),
            outs: BTreeMap::new(),
            risks_asked: 0,
            attached: Vec::new(),
        };
        if has_vdis {
            state.add_canned_vdis();
        }
        state
    }

    /// A VDI with two snapshots, a clone, and one with a blank in its name.
    fn add_canned_vdis(&mut self) {
        let (first, second, working) = (Vid(0x7c2b25), Vid(0x7c2b26), Vid(0x7c2b29));
        for (vid, name, tag, snap_id, is_snapshot, parent) in [
            (Vid(0x42a71), "cl1", "", 1, false, first),
            (first, "test", "snap1", 1, true, Vid(0)),
            (second, "test", "", 2, true, first),
            (working, "test", "", 3, false, second),
            (Vid(0x833892), "a b", "", 1, false, Vid(0)),
        ] {
            let info = VdiInfo {
                vid,
                name: name.into(),
                tag: tag.into(),
                size: if name == "a b" { 10 * MB } else { 1 << 30 },
                policy: CopyPolicy::Replicated { copies: 3 },
                block_size_shift: 22,
                snap_id,
                create_time: TIME << 32,
                snap_ctime: if is_snapshot { TIME << 32 } else { 0 },
                vm_state_size: 0,
                vm_clock_nsec: 0,
                parent,
                owner: None,
                locked_by: if name == "cl1" { vec![(self.nodes[0].id, false)] } else { vec![] },
            };
            self.vdis.insert(vid, info);
        }
        self.tables.insert(first, [(0, first)].into());
        self.tables.insert(second, [(0, first)].into());
        self.tables.insert(working, [(0, first), (3, working)].into());
        self.tables.insert(Vid(0x42a71), [(0, first)].into());
    }

    /// Every working VDI has a client.
    pub fn lock_all(&mut self) {
        let holder = self.nodes[0].id;
        self.vdis.values_mut().for_each(|info| info.locked_by = vec![(holder, false)]);
        let guest = |vid, working: &str, client: &str| Guest {
            vid: Vid(vid),
            working: working.into(),
            client: client.into(),
        };
        self.guests = vec![
            guest(0x7c2b26, "test", "qemu-system-x86 4711"),
            guest(0x7c2b25, "", "nbdcopy 4712"),
            guest(0x7c2b25, "", "nbdcopy 4712"),
        ];
    }

    /// Is this request never answered?
    pub fn is_silent(&self, index: usize, request: &RequestHeader, payload: &[u8]) -> bool {
        let stuck = Vid(0x42a71);
        let is_about_it = match Opcode::from_u8(request.opcode) {
            Some(Opcode::VdiUsage | Opcode::VolumeRead) => {
                VolumeRequest::decode(&request.variant).vid == stuck
            }
            Some(Opcode::Ask) => {
                matches!(decode_list(payload), Some(ClientOp::Vdi(VdiOp::Table { vid, .. })) if vid == stuck)
            }
            _ => false,
        };
        let waits = self.waits == Some(index) && request.opcode == Opcode::DelVdi as u8;
        waits || self.stopped == Some(index) || (self.is_blocked && is_about_it)
    }

    /// Others hear of an end after a while.
    fn let_go(&mut self) {
        let Some((node, listings)) = self.leaving.take() else { return };
        match listings {
            0 => self.nodes.retain(|listed| listed.id != node),
            left => self.leaving = Some((node, left - 1)),
        }
    }

    /// The answer of sheep `index`.
    pub fn answer(&mut self, index: usize, request: &RequestHeader, payload: &[u8]) -> Answer {
        let opcode = Opcode::from_u8(request.opcode).expect("dog sends known operations only");
        let answers_always = matches!(
            opcode,
            Opcode::GetNodeList
                | Opcode::ClusterInfoEx
                | Opcode::ClusterInfo
                | Opcode::GetStoreList
                | Opcode::MakeFs
                | Opcode::Shutdown
                | Opcode::KillNode
                | Opcode::GetClusterDefault
                | Opcode::Ask
        );
        match self.status {
            ClusterStatus::WaitForFormat if !answers_always => return refuse(ResultCode::WAIT_FOR_FORMAT),
            // What sheep say from the view alone they say while they wait as well.
            ClusterStatus::WaitForJoin if !answers_always && opcode != Opcode::VdiList => {
                return refuse(ResultCode::WAIT_FOR_JOIN);
            }
            _ => {}
        }
        match opcode {
            Opcode::VolumeWrite if self.is_full => refuse(ResultCode::NO_SPACE),
            Opcode::NewVdi if self.is_full => refuse(ResultCode::VDI_WRITE),
            Opcode::GetNodeList => {
                self.let_go();
                let nr_nodes = self.nodes.len() as u32;
                let list = self.nodes.iter().flat_map(|node| SdNode::from(node).encode()).collect();
                (ResultCode::SUCCESS, NodeReply { nr_nodes, ..Default::default() }.encode(), list)
            }
            Opcode::ClusterInfoEx => data(encode_list(&self.cluster_info(index))),
            Opcode::ClusterInfo => {
                let default_store = if self.format.is_some() { "plain".to_string() } else { String::new() };
                data(structs::ClusterInfo { default_store, ..Default::default() }.encode())
            }
            Opcode::GetStoreList => data(b"tree plain \0".to_vec()),
            Opcode::MakeFs => self.format(&ClusterRequest::decode(&request.variant), payload),
            Opcode::Shutdown => done(),
            Opcode::KillNode => {
                self.ended.insert(index);
                self.leaving = Some((self.nodes[index].id, LISTINGS_TO_LEAVE));
                done()
            }
            Opcode::StatSheep => {
                let reply = NodeReply { nr_nodes: 0, store_size: 77 << 30, store_free: 70 << 30 };
                (ResultCode::SUCCESS, reply.encode(), vec![])
            }
            Opcode::Stat => data(
                SdStat { gateway_total: 3, gateway_read: 2, gateway_write: 1, ..Default::default() }
                    .encode()
                    .into(),
            ),
            Opcode::GetRecovery => data(self.throttling.encode().into()),
            Opcode::SetRecovery => {
                self.throttling = RecoveryThrottling::decode(payload).expect("24 bytes");
                done()
            }
            Opcode::MdInfo => {
                let disk =
                    MdInfo { idx: 0, free: 70 << 30, used: 7 << 30, path: format!("/sheep/{index}/obj") };
                data(encode_md_info(&[disk]))
            }
            Opcode::GetClusterDefault => {
                let block_size_shift = self.format.map_or(0, |format| format.block_size_shift);
                let reply = ClusterDefaultReply { nr_copies: 3, copy_policy: 0, block_size_shift };
                (ResultCode::SUCCESS, reply.encode(), vec![])
            }
            Opcode::VdiList => data(encode_list(&self.vdis.values().collect::<Vec<_>>())),
            Opcode::NewVdi => self.create(&VdiRequest::decode(&request.variant), payload),
            Opcode::GetVdiInfo | Opcode::DelVdi => {
                self.on_name(opcode, VdiRequest::decode(&request.variant).snapid, payload)
            }
            Opcode::ReleaseVdi => {
                let vid = Vid(VdiRequest::decode(&request.variant).base_vdi_id);
                self.vdis.get_mut(&vid).unwrap().locked_by.clear();
                done()
            }
            Opcode::ReadObj => self.read_inode(&ObjRequest::decode(&request.variant), request.data_length),
            Opcode::Exist => {
                let oid = ObjRequest::decode(&request.variant).oid;
                // Sheep 1 has lost its data objects.
                if index == 1 && oid.kind() == Some(ObjectKind::Data) {
                    refuse(ResultCode::NO_OBJ)
                } else {
                    done()
                }
            }
            Opcode::Locate => {
                data(encode_list(&self.nodes.iter().rev().map(|node| node.id).collect::<Vec<_>>()))
            }
            Opcode::Ask => {
                let op = decode_list(payload).expect("dog encodes what it asks");
                data(encode_list(&self.ask(index, op)))
            }
            Opcode::CheckObject if self.is_discarding => {
                self.check_gone(&ObjectRequest::decode(&request.variant))
            }
            Opcode::CheckObject if self.is_deleting => {
                self.check_deleted(&ObjectRequest::decode(&request.variant))
            }
            Opcode::CheckObject => data(encode_list(&self.check(&ObjectRequest::decode(&request.variant)))),
            _ => self.on_volume(opcode, &VolumeRequest::decode(&request.variant), request, payload),
        }
    }

    fn cluster_info(&self, index: usize) -> ClusterInfo {
        let epoch = EpochInfo { epoch: Epoch(1), time: TIME, nodes: self.nodes.clone() };
        ClusterInfo {
            repair: self.repair,
            status: self.status,
            format: self.format,
            epoch: Epoch(1),
            nodes: self.nodes.clone(),
            epochs: if self.format.is_some() { vec![epoch] } else { vec![] },
            this_node: self.nodes[index].id,
        }
    }

    fn format(&mut self, options: &ClusterRequest, store: &[u8]) -> Answer {
        assert!(store.ends_with(b"\0") && options.ctime >> 32 > 0);
        self.format = Some(FormatOptions {
            ctime: TIME << 32,
            policy: decode_policy(options.copy_policy, options.copies),
            block_size_shift: options.block_size_shift,
            flags: options.flags,
            pg_count: 512,
        });
        (self.status, self.vdis) = (ClusterStatus::Running, BTreeMap::new());
        (self.repair, self.outs) = (RepairOptions::default(), BTreeMap::new());
        done()
    }

    fn create(&mut self, request: &VdiRequest, payload: &[u8]) -> Answer {
        assert_eq!(payload.len(), NAME_BYTES);
        let name = until_nul(payload);
        if self.vdis.values().any(|info| info.name == name) {
            return refuse(ResultCode::VDI_EXIST);
        }
        if self.hides_snapshot(name) {
            return refuse(ResultCode::from(&proto::client::ClientError::NameClash));
        }
        let vid = vid_of_name(name);
        let info = VdiInfo {
            vid,
            name: name.to_vec(),
            tag: vec![],
            size: request.vdi_size,
            policy: decode_policy(request.copy_policy, if request.copies == 0 { 3 } else { request.copies }),
            block_size_shift: if request.block_size_shift == 0 { 22 } else { request.block_size_shift },
            snap_id: 1,
            create_time: TIME << 32,
            snap_ctime: 0,
            vm_state_size: 0,
            vm_clock_nsec: 0,
            parent: Vid(0),
            owner: None,
            locked_by: vec![],
        };
        self.vdis.insert(vid, info);
        vid_reply(vid)
    }

    fn on_name(&mut self, opcode: Opcode, snap_id: u32, payload: &[u8]) -> Answer {
        assert_eq!(payload.len(), 2 * NAME_BYTES);
        let (name, tag) = (until_nul(&payload[..NAME_BYTES]), until_nul(&payload[NAME_BYTES..]));
        let of_name: Vec<&VdiInfo> = self.vdis.values().filter(|info| info.name == name).collect();
        let is_wanted = |info: &&&VdiInfo| match (snap_id, tag) {
            (0, []) => info.snap_ctime == 0,
            (0, tag) => info.tag == tag,
            (id, _) => info.snap_ctime != 0 && info.snap_id == id,
        };
        let Some(vid) = of_name.iter().find(is_wanted).map(|info| info.vid) else {
            return refuse(if of_name.is_empty() { ResultCode::NO_VDI } else { ResultCode::NO_TAG });
        };
        if opcode == Opcode::DelVdi {
            self.vdis.remove(&vid);
        }
        vid_reply(vid)
    }

    /// The header.
    fn read_inode(&self, request: &ObjRequest, len: u32) -> Answer {
        let vid = request.oid.vid();
        assert_eq!(request.oid, Oid::inode(vid));
        let info = &self.vdis[&vid];
        assert_eq!(request.offset, 0, "dog reads no block tables of inodes");
        let header = InodeHeader {
            name: info.name.clone(),
            tag: info.tag.clone(),
            create_time: info.create_time,
            snap_ctime: info.snap_ctime,
            vm_clock_nsec: 0,
            vdi_size: info.size,
            vm_state_size: 0,
            policy: info.policy,
            block_size_shift: info.block_size_shift,
            snap_id: info.snap_id,
            vid,
            parent: info.parent,
        };
        data(header.encode()[..len as usize].to_vec())
    }

    /// No data object is there; object 3 of the working VDI has left the table as well.
    fn check_gone(&mut self, request: &ObjectRequest) -> Answer {
        match request.oid.kind() {
            Some(ObjectKind::Data) => {
                self.tables.get_mut(&Vid(0x7c2b29)).unwrap().remove(&3);
                refuse(ResultCode::NO_OBJ)
            }
            _ => data(encode_list(&self.check(request))),
        }
    }

    /// The first snapshot goes when its inode is asked for, and takes it along; the second one while the first node has removed its inode,
    /// and no other. A clone lacks a copy of its inode as well, and stays.
    fn check_deleted(&mut self, request: &ObjectRequest) -> Answer {
        let (clone, first, second) = (Vid(0x42a71), Vid(0x7c2b25), Vid(0x7c2b26));
        let vid = request.oid.vid();
        let missing = CheckReport { missing: vec![self.nodes[0].id], copies: 3, ..Default::default() };
        match request.oid.kind() {
            Some(ObjectKind::Data) => data(encode_list(&self.check(request))),
            _ if vid == first => {
                self.vdis.remove(&first);
                refuse(ResultCode::NO_OBJ)
            }
            _ if vid == second => {
                self.vdis.remove(&second);
                data(encode_list(&missing))
            }
            _ if vid == clone => data(encode_list(&missing)),
            _ => data(encode_list(&self.check(request))),
        }
    }

    /// Object 3 of the working VDI has a copy missing and one that differs; its inode a lost block.
    fn check(&self, request: &ObjectRequest) -> CheckReport {
        let damaged = Oid::data(Vid(0x7c2b29), 3);
        let last = self.nodes.last().unwrap().id;
        match request.oid {
            oid if oid == damaged => CheckReport {
                missing: vec![self.nodes[0].id],
                differing: vec![(last, BlockRange::new(0, 2))],
                repaired: request.repair,
                at_odds: vec![BlockRange::new(0, 2)],
                lost: vec![],
                copies: 3,
                compared_bytes: 12 * MB,
            },
            oid if oid == Oid::inode(Vid(0x7c2b29)) && request.repair => {
                CheckReport { lost: vec![BlockRange::new(1, 2)], ..Default::default() }
            }
            _ => CheckReport { copies: 3, compared_bytes: 3 * MB, ..CheckReport::default() },
        }
    }

    fn on_volume(
        &mut self,
        opcode: Opcode,
        at: &VolumeRequest,
        request: &RequestHeader,
        payload: &[u8],
    ) -> Answer {
        let info = self.vdis.get_mut(&at.vid).expect("dog asks for VDIs it was told of");
        if opcode == Opcode::ResizeVdi {
            info.size = at.length;
            return done();
        }
        if opcode == Opcode::VdiUsage {
            let table = self.tables.get(&at.vid);
            let owners = || table.into_iter().flat_map(|table| table.values());
            let own_objects = owners().filter(|owner| **owner == at.vid).count() as u64;
            let usage = UsageReply { own_objects, shared_objects: owners().count() as u64 - own_objects };
            return (ResultCode::SUCCESS, usage.encode(), vec![]);
        }
        let bytes = self.bytes.entry(at.vid).or_default();
        bytes.resize(info.size.min(64 * MB) as usize, 0);
        let start = at.offset as usize;
        let is_snapshot = info.snap_ctime != 0;
        match opcode {
            Opcode::VolumeRead => data(bytes[start..start + request.data_length as usize].to_vec()),
            Opcode::VolumeWrite | Opcode::VdiDiscard if is_snapshot => refuse(ResultCode::READONLY),
            Opcode::VolumeWrite => {
                bytes[start..start + payload.len()].copy_from_slice(payload);
                let table = self.tables.entry(at.vid).or_default();
                table.insert((at.offset >> info.block_size_shift) as u32, at.vid);
                done()
            }
            Opcode::VdiDiscard => {
                bytes[start..start + at.length as usize].fill(0);
                let table = self.tables.entry(at.vid).or_default();
                let object_bytes = 1 << info.block_size_shift;
                let end = at.offset + at.length;
                table.retain(|index, owner| {
                    let object = u64::from(*index) * object_bytes;
                    let is_whole = at.offset <= object && (object + object_bytes).min(info.size) <= end;
                    if !is_whole && object < end && at.offset < object + object_bytes {
                        *owner = at.vid;
                    }
                    !is_whole
                });
                done()
            }
            other => panic!("dog has no use for {}", other.name()),
        }
    }
}

fn vid_reply(vid: Vid) -> Answer {
    (ResultCode::SUCCESS, VdiReply { vdi_id: vid.0, ..Default::default() }.encode(), vec![])
}

fn data(bytes: Vec<u8>) -> Answer {
    (ResultCode::SUCCESS, [0; 28], bytes)
}

fn done() -> Answer {
    data(vec![])
}

fn refuse(code: ResultCode) -> Answer {
    (code, [0; 28], vec![])
}
