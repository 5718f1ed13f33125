//! Blocks of snapshots in memory: what many clones read, as when all machines of an image boot at once.
//!
//! A snapshot never changes, so a block of one that was read once is what every copy that counts has, as long as this format of the cluster lasts. Nobody
//! has to be asked, and nothing to be given up when sets or owners change. Blocks of working VDIs are not kept: they are their guests' to cache.
//! Two things end that: a new format, and a recovery by force, after which an older copy may be the one that counts ([`Cache::clear`]).
//!
//! Which blocks stay is decided by [`quick_cache`] (S3-FIFO: Yang et al., SOSP 2023): one long reading of everything, as by a backup, does
//! not drive out what is read again and again.

use std::fmt;
use std::hash::{BuildHasherDefault, DefaultHasher};

use bytes::{Bytes, BytesMut};
use proto::client::CacheUse;
use proto::object::BlockRange;
use proto::{BLOCK_BYTES, Oid};
use quick_cache::UnitWeighter;
use quick_cache::unsync::{Cache as Blocks, DefaultLifecycle};

/// Longer reads are of programs that read everything once (a backup, `nbdcopy`).
const READ_BLOCKS_MAX: u32 = 64;
/// What a block takes: its content, what leads to it, and its part of what the cache remembers of blocks that it has not any more.
const BLOCK_TAKES_BYTES: u64 = BLOCK_BYTES as u64 + 256;

/// Always the same hashes: a simulated run is what its seed says.
type Hasher = BuildHasherDefault<DefaultHasher>;
type Key = (Oid, u32);

#[derive(Default)]
pub(crate) struct Cache {
    blocks: Option<Blocks<Key, Bytes, UnitWeighter, Hasher>>,
    /// Blocks at most. 0: nothing is kept.
    limit: u64,
    hits: u64,
    misses: u64,
    /// How often it was cleared.
    cleared: u64,
}

/// Until the cache is cleared, what is read from now on may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leave(u64);

impl Cache {
    pub fn new(bytes: u64) -> Cache {
        Cache { limit: bytes / BLOCK_TAKES_BYTES, ..Cache::default() }
    }

    /// All of the blocks, or nothing.
    pub fn get(&mut self, oid: Oid, blocks: BlockRange) -> Option<Bytes> {
        if self.limit == 0 || blocks.count > READ_BLOCKS_MAX {
            return None;
        }
        let found = self.blocks.as_ref().and_then(|cache| gather(cache, oid, blocks));
        match found {
            Some(_) => self.hits += u64::from(blocks.count),
            None => self.misses += u64::from(blocks.count),
        }
        found
    }

    /// Asked before these blocks of a snapshot are read: may they be kept?
    pub fn leave(&self, blocks: BlockRange) -> Option<Leave> {
        (self.limit > 0 && blocks.count <= READ_BLOCKS_MAX).then_some(Leave(self.cleared))
    }

    /// `data`: the blocks from `first` on.
    pub fn put(&mut self, leave: Leave, oid: Oid, first: u32, data: &Bytes) {
        if leave != Leave(self.cleared) {
            return;
        }
        let limit = self.limit;
        let fresh = || {
            Blocks::with(limit as usize, limit, UnitWeighter, Hasher::default(), DefaultLifecycle::default())
        };
        let cache = self.blocks.get_or_insert_with(fresh);
        for (block, content) in (first..).zip(data.chunks_exact(BLOCK_BYTES)) {
            if !cache.contains_key(&(oid, block)) {
                // A part of a long message would keep all of it in memory.
                cache.insert((oid, block), Bytes::copy_from_slice(content));
            }
        }
    }

    pub fn clear(&mut self) {
        self.cleared += 1;
        self.blocks = None;
    }

    pub fn usage(&self) -> CacheUse {
        CacheUse {
            limit_bytes: self.limit * BLOCK_TAKES_BYTES,
            used_bytes: self.blocks.as_ref().map_or(0, |cache| cache.len() as u64 * BLOCK_BYTES as u64),
            hits: self.hits,
            misses: self.misses,
        }
    }
}

fn gather(cache: &Blocks<Key, Bytes, UnitWeighter, Hasher>, oid: Oid, blocks: BlockRange) -> Option<Bytes> {
    if blocks.count == 1 {
        return cache.get(&(oid, blocks.first)).cloned();
    }
    let mut all = BytesMut::with_capacity(blocks.count as usize * BLOCK_BYTES);
    for block in blocks.first..blocks.end() as u32 {
        all.extend_from_slice(cache.get(&(oid, block))?);
    }
    Some(all.freeze())
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.usage().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::Vid;

    const OID: Oid = Oid::data(Vid(1), 0);

    fn block(fill: u32) -> Bytes {
        Bytes::from(vec![fill as u8; BLOCK_BYTES])
    }

    fn put(cache: &mut Cache, first: u32, data: &Bytes) {
        let leave = cache.leave(BlockRange::new(first, 1)).unwrap();
        cache.put(leave, OID, first, data);
    }

    #[test]
    fn blocks_are_given_together_or_not_at_all() {
        let mut cache = Cache::new(1 << 20);
        put(&mut cache, 7, &[block(7), block(8)].concat().into());
        assert_eq!(cache.get(OID, BlockRange::new(8, 1)), Some(block(8)));
        assert_eq!(cache.get(OID, BlockRange::new(7, 2)), Some([block(7), block(8)].concat().into()));
        assert_eq!(cache.get(OID, BlockRange::new(7, 3)), None);
        assert_eq!(cache.get(Oid::data(Vid(2), 0), BlockRange::new(7, 1)), None);
        assert_eq!((cache.hits, cache.misses), (3, 4));
    }

    #[test]
    fn it_stays_within_its_bound_and_keeps_what_is_read_again() {
        let limit = 64;
        let mut cache = Cache::new(limit * BLOCK_TAKES_BYTES);
        for n in 0..10_000 {
            put(&mut cache, n + 100, &block(n));
            let hot = n % 8;
            if cache.get(OID, BlockRange::new(hot, 1)).is_none() {
                put(&mut cache, hot, &block(hot));
            }
            assert!(cache.usage().used_bytes <= limit * BLOCK_BYTES as u64);
        }
        for hot in 0..8 {
            assert_eq!(cache.get(OID, BlockRange::new(hot, 1)), Some(block(hot)));
        }
        assert!(cache.misses < 100, "{cache:?}");
    }

    #[test]
    fn what_was_asked_for_before_it_was_cleared_is_not_kept() {
        let mut cache = Cache::new(1 << 20);
        let leave = cache.leave(BlockRange::new(1, 1)).unwrap();
        cache.clear();
        cache.put(leave, OID, 1, &block(1));
        assert_eq!(cache.get(OID, BlockRange::new(1, 1)), None);
    }

    #[test]
    fn without_room_nothing_is_kept() {
        let mut cache = Cache::new(0);
        assert_eq!(cache.leave(BlockRange::new(1, 1)), None);
        assert_eq!(cache.get(OID, BlockRange::new(1, 1)), None);
        assert_eq!(Cache::new(1 << 30).leave(BlockRange::new(0, READ_BLOCKS_MAX + 1)), None);
    }
}
