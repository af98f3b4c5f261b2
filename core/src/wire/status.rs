//! Status: what the proxy says of itself at `/proxy/status`, as JSON.
//!
//! Does not know who counted. How it looks, and what of it is not for everyone, is told by
//! `json`.

mod json;

use crate::config::Build;
use crate::fleet::BackendSpec;
use crate::tally::{Ending, Fault, Recent, Tokens, Totals};
use crate::time::{Duration, Instant};
use crate::wire::facts::SharingFacts;
use crate::wire::probe::{Finding, ModelCard};
use alloc::sync::Arc;
use alloc::vec::Vec;
use serde::Serialize;

/// How often whoever watches is told: as often as people look. Each time costs a copy of what the
/// engine knows.
const EVERY: Duration = Duration::from_secs(1);
/// Text longer than this is told as much less often, and one text to all who ask meanwhile: a
/// megabyte a second would be more than what a fleet answers, and what readers hold that take
/// nothing does not grow with their number. The page knows it as well, so that it does not take
/// itself for cut off.
pub const LONG_BYTES: usize = 256 << 10;

/// How long text of so many bytes is as good as new.
pub fn every(len: usize) -> Duration {
    let times = u32::try_from(len / LONG_BYTES).unwrap_or(u32::MAX).saturating_add(1);
    EVERY.saturating_mul(times)
}

/// How it stands at one moment. Copying it out of the engine takes a third of a microsecond a
/// backend; text is made of it elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Since the process began, this is how late it is.
    pub now: Instant,
    /// What runs.
    pub build: Build,
    /// When it began, in microseconds since the Unix epoch.
    pub epoch_micros: u64,
    /// What was counted.
    pub totals: Totals,
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
    /// Why it is suspect or down.
    pub why: Option<Finding>,
    /// Whether it takes new requests of its models.
    pub takes: bool,
    /// Whether it was told to sleep or to pause.
    pub rests: bool,
    /// Whether it is to get no new requests.
    pub draining: bool,
    /// Of what its vLLM is.
    pub version: Option<Arc<str>>,
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
    /// Requests by how they ended.
    pub endings: [u64; Ending::ALL.len()],
    /// Attempts that failed, by why.
    pub faults: [u64; Fault::ALL.len()],
    /// Attempts that failed, stale connections apart.
    pub failures: u64,
    /// What answers said of the cache.
    pub tokens: Tokens,
    /// Tokens of all prompts sent there, as estimated.
    pub sent_tokens: u64,
    /// Those of them believed to be cached.
    pub sent_predicted_tokens: u64,
    /// What became of the last requests.
    pub recent: Recent,
}

#[cfg(test)]
pub(super) mod tests;
