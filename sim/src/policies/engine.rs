//! The real engine as a router: the same code that a running proxy asks.

use super::fingerprint;
use super::watch::Watch;
use crate::world::{Answer, Ask, End, Live, Router, Server, Word};
use core::net::{Ipv4Addr, SocketAddr};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use vllm_proxy_core::config::{Config, Policy};
use vllm_proxy_core::engine::{Company, Engine, Input, Link, Output, Page, ReplicaReport};
use vllm_proxy_core::fleet::{About, Address, BackendId, BackendSpec, Labels, ProxyId};
use vllm_proxy_core::route::{
    Act, Decision, Failure, Fingerprint, Narrow, Outcome, RequestMeta, Ticket, Who, Work,
};
use vllm_proxy_core::time::Instant;
use vllm_proxy_core::wire::probe::{CacheReport, ModelCard, Probe, ProbeError};

/// Bytes of an index, as many as a proxy takes unless it is told otherwise.
const INDEX_BYTES: usize = 64 << 20;

/// A request as it was sent somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its number.
    pub id: u64,
    /// Where.
    pub server: usize,
    /// Tokens of its prompt that were believed to be cached there, up to the last few.
    pub promised: u64,
    /// Requests that it then believed to be in hand at all servers, whoever sent them, with this
    /// one.
    pub in_flight: u32,
}

/// What a proxy did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// All that it sent, in order.
    pub sent: Vec<Sent>,
    /// What its engine believes in the end.
    pub state: u64,
}

/// A proxy with a real engine in it.
#[derive(Debug)]
pub struct Proxy {
    config: Config,
    seed: u64,
    engine: Engine,
    tickets: BTreeMap<u64, Ticket>,
    /// Servers to be asked how they are, and by which id the engine knows them.
    probes: VecDeque<usize>,
    ids: Vec<Option<BackendId>>,
    /// In which order servers are announced.
    order: Vec<usize>,
    /// Room for a prompt's chunks.
    chunks: Vec<u64>,
    watch: Watch,
    told: Option<Rc<RefCell<Told>>>,
}

impl Proxy {
    /// A proxy that knows nobody yet.
    pub fn new(policy: Policy, seed: u64) -> Self {
        Self::with_index(policy, seed, INDEX_BYTES)
    }

    /// The same with an index of so many bytes, if the policy asks for one.
    pub fn with_index(policy: Policy, seed: u64, bytes: usize) -> Self {
        let index_memory = if policy == Policy::CacheAware { bytes } else { 0 };
        let config = Config { policy, upstreams: 1, index_memory, ..Config::default() };
        Self {
            engine: Engine::new(config.clone(), seed, Instant::START),
            config,
            seed,
            tickets: BTreeMap::new(),
            probes: VecDeque::new(),
            ids: Vec::new(),
            order: Vec::new(),
            chunks: Vec::new(),
            watch: Watch::new(policy, index_memory),
            told: None,
        }
    }

    /// The same, to which servers are announced in this order: it numbers them by it.
    #[must_use]
    pub fn in_order(mut self, order: Vec<usize>) -> Self {
        self.order = order;
        self
    }

    /// The same, telling what it does.
    #[must_use]
    pub fn telling(mut self, told: Rc<RefCell<Told>>) -> Self {
        self.told = Some(told);
        self
    }

    fn answer(&mut self, ask: &Ask<'_>, decision: Decision, now: Instant) -> Answer {
        let answer = match decision {
            Decision::Forward(route) => {
                let server = server_of(&route.spec);
                let work = self.engine.work(&route.ticket).unwrap_or(Work::of_prompt(0));
                // Whatever the watch finds, tickets are settled.
                self.tickets.insert(ask.id, route.ticket);
                self.watch.sent(ask, route.backend, work, now);
                if let Some(told) = &self.told {
                    let promised = u64::try_from((work.prompt - work.uncached) / 1_000);
                    let promised = promised.unwrap_or(0);
                    let views = self.engine.views(now);
                    let in_flight = views.map(|view| view.in_hand.in_flight).sum();
                    let sent = Sent { id: ask.id, server, promised, in_flight };
                    told.borrow_mut().sent.push(sent);
                }
                Answer::Send(server)
            }
            Decision::Later(at) => {
                self.watch.not_sent(ask.id);
                Answer::Later(at)
            }
            Decision::Answer(_)
            | Decision::Gather(_)
            | Decision::Status(_)
            | Decision::Shown(_)
            | Decision::Explained(_)
            | Decision::Accept
            | Decision::Refuse(_) => {
                self.watch.not_sent(ask.id);
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

    /// Those of whom the engine may choose, to be compared with whom it chooses.
    fn look(&mut self, ask: &Ask<'_>, servers: &[Server], now: Instant) {
        let engine = &self.engine;
        let lists = |backend| {
            let server = engine.spec(backend).and_then(|spec| number(spec));
            server.is_some_and(|server| servers[server].manner.names.contains(&ask.name))
        };
        self.watch.look(engine, ask, &self.chunks, &model(ask.name), lists, now);
    }
}

impl Router for Proxy {
    fn share(&mut self, proxy: usize) {
        self.config.proxy = Some(proxy as u64);
        self.engine = Engine::new(self.config.clone(), self.seed, Instant::START);
    }

    fn link(&mut self, link: Link, now: Instant) {
        self.engine.handle(Input::Link(link), now);
        self.drain();
    }

    fn order(&mut self, server: usize, act: Act, now: Instant) {
        let backend = Some(spec(server).address.to_string());
        let narrow = Narrow { backend, model: None };
        let prompt = Fingerprint::default();
        let order = RequestMeta {
            who: Who::Acts(act),
            narrow: Some(&narrow),
            ..RequestMeta::of_prompt(&prompt, now)
        };
        // One that left is unknown, which an operator is told.
        let told = self.engine.route(&order, now);
        assert!(matches!(told, Decision::Answer(_) | Decision::Refuse(_)), "{told:?}");
        self.drain();
    }

    fn poll_word(&mut self) -> Option<Word> {
        self.engine.poll_update().map(Word::Update)
    }

    fn stop(&mut self, now: Instant) {
        while let Some((id, ticket)) = self.tickets.pop_first() {
            self.engine.finish(ticket, Outcome::ClientGone, now);
            self.watch.forget(id);
        }
        self.probes.clear();
    }

    fn report(&mut self, report: ReplicaReport, now: Instant) {
        self.engine.handle(Input::Replica(report), now);
        self.drain();
    }

    fn company(&self) -> Company {
        self.engine.company()
    }

    fn peer(&self) -> Option<ProxyId> {
        self.engine.peer()
    }

    fn stands(&self) -> Vec<(About, usize)> {
        let stand = |name| {
            let chunks = self.engine.kept_chunks(name)?;
            Some((self.engine.stand(name)?, usize::try_from(chunks).ok()?.saturating_mul(8)))
        };
        self.engine.names().filter_map(stand).collect()
    }

    fn shared_hash(&self) -> u64 {
        self.engine.shared_hash()
    }

    fn hear(&mut self, word: &Word, now: Instant) {
        if let Word::Update(update) = word {
            self.engine.handle(Input::Heard(update), now);
            self.drain();
        }
    }

    fn snapshot(&self) -> Vec<Word> {
        let mut words = Vec::new();
        let mut next = Some(Page::FIRST);
        while let Some((update, after)) = next.and_then(|page| self.engine.snapshot(page)) {
            words.push(Word::Update(update));
            next = after;
        }
        words
    }

    fn watch(&mut self) {
        self.watch.begin();
    }

    fn check(&mut self, live: &[Live], servers: &[Server], now: Instant) {
        let said = servers.iter().filter_map(|server| server.manner.kv_tokens);
        self.watch.check(&self.engine, live, said, now);
    }

    fn start(&mut self, servers: usize, now: Instant) {
        self.ids = vec![None; servers];
        let others = (0..servers).filter(|server| !self.order.contains(server));
        let others: Vec<_> = others.collect();
        self.order.extend(others);
        let specs: Vec<_> = self.order.iter().map(|&server| spec(server)).collect();
        self.engine.handle(Input::Discovered(&specs), now);
        self.drain();
    }

    fn route(&mut self, ask: &Ask<'_>, servers: &[Server], now: Instant) -> Answer {
        fingerprint(ask, &mut self.chunks);
        self.look(ask, servers, now);
        let prompt = Fingerprint::of_chunks(self.chunks.clone(), ask.prompt_bytes);
        let decision = self.engine.route(
            &RequestMeta {
                model: Some(&model(ask.name)),
                stream: ask.stream,
                ..RequestMeta::of_prompt(&prompt, ask.since)
            },
            now,
        );
        self.answer(ask, decision, now)
    }

    fn retry(&mut self, ask: &Ask<'_>, why: Failure, servers: &[Server], now: Instant) -> Answer {
        match self.tickets.remove(&ask.id) {
            Some(ticket) => {
                self.watch.over(ask.id, now);
                fingerprint(ask, &mut self.chunks);
                self.look(ask, servers, now);
                let decision = self.engine.reroute(ticket, why, now);
                self.answer(ask, decision, now)
            }
            None => Answer::Refuse,
        }
    }

    fn first_byte(&mut self, id: u64, now: Instant) {
        if let Some(ticket) = self.tickets.get(&id) {
            self.engine.first_byte(ticket, now);
            self.watch.first_byte(id, now);
        }
        self.drain();
    }

    fn finish(&mut self, id: u64, end: End, now: Instant) {
        let outcome = match end {
            End::Done(usage) => Outcome::Done { status: 200, usage },
            End::Gone => Outcome::ClientGone,
            End::Broken => Outcome::Broken,
            End::Refused => Outcome::done(400),
        };
        if let Some(ticket) = self.tickets.remove(&id) {
            self.engine.finish(ticket, outcome, now);
            self.watch.over(id, now);
            self.watch.forget(id);
        }
        if let Some(told) = &self.told
            && self.tickets.is_empty()
        {
            told.borrow_mut().state = self.engine.state_hash(now);
        }
        self.drain();
    }

    fn in_hand(&self) -> usize {
        self.tickets.len()
    }

    fn resolved(&mut self, servers: &[Server], now: Instant) {
        let listed = self.order.iter().filter(|&&server| servers[server].listed);
        let specs: Vec<_> = listed.map(|&server| spec(server)).collect();
        self.engine.handle(Input::Discovered(&specs), now);
        self.drain();
    }

    fn poll_probe(&mut self) -> Option<usize> {
        self.probes.pop_front()
    }

    fn probed(&mut self, server: usize, servers: &[Server], now: Instant) {
        let Some(backend) = self.ids[server] else { return };
        let Server { alive, manner, vllm, .. } = &servers[server];
        let card = |name| {
            let id = model(name);
            ModelCard { raw: format!("{{\"id\":\"{id}\"}}"), id, ..ModelCard::default() }
        };
        let models = Some(manner.names.clone().map(card).collect());
        let (queries, hits) = manner.counts.then(|| vllm.looked_up()).unzip();
        let prefix_caching = manner.counts.then(|| vllm.looks_for_prefixes());
        let cache = CacheReport { kv_tokens: manner.kv_tokens, prefix_caching, queries, hits };
        let cache = (cache != CacheReport::default()).then_some(cache);
        let probe = Probe { health: 200, models, cache, ..Probe::default() };
        let result = if *alive { Ok(probe) } else { Err(ProbeError::Connect) };
        let before = self.watch.serves(&self.engine, backend, now);
        self.engine.handle(Input::Probed(backend, result), now);
        self.watch.probed(&self.engine, backend, before, now);
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

impl Drop for Proxy {
    /// A world that ends early leaves nothing behind, either.
    fn drop(&mut self) {
        while let Some((_, ticket)) = self.tickets.pop_first() {
            self.engine.finish(ticket, Outcome::ClientGone, Instant::FAR);
        }
    }
}

/// What a model or an adapter is called.
fn model(name: u32) -> String {
    format!("simulated-{name}")
}

/// Servers are told apart by their ports.
fn spec(server: usize) -> BackendSpec {
    let port = u16::try_from(server + 1).unwrap_or(u16::MAX);
    BackendSpec {
        upstream: 0,
        address: Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        authority: "simulated".into(),
        prefix: String::new(),
        labels: Labels::default(),
    }
}

fn number(spec: &BackendSpec) -> Option<usize> {
    match &spec.address {
        Address::Tcp(address) => usize::from(address.port()).checked_sub(1),
        Address::Unix(_) => None,
    }
}

fn server_of(spec: &BackendSpec) -> usize {
    number(spec).expect("every server was announced with its own port")
}
