//! Times of many calls in rounds, and what of them a busy machine spoils least.

use std::time::Duration;

/// The quantiles of a round that are told: the median, the 99th of a hundred, and the greatest.
const QUANTILES: [usize; 3] = [50, 99, 100];

/// What was measured of one kind of call.
#[derive(Default)]
pub struct Samples {
    round: Vec<Duration>,
    /// Of each round.
    quantiles: Vec<[Duration; QUANTILES.len()]>,
}

impl Samples {
    pub fn push(&mut self, time: Duration) {
        self.round.push(time);
    }

    /// Ends a round.
    pub fn close(&mut self) {
        if self.round.is_empty() {
            return;
        }
        self.round.sort_unstable();
        let last = self.round.len() - 1;
        self.quantiles.push(QUANTILES.map(|share| self.round[last * share / 100]));
        self.round.clear();
    }

    /// Median, 99th of a hundred and greatest, in microseconds: each in the round in which it was
    /// least, and in the median of the rounds. Strangers on the machine only ever add to a time,
    /// so the first is nearer to the truth; the distance of the two tells how much they did.
    pub fn micros(&self) -> [(f64, f64); QUANTILES.len()] {
        std::array::from_fn(|which| {
            let mut all: Vec<_> = self.quantiles.iter().map(|round| round[which]).collect();
            all.sort_unstable();
            let micros = |time: Option<&Duration>| {
                time.map_or(f64::NAN, |time| time.as_nanos() as f64 / 1_000.0)
            };
            (micros(all.first()), micros(all.get(all.len() / 2)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Samples;
    use std::time::Duration;

    #[test]
    fn the_least_round_and_the_median_are_told() {
        let mut samples = Samples::default();
        for round in [3, 1, 2] {
            (1..=100).for_each(|at| samples.push(Duration::from_micros(at * round)));
            samples.close();
        }
        assert_eq!(samples.micros(), [(50.0, 100.0), (99.0, 198.0), (100.0, 200.0)]);
    }
}
