//! A recorded trace through the whole simulator: what must come out whatever is tuned.

use std::time::Duration;
use vllm_proxy_sim::policies;
use vllm_proxy_sim::trace::{Bursts, MOONCAKE_BLOCK, Workload};
use vllm_proxy_sim::vllm::{Gpu, Options};
use vllm_proxy_sim::world::{Outcome, Setup, run};

fn conversation() -> Workload {
    let text = include_str!("mooncake/conversation-400.jsonl");
    Workload::mooncake(text, Bursts::Spread, MOONCAKE_BLOCK).expect("it is a trace")
}

fn replay(workload: &Workload, servers: usize, kv_tokens: u64, policy: &str) -> Outcome {
    let options = Options { kv_tokens, ..Options::new(Gpu::H100, workload.block_tokens) };
    let setup = Setup::new(vec![options; servers], workload);
    let policy = policies::named(policy).expect("it is a policy");
    run(&setup, vec![policy.router(1)], &mut |_, _| ())
}

fn hit_ratio(outcome: &Outcome, workload: &Workload) -> f64 {
    let cached: u64 = outcome.records.iter().map(|one| u64::from(one.usage.cached)).sum();
    cached as f64 / workload.prompt_tokens() as f64
}

#[test]
fn the_trace_is_read_whole() {
    let workload = conversation();
    assert_eq!(workload.requests.len(), 400);
    let (first, second) = (&workload.requests[0], &workload.requests[1]);
    assert_eq!((first.prompt, first.output, first.blocks.len()), (6_758, 500, 14));
    assert!(first.at < second.at, "a timestamp is 3 s, not one moment");
    assert!(workload.span() > Duration::from_secs(60));
}

#[test]
fn a_cache_without_limit_finds_all_there_is() {
    let workload = conversation().at_rate(0.4);
    let outcome = replay(&workload, 1, u64::MAX, "least-load");
    assert_eq!(hit_ratio(&outcome, &workload), workload.hits_of_one_cache(u64::MAX));
}

#[test]
fn one_server_finds_what_a_least_recently_used_cache_of_its_size_would() {
    let workload = conversation().at_rate(0.2);
    let outcome = replay(&workload, 1, Gpu::H100.kv_tokens, "least-load");
    let (found, ideal) =
        (hit_ratio(&outcome, &workload), workload.hits_of_one_cache(Gpu::H100.kv_tokens));
    assert!(ideal > 0.0 && (found - ideal).abs() <= 0.002 * ideal, "{found} of {ideal}");
}

#[test]
fn the_fewer_know_caches_the_longer_it_takes() {
    let workload = conversation().at_rate(0.55 * 8.0);
    let p90 = |policy| {
        let outcome = replay(&workload, 8, Gpu::H100.kv_tokens, policy);
        let waits = outcome.records.iter().filter_map(|one| Some(one.first?.since(one.at)));
        let mut waits: Vec<_> = waits.collect();
        waits.sort_unstable();
        waits[waits.len() * 9 / 10]
    };
    let [reference, requests, turns] = ["reference", "least-requests", "round-robin"].map(p90);
    assert!(reference < requests && requests < turns, "{reference:?} {requests:?} {turns:?}");
}
