//! Proxies that tell each other what they do: in any order, twice, or not at all.

use super::*;
use crate::fleet::{
    About, Average, BackendName, Clock, Fact, InHand, Lesson, Placed, PrefixIndex, PromptLength,
    ProxyId, Standing, Update, Word,
};
use crate::rng::{Rng, mix};
use crate::route::{Act, Change, Echo, Narrow};
use crate::wire::probe::CacheReport;

const BACKENDS: u16 = 5;
const SECOND: u64 = 1_000;

/// Proxies that serve the same backends, each of which it discovered in an order of its own.
struct Net {
    rigs: Vec<Rig>,
    /// Requests that are somewhere, and with which proxy.
    open: Vec<(usize, Route)>,
    /// What was told, and what is on its way, and to whom.
    log: Vec<Update>,
    way: Vec<(usize, Update)>,
}

fn port(route: &Route) -> u16 {
    match route.spec.address {
        Address::Tcp(address) => address.port(),
        Address::Unix(_) => unreachable!("all have ports"),
    }
}

/// A prompt of so few chunks that it teaches nothing of its backend's speed.
fn prompt(number: u64, count: u64) -> Vec<u64> {
    (0..count).map(|at| mix(number << 32 | at)).collect()
}

impl Net {
    /// Proxies that are all there from the start.
    fn new(proxies: usize) -> Self {
        let mut net = Self { rigs: Vec::new(), open: Vec::new(), log: Vec::new(), way: Vec::new() };
        for proxy in 0..proxies {
            net.join(proxy as u16);
        }
        net.way.clear();
        for update in &net.log {
            let own = (update.proxy.0 - 100) as usize;
            let others = (0..proxies).filter(|&other| other != own);
            net.way.extend(others.map(|other| (other, update.clone())));
        }
        net
    }

    /// One more proxy, which nobody has told anything so far.
    fn join(&mut self, turned: u16) -> usize {
        let at = self.rigs.len();
        let mut rig = Rig::new(Config {
            policy: Policy::CacheAware,
            upstreams: 1,
            index_memory: 1 << 20,
            proxy: Some(100 + at as u64),
            ..Config::default()
        });
        rig.now = self.rigs.first().map_or(rig.now, |first| first.now);
        let order = (0..BACKENDS).map(|port| (port + turned) % BACKENDS);
        let specs: Vec<_> = order.map(|port| spec(0, port)).collect();
        rig.engine.handle(Input::Discovered(&specs), rig.now);
        self.rigs.push(rig);
        for id in 0..BACKENDS {
            let healthy = Ok(healthy(&["m"]));
            self.tell(at, Input::Probed(BackendId(id.into()), healthy));
        }
        self.drain(at);
        at
    }

    fn drain(&mut self, at: usize) {
        self.rigs[at].outputs();
        while let Some(update) = self.rigs[at].engine.poll_update() {
            let others = (0..self.rigs.len()).filter(|&other| other != at);
            self.way.extend(others.map(|other| (other, update.clone())));
            self.log.push(update);
        }
        assert!(!self.rigs[at].engine.has_update());
    }

    fn tell(&mut self, at: usize, input: Input<'_>) {
        let now = self.rigs[at].now;
        self.rigs[at].engine.handle(input, now);
        self.drain(at);
    }

    /// A word arrives, as bytes.
    fn hear(&mut self, at: usize, update: &Update) {
        let mut bytes = Vec::new();
        Word::Update(update.clone()).encode(&mut bytes);
        let word = Word::decode(&bytes);
        assert_eq!(word.as_ref(), Ok(&Word::Update(update.clone())));
        let Ok(Word::Update(update)) = word else { unreachable!("so it was compared") };
        self.tell(at, Input::Heard(&update));
    }

    /// A proxy sees a backend go down and come back as another process.
    fn restart(&mut self, at: usize, port: u16) {
        let id = self.backend(at, port);
        for up in [false, false, true] {
            let probe =
                if up { healthy(&["m"]) } else { Probe { health: 503, ..Probe::default() } };
            self.tell(at, Input::Probed(id, Ok(probe)));
        }
    }

    /// All that is on its way arrives.
    fn arrive(&mut self) {
        for (at, update) in core::mem::take(&mut self.way) {
            self.hear(at, &update);
        }
        assert!(self.way.is_empty(), "hearing is not answered");
    }

    fn sleep(&mut self, millis: u64) {
        for at in 0..self.rigs.len() {
            self.rigs[at].sleep(millis);
            self.tell(at, Input::Timeout);
        }
    }

    fn send(&mut self, at: usize, chunks: &[u64], stream: bool) -> u16 {
        let prompt = Fingerprint::of_chunks(chunks.into(), chunks.len() as u64 * 512);
        let rig = &mut self.rigs[at];
        let meta = RequestMeta {
            model: Some("m"),
            prompt: &prompt,
            prompt_bytes: prompt.bytes(),
            stream,
            ..request(rig.now)
        };
        let route = forwarded(rig.ask(&meta));
        self.drain(at);
        let port = port(&route);
        self.open.push((at, route));
        port
    }

    fn first_byte(&mut self, which: usize) {
        let (at, route) = &self.open[which];
        let at = *at;
        let now = self.rigs[at].now;
        self.rigs[at].engine.first_byte(&route.ticket, now);
        self.drain(at);
    }

    fn finish(&mut self, which: usize) {
        let (at, route) = self.open.swap_remove(which);
        self.rigs[at].finish(route.ticket);
        self.drain(at);
    }

    fn finish_all(&mut self) {
        while !self.open.is_empty() {
            self.finish(0);
        }
    }

    fn backend(&self, at: usize, port: u16) -> BackendId {
        let name = BackendName::of(&spec(0, port).address);
        let mut backends = self.rigs[at].engine.fleet.backends().iter();
        backends.find(|one| one.shared.name == name).expect("it was discovered").id
    }

    /// A client had the cache of a backend cleared.
    fn clear(&mut self, at: usize, port: u16) {
        self.change(at, port, Change::Cache);
    }

    /// A client had a backend changed, by a request that passed there.
    fn change(&mut self, at: usize, port: u16, change: Change) {
        let echo = Echo { backend: self.backend(at, port), result: Ok(Some(change)) };
        let now = self.rigs[at].now;
        self.rigs[at].engine.heard(&[echo], None, now);
        self.drain(at);
    }

    /// An operator of a proxy orders something of a backend.
    fn order(&mut self, at: usize, port: u16, act: Act) {
        let backend = Some(spec(0, port).address.to_string());
        let narrow = Narrow { backend, model: None };
        let rig = &mut self.rigs[at];
        let order = RequestMeta { who: Who::Acts(act), narrow: Some(&narrow), ..request(rig.now) };
        assert_eq!(answered(rig.ask(&order)).0, 200);
        self.drain(at);
    }

    /// Whether a proxy gives a backend nothing new.
    fn is_drained(&self, at: usize, port: u16) -> bool {
        let backend = self.rigs[at].engine.fleet.backend(self.backend(at, port));
        backend.expect("it was discovered").drain.is_on()
    }

    /// A backend answered with a stored response of this id.
    fn own(&mut self, at: usize, port: u16, response: &str) {
        let backend = self.backend(at, port);
        let now = self.rigs[at].now;
        self.rigs[at].engine.owns(backend, response, now);
        self.drain(at);
    }

    /// Who would be asked for it, if anybody is known to keep it.
    fn owner(&self, at: usize, response: &str) -> Option<u16> {
        let fleet = &self.rigs[at].engine.fleet;
        let owner = fleet.owners.find(response, self.rigs[at].now)?;
        match fleet.backend(owner)?.spec.address {
            Address::Tcp(address) => Some(address.port()),
            Address::Unix(_) => unreachable!("all have ports"),
        }
    }

    fn standing(&mut self, at: usize, port: u16) -> Standing {
        let id = self.backend(at, port);
        let now = self.rigs[at].now;
        self.rigs[at].engine.fleet.backend_mut(id).expect("it is there").load.standing(now)
    }

    fn in_flight(&mut self, at: usize) -> u32 {
        (0..BACKENDS).map(|port| self.standing(at, port).in_flight).sum()
    }

    fn hashes(&self) -> Vec<u64> {
        self.rigs.iter().map(|rig| rig.engine.shared_hash()).collect()
    }

    #[track_caller]
    fn agree(&self, why: &str) {
        let hashes = self.hashes();
        assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{why}: {hashes:x?}");
    }

    /// One event, drawn by chance.
    fn step(&mut self, rng: &mut Rng) {
        let below = |rng: &mut Rng, bound: usize| rng.below(bound as u64) as usize;
        match rng.below(20) {
            0..8 => {
                let at = below(rng, self.rigs.len());
                let mut chunks = prompt(rng.below(6), 1 + rng.below(8));
                chunks.extend(prompt(100 + rng.below(40), rng.below(7)));
                let stream = rng.below(4) > 0;
                self.send(at, &chunks, stream);
            }
            8..12 if !self.open.is_empty() => {
                let which = below(rng, self.open.len());
                self.first_byte(which);
            }
            12..16 if !self.open.is_empty() => {
                let which = below(rng, self.open.len());
                self.finish(which);
            }
            16 if rng.below(4) == 0 => {
                let at = below(rng, self.rigs.len());
                self.clear(at, rng.below(BACKENDS.into()) as u16);
            }
            18 if rng.below(4) == 0 => {
                let at = below(rng, self.rigs.len());
                let change = [Change::Rest, Change::Adapters][below(rng, 2)];
                self.change(at, rng.below(BACKENDS.into()) as u16, change);
            }
            17 => {
                let at = below(rng, self.rigs.len());
                // Most are made once; that two backends know one id is next to impossible.
                let response = format!("resp_{}", rng.below(30));
                self.own(at, rng.below(BACKENDS.into()) as u16, &response);
            }
            18 if rng.below(3) == 0 => {
                let at = below(rng, self.rigs.len());
                // One is left to take requests, whatever is ordered where.
                let port = 1 + rng.below(u64::from(BACKENDS) - 1) as u16;
                self.order(at, port, [Act::Drain, Act::Undrain][below(rng, 2)]);
            }
            19 if rng.below(12) == 0 => {
                let at = below(rng, self.rigs.len());
                self.restart(at, rng.below(BACKENDS.into()) as u16);
            }
            _ => self.sleep(rng.below(150)),
        }
    }

    /// Pages of what one knows, heard by another.
    fn snapshot(&mut self, from: usize, to: usize) {
        let mut page = Some(Page::FIRST);
        while let Some(at) = page {
            let (update, next) = self.rigs[from].engine.snapshot(at).expect("it shares");
            let chunks = update.about.iter().flat_map(|about| &about.placed);
            assert!(chunks.map(|placed| placed.chunks.len()).sum::<usize>() <= 256);
            let owned = update.about.iter().map(|about| about.owned.len());
            assert!(owned.sum::<usize>() <= 256);
            self.hear(to, &update);
            page = next;
        }
    }
}

impl Drop for Net {
    /// A failed test is told by its own words, not by those of open tickets.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.open.drain(..).for_each(|(_, route)| {
                route.ticket.redeem();
            });
        }
    }
}

/// What somebody who heard all of this would know, by the words of the specification.
#[derive(Default)]
struct Naive {
    in_hand: BTreeMap<(ProxyId, BackendName), (u64, InHand)>,
    counters: BTreeMap<(ProxyId, BackendName), u64>,
    generations: BTreeMap<BackendName, u32>,
    chunks: BTreeMap<(BackendName, u32, u64), u32>,
    changes: BTreeMap<BackendName, u32>,
    drains: BTreeMap<BackendName, u64>,
    owners: BTreeMap<u64, (u32, BackendName)>,
}

impl Naive {
    fn hear(&mut self, update: &Update) {
        for about in &update.about {
            let key = (update.proxy, about.backend);
            if let Some(in_hand) = about.in_hand {
                let known = self.in_hand.entry(key).or_default();
                if known.0 < update.number {
                    *known = (update.number, in_hand);
                }
            }
            let counter = self.counters.entry(key).or_default();
            *counter = about.inserted_tokens.max(*counter);
            let generation = self.generations.entry(about.backend).or_default();
            *generation = about.generation.max(*generation);
            let changes = self.changes.entry(about.backend).or_default();
            *changes = about.changes.max(*changes);
            let drains = self.drains.entry(about.backend).or_default();
            *drains = about.drains.max(*drains);
            for owned in &about.owned {
                let word = (owned.moves, about.backend);
                let known = self.owners.entry(owned.response).or_insert(word);
                *known = word.max(*known);
            }
            for Placed { stamp, chunks } in &about.placed {
                for &chunk in chunks {
                    let key = (about.backend, about.generation, chunk);
                    let known = self.chunks.entry(key).or_default();
                    *known = (*stamp).max(*known);
                }
            }
        }
    }

    fn standing(&self, backend: BackendName) -> [i64; 3] {
        let here = self.in_hand.iter().filter(|((_, name), _)| *name == backend);
        here.fold([0; 3], |sum, (_, (_, one))| {
            [sum[0] + i64::from(one.in_flight), sum[1] + one.queued, sum[2] + one.resident]
        })
    }

    fn chunks(&self, backend: BackendName) -> Vec<(u64, u32)> {
        let generation = self.generations[&backend];
        let here =
            self.chunks.iter().filter(|((name, at, _), _)| *name == backend && *at == generation);
        here.map(|((_, _, chunk), stamp)| (*chunk, *stamp)).collect()
    }
}

/// Traffic at three proxies whose words come late, out of order and twice; then all of them arrive.
fn play(seed: u64) -> Net {
    let mut net = Net::new(3);
    let mut rng = Rng::new(seed);
    for _ in 0..400 {
        net.step(&mut rng);
        while rng.below(4) < 3 && !net.way.is_empty() {
            let which = rng.below(net.way.len() as u64) as usize;
            let (at, update) = net.way[which].clone();
            net.hear(at, &update);
            if rng.below(3) > 0 {
                net.way.swap_remove(which);
            }
        }
    }
    settle(&mut net, &mut rng);
    net
}

/// A beat, and all arrives.
fn settle(net: &mut Net, rng: &mut Rng) {
    net.sleep(SECOND);
    while !net.way.is_empty() {
        let which = rng.below(net.way.len() as u64) as usize;
        let (at, update) = net.way.swap_remove(which);
        net.hear(at, &update);
    }
}

#[test]
fn any_order_and_doubles_end_in_the_same_state() {
    for seed in 0..12 {
        let mut net = play(seed);
        net.agree("after all was heard");
        let before = net.hashes();
        // Whoever hears all of it backwards, once all is over, knows the same.
        let log = net.log.clone();
        let late = net.join(7);
        net.way.clear();
        for update in log.iter().rev() {
            net.hear(late, update);
        }
        net.agree("backwards");
        for at in 0..net.rigs.len() {
            for update in &log {
                net.hear(at, update);
            }
        }
        assert_eq!(net.hashes()[..3], before, "all of it once more is no news, seed {seed}");
        net.finish_all();
    }
}

#[test]
fn what_is_known_is_what_a_naive_model_knows() {
    for seed in 20..26 {
        let mut net = Net::new(3);
        let listener = net.join(1);
        let mut rng = Rng::new(seed);
        let proxies = net.rigs.split_off(listener);
        for _ in 0..300 {
            net.step(&mut rng);
        }
        settle(&mut net, &mut rng);
        net.rigs.extend(proxies);
        net.rigs[listener].now = net.rigs[0].now;
        let mut model = Naive::default();
        let mut log = net.log.clone();
        while !log.is_empty() {
            let update = log.swap_remove(rng.below(log.len() as u64) as usize);
            model.hear(&update);
            net.hear(listener, &update);
        }
        let mut facts: Vec<Fact> = Vec::new();
        let mut next = Some(0);
        let index = net.rigs[listener].engine.fleet.index.as_ref().expect("it is cache-aware");
        while let Some(from) = next {
            next = index.facts(from, &mut facts);
        }
        facts.sort_unstable();
        facts.dedup();
        for backend in net.rigs[listener].engine.fleet.backends() {
            let name = backend.shared.name;
            let others = &backend.load.others;
            let sums = [i64::from(others.in_flight()), others.queued(), others.resident()];
            assert_eq!(sums, model.standing(name), "seed {seed}");
            assert_eq!(backend.shared.generation(), model.generations[&name]);
            assert_eq!(backend.shared.changes(), model.changes[&name]);
            assert_eq!(backend.drain.changes(), model.drains[&name]);
            assert_eq!(backend.drain.is_on(), model.drains[&name] % 2 == 1);
            let here = facts.iter().filter(|fact| fact.backend == backend.id);
            let here: Vec<_> = here.map(|fact| (fact.chunk, fact.stamp)).collect();
            assert_eq!(here, model.chunks(name), "seed {seed}");
            let counters = model.counters.iter().filter(|((_, at), _)| *at == name);
            let counted: u64 = counters.map(|(_, tokens)| tokens).sum();
            assert_eq!(index.clock(backend.id), counted, "seed {seed}");
        }
        let fleet = &net.rigs[listener].engine.fleet;
        let name = |id| fleet.backend(id).expect("it stays").shared.name;
        let owners = fleet.owners.from(0, net.rigs[listener].now);
        let owners = owners.map(|(response, owner)| (response, (owner.moves, name(owner.backend))));
        assert_eq!(owners.collect::<BTreeMap<_, _>>(), model.owners, "seed {seed}");
        assert!(model.drains.values().any(|&drains| drains > 0), "seed {seed}");
        assert!(model.owners.len() > 3 && model.changes.values().any(|&changes| changes > 0));
        assert!(facts.len() > 50, "{}", facts.len());
        net.finish_all();
    }
}

#[test]
fn what_was_lost_is_repaired_by_a_beat_and_snapshots() {
    for seed in 40..48 {
        let mut net = Net::new(3);
        let mut rng = Rng::new(seed);
        for _ in 0..300 {
            net.step(&mut rng);
            let lost = rng.below(3) == 0;
            if lost {
                net.way.clear();
            }
            net.arrive();
        }
        let hashes = net.hashes();
        assert!(hashes[0] != hashes[1] && hashes[1] != hashes[2], "much was lost");
        assert!(net.rigs.iter().any(|rig| rig.engine.company().missed > 10));
        // Loads need no more than a beat.
        settle(&mut net, &mut rng);
        let in_flight = net.open.len() as u32;
        assert_eq!([0, 1, 2].map(|at| net.in_flight(at)), [in_flight; 3]);
        for (from, to) in [(0, 1), (2, 1), (1, 0), (1, 2)] {
            net.snapshot(from, to);
        }
        net.agree("repaired");
        net.finish_all();
    }
}

#[test]
fn a_newcomer_chooses_as_all_others_do() {
    let mut net = play(60);
    net.finish_all();
    let late = net.join(3);
    assert_eq!(net.rigs[late].engine.company(), Company::default());
    net.snapshot(1, late);
    assert_eq!(net.rigs[late].engine.company().alive, 0, "a snapshot is no sign of life");
    settle(&mut net, &mut Rng::new(2));
    assert_eq!(net.rigs[late].engine.company(), Company { alive: 3, ..Company::default() });
    net.agree("with the newcomer");
    for number in 0..6 {
        let asked = prompt(number, 8);
        let chosen = [0, 1, late].map(|at| {
            let port = net.send(at, &asked, true);
            net.finish_all();
            net.arrive();
            port
        });
        assert_eq!(chosen, [chosen[0]; 3], "{number}");
    }
}

/// With nothing lost and no delay any number of proxies decides as one would.
#[rstest]
fn many_proxies_at_no_distance_are_as_one(#[values(2, 3, 7)] proxies: usize) {
    for seed in 0..6 {
        let mut many = Net::new(proxies);
        many.arrive();
        let mut one = Net::new(1);
        let mut rng = Rng::new(seed);
        let mut decisions = 0;
        for step in 0..1_500 {
            // No two requests come at the same moment.
            one.sleep(1);
            many.sleep(1);
            many.arrive();
            let draw = rng.below(20);
            let which = rng.below(one.open.len().max(1) as u64) as usize;
            match draw {
                0..8 => {
                    let at = rng.below(proxies as u64) as usize;
                    let mut chunks = prompt(rng.below(6), 1 + rng.below(8));
                    chunks.extend(prompt(100 + rng.below(300), rng.below(7)));
                    let expected = one.send(0, &chunks, true);
                    let chosen = many.send(at, &chunks, true);
                    assert_eq!(chosen, expected, "seed {seed}, step {step}");
                    decisions += 1;
                }
                8..12 if !one.open.is_empty() => {
                    one.first_byte(which);
                    many.first_byte(which);
                }
                12..17 if !one.open.is_empty() => {
                    one.finish(which);
                    many.finish(which);
                }
                _ => {
                    let millis = 1 + rng.below(150);
                    one.sleep(millis);
                    many.sleep(millis);
                }
            }
            many.arrive();
            for port in 0..BACKENDS {
                assert_eq!(many.standing(0, port), one.standing(0, port), "seed {seed}, {step}");
            }
        }
        assert!(decisions > 400);
        one.finish_all();
        many.finish_all();
    }
}

#[test]
fn the_end_of_a_request_may_be_heard_before_its_beginning() {
    let mut net = Net::new(2);
    net.arrive();
    let port = net.send(0, &prompt(1, 4), true);
    net.first_byte(0);
    net.finish(0);
    assert_eq!(net.way.len(), 3);
    while let Some((at, update)) = net.way.pop() {
        net.hear(at, &update);
        assert_eq!(net.standing(1, port), Standing::default());
    }
    net.agree("all was heard");
}

#[test]
fn what_happens_between_two_questions_is_told_at_once() {
    let mut rig = Rig::new(Config {
        policy: Policy::CacheAware,
        upstreams: 1,
        index_memory: 1 << 20,
        proxy: Some(1),
        ..Config::default()
    });
    rig.discover(&[0]);
    rig.up(0, &["m"]);
    let update = rig.engine.poll_update().expect("it lives");
    assert_eq!((update.number, rig.engine.poll_update()), (1, None));
    let mut routes = Vec::new();
    for number in 0..3 {
        let prompt = Fingerprint::of_chunks((0..300).map(|at| number << 32 | at).collect(), 9_999);
        let meta = RequestMeta { model: Some("m"), prompt: &prompt, ..request(rig.now) };
        routes.push(forwarded(rig.ask(&meta)));
    }
    let told: Vec<_> = core::iter::from_fn(|| rig.engine.poll_update()).collect();
    let counts = |update: &Update| {
        let about = &update.about[0];
        let chunks: usize = about.placed.iter().map(|placed| placed.chunks.len()).sum();
        (update.number, about.in_hand.map(|in_hand| in_hand.in_flight), chunks)
    };
    let marks = told.iter().map(|update| counts(update).2).sum::<usize>();
    assert_eq!(counts(&told[0]), (2, Some(3), marks.min(512)));
    assert_eq!(told.len(), marks.div_ceil(512));
    assert!(marks > 100 && !rig.engine.has_update(), "{marks}");
    routes.into_iter().for_each(|route| rig.finish(route.ticket));
}

#[test]
fn a_response_that_one_saw_made_is_found_by_all() {
    let mut net = Net::new(3);
    net.arrive();
    net.own(0, 2, "resp_1");
    // Where the way is lost, so is the word.
    net.way.retain(|(at, _)| *at != 2);
    net.arrive();
    assert_eq!([0, 1, 2].map(|at| net.owner(at, "resp_1")), [Some(2), Some(2), None]);
    let before = net.log.len();
    net.own(1, 2, "resp_1");
    assert_eq!(net.log.len(), before, "that is known to all");
    let now = net.rigs[1].now;
    let asked = RequestMeta { who: Who::Owner, response: Some("resp_1"), ..request(now) };
    let route = forwarded(net.rigs[1].ask(&asked));
    assert_eq!((port(&route), route.reason), (2, Reason::Owner));
    net.open.push((1, route));
    net.finish_all();
    net.arrive();
    assert!(net.hashes()[0] == net.hashes()[1] && net.hashes()[0] != net.hashes()[2]);
    net.snapshot(1, 2);
    assert_eq!(net.owner(2, "resp_1"), Some(2));
    net.agree("repaired");
    // What was heard grows old as what was seen does.
    net.sleep(24 * 3_600 * SECOND);
    net.arrive();
    assert_eq!(net.owner(2, "resp_1"), Some(2));
    net.sleep(SECOND);
    net.arrive();
    assert_eq!([0, 1, 2].map(|at| net.owner(at, "resp_1")), [None; 3]);
    net.agree("forgotten");
}

#[test]
fn responses_wait_to_be_told_and_the_oldest_go() {
    let mut net = Net::new(2);
    net.arrive();
    let (backend, now) = (net.backend(0, 1), net.rigs[0].now);
    for number in 0..5_000 {
        net.rigs[0].engine.owns(backend, &format!("resp_{number}"), now);
    }
    let before = net.log.len();
    net.drain(0);
    let told = net.log[before..].iter().map(|update| update.about[0].owned.len());
    assert_eq!(told.collect::<Vec<_>>(), [256; 16]);
    assert_eq!(net.rigs[0].engine.company().dropped, 5_000 - 4_096);
    net.arrive();
    assert_eq!(net.owner(1, "resp_0"), None);
    assert_eq!(net.owner(1, "resp_904"), Some(1));
    net.snapshot(0, 1);
    assert_eq!(net.owner(1, "resp_0"), Some(1));
    net.agree("told by a snapshot");
}

#[test]
fn who_is_silent_for_three_seconds_is_gone_and_nothing_else() {
    let mut net = Net::new(3);
    net.arrive();
    for number in 0..6 {
        net.send(number % 3, &prompt(number as u64, 6), true);
        net.arrive();
    }
    let mine = net.in_flight(1);
    assert_eq!(mine, 6);
    let held = net.rigs[1].engine.fleet.index.as_ref().map(PrefixIndex::len);
    // The first proxy ends without a word, and one of its words is late.
    net.send(0, &prompt(9, 6), true);
    let late = net.way.pop().expect("it was told").1;
    net.way.clear();
    for millis in [1_000, 1_000, 999, 1] {
        net.sleep(millis);
        net.way.retain(|(_, update)| update.proxy != ProxyId(100));
        net.arrive();
        let gone = net.rigs[1].now.since(Instant::from_millis(10_000)).as_secs() >= 3;
        assert_eq!(net.in_flight(1), if gone { 4 } else { 6 });
        assert_eq!(net.rigs[1].engine.company().alive, if gone { 1 } else { 2 });
    }
    assert_eq!(net.rigs[1].engine.fleet.index.as_ref().map(PrefixIndex::len), held);
    // What it said before brings nothing back; what it says later does.
    let old = net.log.iter().filter(|update| update.proxy == ProxyId(100)).cloned();
    let old: Vec<_> = old.filter(|update| update.number < late.number).collect();
    for update in &old {
        net.hear(1, update);
    }
    assert_eq!(net.in_flight(1), 4);
    net.hear(1, &late);
    net.sleep(1_000);
    net.arrive();
    assert_eq!((net.in_flight(1), net.rigs[1].engine.company().alive), (7, 2));
    net.finish_all();
}

#[test]
fn a_loss_that_two_proxies_see_is_one() {
    let mut net = Net::new(2);
    net.arrive();
    let port = net.send(0, &prompt(1, 6), true);
    net.finish_all();
    net.arrive();
    let restart = |net: &mut Net, at: usize| net.restart(at, port);
    let generation = |net: &Net, at: usize| {
        let backend = net.rigs[at].engine.fleet.backend(net.backend(at, port));
        backend.expect("it is there").shared.generation()
    };
    restart(&mut net, 0);
    net.arrive();
    assert_eq!([generation(&net, 0), generation(&net, 1)], [1, 1]);
    net.agree("the other forgot it, too");
    let held = |net: &Net, at: usize| {
        let id = net.backend(at, port);
        let mut facts = Vec::new();
        net.rigs[at].engine.fleet.index.as_ref().map(|index| index.facts(0, &mut facts));
        facts.iter().filter(|fact| fact.backend == id).count()
    };
    assert_eq!(held(&net, 1), 0);
    // What is placed from now on is kept when the other sees the same by itself.
    while held(&net, 0) == 0 {
        let number = net.log.len() as u64;
        net.send(0, &prompt(100 + number, 6), true);
        net.arrive();
    }
    net.sleep(6_000);
    restart(&mut net, 1);
    net.arrive();
    assert_eq!([generation(&net, 0), generation(&net, 1)], [1, 1]);
    assert!(held(&net, 0) > 0 && held(&net, 1) > 0);
    // Seen at the same time by both it is one as well, and the next one is another.
    net.sleep(60_000);
    net.arrive();
    for expected in [2, 3] {
        restart(&mut net, 0);
        restart(&mut net, 1);
        net.arrive();
        assert_eq!([generation(&net, 0), generation(&net, 1)], [expected; 2]);
        net.agree("both forgot it");
        net.sleep(60_000);
        net.arrive();
    }
    net.finish_all();
}

/// Whom a proxy wants asked how he is.
fn probes(net: &mut Net, at: usize) -> Vec<BackendId> {
    let outputs = net.rigs[at].outputs().into_iter();
    let probes = outputs.filter_map(|output| match output {
        Output::Probe(backend) => Some(backend),
        Output::Forget(_) | Output::Load(..) => None,
    });
    probes.collect()
}

#[test]
fn a_backend_that_one_had_sleep_is_asked_by_all_and_left_alone() {
    let mut net = Net::new(3);
    net.arrive();
    net.sleep(SECOND);
    net.arrive();
    net.change(0, 2, Change::Rest);
    net.way.truncate(1);
    let (to, word) = net.way.pop().expect("it is told");
    assert_eq!(to, 1);
    for twice in [false, true] {
        let now = net.rigs[1].now;
        net.rigs[1].engine.handle(Input::Heard(&word), now);
        let asked = net.backend(1, 2);
        let expected = if twice { Vec::new() } else { Vec::from([asked]) };
        assert_eq!(probes(&mut net, 1), expected);
    }
    let id = net.backend(1, 2);
    assert!(net.rigs[1].engine.asks_rest(id));
    let asleep = Probe { rests: Some(true), ..healthy(&["m"]) };
    net.tell(1, Input::Probed(id, Ok(asleep)));
    for number in 0..20 {
        assert_ne!(net.send(1, &prompt(number, 6), true), 2, "{number}");
    }
    net.finish_all();
    // Who missed the word hears it by the next one about that backend.
    net.way.clear();
    let id = net.backend(2, 2);
    assert!(!net.rigs[2].engine.asks_rest(id));
    net.sleep(SECOND);
    net.arrive();
    assert!(net.rigs[2].engine.asks_rest(id));
    let changes = |net: &Net, at: usize| {
        let backend = net.rigs[at].engine.fleet.backend(net.backend(at, 2));
        backend.map(|backend| backend.shared.changes())
    };
    assert_eq!([0, 1, 2].map(|at| changes(&net, at)), [Some(1); 3]);
}

#[test]
fn whom_one_drains_all_leave_alone() {
    let mut net = Net::new(3);
    net.arrive();
    let before = net.send(1, &prompt(0, 6), true);
    net.arrive();
    net.order(0, before, Act::Drain);
    assert!(!net.way.is_empty(), "it is told at once");
    net.arrive();
    assert_eq!([0, 1, 2].map(|at| net.is_drained(at, before)), [true; 3]);
    for number in 0..20 {
        for at in 0..3 {
            assert_ne!(net.send(at, &prompt(number, 6), true), before, "{number}");
        }
    }
    net.order(2, before, Act::Undrain);
    net.arrive();
    assert_eq!([0, 1, 2].map(|at| net.is_drained(at, before)), [false; 3]);
    net.agree("that is all the same again");
    assert_eq!(net.send(0, &prompt(0, 6), true), before, "it has the prompt still");
    net.finish_all();
}

#[test]
fn orders_that_are_lost_or_cross_end_alike() {
    let mut net = Net::new(3);
    net.arrive();
    // Lost, and told again with the next beat.
    net.order(0, 1, Act::Drain);
    net.way.clear();
    net.sleep(SECOND);
    net.arrive();
    assert_eq!([0, 1, 2].map(|at| net.is_drained(at, 1)), [true; 3]);
    // Two of one kind are one; of two kinds at one proxy the last one counts.
    net.order(0, 2, Act::Drain);
    net.order(1, 2, Act::Drain);
    net.order(2, 1, Act::Drain);
    net.order(2, 1, Act::Undrain);
    net.order(0, 1, Act::Drain);
    net.way.reverse();
    net.arrive();
    assert_eq!([0, 1, 2].map(|at| net.is_drained(at, 2)), [true; 3]);
    assert_eq!([0, 1, 2].map(|at| net.is_drained(at, 1)), [false; 3]);
    net.agree("after orders that crossed");
}

#[test]
fn who_starts_knows_who_is_drained() {
    let mut net = Net::new(2);
    net.arrive();
    net.order(0, 3, Act::Drain);
    net.arrive();
    // By the snapshot of one to whom it was told.
    let late = net.join(2);
    net.way.clear();
    assert!(!net.is_drained(late, 3));
    net.snapshot(1, late);
    assert!(net.is_drained(late, 3));
    // By what was kept, with nobody there. What was kept before an undrain takes nothing back.
    let name = BackendName::of(&spec(0, 3).address);
    let kept = |net: &Net, at: usize| {
        let about = net.rigs[at].engine.stand(name).expect("it is known");
        Update { proxy: ProxyId(100), number: 0, about: Vec::from([about]), lengths: Vec::new() }
    };
    let drains = |net: &Net| net.rigs[1].engine.drains().collect::<Vec<_>>();
    let drained = kept(&net, 1);
    assert_eq!(drains(&net), [(name, 1)]);
    net.order(1, 3, Act::Undrain);
    assert_eq!(drains(&net), [(name, 2)]);
    let undrained = kept(&net, 1);
    let late = net.join(1);
    net.hear(late, &undrained);
    net.hear(late, &drained);
    assert!(!net.is_drained(late, 3));
    net.order(1, 3, Act::Drain);
    let last = kept(&net, 1);
    net.hear(late, &last);
    assert!(net.is_drained(late, 3));
}

#[test]
fn adapters_that_one_had_loaded_are_listed_by_all() {
    let mut net = Net::new(2);
    net.arrive();
    net.sleep(SECOND);
    net.arrive();
    net.change(0, 4, Change::Adapters);
    let (_, word) = net.way.pop().expect("it is told");
    let now = net.rigs[1].now;
    net.rigs[1].engine.handle(Input::Heard(&word), now);
    let id = net.backend(1, 4);
    assert_eq!(probes(&mut net, 1), [id]);
    assert!(net.rigs[1].engine.fleet.any_list_is_old());
    net.tell(1, Input::Probed(id, Ok(healthy(&["m", "adapter"]))));
    assert!(!net.rigs[1].engine.fleet.any_list_is_old());
    assert_eq!(net.rigs[1].engine.fleet.holders("adapter"), [id]);
}

#[test]
fn nobody_is_told_anything_by_one_that_does_not_share() {
    let mut alone = Rig::serving(2, &["m"]);
    let route = alone.forward("m");
    assert_eq!((alone.outputs(), alone.engine.poll_update()), (Vec::new(), None));
    let in_hand = InHand { in_flight: 50, queued: 9_000_000, ..InHand::default() };
    let backend = BackendName::of(&route.spec.address);
    let about = Vec::from([About { in_hand: Some(in_hand), ..About::of(backend, 7) }]);
    let update = Update { proxy: ProxyId(1), number: 1, about, lengths: Vec::new() };
    assert_eq!(alone.handle(Input::Heard(&update)), []);
    assert_eq!((alone.engine.company(), alone.engine.shared_hash()), (Company::default(), 0));
    assert!(alone.engine.snapshot(Page::FIRST).is_none());
    alone.finish(route.ticket);
}

#[test]
fn nobody_hears_itself() {
    let mut net = Net::new(1);
    let port = net.send(0, &prompt(1, 6), true);
    for update in net.log.clone() {
        net.hear(0, &update);
    }
    assert_eq!((net.standing(0, port).in_flight, net.rigs[0].engine.company().alive), (1, 0));
    net.finish_all();
}

#[test]
fn a_backend_that_is_not_known_is_not_introduced() {
    let mut net = Net::new(2);
    net.arrive();
    let specs: Vec<_> = (0..BACKENDS + 1).map(|port| spec(0, port)).collect();
    net.tell(0, Input::Discovered(&specs));
    let new = BackendId(BACKENDS.into());
    net.tell(0, Input::Probed(new, Ok(healthy(&["m"]))));
    for number in 0..12 {
        net.send(0, &prompt(number, 6), true);
        net.arrive();
    }
    assert_eq!(net.rigs[1].engine.fleet.backends().len(), usize::from(BACKENDS));
    let there = net.standing(0, BACKENDS).in_flight;
    assert!(there > 0);
    assert_eq!(net.in_flight(1), 12 - there);
    // Once it is known, a beat tells what is in hand there.
    net.tell(1, Input::Discovered(&specs));
    net.sleep(SECOND);
    net.arrive();
    assert_eq!(net.standing(1, BACKENDS).in_flight, there);
    net.finish_all();
}

#[test]
fn who_left_is_told_of_until_nothing_is_in_hand() {
    let mut net = Net::new(2);
    net.arrive();
    let port = net.send(0, &prompt(1, 6), true);
    net.arrive();
    let specs: Vec<_> = (0..BACKENDS).filter(|&one| one != port).map(|at| spec(0, at)).collect();
    net.tell(0, Input::Discovered(&specs));
    net.arrive();
    assert_eq!(net.standing(1, port).in_flight, 1);
    net.finish_all();
    net.arrive();
    assert_eq!(net.standing(1, port).in_flight, 0);
    assert_eq!(net.rigs[0].engine.fleet.backends().len(), specs.len());
}

/// What other processes say is not to be trusted with more than a worse choice.
#[test]
fn no_word_does_harm() {
    let mut net = Net::new(1);
    net.send(0, &prompt(1, 6), true);
    let mut rng = Rng::new(5);
    let names = net.log[0].about.iter().map(|about| about.backend).collect::<Vec<_>>();
    for _ in 0..3_000 {
        let mut any = || match rng.below(4) {
            0 => 0,
            1 => u64::MAX - rng.below(3),
            2 => 1 << 63,
            _ => rng.below(100),
        };
        let age = |any: u64| Duration::from_micros(any);
        let uncached = any().cast_signed();
        let in_hand = InHand {
            in_flight: any() as u32,
            queued: any().cast_signed(),
            resident: any().cast_signed(),
            head: Some(crate::fleet::Head { age: age(any()), uncached }),
            first_token_age: Some(age(any())),
        };
        let clock = Clock {
            counters: Vec::from([(ProxyId(any()), any()), (ProxyId(any()), any())]),
            inserted_tokens: any(),
            fresh_tokens: any(),
        };
        let about = About {
            backend: names[any() as usize % names.len()],
            generation: any() as u32,
            changes: any() as u32,
            // Were all drained, which whoever writes there can say, there were nothing to see.
            drains: any() & !1,
            in_hand: Some(in_hand),
            inserted_tokens: any(),
            placed: Vec::from([Placed { stamp: any() as u32, chunks: Vec::from([any(), any()]) }]),
            clock: Some(clock),
            lessons: Vec::from([
                Lesson::Pace { work: any().cast_signed(), time: age(any()) },
                Lesson::Cached {
                    promised_tokens: any(),
                    cached_tokens: any(),
                    chunk_tokens: any() as u32,
                    had_more: any() % 2 == 0,
                },
            ]),
            owned: Vec::from([crate::fleet::Owned {
                response: any(),
                moves: any() as u32,
                age: age(any()),
            }]),
            learned: crate::fleet::Learned {
                pace: Average { samples: any() as u32, value: any() },
                trust: Average { samples: any() as u32, value: any() },
                capacity: Some(crate::fleet::Capacity {
                    samples: any() as u32,
                    start: any(),
                    milli: any(),
                }),
                token_lengths: Vec::from([(
                    Arc::from("m"),
                    Average { samples: any() as u32, value: any() },
                )]),
            },
        };
        let length = PromptLength { model: Arc::from("m"), bytes: any(), tokens: any() };
        let lengths = Vec::from([length]);
        let about = Vec::from([about]);
        let update = Update { proxy: ProxyId(any()), number: any(), about, lengths };
        // Not as bytes: less of this could be said in them.
        net.tell(0, Input::Heard(&update));
        net.send(0, &prompt(2, 3), true);
        net.finish(1);
        net.sleep(300);
    }
    net.sleep(10_000);
    assert_eq!(net.rigs[0].engine.company().alive, 0);
    let id = net.open[0].1.backend;
    let now = net.rigs[0].now;
    let backend = net.rigs[0].engine.fleet.backend_mut(id).expect("it is there");
    assert_eq!(backend.load.standing(now).in_flight, 1, "nothing of it stays");
    net.finish_all();
}

/// What is counted for ever leaves room to count on, whatever anybody says.
#[rstest]
#[case::losses(|about: &mut About, _: &mut u64| about.generation = u32::MAX)]
#[case::changes(|about: &mut About, _: &mut u64| about.changes = u32::MAX)]
#[case::drains(|about: &mut About, _: &mut u64| about.drains = u64::MAX)]
#[case::insertions(|about: &mut About, _: &mut u64| about.inserted_tokens = u64::MAX)]
#[case::a_clock(|about: &mut About, _: &mut u64| {
    let clock = Clock { counters: Vec::new(), inserted_tokens: u64::MAX, fresh_tokens: u64::MAX };
    about.clock = Some(clock);
})]
#[case::a_counter(|about: &mut About, _: &mut u64| {
    let counters = Vec::from([(ProxyId(101), u64::MAX), (ProxyId(9), u64::MAX)]);
    about.clock = Some(Clock { counters, inserted_tokens: 0, fresh_tokens: 0 });
})]
#[case::words(|_: &mut About, number: &mut u64| *number = u64::MAX)]
#[case::stamps(|about: &mut About, _: &mut u64| {
    about.placed = Vec::from([Placed { stamp: 1 << 31, chunks: prompt(1, 6) }]);
})]
fn no_count_is_driven_to_its_end(#[case] lie: fn(&mut About, &mut u64)) {
    let mut net = Net::new(2);
    net.arrive();
    for number in 0..4 {
        net.send(1, &prompt(number, 6), true);
        net.arrive();
    }
    net.finish_all();
    net.arrive();
    net.agree("before the lies");
    let last = net.log.iter().rev().find(|update| update.proxy == ProxyId(101)).cloned();
    let last = last.expect("it told much");
    let backend = BackendName::of(&spec(0, 0).address);
    for number in [last.number + 1, 0] {
        let mut about = About::of(backend, 0);
        let mut number = number;
        lie(&mut about, &mut number);
        let told = Update { number, about: Vec::from([about]), ..last.clone() };
        net.hear(0, &told);
    }
    let missed = net.rigs[0].engine.company().missed;
    assert_eq!(missed, 0);
    // All that follows is heard and counts: placements, losses, and what is in hand.
    net.clear(1, 0);
    net.change(1, 0, Change::Rest);
    net.order(1, 0, Act::Drain);
    net.order(1, 0, Act::Undrain);
    for number in 10..20 {
        net.send(1, &prompt(number, 6), true);
        net.arrive();
    }
    net.agree("after the lies");
    assert_eq!(net.in_flight(0), 10);
    assert_eq!(net.rigs[0].engine.company().alive, 1);
    net.finish_all();
}

#[test]
fn more_proxies_than_there_are_places_are_no_harm() {
    let mut net = Net::new(1);
    let backend = net.log[0].about[0].backend;
    let update = |proxy: u64, number| {
        let in_hand = InHand { in_flight: 1, ..InHand::default() };
        let about = About { in_hand: Some(in_hand), inserted_tokens: 160, ..About::of(backend, 0) };
        Update { proxy: ProxyId(proxy), number, about: Vec::from([about]), lengths: Vec::new() }
    };
    for proxy in 1_000..1_100 {
        net.hear(0, &update(proxy, 1));
    }
    assert_eq!((net.in_flight(0), net.rigs[0].engine.company().alive), (62, 62));
    // Who died makes room, and the clock goes on from where it was.
    let clock = |net: &Net| {
        let engine = &net.rigs[0].engine;
        engine.fleet.index.as_ref().map(|index| index.clock(net.backend(0, 0)))
    };
    let before = clock(&net);
    net.sleep(4_000);
    assert_eq!(net.in_flight(0), 0);
    for proxy in 2_000..2_040 {
        net.hear(0, &update(proxy, 1));
    }
    assert_eq!((net.in_flight(0), net.rigs[0].engine.company().alive), (40, 40));
    assert_eq!(clock(&net), before.map(|tokens| tokens + 40 * 160));
    // A newcomer is told all of it.
    net.way.clear();
    let late = net.join(2);
    net.snapshot(0, late);
    assert_eq!(
        net.rigs[late].engine.fleet.index.as_ref().map(|index| index.clock(net.backend(late, 0))),
        clock(&net)
    );
}

#[test]
fn a_beat_comes_every_second_and_a_lease_ends_at_its_time() {
    let mut net = Net::new(2);
    net.arrive();
    let wake = |net: &Net| net.rigs[0].engine.share_timeout().expect("it shares");
    assert_eq!(wake(&net), Wake { at: net.rigs[0].now + Duration::from_secs(1), why: "beat" });
    for _ in 0..3 {
        let before = net.log.len();
        net.rigs[0].sleep(999);
        net.tell(0, Input::Timeout);
        assert_eq!(net.log.len(), before);
        net.rigs[0].sleep(1);
        net.tell(0, Input::Timeout);
        assert_eq!(net.log.len(), before + 1);
        let beat = &net.log[before];
        assert_eq!(beat.about.len(), usize::from(BACKENDS), "with all loads");
    }
    assert_eq!(net.rigs[0].engine.company().alive, 0);
}

#[test]
fn each_lesson_counts_once() {
    let mut net = Net::new(2);
    net.arrive();
    let asked = prompt(1, 40);
    let port = net.send(0, &asked, true);
    net.arrive();
    net.sleep(100);
    net.arrive();
    net.first_byte(0);
    let (_, route) = net.open.pop().expect("it was sent");
    let usage = crate::route::Usage { prompt: 4_000, cached: Some(2_000), completion: 7 };
    let now = net.rigs[0].now;
    let outcome = Outcome::Done { status: 200, usage: Some(usage) };
    net.rigs[0].engine.finish(route.ticket, outcome, now);
    net.drain(0);
    let told = net.way.clone();
    net.arrive();
    let pace = |net: &Net, at: usize| {
        let backend = net.rigs[at].engine.fleet.backend(net.backend(at, port));
        backend.expect("it is there").load.pace().nanos()
    };
    let length =
        |net: &Net, at: usize| net.rigs[at].engine.fleet.token_length("m").work_of(1 << 20);
    let learned = (pace(&net, 0), length(&net, 0));
    assert!(learned.0 != 125_000 && learned.1 != 262_144_000, "{learned:?}");
    assert_eq!((pace(&net, 1), length(&net, 1)), learned);
    for (at, update) in told {
        net.hear(at, &update);
    }
    assert_eq!((pace(&net, 1), length(&net, 1)), learned);
}

/// What a proxy has learned of a backend.
fn learned(net: &Net, at: usize, port: u16) -> crate::fleet::Learned {
    let fleet = &net.rigs[at].engine.fleet;
    fleet.learned(fleet.backend(net.backend(at, port)).expect("it is there"))
}

#[test]
fn who_starts_takes_over_what_was_learned() {
    let mut net = Net::new(2);
    net.arrive();
    let port = net.send(0, &prompt(1, 40), true);
    for (number, millis) in [(2, 700), (3, 20), (4, 300)] {
        net.sleep(millis);
        net.first_byte(0);
        let (_, route) = net.open.pop().expect("it was sent");
        let usage = crate::route::Usage { prompt: 3_000, cached: Some(0), completion: 7 };
        let now = net.rigs[0].now;
        let outcome = Outcome::Done { status: 200, usage: Some(usage) };
        net.rigs[0].engine.finish(route.ticket, outcome, now);
        // The same again is promised more than it gets.
        let mut again = prompt(1, 40);
        again.extend(prompt(number, 20));
        net.send(0, &again, true);
        assert_eq!(self::port(&net.open[0].1), port);
    }
    net.finish_all();
    net.arrive();
    let known = learned(&net, 0, port);
    let capacity = known.capacity.expect("it was learned of");
    let length = &known.token_lengths[0];
    assert!(known.pace.samples > 0 && known.trust.samples > 0, "{known:?}");
    assert!(capacity.samples > 0 && length.1.samples > 0 && known.trust.value < 1_000);
    assert_eq!(learned(&net, 1, port), known, "heard in the same order it is the same");
    let late = net.join(3);
    assert_eq!(learned(&net, late, port), crate::fleet::Learned::default());
    for _ in 0..2 {
        net.snapshot(1, late);
        assert_eq!(learned(&net, late, port), known);
    }
    // What is known better is kept, and of a loss on nobody knows better.
    net.snapshot(late, 0);
    assert_eq!(learned(&net, 0, port), known);
    net.clear(0, port);
    net.arrive();
    for at in [0, 1, late] {
        let after = learned(&net, at, port);
        assert_eq!((after.pace, after.trust, after.capacity), Default::default());
        assert_eq!(after.token_lengths, known.token_lengths);
    }
    net.agree("all know as much");
}

/// What each backend is believed to hold of a prompt, in tokens, by the backends' ports.
fn promised(net: &Net, at: usize, chunks: &[u64]) -> Vec<u64> {
    let fleet = &net.rigs[at].engine.fleet;
    let index = fleet.index.as_ref().expect("it is cache-aware");
    let mut matches = index.scratch();
    index.matches(chunks, &mut matches);
    let chunk = fleet.token_length("m").work_of(512) as u64;
    let at_port = |port| {
        let backend = fleet.backend(net.backend(at, port)).expect("it is there");
        let held = backend.slot.map_or(0, |slot| matches.at(slot) as u64) * chunk;
        backend.trust.discounted(held.cast_signed()).cast_unsigned()
    };
    (0..BACKENDS).map(at_port).collect()
}

/// What somebody might have kept of all that was said: what was placed, and how backends stood.
fn kept(net: &Net, teller: usize, said: &[Update]) -> Vec<Update> {
    let proxy = ProxyId(100 + teller as u64);
    let page = |about| Update { proxy, number: 0, about: Vec::from([about]), lengths: Vec::new() };
    let placed = said.iter().flat_map(|update| &update.about).map(|about| {
        let About { placed, owned, .. } = about.clone();
        page(About { placed, owned, ..About::of(about.backend, about.generation) })
    });
    let engine = &net.rigs[teller].engine;
    let stands = engine.names().map(|name| page(engine.stand(name).expect("it is known")));
    placed.chain(stands).collect()
}

#[test]
fn who_starts_with_nobody_there_reads_what_was_kept() {
    for seed in 80..88 {
        let mut net = Net::new(2);
        let mut rng = Rng::new(seed);
        let mut log = Vec::new();
        for part in 0..3 {
            let from = net.log.len();
            for _ in 0..120 {
                net.step(&mut rng);
                net.arrive();
            }
            // Of a model whose tokens are longer than was believed.
            let port = net.send(part % 2, &prompt(70 + part as u64, 30), true);
            net.sleep(500);
            let last = net.open.len() - 1;
            net.first_byte(last);
            let (at, route) = net.open.pop().expect("it was sent");
            let usage = crate::route::Usage { prompt: 2_000, cached: Some(0), completion: 9 };
            let now = net.rigs[at].now;
            let outcome = Outcome::Done { status: 200, usage: Some(usage) };
            net.rigs[at].engine.finish(route.ticket, outcome, now);
            net.drain(at);
            net.arrive();
            assert!(port < BACKENDS);
            log.extend(kept(&net, part % 2, &net.log[from..]));
        }
        let late = net.join(4);
        net.way.retain(|(_, update)| update.proxy == ProxyId(100 + late as u64));
        net.arrive();
        let mut twice: Vec<_> = log.iter().chain(&log).collect();
        while !twice.is_empty() {
            let update = twice.swap_remove(rng.below(twice.len() as u64) as usize);
            net.hear(late, update);
        }
        assert_eq!(net.rigs[late].engine.company().alive, 0, "nobody lives for that");
        let mut found = 0;
        for number in 0..6 {
            for length in [2, 8] {
                let asked = prompt(number, length);
                let all = promised(&net, 0, &asked);
                found += usize::from(all.iter().any(|tokens| *tokens > 0));
                assert_eq!(promised(&net, late, &asked), all, "seed {seed}, prompt {number}");
            }
        }
        assert!(found > 5, "{found}");
        // Whoever lives after all says no more than what is known.
        let clocks = |net: &Net, at: usize| {
            let index = net.rigs[at].engine.fleet.index.as_ref().expect("it is cache-aware");
            let clock = |port| index.clock(net.backend(at, port));
            (0..BACKENDS).map(clock).collect::<Vec<_>>()
        };
        assert_eq!(clocks(&net, late), clocks(&net, 0));
        settle(&mut net, &mut rng);
        assert_eq!(clocks(&net, late), clocks(&net, 0));
        net.agree("all know the same");
        for _ in 0..60 {
            net.step(&mut rng);
            net.arrive();
        }
        settle(&mut net, &mut rng);
        net.agree("and go on together");
        net.finish_all();
    }
}

#[rstest]
#[case::as_believed(None, 500_000 / 128)]
#[case::as_said(Some(80_000), 100_000 / 128)]
#[case::none(Some(0), 0)]
fn a_log_is_as_long_as_a_cache(#[case] kv_tokens: Option<u64>, #[case] chunks: u64) {
    let mut net = Net::new(1);
    let cache = CacheReport { kv_tokens, ..CacheReport::default() };
    let id = net.backend(0, 3);
    net.tell(0, Input::Probed(id, Ok(Probe { cache: Some(cache), ..healthy(&["m"]) })));
    let engine = &net.rigs[0].engine;
    let name = BackendName::of(&spec(0, 3).address);
    assert_eq!(engine.kept_chunks(name), Some(chunks));
    assert_eq!(engine.names().count(), usize::from(BACKENDS));
    assert!(engine.names().any(|known| known == name));
    let stranger = BackendName(1);
    assert_eq!((engine.kept_chunks(stranger), engine.stand(stranger)), (None, None));
    let alone = Rig::serving(2, &["m"]).engine;
    assert_eq!(
        (alone.names().count(), alone.kept_chunks(name), alone.stand(name)),
        (0, None, None)
    );
}

#[test]
fn without_an_index_the_rest_is_told_all_the_same() {
    let config = |proxy| Config { upstreams: 1, proxy: Some(proxy), ..Config::default() };
    let [mut one, mut other] = [1, 2].map(|proxy| {
        let mut rig = Rig::new(config(proxy));
        rig.discover(&[0, 0]);
        (0..2).for_each(|id| drop(rig.up(id, &["m"])));
        rig
    });
    one.engine.owns(BackendId(1), "resp_1", one.now);
    let echo = Echo { backend: BackendId(0), result: Ok(Some(Change::Rest)) };
    one.engine.heard(&[echo], None, one.now);
    let mut page = Some(Page::FIRST);
    while let Some(at) = page {
        let (update, next) = one.engine.snapshot(at).expect("it shares");
        other.handle(Input::Heard(&update));
        page = next;
    }
    assert!(other.engine.asks_rest(BackendId(0)) && !other.engine.asks_rest(BackendId(1)));
    assert_eq!(other.engine.fleet.owners.find("resp_1", other.now), Some(BackendId(1)));
    assert_eq!(one.engine.shared_hash(), other.engine.shared_hash());
    assert_eq!(one.engine.kept_chunks(BackendName::of(&spec(0, 0).address)), None);
}

/// Where each of two proxies sends prompts that are new to both.
fn agreed(net: &mut Net, from: u64) -> usize {
    let alike = |number: &u64| {
        let asked = prompt(1_000 + *number, 8);
        let ports = [0, 1].map(|at| net.send(at, &asked, true));
        net.finish_all();
        net.way.clear();
        ports[0] == ports[1]
    };
    (from..from + 40).filter(alike).count()
}

#[test]
fn proxies_that_cannot_hear_each_other_send_alike_prompts_to_one_backend() {
    let mut net = Net::new(2);
    net.arrive();
    let cut = |net: &mut Net, link| (0..2).for_each(|at| net.tell(at, Input::Link(link)));
    // Each has work of its own, of which the other does not know.
    for number in 0..4 {
        net.send(0, &prompt(number, 3), true);
    }
    net.way.clear();
    let held: Vec<_> = net.open.drain(..).collect();
    let apart = agreed(&mut net, 0);
    cut(&mut net, Link::Lost);
    let together = agreed(&mut net, 100);
    assert!(together > 30 && apart < 25, "{together} against {apart} of 40");
    cut(&mut net, Link::Whole);
    assert!(!net.rigs[0].engine.is_cut_off());
    // Who has heard nobody for long is alone, not cut off.
    net.sleep(61_000);
    cut(&mut net, Link::Lost);
    assert!(!net.rigs[0].engine.is_cut_off());
    net.open.extend(held);
    net.finish_all();
}

#[test]
fn who_never_heard_anybody_and_cannot_is_cut_off() {
    let mut net = Net::new(1);
    assert!(!net.rigs[0].engine.is_cut_off());
    net.tell(0, Input::Link(Link::Lost));
    assert!(net.rigs[0].engine.is_cut_off());
    let mut alone = Rig::serving(1, &["m"]);
    alone.handle(Input::Link(Link::Lost));
    assert!(!alone.engine.is_cut_off());
}

#[rstest]
#[case::of_whom_nothing_is_known(None, 1)]
#[case::at_no_distance(Some(Duration::ZERO), 1)]
#[case::heard_late(Some(Duration::from_millis(100)), 3)]
fn who_hears_late_begins_at_home(#[case] lag: Option<Duration>, #[case] places: usize) {
    let mut net = Net::new(4);
    net.arrive();
    for round in 0..20 {
        net.sleep(10);
        net.arrive();
        for at in 0..4 {
            let report = ReplicaReport { connected: true, lag, ..ReplicaReport::default() };
            net.tell(at, Input::Replica(report));
            // Too short for a place to matter.
            net.send(at, &prompt(round, 1), true);
            net.finish_all();
        }
    }
    net.sleep(10);
    net.arrive();
    // What nobody has goes where each is at home; of five backends one of these has none.
    let new = prompt(1_000, 40);
    let ports: Vec<_> = (0..4).map(|at| net.send(at, &new, true)).collect();
    let mut different = ports.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), places, "{ports:?}");
    net.finish_all();
    net.arrive();
    // What is cached somewhere goes there, whoever is at home.
    let follows: Vec<_> = (0..4).map(|at| net.send(at, &new, true)).collect();
    assert!(follows.iter().all(|port| ports.contains(port)), "{follows:?} after {ports:?}");
    net.finish_all();
}

/// At which proxies a backend is at home, as each of them finds by a choice.
fn homes(net: &mut Net, among: core::ops::Range<usize>, port: u16) -> Vec<usize> {
    let is_home = |&at: &usize| {
        let id = net.backend(at, port);
        let Rig { engine, now, .. } = &mut net.rigs[at];
        assert!(engine.abroad(*now) > 0, "others may send what is not heard yet");
        engine.fleet.backend(id).is_some_and(|backend| !backend.shared.abroad)
    };
    among.filter(is_home).collect()
}

#[test]
fn a_backend_is_at_home_at_one_of_those_that_live() {
    let mut net = Net::new(3);
    net.arrive();
    let lag = Some(Duration::from_millis(100));
    for at in 0..3 {
        net.tell(at, Input::Replica(ReplicaReport { lag, ..ReplicaReport::default() }));
        for number in 0..20 {
            net.send(at, &prompt(number, 3), true);
        }
    }
    let of_three: Vec<_> = (0..BACKENDS).map(|port| homes(&mut net, 0..3, port)).collect();
    assert!(of_three.iter().all(|homes| homes.len() == 1), "{of_three:?}");
    assert!(of_three.contains(&vec![2]), "{of_three:?}");
    for _ in 0..8 {
        net.sleep(500);
        net.way.retain(|(to, update)| *to != 2 && update.proxy != ProxyId(102));
        net.arrive();
    }
    let of_two: Vec<_> = (0..BACKENDS).map(|port| homes(&mut net, 0..2, port)).collect();
    for (before, now) in of_three.iter().zip(&of_two) {
        assert!(now.len() == 1 && (before == now || *before == [2]), "{before:?} {now:?}");
    }
    let specs: Vec<_> = (0..BACKENDS + 3).map(|port| spec(0, port)).collect();
    (0..2).for_each(|at| net.tell(at, Input::Discovered(&specs)));
    for port in BACKENDS..BACKENDS + 3 {
        assert_eq!(homes(&mut net, 0..2, port).len(), 1, "of {port}");
    }
    net.finish_all();
}

/// Two tell how a backend stands, of which one has forgotten a proxy that the other still knows by
/// its name: so many have come and gone. Who starts counts it once, whomever it hears first.
#[rstest]
#[case::who_forgot_is_heard_first([0, 1])]
#[case::who_forgot_is_heard_last([1, 0])]
fn who_is_forgotten_by_some_is_counted_once(#[case] order: [usize; 2]) {
    let (gone, one, other) = (ProxyId(7), ProxyId(8), ProxyId(9));
    let stands = [
        (Vec::from([(one, 10)]), 1_000_010),
        (Vec::from([(one, 10), (other, 5), (gone, 1_000_000)]), 1_000_015),
    ];
    let mut net = Net::new(1);
    let id = net.backend(0, 3);
    for at in [order, order].concat() {
        let (counters, inserted_tokens) = stands[at].clone();
        let clock = Some(Clock { counters, inserted_tokens, fresh_tokens: 0 });
        let about = About { clock, ..About::of(BackendName::of(&spec(0, 3).address), 0) };
        let (about, lengths) = (Vec::from([about]), Vec::new());
        net.hear(0, &Update { proxy: ProxyId(50), number: 0, about, lengths });
    }
    let index = net.rigs[0].engine.fleet.index.as_ref().expect("it has one");
    assert_eq!(index.clock(id), 1_000_015);
}

/// An index with little in it is told in a few pages.
#[test]
fn pages_of_a_snapshot_are_full() {
    let mut net = Net::new(1);
    for number in 0..40 {
        net.send(0, &prompt(number, 20), true);
    }
    net.finish_all();
    let (mut page, mut counts) = (Some(Page::FIRST), Vec::new());
    while let Some(from) = page {
        let (update, next) = net.rigs[0].engine.snapshot(from).expect("it shares");
        let placed = update.about.iter().flat_map(|about| &about.placed);
        counts.push(placed.map(|placed| placed.chunks.len()).sum::<usize>());
        page = next;
    }
    let told = counts.iter().filter(|count| **count > 0).count();
    assert!(counts.iter().all(|count| *count < 384), "{counts:?}");
    assert!(counts.iter().sum::<usize>() >= 40 * 15 && told <= 20, "{counts:?}");
}

#[test]
fn the_eldest_is_asked_when_all_have_been_heard() {
    let mut net = Net::new(3);
    net.arrive();
    net.sleep(1_000);
    net.arrive();
    let newcomer = net.join(0);
    net.tell(newcomer, Input::Link(Link::Whole));
    net.join(0);
    assert_eq!(net.rigs[newcomer].engine.peer(), None, "nobody was heard");
    net.arrive();
    assert!(net.rigs[newcomer].engine.company().alive > 0);
    assert_eq!(net.rigs[newcomer].engine.peer(), None, "it is early");
    net.sleep(1_250);
    net.arrive();
    let eldest = net.rigs[newcomer].engine.peer().expect("all were heard");
    assert!(eldest < ProxyId(100 + newcomer as u64), "{eldest:?}");
}
