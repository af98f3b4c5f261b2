//! The exchange: whatever happens, in whatever order, it keeps its books.

use std::sync::Arc;
use std::time::Duration;
use vllm_proxy_core::config::{Config, Limits, Policy};
use vllm_proxy_core::engine::{self, Engine};
use vllm_proxy_core::exchange::{Drain, End, Errand, Exchange, Input, Output, Said, Side};
use vllm_proxy_core::fleet::{Address, BackendId, BackendSpec, Labels};
use vllm_proxy_core::route::{Decision, Share};
use vllm_proxy_core::time::Instant;
use vllm_proxy_core::wire::probe::{ModelCard, Probe};

const REQUESTS: [&[u8]; 9] = [
    b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 13\r\n\r\n{\"model\":\"m\"}",
    b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
    b"HEAD /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"2\r\nab\r\n0\r\nt: u\r\n\r\n",
    b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"GET /v1/realtime HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
      Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    b"\x81\xa5\0\0\0\0{\"type\":\"session.update\",\"model\":\"n\"}",
];
const ANSWERS: [&[u8]; 9] = [
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
    b"HTTP/1.1 503 X\r\ncontent-length: 2\r\n\r\nno",
    b"HTTP/1.1 103 X\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"2;x\r\nab\r\n0\r\nt: u\r\n\r\n",
    b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    b"\x81\x1a{\"type\":\"session.created\"}",
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 34\r\n\r\n\
      data: {\"error\": {\"code\": 503}}\r\n\r\n",
];

/// A backend takes its part in what several are asked, and says little.
fn run(mut errand: Errand) -> Said {
    let all = errand.unsent().iter().map(|part| part.len()).sum();
    errand.sent(all);
    let said = errand.received(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    said.unwrap_or_else(|| errand.closed(End::Closed))
}

struct Bench {
    engine: Engine,
    exchange: Exchange,
    now: Instant,
    takes: usize,
    backlog: usize,
    linked: bool,
    connecting: bool,
    tickets: usize,
    share: Share,
    closed: bool,
}

/// Nothing panics, nothing is said after the end, every ticket is settled and every byte given
/// back, once, and only what was received is relayed. The input is what happens, one byte each,
/// with its bytes behind it.
pub fn exchange(data: &[u8]) {
    let mut bench = Bench::new();
    let mut rest = data;
    while let [what, behind @ ..] = rest {
        rest = behind;
        let argument = rest.first().copied().unwrap_or(0);
        let raw = &rest[..rest.len().min(usize::from(argument & 31))];
        let snippet = usize::from(argument) % REQUESTS.len();
        match what & 15 {
            0 => bench.receive(Side::Client, REQUESTS[snippet]),
            1 => bench.receive(Side::Upstream, ANSWERS[snippet]),
            2 => {
                rest = &rest[raw.len()..];
                bench.receive(Side::Client, raw);
            }
            3 => {
                rest = &rest[raw.len()..];
                bench.receive(Side::Upstream, raw);
            }
            4 if bench.connecting => {
                (bench.connecting, bench.linked) = (false, true);
                bench.tell(Input::Connected { reused: argument & 1 == 1 });
            }
            5 if bench.connecting => bench.tell(Input::ConnectFailed),
            6 if bench.linked => bench.tell(Input::Closed(Side::Upstream, End::Closed)),
            7 if bench.linked => bench.tell(Input::Closed(Side::Upstream, End::Reset)),
            8 if argument > 200 => bench.tell(Input::Closed(Side::Client, End::Closed)),
            9 => bench.takes = usize::from(argument),
            10 => bench.client_takes(),
            11 => bench.tell(Input::Writable(Side::Upstream)),
            12 => bench.wait(Duration::from_millis(u64::from(argument) * 50)),
            13 => bench.jump(),
            14 if bench.linked => bench.tell(Input::Refused),
            15 if argument > 200 => bench.tell(Input::Drain(Drain::Closing)),
            15 => bench.tell(Input::Drain(Drain::Grace)),
            _ => {}
        }
    }
    bench.over();
}

impl Bench {
    fn new() -> Self {
        let now = Instant::from_millis(1);
        let config = Config {
            policy: Policy::RoundRobin,
            upstreams: 1,
            body_memory: 100_000,
            ..Config::default()
        };
        let mut engine = Engine::new(config, 0, now);
        let specs: Vec<BackendSpec> = (0..2)
            .map(|id| BackendSpec {
                upstream: 0,
                address: Address::Unix(id.to_string()),
                authority: format!("b{id}"),
                prefix: String::new(),
                labels: Labels::default(),
            })
            .collect();
        engine.handle(engine::Input::Discovered(&specs), now);
        for id in 0..2 {
            let names = if id == 0 { &["m"][..] } else { &["m", "n"] };
            let card = |name: &&str| ModelCard {
                id: (*name).into(),
                raw: "{}".into(),
                ..ModelCard::default()
            };
            let models = names.iter().map(card).collect();
            let probe = Probe { health: 200, models: Some(models), ..Probe::default() };
            engine.handle(engine::Input::Probed(BackendId(id), Ok(probe)), now);
        }
        let limits = Limits {
            head_bytes_max: 300,
            body_bytes_max: 300,
            response_head_bytes_max: 300,
            ..Limits::default()
        };
        Self {
            engine,
            exchange: Exchange::new(Arc::new(limits), now),
            now,
            takes: usize::MAX,
            backlog: 0,
            linked: false,
            connecting: false,
            tickets: 0,
            share: Share::default(),
            closed: false,
        }
    }

    fn receive(&mut self, side: Side, bytes: &[u8]) {
        if !bytes.is_empty() && (side == Side::Client || self.linked) {
            self.exchange.handle(Input::Received(side, bytes), self.now);
            self.carry_out(bytes.len());
        }
    }

    fn tell(&mut self, input: Input<'_>) {
        self.exchange.handle(input, self.now);
        self.carry_out(0);
    }

    fn client_takes(&mut self) {
        if self.backlog == 0 {
            return self.tell(Input::Writable(Side::Client));
        }
        let taken = self.takes.min(self.backlog);
        self.backlog -= taken;
        self.tell(Input::Sent(Side::Client, taken));
    }

    fn wait(&mut self, duration: Duration) {
        self.now = self.now + duration;
        self.tell(Input::Timeout);
    }

    fn jump(&mut self) {
        if let Some(wake) = self.exchange.poll_timeout() {
            self.now = self.now.max(wake.at);
            self.tell(Input::Timeout);
            let next = self.exchange.poll_timeout();
            assert!(next.is_none_or(|next| next.at > self.now), "{next:?} is due for ever");
        }
    }

    fn carry_out(&mut self, read: usize) {
        for _ in 0..100_000 {
            if !self.step(read) {
                return;
            }
        }
        panic!("outputs follow each other without an end");
    }

    fn step(&mut self, read: usize) -> bool {
        let Some(output) = self.exchange.poll_output() else { return false };
        assert!(!self.closed, "after Close: {output:?}");
        let told = match output {
            Output::Relay { before, read: part } => {
                assert!(!part.is_empty() && part.end <= read);
                self.backlog += before.len() + part.len();
                let taken = self.takes.min(self.backlog);
                self.backlog -= taken;
                Input::Sent(Side::Client, taken)
            }
            Output::Send(side, bytes) => {
                assert!(!bytes.is_empty());
                let taken = self.takes.min(bytes.len());
                if taken == 0 || (side == Side::Client && self.backlog > 0) {
                    return true;
                }
                Input::Sent(side, taken)
            }
            Output::Reserve(share, bytes) => {
                assert_eq!(share, self.share, "it holds something else");
                let granted = self.engine.reserve(share, bytes);
                self.share = granted.unwrap_or(share);
                Input::Reserved(granted)
            }
            Output::Unreserve(share) => {
                assert_eq!(std::mem::take(&mut self.share), share, "it held something else");
                self.engine.release(share);
                return true;
            }
            Output::Ask(meta) => Input::Routed(self.engine.route(&meta, self.now)),
            Output::AskAgain(ticket, why) => {
                self.tickets -= 1;
                Input::Routed(self.engine.reroute(ticket, why, self.now))
            }
            Output::FirstByte(ticket) => {
                self.engine.first_byte(ticket, self.now);
                return true;
            }
            Output::Owns(backend, id) => {
                self.engine.owns(backend, &id, self.now);
                return true;
            }
            Output::Gather(errands, until) => {
                assert!(until >= self.now && !self.linked && !self.connecting);
                Input::Gathered(errands.into_iter().map(run).collect())
            }
            Output::Heard(echoes, adapter) => {
                self.engine.heard(&echoes, adapter, self.now);
                return true;
            }
            Output::Shown(text) => {
                self.engine.show(text, self.now);
                return true;
            }
            Output::Declined(status) => {
                self.engine.declined(status);
                return true;
            }
            Output::Settle(ticket, outcome) => {
                self.tickets -= 1;
                self.engine.finish(ticket, outcome, self.now);
                return true;
            }
            Output::Connect { .. } => {
                assert!(!self.linked && !self.connecting);
                self.connecting = true;
                return true;
            }
            Output::Release { .. } => {
                assert!(self.linked != self.connecting);
                (self.linked, self.connecting) = (false, false);
                return true;
            }
            Output::Shutdown => return true,
            Output::Close { .. } => {
                self.closed = true;
                return true;
            }
        };
        if matches!(&told, Input::Routed(Decision::Forward(_))) {
            self.tickets += 1;
        }
        self.exchange.handle(told, self.now);
        true
    }

    /// The task is dropped here.
    fn over(mut self) {
        let (ticket, share) = self.exchange.abandon();
        assert_eq!(self.tickets, usize::from(ticket.is_some()));
        assert_eq!(self.share, share);
        assert!(!self.closed || (ticket.is_none() && share == Share::default()));
        if let Some((ticket, outcome)) = ticket {
            self.engine.finish(ticket, outcome, self.now);
        }
    }
}
