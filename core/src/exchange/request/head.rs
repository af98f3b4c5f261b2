//! A request's head: from bytes to what is known of the request before its body.

use super::{SLACK, text};
use crate::exchange::explaining::{Meant, Told};
use crate::exchange::realtime::handshake_key;
use crate::exchange::scanner::BodyScanner;
use crate::exchange::{Exchange, Order, Phase};
use crate::route::{Narrow, Who};
use crate::time::Instant;
use crate::wire::body::{BodyReader, Framing};
use crate::wire::form::{self, FormScanner};
use crate::wire::forward;
use crate::wire::head::{RequestError, header_room, parse_request};
use crate::wire::origin::is_foreign;
use crate::wire::routes::{self, ModelAt};
use crate::wire::scan::Scanner;
use crate::wire::target::parameter;
use crate::wire::way;
use alloc::vec::Vec;

/// vLLM's `/invocations` writes it into the body as the model.
const ADAPTER_HEADER: &str = "x-amzn-sagemaker-adapter-identifier";
/// What a chunked body asks of the budget first; then it doubles.
const CHUNKED_RESERVE: u64 = 64 << 10;
/// What a promised length asks first, at most. Promises cost a client nothing: were they taken at
/// their word, a few heads without a body could use the whole budget up.
const PROMISED_RESERVE_MAX: u64 = 1 << 20;

impl Exchange {
    pub(super) fn head_bytes(&mut self, bytes: &[u8], now: Instant) {
        let request = &mut self.request;
        let first = request.message.is_empty();
        if first {
            request.message.resize(SLACK, 0);
        }
        request.message.extend_from_slice(bytes);
        // RFC 9112 section 2.2: empty lines before a request are skipped.
        let empty = |message: &[u8]| message[SLACK..].starts_with(b"\r\n");
        let mut skipped = 0;
        while empty(&request.message[skipped..]) {
            skipped += 2;
        }
        if skipped > 0 {
            request.message.drain(SLACK..SLACK + skipped);
        }
        let received = &request.message[SLACK..];
        if received.is_empty() {
            // Some clients end a body with an empty line that they do not count: no request yet.
            return request.message.clear();
        }
        if first {
            // The head's time runs from its first byte.
            self.client_at = now;
        }
        match received.first() {
            Some(b'\r') if received.len() < 2 => return,
            // TLS, SSH and the like are told at once, not after a minute.
            Some(first) if !first.is_ascii_graphic() => {
                return self.refuse(
                    RequestError::Malformed("the request line does not begin with a method"),
                    now,
                );
            }
            _ => {}
        }
        let head_bytes_max = self.limits.head_bytes_max;
        match request.head_end.find(received) {
            Err(why) => self.refuse(RequestError::Malformed(why), now),
            Ok(Some(len)) if len <= head_bytes_max => self.head_complete(len, now),
            Ok(None) if received.len() <= head_bytes_max => {}
            Ok(_) if request.head_end.has_line() => self.refuse(RequestError::HeadTooLarge, now),
            Ok(_) => self.refuse(RequestError::TargetTooLong, now),
        }
    }

    fn head_complete(&mut self, len: usize, now: Instant) {
        let request = &mut self.request;
        request.body_start = SLACK + len;
        let mut room = header_room();
        let head =
            match parse_request(&request.message[SLACK..SLACK + len], &self.limits, &mut room) {
                Ok(head) => head,
                Err(error) => return self.refuse(error, now),
            };
        request.minor = head.minor;
        request.keep_alive = head.keep_alive;
        request.is_head = head.method == "HEAD";
        request.expects_continue = head.expects_continue;
        request.start.clear();
        request.start.extend_from_slice(head.method.as_bytes());
        request.method_len = request.start.len();
        let (slash, rest) = forward::origin_form(&head);
        request.start.extend_from_slice(slash.as_bytes());
        request.start.extend_from_slice(rest.as_bytes());
        request.headers.clear();
        request.has_host = forward::request_headers(&mut request.headers, &head);
        let target = &request.start[request.method_len..];
        let found = routes::find(head.method, target, self.limits.access);
        if found.rule.who.is_act() && found.rule.allow.is_none() && is_foreign(&head) {
            return self.refuse(RequestError::Foreign, now);
        }
        let (found, meant) = match Meant::instead(found, target) {
            Ok(found) => found,
            Err(error) => return self.refuse(error, now),
        };
        let target = meant.as_ref().map_or(target, Meant::target);
        let routes::Found { mut rule, name } = found;
        request.offers_websocket = head.offers_websocket;
        if head.offers_websocket {
            let is_realtime = rule.model == ModelAt::Event;
            request.websocket_key = handshake_key(head.headers).filter(|_| is_realtime);
            let ours = request.websocket_key.is_some();
            rule = rule.of_websocket(if ours { Who::Realtime } else { Who::Backend });
        }
        (request.rule, request.name) = (Some(rule), name);
        if matches!(rule.who, Who::Acts(_)) {
            request.narrow = Some(Narrow { model: None, backend: parameter(target, "backend") });
        }
        let header = |name| forward::header(head.headers, name);
        let explains = self.limits.access.explains && header(way::ASKED) == Some(b"1");
        request.told = Told::new(explains, meant.as_ref());
        if !self.limits.fingerprints {
            request.scanner = BodyScanner::Json(Scanner::plain());
        }
        match rule.model {
            ModelAt::Form => {
                let boundary = header("content-type").and_then(form::boundary);
                request.scanner = match boundary {
                    Some(boundary) => BodyScanner::Form(FormScanner::new(boundary)),
                    None => BodyScanner::Nothing,
                };
            }
            ModelAt::JsonOrHeader => request.header_model = header(ADAPTER_HEADER).and_then(text),
            ModelAt::Json | ModelAt::Event | ModelAt::Nowhere => {}
        }
        if matches!(rule.who, Who::Each | Who::Every | Who::Named) {
            request.narrow = Some(Narrow {
                model: parameter(target, "vllm_proxy_model")
                    .or_else(|| header("x-vllm-proxy-model").and_then(text)),
                backend: parameter(target, "vllm_proxy_backend")
                    .or_else(|| header("x-vllm-proxy-backend").and_then(text)),
            });
        }
        let framing = head.framing;
        request.chunked = framing == Framing::Chunked;
        request.promised = match framing {
            Framing::Length(bytes) => Some(bytes),
            Framing::Empty | Framing::Chunked | Framing::UntilClose => None,
        };
        request.reader = Some(BodyReader::new(framing, self.limits.head_bytes_max));
        request.wanted = match framing {
            Framing::Length(bytes) => bytes.min(PROMISED_RESERVE_MAX),
            Framing::Chunked => CHUNKED_RESERVE,
            Framing::Empty | Framing::UntilClose => 0,
        };
        if matches!(framing, Framing::Length(bytes) if bytes > self.limits.body_bytes_max) {
            return self.refuse(RequestError::BodyTooLarge, now);
        }
        self.phase = Phase::Body;
        // A body of known length is already where it belongs; what lies behind it is not.
        let in_place = match framing {
            Framing::Length(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX),
            Framing::Empty | Framing::Chunked | Framing::UntilClose => 0,
        };
        let available = request.message.len() - request.body_start;
        let behind = if available > in_place {
            request.message.split_off(request.body_start + in_place)
        } else {
            Vec::new()
        };
        if available > 0 && in_place > 0 {
            let present = available.min(in_place);
            if let Some(reader) = &mut request.reader {
                // Bytes of a known length cannot be malformed.
                let _ = reader.read(&request.message[request.body_start..][..present]);
            }
        }
        if request.wanted > 0 {
            // Answered before anything else is heard: the rest of the body waits for it.
            request.starved = Some((now, now));
            self.orders.push_back(Order::Reserve(request.wanted));
        }
        self.client_at = now;
        self.body_bytes(&behind, now);
    }
}
