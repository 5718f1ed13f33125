//! A sheep of memory: VDIs as sparse maps of blocks, behind the same `Service` as the real one.
//!
//! Shared by the tests and by the example `memory_nbd`.
#![allow(dead_code)]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use front::Service;
use proto::client::{
    ChangedExtent, ClientError, ClientOp, ClientReply, ClientResult, Extent, Selector, VdiInfo, VdiOp,
    VolumeOp,
};
use proto::{CopyPolicy, Vid};
use tokio::sync::{Notify, Semaphore, watch};

const BLOCK: u64 = 4096;

#[derive(Clone)]
pub struct Memory(Rc<Shared>);

pub struct Shared {
    vdis: RefCell<Vec<Vdi>>,
    /// Requests carried out, in order; not kept by the example.
    pub log: RefCell<Option<Vec<ClientOp>>>,
    /// What the next volume request is answered instead of being carried out.
    pub fail: RefCell<Option<ClientError>>,
    /// The same for the next request about VDIs.
    pub fail_vdi: RefCell<Option<ClientError>>,
    /// Answers to volume requests wait for a permit while this is set.
    pub gate: RefCell<Option<Rc<Semaphore>>>,
    /// Writes at these offsets are not carried out before they are taken out of here and `released` is rung.
    pub held: RefCell<BTreeSet<u64>>,
    pub released: Notify,
    /// How many of them wait.
    pub waiting: Cell<u64>,
    changes: watch::Sender<u64>,
    /// `Open` less `Close`.
    pub open: Cell<i64>,
    /// Payloads of writes at whole blocks that did not start at a block of memory.
    pub misaligned: Cell<u32>,
    /// Clients that flush are answered early.
    pub write_back: Cell<bool>,
}

struct Vdi {
    info: VdiInfo,
    blocks: BTreeMap<u64, Box<[u8]>>,
}

impl Default for Memory {
    fn default() -> Self {
        Memory(Rc::new(Shared {
            vdis: RefCell::default(),
            log: RefCell::new(None),
            fail: RefCell::default(),
            fail_vdi: RefCell::default(),
            gate: RefCell::default(),
            held: RefCell::default(),
            released: Notify::new(),
            waiting: Cell::default(),
            changes: watch::Sender::new(0),
            open: Cell::default(),
            misaligned: Cell::default(),
            write_back: Cell::default(),
        }))
    }
}

impl std::ops::Deref for Memory {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Memory {
    pub fn with_vdi(self, name: &str, size: u64) -> Self {
        self.add(name, "", size, 0);
        self
    }

    pub fn with_snapshot(self, name: &str, tag: &str, id: u32, size: u64) -> Self {
        self.add(name, tag, size, id);
        self
    }

    pub fn logged(self) -> Self {
        *self.log.borrow_mut() = Some(Vec::new());
        self
    }

    pub fn resize(&self, name: &str, size: u64) {
        let mut vdis = self.vdis.borrow_mut();
        let found = vdis.iter_mut().find(|vdi| vdi.info.name == name.as_bytes() && vdi.info.snap_ctime == 0);
        found.unwrap().info.size = size;
        self.changes.send_modify(|count| *count += 1);
    }

    async fn wait_if_held(&self, op: &ClientOp) {
        let ClientOp::Volume {
            op: VolumeOp::Write { offset, .. } | VolumeOp::WriteBack { offset, .. }, ..
        } = op
        else {
            return;
        };
        self.waiting.set(self.waiting.get() + 1);
        loop {
            let released = self.released.notified();
            if !self.held.borrow().contains(offset) {
                break;
            }
            released.await;
        }
        self.waiting.set(self.waiting.get() - 1);
    }

    fn add(&self, name: &str, tag: &str, size: u64, snap_id: u32) {
        let vid = Vid(self.vdis.borrow().len() as u32 + 1);
        let info = VdiInfo {
            vid,
            name: name.into(),
            tag: tag.into(),
            size,
            policy: CopyPolicy::Replicated { copies: 3 },
            block_size_shift: 22,
            snap_id,
            create_time: 1 << 32,
            snap_ctime: u64::from(snap_id) << 32,
            vm_state_size: 0,
            vm_clock_nsec: 0,
            parent: Vid(0),
            owner: None,
            locked_by: Vec::new(),
        };
        self.vdis.borrow_mut().push(Vdi { info, blocks: BTreeMap::new() });
    }

    /// Content of a VDI, without the protocol.
    pub fn read(&self, vid: u32, offset: u64, len: usize) -> Vec<u8> {
        let mut vdis = self.vdis.borrow_mut();
        vdis[vid as usize - 1].read(offset, len).to_vec()
    }

    pub fn write(&self, vid: u32, offset: u64, data: &[u8]) {
        self.vdis.borrow_mut()[vid as usize - 1].write(offset, data);
    }

    fn carry_out(&self, op: ClientOp) -> ClientResult {
        if let Some(log) = self.log.borrow_mut().as_mut() {
            log.push(op.clone());
        }
        match op {
            ClientOp::Vdi(op) => match self.fail_vdi.borrow_mut().take() {
                Some(error) => Err(error),
                None => self.vdi(op),
            },
            ClientOp::Volume { vid, op, .. } => {
                if let Some(error) = self.fail.borrow_mut().take() {
                    return Err(error);
                }
                if let VolumeOp::Write { offset, data } | VolumeOp::WriteBack { offset, data } = &op {
                    let off_block = (data.as_ptr() as u64).wrapping_sub(*offset) % BLOCK != 0;
                    self.misaligned.set(self.misaligned.get() + u32::from(off_block));
                }
                if let VolumeOp::Changes { since, offset, len } = op {
                    return self.changes(vid, since, offset, len);
                }
                let mut vdis = self.vdis.borrow_mut();
                vdis.get_mut(vid.0 as usize - 1).ok_or(ClientError::NoVdi)?.volume(op)
            }
            _ => Err(ClientError::Unsupported("in memory".into())),
        }
    }

    /// Block by block, at most 100 extents: a prefix.
    fn changes(&self, vid: Vid, since: Vid, offset: u64, len: u64) -> ClientResult {
        let vdis = self.vdis.borrow();
        let get = |vid: Vid| vdis.get(vid.0 as usize - 1).ok_or(ClientError::NoVdi);
        let (now, then) = (get(vid)?, get(since)?);
        let mut extents: Vec<ChangedExtent> = Vec::new();
        for (block, _, _, count) in pieces(offset, len as usize) {
            let changed = now.blocks.get(&block) != then.blocks.get(&block);
            let full = extents.len() == 100;
            match extents.last_mut() {
                Some(last) if last.changed == changed => last.len += count as u64,
                _ if full => break,
                _ => extents.push(ChangedExtent { len: count as u64, changed }),
            }
        }
        Ok(ClientReply::Changes(extents))
    }

    fn vdi(&self, op: VdiOp) -> ClientResult {
        let vdis = self.vdis.borrow();
        match op {
            VdiOp::Lookup { name, selector } => {
                let found = vdis.iter().find(|vdi| {
                    vdi.info.name == name
                        && match &selector {
                            Selector::Working => vdi.info.snap_ctime == 0,
                            Selector::Tag(tag) => vdi.info.snap_ctime != 0 && vdi.info.tag == *tag,
                            Selector::SnapId(id) => vdi.info.snap_ctime != 0 && vdi.info.snap_id == *id,
                            Selector::TagOrSnapId(..) => false,
                        }
                });
                found.map(|vdi| ClientReply::Vdi(vdi.info.clone())).ok_or(ClientError::NoVdi)
            }
            VdiOp::List => Ok(ClientReply::Vdis(vdis.iter().map(|vdi| vdi.info.clone()).collect())),
            VdiOp::Open { .. } => {
                self.open.set(self.open.get() + 1);
                Ok(ClientReply::Done)
            }
            VdiOp::Close { .. } => {
                self.open.set(self.open.get() - 1);
                Ok(ClientReply::Done)
            }
            _ => Err(ClientError::Unsupported("in memory".into())),
        }
    }
}

impl Service for Memory {
    fn call(&self, op: ClientOp) -> impl Future<Output = ClientResult> + 'static {
        let memory = self.clone();
        async move {
            let gate = match op {
                ClientOp::Volume { .. } => memory.gate.borrow().clone(),
                _ => None,
            };
            if let Some(gate) = gate {
                gate.acquire().await.unwrap().forget();
            }
            memory.wait_if_held(&op).await;
            memory.carry_out(op)
        }
    }

    fn is_write_back(&self) -> bool {
        self.write_back.get()
    }

    fn view_changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.changes.subscribe())
    }
}

impl Vdi {
    fn volume(&mut self, op: VolumeOp) -> ClientResult {
        let (offset, len) = match &op {
            VolumeOp::Read { offset, len } => (*offset, u64::from(*len)),
            VolumeOp::Write { offset, data } | VolumeOp::WriteBack { offset, data } => {
                (*offset, data.len() as u64)
            }
            VolumeOp::Discard { offset, len }
            | VolumeOp::WriteZeroes { offset, len, .. }
            | VolumeOp::BlockStatus { offset, len } => (*offset, *len),
            VolumeOp::Flush | VolumeOp::Resize { .. } | VolumeOp::Changes { .. } => (0, 0),
        };
        if offset.checked_add(len).is_none_or(|end| end > self.info.size) {
            return Err(ClientError::OutOfRange);
        }
        match op {
            VolumeOp::Read { offset, len } => Ok(ClientReply::Data(self.read(offset, len as usize))),
            VolumeOp::Write { offset, data } | VolumeOp::WriteBack { offset, data } => {
                self.write(offset, &data);
                Ok(ClientReply::Done)
            }
            VolumeOp::Discard { offset, len }
            | VolumeOp::WriteZeroes { offset, len, keep_allocated: false } => {
                self.zero(offset, len);
                Ok(ClientReply::Done)
            }
            VolumeOp::WriteZeroes { offset, len, keep_allocated: true } => {
                self.write(offset, &vec![0; len as usize]);
                Ok(ClientReply::Done)
            }
            VolumeOp::Flush => Ok(ClientReply::Done),
            VolumeOp::BlockStatus { offset, len } => Ok(ClientReply::Extents(self.extents(offset, len))),
            VolumeOp::Resize { .. } | VolumeOp::Changes { .. } => {
                Err(ClientError::Unsupported("in memory".into()))
            }
        }
    }

    fn read(&mut self, offset: u64, len: usize) -> Bytes {
        let mut data = BytesMut::zeroed(len);
        for (block, at, from, count) in pieces(offset, len) {
            if let Some(content) = self.blocks.get(&block) {
                data[at..at + count].copy_from_slice(&content[from..from + count]);
            }
        }
        data.freeze()
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (block, at, from, count) in pieces(offset, data.len()) {
            let content = self.blocks.entry(block).or_insert_with(|| vec![0; BLOCK as usize].into());
            content[from..from + count].copy_from_slice(&data[at..at + count]);
        }
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let (first, end) = (offset.div_ceil(BLOCK), (offset + len) / BLOCK);
        if first >= end {
            return self.write(offset, &vec![0; len as usize]);
        }
        self.write(offset, &vec![0; (first * BLOCK - offset) as usize]);
        self.write(end * BLOCK, &vec![0; (offset + len - end * BLOCK) as usize]);
        let mut after = self.blocks.split_off(&first);
        self.blocks.append(&mut after.split_off(&end));
    }

    /// One extent per run, at most 100: a prefix.
    fn extents(&self, offset: u64, len: u64) -> Vec<Extent> {
        let end = offset + len;
        let mut extents = Vec::new();
        let mut at = offset;
        for block in self.blocks.range(offset / BLOCK..end.div_ceil(BLOCK)).map(|(block, _)| *block) {
            let start = (block * BLOCK).max(at);
            if start > at {
                extents.push(Extent { len: start - at, hole: true });
            }
            let stop = ((block + 1) * BLOCK).min(end);
            extents.push(Extent { len: stop - start, hole: false });
            at = stop;
            if extents.len() >= 100 {
                return extents;
            }
        }
        if at < end {
            extents.push(Extent { len: end - at, hole: true });
        }
        extents
    }
}

/// Cuts a range at blocks: block, place in the range, place in the block, bytes.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let position = offset + at as u64;
        let from = (position % BLOCK) as usize;
        let count = (BLOCK as usize - from).min(len - at);
        let piece = (position / BLOCK, at, from, count);
        at += count;
        (count > 0).then_some(piece)
    })
}
