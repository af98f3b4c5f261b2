//! Watch: what must hold of an engine at every decision and after every event, checked as it goes.
//!
//! Owns nothing that the engine could need. Off, it does nothing; a violation is a bug, so it
//! panics.

use super::fingerprint::CHUNK_BYTES;
use super::recount::{Price, Recount};
use crate::world::{Ask, Live};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use vllm_proxy_core::config::Policy;
use vllm_proxy_core::engine::{Engine, View};
use vllm_proxy_core::fleet::BackendId;
use vllm_proxy_core::route::Work;
use vllm_proxy_core::time::Instant;

/// What is believed of a cache of which nothing is known.
const KV_TOKENS: u64 = 400_000;
/// Chunks at the beginning of a prompt that are all looked at.
const MARKED: usize = 512;
/// Nanoseconds a token, from three times as fast as is believed at first to a tenth.
const PACES: RangeInclusive<i64> = 41_666..=1_250_000;
/// Thousandths of a byte a token.
const TOKEN_BYTES: RangeInclusive<i64> = 1_500..=8_000;
/// Thousandths of a promise.
const KEPT: RangeInclusive<i64> = 0..=1_000;

/// The checks of one engine.
#[derive(Debug)]
pub(super) struct Watch {
    on: bool,
    policy: Policy,
    index_bytes: usize,
    recount: Recount,
    /// To whom requests in hand were sent, ever.
    tried: BTreeMap<u64, Vec<BackendId>>,
    /// Who could take the request of now, and how much each is believed to have of it.
    eligible: Vec<(View, i64)>,
    /// Its prompt, in thousandths of a token.
    prompt: i64,
}

impl Watch {
    pub(super) fn new(policy: Policy, index_bytes: usize) -> Self {
        Self {
            on: false,
            policy,
            index_bytes,
            recount: Recount::default(),
            tried: BTreeMap::new(),
            eligible: Vec::new(),
            prompt: 0,
        }
    }

    pub(super) const fn begin(&mut self) {
        self.on = true;
    }

    /// Before a decision: who is eligible, which `lists` the name.
    pub(super) fn look(
        &mut self,
        engine: &Engine,
        ask: &Ask<'_>,
        chunks: &[u64],
        model: &str,
        lists: impl Fn(BackendId) -> bool,
        now: Instant,
    ) {
        self.eligible.clear();
        if !self.on {
            return;
        }
        let tried = self.tried.get(&ask.id);
        let fits = |view: &View| {
            let untried = tried.is_none_or(|tried| !tried.contains(&view.backend));
            view.serves && untried && lists(view.backend)
        };
        let matched = matched(engine, chunks);
        let token_bytes = engine.token_bytes_milli(model);
        assert!(TOKEN_BYTES.contains(&token_bytes), "{token_bytes} for {model}");
        let tokens = |bytes: u64| bytes as i64 * 1_000_000 / token_bytes;
        self.prompt = tokens(ask.prompt_bytes);
        let chunk = tokens(CHUNK_BYTES);
        for view in engine.views(now).filter(fits) {
            let own = matched.iter().find(|(backend, _)| *backend == view.backend);
            let matched = own.map_or(0, |(_, matched)| *matched);
            assert!(matched as u64 * CHUNK_BYTES <= ask.prompt_bytes, "no more than there is");
            let promised = matched as i64 * chunk;
            let cached = i128::from(promised) * i128::from(view.kept) / 1_000;
            self.eligible.push((view, cached as i64));
        }
    }

    /// The request was sent there, and counted as so much.
    pub(super) fn sent(&mut self, ask: &Ask<'_>, backend: BackendId, work: Work, now: Instant) {
        if !self.on {
            return;
        }
        assert_eq!(work.prompt, self.prompt, "a prompt is estimated by its model's tokens");
        let price = |(view, cached): &(View, i64)| Price::of(view, work, *cached);
        let prices: Vec<_> = self.eligible.iter().map(price).collect();
        let chosen = prices.iter().find(|price| price.backend == backend);
        let chosen = chosen.expect("whoever is chosen is eligible");
        if self.policy != Policy::RoundRobin {
            chosen.check(&prices);
        }
        let view = self.eligible.iter().find(|(view, _)| view.backend == backend);
        let (view, cached) = view.expect("whoever is chosen is eligible");
        assert_eq!(work.uncached, (work.prompt - cached).max(16_000), "what is cached is no work");
        self.recount.sent(ask.id, (backend, view.pace), work, ask.stream, now);
        self.tried.entry(ask.id).or_default().push(backend);
        self.eligible.clear();
    }

    /// The request of now was sent nowhere: nobody was there, or it was tried often enough.
    pub(super) fn not_sent(&mut self, id: u64) {
        let tried = self.tried.remove(&id).is_some();
        assert!(tried || self.eligible.is_empty(), "somebody could have taken request {id}");
        self.eligible.clear();
    }

    pub(super) fn first_byte(&mut self, id: u64, now: Instant) {
        if self.on {
            self.recount.first_byte(id, now);
        }
    }

    /// It is there no more; it may be sent elsewhere.
    pub(super) fn over(&mut self, id: u64, now: Instant) {
        if self.on {
            self.recount.over(id, now);
        }
    }

    /// It will not.
    pub(super) fn forget(&mut self, id: u64) {
        self.tried.remove(&id);
    }

    /// Whether a backend takes requests.
    pub(super) fn serves(&self, engine: &Engine, backend: BackendId, now: Instant) -> bool {
        self.on && engine.views(now).any(|view| view.backend == backend && view.serves)
    }

    /// A backend was probed, which `served` before: who comes back has nothing cached.
    pub(super) fn probed(&self, engine: &Engine, backend: BackendId, served: bool, now: Instant) {
        if served || !self.serves(engine, backend, now) {
            return;
        }
        let Some(index) = engine.index() else { return };
        let (mut facts, mut from) = (Vec::new(), Some(0));
        while let Some(next) = from {
            from = index.facts(next, &mut facts);
            assert!(facts.iter().all(|fact| fact.backend != backend), "nothing is left of it");
            facts.clear();
        }
    }

    /// After an event; servers say that they hold so many tokens, if they do.
    pub(super) fn check(
        &self,
        engine: &Engine,
        live: &[Live],
        said: impl Iterator<Item = u64>,
        now: Instant,
    ) {
        self.recount.check(engine, live, now);
        for view in engine.views(now) {
            assert!(PACES.contains(&view.pace) && KEPT.contains(&view.kept), "{view:?}");
        }
        let Some(index) = engine.index() else { return };
        assert!(index.bytes() <= self.index_bytes && index.len() <= index.len_max());
        let sizes = said.map(|tokens| tokens.min(1 << 33)).chain([KV_TOKENS]);
        let (least, most) = sizes.fold((u64::MAX, 0), |(least, most), size| {
            (least.min(size * 5 / 40), most.max(size * 5 / 2))
        });
        // Of who left nothing is believed any more.
        for view in engine.views(now).filter(|view| view.capacity > 0) {
            assert!((least..=most).contains(&view.capacity), "{view:?}");
        }
    }
}

/// How many leading chunks each backend holds: the last of them is held, and the next one is not.
///
/// What lies before the last is not looked at: whoever was sent a chunk was sent all before it, so
/// that only an entry that had to go can be missing there.
fn matched(engine: &Engine, chunks: &[u64]) -> Vec<(BackendId, usize)> {
    let all = engine.matched(chunks);
    let alone = |place: usize| engine.matched(&chunks[place..=place]);
    for (at, &(backend, matched)) in all.iter().enumerate() {
        assert!(matched <= chunks.len());
        assert!(matched == 0 || alone(matched - 1)[at] == (backend, 1), "the last one is held");
        // Behind these a chunk stands for several.
        let known = matched < chunks.len() && matched < MARKED;
        assert!(!known || alone(matched)[at] == (backend, 0), "the next one is not");
    }
    all
}
