//! What a server is told and what it says.

use super::Gpu;
use std::sync::Arc;

/// How a server was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The hardware.
    pub gpu: Gpu,
    /// Tokens of the KV cache in place of the hardware's; [`u64::MAX`]: without limit.
    pub kv_tokens: u64,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Whether prefixes are looked for.
    pub prefix_caching: bool,
    /// Steps taken at once at most; 1 goes step by step.
    pub leap_max: u64,
}

impl Options {
    /// All of the hardware's memory, prefix caching on.
    pub const fn new(gpu: Gpu, block_tokens: u32) -> Self {
        Self {
            gpu,
            kv_tokens: gpu.kv_tokens,
            block_tokens,
            prefix_caching: true,
            leap_max: u64::MAX,
        }
    }
}

/// A request.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// Whose it is; each only once at a time.
    pub id: u64,
    /// What each block of the prompt holds, together with all before it: equal ids mean equal
    /// prefixes. The last one may be part of a block.
    pub blocks: Arc<[u64]>,
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens of the answer.
    pub output: u32,
    /// What the blocks hold that the answer fills, the first of them the one that the prompt began;
    /// empty: nobody will ask for them.
    pub answer: Arc<[u64]>,
}

impl Job {
    /// What the block at this place holds once it is full.
    pub(super) fn content(&self, block_tokens: u32, place: usize) -> Option<u64> {
        let whole = (self.prompt / block_tokens) as usize;
        match place.checked_sub(whole) {
            None => self.blocks.get(place).copied(),
            Some(place) => self.answer.get(place).copied(),
        }
    }
}

/// What an answer says of its cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Those of them that were not computed.
    pub cached: u32,
    /// Tokens of the answer.
    pub completion: u32,
}

/// How far a request in the batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Whose it is.
    pub id: u64,
    /// Tokens of its prompt that it found when it first came in.
    pub cached: u32,
    /// Tokens of its answer so far.
    pub made: u32,
}

/// What a server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The first token of an answer.
    First(u64),
    /// The last one.
    Done(u64, Usage),
}

/// What a server's metrics say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Requests in the queue.
    pub waiting: usize,
    /// Requests in the batch.
    pub running: usize,
    /// Blocks in use, in thousandths of all.
    pub kv_permille: u32,
}

/// A request that no empty server of this kind could answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;
