//! What the proxy says of itself: numbers for `/metrics`, and `/proxy/status`.
//!
//! Copies plain data and makes no text: it is called with the lock in hand, and there may be
//! thousands of backends. How it looks is [`wire::facts`](crate::wire::facts)'s and
//! [`wire::status`](crate::wire::status)'s.

use super::Engine;
use crate::fleet::{Backend, PrefixIndex, State};
use crate::time::{Duration, Instant};
use crate::wire::facts::{BackendFacts, Facts, ProcessFacts, SharingFacts, Standing};
use crate::wire::status::{BackendStatus, IndexStatus, Status};
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

impl Engine {
    /// Numbers of this moment.
    pub(super) fn facts(&self, everyone: &[&Backend], now: Instant) -> Facts {
        let mut backends: Vec<_> = everyone.iter().map(|backend| facts_of(backend, now)).collect();
        let leaving = self.fleet.leaving().map(|backend| {
            let in_flight = Some(u64::from(backend.load.in_flight()));
            (&backend.spec.address, in_flight, &backend.counts)
        });
        let gone = self.fleet.departed.told(now);
        let gone = gone.map(|(address, counts)| (address, None, counts));
        let mut others = leaving.chain(gone).peekable();
        if others.peek().is_some() {
            let places = backends.iter().map(|one| one.address.clone()).zip(0..);
            let mut places: BTreeMap<_, usize> = places.collect();
            for (address, in_flight, counts) in others {
                match places.get(address).and_then(|&at| backends.get_mut(at)) {
                    Some(one) => one.merge(in_flight, counts),
                    None => {
                        places.insert(address.clone(), backends.len());
                        let (address, counts) = (address.clone(), counts.clone());
                        backends.push(BackendFacts { address, standing: None, in_flight, counts });
                    }
                }
            }
        }
        let process = ProcessFacts {
            build: self.config.build,
            epoch_micros: self.config.epoch_micros,
            draining: self.draining,
            body_bytes: self.body_bytes,
            waits: self.waits,
            index: self.fleet.index.as_ref().map(index_status),
            totals: self.totals.clone(),
        };
        Facts { backends, process, sharing: self.sharing_facts() }
    }

    /// How it stands now.
    pub(super) fn status(&mut self, now: Instant) -> Status {
        for backend in self.fleet.backends_mut() {
            backend.load.expire(now);
            backend.recent.roll(now);
        }
        let index = self.fleet.index.as_ref();
        let backends = self.fleet.staying();
        let backends = backends.into_iter().map(|backend| {
            let standing = backend.load.sums(now);
            let counts = &backend.counts;
            BackendStatus {
                spec: Arc::clone(&backend.spec),
                state: state(backend),
                why: backend.health.why(),
                takes: backend.takes(),
                rests: backend.rests(),
                draining: backend.drain.is_on(),
                version: backend.version.clone(),
                models: (!backend.is_keyed()).then(|| Arc::clone(&backend.models)),
                in_flight: backend.load.in_flight(),
                in_flight_elsewhere: backend.load.others.in_flight(),
                queued_tokens: tokens(standing.queued),
                resident_tokens: tokens(standing.resident),
                cache_tokens: index.map(|index| index.capacity(backend.id)),
                endings: counts.endings(),
                faults: counts.faults,
                failures: counts.failures(),
                tokens: counts.tokens,
                sent_tokens: counts.sent_tokens,
                sent_predicted_tokens: counts.sent_predicted_tokens,
                recent: backend.recent,
            }
        });
        Status {
            now,
            build: self.config.build,
            epoch_micros: self.config.epoch_micros,
            totals: self.totals.clone(),
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

fn facts_of(backend: &Backend, now: Instant) -> BackendFacts {
    let standing = Standing {
        up: backend.serves(),
        state: state(backend),
        draining: backend.drain.is_on(),
        in_flight_elsewhere: u64::from(backend.load.others.in_flight()),
        queued_tokens: tokens(backend.load.sums(now).queued),
    };
    BackendFacts {
        address: backend.spec.address.clone(),
        standing: Some(standing),
        in_flight: Some(u64::from(backend.load.in_flight())),
        counts: backend.counts.clone(),
    }
}

fn tokens(milli: i64) -> u64 {
    u64::try_from(milli / 1_000).unwrap_or(0)
}
