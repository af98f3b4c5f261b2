//! Dynamo's KV router (ai-dynamo/dynamo, `lib/kv-router/src/scheduling/selector.rs`) at
//! temperature 0: `weight * prefill blocks + active blocks`, the least wins. Prefill blocks are
//! those to compute at a server with this prompt's, active ones those in use there with this
//! prompt's, shared ones counted once.

use super::{Candidate, Policy};
use crate::map::Map;
use crate::world::Ask;
use std::collections::BTreeMap;
use std::sync::Arc;
use vllm_proxy_core::time::Instant;

/// The policy with its weight.
#[derive(Debug)]
pub(super) struct Dynamo {
    weight: f64,
    /// How many requests use a block, server by server.
    active: Vec<Map<u32>>,
    requests: BTreeMap<u64, (usize, Arc<[u64]>)>,
}

impl Dynamo {
    pub(super) const fn new(weight: f64) -> Self {
        Self { weight, active: Vec::new(), requests: BTreeMap::new() }
    }
}

impl Policy for Dynamo {
    fn reads_cache(&self) -> bool {
        true
    }

    fn start(&mut self, servers: usize) {
        self.active = vec![Map::default(); servers];
    }

    fn pick(&mut self, ask: &Ask<'_>, candidates: &[Candidate], _now: Instant) -> usize {
        let prompt = u64::from(ask.request.prompt);
        let cost = |one: &Candidate| {
            let active = &self.active[one.server];
            let blocks = ask.request.blocks.iter();
            let more = blocks.filter(|block| !active.contains_key(*block)).count();
            let prefill = one.queued + prompt.saturating_sub(one.cached);
            let prefill = prefill as f64 / f64::from(ask.block_tokens);
            self.weight * prefill + (active.len() + more) as f64
        };
        let costs: Vec<_> = candidates.iter().map(cost).collect();
        let better =
            |one: &usize, other: &usize| costs[*one].total_cmp(&costs[*other]).then(one.cmp(other));
        (0..candidates.len()).min_by(better).unwrap_or(0)
    }

    fn sent(&mut self, ask: &Ask<'_>, server: usize, _now: Instant) {
        for &block in &*ask.request.blocks {
            *self.active[server].entry(block).or_insert(0) += 1;
        }
        self.requests.insert(ask.id, (server, ask.request.blocks.clone()));
    }

    fn over(&mut self, id: u64, _usage: Option<crate::vllm::Usage>, _now: Instant) {
        let Some((server, blocks)) = self.requests.remove(&id) else { return };
        let active = &mut self.active[server];
        for block in &*blocks {
            if let Some(users) = active.get_mut(block) {
                *users -= 1;
                if *users == 0 {
                    active.remove(block);
                }
            }
        }
    }
}
