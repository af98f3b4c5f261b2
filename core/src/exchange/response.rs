//! The backend's half: one attempt to have a request answered, and the answer on its way through.
//!
//! Owns nothing of an answer's body but what must be held before the client may see it.

use super::attempt::{Attempt, Link, Stage};
use super::events::{Verdict, is_event_stream};
use super::flow::{Flow, Hold};
use super::{After, End, Exchange, HELD_BYTES_MAX, Kept, Order, Phase, shrink};
use crate::exchange::Drain;
use crate::route::{Doubt, Failure, Outcome, Retry, Usage};
use crate::time::Instant;
use crate::wire::answers::is_unknown_model;
use crate::wire::body::{BodyReader, Framing, Kind};
use crate::wire::forward::{self, ClientFraming};
use crate::wire::head::{HeadEnd, parse_response};
use crate::wire::response_id::{IdFinder, Search};
use crate::wire::usage::UsageReader;
use crate::wire::way::Says;
use alloc::borrow::ToOwned;
use alloc::string::ToString;
use alloc::vec::Vec;

/// How much of a body is copied behind its head, to leave with it in one plain send.
const COPIED_BYTES_MAX: usize = 4 << 10;
/// Informational answers before the final one. Nobody sends more than a few.
const INFORMATIONAL_MAX: u8 = 16;

impl Exchange {
    pub(super) fn upstream_bytes(&mut self, bytes: &[u8], now: Instant) {
        let piped = self.is_piped();
        let Some(attempt) = &mut self.attempt else { return };
        if !attempt.is_open() {
            return;
        }
        attempt.heard_at = now;
        if piped {
            return self.piped_upstream_bytes(bytes, 0);
        }
        if !attempt.begun {
            // Bytes that nobody asked for belong to some other exchange, or say that the backend
            // closes an idle connection.
            let reused = attempt.link == Link::Open { reused: true };
            return self.fail(if reused { Failure::Stale } else { Failure::Nonsense });
        }
        match attempt.stage {
            Stage::Body { .. } => self.answer_bytes(bytes, 0, now),
            Stage::Head => self.answer_head_bytes(bytes, now),
        }
    }

    /// Reads heads until the final one, then what follows it.
    fn answer_head_bytes(&mut self, bytes: &[u8], now: Instant) {
        let mut from = 0;
        loop {
            let Some(attempt) = &mut self.attempt else { return };
            // A head that came in one piece is parsed where it lies.
            let mut gathered = core::mem::take(&mut attempt.head);
            let kept = gathered.len();
            if kept > 0 {
                gathered.extend_from_slice(&bytes[from..]);
            }
            let head = if kept > 0 { &gathered } else { &bytes[from..] };
            let head_bytes_max = self.limits.response_head_bytes_max;
            let len = match attempt.head_end.find(head) {
                Ok(Some(len)) if len <= head_bytes_max => len,
                Ok(None) if head.len() <= head_bytes_max && may_be_head(head) => {
                    if kept == 0 {
                        gathered.extend_from_slice(&bytes[from..]);
                    }
                    attempt.head = gathered;
                    return;
                }
                Ok(_) | Err(_) => return self.fail(Failure::Nonsense),
            };
            let head = &head[..len];
            let minor = self.request.minor;
            let draining = self.drain > Drain::Running;
            let keep_alive = self.request.keep_alive && !draining;
            let usage_at = self.request.rule().usage;
            let asked = self.request.told.explains.then(|| attempt.spec.address.to_string());
            let way = asked.as_deref().map(|backend| attempt.way(backend));
            let mut emitted = Vec::with_capacity(len + 32);
            let parsed = parse_response(head, self.request.is_head, |head| {
                let framing = forward::client_framing(head.framing, minor);
                let final_one = head.status >= 200 || head.status < 100;
                let says = match &way {
                    None => Says::Backend,
                    Some(way) if final_one || head.switches => Says::Proxy(way),
                    Some(_) => Says::Nobody,
                };
                let close = !keep_alive || framing == ClientFraming::UntilClose;
                let keep = !close && minor == 0;
                // RFC 9112 section 6.1: an HTTP/1.0 client gets no Transfer-Encoding, not even
                // where there is no body.
                let shown = if minor == 0 { ClientFraming::UntilClose } else { framing };
                forward::response(
                    &mut emitted,
                    &head,
                    shown,
                    close && final_one,
                    keep && final_one,
                    says,
                );
                let events = head.status == 200 && is_event_stream(head.headers);
                let usage = (head.status == 200).then(|| UsageReader::new(usage_at, head.headers));
                let facts = (close, events, head.switches, usage.flatten());
                (head.status, head.framing, framing, head.keep_alive, facts)
            });
            let Ok((status, backend_framing, framing, reusable, facts)) = parsed else {
                return self.fail(Failure::Nonsense);
            };
            let (close, events, switches, usage) = facts;
            // `find` stopped behind this head; what was kept of it does not count in `bytes`.
            from += len - kept;
            if switches && self.request.offers_websocket && attempt.wire.is_empty() {
                return self.switched(&emitted, bytes, from, now);
            }
            if (100..200).contains(&status) {
                attempt.informational += 1;
                if status == 101 || attempt.informational > INFORMATIONAL_MAX {
                    // Nobody asked to switch protocols.
                    return self.fail(Failure::Nonsense);
                }
                if minor == 1 && self.realtime.is_none() {
                    self.out.extend_from_slice(&emitted);
                }
                attempt.head_end = HeadEnd::default();
                if from == bytes.len() {
                    return;
                }
                continue;
            }
            if status != 401
                && let Some(Doubt::Key(answer)) = &self.doubt
            {
                // The client's key is good: the backend's own answer is of no use.
                let answer = answer.clone();
                self.drop_attempt(Outcome::done(status));
                return self.answer(&answer, now);
            }
            if self.realtime.is_some() {
                return self.websocket_refused(status, now);
            }
            let again = self.request.meta().retry == Retry::BeforeFirstByte;
            let hold = match status {
                // Another backend may do better.
                500 | 503 if again => Hold::Whole,
                200 if again && events => Hold::FirstEvent,
                // Another may know better, or we.
                404 if !matches!(self.doubt, None | Some(Doubt::None)) => Hold::Whole,
                _ => Hold::FirstByte,
            };
            if (200..300).contains(&status) {
                if let Some(id) = self.request.names_response() {
                    self.orders.push_back(Order::Owns(attempt.backend, id.to_owned()));
                }
                attempt.ids = self.request.creates_response().map(IdFinder::new);
            }
            attempt.usage = usage;
            attempt.held = emitted;
            attempt.stage = Stage::Body {
                reader: BodyReader::new(backend_framing, self.limits.head_bytes_max),
                framing,
                status,
                reusable,
                after: if close { After::Close } else { After::NextRequest },
                hold,
            };
            if backend_framing == Framing::Empty || from < bytes.len() {
                self.answer_bytes(bytes, from, now);
            }
            return;
        }
    }

    /// Passes on what `bytes[from..]` brings of an answer's body.
    fn answer_bytes(&mut self, bytes: &[u8], from: usize, now: Instant) {
        let Some(attempt) = &mut self.attempt else { return };
        let Stage::Body { reader, framing, hold, .. } = &mut attempt.stage else { return };
        let mut at = from;
        let mut failed = false;
        let mut has_data = false;
        let out_before = self.out.len();
        // A small answer leaves in one piece with its head; a large one is not copied for that.
        let direct = matches!(hold, Hold::FirstByte | Hold::FirstEvent)
            && bytes.len() - from > COPIED_BYTES_MAX;
        // The run of bytes that goes on as it is.
        let mut run = from..from;
        // The last of the body's bytes, which may be parsed where they lie.
        let mut last = from..from;
        let mut flow = Flow {
            held: &mut attempt.held,
            out: &mut self.out,
            pieces: &mut self.pieces,
            hold: *hold,
        };
        while at < bytes.len() && !reader.done() {
            let Ok(step) = reader.read(&bytes[at..]) else {
                failed = true;
                break;
            };
            let read = at..at + step.len;
            at = read.end;
            has_data |= step.kind == Kind::Data;
            if step.kind == Kind::Data
                && let Some(usage) = &mut attempt.usage
            {
                usage.read(&bytes[core::mem::replace(&mut last, read.clone())]);
            }
            if step.kind == Kind::Data
                && let Some(ids) = &mut attempt.ids
            {
                match ids.feed(&bytes[read.clone()]) {
                    Search::More => {}
                    Search::Found(id) => {
                        self.orders.push_back(Order::Owns(attempt.backend, id));
                        attempt.ids = None;
                    }
                    Search::Absent => attempt.ids = None,
                }
            }
            if *hold == Hold::FirstEvent && step.kind == Kind::Data {
                *hold = match attempt.first_event.read(&bytes[read.clone()]) {
                    Verdict::Unknown => Hold::FirstEvent,
                    Verdict::Passes => Hold::FirstByte,
                    Verdict::ServerError => Hold::Whole,
                };
            }
            if has_data && direct && *hold == Hold::FirstByte {
                flow.begin();
            }
            let passes = match (step.kind, *framing) {
                (Kind::Data, ClientFraming::Rechunked) => {
                    forward::chunk_size(flow.own(), step.len as u64);
                    flow.read(bytes, read.clone());
                    flow.own().extend_from_slice(b"\r\n");
                    false
                }
                (Kind::Data, ClientFraming::AsIs | ClientFraming::UntilClose) => true,
                (Kind::Framing, ClientFraming::AsIs) => true,
                (Kind::Framing, ClientFraming::Rechunked | ClientFraming::UntilClose)
                | (Kind::Dropped, _) => false,
            };
            if passes && run.end == read.start {
                run.end = read.end;
            } else if passes {
                flow.read(bytes, core::mem::replace(&mut run, read));
            }
        }
        flow.read(bytes, run);
        let surplus = at < bytes.len();
        let done = reader.done();
        let mut cost = None;
        if let Some(usage) = &mut attempt.usage {
            if done {
                cost = usage.end(&bytes[last]);
            } else {
                usage.read(&bytes[last]);
            }
        }
        if done && *framing == ClientFraming::AsIs && !reader.trailers().is_empty() {
            let (raw, headers_max) = (reader.trailers(), self.limits.headers_max);
            let says = if self.request.told.explains { Says::Nobody } else { Says::Backend };
            failed |= forward::trailers(flow.own(), raw, headers_max, says).is_err();
        }
        let full = attempt.held.len() > HELD_BYTES_MAX;
        let begins = match *hold {
            Hold::No => false,
            Hold::FirstByte => has_data || done,
            // Too much to hold: it passes, whatever another backend might have said.
            Hold::FirstEvent => full || done,
            Hold::Whole => full,
        };
        if failed {
            if *hold == Hold::No {
                return self.answer_broken(Outcome::Broken, now);
            }
            if direct {
                self.pieces.clear();
                self.out.truncate(out_before);
            }
            return self.fail(Failure::Nonsense);
        }
        if begins {
            self.answer_begins();
        }
        if done {
            self.answer_complete(surplus, cost, now);
        } else if begins {
            self.orders.push_back(Order::FirstByte);
            self.request_bytes_done();
        }
    }

    /// Lets the client have what was held, before the pieces that were made since.
    fn answer_begins(&mut self) {
        let Some(attempt) = &mut self.attempt else { return };
        let Stage::Body { hold, .. } = &mut attempt.stage else { return };
        *hold = Hold::No;
        self.kept = None;
        let held = core::mem::take(&mut attempt.held);
        if self.out.is_empty() {
            self.out = held;
        } else {
            self.out.extend_from_slice(&held);
        }
    }

    /// Nobody else will get this request: its bytes may go, once the backend has them all.
    fn request_bytes_done(&mut self) {
        if self.attempt.as_ref().is_some_and(|attempt| attempt.wire.is_empty()) {
            self.request.forget_bytes();
            self.give_back();
        }
    }

    fn answer_complete(&mut self, surplus: bool, usage: Option<Usage>, now: Instant) {
        let Some(mut attempt) = self.attempt.take() else { return };
        let Stage::Body { status, reusable, after, hold, .. } = attempt.stage else { return };
        // A backend that answered before it had the whole request, or says more than one answer,
        // is not to be trusted with another on the same connection.
        let reusable = reusable && attempt.wire.is_empty() && !attempt.refused && !surplus;
        self.orders.push_back(Order::Release { reusable });
        let failure = match (&self.doubt, hold, status) {
            (_, Hold::No | Hold::FirstByte | Hold::FirstEvent, _) => None,
            (Some(Doubt::Elsewhere), _, 404) => Some(Failure::Elsewhere),
            (Some(Doubt::Unlisted), _, 404) => {
                is_unknown_model(&attempt.held).then_some(Failure::Unlisted)
            }
            (_, _, 404) => None,
            (_, _, 200) => Some(Failure::ErrorEvent),
            _ => Some(Failure::Status(status)),
        };
        if let Some(failure) = failure
            && let Some(ticket) = attempt.ticket.take()
        {
            self.kept = Some(Kept { bytes: attempt.held, after });
            self.phase = Phase::Asked;
            self.orders.push_back(Order::AskAgain(ticket, failure));
            return;
        }
        if let Some(ticket) = attempt.ticket.take() {
            self.orders.push_back(Order::Settle(ticket, Outcome::Done { status, usage }));
        }
        if hold == Hold::Whole {
            match self.doubt.take() {
                Some(Doubt::Unknown(refusal)) if is_unknown_model(&attempt.held) => {
                    return self.refused(&refusal, now);
                }
                _ => self.out.append(&mut attempt.held),
            }
        }
        self.answered(after, now);
    }

    pub(super) fn upstream_closed(&mut self, end: End, now: Instant) {
        if self.is_piped() {
            return self.piped_upstream_closed(end);
        }
        let Some(attempt) = &mut self.attempt else { return };
        match &attempt.stage {
            Stage::Head => {
                let reused = attempt.link == Link::Open { reused: true };
                let stale = reused && attempt.head.is_empty() && attempt.informational == 0;
                let failure = match attempt.begun {
                    _ if stale => Failure::Stale,
                    true => Failure::Lost,
                    // Nothing of the request was sent.
                    false => Failure::Connect,
                };
                self.fail(failure);
            }
            Stage::Body { reader, framing, .. } if reader.may_close() && end == End::Closed => {
                let usage = attempt.usage.as_mut().and_then(|usage| usage.end(&[]));
                if *framing == ClientFraming::Rechunked {
                    let last = b"0\r\n\r\n";
                    if attempt.has_begun_answer() {
                        self.out.extend_from_slice(last);
                    } else {
                        attempt.held.extend_from_slice(last);
                    }
                }
                let begins = [Hold::FirstByte, Hold::FirstEvent];
                if matches!(attempt.stage, Stage::Body { hold, .. } if begins.contains(&hold)) {
                    self.answer_begins();
                }
                self.answer_complete(false, usage, now);
            }
            Stage::Body { hold: Hold::No, .. } => self.answer_broken(Outcome::Broken, now),
            Stage::Body { .. } => self.fail(Failure::Cut),
        }
    }

    pub(super) fn upstream_timeout(&mut self, now: Instant) {
        let Some(attempt) = &self.attempt else { return };
        if attempt.has_begun_answer() {
            self.answer_broken(Outcome::TimedOut, now);
        } else {
            let connecting = attempt.link == Link::Connecting;
            self.fail(if connecting { Failure::Connect } else { Failure::Timeout });
        }
    }

    /// Whether the end of the client's connection would now pass for a proper end of the answer. If
    /// it must end here all the same it must be reset.
    pub fn ends_by_close(&self) -> bool {
        matches!(
            self.attempt,
            Some(Attempt { stage: Stage::Body { framing: ClientFraming::UntilClose, .. }, .. })
        )
    }

    /// The answer had begun and cannot be completed: the client must see that it is broken.
    fn answer_broken(&mut self, outcome: Outcome, now: Instant) {
        let after = if self.ends_by_close() { After::Reset } else { After::Close };
        self.drop_attempt(outcome);
        self.answered(after, now);
    }

    /// There is no connection to the backend.
    pub(super) fn unconnected(&mut self, failure: Failure) {
        if self.attempt.as_ref().is_some_and(|attempt| !attempt.is_open()) {
            self.fail(failure);
        }
    }

    /// The backend failed before anything of its answer reached the client.
    pub(super) fn fail(&mut self, failure: Failure) {
        let Some(mut attempt) = self.attempt.take() else { return };
        self.orders.push_back(Order::Release { reusable: false });
        shrink(&mut attempt.held);
        if let Some(ticket) = attempt.ticket.take() {
            self.phase = Phase::Asked;
            self.orders.push_back(Order::AskAgain(ticket, failure));
        }
    }
}

/// Whether the bytes so far can be the beginning of an answer. What cannot is not waited for.
fn may_be_head(bytes: &[u8]) -> bool {
    bytes.iter().zip(b"HTTP/1.").all(|(byte, expected)| byte == expected)
}
