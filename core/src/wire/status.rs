//! Status: what the proxy says of itself at `/proxy/status`, as JSON.
//!
//! Owns the names of the fields. Does not know who counted, and says nothing that is secret: which
//! models a backend has that asks for a key is told by that backend alone.

use crate::fleet::BackendSpec;
use crate::time::Duration;
use crate::wire::answers::Answer;
use crate::wire::facts::SharingFacts;
use crate::wire::probe::ModelCard;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use serde::Serialize;

/// Names told of one backend. Base models and their aliases are few; adapters may be thousands, on
/// each of thousands of backends.
const MODELS_MAX: usize = 100;

/// How it stands at one moment. Copying it out of the engine takes some dozens of nanoseconds a
/// backend; text is made of it elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Since the process began.
    pub uptime: Duration,
    /// Whether the process was told to stop.
    pub draining: bool,
    /// Bytes of request bodies held.
    pub body_bytes: u64,
    /// How long whoever asked the engine waited for others who did.
    pub waits: Waits,
    /// What is remembered of prompts, if the policy asks.
    pub index: Option<IndexStatus>,
    /// How it stands with other proxies, if there may be any.
    pub sharing: Option<SharingFacts>,
    /// Every backend, in the order of upstreams.
    pub backends: Vec<BackendStatus>,
}

/// Waits for the engine, since the process began. Each is as long as somebody else's question, or
/// as whoever asked it was kept from a processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// How often somebody waited at all.
    pub count: u64,
    /// The longest of these waits.
    pub longest: Duration,
}

/// How full the index of prompts is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct IndexStatus {
    /// Beginnings of prompts, each counted for each backend that holds it.
    pub entries: usize,
    /// How many there may be.
    pub entries_max: usize,
}

/// How it stands with one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendStatus {
    /// Where it is.
    pub spec: Arc<BackendSpec>,
    /// `unknown`, `up`, `suspect` or `down`.
    pub state: &'static str,
    /// Whether it was told to sleep or to pause.
    pub rests: bool,
    /// Whether it is to get no new requests, by an operator's word.
    pub draining: bool,
    /// What it lists; `None` if it asks for a key.
    pub models: Option<Arc<[ModelCard]>>,
    /// Requests that this proxy has there.
    pub in_flight: u32,
    /// Requests that other proxies have there.
    pub in_flight_elsewhere: u32,
    /// Uncached prompt tokens that wait there or are being computed, whoever sent them.
    pub queued_tokens: u64,
    /// Prompt tokens of all requests in flight there, whoever sent them.
    pub resident_tokens: u64,
    /// Tokens that its cache is believed to hold; `None` if nobody asks.
    pub cache_tokens: Option<u64>,
}

impl Status {
    /// The whole answer.
    pub fn answer(&self) -> Answer {
        let none = SharingFacts::default();
        let sharing = self.sharing.as_ref();
        let facts = sharing.unwrap_or(&none);
        let json = Json {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.uptime.as_secs(),
            draining: self.draining,
            request_body_bytes: self.body_bytes,
            engine: EngineJson {
                waits: self.waits.count,
                longest_wait_us: u64::try_from(self.waits.longest.as_micros()).unwrap_or(u64::MAX),
            },
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
                reason: facts.reason.as_deref(),
                // No lag is so long that a float cannot hold its microseconds.
                lag_ms: facts.lag.map(|lag| lag.as_micros() as f64 / 1_000.0),
            },
            backends: self.backends.iter().map(BackendJson::of).collect(),
        };
        let body = serde_json::to_vec(&json).expect("text and finite numbers have a JSON form");
        Answer::json(200, body)
    }
}

#[derive(Serialize)]
struct Json<'a> {
    version: &'a str,
    uptime_seconds: u64,
    draining: bool,
    request_body_bytes: u64,
    engine: EngineJson,
    index: Option<IndexStatus>,
    replicas: Option<ReplicasJson>,
    redis: RedisJson<'a>,
    backends: Vec<BackendJson<'a>>,
}

#[derive(Serialize)]
struct EngineJson {
    waits: u64,
    longest_wait_us: u64,
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
struct RedisJson<'a> {
    configured: bool,
    connected: bool,
    reason: Option<&'a str>,
    lag_ms: Option<f64>,
}

#[derive(Serialize)]
struct BackendJson<'a> {
    address: String,
    state: &'a str,
    rests: bool,
    draining: bool,
    models: Option<Vec<&'a str>>,
    in_flight: u32,
    in_flight_elsewhere: u32,
    queued_tokens: u64,
    resident_tokens: u64,
    cache_tokens: Option<u64>,
}

impl<'a> BackendJson<'a> {
    fn of(backend: &'a BackendStatus) -> Self {
        let names = |cards: &'a Arc<[ModelCard]>| {
            cards.iter().take(MODELS_MAX).map(|card| card.id.as_str()).collect()
        };
        Self {
            address: backend.spec.address.to_string(),
            state: backend.state,
            rests: backend.rests,
            draining: backend.draining,
            models: backend.models.as_ref().map(names),
            in_flight: backend.in_flight,
            in_flight_elsewhere: backend.in_flight_elsewhere,
            queued_tokens: backend.queued_tokens,
            resident_tokens: backend.resident_tokens,
            cache_tokens: backend.cache_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Address, Labels};
    use alloc::vec;
    use serde_json::{Value, json};

    fn backend(models: Option<usize>) -> BackendStatus {
        let card = |at| ModelCard { id: format!("m\"{at}"), ..ModelCard::default() };
        BackendStatus {
            spec: Arc::new(BackendSpec {
                upstream: 0,
                address: Address::Unix("/a\"b".to_string()),
                authority: "a".to_string(),
                prefix: String::new(),
                labels: Labels::default(),
            }),
            state: "up",
            rests: false,
            draining: true,
            models: models.map(|count| (0..count).map(card).collect()),
            in_flight: 1,
            in_flight_elsewhere: 2,
            queued_tokens: 3,
            resident_tokens: 4,
            cache_tokens: Some(5),
        }
    }

    fn told(status: &Status) -> Value {
        let answer = status.answer();
        assert_eq!((answer.status, answer.content_type), (200, Some("application/json")));
        serde_json::from_slice(&answer.body).expect("it is JSON")
    }

    #[test]
    fn all_that_is_known_is_told() {
        let status = Status {
            uptime: Duration::from_millis(61_900),
            draining: false,
            body_bytes: 7,
            waits: Waits { count: 14, longest: Duration::from_micros(15) },
            index: Some(IndexStatus { entries: 8, entries_max: 9 }),
            sharing: Some(SharingFacts {
                proxy: 0xab,
                alive: 2,
                alone: true,
                missed: 10,
                dropped_chunks: 13,
                connected: false,
                lag: Some(Duration::from_micros(1_250)),
                lost_batches: 11,
                unreadable: 12,
                reason: Some("connection refused".into()),
            }),
            backends: vec![backend(Some(2)), backend(None)],
        };
        let backend = json!({
            "address": "unix:/a\"b",
            "state": "up",
            "rests": false,
            "draining": true,
            "models": ["m\"0", "m\"1"],
            "in_flight": 1,
            "in_flight_elsewhere": 2,
            "queued_tokens": 3,
            "resident_tokens": 4,
            "cache_tokens": 5,
        });
        let mut keyed = backend.clone();
        keyed["models"] = Value::Null;
        let expected = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": 61,
            "draining": false,
            "request_body_bytes": 7,
            "engine": { "waits": 14, "longest_wait_us": 15 },
            "index": { "entries": 8, "entries_max": 9 },
            "replicas": {
                "id": "00000000000000ab",
                "alive": 2,
                "alone": true,
                "missed": 10,
                "dropped_chunks": 13,
                "lost_batches": 11,
                "unreadable": 12,
            },
            "redis": {
                "configured": true,
                "connected": false,
                "reason": "connection refused",
                "lag_ms": 1.25,
            },
            "backends": [backend, keyed],
        });
        assert_eq!(told(&status), expected);
    }

    #[test]
    fn nothing_is_known() {
        let expected = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": 0,
            "draining": false,
            "request_body_bytes": 0,
            "engine": { "waits": 0, "longest_wait_us": 0 },
            "index": null,
            "replicas": null,
            "redis": { "configured": false, "connected": false, "reason": null, "lag_ms": null },
            "backends": [],
        });
        assert_eq!(told(&Status::default()), expected);
    }

    #[test]
    fn names_have_a_limit() {
        let backends = vec![backend(Some(10_000)); 2];
        let told = told(&Status { backends, ..Status::default() });
        assert_eq!(told["backends"][1]["models"].as_array().map(Vec::len), Some(MODELS_MAX));
    }
}
