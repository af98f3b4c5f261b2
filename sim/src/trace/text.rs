//! Prompts that are made up of pieces: equal pieces in equal order give equal blocks.

use std::sync::Arc;
use vllm_proxy_core::rng::mix;

/// Told apart from a full block that begins alike.
const PART: u64 = 0x9a47;

/// A prompt that grows.
#[derive(Clone, Debug)]
pub(super) struct Text {
    block_tokens: u32,
    full: Vec<u64>,
    /// All that was said so far, as one number.
    state: u64,
    /// Tokens in the last block.
    filled: u32,
    tokens: u32,
}

impl Text {
    pub(super) const fn new(block_tokens: u32) -> Self {
        Self { block_tokens, full: Vec::new(), state: 0, filled: 0, tokens: 0 }
    }

    pub(super) const fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Adds a piece: the same number means the same tokens.
    pub(super) fn say(&mut self, piece: u64, tokens: u32) {
        let mut said = 0;
        while said < tokens {
            let part = (self.block_tokens - self.filled).min(tokens - said);
            self.state = mix(self.state ^ mix(piece.wrapping_add(u64::from(said) << 40)));
            self.filled += part;
            said += part;
            if self.filled == self.block_tokens {
                self.full.push(self.state);
                self.filled = 0;
            }
        }
        self.tokens += tokens;
    }

    /// What its blocks hold, the last one perhaps in part.
    pub(super) fn blocks(&self) -> Arc<[u64]> {
        let part = (self.filled > 0).then(|| mix(self.state ^ PART));
        self.full.iter().copied().chain(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(pieces: &[(u64, u32)]) -> Arc<[u64]> {
        let mut text = Text::new(16);
        for &(piece, tokens) in pieces {
            text.say(piece, tokens);
        }
        text.blocks()
    }

    #[test]
    fn equal_beginnings_are_equal_blocks() {
        let one = text(&[(1, 40), (2, 20)]);
        let other = text(&[(1, 40), (3, 20)]);
        assert_eq!((one.len(), &one[..2]), (4, &other[..2]));
        assert_ne!(one[2], other[2]);
        assert_ne!(one[3], other[3]);
        assert_ne!(text(&[(1, 32)])[1], one[0], "blocks hold what is before them, too");
    }

    #[test]
    fn a_part_of_a_block_is_not_the_block() {
        assert_ne!(text(&[(1, 15)])[0], text(&[(1, 16)])[0]);
        assert_ne!(text(&[(1, 15)])[0], text(&[(1, 15), (2, 1)])[0]);
        assert_eq!(text(&[(1, 16)]).len(), 1);
    }
}
