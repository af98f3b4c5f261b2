//! What a page of one backend's metrics says of its KV cache.
//!
//! Knows the names and labels of vLLM 0.33 (0.32 has the same). Does not know who asks, or what is
//! concluded from it.

use super::line::{self, Line, Sample};
use super::{PAGE_BYTES_MAX, PAGE_LINES_MAX};
use crate::wire::probe::CacheReport;
use alloc::collections::BTreeMap;

/// Reads a page. What is not there, or no number, is not said.
///
/// A server with several engines has a sample of each, by the label `engine`; their caches and
/// their counts add up.
pub fn cache_report(page: &[u8]) -> CacheReport {
    let mut report = CacheReport::default();
    let mut engines = BTreeMap::new();
    let mut blocks = None;
    let page = page.get(..PAGE_BYTES_MAX).unwrap_or(page);
    for line in page.split(|&byte| byte == b'\n').take(PAGE_LINES_MAX) {
        // Some of the hundreds on a page.
        if !line.starts_with(b"vllm:cache_") && !line.starts_with(b"vllm:prefix_") {
            continue;
        }
        let Some(sample) = sample(line) else { continue };
        match &*sample.name {
            "vllm:cache_config_info" => {
                let engine = label(&sample, "engine").unwrap_or_default();
                let size = number(&sample, "kv_cache_size_tokens");
                engines.insert(engine, size);
                report.prefix_caching = match label(&sample, "enable_prefix_caching") {
                    Some("True") => Some(true),
                    Some("False") => Some(false),
                    Some(_) | None => report.prefix_caching,
                };
                blocks = blocks.max(product(&sample));
            }
            // Older clients of Prometheus leave the suffix out.
            "vllm:prefix_cache_queries_total" | "vllm:prefix_cache_queries" => {
                add(&mut report.queries, count(&sample));
            }
            "vllm:prefix_cache_hits_total" | "vllm:prefix_cache_hits" => {
                add(&mut report.hits, count(&sample));
            }
            _ => {}
        }
    }
    for size in engines.into_values() {
        add(&mut report.kv_tokens, size);
    }
    // Several engines of one server each show the blocks of all.
    report.kv_tokens = report.kv_tokens.or(blocks);
    report
}

fn sample(line: &[u8]) -> Option<Sample<'_>> {
    match line::parse(core::str::from_utf8(line).ok()?)? {
        Line::Sample(sample) => Some(sample),
        Line::Nothing | Line::Help(..) | Line::Type(..) => None,
    }
}

fn label<'a>(sample: &Sample<'a>, name: &str) -> Option<&'a str> {
    sample.labels.iter().find(|label| label.name == name).map(|label| label.value)
}

fn number(sample: &Sample<'_>, name: &str) -> Option<u64> {
    label(sample, name)?.parse().ok().filter(|&number| number > 0)
}

fn product(sample: &Sample<'_>) -> Option<u64> {
    number(sample, "num_gpu_blocks")?.checked_mul(number(sample, "block_size")?)
}

fn count(sample: &Sample<'_>) -> Option<u64> {
    let value: f64 = sample.value.parse().ok()?;
    (value.is_finite() && value >= 0.0).then_some(value as u64)
}

fn add(sum: &mut Option<u64>, more: Option<u64>) {
    if let Some(more) = more {
        *sum = Some(sum.unwrap_or(0).saturating_add(more));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::format;
    use std::string::String;

    #[track_caller]
    fn check(page: &str, kv_tokens: Option<u64>, queries: Option<u64>, hits: Option<u64>) {
        let read = |page: &str| {
            let CacheReport { kv_tokens, queries, hits, prefix_caching: _ } =
                cache_report(page.as_bytes());
            (kv_tokens, queries, hits)
        };
        assert_eq!(read(page), (kv_tokens, queries, hits), "{page}");
        // As another system would end its lines.
        assert_eq!(read(&page.replace('\n', "\r\n")), (kv_tokens, queries, hits));
    }

    #[test]
    fn a_page_of_vllm() {
        let page = include_str!("tests/vllm-0.32.txt");
        check(page, Some(16_384), Some(18), None);
        let hits = "vllm:prefix_cache_hits_total{engine=\"0\",model_name=\"tiny-a\"} 16.0\n";
        check(&format!("{page}{hits}"), Some(16_384), Some(18), Some(16));
    }

    fn config(engine: u32, labels: &str) -> String {
        format!("vllm:cache_config_info{{engine=\"{engine}\",{labels}}} 1.0\n")
    }

    #[rstest]
    #[case::on(include_str!("tests/vllm-0.32.txt"), Some(true))]
    #[case::off(&config(0, "enable_prefix_caching=\"False\""), Some(false))]
    #[case::undecided(&config(0, "enable_prefix_caching=\"None\""), None)]
    #[case::unsaid(&config(0, OLD), None)]
    fn whether_it_looks_for_prefixes(#[case] page: &str, #[case] expected: Option<bool>) {
        assert_eq!(cache_report(page.as_bytes()).prefix_caching, expected);
    }

    const OLD: &str = "block_size=\"16\",num_gpu_blocks=\"1000\"";
    const NEW: &str = "block_size=\"16\",kv_cache_size_tokens=\"9000\",num_gpu_blocks=\"1000\"";

    #[rstest]
    #[case::product(&config(0, OLD), Some(16_000))]
    #[case::own_word_for_it(&config(0, NEW), Some(9_000))]
    #[case::own_word_is_none(
        &config(0, &NEW.replace("9000", "None")),
        Some(16_000)
    )]
    #[case::two_engines(&format!("{}{}", config(0, NEW), config(1, NEW)), Some(18_000))]
    #[case::two_engines_with_the_blocks_of_both(
        &format!("{}{}", config(0, OLD), config(1, OLD)),
        Some(16_000)
    )]
    #[case::an_engine_twice(&format!("{}{}", config(0, NEW), config(0, NEW)), Some(9_000))]
    #[case::without_engine(
        "vllm:cache_config_info{block_size=\"2\",num_gpu_blocks=\"3\"} 1",
        Some(6)
    )]
    #[case::blocks_unknown(&config(0, "block_size=\"16\",num_gpu_blocks=\"None\""), None)]
    #[case::blocks_missing(&config(0, "block_size=\"16\""), None)]
    #[case::nothing(&config(0, "block_size=\"16\",num_gpu_blocks=\"0\""), None)]
    #[case::negative(&config(0, "block_size=\"-16\",num_gpu_blocks=\"-1000\""), None)]
    #[case::too_great(
        &config(0, "block_size=\"16\",num_gpu_blocks=\"18446744073709551615\""),
        None
    )]
    #[case::greatest_sum(
        &format!(
            "{}{}",
            config(0, "kv_cache_size_tokens=\"18446744073709551615\""),
            config(1, "kv_cache_size_tokens=\"5\"")
        ),
        Some(u64::MAX)
    )]
    #[case::malformed("vllm:cache_config_info{engine=\"0\",kv_cache_size_tokens=\"5\"", None)]
    #[case::another_name("vllm:cache_config_info_x{kv_cache_size_tokens=\"5\"} 1", None)]
    fn sizes(#[case] page: &str, #[case] expected: Option<u64>) {
        check(page, expected, None, None);
    }

    #[rstest]
    #[case::plain("vllm:prefix_cache_queries_total{engine=\"0\"} 15265.0", Some(15_265), None)]
    #[case::large("vllm:prefix_cache_queries_total 1.234567e+06", Some(1_234_567), None)]
    #[case::two_engines(
        "vllm:prefix_cache_hits_total{engine=\"0\"} 3\nvllm:prefix_cache_hits_total{engine=\"1\"} 4",
        None,
        Some(7)
    )]
    #[case::older("vllm:prefix_cache_queries 5\nvllm:prefix_cache_hits 4", Some(5), Some(4))]
    #[case::created("vllm:prefix_cache_queries_created 1.7e+09", None, None)]
    #[case::others("vllm:external_prefix_cache_queries_total 5\nvllm:prefix_x 5", None, None)]
    #[case::infinite("vllm:prefix_cache_queries_total +Inf", None, None)]
    #[case::not_a_number("vllm:prefix_cache_queries_total NaN", None, None)]
    #[case::negative("vllm:prefix_cache_hits_total -1", None, None)]
    #[case::beyond("vllm:prefix_cache_hits_total 1e30", None, Some(u64::MAX))]
    #[case::described("# HELP vllm:prefix_cache_hits_total 5\n", None, None)]
    #[case::html("<html>vllm:prefix_cache_hits_total 5", None, None)]
    #[case::empty("", None, None)]
    fn counts(#[case] page: &str, #[case] queries: Option<u64>, #[case] hits: Option<u64>) {
        check(page, None, queries, hits);
    }

    #[test]
    fn hostile_pages_are_bounded() {
        let line = "vllm:prefix_cache_hits_total 1\n";
        let report = cache_report(line.repeat(PAGE_LINES_MAX + 10).as_bytes());
        assert_eq!(report.hits, Some(PAGE_LINES_MAX as u64));
        let far = format!("{}\n{line}", "x".repeat(PAGE_BYTES_MAX));
        assert_eq!(cache_report(far.as_bytes()), CacheReport::default());
        assert_eq!(
            cache_report(b"vllm:prefix_cache_hits_total{a=\"\xff\"} 1"),
            CacheReport::default()
        );
    }
}
