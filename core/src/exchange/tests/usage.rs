//! What an answer cost, as the ticket is settled with it.

use super::harness::Bench;
use super::texts::http;
use crate::exchange::End;
use rstest::rstest;
use std::format;
use std::string::String;
use std::vec::Vec;

const PLAIN: &str = "{\"choices\":[],\"usage\":{\"prompt_tokens\":19,\"completion_tokens\":7,\
                     \"prompt_tokens_details\":{\"cached_tokens\":16}}}";
const CHUNK: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
const LAST: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":19,\"completion_tokens\":7,\
                    \"prompt_tokens_details\":{\"cached_tokens\":16}}}\n\n";
const DONE: &str = "data: [DONE]\n\n";
const ERROR: &str = "data: {\"error\":{\"code\":503}}\n\n";

const COST: &str = "settle Done { status: 200, usage: \
                    Some(Usage { prompt: 19, cached: Some(16), completion: 7 }) }";
const UNSAID: &str = "settle Done(200)";

fn head(more: &str) -> String {
    http(&format!("HTTP/1.1 200 OK|{more}||"))
}

fn chunks(kind: &str, events: &[&str]) -> String {
    let chunk = |event: &&str| format!("{:x}\r\n{event}\r\n", event.len());
    let body: String = events.iter().map(chunk).collect();
    format!("{}{body}0\r\n\r\n", head(&format!("{kind}|transfer-encoding: chunked")))
}

fn with_length(kind: &str, body: &str) -> String {
    format!("{}{body}", head(&format!("{kind}|content-length: {}", body.len())))
}

const JSON: &str = "content-type: application/json";
const EVENTS: &str = "content-type: text/event-stream; charset=utf-8";

/// A POST of that path is with a backend.
fn asked(path: &str) -> Bench {
    let mut bench = Bench::new(2);
    let request = "HTTP/1.1|Host: h|Content-Length: 13||{\"model\":\"m\"}";
    bench.client(http(&format!("POST {path} {request}")));
    bench.flow();
    bench.connected();
    bench.flow();
    bench.transcript();
    bench
}

/// Says the answer in these pieces; it passes as it was.
fn settled(path: &str, pieces: &[&[u8]], ends: bool) -> String {
    let mut bench = asked(path);
    for piece in pieces {
        bench.backend(piece);
        bench.flow();
    }
    if ends {
        bench.backend_ends(End::Closed);
        bench.flow();
    }
    if !ends {
        assert_eq!(bench.client, pieces.concat());
    }
    let log = bench.transcript();
    let mut settled = log.into_iter().filter(|line| line.starts_with("settle"));
    let line = settled.next().expect("the ticket is settled");
    assert_eq!(settled.next(), None);
    line
}

const CHAT: &str = "/v1/chat/completions";

#[rstest]
#[case::plain(CHAT, &with_length(JSON, PLAIN), COST)]
#[case::plain_in_chunks(CHAT, &chunks(JSON, &[&PLAIN[..50], &PLAIN[50..]]), COST)]
#[case::until_close(CHAT, &format!("{}{PLAIN}", head(JSON)), COST)]
#[case::stream(CHAT, &chunks(EVENTS, &[CHUNK, CHUNK, LAST, DONE]), COST)]
#[case::stream_in_one_chunk(CHAT, &chunks(EVENTS, &[&[CHUNK, LAST, DONE].concat()]), COST)]
#[case::stream_that_does_not_say(CHAT, &chunks(EVENTS, &[CHUNK, DONE]), UNSAID)]
#[case::stream_until_close(CHAT, &format!("{}{CHUNK}{LAST}{DONE}", head(EVENTS)), COST)]
#[case::stream_of_messages("/v1/messages", &chunks(EVENTS, &[CHUNK, LAST]), COST)]
#[case::rerank("/v2/rerank", &with_length(JSON, PLAIN), COST)]
#[case::generate("/inference/v1/generate", &with_length(JSON, PLAIN), COST)]
#[case::embeddings("/v1/embeddings", &with_length(JSON, PLAIN), COST)]
#[case::response("/v1/responses", &with_length(JSON, PLAIN), COST)]
#[case::sagemaker("/invocations", &with_length(JSON, PLAIN), COST)]
#[case::compressed(CHAT, &with_length(&format!("{JSON}|content-encoding: gzip"), PLAIN), UNSAID)]
#[case::bytes(CHAT, &with_length("content-type: application/octet-stream", PLAIN), UNSAID)]
#[case::nothing(CHAT, &with_length(JSON, ""), UNSAID)]
#[case::tokenize("/tokenize", &with_length(JSON, PLAIN), UNSAID)]
#[case::render("/v1/chat/completions/render", &with_length(JSON, PLAIN), UNSAID)]
#[case::plugin("/plugin", &with_length(JSON, PLAIN), UNSAID)]
#[case::refused(
    CHAT,
    &with_length(JSON, PLAIN).replace("200 OK", "400 Bad Request"),
    "settle Done(400)"
)]
fn tickets_are_settled_with_what_the_answer_cost(
    #[case] path: &str,
    #[case] answer: &str,
    #[case] expected: &str,
) {
    let bytes = answer.as_bytes();
    let ends = !answer.contains("content-length") && !answer.contains("chunked");
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(settled(path, &[bytes], ends), expected);
    assert_eq!(settled(path, &single, ends), expected, "byte by byte");
    for at in 1..bytes.len() {
        assert_eq!(settled(path, &[&bytes[..at], &bytes[at..]], ends), expected, "at {at}");
    }
}

#[test]
fn each_attempt_counts_for_itself() {
    let mut bench = asked(CHAT);
    bench.backend(chunks(EVENTS, &[ERROR, LAST, DONE]));
    bench.flow();
    bench.connected();
    bench.flow();
    bench.backend(chunks(EVENTS, &[CHUNK, DONE]));
    bench.flow();
    let log = bench.transcript();
    assert!(log.iter().any(|line| line == UNSAID), "{log:?}");
}

#[test]
fn an_answer_that_ends_as_broken_says_nothing() {
    let mut bench = asked(CHAT);
    let answer = chunks(EVENTS, &[CHUNK, LAST, DONE]);
    bench.backend(&answer[..answer.len() - 5]);
    bench.flow();
    bench.backend_ends(End::Closed);
    bench.flow();
    let log = bench.transcript();
    assert!(log.iter().any(|line| line == "settle Broken"), "{log:?}");
}
