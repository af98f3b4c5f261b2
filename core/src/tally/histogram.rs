//! Histogram: how many of some times were how long, by fixed bounds.

use crate::time::Duration;

/// Bounds of the time to the first byte of an answer, in microseconds. All are bounds of vLLM
/// 0.33's own `vllm:time_to_first_token_seconds` too, so that one can be laid over the other.
pub(super) const FIRST_BYTE_BOUNDS: [u64; 17] = [
    5_000,
    10_000,
    20_000,
    40_000,
    80_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    7_500_000,
    10_000_000,
    20_000_000,
    40_000_000,
    80_000_000,
    160_000_000,
    640_000_000,
];
/// Bounds of the time of a whole request, in microseconds. From 0.3 s on they are bounds of vLLM
/// 0.33's `vllm:e2e_request_latency_seconds`; below, for requests that generate nothing.
pub(super) const DURATION_BOUNDS: [u64; 17] = [
    10_000,
    40_000,
    100_000,
    300_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    20_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
    240_000_000,
    480_000_000,
    960_000_000,
    1_920_000_000,
];
/// Bounds of the time of a decision, in microseconds: some tens is usual, and what takes a
/// millisecond waited for somebody else or for a processor.
pub const ROUTING_BOUNDS: [u64; 10] = [5, 10, 20, 50, 100, 200, 500, 1_000, 10_000, 100_000];

/// Times, counted by bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<const N: usize> {
    bounds: &'static [u64; N],
    counts: [u64; N],
    /// Those beyond the last bound.
    over: u64,
    sum_micros: u64,
}

impl<const N: usize> Histogram<N> {
    /// Of nothing yet. Bounds are in microseconds, and ascend.
    pub const fn new(bounds: &'static [u64; N]) -> Self {
        Self { bounds, counts: [0; N], over: 0, sum_micros: 0 }
    }

    /// Counts one.
    pub fn add(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        // A time that equals a bound is within it.
        let place = self.bounds.partition_point(|&bound| bound < micros);
        match self.counts.get_mut(place) {
            Some(count) => *count += 1,
            None => self.over += 1,
        }
        self.sum_micros = self.sum_micros.saturating_add(micros);
    }

    /// Counts all that another counted.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count += more);
        self.over += other.over;
        self.sum_micros = self.sum_micros.saturating_add(other.sum_micros);
    }

    /// How many were no longer than each bound, which is in microseconds; `None` is no bound.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        let bounds = self.bounds.iter().map(|&bound| Some(bound)).chain([None]);
        let counts = self.counts.iter().chain([&self.over]);
        let mut sum = 0;
        bounds.zip(counts).map(move |(bound, count)| {
            sum += count;
            (bound, sum)
        })
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.over
    }

    /// All of them together, in microseconds.
    pub const fn sum_micros(&self) -> u64 {
        self.sum_micros
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const BOUNDS: [u64; 3] = [10, 20, 50];

    fn of(micros: &[u64]) -> Histogram<3> {
        let mut histogram = Histogram::new(&BOUNDS);
        micros.iter().for_each(|&micros| histogram.add(Duration::from_micros(micros)));
        histogram
    }

    #[test]
    fn a_bucket_counts_all_up_to_its_bound() {
        let histogram = of(&[0, 10, 11, 50, 51, 70]);
        let buckets: Vec<_> = histogram.buckets().collect();
        assert_eq!(buckets, [(Some(10), 2), (Some(20), 3), (Some(50), 4), (None, 6)]);
        assert_eq!((histogram.count(), histogram.sum_micros()), (6, 192));
    }

    #[test]
    fn two_are_as_one_of_both() {
        let mut one = of(&[1, 60]);
        one.merge(&of(&[15]));
        assert_eq!(one, of(&[1, 15, 60]));
        one.add(Duration::MAX);
        one.merge(&of(&[1]));
        assert_eq!(one.sum_micros(), u64::MAX, "a sum has an end");
    }

    #[test]
    fn bounds_ascend() {
        for bounds in [&FIRST_BYTE_BOUNDS[..], &DURATION_BOUNDS, &ROUTING_BOUNDS] {
            assert!(bounds.is_sorted_by(|a, b| a < b), "{bounds:?}");
        }
    }
}
