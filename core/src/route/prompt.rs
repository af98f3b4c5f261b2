//! A prompt as a chain of hashes, one for each chunk of its text.
//!
//! Owns the hash, which is pinned and versioned: proxies of different builds tell each other these
//! numbers. Knows nothing of JSON nor of what a prompt is made of; that is `wire::scan`'s.

use alloc::sync::Arc;
use alloc::vec::Vec;
use rapidhash::v3::{RapidSecrets, rapidhash_v3_inline};

/// Bytes of text in a chunk. A prompt matches by whole chunks: smaller ones would fill the index
/// sooner, larger ones would not see that short system prompts are alike.
pub const CHUNK_BYTES: usize = 512;

/// Chunks that are kept of one prompt: 4 MiB of text, the million tokens that the longest contexts
/// hold. 64 KiB a request at most, and a body of any size is hashed in a millisecond.
pub const CHUNKS_MAX: usize = 8192;

/// To be raised whenever equal prompts get other hashes than before, so that an old build and a
/// new one never mistake each other's. The golden tests here and in `wire::scan` notice that.
const VERSION: u64 = 1;

/// A prompt, so that prompts that begin alike can be told from others: chunk `i` of two of them is
/// equal if all the text up to the end of that chunk is, and what else decides what a backend may
/// have cached (the model's name, the salt). Other text has other hashes, by all likelihood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    /// Shared with whoever keeps it for as long as the request lasts. There is at least one.
    chunks: Option<Arc<[u64]>>,
    bytes: u64,
}

impl Fingerprint {
    /// That of no prompt.
    pub const fn new() -> Self {
        Self { chunks: None, bytes: 0 }
    }

    /// Of a prompt that was never text: hashes of its chunks, each of a chunk and all before it.
    pub fn of_chunks(chunks: Vec<u64>, bytes: u64) -> Self {
        Self { chunks: (!chunks.is_empty()).then(|| chunks.into()), bytes }
    }

    /// The hash of each whole chunk and of all that precedes it; at most [`CHUNKS_MAX`].
    pub fn chunks(&self) -> &[u64] {
        self.chunks.as_deref().unwrap_or_default()
    }

    /// The same, to be kept.
    pub(crate) fn shared(&self) -> Arc<[u64]> {
        self.chunks.clone().unwrap_or_default()
    }

    /// Length of the text, the last part of a chunk included. Behind the last chunk that is kept
    /// it is counted as it stands in the body, escapes and all.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Sets it apart from the same prompt under other names, for what the body does not say.
    pub fn set_apart(&mut self, name: &[u8]) {
        let seed = hash(VERSION, name);
        let apart = |chunks: &Arc<[u64]>| chunks.iter().map(|&chunk| mix(seed, chunk)).collect();
        self.chunks = self.chunks.as_ref().map(apart);
    }
}

/// Text of less bytes than this is copied faster.
const SHORT: usize = 16;

/// Hashes text that comes in pieces. How it is cut into them makes no difference.
#[derive(Debug)]
pub(crate) struct Chain {
    chunks: Vec<u64>,
    /// Whether the chunks are of interest, or only the hash of it all.
    keeps: bool,
    last: u64,
    /// With room for copying more than is needed.
    tail: [u8; CHUNK_BYTES + SHORT],
    tail_len: usize,
    bytes: u64,
}

impl Chain {
    /// Of a section of a prompt.
    pub(crate) const fn new() -> Self {
        Self::keeping(true)
    }

    /// Of what counts as one, however long it is.
    pub(crate) const fn of_one() -> Self {
        Self::keeping(false)
    }

    const fn keeping(keeps: bool) -> Self {
        let tail = [0; CHUNK_BYTES + SHORT];
        Self { chunks: Vec::new(), keeps, last: 0, tail, tail_len: 0, bytes: 0 }
    }

    /// Whether more text makes no difference, but for its length.
    pub(crate) const fn is_full(&self) -> bool {
        self.chunks.len() == CHUNKS_MAX
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// So many bytes of `text`. Few are copied sixteen at a time, in two instructions instead of a
    /// call, if there are that many.
    #[inline]
    pub(crate) fn push_head(&mut self, text: &[u8], len: usize) {
        if len < SHORT && self.tail_len + len < CHUNK_BYTES {
            let room = self.tail.get_mut(self.tail_len..).and_then(<[u8]>::first_chunk_mut);
            if let (Some(room), Some(short)) = (room, text.first_chunk::<SHORT>()) {
                *room = *short;
                self.tail_len += len;
                self.bytes += len as u64;
                return;
            }
        }
        self.push(text.get(..len).unwrap_or_default());
    }

    /// A few bytes.
    #[inline]
    pub(crate) fn mark<const LEN: usize>(&mut self, bytes: [u8; LEN]) {
        let mut short = [0; SHORT];
        for (room, byte) in short.iter_mut().zip(bytes) {
            *room = byte;
        }
        self.push_head(&short, LEN);
    }

    pub(crate) fn push(&mut self, text: &[u8]) {
        self.bytes += text.len() as u64;
        let room = CHUNK_BYTES - self.tail_len;
        if text.len() < room {
            self.keep(text);
            return;
        }
        let mut text = text;
        if self.tail_len > 0 {
            let (head, rest) = text.split_at(room);
            self.keep(head);
            if let Some(&chunk) = self.tail.first_chunk() {
                self.link(&chunk);
            }
            self.tail_len = 0;
            text = rest;
        }
        let (chunks, rest) = text.as_chunks::<CHUNK_BYTES>();
        for chunk in chunks {
            if self.is_full() {
                return;
            }
            self.link(chunk);
        }
        self.keep(rest);
    }

    fn keep(&mut self, text: &[u8]) {
        let end = self.tail_len + text.len();
        if let Some(room) = self.tail.get_mut(self.tail_len..end) {
            room.copy_from_slice(text);
            self.tail_len = end;
        }
    }

    fn link(&mut self, chunk: &[u8; CHUNK_BYTES]) {
        if self.is_full() {
            return;
        }
        self.last = hash(self.last, chunk);
        if self.keeps {
            self.chunks.push(self.last);
        }
    }

    /// The hash of it all.
    pub(crate) fn total(&self) -> u64 {
        hash(self.last, self.tail.get(..self.tail_len).unwrap_or_default())
    }
}

/// Puts a prompt together from its sections, in the order in which a backend reads them.
///
/// Each was hashed by itself, since a body may name them in any order. A section begins a chunk
/// of its own; what was left of the section before counts in the hashes of all that follow.
#[derive(Debug)]
pub(crate) struct Composer {
    seed: u64,
    chunks: Vec<u64>,
    bytes: u64,
}

impl Composer {
    pub(crate) const fn new() -> Self {
        Self { seed: VERSION, chunks: Vec::new(), bytes: 0 }
    }

    /// Something that changes the prompt from its beginning: everything that follows differs by it.
    pub(crate) fn seed(&mut self, name: &[u8], total: u64) {
        self.seed = mix(hash(self.seed, name), total);
    }

    pub(crate) fn section(&mut self, name: &[u8], text: &Chain) {
        if text.is_empty() {
            return;
        }
        let seed = hash(self.seed, name);
        let room = CHUNKS_MAX - self.chunks.len();
        self.chunks.extend(text.chunks.iter().take(room).map(|&chunk| mix(seed, chunk)));
        self.bytes += text.bytes;
        self.seed = mix(seed, text.total());
    }

    pub(crate) fn finish(self) -> Fingerprint {
        Fingerprint::of_chunks(self.chunks, self.bytes)
    }
}

/// rapidhash V3 with the seed and the secrets of its C++ original. Such functions of the crate are
/// promised never to change.
///
/// GB/s over chunks of 512 bytes, each seeded with the hash before, one core of an AMD EPYC:
/// rapidhash 24, XXH3 15.
fn hash(seed: u64, text: &[u8]) -> u64 {
    rapidhash_v3_inline::<true, false, false>(text, &RapidSecrets::seed_cpp(seed))
}

fn mix(seed: u64, number: u64) -> u64 {
    hash(seed, &number.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn chain(text: &[u8]) -> Chain {
        let mut chain = Chain::new();
        chain.push(text);
        chain
    }

    #[rstest]
    #[case::nothing(0, 0x0338_dc4b_e2ce_cdae)]
    #[case::tail(100, 0x9f47_5592_3349_237b)]
    #[case::chunk(CHUNK_BYTES, 0xd3a9_4f73_fe6f_fc9f)]
    #[case::chunks_and_tail(5 * CHUNK_BYTES + 1, 0x0a93_1e50_51d3_6a2f)]
    fn golden(#[case] len: usize, #[case] total: u64) {
        let text: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        assert_eq!(chain(&text).total(), total);
        assert_eq!(chain(&text).chunks.len(), len / CHUNK_BYTES);
    }

    /// All chunks behind a section are other ones if anything of it is.
    #[test]
    fn a_section_counts_in_those_behind_it() {
        let of = |sections: &[(&[u8], &[u8])]| {
            let mut composer = Composer::new();
            for (name, text) in sections {
                composer.section(name, &chain(text));
            }
            composer.finish()
        };
        let long = [b'l'; 2 * CHUNK_BYTES];
        let plain = of(&[(b"a", b""), (b"b", &long)]);
        assert_eq!(plain, of(&[(b"b", &long)]));
        assert_eq!((plain.chunks().len(), plain.bytes()), (2, 1024));
        for other in [
            of(&[(b"c", &long)]),
            of(&[(b"a", b"x"), (b"b", &long)]),
            of(&[(b"a", b"y"), (b"b", &long)]),
        ] {
            assert_eq!(other.chunks().len(), 2);
            assert!(plain.chunks().iter().all(|chunk| !other.chunks().contains(chunk)));
        }
    }

    #[test]
    fn set_apart_by_name() {
        let mut composer = Composer::new();
        composer.section(b"a", &chain(&[b'l'; 2 * CHUNK_BYTES]));
        let plain = composer.finish();
        let apart = |name| {
            let mut found = plain.clone();
            found.set_apart(name);
            found
        };
        assert_eq!(apart(b"x"), apart(b"x"));
        assert_ne!(apart(b"x"), apart(b"y"));
        assert_ne!(apart(b"x"), plain);
    }

    proptest! {
        #[test]
        fn however_it_is_cut(cuts in prop::collection::vec((0_usize..40, 0_usize..3), 0..200)) {
            let len: usize = cuts.iter().map(|(len, _)| len * 3).sum();
            let text: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let mut pieces = Chain::new();
            let mut rest = &*text;
            for (len, times) in cuts {
                let len = (len * times).min(rest.len());
                pieces.push_head(rest, len);
                rest = &rest[len..];
            }
            pieces.push(rest);
            let whole = chain(&text);
            prop_assert_eq!(pieces.total(), whole.total());
            prop_assert_eq!(pieces.bytes, whole.bytes);
            prop_assert_eq!(pieces.chunks, whole.chunks);
        }
    }
}
