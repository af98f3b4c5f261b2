//! Hearing: what the fleet makes of what other proxies tell of a backend.
//!
//! Owns what is believed of it. Does not know who they are (see [`peers`](super::peers)).
//!
//! **Invariant: no word does lasting harm.** Whoever writes where proxies listen can make choices
//! worse, for as long as he does. So no number that only grows is taken beyond where it leaves room
//! to grow, and none is added up without a bound.

use crate::fleet::peers::{Shared, Word};
use crate::fleet::update::{About, Learned, Lesson};
use crate::fleet::{Backend, BackendId, Drain, Fact, Fleet, Place};
use crate::time::Instant;
use alloc::sync::Arc;

/// A proxy that was away missed no more losses than this, and no more changes: of one a second in
/// half a year. Who had counted as far as can be would be the last to be heard of any.
const COUNTS_AHEAD: u32 = 1 << 24;

/// Models of one backend whose tokens are told of, in its order: it may have a thousand adapters
/// behind those.
const LENGTHS_MAX: usize = 16;

/// Nor did it miss more orders of operators to drain a backend or not.
const DRAINS_AHEAD: u64 = 1 << 24;

/// Nobody inserts more tokens at a backend: of a million a second in nine years. What 64 proxies
/// insert, and those before them, is far from what a clock can count.
const INSERTED_MAX: u64 = 1 << 48;
/// Nor do all proxies together.
const CLOCK_MAX: u64 = 1 << 56;

/// Whether this may be true of a backend of which so much is known. What it says of times and loads
/// is bounded where it is used, and stamps are as near to the clock as may be.
fn is_believable(about: &About, known: &Shared, drain: Drain) -> bool {
    let inserted = about.clock.as_ref().map_or(0, |clock| clock.inserted_tokens);
    about.generation <= known.generation().saturating_add(COUNTS_AHEAD)
        && about.changes <= known.changes().saturating_add(COUNTS_AHEAD)
        && about.drains <= drain.changes().saturating_add(DRAINS_AHEAD)
        && about.inserted_tokens <= INSERTED_MAX
        && inserted <= CLOCK_MAX
}

impl Fleet {
    /// A request taught something of a backend, here or at another proxy.
    pub(crate) fn learn(&mut self, id: BackendId, lesson: Lesson) {
        let Some(backend) = super::find(&mut self.backends, id) else { return };
        match lesson {
            Lesson::Pace { work, time } => backend.load.pace_mut().learn(work, time),
            Lesson::Cached { promised_tokens, cached_tokens, chunk_tokens, had_more } => {
                backend.window.told();
                backend.trust.learn(promised_tokens, cached_tokens, u64::from(chunk_tokens));
                // More than was promised says that the cache is larger than believed only where a
                // chunk was believed to be gone. Otherwise it is the answer before this turn, which
                // nobody hashes.
                let cached_tokens =
                    if had_more { cached_tokens } else { cached_tokens.min(promised_tokens) };
                if let Some(index) = &mut self.index {
                    index.feedback(id, promised_tokens, cached_tokens, chunk_tokens);
                }
            }
        }
    }

    /// Another proxy says this of a backend; `None` for the word if it is a page of a snapshot.
    pub(crate) fn hear(&mut self, id: BackendId, about: &About, word: Option<Word>, now: Instant) {
        let Some(backend) = super::find(&mut self.backends, id) else { return };
        if !is_believable(about, &backend.shared, backend.drain) {
            return;
        }
        if let (Some(word), Some(in_hand)) = (word.filter(|word| word.lives), &about.in_hand) {
            backend.load.others.hear(word.place, word.number, in_hand, word.said);
        }
        self.hear_drain(id, about.drains);
        let Some(backend) = super::find(&mut self.backends, id) else { return };
        if backend.shared.told_changes(about.changes) {
            // What it was is not said: only the backend's own word counts.
            backend.rest.doubt();
            self.doubt_list(id);
            self.changed(id, now);
        }
        let Some(backend) = super::find(&mut self.backends, id) else { return };
        let lost = backend.shared.told(about.generation, word.map(|_| now));
        let current = about.generation == backend.shared.generation();
        if lost {
            backend.doubt_learned();
        }
        if current {
            backend.load.pace_mut().merge(about.learned.pace);
            backend.trust.merge(about.learned.trust);
        }
        if word.is_some_and(|word| word.new) && current {
            about.lessons.iter().for_each(|&lesson| self.learn(id, lesson));
        }
        for (model, length) in &about.learned.token_lengths {
            self.names.hear_length(model, *length);
        }
        self.hear_owned(id, &about.owned, now);
        let Some(index) = &mut self.index else { return };
        if lost {
            index.wipe(id);
        }
        if let Some(capacity) = about.learned.capacity.filter(|_| current) {
            index.merge_capacity(id, capacity);
        }
        // The counter first: what was placed is stamped by a clock that counts it.
        if let Some(Word { place, since_start, .. }) = word {
            let tokens = about.inserted_tokens;
            if since_start {
                index.merge_whole_counter(id, place.index(), tokens);
            } else {
                index.merge_counter(id, place.index(), tokens);
            }
        }
        if let Some(clock) = &about.clock {
            index.merge_clock(id, Place::FORGOTTEN.index(), clock.inserted_tokens);
            index.merge_fresh(id, clock.fresh_tokens);
        }
        for placed in about.placed.iter().filter(|_| current) {
            for &chunk in &placed.chunks {
                index.merge(Fact { backend: id, chunk, stamp: placed.stamp });
            }
        }
    }

    /// Another proxy says what a third has inserted at a backend.
    pub(crate) fn hear_counter(&mut self, id: BackendId, of: Place, tokens: u64) {
        if let Some(index) = &mut self.index
            && tokens <= INSERTED_MAX
        {
            index.merge_told_counter(id, of.index(), Place::FORGOTTEN.index(), tokens);
        }
    }

    /// A place is another proxy's from now on.
    pub(crate) fn replace_proxy(&mut self, taken: Option<Place>) {
        if let (Some(place), Some(index)) = (taken, &mut self.index) {
            index.replace_proxy(place.index(), Place::FORGOTTEN.index());
        }
    }

    /// What was learned of a backend, for other proxies.
    pub(crate) fn learned(&self, backend: &Backend) -> Learned {
        let lengths = backend.models.iter().filter_map(|card| {
            let length = self.names.token_length(&card.id).told();
            (length.samples > 0).then(|| (Arc::from(card.id.as_str()), length))
        });
        Learned {
            pace: backend.load.pace().told(),
            trust: backend.trust.told_on(),
            capacity: self.index.as_ref().and_then(|index| index.told_capacity(backend.id)),
            token_lengths: lengths.take(LENGTHS_MAX).collect(),
        }
    }
}

impl Backend {
    /// It lost its cache, so it may be another process: what was learned of it holds until somebody
    /// knows better.
    pub(crate) const fn doubt_learned(&mut self) {
        self.load.pace_mut().doubt();
        self.trust.doubt();
    }
}
