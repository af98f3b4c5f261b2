//! Scenes in which a policy must hold its own: ratios with bands around what was measured, since
//! constants differ from fleet to fleet and ratios hardly do.

use rstest::rstest;
use std::time::Duration;
use vllm_proxy_core::time::Instant;
use vllm_proxy_sim::policies;
use vllm_proxy_sim::report::{Bounds, Summary};
use vllm_proxy_sim::trace::{Kind, Workload, generate};
use vllm_proxy_sim::vllm::{Gpu, Options};
use vllm_proxy_sim::world::{Change, Clients, Fault, Setup, run};

const REQUESTS: usize = 3_000;

/// A fleet of eight under some traffic.
struct Scene {
    workload: Workload,
    options: Options,
    slow: usize,
    clients: Clients,
    faults: Vec<Fault>,
}

impl Scene {
    fn new(kind: Kind, rate: f64) -> Self {
        let workload = generate(kind, REQUESTS, rate * 8.0, 1).at_rate(rate * 8.0);
        let options = Options::new(Gpu::H100, workload.block_tokens);
        Self { workload, options, slow: 0, clients: Clients::default(), faults: Vec::new() }
    }

    fn fault(mut self, percent: u32, server: usize, change: Change) -> Self {
        let at = Instant::START + self.workload.span() * percent / 100;
        self.faults.push(Fault { at, server, change });
        self
    }

    fn run(&self, policy: &str) -> Summary {
        let mut servers = vec![self.options; 8];
        for server in servers.iter_mut().take(self.slow) {
            server.gpu = server.gpu.at_speed(50);
        }
        let setup = Setup {
            clients: self.clients,
            faults: self.faults.clone(),
            ..Setup::new(servers, &self.workload)
        };
        let named = policies::named(policy).expect("it is a policy");
        let outcome = run(&setup, vec![named.router(1)], &mut |_, _| ());
        let inf = self.workload.hits_of_one_cache(u64::MAX);
        Summary::of(policy, &outcome, Bounds { pool: inf, inf })
    }

    /// The 90th percentile of the time to first token, in that of another policy.
    fn ratio(&self, policy: &str, other: &str) -> f64 {
        self.run(policy).ttft_us.p90 as f64 / self.run(other).ttft_us.p90 as f64
    }
}

#[track_caller]
fn within(value: f64, band: [f64; 2]) {
    assert!((band[0]..=band[1]).contains(&value), "{value} is not within {band:?}");
}

#[rstest]
#[case::tool(Kind::Tool, 3.0, [0.03, 0.15])]
#[case::zipf_flip(Kind::ZipfFlip, 4.0, [0.1, 0.35])]
#[case::conversation(Kind::Conversation, 1.5, [0.3, 0.8])]
#[case::nothing_repeats(Kind::Unique, 1.4, [0.6, 0.95])]
fn the_score_beats_fewest_requests(#[case] kind: Kind, #[case] rate: f64, #[case] band: [f64; 2]) {
    within(Scene::new(kind, rate).ratio("reference", "least-requests"), band);
}

#[rstest]
#[case::tool(Kind::Tool, 3.0, [0.75, 1.0])]
#[case::nothing_repeats(Kind::Unique, 1.4, [0.6, 0.95])]
fn least_load_beats_fewest_requests(#[case] kind: Kind, #[case] rate: f64, #[case] band: [f64; 2]) {
    within(Scene::new(kind, rate).ratio("least-load", "least-requests"), band);
}

#[test]
fn nearly_all_that_repeats_is_found() {
    let run = Scene::new(Kind::Tool, 4.2).run("reference");
    within(run.hit_of_inf, [0.98, 1.0]);
    within(run.busy_max_of_mean, [1.0, 1.1]);
}

#[test]
fn one_fails_and_returns_cold() {
    let calm = Scene::new(Kind::Tool, 3.0);
    let scene = Scene::new(Kind::Tool, 3.0).fault(50, 0, Change::Down).fault(70, 0, Change::Up);
    let (before, after) = (calm.run("reference"), scene.run("reference"));
    within(after.ttft_us.p90 as f64 / before.ttft_us.p90 as f64, [0.9, 1.25]);
    // Only answers that had begun are lost.
    assert!(after.lost < 30 && after.done + after.lost == REQUESTS, "{after:?}");
}

#[test]
fn one_joins_cold() {
    let calm = Scene::new(Kind::Tool, 3.0);
    let scene = Scene::new(Kind::Tool, 3.0).fault(0, 7, Change::Down).fault(50, 7, Change::Up);
    let ratio = scene.run("reference").ttft_us.p90 as f64;
    within(ratio / calm.run("reference").ttft_us.p90 as f64, [0.9, 1.4]);
}

#[test]
fn half_of_the_servers_lose_their_caches() {
    let calm = Scene::new(Kind::Tool, 3.0);
    let lost = |scene: Scene, server| scene.fault(50, server, Change::Forget);
    let scene = (0..4).fold(Scene::new(Kind::Tool, 3.0), lost);
    let ratio = scene.run("reference").ttft_us.p90 as f64;
    within(ratio / calm.run("reference").ttft_us.p90 as f64, [0.95, 1.3]);
}

#[test]
fn one_stalls_for_ten_seconds() {
    let stall = Change::Stall(Duration::from_secs(10));
    let scene = Scene::new(Kind::Tool, 3.0).fault(50, 3, stall);
    within(scene.ratio("reference", "least-requests"), [0.03, 0.2]);
}

#[test]
fn half_of_the_servers_are_half_as_fast() {
    let scene = Scene { slow: 4, ..Scene::new(Kind::Unique, 0.9) };
    within(scene.ratio("reference", "least-requests"), [0.3, 0.8]);
}

#[test]
fn nobody_streams() {
    let streams = Scene::new(Kind::Tool, 3.0).run("reference").ttft_us.p90 as f64;
    let clients = Clients { streaming: 0.0, ..Clients::default() };
    let scene = Scene { clients, ..Scene::new(Kind::Tool, 3.0) };
    within(scene.run("reference").ttft_us.p90 as f64 / streams, [0.9, 1.25]);
}

#[test]
fn texts_differ_in_bytes_a_token() {
    let alike = Scene::new(Kind::Tool, 3.0).run("reference").ttft_us.p90 as f64;
    let clients = Clients { sigma: 0.3, ..Clients::default() };
    let scene = Scene { clients, ..Scene::new(Kind::Tool, 3.0) };
    within(scene.run("reference").ttft_us.p90 as f64 / alike, [0.9, 1.3]);
}

#[test]
fn no_server_looks_for_prefixes() {
    let mut scene = Scene::new(Kind::Conversation, 1.2);
    scene.options.prefix_caching = false;
    let run = scene.run("reference");
    assert_eq!(run.hit, 0.0);
    within(scene.ratio("reference", "least-requests"), [0.5, 1.1]);
    // Where the same prefixes are asked for again and again, only trust helps.
    let mut scene = Scene::new(Kind::Tool, 1.0);
    scene.options.prefix_caching = false;
    within(scene.ratio("reference-trust", "least-requests"), [0.5, 0.9]);
}
