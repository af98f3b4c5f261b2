//! A world as it is drawn: plain numbers, so that it can be printed and made smaller.

use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use vllm_proxy_core::config::Policy;
use vllm_proxy_core::time::Instant;
use vllm_proxy_sim::policies::{Proxy, Told};
use vllm_proxy_sim::redis::Mishap;
use vllm_proxy_sim::trace::{Kind, Workload, generate};
use vllm_proxy_sim::vllm::{Gpu, Options};
use vllm_proxy_sim::world::{
    Change, Clients, Fault, Manner, Network, Outcome, Router, Setup, Tells, run,
};

/// One server.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    speed_percent: u64,
    kv_tokens: u64,
    prefix_caching: bool,
    tells: Tells,
    /// What its metrics say its cache holds.
    said_tokens: Option<u64>,
    counts: bool,
    /// Whether it lists the first name only.
    narrow: bool,
}

/// A fault in the first half: when, in thousandths of the whole; where; what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trouble {
    at_permille: u32,
    server: usize,
    change: Change,
}

/// A world.
#[derive(Clone, Debug)]
pub(super) struct Drawn {
    seed: u64,
    policy: Policy,
    proxies: u64,
    index_bytes: usize,
    machines: Vec<Machine>,
    kind: Kind,
    requests: usize,
    per_second: f64,
    /// Of 10 clients, how many stream, and how many leave.
    streaming: u32,
    leaving: u32,
    sigma: f64,
    names: u32,
    troubles: Vec<Trouble>,
    /// How proxies hear of each other, if they do.
    sharing: Option<Sharing>,
}

/// How proxies hear of each other.
#[derive(Clone, Debug)]
pub(super) struct Sharing {
    lag_ms: u64,
    jitter_ms: u64,
    gather_ms: u64,
    /// Of 10 words, how many are lost, and how many come twice.
    lost: u32,
    doubled: u32,
    keeps: bool,
    /// In the first half: when, in thousandths of the whole, and what.
    mishaps: Vec<(u32, Mishap)>,
}

/// How long after all is well proxies know the same. They are heard once a second, and not always.
const KNOWN: Duration = Duration::from_secs(5);

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Run {
    pub(super) outcome: Outcome,
    /// What the engines believed in the end.
    pub(super) state: Vec<u64>,
}

fn machine() -> impl Strategy<Value = Machine> {
    let engine = (
        select(vec![100, 50, 25]),
        select(vec![400_000, 100_000, 60_000]),
        proptest::bool::weighted(0.8),
    );
    let sizes = vec![None, Some(400_000), Some(60_000), Some(0), Some(u64::MAX)];
    let says = (select(Tells::ALL.to_vec()), select(sizes), proptest::bool::ANY);
    (engine, says, proptest::bool::ANY).prop_map(|(engine, says, narrow)| {
        let (speed_percent, kv_tokens, prefix_caching) = engine;
        let (tells, said_tokens, counts) = says;
        Machine { speed_percent, kv_tokens, prefix_caching, tells, said_tokens, counts, narrow }
    })
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let changes = vec![
        Change::Down,
        Change::Up,
        Change::Leave,
        Change::Join,
        Change::Forget,
        Change::Stall(Duration::from_secs(3)),
    ];
    (0..500_u32, 0..6_usize, select(changes)).prop_map(|(at_permille, server, change)| Trouble {
        at_permille,
        server,
        change,
    })
}

fn mishap() -> impl Strategy<Value = (u32, Mishap)> {
    let which = (0..3_usize, 0..6_usize);
    let mishaps = which.prop_flat_map(|(proxy, server)| {
        select(vec![
            Mishap::Killed,
            Mishap::Started,
            Mishap::Hung,
            Mishap::GoesOn,
            Mishap::Flushed,
            Mishap::Full,
            Mishap::Roomy,
            Mishap::Slow(Duration::from_millis(100)),
            Mishap::CutOff(proxy),
            Mishap::Joined(proxy),
            Mishap::Garbage,
            Mishap::Dies(proxy),
            Mishap::Starts(proxy),
            Mishap::Drained(proxy, server),
            Mishap::Undrained(proxy, server),
        ])
    });
    (0..500_u32, mishaps)
}

fn sharing() -> impl Strategy<Value = Sharing> {
    let way = (select(vec![0, 1, 10, 100]), select(vec![0, 1, 50]), select(vec![0, 5]));
    let worse = (select(vec![0, 0, 1, 5]), select(vec![0, 0, 2]), proptest::bool::ANY);
    let mishaps = proptest::collection::vec(mishap(), 0..=6);
    (way, worse, mishaps).prop_map(|(way, worse, mishaps)| {
        let ((lag_ms, jitter_ms, gather_ms), (lost, doubled, keeps)) = (way, worse);
        Sharing { lag_ms, jitter_ms, gather_ms, lost, doubled, keeps, mishaps }
    })
}

/// Any world at all.
pub(super) fn worlds() -> impl Strategy<Value = Drawn> {
    let policies =
        vec![Policy::CacheAware, Policy::CacheAware, Policy::LeastLoad, Policy::RoundRobin];
    let proxy = (
        proptest::num::u64::ANY,
        select(policies),
        1..=3_u64,
        select(vec![4 << 20, 200_000, 20_000]),
    );
    let servers = proptest::collection::vec(machine(), 1..=6);
    let kinds: Vec<_> = Kind::ALL.iter().map(|(_, kind)| *kind).collect();
    let traffic = (select(kinds), 1..=120_usize, 0.2..8.0_f64);
    let clients = (0..=10_u32, 0..=5_u32, select(vec![0.0, 0.3, 0.5]), 1..=3_u32);
    let troubles = proptest::collection::vec(trouble(), 0..=10);
    let between = proptest::option::of(sharing());
    (proxy, servers, traffic, clients, troubles, between).prop_map(
        |(proxy, machines, traffic, clients, troubles, sharing)| {
            let (seed, policy, proxies, index_bytes) = proxy;
            let (kind, requests, per_second) = traffic;
            let (streaming, leaving, sigma, names) = clients;
            Drawn {
                seed,
                policy,
                proxies,
                index_bytes,
                machines,
                kind,
                requests,
                per_second,
                streaming,
                leaving,
                sigma,
                names,
                troubles,
                sharing,
            }
        },
    )
}

/// The world of a seed.
pub(super) fn of_seed(seed: u64) -> Drawn {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    worlds().new_tree(&mut runner).expect("worlds are drawn without conditions").current()
}

impl Drawn {
    fn workload(&self) -> Workload {
        generate(self.kind, self.requests, self.per_second, self.seed)
    }

    /// When faults stop: past the last of them, and past what they last for.
    pub(super) fn healed(&self) -> Instant {
        Instant::START + self.workload().span() / 2 + Duration::from_secs(4)
    }

    fn faults(&self, span: Duration) -> Vec<Fault> {
        let servers = self.machines.len();
        let fault = |trouble: &Trouble| Fault {
            at: Instant::START + span * trouble.at_permille / 1_000,
            server: trouble.server % servers,
            change: trouble.change,
        };
        let healed = self.healed();
        let heal =
            |server| [Change::Join, Change::Up].map(|change| Fault { at: healed, server, change });
        let troubles = self.troubles.iter().map(fault);
        troubles.chain((0..servers).flat_map(heal)).collect()
    }

    /// What is between proxies; in the end all is well, and all that is on its way comes.
    fn network(&self, sharing: &Sharing, span: Duration) -> Network {
        let healed = self.healed();
        let mishap = |&(permille, mishap): &(u32, Mishap)| {
            let at = Instant::START + span * permille / 1_000;
            (at, mishap)
        };
        // Those that were hung go on, and those that died start.
        let proxies = 0..usize::try_from(self.proxies).unwrap_or(usize::MAX);
        let heal = [Mishap::Started, Mishap::Roomy, Mishap::Slow(Duration::ZERO)];
        let heal = heal.into_iter().chain(proxies.clone().map(Mishap::Joined));
        let heal = heal.chain(proxies.clone().map(Mishap::Starts)).map(|mishap| (healed, mishap));
        // When those that started have read what was kept, and have heard the others: a proxy takes
        // back only what it knows of.
        let known = healed + KNOWN;
        let servers = 0..self.machines.len();
        let undrained = move |server| {
            proxies.clone().map(move |proxy| (known, Mishap::Undrained(proxy, server)))
        };
        let heal = heal.chain(servers.flat_map(undrained));
        Network {
            lag: Duration::from_millis(sharing.lag_ms),
            jitter: Duration::from_millis(sharing.jitter_ms),
            gather: Duration::from_millis(sharing.gather_ms),
            lost: f64::from(sharing.lost) / 10.0,
            doubled: f64::from(sharing.doubled) / 10.0,
            keeps: sharing.keeps,
            mishaps: sharing.mishaps.iter().map(mishap).chain(heal).collect(),
            drained: Duration::from_secs(15),
            ..Network::default()
        }
    }

    /// Whether all proxies must know the same in the end: nothing is lost on the way but by what
    /// they notice.
    pub(super) fn agrees(&self) -> bool {
        let all = |sharing: &Sharing| sharing.lost == 0;
        self.policy == Policy::CacheAware
            && self.index_bytes > 1 << 20
            && self.sharing.as_ref().is_some_and(all)
    }

    /// Plays it, with everything checked.
    pub(super) fn run(&self) -> Run {
        let workload = self.workload();
        let options = |machine: &Machine| Options {
            kv_tokens: machine.kv_tokens,
            prefix_caching: machine.prefix_caching,
            ..Options::new(Gpu::H100.at_speed(machine.speed_percent), workload.block_tokens)
        };
        let manner = |(index, machine): (usize, &Machine)| Manner {
            tells: machine.tells,
            kv_tokens: machine.said_tokens,
            counts: machine.counts,
            // The first has all there are, so that somebody does.
            names: 0..if machine.narrow && index > 0 { 1 } else { self.names },
        };
        let setup = Setup {
            manners: self.machines.iter().enumerate().map(manner).collect(),
            clients: Clients {
                streaming: f64::from(self.streaming) / 10.0,
                leaving: f64::from(self.leaving) / 10.0,
                sigma: self.sigma,
                names: self.names,
            },
            faults: self.faults(workload.span()),
            network: self.sharing.as_ref().map(|one| self.network(one, workload.span())),
            seed: self.seed,
            checked: true,
            ..Setup::new(self.machines.iter().map(options).collect(), &workload)
        };
        let told: Vec<_> =
            (0..self.proxies).map(|_| Rc::new(RefCell::new(Told::default()))).collect();
        let proxy = |(at, told): (u64, &Rc<RefCell<Told>>)| -> Box<dyn Router> {
            let proxy = Proxy::with_index(self.policy, self.seed ^ at, self.index_bytes);
            Box::new(proxy.telling(Rc::clone(told)))
        };
        let proxies = (0..).zip(&told).map(proxy).collect();
        let outcome = run(&setup, proxies, &mut |_, _| ());
        Run { outcome, state: told.iter().map(|told| told.borrow().state).collect() }
    }
}
