//! Power of two choices (Mitzenmacher 2001; Envoy's default for least request): of two drawn by
//! chance the one with fewer requests in flight.

use super::{Candidate, Policy};
use crate::world::Ask;
use vllm_proxy_core::rng::Rng;
use vllm_proxy_core::time::Instant;

/// The better of two.
#[derive(Debug)]
pub(super) struct PowerOfTwo {
    rng: Rng,
}

impl PowerOfTwo {
    pub(super) const fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed) }
    }
}

impl Policy for PowerOfTwo {
    fn pick(&mut self, _ask: &Ask<'_>, candidates: &[Candidate], _now: Instant) -> usize {
        let count = candidates.len() as u64;
        let one = self.rng.below(count);
        let other = (one + 1 + self.rng.below(count.saturating_sub(1))) % count;
        let (one, other) = (one as usize, other as usize);
        if candidates[other].in_flight < candidates[one].in_flight { other } else { one }
    }
}
