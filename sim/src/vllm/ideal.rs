//! What a cache would find if requests took no time: the bounds that hit ratios are held against.

use super::pool::Pool;

/// Tokens of prompts that one least-recently-used cache of `kv_tokens` ([`u64::MAX`]: without
/// limit) would find, if each request were over before the next came. Requests are what their
/// blocks hold, tokens of their prompt and tokens of their answer.
pub fn ideal_hits<'a>(
    requests: impl Iterator<Item = (&'a [u64], u32, u32)>,
    kv_tokens: u64,
    block_tokens: u32,
) -> u64 {
    let limit = (kv_tokens != u64::MAX)
        .then(|| usize::try_from(kv_tokens / u64::from(block_tokens)).unwrap_or(usize::MAX));
    let mut pool = Pool::new(limit);
    let mut found = 0;
    let mut held = Vec::new();
    for (blocks, prompt, output) in requests {
        let full = (prompt / block_tokens) as usize;
        let most = (prompt.saturating_sub(1) / block_tokens) as usize;
        let hits = blocks.iter().take(most).map_while(|&content| pool.find(content));
        held.extend(hits);
        found += held.len() as u64 * u64::from(block_tokens);
        for &block in &held {
            pool.share(block);
        }
        let all = (prompt + output).saturating_sub(1).div_ceil(block_tokens) as usize;
        for index in held.len()..all {
            let content = blocks.get(index).copied().filter(|_| index < full);
            held.extend(pool.take(content));
        }
        for block in held.drain(..).rev() {
            pool.release(block);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::without_limit(u64::MAX, 20)]
    // The second request evicts the first one's tail, the third finds its head.
    #[case::tight(12, 16)]
    #[case::too_small(4, 4)]
    fn bounds(#[case] kv_tokens: u64, #[case] tokens: u64) {
        let requests: [(&[u64], u32, u32); 4] =
            [(&[1, 2, 3], 12, 1), (&[4, 5], 8, 1), (&[1, 2, 3], 12, 1), (&[1, 2, 3, 6], 13, 1)];
        assert_eq!(ideal_hits(requests.into_iter(), kv_tokens, 4), tokens);
    }
}
