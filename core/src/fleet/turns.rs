//! Turns: whose turn it is among the backends of one model, where their weights differ.
//!
//! Owns when each is due, on a clock of turns. Does not know who may be chosen now.

use crate::fleet::BackendId;
use alloc::collections::BTreeMap;

/// How far apart the turns of a backend of weight 1 (a hundredth) are.
const STRIDE: u64 = 1_000_000;

/// One model's turns. As long as all its backends weigh alike, this is who was last.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    last: Option<BackendId>,
    /// When the last turn was due.
    now: u64,
    due: BTreeMap<BackendId, u64>,
}

impl Turns {
    /// Whose turn it was last.
    pub(crate) const fn last(&self) -> Option<BackendId> {
        self.last
    }

    /// When a backend is due that weighs so many hundredths. Of who was not there for a while no
    /// turns are made up for; who is new begins in the middle between two of its turns, so that
    /// the light ones do not all come first.
    pub(crate) fn due(&self, backend: BackendId, weight: u16) -> u64 {
        let known = self.due.get(&backend).copied();
        known.unwrap_or(self.now + stride(weight) / 2).max(self.now)
    }

    /// It was a backend's turn, and all weigh alike.
    pub(crate) fn took(&mut self, backend: BackendId) {
        self.last = Some(backend);
        self.now = 0;
        self.due.clear();
    }

    /// It was the turn of one of these backends, which weigh so many hundredths each.
    pub(crate) fn took_by_weight(
        &mut self,
        taken: BackendId,
        all: impl Iterator<Item = (BackendId, u16)>,
    ) {
        self.last = Some(taken);
        // Who is new waits from now on.
        let before = self.now;
        for (backend, weight) in all {
            let due = self.due.entry(backend).or_insert(before + stride(weight) / 2);
            if backend == taken {
                self.now = before.max(*due);
                *due = self.now + stride(weight);
            }
        }
    }

    /// A backend lists the model no more.
    pub(crate) fn forget(&mut self, backend: BackendId) {
        self.due.remove(&backend);
    }
}

fn stride(weight: u16) -> u64 {
    STRIDE / u64::from(weight.max(1))
}

/// Whether of several weights one is another than the first.
pub(crate) fn differ(mut weights: impl Iterator<Item = u16>) -> bool {
    let Some(first) = weights.next() else { return false };
    weights.any(|weight| weight != first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use rstest::rstest;

    /// The next one of these by their weights, 0 being who is not there.
    fn next(turns: &mut Turns, weights: &[u16]) -> u32 {
        let last = turns.last();
        let there = (0..).zip(weights).filter(|(_, weight)| **weight > 0);
        let due = there.map(|(id, &weight)| {
            let id = BackendId(id);
            (turns.due(id, weight), last.is_some_and(|last| id <= last), id)
        });
        let (.., chosen) = due.min().expect("somebody is there");
        turns.took_by_weight(chosen, (0..).map(BackendId).zip(weights.iter().copied()));
        chosen.0
    }

    #[rstest]
    #[case::twice(&[200, 100], "abaabaaba")]
    #[case::one_of_three(&[500, 100, 100], "aabcaaaaabcaaa")]
    #[case::thirds(&[100, 33], "aabaaabaaabaaabaaab")]
    #[case::alike(&[70, 70, 70], "abcabcabc")]
    #[case::who_has_no_weight_has_the_least(&[1, 100], "bbb")]
    fn turns_go_by_weight(#[case] weights: &[u16], #[case] expected: &str) {
        let mut turns = Turns::default();
        let letter = |id: u32| char::from(b'a' + id as u8);
        let order: String = expected.chars().map(|_| letter(next(&mut turns, weights))).collect();
        assert_eq!(order, expected);
    }

    #[rstest]
    #[case::halves(&[200, 100, 100])]
    #[case::odd(&[317, 20, 100, 1])]
    #[case::many(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10])]
    fn shares_are_those_of_the_weights(#[case] weights: &[u16]) {
        let mut turns = Turns::default();
        let sum: u32 = weights.iter().map(|&weight| u32::from(weight)).sum();
        let mut counts = alloc::vec![0_u32; weights.len()];
        for _ in 0..100 * sum {
            counts[next(&mut turns, weights) as usize] += 1;
        }
        for (count, &weight) in counts.iter().zip(weights) {
            let expected = 100 * u32::from(weight);
            assert!(count.abs_diff(expected) <= 1 + expected / 500, "{counts:?}");
        }
    }

    #[test]
    fn who_was_away_makes_up_for_nothing() {
        let mut turns = Turns::default();
        (0..6).for_each(|_| assert!(next(&mut turns, &[200, 100]) < 2));
        (0..50).for_each(|_| assert_eq!(next(&mut turns, &[200, 0]), 0));
        // Nor are there more than one in three of them, but for the first.
        let back = (0..30).filter(|_| next(&mut turns, &[200, 100]) == 1).count();
        assert!((10..=11).contains(&back), "{back}");
    }

    #[test]
    fn nothing_stays_of_who_is_gone() {
        let mut turns = Turns::default();
        (0..6).for_each(|_| assert!(next(&mut turns, &[200, 100]) < 2));
        turns.forget(BackendId(1));
        assert_eq!(turns.due.len(), 1);
        turns.took(BackendId(0));
        assert!(turns.due.is_empty() && turns.now == 0);
        assert_eq!(turns.last(), Some(BackendId(0)));
    }
}
