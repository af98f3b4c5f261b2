//! Gathering: what is to be told to other proxies, until somebody asks for it.
//!
//! Owns what waits, and its bounds. What is a state (what is in hand) does not wait: it is looked
//! up when it is told, so that however much happens meanwhile is told once. Does not know when
//! somebody asks, or what others make of it.

use super::super::Engine;
use crate::fleet::{
    About, BackendId, InHand, Lesson, Owner, Placed, PrefixIndex, PromptLength, Update,
};
use crate::route::{Held, Pool};
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Chunks that wait to be told: 512 KB. They pile up where nobody asks for updates, as while the
/// way to other proxies is lost. Then the oldest go: what was placed last is used next, and a
/// snapshot tells the others all of it.
const PLACED_MAX: usize = 1 << 16;

/// Chunks of one update. Whoever hears them looks up each: 20 us together, and 0.3 ms if its index
/// is full, which is why it hears them in parts.
pub(super) const CHUNKS_MAX: usize = 512;

/// Backends of one update, so that neither making nor hearing one takes longer than that.
const ABOUT_MAX: usize = 512;

/// Lessons that wait to be told, of each kind: one of each comes with a request, and few requests
/// end between two updates.
const LESSONS_MAX: usize = 256;

/// Stored responses that wait to be told: 128 KB. Few requests create one.
const OWNED_WAITING_MAX: usize = 1 << 12;

/// Stored responses of one update.
const OWNED_MAX: usize = 256;

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// Backends of which there is something to tell, ascending. A list, since a tree that is
    /// emptied again and again asks for memory with each first one.
    marked: Vec<BackendId>,
    /// Chunks that were placed, oldest first, and what they have in common, so many at a time.
    chunks: VecDeque<u64>,
    batches: VecDeque<Batch>,
    lessons: Vec<(BackendId, Lesson)>,
    lengths: Vec<PromptLength>,
    /// Stored responses, oldest first.
    owned: VecDeque<(u64, Owner)>,
    /// Chunks and stored responses that had to go untold.
    dropped: u64,
}

/// Chunks that were placed together.
#[derive(Clone, Copy, Debug)]
struct Batch {
    backend: BackendId,
    generation: u32,
    stamp: u32,
    count: usize,
}

impl Gathered {
    /// There is something to tell of a backend.
    pub(super) fn mark(&mut self, backend: BackendId) {
        if let Err(at) = self.marked.binary_search(&backend) {
            self.marked.insert(at, backend);
        }
    }

    /// Chunks and stored responses that had to go untold, so far.
    pub(super) const fn dropped(&self) -> u64 {
        self.dropped
    }

    fn is_empty(&self) -> bool {
        self.marked.is_empty() && self.batches.is_empty() && self.owned.is_empty()
    }

    fn place(&mut self, backend: BackendId, generation: u32, stamp: u32, chunks: &[u64]) {
        if chunks.is_empty() {
            return;
        }
        self.chunks.extend(chunks);
        self.batches.push_back(Batch { backend, generation, stamp, count: chunks.len() });
        let excess = self.chunks.len().saturating_sub(PLACED_MAX);
        self.chunks.drain(..excess);
        self.dropped = self.dropped.saturating_add(excess as u64);
        let mut left = excess;
        while left > 0 {
            left -= self.take_batch(left).map_or(left, |batch| batch.count);
        }
    }

    /// The oldest batch, or so much of it.
    fn take_batch(&mut self, count_max: usize) -> Option<Batch> {
        let first = self.batches.front_mut()?;
        if first.count <= count_max {
            return self.batches.pop_front();
        }
        first.count -= count_max;
        Some(Batch { count: count_max, ..*first })
    }

    /// The oldest chunks, at most as many as one update tells.
    fn take_placed(&mut self) -> Vec<(Batch, Vec<u64>)> {
        let (mut room, mut placed) = (CHUNKS_MAX, Vec::new());
        while room > 0
            && let Some(batch) = self.take_batch(room)
        {
            room -= batch.count;
            placed.push((batch, self.chunks.drain(..batch.count).collect()));
        }
        placed
    }

    /// Backends to be told of now, ascending: these, and others that are marked.
    fn take_marked(&mut self, told: impl Iterator<Item = BackendId>) -> Vec<BackendId> {
        let mut told: Vec<_> = told.collect();
        told.sort_unstable();
        told.dedup();
        let room = ABOUT_MAX.saturating_sub(told.len());
        told.extend(self.marked.iter().take(room));
        told.sort_unstable();
        told.dedup();
        self.marked.retain(|id| told.binary_search(id).is_err());
        told
    }
}

impl Engine {
    /// Whether there is something to tell other proxies. That a beat is due is only known to a call
    /// that was told the time: [`poll_timeout`](Self::poll_timeout) says when.
    pub fn has_update(&self) -> bool {
        self.sharing.as_ref().is_some_and(|sharing| sharing.due || !sharing.gathered.is_empty())
    }

    /// The next update to be told to all other proxies, in the order of the numbers as far as may
    /// be; `None` when there is nothing left. It tells of 512 chunks, 256 stored responses and 512
    /// other backends at most; what is more comes with the next. Only comes if
    /// [`Config::proxy`](crate::config::Config::proxy) is given; then at least once a second.
    ///
    /// Meant to be asked for every few milliseconds rather than after each call: what is in hand is
    /// told as it stands then, once.
    pub fn poll_update(&mut self) -> Option<Update> {
        if !self.has_update() {
            return None;
        }
        let sharing = self.sharing.as_mut()?;
        sharing.due = false;
        sharing.number += 1;
        let (own, number, now) = (sharing.own, sharing.number, sharing.now);
        let placed = sharing.gathered.take_placed();
        let responses = sharing.gathered.owned.len().min(OWNED_MAX);
        let owned: Vec<_> = sharing.gathered.owned.drain(..responses).collect();
        let placed_at = placed.iter().map(|(batch, _)| batch.backend);
        let owned_by = owned.iter().map(|(_, owner)| owner.backend);
        let told = sharing.gathered.take_marked(placed_at.chain(owned_by));
        let lengths = core::mem::take(&mut sharing.gathered.lengths);
        // In the order of `told`; `None` for who is not to be told of.
        let mut about: Vec<_> = told.iter().map(|&id| self.state_of(id)).collect();
        let place = |id: BackendId| told.binary_search(&id).ok();
        self.sharing.as_mut()?.gathered.lessons.retain(|(taught, lesson)| {
            let Some(at) = place(*taught) else { return true };
            about[at].iter_mut().for_each(|about| about.lessons.push(*lesson));
            false
        });
        for (Batch { backend, generation, stamp, .. }, chunks) in placed {
            let about = place(backend).and_then(|at| about[at].as_mut());
            // What was placed before the backend lost its cache is not there any more.
            if let Some(about) = about.filter(|about| about.generation == generation) {
                about.placed.push(Placed { stamp, chunks });
            }
        }
        for (response, owner) in owned {
            if let Some(about) = place(owner.backend).and_then(|at| about[at].as_mut()) {
                about.owned.push(owner.told(response, now));
            }
        }
        let about = about.into_iter().flatten().collect();
        Some(Update { proxy: own, number, about, lengths })
    }

    /// How it stands with a backend here.
    fn state_of(&mut self, id: BackendId) -> Option<About> {
        let sharing = self.sharing.as_ref()?;
        let Some(backend) = self.fleet.backend_mut(id) else {
            // One that is gone had nothing in hand any more.
            let (name, _) = sharing.names.iter().find(|(_, known)| **known == id)?;
            return Some(About { in_hand: Some(InHand::default()), ..About::of(*name, 0) });
        };
        let name = backend.shared.name;
        if sharing.names.get(&name) != Some(&id) {
            return None;
        }
        let in_hand = Some(backend.load.told(sharing.now));
        let base = About::of(name, backend.shared.generation());
        let (changes, drains) = (backend.shared.changes(), backend.drain.changes());
        let index = self.fleet.index.as_ref();
        let inserted_tokens = index.map_or(0, |index| index.counter(id, PrefixIndex::OWN));
        Some(About { changes, drains, in_hand, inserted_tokens, ..base })
    }

    /// Something about a backend is to be told.
    pub(in crate::engine) fn tell_of(&mut self, backend: BackendId) {
        if let Some(sharing) = &mut self.sharing {
            sharing.gathered.mark(backend);
        }
    }

    /// The chunks in `told` were placed there and are to be told.
    pub(in crate::engine) fn tell_placed(&mut self, backend: BackendId, stamp: u32) {
        let Some(sharing) = &mut self.sharing else { return };
        let Some(known) = self.fleet.backend(backend) else { return };
        sharing.gathered.place(backend, known.shared.generation(), stamp, &self.told);
    }

    /// A backend keeps a stored response.
    pub(in crate::engine) fn tell_owned(&mut self, response: u64, owner: Owner) {
        let Some(sharing) = &mut self.sharing else { return };
        let gathered = &mut sharing.gathered;
        gathered.owned.push_back((response, owner));
        if gathered.owned.len() > OWNED_WAITING_MAX {
            gathered.owned.pop_front();
            gathered.dropped = gathered.dropped.saturating_add(1);
        }
    }

    /// A request taught something of a backend.
    pub(in crate::engine) fn tell_lesson(&mut self, backend: BackendId, lesson: Option<Lesson>) {
        if let (Some(sharing), Some(lesson)) = (&mut self.sharing, lesson)
            && sharing.gathered.lessons.len() < LESSONS_MAX
        {
            sharing.gathered.mark(backend);
            sharing.gathered.lessons.push((backend, lesson));
        }
    }

    /// A request had so many tokens.
    pub(in crate::engine) fn tell_length(&mut self, held: &Held, tokens: u64) {
        if let (Some(sharing), Pool::Model(model)) = (&mut self.sharing, &held.pool)
            && sharing.gathered.lengths.len() < LESSONS_MAX
        {
            let (model, bytes) = (Arc::clone(model), held.prompt_bytes);
            sharing.gathered.lengths.push(PromptLength { model, bytes, tokens });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: BackendId = BackendId(3);
    const B: BackendId = BackendId(1);

    fn chunks(from: usize, count: usize) -> Vec<u64> {
        (from..from + count).map(|chunk| chunk as u64).collect()
    }

    fn taken(gathered: &mut Gathered) -> Vec<(BackendId, u32, Vec<u64>)> {
        let placed = gathered.take_placed();
        placed.into_iter().map(|(batch, chunks)| (batch.backend, batch.stamp, chunks)).collect()
    }

    #[test]
    fn chunks_leave_in_order_and_so_many_at_a_time() {
        let mut gathered = Gathered::default();
        gathered.place(A, 0, 7, &chunks(0, 500));
        gathered.place(B, 0, 8, &chunks(500, 30));
        gathered.place(A, 0, 9, &[]);
        assert_eq!(taken(&mut gathered), [(A, 7, chunks(0, 500)), (B, 8, chunks(500, 12))]);
        assert!(!gathered.is_empty());
        assert_eq!(taken(&mut gathered), [(B, 8, chunks(512, 18))]);
        assert!(gathered.is_empty());
        assert_eq!((taken(&mut gathered), gathered.dropped()), (Vec::new(), 0));
    }

    #[test]
    fn the_oldest_chunks_go_first_when_nobody_asks() {
        let mut gathered = Gathered::default();
        gathered.place(A, 0, 1, &chunks(0, 100));
        gathered.place(A, 0, 2, &chunks(100, 100));
        gathered.place(B, 0, 3, &chunks(200, PLACED_MAX - 50));
        assert_eq!((gathered.chunks.len(), gathered.dropped()), (PLACED_MAX, 150));
        let first = taken(&mut gathered);
        assert_eq!(first[0], (A, 2, chunks(150, 50)));
        assert_eq!(first[1], (B, 3, chunks(200, CHUNKS_MAX - 50)));
        gathered.place(A, 0, 4, &chunks(0, 2 * PLACED_MAX));
        let counts: Vec<_> = gathered.batches.iter().map(|batch| batch.count).collect();
        assert_eq!((counts, gathered.chunks.len()), (Vec::from([PLACED_MAX]), PLACED_MAX));
        assert_eq!(gathered.chunks[0], PLACED_MAX as u64);
    }

    #[test]
    fn who_is_marked_is_told_of_once() {
        let mut gathered = Gathered::default();
        for id in [5, 2, 5, 9, 2] {
            gathered.mark(BackendId(id));
        }
        gathered.place(A, 0, 1, &[7]);
        assert_eq!(taken(&mut gathered).len(), 1);
        assert_eq!(gathered.take_marked([A].into_iter()), [2, 3, 5, 9].map(BackendId));
        assert!(gathered.is_empty());
        (0..1_000).for_each(|id| gathered.mark(BackendId(id)));
        let told = gathered.take_marked([BackendId(999)].into_iter());
        assert_eq!((told.len(), told.last()), (ABOUT_MAX, Some(&BackendId(999))));
        assert_eq!(gathered.take_marked(core::iter::empty()).len(), 1_000 - ABOUT_MAX);
    }
}
