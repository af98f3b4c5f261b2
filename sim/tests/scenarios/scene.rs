//! A scene: a fleet under some traffic, to be played with one policy or another.

use std::time::Duration;
use vllm_proxy_core::time::Instant;
use vllm_proxy_sim::policies;
use vllm_proxy_sim::report::{Bounds, Summary};
use vllm_proxy_sim::trace::{Kind, Workload, generate};
use vllm_proxy_sim::vllm::{Gpu, Options};
use vllm_proxy_sim::world::{
    Change, Clients, Fault, Manner, Network, Outcome, Record, Router, Setup, Tells, run,
};

/// Requests of a scene, unless it says otherwise.
const REQUESTS: usize = 3_000;
/// The policy that is held to its bands.
pub(super) const OURS: &str = "cache-aware";
/// The one it is compared with: what a proxy without any notion of work would do.
pub(super) const FEWEST: &str = "least-requests";

#[derive(Clone)]
pub(super) struct Scene {
    pub(super) workload: Workload,
    pub(super) servers: Vec<Options>,
    pub(super) manners: Vec<Manner>,
    pub(super) clients: Clients,
    pub(super) faults: Vec<Fault>,
}

impl Scene {
    /// A fleet of eight; `rate` is in requests a second for each.
    pub(super) fn new(kind: Kind, rate: f64) -> Self {
        Self::of(kind, 8, rate, REQUESTS)
    }

    pub(super) fn of(kind: Kind, servers: usize, rate: f64, requests: usize) -> Self {
        let all = rate * servers as f64;
        Self::with(generate(kind, requests, all, 1).at_rate(all), servers)
    }

    pub(super) fn with(workload: Workload, servers: usize) -> Self {
        let servers = vec![Options::new(Gpu::H100, workload.block_tokens); servers];
        let (clients, manners, faults) = (Clients::default(), Vec::new(), Vec::new());
        Self { workload, servers, manners, clients, faults }
    }

    /// A fault when so many per cent of the time in which requests come are over.
    pub(super) fn fault(mut self, percent: u32, server: usize, change: Change) -> Self {
        let at = Instant::START + self.workload.span() * percent / 100;
        self.faults.push(Fault { at, server, change });
        self
    }

    /// The first so many servers are started otherwise.
    pub(super) fn first(mut self, count: usize, change: impl Fn(&mut Options)) -> Self {
        self.servers.iter_mut().take(count).for_each(change);
        self
    }

    pub(super) fn all(self, change: impl Fn(&mut Options)) -> Self {
        self.first(usize::MAX, change)
    }

    pub(super) fn tells(mut self, tells: Tells) -> Self {
        self.manners = vec![Manner { tells, ..Manner::default() }; self.servers.len()];
        self
    }

    pub(super) fn clients(self, clients: Clients) -> Self {
        Self { clients, ..self }
    }

    pub(super) fn setup(&self) -> Setup<'_> {
        Setup {
            manners: self.manners.clone(),
            clients: self.clients,
            faults: self.faults.clone(),
            ..Setup::new(self.servers.clone(), &self.workload)
        }
    }

    pub(super) fn play(&self, proxy: Box<dyn Router>) -> Outcome {
        run(&self.setup(), vec![proxy], &mut |_, _| ())
    }

    /// So many proxies of ours, that hear each other so.
    pub(super) fn several(&self, proxies: u64, network: &Network) -> Outcome {
        let ours = policies::named(OURS).expect("it is a policy");
        self.together((0..proxies).map(|proxy| ours.router(1 + proxy)).collect(), network)
    }

    /// These proxies, that hear each other so.
    pub(super) fn together(&self, proxies: Vec<Box<dyn Router>>, network: &Network) -> Outcome {
        let setup = Setup { network: Some(network.clone()), ..self.setup() };
        run(&setup, proxies, &mut |_, _| ())
    }

    pub(super) fn outcome(&self, policy: &str) -> Outcome {
        self.play(policies::named(policy).expect("it is a policy").router(1))
    }

    pub(super) fn run(&self, policy: &str) -> Summary {
        self.summary(policy, &self.outcome(policy))
    }

    pub(super) fn summary(&self, policy: &str, outcome: &Outcome) -> Summary {
        let inf = self.workload.hits_of_one_cache(u64::MAX);
        Summary::of(policy, outcome, Bounds { pool: inf, inf })
    }

    /// The 90th percentile of the time to first token, in seconds.
    pub(super) fn p90(&self, policy: &str) -> f64 {
        self.run(policy).ttft_us.p90 as f64 / 1e6
    }

    /// Ours, in that of another policy.
    pub(super) fn against(&self, other: &str) -> f64 {
        self.p90(OURS) / self.p90(other)
    }

    /// Ours, in that of another scene.
    pub(super) fn against_scene(&self, other: &Self) -> f64 {
        self.p90(OURS) / other.p90(OURS)
    }
}

/// The same of some requests only.
pub(super) fn p90<'a>(records: impl IntoIterator<Item = &'a Record>) -> f64 {
    let waits = records.into_iter().filter_map(|one| Some(one.first?.since(one.at)));
    let mut waits: Vec<_> = waits.collect();
    waits.sort_unstable();
    waits.get(waits.len() * 9 / 10).map_or(0.0, Duration::as_secs_f64)
}

/// Judges a value. `MEASURE=1 cargo test -p vllm-proxy-sim --test scenarios -- --nocapture` prints
/// it instead: bands are taken anew where a change is meant to move them.
#[expect(clippy::print_stdout, reason = "whoever measures reads it")]
#[track_caller]
pub(super) fn within(value: f64, band: [f64; 2]) {
    if std::env::var_os("MEASURE").is_some() {
        let at = std::panic::Location::caller();
        return println!("MEASURED {}:{} {value:.4} {band:?}", at.file(), at.line());
    }
    assert!((band[0]..=band[1]).contains(&value), "{value:.4} is not within {band:?}");
}
