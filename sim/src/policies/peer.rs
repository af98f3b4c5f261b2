//! What any proxy can count by itself, counted for a policy that is nothing but a formula.
//!
//! Knows at once who is down, which flatters other routers: how they find out is not compared here.

use crate::vllm::{Gauges, Usage};
use crate::world::{Answer, Ask, Counts, End, Router, Server, Word};
use std::collections::{BTreeMap, VecDeque};
use vllm_proxy_core::engine::Link;
use vllm_proxy_core::route::Failure;
use vllm_proxy_core::time::{Duration, Instant};

/// How often one request is sent at most.
const ATTEMPTS_MAX: usize = 3;

/// A server that may take a request, in the numbers that formulas ask for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Candidate {
    /// Its number.
    pub server: usize,
    /// Requests sent there and not over.
    pub in_flight: u32,
    /// Requests ever sent there.
    pub sent: u64,
    /// Prompt tokens to be computed there of requests without a first token.
    pub queued: u64,
    /// Prompt tokens, cached or not, of requests sent there and not over.
    pub prompts: u64,
    /// Tokens of this prompt that it holds; 0 unless the policy reads caches.
    pub cached: u64,
    /// What its metrics said when they were read last.
    pub gauges: Gauges,
}

/// A formula.
pub trait Policy {
    /// Whether it knows exactly what servers hold, as by events of their KV caches.
    fn reads_cache(&self) -> bool {
        false
    }

    /// How often it reads the metrics of servers.
    fn reads_metrics_every(&self) -> Option<Duration> {
        None
    }

    /// The place of the best candidate. There is at least one, in the order of their numbers.
    fn pick(&mut self, ask: &Ask<'_>, candidates: &[Candidate], now: Instant) -> usize;

    /// There are so many servers.
    fn start(&mut self, _servers: usize) {}

    /// A request was sent to this server.
    fn sent(&mut self, _ask: &Ask<'_>, _server: usize, _now: Instant) {}

    /// The first byte of its answer came.
    fn first_byte(&mut self, _id: u64, _now: Instant) {}

    /// It is over there, with what the answer said of its cost.
    fn over(&mut self, _id: u64, _usage: Option<Usage>, _now: Instant) {}

    /// This server was away and has an empty cache now.
    fn returned(&mut self, _server: usize) {}
}

#[derive(Debug)]
struct Held {
    server: usize,
    prompt: u64,
    uncached: u64,
    waits: bool,
    tried: Vec<usize>,
}

/// A proxy around a policy.
#[derive(Debug)]
pub struct Peer<P> {
    policy: P,
    counts: Vec<Candidate>,
    alive: Vec<bool>,
    held: BTreeMap<u64, Held>,
    candidates: Vec<Candidate>,
    next_reading: Instant,
    /// Its number among proxies, if they share their counts.
    proxy: Option<usize>,
    number: u64,
    words: VecDeque<Word>,
    /// The last word of each other proxy on each server, with its number. Counts are shared, and
    /// nothing else: what servers hold is known exactly by those who ask, and what a policy learned
    /// or remembers is its own.
    others: BTreeMap<(usize, usize), (u64, Counts)>,
}

impl<P: Policy> Peer<P> {
    /// A proxy that routes by this policy.
    pub fn new(policy: P) -> Self {
        Self {
            policy,
            counts: Vec::new(),
            alive: Vec::new(),
            held: BTreeMap::new(),
            candidates: Vec::new(),
            next_reading: Instant::START,
            proxy: None,
            number: 0,
            words: VecDeque::new(),
            others: BTreeMap::new(),
        }
    }

    /// The policy.
    pub const fn policy(&self) -> &P {
        &self.policy
    }

    fn send(
        &mut self,
        ask: &Ask<'_>,
        mut tried: Vec<usize>,
        servers: &[Server],
        now: Instant,
    ) -> Answer {
        self.notice(servers);
        let reads_cache = self.policy.reads_cache();
        self.candidates.clear();
        for (count, server) in self.counts.iter().zip(servers) {
            if server.alive && server.listed && !tried.contains(&count.server) {
                let cached = if reads_cache {
                    server.vllm.cached(&ask.request.blocks, ask.request.prompt)
                } else {
                    0
                };
                let mut candidate = Candidate { cached: u64::from(cached), ..*count };
                let here = (count.server, 0)..=(count.server, usize::MAX);
                for (_, (_, theirs)) in self.others.range(here) {
                    candidate.in_flight += theirs.in_flight;
                    candidate.sent += theirs.sent;
                    candidate.queued += theirs.queued;
                    candidate.prompts += theirs.prompts;
                }
                self.candidates.push(candidate);
            }
        }
        if self.candidates.is_empty() || tried.len() >= ATTEMPTS_MAX {
            return Answer::Refuse;
        }
        let chosen = self.candidates[self.policy.pick(ask, &self.candidates, now)];
        let prompt = u64::from(ask.request.prompt);
        let uncached = prompt.saturating_sub(chosen.cached);
        let count = &mut self.counts[chosen.server];
        count.in_flight += 1;
        count.sent += 1;
        count.queued += uncached;
        count.prompts += prompt;
        self.tell(chosen.server);
        self.policy.sent(ask, chosen.server, now);
        tried.push(chosen.server);
        self.held
            .insert(ask.id, Held { server: chosen.server, prompt, uncached, waits: true, tried });
        Answer::Send(chosen.server)
    }

    fn notice(&mut self, servers: &[Server]) {
        for (index, (alive, server)) in self.alive.iter_mut().zip(servers).enumerate() {
            if server.alive && !*alive {
                self.policy.returned(index);
            }
            *alive = server.alive;
        }
    }

    fn release(&mut self, id: u64, usage: Option<Usage>, now: Instant) -> Vec<usize> {
        let Some(held) = self.held.remove(&id) else { return Vec::new() };
        let count = &mut self.counts[held.server];
        count.in_flight -= 1;
        count.prompts -= held.prompt;
        if held.waits {
            count.queued -= held.uncached;
        }
        self.tell(held.server);
        self.policy.over(id, usage, now);
        held.tried
    }

    /// Tells the others what is counted at a server.
    fn tell(&mut self, server: usize) {
        let Some(proxy) = self.proxy else { return };
        let Candidate { in_flight, sent, queued, prompts, .. } = self.counts[server];
        let counts = Counts { server, in_flight, sent, queued, prompts };
        self.number += 1;
        self.words.push_back(Word::Counts { proxy, number: self.number, counts });
    }
}

impl<P: Policy> Router for Peer<P> {
    fn share(&mut self, proxy: usize) {
        self.proxy = Some(proxy);
    }

    fn stop(&mut self, now: Instant) {
        while let Some((&id, _)) = self.held.first_key_value() {
            self.release(id, None, now);
        }
        self.words.clear();
        self.others.clear();
    }

    fn gone(&mut self, proxy: usize) {
        self.others.retain(|&(_, other), _| other != proxy);
    }

    fn link(&mut self, link: Link, _now: Instant) {
        if link == Link::Lost {
            self.others.clear();
        }
    }

    fn poll_word(&mut self) -> Option<Word> {
        self.words.pop_front()
    }

    fn hear(&mut self, word: &Word, _now: Instant) {
        let Word::Counts { proxy, number, counts } = word else { return };
        if self.proxy == Some(*proxy) {
            return;
        }
        let known = self.others.entry((counts.server, *proxy)).or_default();
        if known.0 < *number {
            *known = (*number, *counts);
        }
    }

    fn start(&mut self, servers: usize, _now: Instant) {
        let count = |server| Candidate { server, ..Candidate::default() };
        self.counts = (0..servers).map(count).collect();
        self.alive = vec![true; servers];
        self.policy.start(servers);
    }

    fn route(&mut self, ask: &Ask<'_>, servers: &[Server], now: Instant) -> Answer {
        self.send(ask, Vec::new(), servers, now)
    }

    fn retry(&mut self, ask: &Ask<'_>, _why: Failure, servers: &[Server], now: Instant) -> Answer {
        let tried = self.release(ask.id, None, now);
        self.send(ask, tried, servers, now)
    }

    fn first_byte(&mut self, id: u64, now: Instant) {
        if let Some(held) = self.held.get_mut(&id)
            && held.waits
        {
            held.waits = false;
            let server = held.server;
            self.counts[server].queued -= held.uncached;
            self.tell(server);
        }
        self.policy.first_byte(id, now);
    }

    fn finish(&mut self, id: u64, end: End, now: Instant) {
        self.release(id, end.usage(), now);
    }

    fn in_hand(&self) -> usize {
        self.held.len()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.policy.reads_metrics_every().map(|_| self.next_reading)
    }

    fn handle_timeout(&mut self, servers: &[Server], now: Instant) {
        let Some(every) = self.policy.reads_metrics_every() else { return };
        for (count, server) in self.counts.iter_mut().zip(servers) {
            count.gauges = server.vllm.gauges();
        }
        self.next_reading = now + every;
    }
}

/// The place of the least; of equals one by chance.
pub(super) fn least<K: PartialOrd>(
    candidates: &[Candidate],
    rng: &mut vllm_proxy_core::rng::Rng,
    cost: impl Fn(&Candidate) -> K,
) -> usize {
    let mut best: Option<(K, usize)> = None;
    let mut equals = 0;
    for (place, candidate) in candidates.iter().enumerate() {
        let cost = cost(candidate);
        let better = best.as_ref().is_none_or(|(least, _)| cost < *least);
        let equal = best.as_ref().is_some_and(|(least, _)| cost == *least);
        if better {
            equals = 1;
        } else if equal {
            equals += 1;
        }
        if better || (equal && rng.below(equals) == 0) {
            best = Some((cost, place));
        }
    }
    best.map_or(0, |(_, place)| place)
}
