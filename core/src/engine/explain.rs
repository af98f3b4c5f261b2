//! Explain: what a request would come to now, without anything coming of it.
//!
//! Makes the same plan as for a request that is sent, by the same code, and drops it. Copies plain
//! data and makes no text, as [`status`](super::status) does.
//!
//! Invariant: nothing changes by it. The next request is chosen for as if nobody had asked.

use super::Engine;
use super::plan::{Plan, Seen, Verdict};
use super::status::state;
use crate::fleet::{Backend, BackendId};
use crate::route::{Decision, Explained, Known, Outlook, Pool, Refusal, RequestMeta, Who, Work};
use crate::time::Instant;
use alloc::borrow::ToOwned;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Among whom a request chooses, or would if somebody were eligible.
enum Among {
    Pool(Pool),
    These(Vec<BackendId>),
}

impl Engine {
    /// What a request would come to now, if no backend lists more than it did when it was asked.
    pub(super) fn explain(&mut self, request: &RequestMeta<'_>, now: Instant) -> Explained {
        let asked = request.model.filter(|name| !name.is_empty()).map(ToOwned::to_owned);
        let named = asked.as_deref().map(Arc::from).or_else(|| self.default_name());
        let waits = matches!(self.plan(request, true, now), Verdict::Say(Decision::Later(_)));
        // Names that are known are not looked for once more.
        let known = named.as_deref().is_none_or(|name| self.fleet.knows(name));
        let first = known || self.fleet.first_round_unfinished();
        let waits_for = waits.then_some(if first { "first-probes" } else { "model-lists" });
        let length = named.as_deref().map(|name| self.fleet.token_length(name)).unwrap_or_default();
        let mut work = Work::of_prompt(length.work_of(request.prompt_bytes));
        let mut seen = Seen::default();
        let (outlook, among) = match self.plan(request, false, now) {
            Verdict::Send(plan) => {
                let Plan { held, reason, seen: asked, .. } = plan;
                (seen, work) = (asked, held.work);
                let (backend, predicted_tokens) = (held.backend, held.promise.tokens);
                let judges = self.judges(request, named.as_deref(), &held.pool);
                let judges = judges.map(|name| self.unknown_to_all(name));
                let outlook = Outlook::Forward { backend, reason, predicted_tokens, judges };
                (outlook, Among::Pool(held.pool))
            }
            Verdict::Say(Decision::Gather(gathering)) => {
                let asked: Vec<_> = gathering.asked.iter().map(|asked| asked.backend).collect();
                (Outlook::Gather(asked.clone()), Among::These(asked))
            }
            Verdict::Say(Decision::Refuse(refusal)) => {
                let pool = named.clone().map_or(Pool::Keyed, Pool::Model);
                (Outlook::Refuse(refusal), Among::Pool(pool))
            }
            Verdict::Say(Decision::Answer(answer)) => {
                (Outlook::Answer(Some(answer.status)), Among::These(Vec::new()))
            }
            Verdict::Say(
                Decision::Status(_)
                | Decision::Shown(_)
                | Decision::Explained(_)
                | Decision::Accept
                | Decision::Later(_)
                | Decision::Forward(_),
            ) => (Outlook::Answer(None), Among::These(Vec::new())),
        };
        let of_pool = match &among {
            Among::Pool(Pool::Model(model)) => Some(Arc::clone(model)),
            Among::Pool(_) | Among::These(_) => None,
        };
        Explained {
            policy: self.config.policy,
            asked,
            model: of_pool.or(named),
            prompt_bytes: request.prompt_bytes,
            prompt_tokens: u64::try_from(work.prompt / 1_000).unwrap_or(0),
            chunks: request.prompt.chunks().len(),
            waits_for,
            alone: self.is_cut_off(),
            outlook,
            question: seen.question,
            candidates: seen.candidates,
            backends: self.known(&among),
        }
    }

    /// The name that nobody lists, if whoever is asked only judges the request.
    fn judges<'a>(
        &self,
        request: &RequestMeta<'_>,
        named: Option<&'a str>,
        pool: &Pool,
    ) -> Option<&'a str> {
        let chooses = matches!(request.who, Who::Backend | Who::Realtime);
        let judged = matches!(pool, Pool::Model(_) | Pool::Keyed) && chooses;
        named.filter(|name| judged && pool.model() != Some(*name))
    }

    /// What is said of a name that nobody lists; without those that there are, if these are only
    /// for whoever has a key.
    fn unknown_to_all(&self, name: &str) -> Refusal {
        if self.fleet.any_keyed() {
            return Refusal::UnknownModel { model: name.to_owned(), bases: Vec::new() };
        }
        self.unknown_model(name)
    }

    /// All backends, and why each is not chosen among.
    fn known(&self, among: &Among) -> Vec<Known> {
        let known = |backend: &Backend| Known {
            backend: backend.id,
            spec: Arc::clone(&backend.spec),
            state: state(backend),
            rests: backend.rests(),
            draining: backend.drain.is_on(),
            excluded: self.excluded(backend, among),
            in_flight: backend.load.in_flight(),
            in_flight_elsewhere: backend.load.others.in_flight(),
            trust: backend.trust.kept(),
        };
        self.fleet.everyone().into_iter().map(known).collect()
    }

    fn excluded(&self, backend: &Backend, among: &Among) -> Option<&'static str> {
        let lists = |model: &str| self.fleet.holders(model).contains(&backend.id);
        let outside = match among {
            Among::These(these) => (!these.contains(&backend.id)).then_some("not-asked"),
            Among::Pool(Pool::Search { model: None, .. }) => None,
            Among::Pool(Pool::Model(model) | Pool::Search { model: Some(model), .. }) => {
                (!lists(model)).then_some("other-model")
            }
            Among::Pool(Pool::Resolvers) => {
                (!backend.is_of(&self.config.forward_unknown)).then_some("no-resolver")
            }
            Among::Pool(Pool::Keyed) => (!backend.is_keyed()).then_some("no-key"),
        };
        match among {
            Among::These(_) => outside,
            // Who keeps something is asked for it all the same.
            Among::Pool(Pool::Search { .. }) => {
                backend.unheard_of().or(outside).or_else(|| backend.obstacle())
            }
            Among::Pool(Pool::Model(_) | Pool::Resolvers | Pool::Keyed) => backend
                .unheard_of()
                .or(outside)
                .or_else(|| backend.obstacle())
                .or_else(|| (!backend.takes()).then_some("draining")),
        }
    }
}
