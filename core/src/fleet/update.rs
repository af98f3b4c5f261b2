//! Update: what one proxy tells the others, and how backends are named between them.
//!
//! Owns the words, and how they look as bytes. Does not know how they travel or what becomes of
//! them where they are heard (see [`Engine`](crate::engine::Engine)).
//!
//! **Invariant: states, never changes of states.** What a proxy has in hand is told whole each time
//! it changes, and the greatest [number](Update::number) counts; counters and generations only
//! grow; stamps merge by the later one. So updates may be heard in any order and twice, and one
//! that was lost matters until the next one about the same backend.
//!
//! **Invariant: no dates.** Clocks of two machines differ. What has a time is told by its age at
//! the moment the update was made; whoever hears it adds how long his own updates take.

mod bytes;
mod codec;
mod word;

pub use word::{UpdateError, Word};

use crate::fleet::Address;
use crate::rng::mix;
use crate::time::Duration;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// One proxy among those that tell each other. Drawn by chance whenever a process starts, and never
/// used again: numbers and counters begin anew with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProxyId(pub u64);

/// A backend among proxies, each of which numbers backends in its own way: a hash of its address,
/// the same in all builds.
///
/// Proxies that tell each other must mean the same server by the same address. A loopback address
/// or a path of a Unix socket is only known to proxies of one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendName(pub u64);

impl BackendName {
    /// The name of whoever listens there.
    pub fn of(address: &Address) -> Self {
        // FNV-1a, and then every bit to every bit, since who is ranked first is read from these.
        const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        let text = address.to_string();
        let hash =
            text.bytes().fold(BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
        Self(mix(hash))
    }
}

/// What one proxy tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// Who tells it.
    pub proxy: ProxyId,
    /// Counts the updates of this proxy, from 1. It is 0 for a page of a snapshot, which is told to
    /// who missed something and says nothing of whether its teller still lives.
    pub number: u64,
    /// What it tells, a backend each. None: only that it lives.
    pub about: Vec<About>,
    /// What answers said of the length of prompts.
    pub lengths: Vec<PromptLength>,
}

/// What an answer said of the length of its prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptLength {
    /// The model's name.
    pub model: Arc<str>,
    /// Bytes of text.
    pub bytes: u64,
    /// Tokens.
    pub tokens: u64,
}

/// What a request taught of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lesson {
    /// How fast it prefills.
    Pace {
        /// Thousandths of a token that were computed, with nothing else before them,
        work: i64,
        /// and how long that took.
        time: Duration,
    },
    /// How far its cache keeps what is promised of it.
    Cached {
        /// Tokens of a prompt that were believed to be cached.
        promised_tokens: u64,
        /// Those that were.
        cached_tokens: u64,
        /// Tokens of a chunk: no difference is smaller.
        chunk_tokens: u32,
        /// Whether it was believed to have dropped the chunk after those.
        had_more: bool,
    },
}

/// What an update says of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Which backend.
    pub backend: BackendName,
    /// How often it was seen to lose its cache. Whoever knows of fewer times forgets what it
    /// believes to be cached there; what is placed below counts for those who know of no more.
    pub generation: u32,
    /// How often somebody saw a request change it in another way: had it sleep or wake, pause or
    /// resume, load or unload an adapter. Whoever knows of fewer times asks it how it is.
    pub changes: u32,
    /// How often operators had it drained or undrained: it is drained while that is odd.
    pub drains: u64,
    /// What the teller has in hand there; `None` in a snapshot.
    pub in_hand: Option<InHand>,
    /// Tokens that the teller has inserted there so far, after all that is placed below.
    pub inserted_tokens: u64,
    /// Chunks that the backend holds.
    pub placed: Vec<Placed>,
    /// In a snapshot: where its clock stands.
    pub clock: Option<Clock>,
    /// What requests there taught the teller.
    pub lessons: Vec<Lesson>,
    /// Stored responses that it keeps.
    pub owned: Vec<Owned>,
    /// In a snapshot: what was made of all lessons.
    pub learned: Learned,
}

impl About {
    /// Nothing but a name yet.
    pub const fn of(backend: BackendName, generation: u32) -> Self {
        Self {
            backend,
            generation,
            changes: 0,
            drains: 0,
            in_hand: None,
            inserted_tokens: 0,
            placed: Vec::new(),
            clock: None,
            lessons: Vec::new(),
            owned: Vec::new(),
            learned: Learned::NOTHING,
        }
    }
}

/// What a proxy has in hand at a backend, in thousandths of a token where tokens are counted.
///
/// It can be told no sooner than something happens. Between two updates the queue gets shorter as
/// the one at its head is prefilled, which whoever hears this works out as for requests of its own:
/// from the oldest of all heads and the latest of all first tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InHand {
    /// Requests in flight.
    pub in_flight: u32,
    /// Uncached prompt tokens of those without a first token, the whole head included.
    pub queued: i64,
    /// Prompt tokens of all in flight.
    pub resident: i64,
    /// The oldest of those without a first token.
    pub head: Option<Head>,
    /// How long ago the last first token came, if any did.
    pub first_token_age: Option<Duration>,
}

/// The head of a proxy's queue at a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// How long ago it was sent.
    pub age: Duration,
    /// Its uncached prompt tokens, in thousandths.
    pub uncached: i64,
}

/// Chunks that were touched at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The backend's clock at that time, as [`Fact::stamp`](crate::fleet::Fact::stamp).
    pub stamp: u32,
    /// Their hashes.
    pub chunks: Vec<u64>,
}

/// A stored response that a backend keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owned {
    /// The hash of its id.
    pub response: u64,
    /// How often it turned out to be kept elsewhere than was believed. Of two words about one
    /// response the one with more of these is the younger.
    pub moves: u32,
    /// How long ago it was spoken of.
    pub age: Duration,
}

/// What samples made of a number. Of two proxies' the one of more samples counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Average {
    /// How many, since the backend lost its cache last. With none there is no value.
    pub samples: u32,
    /// What they made.
    pub value: u64,
}

/// What was learned of a backend, for who was not there to learn it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Learned {
    /// Nanoseconds in which it prefills a token.
    pub pace: Average,
    /// What part of the promises of its cache was kept, in thousandths.
    pub trust: Average,
    /// How large its cache is, if that is known.
    pub capacity: Option<Capacity>,
    /// Thousandths of a byte in a token of its models, by their names.
    pub token_lengths: Vec<(Arc<str>, Average)>,
}

impl Learned {
    const NOTHING: Self = Self {
        pace: Average { samples: 0, value: 0 },
        trust: Average { samples: 0, value: 0 },
        capacity: None,
        token_lengths: Vec::new(),
    };
}

/// How large a backend's cache is. Who knows more comes behind who knows less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capacity {
    /// Answers that taught something of it.
    pub samples: u32,
    /// Tokens by its own word, with what is added to it.
    pub start: u64,
    /// What the answers made of that, in thousandths of a token.
    pub milli: u64,
}

/// Where a backend's clock stands, for who was not there when it was moved on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Tokens inserted there by each proxy that the teller knows of, itself among them.
    pub counters: Vec<(ProxyId, u64)>,
    /// The sum of these, and of those by proxies that are forgotten by now.
    pub inserted_tokens: u64,
    /// Those of them that count as new.
    pub fresh_tokens: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use rstest::rstest;

    #[rstest]
    #[case::ip_4(Address::Tcp(([10, 0, 0, 1], 8000).into()), 0x9201_c0ce_a293_f846)]
    #[case::ip_6(Address::Tcp(([0, 0, 0, 0, 0, 0, 0, 1], 8000).into()), 0x3d1c_f229_6fa3_5c45)]
    #[case::unix(Address::Unix(String::from("/run/vllm")), 0xb528_fd0f_0a01_a113)]
    fn names_are_the_same_in_all_builds(#[case] address: Address, #[case] name: u64) {
        assert_eq!(BackendName::of(&address), BackendName(name));
    }
}
