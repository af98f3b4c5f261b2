//! Traffic that is made up: kinds of applications, each from a seed.

use super::text::Text;
use super::{Request, Workload};
use std::str::FromStr;
use vllm_proxy_core::rng::{Rng, mix};
use vllm_proxy_core::time::Instant;

/// Tokens of a block: 512 bytes of text at 4 bytes a token.
const BLOCK_TOKENS: u32 = 128;

/// What kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 40 tools with system prompts of 600 to 16,000 tokens, some far more popular than others
    /// (Zipf 0.9); a quarter of all sessions are agents that take several steps.
    Tool,
    /// 40 prefixes of 2,000 tokens, all equally popular.
    Uniform,
    /// Chats that grow turn by turn.
    Conversation,
    /// All share one prefix of 8,000 tokens.
    Hot,
    /// 200 tenants with prefixes of 1,000 to 8,000 tokens; half-way the least popular become the
    /// most popular.
    ZipfFlip,
    /// No two prompts begin alike.
    Unique,
    /// The same, most of about a thousand tokens, answers of about a hundred: as long as those of
    /// the conversation trace that Azure published in 2023.
    Short,
}

impl Kind {
    /// All of them, by their names.
    pub const ALL: [(&str, Self); 7] = [
        ("tool", Self::Tool),
        ("uniform", Self::Uniform),
        ("conversation", Self::Conversation),
        ("hot", Self::Hot),
        ("zipf-flip", Self::ZipfFlip),
        ("unique", Self::Unique),
        ("short", Self::Short),
    ];
}

impl FromStr for Kind {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind).ok_or(())
    }
}

/// Makes `count` requests that come at random, `per_second` on average.
pub fn generate(kind: Kind, count: usize, per_second: f64, seed: u64) -> Workload {
    let mut traffic = Traffic::new(kind, count, seed);
    // Sessions were under way before the first request and go on after the last: the rate is the
    // same from the beginning to the end.
    let warm_up = traffic.longest_session();
    let span = count as f64 / per_second * 1e6;
    let mut at = 0;
    loop {
        at += traffic.exponential(1e6 / per_second * traffic.mean_steps());
        let share = (at as f64 - warm_up as f64) / span;
        traffic.session(at, share);
        let requests = &mut traffic.requests;
        // The last request of all is found when no session can begin before it.
        if share >= 1.0 && requests.iter().filter(|one| in_time(one, warm_up, at)).count() >= count
        {
            break;
        }
    }
    let mut requests = traffic.requests;
    requests.retain(|one| one.at.micros() >= warm_up);
    requests.sort_by_key(|one| one.at);
    requests.truncate(count);
    for one in &mut requests {
        one.at = Instant::from_micros(one.at.micros() - warm_up);
    }
    Workload { block_tokens: BLOCK_TOKENS, requests }
}

const fn in_time(one: &Request, from: u64, to: u64) -> bool {
    from <= one.at.micros() && one.at.micros() <= to
}

struct Traffic {
    kind: Kind,
    rng: Rng,
    /// Sums of the popularity of prefixes up to each.
    popular: Vec<u64>,
    requests: Vec<Request>,
    /// The next piece of text that nobody else says.
    piece: u64,
}

impl Traffic {
    fn new(kind: Kind, count: usize, seed: u64) -> Self {
        let (prefixes, exponent) = match kind {
            Kind::Tool => (40, 0.9),
            Kind::Uniform => (40, 0.0),
            Kind::ZipfFlip => (200, 0.9),
            Kind::Conversation => (4, 0.0),
            Kind::Hot => (1, 0.0),
            Kind::Unique | Kind::Short => (0, 0.0),
        };
        let mut sum = 0;
        let popular = (1..=prefixes).map(|rank| {
            // Rounded, so that machines that differ in the last bit agree.
            sum += (1e6 / f64::from(rank).powf(exponent)).round() as u64;
            sum
        });
        let popular = popular.collect();
        let requests = Vec::with_capacity(count);
        Self { kind, rng: Rng::new(mix(seed)), popular, requests, piece: 1 << 32 }
    }

    const fn mean_steps(&self) -> f64 {
        match self.kind {
            Kind::Tool => 0.75 + 0.25 * 5.5,
            Kind::Conversation => 5.0,
            Kind::Uniform | Kind::Hot | Kind::ZipfFlip | Kind::Unique | Kind::Short => 1.0,
        }
    }

    /// About how long the longest sessions are.
    const fn longest_session(&self) -> u64 {
        match self.kind {
            Kind::Tool => 80_000_000,
            Kind::Conversation => 400_000_000,
            Kind::Uniform | Kind::Hot | Kind::ZipfFlip | Kind::Unique | Kind::Short => 0,
        }
    }

    /// All that one client asks from `at` on, when that share of the whole is over.
    fn session(&mut self, at: u64, share: f64) {
        let prefix = self.prefix(share);
        let mut text = Text::new(BLOCK_TOKENS);
        if let Some((name, tokens)) = prefix {
            text.say(name, tokens);
        }
        let steps = match self.kind {
            Kind::Tool if self.rng.below(4) == 0 => 3 + self.rng.below(6),
            Kind::Conversation => 1 + self.rng.below(9),
            Kind::Tool
            | Kind::Uniform
            | Kind::Hot
            | Kind::ZipfFlip
            | Kind::Unique
            | Kind::Short => 1,
        };
        let mut at = at;
        for _ in 0..steps {
            let (asked, answered) = match self.kind {
                Kind::Tool => (self.between(150, 2_000), self.between(20, 200)),
                Kind::Uniform | Kind::ZipfFlip => (self.between(50, 500), self.between(30, 400)),
                Kind::Conversation => (self.between(20, 2_000), self.between(50, 800)),
                Kind::Hot => (self.between(50, 500), self.between(30, 400)),
                Kind::Unique => (self.between(500, 16_000), self.between(30, 400)),
                Kind::Short => (self.between(200, 5_000), self.between(20, 800)),
            };
            let piece = self.fresh();
            text.say(piece, asked);
            self.requests.push(Request {
                at: Instant::from_micros(at),
                blocks: text.blocks(),
                prompt: text.tokens(),
                output: answered,
                ..Request::default()
            });
            // The next prompt begins with this answer; a tool runs, or a person reads.
            let piece = self.fresh();
            text.say(piece, answered);
            let pause = if self.kind == Kind::Tool { 8e6 } else { 40e6 };
            at += 2_000_000 + self.exponential(pause);
        }
    }

    /// The name and the length of a prefix.
    fn prefix(&mut self, share: f64) -> Option<(u64, u32)> {
        let all = *self.popular.last()?;
        let lot = self.rng.below(all);
        let mut rank = self.popular.partition_point(|sum| *sum <= lot);
        if self.kind == Kind::ZipfFlip && share >= 0.5 {
            rank = self.popular.len() - 1 - rank;
        }
        // How long a prefix is has nothing to do with how popular it is.
        let mut own = Rng::new(mix(rank as u64 + 1));
        let tokens = match self.kind {
            Kind::Tool => 600 + own.below(15_401) as u32,
            Kind::ZipfFlip => spread(&mut own, 1_000, 8_000),
            Kind::Uniform => 2_000,
            Kind::Conversation => 500,
            Kind::Hot => 8_000,
            Kind::Unique | Kind::Short => 0,
        };
        Some((rank as u64, tokens))
    }

    fn fresh(&mut self) -> u64 {
        self.piece += 1;
        self.piece
    }

    fn between(&mut self, least: u32, most: u32) -> u32 {
        spread(&mut self.rng, least, most)
    }

    fn exponential(&mut self, mean: f64) -> u64 {
        (-mean * (1.0 - unit(&mut self.rng)).ln()).round() as u64
    }
}

/// A length between two: as likely in the upper half of its magnitude as in the lower.
fn spread(rng: &mut Rng, least: u32, most: u32) -> u32 {
    let (least, most) = (f64::from(least), f64::from(most));
    (least * (most / least).powf(unit(rng))).round() as u32
}

/// A number from 0 to 1, 1 apart: 53 bits, all that a float can hold.
fn unit(rng: &mut Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn mean(workload: &Workload, of: fn(&Request) -> u32) -> f64 {
        let sum: u64 = workload.requests.iter().map(|one| u64::from(of(one))).sum();
        sum as f64 / workload.requests.len() as f64
    }

    #[rstest]
    fn every_kind_is_well_formed_and_follows_from_its_seed(
        #[values(0, 1, 2, 3, 4, 5, 6)] index: usize,
    ) {
        let (name, kind) = Kind::ALL[index];
        assert_eq!(name.parse(), Ok(kind));
        let workload = generate(kind, 3_000, 20.0, 1);
        assert_eq!(workload.requests.len(), 3_000);
        for pair in workload.requests.windows(2) {
            assert!(pair[0].at <= pair[1].at);
        }
        for one in &workload.requests {
            assert_eq!(one.blocks.len(), one.prompt.div_ceil(BLOCK_TOKENS) as usize);
            assert!(one.output > 0 && one.prompt > 0);
        }
        let rate = 3_000.0 / workload.span().as_secs_f64();
        assert!((17.0..23.0).contains(&rate), "{rate}");
        assert_eq!(workload, generate(kind, 3_000, 20.0, 1));
        assert_ne!(workload, generate(kind, 3_000, 20.0, 2));
    }

    #[rstest]
    // Prefixes are seen again and again; what is asked behind them is new.
    #[case::tool(Kind::Tool, 0.87, 0.93)]
    #[case::uniform(Kind::Uniform, 0.82, 0.90)]
    #[case::conversation(Kind::Conversation, 0.55, 0.70)]
    #[case::hot(Kind::Hot, 0.95, 0.98)]
    #[case::zipf_flip(Kind::ZipfFlip, 0.75, 0.95)]
    #[case::unique(Kind::Unique, 0.0, 0.0)]
    #[case::short(Kind::Short, 0.0, 0.0)]
    fn how_much_repeats(#[case] kind: Kind, #[case] least: f64, #[case] most: f64) {
        let hits = generate(kind, 4_000, 20.0, 1).hits_of_one_cache(u64::MAX);
        assert!((least..=most).contains(&hits), "{hits}");
    }

    #[test]
    fn tools_are_as_popular_as_zipf_says() {
        let workload = generate(Kind::Tool, 20_000, 20.0, 3);
        let mut counts = std::collections::BTreeMap::new();
        for one in &workload.requests {
            *counts.entry(one.blocks[0]).or_insert(0_u32) += 1;
        }
        let mut counts: Vec<_> = counts.into_values().collect();
        counts.sort_unstable_by(|one, other| other.cmp(one));
        assert_eq!(counts.len(), 40);
        // 1 / (1 + 2^-0.9 + .. + 40^-0.9) = 0.194.
        let share = f64::from(counts[0]) / 20_000.0;
        assert!((0.17..0.22).contains(&share), "{share}");
        let prompt = mean(&workload, |one| one.prompt);
        assert!((7_000.0..12_000.0).contains(&prompt), "{prompt}");
        let output = mean(&workload, |one| one.output);
        assert!((70.0..86.0).contains(&output), "{output}");
    }

    #[test]
    fn popularity_flips_half_way() {
        let workload = generate(Kind::ZipfFlip, 4_000, 20.0, 3);
        let most = |requests: &[Request]| {
            let mut counts = std::collections::BTreeMap::new();
            for one in requests {
                *counts.entry(one.blocks[0]).or_insert(0_u32) += 1;
            }
            counts.into_iter().max_by_key(|(_, count)| *count).map(|(block, _)| block)
        };
        assert_ne!(most(&workload.requests[..2_000]), most(&workload.requests[2_000..]));
    }
}
