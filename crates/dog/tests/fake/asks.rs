//! What the fakes answer to ASK: snapshots, clones, rollback, attributes, and which ranges hold data.
//!
//! A snapshot is a copy here: tables and bytes of a few VDIs are small.

use proto::client::{
    Attachment, AttributeOp, ChangedExtent, ClientError, ClientOp, ClientReply, ClientResult, ClusterOp,
    ClusterStatus, Extent, FewPlaces, Health, MemberHealth, NodeAccess, NodeInfo, NodeStat, Out, Places,
    PoolHealth, Shortfall, StopRisk, Table, Track, VdiInfo, VdiOp, VolumeOp,
};
use proto::client::{DamagedBlocks, DifferingBlocks, ScrubStatus, Selector};
use proto::object::BlockRange;
use proto::{CopyPolicy, Epoch, NodeId, ObjectKind, Oid, Vid, export};

use super::answers::State;

/// As the clock of the fakes says.
const SNAP_TIME: u64 = 1_795_346_574 << 32;

/// Of each VDI, as far as there are places.
const COPIES: u8 = 3;

impl State {
    pub(super) fn ask(&mut self, index: usize, op: ClientOp) -> ClientResult {
        match op {
            ClientOp::Vdi(op) => self.ask_vdi(op),
            ClientOp::Cluster(ClusterOp::Access) => Ok(ClientReply::Access(self.access(index))),
            ClientOp::Cluster(ClusterOp::Health) => Ok(ClientReply::Health(self.health())),
            ClientOp::Cluster(ClusterOp::StopRisk(nodes)) => {
                Ok(ClientReply::StopRisk(self.stop_risk(index, &nodes)))
            }
            ClientOp::Cluster(ClusterOp::NodeStat) => {
                Ok(ClientReply::NodeStat(Box::new(self.node_stat(index))))
            }
            ClientOp::Cluster(ClusterOp::Track { oid }) => Ok(ClientReply::Track(self.track(oid))),
            ClientOp::Cluster(ClusterOp::SetDefaultPolicy { policy }) => {
                self.format.as_mut().unwrap().policy = policy;
                Ok(ClientReply::Done)
            }
            ClientOp::Cluster(ClusterOp::Scrub) => Ok(ClientReply::Scrub(Box::new(self.scrub(index)))),
            ClientOp::Cluster(ClusterOp::SetRepair(change)) => {
                self.repair.change(&change);
                Ok(ClientReply::Done)
            }
            ClientOp::Cluster(ClusterOp::SetOut { node, out }) => {
                self.outs.remove(&node);
                self.outs.extend(out.then_some((node, Out::ByOperator)));
                Ok(ClientReply::Done)
            }
            ClientOp::Cluster(ClusterOp::ForceRecovery) => {
                self.status = ClusterStatus::Running;
                Ok(ClientReply::Done)
            }
            ClientOp::Cluster(
                op @ (ClusterOp::Attach { .. } | ClusterOp::Detach { .. } | ClusterOp::Attached),
            ) => self.attach(index, op),
            ClientOp::Volume { vid, op: VolumeOp::BlockStatus { offset, len }, .. } => {
                let extents = self.parts(vid, offset, len, |state, index| !state.has_object(vid, index));
                Ok(ClientReply::Extents(
                    extents.into_iter().map(|(len, hole)| Extent { len, hole }).collect(),
                ))
            }
            ClientOp::Volume { vid, op: VolumeOp::Changes { since, offset, len }, .. } => {
                let owner = |state: &State, vid, index| {
                    state.tables.get(&vid).and_then(|table| table.get(&index)).copied()
                };
                let parts = self.parts(vid, offset, len, |state, index| {
                    owner(state, vid, index) != owner(state, since, index)
                });
                let extents = parts.into_iter().map(|(len, changed)| ChangedExtent { len, changed });
                Ok(ClientReply::Changes(extents.collect()))
            }
            other => panic!("dog has no use for {other:?}"),
        }
    }

    /// Sockets lie in /sockets, and a guest is connected to the one called `busy`.
    fn attach(&mut self, index: usize, op: ClusterOp) -> ClientResult {
        let unsupported = |text: &str| Err(ClientError::Unsupported(text.into()));
        if index > 0 {
            return unsupported("this sheep serves no vhost-user guests");
        }
        let path = |socket: &[u8]| [b"/sockets/", socket].concat();
        match op {
            ClusterOp::Attach { socket, .. } if socket.contains(&b'/') => unsupported("not in /sockets"),
            ClusterOp::Attach { name, socket } => {
                let in_use = socket == b"busy";
                let attachment = Attachment { name, socket: path(&socket), in_use };
                self.attached.push(attachment.clone());
                Ok(ClientReply::Attached(vec![attachment]))
            }
            ClusterOp::Detach { name, socket } => {
                let is_meant = |a: &Attachment| {
                    a.name == name && socket.as_ref().is_none_or(|socket| a.socket == path(socket))
                };
                let (gone, kept): (Vec<_>, Vec<_>) = self.attached.iter().cloned().partition(is_meant);
                if gone.iter().any(|attachment| attachment.in_use) {
                    return Err(ClientError::Busy);
                }
                if gone.is_empty() {
                    return unsupported("it is not attached there");
                }
                self.attached = kept;
                Ok(ClientReply::Attached(gone))
            }
            _ => Ok(ClientReply::Attached(self.attached.clone())),
        }
    }

    /// Clients come through the first sheep only.
    fn access(&self, index: usize) -> NodeAccess {
        NodeAccess {
            nbd_socket: self.nbd_socket.clone(),
            nbd_address: None,
            guests: if index == 0 { self.guests.clone() } else { vec![] },
        }
    }

    /// One member more than there are sheep, which is down, if one catches up.
    fn health(&self) -> Health {
        let member = |node: &NodeInfo| MemberHealth {
            id: node.id,
            zone: node.zone,
            space_bytes: node.space_bytes,
            is_up: true,
            pgs: 512,
            pgs_in_sync: 512,
            pgs_awaiting: 0,
            pgs_unreadable: 0,
            disk_failed: false,
            out: self.outs.get(&node.id).copied(),
            may_time_out: false,
        };
        let mut members: Vec<MemberHealth> = self.nodes.iter().map(member).collect();
        if self.is_recovering {
            let gone = NodeId { port: 1, ..self.nodes[0].id };
            members.push(MemberHealth {
                id: gone,
                is_up: false,
                pgs_in_sync: 0,
                may_time_out: true,
                out: self.outs.get(&gone).copied(),
                ..members[0]
            });
        }
        if self.status == ClusterStatus::WaitForJoin {
            for port in [1, 2] {
                let id = NodeId { port, ..self.nodes[0].id };
                let gone =
                    MemberHealth { id, is_up: false, pgs_awaiting: 512, pgs_unreadable: 9, ..members[0] };
                members.push(gone);
            }
        }
        if self.is_blocked {
            let id = NodeId { port: 1, ..self.nodes[0].id };
            members.push(MemberHealth { id, is_up: false, pgs_awaiting: 512, ..members[0] });
        }
        let waits = u32::from(self.status == ClusterStatus::WaitForJoin);
        let pool = PoolHealth {
            policy: CopyPolicy::Replicated { copies: COPIES },
            is_default: true,
            vdis: self.vdis.len() as u32,
            pgs: 512,
            targets_min: self.places(),
            copies_min: if self.is_recovering { 2 } else { 3 },
            degraded: if self.is_recovering { 400 } else { 0 },
            moving: 0,
            unwritable: if self.is_blocked { 512 } else { 512 * waits },
            unreadable: 9 * waits,
        };
        Health { status: self.status, members, pools: self.format.iter().map(|_| pool).collect() }
    }

    /// A node that was put out is emptied by the third question to the first sheep. The last sheep may know of writes that the others missed.
    fn stop_risk(&mut self, index: usize, nodes: &[NodeId]) -> StopRisk {
        let all = Shortfall { pgs: 512, already: 0 };
        let mut risk = StopRisk { pgs: 512, ..StopRisk::default() };
        if self.is_lagging {
            risk.lost.pgs = if index + 1 == self.nodes.len() { 9 } else { 0 };
            return risk;
        }
        let is_emptied = nodes.iter().all(|node| self.outs.contains_key(node));
        match nodes.len() {
            1 if is_emptied => {
                self.risks_asked += u32::from(index == 0);
                risk.short.pgs = if self.risks_asked < 3 { 7 } else { 0 };
                let copies = self.places();
                if copies < COPIES {
                    risk.few = FewPlaces { pgs: 512 - risk.short.pgs, copies, wanted: COPIES };
                }
            }
            1 => risk.short = all,
            count if count < self.nodes.len() => risk.held = all,
            _ => risk.lost = all,
        }
        if self.is_recovering && risk.short.pgs == 0 {
            risk.short = Shortfall { pgs: 400, already: 400 };
        }
        risk
    }

    /// Each sheep is a zone, and there are enough of them unless one is out.
    fn places(&self) -> u8 {
        let zones = self.nodes.len().max(COPIES.into());
        let outs = self.nodes.iter().filter(|node| self.outs.contains_key(&node.id)).count();
        (zones - outs).min(COPIES.into()) as u8
    }

    /// Sheep 1 catches up, if one does.
    fn node_stat(&self, index: usize) -> NodeStat {
        let mut stat =
            NodeStat { size_bytes: 77 << 30, used_bytes: 7 << 30, pgs: 512, ..NodeStat::default() };
        if self.is_recovering && index == 1 {
            (stat.pgs_behind, stat.objects_done, stat.objects_total) = (100, 3, 8);
        }
        stat.is_full = self.is_full;
        stat
    }

    /// Sheep 0 comes round for the first time. Where copies are missing, sheep 1 has found a block that none can give,
    /// and copies that differ.
    fn scrub(&self, index: usize) -> ScrubStatus {
        let mut status = ScrubStatus {
            is_enabled: self.repair.scrub,
            is_running: self.repair.scrub,
            objects_done: 3,
            objects_total: 8,
            bytes_done: 12 << 20,
            bytes_total: 32 << 20,
            ..ScrubStatus::default()
        };
        if self.is_recovering && index == 1 {
            (status.found, status.mended, status.damaged, status.lost) = (3, 2, 1, 1);
            let (oid, blocks) = (Oid::data(Vid(0x7c2b25), 3), BlockRange::new(7, 1));
            status.told = vec![DamagedBlocks { vdi: b"test".to_vec(), oid, blocks, is_lost: true }];
            (status.differed, status.differing) = (2, 1);
            status.journal_records = 1;
            let (oid, blocks) = (Oid::data(Vid(0x7c2b25), 5), BlockRange::new(9, 1));
            status.told_differing = vec![DifferingBlocks { vdi: b"test".to_vec(), oid, blocks }];
        }
        status
    }

    /// Epoch 1 of two, of which one is unknown where the object is one of data.
    fn track(&self, oid: Oid) -> Track {
        let nodes = self.nodes.iter().rev().map(|node| node.id).collect();
        let unknown_epochs = u32::from(oid.kind() == Some(ObjectKind::Data));
        Track { places: vec![Places { epoch: Epoch(1), nodes }], unknown_epochs }
    }

    fn has_object(&self, vid: Vid, index: u32) -> bool {
        self.tables.get(&vid).is_some_and(|table| table.contains_key(&index))
    }

    /// Object by object, and never more than three in one answer.
    fn parts(
        &self,
        vid: Vid,
        offset: u64,
        len: u64,
        is_so: impl Fn(&State, u32) -> bool,
    ) -> Vec<(u64, bool)> {
        let object_bytes = 1 << self.vdis[&vid].block_size_shift;
        let (mut at, end) = (offset, offset + len);
        let mut parts = Vec::new();
        while at < end && parts.len() < 3 {
            let next = end.min((at / object_bytes + 1) * object_bytes);
            parts.push((next - at, is_so(self, (at / object_bytes) as u32)));
            at = next;
        }
        parts
    }

    fn ask_vdi(&mut self, op: VdiOp) -> ClientResult {
        match op {
            VdiOp::Snapshot { vids, tag } => self.snapshot(&vids, &tag),
            VdiOp::Clone { base, name, .. } => {
                if self.working(&name).is_some() {
                    return Err(ClientError::VdiExists);
                }
                if self.hides_snapshot(&name) {
                    return Err(ClientError::NameClash);
                }
                Ok(ClientReply::Vdi(self.stand_on(base, &name)))
            }
            VdiOp::Open { .. } | VdiOp::Close { .. } => Ok(ClientReply::Done),
            VdiOp::TakePlace { old, new } => self.take_place(old, new),
            VdiOp::Adopt { snapshot, name, tag } => {
                let ids = self.vdis.values().filter(|info| info.name == name).map(|info| info.snap_id);
                let mut snap_id = ids.max().expect("the name exists") + 1;
                let working = self.working(&name);
                if let Some(head) = working.and_then(|vid| self.vdis.get_mut(&vid)) {
                    std::mem::swap(&mut head.snap_id, &mut snap_id);
                }
                let info = self.vdis.get_mut(&snapshot).unwrap();
                (info.name, info.tag, info.snap_id) = (name, tag, snap_id);
                Ok(ClientReply::Vdi(info.clone()))
            }
            VdiOp::Rollback { to, force } => self.roll_back(to, force),
            VdiOp::Delete { vid } => {
                self.vdis.remove(&vid).map(|_| ClientReply::Done).ok_or(ClientError::NoVdi)
            }
            // Two entries in one answer.
            VdiOp::Table { vid, first } => {
                let entries = self.tables.get(&vid).into_iter().flat_map(|table| table.range(first..));
                let mut entries: Vec<_> =
                    entries.map(|(index, owner)| (*index, *owner, Vid(0))).take(3).collect();
                let next = (entries.len() > 2).then(|| entries.remove(2).0);
                Ok(ClientReply::Table(Table { entries, next, stored_with: vec![vid] }))
            }
            VdiOp::Attribute { name, key, op } => self.attribute(name, key, op),
            other => panic!("dog has no use for {other:?}"),
        }
    }

    /// Is it the name of a snapshot for NBD?
    pub fn hides_snapshot(&self, name: &[u8]) -> bool {
        let is_it = |info: &VdiInfo, which: &Selector| match which {
            Selector::Tag(tag) => info.snap_ctime != 0 && info.tag == *tag,
            Selector::SnapId(id) => info.snap_id == *id,
            _ => false,
        };
        let exists = |(of, which): &(Vec<u8>, Selector)| {
            self.vdis.values().any(|info| info.name == *of && is_it(info, which))
        };
        export::snapshots(name).iter().any(exists)
    }

    fn snapshot(&mut self, vids: &[Vid], tag: &[u8]) -> ClientResult {
        for vid in vids {
            let name = &self.vdis[vid].name;
            let has_tag = |info: &VdiInfo| info.name == *name && info.snap_ctime != 0 && info.tag == tag;
            if !tag.is_empty() && self.vdis.values().any(has_tag) {
                return Err(ClientError::TagExists);
            }
            if self.working(&export::by_tag(name, tag)).is_some() {
                return Err(ClientError::NameClash);
            }
        }
        let mut heads = Vec::new();
        for vid in vids {
            let name = self.vdis[vid].name.clone();
            let mut head = self.stand_on(*vid, &name);
            let info = self.vdis.get_mut(vid).unwrap();
            (info.snap_ctime, info.tag) = (SNAP_TIME, tag.to_vec());
            // Its client goes on with what has taken its place.
            head.locked_by = std::mem::take(&mut info.locked_by);
            self.vdis.insert(head.vid, head.clone());
            heads.push(head);
        }
        Ok(ClientReply::Vdis(heads))
    }

    fn take_place(&mut self, old: Vid, new: Vid) -> ClientResult {
        let head = self.vdis.remove(&old).unwrap();
        self.vdis.remove(&head.parent).unwrap();
        let info = self.vdis.get_mut(&new).unwrap();
        info.name = head.name;
        Ok(ClientReply::Vdi(info.clone()))
    }

    /// Locked is in use.
    fn roll_back(&mut self, to: Vid, force: bool) -> ClientResult {
        let name = self.vdis[&to].name.clone();
        let head = self.working(&name);
        if let Some(head) = head
            && let Some((holder, _)) = self.vdis[&head].locked_by.first()
            && !force
        {
            return Err(ClientError::InUse(*holder));
        }
        let new = self.stand_on(to, &name);
        head.map(|head| self.vdis.remove(&head));
        Ok(ClientReply::Vdi(new))
    }

    /// A working VDI with what `base` has.
    fn stand_on(&mut self, base: Vid, name: &[u8]) -> VdiInfo {
        let mut vid = proto::hash::vid_of_name(name);
        while self.vdis.contains_key(&vid) || self.tables.contains_key(&vid) {
            vid = vid.next();
        }
        let snap_id = self.vdis.values().filter(|info| info.name == name).map(|info| info.snap_id).max();
        let info = VdiInfo {
            vid,
            name: name.to_vec(),
            tag: vec![],
            snap_id: snap_id.unwrap_or(0) + 1,
            snap_ctime: 0,
            parent: base,
            locked_by: vec![],
            ..self.vdis[&base].clone()
        };
        let table = self.tables.get(&base).cloned().unwrap_or_default();
        self.tables.insert(vid, table);
        if let Some(bytes) = self.bytes.get(&base).cloned() {
            self.bytes.insert(vid, bytes);
        }
        self.vdis.insert(vid, info.clone());
        info
    }

    fn working(&self, name: &[u8]) -> Option<Vid> {
        self.vdis.values().find(|info| info.name == name && info.snap_ctime == 0).map(|info| info.vid)
    }

    fn attribute(&mut self, name: Vec<u8>, key: Vec<u8>, op: AttributeOp) -> ClientResult {
        if !self.vdis.values().any(|info| info.name == name) {
            return Err(ClientError::NoVdi);
        }
        let place = (name, key);
        let found = self.attributes.get(&place).cloned();
        match (op, found) {
            (AttributeOp::Set { exclusive: true, .. }, Some(_)) => Err(ClientError::AttributeExists),
            (AttributeOp::Set { value, .. }, _) => {
                self.attributes.insert(place, value);
                Ok(ClientReply::Done)
            }
            (_, None) => Err(ClientError::NoAttribute),
            (AttributeOp::Get, Some(value)) => Ok(ClientReply::Attribute(value)),
            (AttributeOp::Delete, Some(_)) => {
                self.attributes.remove(&place);
                Ok(ClientReply::Done)
            }
        }
    }
}
