//! Hash maps that are the same in every run: keyed by 64-bit numbers, hashed by a fixed mix.
//!
//! Nobody chooses these keys with evil in mind, so no secret is needed. Never iterated.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use vllm_proxy_core::rng::mix;

/// A map from ids or hashes to something.
pub(crate) type Map<V> = HashMap<u64, V, BuildHasherDefault<Mixed>>;

/// Hashes one number by one mix.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mixed(u64);

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = mix(self.0 ^ number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_finds_its_own() {
        let mut map: Map<u64> = Map::default();
        for key in 0..1_000 {
            map.insert(key << 20, key);
        }
        assert!((0..1_000).all(|key| map.get(&(key << 20)) == Some(&key)));
        assert_eq!(map.get(&1), None);
    }
}
