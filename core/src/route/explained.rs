//! The words in which it is told what a request would come to: who is chosen among, and all that
//! the choice follows from.
//!
//! Plain data, copied while the engine is lent; it is ranked, summed and worded elsewhere. Holds
//! nothing of a prompt but its size.

use crate::config::Policy;
use crate::fleet::{BackendId, BackendSpec};
use crate::route::{Candidate, Question, Reason, Refusal};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// What a request would come to, and all that this follows from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The operator's policy.
    pub policy: Policy,
    /// The model asked for; `None` if the request names none.
    pub asked: Option<String>,
    /// The model whose backends are chosen among; `None` if none is known.
    pub model: Option<Arc<str>>,
    /// Length of the prompt, in bytes of JSON text.
    pub prompt_bytes: u64,
    /// The tokens that it is believed to have.
    pub prompt_tokens: u64,
    /// Chunks of it that are told apart.
    pub chunks: usize,
    /// What the request would wait for first, 2 seconds at most.
    pub waits_for: Option<&'static str>,
    /// Whether there are other proxies that cannot be heard.
    pub alone: bool,
    /// What it would come to.
    pub outlook: Outlook,
    /// What was asked of the candidates; `None` if no cost was reckoned.
    pub question: Option<Question>,
    /// Those that were chosen among, with the prompt tokens that each is believed to have cached.
    pub candidates: Vec<(Candidate, u64)>,
    /// Every backend, in the order of upstreams; those that leave come last.
    pub backends: Vec<Known>,
}

/// What a request would come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// A backend would get it.
    Forward {
        /// Which one.
        backend: BackendId,
        /// Why.
        reason: Reason,
        /// Prompt tokens that it is believed to have cached.
        predicted_tokens: u64,
        /// What is said in the end if that backend does not know the model either, since nobody
        /// lists it.
        judges: Option<Refusal>,
    },
    /// These would hear it, and their answers be merged.
    Gather(Vec<BackendId>),
    /// The proxy would answer by itself; with this status, where that is known.
    Answer(Option<u16>),
    /// Nobody would get it.
    Refuse(Refusal),
}

/// What is known of a backend, chosen or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Which one.
    pub backend: BackendId,
    /// Where it is.
    pub spec: Arc<BackendSpec>,
    /// `unknown`, `up`, `suspect` or `down`.
    pub state: &'static str,
    /// Whether it was told to sleep or to pause.
    pub rests: bool,
    /// Whether it is to get no new requests.
    pub draining: bool,
    /// Why it is not chosen among; `None` if it is.
    pub excluded: Option<&'static str>,
    /// Requests that this proxy has there.
    pub in_flight: u32,
    /// Requests that other proxies have there.
    pub in_flight_elsewhere: u32,
    /// What part of a promise its cache keeps, in thousandths.
    pub trust: i64,
}
