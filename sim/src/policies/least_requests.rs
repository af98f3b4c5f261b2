//! Least requests, as nginx's `least_conn` and most balancers: the fewest in flight, ties by
//! chance.

use super::peer::least;
use super::{Candidate, Policy};
use crate::world::Ask;
use vllm_proxy_core::rng::Rng;
use vllm_proxy_core::time::Instant;

/// The fewest requests.
#[derive(Debug)]
pub(super) struct LeastRequests {
    rng: Rng,
}

impl LeastRequests {
    pub(super) const fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed) }
    }
}

impl Policy for LeastRequests {
    fn pick(&mut self, _ask: &Ask<'_>, candidates: &[Candidate], _now: Instant) -> usize {
        least(candidates, &mut self.rng, |one| one.in_flight)
    }
}
