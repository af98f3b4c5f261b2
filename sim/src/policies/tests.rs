//! Each formula on fleets of a few servers, worked out by hand.

use super::*;
use crate::trace::Request;
use crate::vllm::{Gauges, Gpu, Options, Usage, Vllm};
use crate::world::{Answer, Ask, Counts, Manner, Router, Server, Word};
use rstest::rstest;
use std::cell::Cell;
use vllm_proxy_core::time::Instant;

fn request(blocks: &[u64], prompt: u32) -> Request {
    Request { blocks: blocks.into(), prompt, output: 1, ..Request::default() }
}

fn ask(request: &Request, id: u64) -> Ask<'_> {
    let prompt_bytes = u64::from(request.prompt) * 4;
    Ask {
        id,
        request,
        block_tokens: 512,
        prompt_bytes,
        token_bytes_milli: 4_000,
        stream: true,
        since: Instant::START,
        name: 0,
    }
}

/// Candidates from requests in flight, tokens queued and tokens cached.
fn fleet(servers: &[(u32, u64, u64)]) -> Vec<Candidate> {
    let candidate = |(server, &(in_flight, queued, cached))| Candidate {
        server,
        in_flight,
        queued,
        cached,
        ..Candidate::default()
    };
    servers.iter().enumerate().map(candidate).collect()
}

/// How often each candidate is chosen for prompts of 1,024 tokens.
fn picks(policy: &mut dyn Policy, candidates: &[Candidate], times: u64) -> Vec<u64> {
    let request = request(&[1, 2], 1_024);
    let mut counts = vec![0; candidates.len()];
    for id in 0..times {
        counts[policy.pick(&ask(&request, id), candidates, Instant::START)] += 1;
    }
    counts
}

#[test]
fn round_robin_takes_turns_and_passes_who_is_missing() {
    let mut policy = round_robin::RoundRobin::default();
    let all = fleet(&[(9, 0, 0), (0, 0, 0), (0, 0, 0)]);
    assert_eq!(picks(&mut policy, &all, 7), [3, 2, 2]);
    assert_eq!(picks(&mut policy, &[all[0], all[2]], 2), [1, 1]);
}

#[test]
fn fewest_requests() {
    let mut policy = least_requests::LeastRequests::new(1);
    let counts = picks(&mut policy, &fleet(&[(2, 0, 0), (1, 9, 0), (1, 0, 0)]), 100);
    assert!(counts[0] == 0 && counts[1] > 30 && counts[2] > 30, "{counts:?}");
}

#[test]
fn the_worst_is_never_the_better_of_two() {
    let mut policy = power_of_two::PowerOfTwo::new(1);
    let counts = picks(&mut policy, &fleet(&[(2, 0, 0), (1, 0, 0), (0, 0, 0)]), 300);
    assert!(counts[0] == 0 && counts[1] > 70 && counts[2] > 170, "{counts:?}");
    assert_eq!(picks(&mut policy, &fleet(&[(5, 0, 0)]), 3), [3]);
}

#[test]
fn a_key_stays_until_its_server_has_more_than_its_share() {
    let mut policy = bounded_hash::BoundedHash::new();
    policy.start(3);
    let counts = picks(&mut policy, &fleet(&[(4, 0, 0), (4, 0, 0), (4, 0, 0)]), 10);
    let home = counts.iter().position(|count| *count == 10).expect("always the same one");
    // Of 13 requests nobody may have more than 6.
    let mut loads = [3, 3, 3];
    loads[home] = 6;
    let busy = loads.map(|load| (load, 0, 0));
    assert_eq!(picks(&mut policy, &fleet(&busy), 10)[home], 0);
}

#[rstest]
#[case::balanced_goes_where_it_was([40, 8], 1.1, 0)]
#[case::not_far_enough([41, 40], 1.0, 0)]
#[case::out_of_balance([41, 8], 1.1, 1)]
#[case::not_often_enough([90, 50], 2.0, 0)]
fn smg_follows_its_tree_while_loads_are_balanced(
    #[case] loads: [u32; 2],
    #[case] rel: f64,
    #[case] chosen: usize,
) {
    let mut policy = smg::CacheAware::new(0.5, 32, rel);
    let request = request(&[1, 2], 1_024);
    policy.pick(&ask(&request, 0), &fleet(&[(0, 0, 0), (0, 0, 0)]), Instant::START);
    policy.sent(&ask(&request, 0), 0, Instant::START);
    let candidates = fleet(&loads.map(|load| (load, 0, 0)));
    let mut expected = [0, 0];
    expected[chosen] = 1;
    assert_eq!(picks(&mut policy, &candidates, 1), expected);
}

#[rstest]
#[case::half_is_not_more_than_half(&[1, 3], 1)]
#[case::all(&[1, 2], 0)]
#[case::nothing(&[3, 4], 1)]
fn smg_asks_how_much_of_a_prompt_it_knows(#[case] blocks: &[u64], #[case] chosen: usize) {
    let mut policy = smg::CacheAware::new(0.5, 32, 1.1);
    let known = request(&[1, 2], 1_024);
    policy.pick(&ask(&known, 0), &fleet(&[(0, 0, 0), (0, 0, 0)]), Instant::START);
    policy.sent(&ask(&known, 0), 0, Instant::START);
    let request = request(blocks, 1_024);
    let place = policy.pick(&ask(&request, 1), &fleet(&[(1, 0, 0), (0, 0, 0)]), Instant::START);
    assert_eq!(place, chosen);
}

#[rstest]
// Mean 2: a whole hit is worth as much as all of the mean at beta 1, as twice of it at 0.5.
#[case::warm_and_average(1.0, &[(2, 0, 1_024), (1, 0, 0), (3, 0, 0)], 0)]
#[case::warm_and_busy(1.0, &[(5, 0, 1_024), (0, 0, 0), (1, 0, 0)], 1)]
#[case::half_the_weight(0.5, &[(3, 0, 1_024), (1, 0, 0), (2, 0, 0)], 0)]
#[case::nothing_cached(1.0, &[(2, 0, 0), (1, 0, 0), (3, 0, 0)], 1)]
fn loadaware_weighs_hits_against_load(
    #[case] beta: f64,
    #[case] servers: &[(u32, u64, u64)],
    #[case] chosen: usize,
) {
    let mut policy = loadaware::LoadAware::new(beta);
    assert_eq!(picks(&mut policy, &fleet(servers), 1)[chosen], 1);
}

#[rstest]
#[case::sticky(&[(0, 80_000, 1_024), (0, 1_000, 0)], 0)]
#[case::four_fifths_is_sticky(&[(0, 80_000, 820), (0, 1_000, 0)], 0)]
#[case::less_is_not(&[(0, 80_000, 819), (0, 1_000, 0)], 1)]
// 5 s are 79,630 tokens.
#[case::too_long(&[(0, 80_700, 1_024), (0, 1_000, 0)], 1)]
#[case::least_to_prefill(&[(0, 1_500, 512), (0, 1_100, 0)], 0)]
fn affinity_holds_until_it_takes_too_long(
    #[case] servers: &[(u32, u64, u64)],
    #[case] chosen: usize,
) {
    let mut policy = llmd_affinity::Affinity::new(5.0, Tokens::Uncached, 1);
    // One in a hundred explores.
    assert!(picks(&mut policy, &fleet(servers), 1_000)[chosen] >= 980);
}

#[test]
fn weighted_scores_add_up() {
    let mut policy = llmd_weighted::Weighted::new(SECOND, 1);
    let mut candidates = fleet(&[(0, 0, 1_024), (0, 0, 0), (0, 0, 512)]);
    let gauges = [(4, 900), (0, 100), (2, 500)];
    for (candidate, (waiting, kv_permille)) in candidates.iter_mut().zip(gauges) {
        candidate.gauges = Gauges { waiting, kv_permille, running: 0 };
    }
    // 3 + 0 + 0.2, 0 + 2 + 1.8, 1.5 + 1 + 1.
    assert_eq!(picks(&mut policy, &candidates, 3), [0, 3, 0]);
    candidates[0].gauges.waiting = 3;
    // 3 + 0 + 0.2, of which nothing changes while its queue is the longest.
    assert_eq!(picks(&mut policy, &candidates, 3), [0, 3, 0]);
    candidates[1].gauges.waiting = 3;
    assert_eq!(picks(&mut policy, &candidates, 3), [0, 0, 3]);
}

#[rstest]
// With four blocks in use there: 2 to prefill and 6 in use against 2 + 3 queued and 2.
#[case::one(1.0, 3 * 512, 1)]
#[case::two_equal(1.0, 4 * 512, 0)]
// 4 + 6 against 8 + 2.
#[case::two(2.0, 2 * 512, 0)]
#[case::less_queued(2.0, 512, 1)]
fn dynamo_adds_blocks_in_use(#[case] weight: f64, #[case] queued: u64, #[case] chosen: usize) {
    let mut policy = dynamo::Dynamo::new(weight);
    policy.start(2);
    for id in 0..2 {
        // Shared blocks count once.
        policy.sent(&ask(&request(&[11, 12, 13, 14], 2_048), 100 + id), 0, Instant::START);
    }
    let candidates = fleet(&[(2, 0, 0), (0, queued, 0)]);
    assert_eq!(picks(&mut policy, &candidates, 1)[chosen], 1);
    policy.over(100, None, Instant::START);
    assert_eq!(picks(&mut policy, &candidates, 1)[chosen], 1);
    policy.over(101, None, Instant::START);
    assert_eq!(picks(&mut policy, &candidates, 1), [1, 0]);
}

/// A reference, and requests that it is told to have sent.
struct Rig {
    policy: Reference,
    next: Cell<u64>,
}

impl Rig {
    fn new(servers: usize) -> Self {
        let mut policy = Reference::new(Weights::default(), 1);
        policy.start(servers);
        Self { policy, next: Cell::new(0) }
    }

    /// Sends a prompt to a server, whatever the score says.
    fn send(&mut self, blocks: &[u64], prompt: u32, server: usize, millis: u64) -> u64 {
        let id = self.next.replace(self.next.get() + 1);
        let request = request(blocks, prompt);
        let now = Instant::from_millis(millis);
        self.policy.pick(&ask(&request, id), &fleet(&[(0, 0, 0); 2]), now);
        self.policy.sent(&ask(&request, id), server, now);
        id
    }

    fn pick(&mut self, blocks: &[u64], prompt: u32, millis: u64) -> usize {
        let request = request(blocks, prompt);
        let now = Instant::from_millis(millis);
        self.policy.pick(&ask(&request, 99), &fleet(&[(0, 0, 0); 2]), now)
    }

    fn answer(&mut self, id: u64, cached: u32, millis: u64) {
        let now = Instant::from_millis(millis);
        self.policy.first_byte(id, now);
        let usage = Usage { prompt: 1_024, cached, completion: 10 };
        self.policy.over(id, Some(usage), now);
    }
}

#[test]
fn the_reference_goes_where_the_prefix_is() {
    for server in [0, 1] {
        let mut rig = Rig::new(2);
        let id = rig.send(&[1, 2], 1_024, server, 0);
        rig.answer(id, 0, 100);
        assert_eq!(rig.pick(&[1, 2], 1_024, 200), server);
        // Another prompt goes to who got fewer tokens lately.
        assert_eq!(rig.pick(&[3, 4], 1_024, 200), 1 - server);
        rig.policy.returned(server);
        assert_eq!(rig.pick(&[1, 2], 1_024, 200), 1 - server);
    }
}

#[test]
fn the_reference_leaves_a_prefix_behind_a_longer_queue() {
    let mut rig = Rig::new(2);
    let id = rig.send(&[1, 2], 1_024, 0, 0);
    rig.answer(id, 0, 100);
    // 512 tokens queued cost less than 1,008 saved, 1,536 more.
    rig.send(&[5], 512, 0, 200);
    assert_eq!(rig.pick(&[1, 2], 1_024, 200), 0);
    rig.send(&[6, 7], 1_024, 0, 200);
    assert_eq!(rig.pick(&[1, 2], 1_024, 200), 1);
    // At 8,000 tokens/s nine tenths of the first are over soon, but not the second.
    assert_eq!(rig.pick(&[1, 2], 1_024, 260), 1);
}

#[test]
fn every_policy_has_a_name_of_its_own() {
    for (place, one) in ALL.iter().enumerate() {
        assert_eq!(named(one.name).map(|found| found.about), Some(one.about));
        assert!(ALL[..place].iter().all(|other| other.name != one.name));
        assert_eq!(one.router(1).in_hand(), 0);
    }
    assert!(named("random").is_none());
}

#[test]
fn what_a_proxy_that_is_gone_had_in_hand_counts_no_more() {
    let server = || Server {
        vllm: Vllm::new(Options::new(Gpu::H100, 512)),
        alive: true,
        listed: true,
        joined: 0,
        manner: Manner::default(),
    };
    let servers = [server(), server()];
    let mut peer = Peer::new(least_requests::LeastRequests::new(1));
    peer.share(0);
    peer.start(2, Instant::START);
    let counts = Counts { server: 0, in_flight: 5, ..Counts::default() };
    peer.hear(&Word::Counts { proxy: 1, number: 1, counts }, Instant::START);
    let request = request(&[1, 2], 1_024);
    let send = |peer: &mut Peer<_>, id| peer.route(&ask(&request, id), &servers, Instant::START);
    assert_eq!([0, 1].map(|id| send(&mut peer, id)), [Answer::Send(1); 2]);
    peer.gone(2);
    assert_eq!(send(&mut peer, 2), Answer::Send(1));
    peer.gone(1);
    assert_eq!(send(&mut peer, 3), Answer::Send(0));
    assert_eq!(peer.in_hand(), 4);
    peer.stop(Instant::START);
    assert_eq!((peer.in_hand(), peer.poll_word()), (0, None));
}
