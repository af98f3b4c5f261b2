//! Sharing: what the engine tells other proxies, and what it makes of what they tell.
//!
//! Owns the updates to be told and the beat at which they are repeated. Does not know how they
//! travel. Without [`Config::proxy`](crate::config::Config::proxy) all of it is one comparison a
//! call.
//!
//! **What is told when.** Whatever changes what a backend has in hand or what it holds marks the
//! backend; asking for updates makes one of all that is marked. Every second the load of
//! up to 256 backends is told again, whether it changed or not: that a proxy lives, and what was
//! lost on the way. Chunks are told again by their next use after an eighth of a cache, and all at
//! once by a [snapshot](Engine::snapshot).
//!
//! **What is not told.** Whether a backend is up: each proxy sees that with its own eyes, which is
//! no slower, and a wrong word of one would take a backend from all. Where a request had one sleep
//! or change its adapters, that it did is told, and whoever hears it asks. That a queue got shorter
//! because the prefill of an answer in one piece was predicted to be over: with the next change, or
//! within a second.

mod gather;

use super::Engine;
use super::way::Way;
use crate::fleet::{
    About, BackendId, BackendName, Clock, Fact, Owner, Peers, Place, Placed, PrefixIndex,
    PromptLength, ProxyId, Update,
};
use crate::rng::mix;
use crate::time::{Duration, Instant, Wake};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use gather::Gathered;

/// How often a proxy says that it lives, and what it has in hand.
const BEAT: Duration = Duration::from_secs(1);

/// Backends whose load is told again with one beat: 12 KB.
const BEAT_BACKENDS: usize = 256;

/// Backends whose clocks a page of a snapshot tells: with 63 proxies, 64 KB.
const PAGE_CLOCKS: usize = 64;

/// Slices of the index that are looked at for a page, if those before were empty: an index of 64 MiB
/// with nothing in it has 10,000 of them.
const PAGE_SLICES: usize = 16;

/// Stored responses that a page of a snapshot tells.
const PAGE_OWNED: usize = 256;

/// Which other proxies there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Company {
    /// Those heard within the last 3 s.
    pub alive: usize,
    /// Updates that were never heard, though later ones of the same proxy were. If this grows, a
    /// snapshot of another proxy tells what was missed.
    pub missed: u64,
    /// Chunks and stored responses of this proxy that went untold, because nobody asked for updates
    /// for too long. If this grows, a snapshot of this proxy tells what the others miss.
    pub dropped: u64,
}

/// A page of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page(Part);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Clocks of backends from this one on.
    Clocks(BackendId),
    /// Chunks from this place of the index on.
    Chunks(u64),
    /// Stored responses from this hash on.
    Owned(u64),
}

impl Page {
    /// The first one.
    pub const FIRST: Self = Self(Part::Clocks(BackendId(0)));
}

/// The state of sharing.
#[derive(Debug)]
pub(super) struct Sharing {
    pub(super) own: ProxyId,
    pub(super) peers: Peers,
    names: BTreeMap<BackendName, BackendId>,
    gathered: Gathered,
    /// Of the last update.
    number: u64,
    /// When this proxy was called last: ages are counted back from here.
    now: Instant,
    beat: Instant,
    /// Whether to tell something, if only that this proxy lives.
    due: bool,
    beat_from: BackendId,
    pub(super) way: Way,
}

impl Sharing {
    pub(super) fn new(own: ProxyId, now: Instant) -> Self {
        Self {
            own,
            peers: Peers::default(),
            names: BTreeMap::new(),
            gathered: Gathered::default(),
            number: 0,
            now,
            beat: now,
            due: false,
            beat_from: BackendId(0),
            way: Way::default(),
        }
    }
}

impl Engine {
    /// Which other proxies are heard.
    pub fn company(&self) -> Company {
        self.sharing.as_ref().map_or_else(Company::default, |sharing| Company {
            alive: sharing.peers.alive(),
            missed: sharing.peers.missed(),
            dropped: sharing.gathered.dropped(),
        })
    }

    /// A page of all that this proxy knows to be kept by backends, for one that missed it, and the
    /// page after it: an update to be heard as any other, of 256 chunks, 256 stored responses, or
    /// the clocks of 64 backends.
    /// Begins with [`Page::FIRST`]. What is told by updates meanwhile may be heard before, between
    /// or after the pages.
    pub fn snapshot(&self, page: Page) -> Option<(Update, Option<Page>)> {
        let (sharing, index) = (self.sharing.as_ref()?, self.fleet.index.as_ref()?);
        let (about, next) = match page.0 {
            Part::Clocks(from) => {
                let mut backends = self.fleet.backends().iter().filter(|one| one.id >= from);
                let told = backends.by_ref().take(PAGE_CLOCKS);
                let about = told.map(|backend| About {
                    changes: backend.shared.changes(),
                    clock: Some(sharing.clock(index, backend.id)),
                    learned: self.fleet.learned(backend),
                    ..About::of(backend.shared.name, backend.shared.generation())
                });
                let about = about.collect();
                let next = backends.next();
                (about, Some(next.map_or(Part::Chunks(0), |backend| Part::Clocks(backend.id))))
            }
            Part::Chunks(from) => {
                let mut facts = Vec::new();
                let mut next = Some(from);
                for _ in 0..PAGE_SLICES {
                    let Some(from) = next.filter(|_| facts.is_empty()) else { break };
                    next = index.facts(from, &mut facts);
                }
                facts.sort_unstable_by_key(|fact| (fact.backend, fact.stamp, fact.chunk));
                let same = |one: &Fact, other: &Fact| one.backend == other.backend;
                let about = facts.chunk_by(same).filter_map(|facts| self.placed(facts));
                (about.collect(), Some(next.map_or(Part::Owned(0), Part::Chunks)))
            }
            Part::Owned(from) => {
                let mut owners = self.fleet.owners.from(from, sharing.now);
                let owned: Vec<_> = owners.by_ref().take(PAGE_OWNED).collect();
                let next = owners.next().map(|(response, _)| Part::Owned(response));
                (self.owned(owned, sharing.now), next)
            }
        };
        let update = Update { proxy: sharing.own, number: 0, about, lengths: Vec::new() };
        Some((update, next.map(Page)))
    }

    /// A sum of all that proxies tell each other, as far as it is known here: the same for all that
    /// heard everything, however they heard it. What was learned is no part of it: each hears the
    /// lessons in an order of its own, in which they come to averages of their own. Looks at the
    /// whole index: for tests, and for checks that may take their time.
    pub fn shared_hash(&self) -> u64 {
        let Some(sharing) = &self.sharing else { return 0 };
        let name = |id| self.fleet.backend(id).map_or(0, |backend| backend.shared.name.0);
        let placed = self.fleet.index.as_ref().map_or(0, |index| index.state_hash(name));
        let hash = |parts: &[u64]| parts.iter().fold(0, |hash, part| mix(hash ^ part) + 1);
        let backends = self.fleet.backends().iter().map(|backend| {
            let name = backend.shared.name.0;
            let one = |(proxy, in_hand): (ProxyId, [i64; 3])| {
                let [in_flight, queued, resident] = in_hand.map(i64::cast_unsigned);
                // Who has nothing in hand may as well not be known.
                let any = in_hand != [0; 3];
                if any { hash(&[proxy.0, name, in_flight, queued, resident]) } else { 0 }
            };
            let own = (sharing.own, backend.load.own());
            let others = backend.load.others.each();
            let others = others.filter_map(|(place, load)| Some((sharing.peers.id(place)?, load)));
            let loads = others.chain([own]).map(one).fold(0, u64::wrapping_add);
            let (losses, changes) = (backend.shared.generation(), backend.shared.changes());
            loads.wrapping_add(hash(&[name, losses.into(), changes.into()]))
        });
        let owners = self.fleet.owners.from(0, sharing.now);
        let owners = owners.map(|(response, owner)| {
            hash(&[response, name(owner.backend), owner.moves.into(), u64::MAX])
        });
        backends.chain(owners).fold(placed, u64::wrapping_add)
    }

    /// It is so late: who was silent for too long is gone, and it may be time to be heard.
    pub(super) fn share_time(&mut self, now: Instant) {
        let Some(sharing) = &mut self.sharing else { return };
        sharing.now = sharing.now.max(now);
        while let Some(place) = sharing.peers.expire(now) {
            let backends = self.fleet.backends_mut().iter_mut();
            backends.for_each(|backend| backend.load.others.forget(place));
        }
        if now < sharing.beat {
            return;
        }
        sharing.beat = now + BEAT;
        sharing.due = true;
        let from = sharing.beat_from;
        let mut rest = self.fleet.backends().iter().filter(|one| one.id >= from);
        rest.by_ref().take(BEAT_BACKENDS).for_each(|backend| sharing.gathered.mark(backend.id));
        sharing.beat_from = rest.next().map_or(BackendId(0), |backend| backend.id);
    }

    /// When [`share_time`](Self::share_time) has something to do.
    pub(super) fn share_timeout(&self) -> Option<Wake> {
        let sharing = self.sharing.as_ref()?;
        let lease = sharing.peers.next().map(|at| Wake { at, why: "lease" });
        let beat = Wake { at: sharing.beat, why: "beat" };
        [lease, Some(beat)].into_iter().flatten().min_by_key(|wake| wake.at)
    }

    /// The list of backends changed. One that leaves is told of until another has its address.
    pub(super) fn learn_names(&mut self) {
        let Some(sharing) = &mut self.sharing else { return };
        let names = self.fleet.backends().iter().map(|one| (one.shared.name, one.id));
        sharing.names = names.collect();
    }

    /// Another proxy tells something.
    pub(super) fn hear(&mut self, update: &Update, now: Instant) {
        let Some(sharing) = &mut self.sharing else { return };
        if update.proxy == sharing.own {
            return;
        }
        let word = if update.number == 0 {
            // A page of a snapshot is nobody's word of itself.
            None
        } else {
            let heard = sharing.peers.hear(update.proxy, update.number, now);
            let Some((word, taken)) = heard else { return };
            self.fleet.replace_proxy(taken);
            Some(word)
        };
        for PromptLength { model, bytes, tokens } in
            update.lengths.iter().filter(|_| word.is_some_and(|word| word.new))
        {
            if let Some((_, model, _)) = self.fleet.model(model) {
                model.token_length.learn(*bytes, *tokens);
            }
        }
        for about in &update.about {
            let Some(&id) = sharing.names.get(&about.backend) else { continue };
            for &(proxy, tokens) in about.clock.iter().flat_map(|clock| &clock.counters) {
                if proxy == sharing.own {
                    continue;
                }
                let Some(place) = sharing.peers.introduce(proxy, now) else { continue };
                self.fleet.hear_counter(id, place, tokens);
            }
            self.fleet.hear(id, about, word, now);
        }
    }

    fn owned(&self, mut owned: Vec<(u64, Owner)>, now: Instant) -> Vec<About> {
        owned.sort_unstable_by_key(|(response, owner)| (owner.backend, *response));
        let same = |one: &(u64, Owner), other: &(u64, Owner)| one.1.backend == other.1.backend;
        let about = owned.chunk_by(same).filter_map(|owned| {
            let backend = self.fleet.backend(owned[0].1.backend)?;
            let base = About::of(backend.shared.name, backend.shared.generation());
            let owned = owned.iter().map(|&(response, owner)| owner.told(response, now));
            Some(About { owned: owned.collect(), ..base })
        });
        about.collect()
    }

    fn placed(&self, facts: &[Fact]) -> Option<About> {
        let backend = self.fleet.backend(facts.first()?.backend)?;
        let same = |one: &Fact, other: &Fact| one.stamp == other.stamp;
        let placed = facts.chunk_by(same).map(|facts| Placed {
            stamp: facts[0].stamp,
            chunks: facts.iter().map(|fact| fact.chunk).collect(),
        });
        let placed = placed.collect();
        Some(About { placed, ..About::of(backend.shared.name, backend.shared.generation()) })
    }
}

impl Sharing {
    fn clock(&self, index: &PrefixIndex, backend: BackendId) -> Clock {
        let own = (self.own, index.counter(backend, PrefixIndex::OWN));
        let counter = |(place, id): (Place, _)| (id, index.counter(backend, place.index()));
        let counters = self.peers.all().map(counter).chain([own]);
        Clock {
            counters: counters.filter(|(_, tokens)| *tokens > 0).collect(),
            inserted_tokens: index.clock(backend),
            fresh_tokens: index.fresh(backend),
        }
    }
}
