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

/// Bytes of JSON text a token, in thousandths: 4.0, until a model's answers tell better.
const BYTES_PER_TOKEN_MILLI: u64 = 4_000;
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

    /// Estimates a prompt by the length of its text.
    pub fn of_prompt(bytes: u64) -> Self {
        let tokens = u128::from(bytes) * 1_000_000 / u128::from(BYTES_PER_TOKEN_MILLI);
        let prompt = i64::try_from(tokens).map_or(PROMPT_MAX, |tokens| tokens.min(PROMPT_MAX));
        Self { uncached: prompt.max(UNCACHED_MIN), prompt }
    }
}

/// A backend's rank for one request; the lowest is chosen. The order of the fields is the order
/// of comparison, so equal work goes to fewer in flight, and equal counts rotate by a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    /// Marginal work, in thousandths of a token.
    pub work: i64,
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

/// What it costs to send the request numbered `request` to a candidate.
pub fn cost(work: Work, request: u64, candidate: &Candidate) -> Cost {
    let Candidate { backend, in_hand, cached, fresh, .. } = *candidate;
    let uncached = work.with_cached(cached).uncached;
    let requests = i64::from(in_hand.in_flight);
    let delay = uncached.saturating_mul(DELAY.saturating_mul(requests)) / 1_000;
    let sum = in_hand
        .queued
        .saturating_add(uncached)
        .saturating_add(delay)
        .saturating_add(in_hand.resident.saturating_mul(RESIDENT) / 1_000)
        .saturating_add(REQUEST.saturating_mul(requests))
        .saturating_add(i64::try_from(fresh).unwrap_or(i64::MAX).saturating_mul(FRESH));
    let turn = mix(mix(request).wrapping_add(u64::from(backend.0)));
    Cost { work: sum, in_flight: in_hand.in_flight, fresh, turn, backend }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Standing;
    use rstest::rstest;

    fn candidate(backend: u32, in_hand: Standing, cached: i64, fresh: u64) -> Candidate {
        Candidate { backend: BackendId(backend), reluctance: 0, in_hand, cached, fresh }
    }

    #[rstest]
    #[case::nothing(0, 16_000, 0)]
    #[case::below_the_least(60, 16_000, 15_000)]
    #[case::four_bytes_a_token(4_000, 1_000_000, 1_000_000)]
    #[case::thousandths_survive(4_001, 1_000_250, 1_000_250)]
    #[case::absurd(u64::MAX, PROMPT_MAX, PROMPT_MAX)]
    fn prompts_are_estimated(#[case] bytes: u64, #[case] uncached: i64, #[case] prompt: i64) {
        assert_eq!(Work::of_prompt(bytes), Work { uncached, prompt });
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
        assert_eq!(cost(work, 0, &candidate(0, in_hand, 0, 0)).work, expected);
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
        assert_eq!(cost(work, 0, &one).work, expected);
    }

    #[test]
    fn nothing_overflows() {
        let work = Work { uncached: i64::MAX, prompt: i64::MAX };
        let in_hand = Standing { queued: i64::MAX, resident: i64::MAX, in_flight: u32::MAX };
        assert_eq!(cost(work, u64::MAX, &candidate(u32::MAX, in_hand, 0, u64::MAX)).work, i64::MAX);
    }

    #[test]
    fn cheaper_comes_before_emptier_and_emptier_before_the_hash() {
        let rank = |work, in_flight, turn, backend| Cost {
            work,
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
