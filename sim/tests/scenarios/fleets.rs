//! Traffic of every kind on fleets of every size, from little of it to too much.

use crate::scene::{FEWEST, OURS, Scene, p90, within};
use rstest::rstest;
use std::sync::Arc;
use std::time::Duration;
use vllm_proxy_core::config::Policy;
use vllm_proxy_core::time::Instant;
use vllm_proxy_sim::policies::Proxy;
use vllm_proxy_sim::trace::{Bursts, Kind, MOONCAKE_BLOCK, Request, Workload, generate};
use vllm_proxy_sim::world::{Setup, run};

/// Requests for each server of a fleet, and of a fleet at least.
const EACH: usize = 60;
const LEAST: usize = 600;

/// Rates near saturation, in requests a second and server.
const fn near(kind: Kind) -> f64 {
    match kind {
        Kind::Tool => 4.2,
        Kind::ZipfFlip => 5.0,
        Kind::Conversation => 1.7,
        Kind::Uniform => 6.0,
        Kind::Hot => 5.0,
        Kind::Unique => 1.6,
        Kind::Short => 4.0,
    }
}

fn fleet(kind: Kind, servers: usize, rate: f64) -> Scene {
    Scene::of(kind, servers, rate, LEAST.max(servers * EACH))
}

#[rstest]
#[case::conversation(
    Kind::Conversation,
    [[0.45, 0.75], [0.5, 0.85], [0.6, 0.95], [0.6, 1.0], [0.6, 0.95], [0.6, 0.95]]
)]
#[case::tool(
    Kind::Tool,
    [[0.45, 0.75], [0.16, 0.3], [0.13, 0.25], [0.1, 0.2], [0.07, 0.15], [0.05, 0.1]]
)]
#[case::zipf_flip(
    Kind::ZipfFlip,
    [[0.4, 0.65], [0.3, 0.5], [0.22, 0.4], [0.17, 0.31], [0.1, 0.2], [0.08, 0.15]]
)]
#[case::short(Kind::Short, [[0.7, 1.0]; 6])]
fn near_saturation_on_fleets_of_every_size(#[case] kind: Kind, #[case] bands: [[f64; 2]; 6]) {
    for (servers, band) in [2, 4, 8, 16, 32, 64].into_iter().zip(bands) {
        within(fleet(kind, servers, near(kind)).against(FEWEST), band);
    }
}

#[rstest]
fn with_one_server_there_is_nothing_to_choose(
    #[values(Kind::Conversation, Kind::Tool, Kind::ZipfFlip, Kind::Short)] kind: Kind,
) {
    let scene = fleet(kind, 1, near(kind));
    assert_eq!(scene.outcome(OURS), scene.outcome(FEWEST));
}

#[rstest]
#[case::conversation(Kind::Conversation, [[0.4, 0.65], [0.55, 0.9], [0.55, 0.95]])]
#[case::tool(Kind::Tool, [[0.22, 0.4], [0.12, 0.22], [0.15, 0.3]])]
#[case::zipf_flip(Kind::ZipfFlip, [[0.5, 0.8], [0.4, 0.65], [0.12, 0.24]])]
#[case::unique(Kind::Unique, [[0.85, 1.05], [0.75, 1.05], [0.55, 0.85]])]
#[case::short(Kind::Short, [[0.85, 1.05], [0.8, 1.05], [0.7, 1.0]])]
fn from_little_to_too_much(#[case] kind: Kind, #[case] bands: [[f64; 2]; 3]) {
    for (part, band) in [0.25, 0.6, 1.3].into_iter().zip(bands) {
        within(fleet(kind, 8, near(kind) * part).against(FEWEST), band);
    }
}

#[rstest]
#[case::tool(Kind::Tool, 3.0, [0.7, 1.0])]
#[case::nothing_repeats(Kind::Unique, 1.4, [0.6, 0.95])]
fn least_load_beats_fewest_requests(#[case] kind: Kind, #[case] rate: f64, #[case] band: [f64; 2]) {
    let scene = Scene::new(kind, rate);
    within(scene.p90("least-load") / scene.p90(FEWEST), band);
}

#[test]
fn a_recorded_conversation() {
    let text = include_str!("../mooncake/conversation-400.jsonl");
    for (bursts, band) in [(Bursts::Spread, [0.3, 0.5]), (Bursts::Keep, [0.35, 0.6])] {
        let workload = Workload::mooncake(text, bursts, MOONCAKE_BLOCK).expect("it is a trace");
        within(Scene::with(workload.at_rate(0.5 * 4.0), 4).against(FEWEST), band);
    }
}

#[rstest]
#[case::conversation(Kind::Conversation, [0.35, 0.6])]
#[case::tool(Kind::Tool, [0.12, 0.22])]
#[case::short(Kind::Short, [0.7, 1.0])]
fn in_bursts_of_three_seconds(#[case] kind: Kind, #[case] band: [f64; 2]) {
    let mut scene = Scene::new(kind, near(kind) * 0.7);
    scene.workload = scene.workload.in_bursts(Duration::from_secs(3));
    within(scene.against(FEWEST), band);
}

#[test]
fn nearly_all_that_repeats_is_found() {
    let run = Scene::new(Kind::Tool, 4.2).run(OURS);
    within(run.hit_of_inf, [0.98, 1.0]);
    within(run.busy_max_of_mean, [1.0, 1.1]);
}

/// How many servers have the prefix that all ask for: those that found it more than once.
fn holders(rate: f64) -> (usize, f64) {
    let scene = Scene::new(Kind::Hot, rate);
    let outcome = scene.outcome(OURS);
    let mut found = [0; 8];
    for record in outcome.records.iter().filter(|record| record.usage.cached > 7_000) {
        found[record.server.expect("it was answered")] += 1;
    }
    let busy = scene.summary(OURS, &outcome).busy_max_of_mean;
    (found.iter().filter(|found| **found > 10).count(), busy)
}

#[test]
fn a_prefix_that_all_ask_for_is_held_by_as_many_as_it_takes() {
    let [(few, _), (more, _), (all, busy)] = [0.1, 0.5, 5.0].map(holders);
    assert!(few <= more && more <= all && all == 8, "{few} {more} {all} {busy}");
    within(busy, [1.0, 1.3]);
}

#[test]
fn popularity_that_turns_round_is_followed() {
    let scene = Scene::new(Kind::ZipfFlip, 4.0);
    let outcome = scene.outcome(OURS);
    let (before, after) = outcome.records.split_at(1_500);
    within(p90(&after[200..]) / p90(&before[200..]), [0.2, 0.6]);
}

#[test]
fn a_long_prompt_among_short_ones_is_in_nobodys_way() {
    let without = Scene::of(Kind::Short, 4, 2.0, 800);
    let mut scene = without.clone();
    let (middle, blocks) = (400, (0..120_000 / 128 + 1).map(|block| block | 1 << 60));
    let at = scene.workload.requests[middle].at;
    let long = Request {
        at,
        blocks: blocks.collect(),
        prompt: 120_000,
        output: 100,
        ..Request::default()
    };
    scene.workload.requests.insert(middle, long);
    let outcome = scene.outcome(OURS);
    let server = outcome.records[middle].server.expect("it was answered");
    let end = outcome.records[middle].first.expect("it was answered");
    let meanwhile = outcome.records[middle + 1..].iter().filter(|record| record.at < end);
    let there = meanwhile.clone().filter(|record| record.server == Some(server)).count();
    within(there as f64 / meanwhile.count() as f64, [0.0, 0.02]);
    let others = outcome.records[..middle].iter().chain(&outcome.records[middle + 1..]);
    within(p90(others) / without.p90(OURS), [0.95, 1.1]);
    let p99 = |policy| scene.run(policy).ttft_us.p99 as f64;
    within(p99(OURS) / p99(FEWEST), [0.45, 0.85]);
}

#[test]
fn prompts_of_ten_megabytes_and_none_at_all() {
    let blocks = |from: u64, count: u64| -> Arc<[u64]> { (from..from + count).collect() };
    let mut requests = generate(Kind::Short, 100, 4.0, 1).requests;
    for (at, request) in requests.iter_mut().enumerate().filter(|(at, _)| at % 9 == 0) {
        // Half of them are the same one.
        let from = if at % 2 == 0 { 0 } else { (at as u64) << 32 };
        (request.prompt, request.blocks) = (2_621_440, blocks(from, 20_480));
    }
    for request in requests.iter_mut().skip(5).step_by(9) {
        (request.prompt, request.blocks) = (1, blocks(9, 1));
    }
    let scene = Scene::with(Workload { block_tokens: 128, requests }, 3);
    let scene = scene.all(|server| server.kv_tokens = u64::MAX);
    let proxy = Proxy::with_index(Policy::CacheAware, 1, 100_000);
    let checked = Setup { checked: true, ..scene.setup() };
    let outcome = run(&checked, vec![Box::new(proxy)], &mut |_, _| ());
    assert!(outcome.records.iter().all(|record| record.end > Some(Instant::START)));
    assert_eq!(scene.summary(OURS, &outcome).done, 100);
}
