//! The process stops: what is under way finishes, nothing new begins.

use super::harness::{Bench, Takes};
use super::texts::{CLOSE, GET, OK, POST, shown};
use crate::exchange::Drain;
use std::format;
use std::string::String;

const CLOSED: &str = "send client HTTP/1.1 200 OK|content-length: 2|connection: close||hi";

#[test]
fn in_grace_requests_are_still_answered_and_the_connection_ends() {
    let mut bench = Bench::new(1);
    bench.drain(Drain::Grace);
    bench.expect::<&str>(&[]);
    bench.idle();
    bench.client(GET);
    bench.expect(&["ask", "connect 0"]);
    bench.connected();
    bench.skip();
    bench.backend(OK);
    bench.expect(&[CLOSED, "release reusable", "settle Done(200)", "close"]);
    bench.over();
}

#[test]
fn in_grace_our_own_answers_end_the_connection() {
    let mut bench = Bench::new(1);
    bench.drain(Drain::Grace);
    bench.client("GET /health HTTP/1.1\r\nHost: h\r\n\r\n");
    let answer = bench.own("503 Service Unavailable", "", CLOSE, "");
    bench.expect(&["ask", &format!("send client {answer}"), "close"]);
    bench.over();
}

#[test]
fn a_connection_that_was_just_accepted_may_still_bring_a_request() {
    let mut bench = Bench::new(1);
    bench.drain(Drain::Closing);
    bench.secs(1);
    bench.expect::<&str>(&[]);
    bench.client(GET);
    bench.expect(&["ask", "connect 0"]);
    bench.connected();
    bench.skip();
    bench.backend(OK);
    bench.expect(&[CLOSED, "release reusable", "settle Done(200)", "close"]);
    bench.over();
    let mut bench = Bench::new(1);
    bench.drain(Drain::Closing);
    bench.secs(2);
    bench.expect(&["close"]);
    bench.over();
}

#[test]
fn an_idle_connection_is_closed_at_once() {
    let mut bench = Bench::new(1);
    bench.client(GET);
    bench.connected();
    bench.backend(OK);
    bench.skip();
    bench.drain(Drain::Closing);
    bench.expect(&["close"]);
    bench.over();
}

#[test]
fn a_request_under_way_finishes_and_the_connection_ends() {
    let mut bench = Bench::new(1);
    bench.client(&POST[..30]);
    bench.drain(Drain::Closing);
    bench.client(&POST[30..]);
    bench.expect(&["reserve 13", "ask", "connect 0"]);
    bench.connected();
    bench.skip();
    bench.backend(OK);
    bench.expect(&[CLOSED, "release reusable", "settle Done(200)", "unreserve 13", "close"]);
    bench.over();
}

#[test]
fn an_answer_under_way_finishes_and_the_connection_ends() {
    let mut bench = Bench::new(1);
    bench.client(GET);
    bench.connected();
    bench.backend("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nh");
    bench.skip();
    bench.drain(Drain::Grace);
    bench.drain(Drain::Closing);
    bench.drain(Drain::Grace);
    bench.expect::<&str>(&[]);
    bench.backend("i");
    bench.expect(&["relay +i", "release reusable", "settle Done(200)", "close"]);
    bench.over();
}

#[test]
fn an_answer_that_was_kept_finishes() {
    let mut bench = Bench::new(2);
    bench.client(GET);
    bench.connected();
    let busy = "HTTP/1.1 503 X\r\ncontent-length: 1\r\n\r\nx";
    bench.backend(busy);
    bench.skip();
    bench.drain(Drain::Closing);
    bench.connect_fails();
    bench.expect(&[
        "release",
        "ask again Connect",
        &format!("send client {}", shown(busy)),
        "close",
    ]);
    bench.over();
}

#[test]
fn no_further_request_is_taken_and_its_bytes_do_not_destroy_the_answer() {
    let mut bench = Bench::new(1);
    bench.client(format!("{GET}{GET}"));
    bench.connected();
    bench.backend("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nh");
    bench.skip();
    bench.drain(Drain::Closing);
    bench.backend("i");
    bench.expect(&["relay +i", "release reusable", "settle Done(200)", "shutdown"]);
    bench.secs(2);
    bench.expect(&["close"]);
    bench.over();
}

#[test]
fn the_end_of_an_answer_still_leaves() {
    let mut bench = Bench::new(1);
    bench.client(GET);
    bench.connected();
    bench.client_takes = Takes::Bytes(1);
    bench.backend(OK);
    bench.drain(Drain::Closing);
    bench.skip();
    bench.flow();
    assert_eq!(bench.client, OK.as_bytes());
    assert_eq!(bench.transcript().last().map(String::as_str), Some("close"));
    bench.over();
}

#[test]
fn a_request_that_waits_goes_on_waiting() {
    let mut bench = Bench::unprobed(1, crate::config::Limits::default(), 0);
    bench.client(GET);
    bench.drain(Drain::Closing);
    bench.probed(0);
    bench.secs(1);
    bench.expect(&["ask", "ask", "connect 0"]);
    bench.abandoned();
}
