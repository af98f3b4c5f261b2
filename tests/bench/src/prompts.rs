//! Prompts as an index sees them: chains of chunk hashes that share their beginnings as those of
//! chats do. Everything follows from the seed.

use vllm_proxy_core::rng::{Rng, mix};
use vllm_proxy_core::route::{CHUNK_BYTES, Fingerprint};

/// System prompts of the traffic, the first ones far more popular than the last.
const SYSTEMS: u64 = 40;
/// Conversations that may go on.
const RECENT: usize = 2_000;
/// Texts of which a prompt of the cases has the beginning in common with others.
const FAMILIES: u64 = 16;

/// What a prompt of a case has in common with those sent before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shared {
    /// Nothing.
    Nothing,
    /// Its first half, which is one of sixteen.
    Half,
    /// All of it: one prompt again and again.
    All,
}

/// A text that conversations go on with: who it belongs to, and how long it is so far.
#[derive(Clone, Copy)]
struct Talk {
    number: u64,
    system: u64,
    length: u64,
}

/// An endless source of prompts.
pub struct Prompts {
    rng: Rng,
    recent: Vec<Talk>,
    /// Texts so far: each number is another text.
    texts: u64,
}

impl Prompts {
    pub fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed), recent: Vec::new(), texts: SYSTEMS + FAMILIES + 1 }
    }

    /// The next prompt of everyday traffic: six of ten go on with what was said before, the others
    /// begin anew behind a system prompt of 0.6k to 16k tokens.
    pub fn everyday(&mut self) -> Fingerprint {
        let place = self.rng.below(self.recent.len() as u64) as usize;
        let goes_on = self.rng.below(10) < 6 && !self.recent.is_empty();
        let mut talk = if goes_on {
            self.recent[place]
        } else {
            // The square makes the first ones popular.
            let draw = self.rng.below(1_000);
            let system = SYSTEMS * draw * draw / 1_000_000;
            Talk { number: self.text(), system, length: system_length(system) }
        };
        talk.length += 1 + self.rng.below(24);
        if goes_on {
            self.recent[place] = talk;
        } else if self.recent.len() < RECENT {
            self.recent.push(talk);
        } else {
            let oldest = self.rng.below(RECENT as u64) as usize;
            self.recent[oldest] = talk;
        }
        let common = system_length(talk.system);
        let mut chunks = Vec::with_capacity(talk.length as usize);
        chunks.extend((0..common).map(|at| chunk(talk.system, at)));
        chunks.extend((common..talk.length).map(|at| chunk(talk.number, at)));
        fingerprint(chunks)
    }

    /// A prompt of so many chunks for a case.
    pub fn of(&mut self, length: u64, shared: Shared) -> Fingerprint {
        let common = match shared {
            Shared::Nothing => 0,
            Shared::Half => length / 2,
            Shared::All => length,
        };
        // Families of one length only: what a longer prompt left would be no shorter one's.
        let family = match shared {
            Shared::Half => SYSTEMS + self.rng.below(FAMILIES),
            Shared::Nothing | Shared::All => SYSTEMS + FAMILIES,
        };
        let (head, tail) = (mix(family ^ length << 32), self.text());
        let mut chunks = Vec::with_capacity(length as usize);
        chunks.extend((0..common).map(|at| chunk(head, at)));
        chunks.extend((common..length).map(|at| chunk(tail, at)));
        fingerprint(chunks)
    }

    fn text(&mut self) -> u64 {
        self.texts += 1;
        self.texts
    }
}

/// 5 to 125 chunks.
const fn system_length(system: u64) -> u64 {
    5 + mix(system) % 121
}

const fn chunk(text: u64, at: u64) -> u64 {
    mix(mix(text) ^ at)
}

fn fingerprint(chunks: Vec<u64>) -> Fingerprint {
    let bytes = (chunks.len() * CHUNK_BYTES) as u64;
    Fingerprint::of_chunks(chunks, bytes)
}
