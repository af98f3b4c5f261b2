//! How a route words an answer: the seam between the engine's tokens and each API's JSON.

use super::run::{Cached, Token};
use http_types::StatusCode;
use vllm_proxy_sim::reply::Finish;

/// Tokens of a request, as they are billed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// All prompts of the request, each once.
    pub(super) prompt: u32,
    /// All choices.
    pub(super) completion: u32,
    /// Of one prompt, however many there are.
    pub(super) cached: Cached,
}

impl Usage {
    pub(super) const fn total(self) -> u32 {
        self.prompt.saturating_add(self.completion)
    }
}

/// One finished sequence.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    pub(super) text: String,
    pub(super) finish: Finish,
}

/// One answer in one API's words. Each string pushed is one event, and leaves by itself.
pub(super) trait Dialect {
    /// What is said before the engine has done anything.
    fn opening(&mut self, _events: &mut Vec<String>) {}

    /// What is said just before the first token.
    fn first(&mut self, _events: &mut Vec<String>) {}

    fn token(&mut self, token: Token, events: &mut Vec<String>);

    /// What is said after the last token.
    fn closing(&mut self, usage: Usage, events: &mut Vec<String>);

    /// The end of a stream whose engine failed; `false` if this API just breaks off.
    fn failure(&mut self, trouble: &Trouble, events: &mut Vec<String>) -> bool;

    /// The answer that stands for one made in the background, for those that can be.
    fn queued(&mut self) -> String {
        String::new()
    }

    /// The whole answer at once.
    fn whole(&mut self, choices: &[Choice], usage: Usage) -> String;
}

/// What is wrong, as the end of a stream tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// The code: what the status would have been.
    pub(super) status: u16,
    pub(super) message: &'static str,
}

impl Trouble {
    /// What an engine that is paused or asleep says to new requests (0.33).
    pub(super) const PAUSED: Self =
        Self { status: 503, message: "Generation is paused. Please retry after it resumes." };

    /// The trouble that stands for `status` where one is ordered.
    pub(super) const fn ordered(status: u16) -> Self {
        let message = match status {
            500 => "Internal server error",
            503 => Self::PAUSED.message,
            _ => "failed, as ordered",
        };
        Self { status, message }
    }

    /// vLLM's name for it.
    pub(super) fn kind(&self) -> &'static str {
        match self.status {
            400 => "BadRequestError",
            404 => "NotFoundError",
            503 => "ServiceUnavailableError",
            500.. => "InternalServerError",
            status => StatusCode::try_from(status).map_or("Error", |code| code.canonical_reason()),
        }
    }
}

/// An event of the streams that have no types.
pub(super) fn data(json: &str) -> String {
    format!("data: {json}\n\n")
}

/// An event of the streams that name theirs.
pub(super) fn typed(event: &str, json: &str) -> String {
    format!("event: {event}\ndata: {json}\n\n")
}

/// OpenAI's word for the end.
pub(super) const fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Abort => "abort",
    }
}
