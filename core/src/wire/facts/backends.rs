//! The families that tell backends apart.
//!
//! Knows names, help and labels. What a backend's address may be is the operator's affair, what its
//! models are called is the backend's: both may hold anything.

use super::histogram;
use crate::fleet::Address;
use crate::tally::{Counts, Ending, Fault};
use crate::wire::metrics::{Families, Kind, Value};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// The states that a backend may be in.
const STATES: [&str; 4] = ["unknown", "up", "suspect", "down"];

/// Numbers of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendFacts {
    /// Where it is, which is the label of all its series.
    pub address: Address,
    /// How it stands; `None` if it has left.
    pub standing: Option<Standing>,
    /// Requests it has now; `None` if it is gone.
    pub in_flight: Option<u64>,
    /// What was counted since the process began.
    pub counts: Counts,
}

/// How a backend stands that has not left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether it is up or may be, drained or not.
    pub up: bool,
    /// `unknown`, `up`, `suspect` or `down`.
    pub state: &'static str,
    /// Whether it is to get no new requests.
    pub draining: bool,
    /// Requests that other proxies have there.
    pub in_flight_elsewhere: u64,
    /// Uncached prompt tokens that wait there or are being computed.
    pub queued_tokens: u64,
}

impl BackendFacts {
    /// Another was at this address, or is about to go: their series are one.
    pub fn merge(&mut self, in_flight: Option<u64>, counts: &Counts) {
        if let Some(more) = in_flight {
            self.in_flight = Some(self.in_flight.unwrap_or(0) + more);
        }
        self.counts.merge(counts);
    }
}

/// What is told of one backend, with the label that it gets.
struct Named<'a> {
    name: String,
    facts: &'a BackendFacts,
}

/// All of them, one family after the other.
pub(super) fn text(backends: &[BackendFacts], sharing: bool, families: &mut Families) {
    let named = |facts| Named { name: BackendFacts::name(facts), facts };
    let backends: Vec<Named<'_>> = backends.iter().map(named).collect();
    gauges(&backends, sharing, families);
    endings(&backends, families);
    faults(&backends, families);
    let mut each = |name: &str, help: &str, value: fn(&Counts) -> u64| {
        families.family(name, Kind::Counter, help);
        for one in &backends {
            let value = Value::Integer(value(&one.facts.counts));
            families.sample(name, &[("backend", &one.name)], value);
        }
    };
    let help = "Parts in requests to several backends that it left unanswered.";
    each("vllm_proxy_parts_unanswered_total", help, |counts| counts.unheard);
    let help = "Prompt tokens of answers that said how many of them were cached.";
    each("vllm_proxy_prompt_tokens_total", help, |counts| counts.tokens.prompt);
    let help = "Those of them that were believed to be cached when the requests were sent.";
    each("vllm_proxy_predicted_cached_tokens_total", help, |counts| counts.tokens.predicted);
    let help = "Those of them that were cached, as the answers said.";
    each("vllm_proxy_reported_cached_tokens_total", help, |counts| counts.tokens.reported);
    let help = "Prompt tokens of all requests sent there, as estimated.";
    each("vllm_proxy_sent_prompt_tokens_total", help, |counts| counts.sent_tokens);
    let help = "Those of them that were believed to be cached.";
    each("vllm_proxy_sent_cached_tokens_total", help, |counts| counts.sent_predicted_tokens);

    let name = "vllm_proxy_time_to_first_byte_seconds";
    let help = "From a request being whole to the first byte of its answer's body.";
    families.family(name, Kind::Histogram, help);
    for one in &backends {
        histogram(families, name, Some(&one.name), &one.facts.counts.first_byte);
    }
    let name = "vllm_proxy_request_duration_seconds";
    let help = "From a request being whole to its end, websockets apart.";
    families.family(name, Kind::Histogram, help);
    for one in &backends {
        histogram(families, name, Some(&one.name), &one.facts.counts.duration);
    }
}

impl BackendFacts {
    fn name(&self) -> String {
        self.address.to_string()
    }
}

fn gauges(backends: &[Named<'_>], sharing: bool, families: &mut Families) {
    let mut each = |name: &str, help: &str, value: fn(&BackendFacts) -> Option<u64>| {
        families.family(name, Kind::Gauge, help);
        for one in backends {
            if let Some(value) = value(one.facts) {
                families.sample(name, &[("backend", &one.name)], Value::Integer(value));
            }
        }
    };
    each("vllm_proxy_backend_up", "Whether the backend is up or may be.", |facts| {
        facts.standing.as_ref().map(|standing| standing.up.into())
    });
    each("vllm_proxy_backend_draining", "Whether it is to get no new requests.", |facts| {
        facts.standing.as_ref().map(|standing| standing.draining.into())
    });
    let help = "Requests that it has now.";
    each("vllm_proxy_requests_in_flight", help, |facts| facts.in_flight);
    let help = "Uncached prompt tokens that wait there or are being computed, by estimate.";
    each("vllm_proxy_queued_tokens", help, |facts| {
        facts.standing.as_ref().map(|standing| standing.queued_tokens)
    });
    if sharing {
        let help = "Requests that other proxies have there.";
        each("vllm_proxy_requests_in_flight_elsewhere", help, |facts| {
            facts.standing.as_ref().map(|standing| standing.in_flight_elsewhere)
        });
    }
    let name = "vllm_proxy_backend_state";
    families.family(name, Kind::Gauge, "Its state: 1 for the one that it is in.");
    for one in backends {
        let Some(standing) = &one.facts.standing else { continue };
        for state in STATES {
            let is = Value::Integer((standing.state == state).into());
            families.sample(name, &[("backend", &one.name), ("state", state)], is);
        }
    }
}

fn endings(backends: &[Named<'_>], families: &mut Families) {
    // What is rare is told when it happens: six series a model are enough.
    const RARE: [Ending; 3] = [Ending::Informed, Ending::Redirected, Ending::Odd];
    let name = "vllm_proxy_requests_total";
    let help = "Requests that ended with a word of the backend, by how they ended.";
    families.family(name, Kind::Counter, help);
    for one in backends {
        for (model, counts) in one.facts.counts.by_model() {
            for ending in Ending::ALL {
                let count = counts[ending as usize];
                if count == 0 && RARE.contains(&ending) {
                    continue;
                }
                let labels =
                    [("backend", one.name.as_str()), ("model", model), ("status", ending.as_str())];
                families.sample(name, &labels, Value::Integer(count));
            }
        }
    }
}

fn faults(backends: &[Named<'_>], families: &mut Families) {
    let name = "vllm_proxy_attempts_failed_total";
    let help = "Attempts that failed before anything of an answer reached a client.";
    families.family(name, Kind::Counter, help);
    for one in backends {
        for fault in Fault::OF_BACKENDS {
            let labels = [("backend", one.name.as_str()), ("reason", fault.as_str())];
            let count = Value::Integer(one.facts.counts.faults[fault as usize]);
            families.sample(name, &labels, count);
        }
    }
}
