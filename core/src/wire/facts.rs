//! Facts: what the proxy says of itself in `/metrics`, beside what its backends say.
//!
//! Owns the names and wording of the `vllm_proxy_*` families; those that tell backends apart are in
//! `backends`. Does not know who counted.
//!
//! Names follow Prometheus's conventions: base units, `_total` behind counters, labels in the order
//! of their names. Series whose labels are known beforehand are there from the start, with 0: their
//! first event is not missed then.

mod backends;

pub use backends::{BackendFacts, Standing};

use crate::config::Build;
use crate::tally::{Fault, Histogram, Own, Refused, Totals};
use crate::time::Duration;
use crate::wire::metrics::{Families, Kind, Value};
use crate::wire::status::{IndexStatus, Waits};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Numbers of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Every backend, in the order of upstreams; then those that left lately.
    pub backends: Vec<BackendFacts>,
    /// The whole process.
    pub process: ProcessFacts,
    /// How it stands with other proxies, if there may be any.
    pub sharing: Option<SharingFacts>,
}

/// Numbers of the whole process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessFacts {
    /// What runs.
    pub build: Build,
    /// When it began, in microseconds since the Unix epoch.
    pub epoch_micros: u64,
    /// Whether it was told to stop.
    pub draining: bool,
    /// Bytes of request bodies held.
    pub body_bytes: u64,
    /// How long whoever asked the engine waited for others who did.
    pub waits: Waits,
    /// What is remembered of prompts, if the policy asks.
    pub index: Option<IndexStatus>,
    /// What was counted.
    pub totals: Totals,
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

impl Facts {
    /// As metrics in the Prometheus text format.
    pub fn text(&self) -> Vec<u8> {
        let mut families = Families::default();
        backends::text(&self.backends, self.sharing.is_some(), &mut families);
        self.process.text(&mut families);
        if let Some(sharing) = &self.sharing {
            sharing.text(&mut families);
        }
        families.finish()
    }
}

impl ProcessFacts {
    fn text(&self, families: &mut Families) {
        let refusals = "Requests that the proxy refused in its own words.";
        let counts = Refused::ALL.map(|one| (one.as_str(), self.totals.refused[one as usize]));
        counted(families, "vllm_proxy_refusals_total", refusals, "reason", &counts);
        let retries = "Attempts at another backend, or the same one again, after one that failed.";
        let counts = Fault::ALL.map(|one| (one.as_str(), self.totals.retries[one as usize]));
        counted(families, "vllm_proxy_retries_total", retries, "reason", &counts);
        let own = "Requests that the proxy answered itself.";
        let counts = Own::ALL.map(|one| (one.as_str(), self.totals.own[one as usize]));
        counted(families, "vllm_proxy_own_answers_total", own, "kind", &counts);

        let name = "vllm_proxy_routing_seconds";
        let help = "Time to decide where a request goes, waits for other requests included.";
        families.family(name, Kind::Histogram, help);
        histogram(families, name, None, &self.totals.routing);

        let mut one = |name: &str, kind, help: &str, value| {
            families.family(name, kind, help);
            families.sample(name, &[], value);
        };
        let waits = "Times that somebody had to wait for a decision about another request.";
        let count = Value::Integer(self.waits.count);
        one("vllm_proxy_engine_waits_total", Kind::Counter, waits, count);
        let longest = Value::Decimal(self.waits.longest.as_secs_f64());
        let help = "The longest of these waits.";
        one("vllm_proxy_engine_longest_wait_seconds", Kind::Gauge, help, longest);
        let bytes = Value::Integer(self.body_bytes);
        let help = "Bytes of request bodies held.";
        one("vllm_proxy_request_body_bytes", Kind::Gauge, help, bytes);
        if let Some(index) = self.index {
            let help = "Beginnings of prompts remembered, each for each backend that holds it.";
            let entries = Value::Integer(index.entries as u64);
            one("vllm_proxy_index_entries", Kind::Gauge, help, entries);
            let help = "How many there may be.";
            let entries_max = Value::Integer(index.entries_max as u64);
            one("vllm_proxy_index_entries_max", Kind::Gauge, help, entries_max);
        }
        let help = "Entries of the log that were never written.";
        let dropped = Value::Integer(self.totals.log_entries_dropped);
        one("vllm_proxy_log_entries_dropped_total", Kind::Counter, help, dropped);
        let help = "Whether the process was told to stop.";
        let draining = Value::Integer(self.draining.into());
        one("vllm_proxy_draining", Kind::Gauge, help, draining);
        let help = "When the process began, in seconds since the Unix epoch.";
        // No date of this millennium has more digits than a float has.
        let start = Value::Decimal(self.epoch_micros as f64 / 1e6);
        one("vllm_proxy_start_time_seconds", Kind::Gauge, help, start);

        let name = "vllm_proxy_build_info";
        families.family(name, Kind::Gauge, "What runs; always 1.");
        let Build { version, commit, features, runtime } = self.build;
        let labels = [
            ("commit", commit),
            ("features", &features.join(",")),
            ("runtime", runtime),
            ("version", version),
        ];
        families.sample(name, &labels, Value::Integer(1));
    }
}

/// A family of counters, told apart by one label.
fn counted(
    families: &mut Families,
    name: &str,
    help: &str,
    label: &str,
    counts: &[(&'static str, u64)],
) {
    families.family(name, Kind::Counter, help);
    for (word, count) in counts {
        families.sample(name, &[(label, word)], Value::Integer(*count));
    }
}

/// The samples of one histogram, of a backend or of the whole process.
fn histogram<const N: usize>(
    families: &mut Families,
    name: &str,
    backend: Option<&str>,
    histogram: &Histogram<N>,
) {
    let backend: Vec<_> = backend.map(|backend| ("backend", backend)).into_iter().collect();
    let part = |suffix: &str| {
        let mut part = String::from(name);
        part.push_str(suffix);
        part
    };
    let bucket = part("_bucket");
    for (bound, count) in histogram.buckets() {
        // As its shortest decimal: 0.005, 2.5, 10.
        let bound = bound.map(|micros| micros as f64 / 1e6).unwrap_or(f64::INFINITY);
        let bound = Value::Decimal(bound).to_string();
        let mut labels = backend.clone();
        labels.push(("le", &bound));
        families.sample(&bucket, &labels, Value::Integer(count));
    }
    let seconds = Value::Decimal(histogram.sum_micros() as f64 / 1e6);
    families.sample(&part("_sum"), &backend, seconds);
    families.sample(&part("_count"), &backend, Value::Integer(histogram.count()));
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
pub(super) mod tests;
