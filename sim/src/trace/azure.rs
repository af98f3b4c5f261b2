//! Traces as Azure published them in 2023 (Azure/AzurePublicDataset): lengths without contents.

use super::{Request, TOKENS_MAX, TraceError, Workload};
use vllm_proxy_core::time::{Duration, Instant};

/// How such a file begins.
pub(super) const HEADER: &str = "TIMESTAMP,ContextTokens,GeneratedTokens";
/// Nothing repeats, so the size of blocks only rounds what a prompt takes.
const BLOCK_TOKENS: u32 = 128;

impl Workload {
    /// Reads CSV with the columns `TIMESTAMP` (`2023-11-16 18:15:46.6805900`), `ContextTokens` and
    /// `GeneratedTokens`. What prompts hold is not told, so no two of them begin alike.
    pub fn azure(text: &str) -> Result<Self, TraceError> {
        let mut requests = Vec::new();
        let mut fresh = 0..;
        for (number, line) in (1..).zip(text.lines()).skip(1) {
            if line.trim().is_empty() {
                continue;
            }
            let expected = "YYYY-MM-DD hh:mm:ss.fraction,tokens,tokens";
            let wrong = TraceError { line: number, expected };
            let (at, prompt, output) = row(line).ok_or(wrong)?;
            let blocks = fresh.by_ref().take(prompt.div_ceil(BLOCK_TOKENS) as usize).collect();
            requests.push(Request { at, blocks, prompt, output, ..Request::default() });
        }
        Self::sorted(BLOCK_TOKENS, requests)
    }
}

fn row(line: &str) -> Option<(Instant, u32, u32)> {
    let mut columns = line.trim().split(',');
    let at = moment(columns.next()?)?;
    let mut tokens = || columns.next()?.parse().ok().filter(|tokens| *tokens <= TOKENS_MAX);
    let (prompt, output): (u32, u32) = (tokens()?, tokens()?);
    columns.next().is_none().then_some((at, prompt.max(1), output.max(1)))
}

/// Since the first day of the year 0, as if all months had 31 days: traces last some days, and what
/// counts is the distance within them.
fn moment(text: &str) -> Option<Instant> {
    let (date, time) = text.split_once(' ')?;
    let numbers = |text: &str, by| {
        let numbers: Option<Vec<u64>> = text.split(by).map(|part| part.parse().ok()).collect();
        <[u64; 3]>::try_from(numbers?).ok()
    };
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let ([year, month, day], [hour, minute, second]) = (numbers(date, '-')?, numbers(time, ':')?);
    let in_range = year < 10_000 && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !in_range || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let days = (year * 12 + month - 1) * 31 + day - 1;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    let digits = fraction.get(..fraction.len().min(6))?;
    let micros = digits.parse::<u64>().ok()? * 10_u64.pow(6 - digits.len() as u32);
    Some(Instant::START + Duration::from_secs(seconds) + Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[test]
    fn rows_are_read() {
        let text = format!(
            "{HEADER}\n2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9,1,0\n\n\
             2023-11-17 00:00:00,200,5\n"
        );
        let workload = Workload::azure(&text).expect("it is a trace");
        let first = workload.requests[0].at;
        let after = |one: &Request| one.at.since(first).as_micros();
        let times: Vec<_> = workload.requests.iter().map(after).collect();
        assert_eq!(times, [0, 4_219_410, 20_653_319_410]);
        let shape = |one: &Request| (one.prompt, one.output, one.blocks.len());
        let shapes: Vec<_> = workload.requests.iter().map(shape).collect();
        assert_eq!(shapes, [(374, 44, 3), (1, 1, 1), (200, 5, 2)]);
        assert_eq!(workload.hits_of_one_cache(u64::MAX), 0.0);
    }

    #[rstest]
    #[case::no_row("x")]
    #[case::no_time("2023-11-16,1,1")]
    #[case::month("2023-13-16 18:15:46,1,1")]
    #[case::column_missing("2023-11-16 18:15:46,1")]
    #[case::column_more("2023-11-16 18:15:46,1,1,1")]
    #[case::negative("2023-11-16 18:15:46,-1,1")]
    #[case::fraction("2023-11-16 18:15:46.x,1,1")]
    #[case::not_ascii("2023-11-16 18:15:46.12345ß,1,1")]
    fn what_is_no_row_is_told_with_its_line(#[case] row: &str) {
        let error = Workload::azure(&format!("{HEADER}\n{row}\n")).expect_err("it is no row");
        assert_eq!(error.line, 2);
    }
}
