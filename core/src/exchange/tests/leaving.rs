//! Clients that leave, at any moment, or stay and take nothing.

use super::harness::{Bench, Takes};
use super::texts::{GET, OK, POST, http, shown};
use crate::config::Limits;
use crate::exchange::{End, Input, Side};
use crate::time::Duration;
use rstest::rstest;
use std::format;

/// Where a request is when its client leaves, and what that brings.
fn reach(phase: &str) -> Bench {
    let mut bench = if phase == "later" {
        Bench::unprobed(1, Limits::default(), 0)
    } else if phase == "starved" {
        Bench::with(2, Limits::default(), 10)
    } else {
        Bench::new(2)
    };
    match phase {
        "fresh" => {}
        "head" => bench.client("GET / HT"),
        "upload" => bench.client(&POST[..POST.len() - 1]),
        "starved" => {
            bench.others_take(1);
            bench.client(POST);
        }
        "later" | "connecting" => bench.client(POST),
        _ => {
            bench.client(POST);
            if phase == "sending" {
                bench.upstream_takes = Takes::Bytes(7);
            }
            bench.connected();
        }
    }
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n";
    match phase {
        "reconnecting" => bench.backend_ends(End::Reset),
        "informed" => bench.backend("HTTP/1.1 103 X\r\n\r\n"),
        "in a head" => bench.backend("HTTP/1.1 200"),
        "behind a head" => bench.backend(head),
        "streaming" => bench.backend(format!("{head}abc")),
        "holding" => bench.backend("HTTP/1.1 500 X\r\ncontent-length: 9\r\n\r\nabc"),
        "held" => {
            bench.backend("HTTP/1.1 500 X\r\ncontent-length: 3\r\n\r\nabc");
            bench.connected();
        }
        "slow" => {
            bench.client_takes = Takes::Bytes(5);
            bench.backend(format!("{head}abc"));
        }
        "answered" => {
            bench.client_takes = Takes::Bytes(5);
            bench.backend(OK);
        }
        "idle" => bench.backend(OK),
        _ => {}
    }
    bench.skip();
    bench
}

#[rstest]
#[case::fresh("fresh", &[])]
#[case::head("head", &[])]
#[case::upload("upload", &["unreserve 13"])]
#[case::starved("starved", &[])]
#[case::later("later", &["unreserve 13"])]
#[case::connecting("connecting", &["release", "settle ClientGone", "unreserve 13"])]
#[case::sending("sending", &["release", "settle ClientGone", "unreserve 13"])]
#[case::prefill("prefill", &["release", "settle ClientGone", "unreserve 13"])]
#[case::reconnecting("reconnecting", &["release", "settle ClientGone", "unreserve 13"])]
#[case::informed("informed", &["release", "settle ClientGone", "unreserve 13"])]
#[case::in_a_head("in a head", &["release", "settle ClientGone", "unreserve 13"])]
#[case::behind_a_head("behind a head", &["release", "settle ClientGone", "unreserve 13"])]
#[case::streaming("streaming", &["release", "settle ClientGone"])]
#[case::holding("holding", &["release", "settle ClientGone", "unreserve 13"])]
#[case::held("held", &["release", "settle ClientGone", "unreserve 13"])]
#[case::slow("slow", &["release", "settle ClientGone"])]
#[case::answered("answered", &[])]
#[case::idle("idle", &[])]
fn a_client_leaves(#[case] phase: &str, #[case] before: &[&str]) {
    let mut expected = before.to_vec();
    expected.push("close");
    for end in [End::Closed, End::Reset] {
        let mut bench = reach(phase);
        bench.tell(Input::Closed(Side::Client, end));
        bench.expect(&expected);
        bench.over();
        // What comes too late changes nothing.
        bench.client(GET);
        bench.backend(OK);
        bench.client_leaves();
        bench.backend_ends(End::Closed);
        bench.secs(10_000);
        bench.over();
    }
}

#[rstest]
fn a_task_is_dropped(
    #[values(
        "fresh",
        "head",
        "upload",
        "starved",
        "later",
        "connecting",
        "sending",
        "prefill",
        "reconnecting",
        "informed",
        "in a head",
        "behind a head",
        "streaming",
        "holding",
        "held",
        "slow",
        "answered",
        "idle"
    )]
    phase: &str,
) {
    reach(phase).abandoned();
}

/// Between the orders of one step, too: each output may be the last that a task sees.
#[rstest]
fn a_task_is_dropped_between_two_orders(
    #[values("prefill", "behind a head", "streaming", "holding", "connecting", "held")] phase: &str,
    #[values("bytes", "end", "leave", "timeout")] what: &str,
    #[values(0, 1, 2, 3)] orders: usize,
) {
    let mut bench = reach(phase);
    let bytes = "HTTP/1.1 500 X\r\ncontent-length: 9\r\n\r\nabcdefghi";
    match what {
        "bytes" => bench.stop_after(orders, Input::Received(Side::Upstream, bytes.as_bytes())),
        "end" => bench.stop_after(orders, Input::Closed(Side::Upstream, End::Reset)),
        "leave" => bench.stop_after(orders, Input::Closed(Side::Client, End::Closed)),
        _ => {
            bench.now = bench.exchange.poll_timeout().expect("a deadline").at;
            bench.stop_after(orders, Input::Timeout);
        }
    }
    bench.abandoned();
}

#[test]
fn a_write_fails_before_the_body_is_there() {
    let mut bench = Bench::new(1);
    let head = "POST / HTTP/1.1|Host: h|Expect: 100-continue|Content-Length: 2||";
    bench.client_takes = Takes::Fails;
    bench.client(http(head));
    bench.expect(&["reserve 2", "fail to send", "unreserve 2", "close"]);
    bench.over();
}

#[test]
fn a_write_fails_before_the_engine_is_asked_for_a_whole_request() {
    let mut bench = Bench::new(1);
    let head = "POST / HTTP/1.1|Host: h|Expect: 100-continue|Transfer-Encoding: chunked||0||";
    bench.client_takes = Takes::Fails;
    bench.client(http(head));
    bench.expect(&["reserve 65536", "fail to send", "unreserve 65536", "close"]);
    bench.over();
}

#[test]
fn a_write_fails_before_another_backend_is_asked_for() {
    let mut bench = Bench::new(2);
    bench.client(GET);
    bench.connected();
    bench.skip();
    bench.client_takes = Takes::Fails;
    bench.backend("HTTP/1.1 103 X\r\n\r\nnonsense\n");
    bench.expect(&["fail to send", "release", "settle ClientGone", "close"]);
    bench.over();
}

#[test]
fn a_write_fails_before_memory_is_asked_for() {
    let mut bench = Bench::new(1);
    bench.client_takes = Takes::Bytes(0);
    bench.client(http("POST / HTTP/1.1|Host: h|Expect: 100-continue|Transfer-Encoding: chunked||"));
    bench.expect(&["reserve 65536", "send client "]);
    bench.client_takes = Takes::Fails;
    bench.client(format!("20000\r\n{}", "x".repeat(0x20000)));
    bench.expect(&["reserve 196608"]);
    bench.client_writable();
    bench.expect(&["fail to send", "unreserve 262144", "close"]);
    bench.over();
}

#[test]
fn a_write_of_the_stream_fails() {
    let mut bench = reach("streaming");
    bench.client_takes = Takes::Fails;
    bench.backend("def");
    bench.expect(&["fail to send", "release", "settle ClientGone", "close"]);
    bench.over();
}

#[test]
fn a_write_of_the_end_of_a_stream_fails() {
    let mut bench = reach("streaming");
    bench.client_takes = Takes::Fails;
    bench.backend("defghi");
    bench.expect(&["fail to send", "release reusable", "settle Done(200)", "close"]);
    bench.over();
}

#[test]
fn a_client_that_takes_nothing_is_gone() {
    let mut bench = reach("slow");
    bench.secs(59);
    bench.expect::<&str>(&[]);
    bench.client_writable();
    bench.expect(&["send client 1.1 2"]);
    bench.secs(59);
    bench.expect::<&str>(&[]);
    bench.secs(1);
    bench.expect(&["release", "settle ClientGone", "reset"]);
    bench.over();
}

#[test]
fn a_client_that_does_not_take_the_end_is_gone() {
    let mut bench = reach("answered");
    bench.secs(59);
    bench.expect::<&str>(&[]);
    bench.secs(1);
    // To an old client whose answer ends with the connection, an orderly end would be its end.
    bench.expect(&["reset"]);
    bench.over();
}

#[test]
fn a_long_prefill_is_no_stall() {
    let mut bench = Bench::new(1);
    bench.client(POST);
    bench.connected();
    bench.secs(600);
    bench.skip();
    bench.client_takes = Takes::Bytes(1);
    bench.backend("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n");
    assert!(bench.owed());
    bench.secs(59);
    assert!(bench.owed());
    bench.client_takes = Takes::All;
    bench.flow();
    bench.secs(600);
    bench.skip();
    bench.client_takes = Takes::Bytes(0);
    bench.backend("1\r\nb\r\n");
    bench.expect(&["relay +1|b|"]);
    bench.secs(59);
    bench.expect::<&str>(&[]);
    bench.secs(1);
    bench.expect(&["release", "settle ClientGone", "reset"]);
    bench.over();
}

#[test]
fn a_slow_client_is_not_the_backends_silence() {
    let limits = Limits { http_timeout: Some(Duration::from_secs(10)), ..Limits::default() };
    let mut bench = Bench::with(1, limits, 0);
    bench.client(GET);
    bench.connected();
    bench.client_takes = Takes::Bytes(1);
    bench.backend("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab");
    bench.skip();
    for _ in 0..10 {
        bench.secs(50);
        bench.client_writable();
    }
    bench.client_takes = Takes::All;
    bench.flow();
    bench.skip();
    bench.secs(9);
    bench.expect::<&str>(&[]);
    bench.secs(1);
    bench.expect(&["release", "settle TimedOut", "close"]);
    bench.over();
}

#[test]
fn a_backend_is_given_up_on_while_the_client_owes_reading() {
    // An informational answer is stuck; the next backend does not accept.
    let mut bench = Bench::new(3);
    bench.client(GET);
    bench.connected();
    bench.client_takes = Takes::Bytes(1);
    bench.backend("HTTP/1.1 103 X\r\n\r\n");
    bench.skip();
    bench.backend_ends(End::Closed);
    bench.expect(&["release", "ask again Lost", "connect 1"]);
    bench.secs(5);
    bench.expect(&["release", "ask again Connect", "connect 2"]);
    bench.abandoned();
}

#[test]
fn a_slow_client_slows_its_backend() {
    let mut bench = Bench::new(1);
    bench.client(GET);
    bench.connected();
    bench.client_takes = Takes::Bytes(1_000);
    bench.backend("HTTP/1.1 200 OK\r\n\r\n");
    let chunk = "x".repeat(16 << 10);
    let mut sent = 0;
    for _ in 0..20_000 {
        if sent < 500 && bench.exchange.interest().upstream {
            bench.backend(&chunk);
            sent += 1;
        } else if bench.owed() {
            bench.client_writable();
        }
        // The first piece is held with its head, the others are not kept at all.
        assert!(bench.exchange.unsent() < 17 << 10, "{}", bench.exchange.unsent());
        assert!(bench.exchange.out.len() < 17 << 10, "{}", bench.exchange.out.len());
        if sent == 500 && !bench.owed() {
            break;
        }
    }
    bench.backend_ends(End::Closed);
    bench.flow();
    let framing = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".len();
    assert_eq!(bench.client.len(), framing + 500 * (chunk.len() + "4000\r\n\r\n".len()));
    bench.skip();
    bench.idle();
}

#[rstest]
fn bytes_leave_one_by_one(#[values(1, 2, 3, 5, 8, 13)] takes: usize) {
    let mut bench = Bench::new(1);
    (bench.client_takes, bench.upstream_takes) = (Takes::Bytes(takes), Takes::Bytes(takes));
    bench.idle = true;
    let mut expected = std::string::String::new();
    bench.client(format!("{POST}{GET}{POST}"));
    for at in 0..3 {
        bench.flow();
        let sent = if at == 1 { GET } else { POST };
        assert_eq!(shown(&bench.upstream), shown(sent));
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        bench.backend(head);
        expected.push_str(head);
        for piece in ["3;x\r\nabc\r\n1", "0;\r\n0123456789", "abcdef\r", "\n0\r\n", "t: u\r\n\r\n"]
        {
            while bench.owed() {
                assert!(!bench.exchange.interest().upstream);
                bench.client_writable();
            }
            bench.backend(piece);
        }
        bench.flow();
        expected.push_str("3\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nt: u\r\n\r\n");
        assert_eq!(shown(&bench.client), shown(&expected));
    }
    bench.skip();
    bench.idle();
}
