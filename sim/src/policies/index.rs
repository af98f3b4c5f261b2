//! Which server holds which chunks, as far as a proxy can guess: exact, without a limit of memory.
//!
//! Each server has a clock that counts the tokens inserted there. A chunk is believed to be held
//! while fewer tokens than fit have been inserted since it was touched: an LRU by virtual time.

use crate::map::Map;

/// Tokens of one tick of a stamp.
const TICK: u64 = 16;

#[derive(Debug, Default)]
struct Held {
    /// The stamp of each chunk.
    stamps: Map<u64>,
    /// Tokens inserted so far.
    inserted: u64,
    /// How many are believed to fit.
    capacity: u64,
}

impl Held {
    const fn is_valid(&self, stamp: u64) -> bool {
        self.inserted - stamp * TICK < self.capacity
    }
}

/// One proxy's index.
#[derive(Debug, Default)]
pub(super) struct Index {
    servers: Vec<Held>,
}

impl Index {
    pub(super) fn new(servers: usize, capacity: u64) -> Self {
        let held = |_| Held { capacity, ..Held::default() };
        Self { servers: (0..servers).map(held).collect() }
    }

    /// Leading chunks that a server is believed to hold.
    pub(super) fn matched(&self, server: usize, chunks: &[u64]) -> usize {
        let held = &self.servers[server];
        let valid = |chunk| held.stamps.get(chunk).is_some_and(|stamp| held.is_valid(*stamp));
        chunks.iter().take_while(|chunk| valid(*chunk)).count()
    }

    /// A server gets to hold these chunks, which brings so many tokens more. All of a prompt are
    /// stamped alike, so a chunk is never believed to be held longer than those before it.
    pub(super) fn insert(&mut self, server: usize, chunks: &[u64], tokens: u64) {
        let held = &mut self.servers[server];
        held.inserted += tokens;
        let stamp = held.inserted / TICK;
        for &chunk in chunks {
            held.stamps.insert(chunk, stamp);
        }
        // Twice what can be valid at 128 tokens a chunk.
        if held.stamps.len() as u64 > 1_024 + held.capacity / 64 {
            let (inserted, capacity) = (held.inserted, held.capacity);
            held.stamps.retain(|_, stamp| inserted - *stamp * TICK < capacity);
        }
    }

    /// How many tokens fit, as far as is known.
    pub(super) fn capacity(&self, server: usize) -> u64 {
        self.servers[server].capacity
    }

    pub(super) fn set_capacity(&mut self, server: usize, capacity: u64) {
        self.servers[server].capacity = capacity;
    }

    /// A server holds nothing.
    pub(super) fn wipe(&mut self, server: usize) {
        self.servers[server].stamps.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_held_until_as_much_came_as_fits() {
        let mut index = Index::new(2, 1_000);
        index.insert(0, &[1, 2, 3], 384);
        assert_eq!((index.matched(0, &[1, 2, 4, 3]), index.matched(1, &[1])), (2, 0));
        index.insert(0, &[5, 6, 7, 8], 512);
        assert_eq!(index.matched(0, &[1, 2, 3]), 3);
        // Touched, at no cost of room.
        index.insert(0, &[1, 2], 0);
        index.insert(0, &[9, 10, 11, 12], 512);
        assert_eq!((index.matched(0, &[1, 2, 3]), index.matched(0, &[5])), (2, 1));
        index.set_capacity(0, 100);
        assert_eq!((index.capacity(0), index.matched(0, &[1])), (100, 0));
        index.set_capacity(0, 1_000);
        index.wipe(0);
        assert_eq!(index.matched(0, &[1]), 0);
    }

    #[test]
    fn what_is_no_longer_valid_is_dropped() {
        let mut index = Index::new(1, 1_280);
        for chunk in 0..10_000 {
            index.insert(0, &[chunk], 128);
        }
        assert!(index.servers[0].stamps.len() < 1_100);
        assert_eq!(index.matched(0, &[9_999]), 1);
    }
}
