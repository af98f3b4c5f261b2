//! The demo: what its page promises holds.

use crate::server::{Demo, Mock};
use serde_json::json;
use std::process::{Command, Stdio};

#[test]
fn three_servers_answer_through_one_proxy() {
    let demo = Demo::start();
    let list = demo.proxy.get("/v1/models").json();
    let models: Vec<_> =
        list["data"].as_array().expect("cards").iter().map(|card| card["id"].clone()).collect();
    assert_eq!(models, [json!("demo/chat-8b"), json!("demo/code-32b")]);
    for (path, body, status) in &demo.requests {
        let answer = demo.proxy.post(path, body);
        assert_eq!(answer.status, *status, "{path} {body}: {}", answer.text());
        assert!(answer.complete);
    }
    // Of three times one server answers twice, and has read the prompt before.
    let (path, long, _) =
        demo.requests.iter().find(|(_, body, _)| body.contains("cache")).expect("it is there");
    let found = |_| {
        let usage = demo.proxy.post(path, long).json()["usage"].clone();
        usage["prompt_tokens_details"]["cached_tokens"].as_u64()
    };
    let found: Vec<_> = (0..3).filter_map(found).collect();
    assert!(found.len() == 3 && found.iter().any(|tokens| *tokens > 0), "{found:?}");
    demo.proxy.interrupt();
    assert_eq!(demo.proxy.exit().code(), Some(0));
}

#[test]
fn a_taken_port_is_told_before_anything_starts() {
    let taken = Mock::start(&[]);
    let port = taken.address.port().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_vllm-proxy"))
        .args(["demo", "--port", &port])
        .stdin(Stdio::null())
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).expect("words");
    assert!(error.contains(&port) && error.contains("taken"), "{error}");
    assert!(output.stdout.is_empty(), "nothing is promised");
}
