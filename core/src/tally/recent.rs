//! Recent: what became of the requests of the last minute, for whoever looks on.
//!
//! Two halves of 30 s take turns: what is told is of the half before and of the one under way.
//! Quantiles are made of counts by powers of the square root of two, so they are as exact as one
//! part in six; exact ones would take a list a request long.

use super::Fault;
use crate::time::{Duration, Instant};

/// Half of what counts as recent.
const HALF: Duration = Duration::from_secs(30);
/// Places of the counts by time: from under 1 ms, two for each doubling, to over 17 minutes.
const PLACES: usize = 42;

/// One half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Half {
    /// Small, since all of it is copied for each backend: only their shares matter.
    first_bytes: [u16; PLACES],
    requests: u32,
    failures: u32,
    /// Of answers that said what was cached.
    prompt: u64,
    predicted: u64,
    reported: u64,
}

const EMPTY: Half = Half {
    first_bytes: [0; PLACES],
    requests: 0,
    failures: 0,
    prompt: 0,
    predicted: 0,
    reported: 0,
};

/// What became of the last requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recent {
    /// The half before, then the one under way.
    halves: [Half; 2],
    /// Which half of all time is under way.
    number: u64,
    /// What failed last.
    last_failure: Option<(&'static str, Instant)>,
}

/// What there is to say of the last minute.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// How long it is that this is said of, in seconds.
    pub seconds: u64,
    /// Requests that came to their end.
    pub requests: u64,
    /// Attempts that failed, and answers that broke.
    pub failures: u64,
    /// How long half of them waited for the first byte of the answer at most, in milliseconds.
    pub first_byte_p50_ms: Option<f64>,
    /// The same of nineteen in twenty.
    pub first_byte_p95_ms: Option<f64>,
    /// What part of their prompts was believed to be cached, of those whose answer said it.
    pub predicted_ratio: Option<f64>,
    /// What part of their prompts was cached, by the answer's word.
    pub reported_ratio: Option<f64>,
}

impl Default for Recent {
    fn default() -> Self {
        Self { halves: [EMPTY; 2], number: 0, last_failure: None }
    }
}

impl Recent {
    /// The first byte of an answer came after so long.
    pub fn first_byte(&mut self, time: Duration, now: Instant) {
        let counts = &mut self.half(now).first_bytes;
        let place = place(time);
        if counts[place] == u16::MAX {
            counts.iter_mut().for_each(|count| *count /= 2);
        }
        counts[place] += 1;
    }

    /// A request came to its end.
    pub fn ended(&mut self, now: Instant) {
        let half = self.half(now);
        half.requests = half.requests.saturating_add(1);
    }

    /// An attempt failed.
    pub fn failed(&mut self, fault: Fault, now: Instant) {
        self.failed_as(fault.as_str(), now);
    }

    /// An answer broke.
    pub fn broke(&mut self, now: Instant) {
        self.failed_as("broken", now);
    }

    fn failed_as(&mut self, word: &'static str, now: Instant) {
        let half = self.half(now);
        half.failures = half.failures.saturating_add(1);
        self.last_failure = Some((word, now));
    }

    /// An answer said how much of its prompt was cached.
    pub fn cached(&mut self, prompt: u64, predicted: u64, reported: u64, now: Instant) {
        let half = self.half(now);
        half.prompt = half.prompt.saturating_add(prompt);
        half.predicted = half.predicted.saturating_add(predicted);
        half.reported = half.reported.saturating_add(reported);
    }

    /// Forgets what is no longer recent.
    pub fn roll(&mut self, now: Instant) {
        self.half(now);
    }

    /// What failed last, in a word, and when.
    pub const fn last_failure(&self) -> Option<(&'static str, Instant)> {
        self.last_failure
    }

    /// What there is to say at this moment, if it is not later than what was last heard.
    pub fn summary(&self, now: Instant) -> Summary {
        Self::summary_of([self], now)
    }

    /// What there is to say of several together.
    pub fn summary_of<'a>(all: impl IntoIterator<Item = &'a Self>, now: Instant) -> Summary {
        let mut first_bytes = [0_u64; PLACES];
        let [mut requests, mut failures] = [0_u64; 2];
        let [mut prompt, mut predicted, mut reported] = [0_u64; 3];
        for half in all.into_iter().flat_map(|recent| &recent.halves) {
            let counts = first_bytes.iter_mut().zip(half.first_bytes);
            counts.for_each(|(count, more)| *count += u64::from(more));
            requests += u64::from(half.requests);
            failures += u64::from(half.failures);
            prompt = prompt.saturating_add(half.prompt);
            predicted = predicted.saturating_add(half.predicted);
            reported = reported.saturating_add(half.reported);
        }
        let ratio = |part: u64| (prompt > 0).then(|| part as f64 / prompt as f64);
        let half_micros = HALF.as_micros() as u64;
        let under_way = now.micros() % half_micros;
        Summary {
            seconds: now.micros().min(half_micros + under_way) / 1_000_000,
            requests,
            failures,
            first_byte_p50_ms: quantile(&first_bytes, 50),
            first_byte_p95_ms: quantile(&first_bytes, 95),
            predicted_ratio: ratio(predicted),
            reported_ratio: ratio(reported),
        }
    }

    fn half(&mut self, now: Instant) -> &mut Half {
        let number = now.micros() / HALF.as_micros() as u64;
        // Who asks with an older `now` counts in the half under way.
        if number > self.number {
            let next = number == self.number + 1;
            self.halves = [if next { self.halves[1] } else { EMPTY }, EMPTY];
            self.number = number;
        }
        &mut self.halves[1]
    }
}

/// How long so many in a hundred waited for a first byte at most, in milliseconds.
fn quantile(counts: &[u64; PLACES], percent: u64) -> Option<f64> {
    let all: u64 = counts.iter().sum();
    let rank = (all * percent).div_ceil(100).max(1);
    let mut below = 0;
    for (place, &count) in counts.iter().enumerate() {
        if below + count >= rank {
            let from = if place == 0 { 0.0 } else { upper_micros(place - 1) as f64 };
            let part = (rank - below) as f64 / count as f64;
            let micros = from + (upper_micros(place) as f64 - from) * part;
            // No more digits than it is worth.
            return Some(f64::from((micros / 100.0) as u32) / 10.0);
        }
        below += count;
    }
    None
}

/// Where a time is counted.
fn place(time: Duration) -> usize {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    (0..PLACES - 1).find(|&place| micros <= upper_micros(place)).unwrap_or(PLACES - 1)
}

/// The longest time of a place.
const fn upper_micros(place: usize) -> u64 {
    // 1.0 and 1.414 ms, doubled.
    let base = if place.is_multiple_of(2) { 1_000 } else { 1_414 };
    base << (place / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1_000)
    }

    #[rstest]
    #[case::nothing(&[], None, None)]
    #[case::one(&[100], Some(100), Some(100))]
    #[case::most_are_short(&[20, 20, 20, 20, 20, 20, 20, 20, 20, 2_000], Some(20), Some(2_000))]
    #[case::one_in_a_hundred_is_long(&[50; 100], Some(50), Some(50))]
    #[case::beyond_all_places(&[100_000_000], Some(1_482_000), Some(1_482_000))]
    #[case::at_once(&[0, 0], Some(0), Some(0))]
    fn quantiles_are_near(
        #[case] millis: &[u64],
        #[case] p50: Option<u64>,
        #[case] p95: Option<u64>,
    ) {
        let mut recent = Recent::default();
        millis.iter().for_each(|&millis| recent.first_byte(Duration::from_millis(millis), at(1)));
        let summary = recent.summary(at(1));
        for (found, expected) in
            [(summary.first_byte_p50_ms, p50), (summary.first_byte_p95_ms, p95)]
        {
            let near = |(found, expected): (f64, u64)| {
                let expected = expected as f64;
                (found - expected).abs() <= expected * 0.42 + 1.0
            };
            assert_eq!(found.is_some(), expected.is_some());
            assert!(found.zip(expected).is_none_or(near), "{found:?} is not {expected:?}");
        }
    }

    #[test]
    fn shares_stay_however_many_there_are() {
        let mut recent = Recent::default();
        for number in 0..400_000 {
            let millis = if number % 4 == 0 { 1_000 } else { 10 };
            recent.first_byte(Duration::from_millis(millis), at(1));
        }
        let summary = recent.summary(at(1));
        assert!(summary.first_byte_p50_ms.is_some_and(|millis| millis < 15.0), "{summary:?}");
        assert!(summary.first_byte_p95_ms.is_some_and(|millis| millis > 700.0), "{summary:?}");
    }

    #[test]
    fn a_minute_later_nothing_is_recent() {
        let mut recent = Recent::default();
        recent.ended(at(31));
        recent.failed(Fault::Lost, at(31));
        recent.cached(100, 50, 25, at(31));
        let counts = |recent: &mut Recent, now| {
            recent.roll(now);
            let summary = recent.summary(now);
            (summary.seconds, summary.requests, summary.failures, summary.reported_ratio)
        };
        assert_eq!(counts(&mut recent, at(59)), (59, 1, 1, Some(0.25)));
        assert_eq!(counts(&mut recent, at(60)), (30, 1, 1, Some(0.25)));
        assert_eq!(counts(&mut recent, at(89)), (59, 1, 1, Some(0.25)));
        assert_eq!(counts(&mut recent, at(90)), (30, 0, 0, None));
        assert_eq!(recent.last_failure(), Some(("lost", at(31))), "that is not forgotten");
        recent.ended(at(91));
        assert_eq!(counts(&mut recent, at(10_000)), (40, 0, 0, None));
    }

    #[test]
    fn several_are_told_as_one() {
        let (mut one, mut other) = (Recent::default(), Recent::default());
        one.first_byte(Duration::from_millis(10), at(1));
        one.failed(Fault::Connect, at(2));
        other.first_byte(Duration::from_millis(10), at(1));
        other.ended(at(1));
        other.broke(at(3));
        let summary = Recent::summary_of([&one, &other], at(4));
        assert_eq!((summary.requests, summary.failures, summary.seconds), (1, 2, 4));
        assert_eq!(one.last_failure(), Some(("connect", at(2))));
        assert_eq!(other.last_failure(), Some(("broken", at(3))));
        assert!(summary.first_byte_p95_ms.is_some());
    }
}
