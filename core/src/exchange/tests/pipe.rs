//! Websockets: what is offered and accepted, and two ways for bytes that end together.

use super::failures::{LATE, refused};
use super::harness::{Bench, Takes};
use super::texts::{GET, OK, http, shown};
use crate::exchange::{Drain, End, Input, Side};
use crate::time::Duration;
use rstest::rstest;
use std::format;
use std::string::String;
use std::vec::Vec;

const OFFER: &str = "GET /v1/realtime?x HTTP/1.1|Host: h|Connection: keep-alive, X, Upgrade|X: 1|\
                     Upgrade: websocket|Sec-WebSocket-Version: 13|Sec-WebSocket-Key: a2V5||";
const OFFERED: &str = "GET /v1/realtime?x HTTP/1.1|Host: h|Connection: Upgrade|\
                       Upgrade: websocket|Sec-WebSocket-Version: 13|Sec-WebSocket-Key: a2V5||";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols|Upgrade: websocket|Connection: Upgrade|\
                      Sec-WebSocket-Accept: x|date: d||";

/// A websocket that backend 0, of so many, was offered.
fn offered(backends: u32) -> Bench {
    let mut bench = Bench::new(backends);
    bench.idle = true;
    bench.client(http(OFFER));
    bench.expect(&["ask", "connect 0 fresh"]);
    bench.connected();
    bench.expect(&[format!("send upstream {OFFERED}")]);
    bench
}

/// A websocket that is open.
fn piped() -> Bench {
    let mut bench = offered(2);
    bench.backend(http(SWITCH));
    bench.expect(&[&format!("send client {SWITCH}"), "first byte"]);
    assert!(bench.exchange.interest().client && bench.exchange.interest().upstream);
    (bench.client, bench.upstream) = (Vec::new(), Vec::new());
    bench
}

#[test]
fn a_websocket_passes_both_ways_and_ends_with_the_client() {
    let mut bench = piped();
    bench.client("ping");
    bench.expect(&["send upstream ping"]);
    bench.backend("pong");
    bench.expect(&["relay +pong"]);
    bench.backend("HTTP/1.1 200 OK\r\n\r\n");
    bench.client("GET / HTTP/1.1\r\n\r\n");
    bench.expect(&["relay +HTTP/1.1 200 OK||", "send upstream GET / HTTP/1.1||"]);
    bench.client_leaves();
    bench.expect(&["release", "settle Done(101)", "close"]);
    bench.over();
}

#[test]
fn a_websocket_ends_with_the_backend() {
    let mut bench = piped();
    bench.backend("bye");
    bench.backend_ends(End::Closed);
    bench.expect(&["relay +bye", "release", "settle Done(101)", "shutdown"]);
    // What it was about to say is read, so that no reset destroys the last words.
    bench.client("more");
    bench.expect::<&str>(&[]);
    bench.client_leaves();
    bench.expect(&["close"]);
    bench.over();
}

/// What both sides say, cut and taken in every way, arrives; then one side ends.
#[rstest]
#[case::client(true)]
#[case::backend(false)]
fn bytes_pass_however_they_are_cut(#[case] client_ends: bool) {
    let said = [http(OFFER), "ahead of its turn".into()].concat();
    let answered = [http("HTTP/1.1 103 X||"), http(SWITCH), "right behind".into()].concat();
    let check = |said: &[&[u8]], answered: &[&[u8]], takes: Takes| {
        let mut bench = Bench::new(1);
        (bench.client_takes, bench.upstream_takes) = (takes, takes);
        for piece in said {
            bench.client(piece);
            bench.flow();
            if bench.connecting {
                bench.connected();
                bench.flow();
            }
        }
        for piece in answered {
            bench.backend(piece);
            bench.flow();
        }
        bench.client("late");
        bench.flow();
        if client_ends {
            bench.client("last");
            bench.client_leaves();
        } else {
            bench.backend("last");
            bench.backend_ends(End::Closed);
        }
        bench.flow();
        let log = bench.transcript();
        let settled = log.iter().filter(|line| line.starts_with("settle")).collect::<Vec<_>>();
        assert_eq!(settled, ["settle Done(101)"]);
        if !client_ends {
            bench.client_leaves();
            bench.skip();
        }
        let (to_client, to_backend) = if client_ends { ("", "last") } else { ("last", "") };
        assert_eq!(shown(&bench.client), format!("{}{to_client}", shown(answered.concat())));
        let sent = format!("{OFFERED}ahead of its turnlate{to_backend}");
        assert_eq!(shown(&bench.upstream), sent);
        bench.over();
    };
    let (said, answered) = (said.as_bytes(), answered.as_bytes());
    let (single, singly): (Vec<_>, Vec<_>) =
        (said.chunks(1).collect(), answered.chunks(1).collect());
    for takes in [Takes::All, Takes::Bytes(1), Takes::Bytes(7)] {
        check(&[said], &[answered], takes);
        check(&single, &singly, takes);
        for at in 1..said.len() {
            check(&[&said[..at], &said[at..]], &[answered], takes);
        }
        for at in 1..answered.len() {
            check(&[said], &[&answered[..at], &answered[at..]], takes);
        }
    }
}

/// What else a client may ask to switch to is not for a backend to hear.
#[rstest]
#[case::h2c(
    "GET / HTTP/1.1|Host: h|Connection: Upgrade, HTTP2-Settings|Upgrade: h2c|HTTP2-Settings: AA||"
)]
#[case::h2c_behind("GET / HTTP/1.1|Host: h|Connection: Upgrade|Upgrade: websocket, h2c||")]
#[case::h2c_beside("GET / HTTP/1.1|Host: h|Connection: Upgrade|Upgrade: websocket|Upgrade: h2c||")]
#[case::twice("GET / HTTP/1.1|Host: h|Connection: Upgrade|Upgrade: websocket|Upgrade: websocket||")]
#[case::version("GET / HTTP/1.1|Host: h|Connection: Upgrade|Upgrade: websocket/13||")]
#[case::empty("GET / HTTP/1.1|Host: h|Connection: Upgrade|Upgrade: ||")]
#[case::not_named("GET / HTTP/1.1|Host: h|Connection: close|Upgrade: websocket||")]
#[case::named_like_it("GET / HTTP/1.1|Host: h|Connection: upgraded|Upgrade: websocket||")]
#[case::no_connection("GET / HTTP/1.1|Host: h|Upgrade: websocket||")]
#[case::no_upgrade("GET / HTTP/1.1|Host: h|Connection: Upgrade||")]
#[case::old("GET / HTTP/1.0|Host: h|Connection: Upgrade|Upgrade: websocket||")]
#[case::head("HEAD / HTTP/1.1|Host: h|Connection: Upgrade|Upgrade: websocket||")]
#[case::post("POST / HTTP/1.1|Host: h|Connection: Upgrade|Upgrade: websocket||")]
#[case::lower_case("get / HTTP/1.1|Host: h|Connection: Upgrade|Upgrade: websocket||")]
fn other_offers_are_not_passed_on(#[case] request: &str) {
    let mut bench = Bench::new(2);
    bench.client(http(request));
    bench.connected();
    bench.skip();
    let method = request.split(' ').next().expect("a method");
    assert_eq!(shown(&bench.upstream), format!("{method} / HTTP/1.1|Host: h||"));
    bench.backend(http(SWITCH));
    let log = bench.transcript();
    assert_eq!(log[..2], ["release", "ask again Nonsense"]);
    assert!(bench.client.is_empty() || bench.client.starts_with(b"HTTP/1.1 502 "));
    bench.abandoned();
}

#[test]
fn a_body_makes_it_no_offer() {
    for framing in ["Content-Length: 1||a", "Transfer-Encoding: chunked||1|a|0||"] {
        let mut bench = Bench::new(1);
        let offer = "Connection: Upgrade|Upgrade: websocket";
        bench.client(http(&format!("GET / HTTP/1.1|Host: h|{offer}|{framing}")));
        bench.connected();
        assert_eq!(shown(&bench.upstream), format!("GET / HTTP/1.1|Host: h|{framing}"));
        bench.skip();
        bench.abandoned();
    }
}

#[rstest]
#[case::case_of_words(
    "connection: UPGRADE|upgrade: WebSocket",
    "connection: UPGRADE|upgrade: WebSocket"
)]
#[case::no_length(
    "Connection: upgrade|Upgrade: websocket|Content-Length: 0",
    "Connection: upgrade|Upgrade: websocket|Content-Length: 0"
)]
#[case::lists(
    "Connection: a|Connection: close ,\tupgrade|Upgrade: websocket|A: 1|TE: x",
    "Connection: Upgrade|Upgrade: websocket"
)]
#[case::named_by_itself(
    "Connection: upgrade, connection|Upgrade: websocket",
    "Connection: Upgrade|Upgrade: websocket"
)]
fn an_offer_crosses_without_other_options(#[case] headers: &str, #[case] sent: &str) {
    let mut bench = Bench::new(1);
    bench.client(http(&format!("GET / HTTP/1.1|Host: h|{headers}||")));
    bench.connected();
    assert_eq!(shown(&bench.upstream), format!("GET / HTTP/1.1|Host: h|{sent}||"));
    bench.skip();
    bench.backend(http(
        "HTTP/1.1 101 X|Connection: keep-alive, upgrade, b|Upgrade: WebSocket|b: 1|Keep-Alive: x||",
    ));
    let switched = "send client HTTP/1.1 101 X|Connection: Upgrade|Upgrade: WebSocket||";
    bench.expect(&[switched, "first byte"]);
    bench.abandoned();
}

#[rstest]
#[case::nothing("HTTP/1.1 101 X||")]
#[case::other("HTTP/1.1 101 X|Upgrade: h2c|Connection: Upgrade||")]
#[case::two("HTTP/1.1 101 X|Upgrade: websocket|Upgrade: websocket|Connection: Upgrade||")]
#[case::list("HTTP/1.1 101 X|Upgrade: websocket, h2c|Connection: Upgrade||")]
#[case::old("HTTP/1.0 101 X|Upgrade: websocket|Connection: Upgrade||")]
fn a_switch_to_something_else_is_nonsense(#[case] answer: &str) {
    let mut bench = offered(2);
    bench.backend(http(answer));
    refused(bench, &["release", "ask again Nonsense"], 502, "No backend answered the request.");
}

#[test]
fn a_switch_before_the_offer_is_all_there_is_nonsense() {
    let mut bench = Bench::new(1);
    bench.upstream_takes = Takes::Bytes(10);
    bench.client(http(OFFER));
    bench.connected();
    bench.skip();
    bench.backend(http(SWITCH));
    assert_eq!(bench.transcript()[..2], ["release", "ask again Nonsense"]);
    bench.abandoned();
}

#[rstest]
#[case::forbidden("HTTP/1.1 403 Forbidden|content-length: 2||no", "settle Done(403)")]
#[case::upgrade_required("HTTP/1.1 426 X|upgrade: h2c|content-length: 0||", "settle Done(426)")]
#[case::error("HTTP/1.1 500 X|content-length: 2||no", "settle Done(500)")]
#[case::okay("HTTP/1.1 200 OK|upgrade: websocket|content-length: 2||no", "settle Done(200)")]
fn any_other_answer_is_an_ordinary_one(#[case] answer: &str, #[case] settled: &str) {
    let mut bench = offered(2);
    bench.backend(http(answer));
    let passed = answer.replace("upgrade: h2c|", "").replace("upgrade: websocket|", "");
    bench.expect(&[&format!("send client {passed}"), "release reusable", settled]);
    bench.idle();
    // And what the client said ahead is a request.
    let mut bench = Bench::new(1);
    bench.client(http(&format!("{OFFER}GET /x HTTP/1.1|Host: h||")));
    bench.connected();
    bench.skip();
    bench.backend(http(answer));
    assert_eq!(bench.transcript()[3..], ["ask", "connect 0"]);
    bench.abandoned();
}

#[test]
fn it_is_tried_once_unless_nothing_was_sent() {
    let mut bench = Bench::new(3);
    bench.client(http(OFFER));
    bench.connect_fails();
    bench.expect(&["ask", "connect 0 fresh", "release", "ask again Connect", "connect 1 fresh"]);
    bench.connected();
    bench.expect(&[format!("send upstream {OFFERED}")]);
    bench.backend_ends(End::Closed);
    refused(bench, &["release", "ask again Lost"], 502, "No backend answered the request.");
    let mut bench = offered(2);
    bench.secs(3_600);
    refused(bench, &["release", "ask again Timeout"], 504, LATE);
}

#[test]
fn a_backend_hears_of_it_whatever_the_path() {
    for path in ["/health", "/v1/models", "/version"] {
        let mut bench = Bench::new(1);
        bench.client(http(&OFFER.replace("/v1/realtime?x", path)));
        bench.expect(&["ask", "connect 0 fresh"]);
        bench.abandoned();
    }
}

#[test]
fn a_client_is_not_read_while_the_backend_takes_nothing() {
    let mut bench = piped();
    bench.upstream_takes = Takes::Bytes(0);
    bench.client("x".repeat(100_000));
    bench.expect(&["send upstream "]);
    let interest = bench.exchange.interest();
    assert!(!interest.client && !interest.client_end && interest.upstream);
    bench.backend("pong");
    bench.expect(&["relay +pong"]);
    bench.upstream_takes = Takes::Bytes(99_999);
    bench.tell(Input::Writable(Side::Upstream));
    assert!(!bench.exchange.interest().client);
    bench.flow();
    bench.flow();
    assert!(bench.exchange.interest().client);
    assert_eq!(bench.upstream.len(), 100_000);
    bench.skip();
    bench.abandoned();
}

#[test]
fn a_backend_is_not_read_while_the_client_takes_nothing() {
    let mut bench = piped();
    bench.client_takes = Takes::Bytes(0);
    bench.backend("pong");
    bench.expect(&["relay +pong"]);
    let interest = bench.exchange.interest();
    assert!(interest.client && !interest.upstream);
    bench.client("ping");
    bench.expect(&["send upstream ping"]);
    bench.abandoned();
}

#[test]
fn the_clients_last_words_wait_for_the_backend() {
    let mut bench = piped();
    bench.upstream_takes = Takes::Bytes(0);
    bench.client("bye");
    bench.client_leaves();
    bench.expect(&["send upstream "]);
    let interest = bench.exchange.interest();
    assert!(!interest.client && !interest.upstream && !interest.client_end);
    bench.upstream_takes = Takes::All;
    bench.flow();
    bench.expect(&["send upstream bye", "release", "settle Done(101)", "close"]);
    bench.over();
}

#[test]
fn a_client_that_closed_its_half_gets_what_was_said() {
    let mut bench = piped();
    bench.client_takes = Takes::Bytes(1);
    bench.backend("said");
    bench.client_leaves();
    bench.expect(&["relay +said"]);
    bench.flow();
    bench.expect(&["release", "settle Done(101)", "close"]);
    assert_eq!(bench.client, b"said");
    bench.over();
}

#[test]
fn the_backends_last_words_wait_for_the_client() {
    let mut bench = piped();
    bench.client_takes = Takes::Bytes(1);
    bench.backend("said");
    bench.backend_ends(End::Closed);
    bench.expect(&["relay +said", "release", "settle Done(101)"]);
    bench.client("not heard");
    bench.client_leaves();
    bench.expect::<&str>(&[]);
    bench.flow();
    bench.expect(&["close"]);
    assert_eq!(bench.client, b"said");
    bench.over();
}

#[test]
fn a_reset_ends_it() {
    let mut bench = piped();
    bench.upstream_takes = Takes::Bytes(0);
    bench.client("lost");
    bench.skip();
    bench.tell(Input::Closed(Side::Client, End::Reset));
    bench.expect(&["release", "settle ClientGone", "close"]);
    bench.over();
    let mut bench = piped();
    bench.backend_ends(End::Reset);
    bench.expect(&["release", "settle Broken", "shutdown"]);
    bench.secs(60);
    bench.expect(&["close"]);
    bench.over();
    let mut bench = piped();
    bench.client_takes = Takes::Fails;
    bench.backend("x");
    bench.expect(&["fail to send", "release", "settle ClientGone", "close"]);
    bench.over();
}

#[test]
fn a_backend_that_takes_no_more_may_have_said_why() {
    let mut bench = piped();
    bench.upstream_takes = Takes::Bytes(0);
    bench.client("lost");
    bench.skip();
    bench.tell(Input::Refused);
    bench.client("lost, too");
    bench.expect::<&str>(&[]);
    bench.backend("bye");
    bench.backend_ends(End::Reset);
    bench.expect(&["relay +bye", "release", "settle Broken", "shutdown"]);
    bench.client_leaves();
    bench.expect(&["close"]);
    bench.over();
    // One that says nothing is not waited for.
    let mut bench = piped();
    bench.tell(Input::Refused);
    bench.secs(60);
    bench.expect(&["release", "settle TimedOut", "shutdown"]);
    bench.client_leaves();
    bench.expect(&["close"]);
    bench.over();
}

#[test]
fn it_may_be_silent_but_not_deaf() {
    let mut bench = piped();
    assert!(bench.exchange.poll_timeout().is_none());
    bench.secs(86_400);
    bench.expect::<&str>(&[]);
    bench.client_takes = Takes::Bytes(0);
    bench.backend("x");
    bench.wait(Duration::from_millis(59_999));
    bench.expect(&["relay +x"]);
    bench.client("still sends");
    bench.wait(Duration::from_millis(1));
    bench.expect(&["send upstream still sends", "release", "settle ClientGone", "reset"]);
    bench.over();
    let mut bench = piped();
    bench.secs(86_400);
    for _ in 0..2 {
        bench.upstream_takes = Takes::Bytes(0);
        bench.client("abc");
        bench.wait(Duration::from_millis(59_999));
        bench.backend("still speaks");
        bench.expect(&["send upstream ", "relay +still speaks"]);
        bench.upstream_takes = Takes::All;
        bench.flow();
        bench.expect(&["send upstream abc"]);
    }
    bench.upstream_takes = Takes::Bytes(0);
    bench.client("abc");
    bench.wait(Duration::from_millis(59_999));
    bench.expect(&["send upstream "]);
    bench.wait(Duration::from_millis(1));
    bench.expect(&["release", "settle TimedOut", "shutdown"]);
    bench.client_leaves();
    bench.expect(&["close"]);
    bench.over();
}

#[test]
fn a_stop_leaves_it_open() {
    let mut bench = piped();
    bench.drain(Drain::Grace);
    bench.drain(Drain::Closing);
    bench.client("ping");
    bench.backend("pong");
    bench.expect(&["send upstream ping", "relay +pong"]);
    bench.abandoned();
}

#[test]
fn a_stop_before_it_is_open_leaves_it_be() {
    let mut bench = offered(1);
    bench.drain(Drain::Closing);
    bench.backend(http(SWITCH));
    bench.expect(&[&format!("send client {SWITCH}"), "first byte"]);
    bench.abandoned();
}

#[test]
fn requests_before_it_leave_no_trace() {
    let mut bench = Bench::new(1);
    bench.client(GET);
    bench.connected();
    bench.backend(OK);
    bench.client(http(OFFER));
    bench.skip();
    bench.connected();
    bench.skip();
    bench.backend(http(SWITCH));
    bench.client("a".repeat(70_000));
    bench.backend("b".repeat(70_000));
    let log: Vec<String> = bench.transcript();
    assert_eq!(log.len(), 4, "{log:?}");
    bench.client_leaves();
    bench.expect(&["release", "settle Done(101)", "close"]);
    bench.over();
}
