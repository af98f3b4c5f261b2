//! Learning: what an answer's usage says of the estimates that it was sent by.
//!
//! Knows who keeps which estimate; how far one answer moves it is the estimate's own.

use super::Engine;
use crate::fleet::Lesson;
use crate::route::{Held, Usage};

impl Engine {
    /// An answer said what it cost.
    pub(super) fn learn(&mut self, held: &Held, usage: Usage) {
        if let Some(name) = held.pool.model()
            && let Some((_, model, _)) = self.fleet.model(name)
        {
            model.token_length.learn(held.prompt_bytes, usage.prompt);
            self.tell_length(held, usage.prompt);
        }
        // Its tokens are in the cache now as well.
        if let Some(index) = &mut self.fleet.index {
            index.grew(held.backend, usage.completion);
        }
        let Some(cached) = usage.cached.map(|cached| cached.min(usage.prompt)) else { return };
        if let Some(backend) = self.fleet.backend_mut(held.backend) {
            backend.counts.cached_tokens = backend.counts.cached_tokens.saturating_add(cached);
        }
        let lesson = Lesson::Cached {
            promised_tokens: held.promise.tokens,
            cached_tokens: cached,
            chunk_tokens: held.promise.chunk_tokens,
            had_more: held.promise.had_more,
        };
        self.fleet.learn(held.backend, lesson);
        self.tell_lesson(held.backend, Some(lesson));
    }
}
