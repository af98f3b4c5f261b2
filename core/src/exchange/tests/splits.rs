//! Messages pass the same however they are cut, on either side, and whatever lies behind them.

use super::harness::{Bench, Takes};
use super::texts::{http, shown};
use crate::config::{Access, Limits};
use crate::exchange::End;
use alloc::string::String;
use alloc::vec::Vec;
use rstest::rstest;

/// One request, what the backend gets of it, its answer, and what the client gets of that.
struct Case {
    request: String,
    sent: String,
    answer: String,
    received: String,
    /// How the backend ends its answer, if not by its framing.
    ends: Option<End>,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
struct Passed {
    sent: String,
    received: String,
    reusable: bool,
}

fn converse(case: &Case, request: &[&[u8]], answer: &[&[u8]], takes: Takes) -> Passed {
    // Whoever asks may know.
    let access = Access { explains: true, ..Access::default() };
    let mut bench = Bench::with(1, Limits { access, ..Limits::default() }, 0);
    (bench.client_takes, bench.upstream_takes) = (takes, takes);
    for piece in request {
        assert!(bench.exchange.interest().client);
        bench.client(piece);
        bench.flow();
        if bench.connecting {
            bench.connected();
            bench.flow();
        }
    }
    for piece in answer {
        if bench.exchange.interest().upstream {
            bench.backend(piece);
            bench.flow();
        }
    }
    if let Some(end) = case.ends {
        bench.backend_ends(end);
        bench.flow();
    }
    assert!(!bench.exchange.interest().upstream, "the answer did not end");
    let log = bench.transcript();
    let released: Vec<_> = log.iter().filter(|line| line.starts_with("release")).collect();
    assert_eq!(released.len(), 1, "{log:?}");
    let over = |line: &&String| line.starts_with("settle") || line.starts_with("ask again");
    assert_eq!(log.iter().filter(over).count(), 1, "{log:?}");
    bench.abandoned();
    let mut received = core::mem::take(&mut bench.client);
    if case.received.contains("transfer-encoding: chunked") && !case.answer.contains("chunked") {
        received = one_chunk(&received);
    }
    Passed {
        sent: shown(&bench.upstream),
        received: shown(received),
        reusable: released[0].ends_with("reusable"),
    }
}

/// A chunked answer with all its data in one chunk: how we cut an answer that the backend did not
/// cut depends on how it came.
fn one_chunk(answer: &[u8]) -> Vec<u8> {
    let text = core::str::from_utf8(answer).expect("text");
    let (head, mut rest) = text.split_once("\r\n\r\n").expect("a head");
    let mut data = String::new();
    while let Some((size, more)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a chunk size");
        data.push_str(&more[..size]);
        rest = more[size..].strip_prefix("\r\n").expect("a line end behind the data");
        if size == 0 {
            break;
        }
    }
    assert_eq!(rest, "");
    let chunks = match data.len() {
        0 => String::from("0\r\n\r\n"),
        len => alloc::format!("{len:x}\r\n{data}\r\n0\r\n\r\n"),
    };
    alloc::format!("{head}\r\n\r\n{chunks}").into_bytes()
}

/// The two halves at every place.
fn cuts(bytes: &[u8]) -> impl Iterator<Item = [&[u8]; 2]> {
    (1..bytes.len()).map(|at| [&bytes[..at], &bytes[at..]])
}

fn check(case: &Case, reusable: bool) {
    let (request, answer) = (case.request.as_bytes(), case.answer.as_bytes());
    let whole = Passed { sent: shown(&case.sent), received: shown(&case.received), reusable };
    let all = Takes::All;
    assert_eq!(converse(case, &[request], &[answer], all), whole, "whole");
    let requests: Vec<&[u8]> = request.chunks(1).collect();
    let answers: Vec<&[u8]> = answer.chunks(1).collect();
    assert_eq!(converse(case, &requests, &answers, all), whole, "byte by byte");
    for takes in [Takes::Bytes(1), Takes::Bytes(7)] {
        assert_eq!(converse(case, &[request], &[answer], takes), whole, "taken {takes:?}");
        assert_eq!(converse(case, &requests, &answers, takes), whole, "byte by byte, {takes:?}");
    }
    for cut in cuts(request) {
        assert_eq!(converse(case, &cut, &[answer], all), whole, "request at {}", cut[0].len());
    }
    for cut in cuts(answer) {
        assert_eq!(converse(case, &[request], &cut, all), whole, "answer at {}", cut[0].len());
        let few = converse(case, &[request], &cut, Takes::Bytes(3));
        assert_eq!(few, whole, "answer at {}, taken by 3", cut[0].len());
    }
    let mut more = request.to_vec();
    more.extend_from_slice(b"\r\nGET /behind HTTP/1.1\r\nHo");
    assert_eq!(converse(case, &[&more], &[answer], all), whole, "with bytes behind the request");
    if case.ends.is_none() {
        let mut more = answer.to_vec();
        more.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        let surplus = Passed { reusable: false, ..whole };
        assert_eq!(converse(case, &[request], &[&more], all), surplus, "with bytes behind it");
    }
}

const OK: &str = "HTTP/1.1 200 OK|content-length: 2||hi";

#[rstest]
#[case::length(
    "POST /v1/completions HTTP/1.1|Host: h|content-LENGTH: 13|X: 1|x:2||{\"model\":\"m\"}",
    "POST /v1/completions HTTP/1.1|Host: h|content-LENGTH: 13|X: 1|x: 2||{\"model\":\"m\"}"
)]
#[case::no_body("GET /x?y HTTP/1.1|Host: h||", "GET /x?y HTTP/1.1|Host: h||")]
#[case::chunked(
    "POST /v1/completions HTTP/1.1|Host: h|Transfer-Encoding: chunked||4;x=\"y\"|{\"mo|009|del\":\"m\"}|0;z|A: b|Host: no|B:c||",
    "POST /v1/completions HTTP/1.1|Host: h|Transfer-Encoding: chunked||d|{\"model\":\"m\"}|0|A: b|B: c||"
)]
#[case::chunked_empty(
    "POST /v1/completions HTTP/1.1|Host: h|Transfer-Encoding: chunked||0||",
    "POST /v1/completions HTTP/1.1|Host: h|Transfer-Encoding: chunked||0||"
)]
#[case::empty_length(
    "POST /v1/completions HTTP/1.1|Host: h|Content-Length: 0||",
    "POST /v1/completions HTTP/1.1|Host: h|Content-Length: 0||"
)]
#[case::expectation(
    "POST / HTTP/1.1|Host: h|Expect: x|Content-Length: 1||a",
    "POST / HTTP/1.1|Host: h|Expect: x|Content-Length: 1||a"
)]
#[case::empty_lines("||GET / HTTP/1.1|Host: h||", "GET / HTTP/1.1|Host: h||")]
#[case::absolute("GET http://o:1/x HTTP/1.1|Host: h||", "GET /x HTTP/1.1|Host: o:1||")]
#[case::star("OPTIONS * HTTP/1.1|Host: h||", "OPTIONS * HTTP/1.1|Host: h||")]
#[case::hops(
    "GET / HTTP/1.1|Connection: x, te|X: 1|Host: h|TE: trailers||",
    "GET / HTTP/1.1|Host: h||"
)]
fn requests(#[case] request: &str, #[case] sent: &str) {
    let (request, sent) = (http(request), http(sent));
    check(&Case { request, sent, answer: http(OK), received: http(OK), ends: None }, true);
}

#[rstest]
#[case::old("GET / HTTP/1.0||", "GET / HTTP/1.1|Host: b0||", "connection: close")]
#[case::old_keep(
    "GET / HTTP/1.0|Connection: keep-alive|Host: h||",
    "GET / HTTP/1.1|Host: h||",
    "connection: keep-alive"
)]
#[case::old_absolute(
    "GET http://o/ HTTP/1.0|a: b||",
    "GET / HTTP/1.1|Host: o|a: b||",
    "connection: close"
)]
#[case::close(
    "GET / HTTP/1.1|Host: h|Connection: close||",
    "GET / HTTP/1.1|Host: h||",
    "connection: close"
)]
fn connections(#[case] request: &str, #[case] sent: &str, #[case] connection: &str) {
    let (request, sent) = (http(request), http(sent));
    let received = http(&alloc::format!("HTTP/1.1 200 OK|content-length: 2|{connection}||hi"));
    check(&Case { request, sent, answer: http(OK), received, ends: None }, true);
}

#[rstest]
#[case::length(1, "HTTP/1.1 299 Odd|A: 1|Content-Length: 3|a: 2||abc", None)]
#[case::empty(1, "HTTP/1.1 404 Not Found|content-length: 0||", None)]
#[case::chunked(1, "HTTP/1.1 200 OK|Transfer-Encoding: chunked||3|abc|02|de|0||", None)]
#[case::no_content(1, "HTTP/1.1 204 No Content||", None)]
#[case::not_modified(1, "HTTP/1.1 304 Not Modified|content-length: 9||", None)]
#[case::hints(1, "HTTP/1.1 103 Early Hints|link: x||HTTP/1.1 200 OK|content-length: 1||a", None)]
#[case::go_on(1, "HTTP/1.1 100 Continue||HTTP/1.1 103 X||HTTP/1.1 204 X||", None)]
#[case::error_without_another(1, "HTTP/1.1 500 X|content-length: 3||abc", None)]
#[case::busy_without_another(1, "HTTP/1.1 503 X|transfer-encoding: chunked||3|abc|0|t: u||", None)]
#[case::chunked_with_extensions(
    1,
    "HTTP/1.1 200 OK|transfer-encoding: chunked||3;x=y|abc|2;|de|0;z|t: u|Content-Length: 1||",
    Some("HTTP/1.1 200 OK|transfer-encoding: chunked||3|abc|2|de|0|t: u||")
)]
#[case::old_length(
    0,
    "HTTP/1.1 200 OK|content-length: 3||abc",
    Some("HTTP/1.1 200 OK|content-length: 3|connection: close||abc")
)]
#[case::old_chunked(
    0,
    "HTTP/1.1 200 OK|transfer-encoding: chunked|a: b||3|abc|2;x|de|0|t: u||",
    Some("HTTP/1.1 200 OK|connection: close|a: b||abcde")
)]
#[case::old_hints(
    0,
    "HTTP/1.1 103 Early Hints|link: x||HTTP/1.1 204 X||",
    Some("HTTP/1.1 204 X|connection: close||")
)]
fn answers(#[case] minor: u8, #[case] answer: &str, #[case] received: Option<&str>) {
    let request = http(&alloc::format!("GET /x HTTP/1.{minor}|Host: h||"));
    let sent = http("GET /x HTTP/1.1|Host: h||");
    let received = http(received.unwrap_or(answer));
    check(&Case { request, sent, answer: http(answer), received, ends: None }, true);
}

/// What is told of the way to the one backend.
const WAY: &str = "x-vllm-proxy-backend: 10.0.0.0:80|x-vllm-proxy-reason: only|\
    x-vllm-proxy-predicted-cached-tokens: 0|x-vllm-proxy-attempts: 1|";

#[rstest]
#[case::length("GET /x HTTP/1.1", "HTTP/1.1 200 OK|content-length: 3||abc", None)]
#[case::chunked("GET /x HTTP/1.1", "HTTP/1.1 200 OK|transfer-encoding: chunked||3|abc|0||", None)]
#[case::empty("GET /x HTTP/1.1", "HTTP/1.1 204 No Content||", None)]
#[case::hints(
    "GET /x HTTP/1.1",
    "HTTP/1.1 103 Early Hints|link: x||HTTP/1.1 404 X|content-length: 0||",
    Some("HTTP/1.1 103 Early Hints|link: x||HTTP/1.1 404 X|content-length: 0|WAY|")
)]
#[case::last_word("GET /x HTTP/1.1", "HTTP/1.1 503 X|content-length: 3||abc", None)]
#[case::head("HEAD /x HTTP/1.1", "HTTP/1.1 200 OK|content-length: 9||", None)]
#[case::old(
    "GET /x HTTP/1.0",
    "HTTP/1.1 200 OK|transfer-encoding: chunked|a: b||3|abc|0||",
    Some("HTTP/1.1 200 OK|connection: close|a: b|WAY|abc")
)]
#[case::the_backends_own_word(
    "GET /x HTTP/1.1",
    "HTTP/1.1 200 OK|X-vLLM-Proxy-Backend: 1|x-vllm-proxy-attempts: 9|content-length: 0||",
    Some("HTTP/1.1 200 OK|content-length: 0|WAY|")
)]
fn answers_with_their_way(
    #[case] line: &str,
    #[case] answer: &str,
    #[case] received: Option<&str>,
) {
    let request = http(&alloc::format!("{line}|Host: h|x-vllm-proxy-explain: 1||"));
    let line = line.replace("1.0", "1.1");
    let sent = http(&alloc::format!("{line}|Host: h|x-vllm-proxy-explain: 1||"));
    let told = answer.replacen("||", "|WAY|", 1);
    let received = received.unwrap_or(&told).replace("WAY|", &alloc::format!("{WAY}|"));
    check(
        &Case { request, sent, answer: http(answer), received: http(&received), ends: None },
        true,
    );
}

#[rstest]
#[case::until_close(
    1,
    "HTTP/1.1 200 OK|a: b||abc",
    "HTTP/1.1 200 OK|a: b|transfer-encoding: chunked||3|abc|0||"
)]
#[case::until_close_empty(
    1,
    "HTTP/1.1 200 OK||",
    "HTTP/1.1 200 OK|transfer-encoding: chunked||0||"
)]
#[case::until_close_error(
    1,
    "HTTP/1.0 500 X||abc",
    "HTTP/1.1 500 X|transfer-encoding: chunked||3|abc|0||"
)]
#[case::old_until_close(0, "HTTP/1.0 200 OK||abc", "HTTP/1.1 200 OK|connection: close||abc")]
#[case::old_until_close_error(0, "HTTP/1.0 503 X||abc", "HTTP/1.1 503 X|connection: close||abc")]
fn answers_that_end_by_closing(#[case] minor: u8, #[case] answer: &str, #[case] received: &str) {
    let request = http(&alloc::format!("GET /x HTTP/1.{minor}|Host: h||"));
    let sent = http("GET /x HTTP/1.1|Host: h||");
    let (answer, received) = (http(answer), http(received));
    check(&Case { request, sent, answer, received, ends: Some(End::Closed) }, false);
}

#[rstest]
#[case::length(1, "HTTP/1.1 200 OK|content-length: 9||", None)]
#[case::chunked(1, "HTTP/1.1 200 OK|transfer-encoding: chunked||", None)]
#[case::neither(1, "HTTP/1.1 200 OK|a: b||", None)]
#[case::error(1, "HTTP/1.1 500 X|content-length: 9||", None)]
#[case::old_length(
    0,
    "HTTP/1.1 200 OK|content-length: 9||",
    Some("HTTP/1.1 200 OK|content-length: 9|connection: close||")
)]
// RFC 9112 section 6.1: no Transfer-Encoding for a client that is not known to read it.
#[case::old_chunked(
    0,
    "HTTP/1.1 200 OK|transfer-encoding: chunked||",
    Some("HTTP/1.1 200 OK|connection: close||")
)]
fn answers_to_head(#[case] minor: u8, #[case] answer: &str, #[case] received: Option<&str>) {
    let request = http(&alloc::format!("HEAD /x HTTP/1.{minor}|Host: h||"));
    let sent = http("HEAD /x HTTP/1.1|Host: h||");
    let received = http(received.unwrap_or(answer));
    check(&Case { request, sent, answer: http(answer), received, ends: None }, true);
}
