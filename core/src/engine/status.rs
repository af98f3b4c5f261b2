//! What the proxy says of itself: numbers for `/metrics`, and `/proxy/status`.
//!
//! Copies plain data and makes no text: it is called with the lock in hand, and there may be
//! thousands of backends. How it looks is [`wire::facts`](crate::wire::facts)'s and
//! [`wire::status`](crate::wire::status)'s.

use super::Engine;
use super::several::address;
use crate::fleet::{Backend, PrefixIndex, State};
use crate::time::{Duration, Instant};
use crate::wire::facts::{BackendFacts, Facts, SharingFacts};
use crate::wire::status::{BackendStatus, IndexStatus, Status};
use alloc::sync::Arc;

impl Engine {
    /// Numbers of this moment.
    pub(super) fn facts(&self, everyone: &[&Backend]) -> Facts {
        let backends = everyone.iter().map(|backend| BackendFacts {
            address: address(backend),
            up: backend.serves(),
            draining: backend.drain.is_on(),
            in_flight: u64::from(backend.load.in_flight()),
            in_flight_elsewhere: u64::from(backend.load.others.in_flight()),
            answers: backend.counts.answers,
            failures: backend.counts.failures,
            broken: backend.counts.broken,
            unheard: backend.counts.unheard,
            promised_tokens: backend.counts.promised_tokens,
            cached_tokens: backend.counts.cached_tokens,
        });
        let (backends, sharing) = (backends.collect(), self.sharing_facts());
        Facts { backends, body_bytes: self.body_bytes, sharing }
    }

    /// How it stands now.
    pub(super) fn status(&mut self, now: Instant) -> Status {
        for backend in self.fleet.backends_mut() {
            backend.load.expire(now);
        }
        let index = self.fleet.index.as_ref();
        let backends = self.fleet.staying();
        let backends = backends.into_iter().map(|backend| {
            let standing = backend.load.sums(now);
            let tokens = |milli: i64| u64::try_from(milli / 1_000).unwrap_or(0);
            BackendStatus {
                spec: Arc::clone(&backend.spec),
                state: state(backend),
                rests: backend.rests(),
                draining: backend.drain.is_on(),
                models: (!backend.is_keyed()).then(|| Arc::clone(&backend.models)),
                in_flight: backend.load.in_flight(),
                in_flight_elsewhere: backend.load.others.in_flight(),
                queued_tokens: tokens(standing.queued),
                resident_tokens: tokens(standing.resident),
                cache_tokens: index.map(|index| index.capacity(backend.id)),
            }
        });
        Status {
            uptime: now.since(Instant::START),
            draining: self.draining,
            body_bytes: self.body_bytes,
            waits: self.waits,
            index: index.map(index_status),
            sharing: self.sharing_facts(),
            backends: backends.collect(),
        }
    }

    /// Whoever asks now waited so long for somebody else who did.
    pub fn waited(&mut self, time: Duration) {
        self.waits.count += 1;
        self.waits.longest = self.waits.longest.max(time);
    }

    fn sharing_facts(&self) -> Option<SharingFacts> {
        let (sharing, report) = (self.sharing.as_ref()?, self.reported()?);
        let company = self.company();
        Some(SharingFacts {
            proxy: sharing.own.0,
            alive: company.alive,
            alone: self.is_cut_off(),
            missed: company.missed,
            dropped_chunks: company.dropped,
            connected: report.connected,
            lag: report.lag,
            lost_batches: report.lost_batches,
            unreadable: report.unreadable,
            reason: report.reason.clone(),
        })
    }
}

/// How a backend is, in a word.
pub(super) fn state(backend: &Backend) -> &'static str {
    match backend.health.state() {
        State::Unknown => "unknown",
        State::Up => "up",
        State::Suspect => "suspect",
        State::Down => "down",
    }
}

fn index_status(index: &PrefixIndex) -> IndexStatus {
    IndexStatus { entries: index.len(), entries_max: index.len_max() }
}
