//! The exchange under random traffic and random faults: one client, its requests, and backends
//! that answer, stall, break and talk nonsense, over writes and reads of any size.
//!
//! What the client received is read by a parser of its own and must be what the backends said, in
//! order and to the byte; or an error of the proxy's own; or an answer that visibly breaks, if its
//! backend broke or the client left. One seed gives one run.

#[path = "exchange/judge.rs"]
mod judge;
#[path = "exchange/orders.rs"]
mod orders;
#[path = "exchange/parse.rs"]
mod parse;
#[path = "exchange/script.rs"]
mod script;
#[path = "exchange/world.rs"]
mod world;

use world::World;

/// Names the seed when a run fails.
struct Replay(u64);

impl Drop for Replay {
    #[expect(clippy::print_stderr, reason = "who reads a failure needs the seed")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!("replay: SEED={seed} cargo test -p vllm-proxy-tests --test exchange");
        }
    }
}

fn run(seed: u64) -> Vec<String> {
    let _replay = Replay(seed);
    let mut world = World::new(seed);
    world.run();
    world.check();
    world.into_trace()
}

/// How many seeds are run where neither `SEED` nor `SEEDS` says otherwise.
const SEEDS: u64 = 20_000;

#[test]
fn what_the_client_gets_is_what_the_backends_said() {
    if let Ok(seed) = std::env::var("SEED") {
        for line in run(seed.parse().expect("SEED is a number")) {
            println!("{line}");
        }
        return;
    }
    let seeds = std::env::var("SEEDS").map_or(SEEDS, |seeds| seeds.parse().expect("a number"));
    for seed in 0..seeds {
        run(seed);
    }
}

#[test]
fn one_seed_gives_one_run() {
    for seed in 0..50 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}

#[test]
fn faults_and_successes_all_happen() {
    let mut seen = std::collections::BTreeMap::<String, u32>::new();
    for seed in 0..4_000 {
        for line in run(seed) {
            for word in WORDS {
                if line.contains(word) {
                    *seen.entry((*word).to_string()).or_default() += 1;
                }
            }
        }
    }
    for word in WORDS {
        assert!(seen.get(*word).is_some_and(|&count| count >= 5), "{word}: {seen:?}");
    }
}

/// What a trace of many runs must hold, or the runs prove nothing.
const WORDS: &[&str] = &[
    "settle Done(200)",
    "settle Done(500)",
    "settle Done(101)",
    "the client ends",
    "settle ClientGone",
    "settle Broken",
    "settle TimedOut",
    "again Connect",
    "again Stale",
    "again Lost",
    "again Cut",
    "again Nonsense",
    "again Timeout",
    "again Status(503)",
    "again ErrorEvent",
    "release reusable",
    "reset",
    "shutdown",
    "reserve refused",
    "HTTP/1.1 502",
    "HTTP/1.1 504",
    "HTTP/1.1 400",
    "HTTP/1.1 408",
    "100 Continue",
];
