//! Answers that break, stall, come early or bring more than was asked for.

use super::failures::{LATE, PASSED, asked, refused};
use super::harness::{Bench, Takes};
use super::texts::{GET, OK, POST, http, shown};
use crate::config::Limits;
use crate::exchange::{End, Input};
use crate::time::Duration;
use rstest::rstest;
use std::format;

#[rstest]
#[case::length(1, "content-length: 9||abc", "content-length: 9||abc", false)]
#[case::chunks(
    1,
    "transfer-encoding: chunked||3|abc|",
    "transfer-encoding: chunked||3|abc|",
    false
)]
#[case::in_a_chunk(
    1,
    "transfer-encoding: chunked||9|abc",
    "transfer-encoding: chunked||9|abc",
    false
)]
#[case::until_close(1, "a: b||abc", "a: b|transfer-encoding: chunked||3|abc|", false)]
#[case::old_length(0, "content-length: 9||abc", "content-length: 9|connection: close||abc", false)]
#[case::old_chunks(0, "transfer-encoding: chunked||3|abc|", "connection: close||abc", true)]
#[case::old_until_close(0, "a: b||abc", "a: b|connection: close||abc", true)]
fn an_answer_that_breaks(
    #[case] minor: u8,
    #[case] answer: &str,
    #[case] received: &str,
    #[case] reset: bool,
) {
    let close = if reset { "reset" } else { "close" };
    let begin = || {
        let mut bench = Bench::new(2);
        bench.client(format!("GET /x HTTP/1.{minor}\r\nHost: h\r\n\r\n"));
        bench.connected();
        bench.skip();
        bench.backend(http(&format!("HTTP/1.1 200 OK|{answer}")));
        bench.expect(&[&format!("send client HTTP/1.1 200 OK|{received}"), "first byte"]);
        bench
    };
    let mut bench = begin();
    bench.backend_ends(End::Reset);
    bench.expect(&["release", "settle Broken", close]);
    bench.over();
    if !answer.starts_with("a: b") {
        let mut bench = begin();
        bench.backend_ends(End::Closed);
        bench.expect(&["release", "settle Broken", close]);
        bench.over();
    }
    let mut bench = begin();
    bench.wait(Duration::from_millis(3_599_999));
    bench.expect::<&str>(&[]);
    bench.wait(Duration::from_millis(1));
    bench.expect(&["release", "settle TimedOut", close]);
    bench.over();
}

#[test]
fn a_malformed_chunk_breaks_an_answer() {
    let mut bench = asked(2);
    bench.backend(http("HTTP/1.1 200 OK|transfer-encoding: chunked||1|a|"));
    bench.skip();
    bench.backend(http("2|bc|x|"));
    bench.expect(&["relay +2|bc", "release", "settle Broken", "close"]);
    bench.over();
}

#[test]
fn a_large_beginning_is_relayed_where_it_lies() {
    let mut bench = asked(2);
    let (head, data) = ("HTTP/1.1 200 OK|transfer-encoding: chunked||", "x".repeat(0x1400));
    bench.backend(http(&format!("{head}1400|{data}|")));
    let log = bench.transcript();
    assert_eq!(log[0], format!("relay {head}+1400|{data}|"));
    assert_eq!(log[1..], ["first byte"]);
    bench.abandoned();
}

#[test]
fn a_large_beginning_that_ends_malformed_has_not_begun() {
    let mut bench = asked(2);
    let (head, data) = ("HTTP/1.1 200 OK|transfer-encoding: chunked||", "x".repeat(0x1400));
    bench.backend(http(&format!("{head}1400|{data}|x|")));
    bench.expect(&["release", "ask again Nonsense", "connect 1"]);
    bench.connected();
    bench.skip();
    bench.backend(http("HTTP/1.1 200 OK|content-length: 2||hi"));
    bench.skip();
    assert_eq!(bench.client, http("HTTP/1.1 200 OK|content-length: 2||hi").as_bytes());
    bench.idle();
}

#[test]
fn a_malformed_trailer_breaks_an_answer() {
    let mut bench = asked(2);
    bench.backend(http("HTTP/1.1 200 OK|transfer-encoding: chunked||1|a|"));
    bench.skip();
    bench.backend(http("0|no colon||"));
    let log = bench.transcript();
    assert_eq!(log[log.len() - 3..], ["release", "settle Broken", "close"]);
    assert!(!bench.client.ends_with(b"\r\n\r\n"), "it looks complete");
    bench.over();
}

#[test]
fn a_long_head_is_held_until_the_first_byte_of_its_body() {
    let mut bench = asked(2);
    let long = "a".repeat(100_000);
    bench.backend(format!(
        "HTTP/1.1 200 OK\r\na: {long}\r\ntransfer-encoding: chunked\r\n\r\n2\r\n"
    ));
    bench.expect::<&str>(&[]);
    bench.backend_ends(End::Closed);
    bench.expect(&["release", "ask again Cut", "connect 1"]);
    bench.abandoned();
}

#[test]
fn silence_before_an_answer_is_504() {
    for bytes in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n"] {
        let mut bench = asked(2);
        if !bytes.is_empty() {
            bench.secs(9);
            bench.backend(bytes);
        }
        bench.wait(Duration::from_millis(3_599_999));
        bench.expect::<&str>(&[]);
        bench.wait(Duration::from_millis(1));
        refused(bench, &["release", "ask again Timeout"], 504, LATE);
    }
}

#[test]
fn silence_may_be_allowed() {
    let limits = Limits { http_timeout: None, ..Limits::default() };
    let mut bench = Bench::with(1, limits, 0);
    bench.client(GET);
    bench.connected();
    bench.skip();
    assert_eq!(bench.exchange.poll_timeout(), None);
    bench.secs(1_000_000);
    bench.backend(OK);
    bench.expect(&[PASSED, "release reusable", "settle Done(200)"]);
    bench.idle();
}

#[test]
fn each_byte_begins_the_silence_anew() {
    let mut bench = asked(1);
    bench.backend(http("HTTP/1.1 200 OK|content-length: 4||"));
    for byte in ["a", "b", "c"] {
        bench.secs(3_599);
        bench.backend(byte);
    }
    bench.secs(3_599);
    bench.backend("d");
    bench.skip();
    bench.idle();
}

#[test]
fn an_early_answer_passes_and_its_connection_is_not_reused() {
    let mut bench = Bench::new(1);
    bench.upstream_takes = Takes::Bytes(20);
    bench.client(POST);
    bench.connected();
    bench.expect(&["reserve 13", "ask", "connect 0", "send upstream POST /v1/completions"]);
    let answer = "HTTP/1.1 413 Too Large\r\ncontent-length: 4\r\n\r\n";
    bench.backend(answer);
    bench.expect::<&str>(&[]);
    bench.backend("lo");
    bench.expect(&[&format!("send client {}lo", shown(answer)), "first byte"]);
    bench.flow();
    bench.skip();
    bench.backend("ng");
    bench.expect(&["relay +ng", "release reusable", "settle Done(413)", "unreserve 13"]);
    bench.idle();
    let mut bench = Bench::new(1);
    bench.upstream_takes = Takes::Bytes(20);
    bench.client(POST);
    bench.connected();
    bench.skip();
    bench.backend(answer);
    bench.backend("long");
    let passed = format!("send client {}long", shown(answer));
    bench.expect(&[&passed, "release", "settle Done(413)", "unreserve 13"]);
    bench.idle();
}

#[test]
fn a_backend_that_takes_no_more_may_still_answer() {
    let mut bench = Bench::new(1);
    bench.upstream_takes = Takes::Bytes(20);
    bench.client(POST);
    bench.connected();
    bench.tell(Input::Refused);
    bench.skip();
    bench.flow();
    bench.expect::<&str>(&[]);
    bench.backend("HTTP/1.1 413 X\r\ncontent-length: 0\r\n\r\n");
    let passed = "send client HTTP/1.1 413 X|content-length: 0||";
    bench.expect(&[passed, "release", "settle Done(413)", "unreserve 13"]);
    bench.idle();
}

#[test]
fn surplus_bytes_spoil_a_connection() {
    let mut bench = asked(1);
    bench.backend(format!("{OK}{OK}"));
    bench.expect(&[PASSED, "release", "settle Done(200)"]);
    bench.idle();
    bench.client("HEAD /x HTTP/1.1\r\nHost: h\r\n\r\n");
    bench.connected();
    bench.skip();
    bench.backend(OK);
    let passed = "send client HTTP/1.1 200 OK|content-length: 2||";
    bench.expect(&[passed, "release", "settle Done(200)"]);
    bench.idle();
}

#[rstest]
#[case::close("HTTP/1.1 204 X\r\nconnection: close\r\n\r\n")]
#[case::old("HTTP/1.0 200 X\r\ncontent-length: 0\r\n\r\n")]
fn a_backend_that_closes_is_not_reused(#[case] answer: &str) {
    let mut bench = asked(1);
    bench.backend(answer);
    let log = bench.transcript();
    assert_eq!(log[1], "release");
    bench.idle();
}
