//! What the fakes answer to ASK: snapshots, clones, rollback, attributes, and which ranges hold data.
//!
//! A snapshot is a copy here: tables and bytes of a few VDIs are small.

use proto::Vid;
use proto::client::{
    AttributeOp, ChangedExtent, ClientError, ClientOp, ClientReply, ClientResult, ClusterOp, Extent,
    NodeAccess, Table, VdiInfo, VdiOp, VolumeOp,
};

use super::answers::State;

/// As the clock of the fakes says.
const SNAP_TIME: u64 = 1_795_346_574 << 32;

impl State {
    pub(super) fn ask(&mut self, index: usize, op: ClientOp) -> ClientResult {
        match op {
            ClientOp::Vdi(op) => self.ask_vdi(op),
            ClientOp::Cluster(ClusterOp::Access) => Ok(ClientReply::Access(self.access(index))),
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

    /// Clients come through the first sheep only.
    fn access(&self, index: usize) -> NodeAccess {
        NodeAccess {
            nbd_socket: self.nbd_socket.clone(),
            nbd_address: None,
            guests: if index == 0 { self.guests.clone() } else { vec![] },
        }
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
                Ok(ClientReply::Vdi(self.stand_on(base, &name)))
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

    fn snapshot(&mut self, vids: &[Vid], tag: &[u8]) -> ClientResult {
        for vid in vids {
            let name = &self.vdis[vid].name;
            let has_tag = |info: &VdiInfo| info.name == *name && info.snap_ctime != 0 && info.tag == tag;
            if !tag.is_empty() && self.vdis.values().any(has_tag) {
                return Err(ClientError::TagExists);
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
