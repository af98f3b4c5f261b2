//! Whether all that is asked is counted, once, and nothing else is.

use crate::backend::{Backend, Then, not_found};
use crate::company::asked;
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::wire::{chat, get, ok};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What is younger is recent.
const RECENT: Duration = Duration::from_secs(30);

/// The sum of the samples of each of the proxy's families; histograms by their parts.
fn sums(proxy: &Proxy) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for line in asked(proxy, get("/metrics")).text().lines() {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        if series.starts_with("vllm_proxy_") {
            let name = series.split('{').next().unwrap_or(series);
            *sums.entry(name.to_owned()).or_default() += value.parse::<f64>().unwrap();
        }
    }
    sums
}

/// The value of one series.
fn value(proxy: &Proxy, series: &str) -> f64 {
    let page = asked(proxy, get("/metrics")).text();
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{page}")).parse().unwrap()
}

fn as_many_are_counted_as_were_asked(runtime: Runtime) {
    // Names as JSON has them.
    let good = Backend::answering(&["m", r#"evil\"\\name"#], |request| {
        let unheard = request.text().contains("unheard");
        if unheard { not_found("unheard of") } else { ok("hi") }
    });
    // This one serves another model, and drops what it is asked.
    let bad = Backend::scripted(&["dead"], |_, _| Then::Close);
    let proxy = Proxy::with(runtime, &[], &[&good, &bad]);
    let (before, start) = (sums(&proxy), Instant::now());
    for _ in 0..20 {
        assert_eq!(proxy.ask(&chat("m")), 200);
    }
    for _ in 0..5 {
        assert_eq!(proxy.ask(&chat("evil\\\"\\\\name")), 200);
    }
    for number in 0..4 {
        assert_eq!(proxy.ask(&chat(&format!("unheard of {number}"))), 404);
    }
    assert_eq!(proxy.ask(&chat("dead")), 502);
    assert_eq!(proxy.ask(b"GET / HTTP/1.1\r\n\r\n"), 400);
    for _ in 0..3 {
        assert_eq!(proxy.ask(&get("/v1/models")), 200);
    }
    let mut after = BTreeMap::new();
    eventually("all are settled", || {
        after = sums(&proxy);
        after["vllm_proxy_requests_in_flight"] == 0.0
    });
    let delta = |name: &str| after[name] - before[name];
    assert_eq!(delta("vllm_proxy_requests_total"), 29.0, "20, 5 and 4 that one of them judged");
    assert_eq!(delta("vllm_proxy_refusals_total"), 2.0, "no answer, and no host");
    assert!(delta("vllm_proxy_own_answers_total") >= 4.0, "lists, and pages of metrics");
    assert_eq!(delta("vllm_proxy_time_to_first_byte_seconds_count"), 29.0);
    assert_eq!(delta("vllm_proxy_request_duration_seconds_count"), 29.0);
    assert!(delta("vllm_proxy_routing_seconds_count") >= 29.0);
    let address = good.address();
    let of = |model: &str, status: &str| {
        let labels = format!(r#"{{backend="{address}",model="{model}",status="{status}"}}"#);
        value(&proxy, &format!("vllm_proxy_requests_total{labels}"))
    };
    assert_eq!(
        (of("m", "2xx"), of(r#"evil\"\\name"#, "2xx"), of("other", "4xx")),
        (20.0, 5.0, 4.0)
    );
    let lost =
        format!(r#"vllm_proxy_attempts_failed_total{{backend="{}",reason="lost"}}"#, bad.address());
    assert_eq!(value(&proxy, &lost), 1.0);
    assert_eq!(value(&proxy, r#"vllm_proxy_refusals_total{reason="bad_request"}"#), 1.0);
    // The status says the same.
    let status = proxy.status();
    assert_eq!(status["totals"]["requests"], 29);
    assert_eq!((&status["statuses"]["2xx"], &status["statuses"]["4xx"]), (&25.into(), &4.into()));
    assert_eq!(status["refusals"]["no_answer"], 1);
    let (one, other) = (&status["backends"][0], &status["backends"][1]);
    assert_eq!(one["requests"], 29);
    if start.elapsed() < RECENT {
        assert_eq!(one["recent"]["requests"], 29, "{one}");
        assert!(one["recent"]["first_byte_p50_ms"].is_number(), "{one}");
    }
    assert_eq!((&other["last_failure"]["reason"], &other["failures"]), (&"lost".into(), &1.into()));
}

fn what_was_promised_and_what_was_kept_are_of_the_same_prompts(runtime: Runtime) {
    let usage = r#"{"usage":{"prompt_tokens":1000,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":400}}}"#;
    let backend = Backend::answering(&["m"], move |_| {
        let answer = String::from_utf8(ok(usage)).unwrap();
        answer.replacen("\r\n", "\r\nContent-Type: application/json\r\n", 1).into_bytes()
    });
    let proxy = Proxy::with(runtime, &[], &[&backend]);
    (0..3).for_each(|_| assert_eq!(proxy.ask(&chat("m")), 200));
    eventually("all are settled", || sums(&proxy)["vllm_proxy_requests_total"] == 3.0);
    let sums = sums(&proxy);
    assert_eq!(sums["vllm_proxy_prompt_tokens_total"], 3_000.0);
    assert_eq!(sums["vllm_proxy_reported_cached_tokens_total"], 1_200.0);
    assert!(sums["vllm_proxy_predicted_cached_tokens_total"] <= 3_000.0);
    let cache = &proxy.status()["backends"][0]["cache"];
    assert_eq!(cache["reported_ratio"], 0.4);
}

on_every_runtime![
    as_many_are_counted_as_were_asked,
    what_was_promised_and_what_was_kept_are_of_the_same_prompts,
];
