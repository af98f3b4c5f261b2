//! Requests and answers of which every byte follows from a key: whoever reads one knows all of it,
//! so that a byte from another's buffer, or from another place in the same one, is noticed.
//!
//! The request carries its [`Order`], which says what the answer must be and how the backend is to
//! leave. The backend checks what it reads as strictly as clients check what they get.

use crate::backend::{Asked, Backend, Then, until_left};
use crate::wire::{End, LAST_CHUNK, PATIENCE, STREAM_HEAD, Wire, chunk, framed, header, shown};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// How an answer is framed, and in which pieces it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Of known length, in pieces of up to 16 KiB.
    Unary,
    /// Chunked, two chunks a piece.
    Chunked,
    /// Events, each its own chunk and piece.
    Events,
}

impl Shape {
    pub(crate) const ALL: [Self; 3] = [Self::Unary, Self::Chunked, Self::Events];
}

/// What a backend does when it has sent so many bytes of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Sends all, and keeps the connection.
    Never,
    Close(usize),
    Reset(usize),
    /// Sends no more, and waits for the proxy to leave.
    Hold(usize),
}

/// One request and its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    pub(crate) model: &'static str,
    pub(crate) key: u64,
    pub(crate) shape: Shape,
    /// Bytes of text in the request.
    pub(crate) up: usize,
    /// The request is chunked, too.
    pub(crate) up_in_chunks: bool,
    /// Bytes of text in the answer.
    pub(crate) down: usize,
    pub(crate) stop: Stop,
}

const HEADER: &str = "x-order";

impl Order {
    /// A small one that no other is like.
    pub(crate) fn new(shape: Shape) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let key = NEXT.fetch_add(1, Ordering::SeqCst);
        Self { model: "m", key, shape, up: 40, up_in_chunks: false, down: 60, stop: Stop::Never }
    }

    /// Of so many bytes either way.
    pub(crate) fn sized(shape: Shape, up: usize, down: usize) -> Self {
        Self { up, down, ..Self::new(shape) }
    }

    /// The same once more, as if for the first time.
    pub(crate) fn again(self) -> Self {
        Self { key: Self::new(self.shape).key, ..self }
    }

    fn head(&self) -> String {
        let Self { model, key, shape, up, up_in_chunks, down, stop } = *self;
        let stop = match stop {
            Stop::Never => "never 0".to_owned(),
            Stop::Close(at) => format!("close {at}"),
            Stop::Reset(at) => format!("reset {at}"),
            Stop::Hold(at) => format!("hold {at}"),
        };
        let framing = if up_in_chunks {
            "Transfer-Encoding: chunked".to_owned()
        } else {
            format!("Content-Length: {}", self.body().len())
        };
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: proxy.test\r\n\
             {HEADER}: {model} {key} {shape:?} {up} {up_in_chunks} {down} {stop}\r\n{framing}\r\n\r\n"
        )
    }

    fn of(head: &[u8]) -> Option<Self> {
        let value = header(head, HEADER)?;
        let words: Vec<_> = value.split(' ').collect();
        let &[model, key, shape, up, up_in_chunks, down, stop, at] = words.as_slice() else {
            return None;
        };
        let at = at.parse().ok()?;
        Some(Self {
            model: ["m", "frail"].into_iter().find(|one| *one == model)?,
            key: key.parse().ok()?,
            shape: Shape::ALL.into_iter().find(|one| format!("{one:?}") == shape)?,
            up: up.parse().ok()?,
            up_in_chunks: up_in_chunks.parse().ok()?,
            down: down.parse().ok()?,
            stop: match stop {
                "never" => Stop::Never,
                "close" => Stop::Close(at),
                "reset" => Stop::Reset(at),
                "hold" => Stop::Hold(at),
                _ => return None,
            },
        })
    }

    fn body(&self) -> Vec<u8> {
        let stream = if self.shape == Shape::Events { r#","stream":true"# } else { "" };
        let start = format!(r#"{{"model":"{}","messages":[]{stream},"user":""#, self.model);
        [start.as_bytes(), &text(self.key, self.up), b"\"}"].concat()
    }

    /// All that the client sends.
    pub(crate) fn request(&self) -> Vec<u8> {
        let mut request = self.head().into_bytes();
        let body = self.body();
        if self.up_in_chunks {
            body.chunks((body.len() / 3).max(1)).for_each(|piece| request.extend(chunk(piece)));
            request.extend_from_slice(LAST_CHUNK);
        } else {
            request.extend_from_slice(&body);
        }
        request
    }

    /// All that the backend sends, in the pieces in which it does.
    fn pieces(&self) -> Vec<Vec<u8>> {
        // Not the text of the request: who sends that back is noticed.
        let text = text(!self.key, self.down);
        match self.shape {
            Shape::Unary => framed("200 OK", text).chunks(16 << 10).map(<[u8]>::to_vec).collect(),
            Shape::Chunked => {
                let mut pieces = vec![STREAM_HEAD.to_vec()];
                for pair in text.chunks((self.down / 4).max(2)) {
                    let (one, other) = pair.split_at(pair.len().div_ceil(2));
                    pieces.push([one, other].into_iter().filter(|one| !one.is_empty()).fold(
                        Vec::new(),
                        |mut piece, data| {
                            piece.extend(chunk(data));
                            piece
                        },
                    ));
                }
                pieces.push(LAST_CHUNK.to_vec());
                pieces
            }
            Shape::Events => {
                let mut pieces = vec![STREAM_HEAD.to_vec()];
                let events = text.chunks((self.down / 12).max(20));
                pieces.extend(events.map(|text| chunk([b"data: ", text, b"\n\n"].concat())));
                pieces.push([chunk("data: [DONE]\n\n"), LAST_CHUNK.to_vec()].concat());
                pieces
            }
        }
    }

    /// All that the backend sends.
    pub(crate) fn answer(&self) -> Vec<u8> {
        self.pieces().concat()
    }

    /// Reads the whole answer, and nothing behind it.
    pub(crate) fn check_answer(&self, client: &mut Wire) {
        let answer = client.answer().unwrap_or_else(|end| panic!("no answer: {end:?}, {self:?}"));
        assert!(answer.raw == self.answer(), "{}", self.difference(&answer.raw));
    }

    /// Bytes that came are the first of the answer.
    pub(crate) fn check_start(&self, came: &[u8]) {
        assert!(self.answer().starts_with(came), "{}", self.difference(came));
    }

    fn difference(&self, came: &[u8]) -> String {
        differs(&self.answer(), came, self)
    }
}

fn differs(expected: &[u8], came: &[u8], order: &Order) -> String {
    let at = expected.iter().zip(came).take_while(|(one, other)| one == other).count();
    let from = at.saturating_sub(20);
    let part = |bytes: &[u8]| shown(bytes.get(from..bytes.len().min(at + 60)).unwrap_or_default());
    let (due, is) = (part(expected), part(came));
    let (all, some) = (expected.len(), came.len());
    format!("wrong from byte {at} of {some}, {all} were due: {is} instead of {due}: {order:?}")
}

/// So many letters of a key's endless text: each eight of them are a hash of key and place.
fn text(key: u64, len: usize) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = Vec::with_capacity(len + 8);
    for place in 0..len.div_ceil(8) as u64 {
        // The finalizer of splitmix64.
        let mut hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(place << 20);
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^= hash >> 31;
        text.extend(hash.to_le_bytes().map(|byte| LETTERS[usize::from(byte) % LETTERS.len()]));
    }
    text.truncate(len);
    text
}

/// What backends saw.
#[derive(Default)]
pub(crate) struct Seen {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Requests that came whole and as they were sent.
    whole: usize,
    /// Answers that were stopped where the order says.
    stopped: BTreeSet<u64>,
    wrong: Vec<String>,
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, what: impl FnOnce(&mut State)) {
        what(&mut self.lock());
        self.changed.notify_all();
    }

    /// Requests that came whole and as they were sent.
    pub(crate) fn whole(&self) -> usize {
        self.lock().whole
    }

    /// Whether a backend has sent all that it will of an order's answer.
    pub(crate) fn has_stopped(&self, order: &Order) -> bool {
        self.lock().stopped.contains(&order.key)
    }

    /// Waits until it has.
    pub(crate) fn await_stop(&self, order: &Order) {
        let waits = |state: &mut State| !state.stopped.contains(&order.key);
        let waited = self.changed.wait_timeout_while(self.lock(), PATIENCE, waits);
        let (state, result) = waited.unwrap_or_else(PoisonError::into_inner);
        drop(state);
        assert!(!result.timed_out(), "it never came to the backend: {order:?}");
    }

    #[track_caller]
    pub(crate) fn assert_right(&self) {
        let state = self.lock();
        let wrong = &state.wrong;
        assert!(wrong.is_empty(), "{} wrong requests, first: {}", wrong.len(), wrong[0]);
    }
}

/// Does as each request orders, and notes what was wrong with it.
pub(crate) fn obeying(model: &str, seen: &Arc<Seen>) -> Backend {
    let seen = Arc::clone(seen);
    Backend::scripted(&[model], move |wire, asked| obey(wire, asked, &seen))
}

fn obey(wire: &mut Wire, asked: Asked, seen: &Seen) -> Then {
    let Some(order) = Order::of(&asked.head) else {
        let head = shown(&asked.head);
        seen.tell(|state| state.wrong.push(format!("a head without an order: {head}")));
        return Then::Close;
    };
    let expected = [order.head().as_bytes(), &order.body()].concat();
    let head = asked.head.clone();
    match wire.request_with(asked.head) {
        // Chunks may be cut anew.
        Ok(request) if [&request.head[..], &request.body].concat() == expected => {
            seen.tell(|state| state.whole += 1);
        }
        Ok(request) => {
            let wrong = differs(&expected, &request.raw, &order);
            seen.tell(|state| state.wrong.push(wrong));
            return Then::Close;
        }
        Err(_) => {
            // Its client left; what came is its own nevertheless.
            let came = [head, wire.rest().0].concat();
            if !order.up_in_chunks && !expected.starts_with(&came) {
                let wrong = differs(&expected, &came, &order);
                seen.tell(|state| state.wrong.push(wrong));
            }
            return Then::Close;
        }
    }
    let (Stop::Close(until) | Stop::Reset(until) | Stop::Hold(until)) = order.stop else {
        let sent = order.pieces().iter().all(|piece| wire.try_send(piece).is_ok());
        return if sent { Then::Keep } else { Then::Close };
    };
    let mut left = until;
    for piece in order.pieces() {
        let part = &piece[..left.min(piece.len())];
        if wire.try_send(part).is_err() {
            return Then::Close;
        }
        left -= part.len();
    }
    seen.tell(|state| state.stopped.extend([order.key]));
    match order.stop {
        Stop::Never | Stop::Close(_) => Then::Close,
        Stop::Reset(_) => Then::Reset,
        Stop::Hold(_) => {
            if until_left(wire).end == End::Silent {
                let wrong = format!("the proxy never left: {order:?}");
                seen.tell(|state| state.wrong.push(wrong));
            }
            Then::Close
        }
    }
}
