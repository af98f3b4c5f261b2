//! Sharing: what the engine tells other proxies, and what it makes of what they tell.
//!
//! Owns the updates to be told and the beat at which they are repeated. Does not know how they
//! travel. Without [`Config::proxy`](crate::config::Config::proxy) all of it is one comparison a
//! call.
//!
//! **What is told when.** Whatever changes what a backend has in hand or what it holds marks the
//! backend; asking for updates makes one of all that is marked. Every second the load of up to 256
//! backends is told again, whether it changed or not: that a proxy lives, and what was lost on the
//! way. Chunks are told again by their next use after an eighth of a cache, stored responses when
//! they are spoken of a minute later, and all at once by a [snapshot](Engine::snapshot).
//!
//! **What a request costs.** Nothing is allocated for it but room in buffers that are kept: what is
//! to be told becomes an [`Update`] only when somebody [asks](Engine::poll_update).
//!
//! **Who starts** hears a snapshot of one that lives or, with nobody there, what was kept: updates
//! of number 0 with what was placed, and how backends [stood](Engine::stand). What others have in
//! hand is told by themselves within a second.
//!
//! **What is not told.** Whether a backend is up: each proxy sees that with its own eyes, which is
//! no slower, and a wrong word of one would take a backend from all. Where a request had one sleep
//! or change its adapters, that it did is told, and whoever hears it asks. That a queue got shorter
//! because the prefill of an answer in one piece was predicted to be over: with the next change, or
//! within a second.

mod gather;
mod whole;

pub use whole::Page;

use super::Engine;
use super::apart::Pulse;
use super::way::Way;
use crate::fleet::{BackendId, BackendName, Peers, Place, PromptLength, ProxyId, Update};
use crate::time::{Duration, Instant, Wake};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use gather::Gathered;

/// How often a proxy says that it lives, and what it has in hand.
const BEAT: Duration = Duration::from_secs(1);

/// Backends whose load is told again with one beat: 12 KB.
const BEAT_BACKENDS: usize = 256;

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

/// The state of sharing.
#[derive(Debug)]
pub(super) struct Sharing {
    pub(super) own: ProxyId,
    pub(super) peers: Peers,
    pub(super) names: BTreeMap<BackendName, BackendId>,
    gathered: Gathered,
    /// Of the last update.
    number: u64,
    /// When this proxy was called last: ages are counted back from here.
    pub(super) now: Instant,
    beat: Instant,
    /// Whether to tell something, if only that this proxy lives.
    due: bool,
    beat_from: BackendId,
    pub(super) way: Way,
    pub(super) pulse: Pulse,
    /// Of which company it is known which backends are at home here; `None`: of none.
    pub(super) homes: Option<u64>,
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
            pulse: Pulse::default(),
            homes: None,
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

    /// It is so late: who was silent for too long is gone, and it may be time to be heard.
    pub(super) fn share_time(&mut self, now: Instant) {
        let Some(sharing) = &mut self.sharing else { return };
        sharing.now = sharing.now.max(now);
        let gone: Vec<_> = core::iter::from_fn(|| sharing.peers.expire(now)).collect();
        if !gone.is_empty() {
            let backends = self.fleet.backends_mut().iter_mut();
            backends.for_each(|backend| backend.load.others.forget(&gone));
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
        sharing.homes = None;
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
            let Some((mut word, taken)) = heard else { return };
            self.fleet.replace_proxy(taken);
            word.said = now - sharing.way.lag().unwrap_or_default();
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
                    // It left here and came back, and others did not forget it.
                    self.fleet.hear_counter(id, Place::OWN, tokens);
                    continue;
                }
                let Some(place) = sharing.peers.introduce(proxy, now) else { continue };
                self.fleet.hear_counter(id, place, tokens);
            }
            self.fleet.hear(id, about, word, now);
        }
    }
}
