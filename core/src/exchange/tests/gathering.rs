//! What several backends hear, what a backend keeps, and answers that are not the last word.

use super::harness::Bench;
use super::texts::{http, shown};
use crate::exchange::Drain;
use rstest::rstest;
use std::format;
use std::string::String;

const SLEEP: &str = "POST /sleep?level=1 HTTP/1.1|Host: h|X: y|Content-Length: 0||";
const SLEEPS: &str = "HTTP/1.1 200 OK|date: d|content-length: 2|content-type: text/plain||ok";

/// A request that several hear, asked.
fn gathering(backends: u32, request: &str) -> Bench {
    let mut bench = Bench::new(backends);
    bench.client(http(request));
    let seconds = if request.starts_with("POST") { 3_600 } else { 5 };
    bench.expect(&["ask", &format!("gather {backends} within {seconds} s")]);
    bench
}

#[rstest]
#[case::in_one_piece(usize::MAX)]
#[case::byte_by_byte(1)]
#[case::by_seven(7)]
fn equal_answers_are_one(#[case] pieces: usize) {
    let mut bench = gathering(3, SLEEP);
    for backend in [2, 0, 1] {
        assert_eq!(bench.errand(backend), SLEEP);
        bench.replies(backend, Some(&http(SLEEPS)), pieces);
    }
    bench.expect(&["heard 3".into(), format!("send client {SLEEPS}")]);
    bench.idle();
}

#[rstest]
#[case::length("content-length: 2||hi", "content-length: 2||hi")]
#[case::chunks("transfer-encoding: chunked||1|h|1|i|0||", "transfer-encoding: chunked||2|hi|0||")]
#[case::until_it_closes("x: y||hi", "x: y|transfer-encoding: chunked||2|hi|0||")]
#[case::no_body("content-length: 0||", "content-length: 0||")]
#[case::empty_chunks("transfer-encoding: chunked||0||", "transfer-encoding: chunked||0||")]
#[case::informed_first("content-length: 2||hi", "content-length: 2||hi")]
fn the_only_answer_passes_as_it_is(#[case] said: &str, #[case] passed: &str) {
    for pieces in [1, 2, 3, usize::MAX] {
        let mut bench = gathering(1, SLEEP);
        let before = if said == passed { "HTTP/1.1 103 Early Hints|a: b||" } else { "" };
        bench.replies(0, Some(&http(&format!("{before}HTTP/1.1 418 Odd|{said}"))), pieces);
        bench.expect(&["heard 1".into(), format!("send client HTTP/1.1 418 Odd|{passed}")]);
        bench.idle();
    }
}

#[test]
fn a_chunked_request_reaches_all_as_it_is_sent() {
    let mut bench = Bench::new(2);
    bench.client(http("POST /sleep HTTP/1.1|Host: h|Transfer-Encoding: chunked||1|a|2|bc|0||"));
    bench.skip();
    for backend in 0..2 {
        let expected = "POST /sleep HTTP/1.1|Host: h|Transfer-Encoding: chunked||3|abc|0||";
        assert_eq!(bench.errand(backend), expected);
        bench.replies(backend, Some(&http(SLEEPS)), usize::MAX);
    }
    bench.skip();
    bench.idle();
}

#[test]
fn a_backend_that_only_informs_has_no_answer() {
    for pieces in [1, 7, usize::MAX] {
        let mut bench = gathering(2, SLEEP);
        bench.replies(0, Some(&http(SLEEPS)), usize::MAX);
        let endless = "HTTP/1.1 100 Continue||".repeat(17);
        bench.replies(1, Some(&http(&endless)), pieces);
        let sent = shown(&bench.client);
        assert!(sent.contains("the answer is not HTTP/1.1"), "{sent}");
        bench.skip();
        bench.idle();
    }
}

#[test]
fn an_old_client_is_told_nothing_of_chunks() {
    let mut bench = gathering(1, "POST /sleep HTTP/1.0|Connection: keep-alive||");
    bench.replies(0, Some(&http("HTTP/1.1 204 No Content|transfer-encoding: chunked||")), 1);
    let sent = shown(&bench.client);
    assert!(sent.starts_with("HTTP/1.1 204 No Content|") && !sent.contains("chunked"), "{sent}");
    bench.skip();
}

#[rstest]
#[case::nobody_there(None)]
#[case::no_http(Some("SSH-2.0||"))]
#[case::cut(Some("HTTP/1.1 200 OK|content-length: 3||hi"))]
#[case::silent(Some("HTTP/1.1 200"))]
#[case::switches(Some("HTTP/1.1 101 Switching Protocols||"))]
fn a_partial_failure_is_told(#[case] said: Option<&str>) {
    let mut bench = gathering(2, SLEEP);
    bench.replies(0, Some(&http(SLEEPS)), usize::MAX);
    bench.replies(1, said.map(http).as_deref(), usize::MAX);
    let sent = shown(&bench.client);
    assert!(sent.starts_with("HTTP/1.1 502 Bad Gateway|"), "{sent}");
    assert!(sent.contains("1 of 2"), "{sent}");
    bench.skip();
    bench.idle();
}

#[test]
fn a_client_that_leaves_takes_all_questions_back() {
    let mut bench = gathering(2, SLEEP);
    bench.client_leaves();
    bench.expect(&["release", "close"]);
    assert!(bench.errands.is_empty());
}

#[test]
fn errands_that_do_not_end_are_given_up() {
    let mut bench = gathering(2, "GET /load HTTP/1.1|Host: h||");
    bench.replies(0, Some(&http(SLEEPS)), usize::MAX);
    bench.secs(6);
    let sent = shown(&bench.client);
    assert!(sent.starts_with("HTTP/1.1 504 Gateway Timeout|"), "{sent}");
    assert!(bench.errands.is_empty());
    bench.skip();
}

#[test]
fn an_adapter_that_was_loaded_is_remembered() {
    for (path, body, of) in [
        ("/v1/load_lora_adapter", r#"{"lora_name":"x"}"#, " of x"),
        ("/v1/load_lora_adapter?vllm_proxy_backend=10.0.0.0:80", r#"{"lora_name":"x"}"#, ""),
        ("/v1/unload_lora_adapter", r#"{"lora_name":"x"}"#, " of x"),
        ("/adapters", r#"{"name":"x"}"#, ""),
    ] {
        let mut bench = Bench::new(1);
        let head = format!("POST {path} HTTP/1.1|Host: h|Content-Length: {}||", body.len());
        bench.client(http(&head) + body);
        bench.skip();
        bench.replies(0, Some(&http(SLEEPS)), usize::MAX);
        let sent = format!("send client {SLEEPS}");
        let kept = format!("unreserve {}", body.len());
        bench.expect(&[format!("heard 1{of}"), sent, kept]);
        bench.idle();
    }
}

#[test]
fn the_next_request_waits_for_the_answer() {
    let mut bench = gathering(1, "GET /load HTTP/1.1|Host: h||");
    bench.client(http("GET /version HTTP/1.1|Host: h||"));
    bench.replies(0, Some(&http(SLEEPS)), usize::MAX);
    let sent = shown(&bench.client);
    assert!(sent.starts_with(SLEEPS) && sent.contains("0.33.0"), "{sent}");
    bench.skip();
    bench.idle();
}

#[test]
fn a_draining_connection_ends_behind_the_answer() {
    let mut bench = Bench::new(1);
    bench.drain(Drain::Grace);
    bench.client(http("GET /load HTTP/1.1|Host: h||"));
    bench.skip();
    bench.replies(0, Some(&http(SLEEPS)), usize::MAX);
    let passed = SLEEPS.replace("||ok", "|connection: close||ok");
    bench.expect(&["heard 1".into(), format!("send client {passed}"), "close".into()]);
}

#[test]
fn metrics_are_asked_for_in_one_form() {
    let mut bench = gathering(
        2,
        "GET /metrics?x=y HTTP/1.1|Host: h|Accept: application/openmetrics-text|\
         Accept-Encoding: gzip|Authorization: Bearer k||",
    );
    let asked = "GET /metrics?x=y HTTP/1.1|Host: h|Authorization: Bearer k|\
         accept: text/plain;version=0.0.4||";
    assert_eq!(bench.errand(0), asked);
    let page = "# TYPE a gauge\na 1\n";
    let reply = format!("HTTP/1.1 200 OK|content-length: {}||{page}", page.len());
    bench.replies(0, Some(&http(&reply)), usize::MAX);
    bench.replies(1, None, 0);
    let sent = String::from_utf8(core::mem::take(&mut bench.client)).expect("text");
    assert!(sent.contains("content-type: text/plain; version=1.0.0; charset=utf-8\r\n"));
    assert!(sent.contains("a{backend=\"10.0.0.0:80\"} 1\n"), "{sent}");
    assert!(sent.contains("vllm_proxy_backend_up{backend=\"10.0.0.1:80\"} "), "{sent}");
    bench.skip();
    bench.idle();
}

const MADE: &str = "HTTP/1.1 200 OK|content-length: 15||{\"id\":\"resp_1\"}";

/// A response is created at backend 0, of two, and found again.
#[test]
fn a_response_is_found_where_it_was_made() {
    let mut bench = Bench::new(2);
    let body = r#"{"model":"m"}"#;
    bench.client(http(&format!(
        "POST /v1/responses HTTP/1.1|Host: h|Content-Length: {}||{body}",
        body.len()
    )));
    bench.skip();
    bench.connected();
    bench.skip();
    bench.backend(http(MADE));
    bench.expect(&[
        "owns 0 resp_1".into(),
        format!("send client {MADE}"),
        "release reusable".into(),
        "settle Done(200)".into(),
        "unreserve 13".into(),
    ]);
    for target in ["GET /v1/responses/resp_1", "POST /v1/responses/resp_1/cancel"] {
        bench.client(http(&format!("{target} HTTP/1.1|Host: h||")));
        let fresh = if target.starts_with("POST") { " fresh" } else { "" };
        bench.expect(&["ask".into(), format!("connect 0{fresh}")]);
        bench.connected();
        bench.skip();
        bench.backend(http(MADE));
        bench.skip();
    }
    bench.idle();
}

const GONE: &str = "HTTP/1.1 404 Not Found|content-length: 2||no";

#[test]
fn a_response_nobody_knows_is_asked_of_all() {
    let mut bench = Bench::new(3);
    bench.client(http("GET /v1/responses/resp_2 HTTP/1.1|Host: h||"));
    bench.expect(&["ask", "connect 0"]);
    for next in [1, 2] {
        bench.connected();
        bench.skip();
        bench.backend(http(GONE));
        let next = format!("connect {next}");
        bench.expect(&["release reusable", "ask again Elsewhere", &next]);
    }
    bench.connected();
    bench.skip();
    bench.backend(http(GONE));
    bench.expect(&[
        "release reusable".into(),
        "ask again Elsewhere".into(),
        format!("send client {GONE}"),
    ]);
    bench.idle();
}

const UNKNOWN: &str =
    "HTTP/1.1 404 Not Found|content-length: 32||The model `m` does not exist. :-(";

#[test]
fn a_model_that_one_backend_does_not_know_is_asked_of_another() {
    let unknown = http(&UNKNOWN.replace("32", "33"));
    let mut bench = Bench::new(2);
    bench.client(super::texts::POST);
    bench.skip();
    bench.connected();
    bench.skip();
    bench.backend(&unknown);
    bench.expect(&["release reusable", "ask again Unlisted", "connect 1"]);
    bench.connected();
    bench.skip();
    bench.backend(&unknown);
    bench.expect(&[
        "release reusable".into(),
        "ask again Unlisted".into(),
        format!("send client {}", shown(&unknown)),
        "unreserve 13".into(),
    ]);
    bench.idle();
}

#[test]
fn another_404_passes() {
    let mut bench = Bench::new(2);
    bench.client(super::texts::POST);
    bench.skip();
    bench.connected();
    bench.skip();
    bench.backend(http(GONE));
    bench.expect(&[
        format!("send client {GONE}"),
        "release reusable".into(),
        "settle Done(404)".into(),
        "unreserve 13".into(),
    ]);
    bench.idle();
}
