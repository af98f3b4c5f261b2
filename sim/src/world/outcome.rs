//! Outcome: what a run has to tell, request by request and server by server.

use crate::vllm::Usage;
use vllm_proxy_core::time::{Duration, Instant};

/// How a request ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fate {
    /// Not yet.
    #[default]
    Open,
    /// With the last token of its answer.
    Done,
    /// Its client left.
    Gone,
    /// Its server ended in the midst of the answer.
    Broken,
    /// The proxy gave up.
    Refused,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// When its client asked.
    pub at: Instant,
    /// When the first token was made.
    pub first: Option<Instant>,
    /// When it ended.
    pub end: Option<Instant>,
    /// How.
    pub fate: Fate,
    /// What it cost.
    pub usage: Usage,
    /// The server it was sent to last.
    pub server: Option<usize>,
    /// How often it was sent.
    pub attempts: u32,
}

/// What a run has to tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// One a request, in the order of the workload.
    pub records: Vec<Record>,
    /// For how long each server computed.
    pub busy: Vec<Duration>,
    /// How often each server threw a request out.
    pub preemptions: Vec<u64>,
    /// Requests at each server, at regular moments.
    pub load: Vec<Vec<u32>>,
    /// The pause between those moments.
    pub load_every: Duration,
    /// When the last request ended.
    pub end: Instant,
    /// What the proxies that are left know of what all know, where they tell each other.
    pub shared: Vec<u64>,
}
