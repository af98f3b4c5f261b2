//! How fast simulated hardware is: the constants of a step's length.
//!
//! Nanoseconds as integers, so that a thousand steps at once take exactly as long as one by one.

/// What a step of the engine costs on one kind of hardware, and how much fits there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Each step, whatever is in it.
    pub fixed_ns: u64,
    /// Each prompt token, while the prompt is short.
    pub prefill_ns: u64,
    /// Each request that decodes.
    pub decode_ns: u64,
    /// Each token of context of a request that decodes.
    pub context_ns: u64,
    /// Tokens of a step, of prompts and answers together.
    pub tokens_max: u32,
    /// Requests that are in a step at once.
    pub requests_max: usize,
    /// Tokens that the KV cache holds.
    pub kv_tokens: u64,
}

impl Gpu {
    /// An 8B model on an H100: 16,000 prompt tokens/s (llm-d measured 15,926 on its reference
    /// fleet), the KV cache read at 70 % of 3.35 TB/s, 128 KiB a token, 52 GB of it.
    pub const H100: Self = Self {
        fixed_ns: 7_000_000,
        prefill_ns: 62_500,
        decode_ns: 30_000,
        context_ns: 56,
        tokens_max: 8_192,
        requests_max: 256,
        kv_tokens: 400_000,
    };

    /// The same on an A100, with vLLM's smaller default of tokens in a step.
    pub const A100: Self = Self {
        fixed_ns: 12_000_000,
        prefill_ns: 125_000,
        decode_ns: 50_000,
        context_ns: 85,
        tokens_max: 2_048,
        requests_max: 256,
        kv_tokens: 400_000,
    };

    /// The hardware of this name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "h100" => Some(Self::H100),
            "a100" => Some(Self::A100),
            _ => None,
        }
    }

    /// The same, at so many per cent of its speed.
    #[must_use]
    pub fn at_speed(self, percent: u64) -> Self {
        let slower = |time: u64| time * 100 / percent.max(1);
        Self {
            fixed_ns: slower(self.fixed_ns),
            prefill_ns: slower(self.prefill_ns),
            decode_ns: slower(self.decode_ns),
            context_ns: slower(self.context_ns),
            ..self
        }
    }

    /// How long `tokens` more of a prompt take of which `before` are done. Attention to what is
    /// before doubles the cost of a token at 32,768.
    pub fn prefill(&self, before: u64, tokens: u64) -> u64 {
        let attention = before * tokens + tokens * tokens / 2;
        // Saturated only by hardware that takes a second for each token.
        self.prefill_ns * tokens + self.prefill_ns.saturating_mul(attention) / 32_768
    }

    /// How long the next token of a request with `context` tokens takes.
    pub const fn decode(&self, context: u64) -> u64 {
        self.decode_ns + self.context_ns * context
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::nothing(0, 0, 0)]
    #[case::short(0, 16, 1_000_244)]
    #[case::long(0, 8_192, 576_000_000)]
    #[case::its_end(32_768, 8_192, 1_088_000_000)]
    fn prompts_take_longer_the_longer_they_are(
        #[case] before: u64,
        #[case] tokens: u64,
        #[case] nanos: u64,
    ) {
        assert_eq!(Gpu::H100.prefill(before, tokens), nanos);
    }

    #[test]
    fn half_the_speed_takes_twice_as_long() {
        let slow = Gpu::H100.at_speed(50);
        assert_eq!(slow.prefill(100, 1_000), 2 * Gpu::H100.prefill(100, 1_000));
        assert_eq!(slow.decode(1_000), 2 * Gpu::H100.decode(1_000));
        assert_eq!((slow.fixed_ns, slow.kv_tokens), (14_000_000, Gpu::H100.kv_tokens));
        assert_eq!(Gpu::named("h100"), Some(Gpu::H100));
        assert_eq!(Gpu::named("H100"), None);
    }
}
