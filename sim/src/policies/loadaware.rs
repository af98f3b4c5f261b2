//! production-stack's `loadaware` (vllm-project/production-stack#1035): the part of the prompt that
//! a server holds, less `beta` times how far its requests in flight are above the mean, in means.
//!
//! There the cache is looked up in LMCache's controller; here it is known exactly.

use super::{Candidate, Policy};
use crate::world::Ask;
use vllm_proxy_core::time::Instant;

/// The policy with its rate of exchange.
#[derive(Debug)]
pub(super) struct LoadAware {
    beta: f64,
}

impl LoadAware {
    pub(super) const fn new(beta: f64) -> Self {
        Self { beta }
    }
}

impl Policy for LoadAware {
    fn reads_cache(&self) -> bool {
        true
    }

    fn pick(&mut self, ask: &Ask<'_>, candidates: &[Candidate], _now: Instant) -> usize {
        let all: u32 = candidates.iter().map(|one| one.in_flight).sum();
        let mean = f64::from(all) / candidates.len() as f64;
        let score = |one: &Candidate| {
            let matched = one.cached as f64 / f64::from(ask.request.prompt.max(1));
            matched - self.beta * (f64::from(one.in_flight) - mean) / mean.max(1.0)
        };
        let better = |one: &usize, other: &usize| {
            let (one, other) = (&candidates[*one], &candidates[*other]);
            // Of equals the one with fewer requests, now and ever.
            score(one)
                .total_cmp(&score(other))
                .then(other.in_flight.cmp(&one.in_flight))
                .then(other.sent.cmp(&one.sent))
        };
        (0..candidates.len()).max_by(better).unwrap_or(0)
    }
}
