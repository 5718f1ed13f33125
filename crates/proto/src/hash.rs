//! FNV-1a and the self-mixing variants that Sheepdog derives ids from.
//!
//! Source: spec section 4.2 of the wire protocol. Used for ids only, never for data.

use crate::Vid;

const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x100_0000_01b3;

/// FNV-1a, 64 bit, continued from `state`.
pub fn fnv1a_from(bytes: &[u8], state: u64) -> u64 {
    bytes.iter().fold(state, |h, b| (h ^ u64::from(*b)).wrapping_mul(PRIME))
}

/// FNV-1a, 64 bit.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    fnv1a_from(bytes, BASIS)
}

/// The hash of nodes, paths and object ids: FNV-1a and one more round over its own eight bytes.
pub fn sd_hash(bytes: &[u8]) -> u64 {
    let h = fnv1a(bytes);
    fnv1a_from(&h.to_le_bytes(), h)
}

/// The next hash in a chain of virtual nodes.
pub fn sd_hash_next(h: u64) -> u64 {
    fnv1a_from(&h.to_le_bytes(), h)
}

/// Where the search for a free vid starts for this name. Never zero, which is no vid.
pub fn vid_of_name(name: &[u8]) -> Vid {
    let h = (fnv1a(name) & 0xff_ffff) as u32;
    Vid(if h == 0 { 1 } else { h })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_match_the_vectors_of_the_specification() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
        for (name, vid) in [
            ("alice", 0xa03907),
            ("bob", 0x4a0a54),
            ("test", 0x7c2b25),
            ("vm-0", 0x710359),
            ("vm-13859", 0x64283b),
            ("vm-46484", 0x64283b),
            ("test0", 0xfd34af),
            ("test4", 0xfd2de3),
        ] {
            assert_eq!(vid_of_name(name.as_bytes()), Vid(vid), "{name}");
        }
        for (oid, hash) in [
            (0u64, 0xcb72_0bf5_8a2c_29ecu64),
            (1, 0x695a_2707_0a16_e038),
            (0x80a0_3907_0000_0000, 0xc2b5_1c71_daf3_2a79),
            (0x00a0_3907_0000_0003, 0xa3b3_1ff6_6c57_f750),
        ] {
            assert_eq!(sd_hash(&oid.to_le_bytes()), hash, "{oid:x}");
        }
    }

    #[test]
    fn a_chain_of_vnodes_matches_the_worked_example() {
        let mut key = [0u8; 18];
        key[12..16].copy_from_slice(&[192, 168, 0, 1]);
        key[16..].copy_from_slice(&7000u16.to_le_bytes());
        let h = sd_hash(&key);
        assert_eq!(h, 0xdfe7_d4db_d241_071a);
        assert_eq!(sd_hash_next(h), 0x88ed_c3bc_12c6_5dfb);
        assert_eq!(sd_hash_next(sd_hash_next(h)), 0x3a5c_7fda_9ee8_3f87);
    }
}
