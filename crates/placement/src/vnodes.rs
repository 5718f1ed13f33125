//! Vnode numbers as users see them in `dog node list`: a node's share of placement, 128 for the average.

use crate::Member;

/// The number of vnodes of each member, in the order given: `128 * space / average`, 0 for a gateway.
///
/// Single precision and ties to even, because other programs compute the same numbers so (IEEE division
/// and multiplication by a power of two give the same result everywhere). Shown to users only.
pub fn vnodes(members: &[Member]) -> Vec<u16> {
    let storing = members.iter().filter(|m| m.weight > 0);
    let (count, sum) = storing.fold((0u128, 0u128), |(n, sum), m| (n + 1, sum + u128::from(m.weight)));
    if count == 0 {
        return vec![0; members.len()];
    }
    let average = (sum / count) as u64 as f32;
    // Sixteen bits are stored: a share beyond that wraps, as everybody else's does.
    members.iter().map(|m| (128.0 * (m.weight as f32 / average)).round_ties_even() as u64 as u16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{NodeId, ZoneId};

    fn check(space: &[u64], expect: &[u16]) {
        let members: Vec<Member> = space
            .iter()
            .map(|&weight| Member { id: NodeId { addr: [0; 16], port: 0 }, zone: ZoneId(0), weight })
            .collect();
        assert_eq!(vnodes(&members), expect, "{space:?}");
    }

    #[test]
    fn numbers_match_the_examples_of_the_specification() {
        const GIB: u64 = 1 << 30;
        check(&[100 * GIB, 100 * GIB, 200 * GIB], &[96, 96, 192]);
        check(&[1 << 40, 2 << 40, 4 << 40], &[55, 110, 219]);
        check(&[7 * GIB, 7 * GIB], &[128, 128]);
        check(&[7 * GIB, 0], &[128, 0]);
        check(&[0, 0], &[0, 0]);
        check(&[], &[]);
    }
}
