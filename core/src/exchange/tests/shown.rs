//! How a large fleet is: text of hundreds of kilobytes, of which all readers get the same.

use super::harness::{Bench, Takes};
use super::texts::http;
use crate::exchange::Drain;
use crate::time::Duration;
use crate::wire::status::{LONG_BYTES, every};
use rstest::rstest;
use std::format;
use std::string::String;
use std::vec::Vec;

const STATUS: &str = "GET /proxy/status HTTP/1.1|Host: h||";

/// Asks, and says what the client got: the head and the body.
fn asks(bench: &mut Bench, request: &str) -> (String, Vec<u8>) {
    bench.client.clear();
    bench.client(http(request));
    bench.flow();
    let end = bench.client.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let (head, body) = bench.client.split_at(end.expect("there is a head") + 4);
    (String::from_utf8(head.to_vec()).expect("it is text"), body.to_vec())
}

fn made(bench: &mut Bench) -> usize {
    bench.transcript().iter().filter(|line| *line == "show").count()
}

fn large() -> Bench {
    let bench = Bench::new(500);
    let mut small = Bench::new(1);
    assert!(asks(&mut small, STATUS).1.len() < LONG_BYTES);
    assert_eq!(made(&mut small), 0, "nobody else needs what is made in no time");
    bench
}

#[rstest]
#[case::at_once(Takes::All)]
#[case::in_pieces(Takes::Bytes(10_007))]
fn all_who_ask_within_a_while_get_the_same(#[case] takes: Takes) {
    let mut bench = large();
    bench.client_takes = takes;
    let (head, first) = asks(&mut bench, STATUS);
    let len = first.len();
    assert!(len > LONG_BYTES && head.contains(&format!("content-length: {len}\r\n")));
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("application/json"), "{head}");
    assert_eq!(made(&mut bench), 1);
    let told: serde_json::Value = serde_json::from_slice(&first).expect("it is JSON");
    assert_eq!(told["backends"].as_array().map(Vec::len), Some(500));
    assert!(asks(&mut bench, STATUS) == (head, first.clone()), "the same once more");
    assert_eq!(made(&mut bench), 0);
    bench.wait(every(len));
    let (_, later) = asks(&mut bench, STATUS);
    assert!(later != first, "time went by");
    assert_eq!(made(&mut bench), 1);
    bench.idle();
}

#[rstest]
#[case::newer("HTTP/1.1|Host: h|", true)]
#[case::older("HTTP/1.0|", false)]
fn events_hold_it_in_order(#[case] version: &str, #[case] chunked: bool) {
    let mut bench = large();
    let (_, text) = asks(&mut bench, STATUS);
    let mut expected = [b"data: ", &text[..], b"\n\n"].concat();
    if chunked {
        let size = format!("{:x}\r\n", expected.len());
        expected = [size.as_bytes(), &expected, b"\r\n"].concat();
    }
    bench.client_takes = Takes::Bytes(10_007);
    let (_, event) = asks(&mut bench, &format!("GET /proxy/events {version}|"));
    assert!(event == expected, "{}", event.len());
    // The next one is as far off as it is long.
    bench.client.clear();
    let pause = every(text.len());
    bench.wait(pause - Duration::from_millis(1));
    assert!(bench.client.is_empty());
    bench.wait(Duration::from_millis(1));
    bench.flow();
    assert!(bench.client.len() > LONG_BYTES);
    // A stop ends it behind what is under way.
    bench.client.clear();
    bench.client_takes = Takes::Bytes(0);
    bench.wait(pause);
    bench.drain(Drain::Closing);
    bench.client_takes = Takes::All;
    bench.flow();
    let last: &[u8] = if chunked { b"}\n\n\r\n0\r\n\r\n" } else { b"}\n\n" };
    assert!(bench.client.ends_with(last), "{}", bench.client.len());
    bench.skip();
    bench.over();
}

#[test]
fn who_leaves_holds_nothing() {
    let mut bench = large();
    bench.client_takes = Takes::Bytes(0);
    bench.client(http(STATUS));
    assert!(bench.exchange.inset_unsent().len() > LONG_BYTES);
    bench.client_leaves();
    bench.skip();
    bench.over();
    assert!(bench.exchange.inset_unsent().is_empty());
}
