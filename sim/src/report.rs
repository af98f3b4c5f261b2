//! What came of a run, in numbers: for people, for programs and as pictures.
//!
//! Knows outcomes, not how they came about.

mod chart;

pub use chart::{loads, waits};

use crate::world::{Fate, Outcome, Record};
use serde::Serialize;
use std::fmt::Write;
use vllm_proxy_core::time::Duration;

/// Mean and quantiles, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// The mean.
    pub mean: u64,
    /// The median.
    pub p50: u64,
    /// Nine of ten are no longer.
    pub p90: u64,
    /// 99 of 100 are no longer.
    pub p99: u64,
}

impl Spread {
    /// Of these, in any order.
    pub fn of(mut micros: Vec<u64>) -> Self {
        if micros.is_empty() {
            return Self::default();
        }
        micros.sort_unstable();
        let count = micros.len();
        // The least value that is no less than so many of all.
        let quantile = |percent: usize| micros[(count * percent).div_ceil(100).max(1) - 1];
        let sum: u128 = micros.iter().map(|&one| u128::from(one)).sum();
        let mean = u64::try_from(sum / count as u128).unwrap_or(u64::MAX);
        Self { mean, p50: quantile(50), p90: quantile(90), p99: quantile(99) }
    }
}

/// What caches could have found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// One cache as large as all together: no policy finds more for long.
    pub pool: f64,
    /// One cache without limit.
    pub inf: f64,
}

/// A run in a line.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The policy.
    pub policy: String,
    /// Requests that came.
    pub requests: usize,
    /// Those answered to the end.
    pub done: usize,
    /// Those whose client left.
    pub gone: usize,
    /// Those whose answer was cut off, or that got none.
    pub lost: usize,
    /// How often a request was sent to another server after the first.
    pub retries: usize,
    /// Time to the first token.
    pub ttft_us: Spread,
    /// Time to the last token.
    pub e2e_us: Spread,
    /// Time from token to token after the first.
    pub tpot_us: Spread,
    /// The part of all prompt tokens that was found in caches.
    pub hit: f64,
    /// The same, as part of what one cache of all the memory would find.
    pub hit_of_pool: f64,
    /// The same, as part of what a cache without limit would find.
    pub hit_of_inf: f64,
    /// How long the busiest server computed, in means of all.
    pub busy_max_of_mean: f64,
    /// Requests thrown out of a batch for lack of memory.
    pub preemptions: u64,
    /// From the first request to the end of the last, in seconds.
    pub seconds: f64,
}

impl Summary {
    /// Of one run.
    pub fn of(policy: &str, outcome: &Outcome, bounds: Bounds) -> Self {
        let records = &outcome.records;
        let count = |fates: &[Fate]| records.iter().filter(|one| fates.contains(&one.fate)).count();
        let done = || records.iter().filter(|one| one.fate == Fate::Done);
        let cached: u64 = done().map(|one| u64::from(one.usage.cached)).sum();
        let prompt: u64 = done().map(|one| u64::from(one.usage.prompt)).sum();
        let hit = ratio(cached as f64, prompt as f64);
        let busy: Vec<_> = outcome.busy.iter().map(Duration::as_secs_f64).collect();
        let mean = busy.iter().sum::<f64>() / busy.len().max(1) as f64;
        Self {
            policy: policy.to_owned(),
            requests: records.len(),
            done: count(&[Fate::Done]),
            gone: count(&[Fate::Gone]),
            lost: count(&[Fate::Broken, Fate::Refused]),
            retries: records.iter().map(|one| one.attempts.saturating_sub(1) as usize).sum(),
            ttft_us: Spread::of(records.iter().filter_map(ttft).collect()),
            e2e_us: Spread::of(done().filter_map(e2e).collect()),
            tpot_us: Spread::of(done().filter_map(tpot).collect()),
            hit,
            hit_of_pool: ratio(hit, bounds.pool),
            hit_of_inf: ratio(hit, bounds.inf),
            busy_max_of_mean: ratio(busy.iter().copied().fold(0.0, f64::max), mean),
            preemptions: outcome.preemptions.iter().sum(),
            seconds: outcome.end.micros() as f64 / 1e6,
        }
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Microseconds until the first token.
pub(crate) fn ttft(record: &Record) -> Option<u64> {
    record.first.map(|first| first.since(record.at).as_micros() as u64)
}

fn e2e(record: &Record) -> Option<u64> {
    record.end.map(|end| end.since(record.at).as_micros() as u64)
}

fn tpot(record: &Record) -> Option<u64> {
    let pauses = u64::from(record.usage.completion).checked_sub(1).filter(|pauses| *pauses > 0)?;
    Some(record.end?.since(record.first?).as_micros() as u64 / pauses)
}

/// The runs of one workload, a line each.
pub fn table(summaries: &[Summary]) -> String {
    const HEAD: [&str; 15] = [
        "policy",
        "TTFT mean",
        "p50",
        "p90",
        "p99",
        "e2e mean",
        "p50",
        "p90",
        "p99",
        "TPOT p90",
        "hit",
        "of pool",
        "of inf",
        "busy",
        "lost",
    ];
    let mut rows = vec![HEAD.map(str::to_owned)];
    for one in summaries {
        let (ttft, e2e) = (one.ttft_us, one.e2e_us);
        rows.push([
            one.policy.clone(),
            seconds(ttft.mean),
            seconds(ttft.p50),
            seconds(ttft.p90),
            seconds(ttft.p99),
            seconds(e2e.mean),
            seconds(e2e.p50),
            seconds(e2e.p90),
            seconds(e2e.p99),
            format!("{:.1} ms", one.tpot_us.p90 as f64 / 1e3),
            format!("{:.3}", one.hit),
            format!("{:.0} %", one.hit_of_pool * 100.0),
            format!("{:.0} %", one.hit_of_inf * 100.0),
            format!("{:.2}", one.busy_max_of_mean),
            one.lost.to_string(),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<_> = (0..HEAD.len()).map(width).collect();
    let mut table = String::new();
    for row in &rows {
        let name = &row[0];
        let _ = write!(table, "{name:<width$}", width = widths[0]);
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            let _ = write!(table, "  {cell:>width$}");
        }
        table.push('\n');
    }
    table
}

/// Three digits, as people write seconds.
fn seconds(micros: u64) -> String {
    let seconds = micros as f64 / 1e6;
    let digits = match micros {
        0..10_000_000 => 3,
        10_000_000..100_000_000 => 2,
        _ => 0,
    };
    format!("{seconds:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vllm::Usage;
    use rstest::rstest;
    use vllm_proxy_core::time::Instant;

    #[rstest]
    #[case::none(&[], [0, 0, 0, 0])]
    #[case::one(&[7], [7, 7, 7, 7])]
    #[case::two(&[9, 1], [5, 1, 9, 9])]
    fn quantiles(#[case] micros: &[u64], #[case] expected: [u64; 4]) {
        let [mean, p50, p90, p99] = expected;
        assert_eq!(Spread::of(micros.to_vec()), Spread { mean, p50, p90, p99 });
    }

    #[test]
    fn quantiles_of_many() {
        let spread = Spread::of((1..=1_000).rev().collect());
        assert_eq!(spread, Spread { mean: 500, p50: 500, p90: 900, p99: 990 });
    }

    fn record(fate: Fate, first: Option<u64>, end: u64, cached: u32) -> Record {
        Record {
            at: Instant::from_millis(100),
            first: first.map(Instant::from_millis),
            end: Some(Instant::from_millis(end)),
            fate,
            usage: Usage { prompt: 100, cached, completion: 11 },
            server: Some(0),
            attempts: 2,
        }
    }

    #[test]
    fn a_summary_counts_and_divides() {
        let outcome = Outcome {
            records: vec![
                record(Fate::Done, Some(200), 400, 40),
                record(Fate::Done, Some(300), 700, 20),
                record(Fate::Gone, None, 700, 0),
                record(Fate::Broken, Some(150), 700, 0),
                Record { attempts: 0, ..record(Fate::Refused, None, 700, 0) },
            ],
            busy: vec![Duration::from_secs(3), Duration::from_secs(1)],
            ..Outcome::default()
        };
        let one = Summary::of("x", &outcome, Bounds { pool: 0.6, inf: 0.0 });
        assert_eq!((one.requests, one.done, one.gone, one.lost, one.retries), (5, 2, 1, 2, 4));
        assert_eq!((one.ttft_us.mean, one.ttft_us.p99), (116_666, 200_000));
        assert_eq!((one.e2e_us.p50, one.e2e_us.p99), (300_000, 600_000));
        assert_eq!((one.tpot_us.p50, one.tpot_us.p99), (20_000, 40_000));
        assert_eq!((one.hit, one.hit_of_pool, one.hit_of_inf), (0.3, 0.5, 0.0));
        assert_eq!(one.busy_max_of_mean, 1.5);
        let table = table(&[one]);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].len(), lines[1].len());
        assert!(lines[1].starts_with("x       ") && lines[1].ends_with("1.50     2"), "{table}");
        assert!(lines[1].contains("40.0 ms  0.300     50 %     0 %"), "{table}");
    }

    #[rstest]
    #[case(0, "0.000")]
    #[case(1_234_567, "1.235")]
    #[case(12_345_678, "12.35")]
    #[case(123_456_789, "123")]
    fn seconds_have_three_digits(#[case] micros: u64, #[case] text: &str) {
        assert_eq!(seconds(micros), text);
    }
}
