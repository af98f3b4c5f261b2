//! Sharing: how proxies in the world hear of each other, through a Redis to which things happen.
//!
//! Owns what a running proxy does for its engine there: gathering, publishing, noticing that the
//! way is lost or whole, snapshots, and what is kept for those that start.

use super::events::Kind;
use super::network::{Letter, Parcel};
use super::{Fate, Word, World};
use crate::redis::Mishap;
use crate::world::replica::Replica;
use std::rc::Rc;
use vllm_proxy_core::engine::{Link, ReplicaReport};
use vllm_proxy_core::fleet::{About, ProxyId, Update, Word as Said};
use vllm_proxy_core::route::Act;
use vllm_proxy_core::time::{Duration, Instant};

/// How often proxies look how the way is.
const LOOK: Duration = Duration::from_millis(500);
/// For how long others believe that a silent proxy lives.
const LEASE: Duration = Duration::from_secs(3);
/// How often they keep what was placed.
const KEEP: Duration = Duration::from_millis(200);
/// Whoever else may publish there, and is never cut off.
const STRANGER: usize = usize::MAX;
/// A log is the old one when it holds so many times what fits into a cache.
const KEPT_CACHES: usize = 2;

impl World<'_> {
    /// Plans what happens between proxies.
    pub(super) fn begin_sharing(&mut self) {
        let Some(network) = &self.setup.network else { return };
        let cuts = network.cuts.iter().flat_map(|&(from, until)| [from, until]);
        for at in [Instant::START].into_iter().chain(cuts).filter(|&at| at != Instant::FAR) {
            self.events.push(at, Kind::Link, 0);
        }
        for (index, &(at, _)) in network.mishaps.iter().enumerate() {
            self.events.push(at, Kind::Mishap, index);
        }
        self.events.push(Instant::START + LOOK, Kind::Look, 0);
        if network.keeps {
            self.events.push(Instant::START + KEEP, Kind::Keep, 0);
        }
    }

    /// The proxy that takes a client's connection: the next one that runs.
    pub(super) fn door(&self, id: usize) -> Option<usize> {
        let count = self.proxies.len();
        let first = self.clients[id].lot as usize % count;
        (first..first + count).map(|at| at % count).find(|&proxy| self.replicas[proxy].alive)
    }

    /// What those that run know of what all know.
    pub(super) fn shared(&self) -> Vec<u64> {
        let shares = self.setup.network.is_some();
        let running = self.proxies.iter().zip(&self.replicas);
        let running = running.filter(|(_, replica)| shares && replica.alive);
        running.map(|(proxy, _)| proxy.shared_hash()).collect()
    }

    /// The way between proxies is cut or whole: they notice, and tell what the others missed.
    pub(super) fn link(&mut self) {
        let cut = self.setup.network.as_ref().is_some_and(|network| network.is_cut(self.now));
        for proxy in 0..self.proxies.len() {
            let link = if cut { Link::Lost } else { Link::Whole };
            self.replicas[proxy].know(link, self.now);
            self.proxies[proxy].link(link, self.now);
            if !cut && self.now > Instant::START {
                self.tell_snapshot(proxy);
            }
            self.drain(proxy);
        }
    }

    /// Something happens to Redis or to a proxy.
    pub(super) fn mishap(&mut self, which: usize) {
        let mishap = self.setup.network.as_ref().and_then(|one| one.mishaps.get(which));
        let Some(&(_, mishap)) = mishap else { return };
        for (_, parcel) in self.redis.happen(mishap) {
            self.deliver(&parcel);
        }
        match mishap {
            Mishap::Garbage => {
                for bytes in [vec![], vec![0], vec![1, 1, 0xff, 0xff], vec![9; 64]] {
                    if let Some(parcel) =
                        self.redis.publish(STRANGER, Rc::new(Parcel::Bytes(bytes)))
                    {
                        self.deliver(&parcel);
                    }
                }
            }
            Mishap::Dies(proxy) if proxy < self.proxies.len() => self.die(proxy),
            Mishap::Starts(proxy) if proxy < self.proxies.len() => self.start(proxy),
            Mishap::Drained(proxy, server) => self.order(proxy, server, Act::Drain),
            Mishap::Undrained(proxy, server) => self.order(proxy, server, Act::Undrain),
            Mishap::Killed
            | Mishap::Started
            | Mishap::Hung
            | Mishap::GoesOn
            | Mishap::Flushed
            | Mishap::Full
            | Mishap::Roomy
            | Mishap::Slow(_)
            | Mishap::CutOff(_)
            | Mishap::Joined(_)
            | Mishap::Dies(_)
            | Mishap::Starts(_) => {}
        }
        for proxy in 0..self.proxies.len() {
            if self.replicas[proxy].is_connected() && !self.redis.is_there(proxy) {
                self.disconnected(proxy);
            }
        }
        self.hand_over();
    }

    /// A proxy has no connection, and tries again after a pause.
    fn disconnected(&mut self, proxy: usize) {
        let pause = self.replicas[proxy].pause();
        self.events.push(self.now + pause, Kind::Connect, proxy);
    }

    /// A proxy tries to connect.
    pub(super) fn connect(&mut self, proxy: usize) {
        if !self.replicas[proxy].alive || self.replicas[proxy].is_connected() {
            return;
        }
        if self.redis.is_there(proxy) {
            self.replicas[proxy].connect();
        } else {
            self.disconnected(proxy);
        }
    }

    /// An operator orders something of a server, if the proxy that he asks runs.
    fn order(&mut self, proxy: usize, server: usize, act: Act) {
        if self.replicas.get(proxy).is_some_and(|replica| replica.alive) {
            self.proxies[proxy].order(server % self.servers.len(), act, self.now);
            self.drain(proxy);
        }
    }

    fn die(&mut self, proxy: usize) {
        if !self.replicas[proxy].alive {
            return;
        }
        self.replicas[proxy].alive = false;
        self.unkept[proxy].clear();
        let its = |id: &&usize| self.came_to[**id] == proxy;
        let lost: Vec<_> = self.open.iter().filter(its).copied().collect();
        self.proxies[proxy].stop(self.now);
        if let Ok(number) = usize::try_from(self.replicas[proxy].id) {
            self.events.push(self.now + LEASE, Kind::Gone, number);
        }
        for id in lost {
            if let Some(live) = self.live.get(&id) {
                // Its connections are closed, and servers notice.
                let server = live.server;
                self.servers[server].vllm.abort(id as u64, self.now);
                self.events.wake_server(server, self.servers[server].vllm.poll_timeout());
            }
            self.end(id, Fate::Broken);
        }
        self.events.wake_proxy(proxy, None);
    }

    fn start(&mut self, proxy: usize) {
        if self.replicas[proxy].alive {
            return;
        }
        let id = self.replicas[proxy].id + self.proxies.len() as u64;
        self.replicas[proxy] = Replica::new(id);
        if !self.redis.is_there(proxy) {
            self.disconnected(proxy);
        }
        self.replicas[proxy].asks = true;
        let Ok(number) = usize::try_from(id) else { return };
        self.proxies[proxy].share(number);
        self.proxies[proxy].start(self.servers.len(), self.now);
        self.proxies[proxy].resolved(&self.servers, self.now);
        // What was kept comes in an order of its own, and each part may need another.
        for _ in 0..2 {
            for (stand, _) in self.proxies[proxy].stands() {
                let kept = self.redis.kept(proxy, stand.backend.0).filter_map(|bytes| {
                    let Ok(Said::Update(update)) = Said::decode(bytes) else { return None };
                    Some(Word::Update(update))
                });
                kept.for_each(|word| self.proxies[proxy].hear(&word, self.now));
            }
        }
        self.serve(proxy);
    }

    /// Proxies look how the way is.
    pub(super) fn look(&mut self) {
        for proxy in 0..self.proxies.len() {
            if !self.replicas[proxy].alive {
                continue;
            }
            self.look_of(proxy);
            let company = self.proxies[proxy].company();
            let replica = &mut self.replicas[proxy];
            replica.asks |= company.missed > replica.missed;
            replica.missed = company.missed;
            if let Some(to) = self.proxies[proxy].peer().filter(|_| self.replicas[proxy].asks) {
                self.replicas[proxy].asks = false;
                let from = ProxyId(self.replicas[proxy].id);
                self.say(proxy, &Said::Ask { from, to });
            }
        }
        self.hand_over();
        self.events.push(self.now + LOOK, Kind::Look, 0);
    }

    fn look_of(&mut self, proxy: usize) {
        let cut = self.setup.network.as_ref().is_some_and(|network| network.is_cut(self.now));
        let connected = !cut && self.replicas[proxy].is_connected();
        let Some(link) = self.replicas[proxy].look(connected, self.now) else { return };
        self.proxies[proxy].link(link, self.now);
        if link == Link::Whole {
            self.replicas[proxy].asks = true;
            self.tell_snapshot(proxy);
        }
    }

    /// Proxies keep what was placed since they last did, if they can.
    pub(super) fn keep(&mut self) {
        for proxy in 0..self.proxies.len() {
            if !self.replicas[proxy].is_connected() {
                continue;
            }
            let placed = std::mem::take(&mut self.unkept[proxy]);
            if placed.is_empty() {
                continue;
            }
            for (stand, bytes) in self.proxies[proxy].stands() {
                let backend = stand.backend;
                let of_it = placed.iter().filter(|about| about.backend == backend);
                let mut about: Vec<_> = of_it.cloned().collect();
                if about.is_empty() {
                    continue;
                }
                about.insert(0, stand);
                let proxy_id = ProxyId(self.replicas[proxy].id);
                let update = Update { proxy: proxy_id, number: 0, about, lengths: Vec::new() };
                let mut entry = Vec::new();
                Said::Update(update).encode(&mut entry);
                self.redis.keep(proxy, backend.0, entry, KEPT_CACHES * bytes);
            }
        }
        self.events.push(self.now + KEEP, Kind::Keep, 0);
    }

    fn tell_snapshot(&mut self, proxy: usize) {
        for word in self.proxies[proxy].snapshot() {
            self.tell(proxy, word);
        }
    }

    /// A proxy tells all that it gathered.
    pub(super) fn tell_all(&mut self, proxy: usize) {
        while let Some(word) = self.proxies[proxy].poll_word() {
            self.tell(proxy, word);
        }
    }

    fn tell(&mut self, proxy: usize, word: Word) {
        let Some(network) = &self.setup.network else { return };
        let update = match word {
            Word::Update(update) => update,
            counts @ Word::Counts { .. } => {
                return self.publish(proxy, Rc::new(Parcel::Counts(counts)));
            }
        };
        if network.keeps && update.number > 0 {
            let lasting = |about: &&About| !about.placed.is_empty() || about.drains > 0;
            let placed = update.about.iter().filter(lasting);
            self.unkept[proxy].extend(placed.map(|about| About {
                placed: about.placed.clone(),
                ..About::of(about.backend, about.generation)
            }));
        }
        if update.number > 0 {
            self.replicas[proxy].told(update.number, self.now);
        }
        self.say(proxy, &Said::Update(update));
    }

    fn say(&mut self, proxy: usize, said: &Said) {
        let mut bytes = Vec::new();
        said.encode(&mut bytes);
        self.publish(proxy, Rc::new(Parcel::Bytes(bytes)));
    }

    /// A proxy publishes something, if it can.
    fn publish(&mut self, from: usize, parcel: Rc<Parcel>) {
        if self.replicas[from].is_connected()
            && let Some(parcel) = self.redis.publish(from, parcel)
        {
            self.deliver(&parcel);
        }
    }

    /// Sends something to all that listen, its teller among them.
    fn deliver(&mut self, parcel: &Rc<Parcel>) {
        let Some(network) = &self.setup.network else { return };
        for (to, replica) in self.replicas.iter().enumerate() {
            let Some(connection) = replica.connection() else { continue };
            for at in self.post.times(network, self.redis.late(), self.now).into_iter().flatten() {
                let letter = Letter { to, connection, parcel: Rc::clone(parcel) };
                if at == self.now {
                    self.post.hand_over(letter);
                    continue;
                }
                let number = self.post.send(letter);
                self.events.push(at, Kind::Hear, number);
            }
        }
    }

    /// Something comes to a proxy.
    pub(super) fn receive(&mut self, letter: &Letter) {
        let to = letter.to;
        // What was on its way when the connection broke is lost.
        if self.replicas[to].connection() != Some(letter.connection) {
            return;
        }
        match &*letter.parcel {
            Parcel::Counts(word) => self.proxies[to].hear(word, self.now),
            Parcel::Bytes(bytes) => match Said::decode(bytes) {
                Ok(Said::Update(update)) if update.proxy.0 == self.replicas[to].id => {
                    if let Some(lag) = self.replicas[to].echo(update.number, self.now) {
                        let (connected, lag) = (true, Some(lag));
                        let report = ReplicaReport { connected, lag, ..ReplicaReport::default() };
                        self.proxies[to].report(report, self.now);
                    }
                    self.look_of(to);
                }
                Ok(Said::Update(update)) => self.proxies[to].hear(&Word::Update(update), self.now),
                Ok(Said::Ask { from, to: asked }) => {
                    let own = ProxyId(self.replicas[to].id);
                    if asked == own && from != own {
                        self.tell_snapshot(to);
                    }
                }
                Err(_) => {}
            },
        }
        self.serve(to);
    }

    /// Does what a proxy wants done. At no distance others hear of it before anything else happens.
    pub(super) fn drain(&mut self, proxy: usize) {
        self.serve(proxy);
        self.hand_over();
    }

    /// What takes no time comes, and what follows from it.
    pub(super) fn hand_over(&mut self) {
        while let Some(letter) = self.post.handed_over() {
            self.receive(&letter);
        }
    }

    /// Answers a proxy's probes, passes on its words and notes when it wants to be called.
    fn serve(&mut self, proxy: usize) {
        if !self.replicas[proxy].alive {
            return;
        }
        while let Some(server) = self.proxies[proxy].poll_probe() {
            self.proxies[proxy].probed(server, &self.servers, self.now);
        }
        let gather = self.setup.network.as_ref().map_or(Duration::ZERO, |network| network.gather);
        if gather == Duration::ZERO {
            self.tell_all(proxy);
        } else if !self.replicas[proxy].tells {
            self.replicas[proxy].tells = true;
            self.events.push(self.now + gather, Kind::Tell, proxy);
        }
        self.events.wake_proxy(proxy, self.proxies[proxy].poll_timeout());
    }
}
