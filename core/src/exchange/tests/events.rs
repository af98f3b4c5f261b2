//! Streams whose first event is an error: another backend is tried, and nothing else is held.

use super::failures::{PASSED, asked};
use super::harness::{Bench, Takes};
use super::texts::{GET, OK, POST, http, shown};
use crate::exchange::End;
use rstest::rstest;
use std::format;
use std::string::String;
use std::vec::Vec;

const ERROR: &str = "data: {\"error\": {\"message\": \"Generation is paused.\", \"type\": \
                     \"ServiceUnavailableError\", \"param\": null, \"code\": 503}}\n\n";
const ANTHROPIC: &str = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\
                         \"api_error\",\"message\":\"Internal server error\"}}\n\n";
const DONE: &str = "data: [DONE]\n\n";
const SENT: &str = "send upstream GET /x HTTP/1.1|Host: h||";

fn stream(framing: &str) -> String {
    let kind = "content-type: text/event-stream; charset=utf-8";
    http(&format!("HTTP/1.1 200 OK|{kind}{framing}||"))
}

fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

/// A whole stream in chunks of its own.
fn chunked(events: &[&str]) -> String {
    let chunks: String = events.iter().map(|event| chunk(event)).collect();
    format!("{}{chunks}0\r\n\r\n", stream("|transfer-encoding: chunked"))
}

fn with_length(events: &[&str]) -> String {
    let body = events.concat();
    format!("{}{body}", stream(&format!("|content-length: {}", body.len())))
}

/// Says an answer in these pieces, and lets nothing of it pass before another backend is asked.
fn held(bench: &mut Bench, pieces: &[&[u8]], ends: bool) {
    let (last, before) = pieces.split_last().expect("there are some");
    for piece in before {
        bench.backend(piece);
        bench.expect::<&str>(&[]);
    }
    bench.backend(last);
    if ends {
        bench.expect::<&str>(&[]);
        bench.backend_ends(End::Closed);
    }
}

/// Whole, byte by byte, and cut at every place.
fn ways(answer: &[u8]) -> Vec<Vec<&[u8]>> {
    let mut ways = std::vec![std::vec![answer], answer.chunks(1).collect()];
    ways.extend((1..answer.len()).map(|at| std::vec![&answer[..at], &answer[at..]]));
    ways
}

#[rstest]
#[case::chunks(&chunked(&[ERROR, DONE]), false)]
#[case::one_chunk(&chunked(&[&format!("{ERROR}{DONE}")]), false)]
#[case::cut_by_chunks(&chunked(&[&ERROR[..9], &ERROR[9..30], &ERROR[30..], DONE]), false)]
#[case::length(&with_length(&[ERROR, DONE]), false)]
#[case::alone(&with_length(&[ERROR]), false)]
#[case::anthropic(&chunked(&[ANTHROPIC]), false)]
#[case::until_close(&format!("{}{ERROR}", stream("")), true)]
fn an_error_event_is_held_while_another_backend_is_tried(#[case] answer: &str, #[case] ends: bool) {
    let release = if ends { "release" } else { "release reusable" };
    for pieces in ways(answer.as_bytes()) {
        let mut bench = asked(3);
        held(&mut bench, &pieces, ends);
        bench.expect(&[release, "ask again ErrorEvent", "connect 1"]);
        bench.connected();
        bench.expect(&[SENT]);
        bench.backend(OK);
        bench.expect(&[PASSED, "release reusable", "settle Done(200)"]);
        bench.idle();
    }
}

#[rstest]
#[case::chunks(&chunked(&[ERROR, DONE]))]
#[case::length(&with_length(&[ERROR, DONE]))]
#[case::anthropic(&chunked(&[&ANTHROPIC[..20], &ANTHROPIC[20..]]))]
#[case::long(&chunked(&[ERROR, &"x".repeat(10_000)]))]
fn an_error_event_passes_as_it_was_when_nobody_does_better(#[case] answer: &str) {
    let cuts = if answer.len() > 1_000 { 2 } else { usize::MAX };
    for pieces in ways(answer.as_bytes()).into_iter().take(cuts) {
        // There is no other backend.
        let mut bench = asked(1);
        held(&mut bench, &pieces, false);
        let passed = format!("send client {}", shown(answer));
        bench.expect(&["release reusable", "ask again ErrorEvent", &passed]);
        bench.idle();
        // The other one cannot be reached.
        let mut bench = asked(2);
        held(&mut bench, &pieces, false);
        bench.skip();
        bench.connect_fails();
        bench.expect(&["release", "ask again Connect", &passed]);
        bench.idle();
        // The other one fails, too; a third is not asked.
        let mut bench = asked(3);
        held(&mut bench, &pieces, false);
        bench.connected();
        bench.skip();
        held(&mut bench, &pieces, false);
        bench.expect(&["release reusable", "ask again ErrorEvent", &passed]);
        bench.idle();
    }
}

#[rstest]
#[case::created("event: response.created\ndata: {}\n\n", 8)]
#[case::chunk("data: {\"id\":\"chatcmpl-1\"}\n\n", 9)]
#[case::comment(": keep-alive\n\n", 1)]
#[case::done(DONE, 7)]
fn anything_else_passes_with_its_first_byte_that_is_no_error(
    #[case] event: &str,
    #[case] differs: usize,
) {
    let head = stream("|content-length: 1000");
    let mut bench = asked(2);
    bench.backend(format!("{head}{event}"));
    bench.expect(&[&format!("send client {}{}", shown(&head), shown(event)), "first byte"]);
    bench.abandoned();
    let mut bench = asked(2);
    bench.backend(&head);
    for byte in &event.as_bytes()[..differs - 1] {
        bench.backend([*byte]);
        bench.expect::<&str>(&[]);
    }
    bench.backend([event.as_bytes()[differs - 1]]);
    let passed = format!("send client {}{}", shown(&head), shown(&event[..differs]));
    bench.expect(&[&passed, "first byte"]);
    bench.backend(&event[differs..]);
    bench.expect(&[format!("relay +{}", shown(&event[differs..]))]);
    bench.abandoned();
}

#[test]
fn a_long_first_read_passes_without_a_copy() {
    let mut bench = asked(2);
    let head = stream("|content-length: 9000");
    let body = format!("data: {{\"id\":\"{}", "x".repeat(8_000));
    bench.backend(format!("{head}{body}"));
    bench.expect(&[&format!("relay {}+{}", shown(&head), shown(&body)), "first byte"]);
    bench.abandoned();
}

#[rstest]
#[case::bad_request("data: {\"error\": {\"type\": \"BadRequestError\", \"code\": 400}}\n\n")]
#[case::invalid("event: error\ndata: {\"error\":{\"type\":\"invalid_request_error\"}}\n\n")]
fn the_requests_own_fault_passes_with_the_end_of_its_event(#[case] event: &str) {
    let head = stream("|content-length: 1000");
    for pieces in ways(event.as_bytes()) {
        let mut bench = asked(2);
        bench.backend(&head);
        held(&mut bench, &pieces, false);
        bench.expect(&[&format!("send client {}{}", shown(&head), shown(event)), "first byte"]);
        bench.abandoned();
    }
}

#[test]
fn an_event_that_never_ends_passes_at_once_where_it_is_long() {
    for event in ["data: {\"error\": {\"message\": \"".into(), format!("{ERROR}data: ")] {
        let mut bench = asked(2);
        bench.backend(format!("{}{event}", stream("|content-length: 100000")));
        bench.expect::<&str>(&[]);
        bench.backend("x".repeat(64 << 10));
        let log = bench.transcript();
        assert_eq!(log.len(), 2);
        assert!(log[0].starts_with("send client HTTP/1.1 200 OK|"));
        assert_eq!(log[1], "first byte");
        bench.abandoned();
    }
}

#[test]
fn a_stream_that_ends_within_its_first_event_passes() {
    let cut = &ERROR[..ERROR.len() - 1];
    for answer in [chunked(&[cut]), chunked(&["event: "]), with_length(&[cut])] {
        for pieces in ways(answer.as_bytes()) {
            let mut bench = asked(2);
            held(&mut bench, &pieces, false);
            let passed = format!("send client {}", shown(&answer));
            bench.expect(&[&passed, "release reusable", "settle Done(200)"]);
            bench.idle();
        }
    }
    let mut bench = asked(2);
    let answer = format!("{}{cut}", stream(""));
    bench.backend(&answer);
    bench.expect::<&str>(&[]);
    bench.backend_ends(End::Closed);
    assert!(bench.transcript()[0].starts_with("send client HTTP/1.1 200 OK|"));
    assert!(bench.client.ends_with(b"\r\n0\r\n\r\n"));
    bench.idle();
}

#[rstest]
#[case::within(&ERROR[..40])]
#[case::behind(ERROR)]
fn a_stream_that_breaks_by_its_first_event_is_tried_elsewhere(#[case] said: &str) {
    let mut bench = asked(2);
    bench.backend(format!("{}{said}", stream("|content-length: 1000")));
    bench.backend_ends(End::Closed);
    bench.expect(&["release", "ask again Cut", "connect 1"]);
    bench.abandoned();
}

#[test]
fn what_must_not_be_repeated_passes_at_once() {
    let mut bench = Bench::new(2);
    bench.client(http("POST /plugin HTTP/1.1|Host: h|Content-Length: 0||"));
    bench.connected();
    bench.skip();
    let head = stream("|content-length: 1000");
    bench.backend(&head);
    bench.backend("d");
    bench.expect(&[&format!("send client {}d", shown(&head)), "first byte"]);
    bench.abandoned();
}

#[rstest]
#[case::json("HTTP/1.1 200 OK|content-type: application/json|content-length: 1000||")]
#[case::no_kind("HTTP/1.1 200 OK|content-length: 1000||")]
#[case::accepted("HTTP/1.1 202 X|content-type: text/event-stream|content-length: 1000||")]
fn what_is_no_stream_passes_at_once(#[case] head: &str) {
    let mut bench = asked(2);
    bench.backend(format!("{}{ERROR}", http(head)));
    bench.expect(&[&format!("send client {}{}", head, shown(ERROR)), "first byte"]);
    bench.abandoned();
}

#[test]
fn the_body_is_sent_again_and_a_slow_client_gets_it_all() {
    let answer = chunked(&[ERROR, DONE]);
    let mut bench = Bench::new(2);
    bench.client(POST);
    bench.connected();
    bench.skip();
    bench.backend(&answer);
    bench.connected();
    bench.expect(&[
        "release reusable",
        "ask again ErrorEvent",
        "connect 1",
        &format!("send upstream {}", shown(POST)),
    ]);
    bench.client_takes = Takes::Bytes(7);
    bench.backend(&answer);
    bench.flow();
    assert_eq!(shown(&bench.client), shown(&answer));
    bench.skip();
    bench.idle();
    // And the next request finds everything as it was.
    bench.client_takes = Takes::All;
    bench.client(GET);
    bench.skip();
    bench.abandoned();
}
