//! llm-d's `prefix-cache-affinity-filter` and `token-load-scorer` (llm-d/llm-d-router,
//! `pkg/epp/framework/plugins/scheduling/{filter/prefixcacheaffinity,scorer/tokenload}`).
//!
//! Servers that hold at least 80 % of the prompt are kept, but for 1 % of all requests, and unless
//! the best of them would take longer than the best of the others by more than a limit. Of those
//! kept the one with the fewest tokens to prefill is chosen, this prompt's counted in
//! (llm-d/llm-d-router#1319). Time is tokens in flight that are not cached, by the peak throughput
//! of 15,926 tokens/s (llm-d/llm-d-router#1547, llm-d/llm-d#2071); the limit for that source is
//! 18 s by default (llm-d/llm-d-router#1639), 5 s before. Tokens count until the first of the
//! answer came; before llm-d/llm-d-router#1029 whole prompts counted until the answer's end.

use super::peer::least;
use super::{Candidate, Policy};
use crate::world::Ask;
use vllm_proxy_core::rng::Rng;
use vllm_proxy_core::time::Instant;

const THRESHOLD: f64 = 0.8;
/// Of 10,000 requests so many ignore the filter.
const EXPLORING: u64 = 100;
const PEAK: f64 = 15_926.0;

/// What is in flight.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tokens {
    /// What is to be prefilled.
    Uncached,
    /// All prompts, until their answers end.
    Prompts,
}

/// The filter with its limit in seconds.
#[derive(Debug)]
pub(super) struct Affinity {
    penalty_s_max: f64,
    tokens: Tokens,
    rng: Rng,
}

impl Affinity {
    pub(super) const fn new(penalty_s_max: f64, tokens: Tokens, seed: u64) -> Self {
        Self { penalty_s_max, tokens, rng: Rng::new(seed) }
    }
}

impl Policy for Affinity {
    fn reads_cache(&self) -> bool {
        true
    }

    fn pick(&mut self, ask: &Ask<'_>, candidates: &[Candidate], _now: Instant) -> usize {
        let prompt = u64::from(ask.request.prompt);
        let sticks = |one: &Candidate| one.cached as f64 >= THRESHOLD * prompt as f64;
        let tokens = self.tokens;
        let in_flight = |one: &Candidate| match tokens {
            Tokens::Uncached => one.queued,
            Tokens::Prompts => one.prompts,
        };
        let quickest = |sticky: bool| {
            let some = candidates.iter().filter(|one| sticks(one) == sticky);
            some.map(|one| in_flight(one) as f64 / PEAK).min_by(f64::total_cmp)
        };
        let explores = self.rng.below(10_000) < EXPLORING;
        let keeps = match (quickest(true), quickest(false)) {
            (Some(sticky), Some(other)) => !explores && sticky - other <= self.penalty_s_max,
            (Some(_), None) | (None, _) => false,
        };
        // Those that are filtered out come after all others.
        least(candidates, &mut self.rng, |one| {
            let own = match tokens {
                Tokens::Uncached => prompt.saturating_sub(one.cached),
                Tokens::Prompts => 0,
            };
            (keeps && !sticks(one), in_flight(one) + own)
        })
    }
}
