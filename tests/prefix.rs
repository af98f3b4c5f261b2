//! What the index of prefixes and a choice take: bytes, as the allocator sees them.
//!
//! Whether their answers are right is tested where they lie, in `core`; how long they take is
//! measured by `tests/bench`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use vllm_proxy_core::config::{Config, Policy};
use vllm_proxy_core::engine::{Engine, Input, Output, ReplicaReport};
use vllm_proxy_core::fleet::{
    Address, BackendId, BackendSpec, Labels, Matches, PrefixIndex, ProxyId, Update,
};
use vllm_proxy_core::rng::{Rng, mix};
use vllm_proxy_core::route::{Decision, Fingerprint, Outcome, RequestMeta};
use vllm_proxy_core::time::{Duration, Instant};
use vllm_proxy_core::wire::probe::{ModelCard, Probe};

/// Counts what each thread asks for; tests run on threads of their own.
struct Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    CALLS.set(CALLS.get() + 1);
    BYTES.set(BYTES.get() + bytes);
}

// SAFETY: all it does besides counting is done by the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CHUNK_TOKENS: u32 = 128;

fn chunks(prompt: u64, count: u64, into: &mut Vec<u64>) {
    into.extend((0..count).map(|at| mix(prompt << 20 | at)));
}

/// An index, and what asking it needs, none of which is to grow.
struct Bench {
    index: PrefixIndex,
    matches: Matches,
    told: Vec<u64>,
    prompt: Vec<u64>,
    rng: Rng,
    sent: u64,
}

impl Bench {
    fn new(bytes: usize, backends: u32) -> Self {
        let mut index = PrefixIndex::new(bytes, 11);
        for id in 0..backends {
            index.join(BackendId(id)).expect("there is room");
        }
        let matches = index.scratch();
        let (told, prompt) = (Vec::with_capacity(32_768), Vec::with_capacity(32_768));
        Self { index, matches, told, prompt, rng: Rng::new(5), sent: 0 }
    }

    /// A prompt of so many chunks: a quarter is one of 40 that everybody sends, a half was sent
    /// before by somebody, and the rest is new.
    fn draw(&mut self, length: u64) {
        self.prompt.clear();
        chunks(self.rng.below(40), length / 4, &mut self.prompt);
        let before = 100 + self.sent - self.rng.below(2_000).min(self.sent);
        chunks(before, length / 2, &mut self.prompt);
        self.sent += 1;
        chunks(100 + self.sent, length - length / 4 - length / 2, &mut self.prompt);
    }

    /// Looks the prompt up, sends it to some backend that holds most of it.
    fn send(&mut self, backends: u64) {
        self.index.matches(&self.prompt, &mut self.matches);
        // Copies of what is hot come from backends whose queues are long.
        let stray = self.rng.below(4) == 0;
        let best = (0..)
            .map(BackendId)
            .take(backends as usize)
            .max_by_key(|&id| self.index.join(id).map_or(0, |slot| self.matches.at(slot)));
        let random = BackendId(self.rng.below(backends) as u32);
        let backend = best.filter(|_| !stray && self.matches.longest() > 0).unwrap_or(random);
        self.told.clear();
        self.index.insert(backend, &self.prompt, CHUNK_TOKENS, &mut self.told);
    }
}

/// Adversarial prompts, all backends, everything that can be told: one budget, taken at the start.
#[test]
fn the_budget_is_never_exceeded_and_nothing_is_allocated() {
    for bytes in [100_000, 1 << 20, 10 << 20] {
        let before = BYTES.get();
        let mut index = PrefixIndex::new(bytes, 11);
        let taken = BYTES.get() - before;
        assert_eq!(taken, index.bytes());
        assert!(taken <= bytes && taken > bytes / 10 * 9, "{taken} of {bytes}");
        drop(index);

        index = Bench::new(bytes, 8).index;
        let mut bench = Bench { index, ..Bench::new(0, 0) };
        bench.matches = bench.index.scratch();
        let mut facts = Vec::with_capacity(1_024);
        let calls = CALLS.get();
        for round in 0..60 {
            let id = BackendId(round % 8);
            bench.prompt.clear();
            match round % 3 {
                0 => {
                    // Of these all is kept, of the long one behind them a part.
                    for part in 0..160 {
                        bench.prompt.clear();
                        chunks(u64::from(round * 160 + part), 128, &mut bench.prompt);
                        bench.send(8);
                    }
                    bench.prompt.clear();
                    chunks(u64::from(round), 20_480, &mut bench.prompt);
                }
                1 => chunks(0, 500, &mut bench.prompt),
                _ => bench.draw(781),
            }
            bench.send(8);
            bench.index.grew(id, u64::MAX);
            bench.index.feedback(id, 5, u64::MAX, CHUNK_TOKENS);
            bench.index.merge_counter(id, (round % 70) as usize, 1_000);
            facts.clear();
            bench.index.facts(bench.rng.next_u64(), &mut facts);
            facts.iter().for_each(|&fact| bench.index.merge(fact));
            if round % 7 == 0 {
                bench.index.wipe(id);
                bench.index.leave(BackendId((round + 1) % 8));
                bench.index.join(BackendId((round + 1) % 8)).expect("there is room");
                bench.index.state_hash(|id| id.0.into());
            }
        }
        assert_eq!(CALLS.get(), calls, "something was allocated");
        assert_eq!(bench.index.bytes(), taken);
        assert!(bench.index.len() <= bench.index.len_max());
        assert!(taken > 2 << 20 || bench.index.evicted() > 0, "the budget was not used up");
    }
}

/// What 64 backends with room for 500,000 tokens hold together, with nothing evicted.
#[test]
fn a_chunk_at_a_backend_takes_24_bytes() {
    const PAIRS: usize = 250_000;
    let before = BYTES.get();
    let mut bench = Bench::new(24 * PAIRS, 64);
    let taken = bench.index.bytes();
    assert!(BYTES.get() - before >= taken && taken <= 24 * PAIRS, "{taken}");
    let mut prompt = 0;
    while bench.index.len() < PAIRS {
        bench.prompt.clear();
        chunks(prompt, 50, &mut bench.prompt);
        let backend = BackendId((prompt % 64) as u32);
        bench.told.clear();
        bench.index.insert(backend, &bench.prompt, CHUNK_TOKENS, &mut bench.told);
        prompt += 1;
    }
    assert_eq!((bench.index.len(), bench.index.evicted()), (PAIRS, 0));
}

/// One of 8 proxies over 64 backends, which hears the others so late.
fn among_others(lag: Option<Duration>) -> Engine {
    let config = Config {
        policy: Policy::CacheAware,
        upstreams: 1,
        index_memory: 1 << 20,
        proxy: Some(1),
        ..Config::default()
    };
    let now = Instant::START;
    let mut engine = Engine::new(config, 1, now);
    let spec = |port| BackendSpec {
        upstream: 0,
        address: Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        authority: "backend".into(),
        prefix: String::new(),
        labels: Labels::default(),
    };
    let specs: Vec<_> = (1..=64).map(spec).collect();
    engine.handle(Input::Discovered(&specs), now);
    while let Some(output) = engine.poll_output() {
        let Output::Probe(backend) = output else { continue };
        let card =
            ModelCard { raw: "{\"id\":\"m\"}".into(), id: "m".into(), ..ModelCard::default() };
        let probe = Probe { health: 200, models: Some(vec![card]), ..Probe::default() };
        engine.handle(Input::Probed(backend, Ok(probe)), now);
    }
    for proxy in (2..=8).map(ProxyId) {
        let update = Update { proxy, number: 1, about: Vec::new(), lengths: Vec::new() };
        engine.handle(Input::Heard(&update), now);
    }
    engine.handle(Input::Replica(ReplicaReport { lag, ..ReplicaReport::default() }), now);
    engine
}

/// Sends prompts of one chunk that nobody holds, a millisecond apart; says what the last ones
/// allocated when all buffers have grown, and where all went.
fn choices(engine: &mut Engine) -> (u64, Vec<BackendId>) {
    let (mut calls, mut chosen) = (0, Vec::new());
    for number in 0..2_000 {
        let now = Instant::from_millis(number);
        let prompt = Fingerprint::of_chunks([mix(number)][..].into(), 512);
        let request = RequestMeta { model: Some("m"), ..RequestMeta::of_prompt(&prompt, now) };
        let before = CALLS.get();
        let Decision::Forward(route) = engine.route(&request, now) else {
            panic!("all backends are up")
        };
        calls += if number < 1_500 { 0 } else { CALLS.get() - before };
        chosen.push(route.backend);
        engine.finish(route.ticket, Outcome::ClientGone, now);
        while engine.poll_update().is_some() {}
    }
    (calls, chosen)
}

/// A choice takes no memory, nor does keeping apart from others that are heard late.
#[test]
fn a_choice_allocates_nothing() {
    let [near, far] = [None, Some(Duration::from_millis(100))].map(|lag| {
        let mut engine = among_others(lag);
        assert_eq!(engine.company().alive, 7);
        choices(&mut engine)
    });
    assert_ne!(near.1, far.1, "they keep apart");
    assert_eq!((near.0, far.0), (0, 0), "calls to the allocator");
}
