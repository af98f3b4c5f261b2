//! The status as JSON.
//!
//! Owns the names of the fields, which are documented in the README. Says nothing that is secret:
//! which models a backend has that asks for a key is told by that backend alone.

use super::{BackendStatus, IndexStatus, Status};
use crate::fleet::{Address, BackendSpec};
use crate::tally::{Ending, Fault, Own, Recent, Refused, Summary};
use crate::time::Instant;
use crate::wire::facts::SharingFacts;
use crate::wire::probe::ModelCard;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use serde::{Serialize, Serializer};

/// Names told of one backend. Base models and their aliases are few; adapters may be thousands, on
/// each of thousands of backends.
pub(super) const MODELS_MAX: usize = 100;
/// Names told of the whole fleet.
pub(super) const MODELS_OF_FLEET_MAX: usize = 1_000;

impl Status {
    /// All of it.
    pub fn text(&self) -> Vec<u8> {
        serde_json::to_vec(&self.json()).expect("text and finite numbers have a JSON form")
    }

    fn json(&self) -> Json<'_> {
        let none = SharingFacts::default();
        let sharing = self.sharing.as_ref();
        let facts = sharing.unwrap_or(&none);
        let totals = &self.totals;
        let recent = self.backends.iter().map(|backend| &backend.recent);
        Json {
            build: BuildJson {
                version: self.build.version,
                commit: self.build.commit,
                features: self.build.features.join(","),
                runtime: self.build.runtime,
            },
            started_at_unix_seconds: self.epoch_micros / 1_000_000,
            uptime_seconds: self.now.since(Instant::START).as_secs(),
            draining: self.draining,
            request_body_bytes: self.body_bytes,
            engine: EngineJson {
                waits: self.waits.count,
                longest_wait_us: u64::try_from(self.waits.longest.as_micros()).unwrap_or(u64::MAX),
            },
            totals: TotalsJson {
                requests: totals.endings.iter().sum(),
                in_flight: self.backends.iter().map(|one| u64::from(one.in_flight)).sum(),
                retries: totals.retries.iter().sum(),
                refusals: totals.refused.iter().sum(),
                own_answers: totals.own.iter().sum(),
                failures: totals.failures,
                log_entries_dropped: totals.log_entries_dropped,
            },
            statuses: Words(Ending::ALL.map(Ending::as_str), totals.endings),
            retries: Words(Fault::ALL.map(Fault::as_str), totals.retries),
            refusals: Words(Refused::ALL.map(Refused::as_str), totals.refused),
            own_answers: Words(Own::ALL.map(Own::as_str), totals.own),
            recent: RecentJson::of(Recent::summary_of(recent, self.now)),
            models: self.models(),
            index: self.index,
            replicas: sharing.map(|facts| ReplicasJson {
                id: format!("{:016x}", facts.proxy),
                alive: facts.alive,
                alone: facts.alone,
                missed: facts.missed,
                dropped_chunks: facts.dropped_chunks,
                lost_batches: facts.lost_batches,
                unreadable: facts.unreadable,
            }),
            redis: RedisJson {
                configured: sharing.is_some(),
                connected: facts.connected,
                reason: facts.reason.as_deref().map(ToString::to_string),
                // No lag is so long that a float cannot hold its microseconds.
                lag_ms: facts.lag.map(|lag| lag.as_micros() as f64 / 1_000.0),
            },
            backends: self.backends.iter().map(|one| BackendJson::of(one, self.now)).collect(),
        }
    }

    /// Every name, with how many backends list it.
    fn models(&self) -> Vec<ModelJson<'_>> {
        let mut models: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for backend in &self.backends {
            for card in backend.models.iter().flat_map(|cards| cards.iter()).take(MODELS_MAX) {
                let (up, known) = models.entry(&card.id).or_default();
                *up += usize::from(backend.takes);
                *known += 1;
            }
        }
        let models = models.into_iter().take(MODELS_OF_FLEET_MAX);
        models.map(|(name, (up, known))| ModelJson { name, up, known }).collect()
    }
}

#[derive(Serialize)]
struct Json<'a> {
    build: BuildJson,
    started_at_unix_seconds: u64,
    uptime_seconds: u64,
    draining: bool,
    request_body_bytes: u64,
    engine: EngineJson,
    totals: TotalsJson,
    statuses: Words<{ Ending::ALL.len() }>,
    retries: Words<{ Fault::ALL.len() }>,
    refusals: Words<{ Refused::ALL.len() }>,
    own_answers: Words<{ Own::ALL.len() }>,
    recent: RecentJson,
    models: Vec<ModelJson<'a>>,
    index: Option<IndexStatus>,
    replicas: Option<ReplicasJson>,
    redis: RedisJson,
    backends: Vec<BackendJson<'a>>,
}

#[derive(Serialize)]
struct BuildJson {
    version: &'static str,
    commit: &'static str,
    features: String,
    runtime: &'static str,
}

#[derive(Serialize)]
struct EngineJson {
    waits: u64,
    longest_wait_us: u64,
}

#[derive(Serialize)]
struct TotalsJson {
    requests: u64,
    in_flight: u64,
    retries: u64,
    refusals: u64,
    own_answers: u64,
    failures: u64,
    log_entries_dropped: u64,
}

#[derive(Serialize)]
struct ModelJson<'a> {
    name: &'a str,
    up: usize,
    known: usize,
}

#[derive(Serialize)]
struct ReplicasJson {
    id: String,
    alive: usize,
    alone: bool,
    missed: u64,
    dropped_chunks: u64,
    lost_batches: u64,
    unreadable: u64,
}

#[derive(Serialize)]
struct RedisJson {
    configured: bool,
    connected: bool,
    reason: Option<String>,
    lag_ms: Option<f64>,
}

/// Counts by their words.
struct Words<const N: usize>([&'static str; N], [u64; N]);

impl<const N: usize> Serialize for Words<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().zip(self.1))
    }
}

#[derive(Serialize)]
struct RecentJson {
    seconds: u64,
    requests: u64,
    failures: u64,
    requests_per_second: f64,
    first_byte_p50_ms: Option<f64>,
    first_byte_p95_ms: Option<f64>,
    predicted_ratio: Option<f64>,
    reported_ratio: Option<f64>,
}

impl RecentJson {
    fn of(summary: Summary) -> Self {
        let Summary { seconds, requests, failures, .. } = summary;
        Self {
            seconds,
            requests,
            failures,
            requests_per_second: ratio(requests, seconds.max(1)).unwrap_or(0.0),
            first_byte_p50_ms: summary.first_byte_p50_ms,
            first_byte_p95_ms: summary.first_byte_p95_ms,
            predicted_ratio: summary.predicted_ratio.map(rounded),
            reported_ratio: summary.reported_ratio.map(rounded),
        }
    }
}

#[derive(Serialize)]
struct BackendJson<'a> {
    address: String,
    upstream: String,
    weight: f64,
    draining: bool,
    state: &'a str,
    why: Option<String>,
    rests: bool,
    version: Option<&'a str>,
    models: Option<Vec<&'a str>>,
    in_flight: u32,
    in_flight_elsewhere: u32,
    queued_tokens: u64,
    resident_tokens: u64,
    cache_tokens: Option<u64>,
    requests: u64,
    failures: u64,
    statuses: Words<{ Ending::ALL.len() }>,
    errors: Words<{ Fault::OF_BACKENDS.len() }>,
    last_failure: Option<LastFailureJson>,
    cache: CacheJson,
    recent: RecentJson,
}

#[derive(Serialize)]
struct LastFailureJson {
    reason: &'static str,
    age_seconds: u64,
}

#[derive(Serialize)]
struct CacheJson {
    prompt_tokens: u64,
    predicted_tokens: u64,
    reported_tokens: u64,
    predicted_ratio: Option<f64>,
    reported_ratio: Option<f64>,
    sent_prompt_tokens: u64,
    sent_predicted_tokens: u64,
}

impl<'a> BackendJson<'a> {
    fn of(backend: &'a BackendStatus, now: Instant) -> Self {
        let names = |cards: &'a Arc<[ModelCard]>| {
            cards.iter().take(MODELS_MAX).map(|card| card.id.as_str()).collect()
        };
        let last_failure = backend.recent.last_failure();
        let tokens = backend.tokens;
        Self {
            address: backend.spec.address.to_string(),
            upstream: upstream(&backend.spec),
            weight: f64::from(backend.spec.labels.weight) / 100.0,
            draining: backend.draining,
            state: backend.state,
            why: backend.why.map(|why| why.to_string()),
            rests: backend.rests,
            version: backend.version.as_deref(),
            models: backend.models.as_ref().map(names),
            in_flight: backend.in_flight,
            in_flight_elsewhere: backend.in_flight_elsewhere,
            queued_tokens: backend.queued_tokens,
            resident_tokens: backend.resident_tokens,
            cache_tokens: backend.cache_tokens,
            requests: backend.endings.iter().sum(),
            failures: backend.failures,
            statuses: Words(Ending::ALL.map(Ending::as_str), backend.endings),
            errors: Words(
                Fault::OF_BACKENDS.map(Fault::as_str),
                Fault::OF_BACKENDS.map(|fault| backend.faults[fault as usize]),
            ),
            last_failure: last_failure.map(|(reason, at)| LastFailureJson {
                reason,
                age_seconds: now.since(at).as_secs(),
            }),
            cache: CacheJson {
                prompt_tokens: tokens.prompt,
                predicted_tokens: tokens.predicted,
                reported_tokens: tokens.reported,
                predicted_ratio: ratio(tokens.predicted, tokens.prompt),
                reported_ratio: ratio(tokens.reported, tokens.prompt),
                sent_prompt_tokens: backend.sent_tokens,
                sent_predicted_tokens: backend.sent_predicted_tokens,
            },
            recent: RecentJson::of(backend.recent.summary(now)),
        }
    }
}

/// The upstream as the operator wrote it, which holds no secret.
fn upstream(spec: &BackendSpec) -> String {
    match &spec.address {
        Address::Tcp(_) => format!("http://{}{}", spec.authority, spec.prefix),
        Address::Unix(path) => format!("unix://{path}"),
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| rounded(part as f64 / whole as f64))
}

/// With no more digits than anybody reads.
fn rounded(value: f64) -> f64 {
    // No ratio nor rate of a process is so large that this loses anything.
    (value * 1_000.0 + 0.5) as u64 as f64 / 1_000.0
}
