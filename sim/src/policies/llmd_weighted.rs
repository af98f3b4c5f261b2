//! The weighted scorers of llm-d and the Gateway API inference extension (llm-d/llm-d-router,
//! `pkg/epp/framework/plugins/scheduling/scorer/{prefix,queuedepth,kvcacheutilization}`), weights
//! 3, 2 and 2: the part of the prompt that is cached, the scraped queue between the longest and the
//! shortest of all, and the scraped part of the KV cache that is free.

use super::peer::least;
use super::{Candidate, Policy};
use crate::world::Ask;
use vllm_proxy_core::rng::Rng;
use vllm_proxy_core::time::{Duration, Instant};

/// The scorers, and how often metrics are scraped.
#[derive(Debug)]
pub(super) struct Weighted {
    every: Duration,
    rng: Rng,
}

impl Weighted {
    pub(super) const fn new(every: Duration, seed: u64) -> Self {
        Self { every, rng: Rng::new(seed) }
    }
}

impl Policy for Weighted {
    fn reads_cache(&self) -> bool {
        true
    }

    fn reads_metrics_every(&self) -> Option<Duration> {
        Some(self.every)
    }

    fn pick(&mut self, ask: &Ask<'_>, candidates: &[Candidate], _now: Instant) -> usize {
        let queues = || candidates.iter().map(|one| one.gauges.waiting);
        let (shortest, longest) = (queues().min().unwrap_or(0), queues().max().unwrap_or(0));
        let range = (longest - shortest) as f64;
        least(candidates, &mut self.rng, |one| {
            let prefix = one.cached as f64 / f64::from(ask.request.prompt.max(1));
            let queue = match longest - one.gauges.waiting {
                _ if range == 0.0 => 1.0,
                shorter => shorter as f64 / range,
            };
            let kv = 1.0 - f64::from(one.gauges.kv_permille) / 1_000.0;
            -(3.0 * prefix + 2.0 * queue + 2.0 * kv)
        })
    }
}
