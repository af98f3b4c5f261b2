//! What a simulated model says: tokens and text of one answer.
//!
//! Knows neither HTTP nor JSON, and nothing of other requests. How long all of it takes is
//! [`vllm`](crate::vllm)'s.

use vllm_proxy_core::rng::mix;

/// Bytes of text that make one token: about what English takes in the vocabularies of real models.
///
/// Text is cut blindly, within a word or a character too, as byte-level tokenizers may.
pub const TOKEN_BYTES: usize = 4;

/// All of three letters: with the space before it each is one token, so that an answer that comes
/// back as part of the next prompt counts there what it counted here.
const WORDS: [&str; 64] = [
    " the", " and", " you", " was", " for", " are", " one", " had", " not", " but", " all", " can",
    " her", " has", " him", " how", " man", " new", " now", " old", " see", " two", " way", " who",
    " boy", " did", " its", " let", " put", " say", " she", " too", " use", " day", " sun", " sky",
    " sea", " red", " big", " far", " low", " hot", " cat", " dog", " fox", " cow", " hen", " bee",
    " ran", " sat", " saw", " ate", " hid", " dug", " fed", " led", " met", " won", " box", " cup",
    " map", " key", " hat", " tea",
];

/// How many tokens `text` is.
pub fn count(text: &str) -> u32 {
    u32::try_from(text.len().div_ceil(TOKEN_BYTES)).unwrap_or(u32::MAX)
}

/// The tokens of `text`: each id holds its own bytes, so no vocabulary is needed.
pub fn tokenize(text: &(impl AsRef<[u8]> + ?Sized)) -> impl Iterator<Item = u32> {
    text.as_ref().chunks(TOKEN_BYTES).map(|chunk| {
        let mut bytes = [0; TOKEN_BYTES];
        bytes[..chunk.len()].copy_from_slice(chunk);
        u32::from_le_bytes(bytes)
    })
}

/// The text of `ids`, what is not UTF-8 in it replaced.
pub fn detokenize(ids: impl IntoIterator<Item = u32>) -> String {
    let mut bytes: Vec<u8> = Vec::new();
    for id in ids {
        let token = id.to_le_bytes();
        let length = token.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        bytes.extend_from_slice(&token[..length]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Why an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model had said everything.
    Stop,
    /// The request or the context allowed no more.
    Length,
    /// The engine was told to stop.
    Abort,
}

/// What bounds the length of an answer, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// After how many the model has said everything.
    pub natural: u32,
    /// At least so many, whatever the model thinks (`min_tokens`).
    pub min: u32,
    /// At most so many: what the request asked for, or what the context has left.
    pub max: u32,
    /// Whether the model stops by itself (`ignore_eos` is false).
    pub stops: bool,
}

/// One answer: all of its text follows from the seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    seed: u64,
    tokens: u32,
    finish: Finish,
}

impl Reply {
    /// The answer to `prompt`: the same for the same prompt, seed and bounds.
    ///
    /// `seed` holds everything else the text depends on: the server, the choice, the request's own.
    pub fn new(prompt: &str, seed: u64, bounds: Bounds) -> Self {
        let natural = bounds.natural.max(bounds.min).max(1);
        let (tokens, finish) = if bounds.stops && natural <= bounds.max {
            (natural, Finish::Stop)
        } else {
            (bounds.max, Finish::Length)
        };
        Self { seed: hash(prompt, seed), tokens, finish }
    }

    /// How many tokens it has.
    pub const fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Why it ends where it ends.
    pub const fn finish(&self) -> Finish {
        self.finish
    }

    /// The text of token `index`.
    pub fn token(&self, index: u32) -> &'static str {
        let word = mix(self.seed.wrapping_add(u64::from(index))) % WORDS.len() as u64;
        let token = WORDS[word as usize];
        // As models do, the first word comes without the space that divides it from the one before.
        if index == 0 { token.trim_start() } else { token }
    }

    /// All its text.
    pub fn text(&self) -> String {
        (0..self.tokens).map(|index| self.token(index)).collect()
    }
}

/// Every byte of `text` and of `seed` counts.
fn hash(text: &str, seed: u64) -> u64 {
    text.as_bytes().chunks(8).fold(mix(seed ^ text.len() as u64), |hash, chunk| {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        mix(hash ^ u64::from_le_bytes(bytes))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::empty("", 0)]
    #[case::part_of_a_token("abc", 1)]
    #[case::one("abcd", 1)]
    #[case::one_more_byte("abcde", 2)]
    #[case::bytes_not_characters("äöü", 2)]
    fn tokens_are_four_bytes_and_reversible(#[case] text: &str, #[case] tokens: usize) {
        assert_eq!(count(text) as usize, tokens);
        assert_eq!(tokenize(text).count(), tokens);
        assert_eq!(detokenize(tokenize(text)), text);
    }

    #[test]
    fn foreign_ids_never_fail() {
        assert_eq!(
            detokenize([0x61, 0xff, 0, u32::MAX]),
            "a\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}"
        );
    }

    const BOUNDS: Bounds = Bounds { natural: 8, min: 0, max: 100, stops: true };

    #[rstest]
    #[case::natural(BOUNDS, 8, Finish::Stop)]
    #[case::just_enough(Bounds { max: 8, ..BOUNDS }, 8, Finish::Stop)]
    #[case::cut_short(Bounds { max: 3, ..BOUNDS }, 3, Finish::Length)]
    #[case::at_least(Bounds { min: 12, ..BOUNDS }, 12, Finish::Stop)]
    #[case::at_least_beyond_the_end(Bounds { min: 12, max: 10, ..BOUNDS }, 10, Finish::Length)]
    #[case::endless(Bounds { stops: false, ..BOUNDS }, 100, Finish::Length)]
    #[case::silent_model(Bounds { natural: 0, ..BOUNDS }, 1, Finish::Stop)]
    fn length(#[case] bounds: Bounds, #[case] tokens: u32, #[case] finish: Finish) {
        let reply = Reply::new("prompt", 1, bounds);
        assert_eq!((reply.tokens(), reply.finish()), (tokens, finish));
        assert_eq!(count(&reply.text()), tokens, "the text counts as many tokens as were made");
    }

    #[test]
    fn text_follows_from_prompt_and_seed() {
        let text = |prompt, seed| Reply::new(prompt, seed, BOUNDS).text();
        assert_eq!(text("one", 1), text("one", 1));
        assert_ne!(text("one", 1), text("two", 1));
        assert_ne!(text("one", 1), text("one", 2));
        assert_ne!(text("one", 1), text("one\0", 1), "padding is no text");
        assert!(!text("one", 1).starts_with(' '));
    }

    #[test]
    fn a_longer_answer_begins_as_the_shorter_one() {
        let long = Reply::new("prompt", 1, BOUNDS).text();
        assert!(long.starts_with(&Reply::new("prompt", 1, Bounds { max: 3, ..BOUNDS }).text()));
    }
}
