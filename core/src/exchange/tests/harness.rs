//! Harness: one exchange, a real engine, a virtual clock, and a transcript of all that was wanted.
//!
//! It carries out orders as a runtime does: a question is answered at once, a write is tried once
//! and takes what the test allows. What must hold after every step is asserted here.

use super::texts::shown;
use crate::config::{Config, Limits, Policy};
use crate::engine::{self, Engine};
use crate::exchange::{Drain, End, Errand, Exchange, Input, Output, Said, Side};
use crate::fleet::{Address, BackendId, BackendSpec, Labels};
use crate::route::{Decision, Outcome, Share};
use crate::time::{Duration, Instant};
use crate::wire::probe::{ModelCard, Probe};
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::net::SocketAddr;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

/// What a side takes of one write, and what it does not take is tried again by [`Bench::flow`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Takes {
    All,
    Bytes(usize),
    /// The write fails: it is gone.
    Fails,
}

impl Takes {
    fn of(self, len: usize) -> usize {
        match self {
            Self::All => len,
            Self::Bytes(bytes) => bytes.min(len),
            Self::Fails => 0,
        }
    }
}

#[derive(Debug)]
pub(super) struct Bench {
    pub(super) engine: Engine,
    pub(super) exchange: Exchange,
    pub(super) now: Instant,
    /// What was wanted since the last [`Bench::expect`].
    transcript: VecDeque<String>,
    /// All that reached the client.
    pub(super) client: Vec<u8>,
    /// All that reached the backend of the last connection.
    pub(super) upstream: Vec<u8>,
    pub(super) client_takes: Takes,
    pub(super) upstream_takes: Takes,
    client_full: bool,
    upstream_full: bool,
    /// Relayed and not yet taken.
    backlog: Vec<u8>,
    /// Whether there is an idle connection to every backend.
    pub(super) idle: bool,
    pub(super) connecting: bool,
    linked: bool,
    tickets: usize,
    share: Share,
    closed: bool,
    /// Errands under way, with what each said.
    pub(super) errands: Vec<Errand>,
    said: Vec<Said>,
}

impl Bench {
    /// So many backends of the model `m`, chosen in turn.
    pub(super) fn new(backends: u32) -> Self {
        Self::with(backends, Limits::default(), 0)
    }

    pub(super) fn with(backends: u32, limits: Limits, body_memory: u64) -> Self {
        let mut bench = Self::unprobed(backends, limits, body_memory);
        for id in 0..backends {
            bench.probed(id);
        }
        bench
    }

    /// Backends that nobody has asked yet.
    pub(super) fn unprobed(backends: u32, limits: Limits, body_memory: u64) -> Self {
        let now = Instant::START + Duration::from_secs(1_000);
        let engine = unprobed(backends, body_memory, now);
        let exchange = Exchange::new(Arc::new(limits), now);
        Self {
            engine,
            exchange,
            now,
            transcript: VecDeque::new(),
            client: Vec::new(),
            upstream: Vec::new(),
            client_takes: Takes::All,
            upstream_takes: Takes::All,
            client_full: false,
            upstream_full: false,
            backlog: Vec::new(),
            idle: false,
            connecting: false,
            linked: false,
            tickets: 0,
            share: Share::default(),
            closed: false,
            errands: Vec::new(),
            said: Vec::new(),
        }
    }

    /// Somebody else's body takes so many bytes of the budget.
    pub(super) fn others_take(&mut self, bytes: u64) -> Share {
        self.engine.reserve(Share::default(), bytes).expect("there is room")
    }

    /// A backend answers a probe: it is well and serves `m`.
    pub(super) fn probed(&mut self, id: u32) {
        self.lists(id, "m");
    }

    /// The same, of another model.
    pub(super) fn lists(&mut self, id: u32, model: &str) {
        lists(&mut self.engine, id, model, self.now);
    }

    pub(super) fn client(&mut self, bytes: impl AsRef<[u8]>) {
        self.received(Side::Client, bytes.as_ref());
    }

    pub(super) fn backend(&mut self, bytes: impl AsRef<[u8]>) {
        self.received(Side::Upstream, bytes.as_ref());
    }

    fn received(&mut self, side: Side, bytes: &[u8]) {
        self.exchange.handle(Input::Received(side, bytes), self.now);
        self.carry_out(bytes);
    }

    pub(super) fn client_leaves(&mut self) {
        self.tell(Input::Closed(Side::Client, End::Closed));
    }

    pub(super) fn backend_ends(&mut self, end: End) {
        self.tell(Input::Closed(Side::Upstream, end));
    }

    /// A new connection to the backend is there.
    pub(super) fn connected(&mut self) {
        assert!(self.connecting, "nobody asked for a connection");
        self.connecting = false;
        self.link();
        self.tell(Input::Connected { reused: false });
    }

    pub(super) fn connect_fails(&mut self) {
        assert!(self.connecting, "nobody asked for a connection");
        self.tell(Input::ConnectFailed);
    }

    /// What a backend is sent as its part of what several hear.
    pub(super) fn errand(&self, backend: u32) -> String {
        let authority = format!("b{backend}");
        let errand = self.errands.iter().find(|errand| errand.spec().authority == authority);
        let [head, body] = errand.expect("it was asked").unsent();
        shown([head, body].concat())
    }

    /// A backend answers its part, in one piece or byte by byte; `None`: there is no connection.
    pub(super) fn replies(&mut self, backend: u32, bytes: Option<&str>, pieces: usize) {
        let authority = format!("b{backend}");
        let at = self.errands.iter().position(|errand| errand.spec().authority == authority);
        let mut errand = self.errands.remove(at.expect("it was asked"));
        let said = match bytes {
            None => errand.unconnected(),
            Some(bytes) => {
                let all = errand.unsent().iter().map(|part| part.len()).sum();
                errand.sent(all);
                let mut said = None;
                for piece in bytes.as_bytes().chunks(pieces) {
                    assert!(said.is_none(), "it ended before its last byte");
                    said = errand.received(piece);
                }
                said.unwrap_or_else(|| errand.closed(End::Closed))
            }
        };
        self.said.push(said);
        if self.errands.is_empty() {
            let said = core::mem::take(&mut self.said);
            self.tell(Input::Gathered(said));
        }
    }

    pub(super) fn drain(&mut self, drain: Drain) {
        if drain >= Drain::Grace {
            self.engine.handle(engine::Input::Drain, self.now);
        }
        self.tell(Input::Drain(drain));
    }

    pub(super) fn tell(&mut self, input: Input<'_>) {
        self.exchange.handle(input, self.now);
        self.carry_out(&[]);
    }

    /// Lets time pass; every deadline on the way is told.
    pub(super) fn wait(&mut self, duration: Duration) {
        let until = self.now + duration;
        for _ in 0..100_000 {
            match self.exchange.poll_timeout() {
                Some(wake) if wake.at <= until => {
                    assert!(wake.at >= self.now, "{} lies in the past", wake.why);
                    self.now = wake.at;
                    self.tell(Input::Timeout);
                    if let Some(next) = self.exchange.poll_timeout() {
                        assert!(next.at > self.now, "{} is due for ever", next.why);
                    }
                }
                _ => {
                    self.now = until;
                    // A timer that rings too early changes nothing.
                    self.exchange.handle(Input::Timeout, self.now);
                    self.silent();
                    return;
                }
            }
        }
        panic!("deadlines follow each other without an end");
    }

    pub(super) fn secs(&mut self, secs: u64) {
        self.wait(Duration::from_secs(secs));
    }

    /// A side that was full takes as much as it is allowed to, until nothing is left.
    pub(super) fn flow(&mut self) {
        for _ in 0..10_000_000 {
            if self.client_full {
                self.client_writable();
            } else if self.upstream_full {
                self.upstream_full = false;
                self.tell(Input::Writable(Side::Upstream));
            } else {
                return;
            }
        }
        panic!("writes follow each other without an end");
    }

    pub(super) fn client_writable(&mut self) {
        self.client_full = false;
        if matches!(self.client_takes, Takes::Fails) && !self.backlog.is_empty() {
            return self.tell(Input::Closed(Side::Client, End::Reset));
        }
        if self.backlog.is_empty() {
            return self.tell(Input::Writable(Side::Client));
        }
        let sent = self.client_takes.of(self.backlog.len());
        self.client.extend(self.backlog.drain(..sent));
        self.client_full = !self.backlog.is_empty();
        self.tell(Input::Sent(Side::Client, sent));
    }

    /// Whether the client has yet to take something.
    pub(super) fn owed(&self) -> bool {
        self.client_full
    }

    /// All that was wanted since the last call, in order.
    #[track_caller]
    pub(super) fn expect<S: AsRef<str>>(&mut self, expected: &[S]) {
        let wanted: Vec<String> = self.transcript.drain(..).collect();
        let expected: Vec<&str> = expected.iter().map(AsRef::as_ref).collect();
        assert_eq!(wanted, expected);
    }

    /// Forgets what was wanted.
    pub(super) fn skip(&mut self) {
        self.transcript.clear();
    }

    pub(super) fn transcript(&mut self) -> Vec<String> {
        self.transcript.drain(..).collect()
    }

    /// Nothing is left: no ticket, no byte of the budget, no connection.
    #[track_caller]
    pub(super) fn over(&mut self) {
        assert!(self.closed, "the connection is still open");
        self.nothing_held();
        let (ticket, share) = self.exchange.abandon();
        assert!(ticket.is_none());
        assert_eq!(share, Share::default());
    }

    /// Between two requests nothing is held either.
    #[track_caller]
    pub(super) fn idle(&mut self) {
        assert!(self.exchange.is_idle());
        assert!(!self.closed);
        self.nothing_held();
    }

    #[track_caller]
    fn nothing_held(&mut self) {
        self.expect::<&str>(&[]);
        assert_eq!(self.tickets, 0, "tickets in flight");
        assert_eq!(self.share, Share::default(), "bytes reserved");
        assert!(!self.linked && !self.connecting, "the backend's connection is held");
    }

    /// The task is dropped here: what is held goes back, once.
    #[track_caller]
    pub(super) fn abandoned(&mut self) {
        let (ticket, share) = self.exchange.abandon();
        assert_eq!(self.tickets, usize::from(ticket.is_some()), "tickets in flight");
        if let Some((ticket, outcome)) = ticket {
            self.engine.finish(ticket, outcome, self.now);
        }
        assert_eq!(self.share, share, "bytes reserved");
        self.engine.release(share);
        let (ticket, share) = self.exchange.abandon();
        assert!(ticket.is_none(), "given back twice");
        assert_eq!(share, Share::default(), "given back twice");
    }

    fn carry_out(&mut self, read: &[u8]) {
        for _ in 0..1_000_000 {
            if !self.step(read) {
                self.silent();
                return self.check();
            }
        }
        panic!("outputs follow each other without an end");
    }

    /// Tells something and carries out so many orders of what follows, then no more.
    pub(super) fn stop_after(&mut self, orders: usize, input: Input<'_>) {
        let read = if let Input::Received(_, bytes) = input { bytes.to_vec() } else { Vec::new() };
        self.exchange.handle(input, self.now);
        for _ in 0..orders {
            if self.closed || !self.step(&read) {
                return;
            }
        }
    }

    fn silent(&mut self) {
        if let Some(output) = self.exchange.poll_output() {
            let output = format!("{output:?}");
            panic!("{output} after silence");
        }
    }

    /// What must hold whenever the machine waits.
    fn check(&self) {
        let interest = self.exchange.interest();
        if self.client_full && !self.closed {
            assert!(!interest.upstream, "the backend is read while the client takes nothing");
            assert!(self.exchange.poll_timeout().is_some(), "a stalled client has no deadline");
        }
        assert!(!interest.upstream || self.linked, "there is no backend to read");
        if self.closed {
            assert!(!interest.client && !interest.upstream);
            assert!(self.exchange.poll_timeout().is_none());
            assert!(!self.linked && !self.connecting, "closed with a backend's connection");
            assert_eq!(self.tickets, 0, "closed with a ticket in hand");
            assert_eq!(self.share, Share::default(), "closed with bytes reserved");
        }
    }

    fn link(&mut self) {
        self.linked = true;
        self.upstream.clear();
        self.upstream_full = false;
    }

    /// Carries out one output; false if there is none.
    fn step(&mut self, read: &[u8]) -> bool {
        let Some(output) = self.exchange.poll_output() else { return false };
        if self.closed {
            let text = format!("{output:?}");
            // A ticket in it would abort the other tests.
            core::mem::forget(output);
            panic!("after Close: {text}");
        }
        let log = &mut self.transcript;
        let fails = matches!(self.client_takes, Takes::Fails);
        let told = match output {
            Output::Relay { .. } | Output::Send(Side::Client, _) if fails => {
                log.push_back("fail to send".to_string());
                Input::Closed(Side::Client, End::Reset)
            }
            Output::Relay { before, read: part } => {
                assert!(!part.is_empty(), "an empty relay");
                let part = read.get(part).expect("a part of the bytes just received");
                log.push_back(format!("relay {}+{}", shown(before), shown(part)));
                self.backlog.extend_from_slice(before);
                self.backlog.extend_from_slice(part);
                let sent =
                    if self.client_full { 0 } else { self.client_takes.of(self.backlog.len()) };
                self.client.extend(self.backlog.drain(..sent));
                self.client_full |= !self.backlog.is_empty();
                Input::Sent(Side::Client, sent)
            }
            Output::Send(Side::Client, bytes) => {
                assert!(!bytes.is_empty());
                if self.client_full || !self.backlog.is_empty() {
                    return true;
                }
                let sent = self.client_takes.of(bytes.len());
                self.client_full = sent < bytes.len();
                self.client.extend_from_slice(&bytes[..sent]);
                log.push_back(format!("send client {}", shown(&bytes[..sent])));
                if sent == 0 {
                    return true;
                }
                Input::Sent(Side::Client, sent)
            }
            Output::Send(Side::Upstream, bytes) => {
                assert!(self.linked && !bytes.is_empty());
                if self.upstream_full {
                    return true;
                }
                let sent = self.upstream_takes.of(bytes.len());
                self.upstream_full = sent < bytes.len();
                self.upstream.extend_from_slice(&bytes[..sent]);
                log.push_back(format!("send upstream {}", shown(&bytes[..sent])));
                if sent == 0 {
                    return true;
                }
                Input::Sent(Side::Upstream, sent)
            }
            Output::Reserve(share, bytes) => {
                assert_eq!(share, self.share, "it holds something else");
                let granted = self.engine.reserve(share, bytes);
                let no = if granted.is_some() { "" } else { ": no" };
                log.push_back(format!("reserve {bytes}{no}"));
                self.share = granted.unwrap_or(share);
                Input::Reserved(granted)
            }
            Output::Unreserve(share) => {
                log.push_back(format!("unreserve {}", share.bytes));
                assert_eq!(core::mem::take(&mut self.share), share, "it held something else");
                self.engine.release(share);
                return true;
            }
            Output::Ask(meta) => {
                log.push_back("ask".to_string());
                let decision = self.engine.route(&meta, self.now);
                self.tickets += usize::from(matches!(decision, Decision::Forward(_)));
                Input::Routed(decision)
            }
            Output::AskAgain(ticket, why) => {
                log.push_back(format!("ask again {why:?}"));
                self.tickets -= 1;
                let decision = self.engine.reroute(ticket, why, self.now);
                self.tickets += usize::from(matches!(decision, Decision::Forward(_)));
                Input::Routed(decision)
            }
            Output::FirstByte(ticket) => {
                log.push_back("first byte".to_string());
                self.engine.first_byte(ticket, self.now);
                return true;
            }
            Output::Owns(backend, id) => {
                log.push_back(format!("owns {backend} {id}"));
                self.engine.owns(backend, &id, self.now);
                return true;
            }
            Output::Gather(errands, until) => {
                let seconds = until.since(self.now).as_secs();
                log.push_back(format!("gather {} within {seconds} s", errands.len()));
                assert!(self.errands.is_empty() && !self.linked && !self.connecting);
                self.errands = errands;
                return true;
            }
            Output::Heard(echoes, adapter) => {
                let name = adapter.as_ref().map(|adapter| format!(" of {}", adapter.name));
                log.push_back(format!("heard {}{}", echoes.len(), name.unwrap_or_default()));
                self.engine.heard(&echoes, adapter, self.now);
                while self.engine.poll_output().is_some() {}
                return true;
            }
            Output::Shown(text) => {
                log.push_back("show".into());
                self.engine.show(text, self.now);
                return true;
            }
            Output::Declined(status) => {
                self.engine.declined(status);
                return true;
            }
            Output::Settle(ticket, outcome) => {
                log.push_back(match outcome {
                    Outcome::Done { status, usage: None } => format!("settle Done({status})"),
                    Outcome::Done { .. }
                    | Outcome::ClientGone
                    | Outcome::Broken
                    | Outcome::TimedOut => format!("settle {outcome:?}"),
                });
                self.tickets -= 1;
                self.engine.finish(ticket, outcome, self.now);
                return true;
            }
            Output::Connect { backend, spec, fresh } => {
                assert!(!self.linked && !self.connecting, "two connections at once");
                assert_eq!(spec.authority, format!("b{backend}"));
                log.push_back(format!("connect {backend}{}", if fresh { " fresh" } else { "" }));
                if self.idle && !fresh {
                    self.link();
                    Input::Connected { reused: true }
                } else {
                    self.connecting = true;
                    return true;
                }
            }
            Output::Release { reusable } => {
                log.push_back(format!("release{}", if reusable { " reusable" } else { "" }));
                let gathering = !self.errands.is_empty();
                assert!(self.linked || self.connecting || gathering, "nothing to release");
                self.errands.clear();
                self.linked = false;
                self.connecting = false;
                return true;
            }
            Output::Shutdown => {
                log.push_back("shutdown".to_string());
                return true;
            }
            Output::Close { reset } => {
                log.push_back(if reset { "reset".to_string() } else { "close".to_string() });
                self.closed = true;
                return true;
            }
        };
        self.exchange.handle(told, self.now);
        true
    }
}

/// An engine that chooses in turn among so many backends, which nobody has asked yet.
pub(crate) fn unprobed(backends: u32, body_memory: u64, now: Instant) -> Engine {
    let config =
        Config { policy: Policy::RoundRobin, upstreams: 1, body_memory, ..Config::default() };
    let mut engine = Engine::new(config, 1, now);
    let specs: Vec<BackendSpec> = (0..backends)
        .map(|id| BackendSpec {
            upstream: 0,
            address: Address::Tcp(SocketAddr::from(([10, 0, (id >> 8) as u8, id as u8], 80))),
            authority: format!("b{id}"),
            prefix: String::new(),
            labels: Labels::default(),
        })
        .collect();
    engine.handle(engine::Input::Discovered(&specs), now);
    while engine.poll_output().is_some() {}
    engine
}

/// A backend answers a probe: it is well and serves a model.
pub(crate) fn lists(engine: &mut Engine, id: u32, model: &str, now: Instant) {
    let raw = format!(r#"{{"id":"{model}"}}"#);
    let card = ModelCard { id: model.to_string(), raw, ..ModelCard::default() };
    let probe = Probe {
        health: 200,
        models: Some(std::vec![card]),
        version: Some("0.33.0".to_string()),
        ..Probe::default()
    };
    engine.handle(engine::Input::Probed(BackendId(id), Ok(probe)), now);
    while engine.poll_output().is_some() {}
}

impl Drop for Bench {
    /// A test that failed says so itself: its ticket must not abort the others.
    fn drop(&mut self) {
        if std::thread::panicking() {
            core::mem::forget(self.exchange.abandon());
        }
    }
}
