//! What clients send: taken, refused, answered without a backend, waited for.

use super::harness::{Bench, Takes};
use super::texts::{GET, OK, POST, http, shown};
use crate::config::Limits;
use crate::tally::Refused;
use crate::time::Duration;
use rstest::rstest;
use std::format;
use std::string::String;
use std::vec::Vec;

/// A small world, so that limits are near.
fn tight() -> Limits {
    Limits {
        head_bytes_max: 200,
        target_bytes_max: 50,
        headers_max: 3,
        body_bytes_max: 20,
        ..Limits::default()
    }
}

/// Feeds `bytes` whole, at every split, byte by byte and with bytes behind them: the answer is the
/// same, the connection ends with it, and no backend hears of it.
fn refused(bytes: &[u8], status: u16, message: &str) {
    let feed = |pieces: &[&[u8]]| {
        let mut bench = Bench::with(1, tight(), 0);
        for piece in pieces {
            bench.client(piece);
        }
        let received = shown(&bench.client);
        let counted = bench.engine.totals().refused;
        assert_eq!(counted.iter().sum::<u64>(), 1);
        assert_eq!(counted[Refused::unread(status) as usize], 1);
        assert!(!bench.transcript().iter().any(|line| line == "ask"));
        bench.secs(2);
        bench.expect(&["close"]);
        bench.over();
        received
    };
    let mut bench = Bench::with(1, tight(), 0);
    bench.client(bytes);
    let answer = bench.error(status, message);
    let mut log = bench.transcript();
    log.retain(|line| !line.contains("reserve"));
    assert_eq!(log, [format!("send client {answer}"), String::from("shutdown")]);
    // What still comes is dropped, for a moment.
    bench.client("x");
    bench.expect::<&str>(&[]);
    bench.wait(Duration::from_millis(1_999));
    bench.expect::<&str>(&[]);
    bench.wait(Duration::from_millis(1));
    bench.expect(&["close"]);
    bench.over();
    assert_eq!(feed(&bytes.chunks(1).collect::<Vec<_>>()), answer, "byte by byte");
    for at in 1..bytes.len() {
        assert_eq!(feed(&[&bytes[..at], &bytes[at..]]), answer, "at {at}");
    }
    assert_eq!(feed(&[bytes, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"]), answer, "with bytes behind");
}

#[rstest]
#[case::no_host("GET / HTTP/1.1||", 400, "the Host header is missing")]
#[case::two_hosts("GET / HTTP/1.1|Host: a|Host: a||", 400, "there is more than one Host header")]
#[case::both(
    "POST / HTTP/1.1|Host: h|Content-Length: 1|Transfer-Encoding: chunked||",
    400,
    "there is a Content-Length beside a Transfer-Encoding"
)]
#[case::fold("GET / HTTP/1.1|Host: h| x||", 400, "a header line is malformed before its colon")]
#[case::bare_lf("GET / HTTP/1.1\nHost: h||", 400, "a line of the head ends in a bare LF")]
#[case::bare_lf_first("\nGET", 400, "the request line does not begin with a method")]
#[case::bare_cr("GET / HTTP/1.1|Host: h\rx||", 400, "a header value holds a control character")]
#[case::tls("\x16\x03\x01", 400, "the request line does not begin with a method")]
#[case::blank_first(" GET / HTTP/1.1|", 400, "the request line does not begin with a method")]
#[case::cr_first("\rGET / HTTP/1.1|", 400, "the request line does not begin with a method")]
#[case::empty_line_then_garbage("|\0", 400, "the request line does not begin with a method")]
#[case::http2("PRI * HTTP/2.0||", 400, "the version is neither HTTP/1.0 nor HTTP/1.1")]
#[case::connect("CONNECT h:1 HTTP/1.1|Host: h||", 400, "CONNECT is not supported")]
#[case::headers("GET / HTTP/1.1|Host: h|a:|b:|c:||", 431, "The request head is too large.")]
#[case::body_by_length(
    "POST / HTTP/1.1|Host: h|Content-Length: 21||",
    413,
    "The request body is larger than 20 bytes."
)]
#[case::body_by_chunks(
    "POST / HTTP/1.1|Host: h|Transfer-Encoding: chunked||a|0123456789|b|0123456789a|0||",
    413,
    "The request body is larger than 20 bytes."
)]
#[case::chunk_size(
    "POST / HTTP/1.1|Host: h|Transfer-Encoding: chunked||x",
    400,
    "a chunk size is missing"
)]
#[case::chunk_bare_lf(
    "POST / HTTP/1.1|Host: h|Transfer-Encoding: chunked||1\na|0||",
    400,
    "a chunk size holds a byte that is no digit"
)]
#[case::chunk_too_long(
    "POST / HTTP/1.1|Host: h|Transfer-Encoding: chunked||1|ab|0||",
    400,
    "a chunk is longer than its size"
)]
#[case::trailer(
    "POST / HTTP/1.1|Host: h|Transfer-Encoding: chunked||0|no colon||",
    400,
    "a trailer field is malformed"
)]
#[case::old_chunked(
    "POST / HTTP/1.0|Transfer-Encoding: chunked||",
    400,
    "HTTP/1.0 knows no Transfer-Encoding"
)]
fn refusals(#[case] bytes: &str, #[case] status: u16, #[case] message: &str) {
    refused(http(bytes).as_bytes(), status, message);
}

#[test]
fn refusals_by_size() {
    let target = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(50));
    refused(target.as_bytes(), 414, "The request target is too long.");
    refused("G".repeat(201).as_bytes(), 414, "The request target is too long.");
    let head = format!("GET / HTTP/1.1\r\nHost: h\r\na: {}", "a".repeat(200));
    refused(head.as_bytes(), 431, "The request head is too large.");
    let head = format!("GET / HTTP/1.1\r\nHost: h\r\na: {}\r\n\r\n", "a".repeat(200));
    refused(head.as_bytes(), 431, "The request head is too large.");
}

#[test]
fn a_body_of_just_the_limit_passes() {
    for request in [
        "POST / HTTP/1.1|Host: h|Content-Length: 20||01234567890123456789",
        "POST / HTTP/1.1|Host: h|Transfer-Encoding: chunked||14|01234567890123456789|0||",
    ] {
        let mut bench = Bench::with(1, tight(), 0);
        bench.client(http(request));
        bench.connected();
        bench.backend(OK);
        assert_eq!(bench.client, OK.as_bytes());
        bench.skip();
        bench.idle();
    }
}

#[test]
fn an_anthropic_route_gets_anthropic_errors() {
    let mut bench = Bench::with(1, tight(), 0);
    bench.client("POST /v1/messages HTTP/1.1\r\nHost: h\r\nContent-Length: 21\r\n\r\n");
    let body = r#"{"type":"error","error":{"type":"request_too_large","message":"The request body is larger than 20 bytes."}}"#;
    let answer = bench.refusal(413, "", body);
    bench.expect(&[format!("send client {answer}"), String::from("shutdown")]);
    bench.client_leaves();
    bench.expect(&["close"]);
    bench.over();
}

#[test]
fn a_whole_conversation() {
    let mut bench = Bench::new(1);
    bench.client(POST);
    bench.expect(&["reserve 13", "ask", "connect 0"]);
    bench.connected();
    bench.expect(&[format!("send upstream {}", shown(POST))]);
    bench.backend(OK);
    bench.expect(&[
        &format!("send client {}", shown(OK)),
        "release reusable",
        "settle Done(200)",
        "unreserve 13",
    ]);
    bench.idle();
    bench.idle = true;
    bench.client(POST);
    bench.expect(&["reserve 13", "ask", "connect 0", &format!("send upstream {}", shown(POST))]);
    bench.backend("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n");
    bench.expect::<&str>(&[]);
    bench.backend("ab");
    let head = "HTTP/1.1 200 OK|content-length: 4||ab";
    bench.expect(&[&format!("send client {head}"), "first byte", "unreserve 13"]);
    bench.backend("cd");
    bench.expect(&["relay +cd", "release reusable", "settle Done(200)"]);
    bench.idle();
    bench.client_leaves();
    bench.expect(&["close"]);
    bench.over();
}

#[test]
fn a_request_is_forgotten_once_its_answer_has_begun() {
    let mut bench = Bench::new(1);
    let body = "x".repeat(100_000);
    bench.client(format!(
        "POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    bench.connected();
    bench.backend("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n");
    assert!(bench.exchange.request.message().len() > body.len());
    bench.skip();
    bench.backend("h");
    assert!(bench.exchange.request.message().is_empty());
    let log = bench.transcript();
    assert_eq!(log[1..], ["first byte", "unreserve 100000"]);
    bench.backend("i");
    bench.skip();
    bench.idle();
}

/// Its share of the budget is given back, so nothing of it may stay behind an answer that leaves
/// slowly, nor while a client that was refused is lingered for.
#[rstest]
#[case::answered("100000\r\n{}\r\n0\r\n\r\n")]
#[case::refused("100000\r\n{}\r\nz")]
fn a_request_is_forgotten_once_it_is_answered(#[case] body: &str) {
    let mut bench = Bench::new(1);
    bench.client(http("POST /v1/completions HTTP/1.1|Host: h|Transfer-Encoding: chunked||"));
    bench.client_takes = Takes::Bytes(0);
    bench.client(body.replace("{}", &"x".repeat(0x10_0000)));
    if bench.connecting {
        assert!(bench.exchange.request.message().len() > 0x10_0000);
        bench.connected();
        bench.backend(OK);
    }
    assert!(bench.transcript().iter().any(|line| line.starts_with("unreserve")));
    assert!(bench.exchange.request.message().is_empty());
    bench.client_leaves();
    bench.skip();
    bench.over();
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let mut bench = Bench::new(1);
    bench.idle = true;
    let health = http("GET /health HTTP/1.1|Host: h||");
    let bytes = format!("{POST}{health}{GET}GET /y");
    bench.client(bytes);
    bench.expect(&["reserve 13", "ask", "connect 0", &format!("send upstream {}", shown(POST))]);
    bench.client(" HTTP/1.1\r\nHost: h");
    bench.expect::<&str>(&[]);
    bench.backend(OK);
    let well = bench.own("200 OK", "", "", "");
    bench.expect(&[
        &format!("send client {}", shown(OK)),
        "release reusable",
        "settle Done(200)",
        "unreserve 13",
        "ask",
        &format!("send client {well}"),
        "ask",
        "connect 0",
        &format!("send upstream {}", shown(GET)),
    ]);
    bench.backend(OK);
    bench.expect(&[&format!("send client {}", shown(OK)), "release reusable", "settle Done(200)"]);
    bench.client("\r\n\r\n");
    bench.expect(&["ask", "connect 0", "send upstream GET /y HTTP/1.1|Host: h||"]);
    bench.backend(OK);
    bench.expect(&[&format!("send client {}", shown(OK)), "release reusable", "settle Done(200)"]);
    bench.idle();
}

#[test]
fn pipelining_has_a_limit() {
    let mut bench = Bench::new(1);
    bench.client(GET);
    bench.connected();
    bench.client([b'x'; (64 << 10) - 1]);
    assert!(bench.exchange.interest().client);
    bench.client("x");
    assert!(!bench.exchange.interest().client);
    bench.skip();
    bench.abandoned();
}

#[test]
fn a_request_behind_a_refused_one_is_not_answered() {
    let mut bench = Bench::new(1);
    bench.client(format!("GET / HTTP/1.1\r\n\r\n{GET}"));
    let answer = bench.error(400, "the Host header is missing");
    bench.expect(&[format!("send client {answer}"), String::from("shutdown")]);
}

#[test]
fn a_request_behind_the_last_one_is_lingered_for() {
    let mut bench = Bench::new(1);
    bench.client("GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\nGET /");
    bench.connected();
    bench.skip();
    bench.backend(OK);
    let answer = "HTTP/1.1 200 OK|content-length: 2|connection: close||hi";
    bench.expect(&[
        &format!("send client {answer}"),
        "release reusable",
        "settle Done(200)",
        "shutdown",
    ]);
    bench.secs(2);
    bench.expect(&["close"]);
    bench.over();
}

#[test]
fn a_request_that_comes_while_the_last_answer_leaves_is_lingered_for() {
    let mut bench = Bench::new(1);
    bench.client("GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    bench.connected();
    bench.client_takes = Takes::Bytes(0);
    bench.backend(OK);
    bench.client("GET /");
    bench.skip();
    bench.client_takes = Takes::All;
    bench.flow();
    let answer = "HTTP/1.1 200 OK|content-length: 2|connection: close||hi";
    bench.expect(&[&format!("send client {answer}"), "shutdown"]);
}

#[test]
fn the_body_is_asked_for() {
    let mut bench = Bench::new(1);
    let head =
        http("POST /v1/completions HTTP/1.1|Host: h|Expect: 100-continue|Content-Length: 13||");
    bench.client(&head);
    bench.expect(&["reserve 13", "send client HTTP/1.1 100 Continue||"]);
    bench.client(&POST[POST.len() - 13..]);
    bench.expect(&["ask", "connect 0"]);
    bench.connected();
    bench.expect(&[format!("send upstream {}", shown(POST))]);
    bench.abandoned();
}

#[test]
fn a_chunked_body_is_asked_for_once() {
    let mut bench = Bench::new(1);
    let head = "POST / HTTP/1.1|Host: h|Expect: 100-continue|Transfer-Encoding: chunked||";
    bench.client(http(head));
    bench.expect(&["reserve 65536", "send client HTTP/1.1 100 Continue||"]);
    bench.client(format!("20000\r\n{}\r\n", "x".repeat(0x20000)));
    bench.expect(&["reserve 196608"]);
    bench.client("0\r\n\r\n");
    bench.expect(&["ask", "connect 0 fresh"]);
    bench.connected();
    bench.backend(OK);
    bench.skip();
    bench.idle();
}

#[rstest]
#[case::body_is_there(
    "POST / HTTP/1.1|Host: h|Expect: 100-continue|Content-Length: 2||hi",
    "reserve 2"
)]
#[case::part_of_it(
    "POST / HTTP/1.1|Host: h|Expect: 100-continue|Content-Length: 3||hi",
    "reserve 3"
)]
#[case::old_client("POST / HTTP/1.0|Host: h|Expect: 100-continue|Content-Length: 3||", "reserve 3")]
fn a_body_is_not_asked_for(#[case] bytes: &str, #[case] first: &str) {
    let mut bench = Bench::new(1);
    bench.client(http(bytes));
    let log = bench.transcript();
    assert_eq!(log[0], first);
    assert!(!log.iter().any(|line| line.contains("Continue")), "{log:?}");
    bench.abandoned();
}

#[test]
fn nothing_is_asked_for_where_there_is_no_body() {
    let mut bench = Bench::new(1);
    bench.client("GET /x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n\r\n");
    bench.expect(&["ask", "connect 0"]);
    bench.abandoned();
}

#[test]
fn a_head_that_does_not_end_is_408() {
    let mut bench = Bench::new(1);
    bench.secs(59);
    bench.client("GET /");
    for _ in 0..59 {
        bench.secs(1);
        bench.client("x");
    }
    bench.expect::<&str>(&[]);
    bench.secs(1);
    let answer = bench.error(408, "The request did not arrive in time.");
    bench.expect(&[format!("send client {answer}"), String::from("shutdown")]);
    bench.secs(2);
    bench.expect(&["close"]);
    bench.over();
}

#[test]
fn a_body_that_stops_is_408() {
    let mut bench = Bench::new(1);
    bench.client(&POST[..POST.len() - 3]);
    bench.expect(&["reserve 13"]);
    bench.secs(59);
    bench.client("\"");
    bench.secs(59);
    bench.expect::<&str>(&[]);
    bench.secs(1);
    let answer = bench.error(408, "The request did not arrive in time.");
    bench.expect(&[&format!("send client {answer}"), "unreserve 13", "shutdown"]);
    bench.client(&POST[..20]);
    bench.client_leaves();
    bench.expect(&["close"]);
    bench.over();
}

#[test]
fn a_connection_that_asks_nothing_is_closed_silently() {
    let mut bench = Bench::new(1);
    bench.secs(59);
    bench.expect::<&str>(&[]);
    bench.secs(1);
    bench.expect(&["close"]);
    bench.over();
}

#[test]
fn an_idle_connection_is_closed_silently() {
    let mut bench = Bench::new(1);
    bench.client(GET);
    bench.connected();
    bench.backend(OK);
    bench.skip();
    bench.secs(74);
    bench.idle();
    bench.secs(1);
    bench.expect(&["close"]);
    bench.over();
}

#[test]
fn an_empty_line_behind_a_body_begins_no_request() {
    let mut bench = Bench::new(1);
    bench.client(format!("{POST}\r\n"));
    bench.connected();
    bench.backend(OK);
    bench.skip();
    bench.idle();
    // Nor does it keep the connection.
    bench.secs(40);
    bench.client("\r\n\r\n");
    bench.secs(34);
    bench.idle();
    bench.secs(1);
    bench.expect(&["close"]);
    bench.over();
}
