//! Descriptors in memory: what is known of the blocks of each slot.
//!
//! A descriptor says which checksum each block has, which of them are lost, and which blocks of the chunk lie not here but in a slot
//! below. It keeps what was said of a slot last, also when nobody refers to it any more: who does is counted in `tables`.

use proto::checksum::crc32c;

use crate::layout::{FULL_MASK, SLOT_BLOCKS};
use crate::record::{Below, Descriptor};
use crate::tables::bits;

pub struct Descriptors {
    store_id: u64,
    crcs: Vec<[u32; SLOT_BLOCKS as usize]>,
    /// Blocks whose content or checksum is known to be lost: they are answered with `Corrupt`.
    lost: Vec<u16>,
    below: Vec<Below>,
    /// Something was said of the slot, on its page or in a record.
    known: Vec<bool>,
}

impl Descriptors {
    pub fn empty(store_id: u64, slots: u32) -> Self {
        let slots = slots as usize;
        Descriptors {
            store_id,
            crcs: vec![[0; SLOT_BLOCKS as usize]; slots],
            lost: vec![0; slots],
            below: vec![Below::NONE; slots],
            known: vec![false; slots],
        }
    }

    /// Of a block that lies in this very slot.
    pub fn crc(&self, slot: u32, index: u32) -> u32 {
        self.crcs[slot as usize][index as usize]
    }

    pub fn lost(&self, slot: u32) -> u16 {
        self.lost[slot as usize]
    }

    pub fn below(&self, slot: u32) -> Below {
        self.below[slot as usize]
    }

    pub fn set(&mut self, new: &Descriptor) {
        let slot = new.slot as usize;
        if new.reset {
            self.crcs[slot] = [0; SLOT_BLOCKS as usize];
        }
        for (index, crc) in bits(new.mask).zip(&new.crcs) {
            self.crcs[slot][index as usize] = *crc;
        }
        (self.lost[slot], self.below[slot], self.known[slot]) = (new.lost, new.below, true);
    }

    /// A slot that is in use was described once. If nothing is left of that, its blocks are lost.
    pub fn give_up_if_unknown(&mut self, slot: u32) -> bool {
        let unknown = !self.known[slot as usize];
        if unknown {
            self.lost[slot as usize] = FULL_MASK;
        }
        unknown
    }

    pub fn encode(&self, slot: u32, out: &mut [u8]) {
        let (n, below) = (slot as usize, self.below(slot));
        out[4..8].copy_from_slice(&slot.to_le_bytes());
        out[8..16].copy_from_slice(&self.store_id.to_le_bytes());
        out[16..18].copy_from_slice(&self.lost[n].to_le_bytes());
        if !below.is_none() {
            out[18..20].copy_from_slice(&below.mask.to_le_bytes());
            out[20..24].copy_from_slice(&below.slot.to_le_bytes());
        }
        for (i, crc) in self.crcs[n].iter().enumerate() {
            out[64 + i * 4..68 + i * 4].copy_from_slice(&crc.to_le_bytes());
        }
        let crc = crc32c(&out[4..]);
        out[..4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Takes over what a page says. A rotten descriptor loses its blocks.
    pub fn load(&mut self, slot: u32, bytes: &[u8]) {
        let n = slot as usize;
        if bytes.iter().all(|b| *b == 0) {
            return;
        }
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let good = crc32c(&bytes[4..]) == u32_at(0)
            && u32_at(4) == slot
            && bytes[8..16] == self.store_id.to_le_bytes();
        if !good {
            self.lost[n] = FULL_MASK;
            return;
        }
        self.known[n] = true;
        self.lost[n] = u16_at(16);
        self.below[n] = Below { slot: u32_at(20), mask: FULL_MASK }.only(u16_at(18));
        for (i, crc) in self.crcs[n].iter_mut().enumerate() {
            *crc = u32_at(64 + i * 4);
        }
    }
}
