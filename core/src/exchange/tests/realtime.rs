//! `/v1/realtime` in front of different models: accepted here, handed to whoever serves the model.

use super::harness::{Bench, Takes};
use super::texts::{http, shown};
use crate::config::Limits;
use crate::exchange::{Drain, End};
use crate::time::Duration;
use crate::wire::websocket::{self, Message, MessageReader};
use rstest::rstest;
use std::format;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

const OFFER: &str = "GET /v1/realtime?a=b HTTP/1.1|Host: h|Connection: Upgrade|\
                     Upgrade: websocket|Sec-WebSocket-Version: 13|\
                     Sec-WebSocket-Extensions: permessage-deflate|\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==|Authorization: Bearer k||";
/// What a backend gets of it.
const OFFERED: &str = "GET /v1/realtime?a=b HTTP/1.1|Host: h|Connection: Upgrade|\
                       Upgrade: websocket|Sec-WebSocket-Version: 13|\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==|Authorization: Bearer k||";
/// What uvicorn says to it.
const ACCEPTED: &str = "HTTP/1.1 101 Switching Protocols|Upgrade: websocket|Connection: Upgrade|\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=|\
                        date: Thu, 01 Jan 1970 00:16:40 GMT|server: uvicorn||";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols|Upgrade: websocket|Connection: Upgrade|\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=|server: x||";
const APPEND: &str = r#"{"type":"input_audio_buffer.append","audio":"AAAA"}"#;
const COMMIT: &str = r#"{"type":"input_audio_buffer.commit","final":true}"#;

/// Backend 0 serves `m`, backend 1 `n`.
fn bench() -> Bench {
    let mut bench = Bench::unprobed(2, Limits::default(), 0);
    bench.lists(0, "m");
    bench.lists(1, "n");
    bench
}

/// A websocket that was accepted here.
fn accepted() -> Bench {
    let mut bench = bench();
    bench.client(http(OFFER));
    assert_eq!(bench.transcript().len(), 2);
    let accepted = http(ACCEPTED);
    assert_eq!(shown(&bench.client[..accepted.len()]), ACCEPTED);
    let [Message::Text(created)] = &said(&bench.client[accepted.len()..], false)[..] else {
        panic!("it is not greeted")
    };
    let id = created.strip_prefix(r#"{"type":"session.created","id":"sess-"#).expect("an id");
    let (id, created) = id.split_once('"').expect("it ends");
    assert!(id.len() == 16 && id.bytes().all(|digit| digit.is_ascii_hexdigit()), "{id}");
    assert_eq!(created, r#","created":1000}"#);
    bench.client.clear();
    bench
}

/// All messages of one side.
fn said(mut bytes: &[u8], masked: bool) -> Vec<Message> {
    let mut reader = MessageReader::new(masked, usize::MAX);
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let (used, message) = reader.read(bytes).expect("frames are well formed");
        bytes = &bytes[used..];
        messages.extend(message);
    }
    messages
}

fn text(text: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    websocket::text(&mut frame, text, Some(*b"mask"));
    frame
}

fn from_server(text: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    websocket::text(&mut frame, text, None);
    frame
}

fn update(model: &str) -> String {
    format!(r#"{{"type":"session.update","model":"{model}"}}"#)
}

fn error(message: &str, code: &str) -> Message {
    Message::Text(format!(r#"{{"type":"error","error":"{message}","code":"{code}"}}"#))
}

fn closed(code: u16, reason: &str) -> Message {
    Message::Close { code: Some(code), reason: reason.to_string() }
}

/// What the client has been sent since it was last asked.
fn heard(bench: &mut Bench) -> Vec<Message> {
    said(&core::mem::take(&mut bench.client), false)
}

/// The backend of `n` takes over.
fn handed_over(bench: &mut Bench, held: &[&str]) {
    bench.expect(&["ask", "connect 1 fresh"]);
    bench.connected();
    bench.expect(&[format!("send upstream {OFFERED}")]);
    bench.backend(http(SWITCH));
    let log = bench.transcript();
    assert!(log[0].starts_with("send upstream ") && log[1] == "first byte", "{log:?}");
    let expected: Vec<_> = held.iter().map(|text| Message::Text(text.to_string())).collect();
    assert_eq!(said(&bench.upstream[http(OFFERED).len()..], true), expected);
    bench.upstream.clear();
    assert!(bench.client.is_empty(), "the client has a head already");
}

#[test]
fn the_first_message_chooses_the_backend() {
    let mut bench = accepted();
    bench.client(text(&update("n")));
    handed_over(&mut bench, &[&update("n")]);
    bench.backend(from_server(r#"{"type":"session.created","id":"sess-1"}"#));
    assert!(bench.client.is_empty(), "greeted twice");
    // From now on it is any websocket.
    bench.client(b"\x00any bytes");
    bench.backend(b"\xff other bytes");
    bench.expect(&["send upstream \\x00any bytes", "relay +\\xff other bytes"]);
    bench.client_leaves();
    bench.expect(&["release", "settle Done(101)", "close"]);
    bench.over();
}

/// However it is cut, on all ways.
#[test]
fn everything_arrives_however_it_is_cut() {
    let before = [
        http(OFFER).into_bytes(),
        text(APPEND),
        text(COMMIT),
        b"\x01\x83\0\0\0\0{\"t".to_vec(),
        b"\x89\x81\0\0\0\0p".to_vec(),
        b"\x80\x84\0\0\0\0ype\"".to_vec(),
        text(&update("x")),
        text(APPEND),
        text(&update("n")),
        text(APPEND),
    ]
    .concat();
    let greeting = from_server(r#"{"type":"session.created","id":"sess-1","created":1}"#);
    let answered = [http(SWITCH).into_bytes(), greeting, from_server("hello")].concat();
    let check = |before: &[&[u8]], answered: &[&[u8]], takes: Takes| {
        let mut bench = bench();
        (bench.client_takes, bench.upstream_takes) = (takes, takes);
        for piece in before {
            bench.client(piece);
            bench.flow();
            // What lies behind a model that nobody has.
            bench.wait(Duration::from_millis(1));
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
        assert_eq!(shown(&bench.upstream[..http(OFFERED).len()]), OFFERED);
        let told = said(&bench.upstream[http(OFFERED).len()..], true);
        let expected = [APPEND, APPEND, &update("n"), APPEND];
        assert_eq!(told, expected.map(|text| Message::Text(text.to_string())));
        let heard = said(&bench.client[http(ACCEPTED).len()..], false);
        assert!(matches!(&heard[0], Message::Text(text) if text.contains("session.created")));
        let model = "Model not validated. Make sure to validate the model by sending a \
                     session.update event.";
        let expected = [
            error(model, "model_not_validated"),
            Message::Pong(b"p".to_vec()),
            error("Invalid JSON", "invalid_json"),
            error("The model `x` does not exist.", "model_not_found"),
            Message::Text("hello".to_string()),
        ];
        assert_eq!(heard[1..], expected);
        bench.skip();
        bench.abandoned();
    };
    let singly = |bytes| -> Vec<&[u8]> { <[u8]>::chunks(bytes, 1).collect() };
    for takes in [Takes::All, Takes::Bytes(7)] {
        check(&[&before], &[&answered], takes);
        check(&singly(&before), &singly(&answered), takes);
    }
    for at in 1..before.len() {
        check(&[&before[..at], &before[at..]], &[&answered], Takes::All);
    }
    for at in 1..answered.len() {
        check(&[&before], &[&answered[..at], &answered[at..]], Takes::All);
    }
}

#[rstest]
#[case::no_json("{", "Invalid JSON", "invalid_json")]
#[case::empty("", "Invalid JSON", "invalid_json")]
#[case::list("[]", "'list' object has no attribute 'get'", "processing_error")]
#[case::null("null", "'NoneType' object has no attribute 'get'", "processing_error")]
#[case::int("1", "'int' object has no attribute 'get'", "processing_error")]
#[case::float("1.5", "'float' object has no attribute 'get'", "processing_error")]
#[case::no_type("{}", "Unknown event type: None", "unknown_event")]
#[case::unknown(r#"{"type":"x"}"#, "Unknown event type: x", "unknown_event")]
#[case::no_model(r#"{"type":"session.update"}"#, "Missing required field: model", "invalid_event")]
#[case::null_model(
    r#"{"type":"session.update","model":null}"#,
    "Missing required field: model",
    "invalid_event"
)]
#[case::number_model(
    r#"{"type":"session.update","model":5}"#,
    "The model `5` does not exist.",
    "model_not_found"
)]
fn what_vllm_objects_to_is_said_here(
    #[case] message: &str,
    #[case] words: &str,
    #[case] code: &str,
) {
    let mut bench = accepted();
    for _ in 0..2 {
        bench.client(text(message));
        assert_eq!(heard(&mut bench), [error(words, code)]);
    }
    bench.skip();
    // None of it is held against the client.
    bench.client(text(&update("n")));
    handed_over(&mut bench, &[&update("n")]);
    bench.abandoned();
}

#[test]
fn an_unknown_model_may_be_followed_by_a_known_one() {
    let mut bench = accepted();
    bench.client([text(APPEND), text(&update("é\\\"")), text(APPEND), text(&update("n"))].concat());
    let expected = error("The model `é\\\"` does not exist.", "model_not_found");
    assert_eq!(heard(&mut bench), [expected]);
    let log = bench.transcript();
    assert_eq!((log.len(), &log[0][..]), (2, "ask"));
    bench.wait(Duration::from_millis(1));
    bench.expect(&["ask", "connect 1 fresh"]);
    bench.connected();
    bench.backend(http(SWITCH));
    let told = said(&bench.upstream[http(OFFERED).len()..], true);
    assert_eq!(told, [APPEND, APPEND, &update("n")].map(|text| Message::Text(text.to_string())));
    bench.skip();
    bench.abandoned();
}

#[test]
fn bytes_are_kept_for_the_backend_to_judge() {
    let mut bench = accepted();
    let mut frame = Vec::new();
    websocket::binary(&mut frame, b"\0\xff", Some(*b"mask"));
    bench.client([&frame[..], &text(&update("n"))].concat());
    bench.connected();
    bench.backend(http(SWITCH));
    let told = said(&bench.upstream[http(OFFERED).len()..], true);
    assert_eq!(told, [Message::Binary(b"\0\xff".to_vec()), Message::Text(update("n"))]);
    bench.skip();
    bench.abandoned();
}

#[test]
fn an_empty_name_is_the_default_model() {
    let mut bench = accepted();
    bench.client(text(&update("")));
    bench.expect(&["ask", "connect 0 fresh"]);
    bench.abandoned();
}

#[test]
fn backends_that_serve_the_same_are_asked_at_once() {
    let mut bench = Bench::new(2);
    bench.client(http(OFFER));
    bench.expect(&["ask", "connect 0 fresh"]);
    bench.connected();
    let as_sent = OFFER.to_string();
    bench.expect(&[format!("send upstream {as_sent}")]);
    let answer = "HTTP/1.1 403 Forbidden|Connection: close|Content-Length: 0||";
    bench.backend(http(answer));
    let passed = answer.replace("Connection: close|", "");
    bench.expect(&[&format!("send client {passed}"), "release", "settle Done(403)"]);
    bench.idle();
}

#[rstest]
#[case::version("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 12")]
#[case::two_versions("Host: h", "Host: h|Sec-WebSocket-Version: 13")]
#[case::no_key("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==|", "")]
#[case::short_key("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZQ==")]
#[case::two_keys("Host: h", "Host: h|Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")]
#[case::other_path("/v1/realtime", "/v1/realtime/")]
fn what_is_no_handshake_is_for_a_backend_to_refuse(#[case] part: &str, #[case] by: &str) {
    let mut bench = bench();
    bench.client(http(&OFFER.replace(part, by)));
    bench.expect(&["ask", "connect 0 fresh"]);
    bench.abandoned();
}

#[test]
fn the_path_may_be_escaped() {
    let mut bench = bench();
    bench.client(http(&OFFER.replace("/v1/realtime", "/v1%2Frealtime")));
    assert!(bench.client.starts_with(b"HTTP/1.1 101 "));
    bench.skip();
    bench.client_leaves();
    bench.expect(&["close"]);
    bench.over();
}

#[test]
fn a_plain_request_is_no_websocket() {
    let mut bench = bench();
    bench.client(http("GET /v1/realtime HTTP/1.1|Host: h||"));
    bench.expect(&["ask", "connect 0 fresh"]);
    bench.abandoned();
}

#[rstest]
#[case::unauthorized("HTTP/1.1 401 X|content-length: 0||", 1008, "settle Done(401)")]
#[case::forbidden("HTTP/1.1 403 X|content-length: 0||", 1008, "settle Done(403)")]
#[case::unknown("HTTP/1.1 404 X|content-length: 2||no", 1011, "settle Done(404)")]
#[case::busy("HTTP/1.1 103 X||HTTP/1.1 503 X|content-length: 2||no", 1011, "settle Done(503)")]
fn a_backend_that_refuses(#[case] answer: &str, #[case] code: u16, #[case] settled: &str) {
    let mut bench = accepted();
    bench.client(text(&update("n")));
    bench.connected();
    bench.skip();
    bench.backend(http(answer));
    let status = &settled["settle Done(".len()..settled.len() - 1];
    let words = format!("The backend refused the connection with status {status}.");
    assert_eq!(heard(&mut bench), [error(&words, "processing_error"), closed(code, "")]);
    let log = bench.transcript();
    assert_eq!(log[1..], ["release", settled, "shutdown"]);
    bench.client_leaves();
    bench.expect(&["close"]);
    bench.over();
}

#[test]
fn a_backend_that_cannot_be_reached_or_is_lost() {
    let down = "No backend of the model `n` is up. Please try again later.";
    let lost = "No backend answered the request.";
    for (is_lost, words) in [(false, down), (true, lost)] {
        let mut bench = accepted();
        bench.client(text(&update("n")));
        if is_lost {
            bench.connected();
            bench.backend_ends(End::Reset);
        } else {
            bench.connect_fails();
        }
        assert_eq!(heard(&mut bench), [error(words, "processing_error"), closed(1011, "")]);
        assert_eq!(bench.transcript().last().map(String::as_str), Some("shutdown"));
        bench.client_leaves();
        bench.expect(&["close"]);
        bench.over();
    }
}

#[test]
fn a_backend_that_does_not_greet_is_heard() {
    let close = b"\x88\x02\x03\xf4";
    for first in [from_server("hello"), close.to_vec(), b"\x83\0".to_vec()] {
        for pieces in [first.len(), 1] {
            let mut bench = accepted();
            bench.client(text(&update("n")));
            handed_over(&mut bench, &[&update("n")]);
            for piece in first.chunks(pieces) {
                bench.backend(piece);
            }
            bench.backend("more");
            assert_eq!(shown(&bench.client), shown([&first[..], b"more"].concat()));
            bench.skip();
            bench.abandoned();
        }
    }
}

/// Whatever the backend goes on to send, the beginning of it is not kept for ever.
#[rstest]
#[case::empty_fragments(b"\x01\0", b"\0\0")]
#[case::small_fragments(b"\x01\x01a", b"\0\x01b")]
#[case::half_a_message(b"\x01\x0c{\"type\":\"ses", b"\0\0")]
fn a_greeting_without_an_end_passes(#[case] first: &[u8], #[case] again: &[u8]) {
    for pieces in [1, 100, usize::MAX] {
        let mut bench = accepted();
        bench.client(text(&update("n")));
        handed_over(&mut bench, &[&update("n")]);
        let endless = [first, &again.repeat(10_000)].concat();
        let mut told = 0;
        for piece in endless.chunks(pieces.min(endless.len())) {
            bench.backend(piece);
            told += piece.len();
            assert!(told - bench.client.len() <= 5_000, "{told}: {}", bench.client.len());
        }
        assert!(bench.client == endless, "{} of {}", bench.client.len(), endless.len());
        bench.skip();
        bench.abandoned();
    }
}

/// A greeting of many words is one, however it is cut; a longer one is not.
#[rstest]
#[case::longest(4_096, true)]
#[case::too_long(4_097, false)]
fn a_greeting_has_a_length(#[case] bytes: usize, #[case] is_greeting: bool) {
    let words = bytes - r#"{"type":"session.created","x":""}"#.len();
    let created = format!(r#"{{"type":"session.created","x":"{}"}}"#, "x".repeat(words));
    let frame = from_server(&created);
    for pieces in [1, 3, bytes - 1, usize::MAX] {
        let mut bench = accepted();
        bench.client(text(&update("n")));
        handed_over(&mut bench, &[&update("n")]);
        for piece in frame.chunks(pieces.min(frame.len())) {
            bench.backend(piece);
        }
        assert!(bench.client == if is_greeting { &[][..] } else { &frame[..] });
        bench.skip();
        bench.abandoned();
    }
}

#[test]
fn it_is_closed_as_it_was_opened() {
    let mut bench = accepted();
    bench.client(b"\x88\x85\0\0\0\0\x03\xe9bye");
    assert_eq!(heard(&mut bench), [closed(1001, "bye")]);
    assert_eq!(bench.transcript()[1..], ["shutdown"]);
    bench.client_leaves();
    bench.expect(&["close"]);
    bench.over();
    let mut bench = accepted();
    bench.client(b"\x81\x01x");
    assert_eq!(heard(&mut bench), [closed(1002, "a client's frame is not masked")]);
    bench.skip();
    bench.secs(60);
    bench.expect(&["close"]);
    bench.over();
}

/// Whatever else is said meanwhile.
#[rstest]
#[case::pings(b"\x89\x80\0\0\0\0")]
#[case::pongs(b"\x8a\x80\0\0\0\0")]
#[case::bytes(b"\x82\x80\0\0\0\0")]
#[case::fragments(b"\x89\x80\0\0\0\0\x8a\x80\0\0\0\0")]
#[case::errors(b"\x81\x80\0\0\0\0")]
#[case::unknown_models(b"\x81\xa5\0\0\0\0{\"type\":\"session.update\",\"model\":\"x\"}")]
fn a_model_must_be_named_in_time(#[case] said: &[u8]) {
    let mut bench = accepted();
    for _ in 0..74 {
        bench.secs(1);
        bench.lists(0, "m");
        bench.lists(1, "n");
        bench.client(said);
    }
    bench.wait(Duration::from_millis(999));
    bench.skip();
    heard(&mut bench);
    bench.wait(Duration::from_millis(1));
    assert_eq!(heard(&mut bench), [closed(1001, "no model was named")]);
    assert_eq!(bench.transcript()[1..], ["shutdown"]);
    bench.client_leaves();
    bench.expect(&["close"]);
    bench.over();
}

#[test]
fn one_that_says_nothing_has_the_same_time() {
    let mut bench = accepted();
    bench.wait(Duration::from_millis(74_999));
    bench.expect::<&str>(&[]);
    bench.wait(Duration::from_millis(1));
    assert_eq!(heard(&mut bench), [closed(1001, "no model was named")]);
    bench.skip();
    bench.abandoned();
}

#[test]
fn one_that_named_a_model_has_all_the_time_its_backend_takes() {
    let mut bench = accepted();
    bench.secs(74);
    bench.client(text(&update("n")));
    bench.expect(&["ask", "connect 1 fresh"]);
    bench.connected();
    bench.expect(&[format!("send upstream {OFFERED}")]);
    bench.secs(100);
    bench.expect::<&str>(&[]);
    bench.backend(http(SWITCH));
    assert_eq!(bench.transcript().last().map(String::as_str), Some("first byte"));
    bench.abandoned();
}

/// An audio message of so many bytes, and what frames it for the backend.
fn append(bytes: usize) -> Vec<u8> {
    let frame = r#"{"type":"input_audio_buffer.append","audio":""}"#.len() + 8;
    let audio = "A".repeat(bytes - frame);
    let append = text(&format!(r#"{{"type":"input_audio_buffer.append","audio":"{audio}"}}"#));
    assert_eq!(append.len(), bytes);
    append
}

const TOO_MUCH: &str = "too much was said before a model was named";

#[test]
fn as_much_as_may_be_said_first_arrives() {
    let mut bench = accepted();
    let naming = text(&update("n"));
    bench.client(append(40_000));
    bench.client(append((64 << 10) - 40_000 - naming.len()));
    bench.client(naming);
    bench.expect(&["ask", "connect 1 fresh"]);
    // What lies behind the name is not held for long: the client waits for the backend.
    bench.client("x".repeat(100_000));
    assert!(!bench.exchange.interest().client);
    bench.connected();
    bench.backend(http(SWITCH));
    assert_eq!(bench.upstream.len(), http(OFFERED).len() + (64 << 10) + 100_000);
    bench.skip();
    bench.abandoned();
}

#[rstest]
#[case::messages(&[append(40_000), append(30_000)])]
#[case::name(&[append(65_500), text(&update("n"))])]
#[case::promise(&[text(&"x".repeat(65_537))[..10].to_vec()])]
#[case::promise_behind(&[append(40_000), text(&"x".repeat(30_000))[..8].to_vec()])]
#[case::fragments(&[append(40_000), fragment(1, 20_000), fragment(0, 10_000)])]
#[case::empty_messages(&[b"\x82\x80\0\0\0\0".repeat(10_923)])]
fn a_client_must_not_say_too_much_first(#[case] said: &[Vec<u8>]) {
    let (last, before) = said.split_last().expect("something is said");
    for pieces in [1_000, usize::MAX] {
        let mut bench = accepted();
        for message in before {
            bench.client(message);
            bench.expect::<&str>(&[]);
        }
        for piece in last.chunks(pieces.min(last.len())) {
            bench.client(piece);
        }
        assert_eq!(heard(&mut bench), [closed(1009, TOO_MUCH)]);
        bench.skip();
        bench.client_leaves();
        bench.expect(&["close"]);
        bench.over();
    }
}

fn fragment(opcode: u8, bytes: u16) -> Vec<u8> {
    let [high, low] = bytes.to_be_bytes();
    [&[opcode, 0xfe, high, low, 0, 0, 0, 0][..], &vec![b'x'; usize::from(bytes)]].concat()
}

/// Nothing of it is kept, however much comes.
#[test]
fn what_says_nothing_does_not_count() {
    let mut bench = accepted();
    bench.client(b"\x01\x80\0\0\0\0");
    for _ in 0..100 {
        bench.client(b"\x89\x80\0\0\0\0\0\x80\0\0\0\0".repeat(1_000));
        bench.skip();
        while heard(&mut bench).len() < 1_000 {
            bench.wait(Duration::from_millis(1));
            bench.skip();
        }
    }
    bench.client(b"\x80\x80\0\0\0\0");
    bench.client(text(&update("n")));
    assert_eq!(heard(&mut bench), [error("Invalid JSON", "invalid_json")]);
    bench.skip();
    bench.abandoned();
}

#[test]
fn many_unknown_models_take_turns() {
    let mut bench = accepted();
    bench.client([text(&update("x")).repeat(50), text(&update("n"))].concat());
    for _ in 0..50 {
        let log = bench.transcript();
        assert_eq!((log.len(), &log[0][..]), (2, "ask"), "{log:?}");
        let expected = error("The model `x` does not exist.", "model_not_found");
        assert_eq!(heard(&mut bench), [expected]);
        // Others have their turn, and what it says meanwhile has to wait.
        assert!(!bench.exchange.interest().client && bench.exchange.interest().client_end);
        bench.wait(Duration::from_millis(1));
    }
    bench.expect(&["ask", "connect 1 fresh"]);
    bench.client(text(APPEND));
    bench.connected();
    bench.backend(http(SWITCH));
    let told = said(&bench.upstream[http(OFFERED).len()..], true);
    assert_eq!(told, [update("n"), APPEND.to_string()].map(Message::Text));
    bench.skip();
    bench.abandoned();
}

/// The engine takes so long to know that it is nobody's that no time is left for another.
#[test]
fn a_model_that_is_unknown_too_late_is_the_last() {
    let mut bench = accepted();
    bench.secs(74);
    bench.client(text(&update("x")));
    assert_eq!(bench.transcript(), ["ask"]);
    bench.secs(2);
    let expected = error("The model `x` does not exist.", "model_not_found");
    assert_eq!(heard(&mut bench), [expected, closed(1001, "no model was named")]);
    bench.skip();
    bench.client_leaves();
    bench.expect(&["close"]);
    bench.over();
}

/// A name that waits for its turn does so in vain once the client is gone.
#[test]
fn a_client_may_leave_while_it_waits_for_its_turn() {
    let mut bench = accepted();
    bench.client(text(&update("x")).repeat(2));
    bench.client_leaves();
    assert_eq!(bench.transcript().last().map(String::as_str), Some("close"));
    bench.over();
}

/// An error is longer than the empty message that it answers.
#[test]
fn who_does_not_read_errors_gets_few() {
    let mut bench = accepted();
    bench.client_takes = Takes::Bytes(0);
    bench.client(text("").repeat(10_000));
    bench.client_takes = Takes::Bytes(usize::MAX);
    bench.flow();
    let one = from_server(r#"{"type":"error","error":"Invalid JSON","code":"invalid_json"}"#);
    assert!(bench.client.len() <= (16 << 10) + one.len(), "{}", bench.client.len());
    for _ in 0..100 {
        bench.wait(Duration::from_millis(1));
        bench.flow();
    }
    assert!(bench.client == one.repeat(10_000));
    assert!(bench.exchange.interest().client);
    bench.skip();
    bench.abandoned();
}

#[test]
fn who_does_not_read_is_not_read() {
    let mut bench = accepted();
    bench.client_takes = Takes::Bytes(0);
    bench.client(text("{"));
    bench.expect(&["send client "]);
    assert!(!bench.exchange.interest().client && bench.exchange.interest().client_end);
    bench.secs(60);
    bench.expect(&["reset"]);
    bench.over();
}

#[test]
fn a_stop_is_said() {
    let mut bench = accepted();
    bench.drain(Drain::Grace);
    bench.expect::<&str>(&[]);
    bench.drain(Drain::Closing);
    assert_eq!(heard(&mut bench), [closed(1012, "")]);
    bench.skip();
    bench.client_leaves();
    bench.expect(&["close"]);
    bench.over();
}

#[test]
fn a_client_may_leave_at_any_moment() {
    let mut bench = accepted();
    bench.client_leaves();
    bench.expect(&["close"]);
    bench.over();
    let mut bench = accepted();
    bench.client(text(&update("n")));
    bench.skip();
    bench.client_leaves();
    bench.expect(&["release", "settle ClientGone", "close"]);
    bench.over();
}
