//! `GET /metrics`: the part of vLLM's series that a simulated engine can honestly fill, with
//! vLLM's own names, labels, help texts and number format (seen in 0.32).

use super::state::Mock;
use std::fmt::Write;
use vllm_proxy_sim::vllm::Options;

/// Bucket limits of `vllm:time_to_first_token_seconds`.
pub(super) const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];

/// Bucket limits of `vllm:e2e_request_latency_seconds`.
pub(super) const LATENCY: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];

/// Counts of observations up to each limit.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    limits: &'static [f64],
    /// Not cumulative; room for the longest list of limits and for what is beyond.
    counts: [u64; 24],
    sum: f64,
}

impl Histogram {
    pub(super) const fn new(limits: &'static [f64]) -> Self {
        Self { limits, counts: [0; 24], sum: 0.0 }
    }

    pub(super) fn observe(&mut self, value: f64) {
        self.counts[self.limits.partition_point(|limit| *limit < value)] += 1;
        self.sum += value;
    }
}

/// One page of metrics as it grows.
struct Page {
    text: String,
    model: String,
    created: f64,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// One sample; `labels` come before `model_name`, `more` after it, as their names are sorted.
    fn sample(&mut self, name: &str, labels: &str, more: &str, value: f64) {
        let (model, value) = (&self.model, number(value));
        let _ = writeln!(
            self.text,
            "{name}{{engine=\"0\"{labels},model_name=\"{model}\"{more}}} {value}"
        );
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, "gauge", help);
        self.sample(name, "", "", value);
    }

    /// A counter with one sample for each `(labels before, labels after model_name, value)`.
    fn counter(&mut self, name: &str, help: &str, samples: &[(&str, &str, u64)]) {
        let (total, created) = (format!("{name}_total"), format!("{name}_created"));
        self.family(&total, "counter", help);
        for (before, after, value) in samples {
            self.sample(&total, before, after, *value as f64);
        }
        self.family(&created, "gauge", help);
        for (before, after, _) in samples {
            self.sample(&created, before, after, self.created);
        }
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.family(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        let mut total = 0;
        for (limit, count) in histogram.limits.iter().zip(histogram.counts) {
            total += count;
            self.sample(&bucket, &format!(",le=\"{}\"", number(*limit)), "", total as f64);
        }
        let total = histogram.counts.iter().sum::<u64>() as f64;
        self.sample(&bucket, ",le=\"+Inf\"", "", total);
        self.sample(&format!("{name}_count"), "", "", total);
        self.sample(&format!("{name}_sum"), "", "", histogram.sum);
        let created = format!("{name}_created");
        self.family(&created, "gauge", help);
        self.sample(&created, "", "", self.created);
    }
}

/// The whole page.
pub(super) fn page(mock: &Mock) -> String {
    let (counts, machine) = (&mock.engine.counts, &mock.engine.machine);
    let (queries, hits) = machine.lookups();
    let (prompt, cached) = (counts.prompt_tokens.get(), counts.cached_tokens.get());
    let model = mock.args.canonical().replace('\\', "\\\\").replace('"', "\\\"");
    let mut page = Page { text: String::new(), model, created: mock.started };
    page.gauge(
        "vllm:num_requests_running",
        "Number of requests in model execution batches.",
        mock.engine.running() as f64,
    );
    page.gauge(
        "vllm:num_requests_waiting",
        "Number of requests waiting to be processed.",
        mock.engine.waiting() as f64,
    );
    let name = "vllm:num_requests_waiting_by_reason";
    page.family(
        name,
        "gauge",
        "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling \
         capacity; 'deferred' = deferred by transient constraints (LoRA budget, KV transfer, \
         blocked status). Sum of all reasons equals vllm:num_requests_waiting.",
    );
    page.sample(name, "", ",reason=\"capacity\"", mock.engine.waiting() as f64);
    page.sample(name, "", ",reason=\"deferred\"", 0.0);
    let name = "vllm:engine_sleep_state";
    page.family(
        name,
        "gauge",
        "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; \
         weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2.",
    );
    for (state, level) in
        [("awake", None), ("weights_offloaded", Some(1)), ("discard_all", Some(2))]
    {
        let value = if mock.power.level() == level { 1.0 } else { 0.0 };
        page.sample(name, "", &format!(",sleep_state=\"{state}\""), value);
    }
    page.gauge(
        "vllm:kv_cache_usage_perc",
        "KV-cache usage. 1 means 100 percent usage.",
        f64::from(machine.gauges().kv_permille) / 1_000.0,
    );
    page.counter(
        "vllm:prefix_cache_queries",
        "Prefix cache queries, in terms of number of queried tokens.",
        &[("", "", queries)],
    );
    page.counter(
        "vllm:prefix_cache_hits",
        "Prefix cache hits, in terms of number of cached tokens.",
        &[("", "", hits)],
    );
    page.counter(
        "vllm:num_preemptions",
        "Cumulative number of preemption from the engine.",
        &[("", "", machine.preemptions())],
    );
    page.counter("vllm:prompt_tokens", "Number of prefill tokens processed.", &[("", "", prompt)]);
    page.counter(
        "vllm:prompt_tokens_by_source",
        "Number of prompt tokens by source.",
        &[
            ("", ",source=\"local_compute\"", prompt - cached),
            ("", ",source=\"local_cache_hit\"", cached),
            ("", ",source=\"external_kv_transfer\"", 0),
        ],
    );
    page.counter(
        "vllm:prompt_tokens_cached",
        "Number of cached prompt tokens (local + external).",
        &[("", "", cached)],
    );
    page.counter(
        "vllm:generation_tokens",
        "Number of generation tokens processed.",
        &[("", "", counts.generation_tokens.get())],
    );
    page.counter(
        "vllm:request_success",
        "Count of successfully processed requests.",
        &[
            (",finished_reason=\"stop\"", "", counts.stopped.get()),
            (",finished_reason=\"length\"", "", counts.cut_short.get()),
            (",finished_reason=\"abort\"", "", counts.aborted.get()),
            (",finished_reason=\"error\"", "", 0),
            (",finished_reason=\"repetition\"", "", 0),
        ],
    );
    page.histogram(
        "vllm:time_to_first_token_seconds",
        "Histogram of time to first token in seconds.",
        &counts.ttft.borrow(),
    );
    page.histogram(
        "vllm:e2e_request_latency_seconds",
        "Histogram of e2e request latency in seconds.",
        &counts.latency.borrow(),
    );
    let name = "vllm:cache_config_info";
    page.family(name, "gauge", "Information of the LLMEngine CacheConfig");
    let &Options { kv_tokens, block_tokens, prefix_caching, .. } = machine.options();
    let caching = if prefix_caching { "True" } else { "False" };
    let ordered = mock.args.num_gpu_blocks_override;
    let ordered = ordered.map_or_else(|| "None".to_owned(), |blocks| blocks.to_string());
    let _ = writeln!(
        page.text,
        "{name}{{_block_size_resolved=\"True\",block_size=\"{block_tokens}\",cache_dtype=\"auto\",\
         enable_prefix_caching=\"{caching}\",engine=\"0\",gpu_memory_utilization=\"0.92\",\
         hash_block_size=\"None\",is_attention_free=\"False\",kv_cache_memory_bytes=\"None\",\
         kv_cache_size_tokens=\"{kv_tokens}\",num_cpu_blocks=\"None\",num_gpu_blocks=\"{}\",\
         num_gpu_blocks_override=\"{ordered}\",prefix_caching_hash_algo=\"sha256\",\
         sliding_window=\"None\",user_specified_block_size=\"False\"}} 1.0",
        kv_tokens / u64::from(block_tokens)
    );
    let name = "http_requests_total";
    page.family(name, "counter", "Total number of requests by method, status and handler.");
    for ((handler, method, class), count) in mock.requests.borrow().iter() {
        let _ = writeln!(
            page.text,
            "{name}{{handler=\"{handler}\",method=\"{method}\",status=\"{class}xx\"}} {}",
            number(*count as f64)
        );
    }
    page.text
}

/// A number as Prometheus' Python client writes it: `3.0`, and from seven digits on `1.5e+09`.
fn number(value: f64) -> String {
    let plain = format!("{value:?}");
    match plain.split_once('.') {
        Some((whole, part)) if whole.len() > 6 => {
            let (first, rest) = whole.split_at(1);
            let mantissa = format!("{first}.{rest}{part}");
            let mantissa = mantissa.trim_end_matches('0').trim_end_matches('.');
            format!("{mantissa}e+{:02}", whole.len() - 1)
        }
        Some(_) | None => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::zero(0.0, "0.0")]
    #[case::count(105.0, "105.0")]
    #[case::fraction(0.25, "0.25")]
    #[case::six_digits(369_000.0, "369000.0")]
    #[case::seven_digits(1_234_567.0, "1.234567e+06")]
    #[case::time(1_795_346_016.862_029, "1.795346016862029e+09")]
    #[case::round(2_000_000.0, "2e+06")]
    fn numbers_look_as_from_python(#[case] value: f64, #[case] text: &str) {
        assert_eq!(number(value), text);
    }

    #[test]
    fn buckets_include_their_limit() {
        let mut histogram = Histogram::new(LATENCY);
        for value in [0.3, 0.31, 9_999.0] {
            histogram.observe(value);
        }
        assert_eq!((histogram.counts[0], histogram.counts[1]), (1, 1));
        assert_eq!(histogram.counts[LATENCY.len()], 1);
    }
}
