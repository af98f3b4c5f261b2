//! The score of this proxy, once more and plainly: marginal work in thousandths of a token.
//!
//! To hold the engine's own implementation against, decision by decision, and to try weights. Its
//! index is exact and has no limit of memory; it does not know other proxies.

use super::index::Index;
use super::{Candidate, Policy, fingerprint};
use crate::vllm::Usage;
use crate::world::Ask;
use std::collections::{BTreeMap, BTreeSet};
use vllm_proxy_core::rng::mix;
use vllm_proxy_core::time::{Duration, Instant};

/// Nanoseconds a token before anything is learned: 8,000 tokens/s, half of an H100's peak, since
/// prefill shares its steps with decode.
const PACE: i64 = 125_000;
/// Bytes a token in thousandths before anything is learned.
const TOKEN_BYTES: i64 = 4_000;
/// Tokens that each request costs at least, in thousandths.
const UNCACHED_MIN: i64 = 16_000;
/// Only prompts with more thousandths of tokens to compute tell how fast a server is.
const PACE_SAMPLE_MIN: i64 = 2_000_000;
/// What tokens inserted lately count for is halved in so many steps, by the time that as many were
/// inserted as all servers hold.
const STEPS: i64 = 8;
/// Millionths that are left after one step.
const STEP_LEFT: i128 = 917_004;
/// Tokens of a KV cache of which nothing is known.
const KV_TOKENS: u64 = 400_000;

/// The constants of the score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights {
    /// How much of its prefill each request in flight suffers, in thousandths.
    pub delay: i64,
    /// What a resident prompt token costs, in thousandths of a token.
    pub resident: i64,
    /// What a request in flight costs, in thousandths of a token.
    pub request: i64,
    /// What a token inserted lately costs, in thousandths of a token.
    pub inserted: i64,
    /// Tokens that the index believes to fit, in per cent of the KV cache.
    pub capacity_percent: u64,
    /// Whether `cached_tokens` of answers correct that.
    pub feedback: bool,
    /// Whether first tokens tell how fast servers are.
    pub learns_pace: bool,
    /// Whether a match counts only as far as the promises of late were kept there. Not part of the
    /// specification: an idea to be weighed.
    pub trust: bool,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            delay: 100,
            resident: 20,
            request: 100_000,
            inserted: 3,
            capacity_percent: 125,
            feedback: true,
            learns_pace: true,
            trust: false,
        }
    }
}

#[derive(Debug)]
struct Backend {
    in_flight: i64,
    resident: i64,
    queued: i64,
    /// Without a first token, by the number of their dispatch.
    pending: BTreeMap<u64, Prefill>,
    /// When prompts whose first token nobody sees are believed to be over.
    predicted: BTreeSet<(Instant, u64)>,
    last_first: Instant,
    /// Tokens inserted lately, in thousandths.
    inserted: i64,
    /// Nanoseconds a token.
    pace: i64,
    /// The part of promised tokens that was found in caches, of late, in thousandths.
    kept: i64,
}

#[derive(Clone, Copy, Debug)]
struct Prefill {
    uncached: i64,
    sent: Instant,
    predicted: Option<Instant>,
}

#[derive(Debug)]
struct Held {
    server: usize,
    dispatch: u64,
    prompt: i64,
    bytes: u64,
    /// Tokens that the index promised.
    promised: u64,
}

/// One proxy's view of all servers.
#[derive(Debug)]
pub struct Reference {
    weights: Weights,
    backends: Vec<Backend>,
    index: Index,
    requests: BTreeMap<u64, Held>,
    dispatches: u64,
    /// Bytes a token, in thousandths.
    token_bytes: i64,
    chunks: Vec<u64>,
    seed: u64,
    /// Thousandths of tokens inserted anywhere since the last step.
    turned: i64,
}

impl Backend {
    const fn new() -> Self {
        Self {
            in_flight: 0,
            resident: 0,
            queued: 0,
            pending: BTreeMap::new(),
            predicted: BTreeSet::new(),
            last_first: Instant::START,
            inserted: 0,
            pace: PACE,
            kept: 1_000,
        }
    }

    /// Uncached tokens in its queue, less the progress of the first.
    fn queue(&mut self, now: Instant) -> i64 {
        while let Some(&(at, dispatch)) = self.predicted.first()
            && at <= now
        {
            self.leave(dispatch);
            self.last_first = self.last_first.max(at);
        }
        let done = self.pending.first_key_value().map_or(0, |(_, head)| {
            let time = now.since(head.sent.max(self.last_first)).as_micros() as i64;
            (time.saturating_mul(1_000_000) / self.pace).min(head.uncached / 10 * 9)
        });
        self.queued - done
    }

    fn leave(&mut self, dispatch: u64) -> Option<Prefill> {
        let prefill = self.pending.remove(&dispatch)?;
        self.queued -= prefill.uncached;
        if let Some(at) = prefill.predicted {
            self.predicted.remove(&(at, dispatch));
        }
        Some(prefill)
    }
}

impl Reference {
    /// A proxy that knows nothing yet.
    pub fn new(weights: Weights, seed: u64) -> Self {
        Self {
            weights,
            backends: Vec::new(),
            index: Index::default(),
            requests: BTreeMap::new(),
            dispatches: 0,
            token_bytes: TOKEN_BYTES,
            chunks: Vec::new(),
            seed,
            turned: 0,
        }
    }

    /// Whether nothing is in hand, in none of its counts.
    pub fn is_idle(&self) -> bool {
        let idle = |one: &Backend| {
            let sums = [one.in_flight, one.resident, one.queued];
            sums == [0; 3] && one.pending.is_empty() && one.predicted.is_empty()
        };
        self.requests.is_empty() && self.backends.iter().all(idle)
    }

    /// Thousandths of tokens of so many bytes.
    fn estimate(&self, bytes: u64) -> i64 {
        i64::try_from(bytes).unwrap_or(i64::MAX).saturating_mul(1_000_000) / self.token_bytes
    }

    fn chunk_tokens(&self) -> i64 {
        self.estimate(fingerprint::CHUNK_BYTES)
    }

    /// Tokens of a prompt to be computed at a server, and how many chunks it holds.
    fn uncached(&self, server: usize, bytes: u64) -> (i64, usize) {
        let matched = self.index.matched(server, &self.chunks);
        let mut saved = self.chunk_tokens() * matched as i64;
        if self.weights.trust {
            saved = saved * self.backends[server].kept / 1_000;
        }
        ((self.estimate(bytes) - saved).max(UNCACHED_MIN), matched)
    }

    /// So many thousandths of tokens are new at a server.
    fn insert(&mut self, server: usize, new: i64) {
        self.turned += new;
        let step = KV_TOKENS as i64 * 1_000 * self.backends.len() as i64 / STEPS;
        self.backends[server].inserted += new;
        while self.turned >= step {
            self.turned -= step;
            for one in &mut self.backends {
                let left = i128::from(one.inserted) * STEP_LEFT / 1_000_000;
                one.inserted = i64::try_from(left).unwrap_or(0);
            }
        }
    }

    fn start_capacity(&self) -> u64 {
        KV_TOKENS * self.weights.capacity_percent / 100
    }

    /// The index promised too much or too little.
    fn correct(&mut self, server: usize, promised: u64, cached: u64) {
        let chunk = (self.chunk_tokens() / 1_000) as u64;
        let start = self.start_capacity();
        let mut capacity = self.index.capacity(server);
        if promised > cached + chunk {
            capacity -= capacity * (promised - cached) / (20 * promised);
        } else if promised > 0 {
            capacity += capacity / 500;
        }
        if cached > promised + chunk {
            capacity += capacity / 50;
        }
        self.index.set_capacity(server, capacity.clamp(start / 10, start * 2));
    }
}

/// Work, requests in flight, tokens inserted lately, a hash and the number: in the order of their
/// weight.
type Rank = (i64, i64, i64, u64, usize);

impl Reference {
    /// How the candidates rank for a request; the least is the best.
    fn ranks(&mut self, ask: &Ask<'_>, candidates: &[Candidate], now: Instant) -> Vec<Rank> {
        fingerprint(ask, &mut self.chunks);
        let weights = self.weights;
        let paces = || candidates.iter().map(|one| self.backends[one.server].pace);
        let (fastest, slowest) = (paces().min().unwrap_or(PACE), paces().max().unwrap_or(PACE));
        let differ = slowest * 100 > fastest * 120;
        let backends = &mut self.backends;
        let lately: Vec<_> = candidates.iter().map(|one| backends[one.server].inserted).collect();
        let least = lately.iter().copied().min().unwrap_or(0);
        let key = self.chunks.first().copied().unwrap_or_else(|| mix(self.seed ^ ask.id));
        let rank = |(one, lately): (&Candidate, i64)| {
            let (uncached, _) = self.uncached(one.server, ask.prompt_bytes);
            let backend = &mut self.backends[one.server];
            let n = backend.in_flight;
            let work = backend.queue(now)
                + uncached
                + uncached * weights.delay * n / 1_000
                + backend.resident * weights.resident / 1_000
                + weights.request * n;
            let work = if differ {
                i64::try_from(i128::from(work) * i128::from(backend.pace) / i128::from(fastest))
                    .unwrap_or(i64::MAX)
            } else {
                work
            };
            let cost = work.saturating_add((lately - least) * weights.inserted / 1_000);
            let turn = mix(mix(key).wrapping_add(one.server as u64));
            (cost, n, lately, turn, one.server)
        };
        candidates.iter().zip(lately).map(rank).collect()
    }

    /// How much more work than at the best candidate it is at the one that somebody chose.
    pub fn regret(
        &mut self,
        ask: &Ask<'_>,
        candidates: &[Candidate],
        chosen: usize,
        now: Instant,
    ) -> i64 {
        let ranks = self.ranks(ask, candidates, now);
        let best = ranks.iter().map(|rank| rank.0).min().unwrap_or(0);
        ranks.iter().find(|rank| rank.4 == chosen).map_or(0, |rank| rank.0 - best)
    }
}

impl Policy for Reference {
    fn start(&mut self, servers: usize) {
        self.backends = (0..servers).map(|_| Backend::new()).collect();
        self.index = Index::new(servers, self.start_capacity());
    }

    fn pick(&mut self, ask: &Ask<'_>, candidates: &[Candidate], now: Instant) -> usize {
        let ranks = self.ranks(ask, candidates, now);
        let best = ranks.iter().enumerate().min_by_key(|(_, rank)| **rank);
        best.map_or(0, |(place, _)| place)
    }

    fn sent(&mut self, ask: &Ask<'_>, server: usize, now: Instant) {
        let (uncached, matched) = self.uncached(server, ask.prompt_bytes);
        let chunk_tokens = self.chunk_tokens();
        let new = chunk_tokens * (self.chunks.len() - matched) as i64;
        self.index.insert(server, &self.chunks, (new / 1_000) as u64);
        let prompt = self.estimate(ask.prompt_bytes);
        self.insert(server, new);
        let backend = &mut self.backends[server];
        let queued = backend.queue(now);
        let dispatch = self.dispatches;
        self.dispatches += 1;
        let predicted = (!ask.stream).then(|| {
            let nanos = i128::from(queued + uncached) * i128::from(backend.pace) / 1_000;
            now + Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
        });
        if let Some(at) = predicted {
            backend.predicted.insert((at, dispatch));
        }
        backend.pending.insert(dispatch, Prefill { uncached, sent: now, predicted });
        backend.queued += uncached;
        backend.resident += prompt;
        backend.in_flight += 1;
        let promised = (chunk_tokens * matched as i64 / 1_000) as u64;
        let bytes = ask.prompt_bytes;
        self.requests.insert(ask.id, Held { server, dispatch, prompt, bytes, promised });
    }

    fn first_byte(&mut self, id: u64, now: Instant) {
        let Some(held) = self.requests.get(&id) else { return };
        let backend = &mut self.backends[held.server];
        backend.queue(now);
        let is_head = backend.pending.first_key_value().map(|(first, _)| *first);
        let Some(prefill) = backend.leave(held.dispatch) else { return };
        // Of an answer in one piece nobody saw the first token.
        let seen = prefill.predicted.is_none();
        let tells = self.weights.learns_pace && seen && prefill.uncached > PACE_SAMPLE_MIN;
        if tells && is_head == Some(held.dispatch) {
            let time = now.since(prefill.sent.max(backend.last_first)).as_micros() as i64;
            let pace = time.saturating_mul(1_000_000) / prefill.uncached;
            backend.pace += (pace.clamp(PACE / 3, PACE * 10) - backend.pace) / 100;
        }
        backend.last_first = backend.last_first.max(now);
    }

    fn over(&mut self, id: u64, usage: Option<Usage>, _now: Instant) {
        let Some(held) = self.requests.remove(&id) else { return };
        let chunk_tokens = self.chunk_tokens();
        let backend = &mut self.backends[held.server];
        backend.leave(held.dispatch);
        backend.resident -= held.prompt;
        backend.in_flight -= 1;
        let Some(usage) = usage else { return };
        let slack = (chunk_tokens / 1_000) as u64;
        let found = u64::from(usage.cached);
        let found = if found + slack >= held.promised { held.promised } else { found };
        if let Some(kept) = (found * 1_000).checked_div(held.promised) {
            let way = kept as i64 - backend.kept;
            // Rounded away from where it is, so that it gets all the way.
            backend.kept += (way + way.signum() * 15) / 16;
        }
        self.insert(held.server, i64::from(usage.completion) * 1_000);
        self.index.insert(held.server, &[], u64::from(usage.completion));
        let sample = held.bytes as i64 * 1_000 / i64::from(usage.prompt.max(1));
        self.token_bytes += (sample.clamp(1_500, 8_000) - self.token_bytes) / 100;
        if self.weights.feedback {
            self.correct(held.server, held.promised, u64::from(usage.cached));
        }
    }

    fn returned(&mut self, server: usize) {
        self.index.wipe(server);
        self.backends[server].pace = PACE;
    }
}
