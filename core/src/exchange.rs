//! Exchange: the life of one client connection, over bytes.
//!
//! Reads a request, asks who takes it, connects, sends, relays the answer as it comes, tries
//! elsewhere while nothing has reached the client, hands out errands where several backends are to
//! hear it, notices either side leaving at any moment, times out, keeps the connection, drains.
//! Does not know sockets, clocks, or the [`Engine`](crate::engine::Engine): it asks questions and
//! is told the answers.
//!
//! After every call drain [`Exchange::poll_output`], then wait for whatever
//! [`Exchange::interest`] names or for [`Exchange::poll_timeout`].
//!
//! Bytes belong to the runtime. Of a request the exchange keeps all, within [`Limits`], until the
//! answer has begun. Of an answer it keeps the head until the first byte of the body, and the whole
//! of one that is not the last word (a 500, a 503, a stream that begins with an error, some 404s),
//! of at most 64 KiB, while another backend is tried; where it may say what it cost, a copy of its
//! last 1,280 bytes; of what several backends answer, all; of a websocket, one read towards the
//! backend, and what it says before it names a model, of at most 64 KiB.
//! [`Output::Relay`] names the part of the bytes just received that goes on to the client.

mod attempt;
mod deadlines;
mod ending;
mod errand;
mod events;
mod explained;
mod explaining;
mod flow;
mod gather;
mod orders;
mod pipe;
mod realtime;
mod request;
mod response;
mod scanner;
mod shown;
#[cfg(test)]
pub(crate) mod tests;
mod watch;
mod words;

pub use errand::{Errand, Said};
pub use words::{Drain, End, Input, Interest, Output, Side};

use crate::config::Limits;
use crate::route::{Decision, Doubt, Failure, Outcome, Refusal, Route};
use crate::time::Instant;
use crate::wire::answers::Answer;
use crate::wire::forward;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use attempt::Attempt;
use deadlines::LINGER_MAX;
use flow::shrink;
use gather::Gather;
use orders::{After, Kept, Order, Piece};
use pipe::Pipe;
use realtime::Realtime;
use request::Request;
use shown::Inset;

/// What a client may send ahead of its turn (pipelining) before it is read no further. That it
/// leaves is seen all the same, unless it sent more than the kernel takes.
const AHEAD_BYTES_MAX: usize = 64 << 10;
/// How much of an answer may be held while another backend is tried.
const HELD_BYTES_MAX: usize = 64 << 10;
/// Buffers that grew beyond this are given back when they are no longer needed.
const KEPT_CAPACITY_MAX: usize = 4 << 10;

/// Where a connection is.
#[derive(Debug)]
enum Phase {
    /// Before or within a request head.
    Head,
    /// Within a request body, or waiting for room for it.
    Body,
    /// The engine was asked.
    Asked,
    /// The engine said: not yet.
    Later(Instant),
    /// A backend has the request, or is being connected to.
    Upstream,
    /// We accepted a websocket that has named no model yet.
    Nameless,
    /// Both sides switched to a websocket: everything passes.
    Piped(Pipe),
    /// Several backends have it.
    Gathering(Gather),
    /// The client is told how we are, and again at this moment.
    Watching(Instant),
    /// The answer is complete; the last of it is being written.
    Answered,
    /// The connection is ending; what still comes from the client is dropped.
    Lingering { until: Instant, at_most: Instant },
    /// Nothing more will happen.
    Closed,
}

/// One client connection, as a state machine.
#[derive(Debug)]
pub struct Exchange {
    limits: Arc<Limits>,
    phase: Phase,
    drain: Drain,
    request: Request,
    attempt: Option<Attempt>,
    /// The last answer of a backend while others are tried.
    kept: Option<Kept>,
    /// Which answers are not the last word on the request under way.
    doubt: Option<Doubt>,
    after: After,
    /// A websocket that we accepted, until a backend has it.
    realtime: Option<Box<Realtime>>,
    orders: VecDeque<Order>,
    pieces: VecDeque<Piece>,
    /// Our own bytes for the client, of which `out_sent` have been handed over.
    out: Vec<u8>,
    out_sent: usize,
    /// Text among them that others have as well.
    inset: Option<Box<Inset>>,
    /// Bytes the runtime took by `Relay` and has not yet reported as sent.
    in_hand: usize,
    /// Whether the rest for a side was offered since the last input.
    offered_client: bool,
    offered_upstream: bool,
    /// What the client sent ahead of its turn.
    ahead: Vec<u8>,
    /// When the client was last heard or took bytes, or when what it owes now became due.
    client_at: Instant,
    requests: u64,
}

impl Exchange {
    /// A connection that was just accepted.
    pub fn new(limits: Arc<Limits>, now: Instant) -> Self {
        Self {
            limits,
            phase: Phase::Head,
            drain: Drain::Running,
            request: Request::default(),
            attempt: None,
            kept: None,
            doubt: None,
            after: After::NextRequest,
            realtime: None,
            orders: VecDeque::new(),
            pieces: VecDeque::new(),
            out: Vec::new(),
            out_sent: 0,
            inset: None,
            in_hand: 0,
            offered_client: false,
            offered_upstream: false,
            ahead: Vec::new(),
            client_at: now,
            requests: 0,
        }
    }

    /// Hears of something. Inputs that do not fit the moment are ignored.
    pub fn handle(&mut self, input: Input<'_>, now: Instant) {
        let owed = self.client_owes_reading();
        match input {
            Input::Received(Side::Upstream, bytes) => self.upstream_bytes(bytes, now),
            Input::Received(Side::Client, bytes) => self.client_bytes(bytes, now),
            Input::Sent(Side::Client, bytes) => self.client_took(bytes, now),
            Input::Sent(Side::Upstream, bytes) => {
                self.offered_upstream = false;
                self.piped_took(bytes, now);
                if let Some(attempt) = &mut self.attempt {
                    attempt.took(bytes, now);
                }
            }
            Input::Writable(Side::Client) => self.offered_client = false,
            Input::Writable(Side::Upstream) => self.offered_upstream = false,
            Input::Closed(Side::Client, end) => self.client_closed(end),
            Input::Closed(Side::Upstream, end) => self.upstream_closed(end, now),
            Input::Refused => {
                if let Some(attempt) = &mut self.attempt {
                    attempt.refused = true;
                }
                self.piped_refused(now);
            }
            Input::Reserved(share) => self.reserved(share, now),
            Input::Routed(decision) => self.routed(decision, now),
            Input::Connected { reused } => {
                self.offered_upstream = false;
                if let Some(attempt) = &mut self.attempt {
                    attempt.connected(reused, now);
                }
            }
            Input::ConnectFailed => self.unconnected(Failure::Connect),
            Input::NoSocket => self.unconnected(Failure::NoSocket),
            Input::Gathered(said) => self.gathered(said, now),
            Input::Drain(drain) => {
                self.drain = self.drain.max(drain);
                if self.drain == Drain::Closing {
                    self.nameless_stops(now);
                    self.watch_ends(now);
                }
                if self.drain == Drain::Closing && self.is_idle() {
                    if self.requests > 0 {
                        self.close(false);
                    } else {
                        // It was accepted for a request, which may be on its way.
                        self.client_at = now;
                    }
                }
            }
            Input::Timeout => self.timeout(now),
        }
        self.advance(now);
        if !owed && self.client_owes_reading() {
            self.client_at = now;
        }
    }

    /// The next thing to do; `None` when there is nothing left but to wait.
    pub fn poll_output(&mut self) -> Option<Output<'_>> {
        // What a client learns from an answer it may use at once, on another connection.
        if let Some(Order::Heard(..) | Order::Owns(..) | Order::Shown(_)) = self.orders.front() {
            return self.poll_order();
        }
        if let Some(Piece { own_until, read }) = self.pieces.pop_front() {
            let from = core::mem::replace(&mut self.out_sent, own_until);
            self.in_hand += own_until - from + read.len();
            return Some(Output::Relay { before: &self.out[from..own_until], read });
        }
        if !self.offered_client && !self.next_unsent().is_empty() {
            self.offered_client = true;
            return Some(Output::Send(Side::Client, self.next_unsent()));
        }
        if !self.offered_upstream
            && let Some(range) = self.attempt.as_ref().and_then(Attempt::unsent)
        {
            self.offered_upstream = true;
            return Some(Output::Send(Side::Upstream, &self.request.message()[range]));
        }
        if !self.offered_upstream && !self.piped().is_empty() {
            self.offered_upstream = true;
            return Some(Output::Send(Side::Upstream, self.piped()));
        }
        self.poll_order()
    }

    fn poll_order(&mut self) -> Option<Output<'_>> {
        loop {
            return Some(match self.orders.pop_front()? {
                Order::Reserve(bytes) => Output::Reserve(self.request.share, bytes),
                Order::Unreserve(share) => Output::Unreserve(share),
                Order::Ask => Output::Ask(self.request.meta()),
                Order::AskAgain(ticket, failure) => Output::AskAgain(ticket, failure),
                // Where the answer ended at once the ticket is settled already, which says it all.
                Order::FirstByte => match &self.attempt {
                    Some(Attempt { ticket: Some(ticket), .. }) => Output::FirstByte(ticket),
                    _ => continue,
                },
                Order::Owns(backend, id) => Output::Owns(backend, id),
                Order::Settle(ticket, outcome) => Output::Settle(ticket, outcome),
                Order::Declined(status) => Output::Declined(status),
                Order::Shown(text) => Output::Shown(text),
                Order::Gather(errands, until) => Output::Gather(errands, until),
                Order::Heard(echoes, adapter) => Output::Heard(echoes, adapter),
                Order::Connect => match &self.attempt {
                    Some(Attempt { backend, spec, fresh, .. }) => {
                        Output::Connect { backend: *backend, spec, fresh: *fresh }
                    }
                    None => continue,
                },
                Order::Release { reusable } => Output::Release { reusable },
                Order::Shutdown => Output::Shutdown,
                Order::Close { reset } => Output::Close { reset },
            });
        }
    }

    /// Which sides to read, once all outputs are drained.
    pub fn interest(&self) -> Interest {
        let client = match self.phase {
            Phase::Head | Phase::Lingering { .. } => true,
            Phase::Body => self.request.starved().is_none(),
            Phase::Asked
            | Phase::Later(_)
            | Phase::Upstream
            | Phase::Gathering(_)
            | Phase::Watching(_)
            | Phase::Answered => self.ahead.len() < AHEAD_BYTES_MAX,
            Phase::Nameless => !self.client_owes_reading() && self.ahead.is_empty(),
            Phase::Piped(_) => self.pipes_client(),
            Phase::Closed => false,
        };
        let upstream = (matches!(self.phase, Phase::Upstream) || self.pipes_upstream())
            && !self.client_owes_reading()
            && self.attempt.as_ref().is_some_and(Attempt::is_open);
        Interest { client, client_end: !self.is_piped(), upstream }
    }

    /// Whether the connection is between requests.
    pub fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Head) && !self.request.is_begun() && self.unsent() == 0
    }

    /// What follows when the last byte of an answer has left.
    fn advance(&mut self, now: Instant) {
        self.piped_advance(now);
        if let Phase::Watching(at) = self.phase
            && at < now
            && self.unsent() == 0
        {
            self.watch();
        }
        while matches!(self.phase, Phase::Answered) && self.unsent() == 0 {
            self.client_at = now;
            let linger =
                Phase::Lingering { until: now + self.limits.linger, at_most: now + LINGER_MAX };
            match self.after {
                After::NextRequest if self.drain < Drain::Closing => {
                    self.requests += 1;
                    self.phase = Phase::Head;
                    self.request.clear();
                    let ahead = core::mem::take(&mut self.ahead);
                    if !ahead.is_empty() {
                        self.client_bytes(&ahead, now);
                    }
                }
                After::NextRequest | After::Close if self.ahead.is_empty() => self.close(false),
                After::Reset => self.close(true),
                // A client that sent more than we read would lose the answer to a reset.
                After::NextRequest | After::Close | After::Linger => {
                    self.phase = linger;
                    self.orders.push_back(Order::Shutdown);
                }
            }
        }
    }

    fn routed(&mut self, decision: Decision, now: Instant) {
        if !matches!(self.phase, Phase::Asked) {
            // Only a runtime that answers what was not asked gets here; the ticket must live on.
            if let Decision::Forward(Route { ticket, .. }) = decision {
                self.orders.push_back(Order::Settle(ticket, Outcome::ClientGone));
            }
            return;
        }
        match decision {
            Decision::Forward(mut route) => {
                self.phase = Phase::Upstream;
                // What was doubtful of the first backend's answer is of the next one's.
                self.doubt.get_or_insert(core::mem::take(&mut route.doubt));
                let wire = self.request.compose(&route.spec);
                self.request.told.attempts = route.attempt;
                self.attempt = Some(Attempt::new(route, wire, now));
                self.orders.push_back(Order::Connect);
            }
            Decision::Later(at) => self.phase = Phase::Later(at),
            Decision::Accept => self.accept_websocket(now),
            Decision::Answer(answer) => self.answer(&answer, now),
            Decision::Status(status) => self.status(&status, now),
            Decision::Shown(text) => self.shown(text, now),
            Decision::Explained(explained) => self.explained(&explained, now),
            Decision::Gather(gathering) => self.gather(gathering, now),
            Decision::Refuse(refusal) if self.realtime.is_some() => {
                self.nameless_refused(&refusal, now);
            }
            // The 404s of some are not the word of all.
            Decision::Refuse(refusal @ Refusal::Unasked) => self.refused(&refusal, now),
            Decision::Refuse(refusal) => match self.kept.take() {
                Some(mut kept) => {
                    self.tell_attempts(&mut kept.bytes);
                    self.out.extend_from_slice(&kept.bytes);
                    self.answered(kept.after, now);
                }
                None => self.refused(&refusal, now),
            },
        }
    }

    /// Answers the request ourselves.
    fn answer(&mut self, answer: &Answer, now: Instant) {
        self.say(answer, None, false, now);
    }

    fn say(&mut self, answer: &Answer, apart: Option<usize>, unread: bool, now: Instant) {
        let keep = self.request.keep_alive && self.drain == Drain::Running;
        let setting = forward::Setting {
            to_head: self.request.is_head,
            apart,
            unread,
            close: !keep,
            keep: keep && self.request.minor == 0,
            unix_micros: forward::unix_micros(self.limits.epoch_micros, now),
            nowhere: self.request.told.nowhere,
        };
        forward::own_answer(&mut self.out, answer, &setting);
        self.answered(if keep { After::NextRequest } else { After::Close }, now);
    }

    fn answered(&mut self, after: After, now: Instant) {
        self.phase = Phase::Answered;
        self.after = after;
        self.client_at = now;
        self.attempt = None;
        self.kept = None;
        self.doubt = None;
        // However long the client takes to read the answer, or to hear that it was refused.
        self.request.forget_bytes();
        self.give_back();
    }

    fn give_back(&mut self) {
        let share = self.request.unreserve();
        if share.bytes > 0 {
            self.orders.push_back(Order::Unreserve(share));
        }
    }
}
