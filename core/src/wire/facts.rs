//! Facts: what the proxy says of itself in `/metrics`, beside what its backends say.
//!
//! Owns the names and wording of the `vllm_proxy_*` families. Does not know who counted.

use crate::wire::metrics::{Families, Kind, Value};
use alloc::string::String;
use alloc::vec::Vec;

/// Numbers of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Every backend, in the order of upstreams.
    pub backends: Vec<BackendFacts>,
    /// Bytes of request bodies held.
    pub body_bytes: u64,
}

/// Numbers of one backend. Counters count since the process began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendFacts {
    /// Its address, which is the label of all its series.
    pub address: String,
    /// Whether it takes requests.
    pub up: bool,
    /// Requests it has now.
    pub in_flight: u64,
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
        each("vllm_proxy_backend_up", Kind::Gauge, "Whether the backend takes requests.", |one| {
            u64::from(one.up)
        });
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
        self.answers(&mut families);
        let name = "vllm_proxy_request_body_bytes";
        families.family(name, Kind::Gauge, "Bytes of request bodies held.");
        families.sample(name, &[], Value::Integer(self.body_bytes));
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

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;

    #[test]
    fn every_backend_has_its_series() {
        let backend = |address: &str, up| BackendFacts {
            address: address.to_string(),
            up,
            in_flight: 3,
            answers: [0, 0, 7, 0, 1, 0],
            failures: 2,
            broken: 1,
            unheard: 4,
            promised_tokens: 6,
            cached_tokens: 5,
        };
        let backends = vec![backend("10.0.0.1:8000", true), backend("unix:/a\"b", false)];
        let text = Facts { backends, body_bytes: 5 }.text();
        let text = core::str::from_utf8(&text).expect("text");
        for line in [
            "# TYPE vllm_proxy_backend_up gauge",
            r#"vllm_proxy_backend_up{backend="10.0.0.1:8000"} 1"#,
            r#"vllm_proxy_backend_up{backend="unix:/a\"b"} 0"#,
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
}
