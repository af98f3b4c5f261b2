//! Faults: as a request orders them, as options make them likely, and the server's end.

use crate::server::{Mock, post};
use crate::{CHAT, HELLO, MESSAGES, RESPONSES, RUNNING, chat};
use rstest::rstest;
use std::io::ErrorKind;
use std::time::Duration;

#[test]
fn a_request_can_order_an_error() {
    let mock = Mock::start(&[]);
    let answer = mock.post(CHAT, &chat(r#","stream":true,"mock":{"fail":503}"#));
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["error"]["type"], "Service Unavailable");
    let answer = mock.post(CHAT, &chat(r#","mock":{"fail":"500"}"#));
    assert_eq!(
        answer.text(),
        r#"{"error":{"message":"Internal server error","type":"InternalServerError","param":null,"code":500}}"#
    );
    let body = format!(r#"{{"model":"tiny","max_tokens":1,{HELLO},"mock":{{"fail":500}}}}"#);
    assert_eq!(
        mock.post(MESSAGES, &body).text(),
        r#"{"type":"error","error":{"type":"api_error","message":"Internal server error"}}"#
    );
}

#[test]
fn a_request_can_order_silence() {
    let mock = Mock::start(&[]);
    for fields in [r#","mock":{"fail":"hang"}"#, r#","stream":true,"mock":{"fail":"hang"}"#] {
        let mut client = mock.send(&post(CHAT, &chat(fields)));
        assert!(client.silent(Duration::from_millis(100)));
    }
}

#[test]
fn a_request_can_order_the_connections_end() {
    let mock = Mock::start(&[]);
    let mut client = mock.send(&post(CHAT, &chat(r#","mock":{"fail":"close"}"#)));
    client.end().expect("an orderly close");
    let mut client = mock.send(&post(CHAT, &chat(r#","mock":{"fail":"reset"}"#)));
    assert_eq!(client.end().expect_err("a reset").kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_request_can_order_a_broken_answer() {
    let mock = Mock::start(&["--tokens", "8"]);
    let cut = mock.post(CHAT, &chat(r#","stream":true,"mock":{"fail":"cut"}"#));
    assert_eq!((cut.status, cut.complete), (200, false));
    assert_eq!(cut.chunks.len(), 1 + 4, "the role and half of the tokens");
    let cut = mock.post(CHAT, &chat(r#","stream":true,"mock":{"fail":"cut","after":0}"#));
    assert_eq!((cut.status, cut.complete, cut.chunks.len()), (200, false, 0));
    let cut = mock.post(CHAT, &chat(r#","stream":true,"mock":{"fail":"cut","after":8}"#));
    assert_eq!((cut.complete, cut.chunks.len()), (false, 9), "all but the end");
    let cut = mock.post(CHAT, &chat(r#","mock":{"fail":"cut"}"#));
    assert_eq!((cut.status, cut.complete), (200, false));
    assert!(cut.text().starts_with(r#"{"id":"chatcmpl-rid""#));
}

#[rstest]
#[case::stream(r#","stream":true,"mock":{"fail":"stall","after":1}"#)]
#[case::plain(r#","mock":{"fail":"stall"}"#)]
fn a_request_can_order_an_answer_that_stalls(#[case] fields: &str) {
    let mock = Mock::start(&[]);
    let mut client = mock.send(&post(CHAT, &chat(fields)));
    let (_, headers) = client.head().expect("an answer");
    if fields.contains("stream") {
        // The role and one token.
        client.chunk().expect("a chunk");
        client.chunk().expect("a chunk");
    } else {
        client.half_a_body(&headers);
    }
    assert!(client.silent(Duration::from_millis(100)));
}

#[test]
fn a_request_can_order_an_error_event() {
    let mock = Mock::start(&[]);
    let event = mock.post(CHAT, &chat(r#","stream":true,"mock":{"fail":"event"}"#));
    assert_eq!((event.status, event.complete), (200, true));
    assert_eq!(
        event.text(),
        "data: {\"error\": {\"message\": \"Internal server error\", \"type\": \
         \"InternalServerError\", \"param\": null, \"code\": 500}}\n\ndata: [DONE]\n\n"
    );
    let late = mock.post(CHAT, &chat(r#","stream":true,"mock":{"fail":"event","after":2}"#));
    assert_eq!(late.chunks.len(), 1 + 2 + 2, "role, tokens, error, end");
    let plain = mock.post(CHAT, &chat(r#","mock":{"fail":"event"}"#));
    assert_eq!(plain.status, 500);
    let body = r#"{"input":"hi","stream":true,"mock":{"fail":"event"}}"#;
    let cut = mock.post(RESPONSES, body);
    assert_eq!((cut.complete, cut.chunks.len()), (false, 2), "this API says nothing, as vLLM's");
}

#[rstest]
#[case::clients_fault(400, "BadRequestError", "invalid_request_error", "failed, as ordered")]
#[case::overload(
    503,
    "InternalServerError",
    "overloaded_error",
    "Generation is paused. Please retry after it resumes."
)]
fn such_an_event_can_have_any_code(
    #[case] status: u16,
    #[case] kind: &str,
    #[case] anthropic: &str,
    #[case] message: &str,
) {
    let mock = Mock::start(&[]);
    let order = format!(r#""stream":true,"mock":{{"fail":"event","status":{status}}}"#);
    let event = mock.post(CHAT, &chat(&format!(",{order}")));
    let expected = format!(
        "data: {{\"error\": {{\"message\": \"{message}\", \"type\": \"{kind}\", \"param\": null, \
         \"code\": {status}}}}}\n\ndata: [DONE]\n\n"
    );
    assert_eq!((event.status, event.text()), (200, expected));
    let event =
        mock.post(MESSAGES, &format!(r#"{{"model":"tiny","max_tokens":1,{HELLO},{order}}}"#));
    let expected = format!(
        "event: error\ndata: {{\"type\":\"error\",\"error\":{{\"type\":\"{anthropic}\",\
         \"message\":\"{message}\"}}}}\n\n"
    );
    assert_eq!((event.status, event.complete, event.text()), (200, true, expected));
}

#[test]
fn a_request_can_order_that_its_model_is_not_there() {
    let answer = Mock::start(&[]).post(CHAT, &chat(r#","mock":{"fail":"unknown_model"}"#));
    let error = r#"{"error":{"message":"The model `tiny` does not exist. Valid aliases: tiny.","type":"NotFoundError","param":"model","code":404}}"#;
    assert_eq!((answer.status, answer.text().as_str()), (404, error));
}

#[test]
fn a_server_can_fail_within_its_streams() {
    let options = ["--fail-rate", "1", "--fail-status", "503", "--fail-in-stream"];
    let mock = Mock::start(&options);
    let event = mock.post(CHAT, &chat(r#","stream":true"#));
    assert_eq!(event.status, 200);
    assert!(event.chunks[0].contains(r#""code": 503"#), "{}", event.text());
    assert_eq!(mock.post(CHAT, &chat("")).status, 503);
}

#[test]
fn a_request_can_end_the_server() {
    let mock = Mock::start(&[]);
    let mut other = mock.send(&post(CHAT, &chat(r#","mock":{"ttft_ms":3600000}"#)));
    mock.await_metric(RUNNING, 1.0);
    let mut client = mock.send(&post(CHAT, &chat(r#","mock":{"fail":"crash"}"#)));
    client.end().expect("its end closes all connections");
    other.end().expect("all of them");
    assert_eq!(mock.exit().code(), Some(1));
}

#[test]
fn a_server_can_be_told_when_to_crash() {
    let mock = Mock::start(&["--crash-at", "2"]);
    assert_eq!(mock.post(CHAT, &chat("")).status, 200);
    assert!(mock.send(&post(CHAT, &chat(""))).head().is_none());
    assert_eq!(mock.exit().code(), Some(1));
}

#[test]
fn a_signal_ends_the_server_in_order() {
    let mock = Mock::start(&[]);
    let mut waiting = mock.send(&post(CHAT, &chat(r#","mock":{"ttft_ms":3600000}"#)));
    mock.await_metric(RUNNING, 1.0);
    mock.interrupt();
    waiting.end().expect("closed");
    assert_eq!(mock.exit().code(), Some(0));
}

#[test]
fn faults_by_chance_follow_from_the_seed() {
    let draw = |options: &[&str]| -> Vec<u16> {
        let mock =
            Mock::start(&[&["--fail-rate", "0.5", "--fail-status", "503"], options].concat());
        (0..40).map(|_| mock.post(CHAT, &chat("")).status).collect()
    };
    let statuses = draw(&[]);
    assert!(statuses.contains(&200) && statuses.contains(&503), "{statuses:?}");
    assert_eq!(statuses, draw(&[]));
    assert_ne!(statuses, draw(&["--seed", "1"]));
}

#[rstest]
#[case::cut("--cut-rate", false)]
#[case::hang("--hang-rate", true)]
fn certain_faults_befall_every_generation_and_nothing_else(
    #[case] option: &str,
    #[case] silent: bool,
) {
    let mock = Mock::start(&[option, "1"]);
    let mut client = mock.send(&post(CHAT, &chat(r#","stream":true"#)));
    if silent {
        assert!(client.silent(Duration::from_millis(100)));
    } else {
        assert!(!client.answer().complete);
    }
    assert_eq!(mock.get("/health").status, 200);
    assert_eq!(mock.post("/tokenize", r#"{"prompt":"x"}"#).status, 200);
    assert_eq!(mock.post(CHAT, &chat(r#","mock":{"fail":"none"}"#)).status, 200);
}
