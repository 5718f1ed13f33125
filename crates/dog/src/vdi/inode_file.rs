//! What `dog vdi object dump-inode FILE` prints: the fields of an inode as the original laid it out.
//!
//! Header, block table and reference counts stand at fixed places (spec section 5.1). A file that ends within the table
//! or the counts is shown as far as it goes: an inode of the original is a sparse file whose end may be missing.

use std::fmt::Write;

use proto::inode::{HEADER_BYTES, INODE_BYTES, InodeHeader, TABLE_END};

use super::names::shown;

const STORE_POLICY_AT: usize = 553;
const COPIES_AT: usize = 554;
const BTREE_COUNTER_AT: usize = 568;

/// `None` for what is too short, or too long, to be an inode.
pub fn render(bytes: &[u8]) -> Option<Vec<u8>> {
    if !(HEADER_BYTES..=INODE_BYTES).contains(&bytes.len()) {
        return None;
    }
    let header = InodeHeader::decode(bytes)?;
    let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let mut text = String::new();
    let mut field = |name: &str, value: String| {
        let _ = writeln!(text, "{name}: {value}");
    };
    field("name", shown(&header.name));
    field("tag", shown(&header.tag));
    field("create_time", format!("{:x}", header.create_time));
    field("snap_ctime", format!("{:x}", header.snap_ctime));
    field("vm_clock_nsec", format!("{:x}", header.vm_clock_nsec));
    field("vdi_size", header.vdi_size.to_string());
    field("vm_state_size", header.vm_state_size.to_string());
    field("copy_policy", header.policy.wire().to_string());
    field("store_policy", bytes[STORE_POLICY_AT].to_string());
    field("nr_copies", bytes[COPIES_AT].to_string());
    field("block_size_shift", header.block_size_shift.to_string());
    field("snap_id", header.snap_id.to_string());
    field("vdi_id", header.vid.to_string());
    field("parent_vdi_id", header.parent.to_string());
    field("btree_counter", u32_at(BTREE_COUNTER_AT).to_string());
    text += "data_vdi_id:\n";
    let table_end = TABLE_END.min(bytes.len());
    for (index, at) in (HEADER_BYTES..table_end / 4 * 4).step_by(4).enumerate() {
        if u32_at(at) != 0 {
            let _ = writeln!(text, "{index}: {:x}", u32_at(at));
        }
    }
    text += "gref:\n";
    for (index, at) in (TABLE_END..bytes.len() / 8 * 8).step_by(8).enumerate() {
        let owner = u32_at(HEADER_BYTES + 4 * index);
        let (generation, count) = (u32_at(at) as i32, u32_at(at + 4) as i32);
        if (owner, generation, count) != (0, 0, 0) {
            let _ = writeln!(text, "{index}: {owner:x}, {generation}, {count}");
        }
    }
    Some(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vdi::names::lossy;
    use proto::inode::table_offset;
    use proto::{CopyPolicy, Vid};

    fn sample() -> Vec<u8> {
        let header = InodeHeader {
            name: b"alice".to_vec(),
            tag: b"t".to_vec(),
            create_time: 0x6a00_0000_0000_0001,
            snap_ctime: 0,
            vm_clock_nsec: 0,
            vdi_size: 1 << 30,
            vm_state_size: 5,
            policy: CopyPolicy::Erasure { data: 4, parity: 2 },
            block_size_shift: 22,
            snap_id: 3,
            vid: Vid(0xa03907),
            parent: Vid(0xa03906),
        };
        let mut bytes = header.encode().to_vec();
        bytes.resize(INODE_BYTES, 0);
        bytes[table_offset(7)..][..4].copy_from_slice(&0xa03906u32.to_le_bytes());
        bytes[TABLE_END + 8 * 7..][..8].copy_from_slice(&[1, 0, 0, 0, 2, 0, 0, 0]);
        bytes
    }

    const HEAD: &str = "\
name: alice
tag: t
create_time: 6a00000000000001
snap_ctime: 0
vm_clock_nsec: 0
vdi_size: 1073741824
vm_state_size: 5
copy_policy: 34
store_policy: 0
nr_copies: 6
block_size_shift: 22
snap_id: 3
vdi_id: a03907
parent_vdi_id: a03906
btree_counter: 0
data_vdi_id:
";

    #[test]
    fn fields_and_entries_are_listed() {
        let text = lossy(&render(&sample()).unwrap());
        assert_eq!(text, format!("{HEAD}7: a03906\ngref:\n7: a03906, 1, 2\n"));
    }

    #[test]
    fn a_shorter_file_is_shown_as_far_as_it_goes() {
        let bytes = sample();
        for len in [table_offset(7), table_offset(7) + 3] {
            assert_eq!(lossy(&render(&bytes[..len]).unwrap()), format!("{HEAD}gref:\n"));
        }
        let text = lossy(&render(&bytes[..table_offset(8)]).unwrap());
        assert_eq!(text, format!("{HEAD}7: a03906\ngref:\n"));
        assert_eq!(render(&bytes[..HEADER_BYTES - 1]), None);
        assert_eq!(render(&[bytes, vec![0]].concat()), None);
    }
}
