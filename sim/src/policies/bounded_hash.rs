//! Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2016): the prompt's
//! beginning names a place on a ring; whoever comes next there takes the request, unless that would
//! be more than 1.25 times its share of all requests in flight.
//!
//! As KubeAI does it (substratusai/kubeai, `internal/loadbalancer/balance_chwbl.go`): 256 places a
//! server and a mean load factor of 125 %. The key there is the first 100 characters, here the
//! first chunk of 512 bytes.

use super::{Candidate, Policy, fingerprint};
use crate::world::Ask;
use vllm_proxy_core::rng::mix;
use vllm_proxy_core::time::Instant;

const PLACES: u64 = 256;

/// A ring of servers.
#[derive(Debug)]
pub(super) struct BoundedHash {
    ring: Vec<(u64, usize)>,
    chunks: Vec<u64>,
}

impl BoundedHash {
    pub(super) const fn new() -> Self {
        Self { ring: Vec::new(), chunks: Vec::new() }
    }
}

impl Policy for BoundedHash {
    fn start(&mut self, servers: usize) {
        let places = (0..servers).flat_map(|server| {
            (0..PLACES).map(move |place| (mix(mix(server as u64 + 1) ^ place), server))
        });
        self.ring = places.collect();
        self.ring.sort_unstable();
    }

    fn pick(&mut self, ask: &Ask<'_>, candidates: &[Candidate], _now: Instant) -> usize {
        fingerprint(ask, &mut self.chunks);
        // A prompt of less than a chunk is its own key.
        let key = self.chunks.first().or(ask.request.blocks.first()).copied().unwrap_or_default();
        let all: u64 = candidates.iter().map(|one| u64::from(one.in_flight)).sum();
        let most = ((all + 1) * 125).div_ceil(100 * candidates.len() as u64);
        let from = self.ring.partition_point(|(place, _)| *place < mix(key));
        let round = self.ring[from..].iter().chain(&self.ring[..from]);
        let mut places = round.filter_map(|(_, server)| {
            candidates.binary_search_by_key(server, |one| one.server).ok()
        });
        places.find(|&place| u64::from(candidates[place].in_flight) < most).unwrap_or(0)
    }
}
