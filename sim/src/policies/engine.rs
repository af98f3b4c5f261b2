//! The real engine as a router: the same code that a running proxy asks.

use super::fingerprint;
use crate::world::{Answer, Ask, End, Router, Server};
use core::net::{Ipv4Addr, SocketAddr};
use std::collections::BTreeMap;
use std::collections::VecDeque;
use vllm_proxy_core::config::{Config, Policy};
use vllm_proxy_core::engine::{Engine, Input, Output};
use vllm_proxy_core::fleet::{Address, BackendId, BackendSpec};
use vllm_proxy_core::route::{
    Decision, Failure, Fingerprint, Outcome, RequestMeta, Retry, Route, Ticket, Usage, Who,
};
use vllm_proxy_core::time::Instant;
use vllm_proxy_core::wire::probe::{ModelCard, Probe, ProbeError};

const MODEL: &str = "simulated";

/// A proxy with a real engine in it.
#[derive(Debug)]
pub struct Proxy {
    engine: Engine,
    tickets: BTreeMap<u64, Ticket>,
    /// Servers to be asked how they are, and by which id the engine knows them.
    probes: VecDeque<usize>,
    ids: Vec<Option<BackendId>>,
    /// Room for a prompt's chunks.
    chunks: Vec<u64>,
}

impl Proxy {
    /// A proxy that knows nobody yet.
    pub fn new(policy: Policy, seed: u64) -> Self {
        // As much as a proxy takes unless it is told otherwise.
        let index_memory = if policy == Policy::CacheAware { 64 << 20 } else { 0 };
        let config = Config { policy, upstreams: 1, index_memory, ..Config::default() };
        Self {
            engine: Engine::new(config, seed, Instant::START),
            tickets: BTreeMap::new(),
            probes: VecDeque::new(),
            ids: Vec::new(),
            chunks: Vec::new(),
        }
    }

    fn answer(&mut self, id: u64, decision: Decision) -> Answer {
        let answer = match decision {
            Decision::Forward(route) => {
                let server = server_of(&route);
                self.tickets.insert(id, route.ticket);
                Answer::Send(server)
            }
            Decision::Later(at) => Answer::Later(at),
            Decision::Answer(_) | Decision::Gather(_) | Decision::Accept | Decision::Refuse(_) => {
                Answer::Refuse
            }
        };
        self.drain();
        answer
    }

    fn drain(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::Probe(backend) => {
                    let spec = self.engine.spec(backend);
                    let Some(server) = spec.and_then(|spec| number(spec)) else { continue };
                    self.ids[server] = Some(backend);
                    self.probes.push_back(server);
                }
                Output::Forget(_) | Output::Load(..) => {}
            }
        }
    }
}

impl Router for Proxy {
    fn start(&mut self, servers: usize, now: Instant) {
        self.ids = vec![None; servers];
        let specs: Vec<_> = (0..servers).map(spec).collect();
        self.engine.handle(Input::Discovered(&specs), now);
        self.drain();
    }

    fn route(&mut self, ask: &Ask<'_>, _servers: &[Server], now: Instant) -> Answer {
        fingerprint(ask, &mut self.chunks);
        let prompt = Fingerprint::of_chunks(self.chunks.clone(), ask.prompt_bytes);
        let decision = self.engine.route(
            &RequestMeta {
                who: Who::Backend,
                model: Some(MODEL),
                stream: ask.stream,
                prompt_bytes: ask.prompt_bytes,
                prompt: &prompt,
                retry: Retry::BeforeFirstByte,
                since: ask.since,
                response: None,
                adapter: None,
                unloads: false,
                of_default: false,
                facts: false,
                narrow: None,
                allow: None,
            },
            now,
        );
        self.answer(ask.id, decision)
    }

    fn retry(&mut self, ask: &Ask<'_>, why: Failure, _: &[Server], now: Instant) -> Answer {
        match self.tickets.remove(&ask.id) {
            Some(ticket) => {
                let decision = self.engine.reroute(ticket, why, now);
                self.answer(ask.id, decision)
            }
            None => Answer::Refuse,
        }
    }

    fn first_byte(&mut self, id: u64, now: Instant) {
        if let Some(ticket) = self.tickets.get(&id) {
            self.engine.first_byte(ticket, now);
        }
        self.drain();
    }

    fn finish(&mut self, id: u64, end: End, now: Instant) {
        let outcome = match end {
            End::Done(usage) => {
                let usage = Some(Usage {
                    prompt: u64::from(usage.prompt),
                    cached: Some(u64::from(usage.cached)),
                    completion: u64::from(usage.completion),
                });
                Outcome::Done { status: 200, usage }
            }
            End::Gone => Outcome::ClientGone,
            End::Broken => Outcome::Broken,
            End::Refused => Outcome::done(400),
        };
        if let Some(ticket) = self.tickets.remove(&id) {
            self.engine.finish(ticket, outcome, now);
        }
        self.drain();
    }

    fn in_hand(&self) -> usize {
        self.tickets.len()
    }

    fn poll_probe(&mut self) -> Option<usize> {
        self.probes.pop_front()
    }

    fn probed(&mut self, server: usize, alive: bool, now: Instant) {
        let Some(backend) = self.ids[server] else { return };
        let raw = format!("{{\"id\":\"{MODEL}\"}}");
        let card = ModelCard { id: MODEL.into(), raw, ..ModelCard::default() };
        let probe = Probe { health: 200, models: Some(vec![card]), ..Probe::default() };
        let result = if alive { Ok(probe) } else { Err(ProbeError::Connect) };
        self.engine.handle(Input::Probed(backend, result), now);
        self.drain();
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.engine.poll_timeout().map(|wake| wake.at)
    }

    fn handle_timeout(&mut self, _servers: &[Server], now: Instant) {
        self.engine.handle(Input::Timeout, now);
        self.drain();
    }
}

/// Servers are told apart by their ports.
fn spec(server: usize) -> BackendSpec {
    let port = u16::try_from(server + 1).unwrap_or(u16::MAX);
    BackendSpec {
        upstream: 0,
        address: Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        authority: "simulated".into(),
        prefix: String::new(),
    }
}

fn number(spec: &BackendSpec) -> Option<usize> {
    match &spec.address {
        Address::Tcp(address) => usize::from(address.port()).checked_sub(1),
        Address::Unix(_) => None,
    }
}

fn server_of(route: &Route) -> usize {
    number(&route.spec).expect("every server was announced with its own port")
}
