//! Hashes and weighted rendezvous scores, in integers only.
//!
//! A candidate of weight `w` draws `-log2(u) / w` from a uniform `u` that depends on the PG and the candidate
//! alone; the smallest draw wins. That is an exponential race: each candidate wins with probability
//! proportional to its weight, and a candidate that comes or goes changes only the PGs that it wins.
//! Logarithms come from a table computed in integers, because floating-point libraries differ.

use proto::{Lineage, NodeId, ZoneId};

/// Steps of the logarithm table between two powers of two. With linear interpolation the error stays below
/// 2^-17, far under what a weight's effect on a score could show.
const LOG_STEPS: usize = 128;
/// Fraction bits of a logarithm.
const LOG_FRACTION_BITS: u32 = 32;

/// `log2(1 + i / LOG_STEPS)` for every step, and 1 at the end.
static LOG_TABLE: [u64; LOG_STEPS + 1] = log_table();

const fn log_table() -> [u64; LOG_STEPS + 1] {
    let mut table = [0; LOG_STEPS + 1];
    let mut i = 0;
    while i < LOG_STEPS {
        // Squaring a number doubles its logarithm: each squaring yields one binary digit.
        let mut mantissa: u128 = ((LOG_STEPS + i) as u128) << 55;
        let mut digits = 0;
        let mut bit = 0;
        while bit < LOG_FRACTION_BITS {
            mantissa = (mantissa * mantissa) >> 62;
            digits <<= 1;
            if mantissa >= 1 << 63 {
                mantissa >>= 1;
                digits |= 1;
            }
            bit += 1;
        }
        table[i] = digits;
        i += 1;
    }
    table[LOG_STEPS] = 1 << LOG_FRACTION_BITS;
    table
}

/// A bijection of 64-bit words whose output bits all depend on all input bits (splitmix64's finalizer).
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What a zone's draws are made of.
pub(crate) fn zone_key(zone: ZoneId, pool_seed: u64) -> u64 {
    mix(mix(u64::from(zone.0) ^ 0x7a6f_6e65) ^ pool_seed)
}

/// What a node's draws are made of.
pub(crate) fn node_key(id: NodeId, pool_seed: u64) -> u64 {
    let high = u64::from_le_bytes(id.addr[..8].try_into().expect("eight bytes"));
    let low = u64::from_le_bytes(id.addr[8..].try_into().expect("eight bytes"));
    mix(mix(mix(high ^ 0x6e6f_6465) ^ low) ^ mix(u64::from(id.port)) ^ pool_seed)
}

/// The draw of a candidate for a PG: the smaller the better. `weight` is at least 1.
pub(crate) fn draw(key: u64, pg: u32, weight: u32) -> u64 {
    debug_assert!(weight > 0);
    let uniform = mix(key ^ (u64::from(pg) << 1)) | 1;
    // At most 64 << 32, hence 38 bits: 24 more fit and keep the quotient fine for large weights.
    (negative_log2(uniform) << 24) / u64::from(weight)
}

/// `64 - log2(x)` with 32 fraction bits, for `x >= 1`.
fn negative_log2(x: u64) -> u64 {
    let exponent = u64::from(x.ilog2());
    // The bits after the leading one, as a fraction of 2^64.
    let fraction = if exponent == 0 { 0 } else { x << (64 - exponent) };
    let step = (fraction >> 57) as usize;
    let within = (fraction << 7) >> 32;
    let (low, high) = (LOG_TABLE[step], LOG_TABLE[step + 1]);
    let log = low + (((high - low) * within) >> 32);
    (64 << LOG_FRACTION_BITS) - (exponent << LOG_FRACTION_BITS) - log
}

/// The PG of an object, by its lineage and index; an inode's index is `u64::MAX`.
///
/// Frozen: data already stored is found by it.
pub fn pg_of(lineage: Lineage, index: u64, pg_count: u32) -> u32 {
    let hash = mix(mix(u64::from(lineage.0) ^ 0x7067) ^ index);
    ((u128::from(hash) * u128::from(pg_count)) >> 64) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_match_floating_point() {
        for x in (0..200_000u64).map(mix).chain([1, 2, 3, u64::MAX, 1 << 63, (1 << 63) - 1]) {
            let x = x.max(1);
            let got = negative_log2(x) as f64 / (1u64 << 32) as f64;
            let want = 64.0 - (x as f64).log2();
            assert!((got - want).abs() < 1.0 / f64::from(1 << 16), "{x}: expected {want}, got {got}");
        }
    }

    #[test]
    fn candidates_win_in_proportion_to_their_weights() {
        let weights = [1u32, 2, 5];
        let mut wins = [0u32; 3];
        for pg in 0..80_000 {
            let best = (0..3).min_by_key(|&i| draw(mix(i as u64), pg, weights[i] * 1000)).unwrap();
            wins[best] += 1;
        }
        for (won, expect) in wins.into_iter().zip([10_000u32, 20_000, 50_000]) {
            assert!(won.abs_diff(expect) < expect / 30, "expected about {expect}, got {won}");
        }
    }

    #[test]
    fn objects_spread_over_pgs_and_their_places_are_frozen() {
        let mut load = [0u32; 64];
        for index in 0..64_000 {
            load[pg_of(Lineage(0x7c2b25), index, 64) as usize] += 1;
        }
        assert!(load.iter().all(|&n| (850..1150).contains(&n)), "{load:?}");
        let places: Vec<u32> = [0, 1, 2, u64::MAX].map(|index| pg_of(Lineage(0x7c2b25), index, 1024)).into();
        assert_eq!(places, FROZEN_PLACES);
    }

    const FROZEN_PLACES: [u32; 4] = [666, 475, 729, 958];
}
