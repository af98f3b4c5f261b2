//! Keys: where in the table a chunk is looked for.
//!
//! Owns the secret. A chunk's hash is pinned, so that proxies agree on it; a client can therefore
//! choose prompts whose hashes are whatever it likes. What those hashes become here it cannot know,
//! and so cannot make many of them meet in one place. Does not know the table.

use crate::rng::{Rng, mix};

/// The inverses of the odd factors in [`mix`], modulo 2^64.
const SECOND_INVERSE: u64 = 0x3196_42b2_d24d_8ec3;
const FIRST_INVERSE: u64 = 0x96de_1b17_3f11_9089;

/// A permutation of the chunk hashes for each group of backends, by two secrets.
///
/// Being permutations, they lose nothing: a key and its group give the chunk back, so that the
/// table need not keep it, and two chunks are never taken for one another.
#[derive(Debug)]
pub(super) struct Keys {
    chunks: u64,
    groups: u64,
}

impl Keys {
    pub(super) const fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        Self { chunks: rng.next_u64(), groups: rng.next_u64() }
    }

    /// What a chunk's keys in all groups have in common.
    pub(super) const fn base(&self, chunk: u64) -> u64 {
        mix(chunk ^ self.chunks)
    }

    /// The key in one group.
    pub(super) const fn key(&self, base: u64, group: u16) -> u64 {
        mix(base ^ self.group(group))
    }

    /// The chunk of a key.
    pub(super) const fn chunk(&self, key: u64, group: u16) -> u64 {
        unmix(unmix(key) ^ self.group(group)) ^ self.chunks
    }

    const fn group(&self, group: u16) -> u64 {
        self.groups.wrapping_add((group as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

/// What [`mix`] made `x` of.
const fn unmix(x: u64) -> u64 {
    let x = (x ^ (x >> 31) ^ (x >> 62)).wrapping_mul(SECOND_INVERSE);
    let x = (x ^ (x >> 27) ^ (x >> 54)).wrapping_mul(FIRST_INVERSE);
    x ^ (x >> 30) ^ (x >> 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    #[test]
    fn keys_give_their_chunk_back() {
        let mut rng = Rng::new(5);
        for _ in 0..200 {
            let (seed, chunk) = (rng.next_u64(), rng.next_u64());
            let group = u16::try_from(rng.below(512)).expect("it is below 512");
            let keys = Keys::new(seed);
            for chunk in [chunk, 0, u64::MAX, 1 << 63] {
                assert_eq!(keys.chunk(keys.key(keys.base(chunk), group), group), chunk);
            }
        }
    }

    #[test]
    fn chosen_hashes_are_spread_all_the_same() {
        // Hashes that differ in their lowest bits only, in their highest only, and by multiples
        // of what a table of this size divides by.
        let chosen = |n: u64| [n, n << 54, n.wrapping_mul(1 << 32), n.reverse_bits()];
        for seed in 0..8 {
            let keys = Keys::new(seed);
            for kind in 0..4 {
                let homes: BTreeSet<u64> =
                    (0..1_000).map(|n| keys.key(keys.base(chosen(n)[kind]), 3) >> 44).collect();
                assert!(homes.len() > 990, "{} of 1000 places", homes.len());
            }
        }
    }

    #[test]
    fn seeds_and_groups_differ() {
        let key = |seed, group| {
            let keys = Keys::new(seed);
            keys.key(keys.base(77), group)
        };
        assert_ne!(key(1, 0), key(2, 0));
        assert_ne!(key(1, 0), key(1, 1));
    }
}
