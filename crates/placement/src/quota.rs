//! How many copies each zone and each node should hold: shares by weight, rounded.

/// From this many units on, one that is held already is kept for its own sake: it is at most an eighth too much.
/// Below, the remainder alone decides, lest a tiny member kept several times its share.
const HELD_COUNTS_FROM: u64 = 8;

/// One competitor for units.
pub(crate) struct Claim {
    pub weight: u128,
    /// Units it has already. Rounding goes in favour of those who have, so that nothing moves for a fraction.
    pub held: u64,
    /// Breaks ties.
    pub hash: u64,
}

/// Divides `total` units among the claims by weight, none getting more than `cap`.
///
/// Every result is the exact share rounded down or up. The sum is `total`, provided that
/// `cap * claims with weight >= total`.
pub(crate) fn divide(claims: &[Claim], total: u64, cap: u64) -> Vec<u64> {
    let mut units = vec![0; claims.len()];
    let mut order: Vec<usize> = (0..claims.len()).filter(|&i| claims[i].weight > 0).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(claims[i].weight));

    // Whoever is larger than its cap gets the cap, and the others share what is left.
    let mut left = total;
    let mut weight_left: u128 = order.iter().map(|&i| claims[i].weight).sum();
    let mut uncapped = order.as_slice();
    while let [first, rest @ ..] = uncapped {
        if u128::from(left) * claims[*first].weight < u128::from(cap) * weight_left {
            break;
        }
        units[*first] = cap.min(left);
        left -= units[*first];
        weight_left -= claims[*first].weight;
        uncapped = rest;
    }

    let shared = left;
    let mut remainders = Vec::with_capacity(uncapped.len());
    for &i in uncapped {
        let exact = u128::from(shared) * claims[i].weight;
        units[i] = (exact / weight_left) as u64;
        left -= units[i];
        let keeps = units[i] >= HELD_COUNTS_FROM && claims[i].held > units[i];
        remainders.push((!keeps, std::cmp::Reverse(exact % weight_left), claims[i].hash, i));
    }
    remainders.sort_unstable();
    for &(_, _, _, i) in remainders.iter().take(left as usize) {
        units[i] += 1;
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(weights: &[u64], total: u64, cap: u64, expect: &[u64]) {
        let claims: Vec<Claim> = weights
            .iter()
            .enumerate()
            .map(|(i, &w)| Claim { weight: w.into(), held: 0, hash: i as u64 })
            .collect();
        assert_eq!(divide(&claims, total, cap), expect);
    }

    #[test]
    fn units_follow_weights_and_caps() {
        check(&[1, 1, 1], 9, 9, &[3, 3, 3]);
        check(&[1, 1, 1], 10, 9, &[4, 3, 3]);
        check(&[3, 0, 1], 8, 8, &[6, 0, 2]);
        // Larger than one copy per PG: the rest is shared by the others.
        check(&[100, 1, 1], 20, 10, &[10, 5, 5]);
        check(&[100, 60, 1, 1], 30, 10, &[10, 10, 5, 5]);
        check(&[u64::MAX, u64::MAX], 3, 2, &[2, 1]);
        check(&[5], 4, 4, &[4]);
        check(&[], 0, 4, &[]);
    }

    #[test]
    fn rounding_goes_to_whoever_holds_the_unit_already() {
        let claims: Vec<Claim> =
            [33, 33, 34].into_iter().map(|held| Claim { weight: 1, held, hash: 0 }).collect();
        assert_eq!(divide(&claims, 100, 100), [33, 33, 34]);
        let tiny = [Claim { weight: 1 << 50, held: 0, hash: 0 }, Claim { weight: 1, held: 4, hash: 1 }];
        assert_eq!(divide(&tiny, 4, 4), [4, 0]);
    }
}
