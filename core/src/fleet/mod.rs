//! What we know of the backends: who exists, which models each serves, how it is, what it has in
//! hand.
//!
//! Owns the facts; does not choose (see [`route`](crate::route)) and asks nothing by itself (see
//! [`Engine`](crate::engine::Engine)).

mod adapters;
mod departed;
mod drain;
mod found;
mod health;
mod hear;
mod knowledge;
mod learned;
mod lent;
mod load;
mod names;
mod obstacle;
mod order;
mod owners;
mod peers;
mod prefix;
mod renumber;
mod rest;
mod rounds;
mod spec;
mod turns;
mod update;
mod window;

pub(crate) use drain::Drain;
pub(crate) use health::{Health, State};
pub(crate) use learned::{TokenLength, Trust};
pub(crate) use lent::Backends;
pub(crate) use load::Load;
pub use load::Standing;
pub(crate) use names::{Lost, Model};
pub(crate) use peers::{Peers, Place, Shared};
pub use prefix::{Fact, Inserted, Matches, PrefixIndex, Slot};
pub use renumber::Upstream;
pub use spec::{Address, BackendId, BackendSpec, Labels};
pub use update::{
    About, Average, BackendName, Capacity, Clock, Head, InHand, Learned, Lesson, Owned, Placed,
    PromptLength, ProxyId, Update, UpdateError, Word,
};

use crate::rng::Rng;
use crate::tally::{Counts, Recent};
use crate::time::Instant;
use crate::wire::probe::{ModelCard, Probe, ProbeError};
use adapters::Adapters;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use departed::Departed;
use found::{Found, authorities, by_address};
use knowledge::FirstModel;
use log::{info, warn};
use names::Names;
use order::place;
pub(crate) use owners::{Owner, Owners};
use rest::Rest;
use rounds::Rounds;
pub(crate) use turns::differ;
use window::Window;

/// Backends known at once; what the upstreams' names resolve to beyond that is left out.
const BACKENDS_MAX: usize = 4_096;

/// One vLLM server and all that is known of it.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) id: BackendId,
    pub(crate) spec: Arc<BackendSpec>,
    /// Every upstream that resolves to its address.
    upstreams: BTreeSet<u16>,
    /// Whether these say different things of it.
    clashes: bool,
    pub(crate) health: Health,
    /// The cards it listed last, in its order.
    pub(crate) models: Arc<[ModelCard]>,
    /// Whether it ever listed its models.
    ever_listed: bool,
    /// Whether it was told to change its adapters since.
    list_is_old: bool,
    pub(crate) version: Option<Arc<str>>,
    /// Whether it refuses to list its models to who shows no key.
    keyed: bool,
    pub(crate) rest: Rest,
    pub(crate) load: Load,
    /// How far it keeps what the prefix index promises.
    pub(crate) trust: Trust,
    /// What was promised of it since its metrics were last heard.
    pub(crate) window: Window,
    /// What became of the requests it was sent.
    pub(crate) counts: Counts,
    /// The same of the last minute.
    pub(crate) recent: Recent,
    /// Its place in the prefix index.
    pub(crate) slot: Option<Slot>,
    /// What all proxies call it, and agree on.
    pub(crate) shared: Shared,
    pub(crate) drain: Drain,
    /// No upstream resolves to it any more: it gets no more requests, and is forgotten once those
    /// it has are settled.
    leaving: bool,
    /// An upstream resolves to its address again, which is another backend's now.
    returned: bool,
}

impl Backend {
    fn new(id: BackendId, found: Found<'_>, now: Instant) -> Self {
        let name = BackendName::of(&found.spec.address);
        Self {
            id,
            spec: Arc::new(found.spec.clone()),
            upstreams: found.upstreams,
            clashes: false,
            health: Health::new(now),
            models: Arc::default(),
            ever_listed: false,
            list_is_old: false,
            version: None,
            keyed: false,
            rest: Rest::default(),
            load: Load::default(),
            trust: Trust::default(),
            window: Window::default(),
            counts: Counts::default(),
            recent: Recent::default(),
            slot: None,
            shared: Shared::new(name),
            drain: Drain::default(),
            leaving: false,
            returned: false,
        }
    }

    /// Whether requests may go there.
    pub(crate) fn serves(&self) -> bool {
        !self.leaving && self.health.state().serves()
    }

    /// Whether it is up beyond doubt.
    pub(crate) fn is_up(&self) -> bool {
        self.health.state() == State::Up
    }

    /// Whether it was told to sleep or to pause, so that others are to be preferred.
    pub(crate) const fn rests(&self) -> bool {
        self.rest.is_on()
    }

    /// Whether it asks for a key.
    pub(crate) fn is_keyed(&self) -> bool {
        self.keyed
    }

    /// Whether it belongs to one of these upstreams.
    pub(crate) fn is_of(&self, upstreams: &[u16]) -> bool {
        upstreams.iter().any(|upstream| self.upstreams.contains(upstream))
    }

    /// Whether it left and has nothing in hand.
    pub(crate) const fn is_done(&self) -> bool {
        self.leaving && self.load.is_idle()
    }

    /// Where it stands in lists: by the operator's order of upstreams, then by age.
    fn place(&self) -> (u16, BackendId) {
        (self.upstreams.first().copied().unwrap_or(self.spec.upstream), self.id)
    }
}

/// The backends, the names they list, and the rounds in which they are asked.
///
/// Ids only grow, so a backend that left and came back is another one, without anything that was
/// believed of the first.
#[derive(Debug)]
pub(crate) struct Fleet {
    /// By id, ascending.
    backends: Vec<Backend>,
    next: u32,
    names: Names,
    rounds: Rounds,
    /// Upstreams of which a backend has listed its models.
    listed: BTreeSet<u16>,
    /// What operators call an upstream, by its number: of backends that several resolve to, the
    /// spec says one of these only.
    authorities: BTreeMap<u16, String>,
    first_model: Option<FirstModel>,
    discovered: bool,
    pub(crate) departed: Departed,
    pub(crate) owners: Owners,
    pub(crate) adapters: Adapters,
    /// Who has cached what, if the policy asks.
    pub(crate) index: Option<PrefixIndex>,
    rng: Rng,
    to_probe: VecDeque<BackendId>,
    to_forget: VecDeque<BackendId>,
    /// Adapters that a backend is to load, by the body of the request.
    to_load: VecDeque<(BackendId, Arc<[u8]>)>,
    /// Who is to be drained if found again.
    left: drain::Left,
}

impl Fleet {
    /// A fleet of nobody, with a prefix index of so many bytes, or none.
    pub(crate) fn new(seed: u64, index_bytes: usize) -> Self {
        Self {
            backends: Vec::new(),
            next: 0,
            names: Names::default(),
            rounds: Rounds::default(),
            listed: BTreeSet::new(),
            authorities: BTreeMap::new(),
            first_model: None,
            discovered: false,
            departed: Departed::default(),
            owners: Owners::default(),
            adapters: Adapters::default(),
            index: (index_bytes > 0).then(|| PrefixIndex::new(index_bytes, seed)),
            rng: Rng::new(seed),
            to_probe: VecDeque::new(),
            to_forget: VecDeque::new(),
            to_load: VecDeque::new(),
            left: drain::Left::default(),
        }
    }

    pub(crate) fn backend(&self, id: BackendId) -> Option<&Backend> {
        let at = place(&self.backends, id, |backend| backend.id).ok()?;
        self.backends.get(at)
    }

    pub(crate) fn backend_mut(&mut self, id: BackendId) -> Option<&mut Backend> {
        find(&mut self.backends, id)
    }

    /// A model by its name, with what choosing one of its backends needs.
    pub(crate) fn model(&mut self, name: &str) -> Option<(Arc<str>, &mut Model, Backends<'_>)> {
        let (name, model) = self.names.find(name)?;
        let index = self.index.as_ref();
        Some((name, model, Backends { backends: &mut self.backends, index }))
    }

    /// The whole list of backends, as the upstreams' names resolve now.
    pub(crate) fn discovered(&mut self, specs: &[BackendSpec], now: Instant) {
        let (mut found, places) = by_address(specs);
        self.authorities = authorities(specs);
        for at in 0..self.backends.len() {
            let backend = &mut self.backends[at];
            let place = places.get(&backend.spec.address);
            if backend.leaving {
                if place.is_some() {
                    self.returns(at, now);
                }
                continue;
            }
            let Some(kept) = place.and_then(|&place| found[place].take()) else {
                self.leave(at, now);
                continue;
            };
            if *backend.spec != *kept.spec {
                backend.spec = Arc::new(kept.spec.clone());
            }
            backend.upstreams = kept.upstreams;
            backend.clash(kept.clashes);
            backend.label(kept.drains);
            if backend.ever_listed {
                self.listed.extend(&backend.upstreams);
            }
        }
        self.sweep(now);
        // Ids run out after 136 years of one new backend a second; they are not used twice then.
        let ids = usize::try_from(u32::MAX - self.next).unwrap_or(usize::MAX);
        let room = BACKENDS_MAX.saturating_sub(self.backends.len()).min(ids);
        let new = found.iter().flatten().count();
        if new > room {
            warn!(left_out = new - room; "too many backends");
        }
        for found in found.into_iter().flatten().take(room) {
            let (clashes, drains) = (found.clashes, found.drains);
            let mut backend = Backend::new(BackendId(self.next), found, now);
            backend.counts = self.departed.take(&backend.spec.address, now);
            backend.slot = self.index.as_mut().and_then(|index| index.join(backend.id));
            self.next += 1;
            info!(backend:% = backend.id, address:% = backend.spec.address; "backend discovered");
            backend.clash(clashes);
            backend.label(drains);
            self.welcome_drain(&mut backend);
            self.rounds.join(backend.id);
            self.backends.push(backend);
        }
        if !self.discovered {
            self.discovered = true;
            self.rounds.begin(self.backends.iter().map(|backend| backend.id).collect(), now);
        }
        self.ask(now);
    }

    /// A backend's answer to a probe. Answers of backends that left change nothing.
    pub(crate) fn probed(
        &mut self,
        id: BackendId,
        result: Result<Probe, ProbeError>,
        now: Instant,
    ) {
        let Some(backend) = find(&mut self.backends, id).filter(|backend| !backend.leaving) else {
            return;
        };
        let before = backend.health.state();
        let status = result.as_ref().map(|probe| probe.health);
        let too_early = backend.health.probed(status, now, &mut self.rng);
        backend.list_is_old &= too_early;
        backend.tell(before);
        if let Ok(probe) = result {
            // Who comes back is another process: whatever was believed of the former one ends
            // here, but for its list of models where the new one may not be asked for it.
            if before == State::Down || probe.version.is_some() {
                backend.version = probe.version.map(Arc::from);
            }
            let rested = backend.rests();
            if before == State::Down {
                backend.rest = Rest::default();
            }
            backend.rest.heard(probe.rests);
            // A new process has cached nothing, and one that sleeps has given it up.
            let back = before == State::Down && backend.health.state() != State::Down;
            let lost = back || (backend.rests() && !rested);
            let wiped = lost && backend.shared.lost(now);
            if wiped {
                backend.doubt_learned();
            }
            if before == State::Down {
                backend.load.forget_pace();
                backend.window = Window::default();
            }
            if let Some(index) = &mut self.index {
                if wiped {
                    index.wipe(id);
                }
                if let Some(report) = probe.cache {
                    backend.heard_cache(report, index);
                }
            }
            backend.keyed = probe.keyed.unwrap_or(backend.keyed);
            if let Some(cards) = probe.models {
                self.list(id, cards);
                if matches!(before, State::Down | State::Unknown) {
                    self.restore(id);
                }
            }
        }
        if !too_early {
            self.rounds.answered(id, now);
        }
        self.ask(now);
    }

    /// Traffic found that a backend has changed: it is asked as soon as may be.
    pub(crate) fn changed(&mut self, id: BackendId, now: Instant) {
        if let Some(backend) = self.backend_mut(id) {
            backend.health.changed(now);
            self.ask(now);
        }
    }

    /// All backends, by id.
    pub(crate) fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// The same, to be changed.
    pub(crate) fn backends_mut(&mut self) -> &mut [Backend] {
        &mut self.backends
    }

    /// Traffic met a failure of a backend.
    pub(crate) fn failed(&mut self, id: BackendId, now: Instant) {
        if let Some(backend) = self.backend_mut(id) {
            let before = backend.health.state();
            backend.health.failed(now);
            backend.tell(before);
            self.ask(now);
        }
    }

    /// A backend answered a request sent at `sent`.
    pub(crate) fn answered(&mut self, id: BackendId, sent: Instant, now: Instant) {
        if let Some(backend) = self.backend_mut(id) {
            let before = backend.health.state();
            backend.health.answered(sent, now);
            backend.tell(before);
        }
    }

    /// Queues a probe of every backend whose time has come.
    pub(crate) fn ask(&mut self, now: Instant) {
        for backend in &mut self.backends {
            if !backend.leaving && backend.health.ask(now) {
                self.to_probe.push_back(backend.id);
            }
        }
    }

    /// When the next probe is due.
    pub(crate) fn next_probe(&self) -> Option<Instant> {
        let staying = self.backends.iter().filter(|backend| !backend.leaving);
        staying.filter_map(|backend| backend.health.due()).min()
    }

    /// The next backend to probe.
    pub(crate) fn poll_probe(&mut self) -> Option<BackendId> {
        self.to_probe.pop_front()
    }

    /// The next backend that is gone.
    pub(crate) fn poll_forgotten(&mut self) -> Option<BackendId> {
        self.to_forget.pop_front()
    }

    fn leave(&mut self, at: usize, now: Instant) {
        let backend = &mut self.backends[at];
        info!(backend:% = backend.id, address:% = backend.spec.address; "backend left");
        backend.leaving = true;
        for card in backend.models.iter() {
            self.names.remove(&card.id, backend.id, Lost::Left);
        }
        let id = backend.id;
        self.index.iter_mut().for_each(|index| index.leave(id));
        self.to_probe.retain(|&queued| queued != id);
        self.rounds.answered(id, now);
    }
}

impl Backend {
    /// Logs a change of state.
    fn tell(&self, before: State) {
        let state = self.health.state();
        if state == before {
            return;
        }
        let (id, address) = (self.id, &self.spec.address);
        match self.health.why() {
            Some(why) => info!(backend:% = id, address:%, why:%; "{}", state.message()),
            None => info!(backend:% = id, address:%; "{}", state.message()),
        }
    }
}

fn find(backends: &mut [Backend], id: BackendId) -> Option<&mut Backend> {
    let at = place(backends, id, |backend| backend.id).ok()?;
    backends.get_mut(at)
}
