//! What a page of metrics says of facts.

use super::*;
use crate::fleet::Address;
use crate::tally::{Counts, Ending, Tokens};
use crate::wire::metrics::tests::strict;
use alloc::vec;

fn page(facts: &Facts) -> String {
    let text = String::from_utf8(facts.text()).expect("text");
    let families = strict::parse(text.as_bytes()).expect("a strict parser takes it");
    strict::check_histograms(&families).expect("buckets, sums and counts agree");
    for family in &families {
        assert!(family.help.is_some() && family.kind.is_some(), "{}", family.name);
        let total = family.name.ends_with("_total");
        assert_eq!(family.kind.as_deref() == Some("counter"), total, "{}", family.name);
    }
    text
}

fn names(text: &str) -> Vec<&str> {
    let named = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    named.filter_map(|rest| rest.split(' ').next()).collect()
}

#[track_caller]
fn has(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|other| other == *line), "{line} is not in\n{text}");
    }
}

fn standing(state: &'static str) -> Standing {
    Standing {
        up: state == "up",
        state,
        draining: state == "suspect",
        in_flight_elsewhere: 8,
        queued_tokens: 77,
    }
}

fn counts() -> Counts {
    let mut counts = Counts::default();
    counts.ended(Some(&Arc::from("m")), Ending::Succeeded, 9);
    counts.ended(Some(&Arc::from("evil\"\n\\\u{1}\r")), Ending::Redirected, 9);
    counts.ended(None, Ending::ClientError, 9);
    counts.faults[Fault::Connect as usize] = 2;
    counts.unheard = 4;
    counts.tokens = Tokens { prompt: 100, predicted: 60, reported: 50 };
    counts.sent_tokens = 200;
    counts.sent_predicted_tokens = 90;
    counts.first_byte.add(Duration::from_millis(20));
    counts.first_byte.add(Duration::from_secs(1_000));
    counts.duration.add(Duration::from_millis(2_500));
    counts
}

/// Those in which everything is there.
pub(in crate::wire) fn facts() -> Facts {
    let backend = |address: Address, standing, in_flight| BackendFacts {
        address,
        standing,
        in_flight,
        counts: counts(),
    };
    let tcp = |port: u16| Address::Tcp(([10, 0, 0, 1], port).into());
    let mut totals = Totals::default();
    totals.refused[Refused::UnknownModel as usize] = 3;
    totals.retries[Fault::Lost as usize] = 4;
    totals.own[Own::Merged as usize] = 5;
    totals.log_entries_dropped = 6;
    totals.routing.add(Duration::from_micros(30));
    Facts {
        backends: vec![
            backend(tcp(8_000), Some(standing("up")), Some(3)),
            backend(Address::Unix("/a\"b".to_string()), Some(standing("suspect")), Some(0)),
            backend(tcp(8_001), None, Some(1)),
            backend(tcp(8_002), None, None),
        ],
        process: ProcessFacts {
            build: Build {
                version: "1.2.3",
                commit: "abc",
                features: &["a", "b"],
                runtime: "smol",
            },
            epoch_micros: 1_500_000_000_250_000,
            draining: true,
            body_bytes: 5,
            waits: Waits { count: 7, longest: Duration::from_micros(1_500) },
            index: Some(IndexStatus { entries: 8, entries_max: 9 }),
            totals,
        },
        sharing: Some(SharingFacts {
            proxy: 1,
            alive: 2,
            alone: true,
            missed: 9,
            dropped_chunks: 12,
            connected: true,
            lag: Some(Duration::from_micros(1_500)),
            lost_batches: 10,
            unreadable: 11,
            reason: None,
        }),
    }
}

#[test]
fn every_backend_has_its_series() {
    let text = page(&facts());
    has(
        &text,
        &[
            "# TYPE vllm_proxy_backend_up gauge",
            r#"vllm_proxy_backend_up{backend="10.0.0.1:8000"} 1"#,
            r#"vllm_proxy_backend_up{backend="unix:/a\"b"} 0"#,
            r#"vllm_proxy_backend_state{backend="10.0.0.1:8000",state="up"} 1"#,
            r#"vllm_proxy_backend_state{backend="10.0.0.1:8000",state="down"} 0"#,
            r#"vllm_proxy_backend_draining{backend="unix:/a\"b"} 1"#,
            r#"vllm_proxy_requests_in_flight{backend="10.0.0.1:8000"} 3"#,
            r#"vllm_proxy_requests_in_flight_elsewhere{backend="10.0.0.1:8000"} 8"#,
            r#"vllm_proxy_queued_tokens{backend="10.0.0.1:8000"} 77"#,
            r#"vllm_proxy_requests_total{backend="10.0.0.1:8000",model="m",status="2xx"} 1"#,
            r#"vllm_proxy_requests_total{backend="10.0.0.1:8000",model="m",status="5xx"} 0"#,
            r#"vllm_proxy_requests_total{backend="10.0.0.1:8000",model="other",status="4xx"} 1"#,
            r#"vllm_proxy_attempts_failed_total{backend="10.0.0.1:8000",reason="connect"} 2"#,
            r#"vllm_proxy_parts_unanswered_total{backend="10.0.0.1:8000"} 4"#,
            r#"vllm_proxy_prompt_tokens_total{backend="10.0.0.1:8000"} 100"#,
            r#"vllm_proxy_predicted_cached_tokens_total{backend="10.0.0.1:8000"} 60"#,
            r#"vllm_proxy_reported_cached_tokens_total{backend="10.0.0.1:8000"} 50"#,
            r#"vllm_proxy_sent_prompt_tokens_total{backend="10.0.0.1:8000"} 200"#,
            r#"vllm_proxy_sent_cached_tokens_total{backend="10.0.0.1:8000"} 90"#,
            "# TYPE vllm_proxy_time_to_first_byte_seconds histogram",
            r#"vllm_proxy_time_to_first_byte_seconds_bucket{backend="10.0.0.1:8000",le="0.01"} 0"#,
            r#"vllm_proxy_time_to_first_byte_seconds_bucket{backend="10.0.0.1:8000",le="0.02"} 1"#,
            r#"vllm_proxy_time_to_first_byte_seconds_bucket{backend="10.0.0.1:8000",le="+Inf"} 2"#,
            r#"vllm_proxy_time_to_first_byte_seconds_sum{backend="10.0.0.1:8000"} 1000.02"#,
            r#"vllm_proxy_time_to_first_byte_seconds_count{backend="10.0.0.1:8000"} 2"#,
            r#"vllm_proxy_request_duration_seconds_bucket{backend="10.0.0.1:8000",le="2.5"} 1"#,
            r#"vllm_proxy_request_duration_seconds_sum{backend="10.0.0.1:8000"} 2.5"#,
        ],
    );
}

#[test]
fn who_has_left_is_only_counted() {
    let text = page(&facts());
    let of = |address: &str| {
        let lines = text.lines().filter(move |line| line.contains(address));
        lines.filter_map(|line| line.split(['{', ' ']).next()).collect::<Vec<_>>()
    };
    let gauges = ["backend_up", "backend_state", "draining", "queued", "elsewhere"];
    for address in ["10.0.0.1:8001", "10.0.0.1:8002"] {
        let names = of(address);
        assert!(names.contains(&"vllm_proxy_requests_total"));
        assert!(!names.iter().any(|name| gauges.iter().any(|gauge| name.contains(gauge))));
        let in_hand = names.contains(&"vllm_proxy_requests_in_flight");
        assert_eq!(in_hand, address.ends_with('1'), "one has a request yet");
    }
}

#[test]
fn names_of_models_are_any_text() {
    let text = page(&facts());
    let series = "vllm_proxy_requests_total{backend=\"10.0.0.1:8000\",\
                  model=\"evil\\\"\\n\\\\\u{1}\r\",status=\"3xx\"} 1\n";
    assert!(text.contains(series), "{text}");
    assert!(!text.contains("status=\"1xx\""), "what is rare and did not happen");
}

#[test]
fn the_process_has_its_series() {
    has(
        &page(&facts()),
        &[
            r#"vllm_proxy_refusals_total{reason="unknown_model"} 3"#,
            r#"vllm_proxy_refusals_total{reason="busy"} 0"#,
            r#"vllm_proxy_retries_total{reason="lost"} 4"#,
            r#"vllm_proxy_own_answers_total{kind="merged"} 5"#,
            r#"vllm_proxy_routing_seconds_bucket{le="0.00002"} 0"#,
            r#"vllm_proxy_routing_seconds_bucket{le="0.00005"} 1"#,
            "vllm_proxy_routing_seconds_sum 0.00003",
            "vllm_proxy_routing_seconds_count 1",
            "vllm_proxy_engine_waits_total 7",
            "vllm_proxy_engine_longest_wait_seconds 0.0015",
            "vllm_proxy_request_body_bytes 5",
            "vllm_proxy_index_entries 8",
            "vllm_proxy_index_entries_max 9",
            "vllm_proxy_log_entries_dropped_total 6",
            "vllm_proxy_draining 1",
            "vllm_proxy_start_time_seconds 1500000000.25",
            concat!(
                r#"vllm_proxy_build_info{commit="abc",features="a,b","#,
                r#"runtime="smol",version="1.2.3"} 1"#
            ),
            "vllm_proxy_redis_up 1",
            "vllm_proxy_redis_lag_seconds 0.0015",
            "vllm_proxy_replicas 2",
            "vllm_proxy_alone 1",
            "vllm_proxy_updates_missed_total 9",
            r#"vllm_proxy_updates_dropped_total{what="batches"} 10"#,
            r#"vllm_proxy_updates_dropped_total{what="chunks"} 12"#,
            "vllm_proxy_updates_unreadable_total 11",
        ],
    );
}

#[test]
fn who_shares_nothing_says_nothing_of_it() {
    let shares = |name: &&str| {
        let words = ["redis", "replicas", "alone", "updates", "elsewhere"];
        words.iter().any(|word| name.contains(word))
    };
    let mut facts = Facts::default();
    assert_eq!(names(&page(&facts)).into_iter().find(shares), None);
    facts.sharing = Some(SharingFacts::default());
    let text = page(&facts);
    let named = names(&text);
    assert_eq!(named.iter().filter(|name| shares(name)).count(), 7, "{named:?}");
    assert!(!text.contains("lag"), "it is not known");
    assert!(!text.contains("index"), "no policy asks");
}
