//! The changes that some replica may hold and another may not.
//!
//! Each is remembered in memory and in the journal record that logged it last. That something is settled is a fact about the cluster,
//! whatever becomes of the record that told it, so it takes effect at once.

use std::collections::BTreeMap;

use proto::object::{Origin, Stamp, Unsettled};
use proto::{Seq, Vid};

use crate::record::TagKey;

struct Tagged {
    origin: Origin,
    logged_in: u64,
}

#[derive(Default)]
pub struct Tags {
    by_key: BTreeMap<TagKey, Tagged>,
}

impl Tags {
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Remembers a change; returns the record that had logged it before.
    pub fn insert(&mut self, key: TagKey, origin: Origin, logged_in: u64) -> Option<u64> {
        self.by_key.insert(key, Tagged { origin, logged_in }).map(|old| old.logged_in)
    }

    /// Forgets everything of `vid` up to `stamp`; `forgotten` hears of the records that had logged it.
    ///
    /// Nothing at sequence number 0: the session has not sealed yet, and what older generations left is still needed.
    pub fn settle(&mut self, vid: Vid, stamp: Stamp, mut forgotten: impl FnMut(u64)) {
        if stamp.seq == Seq(0) {
            return;
        }
        let lowest = TagKey { vid, stamp: Stamp::default(), oid: proto::Oid(0), blocks: None };
        while let Some((&key, tagged)) = self.by_key.range(lowest..).next()
            && key.vid == vid
            && key.stamp <= stamp
        {
            forgotten(tagged.logged_in);
            self.by_key.remove(&key);
        }
    }

    /// Forgets one change; returns the record that had logged it.
    pub fn remove(&mut self, key: &TagKey) -> Option<u64> {
        self.by_key.remove(key).map(|tagged| tagged.logged_in)
    }

    /// The change, if it is still unsettled and `logged_in` is where it was logged last.
    pub fn origin_if_logged_in(&self, key: &TagKey, logged_in: u64) -> Option<Origin> {
        self.by_key.get(key).filter(|t| t.logged_in == logged_in).map(|t| t.origin)
    }

    pub fn logged_in(&self) -> impl Iterator<Item = u64> + '_ {
        self.by_key.values().map(|t| t.logged_in)
    }

    pub fn unsettled(&self) -> Vec<Unsettled> {
        self.by_key
            .iter()
            .map(|(key, tagged)| Unsettled {
                vid: key.vid,
                stamp: key.stamp,
                origin: tagged.origin,
                oid: key.oid,
                blocks: key.blocks,
            })
            .collect()
    }
}
