//! Learning: what an answer's usage says of the estimates that it was sent by.
//!
//! Knows who keeps which estimate; how far one answer moves it is the estimate's own.

use super::Engine;
use crate::route::{Held, Usage};

impl Engine {
    /// An answer said what it cost.
    pub(super) fn learn(&mut self, held: &Held, usage: Usage) {
        if let Some(name) = held.pool.model()
            && let Some((_, model, _)) = self.fleet.model(name)
        {
            model.token_length.learn(held.prompt_bytes, usage.prompt);
        }
        // Its tokens are in the cache now as well.
        if let Some(index) = &mut self.fleet.index {
            index.grew(held.backend, usage.completion);
        }
        let Some(cached) = usage.cached.map(|cached| cached.min(usage.prompt)) else { return };
        let promise = held.promise;
        if let Some(backend) = self.fleet.backend_mut(held.backend) {
            backend.window.told();
            backend.counts.cached_tokens = backend.counts.cached_tokens.saturating_add(cached);
            backend.trust.learn(promise.tokens, cached, u64::from(promise.chunk_tokens));
        }
        // More than was promised says that the cache is larger than believed only where a chunk was
        // believed to be gone. Otherwise it is the answer before this turn, which nobody hashes.
        let cached = if promise.had_more { cached } else { cached.min(promise.tokens) };
        if let Some(index) = &mut self.fleet.index {
            index.feedback(held.backend, promise.tokens, cached, promise.chunk_tokens);
        }
    }
}
