//! Deadlines: what is due when, and what follows if it does not come.

use super::attempt::Attempt;
use super::{Drain, Exchange, Order, Phase};
use crate::route::Refusal;
use crate::time::{Duration, Instant, Wake};
use crate::wire::head::RequestError;

/// How often a request asks again for room that the budget of bodies did not have.
pub(super) const RESERVE_AGAIN: Duration = Duration::from_millis(50);
/// How long it asks before it is refused.
const RESERVE_WAIT: Duration = Duration::from_secs(60);
/// How long a client that goes on sending may do so after it was refused. As nginx's
/// `lingering_time`: one that sends everything before it reads should find the answer.
pub(super) const LINGER_MAX: Duration = Duration::from_secs(30);

impl Exchange {
    /// When to say [`Input::Timeout`](super::Input::Timeout). It moves with every byte, so a
    /// runtime does better not to set its timer anew each time: let it fire, and look again.
    pub fn poll_timeout(&self) -> Option<Wake> {
        self.stalled().into_iter().chain(self.due()).min_by_key(|wake| wake.at)
    }

    /// When a client that owes reading counts as gone.
    fn stalled(&self) -> Option<Wake> {
        let owes = self.client_owes_reading() && !matches!(self.phase, Phase::Closed);
        owes.then(|| Wake {
            at: self.client_at + self.patience(&self.limits),
            why: "the client takes nothing",
        })
    }

    /// When something else is due.
    fn due(&self) -> Option<Wake> {
        let limits = &*self.limits;
        let wake = |at, why| Some(Wake { at, why });
        match &self.phase {
            Phase::Head if self.request.is_begun() => {
                wake(self.client_at + limits.head_timeout, "the request head is due")
            }
            Phase::Head if self.drain == Drain::Closing => {
                wake(self.client_at + limits.linger, "the process stops")
            }
            Phase::Head if self.requests == 0 => {
                wake(self.client_at + limits.head_timeout, "the request head is due")
            }
            Phase::Head => wake(self.client_at + limits.keep_alive, "the connection is idle"),
            Phase::Body => match self.request.starved() {
                Some(again) => wake(again, "the body waits for memory"),
                None => wake(self.client_at + limits.body_timeout, "the request body is due"),
            },
            Phase::Later(at) => wake(*at, "the engine did not know yet"),
            // A backend that is not read, since the client does not read, owes nothing.
            Phase::Upstream => self
                .attempt
                .as_ref()
                .filter(|attempt| !attempt.is_open() || !self.client_owes_reading())
                .and_then(|attempt| Attempt::deadline(attempt, limits)),
            Phase::Nameless => self.nameless_due(),
            Phase::Piped(_) => self.piped_due(limits),
            Phase::Lingering { until, .. } => wake(*until, "the client was told to go"),
            Phase::Gathering(gather) => wake(gather.deadline(), "the errands do not end"),
            Phase::Watching(at) if !self.client_owes_reading() => wake(*at, "there is news"),
            Phase::Asked | Phase::Watching(_) | Phase::Answered | Phase::Closed => None,
        }
    }

    pub(super) fn timeout(&mut self, now: Instant) {
        let passed = |wake: Option<Wake>| wake.is_some_and(|wake| wake.at <= now);
        if passed(self.stalled()) {
            // Should it come back, it must not take what it got for a whole answer.
            return self.client_gone(true);
        }
        if !passed(self.due()) {
            return;
        }
        match self.phase {
            Phase::Head if self.request.is_begun() => self.refuse(RequestError::Timeout, now),
            Phase::Head | Phase::Lingering { .. } => self.close(false),
            Phase::Body => self.body_timeout(now),
            Phase::Later(_) => {
                self.phase = Phase::Asked;
                self.orders.push_back(Order::Ask);
            }
            Phase::Upstream => self.upstream_timeout(now),
            Phase::Nameless => self.nameless_timeout(now),
            Phase::Piped(_) => self.piped_timeout(),
            Phase::Gathering(_) => self.gathering_timeout(now),
            Phase::Watching(_) => self.watch(),
            Phase::Asked | Phase::Answered | Phase::Closed => {}
        }
    }

    fn body_timeout(&mut self, now: Instant) {
        match self.request.starved() {
            Some(_) if self.request.starved_for(now) >= RESERVE_WAIT => {
                let answer = Refusal::Busy.answer(self.request.shape());
                self.answer_and_linger(&answer, now);
            }
            Some(_) => self.orders.push_back(Order::Reserve(self.request.wanted())),
            None => self.refuse(RequestError::Timeout, now),
        }
    }
}
