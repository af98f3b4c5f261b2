//! What a proxy is to the world: somebody who is asked and told.

use crate::trace::Request;
use crate::vllm::{Usage, Vllm};
use vllm_proxy_core::route::Failure;
use vllm_proxy_core::time::Instant;

/// A server as the world sees it. Some policies know more of it than a proxy could.
#[derive(Debug)]
pub struct Server {
    /// What runs there.
    pub vllm: Vllm,
    /// Whether it takes connections.
    pub alive: bool,
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
    /// With its last token.
    Done(Usage),
    /// Its client left.
    Gone,
    /// Its answer was cut off.
    Broken,
    /// The server would not have it.
    Refused,
}

/// A proxy, reduced to its decisions.
pub trait Router {
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

    /// The server to be asked how it is.
    fn poll_probe(&mut self) -> Option<usize> {
        None
    }

    /// How it is.
    fn probed(&mut self, _server: usize, _alive: bool, _now: Instant) {}

    /// When it wants to be called.
    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// It is then.
    fn handle_timeout(&mut self, _servers: &[Server], _now: Instant) {}
}
