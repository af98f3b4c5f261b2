//! What the JSON says of a status.

use super::*;
use crate::fleet::{Address, Labels};
use crate::wire::status::json::{MODELS_MAX, MODELS_OF_FLEET_MAX};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use serde_json::{Value, json};

fn now() -> Instant {
    Instant::from_millis(61_900)
}

fn recent() -> Recent {
    let mut recent = Recent::default();
    recent.ended(now());
    recent.failed(Fault::Lost, Instant::from_millis(60_000));
    recent.cached(100, 50, 25, now());
    recent
}

fn backend(models: Option<usize>) -> BackendStatus {
    let card = |at| ModelCard { id: format!("m\"{at}"), ..ModelCard::default() };
    let mut endings = [0; Ending::ALL.len()];
    endings[Ending::Succeeded as usize] = 3;
    endings[Ending::Broken as usize] = 1;
    let mut faults = [0; Fault::ALL.len()];
    faults[Fault::Stale as usize] = 7;
    faults[Fault::Lost as usize] = 6;
    BackendStatus {
        spec: Arc::new(BackendSpec {
            upstream: 0,
            address: Address::Unix("/a\"b".to_string()),
            authority: "a".to_string(),
            prefix: String::new(),
            labels: Labels { weight: 50, drain: false },
        }),
        state: "down",
        why: Some(Finding::Status(404)),
        takes: true,
        rests: false,
        draining: true,
        version: Some("0.33.0".into()),
        models: models.map(|count| (0..count).map(card).collect()),
        in_flight: 1,
        in_flight_elsewhere: 2,
        queued_tokens: 3,
        resident_tokens: 4,
        cache_tokens: Some(5),
        endings,
        faults,
        failures: 6,
        tokens: Tokens { prompt: 300, predicted: 200, reported: 100 },
        sent_tokens: 400,
        sent_predicted_tokens: 250,
        recent: recent(),
    }
}

pub(in crate::wire) fn told(status: &Status) -> Value {
    serde_json::from_slice(&status.text()).expect("it is JSON")
}

fn recent_json(requests: u64) -> Value {
    json!({
        "seconds": 31,
        "requests": requests,
        "failures": requests,
        "requests_per_second": (requests as f64 / 31.0 * 1_000.0).round() / 1_000.0,
        "first_byte_p50_ms": null,
        "first_byte_p95_ms": null,
        "predicted_ratio": 0.5,
        "reported_ratio": 0.25,
    })
}

#[test]
fn a_backend_is_told_of() {
    let status = Status { now: now(), backends: vec![backend(Some(2))], ..Status::default() };
    let expected = json!({
        "address": "unix:/a\"b",
        "upstream": "unix:///a\"b",
        "weight": 0.5,
        "draining": true,
        "state": "down",
        "why": "/health says 404",
        "rests": false,
        "version": "0.33.0",
        "models": ["m\"0", "m\"1"],
        "in_flight": 1,
        "in_flight_elsewhere": 2,
        "queued_tokens": 3,
        "resident_tokens": 4,
        "cache_tokens": 5,
        "requests": 4,
        "failures": 6,
        "statuses": {
            "1xx": 0, "2xx": 3, "3xx": 0, "4xx": 0, "5xx": 0, "other": 0,
            "client_gone": 0, "broken": 1, "timeout": 0,
        },
        "errors": {
            "connect": 0, "stale": 7, "lost": 6, "cut": 0, "nonsense": 0, "status": 0,
            "error_event": 0, "unlisted": 0, "timeout": 0,
        },
        "last_failure": { "reason": "lost", "age_seconds": 1 },
        "cache": {
            "prompt_tokens": 300,
            "predicted_tokens": 200,
            "reported_tokens": 100,
            "predicted_ratio": 0.667,
            "reported_ratio": 0.333,
            "sent_prompt_tokens": 400,
            "sent_predicted_tokens": 250,
        },
        "recent": recent_json(1),
    });
    assert_eq!(told(&status)["backends"], json!([expected]));
}

/// One in which everything is there.
pub(in crate::wire) fn whole() -> Status {
    let mut totals = Totals::default();
    totals.endings[Ending::Succeeded as usize] = 20;
    totals.endings[Ending::ClientGone as usize] = 1;
    totals.retries[Fault::NoSocket as usize] = 2;
    totals.refused[2] = 3;
    totals.own[0] = 4;
    totals.failures = 5;
    totals.log_entries_dropped = 6;
    let mut down = backend(Some(1));
    down.takes = false;
    Status {
        now: now(),
        build: Build { version: "1.2.3", commit: "abc", features: &["a", "b"], runtime: "smol" },
        epoch_micros: 1_500_000_000_900_000,
        totals,
        draining: false,
        body_bytes: 7,
        waits: Waits { count: 14, longest: Duration::from_micros(15) },
        index: Some(IndexStatus { entries: 8, entries_max: 9 }),
        sharing: Some(SharingFacts {
            proxy: 0xab,
            alive: 2,
            alone: true,
            missed: 10,
            dropped_chunks: 13,
            connected: false,
            lag: Some(Duration::from_micros(1_250)),
            lost_batches: 11,
            unreadable: 12,
            reason: Some("connection refused".into()),
        }),
        backends: vec![backend(Some(2)), down, backend(None)],
    }
}

#[test]
fn the_whole_is_told_of() {
    let mut told = told(&whole());
    assert_eq!(told["backends"][2]["models"], Value::Null, "that is for those with a key");
    told["backends"] = json!(told["backends"].as_array().map(Vec::len));
    let expected = json!({
        "build": { "version": "1.2.3", "commit": "abc", "features": "a,b", "runtime": "smol" },
        "started_at_unix_seconds": 1_500_000_000,
        "uptime_seconds": 61,
        "draining": false,
        "request_body_bytes": 7,
        "engine": { "waits": 14, "longest_wait_us": 15 },
        "totals": {
            "requests": 21,
            "in_flight": 3,
            "retries": 2,
            "refusals": 3,
            "own_answers": 4,
            "failures": 5,
            "log_entries_dropped": 6,
        },
        "statuses": {
            "1xx": 0, "2xx": 20, "3xx": 0, "4xx": 0, "5xx": 0, "other": 0,
            "client_gone": 1, "broken": 0, "timeout": 0,
        },
        "retries": {
            "connect": 0, "no_socket": 2, "stale": 0, "lost": 0, "cut": 0, "nonsense": 0,
            "status": 0, "error_event": 0, "unlisted": 0, "elsewhere": 0, "timeout": 0,
        },
        "refusals": {
            "unknown_model": 0, "unknown_backend": 0, "ambiguous": 3, "model_down": 0, "drained": 0, "foreign": 0,
            "starting": 0, "busy": 0, "unasked": 0, "no_answer": 0, "timeout": 0,
            "bad_request": 0, "too_large": 0, "slow_client": 0,
        },
        "own_answers": { "answer": 4, "status": 0, "merged": 0 },
        "recent": recent_json(3),
        "models": [
            { "name": "m\"0", "up": 1, "known": 2 },
            { "name": "m\"1", "up": 1, "known": 1 },
        ],
        "index": { "entries": 8, "entries_max": 9 },
        "replicas": {
            "id": "00000000000000ab",
            "alive": 2,
            "alone": true,
            "missed": 10,
            "dropped_chunks": 13,
            "lost_batches": 11,
            "unreadable": 12,
        },
        "redis": {
            "configured": true,
            "connected": false,
            "reason": "connection refused",
            "lag_ms": 1.25,
        },
        "backends": 3,
    });
    assert_eq!(told, expected);
}

#[test]
fn nothing_is_known() {
    let told = told(&Status::default());
    assert_eq!((&told["index"], &told["replicas"]), (&Value::Null, &Value::Null));
    assert_eq!((&told["models"], &told["backends"]), (&json!([]), &json!([])));
    assert_eq!(told["recent"]["requests_per_second"], 0.0);
    assert_eq!(told["recent"]["reported_ratio"], Value::Null);
    let redis = json!({ "configured": false, "connected": false, "reason": null, "lag_ms": null });
    assert_eq!(told["redis"], redis);
}

#[test]
fn names_have_a_limit() {
    let mut backends = vec![backend(Some(10_000)); 20];
    for (at, backend) in backends.iter_mut().enumerate() {
        let card = |number| ModelCard { id: format!("{at}-{number}"), ..ModelCard::default() };
        backend.models = Some((0..10_000).map(card).collect());
    }
    let told = told(&Status { backends, ..Status::default() });
    let len = |value: &Value| value.as_array().map(Vec::len);
    assert_eq!(len(&told["backends"][1]["models"]), Some(MODELS_MAX));
    assert_eq!(len(&told["models"]), Some(MODELS_OF_FLEET_MAX));
}
