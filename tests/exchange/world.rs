//! World: one exchange, an engine, a client and backends, a clock and a seed.
//!
//! Carries out orders as a runtime does. Knows what was sent and said; judges at the end.

use crate::parse::parse;
use crate::script::{Answer, Request, chance, one_of};
use std::sync::Arc;
use std::time::Duration;
use vllm_proxy_core::config::{Config, Limits, Policy};
use vllm_proxy_core::engine::{self, Engine};
use vllm_proxy_core::exchange::{Drain, End, Errand, Exchange, Input, Said, Side};
use vllm_proxy_core::fleet::{Address, BackendId, BackendSpec, Labels};
use vllm_proxy_core::rng::Rng;
use vllm_proxy_core::route::Share;
use vllm_proxy_core::time::Instant;
use vllm_proxy_core::wire::probe::{ModelCard, Probe};

/// A connection to a backend, seen from there.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) backend: BackendId,
    pub(crate) reused: bool,
    /// It ends before it answers, as an idle connection may.
    pub(crate) stale: bool,
    pub(crate) inbox: Vec<u8>,
    /// Which of the answers it gives, and how much of it was said.
    pub(crate) answer: Option<(usize, usize)>,
}

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    ClientSends,
    ClientTakes,
    BackendTakes,
    Connects,
    ErrandsEnd,
    BackendSends,
    BackendEnds,
    ClientEnds,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) now: Instant,
    pub(crate) engine: Engine,
    pub(crate) exchange: Exchange,
    pub(crate) requests: Vec<Request>,
    /// The client waits for each answer before it asks again.
    pub(crate) in_turn: bool,
    /// The bytes of all requests, where each ends, and how many have been sent.
    pub(crate) said: Vec<u8>,
    pub(crate) ends: Vec<usize>,
    pub(crate) sent: usize,
    pub(crate) received: Vec<u8>,
    /// Final answers that the client has in whole.
    pub(crate) complete: usize,
    pub(crate) seen: usize,
    pub(crate) answers: Vec<Answer>,
    /// How often each request was received by a backend in whole.
    pub(crate) deliveries: Vec<u32>,
    /// What a backend heard through a websocket, and who ended it.
    pub(crate) heard: Vec<u8>,
    pub(crate) client_ended: bool,
    pub(crate) backend_ended: bool,
    pub(crate) link: Option<Link>,
    pub(crate) connecting: Option<BackendId>,
    /// What several backends were asked, each on a connection of its own.
    pub(crate) errands: Vec<Errand>,
    pub(crate) idle: Vec<BackendId>,
    pub(crate) client_full: bool,
    pub(crate) upstream_full: bool,
    pub(crate) backlog: Vec<u8>,
    pub(crate) partial: bool,
    pub(crate) tickets: usize,
    pub(crate) share: Share,
    /// What other bodies hold of the budget.
    pub(crate) others: Share,
    pub(crate) faults: bool,
    pub(crate) left: bool,
    /// A deadline passed because nothing else happened.
    pub(crate) jumped: bool,
    pub(crate) drained: bool,
    pub(crate) closed: Option<bool>,
    pub(crate) trace: Vec<String>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let rng = &mut rng;
        let now = Instant::from_millis(1_000 + rng.below(1_000));
        let faults = !chance(rng, 4);
        let backends = 1 + rng.below(3) as u32;
        let tight = faults && chance(rng, 6);
        let config = Config {
            policy: *one_of(rng, &[Policy::LeastLoad, Policy::RoundRobin]),
            upstreams: 1,
            body_memory: if tight { 20_000 } else { 0 },
            ..Config::default()
        };
        let mut engine = Engine::new(config, seed, now);
        let specs: Vec<BackendSpec> = (0..backends)
            .map(|id| BackendSpec {
                upstream: 0,
                address: Address::Unix(id.to_string()),
                authority: format!("b{id}"),
                prefix: String::new(),
                labels: Labels::default(),
            })
            .collect();
        engine.handle(engine::Input::Discovered(&specs), now);
        let others = if tight { 19_999 } else { 0 };
        let others = engine.reserve(Share::default(), others).expect("nobody else is there");
        let requests = Request::draw_all(rng);
        let said = requests.iter().flat_map(|request| request.bytes.clone()).collect();
        let ends = requests.iter().scan(0, |end, request| {
            *end += request.bytes.len();
            Some(*end)
        });
        let mut world = Self {
            now,
            exchange: Exchange::new(Arc::new(Limits::default()), now),
            in_turn: chance(rng, 2),
            said,
            ends: ends.collect(),
            sent: 0,
            received: Vec::new(),
            complete: 0,
            seen: 0,
            answers: Vec::new(),
            deliveries: vec![0; requests.len()],
            requests,
            heard: Vec::new(),
            client_ended: false,
            backend_ended: false,
            link: None,
            connecting: None,
            errands: Vec::new(),
            idle: Vec::new(),
            client_full: false,
            upstream_full: false,
            backlog: Vec::new(),
            partial: chance(rng, 2),
            tickets: 0,
            share: Share::default(),
            others,
            faults,
            left: false,
            jumped: false,
            drained: false,
            closed: None,
            trace: Vec::new(),
            engine,
            rng: rng.clone(),
        };
        world.probe();
        world
    }

    /// Answers every probe that is due: all backends are well, as probes see them.
    fn probe(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            let engine::Output::Probe(id) = output else { continue };
            let raw = r#"{"id":"m"}"#.to_string();
            let card = ModelCard { id: "m".to_string(), raw, ..ModelCard::default() };
            let probe = Probe { health: 200, models: Some(vec![card]), ..Probe::default() };
            self.engine.handle(engine::Input::Probed(id, Ok(probe)), self.now);
        }
    }

    pub(crate) fn into_trace(mut self) -> Vec<String> {
        std::mem::take(&mut self.trace)
    }

    pub(crate) fn log(&mut self, line: impl Into<String>) {
        self.trace.push(line.into());
    }

    pub(crate) fn run(&mut self) {
        for step in 0..100_000 {
            if self.closed.is_some() {
                return;
            }
            // Then faults stop, and everything must finish.
            if step == 400 {
                self.faults = false;
            }
            if step == 30 {
                self.engine.release(std::mem::take(&mut self.others));
            }
            let events = self.possible();
            if events.is_empty() && self.everything_answered() {
                self.log("the client is content");
                self.left = true;
                self.tell(Input::Closed(Side::Client, End::Closed));
                continue;
            }
            if self.misfortune() {
                continue;
            }
            self.pass_time(events.is_empty());
            if self.closed.is_none() && !events.is_empty() {
                let event = *one_of(&mut self.rng, &events);
                // What time has brought may have made it impossible.
                if self.possible().contains(&event) {
                    self.happen(event);
                }
            }
        }
        panic!("it does not end");
    }

    fn everything_answered(&self) -> bool {
        self.sent == self.said.len()
            && self.exchange.is_idle()
            && self.complete == self.requests.len()
    }

    fn possible(&self) -> Vec<Event> {
        let mut events = Vec::new();
        let interest = self.exchange.interest();
        let allowed = if self.in_turn {
            self.ends.get(self.complete).copied().unwrap_or(0)
        } else {
            self.said.len()
        };
        if interest.client && self.sent < allowed {
            events.push(Event::ClientSends);
        }
        if interest.client && !interest.client_end && self.sent == self.said.len() {
            events.push(Event::ClientEnds);
        }
        if self.client_full {
            events.push(Event::ClientTakes);
        }
        if self.upstream_full && self.link.is_some() {
            events.push(Event::BackendTakes);
        }
        if self.connecting.is_some() {
            events.push(Event::Connects);
        }
        if !self.errands.is_empty() {
            events.push(Event::ErrandsEnd);
        }
        if let (true, Some(link)) = (interest.upstream, &self.link) {
            match link.answer {
                _ if link.stale => events.push(Event::BackendEnds),
                Some((serial, said)) if said < self.answers[serial].bytes.len() => {
                    events.push(Event::BackendSends);
                }
                Some((serial, _)) if self.answers[serial].ends.is_some() => {
                    events.push(Event::BackendEnds);
                }
                _ => {}
            }
        }
        events
    }

    /// Whether something unlikely happened.
    fn misfortune(&mut self) -> bool {
        if !self.faults {
            return false;
        }
        if chance(&mut self.rng, 300) {
            self.log("the client leaves");
            self.left = true;
            let end = *one_of(&mut self.rng, &[End::Closed, End::Reset]);
            self.tell(Input::Closed(Side::Client, end));
            return true;
        }
        if chance(&mut self.rng, 600) {
            let drain = *one_of(&mut self.rng, &[Drain::Grace, Drain::Closing]);
            self.log(format!("drain {drain:?}"));
            self.drained = true;
            self.tell(Input::Drain(drain));
            return true;
        }
        if chance(&mut self.rng, 500) {
            self.jump();
            return true;
        }
        false
    }

    fn pass_time(&mut self, nothing_else: bool) {
        self.now = self.now + Duration::from_millis(self.rng.below(4));
        match self.exchange.poll_timeout() {
            Some(wake) if wake.at <= self.now => {
                self.log(format!("timeout: {}", wake.why));
                self.tell(Input::Timeout);
            }
            _ if nothing_else => self.jump(),
            // A timer that rings too early changes nothing.
            _ => self.tell(Input::Timeout),
        }
        self.engine.handle(engine::Input::Timeout, self.now);
        self.probe();
    }

    /// Nothing happens until the next deadline.
    fn jump(&mut self) {
        let Some(wake) = self.exchange.poll_timeout() else {
            let may_be_silent = !self.exchange.interest().client_end;
            return assert!(may_be_silent, "nothing happens and nothing is waited for");
        };
        self.now = self.now.max(wake.at);
        self.log(format!("jump: {}", wake.why));
        self.jumped |= !matches!(
            wake.why,
            "the engine did not know yet"
                | "the body waits for memory"
                | "the client was told to go"
        );
        self.tell(Input::Timeout);
        if let Some(next) = self.exchange.poll_timeout() {
            assert!(next.at > self.now, "{} is due for ever", next.why);
        }
    }

    fn some_of(&mut self, len: usize) -> usize {
        match self.rng.below(4) {
            0 => len,
            1 => 1,
            _ => 1 + self.rng.below(len as u64) as usize,
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::ClientSends => {
                let allowed = if self.in_turn { self.ends[self.complete] } else { self.said.len() };
                let some = self.some_of(allowed - self.sent);
                let bytes = self.said[self.sent..self.sent + some].to_vec();
                self.sent += some;
                self.log(format!("client: {}", bytes.escape_ascii()));
                self.received_from(Side::Client, &bytes);
            }
            Event::ClientEnds => {
                self.log("the client ends");
                self.client_ended = true;
                self.tell(Input::Closed(Side::Client, End::Closed));
            }
            Event::ClientTakes => {
                self.client_full = false;
                if self.backlog.is_empty() {
                    return self.tell(Input::Writable(Side::Client));
                }
                let taken = takes(&mut self.rng, self.partial, self.backlog.len());
                self.received.extend(self.backlog.drain(..taken));
                self.client_full = !self.backlog.is_empty();
                self.tell(Input::Sent(Side::Client, taken));
            }
            Event::BackendTakes => {
                self.upstream_full = false;
                self.tell(Input::Writable(Side::Upstream));
            }
            Event::Connects => {
                let backend = self.connecting.expect("possible");
                if self.faults && chance(&mut self.rng, 10) {
                    self.log("no connection");
                    return self.tell(Input::ConnectFailed);
                }
                self.connecting = None;
                self.link_to(backend, false);
                self.tell(Input::Connected { reused: false });
            }
            Event::ErrandsEnd => {
                let said = std::mem::take(&mut self.errands).into_iter();
                let said = said.map(|errand| self.part(errand)).collect();
                self.tell(Input::Gathered(said));
            }
            Event::BackendSends => {
                let link = self.link.as_mut().expect("possible");
                let (serial, said) = link.answer.expect("possible");
                let left = self.answers[serial].bytes.len() - said;
                let some = self.some_of(left);
                if let Some(link) = &mut self.link {
                    link.answer = Some((serial, said + some));
                }
                let bytes = self.answers[serial].bytes[said..said + some].to_vec();
                self.log(format!("backend: {}", bytes.escape_ascii()));
                self.received_from(Side::Upstream, &bytes);
            }
            Event::BackendEnds => {
                let link = self.link.as_ref().expect("possible");
                let answer = link.answer.map(|(serial, _)| &self.answers[serial]);
                let switched = answer.is_some_and(Answer::is_websocket);
                let end = match link.answer {
                    Some((serial, _)) => self.answers[serial].ends.expect("possible"),
                    None => *one_of(&mut self.rng, &[End::Closed, End::Reset]),
                };
                self.log(format!("backend ends: {end:?}"));
                self.backend_ended |= switched;
                self.tell(Input::Closed(Side::Upstream, end));
            }
        }
    }

    /// One backend takes its part of what several were asked.
    fn part(&mut self, mut errand: Errand) -> Said {
        if self.faults && chance(&mut self.rng, 10) {
            self.log("no connection");
            return errand.unconnected();
        }
        let all = errand.unsent().iter().map(|part| part.len()).sum();
        errand.sent(all);
        let mut rest = *one_of(
            &mut self.rng,
            &[
                &b"HTTP/1.1 200 OK\r\ncontent-length: 17\r\nserver: uvicorn\r\ndate: d\r\n\r\n{\"server_load\":1}"[..],
                &b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ndate: d\r\ntransfer-encoding: chunked\r\n\r\n\
                  11\r\n{\"server_load\":1}\r\n0\r\n\r\n"[..],
            ],
        );
        loop {
            let (now, later) = rest.split_at(self.some_of(rest.len()));
            rest = later;
            if let Some(said) = errand.received(now) {
                assert!(rest.is_empty(), "it ended before its last byte");
                return said;
            }
        }
    }

    pub(crate) fn link_to(&mut self, backend: BackendId, reused: bool) {
        self.upstream_full = false;
        let stale = reused && self.faults && chance(&mut self.rng, 4);
        self.link = Some(Link { backend, reused, stale, inbox: Vec::new(), answer: None });
    }

    fn received_from(&mut self, side: Side, bytes: &[u8]) {
        self.exchange.handle(Input::Received(side, bytes), self.now);
        self.carry_out(bytes);
    }

    fn tell(&mut self, input: Input<'_>) {
        self.exchange.handle(input, self.now);
        self.carry_out(&[]);
    }

    fn carry_out(&mut self, read: &[u8]) {
        for _ in 0..100_000 {
            if !self.step(read) {
                assert!(self.exchange.poll_output().is_none());
                return self.wait();
            }
        }
        panic!("outputs follow each other without an end");
    }

    /// What must hold whenever the exchange waits.
    pub(crate) fn wait(&mut self) {
        let interest = self.exchange.interest();
        assert!(!(interest.upstream && self.client_full && self.closed.is_none()));
        assert!(!interest.upstream || self.link.is_some());
        if self.closed.is_some() {
            assert!(self.exchange.poll_timeout().is_none());
            assert_eq!((self.tickets, self.share), (0, Share::default()));
            assert!(self.link.is_none() && self.connecting.is_none() && self.errands.is_empty());
        } else {
            let may_be_silent = !interest.client_end;
            let due = self.exchange.poll_timeout();
            assert!(due.is_some() || may_be_silent, "it waits without a deadline");
            assert_eq!(self.tickets, usize::from(self.link.is_some() || self.connecting.is_some()));
            assert!(interest.client || interest.client_end || due.is_some());
        }
        if self.received.len() > self.seen {
            self.seen = self.received.len();
            self.complete = self.messages().iter().filter(|(_, message)| message.complete).count();
        }
    }

    /// A connection is given to others only between two messages. Says whether nothing is left.
    pub(crate) fn is_silent(&self, link: &Link) -> bool {
        let (serial, said) = link.answer.expect("it answered");
        let answer = &self.answers[serial];
        assert!(!link.stale && link.inbox.is_empty(), "the request was not all sent");
        assert!(said == answer.due && answer.ends.is_none() && answer.whole);
        said == answer.bytes.len()
    }

    /// The backend looks at what it has of a request, and may decide on its answer.
    pub(crate) fn backend_reads(&mut self) {
        let Some(link) = &mut self.link else { return };
        if link.stale || (link.answer.is_some() && link.inbox.is_empty()) {
            return;
        }
        let answer = link.answer.map(|(serial, _)| &self.answers[serial]);
        if answer.is_some_and(Answer::is_websocket) {
            return self.heard.append(&mut link.inbox);
        }
        let Some(message) = parse(&link.inbox, false, true) else { return };
        let target = message.start.split(' ').nth(1).expect("a target");
        let id: usize = target.split_once("?id=").expect("an id").1.parse().expect("an id");
        let request = &self.requests[id];
        if message.complete {
            assert_eq!(message.len, link.inbox.len(), "bytes behind a request");
            assert_eq!(message.start, format!("{} {target} HTTP/1.1", request.method));
            assert_eq!(message.body, request.body);
            assert_eq!(message.trailers, request.trailers);
            assert_eq!(message.header("x-case"), Some("KePt"));
            let upgrade = request.websocket.then_some("websocket");
            assert_eq!(message.header("upgrade"), upgrade);
            assert_eq!(message.header("connection"), upgrade.map(|_| "Upgrade"));
            assert!(message.header("expect").is_none());
            let host = message.header("host").expect("a host");
            assert!(host == "client" || host == format!("b{}", link.backend));
            link.inbox.clear();
            self.deliveries[id] += 1;
        }
        if link.answer.is_none() && (message.complete || (self.faults && chance(&mut self.rng, 10)))
        {
            let serial = self.answers.len();
            let mut answer = Answer::draw(&mut self.rng, id, serial, request, self.faults);
            if link.reused && answer.bytes.is_empty() {
                // Or it would count as stale, though it has the request.
                answer.bytes.push(b'H');
            }
            self.answers.push(answer);
            link.answer = Some((serial, 0));
        }
    }
}

pub(crate) fn takes(rng: &mut Rng, partial: bool, len: usize) -> usize {
    if !partial {
        return len;
    }
    match rng.below(4) {
        0 => 0,
        1 => 1,
        2 => len,
        _ => rng.below(len as u64 + 1) as usize,
    }
}

impl Drop for World {
    /// A run that failed says so itself: its ticket must not abort the process.
    #[expect(clippy::print_stdout, reason = "who reads a failure needs what led to it")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::mem::forget(self.exchange.abandon());
            for line in &self.trace {
                println!("{line}");
            }
        }
    }
}
