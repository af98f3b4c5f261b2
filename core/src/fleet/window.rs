//! Window: what a backend's metrics say of its prefix cache, between two looks at them.
//!
//! Owns the sums of one backend since the last look. For backends whose answers do not say what
//! was cached: their counters do, for all requests together, whoever sent them.

use super::{Backend, PrefixIndex};
use crate::wire::probe::CacheReport;

/// A window of fewer tokens looked up says little.
const QUERIES_MIN: u64 = 20_000;
/// Windows count as so many answers that say how far promises are kept: a window is many requests.
const WEIGHT: usize = 8;

/// Sums since the counters were last heard.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Window {
    /// Counters when they were last heard: looked up and found.
    last: Option<(u64, u64)>,
    /// Tokens of prompts sent there, as estimated.
    prompt: u64,
    /// Those of them believed to be cached.
    promised: u64,
    /// Whether an answer said what was cached: that is better evidence.
    told: bool,
    /// Whether one did in the window before: a short window may be without an answer.
    told_before: bool,
}

impl Window {
    /// A request was sent there.
    pub(crate) const fn sent(&mut self, prompt: u64, promised: u64) {
        self.prompt = self.prompt.saturating_add(prompt);
        self.promised = self.promised.saturating_add(promised);
    }

    /// An answer said what was cached.
    pub(crate) const fn told(&mut self) {
        self.told = true;
    }

    /// Ends a window; says what was promised in it and what was found, in tokens of what was sent
    /// from here. Others may send there as well, and a request is looked up some time after it was
    /// sent, hence shares are compared, not sums.
    fn close(&mut self, queries: u64, hits: u64) -> Option<(u64, u64)> {
        let Self { last, prompt, promised, told, told_before } = *self;
        if let Some((before, _)) = last
            && queries.wrapping_sub(before) < QUERIES_MIN
            && queries >= before
        {
            return None;
        }
        *self = Self { last: Some((queries, hits)), told_before: told, ..Self::default() };
        let (queries_before, hits_before) = last?;
        // Counters that went back are those of another process.
        let queries = queries.checked_sub(queries_before)?;
        let hits = hits.checked_sub(hits_before)?.min(queries);
        if told || told_before || promised == 0 || queries == 0 {
            return None;
        }
        let found = u128::from(prompt) * u128::from(hits) / u128::from(queries);
        Some((promised, u64::try_from(found).unwrap_or(u64::MAX).min(promised)))
    }
}

impl Backend {
    /// Its metrics say how large its cache is, and how well it served.
    pub(super) fn heard_cache(&mut self, report: CacheReport, index: &mut PrefixIndex) {
        if report.kv_tokens.is_some() {
            index.set_capacity(self.id, report.kv_tokens);
        }
        if let Some(on) = report.prefix_caching {
            self.trust.told(on);
        }
        let (Some(queries), Some(hits)) = (report.queries, report.hits) else { return };
        if let Some((promised, found)) = self.window.close(queries, hits) {
            // A twentieth less than promised is as promised: estimates are no better than that.
            let slack = promised / 20;
            for _ in 0..WEIGHT {
                self.trust.learn(promised, found, slack);
            }
            // Once: it is not known which of the promises were kept, and a larger cache than there
            // is costs hits.
            index.feedback(self.id, promised, found, u32::try_from(slack).unwrap_or(u32::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::kept(10_000, 50_000, 25_000, Some((10_000, 10_000)))]
    #[case::half_kept(10_000, 50_000, 12_500, Some((10_000, 5_000)))]
    #[case::nothing_found(10_000, 50_000, 0, Some((10_000, 0)))]
    #[case::more_hits_than_queries(10_000, 50_000, u64::MAX - 7, Some((10_000, 10_000)))]
    #[case::nothing_promised(0, 50_000, 25_000, None)]
    #[case::too_few(10_000, 19_999, 0, None)]
    #[case::enough(10_000, 20_000, 0, Some((10_000, 0)))]
    fn a_window_compares_shares(
        #[case] promised: u64,
        #[case] queries: u64,
        #[case] hits: u64,
        #[case] expected: Option<(u64, u64)>,
    ) {
        let mut window = Window::default();
        assert_eq!(window.close(7, 7), None, "there is nothing to compare with");
        window.sent(20_000, promised);
        assert_eq!(window.close(7 + queries, 7 + hits), expected);
    }

    #[test]
    fn a_short_window_goes_on() {
        let mut window = Window::default();
        assert_eq!(window.close(0, 0), None);
        window.sent(10_000, 8_000);
        assert_eq!(window.close(10_000, 8_000), None);
        window.sent(10_000, 8_000);
        assert_eq!(window.close(20_000, 8_000), Some((16_000, 8_000)));
    }

    #[test]
    fn counters_that_went_back_begin_anew() {
        let mut window = Window::default();
        assert_eq!(window.close(90_000, 50_000), None);
        window.sent(20_000, 10_000);
        assert_eq!(window.close(30_000, 1_000), None);
        window.sent(20_000, 10_000);
        assert_eq!(window.close(60_000, 16_000), Some((10_000, 10_000)));
    }

    #[test]
    fn answers_that_say_it_are_better_evidence() {
        let mut window = Window::default();
        assert_eq!(window.close(0, 0), None);
        window.sent(20_000, 10_000);
        window.told();
        for queries in [50_000, 100_000] {
            assert_eq!(window.close(queries, 0), None);
            window.sent(20_000, 10_000);
        }
        assert_eq!(window.close(150_000, 0), Some((10_000, 0)));
    }
}
