//! The client's half: from bytes to a request that is whole, and to what a backend is sent.
//!
//! Owns the request's bytes. Knows nothing of answers.

mod head;
mod sending;

use super::deadlines::RESERVE_AGAIN;
use super::errand::Body;
use super::explaining::Told;
use super::realtime::Key;
use super::scanner::BodyScanner;
use super::{After, Exchange, Order, Phase, shrink};
use crate::config::Access;
use crate::route::{Change, Narrow, RequestMeta, Retry, Share};
use crate::time::{Duration, Instant};
use crate::wire::answers::{Answer, Shape};
use crate::wire::body::{BodyReader, Kind};
use crate::wire::forward;
use crate::wire::head::{HeadEnd, RequestError};
use crate::wire::merge::Merge;
use crate::wire::routes::{self, About, Rule};
use crate::wire::scan::Scan;
use crate::wire::way::Says;
use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Room in front of a head as it was received, so that the head we send (with a Host or the
/// upstream's path prefix added) can lie right before the body, and both leave in one call.
const SLACK: usize = 256;
/// One request, as far as it was read.
#[derive(Debug, Default)]
pub(super) struct Request {
    /// `SLACK` bytes, the head as received, the body without its chunk framing.
    message: Vec<u8>,
    head_end: HeadEnd,
    body_start: usize,
    body_len: usize,
    reader: Option<BodyReader>,
    /// Method and target as a backend gets them, and where the method ends.
    start: Vec<u8>,
    method_len: usize,
    /// Header lines as a backend gets them, with the empty line.
    headers: Vec<u8>,
    has_host: bool,
    chunked: bool,
    /// The length that the head promised.
    promised: Option<u64>,
    rule: Option<Rule>,
    /// What the variable part of its path says.
    name: Option<String>,
    narrow: Option<Narrow>,
    /// The model that a header names.
    header_model: Option<String>,
    scanner: BodyScanner,
    scan: Scan,
    since: Instant,
    pub(super) minor: u8,
    pub(super) keep_alive: bool,
    pub(super) is_head: bool,
    pub(super) offers_websocket: bool,
    /// Where we may have to accept the websocket ourselves.
    pub(super) websocket_key: Option<Key>,
    expects_continue: bool,
    /// Whether it is answered by events that tell how we are, and these have begun.
    pub(super) is_watched: bool,
    pub(super) told: Told,
    pub(super) share: Share,
    wanted: u64,
    /// While the budget of bodies has no room: since when, and when to ask again.
    starved: Option<(Instant, Instant)>,
}

impl Request {
    pub(super) fn message(&self) -> &[u8] {
        &self.message
    }

    pub(super) fn is_begun(&self) -> bool {
        !self.message.is_empty()
    }

    pub(super) fn shape(&self) -> Shape {
        self.rule.map_or(Shape::OpenAi, |rule| rule.shape)
    }

    pub(super) fn starved(&self) -> Option<Instant> {
        self.starved.map(|(_, again)| again)
    }

    pub(super) fn starved_for(&self, now: Instant) -> Duration {
        self.starved.map_or(Duration::ZERO, |(since, _)| now.since(since))
    }

    /// What is missing of the budget.
    pub(super) const fn wanted(&self) -> u64 {
        self.wanted.saturating_sub(self.share.bytes)
    }

    pub(super) const fn unreserve(&mut self) -> Share {
        core::mem::replace(&mut self.share, Share { bytes: 0, overdraft: false })
    }

    pub(super) fn rule(&self) -> Rule {
        self.rule.unwrap_or_else(|| routes::find("", b"", Access::default()).rule)
    }

    pub(super) fn meta(&self) -> RequestMeta<'_> {
        let rule = self.rule();
        let named = |field| self.name.as_ref().or(field).map(String::as_str);
        let about = |about, field| if rule.about == about { named(field) } else { None };
        RequestMeta {
            who: rule.who,
            model: self.header_model.as_deref().or(self.scan.model.as_deref()),
            stream: self.scan.stream,
            prompt_bytes: self.scan.prompt_bytes,
            prompt: &self.scan.fingerprint,
            retry: if self.scan.pinned { Retry::Never } else { rule.retry },
            websocket: self.offers_websocket,
            since: self.since,
            response: about(About::Response, self.scan.previous_response_id.as_ref()),
            adapter: about(About::Adapter, self.scan.lora_name.as_ref()),
            unloads: rule.merge == Merge::UnloadLora,
            of_default: rule.change == Some(Change::Adapters),
            facts: rule.merge == Merge::Metrics,
            narrow: self.narrow.as_ref(),
            dry_run: self.told.dry_run.is_some(),
            allow: rule.allow,
        }
    }

    /// The stored response that its path names.
    pub(super) fn names_response(&self) -> Option<&str> {
        self.name.as_deref().filter(|_| self.rule().about == About::Response)
    }

    /// Whether its answer may be a response that is to be remembered, and comes as events.
    pub(super) fn creates_response(&self) -> Option<bool> {
        let creates = self.rule().about == About::Response && self.name.is_none();
        creates.then_some(self.scan.stream)
    }

    /// Makes room for the next request. Buffers are kept unless they grew large.
    pub(super) fn clear(&mut self) {
        let share = self.share;
        let mut message = core::mem::take(&mut self.message);
        let mut start = core::mem::take(&mut self.start);
        let mut headers = core::mem::take(&mut self.headers);
        for buffer in [&mut message, &mut start, &mut headers] {
            buffer.clear();
            shrink(buffer);
        }
        *self = Self { message, start, headers, share, ..Self::default() };
    }

    /// The websocket that it became names its model.
    pub(super) fn name(&mut self, model: String, now: Instant) {
        self.scan.model = Some(model);
        self.since = now;
    }

    pub(super) fn replace_headers(&mut self, by: impl FnOnce(&[u8]) -> Vec<u8>) {
        self.headers = by(&self.headers);
    }

    /// Gives back the bytes, since the request will not be sent again. What is known stays.
    pub(super) fn forget_bytes(&mut self) {
        self.message.clear();
        shrink(&mut self.message);
        shrink(&mut self.headers);
    }

    /// Hands over the body, as it goes on the wire, to all that are to hear it.
    pub(super) fn lend_body(&mut self) -> Body {
        let message = Arc::new(core::mem::take(&mut self.message));
        Body { message, start: self.body_start }
    }

    /// The body without what frames it on the wire, once the request is complete.
    pub(super) fn content(&self) -> &[u8] {
        self.body().get(..self.body_len).unwrap_or_default()
    }

    /// The body; once the request is complete, with what ends it on the wire.
    pub(super) fn body(&self) -> &[u8] {
        self.message.get(self.body_start..).unwrap_or_default()
    }
}

/// The value of a header, if it is text.
fn text(value: &[u8]) -> Option<String> {
    let text = core::str::from_utf8(value).ok()?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

impl Exchange {
    pub(super) fn client_bytes(&mut self, bytes: &[u8], now: Instant) {
        match self.phase {
            Phase::Head => self.head_bytes(bytes, now),
            Phase::Body => {
                self.client_at = now;
                self.body_bytes(bytes, now);
            }
            Phase::Asked
            | Phase::Later(_)
            | Phase::Upstream
            | Phase::Gathering(_)
            | Phase::Watching(_)
            | Phase::Answered => {
                self.ahead.extend_from_slice(bytes);
            }
            Phase::Nameless => self.nameless_bytes(bytes, now),
            Phase::Piped(_) => self.piped_client_bytes(bytes, now),
            Phase::Lingering { at_most, .. } => {
                let until = at_most.min(now + self.limits.linger);
                self.phase = Phase::Lingering { until, at_most };
            }
            Phase::Closed => {}
        }
    }

    pub(super) fn reserved(&mut self, share: Option<Share>, now: Instant) {
        if !matches!(self.phase, Phase::Body) {
            // Only a runtime that answers what was not asked gets here.
            self.orders.extend(share.map(Order::Unreserve));
            return;
        }
        let request = &mut self.request;
        if let Some(share) = share {
            request.share = share;
            request.starved = None;
            self.client_at = now;
            if request.expects_continue && request.body().is_empty() {
                request.expects_continue = false;
                self.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            self.body_bytes(&[], now);
        } else {
            let since = request.starved.map_or(now, |(since, _)| since);
            request.starved = Some((since, now + RESERVE_AGAIN));
        }
    }

    /// Takes what the client sent of a body, and of what follows it.
    fn body_bytes(&mut self, bytes: &[u8], now: Instant) {
        let request = &mut self.request;
        let Some(reader) = &mut request.reader else { return };
        let mut at = 0;
        while at < bytes.len() && !reader.done() {
            match reader.read(&bytes[at..]) {
                Ok(step) => {
                    if step.kind == Kind::Data {
                        request.message.extend_from_slice(&bytes[at..at + step.len]);
                    }
                    at += step.len;
                }
                Err(why) => return self.refuse(RequestError::Malformed(why), now),
            }
        }
        let done = reader.done();
        self.ahead.extend_from_slice(&bytes[at..]);
        let body_len = (request.message.len() - request.body_start) as u64;
        if body_len > self.limits.body_bytes_max {
            return self.refuse(RequestError::BodyTooLarge, now);
        }
        if request.starved.is_some() {
            return;
        }
        if body_len > request.share.bytes {
            // It outgrew what was reserved for it.
            let most = request.promised.unwrap_or(self.limits.body_bytes_max);
            request.wanted = body_len.saturating_mul(2).min(most);
            request.starved = Some((now, now));
            self.orders.push_back(Order::Reserve(request.wanted()));
            return;
        }
        let Request { scanner, message, body_start, .. } = request;
        scanner.feed(&message[*body_start..]);
        if done {
            self.request_complete(now);
        }
    }

    fn request_complete(&mut self, now: Instant) {
        let request = &mut self.request;
        request.body_len = request.message.len() - request.body_start;
        let scanner = core::mem::take(&mut request.scanner);
        request.scan = scanner.finish(&request.message[request.body_start..]);
        if let Some(model) = &request.header_model {
            request.scan.fingerprint.set_apart(model.as_bytes());
        }
        request.since = now;
        if request.chunked {
            if request.body_len > 0 {
                request.message.extend_from_slice(b"\r\n");
            }
            request.message.extend_from_slice(b"0\r\n");
            let raw = request.reader.as_ref().map(BodyReader::trailers).unwrap_or_default();
            if let Err(why) =
                forward::trailers(&mut request.message, raw, self.limits.headers_max, Says::Backend)
            {
                return self.refuse(RequestError::Malformed(why), now);
            }
        }
        request.reader = None;
        if request.rule().who.needs_no_body() {
            // Answered from what the engine knows: the body is of no use to anyone.
            request.forget_bytes();
        }
        self.phase = Phase::Asked;
        self.orders.push_back(Order::Ask);
    }

    /// Answers a request that is not to be read any further, and ends the connection.
    pub(super) fn refuse(&mut self, error: RequestError, now: Instant) {
        let shape = self.request.shape();
        let answer = match error {
            RequestError::Malformed(why) => Answer::bad_request(why, shape),
            RequestError::Connect => Answer::bad_request("CONNECT is not supported", shape),
            RequestError::Foreign => Answer::foreign(shape),
            RequestError::Timeout => Answer::request_timeout(shape),
            RequestError::BodyTooLarge => Answer::body_too_large(self.limits.body_bytes_max, shape),
            RequestError::TargetTooLong => Answer::target_too_long(shape),
            RequestError::HeadTooLarge => Answer::head_too_large(shape),
        };
        self.request.starved = None;
        self.answer_and_linger(&answer, now);
        debug_assert_eq!(self.after, After::Linger);
    }

    /// Answers a request that was not read to its end, or cannot be: the connection ends with it.
    pub(super) fn answer_and_linger(&mut self, answer: &Answer, now: Instant) {
        self.withdraw();
        self.request.keep_alive = false;
        self.orders.push_back(Order::Declined(answer.status));
        self.say(answer, None, true, now);
        self.after = After::Linger;
    }
}
