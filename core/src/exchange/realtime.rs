//! `/v1/realtime` where backends serve different models: a websocket that we accept ourselves,
//! since its first message names the model.
//!
//! Owns what is said until a backend takes over, worded as vLLM words it (0.33,
//! `speech_to_text/realtime/connection.py`), and the handshake as uvicorn 0.54 answers it. Knows
//! nothing of what passes then.

use super::{After, Exchange, Order, Phase};
use crate::rng::mix;
use crate::route::{Outcome, Refusal};
use crate::time::{Duration, Instant, Wake};
use crate::wire::answers::Shape;
use crate::wire::forward;
use crate::wire::websocket::{self, Message, MessageReader, accept_key, is_key};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use httparse::Header;
use serde_json::{Value, json};

/// What a client may say before it names a model, in bytes: messages that are held, as frames, and
/// the one under way together. All clients we know name it first; no budget counts these bytes.
const HELD_BYTES_MAX: usize = 64 << 10;
/// Our own words that may wait for the client before more of its messages are heard. An error is
/// ten times as long as an empty message.
const SAID_BYTES_MAX: usize = 16 << 10;
/// How long messages behind a model that nobody has wait, so that other connections have a turn:
/// each such name is a question to the engine.
const TURN: Duration = Duration::from_millis(1);
/// A backend's first message. It has some 80 bytes.
const GREETING_BYTES_MAX: usize = 4 << 10;
/// What frames a message of that length from a server.
const FRAME_HEAD_BYTES: usize = 4;

const TOO_MUCH: &str = "too much was said before a model was named";

const GOING_AWAY: u16 = 1001;
const POLICY: u16 = 1008;
const TOO_BIG: u16 = 1009;
const FAILED: u16 = 1011;
const RESTARTING: u16 = 1012;

/// The `Sec-WebSocket-Key` of a handshake.
pub(super) type Key = [u8; 24];

/// A websocket that we accepted, until a backend has it.
#[derive(Debug)]
pub(super) struct Realtime {
    reader: MessageReader,
    /// What a backend will be told first: every message that is not ours to answer, in frames of
    /// our own.
    held: Vec<u8>,
    /// How much of that was there before the model was named.
    before: usize,
    /// How much of [`Exchange::ahead`] was heard. While there is more the client is not read.
    heard: usize,
    /// When that has its turn.
    turn: Instant,
    /// When a model must have been named, whatever else is said.
    until: Instant,
    /// For frames towards the backend. Whoever reads those sees them from one machine only, so
    /// that it need not be a secret (RFC 6455 section 10.3).
    mask: [u8; 4],
}

/// What a message comes to.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    /// Nothing more.
    Done,
    /// To be held.
    Held,
    /// To be held; it names the model.
    Named(String),
    /// An error event, with its code.
    Wrong(String, &'static str),
}

/// What a client's handshake proves, if it is one (RFC 6455 section 4.2.1). Any other offer of a
/// websocket is for a backend to refuse.
pub(super) fn handshake_key(headers: &[Header<'_>]) -> Option<Key> {
    let once = |name: &str| {
        let mut all = headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        all.next().filter(|_| all.next().is_none()).map(|header| header.value)
    };
    let key = once("sec-websocket-key").filter(|key| is_key(key))?;
    let version = once("sec-websocket-version")?;
    if version == b"13" { key.try_into().ok() } else { None }
}

/// Takes the offer of extensions out of header lines: we read the frames of both sides.
fn without_extensions(headers: &[u8]) -> Vec<u8> {
    const NAME: &[u8] = b"sec-websocket-extensions:";
    let lines = headers.split_inclusive(|byte| *byte == b'\n');
    let offers =
        |line: &[u8]| line.get(..NAME.len()).is_some_and(|name| name.eq_ignore_ascii_case(NAME));
    lines.filter(|line| !offers(line)).flatten().copied().collect()
}

/// What vLLM does with a text before it knows the model.
fn hear(text: &str) -> Heard {
    let Ok(event) = serde_json::from_str::<Value>(text) else {
        return Heard::Wrong("Invalid JSON".into(), "invalid_json");
    };
    if !event.is_object() {
        let kind = match event {
            Value::Null => "NoneType",
            Value::Bool(_) => "bool",
            Value::Number(number) if number.is_f64() => "float",
            Value::Number(_) => "int",
            Value::String(_) => "str",
            Value::Array(_) | Value::Object(_) => "list",
        };
        let message = format!("'{kind}' object has no attribute 'get'");
        return Heard::Wrong(message, "processing_error");
    }
    match event.get("type") {
        Some(Value::String(kind)) if kind == "session.update" => match event.get("model") {
            None | Some(Value::Null) => {
                Heard::Wrong("Missing required field: model".into(), "invalid_event")
            }
            Some(Value::String(model)) => Heard::Named(model.clone()),
            Some(other) => {
                Heard::Wrong(format!("The model `{other}` does not exist."), "model_not_found")
            }
        },
        Some(Value::String(kind)) if kind == "input_audio_buffer.append" => Heard::Held,
        Some(Value::String(kind)) if kind == "input_audio_buffer.commit" => Heard::Wrong(
            "Model not validated. Make sure to validate the model by sending a session.update \
             event."
                .into(),
            "model_not_validated",
        ),
        Some(Value::String(kind)) => {
            Heard::Wrong(format!("Unknown event type: {kind}"), "unknown_event")
        }
        None | Some(Value::Null) => {
            Heard::Wrong("Unknown event type: None".into(), "unknown_event")
        }
        Some(other) => Heard::Wrong(format!("Unknown event type: {other}"), "unknown_event"),
    }
}

/// Appends an error event, its members in vLLM's order.
fn error_event(out: &mut Vec<u8>, message: &str, code: &str) {
    let (message, code) = (json!(message), json!(code));
    let event = format!(r#"{{"type":"error","error":{message},"code":{code}}}"#);
    websocket::text(out, &event, None);
}

impl Exchange {
    /// Accepts the websocket, and says what vLLM says first.
    pub(super) fn accept_websocket(&mut self, now: Instant) {
        let Some(key) = self.request.websocket_key else {
            // Only a runtime that answers what was not asked gets here.
            return self.answer(&Refusal::NoAnswer.answer(Shape::OpenAi), now);
        };
        let micros = forward::unix_micros(self.limits.epoch_micros, now);
        let fold = |seed: u64, byte: &u8| mix(seed ^ u64::from(*byte));
        // No two clients choose the same key, unless on purpose.
        let seed = key.iter().fold(mix(micros ^ self.requests), fold);
        let secs = micros / 1_000_000;
        forward::own_switch(&mut self.out, &accept_key(&key), secs);
        let created =
            format!(r#"{{"type":"session.created","id":"sess-{seed:016x}","created":{secs}}}"#);
        websocket::text(&mut self.out, &created, None);
        self.request.replace_headers(without_extensions);
        self.realtime = Some(Box::new(Realtime {
            reader: MessageReader::new(true, HELD_BYTES_MAX),
            held: Vec::new(),
            before: 0,
            heard: 0,
            turn: now,
            until: now + self.limits.keep_alive,
            mask: (mix(seed) as u32).to_ne_bytes(),
        }));
        self.phase = Phase::Nameless;
        self.client_at = now;
        // The client may have named it already.
        self.nameless_turn(now);
    }

    pub(super) fn nameless_bytes(&mut self, bytes: &[u8], now: Instant) {
        if !self.ahead.is_empty() {
            return self.ahead.extend_from_slice(bytes);
        }
        if let Some(used) = self.listen(bytes, now) {
            self.ahead.extend_from_slice(&bytes[used..]);
        }
    }

    /// Hears what the client sent ahead of its turn.
    fn nameless_turn(&mut self, now: Instant) {
        let Some(heard) = self.realtime.as_ref().map(|realtime| realtime.heard) else { return };
        let ahead = core::mem::take(&mut self.ahead);
        let Some(used) = self.listen(ahead.get(heard..).unwrap_or_default(), now) else { return };
        let Some(realtime) = &mut self.realtime else { return };
        let heard = heard + used;
        if heard < ahead.len() {
            realtime.heard = heard;
            self.ahead = ahead;
        } else {
            realtime.heard = 0;
        }
    }

    /// Hears messages until a model is named, or enough was answered: says how far that is, unless
    /// the websocket is closed.
    fn listen(&mut self, bytes: &[u8], now: Instant) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            let unsent = self.unsent();
            let realtime = self.realtime.as_mut()?;
            if unsent >= SAID_BYTES_MAX {
                realtime.turn = now + TURN;
                break;
            }
            let (used, message) = match realtime.reader.read(&bytes[at..]) {
                Ok(read) => read,
                Err(close) => {
                    let reason = if close.code == TOO_BIG { TOO_MUCH } else { close.reason };
                    self.close_websocket(Some(close.code), reason, now);
                    return None;
                }
            };
            at += used;
            let mask = Some(realtime.mask);
            realtime.before = realtime.held.len();
            let heard = match message {
                Some(Message::Text(text)) => {
                    let heard = hear(&text);
                    if matches!(heard, Heard::Held | Heard::Named(_)) {
                        websocket::text(&mut realtime.held, &text, mask);
                    }
                    heard
                }
                Some(Message::Binary(data)) => {
                    websocket::binary(&mut realtime.held, &data, mask);
                    Heard::Held
                }
                Some(Message::Ping(payload)) => {
                    websocket::pong(&mut self.out, &payload, None);
                    Heard::Done
                }
                Some(Message::Close { code, reason }) => {
                    self.close_websocket(code, &reason, now);
                    return None;
                }
                Some(Message::Pong(_)) | None => Heard::Done,
            };
            let Some(room) = HELD_BYTES_MAX.checked_sub(realtime.held.len()) else {
                self.close_websocket(Some(TOO_BIG), TOO_MUCH, now);
                return None;
            };
            realtime.reader.limit(room);
            match heard {
                Heard::Done | Heard::Held => {}
                Heard::Wrong(message, code) => error_event(&mut self.out, &message, code),
                Heard::Named(model) => {
                    self.request.name(model, now);
                    self.phase = Phase::Asked;
                    self.orders.push_back(Order::Ask);
                    break;
                }
            }
        }
        Some(at)
    }

    /// Nobody takes the model that was named.
    pub(super) fn nameless_refused(&mut self, refusal: &Refusal, now: Instant) {
        // The body of an error holds the words that belong into the event.
        let answer = refusal.answer(Shape::Pooling);
        let body = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
        let message = body.pointer("/error/message").and_then(Value::as_str).unwrap_or_default();
        if let Refusal::UnknownModel { .. } = refusal
            && let Some(realtime) = &mut self.realtime
        {
            realtime.held.truncate(realtime.before);
            realtime.reader.limit(HELD_BYTES_MAX - realtime.before);
            realtime.turn = now + TURN;
            let is_late = realtime.until <= now;
            error_event(&mut self.out, message, "model_not_found");
            self.phase = Phase::Nameless;
            self.client_at = now;
            if is_late {
                self.nameless_closes(now);
            }
            return;
        }
        error_event(&mut self.out, message, "processing_error");
        self.close_websocket(Some(FAILED), "", now);
    }

    /// The backend does not switch.
    pub(super) fn websocket_refused(&mut self, status: u16, now: Instant) {
        self.drop_attempt(Outcome::done(status));
        let message = format!("The backend refused the connection with status {status}.");
        error_event(&mut self.out, &message, "processing_error");
        let code = if matches!(status, 401 | 403) { POLICY } else { FAILED };
        self.close_websocket(Some(code), "", now);
    }

    /// The backend switches: what was held goes first, and its first word is not for the client.
    pub(super) fn take_over(&mut self) -> Option<Greeting> {
        let mut realtime = self.realtime.take()?;
        realtime.held.extend_from_slice(self.ahead.get(realtime.heard..).unwrap_or_default());
        self.ahead = realtime.held;
        let reader = MessageReader::new(false, GREETING_BYTES_MAX);
        Some(Greeting { reader, read: Vec::new() })
    }

    /// When a model must have been named, or when what is known of the client has its turn.
    pub(super) fn nameless_due(&self) -> Option<Wake> {
        let realtime = self.realtime.as_ref()?;
        let until = Wake { at: realtime.until, why: "no model is named" };
        // It has to take what it was told before.
        let waits = !self.ahead.is_empty() && !self.client_owes_reading();
        let turn = waits.then(|| Wake {
            at: realtime.turn.max(self.client_at),
            why: "what the client said has its turn",
        });
        turn.into_iter().chain([until]).min_by_key(|wake| wake.at)
    }

    pub(super) fn nameless_timeout(&mut self, now: Instant) {
        if self.realtime.as_ref().is_some_and(|realtime| now < realtime.until) {
            self.nameless_turn(now);
        } else {
            self.nameless_closes(now);
        }
    }

    fn nameless_closes(&mut self, now: Instant) {
        self.close_websocket(Some(GOING_AWAY), "no model was named", now);
    }

    /// The process stops: as uvicorn does, this says so.
    pub(super) fn nameless_stops(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Nameless) {
            self.close_websocket(Some(RESTARTING), "", now);
        }
    }

    fn close_websocket(&mut self, code: Option<u16>, reason: &str, now: Instant) {
        websocket::close(&mut self.out, code, reason, None);
        self.realtime = None;
        self.ahead.clear();
        self.answered(After::Linger, now);
    }
}

/// What a backend says first, which we have said already.
#[derive(Debug)]
pub(super) struct Greeting {
    reader: MessageReader,
    read: Vec<u8>,
}

impl Greeting {
    /// Takes what the backend said: how much of that is kept here, and whether it was a greeting,
    /// once that is known. What is something else, or too long to be one, is for the client, as
    /// any first message of a backend would be: see [`Greeting::into_said`], then the rest.
    pub(super) fn read(&mut self, bytes: &[u8]) -> (usize, Option<bool>) {
        let mut at = 0;
        while at < bytes.len() {
            let Ok((used, message)) = self.reader.read(&bytes[at..]) else {
                return (at, Some(false));
            };
            self.read.extend_from_slice(&bytes[at..at + used]);
            at += used;
            // Fragments may be empty, and without an end.
            if self.read.len() > GREETING_BYTES_MAX + FRAME_HEAD_BYTES {
                return (at, Some(false));
            }
            match message {
                None => {}
                Some(Message::Text(text)) => {
                    let event = serde_json::from_str::<Value>(&text).unwrap_or_default();
                    let is_greeting = event.get("type").is_some_and(|t| t == "session.created");
                    return (at, Some(is_greeting));
                }
                Some(_) => return (at, Some(false)),
            }
        }
        (at, None)
    }

    /// What it said instead.
    pub(super) fn into_said(self) -> Vec<u8> {
        self.read
    }
}
