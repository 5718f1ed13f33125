//! A cluster in memory, as the specification describes it: VDIs, inodes, objects, locks. Slow, plain, and free of
//! everything that the real one is made of.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;

use bytes::Bytes;
use proto::client::*;
use proto::cluster::FormatOptions;
use proto::hash::vid_of_name;
use proto::inode::{HEADER_BYTES, INODE_BYTES, InodeHeader, TABLE_END, table_offset};
use proto::{CopyPolicy, Epoch, NodeId, ObjectKind, Oid, Vid, ZoneId};
use tokio::sync::Semaphore;

use crate::Service;

#[derive(Clone)]
pub struct Fake {
    world: Rc<RefCell<World>>,
    /// Answers to operations on these objects need a permit.
    held: Rc<RefCell<BTreeMap<Oid, Rc<Semaphore>>>>,
    /// Requests whose answer nobody waited for.
    pub given_up: Rc<Cell<u32>>,
}

/// Counts itself, unless it is forgotten.
struct Unanswered(Rc<Cell<u32>>);

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

pub struct World {
    pub info: ClusterInfo,
    pub stat: NodeStat,
    pub vdis: BTreeMap<Vid, VdiInfo>,
    pub tables: BTreeMap<Vid, BTreeMap<u32, Vid>>,
    pub objects: BTreeMap<Oid, Vec<u8>>,
    pub deleted: BTreeSet<Vid>,
    pub throttle: RecoveryThrottle,
    /// Everything that was asked, in order; payloads included.
    pub log: Vec<ClientOp>,
    /// The answer to everything from now on.
    pub refusal: Option<ClientError>,
}

pub fn node_id() -> NodeId {
    NodeId::new(IpAddr::V4(Ipv4Addr::new(192, 168, 0, 1)), 7000)
}

impl Service for Fake {
    /// Takes effect at once, in the order of the calls; only the answer may be held.
    fn call(&self, op: ClientOp) -> impl Future<Output = ClientResult> + 'static {
        let gate = match &op {
            ClientOp::Object { oid, .. } => self.held.borrow().get(oid).cloned(),
            _ => None,
        };
        let result = self.world.borrow_mut().apply(op);
        let unanswered = Unanswered(self.given_up.clone());
        async move {
            if let Some(gate) = gate {
                gate.acquire().await.unwrap().forget();
            }
            std::mem::forget(unanswered);
            result
        }
    }

    fn epoch(&self) -> Epoch {
        Epoch(1)
    }
}

impl Fake {
    pub fn formatted(copies: u8, flags: u16) -> Fake {
        let fake = Fake::unformatted();
        fake.world().format(FormatOptions {
            ctime: 1 << 32,
            policy: CopyPolicy::Replicated { copies },
            block_size_shift: 22,
            flags,
            pg_count: 8,
        });
        fake
    }

    pub fn unformatted() -> Fake {
        let info = ClusterInfo {
            status: ClusterStatus::WaitForFormat,
            repair: Default::default(),
            format: None,
            epoch: Epoch(0),
            nodes: vec![NodeInfo { id: node_id(), zone: ZoneId(7), vnodes: 128, space_bytes: 1 << 30 }],
            epochs: vec![],
            this_node: node_id(),
        };
        let world = World {
            info,
            stat: NodeStat {
                size_bytes: 1 << 30,
                used_bytes: 1 << 20,
                pgs_behind: 2,
                pgs: 8,
                objects_done: 6,
                objects_total: 9,
                ..NodeStat::default()
            },
            vdis: BTreeMap::new(),
            tables: BTreeMap::new(),
            objects: BTreeMap::new(),
            deleted: BTreeSet::new(),
            throttle: RecoveryThrottle::default(),
            log: vec![],
            refusal: None,
        };
        Fake { world: Rc::new(RefCell::new(world)), held: Rc::default(), given_up: Rc::default() }
    }

    pub fn world(&self) -> std::cell::RefMut<'_, World> {
        self.world.borrow_mut()
    }

    /// From now on answers to operations on `oid` wait for permits of the result.
    pub fn hold(&self, oid: Oid) -> Rc<Semaphore> {
        self.held.borrow_mut().entry(oid).or_insert_with(|| Rc::new(Semaphore::new(0))).clone()
    }

    pub fn vdi_ops(&self) -> Vec<VdiOp> {
        let log = &self.world().log;
        log.iter().filter_map(|op| if let ClientOp::Vdi(op) = op { Some(op.clone()) } else { None }).collect()
    }
}

impl World {
    fn format(&mut self, options: FormatOptions) {
        self.info.status = ClusterStatus::Running;
        self.info.format = Some(options);
        self.info.epoch = Epoch(1);
        let nodes = self.info.nodes.clone();
        self.info.epochs = vec![EpochInfo { epoch: Epoch(1), time: 99, nodes }];
        self.vdis.clear();
        self.objects.clear();
    }

    fn apply(&mut self, op: ClientOp) -> ClientResult {
        self.log.push(op.clone());
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        match op {
            ClientOp::Cluster(op) => self.cluster(op),
            _ if self.info.status == ClusterStatus::WaitForFormat => Err(ClientError::WaitForFormat),
            ClientOp::Vdi(op) => self.vdi(op),
            ClientOp::Object { oid, op } => self.object(oid, op),
            ClientOp::Volume { vid, op, .. } => self.volume(vid, op),
        }
    }

    fn cluster(&mut self, op: ClusterOp) -> ClientResult {
        Ok(match op {
            ClusterOp::Info => ClientReply::Cluster(Box::new(self.info.clone())),
            ClusterOp::Format(options) => {
                self.format(options);
                ClientReply::Done
            }
            ClusterOp::Shutdown => {
                self.info.status = ClusterStatus::ShuttingDown;
                ClientReply::Done
            }
            ClusterOp::SetRepair(change) => {
                self.info.repair.change(&change);
                ClientReply::Done
            }
            ClusterOp::SetOut { .. } => ClientReply::Done,
            ClusterOp::ForceRecovery => return Err(ClientError::NotStuck),
            ClusterOp::SetRecoveryThrottle(bound) => {
                self.throttle = bound;
                ClientReply::Done
            }
            ClusterOp::RecoveryThrottle => ClientReply::RecoveryThrottle(self.throttle),
            ClusterOp::Scrub => ClientReply::Scrub(Box::default()),
            ClusterOp::KillNode => ClientReply::Done,
            ClusterOp::NodeStat => ClientReply::NodeStat(Box::new(self.stat)),
            ClusterOp::Holds { oid } if self.objects.contains_key(&oid) => ClientReply::Done,
            ClusterOp::Holds { .. } => return Err(ClientError::NoObject),
            ClusterOp::LocalDigest { .. } => ClientReply::Digest(0x0403_0201),
            ClusterOp::Locate { .. } => ClientReply::Nodes(vec![node_id()]),
            ClusterOp::Access
            | ClusterOp::Attach { .. }
            | ClusterOp::Detach { .. }
            | ClusterOp::Attached
            | ClusterOp::Track { .. }
            | ClusterOp::SetDefaultPolicy { .. }
            | ClusterOp::StopRisk(_)
            | ClusterOp::Health => {
                unreachable!("nobody asks the fake for it")
            }
        })
    }

    fn vdi(&mut self, op: VdiOp) -> ClientResult {
        match op {
            VdiOp::Lookup { name, selector } => self.lookup(&name, &selector).map(ClientReply::Vdi),
            VdiOp::Create { name, size, policy, block_size_shift } => {
                self.create(name, size, policy, block_size_shift).map(ClientReply::Vdi)
            }
            VdiOp::Delete { vid } => {
                self.vdis.remove(&vid).ok_or(ClientError::NoVdi)?;
                self.objects.retain(|oid, _| oid.vid() != vid);
                self.deleted.insert(vid);
                Ok(ClientReply::Done)
            }
            VdiOp::List => Ok(ClientReply::Vdis(self.vdis.values().cloned().collect())),
            VdiOp::Usage { .. } => Ok(ClientReply::Usage { own_objects: 3, shared_objects: 4 }),
            VdiOp::Open { .. } | VdiOp::Close { .. } => Ok(ClientReply::Done),
            VdiOp::Lock { vid, shared } => self.lock(vid, shared),
            VdiOp::Unlock { vid, .. } => {
                self.vdis.get_mut(&vid).ok_or(ClientError::NoVdi)?.locked_by.clear();
                Ok(ClientReply::Done)
            }
            VdiOp::UsedVids => {
                Ok(ClientReply::Vids(self.vdis.keys().chain(&self.deleted).copied().collect()))
            }
            VdiOp::Snapshot { .. }
            | VdiOp::Clone { .. }
            | VdiOp::Rollback { .. }
            | VdiOp::Describe { .. }
            | VdiOp::Attribute { .. }
            | VdiOp::Table { .. } => Err(ClientError::Unsupported("by the fake".into())),
            VdiOp::TakePlace { .. } | VdiOp::Adopt { .. } => unreachable!("no test does this"),
            VdiOp::DeletedVids => Ok(ClientReply::Vids(self.deleted.iter().copied().collect())),
        }
    }

    fn lookup(&self, name: &[u8], selector: &Selector) -> Result<VdiInfo, ClientError> {
        let mut named = self.vdis.values().filter(|vdi| vdi.name == name).peekable();
        if named.peek().is_none() {
            return Err(ClientError::NoVdi);
        }
        let wanted = |vdi: &&VdiInfo| match selector {
            Selector::Working => vdi.snap_ctime == 0,
            Selector::SnapId(id) => vdi.snap_ctime != 0 && vdi.snap_id == *id,
            Selector::Tag(tag) => vdi.snap_ctime != 0 && vdi.tag == *tag,
            Selector::TagOrSnapId(tag, id) => vdi.snap_ctime != 0 && (vdi.tag == *tag || vdi.snap_id == *id),
        };
        named.find(wanted).cloned().ok_or(match selector {
            Selector::Working => ClientError::NoVdi,
            _ => ClientError::NoTag,
        })
    }

    fn create(
        &mut self,
        name: Vec<u8>,
        size: u64,
        policy: Option<CopyPolicy>,
        shift: Option<u8>,
    ) -> Result<VdiInfo, ClientError> {
        if self.lookup(&name, &Selector::Working).is_ok() {
            return Err(ClientError::VdiExists);
        }
        let format = self.info.format.unwrap();
        let mut vid = vid_of_name(&name);
        while self.vdis.contains_key(&vid) || self.deleted.contains(&vid) {
            vid = vid.next();
        }
        let vdi = VdiInfo {
            vid,
            name,
            tag: vec![],
            size,
            policy: policy.unwrap_or(format.policy),
            block_size_shift: shift.unwrap_or(format.block_size_shift),
            snap_id: 1,
            create_time: 1 << 32,
            snap_ctime: 0,
            vm_state_size: 0,
            vm_clock_nsec: 0,
            parent: Vid(0),
            owner: None,
            locked_by: vec![],
        };
        self.vdis.insert(vid, vdi.clone());
        self.tables.insert(vid, BTreeMap::new());
        Ok(vdi)
    }

    fn lock(&mut self, vid: Vid, shared: bool) -> ClientResult {
        let vdi = self.vdis.get_mut(&vid).ok_or(ClientError::NoVdi)?;
        if !vdi.locked_by.is_empty() {
            return Err(ClientError::Locked);
        }
        vdi.locked_by.push((node_id(), shared));
        Ok(ClientReply::Done)
    }

    fn object(&mut self, oid: Oid, op: NativeOp) -> ClientResult {
        let vdi = self.vdis.get(&oid.vid()).cloned().ok_or(ClientError::NoVdi)?;
        if oid.kind() == Some(ObjectKind::Inode) {
            return self.inode(&vdi, op);
        }
        if let NativeOp::Check { .. } = op {
            return Ok(ClientReply::Checked(CheckReport {
                missing: vec![node_id()],
                ..CheckReport::default()
            }));
        }
        let object_bytes = 1usize << vdi.block_size_shift;
        let is_read = matches!(op, NativeOp::Read { .. } | NativeOp::ReadFlat { .. });
        if vdi.snap_ctime != 0 && oid.kind() == Some(ObjectKind::Data) && !is_read {
            return Err(ClientError::ReadOnly);
        }
        let fits = |offset: u32, len: usize| {
            if offset as usize + len > object_bytes {
                Err(ClientError::OutOfRange)
            } else {
                Ok(offset as usize)
            }
        };
        match op {
            NativeOp::Read { offset, len } => {
                let start = fits(offset, len as usize)?;
                let object = self.objects.get(&oid).ok_or(ClientError::NoObject)?;
                Ok(ClientReply::Data(Bytes::copy_from_slice(&object[start..start + len as usize])))
            }
            NativeOp::Write { offset, data } => {
                let start = fits(offset, data.len())?;
                let object = self.objects.get_mut(&oid).ok_or(ClientError::NoObject)?;
                object[start..start + data.len()].copy_from_slice(&data);
                Ok(ClientReply::Done)
            }
            NativeOp::Create { offset, cow_from, data } => {
                let start = fits(offset, data.len())?;
                let mut object = match cow_from {
                    Some(source) => self.objects.get(&source).ok_or(ClientError::NoObject)?.clone(),
                    None => vec![0; object_bytes],
                };
                object[start..start + data.len()].copy_from_slice(&data);
                self.objects.insert(oid, object);
                Ok(ClientReply::Done)
            }
            NativeOp::ReadFlat { .. } if vdi.snap_ctime != 0 => Err(ClientError::StaleInode),
            NativeOp::ReadFlat { offset, len } => {
                let start = fits(offset, len as usize)?;
                let object = self.objects.get(&oid).cloned().unwrap_or_else(|| vec![0; object_bytes]);
                Ok(ClientReply::Data(Bytes::copy_from_slice(&object[start..start + len as usize])))
            }
            NativeOp::WriteFlat { offset, data } => {
                let start = fits(offset, data.len())?;
                let object = self.objects.entry(oid).or_insert_with(|| vec![0; object_bytes]);
                object[start..start + data.len()].copy_from_slice(&data);
                self.tables.get_mut(&vdi.vid).unwrap().insert(oid.index(), vdi.vid);
                Ok(ClientReply::Done)
            }
            NativeOp::Discard => {
                self.objects.remove(&oid);
                self.tables.get_mut(&vdi.vid).unwrap().remove(&oid.index());
                Ok(ClientReply::Done)
            }
            NativeOp::Check { .. } => unreachable!("answered above"),
        }
    }

    /// Header, block table, and zeros for the reference counts.
    pub fn compose_inode(&self, vdi: &VdiInfo) -> Vec<u8> {
        let header = InodeHeader {
            name: vdi.name.clone(),
            tag: vdi.tag.clone(),
            create_time: vdi.create_time,
            snap_ctime: vdi.snap_ctime,
            vm_clock_nsec: vdi.vm_clock_nsec,
            vdi_size: vdi.size,
            vm_state_size: vdi.vm_state_size,
            policy: vdi.policy,
            block_size_shift: vdi.block_size_shift,
            snap_id: vdi.snap_id,
            vid: vdi.vid,
            parent: vdi.parent,
        };
        let mut out = header.encode().to_vec();
        out.resize(INODE_BYTES, 0);
        for (index, owner) in &self.tables[&vdi.vid] {
            out[table_offset(*index)..][..4].copy_from_slice(&owner.0.to_le_bytes());
        }
        out
    }

    fn inode(&mut self, vdi: &VdiInfo, op: NativeOp) -> ClientResult {
        match op {
            NativeOp::Read { offset, len } => {
                let inode = self.compose_inode(vdi);
                let range = offset as usize..offset as usize + len as usize;
                Ok(ClientReply::Data(Bytes::copy_from_slice(&inode[range])))
            }
            NativeOp::ReadFlat { offset, len } => {
                let mut inode = self.compose_inode(vdi);
                inode[HEADER_BYTES..TABLE_END]
                    .chunks_exact_mut(4)
                    .for_each(|entry| entry.copy_from_slice(&vdi.vid.0.to_le_bytes()));
                let range = offset as usize..offset as usize + len as usize;
                Ok(ClientReply::Data(Bytes::copy_from_slice(&inode[range])))
            }
            NativeOp::Write { offset, data } if offset as usize >= HEADER_BYTES => {
                if offset as usize + data.len() > TABLE_END {
                    return Err(ClientError::OutOfRange);
                }
                let first = (offset as usize - HEADER_BYTES) / 4;
                for (i, entry) in data.chunks_exact(4).enumerate() {
                    let owner = Vid(u32::from_le_bytes(entry.try_into().unwrap()));
                    self.set_entry(vdi.vid, (first + i) as u32, owner);
                }
                Ok(ClientReply::Done)
            }
            NativeOp::Write { data, .. } => {
                let header = InodeHeader::decode(&data).ok_or(ClientError::InvalidParameters)?;
                self.vdis.get_mut(&vdi.vid).unwrap().size = header.vdi_size;
                Ok(ClientReply::Done)
            }
            _ => Err(ClientError::InvalidParameters),
        }
    }

    fn set_entry(&mut self, vid: Vid, index: u32, owner: Vid) {
        let table = self.tables.get_mut(&vid).unwrap();
        let old = if owner.0 == 0 { table.remove(&index) } else { table.insert(index, owner) };
        if old == Some(vid) && owner != vid {
            self.objects.remove(&Oid::data(vid, index));
        }
    }

    /// Bytes that follow from their offset, so that a test can tell them apart.
    fn volume(&mut self, vid: Vid, op: VolumeOp) -> ClientResult {
        let vdi = self.vdis.get_mut(&vid).ok_or(ClientError::NoVdi)?;
        match op {
            VolumeOp::Read { offset, len } if offset + u64::from(len) > vdi.size => {
                Err(ClientError::OutOfRange)
            }
            VolumeOp::Read { offset, len } => {
                Ok(ClientReply::Data((0..len).map(|i| (offset + u64::from(i)) as u8).collect()))
            }
            VolumeOp::Resize { size } => {
                vdi.size = size;
                Ok(ClientReply::Done)
            }
            _ => Ok(ClientReply::Done),
        }
    }
}
