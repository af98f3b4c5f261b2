//! Prefixes: which backend has which part of a prompt in its KV cache, as far as can be guessed.
//!
//! A prompt is a chain of chunks, each known by a hash that stands for all before it, too. Owns
//! what every backend is believed to hold of them, within a fixed number of bytes. Does not know
//! how prompts become hashes, what a match is worth, or how other proxies are told.
//!
//! Time here is counted in tokens: a backend's clock goes on by as many as are inserted there, and
//! a chunk is valid until as many as fit into the cache came after its last touch. That is what an
//! LRU does, without a list to keep in order, and two such beliefs merge by the greater numbers.
//!
//! Of long prompts not every chunk is looked at, but marks at places that follow from the length up
//! to there. All that is said of chunks below holds of marks, but for lengths and counts of tokens.
//!
//! **Invariant: the table lies at its size from the start.** Nothing here allocates after
//! [`PrefixIndex::new`], whatever is asked; growing a map cost 21 ms in one insert.
//!
//! **Invariant: all proxies know the same.** A stamp is only renewed when others are told (see
//! [`PrefixIndex::insert`]), so whoever heard everything, in any order, has the same
//! [`state_hash`](PrefixIndex::state_hash), unless entries had to go for want of room.

mod cache;
mod clocks;
mod keys;
mod marks;
mod matches;
mod table;
#[cfg(test)]
mod tests;
mod turnover;

pub use matches::Matches;

use crate::fleet::order::place;
use crate::fleet::{BACKENDS_MAX, BackendId};
use crate::rng::mix;
use alloc::vec;
use alloc::vec::Vec;
use cache::{Cache, View, later};
use keys::Keys;
use matches::GROUP;
use table::{Entry, Table};
use turnover::Turnover;

/// Proxies whose insertions are told apart, this one among them.
const PROXIES_MAX: usize = 64;

/// Chunks of one prompt that are looked at: a million tokens at 128 to a chunk. It bounds how long
/// one call may take; what a longer prompt has behind that is no reason to send it elsewhere.
const CHUNKS_MAX: usize = 8_192;

/// Entries looked at in one call that tidies up or tells everything.
const SLICE: usize = 256;

/// Places swept for each new mark. With two, half as many as there is room for pass before a dead
/// one is found.
const SWEPT_PER_MARK: usize = 2;

/// Marks whose memory is asked for at once; a processor waits for about as many at a time.
const BATCH: u16 = 16;

/// Of the bytes, the share that backends may take rather than chunks: one in so many.
const BACKENDS_SHARE: usize = 16;

/// Where a backend's answer lies in [`Matches`]. Another backend may get it after this one left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

/// A chunk that a backend holds, and when it was last touched there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fact {
    /// Who holds it.
    pub backend: BackendId,
    /// The chunk's hash.
    pub chunk: u64,
    /// The backend's clock at that time, in ticks of 16 tokens.
    pub stamp: u32,
}

/// What an insertion changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// The stamp of all that is to be told.
    pub stamp: u32,
    /// Tokens this proxy has inserted there so far, to be told with them.
    pub inserted_tokens: u64,
    /// Chunks that were not held.
    pub new_chunks: usize,
}

/// Chunk hashes, and for each the backends that hold it.
#[derive(Debug)]
pub struct PrefixIndex {
    keys: Keys,
    table: Table,
    /// By slot, and as long as the highest slot ever used.
    caches: Vec<Cache>,
    views: Vec<View>,
    /// Tokens inserted, by slot and proxy.
    counters: Vec<[u64; PROXIES_MAX]>,
    /// Slots in use, as bits.
    groups: Vec<u8>,
    /// By backend, ascending.
    slots: Vec<(BackendId, Slot)>,
    slots_max: usize,
    turnover: Turnover,
}

impl PrefixIndex {
    /// The proxy whose insertions are counted by [`insert`](Self::insert) and
    /// [`grew`](Self::grew): this one. Others are numbered by whoever hears them, from 1 to 63.
    pub const OWN: usize = 0;

    /// An index of nothing that takes so many bytes now, and never more. `seed` keys its hashes.
    pub fn new(bytes: usize, seed: u64) -> Self {
        const PER_SLOT: usize = size_of::<Cache>()
            + size_of::<View>()
            + size_of::<[u64; PROXIES_MAX]>()
            + size_of::<(BackendId, Slot)>();
        let slots_max = (bytes / BACKENDS_SHARE / (PER_SLOT + 1)).min(BACKENDS_MAX);
        let groups = vec![0; slots_max.div_ceil(GROUP)];
        let table = Table::new(bytes.saturating_sub(slots_max * PER_SLOT + groups.len()));
        Self {
            keys: Keys::new(seed),
            table,
            caches: Vec::with_capacity(slots_max),
            views: Vec::with_capacity(slots_max),
            counters: Vec::with_capacity(slots_max),
            groups,
            slots: Vec::with_capacity(slots_max),
            slots_max,
            turnover: Turnover::default(),
        }
    }

    /// Room for the answers of [`matches`](Self::matches).
    pub fn scratch(&self) -> Matches {
        Matches::new(self.groups.len() * GROUP)
    }

    /// A backend is there, from now on or already. Without a slot, which happens if the bytes do
    /// not allow for so many, it never holds anything.
    pub fn join(&mut self, backend: BackendId) -> Option<Slot> {
        let at = match self.find(backend) {
            Ok(at) => return Some(self.slots[at].1),
            Err(at) => at,
        };
        let free = self.groups.iter().position(|group| *group != u8::MAX)?;
        let slot = free * GROUP + self.groups[free].trailing_ones() as usize;
        if slot >= self.slots_max {
            return None;
        }
        if slot == self.caches.len() {
            self.caches.push(Cache::new(backend));
            self.counters.push([0; PROXIES_MAX]);
            self.views.push(View::default());
        } else {
            self.caches[slot] = Cache::new(backend);
            self.counters[slot] = [0; PROXIES_MAX];
        }
        self.groups[free] |= 1 << (slot % GROUP);
        self.look(slot);
        let slot = Slot(u16::try_from(slot).ok()?);
        self.slots.insert(at, (backend, slot));
        self.sum_up();
        Some(slot)
    }

    /// A backend is there no more, and nothing of it is kept.
    pub fn leave(&mut self, backend: BackendId) {
        if let Ok(at) = self.find(backend) {
            self.wipe(backend);
            let slot = usize::from(self.slots.remove(at).1.0);
            self.groups[slot / GROUP] &= !(1 << (slot % GROUP));
            self.sum_up();
        }
    }

    /// A backend lost its cache, and with it whatever was learnt of its capacity.
    pub fn wipe(&mut self, backend: BackendId) {
        let Some(slot) = self.slot(backend) else { return };
        self.caches[slot].wipe();
        // A generation comes back after 65,536 others. Until then these sweeps have seen the
        // whole of the largest table, so nothing is left of it.
        self.views[slot].generation = self.views[slot].generation.wrapping_add(1);
        self.look(slot);
        self.sweep(SLICE);
    }

    /// How many tokens a backend says fit into its cache; `None` if it does not say.
    pub fn set_capacity(&mut self, backend: BackendId, tokens: Option<u64>) {
        let Some(slot) = self.slot(backend) else { return };
        self.caches[slot].set_capacity(tokens);
        self.look(slot);
        self.sum_up();
    }

    /// Learns the capacity from what was `predicted` to be cached of a prompt and what was, in
    /// tokens. Answers that do not say teach nothing.
    pub fn feedback(&mut self, backend: BackendId, predicted: u64, cached: u64, chunk_tokens: u32) {
        let Some(slot) = self.slot(backend) else { return };
        // Behind a long match a mark stands for several chunks, and no less can be seen.
        let chunks = predicted / u64::from(chunk_tokens.max(1));
        let span = marks::span(usize::try_from(chunks).unwrap_or(CHUNKS_MAX).min(CHUNKS_MAX));
        let seen = u32::try_from(span).unwrap_or(u32::MAX).saturating_mul(chunk_tokens);
        self.caches[slot].feedback(predicted, cached, seen);
        self.look(slot);
    }

    /// Believed tokens of a backend's cache.
    pub fn capacity(&self, backend: BackendId) -> u64 {
        self.slot(backend).map_or(0, |slot| self.caches[slot].capacity())
    }

    /// How many of a prompt's leading chunks each backend holds.
    pub fn matches(&self, chunks: &[u64], out: &mut Matches) {
        let marked = Marked::new(chunks);
        out.begin(&self.groups[..self.caches.len().div_ceil(GROUP)], marked.count);
        while out.halve(|mark, group| self.holders(self.keys.base(marked.chunk(mark)), group)) {}
    }

    /// A prompt of these chunks is sent there. Its backend holds all of them from now on: one that
    /// is still being computed is found by the next request as well.
    ///
    /// Pushes to `told` the marks that other proxies are to be told: those it did not hold, and
    /// those last told an eighth of the capacity ago or more. Only these are touched; what was told
    /// later is as good as new.
    pub fn insert(
        &mut self,
        backend: BackendId,
        chunks: &[u64],
        chunk_tokens: u32,
        told: &mut Vec<u64>,
    ) -> Option<Inserted> {
        let at = self.slot(backend)?;
        let slot = u16::try_from(at).ok()?;
        let marked = Marked::new(chunks);
        let (mut new_marks, mut new_chunks) = (0, 0);
        for mark in 0..marked.count {
            if mark % BATCH == 0 {
                self.warm((mark..marked.count.min(mark + BATCH)).map(|at| marked.chunk(at)), slot);
            }
            let entry = self.entry(slot, marked.chunk(mark));
            if !entry.is_some_and(|entry| self.is_valid(entry)) {
                new_marks += 1;
                new_chunks += marked.span(mark);
            }
        }
        let tokens = (new_chunks as u64).saturating_mul(u64::from(chunk_tokens));
        self.advance(at, tokens);
        let stamp = self.views[at].now;
        // All get the same stamp, the one after the last of them, so that they expire together: a
        // cache that drops a prompt's tail first keeps nothing that is any use without its head.
        for mark in 0..marked.count {
            let chunk = marked.chunk(mark);
            if self.touch(slot, chunk, stamp, Touch::Own) {
                told.push(chunk);
            }
        }
        self.sweep(new_marks * SWEPT_PER_MARK);
        Some(Inserted { stamp, inserted_tokens: self.counters[at][Self::OWN], new_chunks })
    }

    /// An answer added so many tokens to its backend's cache. Returns how many tokens this proxy
    /// has inserted there so far, to be told to others.
    pub fn grew(&mut self, backend: BackendId, tokens: u64) -> Option<u64> {
        let at = self.slot(backend)?;
        self.advance(at, tokens);
        Some(self.counters[at][Self::OWN])
    }

    /// Another proxy's word, or an older one of this proxy: a backend held a chunk at that stamp.
    pub fn merge(&mut self, fact: Fact) {
        if let Some(at) = self.slot(fact.backend)
            && let Ok(slot) = u16::try_from(at)
            && self.views[at].is_kept(fact.stamp, self.views[at].generation)
        {
            self.touch(slot, fact.chunk, fact.stamp, Touch::Heard);
        }
    }

    /// Whether a backend of which [`matches`](Self::matches) says that it holds so many `leading`
    /// chunks held more of them, and is believed to have dropped that since: not so long ago that
    /// it depends on sweeps whether that is still known.
    pub fn has_expired(&self, backend: BackendId, chunks: &[u64], leading: usize) -> bool {
        let Some(at) = self.slot(backend) else { return false };
        let Ok(slot) = u16::try_from(at) else { return false };
        let next = marks::reach(marks::count(leading) + 1) - 1;
        let Some(&chunk) = chunks.get(next) else { return false };
        let view = self.views[at];
        self.entry(slot, chunk).is_some_and(|entry| {
            view.is_kept(entry.stamp, entry.generation) && !self.is_valid(entry)
        })
    }

    /// Tokens newly inserted at a backend by anyone, halved with each turnover of all caches. Who
    /// has few of them loses the least by taking more.
    pub fn fresh(&self, backend: BackendId) -> u64 {
        self.slot(backend).map_or(0, |at| self.caches[at].fresh(self.turnover.step()))
    }

    /// Drops what can never be valid again among the next `count` places, 256 at most; returns how
    /// many that were. Insertions sweep as well; this is for idle moments. What a smaller capacity
    /// has made invalid stays, since learning may make it greater again: sweeps change no answer.
    pub fn sweep(&mut self, count: usize) -> usize {
        let views = &self.views;
        self.table.sweep(count.min(SLICE), |entry| {
            let view = &views[usize::from(entry.slot)];
            !view.is_kept(entry.stamp, entry.generation)
        })
    }

    /// Pushes a slice of all that is known, for another proxy that missed it: 256 facts at most.
    /// Begins at 0; returns where to go on, in this index only. Nothing that is there all the while
    /// is left out, whatever changes between slices; some may come twice.
    pub fn facts(&self, from: u64, out: &mut Vec<Fact>) -> Option<u64> {
        let (entries, next) = self.table.slice(from, SLICE);
        let valid = entries.filter(|entry| self.is_valid(entry));
        out.extend(valid.map(|entry| self.fact(entry)));
        next
    }

    /// A sum of all that is valid and of all clocks, the same for whoever knows the same. `name`
    /// gives a backend's name among proxies, which number backends each in its own way.
    ///
    /// Looks at the whole table: for tests and for checks outside any lock.
    pub fn state_hash(&self, name: impl Fn(BackendId) -> u64) -> u64 {
        let hash = |parts: [u64; 3]| parts.iter().fold(0, |hash, part| mix(hash ^ part) + 1);
        let entries = self.table.iter().filter(|entry| self.is_valid(entry));
        let facts = entries.map(|entry| self.fact(entry));
        let facts = facts.map(|fact| hash([name(fact.backend), fact.chunk, fact.stamp.into()]));
        let slots = self.slots.iter();
        let clocks = slots.map(|&(id, slot)| {
            hash([name(id), self.caches[usize::from(slot.0)].inserted(), u64::MAX])
        });
        facts.chain(clocks).fold(0, u64::wrapping_add)
    }

    /// Pairs of a chunk and a backend in the table, valid or not.
    pub const fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether nothing is known.
    pub const fn is_empty(&self) -> bool {
        self.table.len() == 0
    }

    /// Pairs there may be at most.
    pub const fn len_max(&self) -> usize {
        self.table.len_max()
    }

    /// Pairs that had to go for want of room, since the start.
    pub const fn evicted(&self) -> u64 {
        self.table.evicted()
    }

    /// Bytes it takes, and will always take.
    pub fn bytes(&self) -> usize {
        self.table.bytes()
            + self.caches.capacity() * size_of::<Cache>()
            + self.views.capacity() * size_of::<View>()
            + self.counters.capacity() * size_of::<[u64; PROXIES_MAX]>()
            + self.groups.capacity()
            + self.slots.capacity() * size_of::<(BackendId, Slot)>()
    }

    fn find(&self, backend: BackendId) -> Result<usize, usize> {
        place(&self.slots, backend, |(id, _)| *id)
    }

    fn slot(&self, backend: BackendId) -> Option<usize> {
        self.find(backend).ok().map(|at| usize::from(self.slots[at].1.0))
    }

    fn warm(&self, chunks: impl Iterator<Item = u64>, slot: u16) {
        self.table.warm(chunks.map(|chunk| self.keys.key(self.keys.base(chunk), group(slot))));
    }

    /// Who of a group holds a chunk, as bits.
    fn holders(&self, base: u64, group: u16) -> u8 {
        let holders = self.table.of(self.keys.key(base, group));
        // Two groups' keys may be the same number, once in 2^64.
        let holders = holders.filter(|entry| self::group(entry.slot) == group);
        let valid = holders.filter(|entry| self.is_valid(entry));
        valid.fold(0, |slots, entry| slots | 1 << (usize::from(entry.slot) % GROUP))
    }

    fn entry(&self, slot: u16, chunk: u64) -> Option<&Entry> {
        let key = self.keys.key(self.keys.base(chunk), group(slot));
        self.table.of(key).find(|entry| entry.slot == slot)
    }

    fn is_valid(&self, entry: &Entry) -> bool {
        self.views[usize::from(entry.slot)].is_valid(entry.stamp, entry.generation)
    }

    fn fact(&self, entry: &Entry) -> Fact {
        Fact {
            backend: self.caches[usize::from(entry.slot)].id,
            chunk: self.keys.chunk(entry.key, group(entry.slot)),
            stamp: entry.stamp,
        }
    }

    /// A cache came, went, or said how large it is.
    pub(super) fn sum_up(&mut self) {
        let caches = self.slots.iter().map(|(_, slot)| &self.caches[usize::from(slot.0)]);
        // One that was never used, for all that is known not even there, delays no turnover.
        let used = caches.filter(|cache| cache.inserted() > 0);
        self.turnover.set_room(used.map(Cache::said));
    }

    fn advance(&mut self, at: usize, tokens: u64) {
        let unused = self.caches[at].inserted() == 0;
        let counted = self.caches[at].advance(tokens, self.turnover.step());
        if unused {
            self.sum_up();
        }
        self.turnover.turn(counted);
        let own = &mut self.counters[at][Self::OWN];
        *own = own.saturating_add(counted);
        self.look(at);
    }

    /// A backend's clock, capacity or generation changed.
    fn look(&mut self, at: usize) {
        self.views[at] = self.caches[at].view(self.views[at].generation);
    }

    /// Sets a stamp unless there is a later one; says whether that changed anything.
    fn touch(&mut self, slot: u16, chunk: u64, stamp: u32, by: Touch) -> bool {
        let view = self.views[usize::from(slot)];
        let key = self.keys.key(self.keys.base(chunk), group(slot));
        let Some(entry) = self.table.find(key, slot) else {
            let entry = Entry { key, stamp, slot, generation: view.generation };
            let views = &self.views;
            self.table.put(entry, |entry| {
                views[usize::from(entry.slot)].staleness(entry.stamp, entry.generation)
            });
            return true;
        };
        if entry.generation != view.generation {
            entry.generation = view.generation;
            entry.stamp = stamp;
            return true;
        }
        if by == Touch::Own && view.is_recent(entry.stamp) {
            return false;
        }
        entry.stamp = later(stamp, entry.stamp);
        true
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Touch {
    /// A request of ours: what was touched lately is left alone.
    Own,
    /// What another proxy tells.
    Heard,
}

/// The marks of a prompt.
#[derive(Clone, Copy)]
struct Marked<'a> {
    chunks: &'a [u64],
    count: u16,
}

impl<'a> Marked<'a> {
    fn new(chunks: &'a [u64]) -> Self {
        let chunks = &chunks[..chunks.len().min(CHUNKS_MAX)];
        Self { chunks, count: u16::try_from(marks::count(chunks.len())).unwrap_or(u16::MAX) }
    }

    fn chunk(self, mark: u16) -> u64 {
        self.chunks[marks::reach(usize::from(mark) + 1) - 1]
    }

    /// Chunks that it stands for.
    fn span(self, mark: u16) -> usize {
        marks::reach(usize::from(mark) + 1) - marks::reach(mark.into())
    }
}

const fn group(slot: u16) -> u16 {
    slot / GROUP as u16
}
