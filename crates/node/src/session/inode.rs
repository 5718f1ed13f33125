//! The inode as old clients read and write it: a header from the view, a table from the session.

use bytes::{Bytes, BytesMut};
use proto::client::{ClientError, NativeOp};
use proto::inode::{HEADER_BYTES, INODE_BYTES, TABLE_END, TABLE_ENTRIES, table_offset};
use volume::{Piece, block_of_entry, plan_table_write};

use super::Session;
use super::task::Kind;
use crate::context::Context;

/// Head of the B-tree that old clients expect where the table begins in the inode of a hypervolume: magic, depth 1, no
/// entries. `dog` of the original reads that far when it lists VDIs.
const ROOT_NODE: [u8; 8] = [0x74, 0x62, 1, 0, 0, 0, 0, 0];

/// Does it ask for more of a hypervolume's inode than we keep in the form that old clients know?
fn reaches_the_table(op: &NativeOp) -> bool {
    match op {
        NativeOp::Read { offset, len } | NativeOp::ReadFlat { offset, len } => {
            u64::from(*offset) + u64::from(*len) > (HEADER_BYTES + ROOT_NODE.len()) as u64
        }
        NativeOp::Write { offset, data } => u64::from(*offset) + data.len() as u64 > HEADER_BYTES as u64,
        _ => false,
    }
}

impl Session {
    pub(super) fn plan_inode(&self, ctx: &Context, op: &NativeOp) -> Result<Vec<(u32, Kind)>, ClientError> {
        if self.is_hyper(ctx) && reaches_the_table(op) {
            return Err(ClientError::Unsupported(
                "block tables of more than 2^20 objects by old clients".into(),
            ));
        }
        match op {
            NativeOp::Read { offset, len } | NativeOp::ReadFlat { offset, len } => {
                if u64::from(*offset) + u64::from(*len) > INODE_BYTES as u64 {
                    return Err(ClientError::InvalidParameters);
                }
                let flat = matches!(op, NativeOp::ReadFlat { .. });
                Ok(vec![(0, Kind::ReadInode { offset: *offset, len: *len, flat })])
            }
            // The header's part of a write is the view's business and was dealt with before it came here.
            NativeOp::Write { offset, data } => {
                if u64::from(*offset) + data.len() as u64 > INODE_BYTES as u64 {
                    return Err(ClientError::InvalidParameters);
                }
                let mut tasks = Vec::new();
                for change in plan_table_write(u64::from(*offset), data) {
                    // The objects that a client made before the snapshot were entered when they were made.
                    if self.frozen {
                        if change.owner.0 == 0 {
                            return Err(ClientError::ReadOnly);
                        }
                        continue;
                    }
                    let whole = Piece { index: change.index, offset: 0, len: 1 << self.shift, at: 0 };
                    match change.owner {
                        owner if owner.0 == 0 => {
                            tasks.push((change.index, Kind::Zero { piece: whole, whole: true }))
                        }
                        owner if owner == self.vid => tasks.push((change.index, Kind::Claimed)),
                        // An entry of an ancestor, repeated from the client's cache, changes nothing.
                        _ => {}
                    }
                }
                Ok(tasks)
            }
            _ => Err(ClientError::InvalidParameters),
        }
    }

    fn is_hyper(&self, ctx: &Context) -> bool {
        self.object_count(ctx) > TABLE_ENTRIES.into()
    }

    /// `flat`: whatever the table says, it is shown as if this VDI owned every object.
    pub(super) fn compose_inode(&self, ctx: &Context, offset: u32, len: u32, flat: bool) -> Bytes {
        let (start, end) = (offset as usize, offset as usize + len as usize);
        let mut out = BytesMut::zeroed(len as usize);
        if start < HEADER_BYTES
            && let Some(vdi) = ctx.view.vdi_or_remains(self.vid)
        {
            let header = vdi.header(self.vid).encode();
            let to = end.min(HEADER_BYTES);
            out[..to - start].copy_from_slice(&header[start..to]);
        }
        let (from, to) = (start.max(HEADER_BYTES), end.min(TABLE_END));
        if self.is_hyper(ctx) {
            // `plan_inode` lets no more than this be read.
            if from < to {
                out[from - start..to - start]
                    .copy_from_slice(&ROOT_NODE[from - HEADER_BYTES..to - HEADER_BYTES]);
            }
            return out.freeze();
        }
        if flat {
            if from < to {
                let entries = self.vid.0.to_le_bytes().into_iter().cycle().skip((from - HEADER_BYTES) % 4);
                out[from - start..to - start].iter_mut().zip(entries).for_each(|(to, byte)| *to = byte);
            }
            return out.freeze();
        }
        if from < to {
            let entry = |byte: usize| ((byte - HEADER_BYTES) / 4) as u32;
            for index in entry(from)..=entry(to - 1) {
                let owner = self.table.entry(index).unwrap_or_default().owner.0.to_le_bytes();
                let at = table_offset(index);
                let shown = at.max(from)..(at + 4).min(to);
                out[shown.start - start..shown.end - start]
                    .copy_from_slice(&owner[shown.start - at..shown.end - at]);
            }
        }
        out.freeze()
    }

    /// The blocks of the table that a range of the inode shows.
    pub(super) fn inode_blocks(&self, ctx: &Context, offset: u32, len: u32) -> (u32, u32) {
        let start = (offset as usize).max(HEADER_BYTES);
        let end = (offset as usize + len as usize).min(TABLE_END);
        if start >= end || self.is_hyper(ctx) {
            return (0, 0);
        }
        let entry = |byte: usize| ((byte - HEADER_BYTES) / 4) as u32;
        let stop = (block_of_entry(entry(end - 1)) + 1).min(self.table_end(ctx));
        (block_of_entry(entry(start)).min(stop), stop)
    }
}
