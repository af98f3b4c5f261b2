//! smg's `cache_aware` (lightseekorg/smg, `model_gateway/src/policies/cache_aware.rs`): a tree of
//! the prompts that were sent where.
//!
//! While loads are balanced, a prompt of which more than a threshold is in the tree goes to whoever
//! got that before; any other one to who has the fewest requests. Loads are out of balance when the
//! most are more than `abs` above the fewest and more than `rel` times as many; then the fewest
//! decide. The tree is not evicted from: its limit, 67 million nodes, is beyond these runs.

use super::{Candidate, Policy, fingerprint};
use crate::map::Map;
use crate::world::Ask;
use vllm_proxy_core::time::Instant;

/// The policy with its three thresholds.
#[derive(Debug)]
pub(super) struct CacheAware {
    threshold: f64,
    abs: u32,
    rel: f64,
    /// Who got a chunk last.
    tree: Map<usize>,
    chunks: Vec<u64>,
}

impl CacheAware {
    pub(super) fn new(threshold: f64, abs: u32, rel: f64) -> Self {
        Self { threshold, abs, rel, tree: Map::default(), chunks: Vec::new() }
    }
}

impl Policy for CacheAware {
    fn pick(&mut self, ask: &Ask<'_>, candidates: &[Candidate], _now: Instant) -> usize {
        fingerprint(ask, &mut self.chunks);
        let fewest = (0..candidates.len())
            .min_by_key(|&place| (candidates[place].in_flight, candidates[place].sent, place))
            .unwrap_or(0);
        let least = candidates[fewest].in_flight;
        let most = candidates.iter().map(|one| one.in_flight).max().unwrap_or(0);
        if most - least > self.abs && f64::from(most) > f64::from(least) * self.rel {
            return fewest;
        }
        let known = self.chunks.iter().map_while(|chunk| self.tree.get(chunk));
        let (count, last) = known.fold((0, None), |(count, _), server| (count + 1, Some(*server)));
        let rate = count as f64 / self.chunks.len().max(1) as f64;
        last.filter(|_| rate > self.threshold)
            .and_then(|server| candidates.binary_search_by_key(&server, |one| one.server).ok())
            .unwrap_or(fewest)
    }

    fn sent(&mut self, _ask: &Ask<'_>, server: usize, _now: Instant) {
        for &chunk in &self.chunks {
            self.tree.insert(chunk, server);
        }
    }
}
