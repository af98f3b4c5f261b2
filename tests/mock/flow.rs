//! What happens when: timing, queueing, clients that leave, many at once.

use crate::server::{Client, Mock, head, post};
use crate::{CHAT, COMPLETIONS, RUNNING, chat};
use rstest::rstest;
use std::time::{Duration, Instant};

const WAITING: &str = r#"vllm:num_requests_waiting{engine="0",model_name="tiny"}"#;
const ABORTED: &str =
    r#"vllm:request_success_total{engine="0",finished_reason="abort",model_name="tiny"}"#;

#[test]
fn the_head_leaves_before_the_prompt_is_read_and_events_leave_one_by_one() {
    let stream = |mock: &Mock, fields: &str| {
        let body = format!(r#"{{"prompt":"hi","stream":true{fields}}}"#);
        let mut client = mock.send(&post(COMPLETIONS, &body));
        client.head().expect("an answer");
        client
    };
    let mock = Mock::start(&["--ttft-ms", "300", "--itl-ms", "100", "--tokens", "4"]);
    // The first token is due in an hour, and then the second is: nothing is held back for them.
    stream(&mock, r#","mock":{"ttft_ms":3600000}"#);
    let mut first = stream(&mock, r#","mock":{"ttft_ms":0,"itl_ms":3600000}"#);
    first.chunk().expect("a token");
    assert!(first.silent(Duration::from_millis(50)));
    // Nothing leaves early.
    let start = Instant::now();
    let mut client = stream(&mock, "");
    let arrivals: Vec<_> = std::iter::from_fn(|| {
        let chunk = client.chunk().expect("an unbroken stream");
        (!chunk.is_empty()).then(|| start.elapsed())
    })
    .collect();
    assert_eq!(arrivals.len(), 5);
    for (index, at) in arrivals.iter().take(4).enumerate() {
        let due = Duration::from_millis(300 + 100 * index as u64);
        assert!(*at >= due, "token {index} at {at:?}");
    }
}

#[test]
fn prompts_are_read_one_at_a_time() {
    let mock = Mock::start(&["--prefill-tps", "1"]);
    let clients: Vec<_> =
        (0..3).map(|_| mock.send(&post(CHAT, &chat(r#","stream":true"#)))).collect();
    mock.await_metric(WAITING, 2.0);
    assert_eq!(mock.metric(RUNNING), 1.0);
    drop(clients);
    mock.await_metric(WAITING, 0.0);
    mock.await_metric(RUNNING, 0.0);
}

#[test]
fn what_a_request_orders_holds_whatever_the_machine_does() {
    let mock = Mock::start(&["--prefill-tps", "1", "--itl-ms", "3600000", "--ttft-ms", "3600000"]);
    let answer = mock.post(CHAT, &chat(r#","mock":{"ttft_ms":0,"itl_ms":0}"#)).json();
    assert_eq!(answer["usage"]["completion_tokens"], 64, "at once");
}

#[rstest]
#[case::stream_in_prefill(r#","stream":true,"mock":{"ttft_ms":3600000}"#, 0)]
#[case::stream_between_tokens(r#","stream":true,"mock":{"itl_ms":3600000}"#, 2)]
#[case::plain(r#","mock":{"itl_ms":3600000}"#, 0)]
fn a_client_that_leaves_ends_its_request(
    #[case] fields: &str,
    #[case] chunks: usize,
    #[values(false, true)] half_close: bool,
) {
    let mock = Mock::start(&[]);
    let mut client = mock.send(&post(CHAT, &chat(fields)));
    mock.await_metric(RUNNING, 1.0);
    if chunks > 0 {
        client.head().expect("an answer");
    }
    for _ in 0..chunks {
        client.chunk().expect("a chunk");
    }
    assert_eq!(mock.metric(ABORTED), 0.0);
    let keep: Option<Client> = if half_close {
        client.half_close();
        Some(client)
    } else {
        drop(client);
        None
    };
    let took = mock.await_metric(RUNNING, 0.0);
    println!("the request ended {took:?} after its client");
    assert_eq!(mock.metric(ABORTED), 1.0);
    drop(keep);
}

#[test]
fn two_thousand_streams_at_once() {
    let streams = descriptors().saturating_sub(100).min(2_000);
    let options =
        ["--tokens", "10", "--itl-ms", "20", "--max-num-seqs", "2000", "--prefill-tps", "0"];
    let mock = Mock::start(&options);
    let stalled = post(CHAT, &chat(r#","stream":true,"mock":{"fail":"stall"}"#));
    let clients: Vec<_> = (0..streams).map(|_| mock.send(&stalled)).collect();
    mock.await_metric(RUNNING, streams as f64);
    drop(clients);
    mock.await_metric(RUNNING, 0.0);

    let whole = post(CHAT, &chat(r#","stream":true"#));
    let clients: Vec<_> = (0..streams).map(|_| mock.send(&whole)).collect();
    for mut client in clients {
        let answer = client.answer();
        assert!(answer.complete && answer.text().ends_with("data: [DONE]\n\n"), "{answer:?}");
    }
}

/// How many descriptors this process and its children may have, now that it has asked for all.
fn descriptors() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize)
}

#[test]
fn an_idle_connection_is_closed_after_five_seconds() {
    let mock = Mock::start(&[]);
    let start = Instant::now();
    let mut client = mock.send(&head("GET", "/version", "", None));
    client.answer();
    client.end().expect("an orderly close");
    let idle = start.elapsed();
    assert!(idle >= Duration::from_secs(5), "{idle:?}");
}
