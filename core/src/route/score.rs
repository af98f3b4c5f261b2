//! Score: what it costs to send a request to a backend, in one currency, thousandths of a token.
//!
//! Knows numbers only; does not know who is eligible. The formula and its evidence: a backend's
//! cost is the prefill queued there, plus this request's own, raised by the number of requests it
//! would delay, plus small terms for what is resident and in flight. Constants were tuned on
//! traces by simulation; the optimum is flat (mu 0.03-0.2, resident 0.01-0.03, request 0-200 are
//! all within 4 %).

use crate::fleet::BackendId;
use crate::rng::mix;
use crate::route::Candidate;

/// Tokens that any request costs, in thousandths, however much of its prompt is cached.
const UNCACHED_MIN: i64 = 16_000;
/// The longest prompt believed in, in thousandths of a token: a thousand million tokens. Sums
/// over nine million requests of this size stay exact.
const PROMPT_MAX: i64 = 1_000_000_000_000;
/// mu: how much of a request's prefill each request in flight there suffers, in thousandths.
const DELAY: i64 = 100;
/// What a resident prompt token costs, in thousandths of a token.
const RESIDENT: i64 = 20;
/// What a request in flight costs, in thousandths of a token.
const REQUEST: i64 = 100_000;
/// eps: what a token costs that was lately computed there for the first time, in thousandths of
/// a token: caches fill evenly. The least of all such sums is in every cost, and changes no order.
const FRESH: i64 = 3;
/// h: how much of its prefill a request saves where proxies that cannot hear each other send all
/// that begin alike, in thousandths. It counts only while they are cut off: with everything shared
/// half of this costs up to 9 % of the time to last token in the simulation.
const FAVOUR: i64 = 600;
/// The weight of backends of which the operator says nothing.
const USUAL_WEIGHT: u16 = 100;

/// What a request brings, in thousandths of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Prompt tokens to be prefilled, at least 16.
    pub uncached: i64,
    /// All prompt tokens.
    pub prompt: i64,
}

impl Work {
    /// The same where so much of the prompt is cached, in thousandths of a token.
    pub fn with_cached(self, cached: i64) -> Self {
        Self { uncached: self.prompt.saturating_sub(cached).max(UNCACHED_MIN), ..self }
    }

    /// Of a prompt of so many thousandths of a token.
    pub fn of_prompt(prompt: i64) -> Self {
        let prompt = prompt.clamp(0, PROMPT_MAX);
        Self { uncached: prompt.max(UNCACHED_MIN), prompt }
    }
}

/// The pace of the fastest of several, in nanoseconds a token, if the slowest is slower by more
/// than a fifth. What is learned of equal machines differs by less, and would only add noise.
pub fn fastest(paces: impl Iterator<Item = i64>) -> Option<i64> {
    let (fast, slow) =
        paces.fold((i64::MAX, 0), |(fast, slow), pace| (pace.min(fast), pace.max(slow)));
    (slow.saturating_mul(5) > fast.saturating_mul(6)).then_some(fast)
}

/// A backend's rank for one request; the lowest is chosen. The order of the fields is the order
/// of comparison, so equal work goes to fewer in flight, and equal counts rotate by a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    /// Marginal work, in thousandths of a token; of a backend that weighs more it counts less.
    pub work: i64,
    /// What is lost of that by the division, so that backends of one weight compare as if they had
    /// none.
    pub rest: i64,
    /// Requests in flight there.
    pub in_flight: u32,
    /// Prompt tokens lately computed there for the first time.
    pub fresh: u64,
    /// A hash of the request and the backend: rendezvous, so that another backend more or less
    /// moves no tie between the others.
    pub turn: u64,
    /// The last resort.
    pub backend: BackendId,
}

/// What a cost is made of, in thousandths of a token: what a request would wait for and do at a
/// backend, and what is added so that it does not go where another should.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// What waits there for its prefill, or is being computed.
    pub queued: i64,
    /// What of the prompt is to be computed.
    pub uncached: i64,
    /// How much requests in flight there suffer by that.
    pub delay: i64,
    /// For the context that requests in flight there hold.
    pub resident: i64,
    /// For each request in flight there.
    pub requests: i64,
    /// How much more all this is there than it would be at the fastest.
    pub slower: i64,
    /// For what was lately computed there for the first time.
    pub fresh: i64,
    /// Since another proxy is at home there.
    pub surcharge: i64,
    /// What it saves where proxies that cannot hear each other send such prompts; not negative.
    pub favour: i64,
    /// What it counts more for a weight below the usual one; negative for one above.
    pub weight: i64,
}

impl Terms {
    /// Of sending a request to a candidate. `fastest` is the pace of the fastest, if speeds are to
    /// count.
    pub fn of(work: Work, fastest: Option<i64>, candidate: &Candidate) -> Self {
        let Candidate { in_hand, cached, fresh, pace, weight, favoured, surcharge, .. } =
            *candidate;
        let uncached = work.with_cached(cached).uncached;
        let requests = i64::from(in_hand.in_flight);
        let terms = Self {
            queued: in_hand.queued,
            uncached,
            delay: uncached.saturating_mul(DELAY.saturating_mul(requests)) / 1_000,
            resident: in_hand.resident.saturating_mul(RESIDENT) / 1_000,
            requests: REQUEST.saturating_mul(requests),
            slower: 0,
            fresh: i64::try_from(fresh).unwrap_or(i64::MAX).saturating_mul(FRESH),
            surcharge: uncached / 1_000 * i64::from(surcharge),
            favour: if favoured { uncached / 1_000 * FAVOUR } else { 0 },
            weight: 0,
        };
        let terms = match fastest {
            None => terms,
            Some(fastest) => {
                let work = terms.work();
                let slower = i128::from(work) * i128::from(pace) / i128::from(fastest.max(1));
                let slower = i64::try_from(slower).unwrap_or(i64::MAX);
                Self { slower: slower.saturating_sub(work), ..terms }
            }
        };
        if weight == USUAL_WEIGHT {
            return terms;
        }
        let all = terms.unweighed();
        Self { weight: weighed(all, weight).0.saturating_sub(all), ..terms }
    }

    /// All of them together.
    pub const fn sum(&self) -> i64 {
        self.unweighed().saturating_add(self.weight)
    }

    /// All but for the weight.
    const fn unweighed(&self) -> i64 {
        self.work()
            .saturating_add(self.slower)
            .saturating_add(self.fresh)
            .saturating_add(self.surcharge)
            .saturating_sub(self.favour)
    }

    /// What takes its time.
    const fn work(&self) -> i64 {
        self.queued
            .saturating_add(self.uncached)
            .saturating_add(self.delay)
            .saturating_add(self.resident)
            .saturating_add(self.requests)
    }
}

/// What it costs to send the request numbered `request` to a candidate. `fastest` is the pace of
/// the fastest, if speeds are to count.
pub fn cost(work: Work, request: u64, fastest: Option<i64>, candidate: &Candidate) -> Cost {
    let Candidate { backend, in_hand, fresh, name, weight, .. } = *candidate;
    let turn = mix(mix(request).wrapping_add(name.0));
    let (work, rest) = weighed(Terms::of(work, fastest, candidate).unweighed(), weight);
    Cost { work, rest, in_flight: in_hand.in_flight, fresh, turn, backend }
}

/// What work counts at a backend of so many hundredths, and what the division leaves.
fn weighed(work: i64, weight: u16) -> (i64, i64) {
    if weight == USUAL_WEIGHT {
        return (work, 0);
    }
    let (work, weight) = (i128::from(work) * i128::from(USUAL_WEIGHT), i128::from(weight.max(1)));
    let part = |part: i128| i64::try_from(part).unwrap_or(i64::MAX);
    (part(work.div_euclid(weight)), part(work.rem_euclid(weight)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{BackendName, Standing};
    use rstest::rstest;

    fn candidate(backend: u32, in_hand: Standing, cached: i64, fresh: u64) -> Candidate {
        Candidate {
            backend: BackendId(backend),
            reluctance: 0,
            in_hand,
            cached,
            fresh,
            pace: 8,
            weight: 100,
            due: 0,
            name: BackendName(backend.into()),
            favoured: false,
            surcharge: 0,
        }
    }

    #[rstest]
    #[case::nothing(0, 16_000, 0)]
    #[case::below_the_least(15_000, 16_000, 15_000)]
    #[case::more(1_000_250, 1_000_250, 1_000_250)]
    #[case::absurd(i64::MAX, PROMPT_MAX, PROMPT_MAX)]
    #[case::absurdly_little(i64::MIN, 16_000, 0)]
    fn prompts_are_bounded(#[case] tokens: i64, #[case] uncached: i64, #[case] prompt: i64) {
        assert_eq!(Work::of_prompt(tokens), Work { uncached, prompt });
    }

    #[rstest]
    #[case::idle(0, 0, 0, 1_000_000)]
    #[case::queue(500_000, 0, 0, 1_500_000)]
    #[case::resident_weighs_a_fiftieth(0, 1_000_000, 0, 1_020_000)]
    // 1,000 tokens, a tenth of them more and 100 tokens for each of the two in flight.
    #[case::in_flight(0, 0, 2, 1_400_000)]
    #[case::all(500_000, 1_000_000, 2, 1_920_000)]
    #[case::saturated(i64::MAX, i64::MAX, u32::MAX, i64::MAX)]
    fn cost_is_work(
        #[case] queued: i64,
        #[case] resident: i64,
        #[case] in_flight: u32,
        #[case] expected: i64,
    ) {
        let work = Work { uncached: 1_000_000, prompt: 1_000_000 };
        let in_hand = Standing { queued, resident, in_flight };
        assert_eq!(cost(work, 0, None, &candidate(0, in_hand, 0, 0)).work, expected);
    }

    #[rstest]
    #[case::nothing(0, 0, 1_000_000)]
    #[case::half(500_000, 0, 500_000)]
    #[case::all(1_000_000, 0, 16_000)]
    #[case::more_than_all(9_000_000, 0, 16_000)]
    #[case::lately_computed(0, 1_000, 1_003_000)]
    fn what_is_cached_is_no_work(#[case] cached: i64, #[case] fresh: u64, #[case] expected: i64) {
        let work = Work { uncached: 1_000_000, prompt: 1_000_000 };
        let one = candidate(0, Standing::default(), cached, fresh);
        assert_eq!(cost(work, 0, None, &one).work, expected);
    }

    #[rstest]
    #[case::as_fast(8, 1_500_000)]
    #[case::twice_as_fast(4, 3_000_000)]
    #[case::no_pace(0, 12_000_000)]
    fn work_counts_more_where_it_takes_longer(#[case] fastest: i64, #[case] expected: i64) {
        let work = Work { uncached: 1_000_000, prompt: 1_000_000 };
        let in_hand = Standing { queued: 500_000, ..Standing::default() };
        assert_eq!(cost(work, 0, Some(fastest), &candidate(0, in_hand, 0, 0)).work, expected);
        // What is fresh is no work.
        let fresh = cost(work, 0, Some(fastest), &candidate(0, in_hand, 0, 100));
        assert_eq!(fresh.work, expected + 300);
    }

    #[rstest]
    #[case::nobody(&[], None)]
    #[case::one(&[125_000], None)]
    #[case::a_fifth(&[100_000, 120_000], None)]
    #[case::more(&[120_001, 100_000, 110_000], Some(100_000))]
    fn speeds_count_if_they_differ(#[case] paces: &[i64], #[case] expected: Option<i64>) {
        assert_eq!(fastest(paces.iter().copied()), expected);
    }

    #[rstest]
    #[case::nothing_cached(0, 400_000)]
    #[case::half_cached(500_000, 200_000)]
    fn a_favourite_saves_part_of_the_prefill(#[case] cached: i64, #[case] expected: i64) {
        let work = Work { uncached: 1_000_000, prompt: 1_000_000 };
        let one = candidate(0, Standing::default(), cached, 0);
        let favoured = Candidate { favoured: true, ..one };
        assert_eq!(cost(work, 0, None, &favoured).work, expected);
        let busy = Standing { queued: 700_000, ..Standing::default() };
        let busy = Candidate { in_hand: busy, ..favoured };
        assert!(cost(work, 0, None, &busy) > cost(work, 0, None, &one), "load still decides");
    }

    #[rstest]
    #[case::nothing_cached(0, 1_500_000)]
    #[case::half_cached(500_000, 750_000)]
    #[case::all_cached(1_000_000, 24_000)]
    fn where_another_proxy_is_at_home_prefill_costs_more(
        #[case] cached: i64,
        #[case] expected: i64,
    ) {
        let work = Work { uncached: 1_000_000, prompt: 1_000_000 };
        let one = candidate(0, Standing::default(), cached, 0);
        let abroad = Candidate { surcharge: 500, ..one };
        assert_eq!(cost(work, 0, None, &abroad).work, expected);
    }

    #[rstest]
    #[case::idle(Standing::default(), 0, 0, None)]
    #[case::busy(Standing { queued: 700_001, resident: 3_000_999, in_flight: 3 }, 100_000, 77, None)]
    #[case::slow(Standing { queued: 700_001, resident: 9, in_flight: 3 }, 0, 1, Some(3))]
    #[case::as_fast(Standing { queued: 1, resident: 9, in_flight: 1 }, 0, 1, Some(8))]
    #[case::absurd(
        Standing { queued: i64::MAX, resident: i64::MAX, in_flight: u32::MAX }, 0, 0, Some(1)
    )]
    fn terms_sum_up_to_the_cost(
        #[case] in_hand: Standing,
        #[case] cached: i64,
        #[case] fresh: u64,
        #[case] fastest: Option<i64>,
    ) {
        let work = Work { uncached: 1_000_000, prompt: 1_000_000 };
        for (favoured, surcharge) in [(false, 0), (true, 0), (false, 250), (true, 1_000)] {
            let one = candidate(0, in_hand, cached, fresh);
            let one = Candidate { favoured, surcharge, ..one };
            let terms = Terms::of(work, fastest, &one);
            let Terms { queued, uncached, delay, resident, requests, .. } = terms;
            let Terms { slower, fresh, surcharge, favour, .. } = terms;
            let plus = [queued, uncached, delay, resident, requests, slower, fresh, surcharge];
            let sum = plus.into_iter().map(i128::from).sum::<i128>() - i128::from(favour);
            let exact = i64::try_from(sum).unwrap_or(i64::MAX - favour);
            assert_eq!(terms.sum(), exact);
            assert_eq!(cost(work, 5, fastest, &one).work, terms.sum());
            assert!(plus.iter().all(|term| *term >= 0) && favour >= 0, "{terms:?}");
            for weight in [1, 70, 150, 10_000] {
                let one = Candidate { weight, ..one };
                let weighed = Terms::of(work, fastest, &one);
                assert_eq!(cost(work, 5, fastest, &one).work, weighed.sum(), "{weight}");
                assert_eq!(Terms { weight: 0, ..weighed }, terms, "{weight}");
            }
        }
    }

    #[rstest]
    #[case::usual(100, 1_003, 0)]
    #[case::twice(200, 501, 100)]
    #[case::half(50, 2_006, 0)]
    #[case::least(1, 100_300, 0)]
    #[case::a_mistake(0, 100_300, 0)]
    fn who_weighs_more_is_cheaper(#[case] weight: u16, #[case] work: i64, #[case] rest: i64) {
        assert_eq!(weighed(1_003, weight), (work, rest));
        assert_eq!(weighed(i64::MAX, weight).0 == i64::MAX, weight <= 100);
    }

    #[rstest]
    fn backends_of_one_weight_compare_as_if_they_had_none(
        #[values(1, 33, 100, 150, 10_000)] weight: u16,
    ) {
        let cost = |queued: i64, in_flight, weight| {
            let in_hand = Standing { queued, resident: 7 * queued, in_flight };
            let one = Candidate { weight, ..candidate(in_flight, in_hand, 500, 9) };
            cost(Work::of_prompt(2_000_123), 5, None, &one)
        };
        let loads: alloc::vec::Vec<_> =
            (0..40).map(|n| (1_000_000 + n * n % 17, n as u32 % 3)).collect();
        for &(queued, in_flight) in &loads {
            for &(other, others) in &loads {
                let order =
                    |weight| cost(queued, in_flight, weight).cmp(&cost(other, others, weight));
                assert_eq!(order(weight), order(100), "{queued} and {other}");
            }
        }
    }

    #[test]
    fn nothing_overflows() {
        let work = Work { uncached: i64::MAX, prompt: i64::MAX };
        let in_hand = Standing { queued: i64::MAX, resident: i64::MAX, in_flight: u32::MAX };
        assert_eq!(
            cost(work, u64::MAX, Some(1), &candidate(u32::MAX, in_hand, 0, u64::MAX)).work,
            i64::MAX
        );
    }

    #[test]
    fn cheaper_comes_before_emptier_and_emptier_before_the_hash() {
        let rank = |work, in_flight, turn, backend| Cost {
            work,
            rest: 0,
            in_flight,
            fresh: 0,
            turn,
            backend: BackendId(backend),
        };
        assert!(rank(1, 9, 9, 9) < rank(2, 0, 0, 0));
        assert!(rank(1, 1, 9, 9) < rank(1, 2, 0, 0));
        assert!(rank(1, 1, 1, 9) < rank(1, 1, 2, 0));
        assert!(rank(1, 1, 1, 0) < rank(1, 1, 1, 1));
    }
}
