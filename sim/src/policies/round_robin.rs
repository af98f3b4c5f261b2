//! Round robin: each in turn, whatever it has in hand.

use super::{Candidate, Policy};
use crate::world::Ask;
use vllm_proxy_core::time::Instant;

/// Each in turn.
#[derive(Debug, Default)]
pub(super) struct RoundRobin {
    next: usize,
}

impl Policy for RoundRobin {
    fn pick(&mut self, _ask: &Ask<'_>, candidates: &[Candidate], _now: Instant) -> usize {
        let place = candidates.partition_point(|one| one.server < self.next) % candidates.len();
        self.next = candidates[place].server + 1;
        place
    }
}
