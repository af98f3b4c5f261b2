//! Learned: what first tokens and usage teach of a backend's speed and of a model's tokens.
//!
//! Owns three slow averages and their bounds, all in integers. Does not know where samples come
//! from. Backends are not trusted: whatever they say, a value stays within its bounds.
//!
//! Proxies tell each other every sample. Who was not there takes over what another made of more
//! samples than it knows itself; no two get quite the same average, since each hears them in an
//! order of its own.

use crate::fleet::update::Average;
use crate::time::Duration;

/// More samples are not told apart: none of the first has any weight by then.
const SAMPLES_MAX: u32 = 1 << 20;

/// Counts a sample.
pub(super) fn counted(samples: u32) -> u32 {
    samples.saturating_add(1).min(SAMPLES_MAX)
}

/// Takes over what another made of more samples, or of as many and is greater. So it does not
/// matter in which order, or how often, proxies are heard.
fn merge(samples: &mut u32, value: &mut i64, heard: Average, min: i64, max: i64) {
    let told = heard.samples.min(SAMPLES_MAX);
    let bounded = i64::try_from(heard.value).unwrap_or(max).clamp(min, max);
    if told > 0 && (told, bounded) > (*samples, *value) {
        (*samples, *value) = (told, bounded);
    }
}

fn average(value: i64, samples: u32) -> Average {
    if samples == 0 {
        return Average::default();
    }
    Average { value: u64::try_from(value).unwrap_or(0), samples }
}

/// An average goes so much of the way to each sample: one part in this. Slow, since a sample says
/// as much of the moment as of the backend.
const SLOW: i64 = 100;

/// How fast a backend prefills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    /// Nanoseconds a token; equally, picoseconds a thousandth of one.
    nanos: i64,
    samples: u32,
}

impl Pace {
    /// 8,000 tokens a second: half of an H100's peak with an 8B model, since prefill shares its
    /// steps with decode.
    const START: i64 = 125_000;
    /// Three times as fast.
    const MIN: i64 = Self::START / 3;
    /// A tenth as fast.
    const MAX: i64 = Self::START * 10;
    /// Only prompts with more thousandths of tokens to compute tell how fast a backend is: of
    /// short ones a step's fixed time is the greater part.
    const SAMPLE_MIN: i64 = 2_000_000;

    /// So many thousandths of a token were computed in a while, by a backend that had nothing to
    /// prefill before them.
    pub(crate) fn learn(&mut self, work: i64, time: Duration) {
        if work > Self::SAMPLE_MIN {
            let sample = micros(time).saturating_mul(1_000_000) / work;
            let sample = sample.clamp(Self::MIN, Self::MAX);
            self.nanos += (sample - self.nanos) / SLOW;
            self.samples = counted(self.samples);
        }
    }

    /// For other proxies.
    pub(crate) fn told(self) -> Average {
        average(self.nanos, self.samples)
    }

    /// Another proxy's word.
    pub(crate) fn merge(&mut self, heard: Average) {
        merge(&mut self.samples, &mut self.nanos, heard, Self::MIN, Self::MAX);
    }

    /// The backend may be another one: whoever knows better is believed.
    pub(crate) const fn doubt(&mut self) {
        self.samples = 0;
    }

    /// Nanoseconds a token.
    pub(crate) const fn nanos(self) -> i64 {
        self.nanos
    }

    /// How long `work` thousandths of a token take.
    pub(crate) fn time_for(self, work: i64) -> Duration {
        let micros = i128::from(work) * i128::from(self.nanos) / 1_000_000;
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }

    /// How many thousandths of a token are done in a while.
    pub(crate) fn work_in(self, time: Duration) -> i64 {
        micros(time).saturating_mul(1_000_000) / self.nanos
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self { nanos: Self::START, samples: 0 }
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// How long a model's tokens are, in text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TokenLength {
    /// Thousandths of a byte a token.
    milli: i64,
    samples: u32,
}

impl TokenLength {
    const START: i64 = 4_000;
    const MIN: i64 = 1_500;
    const MAX: i64 = 8_000;

    /// So many bytes of prompt were so many tokens.
    pub(crate) fn learn(&mut self, bytes: u64, tokens: u64) {
        if bytes > 0 && tokens > 0 {
            let sample = u128::from(bytes) * 1_000 / u128::from(tokens);
            let sample = i64::try_from(sample).unwrap_or(Self::MAX).clamp(Self::MIN, Self::MAX);
            self.milli += (sample - self.milli) / SLOW;
            self.samples = counted(self.samples);
        }
    }

    /// For other proxies.
    pub(crate) fn told(self) -> Average {
        average(self.milli, self.samples)
    }

    /// Another proxy's word.
    pub(crate) fn merge(&mut self, heard: Average) {
        merge(&mut self.samples, &mut self.milli, heard, Self::MIN, Self::MAX);
    }

    /// Thousandths of a byte a token.
    pub(crate) const fn milli(self) -> i64 {
        self.milli
    }

    /// So many bytes in thousandths of a token.
    pub(crate) fn work_of(self, bytes: u64) -> i64 {
        let tokens = u128::from(bytes) * 1_000_000 / self.milli.unsigned_abs() as u128;
        i64::try_from(tokens).unwrap_or(i64::MAX)
    }
}

impl Default for TokenLength {
    fn default() -> Self {
        Self { milli: Self::START, samples: 0 }
    }
}

/// How far a backend's cache keeps what the index promises of it: with prefix caching off, or
/// after a loss that nobody told of, not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trust {
    /// In thousandths.
    kept: i64,
    samples: u32,
    /// Whether it said that it looks for none.
    off: bool,
}

impl Trust {
    const FULL: i64 = 1_000;
    /// It goes so much of the way to each sample: one part in this. Fast enough to be wrong for a
    /// few dozen requests only, slow enough to outlast one that was evicted early.
    const FAST: i64 = 16;

    /// So many tokens were promised, and so many found. A shortfall of no more than `slack` is
    /// none: caches hold whole blocks, and never a prompt's last token.
    pub(crate) fn learn(&mut self, promised: u64, found: u64, slack: u64) {
        if promised == 0 || self.off {
            return;
        }
        let found = if found.saturating_add(slack) >= promised { promised } else { found };
        let sample = u128::from(found) * Self::FULL.unsigned_abs() as u128 / u128::from(promised);
        let sample = i64::try_from(sample).unwrap_or(Self::FULL);
        // Rounded away from where it is, so that it gets all the way.
        let way = sample - self.kept;
        self.kept += (way + way.signum() * (Self::FAST - 1)) / Self::FAST;
        self.samples = counted(self.samples);
    }

    /// For other proxies. What it said itself it says to each.
    pub(crate) fn told_on(self) -> Average {
        average(self.kept, if self.off { 0 } else { self.samples })
    }

    /// Another proxy's word.
    pub(crate) fn merge(&mut self, heard: Average) {
        if !self.off {
            merge(&mut self.samples, &mut self.kept, heard, 0, Self::FULL);
        }
    }

    /// The backend may be another one: whoever knows better is believed.
    pub(crate) const fn doubt(&mut self) {
        self.samples = 0;
    }

    /// What part of a promise is kept, in thousandths.
    pub(crate) const fn kept(self) -> i64 {
        self.kept
    }

    /// It says itself whether it looks for prefixes. Without, no promise is worth anything, and
    /// nothing is found that would say so.
    pub(crate) const fn told(&mut self, on: bool) {
        if on == self.off {
            *self = Self { kept: if on { Self::FULL } else { 0 }, samples: 0, off: !on };
        }
    }

    /// What a promise of so many thousandths of a token is worth.
    pub(crate) const fn discounted(self, work: i64) -> i64 {
        if self.kept == Self::FULL {
            return work;
        }
        work / Self::FULL * self.kept + work % Self::FULL * self.kept / Self::FULL
    }
}

impl Default for Trust {
    fn default() -> Self {
        Self { kept: Self::FULL, samples: 0, off: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::as_believed(8_000_000, 1_000, 125_000)]
    #[case::half_as_fast(8_000_000, 2_000, 126_250)]
    #[case::twice_as_fast(8_000_000, 500, 124_375)]
    #[case::no_faster_than_thrice(8_000_000, 0, 124_167)]
    #[case::no_slower_than_a_tenth(8_000_000, u64::MAX, 136_250)]
    #[case::too_short_to_tell(2_000_000, 2_000, 125_000)]
    #[case::nothing(0, 1_000, 125_000)]
    #[case::absurd(i64::MAX, u64::MAX, 124_167)]
    fn one_sample_moves_the_pace_a_little(
        #[case] work: i64,
        #[case] millis: u64,
        #[case] expected: i64,
    ) {
        let mut pace = Pace::default();
        pace.learn(work, Duration::from_millis(millis));
        assert_eq!(pace.nanos(), expected);
    }

    #[test]
    fn many_samples_move_the_pace_to_its_bounds() {
        for (millis, bound) in [(0, Pace::MIN), (1_000_000, Pace::MAX)] {
            let mut pace = Pace::default();
            (0..10_000).for_each(|_| pace.learn(8_000_000, Duration::from_millis(millis)));
            assert!((pace.nanos() - bound).abs() < SLOW, "{pace:?}");
            assert!((Pace::MIN..=Pace::MAX).contains(&pace.nanos()));
        }
    }

    #[test]
    fn work_and_time_are_two_words_for_one_thing() {
        let pace = Pace::default();
        assert_eq!(pace.time_for(8_000_000), Duration::from_secs(1));
        assert_eq!(pace.work_in(Duration::from_secs(1)), 8_000_000);
        assert_eq!(pace.time_for(-1), Duration::from_micros(0));
        assert_eq!(pace.time_for(i64::MAX), Duration::from_micros(i64::MAX as u64 / 8));
        assert_eq!(pace.work_in(Duration::from_secs(u64::MAX)), i64::MAX / 125_000);
    }

    #[rstest]
    #[case::as_believed(4_000, 1_000, 4_000)]
    #[case::longer(6_000, 1_000, 4_020)]
    #[case::shorter(2_000, 1_000, 3_980)]
    #[case::no_longer_than_eight(u64::MAX, 1, 4_040)]
    #[case::no_shorter_than_one_and_a_half(1, u64::MAX, 3_975)]
    #[case::no_tokens(4_000, 0, 4_000)]
    #[case::no_text(0, 1_000, 4_000)]
    fn one_sample_moves_the_length_a_little(
        #[case] bytes: u64,
        #[case] tokens: u64,
        #[case] expected: i64,
    ) {
        let mut length = TokenLength::default();
        length.learn(bytes, tokens);
        assert_eq!(length.milli, expected);
    }

    #[rstest]
    #[case::nothing(0, 0)]
    #[case::four_bytes(4, 1_000)]
    #[case::thousandths(1, 250)]
    #[case::absurd(u64::MAX, i64::MAX)]
    fn text_is_work(#[case] bytes: u64, #[case] expected: i64) {
        assert_eq!(TokenLength::default().work_of(bytes), expected);
    }

    #[rstest]
    #[case::all(1_280, 1_280, 1_000)]
    #[case::nearly_all(1_280, 1_152, 1_000)]
    #[case::more_than_all(1_280, u64::MAX, 1_000)]
    #[case::half(1_280, 640, 968)]
    #[case::none(1_280, 0, 937)]
    #[case::nothing_promised(0, 0, 1_000)]
    #[case::absurd(u64::MAX, 0, 937)]
    fn promises_that_are_not_kept_count_less(
        #[case] promised: u64,
        #[case] found: u64,
        #[case] expected: i64,
    ) {
        let mut trust = Trust::default();
        trust.learn(promised, found, 128);
        assert_eq!(trust.discounted(1_000), expected);
        assert_eq!(
            trust.discounted(i64::MAX),
            i64::MAX / 1_000 * expected + 807 * expected / 1_000
        );
    }

    #[test]
    fn who_looks_for_nothing_is_taken_at_its_word() {
        let mut trust = Trust::default();
        trust.learn(1_280, 0, 128);
        let before = trust;
        trust.told(true);
        assert_eq!(trust, before, "that was believed");
        trust.told(false);
        trust.learn(1_280, 1_280, 128);
        assert_eq!(trust.discounted(i64::MAX), 0);
        trust.told(true);
        assert_eq!(trust, Trust::default());
    }

    #[test]
    fn trust_is_lost_and_won_back_in_a_few_dozen_answers() {
        let mut trust = Trust::default();
        (0..50).for_each(|_| trust.learn(1_280, 0, 128));
        assert!(trust.discounted(1_000) < 50, "{trust:?}");
        (0..400).for_each(|_| trust.learn(1_280, 0, 128));
        assert_eq!(trust.discounted(i64::MAX), 0);
        (0..50).for_each(|_| trust.learn(1_280, 1_280, 128));
        assert!(trust.discounted(1_000) > 950, "{trust:?}");
        (0..400).for_each(|_| trust.learn(1_280, 1_280, 128));
        assert_eq!(trust, Trust { samples: 900, ..Trust::default() });
    }

    #[rstest]
    #[case::of_more_samples(10, 200_000, (10, 200_000))]
    #[case::of_fewer(2, 200_000, (3, 122_526))]
    #[case::of_as_many_and_greater(3, 130_000, (3, 130_000))]
    #[case::of_as_many_and_smaller(3, 100_000, (3, 122_526))]
    #[case::of_none(0, 200_000, (3, 122_526))]
    #[case::out_of_bounds(10, 0, (10, 41_666))]
    #[case::absurd(u32::MAX, u64::MAX, (1 << 20, 1_250_000))]
    fn who_knows_more_is_believed(
        #[case] samples: u32,
        #[case] value: u64,
        #[case] expected: (u32, i64),
    ) {
        let mut pace = Pace::default();
        (0..3).for_each(|_| pace.learn(8_000_000, Duration::from_millis(1)));
        let (before, heard) = (pace.told(), Average { value, samples });
        for _ in 0..2 {
            pace.merge(heard);
            assert_eq!((pace.samples, pace.nanos), expected);
        }
        // The other way round it comes to the same, within bounds.
        let mut other = Pace::default();
        other.merge(heard);
        other.merge(before);
        assert_eq!(other, pace);
        pace.learn(8_000_000, Duration::from_millis(1_000));
        assert!(pace.samples <= SAMPLES_MAX);
    }

    #[test]
    fn nobody_is_believed_against_what_a_backend_says_of_itself() {
        let mut trust = Trust::default();
        trust.merge(Average { value: 300, samples: 5 });
        assert_eq!((trust.kept(), trust.told_on().samples), (300, 5));
        trust.told(false);
        assert_eq!(trust.told_on(), Average::default());
        trust.merge(Average { value: 700, samples: 900 });
        assert_eq!(trust.kept(), 0);
        trust.told(true);
        trust.merge(Average { value: u64::MAX, samples: 900 });
        assert_eq!(trust.kept(), Trust::FULL);
        trust.doubt();
        trust.merge(Average { value: 10, samples: 1 });
        assert_eq!(trust.kept(), 10);
    }
}
