//! The first event of a stream: whether it says that the server failed, so that another backend
//! may do better.
//!
//! Knows server-sent events and how vLLM words an error within a 200; sees a body without its
//! chunk framing, in pieces of any size. Knows nothing of attempts.

use alloc::vec::Vec;
use httparse::Header;
use serde_json::Value;

/// How an event must begin to be looked at. vLLM 0.33 writes the first and, on /v1/messages, the
/// third; blanks behind the colons are optional (WHATWG HTML section 9.2.6).
const BEGINNINGS: [&[u8]; 6] = [
    b"data: {\"error\":",
    b"data:{\"error\":",
    b"event: error\n",
    b"event: error\r",
    b"event:error\n",
    b"event:error\r",
];

/// Errors that the request brought on itself, where no number tells: Anthropic's names, and those
/// of vLLM 0.32, which it puts into Anthropic events, too.
const CLIENT_ERRORS: [&str; 14] = [
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "BadRequestError",
    "AuthenticationError",
    "PermissionDeniedError",
    "NotFoundError",
    "UnprocessableEntityError",
    "RateLimitError",
    "NotImplementedError",
    "Bad Request",
];

/// What is known of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// So far it may be an error of the server's.
    Unknown,
    /// It is none: it passes.
    Passes,
    /// It is one.
    ServerError,
}

/// Reads a stream until its first event is known.
#[derive(Debug, Default)]
pub(super) struct FirstEvent {
    /// What begins like an error. Empty, and without memory, for every other stream.
    seen: Vec<u8>,
    /// How much of it holds no end of the event.
    searched: usize,
}

impl FirstEvent {
    /// Takes the next bytes of the body, which are not empty.
    pub(super) fn read(&mut self, data: &[u8]) -> Verdict {
        if self.seen.is_empty() && !may_be_error(data) {
            return Verdict::Passes;
        }
        self.seen.extend_from_slice(data);
        if !may_be_error(&self.seen) {
            return Verdict::Passes;
        }
        match self.end() {
            None => Verdict::Unknown,
            Some(end) if is_server_error(&self.seen[..end]) => Verdict::ServerError,
            Some(_) => Verdict::Passes,
        }
    }

    /// Where the empty line begins that ends the event.
    fn end(&mut self) -> Option<usize> {
        // A line end of two bytes, and the one before it, may have been cut.
        let from = self.searched.saturating_sub(3);
        let bytes = &self.seen;
        for at in memchr::memchr2_iter(b'\n', b'\r', &bytes[from..]).map(|at| from + at) {
            let is_end = matches!(
                &bytes[at..],
                [b'\n', b'\n' | b'\r', ..] | [b'\r', b'\r', ..] | [b'\r', b'\n', b'\n' | b'\r', ..]
            );
            if is_end {
                return Some(at);
            }
        }
        self.searched = bytes.len();
        None
    }
}

/// Whether an answer is a stream of events.
pub(super) fn is_event_stream(headers: &[Header<'_>]) -> bool {
    const KIND: &[u8] = b"text/event-stream";
    let is_kind = |header: &Header<'_>| {
        header.name.len() == 12
            && header.name.eq_ignore_ascii_case("content-type")
            && header.value.get(..KIND.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(KIND))
    };
    headers.iter().any(is_kind)
}

/// Whether bytes begin like an error, as far as they go.
fn may_be_error(bytes: &[u8]) -> bool {
    BEGINNINGS.iter().any(|known| {
        let len = known.len().min(bytes.len());
        bytes[..len] == known[..len]
    })
}

/// Whether an event, in lines, is an error that the request did not bring on itself.
fn is_server_error(event: &[u8]) -> bool {
    let mut data = Vec::new();
    for line in event.split(|byte| matches!(byte, b'\n' | b'\r')) {
        if let Some(value) = line.strip_prefix(b"data:") {
            data.extend_from_slice(value);
            data.push(b'\n');
        }
    }
    let Ok(event) = serde_json::from_slice::<Value>(&data) else { return false };
    let Some(error) = event.get("error") else { return false };
    let code = error.get("code").and_then(Value::as_u64);
    let kind = error.get("type").and_then(Value::as_str);
    match (code, kind) {
        (Some(code), _) => (500..600).contains(&code),
        (None, Some(kind)) => !CLIENT_ERRORS.contains(&kind),
        (None, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Passes, ServerError, Unknown};
    use rstest::rstest;
    use std::format;

    /// Feeds a body whole, byte by byte, at every split, and with bytes behind it.
    #[track_caller]
    fn check(body: &str, expected: Verdict) {
        let bytes = body.as_bytes();
        let feed = |pieces: &[&[u8]]| {
            let mut event = FirstEvent::default();
            for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
                match event.read(piece) {
                    Unknown => {}
                    known @ (Passes | ServerError) => return known,
                }
            }
            Unknown
        };
        assert_eq!(feed(&[bytes]), expected, "{body:?}");
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(feed(&single), expected, "byte by byte: {body:?}");
        for at in 1..bytes.len() {
            assert_eq!(feed(&[&bytes[..at], &bytes[at..]]), expected, "at {at}: {body:?}");
        }
        if expected != Unknown {
            let more = format!("{body}data: [DONE]\n\n");
            assert_eq!(feed(&[more.as_bytes()]), expected, "with bytes behind: {body:?}");
        }
    }

    #[rstest]
    #[case::overload(
        "data: {\"error\": {\"message\": \"m\", \"type\": \"t\", \"param\": null, \"code\": 503}}\n\n"
    )]
    #[case::compact("data:{\"error\":{\"code\":500}}\n\n")]
    #[case::line_ends("data: {\"error\": {\"code\": 599}}\r\n\r\n")]
    #[case::old_line_ends("data: {\"error\": {\"code\": 500}}\r\r")]
    #[case::two_lines("data: {\"error\":\ndata: {\"code\": 500}}\n\n")]
    #[case::other_fields("data: {\"error\": {\"code\": 500}}\nid: 7\n\n")]
    #[case::api_error(
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"m\"}}\n\n"
    )]
    #[case::overloaded("event: error\r\ndata: {\"error\":{\"type\":\"overloaded_error\"}}\r\n\r\n")]
    #[case::internal("event:error\ndata:{\"error\":{\"type\":\"internal_error\"}}\n\n")]
    #[case::old_name("event: error\ndata: {\"error\":{\"type\":\"InternalServerError\"}}\n\n")]
    #[case::old_busy("event: error\ndata: {\"error\":{\"type\":\"ServiceUnavailableError\"}}\n\n")]
    #[case::no_code("data: {\"error\": {\"type\": \"InternalServerError\", \"code\": null}}\n\n")]
    fn a_failure_of_the_server(#[case] body: &str) {
        check(body, ServerError);
    }

    #[rstest]
    #[case::chunk("data: {\"id\":\"chatcmpl-1\"}\n\n")]
    #[case::chunk_like_an_error("data: {\"errors\":1}\n\n")]
    #[case::created("event: response.created\ndata: {}\n\n")]
    #[case::message("event: message_start\ndata: {}\n\n")]
    #[case::error_like("event: error_code\n\n")]
    #[case::comment(": keep-alive\n\n")]
    #[case::empty_line("\ndata: {\"error\": {\"code\": 500}}\n\n")]
    #[case::done("data: [DONE]\n\n")]
    #[case::bad_request(
        "data: {\"error\": {\"code\": 400, \"type\": \"InternalServerError\"}}\n\n"
    )]
    #[case::beyond("data: {\"error\": {\"code\": 600}}\n\n")]
    #[case::below("data: {\"error\": {\"code\": 499}}\n\n")]
    #[case::text("data: {\"error\": \"text\"}\n\n")]
    #[case::nothing_said("data: {\"error\": {}}\n\n")]
    #[case::null("data: {\"error\": null}\n\n")]
    #[case::no_json("data: {\"error\": {\"code\": 500}\n\n")]
    #[case::no_data("event: error\n\n")]
    #[case::invalid("event: error\ndata: {\"error\":{\"type\":\"invalid_request_error\"}}\n\n")]
    #[case::too_large("event: error\ndata: {\"error\":{\"type\":\"request_too_large\"}}\n\n")]
    #[case::rate("event: error\ndata: {\"error\":{\"type\":\"rate_limit_error\"}}\n\n")]
    #[case::old_invalid("event: error\ndata: {\"error\":{\"type\":\"BadRequestError\"}}\n\n")]
    #[case::old_unknown("event: error\ndata: {\"error\":{\"type\":\"NotFoundError\"}}\n\n")]
    fn anything_else(#[case] body: &str) {
        check(body, Passes);
    }

    #[rstest]
    #[case::event("event: ")]
    #[case::data("data: {\"error\"")]
    #[case::half("data: {\"error\": {\"code\": 500}}\n")]
    #[case::half_of_two("event: error\ndata: {\"error\": {\"code\": 500}}\r\n")]
    fn an_event_without_its_end(#[case] body: &str) {
        check(body, Unknown);
    }

    /// A stream that goes well costs no memory, and is not held for longer than it differs.
    #[rstest]
    #[case::created("event: r")]
    #[case::chunk("data: {\"i")]
    #[case::comment(":")]
    fn others_pass_with_the_byte_that_differs(#[case] body: &str) {
        let (last, before) = body.as_bytes().split_last().expect("not empty");
        let mut event = FirstEvent::default();
        if !before.is_empty() {
            assert_eq!(event.read(before), Unknown);
        }
        assert_eq!(event.read(&[*last]), Passes);
        let mut event = FirstEvent::default();
        assert_eq!(event.read(body.as_bytes()), Passes);
        assert_eq!(event.seen.capacity(), 0);
    }
}
