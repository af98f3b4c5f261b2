//! The engine in worlds that are drawn: fleets of any kind, traffic of any kind, servers that end,
//! stall, forget, leave and lie, clients that leave. Everything is checked after every event.
//!
//! Two phases: faults first; then they stop, and everything must finish as if there had been none.
//! One seed gives one world, which is made smaller when it fails.

#[path = "simulation/alike.rs"]
mod alike;
#[path = "simulation/drawn.rs"]
mod drawn;

use drawn::{Drawn, Run};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use vllm_proxy_core::time::Instant;
use vllm_proxy_sim::world::Fate;

/// How many seeds are run where neither `SEED` nor `SEEDS` says otherwise.
const SEEDS: u64 = 300;
/// How long after the last fault everybody has been asked how he is: probes of who is down are 5 s
/// apart at most, and a quarter more by chance.
const NOTICED: Duration = Duration::from_secs(7);
/// Smaller worlds that are tried when one fails.
const SHRINKS_MAX: u32 = 400;

/// What must hold of any world, besides what is checked in it as it goes.
fn holds(world: &Drawn) {
    let Run { outcome, .. } = world.run();
    let healed = world.healed() + NOTICED;
    for (id, record) in outcome.records.iter().enumerate() {
        assert_ne!(record.fate, Fate::Open, "request {id}");
        if record.at > healed {
            let served = matches!(record.fate, Fate::Done | Fate::Gone);
            assert!(served, "request {id} was {:?} though all is well", record.fate);
            assert_eq!(record.attempts, 1, "request {id} was tried again though all is well");
        }
    }
    assert!(outcome.end < Instant::FAR);
    let shared = &outcome.shared;
    if world.agrees() {
        assert!(shared.iter().all(|hash| *hash == shared[0]), "proxies disagree: {shared:x?}");
    }
}

fn check(seed: u64) {
    let config = Config {
        cases: 1,
        failure_persistence: None,
        max_shrink_iters: SHRINKS_MAX,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let result = TestRunner::new_with_rng(config, rng).run(&drawn::worlds(), |world| {
        catch_unwind(AssertUnwindSafe(|| holds(&world))).map_err(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied());
            TestCaseError::fail(text.unwrap_or("a panic without words").to_owned())
        })
    });
    if let Err(error) = result {
        let command = format!("SEED={seed} cargo test -p vllm-proxy-tests --test simulation");
        panic!("{error}\nreplay: {command}");
    }
}

#[test]
fn whatever_happens_everything_holds_and_ends() {
    if let Ok(seed) = std::env::var("SEED") {
        return check(seed.parse().expect("SEED is a number"));
    }
    let seeds = std::env::var("SEEDS").map_or(SEEDS, |seeds| seeds.parse().expect("a number"));
    (0..seeds).for_each(check);
}

#[test]
fn one_seed_gives_one_run() {
    let (mut runs, mut states) = (Vec::new(), Vec::new());
    for seed in 0..12 {
        let world = drawn::of_seed(seed);
        let run = world.run();
        assert_eq!(run, drawn::of_seed(seed).run(), "{world:?}");
        runs.push(run.outcome);
        states.push(run.state);
    }
    for (at, run) in runs.iter().enumerate() {
        assert!(!runs[..at].contains(run), "another seed gives another run");
        assert!(!states[..at].contains(&states[at]), "and another state");
    }
}
