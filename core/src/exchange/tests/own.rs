//! Requests that no backend gets, and those that wait: for memory, or for knowledge.

use super::harness::Bench;
use super::texts::{GET, OK, POST, error, http, status_line};
use crate::config::Limits;
use crate::time::Duration;
use rstest::rstest;
use std::format;
use std::string::String;
use std::vec::Vec;

#[test]
fn no_memory_for_a_body_is_503() {
    let mut bench = Bench::with(1, Limits::default(), 20);
    bench.others_take(8);
    bench.client(POST);
    bench.expect(&["reserve 13: no"]);
    assert!(!bench.exchange.interest().client);
    bench.wait(Duration::from_millis(100));
    bench.expect(&["reserve 13: no", "reserve 13: no"]);
    bench.wait(Duration::from_millis(59_899));
    assert_eq!(bench.transcript().len(), 1_197);
    bench.wait(Duration::from_millis(1));
    let busy = "The service is currently busy. Please try again later.";
    let answer = bench.refusal(503, "retry-after: 1|", &error(503, busy));
    bench.expect(&[format!("send client {answer}"), String::from("shutdown")]);
    bench.client_leaves();
    bench.expect(&["close"]);
    bench.over();
}

#[test]
fn memory_for_a_body_is_waited_for() {
    let mut bench = Bench::with(1, Limits::default(), 20);
    let others = bench.others_take(8);
    bench.client(&POST[..POST.len() - 5]);
    bench.expect(&["reserve 13: no"]);
    bench.wait(Duration::from_millis(60));
    bench.expect(&["reserve 13: no"]);
    bench.engine.release(others);
    bench.wait(Duration::from_millis(40));
    bench.expect(&["reserve 13"]);
    // From here the client has its whole time again.
    bench.secs(59);
    bench.client(&POST[POST.len() - 5..]);
    bench.expect(&["ask", "connect 0"]);
    bench.abandoned();
}

#[test]
fn a_promised_length_takes_no_more_than_has_come() {
    const MIB: usize = 1 << 20;
    let mut bench = Bench::with(1, Limits::default(), 8 << 20);
    bench.client(http(&format!("POST / HTTP/1.1|Host: h|Content-Length: {}||", 5 * MIB)));
    bench.expect(&["reserve 1048576"]);
    // Another's body still has room.
    let other = bench.others_take(7 << 20);
    bench.engine.release(other);
    bench.client("x".repeat(MIB + 1));
    bench.expect(&["reserve 1048578"]);
    bench.client("x".repeat(2 * MIB));
    bench.expect(&["reserve 3145726"]);
    bench.client("x".repeat(2 * MIB - 1));
    bench.expect(&["ask", "connect 0 fresh"]);
    bench.abandoned();
}

#[test]
fn a_chunked_body_that_outgrows_its_memory_waits_with_what_it_has() {
    let mut bench = Bench::with(1, Limits::default(), 200_000);
    bench.client(http("POST / HTTP/1.1|Host: h|Transfer-Encoding: chunked||"));
    bench.expect(&["reserve 65536"]);
    // Of all that want more than there is one may go on, and this one is another.
    let other = bench.others_take(1);
    assert!(bench.engine.reserve(other, 200_000).is_some_and(|share| share.overdraft));
    bench.client(format!("11000\r\n{}\r\n", "x".repeat(0x11000)));
    bench.expect(&["reserve 73728: no"]);
    bench.client_leaves();
    bench.expect(&["unreserve 65536", "close"]);
    bench.over();
}

#[test]
fn a_chunked_body_may_be_the_one_that_overdraws() {
    let mut bench = Bench::with(1, Limits::default(), 200_000);
    bench.client(http("POST / HTTP/1.1|Host: h|Transfer-Encoding: chunked||"));
    bench.others_take(130_000);
    bench.client(format!("11000\r\n{}\r\n0\r\n\r\n", "x".repeat(0x11000)));
    bench.expect(&["reserve 65536", "reserve 73728", "ask", "connect 0 fresh"]);
    bench.abandoned();
}

#[rstest]
#[case::health("GET /health HTTP/1.1|Host: h||", "")]
#[case::ping("POST /p%69ng HTTP/1.1|Host: h||", "")]
#[case::models("GET /v1/models HTTP/1.1|Host: h||", r#"{"object":"list","data":[{"id":"m"}]}"#)]
#[case::live("GET /proxy/live HTTP/1.1|Host: h||", "")]
#[case::version("GET /version?x HTTP/1.1|Host: h||", r#"{"version":"0.33.0"}"#)]
fn some_are_answered_without_a_backend(#[case] request: &str, #[case] body: &str) {
    let mut bench = Bench::new(2);
    bench.client(http(request));
    let answer = bench.own("200 OK", "", "", body);
    bench.expect(&[String::from("ask"), format!("send client {answer}")]);
    bench.idle();
}

#[test]
fn the_status_is_made_of_what_the_engine_knows() {
    let mut bench = Bench::new(1);
    bench.client(http("GET /proxy/status HTTP/1.1|Host: h|Content-Length: 2||hi"));
    let log = bench.transcript().concat();
    assert!(log.contains(r#""redis":{"configured":false,"#), "{log}");
    let backend =
        r#""state":"up","why":null,"rests":false,"version":"0.33.0","models":["m"],"in_flight":0,"#;
    assert!(log.contains(backend), "{log}");
    bench.idle();
}

#[rstest]
#[case::head_of_health("HEAD /health HTTP/1.1|Host: h||", "GET", false)]
#[case::head_of_status("HEAD /proxy/status HTTP/1.1|Host: h||", "GET", false)]
#[case::post_of_live("POST /proxy/live HTTP/1.1|Host: h|Content-Length: 2||hi", "GET", true)]
#[case::post_of_models("POST /v1/models HTTP/1.1|Host: h|Content-Length: 2||hi", "GET", true)]
fn wrong_methods(#[case] request: &str, #[case] allow: &str, #[case] body: bool) {
    let mut bench = Bench::new(1);
    bench.client(http(request));
    let detail = r#"{"detail":"Method Not Allowed"}"#;
    let mut answer = bench.own(&status_line(405), &format!("allow: {allow}|"), "", detail);
    if !body {
        answer = answer.replace(detail, "");
    }
    let log = bench.transcript();
    assert!(log.contains(&format!("send client {answer}")), "{log:?}");
    bench.idle();
}

#[test]
fn a_body_that_only_the_proxy_hears_of_is_read_and_dropped() {
    let mut bench = Bench::new(1);
    bench.client(format!("GET /health HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc{GET}"));
    let log = bench.transcript();
    let log: Vec<&str> = log.iter().map(|line| line.split(' ').next().unwrap_or("")).collect();
    assert_eq!(log, ["reserve", "ask", "send", "unreserve", "ask", "connect"]);
    bench.abandoned();
}

#[test]
fn what_is_not_known_yet_is_asked_again() {
    let mut bench = Bench::unprobed(1, Limits::default(), 0);
    bench.client(POST);
    bench.expect(&["reserve 13", "ask"]);
    bench.wait(Duration::from_millis(40));
    bench.expect(&["ask", "ask"]);
    bench.probed(0);
    bench.wait(Duration::from_millis(20));
    bench.expect(&["ask", "connect 0"]);
    bench.connected();
    bench.backend(OK);
    bench.skip();
    bench.idle();
}

#[test]
fn what_stays_unknown_is_503() {
    let mut bench = Bench::unprobed(1, Limits::default(), 0);
    bench.client(GET);
    bench.wait(Duration::from_millis(1_999));
    assert_eq!(bench.transcript().len(), 100);
    bench.wait(Duration::from_millis(1));
    let message = "The service is not ready yet. Please try again later.";
    let answer = bench.own(&status_line(503), "retry-after: 1|", "", &error(503, message));
    bench.expect(&[String::from("ask"), format!("send client {answer}")]);
    bench.idle();
}

/// A model that nobody lists, asked for where backend 0 lists `m` and backend 1 lists `n`.
fn unknown() -> Bench {
    let mut bench = Bench::unprobed(2, Limits::default(), 0);
    bench.lists(0, "m");
    bench.lists(1, "n");
    bench.secs(10);
    bench.client(POST.replace("\"m\"", "\"x\""));
    bench.expect(&["reserve 13", "ask"]);
    bench.lists(0, "m");
    bench.lists(1, "n");
    bench.wait(Duration::from_millis(20));
    bench.expect(&["ask", "connect 0"]);
    bench.connected();
    bench.skip();
    bench
}

const NO_SUCH_MODEL: &str = r#"{"error":{"message":"The model `x` does not exist.","type":"NotFoundError","param":"model","code":404}}"#;

#[test]
fn an_unknown_model_is_404_and_every_model_is_named() {
    let body = NO_SUCH_MODEL.replace("exist.", "exist. Valid aliases: m, n.");
    for chunks in [1, 1_000] {
        let mut bench = unknown();
        let answer = bench.own("404 Not Found", "", "", &body);
        let said = format!(
            "HTTP/1.1 404 Not Found\r\ncontent-length: {}\r\n\r\n{NO_SUCH_MODEL}",
            NO_SUCH_MODEL.len()
        );
        for piece in said.as_bytes().chunks(chunks) {
            bench.backend(piece);
        }
        let passed = format!("send client {answer}");
        bench.expect(&[&passed, "release reusable", "settle Done(404)", "unreserve 13"]);
        bench.idle();
    }
}

#[rstest]
#[case::no_such_path("HTTP/1.1 404 X|content-length: 22||{\"detail\":\"Not Found\"}", 404)]
#[case::no_key("HTTP/1.1 401 X|content-length: 2||{}", 401)]
#[case::wrong_fields("HTTP/1.1 400 X|content-length: 2||{}", 400)]
fn what_a_backend_says_of_an_unknown_model_passes(#[case] answer: &str, #[case] status: u16) {
    let mut bench = unknown();
    bench.backend(http(answer));
    bench.expect(&[
        &format!("send client {answer}"),
        "release reusable",
        &format!("settle Done({status})"),
        "unreserve 13",
    ]);
    bench.idle();
}

#[test]
fn who_judges_an_unknown_model_may_be_lost() {
    let mut bench = unknown();
    bench.backend("HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\nabc");
    bench.backend_ends(crate::exchange::End::Closed);
    let log = bench.transcript();
    assert_eq!(log[..2], ["release", "ask again Cut"]);
    assert!(log[2].starts_with("send client HTTP/1.1 502 "), "{log:?}");
    bench.idle();
}
