//! Whole: all that a proxy knows, for others that missed it or were not there.
//!
//! Owns snapshots, what one backend's part of them is, and the sum by which two proxies find that
//! they know the same. Does not know who asks, or where it is kept.

use super::super::Engine;
use super::Sharing;
use crate::fleet::{
    About, Backend, BackendId, BackendName, Clock, Fact, Owner, Place, Placed, PrefixIndex,
    ProxyId, TokenLength, Update,
};
use crate::rng::mix;
use crate::route::CHUNK_BYTES;
use crate::time::Instant;
use alloc::vec::Vec;

/// Backends of which a page of a snapshot tells how they stand: with 63 proxies a thousand counters
/// in 16 KB, which to hear takes as long as 256 chunks.
const PAGE_STANDS: usize = 16;

/// Slices of the index that are looked at for a page, while those before had few chunks: an index
/// of 64 MiB has 16,000 of them, in which most often there is little.
const PAGE_SLICES: usize = 16;

/// Chunks with which a page is full enough. The last slice may bring 255 more.
const PAGE_CHUNKS: usize = 128;

/// Stored responses that a page of a snapshot tells.
const PAGE_OWNED: usize = 256;

/// A page of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page(Part);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// How backends stand, from this one on.
    Stands(BackendId),
    /// Chunks from this place of the index on.
    Chunks(u64),
    /// Stored responses from this hash on.
    Owned(u64),
}

impl Page {
    /// The first one.
    pub const FIRST: Self = Self(Part::Stands(BackendId(0)));
}

impl Engine {
    /// A page of all that this proxy knows to be kept by backends, for one that missed it, and the
    /// page after it: an update to be heard as any other, of 383 chunks, 256 stored responses, or
    /// how 16 backends stand. Begins with [`Page::FIRST`]. What is told by updates meanwhile may be
    /// heard before, between or after the pages.
    pub fn snapshot(&self, page: Page) -> Option<(Update, Option<Page>)> {
        let sharing = self.sharing.as_ref()?;
        let (about, next) = match page.0 {
            Part::Stands(from) => {
                let mut backends = self.fleet.backends().iter().filter(|one| one.id >= from);
                let told = backends.by_ref().take(PAGE_STANDS);
                let about = told.map(|backend| self.stand_of(sharing, backend));
                let about = about.collect();
                let next = backends.next();
                (about, Some(next.map_or(Part::Chunks(0), |backend| Part::Stands(backend.id))))
            }
            Part::Chunks(from) => {
                let mut facts = Vec::new();
                let index = self.fleet.index.as_ref();
                let mut next = index.map(|_| from);
                for _ in 0..PAGE_SLICES {
                    let Some((index, from)) = index.zip(next.filter(|_| facts.len() < PAGE_CHUNKS))
                    else {
                        break;
                    };
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
            let drains = backend.drain.changes();
            loads.wrapping_add(hash(&[name, losses.into(), changes.into(), drains]))
        });
        let owners = self.fleet.owners.from(0, sharing.now);
        let owners = owners.map(|(response, owner)| {
            hash(&[response, name(owner.backend), owner.moves.into(), u64::MAX])
        });
        backends.chain(owners).fold(placed, u64::wrapping_add)
    }

    /// How it stands with a backend, without what is in hand there or cached: its clock, how often
    /// it changed, lost its cache and was drained, and what was learned of it. To be heard, as an
    /// update of number 0, by who starts when nobody is there to ask.
    ///
    /// What was placed there is told apart, as it stood in updates, and means nothing without this:
    /// where what is kept comes in any order, it is to be heard twice. A clock that is 4 billion
    /// tokens behind a chunk does not know whether that is old or new.
    pub fn stand(&self, backend: BackendName) -> Option<About> {
        let sharing = self.sharing.as_ref()?;
        let backend = self.fleet.backend(*sharing.names.get(&backend)?)?;
        Some(self.stand_of(sharing, backend))
    }

    /// How many chunks fit into a backend's cache, as far as is known: what was placed there before
    /// as many others need not be kept for anybody. `None` if its cache is not looked after.
    pub fn kept_chunks(&self, backend: BackendName) -> Option<u64> {
        let id = *self.sharing.as_ref()?.names.get(&backend)?;
        let (index, backend) = (self.fleet.index.as_ref()?, self.fleet.backend(id)?);
        // Of the model with the longest tokens a chunk has the fewest of them.
        let lengths = backend.bases().map(|model| self.fleet.token_length(model));
        let works = lengths.map(|length| length.work_of(CHUNK_BYTES as u64));
        let work =
            works.min().unwrap_or_else(|| TokenLength::default().work_of(CHUNK_BYTES as u64));
        Some(index.capacity(id) / u64::try_from(work / 1_000).unwrap_or(1).max(1))
    }

    /// The backends that are known here, by what all proxies call them. None without other proxies.
    pub fn names(&self) -> impl Iterator<Item = BackendName> + '_ {
        self.sharing.iter().flat_map(|sharing| sharing.names.keys().copied())
    }

    fn stand_of(&self, sharing: &Sharing, backend: &Backend) -> About {
        let index = self.fleet.index.as_ref();
        About {
            changes: backend.shared.changes(),
            drains: backend.drain.changes(),
            clock: index.map(|index| sharing.clock(index, backend.id)),
            learned: self.fleet.learned(backend),
            ..About::of(backend.shared.name, backend.shared.generation())
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
