//! Counting: which of the fleet's counts each word of a request changes.
//!
//! Owns what is counted when, and nothing else follows from it. How counts look is
//! [`wire::facts`](crate::wire::facts)'s.

use super::Engine;
use crate::fleet::BackendId;
use crate::route::{Decision, Failure, Held, Outcome, Refusal, RequestMeta, Who};
use crate::tally::{Ending, Fault, Own, Refused, Tokens, rows_max};
use crate::time::{Duration, Instant};
use alloc::sync::Arc;

/// What the last answer of a request is, if it is tried no more.
pub(super) struct Last {
    kept: Option<(BackendId, u16)>,
    /// Who failed last.
    failed: BackendId,
    model: Option<Arc<str>>,
    since: Instant,
}

impl Engine {
    /// Asks who takes a request.
    pub fn route(&mut self, request: &RequestMeta<'_>, now: Instant) -> Decision {
        let decision = self.decide(request, now);
        match &decision {
            Decision::Answer(_) | Decision::Explained(_) => {
                self.totals.own[Own::Answer as usize] += 1
            }
            // One who watches asks again and again, and has no end.
            Decision::Status(_) | Decision::Shown(_) if request.who == Who::Events => {}
            Decision::Status(_) | Decision::Shown(_) => self.totals.own[Own::Status as usize] += 1,
            Decision::Gather(_) => self.totals.own[Own::Merged as usize] += 1,
            Decision::Refuse(refusal) => self.count_refused(refusal.reason()),
            // Of the first two, what becomes of the ticket is counted, or the next question.
            Decision::Forward(_) | Decision::Accept | Decision::Later(_) => {}
        }
        decision
    }

    /// A decision took so long, with the wait for whoever asked before.
    pub fn routed(&mut self, time: Duration) {
        self.totals.routing.add(time);
    }

    /// A request was refused with this status before its end was read.
    pub fn declined(&mut self, status: u16) {
        self.count_refused(Refused::unread(status));
    }

    fn count_refused(&mut self, why: Refused) {
        self.totals.refused[why as usize] += 1;
    }

    /// An attempt failed.
    pub(super) fn count_fault(&mut self, held: &mut Held, why: Failure, now: Instant) -> Last {
        let fault = why.fault();
        let answered = match why {
            Failure::Status(status) => Some(status),
            Failure::ErrorEvent => Some(200),
            Failure::Unlisted | Failure::Elsewhere => Some(404),
            Failure::Connect
            | Failure::NoSocket
            | Failure::Stale
            | Failure::Lost
            | Failure::Cut
            | Failure::Nonsense
            | Failure::Timeout => None,
        };
        held.kept = answered.map(|status| (held.backend, status)).or(held.kept);
        if let Some(backend) = self.fleet.backend_mut(held.backend) {
            backend.counts.faults[fault as usize] += 1;
            if fault.is_failure() {
                backend.recent.failed(fault, now);
            }
        }
        self.totals.failures += u64::from(fault.is_failure());
        Last { kept: held.kept, failed: held.backend, model: held.model(), since: held.since }
    }

    /// Another attempt was made after one that failed.
    pub(super) fn count_retry(&mut self, why: Failure) {
        self.totals.retries[why.fault() as usize] += 1;
    }

    /// No other attempt was made: the last answer is passed, if there is one and it is the last
    /// word, else the refusal.
    pub(super) fn count_last(&mut self, last: Last, refusal: &Refusal, now: Instant) {
        match last.kept.filter(|_| *refusal != Refusal::Unasked) {
            Some((backend, status)) => {
                // Who answered may be gone by now; who failed after it is not.
                let is_there = self.fleet.backend(backend).is_some();
                let backend = if is_there { backend } else { last.failed };
                let ending = Ending::of_status(status);
                self.count_ending(backend, last.model.as_ref(), ending, now);
                self.count_first_byte(backend, Some(now.since(last.since)), now);
                self.count_duration(backend, now.since(last.since));
            }
            None => self.count_refused(refusal.reason()),
        }
    }

    /// A ticket is settled.
    pub(super) fn count_end(&mut self, held: &Held, outcome: Outcome, now: Instant) {
        let ending = match outcome {
            Outcome::Done { status, .. } => Ending::of_status(status),
            Outcome::ClientGone => Ending::ClientGone,
            Outcome::Broken => Ending::Broken,
            Outcome::TimedOut => Ending::TimedOut,
        };
        self.count_ending(held.backend, held.model().as_ref(), ending, now);
        let time = now.since(held.since);
        let is_answer = matches!(outcome, Outcome::Done { .. });
        // An answer that came in one piece began when it ended.
        if is_answer && !held.begun {
            self.count_first_byte(held.backend, Some(time), now);
        }
        // A websocket lasts as long as somebody talks, however it ends.
        let talked = held.websocket && held.begun && !is_answer;
        if ending != Ending::Informed && !talked {
            self.count_duration(held.backend, time);
        }
    }

    fn count_ending(
        &mut self,
        backend: BackendId,
        model: Option<&Arc<str>>,
        ending: Ending,
        now: Instant,
    ) {
        self.totals.endings[ending as usize] += 1;
        let rows_max = rows_max(self.fleet.backends().len());
        let Some(backend) = self.fleet.backend_mut(backend) else { return };
        backend.counts.ended(model, ending, rows_max);
        backend.recent.ended(now);
        if ending == Ending::Broken {
            backend.recent.broke(now);
        }
    }

    /// The first byte of an answer came so long after the request, if it is the first.
    pub(super) fn count_first_byte(
        &mut self,
        backend: BackendId,
        waited: Option<Duration>,
        now: Instant,
    ) {
        if let Some(waited) = waited
            && let Some(backend) = self.fleet.backend_mut(backend)
        {
            backend.counts.first_byte.add(waited);
            backend.recent.first_byte(waited, now);
        }
    }

    fn count_duration(&mut self, backend: BackendId, time: Duration) {
        if let Some(backend) = self.fleet.backend_mut(backend) {
            backend.counts.duration.add(time);
        }
    }

    /// An answer said what was cached of its prompt.
    pub(super) fn count_tokens(
        &mut self,
        backend: BackendId,
        prompt: u64,
        predicted: u64,
        reported: u64,
        now: Instant,
    ) {
        if let Some(backend) = self.fleet.backend_mut(backend) {
            // What is more than the whole prompt was no prediction of this one.
            let predicted = predicted.min(prompt);
            backend.counts.tokens.merge(Tokens { prompt, predicted, reported });
            backend.recent.cached(prompt, predicted, reported, now);
        }
    }
}

impl Held {
    /// The model that it is counted for; `None` if that is one that nobody lists, or none.
    fn model(&self) -> Option<Arc<str>> {
        self.pool.shared_model().filter(|_| !self.unheard_of).cloned()
    }
}

impl Failure {
    /// What it is counted as.
    const fn fault(self) -> Fault {
        match self {
            Self::Connect => Fault::Connect,
            Self::NoSocket => Fault::NoSocket,
            Self::Stale => Fault::Stale,
            Self::Lost => Fault::Lost,
            Self::Cut => Fault::Cut,
            Self::Nonsense => Fault::Nonsense,
            Self::Status(_) => Fault::Status,
            Self::ErrorEvent => Fault::ErrorEvent,
            Self::Unlisted => Fault::Unlisted,
            Self::Elsewhere => Fault::Elsewhere,
            Self::Timeout => Fault::Timeout,
        }
    }
}

impl Refusal {
    /// What it is counted as.
    const fn reason(&self) -> Refused {
        match self {
            Self::UnknownModel { .. } => Refused::UnknownModel,
            Self::UnknownBackend { .. } => Refused::UnknownBackend,
            Self::Ambiguous { .. } => Refused::Ambiguous,
            Self::ModelDown { .. } => Refused::ModelDown,
            Self::Drained { .. } => Refused::Drained,
            Self::Starting => Refused::Starting,
            Self::Busy => Refused::Busy,
            Self::Unasked => Refused::Unasked,
            Self::NoAnswer => Refused::NoAnswer,
            Self::TimedOut => Refused::Timeout,
        }
    }
}
