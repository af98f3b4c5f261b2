//! From what a trace tells of a prompt to the chunks a proxy would see.

use crate::world::Ask;
use vllm_proxy_core::rng::mix;

/// Bytes of a chunk.
pub(super) const CHUNK_BYTES: u64 = 512;

/// Hashes of the whole chunks of a prompt, each of a chunk and all before it: what a proxy would
/// hash of the text. A chunk is told by its place and by the block that its last byte lies in: at 4
/// bytes a token a block of 512 tokens is four chunks, and of blocks smaller than a chunk each that
/// ends one stands for it.
pub fn fingerprint(ask: &Ask<'_>, chunks: &mut Vec<u64>) {
    chunks.clear();
    let token_bytes_milli = ask.token_bytes_milli.max(1);
    let whole = ask.prompt_bytes / CHUNK_BYTES;
    chunks.extend((1..=whole).map_while(|chunk| {
        let last_token = (chunk * CHUNK_BYTES - 1) * 1_000 / token_bytes_milli;
        let block = last_token / u64::from(ask.block_tokens);
        ask.request
            .blocks
            .get(usize::try_from(block).ok()?)
            .map(|id| mix(of_name(*id, ask.name) ^ mix(chunk)))
    }));
}

/// What a block holds under the name of a model or an adapter: under another it is another block.
pub(crate) fn of_name(block: u64, name: u32) -> u64 {
    if name == 0 { block } else { mix(block ^ mix(u64::from(name))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Request;
    use rstest::rstest;
    use vllm_proxy_core::time::Instant;

    fn chunks(blocks: &[u64], prompt: u32, block_tokens: u32, token_bytes_milli: u64) -> Vec<u64> {
        let request = Request { blocks: blocks.into(), prompt, output: 1, ..Request::default() };
        let mut chunks = vec![7];
        let ask = Ask {
            id: 0,
            request: &request,
            block_tokens,
            prompt_bytes: u64::from(prompt) * token_bytes_milli / 1_000,
            token_bytes_milli,
            stream: true,
            since: Instant::START,
            name: 0,
        };
        fingerprint(&ask, &mut chunks);
        chunks
    }

    #[rstest]
    #[case::four_chunks_a_block(&[1, 2], 1_024, 512, 4_000, 8)]
    #[case::only_whole_chunks(&[1, 2], 800, 512, 4_000, 6)]
    #[case::less_than_a_chunk(&[1], 127, 512, 4_000, 0)]
    #[case::a_chunk_a_block(&[1, 2, 3], 300, 128, 4_000, 2)]
    #[case::eight_blocks_a_chunk(&[1, 2, 3, 4, 5, 6, 7, 8, 9], 144, 16, 4_000, 1)]
    #[case::longer_tokens(&[1, 2], 1_024, 512, 6_000, 12)]
    #[case::shorter_tokens(&[1, 2], 1_024, 512, 2_500, 5)]
    fn whole_chunks(
        #[case] blocks: &[u64],
        #[case] prompt: u32,
        #[case] block_tokens: u32,
        #[case] token_bytes_milli: u64,
        #[case] count: usize,
    ) {
        let mut chunks = chunks(blocks, prompt, block_tokens, token_bytes_milli);
        assert_eq!(chunks.len(), count);
        chunks.sort_unstable();
        chunks.dedup();
        assert_eq!(chunks.len(), count, "chunks differ");
    }

    #[test]
    fn under_another_name_all_is_another() {
        assert_eq!(of_name(7, 0), 7);
        assert!(of_name(7, 1) != of_name(7, 2) && of_name(7, 1) != 7);
    }

    #[rstest]
    #[case::four(4_000, 4)]
    #[case::six(6_000, 6)]
    #[case::two_and_a_half(2_500, 2)]
    fn equal_beginnings_are_equal_chunks(#[case] token_bytes_milli: u64, #[case] alike: usize) {
        let of = |blocks: &[u64], prompt| chunks(blocks, prompt, 512, token_bytes_milli);
        let (one, other) = (of(&[1, 2], 1_024), of(&[1, 3, 4], 1_100));
        assert_eq!(one[..alike], other[..alike]);
        assert!(one[alike..].iter().all(|chunk| !other.contains(chunk)));
    }
}
