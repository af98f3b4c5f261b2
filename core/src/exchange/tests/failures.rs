//! Backends that fail: another is tried while the client has seen nothing, then the answer breaks.

use super::harness::{Bench, Takes};
use super::texts::{GET, OK, POST, error, http, shown, status_line};
use crate::exchange::{End, Input};
use crate::time::Duration;
use rstest::rstest;
use std::format;
use std::string::String;

const SENT: &str = "send upstream GET /x HTTP/1.1|Host: h||";
pub(super) const PASSED: &str = "send client HTTP/1.1 200 OK|content-length: 2||hi";

/// A request that is with backend 0, of so many.
pub(super) fn asked(backends: u32) -> Bench {
    let mut bench = Bench::new(backends);
    bench.client(GET);
    bench.expect(&["ask", "connect 0"]);
    bench.connected();
    bench.expect(&[SENT]);
    bench
}

/// The next backend is being connected to; it answers, and all is well.
fn answered_elsewhere(mut bench: Bench) {
    bench.connected();
    bench.expect(&[SENT]);
    bench.backend(OK);
    bench.expect(&[PASSED, "release reusable", "settle Done(200)"]);
    bench.idle();
}

/// An answer of our own, then silence; the connection is kept.
pub(super) fn refused(mut bench: Bench, before: &[&str], status: u16, message: &str) {
    let answer = bench.own(&status_line(status), "", "", &error(status, message));
    let mut expected: std::vec::Vec<String> = before.iter().map(|&line| line.into()).collect();
    expected.push(format!("send client {answer}"));
    bench.expect(&expected);
    bench.idle();
}

const NOBODY: &str = "No backend answered the request.";
pub(super) const LATE: &str = "The backend did not answer in time.";

#[test]
fn who_cannot_be_reached_is_passed_over() {
    let mut bench = Bench::new(3);
    bench.client(GET);
    bench.expect(&["ask", "connect 0"]);
    bench.connect_fails();
    bench.expect(&["release", "ask again Connect", "connect 1"]);
    bench.connect_fails();
    bench.expect(&["release", "ask again Connect", "connect 2"]);
    answered_elsewhere(bench);
}

#[test]
fn who_does_not_accept_is_passed_over() {
    let mut bench = Bench::new(2);
    bench.client(GET);
    bench.expect(&["ask", "connect 0"]);
    bench.wait(Duration::from_millis(4_999));
    bench.expect::<&str>(&[]);
    bench.wait(Duration::from_millis(1));
    bench.expect(&["release", "ask again Connect", "connect 1"]);
    answered_elsewhere(bench);
}

#[test]
fn nobody_can_be_reached() {
    let mut bench = Bench::new(1);
    bench.client(GET);
    bench.expect(&["ask", "connect 0"]);
    bench.connect_fails();
    let down = "No backend of the model `m` is up. Please try again later.";
    let answer = bench.own(&status_line(503), "retry-after: 5|", "", &error(503, down));
    bench.expect(&["release", "ask again Connect", &format!("send client {answer}")]);
    bench.idle();
}

#[test]
fn a_connection_that_was_stale_is_replaced() {
    let mut bench = Bench::new(2);
    bench.idle = true;
    bench.client(GET);
    bench.expect(&["ask", "connect 0", SENT]);
    bench.backend_ends(End::Closed);
    bench.expect(&["release", "ask again Stale", "connect 0 fresh"]);
    answered_elsewhere(bench);
}

#[test]
fn a_connection_that_was_stale_may_not_even_take_the_request() {
    let mut bench = Bench::new(2);
    bench.idle = true;
    bench.upstream_takes = Takes::Bytes(0);
    bench.client(GET);
    bench.expect(&["ask", "connect 0", "send upstream "]);
    bench.tell(Input::Refused);
    bench.expect::<&str>(&[]);
    assert!(bench.exchange.interest().upstream);
    bench.backend_ends(End::Reset);
    bench.upstream_takes = Takes::All;
    bench.expect(&["release", "ask again Stale", "connect 0 fresh"]);
    answered_elsewhere(bench);
}

#[rstest]
#[case::part_of_a_head("HTTP/1.1 200 OK\r\nconte", "Lost")]
#[case::informational("HTTP/1.1 103 X\r\n\r\n", "Lost")]
#[case::head("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", "Cut")]
#[case::chunk_size("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n", "Cut")]
#[case::held_error("HTTP/1.1 503 X\r\ncontent-length: 2\r\n\r\nh", "Cut")]
fn a_reused_connection_that_answered_was_not_stale(#[case] bytes: &str, #[case] why: &str) {
    for end in [End::Closed, End::Reset] {
        let mut bench = Bench::new(2);
        bench.idle = true;
        bench.client(GET);
        bench.backend(bytes);
        bench.skip();
        bench.idle = false;
        bench.backend_ends(end);
        bench.expect(&["release", &format!("ask again {why}"), "connect 1"]);
        answered_elsewhere(bench);
    }
}

#[rstest]
#[case::nothing("", End::Closed, "Lost")]
#[case::reset("", End::Reset, "Lost")]
#[case::part_of_a_head("HTTP/1.1 200", End::Closed, "Lost")]
#[case::head("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", End::Closed, "Cut")]
#[case::head_until_close_reset("HTTP/1.1 200 OK\r\n\r\n", End::Reset, "Cut")]
fn a_backend_that_is_lost_before_it_answers(
    #[case] bytes: &str,
    #[case] end: End,
    #[case] why: &str,
) {
    let again = format!("ask again {why}");
    let mut bench = asked(2);
    if !bytes.is_empty() {
        bench.backend(bytes);
    }
    bench.backend_ends(end);
    bench.expect(&["release", &again, "connect 1"]);
    answered_elsewhere(bench);
    // A request that killed two engines is not given to a third.
    let mut bench = asked(3);
    bench.backend_ends(End::Reset);
    bench.expect(&["release", "ask again Lost", "connect 1"]);
    bench.connected();
    bench.skip();
    if !bytes.is_empty() {
        bench.backend(bytes);
    }
    bench.backend_ends(end);
    refused(bench, &["release", &again], 502, NOBODY);
}

#[rstest]
#[case::garbage("hello\r\n\r\n")]
#[case::bare_lf("HTTP/1.1 200 OK\n")]
#[case::two_lengths("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n")]
#[case::both("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n")]
#[case::wrong_length("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n")]
#[case::switch("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n")]
#[case::informational_length("HTTP/1.1 103 X\r\ncontent-length: 1\r\n\r\n")]
#[case::http2("HTTP/2 200 OK\r\n\r\n")]
#[case::chunk_size("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n+1\r\n")]
#[case::trailer("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nno colon\r\n\r\n")]
#[case::behind_an_informational_one("HTTP/1.1 204 X\r\na\r\n\r\n")]
fn nonsense_is_not_passed_on(#[case] bytes: &str) {
    let mut bench = asked(2);
    bench.backend(bytes);
    bench.expect(&["release", "ask again Nonsense", "connect 1"]);
    bench.connected();
    bench.skip();
    for byte in bytes.as_bytes() {
        if bench.exchange.interest().upstream {
            bench.backend([*byte]);
        }
    }
    refused(bench, &["release", "ask again Nonsense"], 502, NOBODY);
}

#[test]
fn bytes_that_nobody_asked_for_are_nonsense() {
    let mut bench = Bench::new(2);
    bench.upstream_takes = Takes::Bytes(0);
    bench.client(GET);
    bench.connected();
    bench.skip();
    bench.backend(OK);
    bench.expect(&["release", "ask again Nonsense", "connect 1"]);
    bench.abandoned();
}

#[test]
fn too_many_informational_answers_are_nonsense() {
    let mut bench = asked(2);
    for _ in 0..16 {
        bench.backend("HTTP/1.1 102 Processing\r\n\r\n");
        bench.expect(&["send client HTTP/1.1 102 Processing||"]);
    }
    bench.backend("HTTP/1.1 102 Processing\r\n\r\n");
    bench.expect(&["release", "ask again Nonsense", "connect 1"]);
    answered_elsewhere(bench);
}

#[test]
fn a_head_may_be_long_but_not_endless() {
    let head = |bytes: usize| {
        let rest = "HTTP/1.1 204 X\r\nmetadata: \r\n\r\n".len();
        format!("HTTP/1.1 204 X\r\nmetadata: {}\r\n\r\n", "a".repeat(bytes - rest))
    };
    let mut bench = asked(2);
    for piece in head(2 << 20).as_bytes().chunks(100_000) {
        bench.backend(piece);
    }
    assert_eq!(bench.client.len(), 2 << 20);
    bench.skip();
    bench.idle();
    for pieces in [usize::MAX, 100_000] {
        let mut bench = asked(2);
        for piece in head((2 << 20) + 1).as_bytes().chunks(pieces) {
            if bench.exchange.interest().upstream {
                bench.backend(piece);
            }
        }
        bench.expect(&["release", "ask again Nonsense", "connect 1"]);
        answered_elsewhere(bench);
    }
}

const BUSY: &str = "HTTP/1.1 503 Busy\r\nretry-after: 1\r\ncontent-length: 4\r\n\r\nbusy";
const WRONG: &str = "HTTP/1.0 500 Wrong\r\n\r\noops";

#[test]
fn an_error_is_held_while_another_backend_is_tried() {
    let mut bench = asked(3);
    bench.backend(&BUSY[..BUSY.len() - 1]);
    bench.expect::<&str>(&[]);
    bench.backend("y");
    bench.expect(&["release reusable", "ask again Status(503)", "connect 1"]);
    answered_elsewhere(bench);
}

#[test]
fn an_error_passes_when_the_other_backend_cannot_be_reached() {
    let mut bench = asked(2);
    bench.backend(BUSY);
    bench.expect(&["release reusable", "ask again Status(503)", "connect 1"]);
    bench.connect_fails();
    let passed = format!("send client {}", shown(BUSY));
    bench.expect(&["release", "ask again Connect", &passed]);
    bench.idle();
}

#[test]
fn an_error_passes_when_the_other_backend_is_lost() {
    let mut bench = asked(3);
    bench.backend(BUSY);
    bench.connected();
    bench.backend("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n");
    bench.skip();
    bench.backend_ends(End::Closed);
    let passed = format!("send client {}", shown(BUSY));
    bench.expect(&["release", "ask again Cut", &passed]);
    bench.idle();
}

#[test]
fn the_last_error_passes() {
    let mut bench = asked(3);
    bench.backend(BUSY);
    bench.connected();
    bench.skip();
    bench.backend(WRONG);
    bench.expect::<&str>(&[]);
    bench.backend_ends(End::Closed);
    let passed = "send client HTTP/1.1 500 Wrong|transfer-encoding: chunked||4|oops|0||";
    bench.expect(&["release", "ask again Status(500)", passed]);
    bench.idle();
}

#[test]
fn an_error_passes_at_once_where_it_is_long() {
    let mut bench = asked(2);
    let head = "HTTP/1.1 500 X\r\ncontent-length: 100000\r\n\r\n";
    bench.backend(head);
    let held = (64 << 10) - head.len();
    bench.backend("x".repeat(held));
    bench.expect::<&str>(&[]);
    bench.backend("x");
    let log = bench.transcript();
    assert_eq!(log.len(), 2);
    assert!(log[0].starts_with("send client HTTP/1.1 500 X|"));
    assert_eq!(log[1], "first byte");
    bench.backend("x".repeat(100_000 - held - 1));
    bench.skip();
    assert_eq!(bench.client.len(), head.len() + 100_000);
    bench.idle();
}

#[test]
fn an_error_that_is_whole_and_long_passes_at_once() {
    let mut bench = asked(2);
    bench.backend(format!(
        "HTTP/1.1 500 X\r\ncontent-length: 100000\r\n\r\n{}",
        "x".repeat(100_000)
    ));
    let log = bench.transcript();
    assert_eq!(log[1..], ["release reusable", "settle Done(500)"]);
    bench.idle();
}

#[test]
fn a_held_error_that_stops_is_504() {
    let mut bench = asked(2);
    bench.backend(&BUSY[..BUSY.len() - 1]);
    bench.secs(3_600);
    refused(bench, &["release", "ask again Timeout"], 504, LATE);
}

#[test]
fn an_error_passes_when_the_other_backend_is_silent() {
    let mut bench = asked(2);
    bench.backend(BUSY);
    bench.connected();
    bench.skip();
    bench.secs(3_600);
    bench.expect(&["release", "ask again Timeout", &format!("send client {}", shown(BUSY))]);
    bench.idle();
}

#[test]
fn what_must_not_be_repeated_is_tried_once() {
    let post = http("POST /plugin HTTP/1.1|Host: h|Content-Length: 0||");
    let ask = |bench: &mut Bench| {
        bench.idle = true;
        bench.client(&post);
        bench.expect(&["ask", "connect 0 fresh"]);
    };
    let mut bench = Bench::new(2);
    ask(&mut bench);
    bench.connected();
    bench.skip();
    bench.backend(BUSY);
    let passed = format!("send client {}", shown(BUSY));
    bench.expect(&[&passed, "release reusable", "settle Done(503)"]);
    bench.idle();
    let mut bench = Bench::new(2);
    ask(&mut bench);
    bench.connected();
    bench.skip();
    bench.backend_ends(End::Reset);
    let log = bench.transcript();
    assert_eq!(log[..2], ["release", "ask again Lost"]);
    assert!(log[2].starts_with("send client HTTP/1.1 502 "), "{log:?}");
    bench.idle();
    // Nothing of it was sent: that is no second try.
    let mut bench = Bench::new(2);
    ask(&mut bench);
    bench.connect_fails();
    bench.expect(&["release", "ask again Connect", "connect 1 fresh"]);
    bench.abandoned();
}

#[test]
fn a_pinned_body_is_not_repeated() {
    let mut bench = Bench::new(2);
    let body = r#"{"model":"m","background":true}"#;
    bench.client(format!(
        "POST /v1/responses HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    bench.connected();
    bench.skip();
    bench.backend(BUSY);
    let log = bench.transcript();
    assert_eq!(log[0], format!("send client {}", shown(BUSY)));
    bench.idle();
}

#[test]
fn the_body_is_sent_again_to_another() {
    let chunked = "POST /v1/completions HTTP/1.1|Host: h|Transfer-Encoding: chunked||d|{\"model\":\"m\"}|0|a: b||";
    for request in [POST, &http(chunked)] {
        let mut bench = Bench::new(2);
        bench.client(request);
        bench.connected();
        bench.backend_ends(End::Closed);
        bench.skip();
        bench.connected();
        bench.expect(&[format!("send upstream {}", shown(request))]);
        bench.backend(OK);
        bench.skip();
        bench.idle();
    }
}

/// What a connection does before it took a byte of the request says little of the request.
#[rstest]
#[case::bytes_of_another("HTTP/1.1 200 OK||", "Nonsense")]
#[case::its_end("", "Connect")]
fn before_anything_was_sent(#[case] bytes: &str, #[case] why: &str) {
    let mut bench = Bench::new(2);
    bench.upstream_takes = Takes::Bytes(0);
    bench.client(GET);
    bench.expect(&["ask", "connect 0"]);
    bench.connected();
    bench.skip();
    match bytes {
        "" => bench.backend_ends(End::Closed),
        bytes => bench.backend(http(bytes)),
    }
    bench.expect(&["release", &format!("ask again {why}"), "connect 1"]);
    bench.abandoned();
}

#[test]
fn a_reused_connection_that_spoke_first_is_stale() {
    let mut bench = Bench::new(2);
    bench.idle = true;
    bench.upstream_takes = Takes::Bytes(0);
    bench.client(GET);
    bench.skip();
    bench.backend(http("HTTP/1.1 408 X|content-length: 0||"));
    bench.upstream_takes = Takes::All;
    bench.expect(&["release", "ask again Stale", "connect 0 fresh"]);
    answered_elsewhere(bench);
}
