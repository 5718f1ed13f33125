//! Questions of a scrub to the owners of VDIs, or to a reader of what never changes: few at once.
//!
//! An owner may hold requests for as long as copies are missing. So a VDI is asked one question at a time, and one that was not answered
//! within a minute takes nobody's place.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::client::{ClientOp, NativeOp};
use proto::object::{BlockRange, Origin};
use proto::{Oid, RequestId, Vid};

use crate::Time;
use crate::context::Context;
use crate::session::{Inner, Request, Requester};

const AT_ONCE: usize = 4;
/// A check of 1 MiB takes far less, unless it is held.
const COUNTS_FOR: Duration = Duration::from_secs(60);
/// Requests of clients of this sheep have lower numbers.
const FIRST_ASK: u64 = 1 << 62;

#[derive(Debug, Default)]
pub(super) struct Asks {
    count: u64,
    /// Not answered, by number: whose they are, and since when.
    open: BTreeMap<u64, (Vid, Time)>,
}

impl Asks {
    /// Has blocks of an object checked and mended. `None`: it is not the VDI's turn.
    pub fn check(&mut self, ctx: &mut Context, oid: Oid, blocks: BlockRange) -> Option<u64> {
        let vid = oid.vid();
        let recent = self.open.values().filter(|(_, since)| ctx.now.since(*since) < COUNTS_FOR).count();
        if recent >= AT_ONCE || self.open.values().any(|(of, _)| *of == vid) {
            return None;
        }
        self.count += 1;
        let ask = FIRST_ASK + self.count;
        self.open.insert(ask, (vid, ctx.now));
        let request = Request {
            requester: Requester::Scrub { ask },
            // A later owner that learns of it asks this sheep, which does not wait for it.
            origin: Origin { incarnation: ctx.incarnation, request: RequestId(ask) },
            op: ClientOp::Object { oid, op: NativeOp::Check { repair: true, part: Some(blocks) } },
        };
        ctx.out.inner.push_back(Inner::Ask(request));
        Some(ask)
    }

    pub fn end(&mut self, ask: u64) {
        self.open.remove(&ask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Out;
    use crate::view::View;

    #[test]
    fn who_does_not_answer_takes_no_place_for_long_and_is_not_asked_again() {
        let (view, mut out, mut asks) = (View::default(), Out::default(), Asks::default());
        let me = proto::NodeId { addr: [0; 16], port: 7000 };
        let mut check = |asks: &mut Asks, vid: u32, seconds: u64| {
            let now = Time(seconds * 1_000_000_000);
            let mut ctx = Context { me, incarnation: Default::default(), view: &view, now, out: &mut out };
            asks.check(&mut ctx, Oid::data(Vid(vid), 0), BlockRange::new(0, 1))
        };
        let asked: Vec<Option<u64>> = (1..=5).map(|vid| check(&mut asks, vid, 1)).collect();
        assert!(asked[..4].iter().all(Option::is_some) && asked[4].is_none(), "{asked:?}");
        assert_eq!(check(&mut asks, 5, 60), None);
        let fifth = check(&mut asks, 5, 61).expect("the others have had their minute");
        assert_eq!((check(&mut asks, 1, 1000), check(&mut asks, 5, 1000)), (None, None));
        asks.end(asked[0].expect("seen above"));
        let again = check(&mut asks, 1, 1000).expect("it has answered");
        assert!(again > fifth);
        assert_eq!(out.inner.len(), 6);
    }
}
