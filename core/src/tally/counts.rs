//! Counts: what became of the requests that one backend was sent, since the process began.
//!
//! Does not know what is in hand now: that is [`Load`](crate::fleet::Load)'s.

use super::histogram::{DURATION_BOUNDS, FIRST_BYTE_BOUNDS};
use super::{Ending, Fault, Histogram};
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Models of one backend that are counted apart. A vLLM serves one or two, and adapters.
const ROWS_MAX: usize = 64;
/// The same of a fleet, so that a page of metrics stays one that Prometheus takes.
const ROWS_OF_FLEET_MAX: usize = 8_192;
/// Length of a model's name that is counted apart, in bytes: it stands in each of its series.
const NAME_BYTES_MAX: usize = 256;
/// What is not counted apart is counted as.
const OTHER: &str = "other";

/// How many models are counted apart for each of so many backends.
pub fn rows_max(backends: usize) -> usize {
    ROWS_OF_FLEET_MAX.checked_div(backends).map_or(ROWS_MAX, |share| share.min(ROWS_MAX))
}

/// Tokens of prompts whose answers said what was cached, so that parts of them can be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// All of them.
    pub prompt: u64,
    /// Those believed to be cached when the requests were sent.
    pub predicted: u64,
    /// Those that were, by the answers' word.
    pub reported: u64,
}

/// Requests by how they ended.
type Endings = [u64; Ending::ALL.len()];

/// Counts of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Of models that are counted apart.
    rows: Vec<(Arc<str>, Endings)>,
    /// Of all other requests.
    others: Endings,
    /// Attempts that failed before anything reached a client, by why.
    pub faults: [u64; Fault::ALL.len()],
    /// Questions to several backends that this one left unanswered.
    pub unheard: u64,
    /// From the whole request to the first byte of the answer's body.
    pub first_byte: Histogram<{ FIRST_BYTE_BOUNDS.len() }>,
    /// From the whole request to its end, websockets apart.
    pub duration: Histogram<{ DURATION_BOUNDS.len() }>,
    /// Tokens of all prompts sent there, as estimated.
    pub sent_tokens: u64,
    /// Those of them believed to be cached.
    pub sent_predicted_tokens: u64,
    /// What answers said of the cache.
    pub tokens: Tokens,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            others: Endings::default(),
            faults: Default::default(),
            unheard: 0,
            first_byte: Histogram::new(&FIRST_BYTE_BOUNDS),
            duration: Histogram::new(&DURATION_BOUNDS),
            sent_tokens: 0,
            sent_predicted_tokens: 0,
            tokens: Tokens::default(),
        }
    }
}

impl Counts {
    /// A request for a model ended, `None` for one that nobody lists; of so many models at most it
    /// is counted whose it was.
    pub fn ended(&mut self, model: Option<&Arc<str>>, ending: Ending, rows_max: usize) {
        self.row(model, rows_max)[ending as usize] += 1;
    }

    /// A prompt of so many tokens, as estimated, was sent there, so many of which are believed to
    /// be cached.
    pub const fn sent(&mut self, prompt: u64, predicted: u64) {
        self.sent_tokens = self.sent_tokens.saturating_add(prompt);
        self.sent_predicted_tokens = self.sent_predicted_tokens.saturating_add(predicted);
    }

    fn row(&mut self, model: Option<&Arc<str>>, rows_max: usize) -> &mut Endings {
        let apart = |name: &&Arc<str>| name.len() <= NAME_BYTES_MAX && ***name != *OTHER;
        let Some(model) = model.filter(apart) else { return &mut self.others };
        let same = |name: &Arc<str>| Arc::ptr_eq(name, model) || name == model;
        let place = match self.rows.iter().position(|(name, _)| same(name)) {
            Some(place) => place,
            None if self.rows.len() < rows_max => {
                self.rows.push((Arc::clone(model), Endings::default()));
                self.rows.len() - 1
            }
            None => return &mut self.others,
        };
        &mut self.rows[place].1
    }

    /// By model, how requests ended; what is not counted apart is called `other`, and comes last.
    pub fn by_model(&self) -> impl Iterator<Item = (&str, &Endings)> {
        let rows = self.rows.iter().map(|(name, endings)| (&**name, endings));
        rows.chain([(OTHER, &self.others)])
    }

    /// How requests ended, whatever their model.
    pub fn endings(&self) -> Endings {
        let mut sum = Endings::default();
        for (_, endings) in self.by_model() {
            add(&mut sum, endings);
        }
        sum
    }

    /// Attempts that failed, stale connections apart.
    pub fn failures(&self) -> u64 {
        let failures = Fault::ALL.into_iter().filter(|fault| fault.is_failure());
        failures.map(|fault| self.faults[fault as usize]).sum()
    }

    /// Counts all that another counted.
    pub fn merge(&mut self, other: &Self) {
        for (model, endings) in &other.rows {
            add(self.row(Some(model), ROWS_MAX), endings);
        }
        add(&mut self.others, &other.others);
        self.faults.iter_mut().zip(other.faults).for_each(|(count, more)| *count += more);
        self.unheard += other.unheard;
        self.first_byte.merge(&other.first_byte);
        self.duration.merge(&other.duration);
        self.sent_tokens = self.sent_tokens.saturating_add(other.sent_tokens);
        self.sent_predicted_tokens =
            self.sent_predicted_tokens.saturating_add(other.sent_predicted_tokens);
        self.tokens.merge(other.tokens);
    }
}

impl Tokens {
    /// Adds what another answer, or others, said.
    pub const fn merge(&mut self, other: Self) {
        self.prompt = self.prompt.saturating_add(other.prompt);
        self.predicted = self.predicted.saturating_add(other.predicted);
        self.reported = self.reported.saturating_add(other.reported);
    }
}

fn add(sum: &mut Endings, more: &Endings) {
    sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::{String, ToString};
    use rstest::rstest;

    /// By model, how many there were of each ending that there was.
    fn told(counts: &Counts) -> Vec<(String, Vec<(&'static str, u64)>)> {
        let endings = |endings: &Endings| {
            let counts = Ending::ALL.into_iter().map(|one| (one.as_str(), endings[one as usize]));
            counts.filter(|(_, count)| *count > 0).collect()
        };
        counts.by_model().map(|(name, all)| (name.to_string(), endings(all))).collect()
    }

    fn ended(counts: &mut Counts, model: &str, ending: Ending, rows_max: usize) {
        counts.ended(Some(&Arc::from(model)), ending, rows_max);
    }

    #[test]
    fn models_are_counted_apart_up_to_a_number_of_them() {
        let mut counts = Counts::default();
        for (model, rows_max) in [("a", 2), ("b", 2), ("c", 2), ("a", 0), ("d", 1)] {
            ended(&mut counts, model, Ending::Succeeded, rows_max);
        }
        ended(&mut counts, "b", Ending::Broken, 2);
        counts.ended(None, Ending::ClientError, 9);
        let expected = [
            ("a".to_string(), Vec::from([("2xx", 2)])),
            ("b".to_string(), Vec::from([("2xx", 1), ("broken", 1)])),
            ("other".to_string(), Vec::from([("2xx", 2), ("4xx", 1)])),
        ];
        assert_eq!(told(&counts), expected);
        let all: Vec<_> = counts.endings().into_iter().filter(|count| *count > 0).collect();
        assert_eq!(all, [5, 1, 1]);
    }

    #[test]
    fn a_name_that_would_be_another_row_s_or_is_long_has_none() {
        let mut counts = Counts::default();
        ended(&mut counts, OTHER, Ending::Succeeded, 9);
        ended(&mut counts, &"x".repeat(NAME_BYTES_MAX + 1), Ending::Succeeded, 9);
        assert_eq!(told(&counts), [(OTHER.to_string(), Vec::from([("2xx", 2)]))]);
    }

    #[rstest]
    #[case::none(0, 64)]
    #[case::one(1, 64)]
    #[case::many(128, 64)]
    #[case::more(1_000, 8)]
    #[case::most(4_096, 2)]
    fn a_large_fleet_tells_less_of_each(#[case] backends: usize, #[case] expected: usize) {
        assert_eq!(rows_max(backends), expected);
    }

    #[test]
    fn two_are_as_one_of_both() {
        let part = |model: &str, salt: u64| {
            let mut counts = Counts::default();
            ended(&mut counts, model, Ending::Succeeded, 9);
            ended(&mut counts, "both", Ending::TimedOut, 9);
            counts.faults[Fault::Stale as usize] = salt;
            counts.faults[Fault::Lost as usize] = salt;
            counts.unheard = salt;
            counts.sent_tokens = salt;
            counts.sent_predicted_tokens = salt;
            counts.tokens = Tokens { prompt: salt, predicted: salt, reported: salt };
            counts.first_byte.add(core::time::Duration::from_millis(salt));
            counts.duration.add(core::time::Duration::from_millis(salt));
            counts
        };
        let mut sum = part("a", 1);
        sum.merge(&part("b", 10));
        assert_eq!(sum.failures(), 11, "those of stale connections are none");
        let named = told(&sum);
        let names: Vec<_> = named.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "both", "b", "other"]);
        assert_eq!(named[1].1, [("timeout", 2)]);
        assert_eq!((sum.unheard, sum.sent_tokens, sum.sent_predicted_tokens), (11, 11, 11));
        assert_eq!(sum.tokens, Tokens { prompt: 11, predicted: 11, reported: 11 });
        assert_eq!((sum.first_byte.count(), sum.duration.sum_micros()), (2, 11_000));
    }

    #[test]
    fn rows_of_others_have_an_end_too() {
        let mut sum = Counts::default();
        for part in 0..3 {
            let mut counts = Counts::default();
            (0..ROWS_MAX).for_each(|at| {
                ended(&mut counts, &format!("{part}-{at}"), Ending::Succeeded, ROWS_MAX);
            });
            sum.merge(&counts);
        }
        assert_eq!(sum.by_model().count(), ROWS_MAX + 1);
        assert_eq!(sum.endings()[Ending::Succeeded as usize], 3 * ROWS_MAX as u64);
    }
}
