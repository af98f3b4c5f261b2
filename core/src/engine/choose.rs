//! Choosing: among whom, who of them, and what follows if there is nobody.
//!
//! Knows the fleet and the policy; what a choice costs is told by [`route`](crate::route).
//!
//! Invariant: what chooses changes nothing that another choice follows from, so that it can be
//! asked what it would do: a [`Plan`] is made, and only [`Engine::carry_out`] counts it anywhere.

use super::plan::{Plan, Seen, Verdict};
use super::{Engine, later};
use crate::config::Policy;
use crate::fleet::{Backend, BackendId, Backends, Model, TokenLength, differ};
use crate::route::{
    CHUNK_BYTES, Candidate, Doubt, Held, Pool, Promise, Question, Reason, Refusal, RequestMeta,
    Retry, Route, Ticket, Tried, Who, Work, fastest, favourite, first_unpopular, pick,
};
use crate::time::Instant;
use crate::wire::answers::Answer;
use alloc::borrow::ToOwned;
use alloc::sync::Arc;
use alloc::vec::Vec;
use log::debug;

impl Engine {
    /// Whether the policy asks what prompts have in common.
    const fn index_wanted(&self) -> bool {
        matches!(self.config.policy, Policy::CacheAware) && self.fleet.index.is_some()
    }

    /// Asks who of a model's backends takes a request, or why none does.
    pub(super) fn forward(
        &mut self,
        request: &RequestMeta<'_>,
        patient: bool,
        unsure: bool,
        now: Instant,
    ) -> Verdict {
        // Who keeps the response serves the model that it goes on with.
        if request.model.is_none()
            && request.response.is_some_and(|id| self.fleet.owners.find(id, now).is_some())
        {
            return self.search(request, None, now);
        }
        let default;
        let name = match request.model.filter(|name| !name.is_empty()) {
            Some(name) => name,
            None => match self.default_name() {
                Some(name) => {
                    default = name;
                    &*default
                }
                None if unsure => return later(now).into(),
                None => return Refusal::Starting.into(),
            },
        };
        if let Some((model, _, _)) = self.fleet.model(name) {
            if request.response.is_some() {
                return self.search(request, Some(model), now);
            }
            if let Some(mut plan) = self.first_choice(request, Pool::Model(model), now) {
                if request.model.is_some() {
                    plan.doubt = Doubt::Unlisted;
                }
                return Verdict::Send(plan);
            }
        }
        if unsure {
            return later(now).into();
        }
        if self.fleet.knows(name) {
            // Where a name stands for other servers all at once, those that it has now are asked
            // already, and none of the former is left.
            if patient && self.fleet.any_newcomer() {
                return later(now).into();
            }
            return self.unserved(name).into();
        }
        let resolvers = self.fleet.resolves(&self.config.forward_unknown);
        if !resolvers && patient {
            let is_fresh = if request.dry_run {
                !self.fleet.would_refresh(now)
            } else {
                self.fleet.refreshed(now)
            };
            if !is_fresh {
                return later(now).into();
            }
        }
        // "Unknown" is a word about the whole fleet, and who cannot be asked has not agreed.
        if !self.fleet.all_listed(self.config.upstreams) || !self.fleet.any_serves() {
            return Refusal::Starting.into();
        }
        let refusal = self.unknown_model(name);
        if request.who == Who::Realtime {
            // It has said nothing else that a backend could object to.
            return refusal.into();
        }
        let plan = if resolvers {
            self.first_choice(request, Pool::Resolvers, now)
        } else {
            self.ask_default(request, &refusal, now)
        };
        match plan {
            Some(plan) => Verdict::Send(plan),
            None => refusal.into(),
        }
    }

    /// A request about a stored response goes to whoever keeps it.
    pub(super) fn search(
        &mut self,
        request: &RequestMeta<'_>,
        model: Option<Arc<str>>,
        now: Instant,
    ) -> Verdict {
        let owner = request.response.and_then(|id| self.fleet.owners.find(id, now));
        let down = match &model {
            Some(model) => Refusal::ModelDown { model: (**model).to_owned() },
            None => Refusal::Starting,
        };
        let pool = Pool::Search { model, owner, from: BackendId(0) };
        match self.first_choice(request, pool, now) {
            Some(plan) => Verdict::Send(Plan { doubt: Doubt::Elsewhere, ..plan }),
            None => down.into(),
        }
    }

    /// Lets a backend that asks for a key say whether it accepts the client's; `answer` is for
    /// clients that it accepts, in place of its own.
    pub(super) fn ask_keyed(
        &mut self,
        request: &RequestMeta<'_>,
        answer: Option<Answer>,
        now: Instant,
    ) -> Verdict {
        match (self.first_choice(request, Pool::Keyed, now), answer) {
            (Some(plan), Some(answer)) if request.allow.is_none() => {
                Verdict::Send(Plan { doubt: Doubt::Key(answer), ..plan })
            }
            (Some(plan), _) => Verdict::Send(plan),
            (None, _) => self.unready().into(),
        }
    }

    pub(super) fn default_name(&self) -> Option<Arc<str>> {
        match &self.config.default_model {
            Some(name) => Some(Arc::from(name.as_str())),
            None => self.fleet.default_model(),
        }
    }

    /// What to say of a name that nobody serves.
    pub(super) fn unknown_model(&self, name: &str) -> Refusal {
        let cards = self.fleet.cards();
        let bases = cards.iter().filter(|card| card.is_base());
        Refusal::UnknownModel {
            model: name.to_owned(),
            bases: bases.map(|card| card.id().to_owned()).collect(),
        }
    }

    /// Lets a backend of the default model judge a request whose model nobody lists. vLLM looks at
    /// the path, the body and its fields before the model's name, and words all that by itself.
    /// Where some ask for a key, one of these judges: the refusal names all models.
    fn ask_default(
        &mut self,
        request: &RequestMeta<'_>,
        refusal: &Refusal,
        now: Instant,
    ) -> Option<Plan> {
        let pool = if self.fleet.any_keyed() {
            Pool::Keyed
        } else {
            let default = self.default_name()?;
            let (model, _, _) = self.fleet.model(&default)?;
            Pool::Model(model)
        };
        let mut plan = self.first_choice(request, pool, now)?;
        // A backend that serves all there is says it best.
        let Refusal::UnknownModel { bases, .. } = refusal else { return Some(plan) };
        let backend = self.fleet.backend(plan.held.backend);
        let knows_all = backend.is_some_and(|backend| backend.bases().eq(bases));
        if !knows_all {
            plan.doubt = Doubt::Unknown(refusal.clone());
        }
        Some(plan)
    }

    /// Chooses one of a pool for a new request; `None` if none is eligible.
    fn first_choice(
        &mut self,
        request: &RequestMeta<'_>,
        pool: Pool,
        now: Instant,
    ) -> Option<Plan> {
        let named = request.model.filter(|name| !name.is_empty());
        let held = Held {
            since: request.since,
            begun: false,
            unheard_of: named.is_some_and(|name| pool.model() != Some(name)),
            kept: None,
            // Nobody yet: `choose` fills in who, when and as which attempt.
            backend: BackendId(u32::MAX),
            dispatch: 0,
            sent: now,
            tried: Tried::default(),
            attempt: 0,
            delivered: 0,
            pool,
            // Nothing is estimated yet either: how long tokens are is the model's to say.
            work: Work::of_prompt(0),
            prompt_bytes: request.prompt_bytes,
            promise: Promise::default(),
            chunks: if self.index_wanted() { request.prompt.shared() } else { Arc::default() },
            stream: request.stream,
            retry: request.retry,
            websocket: request.websocket,
            fresh: false,
        };
        let seen = Seen::new(request.dry_run);
        self.choose(self.next_ticket, held, seen, now)
    }

    /// Chooses the best backend that a request was not sent to yet.
    pub(super) fn choose(
        &mut self,
        id: u64,
        mut held: Held,
        mut seen: Seen,
        now: Instant,
    ) -> Option<Plan> {
        let (tried, policy, cut_off) = (held.tried, self.config.policy, self.is_cut_off());
        let abroad = self.abroad(now);
        let length = match held.pool.model() {
            Some(model) => self.fleet.token_length(model),
            None => TokenLength::default(),
        };
        let work = Work::of_prompt(length.work_of(held.prompt_bytes));
        let chunk = length.work_of(CHUNK_BYTES as u64);
        held.work = work;
        let chunk_tokens = u32::try_from(chunk / 1_000).unwrap_or(u32::MAX);
        held.promise = Promise { chunk_tokens, ..Promise::default() };
        // Equal prompts rotate alike, so that the next one finds what the last one left.
        let turn = held.chunks.first().copied().unwrap_or(id);
        let question = |last, fastest| Question { policy, work, request: turn, last, fastest };
        let untried = |id: &BackendId| !tried.contains(*id);
        let (backend, reason) = match &mut held.pool {
            Pool::Model(model) => {
                if let Some(index) = &self.fleet.index {
                    index.matches(&held.chunks, &mut self.matches);
                }
                let matches = &self.matches;
                let matched = |backend: &Backend| {
                    let slot = backend.slot.filter(|_| !held.chunks.is_empty());
                    slot.map_or(0, |slot| matches.at(slot))
                };
                let cached =
                    |backend: &Backend| backend.trust.discounted(matched(backend) as i64 * chunk);
                let promised = |matched| u64::try_from(matched as i64 * chunk / 1_000).unwrap_or(0);
                let (_, model, mut backends) = self.fleet.model(model)?;
                let holders = || model.holders.iter().copied().filter(untried);
                let taking = |id| backends.find(id).filter(|backend| backend.takes());
                let fastest = fastest(
                    holders().filter_map(taking).map(|backend| backend.load.pace().nanos()),
                );
                let favourite = cut_off.then(|| {
                    let eligible = || holders().filter_map(taking);
                    let mut held_by: Vec<_> = eligible().map(matched).collect();
                    let chunk = held.chunks.get(first_unpopular(&mut held_by))?;
                    favourite(*chunk, eligible().map(|backend| (backend.id, backend.shared.name)))
                });
                let favourite = favourite.flatten();
                let by_weight = policy == Policy::RoundRobin && weighs(model, &backends);
                let turns = &model.turns;
                let question = question(turns.last(), fastest);
                seen.asks(question);
                let candidates = holders().filter_map(|id| {
                    let fresh = backends.fresh(id);
                    let backend = backends.find_mut(id)?;
                    let (cached, favoured) = (cached(backend), favourite == Some(id));
                    let surcharge = if backend.shared.abroad { abroad } else { 0 };
                    let candidate = candidate(backend, now)?;
                    let due = if by_weight { turns.due(id, candidate.weight) } else { 0 };
                    let candidate =
                        Candidate { cached, fresh, favoured, surcharge, due, ..candidate };
                    seen.sees(candidate, || promised(matched(backend)));
                    Some(candidate)
                });
                let (chosen, mut reason) = pick(question, candidates)?;
                if let Some(backend) = backends.find(chosen) {
                    held.work = work.with_cached(cached(backend));
                    let matched = matched(backend);
                    held.promise = Promise {
                        tokens: promised(matched),
                        chunk_tokens,
                        had_more: backends.has_expired(chosen, &held.chunks, matched),
                    };
                    if matched > 0 && reason == Reason::LeastWork {
                        reason = Reason::Cached;
                    }
                }
                (chosen, reason)
            }
            Pool::Search { model, owner, from } => {
                let among: Vec<BackendId> = match model {
                    Some(model) => self.fleet.model(model)?.1.holders.clone(),
                    None => self.fleet.backends().iter().map(|backend| backend.id).collect(),
                };
                let fleet = &self.fleet;
                let mut ready =
                    among.into_iter().filter(|&id| fleet.backend(id).is_some_and(Backend::serves));
                // The owner is asked first, and not again in its turn.
                let first = (held.backend == BackendId(u32::MAX)).then_some(*owner).flatten();
                match first {
                    Some(owner) if ready.clone().any(|id| id == owner) => (owner, Reason::Owner),
                    Some(_) | None => {
                        let next = ready.find(|id| *id >= *from && Some(*id) != *owner)?;
                        *from = BackendId(next.0.saturating_add(1));
                        (next, Reason::Search)
                    }
                }
            }
            pool @ (Pool::Resolvers | Pool::Keyed) => {
                let resolvers = matches!(pool, Pool::Resolvers);
                let forward_unknown = &self.config.forward_unknown;
                let question = question(None, None);
                seen.asks(question);
                let candidates = self.fleet.backends_mut().iter_mut().filter_map(|backend| {
                    let belongs =
                        if resolvers { backend.is_of(forward_unknown) } else { backend.is_keyed() };
                    let candidate =
                        (belongs && untried(&backend.id)).then(|| candidate(backend, now))??;
                    seen.sees(candidate, || 0);
                    Some(candidate)
                });
                pick(question, candidates)?
            }
        };
        held.backend = backend;
        // A search asks everyone in turn: its failures alone count, as they come.
        if !matches!(held.pool, Pool::Search { .. }) {
            held.tried.push(backend);
        }
        held.fresh = held.retry == Retry::Never;
        held.attempt = held.attempt.saturating_add(1);
        Some(Plan { id, held, reason, doubt: Doubt::None, seen })
    }

    /// Counts a request at its backend and hands out the ticket.
    pub(super) fn send(
        &mut self,
        id: u64,
        held: Held,
        reason: Reason,
        seen: &Seen,
        now: Instant,
    ) -> Option<Route> {
        // A prompt that is being computed counts as cached: whoever comes next waits behind it.
        if let Some(index) = &mut self.fleet.index {
            let chunk_tokens = held.promise.chunk_tokens;
            let inserted = index.insert(held.backend, &held.chunks, chunk_tokens, &mut self.told);
            if let Some(inserted) = inserted {
                self.tell_placed(held.backend, inserted.stamp);
            }
            self.told.clear();
        }
        self.tell_of(held.backend);
        let backend = self.fleet.backend_mut(held.backend)?;
        if let Some(sharing) = &mut self.sharing {
            sharing.pulse.sent(now);
        }
        let dispatch = self.next_dispatch;
        self.next_dispatch += 1;
        backend.load.add(dispatch, held.work.uncached, held.work.prompt, held.stream, now);
        let prompt = u64::try_from(held.work.prompt / 1_000).unwrap_or(0);
        backend.window.sent(prompt, held.promise.tokens);
        backend.counts.sent(prompt, held.promise.tokens);
        // Nothing of this is reckoned unless somebody reads it.
        debug!(
            request = id, backend:% = held.backend, address:% = backend.spec.address,
            model = held.pool.model().unwrap_or_default(), reason = reason.as_str(),
            attempt = held.attempt, prompt_tokens = prompt,
            predicted_cached_tokens = held.promise.tokens, candidates = seen.count(),
            queued_tokens = seen.queued(held.backend), cost = seen.cost(0),
            next_cost = seen.cost(1);
            "routed"
        );
        let route = Route {
            backend: held.backend,
            spec: Arc::clone(&backend.spec),
            reason,
            predicted_tokens: held.promise.tokens,
            attempt: held.attempt,
            fresh: held.fresh,
            doubt: Doubt::None,
            ticket: Ticket::issue(id),
        };
        self.tickets.insert(id, Held { dispatch, sent: now, ..held });
        Some(route)
    }
}

/// How gladly a backend is given requests.
pub(super) fn reluctance(backend: &Backend) -> u8 {
    u8::from(!backend.is_up()) + 2 * u8::from(backend.rests())
}

/// Whether a model's backends are of different weights, so that their turns are, too.
pub(super) fn weighs(model: &Model, backends: &Backends<'_>) -> bool {
    let holders = model.holders.iter().filter_map(|&id| backends.find(id));
    differ(holders.filter(|one| one.takes()).map(|one| one.spec.labels.weight))
}

/// A backend as one to choose; `None` if it takes no new requests.
///
/// One that rests was told to: it says 503 in its own words if nobody else is there. A suspect may
/// yet answer, and a connection that is refused costs a client less than an error does.
fn candidate(backend: &mut Backend, now: Instant) -> Option<Candidate> {
    backend.takes().then(|| Candidate {
        backend: backend.id,
        reluctance: reluctance(backend),
        in_hand: backend.load.standing(now),
        cached: 0,
        fresh: 0,
        pace: backend.load.pace().nanos(),
        weight: backend.spec.labels.weight,
        due: 0,
        name: backend.shared.name,
        favoured: false,
        surcharge: 0,
    })
}
