//! What clients ask for and when: recorded traces, and how fast they are replayed.
//!
//! Knows neither servers nor policies. Traffic that is made up comes from [`generate`].

mod azure;
mod generate;
mod text;

pub use generate::{Kind, generate};

use crate::vllm::Job;
use serde::Deserialize;
use std::fmt;
use std::sync::Arc;
use vllm_proxy_core::time::{Duration, Instant};

/// Tokens of one block of the traces that Mooncake published.
pub const MOONCAKE_BLOCK: u32 = 512;
/// How coarse some of these traces tell the time.
const MOONCAKE_BUCKET: Duration = Duration::from_secs(3);
/// Longer prompts and answers than any model takes: a mistake in the file.
const TOKENS_MAX: u32 = 1 << 24;

/// One request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// When its client sends it.
    pub at: Instant,
    /// What each block of the prompt holds, together with all before it.
    pub blocks: Arc<[u64]>,
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens of the answer.
    pub output: u32,
    /// What the blocks hold that the answer fills, the first of them the one that the prompt began;
    /// empty: that is not known.
    pub answer: Arc<[u64]>,
}

impl Request {
    /// The same for a server, under this number.
    pub fn job(&self, id: u64) -> Job {
        Job {
            id,
            blocks: self.blocks.clone(),
            prompt: self.prompt,
            output: self.output,
            answer: self.answer.clone(),
        }
    }
}

/// Requests in the order of their arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Tokens of one block of a prompt.
    pub block_tokens: u32,
    /// The requests.
    pub requests: Vec<Request>,
}

/// Why a file is no trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceError {
    /// The line, counted from 1; 0: all of it.
    pub line: usize,
    /// What was expected.
    pub expected: &'static str,
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "expected {}", self.expected),
            line => write!(f, "line {line}: expected {}", self.expected),
        }
    }
}

/// What is done with timestamps that are coarse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bursts {
    /// Requests of one moment are spread evenly until the next, at most over 3 s.
    Spread,
    /// They come at once.
    Keep,
}

impl Workload {
    /// Reads a trace of any kind that is known. `block_tokens` is what one of `hash_ids` stands
    /// for.
    pub fn read(text: &str, bursts: Bursts, block_tokens: u32) -> Result<Self, TraceError> {
        if text.starts_with(azure::HEADER) {
            Self::azure(text)
        } else {
            Self::mooncake(text, bursts, block_tokens)
        }
    }

    /// Reads a trace as Mooncake published them (kvcache-ai/Mooncake, FAST'25): JSON lines with
    /// `timestamp` in milliseconds, `input_length`, `output_length` and `hash_ids`, one for each
    /// `block_tokens`. `output_hash_ids` are ours: the blocks that the answer fills.
    pub fn mooncake(text: &str, bursts: Bursts, block_tokens: u32) -> Result<Self, TraceError> {
        #[derive(Deserialize)]
        struct Line {
            timestamp: u64,
            input_length: u32,
            output_length: u32,
            hash_ids: Vec<u64>,
            #[serde(default)]
            output_hash_ids: Vec<u64>,
        }
        const SHAPE: &str = "{\"timestamp\": milliseconds, \"input_length\": tokens, \
                             \"output_length\": tokens, \"hash_ids\": [a number per block]}";
        let mut requests = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            if line.trim().is_empty() {
                continue;
            }
            let wrong = |expected| TraceError { line: number, expected };
            let line: Line = serde_json::from_str(line).map_err(|_| wrong(SHAPE))?;
            let tokens = [line.input_length, line.output_length];
            if tokens[0] == 0 || tokens.iter().any(|&tokens| tokens > TOKENS_MAX) {
                return Err(wrong("a prompt of 1 to 16777216 tokens"));
            }
            if line.hash_ids.len() != line.input_length.div_ceil(block_tokens) as usize {
                return Err(wrong(
                    "one hash_id for each block of input_length (512 tokens, or as \
                                  many as --block-tokens says)",
                ));
            }
            let whole = (tokens[0] + tokens[1]) / block_tokens - tokens[0] / block_tokens;
            if line.output_hash_ids.len() > whole as usize {
                return Err(wrong("no more output_hash_ids than blocks that the answer fills"));
            }
            requests.push(Request {
                at: Instant::from_millis(line.timestamp),
                blocks: line.hash_ids.into(),
                prompt: line.input_length,
                output: line.output_length.max(1),
                answer: line.output_hash_ids.into(),
            });
        }
        let mut workload = Self::sorted(block_tokens, requests)?;
        if bursts == Bursts::Spread && workload.is_coarse() {
            workload.spread();
        }
        Ok(workload)
    }

    fn sorted(block_tokens: u32, mut requests: Vec<Request>) -> Result<Self, TraceError> {
        if requests.is_empty() {
            return Err(TraceError { line: 0, expected: "at least one request" });
        }
        requests.sort_by_key(|request| request.at);
        Ok(Self { block_tokens, requests })
    }

    /// Replays it so that so many requests come in a second on average.
    #[must_use]
    pub fn at_rate(mut self, per_second: f64) -> Self {
        let (Some(first), Some(last)) = (self.requests.first(), self.requests.last()) else {
            return self;
        };
        let (start, span) = (first.at, last.at.since(first.at).as_micros());
        let count = self.requests.len() as f64;
        // The last one comes an average pause before the end of the whole.
        let wanted = ((count - 1.0) / per_second * 1e6).round() as u128;
        for request in &mut self.requests {
            let after = request.at.since(start).as_micros() * wanted / span.max(1);
            request.at = Instant::from_micros(u64::try_from(after).unwrap_or(u64::MAX));
        }
        self
    }

    /// All that comes within each such time comes at its beginning.
    #[must_use]
    pub fn in_bursts(mut self, every: Duration) -> Self {
        let every = u64::try_from(every.as_micros()).unwrap_or(u64::MAX).max(1);
        for request in &mut self.requests {
            request.at = Instant::from_micros(request.at.micros() / every * every);
        }
        self
    }

    /// Only the first so many.
    #[must_use]
    pub fn first(mut self, count: usize) -> Self {
        self.requests.truncate(count);
        self
    }

    /// From the first request to the last.
    pub fn span(&self) -> Duration {
        match (self.requests.first(), self.requests.last()) {
            (Some(first), Some(last)) => last.at.since(first.at),
            _ => Duration::ZERO,
        }
    }

    /// Tokens of all prompts.
    pub fn prompt_tokens(&self) -> u64 {
        self.requests.iter().map(|request| u64::from(request.prompt)).sum()
    }

    /// The part of all prompt tokens that one cache of this size would find at best.
    pub fn hits_of_one_cache(&self, kv_tokens: u64) -> f64 {
        let jobs = self.requests.iter().map(|request| request.job(0));
        let hits = crate::vllm::ideal_hits(jobs, kv_tokens, self.block_tokens);
        hits as f64 / self.prompt_tokens().max(1) as f64
    }

    /// Whether times are multiples of about the bucket.
    fn is_coarse(&self) -> bool {
        // Of two requests nobody can tell.
        let slack = Duration::from_millis(100);
        let pairs = self.requests.windows(2);
        let mut gaps = pairs.map(|pair| pair[1].at.since(pair[0].at));
        self.requests.len() > 2 && gaps.all(|gap| gap.is_zero() || gap + slack >= MOONCAKE_BUCKET)
    }

    fn spread(&mut self) {
        let mut from = 0;
        while from < self.requests.len() {
            let at = self.requests[from].at;
            let same = self.requests[from..].iter().take_while(|one| one.at == at).count();
            let next = self.requests.get(from + same).map_or(Instant::FAR, |next| next.at);
            let width = next.since(at).min(MOONCAKE_BUCKET).as_micros() as u64;
            for (place, request) in (0..).zip(&mut self.requests[from..from + same]) {
                request.at = at + Duration::from_micros(width * place / same as u64);
            }
            from += same;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn line(timestamp: u64, input: u32, ids: &[u64]) -> String {
        format!(
            "{{\"timestamp\": {timestamp}, \"input_length\": {input}, \"output_length\": 7, \
             \"hash_ids\": {ids:?}}}\n"
        )
    }

    fn times(workload: &Workload) -> Vec<u64> {
        workload.requests.iter().map(|request| request.at.micros() / 1_000).collect()
    }

    #[test]
    fn coarse_times_are_spread_over_their_bucket() {
        let lines = [0, 0, 0, 3_000, 5_999, 5_999, 15_000].map(|at| line(at, 513, &[1, 2]));
        let text = lines.concat();
        let workload =
            Workload::mooncake(&text, Bursts::Spread, MOONCAKE_BLOCK).expect("it is a trace");
        assert_eq!(times(&workload), [0, 1_000, 2_000, 3_000, 5_999, 7_499, 15_000]);
        let workload =
            Workload::mooncake(&text, Bursts::Keep, MOONCAKE_BLOCK).expect("it is a trace");
        assert_eq!(times(&workload), [0, 0, 0, 3_000, 5_999, 5_999, 15_000]);
        assert_eq!(*workload.requests[0].blocks, [1, 2]);
        assert_eq!((workload.requests[0].prompt, workload.requests[0].output), (513, 7));
        assert_eq!(workload.prompt_tokens(), 7 * 513);
    }

    #[test]
    fn fine_times_stay() {
        let text = [0, 0, 40, 277, 3_000].map(|at| line(at, 1, &[1])).concat();
        let workload =
            Workload::mooncake(&text, Bursts::Spread, MOONCAKE_BLOCK).expect("it is a trace");
        assert_eq!(times(&workload), [0, 0, 40, 277, 3_000]);
    }

    #[test]
    fn a_rate_compresses_time() {
        let text = [1_000, 2_000, 4_000, 9_000].map(|at| line(at, 1, &[1])).concat();
        let workload =
            Workload::mooncake(&text, Bursts::Keep, MOONCAKE_BLOCK).expect("it is a trace");
        let workload = workload.at_rate(1.5);
        assert_eq!(times(&workload), [0, 250, 750, 2_000]);
        assert_eq!(workload.span(), Duration::from_secs(2));
    }

    #[test]
    fn what_comes_in_a_while_may_come_at_once() {
        let text = [0, 2_999, 3_000, 7_000].map(|at| line(at, 1, &[1])).concat();
        let workload =
            Workload::mooncake(&text, Bursts::Keep, MOONCAKE_BLOCK).expect("it is a trace");
        assert_eq!(times(&workload.in_bursts(MOONCAKE_BUCKET)), [0, 0, 3_000, 6_000]);
    }

    #[rstest]
    #[case::published(512, &[9], 1, &[])]
    #[case::small_blocks(16, &[1, 2, 3], 40, &[])]
    #[case::answered(16, &[1, 2, 3], 40, &[4, 5])]
    #[case::answered_in_part(16, &[1, 2, 3], 40, &[4])]
    fn blocks_are_of_any_size(
        #[case] block_tokens: u32,
        #[case] ids: &[u64],
        #[case] input: u32,
        #[case] answer: &[u64],
    ) {
        let line = line(0, input, ids).replace("_length\": 7", "_length\": 30");
        let line = line.replace('}', &format!(", \"output_hash_ids\": {answer:?}}}"));
        let workload = Workload::mooncake(&line, Bursts::Keep, block_tokens);
        let workload = workload.expect("it is a trace");
        assert_eq!(workload.block_tokens, block_tokens);
        let request = &workload.requests[0];
        assert_eq!((&*request.blocks, request.prompt, request.output), (ids, input, 30));
        assert_eq!(&*request.answer, answer);
    }

    #[rstest]
    #[case::empty("", 0)]
    #[case::blank_lines("\n \n", 0)]
    #[case::no_json("timestamp", 1)]
    #[case::fields_missing("{\"timestamp\": 1}", 1)]
    #[case::negative(&line(0, 1, &[1]).replace('7', "-7"), 1)]
    #[case::no_prompt(&line(0, 0, &[]), 1)]
    #[case::too_long(&line(0, u32::MAX, &[]), 1)]
    #[case::ids_missing(&[line(0, 1, &[1]), line(0, 513, &[1])].concat(), 2)]
    #[case::small_blocks(&line(0, 16, &[1]).replace('}', ", \"output_hash_ids\": [1]}"), 1)]
    fn what_is_no_trace_is_told_with_its_line(#[case] text: &str, #[case] line: usize) {
        let error =
            Workload::mooncake(text, Bursts::Spread, MOONCAKE_BLOCK).expect_err("it is no trace");
        assert_eq!(error.line, line);
    }
}
