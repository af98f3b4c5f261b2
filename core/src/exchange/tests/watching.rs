//! Whoever watches is told how the proxy is, once a second, until one side leaves.

use super::harness::{Bench, Takes};
use super::texts::http;
use crate::exchange::Drain;
use crate::time::Duration;
use std::format;
use std::string::String;
use std::vec::Vec;

const WATCH: &str = "GET /proxy/events HTTP/1.1|Host: h||";

fn watching() -> Bench {
    let mut bench = Bench::new(1);
    bench.client(http(WATCH));
    bench.skip();
    bench
}

/// What the client got: the head, and what each event says.
fn told(bench: &Bench) -> (String, Vec<serde_json::Value>) {
    let text = core::str::from_utf8(&bench.client).expect("it is text");
    let (head, mut rest) = text.split_once("\r\n\r\n").expect("there is a head");
    let mut body = String::new();
    while head.contains("transfer-encoding: chunked") && !rest.is_empty() {
        let (size, chunk) = rest.split_once("\r\n").expect("a size");
        let size = usize::from_str_radix(size, 16).expect("a number");
        body.push_str(&chunk[..size]);
        rest = chunk[size..].strip_prefix("\r\n").expect("the end of a chunk");
    }
    body.push_str(rest);
    let events = body.split_terminator("\n\n").map(|event| {
        let json = event.strip_prefix("data: ").expect("an event");
        serde_json::from_str(json).expect("JSON")
    });
    (head.into(), events.collect())
}

#[test]
fn the_page_knows_how_much_less_often_long_events_come() {
    let page = crate::wire::page::answer().body;
    let page = core::str::from_utf8(&page).expect("it is text");
    let slower = format!("const SLOWER = {};", crate::wire::status::LONG_BYTES);
    assert!(page.contains(&slower), "{slower}");
    assert!(page.contains("1000 * (1 + Math.floor(data.length / SLOWER))"));
}

#[test]
fn there_is_an_event_a_second() {
    let mut bench = Bench::new(1);
    bench.client(http(WATCH));
    assert_eq!(bench.transcript()[0], "ask");
    bench.wait(Duration::from_millis(3_999));
    assert_eq!(bench.transcript().iter().filter(|line| *line == "ask").count(), 3);
    let (head, events) = told(&bench);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    for line in ["content-type: text/event-stream; charset=utf-8", "connection: close"] {
        assert!(head.contains(line), "{head}");
    }
    assert_eq!(events.len(), 4);
    let uptimes = events.iter().map(|event| event["uptime_seconds"].as_u64());
    assert_eq!(uptimes.collect::<Vec<_>>(), [1_000, 1_001, 1_002, 1_003].map(Some));
    bench.client_leaves();
    bench.expect(&["close"]);
    bench.over();
}

#[test]
fn an_older_client_gets_events_without_chunks() {
    let mut bench = Bench::new(1);
    bench.client(http("GET /proxy/events HTTP/1.0||"));
    bench.secs(2);
    let (head, events) = told(&bench);
    assert!(!head.contains("transfer-encoding"), "{head}");
    assert_eq!(events.len(), 3);
    bench.skip();
    bench.drain(Drain::Closing);
    bench.expect(&["close"]);
    bench.over();
}

#[test]
fn who_reads_slowly_is_told_less_often() {
    let mut bench = watching();
    bench.client_takes = Takes::Bytes(1);
    bench.secs(1);
    bench.skip();
    let before = bench.client.len();
    // As long as one event is under way there is no next one.
    for _ in 0..50 {
        bench.secs(1);
        bench.client_writable();
    }
    assert!(bench.transcript().iter().all(|line| line != "ask"));
    assert_eq!(bench.client.len(), before + 50);
    bench.client_takes = Takes::All;
    bench.flow();
    assert!(bench.transcript().contains(&"ask".into()));
    assert_eq!(told(&bench).1.len(), 3);
    bench.client_leaves();
    bench.skip();
    bench.over();
}

#[test]
fn who_reads_nothing_is_gone() {
    let mut bench = watching();
    bench.client_takes = Takes::Bytes(0);
    bench.secs(1);
    bench.skip();
    bench.wait(Duration::from_millis(59_999));
    bench.expect::<&str>(&[]);
    bench.wait(Duration::from_millis(1));
    bench.expect(&["reset"]);
    bench.over();
}

#[test]
fn a_stop_ends_the_stream_in_order() {
    let mut bench = watching();
    bench.drain(Drain::Grace);
    bench.secs(1);
    bench.skip();
    bench.drain(Drain::Closing);
    bench.expect(&["send client 0||", "close"]);
    bench.over();
    let text = String::from_utf8(bench.client.clone()).expect("it is text");
    let (events, last) = text.split_at(text.len() - 5);
    bench_says_it_drains(events);
    assert_eq!(last, "0\r\n\r\n");
}

fn bench_says_it_drains(events: &str) {
    // Backends may drain as well: what stands before the bodies is said of the process.
    let says = |is: bool| format!(r#""draining":{is},"request_body_bytes""#);
    assert_eq!(events.matches(&says(false)).count(), 1, "{events}");
    assert_eq!(events.matches(&says(true)).count(), 1, "{events}");
}

#[test]
fn a_stop_does_not_wait_for_who_reads_nothing() {
    let mut bench = watching();
    bench.client_takes = Takes::Bytes(0);
    bench.secs(1);
    bench.drain(Drain::Closing);
    bench.skip();
    bench.wait(Duration::from_millis(1_999));
    bench.expect::<&str>(&[]);
    bench.wait(Duration::from_millis(1));
    bench.expect(&["reset"]);
    bench.over();
}

#[test]
fn what_a_client_says_meanwhile_is_not_heard() {
    let mut bench = watching();
    bench.client(http(WATCH));
    bench.secs(1);
    assert_eq!(bench.transcript().iter().filter(|line| *line == "ask").count(), 1);
    bench.drain(Drain::Closing);
    // More was sent than was read: a reset must not destroy what is on its way.
    assert!(bench.transcript().contains(&"shutdown".into()));
    bench.client_leaves();
    bench.expect(&["close"]);
    bench.over();
}
