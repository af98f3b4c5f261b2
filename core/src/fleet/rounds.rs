//! Rounds: whether every backend has been asked for its models, and how long ago.
//!
//! Owns the list of who still owes an answer. Does not ask by itself.

use crate::fleet::BackendId;
use crate::time::{Duration, Instant};
use alloc::vec::Vec;

/// How long what a round has learned counts as fresh; hence rounds begin at most once a second,
/// however many unknown names are asked for.
const FRESH: Duration = Duration::from_secs(1);

/// The round under way, or the last one.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    pending: Vec<BackendId>,
    /// Whether what runs asks everyone, not only those who just joined.
    full: bool,
    /// When the last full round ended; `None` until the first has.
    ended: Option<Instant>,
}

impl Rounds {
    /// Whether the first round has yet to end, or to begin.
    pub(crate) const fn first_unfinished(&self) -> bool {
        self.ended.is_none()
    }

    /// Whether everyone is being asked.
    pub(crate) const fn running(&self) -> bool {
        self.full
    }

    /// Whether a round ended so lately that another would bring nothing new.
    pub(crate) fn is_fresh(&self, now: Instant) -> bool {
        self.ended.is_some_and(|ended| now.since(ended) < FRESH)
    }

    /// What was learned may have changed since.
    pub(crate) fn stale(&mut self) {
        self.ended = self.ended.map(|_| Instant::START);
    }

    /// Everyone is asked. A round of nobody ends as it begins.
    pub(crate) fn begin(&mut self, everyone: Vec<BackendId>, now: Instant) {
        self.pending = everyone;
        self.full = true;
        self.end_if_done(now);
    }

    /// A backend that is asked for the first time joins what runs.
    pub(crate) fn join(&mut self, backend: BackendId) {
        if self.full {
            self.pending.push(backend);
        }
    }

    /// A backend answered, or left.
    pub(crate) fn answered(&mut self, backend: BackendId, now: Instant) {
        self.pending.retain(|&pending| pending != backend);
        self.end_if_done(now);
    }

    fn end_if_done(&mut self, now: Instant) {
        if self.full && self.pending.is_empty() {
            self.full = false;
            self.ended = Some(now);
        }
    }
}
