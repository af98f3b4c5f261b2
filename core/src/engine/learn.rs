//! Learning: what an answer's usage says of the estimates that it was sent by.
//!
//! Knows who keeps which estimate; how far one answer moves it is the estimate's own.

use super::Engine;
use crate::fleet::Lesson;
use crate::route::{Held, Usage};
use crate::time::Instant;

/// No answer has more tokens, whatever is said: models of the longest contexts end at 10 million.
/// A clock of a cache comes round after 68 billion tokens. Taken at their word, four absurd answers
/// would take it there, and proxies that sweep at different times would not know the same of what
/// is that old.
const COMPLETION_MAX: u64 = 1 << 24;

impl Engine {
    /// An answer said what it cost.
    pub(super) fn learn(&mut self, held: &Held, usage: Usage, now: Instant) {
        if let Some(name) = held.pool.model()
            && let Some((_, model, _)) = self.fleet.model(name)
        {
            model.token_length.learn(held.prompt_bytes, usage.prompt);
            self.tell_length(held, usage.prompt);
        }
        // Its tokens are in the cache now as well.
        if let Some(index) = &mut self.fleet.index {
            index.grew(held.backend, usage.completion.min(COMPLETION_MAX));
        }
        let Some(cached) = usage.cached.map(|cached| cached.min(usage.prompt)) else { return };
        let promised = in_its_tokens(held, usage.prompt);
        self.count_tokens(held.backend, usage.prompt, promised, cached, now);
        let lesson = Lesson::Cached {
            promised_tokens: promised,
            cached_tokens: cached,
            chunk_tokens: held.promise.chunk_tokens,
            had_more: held.promise.had_more,
        };
        self.fleet.learn(held.backend, lesson);
        self.tell_lesson(held.backend, Some(lesson));
    }
}

/// What was promised of a prompt that turned out to have so many tokens. If they are fewer than was
/// estimated, its text has long ones, and the part promised has, too: nothing is missing of it. If
/// they are more, that may be an image, which says nothing of the text.
fn in_its_tokens(held: &Held, prompt: u64) -> u64 {
    let estimated = u128::try_from(held.work.prompt / 1_000).unwrap_or(0);
    let promised = u128::from(held.promise.tokens) * u128::from(prompt);
    let promised = promised.checked_div(estimated).unwrap_or(0);
    u64::try_from(promised).unwrap_or(u64::MAX).min(held.promise.tokens)
}
