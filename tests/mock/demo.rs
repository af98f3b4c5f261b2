//! The demo: what its page promises holds.

use crate::server::{Demo, Mock};
use rustix::process::Signal;
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
    // What it has in hand until its end is known counts against a server that has read the prompt.
    while demo.proxy.get("/proxy/status").json()["totals"]["in_flight"] != json!(0) {}
    let (path, long, _) =
        demo.requests.iter().find(|(_, body, _)| body.contains("cache")).expect("it is there");
    let usage = demo.proxy.post(path, long).json()["usage"].clone();
    let found = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert!(found > Some(0), "the same prompt once more: {usage}");
    demo.proxy.interrupt();
    assert_eq!(demo.proxy.exit().code(), Some(0));
}

#[test]
fn it_ends_with_its_terminal() {
    let demo = Demo::start();
    demo.proxy.signal(Signal::HUP);
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
