//! From what a trace tells of a prompt to the chunks a proxy would see.

use vllm_proxy_core::rng::mix;

/// Bytes of a chunk.
pub(super) const CHUNK_BYTES: u64 = 512;
/// Bytes of a token in these texts.
const TOKEN_BYTES: u64 = 4;

/// Hashes of the whole chunks of a prompt, each of a chunk and all before it: what a proxy would
/// hash of the text, if every token of these blocks were 4 bytes long. A block of 512 tokens is
/// four chunks; of blocks smaller than a chunk, each that ends a chunk stands for it.
pub fn fingerprint(blocks: &[u64], prompt: u32, block_tokens: u32, chunks: &mut Vec<u64>) {
    chunks.clear();
    let block_bytes = u64::from(block_tokens) * TOKEN_BYTES;
    let whole = u64::from(prompt) * TOKEN_BYTES / CHUNK_BYTES;
    chunks.extend((1..=whole).map_while(|chunk| {
        let end = chunk * CHUNK_BYTES;
        let block = (end - 1) / block_bytes;
        let within = end - block * block_bytes;
        blocks.get(usize::try_from(block).ok()?).map(|id| mix(id ^ mix(within)))
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::four_chunks_a_block(&[1, 2], 1_024, 512, 8)]
    #[case::only_whole_chunks(&[1, 2], 800, 512, 6)]
    #[case::less_than_a_chunk(&[1], 127, 512, 0)]
    #[case::a_chunk_a_block(&[1, 2, 3], 300, 128, 2)]
    #[case::eight_blocks_a_chunk(&[1, 2, 3, 4, 5, 6, 7, 8, 9], 144, 16, 1)]
    fn whole_chunks(
        #[case] blocks: &[u64],
        #[case] prompt: u32,
        #[case] block_tokens: u32,
        #[case] count: usize,
    ) {
        let mut chunks = vec![7];
        fingerprint(blocks, prompt, block_tokens, &mut chunks);
        assert_eq!(chunks.len(), count);
        let mut sorted = chunks.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), count, "chunks differ");
    }

    #[test]
    fn equal_beginnings_are_equal_chunks() {
        let of = |blocks: &[u64]| {
            let mut chunks = Vec::new();
            fingerprint(blocks, 1_024, 512, &mut chunks);
            chunks
        };
        let (one, other) = (of(&[1, 2]), of(&[1, 3]));
        assert_eq!(one[..4], other[..4]);
        assert!(one[4..].iter().all(|chunk| !other.contains(chunk)));
    }
}
