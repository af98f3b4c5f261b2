//! Plan: a choice that was made and not carried out yet, and what was seen on the way to it.
//!
//! Owns how a plan becomes a fact. Does not choose.

use super::Engine;
use super::choose::weighs;
use crate::config::Policy;
use crate::fleet::BackendId;
use crate::route::{
    Candidate, Decision, Doubt, Held, Pool, Question, Reason, Refusal, Route, cost,
};
use crate::time::Instant;
use alloc::vec::Vec;
use log::{Level, log_enabled};

/// What a request comes to, as long as nothing has changed by it.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it is moved once, and a box would be an allocation")]
pub(super) enum Verdict {
    /// A backend is to get it.
    Send(Plan),
    /// No backend is chosen.
    Say(Decision),
}

impl From<Decision> for Verdict {
    fn from(decision: Decision) -> Self {
        Self::Say(decision)
    }
}

impl From<Refusal> for Verdict {
    fn from(refusal: Refusal) -> Self {
        Self::Say(Decision::Refuse(refusal))
    }
}

/// A backend was chosen.
#[derive(Debug)]
pub(super) struct Plan {
    /// The request's number, if it is sent.
    pub(super) id: u64,
    pub(super) held: Held,
    pub(super) reason: Reason,
    pub(super) doubt: Doubt,
    pub(super) seen: Seen,
}

/// Who was to choose among. Takes no room and no time unless somebody wants to know.
#[derive(Debug, Default)]
pub(super) struct Seen {
    wanted: bool,
    pub(super) question: Option<Question>,
    /// With the prompt tokens that each is believed to have cached.
    pub(super) candidates: Vec<(Candidate, u64)>,
}

impl Seen {
    /// To be told, or logged.
    pub(super) fn new(told: bool) -> Self {
        Self { wanted: told || log_enabled!(Level::Debug), ..Self::default() }
    }

    pub(super) fn asks(&mut self, question: Question) {
        if self.wanted {
            self.question = Some(question);
        }
    }

    #[inline]
    pub(super) fn sees(&mut self, candidate: Candidate, cached_tokens: impl FnOnce() -> u64) {
        if self.wanted {
            self.candidates.push((candidate, cached_tokens()));
        }
    }

    /// How many there were.
    pub(super) const fn count(&self) -> usize {
        self.candidates.len()
    }

    /// What waits at one of them, in tokens.
    pub(super) fn queued(&self, backend: BackendId) -> Option<i64> {
        let mut candidates = self.candidates.iter();
        let (found, _) = candidates.find(|(candidate, _)| candidate.backend == backend)?;
        Some(found.in_hand.queued / 1_000)
    }

    /// What the one in this place of the ranking costs, in tokens; `None` if costs do not count.
    pub(super) fn cost(&self, place: usize) -> Option<i64> {
        let question = self.question.filter(|question| question.policy != Policy::RoundRobin)?;
        let mut ranked: Vec<_> = self.candidates.iter().map(|(candidate, _)| candidate).collect();
        ranked.sort_unstable_by(|one, other| question.compare(one, other));
        let candidate = ranked.get(place)?;
        let cost = cost(question.work, question.request, question.fastest, candidate);
        Some(cost.work / 1_000)
    }
}

impl Engine {
    /// Sends a request where it was planned to go.
    pub(super) fn carry_out(&mut self, plan: Plan, now: Instant) -> Option<Route> {
        let Plan { id, held, reason, doubt, seen } = plan;
        // Nobody else asks whose turn it was.
        if self.config.policy == Policy::RoundRobin
            && let Pool::Model(name) = &held.pool
            && let Some((_, model, backends)) = self.fleet.model(name)
        {
            if weighs(model, &backends) {
                let weighed = |&id| Some((id, backends.find(id)?.spec.labels.weight));
                let all = model.holders.iter().filter_map(weighed);
                model.turns.took_by_weight(held.backend, all);
            } else {
                model.turns.took(held.backend);
            }
        }
        let route = self.send(id, held, reason, &seen, now)?;
        self.next_ticket = self.next_ticket.max(id.saturating_add(1));
        Some(Route { doubt, ..route })
    }
}
