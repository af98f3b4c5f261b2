//! Options that change what a server tells of itself, and where it is.

use crate::server::{Mock, PATIENCE, head, post};
use crate::{CHAT, RUNNING, chat};
use rstest::rstest;
use serde_json::json;
use std::time::Instant;

#[rstest]
#[case::counted(&["--load-tracking"], 2)]
#[case::not_counted(&[], 0)]
fn load_is_what_is_in_hand(#[case] options: &[&str], #[case] load: u64) {
    let mock = Mock::start(options);
    let of = || mock.get("/load").json()["server_load"].as_u64().expect("a number");
    let slow = |stream| {
        let body = chat(&format!(r#","stream":{stream},"mock":{{"itl_ms":3600000}}"#));
        mock.send(&post(CHAT, &body))
    };
    let clients = [slow(true), slow(false)];
    mock.await_metric(RUNNING, 2.0);
    assert_eq!(of(), load);
    drop(clients);
    mock.await_metric(RUNNING, 0.0);
    mock.post(CHAT, &chat(""));
    mock.post(CHAT, &chat(r#","stream":true"#));
    // The connection's end is noticed just behind the engine's.
    let start = Instant::now();
    while of() > 0 {
        assert!(start.elapsed() < PATIENCE);
    }
}

#[test]
fn event_sources_can_be_told() {
    let mock = Mock::start(&["--kv-events", "tcp://10.0.0.3:41213"]);
    assert_eq!(
        mock.get("/kv_event_sources").json(),
        json!({"0": {
            "enable_kv_cache_events": true, "publisher": "zmq",
            "endpoint": "tcp://10.0.0.3:41213", "replay_endpoint": null, "buffer_steps": 10_000,
            "hwm": 100_000, "max_queue_size": 100_000, "topic": "",
        }})
    );
}

#[rstest]
#[case::below("/p/version", 200)]
#[case::beside("/version", 200)]
#[case::nearly("/pp/version", 404)]
#[case::itself("/p", 404)]
#[case::locked("/p/v1/models", 401)]
fn a_root_path_is_one_more_way_in(#[case] path: &str, #[case] status: u16) {
    let mock = Mock::start(&["--root-path", "/p", "--api-key", "secret"]);
    assert_eq!(mock.get(path).status, status);
}

#[test]
fn redirects_stay_below_the_root_path() {
    let mock = Mock::start(&["--root-path", "/p"]);
    let answer = mock.get("/p/v1/models/?a=b");
    let location = answer.header("location");
    assert_eq!((answer.status, location), (307, Some("http://mock/p/v1/models?a=b")));
}

#[test]
fn a_server_can_listen_on_a_file() {
    let path = std::env::temp_dir().join(format!("vllm-proxy-mock-{}.sock", std::process::id()));
    let name = path.to_str().expect("it is text");
    let mock = Mock::start(&["--uds", name]);
    assert_eq!(mock.post(CHAT, &chat("")).status, 200);
    let mut client = mock.send(&post(CHAT, &chat(r#","mock":{"itl_ms":3600000}"#)));
    mock.await_metric(RUNNING, 1.0);
    client.half_close();
    mock.await_metric(RUNNING, 0.0);
    client.end().expect("that a client leaves is seen here too");
    let mut twice = mock.send(&head("GET", "/version", "", None));
    twice.answer();
    twice.send(&head("GET", "/version", "", None));
    assert_eq!(twice.answer().status, 200);
    mock.interrupt();
    assert_eq!(mock.exit().code(), Some(0));
    assert!(!path.exists(), "it is gone with the server");
}
