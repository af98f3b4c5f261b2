//! Pairs of worlds that must come out alike: what the engine must not depend on, and what it may.

use proptest::prelude::*;
use rstest::rstest;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use vllm_proxy_core::config::Policy;
use vllm_proxy_core::fleet::{BackendId, BackendName, PrefixIndex, Standing};
use vllm_proxy_core::route::{Candidate, Failure, Question, Work, cost, fastest, pick};
use vllm_proxy_core::time::Instant;
use vllm_proxy_sim::policies::{Proxy, Told};
use vllm_proxy_sim::trace::{Kind, Request, Workload, generate};
use vllm_proxy_sim::vllm::{Gpu, Options};
use vllm_proxy_sim::world::{
    Answer, Ask, Change, Clients, End, Fault, Live, Outcome, Router, Server, Setup, run,
};

const SECOND: Duration = Duration::from_secs(1);

fn play(setup: &Setup<'_>, proxy: Proxy) -> Outcome {
    run(setup, vec![Box::new(proxy)], &mut |_, _| ())
}

fn setup(workload: &Workload, servers: usize) -> Setup<'_> {
    let servers = vec![Options::new(Gpu::H100, workload.block_tokens); servers];
    let clients = Clients { streaming: 0.7, leaving: 0.1, sigma: 0.3, names: 1 };
    Setup { clients, checked: true, ..Setup::new(servers, workload) }
}

fn aware(seed: u64) -> Proxy {
    Proxy::with_index(Policy::CacheAware, seed, 1 << 20)
}

/// What happens in the calmest of worlds: none of it changes who is up.
fn quiet(span: Duration) -> Vec<Fault> {
    let fault = |percent, server, change| Fault {
        at: Instant::START + span * percent / 100,
        server,
        change,
    };
    vec![fault(30, 0, Change::Stall(2 * SECOND)), fault(60, 1, Change::Forget)]
}

/// An address breaks ties and goes with its server here: the order in which servers are announced,
/// and with it their numbers, changes nothing. All stay up, since the times of probes are drawn in
/// the order of numbers.
#[rstest]
fn servers_renumbered_are_chosen_alike(#[values(1, 2, 3)] seed: u64) {
    const ORDER: [usize; 5] = [3, 0, 4, 2, 1];
    let workload = generate(Kind::Tool, 250, 10.0, seed);
    let span = workload.span();
    let mut one = setup(&workload, 5);
    one.servers[1].gpu = Gpu::H100.at_speed(50);
    one.servers[2].kv_tokens = 60_000;
    one.faults = quiet(span);
    let (one, other) = (play(&one, aware(seed)), play(&one, aware(seed).in_order(ORDER.into())));
    for (record, renumbered) in one.records.iter().zip(&other.records) {
        assert_eq!(record.server, renumbered.server);
        assert_eq!((record.first, record.end), (renumbered.first, renumbered.end));
    }
    assert_eq!(one.busy, other.busy);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// And where there is no tie, numbers do not matter either.
    #[test]
    fn backends_renumbered_are_chosen_alike(
        in_hand in prop::collection::vec(
            (
                0..40_000_000_i64,
                0..400_000_000_i64,
                0..40_u32,
                0..16_000_000_i64,
                0..9_000_u64,
                90_000..200_000_i64,
            ),
            2..12,
        ),
        prompt in 0..50_000_000_i64,
        offset in 1..1_000_u32,
    ) {
        let work = Work::of_prompt(prompt);
        let candidate = |id: u32, at: usize| {
            let (queued, resident, in_flight, cached, fresh, pace) = in_hand[at];
            let in_hand = Standing { queued, resident, in_flight };
            let (name, favoured) = (BackendName(id.into()), false);
            let backend = BackendId(id);
            Candidate {
                backend, reluctance: 0, in_hand, cached, fresh, pace, weight: 100, due: 0, name,
                favoured, surcharge: 0,
            }
        };
        let places = 0..in_hand.len();
        let fastest = fastest(in_hand.iter().map(|one| one.5));
        let work_at = |at| cost(work, 0, fastest, &candidate(0, at)).work;
        let mut costs: Vec<_> = places.clone().map(work_at).collect();
        costs.sort_unstable();
        prop_assume!(costs[0] < costs[1]);
        let policy = Policy::CacheAware;
        let question = Question { policy, work, request: 7, last: None, fastest };
        let chosen = |id: &dyn Fn(usize) -> u32| {
            let picked = pick(question, places.clone().map(|at| candidate(id(at), at)));
            let backend = picked.expect("there are candidates").0;
            places.clone().find(|at| id(*at) == backend.0)
        };
        let reversed = |at| offset + (in_hand.len() - at) as u32;
        prop_assert_eq!(chosen(&|at| at as u32), chosen(&reversed));
    }
}

#[rstest]
fn a_dead_server_more_changes_nothing(
    #[values(Policy::CacheAware, Policy::LeastLoad, Policy::RoundRobin)] policy: Policy,
) {
    let workload = generate(Kind::Tool, 250, 10.0, 4);
    let mut one = setup(&workload, 4);
    one.faults = quiet(workload.span());
    let mut other = one.clone();
    other.servers.push(one.servers[0]);
    other.faults.push(Fault { at: Instant::START, server: 4, change: Change::Down });
    // Requests come when that is known: until then the dead one is tried, as it should be.
    let later = Workload {
        requests: workload
            .requests
            .iter()
            .map(|one| Request { at: one.at + 20 * SECOND, ..one.clone() })
            .collect(),
        ..workload
    };
    for setup in [&mut one, &mut other] {
        setup.workload = &later;
        setup.faults.iter_mut().for_each(|fault| {
            if fault.server < 4 {
                fault.at = fault.at + 20 * SECOND;
            }
        });
    }
    let proxy = || Proxy::with_index(policy, 1, 1 << 20);
    assert_eq!(play(&one, proxy()).records, play(&other, proxy()).records);
}

/// Where nothing waits, it does not matter how fast all are alike: queues tell speeds apart, and
/// only where there are any.
#[test]
fn how_fast_all_are_changes_nothing_for_who_does_not_wait() {
    let mut workload = generate(Kind::Tool, 250, 10.0, 5);
    for (at, request) in (0..).zip(&mut workload.requests) {
        // What is new is halved at multiples of 5.25 s: all of a request lies between two.
        request.at = Instant::from_millis(1_000 + 10_500 * at);
        request.output = request.output.min(50);
    }
    let mut one = setup(&workload, 4);
    one.clients = Clients::default();
    let mut other = one.clone();
    other.servers.iter_mut().for_each(|server| server.gpu = server.gpu.at_speed(50));
    let (one, other) = (play(&one, aware(1)), play(&other, aware(1)));
    let longest = other.records.iter().filter_map(|record| Some(record.end?.since(record.at)));
    assert!(longest.max() < Some(4 * SECOND), "the next one comes when all is done");
    for (one, other) in one.records.iter().zip(&other.records) {
        assert_eq!((one.server, one.usage), (other.server, other.usage));
        assert!(one.end < other.end);
    }
}

/// Says everything twice that may be said twice.
struct Twice(Proxy);

impl Router for Twice {
    fn watch(&mut self) {
        self.0.watch();
    }

    fn check(&mut self, live: &[Live], servers: &[Server], now: Instant) {
        self.0.check(live, servers, now);
    }

    fn start(&mut self, servers: usize, now: Instant) {
        self.0.start(servers, now);
    }

    fn route(&mut self, ask: &Ask<'_>, servers: &[Server], now: Instant) -> Answer {
        self.0.resolved(servers, now);
        self.0.route(ask, servers, now)
    }

    fn retry(&mut self, ask: &Ask<'_>, why: Failure, servers: &[Server], now: Instant) -> Answer {
        self.0.retry(ask, why, servers, now)
    }

    fn first_byte(&mut self, id: u64, now: Instant) {
        self.0.first_byte(id, now);
        self.0.first_byte(id, now + SECOND / 1_000);
        self.0.first_byte(id + 1_000_000, now);
    }

    fn finish(&mut self, id: u64, end: End, now: Instant) {
        self.0.finish(id, end, now);
        self.0.finish(id, End::Broken, now);
        self.0.first_byte(id, now);
    }

    fn in_hand(&self) -> usize {
        self.0.in_hand()
    }

    fn poll_probe(&mut self) -> Option<usize> {
        self.0.poll_probe()
    }

    fn probed(&mut self, server: usize, servers: &[Server], now: Instant) {
        self.0.probed(server, servers, now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.0.poll_timeout()
    }

    fn handle_timeout(&mut self, servers: &[Server], now: Instant) {
        self.0.handle_timeout(servers, now);
        self.0.handle_timeout(servers, now);
    }
}

#[test]
fn what_is_said_twice_or_late_changes_nothing() {
    let workload = generate(Kind::Tool, 250, 10.0, 6);
    let mut setup = setup(&workload, 4);
    setup.faults = quiet(workload.span());
    let told = [(); 2].map(|()| Rc::new(RefCell::new(Told::default())));
    let proxy = |at: usize| aware(1).telling(Rc::clone(&told[at]));
    let once = play(&setup, proxy(0));
    let twice = run(&setup, vec![Box::new(Twice(proxy(1)))], &mut |_, _| ());
    assert_eq!(once, twice);
    assert_eq!(told[0], told[1]);
    assert_ne!(told[0].borrow().state, 0);
}

/// A cache's clock counts tokens in 32 bits of sixteen each, and comes round after 68 billion.
#[test]
fn clocks_of_caches_come_round() {
    const BACKEND: BackendId = BackendId(0);
    const ROUND: u64 = 1 << 36;
    const STEP: u64 = 1 << 28;
    let mut index = PrefixIndex::new(1 << 20, 1);
    index.join(BACKEND).expect("there is room");
    index.set_capacity(BACKEND, Some(8 * STEP));
    let slot = index.join(BACKEND).expect("it is there");
    let mut matches = index.scratch();
    let mut matched = |index: &PrefixIndex, chunk: u64| {
        index.matches(&[chunk], &mut matches);
        matches.at(slot)
    };
    let insert = |index: &mut PrefixIndex, chunk: u64| {
        index.insert(BACKEND, &[chunk], 128, &mut Vec::new());
    };
    insert(&mut index, 0);
    // Twice round, in steps of an eighth of what is said to fit, a tenth of what is believed to.
    for at in 1..2 * ROUND / STEP {
        insert(&mut index, at);
        index.grew(BACKEND, STEP);
        assert_eq!(matched(&index, at), 1, "{at}");
        if at % 4 == 0 {
            insert(&mut index, 0);
        }
        assert_eq!(matched(&index, 0), 1, "what is asked for again and again stays");
        assert_eq!(matched(&index, at.saturating_sub(8).max(1)), 1);
        assert!(at < 12 || matched(&index, at - 11) == 0, "what nobody asks for goes: {at}");
    }
}
