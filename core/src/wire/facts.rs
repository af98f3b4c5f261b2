//! Facts: what the proxy says of itself in `/metrics`, beside what its backends say.
//!
//! Owns the names and wording of the `vllm_proxy_*` families. Does not know who counted.

use crate::time::Duration;
use crate::wire::metrics::{Families, Kind, Value};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Numbers of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Every backend, in the order of upstreams.
    pub backends: Vec<BackendFacts>,
    /// Bytes of request bodies held.
    pub body_bytes: u64,
    /// How it stands with other proxies, if there may be any.
    pub sharing: Option<SharingFacts>,
}

/// How it stands with other proxies. Counters count since the process began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SharingFacts {
    /// This proxy's number among them.
    pub proxy: u64,
    /// Others that are heard.
    pub alive: usize,
    /// Whether others are believed to be there and cannot be heard.
    pub alone: bool,
    /// Updates of others that were never heard.
    pub missed: u64,
    /// Chunks that were no longer told, since too many waited.
    pub dropped_chunks: u64,
    /// Whether there is a connection to Redis.
    pub connected: bool,
    /// How long the last own update took to be heard back.
    pub lag: Option<Duration>,
    /// Batches of updates that never left.
    pub lost_batches: u64,
    /// What was heard and could not be read.
    pub unreadable: u64,
    /// What is wrong with the connection. Never holds a secret.
    pub reason: Option<Arc<str>>,
}

/// Numbers of one backend. Counters count since the process began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendFacts {
    /// Its address, which is the label of all its series.
    pub address: String,
    /// Whether it is up or may be, drained or not.
    pub up: bool,
    /// Whether it is to get no new requests.
    pub draining: bool,
    /// Requests it has now.
    pub in_flight: u64,
    /// Requests that other proxies have there.
    pub in_flight_elsewhere: u64,
    /// Answers that passed whole, by the hundreds of their status; odd ones are in the first place.
    pub answers: [u64; 6],
    /// Attempts that failed before anything reached a client.
    pub failures: u64,
    /// Answers that ended as broken.
    pub broken: u64,
    /// Questions to several backends that this one left unanswered.
    pub unheard: u64,
    /// Prompt tokens believed to be cached there when requests were sent.
    pub promised_tokens: u64,
    /// Prompt tokens that its answers said were cached.
    pub cached_tokens: u64,
}

impl Facts {
    /// As metrics in the Prometheus text format.
    pub fn text(&self) -> Vec<u8> {
        let mut families = Families::default();
        let mut each = |name: &str, kind, help: &str, value: fn(&BackendFacts) -> u64| {
            families.family(name, kind, help);
            for backend in &self.backends {
                let labels = [("backend", backend.address.as_str())];
                families.sample(name, &labels, Value::Integer(value(backend)));
            }
        };
        each("vllm_proxy_backend_up", Kind::Gauge, "Whether the backend is up or may be.", |one| {
            u64::from(one.up)
        });
        let draining = "Whether the backend is to get no new requests.";
        each("vllm_proxy_backend_draining", Kind::Gauge, draining, |one| one.draining.into());
        each("vllm_proxy_requests_in_flight", Kind::Gauge, "Requests that it has now.", |one| {
            one.in_flight
        });
        let failed = "Attempts that failed before anything reached a client.";
        each("vllm_proxy_attempts_failed_total", Kind::Counter, failed, |one| one.failures);
        let broken = "Answers that ended as broken.";
        each("vllm_proxy_answers_broken_total", Kind::Counter, broken, |one| one.broken);
        let unheard = "Parts in requests to several backends that it left unanswered.";
        each("vllm_proxy_parts_unanswered_total", Kind::Counter, unheard, |one| one.unheard);
        let promised = "Prompt tokens believed to be cached there when requests were sent.";
        each("vllm_proxy_predicted_cached_tokens_total", Kind::Counter, promised, |one| {
            one.promised_tokens
        });
        let cached = "Prompt tokens that its answers said were cached.";
        each("vllm_proxy_reported_cached_tokens_total", Kind::Counter, cached, |one| {
            one.cached_tokens
        });
        if self.sharing.is_some() {
            let elsewhere = "Requests that other proxies have there.";
            each("vllm_proxy_requests_in_flight_elsewhere", Kind::Gauge, elsewhere, |one| {
                one.in_flight_elsewhere
            });
        }
        self.answers(&mut families);
        let name = "vllm_proxy_request_body_bytes";
        families.family(name, Kind::Gauge, "Bytes of request bodies held.");
        families.sample(name, &[], Value::Integer(self.body_bytes));
        if let Some(sharing) = &self.sharing {
            sharing.text(&mut families);
        }
        families.finish()
    }

    fn answers(&self, families: &mut Families) {
        const CLASSES: [&str; 6] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];
        let name = "vllm_proxy_answers_total";
        families.family(name, Kind::Counter, "Answers that passed whole, by their status.");
        for backend in &self.backends {
            for (class, count) in CLASSES.iter().zip(backend.answers) {
                let labels = [("backend", backend.address.as_str()), ("status", class)];
                families.sample(name, &labels, Value::Integer(count));
            }
        }
    }
}

impl SharingFacts {
    fn text(&self, families: &mut Families) {
        let mut one = |name: &str, kind, help: &str, value| {
            families.family(name, kind, help);
            families.sample(name, &[], value);
        };
        let integer = |value: bool| Value::Integer(value.into());
        let up = "Whether there is a connection to Redis.";
        one("vllm_proxy_redis_up", Kind::Gauge, up, integer(self.connected));
        if let Some(lag) = self.lag {
            let help = "How long the last own update took to be heard back.";
            let lag = Value::Decimal(lag.as_secs_f64());
            one("vllm_proxy_redis_lag_seconds", Kind::Gauge, help, lag);
        }
        let alive = Value::Integer(self.alive as u64);
        one("vllm_proxy_replicas", Kind::Gauge, "Other proxies that are heard.", alive);
        let alone = "Whether other proxies are believed to be there and cannot be heard.";
        one("vllm_proxy_alone", Kind::Gauge, alone, integer(self.alone));
        let missed = "Updates of other proxies that were never heard.";
        let name = "vllm_proxy_updates_missed_total";
        one(name, Kind::Counter, missed, Value::Integer(self.missed));
        let unreadable = "What was heard and could not be read.";
        let name = "vllm_proxy_updates_unreadable_total";
        one(name, Kind::Counter, unreadable, Value::Integer(self.unreadable));
        let name = "vllm_proxy_updates_dropped_total";
        families.family(name, Kind::Counter, "What was to be told and never left.");
        let batches = Value::Integer(self.lost_batches);
        families.sample(name, &[("what", "batches")], batches);
        let chunks = Value::Integer(self.dropped_chunks);
        families.sample(name, &[("what", "chunks")], chunks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;

    fn text(facts: &Facts) -> String {
        String::from_utf8(facts.text()).expect("text")
    }

    fn families(text: &str) -> Vec<&str> {
        let named = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        named.filter_map(|rest| rest.split(' ').next()).collect()
    }

    #[test]
    fn every_backend_has_its_series() {
        let backend = |address: &str, up| BackendFacts {
            address: address.to_string(),
            up,
            draining: !up,
            in_flight: 3,
            in_flight_elsewhere: 8,
            answers: [0, 0, 7, 0, 1, 0],
            failures: 2,
            broken: 1,
            unheard: 4,
            promised_tokens: 6,
            cached_tokens: 5,
        };
        let backends = vec![backend("10.0.0.1:8000", true), backend("unix:/a\"b", false)];
        let sharing = SharingFacts {
            proxy: 1,
            alive: 2,
            alone: true,
            missed: 9,
            dropped_chunks: 12,
            connected: true,
            lag: Some(Duration::from_micros(1_500)),
            lost_batches: 10,
            unreadable: 11,
            reason: None,
        };
        let facts = Facts { backends, body_bytes: 5, sharing: Some(sharing) };
        let text = text(&facts);
        for line in [
            "# TYPE vllm_proxy_redis_up gauge",
            "vllm_proxy_redis_up 1",
            "vllm_proxy_redis_lag_seconds 0.0015",
            "vllm_proxy_replicas 2",
            "vllm_proxy_alone 1",
            "# TYPE vllm_proxy_updates_missed_total counter",
            "vllm_proxy_updates_missed_total 9",
            r#"vllm_proxy_updates_dropped_total{what="batches"} 10"#,
            r#"vllm_proxy_updates_dropped_total{what="chunks"} 12"#,
            "vllm_proxy_updates_unreadable_total 11",
            r#"vllm_proxy_requests_in_flight_elsewhere{backend="10.0.0.1:8000"} 8"#,
            "# TYPE vllm_proxy_backend_up gauge",
            r#"vllm_proxy_backend_up{backend="10.0.0.1:8000"} 1"#,
            r#"vllm_proxy_backend_up{backend="unix:/a\"b"} 0"#,
            r#"vllm_proxy_backend_draining{backend="10.0.0.1:8000"} 0"#,
            r#"vllm_proxy_backend_draining{backend="unix:/a\"b"} 1"#,
            r#"vllm_proxy_requests_in_flight{backend="10.0.0.1:8000"} 3"#,
            r#"vllm_proxy_answers_total{backend="10.0.0.1:8000",status="2xx"} 7"#,
            r#"vllm_proxy_answers_total{backend="10.0.0.1:8000",status="4xx"} 1"#,
            r#"vllm_proxy_parts_unanswered_total{backend="10.0.0.1:8000"} 4"#,
            r#"vllm_proxy_predicted_cached_tokens_total{backend="10.0.0.1:8000"} 6"#,
            r#"vllm_proxy_reported_cached_tokens_total{backend="10.0.0.1:8000"} 5"#,
            "vllm_proxy_request_body_bytes 5",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn who_shares_nothing_says_nothing_of_it() {
        let shares = |name: &&str| {
            let words = ["redis", "replicas", "alone", "updates", "elsewhere"];
            words.iter().any(|word| name.contains(word))
        };
        let mut facts = Facts::default();
        assert_eq!(families(&text(&facts)).into_iter().find(shares), None);
        facts.sharing = Some(SharingFacts::default());
        let text = text(&facts);
        let named = families(&text);
        assert_eq!(named.iter().filter(|name| shares(name)).count(), 7, "{named:?}");
        assert!(!text.contains("lag"), "it is not known");
    }
}
