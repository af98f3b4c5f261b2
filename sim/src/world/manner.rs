//! What servers say of themselves, besides answers: not always the truth.

use crate::vllm;
use std::ops::Range;
use vllm_proxy_core::rng::mix;
use vllm_proxy_core::route::Usage;

/// How one server presents itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manner {
    /// What its answers say they cost.
    pub tells: Tells,
    /// Tokens that its metrics say its KV cache holds; `None`: they do not say.
    pub kv_tokens: Option<u64>,
    /// Whether its metrics count what was looked up in its cache, and what was found.
    pub counts: bool,
    /// The models and adapters it lists, by the numbers of [`Clients`](super::Clients).
    pub names: Range<u32>,
}

impl Default for Manner {
    /// It tells the truth about its answers and nothing of its cache, and has one model.
    fn default() -> Self {
        Self { tells: Tells::Truth, kv_tokens: None, counts: false, names: 0..1 }
    }
}

/// What answers say of their cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tells {
    /// What it was.
    Truth,
    /// Nothing, as a server does unless it is asked to.
    Nothing,
    /// All but what was cached.
    NotWhatWasCached,
    /// 0 of everything.
    Zeros,
    /// The greatest number there is, of everything.
    Most,
    /// Twice as many tokens cached as the prompt has.
    MoreCachedThanPrompt,
    /// That nothing was cached, whatever was.
    NoneCached,
    /// Any numbers.
    Noise,
}

impl Tells {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Truth,
        Self::Nothing,
        Self::NotWhatWasCached,
        Self::Zeros,
        Self::Most,
        Self::MoreCachedThanPrompt,
        Self::NoneCached,
        Self::Noise,
    ];

    /// What it says of the request of this number, which cost so much.
    pub(super) fn of(self, usage: vllm::Usage, id: u64) -> Option<Usage> {
        let vllm::Usage { prompt, cached, completion } = usage;
        let [prompt, cached, completion] = [prompt, cached, completion].map(u64::from);
        let usage = Usage { prompt, cached: Some(cached), completion };
        match self {
            Self::Truth => Some(usage),
            Self::Nothing => None,
            Self::NotWhatWasCached => Some(Usage { cached: None, ..usage }),
            Self::Zeros => Some(Usage { prompt: 0, cached: Some(0), completion: 0 }),
            Self::Most => {
                Some(Usage { prompt: u64::MAX, cached: Some(u64::MAX), completion: u64::MAX })
            }
            Self::MoreCachedThanPrompt => Some(Usage { cached: Some(2 * prompt), ..usage }),
            Self::NoneCached => Some(Usage { cached: Some(0), ..usage }),
            Self::Noise => {
                // Of all magnitudes, and now and then nothing at all.
                let any = |salt: u64| {
                    let lot = mix(mix(id) ^ salt);
                    lot >> (mix(lot) % 64)
                };
                let cached = (any(4) % 4 > 0).then(|| any(2));
                (any(5) % 8 > 0).then(|| Usage { prompt: any(1), cached, completion: any(3) })
            }
        }
    }
}
