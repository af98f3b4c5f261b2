//! The server against small cases counted by hand, and against itself going step by step.

use super::*;
use rstest::rstest;
use vllm_proxy_core::rng::Rng;

/// A step takes 1 ms, a prompt token 1 us, a decoding request 100 us.
const GPU: Gpu = Gpu {
    fixed_ns: 1_000_000,
    prefill_ns: 1_000,
    decode_ns: 100_000,
    context_ns: 0,
    tokens_max: 16,
    requests_max: 3,
    kv_tokens: 40,
};

const OPTIONS: Options = Options::new(GPU, 4);

/// When, what its blocks hold, how many tokens of prompt and of answer.
type Arrival<'a> = (u64, &'a [u64], u32, u32);

/// What the answers of such prompts hold.
type Answer = fn(&[u64]) -> Vec<u64>;

/// Runs all arrivals to their end; request numbers are places in the list.
fn run(options: Options, arrivals: &[Arrival<'_>]) -> (Vec<(u64, Event)>, Vllm) {
    run_with(options, arrivals, unknown)
}

fn unknown(_: &[u64]) -> Vec<u64> {
    Vec::new()
}

/// Prompts go on as the answers of shorter ones do.
fn what_comes_next(blocks: &[u64]) -> Vec<u64> {
    blocks[1..].to_vec()
}

fn run_with(
    options: Options,
    arrivals: &[Arrival<'_>],
    answer: Answer,
) -> (Vec<(u64, Event)>, Vllm) {
    let mut vllm = Vllm::new(options);
    let mut said = Vec::new();
    let mut coming = (0..).zip(arrivals).peekable();
    loop {
        let timeout = vllm.poll_timeout().map(Instant::micros);
        let next = coming.peek().map(|(_, arrival)| arrival.0);
        let now = match (timeout, next) {
            (None, None) => break,
            (Some(at), next) if next.is_none_or(|next| at <= next) => {
                vllm.handle_timeout(Instant::from_micros(at));
                at
            }
            (_, next) => {
                let (id, &(_, blocks, prompt, output)) = coming.next().expect("it was peeked at");
                let job = turn(id, blocks, prompt, output, &answer(blocks));
                let now = next.expect("there is one");
                vllm.submit(job, Instant::from_micros(now)).expect("it fits");
                now
            }
        };
        let (users, held) = vllm.accounts();
        assert_eq!(users, held);
        said.extend(std::iter::from_fn(|| vllm.poll_event()).map(|event| (now, event)));
    }
    assert_eq!((vllm.accounts(), vllm.in_flight()), ((0, 0), 0));
    (said, vllm)
}

fn done(id: u64, prompt: u32, cached: u32, completion: u32) -> Event {
    Event::Done(id, Usage { prompt, cached, completion })
}

use Event::First;

#[test]
fn one_request() {
    // 1 ms + 10 us of prefill and a nanosecond of attention, then two steps of 1.1 ms.
    let (said, vllm) = run(OPTIONS, &[(5, &[1, 2, 3], 10, 3)]);
    assert_eq!(said, [(1_016, First(0)), (3_216, done(0, 10, 0, 3))]);
    assert_eq!(vllm.busy(), Duration::from_nanos(3_210_001));
}

#[test]
fn what_is_looked_up_is_counted_until_it_is_started_anew() {
    let (_, mut vllm) = run(OPTIONS, &[(0, &[1, 2, 3], 10, 1), (9_000, &[1, 2, 4], 11, 1)]);
    assert_eq!(vllm.looked_up(), (21, 8));
    vllm.restart();
    assert_eq!(vllm.looked_up(), (0, 0));
}

#[test]
fn one_token_is_first_and_last() {
    let (said, _) = run(OPTIONS, &[(0, &[1], 4, 1)]);
    assert_eq!(said, [(1_004, First(0)), (1_004, done(0, 4, 0, 1))]);
}

#[test]
fn a_long_prompt_takes_several_steps() {
    let gpu = Gpu { kv_tokens: 80, ..GPU };
    let blocks = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
    let (said, _) = run(Options::new(gpu, 4), &[(0, &blocks, 40, 1)]);
    // 16, 16 and 8 tokens; attention to 0, 16 and 32 before them costs 3, 11 and 8 ns.
    assert_eq!(said, [(3_041, First(0)), (3_041, done(0, 40, 0, 1))]);
}

#[test]
fn running_requests_come_first_and_the_queue_keeps_its_order() {
    let arrivals: [Arrival<'_>; 4] =
        [(0, &[1, 2], 8, 3), (10, &[3, 4, 5], 12, 1), (11, &[6], 4, 1), (12, &[7], 4, 1)];
    let (said, _) = run(OPTIONS, &arrivals);
    let expected = [
        (1_008, First(0)),
        // One token for the first leaves 15: twelve of the second's and three of the third's.
        (2_124, First(1)),
        (2_124, done(1, 12, 0, 1)),
        // The last of the third's, and now there is room for the fourth.
        (3_229, First(2)),
        (3_229, First(3)),
        (3_229, done(0, 8, 0, 3)),
        (3_229, done(2, 4, 0, 1)),
        (3_229, done(3, 4, 0, 1)),
    ];
    assert_eq!(said, expected);
}

#[rstest]
#[case::nothing_alike(&[9, 8, 7], 12, 0)]
#[case::leading_blocks_only(&[9, 2, 3], 12, 0)]
#[case::one(&[1, 8, 7], 12, 4)]
#[case::two(&[1, 2, 7], 12, 8)]
#[case::never_the_last_token(&[1, 2, 3], 12, 8)]
#[case::all_but_the_last_token(&[1, 2, 3, 4], 13, 12)]
#[case::part_of_a_block_is_nothing(&[1], 3, 0)]
fn prefixes_are_found(#[case] blocks: &[u64], #[case] prompt: u32, #[case] cached: u32) {
    let before: Arrival<'_> = (0, &[1, 2, 3], 12, 1);
    let (said, vllm) = run(OPTIONS, &[before, (9_000, blocks, prompt, 1)]);
    assert_eq!(said.last().map(|(_, event)| *event), Some(done(1, prompt, cached, 1)));
    assert_eq!(vllm.cached(&[1, 2, 3], 13), 12);
    let off = Options { prefix_caching: false, ..OPTIONS };
    let (said, _) = run(off, &[before, (9_000, blocks, prompt, 1)]);
    assert_eq!(said.last().map(|(_, event)| *event), Some(done(1, prompt, 0, 1)));
}

#[test]
fn a_prefix_under_way_is_found() {
    let (said, _) = run(OPTIONS, &[(0, &[1, 2, 3], 12, 1), (1, &[1, 2, 9], 12, 1)]);
    assert_eq!(said[3], (2_017, done(1, 12, 8, 1)));
}

#[test]
fn the_tail_of_what_was_used_longest_ago_is_evicted_first() {
    // Ten blocks: the third request needs six, of which four were never used.
    let arrivals: [Arrival<'_>; 3] = [
        (0, &[1, 2, 3], 12, 1),
        (9_000, &[4, 5, 6], 12, 1),
        (18_000, &[10, 11, 12, 13, 14, 15], 24, 1),
    ];
    let (_, vllm) = run(OPTIONS, &arrivals);
    assert_eq!(vllm.cached(&[1, 2, 3, 99], 16), 4);
    assert_eq!(vllm.cached(&[4, 5, 6, 99], 16), 12);
}

#[test]
fn a_prompt_waits_until_all_of_it_fits() {
    let gpu = Gpu { tokens_max: 100, ..GPU };
    let arrivals: [Arrival<'_>; 2] =
        [(0, &[1, 2, 3, 4, 5, 6], 24, 2), (1, &[7, 8, 9, 10, 11], 20, 1)];
    let (said, _) = run(Options::new(gpu, 4), &arrivals);
    // The first holds seven of ten blocks until its end at 2.124 ms.
    let ends: Vec<_> = said.iter().map(|(at, _)| *at).collect();
    assert_eq!(ends, [1_025, 2_125, 3_145, 3_145]);
}

#[test]
fn who_came_last_is_thrown_out_and_begins_anew() {
    let gpu = Gpu { kv_tokens: 16, tokens_max: 100, ..GPU };
    // Both come in when the first is over, with two blocks each; after their first tokens they
    // need a third, and the second gives way.
    let arrivals: [Arrival<'_>; 3] = [(0, &[9], 1, 1), (1, &[1, 2], 8, 5), (1, &[3, 4], 8, 5)];
    let (said, vllm) = run(Options::new(gpu, 4), &arrivals);
    assert_eq!(vllm.preemptions(), 1);
    let kinds: Vec<_> = said.iter().skip(2).map(|(_, event)| *event).collect();
    // Its first token was said before, and what it found when it came in again is not reported.
    assert_eq!(kinds, [First(1), First(2), done(1, 8, 0, 5), done(2, 8, 0, 5)]);
}

#[test]
fn an_aborted_request_says_nothing_more_and_leaves_no_half_block() {
    let mut vllm = Vllm::new(OPTIONS);
    let job = |id, blocks: &[u64]| Job {
        id,
        blocks: blocks.into(),
        prompt: 24,
        output: 9,
        ..Job::default()
    };
    vllm.submit(job(1, &[1, 2, 3, 4, 5, 6]), Instant::START).expect("it fits");
    vllm.submit(job(2, &[7, 8, 9, 10, 11, 12]), Instant::START).expect("it fits");
    vllm.abort(2, Instant::START);
    vllm.abort(1, Instant::START);
    while let Some(at) = vllm.poll_timeout() {
        vllm.handle_timeout(at);
    }
    assert_eq!((vllm.poll_event(), vllm.in_flight(), vllm.accounts()), (None, 0, (0, 0)));
    // The first 16 tokens were computed, in the step that was under way.
    assert_eq!(vllm.cached(&[1, 2, 3, 4, 5, 6], 24), 16);
}

fn turn(id: u64, blocks: &[u64], prompt: u32, output: u32, answer: &[u64]) -> Job {
    Job { id, blocks: blocks.into(), prompt, output, answer: answer.into() }
}

/// Runs one request after the other, and tells what each found.
fn cached(vllm: &mut Vllm, jobs: impl IntoIterator<Item = Job>) -> Vec<u32> {
    let mut now = Instant::START;
    let one = |job| {
        vllm.submit(job, now).expect("it fits");
        while let Some(at) = vllm.poll_timeout() {
            vllm.handle_timeout(at);
            now = at;
        }
        let found = std::iter::from_fn(|| vllm.poll_event()).find_map(|event| match event {
            Event::Done(_, usage) => Some(usage.cached),
            First(_) => None,
        });
        found.expect("it is answered")
    };
    jobs.into_iter().map(one).collect()
}

#[rstest]
// The prompt fills one block and a half, and seven tokens of the answer are computed: 13 in all.
#[case::unknown(8, &[], 4)]
#[case::known(8, &[2, 3], 12)]
#[case::the_last_token_is_not_computed(6, &[2, 3], 8)]
#[case::too_short(2, &[2], 4)]
#[case::other_words(8, &[7, 8], 4)]
fn answers_are_found_in_the_next_prompt(
    #[case] output: u32,
    #[case] answer: &[u64],
    #[case] found: u32,
) {
    for leap_max in [1, u64::MAX] {
        let mut vllm = Vllm::new(Options { leap_max, ..OPTIONS });
        let jobs = [turn(1, &[1, 9], 6, output, answer), turn(2, &[1, 2, 3, 4], 16, 1, &[])];
        assert_eq!(cached(&mut vllm, jobs), [0, found]);
        assert_eq!(vllm.cached(&[1, 2, 3, 4], 17), 16);
    }
}

#[test]
fn an_answer_thrown_out_is_found_when_it_comes_in_again() {
    let gpu = Gpu { kv_tokens: 28, tokens_max: 100, ..GPU };
    let busy = [&[13, 14][..], &[]].map(|answer| {
        let mut vllm = Vllm::new(Options::new(gpu, 4));
        vllm.submit(turn(1, &[1, 2], 8, 12, &[]), Instant::START).expect("it fits");
        vllm.submit(turn(2, &[3], 4, 12, answer), Instant::START).expect("it fits");
        while let Some(at) = vllm.poll_timeout() {
            vllm.handle_timeout(at);
        }
        assert_eq!((vllm.preemptions(), vllm.accounts()), (1, (0, 0)));
        vllm.busy()
    });
    // The last of its two blocks is given away, the other one is not computed again.
    assert_eq!(busy[1] - busy[0], Duration::from_micros(4));
}

#[test]
fn what_never_fits_is_refused() {
    let mut vllm = Vllm::new(OPTIONS);
    let job = Job { blocks: [1].into(), prompt: 40, output: 1, ..Job::default() };
    assert_eq!(vllm.submit(job, Instant::START), Err(TooLong));
    assert_eq!(vllm.poll_timeout(), None);
}

#[test]
fn caches_can_be_lost() {
    let (_, mut vllm) = run(OPTIONS, &[(0, &[1, 2, 3], 12, 1)]);
    vllm.forget();
    assert_eq!(vllm.cached(&[1, 2, 3], 12), 0);
    let (_, mut vllm) = run(OPTIONS, &[(0, &[1, 2, 3], 12, 1)]);
    vllm.restart();
    assert_eq!(vllm.cached(&[1, 2, 3], 12), 0);
}

#[test]
fn who_is_in_the_batch_can_be_made_to_begin_anew() {
    let mut vllm = Vllm::new(OPTIONS);
    let job = |id| turn(id, &[id], 4, 9, &[]);
    let progress = |id, made| Progress { id, cached: 0, made };
    vllm.submit(job(1), Instant::START).expect("it fits");
    vllm.submit(job(2), Instant::START).expect("it fits");
    assert_eq!(vllm.batch().collect::<Vec<_>>(), [progress(1, 0)]);
    let first = vllm.poll_timeout().expect("a step is under way");
    vllm.handle_timeout(first);
    assert_eq!(vllm.batch().collect::<Vec<_>>(), [progress(1, 1), progress(2, 0)]);
    vllm.abort(2, first);
    vllm.forget_all();
    assert_eq!((vllm.in_flight(), vllm.accounts(), vllm.cached(&[1], 8)), (1, (0, 0), 0));
    while let Some(at) = vllm.poll_timeout() {
        vllm.handle_timeout(at);
    }
    assert_eq!(vllm.poll_event(), Some(First(1)), "only once");
    assert_eq!(vllm.poll_event(), Some(done(1, 4, 0, 9)));
    assert_eq!((vllm.poll_event(), vllm.preemptions(), vllm.accounts()), (None, 1, (0, 0)));
}

#[test]
fn a_stalled_server_says_nothing_for_a_while() {
    let mut vllm = Vllm::new(OPTIONS);
    vllm.stall(Instant::from_millis(10), Instant::START);
    let job = Job { blocks: [1].into(), prompt: 4, output: 1, ..Job::default() };
    vllm.submit(job, Instant::START).expect("it fits");
    assert_eq!(vllm.poll_timeout(), Some(Instant::from_micros(11_004)));
}

#[rstest]
#[case::roomy(400, 3, unknown)]
#[case::tight(64, 3, unknown)]
#[case::crowded(4_000, 64, unknown)]
#[case::answers_known(400, 3, what_comes_next)]
#[case::answers_known_tight(64, 3, what_comes_next)]
fn leaps_change_nothing(
    #[case] kv_tokens: u64,
    #[case] requests_max: usize,
    #[case] answer: Answer,
) {
    let gpu = Gpu { kv_tokens, requests_max, context_ns: 77, ..GPU };
    let mut rng = Rng::new(kv_tokens);
    let mut arrivals = Vec::new();
    let mut at = 0;
    let prompts: Vec<Vec<u64>> = (0..20)
        .map(|family| {
            (0..8).map(|block| if block < 3 { block } else { family * 8 + block }).collect()
        })
        .collect();
    for _ in 0..300 {
        at += rng.below(9_000);
        let blocks = &prompts[rng.below(20) as usize];
        let prompt = 1 + rng.below(32) as u32;
        arrivals.push((at, &blocks[..], prompt, 1 + rng.below(30) as u32));
    }
    let options = Options::new(gpu, 4);
    let (leaping, fast) = run_with(options, &arrivals, answer);
    let (stepping, slow) = run_with(Options { leap_max: 1, ..options }, &arrivals, answer);
    let differs = leaping.iter().zip(&stepping).position(|(leap, step)| leap != step);
    assert_eq!(differs, None);
    assert_eq!((fast.busy(), fast.preemptions()), (slow.busy(), slow.preemptions()));
    assert_eq!(fast.preemptions() > 0, kv_tokens == 64);
    assert_eq!(leaping.len(), 600);
}
