//! What a cache would find if requests took no time: the bounds that hit ratios are held against.

use super::Job;
use super::pool::Pool;

/// Tokens of prompts that one least-recently-used cache of `kv_tokens` ([`u64::MAX`]: without
/// limit) would find, if each request were over before the next came.
pub fn ideal_hits(requests: impl Iterator<Item = Job>, kv_tokens: u64, block_tokens: u32) -> u64 {
    let limit = (kv_tokens != u64::MAX)
        .then(|| usize::try_from(kv_tokens / u64::from(block_tokens)).unwrap_or(usize::MAX));
    let mut pool = Pool::new(limit);
    let mut found = 0;
    let mut held = Vec::new();
    for job in requests {
        let most = (job.prompt.saturating_sub(1) / block_tokens) as usize;
        let content = |place| job.content(block_tokens, place);
        let hits = (0..most).map_while(|place| content(place).and_then(|one| pool.find(one)));
        held.extend(hits);
        found += held.len() as u64 * u64::from(block_tokens);
        for &block in &held {
            pool.share(block);
        }
        let computed = (job.prompt + job.output).saturating_sub(1);
        let full = (computed / block_tokens) as usize;
        // A prompt of whole blocks is all computed, without an answer, too.
        let full = full.max((job.prompt / block_tokens) as usize);
        for place in held.len()..computed.div_ceil(block_tokens) as usize {
            held.extend(pool.take(content(place).filter(|_| place < full)));
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
        let requests: [(&[u64], u32); 4] =
            [(&[1, 2, 3], 12), (&[4, 5], 8), (&[1, 2, 3], 12), (&[1, 2, 3, 6], 13)];
        let jobs = requests.map(|(blocks, prompt)| Job {
            blocks: blocks.into(),
            prompt,
            output: 1,
            ..Job::default()
        });
        assert_eq!(ideal_hits(jobs.into_iter(), kv_tokens, 4), tokens);
    }

    #[rstest]
    #[case::unknown(&[], 4)]
    #[case::known(&[2, 3], 12)]
    #[case::known_in_part(&[2], 8)]
    fn answers_are_found_in_the_next_prompt(#[case] answer: &[u64], #[case] tokens: u64) {
        let first = Job {
            blocks: [1, 9].into(),
            prompt: 6,
            output: 7,
            answer: answer.into(),
            ..Job::default()
        };
        let second = Job { blocks: [1, 2, 3, 4].into(), prompt: 16, output: 1, ..Job::default() };
        assert_eq!(ideal_hits([first, second].into_iter(), u64::MAX, 4), tokens);
    }
}
