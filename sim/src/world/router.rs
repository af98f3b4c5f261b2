//! What a proxy is to the world: somebody who is asked and told.

use super::Manner;
use crate::trace::Request;
use crate::vllm::{self, Vllm};
use vllm_proxy_core::engine::{Company, Link, ReplicaReport};
use vllm_proxy_core::fleet::{About, ProxyId, Update};
use vllm_proxy_core::route::{Act, Failure, Usage};
use vllm_proxy_core::time::Instant;

/// A server as the world sees it. Some policies know more of it than a proxy could.
#[derive(Debug)]
pub struct Server {
    /// What runs there.
    pub vllm: Vllm,
    /// Whether it takes connections.
    pub alive: bool,
    /// Whether proxies are told to use it: the name of an upstream resolves to it.
    pub listed: bool,
    /// How often it was listed anew: who comes back is another one to proxies.
    pub joined: u32,
    /// What it says of itself.
    pub manner: Manner,
}

/// A request that a proxy has sent somewhere, as the world knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// Its number.
    pub id: u64,
    /// Where it is.
    pub server: usize,
    /// How often that had joined by then.
    pub joined: u32,
    /// The proxy was told of the first byte of its answer.
    pub begun: bool,
}

/// A request as its proxy sees it.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Its number.
    pub id: u64,
    /// What is asked; how long the answer will be is for nobody to look at.
    pub request: &'a Request,
    /// Tokens of one of its blocks.
    pub block_tokens: u32,
    /// Bytes of the prompt.
    pub prompt_bytes: u64,
    /// Bytes of each of its tokens, in thousandths. Only what stands for the text may know that.
    pub token_bytes_milli: u64,
    /// Whether the answer comes token by token.
    pub stream: bool,
    /// When it came.
    pub since: Instant,
    /// The model or the adapter that it names.
    pub name: u32,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To this server.
    Send(usize),
    /// Nowhere yet: ask again then.
    Later(Instant),
    /// Nowhere.
    Refuse,
}

/// How a request ended that a proxy had sent somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With its last token, and what it said of its cost.
    Done(Option<Usage>),
    /// Its client left.
    Gone,
    /// Its answer was cut off.
    Broken,
    /// The server would not have it.
    Refused,
}

impl End {
    /// What it said of its cost, if that is all that vLLM can say.
    pub fn usage(self) -> Option<vllm::Usage> {
        let Self::Done(Some(usage)) = self else { return None };
        let tokens = |tokens| u32::try_from(tokens).unwrap_or(u32::MAX);
        Some(vllm::Usage {
            prompt: tokens(usage.prompt),
            cached: tokens(usage.cached?),
            completion: tokens(usage.completion),
        })
    }
}

/// What one proxy tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// What the engine tells.
    Update(Update),
    /// What other routers may be supposed to share: their counts of one server.
    Counts {
        /// Who tells it.
        proxy: usize,
        /// Counts the words of this proxy.
        number: u64,
        /// What it counted there.
        counts: Counts,
    },
}

/// What one proxy counts at a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Its number.
    pub server: usize,
    /// Requests sent there and not over.
    pub in_flight: u32,
    /// Requests ever sent there.
    pub sent: u64,
    /// Prompt tokens to be computed there of requests without a first token.
    pub queued: u64,
    /// Prompt tokens, cached or not, of requests sent there and not over.
    pub prompts: u64,
}

/// A proxy, reduced to its decisions.
pub trait Router {
    /// There are others, and this is its number among them. Said before all else, and again when it
    /// starts anew and knows nothing.
    fn share(&mut self, _proxy: usize) {}

    /// It ends, with all that it had in hand.
    fn stop(&mut self, _now: Instant) {}

    /// The others can tell that the one of this number ended, as it was silent for too long.
    fn gone(&mut self, _proxy: usize) {}

    /// What was seen of the way to the others.
    fn report(&mut self, _report: ReplicaReport, _now: Instant) {}

    /// Which others it hears.
    fn company(&self) -> Company {
        Company::default()
    }

    /// One of them, to be asked for all that it knows.
    fn peer(&self) -> Option<ProxyId> {
        None
    }

    /// What is to be kept of how its servers stand, and for how many bytes of placed chunks.
    fn stands(&self) -> Vec<(About, usize)> {
        Vec::new()
    }

    /// What it knows of what all know.
    fn shared_hash(&self) -> u64 {
        0
    }

    /// How it stands with the way to the others.
    fn link(&mut self, _link: Link, _now: Instant) {}

    /// An operator orders something of a server.
    fn order(&mut self, _server: usize, _act: Act, _now: Instant) {}

    /// What it wants the others to hear.
    fn poll_word(&mut self) -> Option<Word> {
        None
    }

    /// What another one said.
    fn hear(&mut self, _word: &Word, _now: Instant) {}

    /// All that it knows and others may have missed.
    fn snapshot(&self) -> Vec<Word> {
        Vec::new()
    }

    /// All that it does is going to be checked.
    fn watch(&mut self) {}

    /// Checks itself. `live` are the requests that it sent somewhere and that are not over, by
    /// number.
    fn check(&mut self, _live: &[Live], _servers: &[Server], _now: Instant) {}

    /// There are so many servers, numbered from 0.
    fn start(&mut self, servers: usize, now: Instant);

    /// Who takes a request.
    fn route(&mut self, ask: &Ask<'_>, servers: &[Server], now: Instant) -> Answer;

    /// Who takes it after a failure.
    fn retry(&mut self, ask: &Ask<'_>, why: Failure, servers: &[Server], now: Instant) -> Answer;

    /// The first byte of an answer came.
    fn first_byte(&mut self, id: u64, now: Instant);

    /// A request is over.
    fn finish(&mut self, id: u64, end: End, now: Instant);

    /// Requests sent somewhere and not over.
    fn in_hand(&self) -> usize;

    /// Upstreams' names resolve to other servers than before.
    fn resolved(&mut self, _servers: &[Server], _now: Instant) {}

    /// The server to be asked how it is.
    fn poll_probe(&mut self) -> Option<usize> {
        None
    }

    /// How it is.
    fn probed(&mut self, _server: usize, _servers: &[Server], _now: Instant) {}

    /// When it wants to be called.
    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// It is then.
    fn handle_timeout(&mut self, _servers: &[Server], _now: Instant) {}
}
