//! The whole world at once: clients, proxies and servers on one virtual clock.
//!
//! Owns the order of events and who tells whom; what a server does is [`vllm`](crate::vllm)'s, who
//! is chosen is a [`Router`]'s. Everything follows from the [`Setup`]: same setup, same events.
//!
//! Proxies hear of each other by a [`Network`], if there is one: each word comes to every other
//! proxy after a delay.

mod clients;
mod events;
mod manner;
mod network;
mod outcome;
mod replica;
mod router;
mod setup;
mod sharing;
#[cfg(test)]
mod tests;

pub use clients::Clients;
pub use manner::{Manner, Tells};
pub use network::Network;
pub use outcome::{Fate, Outcome, Record};
pub use router::{Answer, Ask, Counts, End, Live, Router, Server, Word};
pub use setup::{Change, Fault, Setup};

use crate::checks;
use crate::policies::of_name;
use crate::redis::Redis;
use crate::vllm::{Event as Said, Job, Options, Vllm};
use clients::Client;
use events::{Events, Kind};
use network::{Parcel, Post};
use replica::Replica;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use vllm_proxy_core::fleet::About;
use vllm_proxy_core::route::Failure;
use vllm_proxy_core::time::{Duration, Instant};

/// How often a request is sent at most, whoever routes it.
const ATTEMPTS_MAX: u32 = 3;
/// How often the load of servers is written down, over the time in which requests come.
const SAMPLES: u128 = 200;
/// But no more often than this, in microseconds: requests of one moment take no time to come.
const SAMPLE_MIN: u128 = 1_000;

/// A world in the making.
pub(crate) struct World<'a> {
    setup: &'a Setup<'a>,
    proxies: Vec<Box<dyn Router + 'a>>,
    pub(crate) servers: Vec<Server>,
    pub(crate) records: Vec<Record>,
    clients: Vec<Client>,
    events: Events,
    post: Post,
    redis: Redis<Rc<Parcel>>,
    replicas: Vec<Replica>,
    /// What was placed since proxies last kept it.
    unkept: Vec<Vec<About>>,
    /// Which proxy each request came to.
    came_to: Vec<usize>,
    /// Requests that came and did not end.
    pub(crate) open: BTreeSet<usize>,
    /// Those of them that are at a server.
    pub(crate) live: BTreeMap<usize, Live>,
    /// Where those of them were that failed.
    failed: BTreeMap<usize, Vec<(usize, u32)>>,
    pub(crate) now: Instant,
    load: Vec<Vec<u32>>,
}

/// Runs a world to its end. `proxies` route in it; each request comes to one of them by chance.
/// `progress` hears how many of all requests have come.
pub fn run<'a>(
    setup: &'a Setup<'a>,
    proxies: Vec<Box<dyn Router + 'a>>,
    progress: &mut dyn FnMut(usize, usize),
) -> Outcome {
    let mut world = World::new(setup, proxies);
    let requests = &setup.workload.requests;
    let sample_every = Duration::from_micros(
        u64::try_from((setup.workload.span().as_micros() / SAMPLES).max(SAMPLE_MIN))
            .unwrap_or(u64::MAX),
    );
    world.events.push(Instant::START, Kind::Sample, 0);
    let mut coming = 0;
    let mut over = None;
    loop {
        let arrival = requests.get(coming).map(|request| request.at);
        let mut until = arrival.unwrap_or(Instant::FAR);
        if arrival.is_none() && world.open.is_empty() {
            let drained = setup.network.as_ref().map_or(Duration::ZERO, |network| network.drained);
            until = *over.get_or_insert(world.now + drained);
            if drained == Duration::ZERO {
                break;
            }
        }
        // What happens at a moment comes before the requests of that moment.
        match world.events.pop_until(until) {
            Some((at, kind, which)) => {
                world.now = at;
                world.happen(kind, which, sample_every);
            }
            None => {
                let Some(at) = arrival else { break };
                world.now = at;
                world.arrive(coming);
                coming += 1;
                if coming % 256 == 0 || coming == requests.len() {
                    progress(coming, requests.len());
                }
            }
        }
        if setup.checked {
            checks::all(&world);
            world.check_proxies();
        }
    }
    checks::at_the_end(&world);
    world.finish(sample_every)
}

impl<'a> World<'a> {
    fn new(setup: &'a Setup<'a>, proxies: Vec<Box<dyn Router + 'a>>) -> Self {
        let count = setup.workload.requests.len();
        let server = |(index, options): (usize, &Options)| Server {
            vllm: Vllm::new(*options),
            alive: true,
            listed: true,
            joined: 0,
            manner: setup.manners.get(index).cloned().unwrap_or_default(),
        };
        let clients =
            (0..count).map(|id| setup.clients.draw(&setup.workload.requests[id], setup.seed, id));
        let mut world = Self {
            setup,
            servers: setup.servers.iter().enumerate().map(server).collect(),
            records: vec![Record::default(); count],
            clients: clients.collect(),
            events: Events::new(setup.servers.len(), proxies.len()),
            post: Post::new(setup.seed),
            redis: Redis::default(),
            replicas: (0..proxies.len() as u64).map(Replica::new).collect(),
            unkept: vec![Vec::new(); proxies.len()],
            came_to: vec![0; count],
            open: BTreeSet::new(),
            live: BTreeMap::new(),
            failed: BTreeMap::new(),
            now: Instant::START,
            load: vec![Vec::new(); setup.servers.len()],
            proxies,
        };
        for (index, fault) in setup.faults.iter().enumerate() {
            world.events.push(fault.at, Kind::Fault, index);
        }
        let cuts = setup.network.iter().flat_map(|network| &network.cuts);
        for at in [Instant::START].into_iter().chain(cuts.flat_map(|&(from, until)| [from, until]))
        {
            if setup.network.is_some() && at != Instant::FAR {
                world.events.push(at, Kind::Link, 0);
            }
        }
        if setup.network.is_some() {
            // All are there before anyone says a word.
            world.proxies.iter_mut().enumerate().for_each(|(at, proxy)| proxy.share(at));
        }
        world.begin_sharing();
        for proxy in 0..world.proxies.len() {
            if setup.checked && setup.network.is_none() {
                world.proxies[proxy].watch();
            }
            world.proxies[proxy].start(world.servers.len(), Instant::START);
            world.drain(proxy);
        }
        world
    }

    /// Lets each proxy compare what it counts with what there is.
    fn check_proxies(&mut self) {
        // What other proxies tell is in no recount of one's own.
        if self.setup.network.is_some() {
            return;
        }
        for proxy in 0..self.proxies.len() {
            let its = self.live.iter().filter(|(id, _)| self.proxy_of(**id) == proxy);
            let its: Vec<_> = its.map(|(_, live)| *live).collect();
            self.proxies[proxy].check(&its, &self.servers, self.now);
        }
    }

    pub(crate) fn in_hand(&self) -> usize {
        self.proxies.iter().map(|proxy| proxy.in_hand()).sum()
    }

    fn happen(&mut self, kind: Kind, which: usize, sample_every: Duration) {
        match kind {
            Kind::Server => {
                if self.servers[which].vllm.poll_timeout() == Some(self.now) {
                    self.servers[which].vllm.handle_timeout(self.now);
                    self.hear(which);
                }
            }
            Kind::Fault => self.change(self.setup.faults[which]),
            Kind::Proxy => {
                if self.replicas[which].alive
                    && self.proxies[which].poll_timeout().is_some_and(|at| at <= self.now)
                {
                    self.proxies[which].handle_timeout(&self.servers, self.now);
                    self.drain(which);
                }
            }
            Kind::Link => self.link(),
            Kind::Mishap => self.mishap(which),
            Kind::Connect => self.connect(which),
            Kind::Gone => self.proxies.iter_mut().for_each(|proxy| proxy.gone(which)),
            Kind::Hear => {
                if let Some(letter) = self.post.arrive(which) {
                    self.receive(&letter);
                    self.hand_over();
                }
            }
            Kind::Tell => {
                self.replicas[which].tells = false;
                self.tell_all(which);
                self.hand_over();
            }
            Kind::Keep => self.keep(),
            Kind::Look => self.look(),
            Kind::Leave => self.leave(which),
            Kind::Again => {
                if self.records[which].fate == Fate::Open {
                    self.ask(which, None);
                }
            }
            Kind::Sample => {
                for (load, server) in self.load.iter_mut().zip(&self.servers) {
                    load.push(u32::try_from(server.vllm.in_flight()).unwrap_or(u32::MAX));
                }
                self.events.push(self.now + sample_every, Kind::Sample, 0);
            }
        }
    }

    fn arrive(&mut self, id: usize) {
        self.records[id].at = self.now;
        let Some(proxy) = self.door(id) else {
            // Nobody takes its connection.
            let record = &mut self.records[id];
            (record.fate, record.end) = (Fate::Refused, Some(self.now));
            return;
        };
        self.came_to[id] = proxy;
        self.open.insert(id);
        if let Some(patience) = self.clients[id].patience {
            self.events.push(self.now + patience, Kind::Leave, id);
        }
        self.ask(id, None);
    }

    /// Asks the proxy who takes a request, now or after a failure, until somebody does.
    fn ask(&mut self, id: usize, mut failure: Option<Failure>) {
        let request = &self.setup.workload.requests[id];
        let client = self.clients[id];
        let ask = Ask {
            id: id as u64,
            request,
            block_tokens: self.setup.workload.block_tokens,
            prompt_bytes: u64::from(request.prompt) * client.token_bytes_milli / 1_000,
            token_bytes_milli: client.token_bytes_milli,
            stream: client.stream,
            since: self.records[id].at,
            name: client.name,
        };
        let proxy = self.proxy_of(id);
        loop {
            if failure.is_some() {
                let former = self.live.remove(&id).expect("what failed was somewhere");
                assert!(!former.begun, "what a client saw the beginning of is not begun anew");
                self.failed.entry(id).or_default().push((former.server, former.joined));
            }
            let router = &mut self.proxies[proxy];
            let answer = match failure {
                None => router.route(&ask, &self.servers, self.now),
                Some(why) => router.retry(&ask, why, &self.servers, self.now),
            };
            self.drain(proxy);
            match answer {
                Answer::Send(server) => {
                    let record = &mut self.records[id];
                    record.server = Some(server);
                    record.attempts += 1;
                    assert!(record.attempts <= ATTEMPTS_MAX, "request {id} is tried for ever");
                    let Server { listed, joined, .. } = self.servers[server];
                    assert!(listed, "who is not listed gets nothing");
                    let failed = self.failed.get(&id);
                    let new = failed.is_none_or(|failed| !failed.contains(&(server, joined)));
                    assert!(new, "request {id} is not sent again to whom it failed at");
                    self.live.insert(id, Live { id: id as u64, server, joined, begun: false });
                    if !self.servers[server].alive {
                        failure = Some(Failure::Connect);
                        continue;
                    }
                    let job = named(request.job(id as u64), client.name);
                    if self.servers[server].vllm.submit(job, self.now).is_err() {
                        self.settle(id, Fate::Refused, End::Refused);
                    } else {
                        self.events.wake_server(server, self.servers[server].vllm.poll_timeout());
                    }
                }
                Answer::Later(at) => {
                    // A proxy that says "now" would be asked for ever.
                    let at = at.max(self.now + Duration::from_micros(1));
                    self.events.push(at, Kind::Again, id);
                }
                Answer::Refuse => {
                    self.end(id, Fate::Refused);
                    // The proxy holds nothing of it any more.
                    self.records[id].server = None;
                }
            }
            return;
        }
    }

    /// Passes on what a server says.
    fn hear(&mut self, server: usize) {
        while let Some(said) = self.servers[server].vllm.poll_event() {
            match said {
                Said::First(id) => {
                    let place = id as usize;
                    self.records[place].first = Some(self.now);
                    // Of an answer in one piece nobody sees the first token.
                    if self.clients[place].stream {
                        self.first_byte(place);
                    }
                }
                Said::Done(id, usage) => {
                    let id = id as usize;
                    self.records[id].usage = usage;
                    if !self.clients[id].stream {
                        self.first_byte(id);
                    }
                    let told = self.servers[server].manner.tells.of(usage, id as u64);
                    self.settle(id, Fate::Done, End::Done(told));
                }
            }
        }
        self.events.wake_server(server, self.servers[server].vllm.poll_timeout());
    }

    fn first_byte(&mut self, id: usize) {
        let proxy = self.proxy_of(id);
        if let Some(live) = self.live.get_mut(&id) {
            assert!(!live.begun, "an answer begins once");
            live.begun = true;
        }
        self.proxies[proxy].first_byte(id as u64, self.now);
        self.drain(proxy);
    }

    fn leave(&mut self, id: usize) {
        if self.records[id].fate != Fate::Open {
            return;
        }
        match self.records[id].server {
            Some(server) => {
                self.servers[server].vllm.abort(id as u64, self.now);
                self.events.wake_server(server, self.servers[server].vllm.poll_timeout());
                self.settle(id, Fate::Gone, End::Gone);
            }
            None => self.end(id, Fate::Gone),
        }
    }

    fn change(&mut self, fault: Fault) {
        let server = &mut self.servers[fault.server];
        match fault.change {
            Change::Up => server.alive = true,
            Change::Forget => server.vllm.forget(),
            Change::Leave | Change::Join => {
                let joins = fault.change == Change::Join;
                server.joined += u32::from(joins && !server.listed);
                server.listed = joins;
                for proxy in 0..self.proxies.len() {
                    if self.replicas[proxy].alive {
                        self.proxies[proxy].resolved(&self.servers, self.now);
                        self.drain(proxy);
                    }
                }
            }
            Change::Stall(time) => {
                server.vllm.stall(self.now + time, self.now);
                self.events.wake_server(fault.server, server.vllm.poll_timeout());
            }
            Change::Down => {
                server.alive = false;
                server.vllm.restart();
                let here = self.live.values().filter(|live| live.server == fault.server);
                let lost: Vec<_> = here.map(|live| (live.id as usize, live.begun)).collect();
                for (id, begun) in lost {
                    if begun {
                        self.settle(id, Fate::Broken, End::Broken);
                    } else {
                        self.records[id].first = None;
                        self.ask(id, Some(Failure::Lost));
                    }
                }
            }
        }
    }

    /// Ends a request that the proxy holds.
    fn settle(&mut self, id: usize, fate: Fate, end: End) {
        let proxy = self.proxy_of(id);
        self.proxies[proxy].finish(id as u64, end, self.now);
        self.drain(proxy);
        self.end(id, fate);
    }

    fn end(&mut self, id: usize, fate: Fate) {
        let record = &mut self.records[id];
        assert_eq!(record.fate, Fate::Open, "request {id} ends once");
        record.fate = fate;
        record.end = Some(self.now);
        self.open.remove(&id);
        self.live.remove(&id);
        self.failed.remove(&id);
    }

    fn proxy_of(&self, id: usize) -> usize {
        self.came_to[id]
    }

    fn finish(self, load_every: Duration) -> Outcome {
        let shared = self.shared();
        Outcome {
            busy: self.servers.iter().map(|server| server.vllm.busy()).collect(),
            preemptions: self.servers.iter().map(|server| server.vllm.preemptions()).collect(),
            records: self.records,
            load: self.load,
            load_every,
            end: self.now,
            shared,
        }
    }
}

/// A request under this name.
fn named(job: Job, name: u32) -> Job {
    let under = |blocks: &Arc<[u64]>| blocks.iter().map(|&block| of_name(block, name)).collect();
    match name {
        0 => job,
        _ => Job { blocks: under(&job.blocks), answer: under(&job.answer), ..job },
    }
}
