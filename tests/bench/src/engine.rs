//! An engine with a fleet that serves one model and requests in flight, for measuring one call.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use vllm_proxy_core::config::{Config, Policy};
use vllm_proxy_core::engine::{Engine, Input, Output};
use vllm_proxy_core::fleet::{Address, BackendId, BackendSpec, Labels, Update};
use vllm_proxy_core::route::{Decision, Fingerprint, Outcome, RequestMeta, Route, Ticket};
use vllm_proxy_core::time::{Duration, Instant};
use vllm_proxy_core::wire::probe::{ModelCard, Probe, ProbeError};

const MODEL: &str = "bench";

/// Requests in flight at each backend, and those of them without a first byte.
const IN_FLIGHT: usize = 4;
const UNANSWERED: usize = 1;

/// The engine, its clock and what is in flight.
pub struct Bed {
    engine: Engine,
    now: Instant,
    backends: usize,
    tickets: VecDeque<Ticket>,
}

impl Bed {
    /// An engine with so many backends that are up, and an index of so many bytes.
    pub fn new(backends: usize, index_memory: usize) -> Self {
        Self::with(backends, index_memory, None)
    }

    /// The same as one of several proxies, by this number.
    pub fn sharing(backends: usize, index_memory: usize, proxy: u64) -> Self {
        Self::with(backends, index_memory, Some(proxy))
    }

    fn with(backends: usize, index_memory: usize, proxy: Option<u64>) -> Self {
        let policy = Policy::CacheAware;
        let config = Config { policy, upstreams: 1, index_memory, proxy, ..Config::default() };
        let engine = Engine::new(config, 1, Instant::START);
        let mut bed = Self { engine, now: Instant::START, backends, tickets: VecDeque::new() };
        let specs = bed.specs(0);
        bed.discover(&specs);
        bed.answer_probes();
        bed
    }

    /// As many backends as there are, the `first` of all that may be and those that follow.
    pub fn specs(&self, first: usize) -> Vec<BackendSpec> {
        (first..first + self.backends).map(spec).collect()
    }

    /// The fleet is these now.
    pub fn discover(&mut self, specs: &[BackendSpec]) {
        self.engine.handle(Input::Discovered(specs), self.now);
    }

    /// Answers all probes that are wanted: all is well.
    pub fn answer_probes(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            if let Output::Probe(backend) = output {
                self.engine.handle(Input::Probed(backend, Ok(probe())), self.now);
            }
        }
    }

    /// A probe of a backend found nobody there, or all well again.
    pub fn probed(&mut self, backend: BackendId, alive: bool) {
        let result = if alive { Ok(probe()) } else { Err(ProbeError::Connect) };
        self.engine.handle(Input::Probed(backend, result), self.now);
        while self.engine.poll_output().is_some() {}
    }

    /// What other proxies are to be told now.
    pub fn updates(&mut self) -> Vec<Update> {
        std::iter::from_fn(|| self.engine.poll_update()).collect()
    }

    /// Another proxy tells something.
    pub fn hear(&mut self, update: &Update) {
        self.engine.handle(Input::Heard(update), self.now);
    }

    /// The clock goes on; when it is time for probes, they are answered.
    pub fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        if self.engine.poll_timeout().is_some_and(|wake| wake.at <= self.now) {
            self.timeout();
            self.answer_probes();
        }
    }

    /// Looks whether a probe is due.
    pub fn timeout(&mut self) {
        self.engine.handle(Input::Timeout, self.now);
    }

    /// Asks who takes a prompt.
    pub fn route(&mut self, prompt: &Fingerprint) -> Route {
        let request =
            RequestMeta { model: Some(MODEL), ..RequestMeta::of_prompt(prompt, self.now) };
        match self.engine.route(&request, self.now) {
            Decision::Forward(route) => route,
            other => panic!("all backends are up: {other:?}"),
        }
    }

    /// A ticket is in flight from now on.
    pub fn keep(&mut self, ticket: Ticket) {
        self.tickets.push_back(ticket);
    }

    /// Whose answer begins now, so that as many have none as ever.
    pub fn answering(&self) -> Option<usize> {
        self.tickets.len().checked_sub(UNANSWERED * self.backends)
    }

    /// The answer of the ticket there begins.
    pub fn first_byte(&mut self, at: usize) {
        if let Some(ticket) = self.tickets.get(at) {
            self.engine.first_byte(ticket, self.now);
        }
    }

    /// Whose answer ends now, so that as many are in flight as ever.
    pub fn ending(&mut self) -> Option<Ticket> {
        (self.tickets.len() > IN_FLIGHT * self.backends).then(|| self.tickets.pop_front())?
    }

    /// A ticket's answer ends.
    pub fn finish(&mut self, ticket: Ticket) {
        self.engine.finish(ticket, Outcome::done(200), self.now);
    }

    /// Sends a prompt and lets those before it answer and end.
    pub fn send(&mut self, prompt: &Fingerprint) -> BackendId {
        let route = self.route(prompt);
        self.keep(route.ticket);
        if let Some(at) = self.answering() {
            self.first_byte(at);
        }
        if let Some(ticket) = self.ending() {
            self.finish(ticket);
        }
        route.backend
    }

    /// Lets all that is in flight end.
    pub fn settle(&mut self) {
        while let Some(ticket) = self.tickets.pop_front() {
            self.finish(ticket);
        }
    }

    /// Sends a prompt until every backend has it; none of them answers meanwhile, so that the queue
    /// of those who have it grows longer than the prompt. Says whether all have it.
    pub fn send_everywhere(&mut self, prompt: &Fingerprint) -> bool {
        self.settle();
        // What was new of late weighs as well; let that be long ago.
        self.pass(Duration::from_secs(600));
        let mut held = vec![false; self.backends];
        for _ in 0..(16 * self.backends).max(60_000) {
            let route = self.route(prompt);
            let Address::Tcp(address) = &route.spec.address else { continue };
            held[usize::from(address.port() - 1) % self.backends] = true;
            self.keep(route.ticket);
            if held.iter().all(|&held| held) {
                break;
            }
        }
        self.settle();
        held.iter().all(|&held| held)
    }
}

fn probe() -> Probe {
    let raw = format!("{{\"id\":\"{MODEL}\"}}");
    let card = ModelCard { id: MODEL.into(), raw, ..ModelCard::default() };
    Probe { health: 200, models: Some(vec![card]), ..Probe::default() }
}

/// Backends are told apart by their ports.
fn spec(number: usize) -> BackendSpec {
    let port = u16::try_from(number + 1).expect("fewer backends than ports");
    BackendSpec {
        upstream: 0,
        address: Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        authority: "bench".into(),
        prefix: String::new(),
        labels: Labels::default(),
    }
}
