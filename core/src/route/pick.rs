//! Pick: one of several candidates, by the operator's policy.
//!
//! Owns no state and allocates nothing; does not know why somebody is a candidate.

use crate::config::Policy;
use crate::fleet::{BackendId, BackendName, Standing};
use crate::route::Reason;
use crate::route::score::{Cost, Work, cost};
use core::cmp::Ordering;

/// A backend that may take the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which one.
    pub backend: BackendId,
    /// How gladly it is given requests; the lower the better, before all else.
    pub reluctance: u8,
    /// What it has in hand.
    pub in_hand: Standing,
    /// Prompt tokens that it is believed to have cached, in thousandths.
    pub cached: i64,
    /// Prompt tokens that it has lately computed for the first time.
    pub fresh: u64,
    /// How long it takes for a token of a prompt, in nanoseconds.
    pub pace: i64,
    /// How much it does, in hundredths of what others do.
    pub weight: u16,
    /// When its turn is, by its weight; 0 where all weigh alike.
    pub due: u64,
    /// What all proxies call it: ties are decided by this, alike by all of them.
    pub name: BackendName,
    /// Whether it is the one to which proxies send such prompts that cannot hear each other.
    pub favoured: bool,
    /// How much of its prefill a request costs more there, in thousandths, since another proxy is
    /// at home there of which too little is heard.
    pub surcharge: u16,
}

/// What the choice depends on, besides the candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The operator's policy.
    pub policy: Policy,
    /// What the request brings.
    pub work: Work,
    /// The request's number: ties rotate by it.
    pub request: u64,
    /// Whose turn it was last among the backends of this model.
    pub last: Option<BackendId>,
    /// The pace of the fastest candidate, if they differ so much that it counts.
    pub fastest: Option<i64>,
}

impl Question {
    /// Which of two candidates is to be preferred: the lesser. The least of all is chosen.
    pub fn compare(&self, one: &Candidate, other: &Candidate) -> Ordering {
        match self.policy {
            Policy::LeastLoad | Policy::CacheAware => self.by_cost(one).cmp(&self.by_cost(other)),
            Policy::RoundRobin => self.by_turn(one).cmp(&self.by_turn(other)),
        }
    }

    fn by_cost(&self, one: &Candidate) -> (u8, Cost) {
        (one.reluctance, cost(self.work, self.request, self.fastest, one))
    }

    /// The next after the last one, by id; past the end, the first.
    fn by_turn(&self, one: &Candidate) -> (u8, u64, bool, BackendId) {
        let turned = self.last.is_some_and(|last| one.backend <= last);
        (one.reluctance, one.due, turned, one.backend)
    }
}

/// Chooses; `None` if there is no candidate.
pub fn pick(
    question: Question,
    candidates: impl Iterator<Item = Candidate>,
) -> Option<(BackendId, Reason)> {
    // Those that are chosen among: how reluctant they are, and how many there are.
    let (mut least, mut among) = (u8::MAX, 0_usize);
    let candidates = candidates.inspect(|one| {
        if one.reluctance < least {
            (least, among) = (one.reluctance, 0);
        }
        among += usize::from(one.reluctance == least);
    });
    let chosen = match question.policy {
        Policy::LeastLoad | Policy::CacheAware => {
            candidates.map(|one| question.by_cost(&one)).min().map(|(_, cost)| cost.backend)
        }
        Policy::RoundRobin => {
            candidates.map(|one| question.by_turn(&one)).min().map(|(.., backend)| backend)
        }
    };
    let reason = match question.policy {
        Policy::LeastLoad | Policy::CacheAware | Policy::RoundRobin if among <= 1 => Reason::Only,
        Policy::LeastLoad | Policy::CacheAware => Reason::LeastWork,
        Policy::RoundRobin => Reason::Turn,
    };
    Some((chosen?, reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use rstest::rstest;

    fn check(policy: Policy, request: u64, last: Option<u32>, queues: &[(u32, i64, u32)]) -> u32 {
        let work = Work::of_prompt(100_000);
        let question = Question { policy, work, request, last: last.map(BackendId), fastest: None };
        let candidates = queues.iter().map(|&(id, queued, in_flight)| Candidate {
            backend: BackendId(id),
            reluctance: 0,
            in_hand: Standing { queued, resident: 0, in_flight },
            cached: 0,
            fresh: 0,
            pace: 1,
            weight: 100,
            due: 0,
            name: BackendName(id.into()),
            favoured: false,
            surcharge: 0,
        });
        let forwards = pick(question, candidates.clone());
        // The order of the candidates never matters.
        assert_eq!(forwards, pick(question, candidates.rev()));
        forwards.expect("there is a candidate").0.0
    }

    #[rstest]
    #[case::eager_before_idle(Policy::LeastLoad, &[(0, 2), (1, 1), (2, 1)], 1, Reason::LeastWork)]
    #[case::the_only_eager_one(Policy::LeastLoad, &[(0, 2), (1, 1)], 1, Reason::Only)]
    #[case::in_turn(Policy::RoundRobin, &[(0, 0), (1, 1), (2, 0)], 0, Reason::Turn)]
    fn reluctance_decides_first(
        #[case] policy: Policy,
        #[case] candidates: &[(u32, u8)],
        #[case] chosen: u32,
        #[case] reason: Reason,
    ) {
        let work = Work::of_prompt(100_000);
        let question =
            Question { policy, work, request: 1, last: Some(BackendId(2)), fastest: None };
        let candidates = candidates.iter().map(|&(id, reluctance)| Candidate {
            backend: BackendId(id),
            reluctance,
            in_hand: Standing { queued: i64::from(id) * 1_000, resident: 0, in_flight: 0 },
            cached: 0,
            fresh: 0,
            pace: 1,
            weight: 100,
            due: 0,
            name: BackendName(id.into()),
            favoured: false,
            surcharge: 0,
        });
        assert_eq!(pick(question, candidates.clone()), Some((BackendId(chosen), reason)));
        assert_eq!(pick(question, candidates.rev()), Some((BackendId(chosen), reason)));
    }

    #[test]
    fn nobody_is_chosen_of_nobody() {
        let work = Work::of_prompt(0);
        let question =
            Question { policy: Policy::LeastLoad, work, request: 0, last: None, fastest: None };
        assert_eq!(pick(question, core::iter::empty()), None);
    }

    #[rstest]
    #[case::the_only_one(&[(7, 1_000, 3)], 7)]
    #[case::the_shortest_queue(&[(0, 3_000, 0), (1, 1_000, 0), (2, 2_000, 0)], 1)]
    #[case::a_thousandth_of_a_token_decides(&[(0, 1_001, 0), (1, 1_000, 0)], 1)]
    // Each request in flight costs 110 tokens to a request of 100.
    #[case::requests_against_queue(&[(0, 0, 1), (1, 109_999, 0)], 1)]
    #[case::equal_cost_fewer_in_flight(&[(0, 0, 1), (1, 110_000, 0)], 1)]
    #[case::queue_against_requests(&[(0, 0, 1), (1, 110_001, 0)], 0)]
    fn least_work_wins(#[case] queues: &[(u32, i64, u32)], #[case] expected: u32) {
        assert_eq!(check(Policy::LeastLoad, 5, None, queues), expected);
    }

    #[test]
    fn ties_rotate_and_do_not_move_when_another_joins() {
        let three = [(0, 0, 0), (1, 0, 0), (2, 0, 0)];
        let mut counts = [0; 3];
        for request in 0..3_000 {
            let of_two = check(Policy::LeastLoad, request, None, &three[..2]);
            let of_three = check(Policy::LeastLoad, request, None, &three);
            assert!(of_three == of_two || of_three == 2);
            counts[of_three as usize] += 1;
        }
        assert!(counts.iter().all(|count| (900..1_100).contains(count)), "{counts:?}");
    }

    #[rstest]
    #[case::first(None, 2)]
    #[case::next(Some(2), 3)]
    #[case::one_that_is_not_there(Some(4), 5)]
    #[case::around(Some(5), 2)]
    #[case::load_does_not_matter(Some(3), 5)]
    fn turns_are_taken(#[case] last: Option<u32>, #[case] expected: u32) {
        let queues = [(2, 9, 9), (3, 0, 0), (5, 999_999, 99)];
        assert_eq!(check(Policy::RoundRobin, 0, last, &queues), expected);
    }

    #[rstest]
    #[case::one(Policy::LeastLoad, 1, Reason::Only)]
    #[case::one_turn(Policy::RoundRobin, 1, Reason::Only)]
    #[case::two(Policy::LeastLoad, 2, Reason::LeastWork)]
    #[case::two_turns(Policy::RoundRobin, 2, Reason::Turn)]
    fn the_reason_is_told(#[case] policy: Policy, #[case] count: u32, #[case] reason: Reason) {
        let work = Work::of_prompt(0);
        let question = Question { policy, work, request: 0, last: None, fastest: None };
        let in_hand = Standing::default();
        let all: Vec<_> = (0..count)
            .map(|id| Candidate {
                backend: BackendId(id),
                reluctance: 0,
                in_hand,
                cached: 0,
                fresh: 0,
                pace: 1,
                weight: 100,
                due: 0,
                name: BackendName(id.into()),
                favoured: false,
                surcharge: 0,
            })
            .collect();
        assert_eq!(pick(question, all.into_iter()).map(|(_, reason)| reason), Some(reason));
    }
}
