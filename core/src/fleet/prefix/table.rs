//! Table: a sorted list with gaps, of fixed size.
//!
//! Owns the room and who must leave when there is none. Does not know what makes an entry dead or
//! stale (its caller says so) or where keys come from.
//!
//! An entry's home is its key's share of the table, so homes ascend with keys. It lies at its home
//! or, with no gap between, behind it, and entries lie in the order of their keys. Hence a search
//! ends at the first greater key, found or not, equal keys lie together, what is taken out leaves
//! no mark, and a key is also a place to go on from, whatever was put in and taken out meanwhile.

use alloc::vec;
use alloc::vec::Vec;
use core::hint::black_box;

/// That one backend held one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Spread evenly over all numbers.
    pub(super) key: u64,
    pub(super) stamp: u32,
    /// `EMPTY` where there is no entry.
    pub(super) slot: u16,
    pub(super) generation: u16,
}

const EMPTY: u16 = u16::MAX;

/// A gap. Its key is the greatest, so that a search ends there without asking whether it is one.
const GAP: Entry = Entry { key: u64::MAX, stamp: 0, slot: EMPTY, generation: 0 };

/// Room behind the last home, for what is pushed on. At the load below and eight entries to a key,
/// the longest of the clusters in a million entries has about 2,000.
const TAIL: usize = 2_048;

/// Quarters of the homes that may be taken. At three, a new key passes 12 entries in the mean, and
/// eight times as many if each key has eight; at seven eighths it would be 35.
const LOAD_QUARTERS: usize = 3;

/// The oldest among so many goes when there is no room: one of the oldest 6 % of all in the mean.
const SAMPLE: usize = 16;

/// 256 MB; more entries than that are not needed for 4,096 backends of 500,000 tokens, and it lets
/// 65,536 sweeps of 256 places see all of them.
const ENTRIES_MAX: usize = 1 << 24;

/// Where sweeps and searches for a victim go on: block after block, but far from each other.
///
/// In the order of places there would be too little behind the hand and too much before it, up to
/// clusters of half the table once it is full.
#[derive(Debug)]
struct Hand {
    at: usize,
    /// Blocks from one to the next, without a divisor in common with their number: all are seen.
    stride: usize,
    places: usize,
}

/// Places to a block: four lines of a processor's cache.
const BLOCK: usize = 16;

impl Hand {
    fn new(places: usize) -> Self {
        let blocks = places.div_ceil(BLOCK);
        // The golden section leaves gaps that are as even as can be, however far it has come.
        let wanted = (blocks * 618 / 1_000).max(1);
        let coprime = |stride: &usize| greatest_common_divisor(*stride, blocks) == 1;
        Self { at: 0, stride: (wanted..=blocks).find(coprime).unwrap_or(1), places }
    }

    const fn step(&mut self) {
        self.at += 1;
        if self.at.is_multiple_of(BLOCK) || self.at >= self.places {
            let blocks = self.places.div_ceil(BLOCK);
            self.at = ((self.at - 1) / BLOCK + self.stride) % blocks * BLOCK;
        }
    }
}

const fn greatest_common_divisor(mut one: usize, mut other: usize) -> usize {
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
}

#[derive(Debug)]
pub(super) struct Table {
    entries: Vec<Entry>,
    homes: usize,
    len: usize,
    len_max: usize,
    hand: Hand,
    /// Entries that had to go for want of room.
    evicted: u64,
}

impl Table {
    /// A table of so many bytes at most, all of which it takes now.
    pub(super) fn new(bytes: usize) -> Self {
        let room = (bytes / size_of::<Entry>()).min(ENTRIES_MAX);
        let homes = room - TAIL.min(room / 2);
        let len_max = homes / 4 * LOAD_QUARTERS;
        Self { entries: vec![GAP; room], homes, len: 0, len_max, hand: Hand::new(room), evicted: 0 }
    }

    pub(super) const fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn len_max(&self) -> usize {
        self.len_max
    }

    pub(super) const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// All entries of a key.
    pub(super) fn of(&self, key: u64) -> impl Iterator<Item = &Entry> {
        let from = self.entries[self.home(key)..].iter();
        from.skip_while(move |entry| entry.key < key)
            .take_while(move |entry| entry.key == key && entry.slot != EMPTY)
    }

    /// Asks for the memory of these keys at once, so that the searches to come need not wait for
    /// one after another.
    pub(super) fn warm(&self, keys: impl Iterator<Item = u64>) {
        let homes = keys.map(|key| self.entries.get(self.home(key)).map_or(0, |entry| entry.key));
        black_box(homes.fold(0, |all, key| all ^ key));
    }

    /// The entry of a key and a slot.
    pub(super) fn find(&mut self, key: u64, slot: u16) -> Option<&mut Entry> {
        let home = self.home(key);
        self.entries[home..]
            .iter_mut()
            .skip_while(|entry| entry.key < key)
            .take_while(|entry| entry.key == key && entry.slot != EMPTY)
            .find(|entry| entry.slot == slot)
    }

    /// All entries.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.slot != EMPTY)
    }

    /// Puts an entry in whose key and slot are not there. If the table is full, the one with the
    /// greatest `staleness` among some goes first.
    pub(super) fn put(&mut self, entry: Entry, staleness: impl Fn(&Entry) -> u32) {
        if self.len_max == 0 {
            self.evicted += 1;
            return;
        }
        if self.len >= self.len_max {
            self.evict(staleness);
        }
        let at = self.seek(entry.key);
        let gap = self.entries[at..].iter().position(|entry| entry.slot == EMPTY);
        let end = match gap {
            Some(gap) => {
                self.len += 1;
                at + gap
            }
            // The tail is full: its last entry falls off, which is this one if it would be last.
            None => {
                self.evicted += 1;
                if at == self.entries.len() {
                    return;
                }
                self.entries.len() - 1
            }
        };
        self.entries.copy_within(at..end, at + 1);
        self.entries[at] = entry;
    }

    /// Looks at `count` places from where it stopped last time, and takes out what is dead.
    pub(super) fn sweep(&mut self, count: usize, dead: impl Fn(&Entry) -> bool) -> usize {
        let before = self.len;
        for _ in 0..count {
            let Some(entry) = self.entries.get(self.hand.at) else { break };
            if entry.slot != EMPTY && dead(entry) {
                self.take_out(self.hand.at);
            } else {
                self.hand.step();
            }
        }
        before - self.len
    }

    /// The entries at `count` places from the first whose key is `from` or more, and the key to go
    /// on from if there may be others. Some may come twice, at the seams.
    pub(super) fn slice(
        &self,
        from: u64,
        count: usize,
    ) -> (impl Iterator<Item = &Entry>, Option<u64>) {
        let at = self.seek(from);
        let end = at.saturating_add(count).min(self.entries.len());
        let next = match self.entries.get(end) {
            None => None,
            Some(entry) if entry.slot != EMPTY => Some(entry.key),
            // No entry is pushed over a gap, so the others have their homes behind it.
            Some(_) if end < self.homes => {
                let key = ((end as u128) << 64).div_ceil(self.homes as u128);
                u64::try_from(key).ok()
            }
            Some(_) => None,
        };
        (self.entries[at..end].iter().filter(|entry| entry.slot != EMPTY), next)
    }

    /// Where the first entry with this key or a greater one lies, or the gap before it.
    fn seek(&self, key: u64) -> usize {
        let home = self.home(key);
        let passed = self.entries[home..].iter().take_while(|entry| entry.key < key).count();
        home + passed
    }

    const fn home(&self, key: u64) -> usize {
        ((key as u128 * self.homes as u128) >> 64) as usize
    }

    fn take_out(&mut self, at: usize) {
        let behind = self.entries.iter().enumerate().skip(at + 1);
        // What follows moves up, until one lies where it belongs.
        let end = behind
            .take_while(|(at, entry)| entry.slot != EMPTY && self.home(entry.key) < *at)
            .last()
            .map_or(at, |(last, _)| last);
        self.entries.copy_within(at + 1..=end, at);
        self.entries[end] = GAP;
        self.len -= 1;
    }

    fn evict(&mut self, staleness: impl Fn(&Entry) -> u32) {
        let mut victim = None;
        let mut seen = 0;
        for _ in 0..self.entries.len() {
            if seen == SAMPLE {
                break;
            }
            let entry = &self.entries[self.hand.at];
            if entry.slot != EMPTY {
                seen += 1;
                let staleness = staleness(entry);
                if victim.is_none_or(|(stalest, _)| staleness > stalest) {
                    victim = Some((staleness, self.hand.at));
                }
                if staleness == u32::MAX {
                    break;
                }
            }
            self.hand.step();
        }
        if let Some((_, at)) = victim {
            self.take_out(at);
            self.evicted += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use alloc::collections::BTreeMap;
    use rstest::rstest;

    impl Table {
        /// How far behind its home the farthest entry lies.
        pub(in crate::fleet::prefix) fn longest_way(&self) -> usize {
            let entries = self.entries.iter().enumerate();
            let entries = entries.filter(|(_, entry)| entry.slot != EMPTY);
            entries.map(|(at, entry)| at - self.home(entry.key)).max().unwrap_or(0)
        }
    }

    fn entry(key: u64, slot: u16, stamp: u32) -> Entry {
        Entry { key, stamp, slot, generation: 0 }
    }

    /// Entries ascend, each at or behind its home with no gap between.
    fn check(table: &Table) {
        let mut last = 0;
        let mut gap = None;
        for (at, entry) in table.entries.iter().enumerate() {
            if entry.slot == EMPTY {
                gap = Some(at);
                continue;
            }
            assert!(entry.key >= last, "out of order at {at}");
            last = entry.key;
            let home = table.home(entry.key);
            assert!(home <= at && gap.is_none_or(|gap| gap < home), "unreachable at {at}");
        }
        assert_eq!(table.iter().count(), table.len);
        assert!(table.len <= table.len_max);
    }

    #[rstest]
    #[case::spread(u64::MAX, 400)]
    #[case::crowded_at_the_start(1 << 57, 300)]
    #[case::few_keys_with_many_slots(20, 100)]
    fn it_is_a_map(#[case] keys: u64, #[case] steps: usize) {
        for seed in 0..20 {
            let mut rng = Rng::new(seed);
            let mut table = Table::new(24_576);
            let mut model = BTreeMap::new();
            for step in 0..steps {
                // The greatest keys of all, too: they are no gaps.
                let key = rng.below(keys).wrapping_sub(rng.below(2));
                let slot = u16::try_from(rng.below(8)).expect("it is below 8");
                match table.find(key, slot) {
                    Some(found) => assert_eq!(Some(&found.stamp), model.get(&(key, slot))),
                    None => {
                        assert_eq!(model.get(&(key, slot)), None);
                        table.put(entry(key, slot, step as u32), |_| 0);
                        model.insert((key, slot), step as u32);
                    }
                }
                if step % 16 == 0 {
                    table.sweep(64, |entry| entry.stamp % 3 == 0 && entry.slot == slot);
                    model.retain(|(key, slot), _| table.find(*key, *slot).is_some());
                    check(&table);
                }
            }
            check(&table);
            assert_eq!(table.evicted, 0, "seed {seed}");
            let mut all: Vec<_> =
                table.iter().map(|entry| ((entry.key, entry.slot), entry.stamp)).collect();
            all.sort_unstable();
            assert_eq!(all, model.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_full_one_lets_the_stalest_go() {
        let mut table = Table::new(64 * 1024);
        let mut rng = Rng::new(1);
        let age = |entry: &Entry| u32::MAX - entry.stamp;
        let len_max = u32::try_from(table.len_max).expect("it is small");
        for stamp in 0..4 * len_max {
            table.put(entry(rng.next_u64(), 0, stamp), age);
        }
        check(&table);
        assert_eq!(table.len, table.len_max);
        assert_eq!(table.evicted, 3 * u64::from(len_max));
        // With exact order all would be of the last quarter.
        let late = table.iter().filter(|entry| entry.stamp >= 2 * len_max + len_max / 2).count();
        assert!(late > table.len * 95 / 100, "{late} of {}", table.len);
    }

    #[rstest]
    #[case::nothing(0)]
    #[case::one(16)]
    #[case::some(100)]
    #[case::few(1_000)]
    fn small_ones_hold_what_they_can(#[case] bytes: usize) {
        let mut table = Table::new(bytes);
        for key in 0..100 {
            table.put(entry(key << 57, 0, 0), |_| 0);
            table.put(entry(u64::MAX - key, 1, 0), |_| 0);
            check(&table);
        }
        assert!(table.bytes() <= bytes);
        assert_eq!(table.len as u64 + table.evicted, 200);
        table.sweep(1_000, |_| true);
        assert_eq!(table.len, 0);
    }

    /// A sweep in the order of places leaves the table full on one side.
    #[rstest]
    #[case::swept(true)]
    #[case::evicted(false)]
    fn load_stays_even(#[case] swept: bool) {
        let mut table = Table::new(1 << 20);
        let mut rng = Rng::new(9);
        let homes = table.homes;
        let dead = |entry: &Entry, now: usize| now - entry.stamp as usize > homes / 4;
        for now in 0..8 * homes {
            table.put(entry(rng.next_u64(), 0, now as u32), |entry| {
                if dead(entry, now) { u32::MAX } else { 0 }
            });
            if swept {
                table.sweep(4, |entry| dead(entry, now));
            }
            if now % (homes / 2) == 0 {
                assert!(table.longest_way() < 150, "{}", table.longest_way());
            }
        }
        check(&table);
        assert_eq!(table.evicted == 0, swept);
    }

    #[rstest]
    fn the_hand_comes_everywhere(#[values(1, 2, 15, 16, 17, 160, 1_000, 4_093)] places: usize) {
        let mut hand = Hand::new(places);
        let mut seen = vec![false; places];
        for _ in 0..places {
            assert!(!core::mem::replace(&mut seen[hand.at], true), "{} of {places}", hand.at);
            hand.step();
        }
        assert_eq!(hand.at, 0);
    }

    #[test]
    fn slices_find_all_that_was_there_all_the_time() {
        let mut table = Table::new(256 * 1024);
        let mut rng = Rng::new(3);
        let keys: Vec<u64> = (0..2_000).map(|_| rng.next_u64()).collect();
        for &key in &keys {
            table.put(entry(key, 0, 0), |_| 0);
        }
        let mut found = alloc::collections::BTreeSet::new();
        let mut next = Some(0);
        let mut slices = 0;
        while let Some(from) = next {
            let (slice, then) = table.slice(from, 256);
            let before = found.len();
            found.extend(slice.filter(|entry| entry.slot == 0).map(|entry| entry.key));
            assert!(found.len() - before <= 256 && then.is_none_or(|then| then > from));
            next = then;
            slices += 1;
            // Others come and go meanwhile, and everything moves.
            for _ in 0..50 {
                table.put(entry(rng.next_u64(), 1, 1), |_| 0);
            }
            table.sweep(256, |entry| entry.slot == 1);
        }
        assert!(keys.iter().all(|key| found.contains(key)));
        assert!(slices > 40, "{slices}");
    }
}
